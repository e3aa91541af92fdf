#!/usr/bin/env bash
# Installs the system packages that snapferry is built, tried out, tested and measured with, on Debian and Ubuntu.
#
#   scripts/install-system.sh [--demo] [--test] [--bench] [--fuzz] [--deb]
#
# Without an option: what the build needs. The options add to that:
#   --demo    what `make demo` needs: qemu-img, a partitioner, ext4's tools
#   --test    what the tests need: the same, an independent S3 server (Swift), a bucket as a folder (s3fs), CPU emulation, Redis,
#               systemd-analyze, shellcheck, terminals that go away (script), Prometheus, shells that complete, a filesystem
#               with reflinks (xfsprogs), btrfs-progs, cargo-nextest
#   --bench   what `make bench` needs: the same as --demo, s3fs, Swift, python3, restic
#   --fuzz    what the fuzz targets need: a C++ compiler
#   --deb     what `make deb` and `make test-deb` need: dpkg-shlibdeps, which finds what the package depends on, python3, debootstrap
#
# It asks dpkg first: where nothing is missing it does nothing, and needs neither root nor network. It prints what it is
# about to install before it does, and asks no questions. When not root it uses sudo.
set -euo pipefail

readonly build=(gcc libc6-dev make nasm)
readonly demo=(qemu-utils gdisk e2fsprogs util-linux mount)
readonly swift=(swift-proxy swift-account swift-container swift-object memcached curl)
readonly tests=(qemu-user dmsetup shellcheck jq python3 python3-venv redis-server systemd s3fs bsdutils prometheus zsh fish xfsprogs btrfs-progs)
readonly bench=(s3fs python3 restic)
readonly fuzz=(g++)
readonly deb=(dpkg-dev binutils python3 debootstrap)

usage() {
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
}

wanted=("${build[@]}")
want_nextest=no
for option in "$@"; do
  case $option in
    --demo) wanted+=("${demo[@]}") ;;
    --test)
      wanted+=("${demo[@]}" "${swift[@]}" "${tests[@]}")
      want_nextest=yes
      ;;
    --bench) wanted+=("${demo[@]}" "${swift[@]}" "${bench[@]}") ;;
    --fuzz) wanted+=("${fuzz[@]}") ;;
    --deb) wanted+=("${deb[@]}") ;;
    -h | --help)
      usage
      exit 0
      ;;
    *)
      echo "install-system.sh: $option: no such option" >&2
      usage >&2
      exit 2
      ;;
  esac
done

is_installed() {
  [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

if ! command -v dpkg-query >/dev/null; then
  echo "install-system.sh: this is neither Debian nor Ubuntu. Install these, or what your system calls them:" >&2
  echo "  ${wanted[*]}" >&2
  exit 1
fi

missing=()
while read -r package; do
  is_installed "$package" || missing+=("$package")
done < <(printf '%s\n' "${wanted[@]}" | LC_ALL=C sort -u)

as_root=()
if ((EUID != 0)); then
  as_root=(sudo)
fi

# Swift's, memcached's, Redis' and Prometheus' packages would start their daemons on this machine, now and at each boot. The tests start their
# own, in a folder of their own; so the packages' are kept still. policy-rc.d is Debian's own word for "start nothing now".
readonly policy=/usr/sbin/policy-rc.d
wrote_policy=no
remove_policy() {
  if [[ $wrote_policy == yes ]]; then
    "${as_root[@]}" rm -f "$policy"
    wrote_policy=no
  fi
}

keep_daemons_still() {
  [[ -e $policy ]] && return
  wrote_policy=yes
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
  "${as_root[@]}" chmod 755 "$policy"
}

disable_daemons_of() {
  [[ -d /run/systemd/system ]] || return 0
  local units
  units=$(dpkg-query --listfiles "$@" | sed -n 's,^.*/lib/systemd/system/\([^/@]*\.service\)$,\1,p' | sort -u)
  # shellcheck disable=SC2086 # a list of words on purpose
  [[ -z $units ]] || "${as_root[@]}" systemctl disable --quiet $units
}

if ((${#missing[@]} > 0)); then
  if ((EUID != 0)) && ! command -v sudo >/dev/null; then
    echo "install-system.sh: these packages are missing, and there is no sudo. As root, run:" >&2
    echo "  apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
  fi
  echo "Installing with apt-get: ${missing[*]}" >&2
  daemons=()
  for package in "${missing[@]}"; do
    case $package in
      swift-* | memcached | redis-server | prometheus) daemons+=("$package") ;;
    esac
  done
  if ((${#daemons[@]} > 0)); then
    trap remove_policy EXIT
    trap 'exit 130' INT TERM HUP
    keep_daemons_still
  fi
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
  if ((${#daemons[@]} > 0)); then
    disable_daemons_of "${daemons[@]}"
    remove_policy
  fi
fi

if [[ $want_nextest == yes ]] && ! command -v cargo-nextest >/dev/null && [[ ! -x ${CARGO_HOME:-$HOME/.cargo}/bin/cargo-nextest ]]; then
  echo "Installing with cargo: cargo-nextest" >&2
  cargo install --locked cargo-nextest >&2 || echo "install-system.sh: no cargo-nextest; the tests will run under cargo test" >&2
fi
