//! Parses SQLite's formats of the WAL and of the WAL index, from bytes, and writes WALs: no I/O.
//!
//! Source of the WAL's format: sqlite.org/fileformat2.html, section 4. Numbers are big-endian; the checksums run over words
//! in the byte order that the magic number names, from the header through all frames:
//! ```text
//! header 32: magic 4 | version 4 | page size 4 | checkpoint 4 | salts 8 | checksums 8
//! frame 24 + page: page number 4 | pages of the database if this commits, else 0: 4 | salts 8 | checksums 8
//! ```
//! A frame counts if its salts are the header's and its checksums continue the chain.
//!
//! The WAL index is the `-shm`, in the machine's byte order (sqlite.org/walformat.html, section 2): two copies of its header,
//! of which SQLite writes the second first, then the progress of WAL checkpoints:
//! ```text
//! header 48: version 4 | - 4 | change 4 | initialised 1 | byte order 1 | page size 2 | frames (mxFrame) 4 | pages 4 |
//!            checksums of the last frame 8 | salts 8, as in the WAL | checksums 8
//! 96: frames in the database (nBackfill) 4
//! ```
//! Invariant: no input panics.

/// Size of the header.
pub(crate) const HEADER_BYTES: usize = 32;

/// How much of the WAL index [`Index::parse`] reads: both headers, and the number after them.
pub(crate) const INDEX_BYTES: usize = 100;

/// Size of one header of the WAL index, and of the part that its checksums cover.
const INDEX_HEADER_BYTES: usize = 48;
const INDEX_SUMMED_BYTES: usize = 40;

/// Size of a frame's header.
const FRAME_HEADER_BYTES: usize = 24;

/// The place of the salts in the header.
const SALTS: std::ops::Range<usize> = 16..24;

/// How many places of frames are noted at most: 4 MiB of memory. A WAL with more is copied as a whole.
const MAX_PLACES: usize = 256 * 1024;

/// Distinguishes one WAL from the next one in the same file.
pub(crate) type Salts = [u8; 8];

/// The header of a WAL, with a correct checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    bytes: [u8; HEADER_BYTES],
    words: Words,
    page_bytes: usize,
}

/// The version of the format.
const FORMAT: u32 = 3_007_000;

/// The magic number of a WAL whose checksums run over little-endian words.
const MAGIC: u32 = 0x377f_0682;

impl Header {
    /// The header of a new WAL.
    pub(crate) fn new(page_bytes: u32, salts: Salts) -> Option<Header> {
        let mut bytes = [0; HEADER_BYTES];
        for (at, number) in [MAGIC, FORMAT, page_bytes].into_iter().enumerate() {
            bytes[at * 4..at * 4 + 4].copy_from_slice(&number.to_be_bytes());
        }
        bytes[SALTS].copy_from_slice(&salts);
        let sums = checksum(Words::LittleEndian, [0, 0], &bytes[..24]);
        bytes[24..28].copy_from_slice(&sums[0].to_be_bytes());
        bytes[28..32].copy_from_slice(&sums[1].to_be_bytes());
        Header::parse(&bytes)
    }

