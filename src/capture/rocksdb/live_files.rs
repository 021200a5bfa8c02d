//! Reads which files a RocksDB directory names: CURRENT names a MANIFEST, and the MANIFEST the live files with their sizes.
//!
//! The rules, for every reader of such a directory: CURRENT has the plain name of a MANIFEST and a newline, nothing else
//! ([`manifest_in`]); a MANIFEST may end within a record, which RocksDB then ignores, and may not be damaged before its end
//! ([`Versions::read`]).
//!
//! Invariant: only regular files are read, no link is followed, and nothing is changed.

use std::path::Path;

use crate::capture::rocksdb::options_file::MAX_TEXT_BYTES;
use crate::capture::rocksdb::version_edit::{LiveFile, Versions};
use crate::database_files::{CURRENT, is_manifest};
use crate::disk::nofollow;
use crate::error::{Error, IoContext, Kind, Result};
use crate::fault::Fault;

/// What a RocksDB directory names.
#[derive(Debug, Default)]
pub(crate) struct Named {
    /// The live files, sorted by number; after a fault, those that could be read.
    pub(crate) live: Vec<LiveFile>,
    /// The faults of CURRENT and of the MANIFEST.
    pub(crate) faults: Vec<Fault>,
}

/// Reads what a directory names. An error means that a file could not be read; a file that is missing or damaged is a fault.
pub(crate) fn read(directory: &Path) -> Result<Named> {
    let mut named = Named::default();
    let mut fault = |file: &str, why: &str| named.faults.push(Fault { file: file.to_owned(), why: why.to_owned() });
    let failed = |name: &str| format!("cannot read {}", directory.join(name).display());
    let current = nofollow::if_fit(nofollow::read_small(&directory.join(CURRENT), MAX_TEXT_BYTES));
    let current = current.context(|| failed(CURRENT))?;
    let Some(name) = current.and_then(|c| manifest_in(&String::from_utf8(c).ok()?)) else {
        fault(CURRENT, "it is missing or does not name a MANIFEST");
        return Ok(named);
    };
    let manifest = nofollow::if_fit(nofollow::open_regular(&directory.join(&name)));
    let Some(manifest) = manifest.context(|| failed(&name))? else {
        fault(&name, "it is missing although CURRENT names it");
        return Ok(named);
    };
    let mut versions = Versions::new();
    if let Err(why) = versions.read(manifest).context(|| failed(&name))? {
        fault(&name, &why);
    }
    named.live = versions.into_live_files();
    Ok(named)
}

/// The live files of the copy in a directory, sorted by number. A fault is an error.
pub(crate) fn in_directory(directory: &Path) -> Result<Vec<LiveFile>> {
    let Named { live, faults } = read(directory)?;
    match faults.into_iter().next() {
        None => Ok(live),
        Some(Fault { file, why }) => {
            Err(Error::new(Kind::Damaged, format!("{} of the copy: {why}", directory.join(file).display())))
        }
    }
}

/// The name in the content of CURRENT; `None` unless it is the plain name of a MANIFEST, because it is joined to a path.
pub(crate) fn manifest_in(current: &str) -> Option<String> {
    current.strip_suffix('\n').filter(|name| is_manifest(name)).map(str::to_owned)
}
