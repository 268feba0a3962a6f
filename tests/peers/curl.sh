#!/usr/bin/env bash
# curl: turns as JSON and as events, resuming, polling, errors.
source "$(dirname "$0")/lib.sh"
need curl "apt-get install curl"
need python3 "install Python 3"
start_gateway 'upstreams: [{name: demo, type: Demo, demo: {tokenDelay: 5ms}}]'
base=http://$http

# ask STATUS ARGUMENTS...: the body is in $body; the status must be as given
ask() {
  local expected=$1 status
  shift
  status=$(curl -sS --max-time 30 -D "$work/headers.txt" -o "$work/body.txt" -w '%{http_code}' "$@")
  body=$(<"$work/body.txt")
  [ "$status" = "$expected" ] || fail "status $status, not $expected: $body"
}
post() {
  local status=$1 path=$2 data=$3
  shift 3
  ask "$status" -H 'content-type: application/json' -d "$data" "$@" "$base$path"
}
# is EXPRESSION: a Python expression over the JSON body b
is() { python3 -c 'import json,sys; b=json.loads(sys.argv[2]); sys.exit(not eval(sys.argv[1]))' "$1" "$body" || fail "not $1: $body"; }
header() { grep -qi "^$1" "$work/headers.txt" || { cat "$work/headers.txt" >&2; fail "no header $1"; }; }
# events FILTER: the ids (or types) of the events in the body
ids() { sed -n 's/^id: //p' <<<"$body"; }
types() { sed -n 's/^event: //p' <<<"$body" | uniq | tr '\n' ' '; }

post 200 /v1/sessions/c1/turns '{"turn": "turn-1", "seq": 1, "text": "hello from curl"}'
is 'b["text"].startswith("You said: hello from curl") and b["finish_reason"] == "stop" and b["seq"] == 1 and not b["duplicate"]'
first=$body
post 200 /v1/sessions/c1/turns '{"turn": "turn-1", "seq": 1, "text": "hello from curl"}'
is 'b["duplicate"]'
say "a turn is answered as JSON, a repeat the same"
position=$(python3 -c 'import json,sys; print(json.loads(sys.argv[1])["position"])' "$first")

post 200 /v1/sessions/c1/turns '{"turn": "turn-2", "text": "as events"}' -N -H 'accept: text/event-stream'
header 'content-type: text/event-stream'
[ "$(types)" = "accepted turn delta done " ] || fail "events: $(types)"
second=$(ids | tail -n +2)

# The whole log by events, from after the first turn: exactly the second one. The stream stays open: it is cut off.
curl -sS -N --max-time 2 -H "last-event-id: $position" "$base/v1/sessions/c1/events" >"$work/body.txt" || true
body=$(<"$work/body.txt")
grep -q '^retry: [0-9]' <<<"$body" || fail "no retry: $body"
[ "$(ids | tail -n +2)" = "$second" ] || fail "events after $position: $(ids); of the second turn: $second"
middle=$(sed -n 3p <<<"$second")
curl -sS -N --max-time 2 -H "last-event-id: $middle" "$base/v1/sessions/c1/events" >"$work/body.txt" || true
body=$(<"$work/body.txt")
[ "$(ids | tail -n +2)" = "$(tail -n +4 <<<"$second")" ] || fail "events after $middle: $(ids); of the second turn: $second"
say "events resume after Last-Event-ID, nothing missing or doubled"

ask 200 "$base/v1/sessions/c1/events?after=$position&wait=10s"
is 'b["events"][0]["type"] == "turn" and b["events"][-1]["type"] == "done" and b["events"][-1]["id"] == b["position"]'
last=$(python3 -c 'import json,sys; print(json.loads(sys.argv[1])["position"])' "$body")
ask 200 "$base/v1/sessions/c1/events?after=$last&wait=200ms"
is "b == {'events': [], 'position': '$last'}"
# A poll that waits is woken by a turn from elsewhere.
curl -sS --max-time 30 "$base/v1/sessions/c1/events?after=$last&wait=25s" >"$work/poll.txt" &
poll=$!
post 200 /v1/sessions/c1/turns '{"turn": "turn-3", "text": "wake up"}'
wait "$poll"
body=$(<"$work/poll.txt")
is 'b["events"][0]["type"] == "turn" and b["events"][0]["text"] == "wake up"'
ask 200 "$base/v1/sessions/c1"
is '[t["turn"] for t in b["turns"]] == ["turn-1", "turn-2", "turn-3"] and b["turns"][0]["state"] == "done"'
say "long polls and the snapshot agree"

post 200 /chat.Stream/chat '{"dialogId": "d1", "seq": 1, "text": "hi"}'
is 'b["dialogId"] == "d1" and b["seq"] == 1 and b["text"].startswith("You said: hi") and b["turnId"]'
again=$body
post 200 /chat.Stream/chat '{"dialogId": "d1", "seq": 1, "text": "hi"}'
[ "$body" = "$again" ] || fail "a repeated call has another answer: $body"

# problem CODE: the body says it, as application/problem+json
problem() {
  header 'content-type: application/problem+json'
  is "b['code'] == '$1' and b['status'] >= 400 and b['detail'] and b['title']"
}
post 409 /chat.Stream/chat '{"dialogId": "d1", "seq": 5, "text": "hi"}'
problem seq_gap
is 'b["expected"] == 2'
post 409 /v1/sessions/c1/turns '{"turn": "turn-1", "text": "other words"}'
problem turn_conflict
post 400 /v1/sessions/c1/turns '{"turn": '
problem invalid_request
ask 415 -d 'turn=1' "$base/v1/sessions/c1/turns"
problem invalid_request
ask 404 "$base/v1/sessions/nobody"
problem not_found
ask 410 -H 'last-event-id: 7-7' "$base/v1/sessions/c1/events"
problem not_resumable
ask 400 -H 'last-event-id: x' "$base/v1/sessions/c1/events"
problem invalid_request
ask 405 -X PUT "$base/v1/sessions/c1"
header 'allow: '
ask 204 -X DELETE "$base/v1/sessions/c1"
ask 404 "$base/v1/sessions/c1"
say "errors say what was wrong"

ask 200 --http2-prior-knowledge "$base/v1/models"
is 'b["object"] == "list" and b["data"]'
ask 200 "http://$admin/livez"
ask 200 "http://$admin/readyz"
ask 200 "$base/"
header 'content-type: text/html'
say "HTTP/2, the page and the admin port answer"
