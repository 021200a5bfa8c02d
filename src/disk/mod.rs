//! Every change that we make to the file system is made in this folder: in this file, in `copy` (the bytes of copies), `lock`
//! (the notes of lock files), `permissions` (modes) and `unsynced` (truncation and fsync).
//!
//! Invariants
//! - Each operation passes the fault gate before it happens, so that a test can make it fail or kill the process before it.
//! - Each path given to this file lies below the backup directory, the pin directory or the target of a restore. The paths of
//!   these directories contain no symbolic link, so no source is ever changed.
//! - Nothing follows a symbolic link: each change is made by a name in a directory that `nofollow` opened. `nofollow` says
//!   what an attacker with the node's user can do.
//! - An error of fsync is returned and never retried: after such an error the kernel may have dropped the data.
//!
//! RocksDB's checkpoint and SQLite write by themselves, but only inside an unfinished backup; what they wrote is synced here.
#![allow(clippy::disallowed_methods)]

pub(crate) mod copy;
#[cfg(feature = "gate")]
pub mod fault_gate;
#[cfg(not(feature = "gate"))]
pub(crate) mod fault_gate;
pub(crate) mod file_id;
pub(crate) mod holders;
pub(crate) mod increment;
pub(crate) mod lock;
pub(crate) mod medium;
pub(crate) mod mounts;
pub(crate) mod nofollow;
pub(crate) mod off_heap;
pub(crate) mod permissions;
pub(crate) mod piece_sums;
pub(crate) mod quiet_reader;
pub(crate) mod sum;
pub(crate) mod sys;
pub(crate) mod tokens;
pub(crate) mod unix_socket;
pub(crate) mod unsynced;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Uid};
use rustix::io::Errno;

use crate::disk::fault_gate::pass;
use crate::disk::nofollow::Place;
use crate::disk::unsynced::Unsynced;
use crate::error::{Error, IoContext, Kind, Result, failed};

/// The modes of the files and directories that we create, before the umask.
const DIRECTORY_MODE: u32 = 0o777;
const PRIVATE_MODE: u32 = 0o700;
const READ_ONLY_MODE: u32 = 0o555;
const FILE_MODE: u32 = 0o666;

/// The depth to which a tree is walked to remove it: each level holds a descriptor. Deeper directories are first moved up.
const MAX_DEPTH: u32 = 8;

/// How often a directory is emptied again to which another process adds files at the same time.
const MAX_PASSES: u32 = 8;

/// User and group of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    uid: u32,
    gid: u32,
}

impl Owner {
    /// The owner that our new files need so that they belong to the owner of `path`; `None` if they belong to it anyway, or if
    /// we may not change owners.
    pub(crate) fn following(path: &Path) -> Result<Option<Owner>> {
        let meta = fs::metadata(path).context(|| format!("cannot read the owner of {}", path.display()))?;
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        let foreign = meta.uid() != uid.as_raw() || meta.gid() != gid.as_raw();
        Ok((uid.is_root() && foreign).then_some(Owner { uid: meta.uid(), gid: meta.gid() }))
    }

    /// Makes the process that the command starts run as this user, in this group only.
    pub(crate) fn runs(self, command: &mut Command) {
        command.uid(self.uid).gid(self.gid);
    }

    /// Whether a file already has the owner that our new files will have.
    pub(crate) fn fits(owner: Option<Owner>, file: &Stat) -> bool {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let wanted = owner.unwrap_or(Owner { uid, gid });
        (file.st_uid, file.st_gid) == (wanted.uid, wanted.gid)
    }

    /// Whether a directory of this user may be one that we made: it belongs to the process, or to the owner of our new files.
    pub(crate) fn may_be_ours(owner: Option<Owner>, uid: u32) -> bool {
        uid == rustix::process::geteuid().as_raw() || owner.is_some_and(|owner| owner.uid == uid)
    }

    fn ids(self) -> (Option<Uid>, Option<Gid>) {
        (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))
    }
}

