//! The writer of `stress`: a process of its own that has the database open and writes the history of `history` at the given pace.
//!
//! It is this test executable again. Its parent kills it, or closes its standard input.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use chainweb_backup::rocksdb::{
    ColumnFamilyDescriptor, DBCompressionType, DBWithThreadMode, FlushOptions, IngestExternalFileOptions,
    MultiThreaded, Options, SstFileWriter, TransactionDB, TransactionDBOptions, TransactionOptions, WriteBatch,
    WriteOptions,
};

use super::history::{Change, FAMILIES, Found, GROUP, THREADS, judge, mark, member, step};

/// Set for the child: scenario and pause between steps in microseconds.
const CHILD: &str = "CHAINWEB_BACKUP_LIVE_WRITER";

/// Numbers in the progress file: steps, ingested files, column families, and how often the database was opened.
const INGESTED: usize = THREADS;
const PASSED: usize = THREADS + 1;
const OPENED: usize = THREADS + 2;

/// How the writer writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    Plain,
    Families,
    Rollover,
    /// Atomic flush of four column families, without a WAL.
    Atomic,
    /// The writer is killed and started again all the time.
    Killed,
    Ingest,
    ComeAndGo,
    TwoPhase,
    Blobs,
    CompressedWal,
    Pipelined,
    Unordered,
    /// The MANIFEST lists the WALs.
    WalsInManifest,
    /// The next WAL is made before it is needed.
    Precreated,
    /// WAL files that are used again: never copied.
    Recycled,
}

pub use Scenario::*;

pub const SCENARIOS: [Scenario; 15] = [
    Plain,
    Families,
    Rollover,
    Atomic,
    Killed,
    Ingest,
    ComeAndGo,
    TwoPhase,
    Blobs,
    CompressedWal,
    Pipelined,
    Unordered,
    WalsInManifest,
    Precreated,
    Recycled,
];

impl Scenario {
    pub fn families(self) -> usize {
        if matches!(self, Families | Atomic | Killed | TwoPhase | Unordered) { FAMILIES.len() } else { 1 }
    }

    fn named(name: &str) -> Scenario {
        SCENARIOS.into_iter().find(|s| format!("{s:?}") == name).unwrap()
    }

    pub fn options(self) -> Options {
        let strings = match self {
            // With the second option, RocksDB 11 does not choose a larger limit by itself.
            Rollover => "max_manifest_file_size=4096;max_manifest_space_amp_pct=0",
            WalsInManifest => "track_and_verify_wals_in_manifest=true;track_and_verify_wals=true",
            Precreated => "async_wal_precreate=true",
            Recycled => "recycle_log_file_num=4",
            _ => "",
        };
        let mut options = Options::default().get_options_from_string(strings).unwrap();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_write_buffer_size(64 * 1024);
        options.set_level_zero_file_num_compaction_trigger(3);
        options.set_target_file_size_base(32 * 1024);
        options.set_max_bytes_for_level_base(128 * 1024);
        options.set_max_background_jobs(2);
        options.set_keep_log_file_num(2);
        match self {
            Atomic => options.set_atomic_flush(true),
            Blobs => {
                options.set_enable_blob_files(true);
                options.set_min_blob_size(150);
                options.set_blob_file_size(16 * 1024);
                options.set_enable_blob_gc(true);
                options.set_blob_gc_age_cutoff(0.5);
                options.set_blob_gc_force_threshold(0.3);
            }
            CompressedWal => options.set_wal_compression_type(DBCompressionType::Zstd),
            Pipelined => options.set_enable_pipelined_write(true),
            Unordered => options.set_unordered_write(true),
            _ => {}
        }
        options
    }
}

/// A database of either kind.
enum Db {
    Plain(DBWithThreadMode<MultiThreaded>),
    Transactions(TransactionDB<MultiThreaded>),
}

impl Db {
    fn open(scenario: Scenario, path: &Path) -> Db {
        let options = scenario.options();
        let mut names: Vec<String> = FAMILIES[..scenario.families()].iter().map(|n| (*n).to_owned()).collect();
        if let Ok(there) = DBWithThreadMode::<MultiThreaded>::list_cf(&options, path) {
            names.extend(there.into_iter().filter(|name| name.starts_with("passing")));
        }
        let families: Vec<_> = names.iter().map(|name| ColumnFamilyDescriptor::new(name, options.clone())).collect();
        if scenario == TwoPhase {
            let with = TransactionDBOptions::default();
            return Db::Transactions(TransactionDB::open_cf_descriptors(&options, &with, path, families).unwrap());
        }
        Db::Plain(DBWithThreadMode::open_cf_descriptors(&options, path, families).unwrap())
    }

    fn plain(&self) -> &DBWithThreadMode<MultiThreaded> {
        match self {
            Db::Plain(db) => db,
            Db::Transactions(_) => panic!("transactions only make steps"),
        }
    }

