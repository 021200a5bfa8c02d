//! Headers and payloads as they are found in the node's tables: each is found under its key, and has the hash that the key names.
//!
//! Invariant: a [`Stop::Fault`] is a statement about the content; an error of reading is the reader's and says nothing about it.

use std::fmt;

use crate::chainweb::cut;
use crate::chainweb::digest::Digest;
use crate::chainweb::header::{self, Header};
use crate::chainweb::payload::{self, Items, Kind, Payload};
use crate::chainweb::rules::Flaw;
use crate::chainweb::tables::{self, Table};
use crate::chainweb::version::Version;

/// Reads the node's RocksDB.
pub trait Tables {
    /// Why it cannot be read.
    type Error;

    /// The value of a key.
    ///
    /// # Errors
    /// Fails if the database cannot be read.
    fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, Self::Error>;
}

/// A key and its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// A block, by its place in the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Its chain.
    pub chain: u32,
    /// Its height.
    pub height: u64,
    /// Its hash.
    pub hash: Digest,
}

/// A part of a block in RocksDB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The header.
    Header,
    /// The height by the hash.
    Rank,
    /// The hashes in the payload.
    Payload,
    /// The transactions.
    Transactions,
    /// The outputs.
    Outputs,
}

/// Why a node does not start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// No cut has all its headers; of the newest one this is missing.
    NoCut(Block, Part),
    /// A cut cannot be read: its height as in the key, and why.
    Cut(Option<u64>, cut::Malformed),
    /// A part of a block is missing.
    Missing(Block, Part),
    /// The bytes of a header have another size.
    Size(Block, header::Malformed),
    /// The rank of a block is another height.
    Rank(Block),
    /// The header is that of another block.
    Other(Block),
    /// The header is wrong.
    Header(Block, Flaw),
    /// A part of the payload cannot be read.
    Form(Block, Part, payload::Malformed),
    /// A part of the payload does not have its hash.
    Content(Block, Part),
    /// Pact's history has a row at this height whose hash is none.
    Row(u32, u64),
    /// RocksDB lacks this block of Pact's history, and the history has no row below.
    NotConnected(Block),
    /// Pact must be rewound to this block, of which its history has no row.
    NoRow(Block),
    /// Pact and the cut have no block in common, down to the genesis.
    NothingInCommon(u32),
}

/// Why a proof ended before its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop<E> {
    /// A node does not start.
    Fault(Fault),
    /// It cannot be known, for this reason.
    Unknown(String),
    /// A database cannot be read.
    Unread(E),
}

impl<E> From<Fault> for Stop<E> {
    fn from(fault: Fault) -> Stop<E> {
        Stop::Fault(fault)
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {} ({}) of chain {}", self.height, self.hash, self.chain)
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Header => "the header",
            Part::Rank => "the rank",
            Part::Payload => "the payload",
            Part::Transactions => "the transactions",
            Part::Outputs => "the outputs",
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::NoCut(block, part) => {
                write!(f, "no cut can be used: of the newest one, {part} of {block} is missing from RocksDB")
            }
            Fault::Cut(height, malformed) => match height {
                Some(height) => write!(f, "the cut of height {height} cannot be used: {malformed}"),
                None => write!(f, "a cut cannot be used: {malformed}"),
            },
            Fault::Missing(block, part) => write!(f, "{part} of {block} is missing from RocksDB"),
            Fault::Size(block, malformed) => write!(f, "the header of {block} is damaged: {malformed}"),
            Fault::Rank(block) => write!(f, "the rank of {block} is another height"),
            Fault::Other(block) => write!(f, "the header of {block} is damaged: it is that of another block"),
            Fault::Header(block, flaw) => write!(f, "the header of {block} is damaged: {flaw}"),
            Fault::Form(block, part, malformed) => write!(f, "{part} of {block} cannot be read: {malformed}"),
            Fault::Content(block, part) => write!(f, "{part} of {block} does not have the hash that it should have"),
            Fault::Row(chain, height) => write!(f, "Pact's history of chain {chain} has no hash at height {height}"),
            Fault::NotConnected(block) => {
                write!(f, "Pact does not connect: RocksDB lacks its {block}, and its history has no row below")
            }
            Fault::NoRow(block) => {
                write!(f, "Pact would have to be rewound to {block}, but its history has no row of that block")
            }
            Fault::NothingInCommon(chain) => write!(f, "Pact and the cut have no block of chain {chain} in common"),
        }
    }
}

