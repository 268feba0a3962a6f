#!/usr/bin/env bash
# run.sh [ARGUMENTS OF e2e]: the project on a real cluster, from its images to its end. Without KUBECONFIG the cluster of
# tests/cluster is used, and started if it is not up. With KUBECONFIG it is that one: run it where addresses of Services are
# reached.
#   LOAD       with KUBECONFIG: a command that gives image archives to the nodes, such as `kind load image-archive`
#   BIN_DIR    programs to make images of, such as target/debug; else `make images` builds them
#   KEEP       if set, everything stays in place in the end
set -euo pipefail
cd "$(dirname "$0")/../.."

system=chatgateway-system
namespace=chat
gateway=assistant
cluster=tests/cluster
tag=e2e
say() { echo "e2e: $1" >&2; }
stop() { say "$1"; exit 1; }

if [ -z "${KUBECONFIG:-}" ]; then
  settings=$($cluster/up.sh)
  eval "$settings"
  enter=$cluster/enter.sh
  export LOAD=$PWD/$cluster/load.sh
else
  enter=env
  : "${LOAD:?with KUBECONFIG, LOAD must name a command that gives image archives to the nodes}"
fi

# Those of `make images`; of the programs in BIN_DIR where that is given, which is quicker.
make_images() {
  cargo build --quiet -p chatgateway-tests --bin e2e
  if [ -n "${BIN_DIR:-}" ]; then
    tests/e2e/images.sh "$BIN_DIR/chatgateway-operator=chatgateway-operator:$tag" "$BIN_DIR/model-sim=chatgateway-model-sim:$tag" \
      "$BIN_DIR/chatgateway-dataplane=chatgateway-dataplane:$tag" "$BIN_DIR/chatgateway-dataplane=chatgateway-dataplane:$tag-next"
    return
  fi
  if ! command -v docker podman buildah > /dev/null && [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    say "installing buildah ..."
    (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends buildah) > /dev/null
  fi
  local images=${CARGO_TARGET_DIR:-target}/images
  IMAGE_TAG=$tag images/build.sh chatgateway-operator chatgateway-dataplane chatgateway-model-sim
  $LOAD "$images"/chatgateway-{operator,dataplane,model-sim}.tar
  # The same program under another name: that alone replaces every pod.
  tests/e2e/images.sh "$images/chatgateway-dataplane/chatgateway-dataplane=chatgateway-dataplane:$tag-next"
}

show() { # What people look at when something is wrong.
  kubectl -n $namespace get cgw,pods,events 2>&1 || true
  kubectl -n $namespace get cgw -o jsonpath='{range .items[*].status.conditions[*]}{.type}{"="}{.status}{" "}{.reason}{": "}{.message}{"\n"}{end}' 2>&1 || true
  kubectl -n $namespace logs -l app.kubernetes.io/instance=$gateway --prefix --all-containers --tail=40 2>&1 || true
  kubectl -n $system get pods,events 2>&1 || true
  kubectl -n $system logs deployment/chatgateway-operator --tail=40 2>&1 || true
}

install_operator() {
  local helm port
  helm=$(tests/charts/build.sh)
  # Which port its API server has is a thing that only a cluster knows.
  port=$(kubectl get endpointslices -n default kubernetes -o jsonpath='{.ports[0].port}')
  "$helm" dependency build charts/chatgateway-operator > /dev/null
  "$helm" upgrade --install chatgateway-operator charts/chatgateway-operator --namespace $system --create-namespace --wait \
    --set image.tag=$tag --set dataplane.image=chatgateway-dataplane:$tag --set redis.image=chatgateway-tests/redis:$tag \
    --set "networkPolicy.apiServerPorts={$port}" > /dev/null
}

# The example as it is, but for the model's name, room for all clients, and what the checker counts: each takeover may ask the
# model once more, and nothing else may.
install_gateway() {
  kubectl create namespace $namespace --dry-run=client -o yaml | kubectl apply -f - > /dev/null
  kubectl label --overwrite namespace $namespace pod-security.kubernetes.io/enforce=restricted > /dev/null
  kubectl -n $namespace apply -f tests/e2e/manifests/model-server.yaml -f examples/cluster.yaml > /dev/null
  kubectl -n $namespace patch cgw $gateway --type json --patch '[
    {"op": "replace", "path": "/spec/upstreams/0/openAI/model", "value": "sim-model"},
    {"op": "add", "path": "/spec/upstreams/0/retries", "value": {"maxAttempts": 1, "budgetPercent": 0}},
    {"op": "add", "path": "/spec/upstreams/0/pool", "value": {"maxConcurrent": 1000, "maxQueued": 1000}},
    {"op": "add", "path": "/spec/upstreams/0/timeouts", "value": {"firstToken": "30s", "betweenTokens": "30s"}},
    {"op": "add", "path": "/spec/sessions/history", "value": {"maxTurns": 1000}}]' > /dev/null
  kubectl -n $namespace rollout status deployment/model-server --timeout=120s > /dev/null
  kubectl -n $namespace wait --for=condition=Ready cgw/$gateway --timeout=300s
}

# WHAT COMMAND…: waits until the command prints nothing. What was deleted goes a moment later.
gone() {
  local what=$1 left
  shift
  for _ in $(seq 60); do
    left=$("$@")
    [ -n "$left" ] || return 0
    sleep 1
  done
  stop "$what, and these are left: $left"
}
of_gateway() { kubectl -n $namespace get all,configmaps,secrets,serviceaccounts,networkpolicies,pdb,hpa -l app.kubernetes.io/instance=$gateway -o name; }
of_operator() {
  kubectl get clusterroles,clusterrolebindings -l app.kubernetes.io/instance=chatgateway-operator -o name
  kubectl -n $system get all,configmaps,secrets,serviceaccounts,networkpolicies,pdb,roles,rolebindings -o name |
    grep -v -e '^configmap/kube-root-ca.crt$' -e '^serviceaccount/default$' || true
}

# What is left is what was to be kept: the definition, and the volume of Redis.
uninstall() {
  kubectl -n $namespace delete cgw $gateway --timeout=180s > /dev/null
  gone "the gateway is deleted" of_gateway
  [ -n "$(kubectl -n $namespace get pvc -o name)" ] || stop "the volume of Redis was to be kept"
  "$(tests/charts/build.sh)" uninstall chatgateway-operator --namespace $system --wait > /dev/null
  gone "the operator is uninstalled" of_operator
  kubectl get crd chatgateways.chatgateway.dev > /dev/null || stop "the definition was to be kept"
  kubectl delete namespace $namespace $system > /dev/null
}

say "programs and images ..."
make_images
say "the operator ..."
install_operator || { show; stop "the operator cannot be installed"; }
say "a gateway ..."
install_gateway || { show; stop "the gateway is not ready"; }
$enter target/debug/e2e --namespace $namespace --gateway $gateway --system $system --other-image chatgateway-dataplane:$tag-next "$@"
[ -n "${KEEP:-}" ] && exit
say "uninstalling ..."
uninstall
say "everything is good"
