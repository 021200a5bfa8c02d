//! Captures one RocksDB into one finished directory, and reads from the finished copy.
//!
//! - **Checkpoint** of the node's own open handle, by `engine`. It links every SST and copies the rest. RocksDB would
//!   copy across file systems by itself, but without cancel, space check or progress. So if the backup directory is on
//!   another file system, the checkpoint is made in the pin directory (see `pins`), and our own engine copies from there and
//!   removes each pin as soon as it is copied.
//! - **Directory**: the live copy of `live_copy`, which needs no RocksDB.
//! - **Heights** and every block of a finished copy are read in a child process if a program for it is given.
//!
//! Invariant: a linked file is never written to, and its owner is never changed.

pub(crate) mod chain_cut;
pub(crate) mod child;
pub(crate) mod earlier_backup;
#[cfg_attr(not(feature = "engine"), path = "no_engine.rs")]
pub(crate) mod engine;
pub(crate) mod live_copy;
pub(crate) mod live_directories;
pub(crate) mod live_files;
pub(crate) mod live_wals;
pub(crate) mod log_format;
pub(crate) mod options_file;
pub(crate) mod pins;
pub(crate) mod version_edit;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::capture::rocksdb::chain_cut::{Heights, Tip};
use crate::capture::rocksdb::child::Question;
use crate::capture::rocksdb::earlier_backup::{Bringing, Brought, Earlier};
use crate::capture::rocksdb::engine::Db;
use crate::capture::rocksdb::live_directories::{can_link, total_bytes as directory_bytes};
use crate::capture::rocksdb::pins::Pins;
use crate::capture::source::{RocksSource, Sources, SqliteSource};
use crate::capture::sqlite;
use crate::capture::sqlite::history::newest_block;
use crate::chainweb::digest::Digest;
use crate::chainweb::{SQLITE, chain_of};
use crate::control::Control;
use crate::database_files::is_immutable;
use crate::disk::copy::{self, Copier};
use crate::disk::nofollow;
use crate::disk::unsynced::{Batch, Unsynced};
use crate::disk::{self, Owner};
use crate::error::{Error, IoContext, Kind, Result};
use crate::fault::Inspected;

/// How long the child that reads the heights may take; replaying a large WAL takes seconds.
const HEIGHTS_TIME_LIMIT: Duration = Duration::from_secs(600);

/// How long the child that opens the databases of a drill may take: RocksDB replays its WALs, SQLite too.
const OPEN_TIME_LIMIT: Duration = Duration::from_secs(3600);

/// How long the child that reads every block may take: a terabyte at 20 MB/s.
const INSPECT_TIME_LIMIT: Duration = Duration::from_secs(14 * 60 * 60);

/// How RocksDB was captured.
#[derive(Debug)]
pub(crate) struct Capture {
    /// `checkpoint` or `live-copy`.
    pub(crate) way: &'static str,
    /// The rounds of the live copy, if it was one.
    pub(crate) live: Option<live_copy::Run>,
    /// Whether SSTs are links to the node's own files.
    pub(crate) linked: bool,
    /// The origin of the live files that are not links to the node's files.
    pub(crate) brought: Brought,
    /// The files that are not links and must be synced.
    pub(crate) unsynced: Batch,
    /// Warnings for the operator.
    pub(crate) warnings: Vec<String>,
}

impl Capture {
    /// A capture without links.
    fn live(live_copy::Copied { run, brought, unsynced, warnings }: live_copy::Copied) -> Capture {
        Capture { way: "live-copy", live: Some(run), linked: false, brought, unsynced, warnings }
    }

    /// The same.
    fn checkpoint(brought: Brought, unsynced: Batch) -> Capture {
        Capture { way: "checkpoint", live: None, linked: false, brought, unsynced, warnings: Vec::new() }
    }

    /// The error if RocksDB does not open the copy: it names the source as the cause, if the source was damaged before.
    pub(crate) fn blame(&self, e: Error) -> Error {
        if self.warnings.is_empty() {
            return e;
        }
        let context = format!("RocksDB cannot recover the node's database: {}", self.warnings.join("; "));
        Error::new(Kind::Refused, context).because(e.chain())
    }
}

/// The size of the whole database: the bytes that a copy needs if files cannot be linked.
pub(crate) fn total_bytes(source: &RocksSource) -> Result<u64> {
    match source {
        RocksSource::Handle(db) => engine::sst_bytes(db),
        RocksSource::Directory(database) => directory_bytes(database),
    }
}

