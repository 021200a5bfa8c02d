//! The OPTIONS files of a RocksDB: the options that the node opened it with, in RocksDB's own words.
//!
//! Invariant: what they say is a hint. A file that is missing or cannot be read says nothing.

use std::path::Path;

use crate::database_files::options_number;
use crate::disk::nofollow;

/// The largest CURRENT and OPTIONS that are read; real ones have 16 bytes and some KiB.
pub(crate) const MAX_TEXT_BYTES: u64 = 4 * 1024 * 1024;

/// The value of an option in the newest OPTIONS file of a finished copy; `None` if there is no such file or no such line.
pub(crate) fn option_in(copy: &Path, key: &str) -> Option<String> {
    let names = nofollow::entries(copy).ok()?.filter_map(|entry| entry.ok()?.0.into_string().ok());
    let (_, newest) = names.filter_map(|name| Some((options_number(&name)?, name))).max()?;
    let text = nofollow::read_small(&copy.join(newest), MAX_TEXT_BYTES).ok()?;
    let text = String::from_utf8_lossy(&text);
    let value = text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))?;
    Some(value.to_owned())
}
