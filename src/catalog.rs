//! The catalog: all backups below the backup directory, as they are on disk at this moment.
//!
//! Nothing is cached, so a backup that was deleted by hand is unknown from then on. Only directories that carry our mark
//! are recovered or swept; everything else (the node's own API may write to the same place) is served as found, called
//! foreign, and never changed.
//!
//! ```text
//! BACKUPS/.lock            flock while a job is created and runs; holds the last id that was given out
//! BACKUPS/.service         flock of the one service of this directory
//! BACKUPS/.creating-<id>/  a backup that has not got its name yet
//! BACKUPS/.deleting-*      data on its way out
//! BACKUPS/<id>/            see `commit`
//! ```
//! Recover settles what a crash left: a backup in progress that no living process works on becomes failed. It only
//! renames and writes small files, so that it takes no time; the sweep removes the data afterwards.

use std::fs::{self, Metadata};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::commit::{self, PARTIAL, USE_FILE, WHOLE};
use crate::disk::{self, Lock, Owner};
use crate::error::{Error, IoContext, Kind, Result};
use crate::gate;
use crate::id::BackupId;
use crate::manifest::MANIFEST_FILE;
use crate::record::{RECORD_FILE, Record, STATUS_FAILED_FILE, STATUS_FILE, Scope, Status, VERIFIED_FILE, Verified};
use crate::roomy;
use crate::source::resolve;

const JOB_LOCK: &str = ".lock";
const SERVICE_LOCK: &str = ".service";
const PIN_FILE: &str = ".pinned";
const CREATING: &str = ".creating-";
const DELETING: &str = ".deleting-";

/// Why a backup in progress is a failed one where no process works on it.
const INTERRUPTED: &str = "interrupted: the process that made the backup ended before it was finished";

/// The largest `status` and `backup.json` that are read; ours are far smaller.
const MAX_STATUS_BYTES: u64 = 64;
const MAX_RECORD_BYTES: u64 = 16 * 1024 * 1024;

/// What stat(2) counts the blocks of a file in.
const BLOCK_BYTES: u64 = 512;

/// How many names below `.deleting-` one backup can have at a time.
const MAX_GARBAGE_NAMES: u32 = 1000;

/// The backup directory.
#[derive(Debug)]
pub(crate) struct Catalog {
    directory: PathBuf,
    owner: Option<Owner>,
}

/// One backup as found on disk.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) id: BackupId,
    pub(crate) status: Status,
    /// Present when the backup is ours.
    pub(crate) record: Option<Record>,
    pub(crate) scope: Scope,
    /// When it began: of a foreign backup, what its identifier says, unless its directory was last changed before.
    pub(crate) started_ms: u64,
}

impl Catalog {
    /// Opens the backup directory, creating it where it is missing. `source` is the database whose owner what we create
    /// shall follow.
    pub(crate) fn open(directory: &Path, source: &Path) -> Result<Catalog> {
        if lies_in_backup(&resolve(directory)?) {
            let context = format!(
                "the backup directory {} lies among the files of a backup: name one outside of it",
                directory.display()
            );
            return Err(Error::new(Kind::Usage, context));
        }
        let owner = Owner::following(source)?;
        let remedy = |e: Error| {
            let context = format!(
                "cannot use {} as backup directory; create it for the user that runs this, or name another with \
                 --backup-directory",
                directory.display()
            );
            Error::new(e.kind(), context).because(e)
        };
        disk::ensure_dir(directory, owner).map_err(remedy)?;
        let catalog = Catalog { directory: directory.to_owned(), owner };
        // Opening the lock file proves that the directory can be written before anybody relies on it.
        drop(Lock::try_take(&catalog.job_lock_path(), owner).map_err(remedy)?);
        Ok(catalog)
    }

    /// A view for reading only: nothing is created, nothing is checked.
    pub(crate) fn view(directory: &Path) -> Result<Catalog> {
        if !directory.is_dir() {
            let context =
                format!("there is no backup directory {}; name it with --backup-directory", directory.display());
            return Err(Error::new(Kind::Usage, context));
        }
        // What cannot be listed would seem to be empty.
        fs::read_dir(directory)
            .context(|| format!("cannot list {}; run as its owner or as root", directory.display()))?;
        Ok(Catalog { directory: directory.to_owned(), owner: None })
    }

