#!/usr/bin/env bash
# Makes a virtual environment with IBM's own Python SDK for VPC, by which the tests drive the simulated cloud.
#
#   scripts/ibm-sdk.sh [FOLDER]
#
# FOLDER (target/ibm-sdk) is left alone where it has the right version already.
set -euo pipefail

# The version that the simulated cloud was last held to.
version=0.36.0

cd "$(dirname "$0")/.."
folder=${1:-target/ibm-sdk}
if [[ -x $folder/bin/python ]] && [[ $(cat "$folder/version" 2>/dev/null || true) == "$version" ]]; then
  exit 0
fi
echo "Installing with pip into $folder: ibm-vpc $version" >&2
rm -rf "$folder"
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check "ibm-vpc==$version" >&2
echo "$version" >"$folder/version"
