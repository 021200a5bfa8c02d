//! One chain's Pact database: the tables and pragmas of a real node, committed and rewound by whole blocks.
//!
//! Invariants: one connection per chain, held open for life; every change is one transaction that takes the database
//! from the end of one block to the end of another; rows with txid below `next_txid` are those of the blocks in
//! BlockHistory, and there are no others. A clean close folds the WAL into the database and removes it.

use crate::chain::{Block, Hash, Tip};
use crate::fault::{Context, Result, fault};
use chainweb_backup::rusqlite::{self, Connection, OptionalExtension, TransactionBehavior, params};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The user table every payload writes to.
pub const TABLE: &str = "coin_coin-table";
/// How long to wait for a lock that somebody else's WAL checkpoint holds.
const BUSY_TIMEOUT_SECONDS: u64 = 10;

const PRAGMAS: &str = "
    PRAGMA page_size = 1024;
    PRAGMA auto_vacuum = NONE;
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = NORMAL;
    PRAGMA locking_mode = NORMAL;
    PRAGMA temp_store = MEMORY;";

const SCHEMA: &str = r#"
    BEGIN IMMEDIATE;
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
    CREATE INDEX IF NOT EXISTS transactionIndexByBH ON TransactionIndex (blockheight);
    CREATE TABLE IF NOT EXISTS "coin_coin-table" (
        rowkey TEXT, txid UNSIGNED BIGINT, rowdata BLOB, UNIQUE (rowkey, txid));
    CREATE INDEX IF NOT EXISTS "coin_coin-table_ix" ON "coin_coin-table" (txid DESC);
    COMMIT;"#;

/// Where the node of `database_directory` keeps the Pact database of `chain`.
pub fn path(database_directory: &Path, chain: u8) -> PathBuf {
    database_directory.join(format!("0/sqlite/pact-v1-chain-{chain}.sqlite"))
}

/// An open Pact database.
pub struct Pact {
    chain: u8,
    connection: Connection,
    next_txid: u64,
}

impl Pact {
    /// Opens the database of `chain`, and creates it where there is none. Its directory must exist.
    pub fn open(database_directory: &Path, chain: u8) -> Result<Pact> {
        let path = path(database_directory, chain);
        let open = || -> rusqlite::Result<Pact> {
            let connection = Connection::open(&path)?;
            connection.busy_timeout(Duration::from_secs(BUSY_TIMEOUT_SECONDS))?;
            connection.execute_batch(PRAGMAS)?;
            connection.execute_batch(SCHEMA)?;
            let next_txid = unsigned(next_txid(&connection, i64::MAX)?);
            Ok(Pact { chain, connection, next_txid })
        };
        open().context(|| format!("open {}", path.display()))
    }

    /// The first txid of the next block.
    pub fn next_txid(&self) -> u64 {
        self.next_txid
    }

    /// The newest block, `None` before the genesis.
    pub fn head(&self) -> Result<Option<Tip>> {
        head(&self.connection).context(|| format!("chain {}: read Pact's newest block", self.chain))
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

    /// Commits the block on top of the newest one.
    pub fn commit(&mut self, block: &Block) -> Result<()> {
        let (chain, height) = (self.chain, block.header.height);
        if block.payload.txid != self.next_txid {
            return Err(fault(format!("chain {chain}: block {height} does not follow on Pact's newest txid")));
        }
        insert(&mut self.connection, block).context(|| format!("chain {chain}: commit block {height} to Pact"))?;
        self.next_txid = block.payload.ending_txid();
        Ok(())
    }

    /// Undoes every block above `height`; `None` undoes the genesis too.
    pub fn rewind(&mut self, height: Option<u64>) -> Result<()> {
        let last = height.map_or(-1, signed);
        let next_txid = delete_above(&mut self.connection, last)
            .context(|| format!("chain {}: rewind Pact to block {last}", self.chain))?;
        self.next_txid = unsigned(next_txid);
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
        let hash = Hash::from_slice(row.get_ref(1)?.as_blob()?).unwrap_or(Hash::ZERO);
        Ok(Tip { height: unsigned(row.get(0)?), hash })
    };
    connection.query_row(sql, [], tip).optional()
}

fn insert(connection: &mut Connection, block: &Block) -> rusqlite::Result<()> {
    let height = signed(block.header.height);
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    {
        let mut row = transaction.prepare_cached(r#"INSERT INTO "coin_coin-table" VALUES (?1, ?2, ?3)"#)?;
        let mut index = transaction.prepare_cached("INSERT INTO TransactionIndex VALUES (?1, ?2)")?;
        for (txid, write) in block.payload.numbered() {
            row.execute(params![write.key, signed(txid), write.data.as_bytes()])?;
            index.execute(params![write.tx_hash(txid).as_bytes(), height])?;
        }
        if height == 0 {
            transaction.execute("INSERT INTO VersionedTableCreation VALUES (?1, 0)", [TABLE])?;
        }
        let mut mutation = transaction.prepare_cached("INSERT INTO VersionedTableMutation VALUES (?1, ?2)")?;
        mutation.execute(params![TABLE, height])?;
        let mut history = transaction.prepare_cached("INSERT INTO BlockHistory VALUES (?1, ?2, ?3)")?;
        history.execute(params![height, block.header.hash.as_bytes(), signed(block.payload.ending_txid())])?;
    }
    transaction.commit()
}

fn delete_above(connection: &mut Connection, last: i64) -> rusqlite::Result<i64> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let next_txid = next_txid(&transaction, last)?;
    transaction.execute(r#"DELETE FROM "coin_coin-table" WHERE txid >= ?1"#, [next_txid])?;
    transaction.execute("DELETE FROM TransactionIndex WHERE blockheight > ?1", [last])?;
    transaction.execute("DELETE FROM VersionedTableMutation WHERE blockheight > ?1", [last])?;
    transaction.execute("DELETE FROM VersionedTableCreation WHERE createBlockheight > ?1", [last])?;
    transaction.execute("DELETE FROM BlockHistory WHERE blockheight > ?1", [last])?;
    transaction.commit()?;
    Ok(next_txid)
}

/// The first txid after the newest block at or below the height `last`.
fn next_txid(connection: &Connection, last: i64) -> rusqlite::Result<i64> {
    let sql = "SELECT coalesce((SELECT endingtxid FROM BlockHistory WHERE blockheight <= ?1
               ORDER BY blockheight DESC LIMIT 1), 0)";
    connection.query_row(sql, [last], |row| row.get(0))
}

/// As SQLite stores a height or a txid.
pub fn signed(number: u64) -> i64 {
    i64::try_from(number).expect("a demo node never counts to 2^63")
}

/// From SQLite; a negative number is nothing we wrote, and becomes one that fits no block.
pub fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