    /// The catalog of a backup directory that is there, to change it without a source; what is created follows its owner.
    pub(crate) fn manage(directory: &Path) -> Result<Catalog> {
        let catalog = Catalog::view(directory)?;
        Ok(Catalog { owner: Owner::following(directory)?, ..catalog })
    }

    /// The file whose presence pins a backup.
    pub(crate) fn pin_path(&self, id: &BackupId) -> PathBuf {
        self.path(id).join(PIN_FILE)
    }

    /// Whether an operator pinned the backup.
    pub(crate) fn is_pinned(&self, id: &BackupId) -> bool {
        self.pin_path(id).symlink_metadata().is_ok()
    }

    /// How the backup was last verified, where it was.
    pub(crate) fn verified(&self, id: &BackupId) -> Option<Verified> {
        let bytes = read_bounded(&self.path(id).join(VERIFIED_FILE), MAX_RECORD_BYTES)?;
        serde_json::from_slice(&bytes).ok()
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

    /// The lock that makes a service the only one of this directory.
    pub(crate) fn lock_service(&self) -> Result<Lock> {
        Lock::try_take(&self.directory.join(SERVICE_LOCK), self.owner)?.ok_or_else(|| {
            let context = format!(
                "another service uses the backup directory {}; stop it, or name another with --backup-directory",
                self.directory.display()
            );
            Error::new(Kind::Busy, context)
        })
    }

    /// The backup of this name; `None` where there is none (any more).
    pub(crate) fn find(&self, id: &BackupId) -> Option<Found> {
        let path = self.path(id);
        let meta = path.symlink_metadata().ok().filter(Metadata::is_dir)?;
        let mut record = read_record(&path, id);
        let mut status = read_status(&path)?;
        if let Some(record) = &mut record {
            // Somebody removed the data of a finished backup: there is no backup any more.
            if status == Status::Done && !path.join(WHOLE).is_dir() {
                return None;
            }
            // The process that worked on it is gone, and no service has recovered it yet.
            if status == Status::InProgress && !Lock::is_held(&path.join(USE_FILE)) {
                // It may have been finished between the two looks.
                status = match read_status(&path)? {
                    Status::InProgress => Status::Failed,
                    settled => settled,
                };
                if status == Status::Failed {
                    record.reason.get_or_insert_with(|| INTERRUPTED.to_owned());
                }
            }
        }
        let scope = match &record {
            Some(record) => record.scope,
            None if has_sqlite(&path) => Scope::RocksdbAndPact,
            None => Scope::Rocksdb,
        };
        let named_ms = id.millis().unwrap_or(u64::MAX);
        let started_ms = record.as_ref().map_or_else(|| modified_ms(&meta).min(named_ms), |r| r.started_ms);
        Some(Found { id: id.clone(), status, record, scope, started_ms })
    }

    /// Every backup, newest first.
    pub(crate) fn list(&self) -> Result<Vec<Found>> {
        let mut found: Vec<Found> = self.ids()?.iter().filter_map(|id| self.find(id)).collect();
        found.sort_by(|a, b| (b.started_ms, &b.id).cmp(&(a.started_ms, &a.id)));
        Ok(found)
    }

    /// The newest good backup of ours in which no verification found damage.
    pub(crate) fn newest_good(&self) -> Result<Option<Found>> {
        let is_good = |f: &Found| f.status == Status::Done && f.record.is_some() && !self.is_damaged(&f.id);
        Ok(self.list()?.into_iter().find(is_good))
    }

    /// Whether the last verification of a backup found damage.
    pub(crate) fn is_damaged(&self, id: &BackupId) -> bool {
        self.verified(id).is_some_and(|verified| verified.faults_count > 0)
    }

    /// The job that a living process, perhaps another one, runs here.
    pub(crate) fn running(&self) -> Option<BackupId> {
        let in_progress = |f: &Found| f.status == Status::InProgress && f.record.is_some();
        self.list().ok()?.into_iter().find(in_progress).map(|f| f.id)
    }

    /// The largest millisecond identifier in the directory, ours or not.
    pub(crate) fn newest_millis(&self) -> Result<u64> {
        Ok(self.ids()?.iter().filter_map(BackupId::millis).max().unwrap_or(0))
    }

    /// Bytes of disk that only this backup holds: of its files, those all of whose names lie in it.
    pub(crate) fn exclusive_bytes(&self, id: &BackupId) -> u64 {
        let mut bytes = 0;
        // Of those with several names: device, inode, number of names, blocks; once for each name in this backup.
        let mut shared = roomy::list();
        let mut pending = vec![self.path(id)];
        while let Some(directory) = pending.pop() {
            // What disappears while we look is no longer held by this backup.
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                match entry.metadata() {
                    Ok(meta) if meta.is_dir() => pending.push(entry.path()),
                    Ok(meta) if meta.nlink() == 1 => bytes += meta.blocks() * BLOCK_BYTES,
                    Ok(meta) => shared.push((meta.dev(), meta.ino(), meta.nlink(), meta.blocks())),
                    Err(_) => {}
                }
            }
        }
        shared.sort_unstable();
        for names in shared.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
            let (_, _, links, blocks) = names[0];
            bytes += if names.len() as u64 >= links { blocks * BLOCK_BYTES } else { 0 };
        }
        bytes
    }

    /// Settles every status that a crash left open. Removes nothing: that is the sweep's work.
    pub(crate) fn recover(&self) -> Result<()> {
        // While another process makes a backup, what it is creating is not ours to touch.
        if let Some(_job_lock) = Lock::try_take(&self.job_lock_path(), self.owner)? {
            for name in self.names()?.iter().filter(|n| n.starts_with(CREATING)) {
                let to = self.free_path(name.trim_start_matches(CREATING));
                disk::rename(&self.directory.join(name), &to)?;
            }
        }
        for id in self.ids()? {
            // One that cannot be settled shall not keep all others from being served: the next start tries again.
            if let Err(e) = self.settle(&id) {
                log::warn!("backup not settled id={id} reason={:?}", e.chain());
            }
        }
        Ok(())
    }

    fn settle(&self, id: &BackupId) -> Result<()> {
        let path = self.path(id);
        if !path.symlink_metadata().is_ok_and(|m| m.is_dir()) || read_record(&path, id).is_none() {
            return Ok(());
        }
        match read_status(&path) {
            None => {
                log::warn!("backup left alone id={id} reason=\"its status file is missing or says nothing we know\"")
            }
            Some(Status::Done) => disk::remove_file(&path.join(STATUS_FAILED_FILE))?,
            Some(_) if unsettled(&path, id).is_none() => {}
            Some(_) => {
                gate::point("settle", &path);
                // Another process may be making it, or be about to say why it failed.
                let Some(_use_lock) = Lock::try_take(&path.join(USE_FILE), self.owner)? else { return Ok(()) };
                // Or it was done in the meantime: only what is seen under the lock counts.
                let Some((mut record, reason)) = unsettled(&path, id) else { return Ok(()) };
                commit::fail(self, &path, &mut record, reason, self.owner)?;
                log::warn!("backup interrupted id={id}");
            }
        }
        Ok(())
    }

    /// Removes what was moved to `.deleting-*`, as long as `keep_going` says so; `Ok(false)` when it was told to stop. What
    /// cannot be removed keeps nothing else from it; the first such error is returned.
    pub(crate) fn sweep(&self, keep_going: &dyn Fn() -> bool) -> Result<bool> {
        let mut result = Ok(true);
        for name in self.names()?.iter().filter(|n| n.starts_with(DELETING)) {
            match disk::remove_tree(&self.directory.join(name), keep_going) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(e) => result = result.and(Err(e)),
            }
        }
        result
    }

    /// A name below which the data of a backup can wait for the sweep.
    pub(crate) fn free_garbage_path(&self, id: &BackupId) -> PathBuf {
        self.free_path(id.as_str())
    }

    fn free_path(&self, stem: &str) -> PathBuf {
        let candidate = |n: u32| self.directory.join(format!("{DELETING}{stem}.{n}"));
        let free = (0..MAX_GARBAGE_NAMES).map(candidate).find(|p| p.symlink_metadata().is_err());
        free.unwrap_or_else(|| candidate(MAX_GARBAGE_NAMES))
    }

    fn names(&self) -> Result<Vec<String>> {
        let failed = || format!("cannot list the backup directory {}", self.directory.display());
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory).context(failed)? {
            // A name that is not UTF-8 is neither an identifier nor one of our own.
            names.extend(entry.context(failed)?.file_name().into_string());
        }
        Ok(names)
    }

    fn ids(&self) -> Result<Vec<BackupId>> {
        Ok(self.names()?.iter().filter_map(|n| BackupId::parse(n)).collect())
    }
}

