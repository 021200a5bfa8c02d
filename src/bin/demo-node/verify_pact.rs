//! The Pact part of `demo-node verify`: whether every table is exactly what the replayed blocks give.
//!
//! Invariants: nothing in the directory is changed or created. A Pact database without WAL is opened as immutable; one with a WAL,
//! which only a crash leaves, is copied aside with it and opened there.

use crate::chain::{Block, Tip};
use crate::contract::{Row, SYSTEM_TABLES, TABLE};
use crate::fault::{Context, Fault, Result, fault};
use crate::hash::Hash;
use crate::pact::{head, mutated, signed, unsigned};
use chainweb_backup::rusqlite::{self, Connection, OpenFlags, OptionalExtension};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A Pact database that is compared with the blocks, one after the other.
pub struct Replayed<'a> {
    connection: &'a Connection,
    /// Its newest block.
    pub head: Tip,
    next_txid: u64,
    /// Rows that there must be in each table.
    row_counts: BTreeMap<&'static str, u64>,
}

impl<'a> Replayed<'a> {
    /// A sound database that holds a block.
    pub fn new(connection: &'a Connection) -> Result<Replayed<'a>> {
        let check: String = connection
            .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
            .context(|| "check Pact's integrity".into())?;
        if check != "ok" {
            return Err(fault(format!("Pact is damaged: {check}")));
        }
        let head = head(connection).context(|| "read Pact's newest block".into())?;
        let head = head.ok_or_else(|| fault("Pact holds no block"))?;
        let tables = SYSTEM_TABLES.into_iter().chain([
            TABLE,
            "TransactionIndex",
            "BlockHistory",
            "VersionedTableMutation",
            "VersionedTableCreation",
        ]);
        let row_counts = tables.map(|table| (table, 0)).collect();
        Ok(Replayed { connection, head, next_txid: 0, row_counts })
    }

    /// Compares what the next block did.
    pub fn check(&mut self, block: &Block) -> Result<()> {
        let height = block.header.height;
        let differs = |table: &str| fault(format!("Pact's {table} differs from the replay at block {height}"));
        let tables = mutated(&block.effect.rows);
        for table in SYSTEM_TABLES.into_iter().chain([TABLE]) {
            let expected: Vec<&Row> = block.effect.rows.iter().filter(|row| row.table == table).collect();
            // Of tables that no block after the genesis changes, the count at the end tells.
            if (table == TABLE || !expected.is_empty())
                && !self.has_rows(table, &expected, block.effect.after.next_txid)?
            {
                return Err(differs(table));
            }
            self.count(table, expected.len());
        }
        self.next_txid = block.effect.after.next_txid;
        for hash in &block.effect.hashes {
            if self.indexed(hash)? != Some(signed(height)) {
                return Err(differs("TransactionIndex"));
            }
        }
        let row = (signed(height), block.header.hash.as_bytes().to_vec(), signed(self.next_txid));
        if self.history(height)? != Some(row) {
            return Err(differs("BlockHistory"));
        }
        if self.mutations(height)? != tables {
            return Err(differs("VersionedTableMutation"));
        }
        self.count("TransactionIndex", block.effect.hashes.len());
        self.count("BlockHistory", 1);
        self.count("VersionedTableMutation", tables.len());
        self.count("VersionedTableCreation", usize::from(tables.len() > 1));
        Ok(())
    }

    /// Compares the numbers of rows after the last block.
    pub fn finish(self) -> Result<()> {
        for (table, expected_count) in self.row_counts {
            let text = format!("SELECT count(*) FROM [{table}]");
            let row_count = self.connection.query_row(&text, [], |row| row.get(0)).map(unsigned).map_err(sql)?;
            if row_count != expected_count {
                return Err(fault(format!("Pact's {table} has {row_count} rows, the replay {expected_count}")));
            }
        }
        Ok(())
    }

    fn count(&mut self, table: &'static str, row_count: usize) {
        *self.row_counts.entry(table).or_default() += row_count as u64;
    }

    /// Whether the rows from the next txid to the end of the block are these.
    fn has_rows(&self, table: &str, expected: &[&Row], end: u64) -> Result<bool> {
        let text = format!("SELECT txid, rowkey, rowdata FROM [{table}] WHERE txid >= ?1 AND txid < ?2 ORDER BY txid");
        let mut select = self.connection.prepare_cached(&text).map_err(sql)?;
        let mut rows = select.query([signed(self.next_txid), signed(end)]).map_err(sql)?;
        for Row { key, txid, data, .. } in expected {
            let Some(row) = rows.next().map_err(sql)? else { return Ok(false) };
            let same = row.get::<_, i64>(0).map_err(sql)? == signed(*txid)
                && row.get_ref(1).map_err(sql)?.as_bytes().is_ok_and(|found| found == key.as_bytes())
                && row.get_ref(2).map_err(sql)?.as_blob().is_ok_and(|found| found == data);
            if !same {
                return Ok(false);
            }
        }
        Ok(rows.next().map_err(sql)?.is_none())
    }

    fn indexed(&self, hash: &Hash) -> Result<Option<i64>> {
        let text = "SELECT blockheight FROM TransactionIndex WHERE txhash = ?1";
        let mut select = self.connection.prepare_cached(text).map_err(sql)?;
        select.query_row([hash.as_bytes()], |row| row.get(0)).optional().map_err(sql)
    }

    fn history(&self, height: u64) -> Result<Option<(i64, Vec<u8>, i64)>> {
        let text = "SELECT blockheight, hash, endingtxid FROM BlockHistory WHERE blockheight = ?1";
        let mut select = self.connection.prepare_cached(text).map_err(sql)?;
        let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        select.query_row([signed(height)], row).optional().map_err(sql)
    }

    fn mutations(&self, height: u64) -> Result<Vec<String>> {
        let text = "SELECT tablename FROM VersionedTableMutation WHERE blockheight = ?1 ORDER BY tablename";
        let mut select = self.connection.prepare_cached(text).map_err(sql)?;
        let rows = select.query_map([signed(height)], |row| row.get(0)).map_err(sql)?;
        rows.collect::<rusqlite::Result<_>>().map_err(sql)
    }
}

fn sql(e: rusqlite::Error) -> Fault {
    fault(format!("read Pact: {e}"))
}

/// Opens a Pact database without changing anything beside it. The second value holds a copy where one was needed.
pub fn open_unchanged(path: &Path) -> Result<(Connection, Option<Aside>)> {
    let what = || format!("open {}", path.display());
    let wal = with_suffix(path, "-wal");
    if fs::metadata(&wal).is_ok_and(|metadata| metadata.len() > 0) {
        let aside = Aside::create()?;
        let copy = aside.0.join("pact.sqlite");
        fs::copy(path, &copy).context(what)?;
        fs::copy(&wal, with_suffix(&copy, "-wal")).context(what)?;
        return Ok((Connection::open(&copy).context(what)?, Some(aside)));
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let uri = format!("file:{}?mode=ro&immutable=1", percent_encoded(path));
    Ok((Connection::open_with_flags(uri, flags).context(what)?, None))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn percent_encoded(path: &Path) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-~".contains(&byte);
    let encode = |&byte: &u8| if plain(byte) { char::from(byte).into() } else { format!("%{byte:02X}") };
    path.as_os_str().as_bytes().iter().map(encode).collect()
}

/// A directory of our own outside the database, removed with this value (a kill leaves it behind).
pub struct Aside(PathBuf);

impl Aside {
    fn create() -> Result<Aside> {
        let name = format!("demo-node-verify-{}-{:016x}", std::process::id(), fastrand::u64(..));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).context(|| format!("create {}", path.display()))?;
        Ok(Aside(path))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // Only a copy in the temporary directory: nothing is lost where this fails.
        let _ = fs::remove_dir_all(&self.0);
    }
}
