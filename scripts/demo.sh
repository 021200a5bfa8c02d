#!/bin/sh
# Shows the whole life of a backup on this machine, in a temporary directory, and changes nothing else:
#   scripts/demo.sh          beside programs that know nothing of us: a writer on the system's RocksDB, and sqlite3. They keep
#                            writing while backups are made with curl; a backup is restored, its history verified. Builds
#                            the program without RocksDB: 3 minutes on two processors, the build included.
#   scripts/demo.sh --full   with a demo node that embeds the library and is started again on what was restored. Compiles
#                            RocksDB, once: about 25 minutes.
# Exit status: 0 it went as it should, 1 it did not, 2 the machine lacks something (one sentence says what to do).

. "$(dirname -- "$0")/lib.sh"
exec </dev/null

clean_up() {
  status=$?
  trap - EXIT
  for pid in $node_pid $service_pid $writer_pids; do
    kill "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  if [ "$status" -eq 0 ]; then
    rm -rf "$DEMO"
  else
    printf '\nthe demo failed (%s); everything is kept in %s\n' "$status" "$DEMO" >&2
  fi
  exit "$status"
}
say() {
  printf '\n%s\n' "$*"
}

# Shows a command as one would type it, runs it, shows what it says; its failure ends the demo.
run() {
  printf '  $ %s\n' "$*"
  run_status=0
  "$@" >"$DEMO/said" 2>&1 || run_status=$?
  sed 's/^/  /' "$DEMO/said"
  return "$run_status"
}

# The same for a command that answers one line without an end, which stays in $answer.
ask() {
  printf '  $ %s\n' "$*"
  answer=$("$@")
  printf '  %s\n' "$answer"
}

# wait_for_file FILE PID LOG: until a program that was started has written the file.
wait_for_file() {
  tries=0
  until [ -s "$1" ]; do
    tries=$((tries + 1))
    if [ "$tries" -gt 600 ] || ! kill -0 "$2" 2>/dev/null; then
      echo "the program did not start; it said:" >&2
      cat "$3" >&2
      exit 1
    fi
    sleep 0.1
  done
}

# poll URL: until the backup has ended.
poll() {
  printf '  $ curl -sSf %s   (again until it has ended)\n' "$1"
  while answer=$(curl -sSf "$1") && [ "$answer" = backup-in-progress ]; do
    sleep 0.1
  done
  printf '  %s\n' "$answer"
  [ "$answer" = backup-done ]
}

# The Pact database of one chain, written to by sqlite3 until it is killed: each block has 20 rows, and the sum of all values
# is 1 000 000 at every commit.
write_pact() {
  cat <<'SQL'
PRAGMA journal_mode = WAL;
CREATE TABLE "coin_coin-table" (rowkey TEXT, txid UNSIGNED BIGINT, rowdata BLOB, UNIQUE(rowkey, txid));
CREATE TABLE BlockHistory (blockheight UNSIGNED BIGINT, hash BLOB, endingtxid UNSIGNED BIGINT);
WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 19)
  INSERT INTO "coin_coin-table" SELECT 'account-' || i, 0, 50000 FROM n;
SQL
  height=0
  while :; do
    height=$((height + 1))
    cat <<SQL
BEGIN;
UPDATE "coin_coin-table" SET rowdata = rowdata - $height % 97, txid = $height WHERE rowkey = 'account-$((height % 20))';
UPDATE "coin_coin-table" SET rowdata = rowdata + $height % 97, txid = $height WHERE rowkey = 'account-$((height * 7 % 20))';
INSERT INTO BlockHistory VALUES ($height, randomblob(32), $height);
COMMIT;
SQL
    sleep 0.02
  done
}

# judge_pact DATABASE: fails unless it is intact, its blocks have no gap and its sum is right.
judge_pact() {
  sqlite3 "file:$1?immutable=1" "PRAGMA integrity_check;
    SELECT CASE WHEN sum(rowdata) = 1000000 THEN 'the sum is right' ELSE 'wrong sum ' || sum(rowdata) END FROM \"coin_coin-table\";
    SELECT CASE WHEN count(*) = max(blockheight) THEN count(*) || ' blocks' ELSE 'a gap' END FROM BlockHistory;" >"$DEMO/judged"
  tr '\n' ' ' <"$DEMO/judged"
  echo
  grep -q '^ok$' "$DEMO/judged" && grep -q 'is right' "$DEMO/judged" && grep -q 'blocks$' "$DEMO/judged"
}