/// The RocksDB that last wrote this database, from the `Version` section of its newest OPTIONS file.
pub(crate) fn version_in(copy: &Path) -> Option<String> {
    options_file::option_in(copy, "rocksdb_version")
}

/// Captures RocksDB into the new directory `to`.
pub(crate) fn capture(sources: &Sources, to: &Path, earlier: Option<&Earlier>, copier: Copier<'_>) -> Result<Capture> {
    let parent = to.parent().unwrap_or(to);
    let linked = can_link(sources.rocksdb.path(), parent)?;
    match &sources.rocksdb {
        RocksSource::Handle(db) if linked => {
            engine::checkpoint(db, to)?;
            let mut unsynced = Batch::default();
            for name in file_names(to, &|name| !is_immutable(name))? {
                let path = to.join(&name);
                let meta = nofollow::look(&path).context(|| format!("cannot look at {}", path.display()))?;
                // RocksDB links its OPTIONS file, too: the linked file is the node's own and keeps its owner.
                if meta.is_none_or(|meta| meta.nlink() == 1) {
                    disk::give(&path, copier.owner)?;
                }
                unsynced.add(Unsynced::open(&path)?)?;
            }
            disk::give(to, copier.owner)?;
            Ok(Capture { linked, ..Capture::checkpoint(Brought::default(), unsynced) })
        }
        RocksSource::Handle(db) => {
            let pins = Pins::take(sources)?;
            let copied = copy_pinned(db, &pins.rocksdb(), to, earlier, copier);
            // Even if the copy failed: the pins keep files on the disk that the node deletes.
            let cleared = pins.clear();
            let (brought, unsynced) = copied?;
            cleared?;
            Ok(Capture::checkpoint(brought, unsynced))
        }
        RocksSource::Directory(database) if linked => {
            Ok(Capture { linked, ..Capture::live(live_copy::copy(database, to, to, None, copier)?) })
        }
        RocksSource::Directory(database) => {
            let pins = Pins::take(sources)?;
            let pinned = pins.rocksdb();
            disk::ensure_private_dir(&pinned, copier.owner)?;
            let copied = live_copy::copy(database, to, &pinned, earlier, copier);
            // Even if the copy failed: the pins keep files on the disk that the node deletes.
            let cleared = pins.clear();
            let copied = copied?;
            cleared?;
            Ok(Capture::live(copied))
        }
    }
}

/// Makes the checkpoint in `pinned` and copies it to `to`; files that `earlier` has are linked from there instead.
fn copy_pinned(
    db: &Db,
    pinned: &Path,
    to: &Path,
    earlier: Option<&Earlier>,
    copier: Copier<'_>,
) -> Result<(Brought, Batch)> {
    engine::checkpoint(db, pinned)?;
    disk::create_dir(to, copier.owner)?;
    let live = live_files::in_directory(pinned)?;
    // First remove the pins of files that need not be copied: the node may delete these files.
    for file in live.iter().filter(|file| earlier.is_some_and(|earlier| earlier.knows(file))) {
        disk::remove_file(&pinned.join(file.name()))?;
    }
    let mut unsynced = Batch::default();
    let brought = Bringing { pins: pinned, to, earlier, copier }.all(&live, &mut unsynced)?;
    for name in file_names(pinned, &|_| true)? {
        let from = pinned.join(&name);
        let file = nofollow::open_regular(&from).context(|| format!("cannot open {}", from.display()))?;
        let bytes = file.metadata().context(|| format!("cannot look at {}", from.display()))?.len();
        unsynced.add(copy::copy_still(copier, &file, bytes, &to.join(&name))?)?;
        disk::remove_file(&from)?;
    }
    Ok((brought, unsynced))
}

/// The names in a directory that are `wanted`, sorted.
fn file_names(directory: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<String>> {
    let failed = || format!("cannot list {}", directory.display());
    let mut names = Vec::new();
    for entry in nofollow::entries(directory).context(failed)? {
        let name = entry.context(failed)?.0.to_string_lossy().into_owned();
        names.extend(wanted(&name).then_some(name));
    }
    names.sort();
    Ok(names)
}

/// Reads the newest cut of a finished copy, and whether the copy has the headers of the newest blocks of the Pact databases
/// beside it, in `../sqlite`; no cut if the database has no table of cuts. With a `program`, a child process reads them
/// (`program heights DIR`), so that neither a damaged file nor a large WAL harms this process.
pub(crate) fn read_cut(copy: &Path, program: Option<&Path>, control: &Control) -> Result<Heights> {
    match program {
        None => engine::read_cut(copy, &tips_beside(copy)?),
        Some(program) => {
            let question = Question::about("heights", copy, HEIGHTS_TIME_LIMIT);
            let said: Option<Heights> = child::ask(program, &question, control)?;
            Ok(said.unwrap_or(Heights::Cut(None)))
        }
    }
}

/// What the databases of a drill have after they were opened as a node opens them.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Opened {
    /// Of RocksDB, if there is one.
    pub(crate) rocksdb: Option<Heights>,
    /// The newest block of each Pact database, by the name of its file.
    pub(crate) pact: BTreeMap<String, Option<(u64, Option<String>)>>,
}

