//! The raw copy: copies the files of an SQLite database in WAL mode while a read transaction holds one commit of it.
//!
//! It costs as much as `cp`; SQLite's own online backup takes five times as long, and nine times the CPU time. Every step is
//! necessary: a stress test without it has produced corrupt copies.
//!
//! 1. Open read-only through SQLite, configured never to run a WAL checkpoint, not even on close. (The caller has made sure
//!    that there is a `-wal`, and that the locks of a running node reach us: SQLite empties a `-shm` that it takes for unused.)
//! 2. `BEGIN`, one read: from now on a read lock on the `-shm` determines which commit we see. No WAL checkpoint copies pages
//!    of later commits to the database, and the WAL is not restarted.
//! 3. With the lock READ0 we see the database file alone, and no WAL checkpoint writes to it: the WAL is not read at all.
//!    With any other lock, M is the number of frames in the WAL index (`mxFrame`), which belongs to our commit or a later one.
//!    The chain of checksums must reach frame M: the node never reads a frame again that a WAL checkpoint has copied, so it
//!    does not notice a damaged one, and the frames after it would be missing in the copy. (If SQLite cannot use the `-shm` of
//!    a crashed node, M is the last commit of the chain, as for SQLite itself.)
//! 4. Copy the database through SQLite's own descriptor: closing one of ours would drop SQLite's locks. If a WAL checkpoint
//!    writes pages meanwhile, they come from frames up to M, which are applied again later.
//! 5. Copy frames 1 to M (from the first: a WAL checkpoint may skip pages that a later frame has) and read the header of the
//!    WAL again. Other salts mean that the WAL was restarted: the copy is then valid only if our lock is READ0 by now. (In a
//!    node that embeds us, its own locks may hide for a while that ours is READ0.)
//! 6. Before releasing: SQLite must still hold the lock on the database and a read lock that it has held all the time, and the
//!    path must lead to the same inode.
//! 7. Release. Then, in the copy only, fold: SQLite must apply exactly M frames, otherwise the copy is discarded.
//!
//! If the same database is in an earlier backup, the steps 4 and 5 may make an increment of it instead (`increment`), from the
//! database with the frames up to M laid over it (`snapshot`). Then nothing is folded, and a WAL that was restarted always means
//! another attempt.
//!
//! While the transaction is open, the node's WAL grows. If it has grown too much over all attempts, or the node's file
//! system has too little free space (`watch`), the attempt is given up; the next one first waits for a WAL checkpoint.
//!
//! Invariants: we open and close no descriptor of the source's database or `-shm` while SQLite has them open; the `-wal` has no
//! locks. Nothing is written to the source, except by SQLite to its `-shm`.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::capture::sqlite::attempt::{Attempt, Burden, How, Lost, Made};
use crate::capture::sqlite::delta;
use crate::capture::sqlite::fold::fold;
use crate::capture::sqlite::increment;
use crate::capture::sqlite::locks::{BUSY_TIMEOUT, Held, LOCKED, Missing, ReadLock};
use crate::capture::sqlite::snapshot::{Frames, Snapshot};
use crate::capture::sqlite::wal::{HEADER_BYTES, Header, Place, Scan};
use crate::capture::sqlite::watch::Watch;
use crate::config::PactMethod;
use crate::control::Control;
use crate::database_files::{beside, wal_of};
use crate::disk;
use crate::disk::copy;
use crate::disk::fault_gate;
use crate::disk::increment::Refusal;
use crate::disk::nofollow;
use crate::disk::quiet_reader::{QuietReader, WINDOW_BYTES};
use crate::disk::unsynced::Unsynced;
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::record::Method;

/// How long an attempt waits for the node's WAL checkpoint if the one before was given up, the same for a test, and the pause
/// between two checks.
const CHECKPOINT_WAIT: Duration = Duration::from_secs(30);
const SMALL_CHECKPOINT_WAIT: Duration = Duration::from_secs(1);
const CHECKPOINT_PAUSE: Duration = Duration::from_millis(50);

/// How long one call of SQLite waits for a lock, so that a job can be cancelled; see [`BUSY_TIMEOUT`].
const BUSY_SLICE: Duration = Duration::from_millis(200);

/// SQLite's extended code for a hot journal that a read-only connection cannot play back.
const SQLITE_READONLY_ROLLBACK: i32 = 8 | 3 << 8;

