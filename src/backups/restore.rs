//! Restores a backup: puts its `0` below a node's database directory.
//!
//! ```text
//! step                                                     a crash after it leaves the target
//! 1  refuse: node running, target not empty, no space, no  as it was
//!    exchange on this file system
//! 2  quick (or deep) verification                          as it was
//! 3  fill TARGET/.restoring-<time>, sync all of it         as it was, and that directory, which the next restore removes
//! 4  rename it to TARGET/0; or, if there is one and        wholly new
//!    --replace was given:
//! 5  rename it to TARGET/.exchanging-<time>, sync          as it was; the next restore calls it 0.bak-<time>
//! 6  lock the old databases against a node that starts     the same
//! 7  exchange the two, atomically; sync                    wholly new; the next restore calls the old one so
//! 8  a process opened an old database since 6: exchange    as it was, or wholly new
//!    them back, remove the new one, fail
//! 9  rename the old one to TARGET/0.bak-<time>             wholly new
//! ```
//! If `0` cannot be exchanged as a whole (see `placement`), steps 3 to 9 are those of `below`.
//!
//! Invariants: a directory that may be an old database is never removed: `.restoring-*` never is one, `.exchanging-*` may be. Only
//! one restore at a time works on a target: it holds a lock on the directory. The exchange counts only if no process has an old
//! database open: a node that starts at any moment finds one of the two databases, and all of it. Before anything else a restore
//! settles what an interrupted one left: it brings the old database back. How files are brought, and with which modes: see `filling`.

use std::path::{Path, PathBuf};

use crate::backups::below::{self, Settle, Settled};
use crate::backups::catalog::{is_there, lies_in_backup, look};
use crate::backups::filling::{self, Counts, Filling, Part, RESERVE_BYTES};
use crate::backups::pairs::Databases;
use crate::backups::placement::{Placement, Way};
use crate::backups::verify::VerifyOptions;
use crate::capture::node_locks::{self, NodeLocks};
use crate::capture::rocksdb;
use crate::capture::rocksdb::chain_cut::Heights;
use crate::capture::source::{SqliteSource, is_same, require_no_file, resolve};
use crate::capture::sqlite::history::lowest_height;
use crate::chainweb::pact::History;
use crate::chainweb::version::Version;
use crate::chainweb::{DIRECTORIES, ROCKSDB, SQLITE, chain_of};
use crate::config::Depth;
use crate::control::Control;
use crate::database_files::CURRENT;
use crate::disk::copy::Copier;
use crate::disk::fault_gate;
use crate::disk::lock::Lock;
use crate::disk::nofollow;
use crate::disk::permissions;
use crate::disk::{self, Owner};
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::layout::{self, WHOLE};
use crate::format::record::Record;

/// How many times, in milliseconds, are tried to find free names.
const MAX_STAMPS: u64 = 1000;

/// The result of a restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The restored database directory, ready for a node.
    pub database_directory: PathBuf,
    /// How it came to its place.
    pub way: Way,
    /// The directory of the database that was replaced, if there was one; if the way was below, the directories of its files.
    pub replaced: Vec<PathBuf>,
    /// The number of files that are links to the backup's.
    pub linked_count: u64,
    /// The number of files that are clones, which share blocks with the backup's.
    pub cloned_count: u64,
    /// The number of files that were copied.
    pub copied_count: u64,
    /// Whether Pact has all blocks; if compaction has removed some, the node must be told to accept that.
    pub pact_history: History,
}

/// What a restore has put in place.
pub(crate) struct Placed {
    pub(crate) way: Way,
    pub(crate) replaced: Vec<PathBuf>,
    pub(crate) counts: Counts,
}

/// Fails with [`Kind::Usage`] if `target` cannot be a database directory: it lies within a database or a backup, or is the backup
/// directory.
pub(crate) fn require_target(target: &Path, backups: &Path) -> Result<()> {
    require_no_file(target, "target", "--to")?;
    let resolved = resolve(target)?;
    let in_database = |above: &Path| above.join(CURRENT).is_file() || above.join(ROCKSDB).join(CURRENT).is_file();
    let whose = if is_same(target, backups) {
        "is the backup directory"
    } else if lies_in_backup(&resolved)? {
        "lies in a backup"
    } else if resolved.ancestors().any(in_database) {
        "lies within a database"
    } else {
        return Ok(());
    };
    let context =
        format!("the target {} {whose}: name the database directory, in which the 0 is or will be", target.display());
    Err(Error::new(Kind::Usage, context))
}

