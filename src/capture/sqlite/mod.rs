//! Copies one SQLite database to one finished file.
//!
//! There are three ways. Each attempt at a database chooses one anew, and the record names it. For a database of another
//! process, the choice is made under SQLite's own read lock, so that a process that closes the database cannot remove the `-wal`
//! after we have seen it: SQLite would then create a new one beside the database of a stopped node.
//! - **File copy**: for a database in WAL mode without a `-wal`. Its node has stopped cleanly, and opening the database would
//!   create files beside it. The bytes are copied under the lock; size, modification and change time, inode, and the absence of
//!   a `-wal` must be the same before and after. Otherwise a node has used the database, and the next attempt copies it as a
//!   database in use.
//! - **Raw copy** (`raw_copy`): for every other database in WAL mode, the mode of the node's databases.
//! - **Online backup** (`online`): for all others, those with a rollback journal.
//!
//! Each of the first two may make an increment of the same database in an earlier backup instead of a whole copy (`increment`).
//!
//! If the locks of a running node do not reach us (from another container), SQLite would empty the node's `-shm` when it opens
//! the database here. The locks reach us if we see a lock of the node on the same file system (that of its RocksDB), or see that
//! another process uses the `-shm`. On the same file system, a database that no process has open is copied as that of a stopped
//! node, even if the node is running.
//!
//! Invariants
//! - POSIX locks belong to the process: closing any descriptor of a database drops every lock SQLite holds on it here.
//!   So a database that may be open in this process is only ever opened by SQLite itself.

pub(crate) mod attempt;
pub(crate) mod delta;
pub(crate) mod finished;
pub(crate) mod fold;
pub(crate) mod history;
pub(crate) mod increment;
pub(crate) mod locks;
pub(crate) mod lost_commits;
pub(crate) mod online;
pub(crate) mod pair;
pub(crate) mod raw_copy;
pub(crate) mod snapshot;
pub(crate) mod wal;
pub(crate) mod watch;

use std::cell::Cell;
use std::fs::Metadata;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};

use crate::capture::source::{SqliteSource, doubtful_name};
use crate::capture::sqlite::attempt::{Attempt, Burden, How, Lost, Made};
use crate::capture::sqlite::history::newest_block;
use crate::capture::sqlite::locks::{ReadLock, has_other_user};
use crate::capture::sqlite::snapshot::Snapshot;
use crate::chainweb;
use crate::config::PactMethod;
use crate::control::Control;
use crate::database_files::{companions_of, journal_of, wal_of};
use crate::disk::copy;
use crate::disk::fault_gate;
use crate::disk::increment::Refusal;
use crate::disk::nofollow;
use crate::disk::piece_sums::PieceSums;
use crate::disk::quiet_reader::QuietReader;
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::record::{Method, PactPart};

/// How often one database is tried.
const MAX_ATTEMPTS: u32 = 3;

/// The pause before the next attempt, times the attempts so far.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(500);

/// How long we check again whether a process has a database open, and the pause between two checks.
const SEEN_WAIT: Duration = Duration::from_secs(3);
const SEEN_PAUSE: Duration = Duration::from_millis(50);

/// Why the copy of a database at rest is lost.
const USED_MEANWHILE: &str = "the node was started and used the database while it was copied";

/// Size of a database's header, the first bytes of the file.
const HEADER_BYTES: usize = 100;

/// The bytes of a header which say that the database is written and read in WAL mode.
const WAL_MODES: [u8; 2] = [2, 2];

/// The bytes that a copy of this database needs at most: the size of the database and of its WAL.
pub(crate) fn needed_bytes(database: &Path) -> Result<u64> {
    let (main, wal) = (look(database)?.len(), wal_of(database));
    let wal = nofollow::look(&wal).context(|| format!("cannot look at {}", wal.display()))?;
    Ok(main + wal.map_or(0, |meta| meta.len()))
}

/// The copy of a database.
#[derive(Debug)]
pub(crate) struct Copied {
    pub(crate) part: PactPart,
    /// The sums of the database, if they were asked for.
    pub(crate) sums: Option<PieceSums>,
    /// Of a pair also those of its base.
    pub(crate) base_sums: Option<PieceSums>,
    /// Why it is no increment, although there was an earlier database.
    pub(crate) refusal: Option<Refusal>,
}

