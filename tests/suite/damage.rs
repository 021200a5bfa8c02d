//! Damage to our own metadata: the service starts nevertheless, reports nothing wrong, and removes no data because of it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use chainweb_backup::{
    BackupId, Control, Kind, Policy, RestoreOptions, Service, Status, Verdict, check_backup_in, find_backup,
    list_all_in, list_backups_in, prune_backups, rehearse_prune, restore_backup, verify_backup,
};

use crate::fixture::{
    Node, PACT, QUICK, ROCKSDB, call, copy_tree, make_done, make_failed, names, paths, restore_to, scratch, tree, whole,
};

/// Cases of the loop.
const CASES: usize = 300;

/// The three backups of a case, under names that no other test uses.
const DONE: &str = "1600000000001";
const RUNNING: &str = "1600000000002";
const FAILED: &str = "1600000000003";

/// A backup directory with a backup that is done, one that a crash interrupted, and one that failed.
fn template(node: &Node, to: &Path) {
    let service = node.start();
    let done = make_done(&service, PACT);
    drop(service);
    let config = chainweb_backup::Config { reserve_bytes: Some(u64::MAX / 2), ..node.config() };
    let service = Service::start(config, node.embedded()).unwrap();
    let (failed, _) = make_failed(&service, PACT);
    service.finish();
    drop(service);
    for (from, name) in [(&done, DONE), (&done, RUNNING), (&failed, FAILED)] {
        let path = to.join(name);
        copy_tree(&node.backups().join(from.as_str()), &path);
        let files = ["backup.json", "starts.json", "verified.json"].map(|file| path.join(file));
        for file in files.into_iter().filter(|file| file.exists()) {
            let text = fs::read_to_string(&file).unwrap();
            fs::write(file, text.replace(from.as_str(), name)).unwrap();
        }
    }
    let running = to.join(RUNNING);
    fs::write(running.join("status"), "backup-in-progress").unwrap();
    fs::write(running.join("status.failed"), "backup-failed").unwrap();
    fs::rename(running.join("0"), running.join("0.partial")).unwrap();
}

/// Damages a file in one of many ways, and says how.
fn damage(file: &Path, random: &mut fastrand::Rng) -> String {
    let old = fs::read(file).unwrap();
    let way = random.usize(..12);
    let at = random.usize(..old.len());
    let mut bytes = old.clone();
    match way {
        0 => bytes.truncate(at),
        1 => bytes[at] ^= 1 << random.u8(..8),
        2 => bytes[at] = random.u8(..),
        3 => bytes.iter_mut().skip(at).for_each(|b| *b = 0),
        4 => bytes = (0..random.usize(..1000)).map(|_| random.u8(..)).collect(),
        5 => bytes.extend_from_slice(&old),
        6 => drop(bytes.drain(at..(at + random.usize(1..10)).min(old.len()))),
        7 => bytes = random.choice(["{}", "[]", "null", "1", "\"\"", "backup-done\nbackup-failed"]).unwrap().into(),
        8 => bytes = b"[".repeat(200_000),
        9 => bytes = vec![0; 20 * 1024 * 1024],
        _ => fs::remove_file(file).unwrap(),
    }
    match way {
        0..=9 => fs::write(file, bytes).unwrap(),
        10 => symlink("/nonexistent/x", file).unwrap(),
        _ => {}
    }
    format!("{} way {way} at {at}", file.display())
}

