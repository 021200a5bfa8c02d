//! The totals of all backups of a directory, for the metrics. No I/O: each backup is [added](Summary::add) separately, the newest first.
//!
//! Invariants
//! - Of two backups the newer one is the one that was added first; no time decides that, because a clock may have been wrong.
//! - Everything is read from the backups, so that it is the same after a restart, and for the backups of other processes.

use std::collections::BTreeMap;

use crate::backups::details::Details;
use crate::chainweb::start::Verdict;
use crate::config::hooks::Event;
use crate::format::hooks::HookRun;
use crate::format::record::{Method, Record, RocksdbPart, Status};
use crate::service::counters::{SCOPES, place_of};

/// For each method the size of the Pact databases, and the bytes that were written for them.
pub(crate) type ByMethod = BTreeMap<&'static str, (u64, u64)>;

/// The totals of all backups, including those of other processes.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    /// Backups that are done, in progress, and failed; foreign ones, too.
    pub(crate) done_count: u64,
    pub(crate) in_progress_count: u64,
    pub(crate) failed_count: u64,
    pub(crate) pinned_count: u64,
    pub(crate) foreign_count: u64,
    /// Backups whose last verification found damage.
    pub(crate) damaged_count: u64,
    /// Backups that could not be read, and are missing in all other totals.
    pub(crate) unreadable_count: u64,
    /// Whether a backup could not be read, or the directory not be listed.
    pub(crate) is_incomplete: bool,
    /// Whether a backup of ours is being made, by this or another process.
    pub(crate) is_in_progress: bool,
    /// The sum of what deleting each backup alone would free, of those of which it is known.
    pub(crate) exclusive_bytes: Option<u64>,
    /// The newest backups of ours of each scope.
    pub(crate) scopes: [OfScope; SCOPES.len()],
    /// The end of the newest backup of ours that is good, and of the newest one that failed.
    pub(crate) last_success_ms: Option<u64>,
    pub(crate) last_failure_ms: Option<u64>,
    /// Of the newest backup of ours that is done: the time since which each of its files was read, if that applies; and the number of
    /// its warnings.
    pub(crate) oldest_unread_ms: Option<Option<u64>>,
    pub(crate) warnings_count: Option<usize>,
    /// How the files of RocksDB came into it: the bytes of each method.
    pub(crate) rocksdb: Option<Vec<(&'static str, u64)>>,
    /// The Pact databases of the newest one that has them.
    pub(crate) pact: Option<ByMethod>,
    /// The last drill of the newest one that had one: when it began, and whether it passed.
    pub(crate) drill: Option<(u64, bool)>,
    /// The last deep verification without a fault of the newest one that had one: its time.
    pub(crate) deep_ms: Option<u64>,
    /// The newest one whose start-up proof has a result: whether a node starts, and the blocks to replay.
    pub(crate) proof: Option<(bool, u64)>,
    /// The end of the newest good one from which a node starts.
    pub(crate) startable_ms: Option<u64>,
    /// For each event, whether the hooks of it that have ended passed, of the newest backup of ours with one.
    pub(crate) newest_hooks: BTreeMap<Event, bool>,
    /// For each event, when the hooks of the last backup ended of which all passed.
    pub(crate) passed_hooks_ms: BTreeMap<Event, u64>,
    /// The node's version in the newest record.
    pub(crate) node_version: Option<String>,
}

/// The newest backups of ours of one scope.
#[derive(Debug, Default)]
pub(crate) struct OfScope {
    /// When the newest one began, whatever became of it.
    pub(crate) attempt_ms: Option<u64>,
    pub(crate) success: Option<Ended>,
    pub(crate) failure: Option<Ended>,
}

/// A backup that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Its identifier; 0 if that is no number.
    pub(crate) id: u64,
    pub(crate) ended_ms: u64,
    pub(crate) duration_ms: u64,
    pub(crate) bytes: u64,
}

