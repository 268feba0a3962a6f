#!/usr/bin/env bash
# Autobahn|Testsuite's fuzzing client, sections 1 to 7, 9 and 10, against an echo server on the gateway's handshake and codec.
source "$(dirname "$0")/lib.sh"
version=25.10.1

find_python2() {
  local candidate
  for candidate in python2.7 python2 "$(pyenv root 2>/dev/null || echo "$HOME/.pyenv")"/versions/2.7.*/bin/python2.7; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (2, 7))' >/dev/null 2>&1; then
      python2=$candidate
      return
    fi
  done
  fail "needs Python 2.7, the only one that autobahntestsuite runs on: pyenv install 2.7.18"
}

find_python2
export PYTHONUSERBASE=$cache/autobahntestsuite-$version
once "autobahntestsuite-$version" "$python2" -m pip install --disable-pip-version-check --no-warn-script-location \
  --user "autobahntestsuite==$version"

"$BIN_DIR/ws-echo" >"$work/ws-echo.log" 2>&1 &
started_pids+=($!)
wait_for "$work/ws-echo.log" '127.0.0.1:[0-9]+' $! 'the echo server'

cat >"$work/spec.json" <<SPEC
{"outdir": "$work/report", "servers": [{"agent": "gateway", "url": "ws://$found"}],
 "cases": ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*"],
 "exclude-cases": [], "exclude-agent-cases": {}}
SPEC
say "running the cases ..."
(cd "$work" && timeout 300 "$python2" -u "$PYTHONUSERBASE/bin/wstest" -m fuzzingclient -s spec.json >wstest.log 2>&1) ||
  fail "wstest failed or took more than 300 s"
need python3 "install Python 3"
python3 "$here/autobahn_report.py" "$work/report/index.json"