/// The frames that must be applied to a copy of the database file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Applies {
    /// None: the file alone is the snapshot.
    None,
    /// This number of frames, from the first one on.
    Frames(u64),
}

/// Tries once to copy a database in WAL mode to the new file `to`, synced. `Ok(None)`, and no file is made, if it is not in WAL
/// mode. For a database of another process the caller holds `lock`, so that its `-wal` exists until the end.
pub(crate) fn attempt(
    database: &Path,
    lock: Option<&ReadLock>,
    to: &Path,
    how: &How<'_>,
    burden: &mut Burden,
) -> Attempt<Option<Made>> {
    let connection = open(database).map_err(|e| unreadable(database, e))?;
    // Before the first read: if the database was replaced since the caller checked it, SQLite might create a -wal beside it.
    if lock.is_some_and(|lock| !lock.is_at(database)) {
        return Err(lost_hold(database, if is_gone(database) { Missing::Name } else { Missing::Replaced }));
    }
    if std::mem::take(&mut burden.is_too_much) {
        await_checkpoint(&connection, database, how.copier.control)?;
    }
    begin(&connection, database, how.copier.control)?;
    if journal_mode(&connection, database)? != "wal" {
        return Ok(None);
    }
    let held = Held::find(&connection, database);
    let held = held.map_err(|e| if is_gone(database) { removed(database).because(e) } else { e })?;
    fault_gate::point("raw-held", database);
    let copied = copy_held(&held, database, to, how, burden);
    burden.is_too_much = matches!(copied, Err(Lost::WalGrew | Lost::SourceFull(_)));
    let (made, unsynced, applies) = copied?;
    connection.execute_batch("ROLLBACK").map_err(|e| unreadable(database, e))?;
    drop(held);
    connection.close().map_err(|(_, e)| unreadable(database, e))?;
    let frames = if let Applies::Frames(frames) = applies { frames } else { 0 };
    match made.increment {
        None => fold(database, to, frames, how.copier.control)?,
        Some(_) if compares(database) => fold(database, &compared(to), frames, how.copier.control)?,
        Some(_) => {}
    }
    unsynced.sync()?;
    Ok(Some(made))
}

/// Whether a test compares each increment with a raw copy that is made in the same read transaction, and the name of that copy.
fn compares(database: &Path) -> bool {
    fault_gate::simpler("raw-compared", database)
}

fn compared(to: &Path) -> PathBuf {
    beside(to, ".compared")
}

/// Copies the database and, beside it, the frames that must be applied to it: together they are what the read transaction sees.
fn copy_held(
    held: &Held<'_>,
    database: &Path,
    to: &Path,
    how: &How<'_>,
    burden: &mut Burden,
) -> Attempt<(Made, Unsynced, Applies)> {
    let watch = Watch::begin(held, database, how.copier.control, burden)?;
    let wanted = if increment::base_of(how, burden).is_some() { Wanted::Places } else { Wanted::Number };
    let extent = watch.judge(Extent::find(held, database, how.copier.control, &watch, wanted))?;
    let incremented = watch.judge(make_increment(held, (database, to), &extent, (how, &mut *burden), &watch))?;
    let is_increment = incremented.is_some();
    let mut whole = true;
    let mut copy_whole = |to: &Path| -> Attempt<(Made, Unsynced)> {
        let made = watch.judge(copy_database(held, to, how, &watch))?;
        fault_gate::point("raw-database-copied", database);
        if let Some(extent) = &extent {
            whole = watch.judge(extent.copy(&wal_of(to), how, &watch))?;
        }
        Ok(made)
    };
    let (made, unsynced) = match incremented {
        None => copy_whole(to)?,
        Some(made) => {
            if compares(database) {
                // An attempt that was discarded may have made one.
                delta::remove(&compared(to))?;
                let _ = copy_whole(&compared(to))?;
            }
            made
        }
    };
    fault_gate::point("raw-wal-copied", database);
    match settle(held, database, extent.as_ref(), whole)? {
        Applies::None if extent.is_some() && is_increment => {
            let why = "its WAL was restarted".to_owned();
            increment::refuse(database, burden, Refusal::new(why.clone()));
            Err(Lost::Raced(why))
        }
        Applies::None if extent.is_some() => {
            disk::remove_file(&wal_of(to))?;
            Ok((made, unsynced, Applies::None))
        }
        applies => Ok((made, unsynced, applies)),
    }
}

