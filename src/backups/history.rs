//! The backups that have ended, as schedules see them.
//!
//! Invariant: a backup of which it cannot be read whether it is good counts as one that is not.

use std::path::Path;
use std::time::Duration;

use crate::backups::catalog::{Catalog, Found};
use crate::backups::due::{self, Ended};
use crate::backups::operations::refutation;
use crate::clock::now_ms;
use crate::error::Result;
use crate::format::record::Status;
use crate::id::BackupId;

/// All backups of ours that have ended, the newest first.
///
/// # Errors
/// [`crate::Kind::Io`]: the backup directory cannot be listed, or another one took its place.
pub(crate) fn ended(catalog: &Catalog) -> Result<Vec<Ended>> {
    let ended = |found: Found| {
        let record = found.record.as_ref().filter(|_| found.status != Status::InProgress)?;
        Some(Ended {
            started_ms: found.started_ms,
            ended_ms: record.finished_ms.unwrap_or(record.started_ms),
            has_pact: found.scope.has_pact(),
            schedule: record.schedule.clone(),
            is_good: found.status == Status::Done && is_sound(catalog, &found.id),
            id: found.id,
        })
    };
    Ok(catalog.readable()?.filter_map(ended).collect())
}

/// Whether neither damage of a backup is known nor that no node starts from it.
pub(crate) fn is_sound(catalog: &Catalog, id: &BackupId) -> bool {
    let doubt = || Ok::<_, crate::error::Error>(catalog.is_damaged(id)? || refutation(catalog, id)?.is_some());
    matches!(doubt(), Ok(false))
}

/// The newest good backup below a backup directory that a node can start from, if it began less than `limit` ago, with its age; with
/// `backup_pact` only one with Pact. A backup that is ahead of the clock by at most a tenth of the limit has the age zero.
///
/// # Errors
/// [`crate::Kind::Io`]: the directory exists and cannot be listed.
pub fn younger_in(directory: &Path, backup_pact: bool, limit: Duration) -> Result<Option<(BackupId, Duration)>> {
    if !directory.exists() {
        return Ok(None);
    }
    let (now_ms, limit_ms) = (now_ms(), due::millis(limit));
    let backups = ended(&Catalog::view(directory)?)?;
    let newest = due::newest(&backups, backup_pact, limit_ms, now_ms);
    let age = newest.map(|newest| (newest.id.clone(), now_ms.saturating_sub(newest.started_ms)));
    Ok(age.filter(|(_, age_ms)| *age_ms < limit_ms).map(|(id, age_ms)| (id, Duration::from_millis(age_ms))))
}
