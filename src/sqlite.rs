//! One SQLite database into one finished file: the only file that knows rusqlite.
//!
//! Three ways, chosen per database and written into the record:
//! - **File copy**: the database of another process in WAL mode without a `-wal`: its node stopped cleanly, and opening it
//!   would create files beside it. The bytes are copied under a read lock; size, modification and change time, inode, and
//!   "no -wal" must be the same before and after, otherwise somebody used it meanwhile: if no node was up, the copy fails,
//!   otherwise it is made in another way.
//! - **Raw copy** (`raw_copy`): every other database in WAL mode, which is how the node has them.
//! - **Online backup**: what is left, databases with a rollback journal. A read transaction on the source connection pins
//!   one commit for the whole copy; without it SQLite starts again at every write of another connection and may never
//!   finish. Meanwhile the writer has to wait: there is no other way with a rollback journal.
//!
//! Invariants
//! - POSIX locks belong to the process: closing any descriptor of a database drops every lock SQLite holds on it here.
//!   So a database that may be open in this process is only ever opened by SQLite itself.
//! - A finished copy is opened with `immutable=1` only, so that no `-wal` or `-shm` appears in a backup.

use std::ffi::c_int;
use std::fs::{self, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use percent_encoding::{AsciiSet, CONTROLS, percent_encode};
use rusqlite::backup::{Backup, StepResult};
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, OptionalExtension};

use rustix::process::{Flock, FlockType};

use crate::config::PactMethod;
use crate::control::Control;
use crate::copy;
use crate::disk::{self, Owner};
use crate::error::{Error, IoContext, Kind, Result};
use crate::gate;
use crate::nofollow;
use crate::quiet::QuietReader;
use crate::raw_copy::{self, How};
use crate::record::{Method, PactPart};
use crate::source::{SqliteSource, beside, chain_of, doubtful_name};
use crate::sys;
use crate::unsynced::Unsynced;

/// Pages per step of an online backup: a few hundred KiB with the node's pages of 1 KiB, so that cancelling is prompt.
const STEP_PAGES: c_int = 512;

/// How often in a row a step may find the database busy before the copy fails.
const MAX_BUSY_STEPS: u32 = 30;

/// The bytes of a database that every reader locks (`SHARED_FIRST`, `SHARED_SIZE`).
const SHARED_FIRST: i64 = 0x4000_0002;
const SHARED_BYTES: i64 = 510;

/// Where a database says how it is written and read, and what stands there in WAL mode.
const HEADER_MODES: u64 = 18;
const WAL_MODES: [u8; 2] = [2, 2];

/// What a path may not hold in a `file:` URI.
const URI_PATH: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b'?').add(b'#');

/// How many steps of SQLite's machine lie between two looks whether to go on: some milliseconds.
const PROGRESS_STEPS: i32 = 100_000;

/// The first height of mainnet's chains 10 to 19, which were added later.
const LATE_GENESIS: u64 = 852_054;

/// How much is copied between two looks at the free space, in steps.
const STEPS_PER_SPACE_CHECK: u32 = 32;

/// Bytes that a copy of this database will need at most: the database and what its WAL holds.
pub(crate) fn needed_bytes(database: &Path) -> Result<u64> {
    let main = look(database)?.len();
    Ok(main + fs::metadata(wal_of(database)).map_or(0, |m| m.len()))
}

