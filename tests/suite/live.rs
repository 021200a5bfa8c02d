//! The live copy of a RocksDB to which another process writes: changes between its steps, what it refuses, what it does not touch.
//!
//! Here the database is open in this process, so that a test can let the node act at a given moment of the protocol. In `stress` the
//! writer is a process of its own.

mod history;
mod places;
mod recovery;
mod stress;
mod timing;
mod writer;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use chainweb_backup::rocksdb::{
    DBWithThreadMode, IngestExternalFileOptions, MultiThreaded, Options, SstFileWriter, WaitForCompactOptions,
    WriteBatch,
};
use chainweb_backup::testing::{is_immutable, live_copy};
use chainweb_backup::{
    BackupId, Control, Depth, Error, Kind, Service, Sources, VerifyOptions, check_backup_in, gate, verify_backup,
};
use parking_lot::Mutex;
use tempfile::TempDir;

use crate::fixture::{ROCKSDB, config, make_done, make_failed, names, record, scratch, skip, tree, wait_until};
use history::{THREADS, judge, step};

type Db = DBWithThreadMode<MultiThreaded>;
type Act = fn(&Node);

/// The moments of the protocol.
const POINTS: [&str; 7] = [
    "live-manifest-noted",
    "live-listed-once",
    "live-listed-twice",
    "live-sized",
    "live-held",
    "live-parsed",
    "live-pinned",
];

/// A database of one thread's steps.
#[derive(Clone)]
struct Node {
    root: Arc<TempDir>,
    db: Arc<Mutex<Option<Db>>>,
    steps: Arc<Mutex<u64>>,
    strings: &'static str,
}

impl Node {
    fn new(strings: &'static str) -> Node {
        let root = scratch();
        fs::create_dir_all(root.path().join("0/rocksDb")).unwrap();
        let node = Node { root: Arc::new(root), db: Arc::default(), steps: Arc::default(), strings };
        node.reopen();
        for _ in 0..4 {
            node.steps(60);
            node.flush();
        }
        node.steps(60);
        node
    }

    fn path(&self) -> PathBuf {
        self.root.path().join("0/rocksDb")
    }

    fn options(&self) -> Options {
        let mut options = Options::default().get_options_from_string(self.strings).unwrap();
        options.create_if_missing(true);
        options.set_disable_auto_compactions(true);
        options
    }

    fn reopen(&self) {
        let mut db = self.db.lock();
        drop(db.take());
        *db = Some(Db::open(&self.options(), self.path()).unwrap());
    }

    fn close(&self) {
        drop(self.db.lock().take());
    }

    /// Waits until RocksDB has removed in the background what its last flush made obsolete.
    fn rest(&self) {
        self.with(|db| db.wait_for_compact(&WaitForCompactOptions::default()).unwrap());
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        let mut before = names(&self.path());
        loop {
            sleep(Duration::from_millis(200));
            let now = names(&self.path());
            if now == before {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "its files change all the time");
            before = now;
        }
    }

    fn with<T>(&self, act: impl FnOnce(&Db) -> T) -> T {
        act(self.db.lock().as_ref().unwrap())
    }

    fn steps(&self, count: u64) {
        let mut steps = self.steps.lock();
        for _ in 0..count {
            *steps += 1;
            let mut batch = WriteBatch::default();
            for change in step(0, *steps, [0; THREADS], 1) {
                match change.value {
                    Some(value) => batch.put(change.key, value),
                    None => batch.delete(change.key),
                }
            }
            self.with(|db| db.write(batch)).unwrap();
        }
    }

    fn flush(&self) {
        self.with(|db| db.flush()).unwrap();
    }