/// Makes sure that the read transaction has held all the time what was copied, and returns the frames that belong to it. `whole` says
/// whether the WAL had all frames.
fn settle(held: &Held<'_>, database: &Path, extent: Option<&Extent>, whole: bool) -> Attempt<Applies> {
    let now = extent.map_or(Ok(None), |extent| read_header(&extent.wal, &extent.path))?;
    // Checked after the header was read: a lock that is held now was held then.
    if let Some(missing) = held.missing(database)?.filter(|_| !fault_gate::simpler("raw-locks", database)) {
        return Err(lost_hold(database, missing));
    }
    let reads_database_only = held.reads_database_only()?;
    let Some(extent) = extent else {
        // With a private WAL index SQLite always has READ0.
        if reads_database_only || !held.shares_index()? {
            return Ok(Applies::None);
        }
        return Err(Lost::Raced("it has a WAL now".to_owned()));
    };
    let same = whole && now.is_some_and(|now| now.salts() == extent.header.salts());
    if same || fault_gate::simpler("raw-salts", database) {
        return Ok(Applies::Frames(extent.frames));
    }
    if !reads_database_only {
        return Err(Lost::Raced("the WAL was restarted although a read transaction held it".to_owned()));
    }
    Ok(Applies::None)
}

fn bytes_of(held: &Held<'_>, to: &Path) -> Result<u64> {
    let bytes = rustix::fs::fstat(held.database).map(|s| s.st_size.cast_unsigned());
    bytes.context(|| format!("cannot look at the source of {}", to.display()))
}

fn copy_database(held: &Held<'_>, to: &Path, how: &How<'_>, watch: &Watch<'_>) -> Attempt<(Made, Unsynced)> {
    let point = Cell::new("raw-database-window");
    let look = || watch.look(point.replace("raw-database-next-window"));
    if how.method == PactMethod::Clone
        && let Some(cloned) = copy::clone(how.copier, held.database, to, &look)?
    {
        return Ok((Made::whole(Method::RawClone), cloned));
    }
    // Pages that a WAL checkpoint appends meanwhile are in the copied frames, too.
    let mut pages = QuietReader::through_cache(held.database);
    let copied = copy::copy(how.copier, &mut pages, bytes_of(held, to)?, to, &look)?;
    Ok((Made::whole(Method::RawCopy), copied))
}

/// Makes an increment; `None` if the database must be copied as a whole.
fn make_increment(
    held: &Held<'_>,
    (database, to): (&Path, &Path),
    extent: &Option<Extent>,
    (how, burden): (&How<'_>, &mut Burden),
    watch: &Watch<'_>,
) -> Attempt<Option<(Made, Unsynced)>> {
    if increment::base_of(how, burden).is_none() {
        return Ok(None);
    }
    let pages = QuietReader::through_cache(held.database);
    let mut snapshot = match extent {
        None => Snapshot::new(pages, None, bytes_of(held, to)?),
        Some(_) if fault_gate::simpler("raw-without-frames", database) => {
            Snapshot::new(pages, None, bytes_of(held, to)?)
        }
        Some(Extent { wal, header, places: Some((places, pages_count)), .. }) => {
            let bytes = u64::from(*pages_count) * header.page_bytes() as u64;
            Snapshot::new(pages, Some(Frames { wal, header, places }), bytes)
        }
        Some(_) => {
            let why = "its WAL has too many frames".to_owned();
            increment::refuse(database, burden, Refusal::new(why));
            return Ok(None);
        }
    };
    let mut page_size = [0; 2];
    let read = rustix::io::pread(held.database, &mut page_size, increment::PAGE_SIZE_AT);
    read.context(|| format!("cannot read {}", database.display()))?;
    let point = Cell::new("raw-database-window");
    let look = || watch.look(point.replace("raw-database-next-window"));
    increment::attempt((database, page_size), &mut snapshot, to, (how, burden), &look)
}

/// What a scan of the WAL finds out about the frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Number,
    /// Also the newest one of each page.
    Places,
}

/// The part of the WAL that belongs to the commit that we see.
struct Extent {
    wal: File,
    path: PathBuf,
    header: Header,
    frames: u64,
    /// The newest frame of each page, and the number of pages of the database, if they are wanted and not too many.
    places: Option<(Vec<Place>, u32)>,
}

