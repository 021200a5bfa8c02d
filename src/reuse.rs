//! The SSTs of an earlier backup on the same file system: what it has already need not be copied again.
//!
//! Used where links to the node's own files are impossible, because the backup directory is on another file system. A file
//! number alone is no identity: after a restore the node uses numbers again. So a file is taken only where the name and
//! the size agree, and either both MANIFESTs give it the same unique id, or, where the earlier one is too old to know ids, the
//! ends of both files are equal: there RocksDB writes the properties, with the session and the time that made the file.
//!
//! Invariant: the earlier backup is held against deleting while this lives; its files are linked, never changed.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::control::Control;
use crate::copy;
use crate::disk::{self, Lock, Owner};
use crate::error::{Error, IoContext, Kind, Result};
use crate::live;
use crate::live_files::MAX_TEXT_BYTES;
use crate::log_format::End;
use crate::nofollow;
use crate::quiet::QuietReader;
use crate::source::resolve;
use crate::unsynced::Batch;
use crate::version_edit::{LiveFile, Versions};

/// How much of the ends is compared: properties, index of the meta blocks and footer take some KiB.
const TAIL_BYTES: u64 = 8 * 1024;

/// Of the node's own file system, this part must stay free while deleted files are held there.
const SOURCE_RESERVE_DIVISOR: u64 = 20;

/// What a link is refused with where another way must be found.
const NO_LINK: [i32; 6] = [libc::EMLINK, libc::EPERM, libc::EACCES, libc::EXDEV, libc::ENOSYS, libc::EOPNOTSUPP];

/// An earlier backup's RocksDB.
#[derive(Debug)]
pub(crate) struct Earlier {
    directory: PathBuf,
    /// What its MANIFEST names and is really there, in that size: somebody may have removed a file, or cut it off. Sorted by
    /// number.
    files: Vec<LiveFile>,
    _use_lock: Lock,
}

impl Earlier {
    /// The RocksDB in `directory` of a backup that `use_lock` holds; `None` where its MANIFEST cannot be read.
    pub(crate) fn open(directory: &Path, use_lock: Lock) -> Option<Earlier> {
        let is_there = |file: &LiveFile| {
            let meta = nofollow::look(&directory.join(file.name())).ok().flatten();
            meta.is_some_and(|meta| meta.is_file() && meta.len() == file.bytes)
        };
        let mut files = live_files_in(directory).ok()?;
        files.retain(is_there);
        Some(Earlier { directory: directory.to_owned(), files, _use_lock: use_lock })
    }

    /// Its file of the same name.
    fn find(&self, file: &LiveFile) -> Option<&LiveFile> {
        let found = self.files.binary_search_by_key(&file.number, |ours| ours.number).ok()?;
        Some(&self.files[found]).filter(|ours| ours.name() == file.name())
    }

    /// Whether it has `file` for certain: both MANIFESTs give it the same unique id. The source need not be looked at then.
    pub(crate) fn knows(&self, file: &LiveFile) -> bool {
        let same = |ours: &LiveFile| ours.bytes == file.bytes && ours.unique_id == file.unique_id;
        file.unique_id.is_some() && self.find(file).is_some_and(same)
    }

    /// Links `file`, whose source is at `pinned`, to `to`, where this backup has the same one; otherwise `Ok(false)`. What it
    /// [knows](Earlier::knows) needs no source.
    pub(crate) fn link(&self, file: &LiveFile, pinned: &Path, to: &Path) -> Result<bool> {
        let ours = self.directory.join(file.name());
        let compared = || same_tail(&ours, pinned, file.bytes).context(|| format!("cannot compare {}", ours.display()));
        let same = self.knows(file) || (self.may_have(file) && compared()?);
        if !same {
            return Ok(false);
        }
        match disk::link(&ours, to) {
            Ok(()) => Ok(true),
            // Too many links, no right to link, or a file system that has none: then it is copied.
            Err(e) if e.raw_os_error().is_some_and(|errno| NO_LINK.contains(&errno)) => Ok(false),
            Err(e) => Err(Error::io(format!("cannot link {}", ours.display()), e)),
        }
    }

    /// Whether this backup seems to have a file, by what its MANIFEST says.
    fn may_have(&self, file: &LiveFile) -> bool {
        let fits =
            |ours: &LiveFile| ours.bytes == file.bytes && ours.unique_id.is_none_or(|id| file.unique_id == Some(id));
        self.find(file).is_some_and(fits)
    }

