//! Exchanges a database one level below `0`: the files in `0/rocksDb` and in `0/sqlite`. Used if `0` cannot be exchanged as a whole
//! (see `placement`).
//!
//! In each of the two directories, the new files are first in `.restoring-<time>`, and the old ones are moved to `0.bak-<time>`. Both
//! are on the mount of the directory, so each file is moved by a rename. Only regular files are moved: not the directories
//! (`lost+found`, backups, pins), and not RocksDB's `LOCK`, whose lock prevents a node from starting as long as this process lives.
//! ```text
//! step                                                        a crash after it leaves
//! 1  fill .restoring-<time> in both directories; sync         the old database; the next restore removes the directories
//! 2  lock the old databases against a node that starts        the same
//! 3  write 0/rocksDb/.restore-journal.json; sync              the old database: settled by removing what was made
//! 4  make 0.bak-<time>, link CURRENT into it; sync            the same
//! 5  replace 0/rocksDb/CURRENT by a mark; sync                half done: no node can open it, see below
//! 6  rename the old files into 0.bak-<time>; sync             half done
//! 7  a process opened an old database since 2: go back        half done, then the old database
//! 8  rename the new files into the directories; sync          half done
//! 9  rename the new CURRENT into place; sync                  the new database
//! 10 remove the journal, sync; remove .restoring-<time>       the new database
//! ```
//! RocksDB reads CURRENT first, and refuses to open a database if it does not end with a newline (`GetCurrentManifestPath`); without a
//! CURRENT it would make a new, empty database. So CURRENT always exists while files are moved. A node opens no Pact database before
//! its RocksDB is open.
//!
//! A half-done exchange can be finished or undone from any point. Both can be interrupted, and then continued in either direction,
//! because the place of each file shows how far the exchange is: a new file that is not in `.restoring-<time>` is in place. To undo an
//! exchange, the new files are moved back to `.restoring-<time>`, then the old ones into place, the old CURRENT last. If the mark is
//! not in CURRENT, nothing is half done: if the new CURRENT is in place, the new database is; otherwise the old one is, and a node may
//! have written to it. The journal has the inodes of the directories. It does not have their devices, whose numbers may change at a
//! restart: that `.restoring-<time>` exists shows that the right file system is mounted.
//!
//! Invariants: no file that may be part of an old database is removed or overwritten; none is ever in `.restoring-<time>`. A file that
//! appears while the exchange is half done (a log of a node that was refused, a new database of a program that found none) is kept as
//! `<name>.later-<n>` if its name is needed. So is what would be taken for the WAL or journal of a database that is put in place. For
//! that, each database is moved before its own.
//!
//! # Limitations
//! While the exchange is half done and no restore runs, programs that are no node (`sqlite3`) can open the Pact databases that are in
//! place. The next restore does not continue as long as a program has one open.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use crate::backups::catalog::is_there;
use crate::backups::filling::{self, Counts, Filling, Part};
use crate::backups::journal::{self, Journal, Names};
use crate::backups::moving::{keep_later, move_and_keep, move_exactly, move_to};
use crate::backups::placement::{Placement, Way, entries, is_fixed};
use crate::capture::node_locks::NodeLocks;
use crate::capture::source::is_half_restored;
use crate::chainweb::{DIRECTORIES, SQLITE, is_pact_database};
use crate::database_files::{CURRENT, companions_of};
use crate::disk::fault_gate;
use crate::disk::nofollow;
use crate::disk::permissions;
use crate::disk::{self, Owner};
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::layout::{self, RESTORE_JOURNAL, RESTORE_MARK};

/// How a half-done exchange is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settle {
    /// It is finished: the new database is put in place.
    Resume,
    /// It is undone: the old database is put back.
    Undo,
}

/// Which database is in place after an interrupted exchange was settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// No exchange was interrupted.
    Nothing,
    /// The restored one.
    New,
    /// The one that was there before.
    Old,
}

/// A directory whose files are exchanged.
struct Side {
    place: PathBuf,
    staging: PathBuf,
    aside: PathBuf,
    new: Vec<String>,
}

/// An exchange, running or interrupted.
struct Exchange {
    /// RocksDB's directory is the first.
    sides: Vec<Side>,
}

