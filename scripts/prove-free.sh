#!/usr/bin/env bash
# Takes many snapshots of live filesystems of each kind, and has e2fsprogs and the kernel judge what counts as free in them.
#
#   scripts/prove-free.sh [SNAPSHOTS [TEST...]]
#
# SNAPSHOTS (17) of each kind of ext4, all twelve kinds by default; TEST is part of a test's name, as in `clusters`. Needs root, loop
# devices and 3 GiB under TMPDIR. Prints a line for each kind: snapshots, blocks that a reader of the bitmaps on the disk would have
# lost, and what it damaged. The first block that snapferry would lose ends the test of that kind.
set -euo pipefail

snapshots=${1:-17}
shift || true
cd "$(dirname "$0")/.."
filter='test(/live::.*nothing/)'
if (($# > 0)); then
  filter=$(printf ' | test(/live::.*%s/)' "$@")
  filter=${filter# | }
fi
report=$(mktemp)
trap 'rm -f "$report"' EXIT
export SNAPFERRY_LIVE_SNAPSHOTS=$snapshots SNAPFERRY_LIVE_REPORT=$report
ended=0
cargo nextest run --locked -p snapferry-freespace --no-fail-fast --test-threads 2 -E "$filter" || ended=$?
LC_ALL=C sort "$report"
exit "$ended"
