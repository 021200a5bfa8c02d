//! Locks of files and directories: flock(2), held until dropped, released by the kernel when a process dies.
//!
//! Invariant: opening a lock follows no link and never waits; only the note of a lock file is ever written.
#![allow(clippy::disallowed_methods)]

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::{Errno, FdFlags};

use crate::disk::fault_gate::pass;
use crate::disk::nofollow::{self, Place, is_unfit};
use crate::disk::{Owner, give_open};
use crate::error::{Error, IoContext, Result, failed};

/// The mode of a lock file, before the umask.
const LOCK_MODE: u32 = 0o644;
const PRIVATE_LOCK_MODE: u32 = 0o600;

/// A flock, held until dropped; the kernel releases it when the process dies.
#[derive(Debug)]
#[must_use]
pub(crate) struct Lock(File);

impl Lock {
    /// Takes the exclusive lock of a file, which is created if it is missing; `None` if it is locked already.
    pub(crate) fn try_take(path: &Path, owner: Option<Owner>) -> Result<Option<Lock>> {
        let file = pass("lock", path).and_then(|()| open_or_create(path, LOCK_MODE));
        let (file, is_new) = file.context(|| failed("open lock file", path))?;
        if let Some(owner) = owner.filter(|_| is_new) {
            let given = pass("chown", path).and_then(|()| give_open(&file, owner));
            given.context(|| failed("change the owner of", path))?;
        }
        Lock::of(file, FlockOperation::NonBlockingLockExclusive, path)
    }

    /// As [`Lock::try_take`], of a file that other users cannot open: they cannot lock it either.
    pub(crate) fn try_take_private(path: &Path) -> Result<Option<Lock>> {
        let opened = pass("lock", path).and_then(|()| open_or_create(path, PRIVATE_LOCK_MODE));
        let (file, _) = opened.context(|| failed("open lock file", path))?;
        Lock::of(file, FlockOperation::NonBlockingLockExclusive, path)
    }

    /// Takes a shared lock of a file that exists, which prevents an exclusive one; `None` if there is an exclusive one.
    pub(crate) fn try_share(path: &Path) -> Result<Option<Lock>> {
        let file = nofollow::open_regular(path).context(|| failed("open lock file", path))?;
        Lock::of(file, FlockOperation::NonBlockingLockShared, path)
    }

    /// Takes the exclusive lock of a directory itself, without a file in it; `None` if it is locked already.
    pub(crate) fn try_take_directory(path: &Path) -> Result<Option<Lock>> {
        let opened = pass("lock", path).and_then(|()| nofollow::open_directory(path));
        Lock::of(opened.context(|| failed("open directory", path))?, FlockOperation::NonBlockingLockExclusive, path)
    }

    /// Takes a shared lock of a directory itself; `None` if there is an exclusive one.
    pub(crate) fn try_share_directory(path: &Path) -> Result<Option<Lock>> {
        let directory = nofollow::open_directory(path).context(|| failed("open directory", path))?;
        Lock::of(directory, FlockOperation::NonBlockingLockShared, path)
    }

    fn of(file: File, operation: FlockOperation, path: &Path) -> Result<Option<Lock>> {
        match rustix::fs::flock(&file, operation) {
            Ok(()) => Ok(Some(Lock(file))),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(Error::io(failed("lock", path), errno.into())),
        }
    }

    /// Whether a living process holds the exclusive lock of a file. Changes nothing. A file that does not exist, or that we
    /// cannot have made (a link, a FIFO), is not held.
    pub(crate) fn is_held(path: &Path) -> Result<bool> {
        let file = match nofollow::open_regular(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound || is_unfit(&e) => return Ok(false),
            other => other.context(|| failed("open lock file", path))?,
        };
        let taken = rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared);
        drop(Lock(file));
        match taken {
            Err(Errno::WOULDBLOCK) => Ok(true),
            other => other.context(|| failed("ask for the lock", path)).map(|()| false),
        }
    }

    /// Starts a process that inherits the lock: it is held until all its processes have ended, even if this one dies before.
    pub(crate) fn inherited<T>(&self, start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        rustix::io::fcntl_setfd(&self.0, FdFlags::empty())?;
        let started = start();
        rustix::io::fcntl_setfd(&self.0, FdFlags::CLOEXEC)?;
        started
    }

    /// A short note kept in the lock file itself, durable when this returns.
    pub(crate) fn write_note(&self, path: &Path, note: &str) -> Result<()> {
        let write = || -> io::Result<()> {
            if self.0.metadata()?.nlink() > 1 {
                // The other name may be that of a foreign file. Only here do we write to a file that existed before.
                return Err(io::Error::other("it has another name (a hard link); remove it"));
            }
            self.0.write_all_at(note.as_bytes(), 0)?;
            // If only the content changes, the fsync needs no commit of the journal.
            if self.0.metadata()?.len() == note.len() as u64 { Ok(()) } else { self.0.set_len(note.len() as u64) }
        };
        pass("note", path).and_then(|()| write()).context(|| failed("write", path))?;
        pass("fsync", path).and_then(|()| self.0.sync_data()).context(|| failed("sync", path))
    }

    /// The note; empty if it cannot be read.
    pub(crate) fn read_note(&self) -> String {
        let mut note = [0; 64];
        let length = self.0.read_at(&mut note, 0).unwrap_or(0);
        String::from_utf8_lossy(&note[..length]).into_owned()
    }
}

impl Drop for Lock {
    /// Closing is not enough: a process that was just forked has a copy of the descriptor, and with it the lock, until its
    /// exec.
    fn drop(&mut self) {
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

/// Opens a lock file, and returns whether it is new.
fn open_or_create(path: &Path, mode: u32) -> io::Result<(File, bool)> {
    let place = Place::of(path)?;
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY;
    match place.open(flags | OFlags::CREATE | OFlags::EXCL, Mode::from_raw_mode(mode)) {
        Ok(file) => Ok((File::from(file), true)),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            Ok((nofollow::require_regular(place.open(flags, Mode::empty()))?, false))
        }
        Err(e) => Err(e),
    }
}
