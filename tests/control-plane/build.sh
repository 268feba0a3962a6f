#!/usr/bin/env bash
# Makes sure that a real Kubernetes control plane can be started: builds kube-apiserver, kube-controller-manager and kubectl from
# the Go module proxy, once for each version, and installs etcd where it can. Prints the folder of the programs, and nothing else,
# to standard output. Arguments are further programs of Kubernetes to build, such as kubelet.
set -euo pipefail
cd "$(dirname "$0")"

[ -z "${KUBECONFIG:-}" ] || exit 0

version=$(sed -n 's/^[[:space:]]*\(require \)\{0,1\}k8s.io\/kubernetes \(v[0-9.]*\).*/\2/p' go.mod | head -1)
[ -n "$version" ] || { echo 'control plane: go.mod names no version of Kubernetes' >&2; exit 1; }
programs="kube-apiserver kube-controller-manager kubectl $*"
bin=${XDG_CACHE_HOME:-$HOME/.cache}/chatgateway/control-plane/$version

say() { echo "control plane: $1" >&2; }
stop() { say "$1"; exit 1; }

if ! command -v etcd > /dev/null && [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
  say "installing etcd ..."
  (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends etcd-server) > /dev/null || true
fi
command -v etcd > /dev/null || stop "needs etcd 3.4 or later on the PATH. Debian, Ubuntu: apt-get install etcd-server"

missing=
for program in $programs; do [ -x "$bin/$program" ] || missing+=" $program"; done
if [ -n "$missing" ]; then
  command -v go > /dev/null || stop "needs Go 1.26 or later to build Kubernetes $version; see https://go.dev/dl"
  command -v gcc > /dev/null || export CGO_ENABLED=0
  mkdir -p "$bin"
  number=${version#v}
  minor=${number#*.}
  set_version() { printf -- '-X k8s.io/%s/version.%s=%s ' "$@"; }
  flags="-s -w $(set_version component-base gitVersion "$version")$(set_version component-base gitMajor "${number%%.*}")$(
    set_version component-base gitMinor "${minor%%.*}")$(set_version client-go/pkg gitVersion "$version")"
  for program in $missing; do
    say "building $program $version (some minutes, once) ..."
    go build -buildvcs=false -trimpath -ldflags "$flags" -o "$bin/$program.new" "k8s.io/kubernetes/cmd/$program" >&2
    mv "$bin/$program.new" "$bin/$program"
  done
fi
echo "$bin"
