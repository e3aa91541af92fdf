#!/usr/bin/env bash
# Shows what snapferry does, on a real disk, without a cloud account.
#
#   scripts/demo.sh [SIZE [FILL]]
#
# Installs what is missing, builds the release binary, makes a disk of SIZE (3G) with FILL (2252M) of this machine's own
# programs on it, as a loop device when root, as a file otherwise. Then `snapferry-sim demo` starts a simulated cloud with a server
# on that disk, shows its boot volume, and replicates it twice into another region's image library; in between, files are written,
# and the second night copies what did not change inside the store. The converter alone sends the
# disk into the cloud's object store; the object is read back and proved equal with `qemu-img compare`, and `qemu-img convert -c`
# does the same.
# The disk is kept for the next time in target/demo; everything else is in a temporary folder and goes away at the end.
set -euo pipefail

size=${1:-3G}
fill=${2:-2252M}
cd "$(dirname "$0")/.."

scripts/install-system.sh --demo
cargo build --release --locked -p snapferry -p snapferry-sim

disks=$PWD/target/demo
work=$(mktemp -d "$PWD/target/demo-work.XXXXXX")
disk=''
# shellcheck disable=SC2317 # called by the trap
clean_up() {
  if [[ $disk == /dev/loop* ]]; then
    PATH=$PATH:/usr/sbin:/sbin losetup --detach "$disk"
  fi
  rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

attach=()
if ((EUID == 0)); then
  attach=(--loop)
fi
disk=$(scripts/make-disk.sh "$disks/disk.img" "$size" --fill "$fill" "${attach[@]}" | tail -n 1) || {
  # Root in a container may have no loop devices: a file does as well.
  ((EUID == 0)) || exit 1
  echo "demo.sh: no loop device to be had; the disk stays a file" >&2
  disk=$(scripts/make-disk.sh "$disks/disk.img" "$size" --fill "$fill" | tail -n 1)
}

TMPDIR=$work target/release/snapferry-sim demo --disk "$disk"
