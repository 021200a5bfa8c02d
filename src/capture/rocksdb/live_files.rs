//! Lists the live files of a RocksDB directory, from its CURRENT and MANIFEST.
//!
//! Invariant: only regular files are read, no link is followed, and nothing is changed.

use std::path::Path;

use crate::capture::rocksdb::log_format::End;
use crate::capture::rocksdb::options_file::MAX_TEXT_BYTES;
use crate::capture::rocksdb::version_edit::{LiveFile, Versions};
use crate::disk::nofollow;
use crate::error::{Error, IoContext, Kind, Result};

/// The live files of a RocksDB directory, from its CURRENT and MANIFEST, sorted by number.
pub(crate) fn in_directory(directory: &Path) -> Result<Vec<LiveFile>> {
    let damaged = |name: &str, why: &str| {
        Error::new(Kind::Damaged, format!("{} of the copy: {why}", directory.join(name).display()))
    };
    let path = directory.join("CURRENT");
    let current = nofollow::read_small(&path, MAX_TEXT_BYTES).context(|| format!("cannot read {}", path.display()))?;
    let current = String::from_utf8_lossy(&current);
    let name = manifest_in(&current).ok_or_else(|| damaged("CURRENT", "it names no MANIFEST"))?;
    let failed = || format!("cannot read {}", directory.join(&name).display());
    let manifest = nofollow::open_regular(&directory.join(&name)).context(failed)?;
    let mut versions = Versions::new();
    match versions.read(manifest).context(failed)?.map_err(|why| damaged(&name, &why))? {
        End::Clean | End::Torn => Ok(versions.into_live_files()),
        End::Damaged => Err(damaged(&name, "it is damaged")),
    }
}

/// The name in CURRENT; `None` unless it is a plain name of a MANIFEST, because it is joined to a path.
pub(crate) fn manifest_in(current: &str) -> Option<String> {
    let name = current.strip_suffix('\n')?;
    let digits = name.strip_prefix("MANIFEST-")?;
    (!digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())).then(|| name.to_owned())
}
