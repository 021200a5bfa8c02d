//! The tables of a Pact database that have a row for each block, and their columns.
//!
//! Heights are integers, hashes are 32 raw bytes (chainweb-node, `Chainweb/Pact5/Backend/ChainwebPactDb.hs`). A node of the branch
//! evm/main copies `BlockHistory` to `BlockHistory2` when it starts, and removes it then (there,
//! `Chainweb/PayloadProvider/Pact/BlockHistoryMigration.hs`).

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
