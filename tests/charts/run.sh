#!/usr/bin/env bash
# Tests of the charts and of the files in deploy: run.sh [NAME...]
set -euo pipefail
cd "$(dirname "$0")/../.."

all=(generated lint render gitops cluster)
names=("$@")
[ ${#names[@]} -gt 0 ] || names=("${all[@]}")
tests/charts/build.sh > /dev/null

failed=0
for name in "${names[@]}"; do
  script=tests/charts/$name.sh
  if [[ " ${all[*]} " != *" $name "* ]]; then
    echo "charts $name: no such test; there are: ${all[*]}" >&2
    failed=$((failed + 1))
    continue
  fi
  started=$SECONDS
  if bash "$script"; then
    echo "charts $name: passed ($((SECONDS - started)) s)"
  else
    echo "charts $name: FAILED" >&2
    failed=$((failed + 1))
  fi
done
[ "$failed" = 0 ]
