#!/usr/bin/env bash
# Plain WebSocket clients: Python's websockets and Node's ws, in plain text and in the JSON protocol.
source "$(dirname "$0")/lib.sh"
python_with websockets==17.4
node_with ws@8.23.0
start_gateway 'upstreams: [{name: demo, type: Demo, demo: {tokenDelay: 2ms}}]'
timeout 60 "$python" "$here/ws_plain.py" "ws://$http/ws" || fail "websockets (Python) failed"
cp "$here/ws_plain.mjs" "$node_directory/"
timeout 60 node "$node_directory/ws_plain.mjs" "ws://$http/ws" || fail "ws (Node) failed"
