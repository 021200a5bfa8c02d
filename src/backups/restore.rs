//! Restores a backup: puts its `0` below a node's database directory.
//!
//! ```text
//! step                                                     a crash after it leaves the target
//! 1  refuse: node running, target not empty or a mount,    as it was
//!    no space, no exchange on this file system
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
//! Invariants: a directory that may be an old database is never removed: `.restoring-*` never is one, `.exchanging-*` may be. Only
//! one restore at a time works on a target: it holds a lock on the directory. The exchange counts only if no process has an old
//! database open: a node that starts at any moment finds one of the two databases, and all of it. The files of the backup are only
//! read. SSTs, which RocksDB never changes, are linked if the file system permits it and if they have the owner and mode that the
//! target needs. Every file that a node writes to (WAL, MANIFEST, CURRENT, SQLite) is cloned or copied: a restored database never
//! shares a writable file with its backup. Files and directories have the same modes as in the backup.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use crate::backups::catalog::lies_in_backup;
use crate::backups::sums;
use crate::capture::node_locks::{self, NodeLocks};
use crate::capture::rocksdb::live_directories::is_immutable;
use crate::capture::source::{SqliteSource, is_same, require_no_file, resolve};
use crate::capture::sqlite;
use crate::chainweb::{DIRECTORIES, ROCKSDB, SQLITE};
use crate::config::Depth;
use crate::control::Control;
use crate::disk::copy::{self, Copier};
use crate::disk::fault_gate;
use crate::disk::lock::Lock;
use crate::disk::nofollow;
use crate::disk::permissions;
use crate::disk::unsynced::{Batch, Links};
use crate::disk::{self, Owner};
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::layout::{self, WHOLE};

/// The bytes that must be left free on the target's file system.
const RESERVE_BYTES: u64 = 64 * 1024 * 1024;

/// How many times, in milliseconds, are tried to find free names.
const MAX_STAMPS: u64 = 1000;

/// The result of a restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The restored database directory, ready for a node.
    pub database_directory: PathBuf,
    /// The directory of the database that was replaced, if there was one.
    pub replaced: Option<PathBuf>,
    /// The number of files that are links to the backup's.
    pub linked_count: u64,
    /// The number of files that were cloned or copied.
    pub copied_count: u64,
    /// Whether compaction has removed old blocks of Pact: then the node must be told to accept that.
    pub pact_is_compacted: bool,
}

