#!/usr/bin/env bash
# Ends the cluster that up.sh started, and removes all of it but the programs and images that the next one takes.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

if has_kind && command -v kind > /dev/null; then kind delete cluster --name $name --kubeconfig "$kubeconfig"; fi

if pid=$(holder); then
  # The first process of the namespaces goes with its parent, and everything in them with it.
  kill -KILL "$pid"
  for _ in $(seq 100); do holder > /dev/null || break; sleep 0.1; done
fi

# Control groups are removed from the leaves up. A process that just ended may hold one for a moment.
groups() { find /sys/fs/cgroup/$name /sys/fs/cgroup/*/$name -depth -type d 2> /dev/null || true; }
if [ "$(id -u)" = 0 ]; then
  for _ in $(seq 50); do
    [ -n "$(groups)" ] || break
    groups | xargs -r rmdir 2> /dev/null || sleep 0.1
  done
  [ -z "$(groups)" ] || stop "control groups are left, with processes: $(groups | head -n 3)"
fi
rm -rf "$state"
