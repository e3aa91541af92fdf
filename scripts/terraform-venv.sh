#!/usr/bin/env bash
# Makes a virtual environment with what scripts/check-terraform.py needs: a parser of HCL, and gRPC for the stand-in provider.
#
#   scripts/terraform-venv.sh [FOLDER]
#
# FOLDER (target/terraform) is left alone where it has the right versions already. Terraform itself is not installed: neither Debian nor
# PyPI has it. Where there is a terraform or a tofu, the check uses it.
set -euo pipefail

packages=(python-hcl2==8.1.4 grpcio==1.85.1)

cd "$(dirname "$0")/.."
folder=${1:-target/terraform}
if [[ -x $folder/bin/python ]] && [[ $(cat "$folder/version" 2>/dev/null || true) == "${packages[*]}" ]]; then
  exit 0
fi
echo "Installing with pip into $folder: ${packages[*]}" >&2
rm -rf "$folder"
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check "${packages[@]}" >&2
echo "${packages[*]}" >"$folder/version"
