//! One chain's Pact database: the tables and pragmas of a real node, committed and rewound by whole blocks.
//!
//! Invariants: one connection per chain, held open for life; every change is one transaction that takes the database from the end
//! of one block to the end of another; rows with a txid below `next_txid` are those of the blocks in BlockHistory, and there are
//! no others. A clean close folds the WAL into the database and removes it.
//!
//! `page_size` comes after `journal_mode`, as with the node: it has no effect, and pages have 4096 bytes.

use crate::chain::{Block, Tip};
use crate::contract::{MINER, Row, SYSTEM_TABLES, State, TABLE, balance_in};
use crate::fault::{Context, Result, fault};
use crate::hash::Hash;
use chainweb_backup::rusqlite::{self, Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long to wait for a lock that somebody else's WAL checkpoint holds.
const BUSY_TIMEOUT_SECONDS: u64 = 10;

const PRAGMAS: &str = "
    PRAGMA synchronous = NORMAL;
    PRAGMA journal_mode = WAL;
    PRAGMA locking_mode = NORMAL;
    PRAGMA temp_store = MEMORY;
    PRAGMA auto_vacuum = NONE;
    PRAGMA page_size = 1024;";

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS BlockHistory (
        blockheight UNSIGNED BIGINT NOT NULL, hash BLOB NOT NULL, endingtxid UNSIGNED BIGINT NOT NULL,
        CONSTRAINT blockHashConstraint UNIQUE (blockheight));
    CREATE TABLE IF NOT EXISTS VersionedTableCreation (
        tablename TEXT NOT NULL, createBlockheight UNSIGNED BIGINT NOT NULL,
        CONSTRAINT creation_unique UNIQUE (createBlockheight, tablename));
    CREATE TABLE IF NOT EXISTS VersionedTableMutation (
        tablename TEXT NOT NULL, blockheight UNSIGNED BIGINT NOT NULL,
        CONSTRAINT mutation_unique UNIQUE (blockheight, tablename));
    CREATE TABLE IF NOT EXISTS TransactionIndex (
        txhash BLOB NOT NULL, blockheight UNSIGNED BIGINT NOT NULL,
        CONSTRAINT transactionIndexConstraint UNIQUE (txhash));
    CREATE INDEX IF NOT EXISTS transactionIndexByBH ON TransactionIndex (blockheight);";

/// Where the node of `database_directory` keeps the Pact database of `chain`.
pub fn path(database_directory: &Path, chain: u32) -> PathBuf {
    database_directory.join(format!("0/sqlite/pact-v1-chain-{chain}.sqlite"))
}

/// An open Pact database.
pub struct Pact {
    chain: u32,
    connection: Connection,
    state: State,
}

impl Pact {
    /// Opens the database of `chain`, and creates it if there is none. Its directory must exist.
    pub fn open(database_directory: &Path, chain: u32) -> Result<Pact> {
        let path = path(database_directory, chain);
        let open = || -> rusqlite::Result<Pact> {
            let mut connection = Connection::open(&path)?;
            connection.busy_timeout(Duration::from_secs(BUSY_TIMEOUT_SECONDS))?;
            connection.execute_batch(PRAGMAS)?;
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.execute_batch(SCHEMA)?;
            SYSTEM_TABLES.iter().try_for_each(|table| create_table(&transaction, table))?;
            transaction.commit()?;
            let state = state(&connection)?;
            Ok(Pact { chain, connection, state })
        };
        open().context(|| format!("open {}", path.display()))
    }

    /// What the next block needs to know.
    pub fn state(&self) -> State {
        self.state
    }

    /// The newest block, `None` before the genesis.
    pub fn head(&self) -> Result<Option<Tip>> {
        head(&self.connection).context(|| format!("chain {}: read Pact's newest block", self.chain))
    }

    /// The lowest height of which there is a row.
    pub fn lowest(&self) -> Result<Option<u64>> {
        let lowest: rusqlite::Result<Option<i64>> =
            self.connection.query_row("SELECT min(blockheight) FROM BlockHistory", [], |row| row.get(0));
        Ok(lowest.context(|| format!("chain {}: read Pact's lowest block", self.chain))?.map(unsigned))
    }

    /// The hash of the block at `height`.
    pub fn hash_at(&self, height: u64) -> Result<Option<Hash>> {
        let sql = "SELECT hash FROM BlockHistory WHERE blockheight = ?1";
        let mut select = self.connection.prepare_cached(sql).context(|| "prepare".into())?;
        let hash: Option<Vec<u8>> = select
            .query_row([signed(height)], |row| row.get(0))
            .optional()
            .context(|| format!("chain {}: read Pact's block {height}", self.chain))?;
        Ok(hash.and_then(|bytes| Hash::from_slice(&bytes)))
    }

    /// Commits the block on top of the newest one. It must have been made for this state.
    pub fn commit(&mut self, block: &Block) -> Result<()> {
        let (chain, height) = (self.chain, block.header.height);
        insert(&mut self.connection, block).context(|| format!("chain {chain}: commit block {height} to Pact"))?;
        self.state = block.effect.after;
        Ok(())
    }

    /// Undoes every block above `height`, of which there must be a row.
    pub fn rewind(&mut self, height: u64) -> Result<()> {
        let what = || format!("chain {}: rewind Pact to block {height}", self.chain);
        if self.hash_at(height)?.is_none() {
            return Err(fault(format!("{}: BlockHistory has no row of it", what())));
        }
        delete_above(&mut self.connection, signed(height)).context(what)?;
        self.state = state(&self.connection).context(what)?;
        Ok(())
    }

    /// Closes the database as a node that stops cleanly.
    pub fn close(self) -> Result<()> {
        self.connection.close().map_err(|(_, e)| e).context(|| format!("chain {}: close Pact", self.chain))
    }
}

/// The newest block of the Pact database behind `connection`, `None` before the genesis.
pub fn head(connection: &Connection) -> rusqlite::Result<Option<Tip>> {
    let sql = "SELECT blockheight, hash FROM BlockHistory ORDER BY blockheight DESC LIMIT 1";
    let tip = |row: &rusqlite::Row<'_>| {
        let hash = Hash::from_slice(row.get_ref(1)?.as_blob()?).unwrap_or(Hash([0; 32]));
        Ok(Tip { height: unsigned(row.get(0)?), hash })
    };
    connection.query_row(sql, [], tip).optional()
}

