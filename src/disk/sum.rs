//! The BLAKE2b-512 checksum of a file, as coreutils' `b2sum` prints it, and when the file was last compared with it.
//!
//! The checksum of a copied file is computed while the file is read: about 1 s of processor time for each GB, in the thread
//! that reads, beside the thread that writes. So `BLAKE2SUMS` needs no second reading, and every later backup that links the
//! file has its checksum.

use std::fmt;
use std::io::{self, Read};
use std::path::Path;

use blake2b_simd::{OUTBYTES, State};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::control::Control;
use crate::disk::nofollow;
use crate::disk::piece_sums::{PieceSums, Pieces};
use crate::disk::quiet_reader::{PageCache, QuietReader, Sink, each_window};
use crate::error::{IoContext, Result};

/// A checksum. Text and JSON are its hexadecimal form.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sum([u8; OUTBYTES]);

/// The checksum of a file, and when the file was last read whole, in milliseconds since the epoch; 0 if that is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) sum: Sum,
    pub(crate) read_ms: u64,
}

impl Sum {
    /// Reads 128 hexadecimal digits, in lower case.
    pub(crate) fn parse(text: &str) -> Option<Sum> {
        let is_sum =
            text.len() == 2 * OUTBYTES && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if !is_sum {
            return None;
        }
        let mut bytes = [0; OUTBYTES];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
        }
        Some(Sum(bytes))
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Sum {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sum {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Sum, D::Error> {
        let text = String::deserialize(from)?;
        Sum::parse(&text).ok_or_else(|| serde::de::Error::custom("not a BLAKE2b-512 in hexadecimal"))
    }
}

/// Computes the checksum of a file; the page cache is `cache` afterwards.
pub(crate) fn of(path: &Path, cache: PageCache, control: &Control) -> Result<Sum> {
    beside(path, cache, control, &mut |_| ())
}

/// The same, and the sums of its pieces, in one reading.
pub(crate) fn with_pieces(path: &Path, cache: PageCache, control: &Control) -> Result<(Sum, PieceSums)> {
    let mut pieces = Pieces::default();
    let sum = beside(path, cache, control, &mut |window| pieces.take(window))?;
    Ok((sum, pieces.finish()))
}

/// Computes the checksum of a file, whose windows `also` gets, too.
fn beside(path: &Path, cache: PageCache, control: &Control, also: &mut dyn FnMut(&[u8])) -> Result<Sum> {
    let failed = || format!("cannot read {}", path.display());
    let file = nofollow::open_regular(path).context(failed)?;
    let bytes = file.metadata().context(failed)?.len();
    let mut summing = Summing { state: State::new(), also, control };
    each_window(&mut QuietReader::leaving(cache, &file), bytes, &failed, &mut summing)?;
    Ok(finish(&summing.state))
}

fn finish(state: &State) -> Sum {
    Sum(*state.finalize().as_array())
}

struct Summing<'a> {
    state: State,
    also: &'a mut dyn FnMut(&[u8]),
    control: &'a Control,
}

impl Sink for Summing<'_> {
    fn proceed(&mut self) -> Result<()> {
        self.control.check()
    }

    fn take(&mut self, window: &[u8]) -> Result<()> {
        self.state.update(window);
        (self.also)(window);
        self.control.add_done(window.len() as u64);
        self.control.throttle(window.len() as u64)
    }
}

/// A reader that computes the checksum of the first bytes that are read through it.
pub(crate) struct SummingReader<R> {
    inner: R,
    state: State,
    left_bytes: u64,
}

impl<R: Read> SummingReader<R> {
    /// The checksum covers `bytes` bytes of `inner`: a reader of whole blocks may read more.
    pub(crate) fn new(inner: R, bytes: u64) -> SummingReader<R> {
        SummingReader { inner, state: State::new(), left_bytes: bytes }
    }

    pub(crate) fn sum(&self) -> Sum {
        finish(&self.state)
    }
}

impl<R: Read> Read for SummingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let summed = usize::try_from(self.left_bytes).unwrap_or(usize::MAX).min(count);
        self.state.update(&buffer[..summed]);
        self.left_bytes -= summed as u64;
        Ok(count)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_is_its_text() {
        let bytes = [7; 10_000];
        let mut reader = SummingReader::new(&bytes[..], 9_000);
        io::copy(&mut reader, &mut io::sink()).unwrap();
        let text = blake2b_simd::blake2b(&bytes[..9_000]).to_hex().to_string();
        assert_eq!(reader.sum().to_string(), text);
        assert_eq!(Sum::parse(&text), Some(reader.sum()));
        assert_eq!(serde_json::to_string(&reader.sum()).unwrap(), format!("\"{text}\""));
        assert_eq!(serde_json::from_str::<Sum>(&format!("\"{text}\"")).unwrap(), reader.sum());
        for wrong in ["", &text[1..], &text.to_uppercase(), &format!("{text}0"), &text.replace('0', "x")] {
            assert!(Sum::parse(wrong).is_none() || wrong == text, "{wrong}");
            assert!(serde_json::from_str::<Sum>(&format!("\"{wrong}\"")).is_err() || wrong == text);
        }
    }
}