/// Fails with [`Kind::Usage`] if `target` cannot be a database directory: it lies within a database or a backup, or is the backup
/// directory.
pub(crate) fn require_target(target: &Path, backups: &Path) -> Result<()> {
    require_no_file(target, "target", "--to")?;
    let resolved = resolve(target)?;
    let in_database = |above: &Path| above.join("CURRENT").is_file() || above.join(ROCKSDB).join("CURRENT").is_file();
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
    /// The program in whose child process RocksDB is opened for the verification; if absent, it is opened in this process.
    pub program: Option<&'a Path>,
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

/// Steps 1 and 3 to 9; the caller has verified the backup in `backup` and has locked it.
pub(crate) fn restore(backup: &Path, options: RestoreOptions<'_>, now_ms: u64, control: &Control) -> Result<Restored> {
    let (whole, target) = (backup.join(WHOLE), &*resolve(options.target)?);
    let place = target.join(WHOLE);
    require_free(&place, options.replace)?;
    require_no_node(&place)?;
    let parent = nearest_directory(target)?;
    let owner = Owner::following(if is_occupied(&place) { &place } else { parent })?;
    disk::ensure_dir(target, owner)?;
    let _lock = Lock::try_take_directory(target)?.ok_or_else(|| {
        Error::new(Kind::Busy, format!("another restore into {} is running; wait for its end", target.display()))
    })?;
    clear(target)?;
    // Checked again under the lock.
    require_free(&place, options.replace)?;
    let occupied = is_occupied(&place);
    let names = Names::free(target, now_ms);
    if occupied {
        probe_exchange(&names)?;
    }
    control.set_reserve(RESERVE_BYTES);
    let mut restored = Restored {
        database_directory: options.target.to_owned(),
        replaced: None,
        linked_count: 0,
        copied_count: 0,
        pact_is_compacted: is_compacted(&whole)?,
    };
    let mut filling = Filling { copier: Copier { owner, control }, copy: options.copy, restored: &mut restored };
    let put = filling.fill(&whole, &names.staging).and_then(|()| {
        // A node may have been started while we copied.
        require_no_node(&place)?;
        if occupied { exchange(&names, owner) } else { put_in_place(&names) }
    });
    if let Err(cause) = put {
        // The cause is reported, not an error of the clean-up: the next restore removes the directory.
        let _ = disk::remove_tree(&names.staging, &|| true);
        return Err(cause);
    }
    if occupied {
        disk::rename(&names.exchanging, &names.aside).map_err(|e| in_place(&place, e))?;
        restored.replaced = Some(names.aside);
    }
    disk::sync_dir(target).map_err(|e| in_place(&place, e))?;
    Ok(restored)
}

/// Step 4. The kernel replaces an empty directory, but not one with files.
fn put_in_place(names: &Names) -> Result<()> {
    disk::rename(&names.staging, &names.place).map_err(|e| {
        if is_occupied(&names.place) {
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
    if let Err(cause) = locks.require_unused(new) {
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

/// Fails if the new `0` cannot get its name: there is a `0` that must not be replaced, or a file system is mounted there.
fn require_free(place: &Path, replace: bool) -> Result<()> {
    if is_occupied(place) && !replace {
        let context = format!(
            "{} is not empty; name another directory, or give --replace, which renames and keeps it",
            place.display()
        );
        return Err(Error::new(Kind::NotEmpty, context));
    }
    if !nofollow::is_mount_point(place) {
        return Ok(());
    }
    let context = format!(
        "a file system is mounted at {}, and a mount cannot be replaced: restore into another directory",
        place.display()
    );
    Err(Error::new(Kind::Refused, context))
}

#[expect(clippy::disallowed_methods, reason = "the operator may have put a link in place of the target")]
fn is_occupied(place: &Path) -> bool {
    place.symlink_metadata().is_ok() && fs::read_dir(place).is_ok_and(|mut d| d.next().is_some())
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

fn is_compacted(whole: &Path) -> Result<bool> {
    let databases = SqliteSource::Foreign(whole.join(SQLITE)).databases()?;
    databases.iter().try_fold(false, |found, database| Ok(found || sqlite::is_compacted(database)?))
}

/// Fails if a process has a database below `place` open: such a database is never changed.
fn require_no_node(place: &Path) -> Result<()> {
    node_locks::user_of(place)?.map_or(Ok(()), |user| Err(user.into_error()))
}

fn nearest_directory(path: &Path) -> Result<&Path> {
    let found = path.ancestors().find(|p| p.is_dir() || p.as_os_str().is_empty());
    let found = found.map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p });
    found.ok_or_else(|| Error::new(Kind::Usage, format!("{} lies in no directory", path.display())))
}

/// Fills the new database.
struct Filling<'a> {
    copier: Copier<'a>,
    copy: bool,
    restored: &'a mut Restored,
}

/// A file to be restored.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Item {
    from: PathBuf,
    to: PathBuf,
    bytes: u64,
    mode: u32,
    may_link: bool,
}

impl Filling<'_> {
    /// Step 3.
    fn fill(&mut self, whole: &Path, staging: &Path) -> Result<()> {
        let Copier { owner, control } = self.copier;
        // No other user may enter before every file has its mode.
        disk::create_private_dir(staging, owner)?;
        let mut directories = vec![(staging.to_owned(), mode_of(whole)?)];
        let mut files = Vec::new();
        for name in DIRECTORIES {
            let (from, to) = (whole.join(name), staging.join(name));
            if nofollow::is_directory(&from).context(|| format!("cannot look at {}", from.display()))? {
                disk::create_dir(&to, owner)?;
                self.list(&from, &to, &mut files)?;
                directories.push((to, mode_of(&from)?));
            }
        }
        files.sort();
        let needed_bytes = files.iter().filter(|file| !file.may_link).map(|file| file.bytes).sum();
        control.set_total(needed_bytes);
        require_room(staging, needed_bytes)?;
        let mut unsynced = Batch::default();
        let mut linked = Vec::new();
        for file in files {
            control.check()?;
            if self.bring(&file, &mut unsynced)? {
                linked.push(file.to);
            }
        }
        unsynced.sync()?;
        sync_links(staging, &linked, control)?;
        for (path, mode) in directories.iter().rev() {
            permissions::set_of_directory(path, *mode)?;
        }
        disk::sync_dirs(staging)
    }

    /// Adds the files of one directory.
    fn list(&self, from: &Path, to: &Path, files: &mut Vec<Item>) -> Result<()> {
        let failed = || format!("cannot list {}", from.display());
        for entry in nofollow::entries(from).context(failed)? {
            let (name, stat) = entry.context(failed)?;
            let (name, mode) = (PathBuf::from(name), stat.st_mode);
            let text = name.to_string_lossy();
            // The checksums belong to the backup, and are not restored.
            if FileType::from_raw_mode(mode) != FileType::RegularFile || sums::is_ours(&text) {
                continue;
            }
            let may_link =
                !self.copy && Owner::fits(self.copier.owner, &stat) && mode & 0o200 != 0 && is_immutable(&text);
            let bytes = stat.st_size.cast_unsigned();
            files.push(Item { from: from.join(&name), to: to.join(&name), bytes, mode, may_link });
        }
        Ok(())
    }

    /// Links, clones or copies a file; returns whether it was linked.
    fn bring(&mut self, Item { from, to, bytes, mode, may_link }: &Item, unsynced: &mut Batch) -> Result<bool> {
        if *may_link && disk::link(from, to).is_ok() {
            self.restored.linked_count += 1;
            return Ok(true);
        }
        let file = nofollow::open_regular(from).context(|| format!("cannot open {}", from.display()))?;
        let cloned = if self.copy { None } else { copy::clone(self.copier, file.as_fd(), to, &|| Ok(()))? };
        let copied = match cloned {
            Some(cloned) => cloned,
            None => copy::copy_still(self.copier, &file, *bytes, to)?,
        };
        // A node must be able to write to it, even if its mode was changed in the backup.
        copied.set_mode(mode | 0o600)?;
        self.restored.copied_count += 1;
        unsynced.add(copied).map(|()| false)
    }
}

/// Makes the links to the backup's files durable: an operator may have brought the backup here a moment ago, by `rsync`.
fn sync_links(staging: &Path, linked: &[PathBuf], control: &Control) -> Result<()> {
    for directory in DIRECTORIES.map(|name| staging.join(name)) {
        let mut of_directory = linked.iter().filter(|path| path.parent() == Some(&directory)).peekable();
        if of_directory.peek().is_none() {
            continue;
        }
        let mut links = Links::of(&directory)?;
        for name in of_directory.filter_map(|path| path.file_name().map(Path::new)) {
            control.check()?;
            links.sync(name)?;
        }
        links.finish()?;
    }
    Ok(())
}

fn mode_of(path: &Path) -> Result<u32> {
    let directory = nofollow::open_directory(path).and_then(|directory| directory.metadata());
    Ok(directory.context(|| format!("cannot look at {}", path.display()))?.mode())
}

fn require_room(staging: &Path, needed_bytes: u64) -> Result<()> {
    let (free_bytes, _) = disk::free_bytes(staging)?;
    if free_bytes >= needed_bytes.saturating_add(RESERVE_BYTES) {
        return Ok(());
    }
    let context = format!(
        "not enough space for a restore: it needs {needed_bytes} bytes, and {RESERVE_BYTES} must be left free; the file system \
         of {} has {free_bytes} free",
        staging.parent().unwrap_or(staging).display()
    );
    Err(Error::new(Kind::NoSpace, context))
}
