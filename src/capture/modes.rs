//! Gives a backup's files and directories the permissions that they have in the node's directory: if only the node's user may read a
//! file there, only that user may read it in the backup.
//!
//! A copy that may become the base of delta pairs, and each WAL of a pair, is read only for all users.
//!
//! Until [`keep`] has done that, no other user may enter the directory of the unfinished backup. Invariant: a linked file is not
//! changed, because it is the node's own file and has its mode, or the base of other backups.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::capture::source::Sources;
use crate::chainweb::{self, ROCKSDB, SQLITE};
use crate::config::PactMethod;
use crate::database_files::{CURRENT, database_of_wal};
use crate::disk::permissions;
use crate::error::Result;
use crate::format::manifest::Manifest;
use crate::format::record::Method;

/// Gives the captured files in `partial` the modes of their sources. If the source file no longer exists, as an old WAL, the copy
/// gets the mode of `CURRENT`.
pub(crate) fn keep(sources: &Sources, partial: &Path, manifest: &Manifest, pact: PactMethod) -> Result<()> {
    let (rocksdb, sqlite) = (sources.rocksdb.path(), sources.sqlite.path());
    let usual = mode_of(&rocksdb.join(CURRENT));
    for file in manifest.files().filter(|file| !matches!(file.method, Method::Linked | Method::Reused)) {
        let Some((directory, name)) = chainweb::below_place(file.path).and_then(|path| path.split_once('/')) else {
            continue;
        };
        let is_read_only = directory == SQLITE && pact == PactMethod::Delta;
        let source = match directory {
            // A WAL of ours has the mode of its database.
            SQLITE => sqlite.join(database_of_wal(name).unwrap_or(name)),
            _ => rocksdb.join(name),
        };
        if let Some(mode) = mode_of(&source).or(usual) {
            let mode = if is_read_only { (mode & 0o444) | 0o400 } else { mode | 0o600 };
            permissions::set_of_file(&partial.join(directory).join(name), mode)?;
        }
    }
    // The directory that gives other users access comes last.
    // A node that keeps its databases elsewhere has no `0`.
    let place = chainweb::place_in(&sources.database_directory);
    let place = if place.is_dir() { &place } else { rocksdb };
    for (name, source) in [(ROCKSDB, rocksdb), (SQLITE, sqlite), ("", place)] {
        let path = partial.join(name);
        if let Some(mode) = mode_of(source).filter(|_| path.is_dir()) {
            permissions::set_of_directory(&path, mode)?;
        }
    }
    Ok(())
}

fn mode_of(path: &Path) -> Option<u32> {
    fs::metadata(path).ok().map(|meta| meta.mode())
}
