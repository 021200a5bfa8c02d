#!/bin/sh
# doctor: it finds nothing if nothing is wrong, and each of some twenty planted faults, with its remedy, and changes nothing. status: one
# screen about the same.
. "$(dirname -- "$0")/lib.sh"

# doctor [FLAG...]: leaves $got and the lines in `out`. The port is one at which nothing listens, unless FLAGs name another.
doctor() {
  got=0
  chainweb-backup doctor --database-directory db --enable-backup-api --node-version 2.31 --service-port "$port" "$@" >out 2>err </dev/null || got=$?
}

# finds NAME CODE HEALTH ABOUT TEXT: the last run ended with CODE, and has a line of this health about that, with the text.
finds() {
  is "$1: the exit code" "$got" "$2"
  check "$1: $3 about $4" grep -qE "^$3 +$4 .*$5" out
  grep -qE "^$3 +$4 .*$5" out || { echo "# it said:" && sed 's/^/#   /' out err; }
}

free=1 port=1
node db
(find db -type f -exec b2sum {} + | sort -k 2) >before

doctor
finds 'a node without a backup' 0 warning backups 'no good backup yet: make one'
finds 'the databases' 0 ok databases '20 Pact databases'
finds 'a stopped node' 0 '(ok|warning)' node ''
finds 'no service' 0 warning service "no service listens on 127.0.0.1:$free"
check 'there is no fault' sh -c '! grep -q ^fault out'
(find db -type f ! -path '*/.chainweb-backup-pin/*' -exec b2sum {} + | sort -k 2) >after
check 'no database is changed' cmp -s before after
check 'no backup directory was made' [ ! -e db/backups ]

status 'a backup' 0 chainweb-backup make --backup-pact --database-directory db --log-level error
id=$(cat out)
doctor
finds 'a backup that was never restored' 0 warning backups 'it was never restored'
chainweb-backup drill --backup-directory db/backups latest >out 2>err
doctor
finds 'a good backup' 0 ok backups '1 good ones'
is 'the JSON has as many findings' "$(chainweb-backup doctor --json --database-directory db --enable-backup-api --node-version 2.31 \
  --service-port "$free" 2>err | grep -o '"about":' | wc -l)" "$(wc -l <out)"

status 'status with a good backup' 0 chainweb-backup status --database-directory db
has 'it has the backup' out "newest good   $id"
has 'what a node does' out 'a node        starts from it at block 20, 0 to replay'
has 'the drill' out 'restored as a drill'
has 'the number of backups' out '1 good, 0 damaged'
status 'status without backups' 2 chainweb-backup status --database-directory before --backup-directory nosuch

# A list fits on a terminal, whatever there is to say; the columns that are named are whole.
status 'a backup that fails' 12 chainweb-backup make --database-directory db --reserve-bytes 900TB --log-level off
failed=$(cat out)
status 'a backup that will be damaged' 0 chainweb-backup make --database-directory db --backup-pact --verify none --log-level error
damaged=$(cat out)
truncate -s 1 "db/backups/$damaged/0/sqlite/pact-v1-chain-0.sqlite"
status 'it is damaged' 13 chainweb-backup verify --database-directory db "$damaged"
status 'the list' 0 chainweb-backup list --database-directory db
is 'has these columns' "$(head -n 1 out | tr -s ' ')" 'ID STATUS AGE SCOPE SIZE NOTE'
is 'no line is longer than 80' "$(awk 'length > 80' out)" ''
check 'the failed one has its reason' grep -q "^$failed backup-failed .* not enough space.*\.\.\.$" out
check 'the damaged one has its damage' grep -q "^$damaged backup-done .* DAMAGED in" out
check 'the good one has how a node starts' grep -q "^$id backup-done .* starts at" out
status 'a list with all columns' 0 chainweb-backup list --database-directory db --columns all
is 'has these' "$(head -n 1 out | tr -s ' ')" 'ID STATUS AGE STARTED (UTC) SCOPE SIZE EXCLUSIVE HEIGHT NOTE'
check 'no note is cut off' grep -q "^$failed .* not enough space: the backup needs .* must stay free, but only " out
chainweb-backup delete --database-directory db "$failed" "$damaged" >/dev/null
status 'a list with few columns' 0 chainweb-backup list --database-directory db --columns height,id
is 'they are in that order' "$(tr -s ' ' <out | tr '\n' ',')" "HEIGHT ID, 20 $id,"
status 'a column that does not exist' 2 chainweb-backup list --database-directory db --columns id,nosuch

