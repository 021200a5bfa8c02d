//! `demo-node plant`: damages a *copy* of a stopped database in a known way, to prove that `verify` would notice.
//!
//! Invariants: every fault planted is one that verify must reject; if a fault cannot be planted (nothing in the log, say) that is
//! an error, never a silent success.

use crate::chain::{Block, Cut, Place, Tip, new_block};
use crate::contract::{TABLE, new_transactions};
use crate::fault::{Context, Result, fault};
use crate::hash::Hash;
use crate::header::Header;
use crate::node::network_of;
use crate::pact::{Pact, path, signed};
use crate::rocks::{self, Table};
use chainweb_backup::rocksdb::DB;
use chainweb_backup::rusqlite::{self, Connection, params};
use std::fs;
use std::path::{Path, PathBuf};

/// `plant` opens RocksDB to change one key; how large its write buffer is does not matter.
const WRITE_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// Rows that `missing-history` deletes.
const MISSING_ROWS_COUNT: u64 = 3;

#[derive(Debug, clap::Args)]
pub struct PlantArgs {
    /// A copy of a database directory, or of a backup; it is damaged for good
    directory: PathBuf,
    /// Which fault
    #[arg(long, value_name = "NAME")]
    fault: FaultName,
    /// In which chain
    #[arg(long, value_name = "N", default_value_t = 0)]
    chain: u32,
    /// The height of the block whose header, rank or payload is damaged [default: in the middle of the chain]
    #[arg(long, value_name = "N")]
    height: Option<u64>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum FaultName {
    /// The header of a block is gone from RocksDB, and its rank
    MissingBlock,
    /// The header of a block is gone, its rank is there
    MissingHeader,
    /// The rank of a block is gone, its header is there
    MissingRank,
    /// The hashes in the payload of a block are gone
    MissingPayload,
    /// The transactions of a block are gone
    MissingTransactions,
    /// The outputs of a block are gone
    MissingOutputs,
    /// One bit of a header differs
    FlippedHeader,
    /// One bit of one row of Pact differs (of a block's transactions in RocksDB, if there is no Pact)
    FlippedValue,
    /// A newer cut names a block that is not in RocksDB
    MissingTip,
    /// Pact has a block more than the cut, which RocksDB does not know
    PactAhead,
    /// Pact's newest block is at the height of the cut, but another one, which RocksDB does not know
    ForkedTip,
    /// As forked-tip, and the rows of the blocks below are gone from BlockHistory
    MissingHistory,
    /// Pact is that of the next chain, which has this one's
    ExchangedPact,
    /// The Pact database is gone
    MissingChain,
    /// RocksDB's write-ahead log is gone, as snapshot publishers do it
    DroppedWal,
}

/// Plants the fault and says what was done.
pub fn plant(args: &PlantArgs) -> Result<String> {
    let directory = args.directory.as_path();
    let (cut, last_key) = {
        let db = rocks::open_read_only(directory)?;
        (newest_cut(&db)?, db.latest_sequence_number())
    };
    let chain = args.chain;
    let tip = *cut.tips.get(&chain).ok_or_else(|| fault(format!("the newest cut has no chain {chain}")))?;
    let target = Target { directory, chain, tip, height: args.height };
    match args.fault {
        FaultName::MissingBlock
        | FaultName::MissingHeader
        | FaultName::MissingRank
        | FaultName::MissingPayload
        | FaultName::MissingTransactions
        | FaultName::MissingOutputs => target.delete(args.fault),
        FaultName::FlippedHeader => target.flip_header(),
        FaultName::FlippedValue if path(directory, chain).is_file() => target.flip_row(),
        FaultName::FlippedValue => target.flip_transactions(),
        FaultName::MissingTip => target.add_cut(cut),
        FaultName::PactAhead => target.advance_pact(),
        FaultName::ForkedTip => target.fork_pact(),
        FaultName::MissingHistory => target.forget_history(),
        FaultName::ExchangedPact => target.exchange_pact(),
        FaultName::MissingChain => target.delete_pact(),
        FaultName::DroppedWal => drop_wal(directory, &cut, last_key),
    }
}

fn newest_cut(db: &DB) -> Result<Cut> {
    rocks::newest_cut(db, |_| Ok(true))?.0.ok_or_else(|| fault("RocksDB holds no cut"))
}

/// What is damaged.
struct Target<'a> {
    directory: &'a Path,
    chain: u32,
    /// Of the chain in the newest cut.
    tip: Tip,
    height: Option<u64>,
}