/// Copies one database to the new file `to`, synced. The copy has the content of one commit of the source, which was the last
/// one at some moment of the call. Fails with [`Kind::Refused`] if it is not an SQLite database that can be copied.
pub(crate) fn copy(source: &SqliteSource, database: &Path, to: &Path, how: &How<'_>) -> Result<Copied> {
    let name = database.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| refused(database, "its name is not UTF-8; rename it"))?;
    let (Made { method, increment }, refusal) = copy_by_attempts(source, database, to, how)?;
    let (written_bytes, sums, pair) =
        increment.map_or((None, None, None), |made| (Some(made.bytes), Some(made.sums), made.pair));
    let pair = pair.map(|pair| pair::read_again(to, pair, how.copier.control)).transpose()?;
    let newest = newest_block(to).map_err(|e| match e.kind() {
        Kind::Damaged => {
            let why = "cannot be read, nor can its copy: it is damaged or truncated; restore it from a backup";
            Error::new(Kind::Damaged, format!("the node's database {} {why}", database.display())).because(e)
        }
        _ => e,
    })?;
    let sums = match sums {
        None if how.keeps_sums => Some(PieceSums::of_file(to, how.copier.control)?),
        sums => sums,
    };
    let bytes = match (&pair, &sums) {
        (Some(_), Some(sums)) => sums.bytes,
        _ => look(to)?.len(),
    };
    // A base of pairs is read only; a restored database has the permissions of the node's.
    let mode = || look(database).ok().map(|meta| meta.mode() & 0o777);
    let base_sums = pair.as_ref().and_then(|_| how.base?.sums.clone());
    let part = PactPart {
        file: name.to_owned(),
        chain: chainweb::chain_of(database),
        method,
        bytes,
        block_height: newest.as_ref().map(|(height, _)| *height),
        block_hash: newest.and_then(|(_, hash)| hash),
        base: how.base.filter(|_| written_bytes.is_some()).map(|base| base.origin().clone()),
        written_bytes,
        pair,
        mode: if how.method == PactMethod::Delta { mode() } else { None },
        copied_because: refusal.as_ref().map(|refusal| refusal.why.clone()),
    };
    Ok(Copied { part, sums, base_sums, refusal })
}

/// The first attempt that gave a copy, and why it is no increment.
fn copy_by_attempts(
    source: &SqliteSource,
    database: &Path,
    to: &Path,
    how: &How<'_>,
) -> Result<(Made, Option<Refusal>)> {
    let mut burden = Burden::default();
    let mut attempts = 1;
    loop {
        let attempt = match source {
            SqliteSource::Foreign(_) => attempt_foreign(database, to, how, &mut burden),
            SqliteSource::Embedded(_) => attempt_embedded(database, to, how, &mut burden),
        };
        let lost = match attempt {
            Ok(made) => return Ok((made, burden.refusal)),
            Err(Lost::Final(e)) => return Err(e),
            Err(lost) => lost,
        };
        // The files of a copy, and those of a pair.
        delta::remove(to)?;
        if attempts == MAX_ATTEMPTS {
            return Err(lost.into_error(database, attempts));
        }
        log::warn!("copy discarded database={} attempt={attempts} reason={:?}", database.display(), lost.reason());
        pause(&lost, attempts, database, how.copier.control)?;
        attempts += 1;
    }
}

/// Waits until the next attempt may succeed.
fn pause(lost: &Lost, attempts: u32, database: &Path, control: &Control) -> Result<()> {
    let wait = match lost {
        // The next attempt waits for the node's WAL checkpoint.
        Lost::WalGrew | Lost::SourceFull(_) => Duration::ZERO,
        Lost::NotSeen => SEEN_WAIT,
        _ => ATTEMPT_PAUSE * attempts,
    };
    let deadline = Instant::now() + wait;
    loop {
        control.check()?;
        let is_seen = || Ok::<bool, Error>(!wal_of(database).exists() || has_other_user(database)?);
        if Instant::now() >= deadline || (matches!(lost, Lost::NotSeen) && is_seen()?) {
            return Ok(());
        }
        control.step();
        sleep(SEEN_PAUSE);
    }
}

/// An attempt at a database that this process may have open.
fn attempt_embedded(database: &Path, to: &Path, how: &How<'_>, burden: &mut Burden) -> Attempt<Made> {
    require_content(database, &look(database)?)?;
    require_plain_companions(database)?;
    match raw_copy::attempt(database, None, to, how, burden)? {
        Some(made) => Ok(made),
        None => online::copy(database, to, how).map(|()| Made::whole(Method::OnlineBackup)),
    }
}

