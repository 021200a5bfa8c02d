//! The raw copy of SQLite: a copy is bad without any one of its steps; what it refuses; how it reads the WAL; that it only reads the
//! node's files. `sqlite_stress` has the tests under load.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chainweb_backup::rusqlite::{Connection, OpenFlags};
use chainweb_backup::{Control, Kind, Method, PactMethod, gate, testing};
use proptest::prelude::{ProptestConfig, any, prop_assert_eq, proptest};
use tempfile::TempDir;

use crate::fixture::{self, names, paths, scratch, tree, wait_until};
use crate::sqlite_pact::{SMALL, Shape, Writer, create, open, step, verify, verify_open};

/// A database without WAL checkpoints of its own, and its writer.
pub const MANUAL: Shape = Shape { autocheckpoint: 0, ..SMALL };

pub struct Stage {
    pub scratch: TempDir,
    pub database: PathBuf,
}

impl Stage {
    pub fn new() -> Stage {
        Stage::in_scratch(scratch())
    }

    pub fn in_scratch(scratch: TempDir) -> Stage {
        let database = scratch.path().join("node/pact-v1-chain-0.sqlite");
        fs::create_dir(database.parent().unwrap()).unwrap();
        Stage { scratch, database }
    }

    pub fn to(&self) -> PathBuf {
        self.scratch.path().join("copy.sqlite")
    }

    pub fn beside(&self, suffix: &str) -> PathBuf {
        PathBuf::from(format!("{}{suffix}", self.database.display()))
    }

    fn raw_copy(&self) -> Result<bool, (Kind, String)> {
        let copied = testing::embedded_copy(&self.database, &self.to(), PactMethod::Copy);
        copied.map(|part| part.method == Method::RawCopy).map_err(|e| (e.kind(), e.chain()))
    }

    pub fn copy(&self, node_is_up: bool) -> Result<Method, (Kind, String)> {
        self.copy_with(node_is_up, &Control::default())
    }

    pub fn copy_with(&self, node_is_up: bool, control: &Control) -> Result<Method, (Kind, String)> {
        let copied = testing::foreign_copy(&self.database, &self.to(), node_is_up, control);
        copied.map(|part| part.method).map_err(|e| (e.kind(), e.chain()))
    }

    /// The counter in the copy, which is removed.
    pub fn verdict(&self) -> Result<i64, String> {
        let verdict = verify(&self.to());
        fs::remove_file(self.to()).unwrap();
        verdict
    }

    pub fn at(&self, moment: &'static str, mut act: impl FnMut(u32) + Send + 'static) {
        let mut times = 0;
        gate::at_point(&self.database, move |name| {
            if name == moment {
                times += 1;
                act(times);
            }
        });
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        gate::forget_points(&self.database);
    }
}

pub fn shared(path: &Path, shape: &Shape) -> Arc<Mutex<Writer>> {
    Arc::new(Mutex::new(Writer::open(path, shape)))
}

/// Opening and closing a file drops every POSIX lock of the process on it.
fn open_and_close(path: &Path) {
    drop(File::open(path).unwrap());
}

/// Our locks on the `-shm` are lost while the pages are copied, and a WAL checkpoint writes pages of later commits.
#[test]
fn without_the_lock_check_copies_are_bad() {
    for (weak, counts) in [(false, (0, 0, 5)), (true, (0, 5, 0))] {
        let (mut good, mut bad, mut refused) = (0, 0, 0);
        for _ in 0..5 {
            let stage = Stage::new();
            let writer = shared(&stage.database, &MANUAL);
            writer.lock().unwrap().tell("write 20");
            // Otherwise the whole database is in the WAL, whose frames repair every page.
            writer.lock().unwrap().tell("sql PRAGMA wal_checkpoint(TRUNCATE)");
            writer.lock().unwrap().tell("write 2");
            if weak {
                gate::weaken(&stage.database, "raw-locks");
            }
            let (shm, other) = (stage.beside("-shm"), Arc::clone(&writer));
            stage.at("raw-database-window", move |_| {
                open_and_close(&shm);
                let mut writer = other.lock().unwrap();
                writer.tell("write 30");
                writer.tell("sql PRAGMA wal_checkpoint(PASSIVE)");
            });
            match stage.raw_copy() {
                Ok(_) if stage.verdict().is_ok() => good += 1,
                Ok(_) => bad += 1,
                Err((kind, reason)) => {
                    assert!(kind == Kind::Changed && reason.contains("read lock on the -shm was lost"), "{reason}");
                    refused += 1;
                }
            }
        }
        println!("locks on -shm dropped, check off: {weak}: {good} good, {bad} bad, {refused} refused");
        assert_eq!((good, bad, refused), counts);
    }
}

