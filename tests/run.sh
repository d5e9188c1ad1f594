#!/usr/bin/env bash
# Builds a release and runs every test that needs no GPU.
#   tests/run.sh            release build, all tests, the shipped model's 200 agent tasks (30 minutes at most on 2 cores)
#   tests/run.sh --ci       also the quickstart, formats, clang-tidy, ASan+UBSan, TSan, fuzz smoke (70 at most)
#   tests/run.sh STEP...    only these steps; `tests/run.sh --list` names them
# Each step prints its time; the last line counts what passed and failed. Logs: build/test-logs/.
set -uo pipefail
cd "$(dirname "$0")/.."

steps_default=(setup build unit agent_tasks)
steps_ci=(setup format build unit mcp agent_tasks quickstart tidy asan tsan fuzz)
jobs=$(nproc)
logs=build/test-logs
passed=0 failed=0 skipped=0
failures=()

step_setup() { ./setup.sh; }

step_build() { cmake --preset release >/dev/null && cmake --build --preset release; }

step_format() {
  git ls-files -- "*.cc" "*.h" "*.cu" "*.cuh" | xargs clang-format --dry-run -Werror && tests/check_layers.py
}

# run_ctest BUILD_DIR ARGS...: runs ctest and adds its counts to the totals.
run_ctest() {
  local build=$1 status=0
  shift
  ctest --test-dir "$build" -j "$jobs" --output-on-failure --no-tests=error --test-output-size-passed 10000000 \
    --output-junit "$PWD/$logs/junit.xml" "$@" || status=$?
  local counts p f s
  counts=$(python3 tests/count_junit.py "$logs/junit.xml") || { echo "no test report from ctest"; return 1; }
  read -r p f s <<<"$counts"
  tail -n +2 <<<"$counts"
  passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
  return "$status"
}

step_unit() { run_ctest build; }

# Real MCP servers and the conformance suite, from npm.
step_mcp() { tests/mcp/run.sh; }

step_agent_tasks() { tests/agent_tasks/run.sh; }

step_quickstart() { ./examples/quickstart.sh; }

step_tidy() { tests/tidy.py; }

step_asan() {
  cmake --preset asan >/dev/null && cmake --build --preset asan &&
    ASAN_OPTIONS=detect_stack_use_after_return=1:strict_string_checks=1 \
      UBSAN_OPTIONS=print_stacktrace=1 run_ctest build/asan -LE 'slow|bench|again'
}

# The layers with threads of their own: the store and the daemon.
step_tsan() {
  cmake --preset tsan >/dev/null && cmake --build --preset tsan --target tsan_tests &&
    TSAN_OPTIONS="suppressions=$PWD/tests/tsan.supp second_deadlock_stack=1" run_ctest build/tsan -L 'tsan'
}

step_fuzz() { tests/fuzz.sh 5; }

run_step() {
  local name=$1 start=$SECONDS before_failed=$failed before_passed=$passed status=0
  printf '\n== %s\n' "$name"
  "step_$name" >"$logs/$name.log" 2>&1 || status=$?
  if [ "$failed" -eq "$before_failed" ]; then
    # The step itself counts when it did not count tests of its own.
    if [ "$status" -ne 0 ]; then failed=$((failed + 1)); elif [ "$passed" -eq "$before_passed" ]; then passed=$((passed + 1)); fi
  fi
  if [ "$status" -ne 0 ]; then
    failures+=("$name")
    tail -n 60 "$logs/$name.log"
    printf '== %s FAILED after %d s (whole log: %s/%s.log)\n' "$name" $((SECONDS - start)) "$logs" "$name"
  else
    grep -E '^(\[figure\]|100% tests|[0-9]+ of [0-9]+ )' "$logs/$name.log" | tail -n 40
    printf '== %s ok, %d s\n' "$name" $((SECONDS - start))
  fi
  return "$status"
}

chosen=()
for argument in "$@"; do
  case "$argument" in
    --ci) chosen=("${steps_ci[@]}") ;;
    --list) printf '%s\n' "${steps_ci[@]}"; exit 0 ;;
    -*) echo "tests/run.sh: unknown option $argument (see the head of this file)" >&2; exit 2 ;;
    *)
      declare -F "step_$argument" >/dev/null || { echo "tests/run.sh: no step $argument (--list names them)" >&2; exit 2; }
      chosen+=("$argument")
      ;;
  esac
done
[ ${#chosen[@]} -gt 0 ] || chosen=("${steps_default[@]}")

mkdir -p "$logs"
for name in "${chosen[@]}"; do
  run_step "$name" || case "$name" in setup | build) break ;; esac
done

printf '\n'
[ ${#failures[@]} -eq 0 ] || printf 'failed steps: %s\n' "${failures[*]}"
printf 'took %d min %d s\n' $((SECONDS / 60)) $((SECONDS % 60))
printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
[ ${#failures[@]} -eq 0 ]
