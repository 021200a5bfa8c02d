//! Compares the Pact databases of a backup with the sums of their pieces, which were computed when they were copied: SQLite's pages have
//! no checksums of their own.

use std::path::Path;

use crate::chainweb::{self, SQLITE};
use crate::control::Control;
use crate::disk::piece_sums::PieceSums;
use crate::error::Result;
use crate::fault::Fault;
use crate::format::pact_sums::PactSums;
use crate::id::BackupId;

/// The first fault of each of these databases of the backup `id` in `path`; reads all of them that have sums.
pub(crate) fn faults((id, path): (&BackupId, &Path), databases: &[&str], control: &Control) -> Result<Vec<Fault>> {
    let recorded = PactSums::read(path, id);
    let mut faults = Vec::new();
    for file in databases {
        let Some(expected) = chainweb::name_in(SQLITE, file).and_then(|name| recorded.files.get(name)) else {
            continue;
        };
        let found = PieceSums::of_file(&path.join(file), control)?;
        faults.extend(expected.difference(&found).map(|why| Fault { file: (*file).to_owned(), why }));
    }
    Ok(faults)
}
