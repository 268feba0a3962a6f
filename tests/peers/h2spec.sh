#!/usr/bin/env bash
# h2spec on both ports: HTTP/2 with prior knowledge on the HTTP port, and the gRPC port.
source "$(dirname "$0")/lib.sh"
go_tool h2spec github.com/summerwind/h2spec/cmd/h2spec v2.2.1+incompatible
start_gateway

# check WHAT ADDRESS PATH
check() {
  local report=$work/$1.txt
  say "running the cases on the $1 port ..."
  timeout 240 "$tool" -h "${2%:*}" -p "${2##*:}" -P "$3" -o 5 >"$report" 2>&1 || true
  tail -n 1 "$report" | sed "s/^/$peer: $1: /"
  if ! grep -qE '^[0-9]+ tests, [1-9][0-9]* passed, [0-9]+ skipped, 0 failed$' "$report"; then
    sed -n '/^Failures:/,$p' "$report" >&2
    fail "cases failed on the $1 port"
  fi
}

check http "$http" /v1/models
check grpc "$grpc" /chat.v1.ChatService/GetSession
