#!/bin/sh
# The image of scripts/container/Dockerfile, built for real and run beside a node in another container. TAP. As root.
#
#   container.sh [FEATURES]    FEATURES are cargo's flags for the build (--no-default-features; `full` for none, which compiles RocksDB)
#
# There need be no Docker and no registry: the base images are made from Debian's packages (debootstrap) and this machine's Rust, under the
# names that the Dockerfile has, and buildah builds and runs. It isolates by chroot: the containers have their own files and users, and the
# host's network and process numbers. The layouts of volumes are those of scripts/container: the whole database directory, a volume at `0`,
# two volumes below it. In each: the flags of compose.yml or kubernetes.yml, as the user of the node, without capabilities, with a token; a
# backup by curl from outside, the health check of the image, a restore by a third container, and the node's history in it.
. "$(dirname -- "$0")/../shell/lib.sh"

FEATURES=${1:---no-default-features}
[ "$FEATURES" != full ] || FEATURES=''
[ "$(id -u)" -eq 0 ] || { echo 'Bail out! run this as root' && exit 1; }
for program in buildah debootstrap; do
  command -v "$program" >/dev/null || { apt-get -q update && apt-get -q -y install --no-install-recommends buildah debootstrap; } >apt.log 2>&1
done
b() { buildah --storage-driver vfs --root "$DIR/images" --runroot "$DIR/run" "$@"; }
run_in() { b run --isolation chroot "$@"; }

