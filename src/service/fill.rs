//! Fills a backup: from pre-flight to a `0.partial` that `commit` can commit.
//!
//! Order of capture: the Pact databases first, one after the other, RocksDB last. Every Pact database is then at or behind
//! RocksDB, which the node repairs by replaying blocks; nothing is held open longer than one database takes. A node may
//! commit Pact a moment before the block reaches RocksDB: so the blocks are compared in the finished copies, and RocksDB is
//! captured again while Pact is ahead by a block or two and less each time. A larger distance, or one that does not shrink, will
//! not go away: it becomes a warning. On another file system, the capture that is discarded is the next one's earlier
//! backup, kept aside in `0.partial` until then: nothing is copied twice.
//!
//! Invariants: when this returns, every file is synced, links too, or is in the batch that is returned. The first error ends
//! the job.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use crate::backups::catalog::Catalog;
use crate::backups::commit::Unfinished;
use crate::backups::pairs;
use crate::backups::reread::Base;
use crate::backups::sums;
use crate::capture::modes;
use crate::capture::rocksdb::chain_cut::{Cut, Standing, Tip};
use crate::capture::rocksdb::engine;
use crate::capture::rocksdb::live_directories::can_link;
use crate::capture::rocksdb::live_files;
use crate::capture::rocksdb::{self, Capture};
use crate::capture::source::{RocksSource, resolve};
use crate::capture::sqlite::attempt::How;
use crate::capture::sqlite::{self, lost_commits};
use crate::chainweb::digest::Digest;
use crate::chainweb::{self, DIRECTORIES, ROCKSDB, SQLITE};
use crate::config::reserve_on;
use crate::control::{Control, Phase};
use crate::database_files::{database_of_wal, immutable_number, is_immutable, wal_of};
use crate::disk;
use crate::disk::copy::Copier;
use crate::disk::quiet_reader::PageCache;
use crate::disk::sum::{self, Known, Sum};
use crate::disk::unsynced::{Batch, Links};
use crate::error::{Error, Kind, Result};
use crate::format::layout::DISCARDED;
use crate::format::manifest::{Entry, Manifest};
use crate::format::record::{Method, PactPart, RocksdbPart, Status};
use crate::service::increments::{Increments, Needs};
use crate::service::making::Making;
use crate::service::repair::Capturing;

/// How often RocksDB is captured while Pact is ahead of it: once, and three times again.
const MAX_CAPTURES: u32 = 4;

/// How many blocks ahead Pact may be for another capture to be worth it.
const MAX_BLOCKS_AHEAD: u64 = 2;

/// The time that a node gets to bring a committed Pact block into RocksDB: before the next capture, and once in a program that
/// cannot read RocksDB's heights.
const PACT_AHEAD_PAUSE: Duration = Duration::from_secs(1);

/// Fills the backup and completes its record. Returns its files, and those that are not synced yet: the directories, the files of
/// RocksDB that are no links, and the lists of checksums, which are not among its files.
pub(crate) fn fill(backup: &mut Unfinished, making: &Making<'_>) -> Result<(Manifest, Batch)> {
    let control = making.copier.control;
    control.enter(Phase::PreFlight);
    control.check()?;
    disk::create_private_dir(&backup.partial(), making.copier.owner)?;
    let databases = if backup.record.scope.has_pact() { making.sources.sqlite.databases()? } else { Vec::new() };
    let pact = Increments::prepare(backup, making)?;
    let base = prepare(backup, making, &databases, &pact)?;
    if backup.record.scope.has_pact() {
        control.enter(Phase::Pact);
        copy_pact(backup, making, &databases, pact)?;
    }
    if backup.record.scope.has_pact() && engine::require("the heights").is_err() {
        // The heights cannot be compared, so the blocks that the node has committed to Pact are given time to reach RocksDB.
        sleep(PACT_AHEAD_PAUSE);
    }
    let captured = capture_rocksdb(backup, making, base)?;
    control.enter(Phase::Sync);
    take_stock(backup, making, captured)
}

