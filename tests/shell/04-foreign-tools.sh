#!/bin/sh
# Databases that other programs made (Debian's RocksDB 7.8 and the sqlite3 command line) are backed up by `serve` through curl. Those
# programs find the same content in a copy of the backup. The source is not changed.
. "$(dirname -- "$0")/lib.sh"

for tool in db_bench ldb sst_dump sqlite3; do
  command -v "$tool" >/dev/null || { echo "1..0 # SKIP there is no $tool: install rocksdb-tools and sqlite3" && exit 0; }
done

rocks=source/0/rocksDb pact=source/0/sqlite
mkdir -p "$rocks" "$pact"
bench() {
  db_bench --db="$rocks" --compression_ratio=1 --num=60000 --write_buffer_size=1000000 --target_file_size_base=1000000 "$@" >bench.log 2>&1
}
check 'db_bench fills a database' bench --benchmarks=fillrandom,deleterandom --compression_type=snappy
check 'and with another compression' bench --benchmarks=overwrite --use_existing_db=1 --compression_type=zstd
check 'and another' bench --benchmarks=overwrite --use_existing_db=1 --compression_type=lz4
check 'ldb makes a column family' [ "$(ldb --db="$rocks" create_column_family extra)" = OK ]
check 'ldb writes to it' [ "$(ldb --db="$rocks" --column_family=extra put there too)" = OK ]
# The last key that ldb puts is in the WAL only.
check 'ldb writes a key' [ "$(ldb --db="$rocks" put newest key)" = OK ]
check 'there are several SSTs' [ "$(ls "$rocks" | grep -c '\.sst$')" -ge 4 ]
check 'there is a WAL with something in it' [ -n "$(find "$rocks" -name '*.log' -size +0)" ]

table='CREATE TABLE "coin_coin-table" (rowkey TEXT, txid UNSIGNED BIGINT, rowdata BLOB, UNIQUE(rowkey, txid));
  CREATE INDEX i ON "coin_coin-table" (txid DESC);
  WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
  INSERT INTO "coin_coin-table" SELECT '\''k'\'' || i, i, zeroblob(i % 50) || i FROM n;'
make_database() {
  sqlite3 "$pact/pact-v1-chain-$1.sqlite" "PRAGMA page_size=$2; PRAGMA journal_mode=$3; $table" >/dev/null
}
check 'sqlite3 makes a database as the node does' make_database 0 1024 wal
check 'one with other pages and a rollback journal' make_database 1 4096 delete
check 'one that will crash' make_database 2 1024 wal
# A crashed node: the newest commits are in the -wal only.
mkfifo commands
sqlite3 "$pact/pact-v1-chain-2.sqlite" <commands >/dev/null 2>crash.err &
crashing=$!
exec 3>commands
echo "PRAGMA wal_autocheckpoint=0; DELETE FROM \"coin_coin-table\" WHERE txid % 3 = 0;" >&3
echo "INSERT INTO \"coin_coin-table\" VALUES ('only in the wal', 999999, x'00ff');" >&3
echo ".shell touch committed" >&3
tries=0
until [ -e committed ] || [ "$tries" -gt 500 ]; do tries=$((tries + 1)) && sleep 0.02; done
kill -9 "$crashing"
wait "$crashing" 2>/dev/null
exec 3>&-
check 'the crash left a -wal' [ -s "$pact/pact-v1-chain-2.sqlite-wal" ]
check 'and the others have none' [ "$(ls "$pact" | grep -c -- -wal)" = 1 ]

# What the tools find in copies: they write to the databases that they open.
say() {
  rm -rf opened
  cp -a "$1" opened
  ldb --db=opened/0/rocksDb checkconsistency >"$2.consistency" 2>&1
  sst_dump --file=opened/0/rocksDb --command=verify --verify_checksum >"$2.sst" 2>"$2.sst.err"
  ldb --db=opened/0/rocksDb scan --hex >"$2.default" 2>&1
  ldb --db=opened/0/rocksDb --column_family=extra scan --hex >"$2.extra" 2>&1
  for chain in 0 1 2; do
    sqlite3 "opened/0/sqlite/pact-v1-chain-$chain.sqlite" 'PRAGMA integrity_check; PRAGMA journal_mode; PRAGMA page_size;' \
      >"$2.integrity.$chain" 2>&1
    sqlite3 "opened/0/sqlite/pact-v1-chain-$chain.sqlite" .dump >"$2.dump.$chain" 2>&1
  done
}
# Everything but SQLite's own -shm, which a reader may have to make.
sums() {
  find source/0 -type f ! -name '*-shm' -exec sha256sum {} + | sort
  find source/0 ! -name '*-shm' -type f -printf '%p %s %T@ %m %U %G\n' | sort
}
say source before
sums >sums.before
start serve.log chainweb-backup serve --database-directory source --enable-backup-api --backup-directory backups
backup '?backupPact'
is 'a backup on the same file system' "$word" backup-done
same=$id
check 'SSTs are links' [ -n "$(find "backups/$same/0/rocksDb" -name '*.sst' -links +1)" ]
stop TERM
if SHM=$(mktemp -d /dev/shm/chainweb-backup-test.XXXXXX 2>/dev/null); then
  start serve.log chainweb-backup serve --database-directory source --enable-backup-api --backup-directory "$SHM/backups"
  backup '?backupPact'
  is 'a backup on another file system' "$word" backup-done
  mkdir other && cp -a "$SHM/backups/$id" other/
  is 'nothing is left beside the source but a lock' "$(find source -mindepth 1 ! -path 'source/0*' | tr '\n' ' ')" \
    'source/.chainweb-backup-pin source/.chainweb-backup-pin/.lock '
  stop TERM
