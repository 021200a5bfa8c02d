//! Backups of a running Chainweb node: its RocksDB and its SQLite databases, taken beside the writing node, committed at
//! one point, found again after any crash. No Tokio: one backup thread, one channel, a status map.
//!
//! [`manual`] has the HTTP interface, the command line, the configuration, the on-disk format, performance, monitoring, stories from the
//! installed program to a restored node, and [how to embed this crate in a node](manual::embedding).
//!
//! # Architecture
//! A functional core with one dirty hand, in rooms with names on the doors. A folder uses only itself and folders above it in
//! this table, and no files use each other in a circle:
//! ```text
//! chainweb  the node: its names, tables, formats, networks; no I/O
//!           cut digest graph header merkle names number pact payload rules start stored tables
//!           version
//! words     no I/O
//!           clock control database_files error fault id units
//! config    what was configured
//!           access file hooks numbers schedule tree
//! disk      every change that we make to the file system
//!           copy fault_gate file_id holders increment lock medium mounts nofollow off_heap permissions piece_sums quiet_reader sum sys tokens unix_socket
//!           unsynced
//! format    our own names and durable formats
//!           drill hooks layout manifest pact_sums record seal start_proof
//! capture   a source becomes a directory of synced files
//!           in_use links modes node_locks rocksdb::chain_cut rocksdb::child rocksdb::earlier_backup rocksdb::engine rocksdb::live_copy
//!           rocksdb::live_directories rocksdb::live_files rocksdb::live_wals rocksdb::log_format rocksdb::mod
//!           rocksdb::no_engine rocksdb::options_file rocksdb::pins rocksdb::version_edit source sqlite::attempt
//!           sqlite::delta sqlite::finished sqlite::fold sqlite::history sqlite::increment sqlite::locks
//!           sqlite::lost_commits sqlite::mod sqlite::online sqlite::pair sqlite::raw_copy sqlite::snapshot sqlite::wal
//!           sqlite::watch start_proof
//! backups   finished backups, and how one becomes finished
//!           below catalog command commit damage details drill drill_command due filling history hooks journal moving operations
//!           pact_base pairs placement prune recover rehearsal reread restore retention start_proofs sums sums_list
//!           verification verify verify_pact
//! service   the one thread, the channel, the status map; one backup from start to end
//!           activity answers counters doctor fill hook_runs increments job listing making metrics repair shared status_page summary textfile timer
//!           timetable watchdog worker
//! http      words in, words out
//!           accept connections door head inherited listener routes sockets
//! ```
//! The program is `src/bin/chainweb-backup`: `args`, `line`, `rules` and `door` (what was typed), `plan` (what it means), `reload` (what
//! changes at SIGHUP), `action` and `commands` (what is done with backups), `table` (of `list`), `doctor`, `status`, `pages` (help, completions),
//! `supervisor` (systemd), `terminal`.
//!
//! Only `disk` changes the file system; RocksDB and SQLite write by themselves inside the unfinished backup and nowhere else.
//! Only `capture::rocksdb::engine` names the `rocksdb` crate, only `capture::sqlite` names `rusqlite`, only `http` names `rouille`, only
//! `service` names `crossbeam-channel`, and only `disk::sys` holds `unsafe`. The protocol of each part stands at the top of its file.

mod backups;
mod capture;
pub mod chainweb;
mod clock;
mod config;
mod control;
mod database_files;
mod disk;
mod error;
mod fault;
mod format;
mod http;
mod id;
mod service;
#[cfg(feature = "gate")]
#[doc(hidden)]
pub mod testing;
mod units;

