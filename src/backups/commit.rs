//! One unfinished backup, from the creation of its directory to the one commit point, or to its failure.
//!
//! ```text
//! step                                                    a crash after it leaves
//! 1  lock .lock; write the id into it                     nothing
//! 2  .creating-<id>: lock .use, write backup.json,        .creating-<id>, which recover removes;
//!    status.failed, status (in progress), sync            the id was not handed out
//! 3  rename .creating-<id> -> <id>, sync the parent       an in-progress backup, which recover fails;
//!    ONLY NOW IS THE ID HANDED OUT                        the same after each step up to 6
//! 4  fill 0.partial, also with each BLAKE2SUMS that
//!    needs no reading; it is not in manifest.json
//! 5  write manifest.json, and what will be backup.json
//!    and status; sync these, the files of step 4 that
//!    are no links, and its directories, bottom-up
//! 6  rename backup.json, then 0.partial -> 0, sync <id>
//! 7  rename status, which becomes backup-done, sync:      a good backup
//!    THE COMMIT
//! 8  remove status.failed                                 (recover removes it)
//! ```
//! Failing: first `status.failed` is renamed to `status` (it needs no space), then the reason is written, then the data is
//! moved to `.deleting-*`, where the sweep of the catalog finds it. So a failed backup never seems to be anything else,
//! and a backup whose status could not be changed keeps its data, so that its status is still true.
//!
//! Invariants: `.lock` and `<id>/.use` are held while an [`Unfinished`] lives. Every error of a sync is final.

use std::path::{Path, PathBuf};

use crate::backups::catalog::{Catalog, is_there, read_record};
use crate::control::{Control, Phase};
use crate::disk::lock::Lock;
use crate::disk::unsynced::Batch;
use crate::disk::{self, Owner};
use crate::error::{Error, Kind, Result};
use crate::format::layout::{
    self, CANCEL_FILE, MANIFEST_FILE, PACT_SUMS_FILE, PARTIAL, RECORD_FILE, STARTS_FILE, STATUS_FAILED_FILE,
    STATUS_FILE, USE_FILE, VERIFIED_FILE, WHOLE,
};
use crate::format::manifest::Manifest;
use crate::format::record::{Record, Scope, Status, Versions};
use crate::id::BackupId;

/// How many identifiers are tried if directories with these names exist.
const MAX_ID_TRIES: u64 = 1000;

/// How far the clock may have been ahead when a directory was named; see [`newest_number`].
const MAX_CLOCK_ERROR_MS: u64 = 24 * 60 * 60 * 1000;

/// A backup that is being made.
#[derive(Debug)]
#[must_use = "an unfinished backup is committed or abandoned"]
pub(crate) struct Unfinished {
    /// The content of `backup.json`.
    pub(crate) record: Record,
    path: PathBuf,
    owner: Option<Owner>,
    _use_lock: Lock,
    _job_lock: Lock,
}

impl Unfinished {
    /// Steps 1 to 3. Fails with [`Kind::Busy`] while another process makes a backup here.
    pub(crate) fn create(
        catalog: &Catalog,
        scope: Scope,
        schedule: Option<&str>,
        now_ms: u64,
        versions: Versions,
    ) -> Result<Unfinished> {
        catalog.require_same()?;
        let lock_path = catalog.job_lock_path();
        let job_lock = Lock::try_take(&lock_path, catalog.owner())?.ok_or_else(|| {
            let context = format!("another process makes a backup in {}", catalog.directory().display());
            Error::new(Kind::Busy, context)
        })?;
        // A note that is not one of our identifiers is ignored: otherwise a damaged one could prevent all further backups.
        let noted = BackupId::parse(job_lock.read_note().trim()).and_then(|id| id.number()).unwrap_or(0);
        let first = newest_number(catalog, now_ms, noted)?.max(noted).saturating_add(1).max(now_ms);
        for unix_ms in first..first.saturating_add(MAX_ID_TRIES) {
            let id = BackupId::from_millis(unix_ms);
            if is_there(&catalog.path(&id))? {
                continue;
            }
            job_lock.write_note(&lock_path, id.as_str())?;
            let creating = catalog.directory().join(layout::creating(&id));
            let schedule = schedule.map(str::to_owned);
            let record = Record { schedule, ..Record::new(id.clone(), scope, now_ms, versions.clone()) };
            let born = birth(&creating, &record, catalog.owner())
                .and_then(|use_lock| Ok((use_lock, disk::rename_new(&creating, &catalog.path(&id))?)));
            match born {
                Ok((use_lock, true)) => {
                    let path = catalog.path(&id);
                    let owner = catalog.owner();
                    let new = Unfinished { record, path, owner, _use_lock: use_lock, _job_lock: job_lock };
                    // Without this sync, the directory could be lost after its identifier was handed out.
                    return match disk::sync_dir(catalog.directory()) {
                        Ok(()) => Ok(new),
                        Err(cause) => Err(new.abandon(catalog, cause).1),
                    };
                }
                Ok((_, false)) => disk::remove_tree(&creating, &|| true).map(|_| ())?,
                Err(cause) => {
                    // If this fails, recover does it at the next start.
                    let _ = disk::remove_tree(&creating, &|| true);
                    return Err(cause);
                }
            }
        }
        let context = format!(
            "{MAX_ID_TRIES} identifiers from {first} on are taken; remove the files and directories of these names"
        );
        Err(Error::new(Kind::Io, context))
    }