    /// Parses a header; `None` if there is none, or its checksum is wrong.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Header> {
        let bytes: [u8; HEADER_BYTES] = bytes.get(..HEADER_BYTES)?.try_into().ok()?;
        let magic = be(&bytes[0..4]);
        let page_bytes = usize::try_from(be(&bytes[8..12])).ok()?;
        let words = if magic & 1 == 1 { Words::BigEndian } else { Words::LittleEndian };
        let sane = magic & !1 == MAGIC && page_bytes.is_power_of_two() && (512..=65536).contains(&page_bytes);
        if !sane || checksum(words, [0, 0], &bytes[..24]) != [be(&bytes[24..28]), be(&bytes[28..32])] {
            return None;
        }
        Some(Header { bytes, words, page_bytes })
    }

    /// The bytes of the header in the file.
    pub(crate) fn bytes(&self) -> &[u8; HEADER_BYTES] {
        &self.bytes
    }

    /// The salts. WALs with different salts have no frame in common.
    pub(crate) fn salts(&self) -> Salts {
        let mut salts = [0; 8];
        salts.copy_from_slice(&self.bytes[SALTS]);
        salts
    }

    /// Size of a frame with its page.
    pub(crate) fn frame_bytes(&self) -> usize {
        FRAME_HEADER_BYTES + self.page_bytes
    }

    /// Size of a file with the header and this many frames.
    pub(crate) fn extent_bytes(&self, frames: u64) -> u64 {
        // The number may be that of a damaged record.
        (HEADER_BYTES as u64).saturating_add(frames.saturating_mul(self.frame_bytes() as u64))
    }

    /// Whether a frame has the salts of this WAL.
    pub(crate) fn is_salted(&self, frame: &[u8]) -> bool {
        frame[8..16] == self.salts()
    }

    /// The checksums that a frame names: those of the WAL up to its end.
    pub(crate) fn chain_in(frame: &[u8]) -> [u32; 2] {
        [be(&frame[16..20]), be(&frame[20..24])]
    }

    /// Whether a frame, with its page, is whole and follows one that names these checksums.
    pub(crate) fn continues(&self, chain: [u32; 2], frame: &[u8]) -> bool {
        let (head, page) = frame.split_at(FRAME_HEADER_BYTES);
        checksum(self.words, checksum(self.words, chain, &head[..8]), page) == Header::chain_in(frame)
    }

    /// Whether a frame commits a transaction.
    pub(crate) fn commits(frame: &[u8]) -> bool {
        be(&frame[4..8]) != 0
    }

    /// The number of the page in a frame.
    pub(crate) fn page_number(frame: &[u8]) -> u32 {
        be(&frame[..4])
    }

    /// The number of pages of the database after a frame that commits; 0 in any other frame.
    pub(crate) fn pages_count(frame: &[u8]) -> u32 {
        be(&frame[4..8])
    }

    /// The page in a frame.
    pub(crate) fn page(frame: &[u8]) -> &[u8] {
        &frame[FRAME_HEADER_BYTES..]
    }

    /// The checksums of the header, which the first frame continues.
    pub(crate) fn chain(&self) -> [u32; 2] {
        [be(&self.bytes[24..28]), be(&self.bytes[28..32])]
    }

    /// Begins to follow the frames; stops after `frames` frames at the latest.
    pub(crate) fn scan(&self, frames: u64) -> Scan {
        Scan {
            header: self.clone(),
            chain: self.chain(),
            frame: Vec::with_capacity(self.frame_bytes()),
            wanted: frames,
            whole: 0,
            committed: 0,
            pages_count: 0,
            places: None,
            ended: frames == 0,
        }
    }

    /// The page in `frame`, the bytes of a frame with its header; `None` if it is not the frame that was at this place when the WAL
    /// was scanned.
    pub(crate) fn page_in<'f>(&self, place: &Place, frame: &'f [u8]) -> Option<&'f [u8]> {
        let (head, page) =
            frame.split_at_checked(FRAME_HEADER_BYTES).filter(|(_, page)| page.len() == self.page_bytes)?;
        let is_same = be(&head[..4]) == place.page && self.is_salted(frame) && self.continues(place.before, frame);
        is_same.then_some(page)
    }

    /// Size of a page.
    pub(crate) fn page_bytes(&self) -> usize {
        self.page_bytes
    }
}

/// Writes a WAL with one transaction, into memory.
#[derive(Debug)]
pub(crate) struct Composer {
    header: Header,
    chain: [u32; 2],
    frames: u64,
    /// The page that is not written yet, because the last one commits; 0 if there is none.
    number: u32,
    page: Vec<u8>,
}

impl Composer {
    /// Begins with the header, which is appended to `to`.
    pub(crate) fn begin(header: Header, to: &mut Vec<u8>) -> Composer {
        to.extend_from_slice(header.bytes());
        Composer { chain: header.chain(), header, frames: 0, number: 0, page: Vec::new() }
    }

