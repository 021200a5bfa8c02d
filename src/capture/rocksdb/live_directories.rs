//! The two directories of a live copy: the source, which is only read, and the staging, in which its files get a second
//! name. Each call is a step of the protocol in `live_copy`.
//!
//! Invariants: the source directory is opened once, and its files are opened by name in it; links are not followed, only regular
//! files are used; nothing here opens a file for writing. An error names the obstacle and the remedy.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::process::{Flock, FlockType};

use crate::capture::rocksdb::options_file::MAX_TEXT_BYTES;
use crate::capture::rocksdb::version_edit::LiveFile;
use crate::capture::source::{doubtful_name, resolve};
use crate::database_files::{
    CURRENT, LOCK, immutable_number, is_immutable, is_of_another_engine, options_number, wal_number,
};
use crate::disk;
use crate::disk::file_id::FileId;
use crate::disk::nofollow;
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::layout::{PROBE, wal_pin};

/// The result of linking a live file.
pub(crate) enum Pin {
    /// The link exists, and has the size that the MANIFEST names.
    Good,
    /// The source no longer has the file, and it was not linked before.
    Gone,
    /// The file does not fit the MANIFEST, for this reason.
    Unfit(String),
    /// Another round is needed, for this reason.
    Again(String),
}

impl Pin {
    /// Compares the file that was found, if any, with `file`.
    pub(crate) fn of(found: Option<Stat>, file: &LiveFile) -> Pin {
        match found.map(|stat| stat.st_size.cast_unsigned()) {
            None => Pin::Gone,
            Some(bytes) if bytes == file.bytes => Pin::Good,
            Some(bytes) => {
                Pin::Unfit(format!("{} has {bytes} bytes instead of the {} in its MANIFEST", file.name(), file.bytes))
            }
        }
    }
}

/// Whether a database's WALs are in its own directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WalPlace {
    Here,
    /// Probably here: its OPTIONS name the directory in which it was before it was moved. The caller must check that the newest
    /// WAL here is the newest one of the database.
    Presumed,
    Elsewhere,
}

/// The directory of the database, opened once.
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    directory: OwnedFd,
}

impl Source {
    pub(crate) fn at(path: &Path) -> Result<Source> {
        let directory = nofollow::open_directory(path).context(|| not_readable(path))?;
        Ok(Source { path: path.to_owned(), directory: directory.into() })
    }

    pub(crate) fn refused(&self, why: &str) -> Error {
        Error::new(Kind::Refused, format!("cannot copy the database in {}: {why}", self.path.display()))
    }

    /// Checks the file system, the directory and its OPTIONS before the copy begins; returns where its WALs are.
    pub(crate) fn refuse_what_cannot_be_copied(&self) -> Result<WalPlace> {
        let file_system = rustix::fs::fstatfs(&self.directory).context(|| not_readable(&self.path))?;
        if let Some(name) = doubtful_name(&file_system) {
            let why =
                format!("it lies on {name}, whose file sizes and names may be out of date; run beside the real disk");
            return Err(self.refused(&why));
        }
        // Reads the directory only once: it may be large.
        let names = self.names(&|name| options_number(name).is_some() || is_of_another_engine(name))?;
        if let Some(name) = names.iter().find(|name| is_of_another_engine(name)) {
            return Err(self.refused(&format!("its directory {name} holds data that is not in RocksDB's files")));
        }
        let options = names.iter().max_by_key(|name| options_number(name));
        let Some(mut file) = options.map(|name| self.open(name)).transpose()?.flatten() else {
            return Ok(WalPlace::Here);
        };
        let mut text = Vec::new();
        (&mut file).take(MAX_TEXT_BYTES).read_to_end(&mut text).context(|| not_readable(&self.path))?;
        // Only a hint, each WAL is checked, too; but with it we refuse before anything is copied.
        if option_values(&text, b"recycle_log_file_num").any(|n| n != b"0") {
            return Err(self.refused_recycling("its OPTIONS say that it reuses WAL files"));
        }
        if option_values(&text, b"enable_blob_direct_write").any(|on| on == b"true") {
            let why = "its OPTIONS say that it writes blob files which its MANIFEST does not name yet";
            return Err(self.refused(&format!("{why}; set enable_blob_direct_write to false")));
        }
        let Some(named) = option_values(&text, b"wal_dir").find(|directory| !directory.is_empty()) else {
            return Ok(WalPlace::Here);
        };
        let directory = PathBuf::from(unescaped(named));
        match self.wal_place(&directory)? {
            WalPlace::Elsewhere => {
                let why = "its WAL is elsewhere, or cannot be found from here";
                Err(self.refused(&format!("{why} (wal_dir={})", directory.display())))
            }
            here => Ok(here),
        }
    }

