#!/usr/bin/env bash
# Collects what a machine with a GPU and CUDA lacks for tests/gpu/run.sh when it has none of this project's packages: the programs,
# stripped, and their shared libraries (all but glibc's and the compiler's).
#   tests/gpu/pack.sh [--whole] DIR     makes DIR, which must not exist, and DIR.tar.xz
# There, in a checkout: tests/gpu/run.sh --pack DIR. --whole adds the scripts and data, for a machine without a checkout: DIR/tests/gpu/run.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."
whole=
if [ "${1:-}" = --whole ]; then
  whole=yes
  shift
fi
to=${1:?tests/gpu/pack.sh: which directory?}
limit_mb=30
[ ! -e "$to" ] || { echo "tests/gpu/pack.sh: $to exists" >&2; exit 2; }

[ -f build/build.ninja ] || cmake --preset release >/dev/null
mapfile -t tests < <(ctest --test-dir build -N | grep -o 'cuda_[a-z_]*$')
[ ${#tests[@]} -gt 0 ] || { echo "tests/gpu/pack.sh: build/ has no CUDA backend: no nvcc was found when it was configured" >&2; exit 1; }
cmake --build build --target agentd agentctl v4 resume_bench agentd-init agentd-tool racecheck_golden_test "${tests[@]}" >&2
mkdir -p "$to/bin" "$to/lib" "$to/real"

# Dynamic programs lie in real/, and in bin/ a script that runs one with the packed libraries. No variable is exported: Python and
# the sanitizer must not get these libraries.
add_program() {
  local name needed library
  name=$(basename "$1")
  if ! needed=$(ldd "$1" 2>/dev/null); then  # static: runs as it is, inside the sandbox too
    strip -o "$to/bin/$name" "$1"
    return
  fi
  if grep 'not found' <<<"$needed" >&2; then exit 1; fi
  strip -o "$to/real/$name" "$1"
  # Nothing in it may need PATH: bubblewrap gets an empty environment.
  cat >"$to/bin/$name" <<'SCRIPT'
#!/bin/sh
pack=${0%/*}/..
LD_LIBRARY_PATH=$pack/lib exec "$pack/real/${0##*/}" "$@"
SCRIPT
  chmod +x "$to/bin/$name"
  while read -r library; do
    case $(basename "$library") in
      libc.so* | libm.so* | libdl.so* | librt.so* | libpthread.so* | libresolv.so* | libstdc++.so* | libgcc_s.so*) ;;
      *) [ -e "$to/lib/$(basename "$library")" ] || strip -o "$to/lib/$(basename "$library")" "$library" ;;
    esac
  done < <(awk '$2 == "=>" { print $3 }' <<<"$needed")
}
for name in agentd agentctl v4 resume_bench agentd-init agentd-tool; do add_program "build/bin/$name"; done
for name in racecheck_golden_test "${tests[@]}"; do add_program "build/tests/$name"; done
add_program "$(command -v bwrap)"

if [ -n "$whole" ]; then
  git ls-files -co --exclude-standard -- tests/gpu tests/agent_tasks tests/bench tests/e2e/harness.py tests/e2e/test_crash.py \
    tests/golden/hf-a tests/golden/official-a examples/model model/v4/shapes | tar -cf - -T - | tar -xf - -C "$to"
fi

# A window of 64 MiB: the tests and programs hold the same kernels.
tar -C "$(dirname "$to")" -I 'xz -9' -cf "$to.tar.xz" "$(basename "$to")"
bytes=$(stat -c %s "$to.tar.xz")
printf '[figure] pack: %d programs, %d libraries, %s MB, compressed %s MB\n' "$(find "$to/bin" -type f | wc -l)" \
  "$(find "$to/lib" -type f | wc -l)" "$(($(du -sb "$to" | cut -f1) / 1000000))" "$((bytes / 1000000))"
if [ -z "$whole" ] && [ "$bytes" -gt $((limit_mb * 1000000)) ]; then
  echo "tests/gpu/pack.sh: $to.tar.xz is larger than $limit_mb MB" >&2
  exit 1
fi
