//! The tables of the node in its RocksDB, and the keys in them.
//!
//! All are in the default column family, told apart by the beginning of the key: `-`, the parts of the table's name joined by `/`,
//! `$`. The smallest key above all of a table has `%` in the place of `$` (chainweb-node,
//! `chainweb-storage/src/Chainweb/Storage/Table/RocksDB.hs`). Then follows:
//! ```text
//! -CutHashes$                          sum of the heights BE 8, weight BE 32, id 32
//! -BlockHeader/N/header$               height BE 8, hash 32
//! -BlockHeader/N/rank$                 hash 32
//! -BlockPayload2$ and the others of 2  height LE 8, hash 32
//! -BlockPayload$ and the older ones    hash 32
//! -EvmHeader/N/header$ and the others  height BE 8, payload hash 32         (branch evm/main)
//! -BlockHeader/prune-job$ …            nothing                              (branch evm/main)
//! ```
//! Heights are big-endian in the tables of headers, so that the newest block is last; in the tables of payloads they are
//! little-endian (chainweb-node, `Chainweb/BlockHeight.hs`, `Chainweb/Ranked.hs`, `Chainweb/Payload/PayloadStore/RocksDB.hs`).

use crate::chainweb::digest::Digest;
use crate::chainweb::number::Number;

/// The beginning of every key of the table of cuts, and the smallest key above all of them.
pub const CUTS: &[u8] = b"-CutHashes$";
/// See [`CUTS`].
pub const CUTS_END: &[u8] = b"-CutHashes%";

/// The key that the node writes, without a value, each time that it opens RocksDB read-write (chainweb-node,
/// `chainweb-storage/src/Chainweb/Storage/Table/RocksDB.hs`).
pub const OPENED: &[u8] = b".";

/// A table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Cuts, in JSON.
    Cuts,
    /// The headers of a chain.
    Headers(u32),
    /// The heights of a chain's headers, by hash.
    Ranks(u32),
    /// The heights of payloads, by hash; since 2.24.
    PayloadIndex,
    /// The hashes that make up a payload; since 2.24.
    Payloads,
    /// Transactions and the miner; since 2.24.
    Transactions,
    /// Outputs of transactions and coinbase; since 2.24.
    Outputs,
    /// The Merkle trees of transactions; since 2.24.
    TransactionTrees,
    /// The Merkle trees of outputs; since 2.24.
    OutputTrees,
    /// As [`Table::Payloads`], in JSON; until 2.23. The node reads it if the newer table lacks the hash. So the next ones.
    OldPayloads,
    /// As [`Table::Transactions`], in JSON; until 2.23.
    OldTransactions,
    /// As [`Table::Outputs`], in JSON; until 2.23.
    OldOutputs,
    /// As [`Table::TransactionTrees`], in JSON; until 2.23.
    OldTransactionTrees,
    /// As [`Table::OutputTrees`], in JSON; until 2.23.
    OldOutputTrees,
    /// The payloads of an EVM chain; branch evm/main.
    EvmPayloads(u32),
    /// The headers of an EVM chain; branch evm/main.
    EvmHeaders(u32),
    /// The payloads of a chain without transactions; branch evm/main.
    MinimalPayloads(u32),
    /// The progress of pruning; branch evm/main.
    PruneJob,
    /// The highest pruned block; branch evm/main.
    HighestPruned,
}

/// The part of a key after the beginning that is common to its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A cut: the sum of its heights, its weight and its id.
    Cut(CutPlace),
    /// A height and a hash.
    Block(u64, Digest),
    /// A hash.
    Hash(Digest),
    /// Nothing: the table has one key.
    Only,
}

/// The place of a cut: the order of cuts is that of these fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CutPlace {
    /// The sum of the heights of all chains.
    pub height: u64,
    /// The sum of the weights of all chains.
    pub weight: Number,
    /// The id, a hash over the hashes of the blocks.
    pub id: Digest,
}

/// The form of a table's keys.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Cut,
    BigEndian,
    LittleEndian,
    Hash,
    Only,
}

/// The tables that are not of one chain, with their names.
const OF_ALL: [(Table, &str); 14] = [
    (Table::Cuts, "CutHashes"),
    (Table::PayloadIndex, "BlockPayloadIndex"),
    (Table::Payloads, "BlockPayload2"),
    (Table::Transactions, "BlockTransactions2"),
    (Table::Outputs, "BlockOutputs2"),
    (Table::TransactionTrees, "TransactionTree2"),
    (Table::OutputTrees, "OutputTree2"),
    (Table::OldPayloads, "BlockPayload"),
    (Table::OldTransactions, "BlockTransactions"),
    (Table::OldOutputs, "BlockOutputs"),
    (Table::OldTransactionTrees, "TransactionTree"),
    (Table::OldOutputTrees, "OutputTree"),
    (Table::PruneJob, "BlockHeader/prune-job"),
    (Table::HighestPruned, "BlockHeader/highest-pruned"),
];