    /// Bytes of a live database that need not be copied, as far as its MANIFEST tells now.
    pub(crate) fn saved_bytes(&self, database: &Path) -> u64 {
        let live = resolve(database).and_then(|database| live_files_in(&database)).unwrap_or_default();
        live.iter().filter(|file| self.may_have(file)).map(|file| file.bytes).sum()
    }
}

/// Brings every live file to the directory `to`, and its pin is dropped; returns the numbers of those that `earlier` had,
/// sorted as `live` is.
pub(crate) fn bring_all(
    live: &[LiveFile],
    pins: &Path,
    to: &Path,
    earlier: Option<&Earlier>,
    unsynced: &mut Batch,
    owner: Option<Owner>,
    control: &Control,
) -> Result<Vec<u64>> {
    let mut reused = Vec::new();
    for file in live {
        if bring(file, pins, to, earlier, unsynced, owner, control)? {
            reused.push(file.number);
        }
    }
    Ok(reused)
}

/// Brings a live file to the directory `to`: linked from `earlier` where that has it, which is what is returned, otherwise
/// copied from its pin in `pins`, which is dropped. What `earlier` knows has no pin.
fn bring(
    file: &LiveFile,
    pins: &Path,
    to: &Path,
    earlier: Option<&Earlier>,
    unsynced: &mut Batch,
    owner: Option<Owner>,
    control: &Control,
) -> Result<bool> {
    let known = earlier.filter(|earlier| earlier.knows(file));
    let from = known.map_or(pins, |earlier| &earlier.directory).join(file.name());
    let target = to.join(file.name());
    let reused = earlier.map_or(Ok(false), |earlier| earlier.link(file, &from, &target))?;
    if !reused {
        let source = nofollow::open_regular(&from).context(|| format!("cannot open {}", from.display()))?;
        let mut bytes = QuietReader::past_cache(&source);
        // Pins hold what the node has deleted: its disk must not run full because of us. The reserve was made for the file
        // system of the backup; the node's may be far smaller.
        let node_has_room = || {
            let reserve_bytes = control.reserve_bytes().min(disk::free_bytes(pins)?.1 / SOURCE_RESERVE_DIVISOR);
            disk::require_room(pins, reserve_bytes)
        };
        let copied = copy::copy(&mut bytes, file.bytes, &target, owner, control, &node_has_room)?;
        if copied.bytes != file.bytes {
            let (found, said) = (copied.bytes, file.bytes);
            let context = format!("{} has {found} bytes where the MANIFEST says {said}", from.display());
            return Err(Error::new(Kind::Damaged, context));
        }
        unsynced.add(copied)?;
    }
    if known.is_none() {
        disk::remove_file(&from)?;
    }
    Ok(reused)
}

/// The live files of a RocksDB directory, by its CURRENT and MANIFEST, sorted by number.
pub(crate) fn live_files_in(directory: &Path) -> Result<Vec<LiveFile>> {
    let damaged = |name: &str, why: &str| {
        Error::new(Kind::Damaged, format!("{} of the copy: {why}", directory.join(name).display()))
    };
    let path = directory.join("CURRENT");
    let current = nofollow::read_small(&path, MAX_TEXT_BYTES).context(|| format!("cannot read {}", path.display()))?;
    let current = String::from_utf8_lossy(&current);
    let name = live::manifest_in(&current).ok_or_else(|| damaged("CURRENT", "it names no MANIFEST"))?;
    let failed = || format!("cannot read {}", directory.join(&name).display());
    let manifest = nofollow::open_regular(&directory.join(&name)).context(failed)?;
    let mut versions = Versions::new();
    match versions.read(manifest).context(failed)?.map_err(|why| damaged(&name, &why))? {
        End::Clean | End::Torn => Ok(versions.into_live_files()),
        End::Damaged => Err(damaged(&name, "it is damaged")),
    }
}

/// Whether the end of `ours` is that of the source. One of ours that cannot be read, or is shorter, is no use.
fn same_tail(ours: &Path, source: &Path, bytes: u64) -> io::Result<bool> {
    let start = bytes.saturating_sub(TAIL_BYTES);
    let tail = |path: &Path| -> io::Result<Vec<u8>> {
        let mut tail = vec![0; usize::try_from(bytes - start).unwrap_or(0)];
        nofollow::open_regular(path)?.read_exact_at(&mut tail, start)?;
        Ok(tail)
    };
    match (tail(ours), tail(source)) {
        (Ok(ours), Ok(source)) => Ok(ours == source),
        (Err(_), _) => Ok(false),
        (_, Err(e)) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        (_, Err(e)) => Err(e),
    }
}
