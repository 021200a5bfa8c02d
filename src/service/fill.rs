//! Fills a backup: from pre-flight to a `0.partial` that `commit` can commit.
//!
//! Order of capture: the Pact databases first, one after the other, RocksDB last. Every Pact database is then at or behind
//! RocksDB, which the node repairs by replaying blocks; nothing is held open longer than one database takes. A node may
//! commit Pact a moment before the block reaches RocksDB: so the blocks are compared in the finished copies, and RocksDB is
//! captured again while Pact is ahead by a block or two and less each time. A distance that is larger, or does not shrink, is
//! no matter of a moment: it is a warning. On another file system, the capture that is discarded is the next one's earlier
//! backup, put aside in `0.partial` until then: nothing is copied twice.
//!
//! Invariants: when this returns, every file is synced, links too, or is in the batch that is returned to be. The first error
//! ends the job.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use crate::backups::catalog::Catalog;
use crate::backups::commit::Unfinished;
use crate::backups::reread::Base;
use crate::capture::modes;
use crate::capture::rocksdb::chain_cut::{Cut, Standing, Tip};
use crate::capture::rocksdb::engine;
use crate::capture::rocksdb::live_directories::is_immutable;
use crate::capture::rocksdb::live_files;
use crate::capture::rocksdb::version_edit::LiveFile;
use crate::capture::rocksdb::{self, Capture};
use crate::capture::source::{RocksSource, Sources, resolve};
use crate::capture::sqlite;
use crate::capture::sqlite::attempt::How;
use crate::chainweb::{self, ROCKSDB, SQLITE};
use crate::config::Config;
use crate::control::{Control, Phase};
use crate::disk;
use crate::disk::sum::{self, Known};
use crate::disk::unsynced::{Batch, Links};
use crate::error::{Error, Kind, Result};
use crate::format::layout::DISCARDED;
use crate::format::manifest::Manifest;
use crate::format::record::{Method, PactPart, RocksdbPart, Status};
use crate::service::repair::Capturing;

/// How often RocksDB is captured while Pact is ahead of it: once, and three times again.
const MAX_CAPTURES: u32 = 4;

/// How many blocks ahead Pact may be for another capture to be worth it.
const MAX_BLOCKS_AHEAD: u64 = 2;

/// What a node may need to bring a committed Pact block into RocksDB: before the next capture, and once for a program that
/// cannot read RocksDB's heights.
const PACT_AHEAD_PAUSE: Duration = Duration::from_secs(1);

/// The reserve where none is configured: the smaller of this and a twentieth of the file system.
const DEFAULT_RESERVE_BYTES: u64 = 1024 * 1024 * 1024;

/// Fills the backup and writes what came into its record. Returns the files, and what is still to be synced: besides the
/// directories, what RocksDB has that is no link.
pub(crate) fn fill(
    backup: &mut Unfinished,
    catalog: &Catalog,
    sources: &Sources,
    config: &Config,
    control: &Control,
) -> Result<(Manifest, Batch)> {
    let owner = backup.owner();
    let partial = backup.partial();
    control.enter(Phase::PreFlight);
    control.check()?;
    disk::create_private_dir(&partial, owner)?;
    let databases = if backup.record.scope.has_pact() { sources.sqlite.databases()? } else { Vec::new() };
    let linked = rocksdb::can_link(sources.rocksdb.path(), &partial)?;
    let mut base = if linked { None } else { Base::find(catalog)? };
    let live = base
        .as_ref()
        .and_then(|_| resolve(sources.rocksdb.path()).and_then(|d| live_files::in_directory(&d)).ok())
        .unwrap_or_default();
    let saved_bytes = base.as_ref().map_or(0, |base| base.files.saved_bytes(&live));
    let rocksdb_bytes = if linked { 0 } else { rocksdb::total_bytes(&sources.rocksdb)?.saturating_sub(saved_bytes) };
    pre_flight(&partial, &databases, rocksdb_bytes, catalog, config, control)?;
    let now_ms = backup.record.started_ms;
    if let Some(base) = base.as_mut().filter(|_| config.reread_percent > 0) {
        control.enter(Phase::Reread);
        let faults = base.read_share(&live, config.reread_percent, now_ms, catalog, control)?;
        backup.record.warnings.extend(faults.iter().map(|fault| base.warning(fault)));
    }
    drop(live);

    if backup.record.scope.has_pact() {
        control.enter(Phase::Pact);
        let directory = partial.join(SQLITE);
        disk::create_dir(&directory, owner)?;
        let node_seen_on = || sources.rocksdb.lock_seen_on();
        let how = How { node_seen_on: &node_seen_on, method: config.pact_method, owner, control };
        for database in &databases {
            let name = database.file_name().ok_or_else(|| nameless(database))?;
            let part = sqlite::copy(&sources.sqlite, database, &directory.join(name), &how)?;
            log::debug!("copied database={} bytes={} height={:?}", part.file, part.bytes, part.block_height);
            backup.record.pact.push(part);
        }
        backup.record.warnings.extend(missing_databases(catalog, &backup.record.pact)?);
    }

    if backup.record.scope.has_pact() && engine::require("the heights").is_err() {
        // Nobody can see whether Pact is ahead: what the node committed to it shall have reached RocksDB.
        sleep(PACT_AHEAD_PAUSE);
    }
    let program = config.heights_program.as_deref();
    let capturing = Capturing { sources, catalog, program, owner, now_ms, control };
    let Captured { capture, cut, captures_count } = capture_rocksdb(backup, &capturing, base)?;

    let rocksdb = partial.join(ROCKSDB);
    backup.record.warnings.extend_from_slice(&capture.warnings);
    control.enter(Phase::Sync);
    let pact = backup.record.pact.clone();
    let mut manifest = Manifest::of(&partial, &|path| method_of(path, &pact, &capture))?;
    require_whole(&manifest, &pact, &rocksdb)?;
    sync_links(&manifest, &partial, control)?;
    modes::keep(sources, &partial, &manifest)?;
    sum_logs(&mut manifest, &partial, control)?;
    know_tables(&mut manifest, &capture, now_ms);
    backup.record.replay_blocks = cut.as_ref().and_then(|cut| replay_blocks(&pact, cut));
    backup.record.versions.rocksdb = rocksdb::version_in(&rocksdb).unwrap_or_default();
    backup.record.rocksdb = Some(rocksdb_part(&manifest, &capture, captures_count, cut));
    Ok((manifest, capture.unsynced))
}

