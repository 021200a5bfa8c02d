//! The seal: a checksum in each of our own JSON files of that file. Without it, a time or a name in the file that a failing disk
//! has changed would not be noticed.
//!
//! The seal is the last field, `"seal"`, of the one object in the file: the BLAKE2b-512, in hexadecimal, of all bytes before the
//! comma in front of the field. So the file is plain JSON, and a program that does not know the field ignores it.

use std::io::{self, BufWriter, Read, Write};

use blake2b_simd::State;
use serde::Serialize;

const BEFORE: &str = ",\n  \"seal\": \"";
const AFTER: &str = "\"\n}\n";
const HEX_BYTES: usize = 128;

/// The end of an object before it is sealed.
const OBJECT_END: &[u8] = b"\n}";

/// Writes the JSON of an object with at least one field, over several lines.
type WriteObject<'a> = &'a dyn Fn(&mut dyn Write) -> io::Result<()>;

/// Writes an object, with its seal.
pub(crate) fn write_by(to: &mut dyn Write, object: WriteObject<'_>) -> io::Result<()> {
    let mut sealing = BufWriter::new(Sealing { to, state: State::new(), held: Vec::new() });
    object(&mut sealing)?;
    let Sealing { to, state, held } = sealing.into_inner().map_err(io::IntoInnerError::into_error)?;
    debug_assert_eq!(held, OBJECT_END);
    write!(to, "{BEFORE}{}{AFTER}", state.finalize().to_hex())
}

/// The indented JSON of `value`, an object with at least one field, with its seal.
pub(crate) fn to_bytes(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_by(&mut bytes, &|to| Ok(serde_json::to_writer_pretty(to, value)?))
        .expect("our objects have only string keys, and memory takes every byte");
    bytes
}

/// Whether a file of this size matches its seal; `None` if it has no seal. The file may be large, and is not held in memory.
pub(crate) fn is_whole(mut file: impl Read, bytes: u64) -> io::Result<Option<bool>> {
    let Some(content_bytes) = bytes.checked_sub((BEFORE.len() + HEX_BYTES + AFTER.len()) as u64) else {
        return Ok(None);
    };
    let mut state = State::new();
    io::copy(&mut (&mut file).take(content_bytes), &mut state)?;
    let mut end = Vec::new();
    file.read_to_end(&mut end)?;
    let seal = end.strip_prefix(BEFORE.as_bytes()).and_then(|end| end.strip_suffix(AFTER.as_bytes()));
    Ok(seal.map(|seal| state.finalize().to_hex().as_bytes() == seal))
}

/// Passes all bytes on, except the last ones, which close the object.
struct Sealing<'a> {
    to: &'a mut dyn Write,
    state: State,
    held: Vec<u8>,
}

impl Write for Sealing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.held.extend_from_slice(bytes);
        let pass = self.held.len().saturating_sub(OBJECT_END.len());
        self.to.write_all(&self.held[..pass])?;
        self.state.update(&self.held[..pass]);
        self.held.drain(..pass);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn whole(file: &[u8]) -> Option<bool> {
        is_whole(file, file.len() as u64).unwrap()
    }

    #[test]
    fn every_changed_bit_is_seen_or_unseals() {
        for value in [serde_json::json!({"a": [1, 2]}), serde_json::json!({"name": "x".repeat(20_000), "n": 7})] {
            let sealed = to_bytes(&value);
            assert_eq!(whole(&sealed), Some(true));
            let mut read: serde_json::Value = serde_json::from_slice(&sealed).unwrap();
            read.as_object_mut().unwrap().remove("seal").unwrap();
            assert_eq!(read, value);
            for at in (0..sealed.len()).filter(|at| *at < 300 || at + 300 > sealed.len() || at % 97 == 0) {
                for bit in 0..8 {
                    let mut damaged = sealed.clone();
                    damaged[at] ^= 1 << bit;
                    assert_ne!(whole(&damaged), Some(true), "byte {at} bit {bit}");
                }
            }
            for cut in (0..sealed.len()).step_by(7) {
                assert_ne!(whole(&sealed[..cut]), Some(true), "cut at {cut}");
            }
        }
    }
}
