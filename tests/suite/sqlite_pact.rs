//! An SQLite database like those of Pact, with a known history; the process that writes to it; the check of its copies.
//!
//! Every transaction increments one counter, moves amounts between accounts whose sum never changes, and adds rows whose
//! content follows from their key and the counter; old rows are deleted. The writer reports the counter after each commit. It is this
//! test executable again, as [`child`]. Each line on its standard input is an order; it ends with its standard input.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use chainweb_backup::rusqlite::{self, Connection, OpenFlags, Transaction, TransactionBehavior};
use chainweb_backup::{Control, PactMethod, testing};

/// Set for the child.
const CHILD: &str = "CHAINWEB_BACKUP_SQLITE_CHILD";

/// The number of accounts, each of 1 KiB. With more, by the environment, copies take longer and the node does more meanwhile.
fn accounts() -> i64 {
    static ACCOUNTS: LazyLock<i64> = LazyLock::new(|| {
        std::env::var("CHAINWEB_BACKUP_SQLITE_ACCOUNTS").ok().and_then(|n| n.parse().ok()).unwrap_or(2_000)
    });
    *ACCOUNTS
}

const AMOUNT: i64 = 1_000;
/// About how many rows are kept.
const KEPT_ROWS: i64 = 2_000;

/// How a database is written to.
#[derive(Debug, Clone)]
pub struct Shape {
    pub page_bytes: u32,
    pub autocheckpoint: u32,
    /// Pages in the cache: if a transaction changes more, uncommitted frames go to the WAL.
    pub cache_pages: u32,
    /// Rows that one transaction adds and accounts that it touches.
    pub rows: i64,
    /// After how many transactions it closes and opens the database; 0 is never.
    pub reopen_after: i64,
    /// After how many transactions it runs VACUUM; 0 is never.
    pub vacuum_after: i64,
}

pub const SMALL: Shape =
    Shape { page_bytes: 1024, autocheckpoint: 20, cache_pages: 2000, rows: 6, reopen_after: 0, vacuum_after: 0 };

impl Shape {
    fn words(&self) -> String {
        let Shape { page_bytes, autocheckpoint, cache_pages, rows, reopen_after, vacuum_after } = self;
        format!("{page_bytes} {autocheckpoint} {cache_pages} {rows} {reopen_after} {vacuum_after}")
    }

    fn parse(words: &[&str]) -> Shape {
        let number = |at: usize| words[at].parse::<u32>().unwrap();
        Shape {
            page_bytes: number(0),
            autocheckpoint: number(1),
            cache_pages: number(2),
            rows: i64::from(number(3)),
            reopen_after: i64::from(number(4)),
            vacuum_after: i64::from(number(5)),
        }
    }
}

/// Opens the database as its node does; creates it if it is missing.
pub fn open(path: &Path, shape: &Shape) -> rusqlite::Result<Connection> {
    let new = !path.exists();
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(20))?;
    let Shape { page_bytes, autocheckpoint, cache_pages, .. } = shape;
    connection.execute_batch(&format!("PRAGMA page_size={page_bytes}; PRAGMA synchronous=NORMAL"))?;
    let mode: String = connection.query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0))?;
    assert_eq!(mode, "wal");
    connection
        .execute_batch(&format!("PRAGMA wal_autocheckpoint={autocheckpoint}; PRAGMA cache_size={cache_pages}"))?;
    if new {
        create(&mut connection)?;
    }
    Ok(connection)
}

/// Makes the tables, in the mode of the connection.
pub fn create(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    transaction.execute_batch(
        "CREATE TABLE counter (n INTEGER); INSERT INTO counter VALUES (0);
         CREATE TABLE account (id INTEGER PRIMARY KEY, amount INTEGER, pad BLOB);
         CREATE TABLE done (txid INTEGER PRIMARY KEY, rows INTEGER);
         CREATE TABLE 'coin_coin-table' (rowkey TEXT, txid INTEGER, rowdata BLOB, UNIQUE (rowkey, txid));
         CREATE INDEX coin_ix ON 'coin_coin-table' (txid);",
    )?;
    for id in 0..accounts() {
        transaction.execute("INSERT INTO account VALUES (?, ?, zeroblob(1000))", (id, AMOUNT))?;
    }
    transaction.commit()
}

fn row_data(txid: i64, n: i64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(txid.cast_unsigned() << 16 | n.cast_unsigned());
    (0..random.usize(20..400)).map(|_| random.u8(..)).collect()
}

