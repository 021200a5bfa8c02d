//! Parses the log format of RocksDB's MANIFEST and WAL: no I/O but reading its bytes.
//!
//! Source of the format: RocksDB, `db/log_format.h` and `db/log_reader.cc`. A file is a sequence of blocks of 32 KiB; a record
//! is one fragment or several fragments, and each fragment lies within one block:
//! ```text
//! +---------+--------+------+---------+
//! | crc (4) | len(2) |type 1| payload |   crc: masked CRC-32C of type and payload; numbers little-endian
//! +---------+--------+------+---------+   fewer than 7 bytes left in a block: zeroes, skipped
//! ```
//! Invariants: no input makes this panic; at most one block is in memory, however long a record is.

use std::io::{self, Read};
use std::ops::Range;

/// Size of a block.
const BLOCK_BYTES: usize = 32 * 1024;

/// Size of a fragment's header.
const HEADER_BYTES: usize = 7;

/// Size of the header of a fragment of a reused log: with the number of its log, which its length does not count.
const RECYCLABLE_HEADER_BYTES: usize = 11;

/// How many bytes are summed at most in the search for whole fragments after a torn one: in arbitrary data, the header of a
/// fragment may seem to begin at every byte.
const MAX_SEARCHED_BYTES: usize = 16 * 1024 * 1024;

/// The type of a fragment, as far as we distinguish them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FragmentKind {
    /// A whole record.
    Full,
    /// The first part of a record.
    First,
    /// A middle part of a record.
    Middle,
    /// The last part of a record.
    Last,
    /// Information about the log itself: compression, time stamps, the log before this one, or a type that RocksDB declares
    /// ignorable (from 128 on). Complete by itself.
    Meta,
    /// A fragment of a reused log file: the bytes after it may belong to an older log.
    Recyclable,
}

/// One fragment, and its end in the file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fragment {
    pub(crate) kind: FragmentKind,
    /// The place of its content in the block.
    payload: Range<usize>,
    pub(crate) end: u64,
}

/// Why there is no further fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The file ends after a complete fragment.
    Clean,
    /// The file ends within a fragment, or in zeroes after a record, which were reserved and never written: a killed writer
    /// leaves a file like that. RocksDB takes this for the end of any log.
    Torn,
    /// A fragment is invalid in a way that a killed writer does not cause. RocksDB refuses a MANIFEST with it, and stops
    /// replaying a WAL there.
    Damaged,
}

/// Reads fragments, block by block.
pub(crate) struct Fragments<R> {
    reader: R,
    block: Vec<u8>,
    /// The beginning of the next fragment in the block.
    at: usize,
    /// The beginning of the block in the file.
    block_start: u64,
    /// How many bytes were read of a record that has begun and not ended.
    open_bytes: Option<usize>,
    /// Whether reading has ended at zeroes.
    zeroes: bool,
    /// Whether a part of a record was read.
    has_records: bool,
}

impl<R: Read> Fragments<R> {
    pub(crate) fn new(reader: R) -> Fragments<R> {
        Fragments::from(reader, 0)
    }

    /// Continues at `position`, the beginning of a fragment; the reader must be positioned at [`block_of`] of it.
    fn from(reader: R, position: u64) -> Fragments<R> {
        let block_start = block_of(position);
        // The first read appends to the empty block that we hold now, so it begins at `block_start`.
        let at = (position - block_start) as usize;
        let has_records = position > 0;
        Fragments { reader, block: Vec::new(), at, block_start, open_bytes: None, zeroes: false, has_records }
    }

