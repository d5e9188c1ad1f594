#!/usr/bin/env python3
"""clang-tidy (.clang-tidy) over every source file of ours: tests/tidy.py [PART_OF_A_PATH...].

Several files are read as one unit (preset tidy, a CMake unity build), since most of the time goes into headers. A unit whose
text, headers and flags are unchanged since it was clean is not checked again (build/tidy/clean). Of the CUDA backend it reads the host
code, where the toolkit's headers are."""
import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "tidy"
CLEAN = BUILD / "clean"


def sources(unit):
    """The project's own files that a unit compiles."""
    if "/Unity/" not in unit:
        return [unit]
    return re.findall(r'#include "([^"]+)"', pathlib.Path(unit).read_text())


def is_ours(path):
    return path.startswith(str(ROOT)) and not path.startswith(str(BUILD))


def headers_digest():
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "*.h", "*.proto", ".clang-tidy"], cwd=ROOT,
                           capture_output=True, text=True, check=True).stdout.split()
    digest = hashlib.sha256()
    for name in sorted(names):
        if (ROOT / name).exists():
            digest.update(name.encode() + b"\0" + (ROOT / name).read_bytes())
    return digest


def check(unit, command, headers):
    """None when clean, else what clang-tidy said."""
    digest = headers.copy()
    digest.update(command.encode() + pathlib.Path(__file__).read_bytes())
    for path in sources(unit):
        digest.update(pathlib.Path(path).read_bytes())
    mark = CLEAN / digest.hexdigest()
    if mark.exists():
        return None
    # The analyser takes most of its time in GoogleTest's macros, to find nothing; ASan and UBSan run every test.
    test = unit.endswith("_test.cc")
    extra = ["--checks=-clang-analyzer-*"] if test else []
    run = subprocess.run(["clang-tidy", "-p", str(BUILD), "--quiet", *extra, unit], cwd=ROOT, capture_output=True, text=True)
    if run.returncode == 0:
        mark.touch()
        return None
    return run.stdout + run.stderr


def main():
    subprocess.run(["cmake", "--preset", "tidy"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", "--preset", "tidy"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    CLEAN.mkdir(exist_ok=True)
    with open(BUILD / "compile_commands.json") as file:
        commands = {entry["file"]: entry["command"] for entry in json.load(file)}
    units = {}
    for unit, command in commands.items():
        ours = [path for path in sources(unit) if is_ours(path)]
        if ours and (len(sys.argv) < 2 or any(part in path for part in sys.argv[1:] for path in ours)):
            units[unit] = command
    headers = headers_digest()
    files = sum(len([path for path in sources(unit) if is_ours(path)]) for unit in units)
    # The largest first, so that no long one is left for the end.
    order = sorted(units, key=lambda unit: -sum(os.path.getsize(path) for path in sources(unit)))
    bad = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for said in pool.map(lambda unit: check(unit, units[unit], headers), order):
            if said is not None:
                bad += 1
                print(said, flush=True)
    if not files:
        sys.exit("tidy.py: no such file")
    print(f"[figure] clang-tidy: {files} files in {len(units)} units, {bad} of them not clean")
    sys.exit(1 if bad else 0)


main()