/// Fails if there is no room for the backup. Returns the earlier backup whose files can be taken over, after reading a share of
/// them again.
fn prepare(
    backup: &mut Unfinished,
    making: &Making<'_>,
    databases: &[PathBuf],
    pact: &Increments,
) -> Result<Option<Base>> {
    let Making { sources, catalog, config, copier: Copier { control, .. }, started_ms } = *making;
    let partial = backup.partial();
    let is_linked = can_link(sources.rocksdb.path(), &partial)?;
    let mut base = if is_linked { None } else { Base::find(catalog)? };
    let live = base
        .as_ref()
        .and_then(|_| resolve(sources.rocksdb.path()).and_then(|d| live_files::in_directory(&d)).ok())
        .unwrap_or_default();
    let saved_bytes = base.as_ref().map_or(0, |base| base.files.saved_bytes(&live));
    let rocksdb_bytes = if is_linked { 0 } else { rocksdb::total_bytes(&sources.rocksdb)?.saturating_sub(saved_bytes) };
    let mut needs = Needs { space_bytes: rocksdb_bytes, work_bytes: rocksdb_bytes };
    databases.iter().try_for_each(|database| pact.add_needs(database, &mut needs))?;
    pre_flight(making, &partial, &needs)?;
    if let Some(base) = base.as_mut().filter(|_| config.reread_percent > 0) {
        control.enter(Phase::Reread);
        let faults = base.read_share(&live, config.reread_percent, started_ms, catalog, control)?;
        backup.record.warnings.extend(faults.iter().map(|fault| base.warning(fault)));
    }
    Ok(base)
}

/// Copies the Pact databases, one after the other.
fn copy_pact(
    backup: &mut Unfinished,
    making: &Making<'_>,
    databases: &[PathBuf],
    mut increments: Increments,
) -> Result<()> {
    let Making { sources, config, copier, .. } = *making;
    let directory = backup.partial().join(SQLITE);
    disk::create_dir(&directory, copier.owner)?;
    let node_seen_on = || sources.rocksdb.lock_seen_on();
    for database in databases {
        let name = database.file_name().ok_or_else(|| nameless(database))?;
        let base = increments.database(name);
        let how = How {
            node_seen_on: &node_seen_on,
            method: config.pact_method,
            copier,
            base: base.as_ref(),
            keeps_sums: increments.are_possible,
        };
        let copied = sqlite::copy(&sources.sqlite, database, &directory.join(name), &how)?;
        drop(base);
        backup.record.warnings.extend(lost_commits::warning(&sources.sqlite, database, copier.control)?);
        let part = increments.take(copied, backup, making);
        let written_bytes = part.written_bytes.unwrap_or(part.bytes);
        log::debug!(
            "copied database={} bytes={} written_bytes={written_bytes} height={:?}",
            part.file,
            part.bytes,
            part.block_height
        );
        backup.record.pact.push(part);
    }
    increments.keep_sums(backup, making)?;
    backup.record.warnings.extend(missing_databases(making.catalog, &backup.record.pact)?);
    Ok(())
}

/// Lists the files that are there now, makes the links durable, completes the record, and writes the lists of checksums that are known.
fn take_stock(backup: &mut Unfinished, making: &Making<'_>, captured: Captured) -> Result<(Manifest, Batch)> {
    let Captured { capture, cut, captures_count } = captured;
    let (partial, control) = (backup.partial(), making.copier.control);
    let rocksdb = partial.join(ROCKSDB);
    backup.record.warnings.extend_from_slice(&capture.warnings);
    let pact = backup.record.pact.clone();
    let mut manifest = Manifest::of(&partial, &|path| method_of(path, &pact, &capture))?;
    require_whole(&manifest, &pact, &rocksdb)?;
    sync_links(&manifest, &partial, control)?;
    modes::keep(making.sources, &partial, &manifest, making.config.pact_method)?;
    sum_logs(&mut manifest, &partial, control)?;
    know_wals(&mut manifest, &pact, making.started_ms);
    know_tables(&mut manifest, &capture, making.started_ms);
    backup.record.replay_blocks = cut.as_ref().and_then(|cut| replay_blocks(&pact, cut));
    backup.record.versions.rocksdb = rocksdb::version_in(&rocksdb).unwrap_or_default();
    backup.record.versions.chainweb = cut.as_ref().and_then(|cut| cut.version.clone());
    backup.record.rocksdb = Some(rocksdb_part(&manifest, &capture, captures_count, cut));
    let mut unsynced = capture.unsynced;
    sums::write_known(making.catalog, backup.id(), (&manifest, making.config.sums), &mut unsynced)?;
    Ok((manifest, unsynced))
}