/// Makes one transaction; returns the counter.
pub fn step(connection: &mut Connection, rows: i64) -> rusqlite::Result<i64> {
    let transaction = Transaction::new(connection, TransactionBehavior::Immediate)?;
    let txid: i64 = transaction.query_row("UPDATE counter SET n = n + 1 RETURNING n", [], |row| row.get(0))?;
    {
        let mut random = fastrand::Rng::new();
        let mut pay = transaction.prepare_cached("UPDATE account SET amount = amount + ? WHERE id = ?")?;
        let mut add = transaction.prepare_cached("INSERT INTO 'coin_coin-table' VALUES (?, ?, ?)")?;
        for n in 0..rows {
            let amount = random.i64(1..50);
            pay.execute((-amount, random.i64(0..accounts())))?;
            add.execute((format!("k:{}", (txid * 7 + n) % 977 + n * 1000), txid, row_data(txid, n)))?;
            pay.execute((amount, random.i64(0..accounts())))?;
        }
    }
    transaction.execute("INSERT INTO done VALUES (?, ?)", (txid, rows))?;
    let old = txid - (KEPT_ROWS / rows).max(2);
    transaction.execute("DELETE FROM 'coin_coin-table' WHERE txid <= ?", [old])?;
    transaction.execute("DELETE FROM done WHERE txid <= ?", [old])?;
    transaction.commit()?;
    Ok(txid)
}

/// The counter of a copy. Fails unless the copy is intact, is one commit and has no file beside it.
pub fn verify(copy: &Path) -> Result<i64, String> {
    for suffix in ["-wal", "-shm", "-journal"] {
        let mut name = copy.as_os_str().to_owned();
        name.push(suffix);
        if Path::new(&name).exists() {
            return Err(format!("{suffix} beside the copy"));
        }
    }
    let uri = format!("file:{}?mode=ro&immutable=1", copy.display());
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    Connection::open_with_flags(uri, flags).map_err(|e| e.to_string()).and_then(|c| verify_open(&c))
}

/// As [`verify`], without a look at the files beside it.
pub fn verify_open(connection: &Connection) -> Result<i64, String> {
    let judge = || -> rusqlite::Result<Result<i64, String>> {
        let verdict: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
        if verdict != "ok" {
            return Ok(Err(format!("integrity: {verdict}")));
        }
        let counter: i64 = connection.query_row("SELECT n FROM counter", [], |row| row.get(0))?;
        let newest: i64 = connection.query_row("SELECT ifnull(max(txid), 0) FROM done", [], |row| row.get(0))?;
        let sums = "SELECT count(*), sum(amount) FROM account";
        let (count, sum): (i64, i64) = connection.query_row(sums, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
        if counter != newest || count != accounts() || sum != accounts() * AMOUNT {
            return Ok(Err(format!("counter {counter}, newest {newest}, {count} accounts, sum {sum}")));
        }
        let mut statement = connection.prepare("SELECT txid, rows FROM done ORDER BY txid")?;
        let mut expected = Vec::new();
        for row in statement.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))? {
            let (txid, rows) = row?;
            expected.extend((0..rows).map(|n| (txid, row_data(txid, n))));
        }
        let mut statement = connection.prepare("SELECT txid, rowdata FROM 'coin_coin-table' ORDER BY txid, rowid")?;
        let found = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let found = found.collect::<rusqlite::Result<Vec<(i64, Vec<u8>)>>>()?;
        Ok(if found == expected { Ok(counter) } else { Err("rows differ".to_owned()) })
    };
    judge().unwrap_or_else(|e| Err(e.to_string()))
}

/// The writing process, for the test.
pub struct Writer {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Writer {
    pub fn start() -> Writer {
        Writer::start_with(Command::new(std::env::current_exe().unwrap()))
    }

    /// Starts it through a command that ends with this executable.
    pub fn start_with(mut command: Command) -> Writer {
        command.args(["--exact", "sqlite_pact::child", "--ignored", "--nocapture", "--test-threads=1"]).env(CHILD, "1");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Writer { child, stdin, stdout }
    }

    /// A writer with the database open.
    pub fn open(path: &Path, shape: &Shape) -> Writer {
        let mut writer = Writer::start();
        writer.open_database(path, shape);
        writer
    }

    pub fn open_database(&mut self, path: &Path, shape: &Shape) -> String {
        self.tell(&format!("open {} {}", path.display(), shape.words()))
    }

    /// Gives one order; returns the answer.
    pub fn tell(&mut self, line: &str) -> String {
        writeln!(self.stdin.as_mut().unwrap(), "{line}").unwrap();
        loop {
            let mut answer = String::new();
            assert_ne!(self.stdout.read_line(&mut answer).unwrap(), 0, "the child ended at {line:?}");
            if let Some(answer) = answer.trim_end().strip_prefix("child: ") {
                return answer.to_owned();
            }
        }
    }