/// An attempt at a database of another process, or of none.
fn attempt_foreign(database: &Path, to: &Path, how: &How<'_>, burden: &mut Burden) -> Attempt<Made> {
    require_content(database, &look(database)?)?;
    require_plain_companions(database)?;
    let file_system = rustix::fs::statfs(database).context(|| format!("cannot look at {}", database.display()))?;
    if let Some(name) = doubtful_name(&file_system) {
        let why = format!("it lies on {name}, whose files and locks may not be the node's; run beside the real disk");
        return Err(refused(database, &why).into());
    }
    fault_gate::point("looking", database);
    let lock = ReadLock::take(database, how.copier.control)?;
    let shape = Shape::of(&lock, database)?;
    fault_gate::point("looked", database);
    match shape {
        Shape::AtRest => return copy_file(&lock, database, to, how, burden),
        Shape::Journal => {}
        Shape::Wal => {
            let reaches = (how.node_seen_on)()?.is_none_or(|device| device == lock.meta.dev());
            if !reaches && !has_other_user(database)? {
                return Err(Lost::NotSeen);
            }
            if let Some(made) = raw_copy::attempt(database, Some(&lock), to, how, burden)? {
                return Ok(made);
            }
        }
    }
    // A writer with a rollback journal would wait for this lock.
    drop(lock);
    online::copy(database, to, how).map(|()| Made::whole(Method::OnlineBackup))
}

/// The state of a database, which decides how it is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// In WAL mode, and no process has used it since the last one closed it.
    AtRest,
    /// It has a WAL.
    Wal,
    /// It has a rollback journal, or is not a database, which SQLite will report.
    Journal,
}

impl Shape {
    fn of(lock: &ReadLock, database: &Path) -> Result<Shape> {
        let mut header = [0; HEADER_BYTES];
        match lock.file.read_exact_at(&mut header, 0) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(Shape::Journal),
            other => other.context(|| format!("cannot read {}", database.display()))?,
        }
        if wal_of(database).exists() {
            return Ok(Shape::Wal);
        }
        if header[18..20] != WAL_MODES || has_hot_journal(database)? {
            return Ok(Shape::Journal);
        }
        match size_in(&header).filter(|bytes| *bytes > lock.meta.len()) {
            None => Ok(Shape::AtRest),
            Some(bytes) => {
                let context = format!(
                    "the node's database {} is truncated: it has {} of the {bytes} bytes that its header names; restore it from \
                     a backup",
                    database.display(),
                    lock.meta.len()
                );
                Err(Error::new(Kind::Damaged, context))
            }
        }
    }
}

/// Whether there is a rollback journal that SQLite would play back: one whose first byte is not zero.
fn has_hot_journal(database: &Path) -> Result<bool> {
    let journal = journal_of(database);
    let failed = || format!("cannot read {}", journal.display());
    match nofollow::open_of_node(&journal) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        file => {
            let mut first = [0];
            Ok(file.context(failed)?.read_at(&mut first, 0).context(failed)? == 1 && first != [0])
        }
    }
}

/// The size that the header of a database names; `None` if an old SQLite wrote the database, which does not write the size.
fn size_in(header: &[u8; HEADER_BYTES]) -> Option<u64> {
    let number = |at: usize| header[at..at + 4].iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
    let page_bytes = match u16::from_be_bytes([header[16], header[17]]) {
        1 => 65536,
        bytes => u64::from(bytes),
    };
    (number(24) == number(92)).then(|| number(28) * page_bytes)
}

fn require_content(database: &Path, meta: &Metadata) -> Result<()> {
    if meta.len() > 0 {
        return Ok(());
    }
    Err(refused(database, "it is empty; remove it or let the node create it anew"))
}

/// Fails if a file beside the database cannot be one that SQLite made: a FIFO would hang, and a link that leads nowhere would seem
/// to be no WAL at all.
fn require_plain_companions(database: &Path) -> Result<()> {
    for path in companions_of(database) {
        let found = nofollow::look(&path).context(|| format!("cannot look at {}", path.display()))?;
        if found.is_some_and(|meta| !meta.is_file()) {
            let why = format!("{} is not a regular file; stop the node and move it away", path.display());
            return Err(refused(database, &why));
        }
    }
    Ok(())
}

fn refused(database: &Path, why: &str) -> Error {
    Error::new(Kind::Refused, format!("cannot back up {}: {why}", database.display()))
}

/// The metadata of a database, which must not be a link: its `-wal` and `-shm` would lie beside the file that the link names.
fn look(database: &Path) -> Result<Metadata> {
    let meta = database.symlink_metadata().context(|| format!("cannot look at {}", database.display()))?;
    if meta.is_file() { Ok(meta) } else { Err(refused(database, "it is not a regular file")) }
}