impl Extent {
    /// Finds it; `None` if we see the database file alone.
    fn find(
        held: &Held<'_>,
        database: &Path,
        control: &Control,
        watch: &Watch<'_>,
        wanted: Wanted,
    ) -> Attempt<Option<Extent>> {
        if held.reads_database_only()? {
            return Ok(None);
        }
        let shared = held.shares_index()?;
        let index = if shared { held.index() } else { None };
        if shared && index.is_none() {
            return Err(Lost::Raced("its WAL index cannot be read".to_owned()));
        }
        let path = wal_of(database);
        let wal = nofollow::open_of_node(&path).context(|| format!("cannot open {}", path.display()))?;
        let header = read_header(&wal, &path)?;
        let begin_scan = |header: &Header, frames| {
            let scan = header.scan(frames);
            if wanted == Wanted::Places { scan.with_places() } else { scan }
        };
        let Some(index) = index else {
            let Some(header) = header else { return Ok(None) };
            let scanned = scan(&wal, &path, begin_scan(&header, u64::MAX), (control, watch))?;
            let frames = scanned.committed();
            let places = scanned.into_places();
            return Ok((frames > 0).then_some(Extent { wal, path, header, frames, places }));
        };
        if index.frames == 0 {
            return Ok(None);
        }
        let mut rotten_frame = None;
        if let Some(header) = header.filter(|header| header.salts() == index.salts) {
            let scanned = scan(&wal, &path, begin_scan(&header, index.frames), (control, watch))?;
            if scanned.committed() == index.frames {
                let places = scanned.into_places();
                return Ok(Some(Extent { wal, path, header, frames: index.frames, places }));
            }
            rotten_frame = Some(index.frames.min(scanned.whole() + 1));
        }
        // The WAL may have been restarted meanwhile: other read locks of this process hid that ours is READ0.
        if held.reads_database_only()? {
            Ok(None)
        } else {
            Err(Lost::Damaged(rotten(&path, rotten_frame, index.frames)))
        }
    }

    /// Copies the header and the frames; returns whether all frames were there. The copy is not synced: it is applied to the
    /// database, which is synced.
    fn copy(&self, to: &Path, how: &How<'_>, watch: &Watch<'_>) -> Attempt<bool> {
        let bytes = self.header.extent_bytes(self.frames);
        let frames = QuietReader::through_cache(self.wal.as_fd()).starting_at(HEADER_BYTES as u64);
        let mut extent = io::Cursor::new(self.header.bytes()).chain(frames);
        let look = || watch.look("raw-wal-window");
        let copied = copy::copy(how.copier, &mut extent, bytes, to, &look)?;
        Ok(copied.bytes == bytes)
    }
}

/// Follows the frames of a WAL until no more of them count; within the limit of bytes per second, as for every copy.
fn scan(wal: &File, path: &Path, mut scan: Scan, (control, watch): (&Control, &Watch<'_>)) -> Result<Scan> {
    let mut frames = QuietReader::through_cache(wal.as_fd()).starting_at(HEADER_BYTES as u64);
    let mut window = vec![0; WINDOW_BYTES];
    while !scan.has_ended() {
        control.check()?;
        watch.look("raw-scan-window")?;
        let bytes = match frames.read(&mut window) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            other => other.context(|| format!("cannot read {}", path.display()))?,
        };
        if bytes == 0 {
            break;
        }
        scan.take(&window[..bytes]);
        control.step();
        control.throttle(bytes as u64)?;
    }
    Ok(scan)
}

/// The message about a WAL whose frame or header is damaged.
fn rotten(wal: &Path, frame: Option<u64>, frames: u64) -> String {
    let at = frame.map_or_else(|| "its header".to_owned(), |frame| format!("frame {frame} of {frames}"));
    format!(
        "{} is damaged in {at}: the running node does not notice this, but would lose all later commits if it were killed. \
         Stop the node cleanly, or run PRAGMA wal_checkpoint(TRUNCATE) beside it as its user, then PRAGMA integrity_check, \
         and make the backup again",
        wal.display()
    )
}

fn lost_hold(database: &Path, missing: Missing) -> Lost {
    let lock = match missing {
        Missing::Name => return removed(database).into(),
        Missing::Replaced => {
            return Lost::Raced("another file has its name now: was it renamed or replaced?".to_owned());
        }
        Missing::DatabaseLock => "the lock on the database",
        Missing::ReadLock => "the read lock on the -shm",
    };
    log::error!("lock lost database={} lock={lock:?}", database.display());
    Lost::Raced(format!("{lock} was lost: code of this process has opened and closed the file, not through SQLite"))
}