/// How far an interrupted exchange is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Old,
    Half,
    New,
}

/// Steps 1 to 10, into directories that exist. Returns the counts and the directories of the old files. After an error the old database
/// is in place, or the error says that the exchange is half done.
pub(crate) fn exchange(
    placement: &Placement,
    whole: &Path,
    filling: &Filling<'_>,
    time_ms: u64,
) -> Result<(Counts, Vec<PathBuf>)> {
    let owner = filling.copier.owner;
    let exchange = Exchange::begin(placement, whole, filling, time_ms)?;
    let filled = exchange.fill(whole, filling).and_then(|counts| {
        let locks = NodeLocks::take(&placement.place, owner)?;
        fault_gate::point("restore-locked", &placement.target);
        exchange.write_journal(time_ms, owner)?;
        exchange.set_aside(owner)?;
        Ok((counts, locks))
    });
    let (counts, locks) = match filled {
        Ok(filled) => filled,
        Err(cause) => {
            // The cause is reported, not an error of the clean-up: the next restore does the same.
            let _ = exchange.end(Progress::Old);
            return Err(cause);
        }
    };
    let moved = exchange.mark(owner).and_then(|()| {
        exchange.forward(|exchange| {
            fault_gate::point("restore-exchanged", &placement.target);
            locks.require_unused(&placement.rocksdb, &exchange.aside_of(&placement.sqlite))
        })
    });
    if let Err(cause) = moved {
        return Err(exchange.give_up(cause, placement));
    }
    fault_gate::point("restore-in-place", &placement.target);
    let kept = exchange.end(Progress::New);
    kept.map(|kept| (counts, kept)).map_err(|e| {
        let context = format!(
            "{} is restored, but perhaps not durably: run sync, or restore --resume",
            placement.place.display()
        );
        Error::new(e.kind(), context).because(e)
    })
}

/// Finishes or undoes an exchange that was interrupted in this place. The caller holds the lock of the target. Also removes the
/// unfinished databases that earlier restores left.
pub(crate) fn settle(placement: &Placement, wanted: Settle) -> Result<Settled> {
    let Some(exchange) = Exchange::interrupted(placement)? else {
        require_mounted(placement)?;
        // A crash in between leaves them in the directory of RocksDB: see there.
        for place in [&placement.sqlite, &placement.rocksdb] {
            clear(place)?;
        }
        // The temporary file of a journal that was never in place: nothing was moved.
        if placement.rocksdb.is_dir() {
            disk::end_replace(&placement.rocksdb, RESTORE_JOURNAL)?;
        }
        return Ok(Settled::Nothing);
    };
    let mut progress = exchange.progress()?;
    if progress == Progress::Half {
        let owner = Owner::following(&placement.rocksdb)?;
        let locks = NodeLocks::take(&placement.place, owner)?;
        fault_gate::point("restore-locked", &placement.target);
        match wanted {
            Settle::Resume => exchange.forward(|_| locks.require_unopened())?,
            Settle::Undo => exchange.backward()?,
        }
        progress = exchange.progress()?;
    }
    exchange.end(progress)?;
    Ok(if progress == Progress::New { Settled::New } else { Settled::Old })
}

/// Fails as [`settle`] would because of what a restore left, or as the next exchange would because of what is in place. Nothing is
/// changed.
pub(crate) fn require_settleable(placement: &Placement) -> Result<()> {
    match Exchange::interrupted(placement)? {
        Some(_) => Ok(()),
        None => require_mounted(placement),
    }?;
    match placement.way() {
        Way::Whole => Ok(()),
        Way::Below => {
            let places = [&placement.rocksdb, &placement.sqlite];
            places.into_iter().try_for_each(|place| Side::of(place, 0, Vec::new()).in_place().map(|_| ()))
        }
    }
}

