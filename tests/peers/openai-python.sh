#!/usr/bin/env bash
# OpenAI's Python SDK as it is, with the built-in model and with a model server behind.
source "$(dirname "$0")/lib.sh"
python_with openai==3.54.0
start_both_gateways
timeout 120 "$python" "$here/openai_sdk.py" "http://$demo/v1" || fail "failed with the built-in model"
timeout 120 "$python" "$here/openai_sdk.py" "http://$behind/v1" "$model_server" || fail "failed with a model server"
