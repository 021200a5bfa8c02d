//! Moves files by renames that overwrite nothing. A file that is in the way is kept as `<name>.later-<n>`.

use std::path::Path;

use crate::backups::catalog::is_there;
use crate::database_files::beside;
use crate::disk;
use crate::error::{Error, Kind, Result};

/// How many names are tried for a file that appeared.
const LATER_MAX: u32 = 1000;

/// Renames a file into a directory; under a free name, if its own is taken.
pub(crate) fn move_to(from: &Path, directory: &Path, name: &str) -> Result<()> {
    if disk::rename_new(from, &directory.join(name))? {
        return Ok(());
    }
    rename_later(from, &directory.join(name))
}

/// Renames a file to a name that must be free.
pub(crate) fn move_exactly(from: &Path, to: &Path) -> Result<()> {
    if disk::rename_new(from, to)? { Ok(()) } else { Err(taken(to)) }
}

/// Renames a file. One that has its new name, also one that appears at this moment, gets another name.
pub(crate) fn move_and_keep(from: &Path, to: &Path) -> Result<()> {
    for _ in 0..LATER_MAX {
        if disk::rename_new(from, to)? {
            return Ok(());
        }
        keep_later(to)?;
    }
    Err(taken(to))
}

/// Gives a file that has appeared another name, if it exists. It may disappear meanwhile.
pub(crate) fn keep_later(path: &Path) -> Result<()> {
    if !is_there(path)? {
        return Ok(());
    }
    rename_later(path, path).or_else(|e| if matches!(is_there(path), Ok(false)) { Ok(()) } else { Err(e) })
}

/// Renames a file to the first free `<to>.later-<n>`.
fn rename_later(from: &Path, to: &Path) -> Result<()> {
    for n in 1..=LATER_MAX {
        if disk::rename_new(from, &beside(to, &format!(".later-{n}")))? {
            return Ok(());
        }
    }
    Err(taken(to))
}

fn taken(path: &Path) -> Error {
    Error::new(Kind::Refused, format!("{} appeared during the restore: move it away", path.display()))
}
