#!/usr/bin/env bash
# Runs the whole chain on an account of IBM Cloud, step by step, and compares what the cloud answers with what the simulated cloud assumes.
#
#   scripts/acceptance.sh [OPTIONS] SERVER [-- OPTION...]
#
# Steps: doctor, probes of the APIs, snapshot, replicate, verify, restore, gc. Settings and credentials are snapferry's own: configuration
# file, environment. Run it where `snapferry replicate` would run, on a server of the source region. SERVER is a small server that is no
# one's work, such as one of terraform/test-servers: its snapshot, its image and its object are made, and removed at the end.
#
#   --yes              don't ask before anything is made that costs money
#   --probes           stop after doctor and the probes, which cost next to nothing
#   --transcript FILE  where everything is written to, without secrets and account ids (acceptance-TIME.log)
#   --restore-to FILE  where the disk is restored to, as a sparse file (a temporary file, in TMPDIR)
#   --snapferry PATH   the program (snapferry in PATH)
#   OPTION...          more options for `snapferry replicate`
#
# Exit codes: 0 all steps are done and the cloud is as assumed; 1 a step failed, or something is left behind; 2 the command line or the
# settings are wrong, or the question was not answered with yes; 3 all steps are done, and the cloud is not as assumed somewhere; 130, 143
# and 129 a signal. Whatever the way out, what was made is removed first, and what can't be removed is listed with its command.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
usage() {
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
}
wrong() {
  echo "acceptance.sh: $*" >&2
  exit 2
}

yes=no probes_alone=no transcript='' restored='' snapferry=snapferry server='' more=()
while (($#)); do
  case $1 in
    --yes) yes=yes ;;
    --probes) probes_alone=yes ;;
    --transcript | --restore-to | --snapferry)
      (($# > 1)) || wrong "$1 needs a value"
      case $1 in
        --transcript) transcript=$2 ;;
        --restore-to) restored=$2 ;;
        *) snapferry=$2 ;;
      esac
      shift
      ;;
    -h | --help)
      usage
      exit 0
      ;;
    --)
      shift
      more=("$@")
      break
      ;;
    -*) wrong "$1: no such option, see --help" ;;
    *)
      [[ -z $server ]] || wrong "one server, not $server and $1"
      server=$1
      ;;
  esac
  shift
done
[[ -n $server ]] || wrong "which server? See --help"
for program in curl jq "$snapferry"; do
  command -v "$program" >/dev/null || wrong "$program is not installed"
done

stamp=$(date -u +%Y%m%d%H%M%S)
name=acceptance-$stamp-$$
transcript=${transcript:-acceptance-$stamp.log}
[[ -z $restored || ! -e $restored ]] || wrong "$restored exists already"
(umask 077 && : >"$transcript") || wrong "$transcript can't be written"
work=$(mktemp -d)
restored=${restored:-$work/disk.raw}

# shellcheck source=scripts/acceptance/report.sh
. "$here/acceptance/report.sh"
# shellcheck source=scripts/acceptance/cloud.sh
. "$here/acceptance/cloud.sh"
# shellcheck source=scripts/acceptance/probes.sh
. "$here/acceptance/probes.sh"

