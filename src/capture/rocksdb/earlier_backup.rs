//! The SSTs of an earlier backup on the same file system: files that it already has are linked instead of copied.
//!
//! Used if the node's own files cannot be linked, because the backup directory is on another file system. A file number is not an
//! identity: after a restore the node reuses numbers. So a file is linked from the earlier backup only if its name, size and
//! sequence numbers are the same in both MANIFESTs, and the first of these proofs that is possible holds:
//!
//! - **Certain**, without reading the node's file: both MANIFESTs have the same unique id (field 12 of a new file, from
//!   RocksDB 7.3 on). It is a hash of the database's identity, the session that wrote the file and its number then
//!   (`table/unique_id.cc`); a session is 103 random bits, drawn at each open and for each `SstFileWriter`. One thing changes
//!   under a unique id: an ingested file gets its global sequence number written over the 8 bytes of the property
//!   `rocksdb.external_sst_file.global_seqno` (`ExternalSstFileIngestionJob::AssignGlobalSeqnoForIngestedFile`, with
//!   `write_global_seqno`: the default up to RocksDB 6, deprecated since, there to 11.8). That number is in the MANIFEST, too,
//!   as the smallest and the largest of the file, and RocksDB refuses a file in which the two disagree
//!   (`GetGlobalSequenceNumber`). So other sequence numbers mean another file; and a file with a single sequence number above 0,
//!   as an ingested one has, is not certain: its end must be compared, which costs two reads of 8 KiB. Few files are like that.
//!   RocksDB rewrites no other part of an SST: it sets the creation times before the name of the file is in a MANIFEST.
//! - **Equal ends**: a MANIFEST is too old for unique ids, but the ends of both files are equal. There RocksDB writes the
//!   properties: the session (`rocksdb.creating.session.identity`, from 6.15 on), and after it, sorted by name, the global
//!   sequence number and the file's original number. Equal ends without a session prove nothing: RocksDB before 6.15, other
//!   table formats.
//! - **Equal content**, for all other files: blob files, whose footer has a count and no identity (`BlobLogFooter`, 32 bytes; the
//!   checksums in them lie before the values), and files without ids. The node's file is read once, quietly, and its BLAKE2b is
//!   compared with the known one of the earlier backup's file; if none is known, that file is read, too. This costs the reading
//!   of a copy, but no writing and no space; a file that differs is then read once more to copy it.
//!
//! The new backup takes over the checksum of a reused file and the time when it was last read (see `reread`); the checksum of a
//! copied file is computed during the copy.
//!
//! Invariant: the earlier backup cannot be deleted while an [`Earlier`] exists; its files are linked, never changed.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::capture::in_use::InUse;
use crate::capture::rocksdb::live_files;
use crate::capture::rocksdb::version_edit::LiveFile;
use crate::control::Control;
use crate::disk;
use crate::disk::copy::{self, Copier};
use crate::disk::nofollow;
use crate::disk::off_heap;
use crate::disk::quiet_reader::{PageCache, QuietReader};
use crate::disk::sum::{self, Known, SummingReader};
use crate::disk::unsynced::Batch;
use crate::error::{Error, IoContext, Kind, Result};

/// How much of the ends is compared: properties, the index of the meta blocks and the footer have some KiB.
const TAIL_BYTES: u64 = 8 * 1024;

/// The end of the name of the property that names the session which wrote an SST. Its beginning may be missing in the file:
/// RocksDB omits what a key has in common with the key before it.
const SESSION_PROPERTY: &[u8] = b"session.identity";

/// The part of the node's own file system that must be free while our pins keep deleted files there: one divided by this.
const SOURCE_RESERVE_DIVISOR: u64 = 20;

/// The errors of a link after which the file is copied instead.
const NO_LINK: [i32; 6] = [libc::EMLINK, libc::EPERM, libc::EACCES, libc::EXDEV, libc::ENOSYS, libc::EOPNOTSUPP];

/// How we decide whether a file of the earlier backup is the same as the node's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proof {
    /// It is the same for certain.
    Certain,
    /// Compare the ends of both files.
    Ends,
    /// Compare the content of both files.
    Content,
}

