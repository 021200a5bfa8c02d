//! A fault names its file: damage in one file is not noted for another. A file that is not part of the backup is no fault.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::process::Command;

use chainweb_backup::rocksdb::{DB, Options};
use chainweb_backup::{
    BackupId, Control, Depth, Kind, Policy, RestoreOptions, Service, Sources, Verdict, VerifyOptions, check_backup_in,
    list_backups_in, prune_backups, rehearse_prune, restore_backup, sum_backup, verify_backup,
};

use crate::fixture::{DEEP, Node, PACT, QUICK, ROCKSDB, config, make_done, names, restore_to, scratch};

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

/// The number of one SST ends with that of another: a fault of the first is noted only in backups that have the first.
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
    // The third backup has its own copy of the damaged SST, and shares the other one.
    let own = backups.join(third.as_str()).join("0/rocksDb").join(&long);
    let bytes = fs::read(&own).unwrap();
    fs::remove_file(&own).unwrap();
    fs::write(&own, bytes).unwrap();
    flip(&backups.join(first.as_str()).join("0/rocksDb").join(&long));

    let (_, found) = verify_backup(&backups, first.as_str(), DEEP, &Control::default()).unwrap();
    let expected = format!("0/rocksDb/{long}");
    assert!(!found.faults.is_empty() && found.faults.iter().all(|fault| fault.file == expected), "{:?}", found.faults);
    assert_eq!(noted(&backups, &second), Some(1), "one damaged file is shared, not two");
    assert_eq!(noted(&backups, &third), None, "it shares no damaged file");
}

/// The note of one backup cannot be written: those of the others are.
#[test]
fn damage_is_noted_wherever_it_can_be_noted() {
    let mut node = Node::new();
    let service = node.start();
    let ids = [0; 4].map(|_| make_done(&service, ROCKSDB));
    drop(service);
    node.close();
    let backups = node.backups();
    let rocksdb = backups.join(ids[0].as_str()).join("0/rocksDb");
    let sst = names(&rocksdb).into_iter().find(|name| name.ends_with(".sst")).unwrap();
    flip(&rocksdb.join(sst));
    // Of a sharer, and of the backup that is verified.
    for unwritable in [2, 0] {
        let temporary = backups.join(ids[unwritable].as_str()).join(".verified.json.tmp");
        fs::create_dir_all(temporary.join("in the way")).unwrap();
        let (_, found) = verify_backup(&backups, ids[0].as_str(), DEEP, &Control::default()).unwrap();
        assert_eq!(found.faults.len(), 1, "{:?}", found.faults);
        for (n, id) in ids.iter().enumerate() {
            assert_eq!(noted(&backups, id), (n != unwritable).then_some(1), "{unwritable}: {n}");
            let _ = fs::remove_file(backups.join(id.as_str()).join("verified.json"));
        }
        fs::remove_dir_all(&temporary).unwrap();
    }
}

/// A verification finds damage, and then ends with an error: the damage is noted, and what was noted before is kept.
#[test]
fn damage_that_was_found_is_noted_although_the_verification_could_not_go_on() {
    let mut node = Node::new();
    let id = make_done(&node.start(), PACT);
    node.close();
    let backups = node.backups();
    let rocksdb = backups.join(id.as_str()).join("0/rocksDb");
    let ssts: Vec<String> = names(&rocksdb).into_iter().filter(|name| name.ends_with(".sst")).collect();
    flip(&rocksdb.join(&ssts[0]));
    let verify = |program| {
        let options = VerifyOptions { depth: Depth::Deep, program };
        verify_backup(&backups, id.as_str(), options, &Control::default()).map(|(_, found)| found)
    };
    assert_eq!(verify(None).unwrap().faults.len(), 1);

    let program = node.root().join("killed");
    let script = format!("printf '#!/bin/sh\nkill -KILL $$\n' >{0} && chmod 755 {0}", program.display());
    assert!(Command::new("/bin/sh").args(["-c", &script]).status().unwrap().success());
    assert_eq!(verify(Some(&program)).unwrap_err().kind(), Kind::Io, "nothing else is wrong that it can see");
    fs::remove_file(rocksdb.join(&ssts[1])).unwrap();
    let found = verify(Some(&program)).expect("a file is missing");
    assert!(found.faults.iter().all(|fault| fault.file.ends_with(&ssts[1])), "{:?}", found.faults);
    assert!(found.notes.iter().any(|note| note.why.contains("the verification is not whole")), "{:?}", found.notes);
    let noted = check_backup_in(&backups, &id).unwrap().unwrap().verified.unwrap();
    assert_eq!(noted.damaged.into_iter().collect::<Vec<_>>(), ssts[..2]);
    assert_eq!(noted.faults_count, 2);
}

