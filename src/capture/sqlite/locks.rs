//! SQLite's locks on a database and its `-shm`: their bytes, the locks of other processes, and our own.
//!
//! SQLite locks bytes of its files with POSIX locks (os_unix.c). These belong to the process, and end when the process closes
//! *any* descriptor of the file. Invariants
//! - [`Held`] borrows SQLite's descriptors; it opens and closes none of the database or the `-shm`.
//! - [`ReadLock`] and the probes open descriptors of their own. They are for databases that this process does not have open:
//!   those of another process, before SQLite opens them here and after it has closed them.

use std::cell::RefCell;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rustix::fs::OFlags;
use rustix::process::{Flock, FlockType};

use crate::capture::sqlite::wal::{INDEX_BYTES, Index};
use crate::control::Control;
use crate::database_files::shm_of;
use crate::disk::file_id::FileId;
use crate::disk::nofollow;
use crate::disk::sys;
use crate::error::{Error, IoContext, Kind, Result};

/// A range of bytes of a file that is locked; 0 bytes mean up to the end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Range {
    pub(crate) first: u32,
    pub(crate) bytes: u32,
}

/// The bytes of a database that every reader locks (`SHARED_FIRST`, `SHARED_SIZE`).
pub(crate) const SHARED: Range = Range { first: 0x4000_0002, bytes: 510 };

/// The bytes of SQLite's exclusive lock on a database: `PENDING_BYTE`, `RESERVED_BYTE` and the shared range.
pub(crate) const EXCLUSIVE: Range = Range { first: 0x4000_0000, bytes: 512 };

/// The byte of the `-shm` that each of its users locks (`UNIX_SHM_DMS`).
pub(crate) const SHM_IN_USE: Range = Range { first: 128, bytes: 1 };

/// The byte of the `-shm` for `WAL_READ_LOCK(0)`; the bytes of the other read locks follow (`UNIX_SHM_BASE` + 3).
const SHM_READ0: u64 = 123;

/// The number of read locks.
const SHM_READ_LOCKS: u64 = 5;

/// How long we wait for a lock that another process holds.
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// The pause between two attempts at such a lock.
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// How often the WAL index is read again while it changes, and the pause between two reads.
const INDEX_READS: u32 = 100;
const INDEX_PAUSE: Duration = Duration::from_micros(200);

/// The reason and the remedy if a database is locked exclusively.
pub(crate) const LOCKED: &str = "it is locked exclusively: a node that opens its databases with locking_mode=EXCLUSIVE can be \
                                 backed up only while it is stopped; otherwise try again when the writer is done";

/// Our read lock, SQLite's own `SHARED`, on a database that this process does not have open. While it is held, a writer with a
/// rollback journal waits, and a process that closes the database cannot remove its `-wal`.
///
/// It covers no other bytes: with a lock on the byte of `RESERVED`, other processes would take a hot journal for one in use.
#[derive(Debug)]
#[must_use]
pub(crate) struct ReadLock {
    pub(crate) file: File,
    pub(crate) meta: Metadata,
}

impl ReadLock {
    /// Takes the lock; waits for a writer, at most [`BUSY_TIMEOUT`].
    pub(crate) fn take(database: &Path, control: &Control) -> Result<ReadLock> {
        let file = match nofollow::open_of_node(database) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                let context = format!("cannot read {}: run as the node's user or as root", database.display());
                return Err(Error::new(Kind::Refused, context).because(e));
            }
            other => other.context(|| format!("cannot open {}", database.display()))?,
        };
        let deadline = Instant::now() + BUSY_TIMEOUT;
        loop {
            match sys::read_lock(&file, SHARED.first.into(), SHARED.bytes.into()) {
                Err(e) if matches!(e.raw_os_error(), Some(libc::EACCES | libc::EAGAIN)) => {}
                other => break other.context(|| format!("cannot lock {}", database.display()))?,
            }
            if Instant::now() >= deadline {
                return Err(Error::new(Kind::Refused, format!("cannot read {}: {LOCKED}", database.display())));
            }
            control.check()?;
            control.step();
            sleep(LOCK_PAUSE);
        }
        let meta = file.metadata().context(|| format!("cannot look at {}", database.display()))?;
        Ok(ReadLock { file, meta })
    }

    /// Whether `database` is still the name of the locked file.
    pub(crate) fn is_at(&self, database: &Path) -> bool {
        identity(database).is_ok_and(|now| now == FileId::from(&self.meta))
    }
}

