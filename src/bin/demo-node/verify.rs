//! `demo-node verify`: whether a stopped database, or a backup, is a history that a node can continue.
//!
//! 1. RocksDB is read from start to end; from the newest cut every chain is followed to its genesis, every header and
//!    payload is there and has its hash, and txids follow on each other.
//! 2. Each Pact database is sound, its newest block is canonical or an orphan on a canonical block, not above the cut,
//!    and every table is exactly what replaying the blocks up to that one gives.
//!
//! Invariants: nothing in the directory is changed or created. RocksDB is opened to read only; a Pact database without
//! WAL is opened as immutable; one with a WAL, which only a crash leaves, is copied aside with it and opened there.

use crate::chain::{Cut, Hash, Header, MAX_CHAINS, Tip};
use crate::fault::{Context, Fault, Result, fault};
use crate::pact::{TABLE, head, path, signed, unsigned};
use crate::rocks;
use chainweb_backup::rocksdb::DB;
use chainweb_backup::rusqlite::{self, Connection, OpenFlags, OptionalExtension};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// A database directory, or a backup: what holds 0/rocksDb and 0/sqlite
    directory: PathBuf,
    /// The backup holds RocksDB only
    #[arg(long)]
    no_pact: bool,
    /// How many chains there must be
    #[arg(long, value_name = "N")]
    expect_chains: Option<u8>,
}

/// Returns the summary line, or the first fault.
pub fn verify(args: &VerifyArgs) -> Result<String> {
    let directory = &args.directory;
    let db = rocks::open_read_only(directory)?;
    let cut = rocks::newest_cut(&db)?.ok_or_else(|| fault("RocksDB holds no cut"))?;
    check_cut(&cut, args.expect_chains)?;
    let header_count = rocks::scan(&db)?;
    if !args.no_pact {
        check_pact_files(directory, &cut)?;
    }
    let (mut block_count, mut most_behind) = (0, 0);
    for (&chain, &tip) in &cut.hashes {
        let history = rocks::history(&db, chain, tip)?;
        check_payloads(&db, &history)?;
        block_count += history.len() as u64;
        if !args.no_pact {
            let pact_height = check_pact(directory, &db, chain, &history).map_err(|e| in_chain(chain, &e))?;
            most_behind = most_behind.max(tip.height - pact_height);
        }
    }
    let orphan_count = header_count - block_count;
    let chain_count = cut.hashes.len();
    let pact = if args.no_pact { "no pact".into() } else { format!("pact at most {most_behind} behind") };
    Ok(format!(
        "ok: cut height {}, {chain_count} chains, {block_count} blocks, {pact}, {orphan_count} orphans",
        cut.height
    ))
}

fn in_chain(chain: u8, e: &Fault) -> Fault {
    let text = e.to_string();
    if text.starts_with("chain ") { fault(text) } else { fault(format!("chain {chain}: {text}")) }
}

fn check_cut(cut: &Cut, expect_chains: Option<u8>) -> Result<()> {
    let count = cut.hashes.len();
    if count > usize::from(MAX_CHAINS) || !cut.hashes.keys().copied().eq(0..count as u8) {
        return Err(fault("the newest cut does not name the chains 0, 1, 2, … without a gap"));
    }
    match expect_chains {
        Some(expected) if count != usize::from(expected) => {
            Err(fault(format!("the newest cut has {count} chains, not {expected}")))
        }
        _ => Ok(()),
    }
}

fn check_payloads(db: &DB, history: &[Header]) -> Result<()> {
    let mut next_txid = 0;
    for header in history {
        let payload = rocks::block(db, *header)?.payload;
        if payload.txid != next_txid {
            let (chain, height) = (header.chain, header.height);
            return Err(fault(format!(
                "chain {chain}: block {height} starts at txid {}, not {next_txid}",
                payload.txid
            )));
        }
        next_txid = payload.ending_txid();
    }
    Ok(())
}

fn check_pact_files(directory: &Path, cut: &Cut) -> Result<()> {
    let sqlite = directory.join("0/sqlite");
    if !sqlite.is_dir() {
        return Err(fault(format!("no Pact databases: {} does not exist", sqlite.display())));
    }
    for &chain in cut.hashes.keys() {
        let path = path(directory, chain);
        if !path.is_file() {
            return Err(fault(format!("chain {chain}: no Pact database: {} does not exist", path.display())));
        }
    }
    Ok(())
}

/// Returns the height at which this chain's Pact is.
fn check_pact(directory: &Path, db: &DB, chain: u8, history: &[Header]) -> Result<u64> {
    let (connection, _aside) = open_unchanged(&path(directory, chain))?;
    let check: String = connection
        .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
        .context(|| "check Pact's integrity".into())?;
    if check != "ok" {
        return Err(fault(format!("Pact is damaged: {check}")));
    }
    let head = head(&connection).context(|| "read Pact's newest block".into())?;
    let head = head.ok_or_else(|| fault("Pact holds no block"))?;
    let replay = blocks_up_to(db, chain, history, head)?;
    check_replay(db, &connection, &replay)?;
    Ok(head.height)
}

