//! The data model: hashes, blocks, payloads and cuts, and how new ones are made. No I/O.
//!
//! Invariants: a block's hash is BLAKE2b-256 over (chain, height, parent, payload hash) and a payload's hash is
//! BLAKE2b-256 over its bytes, so a block fixes everything before it. Height 0 is the genesis and has the parent
//! [`Hash::ZERO`]. A payload is a list of writes with consecutive txids, so Pact's tables are a function of its blocks.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::collections::BTreeMap;
use std::fmt;

/// The most chains a Chainweb graph of this kind has.
pub const MAX_CHAINS: u8 = 97;
/// Distinct row keys per chain: few enough that rows get newer versions, as accounts do.
const ACCOUNTS_COUNT: u32 = 1000;
/// Rows of one payload are at most this long, so a large payload has many rows.
const MAX_ROW_BYTES: usize = 4096;
/// Shorter rows would not tell two payloads apart.
const MIN_ROW_BYTES: usize = 16;

/// A BLAKE2b-256 hash; hexadecimal where it is text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hash([u8; 32]);

impl Hash {
    /// The parent of every genesis block.
    pub const ZERO: Hash = Hash([0; 32]);

    /// The hash of the parts one after the other; callers keep the parts unambiguous.
    pub fn of(parts: &[&[u8]]) -> Hash {
        let mut state = blake2b_simd::Params::new().hash_length(32).to_state();
        for part in parts {
            state.update(part);
        }
        Hash(state.finalize().as_bytes().try_into().expect("the hash length is set to 32 above"))
    }

    /// A stored hash; `None` where the length is wrong.
    pub fn from_slice(bytes: &[u8]) -> Option<Hash> {
        bytes.try_into().ok().map(Hash)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Hash, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.bytes().all(|c| c.is_ascii_hexdigit()) {
            return Err(de::Error::custom("not a hash of 64 hexadecimal digits"));
        }
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(de::Error::custom)?;
        }
        Ok(Hash(bytes))
    }
}

/// A block without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    pub height: u64,
    pub chain: u8,
    pub parent: Hash,
    pub payload: Hash,
    pub hash: Hash,
}

impl Header {
    fn new(chain: u8, height: u64, parent: Hash, payload: Hash) -> Header {
        let hash = Hash::of(&[&[chain], &height.to_be_bytes(), parent.as_bytes(), payload.as_bytes()]);
        Header { height, chain, parent, payload, hash }
    }

    /// Whether the hash fits the rest.
    pub fn is_sound(&self) -> bool {
        *self == Header::new(self.chain, self.height, self.parent, self.payload)
    }
}

/// What a block does to Pact: row `i` of `writes` is written with the txid `txid + i`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Payload {
    pub txid: u64,
    pub writes: Vec<Write>,
}

impl Payload {
    /// The first txid of the next block.
    pub fn ending_txid(&self) -> u64 {
        self.txid + self.writes.len() as u64
    }

    /// The writes with their txids, in order.
    pub fn numbered(&self) -> impl Iterator<Item = (u64, &Write)> {
        (self.txid..).zip(&self.writes)
    }
}

/// One new version of one row of the user table.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Write {
    pub key: String,
    pub data: String,
}

impl Write {
    /// The hash under which the transaction index knows the transaction that made this write.
    pub fn tx_hash(&self, txid: u64) -> Hash {
        Hash::of(&[&txid.to_be_bytes(), self.key.as_bytes(), b"\0", self.data.as_bytes()])
    }
}

/// A block with its payload, decoded and as stored.
#[derive(Debug)]
pub struct Block {
    pub header: Header,
    pub payload: Payload,
    pub payload_json: Vec<u8>,
}

/// The newest block of one chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tip {
    pub height: u64,
    pub hash: Hash,
}

/// The newest block of every chain. `height` is that of the highest chain, `weight` the sum over all chains.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cut {
    pub height: u64,
    pub weight: u64,
    pub hashes: BTreeMap<u8, Tip>,
}

impl Cut {
    /// The cut over these tips.
    pub fn new(hashes: BTreeMap<u8, Tip>) -> Cut {
        let height = hashes.values().map(|tip| tip.height).max().unwrap_or(0);
        let weight = hashes.values().map(|tip| tip.height).sum();
        Cut { height, weight, hashes }
    }

    /// The hash in the cut's key.
    pub fn hash(&self) -> Hash {
        let tips: Vec<&[u8]> = self.hashes.values().map(|tip| tip.hash.as_bytes()).collect();
        Hash::of(&tips)
    }
}

/// A new block of about `payload_bytes` on `parent` (none: the genesis), whose first txid is `txid`.
pub fn new_block(rng: &mut fastrand::Rng, chain: u8, parent: Option<Tip>, txid: u64, payload_bytes: usize) -> Block {
    let row_bytes = (payload_bytes / 4).clamp(MIN_ROW_BYTES, MAX_ROW_BYTES);
    let row_count = (payload_bytes / row_bytes).max(1);
    let writes = (0..row_count).map(|_| new_write(rng, row_bytes)).collect();
    let payload = Payload { txid, writes };
    let payload_json = serde_json::to_vec(&payload).expect("strings and numbers always encode");
    let (height, parent) = parent.map_or((0, Hash::ZERO), |tip| (tip.height + 1, tip.hash));
    let header = Header::new(chain, height, parent, Hash::of(&[&payload_json]));
    Block { header, payload, payload_json }
}

/// Text that does not compress, so that sizes on disk are the sizes asked for.
fn new_write(rng: &mut fastrand::Rng, row_bytes: usize) -> Write {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut bytes = vec![0; row_bytes];
    rng.fill(&mut bytes);
    let data = bytes.iter().map(|byte| char::from(DIGITS[usize::from(byte % 64)])).collect();
    Write { key: format!("k:{:08}", rng.u32(0..ACCOUNTS_COUNT)), data }
}