/// Whether another process uses the WAL of a database.
pub(crate) fn has_other_user(database: &Path) -> Result<bool> {
    is_locked_by_another(&shm_of(database), SHM_IN_USE)
}

fn is_locked_by_another(path: &Path, range: Range) -> Result<bool> {
    let file = match nofollow::open_of_node(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other.context(|| format!("cannot open {}", path.display()))?,
    };
    let probe = Flock { start: range.first.into(), length: range.bytes.into(), ..Flock::from(FlockType::WriteLock) };
    let holder = rustix::process::fcntl_getlk(&file, &probe);
    Ok(holder.context(|| format!("cannot read the locks on {}", path.display()))?.is_some())
}

/// The lock or the file that a read transaction has lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    DatabaseLock,
    ReadLock,
    /// There is no file with the name of the database.
    Name,
    /// Another file has the name of the database, or of its `-shm`.
    Replaced,
}

/// The descriptors and locks of SQLite's read transaction on a database in WAL mode.
pub(crate) struct Held<'a> {
    connection: &'a Connection,
    /// Device and inode of the database and of its `-shm`.
    identities: [FileId; 2],
    pub(crate) database: BorrowedFd<'a>,
    shm: BorrowedFd<'a>,
    /// The bytes of the read locks on the `-shm` that this process has held at every check so far: our lock, and those that a
    /// node that embeds us holds all the time.
    read_locks: RefCell<Vec<u64>>,
}

