//! The node that keeps writing while a backup is measured, as a process of its own: it appends `microseconds-since-epoch
//! latency-in-microseconds` to a file for each commit, until it is killed.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use chainweb_backup::rocksdb::{DB, Options, WriteBatch, WriteOptions};
use chainweb_backup::rusqlite::{Connection, params};

/// Rows that one Pact transaction changes, and their size: what a block of some transfers does. So many that clearly more
/// than one commit in a hundred also runs SQLite's own checkpoint: with three it was just one, and p99 fell on either side.
const ROWS: u64 = 10;
const ROW_BYTES: usize = 4096;

/// Creates a database of about `bytes` bytes, with the page size, the journal and the kind of tables that Pact has.
pub fn fill_pact(path: &Path, bytes: u64) {
    let db = open_pact(path);
    db.execute_batch(
        "CREATE TABLE IF NOT EXISTS BlockHistory (blockheight UNSIGNED BIGINT PRIMARY KEY, hash TEXT, endingtxid UNSIGNED BIGINT);
         CREATE TABLE IF NOT EXISTS [coin_coin-table] (rowkey TEXT, txid UNSIGNED BIGINT, rowdata BLOB, UNIQUE (rowkey, txid));
         INSERT OR REPLACE INTO BlockHistory VALUES (1, 'hash', 1);
         PRAGMA synchronous=OFF;",
    )
    .unwrap();
    let rows = i64::try_from(bytes / 700).unwrap();
    let mut from = 0;
    while from < rows {
        let to = (from + 50_000).min(rows);
        let sql = "WITH RECURSIVE n(i) AS (SELECT ?1 UNION ALL SELECT i + 1 FROM n WHERE i < ?2 - 1)
                   INSERT INTO [coin_coin-table] SELECT printf('k:%016x', i * 2654435761 % 4294967296), i, randomblob(560) FROM n";
        db.execute(sql, params![from, to]).unwrap();
        from = to;
    }
    let _: i64 = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0)).unwrap();
}

/// Opens it as the node does.
pub fn open_pact(path: &Path) -> Connection {
    let db = Connection::open(path).unwrap();
    db.busy_timeout(Duration::from_secs(60)).unwrap();
    let _: String = db.query_row("PRAGMA page_size=1024", [], |_| Ok(String::new())).unwrap_or_default();
    let _: String = db.query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0)).unwrap();
    db
}

/// Opens all Pact databases of a node's directory and writes to each, as a node has them.
pub fn open_as_a_node(node: &Path) -> Vec<Connection> {
    let open = |path: &PathBuf| {
        let db = open_pact(path);
        db.execute_batch("INSERT OR REPLACE INTO BlockHistory VALUES (2, 'hash', 2)").unwrap();
        db
    };
    crate::databases(&node.join("0/sqlite")).iter().map(open).collect()
}

/// Commits a block's worth of rows to each of the Pact databases in `directory` in turn, with `pause` in between.
pub fn write_pact(directory: &Path, log: &Path, pause: Duration) -> ! {
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut databases: Vec<(Connection, i64)> = files
        .filter(|path| path.extension().is_some_and(|e| e == "sqlite"))
        .map(|path| {
            let db = open_pact(&path);
            db.execute_batch("PRAGMA synchronous=FULL").unwrap();
            let largest = "SELECT max(rowid) FROM [coin_coin-table]";
            let largest = db.query_row(largest, [], |row| row.get(0)).unwrap();
            (db, largest)
        })
        .collect();
    let mut random = fastrand::Rng::with_seed(1);
    forever(log, pause, &mut |height| {
        let turn = usize::try_from(height).unwrap() % databases.len();
        let (db, largest) = &mut databases[turn];
        let tx = db.transaction().unwrap();
        for _ in 0..ROWS {
            let row = random.i64(1..=*largest);
            let mut bytes = [0; ROW_BYTES];
            random.fill(&mut bytes);
            tx.execute("UPDATE [coin_coin-table] SET rowdata = ?2 WHERE rowid = ?1", params![row, bytes.as_slice()])
                .unwrap();
        }
        tx.execute("INSERT OR REPLACE INTO BlockHistory VALUES (?1, 'hash', ?1)", [height]).unwrap();
        tx.commit().unwrap();
    })
}

/// Commits batches to a RocksDB that has an SST for every few of them, with `pause` in between.
pub fn write_rocks(path: &Path, log: &Path, pause: Duration) -> ! {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_write_buffer_size(4 << 20);
    options.set_target_file_size_base(2 << 20);
    options.set_max_open_files(1000);
    let db = DB::open(&options, path).unwrap();
    let mut synced = WriteOptions::default();
    synced.set_sync(!pause.is_zero());
    let mut random = fastrand::Rng::with_seed(1);
    forever(log, pause, &mut |_| {
        let mut batch = WriteBatch::default();
        for _ in 0..20 {
            let mut bytes = [0; 500];
            random.fill(&mut bytes);
            batch.put(random.u64(..2_000_000).to_be_bytes(), bytes);
        }
        db.write_opt(batch, &synced).unwrap();
    })
}

fn forever(log: &Path, pause: Duration, commit: &mut dyn FnMut(i64)) -> ! {
    let mut log = BufWriter::new(File::create(log).unwrap());
    let mut flushed = Instant::now();
    for height in 2.. {
        let started = Instant::now();
        commit(height);
        let latency = started.elapsed().as_micros();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros();
        writeln!(log, "{now} {latency}").unwrap();
        if flushed.elapsed() > Duration::from_millis(200) {
            log.flush().unwrap();
            flushed = Instant::now();
        }
        if !pause.is_zero() {
            sleep(pause);
        }
    }
    unreachable!("no process lives that long")
}
