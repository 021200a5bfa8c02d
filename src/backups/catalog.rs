//! The catalog: all backups below the backup directory, read from the disk at each call.
//!
//! Nothing is cached, so a backup that was deleted by hand is unknown from then on. Only directories with our mark are
//! recovered or deleted. Every other backup (the node's own API may write to the same directory) is foreign: it is served, and
//! never changed. A name with a dot is ours only if it has one of the forms in `layout`.
//!
//! A backup does not exist only if the system says so (ENOENT). A disk error, a missing permission and a lack of descriptors are
//! errors; so is a `status` file that is damaged or missing beside our record. Any other file that cannot be one that we made
//! (see `nofollow`) is ignored, like a foreign file.
//!
//! ```text
//! BACKUPS/.lock            flock while a job is created and runs; contains the last id that was given out
//! BACKUPS/.service         flock of the one service of this directory
//! BACKUPS/.creating-<id>/  a backup that does not have its name yet
//! BACKUPS/.deleting-<id>.<n>/  garbage: data that the sweep removes
//! BACKUPS/.drilling-<id>/  the scratch directory of a drill; flock while the drill runs
//! BACKUPS/<id>/            see `commit`
//! ```
//! After a crash `recover` settles the statuses; the sweep removes the garbage afterwards.

use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use rustix::fs::FileType;

use crate::capture::source::{require_no_file, resolve};
use crate::chainweb::{SQLITE, is_pact_database};
use crate::disk::file_id::FileId;
use crate::disk::increment::shared_bytes;
use crate::disk::lock::Lock;
use crate::disk::mounts::{self, Named};
use crate::disk::nofollow::{self, is_unfit};
use crate::disk::off_heap;
use crate::disk::{self, Owner};
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::drill::Drill;
use crate::format::hooks::{HookRun, HookRuns};
use crate::format::layout::{
    self, DRILL_FILE, HOOKS_FILE, JOB_LOCK, PIN_FILE, RECORD_FILE, SERVICE_LOCK, STARTS_FILE, STATUS_FILE, USE_FILE,
    VERIFIED_FILE, WHOLE,
};
use crate::format::record::{Record, Scope, Status, Verified};
use crate::format::start_proof::StartProof;
use crate::id::BackupId;

/// The reason of a backup in progress that no process works on.
pub(crate) const INTERRUPTED: &str = "interrupted: the process that made the backup ended before it was finished";

/// The largest `status` and `backup.json` that are read; ours are much smaller.
const MAX_STATUS_BYTES: u64 = 64;
pub(crate) const MAX_RECORD_BYTES: u64 = 1024 * 1024;

/// The unit in which stat(2) counts the blocks of a file.
const BLOCK_BYTES: u64 = 512;

/// How many names below `.deleting-` one backup can have at a time.
const MAX_GARBAGE_NAMES: u32 = 1000;

/// The backup directory.
#[derive(Debug)]
pub(crate) struct Catalog {
    /// Its path without links; below it no link is followed.
    directory: PathBuf,
    /// That of the directory when it was opened.
    identity: FileId,
    owner: Option<Owner>,
}

/// One backup as found on disk.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) id: BackupId,
    pub(crate) status: Status,
    /// `None` for a foreign backup.
    pub(crate) record: Option<Record>,
    pub(crate) scope: Scope,
    /// When it began. For a foreign backup this is the time in its identifier, or that of the last change of its directory if
    /// that is earlier.
    pub(crate) started_ms: u64,
}

impl Found {
    /// Whether it is finished, and was made by us.
    pub(crate) fn is_done_by_us(&self) -> bool {
        self.status == Status::Done && self.record.is_some()
    }
}

