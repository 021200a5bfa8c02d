//! The node's RocksDB: the tables of headers, payloads and cuts, in the default column family, told apart by a prefix of the key.
//!
//! ```text
//! -CutHashes$            sum of heights BE 8, weight BE 32, id 32   JSON
//! -BlockHeader/N/header$ height BE 8, hash 32                       header
//! -BlockHeader/N/rank$   hash                                       height LE 8
//! -BlockPayloadIndex$    payload hash                               height LE 8
//! -BlockPayload2$        height LE 8, payload hash                  the three roots
//! -BlockTransactions2$   height LE 8, root                          transactions   -TransactionTree2$   their tree
//! -BlockOutputs2$        height LE 8, root                          outputs        -OutputTree2$        their tree
//! ```
//! Invariants: the tables of a block's payload arrive in one batch, header and rank in the next, before the first cut that names
//! the block; the write-ahead log is on and never synced, so a kill loses nothing and a power cut loses the newest blocks, as with
//! a real node. A header or a payload is read with its hash checked.

use crate::chain::{Cut, Tip};
use crate::fault::{Context, Fault, Result, fault};
use crate::hash::Hash;
use crate::header::Header;
use crate::payload::{Part, Payload, Roots, encode_tree};
use chainweb_backup::rocksdb::{DB, DBPinnableSlice, Options, WriteBatch};
use std::path::{Path, PathBuf};

pub const CUT: &[u8] = b"-CutHashes$";
const CUT_END: &[u8] = b"-CutHashes%";
const INDEX: &[u8] = b"-BlockPayloadIndex$";
const PAYLOAD: &[u8] = b"-BlockPayload2$";
const TRANSACTIONS: &[u8] = b"-BlockTransactions2$";
const OUTPUTS: &[u8] = b"-BlockOutputs2$";
const TRANSACTION_TREE: &[u8] = b"-TransactionTree2$";
const OUTPUT_TREE: &[u8] = b"-OutputTree2$";
/// Tables whose entries are no headers, ranks or cuts. Of the old ones we write none.
pub const PAYLOAD_TABLES: [&[u8]; 11] = [
    INDEX,
    PAYLOAD,
    TRANSACTIONS,
    OUTPUTS,
    TRANSACTION_TREE,
    OUTPUT_TREE,
    b"-BlockPayload$",
    b"-BlockTransactions$",
    b"-BlockOutputs$",
    b"-TransactionTree$",
    b"-OutputTree$",
];
/// The key that each open to write puts.
pub const OPENED: &[u8] = b".";
/// What a reader keeps open, so that it works with a small `ulimit -n`; the node itself keeps everything open.
const READER_MAX_OPEN_FILES_COUNT: i32 = 256;

/// Where the node of `database_directory` keeps its RocksDB.
pub fn directory(database_directory: &Path) -> PathBuf {
    database_directory.join("0/rocksDb")
}

/// Opens it as the node does, and creates it if there is none.
pub fn open(database_directory: &Path, write_buffer_bytes: usize) -> Result<DB> {
    let directory = directory(database_directory);
    if directory.join("CURRENT").is_file() {
        // A database of the old format is refused before anything is changed.
        newest_cut(&open_read_only(database_directory)?, |_| Ok(true))?;
    }
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_max_open_files(-1);
    options.set_write_buffer_size(write_buffer_bytes);
    // Compactions would otherwise melt small files into 64 MiB ones, and a small database would have one file.
    options.set_target_file_size_base(write_buffer_bytes as u64);
    let what = || format!("open {}", directory.display());
    let db = DB::open(&options, &directory).context(what)?;
    db.put(OPENED, b"").context(what)?;
    Ok(db)
}

/// Opens it to read only. RocksDB then creates neither LOCK nor LOG, and replays its log into memory.
pub fn open_read_only(database_directory: &Path) -> Result<DB> {
    let directory = directory(database_directory);
    // The binding creates a missing directory even here.
    if !directory.join("CURRENT").is_file() {
        return Err(fault(format!("no RocksDB: {} has no CURRENT", directory.display())));
    }
    let mut options = Options::default();
    options.set_max_open_files(READER_MAX_OPEN_FILES_COUNT);
    DB::open_for_read_only(&options, &directory, false).context(|| format!("open {}", directory.display()))
}

