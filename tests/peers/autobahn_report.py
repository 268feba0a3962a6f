"""Reads Autobahn|Testsuite's report: fails if a case failed, or if fewer ran than the sections have."""

import collections
import json
import sys

GOOD = {"OK", "NON-STRICT", "INFORMATIONAL"}
# Cases of sections 1 to 7, 9 and 10: what did not run did not pass.
CASES = 301

with open(sys.argv[1], encoding="utf-8") as file:
    cases = json.load(file)["gateway"]
failed = [name for name, case in cases.items() if not {case["behavior"], case["behaviorClose"]} <= GOOD]
for name in failed:
    print(f"case {name}: {cases[name]['behavior']}, close {cases[name]['behaviorClose']}", file=sys.stderr)
counts = collections.Counter(case["behavior"] for case in cases.values())
print(f"autobahn: {len(cases)} cases: " + ", ".join(f"{n} {name}" for name, n in counts.most_common()))
if len(cases) != CASES:
    sys.exit(f"{len(cases)} cases ran, not {CASES}")
if failed:
    sys.exit(f"{len(failed)} cases failed")