#[test]
fn damaged_metadata_never_stops_the_service_and_never_costs_data() {
    let node = Node::new();
    let original = scratch();
    template(&node, original.path());
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut left_alone, mut failed) = (0, 0);
    for case in 0..CASES {
        let place = scratch();
        let backups = place.path();
        copy_tree(original.path(), backups);
        let victim = *random.choice(&[DONE, DONE, RUNNING, RUNNING, FAILED]).unwrap();
        let files: &[&str] =
            if victim == FAILED { &["backup.json", "status"] } else { &["backup.json", "status", "manifest.json"] };
        let mut what = format!("seed {seed} case {case}: ");
        for _ in 0..random.usize(1..=2) {
            let file = backups.join(victim).join(random.choice(files).unwrap());
            if fs::read(&file).is_ok_and(|bytes| !bytes.is_empty()) {
                what += &damage(&file, &mut random);
            }
        }
        let damaged = tree(&backups.join(victim));
        let data = tree(&backups.join(DONE).join("0"));

        let service = Service::start(crate::fixture::config(backups), node.embedded()).expect(&what);
        let listed = service.list_backups();
        let mut has_unknown = false;
        for name in [DONE, RUNNING, FAILED] {
            let id = BackupId::parse(name).unwrap();
            let answer = call(&service, "GET", &format!("/check-backup/{id}"), &[("Accept", "application/json")]);
            let answer = answer.unwrap();
            let status = match service.check_backup(&id) {
                // Still ours, but its status is unknown.
                Err(e) => {
                    assert_eq!((e.kind(), answer.status, name), (Kind::Damaged, 500, victim), "{what}");
                    has_unknown = true;
                    continue;
                }
                Ok(status) => status,
            };
            if let Ok(listed) = &listed {
                assert_eq!(listed.iter().find(|b| b.id == id).map(|b| b.status), status, "{what}");
            }
            assert_eq!(answer.status, if status.is_some() { 200 } else { 404 }, "{what}");
            if name != victim {
                let expected = if name == DONE { Status::Done } else { Status::Failed };
                assert_eq!(status, Some(expected), "{what}");
            }
        }
        assert_eq!(listed.err().map(|e| e.kind()), has_unknown.then_some(Kind::Damaged), "{what}");
        if case % 20 == 0 {
            make_done(&service, ROCKSDB);
        }
        service.finish();
        drop(service);
        assert_eq!(tree(&backups.join(DONE).join("0")), data, "{what}: the data of a good backup has changed");
        let path = backups.join(victim);
        if victim == DONE {
            assert_eq!(tree(&path), damaged, "{what}: a good backup has changed");
        } else {
            whole(&backups.join(DONE));
        }
        if victim == RUNNING {
            // All or nothing: it is ours and settled, or foreign and unchanged.
            if path.join("0.partial").exists() {
                assert_eq!(tree(&path), damaged, "{what}");
                left_alone += 1;
            } else {
                assert_eq!(names(&path), [".use", "backup.json", "status"], "{what}");
                assert_eq!(fs::read_to_string(path.join("status")).unwrap(), "backup-failed", "{what}");
                failed += 1;
            }
        }
    }
    println!("cases={CASES} left alone={left_alone} failed={failed}");
    // About 120 of 300 cases damage the running one, a third of them so that it is still ours.
    assert!(left_alone > 5 && failed > 5);
}

/// A backup that a living process works on is not settled, nor one that it has finished meanwhile.
#[test]
fn what_another_process_works_on_is_left_alone() {
    let node = Node::new();
    let place = scratch();
    let backups = place.path();
    template(&node, backups);
    // It is failing at this moment: the status is written, the reason and the data are next.
    copy_tree(&backups.join(RUNNING).join("0.partial"), &backups.join(FAILED).join("0.partial"));
    let locks = [RUNNING, FAILED].map(|name| {
        let file = fs::File::open(backups.join(name).join(".use")).unwrap();
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
        file
    });
    let look = || [tree(&backups.join(RUNNING)), tree(&backups.join(FAILED))];
    let before = look();
    let config = crate::fixture::config(backups);
    let service = Service::start(config.clone(), node.embedded()).unwrap();
    let status = |service: &Service, name| service.check_backup(&BackupId::parse(name).unwrap()).unwrap();
    assert_eq!(status(&service, RUNNING), Some(Status::InProgress));
    assert_eq!(status(&service, FAILED), Some(Status::Failed));
    service.finish();
    drop(service);
    assert_eq!(look(), before);
    drop(locks);

    #[cfg(feature = "gate")]
    {
        // Between the first look and the lock the other process commits, and ends.
        let running = backups.join(RUNNING);
        let commit = running.clone();
        chainweb_backup::gate::at_point(&running, move |_| {
            fs::rename(commit.join("0.partial"), commit.join("0")).unwrap();
            fs::write(commit.join("status"), "backup-done").unwrap();
            fs::remove_file(commit.join("status.failed")).unwrap();
        });
    }
    let service = Service::start(config, node.embedded()).unwrap();
    #[cfg(feature = "gate")]
    chainweb_backup::gate::forget_points(&backups.join(RUNNING));
    let expected = if cfg!(feature = "gate") { Status::Done } else { Status::Failed };
    assert_eq!(status(&service, RUNNING), Some(expected));
    service.finish();
    if expected == Status::Done {
        whole(&backups.join(RUNNING));
    }
    assert_eq!(names(&backups.join(FAILED)), [".use", "backup.json", "status"]);
}

/// Directories in place of files, and files that may not be opened: everything else is settled.
#[test]
fn what_cannot_be_settled_does_not_stop_the_rest() {
    let node = Node::new();
    let original = scratch();
    template(&node, original.path());
    for name in [".use", "status.failed", ".status.tmp", ".backup.json.tmp", "manifest.json"] {
        let place = scratch();
        let backups = place.path();
        copy_tree(original.path(), backups);
        for victim in [DONE, RUNNING, FAILED] {
            let path = backups.join(victim).join(name);
            let _ = fs::remove_file(&path);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("x"), "x").unwrap();
        }
        let service = Service::start(crate::fixture::config(backups), node.embedded()).expect(name);
        for (id, expected) in [(DONE, Status::Done), (RUNNING, Status::Failed), (FAILED, Status::Failed)] {
            assert_eq!(service.check_backup(&BackupId::parse(id).unwrap()).unwrap(), Some(expected), "{name}");
        }
        assert_eq!(service.list_backups().unwrap().len(), 3);
        make_done(&service, PACT);
        service.finish();
        assert!(backups.join(DONE).join("0/rocksDb/CURRENT").is_file());
    }
}