    pub(crate) fn id(&self) -> &BackupId {
        &self.record.id
    }

    /// The directory that step 4 fills.
    pub(crate) fn partial(&self) -> PathBuf {
        self.path.join(PARTIAL)
    }

    pub(crate) fn owner(&self) -> Option<Owner> {
        self.owner
    }

    /// Steps 5 to 8; `unsynced` are the files of step 4 that must still be synced. After an error the backup is still unfinished,
    /// and must be abandoned. `check` verifies the whole backup between the steps 6 and 7.
    pub(crate) fn commit(
        &mut self,
        manifest: Manifest,
        mut unsynced: Batch,
        now_ms: u64,
        control: &Control,
        check: &dyn Fn(&Path, &Record) -> Result<()>,
    ) -> Result<()> {
        let (path, owner, partial) = (&self.path, self.owner, self.partial());
        unsynced.add(disk::write_new_by(&path.join(MANIFEST_FILE), owner, &|file| manifest.write(file))?)?;
        self.record.bytes = manifest.bytes();
        self.record.files_count = manifest.count() as u64;
        // The check lists the files again: two lists must not be in memory at the same time.
        drop(manifest);
        self.record.phase = Phase::Finished;
        self.record.finished_ms = Some(now_ms);
        let record = self.record.to_bytes();
        unsynced.add(disk::begin_replace(path, RECORD_FILE, owner, &|file| file.write_all(&record))?)?;
        let done = Status::Done.word().as_bytes();
        unsynced.add(disk::begin_replace(path, STATUS_FILE, owner, &|file| file.write_all(done))?)?;
        unsynced.sync()?;
        disk::sync_dirs(&partial)?;
        disk::put_in_place(path, RECORD_FILE)?;
        if !disk::rename_new(&partial, &path.join(WHOLE))? {
            let context = format!("{} appeared while the backup was made", path.join(WHOLE).display());
            return Err(Error::new(Kind::Damaged, context));
        }
        disk::sync_dir(path)?;
        control.enter(Phase::Verify);
        check(path, &self.record)?;
        // The last moment at which a job can be stopped.
        control.begin_commit()?;
        disk::put_in_place(path, STATUS_FILE)?;
        disk::sync_dir(path)?;
        // Committed: if the rest fails, the backup is still good.
        let _ = disk::remove_file(&path.join(STATUS_FAILED_FILE));
        let _ = disk::remove_file(&path.join(CANCEL_FILE));
        Ok(())
    }

    /// Goes back to before step 4 because the check found damage: the data becomes garbage. The status is in progress all the
    /// time, so a crash leaves the same state as a crash in step 4.
    pub(crate) fn begin_again(&mut self, catalog: &Catalog, reason: &str) -> Result<()> {
        for name in [PARTIAL, WHOLE] {
            let data = self.path.join(name);
            if data.symlink_metadata().is_ok() {
                disk::rename(&data, &catalog.free_garbage_path(&self.record.id)?)?;
            }
        }
        disk::end_replace(&self.path, STATUS_FILE)?;
        disk::remove_file(&self.path.join(MANIFEST_FILE))?;
        let Record { id, scope, schedule, started_ms, versions, .. } = &self.record;
        let new = Record::new(id.clone(), *scope, *started_ms, versions.clone());
        self.record = Record { schedule: schedule.clone(), ..new };
        disk::replace(&self.path, RECORD_FILE, &self.record.to_bytes(), self.owner)?;
        self.record.warnings.push(format!("filled again: the first time, {reason}"));
        // The space may be needed. If this fails, a later sweep removes the garbage.
        let _ = catalog.sweep(&|| true);
        Ok(())
    }

    /// Ends the job as a failure because of `cause`. Returns whether the status on the disk is failed now, and the cause.
    pub(crate) fn abandon(mut self, catalog: &Catalog, cause: Error) -> (bool, Error) {
        self.record.phase = Phase::Finished;
        let settled = fail(catalog, &self.path, &mut self.record, &cause.chain(), self.owner);
        (settled.is_ok(), cause)
    }
}