/// What the captures of RocksDB came to.
struct Captured {
    capture: Capture,
    cut: Option<Cut>,
    captures_count: u32,
}

/// Captures RocksDB, again while Pact is a little ahead of it. What is to be said of that comes into the record.
fn capture_rocksdb(backup: &mut Unfinished, capturing: &Capturing<'_>, mut base: Option<Base>) -> Result<Captured> {
    let (rocksdb, aside) = (backup.partial().join(ROCKSDB), backup.partial().join(DISCARDED));
    let source = &capturing.sources.rocksdb;
    let (mut captures_count, mut blocks_before, mut brought_before) = (0, u64::MAX, None);
    let (capture, cut) = loop {
        captures_count += 1;
        let (mut capture, cut) = capturing.run(&rocksdb, &mut base, &mut backup.record.warnings)?;
        brought_before.iter().for_each(|before| capture.brought.count_from(before));
        if let Err(e) = engine::require("reading the heights") {
            let unknown = "the height of RocksDB is unknown, and whether Pact is ahead of it";
            backup.record.warnings.push(format!("{unknown}: {}", e.chain()));
            break (capture, None);
        }
        let Some(ahead) = cut.as_ref().and_then(|cut| Ahead::of(&backup.record.pact, cut)) else {
            break (capture, cut);
        };
        // A node that is down will not write the missing block either.
        let is_down = matches!(source, RocksSource::Directory(_)) && !source.is_held_by_another()?;
        let may_pass = ahead.blocks_max <= MAX_BLOCKS_AHEAD && ahead.blocks_sum < blocks_before;
        if is_down || !may_pass || captures_count == MAX_CAPTURES {
            backup.record.warnings.push(ahead.warning(captures_count));
            break (capture, cut);
        }
        log::info!("capturing rocksdb again id={} reason={:?}", backup.id(), ahead.what);
        blocks_before = ahead.blocks_sum;
        if capture.linked {
            disk::remove_tree(&rocksdb, &|| true)?;
        } else {
            // Nobody else will sync what the next capture takes of it.
            capture.unsynced.sync()?;
            disk::remove_tree(&aside, &|| true)?;
            disk::rename(&rocksdb, &aside)?;
            base = Base::discarded(backup.id(), &aside, &capture.brought, capturing.now_ms);
            brought_before = Some(capture.brought);
        }
        sleep(PACT_AHEAD_PAUSE);
    };
    drop(base);
    disk::remove_tree(&aside, &|| true)?;
    Ok(Captured { capture, cut, captures_count })
}

