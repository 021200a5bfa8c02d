//! Reads delta pairs: a database as a base, to which several backups have hard links, and a WAL of ours beside each link.
//!
//! ```text
//! X.sqlite       the base: a whole database that an earlier backup wrote; read only, never changed
//! X.sqlite-wal   a WAL with one transaction: one frame for each page that differs from the base, and always page 1; the numbers of
//!                the pages ascend, the last frame commits; the first salt is the identity of the base
//! X.sqlite-shm/  an empty directory, read only, the guard
//! ```
//! SQLite opens such a pair by itself (3.22 and newer, which read a WAL without an index that they may write; tried are 3.24 to 3.45, and
//! 3.13 and 3.17, which refuse) and reads the right content: the newest version of each page is in the WAL.
//! Instead of the file with the index of the WAL it finds a directory, into which it cannot write, so it makes the index in memory and
//! changes nothing. Without the guard, the last connection of a user that may write would copy the WAL into the base, under all other
//! backups. Without the WAL the base is an older commit, which a node brings forward.
//!
//! The database that the two files are together, the fold, is the base with each page of the WAL over it, cut or extended to the number
//! of pages in the last frame. SQLite notices no damage of either file, unless it reads a page in which it finds no sense: it takes a
//! WAL for one that ends before the first frame with a wrong checksum. So all of this is checked here.
//!
//! Invariants: nothing is written. A fold fails unless each frame is the one that was written.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::capture::sqlite::wal::{HEADER_BYTES, Header};
use crate::control::Control;
use crate::database_files::{shm_of, wal_of};
use crate::disk::nofollow;
use crate::disk::piece_sums::PieceSums;
use crate::disk::quiet_reader::{QuietReader, WINDOW_BYTES};
use crate::disk::sum::SummingReader;
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::record::{PactPart, Pair};

/// After how many frames the job is said to make progress.
const FRAMES_A_STEP: u64 = 1024;

/// The largest frame.
const MAX_FRAME_BYTES: u64 = 24 + 65536;

/// What is beside a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beside {
    /// Nothing that belongs to a pair.
    Nothing,
    /// A WAL.
    Wal,
    /// A guard without a WAL: the database alone is not what was backed up.
    GuardAlone,
}

impl Beside {
    /// Looks at a finished copy.
    pub(crate) fn of(copy: &Path) -> io::Result<Beside> {
        let has_wal = nofollow::look(&wal_of(copy))?.is_some_and(|meta| meta.is_file() && meta.len() > 0);
        Ok(match has_wal {
            true => Beside::Wal,
            false if nofollow::is_directory(&shm_of(copy))? => Beside::GuardAlone,
            false => Beside::Nothing,
        })
    }
}

/// The checksums of a frame, as the record has them.
pub(crate) fn chain_text(chain: [u32; 2]) -> String {
    format!("{:08x}{:08x}", chain[0], chain[1])
}

/// The number by which a WAL knows its base: the first half of the salts.
pub(crate) fn first_salt(base: &PieceSums) -> [u8; 4] {
    base.identity().to_be_bytes()
}

/// Why a pair cannot be read as it was written, in words; or an error of the disk.
#[derive(Debug)]
pub(crate) enum Unread {
    Fault(String),
    Failed(io::Error),
}

impl From<io::Error> for Unread {
    fn from(e: io::Error) -> Unread {
        Unread::Failed(e)
    }
}

impl Unread {
    /// The fault, or the error with this context.
    pub(crate) fn fault(self, failed: &dyn Fn() -> String) -> Result<String> {
        match self {
            Unread::Fault(why) => Ok(why),
            Unread::Failed(e) => Err(Error::io(failed(), e)),
        }
    }
}

type Checked<T> = std::result::Result<T, Unread>;

fn fault<T>(why: impl Into<String>) -> Checked<T> {
    Err(Unread::Fault(why.into()))
}

/// Reads the frames of a WAL of ours in order, and checks each.
struct Frames<R> {
    from: BufReader<R>,
    header: Header,
    chain: [u32; 2],
    /// The frame that was read last.
    frame: Vec<u8>,
    count: u64,
    last_page: u32,
    /// The number of pages in the frame that commits, once it was read: no other follows.
    pages_count: Option<u32>,
}

