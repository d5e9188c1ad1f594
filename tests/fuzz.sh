#!/usr/bin/env bash
# Runs every fuzz target, from the inputs in tests/fuzz/TARGET where there are any: tests/fuzz.sh SECONDS_PER_TARGET [TARGET...]. Minutes or hours find more than CI's smoke run.
set -uo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
[[ $seconds =~ ^[1-9][0-9]*$ ]] || { echo "fuzz.sh: \"$seconds\" is no number of seconds (see the head of this file)" >&2; exit 2; }
shift || true
cmake --preset fuzz >/dev/null && cmake --build --preset fuzz --target fuzzers || exit 1
targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(find build/fuzz/fuzz -maxdepth 1 -type f -executable -printf '%f\n' | sort)
[ ${#targets[@]} -gt 0 ] || { echo "fuzz.sh: no fuzz target was built"; exit 1; }
status=0
for target in "${targets[@]}"; do
  corpus=build/fuzz/corpus/$target
  mkdir -p "$corpus"
  seeds=()
  [ ! -d "tests/fuzz/$target" ] || seeds=("tests/fuzz/$target")
  if build/fuzz/fuzz/"$target" -max_total_time="$seconds" -timeout=30 -rss_limit_mb=4096 -print_final_stats=1 \
    -artifact_prefix="build/fuzz/$target-" "$corpus" "${seeds[@]}" >"build/fuzz/$target.log" 2>&1; then
    echo "[figure] $target: $(grep -oE 'stat::number_of_executed_units: *[0-9]+' "build/fuzz/$target.log" | grep -oE '[0-9]+$') runs, no finding"
  else
    tail -n 40 "build/fuzz/$target.log"
    echo "$target FAILED"
    status=1
  fi
done
exit $status
