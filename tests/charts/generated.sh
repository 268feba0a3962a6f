#!/usr/bin/env bash
# What is made from other files is as it would be made now, and every version is that of the release.
. "$(dirname "$0")/lib.sh"

charts/generate.sh "$work"
for file in charts/chatgateway-crds/templates/chatgateways.yaml deploy/kustomize/{crds,operator}.yaml deploy/argocd/argocd-cm.yaml; do
  diff -u "$file" "$work/$file" >&2 || fail "$file is not what it would be now: run \`make charts\`"
done

version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
expect() {
  local found
  found=$(grep -cE "$2" "$1") || true
  [ "$found" = "$3" ] || fail "$1: $found lines match $2 for release $version, not $3"
}
for chart in chatgateway-crds chatgateway-operator; do
  expect "charts/$chart/Chart.yaml" "^(version|appVersion): $version\$" 2
done
expect charts/chatgateway-operator/Chart.yaml "^    version: $version\$" 1
expect charts/chatgateway-operator/Chart.lock "^  version: $version\$" 1
