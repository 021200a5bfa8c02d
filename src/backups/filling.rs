//! Brings the files of a backup into directories beside a database: links, clones or copies them, and makes them durable.
//!
//! Invariants: the files of the backup are only read. SSTs, which RocksDB never changes, are linked if the file system permits it
//! and if they have the owner and mode that the target needs. Every file that a node writes to (WAL, MANIFEST, CURRENT, SQLite) is
//! cloned or copied: a restored database never shares a writable file with its backup. A delta pair becomes one file (see `pairs`). Files
//! have the modes that they had at the node. The directories belong to the caller: their modes and their sync are its task.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;

use crate::backups::pairs::{self, Databases, ToFold};
use crate::backups::placement::is_fixed;
use crate::backups::sums;
use crate::control::Control;
use crate::database_files::{database_of_wal, is_immutable};
use crate::disk::copy::{self, Copier};
use crate::disk::nofollow;
use crate::disk::unsynced::{Batch, Links};
use crate::disk::{self, Owner};
use crate::error::{Error, IoContext, Kind, Result};
use crate::units::total;

/// The bytes that must be left free on the target's file system.
pub(crate) const RESERVE_BYTES: u64 = 64 * 1024 * 1024;

/// A directory of the backup, and an empty one that gets its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// The directory of the backup.
    pub(crate) from: PathBuf,
    /// The directory that is filled.
    pub(crate) to: PathBuf,
}

/// How many files were brought, and how.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    /// Links to the backup's files.
    pub(crate) linked_count: u64,
    /// Clones, which share blocks with the backup's files.
    pub(crate) cloned_count: u64,
    /// Copies.
    pub(crate) copied_count: u64,
}

/// How a file is brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Means {
    Link,
    Clone,
    Copy,
}

/// How files are brought.
#[derive(Clone, Copy)]
pub(crate) struct Filling<'a> {
    /// Owner of the new files, limits.
    pub(crate) copier: Copier<'a>,
    /// Whether every byte is copied.
    pub(crate) copy: bool,
    /// What is known of the Pact databases of the backup.
    pub(crate) databases: &'a Databases,
}

/// A file to be restored.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Item {
    from: PathBuf,
    to: PathBuf,
    /// Its size.
    pub(crate) bytes: u64,
    mode: u32,
    /// Whether it may be a link to the backup's file, if the file system permits it.
    pub(crate) may_link: bool,
    /// Whether it is made of a pair: then it is always written as a whole.
    pub(crate) is_pair: bool,
}

impl Item {
    /// The last part of its name; `None` if that is no UTF-8.
    pub(crate) fn name(&self) -> Option<&str> {
        self.to.file_name()?.to_str()
    }
}

