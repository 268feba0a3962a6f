#!/usr/bin/env bash
# Makes sure that there is a Helm of the version that the charts are tested with: builds it from the Go module proxy, once. Prints
# its path, and nothing else, to standard output.
set -euo pipefail
version=v4.3.1
bin=${XDG_CACHE_HOME:-$HOME/.cache}/chatgateway/helm/$version

say() { echo "helm: $1" >&2; }

if [ ! -x "$bin/helm" ]; then
  command -v go > /dev/null || { say "needs Go 1.26 or later to build Helm $version; see https://go.dev/dl"; exit 1; }
  say "building $version (some 3 minutes, once) ..."
  mkdir -p "$bin"
  # Not where it is looked for, so that a build that was broken off is none.
  CGO_ENABLED=0 GOBIN=$bin/new go install -trimpath -ldflags '-s -w' "helm.sh/helm/v4/cmd/helm@$version" >&2
  mv "$bin/new/helm" "$bin/helm"
  rmdir "$bin/new"
fi
echo "$bin/helm"
