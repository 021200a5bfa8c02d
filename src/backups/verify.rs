//! Verifies that a finished backup is unchanged since its commit. Changes nothing, and trusts no earlier result.
//!
//! - **Quick**, in seconds for thousands of files: `backup.json` and `manifest.json` match their seals (see `seal`); the files
//!   are those of `manifest.json`, with their sizes; RocksDB's CURRENT and MANIFEST name files that exist, with the sizes in
//!   the MANIFEST, and no SST ends in zeroes; each SQLite file has a header that fits its size; and what can be told quickly of delta pairs (see `pairs`).
//! - **Deep**, at the disk's speed: also the checksums of the manifest and of `BLAKE2SUMS`, every block of RocksDB read and
//!   compared with its checksum, SQLite's own integrity check, and the heights of the record. RocksDB runs in a child
//!   process if a program for it is given, so that a damaged file cannot harm the caller.
//!
//! A foreign backup has no manifest: everything is checked that needs none. A backup with a manifest and no record was ours.
//!
//! `BLAKE2SUMS` may be written after the commit, by anyone, and can be made again: a defect of it is a note. Only if nothing better is
//! known of a file, neither a checksum of the manifest nor RocksDB's own of each block, is it damaged if its checksum differs from
//! that in the list; and then it is so in this backup only, not in others that share it.
//!
//! A file of the databases that the disk cannot read is damaged (see `verification`); that one of our own records cannot, is an error.
//!
//! A file that is not in the manifest (a publisher's `snapshot_date`) is an extra: it is listed, and is not a fault. Only a file
//! that RocksDB or SQLite would replay at the next start (a WAL, a journal) is a fault: it would change the database.
//!
//! # Limitations
//! A changed byte within a row of SQLite is found only if there are `BLAKE2SUMS` or `pact-sums.json`: SQLite's pages have no checksums.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::backups::catalog::MAX_RECORD_BYTES;
use crate::backups::sums_list::{Compared, Place};
use crate::backups::verification::Verification;
use crate::backups::{pairs, sums, verify_pact};
use crate::capture::rocksdb::chain_cut::Heights;
use crate::capture::rocksdb::{self, engine, live_files};
use crate::capture::sqlite;
use crate::chainweb::{self, DIRECTORIES, ROCKSDB, SQLITE};
use crate::config::{Depth, Verify};
use crate::control::Control;
use crate::database_files::{
    self, CURRENT, is_immutable, is_manifest, is_of_rocksdb, is_replayed_by_sqlite, is_sst, wal_number,
};
use crate::disk::quiet_reader::PageCache;
use crate::disk::sum::{self, Sum};
use crate::disk::{medium, nofollow, off_heap};
use crate::error::{Error, IoContext, Kind, Result};
use crate::fault::Fault;
use crate::format::layout::{self, MANIFEST_FILE, RECORD_FILE, SUMS_FILE, WHOLE};
use crate::format::manifest::{self, Entry, Manifest};
use crate::format::pact_sums::PactSums;
use crate::format::record::Record;
use crate::format::seal;
use crate::units::total;

/// The largest `manifest.json` that is read: of five million files.
const MAX_SEALED_BYTES: u64 = 1024 * 1024 * 1024;

/// How a backup is verified.
#[derive(Debug, Clone, Copy)]
pub struct VerifyOptions<'a> {
    /// How thoroughly.
    pub depth: Depth,
    /// The program in whose child process RocksDB is opened; if absent, it is opened in this process.
    pub program: Option<&'a Path>,
}

/// Verifies the backup in `path`, whose record is `record` unless it is foreign. An error means that a record of ours could not be
/// read, or a file for another reason than that the disk has lost it, and that no damage was found before; damage is in the result.
pub(crate) fn verify(
    path: &Path,
    record: Option<&Record>,
    options: VerifyOptions<'_>,
    control: &Control,
) -> Result<Verification> {
    if options.depth == Depth::Deep {
        engine::require("deep verification")?;
    }
    let mut result = Verification::default();
    let looked = look((path, record), options, &mut result, control);
    let settled = result.settle_unread(path, control);
    result.ended(looked.and(settled))
}

