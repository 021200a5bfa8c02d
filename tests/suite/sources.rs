//! Nodes that are other programs: stopped, running, crashed; sources that are refused; backups on another file system.
//!
//! Such a node is this test executable again, as [`foreign_node`].

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use chainweb_backup::rocksdb::{DB, Options};
use chainweb_backup::{BackupId, Kind, Service, Sources};
use serde_json::Value;
use tempfile::TempDir;

use crate::fixture::{
    BLOCKS, Node, PACT, ROCKSDB, Tree, config, make_done, make_failed, names, paths, record, scratch_on_disk, settled,
    skip, tree, wait_until, whole,
};

/// Set for the child, which is a node in its working directory.
const CHILD: &str = "CHAINWEB_BACKUP_FOREIGN_NODE";

fn start(node: &Node) -> Service {
    Service::start(node.config(), Sources::directory(&node.directory())).unwrap()
}

fn manifest(backup: &Path) -> Vec<Value> {
    let json: Value = serde_json::from_slice(&fs::read(backup.join("manifest.json")).unwrap()).unwrap();
    json["files"].as_array().unwrap().clone()
}

/// Everything below the node's `0`, without the `-shm`, which SQLite writes even if it only reads.
fn source_tree(node: &Node) -> Tree {
    let mut tree = tree(&node.directory().join("0"));
    tree.retain(|path, _| !path.to_string_lossy().ends_with("-shm"));
    tree
}

/// The child: a node that writes blocks, Pact first as a node may, until it is killed or its standard input ends.
#[test]
#[ignore = "no test: another one runs it as a process of its own"]
fn foreign_node() {
    std::env::var(CHILD).unwrap();
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_line(&mut String::new());
        std::process::exit(0);
    });
    let root = std::env::current_dir().unwrap();
    let mut node = Node::create(&root, 2);
    for height in BLOCKS + 1.. {
        node.pact_block(height);
        sleep(Duration::from_millis(2));
        node.rocksdb_block(height);
        if height % 10 == 0 {
            node.db().flush().unwrap();
        }
        fs::write(root.join("height"), height.to_string()).unwrap();
    }
}

/// A child that is killed when it is dropped.
struct Foreign(Child);

