//! Compares the Pact databases of a backup with the sums of their pieces, which were computed when they were copied: SQLite's pages have
//! no checksums of their own.

use std::path::Path;

use crate::backups::verification::Verification;
use crate::chainweb::{self, SQLITE};
use crate::control::Control;
use crate::disk::piece_sums::PieceSums;
use crate::error::Result;
use crate::fault::Fault;
use crate::format::layout::{PACT_SUMS_FILE, SUMS_FILE};
use crate::format::pact_sums::PactSums;
use crate::format::record::{Method, Record};

/// Finds the first fault of each of these databases of the backup in `path`, whose sums are given; reads all of them that have sums. An increment has sums: if
/// they are gone, that is noted.
pub(crate) fn check(
    (record, recorded, path): (&Record, &PactSums, &Path),
    databases: &[&str],
    result: &mut Verification,
    control: &Control,
) -> Result<()> {
    for file in databases {
        let expected = chainweb::name_in(SQLITE, file).and_then(|name| recorded.files.get(name));
        let Some(expected) = expected.filter(|_| !result.names(file)) else { continue };
        let Some(found) = result.read(file, PieceSums::of_file(&path.join(file), control))? else { continue };
        if let Some(why) = expected.difference(&found) {
            result.fault_of_content(Fault { file: (*file).to_owned(), why });
        }
    }
    let has_sum = |file: &String| recorded.files.contains_key(file);
    if record.pact.iter().any(|part| part.method == Method::Increment && !has_sum(&part.file)) {
        let why = format!(
            "it is missing or damaged, or lacks an increment: without it a changed byte within a row is found only by a {SUMS_FILE}"
        );
        result.notes.push(Fault { file: PACT_SUMS_FILE.to_owned(), why });
    }
    Ok(())
}
