//! The names that RocksDB and SQLite give to their files, and what a file of theirs is by its name.
//!
//! Invariant: no other source file spells one of these names; `tidy` checks that. The node's own names are in `chainweb`, ours in
//! `format::layout`.

use std::path::{Path, PathBuf};

/// RocksDB's `CURRENT`: names the MANIFEST that is in use. It is only ever replaced; a directory without it is no database.
pub(crate) const CURRENT: &str = "CURRENT";

/// RocksDB's `IDENTITY`: the identifier of the database. RocksDB makes a new one if it is missing.
pub(crate) const IDENTITY: &str = "IDENTITY";

/// RocksDB's `LOCK`: empty, and locked as long as the database is open.
pub(crate) const LOCK: &str = "LOCK";

/// RocksDB's `LOG`: its messages. Not a WAL.
const LOG: &str = "LOG";

/// RocksDB's `MANIFEST-000004`: the edits of the list of its tables.
const MANIFEST: &str = "MANIFEST-";

/// RocksDB's `OPTIONS-000007`: the options with which the database is open. Each change of them makes a new file.
const OPTIONS: &str = "OPTIONS-";

/// RocksDB's `000009.sst`, a table; `000010.blob`, large values. Neither changes once it has its name.
const SST: &str = ".sst";
const BLOB: &str = ".blob";

/// RocksDB's `000005.log`: a WAL.
const ROCKSDB_WAL: &str = ".log";

/// LevelDB's name of a table.
const LEVEL_DB_TABLE: &str = ".ldb";

/// The directories in which engines built on RocksDB keep values.
const OTHER_ENGINES: [&str; 2] = ["titandb", "blob_dir"];

/// The endings of the files that SQLite keeps beside a database: the WAL, the shared memory with the index of the WAL, and the rollback
/// journal.
const SQLITE_WAL: &str = "-wal";
const SQLITE_SHM: &str = "-shm";
const SQLITE_JOURNAL: &str = "-journal";

/// The name of a table.
pub(crate) fn sst(number: u64) -> String {
    format!("{number:06}{SST}")
}

/// The name of a blob file.
pub(crate) fn blob(number: u64) -> String {
    format!("{number:06}{BLOB}")
}

/// The name of a table of LevelDB.
pub(crate) fn level_db_table(number: u64) -> String {
    format!("{number:06}{LEVEL_DB_TABLE}")
}

/// Whether RocksDB never changes a file of this name, so that the file may be linked.
pub(crate) fn is_immutable(name: &str) -> bool {
    name.ends_with(SST) || name.ends_with(BLOB)
}

/// Whether this is the name of a table.
pub(crate) fn is_sst(name: &str) -> bool {
    name.ends_with(SST)
}

/// The number in the name of a table or of a blob file.
pub(crate) fn immutable_number(name: &str) -> Option<u64> {
    number(name.strip_suffix(SST).or_else(|| name.strip_suffix(BLOB))?)
}

/// The number in the name of a WAL of RocksDB.
pub(crate) fn wal_number(name: &str) -> Option<u64> {
    number(name.strip_suffix(ROCKSDB_WAL)?)
}

/// The number in the name of an OPTIONS file.
pub(crate) fn options_number(name: &str) -> Option<u64> {
    number(name.strip_prefix(OPTIONS)?)
}

/// Whether this is the name of a MANIFEST.
pub(crate) fn is_manifest(name: &str) -> bool {
    name.strip_prefix(MANIFEST).is_some_and(|digits| number(digits).is_some())
}

/// Whether RocksDB might open a file of this name by itself.
pub(crate) fn may_be_opened(name: &str) -> bool {
    [ROCKSDB_WAL, SST, BLOB].iter().any(|end| name.ends_with(end))
        || [MANIFEST, OPTIONS].iter().any(|start| name.starts_with(start))
        || [CURRENT, IDENTITY, LOCK, LOG].contains(&name)
}

/// Whether a file of this name belongs to a RocksDB: without it the database would be another one.
pub(crate) fn is_of_rocksdb(name: &str) -> bool {
    is_immutable(name)
        || wal_number(name).is_some()
        || is_manifest(name)
        || options_number(name).is_some()
        || [CURRENT, IDENTITY].contains(&name)
}

/// Whether this is the directory of another engine in a RocksDB's directory.
pub(crate) fn is_of_another_engine(name: &str) -> bool {
    OTHER_ENGINES.contains(&name)
}

/// The WAL of an SQLite database.
pub(crate) fn wal_of(database: &Path) -> PathBuf {
    beside(database, SQLITE_WAL)
}

/// The name of the database whose WAL has this name.
pub(crate) fn database_of_wal(name: &str) -> Option<&str> {
    name.strip_suffix(SQLITE_WAL)
}

/// The shared memory of an SQLite database: the index of its WAL, and the bytes that its users lock.
pub(crate) fn shm_of(database: &Path) -> PathBuf {
    beside(database, SQLITE_SHM)
}

/// All files that SQLite keeps beside a database.
pub(crate) fn companions_of(database: &Path) -> [PathBuf; 3] {
    [wal_of(database), shm_of(database), journal_of(database)]
}

/// The rollback journal of an SQLite database.
pub(crate) fn journal_of(database: &Path) -> PathBuf {
    beside(database, SQLITE_JOURNAL)
}

/// Whether SQLite would replay a file of this name when it opens the database beside it.
pub(crate) fn is_replayed_by_sqlite(name: &str) -> bool {
    name.ends_with(SQLITE_WAL) || name.ends_with(SQLITE_JOURNAL)
}

/// The path with this at its end.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// RocksDB's numbers are digits only.
fn number(digits: &str) -> Option<u64> {
    if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok() } else { None }
}