# The base images.
debootstrap --variant=minbase bookworm "$DIR/debian" >debootstrap.log 2>&1 || { echo "Bail out! $(tail -n 1 debootstrap.log)" && exit 1; }
cp /etc/apt/sources.list.d/* "$DIR/debian/etc/apt/sources.list.d/" 2>/dev/null
printf 'FROM scratch\nADD debian.tar /\n' >base
tar -C debian -cf debian.tar . && rm -rf debian
status 'the base image' 0 b bud -q -t docker.io/library/debian:bookworm-slim -f base .
printf '%s\n' 'FROM docker.io/library/debian:bookworm-slim' \
  'RUN apt-get update && apt-get install --yes --no-install-recommends build-essential ca-certificates' \
  "ENV PATH=$HOME/.cargo/bin:/usr/sbin:/usr/bin:/sbin:/bin" >rust
status 'an image with Rust' 0 b bud -q --isolation chroot -t docker.io/library/rust:1-bookworm -f rust .
sed 's/^/# /' err | tail -n 3

# Ours.
began=$(date +%s)
got=0
b bud --isolation chroot --volume "$HOME/.cargo:$HOME/.cargo" --volume "$HOME/.rustup:$HOME/.rustup" --build-arg "FEATURES=$FEATURES" \
  -f "$ROOT/scripts/container/Dockerfile" --ignorefile "$ROOT/scripts/container/Dockerfile.dockerignore" -t chainweb-backup "$ROOT" >build.log 2>&1 || got=$?
is 'the image is built' "$got" 0
[ "$got" -eq 0 ] || { tail -n 20 build.log | sed 's/^/# /' && end; }
echo "# built in $(($(date +%s) - began)) s"
b inspect --type image chainweb-backup >inspect.json
is 'its user is nobody' "$(sed -n 's/^ *"User": "\(.*\)",*$/\1/p' inspect.json | sort -u | head -n 1)" 65534:65534
has 'it has a health check' "$ROOT/scripts/container/Dockerfile" HEALTHCHECK

container=$(b from chainweb-backup)
root_of=$(b mount "$container")
find "$root_of" -xdev -newer inspect.json ! -path "$root_of/proc*" >before
umask 077
head -c 32 /dev/urandom | base64 >token
umask 022
user=4711:4711
chown "$user" token

# flags FILE: those of the program in that file, a line each.
flags() {
  sed -n 's/^ *- \(--.*\)$/\1/p' "$1" | grep -v -e '--database-directory' -e '--backup-directory' -e '--auth-token-file'
}

# layout NAME FILE DATABASES VOLUME...: VOLUME is a host directory and where both containers have it.
layout() {
  layout=$1 file=$2 databases=$3
  shift 3
  volumes=''
  for volume in "$@"; do volumes="$volumes --volume $volume"; done
  rm -rf node backups
  mkdir -p node/0/rocksDb node/0/sqlite backups
  chown -R "$user" node backups
  node_container=$(b from docker.io/library/debian:bookworm-slim)
  cp "$BIN/demo-node" "$(b mount "$node_container")/usr/local/bin/"
  rm -f node.address
  mkdir -p shared && chmod 777 shared && rm -f shared/*
  # shellcheck disable=SC2086 # several words
  run_in --user "$user" $volumes --volume "$DIR/shared:/shared" "$node_container" -- demo-node --database-directory "$databases" --chains 3 \
    --rate 5 --disable-backup-api --service-port 0 --address-file /shared/node >node.log 2>&1 &
  node_pid=$! pids="$pids $!"
  tries=0
  until [ -s shared/node ] || [ "$tries" -gt 300 ]; do tries=$((tries + 1)) && sleep 0.1; done
  # shellcheck disable=SC2046,SC2086 # several words
  run_in --user "$user" --cap-drop ALL $volumes --volume "$DIR/backups:/backup" --volume "$DIR/shared:/shared" --volume "$DIR/token:/secret/token:ro" \
    "$container" -- chainweb-backup serve --database-directory "$databases" --backup-directory "${place:-/backup/chainweb}" ${pin:-} \
    --auth-token-file /secret/token --service-port 0 --address-file /shared/address $(flags "$file" | tr '\n' ' ') >serve.log 2>&1 &
  pid=$! pids="$pids $!"
  tries=0
  until [ -s shared/address ] || [ "$tries" -gt 600 ]; do tries=$((tries + 1)) && sleep 0.1; done
  address=127.0.0.1:$(sed -n '1s/.*://p' shared/address)
  printf 'Authorization: Bearer %s\n' "$(cat token)" >header
  http GET /health-check
  is "$layout: health without a token" "$code" 200
  http POST '/make-backup?backupPact'
  is "$layout: no backup without a token" "$code" 401
  tries=0
  until demo-node verify node >verified 2>&1 || [ "$tries" -gt 50 ]; do tries=$((tries + 1)) && sleep 0.2; done
  http POST '/make-backup?backupPact' -H @header
  id=$(cat body)
  is "$layout: a backup" "$code" 200
  tries=0
  while http GET "/check-backup/$id" -H @header && [ "$(cat body)" = backup-in-progress ] && [ "$tries" -lt 600 ]; do tries=$((tries + 1)) && sleep 0.1; done
  is "$layout: it is done" "$(cat body)" backup-done
  [ "$(cat body)" = backup-done ] || sed 's/^/# /' serve.log
  # shellcheck disable=SC2086 # several words
  run_in --user "$user" $volumes --volume "$DIR/backups:/backup" --volume "$DIR/shared:/restored" "$container" -- \
    chainweb-backup restore "$id" --backup-directory "${place:-/backup/chainweb}" --to /restored/restored >restore.log 2>&1
  is "$layout: restored by another container" "$(demo-node verify --expect-chains 3 shared/restored 2>&1 | grep -c '^ok:')" 1
  kill "$pid" "$node_pid" 2>/dev/null
  pkill -TERM -u "${user%:*}" 2>/dev/null
  wait "$pid" "$node_pid" 2>/dev/null
  pids=''
  rm -rf shared
}

layout 'the whole directory' "$ROOT/scripts/container/compose.yml" /data/db "$DIR/node:/data/db"
pin='' layout 'a volume at 0' "$ROOT/scripts/container/kubernetes.yml" /data/chainweb-db "$DIR/node/0:/data/chainweb-db/0"
pin='--pin-directory /data/chainweb-db/0/rocksDb' layout 'two volumes' "$ROOT/scripts/container/kubernetes.yml" /data/chainweb-db \
  "$DIR/node/0/rocksDb:/data/chainweb-db/0/rocksDb" "$DIR/node/0/sqlite:/data/chainweb-db/0/sqlite"
find "$root_of" -xdev -newer inspect.json ! -path "$root_of/proc*" >after
# buildah makes the mount points.
is 'it wrote nothing but to its volumes' "$(diff before after | sed -n "s|^> $root_of||p" |
  grep -vxE '|/(run|backup|shared|secret|secret/token|restored|data(/(db|chainweb-db(/0(/(rocksDb|sqlite))?)?))?)' | tr '\n' ' ')" ''
end
