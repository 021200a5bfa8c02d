#!/bin/sh
# A restored backup of a node that kept writing is a database like any other: Debian's RocksDB 7.8 and sqlite3 find the node's data in
# it, and the demo node and those tools can write to it. On the backup's own file system (SSTs are links), on tmpfs, on another xfs
# (copies) and on the backup's own xfs (the other files share blocks). No matter which program writes there, the backup does not
# change by a byte.
# Those tools cannot read the SSTs of the demo node's newer RocksDB. So its first blocks are in the WAL until ldb makes SSTs of them,
# and the later ones are in the WAL only; with --try_load_options=false they ignore its options file.
. "$(dirname -- "$0")/lib.sh"

for tool in ldb sst_dump sqlite3 b2sum; do
  command -v "$tool" >/dev/null || { echo "1..0 # SKIP there is no $tool: install rocksdb-tools and sqlite3" && exit 0; }
done

mount_point=$DIR/mnt mounts=$DIR/mnt
mkdir "$mount_point"

# ldb_of DIRECTORY ARGUMENT...
ldb_of() {
  database=$1/0/rocksDb
  shift
  ldb --db="$database" --try_load_options=false "$@" 2>&1
}

# entries DIRECTORY: all of RocksDB, sorted.
entries() {
  ldb_of "$1" scan --hex | sort
}

# blocks DIRECTORY: the keys of RocksDB for the blocks that Pact knows.
blocks() {
  for database in "$1"/0/sqlite/*.sqlite; do
    chain=${database##*-} chain=${chain%.sqlite}
    sqlite3 "$database" "SELECT '0x' || hex('-BlockHeader/$chain/header\$') || printf('%016X', blockheight) || hex(hash)
      FROM BlockHistory"
  done | sort
}

# names DIRECTORY: its SSTs.
names() {
  find "$1/0/rocksDb" -name '*.sst' -printf '%f\n' | sort
}

# blocks_are_good DIRECTORY: reads every SST of RocksDB; no block may be bad.
blocks_are_good() {
  sst_dump --file="$1/0/rocksDb" --command=verify --verify_checksum >sst.out 2>&1
  is "$where: sst_dump finds every SST good" "$(grep -c 'The file is ok' sst.out) $(grep -ci corrupt sst.out)" \
    "$(names "$1" | wc -l) 0"
}

# sound DIRECTORY: the result of SQLite's integrity check for every Pact database.
sound() {
  for database in "$1"/0/sqlite/*.sqlite; do sqlite3 "$database" 'PRAGMA integrity_check' 2>&1; done | tr '\n' ' '
}

# data DIRECTORY: the files that a restore brings.
data() {
  (cd "$1/0" && find . -type f ! -name BLAKE2SUMS -exec b2sum {} + | sort -k 2)
}

# everything DIRECTORY: contents, owners, modes and times of a backup, without the notes of a verification.
everything() {
  (cd "$1" && find . -mindepth 1 ! -name verified.json -printf '%p %y %s %m %U %G %T@\n' | sort &&
    find . -type f ! -name verified.json -exec sha256sum {} + | sort -k 2)
}

# unchanged WHO
unchanged() {
  everything "$backup" >backup.now
  check "$where: $1, and the backup is as it was" diff backup.list backup.now
}

# shared ONE OTHER: the files that are written to and that both directories have. No program ever writes to an SST.
shared() {
  find "$1/0" ! -type d \( ! -type f -o ! -name '*.sst' -links +1 \) -printf '%P is no file of its own\n'
  find "$1/0" "$2/0" -type f ! -name '*.sst' -printf '%D %i\n' | sort | uniq -d
}

# grown: waits until the running node has some more blocks.
grown() {
  goal=$(($(cat progress) + 5)) tries=0
  until [ "$(cat progress)" -ge "$goal" ] || [ "$tries" -ge 1000 ]; do
    tries=$((tries + 1))
    sleep 0.02
  done
}

# height FILE: that of a verification.
height() {
  sed -n 's/^ok: cut height \([0-9]*\),.*/\1/p' "$1"
}

# restore TO
restore() {
  status "$where: it is restored" 0 chainweb-backup restore --backup-directory "${backup%/*}" latest --to "$1"
  is "$where: it shares no file that is written to" "$(shared "$1" "$backup")" ''
}

