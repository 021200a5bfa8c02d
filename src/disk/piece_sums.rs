//! Checksums of the pieces of a file, of 1 MiB each, with which damage is told from a change: they are computed while the file is
//! compared or read, at the speed of the memory.
//!
//! They are no cryptographic checksums: they find what a failing disk changes, not what an attacker does. A change of a single
//! 8-byte word always changes the sum; any other change is missed with a probability of 2^-64.
//!
//! ```text
//! four lanes begin with 1, 2, 3, 4; the words of 8 bytes, little-endian, go to them in turn:
//!   lane = rotate_left((lane ^ word) * 0x9e3779b97f4a7c15, 29)
//! the last words are filled up with zeroes; then for the number of bytes and each lane, from sum = 0:
//!   sum = (sum ^ value) * 0x9e3779b97f4a7c15; sum = sum ^ (sum >> 32)
//! ```

use std::io::{self, Read};
use std::path::Path;

use crate::control::Control;
use crate::disk::nofollow;
use crate::disk::quiet_reader::{QuietReader, Sink, each_window};
use crate::error::{IoContext, Result};

/// The size of a piece.
pub(crate) const PIECE_BYTES: u64 = 1024 * 1024;

const LANES: usize = 4;
const STRIPE_BYTES: usize = LANES * 8;
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// The sums of all pieces of a file, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PieceSums {
    /// The size of the file.
    pub(crate) bytes: u64,
    pub(crate) sums: Vec<u64>,
}

impl PieceSums {
    /// Reads a file of ours, past the page cache.
    pub(crate) fn of_file(path: &Path, control: &Control) -> Result<PieceSums> {
        let failed = || format!("cannot read {}", path.display());
        let file = nofollow::open_regular(path).context(failed)?;
        let bytes = file.metadata().context(failed)?.len();
        PieceSums::of_reader(&mut QuietReader::past_cache(&file), bytes, &failed, control)
    }

    /// Reads the first `bytes` bytes of `from`; `failed` is the context of a read error.
    pub(crate) fn of_reader(
        from: &mut (dyn Read + Send),
        bytes: u64,
        failed: &dyn Fn() -> String,
        control: &Control,
    ) -> Result<PieceSums> {
        let mut summing = Summing { pieces: Pieces::default(), control };
        each_window(from, bytes, failed, &mut summing)?;
        Ok(summing.pieces.finish())
    }

    /// What differs in a file of which these are the recorded sums, and `found` those that it has now.
    pub(crate) fn difference(&self, found: &PieceSums) -> Option<String> {
        match self.sums.iter().zip(&found.sums).position(|(expected, found)| expected != found) {
            Some(piece) => {
                let start = piece as u64 * PIECE_BYTES;
                Some(format!("the {PIECE_BYTES} bytes from byte {start} on differ from their recorded sum"))
            }
            None if found.bytes != self.bytes => {
                Some(format!("it has {} bytes instead of the recorded {}", found.bytes, self.bytes))
            }
            None => None,
        }
    }

    /// A number that stands for the file: another one for nearly every other file.
    pub(crate) fn identity(&self) -> u32 {
        let values = [self.bytes].into_iter().chain(self.sums.iter().copied());
        values.fold(0, |identity, value| crc32c::crc32c_append(identity, &value.to_le_bytes()))
    }

    /// Takes the sum of a piece that is full, or the last one.
    pub(crate) fn push(&mut self, piece: &PieceSum) {
        self.bytes += piece.bytes;
        self.sums.push(piece.finish());
    }

    /// Takes the last piece, unless it is empty.
    pub(crate) fn push_last(&mut self, piece: PieceSum) {
        if piece.bytes > 0 {
            self.push(&piece);
        }
    }

    /// The sum of the piece with this index, if the piece ends at `end`.
    pub(crate) fn find(&self, index: u64, end: u64) -> Option<u64> {
        let sum = self.sums.get(usize::try_from(index).ok()?)?;
        (self.bytes.min((index + 1) * PIECE_BYTES) == end).then_some(*sum)
    }
}

/// The sum of a piece so far.
#[derive(Debug, Clone)]
pub(crate) struct PieceSum {
    lanes: [u64; LANES],
    pub(crate) bytes: u64,
}

impl Default for PieceSum {
    fn default() -> PieceSum {
        PieceSum { lanes: [1, 2, 3, 4], bytes: 0 }
    }
}

impl PieceSum {
    /// Takes the next bytes: whole stripes of 32 bytes, except at the end of the file.
    pub(crate) fn take(&mut self, bytes: &[u8]) {
        debug_assert!(self.bytes.is_multiple_of(STRIPE_BYTES as u64), "only the last bytes are no whole stripes");
        self.bytes += bytes.len() as u64;
        let stripes = bytes.chunks_exact(STRIPE_BYTES);
        let rest = stripes.remainder();
        stripes.for_each(|stripe| self.stripe(stripe));
        if !rest.is_empty() {
            let mut last = [0; STRIPE_BYTES];
            last[..rest.len()].copy_from_slice(rest);
            self.stripe(&last);
        }
    }

    fn stripe(&mut self, stripe: &[u8]) {
        for (lane, word) in self.lanes.iter_mut().zip(stripe.chunks_exact(8)) {
            let word = u64::from_le_bytes([word[0], word[1], word[2], word[3], word[4], word[5], word[6], word[7]]);
            *lane = (*lane ^ word).wrapping_mul(FACTOR).rotate_left(29);
        }
    }

