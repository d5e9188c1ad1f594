#!/usr/bin/env python3
"""Prints "PASSED FAILED SKIPPED" of a ctest JUnit report, then its tests' [figure] lines, then how each failed program ended.

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


def how_it_failed(name, output):
    """What a program said first that went wrong, with its seed, and its last lines."""
    lines = output.splitlines()
    wrong = [at for at, line in enumerate(lines) if re.search(r": Failure$|^(FAIL|ERROR):|ERROR: \w+Sanitizer|runtime error:", line)]
    shown = lines[:12] if not wrong else lines[max(0, wrong[0] - 4) : wrong[0] + 24]
    seeds = [line for line in lines if "AGENTD_TEST_SEED=" in line and line not in shown]
    return [f"-- {name} failed:", *seeds[:4], *shown, "-- and ended:", *lines[-8:]]


totals, figures, failures = [0, 0, 0], [], []
for case in ElementTree.parse(sys.argv[1]).getroot().iter("testcase"):
    element = case.find("system-out")
    output = (element.text if element is not None else None) or ""
    counts = count(case, output)
    totals = [total + part for total, part in zip(totals, counts)]
    if counts[1] > 0:
        failures += how_it_failed(case.get("name"), output)
    figures += re.findall(r"^\[figure\].*$", output, re.MULTILINE)
print(*totals)
print(*figures, *failures, sep="\n")
