//! What the texts of a RocksDB directory say: its live files, from CURRENT and MANIFEST, and the options of the node.
//!
//! Invariant: only regular files are read, no link is followed, and nothing is changed.

use std::path::Path;

use crate::capture::rocksdb::live_directories::{MAX_TEXT_BYTES, is_options};
use crate::capture::rocksdb::log_format::End;
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

/// The value of an option in the newest OPTIONS file of a finished copy; `None` if there is no such file or no such line.
pub(crate) fn option_in(copy: &Path, key: &str) -> Option<String> {
    let names = nofollow::entries(copy).ok()?.filter_map(|entry| entry.ok()?.0.into_string().ok());
    // A longer number is a larger one.
    let newest = names.filter(|name| is_options(name)).max_by_key(|name| (name.len(), name.clone()))?;
    let text = nofollow::read_small(&copy.join(newest), MAX_TEXT_BYTES).ok()?;
    let text = String::from_utf8_lossy(&text);
    let value = text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))?;
    Some(value.to_owned())
}
