#!/bin/sh
# The program without RocksDB: live copies beside a running node, Pact, HTTP, quick verification and restores are the same as those of
# the full program, which can read its backups. Commands that need RocksDB are refused, and the message says why.
. "$(dirname -- "$0")/lib.sh"

slim=$BIN/slim/chainweb-backup
if [ ! -x "$slim" ]; then
  skip 'the program without RocksDB' 'not built; scripts/test.sh builds it'
  end
fi

start node.log demo-node --database-directory node --fill 5000000 --rate 5 --disable-backup-api
node_pids=$pids
status 'a backup beside the running node' 0 "$slim" make --database-directory node --backup-pact --reserve-bytes 0
made=$(cat out)
"$slim" list --backup-directory node/backups --json >list.json
has 'its record warns that a height is unknown' list.json 'built without RocksDB'
check 'and has no heights that it does not know' sh -c '! grep -e block_heights -e \"chainweb\": list.json'
status 'it is good, by the program without RocksDB' 0 "$slim" verify --backup-directory node/backups latest
status 'it is good, every byte, by the full program' 0 chainweb-backup verify --backup-directory node/backups latest --deep
status 'and by the node itself' 0 demo-node verify "node/backups/$made"

start serve.log "$slim" serve --database-directory node --enable-backup-api --reserve-bytes 0
sleep 1
echo "# idle: $(awk '/^(VmRSS|RssAnon|Threads)/ { printf "%s %s %s  ", $1, $2, $3 }' "/proc/$pid/status"), a program of $(wc -c <"$slim") bytes"
backup '?backupPact'
is 'a backup over HTTP' "$word" backup-done
status 'which the node accepts' 0 demo-node verify "node/backups/$id"
echo "# at most: $(grep VmHWM "/proc/$pid/status")"
stop TERM
is 'it stops in order' "$got" 0

status 'its checksums are written' 0 "$slim" sum --backup-directory node/backups "$id"
check 'b2sum agrees' sh -c "cd 'node/backups/$id/0/sqlite' && b2sum --quiet -c BLAKE2SUMS"
status 'a restore' 0 "$slim" restore --backup-directory node/backups "$id" --to restored
status 'is whole' 0 demo-node verify restored

status 'deep verification is refused' 2 "$slim" verify --backup-directory node/backups latest --deep
has 'in a sentence' err 'built without RocksDB, which deep verification needs: use the full build'
echo 'backup: {verify: deep}' >deep.yaml
status 'also as a wish in the configuration' 2 "$slim" serve --database-directory node --config-file deep.yaml --service-port 0
has 'in a sentence too' err 'built without RocksDB'
status 'so is what only a child process of the full one does' 2 "$slim" heights node/0/rocksDb
pids=$node_pids
end
