//! Finds the process that uses the databases below a `0`, and takes locks that prevent a node from opening them.
//!
//! RocksDB takes a POSIX write lock on the whole of `LOCK` before it reads anything, and fails if another process has it. A
//! connection of SQLite takes a read lock on the shared range of its database before it reads, and keeps it as long as it is
//! open if there is a WAL; for that it first locks the byte before, `PENDING_BYTE` (os_unix.c, pager.c).
//!
//! So we can take write locks on these bytes only while no process has a database open, and as long as we hold them, another
//! process can open the file but not use it. A process that has opened the file and waits for the lock would later use the old
//! database with the WAL of the database that has replaced it. Locks do not show such a process, but a *lease* does: the kernel
//! grants one on a file that is not open elsewhere. A process that opens the file waits until the lease ends, and the holder of
//! the lease can see that a process waits.
//!
//! Invariants: the locks belong to our open files (`F_OFD_SETLK`): this process may close other descriptors of these files.
//! Never used for a database that is open in this process.
//!
//! # Limitations
//! Only a file's owner and root may take leases, and some file systems have none. Then we rely on the locks alone: they are
//! enough for a node, which opens no SQLite database before it has RocksDB's lock.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Flock, FlockType, Pid};

use crate::capture::links::follow_trusted;
use crate::capture::source::{SqliteSource, doubtful_name};
use crate::capture::sqlite::locks::{EXCLUSIVE, Range, SHARED, SHM_IN_USE};
use crate::chainweb;
use crate::database_files::{LOCK, shm_of};
use crate::disk::file_id::FileId;
use crate::disk::nofollow;
use crate::disk::sys;
use crate::disk::{self, Owner};
use crate::error::{Error, IoContext, Kind, Result};

/// The whole of RocksDB's `LOCK`.
const LOCK_FILE: Range = Range { first: 0, bytes: 0 };

/// How long we wait for a file that is open elsewhere, and the pause between two tries.
const OPEN_WAIT: Duration = Duration::from_millis(500);
const OPEN_PAUSE: Duration = Duration::from_millis(10);

/// The name of our own process in `/proc/PID/comm`.
const OURSELVES: &str = "chainweb-backup";

/// A process that has a lock.
#[derive(Debug)]
pub(crate) struct User {
    file: PathBuf,
    /// `None` if it is not visible from here, as in another container.
    pid: Option<Pid>,
}

impl User {
    /// The name of the process, if it is visible.
    #[expect(clippy::disallowed_methods, reason = "it lies in no backup directory")]
    fn name(&self) -> Option<String> {
        let name = fs::read_to_string(format!("/proc/{}/comm", self.pid?.as_raw_nonzero())).ok()?;
        Some(name.trim_end().to_owned())
    }

    /// The error of a restore that would replace a database in use.
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
            (None, _) => write!(f, "a process that is not visible from here (another container?)"),
        }
    }
}

