//! The raw copy: a SQLite database in WAL mode, copied as files while a read transaction holds one commit of it.
//!
//! It costs what `cp` costs; SQLite's own online backup costs five times that, and nine times its CPU. Every step
//! counts: leaving one out was seen to corrupt copies (each by a stress test with that step taken out).
//!
//! 1. Open read-only through SQLite, never to run a WAL checkpoint, not even on close.
//! 2. `BEGIN`, one read: from now on a read lock on the `-shm` says which commit we see. No checkpoint moves pages into
//!    the database beyond that commit, and the WAL is not started anew. Where a node is believed up, another process must
//!    hold the `-shm` too: otherwise locks do not reach it (layers of a container), and nothing would hold.
//! 3. M = the frames of the WAL up to its last commit, found by its chain of checksums. Its header is kept.
//! 4. Copy the database through SQLite's own descriptor: closing one of ours would drop SQLite's locks. Pages that a
//!    checkpoint writes meanwhile come from frames up to M, which are applied again later.
//! 5. Copy frames 1 to M (from the first: a checkpointer may skip pages that a later frame has) and read the header
//!    again. Other salts mean that the WAL was started anew: legal only where our lock is READ0, which says that the
//!    database file alone is what we see. Otherwise the copy is discarded.
//! 6. Before releasing: the lock on the database, a read lock that was there all the time, and the inode must be there.
//! 7. Release. Then, in the copy only: apply the WAL; it must be exactly M frames, otherwise the copy is discarded.
//!
//! While the transaction is open the node's WAL grows. By more than [`MAX_WAL_BYTES`], the copy is given up and tried again.
//!
//! Invariants: no descriptor of the source's database or `-shm` is opened or closed by us while SQLite has it; the `-wal`
//! carries no locks. Nothing of the source is written, SQLite's own `-shm` aside.

use std::cell::{Cell, RefCell};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use rustix::fs::OFlags;
use rustix::process::{Flock, FlockType};

use crate::config::PactMethod;
use crate::control::Control;
use crate::copy;
use crate::disk::{self, Owner};
use crate::error::{Error, Failure, IoContext, Kind, Result};
use crate::gate;
use crate::nofollow;
use crate::quiet::QuietReader;
use crate::record::Method;
use crate::source::beside;
use crate::sqlite_wal::{HEADER_BYTES, Header};
use crate::sys;

/// How large the node's WAL may grow while we hold it.
const MAX_WAL_BYTES: u64 = 512 * 1024 * 1024;

/// The same for a test (`raw-small-wal`).
const SMALL_WAL_BYTES: u64 = 1024 * 1024;

/// How often one database is tried.
const MAX_ATTEMPTS: u32 = 3;

/// The pause before the next attempt, times the attempts so far.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(500);

/// How long we wait for a lock that somebody else holds, and how long one call does, so that a job can be cancelled.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
const BUSY_SLICE: Duration = Duration::from_millis(200);

/// How often it is looked whether SQLite shall be interrupted, and from which size of a WAL on that is worth a thread.
const INTERRUPT_INTERVAL: Duration = Duration::from_millis(200);
const INTERRUPT_FROM_BYTES: u64 = 64 * 1024 * 1024;

/// SQLite's extended code for a hot journal that a read-only connection cannot play back.
const SQLITE_READONLY_ROLLBACK: i32 = 8 | 3 << 8;

/// Byte of the `-shm` that every user of it holds (os_unix.c, `UNIX_SHM_DMS`).
const SHM_IN_USE: u64 = 128;

/// Byte of the `-shm` that stands for `WAL_READ_LOCK(0)`; those of the others follow (`UNIX_SHM_BASE` + 3).
const SHM_READ0: u64 = 123;

/// How many read locks there are.
const SHM_READ_LOCKS: u64 = 5;

/// First byte of the database's shared lock (`SHARED_FIRST`).
const DATABASE_SHARED: u64 = 0x4000_0002;

/// Where the WAL-index header, at the start of the `-shm` and in the machine's byte order, says the page size (`szPage`, 2
/// bytes, 1 for 64 KiB) and how many frames the WAL has (`mxFrame`, 4 bytes).
const SHM_PAGE_SIZE: usize = 14;
const SHM_MAX_FRAME: usize = 16;

