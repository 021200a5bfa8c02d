//! The two directories of a live copy: the source, which is only read, and the staging, where its files get a second
//! name. Steps of the protocol in `live`, one call each.
//!
//! Invariants: the source is opened once and used by name in that directory; links are not followed, only regular files
//! are taken; nothing here opens a file for writing. What is in the way is named, with the remedy.

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

use crate::capture::rocksdb::version_edit::LiveFile;
use crate::capture::source::doubtful_name;
use crate::disk;
use crate::disk::nofollow;
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::layout::WAL_PIN;

/// The largest CURRENT and OPTIONS that are read; real ones have 16 bytes and some KiB.
pub(crate) const MAX_TEXT_BYTES: u64 = 4 * 1024 * 1024;

/// What became of the link to a live file.
pub(crate) enum Pin {
    /// It is there, and has the size that it must have.
    Good,
    /// The source has the file no more, and it was not linked before.
    Gone,
    /// It does not fit its MANIFEST, for this reason.
    Unfit(String),
    /// Another round must look again, because of this.
    Again(String),
}

impl Pin {
    /// What is to be said of the file that was found for `file`, if any.
    pub(crate) fn of(found: Option<Stat>, file: &LiveFile) -> Pin {
        match found.map(|stat| stat.st_size.cast_unsigned()) {
            None => Pin::Gone,
            Some(bytes) if bytes == file.bytes => Pin::Good,
            Some(bytes) => {
                Pin::Unfit(format!("{} has {bytes} bytes where the MANIFEST says {}", file.name(), file.bytes))
            }
        }
    }
}

/// How sure it is that a database's WALs are in its own directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WalPlace {
    Here,
    /// Its OPTIONS name the place that it had before it was moved here: what is here must prove to be its newest WAL.
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
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty()).context(|| not_readable(path))?;
        Ok(Source { path: path.to_owned(), directory })
    }

    pub(crate) fn refused(&self, why: &str) -> Error {
        Error::new(Kind::Refused, format!("cannot copy the database in {}: {why}", self.path.display()))
    }

    /// Looks at the file system, the directory and its OPTIONS, before anything is done; returns where its WALs are.
    pub(crate) fn refuse_what_cannot_be_copied(&self) -> Result<WalPlace> {
        let file_system = rustix::fs::fstatfs(&self.directory).context(|| not_readable(&self.path))?;
        if let Some(name) = doubtful_name(&file_system) {
            let why =
                format!("it lies on {name}, whose file sizes and names may be out of date; run beside the real disk");
            return Err(self.refused(&why));
        }
        // Once through the directory: it may be large.
        let names = self.names(&|name| is_options(name) || matches!(name, "titandb" | "blob_dir"))?;
        if let Some(name) = names.iter().find(|name| !is_options(name)) {
            return Err(self.refused(&format!("its directory {name} holds data that RocksDB does not know of")));
        }
        let options = names.iter().max_by_key(|name| (name.len(), *name));
        let Some(mut file) = options.map(|name| self.open(name)).transpose()?.flatten() else {
            return Ok(WalPlace::Here);
        };
        let mut text = Vec::new();
        (&mut file).take(MAX_TEXT_BYTES).read_to_end(&mut text).context(|| not_readable(&self.path))?;
        // A hint, and not the last word: each WAL is looked at too. But it says so before anything is done.
        if option_values(&text, b"recycle_log_file_num").any(|n| n != b"0") {
            return Err(self.refused_recycling("its OPTIONS say that it uses WAL files again"));
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

    /// What a WAL file that is used again holds cannot be told from what it held.
    pub(crate) fn refused_recycling(&self, what: &str) -> Error {
        self.refused(&format!(
            "{what}, so that what they hold cannot be told from what they held; set recycle_log_file_num to 0"
        ))
    }

    /// The lock of the process that has the database open; LOCK is looked at, not taken.
    pub(crate) fn holder(&self) -> Result<Option<Flock>> {
        let Some(lock) = self.open("LOCK")? else { return Ok(None) };
        let holder = rustix::process::fcntl_getlk(&lock, &Flock::from(FlockType::WriteLock));
        holder.context(|| format!("cannot ask who holds {}", self.path.join("LOCK").display()))
    }

    /// Whether the `wal_dir` of OPTIONS is the database's own directory. The process that has the database open knows it by
    /// that name, which may mean another directory to us, or none. When no process has it open, it may have been moved:
    /// then OPTIONS still name its old place.
    fn wal_place(&self, named: &Path) -> Result<WalPlace> {
        let own = rustix::fs::fstat(&self.directory).context(|| not_readable(&self.path))?;
        let judged = |found: Stat| if identity(found) == identity(own) { WalPlace::Here } else { WalPlace::Elsewhere };
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
            // From where the node was started, which is not known.
            _ if !named.is_absolute() => true,
            Ok(found) if identity(found) == identity(own) => return Ok(WalPlace::Here),
            // The directory of another database, which keeps its own WALs there.
            Ok(_) => named.join("CURRENT").exists(),
            Err(Errno::NOENT | Errno::NOTDIR) => true,
            Err(errno) => return Err(Error::io(not_readable(named), errno.into())),
        };
        let has_wals = !self.wal_numbers()?.is_empty();
        Ok(if moved && has_wals { WalPlace::Presumed } else { WalPlace::Elsewhere })
    }

    /// Those names in the directory that are `wanted`: it has too many to keep them all.
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
            // A name that is not UTF-8 is no file of RocksDB's.
            if let Ok(name) = entry.file_name().to_str() {
                take(name)?;
            }
        }
        Ok(())
    }

    pub(crate) fn wal_numbers(&self) -> Result<Vec<(u64, String)>> {
        let mut wals = Vec::new();
        self.each_name(&mut |name| {
            let digits = name.strip_suffix(".log").filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
            if let Some(number) = digits.and_then(|digits| digits.parse().ok()) {
                wals.push((number, name.to_owned()));
            }
            Ok(())
        })?;
        Ok(wals)
    }

    /// Opens a regular file of the database; `None` where it is gone.
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
        let Some(mut file) = self.open("CURRENT")? else { return Ok(None) };
        let mut text = Vec::new();
        (&mut file).take(MAX_TEXT_BYTES).read_to_end(&mut text).context(|| not_readable(&self.path))?;
        Ok(Some(String::from_utf8_lossy(&text).into_owned()))
    }
}

