//! The copy of a RocksDB directory that no process holds: RocksDB itself is never asked.
//!
//! 1. Nobody holds LOCK (asked with F_GETLK, never taken). CURRENT names a MANIFEST; both are remembered.
//! 2. Every SST and blob file is linked, or copied where links cannot reach; MANIFEST, CURRENT, OPTIONS, IDENTITY and the
//!    WAL are copied. LOG, LOCK and temporary files are left out.
//! 3. CURRENT, the MANIFEST (inode, size, time) and the list of files are as before, and LOCK is still free. A node that
//!    was started meanwhile has written a new MANIFEST by then: the copy fails.
//!
//! Invariants: no file of the source is opened for writing; regular files only, links are not followed. Closing our
//! descriptor of LOCK would drop a lock of this very process, so this is for databases of other processes only.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Flock, FlockType};

use crate::control::Control;
use crate::disk::{self, Owner};
use crate::error::{Error, IoContext, Kind, Result};
use crate::rocks::{is_immutable, not_permitted};

/// The largest CURRENT and OPTIONS that are read; real ones have 16 bytes and some KiB.
const MAX_TEXT_BYTES: u64 = 4 * 1024 * 1024;

/// What must not change while we copy.
#[derive(Debug, PartialEq, Eq)]
struct Fingerprint {
    current: String,
    manifest: (u64, u64, i64, i64),
    files: Vec<(String, u64)>,
}

/// Fails with [`Kind::NodeRunning`] where another process holds the database's LOCK.
pub(crate) fn require_unlocked(database: &Path) -> Result<()> {
    let path = database.join("LOCK");
    // A database whose LOCK was removed or never copied is held by nobody.
    let Some(file) = open_source(&path, true)? else { return Ok(()) };
    let holder = rustix::process::fcntl_getlk(&file, &Flock::from(FlockType::WriteLock))
        .context(|| format!("cannot ask who holds {}", path.display()))?;
    let Some(holder) = holder else { return Ok(()) };
    let process = holder.pid.map_or_else(String::new, |p| format!(" (process {})", p.as_raw_nonzero()));
    let context = format!(
        "a running node{process} holds {}; stop the node first: this version backs up a foreign node only while it is stopped",
        path.display()
    );
    Err(Error::new(Kind::NodeRunning, context))
}

/// Bytes that have to be copied when links cannot reach: everything.
pub(crate) fn total_bytes(database: &Path) -> Result<u64> {
    Ok(list(database)?.iter().map(|(_, bytes)| bytes).sum())
}

/// Copies the database to the new directory `to`. Files that are not links are synced.
pub(crate) fn copy(database: &Path, to: &Path, linked: bool, owner: Option<Owner>, control: &Control) -> Result<()> {
    require_unlocked(database)?;
    let before = look(database)?;
    refuse_files_elsewhere(database, &before)?;
    disk::create_dir(to, owner)?;
    for (name, bytes) in &before.files {
        let (from, target) = (database.join(name), to.join(name));
        if linked && is_immutable(name) {
            disk::link(&from, &target).map_err(|e| match e.kind() {
                io::ErrorKind::PermissionDenied => not_permitted(database, e),
                _ => Error::io(format!("cannot link {}", from.display()), e),
            })?;
            control.check()?;
            continue;
        }
        let mut file = open_source(&from, false)?.ok_or_else(|| changed(database))?;
        if disk::copy(&mut file, *bytes, &target, owner, control)? != *bytes {
            return Err(changed(database));
        }
    }
    if look(database)? != before {
        return Err(changed(database));
    }
    require_unlocked(database)
}

fn changed(database: &Path) -> Error {
    let context = format!("{} changed while it was copied: the node has been started", database.display());
    Error::new(Kind::NodeRunning, context)
}

fn look(database: &Path) -> Result<Fingerprint> {
    let current = read_text(database, "CURRENT")?;
    let digits = current.strip_suffix('\n').and_then(|name| name.strip_prefix("MANIFEST-"));
    if !digits.is_some_and(|d| !d.is_empty() && d.bytes().all(|b| b.is_ascii_digit())) {
        let context = format!("{} does not name a MANIFEST: the database is damaged", database.join("CURRENT").display());
        return Err(Error::new(Kind::Refused, context));
    }
    let path = database.join(current.trim_end());
    let meta = path.symlink_metadata().context(|| format!("cannot look at {}", path.display()))?;
    let manifest = (meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec());
    Ok(Fingerprint { manifest, files: list(database)?, current })
}

/// The files that belong to the database, with their sizes, by name. Refuses what a plain copy would miss.
fn list(database: &Path) -> Result<Vec<(String, u64)>> {
    let failed = || format!("cannot list {}", database.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(database).context(failed)? {
        let entry = entry.context(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let meta = entry.metadata().context(failed)?;
        if matches!(name.as_str(), "titandb" | "blob_dir") {
            return Err(refused(database, &format!("its directory {name} holds data that RocksDB does not know of")));
        }
        let belongs = is_immutable(&name)
            || name.ends_with(".log")
            || matches!(name.as_str(), "CURRENT" | "IDENTITY")
            || name.starts_with("MANIFEST-")
            || (name.starts_with("OPTIONS-") && !name.ends_with(".dbtmp"));
        if !belongs {
            continue;
        }
        if !meta.is_file() {
            return Err(refused(database, &format!("{name} is not a regular file")));
        }
        files.push((name, meta.len()));
    }
    files.sort();
    Ok(files)
}

/// A WAL or SST outside the directory would be missing in the copy, and RocksDB would not notice a missing WAL.
fn refuse_files_elsewhere(database: &Path, found: &Fingerprint) -> Result<()> {
    let options = found.files.iter().map(|(name, _)| name).rfind(|name| name.starts_with("OPTIONS-"));
    let Some(options) = options else { return Ok(()) };
    let text = read_text(database, options)?;
    for line in text.lines() {
        let Some((key, value)) = line.trim().split_once('=') else { continue };
        let elsewhere = !value.is_empty() && Path::new(value.trim_end_matches('/')) != database;
        if key == "wal_dir" && elsewhere && !same_directory(Path::new(value), database) {
            return Err(refused(database, &format!("its WAL is elsewhere (wal_dir={value})")));
        }
    }
    Ok(())
}

fn same_directory(a: &Path, b: &Path) -> bool {
    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        // A directory that is not there holds no WAL; a database that was moved still names its old one.
        _ => !a.exists(),
    }
}

fn refused(database: &Path, why: &str) -> Error {
    Error::new(Kind::Refused, format!("cannot back up {}: {why}", database.display()))
}

fn read_text(database: &Path, name: &str) -> Result<String> {
    let path = database.join(name);
    let missing = || refused(database, &format!("{name} is missing"));
    let file = open_source(&path, true)?.ok_or_else(missing)?;
    let mut text = String::new();
    file.take(MAX_TEXT_BYTES).read_to_string(&mut text).context(|| format!("cannot read {}", path.display()))?;
    Ok(text)
}

/// Opens a file of the source for reading, without following a link; `None` where it is missing and may be.
fn open_source(path: &Path, may_be_missing: bool) -> Result<Option<File>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => Ok(Some(file.into())),
        Err(rustix::io::Errno::NOENT) if may_be_missing => Ok(None),
        Err(errno) => Err(Error::io(
            format!("cannot open {}; run as the node's user or as root", path.display()),
            errno.into(),
        )),
    }
}
