#!/bin/sh
# Delta pairs of Pact, on the file system of the test: backups of a running node, each read by the program, by the node, by b2sum, by the
# sqlite3 command line as root and as another user; carried by rsync, tar and cp; restored, also by hand; removed in any order; the
# process killed at random moments. BACKUPS says how many (6), KILLS how many times the program is killed (12), SEED when.
. "$(dirname -- "$0")/lib.sh"

BACKUPS=${BACKUPS:-6} KILLS=${KILLS:-12} SEED=${SEED:-$(date +%s)}
backups=$DIR/backups
echo "# seed $SEED"

# make_one [FLAG...]: a backup by the command line; leaves $made.
make_one() {
  chainweb-backup make --database-directory node --backup-directory "$backups" --backup-pact --reserve-bytes 0 \
    --pact-method delta "$@" >out 2>err
  code=$?
  made=$(cat out)
}

# methods ID: how its databases came, each once.
methods() {
  grep -o '"method": "[a-z-]*"' "$backups/$1/backup.json" | sort -u | tr '\n' ' '
}

# good ID [DIRECTORY]: whether everything that reads a backup finds it good.
good() {
  chainweb-backup verify --backup-directory "${2:-$backups}" "$1" --deep >verified 2>&1 &&
    demo-node verify --expect-chains 3 "${2:-$backups}/$1" >verified 2>&1
}

# state ID: everything that a reader could change in its databases.
state() {
  (cd "$backups/$1/0/sqlite" && find . -printf '%p %y %i %s %m %n %T@\n' | sort && cat -- *.sqlite *-wal | b2sum)
}

database() {
  echo "$backups/$1/0/sqlite/pact-v1-chain-0.sqlite"
}

start node.log demo-node --database-directory node --chains 3 --fill 60000000 --rate 4 --disable-backup-api
node_pid=$pid
make_one
is 'the first backup is a copy' "$code $(methods "$made")" '0 "method": "raw-copy" '
first=$made
is 'which is read only' "$(stat -c %a "$(database "$first")")" 444
# guard ID: the modes of the guards.
guard() {
  stat -c %a "$backups/$1/0/sqlite/"*-shm | sort -u
}
while [ "$(ls "$backups" | wc -l)" -lt "$BACKUPS" ]; do
  make_one
  is 'the next one has pairs' "$code $(methods "$made")" '0 "method": "delta" '
  check 'it is good' good "$made"
  is 'its guards are read only' "$(guard "$made")" 555
done
is 'all have the same base' "$(stat -c %h "$(database "$made")")" "$BACKUPS"
base_bytes=$(stat -c %s "$(database "$made")")
wal_bytes=$(stat -c %s "$(database "$made")-wal")
check "the last one took $wal_bytes bytes for a database of $base_bytes" [ "$wal_bytes" -lt $((base_bytes / 4)) ]
chainweb-backup list --backup-directory "$backups" --columns all >list
has 'list tells what was written' list "Pact: delta pairs on the files of $first"

status 'it verifies' 0 chainweb-backup verify --backup-directory "$backups" "$made"
has 'the start-up proof reads pairs' out 'a node starts from it'
status 'a restore' 0 chainweb-backup restore --backup-directory "$backups" "$made" --to restored
status 'is whole' 0 demo-node verify --expect-chains 3 restored
is 'it has ordinary files' "$(ls restored/0/sqlite | tr '\n' ' ')" 'pact-v1-chain-0.sqlite pact-v1-chain-1.sqlite pact-v1-chain-2.sqlite '
is 'with the mode of the node'\''s' "$(stat -c %a restored/0/sqlite/pact-v1-chain-0.sqlite)" "$(stat -c %a node/0/sqlite/pact-v1-chain-0.sqlite)"
status 'a drill passes' 0 chainweb-backup drill --backup-directory "$backups" "$made"

# A damaged record: whatever its numbers are, they are added up, and the damage is found.
mkdir forged
cp -a "$backups/$made" forged
sed -i 's/"bytes": [0-9]*/"bytes": 18446744073709551615/' "forged/$made/backup.json"
check 'there are numbers to add up' [ "$(grep -c 18446744073709551615 "forged/$made/backup.json")" -ge 4 ]
for words in 'verify --deep' verify 'restore --to other --dry-run' 'restore --to other'; do
  # shellcheck disable=SC2086 # a word each
  status "$words with a damaged record" 13 chainweb-backup $words --backup-directory forged "$made"
