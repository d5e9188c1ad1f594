#!/usr/bin/env bash
# The shipped model's bar: at least 95% of 200 held-out tasks right, through the real daemon, tools and sandbox.
#   tests/agent_tasks/run.sh [--backend BACKEND] [--bin DIR] [SEED] [COUNT]
# BACKEND (cpu) goes to agentd; DIR (build/bin) has the programs. SEED defaults to a fixed one, so that a change of the figure is a change of ours.
set -euo pipefail
cd "$(dirname "$0")/../.."
backend=cpu bin=build/bin
while [[ ${1:-} == --* ]]; do
  case $1 in
    --backend) backend=${2:?tests/agent_tasks/run.sh: --backend needs a name} ;;
    --bin) bin=${2:?tests/agent_tasks/run.sh: --bin needs a directory} ;;
    *) echo "tests/agent_tasks/run.sh: unknown option $1 (see the head of this file)" >&2; exit 2 ;;
  esac
  shift 2
done
seed=${1:-20261123} count=${2:-200}
scratch=$(mktemp -d "${TMPDIR:-/tmp}/agentd-tasks.XXXXXX")
daemon=
finish() {
  [ -z "$daemon" ] || { kill "$daemon" 2>/dev/null; wait "$daemon" 2>/dev/null; } || true
  rm -rf "$scratch"
}
trap finish EXIT

python3 tests/agent_tasks/generate.py --seed "$seed" --count "$count" >"$scratch/tasks.jsonl"
"$bin/agentd" --model examples/model --backend "$backend" --data "$scratch/data" --socket "$scratch/agentd.sock" 2>"$scratch/agentd.log" &
daemon=$!
for _ in $(seq 300); do
  "$bin/agentctl" --socket "$scratch/agentd.sock" info >/dev/null 2>&1 && break
  kill -0 "$daemon" 2>/dev/null || { cat "$scratch/agentd.log" >&2; exit 1; }
  sleep 0.1
done
python3 tests/agent_tasks/score.py --socket "$scratch/agentd.sock" --tasks "$scratch/tasks.jsonl" --bin "$bin"
