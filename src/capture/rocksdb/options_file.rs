//! The OPTIONS files of a RocksDB: the options that the node opened it with, in RocksDB's own words.
//!
//! Invariant: what they say is a hint. A file that is missing or cannot be read says nothing.

use std::path::Path;

use crate::disk::nofollow;

/// The largest CURRENT and OPTIONS that are read; real ones have 16 bytes and some KiB.
pub(crate) const MAX_TEXT_BYTES: u64 = 4 * 1024 * 1024;

pub(crate) fn is_options(name: &str) -> bool {
    name.strip_prefix("OPTIONS-").is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
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
