//! One backup from pre-flight to a filled and synced `0.partial`; `commit` does the rest.
//!
//! Order of capture: the Pact databases first, one after the other, RocksDB last. Every Pact database is then at or behind
//! RocksDB, which the node repairs by replaying blocks; nothing is held open longer than one database takes. A node may
//! commit Pact a moment before the block reaches RocksDB: so the heights are compared in the finished copies, and RocksDB
//! is captured again while Pact is ahead, a stated number of times.
//!
//! Invariants: when this returns, every file that is not a link is synced, or is in the batch that is returned to be. The
//! first error ends the job.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use crate::catalog::Catalog;
use crate::commit::Unfinished;
use crate::config::Config;
use crate::control::{Control, Phase};
use crate::cut::Cut;
use crate::disk;
use crate::engine;
use crate::error::{Error, Kind, Result};
use crate::live_files::is_immutable;
use crate::manifest::Manifest;
use crate::modes;
use crate::record::{Method, PactPart, RocksdbPart, Status};
use crate::repair::Capturing;
use crate::reread::Base;
use crate::reuse;
use crate::rocks::{self, Capture};
use crate::source::{RocksSource, Sources, resolve};
use crate::sqlite;
use crate::sqlite_attempt::How;
use crate::sum::{self, Known};
use crate::unsynced::Batch;
use crate::version_edit::LiveFile;

/// How often RocksDB is captured while Pact is ahead of it: once, and three times again.
const MAX_CAPTURES: u32 = 4;

/// What a node may need to bring a committed Pact block into RocksDB, before the next capture.
const PACT_AHEAD_PAUSE: Duration = Duration::from_millis(250);

/// The same for a program that cannot read RocksDB's heights, once.
const BLIND_PAUSE: Duration = Duration::from_secs(1);

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
    let linked = rocks::can_link(sources.rocksdb.path(), &partial)?;
    let mut base = if linked { None } else { Base::find(catalog)? };
    let live = base
        .as_ref()
        .and_then(|_| resolve(sources.rocksdb.path()).and_then(|d| reuse::live_files_in(&d)).ok())
        .unwrap_or_default();
    let saved_bytes = base.as_ref().map_or(0, |base| base.files.saved_bytes(&live));
    let rocksdb_bytes = if linked { 0 } else { rocks::total_bytes(&sources.rocksdb)?.saturating_sub(saved_bytes) };
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
        let directory = partial.join("sqlite");
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
        sleep(BLIND_PAUSE);
    }
    let rocksdb = partial.join("rocksDb");
    let mut captures_count = 0;
    let program = config.heights_program.as_deref();
    let capturing = Capturing { sources, catalog, program, owner, now_ms, control };
    let (capture, cut) = loop {
        captures_count += 1;
        let (capture, cut) = capturing.run(&rocksdb, &mut base, &mut backup.record.warnings)?;
        if let Err(e) = engine::require("reading the heights") {
            let unknown = "the height of RocksDB is unknown, and whether Pact is ahead of it";
            backup.record.warnings.push(format!("{unknown}: {}", e.chain()));
            break (capture, None);
        }
        let Some(ahead) = cut.as_ref().and_then(|cut| pact_ahead(&backup.record.pact, cut)) else {
            break (capture, cut);
        };
        // A node that is down will not write the missing block either.
        let is_down = matches!(sources.rocksdb, RocksSource::Directory(_)) && !sources.rocksdb.is_held_by_another()?;
        if is_down || captures_count == MAX_CAPTURES {
            let warning =
                format!("{ahead} after {captures_count} capture(s) of RocksDB: the node must rewind Pact at its start");
            backup.record.warnings.push(warning);
            break (capture, cut);
        }
        log::info!("capturing rocksdb again id={} reason={ahead:?}", backup.id());
        disk::remove_tree(&rocksdb, &|| true)?;
        sleep(PACT_AHEAD_PAUSE);
    };

    drop(base);
    backup.record.warnings.extend_from_slice(&capture.warnings);
    control.enter(Phase::Sync);
    let pact = backup.record.pact.clone();
    let mut manifest = Manifest::of(&partial, &|path| method_of(path, &pact, &capture))?;
    require_whole(&manifest, &pact, &rocksdb)?;
    modes::keep(sources, &partial, &manifest)?;
    sum_logs(&mut manifest, &partial, control)?;
    know_tables(&mut manifest, &capture, now_ms);
    backup.record.replay_blocks = cut.as_ref().and_then(|cut| replay_blocks(&pact, cut));
    backup.record.versions.rocksdb = rocks::version_in(&rocksdb).unwrap_or_default();
    backup.record.rocksdb = Some(rocksdb_part(&manifest, &capture, captures_count, cut));
    Ok((manifest, capture.unsynced))
}

/// Checksums of RocksDB's files that are no SSTs: they are small, always copied, and RocksDB itself takes a WAL that is
/// damaged for one that ends there.
fn sum_logs(manifest: &mut Manifest, partial: &Path, control: &Control) -> Result<()> {
    let is_log = |path: &str| path.starts_with("0/rocksDb/") && !is_immutable(path);
    let logs: Vec<String> = manifest.files().filter(|f| is_log(f.path)).map(|f| f.path.to_owned()).collect();
    for path in logs {
        let sum = sum::of(&partial.join(&path["0/".len()..]), false, control)?;
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
    path.strip_prefix("0/rocksDb/").and_then(LiveFile::number_in)
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
            log::warn!("garbage stays reason={:?}", e.chain());
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
    let live = reuse::live_files_in(rocksdb)?;
    let of_rocksdb = live.into_iter().map(|file| (format!("0/rocksDb/{}", file.name()), file.bytes));
    let of_pact = pact.iter().map(|part| (format!("0/sqlite/{}", part.file), part.bytes));
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

/// Says by how much Pact is ahead of RocksDB, where it is.
fn pact_ahead(pact: &[PactPart], cut: &Cut) -> Option<String> {
    let distance = |part: &PactPart| {
        let block = cut.chains.get(&part.chain?)?;
        part.block_height?.checked_sub(*block).filter(|blocks| *blocks > 0)
    };
    let worst = pact.iter().filter_map(|p| Some((distance(p)?, p.chain?))).max()?;
    Some(format!("pact is {} blocks ahead of rocksdb on chain {}", worst.0, worst.1))
}

/// The largest number of blocks that a Pact database is behind the cut.
fn replay_blocks(pact: &[PactPart], cut: &Cut) -> Option<u64> {
    let behind = |p: &PactPart| Some(cut.chains.get(&p.chain?)?.saturating_sub(p.block_height?));
    pact.iter().filter_map(behind).max()
}

fn method_of(path: &str, pact: &[PactPart], capture: &Capture) -> Method {
    match path.strip_prefix("0/sqlite/") {
        Some(name) => pact.iter().find(|p| p.file == name).map_or(Method::Copied, |p| p.method),
        None if capture.linked && is_immutable(path) => Method::Linked,
        None => {
            let came = table_number(path).and_then(|number| capture.brought.find(number));
            if came.is_some_and(|came| came.reused) { Method::Reused } else { Method::Copied }
        }
    }
}

fn rocksdb_part(manifest: &Manifest, capture: &Capture, captures_count: u32, cut: Option<Cut>) -> RocksdbPart {
    let files = || manifest.files().filter(|f| f.path.starts_with("0/rocksDb/"));
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