impl Target<'_> {
    fn open(&self) -> Result<DB> {
        rocks::open(self.directory, WRITE_BUFFER_BYTES)
    }

    /// The canonical block of the height asked for, or else in the middle of the chain.
    fn block(&self, db: &DB) -> Result<Header> {
        let height = self.height.unwrap_or(self.tip.height / 2);
        let mut header = rocks::known_header(db, self.chain, self.tip)?;
        if height > header.height {
            return Err(fault(format!("chain {} has no block {height}: its newest is {}", self.chain, header.height)));
        }
        while header.height > height {
            header = rocks::known_header(db, self.chain, header.parent_tip())?;
        }
        Ok(header)
    }

    fn of(&self, header: &Header) -> String {
        format!("of block {} of chain {}", header.height, self.chain)
    }

    fn delete(&self, which: FaultName) -> Result<String> {
        let db = self.open()?;
        let header = self.block(&db)?;
        let roots = rocks::payload(&db, &header)?.roots();
        let payload_key = |table| vec![rocks::payload_key(table, header.height, &roots)];
        let header_key = || rocks::header_key(self.chain, header.tip());
        let rank_key = || rocks::rank_key(self.chain, &header.hash);
        let (what, keys) = match which {
            FaultName::MissingHeader => ("the header", vec![header_key()]),
            FaultName::MissingRank => ("the rank", vec![rank_key()]),
            FaultName::MissingPayload => ("the hashes in the payload", payload_key(Table::Payload)),
            FaultName::MissingTransactions => ("the transactions", payload_key(Table::Transactions)),
            FaultName::MissingOutputs => ("the outputs", payload_key(Table::Outputs)),
            _ => ("header and rank", vec![header_key(), rank_key()]),
        };
        for key in keys {
            db.delete(key).context(|| format!("delete {what}"))?;
        }
        Ok(format!("deleted {what} {}", self.of(&header)))
    }

    fn flip_header(&self) -> Result<String> {
        let db = self.open()?;
        let header = self.block(&db)?;
        let mut bytes = header.encode();
        // Of the time: the length stays as it was.
        bytes[8] ^= 1;
        db.put(rocks::header_key(self.chain, header.tip()), bytes).context(|| "write a header".into())?;
        Ok(format!("flipped a bit in the header {}", self.of(&header)))
    }

    fn flip_transactions(&self) -> Result<String> {
        let db = self.open()?;
        let header = self.block(&db)?;
        let payload = rocks::payload(&db, &header)?;
        let roots = payload.roots();
        let mut bytes = payload.transactions.encode(&roots.transactions);
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        let key = rocks::payload_key(Table::Transactions, header.height, &roots);
        db.put(key, bytes).context(|| "write transactions".into())?;
        Ok(format!("flipped a bit in the transactions {}", self.of(&header)))
    }

    fn flip_row(&self) -> Result<String> {
        let flip = || -> rusqlite::Result<i64> {
            let connection = Connection::open(path(self.directory, self.chain))?;
            let (rowid, mut data): (i64, Vec<u8>) = connection.query_row(
                &format!("SELECT rowid, rowdata FROM [{TABLE}] WHERE length(rowdata) > 0 ORDER BY rowid LIMIT 1"),
                [],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )?;
            data[0] ^= 1;
            connection.execute(&format!("UPDATE [{TABLE}] SET rowdata = ?1 WHERE rowid = ?2"), params![data, rowid])?;
            connection.close().map_err(|(_, e)| e)?;
            Ok(rowid)
        };
        let rowid = flip().context(|| "flip a bit in Pact".into())?;
        Ok(format!("flipped a bit in row {rowid} of {TABLE} of chain {}", self.chain))
    }

    /// A cut above the newest one: its sums are right, only one of its blocks is not there.
    fn add_cut(&self, cut: Cut) -> Result<String> {
        let db = self.open()?;
        let network = network_of(&db)?.ok_or_else(|| fault("RocksDB holds no cut"))?;
        let tip = Tip { height: self.tip.height + 1, hash: Hash([0x5a; 32]) };
        let mut tips = cut.tips;
        tips.insert(self.chain, tip);
        let cut = Cut::new(&network, tips);
        rocks::write_cut(&db, &cut)?;
        Ok(format!("added a cut with block {} ({}) of chain {}, which is not there", tip.height, tip.hash, self.chain))
    }

    /// A block for Pact alone, on its newest one; the parent must be in RocksDB.
    fn foreign_block(&self, pact: &Pact) -> Result<Block> {
        let db = rocks::open_read_only(self.directory)?;
        let network = network_of(&db)?.ok_or_else(|| fault("RocksDB holds no cut"))?;
        let head = pact.head()?.ok_or_else(|| fault("Pact holds no block"))?;
        let parent = rocks::known_header(&db, self.chain, head)?;
        let mut rng = fastrand::Rng::new();
        let transactions = new_transactions(&mut rng, 400);
        let place =
            Place { network: &network, parent: &parent, adjacents: parent.adjacents.clone(), state: pact.state() };
        Ok(new_block(&mut rng, place, transactions))
    }

    fn advance_pact(&self) -> Result<String> {
        self.to_tip()?;
        let mut pact = Pact::open(self.directory, self.chain)?;
        let block = self.foreign_block(&pact)?;
        pact.commit(&block)?;
        pact.close()?;
        Ok(format!("committed block {} to Pact of chain {} only", block.header.height, self.chain))
    }

    /// Brings every Pact to the cut: in a backup it may be behind.
    fn to_tip(&self) -> Result<()> {
        let db = self.open()?;
        let network = network_of(&db)?.ok_or_else(|| fault("RocksDB holds no cut"))?;
        let started = crate::start::start(&db, self.directory, &network, crate::start::History::Full)?;
        started.pacts.into_values().try_for_each(Pact::close)
    }

    fn fork_pact(&self) -> Result<String> {
        self.to_tip()?;
        let below = self.tip.height.checked_sub(1).ok_or_else(|| fault("a genesis cannot be forked"))?;
        let mut pact = Pact::open(self.directory, self.chain)?;
        pact.rewind(below)?;
        let block = self.foreign_block(&pact)?;
        pact.commit(&block)?;
        pact.close()?;
        Ok(format!("replaced block {} in Pact of chain {}", self.tip.height, self.chain))
    }

    fn forget_history(&self) -> Result<String> {
        let lowest = self.tip.height.checked_sub(MISSING_ROWS_COUNT + 1);
        let lowest = lowest.ok_or_else(|| fault("the chain is too short: grow some blocks first"))?;
        self.fork_pact()?;
        let delete = || -> rusqlite::Result<usize> {
            let connection = Connection::open(path(self.directory, self.chain))?;
            let heights = params![signed(lowest), signed(self.tip.height)];
            let sql = "DELETE FROM BlockHistory WHERE blockheight > ?1 AND blockheight < ?2";
            let row_count = connection.execute(sql, heights)?;
            connection.close().map_err(|(_, e)| e)?;
            Ok(row_count)
        };
        let row_count = delete().context(|| "delete rows of BlockHistory".into())?;
        Ok(format!(
            "replaced block {} in Pact of chain {}, and deleted the {row_count} rows below it",
            self.tip.height, self.chain
        ))
    }

    fn exchange_pact(&self) -> Result<String> {
        let other = if path(self.directory, self.chain + 1).is_file() { self.chain + 1 } else { 0 };
        if other == self.chain {
            return Err(fault("there is one Pact database only: nothing to exchange it with"));
        }
        let [ours, theirs] = [self.chain, other].map(|chain| path(self.directory, chain));
        let aside = ours.with_extension("aside");
        for (from, to) in [(&ours, &aside), (&theirs, &ours), (&aside, &theirs)] {
            fs::rename(from, to).context(|| format!("rename {}", from.display()))?;
        }
        Ok(format!("exchanged Pact of chain {} with that of chain {other}", self.chain))
    }

    fn delete_pact(&self) -> Result<String> {
        let path = path(self.directory, self.chain);
        fs::remove_file(&path).context(|| format!("delete {}", path.display()))?;
        Ok(format!("deleted Pact of chain {}", self.chain))
    }
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
    let height = rocks::newest_cut(&db, |_| Ok(true))?.0.map_or(0, |cut| cut.top());
    Ok(format!("deleted the log with the last {lost_count} writes: cut height {height} instead of {}", cut.top()))
}
