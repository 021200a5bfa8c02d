//! Opens files and directories in a backup directory without ever following a symbolic link. There is no other way to open
//! them: clippy forbids the calls of `std::fs` that follow links.
//!
//! # Threats
//! The backup directory and the files in it belong to the node's user, and the service may be root. So an attacker who has
//! become the node's user may have planted anything there: symbolic links, also in place of a directory; FIFOs, on which
//! `open` or `read` would wait for ever; sockets, devices, files of a terabyte, trees of any depth. These can change at any moment,
//! also between two of our calls.
//! - The attacker can destroy, change and forge backups: they are files of the node's user. The only proof against that is
//!   `verify --deep` on a machine that the attacker does not control.
//! - The attacker can make a backup, a restore or a deletion fail, with a message that names the path.
//! - The attacker cannot make us read, create, write, change the owner of, rename or remove anything outside the backup directory,
//!   the pin directory and the target of a restore, nor make us wait.
//!
//! # How
//! - The operator may have put links on the way to the backup directory: they are resolved once, when it is opened. Below it
//!   the kernel resolves each path without links: `openat2` with `RESOLVE_NO_SYMLINKS`, or one `openat` with `O_NOFOLLOW` for
//!   each component if the kernel, or a seccomp filter, does not support that call.
//! - A change (create, rename, link, remove) is made by the last name of the path in the directory opened in this way. An owner
//!   is changed through a descriptor, after a check of what it is open on.
//! - Files are opened for reading with `O_NONBLOCK` and must be regular; small files have a maximum size.
//! - Only ENOENT means that a file does not exist. Every other error is returned.
//!
//! # Limitations
//! RocksDB opens a copy by the descriptor of its directory, but the files in it by name; SQLite opens its files by path. Both do so
//! after we have checked those files. An attacker who replaces a file after the check makes them read another file, in which they
//! find no database, or wait for a FIFO: then the service ends the job because it makes no progress, and the child process in which
//! RocksDB runs has a time limit.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, ResolveFlags, Stat, StatxAttributes, StatxFlags, statx};
use rustix::io::Errno;

/// The flags with which every directory on the way is opened.
const ON_THE_WAY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);

/// Why a file cannot be one that we made.
#[derive(Debug)]
struct Unfit(&'static str);

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Unfit {}

fn not_regular() -> io::Error {
    io::Error::other(Unfit("it is not a regular file, or a symbolic link leads to it"))
}

/// Whether an error of this module says that the file cannot be one that we made: it is a link, a FIFO, a directory, or too
/// large.
pub(crate) fn is_unfit(e: &io::Error) -> bool {
    e.get_ref().is_some_and(|inner| inner.is::<Unfit>())
}

/// `None` if a file does not exist, or cannot be one that we made.
pub(crate) fn if_fit<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Err(e) if e.kind() == io::ErrorKind::NotFound || is_unfit(&e) => Ok(None),
        other => other.map(Some),
    }
}

/// Opens `path` with `flags`; fails with ELOOP or ENOTDIR if a component is a symbolic link.
pub(crate) fn open(path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat2(CWD, path, flags, mode, ResolveFlags::NO_SYMLINKS) {
        Err(Errno::NOSYS | Errno::PERM) => open_by_steps(path, flags, mode),
        opened => Ok(opened?),
    }
}

/// As [`open`], for kernels before 5.6 and seccomp filters that do not support `openat2`.
fn open_by_steps(path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    let start = if path.is_absolute() { "/" } else { "." };
    let mut names = path.components().filter(|c| matches!(c, Component::Normal(_) | Component::ParentDir)).peekable();
    let mut at = rustix::fs::open(start, ON_THE_WAY | OFlags::CLOEXEC, Mode::empty())?;
    if names.peek().is_none() {
        return Ok(rustix::fs::openat(&at, ".", flags, mode)?);
    }
    while let Some(name) = names.next() {
        let (flags, mode) = match names.peek() {
            Some(_) => (ON_THE_WAY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()),
            None => (flags, mode),
        };
        at = rustix::fs::openat(&at, name.as_os_str(), flags, mode)?;
    }
    Ok(at)
}

/// Opens a regular file for reading, and never waits. Anything else of that name is an [unfit](is_unfit) file.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    require_regular(open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY, Mode::empty()))
}

/// Opens a regular file of the node's databases for reading. The operator may have put links on the way to it, but it must not
/// be a link itself, and a FIFO in its place does not make us wait.
pub(crate) fn open_of_node(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    require_regular(rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from))
}