/// An earlier backup's RocksDB.
#[derive(Debug)]
pub(crate) struct Earlier {
    directory: PathBuf,
    /// The files in its MANIFEST that exist with the right size: others were removed or truncated. Sorted by number.
    files: Vec<LiveFile>,
    /// The checksum of each of them, if it is known.
    known: Vec<Option<Known>>,
    /// The numbers of the files whose content must be compared, even if they have the same identity.
    doubted: BTreeSet<u64>,
    /// The numbers of the files that must not be used.
    damaged: BTreeSet<u64>,
    _in_use: Option<InUse>,
}

impl Earlier {
    /// The RocksDB in `directory` of a backup that `in_use` locks; `None` if its MANIFEST cannot be read. A backup that is being
    /// made needs no `in_use`: its job has locked it.
    pub(crate) fn open(directory: &Path, in_use: Option<InUse>) -> Option<Earlier> {
        let is_there = |file: &LiveFile| {
            let meta = nofollow::look(&directory.join(file.name())).ok().flatten();
            meta.is_some_and(|meta| meta.is_file() && meta.len() == file.bytes)
        };
        let mut files = live_files::in_directory(directory).ok()?;
        files.retain(is_there);
        let mut known = off_heap::list();
        known.resize(files.len(), None);
        let directory = directory.to_owned();
        Some(Earlier { directory, files, known, doubted: BTreeSet::new(), damaged: BTreeSet::new(), _in_use: in_use })
    }

    /// The directory of its files.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its files, with the checksums that are known.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&LiveFile, Option<Known>)> {
        self.files.iter().zip(self.known.iter().copied())
    }

    /// Notes the checksum of a file; a number that it does not have is ignored.
    pub(crate) fn know(&mut self, number: u64, known: Known) {
        if let Ok(at) = self.files.binary_search_by_key(&number, |file| file.number) {
            self.known[at] = Some(known);
        }
    }

    /// Notes that every file with a known checksum was read at this time.
    pub(crate) fn read_all_at(&mut self, read_ms: u64) {
        self.known.iter_mut().flatten().for_each(|known| known.read_ms = known.read_ms.max(read_ms));
    }

    /// From now on this file is used only if the node's has the same content.
    pub(crate) fn doubt(&mut self, number: u64) {
        self.doubted.insert(number);
    }

    /// From now on this file is not used.
    pub(crate) fn give_up(&mut self, number: u64) {
        self.damaged.insert(number);
    }

    /// The index of its file with the same name, size and sequence numbers, and how we decide whether it is the same file.
    fn find(&self, file: &LiveFile) -> Option<(usize, Proof)> {
        let at = self.files.binary_search_by_key(&file.number, |ours| ours.number).ok()?;
        let ours = &self.files[at];
        let same_place = ours.is_blob() == file.is_blob() && !self.damaged.contains(&file.number);
        if !same_place || ours.bytes != file.bytes || ours.sequences != file.sequences {
            return None;
        }
        let proof = match (ours.unique_id, file.unique_id) {
            (Some(ours), Some(theirs)) if ours != theirs => return None,
            _ if self.doubted.contains(&file.number) || file.is_blob() => Proof::Content,
            (Some(_), Some(_)) if !may_be_ingested(file) => Proof::Certain,
            _ => Proof::Ends,
        };
        Some((at, proof))
    }

    /// Whether it has `file` for certain. Then the source's file is not needed.
    pub(crate) fn knows(&self, file: &LiveFile) -> bool {
        matches!(self.find(file), Some((_, Proof::Certain)))
    }

    /// The file of this backup that is the same as the node's `file`, which is at `pinned`, and its checksum if known: proven in
    /// one of the ways above.
    fn same(&self, file: &LiveFile, pinned: &Path, control: &Control) -> Result<Option<(PathBuf, Option<Known>)>> {
        let Some((at, proof)) = self.find(file) else { return Ok(None) };
        let ours = self.directory.join(file.name());
        let known = self.known[at];
        let ends = || Ends::of(&ours, pinned, file.bytes).context(|| format!("cannot compare {}", ours.display()));
        let proof = match proof {
            Proof::Ends => match ends()? {
                Ends::Differ => return Ok(None),
                Ends::OfOneSession => Proof::Certain,
                Ends::Alike => Proof::Content,
            },
            other => other,
        };
        match proof {
            Proof::Certain => Ok(Some((ours, known))),
            _ => Ok(same_content(&ours, known, pinned, control)?.map(|known| (ours, Some(known)))),
        }
    }

    /// The bytes of live files that probably need not be copied, according to the MANIFESTs.
    pub(crate) fn saved_bytes(&self, live: &[LiveFile]) -> u64 {
        live.iter().filter(|file| self.find(file).is_some()).map(|file| file.bytes).sum()
    }

    /// The numbers of its files that are probably also in `live`, sorted.
    pub(crate) fn shared(&self, live: &[LiveFile]) -> Vec<u64> {
        live.iter().filter(|file| self.find(file).is_some()).map(|file| file.number).collect()
    }
}