/// A table of one chain, as a function of the chain, with the parts of its name before and after the chain.
type OfChain = (fn(u32) -> Table, &'static str, &'static str);
const OF_CHAIN: [OfChain; 5] = [
    (Table::Headers, "BlockHeader", "header"),
    (Table::Ranks, "BlockHeader", "rank"),
    (Table::EvmPayloads, "EvmPayload", "payload"),
    (Table::EvmHeaders, "EvmHeader", "header"),
    (Table::MinimalPayloads, "MinimalProvider", "payload"),
];

impl Table {
    /// The beginning of all its keys.
    pub fn prefix(self) -> Vec<u8> {
        format!("-{}$", self.name()).into_bytes()
    }

    /// The smallest key above all of its keys.
    pub fn end(self) -> Vec<u8> {
        format!("-{}%", self.name()).into_bytes()
    }

    /// The key of a block, a payload or a part of a payload: `hash` is that of the block in the tables of headers, and of what
    /// the table holds in all others. Tables whose keys have no height ignore it. `None` for tables whose keys are of another form.
    pub fn key(self, height: u64, hash: &Digest) -> Option<Vec<u8>> {
        let height: &[u8] = match self.form() {
            Form::BigEndian => &height.to_be_bytes(),
            Form::LittleEndian => &height.to_le_bytes(),
            Form::Hash => &[],
            Form::Cut | Form::Only => return None,
        };
        Some([&self.prefix(), height, &hash.0].concat())
    }

    /// The table and the place that a key names; `None` for a key of no known table, or of another length.
    pub fn parse(key: &[u8]) -> Option<(Table, Place)> {
        let (name, rest) = key.strip_prefix(b"-")?.split_at(key.iter().position(|byte| *byte == b'$')?.checked_sub(1)?);
        let table = Table::of_name(std::str::from_utf8(name).ok()?)?;
        Some((table, table.place(rest.strip_prefix(b"$")?)?))
    }

    fn place(self, rest: &[u8]) -> Option<Place> {
        match self.form() {
            Form::Cut => CutPlace::parse(rest).map(Place::Cut),
            Form::Hash => Digest::from_slice(rest).map(Place::Hash),
            Form::Only => rest.is_empty().then_some(Place::Only),
            form => {
                let (height, hash) = rest.split_first_chunk()?;
                let height =
                    if form == Form::BigEndian { u64::from_be_bytes(*height) } else { u64::from_le_bytes(*height) };
                Some(Place::Block(height, Digest::from_slice(hash)?))
            }
        }
    }

    fn form(self) -> Form {
        match self {
            Table::Cuts => Form::Cut,
            Table::Headers(_) | Table::EvmPayloads(_) | Table::EvmHeaders(_) | Table::MinimalPayloads(_) => {
                Form::BigEndian
            }
            Table::Payloads | Table::Transactions | Table::Outputs => Form::LittleEndian,
            Table::TransactionTrees | Table::OutputTrees => Form::LittleEndian,
            Table::Ranks(_) | Table::PayloadIndex | Table::OldPayloads | Table::OldTransactions => Form::Hash,
            Table::OldOutputs | Table::OldTransactionTrees | Table::OldOutputTrees => Form::Hash,
            Table::PruneJob | Table::HighestPruned => Form::Only,
        }
    }

    fn name(self) -> String {
        let chain = match self {
            Table::Headers(chain) | Table::Ranks(chain) | Table::MinimalPayloads(chain) => chain,
            Table::EvmPayloads(chain) | Table::EvmHeaders(chain) => chain,
            _ => {
                let named = OF_ALL.iter().find(|(table, _)| *table == self);
                return named.map(|(_, name)| (*name).to_owned()).expect("every table without a chain is in the list");
            }
        };
        let (_, before, after) =
            OF_CHAIN.iter().find(|(table, ..)| table(chain) == self).expect("every table of a chain is in the list");
        format!("{before}/{chain}/{after}")
    }

