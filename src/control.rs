//! The live state of one running job, shared between the backup thread that moves the bytes and whoever watches.
//!
//! Plain atomics: readers never wait for the backup thread. Cancelling is a wish that the job sees at its next
//! [`Control::check`], at most one chunk of a copy later.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};

/// What a job is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Looking at the sources and at the free space.
    PreFlight,
    /// Copying the Pact databases.
    Pact,
    /// Capturing RocksDB.
    Rocksdb,
    /// Reading the heights from the finished copies.
    Heights,
    /// Writing everything to the disk, then committing.
    Sync,
    /// Nothing more will happen.
    Finished,
}

const PHASES: [Phase; 6] =
    [Phase::PreFlight, Phase::Pact, Phase::Rocksdb, Phase::Heights, Phase::Sync, Phase::Finished];

/// Progress and cancellation of one job, or of one operation on a backup.
#[derive(Debug, Default)]
pub struct Control {
    phase: AtomicU8,
    bytes_done: AtomicU64,
    bytes_total: AtomicU64,
    cancelled: AtomicBool,
    reserve_bytes: AtomicU64,
}

impl Control {
    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
    }

    pub(crate) fn phase(&self) -> Phase {
        PHASES[usize::from(self.phase.load(Relaxed))]
    }

    /// Counts bytes that reached the backup.
    pub(crate) fn add_done(&self, bytes: u64) {
        self.bytes_done.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn set_total(&self, bytes: u64) {
        self.bytes_total.store(bytes, Relaxed);
    }

    /// Bytes copied so far and bytes to copy in all. The sources grow, so the total is never below what is done.
    pub fn bytes(&self) -> (u64, u64) {
        let done = self.bytes_done.load(Relaxed);
        (done, self.bytes_total.load(Relaxed).max(done))
    }

    /// The free space, in bytes, that copying must leave on the file system of the backup.
    pub(crate) fn set_reserve(&self, bytes: u64) {
        self.reserve_bytes.store(bytes, Relaxed);
    }

    pub(crate) fn reserve_bytes(&self) -> u64 {
        self.reserve_bytes.load(Relaxed)
    }

    /// Wishes that the job ends; it does so at its next chunk.
    pub fn cancel(&self) {
        self.cancelled.store(true, Relaxed);
    }

    /// Fails with [`Kind::Cancelled`] once somebody cancelled the job.
    pub(crate) fn check(&self) -> Result<()> {
        if self.cancelled.load(Relaxed) { Err(Error::new(Kind::Cancelled, "shut down")) } else { Ok(()) }
    }
}
