//! Private parts of the crate for its own tests, as plain functions. Compiled only with the private feature `gate`.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::backups::pairs::{self, ToFold};
use crate::capture::rocksdb::live_copy;
use crate::capture::rocksdb::log_format::{self, End, Fragments, Records};
use crate::capture::rocksdb::version_edit::Versions;
use crate::capture::source::SqliteSource;
use crate::capture::sqlite;
use crate::capture::sqlite::attempt::{EarlierDatabase, How, Linkable};
use crate::capture::sqlite::delta::modified;
use crate::capture::sqlite::increment::PAGE_SIZE_AT;
use crate::capture::sqlite::wal::{HEADER_BYTES, Header, Index};
use crate::config::PactMethod;
use crate::control::Control;
use crate::database_files;
use crate::disk::copy::Copier;
use crate::disk::nofollow;
use crate::disk::piece_sums::PieceSums;
use crate::disk::sys;
use crate::error::{Error, Result};
use crate::format::record::PactPart;
use crate::id::BackupId;

/// Copies whose files belong to the process.
fn unowned(control: &Control) -> Copier<'_> {
    Copier { owner: None, control }
}

/// One live copy of the database in `source` to the new directory `to`, by links in `pins`; rounds and window.
///
/// # Errors
/// As the live copy.
pub fn live_copy(source: &Path, to: &Path, pins: &Path) -> Result<(u32, Duration)> {
    let mut copied = live_copy::copy(source, to, pins, None, unowned(&Control::default()))?;
    copied.unsynced.sync()?;
    Ok((copied.run.rounds_count, copied.run.window))
}

/// The same, by links in the copy itself; returns its warnings.
///
/// # Errors
/// As the live copy.
pub fn live_copy_warned(source: &Path, to: &Path) -> Result<Vec<String>> {
    let mut copied = live_copy::copy(source, to, to, None, unowned(&Control::default()))?;
    copied.unsynced.sync()?;
    Ok(copied.warnings)
}

/// Whether the live copy links this file instead of copying it.
pub fn is_immutable(name: &str) -> bool {
    database_files::is_immutable(name)
}

fn word(end: End) -> &'static str {
    match end {
        End::Clean => "clean",
        End::Torn => "torn",
        End::Damaged => "damaged",
    }
}

/// A log: its complete bytes, whether it is recyclable, and how it ends.
pub fn measure(log: &[u8]) -> (u64, bool, &'static str) {
    let extent = log_format::measure(log).expect("bytes in memory can be read");
    (extent.complete_bytes, extent.recyclable, word(extent.end))
}

/// The records of a log from `position` on, the beginning of a record; and how the log ends.
pub fn records(log: &[u8], position: u64) -> (Vec<Vec<u8>>, &'static str) {
    let block = usize::try_from(log_format::block_of(position)).expect("a log in memory is not so long");
    let mut records = Records::from(&log[block..], position);
    let mut all = Vec::new();
    loop {
        let mut record = match records.next().expect("bytes in memory can be read") {
            Ok(record) => record,
            Err(end) => return (all, word(end)),
        };
        let bytes = std::iter::from_fn(|| record.byte()).collect();
        if let Some(end) = record.finish().expect("bytes in memory can be read") {
            return (all, word(end));
        }
        all.push(bytes);
    }
}

/// The end and the kind of each fragment of a log.
pub fn fragments(log: &[u8]) -> Vec<(u64, String)> {
    let mut fragments = Fragments::new(log);
    let mut all = Vec::new();
    while let Ok(fragment) = fragments.next().expect("bytes in memory can be read") {
        all.push((fragment.end, format!("{:?}", fragment.kind)));
    }
    all
}

/// The live files that a MANIFEST names, with their sizes, or the reason why it is refused.
///
/// # Errors
/// A sentence, as the operator would read it.
pub fn live_files(manifest: &[u8]) -> std::result::Result<Vec<(String, u64)>, String> {
    live_files_read(manifest, &[])
}