/// The process that uses a database below `place`, a `0`, if there is one. Takes no lock.
pub(crate) fn user_of(place: &Path) -> Result<Option<User>> {
    let mut probes = vec![(place.join(chainweb::ROCKSDB).join(LOCK), LOCK_FILE)];
    for database in databases(place)? {
        // A process that uses a WAL locks a byte of the -shm, any other process the shared range.
        probes.push((shm_of(&database), SHM_IN_USE));
        probes.push((database, SHARED));
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

/// Locks that prevent a node from opening the databases below one `0`, held until dropped.
#[derive(Debug)]
#[must_use]
pub(crate) struct NodeLocks {
    rocksdb: PathBuf,
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
    /// Takes the locks. Fails with [`Kind::NodeRunning`] if a process has one of the databases open, with [`Kind::Busy`] if that
    /// process is one of ours. A missing `LOCK` is created, as RocksDB does when it opens its database.
    pub(crate) fn take(place: &Path, owner: Option<Owner>) -> Result<NodeLocks> {
        let mut wanted = Vec::new();
        let rocksdb = follow_trusted(place, Path::new(chainweb::ROCKSDB))?;
        if rocksdb.is_dir() {
            let lock = rocksdb.join(LOCK);
            if lock.symlink_metadata().is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
                drop(disk::create_new("create", &lock, owner)?);
            }
            wanted.push((lock, LOCK_FILE));
        }
        let databases = databases(place)?;
        let databases_count = databases.len();
        wanted.extend(databases.into_iter().map(|database| (database, EXCLUSIVE)));
        let mut held = Vec::with_capacity(wanted.len());
        for (path, range) in wanted {
            if let Some(file) = open(&path, OFlags::RDWR)? {
                held.push(Held::take(file, path, range)?);
            }
        }
        Ok(NodeLocks { rocksdb, held, databases_count })
    }

    /// Fails with [`Kind::NodeRunning`] if a process has since opened one of the databases, which now lie in `rocksdb` and `sqlite`, or
    /// if the databases are not the ones that were locked.
    pub(crate) fn require_unused(&self, rocksdb: &Path, sqlite: &Path) -> Result<()> {
        self.require_unopened()?;
        for held in &self.held {
            let name = held.path.file_name().expect("every locked file was found in a directory");
            let directory = if held.path.parent() == Some(&self.rocksdb) { rocksdb } else { sqlite };
            if !is_file_at(&held.file, &directory.join(name)) {
                return Err(opened_meanwhile(&held.path));
            }
        }
        let is_same = databases_in(sqlite)?.len() == self.databases_count;
        if is_same { Ok(()) } else { Err(opened_meanwhile(sqlite)) }
    }

    /// Fails with [`Kind::NodeRunning`] if a process has since opened one of the locked files.
    pub(crate) fn require_unopened(&self) -> Result<()> {
        match self.held.iter().find(|held| held.has_lease && !sys::is_leased(&held.file)) {
            Some(held) => Err(opened_meanwhile(&held.path)),
            None => Ok(()),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        sys::release(&self.file);
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
        let has_lease = match in_a_moment(|| sys::lease(&file)) {
            Ok(()) => true,
            // Such a file system may report a file as open that no process has open.
            Err(_) if doubtful_name(&file_system).is_some() => false,
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => return Err(open_elsewhere(&path)),
            // The file of another user, or a file system without leases.
            Err(_) => false,
        };
        Ok(Held { file, path, has_lease })
    }
}

/// Repeats what fails because the file is open, or leased, elsewhere: a process that has just opened it will fail on our lock, and a
/// child that was forked a moment ago has our own closed descriptors until its exec. Both are gone in a moment.
fn in_a_moment<T>(act: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let give_up = Instant::now() + OPEN_WAIT;
    loop {
        match act() {
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) && Instant::now() < give_up => sleep(OPEN_PAUSE),
            other => return other,
        }
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
        "a process has just opened {}, perhaps a node that is restarted automatically: stop it first",
        path.display()
    );
    Error::new(Kind::NodeRunning, context)
}

fn databases(place: &Path) -> Result<Vec<PathBuf>> {
    databases_in(&follow_trusted(place, Path::new(chainweb::SQLITE))?)
}

fn databases_in(directory: &Path) -> Result<Vec<PathBuf>> {
    SqliteSource::Foreign(directory.to_owned()).databases()
}

/// Opens a regular file; `None` if there is none. The operator may have put links on the way to it.
fn open(path: &Path, access: OFlags) -> Result<Option<File>> {
    let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match in_a_moment(|| {
        nofollow::require_regular(rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from))
    }) {
        Err(e) if e.kind() == io::ErrorKind::NotFound || nofollow::is_unfit(&e) => Ok(None),
        other => other.map(Some).context(|| format!("cannot open {}", path.display())),
    }
}

fn holder(file: &File, path: &Path, range: Range) -> Result<Option<User>> {
    let probe = Flock { start: range.first.into(), length: range.bytes.into(), ..Flock::from(FlockType::WriteLock) };
    let found = rustix::process::fcntl_getlk(file, &probe);
    let found = found.context(|| format!("cannot find out which process uses {}", path.display()))?;
    Ok(found.map(|lock| User { file: path.to_owned(), pid: lock.pid.filter(|pid| pid.as_raw_nonzero().get() > 0) }))
}

fn is_file_at(file: &File, path: &Path) -> bool {
    let there = fs::metadata(path).map(|meta| FileId::from(&meta));
    there.is_ok_and(|there| file.metadata().is_ok_and(|meta| FileId::from(&meta) == there))
}
