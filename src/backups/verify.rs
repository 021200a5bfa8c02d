//! Whether a finished backup is what it was when it was committed. Changes nothing; looks at everything itself.
//!
//! - **Quick**, in seconds for thousands of files: `backup.json` and `manifest.json` carry their right seals (see `seal`);
//!   the files are those of `manifest.json`, with their sizes; the RocksDB's
//!   CURRENT and MANIFEST name files that are there, with the sizes that they should have; each SQLite file has a header
//!   that fits its size.
//! - **Deep**, at the disk's speed: also the checksums of the manifest and of `BLAKE2SUMS`, every block of RocksDB read and
//!   checked against its checksum, SQLite's own integrity check, and the heights of the record. RocksDB runs in a child
//!   process where one is given: a damaged file cannot harm the caller.
//!
//! A foreign backup has no manifest: what can be looked at without one is. One with a manifest and no record was ours.
//!
//! A file that is in no list of ours (a publisher's `snapshot_date`) is an extra: it is named, and is no damage. Only what
//! RocksDB or SQLite would replay at the next start (a WAL, a journal) is damage: with it the backup is another one.
//!
//! # Limitations
//! A changed byte within a row of SQLite is seen only where there are `BLAKE2SUMS`: its pages have no checksums.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;

use serde::Serialize;

use crate::backups::catalog::MAX_RECORD_BYTES;
use crate::backups::sums;
use crate::capture::rocksdb;
use crate::capture::rocksdb::chain_cut::Heights;
use crate::capture::rocksdb::engine;
use crate::capture::rocksdb::live_directories::{MAX_TEXT_BYTES, is_immutable, is_options};
use crate::capture::rocksdb::live_files;
use crate::capture::rocksdb::log_format::End;
use crate::capture::rocksdb::version_edit::Versions;
use crate::capture::sqlite;
use crate::chainweb::{self, ROCKSDB, SQLITE};
use crate::config::{Depth, Verify};
use crate::control::Control;
use crate::disk::nofollow::{self, is_unfit};
use crate::disk::off_heap;
use crate::disk::quiet_reader;
use crate::disk::sum::{self, Sum};
use crate::error::{Error, IoContext, Kind, Result};
use crate::fault::{Fault, Inspected};
use crate::format::layout::{self, MANIFEST_FILE, RECORD_FILE, SUMS_FILE, WHOLE};
use crate::format::manifest::{self, Entry, Manifest};
use crate::format::record::Record;
use crate::format::seal;

/// The largest `manifest.json` that is read: of five million files.
const MAX_SEALED_BYTES: u64 = 1024 * 1024 * 1024;

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
    /// Empty when the backup is good.
    pub faults: Vec<Fault>,
    /// Files that are no part of the backup, as a publisher adds them: no damage.
    pub extras: Vec<String>,
}

impl Verification {
    fn fault(&mut self, file: impl Into<String>, why: impl Into<String>) {
        self.faults.push(Fault { file: file.into(), why: why.into() });
    }
}