demo_foreign() {
  PATH=$BIN/slim:$PATH
  cd "$DEMO"

  say 'A node that knows nothing of us: a writer on the RocksDB of this system, and two sqlite3. They write all the time.'
  c++ -O1 -std=c++17 "$ROOT/tests/soak/history.cc" -o history -lrocksdb -lpthread -lz
  mkdir -p node/0/rocksDb node/0/sqlite
  echo '  $ history write node &'
  ./history write node >writer.log 2>&1 &
  writer_pids=$!
  for chain in 0 1; do
    mkfifo "blocks-$chain"
    echo "  \$ sqlite3 node/0/sqlite/pact-v1-chain-$chain.sqlite <blocks-$chain &"
    sqlite3 "node/0/sqlite/pact-v1-chain-$chain.sqlite" <"blocks-$chain" >>pact.log 2>&1 &
    writer_pids="$writer_pids $!"
    write_pact >"blocks-$chain" 2>/dev/null &
    writer_pids="$! $writer_pids"
  done
  sleep 2

  say 'The service beside it.'
  echo '  $ chainweb-backup serve --database-directory node --enable-backup-api --service-port 0 --address-file address &'
  chainweb-backup serve --database-directory node --enable-backup-api --service-port 0 --address-file address 2>service.log &
  service_pid=$!
  wait_for_file address "$service_pid" service.log
  api="http://$(cat address)"

  say 'A backup, the Pact databases too: one POST starts it and answers its identifier.'
  ask curl -sSf -X POST "$api/make-backup?backupPact"
  id=$answer
  poll "$api/check-backup/$id"
  run chainweb-backup list --backup-directory node/backups
  run chainweb-backup verify --backup-directory node/backups "$id"

  say 'Restoring it into a new database directory, while the node goes on.'
  run chainweb-backup restore --backup-directory node/backups "$id" --to restored

  say 'Its history: no key and no row is missing, none is wrong, none is from a later time.'
  run ./history judge restored/0/rocksDb
  run judge_pact restored/0/sqlite/pact-v1-chain-0.sqlite
  run judge_pact restored/0/sqlite/pact-v1-chain-1.sqlite
  for pid in $writer_pids; do
    kill -0 "$pid" || { echo "a writer has ended: $(cat writer.log pact.log)" && return 1; }
  done
}

demo_full() {
  PATH=$BIN:$PATH
  cd "$DEMO"

  say 'A demo node: one RocksDB and 20 Pact databases, as a real node has them. It keeps writing all the time.'
  echo '  $ demo-node --database-directory node --fill 40000000 --rate 5 --service-port 0 --address-file address &'
  demo-node --database-directory node --fill 40000000 --rate 5 --service-port 0 --address-file address 2>node.log &
  node_pid=$!
  wait_for_file address "$node_pid" node.log
  api="http://$(cat address)"
  run du -sh node/0/rocksDb node/0/sqlite

  say 'A backup of RocksDB: one POST starts it and answers its identifier.'
  ask curl -sSf -X POST "$api/make-backup"
  poll "$api/check-backup/$answer"

  say 'A full backup: the Pact databases too.'
  ask curl -sSf -X POST "$api/make-backup?backupPact"
  id=$answer
  poll "$api/check-backup/$id"

  say 'What there is now. The SSTs are hard links, so a backup holds little of its own (EXCLUSIVE) as long as the node keeps them.'
  run chainweb-backup list --backup-directory node/backups
  run ls "node/backups/$id" "node/backups/$id/0"
  run du -sh "node/backups/$id/0/rocksDb" "node/backups/$id/0/sqlite"

  say 'The backup is a whole database directory: every block links to the last, Pact equals the replay of its blocks.'
  run demo-node verify "node/backups/$id"

  say 'The node stops.'
  printf '  $ kill %s\n' "$node_pid"
  kill "$node_pid"
  wait "$node_pid"
  node_pid=''
  run demo-node verify node

  say 'Restoring: into a new database directory, and a node that goes on from there.'
  run chainweb-backup restore --backup-directory node/backups "$id" --to restored
  run demo-node --database-directory restored --blocks 20 --rate 20 --exit-when-done --disable-backup-api --service-port 0
  run demo-node verify restored
  run demo-node verify "node/backups/$id"
}

way=${1:-}
case $way in
  '') phase setup require_demo && phase build build_slim ;;
  --full) phase setup require_build && phase build build ;;
  *) refuse 'usage: scripts/demo.sh [--full]' ;;
esac
phase_begin demo
node_pid='' service_pid='' writer_pids=''
DEMO=$(mktemp -d "${TMPDIR:-/tmp}/chainweb-backup-demo.XXXXXX")
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
if [ -n "$way" ]; then demo_full; else demo_foreign; fi
phase_end 0
printf '\n%s' "$SUMMARY"
echo "the demo's files are removed; the programs remain in $BIN"
