#!/usr/bin/env python3
"""Prints "PASSED FAILED SKIPPED" of a ctest JUnit report."""
import sys
import xml.etree.ElementTree as ElementTree

root = ElementTree.parse(sys.argv[1]).getroot()
cases = list(root.iter("testcase"))
failed = sum(1 for case in cases if case.find("failure") is not None or case.get("status") == "fail")
skipped = sum(1 for case in cases if case.find("skipped") is not None or case.get("status") in ("notrun", "disabled"))
print(len(cases) - failed - skipped, failed, skipped)
