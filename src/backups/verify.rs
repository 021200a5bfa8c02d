//! Verifies that a finished backup is unchanged since its commit. Changes nothing, and trusts no earlier result.
//!
//! - **Quick**, in seconds for thousands of files: `backup.json` and `manifest.json` match their seals (see `seal`); the files
//!   are those of `manifest.json`, with their sizes; RocksDB's CURRENT and MANIFEST name files that exist, with the sizes in
//!   the MANIFEST; each SQLite file has a header that fits its size.
//! - **Deep**, at the disk's speed: also the checksums of the manifest and of `BLAKE2SUMS`, every block of RocksDB read and
//!   compared with its checksum, SQLite's own integrity check, and the heights of the record. RocksDB runs in a child
//!   process if a program for it is given, so that a damaged file cannot harm the caller.
//!
//! A foreign backup has no manifest: everything is checked that needs none. A backup with a manifest and no record was ours.
//!
//! A file that is not in the manifest (a publisher's `snapshot_date`) is an extra: it is listed, and is not a fault. Only a file
//! that RocksDB or SQLite would replay at the next start (a WAL, a journal) is a fault: it would change the database.
//!
//! # Limitations
//! A changed byte within a row of SQLite is found only if there are `BLAKE2SUMS`: SQLite's pages have no checksums.

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
use crate::capture::rocksdb::live_directories::is_immutable;
use crate::capture::rocksdb::live_files;
use crate::capture::rocksdb::log_format::End;
use crate::capture::rocksdb::options_file::{MAX_TEXT_BYTES, is_options};
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
use crate::fault::Fault;
use crate::format::layout::{self, MANIFEST_FILE, RECORD_FILE, SUMS_FILE, WHOLE};
use crate::format::manifest::{self, Entry, Manifest};
use crate::format::record::Record;
use crate::format::seal;

/// The largest `manifest.json` that is read: of five million files.
const MAX_SEALED_BYTES: u64 = 1024 * 1024 * 1024;

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
    /// Files that are not part of the backup, such as a publisher's; they are not faults.
    pub extras: Vec<String>,
}

impl Verification {
    fn fault(&mut self, file: impl Into<String>, why: impl Into<String>) {
        self.faults.push(Fault { file: file.into(), why: why.into() });
    }
}

/// Verifies the backup in `path`, whose record is `record` unless it is foreign. An error means that a file could not be read;
/// damage of the backup is in the result.
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
    // The files that exist.
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
        let deep = Deep { path, record, program, control, files: &files, said: said.as_ref() };
        deep.check(&databases, !blocking.is_empty(), &mut result)?;
    }
    Ok(result)
}

/// What the deep part of a verification looks at: a backup, the files that exist, and what its manifest says of them.
struct Deep<'a> {
    path: &'a Path,
    record: Option<&'a Record>,
    program: Option<&'a Path>,
    control: &'a Control,
    files: &'a Manifest,
    said: Option<&'a Said>,
}