    pub(crate) fn finish(&self) -> u64 {
        let values = [self.bytes].into_iter().chain(self.lanes);
        values.fold(0, |sum: u64, value| {
            let sum = (sum ^ value).wrapping_mul(FACTOR);
            sum ^ (sum >> 32)
        })
    }
}

/// The sums of the pieces so far.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    piece: PieceSum,
    sums: PieceSums,
}

impl Pieces {
    /// Takes the next bytes, as [`PieceSum::take`].
    pub(crate) fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let left = usize::try_from(PIECE_BYTES - self.piece.bytes).unwrap_or(usize::MAX);
            let (now, rest) = bytes.split_at(left.min(bytes.len()));
            bytes = rest;
            self.piece.take(now);
            if self.piece.bytes == PIECE_BYTES {
                self.sums.push(&std::mem::take(&mut self.piece));
            }
        }
    }

    pub(crate) fn finish(self) -> PieceSums {
        let Pieces { piece, mut sums } = self;
        sums.push_last(piece);
        sums
    }
}

/// A reader that computes the sums of what is read through it. Each reading but the last gives whole stripes of 32 bytes.
pub(crate) struct SummedReader<'a> {
    inner: &'a mut (dyn Read + Send),
    pieces: Pieces,
}

impl<'a> SummedReader<'a> {
    pub(crate) fn new(inner: &'a mut (dyn Read + Send)) -> SummedReader<'a> {
        SummedReader { inner, pieces: Pieces::default() }
    }

    /// The sums of all that was read.
    pub(crate) fn finish(self) -> PieceSums {
        self.pieces.finish()
    }
}

impl Read for SummedReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.pieces.take(&buffer[..count]);
        Ok(count)
    }
}

struct Summing<'a> {
    pieces: Pieces,
    control: &'a Control,
}

impl Sink for Summing<'_> {
    fn proceed(&mut self) -> Result<()> {
        self.control.check()
    }

    fn take(&mut self, window: &[u8]) -> Result<()> {
        self.pieces.take(window);
        self.control.step();
        self.control.throttle(window.len() as u64)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::disallowed_methods)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u64 {
        let mut piece = PieceSum::default();
        piece.take(bytes);
        piece.finish()
    }

    /// Every changed bit and every other length is seen, also of zeroes, and the pieces in which bytes come do not matter.
    #[test]
    fn a_change_changes_the_sum() {
        let mut random = fastrand::Rng::with_seed(7);
        for bytes in [vec![0; 4096], (0..4096).map(|_| random.u8(..)).collect::<Vec<u8>>()] {
            let whole = sum(&bytes);
            for bit in 0..bytes.len() * 8 {
                let mut changed = bytes.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                assert_ne!(sum(&changed), whole, "bit {bit}");
            }
            for length in 0..bytes.len() {
                assert_ne!(sum(&bytes[..length]), whole, "length {length}");
            }
            for cut in (0..bytes.len()).step_by(STRIPE_BYTES) {
                let mut piece = PieceSum::default();
                piece.take(&bytes[..cut]);
                piece.take(&bytes[cut..]);
                assert_eq!(piece.finish(), whole);
            }
        }
        let mut swapped = vec![0; 4096];
        swapped[8..16].fill(1);
        let before = sum(&swapped);
        swapped.swap_with_slice(&mut {
            let mut other = vec![0; 4096];
            other[40..48].fill(1);
            other
        });
        assert_ne!(sum(&swapped), before, "two words of one lane");
    }

    /// The format is kept: sums that an earlier release wrote are compared with those of this one.
    #[test]
    fn the_sums_of_known_bytes() {
        let bytes: Vec<u8> = (0..=255).cycle().take(1000).collect();
        assert_eq!([sum(&[]), sum(&bytes)].map(|sum| format!("{sum:016x}")), KNOWN);
    }

    const KNOWN: [&str; 2] = ["e821a9cc1f06a6e9", "bb2450779c5ae767"];

    #[test]
    fn a_file_has_a_sum_for_each_piece() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        for length in [0, 1, 4096, PIECE_BYTES, PIECE_BYTES + 1024, 5 * PIECE_BYTES + 512] {
            let bytes: Vec<u8> = (0..length).map(|n| (n / 3) as u8).collect();
            std::fs::write(&path, &bytes).unwrap();
            let sums = PieceSums::of_file(&path, &Control::default()).unwrap();
            let expected: Vec<u64> = bytes.chunks(PIECE_BYTES as usize).map(sum).collect();
            assert_eq!(sums, PieceSums { bytes: length, sums: expected });
            let mut from = &bytes[..];
            let mut reader = SummedReader::new(&mut from);
            // Readings of any size, but of whole stripes.
            let mut buffer = vec![0; 96 * STRIPE_BYTES];
            while reader.read(&mut buffer).unwrap() > 0 {}
            let read = reader.finish();
            assert_eq!((sums.difference(&read), sums.identity()), (None, read.identity()));
            let last = length.div_ceil(PIECE_BYTES).max(1) - 1;
            assert_eq!(sums.find(last, length).is_some(), length > 0);
            assert_eq!(sums.find(last, length + 1), None);
        }
    }
}