impl Filling<'_> {
    /// The files of one directory.
    pub(crate) fn list(&self, Part { from, to }: &Part) -> Result<Vec<Item>> {
        let failed = || format!("cannot list {}", from.display());
        let mut files = Vec::new();
        for entry in nofollow::entries(from).context(failed)? {
            let (name, stat) = entry.context(failed)?;
            let (name, mode) = (PathBuf::from(name), stat.st_mode);
            let text = name.to_string_lossy();
            // The checksums belong to the backup, and are not restored; neither is what a node that was opened in it left.
            if FileType::from_raw_mode(mode) != FileType::RegularFile || sums::is_ours(&text) || is_fixed(&text) {
                continue;
            }
            // It is a part of a pair.
            if database_of_wal(&text).is_some_and(|database| self.databases.pair_of(database).is_some()) {
                continue;
            }
            let may_link =
                !self.copy && Owner::fits(self.copier.owner, &stat) && mode & 0o200 != 0 && is_immutable(&text);
            let pair = self.databases.pair_of(&text);
            let bytes = pair.map_or(stat.st_size.cast_unsigned(), |pair| pair.bytes());
            let (mode, is_pair) = (self.databases.mode_of(&text).unwrap_or(mode), pair.is_some());
            files.push(Item { from: from.join(&name), to: to.join(&name), bytes, mode, may_link, is_pair });
        }
        files.sort();
        Ok(files)
    }

    /// Whether files of the backup's directory can be cloned into a directory; `near` is that or, if it is not made yet, one on its file
    /// system.
    pub(crate) fn can_clone(&self, files: &[Item], near: &Path) -> bool {
        let tried = files.iter().find(|file| !self.copy && !file.may_link && !file.is_pair && file.bytes > 0);
        tried.is_some_and(|file| {
            nofollow::open_regular(&file.from).is_ok_and(|from| copy::can_clone(from.as_fd(), near))
        })
    }

    /// The bytes that these files need on the disk: clones and links take nearly nothing.
    fn needed_bytes(&self, files: &[Item], to: &Path) -> u64 {
        let clones = self.can_clone(files, to);
        total(files.iter().filter(|file| !file.may_link && (file.is_pair || !clones)).map(|file| file.bytes))
    }

    /// Fills the directories of `parts`, which exist, are empty and belong to us. Their files are durable when this returns, but not
    /// yet the names in the directories.
    pub(crate) fn fill(&self, parts: &[Part]) -> Result<Counts> {
        let control = self.copier.control;
        let lists = parts.iter().map(|part| self.list(part)).collect::<Result<Vec<_>>>()?;
        control.begin("copying");
        control.expect(total(lists.iter().flatten().filter(|item| !item.may_link).map(|item| item.bytes)));
        let needs = parts.iter().zip(&lists).map(|(part, files)| (&*part.to, self.needed_bytes(files, &part.to)));
        require_room(&needs.collect::<Vec<_>>())?;
        let mut unsynced = Batch::default();
        let mut counts = Counts::default();
        let mut linked = Vec::new();
        for file in lists.iter().flatten() {
            control.check()?;
            match self.bring(file, &mut unsynced)? {
                Means::Link => {
                    counts.linked_count += 1;
                    linked.push(file.to.as_path());
                }
                Means::Clone => counts.cloned_count += 1,
                Means::Copy => counts.copied_count += 1,
            }
        }
        unsynced.sync()?;
        parts.iter().try_for_each(|part| sync_links(&part.to, &linked, control))?;
        Ok(counts)
    }

    fn pair_of(&self, item: &Item) -> Option<ToFold<'_>> {
        item.name().filter(|_| item.is_pair).and_then(|name| self.databases.pair_of(name))
    }

    /// Links, clones or copies a file; returns which of them.
    fn bring(&self, item: &Item, unsynced: &mut Batch) -> Result<Means> {
        let Item { from, to, bytes, mode, may_link, .. } = item;
        if *may_link && disk::link(from, to).is_ok() {
            return Ok(Means::Link);
        }
        if let Some(pair) = self.pair_of(item) {
            let brought = pairs::fold(self.copier, from, to, pair)?;
            brought.set_mode(mode | 0o600)?;
            return unsynced.add(brought).map(|()| Means::Copy);
        }
        let file = nofollow::open_regular(from).context(|| format!("cannot open {}", from.display()))?;
        let cloned = if self.copy { None } else { copy::clone(self.copier, file.as_fd(), to, &|| Ok(()))? };
        let (brought, means) = match cloned {
            Some(cloned) => (cloned, Means::Clone),
            None => (copy::copy_still(self.copier, &file, *bytes, to)?, Means::Copy),
        };
        // A node must be able to write to it, even if its mode was changed in the backup.
        brought.set_mode(mode | 0o600)?;
        unsynced.add(brought).map(|()| means)
    }
}

/// Makes the links to the backup's files durable: an operator may have brought the backup here a moment ago, by `rsync`.
fn sync_links(directory: &Path, linked: &[&Path], control: &Control) -> Result<()> {
    let mut of_directory = linked.iter().filter(|path| path.parent() == Some(directory)).peekable();
    if of_directory.peek().is_none() {
        return Ok(());
    }
    let mut links = Links::of(directory)?;
    for name in of_directory.filter_map(|path| path.file_name().map(Path::new)) {
        control.check()?;
        links.sync(name)?;
    }
    links.finish()
}

/// The mode of a directory.
pub(crate) fn mode_of(path: &Path) -> Result<u32> {
    let directory = nofollow::open_directory(path).and_then(|directory| directory.metadata());
    Ok(directory.context(|| format!("cannot look at {}", path.display()))?.mode())
}

/// Fails unless each file system has room for the bytes that come into its directories, and the reserve.
pub(crate) fn require_room(needs: &[(&Path, u64)]) -> Result<()> {
    let mut of_devices: Vec<(u64, &Path, u64)> = Vec::new();
    for (path, bytes) in needs {
        let device = path.metadata().context(|| format!("cannot look at {}", path.display()))?.dev();
        match of_devices.iter_mut().find(|(of, _, _)| *of == device) {
            Some((_, _, sum)) => *sum = sum.saturating_add(*bytes),
            None => of_devices.push((device, path, *bytes)),
        }
    }
    for (_, path, needed_bytes) in of_devices {
        let (free_bytes, _) = disk::free_bytes(path)?;
        if free_bytes < needed_bytes.saturating_add(RESERVE_BYTES) {
            let context = format!(
                "not enough space for a restore: it needs {needed_bytes} bytes, and {RESERVE_BYTES} must be left free; the file \
                 system of {} has {free_bytes} free",
                path.display()
            );
            return Err(Error::new(Kind::NoSpace, context));
        }
    }
    Ok(())
}
