#!/usr/bin/env bash
# clang-tidy (.clang-tidy) over every source file of ours that the release build compiles. A file whose text, headers and
# flags are unchanged since it was last clean is not checked again (build/tidy-cache).
set -uo pipefail
cd "$(dirname "$0")/.."
[ -f build/compile_commands.json ] || cmake --preset release >/dev/null
cache=build/tidy-cache
mkdir -p "$cache"
# GCC-only flags in the compilation database are no concern of clang's.
check() {
  local file=$1 key
  key=$({ cat .clang-tidy "$file"; git ls-files -s -- '*.h' '*.proto'; git diff -- '*.h'; } | sha256sum | cut -d' ' -f1)
  [ -e "$cache/$key" ] && return 0
  if clang-tidy -p build --quiet --extra-arg=-Wno-unknown-warning-option "$file" 2>"$cache/err.$BASHPID" >"$cache/out.$BASHPID"; then
    touch "$cache/$key"
  else
    cat "$cache/out.$BASHPID"
    return 1
  fi
}
export -f check
export cache
git ls-files -- '*.cc' | grep -vE '(^|/)fuzz/' | xargs -P "$(nproc)" -I{} bash -c 'check {}' || exit 1
echo "[figure] clang-tidy: $(git ls-files -- '*.cc' | grep -vcE '(^|/)fuzz/') files clean"
