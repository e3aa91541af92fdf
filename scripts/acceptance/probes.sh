# Part of scripts/acceptance.sh: requests whose answers the simulated cloud assumes. The second argument of each `expect` is what it
# answers; a test runs this script against it, so that the two can't drift apart. Nothing here makes anything that is billed but a few
# small objects, which are removed.
# shellcheck shell=bash disable=SC2154 # variables of acceptance.sh, status and code of cloud.sh

# CRC64NVME of "small" and a line's end, as bytes from the highest on, in Base64.
small_crc64='D1QC4m3x1rc='

# Entity tag of the last answer, with its quotation marks.
tag() {
  header etag
}

# Body of a completion: NUMBER TAG...
parts() {
  local xml='<CompleteMultipartUpload>'
  while (($#)); do
    xml+="<Part><PartNumber>$1</PartNumber><ETag>$2</ETag></Part>"
    shift 2
  done
  printf '%s</CompleteMultipartUpload>' "$xml"
}

probe_vpc() {
  local nowhere='{"name":"snapferry-acceptance","source_volume":{"id":"r006-00000000-0000-4000-8000-000000000000"}}'
  say "== probes of the VPC API in $vpc_region"
  vpc GET "$vpc_region" 'instances?limit=1'
  expect "VPC: a list" 200 "$(answer)"
  vpc GET "$vpc_region" 'instances?limit=101'
  expect "VPC: a page of 101" "400 bad_field" "$(answer)"
  vpc GET "$vpc_region" instances/0717_00000000-0000-4000-8000-000000000000
  expect "VPC: a server that is not there" "404 instance_id_not_found" "$(answer)"
  vpc GET "$recovery_region" images/r014-00000000-0000-4000-8000-000000000000
  expect "VPC: an image that is not there" "404 image_id_not_found" "$(answer)"
  vpc GET "$recovery_region" "images?name=$name"
  expect "VPC: a name that no image has" "200 0" "$status $(jq '.images | length' "$work/body")"
  vpc POST "$vpc_region" snapshots --header 'Content-Type: application/json' --data '{"name":"Not_A_Name","source_volume":{"id":"x"}}'
  expect "VPC: a snapshot with a name that is none" "400 validation_invalid_name" "$(answer)"
  vpc POST "$vpc_region" snapshots --header 'Content-Type: application/json' --data "$nowhere"
  expect "VPC: a snapshot of a volume that is not there" "404 volume_id_not_found" "$(answer)"
  vpc DELETE "$vpc_region" volumes/r006-00000000-0000-4000-8000-000000000000
  expect "VPC: deleting a volume that is not there" "404 volume_id_not_found" "$(answer)"
  # Without the token, which curl would take from its file.
  mv "$work/authorization" "$work/kept"
  printf 'Authorization: Bearer nonsense\n' >"$work/authorization"
  vpc GET "$vpc_region" instances
  expect "VPC: a token that is none" 401 "$status"
  mv "$work/kept" "$work/authorization"
}

probe_store() {
  local key=$name/probe upload first large
  undo+=("remove_objects $name/")
  say "== probes of Object Storage at bucket $bucket"
  printf 'small\n' >"$work/small"
  head --bytes $((5 << 20)) /dev/zero >"$work/large"

  s3 GET "$key"
  expect "store: an object that is not there" "404 NoSuchKey" "$(answer)"
  s3 PUT "$key" --upload-file "$work/small" --header 'x-amz-checksum-crc64nvme: AAAAAAAAAAA='
  expect "store: a wrong CRC64NVME" "400 BadDigest" "$(answer)"
  s3 PUT "$key" --upload-file "$work/small" --header 'Content-MD5: AAAAAAAAAAAAAAAAAAAAAA=='
  expect "store: a wrong Content-MD5" "400 BadDigest" "$(answer)"
  s3 PUT "$key" --upload-file "$work/small" --header "x-amz-checksum-crc64nvme: $small_crc64"
  expect "store: a right CRC64NVME" 200 "$(answer)"
  expect "store: PUT echoes the CRC64NVME" "$small_crc64" "$(header x-amz-checksum-crc64nvme)"
  s3 HEAD "$key" --header 'x-amz-checksum-mode: ENABLED'
  expect "store: HEAD echoes the CRC64NVME" "$small_crc64" "$(header x-amz-checksum-crc64nvme)"
  expect "store: kind of that checksum" FULL_OBJECT "$(header x-amz-checksum-type)"
  s3 GET "$key" --range 0-1
  expect "store: a range" "206 bytes 0-1/6" "$(answer) $(header content-range)"
  s3 GET "$key" --range 6-7
  expect "store: a range behind the end" "416 InvalidRange" "$(answer)"
  s3 PUT "$key" --upload-file "$work/small" --header 'If-None-Match: *'
  expect "store: If-None-Match on an object that is there" "412 PreconditionFailed" "$(answer)"
  s3 DELETE "$key"
  expect "store: DELETE" 204 "$(answer)"
  s3 DELETE "$key"
  expect "store: DELETE of what is gone" 204 "$(answer)"

  s3 POST "$key?uploads" --header 'x-amz-checksum-algorithm: CRC64NVME' --header 'x-amz-checksum-type: FULL_OBJECT'
  expect "store: an upload with CRC64NVME of the whole object" 200 "$(answer)"
  upload=$(sed -n -E 's#.*<UploadId>([^<]*)<.*#\1#p' "$work/body" | head -n 1)
  if [[ -z $upload ]]; then
    skip "multipart uploads" "no upload could be begun"
    return
  fi
  undo+=("remove_upload $key?uploadId=$upload")
  s3 PUT "$key?partNumber=1&uploadId=$upload" --upload-file "$work/small" --header "x-amz-checksum-crc64nvme: $small_crc64"
  expect "store: a part echoes its CRC64NVME" "200 $small_crc64" "$(answer) $(header x-amz-checksum-crc64nvme)"
  first=$(tag)
  s3 PUT "$key?partNumber=10001&uploadId=$upload" --upload-file "$work/small"
  expect "store: part 10001" "400 InvalidArgument" "$(answer)"
  s3 PUT "$key?partNumber=2&uploadId=$upload" --upload-file "$work/large"
  expect "store: a part of 5 MiB" 200 "$(answer)"
  large=$(tag)
  s3 POST "$key?uploadId=$upload" --data "$(parts 1 '"00000000000000000000000000000000"')"
  expect "store: completion with another entity tag" "400 InvalidPart" "$(answer)"
  s3 POST "$key?uploadId=$upload" --data "$(parts 2 "$large" 1 "$first")"
  expect "store: completion in another order" "400 InvalidPartOrder" "$(answer)"
  s3 POST "$key?uploadId=$upload" --data "$(parts 1 "$first" 2 "$large")"
  expect "store: completion with a first part below 5 MiB" "400 EntityTooSmall" "$(answer)"
  s3 DELETE "$key?uploadId=$upload"
  expect "store: an upload is aborted" 204 "$(answer)"
  s3 DELETE "$key?uploadId=$upload"
  expect "store: an upload that is gone is aborted" "404 NoSuchUpload" "$(answer)"
}

# Compares the answers and states in the log of a step with those that the simulated cloud gives: METHOD PATH STATUS, KIND STATE.
check_log() {
  local step=$1 line
  jq --raw-output --raw-input 'fromjson? | select(.message == "answered") | "\(.request) \(.status)"' "$work/$step.err" \
    | sed -E 's#/[a-z-]+/v1/##; s#\b(r[0-9]{3}|[0-9]{4})[-_][0-9a-f-]{36}#ID#g; s#operating_systems/[^ ]+#operating_systems/NAME#' | sort | uniq --count >"$work/answers"
  while read -r _ line; do
    expect "$step: $line" known "$(known_answer "$line")"
  done <"$work/answers"
  jq --raw-output --raw-input 'fromjson? | .message // "" | select(startswith("waiting for "))' "$work/$step.err" \
    | sed -E 's#^waiting for ([a-z]+) [^:]*: ([a-z_]+).*#\1 \2#' | sort --unique >"$work/states"
  while read -r line; do
    expect "$step waits: $line" known "$(known_state "$line")"
  done <"$work/states"
  expect "$step: requests that had to be repeated" 0 \
    "$(jq --raw-output --raw-input 'fromjson? | select(.attempt != null) | .attempt' "$work/$step.err" | wc -l)"
}

known_answer() {
  case $1 in
    'GET '*' 200' | 'POST '*' 201' | 'POST /v3/tags/attach 200' | 'PATCH images/ID 200' | 'PATCH snapshots/ID 200') echo known ;;
    # What is deleted is asked for until it is gone.
    'GET volumes/ID 404' | 'GET instances/ID/volume_attachments/ID 404' | 'GET snapshots/ID 404' | 'GET images/ID 404') echo known ;;
    'DELETE volumes/ID 204' | 'DELETE instances/ID/volume_attachments/ID 204' | 'DELETE snapshots/ID 202' | 'DELETE images/ID 202') echo known ;;
    *) echo unknown ;;
  esac
}

known_state() {
  case $1 in
    'snapshot pending' | 'snapshot stable' | 'snapshot deleting') echo known ;;
    'volume pending' | 'volume available' | 'volume pending_deletion' | 'volume updating') echo known ;;
    'attachment attaching' | 'attachment attached' | 'attachment detaching' | 'attachment deleting') echo known ;;
    'image pending' | 'image available' | 'image deleting') echo known ;;
    *) echo unknown ;;
  esac
}