/// Makes the links durable: the node's files, which an operator may have copied here a moment ago, and those of an earlier
/// backup, for the same reason.
fn sync_links(manifest: &Manifest, partial: &Path, control: &Control) -> Result<()> {
    let directory = partial.join(ROCKSDB);
    let mut links = Links::of(&directory)?;
    for file in manifest.files().filter(|file| matches!(file.method, Method::Linked | Method::Reused)) {
        control.check()?;
        control.step();
        if let Some(name) = chainweb::name_in(ROCKSDB, file.path) {
            links.sync(Path::new(name))?;
        }
    }
    links.finish()
}

/// Checksums of RocksDB's files that are no SSTs: they are small, always copied, and RocksDB itself takes a WAL that is
/// damaged for one that ends there.
fn sum_logs(manifest: &mut Manifest, partial: &Path, control: &Control) -> Result<()> {
    let is_log = |path: &str| chainweb::name_in(ROCKSDB, path).is_some_and(|name| !is_immutable(name));
    let logs: Vec<String> = manifest.files().filter(|f| is_log(f.path)).map(|f| f.path.to_owned()).collect();
    for path in logs {
        let place = partial.join(chainweb::below_place(&path).unwrap_or(&path));
        let sum = sum::of(&place, false, control)?;
        manifest.find(&path).into_iter().for_each(|at| manifest.know(at, Known { sum, read_ms: 0 }));
    }
    Ok(())
}

/// Notes in the manifest what is known of the files that are no links to the node's: what was copied was read just now.
fn know_tables(manifest: &mut Manifest, capture: &Capture, now_ms: u64) {
    for at in 0..manifest.count() {
        let came = table_number(manifest.file(at).path).and_then(|number| capture.brought.find(number));
        if let Some(came) = came
            && let Some(known) = came.known
        {
            manifest.know(at, if came.reused { known } else { Known { read_ms: now_ms, ..known } });
        }
    }
}

/// The number of an SST or blob file of RocksDB.
fn table_number(path: &str) -> Option<u64> {
    chainweb::name_in(ROCKSDB, path).and_then(LiveFile::number_in)
}

/// Refuses before byte one what cannot end well: a disk without room.
fn pre_flight(
    partial: &Path,
    databases: &[std::path::PathBuf],
    rocksdb_bytes: u64,
    catalog: &Catalog,
    config: &Config,
    control: &Control,
) -> Result<()> {
    let mut needed_bytes = rocksdb_bytes;
    for database in databases {
        needed_bytes += sqlite::needed_bytes(database)?;
    }
    let (mut free_bytes, size_bytes) = disk::free_bytes(partial)?;
    let reserve_bytes = config.reserve_bytes.unwrap_or(DEFAULT_RESERVE_BYTES.min(size_bytes / 20));
    control.set_total(needed_bytes);
    control.set_reserve(reserve_bytes);
    let wanted_bytes = needed_bytes.saturating_add(reserve_bytes);
    if free_bytes < wanted_bytes {
        // What an interrupted backup has left must not keep the next one from being made.
        let go_on = || {
            control.step();
            control.check().is_ok()
        };
        if let Err(e) = catalog.sweep(&go_on) {
            log::warn!("garbage not removed reason={:?}", e.chain());
        }
        control.check()?;
        free_bytes = disk::free_bytes(partial)?.0;
    }
    if free_bytes >= wanted_bytes {
        return Ok(());
    }
    let context = format!(
        "not enough space: the backup needs {needed_bytes} bytes and {reserve_bytes} bytes must stay free, but only \
         {free_bytes} bytes are free; delete old backups or use a larger file system"
    );
    Err(Error::new(Kind::NoSpace, context))
}

/// What was copied must still be there: somebody may be deleting this backup by hand while it is made. `rm -rf` takes some
/// files, fails on the directory that we go on filling, and leaves a backup that lacks what it took.
fn require_whole(manifest: &Manifest, pact: &[PactPart], rocksdb: &Path) -> Result<()> {
    let gone = |name: &str| {
        Error::new(Kind::Damaged, format!("{name} is gone or has another size: did somebody delete this backup?"))
    };
    let live = live_files::in_directory(rocksdb)?;
    let of_rocksdb = live.into_iter().map(|file| (chainweb::path_in(ROCKSDB, &file.name()), file.bytes));
    let of_pact = pact.iter().map(|part| (chainweb::path_in(SQLITE, &part.file), part.bytes));
    for (name, expected) in of_rocksdb.chain(of_pact) {
        if manifest.bytes_of(&name) != Some(expected) {
            return Err(gone(&name));
        }
    }
    Ok(())
}

fn nameless(database: &Path) -> Error {
    Error::new(Kind::Refused, format!("{} has no file name", database.display()))
}