    /// Takes the next page, and appends the frame of the one before.
    pub(crate) fn add(&mut self, number: u32, page: &[u8], to: &mut Vec<u8>) {
        self.write(0, to);
        self.number = number;
        self.page.clear();
        self.page.extend_from_slice(page);
    }

    /// Appends the last frame, which commits a database of so many pages. Returns the number of frames, and the checksums of the last.
    pub(crate) fn end(mut self, pages_count: u32, to: &mut Vec<u8>) -> (u64, [u32; 2]) {
        self.write(pages_count, to);
        (self.frames, self.chain)
    }

    /// The size of the WAL, with the page that is not written yet.
    pub(crate) fn bytes(&self) -> u64 {
        self.header.extent_bytes(self.frames + u64::from(self.number != 0))
    }

    fn write(&mut self, pages_count: u32, to: &mut Vec<u8>) {
        if self.number == 0 {
            return;
        }
        let mut head = [0; FRAME_HEADER_BYTES];
        head[..4].copy_from_slice(&self.number.to_be_bytes());
        head[4..8].copy_from_slice(&pages_count.to_be_bytes());
        head[8..16].copy_from_slice(&self.header.salts());
        let words = self.header.words;
        self.chain = checksum(words, checksum(words, self.chain, &head[..8]), &self.page);
        head[16..20].copy_from_slice(&self.chain[0].to_be_bytes());
        head[20..24].copy_from_slice(&self.chain[1].to_be_bytes());
        to.extend_from_slice(&head);
        to.extend_from_slice(&self.page);
        self.frames += 1;
    }
}

/// The newest frame of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// The number of the page; the first one is 1.
    pub(crate) page: u32,
    /// The number of the frame; the first one is 1.
    pub(crate) frame: u32,
    /// The checksums before the frame.
    before: [u32; 2],
}

/// Follows the chain of checksums through the frames of a WAL, which it takes in pieces of any size.
#[derive(Debug)]
pub(crate) struct Scan {
    header: Header,
    chain: [u32; 2],
    /// The first bytes of the next frame, if it is incomplete.
    frame: Vec<u8>,
    wanted: u64,
    whole: u64,
    committed: u64,
    /// The pages of the database at the last commit.
    pages_count: u32,
    /// The place of each frame so far, if they are wanted.
    places: Option<Vec<Place>>,
    ended: bool,
}

impl Scan {
    /// Also notes the places of the frames, unless there are more than `MAX_PLACES`.
    pub(crate) fn with_places(self) -> Scan {
        Scan { places: Some(Vec::new()), ..self }
    }

    /// The newest committed frame of each page, by page, and the number of pages that the database has then; `None` if there are too
    /// many frames, or no commit.
    pub(crate) fn into_places(self) -> Option<(Vec<Place>, u32)> {
        let committed = self.committed;
        let mut places = self.places.filter(|_| committed > 0)?;
        places.retain(|place| u64::from(place.frame) <= committed);
        places.sort_unstable_by_key(|place| (place.page, std::cmp::Reverse(place.frame)));
        places.dedup_by_key(|place| place.page);
        Some((places, self.pages_count))
    }

    /// Takes the next bytes of the WAL.
    pub(crate) fn take(&mut self, mut bytes: &[u8]) {
        let frame_bytes = self.header.frame_bytes();
        while !self.ended && !bytes.is_empty() {
            let (more, rest) = bytes.split_at(bytes.len().min(frame_bytes - self.frame.len()));
            bytes = rest;
            if self.frame.is_empty() && more.len() == frame_bytes {
                self.take_frame(more);
                continue;
            }
            self.frame.extend_from_slice(more);
            if self.frame.len() == frame_bytes {
                let frame = std::mem::take(&mut self.frame);
                self.take_frame(&frame);
                self.frame = frame;
                self.frame.clear();
            }
        }
    }