/// Looks at the backup in `path`, whose record is `record` unless it is foreign. An error means that looking failed; what
/// is wrong with the backup is in the result.
pub(crate) fn verify(
    path: &Path,
    record: Option<&Record>,
    depth: Depth,
    program: Option<&Path>,
    control: &Control,
) -> Result<Verification> {
    if depth == Depth::Deep {
        engine::require("deep verification")?;
    }
    let mut result = Verification::default();
    let whole = path.join(WHOLE);
    // What is really there.
    let (files, others) = Manifest::found(&whole)?;
    let (blocking, extras): (Vec<_>, Vec<_>) = others.into_iter().partition(|path| is_rocksdbs(path));
    result.extras = extras;
    for path in &blocking {
        result.fault(path, "it is neither a file nor a directory");
    }
    result.files_count = files.count() as u64;
    result.bytes = files.bytes();
    control.set_total(result.bytes);
    if let Some(record) = record {
        check_seals(path, record, &mut result)?;
    }
    let said = compare_with_manifest(path, record.is_some(), &files, &mut result)?;
    if let (Some(said), Some(record)) = (&said, record) {
        compare_with_record(said, record, &mut result);
    }
    check_rocksdb(&whole.join(ROCKSDB), &files, &mut result)?;
    let is_database =
        |path: &&str| chainweb::name_in(SQLITE, path).is_some_and(|name| chainweb::is_pact_database(Path::new(name)));
    let databases: Vec<&str> = files.files().map(|file| file.path).filter(is_database).collect();
    for name in &databases {
        if let Some(why) = header_fault(&path.join(name))? {
            result.fault(*name, why);
        }
    }
    if depth == Depth::Deep {
        let rocksdb = whole.join(ROCKSDB);
        // What is in both lists is read once.
        let mut agreed = vec![false; files.count()];
        compare_sums(&rocksdb, &files, said.as_ref(), &mut result, &mut |name, path, expected| {
            // RocksDB reads its SSTs once more, but through a cache of its own; the page cache is the node's.
            let sum = sum::of(path, is_immutable(name), control)?;
            if let (Some(said), Some(at)) = (&said, files.find(&chainweb::path_in(ROCKSDB, name))) {
                agreed[at] = sum == expected && said.sums[at] == Some(sum);
            }
            Ok(sum)
        })?;
        if let Some(said) = &said {
            compare_with_sums_of_manifest(path, &files, said, &agreed, control, &mut result)?;
        }
        check_pact(path, &files, said.as_ref(), &databases, record, control, &mut result)?;
        // RocksDB would open what blocks, and wait for ever, or read what lies elsewhere.
        // A CURRENT that is no file of ours may be huge, and RocksDB reads all of it into memory.
        let current = chainweb::path_in(ROCKSDB, "CURRENT");
        let is_fit = blocking.is_empty() && !result.faults.iter().any(|fault| fault.file == current);
        let inspected = is_fit.then(|| rocksdb::inspect(&rocksdb, program, control));
        match inspected.unwrap_or_else(|| Ok(Inspected::default())) {
            Ok(inspected) => {
                result.keys_count = inspected.keys_count;
                result.faults.extend(inspected.faults.into_iter().map(Fault::of_rocksdb));
            }
            Err(e) if matches!(e.kind(), Kind::Damaged | Kind::Database) => {
                result.fault(chainweb::path_in(ROCKSDB, ""), e.chain())
            }
            Err(e) => return Err(e),
        }
        // A program without RocksDB writes down no height.
        let expected = record.and_then(|r| r.rocksdb.as_ref()?.cut_height);
        if let Some(expected) = expected.filter(|_| result.faults.is_empty()) {
            match rocksdb::read_cut(&rocksdb, program, control)? {
                Heights::Damaged(fault) => result.faults.push(Fault::of_rocksdb(fault)),
                Heights::Cut(cut) if cut.as_ref().map(|cut| cut.height) != Some(expected) => {
                    let height = cut.map_or(0, |cut| cut.height);
                    let why = format!("its cut is {height} but the record says {expected}");
                    result.fault(chainweb::path_in(ROCKSDB, ""), why);
                }
                Heights::Cut(_) => {}
            }
        }
    }
    Ok(result)
}

/// Compares each file with the checksum that the manifest has of it, but for those of which that is known already.
fn compare_with_sums_of_manifest(
    path: &Path,
    files: &Manifest,
    said: &Said,
    agreed: &[bool],
    control: &Control,
    result: &mut Verification,
) -> Result<()> {
    for (at, expected) in said.sums.iter().enumerate().filter_map(|(at, sum)| Some((at, (*sum)?))) {
        let name = files.file(at).path;
        // What BLAKE2SUMS found is told of already.
        if agreed[at] || result.faults.iter().any(|fault| fault.file == name) {
            continue;
        }
        result.sums_count += 1;
        if sum::of(&path.join(name), is_immutable(name), control)? != expected {
            result.fault(name, "its checksum differs from the manifest's");
        }
    }
    Ok(())
}

/// Whether RocksDB would open a file of this path by itself.
fn is_rocksdbs(path: &str) -> bool {
    let is_numbered = |name: &str| {
        let ends = [".log", ".sst", ".blob"].iter().any(|end| name.ends_with(end));
        ends || ["MANIFEST-", "OPTIONS-"].iter().any(|start| name.starts_with(start))
    };
    chainweb::name_in(ROCKSDB, path)
        .is_some_and(|name| is_numbered(name) || matches!(name, "CURRENT" | "IDENTITY" | "LOCK" | "LOG"))
}