/// The header of a block, checked. `Err` with the part that is missing, if the node would pass over the block.
///
/// # Errors
/// Fails if rank or header is there but wrong.
pub(crate) fn header<T: Tables>(
    tables: &mut T,
    version: &Version,
    block: Block,
) -> Result<Result<Header, Part>, Stop<T::Error>> {
    let Block { chain, height, hash } = block;
    let Some(rank) = get(tables, Table::Ranks(chain), block)? else { return Ok(Err(Part::Rank)) };
    if tables::parse_height(&rank) != Some(height) {
        return Err(Fault::Rank(block).into());
    }
    let Some(value) = get(tables, Table::Headers(chain), block)? else { return Ok(Err(Part::Header)) };
    let header = Header::parse(&value).map_err(|malformed| Fault::Size(block, malformed))?;
    header.check(Some(version)).map_err(|flaw| Fault::Header(block, flaw))?;
    if (header.chain, header.height, header.hash) != (chain, height, hash) {
        return Err(Fault::Other(block).into());
    }
    Ok(Ok(header))
}

/// Checks that the whole payload of a block is there: its hashes, transactions and outputs, in the newer or in the older tables.
///
/// # Errors
/// Fails if a part is missing or does not have its hash.
pub(crate) fn check_payload<T: Tables>(
    tables: &mut T,
    block: Block,
    payload_hash: Digest,
) -> Result<(), Stop<T::Error>> {
    let found = either(tables, (Table::Payloads, Table::OldPayloads), block.height, &payload_hash)?;
    let Value { bytes, is_old } = found.ok_or(Fault::Missing(block, Part::Payload))?;
    let payload = if is_old { Payload::parse_json(&bytes) } else { Payload::parse(&bytes) };
    let payload = payload.map_err(|malformed| Fault::Form(block, Part::Payload, malformed))?;
    if payload.hash != payload_hash || payload.root() != payload_hash {
        return Err(Fault::Content(block, Part::Payload).into());
    }
    let parts = [
        (
            Kind::Transactions,
            Part::Transactions,
            (Table::Transactions, Table::OldTransactions),
            payload.transactions_hash,
        ),
        (Kind::Outputs, Part::Outputs, (Table::Outputs, Table::OldOutputs), payload.outputs_hash),
    ];
    for (kind, part, pair, hash) in parts {
        let found = either(tables, pair, block.height, &hash)?;
        let Value { bytes, is_old } = found.ok_or(Fault::Missing(block, part))?;
        let items = if is_old { Items::parse_json(kind, &bytes) } else { Items::parse(kind, &bytes) };
        let items = items.map_err(|malformed| Fault::Form(block, part, malformed))?;
        if items.hash != hash || items.root() != hash {
            return Err(Fault::Content(block, part).into());
        }
    }
    Ok(())
}

fn get<T: Tables>(tables: &mut T, table: Table, block: Block) -> Result<Option<Vec<u8>>, Stop<T::Error>> {
    let key = table.key(block.height, &block.hash).expect("headers and ranks are found by height and hash");
    tables.get(&key).map_err(Stop::Unread)
}

/// A value, and whether it is from the older of two tables.
struct Value {
    bytes: Vec<u8>,
    is_old: bool,
}

/// The value in the newer table, or in the older one.
fn either<T: Tables>(
    tables: &mut T,
    (newer, older): (Table, Table),
    height: u64,
    hash: &Digest,
) -> Result<Option<Value>, Stop<T::Error>> {
    for (table, is_old) in [(newer, false), (older, true)] {
        let key = table.key(height, hash).expect("payloads are found by height and hash");
        if let Some(bytes) = tables.get(&key).map_err(Stop::Unread)? {
            return Ok(Some(Value { bytes, is_old }));
        }
    }
    Ok(None)
}
