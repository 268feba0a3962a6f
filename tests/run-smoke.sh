#!/usr/bin/env bash
# `make run` as its user has it: the page, a chat over SSE, WebSocket and the OpenAI API, an edit that is reloaded, Ctrl-C.
# Then the same with examples/openai.yaml and examples/batching.yaml in front of an OpenAI-compatible server process, with
# examples/fallback.yaml, whose first server is dead and comes back, and with examples/redis.yaml, where the process that writes an answer is killed.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
pids=()
cleanup() {
    for pid in "${pids[@]}"; do kill -KILL -- "-$pid" 2>/dev/null || true; done
    rm -rf "$work"
}
trap cleanup EXIT

fail() {
    echo "run-smoke: $1" >&2
    tail -n 40 "$work"/*.log >&2
    exit 1
}

# eventually SECONDS WHAT COMMAND...: tries the command until it succeeds.
eventually() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || fail "$what did not come to pass"
        sleep 0.1
    done
}

# start NAME MANIFEST: `make run` in a process group of its own, on free ports; sets pid, http and admin.
start() {
    setsid make run MANIFEST="$2" ARGS="--http-port 0 --grpc-port 0 --admin-port 0" >"$work/$1.log" 2>&1 &
    pid=$!
    pids+=("$pid")
    eventually 1800 "the gateway of $1" grep -q 'Ctrl-C drains' "$work/$1.log"
    http=$(sed -n 's/^ *page *\(http:.*\)\/$/\1/p' "$work/$1.log")
    admin=$(sed -n 's/^ *admin *\(http:[^ ]*\)\/status.*/\1/p' "$work/$1.log" | head -n 1)
}

stop() {
    kill -INT -- "-$pid"
    wait "$pid" || fail "make run answered Ctrl-C with exit code $?"
}

expect() {
    grep -q -- "$2" <<<"$1" || fail "no \"$2\" in: $1"
}

# talk WHAT: the page, a turn over SSE, one from the terminal with WHAT in its answer, and the session afterwards.
talk() {
    expect "$(curl -fsS "$http/")" '<title>'
    local sse
    sse=$(curl -fsSN "$http/v1/sessions/smoke/turns" -H 'content-type: application/json' \
        -H 'accept: text/event-stream' -d '{"turn": "1", "text": "Hi there"}')
    for event in turn delta 'done'; do expect "$sse" "event: $event"; done
    expect "$(echo 'Hi again' | target/release/chatgateway-dataplane chat "$http")" "$1"
    expect "$(curl -fsS "$http/v1/sessions/smoke")" '"state":"done"'
}

# chat WHAT: the same, and the OpenAI API.
chat() {
    talk "$1"
    expect "$(curl -fsS "$http/v1/chat/completions" -H 'content-type: application/json' \
        -d '{"messages": [{"role": "user", "content": "Hi"}]}')" '"chat.completion"'
}

echo "make run with the quickstart (builds first; some minutes when nothing is built)"
cp examples/quickstart.yaml "$work/quickstart.yaml"
start quickstart "$work/quickstart.yaml"
chat 'Hi again'
sed -i 's/ttl: .*/ttl: 20m/' "$work/quickstart.yaml"
eventually 20 "the edit" grep -q '^reloaded' "$work/quickstart.log"
curl -fsS "$admin/status" >/dev/null
stop

echo "examples/openai.yaml in front of an OpenAI-compatible server"
cargo build --quiet --workspace --bins
setsid target/debug/model-sim --listen 127.0.0.1:0 >"$work/model-sim.log" 2>&1 &
model_sim=$!
pids+=("$model_sim")
eventually 20 "the model server" grep -qE '[0-9.]+:[0-9]+' "$work/model-sim.log"
server=$(grep -oE '127\.0\.0\.1:[0-9]+' "$work/model-sim.log" | head -n 1)
model=$(curl -fsS "http://$server/v1/models" | sed 's/.*"id": *"\([^"]*\)".*/\1/')
# at_server NAME: the example, with the address and the model of this server.
at_server() {
    sed "s|http://127.0.0.1:8000/v1|http://$server/v1|; s|model: qwen3-8b|model: $model|" "examples/$1.yaml" >"$work/$1.yaml"
}
at_server openai
start openai "$work/openai.yaml"
chat .
stop

echo "examples/batching.yaml in front of the same server"
at_server batching
start batching "$work/batching.yaml"
chat .
expect "$(curl -fsS "http://$server/sim/calls")" '"path":"/v1/completions"'
stop

echo "examples/fallback.yaml: the first server is dead, the next upstream answers; then it is back"
kill -KILL -- "-$model_sim"
eventually 20 "the server's end" bash -c "! curl -s http://$server/v1/models"
at_server fallback
start fallback "$work/fallback.yaml"
talk 'Hi again'
setsid target/debug/model-sim --listen "$server" >"$work/model-sim.log" 2>&1 &
pids+=("$!")
# is_back: whether the server is asked for answers.
is_back() {
    curl -fsS "$http/v1/sessions/back-$RANDOM/turns" -H 'content-type: application/json' -d '{"turn": "1", "text": "Hi"}' &&
        ! curl -fsS "http://$server/sim/calls" | grep -q '"count":0[,}]'
}
eventually 20 "a call of the server that is back" is_back
stop

# ask: one turn, repeated under its id until its answer is there.
ask() {
    until curl -fsS "$http/v1/sessions/takeover/turns" -H 'content-type: application/json' -d '{"turn": "1", "text": "Hi"}' \
        >"$work/answer.json" 2>/dev/null; do sleep 0.1; done
}

# find_writer: sets writer to the process that writes an answer.
find_writer() {
    local url process
    while read -r url process; do
        if curl -fsS "$url" | grep -q '"leases":[1-9]'; then writer=$process && return; fi
    done < <(sed -n 's/^ *admin *\(http:[^ ]*\) .*process \([0-9]*\))$/\1 \2/p' "$work/redis.log")
    return 1
}

echo "examples/redis.yaml: the process that writes an answer is killed, and the answer goes on"
tests/install-redis.sh
sed 's/tokenDelay: 30ms/tokenDelay: 5ms/' examples/redis.yaml >"$work/redis.yaml"
start redis "$work/redis.yaml"
chat .
ask &
asking=$!
eventually 20 "a process that writes the answer" find_writer
kill -KILL "$writer"
eventually 60 "the answer" test -s "$work/answer.json"
wait "$asking"
bytes=$(sed 's/.*"text":"\([^"]*\)".*/\1/; s/\\n/ /g' "$work/answer.json" | tr -d '\n' | wc -c)
[ "$bytes" = 4000 ] || fail "an answer of $bytes bytes, not of 4000: $(cat "$work/answer.json")"
eventually 20 "another process" grep -q 'team-4 takes clients' "$work/redis.log"
stop
! kill -0 "$(sed -n 's/.*redis | \([0-9]*\):.*/\1/p' "$work/redis.log" | head -n 1)" 2>/dev/null || fail "redis-server is left"

echo "run-smoke: passed"
