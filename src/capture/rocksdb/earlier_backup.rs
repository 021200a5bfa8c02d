//! The SSTs of an earlier backup on the same file system: what it has already need not be copied again.
//!
//! Used if links to the node's own files are impossible, because the backup directory is on another file system. A file number
//! is no identity: after a restore the node uses numbers again. So a file is linked from the earlier backup only if its name,
//! size and sequence numbers are the same in both MANIFESTs, and one of these proofs holds, the first that can be had:
//!
//! - **Certain**, without a look at the node's file: both MANIFESTs have the same unique id (field 12 of a new file, from
//!   RocksDB 7.3 on). It is a hash of the database's identity, the session that wrote the file and its number then
//!   (`table/unique_id.cc`); a session is 103 random bits, drawn at each open and for each `SstFileWriter`. One thing changes
//!   under a unique id: an ingested file gets its global sequence number written over the 8 bytes of the property
//!   `rocksdb.external_sst_file.global_seqno` (`ExternalSstFileIngestionJob::AssignGlobalSeqnoForIngestedFile`, with
//!   `write_global_seqno`: the default up to RocksDB 6, deprecated since, there to 11.8). That number is in the MANIFEST, too,
//!   as the smallest and the largest of the file, and RocksDB refuses a file in which the two disagree
//!   (`GetGlobalSequenceNumber`). So other sequence numbers are another file; and a file with one single number above 0, as
//!   an ingested one has, is not certain: its end must be compared, which costs two reads of 8 KiB. Few files are like that.
//!   Nothing else of an SST is written again: its creation times are set before its name is in a MANIFEST.
//! - **Equal ends**: a MANIFEST is too old for unique ids, but both files end alike. There RocksDB writes the properties: the
//!   session (`rocksdb.creating.session.identity`, from 6.15 on), behind it, sorted by name, the global sequence number and the
//!   file's original number. Ends without a session prove nothing: RocksDB before 6.15, other table formats.
//! - **Equal content**, for all the rest: blob files, whose footer has a count and no identity (`BlobLogFooter`, 32 bytes; each
//!   checksum in them stands before the value that it is of), and files without ids. The node's file is read once, quietly, and
//!   its BLAKE2b compared with the one that is known of the earlier backup's; without one that is read, too. It costs the read
//!   of a copy, without its writing and without its space; a file that differs is then read once more to be copied.
//!
//! What is known of a reused file, its checksum and when it was last read, goes with it (see `reread`); a file that is copied is
//! summed on the way.
//!
//! Invariant: the earlier backup is held against deleting while this lives; its files are linked, never changed.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::capture::in_use::InUse;
use crate::capture::rocksdb::live_files;
use crate::capture::rocksdb::version_edit::LiveFile;
use crate::control::Control;
use crate::disk::copy;
use crate::disk::nofollow;
use crate::disk::off_heap;
use crate::disk::quiet_reader::QuietReader;
use crate::disk::sum::{self, Known, SummingReader};
use crate::disk::unsynced::Batch;
use crate::disk::{self, Owner};
use crate::error::{Error, IoContext, Kind, Result};

/// How much of the ends is compared: properties, index of the meta blocks and footer take some KiB.
const TAIL_BYTES: u64 = 8 * 1024;

/// The property that tells who wrote an SST, without what it has in common with the property before it: keys may be
/// abbreviated so.
const SESSION_PROPERTY: &[u8] = b"session.identity";

/// Of the node's own file system, this part must stay free while deleted files are held there.
const SOURCE_RESERVE_DIVISOR: u64 = 20;

/// What a link is refused with where another way must be found.
const NO_LINK: [i32; 6] = [libc::EMLINK, libc::EPERM, libc::EACCES, libc::EXDEV, libc::ENOSYS, libc::EOPNOTSUPP];

/// How it is decided whether a file of the earlier backup is the node's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proof {
    /// It is.
    Certain,
    /// By the ends of both files.
    Ends,
    /// By the content of both files.
    Content,
}

/// An earlier backup's RocksDB.
#[derive(Debug)]
pub(crate) struct Earlier {
    directory: PathBuf,
    /// What its MANIFEST names and is really there, in that size: somebody may have removed a file, or cut it off. Sorted by
    /// number.
    files: Vec<LiveFile>,
    /// What is known of each of them.
    known: Vec<Option<Known>>,
    /// The numbers of those whose content must be compared, whatever their identity.
    doubted: BTreeSet<u64>,
    /// The numbers of those that must not be used.
    damaged: BTreeSet<u64>,
    _in_use: Option<InUse>,
}

impl Earlier {
    /// The RocksDB in `directory` of a backup that `in_use` holds; `None` where its MANIFEST cannot be read. What lies in a backup
    /// that is being made is held by its job.
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

    /// Where its files are.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its files, with what is known of them.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&LiveFile, Option<Known>)> {
        self.files.iter().zip(self.known.iter().copied())
    }

    /// Notes what is known of a file; one that it has not is none of its.
    pub(crate) fn know(&mut self, number: u64, known: Known) {
        if let Ok(at) = self.files.binary_search_by_key(&number, |file| file.number) {
            self.known[at] = Some(known);
        }
    }

    /// Notes that every file of which something is known was read then.
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

    /// The place of its file of the same name, size and sequence numbers, and how it is decided whether it is the same one.
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

    /// Whether it has `file` for certain. The source need not be looked at then.
    pub(crate) fn knows(&self, file: &LiveFile) -> bool {
        matches!(self.find(file), Some((_, Proof::Certain)))
    }

    /// The file of this backup that is the node's `file`, which is at `pinned`, and what is known of it: proven in one of the
    /// ways above.
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

    /// Bytes of live files that need not be copied, as far as the MANIFESTs tell.
    pub(crate) fn saved_bytes(&self, live: &[LiveFile]) -> u64 {
        live.iter().filter(|file| self.find(file).is_some()).map(|file| file.bytes).sum()
    }

    /// The numbers of its files that `live` seems to have, too, sorted.
    pub(crate) fn shared(&self, live: &[LiveFile]) -> Vec<u64> {
        live.iter().filter(|file| self.find(file).is_some()).map(|file| file.number).collect()
    }
}