/// Size of a frame's header in the WAL.
const FRAME_HEADER_BYTES: u64 = 24;

type Attempt<T> = std::result::Result<T, Failure>;

/// What decides how databases are copied, the same for all of a backup.
#[derive(Debug, Clone, Copy)]
pub(crate) struct How {
    /// A node is believed up: its locks must reach us.
    pub(crate) node_is_up: bool,
    pub(crate) method: PactMethod,
}

/// Copies a database in WAL mode to the new file `to`, synced. `Ok(None)`, with nothing left behind, where it is not in
/// WAL mode.
pub(crate) fn copy(
    database: &Path,
    to: &Path,
    how: How,
    owner: Option<Owner>,
    control: &Control,
) -> Result<Option<Method>> {
    let mut attempt = 1;
    loop {
        let why = match try_copy(database, to, how, owner, control) {
            Ok(copied) => return Ok(copied),
            Err(Failure::Final(e)) => return Err(e),
            Err(Failure::Again(why)) => why,
        };
        disk::remove_file(to)?;
        disk::remove_file(&beside(to, "-wal"))?;
        log::warn!("raw copy discarded database={} attempt={attempt} reason={why:?}", database.display());
        if attempt == MAX_ATTEMPTS {
            let context = format!("cannot copy {}: {why}, {attempt} times", database.display());
            return Err(Error::new(Kind::Changed, context));
        }
        control.check()?;
        thread::sleep(ATTEMPT_PAUSE * attempt);
        attempt += 1;
    }
}

fn try_copy(database: &Path, to: &Path, how: How, owner: Option<Owner>, control: &Control) -> Attempt<Option<Method>> {
    let failed = |e| unreadable(database, e);
    let connection = open(database).map_err(failed)?;
    begin(&connection, database, control)?;
    let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0)).map_err(failed)?;
    if mode != "wal" {
        return Ok(None);
    }
    let held = Held::find(&connection, database)?;
    if how.node_is_up {
        held.require_other_user(database)?;
    }
    gate::point("raw-held", database);
    let wal_path = beside(database, "-wal");
    let mut wal = nofollow::open_of_node(&wal_path).context(|| format!("cannot open {}", wal_path.display()))?;
    let header = read_header(&wal, &wal_path)?;
    let frames = header.as_ref().map_or(Ok(0), |h| committed(h, &mut wal, &wal_path))?;
    let bound = if gate::simpler("raw-small-wal", database) { SMALL_WAL_BYTES } else { MAX_WAL_BYTES };

    let mut pages = QuietReader::through_cache(held.database);
    let held_bytes = held.wal_bytes();
    let watch_at = |point| {
        gate::point(point, database);
        held.note_read_locks()?;
        // What was there before is not our doing.
        let grown_bytes = held.wal_bytes().saturating_sub(held_bytes);
        if grown_bytes <= bound { Ok(()) } else { Err(Error::new(Kind::Changed, WAL_TOO_LARGE)) }
    };
    let point = Cell::new("raw-database-window");
    let watch = || watch_at(point.replace("raw-database-next-window"));
    let bounded = |e: Error| match e.kind() {
        Kind::Changed => Failure::Again(WAL_TOO_LARGE.to_owned()),
        _ => Failure::Final(e),
    };
    let cloned = match how.method {
        PactMethod::Clone => copy::clone(held.database, to, owner, control, &watch).map_err(bounded)?,
        PactMethod::Copy => None,
    };
    let (method, unsynced) = if let Some(cloned) = cloned {
        (Method::RawClone, cloned)
    } else {
        // What a WAL checkpoint appends meanwhile is in the frames that we take too.
        let bytes = rustix::fs::fstat(held.database).map(|s| s.st_size.cast_unsigned());
        let bytes = bytes.context(|| format!("cannot look at {}", database.display()))?;
        let copied = copy::copy(&mut pages, bytes, to, owner, control, &watch).map_err(bounded)?;
        (Method::RawCopy, copied)
    };
    gate::point("raw-database-copied", database);

    let (mut applied, mut whole) = (0, true);
    if let Some(header) = header.as_ref().filter(|_| frames > 0) {
        let copy = beside(to, "-wal");
        wal.seek(SeekFrom::Start(HEADER_BYTES as u64)).context(|| format!("cannot read {}", wal_path.display()))?;
        let bytes = header.extent_bytes(frames);
        let mut extent = io::Cursor::new(header.bytes()).chain(&mut wal);
        let watch = || watch_at("raw-wal-window");
        // Where we read the database only, a WAL checkpoint may cut the WAL off.
        // Never synced: it is applied to the database, which is.
        let copied = copy::copy(&mut extent, bytes, &copy, owner, control, &watch).map_err(bounded)?;
        whole = copied.bytes == bytes;
        applied = frames;
    }
    gate::point("raw-wal-copied", database);
    let now = read_header(&wal, &wal_path)?;
    // Asked after the header was read: a lock that is there now was there then.
    if let Some(lost) = held.lost(database)?.filter(|_| !gate::simpler("raw-locks", database)) {
        log::error!("lock lost database={} lock={lost:?}", database.display());
        return Err(Failure::Again(format!("{lost} was lost: somebody closed the file in this process")));
    }
    let same = match (&header, &now) {
        (Some(before), Some(now)) => whole && before.same_salts(now),
        (None, None) => true,
        _ => false,
    };
    if !same && !gate::simpler("raw-salts", database) {
        if !held.reads_database_only()? {
            return Err(Failure::Again("the WAL was started anew although we read it".to_owned()));
        }
        disk::remove_file(&beside(to, "-wal"))?;
        applied = 0;
    }
    connection.execute_batch("ROLLBACK").map_err(failed)?;
    drop(held);
    connection.close().map_err(|(_, e)| failed(e))?;
    fold(to, applied, control)?;
    unsynced.sync()?;
    Ok(Some(method))
}

