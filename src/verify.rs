//! Whether a finished backup is what it was when it was committed. Changes nothing; looks at everything itself.
//!
//! - **Quick**, in seconds for thousands of files: the files are those of `manifest.json`, with their sizes; the RocksDB's
//!   CURRENT and MANIFEST name files that are there, with the sizes that they should have; each SQLite file has a header
//!   that fits its size.
//! - **Deep**, at the disk's speed: also the checksums of `BLAKE2SUMS`, every block of RocksDB read and checked against
//!   its checksum, and SQLite's own integrity check. RocksDB runs in a child process where one is given: a damaged file
//!   cannot harm the caller.
//!
//! A foreign backup has no manifest: what can be looked at without one is.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::path::Path;

use serde::Serialize;

use crate::commit::WHOLE;
use crate::control::Control;
use crate::disk::{self, Owner};
use crate::error::{Error, IoContext, Kind, Result};
use crate::log_format::{self, End};
use crate::manifest::{MANIFEST_FILE, Manifest};
use crate::record::{Record, VERIFIED_FILE, Verified};
use crate::sums::{self, SUMS_FILE};
use crate::version_edit::Versions;
use crate::{live, rocks, sqlite};

/// How thoroughly to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Names, sizes, headers, and RocksDB's own list of files.
    Quick,
    /// Every byte.
    Deep,
}

/// What was looked at, and what is wrong.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Verification {
    /// Files looked at.
    pub files_count: u64,
    /// Their sizes added up.
    pub bytes: u64,
    /// Files whose checksum was compared.
    pub sums_count: u64,
    /// Keys read from RocksDB.
    pub keys_count: u64,
    /// Each one a sentence that names the file; empty when the backup is good.
    pub faults: Vec<String>,
}

/// Looks at the backup in `path`, whose record is `record` unless it is foreign. An error means that looking failed; what is wrong with the backup is in the result.
pub(crate) fn verify(
    path: &Path,
    record: Option<&Record>,
    depth: Depth,
    program: Option<&Path>,
    control: &Control,
) -> Result<Verification> {
    let mut result = Verification::default();
    let whole = path.join(WHOLE);
    let files = list(&whole)?;
    result.files_count = files.len() as u64;
    result.bytes = files.values().sum();
    control.set_total(result.bytes);
    if let Some(record) = record {
        compare_with_manifest(path, &files, &mut result)?;
        for part in &record.pact {
            let name = format!("0/sqlite/{}", part.file);
            if files.get(&name) != Some(&part.bytes) {
                result.faults.push(format!("{name}: it is not the one that the record names"));
            }
        }
    }
    check_rocksdb(&whole.join("rocksDb"), &mut result)?;
    let is_database = |name: &&String| name.starts_with("0/sqlite/") && name.ends_with(".sqlite");
    let databases: Vec<&String> = files.keys().filter(is_database).collect();
    for name in &databases {
        if let Some(why) = header_fault(&path.join(name))? {
            result.faults.push(format!("{name}: {why}"));
        }
    }
    if depth == Depth::Quick {
        return Ok(result);
    }
    for directory in ["rocksDb", "sqlite"] {
        compare_sums(&whole.join(directory), control, &mut result)?;
    }
    for name in &databases {
        control.check()?;
        if let Some(why) = sqlite::integrity_fault(&path.join(name)) {
            result.faults.push(format!("{name}: {why}"));
        }
    }
    match rocks::inspect(&whole.join("rocksDb"), program, control) {
        Ok(keys_count) => result.keys_count = keys_count,
        Err(e) if matches!(e.kind(), Kind::Damaged | Kind::Database) => result.faults.push(e.chain()),
        Err(e) => return Err(e),
    }
    Ok(result)
}

/// Writes down in the backup that it was verified, and how that went.
pub(crate) fn note(path: &Path, depth: Depth, faults_count: u64, at_ms: u64, owner: Option<Owner>) -> Result<()> {
    let depth = if depth == Depth::Deep { "deep" } else { "quick" }.to_owned();
    let verified = Verified { depth, at_ms, faults_count };
    let bytes = serde_json::to_vec(&verified).expect("a verification has only string keys");
    disk::replace(path, VERIFIED_FILE, &bytes, owner)
}

/// Every file below `0` with its size, by its path below the backup.
fn list(whole: &Path) -> Result<BTreeMap<String, u64>> {
    let manifest = Manifest::of(whole, &|_| crate::record::Method::Copied)?;
    Ok(manifest.files.into_iter().map(|entry| (entry.path, entry.bytes)).collect())
}

