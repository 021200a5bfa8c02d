//! Examines what the next backup meets, before anybody needs it: the databases, the rights, the places, the room, the clock, the limits
//! of this process, and the backups that there are.
//!
//! Invariants
//! - Nothing is copied and no database is opened. Hard links are tried in the directories in which a backup makes them, and removed
//!   again; the pin directory, which each backup to another mount leaves behind, may be made.
//! - Each check adds at least one finding, one sentence with its remedy. A check that cannot be made is a fault itself, and does not end
//!   the others.
//! - No file of a database that this process has open is opened here: closing it would drop the process's locks.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::Access;
use rustix::process::{Resource, getrlimit};
use serde::Serialize;

use crate::backups::catalog::{Catalog, Found};
use crate::backups::details::Details;
use crate::capture::rocksdb::live_directories::{Source, can_link};
use crate::capture::rocksdb::live_files;
use crate::capture::rocksdb::pins::Pins;
use crate::capture::rocksdb::{self, engine};
use crate::capture::source::{RocksSource, Sources, SqliteSource, require_no_file};
use crate::capture::sqlite;
use crate::clock::now_ms;
use crate::config::{Config, PactMethod, reserve_on};
use crate::database_files::CURRENT;
use crate::disk;
use crate::disk::increment;
use crate::disk::nofollow;
use crate::disk::sys;
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::record::{Record, Status};
use crate::units::size;

/// What a finding means for the next backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// As it should be.
    Ok,
    /// A backup can be made, but the operator should know this.
    Warning,
    /// No backup can be made, or none that can be relied on.
    Fault,
}

impl Health {
    /// The word for people and scripts.
    pub fn word(self) -> &'static str {
        match self {
            Health::Ok => "ok",
            Health::Warning => "warning",
            Health::Fault => "fault",
        }
    }
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was checked, one word.
    pub about: &'static str,
    /// What it means.
    pub health: Health,
    /// One sentence, with the remedy if there is something to be done.
    pub text: String,
}

/// The result of a check; an error is a fault.
type Seen = Result<(Health, String)>;

/// A backup that is older is probably not the last one that was meant to be made.
const OLD_MS: u64 = 2 * 24 * 3600 * 1000;

/// How far two clocks may differ.
const CLOCK_MS: u64 = 60 * 1000;

/// A clock before this time is wrong: 2026-01-01.
const EARLIEST_MS: u64 = 1_767_225_600_000;

/// How recently a file of RocksDB was written if a process writes it now.
const WRITTEN_MS: u64 = 60 * 1000;

/// How many good backups are looked at for the last one with Pact.
const LOOK_BACK: usize = 100;

/// The descriptors that a backup and some clients need.
const FILES_MIN: u64 = 64;
const FILES_WANTED: u64 = 256;

/// Examines all of it. The sources are named as for [`crate::Service::start`].
pub fn examine(config: &Config, sources: &Sources) -> Vec<Finding> {
    let mut findings = Findings(Vec::new());
    findings.add("program", program());
    findings.add("limits", limits(sources));
    let usable = sources.validate().and_then(|()| sources.resolved());
    let place = place_of_backups(config, sources);
    match &usable {
        Err(e) => findings.0.push(fault("databases", e)),
        Ok(sources) => {
            findings.add("databases", databases(sources));
            findings.add("node", node(sources));
            findings.add("rights", rights(sources));
            findings.add("options", options(sources));
            findings.add("kernel", kernel(sources));
            if let Ok(place) = &place {
                findings.add("links", links(sources, place));
                findings.add("pact", pact(config, sources, place));
                findings.add("room", room(config, sources, place));
            }
        }
    }
    findings.add("directory", place.as_ref().map_or_else(|e| Err(again(e)), directory));
    let catalog = place.as_ref().ok().filter(|place| place.exists).map(|place| Catalog::view(&place.path)).transpose();
    findings.add("backups", catalog.as_ref().map_or_else(|e| Err(again(e)), |catalog| backups(catalog.as_ref())));
    findings.add("clock", clock(catalog.as_ref().ok().and_then(Option::as_ref), usable.as_ref().ok()));
    findings.0
}

struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, about: &'static str, seen: Seen) {
        self.0.push(match seen {
            Ok((health, text)) => Finding { about, health, text },
            Err(e) => fault(about, &e),
        });
    }
}

fn fault(about: &'static str, e: &Error) -> Finding {
    Finding { about, health: Health::Fault, text: e.chain() }
}

/// The same error once more.
fn again(e: &Error) -> Error {
    Error::new(e.kind(), e.chain())
}

fn ok(text: impl Into<String>) -> Seen {
    Ok((Health::Ok, text.into()))
}

fn warning(text: impl Into<String>) -> Seen {
    Ok((Health::Warning, text.into()))
}

fn bad(text: impl Into<String>) -> Seen {
    Ok((Health::Fault, text.into()))
}

fn program() -> Seen {
    let version = env!("CARGO_PKG_VERSION");
    match engine::require("verify --deep") {
        Ok(()) => ok(format!("version {version}, with RocksDB")),
        Err(_) => warning(format!(
            "version {version}, built without RocksDB: heights, the start-up proof and verify --deep are missing; verify the backups with \
             the full program on another host"
        )),
    }
}

fn databases(sources: &Sources) -> Seen {
    let bytes = rocksdb::total_bytes(&sources.rocksdb)?;
    let directory = sources.rocksdb.path().display();
    let databases = sources.sqlite.databases()?;
    if databases.is_empty() {
        return warning(format!(
            "RocksDB in {directory} has {}; there are no Pact databases in {}, so only backups without Pact can be made",
            size(bytes),
            sources.sqlite.path().display()
        ));
    }
    let count = databases.len();
    ok(format!("RocksDB in {directory} has {}, {count} Pact databases {}", size(bytes), size(pact_bytes(sources)?)))
}

fn pact_bytes(sources: &Sources) -> Result<u64> {
    sources.sqlite.databases()?.iter().try_fold(0_u64, |sum, path| Ok(sum.saturating_add(sqlite::needed_bytes(path)?)))
}

/// Whether the locks of a running node reach this process: without them a live copy is taken for one of a stopped node.
fn node(sources: &Sources) -> Seen {
    let RocksSource::Directory(directory) = &sources.rocksdb else {
        return ok("this process is the node");
    };
    if sources.rocksdb.is_held_by_another()? {
        return ok("a process has RocksDB open, and its lock is seen");
    }
    let failed = || format!("cannot list {}", directory.display());
    let (mut newest_s, mut name) = (i64::MIN, String::new());
    for entry in nofollow::entries(directory).context(failed)? {
        let (file, stat) = entry.context(failed)?;
        #[allow(clippy::unnecessary_cast)] // its type differs between architectures
        let written_s = stat.st_mtime as i64;
        if written_s > newest_s {
            (newest_s, name) = (written_s, file.to_string_lossy().into_owned());
        }
    }
    let ago_ms = now_ms().saturating_sub(u64::try_from(newest_s).unwrap_or(0).saturating_mul(1000));
    if ago_ms < WRITTEN_MS {
        let seconds = ago_ms / 1000;
        return warning(format!(
            "no process is seen to have RocksDB open, but {name} was written {seconds} seconds ago: if the node is running, its locks do not \
             reach this process; run it in the node's container, on the same mounts"
        ));
    }
    ok("no process has RocksDB open: the node is stopped")
}