/// The last capture of RocksDB.
struct Captured {
    capture: Capture,
    cut: Option<Cut>,
    captures_count: u32,
}

/// Captures RocksDB, and again while Pact is a little ahead of it. The record gets a warning if Pact stays ahead.
fn capture_rocksdb(backup: &mut Unfinished, making: &Making<'_>, mut base: Option<Base>) -> Result<Captured> {
    let (rocksdb, aside) = (backup.partial().join(ROCKSDB), backup.partial().join(DISCARDED));
    let source = &making.sources.rocksdb;
    let (mut captures_count, mut blocks_before, mut brought_before) = (0, u64::MAX, None);
    let (capture, cut) = loop {
        captures_count += 1;
        let warnings = &mut backup.record.warnings;
        let (mut capture, cut) = Capturing { making, to: &rocksdb, base: &mut base, warnings }.run()?;
        brought_before.iter().for_each(|before| capture.brought.count_from(before));
        if let Err(e) = engine::require("reading the heights") {
            let unknown = "the height of RocksDB is unknown, and whether Pact is ahead of it";
            backup.record.warnings.push(format!("{unknown}: {}", e.chain()));
            break (capture, None);
        }
        let Some(ahead) = cut.as_ref().and_then(|cut| Ahead::of(&backup.record.pact, cut)) else {
            break (capture, cut);
        };
        // A node that is down will not write the missing block.
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
            // The next capture takes files from it and does not sync them.
            capture.unsynced.sync()?;
            disk::remove_tree(&aside, &|| true)?;
            disk::rename(&rocksdb, &aside)?;
            base = Base::discarded(backup.id(), &aside, &capture.brought, making.started_ms);
            brought_before = Some(capture.brought);
        }
        sleep(PACT_AHEAD_PAUSE);
    };
    drop(base);
    disk::remove_tree(&aside, &|| true)?;
    if let Some(why) = cut.as_ref().and_then(|cut| cut.malformed.as_ref()) {
        backup.record.warnings.push(format!(
            "the newest cut in RocksDB has a form that is not known ({why}): its blocks are unknown, and whether Pact is ahead of them"
        ));
    }
    Ok(Captured { capture, cut, captures_count })
}

/// Makes the links durable: to the node's files, which an operator may have copied there a moment ago, and to those of an
/// earlier backup, for the same reason.
fn sync_links(manifest: &Manifest, partial: &Path, control: &Control) -> Result<()> {
    let is_link = |file: &Entry<&str>| matches!(file.method, Method::Linked | Method::Reused);
    for name in DIRECTORIES {
        let directory = partial.join(name);
        let mut names =
            manifest.files().filter(is_link).filter_map(|file| chainweb::name_in(name, file.path)).peekable();
        if names.peek().is_none() {
            continue;
        }
        let mut links = Links::of(&directory)?;
        for name in names {
            control.check()?;
            control.step();
            links.sync(Path::new(name))?;
        }
        links.finish()?;
    }
    Ok(())
}

/// Adds to the manifest the checksums of the WALs of pairs, which were read again just now.
fn know_wals(manifest: &mut Manifest, pact: &[PactPart], now_ms: u64) {
    for (name, pair) in pact.iter().filter_map(|part| Some((&part.file, part.pair.as_ref()?))) {
        let path = wal_of(Path::new(&chainweb::path_in(SQLITE, name)));
        let at = path.to_str().and_then(|path| manifest.find(path));
        if let (Some(at), Some(sum)) = (at, Sum::parse(&pair.wal_blake2b)) {
            manifest.know(at, Known { sum, read_ms: now_ms });
        }
    }
}

