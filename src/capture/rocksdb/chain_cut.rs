//! The newest cut of a finished copy, as a child process tells it, and the comparison of a Pact database with it.
//!
//! A node commits a block to Pact before RocksDB has it. If it is killed between the two and started again, that block may never
//! reach RocksDB, and the cut may have another block at the same height or above. So blocks are compared, not heights, as far as
//! both are known. A cut does not name the blocks below it; the node's table of headers does.
//!
//! Invariants: what stands in the place of a cut and has another form is no reason to fail: its height is that of its key, and of
//! its blocks nothing is known. A block of which nothing is known is not reported as wrong.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::chainweb::cut;
use crate::chainweb::digest::Digest;
use crate::fault::Fault;
use crate::format::record::BlockHeights;

/// The newest block of a Pact database.
#[derive(Debug, Clone)]
pub(crate) struct Tip {
    pub(crate) chain: u32,
    pub(crate) height: u64,
    /// If the database has 32 bytes, as that of a node has.
    pub(crate) hash: Option<Digest>,
}

/// A cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cut {
    /// The sum of the heights of its blocks.
    pub(crate) height: u64,
    /// The name of its version; `None` if the cut is malformed.
    #[serde(default)]
    pub(crate) version: Option<String>,
    /// The newest blocks, by chain; none if the cut is malformed.
    #[serde(default)]
    pub(crate) tips: BTreeMap<u32, cut::Tip>,
    /// The lowest and the highest of them.
    #[serde(default)]
    pub(crate) block_heights: Option<BlockHeights>,
    /// Why only its height is known.
    #[serde(default)]
    pub(crate) malformed: Option<String>,
    /// Whether RocksDB has the header of the newest Pact block, by chain, if it has a table of headers.
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

/// The result of reading the heights of a finished copy.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Heights {
    /// The content of the copy is damaged. The file is a name in the directory of the copy; empty if RocksDB names none.
    Damaged(Fault),
    /// The disk did not let RocksDB read, with an error after which the content may be lost, or may be read at another time.
    Unread(Fault),
    /// The newest cut, if there is one.
    Cut(Option<Cut>),
}

impl Cut {
    /// Parses a whole key of the table of cuts and its value; `None` if the key has no height.
    #[cfg(feature = "engine")]
    pub(crate) fn parse(key: &[u8], value: &[u8]) -> Option<Cut> {
        let height = u64::from_be_bytes(*key.strip_prefix(crate::chainweb::tables::CUTS)?.first_chunk()?);
        let (version, tips, block_heights, malformed) = match cut::Cut::parse(key, value) {
            Ok(cut) => {
                let (lowest, highest) = cut.heights();
                (Some(cut.instance), cut.tips, Some(BlockHeights { lowest, highest }), None)
            }
            Err(why) => (None, BTreeMap::new(), None, Some(why.to_string())),
        };
        Some(Cut { height, version, tips, block_heights, malformed, has_header: BTreeMap::new() })
    }

    /// The position of a Pact database whose newest block is `tip`; `None` if the cut does not have its chain.
    pub(crate) fn standing(&self, tip: &Tip) -> Option<Standing> {
        let block = self.tips.get(&tip.chain)?;
        if tip.height > block.height {
            return Some(Standing::Above(tip.height - block.height));
        }
        let behind = Standing::Behind(block.height - tip.height);
        let is_tip = tip.hash.filter(|_| tip.height == block.height).map(|hash| hash == block.hash);
        Some(match (self.has_header.get(&tip.chain), is_tip) {
            (Some(true), _) | (_, Some(true)) | (None, None) => behind,
            (Some(false), _) | (None, Some(false)) => Standing::Unknown,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SAME: Digest = Digest([7; 32]);
    const OTHER: Digest = Digest([8; 32]);

    #[test]
    fn a_block_is_compared_as_far_as_it_is_known() {
        let standing = |height: u64, hash: Option<Digest>, has_header: Option<bool>| {
            let cut = Cut {
                height: 60,
                version: None,
                tips: [(3, cut::Tip { height: 30, hash: SAME }), (4, cut::Tip { height: 30, hash: OTHER })].into(),
                block_heights: None,
                malformed: None,
                has_header: has_header.map(|has| (3, has)).into_iter().collect(),
            };
            assert_eq!(cut.standing(&Tip { chain: 5, height, hash }), None);
            cut.standing(&Tip { chain: 3, height, hash }).unwrap()
        };
        let (same, other) = (Some(SAME), Some(OTHER));
        assert_eq!(standing(30, same, None), Standing::Behind(0));
        assert_eq!(standing(30, other, None), Standing::Unknown);
        assert_eq!(standing(31, same, None), Standing::Above(1));
        // The block of Pact is not known, or the cut has none of its height.
        assert_eq!(standing(30, None, None), Standing::Behind(0));
        assert_eq!(standing(28, other, None), Standing::Behind(2));
        // The table of headers has more blocks than a cut.
        assert_eq!(standing(28, other, Some(true)), Standing::Behind(2));
        assert_eq!(standing(28, other, Some(false)), Standing::Unknown);
        assert_eq!(standing(30, other, Some(true)), Standing::Behind(0));
        assert_eq!(standing(30, other, Some(false)), Standing::Unknown);
        assert_eq!(standing(30, same, Some(false)), Standing::Behind(0));
        assert_eq!(standing(32, same, Some(true)), Standing::Above(2));
    }

    #[cfg(feature = "engine")]
    #[test]
    fn a_malformed_cut_has_its_height_only() {
        let key =
            |height: u64, rest: usize| [crate::chainweb::tables::CUTS, &height.to_be_bytes(), &vec![1; rest]].concat();
        for (key, value) in [(key(40, 64), &b"{}"[..]), (key(40, 40), &b"{}"[..]), (key(40, 0), &b""[..])] {
            let cut = Cut::parse(&key, value).unwrap();
            assert_eq!((cut.height, cut.version, cut.tips.len(), cut.block_heights), (40, None, 0, None));
            assert!(cut.malformed.is_some());
        }
        for key in [&key(40, 0)[..18], &key(40, 64)[1..], b""] {
            assert_eq!(Cut::parse(key, b"{}"), None);
        }
    }
}
