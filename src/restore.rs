//! A backup becomes a node's database again: its `0` is put below a database directory.
//!
//! ```text
//! step                                                     a crash after it leaves the target
//! 1  refuse: node running, target not empty, no space      as it was
//! 2  quick (or deep) verification                          as it was
//! 3  fill TARGET/.restoring-<time>, all of it synced       as it was, and that directory, which the next restore removes
//! 4  rename it to TARGET/0; or, where there is one and     wholly new
//!    --replace was given:
//! 5  rename it to TARGET/.exchanging-<time>                as it was; the next restore calls it 0.bak-<time>
//! 6  exchange the two, atomically                          wholly new; the next restore calls the old one so
//! 7  rename the old one to TARGET/0.bak-<time>             wholly new
//! ```
//! Invariants: what may be an old database is never removed: `.restoring-*` never is one, `.exchanging-*` may be. One restore
//! at a time works on a target: it holds a lock on the directory. The files of the backup are only read. SSTs are linked where
//! the file system allows and their owner and mode are those the target needs: RocksDB never changes one. Everything that a
//! node writes to (WAL, MANIFEST, CURRENT, SQLite) is cloned or copied: a restored database never shares a writable file with
//! its backup.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use crate::catalog::lies_in_backup;
use crate::commit::WHOLE;
use crate::control::Control;
use crate::copy;
use crate::disk::{self, Lock, Owner};
use crate::error::{Error, IoContext, Kind, Result};
use crate::live_files::is_immutable;
use crate::nofollow;
use crate::source::{RocksSource, SqliteSource, is_same, require_no_file, resolve};
use crate::sqlite;
use crate::sums::SUMS_FILE;
use crate::unsynced::Batch;

const RESTORING: &str = ".restoring-";
const EXCHANGING: &str = ".exchanging-";
const ASIDE: &str = "0.bak-";

/// Sizes that must stay free on the target's file system.
const RESERVE_BYTES: u64 = 64 * 1024 * 1024;

/// What a restore did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The database directory that a node can be started on.
    pub database_directory: PathBuf,
    /// Where what was there before is now.
    pub replaced: Option<PathBuf>,
    /// Files that are links to the backup's.
    pub linked_count: u64,
    /// Files that were cloned or copied.
    pub copied_count: u64,
    /// Whether Pact has lost its old blocks to compaction: the node refuses it unless it is told that this is wished.
    pub pact_is_compacted: bool,
}

/// Fails with [`Kind::Usage`] where a database directory cannot be: within a database or a backup, or where the backups are.
pub(crate) fn require_target(target: &Path, backups: &Path) -> Result<()> {
    require_no_file(target, "target", "--to")?;
    let resolved = resolve(target)?;
    let in_database = |above: &Path| above.join("CURRENT").is_file() || above.join("rocksDb").join("CURRENT").is_file();
    let whose = if is_same(target, backups) {
        "is the backup directory"
    } else if lies_in_backup(&resolved)? {
        "lies in a backup"
    } else if resolved.ancestors().any(in_database) {
        "lies within a database"
    } else {
        return Ok(());
    };
    let context = format!("the target {} {whose}: name the directory that holds, or gets, the 0", target.display());
    Err(Error::new(Kind::Usage, context))
}

/// Steps 1, 3, 4 and 5; the caller has verified the backup in `backup` and holds it.
pub(crate) fn restore(backup: &Path, target: &Path, replace: bool, stamp: &str, control: &Control) -> Result<Restored> {
    let whole = backup.join(WHOLE);
    let (named, target) = (target, &*resolve(target)?);
    let place = target.join("0");
    let occupied = is_occupied(&place);
    if occupied && !replace {
        return Err(not_empty(&place));
    }
    require_no_node(target)?;
    let parent = nearest_directory(target)?;
    let owner = Owner::following(if occupied { &place } else { parent })?;
    disk::ensure_dir(target, owner)?;
    let staging = target.join(format!("{RESTORING}{stamp}"));
    let _lock = Lock::try_take_directory(target)?.ok_or_else(|| {
        Error::new(Kind::Busy, format!("another restore into {} is on its way; wait for it", target.display()))
    })?;
    clear(target)?;
    // Looked at again under the lock.
    if !replace && is_occupied(&place) {
        return Err(not_empty(&place));
    }
    let occupied = is_occupied(&place);
    control.set_reserve(RESERVE_BYTES);
    let mut restored = Restored {
        database_directory: named.to_owned(),
        replaced: None,
        linked_count: 0,
        copied_count: 0,
        pact_is_compacted: is_compacted(&whole)?,
    };
    let filled = fill(&whole, &staging, owner, control, &mut restored);
    if let Err(cause) = filled {
        // The cause is what matters; the next restore removes what this cannot.
        let _ = disk::remove_tree(&staging, &|| true);
        return Err(cause);
    }
    disk::sync_dirs(&staging)?;
    // Somebody may have started a node on it while we copied.
    require_no_node(target)?;
    if occupied {
        let (aside, exchanging) = (target.join(format!("{ASIDE}{stamp}")), target.join(format!("{EXCHANGING}{stamp}")));
        disk::rename(&staging, &exchanging)?;
        disk::sync_dir(target)?;
        disk::exchange(&exchanging, &place)?;
        disk::sync_dir(target).map_err(|e| in_place(&place, e))?;
        disk::rename(&exchanging, &aside).map_err(|e| in_place(&place, e))?;
        restored.replaced = Some(aside);
    } else {
        disk::rename(&staging, &place)?;
    }
    disk::sync_dir(target).map_err(|e| in_place(&place, e))?;
    Ok(restored)
}

