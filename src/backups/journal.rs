//! The journal of a restore one level below: a sealed file in RocksDB's directory that lists the files to be exchanged.
//!
//! Invariant: a journal that was read has only plain file names. The node's user may have written it, and we may be root.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::backups::placement::is_fixed;
use crate::chainweb::{DIRECTORIES, ROCKSDB, SQLITE};
use crate::disk::nofollow;
use crate::disk::{self, Owner};
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::layout::{self, RESTORE_JOURNAL};
use crate::format::seal;

/// The largest journal that is read. A journal has the name of each file of the database.
const JOURNAL_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The files that are exchanged. The journal is durable before the first one is moved.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Journal {
    /// The time in the names of `.restoring-<time>` and `0.bak-<time>`.
    pub(crate) time_ms: u64,
    /// The directories whose files are exchanged, RocksDB's first.
    pub(crate) directories: Vec<Names>,
}

/// The new files of one directory.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Names {
    /// The directory, by its name in `0`.
    pub(crate) name: String,
    /// Its inode number.
    pub(crate) inode: u64,
    /// The names of its new files.
    pub(crate) new: Vec<String>,
}

/// Writes the journal into RocksDB's directory; it is durable when this returns.
pub(crate) fn write(rocksdb: &Path, journal: &Journal, owner: Option<Owner>) -> Result<()> {
    disk::replace(rocksdb, RESTORE_JOURNAL, &seal::to_bytes(journal), owner)
}

/// The journal in RocksDB's directory; `None` if there is none. Fails with [`Kind::Damaged`] if it is not whole.
pub(crate) fn read(rocksdb: &Path) -> Result<Option<Journal>> {
    let path = rocksdb.join(RESTORE_JOURNAL);
    let bytes = match nofollow::read_small(&path, JOURNAL_BYTES_MAX) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes.context(|| format!("cannot read {}", path.display()))?,
    };
    let is_whole = seal::is_whole(bytes.as_slice(), bytes.len() as u64).is_ok_and(|whole| whole == Some(true));
    let journal = serde_json::from_slice::<Journal>(&bytes).ok().filter(|journal| is_whole && is_sane(journal));
    let damaged = || {
        let context = format!(
            "the journal {} of an interrupted restore is damaged: in its directory and in {SQLITE}, the old files are in {2}* and \
             the new ones in {1}*; move the old or the new files into place by hand, CURRENT last, then remove the journal",
            path.display(),
            layout::restoring(""),
            layout::replaced("")
        );
        Error::new(Kind::Damaged, context)
    };
    journal.map(Some).ok_or_else(damaged)
}

/// Whether the directories are those of the databases, and every name is that of a file in its directory.
fn is_sane(journal: &Journal) -> bool {
    let is_plain = |name: &String| !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']);
    let names: Vec<&str> = journal.directories.iter().map(|directory| directory.name.as_str()).collect();
    [&[ROCKSDB][..], &DIRECTORIES[..]].contains(&names.as_slice())
        && journal
            .directories
            .iter()
            .all(|directory| directory.new.iter().all(|name| is_plain(name) && !is_fixed(name)))
}
