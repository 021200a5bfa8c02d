//! Raw copies under load: each must be one commit, intact, and no older than what was acknowledged before it began. The
//! environment variable `CHAINWEB_BACKUP_SQLITE_COPIES` says how many copies each scenario makes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::SeqCst};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use chainweb_backup::{Control, Error, Method, PactMethod, PactPart, gate, testing};
use tempfile::TempDir;

use crate::fixture::{names, scratch};
use crate::sqlite_pact::{SMALL, Shape, Writer, acknowledged, open, step, verify};

fn copies() -> u64 {
    std::env::var("CHAINWEB_BACKUP_SQLITE_COPIES").ok().and_then(|n| n.parse().ok()).unwrap_or(12)
}

struct Stage {
    scratch: TempDir,
    database: PathBuf,
    acks: Vec<PathBuf>,
    attempts: Arc<AtomicU64>,
}

impl Stage {
    fn new() -> Stage {
        let scratch = scratch();
        let database = scratch.path().join("pact-v1-chain-0.sqlite");
        let acks = (0..2).map(|n| scratch.path().join(format!("ack{n}"))).collect();
        let attempts = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&attempts);
        gate::at_point(&database, move |name| {
            if name == "raw-held" {
                counter.fetch_add(1, SeqCst);
            }
        });
        Stage { scratch, database, acks, attempts }
    }

    fn acknowledged(&self) -> i64 {
        self.acks.iter().map(|ack| acknowledged(ack)).max().unwrap_or(0)
    }

    fn writer(&self, shape: &Shape) -> Writer {
        let mut writer = Writer::open(&self.database, shape);
        writer.run(&self.acks[0]);
        writer
    }

    /// Makes the copies; returns the reasons of those that failed.
    fn copy_all(&self, scenario: &str, count: u64, copy: &dyn Fn(&Path) -> Result<(), String>) -> Vec<String> {
        let directory = self.scratch.path().join("copies");
        std::fs::create_dir(&directory).unwrap();
        let (mut good, mut failures, started) = (0, Vec::new(), Instant::now());
        let mut counters = (0, 0);
        for n in 0..count {
            let to = directory.join(format!("{n}.sqlite"));
            let before = self.acknowledged();
            match copy(&to) {
                Ok(()) => {
                    let counter = verify(&to).unwrap_or_else(|e| panic!("{scenario}: copy {n} is bad: {e}"));
                    assert!(counter >= before, "{scenario}: copy {n} has {counter}, acknowledged were {before}");
                    good += 1;
                    counters = (if counters.0 == 0 { counter } else { counters.0 }, counter);
                    std::fs::remove_file(&to).unwrap();
                }
                Err(e) => failures.push(e),
            }
            assert!(names(&directory).is_empty(), "{scenario}: left behind: {:?}", names(&directory));
        }
        let attempts = self.attempts.load(SeqCst);
        println!(
            "{scenario}: {good} copies good, 0 bad, {} failed, {attempts} attempts, counters {counters:?}, {:?}",
            failures.len(),
            started.elapsed(),
        );
        failures.iter().for_each(|e| println!("{scenario}: {e}"));
        assert!(good > 0);
        failures
    }

    fn raw(&self, node_is_up: bool) -> impl Fn(&Path) -> Result<(), String> {
        let database = self.database.clone();
        move |to| raw_only(testing::foreign_copy(&database, to, node_is_up, &Control::default()))
    }

    fn raw_embedded(&self) -> impl Fn(&Path) -> Result<(), String> {
        let database = self.database.clone();
        move |to| raw_only(testing::embedded_copy(&database, to, PactMethod::Copy))
    }
}

fn raw_only(result: Result<PactPart, Error>) -> Result<(), String> {
    match result {
        Ok(part) if part.method == Method::RawCopy => Ok(()),
        other => Err(format!("{:?}", other.map_err(|e| e.chain()))),
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        gate::forget_points(&self.database);
    }
}

fn plain(scenario: &str, shape: &Shape, count: u64) {
    let stage = Stage::new();
    let _writer = stage.writer(shape);
    assert!(stage.copy_all(scenario, count, &stage.raw(true)).is_empty());
}

#[test]
fn small_autocheckpoints() {
    plain("plain", &SMALL, copies());
}

#[test]
fn vacuum() {
    plain("vacuum", &Shape { vacuum_after: 10, ..SMALL }, copies());
}

#[test]
fn transactions_larger_than_the_cache() {
    plain("spill", &Shape { rows: 2000, cache_pages: 10, ..SMALL }, copies());
}

#[test]
fn pages_of_4_and_64_kib() {
    plain("page 4096", &Shape { page_bytes: 4096, ..SMALL }, copies());
    plain("page 65536", &Shape { page_bytes: 65536, ..SMALL }, copies());
}

