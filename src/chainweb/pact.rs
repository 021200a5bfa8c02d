//! The tables of a Pact database that have a row for each block, their columns, and whether their rows begin with the genesis block.
//!
//! Heights are integers, hashes are 32 raw bytes (chainweb-node, `Chainweb/Pact5/Backend/ChainwebPactDb.hs`). A node of the branch
//! evm/main copies `BlockHistory` to `BlockHistory2` when it starts, in ascending order and in several transactions, and removes it
//! in the last one (there, `Chainweb/PayloadProvider/Pact/BlockHistoryMigration.hs`). So both may have rows, and the newest block is
//! the higher one of both.

use serde::Serialize;

use crate::chainweb::version::Version;

/// The tables with a row for each block, the newest form first: with [`HEIGHT`], [`HASH`] and [`ENDING_TXID`].
pub const HISTORIES: [&str; 2] = ["BlockHistory2", "BlockHistory"];

/// The height of a block, unique.
pub const HEIGHT: &str = "blockheight";

/// The hash of a block.
pub const HASH: &str = "hash";

/// The number of the first transaction after the block.
pub const ENDING_TXID: &str = "endingtxid";

/// The hash of a block's payload; not in `BlockHistory`.
pub const PAYLOAD_HASH: &str = "payloadhash";

/// The table of the branch evm/main with the newest final and the newest safe block: [`HEIGHT`], [`HASH`], [`PAYLOAD_HASH`] and
/// [`SAFETY`].
pub const CONSENSUS_STATE: &str = "ConsensusState";

/// Which of the two a row of [`CONSENSUS_STATE`] is: `final` or `safe`.
pub const SAFETY: &str = "safety";

/// Whether a Pact database has a row for every block of its chain. A node that demands that, as by default, does not start unless
/// the lowest row is that of the genesis block (chainweb-node, `Chainweb/Pact/PactService.hs`, `FullHistoryRequired`).
///
/// The order is from the best to the worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum History {
    /// It begins with the genesis block, or the database has no block: then the node computes all of them.
    Whole,
    /// The height of the genesis block is not known, or is above the lowest row.
    Unknown,
    /// It begins above the genesis block: compaction has removed the blocks below.
    Compacted,
}

impl History {
    /// The history of a chain whose lowest row has this height, in this version.
    pub fn of(lowest: Option<u64>, chain: Option<u32>, version: Option<&Version>) -> History {
        let Some(lowest) = lowest else { return History::Whole };
        match version.zip(chain).and_then(|(version, chain)| version.genesis_height(chain)) {
            Some(genesis) if lowest == genesis => History::Whole,
            Some(genesis) if lowest > genesis => History::Compacted,
            // No genesis block is lower.
            None if lowest == 0 => History::Whole,
            _ => History::Unknown,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_history_begins_where_the_version_says() {
        let of = |lowest, chain, name: &str| History::of(Some(lowest), chain, Version::of_name(name).ok());
        for (name, late) in [("mainnet01", 852_054), ("testnet04", 332_604), ("recap-development", 60)] {
            assert_eq!((of(0, Some(9), name), of(1, Some(9), name)), (History::Whole, History::Compacted));
            assert_eq!((of(late, Some(10), name), of(late + 1, Some(10), name)), (History::Whole, History::Compacted));
            // Below the genesis block: the database is of another chain or version.
            assert_eq!((of(late - 1, Some(10), name), of(0, Some(10), name)), (History::Unknown, History::Unknown));
            assert_eq!(of(late, Some(0), name), History::Compacted);
        }
        // Chains that are there from the beginning in other versions.
        for name in ["testnet06", "icosa", "development", "evm-development"] {
            assert_eq!((of(0, Some(19), name), of(852_054, Some(19), name)), (History::Whole, History::Compacted));
        }
        assert_eq!(of(5, Some(10), "stoa"), History::Unknown, "stoa has ten chains");
    }

    #[test]
    fn what_is_not_known_is_not_guessed() {
        let mainnet = Version::of_name("mainnet01").ok();
        for (chain, version) in [(Some(10), None), (None, mainnet), (None, None), (Some(20), mainnet)] {
            assert_eq!(History::of(Some(852_054), chain, version), History::Unknown);
            assert_eq!(History::of(Some(0), chain, version), History::Whole);
            assert_eq!(History::of(None, chain, version), History::Whole);
        }
        assert!(History::Whole < History::Unknown && History::Unknown < History::Compacted);
    }
}