/// The lock on the database is lost, and an older SQLite closes: as if no other process used the database, it writes everything into
/// it and removes the WAL.
#[test]
fn without_the_lock_on_the_database_an_old_sqlite_spoils_copies() {
    let version = Command::new("sqlite3").arg("--version").output().map(|o| String::from_utf8(o.stdout).unwrap());
    let old = version.as_ref().is_ok_and(|v| {
        let mut numbers = v.split(['.', ' ']).map(|n| n.parse::<u32>().unwrap_or(0));
        (numbers.next(), numbers.next()) < (Some(3), Some(51))
    });
    if !old {
        return fixture::skip(&format!("no sqlite3 before 3.51 here: {version:?}"));
    }
    for weak in [false, true] {
        let stage = Stage::new();
        let mut writer = Writer::open(&stage.database, &MANUAL);
        writer.tell("write 20");
        writer.tell("sql PRAGMA wal_checkpoint(TRUNCATE)");
        writer.tell("write 2");
        writer.kill();
        if weak {
            gate::weaken(&stage.database, "raw-locks");
        }
        let database = stage.database.clone();
        stage.at("raw-database-window", move |_| {
            open_and_close(&database);
            let sql = "UPDATE account SET amount = amount + 1; UPDATE counter SET n = n + 1;";
            let status = Command::new("sqlite3").arg(&database).arg(sql).status().unwrap();
            assert!(status.success());
        });
        match stage.raw_copy() {
            Ok(_) => assert!(weak && stage.verdict().is_err(), "the copy is good"),
            Err((_, reason)) => assert!(!weak && reason.contains("was lost"), "{reason}"),
        }
    }
}

