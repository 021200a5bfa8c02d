//! Captures a source into a directory of synced files: RocksDB and SQLite, each in the way that fits the source.

pub(crate) mod in_use;
pub(crate) mod links;
pub(crate) mod modes;
pub(crate) mod node_locks;
pub(crate) mod rocksdb;
pub(crate) mod source;
pub(crate) mod sqlite;
pub(crate) mod start_proof;
