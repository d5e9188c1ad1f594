#!/usr/bin/env bash
# On a machine with one GPU: builds the tokenizer, then trains in a process of its own (it outlasts this script), and waits for it.
#   run_device.sh FOLDER SECONDS ARGUMENTS-OF-train.py...    waits at most SECONDS; run it again to go on waiting
set -uo pipefail
cd "$(dirname "$0")"
folder=$1 patience=$2
shift 2
export PYTHONUNBUFFERED=1 TORCHINDUCTOR_CACHE_DIR=$folder/compiled TRITON_CACHE_DIR=$folder/compiled/triton
mkdir -p "$folder"
if [ ! -e "$folder/started" ]; then
  touch "$folder/started"
  [ -e "$folder/tokenizer.json" ] || python3 tokenizer.py "$folder/tokenizer.json"
  TOKENIZERS_PARALLELISM=false setsid nohup sh -c 'python3 train.py "$@"; touch '"$folder/done" sh --out "$folder" --tokenizer "$folder/tokenizer.json" "$@" >"$folder/log" 2>&1 </dev/null &
fi
while [ ! -e "$folder/done" ] && [ "$SECONDS" -lt "$patience" ]; do sleep 1; done
cat "$folder/log"
[ -e "$folder/done" ]