/// Each database, one after the other: read in one go, then checked while it is in memory, since SQLite reads it in no order.
fn check_pact(
    path: &Path,
    files: &Manifest,
    said: Option<&Said>,
    databases: &[&str],
    record: Option<&Record>,
    control: &Control,
    result: &mut Verification,
) -> Result<()> {
    let directory = layout::directory_in(path, SQLITE);
    let mut damaged = Vec::new();
    compare_sums(&directory, files, said, result, &mut |name, place, expected| {
        let sum = sum::of(place, false, control)?;
        if sum == expected
            && databases.iter().any(|d| d.ends_with(&format!("/{name}")))
            && let Some(why) = sqlite::integrity_fault(place, control)?
        {
            damaged.push(Fault { file: chainweb::path_in(SQLITE, name), why });
        }
        quiet_reader::forget_cached(place);
        Ok(sum)
    })?;
    result.faults.append(&mut damaged);
    let has_sums = sums::has_sums(&directory)?;
    for name in databases {
        let place = path.join(name);
        if !has_sums {
            sum::of(&place, false, control)?;
            let fault = sqlite::integrity_fault(&place, control)?;
            quiet_reader::forget_cached(&place);
            if let Some(why) = fault {
                result.fault(*name, why);
                continue;
            }
        }
        let part = record.and_then(|r| r.pact.iter().find(|part| name.ends_with(&format!("/{}", part.file))));
        if let Some(part) = part.filter(|_| result.faults.is_empty()) {
            let height = sqlite::newest_block(&place)?.map(|(height, _)| height);
            if height != part.block_height {
                let (height, expected) = (height.unwrap_or(0), part.block_height.unwrap_or(0));
                result.fault(*name, format!("its block is {height} but the record says {expected}"));
            }
        }
    }
    Ok(())
}

/// What a `manifest.json` says in all, and of some files.
#[derive(Default)]
struct Said {
    count: u64,
    bytes: u64,
    /// Of the files of Pact, the sizes.
    pact: BTreeMap<String, u64>,
    /// Of each file that is there, the checksum that the manifest has of it.
    sums: Vec<Option<Sum>>,
    /// Of each file that is there, whether it is in the manifest.
    named: Vec<bool>,
}

/// Compares what is there with the manifest. `None`, with a fault where there must be one, where there is none of ours.
fn compare_with_manifest(
    path: &Path,
    is_ours: bool,
    files: &Manifest,
    result: &mut Verification,
) -> Result<Option<Said>> {
    let mut said = Said { named: vec![false; files.count()], sums: off_heap::list(), ..Said::default() };
    said.sums.resize(files.count(), None);
    let mut faults = Vec::new();
    let mut compare = |Entry { path: name, bytes, blake2b, .. }: Entry<String>| {
        match files.find(&name) {
            None => faults.push(Fault { file: name.clone(), why: "it is missing".to_owned() }),
            Some(at) => {
                (said.named[at], said.sums[at]) = (true, blake2b);
                let found = files.file(at).bytes;
                if found != bytes {
                    let why = format!("it has {found} bytes instead of {bytes}");
                    faults.push(Fault { file: name.clone(), why });
                }
            }
        }
        (said.count, said.bytes) = (said.count + 1, said.bytes.saturating_add(bytes));
        if chainweb::name_in(SQLITE, &name).is_some() {
            said.pact.insert(name, bytes);
        }
    };
    let file = path.join(MANIFEST_FILE);
    let read = if_there(nofollow::open_regular(&file).and_then(|file| manifest::read_each(file, &mut compare)), &file)?;
    if read != Some(true) {
        if is_ours || read.is_some() {
            let why = if read.is_some() { "it is not a manifest of ours" } else { "it is missing" };
            result.fault(MANIFEST_FILE, why);
        }
        return Ok(None);
    }
    if !is_ours {
        let again = if_there(nofollow::read_small(&path.join(RECORD_FILE), MAX_RECORD_BYTES), &path.join(RECORD_FILE))?;
        let is_good = |record: Record| path.file_name().is_some_and(|name| name == record.id.as_str());
        if again.and_then(|bytes| Record::parse(&bytes)).is_some_and(is_good) {
            let context =
                format!("{RECORD_FILE} could be read only at the second try: look at the disk, then try again");
            return Err(Error::new(Kind::Io, context));
        }
        result.fault(RECORD_FILE, "it is missing or damaged");
    }
    result.faults.append(&mut faults);
    for (file, _) in files.files().zip(&said.named).filter(|(_, named)| !**named) {
        // The sums are written after the commit, and what wrote them may have been cut off.
        if file.path.rsplit('/').next().is_some_and(sums::is_ours) {
            continue;
        }
        if file.bytes > 0 && is_replayed(file.path) {
            result.fault(file.path, "it is not part of the backup, but a node would read it: remove it");
        } else {
            result.extras.push(file.path.to_owned());
        }
    }
    Ok(Some(said))
}

