#!/usr/bin/env bash
# The tests that need a GPU, on the machine that has one.
#   tests/gpu/run.sh [--pack DIR] [STEP...]     steps, in this order by default: kernels sanitizer agent_tasks kill
#                                               and when asked for: speed (V4-Flash's shape, and the transformers library beside it),
#                                               profile (time by kernel), resume (a session of a million tokens; 4 GB of disk)
# Programs are those of tests/gpu/pack.sh in DIR, else of build/. Every step says its figures; the last line counts what passed, failed
# and was skipped. The exit code is 0 if something passed and nothing failed, 77 if all was skipped. Logs: gpu-logs/ beside the programs.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit
pack=
[ -d real ] && pack=$PWD  # packed with --whole
if [ "${1:-}" = --pack ]; then
  pack=$(realpath "${2:?tests/gpu/run.sh: --pack needs a directory}")
  shift 2
fi
if [ -n "$pack" ]; then
  bin=$pack/bin tests=$pack/bin logs=$pack/gpu-logs
  export PATH=$PATH:$bin  # for bwrap, if the machine has none
else
  bin=$PWD/build/bin tests=$PWD/build/tests logs=$PWD/build/gpu-logs
fi
export PYTHONDONTWRITEBYTECODE=1
mkdir -p "$logs"
passed=0 failed=0 skipped=0

pass() { passed=$((passed + ${1:-1})); }
fail() { failed=$((failed + 1)); printf 'FAILED: %s\n' "$1"; }
skip() { skipped=$((skipped + 1)); printf 'skipped: %s\n' "$1"; }
# tests_in LOG WHAT: how many of GoogleTest's lines say so. Skipped ones are no tests that passed.
tests_in() { grep -c "^\[ *$2 *\] .*([0-9]* ms" "$1"; }

# Every kernel against the scalar code, and what an engine promises on every backend.
step_kernels() {
  local program name log ok bad left begun
  for program in "$tests"/cuda_*_test; do
    [ -x "$program" ] || { fail "no cuda_*_test in $tests"; return; }
    name=${program##*/} log=$logs/${program##*/}.log begun=$SECONDS
    "$program" >"$log" 2>&1
    local status=$?
    ok=$(tests_in "$log" OK) bad=$(tests_in "$log" FAILED) left=$(tests_in "$log" SKIPPED)
    passed=$((passed + ok))
    printf '[figure] %s: %d tests passed, %d failed, %d skipped, %d s\n' "$name" "$ok" "$bad" "$left" $((SECONDS - begun))
    grep '^\[figure\]' "$log"
    if [ "$status" -ne 0 ]; then
      grep -E '^\[  FAILED  \]|Failure$' "$log" | sort -u | head -20
      tail -n 5 "$log"
      fail "$name (exit code $status, $log)"
    elif [ "$ok" -eq 0 ]; then
      if [ -n "$no_device" ]; then skip "$name: $no_device"; else fail "$name ran no test ($log)"; fi
    fi
  done
}

# sanitize TOOL TEST FILTER: the parts of a test program that FILTER names, under a tool of compute-sanitizer.
sanitize() {
  local tool=$1 name=$2 log=$logs/$1-$2.log sanitizer program=$tests/$2 begun=$SECONDS status=0 summary
  [ -z "$no_device" ] || { skip "$tool: $no_device"; return; }
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null) || { fail "$tool: no compute-sanitizer"; return; }
  # The program itself: the sanitizer follows no script.
  [ -z "$pack" ] || program=$pack/real/$name
  LD_LIBRARY_PATH=${pack:+$pack/lib:}${LD_LIBRARY_PATH:-} timeout 280 "$sanitizer" --tool "$tool" --error-exitcode 99 --print-limit 20 "$program" \
    --gtest_filter="$3" >"$log" 2>&1 || status=$?
  summary=$(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$log" | tail -n 1 | sed 's/^=* *//')
  printf '[figure] compute-sanitizer %s: %s (%d tests of %s, %d s)\n' "$tool" "${summary:-no summary, exit code $status}" \
    "$(tests_in "$log" OK)" "$name" $((SECONDS - begun))
  # Warnings of racecheck are reports too.
  if [ "$status" -eq 0 ] && [ "$(tests_in "$log" OK)" -gt 0 ] && grep -qE ' SUMMARY: 0 (errors|hazards)' <<<"$summary"; then
    pass
  else
    grep '^=========' "$log" | head -n 40
    fail "$tool of $name (exit code $status, $log)"
  fi
}

step_sanitizer() {
  sanitize memcheck cuda_golden_test 'OfficialA.*:HfA.StreamsAfterEachLayer'
  # Of a build without `ninja racecheck_golden_test`, racecheck reports the rings of stages.
  local golden=racecheck_golden_test
  [ -x "$tests/$golden" ] || golden=cuda_golden_test
  # Of a replayed graph it keeps more than a gigabyte of host memory.
  sanitize racecheck "$golden" 'OfficialA.ChunksGiveTheBitsOfTheWhole:OfficialA.MtpDraft'
  sanitize memcheck cuda_host_experts_test '*TheSameBitsOfBatches/LowPrecision:*TheSameDrafts/LowPrecision'
  sanitize racecheck cuda_expert_cache_test '*AsThePlainOne/17SlotsOf64:*AsThePlainOne/3SlotsOf1024'
}

# Which walls tools lack, or why agentd does not come up; nothing if all is well.
missing_walls() {
  AGENTD_BIN=$bin AGENTD_E2E_BACKEND=cuda python3 - <<'PYTHON' 2>&1
import json, sys
sys.path.insert(0, "tests/e2e")
from harness import Daemon
with Daemon() as daemon:
    walls = json.loads(daemon.ctl("info", "--json").out)["walls"]
missing = [f"{w['name']}: {w['detail']}" for w in walls if w["required"] and not w["available"]]
if missing:
    sys.exit("sandbox: " + "; ".join(missing))
PYTHON
}

step_agent_tasks() {
  local why log=$logs/agent_tasks.log
  [ -z "$no_device" ] || { skip "agent_tasks: $no_device"; return; }
  why=$(missing_walls)
  case $why in
    '') ;;
    sandbox:*) skip "agent_tasks: the sandbox cannot be set up on this machine, so tools do not run: ${why#sandbox: }"; return ;;
    *) fail "agent_tasks: $why"; return ;;
  esac
  if tests/agent_tasks/run.sh --backend cuda --bin "$bin" >"$log" 2>&1; then pass; else tail -n 20 "$log"; fail "agent_tasks ($log)"; fi
  grep ' tasks right ' "$log" | sed 's/^/[figure] agent tasks, cuda: /'
}

