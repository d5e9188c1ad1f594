#!/usr/bin/env python3
"""Checks that includes follow the layers' arrows (README.md, "Layers"): who may include whom, and which library stays in which layer."""
import re
import subprocess
import sys

MAY_USE = {
    "base": set(),
    "model": {"base"},
    "sessions": {"base"},
    "sandbox": {"base"},
    "tools": {"base", "sandbox"},
    "proto": set(),
    "agentd": {"base", "model", "sessions", "sandbox", "tools", "proto"},
    "tests": {"base", "model", "sessions", "sandbox", "tools", "proto", "agentd"},
    "examples": set(),
}
# Headers of a library -> the layers that may see it.
LIBRARIES = {
    r"rocksdb/": {"sessions"},
    r"(grpc|grpcpp)/": {"agentd", "tests"},
    r"boost/": {"agentd", "sandbox"},
    r"(hwy/|cuda|nccl)": {"model"},
    r"seccomp\.h": {"sandbox", "tests"},
    r"valijson/": {"tools"},
    r"curl/": {"tools"},
}
INCLUDE = re.compile(r'^\s*#\s*include\s+["<]([^">]+)[">]')


def main() -> int:
    files = subprocess.run(["git", "ls-files", "--", "*.cc", "*.h", "*.cu", "*.cuh"], capture_output=True, text=True, check=True)
    wrong = []
    for path in files.stdout.split():
        layer = path.split("/")[0]
        with open(path, encoding="utf-8") as source:
            for number, line in enumerate(source, 1):
                match = INCLUDE.match(line)
                if not match:
                    continue
                target = match.group(1)
                other = target.split("/")[0]
                if "/" in target and other in MAY_USE and other != layer and other not in MAY_USE[layer]:
                    wrong.append(f"{path}:{number}: {layer} may not use {other} ({target})")
                for pattern, layers in LIBRARIES.items():
                    if re.match(pattern, target) and layer not in layers:
                        wrong.append(f"{path}:{number}: {target} belongs in {', '.join(sorted(layers))}")
    print("\n".join(wrong) if wrong else f"[figure] layers: {len(files.stdout.split())} files keep the arrows")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
