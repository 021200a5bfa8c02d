//! `demo-node plant`: damages a *copy* of a stopped database in a known way, to prove that `verify` would notice.
//!
//! Invariants: every fault planted is one that verify must reject; where a fault cannot be planted (nothing in the log,
//! say) that is an error, never a silent success.

use crate::chain::{Cut, Tip, new_block};
use crate::fault::{Context, Result, fault};
use crate::pact::{Pact, TABLE, path};
use crate::rocks;
use chainweb_backup::rocksdb::DB;
use chainweb_backup::rusqlite::{self, Connection, params};
use std::fs;
use std::path::{Path, PathBuf};

/// `plant` opens RocksDB to delete one key; how large its write buffer is does not matter.
const WRITE_BUFFER_BYTES: usize = 4 * 1024 * 1024;

#[derive(Debug, clap::Args)]
pub struct PlantArgs {
    /// A copy of a database directory, or of a backup; it is damaged for good
    directory: PathBuf,
    /// Which fault
    #[arg(long, value_name = "NAME")]
    fault: FaultName,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum FaultName {
    /// The header of a block in the middle of chain 0 is gone from RocksDB
    MissingBlock,
    /// One bit of one row of chain 0's Pact differs (of a payload in RocksDB, where there is no Pact)
    FlippedValue,
    /// Chain 0's Pact has a block more, which RocksDB does not know
    PactAhead,
    /// One Pact database is gone
    MissingChain,
    /// RocksDB's write-ahead log is gone, as snapshot publishers do it
    DroppedWal,
}

/// Plants the fault and says what was done.
pub fn plant(args: &PlantArgs) -> Result<String> {
    let directory = args.directory.as_path();
    let (cut, last_key) = {
        let db = rocks::open_read_only(directory)?;
        let cut = rocks::newest_cut(&db)?.ok_or_else(|| fault("RocksDB holds no cut"))?;
        (cut, db.latest_sequence_number())
    };
    match args.fault {
        FaultName::MissingBlock => delete_block(directory, &cut),
        FaultName::FlippedValue if path(directory, 0).is_file() => flip_row(directory),
        FaultName::FlippedValue => flip_payload(directory, &cut),
        FaultName::PactAhead => advance_pact(directory),
        FaultName::MissingChain => delete_pact(directory, &cut),
        FaultName::DroppedWal => drop_wal(directory, &cut, last_key),
    }
}

/// The name of a canonical block in the middle of chain 0.
fn middle_block(db: &DB, cut: &Cut) -> Result<Tip> {
    let history = rocks::history(db, 0, cut.hashes[&0])?;
    let header = &history[history.len() / 2];
    Ok(Tip { height: header.height, hash: header.hash })
}

fn delete_block(directory: &Path, cut: &Cut) -> Result<String> {
    let db = rocks::open(directory, WRITE_BUFFER_BYTES)?;
    let tip = middle_block(&db, cut)?;
    db.delete(rocks::header_key(0, tip.height, &tip.hash)).context(|| "delete a header".into())?;
    Ok(format!("deleted the header of block {} of chain 0", tip.height))
}

fn flip_payload(directory: &Path, cut: &Cut) -> Result<String> {
    let db = rocks::open(directory, WRITE_BUFFER_BYTES)?;
    let tip = middle_block(&db, cut)?;
    let header = rocks::known_header(&db, 0, tip)?;
    let mut block = rocks::block(&db, header)?;
    let last = block.payload_json.len() - 1;
    block.payload_json[last] ^= 1;
    rocks::write_block(&db, &block)?;
    Ok(format!("flipped a bit in the payload of block {} of chain 0", tip.height))
}

fn flip_row(directory: &Path) -> Result<String> {
    let flip = || -> rusqlite::Result<i64> {
        let connection = Connection::open(path(directory, 0))?;
        let (rowid, mut data): (i64, Vec<u8>) = connection.query_row(
            &format!(r#"SELECT rowid, rowdata FROM "{TABLE}" WHERE length(rowdata) > 0 ORDER BY rowid LIMIT 1"#),
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        data[0] ^= 1;
        connection.execute(&format!(r#"UPDATE "{TABLE}" SET rowdata = ?1 WHERE rowid = ?2"#), params![data, rowid])?;
        connection.close().map_err(|(_, e)| e)?;
        Ok(rowid)
    };
    let rowid = flip().context(|| "flip a bit in Pact".into())?;
    Ok(format!("flipped a bit in row {rowid} of {TABLE} of chain 0"))
}

fn advance_pact(directory: &Path) -> Result<String> {
    let mut pact = Pact::open(directory, 0)?;
    let head = pact.head()?.ok_or_else(|| fault("Pact holds no block"))?;
    let block = new_block(&mut fastrand::Rng::new(), 0, Some(head), pact.next_txid(), 400);
    pact.commit(&block)?;
    pact.close()?;
    Ok(format!("committed block {} to Pact of chain 0 only", block.header.height))
}

fn delete_pact(directory: &Path, cut: &Cut) -> Result<String> {
    let chain = cut.hashes.keys().copied().nth(cut.hashes.len() / 2).ok_or_else(|| fault("the cut has no chain"))?;
    let path = path(directory, chain);
    fs::remove_file(&path).context(|| format!("delete {}", path.display()))?;
    Ok(format!("deleted Pact of chain {chain}"))
}

fn drop_wal(directory: &Path, cut: &Cut, last_key: u64) -> Result<String> {
    let directory_of_logs = rocks::directory(directory);
    let what = || format!("delete the logs in {}", directory_of_logs.display());
    for entry in fs::read_dir(&directory_of_logs).context(what)? {
        let path = entry.context(what)?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            fs::remove_file(&path).context(what)?;
        }
    }
    let db = rocks::open_read_only(directory)?;
    let lost_count = last_key.saturating_sub(db.latest_sequence_number());
    if lost_count == 0 {
        return Err(fault("RocksDB's log held nothing: grow some blocks first"));
    }
    let height = rocks::newest_cut(&db)?.map_or(0, |cut| cut.height);
    Ok(format!("deleted the log with the last {lost_count} writes: cut height {height} instead of {}", cut.height))
}
