//! The result of a verification.
//!
//! Invariant: a fault for which a `BLAKE2SUMS` is the only evidence is known as such, and is never noted in another backup.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::error::{Error, Kind, Result};
use crate::fault::Fault;
use crate::format::layout::SUMS_FILE;
use crate::format::start_proof::StartProof;

/// The result of a verification.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Verification {
    /// The number of files that were checked.
    pub files_count: u64,
    /// The sum of their sizes.
    pub bytes: u64,
    /// The number of files whose checksum was compared.
    pub sums_count: u64,
    /// The number of keys that were read from RocksDB.
    pub keys_count: u64,
    /// Empty if the backup is good.
    pub faults: Vec<Fault>,
    /// Defects of `BLAKE2SUMS`; they are no faults of the backup.
    pub notes: Vec<Fault>,
    /// The files with a fault for which `BLAKE2SUMS` is the only evidence.
    #[serde(skip)]
    by_list: BTreeSet<String>,
    /// The Pact databases with a fault in a piece: every backup with the same file has it.
    #[serde(skip)]
    in_pieces: BTreeSet<String>,
    /// Whether a node starts from the backup; absent if that was not asked, or if there are faults.
    pub starts: Option<StartProof>,
    /// Files that are not part of the backup, such as a publisher's; they are not faults.
    pub extras: Vec<String>,
}

impl Verification {
    pub(crate) fn fault(&mut self, file: impl Into<String>, why: impl Into<String>) {
        self.faults.push(Fault { file: file.into(), why: why.into() });
    }

    /// The faults that every backup with the same file has: there is evidence for them in the content, not only in a list.
    pub(crate) fn shared_faults(&self) -> Vec<Fault> {
        self.faults.iter().filter(|fault| !self.by_list.contains(&fault.file)).cloned().collect()
    }

    /// Adds the fault of a Pact database of which a piece differs from its sum.
    pub(crate) fn fault_of_pieces(&mut self, fault: Fault) {
        self.in_pieces.insert(fault.file.clone());
        self.faults.push(fault);
    }

    /// The databases with such a fault.
    pub(crate) fn damaged_in_pieces(&self) -> Vec<&str> {
        self.in_pieces.iter().map(String::as_str).collect()
    }

    /// Whether the file has a fault.
    pub(crate) fn names(&self, file: &str) -> bool {
        self.faults.iter().any(|fault| fault.file == file)
    }

    /// Adds the faults of files whose checksum differs only from that in the list.
    pub(crate) fn faults_by_list(&mut self, files: Vec<String>) {
        for file in files {
            if !self.names(&file) {
                self.fault(file.clone(), format!("its checksum differs from that in {SUMS_FILE}"));
                self.by_list.insert(file);
            }
        }
    }
}

/// Fails with [`Kind::Damaged`] if there is a fault.
pub(crate) fn require_good(verification: &Verification) -> Result<()> {
    match verification.faults.first() {
        None => Ok(()),
        Some(first) => {
            let count = verification.faults.len();
            Err(Error::new(Kind::Damaged, format!("the backup is damaged: {count} faults, the first is: {first}")))
        }
    }
}
