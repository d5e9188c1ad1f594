#!/usr/bin/env python3
"""Runs tasks (generate.py's lines) through a running agentd and counts what came out right: answers and files, not phrasing.

score.py --socket S --tasks FILE [--bin build/bin] [--jobs N] [--wrong FILE]: the exit code is 0 if at least 95% are right."""
import argparse
import collections
import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import check  # noqa: E402

BAR = 0.95
TURN_PATIENCE_S = 300


def run_turn(command, arguments, text):
    """One turn: the events of `agentctl run --json`. The text goes through standard input, so its length does not matter."""
    done = subprocess.run([*command, "run", "--json", *arguments, "-"], input=text.encode(), capture_output=True, timeout=TURN_PATIENCE_S)
    events = [json.loads(line) for line in done.stdout.decode(errors="replace").splitlines()]
    if not events or events[-1].get("type") != "turn_finished":
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr.decode(errors='replace')[-500:]}")
    return events


def read_in(root):
    def read(path):
        try:
            return (root / path).read_text()
        except OSError:
            return None
    return read


def run_task(command, task):
    """-> (what is wrong, the last answer)"""
    with tempfile.TemporaryDirectory(prefix="agentd-task.") as folder:
        for path, content in task["setup"].items():
            file = pathlib.Path(folder) / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        arguments, session, answer = ["--workspace", folder], None, ""
        try:
            for turn in task["turns"]:
                events = run_turn(command, arguments, turn)
                session = session or next(e for e in events if e["type"] == "session")
                arguments = ["--session", session["id"]]
                answer = events[-1].get("answer", "")
        except (RuntimeError, subprocess.TimeoutExpired) as e:
            return [str(e)], answer
    wrong = check.faults(task["check"], answer, read_in(pathlib.Path(session["workspace"])))
    subprocess.run([*command, "delete", session["id"]], capture_output=True)
    return wrong, answer


def main():
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("--socket", required=True)
    a.add_argument("--tasks", required=True)
    a.add_argument("--bin", default="build/bin")
    a.add_argument("--jobs", type=int, default=4, help="tasks at a time")
    a.add_argument("--wrong", help="file for what went wrong, one JSON object a line")
    a = a.parse_args()
    with open(a.tasks, encoding="utf-8") as f:
        tasks = [json.loads(line) for line in f]
    command = [os.path.join(a.bin, "agentctl"), "--socket", a.socket]
    right, total, lines, start = collections.Counter(), collections.Counter(), [], time.time()
    with concurrent.futures.ThreadPoolExecutor(a.jobs) as pool:
        for task, (wrong, answer) in zip(tasks, pool.map(lambda t: run_task(command, t), tasks)):
            total[task["family"]] += 1
            right[task["family"]] += not wrong
            if wrong:
                lines.append(json.dumps({"id": task["id"], "family": task["family"], "turns": [t[:300] for t in task["turns"]], "wrong": wrong, "answer": answer}, ensure_ascii=False))
                print(f"wrong: {task['family']} {task['id']}: {'; '.join(wrong)[:200]}", flush=True)
    if a.wrong:
        with open(a.wrong, "w", encoding="utf-8") as f:
            f.write("".join(line + "\n" for line in lines))
    for family in sorted(total):
        print(f"{family:20} {right[family]:4} of {total[family]}")
    good, count = sum(right.values()), sum(total.values())
    print(f"{good} of {count} tasks right ({time.time() - start:.0f} s)")
    return 0 if count and good >= BAR * count else 1


if __name__ == "__main__":
    sys.exit(main())