impl Catalog {
    /// Opens the backup directory, and creates it if it does not exist. Our files get the owner of `source`, the database.
    pub(crate) fn open(directory: &Path, source: &Path) -> Result<Catalog> {
        let directory = &resolve(directory)?;
        if lies_in_backup(directory)? {
            let context =
                format!("the backup directory {} lies within a backup: name one outside of it", directory.display());
            return Err(Error::new(Kind::Usage, context));
        }
        let owner = Owner::following(source)?;
        let remedy = |e: Error| {
            let context = format!(
                "cannot use {} as backup directory; create it for the user that runs this program, or name another one with \
                 --backup-directory",
                directory.display()
            );
            Error::new(e.kind(), context).because(e)
        };
        disk::ensure_dir(directory, owner).map_err(remedy)?;
        let catalog = Catalog { directory: directory.to_owned(), identity: identity_of(directory)?, owner };
        // Opening the lock file proves now, and not in the first backup, that the directory can be written to.
        drop(Lock::try_take(&catalog.job_lock_path(), owner).map_err(remedy)?);
        Ok(catalog)
    }

    /// Opens an existing backup directory for reading only: nothing is created.
    pub(crate) fn view(directory: &Path) -> Result<Catalog> {
        require_no_file(directory, "backup directory", "--backup-directory")?;
        if !directory.is_dir() {
            let context =
                format!("there is no backup directory {}; name it with --backup-directory", directory.display());
            return Err(Error::new(Kind::Usage, context));
        }
        let directory = resolve(directory)?;
        // A directory that cannot be listed would seem to be empty.
        drop(
            nofollow::entries(&directory)
                .context(|| format!("cannot list {}; run as its owner or as root", directory.display()))?,
        );
        let identity = identity_of(&directory)?;
        Ok(Catalog { directory, identity, owner: None })
    }

    /// Opens an existing backup directory, to change it without a source; our files get the owner of the directory.
    pub(crate) fn manage(directory: &Path) -> Result<Catalog> {
        let catalog = Catalog::view(directory)?;
        Ok(Catalog { owner: Owner::following(directory)?, ..catalog })
    }

    /// Fails if the backup directory is not the one that was opened: its file system was unmounted, or it was replaced, and
    /// backups must not be written to the directory that now has its name.
    pub(crate) fn require_same(&self) -> Result<()> {
        if identity_of(&self.directory)? == self.identity {
            return Ok(());
        }
        let context = format!(
            "{} is not the backup directory that this process opened (unmounted, or replaced?): mount it again, or restart \
             this process to use the new one",
            self.directory.display()
        );
        Err(Error::new(Kind::Io, context))
    }

    /// The file whose presence pins a backup.
    pub(crate) fn pin_path(&self, id: &BackupId) -> PathBuf {
        self.path(id).join(PIN_FILE)
    }

    /// Whether an operator pinned the backup.
    pub(crate) fn is_pinned(&self, id: &BackupId) -> Result<bool> {
        is_there(&self.pin_path(id))
    }

    /// The last verification of the backup, if there was one. A note that cannot be read, or is that of another backup, counts as
    /// damage until the next one.
    pub(crate) fn verified(&self, id: &BackupId) -> Result<Option<Verified>> {
        let bytes = read_small(&self.path(id).join(VERIFIED_FILE), MAX_RECORD_BYTES)?;
        let is_own = |verified: &Verified| verified.id.as_ref().is_none_or(|of| of == id);
        let own = |bytes: Vec<u8>| serde_json::from_slice(&bytes).ok().filter(is_own);
        Ok(bytes.map(|bytes| own(bytes).unwrap_or_else(Verified::unreadable)))
    }

    /// The last drill of the backup, if there was one.
    pub(crate) fn drill(&self, id: &BackupId) -> Result<Option<Drill>> {
        let bytes = read_small(&self.path(id).join(DRILL_FILE), MAX_RECORD_BYTES)?;
        let drill = bytes.and_then(|bytes| serde_json::from_slice::<Drill>(&bytes).ok());
        Ok(drill.filter(|drill| drill.id.as_ref().is_none_or(|of| of == id)))
    }

    /// The last start-up proof of the backup, if there was one.
    pub(crate) fn starts(&self, id: &BackupId) -> Result<Option<StartProof>> {
        let bytes = read_small(&self.path(id).join(STARTS_FILE), MAX_RECORD_BYTES)?;
        let proof = bytes.and_then(|bytes| serde_json::from_slice::<StartProof>(&bytes).ok());
        Ok(proof.filter(|proof| proof.id == *id))
    }

