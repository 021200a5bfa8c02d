#!/bin/sh
# Increments of Pact on xfs and btrfs, which are mounted from images: backups of a running node, each verified by the program, by the
# node, by b2sum and by a restore; removed in any order; the program killed at random moments. BACKUPS is their number (8), KILLS the
# number of kills (12), SEED the seed of the moments.
. "$(dirname -- "$0")/lib.sh"

BACKUPS=${BACKUPS:-8} KILLS=${KILLS:-12} SEED=${SEED:-$(date +%s)}

# volume KIND: an empty file system of this kind, mounted at $volume.
volume() {
  volume=$DIR/$1
  mounts="$volume $mounts"
  mkdir "$volume" && truncate -s 1G "$1.img" && "mkfs.$1" -q "$1.img" && mount -o loop "$1.img" "$volume"
}

# make_one: a backup by the command line; leaves $made.
make_one() {
  chainweb-backup make --database-directory node --backup-directory "$backups" --backup-pact --reserve-bytes 0 "$@" >out 2>err
  code=$?
  made=$(cat out)
}

# methods ID: how its databases came, each once.
methods() {
  grep -o '"method": "[a-z-]*"' "$backups/$1/backup.json" | sort -u | tr '\n' ' '
}

# good ID: whether everything that reads a backup finds it good.
good() {
  chainweb-backup verify --backup-directory "$backups" "$1" --deep >verified 2>&1 &&
    demo-node verify --expect-chains 3 "$backups/$1" >verified 2>&1
}

# used: the bytes that the volume holds.
used() {
  sync -f "$volume"
  df -B1 --output=used "$volume" | tail -n 1
}

increments_on() {
  start node.log demo-node --database-directory node --chains 3 --fill 40000000 --rate 10 --disable-backup-api
  node_pid=$pid
  make_one
  is "$1: the first backup is a copy" "$code $(methods "$made")" '0 "method": "raw-copy" '
  first=$made
  before=$(used)
  while [ "$(ls "$backups" | wc -l)" -lt "$BACKUPS" ]; do
    make_one
    is "$1: the next one is an increment" "$code $(methods "$made")" '0 "method": "increment" '
    check "$1: it is good" good "$made"
  done
  echo "# $1: the first backup and what else is there take $before bytes, the $((BACKUPS - 1)) increments $(($(used) - before))"
  chainweb-backup list --backup-directory "$backups" --columns all >list
  has "$1: list tells what was written" list "Pact: increment of $first"
  rm -rf "${backups:?}/$first"
  check "$1: without the first one the last one is good" good "$made"
  status "$1: its checksums" 0 chainweb-backup sum --backup-directory "$backups" "$made"
  check "$1: b2sum agrees" sh -c "cd '$backups/$made/0/sqlite' && b2sum --quiet -c BLAKE2SUMS"
  status "$1: a restore" 0 chainweb-backup restore --backup-directory "$backups" "$made" --to restored
  status "$1: is whole" 0 demo-node verify --expect-chains 3 restored
  cp -a "$backups/$made" by-hand
  status "$1: so is a copy by hand" 0 demo-node verify --expect-chains 3 by-hand
  make_one --pact-method copy
  is "$1: a copy where one is asked for" "$code $(methods "$made")" '0 "method": "raw-copy" '
  killed=0
  while [ "$killed" -lt "$KILLS" ]; do
    chainweb-backup make --database-directory node --backup-directory "$backups" --backup-pact --reserve-bytes 0 >out 2>err &
    making=$!
    sleep "$(awk -v seed="$((SEED + killed))" 'BEGIN { srand(seed); rand(); print rand() * 0.6 }')"
    kill -9 "$making" 2>/dev/null
    wait "$making" 2>/dev/null
    killed=$((killed + 1))
  done
  make_one
  is "$1: after $KILLS kills the next one is an increment" "$code $(methods "$made")" '0 "method": "increment" '
  faults=''
  for id in $(ls "$backups"); do
    [ "$(cat "$backups/$id/status")" != backup-done ] || good "$id" || faults="$faults $id: $(tail -n 1 verified)"
  done
  is "$1: whatever is called done is good" "$faults" ''
  kill "$node_pid" && wait "$node_pid" 2>/dev/null
  pids=''
  make_one
  is "$1: also of a stopped node" "$code $(methods "$made")" '0 "method": "increment" '
  check "$1: which is good" good "$made"
  # The sums of another backup, which may have come with its databases.
  cp "$backups/$made/pact-sums.json" kept.sums
  other=$(ls -d "$backups"/*/pact-sums.json | grep -v "/$made/" | tail -n 1)
  cp "$other" "$backups/$made/pact-sums.json"
  status "$1: the sums of another backup are damage" 13 chainweb-backup verify --backup-directory "$backups" "$made" --deep
  has "$1: it says whose they are" err "it is that of backup $(basename "$(dirname "$other")")"
  cp kept.sums "$backups/$made/pact-sums.json"
  check "$1: with its own it is good again" good "$made"
  rm -rf node restored by-hand
}

echo "# seed $SEED"
for kind in xfs btrfs; do
  if volume "$kind" >volume.log 2>&1; then
    backups=$volume/backups
    increments_on "$kind"
  else
    skip "increments on $kind" "it cannot be made and mounted here: $(tail -n 1 volume.log)"
  fi
done
end
