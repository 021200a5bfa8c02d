//! Reads the blocks of a finished copy of a Pact database: its newest one, its lowest one, and the one at a height.
//!
//! The newest block is the highest row of the tables with a row for each block; if none of these has a row, the highest of the table
//! with the state of the consensus. While a node copies one of the tables to the other, rows are in both, and the newer table ends
//! lower. No node writes a height that is no integer, nor a hash that is none: a backup does not fail because of them, but in the
//! ends of a history, from which a start-up proof is made, such a height is an error.
//!
//! Invariant: a finished copy, which may be a delta pair, is opened so that no file appears beside it (`finished`).

use std::path::Path;

use data_encoding::HEXLOWER;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row as SqlRow, params};

use crate::capture::sqlite::finished::{self, open};
use crate::chainweb::digest::Digest;
use crate::chainweb::pact::{CONSENSUS_STATE, HASH, HEIGHT, HISTORIES};
use crate::chainweb::start::{Ends, Row};
use crate::error::{Error, Kind, Result};

/// The newest block of a finished copy: its height, and its hash in hexadecimal. `None` if there is no row at all.
///
/// # Errors
/// [`Kind::Damaged`] if SQLite cannot read its content, at two readings, [`Kind::Io`] if the reason is another one. So the next.
pub(crate) fn newest_block(copy: &Path) -> Result<Option<(u64, Option<String>)>> {
    finished::twice(|| newest_once(copy))
}

fn newest_once(copy: &Path) -> Result<Option<(u64, Option<String>)>> {
    let history = History::open(copy)?;
    let newest = match history.newest(Rows::Integers)? {
        None if history.has_table(CONSENSUS_STATE)? => {
            history.first_of(CONSENSUS_STATE, Order::Newest, Rows::Integers)?
        }
        newest => newest,
    };
    Ok(newest.and_then(|Block { height, hash }| Some((u64::try_from(height).ok()?, hash_text(hash)))))
}

/// The height of the lowest row of a finished copy.
pub(crate) fn lowest_height(copy: &Path) -> Result<Option<u64>> {
    let lowest = finished::twice(|| History::open(copy)?.firsts(Order::Lowest, Rows::Integers))?;
    Ok(lowest.into_iter().filter_map(|block| u64::try_from(block.height).ok()).min())
}

/// An open finished copy.
pub(crate) struct History {
    connection: Connection,
    /// The tables with a row for each block that it has.
    tables: Vec<&'static str>,
    name: String,
}

/// A row of a table, as it stands there.
struct Block {
    height: i64,
    hash: Hash,
}

enum Hash {
    Bytes(Vec<u8>),
    Text(String),
    Unknown,
}

/// Which row of a table is the first.
#[derive(Clone, Copy)]
enum Order {
    Lowest,
    Newest,
}

/// Which rows count.
#[derive(Clone, Copy)]
enum Rows {
    All,
    /// Those whose height is an integer.
    Integers,
}

impl History {
    /// Opens a finished copy.
    pub(crate) fn open(copy: &Path) -> Result<History> {
        let name = copy.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let connection = open(copy).map_err(|e| unread(&name, e))?;
        let mut history = History { connection, tables: Vec::new(), name };
        for table in HISTORIES {
            history.tables.extend(history.has_table(table)?.then_some(table));
        }
        Ok(history)
    }

    /// The newest row and the lowest height; `None` if there is no row.
    pub(crate) fn ends(&self) -> Result<Option<Ends>> {
        let newest = self.newest(Rows::All)?.map(Row::from);
        let lowest = self.firsts(Order::Lowest, Rows::All)?.into_iter().map(|block| Row::from(block).height).min();
        Ok(newest.zip(lowest).map(|(newest, lowest)| Ends { newest, lowest }))
    }

    /// The row at a height.
    pub(crate) fn row(&self, height: u64) -> Result<Option<Row>> {
        let Ok(height) = i64::try_from(height) else { return Ok(None) };
        for table in &self.tables {
            let select = format!("SELECT {HEIGHT}, {HASH} FROM {table} WHERE {HEIGHT} = ?1");
            let found = self
                .connection
                .prepare_cached(&select)
                .and_then(|mut select| select.query_row(params![height], block_of).optional());
            if let Some(block) = found.map_err(|e| unread(&self.name, e))? {
                return Ok(Some(block.into()));
            }
        }
        Ok(None)
    }

    /// The newest row of the tables with a row for each block.
    fn newest(&self, rows: Rows) -> Result<Option<Block>> {
        // Of two that are equally high, that of the newer table.
        Ok(self.firsts(Order::Newest, rows)?.into_iter().rev().max_by_key(|block| block.height))
    }

    /// The first row of each table with a row for each block, as far as they have one.
    fn firsts(&self, order: Order, rows: Rows) -> Result<Vec<Block>> {
        self.tables.iter().filter_map(|table| self.first_of(table, order, rows).transpose()).collect()
    }

    /// The first row of a table; `None` if it has none.
    fn first_of(&self, table: &str, order: Order, rows: Rows) -> Result<Option<Block>> {
        let order = match order {
            Order::Lowest => "ASC",
            Order::Newest => "DESC",
        };
        let rows = match rows {
            Rows::All => String::new(),
            Rows::Integers => format!("WHERE typeof({HEIGHT}) = 'integer'"),
        };
        let select = format!("SELECT {HEIGHT}, {HASH} FROM {table} {rows} ORDER BY {HEIGHT} {order} LIMIT 1");
        self.connection.query_row(&select, [], block_of).optional().map_err(|e| unread(&self.name, e))
    }

    fn has_table(&self, table: &str) -> Result<bool> {
        let exists = "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?)";
        self.connection.query_row(exists, [table], |row| row.get(0)).map_err(|e| unread(&self.name, e))
    }
}

fn block_of(row: &SqlRow<'_>) -> rusqlite::Result<Block> {
    let hash = match row.get_ref(1)? {
        ValueRef::Blob(bytes) => Hash::Bytes(bytes.to_owned()),
        ValueRef::Text(text) => std::str::from_utf8(text).map_or(Hash::Unknown, |text| Hash::Text(text.to_owned())),
        _ => Hash::Unknown,
    };
    Ok(Block { height: row.get(0)?, hash })
}

impl From<Block> for Row {
    fn from(Block { height, hash }: Block) -> Row {
        let hash = if let Hash::Bytes(bytes) = hash { Digest::from_slice(&bytes) } else { None };
        // No block has a negative height: one that RocksDB does not have.
        Row { height: u64::try_from(height).unwrap_or(u64::MAX), hash }
    }
}

fn hash_text(hash: Hash) -> Option<String> {
    match hash {
        Hash::Text(text) => Some(text),
        Hash::Bytes(bytes) => Some(HEXLOWER.encode(&bytes)),
        Hash::Unknown => None,
    }
}

fn unread(name: &str, e: rusqlite::Error) -> Error {
    let context = || format!("SQLite cannot read {name} of the finished copy");
    finished::unread(context, e).map_or_else(|e| e, |damage| Error::new(Kind::Damaged, context()).because(damage))
}
