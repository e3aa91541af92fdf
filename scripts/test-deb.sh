#!/usr/bin/env bash
# Installs a Debian package into a system of its own, looks at what is there then, removes it, purges it, and looks at what is left.
#
#   scripts/test-deb.sh PACKAGE.deb [SUITE]      SUITE: this system's own unless told, or another of Debian's or Ubuntu's
#
# As root, or by sudo where that asks for no password. The system is a minimal one made by debootstrap, once for each suite, and kept in
# target/chroot; what is tested is a copy. MIRROR says where its packages come from: unless told, where apt gets this system's own from. No
# systemd runs in there: that a unit starts, only a real machine can show.
set -euo pipefail

# Minutes, of which debootstrap takes two on a slow line.
readonly patience=20m

if (($# < 1 || $# > 2)); then
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2
  exit 2
fi
deb=$(realpath -- "$1")
own=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
suite=${2:-$own}
if [[ ! -f $deb || ! $suite =~ ^[a-z]+$ ]]; then
  echo "test-deb.sh: $1, $suite: no such package, or no suite's name" >&2
  exit 2
fi
if ((EUID != 0)) && sudo --non-interactive true 2>/dev/null; then
  exec sudo --non-interactive env CI="${CI:-}" MIRROR="${MIRROR:-}" "$(realpath -- "$0")" "$deb" "$suite"
fi
cd "$(dirname "$0")/.."

missing=()
command -v debootstrap >/dev/null || missing+=("debootstrap (apt-get install debootstrap)")
((EUID == 0)) || missing+=("root")
if ((${#missing[@]} > 0)); then
  if [[ ${CI:-} == true ]]; then
    printf 'test-deb.sh: missing: %s\n' "${missing[@]}" >&2
    exit 1
  fi
  printf 'SKIPPED: the package in a system of its own: missing: %s\n' "${missing[@]}" >&2
  exit 0
fi

# Where apt gets the packages of a suite from, or else this system's own: a mirror has all suites of its distribution.
mirror_of() {
  local of found
  for of in "$1" "$own"; do
    # shellcheck disable=SC2016 # apt's own variables
    found=$(apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' | awk -v suite="$of" '$1 == suite { print $2; exit }')
    case $found in
      # A list of mirrors, the best one first.
      mirror+file:*) found=$(sed -n 's,^\(https\{0,1\}://[^[:space:]]*\).*,\1,p;T;q' "${found#mirror+file:}") ;;
    esac
    [[ -z $found ]] || break
  done
  echo "${found%/}"
}

# As in a container that may not mount anything.
if ! unshare --mount --pid --net --ipc --uts --fork true 2>/dev/null; then
  echo "SKIPPED: the package in a system of its own: this machine gives no namespaces" >&2
  exit 0
fi

kept=target/chroot/$suite.tar
if [[ ! -s $kept ]]; then
  mirror=${MIRROR:-$(mirror_of "$suite")}
  if [[ -z $mirror ]] || ! wget --quiet --spider --tries=3 --timeout=20 "$mirror/dists/$suite/Release"; then
    echo "SKIPPED: the package in a system of its own: no mirror with $suite can be reached: MIRROR=${mirror:-URL}" >&2
    exit 0
  fi
  mkdir -p target/chroot
  fresh=$(mktemp -d -p "$PWD/target/chroot")
  trap 'rm -rf "$fresh"' EXIT
  # systemd for its sysusers and tmpfiles, which the package calls.
  timeout "$patience" debootstrap --variant=minbase --include=systemd "$suite" "$fresh/system" "$mirror" >"$fresh/log" 2>&1 || {
    tail -n 20 "$fresh/log" >&2
    exit 1
  }
  tar --create --file "$fresh/tar" --directory "$fresh/system" --numeric-owner --xattrs .
  mv "$fresh/tar" "$kept"
  rm -rf "$fresh"
fi

root=$(mktemp -d -p "$PWD/target/chroot")
trap 'rm -rf "$root"' EXIT
tar --extract --file "$kept" --directory "$root" --numeric-owner --xattrs --preserve-permissions
chmod 755 "$root"
cp -- "$deb" "$root/root/package.deb"

failed=no
complain() {
  echo "test-deb.sh: $*" >&2
  failed=yes
}
# Namespaces of its own: nothing in there sees or reaches this machine's processes and network, and what is mounted goes with them.
isolated() {
  unshare --mount --pid --net --ipc --uts --fork --kill-child "$@"
}
readonly clean=(/usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C DEBIAN_FRONTEND=noninteractive)
inside() {
  isolated --mount-proc="$root/proc" -- chroot "$root" "${clean[@]}" "$@"
}
# What may change when any package comes and goes: dpkg's own records and logs, and the copies that account tools keep.
files() {
  (cd "$root" && find . -xdev \( -path ./var/lib/dpkg -o -path ./var/log -o -path ./dev -o -path ./proc -o -path ./sys -o -path ./run -o -path ./tmp \) -prune \
    -o ! -path './etc/*-' ! -name .pwd.lock -printf '%p %y %m %u %g %l\n' | LC_ALL=C sort)
}

before=$(files)
package=$(dpkg-deb --field "$deb" Package)
version=$(dpkg-deb --field "$deb" Version)

# First without /proc, as in the chroots of some image builders; then over itself, as an upgrade. Neither may enable, start or ask for anything.
if ! said=$(isolated -- chroot "$root" "${clean[@]}" dpkg --install /root/package.deb 2>&1) || ! said=$(inside dpkg --install /root/package.deb 2>&1); then
  echo "$said" >&2
  exit 1
fi

told=$(inside snapferry --version 2>&1) || complain "snapferry --version: $told"
[[ $told == "snapferry ${version%-*}"* ]] || complain "it says \"$told\", and its package $version"
said=$(inside ldd /usr/bin/snapferry 2>&1) || complain "ldd: $said"
[[ $said != *'not found'* ]] || complain "a library is missing: $said"

mapfile -t units < <(cd "$root/usr/lib/systemd/system" && compgen -G 'snapferry*')
((${#units[@]} > 0)) || complain "there are no units"
for unit in "${units[@]}"; do
  state=$(inside systemctl --root=/ is-enabled "$unit" 2>&1) || true
  [[ $state == disabled || $state == static ]] || complain "$unit is $state after installing"
done
linked=$(find "$root/etc/systemd" -name '*snapferry*')
[[ -z $linked ]] || complain "installing has enabled something: $linked"

account=$(inside getent passwd snapferry) || complain "there is no user snapferry"
[[ $account == *:/var/lib/snapferry:*nologin ]] || complain "the user is not one that nobody logs in as: $account"
owned=$(inside stat --format '%U:%G %a' /var/lib/snapferry/jobs 2>&1) || true
[[ $owned == 'snapferry:snapferry 2770' ]] || complain "/var/lib/snapferry/jobs: $owned"
[[ -d $root/etc/snapferry ]] || complain "there is no /etc/snapferry"

# A page for each command that the program has, at every depth, and completions that shells take.
pages=$root/usr/share/man
inside snapferry man --to /tmp/pages || complain "it can't write its manual"
for path in "$root"/tmp/pages/*.[15]; do
  page=man${path##*.}/${path##*/}
  [[ -e $pages/$page.gz ]] || {
    complain "there is no page $page.gz"
    continue
  }
  gzip --decompress --stdout "$pages/$page.gz" | cmp --quiet - "$path" || complain "$page.gz is not what the program writes"
done
[[ -e $pages/man1/snapferry-replicate.1.gz ]] || complain "there is no page for replicate"
[[ -e $pages/man5/snapferry-config.toml.5.gz ]] || complain "there is no page for the configuration"
inside bash -c 'source /usr/share/bash-completion/completions/snapferry && complete -p snapferry' >/dev/null || complain "bash does not take its completions"
# shellcheck disable=SC2016 # the inner shell expands it
completed=$(inside bash -c 'source /usr/share/bash-completion/completions/snapferry
COMP_WORDS=(snapferry convert --codec ""); COMP_CWORD=3
_clap_complete_snapferry snapferry "" --codec; echo "${COMPREPLY[*]}"') || true
[[ $completed == 'deflate zstd none' ]] || complain "bash completes --codec to: $completed"
for path in zsh/vendor-completions/_snapferry fish/vendor_completions.d/snapferry.fish; do
  grep -q 'snapferry --' "$root/usr/share/$path" 2>/dev/null || complain "/usr/share/$path: missing, or does not call the program"
done
for name in snapferry.rules.yml tests.yml grafana.json; do
  [[ -s $root/usr/share/snapferry/monitoring/$name ]] || complain "there is no /usr/share/snapferry/monitoring/$name"
done
[[ -e $root/usr/share/doc/snapferry/copyright ]] || complain "there is no copyright file"

# A removed package leaves what people wrote and what jobs need to be resumed; a purged one only what it never owned.
echo '# mine' >"$root/etc/snapferry/config.toml"
touch "$root/var/lib/snapferry/jobs/web01.journal"
inside dpkg --remove "$package" >/dev/null || complain "it can't be removed"
[[ ! -e $root/usr/bin/snapferry ]] || complain "the program is still there after removing"
for kept_file in etc/snapferry/config.toml var/lib/snapferry/jobs/web01.journal; do
  [[ -e $root/$kept_file ]] || complain "removing took /$kept_file, which is not the package's"
done
inside dpkg --purge "$package" >/dev/null || complain "it can't be purged"
! inside dpkg-query --show "$package" >/dev/null 2>&1 || complain "dpkg still knows it after purging"
rm -rf "$root/etc/snapferry/config.toml" "$root/tmp/pages"

# Accounts stay, as Debian has it: files elsewhere may still be theirs. An empty folder for a configuration may stay with them.
left=$(diff <(echo "$before") <(files) | sed -n 's/^[<>] //p' | grep -vE '^\./etc/(passwd|group|shadow|gshadow) |^\./etc/snapferry d ' || true)
[[ -z $left ]] || complain "purging has left, changed or taken:"$'\n'"$left"

[[ $failed == no ]]
echo "test-deb.sh: $package $version installs, runs and goes away cleanly on $suite" >&2