/// Creates a directory that must not exist yet.
pub(crate) fn create_dir(path: &Path, owner: Option<Owner>) -> Result<()> {
    create_dir_with(path, DIRECTORY_MODE, owner)
}

fn create_dir_with(path: &Path, mode: u32, owner: Option<Owner>) -> Result<()> {
    let create = || -> io::Result<()> {
        let place = Place::of(path)?;
        Ok(rustix::fs::mkdirat(&place.directory, place.name, Mode::from_raw_mode(mode))?)
    };
    pass("mkdir", path).and_then(|()| create()).context(|| failed("create directory", path))?;
    give(path, owner)
}

/// Creates a directory that only its owner may enter, unless it exists. An existing one must be a directory, not a link to
/// one.
pub(crate) fn ensure_private_dir(path: &Path, owner: Option<Owner>) -> Result<()> {
    match nofollow::look(path).context(|| failed("look at", path))? {
        None => create_private_dir(path, owner),
        Some(meta) if meta.is_dir() => Ok(()),
        Some(_) => {
            let context = format!("{} is a link or a file, not a directory that we made; remove it", path.display());
            Err(Error::new(Kind::Refused, context))
        }
    }
}

/// Creates a directory that must not exist yet, and that only its owner may enter.
pub(crate) fn create_private_dir(path: &Path, owner: Option<Owner>) -> Result<()> {
    create_dir_with(path, PRIVATE_MODE, owner)
}

/// Creates a directory that must not exist yet, and that stays empty: whatever the umask, every user may read it, and only root can
/// make a file in it.
pub(crate) fn create_read_only_dir(path: &Path, owner: Option<Owner>) -> Result<()> {
    create_dir_with(path, READ_ONLY_MODE, owner)?;
    permissions::set_exactly(path, READ_ONLY_MODE)
}

/// Creates a directory and those of its parents that do not exist.
pub(crate) fn ensure_dir(path: &Path, owner: Option<Owner>) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        ensure_dir(parent, owner)?;
    }
    create_dir(path, owner)?;
    match path.parent().filter(|p| !p.as_os_str().is_empty()) {
        Some(parent) => sync_dir(parent),
        None => Ok(()),
    }
}

/// Changes the owner of a file or directory that we created. Refuses a symbolic link and a file with a second name.
pub(crate) fn give(path: &Path, owner: Option<Owner>) -> Result<()> {
    let Some(owner) = owner else { return Ok(()) };
    let give = || -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = File::from(nofollow::open(path, flags, Mode::empty())?);
        let meta = file.metadata()?;
        if meta.is_dir() || (meta.is_file() && meta.nlink() == 1) {
            return give_open(&file, owner);
        }
        Err(io::Error::other("another file has replaced the one that we created"))
    };
    pass("chown", path).and_then(|()| give()).context(|| failed("change the owner of", path))
}

fn give_open(file: &File, owner: Owner) -> io::Result<()> {
    let (uid, gid) = owner.ids();
    Ok(rustix::fs::fchown(file, uid, gid)?)
}

/// Creates an empty file that must not exist; `operation` is its name at the gate.
pub(crate) fn create_new(operation: &'static str, path: &Path, owner: Option<Owner>) -> Result<File> {
    let create = || {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        Ok(File::from(Place::of(path)?.open(flags, Mode::from_raw_mode(FILE_MODE))?))
    };
    let file = pass(operation, path).and_then(|()| create()).context(|| failed("create", path))?;
    if let Some(owner) = owner {
        let given = pass("chown", path).and_then(|()| give_open(&file, owner));
        given.context(|| failed("change the owner of", path))?;
    }
    Ok(file)
}

/// Creates a file that must not exist, with `bytes` in it. Its name is durable once its directory is synced.
pub(crate) fn write_new(path: &Path, bytes: &[u8], owner: Option<Owner>) -> Result<Unsynced> {
    write_new_by(path, owner, &|file| file.write_all(bytes))
}

/// Writes the content of a file piece by piece.
pub(crate) type Fill<'a> = &'a dyn Fn(&mut dyn Write) -> io::Result<()>;