/// Whether this process may read the databases.
fn rights(sources: &Sources) -> Seen {
    let mut read_count = 0;
    let mut read = |path: &Path| {
        let opened = nofollow::open_of_node(path);
        read_count += 1;
        opened.map(drop).context(|| format!("cannot read {}: run as the node's user or as root", path.display()))
    };
    if let RocksSource::Directory(directory) = &sources.rocksdb {
        let failed = || format!("cannot list {}", directory.display());
        for entry in nofollow::entries(directory).context(failed)? {
            let path = directory.join(entry.context(failed)?.0);
            match read(&path) {
                // RocksDB has deleted it meanwhile; or it is a directory, which `options` judges.
                Err(e) if e.io_kind() == Some(ErrorKind::NotFound) || !is_regular(&path) => {}
                other => other?,
            }
        }
    }
    if let SqliteSource::Foreign(_) = &sources.sqlite {
        sources.sqlite.databases()?.iter().try_for_each(|path| read(path))?;
    }
    let user = rustix::process::geteuid().as_raw();
    ok(format!("user {user} can read the databases ({read_count} files were opened)"))
}

fn is_regular(path: &Path) -> bool {
    nofollow::look(path).is_ok_and(|found| found.is_some_and(|meta| meta.is_file()))
}

/// Whether RocksDB is used in a way in which it can be copied while it runs.
fn options(sources: &Sources) -> Seen {
    if let RocksSource::Directory(directory) = &sources.rocksdb {
        Source::at(directory)?.refuse_what_cannot_be_copied()?;
        // The node may be making a new MANIFEST at this moment.
        live_files::in_directory(directory).or_else(|_| live_files::in_directory(directory))?;
    }
    ok("RocksDB can be copied while the node runs")
}

fn kernel(sources: &Sources) -> Seen {
    let RocksSource::Directory(directory) = &sources.rocksdb else { return ok("not looked at") };
    let path = directory.join(CURRENT);
    let file = nofollow::open_of_node(&path).context(|| format!("cannot read {}", path.display()))?;
    match sys::cached(std::os::fd::AsFd::as_fd(&file), 0, 1) {
        Some(_) => ok(
            "it tells which parts of a file are cached (cachestat), so that backups leave the page cache to the node",
        ),
        None => warning(
            "it does not tell which parts of a file are cached (cachestat, Linux 6.5): after a backup the node may find less of its files \
             in the page cache",
        ),
    }
}

/// The backup directory, as far as it exists.
struct Place {
    /// Its path without links.
    path: PathBuf,
    /// It, or the nearest directory above it that exists.
    there: PathBuf,
    exists: bool,
}

fn place_of_backups(config: &Config, sources: &Sources) -> Result<Place> {
    require_no_file(&config.backup_directory, "backup directory", "--backup-directory")?;
    sources.require_apart(&config.backup_directory)?;
    let path = sources.resolve_trusted(&config.backup_directory)?;
    let is_there = |above: &&Path| nofollow::is_directory(above).unwrap_or(false);
    let there = path.ancestors().find(is_there).unwrap_or(Path::new("/")).to_owned();
    let exists = there == path;
    Ok(Place { path, there, exists })
}

/// Whether backups can be written there.
fn directory(place: &Place) -> Seen {
    let Place { path, there, exists } = place;
    rustix::fs::access(there, Access::WRITE_OK | Access::EXEC_OK)
        .context(|| format!("cannot write to {}: make it the node's user's, or run as root", there.display()))?;
    let at = path.display();
    if *exists {
        return ok(format!("{at} can be written to"));
    }
    ok(format!("{at} does not exist yet: the first backup makes it in {}", there.display()))
}

/// Whether RocksDB's files can be linked into a backup, or else held by links until they are copied.
fn links(sources: &Sources, place: &Place) -> Seen {
    let rocksdb = sources.rocksdb.path();
    let is_same_mount = || -> Result<bool> {
        let mount = |path: &Path| nofollow::mount_of(path).context(|| format!("cannot look at {}", path.display()));
        Ok(mount(&place.there)? == mount(rocksdb)?)
    };
    let linked = if place.exists { can_link(rocksdb, &place.path)? } else { is_same_mount()? };
    if linked {
        return ok(format!(
            "backups are on the mount of {}: RocksDB's files are linked, which takes no time and no space, but the loss of this disk takes \
             the backups with it; keep a copy on another one",
            rocksdb.display()
        ));
    }
    match Pins::take(sources) {
        Ok(_) => ok("backups are on another mount: RocksDB's files are copied, and held by links until then"),
        Err(e) if e.kind() == Kind::Busy => ok("backups are on another mount, and one is being made now"),
        Err(e) => Err(e),
    }
}