    /// The last run of each hook of the backup.
    pub(crate) fn hooks(&self, id: &BackupId) -> Result<Vec<HookRun>> {
        let bytes = read_small(&self.path(id).join(HOOKS_FILE), MAX_RECORD_BYTES)?;
        let noted = bytes.and_then(|bytes| serde_json::from_slice::<HookRuns>(&bytes).ok());
        Ok(noted.filter(|noted| noted.id == *id).map_or_else(Vec::new, |noted| noted.runs))
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn owner(&self) -> Option<Owner> {
        self.owner
    }

    pub(crate) fn path(&self, id: &BackupId) -> PathBuf {
        self.directory.join(id.as_str())
    }

    pub(crate) fn job_lock_path(&self) -> PathBuf {
        self.directory.join(JOB_LOCK)
    }

    /// Takes the lock of the one service of this directory.
    pub(crate) fn lock_service(&self) -> Result<Lock> {
        Lock::try_take(&self.directory.join(SERVICE_LOCK), self.owner)?.ok_or_else(|| {
            let context = format!(
                "another service uses the backup directory {}; stop it, or name another one with --backup-directory",
                self.directory.display()
            );
            Error::new(Kind::Busy, context)
        })
    }

    /// The backup with this identifier; `None` if it does not exist (any more).
    ///
    /// # Errors
    /// [`Kind::Io`]: it cannot be read, or the backup directory was replaced; then we do not know whether the backup exists.
    /// [`Kind::Damaged`]: it exists, and its status file is damaged or missing.
    pub(crate) fn find(&self, id: &BackupId) -> Result<Option<Found>> {
        self.require_same()?;
        let path = self.path(id);
        let Some(meta) = look(&path)?.filter(Metadata::is_dir) else { return Ok(None) };
        let mut record = read_record(&path, id)?;
        let status = if record.is_some() { status_of_ours(&path)? } else { read_status(&path)? };
        let Some(mut status) = status else { return Ok(None) };
        if let Some(record) = &mut record {
            // The data of a finished backup was removed: the backup does not exist any more.
            if status == Status::Done && !look(&path.join(WHOLE))?.is_some_and(|whole| whole.is_dir()) {
                return Ok(None);
            }
            // The process that worked on it has ended, and no service has recovered it yet.
            if status == Status::InProgress && !Lock::is_held(&path.join(USE_FILE))? {
                // The process may have finished it between the reading of the status and of the lock.
                status = match status_of_ours(&path)? {
                    None => return Ok(None),
                    Some(Status::InProgress) => Status::Failed,
                    Some(settled) => settled,
                };
                if status == Status::Failed {
                    record.reason.get_or_insert_with(|| INTERRUPTED.to_owned());
                }
            }
        }
        let scope = match &record {
            Some(record) => record.scope,
            None if has_sqlite(&path)? => Scope::RocksdbAndPact,
            None => Scope::Rocksdb,
        };
        let named_ms = id.millis().unwrap_or(u64::MAX);
        let started_ms = record.as_ref().map_or_else(|| modified_ms(&meta).min(named_ms), |r| r.started_ms);
        Ok(Some(Found { id: id.clone(), status, record, scope, started_ms }))
    }

    /// Every backup, newest first: ours by their identifiers, even if the clock was wrong when they were made, and foreign ones
    /// among them by their times. Fails if one cannot be read: the list would be wrong without it.
    pub(crate) fn list(&self) -> Result<Vec<Found>> {
        self.each()?.collect()
    }

    /// The same, but each is read only when the iterator reaches it: a catalog of any length uses the memory of one record.
    pub(crate) fn each(&self) -> Result<impl Iterator<Item = Result<Found>>> {
        Ok(self.found(self.ids_newest_first()?))
    }

    /// The backups of these identifiers that exist.
    pub(crate) fn found(&self, ids: Vec<BackupId>) -> impl Iterator<Item = Result<Found>> {
        ids.into_iter().filter_map(|id| self.find(&id).transpose())
    }

    /// Every backup that can be read, newest first; the others are logged. For work that must not fail because of one bad backup.
    pub(crate) fn readable(&self) -> Result<impl Iterator<Item = Found>> {
        Ok(self.ids_newest_first()?.into_iter().filter_map(|id| {
            self.find(&id).unwrap_or_else(|e| {
                log::warn!("backup not read id={id} reason={:?}", e.chain());
                None
            })
        }))
    }

    /// The identifiers of all directories that may be backups, newest first. Reads no record.
    pub(crate) fn ids_newest_first(&self) -> Result<Vec<BackupId>> {
        let mut ids: Vec<(u64, BackupId)> = self.ids()?.into_iter().map(|id| (self.age(&id), id)).collect();
        ids.sort_unstable_by(|a, b| b.cmp(a));
        Ok(ids.into_iter().map(|(_, id)| id).collect())
    }

    /// The number by which backups are ordered. For ours it is the identifier, which always increases. For a foreign one it is
    /// the time in its identifier, or that of the last change of its directory if that is earlier. For one that no longer exists
    /// it is the identifier.
    fn age(&self, id: &BackupId) -> u64 {
        let path = self.path(id);
        let number = id.number();
        let is_foreign = path.join(RECORD_FILE).symlink_metadata().is_err();
        match path.symlink_metadata() {
            Ok(meta) if is_foreign || number.is_none() => modified_ms(&meta).min(id.millis().unwrap_or(u64::MAX)),
            _ => number.unwrap_or(0),
        }
    }

    /// The identifiers that are older than `id`, which need not exist; `ids` must come from [`Catalog::ids_newest_first`].
    pub(crate) fn older_than<'a>(&self, id: &BackupId, ids: &'a [BackupId]) -> &'a [BackupId] {
        match ids.iter().position(|other| other == id) {
            Some(at) => &ids[at + 1..],
            None => {
                let here = (self.age(id), id);
                &ids[ids.partition_point(|other| (self.age(other), other) > here)..]
            }
        }
    }

    /// The newest good backup of ours in which no verification found damage.
    pub(crate) fn newest_good(&self) -> Result<Option<Found>> {
        // A backup of which this cannot be read is passed over: there may be an older one.
        let is_sound = |f: &Found| !self.is_damaged(&f.id).unwrap_or(true);
        Ok(self.readable()?.find(|f| f.is_done_by_us() && is_sound(f)))
    }

    /// Whether the last verification of a backup found damage.
    pub(crate) fn is_damaged(&self, id: &BackupId) -> Result<bool> {
        Ok(self.verified(id)?.is_some_and(|verified| verified.faults_count > 0))
    }

    /// The backup that a living process, this or another one, is making here.
    pub(crate) fn running(&self) -> Result<Option<BackupId>> {
        let in_progress = |f: &Found| f.status == Status::InProgress && f.record.is_some();
        Ok(self.readable()?.find(in_progress).map(|f| f.id))
    }

    /// The bytes on the disk that only this backup uses: the size of its files that have no name outside of it, without the blocks that
    /// its Pact databases share with those of other backups, or with the node's; `None` if that is not known.
    pub(crate) fn exclusive_bytes(&self, id: &BackupId) -> Option<u64> {
        let mut bytes: u64 = 0;
        // For files with several names: device, inode, number of names, blocks; one entry for each name in this backup.
        let mut shared = off_heap::list();
        let mut pending = vec![self.path(id)];
        while let Some(directory) = pending.pop() {
            // A file that disappears meanwhile is no longer part of this backup.
            for (name, stat) in nofollow::entries(&directory).into_iter().flatten().flatten() {
                let blocks = stat.st_blocks.cast_unsigned();
                let path = directory.join(name);
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    pending.push(path);
                } else if stat.st_nlink == 1 {
                    let shares =
                        is_pact_database(&path) && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
                    let shared_bytes = if shares { shared_bytes(&path)? } else { 0 };
                    bytes += (blocks * BLOCK_BYTES).saturating_sub(shared_bytes);
                } else {
                    shared.push((FileId::from(&stat), stat.st_nlink, blocks));
                }
            }
        }
        shared.sort_unstable();
        for names in shared.chunk_by(|a, b| a.0 == b.0) {
            let (_, links, blocks) = names[0];
            #[allow(clippy::unnecessary_cast)] // its type differs between architectures
            let is_all = names.len() as u64 >= links as u64;
            bytes += if is_all { blocks * BLOCK_BYTES } else { 0 };
        }
        Some(bytes)
    }

    /// Removes the garbage, `.deleting-*`, and what a drill that has crashed left, `.drilling-*`; stops with `Ok(false)` as soon as
    /// `keep_going` returns false. If something cannot be removed, the sweep continues, and returns the first such error at the end.
    pub(crate) fn sweep(&self, keep_going: &dyn Fn() -> bool) -> Result<bool> {
        let mut result = Ok(true);
        for name in self.names()?.iter().filter(|name| layout::is_garbage(name) || layout::is_drilling(name)) {
            let path = self.directory.join(name);
            let removed = if layout::is_drilling(name) {
                remove_drill(&path, keep_going)
            } else {
                disk::remove_tree(&path, keep_going).map(Some)
            };
            match removed {
                Ok(None | Some(true)) => {}
                Ok(Some(false)) => return Ok(false),
                Err(e) => result = result.and(Err(e)),
            }
        }
        result
    }

    /// Sweeps for a command whose own work is done: if something cannot be removed, logs a warning; the next sweep tries again.
    pub(crate) fn sweep_or_warn(&self) {
        if let Err(e) = self.sweep(&|| true) {
            log::warn!("garbage not removed reason={:?}", e.chain());
        }
    }

    /// A free name to which the data of a backup can be moved as garbage.
    pub(crate) fn free_garbage_path(&self, id: &BackupId) -> Result<PathBuf> {
        for n in 0..MAX_GARBAGE_NAMES {
            let path = self.directory.join(layout::garbage(id, n));
            if !is_there(&path)? {
                return Ok(path);
            }
        }
        let context = format!("{MAX_GARBAGE_NAMES} names like {} are taken; remove them", layout::garbage(id, 0));
        Err(Error::new(Kind::Io, context))
    }

    pub(crate) fn names(&self) -> Result<Vec<String>> {
        let failed = || format!("cannot list the backup directory {}", self.directory.display());
        let mut names = Vec::new();
        self.require_same()?;
        for entry in nofollow::entries(&self.directory).context(failed)? {
            // A name that is not UTF-8 is neither an identifier nor one of our other names.
            names.extend(entry.context(failed)?.0.into_string());
        }
        Ok(names)
    }

    /// Whether there are data that the sweep removes, or another process that deletes a backup.
    pub(crate) fn has_garbage(&self) -> Result<bool> {
        Ok(self.names()?.iter().any(|name| layout::is_garbage(name)))
    }

    pub(crate) fn ids(&self) -> Result<Vec<BackupId>> {
        Ok(self.names()?.iter().filter_map(|n| BackupId::parse(n)).collect())
    }
}

