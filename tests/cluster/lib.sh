# Sourced by the scripts here: where things are, and how they speak.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/chatgateway/cluster
# Kept from cluster to cluster: programs and images.
bin=$cache/bin
images=$cache/images
# Of the cluster that runs: goes with it.
state=$cache/state
kubeconfig=$state/admin.kubeconfig
# Where the API server listens on 127.0.0.1, here and inside the cluster's network.
port=${CLUSTER_PORT:-16443}
# The name of the node, of kind's cluster, and of the control group that holds all pods.
name=chatgateway

say() { echo "cluster: $1" >&2; }
stop() { say "$1"; exit 1; }

# The process that holds the cluster's namespaces, if one runs.
holder() {
  local pid
  pid=$(cat "$state/holder.pid" 2> /dev/null) && [ -d "/proc/$pid/ns" ] && grep -qz "$here/node.sh" "/proc/$pid/cmdline" && echo "$pid"
}

has_kind() { command -v docker > /dev/null && docker info > /dev/null 2>&1; }