/// The same for a MANIFEST that is read at each of these lengths, and then as a whole: each time only the new part.
///
/// # Errors
/// A sentence, as the operator would read it.
pub fn live_files_read(manifest: &[u8], lengths: &[usize]) -> std::result::Result<Vec<(String, u64)>, String> {
    let mut versions = Versions::new();
    for length in lengths.iter().chain([&manifest.len()]) {
        let start = usize::try_from(log_format::block_of(versions.complete_bytes())).expect("it is in memory");
        versions.read(&manifest[start..*length]).expect("bytes in memory can be read")?;
        versions.tables();
    }
    Ok(versions.into_live_files().into_iter().map(|f| (f.name(), f.bytes)).collect())
}

/// One copy of an SQLite database in this process, as for a node that embeds us.
///
/// # Errors
/// As a backup's.
pub fn embedded_copy(database: &Path, to: &Path, method: PactMethod) -> Result<PactPart> {
    let control = Control::default();
    let how = How { node_seen_on: &|| Ok(None), method, copier: unowned(&control), base: None, keeps_sums: false };
    sqlite::copy(&SqliteSource::Embedded(PathBuf::new()), database, to, &how).map(|copied| copied.part)
}

/// One copy of an SQLite database of another process, in the way that fits it. If the node is running, only the locks on the
/// database itself show that its locks reach us.
///
/// # Errors
/// As a backup's.
pub fn foreign_copy(database: &Path, to: &Path, node_is_up: bool, control: &Control) -> Result<PactPart> {
    let node_seen_on = || Ok(node_is_up.then_some(u64::MAX));
    let how = How {
        node_seen_on: &node_seen_on,
        method: PactMethod::default(),
        copier: unowned(control),
        base: None,
        keeps_sums: false,
    };
    sqlite::copy(&SqliteSource::Foreign(PathBuf::new()), database, to, &how).map(|copied| copied.part)
}

/// A copy of which the next one can be an increment: its file, and its sums.
#[derive(Debug)]
pub struct Earlier {
    path: PathBuf,
    sums: Option<PieceSums>,
}

impl Earlier {
    /// The copy in `path`, whose sums are not known.
    pub fn without_sums(path: &Path) -> Earlier {
        Earlier { path: path.to_owned(), sums: None }
    }
}

/// As [`embedded_copy`] or, of another process that is running, [`foreign_copy`], as an increment of an earlier copy if there is one.
///
/// # Errors
/// As a backup's.
pub fn incremental_copy(
    database: &Path,
    to: &Path,
    earlier: Option<&Earlier>,
    is_embedded: bool,
) -> Result<(PactPart, Earlier)> {
    let control = Control::default();
    let open = |earlier: &Earlier| -> std::io::Result<EarlierDatabase> {
        let file = nofollow::open_regular(&earlier.path)?;
        let mut page_size = [0; 2];
        file.read_exact_at(&mut page_size, PAGE_SIZE_AT)?;
        let (id, bytes) = (BackupId::from_millis(1), file.metadata()?.len());
        Ok(EarlierDatabase { id, file, bytes, page_size, sums: earlier.sums.clone(), linkable: None })
    };
    let base = earlier.map(open).transpose().map_err(|e| Error::io("cannot open the earlier copy".to_owned(), e))?;
    let how = How {
        node_seen_on: &|| Ok((!is_embedded).then_some(u64::MAX)),
        method: PactMethod::Auto,
        copier: unowned(&control),
        base: base.as_ref(),
        keeps_sums: true,
    };
    let source = if is_embedded { SqliteSource::Embedded } else { SqliteSource::Foreign };
    let copied = sqlite::copy(&source(PathBuf::new()), database, to, &how)?;
    Ok((copied.part, Earlier { path: to.to_owned(), sums: copied.sums }))
}

