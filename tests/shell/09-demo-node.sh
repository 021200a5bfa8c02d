#!/bin/sh
# demo-node verify accepts a whole database and rejects every planted fault with the right message: without this test it would prove
# nothing in the others. The demo node starts on each database as a real node does, and reports the rewound and replayed blocks.
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

# words FAULT: the message of verify.
words() {
  case $1 in
    missing-block) echo 'is missing from RocksDB' ;;
    missing-header) echo ': its header is missing from RocksDB' ;;
    missing-rank) echo ': its rank is missing from RocksDB' ;;
    missing-payload) echo 'the hashes in the payload of block' ;;
    missing-transactions) echo 'lookup of payload failed' ;;
    missing-outputs) echo 'outputs of block' ;;
    flipped-header) echo 'does not have that hash' ;;
    flipped-value) echo "Pact's coin_coin-table differs from the replay at block 0" ;;
    missing-tip) echo 'is missing from RocksDB' ;;
    pact-ahead) echo 'Pact is ahead of RocksDB: at block' ;;
    forked-tip) echo 'Pact is ahead of RocksDB, on a fork at the height of the cut' ;;
    missing-history) echo 'is not in RocksDB' ;;
    exchanged-pact) echo 'Pact is that of chain 1' ;;
    missing-chain) echo 'no Pact database' ;;
    *) echo '' ;;
  esac
}

for fault in missing-block missing-header missing-rank missing-payload missing-transactions missing-outputs flipped-header \
  flipped-value missing-tip pact-ahead forked-tip missing-history exchanged-pact missing-chain dropped-wal; do
  for what in node "node/backups/$id"; do
    rm -rf damaged
    mkdir damaged
    cp -a "$what/0" damaged/0
    # A backup made by checkpoint has everything in SSTs: there is no WAL to drop.
    if [ "$fault" = dropped-wal ] && [ "$what" != node ]; then continue; fi
    status "$fault is planted in $what" 0 demo-node plant --fault "$fault" damaged
    status "$fault in $what is rejected" 1 demo-node verify damaged
    has "$fault in $what has its words" err "$(words "$fault")"
    sed 's/^/# /' err
  done
done
rm -rf damaged && mkdir damaged && cp -a "node/backups/$id/0" damaged/0 && rm -rf damaged/0/sqlite
status 'a backup without Pact is not taken for a full one' 1 demo-node verify damaged
status 'but is a good RocksDB' 0 demo-node verify --no-pact damaged
status 'a flipped value without Pact is planted' 0 demo-node plant --fault flipped-value damaged
status 'and rejected' 1 demo-node verify --no-pact damaged

# damaged FAULT [FLAG...]: the node with the fault, in the directory of that name.
damaged() {
  rm -rf damaged
  mkdir damaged
  cp -a whole/0 damaged/0
  fault=$1
  shift
  demo-node plant --fault "$fault" "$@" damaged >planted 2>&1 || cat planted
}

# start_on NAME WANTED: starts on that database and stops. WANTED: the skipped cuts, then replayed,rewound of the chains 0 and 1.
start_on() {
  what=$1 moves=$2
  rm -f report
  status "$what: the node starts" 0 demo-node --database-directory damaged --blocks 0 --rate 0 --exit-when-done \
    --disable-backup-api --service-port 0 --start-report report
  is "$what: it does what a node does" "$(moved)" "$moves"
  status "$what: and is whole then" 0 demo-node verify damaged
}

# moved: the same from the report of the start.
moved() {
  sed -n 's/.*"skipped_cuts":\([0-9]*\).*/\1/p' report | tr '\n' ' '
  grep -o '"replayed":[0-9]*,"rewound":[0-9]*' report | head -n 2 | sed 's/"[a-z]*"://g' | tr '\n' ' '
}

# refused NAME WORDS: the node does not start on that database, with this message.
refused() {
  status "$1: the node does not start" 1 demo-node --database-directory damaged --blocks 0 --exit-when-done --disable-backup-api \
    --service-port 0
  has "$1: it says why" err "$2"
}

node whole --chains 3 --fork-percent 0
damaged missing-tip
start_on 'a cut whose tip is missing' '1 0,0 0,0 '
damaged pact-ahead
start_on 'Pact ahead' '0 0,1 0,0 '
damaged forked-tip --chain 1
start_on 'Pact on a fork' '0 0,0 1,1 '
damaged missing-chain
start_on 'no Pact' '0 20,0 0,0 '
# The last cut of 20 heights has each chain at 20: without one of these blocks the node goes back to a cut that has it at 19.
damaged missing-rank --height 20
status 'a missing rank of a tip is rejected' 1 demo-node verify damaged
status 'a node starts without a tip' 0 demo-node --database-directory damaged --blocks 0 --exit-when-done --disable-backup-api \
  --service-port 0 --start-report report
check 'it skips a cut' [ "$(sed -n 's/.*"skipped_cuts":\([0-9]*\).*/\1/p' report)" -ge 1 ]
has 'it rewinds that chain' report '"replayed":0,"rewound":1,"tip":{"hash":'
for fault in payload transactions outputs; do
  damaged "missing-$fault" --height 20
  rm damaged/0/sqlite/pact-v1-chain-0.sqlite
  refused "a replay without $fault" 'lookup of payload failed'
done
damaged missing-history
refused 'no row below a block that RocksDB lacks' 'Pact does not connect'
damaged exchanged-pact
refused 'Pact of another chain' 'Pact does not connect'
rm -rf damaged && cp -a whole damaged
for database in damaged/0/sqlite/*.sqlite; do
  sqlite3 "$database" 'DELETE FROM BlockHistory WHERE blockheight < 18'
done
refused 'a compacted Pact' 'FullHistoryRequired'
status 'with the flag the node starts on a compacted Pact' 0 demo-node --database-directory damaged --blocks 1 --rate 0 \
  --exit-when-done --disable-backup-api --service-port 0 --no-full-historic-pact-state

# Each number of chains, and the graph that grows from ten to twenty.
for chains in 1 2 3 7 10 20; do
  status "$chains chains: the node runs" 0 demo-node --database-directory "chains$chains" --chains "$chains" --blocks 62 --rate 0 \
    --delay-ms 0 --fork-percent 20 --exit-when-done --disable-backup-api --service-port 0
  [ "$chains" -ne 10 ] || expected=20
  [ "$chains" -eq 10 ] || expected=$chains
  status "$chains chains" 0 demo-node verify --expect-chains "$expected" "chains$chains"
  is "$chains chains: the page size" "$(sqlite3 "chains$chains/0/sqlite/pact-v1-chain-0.sqlite" 'PRAGMA page_size')" 4096
done
end