    /// The error for a database that reuses WAL files: the new records of such a file cannot be distinguished from old ones.
    pub(crate) fn refused_recycling(&self, what: &str) -> Error {
        self.refused(&format!(
            "{what}, and new records of a reused file cannot be distinguished from old ones; set recycle_log_file_num to 0"
        ))
    }

    /// The lock of the process that has the database open. This reads the lock on LOCK, and does not take it.
    pub(crate) fn holder(&self) -> Result<Option<Flock>> {
        let Some(lock) = self.open(LOCK)? else { return Ok(None) };
        let holder = rustix::process::fcntl_getlk(&lock, &Flock::from(FlockType::WriteLock));
        holder.context(|| format!("cannot find out which process holds {}", self.path.join(LOCK).display()))
    }

    /// Whether the `wal_dir` of OPTIONS is the database's own directory. That name is the one of the process that has the
    /// database open; for us it may be another directory, or none. If no process has the database open, it may have been moved,
    /// and OPTIONS still name its old directory.
    fn wal_place(&self, named: &Path) -> Result<WalPlace> {
        let own = rustix::fs::fstat(&self.directory).context(|| not_readable(&self.path))?;
        let judged =
            |found: Stat| if FileId::from(&found) == FileId::from(&own) { WalPlace::Here } else { WalPlace::Elsewhere };
        if let Some(holder) = self.holder()? {
            let seen = holder.pid.and_then(|pid| {
                let process = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
                let below = match named.strip_prefix("/") {
                    Ok(below) => process.join("root").join(below),
                    Err(_) => process.join("cwd").join(named),
                };
                rustix::fs::stat(below).ok()
            });
            let ours = || rustix::fs::stat(named).ok().filter(|_| named.is_absolute());
            return Ok(seen.or_else(ours).map_or(WalPlace::Elsewhere, judged));
        }
        let moved = match rustix::fs::stat(named) {
            // Relative to the directory in which the node was started, which we do not know.
            _ if !named.is_absolute() => true,
            Ok(found) if FileId::from(&found) == FileId::from(&own) => return Ok(WalPlace::Here),
            // If it is the directory of another database, the WALs there belong to that database.
            Ok(_) => named.join(CURRENT).exists(),
            Err(Errno::NOENT | Errno::NOTDIR) => true,
            Err(errno) => return Err(Error::io(not_readable(named), errno.into())),
        };
        let has_wals = !self.wal_numbers()?.is_empty();
        Ok(if moved && has_wals { WalPlace::Presumed } else { WalPlace::Elsewhere })
    }

