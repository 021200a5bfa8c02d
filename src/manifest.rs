//! `manifest.json`: every file of a finished backup. Written and synced before the backup gets its final name.

use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, IoContext, Kind, Result};
use crate::record::{FORMAT, Method};
use crate::seal;

/// Name of the file, beside `backup.json`.
pub(crate) const MANIFEST_FILE: &str = "manifest.json";

/// One file of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Path below the backup's directory, `0/rocksDb/000012.sst`.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// How it came here.
    pub method: Method,
    /// BLAKE2b-512 in hexadecimal, where it was computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake2b: Option<String>,
}

/// The content of `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Our mark.
    pub format: String,
    /// Every file, sorted by path.
    pub files: Vec<Entry>,
}

impl Manifest {
    /// Lists what lies below `0.partial`, under the names that it will have; `method_of` tells how a file came.
    /// Anything but regular files and directories is an error: nobody of ours makes such a thing.
    pub(crate) fn of(partial: &Path, method_of: &dyn Fn(&str) -> Method) -> Result<Manifest> {
        let mut files = Vec::new();
        let mut pending = vec![PathBuf::new()];
        while let Some(below) = pending.pop() {
            let directory = partial.join(&below);
            let failed = || format!("cannot list {}", directory.display());
            for entry in std::fs::read_dir(&directory).context(failed)? {
                let entry = entry.context(failed)?;
                let name = below.join(entry.file_name());
                let meta = entry.metadata().context(failed)?;
                if meta.is_dir() {
                    pending.push(name);
                } else if meta.is_file() {
                    let path = format!("0/{}", name.display());
                    files.push(Entry { method: method_of(&path), path, bytes: meta.len(), blake2b: None });
                } else {
                    let context = format!("{} is neither a file nor a directory", entry.path().display());
                    return Err(Error::new(Kind::Damaged, context));
                }
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Manifest { format: FORMAT.to_owned(), files })
    }

    /// Reads a `manifest.json`; `None` where it is not ours: broken, or of another format. An error says that it could not
    /// be read.
    pub(crate) fn read(from: impl Read) -> io::Result<Option<Manifest>> {
        // Not in one piece: for many files it is large.
        match serde_json::from_reader::<_, Manifest>(BufReader::new(from)) {
            Err(e) if e.is_io() => Err(e.into()),
            Ok(mut manifest) if manifest.format == FORMAT => {
                manifest.files.sort_by(|a, b| a.path.cmp(&b.path));
                Ok(Some(manifest))
            }
            _ => Ok(None),
        }
    }

    /// The file of this path.
    pub(crate) fn find(&self, path: &str) -> Option<&Entry> {
        let found = self.files.binary_search_by(|file| file.path.as_str().cmp(path)).ok()?;
        Some(&self.files[found])
    }

    /// Sizes of all files added up.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.bytes))
    }

    /// Writes `manifest.json`, which for many files is large.
    pub(crate) fn write(&self, to: &mut dyn Write) -> io::Result<()> {
        seal::write(self, to)
    }
}