/// Removes the scratch directory of a drill that has ended, or what else has its name; `None` if a process of the drill lives, and
/// `Some(false)` if `keep_going` returned false.
pub(crate) fn remove_drill(path: &Path, keep_going: &dyn Fn() -> bool) -> Result<Option<bool>> {
    let _lock = if look(path)?.is_some_and(|meta| meta.is_dir()) {
        match Lock::try_take_directory(path) {
            Ok(None) => return Ok(None),
            // Another sweep was faster.
            Err(_) if !is_there(path)? => return Ok(Some(true)),
            taken => taken?,
        }
    } else {
        None
    };
    disk::remove_tree(path, keep_going).map(Some)
}

fn identity_of(directory: &Path) -> Result<FileId> {
    let meta = directory.symlink_metadata();
    let meta = meta.context(|| format!("cannot look at the backup directory {}", directory.display()))?;
    Ok(FileId::from(&meta))
}

pub(crate) fn look(path: &Path) -> Result<Option<Metadata>> {
    nofollow::look(path).context(|| format!("cannot look at {}", path.display()))
}

/// Whether anything has this name.
pub(crate) fn is_there(path: &Path) -> Result<bool> {
    Ok(look(path)?.is_some())
}

/// Reads a small file of a backup; `None` if it does not exist. One that we cannot have made is treated as empty.
fn read_small(path: &Path, limit_bytes: u64) -> Result<Option<Vec<u8>>> {
    match nofollow::read_small(path, limit_bytes) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) if is_unfit(&e) => {
            log::warn!("file not read path={} reason={:?}", path.display(), e.to_string());
            Ok(Some(Vec::new()))
        }
        other => other.map(Some).context(|| format!("cannot read {}", path.display())),
    }
}

