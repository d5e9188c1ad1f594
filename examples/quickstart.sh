#!/usr/bin/env bash
# Builds agentd and gives the small model that comes with it a few tasks. Then kills the daemon with SIGKILL in the
# middle of one, starts it again, and shows that the session went on where it was; forks and rewinds a session.
# Minutes the first time (it installs what is missing and compiles), seconds later. Leaves nothing running.
#   examples/quickstart.sh [--keep]      --keep: leave data and log in place and say where
set -euo pipefail
cd "$(dirname "$0")/.."
keep=${1:-}
case "$keep" in '' | --keep) ;; *) echo "quickstart.sh: unknown option $keep (see the head of this file)" >&2; exit 2 ;; esac
bold='' dim='' red='' plain=''
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' plain=$'\e[0m'; fi

scratch=$(mktemp -d /tmp/agentd-quickstart.XXXXXX)
data=$scratch/data files=$scratch/files log=$scratch/log
export AGENTD_SOCKET=$scratch/agentd.sock
daemon=

title() { printf '\n%s== %s%s\n' "$bold" "$1" "$plain"; }
say() { printf '%s\n' "$@"; }
fail() {
  printf '%squickstart: %s%s\n' "$red" "$1" "$plain" >&2
  tail -n 20 "$log" >&2 || true
  exit 1
}
seconds_since() { awk -v from="$1" -v to="$EPOCHREALTIME" 'BEGIN { printf "%.1f", to - from }'; }

finish() {
  [ -z "$daemon" ] || { kill "$daemon" && wait "$daemon"; } 2>/dev/null || true
  if [ "$keep" = --keep ]; then say "Data and log: $scratch"; else rm -rf "$scratch"; fi
}
trap finish EXIT

start_daemon() {
  build/bin/agentd --model examples/model --data "$data" --socket "$AGENTD_SOCKET" 2>>"$log" &
  daemon=$!
  build/bin/agentctl --wait 60 info >/dev/null || fail "the daemon does not come up"
}

# ask WANTED [--session ID] ARGUMENTS... TASK: the task and its answer, which has to contain WANTED.
ask() {
  local wanted=$1 session=last answer
  shift
  [ "$1" != --session ] || session=$2
  printf '\n%s> %s%s\n' "$bold" "${*: -1}" "$plain"
  build/bin/agentctl run "$@" || fail "the task did not end with an answer"
  answer=$(events "$session" 'events[-1]["answer"]')
  [[ $answer == *"$wanted"* ]] || fail "\"$wanted\" is not in the answer"
}

# events SESSION EXPRESSION: a Python expression over `events`, the list of the session's events.
events() {
  build/bin/agentctl show --json "$1" |
    python3 -c 'import json, sys; session, *events = map(json.loads, sys.stdin); print(eval(sys.argv[1]))' "$2"
}
# resumed SESSION FIELD: of the event that says how a turn came back after the kill.
resumed() { events "$1" "next(e['$2'] for e in events if e['type'] == 'resumed' and e['after_crash'])"; }
workspace() { events "$1" 'session["workspace"]'; }
last_session() { events last 'session["id"]'; }

build() {
  title "Install and build"
  ./setup.sh
  local begun=$EPOCHREALTIME
  # Once configured, the build looks by itself whether it has to be again.
  [ -f build/build.ninja ] || cmake --preset release >"$log" 2>&1 || fail "cmake failed"
  if [ -t 1 ]; then
    cmake --build --preset release --target agentd agentctl v4 agentd-init agentd-tool || fail "the build failed"
  else
    cmake --build --preset release --target agentd agentctl v4 agentd-init agentd-tool >>"$log" 2>&1 || fail "the build failed"
  fi
  say "built in $(seconds_since "$begun") s"
}

make_files() {
  mkdir "$files"
  printf 'width = 48\nheight = 217\ndepth = 7\n' >"$files/shop.cfg"
  printf 'amber\nbirch\ncedar\namber\ndogwood\n' >"$files/words.txt"
}

tasks() {
  title "A few tasks (the answer, and in between what it did)"
  ask 42 "What is 17 + 25?"
  ask 5 --workspace "$files" "How many lines are in words.txt?"
  local session
  session=$(last_session)
  ask words.txt --session "$session" "Which file contains the word cedar?"
  ask 10416 --session "$session" "Read shop.cfg and multiply width by height and write the result to area.txt."
  say "${dim}area.txt: $(cat "$(workspace "$session")/area.txt")$plain"
}

# Runs the rest of the command line, and kills the daemon when the model speaks again after a tool's first result.
kill_while_decoding() {
  local line after_result=
  while read -r line; do
    case $line in
      '{"type":"tool_finished"'*) after_result=yes ;;
      '{"type":"tokens"'*'"sampled":true'*) [ -z "$after_result" ] || { kill -KILL "$daemon"; break; } ;;
    esac
  done < <("$@" 2>/dev/null)
  { wait "$daemon" || true; } 2>/dev/null
}

