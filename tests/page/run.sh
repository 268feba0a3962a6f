#!/usr/bin/env bash
# Tests the chat page in a real headless Chromium. Usage: tests/page/run.sh [PROGRAM] [node --test options]
# PROGRAM, or $CHATGATEWAY_DATAPLANE, is the data plane to test; without one the debug build is used, and built if need be.
# $CHROMIUM names the browser, $SCREENSHOTS a folder for the pictures (default: a temporary one, told at the end).
set -euo pipefail
cd "$(dirname "$0")"
root=$(cd ../.. && pwd)

missing() { echo "tests/page: $1" >&2; exit 1; }

command -v node > /dev/null || missing "needs Node.js 20 or newer (Debian: apt-get install nodejs npm)"
[ "$(node -p 'Number(process.versions.node.split(".")[0]) >= 20')" = true ] || missing "needs Node.js 20 or newer, found $(node --version)"

if [ -n "${1:-}" ] && [ "${1#-}" = "$1" ]; then
  CHATGATEWAY_DATAPLANE=$1
  shift
fi
if [ -z "${CHATGATEWAY_DATAPLANE:-}" ]; then
  (cd "$root" && cargo build --quiet --workspace --bins)
  CHATGATEWAY_DATAPLANE=${CARGO_TARGET_DIR:-$root/target}/debug/chatgateway-dataplane
fi
export CHATGATEWAY_DATAPLANE

if [ -z "${CHROMIUM:-}" ]; then
  CHROMIUM=$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)
fi
if [ -z "$CHROMIUM" ] && [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
  echo "tests/page: installing chromium ..."
  (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium fonts-dejavu-core) > /dev/null || true
  CHROMIUM=$(command -v chromium || true)
fi
[ -n "$CHROMIUM" ] || missing "needs Chromium (Debian: apt-get install chromium), or its path in \$CHROMIUM"
export CHROMIUM

[ node_modules/.package-lock.json -nt package-lock.json ] || npm ci --no-audit --no-fund --loglevel=error
exec node --test --test-concurrency=1 --test-timeout=600000 "$@" *.test.js