/// Writes a payload, which may be there already.
pub fn write_payload(db: &DB, height: u64, payload: &Payload) -> Result<()> {
    let roots = payload.roots();
    let [transactions, outputs] = payload.trees();
    let mut batch = WriteBatch::default();
    batch.put(key(INDEX, &[roots.payload.as_bytes()]), height.to_le_bytes());
    batch.put(ranked(PAYLOAD, height, &roots.payload), roots.encode());
    batch.put(ranked(TRANSACTIONS, height, &roots.transactions), payload.transactions.encode(&roots.transactions));
    batch.put(ranked(OUTPUTS, height, &roots.outputs), payload.outputs.encode(&roots.outputs));
    batch.put(ranked(TRANSACTION_TREE, height, &roots.transactions), encode_tree(&transactions));
    batch.put(ranked(OUTPUT_TREE, height, &roots.outputs), encode_tree(&outputs));
    db.write(batch).context(|| format!("write the payload of block {height}"))
}

/// Writes header and rank. The block is not part of the history before a cut names it or a descendant of it.
pub fn write_header(db: &DB, header: &Header) -> Result<()> {
    let mut batch = WriteBatch::default();
    batch.put(header_key(header.chain, header.tip()), header.encode());
    batch.put(rank_key(header.chain, &header.hash), header.height.to_le_bytes());
    db.write(batch).context(|| format!("write block {} of chain {}", header.height, header.chain))
}

/// Adds a cut. The newest is that with the greatest key.
pub fn write_cut(db: &DB, cut: &Cut) -> Result<()> {
    db.put(key(CUT, &[&cut.key()]), cut.encode()).context(|| format!("write the cut of height {}", cut.height))
}

/// Deletes the cuts whose sum of heights is less than this.
pub fn delete_cuts_below(db: &DB, height: u64) -> Result<()> {
    delete_cuts(db, CUT.to_vec(), key(CUT, &[&height.to_be_bytes()]))
}

/// Deletes the cuts whose sum of heights is greater than this.
pub fn delete_cuts_above(db: &DB, height: u64) -> Result<()> {
    delete_cuts(db, key(CUT, &[&(height + 1).to_be_bytes()]), CUT_END.to_vec())
}

fn delete_cuts(db: &DB, from: Vec<u8>, to: Vec<u8>) -> Result<()> {
    let mut batch = WriteBatch::default();
    batch.delete_range(from, to);
    db.write(batch).context(|| "delete cuts".into())
}

/// The cut with the greatest key for which `is_good`, and how many were passed over.
pub fn newest_cut(db: &DB, is_good: impl Fn(&Cut) -> Result<bool>) -> Result<(Option<Cut>, u64)> {
    let mut cursor = db.raw_iterator();
    cursor.seek_for_prev(CUT_END);
    let mut skipped_count = 0;
    loop {
        cursor.status().context(|| "look for the newest cut".into())?;
        let Some((key, value)) = cursor.item().filter(|(key, _)| key.starts_with(CUT)) else { break };
        let cut = decode_cut(key, value)?;
        if is_good(&cut)? {
            return Ok((Some(cut), skipped_count));
        }
        skipped_count += 1;
        cursor.prev();
    }
    Ok((None, skipped_count))
}

/// The cut of an entry, whose key must be its own.
pub fn decode_cut(key: &[u8], value: &[u8]) -> Result<Cut> {
    let name = &key[CUT.len()..];
    if name.len() != 72 {
        return Err(fault(
            "RocksDB was written by an older demo node, whose formats were its own: start with a new database directory",
        ));
    }
    let cut = Cut::decode(value).ok_or_else(|| fault("a cut is not JSON of a cut"))?;
    if cut.key() != name {
        return Err(fault(format!("the cut of height {} is not stored under its own key", cut.height)));
    }
    Ok(cut)
}

/// The header under this name; `None` if RocksDB lacks it or its rank.
pub fn header(db: &DB, chain: u32, tip: Tip) -> Result<Option<Header>> {
    let what = || format!("chain {chain}: header of block {} ({})", tip.height, tip.hash);
    let Some(rank) = get(db, &rank_key(chain, &tip.hash), what)? else { return Ok(None) };
    if *rank != tip.height.to_le_bytes() {
        return Err(fault(format!("{}: its rank is another height", what())));
    }
    let Some(value) = get(db, &header_key(chain, tip), what)? else { return Ok(None) };
    let header = Header::decode(&value).ok_or_else(|| fault(format!("{} has a wrong length", what())))?;
    if header.computed_hash() != header.hash || header.chain != chain || header.tip() != tip {
        return Err(fault(format!("{} does not have that hash", what())));
    }
    Ok(Some(header))
}

