#!/usr/bin/env bash
# Builds what a node runs, each program once: Kubernetes, CoreDNS and metrics-server from the Go module proxy, and the process
# that holds a pod's network. Makes images of those that run in pods.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

coredns=$(sed -n 's/^.*github.com\/coredns\/coredns \(v[0-9.]*\)$/\1/p' "$here/coredns/go.mod")
metrics_server=v0.9.0

kubernetes=$("$here/../control-plane/build.sh" kubelet kube-proxy kube-scheduler)
mkdir -p "$bin" "$images"

# NAME VERSION FOLDER PACKAGE: a program that is not there is built, as the module in the folder says.
tool() {
  local program=$1 version=$2
  [ -x "$bin/$program-$version" ] && return
  command -v go > /dev/null || stop "needs Go 1.26 or later to build $program $version; see https://go.dev/dl"
  say "building $program $version (some minutes, once) ..."
  mkdir -p "$bin/new"
  (cd "$3" && CGO_ENABLED=0 GOBIN=$bin/new go install -buildvcs=false -trimpath -ldflags '-s -w' "$4") >&2
  mv "$bin/new/$program" "$bin/$program-$version"
}
tool coredns "$coredns" "$here/coredns" .
tool metrics-server $metrics_server / sigs.k8s.io/metrics-server/cmd/metrics-server@$metrics_server
[ -x "$bin/pause-1" ] || gcc -static -O2 -o "$bin/pause-1" "$here/pause.c"

for built in coredns-$coredns metrics-server-$metrics_server pause-1; do
  [ -s "$images/$built.tar" ] && continue
  "$here/image.sh" "chatgateway-tests/${built%-*}:${built##*-}" "$images/$built.tar" "$bin/$built=/${built%-*}"
done
echo "$kubernetes"