/// The status of a backup; `None` if it has none, or none that we know.
pub(crate) fn read_status(path: &Path) -> Result<Option<Status>> {
    let bytes = read_small(&path.join(STATUS_FILE), MAX_STATUS_BYTES)?;
    Ok(bytes.and_then(|bytes| Status::parse(std::str::from_utf8(&bytes).ok()?)))
}

/// The status of a backup of ours; `None` if the backup does not exist. It always has one, because it is only ever replaced: if it is
/// missing or unknown, that is damage.
fn status_of_ours(path: &Path) -> Result<Option<Status>> {
    let status = read_status(path)?;
    // The backup may have been deleted after its record was read.
    if status.is_some() || !is_there(&path.join(RECORD_FILE))? {
        return Ok(status);
    }
    let (file, whole) = (path.join(STATUS_FILE), path.join(WHOLE));
    let context = format!(
        "the status file {} is damaged or missing: if {} exists, write backup-done to that file and verify the backup; \
         otherwise remove {}",
        file.display(),
        whole.display(),
        path.display()
    );
    Err(Error::new(Kind::Damaged, context))
}

/// The record, if it has our mark and was written for this directory: a copy under another name is foreign.
pub(crate) fn read_record(path: &Path, id: &BackupId) -> Result<Option<Record>> {
    let bytes = read_small(&path.join(RECORD_FILE), MAX_RECORD_BYTES)?;
    Ok(bytes.and_then(|bytes| Record::parse(&bytes)).filter(|r| r.id == *id))
}

