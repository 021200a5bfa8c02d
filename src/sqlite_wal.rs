//! SQLite's WAL format, read from bytes: pure, no I/O of its own.
//!
//! Source of the format: sqlite.org/fileformat2.html, section 4. Numbers are big-endian; the checksums run over words in
//! the byte order that the magic number names, from the header through all frames:
//! ```text
//! header 32: magic 4 | version 4 | page size 4 | checkpoint 4 | salts 8 | checksums 8
//! frame 24 + page: page number 4 | pages of the database if this commits, else 0: 4 | salts 8 | checksums 8
//! ```
//! A frame counts when its salts are the header's and its checksums continue the chain. Invariant: no input panics.

use std::io::{self, Read};

/// Size of the header.
pub(crate) const HEADER_BYTES: usize = 32;

/// Size of a frame's header.
const FRAME_HEADER_BYTES: usize = 24;

/// Where the salts stand in the header.
const SALTS: std::ops::Range<usize> = 16..24;

/// The header of a WAL, known to be whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    bytes: [u8; HEADER_BYTES],
    page_bytes: usize,
}

impl Header {
    /// Reads a header; `None` where there is none, or its checksum is wrong.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Header> {
        let bytes: [u8; HEADER_BYTES] = bytes.get(..HEADER_BYTES)?.try_into().ok()?;
        let magic = be(&bytes[0..4]);
        let page_bytes = usize::try_from(be(&bytes[8..12])).ok()?;
        let sane = magic & !1 == 0x377f_0682 && page_bytes.is_power_of_two() && (512..=65536).contains(&page_bytes);
        if !sane || checksum(magic & 1 == 1, [0, 0], &bytes[..24]) != [be(&bytes[24..28]), be(&bytes[28..32])] {
            return None;
        }
        Some(Header { bytes, page_bytes })
    }

    /// The bytes as they stand in the file.
    pub(crate) fn bytes(&self) -> &[u8; HEADER_BYTES] {
        &self.bytes
    }

    /// Two WALs of different salts have nothing in common.
    pub(crate) fn same_salts(&self, other: &Header) -> bool {
        self.bytes[SALTS] == other.bytes[SALTS]
    }

    /// Size of a frame with its page.
    pub(crate) fn frame_bytes(&self) -> usize {
        FRAME_HEADER_BYTES + self.page_bytes
    }

    /// Size of the file up to and with this many frames.
    pub(crate) fn extent_bytes(&self, frames: u64) -> u64 {
        HEADER_BYTES as u64 + frames * self.frame_bytes() as u64
    }

    /// The number of frames up to the last commit, following the chain of checksums. `frames` begins behind the header.
    pub(crate) fn committed_frames(&self, mut frames: impl Read) -> io::Result<u64> {
        let big_endian = self.bytes[3] & 1 == 1;
        let mut chain = [be(&self.bytes[24..28]), be(&self.bytes[28..32])];
        let mut frame = vec![0; self.frame_bytes()];
        let (mut count, mut committed) = (0, 0);
        loop {
            match frames.read_exact(&mut frame) {
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(committed),
                other => other?,
            }
            if frame[8..16] != self.bytes[SALTS] {
                return Ok(committed);
            }
            chain = checksum(big_endian, checksum(big_endian, chain, &frame[..8]), &frame[FRAME_HEADER_BYTES..]);
            if chain != [be(&frame[16..20]), be(&frame[20..24])] {
                return Ok(committed);
            }
            count += 1;
            if be(&frame[4..8]) != 0 {
                committed = count;
            }
        }
    }
}

fn be(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

/// SQLite's checksum over whole pairs of words.
fn checksum(big_endian: bool, [mut a, mut b]: [u32; 2], bytes: &[u8]) -> [u32; 2] {
    let word = |w: &[u8]| {
        let w = [w[0], w[1], w[2], w[3]];
        if big_endian { u32::from_be_bytes(w) } else { u32::from_le_bytes(w) }
    };
    for pair in bytes.chunks_exact(8) {
        a = a.wrapping_add(word(&pair[..4])).wrapping_add(b);
        b = b.wrapping_add(word(&pair[4..])).wrapping_add(a);
    }
    [a, b]
}