    /// The next fragment, or why there is none. After an end there is nothing more to read.
    pub(crate) fn next(&mut self) -> io::Result<Result<Fragment, End>> {
        if self.block.is_empty() {
            self.read_block()?;
        }
        if self.at + HEADER_BYTES > BLOCK_BYTES {
            self.read_block()?;
            self.at = 0;
        }
        let rest = &self.block[self.at.min(self.block.len())..];
        if rest.is_empty() {
            return Ok(Err(End::Clean));
        }
        if rest.len() < HEADER_BYTES {
            return Ok(Err(End::Torn));
        }
        let (length, kind) = (usize::from(u16::from_le_bytes([rest[4], rest[5]])), rest[6]);
        if kind == 0 && length == 0 {
            // Space that was reserved and never written. Data after it, or half a record before it, is damage.
            self.zeroes = rest.iter().all(|byte| *byte == 0) && !self.more_follows()?;
            return Ok(Err(if self.zeroes && self.open_bytes.is_none() { End::Torn } else { End::Damaged }));
        }
        if is_of_reused_log(rest, length, kind, self.has_records) {
            // The bytes after it are not read: they may belong to an older log.
            self.at = self.block.len();
            let end = self.block_start + self.at as u64;
            return Ok(Ok(Fragment { kind: FragmentKind::Recyclable, payload: 0..0, end }));
        }
        let end = self.at + HEADER_BYTES + length;
        if end > self.block.len() {
            // A killed writer leaves a file that ends here. If the block is whole, or fragments follow, the length is wrong.
            let torn = self.block.len() < BLOCK_BYTES && !holds_fragment(&rest[1..]);
            return Ok(Err(if torn { End::Torn } else { End::Damaged }));
        }
        let stored = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]);
        if stored != masked_crc(&rest[HEADER_BYTES - 1..HEADER_BYTES + length]) {
            return Ok(Err(End::Damaged));
        }
        let Some(kind) = self.follow(kind, length) else { return Ok(Err(End::Damaged)) };
        self.has_records |= kind != FragmentKind::Meta;
        let start = self.at + HEADER_BYTES;
        self.at = end;
        Ok(Ok(Fragment { kind, payload: start..end, end: self.block_start + end as u64 }))
    }

    /// Notes a fragment of this type; `None` if there is no such type, or if it cannot follow the fragments before it.
    fn follow(&mut self, kind: u8, length: usize) -> Option<FragmentKind> {
        // Old versions wrote an empty first part at the end of a block and began the record again in the next block.
        let between = self.open_bytes.unwrap_or(0) == 0;
        let (kind, open_bytes) = match (kind, self.open_bytes) {
            (1, _) if between => (FragmentKind::Full, None),
            (2, _) if between => (FragmentKind::First, Some(length)),
            (3, Some(before)) => (FragmentKind::Middle, Some(before.saturating_add(length))),
            (4, Some(_)) => (FragmentKind::Last, None),
            (9 | 10 | 128.., None) => (FragmentKind::Meta, None),
            _ => return None,
        };
        self.open_bytes = open_bytes;
        Some(kind)
    }

    /// Whether the file has anything but zeroes after the current block. Only called at the end of reading.
    fn more_follows(&mut self) -> io::Result<bool> {
        if self.block.len() < BLOCK_BYTES {
            return Ok(false);
        }
        let mut buffer = vec![0; BLOCK_BYTES];
        loop {
            match self.reader.read(&mut buffer)? {
                0 => return Ok(false),
                count if buffer[..count].iter().any(|byte| *byte != 0) => return Ok(true),
                _ => {}
            }
        }
    }

    fn read_block(&mut self) -> io::Result<()> {
        self.block_start += self.block.len() as u64;
        self.block.clear();
        (&mut self.reader).take(BLOCK_BYTES as u64).read_to_end(&mut self.block).map(|_| ())
    }
}

/// Whether these bytes begin with a fragment of a reused log. At the beginning of a log its type decides: its checksum may be half
/// overwritten. After a record of another kind the checksum must be right, too: any bytes may follow one that is torn.
fn is_of_reused_log(rest: &[u8], length: usize, kind: u8, has_records: bool) -> bool {
    let is_its_type = matches!(kind, 5..=8 | 11 | 131);
    let summed = || {
        let summed = rest.get(HEADER_BYTES - 1..RECYCLABLE_HEADER_BYTES + length);
        summed.is_some_and(|summed| rest[..4] == masked_crc(summed).to_le_bytes())
    };
    is_its_type && (!has_records || summed())
}

/// Whether a whole fragment begins anywhere in the rest of a block.
fn holds_fragment(rest: &[u8]) -> bool {
    let mut left_bytes = MAX_SEARCHED_BYTES;
    rest.windows(HEADER_BYTES).enumerate().any(|(at, header)| {
        let length = usize::from(u16::from_le_bytes([header[4], header[5]]));
        let end = at + HEADER_BYTES + length;
        if !matches!(header[6], 1..=4) || end > rest.len() || length > left_bytes {
            return false;
        }
        left_bytes -= length;
        let stored = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        stored == masked_crc(&rest[at + HEADER_BYTES - 1..end])
    })
}

/// RocksDB stores checksums masked, because a checksum of data that contains checksums would be weak.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The extent of a log, up to its last complete record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// The end of the last complete record.
    pub(crate) complete_bytes: u64,
    /// Whether there is any part of a record, not counting information about the log itself.
    pub(crate) has_records: bool,
    /// Whether any record is of a type that only reused log files have.
    pub(crate) recyclable: bool,
    /// Whether reading has ended at zeroes.
    pub(crate) zeroes: bool,
    pub(crate) end: End,
}

