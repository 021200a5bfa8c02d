//! Checksums as the community publishes them: `BLAKE2SUMS` in a directory, in the format of coreutils' `b2sum`, so that
//! `b2sum -c BLAKE2SUMS` checks it.
//!
//! Invariants: the file appears by one atomic rename, with every file of the directory in it, and is the only thing that
//! is added to a backup after its commit. A file that another backup of the catalog has under another name but as the
//! same inode is not read again.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use blake2b_simd::State;

use crate::catalog::Catalog;
use crate::commit::WHOLE;
use crate::control::Control;
use crate::disk;
use crate::error::{Error, IoContext, Kind, Result};

/// Name of the file, as the community has it.
pub(crate) const SUMS_FILE: &str = "BLAKE2SUMS";

/// One read while a sum is computed.
const CHUNK_BYTES: usize = 256 * 1024;

/// The BLAKE2b-512 of a file, in hexadecimal.
pub(crate) fn of(path: &Path, control: &Control) -> Result<String> {
    let failed = || format!("cannot read {}", path.display());
    let mut file = File::open(path).context(failed)?;
    let mut state = State::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        control.check()?;
        match file.read(&mut chunk).context(failed)? {
            0 => return Ok(state.finalize().to_hex().to_string()),
            count => {
                state.update(&chunk[..count]);
                control.add_done(count as u64);
            }
        }
    }
}

/// Reads the sums of a directory, by file name; `None` where it has none.
pub(crate) fn read(directory: &Path) -> Result<Option<BTreeMap<String, String>>> {
    let path = directory.join(SUMS_FILE);
    let text = match fs::read(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.context(|| format!("cannot read {}", path.display()))?,
    };
    let broken = |line: usize| Error::new(Kind::Damaged, format!("{} is broken in line {line}", path.display()));
    let text = String::from_utf8(text).map_err(|_| broken(1))?;
    text.lines().enumerate().map(|(i, line)| parse(line).ok_or_else(|| broken(i + 1))).collect::<Result<_>>().map(Some)
}

/// One line of `b2sum`: the sum, a blank, a blank or an asterisk, the name. The name must be a plain one.
fn parse(line: &str) -> Option<(String, String)> {
    let (sum, name) = line.split_once(' ')?;
    let name = name.strip_prefix([' ', '*'])?;
    let is_sum = sum.len() == 128 && sum.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let is_plain = !name.is_empty() && !name.contains('/') && name != "." && name != "..";
    (is_sum && is_plain).then(|| (name.to_owned(), sum.to_owned()))
}

/// Writes the missing `BLAKE2SUMS` of a finished backup; returns how many files were read for it.
pub(crate) fn write(catalog: &Catalog, path: &Path, control: &Control) -> Result<u64> {
    let mut read_count = 0;
    let known = known(catalog)?;
    for name in ["rocksDb", "sqlite"] {
        let directory = path.join(WHOLE).join(name);
        if !directory.is_dir() || directory.join(SUMS_FILE).exists() {
            continue;
        }
        let mut lines = BTreeMap::new();
        for entry in fs::read_dir(&directory).context(|| format!("cannot list {}", directory.display()))? {
            let entry = entry.context(|| format!("cannot list {}", directory.display()))?;
            let meta = entry.metadata().context(|| format!("cannot look at {}", entry.path().display()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !meta.is_file() || name.starts_with('.') {
                continue;
            }
            let sum = match known.get(&(meta.dev(), meta.ino())) {
                Some(sum) => sum.clone(),
                None => {
                    read_count += 1;
                    of(&entry.path(), control)?
                }
            };
            lines.insert(name, sum);
        }
        let text: String = lines.iter().map(|(name, sum)| format!("{sum}  {name}\n")).collect();
        disk::replace(&directory, SUMS_FILE, text.as_bytes(), catalog.owner())?;
    }
    Ok(read_count)
}

/// The sums that the catalog has already, by device and inode: an SST that several backups link is one file.
fn known(catalog: &Catalog) -> Result<HashMap<(u64, u64), String>> {
    let mut known = HashMap::new();
    for found in catalog.list()? {
        let directory = catalog.path(&found.id).join(WHOLE).join("rocksDb");
        // Sums that cannot be read are computed anew.
        for (name, sum) in read(&directory).ok().flatten().unwrap_or_default() {
            if let Some(meta) = directory.join(name).symlink_metadata().ok().filter(|m| m.nlink() > 1) {
                known.insert((meta.dev(), meta.ino()), sum);
            }
        }
    }
    Ok(known)
}