/// Computes the checksums of RocksDB's files that are no SSTs: they are small and always copied, and RocksDB takes a damaged
/// WAL for one that ends there.
fn sum_logs(manifest: &mut Manifest, partial: &Path, control: &Control) -> Result<()> {
    let is_log = |path: &str| chainweb::name_in(ROCKSDB, path).is_some_and(|name| !is_immutable(name));
    let logs: Vec<String> = manifest.files().filter(|f| is_log(f.path)).map(|f| f.path.to_owned()).collect();
    for path in logs {
        let place = partial.join(chainweb::below_place(&path).unwrap_or(&path));
        let sum = sum::of(&place, PageCache::Filled, control)?;
        manifest.find(&path).into_iter().for_each(|at| manifest.know(at, Known { sum, read_ms: 0 }));
    }
    Ok(())
}

/// Adds to the manifest the known checksums of the files that are no links to the node's. A file that was copied was read just now.
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
    chainweb::name_in(ROCKSDB, path).and_then(immutable_number)
}

/// Fails before the first byte is copied if the disk lacks the room.
fn pre_flight(making: &Making<'_>, partial: &Path, needs: &Needs) -> Result<()> {
    let Making { catalog, config, copier: Copier { control, .. }, .. } = *making;
    let needed_bytes = needs.space_bytes;
    let (mut free_bytes, size_bytes) = disk::free_bytes(partial)?;
    let reserve_bytes = reserve_on(config.reserve_bytes, size_bytes);
    control.set_total(needs.work_bytes);
    control.set_reserve(reserve_bytes);
    let wanted_bytes = needed_bytes.saturating_add(reserve_bytes);
    if free_bytes < wanted_bytes {
        // The garbage of an interrupted backup must not prevent the next one.
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

/// Each file that was copied must still be there: this backup may be deleted by hand while it is made. `rm -rf` removes some
/// files, fails on the directory that we go on filling, and leaves a backup without the removed files.
fn require_whole(manifest: &Manifest, pact: &[PactPart], rocksdb: &Path) -> Result<()> {
    let gone = |name: &str| {
        Error::new(
            Kind::Damaged,
            format!("{name} is gone or has another size: was this backup deleted by hand while it was made?"),
        )
    };
    let live = live_files::in_directory(rocksdb)?;
    let of_rocksdb = live.into_iter().map(|file| (chainweb::path_in(ROCKSDB, &file.name()), file.bytes));
    let of_pact = pact.iter().flat_map(pairs::files_of);
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

/// A warning for the databases that the last good backup with Pact has and this one lacks.
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
    /// `None` if every Pact database is at or behind the cut, as far as their heights are known.
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
    let hash = part.block_hash.as_deref().and_then(Digest::from_hex);
    cut.standing(&Tip { chain: part.chain?, height: part.block_height?, hash })
}

/// The largest number of blocks that a Pact database is behind the cut.
fn replay_blocks(pact: &[PactPart], cut: &Cut) -> Option<u64> {
    let behind = |standing| if let Standing::Behind(blocks) = standing { blocks } else { 0 };
    pact.iter().filter_map(|part| standing(part, cut).map(behind)).max()
}

fn method_of(path: &str, pact: &[PactPart], capture: &Capture) -> Method {
    match chainweb::name_in(SQLITE, path) {
        Some(name) => {
            let part = pact.iter().find(|part| part.file == database_of_wal(name).unwrap_or(name));
            // The name of the database is that of the base.
            let is_base = |part: &&PactPart| part.pair.is_some() && part.file == name;
            part.map_or(Method::Copied, |part| if is_base(&part) { Method::Reused } else { part.method })
        }
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
        cut_height: cut.as_ref().map(|cut| cut.height),
        block_heights: cut.and_then(|cut| cut.block_heights),
        oldest_read_ms: files()
            .filter(|f| is_immutable(f.path) && f.method != Method::Linked)
            .map(|f| f.read_ms.unwrap_or(0))
            .min(),
    }
}