impl Foreign {
    fn start(root: &Path) -> Foreign {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["sources::foreign_node", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .env(CHILD, "1")
            .current_dir(root)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let foreign = Foreign(child);
        wait_until("the foreign node writes", || root.join("height").exists());
        foreign
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn a_stopped_node_is_linked_and_not_touched() {
    let mut node = Node::on_disk(2);
    node.close();
    let before = source_tree(&node);
    let service = start(&node);
    let id = make_done(&service, PACT);
    let backup = node.backups().join(id.as_str());
    assert_eq!(whole(&backup), (BLOCKS, vec![BLOCKS, BLOCKS]));
    assert_eq!(source_tree(&node), before, "the source has changed");
    assert_eq!(names(&node.directory()), ["0"]);

    let (mut linked, mut copied) = (0, 0);
    for entry in manifest(&backup) {
        let path = entry["path"].as_str().unwrap();
        let here = fs::metadata(backup.join(path)).unwrap();
        let there = fs::metadata(node.directory().join(path)).unwrap();
        if path.ends_with(".sst") {
            assert_eq!((here.dev(), here.ino()), (there.dev(), there.ino()), "{path} is not a link");
            assert_eq!(entry["method"], "linked");
            linked += 1;
        } else {
            assert_ne!(here.ino(), there.ino(), "{path} is a link to a file that changes");
            copied += 1;
        }
    }
    assert!(linked >= 2 && copied >= 5, "{linked} linked, {copied} copied");
    assert_eq!(record(&service, &id).rocksdb.unwrap().capture, "live-copy");
    make_done(&service, ROCKSDB);
    assert_eq!(source_tree(&node), before, "the source has changed");
    drop(service);
    settled(&node.backups());
    Node::open(node.root()).check();
}

#[test]
fn a_running_node_and_a_crashed_one_are_backed_up() {
    let scratch = scratch_on_disk();
    let child = Foreign::start(scratch.path());
    let (directory, backups) = (scratch.path().join("db"), scratch.path().join("backups"));
    let service = Service::start(config(&backups), Sources::directory(&directory)).unwrap();
    let mut last = 0;
    for _ in 0..5 {
        let id = make_done(&service, PACT);
        let (height, pact) = whole(&backups.join(id.as_str()));
        assert!(height > last && pact.iter().all(|h| *h <= height), "{pact:?} after {height}");
        last = height;
        let behind = pact.iter().map(|h| height - h).max();
        assert_eq!(record(&service, &id).replay_blocks, behind);
    }
    drop(child);

    // The node has been killed, and both databases have a WAL.
    let look = || {
        let mut tree = tree(&directory.join("0"));
        tree.retain(|path, _| !path.to_string_lossy().ends_with("-shm"));
        tree
    };
    let before = look();
    assert!(before.keys().any(|path| path.to_string_lossy().ends_with("-wal")));
    for _ in 0..2 {
        let id = make_done(&service, PACT);
        assert!(whole(&backups.join(id.as_str())).0 >= last);
        assert_eq!(look(), before, "the source has changed");
    }
    assert_eq!(names(&directory), ["0"]);
    drop(service);
    settled(&backups);
    Node::open(scratch.path()).check();
}

/// Fails unless a backup is refused because of its source, with this reason.
fn refused(node: &Node, words: &[&str]) {
    let before = source_tree(node);
    let service = start(node);
    let (id, reason) = make_failed(&service, PACT);
    for word in words {
        assert!(reason.contains(word), "no {word:?} in {reason:?}");
    }
    assert_eq!(service.failure_kind(&id), Some(Kind::Refused), "{reason}");
    service.finish();
    settled(&node.backups());
    assert_eq!(source_tree(node), before, "the source has changed");
}

#[test]
fn a_database_that_is_a_link_or_empty_is_refused() {
    let mut node = Node::on_disk(2);
    node.close();
    let (database, away) = (node.sqlite(1), node.root().join("away.sqlite"));
    fs::rename(&database, &away).unwrap();
    symlink(&away, &database).unwrap();
    refused(&node, &["pact-v1-chain-1.sqlite", "not a regular file"]);
    fs::remove_file(&database).unwrap();
    fs::write(&database, "").unwrap();
    refused(&node, &["pact-v1-chain-1.sqlite", "empty"]);
    fs::remove_file(&database).unwrap();
    fs::create_dir(&database).unwrap();
    refused(&node, &["pact-v1-chain-1.sqlite", "not a regular file"]);
    fs::remove_dir(&database).unwrap();
    fs::rename(&away, &database).unwrap();
    make_done(&start(&node), PACT);
}

#[test]
fn an_embedded_database_that_is_a_link_is_refused_too() {
    let node = Node::on_disk(1);
    let stray = node.sqlite(7);
    symlink(node.sqlite(0), &stray).unwrap();
    let service = node.start();
    let (id, reason) = make_failed(&service, PACT);
    assert!(reason.contains("chain-7"), "{reason}");
    assert_eq!(service.failure_kind(&id), Some(Kind::Refused));
    make_done(&service, ROCKSDB);
    fs::remove_file(stray).unwrap();
    make_done(&service, PACT);
}

#[test]
fn what_is_not_a_database_fails_the_backup() {
    let node = Node::on_disk(1);
    let stray = node.sqlite(7);
    for content in ["x".repeat(100), "SQLite format 3\0".to_owned() + &"y".repeat(5000)] {
        fs::write(&stray, content).unwrap();
        let service = node.start();
        let (_, reason) = make_failed(&service, PACT);
        assert!(reason.contains("chain-7"), "{reason}");
        service.finish();
        settled(&node.backups());
    }
}

#[test]
fn a_rocksdb_with_files_elsewhere_is_refused() {
    let mut node = Node::on_disk(1);
    node.close();
    let elsewhere = node.root().join("wal");
    let mut options = Options::default();
    options.set_wal_dir(&elsewhere);
    let db = DB::open(&options, node.rocksdb()).unwrap();
    db.put("x", "y").unwrap();
    drop(db);
    refused(&node, &["wal_dir", elsewhere.to_str().unwrap()]);
}

#[test]
fn a_rocksdb_with_a_linked_file_is_refused() {
    let mut node = Node::on_disk(1);
    node.close();
    let sst = names(&node.rocksdb()).into_iter().find(|name| name.ends_with(".sst")).unwrap();
    for name in [sst.as_str(), "CURRENT"] {
        let (file, away) = (node.rocksdb().join(name), node.root().join("away"));
        fs::rename(&file, &away).unwrap();
        symlink(&away, &file).unwrap();
        refused(&node, &[name]);
        fs::rename(&away, &file).unwrap();
    }
    make_done(&start(&node), PACT);
}

/// A directory for backups on another file system than the node's; `None`, and a skipped test, if there is none.
fn other_file_system(node: &Node, test: &str) -> Option<TempDir> {
    let shm = Path::new("/dev/shm");
    let other = fs::metadata(shm).ok().filter(|m| m.dev() != fs::metadata(node.root()).unwrap().dev());
    let made = other.and_then(|_| tempfile::Builder::new().prefix("chainweb-backup-test-").tempdir_in(shm).ok());
    if made.is_none() {
        skip(&format!("{test}: /dev/shm is not another file system"));
    }
    made
}

/// Fails unless the pin directory exists, is private and has no pins.
fn check_pins(node: &Node) {
    let pins = node.directory().join(".chainweb-backup-pin");
    assert_eq!(fs::metadata(&pins).unwrap().permissions().mode() & 0o777, 0o700);
    let files: Vec<PathBuf> = paths(&pins).into_iter().filter(|p| p.is_file()).collect();
    assert_eq!(files, [pins.join(".lock")], "pins are left");
    for path in paths(&node.rocksdb()).into_iter().filter(|p| p.extension().is_some_and(|e| e == "sst")) {
        assert_eq!(fs::metadata(&path).unwrap().nlink(), 1, "{} has another name still", path.display());
    }
}

fn check_other_file_system(node: &Node, sources: &dyn Fn() -> Sources, backups: &Path) {
    // Pins that a crash has left.
    let left = node.directory().join(".chainweb-backup-pin/rocksDb");
    fs::create_dir_all(&left).unwrap();
    fs::set_permissions(left.parent().unwrap(), PermissionsExt::from_mode(0o700)).unwrap();
    let sst = names(&node.rocksdb()).into_iter().find(|name| name.ends_with(".sst")).unwrap();
    fs::hard_link(node.rocksdb().join(&sst), left.join(&sst)).unwrap();
    let service = Service::start(config(backups), sources()).unwrap();
    wait_until("the pins of a crash are cleared", || !left.join(&sst).exists());
    let first = make_done(&service, PACT);
    check_pins(node);
    assert!(manifest(&backups.join(first.as_str())).iter().all(|e| e["method"] != "linked" && e["method"] != "reused"));
    let part = record(&service, &first).rocksdb.unwrap();
    assert_eq!(part.copied_bytes, part.bytes);
    // The next backup has its SSTs from the first, and keeps them if that is deleted.
    let second = make_done(&service, ROCKSDB);
    check_pins(node);
    for entry in manifest(&backups.join(second.as_str())) {
        let path = entry["path"].as_str().unwrap();
        let inode = |id: &BackupId| fs::metadata(backups.join(id.as_str()).join(path)).unwrap().ino();
        assert_eq!(entry["method"], if path.ends_with(".sst") { "reused" } else { "copied" }, "{path}");
        assert_eq!(inode(&first) == inode(&second), path.ends_with(".sst"), "{path}");
    }
    let part = record(&service, &second).rocksdb.unwrap();
    assert!(part.copied_bytes < part.bytes, "{part:?}");
    fs::remove_dir_all(backups.join(first.as_str())).unwrap();
    assert_eq!(whole(&backups.join(second.as_str())).0, BLOCKS);
    let third = make_done(&service, PACT);
    // If the MANIFEST of a backup is damaged, its files are unknown, even if the beginning can be read.
    let rocksdb = backups.join(third.as_str()).join("0/rocksDb");
    let damaged = names(&rocksdb).into_iter().find(|name| name.starts_with("MANIFEST-")).unwrap();
    let mut bytes = fs::read(rocksdb.join(&damaged)).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(rocksdb.join(&damaged), bytes).unwrap();
    // Then the backup before it is used; if there is none, every file is copied.
    let fourth = make_done(&service, ROCKSDB);
    let path = |id: &BackupId| fs::metadata(backups.join(id.as_str()).join("0/rocksDb").join(&sst)).unwrap().ino();
    assert_eq!(path(&fourth), path(&second));
    fs::remove_dir_all(backups.join(second.as_str())).unwrap();
    fs::remove_dir_all(backups.join(fourth.as_str())).unwrap();
    let fifth = make_done(&service, ROCKSDB);
    assert!(manifest(&backups.join(fifth.as_str())).iter().all(|e| e["method"] == "copied"));
    fs::remove_dir_all(backups.join(third.as_str())).unwrap();
    service.finish();
    drop(service);
    settled(backups);
    #[cfg(feature = "gate")]
    check_errors_leave_no_pins(node, sources, backups);
}

#[cfg(feature = "gate")]
fn check_errors_leave_no_pins(node: &Node, sources: &dyn Fn() -> Sources, backups: &Path) {
    use crate::fixture::make;
    use chainweb_backup::Status;
    use chainweb_backup::gate::{Plan, arm, disarm};
    let run = |fail_at: Vec<u64>| {
        let service = Service::start(config(backups), sources()).unwrap();
        arm(Plan { root: backups.to_owned(), fail_at, ..Plan::default() });
        let (_, status) = make(&service, ROCKSDB);
        service.finish();
        (disarm(backups).log, status)
    };
    let (log, status) = run(Vec::new());
    assert_eq!(status, Status::Done);
    let copies = (0..log.len()).filter(|n| log[*n].0 == "copy").map(|n| n as u64 + 1);
    for copy in copies {
        assert_eq!(run(vec![copy]).1, Status::Failed);
        check_pins(node);
    }
    settled(backups);
}

#[test]
fn an_embedded_node_is_backed_up_to_another_file_system() {
    let node = Node::on_disk(1);
    let Some(other) = other_file_system(&node, "an_embedded_node_is_backed_up_to_another_file_system") else { return };
    check_other_file_system(&node, &|| node.embedded(), &other.path().join("backups"));
    node.check();
}

#[test]
fn a_foreign_node_is_backed_up_to_another_file_system() {
    let mut node = Node::on_disk(1);
    let Some(other) = other_file_system(&node, "a_foreign_node_is_backed_up_to_another_file_system") else { return };
    node.close();
    let before = source_tree(&node);
    check_other_file_system(&node, &|| Sources::directory(&node.directory()), &other.path().join("backups"));
    assert_eq!(source_tree(&node), before, "the source has changed");
    Node::open(node.root()).check();
}