impl<'a> Held<'a> {
    pub(crate) fn find(connection: &'a Connection, database: &Path) -> Result<Held<'a>> {
        let shm_path = shm_of(database);
        let identities = [identity(database)?, identity(&shm_path)?];
        let one = |identity, mode: Option<OFlags>, path: &Path| -> Result<BorrowedFd<'a>> {
            let failed = || format!("cannot find the descriptor of {} that SQLite uses", path.display());
            let all = sys::descriptors_of(identity, connection).context(failed)?;
            // If a node embeds us, its own descriptors are open on the database too; ours is the read-only one.
            let fits = |fd: &BorrowedFd<'_>| {
                let flags = rustix::fs::fcntl_getfl(fd).unwrap_or(OFlags::empty());
                mode.is_none_or(|mode| flags & OFlags::RWMODE == mode)
            };
            all.into_iter().find(fits).ok_or_else(|| Error::new(Kind::Database, failed()))
        };
        let held = Held {
            connection,
            identities,
            database: one(identities[0], Some(OFlags::RDONLY), database)?,
            shm: one(identities[1], None, &shm_path)?,
            read_locks: RefCell::new((SHM_READ0..SHM_READ0 + SHM_READ_LOCKS).collect()),
        };
        match held.missing(database)? {
            None => Ok(held),
            Some(missing) => {
                let context = format!("SQLite does not hold {}: {missing:?}", database.display());
                Err(Error::new(Kind::Database, context))
            }
        }
    }

    /// The present content of the WAL index; `None` if it cannot be parsed.
    pub(crate) fn index(&self) -> Option<Index> {
        let mut bytes = [0; INDEX_BYTES];
        for _ in 0..INDEX_READS {
            if rustix::io::pread(self.shm, &mut bytes, 0) == Ok(INDEX_BYTES)
                && let Some(index) = Index::parse(&bytes)
            {
                return Some(index);
            }
            sleep(INDEX_PAUSE);
        }
        // A process was killed between the writes of the two headers: both are valid until the next writer repairs this.
        Index::parse_either(&bytes)
    }

    /// The present size of the WAL's frames, from a single read of the WAL index.
    pub(crate) fn wal_bytes(&self) -> u64 {
        let mut bytes = [0; INDEX_BYTES];
        let read = rustix::io::pread(self.shm, &mut bytes, 0) == Ok(INDEX_BYTES);
        Index::parse_either(&bytes).filter(|_| read).map_or(0, |index| index.bytes())
    }

    /// Whether SQLite reads through the shared WAL index. If SQLite may not write to the `-shm` of a crashed node, it makes a
    /// private WAL index.
    pub(crate) fn shares_index(&self) -> Result<bool> {
        Ok(covers(&locks_of(&[self.shm])?, SHM_IN_USE.first.into()))
    }

    /// Whether our read transaction reads the database file alone, without the WAL: our only read lock is READ0, and we use the
    /// `-shm` (SQLite also takes READ0 while it reads through a private WAL index).
    pub(crate) fn reads_database_only(&self) -> Result<bool> {
        self.note_read_locks()?;
        Ok(*self.read_locks.borrow() == [SHM_READ0] && self.shares_index()?)
    }

    /// Forgets the read locks that the process no longer holds. If a node embeds us, its connections take and release read
    /// locks; ours is always held. A lost lock cannot come back unnoticed: SQLite believes that it holds it.
    pub(crate) fn note_read_locks(&self) -> Result<()> {
        let locks = locks_of(&[self.shm])?;
        self.read_locks.borrow_mut().retain(|byte| covers(&locks, *byte));
        Ok(())
    }

    /// The lock that is no longer held, or the file that no longer has its name; `None` if nothing is missing.
    pub(crate) fn missing(&self, database: &Path) -> Result<Option<Missing>> {
        match identity(database) {
            Err(_) if !database.try_exists().unwrap_or(true) => return Ok(Some(Missing::Name)),
            Ok(now) if now == self.identities[0] => {}
            _ => return Ok(Some(Missing::Replaced)),
        }
        // In a node that embeds us, any connection of the process may have taken the lock.
        let all = sys::descriptors_of(self.identities[0], self.connection);
        let locks = locks_of(&all.context(|| format!("cannot find the descriptors of {}", database.display()))?)?;
        if !covers(&locks, SHARED.first.into()) {
            return Ok(Some(Missing::DatabaseLock));
        }
        self.note_read_locks()?;
        if self.read_locks.borrow().is_empty() {
            return Ok(Some(Missing::ReadLock));
        }
        let same_shm = identity(&shm_of(database)).is_ok_and(|now| now == self.identities[1]);
        Ok((!same_shm).then_some(Missing::Replaced))
    }
}

/// Device and inode of the file that has this name.
pub(crate) fn identity(path: &Path) -> Result<FileId> {
    let meta = fs::symlink_metadata(path).context(|| format!("cannot look at {}", path.display()))?;
    Ok(FileId::from(&meta))
}

fn covers(locks: &[(u64, u64)], byte: u64) -> bool {
    locks.iter().any(|(first, last)| (*first..=*last).contains(&byte))
}

/// The ranges of POSIX read locks that this process has through these descriptors: first and last byte of each.
/// Format of `/proc/self/fdinfo`: proc(5), `lock: 1: POSIX ADVISORY READ 4711 00:2f:4711 124 124`.
#[expect(clippy::disallowed_methods, reason = "reads the locks of this process")]
fn locks_of(descriptors: &[BorrowedFd<'_>]) -> Result<Vec<(u64, u64)>> {
    let mut locks = Vec::new();
    for fd in descriptors {
        let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
        let text = fs::read_to_string(&path).context(|| format!("cannot read {path}"))?;
        for line in text.lines().filter(|l| l.starts_with("lock:") && l.contains("POSIX") && l.contains(" READ ")) {
            let mut words = line.split_whitespace().rev();
            let last = words.next().map(|w| if w == "EOF" { Some(u64::MAX) } else { w.parse().ok() });
            let first = words.next().map(|w| w.parse().ok());
            if let (Some(Some(first)), Some(Some(last))) = (first, last) {
                locks.push((first, last));
            }
        }
    }
    Ok(locks)
}
