//! An operator's commands on finished backups: list, verify, restore, delete, pin. They work on a backup directory, with
//! or without a service that runs there; each call is complete in itself and keeps no state.
//!
//! Invariants: only our own backups are ever changed. While a backup is verified or restored it is locked, so that no other
//! process can delete it (see `in_use`). A delete renames first and removes afterwards.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::backups::catalog::{Catalog, Found, is_there};
use crate::backups::damage;
use crate::backups::details::{Details, Listed, Unreadable};
use crate::backups::filling::Counts;
use crate::backups::pairs::Databases;
use crate::backups::rehearsal::{self, Rehearsal};
use crate::backups::restore::{self, Placed, RestoreOptions, Restored};
use crate::backups::start_proofs;
use crate::backups::sums::{self, Completed};
use crate::backups::verification::{Verification, require_good};
use crate::backups::verify::{self, VerifyOptions};
use crate::capture::in_use::{self, InUse};
use crate::capture::start_proof::Bounds;
use crate::chainweb::ROCKSDB;
use crate::chainweb::start::Extent;
use crate::clock::now_ms;
use crate::config::Depth;
use crate::control::Control;
use crate::disk;
use crate::disk::medium;
use crate::disk::nofollow;
use crate::error::{Error, Kind, Result};
use crate::fault::Fault;
use crate::format::layout::{self, CANCEL_FILE, RECORD_FILE, WHOLE};
use crate::format::record::Status;
use crate::format::start_proof::StartProof;
use crate::id::BackupId;

/// How long a cancelled job may take to end, and the pause between two checks of whether it has.
const CANCEL_LIMIT: Duration = Duration::from_secs(30);
const CANCEL_PAUSE: Duration = Duration::from_millis(20);

/// The word that stands for the newest good backup of ours, or, if there is none, for the newest foreign one that has a RocksDB.
/// For a restore, it is the newest in which no verification found damage.
const LATEST: &str = "latest";

/// Every backup below a backup directory, newest first, without a service: nothing is created or changed.
///
/// # Errors
/// [`Kind::Usage`]: there is no such directory. [`Kind::Io`]: it cannot be listed.
pub fn list_backups_in(directory: &Path) -> Result<Vec<Details>> {
    let catalog = Catalog::view(directory)?;
    catalog.list()?.into_iter().map(|found| viewed(&catalog, found)).collect()
}

/// The same, but a backup that cannot be read does not hide the others: it is listed as unreadable.
///
/// # Errors
/// [`Kind::Usage`]: there is no such directory. [`Kind::Io`]: it cannot be listed, or another directory took its place.
pub fn list_all_in(directory: &Path) -> Result<Vec<Listed>> {
    list_all_by(directory, &viewed)
}

/// As [`list_all_in`], without the bytes that deleting a backup would free: to count them, every file is looked at.
///
/// # Errors
/// The same.
pub fn list_briefly_in(directory: &Path) -> Result<Vec<Listed>> {
    list_all_by(directory, &Details::of)
}

fn list_all_by(directory: &Path, describe: &dyn Fn(&Catalog, Found) -> Result<Details>) -> Result<Vec<Listed>> {
    let catalog = Catalog::view(directory)?;
    let list = |id: BackupId| match catalog.find(&id).and_then(|f| f.map(|f| describe(&catalog, f)).transpose()) {
        Ok(found) => Ok(found.map(|found| Listed::Backup(Box::new(found)))),
        Err(e) => catalog.require_same().map(|()| Some(Listed::Unreadable(Unreadable::new(&id, &e)))),
    };
    catalog.ids_newest_first()?.into_iter().filter_map(|id| list(id).transpose()).collect()
}

/// One backup below a backup directory, as in [`list_backups_in`]; `None` if it does not exist.
///
/// # Errors
/// [`Kind::Usage`]: there is no such directory. [`Kind::Io`]: it, or the backup, cannot be read.
pub fn check_backup_in(directory: &Path, id: &BackupId) -> Result<Option<Details>> {
    let catalog = Catalog::view(directory)?;
    catalog.find(id)?.map(|found| viewed(&catalog, found)).transpose()
}

fn viewed(catalog: &Catalog, found: Found) -> Result<Details> {
    Ok(Details { exclusive_bytes: catalog.exclusive_bytes(&found.id), ..Details::of(catalog, found)? })
}

/// The bytes that are free for backups in a backup directory.
///
/// # Errors
/// [`Kind::Usage`]: there is no such directory. [`Kind::Io`]: its file system does not say.
pub fn free_bytes(directory: &Path) -> Result<u64> {
    Ok(disk::free_bytes(Catalog::view(directory)?.directory())?.0)
}

