#!/bin/bash
# A single-node OpenStack Swift with its s3api on loopback: an S3 server that none of us wrote, for tests and benchmarks.
#
#   scripts/swift-s3.sh start FOLDER    starts it on free ports, waits until it answers, prints its endpoint
#   scripts/swift-s3.sh stop FOLDER     stops it; the folder stays
#
# Needs Debian's swift-proxy swift-account swift-container swift-object memcached (--no-install-recommends will do).
# Keys: access key test:tester, secret testing123, region us-east-1, path style. Exit 3: something that it needs is missing.
set -euo pipefail

usage() {
    sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
    exit 2
}
[ $# -eq 2 ] || usage
command=$1
root=$(realpath -m -- "$2")
etc=$root/etc run=$root/run

stop() {
    local file pid
    for file in "$run"/*.pid; do
        [ -e "$file" ] || continue
        pid=$(cat "$file")
        # Each server leads a session of its own, so its workers go with it.
        kill -TERM -- "-$pid" 2>/dev/null || true
    done
    for file in "$run"/*.pid; do
        [ -e "$file" ] || continue
        pid=$(cat "$file")
        for _ in $(seq 50); do
            kill -0 -- "-$pid" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL -- "-$pid" 2>/dev/null || true
        rm -f "$file"
    done
}

# As many free ports as asked for, all different: each is held until the last is found.
free_ports() {
    python3 - "$1" <<'PY'
import socket, sys
held = [socket.socket() for _ in range(int(sys.argv[1]))]
for s in held:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in held))
PY
}

# launch NAME COMMAND...: in the background, in a session of its own, its words in run/NAME.log
launch() {
    local name=$1
    shift
    setsid "$@" >"$run/$name.log" 2>&1 </dev/null &
    echo $! >"$run/$name.pid"
}

ring() {
    local name=$1 port=$2
    swift-ring-builder "$etc/$name.builder" create 4 1 1
    swift-ring-builder "$etc/$name.builder" add "r1z1-127.0.0.1:$port/d1" 1
    swift-ring-builder "$etc/$name.builder" rebalance
}

storage_conf() {
    local name=$1 port=$2
    cat >"$etc/$name-server.conf" <<CONF
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = $port
devices = $root/devices
mount_check = false
swift_dir = $etc
user = $(id -un)
workers = 1
log_address = /dev/null
# The log socket of syslog may not be there: stderr is our log.
log_name = $name

[pipeline:main]
pipeline = $name-server

[app:$name-server]
use = egg:swift#$name
CONF
}

proxy_conf() {
    local port=$1 memcached=$2
    # copy stands before slo: the other way round a part that is copied from a multipart object is its manifest's JSON.
    cat >"$etc/proxy-server.conf" <<CONF
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = $port
swift_dir = $etc
user = $(id -un)
workers = 2
log_address = /dev/null

[pipeline:main]
pipeline = catch_errors healthcheck cache listing_formats bulk s3api tempauth copy slo dlo proxy-server

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true

[filter:catch_errors]
use = egg:swift#catch_errors
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:$memcached
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:s3api]
use = egg:swift#s3api
s3_acl = false
location = us-east-1
max_upload_part_num = 10000
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing123 .admin
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
max_manifest_segments = 10000
[filter:dlo]
use = egg:swift#dlo
CONF
}

start() {
    local tool proxy account container object memcached
    for tool in swift-proxy-server swift-account-server swift-container-server swift-object-server swift-ring-builder memcached python3 setsid curl; do
        command -v "$tool" >/dev/null || { echo "swift-s3.sh: $tool is not installed" >&2; exit 3; }
    done
    for tool in "$run"/*.pid; do
        [ ! -e "$tool" ] || { echo "swift-s3.sh: $root is in use: stop it first" >&2; exit 1; }
    done
    mkdir -p "$etc" "$run" "$root/devices/d1"
    # Whatever goes wrong from here on, nothing is left running.
    trap stop EXIT
    read -r proxy account container object memcached <<<"$(free_ports 5)"

    cat >"$etc/swift.conf" <<CONF
[swift-hash]
swift_hash_path_suffix = loopback
swift_hash_path_prefix = loopback
[swift-constraints]
max_file_size = 5368709122
CONF
    : >"$etc/container-sharder.conf"
    rm -f "$etc"/*.builder "$etc"/*.ring.gz
    {
        ring account "$account"
        ring container "$container"
        ring object "$object"
    } >"$run/rings.log"
    storage_conf account "$account"
    storage_conf container "$container"
    storage_conf object "$object"
    proxy_conf "$proxy" "$memcached"

    launch memcached memcached -u "$(id -un)" -l 127.0.0.1 -p "$memcached" -U 0 -m 64
    for tool in account container object proxy; do
        SWIFT_DIR=$etc launch "$tool" "swift-$tool-server" "$etc/$tool-server.conf"
    done

    # Ready is: the proxy answers, and so does each of the servers behind it.
    local deadline=$((SECONDS + 30)) port
    for port in "$account" "$container" "$object" "$proxy"; do
        until curl -s -o /dev/null --max-time 2 "http://127.0.0.1:$port/healthcheck"; do
            if [ "$SECONDS" -ge "$deadline" ]; then
                echo "swift-s3.sh: no answer on port $port after 30 s; the logs:" >&2
                tail -n 20 "$run"/*.log >&2
                exit 1
            fi
            sleep 0.1
        done
    done
    trap - EXIT
    echo "http://127.0.0.1:$proxy" | tee "$run/endpoint"
}

case $command in
    start) start ;;
    stop) stop ;;
    *) usage ;;
esac