impl Deep<'_> {
    /// Reads every byte. If the backup `blocks`, RocksDB does not open it: it would open a FIFO and wait for ever, or follow a link.
    fn check(&self, databases: &[&str], blocks: bool, result: &mut Verification) -> Result<()> {
        let agreed = self.compare_sums_of_rocksdb(result)?;
        if let Some(said) = self.said {
            self.compare_with_sums_of_manifest(said, &agreed, result)?;
        }
        self.check_pact(databases, result)?;
        // A CURRENT that is not ours may be huge, and RocksDB reads all of it into memory.
        let current = chainweb::path_in(ROCKSDB, "CURRENT");
        if !blocks && !result.faults.iter().any(|fault| fault.file == current) {
            self.inspect_rocksdb(result)?;
        }
        self.compare_cut(result)
    }

    /// Compares RocksDB's files with their `BLAKE2SUMS`. Returns for each file whether the manifest has the same checksum: a file
    /// that is in both lists is read once.
    fn compare_sums_of_rocksdb(&self, result: &mut Verification) -> Result<Vec<bool>> {
        let mut agreed = vec![false; self.files.count()];
        let directory = layout::directory_in(self.path, ROCKSDB);
        compare_sums(&directory, self.files, self.said, result, &mut |name, path, expected| {
            // RocksDB reads its SSTs once more, but with a cache of its own; the page cache is for the node.
            let sum = sum::of(path, is_immutable(name), self.control)?;
            if let (Some(said), Some(at)) = (self.said, self.files.find(&chainweb::path_in(ROCKSDB, name))) {
                agreed[at] = sum == expected && said.sums[at] == Some(sum);
            }
            Ok(sum)
        })?;
        Ok(agreed)
    }

    /// Has RocksDB read every block.
    fn inspect_rocksdb(&self, result: &mut Verification) -> Result<()> {
        match rocksdb::inspect(&layout::directory_in(self.path, ROCKSDB), self.program, self.control) {
            Ok(inspected) => {
                result.keys_count = inspected.keys_count;
                result.faults.extend(inspected.faults.into_iter().map(Fault::of_rocksdb));
            }
            Err(e) if matches!(e.kind(), Kind::Damaged | Kind::Database) => {
                result.fault(chainweb::path_in(ROCKSDB, ""), e.chain());
            }
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// Compares the newest cut with that of the record, unless there is a fault already.
    fn compare_cut(&self, result: &mut Verification) -> Result<()> {
        // A program without RocksDB records no height.
        let expected = self.record.and_then(|r| r.rocksdb.as_ref()?.cut_height);
        let Some(expected) = expected.filter(|_| result.faults.is_empty()) else { return Ok(()) };
        match rocksdb::read_cut(&layout::directory_in(self.path, ROCKSDB), self.program, self.control)? {
            Heights::Damaged(fault) => result.faults.push(Fault::of_rocksdb(fault)),
            Heights::Cut(cut) if cut.as_ref().map(|cut| cut.height) != Some(expected) => {
                let height = cut.map_or(0, |cut| cut.height);
                let why = format!("its cut is at height {height} instead of the {expected} in the record");
                result.fault(chainweb::path_in(ROCKSDB, ""), why);
            }
            Heights::Cut(_) => {}
        }
        Ok(())
    }

    /// Compares each file with its checksum in the manifest, except those for which that was done already (`agreed`).
    fn compare_with_sums_of_manifest(&self, said: &Said, agreed: &[bool], result: &mut Verification) -> Result<()> {
        for (at, expected) in said.sums.iter().enumerate().filter_map(|(at, sum)| Some((at, (*sum)?))) {
            let name = self.files.file(at).path;
            // The faults found with BLAKE2SUMS are reported already.
            if agreed[at] || result.faults.iter().any(|fault| fault.file == name) {
                continue;
            }
            result.sums_count += 1;
            if sum::of(&self.path.join(name), is_immutable(name), self.control)? != expected {
                result.fault(name, "its checksum differs from the manifest's");
            }
        }
        Ok(())
    }

    /// Checks the databases one after the other: each is read from beginning to end, and then checked while it is in the page cache,
    /// because SQLite reads it in no order.
    fn check_pact(&self, databases: &[&str], result: &mut Verification) -> Result<()> {
        let directory = layout::directory_in(self.path, SQLITE);
        let mut damaged = Vec::new();
        compare_sums(&directory, self.files, self.said, result, &mut |name, place, expected| {
            let sum = sum::of(place, false, self.control)?;
            if sum == expected
                && databases.iter().any(|d| d.ends_with(&format!("/{name}")))
                && let Some(why) = sqlite::integrity_fault(place, self.control)?
            {
                damaged.push(Fault { file: chainweb::path_in(SQLITE, name), why });
            }
            quiet_reader::forget_cached(place);
            Ok(sum)
        })?;
        result.faults.append(&mut damaged);
        let has_sums = sums::has_sums(&directory)?;
        for name in databases {
            let place = self.path.join(name);
            if !has_sums {
                sum::of(&place, false, self.control)?;
                let fault = sqlite::integrity_fault(&place, self.control)?;
                quiet_reader::forget_cached(&place);
                if let Some(why) = fault {
                    result.fault(*name, why);
                    continue;
                }
            }
            let part = self.record.and_then(|r| r.pact.iter().find(|part| name.ends_with(&format!("/{}", part.file))));
            if let Some(part) = part.filter(|_| result.faults.is_empty()) {
                let height = sqlite::newest_block(&place)?.map(|(height, _)| height);
                if height != part.block_height {
                    let (height, expected) = (height.unwrap_or(0), part.block_height.unwrap_or(0));
                    result.fault(
                        *name,
                        format!("its newest block is at height {height} instead of the {expected} in the record"),
                    );
                }
            }
        }
        Ok(())
    }
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

/// A summary of a `manifest.json`.
#[derive(Default)]
struct Said {
    count: u64,
    bytes: u64,
    /// The sizes of the files of Pact.
    pact: BTreeMap<String, u64>,
    /// For each existing file, its checksum in the manifest.
    sums: Vec<Option<Sum>>,
    /// For each existing file, whether it is in the manifest.
    named: Vec<bool>,
}

/// Compares the existing files with the manifest. `None` if there is no manifest of ours, which is a fault in a backup of ours.
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
            let why = if read.is_some() { "it is damaged, or of an unknown format" } else { "it is missing" };
            result.fault(MANIFEST_FILE, why);
        }
        return Ok(None);
    }
    if !is_ours {
        let again = if_there(nofollow::read_small(&path.join(RECORD_FILE), MAX_RECORD_BYTES), &path.join(RECORD_FILE))?;
        let is_good = |record: Record| path.file_name().is_some_and(|name| name == record.id.as_str());
        if again.and_then(|bytes| Record::parse(&bytes)).is_some_and(is_good) {
            let context =
                format!("{RECORD_FILE} could be read only at the second attempt: check the disk, then try again");
            return Err(Error::new(Kind::Io, context));
        }
        result.fault(RECORD_FILE, "it is missing or damaged");
    }
    result.faults.append(&mut faults);
    for (file, _) in files.files().zip(&said.named).filter(|(_, named)| !**named) {
        // BLAKE2SUMS is written after the commit, and a process that wrote it may have been interrupted.
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

/// Whether RocksDB or SQLite would replay a file of this name.
fn is_replayed(path: &str) -> bool {
    let is_wal = |name: &str| name.strip_suffix(".log").is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()));
    chainweb::name_in(ROCKSDB, path).is_some_and(is_wal)
        || chainweb::name_in(SQLITE, path).is_some_and(|name| name.ends_with("-wal") || name.ends_with("-journal"))
}