impl Summary {
    /// Adds a backup that is older than all that were added before.
    pub(crate) fn add(&mut self, backup: &Details) {
        self.count(backup);
        // A foreign backup has none.
        let Some(record) = &backup.record else { return };
        self.node_version.get_or_insert_with(|| record.versions.node.clone());
        self.add_hooks(backup);
        let of_scope = &mut self.scopes[place_of(record.scope)];
        of_scope.attempt_ms.get_or_insert(record.started_ms);
        let ended_ms = record.finished_ms.unwrap_or(record.started_ms);
        let ended = || Ended {
            id: backup.id.number().unwrap_or(0),
            ended_ms,
            duration_ms: ended_ms.saturating_sub(record.started_ms),
            bytes: record.bytes,
        };
        match backup.status {
            Status::InProgress => {}
            Status::Failed => {
                of_scope.failure.get_or_insert_with(ended);
                self.last_failure_ms.get_or_insert(ended_ms);
            }
            Status::Done => {
                if !backup.is_damaged() {
                    of_scope.success.get_or_insert_with(ended);
                    self.last_success_ms.get_or_insert(ended_ms);
                }
                self.add_done(backup, record);
            }
        }
    }

    fn add_hooks(&mut self, backup: &Details) {
        for event in Event::ALL {
            let of_event = || backup.hooks.iter().filter(|hook| hook.event == event);
            let Some(last_ms) = of_event().filter_map(HookRun::ended_ms).max() else { continue };
            let have_passed = of_event().all(|hook| hook.passed || hook.ended_ms().is_none());
            self.newest_hooks.entry(event).or_insert(have_passed);
            if of_event().all(|hook| hook.passed) {
                let passed_ms = self.passed_hooks_ms.entry(event).or_default();
                *passed_ms = last_ms.max(*passed_ms);
            }
        }
    }

    /// Adds one that exists and cannot be read.
    pub(crate) fn add_unreadable(&mut self) {
        self.unreadable_count += 1;
        self.is_incomplete = true;
    }

    fn count(&mut self, backup: &Details) {
        match backup.status {
            Status::Done => self.done_count += 1,
            Status::Failed => self.failed_count += 1,
            Status::InProgress => {
                self.in_progress_count += 1;
                self.is_in_progress |= !backup.foreign;
            }
        }
        self.pinned_count += u64::from(backup.pinned);
        self.foreign_count += u64::from(backup.foreign);
        self.damaged_count += u64::from(backup.is_damaged());
        if let Some(bytes) = backup.exclusive_bytes {
            self.exclusive_bytes = Some(self.exclusive_bytes.unwrap_or(0).saturating_add(bytes));
        }
    }

    /// What only a backup of ours that is done has.
    fn add_done(&mut self, backup: &Details, record: &Record) {
        self.oldest_unread_ms.get_or_insert(backup.oldest_unread_ms);
        self.warnings_count.get_or_insert(record.warnings.len());
        if let Some(rocksdb) = &record.rocksdb {
            self.rocksdb.get_or_insert_with(|| by_method(rocksdb));
        }
        if record.scope.has_pact() {
            self.pact.get_or_insert_with(|| pact_by_method(record));
        }
        if let Some(drill) = &backup.drill {
            self.drill.get_or_insert((drill.at_ms, drill.passed));
        }
        if let Some(verified) = backup.verified.as_ref().filter(|v| v.is_deep() && v.faults_count == 0) {
            self.deep_ms.get_or_insert(verified.at_ms);
        }
        match backup.starts.as_ref().map(|proof| &proof.verdict) {
            Some(Verdict::Yes(start)) => {
                self.proof.get_or_insert((true, start.replay_sum()));
                if !backup.is_damaged() {
                    self.startable_ms.get_or_insert(record.finished_ms.unwrap_or(record.started_ms));
                }
            }
            Some(Verdict::No { .. }) => {
                self.proof.get_or_insert((false, 0));
            }
            Some(Verdict::Unknown { .. }) | None => {}
        }
    }
}

/// The bytes of RocksDB that were copied, and those that are links to the files of the node or of an earlier backup.
fn by_method(rocksdb: &RocksdbPart) -> Vec<(&'static str, u64)> {
    let linked = if rocksdb.oldest_read_ms.is_some() { Method::Reused } else { Method::Linked };
    let linked_bytes = rocksdb.bytes.saturating_sub(rocksdb.copied_bytes);
    vec![(Method::Copied.word(), rocksdb.copied_bytes), (linked.word(), linked_bytes)]
}

fn pact_by_method(record: &Record) -> ByMethod {
    let mut by_method = ByMethod::new();
    for part in &record.pact {
        let (bytes, written_bytes) = by_method.entry(part.method.word()).or_default();
        // The record may be damaged.
        *bytes = bytes.saturating_add(part.bytes);
        *written_bytes = written_bytes.saturating_add(part.all_written_bytes());
    }
    by_method
}