/// The blocks whose replay must give Pact's tables.
fn blocks_up_to(db: &DB, chain: u8, history: &[Header], head: Tip) -> Result<Vec<Header>> {
    let (height, hash) = (head.height, head.hash);
    let cut_height = history.len() as u64 - 1;
    if height > cut_height {
        return Err(fault(format!("Pact is ahead of RocksDB: at block {height} ({hash}), the cut at {cut_height}")));
    }
    let index = usize::try_from(height).context(|| "height of Pact's newest block".into())?;
    if history[index].hash == hash {
        return Ok(history[..=index].to_vec());
    }
    let Some(orphan) = rocks::header(db, chain, head)? else {
        return Err(fault(format!("Pact is ahead of RocksDB: its block {height} ({hash}) is not in RocksDB")));
    };
    if index == 0 || history[index - 1].hash != orphan.parent {
        return Err(fault(format!("Pact's block {height} ({hash}) is not on a canonical block")));
    }
    Ok([&history[..index], &[orphan]].concat())
}

/// Compares every row of every table with the replay of the blocks.
fn check_replay(db: &DB, connection: &Connection, replay: &[Header]) -> Result<()> {
    let sql = |e: rusqlite::Error| fault(format!("read Pact: {e}"));
    let prepare = |text: &str| connection.prepare(text).map_err(sql);
    let mut row_select = prepare(r#"SELECT txid, rowkey, rowdata FROM "coin_coin-table" ORDER BY txid, rowkey"#)?;
    let mut rows = row_select.query([]).map_err(sql)?;
    let mut history_select = prepare("SELECT blockheight, hash, endingtxid FROM BlockHistory ORDER BY blockheight")?;
    let mut history = history_select.query([]).map_err(sql)?;
    let mut mutation_select = prepare("SELECT blockheight, tablename FROM VersionedTableMutation ORDER BY 1, 2")?;
    let mut mutations = mutation_select.query([]).map_err(sql)?;
    let mut index_select = prepare("SELECT blockheight FROM TransactionIndex WHERE txhash = ?1")?;
    let mut txid_count = 0;
    for header in replay {
        let (height, payload) = (header.height, rocks::block(db, *header)?.payload);
        let differs = |table: &str| fault(format!("Pact's {table} differs from the replay at block {height}"));
        for (txid, write) in payload.numbered() {
            let row = rows.next().map_err(sql)?.ok_or_else(|| differs(TABLE))?;
            let same = row.get::<_, i64>(0).map_err(sql)? == signed(txid)
                && row.get_ref(1).map_err(sql)?.as_bytes().is_ok_and(|key| key == write.key.as_bytes())
                && row.get_ref(2).map_err(sql)?.as_blob().is_ok_and(|data| data == write.data.as_bytes());
            if !same {
                return Err(differs(TABLE));
            }
            let hash = write.tx_hash(txid);
            let indexed: Option<i64> =
                index_select.query_row([hash.as_bytes()], |row| row.get(0)).optional().map_err(sql)?;
            if indexed != Some(signed(height)) {
                return Err(differs("TransactionIndex"));
            }
        }
        txid_count = payload.ending_txid();
        let row = history.next().map_err(sql)?.ok_or_else(|| differs("BlockHistory"))?;
        let hash = row.get_ref(1).map_err(sql)?.as_blob().ok().and_then(Hash::from_slice);
        let numbers = (row.get::<_, i64>(0).map_err(sql)?, row.get::<_, i64>(2).map_err(sql)?);
        if hash != Some(header.hash) || numbers != (signed(height), signed(txid_count)) {
            return Err(differs("BlockHistory"));
        }
        let row = mutations.next().map_err(sql)?.ok_or_else(|| differs("VersionedTableMutation"))?;
        let table: String = row.get(1).map_err(sql)?;
        if row.get::<_, i64>(0).map_err(sql)? != signed(height) || table != TABLE {
            return Err(differs("VersionedTableMutation"));
        }
    }
    let count = |table: &str| -> Result<u64> {
        let text = format!(r#"SELECT count(*) FROM "{table}""#);
        connection.query_row(&text, [], |row| row.get(0)).map(unsigned).map_err(sql)
    };
    let height_count = replay.len() as u64;
    for (table, expected_count) in [
        (TABLE, txid_count),
        ("TransactionIndex", txid_count),
        ("BlockHistory", height_count),
        ("VersionedTableMutation", height_count),
        ("VersionedTableCreation", 1),
    ] {
        let row_count = count(table)?;
        if row_count != expected_count {
            return Err(fault(format!("Pact's {table} has {row_count} rows, the replay {expected_count}")));
        }
    }
    Ok(())
}

/// Opens a Pact database without changing anything beside it. The second value holds a copy where one was needed.
fn open_unchanged(path: &Path) -> Result<(Connection, Option<Aside>)> {
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
struct Aside(PathBuf);

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
