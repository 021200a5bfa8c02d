//! Cuts: the newest block of every chain, as the node stores them.
//!
//! The key has the sum of the heights, the sum of the weights and an id; the value repeats them in JSON, and has height and hash
//! of the newest block by chain, and the name of the version as `instance` (chainweb-node, `Chainweb/CutDB.hs`,
//! `Chainweb/Cut/CutHashes.hs`). A node starts with the newest cut of whose blocks it has the headers.
//!
//! Limitation: the id is a hash over an order that is not known here; it is compared with that of the key only.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::chainweb::digest::Digest;
use crate::chainweb::number::Number;
use crate::chainweb::tables::{CUTS, CutPlace};

/// The newest block of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tip {
    /// Its height.
    pub height: u64,
    /// Its hash.
    pub hash: Digest,
}

/// A cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Its place in the order of cuts: the sum of the heights, the sum of the weights, and its id.
    pub place: CutPlace,
    /// The name of its version.
    pub instance: String,
    /// The newest blocks, by chain; at least one.
    pub tips: BTreeMap<u32, Tip>,
}

/// Why a key and its value are no cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Malformed {
    /// The key has another form.
    Key,
    /// The value has another form: what the JSON parser said.
    Value(String),
    /// The value repeats another height, weight or id than the key has.
    Place,
    /// The height of the cut is not the sum of those of the blocks, but this is, if it is below 2^64.
    Sum(Option<u64>),
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Malformed::Key => f.write_str("its key is not that of a cut"),
            Malformed::Value(why) => write!(f, "its value is not a cut: {why}"),
            Malformed::Place => f.write_str("its height, weight or id differs from that in its key"),
            Malformed::Sum(Some(sum)) => write!(f, "its height is not {sum}, the sum of the heights of its blocks"),
            Malformed::Sum(None) => f.write_str("the sum of the heights of its blocks is too large"),
        }
    }
}

/// The value; the node writes further fields.
#[derive(Deserialize)]
struct Stored {
    hashes: BTreeMap<String, Tip>,
    weight: String,
    height: u64,
    instance: String,
    id: Digest,
}

impl Cut {
    /// Parses a whole key and its value.
    ///
    /// # Errors
    /// Fails if one of them has another form, if they differ, or if the height is not the sum of those of the blocks.
    pub fn parse(key: &[u8], value: &[u8]) -> Result<Cut, Malformed> {
        let place = key.strip_prefix(CUTS).and_then(CutPlace::parse).ok_or(Malformed::Key)?;
        let stored: Stored = serde_json::from_slice(value).map_err(|e| Malformed::Value(e.to_string()))?;
        let weight = Number::from_base64url(&stored.weight)
            .ok_or_else(|| Malformed::Value(format!("weight {:?} is not a number in base64url", stored.weight)))?;
        if place != (CutPlace { height: stored.height, weight, id: stored.id }) {
            return Err(Malformed::Place);
        }
        let mut tips = BTreeMap::new();
        for (name, tip) in stored.hashes {
            let chain = name.parse().map_err(|_| Malformed::Value(format!("{name:?} is not a chain")))?;
            tips.insert(chain, tip);
        }
        if tips.is_empty() {
            return Err(Malformed::Value("it has no chain".to_owned()));
        }
        let sum = tips.values().try_fold(0_u64, |sum, tip| sum.checked_add(tip.height));
        if sum != Some(place.height) {
            return Err(Malformed::Sum(sum));
        }
        Ok(Cut { place, instance: stored.instance, tips })
    }

    /// The lowest and the highest of the newest blocks.
    pub fn heights(&self) -> (u64, u64) {
        let heights = || self.tips.values().map(|tip| tip.height);
        (heights().min().unwrap_or(0), heights().max().unwrap_or(0))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use data_encoding::HEXLOWER;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// A cut of mainnet01 (chainweb-openapi, `chainweb.openapi.yaml`).
    const REAL: &str = include_str!("../../tests/data/real-cut.json");

    /// Its key, which the node derives from it.
    fn key() -> Vec<u8> {
        let rest = "0000000001d5f282000000000000000000000000000000000000000000000b5730898d59a6184c6f041cfb29ebab613790d213066f051b\
                    402f387116d571a7280d04f27bedea9172";
        [b"-CutHashes$", HEXLOWER.decode(rest.as_bytes()).unwrap().as_slice()].concat()
    }

    #[test]
    fn a_real_cut() {
        assert_eq!(key().len(), 83);
        let cut = Cut::parse(&key(), REAL.as_bytes()).unwrap();
        assert_eq!((cut.place.height, cut.tips.len(), cut.heights()), (30_798_466, 20, (1_539_922, 1_539_924)));
        assert_eq!((cut.instance.as_str(), cut.place.key()), ("mainnet01", key()));
        let tip = Tip {
            height: 1_539_922,
            hash: Digest::from_base64url("bowQf63xSY9owHKhK1yGee2Q0Fn8yL_oCLaEUn-CGoA").unwrap(),
        };
        assert_eq!(cut.tips[&9], tip);
    }

    #[test]
    fn every_other_cut_is_refused() {
        let parse = |change: &dyn Fn(&mut Value)| {
            let mut value: Value = serde_json::from_str(REAL).unwrap();
            change(&mut value);
            Cut::parse(&key(), value.to_string().as_bytes()).unwrap_err()
        };
        assert_eq!(parse(&|cut| cut["height"] = json!(30_798_467)), Malformed::Place);
        assert_eq!(parse(&|cut| cut["weight"] = json!("A".repeat(43))), Malformed::Place);
        assert_eq!(parse(&|cut| cut["id"] = json!("A".repeat(43))), Malformed::Place);
        assert_eq!(parse(&|cut| cut["hashes"]["9"]["height"] = json!(1)), Malformed::Sum(Some(29_258_545)));
        assert_eq!(parse(&|cut| cut["hashes"]["9"]["height"] = json!(u64::MAX)), Malformed::Sum(None));
        let value = |malformed| matches!(malformed, Malformed::Value(_));
        assert!(value(parse(&|cut| cut["weight"] = json!("x"))));
        assert!(value(parse(&|cut| cut["hashes"]["9"]["hash"] = json!("x"))));
        assert!(value(parse(&|cut| cut["hashes"]["x"] = cut["hashes"]["9"].clone())));
        assert!(value(parse(&|cut| cut["hashes"] = json!({}))));
        for field in ["height", "weight", "id", "hashes", "instance"] {
            assert!(value(parse(&|cut| drop(cut.as_object_mut().unwrap().remove(field)))), "{field}");
        }
        for key in [&key()[1..], &key()[..82], &[&key()[..], b"x"].concat(), b"-CutHashes$"] {
            assert_eq!(Cut::parse(key, REAL.as_bytes()), Err(Malformed::Key));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_bytes_make_it_panic(mut rest: Vec<u8>, value: Vec<u8>) {
            let _ = Cut::parse(&rest, &value);
            rest.resize(72, 0);
            prop_assert!(matches!(Cut::parse(&[CUTS, &rest].concat(), &value), Err(Malformed::Value(_))));
        }

        /// A changed byte of the value is found, or changes none of its fields.
        #[test]
        fn a_changed_byte_changes_no_block_unseen(at in 0..REAL.len(), byte: u8) {
            let mut value = REAL.as_bytes().to_vec();
            value[at] = byte;
            if let Ok(cut) = Cut::parse(&key(), &value) {
                prop_assert_eq!(cut.place.key(), key());
            }
        }
    }
}
