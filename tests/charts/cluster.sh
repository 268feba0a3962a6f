#!/usr/bin/env bash
# The charts and the plain files on a real API server: everything is taken as it is, a second time changes nothing, the operator can
# do all of its work with the rights it gets and has none that it does not use, an upgrade leaves gateways alone, and what is
# uninstalled leaves nothing but what is to be kept.
#   KUBECONFIG        a cluster to use instead of a control plane of this machine; its audit log is nobody's to read, then
#   BIN_DIR           where the programs are (default: target/debug, built first)
#   PREVIOUS_CHARTS   the folder charts/ of the release before this one (default: these, made older)
. "$(dirname "$0")/lib.sh"
. tests/charts/plane.sh

command -v python3 > /dev/null || fail 'needs python3. Debian, Ubuntu: apt-get install python3-minimal'
system=chatgateway-system
operator=chatgateway-operator
charts=$work/charts
copy_charts "$charts"
start_plane
install_definitions

# asked WHAT...: objects, each with what changes when something else is asked of it: not with their status.
asked() {
  kubectl get "$@" -o json | python3 -c '
import json, sys
for one in json.load(sys.stdin)["items"]:
    meta = one["metadata"]
    print(one["kind"], meta["name"], meta["uid"], meta.get("generation", meta["resourceVersion"]))' | sort
}

say "the plain files: applied, and applied again"
kubectl apply -k deploy/kustomize > /dev/null
until_so 30 'the definition is served' kubectl get chatgateways -A
once=$(asked -k deploy/kustomize)
kubectl apply -k deploy/kustomize > /dev/null
changed=$(diff <(echo "$once") <(asked -k deploy/kustomize)) || fail "applying deploy/kustomize again changes: $changed"
kubectl diff -k deploy/kustomize >&2 || fail 'kubectl diff -k deploy/kustomize is not empty after it was applied'
kubectl delete -k deploy/kustomize --wait > /dev/null