/// Looks at everything, and puts what it finds into `result`.
fn look(
    (path, record): (&Path, Option<&Record>),
    VerifyOptions { depth, program }: VerifyOptions<'_>,
    result: &mut Verification,
    control: &Control,
) -> Result<()> {
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
    if let Some(record) = record {
        check_seals(path, record, result)?;
    }
    let said = compare_with_manifest(path, record, &files, result)?;
    if let (Some(said), Some(record)) = (&said, record) {
        compare_with_record(said, record, result);
    }
    check_rocksdb(&whole.join(ROCKSDB), &files, result)?;
    let is_database =
        |path: &&str| chainweb::name_in(SQLITE, path).is_some_and(|name| chainweb::is_pact_database(Path::new(name)));
    let databases: Vec<&str> = files.files().map(|file| file.path).filter(is_database).collect();
    for name in &databases {
        if let Some(why) = result.read(name, sqlite::header_fault(&path.join(name)))?.flatten() {
            result.fault(*name, why);
        }
    }
    if let Some(record) = record {
        pairs::check(path, record, depth, result, control)?;
    }
    let existing = Existing { path, files: &files, said: said.as_ref() };
    if depth == Depth::Quick {
        for directory in DIRECTORIES {
            existing.compare_list_with_manifest(directory, result)?;
        }
    } else {
        let is_openable = blocking.is_empty();
        let deep = Deep { existing: &existing, record, is_openable, program, control };
        deep.check(&databases, result)?;
    }
    Ok(())
}

/// What the deep part of a verification looks at.
struct Deep<'a> {
    existing: &'a Existing<'a>,
    record: Option<&'a Record>,
    /// Whether RocksDB can open it without harm: it would open a FIFO and wait for ever, or follow a link.
    is_openable: bool,
    program: Option<&'a Path>,
    control: &'a Control,
}