/// A file that a publisher added to a backup is listed, and has no other effect.
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
        let (_, mut found) =
            verify_backup(&backups, id.as_str(), VerifyOptions { depth, program: None }, &none).unwrap();
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

    // Checksums of an earlier version name it. They prove nothing about it: it may change or be removed.
    let sums = whole.join("sqlite/BLAKE2SUMS");
    let line = format!("{}  snapshot_date\n", "0".repeat(128));
    fs::write(&sums, fs::read_to_string(&sums).unwrap() + &line).unwrap();
    verify(Depth::Deep);
    fs::remove_file(whole.join("sqlite/snapshot_date")).unwrap();
    verify(Depth::Deep);

    assert!(list_backups_in(&backups).unwrap()[0].verified.as_ref().is_some_and(|v| v.faults_count == 0));
    let verdicts = rehearse_prune(&backups, Policy { keep_last: 1, ..Policy::default() }).unwrap();
    assert!(verdicts.iter().all(|(_, verdict)| matches!(verdict, Verdict::Keep(_))), "{verdicts:?}");
    let target = &node.root().join("restored");
    let options = RestoreOptions { depth: Depth::Deep, ..restore_to(target) };
    restore_backup(&backups, "latest", options, &none).unwrap();
}

/// But a node would read a WAL or a journal that is not empty, and so have another database.
#[test]
fn a_wal_that_is_no_part_of_the_backup_is_damage() {
    let node = Node::new();
    let service = node.start();
    let id = make_done(&service, PACT);
    drop(service);
    let whole = node.backups().join(id.as_str()).join("0");
    for name in ["rocksDb/999999.log", "sqlite/pact-v1-chain-0.sqlite-wal", "sqlite/pact-v1-chain-0.sqlite-journal"] {
        fs::write(whole.join(name), "something").unwrap();
        let (_, found) = verify_backup(&node.backups(), id.as_str(), QUICK, &Control::default()).unwrap();
        assert_eq!(found.faults.iter().map(|f| f.file.clone()).collect::<Vec<_>>(), [format!("0/{name}")]);
        fs::remove_file(whole.join(name)).unwrap();
    }
}