/// The identifier of the backup `word`, which is an identifier, or `latest` for the newest good backup.
///
/// # Errors
/// [`Kind::NotFound`]; [`Kind::Usage`]: there is no such directory.
pub fn find_backup(directory: &Path, word: &str) -> Result<BackupId> {
    Ok(find(&Catalog::view(directory)?, word)?.id)
}

/// A good backup that cannot be deleted while this exists.
pub(crate) struct Held {
    pub(crate) catalog: Catalog,
    pub(crate) found: Found,
    pub(crate) path: PathBuf,
    _in_use: InUse,
}

impl Held {
    pub(crate) fn verify(&self, options: VerifyOptions<'_>, control: &Control) -> Result<Verification> {
        control.begin("verifying");
        verify::verify(&self.path, self.found.record.as_ref(), options, control)
    }

    fn note(&self, depth: Depth, verification: &Verification) {
        note(&self.catalog, &self.found, depth, verification);
    }

    /// Whether a node starts from it, as far as is known after a new proof.
    fn prove(&self, program: Option<&Path>, bounds: Bounds, control: &Control) -> Result<Option<StartProof>> {
        control.begin("proving the start");
        let proof = start_proofs::prove((&self.found.id, &self.path), program, bounds, control)?;
        proof.map(|proof| start_proofs::settled(&self.catalog, proof)).transpose()
    }

    fn note_start(&self, proof: &StartProof) {
        if self.found.record.is_none() {
            return;
        }
        // A user may be permitted to read a backup but not to write to it.
        if let Err(e) = start_proofs::note(&self.catalog, proof) {
            log::debug!("start-up proof not noted id={} reason={:?}", self.found.id, e.chain());
        }
    }
}

/// Notes the result of a verification in the backup.
pub(crate) fn note(catalog: &Catalog, found: &Found, depth: Depth, verification: &Verification) {
    if found.record.is_none() {
        return;
    }
    // A user may be permitted to read a backup but not to write to it.
    let noted = damage::note(catalog, &found.id, depth, verification, now_ms());
    let shared = damage::note_sharers(catalog, &found.id, &verification.shared_faults(), now_ms());
    let pact = damage::note_sharers_of_pact(catalog, &found.id, &verification.damaged_in_content(), now_ms());
    if let Err(e) = noted.and(shared).and(pact) {
        log::debug!("verification not noted id={} reason={:?}", found.id, e.chain());
    }
}

/// Finds a finished backup by its identifier or by `latest`, and locks it.
fn hold_any(directory: &Path, word: &str) -> Result<Held> {
    hold(Catalog::view(directory)?, word, &|_, _| true)
}

/// The same, but `latest` passes over backups in which damage was found.
pub(crate) fn hold_sound(directory: &Path, word: &str) -> Result<Held> {
    let is_sound = |catalog: &Catalog, found: &Found| {
        let doubt = || Ok(doubt(catalog, found)?.or(refutation(catalog, &found.id)?));
        let doubt = doubt().unwrap_or_else(|e: Error| Some(e.chain()));
        if let Some(why) = &doubt {
            log::warn!("backup passed over id={} reason={why:?}", found.id);
        }
        doubt.is_none()
    };
    hold(Catalog::view(directory)?, word, &is_sound)
}

fn hold(catalog: Catalog, word: &str, is_fit: &dyn Fn(&Catalog, &Found) -> bool) -> Result<Held> {
    let found = find_fit(&catalog, word, |found| is_fit(&catalog, found))?;
    require_done(&found)?;
    let path = catalog.path(&found.id);
    let in_use = share(&catalog, &found.id)?;
    Ok(Held { catalog, found, path, _in_use: in_use })
}

/// The newest finished backup of ours that is fit; of the foreign ones with a RocksDB only if none of ours is finished.
fn latest(catalog: &Catalog, is_fit: impl Fn(&Found) -> bool) -> Result<Option<Found>> {
    let mut ours = catalog.readable()?.filter(Found::is_done_by_us).peekable();
    if ours.peek().is_some() {
        return Ok(ours.find(is_fit));
    }
    let has_rocksdb = |f: &Found| {
        let directory = layout::directory_in(&catalog.path(&f.id), ROCKSDB);
        nofollow::is_directory(&directory).unwrap_or(false)
    };
    let is_foreign = |f: &Found| f.status == Status::Done && f.record.is_none() && has_rocksdb(f);
    Ok(catalog.readable()?.find(|f| is_foreign(f) && is_fit(f)))
}

