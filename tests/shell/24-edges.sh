#!/bin/sh
# Files in wrong places: a link to another user's directory in place of `0`, a note of another backup, files that a node has left in a
# backup, names and hashes that no node writes. Edge cases of a restore: --dry-run has the exit code of the restore; --resume and --undo
# succeed only if they have put the wanted database in place.
. "$(dirname -- "$0")/lib.sh"

make() { chainweb-backup make --log-level error --backup-directory b "$@"; }
list() { chainweb-backup list --backup-directory b "$@"; }
restore() { chainweb-backup restore --backup-directory b "$@"; }

# hold FILE: a process holds RocksDB's LOCK, as a node does, until let_go.
hold() {
  python3 -c 'import fcntl, sys, time
file = open(sys.argv[1], "r+"); fcntl.lockf(file, fcntl.LOCK_EX); open("held", "w").close(); time.sleep(600)' "$1" &
  holder=$! pids="$pids $!"
  until [ -e held ]; do sleep 0.01; done
  rm held
}
let_go() {
  kill "$holder" && wait "$holder" 2>/dev/null
  pids=${pids% "$holder"}
}

# The node's user links to files that only another user may read: root does not copy them into a backup.
if [ "$(id -u)" -eq 0 ]; then
  mkdir -m 700 victim && node victim/db --chains 2 && chown -R 23456 victim
  chmod 755 .
  for place in 0 0/rocksDb 0/sqlite; do
    for way in direct chain; do
      rm -rf user && mkdir -p user/own && ln -s "$DIR/victim/db/$place" user/own/hop && chown -h 12345 user/own/hop
      [ "$place" = 0 ] || mkdir user/0
      [ "$place" != 0/sqlite ] || cp -a victim/db/0/rocksDb user/0/
      [ "$place" != 0/rocksDb ] || cp -a victim/db/0/sqlite user/0/
      # Root has made the first link of the chain, and the node's user the second one.
      [ "$way" = direct ] && ln -s "$DIR/victim/db/$place" "user/$place" && chown -h 12345 "user/$place"
      [ "$way" = chain ] && ln -s "$DIR/user/own/hop" "user/$place"
      chown 12345 user user/own
      status "a $way link to another user's $place" 1 make --backup-pact --database-directory user
      has 'the message names the link' err 'belongs to another user than the directory to which it leads'
      check 'nothing was read from there' [ -z "$(find b -path '*/0/*' -type f 2>/dev/null)" ]
    done
  done
  rm -rf user b && mkdir -p user && chown 12345 user && ln -s "$DIR/victim" user/backups && chown -h 12345 user/backups
  cp -a victim/db/0 user/0 && chown -R 12345 user/0
  status "a link to another user's directory in place of the backup directory" 1 chainweb-backup make --database-directory user
  is 'nothing was made there' "$(ls -A victim | tr '\n' ' ')" 'db db.log '
  for _ in 1 2; do chainweb-backup make --database-directory victim/db --log-level error >made || echo "# $(cat made)"; done
  rm user/backups && ln -s "$DIR/victim/db/backups" user/backups && chown -h 12345 user/backups
  chown 23456 victim/db/backups
  for words in 'prune --keep-last 1' 'delete latest' list; do
    # shellcheck disable=SC2086 # several words
    status "$words in another user's backups" 1 chainweb-backup $words --database-directory user
  done
  is 'no backup of another user is deleted' "$(ls victim/db/backups | wc -l)" 2
  rm user/backups && ln -s "$DIR/victim/db/backups" user/backups
  status 'a link of root to backups' 0 chainweb-backup list --database-directory user
  # The links that operators make.
  rm -rf user && mkdir -p user disk && cp -a victim/db/0 disk/0 && chown -R 12345 user disk/0
  for owner in 0 12345; do
    rm -rf user/0 b && ln -s "$DIR/disk/0" user/0 && chown -h "$owner" user/0
    status "a link of user $owner to a directory of the node's user" 0 make --backup-pact --database-directory user
  done
  rm -rf user b disk victim