/// A database that the last good backup with Pact has and this one has not: worth a warning, never silent.
fn missing_databases(catalog: &Catalog, pact: &[PactPart]) -> Result<Option<String>> {
    let last = catalog.readable()?.find(|f| f.status == Status::Done && f.scope.has_pact() && f.record.is_some());
    let Some(last) = last.and_then(|f| f.record) else { return Ok(None) };
    let here = |file: &str| pact.iter().any(|p| p.file == file);
    let missing: Vec<&str> = last.pact.iter().map(|p| p.file.as_str()).filter(|f| !here(f)).collect();
    let warning = || format!("databases of backup {} are missing in this one: {}", last.id, missing.join(", "));
    Ok((!missing.is_empty()).then(warning))
}

/// How far Pact is ahead of a capture of RocksDB.
struct Ahead {
    /// Of the chain that is furthest.
    blocks_max: u64,
    /// Of all chains.
    blocks_sum: u64,
    /// In words.
    what: String,
}

impl Ahead {
    /// `None` where every Pact database is at or behind the cut, as far as can be seen.
    fn of(pact: &[PactPart], cut: &Cut) -> Option<Ahead> {
        let standings = pact.iter().filter_map(|part| Some((standing(part, cut)?, part)));
        let ahead: Vec<(Standing, &PactPart)> = standings.filter(|(s, _)| s.blocks_ahead() > 0).collect();
        let (worst, part) = ahead.iter().max_by_key(|(standing, _)| *standing)?;
        let (height, hash) = (part.block_height.unwrap_or(0), part.block_hash.as_deref().unwrap_or("of no hash"));
        let what = match worst {
            Standing::Above(blocks) => format!("pact is {blocks} blocks ahead of rocksdb"),
            _ => format!("pact is on a block that rocksdb does not have ({hash})"),
        };
        let others = if ahead.len() > 1 { format!(" and {} more", ahead.len() - 1) } else { String::new() };
        let what = format!("{what}, at height {height}, on chain {}{others}", part.chain.unwrap_or(0));
        let blocks = || ahead.iter().map(|(standing, _)| standing.blocks_ahead());
        Some(Ahead { blocks_max: blocks().max()?, blocks_sum: blocks().sum(), what })
    }

    fn warning(&self, captures_count: u32) -> String {
        let promise = "Pact is to be at or behind RocksDB in a backup, but";
        let then = "the node must rewind Pact at its start";
        format!("{promise} {} after {captures_count} capture(s) of RocksDB: {then}", self.what)
    }
}

fn standing(part: &PactPart, cut: &Cut) -> Option<Standing> {
    cut.standing(&Tip { chain: part.chain?, height: part.block_height?, hash: part.block_hash.clone() })
}

/// The largest number of blocks that a Pact database is behind the cut.
fn replay_blocks(pact: &[PactPart], cut: &Cut) -> Option<u64> {
    let behind = |standing| if let Standing::Behind(blocks) = standing { blocks } else { 0 };
    pact.iter().filter_map(|part| standing(part, cut).map(behind)).max()
}

fn method_of(path: &str, pact: &[PactPart], capture: &Capture) -> Method {
    match chainweb::name_in(SQLITE, path) {
        Some(name) => pact.iter().find(|p| p.file == name).map_or(Method::Copied, |p| p.method),
        None if capture.linked && is_immutable(path) => Method::Linked,
        None => {
            let came = table_number(path).and_then(|number| capture.brought.find(number));
            if came.is_some_and(|came| came.reused) { Method::Reused } else { Method::Copied }
        }
    }
}

fn rocksdb_part(manifest: &Manifest, capture: &Capture, captures_count: u32, cut: Option<Cut>) -> RocksdbPart {
    let files = || manifest.files().filter(|f| chainweb::name_in(ROCKSDB, f.path).is_some());
    let copied = files().filter(|f| !matches!(f.method, Method::Linked | Method::Reused));
    RocksdbPart {
        capture: capture.way.to_owned(),
        files_count: files().count() as u64,
        bytes: files().map(|f| f.bytes).sum(),
        copied_bytes: copied.map(|f| f.bytes).sum(),
        captures_count,
        rounds_count: capture.live.as_ref().map(|run| run.rounds_count),
        window_us: capture.live.as_ref().map(|run| u64::try_from(run.window.as_micros()).unwrap_or(u64::MAX)),
        cut_height: cut.map(|c| c.height),
        oldest_read_ms: files()
            .filter(|f| is_immutable(f.path) && f.method != Method::Linked)
            .map(|f| f.read_ms.unwrap_or(0))
            .min(),
    }
}
