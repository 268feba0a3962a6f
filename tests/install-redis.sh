#!/usr/bin/env bash
# Makes sure that the tests find redis-server, redis-sentinel and redis-cli, version 7.0 or later: installs what is missing
# where it can, else says what to install. The tests start servers of their own, on free ports.
set -euo pipefail

missing() {
  echo "tests: $1" >&2
  echo "tests: Debian, Ubuntu: apt-get install redis-server redis-sentinel redis-tools; Fedora: dnf install redis; Homebrew: brew install redis" >&2
  exit 1
}

complete() { command -v redis-server && command -v redis-sentinel && command -v redis-cli; } > /dev/null

if ! complete && [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
  echo "tests: installing redis-server, redis-sentinel and redis-tools ..."
  (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq redis-server redis-sentinel redis-tools) > /dev/null || true
fi
complete || missing "need redis-server, redis-sentinel and redis-cli 7.0 or later"

version=$(redis-server --version | sed -n 's/.* v=\([0-9]*\)\..*/\1/p')
[ "${version:-0}" -ge 7 ] || missing "need redis-server 7.0 or later, found $(redis-server --version); packages.redis.io has newer ones"