survive_a_kill() {
  title "kill -9 in the middle of a task"
  local task="Read shop.cfg and add width and depth and write the result to sum.txt." whole killed position restarted
  local run=(build/bin/agentctl run --json --seed 42 --workspace "$files" "$task")
  say "The task: $task"
  "${run[@]}" >/dev/null 2>&1 || fail "the task did not end with an answer"
  whole=$(last_session)
  say "Once without trouble:    $(events "$whole" 'events[-1]["answer"]')"

  kill_while_decoding "${run[@]}"
  restarted=$EPOCHREALTIME
  start_daemon
  say "Once with kill -9:       daemon started again and ready after $(seconds_since "$restarted") s"
  killed=$(last_session)
  build/bin/agentctl watch -q --until-idle "$killed" >"$scratch/answer" || fail "the killed turn did not end with an answer"
  position=$(resumed "$killed" position) || fail "the turn was not resumed"
  say "  went on at token       $position, and answered: $(tail -n 1 "$scratch/answer")"
  say "  restored               $(resumed "$killed" restored)"
  say "  replayed               $(resumed "$killed" replayed)"
  say "  prefilled_again        $(resumed "$killed" prefilled_again)"
  say "  time to the next token $(awk -v us="$(resumed "$killed" duration_us)" 'BEGIN { printf "%.1f ms", us / 1000 }')"

  build/bin/agentctl show --tokens "$whole" >"$scratch/whole" 2>/dev/null
  build/bin/agentctl show --tokens "$killed" >"$scratch/killed" 2>/dev/null
  cmp "$scratch/whole" "$scratch/killed" || fail "the transcripts differ"
  diff -r "$(workspace "$whole")" "$(workspace "$killed")" || fail "the workspaces differ"
  say "  transcripts            identical ($(wc -l <"$scratch/whole") tokens), and so are the files"
  [ "$(resumed "$killed" prefilled_again)" = 0 ] || fail "tokens were prefilled again"
}

fork_and_rewind() {
  title "Fork and rewind, with the files"
  local session before fork
  ask note.txt "Create note.txt with the text first draft"
  session=$(last_session)
  before=$(events "$session" 'events[-1]["seq"]')
  ask note.txt --session "$session" "Replace first with second in note.txt"
  fork=$(build/bin/agentctl fork "$session" --at "$before" 2>/dev/null)
  say "" "Forked before the replacement. In the fork:"
  ask "first draft" --session "$fork" "What is in note.txt?"
  say "" "In the session itself, still: $(cat "$(workspace "$session")/note.txt")"
  build/bin/agentctl rewind "$session" --to "$before" >/dev/null 2>&1
  say "Rewound to before the replacement. Now:"
  ask "first draft" --session "$session" "What is in note.txt?"
}

build
begun=$EPOCHREALTIME
make_files
start_daemon
tasks
survive_a_kill
fork_and_rewind
title "Done in $(seconds_since "$begun") s"
