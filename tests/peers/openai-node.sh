#!/usr/bin/env bash
# OpenAI's Node SDK as it is, with the built-in model and with a model server behind.
source "$(dirname "$0")/lib.sh"
node_with openai@6.49.0
start_both_gateways
cp "$here/openai_sdk.mjs" "$node_directory/"
timeout 120 node "$node_directory/openai_sdk.mjs" "http://$demo/v1" || fail "failed with the built-in model"
timeout 120 node "$node_directory/openai_sdk.mjs" "http://$behind/v1" "$model_server" || fail "failed with a model server"
