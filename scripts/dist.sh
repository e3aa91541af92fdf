#!/usr/bin/env bash
# Puts what a release consists of into target/dist: an archive with the program, the units and an example of a configuration; the Debian
# package where `make deb` has made one; and SHA256SUMS over all of it.
#
#   scripts/dist.sh
#
# The same program gives the same archive: its times are those of the last commit (or SOURCE_DATE_EPOCH), its owner is root.
set -euo pipefail

cd "$(dirname "$0")/.."
program=target/release/snapferry
if [[ ! -x $program ]]; then
  echo "dist.sh: there is no $program: make build" >&2
  exit 1
fi
# "snapferry 0.1.0" and perhaps more behind it.
read -r _ version _ < <("$program" --version)
name=snapferry-$version-$(uname -m)-linux
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}

dist=target/dist
staged=$(mktemp -d)
trap 'rm -rf "$staged"' EXIT
mkdir -p "$dist" "$staged/$name"
install -m 755 "$program" "$staged/$name/"
scripts/licences.py --texts "$staged/$name/third-party-licences.txt"
install -m 644 LICENSE README.md CHANGELOG.md packaging/config.toml.example "$staged/$name/"
cp -r systemd docs monitoring "$staged/$name/"
"$program" man --to "$staged/$name/man"
mkdir "$staged/$name/completions"
for shell in bash zsh fish; do "$program" completions "$shell" >"$staged/$name/completions/snapferry.$shell"; done
chmod -R u=rwX,go=rX "$staged"

tar --create --directory "$staged" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$epoch" "$name" |
  gzip --no-name --best >"$dist/$name.tar.gz"

cd "$dist"
shopt -s nullglob
LC_ALL=C sha256sum -- *.tar.gz *.deb >SHA256SUMS
cat SHA256SUMS
