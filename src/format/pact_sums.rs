//! `pact-sums.json`: the sums of the pieces of the Pact databases of a backup (see `disk::piece_sums`). The next backup needs them to
//! tell a piece that has changed from one that is damaged; no backup needs them to be read.
//!
//! ```text
//! { "format": "chainweb-backup/1", "id": "1795727389899", "piece_bytes": 1048576,
//!   "databases": { "pact-v1-chain-0.sqlite": { "bytes": 2097664, "sums": "16 hexadecimal digits for each piece" } },
//!   "folds": { "pact-v1-chain-0.sqlite": { ... } },
//!   "seal": ... }
//! ```
//! `databases` are the files of these names. If the file is the base of a delta pair, `folds` has the sums of the database that the two
//! files of the pair are together: what a restore writes.
//!
//! Invariant: a file with a wrong seal, of another form, or of another backup, has no sums: a damaged sum must not make a good database seem damaged.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::disk::nofollow;
use crate::disk::piece_sums::{PIECE_BYTES, PieceSums};
use crate::error::{IoContext, Result};
use crate::format::layout::PACT_SUMS_FILE;
use crate::format::record::FORMAT;
use crate::format::seal;
use crate::id::BackupId;

/// The largest file that is read: the sums of 4 TB.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// The hexadecimal digits of a sum.
const DIGITS: usize = 16;

/// The sums of the databases of a backup, by the name of the file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct PactSums {
    /// Those of the files.
    pub(crate) files: BTreeMap<String, PieceSums>,
    /// Those of what pairs are together.
    pub(crate) folds: BTreeMap<String, PieceSums>,
    /// The backup whose sums are in its place, if they are whole and those of another one: then there are none here.
    pub(crate) of_another: Option<BackupId>,
}

#[derive(Serialize, Deserialize)]
struct Text {
    format: String,
    id: BackupId,
    piece_bytes: u64,
    databases: BTreeMap<String, TextOfOne>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    folds: BTreeMap<String, TextOfOne>,
}

#[derive(Serialize, Deserialize)]
struct TextOfOne {
    bytes: u64,
    sums: String,
}

impl PactSums {
    /// The bytes of the file.
    pub(crate) fn to_bytes(&self, id: &BackupId) -> Vec<u8> {
        let one = |sums: &PieceSums| {
            let mut text = String::with_capacity(sums.sums.len() * DIGITS);
            sums.sums.iter().for_each(|sum| write!(text, "{sum:016x}").expect("memory takes every byte"));
            TextOfOne { bytes: sums.bytes, sums: text }
        };
        let all = |sums: &BTreeMap<String, PieceSums>| {
            sums.iter().map(|(file, sums)| (file.clone(), one(sums))).collect::<BTreeMap<_, _>>()
        };
        let (databases, folds) = (all(&self.files), all(&self.folds));
        seal::to_bytes(&Text { format: FORMAT.to_owned(), id: id.clone(), piece_bytes: PIECE_BYTES, databases, folds })
    }

    /// Reads those of the backup `id` in `path`; none if there is no such file, or it is damaged.
    ///
    /// # Errors
    /// [`crate::error::Kind::Io`]: the file cannot be read, which says nothing about the sums.
    pub(crate) fn require(path: &Path, id: &BackupId) -> Result<PactSums> {
        let file = path.join(PACT_SUMS_FILE);
        let bytes = match nofollow::read_small(&file, MAX_BYTES) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(PactSums::default()),
            Err(e) if nofollow::is_unfit(&e) => Vec::new(),
            read => read.context(|| format!("cannot read {}", file.display()))?,
        };
        Ok(PactSums::parse(&bytes, id).unwrap_or_else(|| {
            let of_another = PactSums::owner(&bytes);
            let why = if of_another.is_some() { "of another backup" } else { "damaged, or of an unknown form" };
            log::warn!("sums not used path={} reason={why:?}", file.display());
            PactSums { of_another, ..PactSums::default() }
        }))
    }

    /// The same for a caller that can do without them: none if the file cannot be read.
    pub(crate) fn read(path: &Path, id: &BackupId) -> PactSums {
        PactSums::require(path, id).unwrap_or_else(|e| {
            log::warn!("sums not used reason={:?}", e.chain());
            PactSums::default()
        })
    }

    /// Whose sums these bytes are.
    fn owner(bytes: &[u8]) -> Option<BackupId> {
        PactSums::text(bytes).map(|text| text.id)
    }

    fn text(bytes: &[u8]) -> Option<Text> {
        if seal::is_whole(bytes, bytes.len() as u64).ok()? != Some(true) {
            return None;
        }
        let text: Text = serde_json::from_slice(bytes).ok()?;
        (text.format == FORMAT && text.piece_bytes == PIECE_BYTES).then_some(text)
    }

    fn parse(bytes: &[u8], id: &BackupId) -> Option<PactSums> {
        let text = PactSums::text(bytes).filter(|text| text.id == *id)?;
        let one = |TextOfOne { bytes, sums: text }: TextOfOne| {
            let digits = text.as_bytes().chunks(DIGITS);
            let number = |digits: &[u8]| u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
            let sums = digits.map(number).collect::<Option<Vec<u64>>>()?;
            let fits = text.len().is_multiple_of(DIGITS) && sums.len() as u64 == bytes.div_ceil(PIECE_BYTES);
            fits.then_some(PieceSums { bytes, sums })
        };
        let all = |text: BTreeMap<String, TextOfOne>| {
            text.into_iter().map(|(file, text)| Some((file, one(text)?))).collect::<Option<BTreeMap<_, _>>>()
        };
        Some(PactSums { files: all(text.databases)?, folds: all(text.folds)?, of_another: None })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_read_as_they_were_written_or_not_at_all() {
        let one = |bytes: u64| PieceSums { bytes, sums: (0..bytes.div_ceil(PIECE_BYTES)).map(|n| n * n + 7).collect() };
        let files = [("a".to_owned(), one(3 * PIECE_BYTES + 512)), ("b".to_owned(), one(0))].into();
        let plain = PactSums { files, ..PactSums::default() };
        let bytes = plain.to_bytes(&BackupId::from_millis(5));
        // As a release without pairs wrote it.
        assert!(!String::from_utf8_lossy(&bytes).contains("folds"));
        let sums = PactSums { folds: [("a".to_owned(), one(5 * PIECE_BYTES))].into(), ..plain };
        let id = BackupId::from_millis(5);
        let bytes = sums.to_bytes(&id);
        assert_eq!(PactSums::parse(&bytes, &id), Some(sums));
        assert_eq!(PactSums::parse(&bytes, &BackupId::from_millis(6)), None);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(PactSums::parse(&damaged, &id), None, "byte {at}");
        }
        let text = |digits: &str, bytes: u64| {
            let one = TextOfOne { bytes, sums: digits.to_owned() };
            let databases = [("a".to_owned(), one)].into();
            let (format, folds) = (FORMAT.to_owned(), BTreeMap::new());
            seal::to_bytes(&Text { format, id: id.clone(), piece_bytes: PIECE_BYTES, databases, folds })
        };
        for (digits, bytes) in
            [("0", 1), ("", 1), ("000000000000000g", 1), ("00000000000000000", 1), ("0000000000000000", 0)]
        {
            assert_eq!(PactSums::parse(&text(digits, bytes), &id), None, "{digits}");
        }
        assert!(PactSums::parse(&text("0000000000000000", 1), &id).is_some());
    }
}
