//! What can be done with the backups of a directory: [`Action`], which `plan` decides on and `commands` runs.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use chainweb_backup::{Depth, Policy};

use crate::table::Column;

/// A command on the backup directory. Identifiers are as typed, not parsed yet: never join one to a path.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// Print one screen.
    Status,
    /// List the backups.
    List {
        /// How.
        output: Output,
        /// The columns of the table; empty: those that fit on a terminal.
        columns: Vec<Column>,
    },
    /// Print the metrics.
    Metrics {
        /// The configured free space that a backup must leave.
        reserve_bytes: Option<u64>,
    },
    /// Print the status.
    Check(String),
    /// Cancel the running backup: this one, or any.
    Cancel(Option<String>),
    /// Compare a backup with its manifest.
    Verify {
        /// An identifier, or `latest`.
        id: String,
        /// How thoroughly.
        depth: Depth,
    },
    /// Restore a backup into a database directory.
    Restore {
        /// An identifier, or `latest`.
        id: String,
        /// The database directory.
        to: PathBuf,
        /// Rename an existing database first.
        replace: bool,
        /// Share no file with the backup.
        copy: bool,
        /// How thoroughly it is verified before.
        depth: Depth,
        /// Print what would be done, do nothing.
        dry_run: Option<Output>,
    },
    /// Restore a backup into a scratch directory, and use it there.
    Drill {
        /// An identifier, or `latest`.
        id: String,
        /// The command that uses it; empty: this program.
        command: Vec<OsString>,
        /// How long the command may run.
        time_limit: Duration,
        /// Share no file with the backup.
        copy: bool,
    },
    /// Write the checksums of a backup.
    Sum(String),
    /// Delete backups.
    Delete(Vec<String>),
    /// Delete the backups that no rule keeps.
    Prune {
        /// The rules.
        policy: Policy,
        /// Print the decisions, delete nothing.
        dry_run: bool,
    },
    /// Protect a backup from being deleted.
    Pin(String),
    /// End that.
    Unpin(String),
}

/// How a result is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// As lines, or as a table.
    Text,
    /// As JSON.
    Json,
}