/// The bound is [`MAX_WAL_BYTES`].
const WAL_TOO_LARGE: &str = "the node's WAL grew over the bound of 512 MiB while it was held (a higher limit of bytes per \
                             second, or a quieter hour, helps)";

/// What SQLite's error means to the operator.
fn unreadable(database: &Path, e: rusqlite::Error) -> Error {
    let code = e.sqlite_error().map(|e| (e.code, e.extended_code));
    let (kind, why) = match code {
        Some((_, SQLITE_READONLY_ROLLBACK)) => {
            (Kind::Refused, ": it has a hot journal: start the node once, so that it repairs the database")
        }
        Some((ErrorCode::DatabaseBusy, _)) => {
            (Kind::Refused, ": another program keeps it locked; stop that program or try again")
        }
        Some((ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied, _)) => {
            (Kind::Refused, ": run as the node's user or as root")
        }
        _ => (Kind::Database, ""),
    };
    Error::new(kind, format!("cannot read {}{why}", database.display())).because(e)
}

/// Opens a source: for reading only, and never to run a WAL checkpoint, not even on close.
pub(crate) fn open(database: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(database, flags)?;
    connection.busy_timeout(BUSY_SLICE)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.execute_batch("PRAGMA query_only=1; PRAGMA mmap_size=0")?;
    Ok(connection)
}

/// Begins the read transaction, which gets its snapshot with the first read; waits for who locks the database, for a time.
pub(crate) fn begin(connection: &Connection, database: &Path, control: &Control) -> Result<()> {
    connection.execute_batch("BEGIN").map_err(|e| unreadable(database, e))?;
    let deadline = Instant::now() + BUSY_TIMEOUT;
    loop {
        match connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())) {
            Err(e) if e.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && Instant::now() < deadline => {
                control.check()?;
            }
            other => return other.map_err(|e| unreadable(database, e)),
        }
    }
}

fn read_header(wal: &File, path: &Path) -> Result<Option<Header>> {
    let mut bytes = [0; HEADER_BYTES];
    match wal.read_exact_at(&mut bytes, 0) {
        Ok(()) => Ok(Header::parse(&bytes)),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(e) => Err(Error::io(format!("cannot read {}", path.display()), e)),
    }
}

fn committed(header: &Header, wal: &mut File, path: &Path) -> Result<u64> {
    let failed = || format!("cannot read {}", path.display());
    wal.seek(SeekFrom::Start(HEADER_BYTES as u64)).context(failed)?;
    header.committed_frames(io::BufReader::with_capacity(256 * 1024, wal)).context(failed)
}

