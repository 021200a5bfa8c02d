//! The durable record of a backup: `status` decides, `backup.json` explains.
//!
//! `status` has one word and no newline. `backup.json` begins with our mark, `"format": "chainweb-backup/1"`: a directory
//! without it is foreign and is never changed. Fields may be added within a format: readers ignore unknown fields, and treat an
//! unknown format as foreign.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::Depth;
use crate::control::Phase;
use crate::format::seal;
use crate::id::BackupId;
use crate::units::total;

/// Our mark in `backup.json` and `manifest.json`.
pub(crate) const FORMAT: &str = "chainweb-backup/1";

/// The result of the last verification of a backup, or of the last deep one if a quick one after it found no fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// The backup: a note of another one counts as one that cannot be read. Absent in notes of versions until 0.2.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<BackupId>,
    /// How thorough it was.
    pub depth: Depth,
    /// Milliseconds since the epoch.
    pub at_ms: u64,
    /// The number of faults.
    pub faults_count: u64,
    /// The damaged SSTs and blob files, if no other file is damaged: then a later backup may link the good ones.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub damaged: BTreeSet<String>,
}

impl Verified {
    /// Stands for a note that cannot be read: it may have named damage, of any file.
    pub(crate) fn unreadable() -> Verified {
        Verified { id: None, depth: Depth::Quick, at_ms: 0, faults_count: 1, damaged: BTreeSet::new() }
    }

    /// Whether it stands for a note that cannot be read.
    pub(crate) fn is_unreadable(&self) -> bool {
        *self == Verified::unreadable()
    }

    /// Whether every byte was read.
    pub(crate) fn is_deep(&self) -> bool {
        self.depth == Depth::Deep
    }
}

/// The state of a backup, in the words of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// The backup is being made.
    InProgress,
    /// The backup is whole and durable.
    Done,
    /// The backup failed and has no data; the record says why.
    Failed,
}

impl Status {
    /// The word of the contract, in the `status` file and in answers.
    pub fn word(self) -> &'static str {
        match self {
            Status::InProgress => "backup-in-progress",
            Status::Done => "backup-done",
            Status::Failed => "backup-failed",
        }
    }

    /// Parses the content of a `status` file; ignores white space around the word, which an editor may have added.
    pub(crate) fn parse(text: &str) -> Option<Status> {
        [Status::InProgress, Status::Done, Status::Failed].into_iter().find(|s| s.word() == text.trim())
    }
}

impl Serialize for Status {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

/// The databases that a backup covers.
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
    /// The scope as text, in the header `x-backup-scope` and in the record.
    pub fn word(self) -> &'static str {
        match self {
            Scope::Rocksdb => "rocksdb",
            Scope::RocksdbAndPact => "rocksdb,pact",
        }
    }

    /// Whether the Pact databases are included.
    pub fn has_pact(self) -> bool {
        self == Scope::RocksdbAndPact
    }
}

/// How a file, or a whole database, was put into a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// A hard link to the node's own file.
    Linked,
    /// A hard link to a file of an earlier backup.
    Reused,
    /// Copied: all bytes were read and written.
    Copied,
    /// The files of an SQLite database, copied under a read transaction.
    RawCopy,
    /// An SQLite database that shares the blocks that did not change with an earlier backup; otherwise as a raw copy or a file copy.
    Increment,
    /// A delta pair: a hard link to an SQLite database of an earlier backup, and a WAL with the pages that differ from it.
    Delta,
    /// As a raw copy or a file copy, but the copy shares the blocks of the node's own file.
    RawClone,
    /// Written by SQLite's online backup.
    OnlineBackup,
}

impl Method {
    /// The method as text, in the record and in the metrics.
    pub fn word(self) -> &'static str {
        match self {
            Method::Linked => "linked",
            Method::Reused => "reused",
            Method::Copied => "copied",
            Method::RawCopy => "raw-copy",
            Method::Increment => "increment",
            Method::Delta => "delta",
            Method::RawClone => "raw-clone",
            Method::OnlineBackup => "online-backup",
        }
    }
}

