//! Backups of a running Chainweb node: its RocksDB and its SQLite databases, taken beside the writing node, committed at
//! one point, found again after any crash. No Tokio: one backup thread, one channel, a status map.
//!
//! # Embedding
//! A node that is written in Rust hands over its open database and mounts the endpoints in its own rouille server:
//! ```no_run
//! use std::{path::Path, sync::Arc};
//! use chainweb_backup::{Config, Service, Sources, rocksdb, rouille};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let node_directory = Path::new("/var/lib/node");
//!     let db = Arc::new(rocksdb::DB::open_default(node_directory.join("0/rocksDb"))?);
//!     let config = Config { api_enabled: true, ..Config::new(node_directory.join("backups")) };
//!     let service = Service::start(config, Sources::embedded(db, node_directory))?;
//!     rouille::start_server("127.0.0.1:1848", move |request| {
//!         service.handle(request).unwrap_or_else(rouille::Response::empty_404)
//!     });
//! }
//! ```
//! A database that this crate backs up in the node's own process must be opened through the libraries that are linked
//! here, re-exported as `rocksdb` and `rusqlite`: a second SQLite in one process loses its file locks.
//!
//! # Architecture
//! A functional core with one dirty hand. Each file uses only rows below its own:
//! ```text
//! row 6  main, cli, typed, operate, terminal, http, http_head, listener   faces: words in, words out
//! row 5  service, listing, details, metrics, manage   the one thread, the channel, the status map
//! row 4  attempt, job                  one backup, start to end
//! row 3  catalog, commit               what is on disk, and the one commit point
//!        verify, damage, repair, reread, sums, restore, retention   finished backups
//! row 2  rocks, engine, no_engine, live, live_files, live_wals, reuse   a source -> synced files
//!        sqlite, sqlite_online, raw_copy, sqlite_fold, sqlite_locks, sqlite_attempt
//!        source, record, manifest      what is read; durable formats
//!        node_locks, in_use, modes     who uses, and may read, a node's databases, or a backup
//! row 1  copy, disk, nofollow, permissions, unsynced, quiet, sum, sys, watchdog   every change that we make to the file system
//! row 0  id, error, fault, config, config_tree, control, gate, seal,
//!        cut, log_format, version_edit, sqlite_wal, roomy, accept, answers   no I/O
//! ```
//! Only `disk`, `permissions` and `copy` change the file system; RocksDB and SQLite write by themselves inside the
//! unfinished backup and nowhere else. Only `engine` names the `rocksdb` crate, only the files of SQLite name `rusqlite`, only `http`, `http_head` and
//! `listener` name `rouille`, only `service` names `crossbeam-channel`. The protocol of each part stands at the top of its file.

mod accept;
mod answers;
mod attempt;
mod catalog;
mod clock;
mod commit;
mod config;
mod config_tree;
mod control;
mod copy;
mod cut;
mod damage;
mod details;
mod disk;
#[cfg_attr(not(feature = "engine"), path = "no_engine.rs")]
mod engine;
mod error;
mod fault;
#[cfg_attr(feature = "gate", doc(hidden))]
#[cfg(feature = "gate")]
pub mod gate;
#[cfg(not(feature = "gate"))]
mod gate;
mod http;
mod http_head;
mod id;
mod in_use;
mod job;
mod layout;
mod listener;
mod listing;
mod live;
mod live_files;
mod live_wals;
mod log_format;
mod manage;
mod manifest;
mod metrics;
mod modes;
mod node_locks;
mod nofollow;
mod permissions;
mod quiet;
mod raw_copy;
mod record;
mod repair;
mod reread;
mod restore;
mod retention;
mod reuse;
mod rocks;
mod roomy;
mod seal;
mod service;
mod source;
mod sqlite;
mod sqlite_attempt;
mod sqlite_fold;
mod sqlite_locks;
mod sqlite_online;
mod sqlite_wal;
mod sum;
mod sums;
mod sys;
#[cfg(feature = "gate")]
#[doc(hidden)]
pub mod testing;
mod unsynced;
mod verify;
mod version_edit;
mod watchdog;

pub use config::{
    Config, FileConfig, PactMethod, Sums, Verify, parse_count, parse_file, parse_interface, parse_name,
    parse_pact_method, parse_port, parse_seconds, parse_size, parse_sums, parse_verify, require_no_tilde, suggest,
};
pub use config_tree::FILE_BYTES_MAX;
pub use control::{Control, Phase, Stop};
pub use details::{Details, Progress};
pub use error::{Error, Kind, Result};
pub use fault::Fault;
pub use http::ROUTES;
pub use id::BackupId;
pub use listener::{Decorate, Handler, Limits, Listener, Stopper};
pub use manage::{
    Summed, cancel_backup, check_backup_in, delete_backup, find_backup, list_backups_in, pin_backup, prune_backups,
    restore_backup, sum_backup, sweep_backups, verify_backup,
};
pub use record::{Method, PactPart, Record, RocksdbPart, Scope, Status, Verified, Versions};
pub use restore::{RestoreOptions, Restored};
pub use retention::{Candidate, Policy, Verdict, judge};
pub use rocks::{heights_json, inspect_json};
pub use service::{MakeRequest, Service};
pub use source::{RocksSource, Sources, SqliteSource};
pub use sys::step_back;
pub use verify::{Depth, Verification};

#[cfg(feature = "engine")]
pub use rocksdb;
pub use {rouille, rusqlite};