/// As [`write_new`], for content that is not in memory as a whole.
pub(crate) fn write_new_by(path: &Path, owner: Option<Owner>, fill: Fill<'_>) -> Result<Unsynced> {
    let mut file = create_new("create", path, owner)?;
    fill(&mut file).context(|| failed("write", path))?;
    Ok(Unsynced::of(file, path, 0))
}

/// Replaces `directory/name` by `bytes`, atomically and durably: a reader, and a power cut, see the old or the new file.
pub(crate) fn replace(directory: &Path, name: &str, bytes: &[u8], owner: Option<Owner>) -> Result<()> {
    replace_if(directory, name, owner, &|file| file.write_all(bytes), &|| Ok(()))
}

/// As [`replace`], for content that is not in memory as a whole, and only if `still` does not fail when the content is on the disk.
pub(crate) fn replace_if(
    directory: &Path,
    name: &str,
    owner: Option<Owner>,
    fill: Fill<'_>,
    still: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let written = begin_replace(directory, name, owner, fill).and_then(Unsynced::sync).and_then(|_| still());
    if let Err(cause) = written.and_then(|()| put_in_place(directory, name)) {
        // The cause is reported, not an error of the clean-up: the next replace removes the temporary file.
        let _ = end_replace(directory, name);
        return Err(cause);
    }
    sync_dir(directory)
}

/// The first half of a [`replace`]: writes the content of `directory/name` to a file with a temporary name.
pub(crate) fn begin_replace(directory: &Path, name: &str, owner: Option<Owner>, fill: Fill<'_>) -> Result<Unsynced> {
    let temporary = temporary_of(directory, name);
    remove_file(&temporary)?;
    write_new_by(&temporary, owner, fill)
}

/// The second half, once the file is synced: gives it its name. Durable once the directory is synced.
pub(crate) fn put_in_place(directory: &Path, name: &str) -> Result<()> {
    rename(&temporary_of(directory, name), &directory.join(name))
}

/// Removes the temporary file that an interrupted [`replace`] of `directory/name` left.
pub(crate) fn end_replace(directory: &Path, name: &str) -> Result<()> {
    remove_file(&temporary_of(directory, name))
}

fn temporary_of(directory: &Path, name: &str) -> PathBuf {
    directory.join(temporary(name))
}

/// Renames, and replaces a file that has the name `to`. Durable once both directories are synced.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    let rename = || -> io::Result<()> {
        let (from, to) = (Place::of(from)?, Place::of(to)?);
        Ok(rustix::fs::renameat(&from.directory, from.name, &to.directory, to.name)?)
    };
    pass("rename", from).and_then(|()| rename()).context(|| failed("rename", from))
}

/// Renames if nothing has the name `to`; otherwise `Ok(false)`, and nothing is changed.
pub(crate) fn rename_new(from: &Path, to: &Path) -> Result<bool> {
    let rename = || -> io::Result<bool> {
        let (from, to) = (Place::of(from)?, Place::of(to)?);
        let flags = RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(&from.directory, from.name, &to.directory, to.name, flags) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST | Errno::NOTEMPTY) => Ok(false),
            // Some file systems support no flags. The caller holds the lock of the backup directory, so it is enough to look
            // first.
            Err(Errno::INVAL | Errno::NOSYS) if to.look()?.is_some() => Ok(false),
            Err(Errno::INVAL | Errno::NOSYS) => {
                Ok(rustix::fs::renameat(&from.directory, from.name, &to.directory, to.name).map(|()| true)?)
            }
            Err(errno) => Err(errno.into()),
        }
    };
    pass("rename", from).and_then(|()| rename()).context(|| failed("rename", from))
}

/// Exchanges two directories in one step: at every instant both names exist.
pub(crate) fn exchange(a: &Path, b: &Path) -> Result<()> {
    let exchange = || -> io::Result<()> {
        let (a, b) = (Place::of(a)?, Place::of(b)?);
        Ok(rustix::fs::renameat_with(&a.directory, a.name, &b.directory, b.name, RenameFlags::EXCHANGE)?)
    };
    pass("exchange", a).and_then(|()| exchange()).context(|| failed("exchange", a))
}

