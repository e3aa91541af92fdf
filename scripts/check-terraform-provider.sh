#!/usr/bin/env bash
# Checks the Terraform files by the real provider: init, validate and test in each folder, the schema that was written down by hand against
# the provider's own, tflint, and terraform-docs' reading of inputs and outputs. Needs Terraform's registry, terraform (1.7 or later),
# tflint and terraform-docs; nothing is made in an account, since the tests have a mock of the provider.
#
#   scripts/check-terraform-provider.sh [LOCKS]
#
# LOCKS is a folder for the lock files with the checksums of all platforms, to be committed.
set -euo pipefail

cd "$(dirname "$0")/.."
locks=${1:-}
python=target/terraform/bin/python
platforms=(linux_amd64 linux_arm64 darwin_amd64 darwin_arm64)

for program in terraform tflint terraform-docs; do
  if ! command -v "$program" >/dev/null; then
    echo "check-terraform-provider.sh: $program is not installed" >&2
    exit 1
  fi
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TF_IN_AUTOMATION=1 CHECKPOINT_DISABLE=1 TF_PLUGIN_CACHE_DIR=$work/plugins TF_PLUGIN_CACHE_MAY_BREAK_DEPENDENCY_LOCK_FILE=1
mkdir "$work/plugins"
# A copy: init and the lock leave files behind.
cp -r terraform "$work/terraform"

failed=()
# Runs one step in one folder, and remembers that it failed.
step() {
  local folder=$1
  shift
  echo "== $folder: $*" >&2
  (cd "$work/terraform/$folder" && "$@") || failed+=("$folder: $*")
}

# Warnings count: the real provider reports deprecated arguments by them.
validate() {
  local told
  told=$(terraform validate -json) || true
  jq --raw-output '.diagnostics[] | "\(.severity): \(.range.filename // "?"):\(.range.start.line // 0): \(.summary): \(.detail)"' <<<"$told"
  jq --exit-status '.valid and (.diagnostics | length == 0)' <<<"$told" >/dev/null
}

# The schema is asked for in one folder; all have the same provider.
schema=''
step . terraform fmt -check -recursive -diff
while read -r folder; do
  step "$folder" terraform init -backend=false -input=false -no-color
  step "$folder" validate
  if [[ -d $work/terraform/$folder/tests ]]; then
    step "$folder" terraform test -no-color
  fi
  step "$folder" tflint --config="$PWD/terraform/.tflint.hcl"
  if [[ -z $schema ]]; then
    schema=$work/schema.json
    (cd "$work/terraform/$folder" && terraform providers schema -json) >"$schema" || failed+=("$folder: providers schema")
  fi
  if [[ -n $locks && -f terraform/$folder/.terraform.lock.hcl ]]; then
    step "$folder" terraform providers lock "${platforms[@]/#/-platform=}"
    mkdir -p "$locks/$folder"
    cp "$work/terraform/$folder/.terraform.lock.hcl" "$locks/$folder/"
  fi
done < <(cd terraform && find . -name '*.tf' -not -path '*/tests/*' -not -path '*/.terraform/*' -printf '%P\n' | xargs -n 1 dirname | sort -u)

"$python" scripts/terraform/real.py "$schema" || failed+=("schema: terraform/schema differs from the provider's")
"$python" scripts/terraform-readme.py --compare terraform-docs || failed+=("terraform-docs: reads other inputs or outputs")

if ((${#failed[@]})); then
  printf 'check-terraform-provider.sh: %s\n' "${failed[@]}" >&2
  exit 1
fi
echo "The real provider agrees with all folders" >&2
