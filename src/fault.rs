//! A fault of a backup: the file, and the reason.
//!
//! Invariant: a fault names its file in a field of its own. Code that acts on a fault (notes it in the backups that have the
//! same file, copies the file anew) compares that field, never the sentence.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::chainweb::{self, ROCKSDB};
#[cfg(any(feature = "engine", test))]
use crate::database_files::immutable_number;
use crate::database_files::is_immutable;

/// A fault of one file of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Its path below the backup's directory: `0/rocksDb/000012.sst`, `backup.json`; `0/rocksDb` if RocksDB names no file.
    pub file: String,
    /// The reason, in words.
    pub why: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file, self.why)
    }
}

/// The result of reading every block of a finished copy with RocksDB.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Inspected {
    pub(crate) keys_count: u64,
    /// Their files are names in the directory of the copy; empty if RocksDB names no file.
    pub(crate) faults: Vec<Fault>,
    /// Files that RocksDB could not read because the operating system reported an error: that says nothing about their content.
    #[serde(default)]
    pub(crate) unread: Vec<Fault>,
}

impl Fault {
    /// A fault of a file in RocksDB's directory, or of the whole directory if `name` is empty.
    pub(crate) fn of_rocksdb(Fault { file: name, why }: Fault) -> Fault {
        Fault { file: chainweb::path_in(ROCKSDB, &name), why }
    }

    /// The name of the SST or blob file that it is in.
    pub(crate) fn table(&self) -> Option<&str> {
        chainweb::name_in(ROCKSDB, &self.file).filter(|name| is_immutable(name))
    }
}

/// The SST or blob file that an error message of RocksDB names: RocksDB does not report the file in any other way.
#[cfg(any(feature = "engine", test))]
pub(crate) fn table_in(sentence: &str) -> Option<String> {
    let words = sentence.split_whitespace().map(|word| word.trim_end_matches(['.', ',', ':', ';', ')', '\'', '"']));
    let mut names = words.map(|word| word.rsplit('/').next().unwrap_or(word));
    names.rfind(|name| immutable_number(name).is_some()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::table_in;

    #[test]
    fn the_file_in_a_sentence_of_rocksdb_is_found_whole() {
        for (sentence, name) in [
            (
                "Corruption: block checksum mismatch: stored = 1, computed = 2, type = 4  in /b/0/rocksDb/1000012.sst offset 0 size 9",
                Some("1000012.sst"),
            ),
            (
                "Corruption: Sst file size mismatch: /a b/000010.sst. Size recorded in manifest 5, actual size 4",
                Some("000010.sst"),
            ),
            ("IO error: No such file or directory: While open a file: /x/000012.sst: No such file", Some("000012.sst")),
            ("Corruption: bad thing in x000012.sst and in 12.sstx", None),
            ("Corruption: MANIFEST is cut off", None),
        ] {
            assert_eq!(table_in(sentence).as_deref(), name, "{sentence}");
        }
    }
}
