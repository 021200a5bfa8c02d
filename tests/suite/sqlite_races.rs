//! Events before and during a copy of SQLite's files: damaged frames, nodes that start and stop, full disks, removed databases; and that
//! the node is not disturbed.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use chainweb_backup::rusqlite::Connection;
use chainweb_backup::{Control, Kind, Method, Service, Sources, Stop, gate, testing};

use crate::fixture::{self, Mount, PACT, make_done, make_failed, names, scratch, scratch_on_disk, tree};
use crate::sqlite::{MANUAL, Stage, shared};
use crate::sqlite_pact::{Shape, Writer, create, open, step};

fn frames_of(stage: &Stage) -> u64 {
    testing::wal_frames(&fs::read(stage.beside("-wal")).unwrap()).unwrap()
}

fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
}

/// The offset at which the page of a frame begins, with pages of 1 KiB.
fn page_of(frame: u64) -> u64 {
    32 + (frame - 1) * (24 + 1024) + 24
}

/// A bit flips in a WAL. After a WAL checkpoint the node does not read such a frame again; the chain of checksums ends there, and the
/// frames before it are older than the database.
#[test]
fn a_rotten_frame_is_damage_or_not_needed() {
    // A frame that is in the database already, one that is not, the last one, the header.
    let one = |place: usize| {
        let stage = Stage::new();
        let mut writer = Writer::open(&stage.database, &MANUAL);
        writer.tell("sql PRAGMA wal_checkpoint(TRUNCATE)");
        writer.tell("write 30");
        let moved = frames_of(&stage);
        // A reader, with which the WAL cannot be started anew: the next frames follow these.
        let mut reader = Writer::open(&stage.database, &MANUAL);
        reader.tell("sql BEGIN");
        reader.tell("sql SELECT n FROM counter");
        writer.tell("sql PRAGMA wal_checkpoint(PASSIVE)");
        // Everything is in the database, and the WAL is not needed.
        let wal = stage.beside("-wal");
        flip(&wal, page_of(moved / 2) + 500);
        assert_eq!((stage.copy(true), stage.verdict()), (Ok(Method::RawCopy), Ok(30)), "with READ0");
        flip(&wal, page_of(moved / 2) + 500);
        writer.tell("write 3");
        reader.tell("sql COMMIT");
        let frames = frames_of(&stage);
        let (at, words) = match place {
            0 => (page_of(moved / 2) + 500, format!("frame {} of {frames}", moved / 2)),
            1 => (page_of(frames - 1) + 10, format!("frame {} of {frames}", frames - 1)),
            2 => (page_of(frames) + 1023, format!("frame {frames} of {frames}")),
            _ => (9, "its header".to_owned()),
        };
        assert!(frames > moved, "the WAL was started anew: {moved} frames, then {frames}");
        flip(&wal, at);
        let result = stage.copy(true);
        match &result {
            Err((Kind::Damaged, reason)) if reason.contains(&words) && reason.contains("-wal is damaged in") => {}
            other => {
                return Some(format!("place {place}: {other:?}, {:?}", stage.to().exists().then(|| stage.verdict())));
            }
        }
        assert!(!stage.to().exists());
        flip(&wal, at);
        assert_eq!((stage.copy(true), stage.verdict()), (Ok(Method::RawCopy), Ok(33)), "after the bit is back");
        // The remedy of the message helps: the frame is not needed any more.
        flip(&wal, at);
        writer.tell("sql PRAGMA wal_checkpoint(TRUNCATE)");
        let healed = stage.copy(true);
        if place == 0 || place == 3 {
            assert_eq!((healed, stage.verdict()), (Ok(Method::RawCopy), Ok(33)));
        }
        None
    };
    let faults: Vec<String> = thread::scope(|scope| {
        let places: Vec<_> = (0..4).map(|place| scope.spawn(move || one(place))).collect();
        places.into_iter().filter_map(|place| place.join().unwrap()).collect()
    });
    assert!(faults.is_empty(), "{faults:#?}");
}

