#!/usr/bin/env python3
"""Counts the scenarios of a conformance run that pass and says why others do not: conformance_summary.py REVISION LOG. Fails if one fails
without a known reason, or passes although there is one."""
import re
import sys

REASONS = {
    "auth/dpop": "DPoP, an extension: tokens here are Bearer tokens",
}


def reason(scenario):
    return next((why for name, why in REASONS.items() if scenario.startswith(name)), None)


def main():
    revision, log = sys.argv[1:]
    with open(log, encoding="utf-8") as file:
        summary = file.read().partition("=== SUITE SUMMARY ===")[2]
    results = re.findall(r"^([✓✗]) (\S+): \d+ passed, \d+ failed", summary, re.MULTILINE)
    passed = [name for mark, name in results if mark == "✓"]
    failed = [name for mark, name in results if mark == "✗"]
    wrong = not passed
    by_reason = {}
    for name in failed:
        why = reason(name)
        wrong = wrong or why is None
        by_reason.setdefault(why or "NOT KNOWN", []).append(name)
    for name in passed:
        if reason(name):
            print(f"{name} passes: take its reason out of conformance_summary.py")
            wrong = True
    print(f"{len(passed)} of {len(results)} conformance scenarios pass (revision {revision}): {', '.join(passed)}")
    for why, names in by_reason.items():
        print(f"  {len(names)} fail, {why}: {', '.join(names)}")
    return 1 if wrong else 0


sys.exit(main())
