//! The live copy: a RocksDB directory, copied while another process writes to it.
//!
//! Guarantee: *the copied directory is what `kill -9` of the node at one instant would have left on disk.* RocksDB offers
//! nothing for this: opening the database needs its LOCK, and a checkpoint over a read-only or a secondary instance
//! returned OK with a wrong copy in a third of all tries.
//!
//! Why it can work (RocksDB, `VersionSet::ProcessManifestWrites`): an edit is written and synced to the MANIFEST, and
//! CURRENT renamed, before the version is installed, and files are deleted only after that. The sizes of MANIFEST and WAL
//! are exact (space is reserved behind them, nothing is mapped). SSTs never change once the MANIFEST names them. A WAL
//! gets its first byte only when the one before it is complete. Recovery never notices a missing WAL: so none may miss.
//!
//! One round
//! 1. Read CURRENT, open its MANIFEST, note inode and size S.
//! 2. The window opens. List the WALs twice; W = those of the second list with a number up to the largest of the first,
//!    because one read of a directory may miss a file that is created meanwhile.
//! 3. Open and link each WAL of W. The link matters: RocksDB's trash truncates files that have only one name.
//! 4. Take the sizes of the WALs from the descriptors, newest first. These sizes are the cut: whatever a newer WAL holds
//!    comes after what the older ones hold.
//! 5. CURRENT and the MANIFEST (by name: inode, size) must be as in step 1; the window closes. Taking the sizes after
//!    this check silently breaks the copy where files are ingested or column families come and go.
//! 6. Parse the first S bytes of the MANIFEST: the live files.
//! 7. Where the MANIFEST is another file than in the round before, drop the pins whose source is gone or another inode:
//!    after a crash the numbers of files that were not committed are used again. (Growth does not count, or the next
//!    step would starve.)
//! 8. Link each live file, level 0 first. One that is pinned already is good if it is the same inode, or if its source is
//!    gone. A size that is not the MANIFEST's, or a file that is gone, needs a new round, which keeps the pins: only the
//!    difference is raced.
//!
//! Then: copy each WAL up to its cut and cut it back to its last complete record, copy the MANIFEST's S bytes, write
//! CURRENT, copy OPTIONS and IDENTITY. Links that are not live in the end are dropped.
//!
//! Refused, because the guarantee would not hold: WALs that are used again or that are elsewhere, data in other
//! directories or of other engines, symbolic links, and file systems whose attributes are cached or not their own.
//!
//! Invariants: no file of the source is opened for writing, LOCK is not touched, no link is followed. The loop has a
//! limit in rounds and in time, and ends in an error that names what was in the way.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::control::Control;
use crate::disk::{self, Owner};
use crate::error::{Error, IoContext, Kind, Result};
use crate::gate;
use crate::log_format::{self, End};
use crate::version_edit::{LiveFile, Versions};

/// Limits of the loop. Measured: one or two rounds are typical, 15 were seen at 300 edits a second.
const MAX_ROUNDS: u32 = 200;
const MAX_SECONDS: u64 = 120;

/// How long a round that failed waits for the next one.
const ROUND_PAUSE: Duration = Duration::from_millis(5);

/// A record of a MANIFEST holds one edit; the first one of a large database some MB.
const MAX_EDIT_BYTES: usize = 256 * 1024 * 1024;

/// The largest CURRENT and OPTIONS that are read; real ones have 16 bytes and some KiB.
const MAX_TEXT_BYTES: u64 = 4 * 1024 * 1024;

/// File systems whose view of a file is cached, or is another file system's: magic numbers of statfs(2).
const REFUSED_FILE_SYSTEMS: [(i64, &str); 9] = [
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB2"),
    (0x6573_5546, "FUSE"),
    (0x794c_7630, "overlay"),
    (0x0102_1997, "9p"),
    (0x00c3_6400, "Ceph"),
    (0x0bd0_0bd0, "Lustre"),
];

/// How a live copy went.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    /// Rounds until one held.
    pub(crate) rounds_count: u32,
    /// How long the window of the last round was open.
    pub(crate) window: Duration,
}

/// A WAL of the cut.
struct Wal {
    name: String,
    number: u64,
    file: File,
    bytes: u64,
}

/// What steps 1 to 5 found, all of one instant.
struct Instantaneous {
    current: String,
    manifest: File,
    name: String,
    /// Device and inode.
    manifest_identity: (u64, u64),
    manifest_bytes: u64,
    wals: Vec<Wal>,
    window: Duration,
}

/// Why a round must be repeated.
struct Again(String);