#[expect(clippy::disallowed_methods, reason = "the target is the operator's, and may be a link of his")]
fn is_occupied(place: &Path) -> bool {
    place.symlink_metadata().is_ok() && fs::read_dir(place).is_ok_and(|mut d| d.next().is_some())
}

fn not_empty(place: &Path) -> Error {
    let context =
        format!("{} is not empty; name another directory, or give --replace to keep it aside", place.display());
    Error::new(Kind::NotEmpty, context)
}

fn in_place(place: &Path, cause: Error) -> Error {
    let context = format!("{} is restored, but perhaps not durably: run sync, or restore again", place.display());
    Error::new(cause.kind(), context).because(cause)
}

/// Ends what a restore left that was cut off: removes what it had not finished, keeps what may be an old database.
fn clear(target: &Path) -> Result<()> {
    let failed = || format!("cannot list {}", target.display());
    for entry in nofollow::entries(target).context(failed)? {
        let (name, _) = entry.context(failed)?;
        let (path, name) = (target.join(&name), name.to_string_lossy());
        if name.strip_prefix(RESTORING).is_some_and(is_stamp) {
            disk::remove_tree(&path, &|| true)?;
        } else if let Some(stamp) = name.strip_prefix(EXCHANGING).filter(|stamp| is_stamp(stamp)) {
            disk::rename(&path, &target.join(format!("{ASIDE}{stamp}")))?;
        }
    }
    Ok(())
}

/// Whether this is what we end the names of our directories with: a time in milliseconds.
fn is_stamp(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn is_compacted(whole: &Path) -> Result<bool> {
    let databases = SqliteSource::Foreign(whole.join("sqlite")).databases()?;
    databases.iter().try_fold(false, |found, database| Ok(found || sqlite::is_compacted(database)?))
}

/// A database that a node has open is never touched.
fn require_no_node(target: &Path) -> Result<()> {
    let rocksdb = RocksSource::Directory(target.join("0").join("rocksDb"));
    let sqlite = SqliteSource::Foreign(target.join("0").join("sqlite"));
    let mut used = rocksdb.is_held_by_another()?;
    for database in sqlite.databases()? {
        used = used || sqlite::is_used_by_another(&database)?;
    }
    if !used {
        return Ok(());
    }
    let context = format!("a running node uses {}; stop it first", target.join("0").display());
    Err(Error::new(Kind::NodeRunning, context))
}

fn nearest_directory(path: &Path) -> Result<&Path> {
    let found = path.ancestors().find(|p| p.is_dir() || p.as_os_str().is_empty());
    let found = found.map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p });
    found.ok_or_else(|| Error::new(Kind::Usage, format!("{} lies in no directory", path.display())))
}

fn fill(whole: &Path, staging: &Path, owner: Option<Owner>, control: &Control, restored: &mut Restored) -> Result<()> {
    disk::create_dir(staging, owner)?;
    let mut needed_bytes = 0;
    let mut files = Vec::new();
    for name in ["rocksDb", "sqlite"] {
        let (from, to) = (whole.join(name), staging.join(name));
        if !nofollow::is_directory(&from).context(|| format!("cannot look at {}", from.display()))? {
            continue;
        }
        disk::create_dir(&to, owner)?;
        for entry in nofollow::entries(&from).context(|| format!("cannot list {}", from.display()))? {
            let (name, stat) = entry.context(|| format!("cannot list {}", from.display()))?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && name != SUMS_FILE {
                let may_link =
                    is_immutable(&name.to_string_lossy()) && Owner::fits(owner, &stat) && stat.st_mode & 0o200 != 0;
                let bytes = stat.st_size.cast_unsigned();
                needed_bytes += if may_link { 0 } else { bytes };
                files.push((from.join(&name), to.join(name), may_link, bytes));
            }
        }
    }
    files.sort();
    let (free_bytes, _) = disk::free_bytes(staging)?;
    control.set_total(needed_bytes);
    if free_bytes < needed_bytes.saturating_add(RESERVE_BYTES) {
        let context = format!("not enough space for a restore: {needed_bytes} bytes are needed, {free_bytes} are free");
        return Err(Error::new(Kind::NoSpace, context));
    }
    let mut unsynced = Batch::default();
    for (from, to, may_link, bytes) in files {
        control.check()?;
        if may_link && disk::link(&from, &to).is_ok() {
            restored.linked_count += 1;
            continue;
        }
        let file = nofollow::open_regular(&from).context(|| format!("cannot open {}", from.display()))?;
        match copy::clone(file.as_fd(), &to, owner, control, &|| Ok(()))? {
            Some(cloned) => unsynced.add(cloned)?,
            None => unsynced.add(copy::copy_still(&file, bytes, &to, owner, control)?)?,
        }
        restored.copied_count += 1;
    }
    unsynced.sync()
}
