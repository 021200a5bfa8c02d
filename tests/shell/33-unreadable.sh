#!/bin/sh
# The databases of a backup cannot be read any more. If the disk has lost a block (below btrfs, which reports EIO for it), the backup is
# damaged: prune keeps another one, restore passes over it, no later backup uses the lost file. If the reason is another one (one error
# that passes, too many open files, too little memory), the verification fails, and nothing is noted.
. "$(dirname -- "$0")/lib.sh"

# list_of ID: its line in the list.
list_of() {
  chainweb-backup list --backup-directory "$backups" --columns all | grep "^$1 "
}

is_damaged() {
  list_of "$1" | grep -q DAMAGED
}

make_one() {
  chainweb-backup make --backup-pact --database-directory node --backup-directory "$backups" --reserve-bytes 0 --log-level error "$@"
}

# lose FILE [all]: makes a block of a file on the volume unreadable: one that no other file has, or with `all` one that deleted files
# may have had too.
lose() {
  sync -f "$volume"
  python3 - "$DIR/btrfs.img" "$@" <<'END' && umount "$volume" && mount -o loop "$DIR/btrfs.img" "$volume"
import mmap, sys
with open(sys.argv[1], "r+b") as image, open(sys.argv[2], "rb") as file:
    disk, content = mmap.mmap(image.fileno(), 0), file.read()
    for at in sorted(range(0, len(content), 4096), key=lambda at: abs(at - len(content) // 2)):
        block = content[at:at + 4096]
        where = disk.find(block) if len(block) > 500 and len(set(block)) > 50 else -1
        places = []
        while where >= 0:
            places.append(where)
            where = disk.find(block, where + 1)
        if places and (len(places) == 1 or len(sys.argv) > 3):
            for place in places:
                disk[place + 100] ^= 1
            disk.flush()
            sys.exit(0)
sys.exit("no block of %s is on the disk once" % sys.argv[2])
END
}

on_btrfs() {
  backups=$volume/backups
  make_one >out
  older=$(cat out)
  demo-node --database-directory node --blocks 5 --rate 0 --delay-ms 0 --exit-when-done --disable-backup-api --service-port 0 \
    --fill 2000000 >node2.log 2>&1 </dev/null
  make_one --pact-method copy >out
  newer=$(cat out)
  status 'an older backup is good' 0 chainweb-backup verify --backup-directory "$backups" "$older" --deep
  status 'so is a newer one' 0 chainweb-backup verify --backup-directory "$backups" "$newer" --deep
  cp -a "$backups" kept

  check 'a block of a Pact database is lost' lose "$backups/$newer/0/sqlite/pact-v1-chain-0.sqlite"
  check 'nobody can read it' sh -c "! cat '$backups/$newer/0/sqlite/pact-v1-chain-0.sqlite' >/dev/null 2>cat.err"
  has 'with the error of a lost sector' cat.err 'Input/output error'
  status 'verify without --deep does not read it' 0 chainweb-backup verify --backup-directory "$backups" "$newer"
  status 'a restore of it fails' 1 chainweb-backup restore --backup-directory "$backups" "$newer" --to out.d
  has 'it says what to do' err 'verify --deep tells whether the backup is damaged'
  check 'and leaves nothing' [ ! -e out.d/0 ]
  rm -f "$backups/$newer/0/sqlite/BLAKE2SUMS"
  start serve.log chainweb-backup serve --database-directory node --backup-directory "$backups" --enable-backup-api --log-level debug
  tries=0
  until is_damaged "$newer" || [ "$tries" -gt 500 ]; do tries=$((tries + 1)) && sleep 0.02; done
  stop TERM
  check 'a service finds it while it computes the checksums' is_damaged "$newer"
  rm -f "$backups/$newer/verified.json"
  status 'verify --deep: it is damaged' 13 chainweb-backup verify --backup-directory "$backups" "$newer" --deep
  has 'it names the file and the reason' err '0/sqlite/pact-v1-chain-0.sqlite: the disk cannot read it'
  check 'that is noted' is_damaged "$newer"
  status 'restore latest takes the older one' 0 chainweb-backup restore --backup-directory "$backups" latest --to out.d
  has 'it says so' out "$older"
  status 'prune' 0 chainweb-backup prune --backup-directory "$backups" --keep-last 1
  status 'the older one is kept' 0 chainweb-backup verify --backup-directory "$backups" "$older" --deep

  make_one >out
  older=$(cat out)
  make_one >out
  newest=$(cat out)
  shared=$(find "$backups/$newest/0/rocksDb" -name '*.sst' -links +1 | head -n 1)
  check 'backups share an SST' [ -n "$shared" ]
  check 'a block of it is lost' lose "$shared" all
  status 'verify --deep: the backup is damaged' 13 chainweb-backup verify --backup-directory "$backups" "$newest" --deep
  has 'it names the SST' err "$(basename "$shared"): the disk cannot read it"
  check 'that is noted in the other one, too' is_damaged "$older"
  make_one >out
  last=$(cat out)
  status 'the next backup has a copy of its own' 0 chainweb-backup verify --backup-directory "$backups" "$last" --deep
}

if ! python3 -c '' 2>python.err; then
  echo "1..0 # SKIP python3 is missing: $(tail -n 1 python.err)" && exit 0
fi
node node --chains 2 --fill 4000000
volume=$DIR/btrfs
mounts=$volume
mkdir "$volume"
if truncate -s 400M btrfs.img && { mkfs.btrfs -q btrfs.img && mount -o loop btrfs.img "$volume"; } >volume.log 2>&1; then
  on_btrfs
  unmount_all
else
  skip 'a disk that loses blocks' "btrfs cannot be made and mounted here: $(tail -n 1 volume.log)"
fi

# An error that passes. A node of a network that the start-up proof knows.
backups=$DIR/b
rm -rf node
node node --fill 3000000
demo-node --database-directory node --blocks 5 --rate 0 --delay-ms 0 --exit-when-done --disable-backup-api --service-port 0 \
  --fill 4000000 >node3.log 2>&1 </dev/null
make_one >out
id=$(cat out)
cp -a b whole
status 'a node starts from the backup' 0 chainweb-backup verify --backup-directory b "$id" --deep
has 'as is proved' out 'a node starts from it'
# read_fails N: the N-th reading of a file of the databases fails; leaves $fired and $got. None fails if N is 0.
read_fails() {
  got=0
  rm -rf b shim.log shim.log.count
  cp -a whole b
  env LD_PRELOAD="$DIR/shim.so" SHIM_DIR="$DIR/b/$id/0" SHIM_GROUP=read SHIM_N="$1" SHIM_ERRNO=5 SHIM_LOG="$DIR/shim.log" \
    chainweb-backup verify --backup-directory b "$id" --deep >out 2>err </dev/null || got=$?
  fired=$(grep -c '^fired' shim.log)
  codes="$codes $got"
  case $got in 0 | 1) ;; *) problems="$problems; read $1: $got, $(tail -n 1 out err | tr '\n' ' ')" ;; esac
  ! list_of "$id" | grep -qE 'DAMAGED|DOES NOT START' || problems="$problems; read $1: $(list_of "$id")"
}
if cc -shared -fPIC -O1 -Wall -Wextra -o shim.so "$ROOT/tests/shell/errno-shim.c" 2>cc.log; then
  n=0 fired=1 problems='' codes=''
  while [ "$fired" -gt 0 ] && [ "$n" -lt 400 ]; do
    n=$((n + 1 + n / 20))
    read_fails "$n"
  done
  # The last ones are those of the heights, and of the start-up proof.
  read_fails 0
  reads_count=$(grep -c '^call' shim.log)
  n=$((reads_count - 400))
  while [ "$n" -lt "$reads_count" ]; do
    n=$((n + 3))
    read_fails "$n"
  done
  check 'one error that passes is no damage' [ -z "$problems" ]
  [ -z "$problems" ] || echo "#${problems#;}" | tr ';' '\n' | sed 's/^ */# /'
  check 'some of them made the verification fail' [ "${codes#*1}" != "$codes" ]
  echo "# reads failed one at a time: $(echo "$codes" | wc -w)"