enum Failure {
    Again(Again),
    Final(Error),
}

impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        Failure::Final(e)
    }
}

fn again(why: impl Into<String>) -> Failure {
    Failure::Again(Again(why.into()))
}

/// Copies the database in `source` to the new directory `to`. `pins` is where links are made: `to` itself on the source's
/// mount, otherwise a directory that is there, from which the files are then copied. What is not a link is synced.
///
/// Fails with [`Kind::Refused`] where the guarantee cannot be given, and with [`Kind::Busy`] when the limits are reached.
pub(crate) fn copy(source: &Path, to: &Path, pins: &Path, owner: Option<Owner>, control: &Control) -> Result<Run> {
    let source = Source::at(source)?;
    source.refuse_what_cannot_be_copied()?;
    disk::create_dir(to, owner)?;
    let staging = Staging::open(pins)?;
    let deadline = Instant::now() + Duration::from_secs(MAX_SECONDS);
    let mut rounds_count = 0;
    let mut last_manifest = None;
    let (instant, live) = loop {
        control.check()?;
        rounds_count += 1;
        staging.drop_wals()?;
        let why = match round(&source, &staging, &mut last_manifest) {
            Ok(found) => break found,
            Err(Failure::Final(e)) => return Err(e),
            Err(Failure::Again(Again(why))) => why,
        };
        log::debug!("live copy round={rounds_count} again={why:?}");
        if rounds_count == MAX_ROUNDS || Instant::now() > deadline {
            let context = format!(
                "the database in {} changed faster than it could be copied, {rounds_count} rounds long; the last one \
                 failed because {why}",
                source.path.display()
            );
            return Err(Error::new(Kind::Busy, context));
        }
        std::thread::sleep(ROUND_PAUSE);
    };
    staging.keep_only(&live)?;
    for wal in &instant.wals {
        copy_wal(&source, wal, to, owner, control)?;
        staging.drop_wal(&wal.name)?;
    }
    if pins != to {
        for file in &live {
            let from = pins.join(&file.name);
            let mut pinned = File::open(&from).context(|| format!("cannot open {}", from.display()))?;
            disk::copy(&mut pinned, u64::MAX, &to.join(&file.name), owner, control)?;
            // Pins hold what the node has deleted: each goes as soon as it is copied.
            disk::remove_file(&from)?;
        }
    }
    write_rest(&source, &instant, to, owner, control)?;
    for file in &live {
        require_size(&to.join(&file.name), file.bytes)?;
    }
    Ok(Run { rounds_count, window: instant.window })
}

/// Steps 1 to 8.
fn round(
    source: &Source,
    staging: &Staging,
    last_manifest: &mut Option<(u64, String)>,
) -> std::result::Result<(Instantaneous, Vec<LiveFile>), Failure> {
    let instant = window(source, staging)?;
    let live = parse_manifest(source, &instant)?;
    gate::point("live-parsed", &source.path);
    let manifest = (instant.manifest_identity.1, instant.current.clone());
    if last_manifest.replace(manifest.clone()).is_some_and(|last| last != manifest) {
        staging.drop_stale(source)?;
    }
    for file in &live {
        staging.pin(source, file, &instant)?;
    }
    Ok((instant, live))
}

/// Steps 1 to 5.
fn window(source: &Source, staging: &Staging) -> std::result::Result<Instantaneous, Failure> {
    let current = source.read_current()?.ok_or_else(|| again("CURRENT was being replaced"))?;
    let name = manifest_name(source, &current)?;
    let manifest = source.open(&name)?.ok_or_else(|| again("the MANIFEST was being replaced"))?;
    let stat = fstat(&manifest, &name)?;
    gate::point("live-manifest-noted", &source.path);

    let opened = Instant::now();
    let first = source.wal_numbers()?;
    gate::point("live-listed-once", &source.path);
    let second = source.wal_numbers()?;
    gate::point("live-listed-twice", &source.path);
    if first.is_empty() && !second.is_empty() {
        return Err(again("the first WAL was just created"));
    }
    let newest = first.iter().map(|(number, _)| *number).max().unwrap_or(0);
    let mut wals = Vec::new();
    for (number, name) in second.into_iter().filter(|(number, _)| *number <= newest) {
        let gone = || again(format!("{name} was deleted"));
        let file = source.open(&name)?.ok_or_else(gone)?;
        if !staging.link_wal(source, &name)? {
            return Err(gone());
        }
        wals.push(Wal { name, number, file, bytes: 0 });
    }
    wals.sort_by_key(|wal| std::cmp::Reverse(wal.number));
    for wal in &mut wals {
        wal.bytes = fstat(&wal.file, &wal.name)?.st_size.cast_unsigned();
    }
    gate::point("live-sized", &source.path);
    wals.reverse();
    let manifest_bytes = stat.st_size.cast_unsigned();
    let mut instant = Instantaneous {
        current,
        manifest,
        name,
        manifest_identity: identity(stat),
        manifest_bytes,
        wals,
        window: Duration::ZERO,
    };
    if !instant.still_holds(source)? {
        return Err(again("the MANIFEST changed"));
    }
    instant.window = opened.elapsed();
    Ok(instant)
}

