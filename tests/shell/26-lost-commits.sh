#!/bin/sh
# Data that the files of a stopped node have lost: the commits behind a damaged frame of an SQLite WAL, which SQLite does not apply and
# does not mention; RocksDB's WALs, if all were removed. The backup has the same content as the node would find, and a warning in the
# record and in the list. Without such a loss there is no warning.
. "$(dirname -- "$0")/lib.sh"

python3 -c 'import sqlite3' 2>python.err || { echo "1..0 # SKIP python3 has no sqlite3: $(tail -n 1 python.err)" && exit 0; }

# wal WAY: a database of a node that was killed, in `db`: 40 commits in its -wal, which is changed in this way.
wal() {
  rm -rf db b && cp -a node db
  python3 - "$1" <<'END'
import os, shutil, sqlite3, struct, sys
way, path = sys.argv[1], "db/0/sqlite/pact-v1-chain-0.sqlite"
connection = sqlite3.connect(path, isolation_level=None)
connection.execute("PRAGMA journal_mode = WAL")
connection.execute("PRAGMA wal_autocheckpoint = 0")
connection.execute("PRAGMA cache_spill = 1")
connection.execute("PRAGMA cache_size = 2")
connection.execute("CREATE TABLE kept (n, filler)")
for n in range(40):
    connection.execute("INSERT INTO kept VALUES (?, randomblob(3000))", (n,))
if way == "uncommitted":
    connection.execute("BEGIN")
    for n in range(40, 80):
        connection.execute("INSERT INTO kept VALUES (?, randomblob(3000))", (n,))
for file in [path, path + "-wal"]:
    shutil.copy(file, file + ".copy")
if way == "uncommitted":
    connection.execute("ROLLBACK")
connection.close()
for suffix in ["-wal", "-shm"]:
    if os.path.exists(path + suffix):
        os.remove(path + suffix)
for file in [path, path + "-wal"]:
    os.rename(file + ".copy", file)
bytes_ = bytearray(open(path + "-wal", "rb").read())
page = struct.unpack(">I", bytes_[8:12])[0]
frame, count = 24 + page, (len(bytes_) - 32) // (24 + page)
middle, last = 32 + count // 2 * frame, 32 + (count - 1) * frame
if way == "page":
    bytes_[middle + 24 + 100] ^= 1
elif way == "sums":
    bytes_[middle + 17] ^= 1
elif way == "salts":
    bytes_[middle + 9] ^= 1
elif way == "zeroes":
    bytes_[middle : middle + 2 * frame] = bytes(2 * frame)
elif way == "last":
    bytes_[last + 24 + 100] ^= 1
elif way == "cut":
    bytes_ = bytes_[: last + 500]
elif way == "garbage":
    bytes_ += os.urandom(3 * frame + 7)
open(path + "-wal", "wb").write(bytes_)
END
  rm -rf seen && cp -a db/0/sqlite seen
  python3 -c 'import sqlite3; print(sqlite3.connect("seen/pact-v1-chain-0.sqlite").execute("SELECT count(*) FROM kept").fetchone()[0])' >expected
}

warnings() {
  python3 -c 'import json, sys; print("\n".join(json.load(open(sys.argv[1]))["warnings"]))' "b/$(ls b)/backup.json"
}

node node --chains 2
for way in page sums salts zeroes whole last cut garbage uncommitted; do
  wal "$way"
  status "$way: a backup" 0 chainweb-backup make --backup-pact --database-directory db --backup-directory b
  warnings >said
  case $way in
    page | sums | salts | zeroes)
      has "$way: the record has a warning" said 'pact-v1-chain-0.sqlite-wal is damaged at byte'
      chainweb-backup list --backup-directory b --columns all >list
      has "$way: and the list" list 'is damaged at byte'
      ;;
    *) is "$way: no warning" "$(grep -c 'is damaged at byte' said)" 0 ;;
  esac
  python3 -c 'import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute("SELECT count(*) FROM kept").fetchone()[0])' \
    "b/$(ls b)/0/sqlite/pact-v1-chain-0.sqlite" >copied
  is "$way: the backup has what SQLite finds" "$(cat copied)" "$(cat expected)"
  status "$way: it is good" 0 chainweb-backup verify --backup-directory b latest
done

rm -rf db b && cp -a node db
status 'RocksDB with its WAL' 0 chainweb-backup make --database-directory db --backup-directory b
is 'no warning' "$(warnings)" ''
rm -rf b db/0/rocksDb/*.log
status 'RocksDB without any WAL' 0 chainweb-backup make --database-directory db --backup-directory b
warnings >said
has 'the record has a warning' said 'RocksDB has no WAL'
chainweb-backup list --backup-directory b --columns all >list
has 'and the list' list 'RocksDB has no WAL'
end