    /// All files are replaced by one.
    fn compact(&self) {
        self.flush();
        self.with(|db| {
            db.compact_range(None::<&[u8]>, None::<&[u8]>);
            // What is obsolete is deleted in the background.
            let on_disk = || {
                let names = fs::read_dir(self.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
                names.filter(|name| name.ends_with(".sst")).count()
            };
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
            while on_disk() > db.live_files().unwrap().len() && std::time::Instant::now() < deadline {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        });
    }

    /// A new MANIFEST and a new CURRENT.
    fn roll(&self) {
        let before = fs::read(self.path().join("CURRENT")).unwrap();
        while fs::read(self.path().join("CURRENT")).unwrap() == before {
            self.steps(1);
            self.flush();
        }
    }

    fn ingest(&self) {
        let file = self.root.path().join("ingest.sst");
        let options = self.options();
        let mut writer = SstFileWriter::create(&options);
        writer.open(&file).unwrap();
        writer.put("x", "ingested").unwrap();
        writer.finish().unwrap();
        self.with(|db| db.ingest_external_file_opts(&IngestExternalFileOptions::default(), vec![&file])).unwrap();
    }

    fn family(&self) {
        self.with(|db| {
            db.create_cf("passing", &Options::default()).unwrap();
            db.put_cf(&db.cf_handle("passing").unwrap(), "key", "value").unwrap();
            db.drop_cf("passing").unwrap();
        });
    }

    /// A step with a new WAL: the memtable is put aside, but no edit is written.
    fn new_wal(&self) {
        let logs = || names(&self.path()).iter().filter(|n| n.ends_with(".log")).count();
        let before = logs();
        while logs() == before {
            self.steps(1);
        }
        self.steps(1);
    }

    fn copy(&self) -> (TempDir, Result<u32, Error>) {
        // On the file system of the source, for the links.
        let to = tempfile::Builder::new().prefix("copy").tempdir_in(self.root.path()).unwrap();
        let place = to.path().join("rocksDb");
        let copied = live_copy(&self.path(), &place, &place).map(|(rounds, _)| rounds);
        (to, copied)
    }

    /// Copies while `act` is done the first `times` times that the protocol reaches `point`; returns the number of rounds.
    fn copy_with(&self, point: &'static str, times: u32, act: fn(&Node)) -> u32 {
        let (node, mut left) = (self.clone(), times);
        // Work in the background after the opening would be an edit, too.
        self.with(|db| db.wait_for_compact(&WaitForCompactOptions::default()).unwrap());
        gate::at_point(&self.path(), move |reached| {
            if reached == point && left > 0 {
                left -= 1;
                act(&node);
                // Work that RocksDB does in the background because of it would be an edit in a later round.
                node.with(|db| db.wait_for_compact(&WaitForCompactOptions::default()).unwrap());
            }
        });
        let before = *self.steps.lock();
        let (to, rounds) = self.copy();
        gate::forget_points(&self.path());
        let rounds = rounds.unwrap_or_else(|e| panic!("{point}: {}", e.chain()));
        let found = judge(&to.path().join("rocksDb"), 1, false).unwrap_or_else(|why| panic!("{point}: {why}"));
        let after = *self.steps.lock();
        assert!((before..=after).contains(&found.steps[0]), "{point}: {found:?} is not in {before}..={after}");
        rounds
    }
}

/// The node does each of its acts at each moment: the copy is always one that `kill -9` could have left.
#[test]
fn every_act_at_every_point() {
    let acts: [(&str, Act); 9] = [
        ("steps", |node| node.steps(5)),
        ("new wal", Node::new_wal),
        ("flush", |node| (node.steps(5), node.flush()).1),
        ("compact", |node| (node.steps(5), node.compact()).1),
        ("roll", Node::roll),
        ("reopen", |node| (node.steps(5), node.reopen()).1),
        ("reopen and compact", |node| (node.reopen(), node.steps(5), node.compact()).2),
        ("ingest", |node| (node.ingest(), node.steps(1)).1),
        ("family", |node| (node.family(), node.steps(1)).1),
    ];
    let mut rounds_seen = std::collections::BTreeMap::new();
    for (name, act) in acts {
        for point in POINTS {
            for times in [1, 3] {
                // Two memtables are put aside before they are flushed, so a new WAL is not a new edit.
                let node = Node::new(
                    "write_buffer_size=65536;max_write_buffer_number=8;min_write_buffer_number_to_merge=6;\
                     max_manifest_file_size=3000;max_manifest_space_amp_pct=0",
                );
                let rounds = node.copy_with(point, times, act);
                *rounds_seen.entry(rounds).or_insert(0) += 1;
                let edits = !matches!(name, "steps" | "new wal");
                let in_window =
                    matches!(point, "live-manifest-noted" | "live-listed-once" | "live-listed-twice" | "live-sized");
                match (edits, in_window) {
                    (false, _) => assert_eq!(rounds, 1, "{name} at {point}"),
                    (true, true) => assert_eq!(rounds, times + 1, "{name} at {point}"),
                    (true, false) => assert!(rounds <= times + 1, "{name} at {point}: {rounds} rounds"),
                }
            }
        }
    }
    println!("rounds={rounds_seen:?}");
}

#[test]
fn a_file_that_is_removed_between_parsing_and_linking() {
    let node = Node::new("");
    assert_eq!(node.copy_with("live-parsed", 2, |node| (node.steps(5), node.compact()).1), 3);
}

/// The only new edit drops a column family, and its files are deleted.
#[test]
fn a_column_family_that_is_dropped_between_parsing_and_linking() {
    let node = Node::new("");
    node.with(|db| {
        db.create_cf("passing", &Options::default()).unwrap();
        let family = db.cf_handle("passing").unwrap();
        db.put_cf(&family, "key", "value").unwrap();
        db.flush_cf(&family).unwrap();
    });
    let drop = |node: &Node| {
        let before = names(&node.path()).len();
        node.with(|db| db.drop_cf("passing").unwrap());
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while names(&node.path()).len() == before && std::time::Instant::now() < deadline {
            sleep(Duration::from_millis(1));
        }
        assert!(names(&node.path()).len() < before, "its file is still there");
    };
    assert_eq!(node.copy_with("live-parsed", 1, drop), 2);
}

/// A WAL that is created between the two listings is not copied: its records are later than the first listing.
#[test]
fn a_wal_that_is_born_between_the_listings() {
    let node = Node::new("write_buffer_size=65536;max_write_buffer_number=8;min_write_buffer_number_to_merge=6");
    let logs = |path: &Path| names(path).into_iter().filter(|n| n.ends_with(".log")).collect::<Vec<_>>();
    let before = logs(&node.path());
    let other = node.clone();
    gate::at_point(&node.path(), move |point| {
        if point == "live-listed-once" {
            other.new_wal()
        }
    });
    let (to, rounds) = node.copy();
    gate::forget_points(&node.path());
    assert_eq!(rounds.unwrap(), 1);
    assert_eq!(logs(&to.path().join("rocksDb")), before);
    assert!(logs(&node.path()).len() > before.len());
}

/// After a crash the number of a file that was not committed is used again: a link that has the number may be another file.
#[test]
fn a_number_that_is_used_again() {
    let node = Node::new("");
    node.compact();
    let table = names(&node.path()).into_iter().find(|n| n.ends_with(".sst")).unwrap();
    let good = fs::read(node.path().join(&table)).unwrap();
    for same_size in [true, false] {
        let dir = tempfile::tempdir_in(node.root.path()).unwrap();
        let pins = dir.path().join("pins");
        fs::create_dir(&pins).unwrap();
        fs::write(pins.join(&table), vec![7; if same_size { good.len() } else { 10 }]).unwrap();
        let to = dir.path().join("rocksDb");
        assert_eq!(live_copy(&node.path(), &to, &pins).unwrap().0, 2);
        assert_eq!(fs::read(to.join(&table)).unwrap(), good);
        assert_eq!(names(&pins), [""; 0], "pins are left");
        judge(&to, 1, false).unwrap();
    }
}

#[test]
fn a_database_that_never_rests_ends_in_a_named_error() {
    let node = Node::new("");
    let other = node.clone();
    gate::at_point(&node.path(), move |point| {
        if point == "live-sized" {
            other.steps(1);
            other.flush();
        }
    });
    let e = node.copy().1.unwrap_err();
    gate::forget_points(&node.path());
    assert_eq!(e.kind(), Kind::Changed);
    let text = e.chain();
    assert!(text.contains("changed faster than it could be copied") && text.contains("200 rounds"), "{text}");
    // When the database does not change any more, the next copy is good.
    assert_eq!(node.copy().1.unwrap(), 1);
}

#[test]
fn what_is_refused_says_why() {
    let refused = |strings: &'static str, change: &dyn Fn(&Node), why: &str| {
        let node = Node::new(strings);
        change(&node);
        let to = node.copy();
        let e = to.1.expect_err(why);
        assert_eq!(e.kind(), Kind::Refused, "{}", e.chain());
        assert!(e.chain().contains(why), "{:?} does not say {why:?}", e.chain());
    };
    let table = |node: &Node| names(&node.path()).into_iter().find(|n| n.ends_with(".sst")).unwrap();
    let manifest = |node: &Node| fs::read_to_string(node.path().join("CURRENT")).unwrap().trim_end().to_owned();
    let to_symlink = |node: &Node, name: &str| {
        let elsewhere = node.root.path().join(format!("elsewhere-{name}"));
        fs::rename(node.path().join(name), &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, node.path().join(name)).unwrap();
    };
    refused("recycle_log_file_num=4", &|_| {}, "set recycle_log_file_num to 0");
    refused("", &|node| to_symlink(node, &table(node)), ".sst is not a regular file");
    refused("", &|node| to_symlink(node, &manifest(node)), "is not a regular file");
    refused("", &|node| to_symlink(node, "CURRENT"), "CURRENT is not a regular file");
    refused("", &|node| fs::create_dir(node.path().join("titandb")).unwrap(), "titandb holds data");
    refused("", &|node| fs::create_dir(node.path().join("blob_dir")).unwrap(), "blob_dir holds data");
    refused("", &|node| fs::remove_file(node.path().join(table(node))).unwrap(), "is missing although its MANIFEST");
    refused("", &|node| fs::write(node.path().join("CURRENT"), "../x\n").unwrap(), "does not name a MANIFEST");
    refused("", &|node| fs::write(node.path().join("CURRENT"), "").unwrap(), "does not name a MANIFEST");
    let damage = |node: &Node| {
        let path = node.path().join(manifest(node));
        let mut bytes = fs::read(&path).unwrap();
        bytes[20] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    refused("", &damage, "the MANIFEST is damaged");
    let future = |node: &Node| {
        // A record with one tag, 500, as a RocksDB of the future may write.
        let body = [1, 0xf4, 3];
        let crc = crc32c::crc32c(&body).rotate_right(15).wrapping_add(0xa282_ead8);
        let path = node.path().join(manifest(node));
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend(crc.to_le_bytes());
        bytes.extend([2, 0]);
        bytes.extend(body);
        fs::write(path, bytes).unwrap();
    };
    refused("", &future, "unknown tag 500");
}

/// A damaged WAL is copied as it is: RocksDB recovers the copy up to the damage, as it does the source.
#[test]
fn a_damaged_wal_is_kept() {
    let node = Node::new("");
    node.close();
    let name = names(&node.path()).into_iter().rfind(|n| n.ends_with(".log")).unwrap();
    let mut bytes = fs::read(node.path().join(&name)).unwrap();
    assert!(bytes.len() > 5000);
    bytes[300] ^= 1;
    fs::write(node.path().join(&name), &bytes).unwrap();
    let (to, rounds) = node.copy();
    assert_eq!(rounds.unwrap(), 1);
    assert_eq!(fs::read(to.path().join("rocksDb").join(&name)).unwrap(), bytes);
}

fn open_with(root: &Path, change: impl FnOnce(&mut Options)) -> Db {
    fs::create_dir_all(root.join("0/rocksDb")).unwrap();
    let mut options = Options::default();
    options.create_if_missing(true);
    change(&mut options);
    let db = Db::open(&options, root.join("0/rocksDb")).unwrap();
    db.put("key", "value").unwrap();
    db.flush().unwrap();
    db.put("key", "newer").unwrap();
    db
}

#[test]
fn files_elsewhere_are_refused() {
    #[track_caller]
    fn said(root: &Path) -> String {
        let to = root.join("copy");
        let e = live_copy(&root.join("0/rocksDb"), &to, &to).expect_err("this must be refused");
        assert_eq!(e.kind(), Kind::Refused);
        e.chain()
    }
    let root = scratch();
    let elsewhere = root.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    {
        let _db = open_with(root.path(), |options| options.set_wal_dir(&elsewhere));
        assert!(said(root.path()).contains("its WAL is elsewhere"));
    }
    // A path relative to the node's working directory, which is not ours.
    let root = scratch();
    let relative = PathBuf::from(format!("wal-of-a-test-{}", std::process::id()));
    {
        let _db = open_with(root.path(), |options| options.set_wal_dir(&relative));
        let elsewhere = fs::canonicalize(&relative).unwrap();
        let options = names(&root.path().join("0/rocksDb")).into_iter().rfind(|n| n.starts_with("OPTIONS-")).unwrap();
        let path = root.path().join("0/rocksDb").join(options);
        // This process would find the directory, another one would not.
        let text = fs::read_to_string(&path).unwrap().replace(&*relative.to_string_lossy(), "wal-of-no-such-place");
        fs::write(&path, text).unwrap();
        let text = said(root.path());
        assert!(text.contains("its WAL is elsewhere"), "{text}");
        drop(_db);
        fs::remove_dir_all(elsewhere).unwrap();
    }
    let root = scratch();
    let other = root.path().join("other");
    {
        use chainweb_backup::rocksdb::DBPath;
        let paths = [DBPath::new(&other, 1 << 30).unwrap()];
        let _db = open_with(root.path(), |options| options.set_db_paths(&paths));
        assert!(said(root.path()).contains("the database is damaged or has db_paths"));
    }
    let root = scratch();
    let other = root.path().join("other");
    {
        use chainweb_backup::rocksdb::DBPath;
        let here = root.path().join("0/rocksDb");
        let paths = [DBPath::new(&here, 0).unwrap(), DBPath::new(&other, 1 << 30).unwrap()];
        let db = open_with(root.path(), |options| {
            options.set_db_paths(&paths);
            options.set_level_zero_file_num_compaction_trigger(2);
        });
        db.flush().unwrap();
        db.wait_for_compact(&WaitForCompactOptions::default()).unwrap();
        let text = said(root.path());
        assert!(text.contains("another directory"), "{text}");
    }
}

#[test]
fn a_database_that_goes_away() {
    let node = Node::new("");
    let service =
        Service::start(config(&node.root.path().join("backups")), Sources::directory(node.root.path())).unwrap();
    make_done(&service, ROCKSDB);
    node.close();
    fs::remove_file(node.path().join("CURRENT")).unwrap();
    let (_, reason) = make_failed(&service, ROCKSDB);
    assert!(reason.contains("CURRENT") || reason.contains("cannot link a file"), "{reason}");
}

/// A copy changes nothing below `0`, not even a time, and its files are links and copies as the record says.
#[test]
fn the_source_is_left_alone() {
    let node = Node::new("");
    node.rest();
    let path = node.root.path().join("0");
    // Its threads write to its LOG at any time.
    let tree = |path: &Path| tree(path).into_iter().filter(|(path, _)| !path.ends_with("LOG")).collect::<Vec<_>>();
    let before = tree(&path);
    let backups = node.root.path().join("backups");
    let service = Service::start(config(&backups), Sources::directory(node.root.path())).unwrap();
    let id = make_done(&service, ROCKSDB);
    assert_eq!(tree(&path), before);
    let copy = backups.join(id.as_str()).join("0/rocksDb");
    for name in names(&copy) {
        let (there, here) = (copy.join(&name).metadata().unwrap(), node.path().join(&name).metadata().unwrap());
        assert_eq!(there.ino() == here.ino(), is_immutable(&name), "{name}");
    }
    assert!(names(&copy).iter().all(|n| !n.starts_with("LOG") && n != "LOCK" && !n.starts_with("pin.")), "{copy:?}");
    // A copy that fails leaves nothing either.
    fs::create_dir(node.path().join("titandb")).unwrap();
    let before = tree(&path);
    make_failed(&service, ROCKSDB);
    service.finish();
    assert_eq!(tree(&path), before);
}

/// A directory on another file system, if this machine has one.
fn other_file_system(root: &Path) -> Option<TempDir> {
    let device = |path: &Path| path.metadata().map_or(0, |meta| meta.dev());
    let other = ["/dev/shm", "/tmp", "/var/tmp"].map(Path::new).into_iter().find(|dir| device(dir) != device(root))?;
    tempfile::Builder::new().prefix("chainweb-backup-test-").tempdir_in(other).ok()
}

const PINS: &str = ".chainweb-backup-pin";

#[test]
fn another_file_system() {
    let node = Node::new("");
    let Some(other) = other_file_system(node.root.path()) else {
        return skip("there is no other file system");
    };
    let pins = node.root.path().join(PINS);
    let service = Service::start(config(&other.path().join("backups")), Sources::directory(node.root.path())).unwrap();
    node.rest();
    let before = tree(&node.root.path().join("0"));
    let id = make_done(&service, ROCKSDB);
    assert_eq!(tree(&node.root.path().join("0")), before);
    assert_eq!(pins.metadata().unwrap().mode() & 0o7777, 0o700);
    assert_eq!(names(&pins), [".lock"]);
    let part = record(&service, &id).rocksdb.unwrap();
    assert_eq!((part.capture.as_str(), part.bytes), ("live-copy", part.copied_bytes));
    let found = judge(&other.path().join("backups").join(id.as_str()).join("0/rocksDb"), 1, false).unwrap();
    assert_eq!(found.steps[0], *node.steps.lock());
    // It is refused after links were made: they are removed before the job ends.
    node.close();
    let table = names(&node.path()).into_iter().rfind(|n| n.ends_with(".sst")).unwrap();
    fs::remove_file(node.path().join(table)).unwrap();
    make_failed(&service, ROCKSDB);
    service.finish();
    assert_eq!(names(&pins), [".lock"], "links are left behind a backup that failed");
}

/// A file that two backups share is damaged: damage that is found in one is noted in the other, and no further backup takes the file
/// from either.
#[test]
fn what_is_damaged_is_not_used_again() {
    let node = Node::new("");
    let Some(other) = other_file_system(node.root.path()) else {
        return skip("there is no other file system");
    };
    let backups = other.path().join("backups");
    let service = Service::start(config(&backups), Sources::directory(node.root.path())).unwrap();
    let [first, second] = [(); 2].map(|()| make_done(&service, ROCKSDB));
    let directory = |id: &BackupId| backups.join(id.as_str()).join("0/rocksDb");
    let table = names(&directory(&second)).into_iter().find(|name| name.ends_with(".sst")).unwrap();
    let inode = |id: &BackupId| directory(id).join(&table).metadata().unwrap().ino();
    assert_eq!(inode(&first), inode(&second));
    let path = directory(&first).join(&table);
    let mut bytes = fs::read(&path).unwrap();
    bytes[10] ^= 1;
    fs::write(&path, bytes).unwrap();

    let faults_count = |id: &BackupId, depth| {
        verify_backup(&backups, id.as_str(), VerifyOptions { depth, program: None }, &Control::default())
            .unwrap()
            .1
            .faults
            .len()
    };
    let noted = |id: &BackupId| {
        check_backup_in(&backups, id).unwrap().unwrap().verified.is_some_and(|verified| verified.faults_count > 0)
    };
    assert_eq!((faults_count(&second, Depth::Quick), noted(&first), noted(&second)), (0, false, false));
    assert!(faults_count(&second, Depth::Deep) > 0);
    assert!(noted(&first) && noted(&second));
    // A quick verification does not see the damage, and does not remove the note.
    assert_eq!(faults_count(&second, Depth::Quick), 0);
    assert!(noted(&first) && noted(&second));
    let third = make_done(&service, ROCKSDB);
    assert_ne!(inode(&third), inode(&second));
    assert_eq!(faults_count(&third, Depth::Deep), 0);
}

/// Set for the child: the backup directory.
const COPIER: &str = "CHAINWEB_BACKUP_LIVE_COPIER";

#[test]
#[ignore = "no test: another one runs it as a process of its own"]
fn copier_child() {
    let backups = std::env::var(COPIER).unwrap();
    let root = std::env::current_dir().unwrap();
    let service = Service::start(config(Path::new(&backups)), Sources::directory(&root)).unwrap();
    loop {
        make_done(&service, ROCKSDB);
    }
}

/// Our process is killed at random moments while the node writes: the next start removes every link.
#[test]
fn our_own_kill_leaves_no_link() {
    let root = scratch();
    let Some(other) = other_file_system(root.path()) else {
        return skip("there is no other file system");
    };
    let writer = writer::Writer::start(root.path(), writer::Scenario::Plain, 500);
    writer.wait_steps(300);
    let backups = other.path().join("backups");
    let pins = root.path().join(PINS);
    let mut random = fastrand::Rng::with_seed(3);
    let mut left = 0;
    for round in 0..25 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "live::copier_child", "--ignored", "--nocapture", "--test-threads=1"])
            .env(COPIER, &backups)
            .current_dir(root.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // In turn at any moment, and while there are links, which exist for some milliseconds only.
        match round % 2 {
            0 => sleep(Duration::from_millis(random.u64(15..90))),
            _ => wait_until("the links of a live copy", || pins.join("rocksDb").exists()),
        }
        child.kill().unwrap();
        child.wait().unwrap();
        left += u32::from(pins.join("rocksDb").exists());
        let service = Service::start(config(&backups), Sources::directory(root.path())).unwrap();
        service.finish();
        assert!(!pins.exists() || names(&pins).iter().all(|n| n == ".lock"), "{:?}", names(&pins));
        for id in names(&backups).iter().filter(|name| !name.starts_with('.')) {
            let status = fs::read_to_string(backups.join(id).join("status")).unwrap();
            assert!(status == "backup-failed" || status == "backup-done", "{id} is {status}");
            assert!(!names(&backups.join(id)).iter().any(|name| name.contains("partial")), "{id}");
        }
    }
    println!("kills=25 links_left_by_a_kill={left}");
    assert!(left > 0, "no kill met a live copy");
    let service = Service::start(config(&backups), Sources::directory(root.path())).unwrap();
    let before = writer.committed();
    let id = make_done(&service, ROCKSDB);
    let found = judge(&backups.join(id.as_str()).join("0/rocksDb"), 1, false).unwrap();
    assert!(found.steps.iter().zip(before.steps).all(|(found, before)| *found >= before));
}