impl Instantaneous {
    /// Whether CURRENT and the MANIFEST are still what they were: then no edit has been written since.
    fn still_holds(&self, source: &Source) -> Result<bool> {
        let same =
            |now: Stat| identity(now) == self.manifest_identity && now.st_size.cast_unsigned() == self.manifest_bytes;
        Ok(source.read_current()?.as_ref() == Some(&self.current) && source.stat(&self.name)?.is_some_and(same))
    }
}

/// Step 6.
fn parse_manifest(source: &Source, instant: &Instantaneous) -> std::result::Result<Vec<LiveFile>, Failure> {
    let mut versions = Versions::new();
    let bytes = Region { file: &instant.manifest, at: 0, end: instant.manifest_bytes };
    let parsed = log_format::each_record(bytes, MAX_EDIT_BYTES, |record| versions.apply(record));
    match parsed.context(|| format!("cannot read the MANIFEST of {}", source.path.display()))? {
        Ok(End::Clean | End::Torn) => Ok(versions.live_files()),
        Ok(End::Damaged) => Err(Failure::Final(source.refused("its MANIFEST is damaged"))),
        Err(why) => Err(Failure::Final(source.refused(&why))),
    }
}

/// The first bytes of a file, read by position: the descriptor is shared with nobody's offset.
struct Region<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Region<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(&mut buffer[..wanted], self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// Copies a WAL up to its cut, and cuts the copy back to its last complete record.
fn copy_wal(source: &Source, wal: &Wal, to: &Path, owner: Option<Owner>, control: &Control) -> Result<()> {
    let target = to.join(&wal.name);
    let mut from = Region { file: &wal.file, at: 0, end: wal.bytes };
    let copied = disk::copy(&mut from, wal.bytes, &target, owner, control)?;
    if copied != wal.bytes {
        return Err(
            source.refused(&format!("{} became shorter while it was read: somebody truncates its WAL", wal.name))
        );
    }
    let copy = File::open(&target).context(|| format!("cannot open {}", target.display()))?;
    let extent = log_format::measure(copy).context(|| format!("cannot read {}", target.display()))?;
    if extent.recyclable {
        return Err(source.refused(&format!(
            "{} is a WAL file that is used again (recycle_log_file_num): what it holds cannot be told from what it held; \
             set recycle_log_file_num to 0",
            wal.name
        )));
    }
    match extent.end {
        // As it is: RocksDB recovers up to the damage, here as in the source.
        End::Damaged => log::warn!("damaged wal kept source={} wal={}", source.path.display(), wal.name),
        End::Clean | End::Torn if extent.complete_bytes < copied => disk::truncate(&target, extent.complete_bytes)?,
        End::Clean | End::Torn => {}
    }
    Ok(())
}

fn write_rest(
    source: &Source,
    instant: &Instantaneous,
    to: &Path,
    owner: Option<Owner>,
    control: &Control,
) -> Result<()> {
    let mut manifest = Region { file: &instant.manifest, at: 0, end: instant.manifest_bytes };
    if disk::copy(&mut manifest, instant.manifest_bytes, &to.join(&instant.name), owner, control)?
        != instant.manifest_bytes
    {
        return Err(source.refused("its MANIFEST became shorter while it was read"));
    }
    let mut options: Vec<String> = source.names()?.into_iter().filter(|n| is_options(n)).collect();
    options.sort();
    // The newest OPTIONS may be replaced while we look; the database opens without any.
    for name in options.iter().rev().map(String::as_str).take(2).chain(["IDENTITY"]) {
        let target = to.join(name);
        let taken = name != "IDENTITY" && options.iter().any(|o| to.join(o).exists());
        if let (false, Some(mut file)) = (taken, source.open(name)?) {
            disk::copy(&mut file, MAX_TEXT_BYTES, &target, owner, control)?;
        }
    }
    // CURRENT last: without it the directory is no database.
    disk::write_new(&to.join("CURRENT"), instant.current.as_bytes(), owner)
}

fn require_size(path: &Path, bytes: u64) -> Result<()> {
    let found = path.symlink_metadata().context(|| format!("cannot look at {}", path.display()))?.len();
    if found == bytes {
        return Ok(());
    }
    let context = format!("{} has {found} bytes where the MANIFEST says {bytes}", path.display());
    Err(Error::new(Kind::Damaged, context))
}

fn is_options(name: &str) -> bool {
    name.strip_prefix("OPTIONS-").is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_digit()))
}

