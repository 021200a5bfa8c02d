//! `manifest.json`: every file of a finished backup. Written and synced before the backup gets its final name.
//!
//! A backup may have a hundred thousand files. So a list of files has all names in one text, and a `manifest.json` is written and
//! read file by file. Invariant: a list is sorted by path.

use std::fmt;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::chainweb;
use crate::disk::nofollow;
use crate::disk::off_heap;
use crate::disk::sum::{Known, Sum};
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::record::{FORMAT, Method};
use crate::format::seal;
use crate::units::total;

/// One file of a backup in `manifest.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Entry<Text> {
    /// Path below the backup's directory, `0/rocksDb/000012.sst`.
    pub(crate) path: Text,
    pub(crate) bytes: u64,
    /// How it was put into the backup.
    pub(crate) method: Method,
    /// Its checksum, if it was computed: for RocksDB's files, except links to the node's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) blake2b: Option<Sum>,
    /// When it was last read whole and had this checksum: milliseconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) read_ms: Option<u64>,
}

/// A list of the files of a backup.
#[derive(Debug)]
pub(crate) struct Manifest {
    paths: String,
    rows: Vec<Row>,
    /// The checksums of the files that have one.
    known: Vec<Known>,
}

/// Marks a file without a checksum.
const UNKNOWN: u32 = u32::MAX;

#[derive(Debug)]
struct Row {
    /// The beginning of its path in the text, and the length of the path.
    start: usize,
    length: u32,
    /// The index of its checksum.
    known: u32,
    method: Method,
    bytes: u64,
}

impl Manifest {
    /// Lists the files below `0.partial`, under the names that they will have; `method_of` returns how a file was put there.
    /// Anything but regular files and directories is an error: we make no others.
    pub(crate) fn of(partial: &Path, method_of: &dyn Fn(&str) -> Method) -> Result<Manifest> {
        let (manifest, others) = Manifest::list(partial, method_of)?;
        match others.first() {
            None => Ok(manifest),
            Some(other) => {
                let below = chainweb::below_place(other).unwrap_or(other);
                let context = format!("{} is neither a file nor a directory", partial.join(below).display());
                Err(Error::new(Kind::Damaged, context))
            }
        }
    }

    /// Lists the files below the `0` of a finished backup, and the paths of anything that is neither a file nor a directory.
    pub(crate) fn found(whole: &Path) -> Result<(Manifest, Vec<String>)> {
        Manifest::list(whole, &|_| Method::Copied)
    }

    fn list(partial: &Path, method_of: &dyn Fn(&str) -> Method) -> Result<(Manifest, Vec<String>)> {
        let mut others = Vec::new();
        let mut manifest = Manifest { paths: off_heap::text(), rows: off_heap::list(), known: Vec::new() };
        let mut pending = vec![PathBuf::new()];
        while let Some(below) = pending.pop() {
            let directory = partial.join(&below);
            let failed = || format!("cannot list {}", directory.display());
            for entry in nofollow::entries(&directory).context(failed)? {
                let (name, stat) = entry.context(failed)?;
                let name = below.join(name);
                let path = chainweb::path_of(&name.display().to_string());
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => pending.push(name),
                    FileType::RegularFile => manifest.push(&path, stat.st_size.cast_unsigned(), method_of(&path)),
                    _ => others.push(path),
                }
            }
        }
        let paths = &manifest.paths;
        manifest.rows.sort_unstable_by(|a, b| a.path(paths).cmp(b.path(paths)));
        Ok((manifest, others))
    }

    fn push(&mut self, path: &str, bytes: u64, method: Method) {
        // PATH_MAX is much smaller.
        let length = u32::try_from(path.len()).unwrap_or(u32::MAX);
        self.rows.push(Row { start: self.paths.len(), length, known: UNKNOWN, method, bytes });
        self.paths.push_str(path);
    }

    /// Notes the checksum of the file with this index.
    pub(crate) fn know(&mut self, at: usize, known: Known) {
        if self.known.is_empty() {
            self.known = off_heap::list();
        }
        self.rows[at].known = u32::try_from(self.known.len()).unwrap_or(UNKNOWN);
        self.known.push(known);
    }

    /// Every file, by path.
    pub(crate) fn files(&self) -> impl Iterator<Item = Entry<&str>> {
        (0..self.rows.len()).map(|at| self.file(at))
    }

    /// The file with this index.
    pub(crate) fn file(&self, at: usize) -> Entry<&str> {
        let row = &self.rows[at];
        let known = self.known.get(row.known as usize);
        Entry {
            path: row.path(&self.paths),
            bytes: row.bytes,
            method: row.method,
            blake2b: known.map(|known| known.sum),
            read_ms: known.map(|known| known.read_ms).filter(|ms| *ms > 0),
        }
    }

    /// The index of this path.
    pub(crate) fn find(&self, path: &str) -> Option<usize> {
        self.rows.binary_search_by(|row| row.path(&self.paths).cmp(path)).ok()
    }

    /// The size of the file of this path.
    pub(crate) fn bytes_of(&self, path: &str) -> Option<u64> {
        self.find(path).map(|at| self.rows[at].bytes)
    }

    /// Number of files.
    pub(crate) fn count(&self) -> usize {
        self.rows.len()
    }

    /// The sum of the sizes of all files.
    pub(crate) fn bytes(&self) -> u64 {
        total(self.rows.iter().map(|row| row.bytes))
    }

    /// Writes `manifest.json`: one line per file.
    pub(crate) fn write(&self, to: &mut dyn Write) -> io::Result<()> {
        seal::write_by(to, &|to| {
            write!(to, "{{\n  \"format\": \"{FORMAT}\",\n  \"files\": [")?;
            for (at, file) in self.files().enumerate() {
                to.write_all(if at == 0 { b"\n    " } else { b",\n    " })?;
                serde_json::to_writer(&mut *to, &file)?;
            }
            to.write_all(b"\n  ]\n}")
        })
    }
}

impl Row {
    fn path<'a>(&self, paths: &'a str) -> &'a str {
        &paths[self.start..self.start + self.length as usize]
    }
}

/// Reads a `manifest.json` and gives every file to `take`. `false` if it is not ours: broken, or of another format; then the
/// entries that were given must be ignored. An error means that it could not be read.
pub(crate) fn read_each(from: impl Read, take: &mut dyn FnMut(Entry<String>)) -> io::Result<bool> {
    let mut json = serde_json::Deserializer::from_reader(BufReader::new(from));
    match json.deserialize_map(Reading { take }).and_then(|is_ours| json.end().map(|()| is_ours)) {
        Err(e) if e.is_io() => Err(e.into()),
        other => Ok(other.unwrap_or(false)),
    }
}

struct Reading<'a> {
    take: &'a mut dyn FnMut(Entry<String>),
}

impl<'de> Visitor<'de> for Reading<'_> {
    /// Whether the object is a manifest of ours.
    type Value = bool;

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("the object of a manifest")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<bool, M::Error> {
        let (mut is_ours, mut has_files) = (false, false);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "format" => is_ours = map.next_value::<String>()? == FORMAT,
                "files" => {
                    map.next_value_seed(Files { take: &mut *self.take })?;
                    has_files = true;
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(is_ours && has_files)
    }
}

struct Files<'a> {
    take: &'a mut dyn FnMut(Entry<String>),
}

impl<'de> DeserializeSeed<'de> for Files<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> std::result::Result<(), D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Files<'_> {
    type Value = ();

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("the files of a manifest")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut files: S) -> std::result::Result<(), S::Error> {
        while let Some(file) = files.next_element()? {
            (self.take)(file);
        }
        Ok(())
    }
}