/// A list of checksums that is incomplete, or has a wrong line, proves nothing about the files: neither its own backup nor one that
/// shares the files is damaged because of it, and `sum` mends the list.
#[test]
fn a_defective_list_of_checksums_condemns_no_file() {
    let node = Node::new();
    let service = node.start();
    let [first, second] = [0; 2].map(|_| make_done(&service, PACT));
    drop(service);
    let (backups, none) = (node.backups(), Control::default());
    let verify = |id: &BackupId, depth| {
        verify_backup(&backups, id.as_str(), VerifyOptions { depth, program: None }, &none).unwrap().1
    };
    sum_backup(&backups, second.as_str(), &none).unwrap();
    let whole = backups.join(second.as_str()).join("0");
    let inode =
        |id: &BackupId, name: &str| fs::metadata(backups.join(id.as_str()).join("0/rocksDb").join(name)).unwrap().ino();
    let sst = names(&whole.join("rocksDb")).into_iter().find(|name| name.ends_with(".sst")).unwrap();
    assert_eq!(inode(&first, &sst), inode(&second, &sst), "they share their SSTs");

    let lists = ["rocksDb", "sqlite"].map(|name| whole.join(name).join("BLAKE2SUMS"));
    let good = lists.clone().map(|list| fs::read_to_string(list).unwrap());
    let wrong = |name: &str| -> String {
        let line = |line: &str| {
            if line.ends_with(name) { format!("{}  {name}\n", "0".repeat(128)) } else { format!("{line}\n") }
        };
        good[0].lines().map(line).collect()
    };
    let half = |text: &str| text[..text.len() / 2].to_owned();
    let manifest = names(&whole.join("rocksDb")).into_iter().find(|name| name.starts_with("MANIFEST")).unwrap();
    for (what, rocksdb, pact, is_seen_quickly) in [
        ("empty", String::new(), String::new(), true),
        ("half written", half(&good[0]), half(&good[1]), true),
        ("without a line", good[0].lines().skip(1).map(|line| format!("{line}\n")).collect(), good[1].clone(), true),
        ("no checksums", format!("{}cannot read\n", good[0]), "\0\n".repeat(1000), true),
        ("a wrong line of an SST", wrong(&sst), good[1].clone(), false),
        ("a wrong line of the MANIFEST", wrong(&manifest), good[1].clone(), true),
    ] {
        fs::write(&lists[0], &rocksdb).unwrap();
        fs::write(&lists[1], &pact).unwrap();
        for depth in [Depth::Quick, Depth::Deep] {
            let found = verify(&second, depth);
            assert_eq!(found.faults, [], "{what} {depth:?}");
            let is_noted = found.notes.iter().any(|note| note.file == "0/rocksDb/BLAKE2SUMS");
            assert_eq!(is_noted, is_seen_quickly || depth == Depth::Deep, "{what} {depth:?}: {:?}", found.notes);
        }
        assert_eq!((noted(&backups, &first), noted(&backups, &second)), (None, Some(0)), "{what}");
        let verdicts = prune_backups(&backups, Policy { keep_last: 5, ..Policy::default() }).unwrap();
        assert!(verdicts.iter().all(|(_, verdict)| matches!(verdict, Verdict::Keep(_))), "{what}: {verdicts:?}");
        let target = &node.root().join("restored");
        let options = restore_to(target);
        assert_eq!(restore_backup(&backups, "latest", options, &none).unwrap().0, second, "{what}");
        fs::remove_dir_all(target).unwrap();

        if !is_seen_quickly {
            // A line is not replaced if only the content contradicts it: it may be the only evidence of damage.
            assert_eq!(sum_backup(&backups, second.as_str(), &none).unwrap().1.written_count, 0, "{what}");
            fs::remove_file(&lists[0]).unwrap();
        }
        let (_, summed) = sum_backup(&backups, second.as_str(), &none).unwrap();
        assert!(summed.written_count > 0 && summed.mended.is_empty() != is_seen_quickly, "{what}: {summed:?}");
        assert_eq!(lists.clone().map(|list| fs::read_to_string(list).unwrap()), good, "{what}");
        assert_eq!(verify(&second, Depth::Deep).notes, [], "{what}");
        let (_, again) = sum_backup(&backups, second.as_str(), &none).unwrap();
        assert_eq!((again.written_count, again.read_count), (0, 0), "{what}");
    }

    // For Pact there is no other evidence: the file is damaged, in this backup only.
    let line = format!("{}{}", "0".repeat(128), &good[1][128..]);
    fs::write(&lists[1], line).unwrap();
    assert_eq!(verify(&second, Depth::Deep).faults.len(), 1);
    assert_eq!((noted(&backups, &first), noted(&backups, &second)), (None, Some(1)));
}
