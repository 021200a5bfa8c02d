//! The node's own table of cuts, as it stands in RocksDB: which block is the newest of every chain.
//!
//! Invariant: what does not look like a cut is none; another node's table is not our business.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::fault::Fault;

/// A cut: the newest block of every chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cut {
    pub(crate) height: u64,
    /// Block height by chain.
    pub(crate) chains: BTreeMap<u32, u64>,
}

/// What RocksDB says of a finished copy.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Heights {
    /// It cannot read it. The file is a name in the directory of the copy; empty where RocksDB names none.
    Damaged(Fault),
    /// The newest cut, where there is one.
    Cut(Option<Cut>),
}

#[cfg(feature = "engine")]
impl Cut {
    /// The table, as a prefix of its keys, and the smallest key above every key with that prefix.
    pub(crate) const PREFIX: &[u8] = b"-CutHashes$";
    pub(crate) const PREFIX_END: &[u8] = b"-CutHashes%";

    /// A cut as the node stores it: behind the prefix, the key begins with the height, 8 bytes big-endian; the value is
    /// JSON with `height` and `hashes: {chain: {height, hash}}`.
    pub(crate) fn parse(key: &[u8], value: &[u8]) -> Option<Cut> {
        #[derive(Deserialize)]
        struct StoredBlock {
            height: u64,
        }
        #[derive(Deserialize)]
        struct StoredCut {
            hashes: BTreeMap<String, StoredBlock>,
        }
        let height = u64::from_be_bytes(key.get(..8)?.try_into().ok()?);
        let stored: StoredCut = serde_json::from_slice(value).ok()?;
        let chains = stored.hashes.into_iter().map(|(chain, block)| Some((chain.parse().ok()?, block.height)));
        Some(Cut { height, chains: chains.collect::<Option<_>>()? })
    }
}