/// How RocksDB was captured, and the content of the copy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RocksdbPart {
    /// `checkpoint` through an open handle, or `live-copy` of a directory that another process may hold.
    pub capture: String,
    /// The number of its files.
    pub files_count: u64,
    /// The sum of their sizes.
    pub bytes: u64,
    /// Bytes that were copied; the other files are links to files of the node or of an earlier backup.
    pub copied_bytes: u64,
    /// How often RocksDB was captured: more than once if Pact was ahead of it.
    pub captures_count: u32,
    /// The number of rounds of the last live copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounds_count: Option<u32>,
    /// How long the window of its last round was open, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_us: Option<u64>,
    /// Height of the newest cut, if the database has cuts: the sum of the heights of its blocks.
    pub cut_height: Option<u64>,
    /// The heights of the blocks of that cut. Absent if they are not known, as in records of versions until 0.2.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_heights: Option<BlockHeights>,
    /// Each file was last read whole at this time or later, in milliseconds since the epoch; 0 if that is unknown. Absent if files
    /// are links to the node's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_read_ms: Option<u64>,
}

/// The heights of the newest blocks of all chains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockHeights {
    /// The lowest of them.
    pub lowest: u64,
    /// The highest of them.
    pub highest: u64,
}

impl fmt::Display for BlockHeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lowest == self.highest {
            return write!(f, "{}", self.lowest);
        }
        write!(f, "{}-{}", self.lowest, self.highest)
    }
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
    /// Size of the copy; of a pair, the size of the database that its two files are together.
    pub bytes: u64,
    /// Height of its newest block.
    pub block_height: Option<u64>,
    /// Its hash, in hexadecimal.
    pub block_hash: Option<String>,
    /// The backup of which it is an increment; of a pair, the backup for which its base was written, and which may be gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<BackupId>,
    /// The bytes of an increment or of a pair that were written; it shares the others with `base`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written_bytes: Option<u64>,
    /// What makes it a pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pair: Option<Pair>,
    /// The permissions of the node's file, if those of the copy are others: a base of pairs is read only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// Why it was copied as a whole, although an earlier backup has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copied_because: Option<String>,
}

/// The two files of a delta pair: the base, which has the name of the database, and the WAL beside it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// Size of the base.
    pub base_bytes: u64,
    /// When the base was last written to: seconds since the epoch.
    pub base_modified_seconds: i64,
    /// The same time: nanoseconds of its second.
    pub base_modified_nanoseconds: i64,
    /// Size of the WAL.
    pub wal_bytes: u64,
    /// Number of its frames, one for each page that differs from the base.
    pub frames_count: u64,
    /// Number of pages of the database.
    pub pages_count: u32,
    /// The two checksums of its last frame, in hexadecimal.
    pub last_checksum: String,
    /// The BLAKE2b-512 of the WAL, in hexadecimal.
    pub wal_blake2b: String,
    /// Size of all WALs that were written to this base so far.
    pub deltas_bytes: u64,
    /// Number of these WALs.
    pub deltas_count: u32,
}

impl PactPart {
    /// The bytes of the file that has the name of the database.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.pair.as_ref().map_or(self.bytes, |pair| pair.base_bytes)
    }

    /// The bytes that were written for it.
    pub fn all_written_bytes(&self) -> u64 {
        let whole_bytes = if self.method == Method::RawClone { 0 } else { self.bytes };
        self.written_bytes.unwrap_or(whole_bytes)
    }
}

/// The versions of the programs involved.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Versions {
    /// This crate.
    pub chainweb_backup: String,
    /// The RocksDB that last wrote the database: the node's.
    pub rocksdb: String,
    /// The SQLite linked into this crate.
    pub sqlite: String,
    /// The node, as configured.
    pub node: String,
    /// The name of the Chainweb version, as the newest cut has it: `mainnet01`. Absent if it is not known, as in records of versions
    /// until 0.2.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chainweb: Option<String>,
}