/// The scan of a large WAL ends when the job is cancelled, and the limit holds for it.
#[test]
fn a_large_wal_is_read_as_considerately_as_all_else() {
    let stage = Stage::new();
    let mut writer = Writer::open(&stage.database, &Shape { rows: 1500, ..MANUAL });
    writer.tell("write 26");
    let wal_bytes = fs::metadata(stage.beside("-wal")).unwrap().len();
    assert!(wal_bytes > 16 * 1024 * 1024, "the WAL of {wal_bytes} bytes is too small for this test");

    let limit = wal_bytes;
    let started = Instant::now();
    let before = stage.database.metadata().unwrap().len();
    assert_eq!(stage.copy_with(true, &testing::control(limit, 0)), Ok(Method::RawCopy));
    let least = Duration::from_secs_f64((2 * wal_bytes + before) as f64 / limit as f64 * 0.8);
    assert!(started.elapsed() >= least, "{wal_bytes} bytes twice in {:?}", started.elapsed());
    assert_eq!(stage.verdict(), Ok(26));

    let control = Arc::new(Control::default());
    let windows = Arc::new(AtomicU32::new(0));
    let (other, seen) = (Arc::clone(&control), Arc::clone(&windows));
    stage.at("raw-scan-window", move |time| {
        seen.store(time, SeqCst);
        if time == 3 {
            other.stop(Stop::Cancelled);
        }
    });
    let (kind, reason) = stage.copy_with(true, &control).unwrap_err();
    assert!(kind == Kind::Cancelled && windows.load(SeqCst) <= 4, "{reason}, after {windows:?} windows");
    assert!(!stage.to().exists());
}