/// With READ0 we see the database alone, and the WAL may be started anew. In a node that embeds us, a lock of its own hides that at
/// first, and the WAL is copied. Both checks below are needed.
#[test]
fn a_wal_that_is_started_anew_while_it_is_copied() {
    for weak in [&[][..], &["raw-salts"], &["raw-salts", "raw-fold"]] {
        let stage = Stage::new();
        let shape = Shape { rows: 1500, ..MANUAL };
        let writer = shared(&stage.database, &shape);
        let before: i64 = writer.lock().unwrap().tell("write 26").parse().unwrap();
        let node = Connection::open_with_flags(&stage.database, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        node.execute_batch("BEGIN; SELECT n FROM counter").unwrap();
        // Then everything is in the database, and we get READ0.
        writer.lock().unwrap().tell("sql PRAGMA wal_checkpoint(PASSIVE)");
        let size = fs::metadata(stage.beside("-wal")).unwrap().len();
        assert!(size > 3 * 8 * 1024 * 1024, "the WAL of {size} bytes is too small for this test");
        for name in weak {
            gate::weaken(if *name == "raw-fold" { stage.to() } else { stage.database.clone() }.as_path(), name);
        }
        let other = Arc::clone(&writer);
        stage.at("raw-wal-window", move |time| {
            // By then 8 MiB of it are copied.
            if time == 17 {
                node.execute_batch("COMMIT").unwrap();
                other.lock().unwrap().tell("write 32");
            }
        });
        let attempts = Arc::new(Mutex::new(0));
        let count = Arc::clone(&attempts);
        stage.at("raw-held", move |time| *count.lock().unwrap() = time);
        let result = stage.raw_copy();
        gate::forget_points(&stage.to());
        let (verdict, attempts) = (stage.verdict(), *attempts.lock().unwrap());
        println!("started anew, weakened {weak:?}: {result:?}, {verdict:?}, attempts {attempts}");
        match weak.len() {
            0 => assert_eq!((result, verdict, attempts), (Ok(true), Ok(before), 1)),
            // The fold does not find the right number of frames.
            1 => assert_eq!((result, verdict, attempts), (Ok(true), Ok(before + 32), 2)),
            _ => assert!(result.is_ok() && verdict != Ok(before), "the copy is good"),
        }
    }
}

/// A WAL checkpoint truncates the WAL while we see the database alone.
#[test]
fn a_wal_that_is_cut_off_while_the_database_is_copied() {
    let stage = Stage::new();
    let writer = shared(&stage.database, &MANUAL);
    let before = writer.lock().unwrap().tell("write 20").parse().unwrap();
    writer.lock().unwrap().tell("sql PRAGMA wal_checkpoint(PASSIVE)");
    let other = Arc::clone(&writer);
    stage.at("raw-database-copied", move |time| {
        assert_eq!(time, 1, "an attempt was lost");
        assert_eq!(other.lock().unwrap().tell("sql PRAGMA wal_checkpoint(TRUNCATE)"), "Integer(0)");
    });
    assert_eq!((stage.raw_copy(), stage.verdict()), (Ok(true), Ok(before)));
    assert_eq!(fs::metadata(stage.beside("-wal")).unwrap().len(), 0);
}

/// A writer is killed after its commit frame and before the WAL index: the commit is in no index. The next writer overwrites it, and
/// we do not copy it.
#[test]
fn a_commit_that_nobody_knows_of() {
    let stage = Stage::new();
    let mut writer = Writer::open(&stage.database, &MANUAL);
    writer.tell("write 20");
    // A killed writer leaves the WAL with its last commit, and the -shm of the commit before.
    let shm = fs::read(stage.beside("-shm")).unwrap();
    writer.tell("sql UPDATE account SET pad = zeroblob(999) WHERE id < 300");
    File::options().write(true).open(stage.beside("-shm")).unwrap().write_all_at(&shm, 0).unwrap();
    let _reader = {
        let reader = Writer::open(&stage.database, &MANUAL);
        writer.kill();
        reader
    };
    let next = shared(&stage.database, &MANUAL);
    let other = Arc::clone(&next);
    stage.at("raw-database-copied", move |time| {
        if time == 1 {
            other.lock().unwrap().tell("write 2");
        }
    });
    let attempts = Arc::new(Mutex::new(0));
    let count = Arc::clone(&attempts);
    stage.at("raw-held", move |time| *count.lock().unwrap() = time);
    assert_eq!((stage.raw_copy(), stage.verdict()), (Ok(true), Ok(20)));
    assert_eq!(*attempts.lock().unwrap(), 1);
}

/// Copies database and WAL by hand under a read transaction, and applies the frames from `first` to `last`.
fn apply_by_hand(pages: &[u8], wal: &[u8], first: u64, last: u64, to: &Path) {
    let number = |at: usize| u32::from_be_bytes(wal[at..at + 4].try_into().unwrap());
    let page_bytes = number(8) as usize;
    fs::write(to, pages).unwrap();
    let file = File::options().write(true).open(to).unwrap();
    for frame in first..=last {
        let at = 32 + usize::try_from(frame - 1).unwrap() * (24 + page_bytes);
        let offset = u64::from(number(at) - 1) * page_bytes as u64;
        file.write_all_at(&wal[at + 24..at + 24 + page_bytes], offset).unwrap();
        if number(at + 4) != 0 {
            file.set_len(u64::from(number(at + 4)) * page_bytes as u64).unwrap();
        }
    }
}

/// A WAL checkpoint skips a page if a later frame has it, and counts the frame as done.
#[test]
fn frames_from_the_backfill_mark_are_not_enough() {
    let (mut good, mut bad) = (0, 0);
    for _ in 0..5 {
        let stage = Stage::new();
        let mut writer = Writer::open(&stage.database, &MANUAL);
        writer.tell("write 5");
        let reader = Connection::open_with_flags(&stage.database, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        reader.execute_batch("BEGIN").unwrap();
        let held: i64 = reader.query_row("SELECT n FROM counter", [], |row| row.get(0)).unwrap();
        let frames = testing::wal_frames(&fs::read(stage.beside("-wal")).unwrap()).unwrap();
        writer.tell("write 20");
        writer.tell("sql PRAGMA wal_checkpoint(PASSIVE)");
        // Closing these files drops the reader's locks, so they stay open to the end.
        let (pages, index) = (File::open(&stage.database).unwrap(), File::open(stage.beside("-shm")).unwrap());
        let mut content = vec![0; usize::try_from(pages.metadata().unwrap().len()).unwrap()];
        pages.read_exact_at(&mut content, 0).unwrap();
        let mut mark = [0; 4];
        index.read_exact_at(&mut mark, 96).unwrap();
        let mark = u64::from(u32::from_ne_bytes(mark));
        assert_eq!(mark, frames, "the WAL checkpoint went to our read mark");
        let wal = fs::read(stage.beside("-wal")).unwrap();
        apply_by_hand(&content, &wal, 1, frames, &stage.to());
        assert_eq!(stage.verdict(), Ok(held), "all frames are enough");
        apply_by_hand(&content, &wal, mark + 1, frames, &stage.to());
        if stage.verdict().is_ok() { good += 1 } else { bad += 1 }
    }
    println!("frames from the backfill mark: {good} good, {bad} bad");
    assert_eq!((good, bad), (0, 5));
}

/// Copying as operators do today.
#[test]
fn copying_the_files_gives_bad_copies() {
    let (mut good, mut bad) = (0, 0);
    let stage = Stage::new();
    let mut writer = Writer::open(&stage.database, &SMALL);
    writer.run(&stage.scratch.path().join("ack"));
    while bad < 3 && good < 1000 {
        let before = crate::sqlite_pact::acknowledged(&stage.scratch.path().join("ack"));
        fs::copy(&stage.database, stage.to()).unwrap();
        fs::copy(stage.beside("-wal"), format!("{}-wal", stage.to().display())).unwrap();
        let verdict = Connection::open(stage.to()).map_err(|e| e.to_string()).and_then(|c| verify_open(&c));
        if verdict.is_ok_and(|counter| counter >= before) {
            good += 1
        } else {
            bad += 1
        }
        for suffix in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(format!("{}{suffix}", stage.to().display()));
        }
    }
    println!("cp of database and WAL: {good} good, {bad} bad");
    assert_eq!(bad, 3);
}

#[test]
fn a_rollback_journal_is_copied_online() {
    let stage = Stage::new();
    let mut connection = Connection::open(&stage.database).unwrap();
    connection.execute_batch("PRAGMA page_size=1024").unwrap();
    create(&mut connection).unwrap();
    (0..20).for_each(|_| _ = step(&mut connection, 6).unwrap());
    connection.close().unwrap();
    let before = tree(stage.database.parent().unwrap());
    for node_is_up in [true, false] {
        assert_eq!((stage.copy(node_is_up), stage.verdict()), (Ok(Method::OnlineBackup), Ok(20)));
    }
    assert_eq!(tree(stage.database.parent().unwrap()), before);
}

#[test]
fn a_hot_journal_is_refused() {
    let stage = Stage::new();
    let mut connection = Connection::open(&stage.database).unwrap();
    connection.execute_batch("PRAGMA page_size=1024; PRAGMA cache_size=2").unwrap();
    create(&mut connection).unwrap();
    connection.execute_batch("BEGIN; UPDATE account SET amount = amount + 1").unwrap();
    // As after a kill at this moment: some pages are written, and there is the journal.
    let killed = Stage::new();
    fs::copy(&stage.database, &killed.database).unwrap();
    fs::copy(stage.beside("-journal"), killed.beside("-journal")).unwrap();
    let before = tree(killed.database.parent().unwrap());
    let (kind, reason) = killed.copy(false).unwrap_err();
    assert!(kind == Kind::Refused && reason.contains("hot journal"), "{kind:?} {reason}");
    assert_eq!(tree(killed.database.parent().unwrap()), before);
    assert!(!killed.to().exists());
}

#[test]
fn a_wal_or_journal_that_sqlite_cannot_have_made_is_refused() {
    let stage = Stage::new();
    drop(open(&stage.database, &MANUAL).unwrap());
    assert!(stage.copy(false).is_ok());
    let makers: [fn(&Path); 3] = [
        |path| symlink("/nowhere", path).unwrap(),
        |path| fs::create_dir(path).unwrap(),
        |path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success()),
    ];
    for suffix in ["-wal", "-shm", "-journal"] {
        for make in makers {
            let _ = fs::remove_file(stage.to());
            let beside = stage.beside(suffix);
            make(&beside);
            let copies = [stage.copy(false).map(|_| ()), stage.raw_copy().map(|_| ())];
            for copied in copies {
                let (kind, message) = copied.unwrap_err();
                assert_eq!(kind, Kind::Refused, "{suffix}: {message}");
                assert!(message.contains(&format!("{} is not a regular file", beside.display())), "{message}");
            }
            if fs::remove_file(&beside).is_err() {
                fs::remove_dir(&beside).unwrap();
            }
        }
    }
    assert!(stage.copy(false).is_ok());
}