/// What a backup of Pact costs.
fn pact(config: &Config, sources: &Sources, place: &Place) -> Seen {
    if sources.sqlite.databases()?.is_empty() {
        return ok("there is none");
    }
    let all = size(pact_bytes(sources)?);
    if config.pact_method == PactMethod::Auto && increment::can_clone(&place.there)? {
        return ok("after the first backup only what has changed is written");
    }
    ok(format!("each backup writes all of it, {all}; on xfs or btrfs only what has changed would be written"))
}

/// Whether there is room for the next backup, and for how many after it.
fn room(config: &Config, sources: &Sources, place: &Place) -> Seen {
    let (free_bytes, size_bytes) = disk::free_bytes(&place.there)?;
    let reserve_bytes = reserve_on(config.reserve_bytes, size_bytes);
    let usable_bytes = free_bytes.saturating_sub(reserve_bytes);
    let needed_bytes = needed_bytes(config, sources, place)?;
    let (free, needed) = (size(free_bytes), size(needed_bytes));
    if needed_bytes > usable_bytes {
        let reserve = size(reserve_bytes);
        return bad(format!(
            "{free} are free, but the next backup needs about {needed}, and {reserve} must stay free: delete old backups (list shows which \
             ones free space), or use a larger file system"
        ));
    }
    match usable_bytes.checked_div(needed_bytes) {
        Some(count @ 1..=2) => warning(format!(
            "{free} are free, enough for {count} more backups of about {needed}: delete old ones in time (prune)"
        )),
        _ => ok(format!("{free} are free, the next backup needs about {needed}")),
    }
}

/// The bytes that the next backup probably writes: of RocksDB what the last good one has copied, of Pact what the last good one with Pact
/// has written, if only that is written again; otherwise all.
fn needed_bytes(config: &Config, sources: &Sources, place: &Place) -> Result<u64> {
    let catalog = if place.exists { Some(Catalog::view(&place.path)?) } else { None };
    let mut records: Vec<Record> = Vec::new();
    if let Some(catalog) = &catalog {
        let is_good = |found: &Found| found.status == Status::Done && !catalog.is_damaged(&found.id).unwrap_or(true);
        records.extend(catalog.readable()?.filter(is_good).take(LOOK_BACK).filter_map(|found| found.record));
    }
    let is_linked = place.exists && can_link(sources.rocksdb.path(), &place.path)?;
    let last_copied = records.first().and_then(|record| Some(record.rocksdb.as_ref()?.copied_bytes));
    let rocksdb_bytes = match last_copied {
        _ if is_linked => 0,
        // The node writes about as much from one backup to the next.
        Some(copied_bytes) => copied_bytes.min(rocksdb::total_bytes(&sources.rocksdb)?),
        None => rocksdb::total_bytes(&sources.rocksdb)?,
    };
    let is_incremental = config.pact_method == PactMethod::Auto && increment::can_clone(&place.there)?;
    let pact_bytes = pact_bytes(sources)?;
    let written_bytes = records.iter().find(|record| !record.pact.is_empty()).map(Record::pact_written_bytes);
    let written_bytes = written_bytes.filter(|_| is_incremental).map_or(pact_bytes, |written| written.min(pact_bytes));
    Ok(rocksdb_bytes.saturating_add(written_bytes))
}

