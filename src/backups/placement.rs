//! How a restore can put a database in its place: as a whole, or one level below.
//!
//! ```text
//! layout                                                     way
//! DATABASE/0 is a plain directory with plain directories     whole: 0 gets its name, or is exchanged, in one step
//! a mount at 0, 0/rocksDb or 0/sqlite                        below: the files in the two directories are exchanged
//! a link in place of one of the three                        below, in the directories to which the links lead
//! 0 has a directory beside the two (backups, pins)           below: that directory is not part of the database
//! ```
//! Invariants: nothing is changed here. The paths have no links; only trusted ones were followed (see `links`).

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use serde::Serialize;

use crate::backups::catalog::lies_in_backup;
use crate::capture::links::follow_trusted;
use crate::chainweb::{DIRECTORIES, ROCKSDB, SQLITE};
use crate::database_files::{CURRENT, LOCK};
use crate::disk::nofollow;
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::layout::{RESTORE_JOURNAL, WHOLE};

/// How the new database gets its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// `0` is renamed or exchanged, in one step.
    Whole,
    /// The files in `0/rocksDb` and `0/sqlite` are exchanged, under a journal.
    Below,
}

/// The place of a database, and how a restore puts another one there.
#[derive(Debug, Clone)]
pub(crate) struct Placement {
    /// The database directory, without links.
    pub(crate) target: PathBuf,
    /// Its `0`; without links if the way is below.
    pub(crate) place: PathBuf,
    /// `0/rocksDb`, without links.
    pub(crate) rocksdb: PathBuf,
    /// `0/sqlite`, without links.
    pub(crate) sqlite: PathBuf,
    /// Why the way is below; `None` if it is whole.
    pub(crate) below_because: Option<String>,
}

impl Placement {
    /// Looks at the `0` of a target without links. Fails with [`Kind::Refused`] at a link that is not to be trusted.
    pub(crate) fn of(target: &Path) -> Result<Placement> {
        let named = target.join(WHOLE);
        let mut because = reason(&named)?;
        let place = follow_trusted(target, Path::new(WHOLE))?;
        for name in DIRECTORIES {
            because = because.or(reason(&place.join(name))?);
        }
        let because = match because {
            None => foreign_directory(&place)?.map(|path| format!("{} is not part of the database", path.display())),
            some => some,
        };
        let [rocksdb, sqlite] = [ROCKSDB, SQLITE].map(|name| follow_trusted(&place, Path::new(name)));
        let (rocksdb, sqlite) = (rocksdb?, sqlite?);
        if rocksdb == sqlite {
            let context = format!("{} and {SQLITE} are the same directory: correct the links", rocksdb.display());
            return Err(Error::new(Kind::Refused, context));
        }
        if because.is_some() {
            if place == target {
                let context = format!("{} leads to the target itself: correct the link", named.display());
                return Err(Error::new(Kind::Refused, context));
            }
            [&place, &rocksdb, &sqlite].into_iter().try_for_each(|directory| require_outside(directory))?;
        }
        Ok(Placement { target: target.to_owned(), place, rocksdb, sqlite, below_because: because })
    }

    /// How the database is put in place.
    pub(crate) fn way(&self) -> Way {
        if self.below_because.is_some() { Way::Below } else { Way::Whole }
    }

    /// Whether there is anything that a restore would replace.
    pub(crate) fn is_occupied(&self) -> Result<bool> {
        match self.way() {
            Way::Whole => Ok(has_entries(&self.place)),
            Way::Below => Ok(has_files(&self.rocksdb)? || has_files(&self.sqlite)?),
        }
    }
}

/// Fails if a link or a mount leads into a backup, or into the RocksDB of another node.
fn require_outside(directory: &Path) -> Result<()> {
    let whose = if lies_in_backup(directory)? {
        "lies in a backup"
    } else if directory.ancestors().skip(1).any(|above| above.join(CURRENT).is_file()) {
        "lies within a database"
    } else {
        return Ok(());
    };
    let context = format!("{} {whose}: correct the link or the mount that leads there", directory.display());
    Err(Error::new(Kind::Refused, context))
}

/// Why a directory of this name cannot be exchanged as a whole.
fn reason(path: &Path) -> Result<Option<String>> {
    let meta = match path.symlink_metadata() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        meta => meta.context(|| format!("cannot look at {}", path.display()))?,
    };
    if meta.is_symlink() {
        return Ok(Some(format!("{} is a link", path.display())));
    }
    let parent =
        path.parent().map(fs::metadata).transpose().context(|| format!("cannot look at {}", path.display()))?;
    let is_mount = nofollow::is_mount_point(path) || parent.is_some_and(|parent| parent.dev() != meta.dev());
    Ok(is_mount.then(|| format!("a file system is mounted at {}", path.display())))
}

/// A directory in `0` that is not one of the databases'.
fn foreign_directory(place: &Path) -> Result<Option<PathBuf>> {
    let found = entries(place)?
        .into_iter()
        .find(|(name, kind)| *kind == FileType::Directory && !DIRECTORIES.iter().any(|ours| name.as_os_str() == *ours));
    Ok(found.map(|(name, _)| place.join(name)))
}

/// The names in a directory with their kinds; none if it does not exist.
pub(crate) fn entries(directory: &Path) -> Result<Vec<(std::ffi::OsString, FileType)>> {
    let failed = || format!("cannot list {}", directory.display());
    let listed = match nofollow::entries(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.context(failed)?,
    };
    let kind = |entry: io::Result<(std::ffi::OsString, rustix::fs::Stat)>| {
        entry.map(|(name, stat)| (name, FileType::from_raw_mode(stat.st_mode))).context(failed)
    };
    listed.map(kind).collect()
}

/// Whether a file of a database's directory is never exchanged.
pub(crate) fn is_fixed(name: &str) -> bool {
    name == LOCK || name == RESTORE_JOURNAL
}

fn has_files(directory: &Path) -> Result<bool> {
    let is_data = |(name, kind): &(std::ffi::OsString, FileType)| {
        *kind != FileType::Directory && !is_fixed(&name.to_string_lossy())
    };
    Ok(entries(directory)?.iter().any(is_data))
}

#[expect(clippy::disallowed_methods, reason = "the operator may have put a link in place of the target")]
fn has_entries(place: &Path) -> bool {
    place.symlink_metadata().is_ok() && fs::read_dir(place).is_ok_and(|mut d| d.next().is_some())
}