#[test]
fn what_is_no_database_is_refused() {
    let stage = Stage::new();
    let refused = |expected: Kind, words: &str| {
        let before = tree(stage.database.parent().unwrap());
        let (kind, reason) = stage.copy(false).unwrap_err();
        assert!(kind == expected && reason.contains(words), "{kind:?} {reason}");
        assert_eq!(tree(stage.database.parent().unwrap()), before);
        assert!(!stage.to().exists());
    };
    refused(Kind::Io, "cannot look at");
    fs::create_dir(&stage.database).unwrap();
    refused(Kind::Refused, "not a regular file");
    fs::remove_dir(&stage.database).unwrap();
    fs::write(stage.beside("-real"), "").unwrap();
    symlink(stage.beside("-real"), &stage.database).unwrap();
    refused(Kind::Refused, "not a regular file");
    fs::remove_file(&stage.database).unwrap();
    fs::write(&stage.database, "").unwrap();
    refused(Kind::Refused, "it is empty");
    fs::write(&stage.database, "no database ".repeat(1000)).unwrap();
    refused(Kind::Database, "file is not a database");
}

/// A node that locks the database exclusively: the job ends with a reason after a limited time.
#[test]
fn an_exclusive_lock_ends_the_copy() {
    for mode in ["WAL", "DELETE"] {
        let stage = Stage::new();
        let mut writer = Writer::open(&stage.database, &SMALL);
        writer.tell("close");
        writer.open_database(&stage.database, &SMALL);
        writer.tell(&format!("sql PRAGMA journal_mode={mode}"));
        writer.tell("sql PRAGMA locking_mode=EXCLUSIVE");
        writer.tell("write 3");
        let started = Instant::now();
        let (kind, reason) = stage.copy(false).unwrap_err();
        assert!(kind == Kind::Refused && reason.contains("only while it is stopped"), "{kind:?} {reason}");
        assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
        assert!(!stage.to().exists());
        writer.tell("write 3");
    }
}

