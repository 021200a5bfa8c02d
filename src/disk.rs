//! The dirty hand: every change that we make to the file system is made here, but for the bytes of copies (`copy`).
//!
//! Invariants
//! - Each operation passes the fault gate before it happens, so that a test can fail or kill every one of them.
//! - A path given to this file lies below the backup directory, or is the pin directory: no source is ever changed.
//! - Nothing follows a symbolic link on its way to delete something.
//! - An error of fsync is returned and never retried: after one, the kernel may have dropped the data.
//!
//! RocksDB's checkpoint and SQLite write by themselves, but only inside an unfinished backup; what they wrote is synced here.
#![allow(clippy::disallowed_methods)]

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FlockOperation, Gid, Mode, OFlags, RenameFlags, Uid};
use rustix::io::Errno;

use crate::error::{Error, IoContext, Kind, Result};
use crate::gate::pass;
use crate::unsynced::Unsynced;

/// User and group of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    uid: u32,
    gid: u32,
}

impl Owner {
    /// The owner to give to what we create so that it follows `path`; `None` where new files belong to it anyway, or
    /// where we may not give files away.
    pub(crate) fn following(path: &Path) -> Result<Option<Owner>> {
        let meta = fs::metadata(path).context(|| format!("cannot read the owner of {}", path.display()))?;
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        let foreign = meta.uid() != uid.as_raw() || meta.gid() != gid.as_raw();
        Ok((uid.is_root() && foreign).then_some(Owner { uid: meta.uid(), gid: meta.gid() }))
    }

    /// Whether a file already belongs to whom our new files will belong.
    pub(crate) fn fits(owner: Option<Owner>, file: &Metadata) -> bool {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let wanted = owner.unwrap_or(Owner { uid, gid });
        (file.uid(), file.gid()) == (wanted.uid, wanted.gid)
    }

    fn ids(self) -> (Option<Uid>, Option<Gid>) {
        (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))
    }
}

pub(crate) fn failed(verb: &str, path: &Path) -> String {
    format!("cannot {verb} {}", path.display())
}

/// Creates a directory that must not exist yet.
pub(crate) fn create_dir(path: &Path, owner: Option<Owner>) -> Result<()> {
    pass("mkdir", path).and_then(|()| fs::create_dir(path)).context(|| failed("create directory", path))?;
    give(path, owner)
}

/// Creates a directory that only its owner may enter, if it is not there.
pub(crate) fn ensure_private_dir(path: &Path, owner: Option<Owner>) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let create = || fs::DirBuilder::new().mode(0o700).create(path);
    pass("mkdir", path).and_then(|()| create()).context(|| failed("create directory", path))?;
    give(path, owner)
}

/// Creates a directory and its parents where they are missing; the parents must be creatable too.
pub(crate) fn ensure_dir(path: &Path, owner: Option<Owner>) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        ensure_dir(parent, owner)?;
    }
    create_dir(path, owner)?;
    match path.parent().filter(|p| !p.as_os_str().is_empty()) {
        Some(parent) => sync_dir(parent),
        None => Ok(()),
    }
}

/// Gives a file or directory that we created to its owner-to-be.
pub(crate) fn give(path: &Path, owner: Option<Owner>) -> Result<()> {
    let Some(owner) = owner else { return Ok(()) };
    let (uid, gid) = owner.ids();
    pass("chown", path).context(|| failed("change the owner of", path))?;
    rustix::fs::chownat(CWD, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW).context(|| failed("change the owner of", path))
}

/// Creates an empty file that must not exist; `operation` is what the gate calls that.
pub(crate) fn create_new(operation: &'static str, path: &Path, owner: Option<Owner>) -> Result<File> {
    let create = || OpenOptions::new().write(true).create_new(true).open(path);
    let file = pass(operation, path).and_then(|()| create()).context(|| failed("create", path))?;
    give(path, owner)?;
    Ok(file)
}

/// Creates a file that must not exist, with `bytes` in it. Its name is durable once its directory is synced, too.
pub(crate) fn write_new(path: &Path, bytes: &[u8], owner: Option<Owner>) -> Result<Unsynced> {
    write_new_by(path, owner, &|file| file.write_all(bytes))
}

/// What fills a file that need not be in memory at once.
pub(crate) type Fill<'a> = &'a dyn Fn(&mut dyn Write) -> io::Result<()>;

/// As [`write_new`], for what need not be in memory at once.
pub(crate) fn write_new_by(path: &Path, owner: Option<Owner>, fill: Fill<'_>) -> Result<Unsynced> {
    let mut file = create_new("create", path, owner)?;
    fill(&mut file).context(|| failed("write", path))?;
    Ok(Unsynced::of(file, path, 0))
}

