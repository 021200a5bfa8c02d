//! Checksums as the community publishes them: `BLAKE2SUMS` in a directory, in the format of coreutils' `b2sum`, so that
//! `b2sum -c BLAKE2SUMS` checks it.
//!
//! Invariants: the file appears by one atomic rename, with every file of the directory in it, and is the only thing that
//! is added to a backup after its commit. A file that another backup of the catalog has under another name but as the
//! same inode is not read again.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use blake2b_simd::State;

use crate::catalog::Catalog;
use crate::commit::{USE_FILE, WHOLE};
use crate::config::Sums;
use crate::control::Control;
use crate::disk::{self, Lock};
use crate::error::{Error, IoContext, Kind, Result};
use crate::id::BackupId;
use crate::manifest::{MANIFEST_FILE, Manifest};
use crate::quiet::{QuietReader, Sink, each_window};
use crate::record::Method;

/// Name of the file, as the community has it.
pub(crate) const SUMS_FILE: &str = "BLAKE2SUMS";

/// What a backup has below its `0`.
const DIRECTORIES: [&str; 2] = ["rocksDb", "sqlite"];

/// Whether this is the name of the file, or of what becomes it ([`disk::replace`]).
pub(crate) fn is_ours(name: &str) -> bool {
    let temporary = name.strip_prefix('.').and_then(|n| n.strip_suffix(".tmp"));
    temporary.unwrap_or(name) == SUMS_FILE
}

/// The BLAKE2b-512 of a file, in hexadecimal. `quiet` is to leave no trace in the page cache; otherwise it is in there
/// afterwards, as far as it fits, for whoever reads it next.
pub(crate) fn of(path: &Path, quiet: bool, control: &Control) -> Result<String> {
    let failed = || format!("cannot read {}", path.display());
    let file = File::open(path).context(failed)?;
    let bytes = file.metadata().context(failed)?.len();
    let mut summing = Summing { state: State::new(), control };
    let mut reader = if quiet { QuietReader::past_cache(&file) } else { QuietReader::through_cache(file.as_fd()) };
    each_window(&mut reader, bytes, &failed, &mut summing)?;
    Ok(summing.state.finalize().to_hex().to_string())
}

struct Summing<'a> {
    state: State,
    control: &'a Control,
}

impl Sink for Summing<'_> {
    fn proceed(&mut self) -> Result<()> {
        self.control.check()
    }

    fn take(&mut self, window: &[u8]) -> Result<()> {
        self.state.update(window);
        self.control.add_done(window.len() as u64);
        self.control.throttle(window.len() as u64)
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
    let mut sums = BTreeMap::new();
    for (i, line) in text.lines().enumerate() {
        let (name, sum) = parse(line).ok_or_else(|| broken(i + 1))?;
        // A name that stands twice is one that was damaged.
        if sums.insert(name, sum).is_some() {
            return Err(broken(i + 1));
        }
    }
    Ok(Some(sums))
}

/// One line of `b2sum`: the sum, a blank, a blank or an asterisk, the name. The name must be a plain one.
fn parse(line: &str) -> Option<(String, String)> {
    let (sum, name) = line.split_once(' ')?;
    let name = name.strip_prefix([' ', '*'])?;
    let is_sum = sum.len() == 128 && sum.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let is_plain = !name.is_empty() && !name.contains('/') && name != "." && name != "..";
    (is_sum && is_plain).then(|| (name.to_owned(), sum.to_owned()))
}

/// The directories of a backup that have sums.
pub(crate) fn present(path: &Path) -> Vec<&'static str> {
    let has_sums = |name: &&str| path.join(WHOLE).join(name).join(SUMS_FILE).exists();
    DIRECTORIES.into_iter().filter(has_sums).collect()
}

/// The directories of a finished backup that shall have sums and have none.
fn missing(path: &Path, which: Sums) -> Result<Vec<PathBuf>> {
    let manifest_path = path.join(MANIFEST_FILE);
    let failed = || format!("cannot read {}", manifest_path.display());
    let manifest = File::open(&manifest_path).and_then(Manifest::read).context(failed)?;
    let damaged = || Error::new(Kind::Damaged, format!("{} is not a manifest of ours", manifest_path.display()));
    let files = manifest.ok_or_else(damaged)?.files;
    let wanted = |name: &str| {
        let prefix = format!("{WHOLE}/{name}/");
        let linked = || files.iter().any(|f| f.method == Method::Linked && f.path.starts_with(&prefix));
        which == Sums::All || !linked()
    };
    let all = DIRECTORIES.into_iter().filter(|name| wanted(name)).map(|name| path.join(WHOLE).join(name));
    Ok(all.filter(|directory| directory.is_dir() && !directory.join(SUMS_FILE).exists()).collect())
}

/// Writes the missing `BLAKE2SUMS` of a finished backup; returns how many files were read for it, `None` where none is
/// missing.
pub(crate) fn write(catalog: &Catalog, path: &Path, which: Sums, control: &Control) -> Result<Option<u64>> {
    let missing = missing(path, which)?;
    if missing.is_empty() {
        return Ok(None);
    }
    log::info!("writing checksums of={}", path.display());
    let mut read_count = 0;
    let known = known(catalog)?;
    for directory in missing {
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
                    // The page cache is the node's; linked files are in it because the node reads them.
                    of(&entry.path(), true, control)?
                }
            };
            lines.insert(name, sum);
        }
        let text: String = lines.iter().map(|(name, sum)| format!("{sum}  {name}\n")).collect();
        disk::replace(&directory, SUMS_FILE, text.as_bytes(), catalog.owner())?;
    }
    Ok(Some(read_count))
}

/// The same for the newest good backup of ours, held meanwhile; `None` where there is nothing to do.
pub(crate) fn write_newest(catalog: &Catalog, which: Sums, control: &Control) -> Result<Option<(BackupId, u64)>> {
    if which == Sums::None {
        return Ok(None);
    }
    let Some(newest) = catalog.newest_good()? else { return Ok(None) };
    let path = catalog.path(&newest.id);
    // Somebody who deletes or verifies it comes first.
    let Some(_use_lock) = Lock::try_share(&path.join(USE_FILE))? else { return Ok(None) };
    let read_count = write(catalog, &path, which, control)?;
    Ok(read_count.map(|count| (newest.id, count)))
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