fn compare_with_manifest(path: &Path, files: &BTreeMap<String, u64>, result: &mut Verification) -> Result<()> {
    let manifest_path = path.join(MANIFEST_FILE);
    let Ok(bytes) = fs::read(&manifest_path) else {
        result.faults.push(format!("{MANIFEST_FILE}: it cannot be read"));
        return Ok(());
    };
    let Some(manifest) = Manifest::parse(&bytes) else {
        result.faults.push(format!("{MANIFEST_FILE}: it is not a manifest of ours"));
        return Ok(());
    };
    let expected: BTreeMap<&str, u64> = manifest.files.iter().map(|e| (e.path.as_str(), e.bytes)).collect();
    for (name, bytes) in &expected {
        match files.get(*name) {
            None => result.faults.push(format!("{name}: it is missing")),
            Some(found) if found != bytes => {
                result.faults.push(format!("{name}: it has {found} bytes instead of {bytes}"));
            }
            Some(_) => {}
        }
    }
    for name in files.keys().filter(|name| !expected.contains_key(name.as_str())) {
        // The sums are written after the commit.
        if !name.ends_with(&format!("/{SUMS_FILE}")) {
            result.faults.push(format!("{name}: it does not belong to the backup"));
        }
    }
    Ok(())
}

/// RocksDB's own view: CURRENT names a MANIFEST, and that names files that are there.
fn check_rocksdb(directory: &Path, result: &mut Verification) -> Result<()> {
    let mut fault = |why: String| result.faults.push(format!("0/rocksDb/{why}"));
    let Some(name) = fs::read_to_string(directory.join("CURRENT")).ok().and_then(|c| live::manifest_in(&c)) else {
        fault("CURRENT: it is missing or does not name a MANIFEST".to_owned());
        return Ok(());
    };
    let Ok(manifest) = File::open(directory.join(&name)) else {
        fault(format!("{name}: it is missing although CURRENT names it"));
        return Ok(());
    };
    let mut versions = Versions::new();
    let read = log_format::each_record(manifest, live::MAX_EDIT_BYTES, |record| versions.apply(record));
    match read.context(|| format!("cannot read {}", directory.join(&name).display()))? {
        Ok(End::Clean | End::Torn) => {}
        Ok(End::Damaged) => fault(format!("{name}: it is damaged")),
        Err(why) => fault(format!("{name}: {why}")),
    }
    for file in versions.live_files() {
        match directory.join(&file.name).symlink_metadata() {
            Err(_) => fault(format!("{}: it is missing although the MANIFEST names it", file.name)),
            Ok(meta) if meta.len() != file.bytes => {
                fault(format!("{}: it has {} bytes where the MANIFEST says {}", file.name, meta.len(), file.bytes));
            }
            Ok(_) => {}
        }
    }
    Ok(())
}

/// A SQLite database's header (sqlite.org/fileformat2.html, section 1.3) must fit the file.
fn header_fault(database: &Path) -> Result<Option<&'static str>> {
    let failed = || format!("cannot read {}", database.display());
    let mut file = File::open(database).context(failed)?;
    let mut header = [0; 100];
    if file.read_exact(&mut header).is_err() || !header.starts_with(b"SQLite format 3\0") {
        return Ok(Some("it is not a SQLite database"));
    }
    let page = u64::from(u16::from_be_bytes([header[16], header[17]]));
    let page_bytes = if page == 1 { 65536 } else { page };
    let pages = u64::from(u32::from_be_bytes([header[28], header[29], header[30], header[31]]));
    let bytes = file.seek(std::io::SeekFrom::End(0)).context(failed)?;
    Ok((bytes != pages * page_bytes).then_some("its size is not what its header says"))
}

fn compare_sums(directory: &Path, control: &Control, result: &mut Verification) -> Result<()> {
    let Some(expected) = sums::read(directory)? else { return Ok(()) };
    for (name, sum) in expected {
        let path = directory.join(&name);
        if path.symlink_metadata().is_err() {
            result.faults.push(format!("{}: it is missing although {SUMS_FILE} names it", path.display()));
            continue;
        }
        result.sums_count += 1;
        if sums::of(&path, control)? != sum {
            result.faults.push(format!("{}: its checksum is wrong", path.display()));
        }
    }
    Ok(())
}

/// Fails with [`Kind::Damaged`] where anything is wrong.
pub(crate) fn require_good(verification: &Verification) -> Result<()> {
    match verification.faults.first() {
        None => Ok(()),
        Some(first) => {
            let count = verification.faults.len();
            Err(Error::new(Kind::Damaged, format!("the backup is damaged in {count} places, first: {first}")))
        }
    }
}