/// Copies a database in WAL mode that has no `-wal`. The copy is valid if there is no `-wal` at the end either: the lock makes
/// sure that a process that opens the database meanwhile, and creates one, cannot remove it again. Times alone would be too
/// coarse to see such a process.
fn copy_file(lock: &ReadLock, database: &Path, to: &Path, how: &How<'_>, burden: &mut Burden) -> Attempt<Made> {
    let fingerprint = |m: &Metadata| (m.len(), m.ino(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
    let before = fingerprint(&lock.meta);
    // Checked at every window: if a node has opened the database, the copy is lost and must not slow the node down.
    let used = Cell::new(false);
    let watch = || {
        fault_gate::point("file-window", database);
        used.set(wal_of(database).exists());
        if used.get() { Err(Error::new(Kind::Changed, "stopped because the node needs the database")) } else { Ok(()) }
    };
    // A running node may open the database meanwhile.
    let is_up = (how.node_seen_on)()?.is_some();
    let pages = || {
        let through_cache = QuietReader::through_cache(lock.file.as_fd());
        if is_up { through_cache } else { QuietReader::past_cache(&lock.file) }
    };
    let lost = |e| if used.get() { Lost::Raced(USED_MEANWHILE.to_owned()) } else { e };
    let mut page_size = [0; 2];
    let read = lock.file.read_exact_at(&mut page_size, increment::PAGE_SIZE_AT);
    read.context(|| format!("cannot read {}", database.display()))?;
    let mut snapshot = Snapshot::new(pages(), None, before.0);
    let incremented = increment::attempt((database, page_size), &mut snapshot, to, (how, burden), &watch);
    let copy = || -> Result<Made> {
        if how.method == PactMethod::Clone
            && let Some(cloned) = copy::clone(how.copier, lock.file.as_fd(), to, &watch)?
        {
            return cloned.sync().map(|_| Made::whole(Method::RawClone));
        }
        copy::copy(how.copier, &mut pages(), before.0, to, &watch)?.sync().map(|_| Made::whole(Method::Copied))
    };
    let made = match incremented.map_err(lost)? {
        Some((made, unsynced)) => unsynced.sync().map(|_| made)?,
        None => copy().map_err(Lost::Final).map_err(lost)?,
    };
    let made_bytes = match &made.increment {
        Some(increment) => increment.sums.bytes,
        None => look(to)?.len(),
    };
    let untouched = made_bytes == before.0
        && fingerprint(&look(database)?) == before
        && !wal_of(database).exists()
        && !has_hot_journal(database)?;
    if untouched { Ok(made) } else { Err(Lost::Raced(USED_MEANWHILE.to_owned())) }
}

/// Opens the copy of a database as a node does, with its write lock, closes it and returns its newest block as [`newest_block`].
/// Never for a file of a backup: SQLite writes to it.
pub(crate) fn open_as_node(scratch: &Path) -> Result<Option<(u64, Option<String>)>> {
    let failed = |e: rusqlite::Error| {
        Error::new(Kind::Damaged, format!("SQLite cannot use {} as a node does", scratch.display())).because(e)
    };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = Connection::open_with_flags(scratch, flags).map_err(failed)?;
    connection.execute_batch("PRAGMA journal_mode = WAL; BEGIN IMMEDIATE; ROLLBACK;").map_err(failed)?;
    connection.close().map_err(|(_, e)| failed(e))?;
    newest_block(scratch)
}

/// The version of the SQLite that is linked into this program.
pub(crate) fn library_version() -> String {
    rusqlite::version().to_owned()
}

/// Checks that the header of an SQLite database (sqlite.org/fileformat2.html, section 1.3) fits the size of the file.
pub(crate) fn header_fault(database: &Path) -> Result<Option<&'static str>> {
    let failed = || format!("cannot read {}", database.display());
    let mut file = nofollow::open_regular(database).context(failed)?;
    let mut header = [0; 100];
    match file.read_exact(&mut header) {
        Ok(()) if header.starts_with(b"SQLite format 3\0") => {}
        Err(e) if e.kind() != io::ErrorKind::UnexpectedEof => return Err(Error::io(failed(), e)),
        _ => return Ok(Some("it is not an SQLite database")),
    }
    let page = u64::from(u16::from_be_bytes([header[16], header[17]]));
    let page_bytes = if page == 1 { 65536 } else { page };
    let pages = u64::from(u32::from_be_bytes([header[28], header[29], header[30], header[31]]));
    let bytes = file.seek(SeekFrom::End(0)).context(failed)?;
    Ok((bytes != pages * page_bytes).then_some("its size differs from the size in its header"))
}
