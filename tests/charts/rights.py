#!/usr/bin/env python3
"""rights.py AUDIT_LOG USER ROLE... — whether a user's rights are those it used: none that was refused, none that is left over."""

import json
import sys

# Rights whose use no audit log shows.
UNSEEN = {
    # Server-side apply of an object that is not there is checked against both, and logged as `patch`.
    "create": "goes with patch",
    # Checked by an admission plugin when an owner reference is set.
    "update chatgateway.dev chatgateways/finalizers": "guards owner references",
}


def used(log, user):
    """The rights that the user's requests were about, and those that were refused."""
    seen, refused = set(), set()
    with open(log, encoding="utf-8") as lines:
        for line in lines:
            event = json.loads(line)
            about = event.get("objectRef")
            if event["user"]["username"] != user or about is None:
                continue
            resource = about["resource"]
            if "subresource" in about:
                resource += "/" + about["subresource"]
            right = f"{event['verb']} {about.get('apiGroup', '')} {resource}"
            seen.add(right)
            if event["annotations"].get("authorization.k8s.io/decision") == "forbid":
                refused.add(right)
    return seen, refused


def granted(files):
    """The rights that the roles give."""
    rights = set()
    for file in files:
        with open(file, encoding="utf-8") as text:
            for rule in json.load(text)["rules"]:
                for group in rule["apiGroups"]:
                    for resource in rule["resources"]:
                        rights.update(f"{verb} {group} {resource}" for verb in rule["verbs"])
    return rights


def main():
    log, user, *roles = sys.argv[1:]
    seen, refused = used(log, user)
    rights = granted(roles)
    if not seen:
        sys.exit(f"rights: {log} has no request of {user}")
    over = {
        right
        for right in rights - seen
        if right not in UNSEEN
        and not (right.startswith("create ") and right.replace("create", "patch", 1) in seen)
    }
    for right in sorted(refused):
        print(f"rights: refused: {right}", file=sys.stderr)
    for right in sorted(over):
        print(f"rights: never used: {right}", file=sys.stderr)
    sys.exit(1 if refused or over else 0)


main()
