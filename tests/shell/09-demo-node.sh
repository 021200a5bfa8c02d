#!/bin/sh
# demo-node verify accepts what is whole and rejects five planted faults: otherwise it proves nothing elsewhere.
. "$(dirname -- "$0")/lib.sh"

node node --chains 4 --fork-percent 30
status 'verify accepts a stopped node' 0 demo-node verify --expect-chains 4 node
has 'it says what it saw' out 'ok: cut height 20, 4 chains'
status 'verify misses a chain that should be there' 1 demo-node verify --expect-chains 5 node
find node -type f -exec sha256sum {} + | sort >sums.before
status 'verify again' 0 demo-node verify node
find node -type f -exec sha256sum {} + | sort >sums.after
check 'verify changes nothing' diff sums.before sums.after

start embedded.log demo-node --database-directory node --rate 50
backup '?backupPact'
is 'a backup of the running node' "$word" backup-done
stop TERM
status 'verify accepts the backup' 0 demo-node verify "node/backups/$id"

for fault in missing-block flipped-value pact-ahead missing-chain dropped-wal; do
  for what in node "node/backups/$id"; do
    rm -rf damaged
    mkdir damaged
    cp -a "$what/0" damaged/0
    # A backup made by checkpoint has everything in SSTs: there is no WAL to drop.
    if [ "$fault" = dropped-wal ] && [ "$what" != node ]; then continue; fi
    status "$fault is planted in $what" 0 demo-node plant --fault "$fault" damaged
    status "$fault in $what is rejected" 1 demo-node verify damaged
    sed 's/^/# /' err
  done
done
rm -rf damaged && mkdir damaged && cp -a "node/backups/$id/0" damaged/0 && rm -rf damaged/0/sqlite
status 'a backup without Pact is not taken for a full one' 1 demo-node verify damaged
status 'but is a good RocksDB' 0 demo-node verify --no-pact damaged
status 'a flipped value without Pact is planted' 0 demo-node plant --fault flipped-value damaged
status 'and rejected' 1 demo-node verify --no-pact damaged
end