/// Whether RocksDB or SQLite takes a file of this name for changes that are still to be made.
fn is_replayed(path: &str) -> bool {
    let is_wal = |name: &str| name.strip_suffix(".log").is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()));
    chainweb::name_in(ROCKSDB, path).is_some_and(is_wal)
        || chainweb::name_in(SQLITE, path).is_some_and(|name| name.ends_with("-wal") || name.ends_with("-journal"))
}

/// Whether a node's database has files of this name; for a backup without a manifest.
fn is_of_a_database(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let is_rocksdb = is_immutable(name) || is_options(name) || ["CURRENT", "IDENTITY"].contains(&name);
    is_rocksdb || name.starts_with("MANIFEST-") || chainweb::is_pact_database(Path::new(name)) || is_replayed(path)
}

/// `None` for what is not there, or is no file of ours; that it cannot be read says nothing about the backup.
fn if_there<T>(read: io::Result<T>, path: &Path) -> Result<Option<T>> {
    match read {
        Err(e) if e.kind() == io::ErrorKind::NotFound || is_unfit(&e) => Ok(None),
        other => other.map(Some).context(|| format!("cannot read {}", path.display())),
    }
}

/// Our two files must be what we wrote. One that is missing is told of elsewhere.
fn check_seals(path: &Path, record: &Record, result: &mut Verification) -> Result<()> {
    for name in [RECORD_FILE, MANIFEST_FILE] {
        let is_whole = |file: File| match file.metadata()?.len() {
            bytes if bytes > MAX_SEALED_BYTES => Ok(Some(false)),
            bytes => seal::is_whole(&file, bytes),
        };
        let is_whole = if_there(nofollow::open_regular(&path.join(name)).and_then(is_whole), &path.join(name))?;
        if is_whole.is_some_and(|sealed| !sealed.unwrap_or(!record.must_be_sealed())) {
            result.fault(name, "it is not what was written (its seal is wrong)");
        }
    }
    Ok(())
}

/// What the record says twice must agree.
fn compare_with_record(said: &Said, record: &Record, result: &mut Verification) {
    let mut fault = |why: String| result.fault(RECORD_FILE, why);
    if (record.bytes, record.files_count) != (said.bytes, said.count) {
        fault(format!("it says {} files of {} bytes", record.files_count, record.bytes));
    }
    for part in &record.pact {
        let name = chainweb::path_in(SQLITE, &part.file);
        if said.pact.get(&name) != Some(&part.bytes) {
            fault(format!("{name} is not the one that it names"));
        }
    }
}

