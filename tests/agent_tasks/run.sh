#!/usr/bin/env bash
# The shipped model's bar: at least 95% of 200 held-out tasks right, through the real daemon, tools and sandbox.
#   tests/agent_tasks/run.sh [--backend BACKEND] [SEED] [COUNT]
# BACKEND (cpu) goes to agentd. SEED defaults to a fixed one, so that a change of the figure is a change of ours.
set -euo pipefail
cd "$(dirname "$0")/../.."
backend=cpu
if [ "${1:-}" = --backend ]; then
  backend=${2:?tests/agent_tasks/run.sh: --backend needs a name}
  shift 2
fi
seed=${1:-20261123} count=${2:-200}
scratch=$(mktemp -d "${TMPDIR:-/tmp}/agentd-tasks.XXXXXX")
daemon=
finish() {
  [ -z "$daemon" ] || { kill "$daemon" 2>/dev/null; wait "$daemon" 2>/dev/null; } || true
  rm -rf "$scratch"
}
trap finish EXIT

python3 tests/agent_tasks/generate.py --seed "$seed" --count "$count" >"$scratch/tasks.jsonl"
build/bin/agentd --model examples/model --backend "$backend" --data "$scratch/data" --socket "$scratch/agentd.sock" 2>"$scratch/agentd.log" &
daemon=$!
for _ in $(seq 300); do
  build/bin/agentctl --socket "$scratch/agentd.sock" info >/dev/null 2>&1 && break
  kill -0 "$daemon" 2>/dev/null || { cat "$scratch/agentd.log" >&2; exit 1; }
  sleep 0.1
done
python3 tests/agent_tasks/score.py --socket "$scratch/agentd.sock" --tasks "$scratch/tasks.jsonl" --bin build/bin
