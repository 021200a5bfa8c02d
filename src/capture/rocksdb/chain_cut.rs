//! The node's own table of cuts in RocksDB, which names the newest block of every chain; and the comparison of a Pact database
//! with it.
//!
//! A node commits a block to Pact before RocksDB has it. If it is killed between the two and started again, that block may never
//! reach RocksDB, and the cut may have another block at the same height or above. So blocks are compared, not heights, as far as
//! both are known. A cut does not name the blocks below it; the node's table of headers does.
//!
//! Invariants: a value that cannot be parsed as a cut is ignored: it may be another node's table. A block of which nothing is
//! known is not reported as wrong.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::fault::Fault;

/// A block in a cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Block {
    pub(crate) height: u64,
    /// As the node writes it: base64url of 32 bytes; other nodes write other texts, or none.
    #[serde(default)]
    pub(crate) hash: Option<String>,
}

/// The newest block of a Pact database.
#[derive(Debug, Clone)]
pub(crate) struct Tip {
    pub(crate) chain: u32,
    pub(crate) height: u64,
    /// As in the record: hexadecimal if the database has bytes.
    pub(crate) hash: Option<String>,
}

/// A cut: the newest block of every chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cut {
    pub(crate) height: u64,
    pub(crate) chains: BTreeMap<u32, Block>,
    /// Whether RocksDB has the header of the newest Pact block, by chain, if it has a table of headers that we know.
    #[serde(default)]
    pub(crate) has_header: BTreeMap<u32, bool>,
}

/// The position of a Pact database relative to a cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    /// At the cut, or this many blocks behind it, as far as we can tell.
    Behind(u64),
    /// At the height of the cut or below it, on a block that RocksDB does not have, or may not have.
    Unknown,
    /// This many blocks above the cut.
    Above(u64),
}

impl Standing {
    /// How many blocks it is ahead; 0 if it is at the cut or behind it, as a backup promises.
    pub(crate) fn blocks_ahead(self) -> u64 {
        match self {
            Standing::Behind(_) => 0,
            Standing::Unknown => 1,
            Standing::Above(blocks) => blocks,
        }
    }
}

impl Cut {
    /// The position of a Pact database whose newest block is `tip`; `None` if the cut does not have its chain.
    pub(crate) fn standing(&self, tip: &Tip) -> Option<Standing> {
        let block = self.chains.get(&tip.chain)?;
        if tip.height > block.height {
            return Some(Standing::Above(tip.height - block.height));
        }
        let behind = Standing::Behind(block.height - tip.height);
        let same = || Some(is_same_hash(block.hash.as_deref()?, tip.hash.as_deref()?)).flatten();
        Some(match self.has_header.get(&tip.chain) {
            Some(true) => behind,
            _ if tip.height == block.height && same() == Some(true) => behind,
            Some(false) => Standing::Unknown,
            None if tip.height == block.height && same() == Some(false) => Standing::Unknown,
            None => behind,
        })
    }
}

/// Whether two texts name the same block; `None` if they are hashes of different kinds.
fn is_same_hash(of_cut: &str, of_pact: &str) -> Option<bool> {
    let of_cut = from_base64url(of_cut).or_else(|| from_hex(of_cut)).unwrap_or_else(|| of_cut.as_bytes().to_vec());
    let of_pact = from_hex(of_pact).unwrap_or_else(|| of_pact.as_bytes().to_vec());
    if of_cut == of_pact {
        return Some(true);
    }
    // Texts of different length may be the same hash in a form that we do not know.
    (of_cut.len() == of_pact.len()).then_some(false)
}

/// Decodes 32 bytes in base64url, without padding.
fn from_base64url(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'-' => Some(62),
        b'_' => Some(63),
        _ => None,
    };
    if text.len() != 43 {
        return None;
    }
    let (mut bytes, mut bits, mut bits_count) = (Vec::with_capacity(32), 0_u32, 0);
    for byte in text.bytes() {
        bits = bits << 6 | u32::from(digit(byte)?);
        bits_count += 6;
        if bits_count >= 8 {
            bits_count -= 8;
            bytes.push((bits >> bits_count & 0xff) as u8);
            bits &= (1 << bits_count) - 1;
        }
    }
    (bits == 0).then_some(bytes)
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let pair = |pair: &[u8]| Some((digit(pair[0])? << 4 | digit(*pair.get(1)?)?) as u8);
    if text.is_empty() { None } else { text.as_bytes().chunks(2).map(pair).collect() }
}