fn create_table(transaction: &Transaction<'_>, table: &str) -> rusqlite::Result<()> {
    transaction.execute_batch(&format!(
        "CREATE TABLE IF NOT EXISTS [{table}]
            (rowkey TEXT, txid UNSIGNED BIGINT NOT NULL, rowdata BLOB NOT NULL, UNIQUE (rowkey, txid));
         CREATE INDEX IF NOT EXISTS [{table}_ix] ON [{table}] (txid DESC);"
    ))
}

/// What the newest block left.
fn state(connection: &Connection) -> rusqlite::Result<State> {
    let sql = "SELECT endingtxid FROM BlockHistory ORDER BY blockheight DESC LIMIT 1";
    let Some(next_txid) = connection.query_row(sql, [], |row| row.get(0)).optional()? else {
        return Ok(State::default());
    };
    let sql = format!("SELECT rowdata FROM [{TABLE}] WHERE rowkey = ?1 ORDER BY txid DESC LIMIT 1");
    let data: Option<Vec<u8>> = connection.query_row(&sql, [MINER], |row| row.get(0)).optional()?;
    let balance = data.and_then(|data| balance_in(&data)).unwrap_or(0);
    Ok(State { next_txid: unsigned(next_txid), balance })
}

fn insert(connection: &mut Connection, block: &Block) -> rusqlite::Result<()> {
    let height = signed(block.header.height);
    let is_first = block.effect.rows.iter().any(|row| row.table != TABLE);
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if is_first {
        create_table(&transaction, TABLE)?;
        transaction.execute("INSERT INTO VersionedTableCreation VALUES (?1, ?2)", params![TABLE, height])?;
    }
    {
        for Row { table, key, txid, data } in &block.effect.rows {
            let mut insert = transaction.prepare_cached(&format!("INSERT INTO [{table}] VALUES (?1, ?2, ?3)"))?;
            insert.execute(params![key, signed(*txid), data])?;
        }
        let mut index = transaction.prepare_cached("INSERT INTO TransactionIndex VALUES (?1, ?2)")?;
        for hash in &block.effect.hashes {
            index.execute(params![hash.as_bytes(), height])?;
        }
        let mut mutation = transaction.prepare_cached("INSERT INTO VersionedTableMutation VALUES (?1, ?2)")?;
        for table in mutated(&block.effect.rows) {
            mutation.execute(params![table, height])?;
        }
        let mut history = transaction.prepare_cached("INSERT INTO BlockHistory VALUES (?1, ?2, ?3)")?;
        history.execute(params![height, block.header.hash.as_bytes(), signed(block.effect.after.next_txid)])?;
    }
    transaction.commit()
}

/// The tables of these rows, sorted.
pub fn mutated(rows: &[Row]) -> Vec<&'static str> {
    let mut tables: Vec<&str> = rows.iter().map(|row| row.table).collect();
    tables.sort_unstable();
    tables.dedup();
    tables
}

fn delete_above(connection: &mut Connection, last: i64) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let next_txid: i64 =
        transaction
            .query_row("SELECT endingtxid FROM BlockHistory WHERE blockheight = ?1", [last], |row| row.get(0))?;
    for table in SYSTEM_TABLES.iter().chain([&TABLE]) {
        transaction.execute(&format!("DELETE FROM [{table}] WHERE txid >= ?1"), [next_txid])?;
    }
    transaction.execute("DELETE FROM TransactionIndex WHERE blockheight > ?1", [last])?;
    transaction.execute("DELETE FROM VersionedTableMutation WHERE blockheight > ?1", [last])?;
    transaction.execute("DELETE FROM BlockHistory WHERE blockheight > ?1", [last])?;
    transaction.commit()
}

/// As SQLite stores a height or a txid.
pub fn signed(number: u64) -> i64 {
    i64::try_from(number).expect("a demo node never counts to 2^63")
}

/// From SQLite; a negative number is nothing we wrote, and becomes one that fits no block.
pub fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
