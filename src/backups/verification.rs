//! The result of a verification.
//!
//! Invariants
//! - A fault for which a `BLAKE2SUMS` is the only evidence is known as such, and is never noted in another backup.
//! - A file that the disk cannot read, at two times, is damaged: it cannot be restored. If it can be read at the second time, it is
//!   neither good nor damaged.
//! - Damage that was found is in the result, also if the verification could not go on: then it is not whole, and a note says why.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::take;
use std::path::Path;

use serde::Serialize;

use crate::chainweb::{self, ROCKSDB};
use crate::control::Control;
use crate::disk::medium;
use crate::disk::quiet_reader::PageCache;
use crate::disk::sum;
use crate::error::{Error, Kind, Result};
use crate::fault::{Fault, Inspected};
use crate::format::layout::{SUMS_FILE, WHOLE};
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
    /// Notes that are no faults of the backup: defects of `BLAKE2SUMS`, and why the verification is not whole.
    pub notes: Vec<Fault>,
    /// Whether it ended before everything was looked at, because of an error.
    #[serde(skip)]
    is_partial: bool,
    /// The files with a fault for which `BLAKE2SUMS` is the only evidence.
    #[serde(skip)]
    by_list: BTreeSet<String>,
    /// The files that could not be read, and why, until they are read again.
    #[serde(skip)]
    unread: BTreeMap<String, String>,
    /// The files whose own bytes are wrong or lost: every backup with the same file has the fault.
    #[serde(skip)]
    in_content: BTreeSet<String>,
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

    /// Adds a fault of the bytes of a file, which every backup with the same file has.
    pub(crate) fn fault_of_content(&mut self, fault: Fault) {
        self.in_content.insert(fault.file.clone());
        self.faults.push(fault);
    }

    /// The files with such a fault.
    pub(crate) fn damaged_in_content(&self) -> Vec<&str> {
        self.in_content.iter().map(String::as_str).collect()
    }

    /// Whether the file has a fault, or could not be read.
    pub(crate) fn names(&self, file: &str) -> bool {
        self.unread.contains_key(file) || self.faults.iter().any(|fault| fault.file == file)
    }

    /// Whether nothing is wrong so far.
    pub(crate) fn is_good(&self) -> bool {
        self.faults.is_empty() && self.unread.is_empty()
    }

    /// What was read from a file; `None` if the disk has lost it. Then [`Verification::settle_unread`] decides.
    pub(crate) fn read<T>(&mut self, file: &str, read: Result<T>) -> Result<Option<T>> {
        match read {
            Err(e) if medium::is_lost(&e) => {
                self.cannot_read(file, e.chain());
                Ok(None)
            }
            read => read.map(Some),
        }
    }

    /// Notes that a file could not be read.
    pub(crate) fn cannot_read(&mut self, file: impl Into<String>, why: String) {
        self.unread.insert(file.into(), why);
    }

    /// Takes what RocksDB found when it read every block; returns whether all is good.
    ///
    /// # Errors
    /// [`Kind::Io`] if RocksDB could not read a file, does not say which, and nothing else explains it.
    pub(crate) fn take_inspected(&mut self, inspected: Inspected) -> Result<bool> {
        let Inspected { keys_count, faults, unread } = inspected;
        let is_good = faults.is_empty() && unread.is_empty();
        self.keys_count = keys_count;
        self.faults.extend(faults.into_iter().map(Fault::of_rocksdb));
        unread.into_iter().try_for_each(|fault| self.cannot_read_by_rocksdb(fault))?;
        Ok(is_good)
    }

    /// Notes that RocksDB could not read a file.
    ///
    /// # Errors
    /// As [`Verification::take_inspected`].
    pub(crate) fn cannot_read_by_rocksdb(&mut self, Fault { file, why }: Fault) -> Result<()> {
        if !file.is_empty() {
            self.cannot_read(chainweb::path_in(ROCKSDB, &file), why);
        } else if self.is_good() {
            return Err(Error::new(Kind::Io, why));
        }
        Ok(())
    }

    /// Whether it ended before everything was looked at.
    pub(crate) fn is_partial(&self) -> bool {
        self.is_partial
    }

    /// The result of a verification that ended so: damage that was found counts, even if it could not go on.
    pub(crate) fn ended(mut self, end: Result<()>) -> Result<Verification> {
        match end {
            Err(e) if self.faults.is_empty() => return Err(e),
            Err(e) => {
                let why = format!("the verification is not whole: {}", e.chain());
                self.notes.push(Fault { file: WHOLE.to_owned(), why });
                self.is_partial = true;
            }
            Ok(()) => {}
        }
        Ok(self)
    }

    /// Reads the files of the backup in `path` again that could not be read: one that the disk still cannot read is damaged.
    ///
    /// # Errors
    /// [`Kind::Io`] if one can be read now: it may be good. If a reading ends with another error, the others are read all the same.
    pub(crate) fn settle_unread(&mut self, path: &Path, control: &Control) -> Result<()> {
        let mut unsettled = Ok(());
        for (file, why) in take(&mut self.unread) {
            match sum::of(&path.join(&file), PageCache::Unchanged, &control.another()) {
                Err(e) if medium::is_lost(&e) => {
                    // A Pact database may be the base of pairs in other backups.
                    let why = format!("the disk cannot read it: {}", e.chain());
                    self.fault_of_content(Fault { file, why });
                }
                Err(e) => unsettled = unsettled.and(Err(e)),
                Ok(_) => {
                    let context =
                        format!("{file} could be read only at the second time: check the disk, then try again");
                    unsettled = unsettled.and(Err(Error::new(Kind::Io, context).because(why)));
                }
            }
        }
        unsettled
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A file that could not be read has another error at the second reading: that does not hide damage that was found before.
    #[test]
    fn an_error_of_the_second_reading_hides_no_damage() {
        let mut verification = Verification::default();
        verification.cannot_read("a file that is gone", "an error of the disk".to_owned());
        let settled = verification.settle_unread(Path::new("/nonexistent"), &Control::default());
        assert_eq!(verification.ended(settled).unwrap_err().io_kind(), Some(std::io::ErrorKind::NotFound));

        let mut verification = Verification::default();
        verification.fault("a", "it is damaged");
        verification.cannot_read("b", "an error of the disk".to_owned());
        let settled = verification.settle_unread(Path::new("/nonexistent"), &Control::default());
        let ended = verification.ended(settled).unwrap();
        assert_eq!((ended.faults.len(), ended.notes.len(), ended.is_partial), (1, 1, true));
    }
}