    fn take_frame(&mut self, frame: &[u8]) {
        let page = be(&frame[..4]);
        // As for SQLite, no frame is of page 0.
        if page == 0 || !self.header.is_salted(frame) || !self.header.continues(self.chain, frame) {
            self.ended = true;
            return;
        }
        let before = std::mem::replace(&mut self.chain, Header::chain_in(frame));
        self.whole += 1;
        self.note(Place { page, frame: u32::try_from(self.whole).unwrap_or(u32::MAX), before });
        if Header::commits(frame) {
            self.committed = self.whole;
            self.pages_count = be(&frame[4..8]);
        }
        self.ended = self.whole == self.wanted;
    }

    fn note(&mut self, place: Place) {
        if let Some(places) = &mut self.places {
            if places.len() == MAX_PLACES {
                self.places = None;
            } else {
                places.push(place);
            }
        }
    }

    /// Whether no further frame counts.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// How many frames count.
    pub(crate) fn whole(&self) -> u64 {
        self.whole
    }

    /// The number of frames up to the last commit.
    pub(crate) fn committed(&self) -> u64 {
        self.committed
    }
}

/// The content of the WAL index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Index {
    /// The frames of the WAL up to the last commit (`mxFrame`).
    pub(crate) frames: u64,
    /// The number of frames that WAL checkpoints have copied to the database (`nBackfill`).
    pub(crate) backfilled: u64,
    pub(crate) salts: Salts,
    page_bytes: u64,
}

impl Index {
    /// Parses the WAL index; `None` if the two headers differ, as while SQLite writes them, or their checksums are wrong.
    pub(crate) fn parse(bytes: &[u8; INDEX_BYTES]) -> Option<Index> {
        let same = bytes[..INDEX_HEADER_BYTES] == bytes[INDEX_HEADER_BYTES..2 * INDEX_HEADER_BYTES];
        if same { Index::parse_either(bytes) } else { None }
    }

    /// Parses the first header with a correct checksum, which may be the older one: a process may have been killed after it wrote
    /// one of the two.
    pub(crate) fn parse_either(bytes: &[u8; INDEX_BYTES]) -> Option<Index> {
        let backfilled = u64::from(ne(&bytes[96..100]));
        let mut headers = bytes[..2 * INDEX_HEADER_BYTES].chunks_exact(INDEX_HEADER_BYTES);
        headers.find_map(|header| {
            let sums = checksum(Words::NATIVE, [0, 0], &header[..INDEX_SUMMED_BYTES]);
            if header[12] == 0 || sums != [ne(&header[40..44]), ne(&header[44..48])] {
                return None;
            }
            let page = u16::from_ne_bytes([header[14], header[15]]);
            Some(Index {
                frames: u64::from(ne(&header[16..20])),
                backfilled,
                salts: header[32..40].try_into().ok()?,
                page_bytes: if page == 1 { 65536 } else { u64::from(page) },
            })
        })
    }

    /// The size of the frames. The length of the file is not their size, but the largest that the WAL ever had.
    pub(crate) fn bytes(&self) -> u64 {
        self.frames * (FRAME_HEADER_BYTES as u64 + self.page_bytes)
    }
}

fn ne(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_ne_bytes)
}

fn be(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

/// The byte order of the words that a checksum adds up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Words {
    BigEndian,
    LittleEndian,
}

impl Words {
    const NATIVE: Words = if cfg!(target_endian = "big") { Words::BigEndian } else { Words::LittleEndian };
}

/// SQLite's checksum over whole pairs of words.
fn checksum(words: Words, [mut a, mut b]: [u32; 2], bytes: &[u8]) -> [u32; 2] {
    let word = |w: &[u8]| {
        let w = [w[0], w[1], w[2], w[3]];
        match words {
            Words::BigEndian => u32::from_be_bytes(w),
            Words::LittleEndian => u32::from_le_bytes(w),
        }
    };
    for pair in bytes.chunks_exact(8) {
        a = a.wrapping_add(word(&pair[..4])).wrapping_add(b);
        b = b.wrapping_add(word(&pair[4..])).wrapping_add(a);
    }
    [a, b]
}