/// How a backup is restored.
#[derive(Debug, Clone, Copy)]
pub struct RestoreOptions<'a> {
    /// The database directory that gets the backup's `0`.
    pub target: &'a Path,
    /// Whether an existing `0` is renamed and kept; otherwise it makes the restore fail.
    pub replace: bool,
    /// Whether every byte is copied: then no file, and no block of one, is shared with the backup.
    pub copy: bool,
    /// How thoroughly the backup is verified before.
    pub depth: Depth,
    /// The program in whose child process RocksDB is opened, for the verification and for the name of the version; if absent, it is
    /// opened in this process.
    pub program: Option<&'a Path>,
}

impl<'a> RestoreOptions<'a> {
    /// How the backup is verified before.
    pub(crate) fn verification(&self) -> VerifyOptions<'a> {
        VerifyOptions { depth: self.depth, program: self.program }
    }
}

/// The names of one restore in its target.
struct Names {
    target: PathBuf,
    place: PathBuf,
    staging: PathBuf,
    probe: PathBuf,
    exchanging: PathBuf,
    aside: PathBuf,
}

impl Names {
    /// The names with the first time from `now_ms` on that no earlier restore has used.
    fn free(target: &Path, now_ms: u64) -> Names {
        let at = |stamp: u64| Names {
            target: target.to_owned(),
            place: target.join(WHOLE),
            staging: target.join(layout::restoring(stamp)),
            probe: target.join(layout::restoring_probe(stamp)),
            exchanging: target.join(layout::exchanging(stamp)),
            aside: target.join(layout::replaced(stamp)),
        };
        let is_free = |names: &Names| {
            [&names.staging, &names.exchanging, &names.aside].iter().all(|path| path.symlink_metadata().is_err())
        };
        (now_ms..now_ms.saturating_add(MAX_STAMPS)).map(at).find(is_free).unwrap_or_else(|| at(now_ms))
    }
}

/// Takes the lock of a target.
fn lock_target(target: &Path) -> Result<Lock> {
    Lock::try_take_directory(target)?.ok_or_else(|| is_running(target))
}

/// Fails if another restore into the target is running.
pub(crate) fn require_no_other(target: &Path) -> Result<()> {
    let is_there = look(target)?.is_some_and(|meta| meta.is_dir());
    if !is_there || Lock::try_share_directory(target)?.is_some() { Ok(()) } else { Err(is_running(target)) }
}

fn is_running(target: &Path) -> Error {
    Error::new(Kind::Busy, format!("another restore into {} is running; wait for its end", target.display()))
}

/// Finishes or undoes an exchange that was interrupted in `target`, a database directory; says which database is in place now.
///
/// # Errors
/// [`Kind::Usage`]: no such directory, or no database in it. [`Kind::Busy`]: a restore is running. [`Kind::NodeRunning`]: a process has a database open.
/// [`Kind::Refused`]: a file system is not mounted. [`Kind::Damaged`]: the journal is. [`Kind::Io`].
pub fn settle_restore(target: &Path, wanted: Settle) -> Result<Settled> {
    if !target.is_dir() {
        let context = format!("there is no directory {}: --to must name the database directory", target.display());
        return Err(Error::new(Kind::Usage, context));
    }
    let target = resolve(target)?;
    let _lock = lock_target(&target)?;
    clear(&target)?;
    let placement = Placement::of(&target)?;
    let settled = below::settle(&placement, wanted)?;
    if settled == Settled::Nothing && !is_there(&placement.rocksdb.join(CURRENT))? {
        let context = format!(
            "no restore into {0} is half done, and there is no database in it: --to must name the database directory",
            placement.target.display()
        );
        return Err(Error::new(Kind::Usage, context));
    }
    Ok(settled)
}

/// Steps 1 and 3 to 9; the caller has verified the backup in `backup` and has locked it.
pub(crate) fn restore(
    backup: &Path,
    databases: &Databases,
    options: RestoreOptions<'_>,
    now_ms: u64,
    control: &Control,
) -> Result<Placed> {
    let (whole, target) = (backup.join(WHOLE), &*resolve(options.target)?);
    let placement = Placement::of(target)?;
    require_no_node(&placement.place)?;
    let owner = owner_of(&placement)?;
    disk::ensure_dir(target, owner)?;
    let _lock = lock_target(target)?;
    clear(target)?;
    if below::settle(&placement, Settle::Undo)? != Settled::Nothing {
        log::info!("interrupted restore settled directory={}", placement.rocksdb.display());
    }
    // Looked at again under the lock.
    let placement = Placement::of(target)?;
    if !options.replace {
        require_free(&placement)?;
    }
    control.set_reserve(RESERVE_BYTES);
    let filling = Filling { copier: Copier { owner, control }, copy: options.copy, databases };
    let (counts, replaced) = match placement.way() {
        Way::Whole => restore_whole(&whole, &placement, filling, now_ms)?,
        Way::Below => below::exchange(&placement, &whole, &filling, now_ms)?,
    };
    Ok(Placed { way: placement.way(), replaced, counts })
}

