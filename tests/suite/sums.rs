//! The lists of checksums: which are there when a backup is done, which are written later, and that none appears in a backup that is
//! being removed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use chainweb_backup::gate::{self, Plan};
use chainweb_backup::{
    Config, Control, Kind, Method, PactMethod, Service, Status, Sums, check_backup_in, sum_backup, verify_backup,
};

use crate::fixture::{BLOCKS, DEEP, Node, PACT, ROCKSDB, check_list, make_done, names, record, wait_until};
use crate::reuse::Stage;

fn b2sum_agrees(directory: &Path) {
    let sums = directory.join("BLAKE2SUMS");
    let status = Command::new("b2sum").args(["--quiet", "-c"]).arg(&sums).current_dir(directory).status().unwrap();
    assert!(status.success());
    let listed = fs::read_to_string(&sums).unwrap().lines().count();
    assert_eq!(listed + 1, names(directory).len(), "every file has a sum");
}

#[test]
fn sums_are_written_while_idle() {
    let node = Node::new();
    for (sums, rocksdb, pact) in [(Sums::None, false, false), (Sums::Copied, false, true), (Sums::All, true, true)] {
        let service = Service::start(Config { sums, ..node.config() }, node.embedded()).unwrap();
        let id = make_done(&service, PACT);
        // An incomplete list, as a power cut leaves it, does no harm.
        let backup = node.backups().join(id.as_str());
        if sums == Sums::None {
            fs::write(backup.join("0/sqlite/.BLAKE2SUMS.tmp"), "half a l").unwrap();
            let deep = verify_backup(&node.backups(), id.as_str(), DEEP, &Control::default()).unwrap();
            assert_eq!(deep.1.faults, []);
        }
        // The work is done before the service ends.
        service.finish();
        for (name, expected) in [("rocksDb", rocksdb), ("sqlite", pact)] {
            let directory = node.backups().join(id.as_str()).join("0").join(name);
            assert_eq!(directory.join("BLAKE2SUMS").exists(), expected, "{sums:?} {name}");
            if expected {
                b2sum_agrees(&directory);
            }
        }
        let told = check_backup_in(&node.backups(), &id).unwrap().unwrap().sums;
        let expected: &[&str] =
            [&[][..], &["sqlite"], &["rocksDb", "sqlite"]][usize::from(pact) + usize::from(rocksdb)];
        assert_eq!(told, expected);
    }
}

/// Checksums that would take very long delay neither a new backup nor the end of the service.
#[test]
fn sums_give_way() {
    let node = Node::new();
    make_done(&node.start(), ROCKSDB);
    let config = Config { sums: Sums::All, limit_bytes_per_second: Some(1), ..node.config() };
    for is_wanted in [true, false] {
        let service = Arc::new(Service::start(config.clone(), node.embedded()).unwrap());
        let (answers, answer) = mpsc::channel();
        let asking = Arc::clone(&service);
        std::thread::spawn(move || {
            if is_wanted {
                answers.send(Some(asking.make_backup(ROCKSDB).unwrap())).unwrap();
            } else {
                asking.shutdown();
                answers.send(None).unwrap();
            }
        });
        if let Some(id) = answer.recv_timeout(Duration::from_secs(30)).expect("it gives way") {
            service.set_limit(None);
            wait_until("the end", || service.check_backup(&id).unwrap() == Some(Status::Done));
        }
    }
}