else
  skip 'links to other users' 'only root can give files away'
fi

# The note of another backup says nothing of this one.
node db --chains 2
for _ in 1 2 3; do status 'a backup' 0 make --backup-pact --database-directory db; done
first=$(ls b | sed -n 1p) second=$(ls b | sed -n 2p) third=$(ls b | sed -n 3p)
cp -a "b/$first" spare
printf X | dd of="b/$second/0/sqlite/pact-v1-chain-0.sqlite" bs=1 seek=5000 conv=notrunc 2>dd.err
status 'a damaged backup' 13 chainweb-backup verify --backup-directory b "$second" --deep
status 'a good one' 0 chainweb-backup verify --backup-directory b "$first" --deep
status 'a drill' 0 chainweb-backup drill --backup-directory b "$first" --exec sh -c ': {directory}'
cp "b/$first/verified.json" "b/$second/verified.json"
cp "b/$first/drill.json" "b/$second/drill.json"
list --json >list.json
python3 - "$second" <<'END' >seen
import json, sys
backup = next(b for b in json.load(open("list.json")) if b["id"] == sys.argv[1])
print((backup["verified"] or {}).get("faults_count"), backup["drill"])
END
is 'a note that was copied from another backup counts as damage, a drill as none' "$(cat seen)" '1 None'
status 'a verification' 0 chainweb-backup verify --backup-directory b "$third" --deep
sed 's/"id":"[0-9]*",//' "b/$third/verified.json" >old.json
cp old.json "b/$second/verified.json"
list --json >list.json
python3 - "$second" <<'END' >seen
import json, sys
print(next(b["verified"] for b in json.load(open("list.json")) if b["id"] == sys.argv[1])["faults_count"])
END
is 'a note without an identifier, as earlier versions wrote it, is read' "$(cat seen)" 0

# A damaged record: whatever its numbers are, they are added up, and neither the list nor the metrics of all backups are lost.
sed 's/"bytes": [0-9]*/"bytes": 18446744073709551615/' "b/$third/backup.json" >forged.json
check 'there are numbers to add up' [ "$(grep -c 18446744073709551615 forged.json)" -ge 4 ]
for method in '' '"base": "1", "written_bytes": 18446744073709551615, "method": "increment"'; do
  sed "s/\"method\": \"[a-z-]*\"/${method:-&}/" forged.json >"b/$third/backup.json"
  status 'a list with a damaged record' 0 list
  has 'it has the backup' out "$third"
  start serve.log chainweb-backup serve --database-directory db --backup-directory b --enable-backup-api
  http GET /metrics
  is 'metrics with a damaged record' "$code" 200
  has 'of Pact, too' body 'chainweb_backup_pact_written_bytes{method='
  stop TERM
done
rm -rf b

# Files that a node leaves in a backup in which it was started, and files that no node leaves.
node old --chains 3
status 'a backup' 0 make --backup-pact --database-directory db
id=$(ls b)
: >"b/$id/0/rocksDb/LOCK"
echo log | tee "b/$id/0/rocksDb/LOG" >"b/$id/0/rocksDb/LOG.old.1600000000000000"
: >"b/$id/0/rocksDb/$(printf 'a\377b')"
for shape in whole below; do
  rm -rf target && cp -a old target
  [ "$shape" = whole ] || mkdir target/0/other
  status "$shape: a restore of a backup with a LOCK and a LOG" 0 restore "$id" --to target --replace
  status "$shape: it is whole" 0 demo-node verify target
  check "$shape: nothing is half done" [ ! -e target/0/rocksDb/.restore-journal.json ]
