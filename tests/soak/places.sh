#!/bin/sh
# Long form of tests/shell/20-places.sh: COPIES live copies (200) of a node under load for each layout, to another disk and, if there
# is such a directory, to the databases' own; each is verified. Every tenth time a backup and a restore are killed at a random moment
# before: the next backup leaves no pins, and the next restore succeeds. After each 50 copies the node begins a new history in the same
# place, because a long one takes long to verify. Usage: places.sh [COPIES [SEED]]; needs root. TAP.
ROOT=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
. "$ROOT/tests/shell/lib.sh"
copies=${1:-200} seed=${2:-$(date +%s)} killed=0 restored=0
echo "# seed $seed"
SHM=$(mktemp -d /dev/shm/chainweb-backup-test.XXXXXX) || exit 1

mounted() {
  mkdir -p "$2"
  truncate -s 3G "$2.img" && "mkfs.$1" -q "$2.img" && mount -o loop "$2.img" "$2" || exit 1
  mounts="$DIR/$2 $mounts"
}

random_seconds() {
  awk -v seed="$((seed + count))" -v max="$1" 'BEGIN { srand(seed); rand(); printf "%.3f", rand() * max }'
}

# killed_at_random SECONDS COMMAND...: runs it, and kills it within that time.
killed_at_random() {
  most=$1
  shift
  "$@" >killed.log 2>&1 </dev/null &
  victim=$!
  sleep "$(random_seconds "$most")"
  kill -9 "$victim" 2>/dev/null && killed=$((killed + 1))
  wait "$victim" 2>/dev/null
}

# node_of DATABASE: starts a node with a new history.
node_of() {
  rm -rf "${1:?}"/0/rocksDb/* "$1"/0/sqlite/*
  start node.log demo-node --database-directory "$1" --rate 40 --chains 2 --fill 3000000 --write-buffer-bytes 100000 \
    --fork-percent 20 --disable-backup-api
}

# copied LAYOUT DATABASE OTHER OWN FLAG...: OWN is a directory for backups on the databases' own mount, or none.
copied() {
  layout=$1 database=$2 other=$3 own=$4 turn=0
  shift 4
  node_of "$database"
  while [ "$turn" -lt "$copies" ]; do
    turn=$((turn + 1)) problems='' backups=$other
    [ "$own" = none ] || [ $((turn % 2)) -eq 0 ] || backups=$own
    if [ $((turn % 10)) -eq 0 ]; then
      killed_at_random 0.3 chainweb-backup make --backup-pact --backup-directory "$backups" "$@"
      killed_at_random 0.3 chainweb-backup restore --backup-directory "$backups" latest --to "$SHM/restored" --replace
    fi
    chainweb-backup make --backup-pact --backup-directory "$backups" "$@" >out 2>err || problems="make: $(tail -n 1 err)"
    id=$(cat out)
    verdict=$(demo-node verify --expect-chains 2 "$backups/${id:-none}" 2>&1) || problems="$problems; verify: $verdict"
    left=$(find "$database/." "$database/0/." disk -path '*/.chainweb-backup-pin/*' ! -name .lock 2>/dev/null)
    [ -z "$left" ] || problems="$problems; pins: $left"
    if [ $((turn % 10)) -eq 0 ]; then
      rm -rf "$SHM/restored"/0.bak-*
      chainweb-backup restore --backup-directory "$backups" latest --to "$SHM/restored" --replace >out 2>err ||
        problems="$problems; restore: $(tail -n 1 err)"
      restored=$((restored + 1))
      demo-node verify --expect-chains 2 "$SHM/restored" >out 2>&1 || problems="$problems; restored: $(cat out)"
      rm -rf "$SHM/restored"
      for directory in "$other" "$own"; do
        [ ! -d "$directory" ] || chainweb-backup prune --backup-directory "$directory" --keep-last 2 >out 2>err ||
          problems="$problems; prune: $(cat err)"
      done
    fi
    check "$layout $turn: ${verdict#ok: }" [ -z "$problems" ]
    [ -z "$problems" ] || echo "# $problems"
    if [ $((turn % 50)) -eq 0 ] && [ "$turn" -lt "$copies" ]; then
      stop TERM
      check "$layout: the node is whole" demo-node verify --expect-chains 2 "$database"
      node_of "$database"
    fi
  done
  stop TERM
  check "$layout: the node is whole" demo-node verify --expect-chains 2 "$database"
  rm -rf "$other"
}

mounted ext4 volume/0
copied 'volume at 0' volume "$SHM/volume" volume/0/backups --database-directory volume
mounted xfs two/0/rocksDb
mounted ext4 two/0/sqlite
copied 'two volumes' two "$SHM/two" none --database-directory two --pin-directory two/0/rocksDb
mkdir -p real/0 bound/0
mount --bind real/0 bound/0 && mounts="$DIR/bound/0 $mounts"
copied 'bind mount' bound bound/backups bound/0/backups --database-directory bound
mounted btrfs disk
mkdir -p disk/0 linked && ln -s "$DIR/disk/0" linked/0
copied 'linked 0' linked "$SHM/linked" disk/backups --database-directory linked
mkdir -p parts/0 disk/rocks disk/pact && ln -s "$DIR/disk/rocks" parts/0/rocksDb && ln -s "$DIR/disk/pact" parts/0/sqlite
copied 'linked rocksDb and sqlite' parts "$SHM/parts" disk/more --database-directory parts --pin-directory disk
copied 'directories elsewhere' parts "$SHM/elsewhere" disk/elsewhere --rocksdb-directory disk/rocks --sqlite-directory disk/pact
echo "# $killed processes killed, $restored restores"
end
