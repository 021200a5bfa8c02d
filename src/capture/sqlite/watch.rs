//! What a read transaction may cost the node while it holds a database: the growth of the WAL, and the free space of the node's own file
//! system. Both are checked at each window that is read.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::capture::sqlite::attempt::{Attempt, Burden, Lost};
use crate::capture::sqlite::locks::Held;
use crate::control::Control;
use crate::disk;
use crate::disk::fault_gate;
use crate::error::{Error, Kind, Result};

/// How far the node's WAL may grow during our read transactions, over all attempts at a database.
const MAX_WAL_BYTES: u64 = 512 * 1024 * 1024;

/// The same for a test (`raw-small-wal`).
const SMALL_WAL_BYTES: u64 = 1024 * 1024;

/// The longest time between two checks of the free space of the node's file system.
const ROOM_INTERVAL: Duration = Duration::from_millis(500);

/// Checks repeatedly, while a read transaction holds a database, whether it costs the node too much.
pub(crate) struct Watch<'a> {
    held: &'a Held<'a>,
    database: &'a Path,
    control: &'a Control,
    /// The size of the WAL at the beginning, and the largest one that it may have.
    first_bytes: u64,
    wal_bytes: u64,
    /// The bytes that must be free on the node's file system.
    floor_bytes: u64,
    looked: Cell<Option<Instant>>,
    /// The reason to give up, if there is one.
    verdict: RefCell<Option<Lost>>,
}

impl<'a> Watch<'a> {
    pub(crate) fn begin(
        held: &'a Held<'a>,
        database: &'a Path,
        control: &'a Control,
        burden: &mut Burden,
    ) -> Result<Watch<'a>> {
        let bound_bytes = if fault_gate::simpler("raw-small-wal", database) { SMALL_WAL_BYTES } else { MAX_WAL_BYTES };
        // The WAL may have been large before we began.
        let now_bytes = held.wal_bytes();
        let first_bytes = burden.wal_bytes.map_or(now_bytes, |first| first.min(now_bytes));
        burden.wal_bytes = Some(first_bytes);
        let (free_bytes, size_bytes) = disk::free_bytes_of(held.database, database)?;
        // If little was free before, the floor is half of that.
        let floor_bytes = control.reserve_bytes().min(size_bytes / 20).min(free_bytes / 2);
        let floor_bytes = *burden.floor_bytes.get_or_insert(floor_bytes);
        let wal_bytes = first_bytes + bound_bytes;
        let (looked, verdict) = (Cell::default(), RefCell::default());
        Ok(Watch { held, database, control, first_bytes, wal_bytes, floor_bytes, looked, verdict })
    }

    /// Fails if it costs the node too much; [`Watch::judge`] returns the reason.
    pub(crate) fn look(&self, point: &'static str) -> Result<()> {
        fault_gate::point(point, self.database);
        self.held.note_read_locks()?;
        let wal_bytes = self.held.wal_bytes();
        self.control.wal_growth_bytes.note(wal_bytes.saturating_sub(self.first_bytes));
        let lost = if wal_bytes > self.wal_bytes { Some(Lost::WalGrew) } else { self.look_at_room()? };
        let Some(lost) = lost else { return Ok(()) };
        *self.verdict.borrow_mut() = Some(lost);
        Err(Error::new(Kind::Changed, "stopped because it costs the node too much"))
    }

    fn look_at_room(&self) -> Result<Option<Lost>> {
        if self.looked.get().is_some_and(|looked| looked.elapsed() < ROOM_INTERVAL) {
            return Ok(None);
        }
        self.looked.set(Some(Instant::now()));
        let (free_bytes, _) = disk::free_bytes_of(self.held.database, self.database)?;
        let floor_bytes = self.floor_bytes;
        let context = || {
            format!(
                "only {free_bytes} bytes are free on the node's file system, where the WAL of {} grows while it is copied, and \
                 which must keep {floor_bytes} bytes free: free some space there",
                self.database.display()
            )
        };
        Ok((free_bytes < floor_bytes).then(|| Lost::SourceFull(Error::new(Kind::NoSpace, context()))))
    }

    /// Replaces the error of [`Watch::look`] by its reason.
    pub(crate) fn judge<T>(&self, result: Attempt<T>) -> Attempt<T> {
        result.map_err(|lost| self.verdict.take().unwrap_or(lost))
    }
}