impl<R: Read> Frames<R> {
    /// Begins with the header.
    fn open(from: R) -> Checked<Frames<R>> {
        let mut from = BufReader::with_capacity(WINDOW_BYTES, from);
        let mut bytes = [0; HEADER_BYTES];
        match from.read_exact(&mut bytes) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return fault("it is cut off within its header"),
            read => read?,
        }
        let Some(header) = Header::parse(&bytes) else { return fault("its header is not that of a WAL") };
        let (chain, frame) = (header.chain(), vec![0; header.frame_bytes()]);
        Ok(Frames { from, header, chain, frame, count: 0, last_page: 0, pages_count: None })
    }

    /// Reads the next frame; returns its page, or `None` behind the last one.
    fn next(&mut self) -> Checked<Option<u32>> {
        if self.pages_count.is_some() {
            return Ok(None);
        }
        let number = self.count + 1;
        match self.from.read_exact(&mut self.frame) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                return fault(format!("it is cut off within frame {number}"));
            }
            read => read?,
        }
        let page = Header::page_number(&self.frame);
        let is_next = page > self.last_page && (number > 1 || page == 1);
        if !is_next || !self.header.is_salted(&self.frame) || !self.header.continues(self.chain, &self.frame) {
            return fault(format!("frame {number} is damaged, or not the one that was written"));
        }
        (self.chain, self.count, self.last_page) = (Header::chain_in(&self.frame), number, page);
        if Header::commits(&self.frame) {
            self.pages_count = Some(Header::pages_count(&self.frame));
        }
        Ok(Some(page))
    }

    /// Whether all frames were read, and they are those of the record.
    fn is_of(&self, pair: &Pair) -> bool {
        (self.count, self.pages_count, chain_text(self.chain))
            == (pair.frames_count, Some(pair.pages_count), pair.last_checksum.clone())
    }
}

/// Reads a WAL that was just written and synced, and returns what the record says of it, with its checksum.
///
/// # Errors
/// [`Kind::Io`] if it is not what was written: the disk does not keep what it gets.
pub(crate) fn read_again(database: &Path, pair: Pair, control: &Control) -> Result<Pair> {
    let path = wal_of(database);
    let failed = || format!("cannot read {}", path.display());
    let file = nofollow::open_regular(&path).context(failed)?;
    let bytes = file.metadata().context(failed)?.len();
    let mut from = SummingReader::new(QuietReader::through_cache(file.as_fd()), bytes);
    let read = read_whole(&mut from, bytes, &pair, control);
    control.check()?;
    if let Err(unread) = read {
        let context = format!("{} is not what was written to it: {}", path.display(), unread.fault(&failed)?);
        return Err(Error::new(Kind::Io, context));
    }
    Ok(Pair { wal_blake2b: from.sum().to_string(), ..pair })
}

fn read_whole(from: impl Read, bytes: u64, pair: &Pair, control: &Control) -> Checked<()> {
    let mut frames = Frames::open(from)?;
    while frames.next()?.is_some() {
        if frames.count.is_multiple_of(FRAMES_A_STEP) {
            control.step();
        }
    }
    if bytes == pair.wal_bytes && frames.is_of(pair) { Ok(()) } else { fault("it is another one") }
}

/// Compares the WAL of a pair with the record, without reading all of it: its size, its header, its first and its last frame. `base` are
/// the sums of the base. Returns what is wrong.
pub(crate) fn glance(database: &Path, part: &PactPart, pair: &Pair, base: &PieceSums) -> Result<Option<String>> {
    let path = wal_of(database);
    let failed = || format!("cannot read {}", path.display());
    let file = match nofollow::open_regular(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Some("it is missing".to_owned())),
        Err(e) if nofollow::is_unfit(&e) => return Ok(Some(e.to_string())),
        opened => opened.context(failed)?,
    };
    match glance_at(&file, part, pair, base) {
        Ok(()) => Ok(None),
        Err(unread) => unread.fault(&failed).map(Some),
    }
}

fn glance_at(file: &File, part: &PactPart, pair: &Pair, base: &PieceSums) -> Checked<()> {
    let bytes = file.metadata()?.len();
    if bytes != pair.wal_bytes {
        return fault(format!("it has {bytes} bytes instead of the {} in the record", pair.wal_bytes));
    }
    // Exactly what is read, so that the reading is small.
    let mut frames =
        Frames::open(QuietReader::through_cache(file.as_fd()).take(HEADER_BYTES as u64 + MAX_FRAME_BYTES))?;
    let header = frames.header.clone();
    let last = pair.frames_count.max(1) - 1;
    if header.extent_bytes(pair.frames_count) != bytes
        || u64::from(pair.pages_count).saturating_mul(header.page_bytes() as u64) != part.bytes
    {
        return fault("its header is that of another WAL");
    }
    if header.salts()[..4] != first_salt(base) {
        return fault("it belongs to another base");
    }
    frames.next()?;
    let mut chain = frames.header.chain();
    if last > 0 {
        let mut before = vec![0; header.frame_bytes()];
        file.read_exact_at(&mut before, header.extent_bytes(last - 1))?;
        chain = Header::chain_in(&before);
    }
    let mut frame = vec![0; header.frame_bytes()];
    file.read_exact_at(&mut frame, header.extent_bytes(last))?;
    let is_last = header.is_salted(&frame)
        && header.continues(chain, &frame)
        && Header::pages_count(&frame) == pair.pages_count
        && chain_text(Header::chain_in(&frame)) == pair.last_checksum;
    if is_last { Ok(()) } else { fault("its last frame is damaged, or that of another WAL") }
}