    fn commit(&self, changes: Vec<Change>, name: &str, wal: bool) {
        match self {
            Db::Plain(db) => {
                let mut batch = WriteBatch::default();
                for Change { family, key, value } in changes {
                    let family = db.cf_handle(FAMILIES[family]).unwrap();
                    match value {
                        Some(value) => batch.put_cf(&family, key, value),
                        None => batch.delete_cf(&family, key),
                    }
                }
                let mut how = WriteOptions::default();
                how.disable_wal(!wal);
                db.write_opt(batch, &how).unwrap();
            }
            Db::Transactions(db) => {
                let transaction = db.transaction_opt(&WriteOptions::default(), &TransactionOptions::default());
                transaction.set_name(name.as_bytes()).unwrap();
                for Change { family, key, value } in changes {
                    let family = db.cf_handle(FAMILIES[family]).unwrap();
                    match value {
                        Some(value) => transaction.put_cf(&family, key, value).unwrap(),
                        None => transaction.delete_cf(&family, key).unwrap(),
                    }
                }
                transaction.prepare().unwrap();
                transaction.commit().unwrap();
            }
        }
    }

    fn put(&self, entries: Vec<(String, Vec<u8>)>) {
        let changes = entries.into_iter().map(|(key, value)| Change { family: 0, key, value: Some(value) });
        self.commit(changes.collect(), "", true);
    }
}

/// Numbers that the writer has committed, for the process that copies.
pub struct ProgressFile(File);

impl ProgressFile {
    fn open(root: &Path) -> ProgressFile {
        let path = root.join("progress");
        ProgressFile(OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path).unwrap())
    }

    fn set(&self, at: usize, value: u64) {
        self.0.write_all_at(&value.to_le_bytes(), at as u64 * 8).unwrap();
    }

    fn get(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        let count = self.0.read_at(&mut bytes, at as u64 * 8).unwrap();
        if count == 8 { u64::from_le_bytes(bytes) } else { 0 }
    }

    /// What is certainly committed by now.
    pub fn committed(&self) -> Found {
        Found { steps: std::array::from_fn(|t| self.get(t)), ingested: self.get(INGESTED), families: self.get(PASSED) }
    }
}

/// The child: opens the database, checks it, and writes.
#[test]
#[ignore = "no test: another one runs it as a process of its own"]
fn child() {
    let text = std::env::var(CHILD).unwrap();
    let (name, pause) = text.split_once(';').unwrap();
    let (scenario, pause) = (Scenario::named(name), Duration::from_micros(pause.parse().unwrap()));
    let root = std::env::current_dir().unwrap();
    let path = root.join("0/rocksDb");
    // First the database is checked: it must have what was committed. So a writer that was killed also checks RocksDB.
    let found = if path.join("CURRENT").exists() {
        judge(&path, scenario.families(), scenario == TwoPhase).unwrap()
    } else {
        Found::default()
    };
    let db = Db::open(scenario, &path);
    let progress = ProgressFile::open(&root);
    progress.set(OPENED, progress.get(OPENED) + 1);
    let committed: [AtomicU64; THREADS] = found.steps.map(AtomicU64::new);
    let stop = AtomicBool::new(false);
    scope(|threads| {
        for t in 0..THREADS {
            let (db, committed, progress, stop) = (&db, &committed, &progress, &stop);
            threads.spawn(move || {
                while !stop.load(SeqCst) {
                    let s = committed[t].load(SeqCst) + 1;
                    let seen = std::array::from_fn(|other| committed[other].load(SeqCst));
                    db.commit(step(t, s, seen, scenario.families()), &format!("{t}-{s}"), scenario != Atomic);
                    committed[t].store(s, SeqCst);
                    if scenario != Atomic {
                        progress.set(t, s);
                    }
                    sleep(pause);
                }
            });
        }
        if scenario == Atomic {
            threads.spawn(|| flush_all(&db, &committed, &progress, &stop));
        }
        if matches!(scenario, Ingest) {
            threads.spawn(|| ingest(&db, found.ingested, &root, &progress, &stop));
        }
        if scenario == ComeAndGo {
            threads.spawn(|| come_and_go(&db, found.families, &progress, &stop));
        }
        // Ends with the parent, however it ends.
        let _ = std::io::stdin().read(&mut [0]);
        stop.store(true, SeqCst);
    });
}

/// Without a WAL, everything that was written before a flush began is durable when the flush is done.
fn flush_all(db: &Db, committed: &[AtomicU64; THREADS], progress: &ProgressFile, stop: &AtomicBool) {
    let families: Vec<_> = FAMILIES.iter().map(|name| db.plain().cf_handle(name).unwrap()).collect();
    let families: Vec<_> = families.iter().collect();
    while !stop.load(SeqCst) {
        let before = std::array::from_fn::<u64, THREADS, _>(|t| committed[t].load(SeqCst));
        db.plain().flush_cfs_opt(&families, &FlushOptions::default()).unwrap();
        before.iter().enumerate().for_each(|(t, s)| progress.set(t, *s));
        sleep(Duration::from_millis(7));
    }
}

