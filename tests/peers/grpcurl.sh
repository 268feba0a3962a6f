#!/usr/bin/env bash
# grpcurl, which knows nothing but what reflection tells it.
source "$(dirname "$0")/lib.sh"
go_tool grpcurl github.com/fullstorydev/grpcurl/cmd/grpcurl v1.9.4
start_gateway 'upstreams: [{name: demo, type: Demo, demo: {tokenDelay: 2ms}}]'

# call OUTPUT ARGUMENTS...
call() {
  local output=$work/$1.txt
  shift
  timeout 30 "$tool" -plaintext "$@" >"$output" 2>&1
}
# has OUTPUT PATTERN...: each pattern is in the output
has() {
  local output=$work/$1.txt pattern
  shift
  for pattern in "$@"; do
    grep -qE -- "$pattern" "$output" || { cat "$output" >&2; fail "no /$pattern/ in what $(basename "$output" .txt) said"; }
  done
}
# count OUTPUT PATTERN: how many lines match
count() { grep -cE -- "$2" "$work/$1.txt" || true; }

call list "$grpc" list
has list '^chat\.v1\.ChatService$' '^grpc\.health\.v1\.Health$'
call describe "$grpc" describe chat.v1.ChatService
has describe 'rpc Chat \( ?stream \.chat\.v1\.ClientMessage ?\) returns \( ?stream \.chat\.v1\.ServerMessage ?\)' \
  'rpc Send' 'rpc Read' 'rpc GetSession' 'rpc CancelTurn'
call health "$grpc" grpc.health.v1.Health/Check
has health '"status": "SERVING"'
call health-service -d '{"service": "chat.v1.ChatService"}' "$grpc" grpc.health.v1.Health/Check
has health-service '"status": "SERVING"'
say "reflection and health answer"

# A stream in both directions: two turns and a ping from standard input, then the half-close. The answers are finished.
timeout 30 "$tool" -plaintext -d @ "$grpc" chat.v1.ChatService/Chat >"$work/chat.txt" 2>&1 <<'MESSAGES'
{"send": {"session": "g1", "turn": "a-turn-of-g1", "text": "hello from grpcurl"}}
{"send": {"session": "g2", "turn": "a-turn-of-g2", "text": "and another session"}}
{"ping": {"t": "17"}}
MESSAGES
has chat '"hello": \{' '"accepted": \{' '"state": "running"' '"text": "hello from grpcurl"' '"pong": \{' '"t": "17"'
[ "$(count chat '"done": \{')" = 2 ] || { cat "$work/chat.txt" >&2; fail "not two turns done"; }
say "Chat answers two sessions in one stream"

call send -d '{"session": "g1", "turn": "second-turn", "seq": 2, "text": "more"}' "$grpc" chat.v1.ChatService/Send
has send '"seq": "2"' '"delta": \{' '"done": \{' '"finishReason": "stop"'
call again -d '{"session": "g1", "turn": "second-turn", "seq": 2, "text": "more"}' "$grpc" chat.v1.ChatService/Send
has again '"duplicate": true' '"done": \{'
ids() { grep -oE '"id": "[0-9]+-[0-9]+"' "$work/$1.txt"; }
[ "$(ids send)" = "$(ids again)" ] || fail "a repeated turn has other entries"

# Read goes on for ever: it is cut off after a while, and has told everything by then.
timeout 30 "$tool" -plaintext -max-time 2 -d '{"session": "g1", "after": "0"}' "$grpc" chat.v1.ChatService/Read \
  >"$work/read.txt" 2>&1 || true
has read '"turn": "a-turn-of-g1"' '"turn": "second-turn"'
[ "$(count read '"done": \{')" = 2 ] || { cat "$work/read.txt" >&2; fail "Read did not tell both turns"; }
call session -d '{"session": "g1"}' "$grpc" chat.v1.ChatService/GetSession
has session '"position": "[0-9]+-[0-9]+"' '"state": "done"' '"answer": "You said: more'
say "Send, Read and GetSession agree"

# refused OUTPUT STATUS REASON ARGUMENTS...: errors carry the code as the reason of an ErrorInfo
refused() {
  local output=$1 status=$2 reason=$3
  shift 3
  if call "$output" "$@"; then fail "$output was not refused"; fi
  has "$output" "Code: $status" "Message: .+" 'google.rpc.ErrorInfo' "\"reason\": ?\"$reason\""
}
refused no-session NotFound not_found -d '{"session": "nobody"}' "$grpc" chat.v1.ChatService/GetSession
refused no-turn NotFound not_found -d '{"session": "g1", "turn": "nothing"}' "$grpc" chat.v1.ChatService/CancelTurn
refused bad-id InvalidArgument invalid_request -d '{"session": "", "turn": "t", "text": "x"}' "$grpc" chat.v1.ChatService/Send
refused conflict AlreadyExists turn_conflict -d '{"session": "g1", "turn": "second-turn", "text": "other"}' "$grpc" chat.v1.ChatService/Send
refused gap FailedPrecondition seq_gap -d '{"session": "g1", "turn": "third-turn", "seq": 9, "text": "x"}' "$grpc" chat.v1.ChatService/Send
refused position OutOfRange not_resumable -d '{"session": "g1", "after": "7-7"}' "$grpc" chat.v1.ChatService/Read
say "errors carry their code"
