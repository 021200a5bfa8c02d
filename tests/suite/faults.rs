//! Faults name their file: damage in one file is noted for no other. Files that are no part of a backup are no fault.

use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use chainweb_backup::rocksdb::{DB, Options};
use chainweb_backup::{
    BackupId, Control, Depth, Policy, RestoreOptions, Service, Sources, Verdict, check_backup_in, list_backups_in,
    prune_backups, restore_backup, sum_backup, verify_backup,
};

use crate::fixture::{Node, PACT, ROCKSDB, config, make_done, names, scratch};

/// Changes one byte in the middle of a file.
pub fn flip(path: &Path) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let at = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

fn noted(backups: &Path, id: &BackupId) -> Option<u64> {
    check_backup_in(backups, id).unwrap().unwrap().verified.map(|verified| verified.faults_count)
}

/// The number of one SST ends with that of another: what is wrong with the one is noted in the backups that have the one.
#[test]
fn damage_in_one_sst_is_not_noted_for_another_whose_name_is_part_of_it() {
    let scratch = scratch();
    let directory = scratch.path().join("db");
    let rocksdb = directory.join("0/rocksDb");
    fs::create_dir_all(&rocksdb).unwrap();
    let mut options = Options::default();
    options.create_if_missing(true);
    let db = DB::open(&options, &rocksdb).unwrap();
    for block in ["a", "b"] {
        (0..200).for_each(|n| db.put(format!("{block}{n:03}"), format!("{n}").repeat(50)).unwrap());
        db.flush().unwrap();
    }
    drop(db);
    let ssts: Vec<String> = names(&rocksdb).into_iter().filter(|name| name.ends_with(".sst")).collect();
    let [short, other] = ssts.as_slice() else { panic!("{ssts:?}") };
    let long = format!("1{short}");
    fs::rename(rocksdb.join(other), rocksdb.join(&long)).unwrap();
    // RocksDB finds them by their names.
    DB::repair(&options, &rocksdb).unwrap();
    assert!(rocksdb.join(short).exists() && rocksdb.join(&long).exists(), "{:?}", names(&rocksdb));

    let backups = scratch.path().join("backups");
    let service = Service::start(config(&backups), Sources::directory(&directory)).unwrap();
    let [first, second, third] = [0; 3].map(|_| make_done(&service, ROCKSDB));
    drop(service);
    // The third one has a copy of its own of what is damaged, and shares the other.
    let own = backups.join(third.as_str()).join("0/rocksDb").join(&long);
    let bytes = fs::read(&own).unwrap();
    fs::remove_file(&own).unwrap();
    fs::write(&own, bytes).unwrap();
    flip(&backups.join(first.as_str()).join("0/rocksDb").join(&long));

    let (_, found) = verify_backup(&backups, first.as_str(), Depth::Deep, None, &Control::default()).unwrap();
    let expected = format!("0/rocksDb/{long}");
    assert!(!found.faults.is_empty() && found.faults.iter().all(|fault| fault.file == expected), "{:?}", found.faults);
    assert_eq!(noted(&backups, &second), Some(1), "one damaged file is shared, not two");
    assert_eq!(noted(&backups, &third), None, "it shares no damaged file");
}

/// What a publisher adds to a backup is named, and nothing else comes of it.
#[test]
fn a_file_that_is_no_part_of_the_backup_is_a_note() {
    let node = Node::new();
    let service = node.start();
    let id = make_done(&service, PACT);
    drop(service);
    let (backups, none) = (node.backups(), Control::default());
    let whole = backups.join(id.as_str()).join("0");
    let mut extras = Vec::new();
    for directory in ["rocksDb", "sqlite"] {
        for name in ["snapshot_date", "999999.sst", ".note", "pact.sqlite-wal"] {
            // An empty WAL is what a reader of the database leaves.
            fs::write(whole.join(directory).join(name), if name.ends_with("wal") { "" } else { "today\n" }).unwrap();
            extras.push(format!("0/{directory}/{name}"));
        }
        symlink("/nonexistent", whole.join(directory).join("link")).unwrap();
        extras.push(format!("0/{directory}/link"));
    }
    extras.sort();
    let verify = |depth| {
        let (_, mut found) = verify_backup(&backups, id.as_str(), depth, None, &none).unwrap();
        assert_eq!(found.faults, []);
        found.extras.sort();
        found.extras
    };
    assert_eq!(verify(Depth::Quick), extras);
    assert_eq!(verify(Depth::Deep), extras);

    let (_, summed) = sum_backup(&backups, id.as_str(), &none).unwrap();
    let mut left_out = summed.left_out;
    left_out.sort();
    extras.retain(|path| !path.ends_with("/link"));
    assert_eq!(left_out, extras);
    for directory in ["rocksDb", "sqlite"] {
        let sums = fs::read_to_string(whole.join(directory).join("BLAKE2SUMS")).unwrap();
        assert!(!sums.contains("snapshot_date") && !sums.contains("999999"), "{sums}");
    }
    assert_eq!(verify(Depth::Deep).len(), extras.len() + 2);

    // Sums that name it, as those of an earlier version do, prove nothing about it: it changes, it goes.
    let sums = whole.join("sqlite/BLAKE2SUMS");
    let line = format!("{}  snapshot_date\n", "0".repeat(128));
    fs::write(&sums, fs::read_to_string(&sums).unwrap() + &line).unwrap();
    verify(Depth::Deep);
    fs::remove_file(whole.join("sqlite/snapshot_date")).unwrap();
    verify(Depth::Deep);

    assert!(list_backups_in(&backups).unwrap()[0].verified.as_ref().is_some_and(|v| v.faults_count == 0));
    let verdicts = prune_backups(&backups, Policy { keep_last: 1, ..Policy::default() }, true).unwrap();
    assert!(verdicts.iter().all(|(_, verdict)| matches!(verdict, Verdict::Keep(_))), "{verdicts:?}");
    let target = &node.root().join("restored");
    let options = RestoreOptions { target, replace: false, copy: false, depth: Depth::Deep, program: None };
    restore_backup(&backups, "latest", options, &none).unwrap();
}

/// But a WAL or journal with something in it is read by the next node: the backup is another one then.
#[test]
fn a_wal_that_is_no_part_of_the_backup_is_damage() {
    let node = Node::new();
    let service = node.start();
    let id = make_done(&service, PACT);
    drop(service);
    let whole = node.backups().join(id.as_str()).join("0");
    for name in ["rocksDb/999999.log", "sqlite/pact-v1-chain-0.sqlite-wal", "sqlite/pact-v1-chain-0.sqlite-journal"] {
        fs::write(whole.join(name), "something").unwrap();
        let (_, found) = verify_backup(&node.backups(), id.as_str(), Depth::Quick, None, &Control::default()).unwrap();
        assert_eq!(found.faults.iter().map(|f| f.file.clone()).collect::<Vec<_>>(), [format!("0/{name}")]);
        fs::remove_file(whole.join(name)).unwrap();
    }
}