#[test]
fn a_huge_wal() {
    let stage = Stage::new();
    let shape = Shape { autocheckpoint: 0, rows: 100, ..SMALL };
    let mut writer = Writer::open(&stage.database, &shape);
    writer.tell("write 300");
    writer.run(&stage.acks[0]);
    assert!(stage.copy_all("huge wal", copies().div_ceil(4).min(8), &stage.raw(true)).is_empty());
    println!("huge wal: {} bytes", std::fs::metadata(format!("{}-wal", stage.database.display())).unwrap().len());
}

#[test]
fn explicit_wal_checkpoints() {
    let stage = Stage::new();
    let _writer = stage.writer(&SMALL);
    let mut other = Writer::open(&stage.database, &SMALL);
    other.tell(&format!("checkpoints {}", stage.database.display()));
    assert!(stage.copy_all("explicit checkpoints", copies(), &stage.raw(true)).is_empty());
}

#[test]
fn two_writers() {
    let stage = Stage::new();
    let _writer = stage.writer(&SMALL);
    let mut other = Writer::open(&stage.database, &Shape { autocheckpoint: 200, rows: 50, ..SMALL });
    other.run(&stage.acks[1]);
    assert!(stage.copy_all("two writers", copies(), &stage.raw(true)).is_empty());
}

/// The writer is killed at random moments, and another one starts.
#[test]
fn killed_writers() {
    let stage = Stage::new();
    let shape = Shape { rows: 60, cache_pages: 20, ..SMALL };
    let stop = Arc::new(AtomicBool::new(false));
    let kills = {
        let (stop, database, ack) = (Arc::clone(&stop), stage.database.clone(), stage.acks[0].clone());
        drop(stage.writer(&shape));
        thread::spawn(move || {
            let mut kills = 0;
            while !stop.load(SeqCst) {
                let mut writer = Writer::open(&database, &shape);
                writer.run(&ack);
                sleep(Duration::from_millis(fastrand::u64(1..40)));
                writer.kill();
                kills += 1;
            }
            kills
        })
    };
    let failures = stage.copy_all("kill -9", copies(), &stage.raw(false));
    stop.store(true, SeqCst);
    println!("kill -9: {} kills", kills.join().unwrap());
    assert!(failures.is_empty());
}

/// The last connection removes the -wal when it closes. A copy that began then may find that the node is open again.
#[test]
fn closing_and_opening_writers() {
    let stage = Stage::new();
    let _writer = stage.writer(&Shape { reopen_after: 5, ..SMALL });
    let copy = |to: &Path| match testing::foreign_copy(&stage.database, to, false, &Control::default()) {
        Ok(_) => Ok(()),
        Err(e) => std::fs::remove_file(to).or(Ok(())).and(Err(e.chain())),
    };
    // It stops again and again, so a database that was open at one look may be closed at the next.
    for failure in stage.copy_all("reopen", copies() * 2, &copy) {
        assert!(failure.contains("all 3 attempts failed: the node was started"), "{failure}");
    }
}

/// Writers in our own process, through the same SQLite, that open and close connections all the time.
#[test]
fn writers_in_the_same_process() {
    let stage = Stage::new();
    let (stop, newest) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicI64::new(0)));
    drop(open(&stage.database, &SMALL).unwrap());
    let writers: Vec<_> = [7, 40]
        .map(|reopen_after| {
            let (stop, newest, path) = (Arc::clone(&stop), Arc::clone(&newest), stage.database.clone());
            thread::spawn(move || {
                let mut turns = 0;
                while !stop.load(SeqCst) {
                    let mut connection = open(&path, &SMALL).unwrap();
                    for _ in 0..reopen_after {
                        newest.fetch_max(step(&mut connection, 6).unwrap(), SeqCst);
                        turns += 1;
                    }
                }
                turns
            })
        })
        .into();
    let reader = {
        let (stop, path) = (Arc::clone(&stop), stage.database.clone());
        thread::spawn(move || {
            while !stop.load(SeqCst) {
                let connection = open(&path, &SMALL).unwrap();
                connection.execute_batch("BEGIN").unwrap();
                connection.query_row("SELECT n FROM counter", [], |_| Ok(())).unwrap();
                sleep(Duration::from_millis(fastrand::u64(0..5)));
            }
        })
    };
    let raw = stage.raw_embedded();
    let copy = |to: &Path| {
        let before = newest.load(SeqCst);
        raw(to)?;
        assert!(verify(to)? >= before);
        Ok(())
    };
    let failures = stage.copy_all("embedded", copies(), &copy);
    stop.store(true, SeqCst);
    let turns: Vec<u64> = writers.into_iter().map(|t| t.join().unwrap()).collect();
    reader.join().unwrap();
    println!("embedded: transactions {turns:?}");
    assert!(failures.is_empty());
}