/// The WAL grows beyond the bound: the attempt is given up, the next ones too, and then the job ends.
#[test]
fn a_wal_over_its_bound() {
    for times_too_large in [1, 3] {
        let stage = Stage::new();
        let writer = shared(&stage.database, &Shape { rows: 600, ..MANUAL });
        gate::weaken(&stage.database, "raw-small-wal");
        gate::weaken(&stage.database, "raw-short-wait");
        let (attempts, other) = (Arc::new(Mutex::new(0)), Arc::clone(&writer));
        let attempt = Arc::clone(&attempts);
        stage.at("raw-database-window", move |time| {
            *attempt.lock().unwrap() = time;
            if time <= times_too_large {
                other.lock().unwrap().tell("write 10");
            }
        });
        let held = Arc::new(Mutex::new(0));
        let count = Arc::clone(&held);
        stage.at("raw-held", move |time| *count.lock().unwrap() = time);
        if times_too_large == 1 {
            // The node makes a WAL checkpoint in our pause.
            let (other, attempts) = (Arc::clone(&writer), Arc::clone(&attempts));
            std::thread::spawn(move || {
                wait_until("the first attempt", || *attempts.lock().unwrap() > 0);
                std::thread::sleep(Duration::from_millis(250));
                other.lock().unwrap().tell("sql PRAGMA wal_checkpoint(TRUNCATE)");
            });
        }
        let result = stage.raw_copy();
        if times_too_large == 1 {
            assert_eq!((result, *attempts.lock().unwrap(), stage.verdict()), (Ok(true), 2, Ok(10)));
        } else {
            let (kind, reason) = result.unwrap_err();
            assert!(kind == Kind::Changed && reason.contains("grew by more than 512 MiB"), "{kind:?} {reason}");
            // The growth in the first attempt counts in the others, which end before they copy anything.
            assert_eq!((*held.lock().unwrap(), *attempts.lock().unwrap()), (3, 1));
            assert_eq!(names(stage.scratch.path()), ["node"]);
            // We no longer hold the WAL.
            assert_eq!(writer.lock().unwrap().tell("sql PRAGMA wal_checkpoint(TRUNCATE)"), "Integer(0)");
        }
    }
}

/// A stopped node is started while its database is copied: that copy ends at once. The next attempt uses another way, whether the node
/// was believed to run or not.
#[test]
fn a_node_that_starts_does_not_share_the_disk_with_a_copy_that_is_lost() {
    for node_is_up in [false, true] {
        let stage = Stage::new();
        drop(open(&stage.database, &SMALL).unwrap());
        let windows = Arc::new(Mutex::new(0));
        let (seen, path) = (Arc::clone(&windows), stage.database.clone());
        let nodes = Arc::new(Mutex::new(Vec::new()));
        let started = Arc::clone(&nodes);
        stage.at("file-window", move |time| {
            *seen.lock().unwrap() = time;
            if time == 2 {
                let mut writer = Writer::open(&path, &SMALL);
                writer.tell("write 1");
                started.lock().unwrap().push(writer);
            }
        });
        let result = stage.copy(node_is_up);
        assert_eq!(*windows.lock().unwrap(), 2, "windows, of a database of {:?}", stage.database.metadata());
        assert_eq!((result, stage.verdict()), (Ok(Method::RawCopy), Ok(1)));
    }
}