/// Replaces `directory/name` by `bytes`, atomically and durably: a reader, and a power cut, see the old or the new file.
pub(crate) fn replace(directory: &Path, name: &str, bytes: &[u8], owner: Option<Owner>) -> Result<()> {
    replace_by(directory, name, owner, &|file| file.write_all(bytes))
}

/// As [`replace`], for what need not be in memory at once.
pub(crate) fn replace_by(directory: &Path, name: &str, owner: Option<Owner>, fill: Fill<'_>) -> Result<()> {
    let written = begin_replace(directory, name, owner, fill).and_then(Unsynced::sync);
    if let Err(cause) = written.and_then(|_| put_in_place(directory, name)) {
        // The cause is what matters; what the clean-up cannot do, the next replace does.
        let _ = end_replace(directory, name);
        return Err(cause);
    }
    sync_dir(directory)
}

/// The first half of a [`replace`]: what will be `directory/name`, under another name.
pub(crate) fn begin_replace(directory: &Path, name: &str, owner: Option<Owner>, fill: Fill<'_>) -> Result<Unsynced> {
    let temporary = temporary_of(directory, name);
    remove_file(&temporary)?;
    write_new_by(&temporary, owner, fill)
}

/// The second half, once the first is synced; durable once the directory is.
pub(crate) fn put_in_place(directory: &Path, name: &str) -> Result<()> {
    rename(&temporary_of(directory, name), &directory.join(name))
}

/// Removes what a [`replace`] of `directory/name` left that was cut off.
pub(crate) fn end_replace(directory: &Path, name: &str) -> Result<()> {
    remove_file(&temporary_of(directory, name))
}

fn temporary_of(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!(".{name}.tmp"))
}

/// Renames over whatever `to` is. Durable once both directories are synced.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    pass("rename", from).and_then(|()| fs::rename(from, to)).context(|| failed("rename", from))
}

/// Renames where nothing stands at `to`; `Ok(false)` and no change where something does.
pub(crate) fn rename_new(from: &Path, to: &Path) -> Result<bool> {
    pass("rename", from).context(|| failed("rename", from))?;
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST | Errno::NOTEMPTY) => Ok(false),
        // Some file systems know no flags; what calls us holds the lock of the backup directory, so looking first is enough.
        Err(Errno::INVAL | Errno::NOSYS) => {
            if to.symlink_metadata().is_ok() {
                return Ok(false);
            }
            fs::rename(from, to).context(|| failed("rename", from)).map(|()| true)
        }
        Err(errno) => Err(Error::io(failed("rename", from), errno.into())),
    }
}

/// Exchanges two directories in one step: no instant shows either missing.
pub(crate) fn exchange(a: &Path, b: &Path) -> Result<()> {
    pass("exchange", a).context(|| failed("exchange", a))?;
    rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).context(|| failed("exchange", a))
}

/// Gives `from` a second name. The error of the system is returned bare: callers act on EXDEV, EPERM and ENOENT.
pub(crate) fn link(from: &Path, to: &Path) -> io::Result<()> {
    pass("link", to)?;
    fs::hard_link(from, to)
}

/// As [`link`], by names in open directories; `to_path` is where `to` leads, for the gate.
pub(crate) fn link_at(
    from: BorrowedFd<'_>,
    name: &str,
    to: BorrowedFd<'_>,
    to_name: &str,
    to_path: &Path,
) -> io::Result<()> {
    pass("link", to_path)?;
    Ok(rustix::fs::linkat(from, name, to, to_name, AtFlags::empty())?)
}

/// Passes the gate before a library writes to a file of an unfinished backup by itself.
pub(crate) fn written_by_library(path: &Path) -> Result<()> {
    pass("library", path).context(|| failed("write", path))
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    pass("fsync-dir", path).and_then(|()| File::open(path)?.sync_all()).context(|| failed("sync directory", path))
}

/// Syncs a directory and those below it, bottom-up.
pub(crate) fn sync_dirs(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path).context(|| failed("read directory", path))? {
        let entry = entry.context(|| failed("read directory", path))?;
        if entry.file_type().context(|| failed("look at", &entry.path()))?.is_dir() {
            sync_dirs(&entry.path())?;
        }
    }
    sync_dir(path)
}

/// Removes a file; one that is not there is no error.
pub(crate) fn remove_file(path: &Path) -> Result<()> {
    // Looked at first so that the common case, nothing there, is no operation at all.
    if path.symlink_metadata().is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
        return Ok(());
    }
    gone(pass("unlink", path).and_then(|()| fs::remove_file(path))).context(|| failed("remove", path))
}