fn require_done(found: &Found) -> Result<()> {
    if found.status == Status::Done {
        return Ok(());
    }
    let context = format!("backup {} is not a good backup: its status is {}", found.id, found.status.word());
    Err(Error::new(Kind::Refused, context))
}

/// Keeps a backup from being deleted, and fails if it does not exist any more.
pub(crate) fn share(catalog: &Catalog, id: &BackupId) -> Result<InUse> {
    let shared = in_use::share(&catalog.path(id));
    // Another process may have deleted the backup before we had the lock.
    find(catalog, id.as_str())?;
    shared?.ok_or_else(|| is_in_use(id))
}

/// The reason not to rely on a finished backup, if one is known.
fn doubt(catalog: &Catalog, found: &Found) -> Result<Option<String>> {
    if catalog.is_damaged(&found.id)? {
        return Ok(Some("a verification found damage in it".to_owned()));
    }
    // Without its record it seems to be foreign.
    let lost = found.record.is_none() && is_there(&catalog.path(&found.id).join(RECORD_FILE))?;
    Ok(lost.then(|| "its record is damaged".to_owned()))
}

/// The reason why a node does not start from a backup, if a proof has found one.
pub(crate) fn refutation(catalog: &Catalog, id: &BackupId) -> Result<Option<String>> {
    let starts = catalog.starts(id)?;
    Ok(starts.and_then(|starts| Some(format!("a node does not start from it: {}", starts.refutation()?))))
}

fn find(catalog: &Catalog, word: &str) -> Result<Found> {
    find_fit(catalog, word, |_| true)
}

/// The backup with this identifier, or, for `latest`, the newest one that is fit.
fn find_fit(catalog: &Catalog, word: &str, is_fit: impl Fn(&Found) -> bool) -> Result<Found> {
    if word == LATEST {
        let none =
            || Error::new(Kind::NotFound, format!("there is no good backup in {}", catalog.directory().display()));
        return latest(catalog, is_fit)?.ok_or_else(none);
    }
    let found = BackupId::parse(word).map(|id| catalog.find(&id)).transpose()?.flatten();
    let context =
        || format!("there is no backup {word:?} in {}; list shows all backups", catalog.directory().display());
    found.ok_or_else(|| Error::new(Kind::NotFound, context()))
}

fn is_in_use(id: &BackupId) -> Error {
    let context =
        format!("backup {id} is in use: it is being made, verified, restored or deleted, or its hooks have not ended");
    Error::new(Kind::Busy, context)
}

/// Verifies the backup `word`, an identifier or `latest`. The result is noted in the backup, if it can be written to.
///
/// # Errors
/// [`Kind::NotFound`], [`Kind::Refused`] for a backup that is not good, [`Kind::Busy`], [`Kind::Io`] if a file cannot be read.
/// Damage of the backup is not an error but a fault in the result.
pub fn verify_backup(
    directory: &Path,
    word: &str,
    options: VerifyOptions<'_>,
    control: &Control,
) -> Result<(BackupId, Verification)> {
    let held = hold_any(directory, word)?;
    let VerifyOptions { depth, program } = options;
    let mut verification = held.verify(options, control)?;
    held.note(depth, &verification);
    if verification.faults.is_empty() {
        let extent = if depth == Depth::Deep { Extent::WHOLE } else { Extent::BOUNDED };
        verification.starts = held.prove(program, Bounds::of(extent), control)?;
        verification.starts.iter().for_each(|proof| held.note_start(proof));
    }
    Ok((held.found.id, verification))
}

/// Puts the `0` of the backup `word` below a database directory, after verifying it. Before that, a restore that was interrupted there is
/// undone.
///
/// # Errors
/// As [`verify_backup`]; [`Kind::Damaged`] if the verification finds damage, or if damage was found before and this verification
/// is not deep; [`Kind::NotEmpty`] if the target already has a `0` and `replace` is false; [`Kind::Usage`] if the target lies
/// within a database or among the backups; [`Kind::NodeRunning`], [`Kind::NoSpace`]. [`Kind::Busy`] also if the database in the
/// target is being backed up. After an error the target is unchanged, or the error says that the restore is half done.
pub fn restore_backup(
    directory: &Path,
    word: &str,
    options: RestoreOptions<'_>,
    control: &Control,
) -> Result<(BackupId, Restored)> {
    let held = hold_for_restore(directory, word, options)?;
    let depth = options.depth;
    let verification = held.verify(options.verification(), control)?;
    if depth == Depth::Deep || !verification.faults.is_empty() {
        held.note(depth, &verification);
    }
    require_good(&verification)?;
    let Held { path, found, .. } = &held;
    let pact_history = restore::pact_history(&path.join(WHOLE), found.record.as_ref(), options.program, control)?;
    let databases = Databases::of(path, found.record.as_ref());
    let placed = restore::restore(path, &databases, options, now_ms(), control).map_err(with_hint)?;
    let Placed { way, replaced, counts } = placed;
    let Counts { linked_count, cloned_count, copied_count } = counts;
    let database_directory = options.target.to_owned();
    let restored =
        Restored { database_directory, way, replaced, linked_count, cloned_count, copied_count, pact_history };
    Ok((held.found.id, restored))
}

