#!/usr/bin/env bash
# SIGKILL of a real agentd with the shipped model, N times at random moments after once at each named
# boundary (tests/kill/main.cc). Prints its count and rate after every hundred.
#   tests/kill.sh 5000                 a few hours on two cores
#   tests/kill.sh 1000 --seed 7        the moments, tasks and branches of an earlier run
set -euo pipefail
cd "$(dirname "$0")/.."
kills=${1:?usage: tests/kill.sh N [--seed S] [--sessions K]}
shift
cmake --preset release >/dev/null
cmake --build --preset release --target agentd agentctl agentd-init agentd-tool kill_test
exec build/tests/kill_test --bin build/bin --model examples/model --kills "$kills" "$@"
