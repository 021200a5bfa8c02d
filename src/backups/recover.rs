//! Recovers after a crash: a backup in progress that no living process works on becomes failed, and so does a hook that none runs.
//!
//! This only renames and writes small files, so it takes almost no time; the sweep of the catalog removes the data afterwards.
//!
//! Invariants: only directories with our mark, and names that we make, are changed; a backup whose lock a living process holds is
//! not changed; if one backup cannot be settled, the others are settled all the same.

use std::path::Path;

use rustix::fs::FileType;

use crate::backups::catalog::{Catalog, INTERRUPTED, is_there, look, read_record, read_status};
use crate::backups::commit;
use crate::backups::hooks;
use crate::config::hooks::Event;
use crate::disk::lock::Lock;
use crate::disk::{self, fault_gate, nofollow};
use crate::error::{IoContext, Result};
use crate::format::layout::{
    self, DRILL_FILE, HOOKS_FILE, MANIFEST_FILE, PARTIAL, RECORD_FILE, STARTS_FILE, STATUS_FAILED_FILE, STATUS_FILE,
    USE_FILE, VERIFIED_FILE, WHOLE,
};
use crate::format::record::{Record, Status};
use crate::id::BackupId;

/// What a crash has left.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    /// The backups that it interrupted, which have failed now.
    pub(crate) interrupted: Vec<BackupId>,
    /// The other backups with a hook that is unfinished, and the events of these hooks.
    pub(crate) unfinished: Vec<(BackupId, Vec<Event>)>,
}

/// Settles every status that a crash left open. Removes nothing: that is the sweep's work.
pub(crate) fn recover(catalog: &Catalog) -> Result<Recovered> {
    let mut recovered = Recovered::default();
    // While another process makes a backup, the directory that it is creating must not be changed.
    if let Some(_job_lock) = Lock::try_take(&catalog.job_lock_path(), catalog.owner())? {
        for (name, id) in catalog.names()?.iter().filter_map(|name| Some((name, layout::id_in_creating(name)?))) {
            let path = catalog.directory().join(name);
            if holds_birth_only(&path)? {
                disk::rename(&path, &catalog.free_garbage_path(&id)?)?;
            } else {
                log::warn!("directory not removed path={} reason=\"it has files of another program\"", path.display());
            }
        }
    }
    for id in catalog.ids()? {
        // If one cannot be settled, the others must be served all the same: the next start tries again.
        match settle(catalog, &id) {
            Ok(true) => recovered.interrupted.push(id),
            Ok(false) => match hooks::unfinished(catalog, &id) {
                Ok(events) if events.is_empty() => {}
                Ok(events) => recovered.unfinished.push((id, events)),
                Err(e) => log::warn!("hooks not read id={id} reason={:?}", e.chain()),
            },
            Err(e) => log::warn!("backup not settled id={id} reason={:?}", e.chain()),
        }
    }
    Ok(recovered)
}

/// Whether a crash has interrupted the backup.
fn settle(catalog: &Catalog, id: &BackupId) -> Result<bool> {
    let path = catalog.path(id);
    if !look(&path)?.is_some_and(|meta| meta.is_dir()) || read_record(&path, id)?.is_none() {
        return Ok(false);
    }
    match read_status(&path)? {
        None => {
            log::warn!("backup not settled id={id} reason=\"its status file is missing or has an unknown content\"");
        }
        Some(Status::Done) => {
            disk::remove_file(&path.join(STATUS_FAILED_FILE))?;
            end_notes(catalog, &path)?;
            hooks::settle(catalog, id, Status::Done)?;
        }
        Some(_) if unsettled(&path, id)?.is_none() => {
            end_notes(catalog, &path)?;
            hooks::settle(catalog, id, Status::Failed)?;
        }
        Some(_) => {
            fault_gate::point("settle", &path);
            // Another process may be making it, or be about to write why it failed.
            let Some(_use_lock) = Lock::try_take(&path.join(USE_FILE), catalog.owner())? else { return Ok(false) };
            // Or it was finished meanwhile: only the state that is read under the lock counts.
            let Some((mut record, reason)) = unsettled(&path, id)? else { return Ok(false) };
            commit::fail(catalog, &path, &mut record, reason, catalog.owner())?;
            log::warn!("backup interrupted id={id}");
            hooks::settle(catalog, id, Status::Failed)?;
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes what an interrupted writer of a note in a backup that has ended left.
fn end_notes(catalog: &Catalog, path: &Path) -> Result<()> {
    for name in [VERIFIED_FILE, STARTS_FILE, DRILL_FILE, HOOKS_FILE] {
        // A process that works on the backup may be writing it now.
        if is_there(&path.join(disk::temporary(name)))?
            && let Some(_use_lock) = Lock::try_take(&path.join(USE_FILE), catalog.owner())?
        {
            disk::end_replace(path, name)?;
        }
    }
    Ok(())
}

/// The record of a backup whose end is not settled, and the reason as far as it is known; `None` for a settled one.
fn unsettled(path: &Path, id: &BackupId) -> Result<Option<(Record, &'static str)>> {
    let (Some(record), Some(status)) = (read_record(path, id)?, read_status(path)?) else { return Ok(None) };
    let mut is_left = false;
    for name in [PARTIAL, WHOLE, MANIFEST_FILE] {
        is_left |= is_there(&path.join(name))?;
    }
    Ok(match status {
        Status::InProgress => Some((record, INTERRUPTED)),
        Status::Failed if is_left || record.reason.is_none() => {
            Some((record, "interrupted while it was failing: the reason of the failure is lost"))
        }
        Status::Done | Status::Failed => None,
    })
}

/// Whether a directory contains only the files that a backup has before it gets its name: then it can be removed.
fn holds_birth_only(path: &Path) -> Result<bool> {
    let failed = || format!("cannot list {}", path.display());
    if !look(path)?.is_some_and(|meta| meta.is_dir()) {
        return Ok(false);
    }
    for entry in nofollow::entries(path).context(failed)? {
        let (name, stat) = entry.context(failed)?;
        let is_birth = [USE_FILE, RECORD_FILE, STATUS_FAILED_FILE, STATUS_FILE].iter().any(|ours| name == **ours);
        if !is_birth || FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(false);
        }
    }
    Ok(true)
}
