//! Reads a finished copy of a database: its newest and its oldest block, and SQLite's own integrity check.
//!
//! Invariant: it is opened with `immutable=1` only, so that no `-wal` or `-shm` appears in a backup.

use std::path::Path;

use data_encoding::HEXLOWER;
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, OptionalExtension};

use crate::chainweb::pact;
use crate::control::Control;
use crate::error::{Error, Kind, Result};

/// The characters that must be encoded in the path of a `file:` URI.
const URI_PATH: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b'?').add(b'#');

/// How many steps of SQLite's virtual machine pass between two checks of whether the job was stopped: some milliseconds.
const PROGRESS_STEPS: i32 = 100_000;

/// The newest block: its height, and its hash in hexadecimal. It is the highest row of the tables with a row for each block; if
/// none of these has a row, the highest of the table with the state of the consensus. `None` if there is no row at all. Rows whose
/// height is no integer do not count, and a hash that is none is unknown: no node writes these, and a backup does not fail because of
/// them.
pub(crate) fn newest_block(copy: &Path) -> Result<Option<(u64, Option<String>)>> {
    read(copy, |connection| {
        let mut newest: Option<(i64, Option<String>)> = None;
        for table in pact::HISTORIES {
            let row = highest_row(connection, table)?;
            // While a node copies one table to the other, the newer one ends lower.
            let is_newer = |row: &(i64, Option<String>)| newest.as_ref().is_none_or(|(height, _)| row.0 > *height);
            newest = row.filter(is_newer).or(newest);
        }
        if newest.is_none() {
            newest = highest_row(connection, pact::CONSENSUS_STATE)?;
        }
        Ok(newest.and_then(|(height, hash)| Some((u64::try_from(height).ok()?, hash))))
    })
}

/// The height of the lowest row of the tables with a row for each block.
pub(crate) fn oldest_height(copy: &Path) -> Result<Option<u64>> {
    read(copy, |connection| {
        let mut oldest: Option<u64> = None;
        for table in pact::HISTORIES {
            if has_table(connection, table)? {
                let lowest = select(pact::HEIGHT, table, "ASC");
                let lowest: Option<i64> = connection.query_row(&lowest, [], |row| row.get(0)).optional()?;
                oldest = oldest.into_iter().chain(lowest.and_then(|height| u64::try_from(height).ok())).min();
            }
        }
        Ok(oldest)
    })
}

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

fn read<T>(copy: &Path, what: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
    let failed = |e: rusqlite::Error| {
        Error::new(Kind::Damaged, format!("cannot read the finished copy {}", copy.display())).because(e)
    };
    open(copy).and_then(|connection| what(&connection)).map_err(failed)
}

/// Opens it, and creates no file beside it.
pub(crate) fn open(copy: &Path) -> rusqlite::Result<Connection> {
    let path = std::path::absolute(copy).unwrap_or_else(|_| copy.to_owned());
    let encoded = percent_encode(path.as_os_str().as_encoded_bytes(), URI_PATH);
    let uri = format!("file:{encoded}?mode=ro&immutable=1");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_NOFOLLOW)
}

/// Height and hash of the highest row of a table; `None` if there is no such table, or no row.
fn highest_row(connection: &Connection, table: &str) -> rusqlite::Result<Option<(i64, Option<String>)>> {
    if !has_table(connection, table)? {
        return Ok(None);
    }
    let highest = select(&format!("{}, {}", pact::HEIGHT, pact::HASH), table, "DESC");
    connection.query_row(&highest, [], |row| Ok((row.get(0)?, hash_text(row.get_ref(1)?)))).optional()
}

/// Selects the first row in the order of the heights; the index of the heights has it.
fn select(columns: &str, table: &str, order: &str) -> String {
    let height = pact::HEIGHT;
    format!("SELECT {columns} FROM {table} WHERE typeof({height}) = 'integer' ORDER BY {height} {order} LIMIT 1")
}

pub(crate) fn has_table(connection: &Connection, table: &str) -> rusqlite::Result<bool> {
    let exists = "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?)";
    connection.query_row(exists, [table], |row| row.get(0))
}

fn hash_text(hash: ValueRef<'_>) -> Option<String> {
    match hash {
        ValueRef::Text(text) => std::str::from_utf8(text).ok().map(str::to_owned),
        ValueRef::Blob(bytes) => Some(HEXLOWER.encode(bytes)),
        _ => None,
    }
}
