//! Opens a finished copy of a database, and has SQLite check its integrity.
//!
//! Invariant: it is opened with `immutable=1` only, so that no `-wal` or `-shm` appears in a backup.

use std::path::Path;

use percent_encoding::{AsciiSet, CONTROLS, percent_encode};
use rusqlite::{Connection, OpenFlags};

use crate::control::Control;
use crate::error::Result;

/// The characters that must be encoded in the path of a `file:` URI.
const URI_PATH: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b'?').add(b'#');

/// How many steps of SQLite's virtual machine pass between two checks of whether the job was stopped: some milliseconds.
const PROGRESS_STEPS: i32 = 100_000;

/// The first fault that SQLite's own integrity check finds; it reads every page.
pub(crate) fn integrity_fault(copy: &Path, control: &Control) -> Result<Option<String>> {
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
        Err(e) => Some(e.to_string()),
    })
}

/// Opens it, and creates no file beside it.
pub(crate) fn open(copy: &Path) -> rusqlite::Result<Connection> {
    let path = std::path::absolute(copy).unwrap_or_else(|_| copy.to_owned());
    let encoded = percent_encode(path.as_os_str().as_encoded_bytes(), URI_PATH);
    let uri = format!("file:{encoded}?mode=ro&immutable=1");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_NOFOLLOW)
}