/// The record of a backup whose end is not settled, and what can be said of the reason; `None` for one that is settled.
fn unsettled(path: &Path, id: &BackupId) -> Option<(Record, &'static str)> {
    let record = read_record(path, id)?;
    let left = || [PARTIAL, WHOLE, MANIFEST_FILE].iter().any(|name| path.join(name).symlink_metadata().is_ok());
    let reason = match read_status(path)? {
        Status::Done => return None,
        Status::InProgress => INTERRUPTED,
        Status::Failed if left() || record.reason.is_none() => {
            "interrupted while it was failing: its reason was not written down"
        }
        Status::Failed => return None,
    };
    Some((record, reason))
}

/// The first bytes of a small file of a backup; `None` where there is none. One that cannot be read is none either: whoever
/// asks goes on without it, but the log says why.
fn read_bounded(path: &Path, limit_bytes: u64) -> Option<Vec<u8>> {
    let read = || -> io::Result<Vec<u8>> {
        // O_NONBLOCK so that a FIFO of that name cannot hold us; it means nothing to a regular file.
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC;
        let file = fs::File::from(rustix::fs::open(path, flags, rustix::fs::Mode::empty())?);
        // One byte more, so that the second read finds the end.
        let length = usize::try_from(file.metadata()?.len().min(limit_bytes)).unwrap_or(0);
        let mut bytes = Vec::with_capacity(length + 1);
        file.take(limit_bytes).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => Some(bytes),
        Err(e) => {
            if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory) {
                log::warn!("file not read path={} reason={:?}", path.display(), e.to_string());
            }
            None
        }
    }
}

