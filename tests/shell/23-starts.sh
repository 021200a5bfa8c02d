#!/bin/sh
# The start-up proof: it is made with each backup, shown by every command, and says what the node then does. A backup from which a node
# does not start is never `latest`, and no other backup is deleted because of it.

. "$(dirname -- "$0")/lib.sh"

# Without RocksDB nothing is proved.
if [ "$(chainweb-backup starts . 0 x 2>&1 | grep -c 'built without RocksDB')" -gt 0 ]; then
  node db --chains 3
  status 'a backup' 0 chainweb-backup make --database-directory db --backup-directory b --backup-pact --log-level error
  has 'it says that the start is not known' "b/$(cat out)/starts.json" '"verdict":"unknown"'
  chainweb-backup list --backup-directory b --columns all >list
  has 'list says why' list 'start unknown: this program was built without RocksDB'
  end
fi

# make [FLAG...]: leaves the identifier in $id.
make() {
  chainweb-backup make --database-directory db --backup-directory b --log-level warn "$@" >out 2>err
  id=$(cat out)
}

# shown TEXT: whether list has it in the row of the newest backup.
shown() {
  chainweb-backup list --backup-directory b --columns all | sed -n 2p | grep -qF -- "$1"
}

# listed FIELD: a field of the proof of the newest backup, in JSON.
listed() {
  chainweb-backup list --backup-directory b --json | sed -n "s/^ *\"$1\": *\"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}\$/\1/p" | head -n 1
}

node db --chains 3
make --backup-pact
good=$id
is 'the proof is made with the backup' "$(listed verdict)" yes
check 'list has the blocks' shown 'starts at block 20, 0 to replay'
is 'list --json has the cut' "$(listed cut_height)" 60
status 'verify is 0' 0 chainweb-backup verify --backup-directory b latest
has 'it says how a node starts' out "$good: a node starts from it, at block 20, 0 to replay"
status 'verify --deep is 0' 0 chainweb-backup verify --backup-directory b latest --deep
has 'it says the same' out 'a node starts from it'
status 'restore --dry-run' 0 chainweb-backup restore --backup-directory b latest --to new --dry-run
has 'it has the proof' out 'a node starts from it'
check 'it writes nothing' [ ! -e new ]

make
check 'without Pact list says nothing' [ "$(chainweb-backup list --backup-directory b --columns all | sed -n 2p | grep -c start)" -eq 0 ]
has 'the reason is in the file' "b/$id/starts.json" 'no Pact databases'
status 'verify is 0, too' 0 chainweb-backup verify --backup-directory b "$id"
has 'and says why it does not know' out 'unknown: the backup has no Pact databases'
rm -rf "b/$id"

make --backup-pact --verify none
check 'without verification there is no proof' [ ! -e "b/$id/starts.json" ]
rm -rf "b/$id"

# The node's own database has the fault: the backup is a copy of it, with the note that a node does not start from it.
cp -a db whole
demo-node plant --fault missing-outputs --height 20 --chain 1 db >planted
rm db/0/sqlite/pact-v1-chain-1.sqlite
make --backup-pact
is 'the backup is done' "$(cat "b/$id/status")" backup-done
has 'the log names the first fault' err 'the outputs of block 20'
check 'list says it' shown 'DOES NOT START: the outputs of block 20'
is 'list --json has the verdict' "$(listed verdict)" no
status 'verify is 13' 13 chainweb-backup verify --backup-directory b "$id"
has 'it names the fault' out 'A NODE DOES NOT START from it: the outputs of block 20'
status 'latest is the one before' 0 chainweb-backup restore --backup-directory b latest --to restored
has 'it is that one' out "restored $good"
has 'the other was passed over' err 'backup passed over'
status 'a restore by the identifier' 0 chainweb-backup restore --backup-directory b "$id" --to doubtful
has 'it warns' err 'a node does not start from it'
status 'the node does not start, indeed' 1 demo-node --database-directory doubtful --blocks 0 --exit-when-done \
  --disable-backup-api --service-port 0
has 'for that reason' err 'chain 1: outputs of block 20'
status 'but from the other' 0 demo-node --database-directory restored --blocks 0 --exit-when-done --disable-backup-api \
  --service-port 0
status 'prune keeps the other one' 0 chainweb-backup prune --backup-directory b --keep-last 1 --dry-run
has 'as the last good one' out "$good: kept (last good)"
has 'and would delete this one' out "$id: would be deleted"
cp -a b alone && rm -rf "alone/$good"
status 'prune of it alone' 0 chainweb-backup prune --backup-directory alone --keep-last 1
has 'deletes nothing' out 'a node does not start from it, but there is no good one'

start serve.log chainweb-backup serve --database-directory db --backup-directory b --enable-backup-api
http GET /metrics
has 'the metrics say so' body 'chainweb_backup_starts 0'
http GET /list-backups
has 'the list too' body '"verdict":"no"'
# A backup without proof gets one while the service is idle.
rm "b/$id/starts.json"
stop TERM
start serve.log chainweb-backup serve --database-directory db --backup-directory b --enable-backup-api
tries=0
until [ -s "b/$id/starts.json" ] || [ "$tries" -ge 500 ]; do tries=$((tries + 1)) && sleep 0.02; done
has 'the idle service proves it' "b/$id/starts.json" 'the outputs of block 20'
stop TERM

# A node does what the proof says: with Pact behind, ahead, compacted.
rm -rf db && cp -a whole db
demo-node plant --fault pact-ahead db >planted
make --backup-pact
check 'Pact ahead' shown '0 to replay, 1 to rewind'
is 'latest is that' "$(chainweb-backup verify --backup-directory b latest | head -n 1 | cut -d: -f1)" "$id"
rm -rf db && cp -a whole db
demo-node plant --fault missing-chain --chain 2 db >planted
make --backup-pact
check 'Pact missing' shown '20 to replay'
rm -rf db && cp -a whole db
for database in db/0/sqlite/*.sqlite; do
  sqlite3 "$database" 'DELETE FROM BlockHistory WHERE blockheight < 18'
done
make --backup-pact
status 'verify of a compacted Pact' 0 chainweb-backup verify --backup-directory b "$id"
has 'it names the flag' out 'a node starts from it with --no-full-historic-pact-state'
rm -rf db && cp -a whole db
demo-node plant --fault missing-tip db >planted
make --backup-pact
status 'verify of a cut without its tip' 0 chainweb-backup verify --backup-directory b "$id"
has 'the newest cut is passed over' err 'the newest cut cannot be used'
end