fn ingest(db: &Db, done: u64, root: &Path, progress: &ProgressFile, stop: &AtomicBool) {
    let options = Ingest.options();
    for k in done + 1.. {
        if stop.load(SeqCst) {
            return;
        }
        let cut = k.saturating_sub(30);
        if cut > 0 {
            let mut changes: Vec<_> =
                (0..GROUP).map(|n| Change { family: 0, key: member('i', cut, n).0, value: None }).collect();
            let (key, value) = mark("cut", cut);
            changes.push(Change { family: 0, key, value: Some(value) });
            db.commit(changes, "", true);
        }
        db.put(vec![mark("intent", k)]);
        let file = root.join(format!("ingest-{k}.sst"));
        let mut writer = SstFileWriter::create(&options);
        writer.open(&file).unwrap();
        for n in 0..GROUP {
            let (key, value) = member('i', k, n);
            writer.put(key, value).unwrap();
        }
        if k % 2 == 0 {
            // Its keys are in the range of the memtable, so RocksDB flushes first.
            writer.put("m:zz-between", "").unwrap();
        }
        writer.finish().unwrap();
        let mut how = IngestExternalFileOptions::default();
        how.set_move_files(k % 3 == 0);
        db.plain().ingest_external_file_opts(&how, vec![&file]).unwrap();
        db.put(vec![mark("done", k)]);
        progress.set(INGESTED, k);
        let _ = fs::remove_file(&file);
    }
}

fn come_and_go(db: &Db, come: u64, progress: &ProgressFile, stop: &AtomicBool) {
    for k in come + 1.. {
        if stop.load(SeqCst) {
            return;
        }
        let name = format!("passing-{k}");
        if db.plain().cf_handle(&name).is_none() {
            db.plain().create_cf(&name, &ComeAndGo.options()).unwrap();
        }
        let family = db.plain().cf_handle(&name).unwrap();
        let mut batch = WriteBatch::default();
        for n in 0..GROUP {
            let (key, value) = member('c', k, n);
            batch.put_cf(&family, key, value);
        }
        let (key, value) = mark("come", k);
        batch.put(key, value);
        db.plain().write(batch).unwrap();
        progress.set(PASSED, k);
        if let Some(old) = k.checked_sub(3).filter(|old| *old > 0) {
            db.put(vec![mark("go", old)]);
            db.plain().drop_cf(&format!("passing-{old}")).unwrap();
        }
        sleep(Duration::from_millis(1));
    }
}

/// A writer, its directory, and what it has committed.
pub struct Writer {
    pub root: PathBuf,
    pub scenario: Scenario,
    child: Child,
    progress: ProgressFile,
    pause_us: u64,
}

impl Writer {
    /// Starts it and waits until it writes.
    pub fn start(root: &Path, scenario: Scenario, pause_us: u64) -> Writer {
        fs::create_dir_all(root.join("0/rocksDb")).unwrap();
        let progress = ProgressFile::open(root);
        let child = spawn(root, scenario, pause_us);
        let mut writer = Writer { root: root.to_owned(), scenario, child, progress, pause_us };
        writer.wait_ready(0);
        writer
    }

    fn wait_ready(&mut self, opened: u64) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.progress.get(OPENED) <= opened {
            assert!(Instant::now() < deadline && self.child.try_wait().unwrap().is_none(), "the writer does not start");
            sleep(Duration::from_millis(1));
        }
    }

    pub fn database(&self) -> PathBuf {
        self.root.join("0/rocksDb")
    }

    pub fn committed(&self) -> Found {
        self.progress.committed()
    }

    /// Reads what is committed while another thread has the writer.
    pub fn observer(&self) -> ProgressFile {
        ProgressFile::open(&self.root)
    }

    pub fn wait_steps(&self, steps: u64) {
        crate::fixture::wait_until("the writer writes", || self.committed().steps.iter().all(|s| *s >= steps));
    }

    /// SIGKILL; then another writer opens the database.
    pub fn kill_and_restart(&mut self) {
        let opened = self.progress.get(OPENED);
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = spawn(&self.root, self.scenario, self.pause_us);
        self.wait_ready(opened);
    }

    /// The same, without waiting for the next writer to be ready: copies may be made during its recovery.
    pub fn kill_and_restart_at_once(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = spawn(&self.root, self.scenario, self.pause_us);
    }

    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

fn spawn(root: &Path, scenario: Scenario, pause_us: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "live::writer::child", "--ignored", "--nocapture", "--test-threads=1"])
        .env(CHILD, format!("{scenario:?};{pause_us}"))
        .current_dir(root)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}