/// The largest number of an identifier in the directory, ours or foreign; `now_ms` is the time, `noted` the last one given out. A
/// name more than a day ahead of these and of all of ours is ignored: our next identifiers would have to be larger than it.
fn newest_number(catalog: &Catalog, now_ms: u64, noted: u64) -> Result<u64> {
    let ids = catalog.ids()?.into_iter();
    let mut numbers: Vec<(u64, BackupId)> = ids.filter_map(|id| Some((id.number()?, id))).collect();
    numbers.sort_unstable_by(|a, b| b.cmp(a));
    let known = now_ms.max(noted);
    // A backup of ours whose record cannot be read is not missed: each of ours was noted.
    let is_ours = |id: &BackupId| matches!(read_record(&catalog.path(id), id), Ok(Some(_)));
    let ours = numbers.iter().take_while(|(number, _)| *number > known).find(|(_, id)| is_ours(id));
    let bound = ours.map_or(known, |(number, _)| *number).saturating_add(MAX_CLOCK_ERROR_MS);
    Ok(numbers.iter().map(|(number, _)| *number).find(|number| *number <= bound).unwrap_or(0))
}

/// Step 2.
fn birth(creating: &Path, record: &Record, owner: Option<Owner>) -> Result<Lock> {
    disk::create_dir(creating, owner)?;
    let lock = Lock::try_take(&creating.join(USE_FILE), owner)?.ok_or_else(|| {
        Error::new(Kind::Busy, format!("another process has locked {}", creating.join(USE_FILE).display()))
    })?;
    let mut unsynced = Batch::default();
    let mut write = |name: &str, bytes: &[u8]| unsynced.add(disk::write_new(&creating.join(name), bytes, owner)?);
    write(RECORD_FILE, &record.to_bytes())?;
    write(STATUS_FAILED_FILE, Status::Failed.word().as_bytes())?;
    write(STATUS_FILE, Status::InProgress.word().as_bytes())?;
    unsynced.sync()?;
    disk::sync_dir(creating)?;
    Ok(lock)
}

/// Changes the status of the backup in `path` to failed, durably, and does nothing else.
pub(crate) fn call_failed(path: &Path) -> Result<()> {
    disk::rename(&path.join(STATUS_FAILED_FILE), &path.join(STATUS_FILE)).and_then(|()| disk::sync_dir(path))
}

/// Makes the backup in `path` a failed one: changes status, reason and data, in this order. An error means that the status on
/// the disk is unchanged or not durable, and that the data is unchanged. `recover` calls this after a crash, too.
pub(crate) fn fail(
    catalog: &Catalog,
    path: &Path,
    record: &mut Record,
    reason: &str,
    owner: Option<Owner>,
) -> Result<()> {
    if is_there(&path.join(STATUS_FAILED_FILE))? {
        call_failed(path)?;
    } else {
        disk::replace(path, STATUS_FILE, Status::Failed.word().as_bytes(), owner)?;
    }
    record.reason.get_or_insert_with(|| reason.to_owned());
    record.replay_blocks = None;
    let explain = || disk::replace(path, RECORD_FILE, &record.to_bytes(), owner);
    let explained = explain();
    let moved = discard_data(catalog, path, &record.id);
    if explained.is_err() && moved.is_ok() {
        // The disk was full: after a sweep it may have room for the reason. The status is right in any case.
        let _ = catalog.sweep(&|| true).and_then(|_| explain());
    }
    if let Err(e) = moved {
        // The failed backup still has its data: recover moves it away at the next start.
        log::warn!("clean-up postponed id={} reason={:?}", record.id, e.chain());
    }
    Ok(())
}

/// Moves the data of a failed backup to the garbage.
pub(crate) fn discard_data(catalog: &Catalog, path: &Path, id: &BackupId) -> Result<()> {
    for name in [PARTIAL, WHOLE] {
        let data = path.join(name);
        if is_there(&data)? {
            disk::rename(&data, &catalog.free_garbage_path(id)?)?;
        }
    }
    disk::end_replace(path, STATUS_FILE)?;
    disk::end_replace(path, RECORD_FILE)?;
    // What the verification and the proof found in the data that is gone, and its sums.
    for name in [VERIFIED_FILE, STARTS_FILE, PACT_SUMS_FILE] {
        disk::end_replace(path, name)?;
        disk::remove_file(&path.join(name))?;
    }
    disk::remove_file(&path.join(CANCEL_FILE))?;
    disk::remove_file(&path.join(STATUS_FAILED_FILE))?;
    // The manifest comes last: while it exists, recover calls this again.
    disk::remove_file(&path.join(MANIFEST_FILE))
}
