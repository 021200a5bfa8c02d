//! Reads Pact's history, the table with a row for each block, in a finished copy.
//!
//! Invariant: as everywhere, a finished copy is opened as immutable, so that no file appears beside it.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, Row as SqlRow, params};

use crate::capture::sqlite::finished::{has_table, open};
use crate::chainweb::digest::Digest;
use crate::chainweb::pact::{HASH, HEIGHT, HISTORIES};
use crate::chainweb::start::{Ends, Row};
use crate::error::{Error, Kind, Result};

/// An open finished copy. While a node copies one table of its history to another, rows are in both.
pub(crate) struct History {
    connection: Connection,
    tables: Vec<&'static str>,
    name: String,
}

impl History {
    /// Opens a finished copy.
    ///
    /// # Errors
    /// [`Kind::Damaged`] if SQLite cannot read it. So the others.
    pub(crate) fn open(copy: &Path) -> Result<History> {
        let name = copy.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let opened = || {
            let connection = open(copy)?;
            let mut tables = Vec::new();
            for table in HISTORIES {
                tables.extend(has_table(&connection, table)?.then_some(table));
            }
            Ok((connection, tables))
        };
        let (connection, tables) = opened().map_err(|e| unread(&name, e))?;
        Ok(History { connection, tables, name })
    }

    /// The newest row and the lowest height; `None` if there is no row.
    pub(crate) fn ends(&self) -> Result<Option<Ends>> {
        let all = |order: &str| -> Result<Vec<Row>> {
            let one = |table: &&str| {
                let select = format!("SELECT {HEIGHT}, {HASH} FROM {table} ORDER BY {HEIGHT} {order} LIMIT 1");
                self.connection.query_row(&select, [], row_of).optional().map_err(|e| unread(&self.name, e)).transpose()
            };
            self.tables.iter().filter_map(one).collect()
        };
        let newest = all("DESC")?.into_iter().rev().max_by_key(|row| row.height);
        let lowest = all("ASC")?.into_iter().map(|row| row.height).min();
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
                .and_then(|mut select| select.query_row(params![height], row_of).optional());
            if let Some(row) = found.map_err(|e| unread(&self.name, e))? {
                return Ok(Some(row));
            }
        }
        Ok(None)
    }
}

fn row_of(row: &SqlRow<'_>) -> rusqlite::Result<Row> {
    let height = row.get::<_, i64>(0)?;
    let hash = row.get_ref(1)?.as_blob().ok().and_then(Digest::from_slice);
    // No block has a negative height: one that RocksDB does not have.
    Ok(Row { height: u64::try_from(height).unwrap_or(u64::MAX), hash })
}

fn unread(name: &str, e: rusqlite::Error) -> Error {
    Error::new(Kind::Damaged, format!("SQLite cannot read {name} of the finished copy")).because(e)
}