done
rm -rf forged

question='SELECT count(*), max(blockheight), group_concat(hex(hash)) FROM BlockHistory; PRAGMA integrity_check;'
if command -v sqlite3 >/dev/null; then
  sqlite3 restored/0/sqlite/pact-v1-chain-0.sqlite "$question" >expected
  state "$made" >before
  status 'sqlite3 reads a pair' 0 sqlite3 "$(database "$made")" "$question"
  check 'and finds what is in the restored database' cmp -s out expected
  for change in 'DELETE FROM BlockHistory' 'VACUUM' 'PRAGMA journal_mode=DELETE; CREATE TABLE x (y)'; do
    sqlite3 "$(database "$made")" "$change" >out 2>err
    check "it cannot: $change" [ -s err ]
  done
  sqlite3 "$(database "$made")" 'PRAGMA wal_checkpoint(TRUNCATE)' >out 2>err
  state "$made" >after
  check 'it has changed nothing, not even as root' cmp before after
  if [ "$(id -u)" -eq 0 ] && command -v setpriv >/dev/null; then
    chmod 755 "$DIR"
    setpriv --reuid 65534 --regid 65534 --clear-groups sqlite3 "$(database "$made")" "$question" >out 2>err
    check 'nor has another user, who reads the same' cmp -s out expected
  else
    skip 'another user reads a pair' 'only root can become another user'
  fi
else
  skip 'sqlite3 reads pairs' 'there is no sqlite3'
fi

status 'checksums' 0 chainweb-backup sum --backup-directory "$backups" "$made"
check 'b2sum agrees' sh -c "cd '$backups/$made/0/sqlite' && b2sum --quiet -c BLAKE2SUMS"
is 'of both files of each pair' "$(wc -l <"$backups/$made/0/sqlite/BLAKE2SUMS")" 6

