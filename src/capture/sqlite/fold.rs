//! The fold, the last step of a raw copy: SQLite applies the copied WAL to the copied database, in the unfinished backup.
//!
//! Invariants: exactly the copied frames are applied, otherwise the copy is discarded; the source is not accessed.

use std::fs;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode};

use crate::capture::sqlite::attempt::{Attempt, Lost};
use crate::control::Control;
use crate::database_files::wal_of;
use crate::disk;
use crate::disk::fault_gate;
use crate::error::{Error, Kind};

/// How often we check whether SQLite must be interrupted, and the smallest WAL for which that is worth a thread.
const INTERRUPT_INTERVAL: Duration = Duration::from_millis(200);
const INTERRUPT_FROM_BYTES: u64 = 64 * 1024 * 1024;

/// Applies the copied WAL, exactly `frames` frames, to the copied database. The result is not synced.
pub(crate) fn fold(database: &Path, copy: &Path, frames: u64, control: &Control) -> Attempt<()> {
    let wal = wal_of(copy);
    if frames > 0 {
        let failed = |e: rusqlite::Error| {
            let (kind, why) = match e.sqlite_error_code() {
                Some(ErrorCode::DiskFull) => (Kind::NoSpace, ""),
                Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen | ErrorCode::ReadOnly) => (Kind::Io, ""),
                _ => (Kind::Damaged, "; is the node's database damaged or truncated?"),
            };
            let context = format!("cannot apply the WAL of {} to its copy {}{why}", database.display(), copy.display());
            Error::new(kind, context).because(e)
        };
        disk::written_by_library(copy)?;
        let connection = Connection::open(copy).map_err(failed)?;
        // If the copy is discarded, closing it must not apply the WAL after all.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(failed)?;
        // Exclusive before the first access: then SQLite needs no -shm. The caller syncs the file once.
        connection.execute_batch("PRAGMA locking_mode=EXCLUSIVE; PRAGMA synchronous=OFF").map_err(failed)?;
        let counts =
            |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?));
        let apply = || connection.query_row("PRAGMA wal_checkpoint(FULL)", [], counts);
        let large = fs::metadata(&wal).is_ok_and(|meta| meta.len() >= INTERRUPT_FROM_BYTES);
        let result = if large { interruptibly(&connection, control, apply) } else { apply() };
        control.check()?;
        let result = result.map_err(failed)?;
        let expected = i64::try_from(frames).unwrap_or(i64::MAX);
        if result != (0, expected, expected) && !fault_gate::simpler("raw-fold", copy) {
            return Err(Lost::Raced(format!("SQLite applied {result:?} instead of {expected} frames of the WAL")));
        }
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).map_err(failed)?;
        connection.close().map_err(|(_, e)| failed(e))?;
    }
    // The WAL is empty now, and SQLite does not remove it.
    match fs::metadata(&wal) {
        Ok(meta) if meta.len() > 0 => {
            Err(Error::new(Kind::Damaged, format!("{} is not empty after SQLite applied it", wal.display())).into())
        }
        _ => Ok(disk::remove_file(&wal)?),
    }
}

/// Runs `work`, and interrupts SQLite if the job is stopped meanwhile.
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
        // If no thread can be started, the work cannot be interrupted.
        let _ = thread::Builder::new().name("interrupt".to_owned()).spawn_scoped(scope, watch);
        let result = work();
        drop(ended);
        result
    })
}