/// Whether one sequence number is that of all its keys, as in a file that was ingested, and was perhaps written into it.
fn may_be_ingested(file: &LiveFile) -> bool {
    file.sequences.0 == file.sequences.1 && file.sequences.1 > 0
}

/// What is known of `ours`, if the node's file has the same content. One of ours that cannot be read is another one.
fn same_content(ours: &Path, known: Option<Known>, pinned: &Path, control: &Control) -> Result<Option<Known>> {
    let known = match known {
        Some(known) => known,
        None => match sum::of(ours, true, control) {
            Ok(sum) => Known { sum, read_ms: 0 },
            Err(e) if e.kind() == Kind::Io => return Ok(None),
            Err(e) => return Err(e),
        },
    };
    Ok((sum::of(pinned, true, control)? == known.sum).then_some(known))
}

/// How a live file came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Came {
    pub(crate) number: u64,
    /// From an earlier backup, by a link.
    pub(crate) reused: bool,
    /// When it was read is only said of one that is reused: the others were read by this job.
    pub(crate) known: Option<Known>,
}

/// How the live files came, by number.
#[derive(Debug, Default)]
pub(crate) struct Brought(Vec<Came>);

impl Brought {
    /// How this file came.
    pub(crate) fn find(&self, number: u64) -> Option<&Came> {
        let at = self.0.binary_search_by_key(&number, |came| came.number).ok()?;
        Some(&self.0[at])
    }

    /// Makes it what came by this job and by the capture `before`, from whose files it took some: what that had copied was not
    /// reused.
    pub(crate) fn count_from(&mut self, before: &Brought) {
        for came in &mut self.0 {
            came.reused &= before.find(came.number).is_some_and(|before| before.reused);
        }
    }

    /// What is known of each file.
    pub(crate) fn known(&self, now_ms: u64) -> impl Iterator<Item = (u64, Known)> {
        let known = move |came: &Came| {
            let known = came.known?;
            Some((came.number, if came.reused { known } else { Known { read_ms: now_ms, ..known } }))
        };
        self.0.iter().filter_map(known)
    }

    /// The numbers of those that are links to an earlier backup's.
    pub(crate) fn reused(&self) -> impl Iterator<Item = u64> {
        self.0.iter().filter(|came| came.reused).map(|came| came.number)
    }
}

/// How files are brought to a backup.
pub(crate) struct Bringing<'a> {
    /// Links to the node's files, each dropped when it was used. What the earlier backup knows needs none.
    pub(crate) pins: &'a Path,
    /// Where they are brought.
    pub(crate) to: &'a Path,
    pub(crate) earlier: Option<&'a Earlier>,
    pub(crate) owner: Option<Owner>,
    pub(crate) control: &'a Control,
}

impl Bringing<'_> {
    /// Brings every live file, which are sorted by number.
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
        let same = self.earlier.map_or(Ok(None), |earlier| earlier.same(file, &pinned, self.control))?;
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
            // A file of the earlier backup that cannot be linked was copied: it must be what it was.
            if is_known && came.known.is_some_and(|known| known.sum != copied.sum) {
                return Err(Error::new(Kind::Damaged, format!("{} is not what was backed up", from.display())));
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
        // Pins hold what the node has deleted: its disk must not run full because of us. The reserve was made for the file
        // system of the backup; the node's may be far smaller.
        let node_has_room = || {
            let free_bytes = disk::free_bytes(self.pins)?.1;
            disk::require_room(self.pins, self.control.reserve_bytes().min(free_bytes / SOURCE_RESERVE_DIVISOR))
        };
        let copied = copy::copy(&mut bytes, file.bytes, target, self.owner, self.control, &node_has_room)?;
        if copied.bytes != file.bytes {
            let (found, said) = (copied.bytes, file.bytes);
            let context = format!("{} has {found} bytes but the MANIFEST says {said}", from.display());
            return Err(Error::new(Kind::Damaged, context));
        }
        unsynced.add(copied)?;
        Ok(Known { sum: bytes.sum(), read_ms: 0 })
    }
}

/// Links a file of an earlier backup; `Ok(false)` if it must be copied: too many links, no right to link, a file system that has
/// none.
fn link(ours: &Path, to: &Path) -> Result<bool> {
    match disk::link(ours, to) {
        Ok(()) => Ok(true),
        Err(e) if e.raw_os_error().is_some_and(|errno| NO_LINK.contains(&errno)) => Ok(false),
        Err(e) => Err(Error::io(format!("cannot link {}", ours.display()), e)),
    }
}

/// What the ends of two files tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    Differ,
    /// They are the same, and name the session that wrote them.
    OfOneSession,
    /// They are the same, and say nothing of where they are from.
    Alike,
}

impl Ends {
    /// One of ours that cannot be read, or is shorter, is no use.
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
