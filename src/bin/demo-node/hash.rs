//! Hashes: SHA-512/256, the Merkle tree of RFC 6962 over it, and the text form (base64url without padding). No I/O.
//!
//! A leaf is H(0x00, tag as u16 big-endian, bytes), a node H(0x01, left, right). A tree with a number of leaves that is no
//! power of two ends in smaller whole trees, which are joined from right to left.

use data_encoding::BASE64URL_NOPAD;
use sha2::{Digest, Sha512_256};
use std::fmt;

/// A hash of 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// A stored hash; `None` if the length is wrong.
    pub fn from_slice(bytes: &[u8]) -> Option<Hash> {
        bytes.try_into().ok().map(Hash)
    }

    /// From its text; `None` if that is none.
    pub fn from_text(text: &str) -> Option<Hash> {
        Hash::from_slice(&from_base64(text)?)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base64(&self.0))
    }
}

/// Bytes as the node writes them in JSON.
pub fn base64(bytes: &[u8]) -> String {
    BASE64URL_NOPAD.encode(bytes)
}

/// The bytes of such a text.
pub fn from_base64(text: &str) -> Option<Vec<u8>> {
    BASE64URL_NOPAD.decode(text.as_bytes()).ok()
}

/// The hash of the parts one after the other.
pub fn sha(parts: &[&[u8]]) -> Hash {
    let mut state = Sha512_256::new();
    for part in parts {
        state.update(part);
    }
    Hash(state.finalize().into())
}

/// A leaf with a tag.
pub fn leaf(tag: u16, bytes: &[u8]) -> Hash {
    sha(&[&[0], &tag.to_be_bytes(), bytes])
}

/// A leaf without one.
pub fn untagged_leaf(bytes: &[u8]) -> Hash {
    sha(&[&[0], bytes])
}

/// The node above two others.
pub fn node(left: &Hash, right: &Hash) -> Hash {
    sha(&[&[1], &left.0, &right.0])
}

/// Every hash of the tree, a node after the two below it; the last is the root. There must be a leaf.
pub fn tree(leaves: &[Hash]) -> Vec<Hash> {
    let mut all = Vec::with_capacity(2 * leaves.len());
    // Whole trees from left to right: each with its root and its number of leaves.
    let mut whole: Vec<(Hash, usize)> = Vec::new();
    for leaf in leaves {
        all.push(*leaf);
        whole.push((*leaf, 1));
        while let [.., (left, left_count), (right, right_count)] = whole[..]
            && left_count == right_count
        {
            join(&mut whole, &mut all, (left, right, left_count + right_count));
        }
    }
    while let [.., (left, left_count), (right, right_count)] = whole[..] {
        join(&mut whole, &mut all, (left, right, left_count + right_count));
    }
    all
}

fn join(whole: &mut Vec<(Hash, usize)>, all: &mut Vec<Hash>, (left, right, count): (Hash, Hash, usize)) {
    let above = node(&left, &right);
    all.push(above);
    whole.truncate(whole.len() - 2);
    whole.push((above, count));
}

/// The root of the tree.
pub fn root(leaves: &[Hash]) -> Hash {
    *tree(leaves).last().expect("a tree has a leaf")
}
