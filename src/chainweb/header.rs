//! Block headers: their bytes, their hash, their proof of work. Their checks are in `rules`.
//!
//! ```text
//! flags 8 | time 8 | parent 32 | n 2 | n x (chain 4, its block's hash 32) | target 32 | payload hash 32 | chain 4 | weight 32
//! | height 8 | version code 4 | epoch start 8 | nonce 8 | hash 32
//! ```
//! All numbers are little-endian; the adjacent chains are ascending; 210 + 36 n bytes (chainweb-node,
//! `Chainweb/BlockHeader/Internal.hs`, `encodeBlockHeader`, `Chainweb/BlockHash.hs`).
//!
//! The hash is the root of a Merkle tree that has the hashes of the adjacent blocks, not the numbers of their chains, which the
//! graph and the proof of work cover.

use std::fmt;

use crate::chainweb::digest::Digest;
use crate::chainweb::merkle::{self, tag};
use crate::chainweb::number::Number;
use crate::chainweb::version;

/// The size of a header without adjacent chains.
const FIXED_BYTES: usize = 210;

/// How many bytes an adjacent chain adds.
const ADJACENT_BYTES: usize = 36;

/// The place of the number of adjacent chains.
const COUNT_AT: usize = 48;

/// A block header, with the fields and in the order of its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Flags; since chainweb-node 3.1 the state of the votes for the next fork.
    pub flags: u64,
    /// When it was made, in microseconds since the epoch.
    pub time_us: u64,
    /// The hash of its parent; of a genesis block see [`version::genesis_parent`].
    pub parent: Digest,
    /// The adjacent chains with the hashes of their blocks of the parent's height, ascending by chain.
    pub adjacents: Vec<(u32, Digest)>,
    /// The largest hash that proves work.
    pub target: Number,
    /// The hash of its payload.
    pub payload: Digest,
    /// Its chain.
    pub chain: u32,
    /// The work of its chain up to it.
    pub weight: Number,
    /// Its height.
    pub height: u64,
    /// The code of its version.
    pub version: u32,
    /// When its epoch of difficulty began, in microseconds since the epoch.
    pub epoch_us: u64,
    /// What was sought for the proof of work.
    pub nonce: u64,
    /// Its hash.
    pub hash: Digest,
}

/// Bytes that are no header: their number is not that which the number of adjacent chains in them demands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed {
    /// The size.
    pub bytes: usize,
    /// The size of a header with this number of adjacent chains, or the smallest one if there is no such number.
    pub expected_bytes: usize,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it has {} bytes, not {}", self.bytes, self.expected_bytes)
    }
}

impl Header {
    /// Parses the bytes of a header. Any of the right size is one: `rules` tells those of a node.
    ///
    /// # Errors
    /// Fails if the size is another one.
    pub fn parse(bytes: &[u8]) -> Result<Header, Malformed> {
        let count = bytes.get(COUNT_AT..).and_then(|rest| rest.first_chunk()).map_or(0, |n| u16::from_le_bytes(*n));
        let expected_bytes = FIXED_BYTES + ADJACENT_BYTES * usize::from(count);
        let malformed = Malformed { bytes: bytes.len(), expected_bytes };
        if bytes.len() != expected_bytes {
            return Err(malformed);
        }
        let mut fields = Fields(bytes);
        Header::of(&mut fields).ok_or(malformed)
    }

    fn of(fields: &mut Fields) -> Option<Header> {
        Some(Header {
            flags: fields.u64()?,
            time_us: fields.u64()?,
            parent: fields.digest()?,
            adjacents: {
                let count = u16::from_le_bytes(fields.take()?);
                (0..count).map(|_| Some((fields.u32()?, fields.digest()?))).collect::<Option<_>>()?
            },
            target: fields.number()?,
            payload: fields.digest()?,
            chain: fields.u32()?,
            weight: fields.number()?,
            height: fields.u64()?,
            version: fields.u32()?,
            epoch_us: fields.u64()?,
            nonce: fields.u64()?,
            hash: fields.digest()?,
        })
    }

