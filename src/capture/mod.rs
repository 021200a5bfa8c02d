//! A source becomes a directory of synced files: RocksDB and SQLite, each in whichever way fits.

pub(crate) mod in_use;
pub(crate) mod modes;
pub(crate) mod node_locks;
pub(crate) mod rocksdb;
pub(crate) mod source;
pub(crate) mod sqlite;