    fn of_name(name: &str) -> Option<Table> {
        if let Some((table, _)) = OF_ALL.iter().find(|(_, known)| *known == name) {
            return Some(*table);
        }
        let mut parts = name.split('/');
        let (before, chain, after) = (parts.next()?, parts.next()?, parts.next()?);
        let (table, ..) = OF_CHAIN.iter().find(|(_, b, a)| (*b, *a) == (before, after))?;
        let table = table(chain.parse().ok()?);
        // Leading zeros and signs are not the node's.
        (table.name() == name).then_some(table)
    }
}

impl CutPlace {
    /// Parses the part of a key after [`CUTS`]: 8, 32 and 32 bytes (chainweb-node, `Chainweb/CutDB.hs`).
    pub fn parse(rest: &[u8]) -> Option<CutPlace> {
        let (height, rest) = rest.split_first_chunk()?;
        let (weight, id) = rest.split_first_chunk()?;
        Some(CutPlace {
            height: u64::from_be_bytes(*height),
            weight: Number::from_be_bytes(*weight),
            id: Digest::from_slice(id)?,
        })
    }

    /// The whole key.
    pub fn key(&self) -> Vec<u8> {
        [CUTS, &self.height.to_be_bytes(), &self.weight.to_be_bytes(), &self.id.0].concat()
    }
}

/// Parses a value of the tables of ranks and of the payload index: a height, 8 bytes little-endian.
pub fn parse_height(value: &[u8]) -> Option<u64> {
    value.try_into().ok().map(u64::from_le_bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tables() -> impl Strategy<Value = Table> {
        let of_chain = (0..OF_CHAIN.len(), any::<u32>()).prop_map(|(i, chain)| OF_CHAIN[i].0(chain));
        prop_oneof![(0..OF_ALL.len()).prop_map(|i| OF_ALL[i].0), of_chain]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn keys_round_trip(table in tables(), height: u64, weight: [u8; 32], hash: [u8; 32]) {
            let (hash, weight) = (Digest(hash), Number::from_be_bytes(weight));
            let (key, expected) = match table.form() {
                Form::Cut => {
                    let place = CutPlace { height, weight, id: hash };
                    (place.key(), Place::Cut(place))
                }
                Form::Hash => (table.key(height, &hash).unwrap(), Place::Hash(hash)),
                Form::Only => (table.prefix(), Place::Only),
                _ => (table.key(height, &hash).unwrap(), Place::Block(height, hash)),
            };
            prop_assert_eq!(Table::parse(&key), Some((table, expected)));
            prop_assert!(key.starts_with(&table.prefix()) && key < table.end() && table.prefix() <= key);
            for other in [&key[..key.len() - 1], &[key.as_slice(), b"x"].concat(), &key[1..]] {
                prop_assert_eq!(Table::parse(other), None);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(key: Vec<u8>, text in "-?[A-Za-z0-9/+$-]{0,20}\\$.{0,9}") {
            Table::parse(&key);
            Table::parse(text.as_bytes());
        }

        #[test]
        fn cuts_are_in_the_order_of_their_keys(a: (u64, [u8; 32], [u8; 32]), b: (u64, [u8; 32], [u8; 32]), same: bool) {
            let place = |(height, weight, id)| CutPlace { height, weight: Number::from_be_bytes(weight), id: Digest(id) };
            let (a, b) = (place(a), place((if same { a.0 } else { b.0 }, b.1, b.2)));
            prop_assert_eq!(a.cmp(&b), a.key().cmp(&b.key()));
        }
    }

    #[test]
    fn the_names_are_the_nodes() {
        let text = |table: Table| String::from_utf8(table.prefix()).unwrap();
        assert_eq!((text(Table::Cuts).as_bytes(), Table::Cuts.end().as_slice()), (CUTS, CUTS_END));
        assert_eq!(text(Table::Headers(19)), "-BlockHeader/19/header$");
        assert_eq!(text(Table::Ranks(0)), "-BlockHeader/0/rank$");
        assert_eq!(text(Table::Payloads), "-BlockPayload2$");
        assert_eq!(text(Table::EvmPayloads(20)), "-EvmPayload/20/payload$");
        for name in
            ["-BlockHeader/01/header$", "-BlockHeader/+1/header$", "-BlockHeader/1/header/x$", "-BlockHeader-1$", "$"]
        {
            let key = [name.as_bytes(), &[0; 40]].concat();
            assert_eq!(Table::parse(&key), None, "{name}");
        }
        assert_eq!(parse_height(&[0x40, 0x42, 0x0f, 0, 0, 0, 0, 0]), Some(1_000_000));
        assert_eq!((parse_height(&[0; 7]), parse_height(&[0; 9])), (None, None));
    }
}
