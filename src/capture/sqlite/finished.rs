//! Opens a finished copy of a database, and has SQLite check its integrity.
//!
//! Invariants
//! - A copy that is one file is opened with `immutable=1` only, so that no `-wal` or `-shm` appears in a backup.
//! - A delta pair is never opened so, because that shows the base alone. It is opened without locks (`vfs=unix-none`) and exclusively:
//!   then SQLite makes the index of the WAL in memory. A WAL checkpoint on close is switched off, so nothing is written. Nor is it
//!   opened if the WAL is missing: SQLite would create one.
//! - Damage is what SQLite finds in the content. That the operating system did not let it read, or that it lacks memory, descriptors or
//!   a place for temporary files, is an error, and says nothing about the copy.

use std::path::Path;

use percent_encoding::{AsciiSet, CONTROLS, percent_encode};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};

use crate::capture::sqlite::pair::Beside;
use crate::control::Control;
use crate::disk::medium;
use crate::error::{Error, Kind, Result};

/// The characters that must be encoded in the path of a `file:` URI.
const URI_PATH: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b'?').add(b'#');

/// How many steps of SQLite's virtual machine pass between two checks of whether the job was stopped: some milliseconds.
const PROGRESS_STEPS: i32 = 100_000;

/// What `read` returns, or what it returns the second time if it finds damage: SQLite calls some read errors, which may pass, damage.
pub(crate) fn twice<T>(read: impl Fn() -> Result<T>) -> Result<T> {
    medium::twice_if(|e| e.kind() == Kind::Damaged, read)
}

/// The first fault that SQLite's own integrity check finds; it reads every page. After an error of reading the check goes on, and tells
/// of a fault in other words: so only a fault that it finds twice is one.
///
/// # Errors
/// As [`unread`], but for damage; [`Kind::Io`] if it finds a fault only once.
pub(crate) fn integrity_fault(copy: &Path, control: &Control) -> Result<Option<String>> {
    let Some(fault) = fault_once(copy, control)? else { return Ok(None) };
    if fault_once(copy, control)?.is_some() {
        return Ok(Some(fault));
    }
    let context = format!(
        "SQLite found a fault in {} ({fault}), and none when it read it again: check disk and memory, then try again",
        copy.display()
    );
    Err(Error::new(Kind::Io, context))
}

fn fault_once(copy: &Path, control: &Control) -> Result<Option<String>> {
    let check = || -> rusqlite::Result<String> {
        let mut connection = open(copy)?;
        let watch = control.watcher();
        connection.progress_handler(PROGRESS_STEPS, Some(watch))?;
        connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
    };
    let result = check();
    control.check()?;
    Ok(match result {
        Ok(word) if word == "ok" => None,
        Ok(fault) => Some(fault),
        Err(e) => Some(unread(|| format!("SQLite cannot read {}", copy.display()), e)?),
    })
}

/// The codes of SQLite for a read that failed. (`CORRUPTFS` is its name for `EIO`.)
const READ_ERRORS: [i32; 3] = [ffi::SQLITE_IOERR_READ, ffi::SQLITE_IOERR_CORRUPTFS, ffi::SQLITE_IOERR_SHORT_READ];

/// What SQLite says of the content of a finished copy that it cannot read.
///
/// # Errors
/// [`Kind::Io`] if the reason is not the content. SQLite does not pass on the number of a read error: it counts as one of the disk.
pub(crate) fn unread(context: impl FnOnce() -> String, e: rusqlite::Error) -> Result<String> {
    let Some(failure) = e.sqlite_error() else { return Ok(e.to_string()) };
    match failure.code {
        ErrorCode::SystemIoFailure if READ_ERRORS.contains(&failure.extended_code) => {
            Err(medium::lost(format!("{}: {e}", context())))
        }
        // There is a link in its place.
        ErrorCode::CannotOpen if failure.extended_code == ffi::SQLITE_CANTOPEN_SYMLINK => Ok(e.to_string()),
        ErrorCode::SystemIoFailure
        | ErrorCode::CannotOpen
        | ErrorCode::OutOfMemory
        | ErrorCode::PermissionDenied
        | ErrorCode::DatabaseBusy
        | ErrorCode::DatabaseLocked
        | ErrorCode::DiskFull => Err(Error::new(Kind::Io, context()).because(e)),
        _ => Ok(e.to_string()),
    }
}

/// Opens it, and creates no file beside it.
pub(crate) fn open(copy: &Path) -> rusqlite::Result<Connection> {
    let path = std::path::absolute(copy).unwrap_or_else(|_| copy.to_owned());
    let encoded = percent_encode(path.as_os_str().as_encoded_bytes(), URI_PATH);
    let failure = |code, why: String| rusqlite::Error::SqliteFailure(ffi::Error::new(code), Some(why));
    let is_pair = match Beside::of(&path).map_err(|e| failure(ffi::SQLITE_CANTOPEN, e.to_string()))? {
        Beside::Nothing => false,
        Beside::Wal => true,
        Beside::GuardAlone => return Err(failure(ffi::SQLITE_CORRUPT, "its WAL is missing".to_owned())),
    };
    let how = if is_pair { "vfs=unix-none" } else { "immutable=1" };
    let uri = format!("file:{encoded}?mode=ro&{how}");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_NOFOLLOW)?;
    if is_pair {
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        // Before the first access.
        connection.query_row("PRAGMA locking_mode=EXCLUSIVE", [], |_| Ok(()))?;
    }
    Ok(connection)
}