# By hand, as the manual says.
mkdir by-hand && cp -a "$backups/$made/0" by-hand/ && rmdir by-hand/0/sqlite/*-shm && chmod u+w by-hand/0/sqlite/*
status 'a copy by hand is whole' 0 demo-node verify --expect-chains 3 by-hand
status 'a node starts on it, and goes on' 0 demo-node --database-directory by-hand --blocks 3 --rate 0 --exit-when-done \
  --disable-backup-api --service-port 0
status 'and leaves it whole' 0 demo-node verify --expect-chains 3 by-hand
check 'the backup is as it was' good "$made"

# carried NAME: the copy of the backup directory of this name has good backups.
carried() {
  status "$1: quickly verified" 0 chainweb-backup verify --backup-directory "$1" "$made"
  check "$1: good" good "$made" "$1"
  check "$1: so is the first one" good "$first" "$1"
}
if command -v rsync >/dev/null; then
  rsync -aH "$backups/" by-rsync
  carried by-rsync
  is 'by-rsync: it has the base once' "$(stat -c %h "by-rsync/$made/0/sqlite/pact-v1-chain-0.sqlite")" "$BACKUPS"
  rsync -aH --exclude rocksDb "$backups/" pact-only
  make_one
  rsync -aH --exclude rocksDb --stats "$backups/" pact-only >stats
  travelled=$(sed -n 's/^Total transferred file size: \([0-9,]*\) bytes/\1/p' stats | tr -d ,)
  check "the next backup sends $travelled bytes" [ "$travelled" -lt $((base_bytes / 2)) ]
  rm -rf by-rsync pact-only
else
  skip 'rsync carries pairs' 'there is no rsync'
fi
mkdir by-tar && tar -C "$backups" -cf backups.tar . && tar -C by-tar -xf backups.tar
carried by-tar
cp -a "$backups" by-cp
carried by-cp
# Without times and links a backup is still good, but no base any more.
cp -r "$backups" plain
carried plain
rm -rf by-tar by-cp plain backups.tar

rm -rf "${backups:?}/$first"
check 'without the one that wrote the base, the last one is good' good "$made"
status 'prune keeps what it must' 0 chainweb-backup prune --backup-directory "$backups" --keep-last 2
is 'and deletes the others' "$(ls "$backups" | wc -l)" 2
check 'the last one is still good' good "$made"

killed=0
while [ "$killed" -lt "$KILLS" ]; do
  chainweb-backup make --database-directory node --backup-directory "$backups" --backup-pact --reserve-bytes 0 \
    --pact-method delta >out 2>err &
  making=$!
  sleep "$(awk -v seed="$((SEED + killed))" 'BEGIN { srand(seed); rand(); print rand() * 0.6 }')"
  kill -9 "$making" 2>/dev/null
  wait "$making" 2>/dev/null
  killed=$((killed + 1))
done
make_one
is "after $KILLS kills the next one has pairs" "$code $(methods "$made")" '0 "method": "delta" '
faults=''
for id in $(ls "$backups"); do
  [ "$(cat "$backups/$id/status")" != backup-done ] || good "$id" || faults="$faults $id: $(tail -n 1 verified)"
done
is 'whatever is called done is good' "$faults" ''

# A node that is started in a backup by mistake: it owns RocksDB's files there, but not the base of the other backups.
kept=$made
make_one
timeout 60 demo-node --database-directory "$backups/$made" --blocks 3 --rate 0 --exit-when-done --disable-backup-api --service-port 0 \
  >mistake.log 2>&1 </dev/null
check 'a node in a backup cannot write to its Pact databases' [ $? -ne 0 ]
check 'the other backups are as they were' good "$kept"
rm -rf "${backups:?}/$made"

kill "$node_pid" && wait "$node_pid" 2>/dev/null
pids=''
make_one
is 'also of a stopped node' "$code $(methods "$made")" '0 "method": "delta" '
check 'which is good' good "$made"

if [ "$(id -u)" -eq 0 ] && command -v setpriv >/dev/null; then
  chmod 755 "$DIR"
  cp "$(command -v chainweb-backup)" program
  cp -a node theirs && mkdir their-backups && chown -R 65534:65534 theirs their-backups
  as_user() {
    setpriv --reuid 65534 --regid 65534 --clear-groups "$@"
  }
  before_umask=$(umask)
  for n in 0 077 000 027 002; do
    umask "$n"
    as_user ./program make --database-directory theirs --backup-directory their-backups \
      --backup-pact --reserve-bytes 0 --pact-method delta >out 2>err || echo "# $(tail -n 1 err)"
  done
  umask "$before_umask"
  backups=$DIR/their-backups made=$(cat out)
  is 'as the node'\''s user' "$(methods "$made")" '"method": "delta" '
  check 'which is good' good "$made"
  is 'its guards are read only, whatever the umask' "$(stat -c %a "$backups"/*/0/sqlite/*-shm | sort -u)" 555
  removed=$(ls "$backups" | sed -n 2p)
  check 'the user can remove one by hand' as_user rm -rf "$backups/$removed"
  check 'it is gone' [ ! -e "$backups/$removed" ]
  check 'copy one by hand' as_user cp -a "$backups/$made" "$backups/copy"
  check 'and remove that' as_user rm -rf "$backups/copy"
  status 'delete one' 0 as_user ./program delete --backup-directory their-backups "$(ls "$backups" | sed -n 2p)"
  status 'and prune them' 0 as_user ./program prune --backup-directory their-backups --keep-last 1
  is 'nothing is left of the others' "$(ls -A "$backups" | grep -vx -e .lock -e .service | tr '\n' ' ')" "$made "
  check 'the last one is still good' good "$made"
  chown -R 0:0 theirs
  chown -R 12345:23456 theirs
  chainweb-backup make --database-directory theirs --backup-directory owned --backup-pact --reserve-bytes 0 --pact-method delta >out 2>err
  chainweb-backup make --database-directory theirs --backup-directory owned --backup-pact --reserve-bytes 0 --pact-method delta >out 2>err
  is 'as root: everything of a pair follows the owner' \
    "$(find "owned/$(cat out)/0/sqlite" \( ! -uid 12345 -o ! -gid 23456 \))" ''
else
  skip 'pairs as the node'\''s user' 'only root can become another user'
fi
end