/// The state of the backups that there are.
fn backups(catalog: Option<&Catalog>) -> Seen {
    let none = || warning("there is no good backup yet: make one, and restore it once (drill)");
    let Some(catalog) = catalog else { return none() };
    let (mut done_count, mut unreadable) = (0_u64, None);
    let mut newest: Option<Found> = None;
    for found in catalog.each()? {
        match found {
            Ok(found) if found.status == Status::Done && found.record.is_some() => {
                done_count += 1;
                newest.get_or_insert(found);
            }
            Ok(_) => {}
            Err(e) => unreadable = unreadable.or(Some(e)),
        }
    }
    if let Some(e) = unreadable {
        return bad(format!("one of them cannot be read: {}", e.chain()));
    }
    let Some(newest) = newest else { return none() };
    let id = newest.id.clone();
    let details = Details::of(catalog, newest)?;
    if catalog.is_damaged(&id)? {
        return bad(format!(
            "the newest one, {id}, is damaged: make another one, then find the cause (list, verify --deep)"
        ));
    }
    if let Some(reason) = details.starts.as_ref().and_then(|starts| starts.refutation()) {
        return bad(format!("a node does not start from the newest one, {id}: {reason}"));
    }
    let age_ms = now_ms().saturating_sub(details.started_ms);
    let hours = age_ms / 3_600_000;
    if age_ms > OLD_MS {
        return warning(format!("the newest good one, {id}, is {hours} hours old: does the schedule run?"));
    }
    if details.drill.is_none() {
        return warning(format!(
            "{done_count} good ones, the newest is {hours} hours old; it was never restored: `drill latest` tries that beside the node"
        ));
    }
    ok(format!("{done_count} good ones, the newest is {hours} hours old"))
}

/// Whether the clock can be right.
fn clock(catalog: Option<&Catalog>, sources: Option<&Sources>) -> Seen {
    let now_ms = now_ms();
    let remedy = "set the clock, and have it kept (chrony, systemd-timesyncd)";
    if now_ms < EARLIEST_MS {
        return bad(format!("it is years behind: {remedy}"));
    }
    let ahead_ms = |at_ms: u64| at_ms.saturating_sub(now_ms);
    let newest = catalog.map(Catalog::readable).transpose()?.into_iter().flatten().max_by_key(|found| found.started_ms);
    if let Some(Found { id, started_ms, .. }) = newest.filter(|found| ahead_ms(found.started_ms) > CLOCK_MS) {
        let seconds = ahead_ms(started_ms) / 1000;
        return bad(format!(
            "backup {id} began {seconds} seconds in the future: the clock was wrong then, or is now; {remedy}"
        ));
    }
    let written = sources.and_then(|sources| nofollow::look(&sources.rocksdb.path().join(CURRENT)).ok().flatten());
    let written_ms = written.map_or(0, |meta| u64::try_from(meta.mtime()).unwrap_or(0).saturating_mul(1000));
    if ahead_ms(written_ms) > CLOCK_MS {
        let seconds = ahead_ms(written_ms) / 1000;
        return bad(format!("the node has written RocksDB {seconds} seconds in the future: {remedy}"));
    }
    ok("no backup and no database is from the future")
}

/// The limits of this process: those of a service are in its unit.
fn limits(sources: &Sources) -> Seen {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if files < FILES_MIN {
        return bad(format!("only {files} files may be open: allow {FILES_WANTED} or more (ulimit -n, LimitNOFILE)"));
    }
    if let Some(bytes) = getrlimit(Resource::Fsize).current {
        let largest = sources.sqlite.databases().unwrap_or_default();
        let largest = largest.iter().filter_map(|path| sqlite::needed_bytes(path).ok()).max().unwrap_or(0);
        if bytes < largest.max(FILE_BYTES_WANTED) {
            return bad(format!(
                "a file may have {bytes} bytes, and the largest database has {largest}: remove the limit (ulimit -f, LimitFSIZE)"
            ));
        }
    }
    if files < FILES_WANTED {
        return warning(format!(
            "only {files} files may be open: many clients at once are answered in turn (ulimit -n)"
        ));
    }
    ok(format!("{files} files may be open"))
}

/// RocksDB's files are some hundred megabytes.
const FILE_BYTES_WANTED: u64 = 1 << 30;