/// Measures a WAL.
pub(crate) fn measure(reader: impl Read) -> io::Result<Extent> {
    let mut fragments = Fragments::new(reader);
    let mut extent =
        Extent { complete_bytes: 0, has_records: false, recyclable: false, zeroes: false, end: End::Clean };
    loop {
        match fragments.next()? {
            Ok(fragment) => {
                extent.has_records |= fragment.kind != FragmentKind::Meta;
                match fragment.kind {
                    FragmentKind::Full | FragmentKind::Last | FragmentKind::Meta => {
                        extent.complete_bytes = fragment.end;
                    }
                    FragmentKind::First | FragmentKind::Middle => {}
                    FragmentKind::Recyclable => return Ok(Extent { recyclable: true, ..extent }),
                }
            }
            Err(end) => return Ok(Extent { end, zeroes: fragments.zeroes, ..extent }),
        }
    }
}

/// The beginning of the block that contains this offset of a log: to continue at the offset, the log is read from there.
pub(crate) fn block_of(position: u64) -> u64 {
    position - position % BLOCK_BYTES as u64
}

/// Reads a log record by record.
pub(crate) struct Records<R> {
    fragments: Fragments<R>,
    /// The end of the last complete record.
    complete_bytes: u64,
}

impl<R: Read> Records<R> {
    /// Begins at `position`, the beginning of a record; the reader must be positioned at [`block_of`] of it.
    pub(crate) fn from(reader: R, position: u64) -> Records<R> {
        Records { fragments: Fragments::from(reader, position), complete_bytes: position }
    }

    /// The next record, or why there is none.
    pub(crate) fn next(&mut self) -> io::Result<Result<Record<'_, R>, End>> {
        loop {
            let fragment = match self.fragments.next()? {
                Ok(fragment) => fragment,
                Err(end) => return Ok(Err(end)),
            };
            match fragment.kind {
                FragmentKind::Full | FragmentKind::First => {
                    return Ok(Ok(Record { log: self, rest: fragment.payload, part: fragment.kind, stopped: None }));
                }
                FragmentKind::Meta => {}
                FragmentKind::Middle | FragmentKind::Last | FragmentKind::Recyclable => return Ok(Err(End::Damaged)),
            }
        }
    }

    /// The end of the last record that was read to its end.
    pub(crate) fn complete_bytes(&self) -> u64 {
        self.complete_bytes
    }
}

/// A record that is being read. It may turn out to be incomplete: its content counts only if [`Record::finish`] says that it is
/// complete.
pub(crate) struct Record<'a, R> {
    log: &'a mut Records<R>,
    /// The rest of the fragment, in the block.
    rest: Range<usize>,
    /// Which part of the record the fragment is.
    part: FragmentKind,
    /// Why reading has stopped before the end of the record.
    stopped: Option<io::Result<End>>,
}

impl<R: Read> Record<'_, R> {
    /// Whether there is nothing left to read.
    pub(crate) fn is_empty(&mut self) -> bool {
        while self.rest.is_empty() {
            if self.stopped.is_some() || matches!(self.part, FragmentKind::Full | FragmentKind::Last) {
                return true;
            }
            match self.log.fragments.next() {
                Ok(Ok(next)) if matches!(next.kind, FragmentKind::Middle | FragmentKind::Last) => {
                    (self.rest, self.part) = (next.payload, next.kind);
                }
                Ok(Ok(_)) => self.stopped = Some(Ok(End::Damaged)),
                Ok(Err(end)) => self.stopped = Some(Ok(end)),
                Err(e) => self.stopped = Some(Err(e)),
            }
        }
        false
    }

    /// The next byte; `None` at the end.
    pub(crate) fn byte(&mut self) -> Option<u8> {
        if self.is_empty() {
            return None;
        }
        self.rest.next().map(|at| self.log.fragments.block[at])
    }

    /// Skips `count` bytes; `None` if the record has fewer.
    pub(crate) fn skip(&mut self, mut count: usize) -> Option<()> {
        while count > 0 {
            if self.is_empty() {
                return None;
            }
            let now = count.min(self.rest.len());
            self.rest.start += now;
            count -= now;
        }
        Some(())
    }

    /// Goes to the end of the record: `None` if it is complete, otherwise the reason why it is not.
    pub(crate) fn finish(mut self) -> io::Result<Option<End>> {
        while !self.is_empty() {
            self.rest.start = self.rest.end;
        }
        if self.stopped.is_none() {
            self.log.complete_bytes = self.log.fragments.block_start + self.log.fragments.at as u64;
        }
        self.stopped.transpose()
    }
}