/// Removes a directory and all below it, as long as `keep_going` says so; `Ok(false)` when it was told to stop.
/// What somebody else removed meanwhile is no error.
pub(crate) fn remove_tree(path: &Path, keep_going: &dyn Fn() -> bool) -> Result<bool> {
    let entries = match fs::read_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
        other => other.context(|| failed("read directory", path))?,
    };
    for entry in entries {
        if !keep_going() {
            return Ok(false);
        }
        let entry = entry.context(|| failed("read directory", path))?;
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            if !remove_tree(&entry.path(), keep_going)? {
                return Ok(false);
            }
        } else {
            remove_file(&entry.path())?;
        }
    }
    gone(pass("rmdir", path).and_then(|()| fs::remove_dir(path))).context(|| failed("remove directory", path))?;
    Ok(true)
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// An exclusive flock, held until dropped; a process that dies gives it back.
#[derive(Debug)]
#[must_use]
pub(crate) struct Lock(File);

impl Lock {
    /// Takes the lock of a file, which is created if it is missing; `None` where somebody else has it.
    pub(crate) fn try_take(path: &Path, owner: Option<Owner>) -> Result<Option<Lock>> {
        let new = !path.exists();
        let open = || OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o644).open(path);
        let file = pass("lock", path).and_then(|()| open()).context(|| failed("open lock file", path))?;
        if new {
            give(path, owner)?;
        }
        Lock::of(file, FlockOperation::NonBlockingLockExclusive, path)
    }

    /// Shares the lock of a file that is there, so that nobody takes it exclusively; `None` where somebody has.
    pub(crate) fn try_share(path: &Path) -> Result<Option<Lock>> {
        let file = open_lock(path).context(|| failed("open lock file", path))?;
        Lock::of(file, FlockOperation::NonBlockingLockShared, path)
    }

    /// Takes the lock of a directory itself, which leaves no file there; `None` where somebody else has it.
    pub(crate) fn try_take_directory(path: &Path) -> Result<Option<Lock>> {
        let file = pass("lock", path).and_then(|()| open_lock(path)).context(|| failed("open directory", path))?;
        Lock::of(file, FlockOperation::NonBlockingLockExclusive, path)
    }

    fn of(file: File, operation: FlockOperation, path: &Path) -> Result<Option<Lock>> {
        match rustix::fs::flock(&file, operation) {
            Ok(()) => Ok(Some(Lock(file))),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(Error::io(failed("lock", path), errno.into())),
        }
    }

    /// Whether a living process holds the lock of a file. Changes nothing; a file that is not there is not held.
    pub(crate) fn is_held(path: &Path) -> bool {
        let Ok(file) = open_lock(path) else { return false };
        let taken = rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared);
        drop(Lock(file));
        taken == Err(Errno::WOULDBLOCK)
    }

    /// A short note kept in the lock file itself, durable when this returns.
    pub(crate) fn write_note(&self, path: &Path, note: &str) -> Result<()> {
        let write = || -> io::Result<()> {
            self.0.write_all_at(note.as_bytes(), 0)?;
            // A change of nothing but the content needs no commit of the journal.
            if self.0.metadata()?.len() == note.len() as u64 { Ok(()) } else { self.0.set_len(note.len() as u64) }
        };
        pass("note", path).and_then(|()| write()).context(|| failed("write", path))?;
        pass("fsync", path).and_then(|()| self.0.sync_data()).context(|| failed("sync", path))
    }

    /// The note, or nothing where it cannot be read.
    pub(crate) fn read_note(&self) -> String {
        let mut note = [0; 64];
        let length = self.0.read_at(&mut note, 0).unwrap_or(0);
        String::from_utf8_lossy(&note[..length]).into_owned()
    }
}

impl Drop for Lock {
    /// Closing is not enough: a process forked at this moment has a copy of the descriptor, and with it the lock, until
    /// its exec.
    fn drop(&mut self) {
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

/// Opens a lock file for looking; a FIFO of that name does not hold us.
fn open_lock(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

/// Bytes available to us, and bytes in all, of the file system that holds `path`.
pub(crate) fn free_bytes(path: &Path) -> Result<(u64, u64)> {
    let stat = rustix::fs::statvfs(path).context(|| failed("ask for the free space of", path))?;
    Ok((stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_blocks.saturating_mul(stat.f_frsize)))
}

/// Fails where the file system of `path` has less than `reserve_bytes` left.
pub(crate) fn require_room(path: &Path, reserve_bytes: u64) -> Result<()> {
    let (free, _) = free_bytes(path)?;
    if free >= reserve_bytes {
        return Ok(());
    }
    let context = format!(
        "only {free} bytes are free on the file system of {} while {reserve_bytes} bytes must stay free; free some space",
        path.display()
    );
    Err(Error::new(Kind::NoSpace, context))
}