/// Whether a file of this name belongs to a node's database; for a backup without a manifest.
fn is_of_a_database(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let is_rocksdb = is_immutable(name) || is_options(name) || ["CURRENT", "IDENTITY"].contains(&name);
    is_rocksdb || name.starts_with("MANIFEST-") || chainweb::is_pact_database(Path::new(name)) || is_replayed(path)
}

/// `None` if a file does not exist, or cannot be one that we made. An error of reading is returned: it is not a fault of the
/// backup.
fn if_there<T>(read: io::Result<T>, path: &Path) -> Result<Option<T>> {
    match read {
        Err(e) if e.kind() == io::ErrorKind::NotFound || is_unfit(&e) => Ok(None),
        other => other.map(Some).context(|| format!("cannot read {}", path.display())),
    }
}

/// Checks the seals of our two files. A missing file is reported elsewhere.
fn check_seals(path: &Path, record: &Record, result: &mut Verification) -> Result<()> {
    for name in [RECORD_FILE, MANIFEST_FILE] {
        let is_whole = |file: File| match file.metadata()?.len() {
            bytes if bytes > MAX_SEALED_BYTES => Ok(Some(false)),
            bytes => seal::is_whole(&file, bytes),
        };
        let is_whole = if_there(nofollow::open_regular(&path.join(name)).and_then(is_whole), &path.join(name))?;
        if is_whole.is_some_and(|sealed| !sealed.unwrap_or(!record.must_be_sealed())) {
            result.fault(name, "it was changed or damaged: it does not match its seal");
        }
    }
    Ok(())
}

/// Checks that the record agrees with the manifest.
fn compare_with_record(said: &Said, record: &Record, result: &mut Verification) {
    let mut fault = |why: String| result.fault(RECORD_FILE, why);
    if (record.bytes, record.files_count) != (said.bytes, said.count) {
        fault(format!(
            "it names {} files of {} bytes, but {MANIFEST_FILE} lists {} of {}",
            record.files_count, record.bytes, said.count, said.bytes
        ));
    }
    for part in &record.pact {
        let name = chainweb::path_in(SQLITE, &part.file);
        if said.pact.get(&name) != Some(&part.bytes) {
            fault(format!("it names {name} with {} bytes, but {MANIFEST_FILE} does not", part.bytes));
        }
    }
}

/// Checks that CURRENT names a MANIFEST, and that the files named by the MANIFEST exist with their sizes.
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
                fault(&name, &format!("it has {bytes} bytes instead of the {} in the MANIFEST", file.bytes));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Checks that the header of an SQLite database (sqlite.org/fileformat2.html, section 1.3) fits the size of the file.
fn header_fault(database: &Path) -> Result<Option<&'static str>> {
    let failed = || format!("cannot read {}", database.display());
    let mut file = nofollow::open_regular(database).context(failed)?;
    let mut header = [0; 100];
    match file.read_exact(&mut header) {
        Ok(()) if header.starts_with(b"SQLite format 3\0") => {}
        Err(e) if e.kind() != io::ErrorKind::UnexpectedEof => return Err(Error::io(failed(), e)),
        _ => return Ok(Some("it is not an SQLite database")),
    }
    let page = u64::from(u16::from_be_bytes([header[16], header[17]]));
    let page_bytes = if page == 1 { 65536 } else { page };
    let pages = u64::from(u32::from_be_bytes([header[28], header[29], header[30], header[31]]));
    let bytes = file.seek(std::io::SeekFrom::End(0)).context(failed)?;
    Ok((bytes != pages * page_bytes).then_some("its size differs from the size in its header"))
}

/// Compares a directory with its `BLAKE2SUMS`, if there is one: every file of the backup has a line, and every line a file. Files
/// that are not in the manifest are ignored. `sum` computes a checksum, given the name, the path and the expected checksum.
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
            // A missing file that is in the manifest is reported already.
            if said.is_none() {
                result.fault(format!("{prefix}{name}"), format!("it is missing although {SUMS_FILE} names it"));
            }
            return Ok(true);
        };
        if std::mem::replace(&mut named[at], true) {
            return Ok(false);
        }
        // It is not part of the backup, or its size and so its checksum is wrong: it is not read, because it may be huge.
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

/// Fails with [`Kind::Usage`] if this program cannot make such a verification.
pub(crate) fn require_possible(verify: Verify) -> Result<()> {
    if verify == Some(Depth::Deep) { engine::require("backup.verify: deep") } else { Ok(()) }
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