    /// The names in the directory that are `wanted`: there are too many to keep all of them.
    pub(crate) fn names(&self, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<String>> {
        let mut names = Vec::new();
        self.each_name(&mut |name| {
            names.extend(wanted(name).then(|| name.to_owned()));
            Ok(())
        })?;
        Ok(names)
    }

    fn each_name(&self, take: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
        let dir = Dir::read_from(&self.directory).context(|| not_readable(&self.path))?;
        for entry in dir {
            let entry = entry.context(|| not_readable(&self.path))?;
            // RocksDB has no files with names that are not UTF-8.
            if let Ok(name) = entry.file_name().to_str() {
                take(name)?;
            }
        }
        Ok(())
    }

    pub(crate) fn wal_numbers(&self) -> Result<Vec<(u64, String)>> {
        let mut wals = Vec::new();
        self.each_name(&mut |name| {
            wals.extend(wal_number(name).map(|number| (number, name.to_owned())));
            Ok(())
        })?;
        Ok(wals)
    }

    /// Opens a regular file of the database; `None` if it does not exist.
    pub(crate) fn open(&self, name: &str) -> Result<Option<File>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.directory, name, flags, Mode::empty()) {
            Ok(file) => {
                let file = File::from(file);
                let kind = FileType::from_raw_mode(fstat(&file, name)?.st_mode);
                if kind == FileType::RegularFile { Ok(Some(file)) } else { Err(self.not_regular(name)) }
            }
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::LOOP) => Err(self.not_regular(name)),
            Err(errno) => Err(Error::io(not_readable(&self.path.join(name)), errno.into())),
        }
    }

    pub(crate) fn not_regular(&self, name: &str) -> Error {
        self.refused(&format!("{name} is not a regular file"))
    }

    pub(crate) fn stat(&self, name: &str) -> Result<Option<Stat>> {
        stat_at(&self.directory, name).context(|| not_readable(&self.path.join(name)))
    }

    pub(crate) fn read_current(&self) -> Result<Option<String>> {
        let Some(mut file) = self.open(CURRENT)? else { return Ok(None) };
        let mut text = Vec::new();
        (&mut file).take(MAX_TEXT_BYTES).read_to_end(&mut text).context(|| not_readable(&self.path))?;
        Ok(Some(String::from_utf8_lossy(&text).into_owned()))
    }
}

/// The values of an option in all sections of an OPTIONS file. A path in it need not be UTF-8.
fn option_values<'a>(text: &'a [u8], option: &'static [u8]) -> impl Iterator<Item = &'a [u8]> {
    text.split(|byte| *byte == b'\n').filter_map(move |line| line.trim_ascii().strip_prefix(option)?.strip_prefix(b"="))
}

/// Undoes RocksDB's escapes: it writes a `\` before `#`, `:` and `\` in a value.
fn unescaped(value: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(value.len());
    let mut bytes = value.iter();
    while let Some(byte) = bytes.next() {
        plain.extend(if *byte == b'\\' { bytes.next() } else { Some(byte) });
    }
    OsString::from_vec(plain)
}

fn not_readable(path: &Path) -> String {
    format!("cannot read {}; run as the node's user or as root", path.display())
}

