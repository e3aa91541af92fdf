#!/usr/bin/env bash
# Says which glibc a program needs at least, and fails when that is newer than it may be.
#
#   scripts/check-glibc.sh PROGRAM MAX      for example: scripts/check-glibc.sh target/release/snapferry 2.34
#
# It reads the versions of the symbols that the program takes from glibc: the newest one decides on which systems it starts.
set -euo pipefail

if (($# != 2)); then
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2
  exit 2
fi
program=$1
max=$2

if ! command -v objdump >/dev/null; then
  echo "check-glibc.sh: objdump is missing: apt-get install binutils" >&2
  exit 1
fi

# Lines like: 0000000000000000      DF *UND*  0000000000000000 (GLIBC_2.34) pthread_create
symbols=$(objdump --dynamic-syms "$program" | sed -n 's/.*\bGLIBC_\([0-9][0-9.]*\))\{0,1\} *\(\S*\)$/\1 \2/p' | LC_ALL=C sort --version-sort)
if [[ -z $symbols ]]; then
  echo "check-glibc.sh: $program takes nothing from glibc: is it a program, and linked dynamically?" >&2
  exit 1
fi
needed=${symbols##*$'\n'}
needed=${needed%% *}
echo "$program needs glibc $needed"

newest=$(printf '%s\n' "$needed" "$max" | LC_ALL=C sort --version-sort | tail -n 1)
if [[ $newest != "$max" ]]; then
  echo "check-glibc.sh: that is newer than $max, because of:" >&2
  sed -n "s/^${needed//./\\.} /  /p" <<<"$symbols" >&2
  exit 1
fi
