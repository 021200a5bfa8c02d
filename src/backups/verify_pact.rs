//! The deep verification of the Pact databases of a backup. Each is read once from beginning to end, for its checksum and for the sums of its
//! pieces, which were computed when it was copied: SQLite's pages have no checksums of their own. Then SQLite checks it while it is in the
//! page cache, because SQLite reads it in no order.

use std::path::Path;

use crate::backups::verification::Verification;
use crate::capture::sqlite::{finished, history};
use crate::chainweb::{self, SQLITE};
use crate::control::Control;
use crate::disk::quiet_reader::{self, PageCache};
use crate::disk::sum::{self, Sum};
use crate::error::{Kind, Result};
use crate::fault::Fault;
use crate::format::layout::{PACT_SUMS_FILE, SUMS_FILE};
use crate::format::pact_sums::PactSums;
use crate::format::record::{Method, Record};

/// What is wrong in a database.
pub(crate) enum Defect {
    /// Its bytes, in every backup that has the same file.
    Content(String),
    /// What SQLite says of it.
    Structure(String),
}

impl Defect {
    /// Adds it to the faults of the file.
    pub(crate) fn note(self, file: &str, result: &mut Verification) {
        match self {
            Defect::Content(why) => result.fault_of_content(Fault { file: file.to_owned(), why }),
            Defect::Structure(why) => result.fault(file, why),
        }
    }
}

/// Checks the database at `place`, `0/sqlite/...` in its backup; also returns its checksum.
pub(crate) fn check(
    place: &Path,
    (file, recorded): (&str, &PactSums),
    control: &Control,
) -> Result<(Sum, Option<Defect>)> {
    let (sum, pieces) = sum::with_pieces(place, PageCache::Filled, control)?;
    let expected = chainweb::name_in(SQLITE, file).and_then(|name| recorded.files.get(name));
    let defect = match expected.and_then(|expected| expected.difference(&pieces)) {
        Some(why) => Ok(Some(Defect::Content(why))),
        None => finished::integrity_fault(place, control).map(|why| why.map(Defect::Structure)),
    };
    quiet_reader::forget_cached(place);
    Ok((sum, defect?))
}

/// An increment has sums: if they are gone, that is noted. Those of another backup are a fault: what they belong to may be here, too.
pub(crate) fn note_missing(record: &Record, recorded: &PactSums, result: &mut Verification) {
    if let Some(other) = recorded.of_another.as_ref().filter(|_| !result.names(PACT_SUMS_FILE)) {
        result.fault(PACT_SUMS_FILE, format!("it is that of backup {other}"));
        return;
    }
    let has_sum = |file: &String| recorded.files.contains_key(file);
    if record.pact.iter().any(|part| part.method == Method::Increment && !has_sum(&part.file)) {
        let why = format!(
            "it is missing or damaged, or lacks an increment: without it a changed byte within a row is found only by a {SUMS_FILE}"
        );
        result.notes.push(Fault { file: PACT_SUMS_FILE.to_owned(), why });
    }
}

/// Compares the newest block of each database of the backup in `path` with that of the record, up to the first fault.
pub(crate) fn compare_heights(
    (record, path): (&Record, &Path),
    databases: &[&str],
    result: &mut Verification,
) -> Result<()> {
    for name in databases {
        let part = record.pact.iter().find(|part| name.ends_with(&format!("/{}", part.file)));
        let Some(part) = part.filter(|_| result.is_good()) else { continue };
        let newest = match result.read(name, history::newest_block(&path.join(name))) {
            Err(e) if e.kind() == Kind::Damaged => {
                result.fault(*name, e.chain());
                continue;
            }
            newest => newest?.flatten(),
        };
        let height = newest.map(|(height, _)| height);
        if height != part.block_height && result.is_good() {
            let (height, expected) = (height.unwrap_or(0), part.block_height.unwrap_or(0));
            let why = format!("its newest block is at height {height} instead of the {expected} in the record");
            result.fault(*name, why);
        }
    }
    Ok(())
}
