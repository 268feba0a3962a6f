#!/usr/bin/env bash
# What the charts make of values is what the goldens have. UPDATE_GOLDENS=1 writes them: look at the difference.
. "$(dirname "$0")/lib.sh"

copy_charts "$work/charts"
render() {
  helm template chatgateway-operator "$work/charts/chatgateway-operator" --namespace chatgateway-system --kube-version 1.36.0 "$@"
}

for values in tests/charts/render/*.values.yaml; do
  golden=${values%.values.yaml}.golden.yaml
  # The definition is long and tested on its own.
  render --values "$values" > "$work/rendered" || fail "$values"
  awk '/^---$/ { held = $0; next }
       held { drop = /^# Source: .*\/chatgateways.yaml$/; if (!drop) print held; held = "" }
       !drop' "$work/rendered" > "$work/golden"
  if [ -n "${UPDATE_GOLDENS:-}" ]; then
    cp "$work/golden" "$golden"
  fi
  diff -u "$golden" "$work/golden" >&2 || fail "$values renders something else: make goldens, and look at the difference"
  for word in runAsNonRoot: readOnlyRootFilesystem: 'drop: \[ALL\]'; do
    grep -q "$word" "$work/golden" || fail "$values: no $word"
  done
  if grep -nE '(verbs|resources|apiGroups): .*\*' "$work/golden" >&2; then
    fail "$values: a right on everything"
  fi
done