/// A WAL that was not in the page cache is, for the most part, not there afterwards.
#[test]
fn a_large_wal_leaves_the_page_cache_again() {
    let stage = Stage::in_scratch(scratch_on_disk());
    let mut writer = Writer::open(&stage.database, &Shape { rows: 1500, ..MANUAL });
    writer.tell("write 26");
    let wal = File::open(stage.beside("-wal")).unwrap();
    wal.sync_all().unwrap();
    rustix::fs::fadvise(&wal, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let (before, bytes) = (testing::cached_bytes(&wal), wal.metadata().unwrap().len());
    if before.is_none_or(|before| before > bytes / 8) {
        crate::fixture::skip(&format!("the page cache does not tell, or keeps it: {before:?} of {bytes}"));
        return;
    }
    assert_eq!(stage.copy(true), Ok(Method::RawCopy));
    let after = testing::cached_bytes(&wal).unwrap();
    println!("page cache: {before:?} of {bytes} bytes before, {after} after");
    assert!(after < bytes / 3, "{after} of {bytes} bytes are in the page cache");
    assert_eq!(stage.verdict(), Ok(26));
}

/// All attempts together may let the WAL grow as much as one attempt may.
#[test]
fn attempts_do_not_add_up() {
    let stage = Stage::new();
    let writer = shared(&stage.database, &Shape { rows: 30, ..MANUAL });
    gate::weaken(&stage.database, "raw-small-wal");
    gate::weaken(&stage.database, "raw-short-wait");
    // All of it is in the WAL, which the attempt holds.
    writer.lock().unwrap().tell("write 3");
    let wal = stage.beside("-wal");
    let before = fs::metadata(&wal).unwrap().len();
    let other = Arc::clone(&writer);
    for point in ["raw-database-window", "raw-database-next-window", "raw-wal-window", "raw-scan-window"] {
        let other = Arc::clone(&other);
        stage.at(point, move |_| _ = other.lock().unwrap().tell("write 2"));
    }
    let (kind, reason) = stage.copy(true).unwrap_err();
    let grown = fs::metadata(&wal).unwrap().len() - before;
    println!("WAL: {before} bytes before, {grown} more after all attempts");
    assert!(kind == Kind::Changed && reason.contains("grew by more than 512 MiB"), "{kind:?} {reason}");
    assert!(grown > 1024 * 1024 && grown < 2 * 1024 * 1024, "{grown}");
}

/// The backup goes to another disk; the node's own disk fills with its WAL meanwhile.
#[test]
fn the_nodes_own_disk_is_watched_while_pact_is_copied() {
    let stage = Stage::new();
    let Some(_mount) = Mount::memory(40 * 1024 * 1024, stage.database.parent().unwrap()) else { return };
    let writer = shared(&stage.database, &Shape { rows: 600, ..MANUAL });
    writer.lock().unwrap().tell("sql PRAGMA wal_checkpoint(TRUNCATE)");
    writer.lock().unwrap().tell("write 1");
    let directory = stage.database.parent().unwrap().to_owned();
    let free = move || rustix::fs::statvfs(&directory).map(|s| s.f_bavail * s.f_frsize).unwrap();
    let before = free();
    gate::weaken(&stage.database, "raw-short-wait");
    // A twentieth of 40 MiB must be free.
    let fill = stage.database.with_file_name("fill");
    fs::write(&fill, vec![1; usize::try_from(before).unwrap() - 6 * 1024 * 1024]).unwrap();
    for point in ["raw-database-window", "raw-database-next-window"] {
        let (other, free) = (Arc::clone(&writer), free.clone());
        stage.at(point, move |_| {
            if free() > 2 * 1024 * 1024 {
                other.lock().unwrap().tell("write 2");
            }
        });
    }
    let (kind, reason) = stage.copy_with(true, &testing::control(1024 * 1024, 1024 * 1024 * 1024)).unwrap_err();
    println!("{reason}; {} bytes are free", free());
    assert!(kind == Kind::NoSpace && reason.contains("on the node's file system"), "{kind:?} {reason}");
    assert!(!stage.to().exists());
    // When there is room again, the next attempt succeeds.
    fs::remove_file(fill).unwrap();
    gate::forget_points(&stage.database);
    assert_eq!(stage.copy_with(true, &testing::control(0, 1024 * 1024 * 1024)), Ok(Method::RawCopy));
    assert!(stage.verdict().is_ok());
}

/// Every name beside a database, with inode and size.
fn beside(stage: &Stage) -> Vec<(String, u64, u64)> {
    let directory = stage.database.parent().unwrap();
    let look = |name: String| {
        let meta = directory.join(&name).metadata().unwrap();
        (name, meta.ino(), meta.len())
    };
    names(directory).into_iter().map(look).collect()
}

/// A node stops between two of our looks: SQLite would make a `-wal` and a `-shm` again.
#[test]
fn nothing_appears_beside_a_node_that_stops() {
    for (moment, method) in [("looking", Method::Copied), ("looked", Method::RawCopy), ("raw-held", Method::RawCopy)] {
        let stage = Stage::new();
        let writer = shared(&stage.database, &MANUAL);
        writer.lock().unwrap().tell("write 5");
        let before = beside(&stage);
        let other = Arc::clone(&writer);
        stage.at(moment, move |time| {
            if time == 1 {
                other.lock().unwrap().tell("close");
            }
        });
        assert_eq!(stage.copy(false), Ok(method), "stopped when {moment}");
        assert_eq!(stage.verdict(), Ok(5), "stopped when {moment}");
        let after = beside(&stage);
        println!("stopped when {moment}: {after:?}");
        // The node's own WAL may still be there, as after any stop while a process reads; but none that we made.
        let is_new = |(name, inode, _): &&(String, u64, u64)| !before.iter().any(|b| (&b.0, b.1) == (name, *inode));
        let new: Vec<_> = after.iter().filter(is_new).collect();
        assert!(new.is_empty(), "{new:?} beside a node that stopped when {moment}");
        assert!(moment != "looking" || after.len() == 1, "{after:?}");
    }
}

/// Another database gets the name just before SQLite opens it, or while it is copied.
#[test]
fn a_database_that_is_replaced() {
    for moment in ["looked", "raw-database-copied", "file-window"] {
        let stage = Stage::new();
        let other = Stage::new();
        let mut connection = open(&other.database, &MANUAL).unwrap();
        (0..7).for_each(|_| _ = step(&mut connection, 6).unwrap());
        drop(connection);
        let writer = shared(&stage.database, &MANUAL);
        writer.lock().unwrap().tell("write 3");
        if moment == "file-window" {
            writer.lock().unwrap().tell("close");
        }
        let (from, to) = (other.database.clone(), stage.database.clone());
        let parked = Arc::clone(&writer);
        stage.at(moment, move |time| {
            if time == 1 {
                // As an operator should do it: the node is stopped first, and its files are removed.
                parked.lock().unwrap().kill();
                for suffix in ["-wal", "-shm"] {
                    let _ = fs::remove_file(format!("{}{suffix}", to.display()));
                }
                fs::rename(&from, &to).unwrap();
            }
        });
        assert_eq!(stage.copy(false), Ok(Method::Copied), "replaced when {moment}");
        assert_eq!(stage.verdict(), Ok(7), "replaced when {moment}");
        assert_eq!(names(stage.database.parent().unwrap()), ["pact-v1-chain-0.sqlite"], "replaced when {moment}");
    }
}

/// The database is gone or cut off: the message says so, and blames neither permissions nor the process nor the backup.
#[test]
fn messages_name_what_is_wrong() {
    for moment in ["looked", "raw-database-copied"] {
        let stage = Stage::new();
        let mut writer = Writer::open(&stage.database, &MANUAL);
        writer.tell("write 3");
        let path = stage.database.clone();
        stage.at(moment, move |_| fs::remove_file(&path).unwrap());
        let (kind, reason) = stage.copy(true).unwrap_err();
        assert!(kind == Kind::Refused && reason.contains("chain-0.sqlite was removed while"), "{kind:?} {reason}");
    }
    for with_wal in [false, true] {
        let stage = Stage::new();
        let mut writer = Writer::open(&stage.database, &MANUAL);
        writer.tell("write 3");
        writer.tell("sql PRAGMA wal_checkpoint(TRUNCATE)");
        if with_wal {
            writer.tell("write 1");
            writer.kill();
        } else {
            writer.tell("close");
        }
        let file = File::options().write(true).open(&stage.database).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2 / 1024 * 1024).unwrap();
        let (kind, reason) = stage.copy(false).unwrap_err();
        println!("{reason}");
        let names_it = reason.contains("node's database") || reason.starts_with("cannot read");
        assert!(names_it && reason.contains("chain-0.sqlite"), "{kind:?} {reason}");
        assert!(
            !reason.contains("finished copy") || reason.contains("it is damaged or truncated"),
            "{kind:?} {reason}"
        );
    }
}