    /// Lets it write without end from now on, with the counter in a file.
    pub fn run(&mut self, ack: &Path) {
        assert_eq!(self.tell(&format!("run {}", ack.display())), "running");
        let deadline = Instant::now() + Duration::from_secs(30);
        while acknowledged(ack) == 0 {
            assert!(Instant::now() < deadline, "the writer does not write");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.child.try_wait().unwrap().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// The last counter that a writer has reported.
pub fn acknowledged(ack: &Path) -> i64 {
    fs::read_to_string(ack).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

#[test]
#[ignore = "no test: another one runs it as a process of its own"]
fn child() {
    std::env::var(CHILD).unwrap();
    let mut state = State { connection: None, path: PathBuf::new(), shape: SMALL, kept: Vec::new() };
    for line in std::io::stdin().lines() {
        let answer = state.obey(&line.unwrap());
        println!("\nchild: {answer}");
        std::io::stdout().flush().unwrap();
    }
    std::process::exit(0);
}

struct State {
    connection: Option<Connection>,
    path: PathBuf,
    shape: Shape,
    kept: Vec<Box<dyn std::any::Any>>,
}

impl State {
    fn obey(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split(' ').collect();
        match words[0] {
            "open" => {
                self.path = PathBuf::from(words[1]);
                self.shape = Shape::parse(&words[2..]);
                self.connection = Some(open(&self.path, &self.shape).unwrap());
                "open".to_owned()
            }
            "close" => {
                self.connection.take().unwrap().close().map_err(|(_, e)| e).unwrap();
                "closed".to_owned()
            }
            "write" => {
                let rows = self.shape.rows;
                let count: u32 = words[1].parse().unwrap();
                (0..count).map(|_| step(self.connection(), rows).unwrap()).last().unwrap().to_string()
            }
            "sql" => {
                let sql = line.strip_prefix("sql ").unwrap();
                let mut statement = self.connection().prepare(sql).unwrap();
                let mut rows = statement.query([]).unwrap();
                let mut answer = "nothing".to_owned();
                while let Some(row) = rows.next().unwrap() {
                    answer = format!("{:?}", row.get::<_, rusqlite::types::Value>(0).unwrap());
                }
                answer
            }
            "checkpoints" => {
                let (path, shape) = (PathBuf::from(words[1]), self.shape.clone());
                std::thread::spawn(move || {
                    let connection = open(&path, &shape).unwrap();
                    connection.busy_timeout(Duration::from_millis(50)).unwrap();
                    for mode in ["TRUNCATE", "RESTART", "FULL", "PASSIVE"].iter().cycle() {
                        // The database may be busy.
                        let _ = connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()));
                        std::thread::sleep(Duration::from_millis(fastrand::u64(0..8)));
                    }
                });
                "running".to_owned()
            }
            "run" => {
                let ack = fs::File::options().write(true).create(true).truncate(false).open(words[1]).unwrap();
                let (mut connection, path, shape) =
                    (self.connection.take().unwrap(), self.path.clone(), self.shape.clone());
                std::thread::spawn(move || {
                    for turn in 1.. {
                        let counter = step(&mut connection, shape.rows).unwrap();
                        ack.write_all_at(format!("{counter:<20}").as_bytes(), 0).unwrap();
                        if shape.reopen_after > 0 && turn % shape.reopen_after == 0 {
                            connection.close().map_err(|(_, e)| e).unwrap();
                            connection = open(&path, &shape).unwrap();
                        }
                        if shape.vacuum_after > 0 && turn % shape.vacuum_after == 0 {
                            connection.execute_batch("VACUUM").unwrap();
                        }
                    }
                });
                "running".to_owned()
            }
            "rocksdb" => {
                let mut options = chainweb_backup::rocksdb::Options::default();
                options.create_if_missing(true);
                self.kept.push(Box::new(chainweb_backup::rocksdb::DB::open(&options, words[1]).unwrap()));
                "open".to_owned()
            }
            "copy" => {
                let to = Path::new(words[2]);
                match testing::foreign_copy(Path::new(words[1]), to, words[3] == "up", &Control::default()) {
                    Ok(part) => format!("{:?} {:?}", part.method, verify(to)),
                    Err(e) => format!("refused: {}", e.chain()),
                }
            }
            "raw-copy" => {
                let result = testing::embedded_copy(Path::new(words[1]), Path::new(words[2]), PactMethod::Copy);
                format!("{:?}", result.map(|part| part.method).map_err(|e| e.chain()))
            }
            other => panic!("no such order: {other}"),
        }
    }

    fn connection(&mut self) -> &mut Connection {
        self.connection.as_mut().unwrap()
    }
}