/// Whether all keys have the same sequence number, as in an ingested file, into which RocksDB may have written it.
fn may_be_ingested(file: &LiveFile) -> bool {
    file.sequences.0 == file.sequences.1 && file.sequences.1 > 0
}

/// The checksum of `ours`, if the node's file has the same content; `None` if it differs or if ours cannot be read.
fn same_content(ours: &Path, known: Option<Known>, pinned: &Path, control: &Control) -> Result<Option<Known>> {
    let known = match known {
        Some(known) => known,
        None => match sum::of(ours, PageCache::Unchanged, control) {
            Ok(sum) => Known { sum, read_ms: 0 },
            Err(e) if e.kind() == Kind::Io => return Ok(None),
            Err(e) => return Err(e),
        },
    };
    Ok((sum::of(pinned, PageCache::Unchanged, control)? == known.sum).then_some(known))
}

/// The origin of a live file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Came {
    pub(crate) number: u64,
    /// Whether it is a link to a file of an earlier backup.
    pub(crate) reused: bool,
    /// The time in it counts only for a reused file: this job has read the others.
    pub(crate) known: Option<Known>,
}

/// The origin of the live files, by number.
#[derive(Debug, Default)]
pub(crate) struct Brought(Vec<Came>);

impl Brought {
    /// The origin of this file.
    pub(crate) fn find(&self, number: u64) -> Option<&Came> {
        let at = self.0.binary_search_by_key(&number, |came| came.number).ok()?;
        Some(&self.0[at])
    }

    /// Corrects a capture that has reused files of `before`, a discarded capture of the same job: files that `before` had copied
    /// do not count as reused.
    pub(crate) fn count_from(&mut self, before: &Brought) {
        for came in &mut self.0 {
            came.reused &= before.find(came.number).is_some_and(|before| before.reused);
        }
    }

    /// The known checksums of the files.
    pub(crate) fn known(&self, now_ms: u64) -> impl Iterator<Item = (u64, Known)> {
        let known = move |came: &Came| {
            let known = came.known?;
            Some((came.number, if came.reused { known } else { Known { read_ms: now_ms, ..known } }))
        };
        self.0.iter().filter_map(known)
    }

    /// The numbers of the files that are links to files of an earlier backup.
    pub(crate) fn reused(&self) -> impl Iterator<Item = u64> {
        self.0.iter().filter(|came| came.reused).map(|came| came.number)
    }
}

/// Brings the live files to a backup on another file system.
pub(crate) struct Bringing<'a> {
    /// Links to the node's files; each is removed once it was used. Files that the earlier backup has for certain have none.
    pub(crate) pins: &'a Path,
    /// The target directory.
    pub(crate) to: &'a Path,
    pub(crate) earlier: Option<&'a Earlier>,
    pub(crate) copier: Copier<'a>,
}