fn node_directory(root: &Path) -> PathBuf {
    let directory = root.join("db");
    fs::create_dir_all(directory.join("0/sqlite")).unwrap();
    directory
}

/// A node that was killed and starts again: it has its RocksDB open, but not yet its Pact database, of three transactions. And our
/// service of it.
fn starting_node(directory: &Path, database: &Path, backups: &Path) -> (Writer, Service) {
    let mut writer = Writer::open(database, &MANUAL);
    writer.tell("write 3");
    writer.kill();
    let mut node = Writer::start();
    node.tell(&format!("rocksdb {}", directory.join("0/rocksDb").display()));
    (node, Service::start(fixture::config(backups), Sources::directory(directory)).unwrap())
}

/// A node that starts after a kill has its RocksDB open, and a Pact database not yet, or not any more. Another program has opened and
/// closed the database meanwhile.
#[test]
fn a_database_that_a_running_node_does_not_have_open() {
    let scratch = scratch();
    let directory = node_directory(scratch.path());
    let database = directory.join("0/sqlite/pact-v1-chain-0.sqlite");
    let (_node, service) = starting_node(&directory, &database, &scratch.path().join("backups"));
    for _ in 0..2 {
        let id = make_done(&service, PACT);
        let copy = scratch.path().join(format!("backups/{id}/0/sqlite/pact-v1-chain-0.sqlite"));
        assert_eq!(crate::sqlite_pact::verify(&copy), Ok(3));
    }
}

