# Part of scripts/acceptance.sh: settings, requests by curl, which is independent of the program, and the removal of what was made.
# shellcheck shell=bash disable=SC2154,SC2034 # variables of acceptance.sh, and such as it reads

# Date of the VPC API that requests ask for.
version='version=2026-03-24&generation=2'
# Options by which a command logs its requests and waits as JSON.
logged=(--verbose --log-format json)

has_option() {
  "$snapferry" "$1" --help 2>/dev/null | grep --quiet --extended-regexp -- "(^| )$2( |\$)"
}

has_command() {
  "$snapferry" --help | grep --quiet --extended-regexp "^  $1 "
}

setting() {
  jq --raw-output --slurp --arg name "$1" 'flatten | .[] | select(.name == $name) | .value // ""' "$work/settings"
}

# Reads the program's settings, so that the same places are asked as it asks.
read_settings() {
  "$snapferry" config show --json >"$work/settings" || wrong "the settings can't be read: snapferry config show"
  local kind metadata
  bucket=$(setting bucket)
  recovery_region=$(setting recovery_region)
  bucket_region=$(setting region)
  bucket_region=${bucket_region:-$recovery_region}
  vpc_region=$(setting vpc_region)
  vpc_region=${vpc_region:-${IBMCLOUD_REGION:-${IC_REGION:-}}}
  for kind in bucket recovery_region vpc_region; do
    [[ -n ${!kind} ]] || wrong "$kind is not set: snapferry config show"
  done
  vpc_address=$(setting vpc_endpoint)
  case $vpc_address in
    '' | public) vpc_address='https://{region}.iaas.cloud.ibm.com' ;;
    private) vpc_address='https://{region}.private.iaas.cloud.ibm.com' ;;
  esac
  store_address=$(setting endpoint)
  case $store_address in
    '' | direct) store_address=https://s3.direct.$bucket_region.cloud-object-storage.appdomain.cloud ;;
    private) store_address=https://s3.private.$bucket_region.cloud-object-storage.appdomain.cloud ;;
    public) store_address=https://s3.$bucket_region.cloud-object-storage.appdomain.cloud ;;
  esac
  iam_address=$(setting iam_endpoint)
  iam_address=${iam_address:-https://iam.cloud.ibm.com}
  metadata=$(setting metadata_endpoint)
  metadata_address=${metadata:-http://api.metadata.cloud.ibm.com}
  at_bucket=(--bucket-region "$bucket_region")
}

# Gets a token as the program does: by an API key, or by the server's trusted profile. No secret is in a command line.
get_token() {
  local file key='' profile identity token
  file=$(setting api_key_file)
  profile=$(setting trusted_profile)
  if [[ -n $file ]]; then
    key=$(<"$file")
  elif [[ -z $profile ]]; then
    key=${IBMCLOUD_API_KEY:-${IC_API_KEY:-}}
  fi
  if [[ -n $key ]]; then
    secrets+=("$key")
    token=$(printf '%s' "$key" | curl --silent --show-error --max-time 60 "$iam_address/identity/token" \
      --data-urlencode grant_type=urn:ibm:params:oauth:grant-type:apikey --data-urlencode apikey@- | jq --raw-output '.access_token // ""')
  elif [[ -n $profile ]]; then
    identity=$(curl --silent --show-error --max-time 60 --request PUT "$metadata_address/instance_identity/v1/token?version=2022-03-01" \
      --header 'Metadata-Flavor: ibm' --header 'Content-Type: application/json' --data '{"expires_in":3600}' | jq --raw-output '.access_token // ""')
    secrets+=("${identity:-no identity token}")
    printf 'Authorization: Bearer %s\n' "$identity" >"$work/identity"
    case $profile in
      default) profile='{}' ;;
      crn:*) profile=$(jq --null-input --compact-output --arg crn "$profile" '{trusted_profile: {crn: $crn}}') ;;
      *) profile=$(jq --null-input --compact-output --arg id "$profile" '{trusted_profile: {id: $id}}') ;;
    esac
    token=$(curl --silent --show-error --max-time 60 --request POST "$metadata_address/instance_identity/v1/iam_token?version=2022-03-01" \
      --header @"$work/identity" --header 'Content-Type: application/json' --data "$profile" | jq --raw-output '.access_token // ""')
  else
    wrong "there is neither an API key nor a trusted profile: snapferry config show"
  fi
  if [[ -z $token ]]; then
    say "acceptance.sh: IAM gave no token, though doctor got one"
    exit 1
  fi
  secrets+=("$token")
  (umask 077 && printf 'Authorization: Bearer %s\n' "$token" >"$work/authorization")
}

