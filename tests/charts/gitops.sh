#!/usr/bin/env bash
# Argo CD and Flux understand our files and a gateway's status: judged by their own code, over statuses that the operator writes.
. "$(dirname "$0")/lib.sh"

command -v go > /dev/null || fail 'needs Go 1.26 or later; see https://go.dev/dl'
(cd tests/charts/gitops && go vet ./... && go test -count=1 ./...) >&2