# opened WHERE BACKUP PARENT: restores it twice below the parent: for the node, and for other tools that write to it.
opened() {
  where=$1 backup=$2 read=$3/read written=$3/written
  everything "$backup" >backup.list
  mkdir -p "$3"
  restore "$read"
  linked=$(find "$read" -name '*.sst' -links +1 | wc -l)
  if [ "$(stat -c %d "$read")" = "$(stat -c %d "$backup")" ]; then
    is "$where: SSTs are links" "$linked" "$(names "$backup" | wc -l)"
  else
    is "$where: SSTs are copies" "$linked" 0
  fi
  if [ "$where" = 'xfs itself' ]; then
    # 0x2000 says shared.
    check "$where: Pact shares blocks with the backup" sh -c \
      "xfs_io -r -c 'fiemap -v' '$read/0/sqlite/pact-v1-chain-0.sqlite' | grep -q ' 0x20[0-9a-f]*$'"
  fi

  # The other tools read it first, before any other program has opened it.
  is "$where: it has no checksums of its own" "$(find "$read" -name BLAKE2SUMS)" ''
  for part in rocksDb sqlite; do
    check "$where: the backup's checksums hold for its $part" \
      sh -c "cd '$read/0/$part' && b2sum --quiet --strict -c '$backup/0/$part/BLAKE2SUMS'"
  done
  data "$read" >data.before
  is "$where: ldb finds it consistent" "$(ldb_of "$read" checkconsistency)" OK
  blocks_are_good "$read"
  # The MANIFEST names its SSTs, and no other.
  ldb_of "$read" list_live_files_metadata | sed -n 's,^.*/\([0-9]*\.sst\)$,\1,p' | sort >live.now
  names "$read" >names.now
  check "$where: ldb finds the SSTs that are there" cmp live.now names.now
  is "$where: the MANIFEST can be dumped" \
    "$(ldb --db="$read/0/rocksDb" manifest_dump 2>&1 | grep -c '^ [0-9]*:[0-9]*\[')" "$(names "$read" | wc -l)"
  entries "$read" >entries.now
  rm -rf copy && mkdir copy && cp -a "$backup/0" copy/
  entries copy >entries.backup
  check "$where: ldb scans all that the backup has" cmp entries.backup entries.now
  is "$where: and nothing that the node has not" "$(comm -13 entries.node entries.now | wc -l)" 0
  for wal in "$read"/0/rocksDb/*.log; do ldb dump_wal --walfile="$wal"; done 2>&1 |
    grep -o 'PUT(0) : 0x[0-9A-F]*' | sed 's/.* //' | sort -u >keys.wal
  sed 's/ : .*//' entries.now | sort >keys.now
  check "$where: there is a WAL with something in it" [ -s keys.wal ]
  is "$where: which ldb finds" "$(comm -23 keys.wal keys.now | wc -l)" 0
  is "$where: sqlite3 finds Pact sound" "$(sound "$read")" 'ok ok ok '
  blocks "$read" >blocks.now
  check "$where: Pact knows blocks of every chain" [ "$(cut -c 1-30 blocks.now | uniq | wc -l)" -eq 3 ]
  is "$where: each of them is in RocksDB" "$(comm -23 blocks.now keys.now | wc -l)" 0
  data "$read" >data.now
  check "$where: to read it changes nothing" diff data.before data.now

  # The demo node writes to it, and flushes and compacts what is there.
  status "$where: demo-node verify accepts it" 0 demo-node verify --expect-chains 3 "$read"
  before=$(height out)
  check "$where: the node had gone on" [ "$(height node.verified)" -gt "$before" ]
  node "$read" --payload-bytes 5000 --write-buffer-bytes 100000
  check "$where: the node wrote SSTs" [ "$(names "$read")" != "$(names "$backup")" ]
  status "$where: it is accepted after that" 0 demo-node verify --expect-chains 3 "$read"
  check "$where: with more blocks" [ "$(height out)" -ge "$((before + 20))" ]
  is "$where: sqlite3 finds Pact sound after that" "$(sound "$read")" 'ok ok ok '
  unchanged 'a node wrote to it'

  # The other tools write to the second one.
  restore "$written"
  is "$where: ldb puts a key" "$(ldb_of "$written" put "-BlockPayload\$other" 'by ldb')" OK
  ldb_of "$written" compact >compact.log
  names "$backup" >names.backup
  names "$written" >names.now
  is "$where: ldb compacts it, and every SST is new" "$(comm -12 names.backup names.now)" ''
  blocks_are_good "$written"
  is "$where: the key is there" "$(ldb_of "$written" get "-BlockPayload\$other")" 'by ldb'
  entries "$written" >entries.now
  is "$where: all others are too" "$(comm -23 entries.backup entries.now)" ''
  is "$where: and nothing else" "$(comm -13 entries.backup entries.now | wc -l)" 1
  for database in "$written"/0/sqlite/*.sqlite; do
    sqlite3 "$database" "CREATE TABLE other (x); INSERT INTO other VALUES ('by sqlite3'); VACUUM; SELECT x FROM other;"
  done >sqlite.out 2>&1
  is "$where: sqlite3 writes to Pact, every page" "$(grep -c '^by sqlite3$' sqlite.out) $(wc -l <sqlite.out)" '3 3'
  is "$where: sqlite3 finds it sound" "$(sound "$written")" 'ok ok ok '
  status "$where: demo-node verify accepts what they wrote" 0 demo-node verify --expect-chains 3 "$written"
  unchanged 'others wrote to it'
  status "$where: the backup is good, every byte" 0 chainweb-backup verify --backup-directory "${backup%/*}" latest --deep
  rm -rf "$3"
}

# make_backup NAME DIRECTORY: leaves $made.
make_backup() {
  status "$1, beside the running node" 0 \
    chainweb-backup make --backup-pact --database-directory node --backup-directory "$2"
  made=$2/$(cat out)
}

# A node with a history, in SSTs that all of these tools can read; then one that keeps writing.
node node --chains 3 --fill 3000000 --write-buffer-bytes 64000000
ldb_of node compact --file_size=200000 --write_buffer_size=200000 >compact.log
check 'ldb makes SSTs of its blocks' [ "$(names node | wc -l)" -ge 4 ]
truncate -s 400M xfs.img
mounted=yes
if ! mkfs.xfs -q -m reflink=1 xfs.img >mkfs.log 2>&1 || ! mount -o loop xfs.img "$mount_point" 2>mount.log; then
  mounted=''
fi
start source.log demo-node --database-directory node --rate 100 --write-buffer-bytes 64000000 \
  --progress-file progress --disable-backup-api
grown
make_backup 'a backup on the same file system' "$DIR/backups"
here=$made
[ -z "$mounted" ] || { make_backup 'a backup on xfs' "$mount_point/backups" && there=$made; }
grown
stop TERM
for place in "$here" ${mounted:+"$there"}; do
  status 'it gets its checksums' 0 chainweb-backup sum --backup-directory "${place%/*}" latest
done
status 'the node is whole' 0 demo-node verify node
cp out node.verified
entries node >entries.node
data node >node.list

opened 'same file system' "$here" "$DIR/same"
if SHM=$(mktemp -d /dev/shm/chainweb-backup-test.XXXXXX 2>/dev/null); then
  opened tmpfs "$here" "$SHM/other"
else
  SHM=''
  skip 'restored on tmpfs' 'there is no /dev/shm to write to'
fi
if [ -n "$mounted" ]; then
  opened 'xfs from elsewhere' "$here" "$mount_point/other"
  opened 'xfs itself' "$there" "$mount_point/same"
else
  skip 'restored on xfs' "it cannot be made and mounted here: $(tail -n 1 mkfs.log mount.log 2>/dev/null | tail -n 1)"
fi
data node >node.now
check 'the node whose SSTs were linked is as it was' diff node.list node.now

# The check finds a single link, hard or symbolic.
from=$here/0/rocksDb
for file in "$from"/CURRENT "$from"/MANIFEST-* "$from"/*.log "$here"/0/sqlite/pact-v1-chain-1.sqlite; do
  for how in -f -sf; do
    rm -rf planted && mkdir planted && cp -a "$here/0" planted/
    planted=$(shared planted "$here")
    ln "$how" "$file" "planted${file#"$here"}"
    is "ln $how of ${file##*/} is noticed" "${planted:-none}, then $(shared planted "$here" | sed 's/ .*//;q')" \
      "none, then ${file#"$here"/0/}"
  done
done
end