else
  skip 'an error that passes' "cc cannot compile errno-shim.c: $(tail -n 1 cc.log)"
fi

# judge LIMIT: a verification under a limit, which ended with $got, may have failed, but has found no damage.
judge() {
  [ "$got" -eq 0 ] || failed=$((failed + 1))
  [ "$got" -ne 13 ] || problems="$problems; $1: $(cat out err | head -n 3 | tr '\n' ' ')"
  ! list_of "$id" | grep -qE 'DAMAGED|DOES NOT START' || problems="$problems; $1: $(list_of "$id")"
}

# judged NAME: what all of them have found.
judged() {
  check "$1" [ -z "$problems" ]
  [ -z "$problems" ] || echo "#${problems#;}" | tr ';' '\n' | sed 's/^ */# /'
  check 'some limits made the verification fail' [ "$failed" -gt 0 ]
}

# Too few descriptors.
problems='' failed=0
for limit in 8 10 12 14 16 18 20 22 24 26 28 30 32 36 40 48 64; do
  rm -rf b
  cp -a whole b
  got=0
  (ulimit -n "$limit" && exec chainweb-backup verify --backup-directory b "$id" --deep) >out 2>err </dev/null || got=$?
  judge "limit $limit"
done
judged 'too few descriptors are no damage'

# Too little memory: RocksDB aborts.
problems='' failed=0 aborted=0
for limit in 20 30 40 50 60 70 80 90 100 110 120 130 140 160 180 200 250 300; do
  rm -rf b
  cp -a whole b
  got=0
  (ulimit -c 0 && ulimit -v $((limit * 1000)) && exec chainweb-backup verify --backup-directory b "$id" --deep) >out 2>err </dev/null || got=$?
  ! grep -q 'the child process ended with signal: 6' err || aborted=$((aborted + 1))
  judge "$limit MB"
done
judged 'too little memory is no damage'
echo "# $failed limits of memory were too small, the child aborted with $aborted of them"
end