/// Fails if new files for Pact are staged, and none for RocksDB: these are made first and removed last, so the journal of that restore is
/// on a file system that is not mounted.
fn require_mounted(placement: &Placement) -> Result<()> {
    for (name, kind) in entries(&placement.sqlite)? {
        let staging = placement.sqlite.join(&name);
        if kind == FileType::Directory
            && layout::is_restoring(&name.to_string_lossy())
            && !is_there(&placement.rocksdb.join(&name))?
        {
            let context = format!(
                "a restore was interrupted, and {} has no part of it, but {} has: mount the file system of the former first. (If \
                 none is missing, the restore was finished: remove the latter)",
                placement.rocksdb.display(),
                staging.display()
            );
            return Err(Error::new(Kind::Refused, context));
        }
    }
    Ok(())
}

/// Removes unfinished databases.
fn clear(place: &Path) -> Result<()> {
    for (name, kind) in entries(place)? {
        if kind == FileType::Directory && layout::is_restoring(&name.to_string_lossy()) {
            disk::remove_tree(&place.join(name), &|| true)?;
        }
    }
    Ok(())
}

impl Side {
    fn of(place: &Path, time_ms: u64, new: Vec<String>) -> Side {
        let staging = place.join(layout::restoring(time_ms));
        Side { place: place.to_owned(), staging, aside: place.join(layout::replaced(time_ms)), new }
    }

    /// The regular files in place, except those that are never exchanged. Fails at a link or a device.
    fn in_place(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for (name, kind) in entries(&self.place)? {
            let path = self.place.join(&name);
            let text = name.into_string().ok();
            match (kind, text) {
                (FileType::Directory, _) => {}
                (FileType::RegularFile, Some(name)) if is_fixed(&name) || name == CURRENT => {}
                (FileType::RegularFile, Some(name)) => names.push(name),
                _ => {
                    let context =
                        format!("{} is not a regular file with a plain name: move it away first", path.display());
                    return Err(Error::new(Kind::Refused, context));
                }
            }
        }
        names.sort();
        Ok(names)
    }

    /// The new files that are still staged, except CURRENT, which is moved last.
    fn staged(&self) -> Result<Vec<&str>> {
        let mut staged = Vec::new();
        for name in self.new.iter().filter(|name| *name != CURRENT) {
            if is_there(&self.staging.join(name))? {
                staged.push(name.as_str());
            }
        }
        Ok(staged)
    }

    /// Whether the file of this name that is in place is the new one.
    fn is_new(&self, name: &str, staged: &[&str]) -> bool {
        self.new.iter().any(|new| new == name) && !staged.contains(&name)
    }

    fn sync(&self) -> Result<()> {
        [&self.staging, &self.aside, &self.place].into_iter().try_for_each(|path| disk::sync_dir(path))
    }

    /// Step 6.
    fn old_out(&self) -> Result<()> {
        let staged = self.staged()?;
        for name in self.in_place()?.iter().filter(|name| !self.is_new(name, &staged)) {
            move_to(&self.place.join(name), &self.aside, name)?;
        }
        self.sync()
    }

    /// Step 8.
    fn new_in(&self) -> Result<()> {
        let mut names = self.staged()?;
        names.sort_unstable();
        names.into_iter().try_for_each(|name| self.put(&self.staging, OsStr::new(name)))?;
        self.sync()
    }

    /// Moves a file into place. What has appeared there is kept under another name, also what SQLite would take for a part of the
    /// database; the parts of its own come later, by the order of the names.
    fn put(&self, from: &Path, name: &OsStr) -> Result<()> {
        let (from, to) = (from.join(name), self.place.join(name));
        if is_pact_database(&to) {
            companions_of(&to).iter().try_for_each(|companion| keep_later(companion))?;
        }
        move_and_keep(&from, &to)
    }

    fn new_out(&self) -> Result<()> {
        let staged = self.staged()?;
        for name in self.in_place()?.iter().filter(|name| self.is_new(name, &staged)) {
            move_exactly(&self.place.join(name), &self.staging.join(name))?;
        }
        self.sync()
    }

    fn old_in(&self) -> Result<()> {
        let mut names: Vec<_> = entries(&self.aside)?.into_iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        for name in names.iter().filter(|name| *name != CURRENT) {
            self.put(&self.aside, name)?;
        }
        self.sync()
    }
}