/// Gives `from` a second name, a hard link. Returns the system's error as it is: callers act on EXDEV, EPERM and ENOENT.
pub(crate) fn link(from: &Path, to: &Path) -> io::Result<()> {
    pass("link", to)?;
    let (from, to) = (Place::of(from)?, Place::of(to)?);
    Ok(rustix::fs::linkat(&from.directory, from.name, &to.directory, to.name, AtFlags::empty())?)
}

/// As [`link`], by names in open directories; `to_path` is the path of the new name, for the gate.
pub(crate) fn link_at(
    from: BorrowedFd<'_>,
    name: &str,
    to: BorrowedFd<'_>,
    to_name: &str,
    to_path: &Path,
) -> io::Result<()> {
    pass("link", to_path)?;
    Ok(rustix::fs::linkat(from, name, to, to_name, AtFlags::empty())?)
}

/// Passes the gate before a library writes to a file of an unfinished backup by itself.
pub(crate) fn written_by_library(path: &Path) -> Result<()> {
    pass("library", path).context(|| failed("write", path))
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    let sync = || nofollow::open_directory(path)?.sync_all();
    pass("fsync-dir", path).and_then(|()| sync()).context(|| failed("sync directory", path))
}

/// Syncs a directory and those below it, bottom-up.
pub(crate) fn sync_dirs(path: &Path) -> Result<()> {
    for entry in nofollow::entries(path).context(|| failed("read directory", path))? {
        let (name, stat) = entry.context(|| failed("read directory", path))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            sync_dirs(&path.join(name))?;
        }
    }
    sync_dir(path)
}

/// Removes a file or a symbolic link; if it does not exist, that is no error.
pub(crate) fn remove_file(path: &Path) -> Result<()> {
    let find = || -> io::Result<Option<Place<'_>>> {
        let place = Place::of(path)?;
        Ok(place.look()?.is_some().then_some(place))
    };
    let found = match find() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        other => other.context(|| failed("remove", path))?,
    };
    // Usually the file does not exist: then no operation passes the gate.
    let Some(place) = found else { return Ok(()) };
    let unlink = || gone(rustix::fs::unlinkat(&place.directory, place.name, AtFlags::empty()));
    pass("unlink", path).and_then(|()| unlink()).context(|| failed("remove", path))
}

/// Removes a directory and everything below it; stops with `Ok(false)` as soon as `keep_going` returns false. If the name is
/// that of a file or of a link, removes the file or the link. A file that another process removes meanwhile is no error.
/// Removes nothing from a file system that is mounted below.
pub(crate) fn remove_tree(path: &Path, keep_going: &dyn Fn() -> bool) -> Result<bool> {
    let remove = || -> io::Result<bool> {
        let place = Place::of(path)?;
        match place.look()? {
            None => return Ok(true),
            Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {}
            Some(_) => {
                pass("unlink", path)?;
                gone(rustix::fs::unlinkat(&place.directory, place.name, AtFlags::empty()))?;
                return Ok(true);
            }
        }
        let top = nofollow::open_below(&place.directory, place.name).map_err(not_through_mounts)?;
        let mut removal = Removal { top, keep_going, path: path.to_owned(), raised_count: 0 };
        let mut passes_left = MAX_PASSES;
        loop {
            let raised_before = removal.raised_count;
            if !removal.empty(None, 0)? {
                return Ok(false);
            }
            if removal.raised_count > raised_before {
                continue;
            }
            pass("rmdir", path)?;
            match rustix::fs::unlinkat(&place.directory, place.name, AtFlags::REMOVEDIR) {
                Err(Errno::NOTEMPTY | Errno::EXIST) if passes_left > 0 => passes_left -= 1,
                removed => return gone(removed).map(|()| true),
            }
        }
    };
    match remove() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
        other => other.context(|| failed("remove directory", path)),
    }
}

/// A tree that is being removed. It is walked by descriptors: no name in it leads out of it.
struct Removal<'a> {
    top: OwnedFd,
    keep_going: &'a dyn Fn() -> bool,
    /// The path at which the walk is, for the gate and for messages.
    path: PathBuf,
    /// How many directories were moved to the top because they lay too deep.
    raised_count: u64,
}

