//! Copies the WALs of a live copy up to the cut, byte for byte, so that RocksDB recovers the same from the copy as from the
//! source.
//!
//! RocksDB replays the WALs in order and stops at a record that is incomplete or damaged (point-in-time recovery, its
//! default). It continues with a later WAL only if that begins with the sequence number at which it stopped, as the WAL of
//! a node does that has recovered without a flush (`avoid_flush_during_recovery`). If it has stopped and a column family
//! has later changes in its tables, it refuses the database. (RocksDB, `db/db_impl/db_impl_open.cc`: `ProcessLogFiles`,
//! `MaybeReviseStopReplayForCorruption`, `MaybeHandleStopReplayForCorruptionForInconsistency`.) All this depends on the
//! incomplete record: in a copy without it, RocksDB would replay later WALs over the hole.
//!
//! There is one exception: the record that a running node is writing at the instant of the cut is cut off, so that a node with
//! `wal_recovery_mode=kAbsoluteConsistency` starts from the copy. This is done only if nothing depends on the record: its WAL
//! is the last one with any record and the only one that does not end with a complete record, and no column family has changes
//! in its tables that came after that WAL.
//!
//! Invariant: if RocksDB will recover less from the copy than its files hold, there is a warning.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;

use crate::capture::rocksdb::live_directories::Source;
use crate::capture::rocksdb::log_format::{self, End, Extent};
use crate::capture::rocksdb::version_edit::Versions;
use crate::control::Control;
use crate::disk::copy::{self, Copier};
use crate::disk::fault_gate;
use crate::disk::nofollow;
use crate::disk::quiet_reader::QuietReader;
use crate::disk::unsynced::Unsynced;
use crate::error::{IoContext, Result};

/// The directory of a copy, the owner of its files, and the control of the job.
pub(crate) struct Target<'a> {
    pub(crate) directory: &'a Path,
    pub(crate) copier: Copier<'a>,
}

/// A WAL of the cut.
pub(crate) struct Wal {
    pub(crate) name: String,
    pub(crate) number: u64,
    pub(crate) file: File,
    pub(crate) bytes: u64,
}

/// A WAL that was copied up to its cut.
pub(crate) struct CopiedWal {
    name: String,
    number: u64,
    bytes: u64,
    extent: Extent,
    pub(crate) unsynced: Unsynced,
}

impl Wal {
    /// Copies the WAL up to its cut, byte for byte, and measures the copy.
    pub(crate) fn copy(&self, source: &Source, target: &Target<'_>) -> Result<CopiedWal> {
        let path = target.directory.join(&self.name);
        let mut bytes = QuietReader::through_cache(self.file.as_fd());
        let unsynced = copy::copy(target.copier, &mut bytes, self.bytes, &path, &|| Ok(()))?;
        if unsynced.bytes != self.bytes {
            let why = format!("{} became shorter while it was read: another program has truncated it", self.name);
            return Err(source.refused(&why));
        }
        let copy = nofollow::open_regular(&path).context(|| format!("cannot open {}", path.display()))?;
        let measured = log_format::measure(Cancellable { reader: copy, control: target.copier.control });
        target.copier.control.check()?;
        let extent = measured.context(|| format!("cannot read {}", path.display()))?;
        if extent.recyclable {
            return Err(source.refused_recycling(&format!("{} is a reused WAL file", self.name)));
        }
        Ok(CopiedWal { name: self.name.clone(), number: self.number, bytes: self.bytes, extent, unsynced })
    }
}

/// A reader that fails if the job is cancelled.
struct Cancellable<'a> {
    reader: File,
    control: &'a Control,
}

impl Read for Cancellable<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.control.check().map_err(io::Error::other)?;
        self.reader.read(buffer)
    }
}

impl CopiedWal {
    /// Whether the WAL ends with a complete record, or is empty.
    fn is_whole(&self) -> bool {
        self.extent.end == End::Clean && self.extent.complete_bytes == self.bytes
    }

    /// Whether the WAL ends within a record, as a killed writer leaves it.
    fn is_torn(&self) -> bool {
        !self.is_whole() && self.extent.end != End::Damaged && !self.extent.zeroes
    }

    fn warning(&self) -> String {
        let (name, at, bytes) = (&self.name, self.extent.complete_bytes, self.bytes);
        let what = match (self.extent.zeroes, self.extent.end) {
            (true, _) => "holds only zeroes after",
            (false, End::Damaged) => "is damaged after",
            (false, _) => "ends within the record after",
        };
        format!(
            "{name} of RocksDB {what} byte {at} of {bytes}: RocksDB recovers the records before that byte, and those in \
             later WALs only if they continue from there"
        )
    }
}

/// Cuts off the record that the node is writing, if nothing depends on it, and returns a warning for each WAL of which RocksDB
/// will recover less than the file holds. `wals` are sorted by number.
pub(crate) fn settle(wals: &[CopiedWal], versions: &Versions, source: &Source) -> Result<Vec<String>> {
    let trimmed = trimmable(wals, versions.newest_settled_wal());
    if let Some(wal) = trimmed.map(|at| &wals[at]) {
        wal.unsynced.cut_back(wal.extent.complete_bytes)?;
    }
    if fault_gate::simpler("trim-every-wal", &source.path) {
        for wal in wals.iter().filter(|wal| wal.is_torn()) {
            wal.unsynced.cut_back(wal.extent.complete_bytes)?;
        }
    }
    let is_read = |wal: &CopiedWal| wal.number >= versions.oldest_wal();
    let lossy = wals.iter().enumerate().filter(|(at, wal)| Some(*at) != trimmed && !wal.is_whole() && is_read(wal));
    let warnings: Vec<String> = lossy.map(|(_, wal)| wal.warning()).collect();
    for warning in &warnings {
        log::warn!("wal is incomplete source={} warning={warning:?}", source.path.display());
    }
    Ok(warnings)
}

/// The WAL whose incomplete last record can be cut off, so that RocksDB still recovers the same.
fn trimmable(wals: &[CopiedWal], newest_settled: u64) -> Option<usize> {
    let last = wals.iter().rposition(|wal| wal.extent.has_records || !wal.is_whole())?;
    let is_trimmable =
        wals[last].is_torn() && wals[last].number >= newest_settled && wals[..last].iter().all(CopiedWal::is_whole);
    is_trimmable.then_some(last)
}
