#!/usr/bin/env bash
# Holds the systemd units to systemd's own judgement: no word of complaint from `systemd-analyze verify`, and an exposure of
# 2.5 at the most from `systemd-analyze security`.
#
#   scripts/check-units.sh
#
# It installs them under a temporary root with a stand-in for the program, so nothing of this machine is touched or looked at
# but systemd's own units. No unit is started: only a machine that runs systemd can do that.
set -euo pipefail

# In tenths, as systemd-analyze takes it.
readonly threshold=25

cd "$(dirname "$0")/.."

if ! command -v systemd-analyze >/dev/null; then
  if [[ ${CI:-} == true ]]; then
    echo "check-units.sh: systemd-analyze is missing: scripts/install-system.sh --test installs it" >&2
    exit 1
  fi
  echo "SKIPPED: systemd-analyze is not installed" >&2
  exit 0
fi

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

failed=no
complain() {
  echo "check-units.sh: $*" >&2
  failed=yes
}

units=$root/usr/lib/systemd/system
mkdir -p "$units" "$root/usr/bin" "$root/etc" "$root/usr/share/man/man1"
printf '#!/bin/sh\n' >"$root/usr/bin/snapferry"
chmod 755 "$root/usr/bin/snapferry"
install -m 644 systemd/*.service systemd/*.timer "$units/"
# The targets and the slice that they name, from where this systemd has them.
for folder in /usr/lib/systemd/system /lib/systemd/system; do
  [[ -e $folder/sysinit.target ]] || continue
  cp --no-clobber "$folder"/*.target "$folder"/*.slice "$units/" 2>/dev/null || true
done

# A template is judged by one of its instances.
names=()
for path in systemd/*.service systemd/*.timer; do
  name=${path##*/}
  names+=("${name/@./@1.}")
done

for name in "${names[@]}"; do
  if ! said=$(systemd-analyze verify --man=no --recursive-errors=one --root="$root" "$name" 2>&1) || [[ -n $said ]]; then
    complain "verify $name: ${said:-it failed, and did not say why}"
  fi
  [[ $name == *.service ]] || continue
  if ! said=$(systemd-analyze security --no-pager --offline=true --threshold="$threshold" --root="$root" "$name" 2>&1); then
    complain "security $name: above $threshold tenths: $said"
  else
    sed -n "s/^.*Overall exposure level for \(.*\)/\1/p" <<<"$said"
  fi
done

# Accounts and folders, made under the temporary root and looked at there.
if command -v systemd-sysusers >/dev/null; then
  systemd-sysusers --root="$root" "$PWD/systemd/sysusers.d/snapferry.conf" >/dev/null 2>"$root/said" || complain "sysusers: $(cat "$root/said")"
  grep -q '^snapferry:' "$root/etc/passwd" || complain "sysusers: made no user snapferry"
fi
if command -v systemd-tmpfiles >/dev/null; then
  said=$(systemd-tmpfiles --create --root="$root" "$PWD/systemd/tmpfiles.d/snapferry.conf" 2>&1) || complain "tmpfiles: $said"
  [[ $(stat -c %a "$root/var/lib/snapferry/jobs" 2>/dev/null) == 2770 ]] || complain "tmpfiles: made no folder for jobs of mode 2770"
fi

# What a unit must not lose, whatever the score says.
for path in systemd/*.service; do
  for line in NoNewPrivileges=yes ProtectSystem=strict DevicePolicy=closed 'User=snapferry'; do
    grep -qx -- "$line" "$path" || complain "$path: no $line"
  done
  if grep -qiE '^(Environment|SetCredential)=.*(key|secret|password|token)' "$path"; then
    complain "$path: a secret in a unit is read by everybody"
  fi
done
diff <(sed '/^Description=/d' systemd/snapferry-worker.service) \
  <(sed -e '/^Description=/d' -e '/this one.s own/d' -e '/worker-%i\.env$/d' 'systemd/snapferry-worker@.service') ||
  complain "snapferry-worker.service and its template differ in more than the description and the instance's own settings"

[[ $failed == no ]]
