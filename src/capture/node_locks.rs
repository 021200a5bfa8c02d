//! Which process uses the databases below a `0`, and locks that keep a node from opening them for a moment.
//!
//! RocksDB takes a POSIX write lock on the whole of `LOCK` before it reads anything, and fails if another process has it. A
//! connection of SQLite takes a read lock on the shared range of its database before it reads, and keeps it as long as it is
//! open if there is a WAL; for that it first locks the byte before, `PENDING_BYTE` (os_unix.c, pager.c).
//!
//! So write locks on these bytes can only be taken while no process has a database open, and then no process gets further than
//! to open the file. One that has opened it and waits for the lock would go on with the old database, and with the WAL of the
//! one that is in its place by then. Locks do not show such a process, but a *lease* does: the kernel gives one on a file that is
//! not open elsewhere. A process that opens the file waits until the lease ends, and the lease tells that there is one.
//!
//! Invariants: the locks belong to our open files (`F_OFD_SETLK`): this process may close other descriptors of these files.
//! Never used for a database that is open in this process.
//!
//! # Limitations
//! Only a file's owner and root may take leases, and some file systems have none. Then only the locks count: they are enough
//! for a node, which opens no SQLite database before it has RocksDB's lock.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Flock, FlockType, Pid};

use crate::capture::source::{SqliteSource, beside, doubtful_name};
use crate::disk::nofollow;
use crate::disk::sys;
use crate::disk::{self, Owner};
use crate::error::{Error, IoContext, Kind, Result};

/// The whole of RocksDB's `LOCK`.
const ROCKSDB: Range = Range { first: 0, bytes: 0 };

/// `PENDING_BYTE`, `RESERVED_BYTE` and the shared range of a SQLite database: what an exclusive lock of SQLite covers.
const SQLITE: Range = Range { first: 0x4000_0000, bytes: 512 };

/// The shared range alone.
const SQLITE_SHARED: Range = Range { first: 0x4000_0002, bytes: 510 };

/// The byte of a `-shm` that each user of it holds (`UNIX_SHM_DMS`).
const SHM_IN_USE: Range = Range { first: 128, bytes: 1 };

/// Our own name, as the kernel tells it of a process.
const OURSELVES: &str = "chainweb-backup";

/// Bytes of a file that locks are about; none are all of them.
#[derive(Clone, Copy)]
struct Range {
    first: u32,
    bytes: u32,
}

/// A process that has a lock.
#[derive(Debug)]
pub(crate) struct User {
    file: PathBuf,
    /// Absent where it cannot be seen from here, as in another container.
    pid: Option<Pid>,
}

impl User {
    /// What it is called, where that can be seen.
    #[expect(clippy::disallowed_methods, reason = "it lies in no backup directory")]
    fn name(&self) -> Option<String> {
        let name = fs::read_to_string(format!("/proc/{}/comm", self.pid?.as_raw_nonzero())).ok()?;
        Some(name.trim_end().to_owned())
    }

    /// The error of using a database that shall be replaced.
    pub(crate) fn into_error(self) -> Error {
        let (name, file) = (self.name(), self.file.display());
        if name.as_deref() == Some(OURSELVES) {
            let context = format!("{self} makes a backup of {file}: wait until it is done, or cancel it");
            return Error::new(Kind::Busy, context);
        }
        Error::new(Kind::NodeRunning, format!("a running node uses {file}: stop {self} first"))
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.pid, self.name()) {
            (Some(pid), Some(name)) => write!(f, "process {} ({name})", pid.as_raw_nonzero()),
            (Some(pid), None) => write!(f, "process {}", pid.as_raw_nonzero()),
            (None, _) => write!(f, "a process that cannot be seen from here (another container?)"),
        }
    }
}

/// The process that uses a database below `place`, a `0`, if one does. Takes no lock.
pub(crate) fn user_of(place: &Path) -> Result<Option<User>> {
    let mut probes = vec![(place.join("rocksDb").join("LOCK"), ROCKSDB)];
    for database in databases(place)? {
        // Every user of a WAL holds a byte of the -shm, everybody else the shared range.
        probes.push((beside(&database, "-shm"), SHM_IN_USE));
        probes.push((database, SQLITE_SHARED));
    }
    for (path, range) in probes {
        if let Some(file) = open(&path, OFlags::RDONLY)?
            && let Some(user) = holder(&file, &path, range)?
        {
            return Ok(Some(user));
        }
    }
    Ok(None)
}

/// The locks that keep a node from opening the databases below one `0`, until this is dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct NodeLocks {
    place: PathBuf,
    held: Vec<Held>,
    databases_count: usize,
}

