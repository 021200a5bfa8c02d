//! The metrics of a backup directory without a service, for a host on which only `make` runs: what the backups say, and the free space.
//!
//! Nothing is created or changed, and no service is asked. The figures are those of the service with the same names.

use std::path::Path;

use crate::backups::details::Listed;
use crate::backups::operations;
use crate::clock::now_ms;
use crate::config::reserve_on;
use crate::disk;
use crate::error::Result;
use crate::service::metrics::{self, Volume};
use crate::service::summary::Summary;

/// The metrics of all backups in a directory, in the text format of Prometheus, for node-exporter's textfile collector.
/// `reserve_bytes` is the configured free space that a backup must leave; without it that is the default.
///
/// # Errors
/// [`crate::Kind::Usage`]: there is no such directory. [`crate::Kind::Io`]: it cannot be listed. One backup that cannot be read is no
/// error: the metrics say so.
pub fn metrics_of(directory: &Path, reserve_bytes: Option<u64>) -> Result<String> {
    let mut summary = Summary::default();
    for listed in operations::list_all_in(directory)? {
        match listed {
            Listed::Backup(backup) => summary.add(&backup),
            Listed::Unreadable(_) => summary.add_unreadable(),
        }
    }
    let (free_bytes, size_bytes) = disk::free_bytes(directory)?;
    let volume = Volume { free_bytes, size_bytes, reserve_bytes: reserve_on(reserve_bytes, size_bytes) };
    Ok(metrics::render_directory(&summary, volume, now_ms()))
}
