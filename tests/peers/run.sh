#!/usr/bin/env bash
# Tests with clients that nobody here wrote, against the real programs: run.sh [NAME...]
#   CHATGATEWAY_CACHE  where the clients are installed, and found again (default: .cache in the repository)
#   BIN_DIR            where the programs are (default: target/debug, built first)
set -euo pipefail
cd "$(dirname "$0")/../.."

all=(curl ws-plain openai-python openai-node grpcurl h2spec autobahn)
names=("$@")
[ ${#names[@]} -gt 0 ] || names=("${all[@]}")

export CHATGATEWAY_CACHE=${CHATGATEWAY_CACHE:-$PWD/.cache}
mkdir -p "$CHATGATEWAY_CACHE/peers"
if [ -z "${BIN_DIR:-}" ]; then
  echo "peers: building the programs ..."
  cargo build --quiet --workspace --bins
  BIN_DIR=$PWD/target/debug
fi
export BIN_DIR

passed=0 failed=0
for name in "${names[@]}"; do
  script=tests/peers/$name.sh
  if [ ! -f "$script" ]; then
    echo "$name: no such peer; there are: ${all[*]}" >&2
    failed=$((failed + 1))
    continue
  fi
  started=$SECONDS
  if bash "$script"; then
    echo "$name: passed ($((SECONDS - started)) s)"
    passed=$((passed + 1))
  else
    echo "$name: FAILED ($((SECONDS - started)) s)"
    failed=$((failed + 1))
  fi
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