impl Exchange {
    /// Makes the directories of step 1.
    fn begin(placement: &Placement, whole: &Path, filling: &Filling<'_>, time_ms: u64) -> Result<Exchange> {
        let owner = filling.copier.owner;
        let mut sides = Vec::new();
        for (name, place) in DIRECTORIES.into_iter().zip([&placement.rocksdb, &placement.sqlite]) {
            let from = whole.join(name);
            let has_new = nofollow::is_directory(&from).context(|| format!("cannot look at {}", from.display()))?;
            if !place.is_dir() {
                if !has_new {
                    continue;
                }
                disk::create_dir(place, owner)?;
                permissions::set_of_directory(place, filling::mode_of(&from)?)?;
                disk::sync_dir(place.parent().unwrap_or(place))?;
            }
            let mut side = Side::of(place, time_ms, Vec::new());
            side.in_place()?;
            disk::create_private_dir(&side.staging, owner)?;
            if has_new {
                let part = Part { from, to: side.staging.clone() };
                // No file of a database has another name than UTF-8 can write; one that has is a stranger's, and is left out.
                let listed = filling.list(&part)?;
                side.new.extend(listed.iter().filter_map(|item| item.name().map(str::to_owned)));
            }
            sides.push(side);
        }
        if sides
            .first()
            .is_none_or(|side| side.place != placement.rocksdb || !side.new.iter().any(|name| name == CURRENT))
        {
            let exchange = Exchange { sides };
            let _ = exchange.end(Progress::Old);
            return Err(Error::new(
                Kind::Refused,
                format!("there is no RocksDB in {}: only one with a RocksDB can be restored here", whole.display()),
            ));
        }
        Ok(Exchange { sides })
    }

    /// The rest of step 1.
    fn fill(&self, whole: &Path, filling: &Filling<'_>) -> Result<Counts> {
        let with_new = self.sides.iter().zip(DIRECTORIES).filter(|(side, _)| !side.new.is_empty());
        let parts: Vec<Part> =
            with_new.map(|(side, name)| Part { from: whole.join(name), to: side.staging.clone() }).collect();
        let counts = filling.fill(&parts)?;
        for side in &self.sides {
            disk::sync_dir(&side.staging)?;
            disk::sync_dir(&side.place)?;
        }
        Ok(counts)
    }

    fn rocksdb(&self) -> &Side {
        &self.sides[0]
    }

    fn aside_of(&self, place: &Path) -> PathBuf {
        let side = self.sides.iter().find(|side| side.place == place);
        side.map_or_else(|| place.to_owned(), |side| side.aside.clone())
    }

    /// Step 4.
    fn set_aside(&self, owner: Option<Owner>) -> Result<()> {
        for side in &self.sides {
            disk::create_dir(&side.aside, owner)?;
            permissions::set_of_directory(&side.aside, filling::mode_of(&side.place)?)?;
        }
        let Side { place, aside, .. } = self.rocksdb();
        let (current, kept) = (place.join(CURRENT), aside.join(CURRENT));
        if is_there(&current)? {
            disk::link(&current, &kept).context(|| format!("cannot link {}", current.display()))?;
        }
        self.sides.iter().try_for_each(Side::sync)
    }

    /// Step 3.
    fn write_journal(&self, time_ms: u64, owner: Option<Owner>) -> Result<()> {
        let mut directories = Vec::new();
        for (side, name) in self.sides.iter().zip(DIRECTORIES) {
            let meta = nofollow::open_directory(&side.place).and_then(|directory| directory.metadata());
            let inode = meta.context(|| format!("cannot look at {}", side.place.display()))?.ino();
            directories.push(Names { name: name.to_owned(), inode, new: side.new.clone() });
        }
        journal::write(&self.rocksdb().place, &Journal { time_ms, directories }, owner)
    }

    /// The interrupted exchange that the journal in this place describes; `None` if there is no journal.
    fn interrupted(placement: &Placement) -> Result<Option<Exchange>> {
        let Some(journal) = journal::read(&placement.rocksdb)? else { return Ok(None) };
        let mut sides = Vec::new();
        for Names { name, inode, new } in journal.directories {
            let place = if name == SQLITE { &placement.sqlite } else { &placement.rocksdb };
            let side = Side::of(place, journal.time_ms, new);
            let meta = nofollow::look(place).context(|| format!("cannot look at {}", place.display()))?;
            if meta.is_none_or(|meta| meta.ino() != inode) || !is_there(&side.staging)? {
                let context = format!(
                    "a restore was interrupted in another directory than {}, or {} is missing: mount its file system first",
                    place.display(),
                    side.staging.display()
                );
                return Err(Error::new(Kind::Refused, context));
            }
            sides.push(side);
        }
        Ok(Some(Exchange { sides }))
    }