impl Deep<'_> {
    /// Reads every byte.
    fn check(&self, databases: &[&str], result: &mut Verification) -> Result<()> {
        self.control.expect(self.bytes_to_read(databases)?);
        let (agreed, mut suspects) = self.compare_sums_of_rocksdb(result)?;
        if let Some(said) = self.existing.said {
            self.compare_with_sums_of_manifest(said, &agreed, result)?;
        }
        let path = self.existing.path;
        let recorded =
            self.record.map_or_else(|| Ok(PactSums::default()), |record| PactSums::require(path, &record.id))?;
        self.check_pact(databases, &recorded, result)?;
        if let Some(record) = self.record {
            verify_pact::note_missing(record, &recorded, result);
            pairs::check_folds((record, &recorded, path), result, self.control)?;
            verify_pact::compare_heights((record, path), databases, result)?;
        }
        // A CURRENT that is not ours may be huge, and RocksDB reads all of it into memory.
        let current = chainweb::path_in(ROCKSDB, CURRENT);
        if self.is_openable && !result.names(&current) && self.inspect_rocksdb(result)? {
            Existing::clear(&mut suspects, result);
        }
        result.faults_by_list(suspects);
        self.compare_cut(result)
    }

    /// How many bytes will be read: files with a checksum are read for it, and RocksDB's once more by RocksDB; the databases of Pact once,
    /// and pairs once more for what both files are together.
    fn bytes_to_read(&self, databases: &[&str]) -> Result<u64> {
        let Existing { path, files, said } = *self.existing;
        let has_list = sums::has_sums(&layout::directory_in(path, ROCKSDB))?;
        let of_rocksdb = files.files().enumerate().filter(|(_, file)| is_rocksdbs(file.path));
        let has_sum = |at: usize| has_list || said.is_some_and(|said| said.sums[at].is_some());
        // Of a RocksDB that is read in this process, no bytes are known.
        let times = |at: usize| u64::from(self.program.is_some()) + u64::from(has_sum(at));
        let of_rocksdb = of_rocksdb.map(|(at, file)| file.bytes.saturating_mul(times(at)));
        let of_pact = databases.iter().filter_map(|name| files.bytes_of(name));
        let parts = self.record.iter().flat_map(|record| &record.pact).filter(|part| part.pair.is_some());
        Ok(total(of_rocksdb.chain(of_pact).chain(parts.map(|part| part.bytes))))
    }

    /// Compares RocksDB's files with their `BLAKE2SUMS`. Returns for each file whether the manifest has the same checksum, because a
    /// file that is in both lists is read once; and the files whose checksum only the list contradicts.
    fn compare_sums_of_rocksdb(&self, result: &mut Verification) -> Result<(Vec<bool>, Vec<String>)> {
        let existing = self.existing;
        let mut agreed = vec![false; existing.files.count()];
        let (_, suspects) = existing.compare_with_list(ROCKSDB, result, &mut |at, place| {
            let sum = sum::of(place, cache_after(existing.files.file(at).path), self.control)?;
            agreed[at] = existing.sum_of(at) == Some(sum);
            Ok(sum)
        })?;
        Ok((agreed, suspects))
    }

    /// Has RocksDB read every block. Returns whether it found no damage.
    fn inspect_rocksdb(&self, result: &mut Verification) -> Result<bool> {
        match rocksdb::inspect(&layout::directory_in(self.existing.path, ROCKSDB), self.program, self.control) {
            Ok(inspected) => result.take_inspected(inspected),
            Err(e) if e.kind() == Kind::Damaged => {
                result.fault(chainweb::path_in(ROCKSDB, ""), e.chain());
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    /// Compares the newest cut with that of the record, unless there is a fault already.
    fn compare_cut(&self, result: &mut Verification) -> Result<()> {
        // A program without RocksDB records no height.
        let expected = self.record.and_then(|r| r.rocksdb.as_ref()?.cut_height);
        let Some(expected) = expected.filter(|_| result.is_good()) else { return Ok(()) };
        match rocksdb::read_cut(&layout::directory_in(self.existing.path, ROCKSDB), self.program, self.control)? {
            Heights::Damaged(fault) => result.faults.push(Fault::of_rocksdb(fault)),
            Heights::Unread(fault) => result.cannot_read_by_rocksdb(fault)?,
            Heights::Cut(cut) if cut.as_ref().map(|cut| cut.height) != Some(expected) => {
                let height = cut.map_or(0, |cut| cut.height);
                let why =
                    format!("the heights of its newest blocks add up to {height}, not to the {expected} in the record");
                result.fault(chainweb::path_in(ROCKSDB, ""), why);
            }
            Heights::Cut(_) => {}
        }
        Ok(())
    }

    /// Compares each file with its checksum in the manifest, except those for which that was done already (`agreed`).
    fn compare_with_sums_of_manifest(&self, said: &Said, agreed: &[bool], result: &mut Verification) -> Result<()> {
        for (at, expected) in said.sums.iter().enumerate().filter_map(|(at, sum)| Some((at, (*sum)?))) {
            let name = self.existing.files.file(at).path;
            if agreed[at] || result.names(name) {
                continue;
            }
            result.sums_count += 1;
            let sum = sum::of(&self.existing.path.join(name), cache_after(name), self.control);
            if result.read(name, sum)?.is_some_and(|sum| sum != expected) {
                result.fault(name, "its checksum differs from the manifest's");
            }
        }
        Ok(())
    }

    /// Checks the databases one after the other.
    fn check_pact(&self, databases: &[&str], recorded: &PactSums, result: &mut Verification) -> Result<()> {
        let (existing, control) = (self.existing, self.control);
        let (mut defects, mut checked) = (Vec::new(), vec![false; databases.len()]);
        let (has_list, suspects) = existing.compare_with_list(SQLITE, result, &mut |at, place| {
            let name = existing.files.file(at).path;
            let Some(n) = databases.iter().position(|database| *database == name) else {
                return sum::of(place, PageCache::Unchanged, control);
            };
            let (sum, defect) = verify_pact::check(place, (name, recorded), control)?;
            checked[n] = true;
            defects.extend(defect.map(|defect| (name, defect)));
            Ok(sum)
        })?;
        for (name, is_checked) in databases.iter().zip(checked) {
            // If there is a list, files with a fault are not read.
            if is_checked || (has_list && result.names(name)) {
                continue;
            }
            let found = verify_pact::check(&existing.path.join(name), (name, recorded), control);
            let defect = result.read(name, found)?.and_then(|(_, defect)| defect);
            defects.extend(defect.map(|defect| (*name, defect)));
        }
        defects.into_iter().for_each(|(name, defect)| defect.note(name, result));
        result.faults_by_list(suspects);
        Ok(())
    }
}

/// What the page cache has of a file after its checksum was computed: RocksDB reads its SSTs once more, but with a cache of its own,
/// and the page cache is for the node.
fn cache_after(path: &str) -> PageCache {
    if is_immutable(path) { PageCache::Unchanged } else { PageCache::Filled }
}

/// Whether RocksDB might open a file of this path by itself.
fn is_rocksdbs(path: &str) -> bool {
    chainweb::name_in(ROCKSDB, path).is_some_and(database_files::may_be_opened)
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
    record: Option<&Record>,
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
    let read = if_fit(nofollow::open_regular(&file).and_then(|file| manifest::read_each(file, &mut compare)), &file)?;
    if read != Some(true) {
        if record.is_some() || read.is_some() {
            let why = if read.is_some() { "it is damaged, or of an unknown format" } else { "it is missing" };
            result.fault(MANIFEST_FILE, why);
        }
        return Ok(None);
    }
    if record.is_none() {
        let again = if_fit(nofollow::read_small(&path.join(RECORD_FILE), MAX_RECORD_BYTES), &path.join(RECORD_FILE))?;
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
        // No manifest names a BLAKE2SUMS, and a process that wrote one after the commit may have been interrupted.
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
    chainweb::name_in(ROCKSDB, path).is_some_and(|name| wal_number(name).is_some())
        || chainweb::name_in(SQLITE, path).is_some_and(is_replayed_by_sqlite)
}

/// Whether a file of this name belongs to a node's database; for a backup without a manifest.
fn is_of_a_database(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    is_of_rocksdb(name) || chainweb::is_pact_database(Path::new(name)) || is_replayed(path)
}

/// As [`nofollow::if_fit`]. An error of reading is not a fault of the backup.
fn if_fit<T>(read: io::Result<T>, path: &Path) -> Result<Option<T>> {
    nofollow::if_fit(read).context(|| format!("cannot read {}", path.display()))
}

/// Checks the seals of our two files. A missing file is reported elsewhere.
fn check_seals(path: &Path, record: &Record, result: &mut Verification) -> Result<()> {
    for name in [RECORD_FILE, MANIFEST_FILE] {
        let is_whole = |file: File| match file.metadata()?.len() {
            bytes if bytes > MAX_SEALED_BYTES => Ok(Some(false)),
            bytes => seal::is_whole(&file, bytes),
        };
        let is_whole = if_fit(nofollow::open_regular(&path.join(name)).and_then(is_whole), &path.join(name))?;
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
        for (name, bytes) in pairs::files_of(part) {
            if said.pact.get(&name) != Some(&bytes) {
                fault(format!("it names {name} with {bytes} bytes, but {MANIFEST_FILE} does not"));
            }
        }
    }
}

/// Checks that CURRENT names a MANIFEST, and that the files named by the MANIFEST exist with their sizes.
fn check_rocksdb(directory: &Path, files: &Manifest, result: &mut Verification) -> Result<()> {
    let named = match live_files::read(directory) {
        Err(e) if medium::is_lost(&e) => {
            let is_read =
                |path: &str| chainweb::name_in(ROCKSDB, path).is_some_and(|name| name == CURRENT || is_manifest(name));
            let suspects = files.files().filter(|file| is_read(file.path));
            suspects.for_each(|file| result.cannot_read(file.path, e.chain()));
            return Ok(());
        }
        named => named?,
    };
    result.faults.extend(named.faults.into_iter().map(Fault::of_rocksdb));
    for file in named.live {
        let name = file.name();
        let path = chainweb::path_in(ROCKSDB, &name);
        match files.bytes_of(&path) {
            None => result.fault(path, "it is missing although the MANIFEST names it"),
            Some(bytes) if bytes != file.bytes => {
                result.fault(path, format!("it has {bytes} bytes instead of the {} in the MANIFEST", file.bytes));
            }
            Some(bytes) if is_sst(&name) => {
                if result.read(&path, ends_in_zeroes(&directory.join(&name), bytes))? == Some(true) {
                    result.fault(path, "its end is zeroes: it was not written whole");
                }
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Whether an SST of this size lacks its magic number, which every format of it has in its last 8 bytes (table/format.h of RocksDB), because
/// they are zeroes: as after a power cut, or in a copy with holes. Other values may be a format that is not known here.
fn ends_in_zeroes(sst: &Path, bytes: u64) -> Result<bool> {
    let failed = || format!("cannot read {}", sst.display());
    let file = nofollow::open_regular(sst).context(failed)?;
    // Without read-ahead: a later backup has thousands of them, and the page cache is the node's.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random);
    let mut end = [0; 8];
    let at = bytes.saturating_sub(end.len() as u64);
    match file.read_exact_at(&mut end, at) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(true),
        read => read.context(failed).map(|()| end == [0; 8]),
    }
}

/// The existing files of a backup, and what its manifest says of them.
struct Existing<'a> {
    path: &'a Path,
    files: &'a Manifest,
    said: Option<&'a Said>,
}

impl Existing<'_> {
    /// The checksum of a file in the manifest.
    fn sum_of(&self, at: usize) -> Option<Sum> {
        self.said.and_then(|said| said.sums[at])
    }

    /// Compares a directory with its `BLAKE2SUMS`: every file of the backup has a line, and every line a file. Files that are not
    /// in the manifest are ignored. `sum` computes the checksum of a file. Returns whether there is a list, and the files whose
    /// checksum differs from that in it and is not in the manifest.
    fn compare_with_list(
        &self,
        directory: &str,
        result: &mut Verification,
        sum: &mut dyn FnMut(usize, &Path) -> Result<Sum>,
    ) -> Result<(bool, Vec<String>)> {
        let compared = self.compare(directory, &mut |at, listed| {
            let name = self.files.file(at).path;
            // It is not part of the backup, or its size and so its checksum is wrong: it is not read, because it may be huge.
            if result.names(name) || self.said.is_some_and(|said| !said.named[at]) {
                return Ok(listed);
            }
            result.sums_count += 1;
            Ok(result.read(name, sum(at, &self.path.join(name)))?.unwrap_or(listed))
        })?;
        // A missing file that is in the manifest is reported already.
        for file in compared.absent.iter().filter(|_| self.said.is_none()) {
            result.fault(file, format!("it is missing although {SUMS_FILE} names it"));
        }
        let without_sum = compared.differing.iter().filter(|(at, _)| self.sum_of(*at).is_none());
        let suspects = without_sum.map(|(at, _)| self.files.file(*at).path.to_owned()).collect();
        let exists = compared.exists;
        self.note(directory, compared, result);
        Ok((exists, suspects))
    }

    /// The same without reading a file: only the names, and the checksums that are in the manifest.
    fn compare_list_with_manifest(&self, directory: &str, result: &mut Verification) -> Result<()> {
        let compared = self.compare(directory, &mut |at, listed| Ok(self.sum_of(at).unwrap_or(listed)))?;
        self.note(directory, compared, result);
        Ok(())
    }

    fn compare(&self, directory: &str, sum: &mut dyn FnMut(usize, Sum) -> Result<Sum>) -> Result<Compared> {
        let belongs = |at| self.belongs(at);
        let prefix = sums::prefix_of(directory);
        let directory = layout::directory_in(self.path, directory);
        Place { directory, prefix, files: self.files, belongs: &belongs }.compare(sum)
    }

    fn belongs(&self, at: usize) -> bool {
        let path = self.files.file(at).path;
        let belongs = self.said.map_or_else(|| is_of_a_database(path), |said| said.named[at]);
        belongs && !path.rsplit('/').next().is_some_and(sums::is_ours)
    }

    /// Notes the defects of a list.
    fn note(&self, directory: &str, compared: Compared, result: &mut Verification) {
        let file = chainweb::path_in(directory, SUMS_FILE);
        let mut defects = compared.defects;
        let is_whole = |(at, actual): &&(usize, Sum)| self.sum_of(*at) == Some(*actual);
        let mut wrong = compared.differing.iter().filter(is_whole);
        if let Some((first, _)) = wrong.next() {
            defects.push(sums::differs_from_manifest(1 + wrong.count(), self.files.file(*first).path));
        }
        let of_list = |why| Fault { file: file.clone(), why: format!("{why}; sum mends the list") };
        result.notes.extend(defects.into_iter().map(of_list));
    }

    /// Removes the SSTs from the `suspects`: RocksDB has read each of their blocks and found no damage, so the list is wrong.
    fn clear(suspects: &mut Vec<String>, result: &mut Verification) {
        let cleared: Vec<String> = suspects.extract_if(.., |file| is_sst(file)).collect();
        if let Some(first) = cleared.first() {
            let count = cleared.len();
            let why = format!(
                "{count} checksums are wrong, the first is that of {first}: RocksDB found no damage; remove the list, then \
                 write it again with sum"
            );
            result.notes.push(Fault { file: chainweb::path_in(ROCKSDB, SUMS_FILE), why });
        }
    }
}

/// Fails with [`Kind::Usage`] if this program cannot make such a verification.
pub(crate) fn require_possible(verify: Verify) -> Result<()> {
    if verify == Some(Depth::Deep) { engine::require("backup.verify: deep") } else { Ok(()) }
}
