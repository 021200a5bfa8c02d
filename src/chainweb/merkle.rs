//! The Merkle trees of the node: RFC 6962, section 2.1, with SHA-512/256.
//!
//! ```text
//! leaf   H(0x00 tag bytes)       the tag has two bytes, big-endian
//! node   H(0x01 left right)
//! ```
//! An odd tail is joined from right to left; a hash may stand in the place of a leaf (chainweb-node, `Chainweb/Crypto/MerkleLog.hs`,
//! `Chainweb/MerkleUniverse.hs`; merkle-log, `Data/MerkleLog.hs`).

use sha2::{Digest as _, Sha512_256};

use crate::chainweb::digest::Digest;

/// The tags of leaves (chainweb-node, `Chainweb/MerkleUniverse.hs`).
pub mod tag {
    /// A chain.
    pub const CHAIN: u16 = 0x02;
    /// A height.
    pub const HEIGHT: u16 = 0x03;
    /// A weight.
    pub const WEIGHT: u16 = 0x04;
    /// Flags, or the fork state.
    pub const FLAGS: u16 = 0x06;
    /// A creation time.
    pub const TIME: u16 = 0x07;
    /// A version code.
    pub const VERSION: u16 = 0x08;
    /// A target.
    pub const TARGET: u16 = 0x11;
    /// A transaction.
    pub const TRANSACTION: u16 = 0x13;
    /// The output of a transaction.
    pub const OUTPUT: u16 = 0x14;
    /// The data of the miner.
    pub const MINER: u16 = 0x17;
    /// The output of the coinbase.
    pub const COINBASE: u16 = 0x18;
    /// The start of an epoch.
    pub const EPOCH: u16 = 0x19;
    /// A nonce.
    pub const NONCE: u16 = 0x20;
}

/// The hash of a leaf with a tag.
pub fn leaf(tag: u16, bytes: &[u8]) -> Digest {
    hash(&[&[0], &tag.to_be_bytes(), bytes])
}

/// The hash of a leaf without a tag.
pub fn untagged(bytes: &[u8]) -> Digest {
    hash(&[&[0], bytes])
}

/// The hash of an inner node.
pub fn node(left: &Digest, right: &Digest) -> Digest {
    hash(&[&[1], &left.0, &right.0])
}

/// The root over the hashes of leaves. The root of no leaf is the hash of nothing.
pub fn root(leaves: impl IntoIterator<Item = Digest>) -> Digest {
    // Complete trees, the largest first, with their numbers of leaves.
    let mut trees: Vec<(u64, Digest)> = Vec::new();
    for leaf in leaves {
        let mut tree = (1, leaf);
        while let Some((count, left)) = trees.pop_if(|(count, _)| *count == tree.0) {
            tree = (2 * count, node(&left, &tree.1));
        }
        trees.push(tree);
    }
    let hashes = trees.into_iter().map(|(_, hash)| hash);
    hashes.rev().reduce(|right, left| node(&left, &right)).unwrap_or_else(|| hash(&[]))
}

fn hash(parts: &[&[u8]]) -> Digest {
    let mut state = Sha512_256::new();
    parts.iter().for_each(|part| state.update(part));
    Digest(state.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_that_of_rfc_6962() {
        // The recursive definition: the left part has the largest power of two below the number of leaves.
        fn defined(leaves: &[Digest]) -> Digest {
            match leaves {
                [] => hash(&[]),
                [only] => *only,
                _ => {
                    let left = leaves.len().next_power_of_two() / 2;
                    node(&defined(&leaves[..left]), &defined(&leaves[left..]))
                }
            }
        }
        let leaves: Vec<Digest> = (0..70_u8).map(|i| leaf(u16::from(i), &[i])).collect();
        for count in 0..leaves.len() {
            assert_eq!(root(leaves[..count].iter().copied()), defined(&leaves[..count]), "{count} leaves");
        }
        // SHA-512/256 of nothing, FIPS 180-4.
        let empty = "c672b8d1ef56ed28ab87c3622c5114069bdd3ad7b8f9737498d0c01ecef0967a";
        assert_eq!(root([]).to_hex(), empty);
    }
}