#[cfg(feature = "engine")]
impl Tip {
    /// The part of the key after the prefix, for this block; `None` unless its hash has 32 bytes.
    pub(crate) fn header_key(&self) -> Option<Vec<u8>> {
        let hash = from_hex(self.hash.as_deref()?).filter(|hash| hash.len() == 32)?;
        Some([&self.height.to_be_bytes(), hash.as_slice()].concat())
    }
}

/// The result of reading the heights of a finished copy.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Heights {
    /// RocksDB cannot read the copy. The file is a name in the directory of the copy; empty if RocksDB names none.
    Damaged(Fault),
    /// The newest cut, if there is one.
    Cut(Option<Cut>),
}

#[cfg(feature = "engine")]
impl Cut {
    /// Parses a cut as the node stores it: after the prefix, the key begins with the height, 8 bytes big-endian; the value is
    /// JSON with `height` and `hashes: {chain: {height, hash}}`.
    pub(crate) fn parse(key: &[u8], value: &[u8]) -> Option<Cut> {
        #[derive(Deserialize)]
        struct StoredCut {
            hashes: BTreeMap<String, Block>,
        }
        let height = u64::from_be_bytes(key.get(..8)?.try_into().ok()?);
        let stored: StoredCut = serde_json::from_slice(value).ok()?;
        let chains = stored.hashes.into_iter().map(|(chain, block)| Some((chain.parse().ok()?, block)));
        Some(Cut { height, chains: chains.collect::<Option<_>>()?, has_header: BTreeMap::new() })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A real block of mainnet, as a cut names it and as `BlockHistory` does.
    const TEXT: &str = "k0an0qEORusqQg9ZjKrxa-0Bo0-hQVYLXqWi5LHxg3k";
    const HEX: &str = "9346a7d2a10e46eb2a420f598caaf16bed01a34fa141560b5ea5a2e4b1f18379";
    const OTHER: &str = "9346a7d2a10e46eb2a420f598caaf16bed01a34fa141560b5ea5a2e4b1f18378";

    #[test]
    fn the_same_block_in_every_form() {
        assert_eq!(from_base64url(TEXT), from_hex(HEX));
        assert_eq!(is_same_hash(TEXT, HEX), Some(true));
        assert_eq!(is_same_hash(HEX, HEX), Some(true));
        assert_eq!(is_same_hash(&HEX.to_uppercase(), HEX), Some(true));
        assert_eq!(is_same_hash("hash-of-30", "hash-of-30"), Some(true));
        assert_eq!(is_same_hash("hash-of-30", "686173682d6f662d3330"), Some(true));
        assert_eq!(is_same_hash(TEXT, OTHER), Some(false));
        assert_eq!(is_same_hash("hash-of-30", "686173682d6f662d3331"), Some(false));
        // Not 32 bytes in base64url: the last digit has bits that belong to no byte, or is none.
        for text in [&format!("{}l", &TEXT[..42]), &format!("{}=", &TEXT[..42]), &TEXT[1..]] {
            assert_eq!((from_base64url(text), is_same_hash(text, HEX)), (None, None), "{text}");
        }
    }

    #[test]
    fn a_block_is_compared_as_far_as_it_is_known() {
        let standing = |of_cut: Option<&str>, height: u64, of_pact: Option<&str>, has_header: Option<bool>| {
            let cut = Cut {
                height: 30,
                chains: [(3, Block { height: 30, hash: of_cut.map(str::to_owned) })].into(),
                has_header: has_header.map(|has| (3, has)).into_iter().collect(),
            };
            cut.standing(&Tip { chain: 3, height, hash: of_pact.map(str::to_owned) }).unwrap()
        };
        let (same, other) = (Some(HEX), Some(OTHER));
        let text = Some(TEXT);
        assert_eq!(standing(text, 30, same, None), Standing::Behind(0));
        assert_eq!(standing(text, 30, other, None), Standing::Unknown);
        assert_eq!(standing(text, 31, same, None), Standing::Above(1));
        // One of the blocks is not known.
        assert_eq!(standing(None, 30, other, None), Standing::Behind(0));
        assert_eq!(standing(text, 30, None, None), Standing::Behind(0));
        assert_eq!(standing(text, 28, other, None), Standing::Behind(2));
        // The table of headers has more blocks than a cut.
        assert_eq!(standing(text, 28, other, Some(true)), Standing::Behind(2));
        assert_eq!(standing(text, 28, other, Some(false)), Standing::Unknown);
        assert_eq!(standing(text, 30, other, Some(true)), Standing::Behind(0));
        assert_eq!(standing(text, 30, other, Some(false)), Standing::Unknown);
        assert_eq!(standing(text, 30, same, Some(false)), Standing::Behind(0));
        assert_eq!(standing(text, 32, same, Some(true)), Standing::Above(2));
    }
}