/// The content of `backup.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Our mark.
    pub format: String,
    /// The backup's identifier.
    pub id: BackupId,
    /// The databases that it covers.
    pub scope: Scope,
    /// The schedule for which it was made, like `every 24h at 03:00`; absent if a client or a command asked for it, and in records of
    /// versions until 0.2.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// The last phase that was recorded.
    pub phase: Phase,
    /// Milliseconds since the epoch.
    pub started_ms: u64,
    /// Milliseconds since the epoch; absent while it runs.
    pub finished_ms: Option<u64>,
    /// The sum of the sizes of its files.
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
    /// Warnings for the operator; the backup is good.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Why it failed.
    pub reason: Option<String>,
    /// The versions of the programs involved.
    #[serde(default)]
    pub versions: Versions,
}

impl Record {
    /// The bytes that were written for all Pact databases. The record may be damaged: any numbers in it have a sum.
    pub fn pact_written_bytes(&self) -> u64 {
        total(self.pact.iter().map(PactPart::all_written_bytes))
    }

    /// The record of a new job.
    pub(crate) fn new(id: BackupId, scope: Scope, started_ms: u64, versions: Versions) -> Record {
        Record {
            format: FORMAT.to_owned(),
            id,
            scope,
            schedule: None,
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

    /// Whether the record must have a seal: version 0.1.0 did not write one.
    pub(crate) fn must_be_sealed(&self) -> bool {
        self.versions.chainweb_backup != "0.1.0"
    }

    /// Parses `backup.json`; `None` if it is not ours: broken, or of another format.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Record> {
        serde_json::from_slice(bytes).ok().filter(|r: &Record| r.format == FORMAT)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// What is unknown is left out, as in the records of versions that did not have the fields.
    #[test]
    fn a_record_of_an_earlier_version_is_one_without_the_newer_fields() {
        let id = BackupId::parse("1795382304483").unwrap();
        let mut record = Record::new(id, Scope::Rocksdb, 5, Versions::default());
        record.rocksdb = Some(RocksdbPart { cut_height: Some(40), ..RocksdbPart::default() });
        let text = serde_json::to_string(&record).unwrap();
        assert!(!text.contains("block_heights") && !text.contains("\"chainweb\""), "{text}");
        assert_eq!(Record::parse(text.as_bytes()), Some(record));
    }

    #[test]
    fn the_word_of_a_method_is_the_one_in_the_record() {
        use Method::{Copied, Delta, Increment, Linked, OnlineBackup, RawClone, RawCopy, Reused};
        for method in [Linked, Reused, Copied, RawCopy, Increment, Delta, RawClone, OnlineBackup] {
            assert_eq!(serde_json::to_string(&method).unwrap(), format!("\"{}\"", method.word()));
        }
    }

    #[test]
    fn heights_are_one_number_or_two() {
        let text = |lowest, highest| BlockHeights { lowest, highest }.to_string();
        assert_eq!((text(20, 20), text(1_539_922, 1_539_924)), ("20".to_owned(), "1539922-1539924".to_owned()));
    }

    #[test]
    fn a_verification_is_written_as_earlier_versions_wrote_it() {
        for (depth, text) in [
            (Depth::Quick, r#"{"depth":"quick","at_ms":5,"faults_count":0}"#),
            (Depth::Deep, r#"{"depth":"deep","at_ms":5,"faults_count":0}"#),
        ] {
            let verified: Verified = serde_json::from_str(text).unwrap();
            assert_eq!((verified.depth, verified.is_deep()), (depth, depth == Depth::Deep));
            assert_eq!(serde_json::to_string(&verified).unwrap(), text);
            assert!(text.contains(depth.word()));
        }
    }
}
