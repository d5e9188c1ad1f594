#!/usr/bin/env python3
"""Prints "PASSED FAILED SKIPPED" of a ctest JUnit report, and then its tests' [figure] lines.

A program that lists its own tests (GoogleTest, unittest) counts as those, any other as one."""
import re
import sys
import xml.etree.ElementTree as ElementTree

GOOGLETEST = {"passed": r"^\[       OK \]", "failed": r"^\[  FAILED  \] \S+ \(\d+ ms\)$", "skipped": r"^\[  SKIPPED \] \S+ \("}


def count(case, output):
    """(passed, failed, skipped) of one program."""
    if case.find("skipped") is not None or case.get("status") in ("notrun", "disabled"):
        return 0, 0, 1
    failed = case.find("failure") is not None or case.get("status") == "fail"
    counts = [len(re.findall(pattern, output, re.MULTILINE)) for pattern in GOOGLETEST.values()]
    if unittest := re.search(r"^Ran (\d+) tests? in", output, re.MULTILINE):
        skipped = sum(map(int, re.findall(r"skipped=(\d+)", output)))
        bad = sum(map(int, re.findall(r"(?:failures|errors)=(\d+)", output)))
        counts = [int(unittest.group(1)) - bad - skipped, bad, skipped]
    if not any(counts) and not failed and re.search(r"^\S+:\d+: Skipped$", output, re.MULTILINE):  # as a whole, before its first test
        return 0, 0, 1
    if failed and counts[1] == 0:  # a crash or a time-out: whatever was under way
        counts[1] = 1
    return tuple(counts) if any(counts) else (1, 0, 0)


totals, figures = [0, 0, 0], []
for case in ElementTree.parse(sys.argv[1]).getroot().iter("testcase"):
    element = case.find("system-out")
    output = (element.text if element is not None else None) or ""
    totals = [total + part for total, part in zip(totals, count(case, output))]
    figures += re.findall(r"^\[figure\].*$", output, re.MULTILINE)
print(*totals)
print(*figures, sep="\n")
