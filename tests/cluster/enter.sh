#!/usr/bin/env bash
# enter.sh COMMAND…: runs a command in the cluster's network, where addresses of Services and pods are reached.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

export KUBECONFIG=$kubeconfig
if pid=$(holder); then
  exec nsenter --net="/proc/$pid/ns/net" "$@"
elif has_kind; then
  pid=$(docker inspect --format '{{.State.Pid}}' $name-control-plane)
  exec nsenter --net="/proc/$pid/ns/net" "$@"
else
  stop "no cluster is up; start one with make cluster"
fi