/// RocksDB's own view: CURRENT names a MANIFEST, and that names files that are there.
fn check_rocksdb(directory: &Path, files: &Manifest, result: &mut Verification) -> Result<()> {
    let mut fault = |name: &str, why: &str| result.fault(chainweb::path_in(ROCKSDB, name), why);
    let current =
        if_there(nofollow::read_small(&directory.join("CURRENT"), MAX_TEXT_BYTES), &directory.join("CURRENT"))?;
    let Some(name) = current.and_then(|c| live_files::manifest_in(&String::from_utf8(c).ok()?)) else {
        fault("CURRENT", "it is missing or does not name a MANIFEST");
        return Ok(());
    };
    let Some(manifest) = if_there(nofollow::open_regular(&directory.join(&name)), &directory.join(&name))? else {
        fault(&name, "it is missing although CURRENT names it");
        return Ok(());
    };
    let mut versions = Versions::new();
    match versions.read(manifest).context(|| format!("cannot read {}", directory.join(&name).display()))? {
        Ok(End::Clean | End::Torn) => {}
        Ok(End::Damaged) => fault(&name, "it is damaged"),
        Err(why) => fault(&name, &why),
    }
    for file in versions.into_live_files() {
        let name = file.name();
        match files.bytes_of(&chainweb::path_in(ROCKSDB, &name)) {
            None => fault(&name, "it is missing although the MANIFEST names it"),
            Some(bytes) if bytes != file.bytes => {
                fault(&name, &format!("it has {bytes} bytes but the MANIFEST says {}", file.bytes));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// A SQLite database's header (sqlite.org/fileformat2.html, section 1.3) must fit the file.
fn header_fault(database: &Path) -> Result<Option<&'static str>> {
    let failed = || format!("cannot read {}", database.display());
    let mut file = nofollow::open_regular(database).context(failed)?;
    let mut header = [0; 100];
    match file.read_exact(&mut header) {
        Ok(()) if header.starts_with(b"SQLite format 3\0") => {}
        Err(e) if e.kind() != io::ErrorKind::UnexpectedEof => return Err(Error::io(failed(), e)),
        _ => return Ok(Some("it is not a SQLite database")),
    }
    let page = u64::from(u16::from_be_bytes([header[16], header[17]]));
    let page_bytes = if page == 1 { 65536 } else { page };
    let pages = u64::from(u32::from_be_bytes([header[28], header[29], header[30], header[31]]));
    let bytes = file.seek(std::io::SeekFrom::End(0)).context(failed)?;
    Ok((bytes != pages * page_bytes).then_some("its size is not what its header says"))
}

/// Compares a directory with its `BLAKE2SUMS`, where it has them: every file of the backup has a line, and every line a file.
/// What is not in the manifest counts for nothing. `sum` computes one, given the name, the place and what is expected.
fn compare_sums(
    directory: &Path,
    files: &Manifest,
    said: Option<&Said>,
    result: &mut Verification,
    sum: &mut dyn FnMut(&str, &Path, Sum) -> Result<Sum>,
) -> Result<()> {
    let prefix = sums::prefix_of(&directory.file_name().unwrap_or_default().to_string_lossy());
    let mut named = vec![false; files.count()];
    let read = sums::each(directory, &mut |name, expected| {
        let path = directory.join(name);
        let Some(at) = files.find(&format!("{prefix}{name}")) else {
            // What the manifest has was told of already.
            if said.is_none() {
                result.fault(format!("{prefix}{name}"), format!("it is missing although {SUMS_FILE} names it"));
            }
            return Ok(true);
        };
        if std::mem::replace(&mut named[at], true) {
            return Ok(false);
        }
        // One that is no part of the backup, or has another size, and so another checksum: it may be huge.
        let is_bad = result.faults.iter().any(|fault| fault.file == files.file(at).path);
        if is_bad || said.is_some_and(|said| !said.named[at]) {
            return Ok(true);
        }
        result.sums_count += 1;
        if sum(name, &path, expected)? != expected {
            result.fault(format!("{prefix}{name}"), format!("its checksum differs from that in {SUMS_FILE}"));
        }
        Ok(true)
    });
    match read {
        Ok(false) => return Ok(()),
        Ok(true) => {}
        Err(e) if e.kind() == Kind::Damaged => {
            result.fault(format!("{prefix}{SUMS_FILE}"), e.chain());
            return Ok(());
        }
        Err(e) => return Err(e),
    }
    for at in (0..files.count()).filter(|at| !named[*at]) {
        let path = files.file(at).path;
        let belongs = said.map_or_else(|| is_of_a_database(path), |said| said.named[at]);
        if belongs && path.strip_prefix(&prefix).is_some_and(|name| !sums::is_ours(name)) {
            result.fault(path, format!("{SUMS_FILE} does not name it"));
        }
    }
    Ok(())
}

/// Fails with [`Kind::Usage`] where this program cannot verify so thoroughly.
pub(crate) fn require_possible(verify: Verify) -> Result<()> {
    if verify == Some(Depth::Deep) { engine::require("backup.verify: deep") } else { Ok(()) }
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