/// A copy on which later ones can be pairs, or a pair.
#[derive(Debug)]
pub struct Paired {
    /// What the record says of it.
    pub part: PactPart,
    path: PathBuf,
    sums: PieceSums,
    base_sums: PieceSums,
}

impl Paired {
    /// Writes the database that a pair is to a new file, as a restore does.
    ///
    /// # Errors
    /// As a restore's.
    pub fn fold(&self, to: &Path) -> Result<()> {
        let control = Control::default();
        let pair = self.part.pair.as_ref().expect("it is a pair");
        let wanted = ToFold { part: &self.part, pair, sums: Some(&self.sums) };
        pairs::fold(unowned(&control), &self.path, to, wanted)?.sync().map(|_| ())
    }
}

/// As [`incremental_copy`], but as a pair, of any size, on the base of an earlier one if there is one.
///
/// # Errors
/// As a backup's.
pub fn delta_copy(database: &Path, to: &Path, earlier: Option<&Paired>, is_embedded: bool) -> Result<Paired> {
    let control = Control::default();
    let open = |earlier: &Paired| -> std::io::Result<EarlierDatabase> {
        let file = nofollow::open_regular(&earlier.path)?;
        let (id, meta) = (BackupId::from_millis(1), file.metadata()?);
        let mut page_size = [0; 2];
        file.read_exact_at(&mut page_size, PAGE_SIZE_AT)?;
        let linkable = Linkable {
            path: earlier.path.clone(),
            made_by: id.clone(),
            modified: modified(&meta),
            max_wal_bytes: u64::MAX,
            deltas_bytes: earlier.part.pair.as_ref().map_or(0, |pair| pair.deltas_bytes),
            deltas_count: earlier.part.pair.as_ref().map_or(0, |pair| pair.deltas_count),
        };
        let sums = Some(earlier.base_sums.clone());
        Ok(EarlierDatabase { id, file, bytes: meta.len(), page_size, sums, linkable: Some(linkable) })
    };
    let base = earlier.map(open).transpose().map_err(|e| Error::io("cannot open the base".to_owned(), e))?;
    let how = How {
        node_seen_on: &|| Ok((!is_embedded).then_some(u64::MAX)),
        method: PactMethod::Delta,
        copier: unowned(&control),
        base: base.as_ref(),
        keeps_sums: true,
    };
    let source = if is_embedded { SqliteSource::Embedded } else { SqliteSource::Foreign };
    let copied = sqlite::copy(&source(PathBuf::new()), database, to, &how)?;
    let sums = copied.sums.expect("they were asked for");
    let base_sums = copied.base_sums.unwrap_or_else(|| sums.clone());
    Ok(Paired { part: copied.part, path: to.to_owned(), sums, base_sums })
}

/// The control of a job that copies at most `limit_bytes` per second (0: no limit) and leaves `reserve_bytes` free.
pub fn control(limit_bytes: u64, reserve_bytes: u64) -> Control {
    let control = Control::limited(Arc::new(AtomicU64::new(limit_bytes)));
    control.set_reserve(reserve_bytes);
    control
}

/// The cached bytes of a file; `None` if the kernel does not report them.
pub fn cached_bytes(file: &File) -> Option<u64> {
    sys::cached(file.as_fd(), 0, file.metadata().ok()?.len()).map(|cached| cached.bytes())
}

/// The frames, and their bytes, of an SQLite WAL index: read from both headers, or from either.
pub fn wal_index(index: &[u8; 100]) -> [Option<(u64, u64)>; 2] {
    [Index::parse(index), Index::parse_either(index)].map(|index| index.map(|index| (index.frames, index.bytes())))
}

/// The committed frames of an SQLite WAL; `None` without a header.
pub fn wal_frames(wal: &[u8]) -> Option<u64> {
    let mut scan = Header::parse(wal)?.scan(u64::MAX);
    // In pieces that do not end with a frame, as when they are read from a file.
    wal[HEADER_BYTES..].chunks(4096 + 7).for_each(|piece| scan.take(piece));
    Some(scan.committed())
}
