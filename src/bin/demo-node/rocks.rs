//! The node's RocksDB: headers, payloads and cuts, in the default column family, told apart by a prefix of the key.
//!
//! ```text
//! -CutHashes$           height (8 bytes, big-endian) weight (8 bytes, big-endian) hash (32 bytes) -> Cut as JSON
//! -BlockHeader-<chain>$ height (8 bytes, big-endian) hash (32 bytes)                              -> Header as JSON
//! -BlockPayload$        hash (32 bytes)                                                           -> Payload as JSON
//! ```
//! Invariants: a block's header and payload arrive in one batch, before the first cut that names it; the write-ahead
//! log is on and never synced, so a kill loses nothing and a power cut loses the newest blocks, as with a real node.
//! Whoever reads a header or a payload here gets it with its hash checked.

use crate::chain::{Block, Cut, Hash, Header, Payload, Tip};
use crate::fault::{Context, Result, fault};
use chainweb_backup::rocksdb::{DB, IteratorMode, Options, WriteBatch};
use std::path::{Path, PathBuf};

const CUT: &[u8] = b"-CutHashes$";
const HEADER: &[u8] = b"-BlockHeader-";
const PAYLOAD: &[u8] = b"-BlockPayload$";
/// What a reader keeps open, so that it works with a small `ulimit -n`; the node itself keeps everything open.
const READER_MAX_OPEN_FILES_COUNT: i32 = 256;

/// Where the node of `database_directory` keeps its RocksDB.
pub fn directory(database_directory: &Path) -> PathBuf {
    database_directory.join("0/rocksDb")
}

/// Opens it as the node does, and creates it where there is none.
pub fn open(database_directory: &Path, write_buffer_bytes: usize) -> Result<DB> {
    let directory = directory(database_directory);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_max_open_files(-1);
    options.set_write_buffer_size(write_buffer_bytes);
    // Compactions would otherwise melt small files into 64 MiB ones, and a small database would have one file.
    options.set_target_file_size_base(write_buffer_bytes as u64);
    DB::open(&options, &directory).context(|| format!("open {}", directory.display()))
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

/// Writes a block. It is not part of the history before a cut names it or a descendant of it.
pub fn write_block(db: &DB, block: &Block) -> Result<()> {
    let header = &block.header;
    let mut batch = WriteBatch::default();
    batch.put(payload_key(&header.payload), &block.payload_json);
    batch.put(header_key(header.chain, header.height, &header.hash), json(header));
    db.write(batch).context(|| format!("write block {} of chain {}", header.height, header.chain))
}

/// Makes `cut` the newest.
pub fn write_cut(db: &DB, cut: &Cut) -> Result<()> {
    let key = [CUT, &cut.height.to_be_bytes(), &cut.weight.to_be_bytes(), cut.hash().as_bytes()].concat();
    db.put(key, json(cut)).context(|| format!("write the cut of height {}", cut.height))
}

/// The cut with the greatest key, `None` in a new database.
pub fn newest_cut(db: &DB) -> Result<Option<Cut>> {
    let mut end = CUT.to_vec();
    *end.last_mut().expect("the prefix is not empty") += 1;
    let mut cursor = db.raw_iterator();
    cursor.seek_for_prev(&end);
    cursor.status().context(|| "look for the newest cut".into())?;
    match cursor.item() {
        Some((key, value)) if key.starts_with(CUT) => {
            serde_json::from_slice(value).map(Some).context(|| "decode the newest cut".into())
        }
        _ => Ok(None),
    }
}

/// The header under this name, `None` where RocksDB does not know it.
pub fn header(db: &DB, chain: u8, tip: Tip) -> Result<Option<Header>> {
    let what = || format!("chain {chain}: header of block {} ({})", tip.height, tip.hash);
    let key = header_key(chain, tip.height, &tip.hash);
    let Some(value) = db.get_pinned(key).context(what)? else { return Ok(None) };
    let header: Header = serde_json::from_slice(&value).context(what)?;
    if !header.is_sound() || (header.chain, header.height, header.hash) != (chain, tip.height, tip.hash) {
        return Err(fault(format!("{} does not have that hash", what())));
    }
    Ok(Some(header))
}

/// The header under this name; not to have it is a fault.
pub fn known_header(db: &DB, chain: u8, tip: Tip) -> Result<Header> {
    let missing = || fault(format!("chain {chain}: block {} ({}) is missing from RocksDB", tip.height, tip.hash));
    header(db, chain, tip)?.ok_or_else(missing)
}

/// The block of this header; not to have its payload is a fault.
pub fn block(db: &DB, header: Header) -> Result<Block> {
    let what = || format!("chain {}: payload of block {} ({})", header.chain, header.height, header.payload);
    let value = db.get(payload_key(&header.payload)).context(what)?;
    let payload_json = value.ok_or_else(|| fault(format!("{} is missing from RocksDB", what())))?;
    if Hash::of(&[&payload_json]) != header.payload {
        return Err(fault(format!("{} does not have that hash", what())));
    }
    let payload: Payload = serde_json::from_slice(&payload_json).context(what)?;
    Ok(Block { header, payload, payload_json })
}

/// The headers of one chain from the genesis to `tip`; the index is the height.
pub fn history(db: &DB, chain: u8, tip: Tip) -> Result<Vec<Header>> {
    let mut headers = vec![known_header(db, chain, tip)?];
    for height in (0..tip.height).rev() {
        let hash = headers.last().expect("starts with one and only grows").parent;
        headers.push(known_header(db, chain, Tip { height, hash })?);
    }
    headers.reverse();
    if headers[0].parent != Hash::ZERO {
        return Err(fault(format!("chain {chain}: the genesis has a parent")));
    }
    Ok(headers)
}

/// Reads every entry, orphans too, so that RocksDB checks every block of every file; returns the number of headers.
pub fn scan(db: &DB) -> Result<u64> {
    let mut header_count = 0;
    for item in db.iterator(IteratorMode::Start) {
        let (key, value) = item.context(|| "read RocksDB from start to end".into())?;
        if key.starts_with(HEADER) {
            let header: Header = serde_json::from_slice(&value).context(|| "decode a header".into())?;
            if !header.is_sound() || header_key(header.chain, header.height, &header.hash) != *key {
                return Err(fault(format!("chain {}: header {} is not sound", header.chain, header.hash)));
            }
            header_count += 1;
        } else if !key.starts_with(PAYLOAD) && !key.starts_with(CUT) {
            return Err(fault(format!("RocksDB holds a key of no table: {}", key.escape_ascii())));
        }
    }
    Ok(header_count)
}

/// Where a header is stored.
pub fn header_key(chain: u8, height: u64, hash: &Hash) -> Vec<u8> {
    [HEADER, chain.to_string().as_bytes(), b"$", &height.to_be_bytes(), hash.as_bytes()].concat()
}

fn payload_key(hash: &Hash) -> Vec<u8> {
    [PAYLOAD, hash.as_bytes()].concat()
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings and numbers always encode")
}
