//! Backup identifiers: the only way a name from outside can reach a path.
//!
//! An identifier is 1 to 64 characters of `[a-zA-Z0-9_-]`, the alphabet of the contract, so that it can be joined to the
//! backup directory: it holds no separator, no dot and no NUL. The identifiers that we make are decimal milliseconds since the
//! epoch.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The longest identifier.
const MAX_LENGTH_BYTES: usize = 64;

/// Decimal digits of a millisecond timestamp between the years 2001 and 2286.
const MILLIS_DIGITS: usize = 13;

/// The largest number that counts as an identifier of ours: so there are always larger ones left for new backups.
const MAX_NUMBER: u64 = u64::MAX / 2;

/// The identifier of a backup: a valid name of a directory directly below the backup directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BackupId(String);

impl BackupId {
    /// Parses strictly: anything but 1 to 64 characters of `[a-zA-Z0-9_-]` is no identifier.
    pub fn parse(text: &str) -> Option<BackupId> {
        let valid = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        let ok = !text.is_empty() && text.len() <= MAX_LENGTH_BYTES && text.bytes().all(valid);
        ok.then(|| BackupId(text.to_owned()))
    }

    /// The identifier of a backup created at `unix_ms`, milliseconds since the epoch.
    pub(crate) fn from_millis(unix_ms: u64) -> BackupId {
        BackupId(format!("{unix_ms:0width$}", width = MILLIS_DIGITS))
    }

    /// The time of an identifier in milliseconds. `None` for identifiers of other lengths: the node may write seconds or
    /// microseconds into the same directory.
    pub(crate) fn millis(&self) -> Option<u64> {
        let decimal = self.0.len() == MILLIS_DIGITS && self.0.bytes().all(|b| b.is_ascii_digit());
        decimal.then(|| self.0.parse().ok()).flatten()
    }

    /// The identifier as a number. The identifiers that we make are ordered by it: each is larger than the one before, even if
    /// the clock was set back. A number may have more digits than a present time if an identifier in the directory had them.
    pub(crate) fn number(&self) -> Option<u64> {
        let decimal = self.0.len() >= MILLIS_DIGITS && self.0.bytes().all(|b| b.is_ascii_digit());
        decimal.then(|| self.0.parse().ok()).flatten().filter(|number| *number <= MAX_NUMBER)
    }

    /// The identifier as text, as in URLs and in the name of the directory.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for BackupId {
    type Error = String;

    fn try_from(text: String) -> Result<BackupId, String> {
        BackupId::parse(&text).ok_or_else(|| format!("{text:?} is not a backup identifier"))
    }
}

impl From<BackupId> for String {
    fn from(id: BackupId) -> String {
        id.0
    }
}