/// As a user without write permission: a correct copy, or a refusal that names the remedy. Nothing changes.
#[test]
fn as_another_user() {
    if !rustix::process::geteuid().is_root() {
        return fixture::skip("needs root, to become another user");
    }
    let stage = Stage::new();
    fs::set_permissions(stage.scratch.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let program = stage.scratch.path().join("suite");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
    let mut nobody = Writer::start_with(command);
    let mut copy = |node: &str| {
        let to = stage.scratch.path().join(format!("copy-{}", fastrand::u64(..)));
        nobody.tell(&format!("copy {} {} {node}", stage.database.display(), to.display()))
    };

    let mut writer = Writer::open(&stage.database, &MANUAL);
    writer.tell("write 3");
    let before = tree_without_shm(&stage);
    let live = copy("up");
    assert_eq!(tree_without_shm(&stage), before);
    writer.kill();
    let crashed = copy("down");
    let crashed_but_up = copy("up");
    assert_eq!(tree_without_shm(&stage), before);
    fs::set_permissions(&stage.database, fs::Permissions::from_mode(0o600)).unwrap();
    let unreadable = copy("down");
    println!("another user: live: {live}; crashed: {crashed}; up: {crashed_but_up}; unreadable: {unreadable}");
    for answer in [&live, &crashed] {
        assert!(answer == "RawCopy Ok(3)" || answer.contains("run as the node's user"), "{answer}");
    }
    assert!(crashed_but_up.contains("refused"), "{crashed_but_up}");
    assert!(unreadable.contains("run as the node's user"), "{unreadable}");
}

fn tree_without_shm(stage: &Stage) -> fixture::Tree {
    let mut tree = tree(stage.database.parent().unwrap());
    tree.remove(&stage.beside("-shm"));
    tree
}

/// A node that was killed: its WAL is read, and only its `-shm` changes.
#[test]
fn a_crashed_node() {
    let stage = Stage::new();
    let mut writer = Writer::open(&stage.database, &MANUAL);
    writer.tell("write 7");
    writer.kill();
    let before = tree_without_shm(&stage);
    for _ in 0..2 {
        assert_eq!((stage.copy(false), stage.verdict()), (Ok(Method::RawCopy), Ok(7)));
        assert_eq!(tree_without_shm(&stage), before);
    }
    // After a clean stop there is no -wal, and not even a -shm appears.
    drop(open(&stage.database, &MANUAL).unwrap());
    let before = tree(stage.database.parent().unwrap());
    assert_eq!((stage.copy(false), stage.verdict()), (Ok(Method::Copied), Ok(7)));
    assert_eq!(tree(stage.database.parent().unwrap()), before);
    assert_eq!(before.len(), 2);
}

/// A database with its WAL, as its writer left them.
fn with_wal(page_bytes: u32, transactions: u32, rows: i64) -> (Vec<u8>, Vec<u8>) {
    let stage = Stage::new();
    let shape = Shape { page_bytes, rows, ..MANUAL };
    let mut writer = Writer::open(&stage.database, &shape);
    writer.tell("sql PRAGMA wal_checkpoint(TRUNCATE)");
    writer.tell(&format!("write {transactions}"));
    (fs::read(&stage.database).unwrap(), fs::read(stage.beside("-wal")).unwrap())
}

/// The counter that SQLite itself recovers from a WAL.
fn recovered(directory: &Path, database: &[u8], wal: &[u8]) -> i64 {
    let path = directory.join("recovered.sqlite");
    fs::write(&path, database).unwrap();
    fs::write(directory.join("recovered.sqlite-wal"), wal).unwrap();
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch("PRAGMA locking_mode=EXCLUSIVE; PRAGMA synchronous=OFF").unwrap();
    connection.query_row("PRAGMA wal_checkpoint(FULL)", [], |row| row.get(1)).unwrap()
}

/// A WAL with the other byte order in its checksums, as other machines write it.
fn turned(wal: &[u8]) -> Vec<u8> {
    let mut turned = wal.to_vec();
    turned[3] ^= 1;
    let big_endian = turned[3] & 1 == 1;
    let sum = |[mut a, mut b]: [u32; 2], bytes: &[u8]| {
        for pair in bytes.chunks_exact(8) {
            let word = |w: &[u8]| {
                let w = w.try_into().unwrap();
                if big_endian { u32::from_be_bytes(w) } else { u32::from_le_bytes(w) }
            };
            a = a.wrapping_add(word(&pair[..4])).wrapping_add(b);
            b = b.wrapping_add(word(&pair[4..])).wrapping_add(a);
        }
        [a, b]
    };
    let put = |bytes: &mut [u8], sums: [u32; 2]| {
        bytes[..4].copy_from_slice(&sums[0].to_be_bytes());
        bytes[4..8].copy_from_slice(&sums[1].to_be_bytes());
    };
    let mut chain = sum([0, 0], &turned[..24]);
    put(&mut turned[24..], chain);
    let page_bytes = u32::from_be_bytes(wal[8..12].try_into().unwrap()) as usize;
    for frame in turned[32..].chunks_exact_mut(24 + page_bytes) {
        chain = sum(sum(chain, &frame[..8]), &frame[24..]);
        put(&mut frame[16..], chain);
    }
    turned
}

#[test]
fn a_wal_that_is_cut_anywhere() {
    let scratch = scratch();
    for (page_bytes, transactions) in [(1024, 4), (65536, 2)] {
        let (database, wal) = with_wal(page_bytes, transactions, 2);
        let frame_bytes = 24 + page_bytes as usize;
        let is_commit = |frame: usize| wal[32 + frame * frame_bytes + 4..][..4] != [0; 4];
        let commits: Vec<usize> = (0..(wal.len() - 32) / frame_bytes).filter(|f| is_commit(*f)).collect();
        assert_eq!(commits.len(), transactions as usize);
        let every = if page_bytes == 1024 { 1 } else { 4099 };
        for (cut, at) in (0..=wal.len()).step_by(every).enumerate() {
            let whole = commits.iter().rev().find(|f| 32 + (**f + 1) * frame_bytes <= at).map_or(0, |f| f + 1);
            let expected = (at >= 32).then_some(whole as u64);
            assert_eq!(testing::wal_frames(&wal[..at]), expected, "cut at {at}");
            let boundary = at >= 32 && (at - 32) % frame_bytes < 2;
            if boundary || cut % 997 == 0 {
                let frames = i64::try_from(expected.unwrap_or(0)).unwrap();
                assert_eq!(recovered(scratch.path(), &database, &wal[..at]), frames, "cut at {at}");
            }
        }
        let turned = turned(&wal);
        assert_eq!(testing::wal_frames(&turned), testing::wal_frames(&wal));
        assert_eq!(recovered(scratch.path(), &database, &turned), i64::try_from(commits.last().unwrap() + 1).unwrap());
    }
}

#[test]
fn a_wal_that_is_damaged_anywhere() {
    let (database, wal) = with_wal(1024, 6, 2);
    let scratch = scratch();
    let config = ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(at in 0..wal.len(), flip in 1..=u8::MAX, turn: bool)| {
        let mut damaged = if turn { turned(&wal) } else { wal.clone() };
        damaged[at] ^= flip;
        // SQLite refuses to open a WAL of another version, where its checksum is right; here it is not.
        let frames = testing::wal_frames(&damaged).unwrap_or(0);
        prop_assert_eq!(recovered(scratch.path(), &database, &damaged), i64::try_from(frames).unwrap(), "at {}", at);
    });
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_are_no_wal(bytes in proptest::collection::vec(any::<u8>(), 0..4000), magic: bool) {
        let mut bytes = bytes;
        if magic && bytes.len() > 12 {
            bytes[..12].copy_from_slice(&[0x37, 0x7f, 6, 0x82, 0, 0x2d, 0xe2, 0x18, 0, 0, 2, 0]);
        }
        testing::wal_frames(&bytes);
    }
}