/// An error of a restore, with the remedy if a disk has failed.
fn with_hint(e: Error) -> Error {
    if !medium::is_lost(&e) {
        return e;
    }
    let context = "the disk of the backup or of the target has failed: verify --deep tells whether the backup is damaged, and restore \
                   latest then takes another one";
    Error::new(Kind::Io, context).because(e.chain())
}

/// What [`restore_backup`] would do, after the same verification. Nothing is written; what would make the restore fail because of the
/// target is not an error but its obstacle.
///
/// # Errors
/// As [`restore_backup`], if the fault is in the backup or if the target can be no database directory.
pub fn rehearse_restore(
    directory: &Path,
    word: &str,
    options: RestoreOptions<'_>,
    control: &Control,
) -> Result<(BackupId, Rehearsal)> {
    let held = hold_for_restore(directory, word, options)?;
    require_good(&held.verify(options.verification(), control)?)?;
    let mut rehearsal = rehearsal::rehearse(&held.path, held.found.record.as_ref(), options, control)?;
    rehearsal.starts = held.prove(options.program, Bounds::of(Extent::BOUNDED), control)?;
    Ok((held.found.id, rehearsal))
}

fn hold_for_restore(directory: &Path, word: &str, options: RestoreOptions<'_>) -> Result<Held> {
    restore::require_target(options.target, directory)?;
    let held = hold_sound(directory, word)?;
    if options.depth != Depth::Deep
        && let Some(why) = doubt(&held.catalog, &held.found)?
    {
        let context = format!(
            "backup {} is not good, {why}: restore another one (list shows them), or read every byte of it again with \
             restore --deep; to get the files as they are, copy them with cp -a",
            held.found.id
        );
        return Err(Error::new(Kind::Damaged, context));
    }
    if let Some(why) = refutation(&held.catalog, &held.found.id)? {
        log::warn!("backup doubtful id={} reason={why:?}", held.found.id);
    }
    Ok(held)
}

/// Removes the garbage of failed and deleted backups.
///
/// # Errors
/// [`Kind::Usage`]: no such directory. [`Kind::Io`]: names the first file that could not be removed.
pub fn sweep_backups(directory: &Path) -> Result<()> {
    Catalog::manage(directory)?.sweep(&|| true).map(|_| ())
}

/// The result of [`sum_backup`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summed {
    /// How many files were read.
    pub read_count: u64,
    /// How many lists were written: each that was missing or had a defect.
    pub written_count: u64,
    /// The defects of the lists that existed.
    pub mended: Vec<Fault>,
    /// Files that have no checksum because they are not part of the backup.
    pub left_out: Vec<String>,
}

/// Writes the missing `BLAKE2SUMS` of the backup `word`, and mends those that do not name all files or contradict its manifest.
///
/// # Errors
/// As [`verify_backup`]; [`Kind::Refused`] for a foreign backup.
pub fn sum_backup(directory: &Path, word: &str, control: &Control) -> Result<(BackupId, Summed)> {
    let id = hold_any(directory, word)?.found.id;
    let catalog = Catalog::manage(directory)?;
    require_ours(&find(&catalog, id.as_str())?)?;
    let path = catalog.path(&id);
    let summed = in_use::yielding(&path, control, || {
        let Completed { read_count, written_count, mended } = sums::complete(&catalog, &path, control)?;
        Ok(Summed { read_count, written_count, mended, left_out: sums::left_out(&path)? })
    })?;
    Ok((id.clone(), summed.ok_or_else(|| is_in_use(&id))?))
}