#[derive(Debug)]
struct Held {
    file: File,
    path: PathBuf,
    has_lease: bool,
}

impl NodeLocks {
    /// Takes them. Fails with [`Kind::NodeRunning`] where a process has one of the databases open, with [`Kind::Busy`] where it
    /// is a backup. A `LOCK` that is missing is created, as RocksDB does when it opens its database.
    pub(crate) fn take(place: &Path, owner: Option<Owner>) -> Result<NodeLocks> {
        let mut wanted = Vec::new();
        let rocksdb = place.join("rocksDb");
        if rocksdb.is_dir() {
            let lock = rocksdb.join("LOCK");
            if lock.symlink_metadata().is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
                drop(disk::create_new("create", &lock, owner)?);
            }
            wanted.push((lock, ROCKSDB));
        }
        let databases = databases(place)?;
        let databases_count = databases.len();
        wanted.extend(databases.into_iter().map(|database| (database, SQLITE)));
        let mut held = Vec::with_capacity(wanted.len());
        for (path, range) in wanted {
            if let Some(file) = open(&path, OFlags::RDWR)? {
                held.push(Held::take(file, path, range)?);
            }
        }
        Ok(NodeLocks { place: place.to_owned(), held, databases_count })
    }

    /// Fails with [`Kind::NodeRunning`] where a process has opened one of the databases since, which are at `place` by now, or
    /// where there are others than were locked.
    pub(crate) fn require_unused(&self, place: &Path) -> Result<()> {
        for held in &self.held {
            let name = held.path.strip_prefix(&self.place).expect("it was found below that place");
            let opened = held.has_lease && !sys::is_leased(&held.file);
            if opened || !is_file_at(&held.file, &place.join(name)) {
                return Err(opened_meanwhile(&held.path));
            }
        }
        let is_same = databases(place)?.len() == self.databases_count;
        if is_same { Ok(()) } else { Err(opened_meanwhile(&self.place.join("sqlite"))) }
    }
}

impl Held {
    fn take(file: File, path: PathBuf, range: Range) -> Result<Held> {
        match sys::write_lock(&file, range.first.into(), range.bytes.into()) {
            Ok(()) => {}
            Err(e) if matches!(e.raw_os_error(), Some(libc::EACCES | libc::EAGAIN)) => {
                let user = holder(&file, &path, range)?;
                return Err(user.map_or_else(|| opened_meanwhile(&path), User::into_error));
            }
            Err(e) => return Err(Error::io(format!("cannot lock {}", path.display()), e)),
        }
        let file_system = rustix::fs::fstatfs(&file).context(|| format!("cannot look at {}", path.display()))?;
        let has_lease = match sys::lease(&file) {
            Ok(()) => true,
            // What such a file system says of other programs is not theirs.
            Err(_) if doubtful_name(&file_system).is_some() => false,
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => return Err(open_elsewhere(&path)),
            // Not ours, or a file system without leases.
            Err(_) => false,
        };
        Ok(Held { file, path, has_lease })
    }
}

fn open_elsewhere(path: &Path) -> Error {
    let file = path.display();
    let context =
        format!("a process has {file} open (fuser '{file}' names it): stop the node, or wait for that program");
    Error::new(Kind::NodeRunning, context)
}

fn opened_meanwhile(path: &Path) -> Error {
    let context = format!(
        "a process opened {} at this moment: a node that starts again by itself? Stop it first",
        path.display()
    );
    Error::new(Kind::NodeRunning, context)
}

fn databases(place: &Path) -> Result<Vec<PathBuf>> {
    SqliteSource::Foreign(place.join("sqlite")).databases()
}

/// Opens a regular file; `None` where there is none. The operator may have put links on the way to it.
fn open(path: &Path, access: OFlags) -> Result<Option<File>> {
    let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match nofollow::require_regular(rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound || nofollow::is_unfit(&e) => Ok(None),
        other => other.map(Some).context(|| format!("cannot open {}", path.display())),
    }
}

fn holder(file: &File, path: &Path, range: Range) -> Result<Option<User>> {
    let probe = Flock { start: range.first.into(), length: range.bytes.into(), ..Flock::from(FlockType::WriteLock) };
    let found = rustix::process::fcntl_getlk(file, &probe);
    let found = found.context(|| format!("cannot ask who uses {}", path.display()))?;
    Ok(found.map(|lock| User { file: path.to_owned(), pid: lock.pid.filter(|pid| pid.as_raw_nonzero().get() > 0) }))
}

fn is_file_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |meta: fs::Metadata| (meta.dev(), meta.ino());
    let there = fs::metadata(path).map(identity);
    there.is_ok_and(|there| file.metadata().is_ok_and(|meta| identity(meta) == there))
}