/// Whether a path without links is a backup of ours, or lies in one, also through a mount of the backup or of a part of it.
pub(crate) fn lies_in_backup(resolved: &Path) -> Result<bool> {
    let as_named = resolved.ancestors().map(|above| Named { visible: above.to_owned(), name: above.to_owned() });
    for Named { visible, name } in as_named.chain(mounts::ancestors(resolved)) {
        let id = name.file_name().and_then(|name| BackupId::parse(name.to_str()?));
        if let Some(id) = id
            && nofollow::is_directory(&visible).unwrap_or(false)
            && read_record(&visible, &id)?.is_some()
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Device and inode of a file, if it has more than one name.
pub(crate) fn shared_identity(path: &Path) -> Option<FileId> {
    path.symlink_metadata().ok().filter(|meta| meta.nlink() > 1).map(|meta| FileId::from(&meta))
}

fn has_sqlite(path: &Path) -> Result<bool> {
    let directory = layout::directory_in(path, SQLITE);
    let names = match nofollow::entries(&directory) {
        // A foreign backup may have no such directory, or a file in its place.
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) || is_loop(&e) => {
            return Ok(false);
        }
        other => other.context(|| format!("cannot list {}", directory.display()))?,
    };
    Ok(names.flatten().any(|(name, _)| is_pact_database(Path::new(&name))))
}

fn is_loop(e: &std::io::Error) -> bool {
    e.raw_os_error() == Some(libc::ELOOP)
}

fn modified_ms(meta: &Metadata) -> u64 {
    let since = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