/// Fails unless the list of a directory is a part of the unfinished backup, synced before it gets its name, and is written only once.
fn is_part_of_the_backup(log: &[(&'static str, PathBuf)], backup: &Path, directory: &str) {
    let partial = backup.join("0.partial");
    let list = partial.join(directory).join("BLAKE2SUMS");
    let at = |operation: &str, path: &Path| {
        let found: Vec<usize> = (0..log.len()).filter(|n| log[*n].0 == operation && log[*n].1 == path).collect();
        assert_eq!(found.len(), 1, "{operation} {} in {log:#?}", path.display());
        found[0]
    };
    let (created, synced) = (at("create", &list), at("fsync", &list));
    let (listed, named) = (at("fsync-dir", &partial.join(directory)), at("rename", &partial));
    assert!(created < synced && synced < named && created < listed && listed < named, "{log:#?}");
    let later = log.iter().filter(|(_, path)| path.starts_with(backup.join("0")) && path.ends_with("BLAKE2SUMS"));
    assert_eq!(later.count(), 0, "{log:#?}");
    check_list(&backup.join("0").join(directory).join("BLAKE2SUMS"));
    assert!(!fs::read_to_string(backup.join("manifest.json")).unwrap().contains("BLAKE2SUMS"));
}

/// On another file system every file of RocksDB was copied or taken over, and has its checksum.
#[test]
fn the_list_of_rocksdb_elsewhere_is_there_when_the_backup_is_done() {
    let Some(stage) = Stage::new("the_list_of_rocksdb_elsewhere_is_there_when_the_backup_is_done") else { return };
    for (round, sums) in [Sums::Copied, Sums::All, Sums::Copied].into_iter().enumerate() {
        stage.fill(round, 1, 20_000);
        gate::arm(Plan { root: stage.backups(), ..Plan::default() });
        let id = stage.make(|config| config.sums = sums);
        let log = gate::disarm(&stage.backups()).log;
        is_part_of_the_backup(&log, &stage.backups().join(id.as_str()), "rocksDb");
        let (_, found) = verify_backup(&stage.backups(), id.as_str(), DEEP, &Control::default()).unwrap();
        assert!(found.faults.is_empty() && found.notes.is_empty() && found.extras.is_empty(), "{found:?}");
    }
    let none = stage.make(|config| config.sums = Sums::None);
    assert!(!stage.copy(&none).join("BLAKE2SUMS").exists());
}

/// One more block, and a backup of it as a pair if possible: the operations, the backup, and how its database came.
fn make_pair(node: &mut Node, height: u64) -> (Vec<(&'static str, PathBuf)>, PathBuf, Method) {
    node.rocksdb_block(height);
    node.pact_block(height);
    let config = Config { pact_method: PactMethod::Delta, sums: Sums::Copied, ..node.config() };
    let service = Service::start(config, node.embedded()).unwrap();
    gate::arm(Plan { root: node.backups(), ..Plan::default() });
    let id = make_done(&service, PACT);
    service.finish();
    let log = gate::disarm(&node.backups()).log;
    (log, node.backups().join(id.as_str()), record(&service, &id).pact[0].method)
}

/// Fails unless the list of the Pact databases was written after the backup was done.
fn is_later(log: &[(&'static str, PathBuf)], backup: &Path) {
    let done =
        log.iter().position(|(operation, path)| *operation == "rename" && path.ends_with(".status.tmp")).unwrap();
    let first = log.iter().position(|(_, path)| path.to_string_lossy().contains("BLAKE2SUMS")).unwrap();
    assert!(done < first, "{log:#?}");
    check_list(&backup.join("0/sqlite/BLAKE2SUMS"));
}

/// The checksum of a base is known from the list of an earlier backup, that of the WAL from the copy.
#[test]
fn the_list_of_pairs_is_there_when_the_backup_is_done() {
    let mut node = Node::new();
    // Otherwise a block changes a large part of the database.
    let filler =
        "CREATE TABLE filler (pad BLOB); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 200)
        INSERT INTO filler SELECT zeroblob(900) FROM n; PRAGMA wal_checkpoint(TRUNCATE)";
    node.pact()[0].execute_batch(filler).unwrap();
    let (log, first, method) = make_pair(&mut node, BLOCKS + 1);
    assert_eq!(method, Method::RawCopy);
    is_later(&log, &first);
    let (log, second, method) = make_pair(&mut node, BLOCKS + 2);
    assert_eq!(method, Method::Delta);
    is_part_of_the_backup(&log, &second, "sqlite");
    // Where no list has the base, it must be read.
    [first, second].iter().for_each(|backup| fs::remove_file(backup.join("0/sqlite/BLAKE2SUMS")).unwrap());
    let (log, third, method) = make_pair(&mut node, BLOCKS + 3);
    assert_eq!(method, Method::Delta);
    is_later(&log, &third);
}

/// `rm -rf` has listed a directory: a file that appears there now makes it fail.
#[test]
fn no_list_appears_in_a_backup_that_is_being_removed() {
    let node = Node::new();
    let backups = node.backups();
    for moment in 1..=2 {
        let id = make_done(&node.start(), PACT);
        let directory = backups.join(id.as_str()).join("0/sqlite");
        let (of_act, mut looks_count) = (directory.clone(), 0);
        gate::at_point(&directory, move |name| {
            looks_count += u32::from(name == "sums-look");
            if name == "sums-look" && looks_count == moment {
                fs::remove_file(of_act.join("pact-v1-chain-0.sqlite")).unwrap();
            }
        });
        let error = sum_backup(&backups, id.as_str(), &Control::default()).unwrap_err();
        gate::forget_points(&directory);
        assert_eq!(error.kind(), Kind::NotFound, "{}", error.chain());
        assert_eq!(names(&directory), Vec::<String>::new());
        fs::remove_dir_all(backups.join(id.as_str())).unwrap();
    }
}
