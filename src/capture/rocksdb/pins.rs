//! The pin directory: hard links that keep RocksDB's files until they are copied to another file system.
//!
//! Hard links work only within one mount, and two mounts may have the same device (bind mounts, btrfs subvolumes). So the pin
//! directory is made on RocksDB's mount: in the first place of `Sources::pin_places` in which it can be made and a trial link to one
//! of RocksDB's files works. It has the same name in every place. Only its owner may enter it. One backup at a time uses it, and holds
//! its lock.
//!
//! Invariants
//! - Files are removed only in a directory that has our name and belongs to us or to the owner of the databases.
//! - Pins are removed at the end of each capture, also of one that failed. After a crash the next start removes them, in every
//!   place in which an earlier configuration may have made them.
//! - After an error that another place may not have (no permission, a read-only mount, another mount), the next place is tried.
//!   Every other error is returned.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::capture::rocksdb::live_directories::can_link;
use crate::capture::source::{Sources, resolve};
use crate::chainweb::ROCKSDB;
use crate::disk::lock::Lock;
use crate::disk::nofollow;
use crate::disk::{self, Owner};
use crate::error::{Error, IoContext, Kind, Result, failed};
use crate::format::layout::{PIN_DIRECTORY, PINS_LOCK, PROBE};

/// A pin directory, locked and empty.
pub(crate) struct Pins {
    directory: PathBuf,
    _lock: Lock,
}

/// Why a place cannot be used.
enum Unusable {
    /// Another place may be usable; the reason in words.
    Here(String),
    /// No other place would help: the backup fails.
    Anywhere(Error),
}

impl From<Error> for Unusable {
    /// For the errors of making and locking the directory.
    fn from(e: Error) -> Unusable {
        match e.io_kind() {
            Some(ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => Unusable::Here(e.chain()),
            _ => Unusable::Anywhere(e),
        }
    }
}

impl Pins {
    /// Locks and empties the pin directory in the first place in which links to RocksDB's files work.
    ///
    /// # Errors
    /// [`Kind::Refused`] if there is none: the message has the reason for each place, and the remedy. [`Kind::Busy`] if another
    /// backup uses it.
    pub(crate) fn take(sources: &Sources) -> Result<Pins> {
        let rocksdb = resolve(sources.rocksdb.path())?;
        let mut reasons = Vec::new();
        for place in sources.pin_places()? {
            match Pins::take_in(&place, &rocksdb, sources) {
                Ok(pins) => return Ok(pins),
                Err(Unusable::Here(reason)) => reasons.push(format!("{}: {reason}", place.display())),
                Err(Unusable::Anywhere(e)) => return Err(e),
            }
        }
        let context = format!(
            "the backup directory is on another mount than {}, so its files must be linked in a directory on their own mount until \
             they are copied, and no such directory can be used ({}): name one on that mount with --pin-directory",
            rocksdb.display(),
            reasons.join("; ")
        );
        Err(Error::new(Kind::Refused, context))
    }

    fn take_in(place: &Path, rocksdb: &Path, sources: &Sources) -> std::result::Result<Pins, Unusable> {
        let here = |reason: &str| Unusable::Here(reason.to_owned());
        let owner = Owner::following(&sources.database_directory)?;
        match nofollow::mount_of(place) {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Err(here("it does not exist"));
            }
            Err(e) if e.kind() == ErrorKind::PermissionDenied => return Err(here("permission denied")),
            mount => {
                if mount.context(|| not_seen(place))? != nofollow::mount_of(rocksdb).context(|| not_seen(rocksdb))? {
                    return Err(here("it is on another mount"));
                }
            }
        }
        if sources.is_linked_to_another_user(place)? {
            return Err(here("a link leads to it, and it belongs to another user than the database directory"));
        }
        let directory = place.join(PIN_DIRECTORY);
        let is_new = nofollow::look(&directory).is_ok_and(|found| found.is_none());
        disk::ensure_private_dir(&directory, owner)?;
        require_own(&directory, owner)?;
        let pins = Pins::lock(directory, owner)?;
        // Links can fail on the same mount, too: between btrfs subvolumes, and between the projects of xfs quotas.
        if can_link(rocksdb, &pins.directory)? {
            pins.clear()?;
            return Ok(pins);
        }
        if is_new {
            // Otherwise it would be left in a place that no backup uses.
            disk::remove_tree(&pins.directory, &|| true)?;
        }
        Err(here("links from there to RocksDB's files do not work"))
    }

