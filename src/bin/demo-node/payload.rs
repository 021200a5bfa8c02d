//! Payloads of blocks: transactions, outputs, their Merkle roots, and the values of their tables. No I/O.
//!
//! ```text
//! transactions root = tree [miner data, transaction, …]     payload hash = H(1, transactions root, outputs root)
//! outputs root      = tree [coinbase output, output, …]
//! ```

use crate::hash::{Hash, leaf, node, tree};

const TRANSACTION: u16 = 0x13;
const OUTPUT: u16 = 0x14;
const MINER: u16 = 0x17;
const COINBASE: u16 = 0x18;

/// The transactions of a block, or its outputs: `extra` is the miner data, or the output of the coinbase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub items: Vec<Vec<u8>>,
    pub extra: Vec<u8>,
}

/// What a block has beside its header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    pub transactions: Part,
    pub outputs: Part,
}

/// The three hashes of a payload: the value of `BlockPayload2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roots {
    pub payload: Hash,
    pub transactions: Hash,
    pub outputs: Hash,
}

impl Roots {
    pub fn encode(&self) -> Vec<u8> {
        [self.payload.0, self.transactions.0, self.outputs.0].concat()
    }

    /// `None` if the length is wrong.
    pub fn decode(bytes: &[u8]) -> Option<Roots> {
        let [payload, transactions, outputs] = [0, 32, 64].map(|at| bytes.get(at..at + 32).and_then(Hash::from_slice));
        (bytes.len() == 96).then_some(Roots { payload: payload?, transactions: transactions?, outputs: outputs? })
    }

    /// Whether the payload hash is that of the two others.
    pub fn are_sound(&self) -> bool {
        node(&self.transactions, &self.outputs) == self.payload
    }
}

impl Payload {
    /// The tree of the transactions and that of the outputs; the last hash of each is its root.
    pub fn trees(&self) -> [Vec<Hash>; 2] {
        let of = |part: &Part, extra, item| {
            let items = part.items.iter().map(|bytes| leaf(item, bytes));
            tree(&[leaf(extra, &part.extra)].into_iter().chain(items).collect::<Vec<_>>())
        };
        [of(&self.transactions, MINER, TRANSACTION), of(&self.outputs, COINBASE, OUTPUT)]
    }

    pub fn roots(&self) -> Roots {
        let [transactions, outputs] = self.trees().map(|hashes| hashes[hashes.len() - 1]);
        Roots { payload: node(&transactions, &outputs), transactions, outputs }
    }

    /// Bytes of the transactions.
    pub fn transactions_bytes(&self) -> u64 {
        self.transactions.items.iter().map(|item| item.len() as u64).sum()
    }
}

impl Part {
    /// The value of `BlockTransactions2` and `BlockOutputs2`: root, number, each length and item, length of and extra.
    pub fn encode(&self, root: &Hash) -> Vec<u8> {
        let mut bytes = root.0.to_vec();
        bytes.extend((self.items.len() as u64).to_be_bytes());
        for item in self.items.iter().chain([&self.extra]) {
            bytes.extend((item.len() as u64).to_be_bytes());
            bytes.extend(item);
        }
        bytes
    }

    /// From such a value, with the root that it names.
    pub fn decode(bytes: &[u8]) -> Option<(Hash, Part)> {
        let (root, mut rest) = bytes.split_at_checked(32)?;
        let count = number(&mut rest)?;
        let mut items = Vec::new();
        for _ in 0..=count {
            let length = usize::try_from(number(&mut rest)?).ok()?;
            let (item, after) = rest.split_at_checked(length)?;
            items.push(item.to_vec());
            rest = after;
        }
        let extra = items.pop()?;
        rest.is_empty().then_some((Hash::from_slice(root)?, Part { items, extra }))
    }
}

fn number(rest: &mut &[u8]) -> Option<u64> {
    let (first, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u64::from_be_bytes(*first))
}

/// The value of `TransactionTree2` and `OutputTree2`: root, length of and all hashes.
pub fn encode_tree(hashes: &[Hash]) -> Vec<u8> {
    let all: Vec<u8> = hashes.iter().flat_map(|hash| hash.0).collect();
    [&all[all.len() - 32..], &(all.len() as u64).to_be_bytes(), &all].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The block of mainnet's chain 0 at height 1000000, without transactions.
    #[test]
    fn a_payload_of_mainnet() {
        let account = "a1b3140cb7cc895c0e091702ed05579fbe05c6e6745f82ce603746b400c81548";
        let miner = format!(r#"{{"account":"{account}","predicate":"keys-all","public-keys":["{account}"]}}"#);
        let coinbase = concat!(
            r#"{"gas":0,"result":{"status":"success","data":"Write succeeded"},"reqKey":"#,
            r#""IkhhWEFCcTFQS1NLbGhuY0prMF9NdDc1X2xMN05TM3dJNjI3UWZYWl84NWsi","#,
            r#""logs":"gshjMdXRkTlJbb1jVdAbzIUCpjPoRACjDlLsG0W6BD0","metaData":null,"continuation":null,"txId":1272350}"#
        );
        let part = |extra: &str| Part { items: vec![], extra: extra.as_bytes().to_vec() };
        let payload = Payload { transactions: part(&miner), outputs: part(coinbase) };
        let roots = payload.roots();
        assert_eq!(roots.transactions.to_string(), "nT0j4xw2woMkdXXaopdurXIn24OG-jNMqQzUGfxV_MA");
        assert_eq!(roots.outputs.to_string(), "4pXRrZ2K0_V0iGAxQCKrKdLjQTBZHBOQS7P-47kdnhY");
        assert_eq!(roots.payload.to_string(), "GpaWbHkHrCjRhY8hKE0qZ1WsBBaG3Y_zkFLV2sYumQA");
        assert!(roots.are_sound() && Roots::decode(&roots.encode()) == Some(roots));
    }

    #[test]
    fn a_part_is_what_was_encoded() {
        for items in [vec![], vec![vec![]], vec![b"one".to_vec(), b"two, longer".to_vec()]] {
            let part = Part { items, extra: b"extra".to_vec() };
            let bytes = part.encode(&Hash([7; 32]));
            assert_eq!(Part::decode(&bytes), Some((Hash([7; 32]), part)));
            assert!((0..bytes.len()).all(|end| Part::decode(&bytes[..end]).is_none()));
        }
    }
}