impl Removal<'_> {
    /// Removes the content of a directory at this depth, `None` for the top; `Ok(false)` if `keep_going` stopped it.
    fn empty(&mut self, directory: Option<&OwnedFd>, depth: u32) -> io::Result<bool> {
        for entry in Dir::read_from(directory.unwrap_or(&self.top))? {
            if !(self.keep_going)() {
                return Ok(false);
            }
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            self.path.push(name);
            let removed = self.remove(directory, name, depth);
            if !removed.map_err(|e| self.name(e))? {
                return Ok(false);
            }
            self.path.pop();
        }
        Ok(true)
    }

    /// Adds to an error the path at which it happened, once.
    fn name(&self, e: io::Error) -> io::Error {
        if e.get_ref().is_some() { e } else { io::Error::new(e.kind(), format!("{}: {e}", self.path.display())) }
    }

    fn remove(&mut self, directory: Option<&OwnedFd>, name: &OsStr, depth: u32) -> io::Result<bool> {
        let within = directory.unwrap_or(&self.top).as_fd();
        let stat = match rustix::fs::statat(within, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(true),
            stat => stat?,
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            pass("unlink", &self.path)?;
            return gone(rustix::fs::unlinkat(within, name, AtFlags::empty())).map(|()| true);
        }
        if depth >= MAX_DEPTH {
            pass("rename", &self.path)?;
            self.raised_count += 1;
            let raised = format!(".raised-{}-{}", rustix::process::getpid().as_raw_nonzero(), self.raised_count);
            return gone(rustix::fs::renameat(within, name, &self.top, &*raised)).map(|()| true);
        }
        let below = nofollow::open_below(within, name).map_err(not_through_mounts)?;
        if !self.empty(Some(&below), depth + 1)? {
            return Ok(false);
        }
        pass("rmdir", &self.path)?;
        let within = directory.unwrap_or(&self.top);
        gone(rustix::fs::unlinkat(within, name, AtFlags::REMOVEDIR)).map(|()| true)
    }
}

fn not_through_mounts(e: io::Error) -> io::Error {
    if e.raw_os_error() == Some(libc::EXDEV) {
        io::Error::other("a file system is mounted there; unmount it")
    } else {
        e
    }
}

fn gone(result: rustix::io::Result<()>) -> io::Result<()> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        other => Ok(other?),
    }
}

/// Bytes available to us, and bytes in all, of the file system that holds `path`.
pub(crate) fn free_bytes(path: &Path) -> Result<(u64, u64)> {
    let stat = rustix::fs::statvfs(path).context(|| failed("ask for the free space of", path))?;
    Ok((stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_blocks.saturating_mul(stat.f_frsize)))
}

/// The same of the file system of an open file.
pub(crate) fn free_bytes_of(file: BorrowedFd<'_>, path: &Path) -> Result<(u64, u64)> {
    let stat = rustix::fs::fstatvfs(file).context(|| failed("ask for the free space of", path))?;
    Ok((stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_blocks.saturating_mul(stat.f_frsize)))
}

/// Fails if the file system of `path` has less than `reserve_bytes` free.
pub(crate) fn require_room(path: &Path, reserve_bytes: u64) -> Result<()> {
    let (free, _) = free_bytes(path)?;
    if free >= reserve_bytes {
        return Ok(());
    }
    let context = format!(
        "only {free} bytes are free on the file system of {}, which must keep {reserve_bytes} bytes free; free some space",
        path.display()
    );
    Err(Error::new(Kind::NoSpace, context))
}

/// The name under which `name` is written before it is renamed. After a crash the next writer replaces it.
pub(crate) fn temporary(name: &str) -> String {
    format!(".{name}.tmp")
}

/// The name that a temporary one is for.
pub(crate) fn of_temporary(temporary: &str) -> Option<&str> {
    temporary.strip_prefix('.')?.strip_suffix(".tmp")
}