/// The Pact databases are on another file system than RocksDB, and no lock of a process is seen there: the locks may not reach us, and
/// SQLite would empty the `-shm` of a node whose locks it does not see. We look again for some time: a node may be starting.
#[test]
fn a_node_whose_locks_may_not_reach_us() {
    let (scratch, elsewhere) = (scratch(), scratch_on_disk());
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    if device(scratch.path()) == device(elsewhere.path()) {
        crate::fixture::skip("there is one file system only");
        return;
    }
    let directory = node_directory(scratch.path());
    fs::remove_dir(directory.join("0/sqlite")).unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), directory.join("0/sqlite")).unwrap();
    let database = elsewhere.path().join("pact-v1-chain-0.sqlite");
    let (_node, service) = starting_node(&directory, &database, &scratch.path().join("backups"));
    let before = tree(elsewhere.path());
    let (_, reason) = make_failed(&service, PACT);
    assert!(reason.contains("locks may not reach this process") && reason.contains("the node's container"), "{reason}");
    assert_eq!(tree(elsewhere.path()), before, "the -shm of a node that is not seen was touched");

    let starting = {
        let database = database.clone();
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(700));
            Writer::open(&database, &MANUAL)
        })
    };
    make_done(&service, PACT);
    drop(starting.join().unwrap());
}

/// A database with a rollback journal: `rows` transactions were made.
fn with_journal(stage: &Stage, steps: u32) {
    let mut connection = Connection::open(&stage.database).unwrap();
    connection.execute_batch("PRAGMA page_size=1024").unwrap();
    create(&mut connection).unwrap();
    (0..steps).for_each(|_| _ = step(&mut connection, 6).unwrap());
}

/// Runs a program that writes with a rollback journal; returns the time of its slowest transaction.
fn journal_writer(stage: &Stage) -> Arc<Mutex<Writer>> {
    let writer = shared(&stage.database, &MANUAL);
    writer.lock().unwrap().tell("sql PRAGMA journal_mode=DELETE");
    writer
}

/// A database with a rollback journal is copied within the limit, and its writer does not wait for the whole copy.
#[test]
fn a_rollback_journal_gives_its_writer_the_lock() {
    let stage = Stage::new();
    with_journal(&stage, 5);
    let writer = journal_writer(&stage);
    let limit = stage.database.metadata().unwrap().len();
    let started = Instant::now();
    assert_eq!(stage.copy_with(true, &testing::control(limit, 0)), Ok(Method::OnlineBackup));
    assert!(started.elapsed() >= Duration::from_millis(600), "{:?}", started.elapsed());
    assert_eq!(stage.verdict(), Ok(5));

    // Two writes: the copy begins anew twice.
    let other = Arc::clone(&writer);
    stage.at("online-step", move |time| {
        if time == 3 || time == 6 {
            other.lock().unwrap().tell("write 1");
        }
    });
    stage.at("online-pinned-step", |_| panic!("pinned"));
    assert_eq!((stage.copy(true), stage.verdict()), (Ok(Method::OnlineBackup), Ok(7)));
}

/// A database that is written to all the time is pinned after some restarts, and then copied.
#[test]
fn a_rollback_journal_that_is_always_written_to() {
    let stage = Stage::new();
    with_journal(&stage, 5);
    let writer = journal_writer(&stage);
    let (free, pinned) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let (other, steps) = (Arc::clone(&writer), Arc::clone(&free));
    stage.at("online-step", move |time| {
        steps.store(time, SeqCst);
        other.lock().unwrap().tell("write 1");
    });
    let steps = Arc::clone(&pinned);
    stage.at("online-pinned-step", move |time| steps.store(time, SeqCst));
    let result = stage.copy(true);
    let (free, pinned) = (free.load(SeqCst), pinned.load(SeqCst));
    println!("{free} steps free, {pinned} pinned");
    assert_eq!((result, stage.verdict()), (Ok(Method::OnlineBackup), Ok(5 + i64::from(free))));
    assert!(free == 5 && pinned > 2, "{free} steps free, {pinned} pinned");
    // Its writer can write again.
    assert_eq!(writer.lock().unwrap().tell("write 1"), (5 + free + 1).to_string());
}