# Sends a request; status, headers and body are those of the response.
send() {
  local method=$1 url=$2
  shift 2
  local how=(--request "$method")
  [[ $method != HEAD ]] || how=(--head)
  status=$(curl --silent --show-error --max-time 300 --header @"$work/authorization" --dump-header "$work/headers" --output "$work/body" \
    --write-out '%{http_code}' "${how[@]}" "$@" "$url" 2>"$work/curl") || status="no response: $(tail -n 1 "$work/curl")"
  note "$method $url: $status"
  [[ $method == HEAD ]] || head --bytes 2000 "$work/body" 2>/dev/null | mask >>"$transcript"
}

header() {
  # A 100 comes with headers of its own: the last value counts.
  sed -n -E "s/^$1: *//Ip" "$work/headers" | tr -d '\r' | tail -n 1
}

# vpc METHOD REGION PATH [OPTION...]; `code` is the error's.
vpc() {
  local method=$1 region=$2 path=$3 joint='?'
  shift 3
  [[ $path != *\?* ]] || joint='&'
  send "$method" "${vpc_address//\{region\}/$region}/v1/$path$joint$version" "$@"
  code=$(jq --raw-output '.errors[0].code? // ""' "$work/body" 2>/dev/null || true)
}

# s3 METHOD KEY [OPTION...]; `code` is the error's.
s3() {
  local method=$1 key=$2
  shift 2
  send "$method" "$store_address/$bucket/$key" "$@"
  code=$(sed -n -E 's#.*<Code>([^<]*)</Code>.*#\1#p' "$work/body" 2>/dev/null | head -n 1 || true)
}

# Answer of a request: its status, and the code of its error.
answer() {
  printf '%s' "$status${code:+ $code}"
}

# The keys below a prefix, one on a line.
keys() {
  s3 GET "?list-type=2&prefix=$1"
  [[ $status == 200 ]] || return 1
  { grep --only-matching '<Key>[^<]*</Key>' "$work/body" || true; } | sed -E 's#</?Key>##g'
}

remove_objects() {
  local key found
  if ! found=$(keys "$1"); then
    leave "objects s3://$bucket/$1*" "they can't be listed ($(answer)); delete them in the console"
    return
  fi
  for key in $found; do
    s3 DELETE "$key"
    if [[ $status == 20? ]]; then say "removed  s3://$bucket/$key"; else leave "s3://$bucket/$key" "DELETE gives $(answer)"; fi
  done
}

remove_upload() {
  s3 DELETE "$1"
  [[ $status == 204 || $code == NoSuchUpload ]] || leave "an upload" "snapferry uploads abort, DELETE gives $(answer)"
}

# Removes something that a command of the program lists and deletes: KIND NAME-OR-ID REGION.
remove_named() {
  local kind=$1 name=$2 region=$3
  if ! "$snapferry" "$kind" list --region "$region" --json >"$work/list" 2>"$work/err"; then
    leave "$kind $name" "snapferry $kind delete $name --region $region (it can't be listed)"
  elif jq --exit-status --slurp --arg name "$name" 'flatten | any(.name == $name or .id == $name)' "$work/list" >/dev/null; then
    if "$snapferry" "$kind" delete "$name" --region "$region" --yes >"$work/out" 2>"$work/err" </dev/null; then
      say "removed  $kind $name in $region"
    else
      mask <"$work/err" >>"$transcript"
      leave "$kind $name" "snapferry $kind delete $name --region $region"
    fi
  fi
}

remove_snapshot() {
  remove_named snapshot "$1" "$vpc_region"
}

# The image by its id: its name may be another's by now. A job that did not come to its end removes its own.
remove_image() {
  [[ -s $work/replicated ]] || return 0
  remove_named images "$(jq --raw-output .image.id "$work/replicated")" "$recovery_region"
}

# A job that did not come to its end has a volume, an upload or an image that only it knows.
remove_job() {
  local job
  [[ -s $work/replicate.err && ! -s $work/replicated ]] || return 0
  job=$(jq --raw-output --raw-input 'fromjson? | .job // empty' "$work/replicate.err" | head -n 1)
  [[ -n $job ]] || return 0
  if "$snapferry" replicate --abandon "$job" --yes >"$work/out" 2>"$work/err" </dev/null; then
    say "removed  what job $job has made"
  else
    mask <"$work/err" >>"$transcript"
    leave "job $job" "snapferry replicate --abandon $job"
  fi
}