# SIGKILL in mid-turn, and resumes with the transcript that an uninterrupted run has.
step_kill() {
  local why log=$logs/kill.log which=()
  [ -z "$no_device" ] || { skip "kill: $no_device"; return; }
  why=$(missing_walls)
  case $why in
    '') ;;
    sandbox:*)
      printf 'note: the sandbox cannot be set up on this machine: the killed turns get an error from every tool: %s\n' "${why#sandbox: }"
      which=(Crash.test_random_kills Crash.test_stop_and_start_in_mid_turn)
      ;;
    *) fail "kill: $why"; return ;;
  esac
  if AGENTD_BIN=$bin AGENTD_E2E_BACKEND=cuda timeout 550 python3 tests/e2e/test_crash.py "${which[@]}" >"$log" 2>&1; then
    pass "$(sed -n 's/^Ran \([0-9]*\) tests\{0,1\} in.*/\1/p' "$log")"
  else
    tail -n 40 "$log"
    fail "kill ($log)"
  fi
  grep -E 'sessions killed|^Ran [0-9]+ test' "$log" | sed 's/^/[figure] kill, cuda: /'
}

# bench LAYERS CONTEXT PREFILL BATCH: one run of made-up weights.
bench() {
  local status=0
  timeout 200 "$bin/v4" bench --shape flash --layers "$1" --context "$2" --prefill "$3" --batch "$4" --decode 50 >"$logs/speed.out" 2>&1 || status=$?
  if [ "$status" -eq 0 ]; then pass; else fail "v4 bench --layers $1 --context $2 --batch $4 (exit code $status)"; fi
  sed 's/^/[figure] /' "$logs/speed.out"
}

step_speed() {
  [ -z "$no_device" ] || { skip "speed: $no_device"; return; }
  bench 6 4096 4096 1
  bench 6 1000000 1024 1
  bench 38 4096 4096 1
  bench 38 1000000 1024 1
  bench 6 4096 8 8
  bench 6 4096 8 32
  # The same layers in the library, in the same run.
  bench 4 1024 1024 1
  python3 -c 'import torch, transformers' 2>/dev/null || { skip "transformers: not installed"; return; }
  if timeout 300 python3 tests/bench/transformers_decode.py --layers 4 >"$logs/transformers.out" 2>"$logs/transformers.err"; then pass; else fail transformers; fi
  sed 's/^/[figure] /' "$logs/transformers.out"
}

step_profile() {
  local program=(--v4 "$bin/v4")
  [ -z "$no_device" ] || { skip "profile: $no_device"; return; }
  [ -z "$pack" ] || program=(--v4 "$pack/real/v4" --libraries "$pack/lib")
  if tests/gpu/kernel_times.py "${program[@]}" -- --shape flash --layers 6 --context 4096 --prefill 4096 --decode 2; then
    pass
  else
    fail profile
  fi
}

# In TMPDIR's place: the disk there is what is measured.
step_resume() {
  local status=0
  [ -z "$no_device" ] || { skip "resume: $no_device"; return; }
  timeout 400 "$bin/resume_bench" --shape flash --backend cuda --tokens 1000000 --dir "${TMPDIR:-/tmp}" >"$logs/resume.out" 2>&1 || status=$?
  if [ "$status" -eq 0 ]; then pass; else fail "resume_bench (exit code $status)"; fi
  cat "$logs/resume.out"
}

steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(kernels sanitizer agent_tasks kill)
for name in "${steps[@]}"; do
  declare -F "step_$name" >/dev/null || { echo "tests/gpu/run.sh: no step $name (see the head of this file)" >&2; exit 2; }
done
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null
# Empty if there is one. Anything else that v4 may have to say is for the steps to find.
no_device=$("$bin/v4" bench --model examples/model --backend cuda --prefill 16 --decode 2 2>&1 >/dev/null | sed -n 's/^v4: \(no usable CUDA device\)/\1/p')
for name in "${steps[@]}"; do
  begun=$SECONDS
  printf '\n== %s\n' "$name"
  "step_$name"
  printf '== %s, %d s\n' "$name" $((SECONDS - begun))
done
printf '\n%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
[ "$failed" -eq 0 ] || exit 1
[ "$passed" -gt 0 ] || exit 77