/// Applies the copied WAL to the copied database: only in the copy, and exactly the frames that were copied. Not synced.
fn fold(copy: &Path, frames: u64, control: &Control) -> Attempt<()> {
    let wal = beside(copy, "-wal");
    if frames > 0 {
        let failed = |e: rusqlite::Error| {
            let kind = match e.sqlite_error_code() {
                Some(ErrorCode::DiskFull) => Kind::NoSpace,
                Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen | ErrorCode::ReadOnly) => Kind::Io,
                _ => Kind::Damaged,
            };
            Error::new(kind, format!("cannot apply {}", wal.display())).because(e)
        };
        disk::written_by_library(copy)?;
        let connection = Connection::open(copy).map_err(failed)?;
        // One that is given up shall not be applied after all when it is closed.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(failed)?;
        // Exclusive before the first access: then SQLite needs no -shm. Synced once, below.
        connection.execute_batch("PRAGMA locking_mode=EXCLUSIVE; PRAGMA synchronous=OFF").map_err(failed)?;
        let counts =
            |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?));
        let apply = || connection.query_row("PRAGMA wal_checkpoint(FULL)", [], counts);
        let large = fs::metadata(&wal).is_ok_and(|meta| meta.len() >= INTERRUPT_FROM_BYTES);
        let result = if large { interruptibly(&connection, control, apply) } else { apply() };
        control.check()?;
        let result = result.map_err(failed)?;
        let expected = i64::try_from(frames).unwrap_or(i64::MAX);
        if result != (0, expected, expected) && !gate::simpler("raw-fold", copy) {
            // A writer that is killed between its commit frame and the WAL index leaves a commit that nobody knows of:
            // the next writer overwrites it, perhaps after we counted it.
            return Err(Failure::Again(format!("the copied WAL gave {result:?} instead of {expected} frames")));
        }
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).map_err(failed)?;
        connection.close().map_err(|(_, e)| failed(e))?;
    }
    // It is empty now, and SQLite leaves it there.
    match fs::metadata(&wal) {
        Ok(meta) if meta.len() > 0 => {
            Err(Error::new(Kind::Damaged, format!("{} is not empty after it was applied", wal.display())).into())
        }
        _ => Ok(disk::remove_file(&wal)?),
    }
}

/// Runs `work`, and interrupts SQLite when the job is stopped meanwhile.
fn interruptibly<T>(connection: &Connection, control: &Control, work: impl FnOnce() -> T) -> T {
    let handle = connection.get_interrupt_handle();
    let (ended, end) = mpsc::channel::<()>();
    let watch = move || {
        while end.recv_timeout(INTERRUPT_INTERVAL) == Err(RecvTimeoutError::Timeout) {
            if control.check().is_err() {
                handle.interrupt();
            }
        }
    };
    thread::scope(|scope| {
        // Where no thread can be had, it takes as long as it takes.
        let _ = thread::Builder::new().name("interrupt".to_owned()).spawn_scoped(scope, watch);
        let result = work();
        drop(ended);
        result
    })
}

/// The descriptors and locks of the read transaction.
struct Held<'a> {
    connection: &'a Connection,
    /// Device and inode of the database and of its `-shm`.
    identities: [(u64, u64); 2],
    database: BorrowedFd<'a>,
    shm: BorrowedFd<'a>,
    /// The read locks on the `-shm`, as bytes, that were there whenever we looked: ours, and such as a node that embeds us
    /// has all the time.
    read_locks: RefCell<Vec<u64>>,
}