/// The open files of a pair.
#[derive(Debug)]
pub(crate) struct Files {
    base: File,
    wal: File,
}

impl Files {
    pub(crate) fn open(database: &Path) -> Result<Files> {
        let open = |path: &Path| nofollow::open_regular(path).context(|| format!("cannot open {}", path.display()));
        Ok(Files { base: open(database)?, wal: open(&wal_of(database))? })
    }
}

/// Reads the database that a pair is.
pub(crate) struct Fold<'a> {
    base: QuietReader<'a>,
    /// Whether the base has ended: pages behind its end are in the WAL.
    has_ended: bool,
    frames: Frames<QuietReader<'a>>,
    /// The page of the frame that was read last, if it is not applied yet.
    next: Option<u32>,
    pair: &'a Pair,
    at: u64,
    bytes: u64,
    fault: Option<String>,
}

impl<'a> Fold<'a> {
    /// Begins to read it.
    pub(crate) fn begin(files: &'a Files, part: &PactPart, pair: &'a Pair) -> Checked<Fold<'a>> {
        let (base, wal) = (QuietReader::past_cache(&files.base), QuietReader::through_cache(files.wal.as_fd()));
        let [base_bytes, wal_bytes] = [files.base.metadata()?.len(), files.wal.metadata()?.len()];
        if (base_bytes, wal_bytes) != (pair.base_bytes, pair.wal_bytes) {
            return fault(format!(
                "its base has {base_bytes} and its WAL {wal_bytes} bytes instead of {} and {}",
                pair.base_bytes, pair.wal_bytes
            ));
        }
        let mut frames = Frames::open(wal)?;
        if u64::from(pair.pages_count).saturating_mul(frames.header.page_bytes() as u64) != part.bytes {
            return fault("its WAL is another one");
        }
        let next = frames.next()?;
        Ok(Fold { base, has_ended: false, frames, next, pair, at: 0, bytes: part.bytes, fault: None })
    }

    /// What is wrong with the pair, as far as it was read.
    pub(crate) fn fault(&self) -> Option<String> {
        let is_other = self.at == self.bytes && (self.next.is_some() || !self.frames.is_of(self.pair));
        self.fault.clone().or_else(|| is_other.then(|| "its WAL is another one".to_owned()))
    }

    /// Reads the base until the buffer is full; behind its end there are zeroes.
    fn read_base(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let mut count = 0;
        while count < buffer.len() && !self.has_ended {
            match self.base.read(&mut buffer[count..]) {
                Ok(0) => self.has_ended = true,
                Ok(more) => count += more,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        buffer[count..].fill(0);
        Ok(())
    }

    /// Puts the pages of the WAL over the buffer, which begins at `self.at`.
    fn overlay(&mut self, buffer: &mut [u8]) -> Checked<()> {
        let page_bytes = self.frames.header.page_bytes() as u64;
        let end = self.at + buffer.len() as u64;
        while let Some(page) = self.next {
            let start = u64::from(page - 1) * page_bytes;
            if start >= end {
                break;
            }
            // A page may begin before the buffer, and end behind it.
            let (from, to) = (start.max(self.at), (start + page_bytes).min(end));
            let of_page = &Header::page(&self.frames.frame)[(from - start) as usize..(to - start) as usize];
            buffer[(from - self.at) as usize..(to - self.at) as usize].copy_from_slice(of_page);
            if start + page_bytes > end {
                break;
            }
            self.next = self.frames.next()?;
        }
        Ok(())
    }
}

impl Read for Fold<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.bytes - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let buffer = &mut buffer[..wanted];
        self.read_base(buffer)?;
        match self.overlay(buffer) {
            Ok(()) => {}
            Err(Unread::Failed(e)) => return Err(e),
            Err(Unread::Fault(why)) => {
                self.fault = Some(why.clone());
                return Err(io::Error::other(why));
            }
        }
        self.at += wanted as u64;
        Ok(wanted)
    }
}
