#!/usr/bin/env python3
"""Where a step's time goes: runs `v4 bench` under ncu and prints the kernels of its last decode step and of its last prefill, longest
first. Every kernel runs alone, but with the caches as the one before left them: the sum is not the step's time.

kernel_times.py [--v4 build/bin/v4] [--libraries DIR] [--list] -- ARGUMENTS OF v4 bench      e.g. -- --shape flash --layers 6 --context 4096 --prefill 4096
--list prints every kernel of the two passes in order instead."""
import argparse
import collections
import csv
import os
import subprocess
import sys

BEGINS = "EmbedKernel"  # a pass's first kernel


def profile(options):
    """[(kernel, nanoseconds, grid)] of all launches but those that make weights."""
    command = ["ncu", "--clock-control", "none", "--cache-control", "none", "--graph-profiling", "node", "--csv", "--metrics",
               "gpu__time_duration.sum", "-k", "regex:^(?!RandomKernel)", options.v4, "bench", *options.arguments]
    environment = dict(os.environ, LD_LIBRARY_PATH=options.libraries) if options.libraries else None
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = [line for line in run.stdout.splitlines() if line.startswith('"')]
    if run.returncode != 0 or not lines:
        sys.exit(f"kernel_times.py: {' '.join(command)}: exit code {run.returncode}\n{run.stdout[-1000:]}{run.stderr[-1000:]}")
    kernels = []
    for row in csv.DictReader(lines):
        try:
            nanoseconds = float(row["Metric Value"].replace(",", ""))
        except ValueError:  # the row of units
            continue
        name = row["Kernel Name"].split("(")[0].replace("void ", "").replace("<unnamed>::", "")
        kernels.append((name, nanoseconds, row.get("Grid Size", "")))
    return kernels


def passes(kernels):
    """The kernels of every pass."""
    begins = [i for i, (name, _, _) in enumerate(kernels) if BEGINS in name]
    return [kernels[a:b] for a, b in zip(begins, begins[1:] + [len(kernels)])]


def show(title, kernels, as_list):
    total = sum(nanoseconds for _, nanoseconds, _ in kernels)
    print(f"[figure] {title}: {len(kernels)} kernels, {total / 1e3:.1f} us")
    if as_list:
        for name, nanoseconds, grid in kernels:
            print(f"{nanoseconds / 1e3:10.1f}  {name[:60]:60} {grid}")
        return
    by_name = collections.defaultdict(list)
    for name, nanoseconds, _ in kernels:
        by_name[name].append(nanoseconds)
    for name, times in sorted(by_name.items(), key=lambda item: -sum(item[1])):
        times.sort()
        print(f"{sum(times) / 1e3:10.1f} us {100 * sum(times) / total:5.1f}%  {len(times):4} x {times[len(times) // 2] / 1e3:8.1f}  {name[:70]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--v4", default="build/bin/v4")
    parser.add_argument("--libraries", help="where v4's shared libraries are")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("arguments", nargs="+")
    options = parser.parse_args()
    all_passes = passes(profile(options))
    if len(all_passes) < 3:
        sys.exit("kernel_times.py: too few passes were seen")
    # Two prefills follow the decode steps.
    show("decode step", all_passes[-3], options.list)
    show("prefill", all_passes[-1], options.list)


main()
