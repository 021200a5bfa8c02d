//! The one integration binary, so that RocksDB is linked once: behaviour through the public API and the real program, on
//! real RocksDB and real SQLite. Each file in this directory is a module; those that inject faults need the feature
//! `gate`, with which `scripts/test.sh` runs everything.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

#[cfg(feature = "gate")]
mod ahead;
#[cfg(feature = "gate")]
mod below;
mod client;
mod config;
mod crowd;
mod damage;
mod door;
mod faults;
mod fixture;
mod heights;
#[cfg(feature = "gate")]
mod hooks;
#[cfg(feature = "gate")]
mod hostile;
mod http;
#[cfg(feature = "gate")]
mod in_use;
#[cfg(feature = "gate")]
mod increments;
mod listener;
#[cfg(feature = "gate")]
mod live;
mod metrics;
#[cfg(feature = "gate")]
mod mutations;
#[cfg(feature = "gate")]
mod order;
#[cfg(feature = "gate")]
mod pairs;
#[cfg(feature = "gate")]
mod parsers;
#[cfg(feature = "gate")]
mod reflink;
#[cfg(feature = "gate")]
mod restore;
mod retention;
mod reuse;
mod reuse_soak;
mod schedule;
mod service;
mod sources;
#[cfg(feature = "gate")]
mod sqlite;
#[cfg(feature = "gate")]
mod sqlite_pact;
#[cfg(feature = "gate")]
mod sqlite_races;
#[cfg(feature = "gate")]
mod sqlite_stress;
mod start_proof;
#[cfg(feature = "gate")]
mod sums;
mod supply_chain;
#[cfg(feature = "gate")]
mod sweep;
mod tidy;
#[cfg(feature = "gate")]
mod watch;