    fn progress(&self) -> Result<Progress> {
        let Side { place, staging, .. } = self.rocksdb();
        Ok(match (is_half_restored(place)?, is_there(&staging.join(CURRENT))?) {
            (true, _) => Progress::Half,
            (false, true) => Progress::Old,
            (false, false) => Progress::New,
        })
    }

    /// Step 5.
    fn mark(&self, owner: Option<Owner>) -> Result<()> {
        disk::replace(&self.rocksdb().place, CURRENT, RESTORE_MARK.as_bytes(), owner)
    }

    /// Steps 6 to 9.
    fn forward(&self, judge: impl FnOnce(&Exchange) -> Result<()>) -> Result<()> {
        self.sides.iter().try_for_each(Side::old_out)?;
        judge(self)?;
        self.sides.iter().try_for_each(Side::new_in)?;
        let Side { place, staging, .. } = self.rocksdb();
        disk::rename(&staging.join(CURRENT), &place.join(CURRENT))?;
        disk::sync_dir(place)?;
        disk::sync_dir(staging)
    }

    /// Puts the old database back; the mark must be in CURRENT.
    fn backward(&self) -> Result<()> {
        self.sides.iter().try_for_each(Side::new_out)?;
        self.sides.iter().try_for_each(Side::old_in)?;
        let Side { place, aside, .. } = self.rocksdb();
        let (current, kept) = (place.join(CURRENT), aside.join(CURRENT));
        if is_there(&kept)? {
            disk::rename(&kept, &current)?
        } else {
            disk::remove_file(&current)?
        }
        disk::sync_dir(place)?;
        disk::sync_dir(aside)
    }

    /// Undoes the exchange after an error in it, if that is possible. Returns the error to report.
    fn give_up(&self, cause: Error, placement: &Placement) -> Error {
        let undo = || {
            let progress = match self.progress()? {
                Progress::Half => self.backward().and_then(|()| self.progress())?,
                other => other,
            };
            self.end(progress).map(|_| progress)
        };
        let context = match undo() {
            Ok(Progress::Old) => return cause,
            Ok(_) => format!("{} is restored, but perhaps not durably: run sync", placement.place.display()),
            Err(_) => format!(
                "the restore into {} is half done: run restore --resume --to {1} or restore --undo --to {1}",
                placement.place.display(),
                placement.target.display()
            ),
        };
        Error::new(cause.kind(), context).because(cause)
    }

    /// Step 10, also for an exchange that was undone or had not begun. Returns the directories that hold old files.
    fn end(&self, progress: Progress) -> Result<Vec<PathBuf>> {
        let mut kept = Vec::new();
        let rocksdb = self.sides.first().map(|side| &side.place);
        if let Some(place) = rocksdb {
            disk::end_replace(place, CURRENT)?;
            disk::end_replace(place, RESTORE_JOURNAL)?;
        }
        for Side { place, aside, .. } in &self.sides {
            let current = aside.join(CURRENT);
            if progress == Progress::Old && is_there(&current)? {
                // It is a second name of the CURRENT that is in place.
                disk::remove_file(&current)?;
            }
            if entries(aside)?.is_empty() {
                disk::remove_tree(aside, &|| true)?;
            } else {
                kept.push(aside.clone());
            }
            disk::sync_dir(place)?;
        }
        if let Some(place) = rocksdb {
            disk::remove_file(&place.join(RESTORE_JOURNAL))?;
            disk::sync_dir(place)?;
        }
        // That of RocksDB last: `require_mounted` relies on it.
        for Side { staging, .. } in self.sides.iter().rev() {
            disk::remove_tree(staging, &|| true)?;
        }
        Ok(kept)
    }
}