/// Copies one database to the new file `to`, synced. What it holds is one commit of the source, made no earlier than the
/// call. Fails with [`Kind::Refused`] for what is not a SQLite database that can be copied.
pub(crate) fn copy(
    source: &SqliteSource,
    database: &Path,
    to: &Path,
    how: How,
    owner: Option<Owner>,
    control: &Control,
) -> Result<PactPart> {
    let meta = look(database)?;
    if meta.len() == 0 {
        return Err(refused(database, "it is empty; remove it or let the node create it anew"));
    }
    let foreign = matches!(source, SqliteSource::Foreign(_));
    let file_system = rustix::fs::statfs(database).context(|| format!("cannot look at {}", database.display()))?;
    if let Some(name) = doubtful_name(&file_system).filter(|_| foreign) {
        let why = format!("it lies on {name}, whose files and locks may not be the node's; run beside the real disk");
        return Err(refused(database, &why));
    }
    let how = How { node_is_up: how.node_is_up && foreign, ..how };
    let copied = if foreign { copy_file(database, to, how, owner, control)? } else { None };
    let method = if let Some(method) = copied {
        method
    } else if let Some(method) = raw_copy::copy(database, to, how, owner, control)? {
        method
    } else {
        copy_online(database, to, owner, control)?;
        Method::OnlineBackup
    };
    let newest = newest_block(to)?;
    Ok(PactPart {
        file: database.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default(),
        chain: chain_of(database),
        method,
        bytes: look(to)?.len(),
        block_height: newest.as_ref().map(|(height, _)| *height),
        block_hash: newest.and_then(|(_, hash)| hash),
    })
}

fn refused(database: &Path, why: &str) -> Error {
    Error::new(Kind::Refused, format!("cannot back up {}: {why}", database.display()))
}

/// The file itself, not what a link points to: locks and `-wal` would stand beside the wrong name.
fn look(database: &Path) -> Result<Metadata> {
    let meta = database.symlink_metadata().context(|| format!("cannot look at {}", database.display()))?;
    if meta.is_file() { Ok(meta) } else { Err(refused(database, "it is not a regular file")) }
}

fn wal_of(database: &Path) -> PathBuf {
    beside(database, "-wal")
}

