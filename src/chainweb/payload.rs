//! Payloads: what a block does, and how its hash covers that.
//!
//! ```text
//! payload hash        node(transactions hash, outputs hash)
//! transactions hash   root of the leaves: miner 0x17, each transaction 0x13
//! outputs hash        root of the leaves: coinbase 0x18, each output 0x14
//! ```
//! Since chainweb-node 2.24 they are stored as bytes, and before as JSON, with every part in base64url:
//! ```text
//! payload                        payload hash 32, transactions hash 32, outputs hash 32
//! transactions and outputs       hash 32, count BE 8, count x (bytes BE 8, item), bytes BE 8, miner or coinbase
//! ```
//! Source: chainweb-node, `Chainweb/Payload.hs`. The trees of transactions and outputs are a cache of the node and not read here.

use std::fmt;

use data_encoding::BASE64URL_NOPAD;
use serde::Deserialize;

use crate::chainweb::digest::Digest;
use crate::chainweb::merkle::{self, tag};

/// Why a value is not what its table holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Malformed {
    /// The bytes end before or after the end of the value.
    Length,
    /// The JSON has another form: what the parser said.
    Json(String),
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Malformed::Length => f.write_str("its length is not that of its content"),
            Malformed::Json(why) => write!(f, "it is not the JSON of its table: {why}"),
        }
    }
}

/// The hashes of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Payload {
    /// The hash that the header has.
    #[serde(rename = "payloadHash")]
    pub hash: Digest,
    /// The hash of the transactions.
    pub transactions_hash: Digest,
    /// The hash of the outputs.
    pub outputs_hash: Digest,
}

impl Payload {
    /// Parses a value of `Table::Payloads`.
    ///
    /// # Errors
    /// Fails unless it has 96 bytes.
    pub fn parse(value: &[u8]) -> Result<Payload, Malformed> {
        let (hashes, rest) = value.as_chunks();
        match *hashes {
            [hash, transactions_hash, outputs_hash] if rest.is_empty() => Ok(Payload {
                hash: Digest(hash),
                transactions_hash: Digest(transactions_hash),
                outputs_hash: Digest(outputs_hash),
            }),
            _ => Err(Malformed::Length),
        }
    }

    /// Parses a value of `Table::OldPayloads`.
    ///
    /// # Errors
    /// Fails if it is other JSON.
    pub fn parse_json(value: &[u8]) -> Result<Payload, Malformed> {
        serde_json::from_slice(value).map_err(|e| Malformed::Json(e.to_string()))
    }

    /// The hash of its content.
    pub fn root(&self) -> Digest {
        merkle::node(&self.transactions_hash, &self.outputs_hash)
    }
}

/// The transactions of a block with the data of its miner, or their outputs with that of the coinbase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Items {
    /// Which of the two.
    pub kind: Kind,
    /// The hash in the payload.
    pub hash: Digest,
    /// The transactions or the outputs.
    pub items: Vec<Vec<u8>>,
    /// The data of the miner, or the output of the coinbase.
    pub first: Vec<u8>,
}

/// The two parts of a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Transactions and the miner.
    Transactions,
    /// Outputs and the coinbase.
    Outputs,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredTransactions {
    transaction_hash: Digest,
    transaction: Vec<String>,
    miner_data: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredOutputs {
    outputs_hash: Digest,
    outputs: Vec<String>,
    coinbase_output: String,
}

impl Items {
    /// Parses a value of `Table::Transactions` or `Table::Outputs`.
    ///
    /// # Errors
    /// Fails if it ends too early or too late.
    pub fn parse(kind: Kind, value: &[u8]) -> Result<Items, Malformed> {
        let mut rest = value;
        let items = Items::of(kind, &mut rest).ok_or(Malformed::Length)?;
        if rest.is_empty() { Ok(items) } else { Err(Malformed::Length) }
    }

    fn of(kind: Kind, rest: &mut &[u8]) -> Option<Items> {
        let hash = Digest::from_slice(take(rest, Digest::BYTES)?)?;
        let count = take_number(rest)?;
        // Each item has at least its length, so that a wrong count does not allocate.
        let mut items = Vec::with_capacity(count.min(rest.len() / 8));
        for _ in 0..count {
            items.push(take_item(rest)?);
        }
        Some(Items { kind, hash, items, first: take_item(rest)? })
    }

    /// Parses a value of `Table::OldTransactions` or `Table::OldOutputs`.
    ///
    /// # Errors
    /// Fails if it is other JSON.
    pub fn parse_json(kind: Kind, value: &[u8]) -> Result<Items, Malformed> {
        let failed = |e: serde_json::Error| Malformed::Json(e.to_string());
        let (hash, items, first) = match kind {
            Kind::Transactions => {
                let stored: StoredTransactions = serde_json::from_slice(value).map_err(failed)?;
                (stored.transaction_hash, stored.transaction, stored.miner_data)
            }
            Kind::Outputs => {
                let stored: StoredOutputs = serde_json::from_slice(value).map_err(failed)?;
                (stored.outputs_hash, stored.outputs, stored.coinbase_output)
            }
        };
        let decode = |text: &String| {
            let said = |e| Malformed::Json(format!("a text is not base64url: {e}"));
            BASE64URL_NOPAD.decode(text.as_bytes()).map_err(said)
        };
        Ok(Items { kind, hash, items: items.iter().map(decode).collect::<Result<_, _>>()?, first: decode(&first)? })
    }

    /// The bytes of the value in the newer table.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.hash.0.to_vec();
        bytes.extend((self.items.len() as u64).to_be_bytes());
        for item in self.items.iter().chain([&self.first]) {
            bytes.extend((item.len() as u64).to_be_bytes());
            bytes.extend(item);
        }
        bytes
    }

    /// The hash of its content.
    pub fn root(&self) -> Digest {
        let (first, item) = match self.kind {
            Kind::Transactions => (tag::MINER, tag::TRANSACTION),
            Kind::Outputs => (tag::COINBASE, tag::OUTPUT),
        };
        let items = self.items.iter().map(|bytes| merkle::leaf(item, bytes));
        merkle::root(std::iter::once(merkle::leaf(first, &self.first)).chain(items))
    }
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(count)?;
    *rest = after;
    Some(taken)
}