say "the API server takes everything the charts make, and every example"
kubectl create namespace "$system" > /dev/null
kubectl label namespace "$system" pod-security.kubernetes.io/{enforce,warn}=restricted > /dev/null
kubectl create namespace team-a > /dev/null
helm template crds "$charts/chatgateway-crds" | kubectl apply --server-side -f - > /dev/null
until_so 30 'the definition is served' kubectl get chatgateways -A
for values in tests/charts/render/*.values.yaml; do
  helm template "$operator" "$charts/chatgateway-operator" --namespace "$system" --values "$values" > "$work/rendered.yaml"
  try_out "$work/rendered.yaml" "$values"
done
for example in examples/*.yaml deploy/argocd/*.yaml deploy/ingress/*.yaml; do
  try_out "$example" "$example"
done
helm template crds "$charts/chatgateway-crds" | kubectl delete -f - > /dev/null

say "the release before this one, with gateways"
if [ -n "${PREVIOUS_CHARTS:-}" ]; then
  cp -r "$PREVIOUS_CHARTS" "$work/previous"
  helm dependency build "$work/previous/chatgateway-operator" > /dev/null
else
  older_charts "$work/previous"
fi
install() { helm "$@" --namespace "$system" --set networkPolicy.apiServerPorts="{$api_server_port}" > "$work/helm.log" 2>&1 || fail "helm $1: $(cat "$work/helm.log")"; }
install install "$operator" "$work/previous/chatgateway-operator"
until_so 30 'the definition is served' kubectl get chatgateways -A
# Somebody deleted it: the operator makes a new one.
kubectl -n "$system" delete lease "$operator" > /dev/null
start_operator "$system" "$operator" first
kubectl apply -f tests/charts/gateways.yaml > /dev/null
gateways=$(kubectl -n team-a get cgw -o name | wc -l)
all_planned() {
  # Pods never run here: what was planned is there, and nothing is at fault.
  [ "$(kubectl -n team-a get deployments -l app.kubernetes.io/managed-by=$operator -o name | wc -l)" = "$gateways" ] &&
    [ "$(kubectl -n team-a get cgw -o jsonpath='{.items[*].status.conditions[?(@.type=="Accepted")].status}' | grep -o True | wc -l)" = "$gateways" ]
}
until_so 60 'every gateway is accepted, with its Deployment' all_planned
kinds=deployments,statefulsets,services,configmaps,serviceaccounts,poddisruptionbudgets,networkpolicies,podmonitors
of_gateways() { asked "$kinds" -n team-a -l "app.kubernetes.io/managed-by=$operator"; }
quiet() { local one; one=$(of_gateways); sleep 1; [ "$one" = "$(of_gateways)" ]; }
until_so 60 'nothing is written any more' quiet
before=$(of_gateways)
ids() { kubectl -n team-a get cgw -o jsonpath='{range .items[*]}{.metadata.name} {.metadata.uid} {.metadata.generation}{"\n"}{end}'; }
ids_before=$(ids)

say "upgraded to this one"
stop_operator first
install upgrade "$operator" "$charts/chatgateway-operator"
start_operator "$system" "$operator" second
until_so 60 'every gateway is accepted, with its Deployment' all_planned
[ "$ids_before" = "$(ids)" ] || fail "the upgrade changed gateways: $ids_before became $(ids)"
until_so 60 'nothing is written any more' quiet
[ "$before" = "$(of_gateways)" ] || fail "the upgrade wrote objects of gateways:
$(diff <(echo "$before") <(of_gateways))"
shown=$(kubectl get crd chatgateways.chatgateway.dev -o jsonpath='{.spec.versions[0].additionalPrinterColumns[*].name}')
grep -qw Config <<< "$shown" || fail "the upgrade did not bring the definition of this release: its columns are $shown"
revision=$(helm status "$operator" --namespace "$system" -o json | python3 -c 'import json,sys; print(json.load(sys.stdin)["version"])')
[ "$revision" = 2 ] || fail "the release has revision $revision after one upgrade"
helm get manifest "$operator" --namespace "$system" > "$work/manifest.yaml"
kubectl diff --server-side --force-conflicts --field-manager=tests -f "$work/manifest.yaml" >&2 || fail 'what Helm has installed is not what is there'

say "every path of the operator, with its rights"
kubectl -n team-a patch cgw managed --type merge -p '{"spec":{"sessions":{"store":{"type":"Memory","redis":null}},"replicas":1}}' > /dev/null
gone() { ! kubectl -n team-a get "$@"; }
until_so 60 'a Redis that is not asked for any more is gone' gone statefulset managed-redis
kubectl -n team-a patch cgw scaled --type merge -p '{"spec":{"autoscaling":null,"replicas":2}}' > /dev/null
until_so 60 'an autoscaler that is not asked for any more is gone' gone hpa scaled
kubectl -n team-a patch cgw scaled --type merge -p '{"spec":{"autoscaling":{"minReplicas":1,"maxReplicas":3,"metrics":[{"type":"CPU","target":65}]},"replicas":null}}' > /dev/null
until_so 60 'an autoscaler is there again' kubectl -n team-a get hpa scaled
kubectl -n team-a patch cgw demo --type merge -p '{"spec":{"sessions":{"ttl":"20m"}}}' > /dev/null
has_event() { kubectl -n team-a get events.events.k8s.io -o jsonpath='{.items[*].reason}' | grep -q ConfigReloaded; }
until_so 60 'the event of a reload' has_event
kubectl -n team-a patch cgw demo --type merge -p '{"spec":{"sessions":{"ttl":"21m"}}}' > /dev/null
counted() { [ "$(kubectl -n team-a get events.events.k8s.io -o jsonpath='{.items[?(@.reason=="ConfigReloaded")].series.count}')" = 2 ]; }
until_so 60 'the event of a second reload' counted
kubectl -n team-a delete cgw --all > /dev/null
until_so 60 'every gateway is gone' gone cgw/demo
stop_operator second
for log in first second; do
  if said=$(grep -i forbidden "$work/operator-$log.log"); then fail "the operator lacks a right: $(head -3 <<< "$said")"; fi
done
[ -z "${audit_log:-}" ] || python3 tests/charts/rights.py "$audit_log" "system:serviceaccount:$system:$operator" \
  <(kubectl get clusterrole "$operator" -o json) <(kubectl -n "$system" get role "$operator-lease" -o json) || fail 'rights and needs differ'

say "rights of people, and of an operator for one namespace"
may() { [ "$(kubectl auth can-i "$@" 2> /dev/null)" = yes ]; }
kubectl -n team-a create rolebinding editor --clusterrole edit --user editor > /dev/null
kubectl -n team-a create rolebinding viewer --clusterrole view --user viewer > /dev/null
until_so 30 'who may edit may edit gateways' may create cgw -n team-a --as editor
may get cgw -n team-a --as viewer || fail 'who may view may not view gateways'
if may patch cgw -n team-a --as viewer; then fail 'who may view may change gateways'; fi
if may get cgw -n "$system" --as editor; then fail 'who may edit one namespace may see gateways of another'; fi
install upgrade "$operator" "$charts/chatgateway-operator" --set watchNamespace=team-a
account=system:serviceaccount:$system:$operator
may patch deployments.apps -n team-a --as "$account" || fail 'an operator for one namespace has no rights there'
for what in 'get secrets' 'patch deployments.apps' 'list cgw'; do
  # shellcheck disable=SC2086
  if may $what -n default --as "$account"; then fail "an operator for one namespace may $what in another"; fi
done

say "uninstalled: the definition and gateways stay"
kubectl -n team-a apply -f examples/quickstart.yaml > /dev/null
helm uninstall "$operator" --namespace "$system" --wait > /dev/null 2>&1
left=$(kubectl get deployments,replicasets,services,configmaps,serviceaccounts,roles,rolebindings,leases,poddisruptionbudgets,networkpolicies -n "$system" \
  -o name | grep -v -e serviceaccount/default -e configmap/kube-root-ca.crt) || true
left+=$(kubectl get clusterroles,clusterrolebindings -o name | grep chatgateway) || true
[ -z "$left" ] || fail "uninstalling leaves: $left"
kubectl -n team-a get cgw quickstart > /dev/null || fail 'uninstalling took a gateway with it'
install install "$operator" "$charts/chatgateway-operator"
helm uninstall "$operator" --namespace "$system" --wait > /dev/null 2>&1
install install another "$charts/chatgateway-operator" --take-ownership
install upgrade another "$charts/chatgateway-operator" --set crds.keep=false
helm uninstall another --namespace "$system" --wait > /dev/null 2>&1
until_so 30 'without keep, the definition goes' gone crd/chatgateways.chatgateway.dev
