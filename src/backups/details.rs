//! The description of a backup, and of the job that makes it, for answers and lists.

use std::time::Duration;

use serde::Serialize;

use crate::backups::catalog::{Catalog, Found};
use crate::backups::sums;
use crate::control::{Control, Phase};
use crate::error::{Error, Result};
use crate::format::drill::Drill;
use crate::format::hooks::HookRun;
use crate::format::record::{Record, Scope, Status, Verified};
use crate::format::start_proof::StartProof;
use crate::id::BackupId;

/// The description of one backup.
#[derive(Debug, Clone, Serialize)]
pub struct Details {
    /// The backup's identifier.
    pub id: BackupId,
    /// The word of the contract.
    pub status: Status,
    /// The databases that it covers.
    pub scope: Scope,
    /// Whether another program made it, for example the node's own API. Such a backup is never changed.
    pub foreign: bool,
    /// When it began, milliseconds since the epoch.
    pub started_ms: u64,
    /// The progress of its job; absent if no job of this service is making it.
    pub progress: Option<Progress>,
    /// Whether an operator pinned it, so that neither delete nor prune removes it.
    pub pinned: bool,
    /// Its last verification; absent if there was none.
    pub verified: Option<Verified>,
    /// Its last drill; absent if there was none.
    pub drill: Option<Drill>,
    /// Its last start-up proof: whether a node starts from it; absent if there was none.
    pub starts: Option<StartProof>,
    /// The last run of each of its hooks.
    pub hooks: Vec<HookRun>,
    /// Each file was last read whole at this time or later, milliseconds since the epoch; 0 if that is unknown. Absent if the
    /// files are links to the node's own, which the node reads itself.
    pub oldest_unread_ms: Option<u64>,
    /// The directories below its `0` that have checksums of all their files: `rocksDb`, `sqlite`.
    pub sums: Vec<&'static str>,
    /// The bytes on the disk that deleting it would free, as of the end of the last job or deletion; absent until that is known.
    pub exclusive_bytes: Option<u64>,
    /// The content of `backup.json`; absent for a foreign backup.
    pub record: Option<Record>,
}

/// An element of a list of backups.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Listed {
    /// A backup.
    Backup(Box<Details>),
    /// One that cannot be read.
    Unreadable(Unreadable),
}

/// A backup that cannot be read, because of damage or an error of the disk. It is neither good nor failed nor absent.
#[derive(Debug, Clone, Serialize)]
pub struct Unreadable {
    /// The backup's identifier.
    pub id: BackupId,
    /// Always `unreadable`.
    pub status: &'static str,
    /// The reason, in words.
    pub reason: String,
}

impl Unreadable {
    pub(crate) fn new(id: &BackupId, why: &Error) -> Unreadable {
        Unreadable { id: id.clone(), status: "unreadable", reason: why.chain() }
    }
}

/// The progress of a running job.
#[derive(Debug, Clone, Serialize)]
pub struct Progress {
    /// Its phase.
    pub phase: Phase,
    /// Bytes copied so far; linked files move no bytes.
    pub bytes_done: u64,
    /// Bytes to copy in all, as far as known.
    pub bytes_total: u64,
    /// Bytes copied per second, on average since the job began.
    pub bytes_per_second: u64,
    /// Seconds since the job began.
    pub elapsed_seconds: u64,
    /// Seconds until the bytes are copied at that rate; absent before the first byte.
    pub eta_seconds: Option<u64>,
}

impl Progress {
    /// The progress of a job, or of a step of a command, that began `elapsed` ago.
    pub fn of(control: &Control, elapsed: Duration) -> Progress {
        let (bytes_done, bytes_total) = control.bytes();
        let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
        let bytes_per_second = bytes_done.saturating_mul(1000) / millis;
        Progress {
            phase: control.phase(),
            bytes_done,
            bytes_total,
            bytes_per_second,
            elapsed_seconds: elapsed.as_secs(),
            eta_seconds: (bytes_total - bytes_done).checked_div(bytes_per_second),
        }
    }
}

impl Details {
    /// Whether its last verification found damage.
    pub fn is_damaged(&self) -> bool {
        self.verified.as_ref().is_some_and(|verified| verified.faults_count > 0)
    }

    /// Whether it is damaged, or a proof has found that no node starts from it.
    pub fn is_doubtful(&self) -> bool {
        self.is_damaged() || self.starts.as_ref().is_some_and(|proof| proof.refutation().is_some())
    }

    /// Whether it is finished, ours, and not doubtful.
    pub fn is_good(&self) -> bool {
        self.status == Status::Done && !self.foreign && !self.is_doubtful()
    }

    /// The description of a job whose directory was removed.
    pub(crate) fn without_directory(id: &BackupId, status: Status, scope: Scope, started_ms: u64) -> Details {
        Details {
            id: id.clone(),
            status,
            scope,
            foreign: false,
            pinned: false,
            verified: None,
            drill: None,
            starts: None,
            hooks: Vec::new(),
            oldest_unread_ms: None,
            sums: Vec::new(),
            started_ms,
            progress: None,
            exclusive_bytes: None,
            record: None,
        }
    }

    /// The description of a backup on the disk; no job of this service is making it.
    pub(crate) fn of(catalog: &Catalog, found: Found) -> Result<Details> {
        let verified = catalog.verified(&found.id)?;
        Ok(Details {
            foreign: found.record.is_none(),
            pinned: catalog.is_pinned(&found.id)?,
            drill: catalog.drill(&found.id)?,
            starts: catalog.starts(&found.id)?,
            hooks: catalog.hooks(&found.id)?,
            oldest_unread_ms: oldest_unread_ms(found.record.as_ref(), verified.as_ref()),
            verified,
            sums: sums::present(&catalog.path(&found.id))?,
            exclusive_bytes: None,
            progress: None,
            id: found.id,
            status: found.status,
            scope: found.scope,
            started_ms: found.started_ms,
            record: found.record,
        })
    }
}

/// The oldest reading of a file; a deep verification without a fault has read every file.
fn oldest_unread_ms(record: Option<&Record>, verified: Option<&Verified>) -> Option<u64> {
    let oldest_ms = record?.rocksdb.as_ref()?.oldest_read_ms?;
    let all_ms = verified.filter(|verified| verified.is_deep() && verified.faults_count == 0).map(|v| v.at_ms);
    Some(all_ms.map_or(oldest_ms, |all_ms| all_ms.max(oldest_ms)))
}