/// What an OPTIONS file gives this option, in each of its sections. A path in it need not be UTF-8.
fn option_values<'a>(text: &'a [u8], option: &'static [u8]) -> impl Iterator<Item = &'a [u8]> {
    text.split(|byte| *byte == b'\n').filter_map(move |line| line.trim_ascii().strip_prefix(option)?.strip_prefix(b"="))
}

/// RocksDB escapes `#`, `:` and `\` in a value by a `\`.
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

/// The state of a name; `None` where it is gone.
fn stat_at(directory: &OwnedFd, name: &str) -> rustix::io::Result<Option<Stat>> {
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Where the links are made.
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

    /// Links `name` of the source as `as_name`; `Ok(false)` where it is gone, `Err(None)` where something has that name.
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
        let taken = || Error::new(Kind::Busy, format!("somebody else works in {}", self.path.display()));
        self.wals.borrow_mut().push(name.to_owned());
        self.link(source, name, &format!("{WAL_PIN}{name}")).map_err(|e| e.unwrap_or_else(taken))
    }

    pub(crate) fn drop_wal(&self, name: &str) -> Result<()> {
        disk::remove_file(&self.path.join(format!("{WAL_PIN}{name}")))
    }

    pub(crate) fn drop_wals(&self) -> Result<()> {
        self.wals.take().iter().try_for_each(|name| self.drop_wal(name))
    }

    /// Drops the pins whose source is gone or is another file now.
    pub(crate) fn drop_stale(&self, source: &Source) -> Result<()> {
        for name in &self.names(&is_immutable)? {
            let (pinned, there) = (self.stat(name)?, source.stat(name)?);
            if pinned.map(identity) != there.map(identity) {
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
            // Gone from the source, but what was linked in an earlier round is it.
            Ok(false) if self.stat(name)?.is_some() => {}
            Ok(false) => return Ok(Pin::Gone),
            Err(Some(e)) => return Err(e),
            Err(None) => {
                let (pinned, there) = (self.stat(name)?, source.stat(name)?);
                if there.is_some() && pinned.map(identity) != there.map(identity) {
                    disk::remove_file(&path)?;
                    return Ok(Pin::Again(format!("the number of {name} was used again")));
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

    /// Drops what earlier rounds pinned and the last one does not need; `live` is sorted by number.
    pub(crate) fn keep_only(&self, live: &[LiveFile]) -> Result<()> {
        let is_live = |number: u64| live.binary_search_by_key(&number, |file| file.number).is_ok();
        let is_left = |name: &str| is_immutable(name) && !LiveFile::number_in(name).is_some_and(is_live);
        self.names(&is_left)?.iter().try_for_each(|name| disk::remove_file(&self.path.join(name)))
    }
}

pub(crate) fn identity(stat: Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

/// Whether a file of RocksDB never changes once it has its name, and so may be linked.
pub(crate) fn is_immutable(name: &str) -> bool {
    name.ends_with(".sst") || name.ends_with(".blob")
}

/// EPERM and EACCES on a link: `fs.protected_hardlinks` wants the owner of the file, or somebody who may write to it.
pub(crate) fn not_permitted(database: &Path, cause: io::Error) -> Error {
    let context = format!(
        "the files of {} may not be linked by this user (fs.protected_hardlinks); run as the node's user or as root",
        database.display()
    );
    Error::new(Kind::Refused, context).because(cause)
}

/// Sizes of all files of the database added up: what a copy needs where links cannot reach. Files may come and go.
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

pub(crate) fn is_options(name: &str) -> bool {
    name.strip_prefix("OPTIONS-").is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
}

pub(crate) fn fstat(file: &File, name: &str) -> Result<Stat> {
    rustix::fs::fstat(file).context(|| format!("cannot look at {name}"))
}