/// The owner that the files of a restored database need.
pub(crate) fn owner_of(placement: &Placement) -> Result<Option<Owner>> {
    let Placement { target, place, rocksdb, .. } = placement;
    let existing = match placement.way() {
        Way::Below if rocksdb.is_dir() => rocksdb,
        Way::Below => place,
        Way::Whole if placement.is_occupied()? => place,
        Way::Whole => target,
    };
    Owner::following(nearest_directory(existing)?)
}

/// Steps 3 to 9 for a plain `0`.
fn restore_whole(
    whole: &Path,
    placement: &Placement,
    filling: Filling<'_>,
    now_ms: u64,
) -> Result<(Counts, Vec<PathBuf>)> {
    let Placement { target, place, .. } = placement;
    let occupied = placement.is_occupied()?;
    let names = Names::free(target, now_ms);
    if occupied {
        probe_exchange(&names)?;
    }
    let owner = filling.copier.owner;
    let put = fill(whole, &names.staging, filling).and_then(|counts| {
        // A node may have been started while we copied.
        require_no_node(place)?;
        if occupied { exchange(&names, owner) } else { put_in_place(&names) }.map(|()| counts)
    });
    let counts = match put {
        Ok(counts) => counts,
        Err(cause) => {
            // The cause is reported, not an error of the clean-up: the next restore removes the directory.
            let _ = disk::remove_tree(&names.staging, &|| true);
            return Err(cause);
        }
    };
    if occupied {
        disk::rename(&names.exchanging, &names.aside).map_err(|e| in_place(place, e))?;
    }
    disk::sync_dir(target).map_err(|e| in_place(place, e))?;
    Ok((counts, if occupied { vec![names.aside] } else { Vec::new() }))
}

/// Step 3, in a directory that is made for it. Follows no link.
pub(crate) fn fill(whole: &Path, staging: &Path, filling: Filling<'_>) -> Result<Counts> {
    let owner = filling.copier.owner;
    // No other user may enter before every file has its mode.
    disk::create_private_dir(staging, owner)?;
    let mut modes = vec![(staging.to_owned(), filling::mode_of(whole)?)];
    let mut parts = Vec::new();
    for name in DIRECTORIES {
        let (from, to) = (whole.join(name), staging.join(name));
        if nofollow::is_directory(&from).context(|| format!("cannot look at {}", from.display()))? {
            disk::create_dir(&to, owner)?;
            modes.push((to.clone(), filling::mode_of(&from)?));
            parts.push(Part { from, to });
        }
    }
    let counts = filling.fill(&parts)?;
    for (path, mode) in modes.iter().rev() {
        permissions::set_of_directory(path, *mode)?;
    }
    disk::sync_dirs(staging)?;
    Ok(counts)
}

/// Step 4. The kernel replaces an empty directory, but not one with files.
fn put_in_place(names: &Names) -> Result<()> {
    disk::rename(&names.staging, &names.place).map_err(|e| {
        if Placement::of(&names.target).is_ok_and(|now| now.is_occupied().unwrap_or(true)) {
            let context =
                format!("{} appeared while the backup was copied: was a node started?", names.place.display());
            return Error::new(Kind::NotEmpty, context).because(e);
        }
        e
    })
}

/// Steps 5 to 8. After an error the target is as it was, and the new database is in the directory where it was filled.
fn exchange(names: &Names, owner: Option<Owner>) -> Result<()> {
    let (new, place) = (&names.exchanging, &names.place);
    // After a crash this may be an old database, so it must not have the name of a directory that the next restore removes.
    disk::rename(&names.staging, new)?;
    let back = |cause: Error| match disk::rename(new, &names.staging) {
        Ok(()) => cause,
        Err(_) => Error::new(
            cause.kind(),
            format!("{} can be removed: it is not your old database but a copy of the backup", new.display()),
        )
        .because(cause),
    };
    disk::sync_dir(&names.target).map_err(back)?;
    let locks = NodeLocks::take(place, owner).map_err(back)?;
    fault_gate::point("restore-locked", &names.target);
    disk::exchange(new, place).map_err(back)?;
    fault_gate::point("restore-exchanged", &names.target);
    let synced = disk::sync_dir(&names.target);
    if let Err(cause) = locks.require_unused(&new.join(ROCKSDB), &new.join(SQLITE)) {
        disk::exchange(new, place).map_err(|e| {
            let context = format!(
                "{} is restored, but a process uses the old database, which is now in {}: stop that process",
                place.display(),
                new.display()
            );
            Error::new(e.kind(), context).because(e)
        })?;
        let undone = disk::sync_dir(&names.target);
        return Err(back(undone.err().unwrap_or(cause)));
    }
    // From here on the database is restored.
    synced.map_err(|e| in_place(place, e))
}