    /// Locks an existing pin directory.
    fn lock(directory: PathBuf, owner: Option<Owner>) -> Result<Pins> {
        let lock = Lock::try_take(&directory.join(PINS_LOCK), owner)?.ok_or_else(|| {
            Error::new(Kind::Busy, format!("another backup uses {}; try again when it is done", directory.display()))
        })?;
        Ok(Pins { directory, _lock: lock })
    }

    /// The directory in which the links of one capture are made. It may not exist.
    pub(crate) fn rocksdb(&self) -> PathBuf {
        self.directory.join(ROCKSDB)
    }

    pub(crate) fn clear(&self) -> Result<()> {
        disk::remove_file(&self.directory.join(PROBE))?;
        disk::remove_tree(&self.rocksdb(), &|| true)?;
        disk::remove_tree(&self.directory.join(format!("{ROCKSDB}.tmp")), &|| true).map(|_| ())
    }
}

/// Fails with [`Kind::Usage`] if a place was named and is not a directory on RocksDB's mount. Changes nothing.
pub(crate) fn require_possible(sources: &Sources) -> Result<()> {
    let Some(named) = &sources.pin_directory else { return Ok(()) };
    let rocksdb = resolve(sources.rocksdb.path())?;
    let why = match nofollow::mount_of(&resolve(named)?) {
        Err(e) => e.to_string(),
        Ok(mount) if mount != nofollow::mount_of(&rocksdb).context(|| not_seen(&rocksdb))? => {
            "it is on another mount".into()
        }
        Ok(_) => return Ok(()),
    };
    let context = format!(
        "--pin-directory {} cannot be used ({why}): name a directory that exists, on the mount of {}",
        named.display(),
        rocksdb.display()
    );
    Err(Error::new(Kind::Usage, context))
}

/// Fails if the directory of our name was made by another user, who could exchange the links in it.
fn require_own(directory: &Path, owner: Option<Owner>) -> Result<()> {
    let found = nofollow::look(directory).context(|| not_seen(directory))?;
    if found.is_none_or(|meta| Owner::may_be_ours(owner, meta.uid())) {
        return Ok(());
    }
    let context =
        format!("{} belongs to another user: it is not a directory that we made; remove it", directory.display());
    Err(Error::new(Kind::Refused, context))
}

/// Removes the pins that a crash left, in every place in which they may be. They are links, which take no space until the node
/// deletes their files. If a place cannot be cleared, the others still are; the errors are returned.
pub(crate) fn clear_left(sources: &Sources) -> Vec<Error> {
    let places = match sources.all_pin_places() {
        Ok(places) => places,
        Err(e) => return vec![e],
    };
    places.iter().filter_map(|place| clear_in(place, sources).err()).collect()
}

fn clear_in(place: &Path, sources: &Sources) -> Result<()> {
    let directory = place.join(PIN_DIRECTORY);
    let found = match nofollow::look(&directory) {
        // A place that does not exist, or that is a file, has no pins.
        Err(e) if e.kind() == ErrorKind::NotADirectory => None,
        found => found.context(|| not_seen(&directory))?,
    };
    if !found.is_some_and(|meta| meta.is_dir()) {
        return Ok(());
    }
    let owner = Owner::following(&sources.database_directory)?;
    require_own(&directory, owner)?;
    Pins::lock(directory, owner)?.clear()
}

fn not_seen(path: &Path) -> String {
    failed("look at", path)
}