pub use backups::below::{Settle, Settled};
pub use backups::details::{Details, Listed, Progress, Unreadable};
pub use backups::drill::{DrillOptions, drill_backup};
pub use backups::history::younger_in;
pub use backups::hooks::run_verified_hooks;
pub use backups::operations::{
    Summed, cancel_backup, check_backup_in, delete_backup, find_backup, free_bytes, list_all_in, list_backups_in,
    list_briefly_in, pin_backup, rehearse_restore, restore_backup, sum_backup, sweep_backups, unpin_backup,
    verify_backup,
};
pub use backups::placement::Way;
pub use backups::prune::{prune_backups, rehearse_prune};
pub use backups::rehearsal::{PartRehearsal, Rehearsal};
pub use backups::restore::{RestoreOptions, Restored, settle_restore};
pub use backups::retention::{Candidate, Verdict, judge};
pub use backups::verification::Verification;
pub use backups::verify::VerifyOptions;
pub use capture::rocksdb::{heights_json, inspect_json, open_json};
pub use capture::source::{RocksSource, Sources, SqliteSource, require_no_half_restore, resolve_trusted};
pub use capture::start_proof::starts_json;
pub use config::access::{Access, Hosts, OpenEndpoint, Tokens, parse_host, parse_open_endpoint};
pub use config::file::{FileConfig, parse_file};
pub use config::hooks::{Event, FileHooks, Hooks};
pub use config::schedule::{Interval, KeepRules, Policy, Schedule, TimeOfDay, parse_interval, parse_time_of_day};
pub use config::tree::FILE_BYTES_MAX;
pub use config::{
    Config, Depth, Interface, PactMethod, SocketAccess, Sums, Verify, parse_address, parse_count, parse_interface,
    parse_log_level, parse_name, parse_pact_method, parse_port, parse_seconds, parse_size, parse_socket_group,
    parse_socket_mode, parse_sums, parse_verify, require_no_tilde, suggest,
};
pub use control::{Control, Phase, Stop};
#[cfg(feature = "gate")]
#[doc(hidden)]
pub use disk::fault_gate as gate;
pub use disk::sys::step_back;
pub use disk::tokens::read_tokens;
pub use error::{Error, Kind, Result};
pub use fault::Fault;
pub use format::drill::Drill;
pub use format::hooks::HookRun;
pub use format::record::{
    BlockHeights, Method, PactPart, Pair, Record, RocksdbPart, Scope, Status, Verified, Versions,
};
pub use format::start_proof::StartProof;
pub use http::connections::{Decorate, Handler, Limits};
pub use http::inherited::inherited_sockets;
pub use http::listener::{Listener, Pulse, Stopper};
pub use http::routes::ROUTES;
pub use http::sockets::Peer;
pub use id::BackupId;
pub use service::Service;
pub use service::doctor::{Finding, Health, examine};
pub use service::shared::MakeRequest;
pub use service::textfile::metrics_of;
pub use service::timetable::Scheduled;
pub use units::{length, size, utc};

#[cfg(feature = "engine")]
pub use rocksdb;
pub use {rouille, rusqlite};

/// The pages of the [`manual`], topic and text, for `chainweb-backup help TOPIC`.
pub const MANUAL: [(&str, &str); 12] = [
    ("api", include_str!("manual/api.md")),
    ("commands", include_str!("manual/commands.md")),
    ("configuration", include_str!("manual/configuration.md")),
    ("monitoring", include_str!("manual/monitoring.md")),
    ("format", include_str!("manual/format.md")),
    ("performance", include_str!("manual/performance.md")),
    ("proxies", include_str!("manual/proxies.md")),
    ("one-disk", include_str!("manual/one-disk.md")),
    ("container", include_str!("manual/container.md")),
    ("embedding", include_str!("manual/embedding.md")),
    ("from-api", include_str!("manual/from-api.md")),
    ("from-copying", include_str!("manual/from-copying.md")),
];

/// The manual, a module for each page. `chainweb-backup help TOPIC` prints the same text.
pub mod manual {
    #[doc = include_str!("manual/api.md")]
    pub mod api {}
    #[doc = include_str!("manual/commands.md")]
    pub mod commands {}
    #[doc = include_str!("manual/configuration.md")]
    pub mod configuration {}
    #[doc = include_str!("manual/container.md")]
    pub mod container {}
    #[doc = include_str!("manual/embedding.md")]
    pub mod embedding {}
    #[doc = include_str!("manual/format.md")]
    pub mod format {}
    #[doc = include_str!("manual/from-api.md")]
    pub mod from_api {}
    #[doc = include_str!("manual/from-copying.md")]
    pub mod from_copying {}
    #[doc = include_str!("manual/monitoring.md")]
    pub mod monitoring {}
    #[doc = include_str!("manual/one-disk.md")]
    pub mod one_disk {}
    #[doc = include_str!("manual/performance.md")]
    pub mod performance {}
    #[doc = include_str!("manual/proxies.md")]
    pub mod proxies {}
}