    /// The bytes of the header.
    ///
    /// # Panics
    /// With more than 65535 adjacent chains, which no parsed header has.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.work_bytes();
        bytes.extend(self.hash.0);
        bytes
    }

    /// All bytes but those of the hash: the proof of work is over these (`encodeBlockHeaderWithoutHash`).
    fn work_bytes(&self) -> Vec<u8> {
        let count = u16::try_from(self.adjacents.len()).expect("a header has at most 65535 adjacent chains");
        let mut bytes = Vec::with_capacity(FIXED_BYTES + ADJACENT_BYTES * self.adjacents.len());
        bytes.extend(self.flags.to_le_bytes());
        bytes.extend(self.time_us.to_le_bytes());
        bytes.extend(self.parent.0);
        bytes.extend(count.to_le_bytes());
        for (chain, hash) in &self.adjacents {
            bytes.extend(chain.to_le_bytes());
            bytes.extend(hash.0);
        }
        bytes.extend(self.target.to_le_bytes());
        bytes.extend(self.payload.0);
        bytes.extend(self.chain.to_le_bytes());
        bytes.extend(self.weight.to_le_bytes());
        bytes.extend(self.height.to_le_bytes());
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.epoch_us.to_le_bytes());
        bytes.extend(self.nonce.to_le_bytes());
        bytes
    }

    /// The hash of its content: the Merkle root over its fields and the hashes of the adjacent blocks. Hashes of blocks and payload
    /// stand in the places of leaves (chainweb-node, `Chainweb/BlockHeader/Internal.hs`, `HasMerkleLog`).
    pub fn merkle_hash(&self) -> Digest {
        let fields = [
            merkle::leaf(tag::FLAGS, &self.flags.to_le_bytes()),
            merkle::leaf(tag::TIME, &self.time_us.to_le_bytes()),
            self.parent,
            merkle::leaf(tag::TARGET, &self.target.to_le_bytes()),
            self.payload,
            merkle::leaf(tag::CHAIN, &self.chain.to_le_bytes()),
            merkle::leaf(tag::WEIGHT, &self.weight.to_le_bytes()),
            merkle::leaf(tag::HEIGHT, &self.height.to_le_bytes()),
            merkle::leaf(tag::VERSION, &self.version.to_le_bytes()),
            merkle::leaf(tag::EPOCH, &self.epoch_us.to_le_bytes()),
            merkle::leaf(tag::NONCE, &self.nonce.to_le_bytes()),
        ];
        merkle::root(fields.into_iter().chain(self.adjacents.iter().map(|(_, hash)| *hash)))
    }

    /// Whether BLAKE2s-256 of its bytes does not exceed its target, both as little-endian numbers (chainweb-node,
    /// `Chainweb/Difficulty.hs`, `checkTarget`). Versions may have another proof of work, or none: see `version`.
    pub fn work_is_enough(&self) -> bool {
        let hash = blake2s_simd::blake2s(&self.work_bytes());
        Number::from_le_bytes(*hash.as_array()) <= self.target
    }

    /// Whether it has the parent of a genesis block.
    pub fn is_genesis(&self) -> bool {
        self.parent == version::genesis_parent(self.version, self.chain)
    }
}

/// The fields that are still to be parsed.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn number(&mut self) -> Option<Number> {
        self.take().map(Number::from_le_bytes)
    }

    fn digest(&mut self) -> Option<Digest> {
        self.take().map(Digest)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn digests() -> impl Strategy<Value = Digest> {
        any::<[u8; 32]>().prop_map(Digest)
    }

    fn numbers() -> impl Strategy<Value = Number> {
        any::<[u8; 32]>().prop_map(Number::from_le_bytes)
    }

    prop_compose! {
        fn headers()(
            (flags, time_us, parent, adjacents) in (any::<u64>(), any::<u64>(), digests(), vec((any::<u32>(), digests()), 0..6)),
            (target, payload, chain, weight) in (numbers(), digests(), any::<u32>(), numbers()),
            (height, version, epoch_us, nonce, hash) in (any::<u64>(), any::<u32>(), any::<u64>(), any::<u64>(), digests()),
        ) -> Header {
            Header {
                flags, time_us, parent, adjacents, target, payload, chain, weight, height, version, epoch_us, nonce, hash,
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn headers_round_trip(header in headers(), cut in 1_usize..150) {
            let bytes = header.encode();
            prop_assert_eq!(bytes.len(), 210 + 36 * header.adjacents.len());
            prop_assert_eq!(Header::parse(&bytes), Ok(header.clone()));
            let (shorter, longer) = (&bytes[..bytes.len() - cut], [bytes.as_slice(), &vec![0; cut]].concat());
            for other in [shorter, &longer] {
                let malformed = Header::parse(other).unwrap_err();
                prop_assert_eq!(malformed, Malformed { bytes: other.len(), expected_bytes: bytes.len() });
            }
            // Neither does any content make these panic.
            header.merkle_hash();
            header.work_is_enough();
            header.is_genesis();
        }

        #[test]
        fn no_bytes_make_it_panic(mut bytes in vec(any::<u8>(), 0..400), count in 0_u8..8) {
            let _ = Header::parse(&bytes);
            if let Some(field) = bytes.get_mut(COUNT_AT..COUNT_AT + 2) {
                field.copy_from_slice(&[count, 0]);
            }
            if let Ok(header) = Header::parse(&bytes) {
                prop_assert_eq!(header.encode(), bytes);
            }
        }
    }

    #[test]
    fn the_size_is_that_of_the_graph() {
        for (count, size) in [(0_u16, 210), (1, 246), (2, 282), (3, 318), (4, 354), (65535, 210 + 36 * 65535)] {
            let mut bytes = vec![0; size];
            bytes[COUNT_AT..COUNT_AT + 2].copy_from_slice(&count.to_le_bytes());
            assert_eq!(Header::parse(&bytes).unwrap().adjacents.len(), usize::from(count));
            for other in [size - 1, size + 1, size + 36, size.saturating_sub(36), COUNT_AT + 1, 0] {
                bytes.resize(other, 0);
                assert!(Header::parse(&bytes).is_err(), "{count} {other}");
            }
        }
        assert_eq!(Header::parse(&[]).unwrap_err().to_string(), "it has 0 bytes, not 210");
    }
}