impl Bringing<'_> {
    /// Brings all live files; `live` is sorted by number.
    pub(crate) fn all(&self, live: &[LiveFile], unsynced: &mut Batch) -> Result<Brought> {
        let mut brought = off_heap::list();
        for file in live {
            brought.push(self.one(file, unsynced)?);
        }
        Ok(Brought(brought))
    }

    /// Brings a live file: linked from the earlier backup if that has it, otherwise copied from its pin.
    fn one(&self, file: &LiveFile, unsynced: &mut Batch) -> Result<Came> {
        let pinned = self.pins.join(file.name());
        let target = self.to.join(file.name());
        let is_known = self.earlier.is_some_and(|earlier| earlier.knows(file));
        let same = self.earlier.map_or(Ok(None), |earlier| earlier.same(file, &pinned, self.copier.control))?;
        let mut came = Came { number: file.number, reused: false, known: None };
        let mut from = pinned.clone();
        if let Some((ours, known)) = same {
            (came.reused, came.known) = (link(&ours, &target)?, known);
            if is_known {
                from = ours;
            }
        }
        if !came.reused {
            let copied = self.copy(file, &from, &target, unsynced)?;
            // A file of the earlier backup that cannot be linked was copied: its content must be unchanged.
            if is_known && came.known.is_some_and(|known| known.sum != copied.sum) {
                return Err(Error::new(
                    Kind::Damaged,
                    format!("{}: its checksum differs from the recorded one", from.display()),
                ));
            }
            came.known = Some(copied);
        }
        if !is_known {
            disk::remove_file(&pinned)?;
        }
        Ok(came)
    }

    fn copy(&self, file: &LiveFile, from: &Path, target: &Path, unsynced: &mut Batch) -> Result<Known> {
        let source = nofollow::open_regular(from).context(|| format!("cannot open {}", from.display()))?;
        let mut bytes = SummingReader::new(QuietReader::past_cache(&source), file.bytes);
        // Pins keep files on the node's disk that the node has deleted, and must not fill that disk. The reserve is meant for the
        // file system of the backup; the node's may be much smaller.
        let node_has_room = || {
            let free_bytes = disk::free_bytes(self.pins)?.1;
            disk::require_room(self.pins, self.copier.control.reserve_bytes().min(free_bytes / SOURCE_RESERVE_DIVISOR))
        };
        let copied = copy::copy(self.copier, &mut bytes, file.bytes, target, &node_has_room)?;
        if copied.bytes != file.bytes {
            let (found, said) = (copied.bytes, file.bytes);
            let context = format!("{} has {found} bytes instead of the {said} in its MANIFEST", from.display());
            return Err(Error::new(Kind::Damaged, context));
        }
        unsynced.add(copied)?;
        Ok(Known { sum: bytes.sum(), read_ms: 0 })
    }
}

/// Links a file of an earlier backup; `Ok(false)` if it must be copied: it has too many links, we may not link it, or the file
/// system has no links.
fn link(ours: &Path, to: &Path) -> Result<bool> {
    match disk::link(ours, to) {
        Ok(()) => Ok(true),
        Err(e) if e.raw_os_error().is_some_and(|errno| NO_LINK.contains(&errno)) => Ok(false),
        Err(e) => Err(Error::io(format!("cannot link {}", ours.display()), e)),
    }
}

/// The result of comparing the ends of two files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    Differ,
    /// They are equal, and name the session that wrote them.
    OfOneSession,
    /// They are equal, but do not name a session.
    Alike,
}

impl Ends {
    /// Compares the last bytes of both files. If ours cannot be read, or either is shorter than `bytes`, they differ.
    fn of(ours: &Path, source: &Path, bytes: u64) -> io::Result<Ends> {
        let start = bytes.saturating_sub(TAIL_BYTES);
        let tail = |path: &Path| -> io::Result<Vec<u8>> {
            let mut tail = vec![0; usize::try_from(bytes - start).unwrap_or(0)];
            nofollow::open_regular(path)?.read_exact_at(&mut tail, start)?;
            Ok(tail)
        };
        let names_session = |tail: &[u8]| tail.windows(SESSION_PROPERTY.len()).any(|part| part == SESSION_PROPERTY);
        match (tail(ours), tail(source)) {
            (Ok(ours), Ok(source)) if ours != source => Ok(Ends::Differ),
            (Ok(ours), Ok(_)) => Ok(if names_session(&ours) { Ends::OfOneSession } else { Ends::Alike }),
            (Err(_), _) => Ok(Ends::Differ),
            (_, Err(e)) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(Ends::Differ),
            (_, Err(e)) => Err(e),
        }
    }
}