fn take_number(rest: &mut &[u8]) -> Option<usize> {
    let number = u64::from_be_bytes(take(rest, 8)?.try_into().ok()?);
    usize::try_from(number).ok()
}

fn take_item(rest: &mut &[u8]) -> Option<Vec<u8>> {
    let bytes = take_number(rest)?;
    take(rest, bytes).map(<[u8]>::to_vec)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// Two payloads of mainnet01, chain 0, one of them with a transaction (chainweb-openapi, `chainweb.openapi.yaml`).
    const REAL: &str = include_str!("../../tests/data/real-payloads.json");

    /// Payload, transactions and outputs as the older tables have them, in JSON.
    fn old_values(real: &Value) -> [Value; 3] {
        let pairs = real["transactions"].as_array().unwrap();
        let part = |i: usize| pairs.iter().map(|pair| pair[i].clone()).collect::<Value>();
        [
            json!({
                "payloadHash": real["payloadHash"],
                "transactionsHash": real["transactionsHash"],
                "outputsHash": real["outputsHash"],
            }),
            json!({
                "transactionHash": real["transactionsHash"],
                "transaction": part(0),
                "minerData": real["minerData"],
            }),
            json!({ "outputsHash": real["outputsHash"], "outputs": part(1), "coinbaseOutput": real["coinbase"] }),
        ]
    }

    #[test]
    fn real_payloads_have_their_hashes() {
        let all: Vec<Value> = serde_json::from_str(REAL).unwrap();
        let mut items_count = 0;
        for real in all {
            let [payload, transactions, outputs] = old_values(&real).map(|value| value.to_string().into_bytes());
            let payload = Payload::parse_json(&payload).unwrap();
            assert_eq!(payload.hash.to_string(), real["payloadHash"].as_str().unwrap());
            assert_eq!(payload.root(), payload.hash);
            let bytes = [payload.hash.0, payload.transactions_hash.0, payload.outputs_hash.0].concat();
            assert_eq!(Payload::parse(&bytes), Ok(payload));
            for (kind, value, expected) in [
                (Kind::Transactions, transactions, payload.transactions_hash),
                (Kind::Outputs, outputs, payload.outputs_hash),
            ] {
                let items = Items::parse_json(kind, &value).unwrap();
                assert_eq!((items.hash, items.root()), (expected, expected));
                assert_eq!(Items::parse(kind, &items.encode()), Ok(items.clone()));
                items_count += items.items.len();
                every_flipped_bit_is_found(&items);
            }
        }
        assert_eq!(items_count, 2);
    }

    fn every_flipped_bit_is_found(items: &Items) {
        let sound = items.encode();
        for bit in 0..sound.len() * 8 {
            let mut flipped = sound.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let found = Items::parse(items.kind, &flipped).is_ok_and(|flipped| flipped.root() == flipped.hash);
            assert!(!found, "{:?} bit {bit}", items.kind);
        }
    }

    #[test]
    fn other_values_are_malformed() {
        for length in [0, 32, 64, 95, 97, 128] {
            assert_eq!(Payload::parse(&vec![0; length]), Err(Malformed::Length), "{length}");
        }
        for text in ["", "{}", "[]", "{\"payloadHash\":\"x\"}"] {
            assert!(Payload::parse_json(text.as_bytes()).is_err());
            assert!(Items::parse_json(Kind::Outputs, text.as_bytes()).is_err());
            assert!(Items::parse_json(Kind::Transactions, text.as_bytes()).is_err());
        }
        // A count and a length that would need all memory.
        let huge = [&[0; 32][..], &[0xff; 8]].concat();
        assert_eq!(Items::parse(Kind::Outputs, &huge), Err(Malformed::Length));
        let huge = [&[0; 32][..], &[0, 0, 0, 0, 0, 0, 0, 1], &[0x7f; 8]].concat();
        assert_eq!(Items::parse(Kind::Outputs, &huge), Err(Malformed::Length));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn items_round_trip(hash: [u8; 32], items in vec(vec(any::<u8>(), 0..9), 0..9), first in vec(any::<u8>(), 0..9)) {
            let items = Items { kind: Kind::Outputs, hash: Digest(hash), items, first };
            let bytes = items.encode();
            prop_assert_eq!(Items::parse(Kind::Outputs, &bytes), Ok(items.clone()));
            prop_assert_eq!(Items::parse(Kind::Outputs, &bytes[..bytes.len() - 1]), Err(Malformed::Length));
            prop_assert_eq!(Items::parse(Kind::Outputs, &[&bytes[..], &[0]].concat()), Err(Malformed::Length));
            prop_assert_ne!(items.root(), Items { kind: Kind::Transactions, ..items.clone() }.root());
        }

        #[test]
        fn no_bytes_make_it_panic(value: Vec<u8>) {
            let _ = Payload::parse(&value);
            let _ = Payload::parse_json(&value);
            let _ = Items::parse(Kind::Transactions, &value);
            let _ = Items::parse_json(Kind::Transactions, &value);
        }
    }
}