# What to remove, in the order in which it was made, as a function and its argument. It is noted before it is made, so each of the
# functions has to be content if there is nothing.
undo=()
# shellcheck disable=SC2317 # called by the trap
clean_up() {
  local ending=$? signal=${1:-}
  trap '' INT TERM HUP
  trap - EXIT
  [[ -z $signal ]] || ending=$signal
  set +e
  case $ending in
    0 | 1 | 2 | 129 | 130 | 143) ;;
    *)
      say "acceptance.sh: an answer was not of the form that this script knows (status $ending)"
      ending=1
      ;;
  esac
  stop_child
  if ((${#undo[@]})); then
    say "== cleaning up"
    for ((at = ${#undo[@]} - 1; at >= 0; at--)); do
      # shellcheck disable=SC2086 # the function and its argument, neither of which has a blank
      ${undo[at]}
    done
  fi
  rm -rf "$work"
  summary
  if ((ending == 0)) && ((${#left[@]})); then
    ending=1
  elif ((ending == 0)) && ((${#differences[@]})); then
    ending=3
  fi
  say "== status $ending; the transcript is in $transcript"
  exit "$ending"
}
trap clean_up EXIT
trap 'clean_up 130' INT
trap 'clean_up 143' TERM
trap 'clean_up 129' HUP

say "== snapferry $("$snapferry" --version | head -n 1 | cut -d' ' -f2-), server $server, $(date -u +%FT%TZ)"
read_settings
run_step doctor "$snapferry" doctor --json
jq --raw-output '.[] | "\(.verdict)\t\(.what)\t\(.details)"' "$work/out" | while IFS= read -r line; do say "$line"; done
# An image of this name is in use, and replicating would rename it and remove older ones.
run_step images "$snapferry" images list --region "$recovery_region" --json
if jq --exit-status --slurp --arg name "$server-latest" 'flatten | any(.name == $name)' "$work/out" >/dev/null; then
  say "acceptance.sh: $server-latest is in $recovery_region already: take a server that no one replicates"
  exit 2
fi

get_token
probe_vpc
probe_store
if has_option doctor --copies; then
  run_step copies "$snapferry" doctor --copies --json
  jq --raw-output '.[] | select(.what | test("cop")) | "\(.verdict)\t\(.what)\t\(.details)"' "$work/out" | while IFS= read -r line; do say "$line"; done
else
  skip "UploadPartCopy" "this program has no doctor --copies"
fi
if [[ $probes_alone == yes ]]; then
  exit 0
fi

run_step plan "$snapferry" replicate "$server" --dry-run --json "${more[@]}"
say "This takes a snapshot of $server in $vpc_region, attaches a volume of it to this server, sends an object into bucket $bucket and"
say "imports an image into $recovery_region. They are billed while they exist, and removed at the end."
if [[ $yes == no ]]; then
  [[ -t 0 ]] || wrong "--yes is needed where no one can be asked"
  read -r -p "Type yes to go on: " answer || answer=''
  [[ $answer == yes ]] || wrong "nothing was made"
fi

undo+=("remove_snapshot $name")
run_step snapshot "$snapferry" snapshot create "$server" --name "$name" --json "${logged[@]}"
expect "state of a finished snapshot" stable "$(jq --raw-output .state "$work/out")"
check_log snapshot

undo+=("remove_image" "remove_objects $name/" "remove_job")
run_step replicate "$snapferry" replicate "$server" --from-snapshot "$name" --prefix "$name/" --json --yes "${logged[@]}" "${more[@]}"
cp "$work/out" "$work/replicated"
key=$(jq --raw-output .object.key "$work/replicated")
jq --raw-output '.steps[] | "\(.step)\t\(.seconds * 10 | round / 10) s\t\(.did)"' "$work/replicated" | while IFS= read -r line; do say "$line"; done
check_log replicate
expect "result of the job" "done" "$(jq --raw-output .result "$work/replicated")"
s3 HEAD "$key" --header 'x-amz-checksum-mode: ENABLED'
expect "HEAD returns the object's CRC64NVME" "$(jq --raw-output .object.crc64 "$work/replicated")" "$(header x-amz-checksum-crc64nvme)"
expect "HEAD returns the object's size" "$(jq --raw-output .object.size "$work/replicated")" "$(header content-length)"
vpc GET "$recovery_region" "images/$(jq --raw-output .image.id "$work/replicated")"
expect "status of the imported image" available "$(jq --raw-output .status "$work/body")"
expect "SHA-256 of the image, as the image service computes it" "$(jq --raw-output .object.sha256 "$work/replicated")" \
  "$(jq --raw-output '.file.checksums.sha256 // "none"' "$work/body")"

run_step verify "$snapferry" verify "s3://$bucket/$key" --json "${at_bucket[@]}"
expect "the image is as its manifest says" true "$(jq .good "$work/out")"
run_step restore "$snapferry" restore "s3://$bucket/$key" --output "$restored" --json "${at_bucket[@]}"
run_step compare "$snapferry" compare "s3://$bucket/$key" "$restored" --json "${at_bucket[@]}"
expect "the restored disk is the image's" true "$(jq .identical "$work/out")"

for later in recover drill; do
  if has_command "$later"; then
    skip "$later" "this script has no step for it yet"
  else
    skip "$later" "this program has no such command"
  fi
done

# Without --apply: on an account that is in use, a job that is running elsewhere would lose what it works with.
run_step gc "$snapferry" gc --json --min-age 0s --prefix "$name/"
job=$(jq --raw-output .job "$work/replicated")
expect "leftovers of this job" 0 "$(jq --arg job "$job" --arg key "$key" '[.findings[] | select(.run == $job or .name == $key)] | length' "$work/out")"
expect "kinds that gc could not list" 0 "$(jq '.could_not_list | length' "$work/out")"
say "== all steps are done"