impl<'a> Held<'a> {
    fn find(connection: &'a Connection, database: &Path) -> Result<Held<'a>> {
        let shm_path = beside(database, "-shm");
        let identities = [identity(database)?, identity(&shm_path)?];
        let one = |identity, read_only: bool, path: &Path| -> Result<BorrowedFd<'a>> {
            let failed = || format!("cannot find the descriptor of {} that SQLite uses", path.display());
            let all = sys::descriptors_of(identity, connection).context(failed)?;
            // A database has the node's descriptors too where we are embedded; ours is the read-only one.
            let fits = |fd: &BorrowedFd<'_>| {
                let flags = rustix::fs::fcntl_getfl(fd).unwrap_or(OFlags::empty());
                !read_only || flags & OFlags::RWMODE == OFlags::RDONLY
            };
            all.into_iter().find(fits).ok_or_else(|| Error::new(Kind::Database, failed()))
        };
        let held = Held {
            connection,
            identities,
            database: one(identities[0], true, database)?,
            shm: one(identities[1], false, &shm_path)?,
            read_locks: RefCell::new((SHM_READ0..SHM_READ0 + SHM_READ_LOCKS).collect()),
        };
        match held.lost(database)? {
            None => Ok(held),
            Some(lock) => {
                Err(Error::new(Kind::Database, format!("SQLite does not hold {lock} of {}", database.display())))
            }
        }
    }

    /// Whether a process other than ours has the `-shm` in use.
    fn require_other_user(&self, database: &Path) -> Result<()> {
        let probe = Flock { start: SHM_IN_USE, length: 1, ..Flock::from(FlockType::WriteLock) };
        let failed = || format!("cannot ask who uses {}", database.display());
        if rustix::process::fcntl_getlk(self.shm, &probe).context(failed)?.is_some() {
            return Ok(());
        }
        let context = format!(
            "the node runs, but its locks on {} do not reach this process (another container or mount?): run in the \
             node's container, or stop the node",
            database.display()
        );
        Err(Error::new(Kind::Refused, context))
    }

    /// Bytes of live frames in the node's WAL. Its file's length says nothing: it stays at its largest.
    fn wal_bytes(&self) -> u64 {
        let mut header = [0; SHM_MAX_FRAME + 4];
        if rustix::io::pread(self.shm, &mut header, 0) != Ok(header.len()) {
            return 0;
        }
        let page = u16::from_ne_bytes([header[SHM_PAGE_SIZE], header[SHM_PAGE_SIZE + 1]]);
        let frames = u32::from_ne_bytes([header[16], header[17], header[18], header[19]]);
        u64::from(frames) * (FRAME_HEADER_BYTES + if page == 1 { 65536 } else { u64::from(page) })
    }

    /// Whether what we see is the database file alone: our only read lock is READ0, and the `-shm` is in use by us (SQLite
    /// also takes READ0 while it reads through a WAL index of its own, because the `-shm` of a crashed node is read-only).
    fn reads_database_only(&self) -> Result<bool> {
        self.note_read_locks()?;
        Ok(*self.read_locks.borrow() == [SHM_READ0] && covers(&locks_of(&[self.shm])?, SHM_IN_USE))
    }

    /// Forgets the read locks that are no longer there. Where the node embeds us, other connections of the process come
    /// and go; ours stays. The process cannot get a lost one back: SQLite believes that it has it.
    fn note_read_locks(&self) -> Result<()> {
        let locks = locks_of(&[self.shm])?;
        self.read_locks.borrow_mut().retain(|byte| covers(&locks, *byte));
        Ok(())
    }

    /// Names the lock, or the name of the file, that is no longer there.
    fn lost(&self, database: &Path) -> Result<Option<&'static str>> {
        // In an embedding node the lock may have been taken through any connection of the process.
        let all = sys::descriptors_of(self.identities[0], self.connection);
        let locks = locks_of(&all.context(|| format!("cannot find the descriptors of {}", database.display()))?)?;
        if !covers(&locks, DATABASE_SHARED) {
            return Ok(Some("the lock on the database"));
        }
        self.note_read_locks()?;
        if self.read_locks.borrow().is_empty() {
            return Ok(Some("the read lock on the -shm"));
        }
        let is_still = |path: &Path, it| identity(path).is_ok_and(|now| now == it);
        let same = is_still(database, self.identities[0]) && is_still(&beside(database, "-shm"), self.identities[1]);
        Ok((!same).then_some("the name of the file"))
    }
}

fn identity(path: &Path) -> Result<(u64, u64)> {
    let meta = fs::symlink_metadata(path).context(|| format!("cannot look at {}", path.display()))?;
    Ok((meta.dev(), meta.ino()))
}

fn covers(locks: &[(u64, u64)], byte: u64) -> bool {
    locks.iter().any(|(first, last)| (*first..=*last).contains(&byte))
}

/// The ranges of POSIX read locks that this process has through these descriptors: first and last byte of each.
/// Format of `/proc/self/fdinfo`: proc(5), `lock: 1: POSIX ADVISORY READ 4711 00:2f:4711 124 124`.
#[expect(clippy::disallowed_methods, reason = "what the kernel says of our descriptors")]
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
