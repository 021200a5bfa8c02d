//! Compares the Pact databases of a backup with the sums of their pieces, which were computed when they were copied: SQLite's pages have
//! no checksums of their own.

use std::path::Path;

use crate::chainweb::{self, SQLITE};
use crate::control::Control;
use crate::disk::piece_sums::{PIECE_BYTES, PieceSums};
use crate::error::Result;
use crate::fault::Fault;
use crate::format::pact_sums::PactSums;
use crate::id::BackupId;

/// The first fault of each of these databases of the backup `id` in `path`; reads all of them that have sums.
pub(crate) fn faults((id, path): (&BackupId, &Path), databases: &[&str], control: &Control) -> Result<Vec<Fault>> {
    let recorded = PactSums::read(path, id);
    let mut faults = Vec::new();
    for file in databases {
        let Some(expected) = chainweb::name_in(SQLITE, file).and_then(|name| recorded.0.get(name)) else { continue };
        let found = PieceSums::of_file(&path.join(file), control)?;
        let differing = expected.sums.iter().zip(&found.sums).position(|(expected, found)| expected != found);
        let why = match differing {
            Some(piece) => {
                let start = piece as u64 * PIECE_BYTES;
                format!("the {PIECE_BYTES} bytes from byte {start} on differ from their recorded sum")
            }
            None if found.bytes != expected.bytes => {
                format!("it has {} bytes instead of the recorded {}", found.bytes, expected.bytes)
            }
            None => continue,
        };
        faults.push(Fault { file: (*file).to_owned(), why });
    }
    Ok(faults)
}
