# What the peers' scripts share: installing a client once, starting the programs on free ports, saying what is wrong.
# shellcheck shell=bash
set -euo pipefail

peer=$(basename "$0" .sh)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${CHATGATEWAY_CACHE:?run tests/peers/run.sh}/peers
work=$(mktemp -d "${TMPDIR:-/tmp}/chatgateway-$peer.XXXXXX")
started_pids=()

# On failure the programs' logs are shown: they are gone afterwards.
leave() {
  local status=$? pid
  for pid in "${started_pids[@]}"; do
    kill "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  if [ "$status" -ne 0 ]; then
    for log in "$work"/*.log; do
      [ -s "$log" ] || continue
      echo "$peer: the last lines of $(basename "$log"):" >&2
      tail -n 40 "$log" >&2
    done
  fi
  rm -rf "$work"
}
trap leave EXIT

say() { echo "$peer: $*"; }

fail() {
  echo "$peer: $*" >&2
  exit 1
}

# need PROGRAM WHAT_TO_DO
need() { command -v "$1" >/dev/null || fail "needs $1: $2"; }

# once NAME COMMAND...: runs an installing command unless it succeeded before.
once() {
  local mark=$cache/$1.installed
  shift
  [ -e "$mark" ] && return
  say "installing (once, into $cache) ..."
  "$@" >"$work/install.log" 2>&1 || fail "could not install: $*"
  : >"$mark"
}

# The Go tool of that name and package at that version, built into the cache; its path is in $tool.
go_tool() {
  local name=$1 package=$2 version=$3 directory
  directory=$cache/go-$name-$version
  tool=$directory/$name
  [ -x "$tool" ] && return
  export PATH=$PATH:/usr/local/go/bin
  need go "install Go 1.24 or later"
  once "go-$name-$version" env GOBIN="$directory" go install "$package@$version"
}

# A Python 3 with these packages; its path is in $python.
python_with() {
  local name
  name=python-$(printf '%s-' "$@" | tr -c 'a-z0-9.\n-' -)
  python=$cache/$name/bin/python
  need python3 "install Python 3.9 or later with venv"
  # shellcheck disable=SC2016
  once "$name" bash -ec 'rm -rf "$0"; python3 -m venv "$0"; "$0/bin/pip" -q --disable-pip-version-check install "$@"' \
    "$cache/$name" "$@"
}

# Node packages; the directory to run scripts in is $node_directory.
node_with() {
  local name
  name=node-$(printf '%s-' "$@" | tr -c 'a-z0-9.\n-' -)
  node_directory=$cache/$name
  need node "install Node.js 20 or later"
  need npm "install npm"
  mkdir -p "$node_directory"
  once "$name" npm install --prefix "$node_directory" --no-audit --no-fund --no-package-lock "$@"
}

# wait_for FILE PATTERN PID WHAT: the first match of PATTERN in a log that PID writes; it is in $found.
wait_for() {
  local file=$1 pattern=$2 pid=$3 what=$4 deadline=$((SECONDS + 20))
  while ! found=$(grep -m1 -oE "$pattern" "$file" 2>/dev/null); do
    kill -0 "$pid" 2>/dev/null || fail "$what ended before it was ready"
    [ "$SECONDS" -lt "$deadline" ] || fail "$what was not ready in 20 s"
    sleep 0.02
  done
}

# start_gateway [CONFIG_LINES]: a data plane on free ports; they are in $http, $grpc and $admin (HOST:PORT).
start_gateway() {
  local file=$work/gateway-${#started_pids[@]} pid
  {
    echo 'listeners: {bind: 127.0.0.1, httpPort: 0, grpcPort: 0, adminPort: 0}'
    echo 'log: {format: json}'
    # Nobody is waited for when it is stopped.
    echo 'drain: {acceptFloor: 0s, reconnectSpread: 0s, timeout: 1s}'
    printf '%s\n' "$@"
  } >"$file.yaml"
  "$BIN_DIR/chatgateway-dataplane" run --config "$file.yaml" >"$file.log" 2>&1 &
  pid=$!
  started_pids+=("$pid")
  wait_for "$file.log" '"http":"[^"]*"' "$pid" 'the gateway'
  http=$(cut -d'"' -f4 <<<"$found")
  wait_for "$file.log" '"grpc":"[^"]*"' "$pid" 'the gateway'
  grpc=$(cut -d'"' -f4 <<<"$found")
  wait_for "$file.log" '"admin":"[^"]*"' "$pid" 'the gateway'
  admin=$(cut -d'"' -f4 <<<"$found")
}

# start_model_server [ARGUMENTS]: an OpenAI-compatible server on a free port; its base URL is in $model_server.
start_model_server() {
  local log=$work/model-sim-${#started_pids[@]}.log pid
  "$BIN_DIR/model-sim" --listen 127.0.0.1:0 "$@" >"$log" 2>&1 &
  pid=$!
  started_pids+=("$pid")
  wait_for "$log" 'http://[0-9.:]+' "$pid" 'the model server'
  model_server=$found
}

# The two gateways that chat clients are tried with: the built-in model, and a model server behind. Sets $demo and $behind.
start_both_gateways() {
  start_model_server --tokens 20 --tokens-per-second 200 --first-token-ms 20 --model sim-model --strict-models
  start_gateway 'upstreams: [{name: demo, type: Demo, demo: {tokenDelay: 5ms}}]'
  demo=$http
  start_gateway "upstreams: [{name: sim, type: OpenAI, openAI: {url: '$model_server/v1', model: sim-model}}]"
  behind=$http
}