/// Opens the RocksDB of a drill in `scratch`, and the Pact databases beside it, as a node does. With a `program`, a child process does
/// it (`program open DIR`), as the user to whom the files belong: RocksDB follows links, and that user may put some in the place of the
/// files.
///
/// # Errors
/// [`Kind::Damaged`] or [`Kind::Database`] if a database cannot be opened.
pub(crate) fn open_as_node(
    scratch: &Path,
    program: Option<&Path>,
    as_user: Option<Owner>,
    control: &Control,
) -> Result<Opened> {
    let Some(program) = program else { return open_here(scratch) };
    let question = Question { as_user, ..Question::about("open", scratch, OPEN_TIME_LIMIT) };
    child::ask(program, &question, control)
}

fn open_here(scratch: &Path) -> Result<Opened> {
    let has_rocksdb = nofollow::is_directory(scratch).context(|| format!("cannot look at {}", scratch.display()))?;
    let rocksdb = has_rocksdb.then(|| engine::open_as_node(scratch)).transpose()?;
    let mut pact = BTreeMap::new();
    for database in SqliteSource::Foreign(scratch.with_file_name(SQLITE)).databases()? {
        let name = database.file_name().unwrap_or_default().to_string_lossy().into_owned();
        pact.insert(name, sqlite::open_as_node(&database)?);
    }
    Ok(Opened { rocksdb, pact })
}

/// The newest blocks of the Pact databases that lie beside a finished copy of RocksDB. A database that cannot be read is left
/// out: a verification reports that it is damaged.
fn tips_beside(copy: &Path) -> Result<Vec<Tip>> {
    let databases = SqliteSource::Foreign(copy.with_file_name(SQLITE)).databases()?;
    let tip = |database: &PathBuf| {
        let (height, hash) = newest_block(database).ok()??;
        Some(Tip { chain: chain_of(database)?, height, hash: hash.and_then(|hash| Digest::from_hex(&hash)) })
    };
    Ok(databases.iter().filter_map(tip).collect())
}

/// Reads every block of every column family of a finished copy and checks its checksum. With a `program`, a child
/// process does it (`program inspect DIR LIMIT`).
pub(crate) fn inspect(copy: &Path, program: Option<&Path>, control: &Control) -> Result<Inspected> {
    match program {
        None => engine::inspect(copy, control),
        Some(program) => {
            let limit = control.limit_bytes().unwrap_or(0).to_string();
            let about = Question::about("inspect", copy, INSPECT_TIME_LIMIT);
            let question = Question { more: &[&limit], counts_bytes: true, ..about };
            child::ask(program, &question, control)
        }
    }
}

/// What the child process that reads the heights prints: the newest cut of the RocksDB in `directory` as JSON, `null` if it has
/// none; or the damage that RocksDB reports.
///
/// # Errors
/// Fails if there is no RocksDB in the directory, or this program was built without RocksDB.
pub fn heights_json(directory: &Path) -> Result<String> {
    let heights = engine::read_cut(directory, &tips_beside(directory)?)?;
    Ok(serde_json::to_string(&heights).expect("a cut has keys that JSON can spell"))
}

/// What the child process of a drill prints after it has opened the RocksDB in `directory`, and the Pact databases beside it, as a node
/// does.
///
/// # Errors
/// Fails if there is no RocksDB in the directory, or this program was built without RocksDB.
pub fn open_json(directory: &Path) -> Result<String> {
    Ok(serde_json::to_string(&open_here(directory)?).expect("it has keys that JSON can spell"))
}

/// What the child process of a deep verification prints: the number of keys and the damage, as JSON.
///
/// # Errors
/// Fails if there is no RocksDB in the directory, or this program was built without RocksDB.
pub fn inspect_json(directory: &Path, control: &Control) -> Result<String> {
    let inspected = engine::inspect(directory, control)?;
    Ok(serde_json::to_string(&inspected).expect("it has only string keys"))
}