/// Cancels the job that makes the backup `word`, or without a word the running one, in this or another process; waits for its
/// end. Returns its identifier and its status, which is done if the backup was already done.
///
/// # Errors
/// [`Kind::NotFound`]: no backup is being made. [`Kind::Refused`]: it is foreign. [`Kind::Busy`]: it does not end in time.
pub fn cancel_backup(directory: &Path, word: Option<&str>) -> Result<(BackupId, Status)> {
    let catalog = Catalog::manage(directory)?;
    let none = || Error::new(Kind::NotFound, format!("no backup is being made in {}", directory.display()));
    let found = match word {
        Some(word) => find(&catalog, word)?,
        None => catalog.running()?.map(|id| catalog.find(&id)).transpose()?.flatten().ok_or_else(none)?,
    };
    require_ours(&found)?;
    if found.status != Status::InProgress {
        return Ok((found.id, found.status));
    }
    let path = catalog.path(&found.id);
    let wish = path.join(CANCEL_FILE);
    if !is_there(&wish)? {
        disk::write_new(&wish, b"", catalog.owner())?.sync()?;
    }
    let deadline = Instant::now() + CANCEL_LIMIT;
    while Instant::now() < deadline {
        sleep(CANCEL_PAUSE);
        let now = catalog.find(&found.id)?.ok_or_else(none)?;
        match now.status {
            Status::InProgress => {}
            // The reason is written a moment after the status, and the next command is likely to ask for it.
            Status::Failed if now.record.is_some_and(|record| record.reason.is_none()) => {}
            ended => {
                // The job may have ended by itself, without reading the file.
                disk::remove_file(&wish)?;
                return Ok((found.id, ended));
            }
        }
    }
    if catalog.find(&found.id)?.ok_or_else(none)?.status == Status::Failed {
        return Ok((found.id, Status::Failed));
    }
    let seconds = CANCEL_LIMIT.as_secs();
    Err(Error::new(
        Kind::Busy,
        format!("backup {} did not end within {seconds} s: check whether a disk hangs", found.id),
    ))
}

/// Deletes one backup, good or failed.
///
/// # Errors
/// [`Kind::NotFound`]; [`Kind::Refused`]: it is foreign or pinned; [`Kind::Busy`]: it is in use.
pub fn delete_backup(directory: &Path, word: &str) -> Result<BackupId> {
    let catalog = Catalog::manage(directory)?;
    let found = find(&catalog, word)?;
    delete(&catalog, &found)?;
    catalog.sweep_or_warn();
    Ok(found.id)
}

fn require_ours(found: &Found) -> Result<()> {
    if found.record.is_some() {
        return Ok(());
    }
    let context = format!("backup {} was made by another program (the node's own API?) and is never changed", found.id);
    Err(Error::new(Kind::Refused, context))
}

fn require_unpinned(catalog: &Catalog, id: &BackupId) -> Result<()> {
    if catalog.is_pinned(id)? {
        return Err(Error::new(Kind::Refused, format!("backup {id} is pinned; unpin it first")));
    }
    Ok(())
}

pub(crate) fn delete(catalog: &Catalog, found: &Found) -> Result<()> {
    require_ours(found)?;
    require_unpinned(catalog, &found.id)?;
    if found.status == Status::InProgress {
        return Err(is_in_use(&found.id));
    }
    let _in_use = in_use::take(&catalog.path(&found.id), catalog.owner())?.ok_or_else(|| is_in_use(&found.id))?;
    // It may have been pinned before we had the locks.
    require_unpinned(catalog, &found.id)?;
    disk::rename(&catalog.path(&found.id), &catalog.free_garbage_path(&found.id)?)?;
    disk::sync_dir(catalog.directory())
}

/// Pins a backup, so that neither prune nor delete removes it.
///
/// # Errors
/// [`Kind::NotFound`]; [`Kind::Refused`]: it is foreign.
pub fn pin_backup(directory: &Path, word: &str) -> Result<BackupId> {
    change_pin(directory, word, |catalog, id| match catalog.is_pinned(id)? {
        true => Ok(()),
        false => disk::write_new(&catalog.pin_path(id), b"", catalog.owner())?.sync().map(|_| ()),
    })
}

/// Unpins a backup.
///
/// # Errors
/// As [`pin_backup`].
pub fn unpin_backup(directory: &Path, word: &str) -> Result<BackupId> {
    change_pin(directory, word, |catalog, id| disk::remove_file(&catalog.pin_path(id)))
}

fn change_pin(directory: &Path, word: &str, change: impl Fn(&Catalog, &BackupId) -> Result<()>) -> Result<BackupId> {
    let catalog = Catalog::manage(directory)?;
    let found = find(&catalog, word)?;
    require_ours(&found)?;
    let _in_use = if found.status == Status::Done { Some(share(&catalog, &found.id)?) } else { None };
    change(&catalog, &found.id)?;
    disk::sync_dir(&catalog.path(&found.id))?;
    Ok(found.id)
}