/// The header under this name; not to have it is a fault.
pub fn known_header(db: &DB, chain: u32, tip: Tip) -> Result<Header> {
    match header(db, chain, tip)? {
        Some(header) => Ok(header),
        None => Err(missing(db, chain, tip)?.unwrap_or_else(|| fault("a header came while it was looked for"))),
    }
}

/// What RocksDB lacks of this header, if anything: it, its rank, or both.
pub fn missing(db: &DB, chain: u32, tip: Tip) -> Result<Option<Fault>> {
    let what = || format!("chain {chain}: block {} ({})", tip.height, tip.hash);
    let has = |key: Vec<u8>| get(db, &key, what).map(|value| value.is_some());
    let part = match (has(header_key(chain, tip))?, has(rank_key(chain, &tip.hash))?) {
        (true, true) => return Ok(None),
        (true, false) => ": its rank",
        (false, true) => ": its header",
        (false, false) => "",
    };
    Ok(Some(fault(format!("{}{part} is missing from RocksDB", what()))))
}

/// The payload of this header, with its three roots computed again; not to have it is a fault.
pub fn payload(db: &DB, header: &Header) -> Result<Payload> {
    let (chain, height) = (header.chain, header.height);
    let what = |part: &str| format!("chain {chain}: {part} of block {height}");
    let missing = |part: &str| fault(format!("{} are missing from RocksDB: lookup of payload failed", what(part)));
    let differ = |part: &str| fault(format!("{} do not have that hash", what(part)));
    let roots = get(db, &ranked(PAYLOAD, height, &header.payload), || what("roots"))?
        .ok_or_else(|| missing("the hashes in the payload"))?;
    let roots = Roots::decode(&roots).filter(|roots| roots.payload == header.payload && roots.are_sound());
    let roots = roots.ok_or_else(|| differ("the hashes in the payload"))?;
    let part = |table: &[u8], root: &Hash, name: &str| -> Result<Part> {
        let value = get(db, &ranked(table, height, root), || what(name))?.ok_or_else(|| missing(name))?;
        let part = Part::decode(&value).filter(|(named, _)| named == root);
        part.map(|(_, part)| part).ok_or_else(|| differ(name))
    };
    let payload = Payload {
        transactions: part(TRANSACTIONS, &roots.transactions, "transactions")?,
        outputs: part(OUTPUTS, &roots.outputs, "outputs")?,
    };
    let found = payload.roots();
    if found.transactions != roots.transactions {
        return Err(differ("transactions"));
    }
    if found.outputs != roots.outputs {
        return Err(differ("outputs"));
    }
    Ok(payload)
}

fn get<'a>(db: &'a DB, key: &[u8], what: impl Fn() -> String) -> Result<Option<DBPinnableSlice<'a>>> {
    db.get_pinned(key).context(what)
}

/// A table of a payload, for one that plants a fault.
#[derive(Debug, Clone, Copy)]
pub enum Table {
    Payload,
    Transactions,
    Outputs,
}

/// The key of a part of a block's payload.
pub fn payload_key(table: Table, height: u64, roots: &Roots) -> Vec<u8> {
    match table {
        Table::Payload => ranked(PAYLOAD, height, &roots.payload),
        Table::Transactions => ranked(TRANSACTIONS, height, &roots.transactions),
        Table::Outputs => ranked(OUTPUTS, height, &roots.outputs),
    }
}

/// Where a header is stored.
pub fn header_key(chain: u32, tip: Tip) -> Vec<u8> {
    key(header_table(chain).as_bytes(), &[&tip.height.to_be_bytes(), tip.hash.as_bytes()])
}

/// Where the height of a header is stored.
pub fn rank_key(chain: u32, hash: &Hash) -> Vec<u8> {
    key(rank_table(chain).as_bytes(), &[hash.as_bytes()])
}

pub fn header_table(chain: u32) -> String {
    format!("-BlockHeader/{chain}/header$")
}

pub fn rank_table(chain: u32) -> String {
    format!("-BlockHeader/{chain}/rank$")
}

fn ranked(table: &[u8], height: u64, hash: &Hash) -> Vec<u8> {
    key(table, &[&height.to_le_bytes(), hash.as_bytes()])
}

fn key(table: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    [table, &parts.concat()].concat()
}
