//! The online backup: copies a database with a rollback journal, whose writer waits while another process reads.
//!
//! 1. The database is copied in small steps. Between them SQLite releases its lock, and we wait as long as the limit of bytes
//!    per second demands. A writer waits for one step at most, some milliseconds. After a write SQLite restarts the copy by
//!    itself.
//! 2. After [`MAX_RESTARTS`] restarts the copy might never end. Then a read transaction pins one commit, and the database is
//!    copied at full speed: the writer waits for the whole copy (about 1.3 s per GB from the page cache). We wait for the limit
//!    afterwards.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::backup::{Backup, Progress, StepResult};

use crate::capture::sqlite::attempt::{Attempt, How, Lost};
use crate::capture::sqlite::locks::{LOCKED, identity};
use crate::capture::sqlite::raw_copy::{begin, open, unreadable};
use crate::disk;
use crate::disk::fault_gate;
use crate::disk::unsynced::Unsynced;
use crate::error::{Error, Kind, Result};

/// The size of a step, for which a writer may have to wait.
const STEP_BYTES: u64 = 512 * 1024;

/// How often a writer may make SQLite restart the copy.
const MAX_RESTARTS: u32 = 3;

/// How often in a row a step may find the database busy before the copy fails, and the pause after each.
const MAX_BUSY_STEPS: u32 = 100;
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// The number of steps between two checks of the free space.
const STEPS_PER_SPACE_CHECK: u32 = 32;

/// Copies one database to the new file `to`, synced.
pub(crate) fn copy(database: &Path, to: &Path, how: &How<'_>) -> Attempt<()> {
    let before = identity(database)?;
    let source = open(database).map_err(|e| unreadable(database, e))?;
    begin(&source, database, how.copier.control)?;
    let page_bytes = source
        .query_row("PRAGMA page_size", [], |row| row.get::<_, u32>(0).map(u64::from))
        .map_err(|e| unreadable(database, e))?;
    release(&source, database)?;

    let mut copying = Copying { database, to, how, page_bytes, is_pinned: false, counted: 0 };
    let mut unsynced = copying.make(&source)?;
    if unsynced.is_none() {
        log::info!("pinned for its copy database={} reason=\"the node writes to it all the time\"", database.display());
        disk::remove_file(to)?;
        begin(&source, database, how.copier.control)?;
        copying.is_pinned = true;
        unsynced = copying.make(&source)?;
        release(&source, database)?;
        how.copier.control.throttle(copying.counted)?;
    }
    source.close().map_err(|(_, e)| unreadable(database, e))?;
    if identity(database).ok() != Some(before) {
        return Err(Lost::Raced("another file has its name now: was it renamed or replaced?".to_owned()));
    }
    if let Some(unsynced) = unsynced {
        unsynced.sync()?;
    }
    Ok(())
}

fn release(source: &Connection, database: &Path) -> Result<()> {
    source.execute_batch("ROLLBACK").map_err(|e| unreadable(database, e))
}

struct Copying<'a> {
    database: &'a Path,
    to: &'a Path,
    how: &'a How<'a>,
    page_bytes: u64,
    /// Whether a read transaction keeps the writer from changing the source.
    is_pinned: bool,
    /// The bytes counted as progress: the most that any run has copied.
    counted: u64,
}

impl Copying<'_> {
    /// Makes the new file; `None`, with an unusable file left, if the source is written to again and again.
    fn make(&mut self, source: &Connection) -> Result<Option<Unsynced>> {
        let to = self.to;
        let failed =
            |e: rusqlite::Error| Error::new(Kind::Database, format!("cannot write {}", to.display())).because(e);
        let unsynced = Unsynced::of(disk::create_new("create", to, self.how.copier.owner)?, to, 0);
        disk::written_by_library(to)?;
        let mut target = Connection::open(to).map_err(failed)?;
        // The file is not part of a backup before it is whole and synced, so it needs no journal and no sync before that.
        target.execute_batch("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF").map_err(failed)?;
        let ends = self.run(source, &mut target)?;
        let closed = target.close();
        if !ends {
            return Ok(None);
        }
        closed.map_err(|(_, e)| failed(e))?;
        Ok(Some(unsynced))
    }

    /// Makes all steps; `Ok(false)` if the source is written to again and again.
    fn run(&mut self, source: &Connection, target: &mut Connection) -> Result<bool> {
        let failed = |e| unreadable(self.database, e);
        let control = self.how.copier.control;
        let step_pages = i32::try_from(STEP_BYTES / self.page_bytes).unwrap_or(1).max(1);
        let backup = Backup::new(source, target).map_err(failed)?;
        let (mut steps, mut busy_steps, mut restarts, mut done) = (0_u32, 0, 0, 0);
        loop {
            control.check()?;
            if steps.is_multiple_of(STEPS_PER_SPACE_CHECK) {
                disk::require_room(self.to, control.reserve_bytes())?;
            }
            steps = steps.wrapping_add(1);
            fault_gate::point(if self.is_pinned { "online-pinned-step" } else { "online-step" }, self.database);
            let result = backup.step(step_pages).map_err(failed)?;
            let now = self.done_bytes(&backup.progress());
            let is_again = now <= done && !matches!(result, StepResult::Busy | StepResult::Locked);
            let moved = if is_again { now } else { now - done };
            done = now;
            control.add_done(done.saturating_sub(self.counted));
            control.step();
            self.counted = self.counted.max(done);
            match result {
                StepResult::Done => break,
                StepResult::More if is_again && restarts == MAX_RESTARTS => return Ok(false),
                StepResult::More => (busy_steps, restarts) = (0, restarts + u32::from(is_again)),
                _ if busy_steps == MAX_BUSY_STEPS => {
                    let context = format!("cannot read {}: {LOCKED}", self.database.display());
                    return Err(Error::new(Kind::Refused, context));
                }
                _ => {
                    busy_steps += 1;
                    sleep(BUSY_PAUSE);
                }
            }
            if !self.is_pinned {
                control.throttle(moved)?;
            }
        }
        self.counted = done;
        Ok(true)
    }

    fn done_bytes(&self, progress: &Progress) -> u64 {
        u64::try_from(progress.pagecount - progress.remaining).unwrap_or(0) * self.page_bytes
    }
}
