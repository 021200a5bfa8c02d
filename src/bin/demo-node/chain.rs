//! Blocks and cuts, and how new ones are made. No I/O.
//!
//! Invariants: a block of height h has its parent, and one on each adjacent chain, at h−1. Its weight is the number of blocks
//! below it, as each has the easiest target. A genesis is a function of the network and the chain, so a node can write it again
//! at each start, as the real one does.

use crate::contract::{self, Effect, Genesis, State};
use crate::hash::{Hash, base64, from_base64, sha};
use crate::header::{EASIEST, Header, wide};
use crate::network::Network;
use crate::payload::{Part, Payload};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The time of the first blocks, in microseconds.
const GENESIS_TIME_US: u64 = 1_700_000_000_000_000;

/// A block with its payload and what it does to Pact.
#[derive(Debug)]
pub struct Block {
    pub header: Header,
    pub payload: Payload,
    pub effect: Effect,
}

/// A block by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tip {
    pub height: u64,
    pub hash: Hash,
}

impl Header {
    pub fn tip(&self) -> Tip {
        Tip { height: self.height, hash: self.hash }
    }

    /// The name of the parent; of a genesis it names nothing.
    pub fn parent_tip(&self) -> Tip {
        Tip { height: self.height.saturating_sub(1), hash: self.parent }
    }

    fn of(network: &Network, chain: u32, height: u64) -> Header {
        Header {
            flags: 0,
            time_us: GENESIS_TIME_US,
            parent: network.genesis_parent(chain),
            adjacents: vec![],
            target: EASIEST,
            payload: Hash([0; 32]),
            chain,
            weight: wide(height - network.genesis_height(chain)),
            height,
            version: network.code,
            epoch_us: GENESIS_TIME_US,
            nonce: 0,
            hash: Hash([0; 32]),
        }
    }

    fn sealed(mut self, payload: &Payload) -> Header {
        self.payload = payload.roots().payload;
        self.hash = self.computed_hash();
        self
    }
}

/// The first block of a chain.
pub fn genesis(network: &Network, chain: u32) -> Block {
    let height = network.genesis_height(chain);
    let transactions = contract::genesis_transactions();
    let effect = contract::execute(&transactions, State::default(), Genesis::Yes).expect("there is no transaction");
    let payload = contract::payload(transactions, &effect);
    let neighbours = network.neighbours(chain, height);
    let adjacents = neighbours.into_iter().map(|other| (other, network.genesis_parent(other))).collect();
    let header = Header { adjacents, ..Header::of(network, chain, height) }.sealed(&payload);
    Block { header, payload, effect }
}

/// Where a new block goes.
pub struct Place<'a> {
    pub network: &'a Network,
    pub parent: &'a Header,
    /// The blocks of the parent's height on the adjacent chains, ascending by chain.
    pub adjacents: Vec<(u32, Hash)>,
    pub state: State,
}

/// A new block of these transactions.
pub fn new_block(rng: &mut fastrand::Rng, place: Place<'_>, transactions: Part) -> Block {
    let Place { network, parent, adjacents, state } = place;
    let effect = contract::execute(&transactions, state, Genesis::No).expect("the transactions are ours");
    let payload = contract::payload(transactions, &effect);
    let header = Header {
        // About 30 seconds a block, as the real ones.
        time_us: parent.time_us + rng.u64(1..60_000_000),
        parent: parent.hash,
        adjacents,
        nonce: rng.u64(..),
        ..Header::of(network, parent.chain, parent.height + 1)
    }
    .sealed(&payload);
    Block { header, payload, effect }
}

/// The newest block of every chain. `height` and `weight` are sums over the chains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    pub height: u64,
    pub weight: [u8; 32],
    pub id: Hash,
    pub instance: String,
    pub tips: BTreeMap<u32, Tip>,
}

