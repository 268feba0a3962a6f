#!/usr/bin/env bash
# Starts a cluster of one node and prints how to use it: by kind where docker is, else from source packages in namespaces of its
# own. A cluster that is there already is brought up to date.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
began=$SECONDS
# The node of kind's v0.33.0 with the version of Kubernetes nearest to that of the other way.
kind_image=kindest/node:v1.36.4@sha256:099e049362a1526b2db71494e1947aae99bd16290d7c895f2b7ea312e3cbfaed

wait_for() { # SECONDS WHAT COMMAND…
  local limit=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" > /dev/null 2>&1; do
    [ "$SECONDS" -lt "$limit" ] || stop "not in time: $what; logs are in $state/log"
    holder > /dev/null || stop "the node ended: $(tail -n 3 "$state/log/node.log" 2> /dev/null)"
    sleep 0.2
  done
}

apply() { kubectl apply --server-side --force-conflicts -f "$@" > /dev/null; }

start_by_kind() {
  if ! command -v kind > /dev/null; then
    [ -x "$bin/kind" ] || { say "building kind (once) ..."; GOBIN=$bin go install sigs.k8s.io/kind@v0.33.0 >&2; }
    PATH=$bin:$PATH
  fi
  if ! kind get clusters 2> /dev/null | grep -qx $name; then
    # The same port inside and outside: the kubeconfig holds in both networks.
    printf 'kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\nnetworking: {apiServerAddress: 127.0.0.1, apiServerPort: 6443}\n' |
      kind create cluster --name $name --image "$kind_image" --kubeconfig "$kubeconfig" --config - --wait 120s >&2
  fi
  kind export kubeconfig --name $name --kubeconfig "$kubeconfig" 2> /dev/null
  load_tests_images metrics-server
}

load_tests_images() {
  for image in "$@"; do "$here/load.sh" "$images/$image"-v*.tar; done
}

start_node() {
  [ "$(id -u)" = 0 ] || stop "without docker it needs root: namespaces, mounts and control groups are made"
  if holder > /dev/null; then say "the node is up already"; return; fi
  "$here/down.sh"
  mkdir -p "$state/log" "$state/volumes"
  "$here/certificates.sh"
  # Everything below this process lives in its namespaces: when it ends, so do the processes, the mounts and the network.
  exec 9< /proc/self/ns/net
  setsid unshare --fork --kill-child --pid --mount --mount-proc --net --uts --ipc \
    "$here/node.sh" "$kubernetes" 9 > "$state/log/node.log" 2>&1 < /dev/null &
  echo $! > "$state/holder.pid"
  exec 9<&-
}

# Volumes that nobody uses any more are emptied and offered again.
offer_volumes() {
  local volumes n
  volumes=$(kubectl get pv -o jsonpath='{range .items[?(@.status.phase=="Released")]}{.metadata.name} {end}')
  for n in $volumes; do
    kubectl delete pv "$n" > /dev/null
    find "$state/volumes/${n#local-}" -mindepth 1 -delete
  done
  for n in $(seq 1 16); do
    mkdir -p "$state/volumes/$n"
    sed "s|NUMBER|$n|; s|FOLDER|$state/volumes/$n|; s|NODE|$name|" "$here/manifests/volume.yaml"
  done | apply -
}

mkdir -p "$bin" "$images" "$state"
if has_kind; then
  kubernetes=$("$here/build.sh")
  export PATH=$kubernetes:$PATH KUBECONFIG=$kubeconfig
  start_by_kind
else
  "$here/install.sh"
  kubernetes=$("$here/build.sh")
  export PATH=$kubernetes:$PATH KUBECONFIG=$kubeconfig
  start_node
  say "waiting for the API server ..."
  wait_for 120 "the API server is ready" kubectl get --raw /readyz
  wait_for 60 "containerd answers" ctr -a "$state/containerd.sock" version
  load_tests_images coredns metrics-server
  apply "$here/manifests/coredns.yaml"
  apply "$here/manifests/storage-class.yaml"
  offer_volumes
fi
apply "$here/manifests/metrics-server.yaml"
say "waiting for the node, names and metrics ..."
kubectl wait --for=create node --all --timeout=60s > /dev/null 2>&1 || true
wait_for_node() { kubectl wait --for=condition=Ready node --all --timeout=120s; }
wait_for_node > /dev/null || stop "the node is not ready: $(kubectl describe node | tail -n 20)"
kubectl -n kube-system rollout status deployment/coredns deployment/metrics-server --timeout=120s > /dev/null || {
  kubectl -n kube-system get pods,events >&2
  kubectl -n kube-system logs deployment/metrics-server --tail=20 >&2
  stop "names and metrics are not ready"
}
say "ready after $((SECONDS - began)) s: one node, $(kubectl version -o json | sed -n 's/.*"gitVersion": "\(.*\)".*/\1/p' | tail -n 1)"
echo "export KUBECONFIG=$kubeconfig PATH=$kubernetes:\$PATH"
