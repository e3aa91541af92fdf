#!/usr/bin/env bash
# Runs every fuzz target for a while.
#
#   scripts/fuzz.sh [SECONDS [TARGET...]]
#
# SECONDS (60) for each target, all of them by default. Installs cargo-fuzz where it is missing. A crash ends the run, and its
# input is kept under fuzz/artifacts.
set -euo pipefail

seconds=${1:-60}
shift || true
cd "$(dirname "$0")/.."

scripts/install-system.sh --fuzz
if ! cargo fuzz --version >/dev/null 2>&1; then
  echo "Installing with cargo: cargo-fuzz" >&2
  cargo install --locked cargo-fuzz >&2
fi

# The sanitizer and coverage flags are for nightly compilers; this lets the pinned one take them.
export RUSTC_BOOTSTRAP=1
targets=("$@")
if ((${#targets[@]} == 0)); then
  mapfile -t targets < <(cargo fuzz list)
fi
((${#targets[@]} > 0)) || {
  echo "fuzz.sh: there are no fuzz targets" >&2
  exit 1
}
# Images that are broken on purpose are what an image's fuzzing begins with.
cargo run --quiet --locked -p snapferry-testkit --example hostile_images -- fuzz/corpus/image
for target in "${targets[@]}"; do
  echo "== $target: $seconds s"
  # What is found goes to the first folder; seeds are only read. No address sanitizer: the targets run safe Rust alone.
  mkdir -p "fuzz/corpus/$target"
  folders=("fuzz/corpus/$target")
  if [[ -d fuzz/seeds/$target ]]; then folders+=("fuzz/seeds/$target"); fi
  cargo fuzz run --sanitizer none "$target" "${folders[@]}" -- -max_total_time="$seconds" -rss_limit_mb=4096 -timeout=20
done