else
  SHM=''
  skip 'a backup on another file system' 'there is no /dev/shm to write to'
fi
sums >sums.after
check 'the source is as it was' diff sums.before sums.after

for copy in "backups/$same" other/*; do
  [ -d "$copy" ] || continue
  find "$copy" | sort >listed.before
  say "$copy" after
  find "$copy" | sort >listed.after
  check "$copy: opening a copy changes nothing" diff listed.before listed.after
  is "$copy: ldb finds it consistent" "$(cat after.consistency)" OK
  is "$copy: sst_dump finds every SST good" "$(grep -ci corrupt after.sst.err) $(grep -c '^Process' after.sst)" \
    "0 $(ls "$copy/0/rocksDb" | grep -c '\.sst$')"
  check "$copy: the same keys and values" cmp before.default after.default
  has "$copy: the key of the WAL is there" after.default "$(printf '0x%s : 0x%s' 6E6577657374 6B6579)"
  check "$copy: the same in the other column family" cmp before.extra after.extra
  for chain in 0 1 2; do
    is "$copy: sqlite3 finds chain $chain sound" "$(head -n 1 "after.integrity.$chain")" ok
    is "$copy: chain $chain has its pages" "$(sed -n 3p "after.integrity.$chain")" \
      "$(sed -n 3p "before.integrity.$chain")"
    check "$copy: chain $chain has the same contents" cmp "before.dump.$chain" "after.dump.$chain"
  done
  has "$copy: what was only in the -wal is there" after.dump.2 'only in the wal'
  is "$copy: no -wal and no -shm" "$(ls "$copy/0/sqlite" | grep -c -- '-[ws]')" 0
done

# The tools find one flipped byte.
sst=$(find "backups/$same/0/rocksDb" -name '*.sst' | head -n 1)
cp "$sst" bad.sst
printf 'XYZXYZ' | dd of=bad.sst bs=1 seek=500 conv=notrunc 2>/dev/null
sst_dump --file=bad.sst --command=verify --verify_checksum >bad.out 2>&1
has 'sst_dump notices a flipped byte' bad.out orrupt

# Beside a RocksDB 7.8 that keeps writing: each copy can be opened and is consistent.
mkdir -p busy/0
busy() {
  db_bench --db=busy/0/rocksDb --num=60000 --write_buffer_size=300000 --target_file_size_base=300000 "$@"
}
busy --benchmarks=fillrandom >busy.log 2>&1
ldb --db=busy/0/rocksDb put newest key >ldb.log 2>&1
start serve.log chainweb-backup serve --database-directory busy --enable-backup-api --backup-directory backups
busy --use_existing_db=1 --benchmarks=overwrite --duration=120 --benchmark_write_rate_limit=8000000 >busy.log 2>&1 &
writer=$!
sleep 0.5
live='' enough_at=$(($(date +%s) + 4))
while kill -0 "$writer" 2>/dev/null; do
  backup
  [ "$word" != backup-done ] || live="$live $id"
  [ "$(date +%s)" -lt "$enough_at" ] || [ "$(echo "$live" | wc -w)" -lt 3 ] || break
done
check 'the writer has written all the time' kill "$writer"
wait "$writer" 2>/dev/null
stop TERM
check 'several backups beside it' [ "$(echo "$live" | wc -w)" -ge 3 ]
: >found
for id in $live; do
  rm -rf opened && cp -a "backups/$id" opened
  ldb --db=opened/0/rocksDb checkconsistency >>found 2>&1
  ldb --db=opened/0/rocksDb get newest >>found 2>&1
done
is 'each is consistent and has its key' "$(sort found | uniq -c | awk '{ print $1, $2 }' | tr '\n' ' ')" \
  "$(echo "$live" | wc -w) OK $(echo "$live" | wc -w) key "
echo "# $(echo "$live" | wc -w) backups of a database with $(ls busy/0/rocksDb | grep -c '\.sst$') SSTs"
end