start serve.log chainweb-backup serve --database-directory db --enable-backup-api
port=${address##*:}
doctor
finds 'a service that answers' 0 ok service "a service answers at 127.0.0.1:$port"
stop TERM
start node.log demo-node --database-directory running --chains 2 --rate 5 --disable-backup-api
port=${address##*:}
doctor
finds 'another program has the port' 1 fault service 'give the service another port'
port=$free
got=0
chainweb-backup doctor --database-directory running --service-port "$free" >out 2>err || got=$?
finds 'a running node' 0 ok node 'its lock is seen'
has 'that the API is off' out 'the backup API is off'
stop TERM

# Faults of the databases.
chainweb-backup doctor --database-directory nosuch --service-port "$free" >out 2>err
got=$?
finds 'no such directory' 1 fault databases 'there is no RocksDB in nosuch'
chainweb-backup doctor --database-directory before --service-port "$free" >out 2>err
got=$?
finds 'a file in its place' 1 fault databases 'there is no RocksDB'
fresh() {
  rm -rf "$DIR/db" && cp -a "$DIR/whole" "$DIR/db"
}
cp -a db whole
rm -rf db/0/sqlite
doctor
finds 'no Pact' 0 warning databases 'there are no Pact databases'
fresh
options=$(ls db/0/rocksDb/OPTIONS-* | tail -n 1)
sed -i 's/recycle_log_file_num=0/recycle_log_file_num=4/' "$options"
doctor
finds 'recycled WALs' 1 fault options 'set recycle_log_file_num to 0'
fresh
sed -i "s|^\[DBOptions\]|&\n  wal_dir=$DIR/wals|" "$options"
mkdir -p wals && mv db/0/rocksDb/*.log wals/
doctor
finds 'WALs elsewhere' 1 fault options 'its WAL is elsewhere'
fresh
printf 'restore half done' >db/0/rocksDb/CURRENT
printf '{}' >db/0/rocksDb/.restore-journal.json
doctor
check 'a database that cannot be opened is a fault' [ "$got" -eq 1 ]
fresh
touch -d '3 hours' db/0/rocksDb/CURRENT
doctor
finds 'a node in the future' 1 fault clock 'seconds in the future'
fresh

# Faults of the backup directory.
doctor --backup-directory db/0/rocksDb/backups
finds 'backups among the databases' 1 fault directory "among the node's own files"
doctor --backup-directory before
finds 'a file as backup directory' 1 fault directory 'is a file; name a directory'
id=$(ls db/backups)
printf 'DAMAGED' >"db/backups/$id/status"
doctor
finds 'a backup that cannot be read' 1 fault backups 'cannot be read'
fresh
rm "db/backups/$id/0/sqlite/pact-v1-chain-3.sqlite"
status 'verify finds it' 13 chainweb-backup verify --backup-directory db/backups "$id"
status 'status with no good one' 1 chainweb-backup status --database-directory db
has 'there is none' out 'newest good   none'
doctor
finds 'a damaged backup' 1 fault backups "the newest one, $id, is damaged"
fresh
sed -i 's/"verdict":"yes"/"verdict":"no","reason":"a header is missing"/' "db/backups/$id/starts.json"
doctor
finds 'one from which no node starts' 1 fault backups 'a node does not start'
fresh

# Limits.
(ulimit -n 40 && exec chainweb-backup doctor --database-directory db --service-port "$free") >out 2>err
got=$?
finds 'too few descriptors' 1 fault limits 'ulimit -n'
(ulimit -f 1000 && exec chainweb-backup doctor --database-directory db --service-port "$free") >out 2>err
got=$?
finds 'files may not be large' 1 fault limits 'ulimit -f'
doctor --reserve-bytes 100TB
finds 'no room' 1 fault room 'delete old backups'

if [ "$(id -u)" -eq 0 ]; then
  chmod 0700 db db/0 && chmod 0600 db/0/rocksDb/* db/0/sqlite/*
  mkdir -p other && chmod 777 other && chmod 755 "$DIR"
  program=$(command -v chainweb-backup)
  cp "$program" program && chmod 755 program
  setpriv --reuid 65534 --regid 65534 --clear-groups ./program doctor --database-directory db --service-port "$free" >out 2>err
  got=$?
  finds 'another user may not read the databases' 1 fault databases "run as the node's user or as root"
  chmod 0755 db db/0 db/0/rocksDb
  setpriv --reuid 65534 --regid 65534 --clear-groups ./program doctor --database-directory db --service-port "$free" --backup-directory other \
    >out 2>err
  got=$?
  finds 'or only some of its files' 1 fault databases "run as the node's user or as root"
  chmod 644 db/0/rocksDb/*
  setpriv --reuid 65534 --regid 65534 --clear-groups ./program doctor --database-directory db --service-port "$free" >out 2>err
  got=$?
  finds 'or Pact not at all' 1 fault rights "run as the node's user or as root"
  finds 'or may not write backups' 1 fault directory "make it the node's user's"
  if mkdir small && mount -t tmpfs -o size=1m none small 2>mount.err; then
    mounts=$DIR/small
    doctor --backup-directory small/backups
    finds 'a small disk' 1 fault room 'must stay free'
    finds 'on another mount' 1 ok links 'another mount'
    mount -o remount,ro small
    doctor --backup-directory small/backups
    finds 'a disk that is read-only' 1 fault directory 'cannot write to'
    unmount_all
  else
    skip 'a small disk' "nothing can be mounted: $(cat mount.err)"
  fi
else
  skip 'another user' 'this is not root'
fi
end