fn read_status(path: &Path) -> Option<Status> {
    let bytes = read_bounded(&path.join(STATUS_FILE), MAX_STATUS_BYTES)?;
    Status::parse(std::str::from_utf8(&bytes).ok()?)
}

/// The record, if it carries our mark and was written for this directory: a copy under another name is not ours.
fn read_record(path: &Path, id: &BackupId) -> Option<Record> {
    let bytes = read_bounded(&path.join(RECORD_FILE), MAX_RECORD_BYTES)?;
    Record::parse(&bytes).filter(|r| r.id == *id)
}

/// Whether a path without links is a backup of ours, or lies in one.
pub(crate) fn lies_in_backup(resolved: &Path) -> bool {
    let id_of = |directory: &Path| BackupId::parse(directory.file_name()?.to_str()?);
    resolved.ancestors().any(|above| id_of(above).is_some_and(|id| read_record(above, &id).is_some()))
}

/// Device and inode of a file that has other names, too.
pub(crate) fn shared_identity(path: &Path) -> Option<(u64, u64)> {
    path.symlink_metadata().ok().filter(|meta| meta.nlink() > 1).map(|meta| (meta.dev(), meta.ino()))
}

fn has_sqlite(path: &Path) -> bool {
    let names = fs::read_dir(path.join(WHOLE).join("sqlite")).into_iter().flatten().flatten();
    names.map(|e| e.file_name()).any(|n| n.to_string_lossy().ends_with(".sqlite"))
}

fn modified_ms(meta: &Metadata) -> u64 {
    let since = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
    since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