/// The name in CURRENT, which must be a plain MANIFEST name: it is joined to a path.
fn manifest_name(source: &Source, current: &str) -> Result<String> {
    let name = current.strip_suffix('\n').filter(|name| {
        name.strip_prefix("MANIFEST-").is_some_and(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit()))
    });
    name.map(str::to_owned)
        .ok_or_else(|| source.refused("its CURRENT does not name a MANIFEST: the database is damaged"))
}

fn fstat(file: &File, name: &str) -> Result<Stat> {
    rustix::fs::fstat(file).context(|| format!("cannot look at {name}"))
}

/// The directory of the database, opened once.
struct Source {
    path: PathBuf,
    directory: OwnedFd,
}

impl Source {
    fn at(path: &Path) -> Result<Source> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty()).context(|| not_readable(path))?;
        Ok(Source { path: path.to_owned(), directory })
    }

    fn refused(&self, why: &str) -> Error {
        Error::new(Kind::Refused, format!("cannot copy the database in {}: {why}", self.path.display()))
    }

    fn refuse_what_cannot_be_copied(&self) -> Result<()> {
        let stat = rustix::fs::fstatfs(&self.directory).context(|| not_readable(&self.path))?;
        if let Some((_, name)) = REFUSED_FILE_SYSTEMS.iter().find(|(magic, _)| *magic == i64::from(stat.f_type)) {
            let why =
                format!("it lies on {name}, whose file sizes and names may be out of date; run beside the real disk");
            return Err(self.refused(&why));
        }
        let names = self.names()?;
        if let Some(name) = names.iter().find(|name| matches!(name.as_str(), "titandb" | "blob_dir")) {
            return Err(self.refused(&format!("its directory {name} holds data that RocksDB does not know of")));
        }
        let options = names.iter().filter(|name| is_options(name)).max();
        let Some(mut file) = options.map(|name| self.open(name)).transpose()?.flatten() else { return Ok(()) };
        let mut text = String::new();
        (&mut file).take(MAX_TEXT_BYTES).read_to_string(&mut text).context(|| not_readable(&self.path))?;
        let elsewhere =
            text.lines().find_map(|line| line.trim().strip_prefix("wal_dir=")).filter(|dir| !dir.is_empty());
        match elsewhere.filter(|dir| !self.is_here(Path::new(dir))) {
            Some(dir) => Err(self.refused(&format!("its WAL is elsewhere (wal_dir={dir})"))),
            None => Ok(()),
        }
    }

    /// Whether a directory is the database's own; one that is not there is what a moved database still names.
    fn is_here(&self, directory: &Path) -> bool {
        match (rustix::fs::stat(directory), rustix::fs::fstat(&self.directory)) {
            (Ok(a), Ok(b)) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
            _ => true,
        }
    }

    fn names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let dir = Dir::read_from(&self.directory).context(|| not_readable(&self.path))?;
        for entry in dir {
            let entry = entry.context(|| not_readable(&self.path))?;
            // A name that is not UTF-8 is no file of RocksDB's.
            names.extend(entry.file_name().to_str().map(str::to_owned));
        }
        Ok(names)
    }

    fn wal_numbers(&self) -> Result<Vec<(u64, String)>> {
        let numbered = |name: String| Some((name.strip_suffix(".log")?.parse().ok()?, name));
        Ok(self.names()?.into_iter().filter_map(numbered).collect())
    }

    /// Opens a regular file of the database; `None` where it is gone.
    fn open(&self, name: &str) -> Result<Option<File>> {
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

    fn not_regular(&self, name: &str) -> Error {
        self.refused(&format!("{name} is not a regular file"))
    }

    fn stat(&self, name: &str) -> Result<Option<Stat>> {
        stat_at(&self.directory, name).context(|| not_readable(&self.path.join(name)))
    }

    fn read_current(&self) -> Result<Option<String>> {
        let Some(mut file) = self.open("CURRENT")? else { return Ok(None) };
        let mut text = String::new();
        (&mut file).take(MAX_TEXT_BYTES).read_to_string(&mut text).context(|| not_readable(&self.path))?;
        Ok(Some(text))
    }
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
struct Staging {
    path: PathBuf,
    directory: OwnedFd,
    /// The WALs that are linked now.
    wals: RefCell<Vec<String>>,
}

/// A WAL's link has another name than its copy will have.
const WAL_PIN: &str = "pin.";

impl Staging {
    fn open(path: &Path) -> Result<Staging> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(CWD, path, flags, Mode::empty())
            .context(|| format!("cannot open {}", path.display()))?;
        Ok(Staging { path: path.to_owned(), directory, wals: RefCell::default() })
    }

    fn names(&self) -> Result<Vec<String>> {
        Source { path: self.path.clone(), directory: self.try_clone()? }.names()
    }

    fn try_clone(&self) -> Result<OwnedFd> {
        self.directory.try_clone().context(|| format!("cannot open {}", self.path.display()))
    }

    fn stat(&self, name: &str) -> Result<Option<Stat>> {
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

    fn link_wal(&self, source: &Source, name: &str) -> Result<bool> {
        let taken = || Error::new(Kind::Busy, format!("somebody else works in {}", self.path.display()));
        self.wals.borrow_mut().push(name.to_owned());
        self.link(source, name, &format!("{WAL_PIN}{name}")).map_err(|e| e.unwrap_or_else(taken))
    }

    fn drop_wal(&self, name: &str) -> Result<()> {
        disk::remove_file(&self.path.join(format!("{WAL_PIN}{name}")))
    }

    fn drop_wals(&self) -> Result<()> {
        self.wals.take().iter().try_for_each(|name| self.drop_wal(name))
    }

    /// Step 7.
    fn drop_stale(&self, source: &Source) -> Result<()> {
        for name in self.names()?.iter().filter(|name| is_immutable(name)) {
            let (pinned, there) = (self.stat(name)?, source.stat(name)?);
            if pinned.map(identity) != there.map(identity) {
                disk::remove_file(&self.path.join(name))?;
            }
        }
        Ok(())
    }

    /// Step 8 for one file.
    fn pin(&self, source: &Source, file: &LiveFile, instant: &Instantaneous) -> std::result::Result<(), Failure> {
        let name = &file.name;
        let path = self.path.join(name);
        match self.link(source, name, name) {
            Ok(true) => {}
            // Gone from the source: what was pinned in an earlier round is it, otherwise the database has moved on.
            Ok(false) if self.stat(name)?.is_some() => {}
            // A file is deleted only after the edit that says so was written.
            Ok(false) if instant.still_holds(source)? => {
                let why = format!(
                    "{name} is missing although its MANIFEST names it: the database is damaged or has db_paths"
                );
                return Err(Failure::Final(source.refused(&why)));
            }
            Ok(false) => return Err(again(format!("{name} was deleted"))),
            Err(Some(e)) => return Err(Failure::Final(e)),
            Err(None) => {
                let (pinned, there) = (self.stat(name)?, source.stat(name)?);
                if there.is_some() && pinned.map(identity) != there.map(identity) {
                    disk::remove_file(&path)?;
                    return Err(again(format!("the number of {name} was used again")));
                }
            }
        }
        let pinned = self.stat(name)?.ok_or_else(|| again(format!("{name} was removed from the copy")))?;
        if FileType::from_raw_mode(pinned.st_mode) != FileType::RegularFile {
            return Err(Failure::Final(source.not_regular(name)));
        }
        if pinned.st_size.cast_unsigned() != file.bytes {
            disk::remove_file(&path)?;
            return Err(again(format!("{name} has {} bytes where the MANIFEST says {}", pinned.st_size, file.bytes)));
        }
        Ok(())
    }

    /// Drops what earlier rounds pinned and the last one does not need.
    fn keep_only(&self, live: &[LiveFile]) -> Result<()> {
        let live: HashSet<&str> = live.iter().map(|file| file.name.as_str()).collect();
        for name in self.names()?.iter().filter(|name| is_immutable(name) && !live.contains(name.as_str())) {
            disk::remove_file(&self.path.join(name))?;
        }
        Ok(())
    }
}

fn identity(stat: Stat) -> (u64, u64) {
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
    for name in source.names()? {
        let regular = |stat: &Stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        bytes += source.stat(&name)?.filter(regular).map_or(0, |stat| stat.st_size.cast_unsigned());
    }
    Ok(bytes)
}
