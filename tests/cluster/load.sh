#!/usr/bin/env bash
# load.sh ARCHIVE…: gives images to the cluster that up.sh started.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

for archive in "$@"; do
  if holder > /dev/null; then
    ctr -a "$state/containerd.sock" -n k8s.io images import --digests=false "$archive" > /dev/null
  elif has_kind; then
    kind load image-archive --name $name "$archive"
  else
    stop "no cluster is up; start one with make cluster"
  fi
done