/// The metadata of a name; `None` if it does not exist.
fn stat_at(directory: &OwnedFd, name: &str) -> rustix::io::Result<Option<Stat>> {
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// The directory in which the links are made.
pub(crate) struct Staging {
    path: PathBuf,
    directory: OwnedFd,
    /// The WALs that are linked now.
    wals: RefCell<Vec<String>>,
}

impl Staging {
    pub(crate) fn open(path: &Path) -> Result<Staging> {
        let directory = nofollow::open_directory(path).context(|| format!("cannot open {}", path.display()))?;
        Ok(Staging { path: path.to_owned(), directory: directory.into(), wals: RefCell::default() })
    }

    fn names(&self, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<String>> {
        let directory = self.directory.try_clone().context(|| format!("cannot list {}", self.path.display()))?;
        Source { path: self.path.clone(), directory }.names(wanted)
    }

    pub(crate) fn stat(&self, name: &str) -> Result<Option<Stat>> {
        stat_at(&self.directory, name).context(|| format!("cannot look at {}", self.path.join(name).display()))
    }

    /// Links `name` of the source as `as_name`; `Ok(false)` if the source does not exist, `Err(None)` if `as_name` exists.
    fn link(&self, source: &Source, name: &str, as_name: &str) -> std::result::Result<bool, Option<Error>> {
        let linked = disk::link_at(source.directory.as_fd(), name, self.directory.as_fd(), as_name, &self.path);
        match linked {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(None),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Err(Some(not_permitted(&source.path, e))),
            Err(e) => Err(Some(Error::io(format!("cannot link {}", source.path.join(name).display()), e))),
        }
    }

    pub(crate) fn link_wal(&self, source: &Source, name: &str) -> Result<bool> {
        let taken =
            || Error::new(Kind::Busy, format!("another process works in {}; try again later", self.path.display()));
        self.wals.borrow_mut().push(name.to_owned());
        self.link(source, name, &wal_pin(name)).map_err(|e| e.unwrap_or_else(taken))
    }

    pub(crate) fn drop_wal(&self, name: &str) -> Result<()> {
        disk::remove_file(&self.path.join(wal_pin(name)))
    }

    pub(crate) fn drop_wals(&self) -> Result<()> {
        self.wals.take().iter().try_for_each(|name| self.drop_wal(name))
    }

    /// Removes the pins whose source no longer exists or is now another file.
    pub(crate) fn drop_stale(&self, source: &Source) -> Result<()> {
        for name in &self.names(&is_immutable)? {
            let (pinned, there) = (self.stat(name)?, source.stat(name)?);
            if pinned.as_ref().map(FileId::from) != there.as_ref().map(FileId::from) {
                disk::remove_file(&self.path.join(name))?;
            }
        }
        Ok(())
    }

    /// Links one live file, unless it is linked already.
    pub(crate) fn pin(&self, source: &Source, file: &LiveFile) -> Result<Pin> {
        let name = &file.name();
        let path = self.path.join(name);
        match self.link(source, name, name) {
            Ok(true) => {}
            // The source no longer has the file, but an earlier round has linked it.
            Ok(false) if self.stat(name)?.is_some() => {}
            Ok(false) => return Ok(Pin::Gone),
            Err(Some(e)) => return Err(e),
            Err(None) => {
                let (pinned, there) = (self.stat(name)?, source.stat(name)?);
                if there.is_some() && pinned.as_ref().map(FileId::from) != there.as_ref().map(FileId::from) {
                    disk::remove_file(&path)?;
                    return Ok(Pin::Again(format!("the number of {name} was reused")));
                }
            }
        }
        let Some(pinned) = self.stat(name)? else {
            return Ok(Pin::Again(format!("{name} was removed from {}", self.path.display())));
        };
        if FileType::from_raw_mode(pinned.st_mode) != FileType::RegularFile {
            return Err(source.not_regular(name));
        }
        let pin = Pin::of(Some(pinned), file);
        if !matches!(pin, Pin::Good) {
            disk::remove_file(&path)?;
        }
        Ok(pin)
    }

    /// Removes pins of earlier rounds that are not in `live`, which is sorted by number.
    pub(crate) fn keep_only(&self, live: &[LiveFile]) -> Result<()> {
        let is_live = |number: u64| live.binary_search_by_key(&number, |file| file.number).is_ok();
        let is_left = |name: &str| is_immutable(name) && !immutable_number(name).is_some_and(is_live);
        self.names(&is_left)?.iter().try_for_each(|name| disk::remove_file(&self.path.join(name)))
    }
}

/// Whether hard links from the database's directory to `directory` work.
pub(crate) fn can_link(database: &Path, directory: &Path) -> Result<bool> {
    let probe = directory.join(PROBE);
    disk::remove_file(&probe)?;
    let database = &resolve(database)?;
    match disk::link(&database.join(CURRENT), &probe) {
        Ok(()) => disk::remove_file(&probe).map(|()| true),
        Err(e) if e.kind() == io::ErrorKind::CrossesDevices => Ok(false),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Err(not_permitted(database, e)),
        Err(e) => Err(Error::io(format!("cannot link a file of {}", database.display()), e)),
    }
}

/// The error for EPERM and EACCES on a link: with `fs.protected_hardlinks` only the owner of a file, or a user who may write to
/// it, may link it.
fn not_permitted(database: &Path, cause: io::Error) -> Error {
    let context = format!(
        "the files of {} may not be linked by this user (fs.protected_hardlinks); run as the node's user or as root",
        database.display()
    );
    Error::new(Kind::Refused, context).because(cause)
}

/// The sum of the sizes of all files of the database: the bytes that a copy needs if files cannot be linked. Files may be created
/// and deleted meanwhile.
pub(crate) fn total_bytes(database: &Path) -> Result<u64> {
    let source = Source::at(database)?;
    let mut bytes = 0;
    source.each_name(&mut |name| {
        let regular = |stat: &Stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        bytes += source.stat(name)?.filter(regular).map_or(0, |stat| stat.st_size.cast_unsigned());
        Ok(())
    })?;
    Ok(bytes)
}

pub(crate) fn fstat(file: &File, name: &str) -> Result<Stat> {
    rustix::fs::fstat(file).context(|| format!("cannot look at {name}"))
}