impl Cut {
    /// The cut over these tips.
    pub fn new(network: &Network, tips: BTreeMap<u32, Tip>) -> Cut {
        let height = tips.values().map(|tip| tip.height).sum();
        let weight = tips.iter().map(|(chain, tip)| tip.height.saturating_sub(network.genesis_height(*chain))).sum();
        let hashes: Vec<&[u8]> = tips.values().map(|tip| tip.hash.as_bytes()).collect();
        Cut { height, weight: wide(weight), id: sha(&hashes), instance: network.name.clone(), tips }
    }

    /// The height of the highest block.
    pub fn top(&self) -> u64 {
        self.tips.values().map(|tip| tip.height).max().unwrap_or(0)
    }

    /// The key without its table: sum of heights, weight, id.
    pub fn key(&self) -> Vec<u8> {
        let mut weight = self.weight;
        weight.reverse();
        [&self.height.to_be_bytes()[..], &weight, &self.id.0].concat()
    }

    pub fn encode(&self) -> Vec<u8> {
        let named = |(chain, tip): (&u32, &Tip)| {
            (chain.to_string(), json!({ "height": tip.height, "hash": tip.hash.to_string() }))
        };
        let hashes: serde_json::Map<String, Value> = self.tips.iter().map(named).collect();
        let cut = json!({
            "hashes": hashes, "origin": null, "weight": base64(&self.weight), "height": self.height,
            "instance": self.instance, "id": self.id.to_string(),
        });
        cut.to_string().into_bytes()
    }

    /// From such JSON. That its sums are right is not looked at.
    pub fn decode(bytes: &[u8]) -> Option<Cut> {
        let cut: Value = serde_json::from_slice(bytes).ok()?;
        let hash = |value: &Value| Hash::from_text(value.as_str()?);
        let tip = |(chain, tip): (&String, &Value)| {
            let tip = Tip { height: tip["height"].as_u64()?, hash: hash(&tip["hash"])? };
            Some((chain.parse::<u32>().ok()?, tip))
        };
        Some(Cut {
            height: cut["height"].as_u64()?,
            weight: from_base64(cut["weight"].as_str()?)?.try_into().ok()?,
            id: hash(&cut["id"])?,
            instance: cut["instance"].as_str()?.to_owned(),
            tips: cut["hashes"].as_object()?.iter().map(tip).collect::<Option<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_is_what_was_encoded_and_has_its_key() {
        let network = Network::of_chains(3);
        let tips = (0..3).map(|chain| (chain, genesis(&network, chain).header.tip())).collect();
        let cut = Cut::new(&network, tips);
        assert_eq!(Cut::decode(&cut.encode()), Some(cut.clone()));
        assert_eq!((cut.key().len(), cut.top(), cut.instance.as_str()), (72, 0, "triad-dev"));
    }

    /// The key of a real cut: sums of heights and weights, big-endian, and the id.
    #[test]
    fn the_key_of_a_cut_of_mainnet() {
        let hash = |text| Hash::from_text(text).expect("32 bytes");
        let cut = Cut {
            height: 30798466,
            weight: hash("b0wYplmNiTBXCwAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").0,
            id: hash("BBz7KeurYTeQ0hMGbwUbQC84cRbVcacoDQTye-3qkXI"),
            instance: "mainnet01".into(),
            tips: BTreeMap::new(),
        };
        let hexadecimal: String = cut.key().iter().map(|byte| format!("{byte:02x}")).collect();
        let weight = "000000000000000000000000000000000000000000000b5730898d59a6184c6f";
        let id = "041cfb29ebab613790d213066f051b402f387116d571a7280d04f27bedea9172";
        assert_eq!(hexadecimal, format!("0000000001d5f282{weight}{id}"));
    }

    #[test]
    fn a_genesis_is_always_the_same() {
        let network = Network::of_chains(10);
        for chain in network.chains() {
            let block = genesis(&network, chain);
            assert_eq!(block.header, genesis(&network, chain).header);
            assert_eq!(Header::decode(&block.header.encode()), Some(block.header.clone()));
            assert_eq!(block.header.encode().len(), 318);
        }
    }
}
