#!/usr/bin/env bash
# Makes sure that a node can run here: containerd, runc, the CNI plugins and what else comes from the system's packages.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

complete() {
  for program in containerd ctr runc etcd nft ip openssl socat gcc; do command -v "$program" > /dev/null || return 1; done
  [ -x /usr/lib/cni/ptp ] && [ -x /usr/lib/cni/host-local ] && [ -x /usr/lib/cni/loopback ]
}

packages="containerd runc containernetworking-plugins etcd-server nftables iproute2 openssl socat gcc libc6-dev"
if ! complete && [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
  say "installing $packages ..."
  (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages) > /dev/null || true
fi
complete || stop "needs these packages of Debian or Ubuntu, or the same of another system: apt-get install $packages"