done
cp -a db other && cp other/0/sqlite/pact-v1-chain-1.sqlite other/0/sqlite/pact-v1-chain-01.sqlite
sqlite3 other/0/sqlite/pact-v1-chain-01.sqlite 'DELETE FROM BlockHistory' 2>sqlite.err || echo "# $(cat sqlite.err)"
status 'pact-v1-chain-01.sqlite beside the databases' 0 chainweb-backup make --backup-pact --database-directory other --backup-directory c
is 'it is of no chain' "$(python3 -c 'import json,sys
print([part["chain"] for part in json.load(open(sys.argv[1]))["pact"]])' "c/$(ls c)/backup.json")" '[None, 0, 1]'
chainweb-backup list --backup-directory c --json >list.json
is 'a node starts all the same' "$(python3 -c 'import json
starts = json.load(open("list.json"))[0]["starts"]
print(starts["verdict"] if starts["verdict"] != "no" else starts)')" "$(python3 -c 'import json,sys
print(json.load(open(sys.argv[1]))["verdict"])' "b/$id/starts.json")"
for hash in NULL "'text'" "CAST(x'ff00fe' AS TEXT)" "x'00'" 5 1.5 "zeroblob(33)"; do
  rm -rf other c && cp -a db other
  # A copy of the table, because that of the node refuses some of these.
  sqlite3 other/0/sqlite/pact-v1-chain-1.sqlite "CREATE TABLE h AS SELECT * FROM BlockHistory; DROP TABLE BlockHistory;
    ALTER TABLE h RENAME TO BlockHistory; UPDATE BlockHistory SET hash = $hash WHERE blockheight = (SELECT max(blockheight) FROM BlockHistory)"
  status "a hash that is none: $hash" 0 chainweb-backup make --backup-pact --database-directory other --backup-directory c
  status 'its verification ends' 0 chainweb-backup verify --backup-directory c "$(ls c)" --deep
done
for height in NULL "'text'" "x'00'" 1.5 -7; do
  rm -rf other c && cp -a db other
  sqlite3 other/0/sqlite/pact-v1-chain-1.sqlite "CREATE TABLE h AS SELECT * FROM BlockHistory; DROP TABLE BlockHistory;
    ALTER TABLE h RENAME TO BlockHistory; UPDATE BlockHistory SET blockheight = $height WHERE blockheight = (SELECT max(blockheight) FROM BlockHistory)"
  status "a height that is none: $height" 0 chainweb-backup make --backup-pact --database-directory other --backup-directory c
done

# A rehearsal ends as the restore does.
# same NAME WANTED ARGUMENT...
same() {
  label=$1 code=$2
  shift 2
  status "$label: --dry-run" "$code" restore "$id" --to target --dry-run "$@"
  status "$label: the restore" "$code" restore "$id" --to target "$@"
}
rm -rf target && cp -a old target
same 'an old database' 15
hold target/0/rocksDb/LOCK
same 'a running node' 14
same 'a running node, --replace' 14 --replace
let_go
mkdir target/0/other
echo garbage >target/0/rocksDb/.restore-journal.json
same 'a damaged journal' 13
same 'a damaged journal, --replace' 13 --replace
rm target/0/rocksDb/.restore-journal.json
ln -s nowhere target/0/rocksDb/strange
same 'a link among the files' 1 --replace
rm target/0/rocksDb/strange
mkdir target/0/sqlite/.restoring-1600000000000
same 'a part of a restore is not mounted' 1 --replace
rmdir target/0/sqlite/.restoring-1600000000000

# --resume and --undo where nothing is half done.
for way in --resume --undo; do
  status "$way with nothing half done" 10 chainweb-backup restore $way --to target
  has "$way says that nothing was changed" err 'half done'
  mkdir -p empty
  status "$way in a directory without a database" 2 chainweb-backup restore $way --to empty
  status "$way in a database's own directory" 2 chainweb-backup restore $way --to target/0/rocksDb
  status "$way in no directory" 2 chainweb-backup restore $way --to nowhere
done
status 'the old database is whole' 0 demo-node verify target
status 'a restore' 0 restore "$id" --to target --replace
for way in --resume --undo; do
  status "$way after a restore that was finished" 10 chainweb-backup restore $way --to target
done
status 'the new database is whole' 0 demo-node verify target
end
