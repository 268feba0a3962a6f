#!/usr/bin/env bash
# Helm finds nothing to say about the charts, and values that make no sense are refused with the words of their file's first line.
. "$(dirname "$0")/lib.sh"

copy_charts "$work/charts"
helm lint --strict --quiet "$work/charts/chatgateway-crds" >&2
for values in tests/charts/render/*.values.yaml; do
  helm lint --strict --quiet --values "$values" "$work/charts/chatgateway-operator" >&2 || fail "$values"
done

for values in tests/charts/refused/*.yaml; do
  words=$(head -1 "$values" | cut -c3-)
  if said=$(helm template a "$work/charts/chatgateway-operator" --values "$values" 2>&1); then
    fail "$values is taken"
  fi
  grep -qF -- "$words" <<< "$said" || fail "$values is refused, but not with \`$words\`: $said"
done