/// A backup that cannot be read does not hide the others, and does not count as good.
#[test]
fn a_backup_that_cannot_be_read_is_listed_as_such() {
    let node = Node::new();
    let original = scratch();
    template(&node, original.path());
    let backups = original.path();
    fs::write(backups.join(DONE).join("status"), "backup-dome").unwrap();
    let listed = serde_json::to_value(list_all_in(backups).unwrap()).unwrap();
    let statuses = |list: &serde_json::Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|b| b["status"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(statuses(&listed), ["backup-failed", "backup-failed", "unreadable"]);
    assert_eq!(listed[2]["id"], DONE);
    assert!(listed[2]["reason"].as_str().unwrap().contains("status is damaged or missing"), "{}", listed[2]);

    let service = Service::start(crate::fixture::config(backups), node.embedded()).unwrap();
    let answer = call(&service, "GET", "/list-backups", &[]).unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(statuses(&serde_json::from_str(&answer.body).unwrap()), statuses(&listed));
    let check = call(&service, "GET", &format!("/check-backup/{DONE}"), &[]).unwrap();
    assert!(check.status == 500 && check.body.contains("damaged or missing"), "{} {}", check.status, check.body);
    let good = [make_done(&service, PACT), make_done(&service, PACT)];
    service.finish();
    drop(service);
    assert_eq!(find_backup(backups, "latest").unwrap(), good[1]);
    fs::write(backups.join(good[1].as_str()).join("status"), "").unwrap();
    assert_eq!(find_backup(backups, "latest").unwrap(), good[0], "it passes over one that cannot be read");
    let policy = Policy { keep_last: 1, ..Policy::default() };
    prune_backups(backups, policy).unwrap();
    for id in [DONE, good[0].as_str(), good[1].as_str()] {
        assert!(backups.join(id).join("0/rocksDb/CURRENT").is_file(), "prune deleted {id}");
    }
}

/// A note of damage was damaged itself: the backup is not treated as one that was never verified.
#[test]
fn a_note_of_a_verification_that_cannot_be_read_may_have_named_damage() {
    let node = Node::new();
    let service = node.start();
    let [first, last] = [(); 2].map(|()| make_done(&service, PACT));
    drop(service);
    let note = node.backups().join(last.as_str()).join("verified.json");
    for text in ["", "{", "{\"depth\":\"deep\"}", "null"] {
        fs::write(&note, text).unwrap();
        let target = node.root().join("restored");
        let options = RestoreOptions { copy: true, ..restore_to(&target) };
        let (restored, _) = restore_backup(&node.backups(), "latest", options, &Control::default()).unwrap();
        assert_eq!(restored, first, "{text:?}");
        fs::remove_dir_all(&target).unwrap();
        let refused = restore_backup(&node.backups(), last.as_str(), options, &Control::default()).unwrap_err();
        assert_eq!(refused.kind(), Kind::Damaged, "{text:?}");
        let policy = Policy { keep_last: 1, ..Policy::default() };
        assert!(
            rehearse_prune(&node.backups(), policy)
                .unwrap()
                .iter()
                .any(|(b, v)| b.id == first && *v != Verdict::Delete)
        );
        // The next verification writes a new note.
        let (_, found) = verify_backup(&node.backups(), last.as_str(), QUICK, &Control::default()).unwrap();
        assert_eq!(found.faults, []);
        let (restored, _) = restore_backup(&node.backups(), "latest", options, &Control::default()).unwrap();
        assert_eq!(restored, last, "{text:?}");
        fs::remove_dir_all(&target).unwrap();
    }
}

#[test]
fn looking_without_a_service_changes_nothing_and_survives_damage() {
    let node = Node::new();
    let original = scratch();
    template(&node, original.path());
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..100 {
        let place = scratch();
        copy_tree(original.path(), place.path());
        for path in paths(place.path()) {
            if path.is_file() && path.extension().is_some_and(|e| e == "json") && random.bool() {
                damage(&path, &mut random);
            }
        }
        let before = tree(place.path());
        let listed = list_backups_in(place.path()).unwrap();
        assert_eq!(listed.len(), 3, "seed {seed}");
        for details in listed {
            let checked = check_backup_in(place.path(), &details.id).unwrap().unwrap();
            assert_eq!(checked.status, details.status, "seed {seed}");
        }
        assert_eq!(tree(place.path()), before, "seed {seed}");
    }
    let absent = check_backup_in(&node.root().join("none"), &BackupId::parse(DONE).unwrap());
    assert_eq!(absent.unwrap_err().kind(), Kind::Usage);
}