/// The WAL index has the size of the WAL, for every page size, also if only one of its headers is valid.
#[test]
fn the_wal_index_of_each_page_size() {
    for page_bytes in [512, 1024, 8192, 32768, 65536] {
        let stage = Stage::new();
        let mut writer = Writer::open(&stage.database, &Shape { page_bytes, rows: 2, ..MANUAL });
        writer.tell("sql PRAGMA wal_checkpoint(TRUNCATE)");
        writer.tell("write 3");
        let (wal, shm) = (fs::read(stage.beside("-wal")).unwrap(), File::open(stage.beside("-shm")).unwrap());
        let mut index = [0; 100];
        shm.read_exact_at(&mut index, 0).unwrap();
        let expected = Some((testing::wal_frames(&wal).unwrap(), wal.len() as u64 - 32));
        assert_eq!(testing::wal_index(&index), [expected, expected], "pages of {page_bytes}");
        for at in [12, 16, 47, 48 + 12, 48 + 16, 48 + 47] {
            let mut torn = index;
            torn[at] ^= 1;
            assert_eq!(testing::wal_index(&torn), [None, expected], "pages of {page_bytes}, byte {at}");
            torn[(at + 48) % 96] ^= 1;
            assert_eq!(testing::wal_index(&torn), [None, None], "pages of {page_bytes}, byte {at}");
        }
    }
}

/// Inode, owner, mode and extended attributes of a file, and the content of an SST; also size and time, if the node does not write.
fn fingerprint(path: &Path, resting: bool) -> String {
    let meta = path.symlink_metadata().unwrap();
    let mut attributes = [0; 4096];
    let length = rustix::fs::llistxattr(path, &mut attributes).unwrap();
    let mut text =
        format!("{} {}:{} {:o} {:?}", meta.ino(), meta.uid(), meta.gid(), meta.mode(), &attributes[..length]);
    if resting && !meta.is_dir() && !path.to_string_lossy().ends_with("-shm") {
        text += &format!(" {} {}.{}", meta.len(), meta.mtime(), meta.mtime_nsec());
    }
    if path.extension().is_some_and(|e| e == "sst") {
        let mut hasher = DefaultHasher::new();
        fs::read(path).unwrap().hash(&mut hasher);
        text += &format!(" content {:x}", hasher.finish());
    }
    text
}

