//! The wall clock, in the one unit that this crate uses.
//!
//! Invariant: times name backups and sort them into days and weeks; they never decide which of two backups is newer.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since the epoch; a clock before it counts as the epoch.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