/// Takes a descriptor that was opened with `O_NONBLOCK`; anything but a regular file is [unfit](is_unfit).
pub(crate) fn require_regular(opened: io::Result<OwnedFd>) -> io::Result<File> {
    let planted = [libc::ELOOP, libc::ENOTDIR, libc::ENXIO, libc::EISDIR, libc::ENODEV];
    match opened {
        Err(e) if e.raw_os_error().is_some_and(|errno| planted.contains(&errno)) => Err(not_regular()),
        opened => {
            let file = File::from(opened?);
            if file.metadata()?.is_file() { Ok(file) } else { Err(not_regular()) }
        }
    }
}

/// Reads a whole file of at most `limit_bytes`; a larger one is [unfit](is_unfit).
pub(crate) fn read_small(path: &Path, limit_bytes: u64) -> io::Result<Vec<u8>> {
    let too_large = || io::Error::other(Unfit("it is larger than such a file can be"));
    let file = open_regular(path)?;
    let length = file.metadata()?.len();
    if length > limit_bytes {
        return Err(too_large());
    }
    // One byte more, so that the read that finds the end has room.
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0) + 1);
    file.take(limit_bytes + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit_bytes { Err(too_large()) } else { Ok(bytes) }
}

/// The metadata of the file, directory or link of this name; `None` if there is none.
pub(crate) fn look(path: &Path) -> io::Result<Option<Metadata>> {
    match open(path, OFlags::PATH, Mode::empty()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => File::from(opened?).metadata().map(Some),
    }
}

/// Whether this name is that of a directory, not of a link to one.
pub(crate) fn is_directory(path: &Path) -> io::Result<bool> {
    Ok(look(path)?.is_some_and(|meta| meta.is_dir()))
}

/// Whether another file system, or another part of one, is mounted there.
pub(crate) fn is_mount_point(path: &Path) -> bool {
    let Ok(opened) = open(path, OFlags::PATH, Mode::empty()) else { return false };
    let stat = statx(opened, "", AtFlags::EMPTY_PATH, StatxFlags::empty());
    stat.is_ok_and(|stat| stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// The mount through which this process sees a directory: its number, and the device, which stands for it on kernels before 5.8.
pub(crate) fn mount_of(directory: &Path) -> io::Result<(u64, u64)> {
    let opened = File::from(open(directory, ON_THE_WAY, Mode::empty())?);
    let stat = statx(&opened, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    let has_number = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::MNT_ID);
    Ok((if has_number { stat.stx_mnt_id } else { 0 }, opened.metadata()?.dev()))
}

/// Opens a directory for listing and syncing.
pub(crate) fn open_directory(path: &Path) -> io::Result<File> {
    open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).map(File::from)
}

/// The names in a directory with their metadata; links are not followed. A file that disappears meanwhile is left out.
pub(crate) fn entries(path: &Path) -> io::Result<impl Iterator<Item = io::Result<(OsString, Stat)>> + use<>> {
    let directory = open_directory(path)?;
    let names = Dir::read_from(&directory)?;
    Ok(names.filter_map(move |entry| {
        let look = |entry: rustix::io::Result<rustix::fs::DirEntry>| {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                return Ok(None);
            }
            match rustix::fs::statat(&directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => Ok(Some((OsStr::from_bytes(name).to_owned(), stat))),
                Err(Errno::NOENT) => Ok(None),
                Err(errno) => Err(errno.into()),
            }
        };
        look(entry).transpose()
    }))
}

/// A name in an open directory: every change is made by one.
pub(crate) struct Place<'a> {
    pub(crate) directory: OwnedFd,
    pub(crate) name: &'a OsStr,
}

impl<'a> Place<'a> {
    /// Opens the directory that holds `path`, or will hold it.
    pub(crate) fn of(path: &'a Path) -> io::Result<Place<'a>> {
        let name = path.file_name().ok_or(Errno::INVAL)?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok(Place { directory: open(parent, ON_THE_WAY, Mode::empty())?, name })
    }

    /// Opens or creates the file of this name.
    pub(crate) fn open(&self, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        Ok(rustix::fs::openat(&self.directory, self.name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, mode)?)
    }

    /// The metadata of the file, directory or link of this name; `None` if there is none.
    pub(crate) fn look(&self) -> io::Result<Option<Stat>> {
        match rustix::fs::statat(&self.directory, self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Opens a directory by its name in another one; fails with EXDEV if a file system is mounted there.
pub(crate) fn open_below(directory: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let within = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match rustix::fs::openat2(&directory, name, flags, Mode::empty(), within) {
        Err(Errno::NOSYS | Errno::PERM) => {
            let opened = rustix::fs::openat(&directory, name, flags, Mode::empty())?;
            let is_mount = rustix::fs::fstat(&opened)?.st_dev != rustix::fs::fstat(&directory)?.st_dev;
            if is_mount { Err(Errno::XDEV.into()) } else { Ok(opened) }
        }
        opened => Ok(opened?),
    }
}