fn is_gone(database: &Path) -> bool {
    matches!(database.try_exists(), Ok(false))
}

fn removed(database: &Path) -> Error {
    let context = format!(
        "{} was removed while it was backed up; a node that has it open still writes to it, and will lose those writes when it \
         stops: restart the node, then make the backup again",
        database.display()
    );
    Error::new(Kind::Refused, context)
}

/// Waits, at most [`CHECKPOINT_WAIT`], until a WAL checkpoint has copied the whole WAL to the database, or the WAL was restarted:
/// our read transaction prevented both.
fn await_checkpoint(connection: &Connection, database: &Path, control: &Control) -> Attempt<()> {
    begin(connection, database, control)?;
    let is_wal = journal_mode(connection, database)? == "wal";
    let held = if is_wal { Some(Held::find(connection, database)?) } else { None };
    connection.execute_batch("ROLLBACK").map_err(|e| unreadable(database, e))?;
    let Some(held) = held else { return Ok(()) };
    let salts = held.index().map(|index| index.salts);
    let wait = if fault_gate::simpler("raw-short-wait", database) { SMALL_CHECKPOINT_WAIT } else { CHECKPOINT_WAIT };
    let deadline = Instant::now() + wait;
    let is_waiting = || held.index().is_some_and(|now| Some(now.salts) == salts && now.backfilled < now.frames);
    while is_waiting() && Instant::now() < deadline {
        control.check()?;
        control.step();
        sleep(CHECKPOINT_PAUSE);
    }
    Ok(())
}

/// Translates an error of SQLite for the operator.
pub(crate) fn unreadable(database: &Path, e: rusqlite::Error) -> Error {
    let code = e.sqlite_error().map(|e| (e.code, e.extended_code));
    let (kind, why) = match code {
        Some((_, SQLITE_READONLY_ROLLBACK)) => {
            (Kind::Refused, "it has a hot journal: start the node once, so that it repairs the database")
        }
        Some((ErrorCode::DatabaseBusy, _)) => (Kind::Refused, LOCKED),
        Some((ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied, _)) => {
            if is_gone(database) {
                return removed(database).because(e);
            }
            (Kind::Refused, "run as the node's user or as root")
        }
        _ => return Error::new(Kind::Database, format!("cannot read {}", database.display())).because(e),
    };
    Error::new(kind, format!("cannot read {}: {why}", database.display())).because(e)
}

/// Opens a source read-only; the connection never runs a WAL checkpoint, not even on close.
pub(crate) fn open(database: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(database, flags)?;
    connection.busy_timeout(BUSY_SLICE)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.execute_batch("PRAGMA query_only=1; PRAGMA mmap_size=0")?;
    Ok(connection)
}

/// Begins a read transaction, which gets its snapshot with the first read; waits while the database is locked, at most
/// [`BUSY_TIMEOUT`].
pub(crate) fn begin(connection: &Connection, database: &Path, control: &Control) -> Attempt<()> {
    let failed = |e: rusqlite::Error| match e.sqlite_error_code() {
        // SQLite returns this if other processes open and close the database all the time.
        Some(ErrorCode::FileLockingProtocolFailed) => Lost::Raced(e.to_string()),
        _ => Lost::Final(unreadable(database, e)),
    };
    connection.execute_batch("BEGIN").map_err(failed)?;
    let deadline = Instant::now() + BUSY_TIMEOUT;
    loop {
        match connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())) {
            Err(e) if e.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && Instant::now() < deadline => {
                control.check()?;
                control.step();
            }
            other => return other.map_err(failed),
        }
    }
}

fn journal_mode(connection: &Connection, database: &Path) -> Result<String> {
    connection.query_row("PRAGMA journal_mode", [], |row| row.get(0)).map_err(|e| unreadable(database, e))
}

fn read_header(wal: &File, path: &Path) -> Result<Option<Header>> {
    let mut bytes = [0; HEADER_BYTES];
    match wal.read_exact_at(&mut bytes, 0) {
        Ok(()) => Ok(Header::parse(&bytes)),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(e) => Err(Error::io(format!("cannot read {}", path.display()), e)),
    }
}
