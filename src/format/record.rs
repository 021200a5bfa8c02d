//! The durable record of a backup: `status` decides, `backup.json` explains.
//!
//! `status` holds one word and no newline. `backup.json` opens with our mark, `"format": "chainweb-backup/1"`: a
//! directory without it is somebody else's and is never changed. Fields may be added within a format; readers ignore
//! fields that they do not know, and take a format that they do not know for somebody else's.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::control::Phase;
use crate::format::seal;
use crate::id::BackupId;

/// Our mark in `backup.json` and `manifest.json`.
pub(crate) const FORMAT: &str = "chainweb-backup/1";

/// How the last verification of a backup went, or the last deep one, where a quick one after it found nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// `quick` or `deep`.
    pub depth: String,
    /// Milliseconds since the epoch.
    pub at_ms: u64,
    /// How much was wrong.
    pub faults_count: u64,
    /// The SSTs and blob files that are damaged, if nothing else is: a later backup takes over the others.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub damaged: BTreeSet<String>,
}

impl Verified {
    /// What a deep verification is called.
    pub(crate) const DEEP: &str = "deep";

    /// Whether every byte was read.
    pub(crate) fn is_deep(&self) -> bool {
        self.depth == Verified::DEEP
    }
}

/// What is known of a backup job, in the words of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// The backup is being made.
    InProgress,
    /// The backup is whole and durable.
    Done,
    /// There is no backup; the record says why.
    Failed,
}

impl Status {
    /// The word of the contract, as it stands in the `status` file and in answers.
    pub fn word(self) -> &'static str {
        match self {
            Status::InProgress => "backup-in-progress",
            Status::Done => "backup-done",
            Status::Failed => "backup-failed",
        }
    }

    /// Reads a `status` file's content; white space around the word is somebody's editor.
    pub(crate) fn parse(text: &str) -> Option<Status> {
        [Status::InProgress, Status::Done, Status::Failed].into_iter().find(|s| s.word() == text.trim())
    }
}

impl Serialize for Status {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

/// What a backup covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// RocksDB alone.
    #[serde(rename = "rocksdb")]
    Rocksdb,
    /// RocksDB and every Pact database.
    #[serde(rename = "rocksdb,pact")]
    RocksdbAndPact,
}

impl Scope {
    /// The scope as the header `x-backup-scope` and the record spell it.
    pub fn word(self) -> &'static str {
        match self {
            Scope::Rocksdb => "rocksdb",
            Scope::RocksdbAndPact => "rocksdb,pact",
        }
    }

    /// Whether the Pact databases are in.
    pub fn has_pact(self) -> bool {
        self == Scope::RocksdbAndPact
    }
}

/// How a file, or a whole database, came into a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// A second name of the node's own file.
    Linked,
    /// A second name of a file of an earlier backup.
    Reused,
    /// Bytes read and written.
    Copied,
    /// The files of a SQLite database, copied under a read transaction.
    RawCopy,
    /// As a raw copy or a plain one, sharing the blocks of the node's own file.
    RawClone,
    /// Written by SQLite's online backup.
    OnlineBackup,
}

/// How RocksDB came into the backup, and what it holds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RocksdbPart {
    /// `checkpoint` through an open handle, or `live-copy` of a directory that another process may hold.
    pub capture: String,
    /// Files in it.
    pub files_count: u64,
    /// Their sizes added up.
    pub bytes: u64,
    /// Bytes that were copied; the rest is linked, to the node's files or to an earlier backup's.
    pub copied_bytes: u64,
    /// How often RocksDB was captured: more than once when Pact was ahead of it.
    pub captures_count: u32,
    /// Rounds until a live copy held, the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounds_count: Option<u32>,
    /// How long the window of its last round was open, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_us: Option<u64>,
    /// Height of the newest cut, where the database has cuts.
    pub cut_height: Option<u64>,
    /// When the file was read whole whose last reading was the longest ago, in milliseconds since the epoch; 0 if that is unknown.
    /// Absent where files are the node's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_read_ms: Option<u64>,
}

/// One Pact database in the backup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PactPart {
    /// File name below `0/sqlite`.
    pub file: String,
    /// The chain in its name.
    pub chain: Option<u32>,
    /// How it was copied.
    pub method: Method,
    /// Size of the copy.
    pub bytes: u64,
    /// Newest block in `BlockHistory`.
    pub block_height: Option<u64>,
    /// Its hash, in hexadecimal.
    pub block_hash: Option<String>,
}

/// The programs that took part.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Versions {
    /// This crate.
    pub chainweb_backup: String,
    /// The RocksDB that last wrote the database: the node's.
    pub rocksdb: String,
    /// The SQLite linked into it.
    pub sqlite: String,
    /// The node, as configured.
    pub node: String,
}

/// The content of `backup.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Our mark.
    pub format: String,
    /// The backup's identifier.
    pub id: BackupId,
    /// What it covers.
    pub scope: Scope,
    /// The last phase that was written down.
    pub phase: Phase,
    /// Milliseconds since the epoch.
    pub started_ms: u64,
    /// Milliseconds since the epoch; absent while it runs.
    pub finished_ms: Option<u64>,
    /// Sizes of all its files added up.
    pub bytes: u64,
    /// Number of its files.
    pub files_count: u64,
    /// RocksDB's part.
    pub rocksdb: Option<RocksdbPart>,
    /// The Pact databases, by chain.
    #[serde(default)]
    pub pact: Vec<PactPart>,
    /// Blocks that the node will replay after a restore: the largest distance of a Pact database behind the cut.
    pub replay_blocks: Option<u64>,
    /// Things an operator should know although the backup is good.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Why it failed.
    pub reason: Option<String>,
    /// The programs that took part.
    #[serde(default)]
    pub versions: Versions,
}

impl Record {
    /// The record of a job that has just been created.
    pub(crate) fn new(id: BackupId, scope: Scope, started_ms: u64, versions: Versions) -> Record {
        Record {
            format: FORMAT.to_owned(),
            id,
            scope,
            phase: Phase::PreFlight,
            started_ms,
            finished_ms: None,
            bytes: 0,
            files_count: 0,
            rocksdb: None,
            pact: Vec::new(),
            replay_blocks: None,
            warnings: Vec::new(),
            reason: None,
            versions,
        }
    }

    /// The bytes of `backup.json`.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        seal::to_bytes(self)
    }

    /// Whether a record of this age must carry its seal: version 0.1.0 knew none.
    pub(crate) fn must_be_sealed(&self) -> bool {
        self.versions.chainweb_backup != "0.1.0"
    }

    /// Reads `backup.json`; `None` where it is not ours: broken, or of another format.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Record> {
        serde_json::from_slice(bytes).ok().filter(|r: &Record| r.format == FORMAT)
    }
}