fn fingerprints(directory: &Path, resting: bool) -> Vec<(PathBuf, String)> {
    let known = |path: PathBuf| path.symlink_metadata().is_ok().then(|| (path.clone(), fingerprint(&path, resting)));
    paths(directory).into_iter().filter_map(known).collect()
}

/// The program makes one backup beside a running node of another process. Except for the `-shm` and `-wal` of SQLite, no file of the
/// node is created, opened for writing, removed, renamed or changed; nothing is written into the `-wal`, and the inodes are the same.
#[test]
fn the_nodes_files_are_only_read() {
    let scratch = scratch();
    let programs = ["chainweb-backup", "demo-node"].map(|name| scratch.path().join(name));
    fs::copy(env!("CARGO_BIN_EXE_chainweb-backup"), &programs[0]).unwrap();
    fs::copy(env!("CARGO_BIN_EXE_demo-node"), &programs[1]).unwrap();
    let (directory, progress) = (scratch.path().join("node"), scratch.path().join("progress"));
    let log = File::create(scratch.path().join("node.log")).unwrap();
    let mut node = Command::new(&programs[1]);
    node.args([
        "run",
        "--chains",
        "3",
        "--blocks",
        "150",
        "--rate",
        "40",
        "--disable-backup-api",
        "--service-port",
        "0",
    ]);
    node.arg("--database-directory").arg(&directory).arg("--progress-file").arg(&progress);
    let node = node.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
    let node = Killed(node);
    let height = || fs::read_to_string(&progress).ok().and_then(|t| t.trim().parse::<u64>().ok()).unwrap_or(0);
    wait_until("the node to write", || height() > 20);

    let make = |program: &mut Command| {
        let output = program
            .args(["make", "--backup-pact", "--reserve-bytes", "0", "--database-directory"])
            .arg(&directory)
            .arg("--backup-directory")
            .arg(scratch.path().join("backups"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    let has_strace = Command::new("strace").arg("-V").output().is_ok_and(|o| o.status.success());
    if has_strace {
        let traces = scratch.path().join("traces");
        fs::create_dir(&traces).unwrap();
        let calls =
            "trace=%file,fchmod,fchown,ftruncate,fallocate,fsetxattr,fremovexattr,write,pwrite64,writev,pwritev2";
        let mut strace = Command::new("strace");
        strace.args(["-ff", "-y", "-qq", "-s", "0", "-e", calls, "-o"]).arg(traces.join("trace")).arg(&programs[0]);
        make(&mut strace);
        // One file for each thread, so that each call is on one line.
        let trace: String = names(&traces).iter().map(|n| fs::read_to_string(traces.join(n)).unwrap()).collect();
        check_trace(&trace, &directory.join("0"));
    } else {
        fixture::skip("no strace here");
    }

    wait_until("the node to stop writing", || height() >= 150);
    // The node has written its last block; RocksDB may be busy for longer.
    let before = std::cell::Cell::new(Vec::new());
    wait_until("the node's files to be unchanged", || {
        let last = before.replace(fingerprints(&directory.join("0"), true));
        std::thread::sleep(Duration::from_millis(300));
        last == fingerprints(&directory.join("0"), true)
    });
    let before = before.into_inner();
    make(&mut Command::new(&programs[0]));
    assert_eq!(fingerprints(&directory.join("0"), true), before);
    drop(node);
}

struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

fn check_trace(trace: &str, below: &Path) {
    let below = format!("{}/", below.display());
    let (mut reads, mut exceptions) = (0, 0);
    for line in trace.lines().filter(|line| line.contains(&below)) {
        let call = line.split('(').next().unwrap();
        let written = match call {
            "open" | "openat" | "openat2" | "creat" => {
                ["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND"].iter().any(|flag| line.contains(flag))
                    || call == "creat"
            }
            // A link to a file of the node adds a name in a directory of ours.
            "link" | "linkat" => line.rsplit_once(", ").unwrap().0.rsplit_once(", ").unwrap().1.contains(&below),
            "stat" | "lstat" | "newfstatat" | "statx" | "statfs" | "access" | "faccessat" | "faccessat2"
            | "readlink" | "readlinkat" | "getcwd" | "chdir" | "execve" | "llistxattr" | "getxattr" | "lgetxattr"
            | "utime" => false,
            _ => true,
        };
        reads += 1;
        if written {
            // SQLite opens the WAL for writing, and as root sets the owner that the WAL already has. Nothing else is permitted.
            let opened = line.contains("-wal") && matches!(call, "openat" | "fchown");
            assert!(line.contains("-shm") || opened, "{line}");
            exceptions += 1;
        }
    }
    println!("{reads} calls name the node's files, {exceptions} of them may write: SQLite's own files");
    assert!(reads > 10, "the trace shows nothing");
}