/// Fails if the file system cannot exchange two directories, before anything is copied.
fn probe_exchange(names: &Names) -> Result<()> {
    let probe = || {
        disk::create_dir(&names.staging, None)?;
        disk::create_dir(&names.probe, None)?;
        disk::exchange(&names.staging, &names.probe)
    };
    let result = probe();
    for path in [&names.staging, &names.probe] {
        disk::remove_tree(path, &|| true)?;
    }
    result.map_err(|e| {
        let context = format!(
            "the file system of {} cannot exchange two directories: move {} aside yourself, then restore without --replace",
            names.target.display(),
            names.place.display()
        );
        Error::new(Kind::Refused, context).because(e)
    })
}

/// Fails if there is a database, for a restore that must not replace one.
pub(crate) fn require_free(placement: &Placement) -> Result<()> {
    if !placement.is_occupied()? {
        return Ok(());
    }
    let context = format!(
        "{} is not empty; name another directory, or give --replace, which renames and keeps it",
        placement.place.display()
    );
    Err(Error::new(Kind::NotEmpty, context))
}

fn in_place(place: &Path, cause: Error) -> Error {
    let context = format!("{} is restored, but perhaps not durably: run sync, or restore again", place.display());
    Error::new(cause.kind(), context).because(cause)
}

/// Cleans up after an interrupted restore: removes an unfinished database, and keeps one that may be an old database.
fn clear(target: &Path) -> Result<()> {
    let failed = || format!("cannot list {}", target.display());
    for entry in nofollow::entries(target).context(failed)? {
        let (name, _) = entry.context(failed)?;
        let (path, name) = (target.join(&name), name.to_string_lossy());
        if layout::is_restoring(&name) {
            disk::remove_tree(&path, &|| true)?;
        } else if let Some(time) = layout::time_in_exchanging(&name) {
            disk::rename(&path, &target.join(layout::replaced(time)))?;
        }
    }
    Ok(())
}

/// Whether the Pact databases of a backup have all blocks: the worst of them. The record names the version; if it does not, or if
/// there is none, the newest cut does.
pub(crate) fn pact_history(
    whole: &Path,
    record: Option<&Record>,
    program: Option<&Path>,
    control: &Control,
) -> Result<History> {
    let databases = SqliteSource::Foreign(whole.join(SQLITE)).databases()?;
    let lowest = |database: &PathBuf| Ok((chain_of(database), lowest_height(database)?));
    let lowest: Vec<(Option<u32>, Option<u64>)> = databases.iter().map(lowest).collect::<Result<_>>()?;
    let of_version = |name: Option<&str>| {
        let version = name.and_then(|name| Version::of_name(name).ok());
        let histories = lowest.iter().map(|(chain, lowest)| History::of(*lowest, *chain, version));
        histories.max().unwrap_or(History::Whole)
    };
    let recorded = record.and_then(|record| record.versions.chainweb.as_deref());
    let history = of_version(recorded);
    if history != History::Unknown || recorded.is_some() {
        return Ok(history);
    }
    Ok(match rocksdb::read_cut(&whole.join(ROCKSDB), program, control) {
        Ok(Heights::Cut(cut)) => of_version(cut.and_then(|cut| cut.version).as_deref()),
        Ok(Heights::Damaged(fault) | Heights::Unread(fault)) => unknown(&fault.to_string()),
        Err(e) if e.kind() == Kind::Cancelled => return Err(e),
        Err(e) => unknown(&e.chain()),
    })
}

fn unknown(why: &str) -> History {
    log::debug!("chainweb version of a backup unknown reason={why:?}");
    History::Unknown
}

/// Fails if a process has a database below `place` open: such a database is never changed.
pub(crate) fn require_no_node(place: &Path) -> Result<()> {
    node_locks::user_of(place)?.map_or(Ok(()), |user| Err(user.into_error()))
}

pub(crate) fn nearest_directory(path: &Path) -> Result<&Path> {
    let found = path.ancestors().find(|p| p.is_dir() || p.as_os_str().is_empty());
    let found = found.map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p });
    found.ok_or_else(|| Error::new(Kind::Usage, format!("{} lies in no directory", path.display())))
}