/// Copies a database in WAL mode that nobody uses; `Ok(None)`, with nothing left behind, where it is not that.
///
/// The read lock, SQLite's own, makes sure: a writer with a rollback journal has to wait for it, and who opens the database
/// in WAL mode cannot remove the `-wal` again, on whose absence the copy relies. Times alone are too coarse for that. (No
/// more than these bytes: a lock on the one for `RESERVED` would make others take a hot journal for one in use.)
fn copy_file(database: &Path, to: &Path, how: How, owner: Option<Owner>, control: &Control) -> Result<Option<Method>> {
    let failed = || format!("cannot open {}", database.display());
    if wal_of(database).exists() {
        return Ok(None);
    }
    let file = nofollow::open_of_node(database).context(failed)?;
    match sys::read_lock(&file, SHARED_FIRST, SHARED_BYTES) {
        // Somebody writes. SQLite can wait for that.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EACCES | libc::EAGAIN)) => return Ok(None),
        other => other.context(|| format!("cannot lock {}", database.display()))?,
    }
    let fingerprint = |m: &Metadata| (m.len(), m.ino(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
    let before = fingerprint(&look(database)?);
    let mut modes = [0; 2];
    let has_header = match file.read_exact_at(&mut modes, HEADER_MODES) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => false,
        // SQLite would leave a -wal and a -shm beside the database of a stopped node.
        other => other.context(|| format!("cannot read {}", database.display())).map(|()| true)?,
    };
    let has_journal = fs::metadata(beside(database, "-journal")).is_ok_and(|m| m.len() > 0);
    if wal_of(database).exists() || !has_header || modes != WAL_MODES || has_journal {
        return Ok(None);
    }
    let used = || {
        let context = format!("{} was used while it was copied: the node has been started", database.display());
        Error::new(Kind::NodeRunning, context)
    };
    // Looked at all the time: whoever has just opened it shall not have to share the disk with a copy that is lost.
    let watch = || {
        gate::point("file-window", database);
        if wal_of(database).exists() { Err(used()) } else { Ok(()) }
    };
    let copy = || {
        let cloned = match how.method {
            PactMethod::Clone => copy::clone(file.as_fd(), to, owner, control, &watch)?,
            PactMethod::Copy => None,
        };
        let method = if cloned.is_some() { Method::RawClone } else { Method::Copied };
        let copied = if let Some(cloned) = cloned {
            cloned
        } else {
            // A node that is up may open it meanwhile.
            let through_cache = QuietReader::through_cache(file.as_fd());
            let mut pages = if how.node_is_up { through_cache } else { QuietReader::past_cache(&file) };
            copy::copy(&mut pages, before.0, to, owner, control, &watch)?
        };
        let bytes = copied.sync()?;
        let untouched = bytes == before.0 && fingerprint(&look(database)?) == before && !wal_of(database).exists();
        if untouched { Ok(method) } else { Err(used()) }
    };
    match copy() {
        Err(e) if e.kind() == Kind::NodeRunning && how.node_is_up => {
            disk::remove_file(to)?;
            Ok(None)
        }
        result => result.map(Some),
    }
}

fn copy_online(database: &Path, to: &Path, owner: Option<Owner>, control: &Control) -> Result<()> {
    let failed = |verb: &str, e: rusqlite::Error| {
        Error::new(Kind::Database, format!("cannot {verb} {}", database.display())).because(e)
    };
    let source = raw_copy::open(database).map_err(|e| failed("open", e))?;
    raw_copy::begin(&source, database, control)?;

    let written = |e: rusqlite::Error| Error::new(Kind::Database, format!("cannot write {}", to.display())).because(e);
    let unsynced = Unsynced::of(disk::create_new("create", to, owner)?, to, 0);
    disk::written_by_library(to)?;
    let mut target = Connection::open(to).map_err(written)?;
    // Nobody sees the file before it is whole and synced: no journal, no sync on the way.
    target.execute_batch("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF").map_err(written)?;
    let page_bytes = source
        .query_row("PRAGMA page_size", [], |row| row.get::<_, u32>(0).map(u64::from))
        .map_err(|e| failed("read", e))?;
    let backup = Backup::new(&source, &mut target).map_err(|e| failed("copy", e))?;
    let (mut busy_steps, mut steps, mut counted) = (0, 0_u32, 0);
    loop {
        control.check()?;
        if steps % STEPS_PER_SPACE_CHECK == 0 {
            disk::require_room(to, control.reserve_bytes())?;
        }
        steps = steps.wrapping_add(1);
        let result = backup.step(STEP_PAGES).map_err(|e| failed("copy", e))?;
        let progress = backup.progress();
        let done_bytes = u64::try_from(progress.pagecount - progress.remaining).unwrap_or(0) * page_bytes;
        control.add_done(done_bytes.saturating_sub(counted));
        counted = counted.max(done_bytes);
        match result {
            StepResult::Done => break,
            StepResult::More => busy_steps = 0,
            _ if busy_steps == MAX_BUSY_STEPS => {
                let why = "another program keeps it locked; stop that program or try again";
                return Err(refused(database, why));
            }
            _ => {
                busy_steps += 1;
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
    drop(backup);
    target.close().map_err(|(_, e)| written(e))?;
    source.execute_batch("ROLLBACK").map_err(|e| failed("release", e))?;
    source.close().map_err(|(_, e)| failed("close", e))?;
    if look(to)?.len() != counted {
        let context = format!("the copy {} has {} bytes instead of {counted}", to.display(), look(to)?.len());
        return Err(Error::new(Kind::Damaged, context));
    }
    unsynced.sync().map(|_| ())
}

/// The newest block of a finished copy: height and hash of the top row of `BlockHistory`, a table of the node's Pact
/// service. `None` where there is no such table, or no row.
pub(crate) fn newest_block(copy: &Path) -> Result<Option<(u64, Option<String>)>> {
    let failed = |e: rusqlite::Error| {
        Error::new(Kind::Damaged, format!("cannot read the finished copy {}", copy.display())).because(e)
    };
    let connection = open_finished(copy).map_err(failed)?;
    if !has_history(&connection).map_err(failed)? {
        return Ok(None);
    }
    let newest = "SELECT blockheight, hash FROM BlockHistory ORDER BY blockheight DESC LIMIT 1";
    let row = connection.query_row(newest, [], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Value>(1)?)));
    let newest = row.optional().map_err(failed)?;
    Ok(newest.and_then(|(height, hash)| Some((u64::try_from(height).ok()?, hash_text(hash)))))
}

/// Whether old blocks were compacted away in a finished copy: its first block is above the genesis of its chain. On
/// mainnet, chains 10 to 19 begin at [`LATE_GENESIS`].
pub(crate) fn is_compacted(copy: &Path) -> Result<bool> {
    let failed = |e: rusqlite::Error| Error::new(Kind::Damaged, format!("cannot read {}", copy.display())).because(e);
    let connection = open_finished(copy).map_err(failed)?;
    if !has_history(&connection).map_err(failed)? {
        return Ok(false);
    }
    let oldest = "SELECT min(blockheight) FROM BlockHistory";
    let oldest: Option<u64> = connection
        .query_row(oldest, [], |row| row.get::<_, Option<i64>>(0))
        .map_err(failed)?
        .and_then(|height| u64::try_from(height).ok());
    let genesis = if chain_of(copy).is_some_and(|chain| chain >= 10) { LATE_GENESIS } else { 0 };
    // Small networks begin with block 1.
    Ok(oldest.is_some_and(|height| height > genesis + 1))
}

fn has_history(connection: &Connection) -> rusqlite::Result<bool> {
    let tables = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'BlockHistory'";
    connection.query_row(tables, [], |row| row.get::<_, i64>(0)).map(|count| count > 0)
}

/// What SQLite's own integrity check finds wrong with a finished copy; it reads every page.
pub(crate) fn integrity_fault(copy: &Path, control: &Control) -> Result<Option<String>> {
    let check = || -> rusqlite::Result<String> {
        let mut connection = open_finished(copy)?;
        let watch = control.watcher();
        connection.progress_handler(PROGRESS_STEPS, Some(watch))?;
        connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
    };
    let result = check();
    control.check()?;
    Ok(match result {
        Ok(word) if word == "ok" => None,
        Ok(fault) => Some(fault),
        Err(e) => Some(e.to_string()),
    })
}

/// Whether another process has the database open: asked of the locks, none is taken. Not for databases of this process.
pub(crate) fn is_used_by_another(database: &Path) -> Result<bool> {
    // Every user of a WAL holds one byte of the -shm; a reader or writer without one holds the shared range (os_unix.c).
    let probes = [(beside(database, "-shm"), 128, 1), (database.to_owned(), 0x4000_0002, 510)];
    for (path, start, length) in probes {
        let file = match nofollow::open_of_node(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.context(|| format!("cannot open {}", path.display()))?,
        };
        let probe = Flock { start, length, ..Flock::from(FlockType::WriteLock) };
        let holder = rustix::process::fcntl_getlk(&file, &probe);
        if holder.context(|| format!("cannot ask who uses {}", path.display()))?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Opens a file that nobody writes any more, without leaving anything beside it.
fn open_finished(copy: &Path) -> rusqlite::Result<Connection> {
    let path = std::path::absolute(copy).unwrap_or_else(|_| copy.to_owned());
    let encoded = percent_encode(path.as_os_str().as_encoded_bytes(), URI_PATH);
    let uri = format!("file:{encoded}?mode=ro&immutable=1");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(uri, flags)
}

fn hash_text(hash: Value) -> Option<String> {
    match hash {
        Value::Text(text) => Some(text),
        Value::Blob(bytes) => Some(bytes.iter().map(|b| format!("{b:02x}")).collect()),
        _ => None,
    }
}

/// The version of the SQLite that is linked into this program.
pub(crate) fn library_version() -> String {
    rusqlite::version().to_owned()
}
