#!/usr/bin/env python3
"""Draws held-out agent tasks: generate.py --seed S --count N writes one JSON object a line, {"id", "family", "setup", "turns", "check"}."""
import argparse
import json
import os
import random
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import families  # noqa: E402


def tasks(seed, count):
    r = random.Random(f"held-out {seed}")
    functions, weights = zip(*families.FAMILIES)
    out = []
    for i in range(count):
        f = r.choices(functions, weights)[0]
        out.append({"id": i, "family": f.__name__, **f(r)})
    return out


def main():
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("--seed", type=int, default=1)
    a.add_argument("--count", type=int, default=200)
    a = a.parse_args()
    for t in tasks(a.seed, a.count):
        print(json.dumps(t, ensure_ascii=False))


if __name__ == "__main__":
    main()
