#!/usr/bin/env bash
# images.sh [PROGRAM=NAME:TAG…]: makes images of the tests' own and gives them to the cluster: the model server, Redis of this
# machine, and programs with the libraries they need.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Each file of a program's, at its place: the program, and the libraries that are loaded with it.
libraries() { ldd "$1" 2> /dev/null | sed -n 's/.*[[:space:]]\(\/[^ ]*\) (0x.*/\1/p' | sed 's/.*/&=&/' || true; }

# NAME:TAG FILE=/PATH…
image() {
  local name=$1 files=("${@:2}") pair
  for pair in "${@:2}"; do mapfile -t -O "${#files[@]}" files < <(libraries "${pair%%=*}"); done
  "$here/../cluster/image.sh" "$name" "$work/image.tar" "${files[@]}"
  ${LOAD:-$here/../cluster/load.sh} "$work/image.tar"
}

"$here/../install-redis.sh"
image chatgateway-tests/redis:e2e "$(command -v redis-server)=/usr/bin/redis-server" "$(command -v redis-cli)=/usr/bin/redis-cli"
for pair in "$@"; do
  program=${pair%%=*}
  image "${pair#*=}" "$program=/${program##*/}"
done
