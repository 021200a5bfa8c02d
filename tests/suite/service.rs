//! The service: one job at a time, identifiers that are known from the instant at which they are handed out, operators who change the
//! backup directory meanwhile, restarts, and the content of a record.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use chainweb_backup::{
    BackupId, Control, Kind, MakeRequest, Phase, Policy, Scope, Service, Sources, Status, Verdict, check_backup_in,
    delete_backup, list_backups_in, prune_backups, verify_backup,
};

use crate::fixture::{
    BLOCKS, Node, PACT, QUICK, ROCKSDB, Tree, call, config, make, make_done, make_failed, names, paths, record,
    settled, tree, wait_end, wait_until, whole,
};

fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis().try_into().unwrap()
}

fn millis(id: &BackupId) -> u64 {
    id.as_str().parse().unwrap()
}

/// Removes a directory as an operator does: again, until nothing is left.
fn delete_by_hand(path: &Path) {
    for _ in 0..1000 {
        if fs::remove_dir_all(path).is_ok() || !path.exists() {
            return;
        }
    }
    panic!("{} cannot be removed", path.display());
}

#[test]
fn a_good_backup_holds_what_the_node_held_and_its_record_tells_it() {
    let node = Node::with_chains(2);
    let service = node.start();
    let id = make_done(&service, PACT);
    assert_eq!(whole(&node.backups().join(id.as_str())), (BLOCKS, vec![BLOCKS, BLOCKS]));
    let pact = record(&service, &id);
    assert_eq!(pact.scope, Scope::RocksdbAndPact);
    assert_eq!((pact.replay_blocks, pact.warnings.as_slice()), (Some(0), [].as_slice()));
    assert_eq!(pact.pact.iter().map(|p| p.chain).collect::<Vec<_>>(), [Some(0), Some(1)]);
    let rocksdb = pact.rocksdb.unwrap();
    assert_eq!((rocksdb.capture.as_str(), rocksdb.captures_count), ("checkpoint", 1));
    assert!(rocksdb.copied_bytes < rocksdb.bytes, "no file is linked: {rocksdb:?}");
    assert!(pact.versions.rocksdb.split('.').count() >= 2 && pact.versions.sqlite.starts_with("3."));

    let id = make_done(&service, ROCKSDB);
    assert_eq!(whole(&node.backups().join(id.as_str())), (BLOCKS, vec![]));
    assert_eq!(record(&service, &id).scope, Scope::Rocksdb);
    service.finish();
    settled(&node.backups());
    let listed = service.list_backups().unwrap();
    assert_eq!(listed[0].id, id);
    assert!(listed.iter().all(|b| b.exclusive_bytes.unwrap() > 0 && !b.foreign && b.progress.is_none()));
    // The same without a service.
    let viewed = list_backups_in(&node.backups()).unwrap();
    assert_eq!(viewed.iter().map(|b| &b.id).collect::<Vec<_>>(), listed.iter().map(|b| &b.id).collect::<Vec<_>>());
    assert_eq!(check_backup_in(&node.backups(), &id).unwrap().unwrap().record, listed[0].record);
    assert_eq!(list_backups_in(&node.root().join("none")).unwrap_err().kind(), Kind::Usage);
}

#[test]
fn what_a_deletion_by_another_process_leaves_to_one_backup_alone_is_counted_again() {
    let node = Node::new();
    let service = node.start();
    let [first, last] = [make_done(&service, ROCKSDB), make_done(&service, ROCKSDB)];
    for sst in paths(&node.rocksdb()).iter().filter(|path| path.extension().is_some_and(|e| e == "sst")) {
        fs::remove_file(sst).unwrap(); // as by a compaction: only the backups have it now
    }
    delete_backup(&node.backups(), first.as_str()).unwrap();
    let alone = check_backup_in(&node.backups(), &last).unwrap().unwrap().exclusive_bytes;
    wait_until("the bytes of the other backup are counted", || {
        service.list_backups().unwrap().iter().map(|b| (&b.id, b.exclusive_bytes)).eq([(&last, alone)])
    });
}

#[test]
fn linked_files_are_the_nodes_own_and_keep_what_they_were() {
    let node = Node::new();
    let service = node.start();
    let id = make_done(&service, ROCKSDB);
    let details = service.details(&id).unwrap().unwrap();
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(node.backups().join(id.as_str()).join("manifest.json")).unwrap()).unwrap();
    let linked = manifest["files"].as_array().unwrap().iter().filter(|e| e["method"] == "linked");
    let mut linked_bytes = 0;
    for entry in linked {
        use std::os::unix::fs::MetadataExt;
        let path = entry["path"].as_str().unwrap();
        let here = fs::metadata(node.backups().join(id.as_str()).join(path)).unwrap();
        let there = fs::metadata(node.directory().join(path)).unwrap();
        assert_eq!((here.dev(), here.ino()), (there.dev(), there.ino()), "{path} is not a link");
        linked_bytes += here.len();
    }
    let part = details.record.unwrap().rocksdb.unwrap();
    assert_eq!(linked_bytes, part.bytes - part.copied_bytes);
}

#[test]
fn a_hundred_callers_at_once_get_one_backup_and_its_true_scope() {
    let node = Node::new();
    let service = Service::start(node.paused_config(), node.embedded()).unwrap();
    let barrier = Barrier::new(100);
    let answers: BTreeSet<(String, String)> = thread::scope(|scope| {
        let ask = |n: usize| {
            let (service, barrier) = (&service, &barrier);
            scope.spawn(move || {
                barrier.wait();
                let backup_pact = n.is_multiple_of(2);
                if n < 20 {
                    let id = service.make_backup(MakeRequest { backup_pact }).unwrap();
                    return (id.to_string(), service.details(&id).unwrap().unwrap().scope.word().to_owned());
                }
                let url = if backup_pact { "/make-backup?backupPact" } else { "/make-backup" };
                let answer = call(service, "POST", url, &[]).unwrap();
                assert_eq!(answer.status, 200);
                (answer.body.clone(), answer.header("x-backup-scope").unwrap().to_owned())
            })
        };
        let threads: Vec<_> = (0..100).map(ask).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    node.go_on();
    assert_eq!(answers.len(), 1, "{answers:?}");
    let (id, scope) = answers.into_iter().next().unwrap();
    let id = BackupId::parse(&id).unwrap();
    assert_eq!(wait_end(&service, &id), Status::Done);
    assert_eq!(record(&service, &id).scope.word(), scope);
    assert_eq!(service.list_backups().unwrap().len(), 1);
    let next = service.make_backup(ROCKSDB).unwrap();
    assert!(next > id);
}

#[test]
fn an_identifier_is_known_from_the_instant_of_its_answer() {
    let node = Node::new();
    let service = node.start();
    let mut last = 0;
    for n in 0..200 {
        let url = if n % 4 == 0 { "/make-backup?backupPact=true" } else { "/make-backup" };
        let id = call(&service, "POST", url, &[]).unwrap().body;
        let url = format!("/check-backup/{id}");
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut seen = 0;
        loop {
            let headers: &[_] = if seen % 2 == 0 { &[] } else { &[("Accept", "application/json")] };
            let answer = call(&service, "GET", &url, headers).unwrap();
            assert_eq!(answer.status, 200, "{url}: {answer:?}");
            seen += 1;
            assert!(answer.header("x-backup-scope").is_some());
            let word = match serde_json::from_str::<serde_json::Value>(&answer.body) {
                Ok(json) => json["status"].as_str().unwrap().to_owned(),
                Err(_) => answer.body,
            };
            match word.as_str() {
                "backup-in-progress" => assert!(Instant::now() < deadline),
                word => break assert_eq!(word, "backup-done"),
            }
        }
        // Done stays done.
        assert_eq!(call(&service, "GET", &url, &[]).unwrap().body, "backup-done");
        let id: u64 = id.parse().unwrap();
        assert!(id > last, "{id} after {last}");
        last = id;
        if n % 4 == 3 {
            delete_by_hand(&node.backups().join(id.to_string()));
            assert_eq!(call(&service, "GET", &url, &[]).unwrap().status, 404);
        }
    }
    service.finish();
    assert_eq!(service.list_backups().unwrap().len(), 150);
    settled(&node.backups());
}

/// The status file of a backup of ours is damaged or missing: the backup exists nevertheless, and the error names the remedy.
#[test]
fn a_damaged_status_file_is_an_error_and_not_an_absence() {
    let node = Node::new();
    let service = node.start();
    let [older, id] = [(); 2].map(|()| make_done(&service, ROCKSDB));
    let backups = node.backups();
    let status = backups.join(id.as_str()).join("status");
    let huge = "backup-done".repeat(1000);
    for content in [Some("backup-dooe"), Some(""), Some(&huge), None] {
        match content {
            Some(content) => fs::write(&status, content).unwrap(),
            None => fs::remove_file(&status).unwrap(),
        }
        let errors = [
            check_backup_in(&backups, &id).err(),
            verify_backup(&backups, id.as_str(), QUICK, &Control::default()).err(),
            delete_backup(&backups, id.as_str()).err(),
            list_backups_in(&backups).err(),
            service.check_backup(&id).err(),
        ];
        for error in errors {
            let error = error.expect("the backup exists");
            assert!(error.kind() == Kind::Damaged && error.chain().contains("write backup-done"), "{}", error.chain());
        }
        let answer = call(&service, "GET", &format!("/check-backup/{id}"), &[]).unwrap();
        assert!(answer.status == 500 && answer.body.contains("status"), "{answer:?}");
        let (latest, _) = verify_backup(&backups, "latest", QUICK, &Control::default()).unwrap();
        assert_eq!(latest, older);
        let judged = prune_backups(&backups, Policy { keep_last: 1, ..Policy::default() }).unwrap();
        let verdicts: Vec<_> = judged.into_iter().map(|(backup, verdict)| (backup.id, verdict)).collect();
        assert_eq!(verdicts, [(id.clone(), Verdict::Unread), (older.clone(), Verdict::Keep("last good"))]);
        assert!(backups.join(id.as_str()).join("0").exists());
    }
    fs::write(&status, "backup-done").unwrap();
    assert_eq!(service.check_backup(&id).unwrap(), Some(Status::Done));
    delete_by_hand(&backups.join(id.as_str()));
    assert_eq!(service.check_backup(&id).unwrap(), None);
}

#[test]
fn deleting_by_hand_is_noticed_and_breaks_nothing() {
    let node = Node::new();
    let service = node.start();
    let (gone, halved, kept) = (make_done(&service, PACT), make_done(&service, PACT), make_done(&service, PACT));
    delete_by_hand(&node.backups().join(gone.as_str()));
    delete_by_hand(&node.backups().join(halved.as_str()).join("0"));
    for id in [&gone, &halved] {
        assert_eq!(service.check_backup(id).unwrap(), None);
        assert!(service.details(id).unwrap().is_none());
        let answer = call(&service, "GET", &format!("/check-backup/{id}"), &[]).unwrap();
        assert_eq!((answer.status, answer.header("x-backup-scope")), (404, None));
    }
    assert_eq!(service.check_backup(&kept).unwrap(), Some(Status::Done));
    assert_eq!(service.list_backups().unwrap().len(), 1);
    let next = make_done(&service, PACT);
    assert!(next > kept);
    drop(service);
    let service = node.start();
    assert_eq!(service.check_backup(&halved).unwrap(), None);
    make_done(&service, PACT);
}

#[test]
fn deleting_a_running_backup_by_hand_breaks_nothing() {
    let node = Node::new();
    // In the middle of the work; while the job waits and then has to commit; and at any other moment.
    for n in 0..20 {
        let waits = n == 0;
        let config = if waits { node.paused_config() } else { node.config() };
        let service = Service::start(config, node.embedded()).unwrap();
        let id = service.make_backup(PACT).unwrap();
        let path = node.backups().join(id.as_str());
        if waits {
            let waiting = || service.details(&id).unwrap().unwrap().progress.is_some_and(|p| p.phase == Phase::Heights);
            wait_until("the job waits", waiting);
        } else {
            thread::sleep(Duration::from_micros(n * 500));
        }
        delete_by_hand(&path);
        node.go_on();
        wait_until("the job ends", || service.check_backup(&id).unwrap() != Some(Status::InProgress));
        // If the job has made something there again, that is a failed backup like any other.
        let left = path.exists().then_some(Status::Failed);
        assert_eq!(service.check_backup(&id).unwrap(), left);
        delete_by_hand(&path);
        assert_eq!(service.check_backup(&id).unwrap(), None);
        assert_eq!(call(&service, "GET", &format!("/check-backup/{id}"), &[]).unwrap().status, 404);
        let next = make_done(&service, PACT);
        if waits {
            // Without the height it is not what `settled` expects.
            delete_by_hand(&node.backups().join(next.as_str()));
        }
        service.finish();
        settled(&node.backups());
    }
    assert_eq!(list_backups_in(&node.backups()).unwrap().len(), 19);
}

/// The backup directory is gone, as after an unmount, or another directory is in its place, as below a mount point.
#[test]
fn the_backup_directory_may_vanish_or_be_another() {
    let node = Node::new();
    let service = node.start();
    let id = make_done(&service, ROCKSDB);
    for replaced in [false, true] {
        fs::rename(node.backups(), node.root().join("elsewhere")).unwrap();
        if replaced {
            fs::create_dir(node.backups()).unwrap();
        }
        assert_eq!(service.check_backup(&id).unwrap_err().kind(), Kind::Io);
        assert_eq!(service.details(&id).unwrap_err().kind(), Kind::Io);
        assert_eq!(service.make_backup(ROCKSDB).unwrap_err().kind(), Kind::Io);
        let (check, list) = (format!("/check-backup/{id}"), "/list-backups");
        for (method, url) in [("POST", "/make-backup"), ("GET", list), ("GET", &check)] {
            let answer = call(&service, method, url, &[]).unwrap();
            assert_eq!(answer.status, 500, "{url}");
            assert!(answer.body.contains("backup directory"), "{url}: {}", answer.body);
            assert!(!replaced || answer.body.contains("mount it again"), "{url}: {}", answer.body);
        }
        let metrics = call(&service, "GET", "/metrics", &[]).unwrap();
        assert_eq!(metrics.status, 200);
        assert!(metrics.body.contains("\nchainweb_backup_directory_readable 0\n"), "{}", metrics.body);
        if replaced {
            assert_eq!(names(&node.backups()), [""; 0]);
            fs::remove_dir(node.backups()).unwrap();
        }
        fs::rename(node.root().join("elsewhere"), node.backups()).unwrap();
        assert_eq!(service.check_backup(&id).unwrap(), Some(Status::Done));
    }
    assert!(call(&service, "GET", "/metrics", &[]).unwrap().body.contains("\nchainweb_backup_directory_readable 1\n"));
    make_done(&service, ROCKSDB);
}

#[test]
fn identifiers_increase_although_the_clock_steps_back() {
    let node = Node::new();
    // Names of ten and sixteen digits are seconds and microseconds, no identifiers of ours.
    for name in ["9648665437", "9648665437000000", "99999999999999999999"] {
        fs::create_dir_all(node.backups().join(name)).unwrap();
    }
    let service = node.start();
    let before = now_ms();
    let first = make_done(&service, ROCKSDB);
    assert!((before..=now_ms()).contains(&millis(&first)), "{first}");
    assert_eq!(first.as_str().len(), 13);

    // A backup from a time when the clock was a day ahead.
    let tomorrow = now_ms() + 24 * 60 * 60 * 1000;
    fs::create_dir(node.backups().join(tomorrow.to_string())).unwrap();
    let second = make_done(&service, ROCKSDB);
    assert_eq!(millis(&second), tomorrow + 1);
    // With the same clock, the newest backup is deleted by hand, before and after a restart.
    fs::remove_dir(node.backups().join(tomorrow.to_string())).unwrap();
    delete_by_hand(&node.backups().join(second.as_str()));
    let third = make_done(&service, ROCKSDB);
    assert!(third > second, "{third} after {second}");
    delete_by_hand(&node.backups().join(third.as_str()));
    drop(service);
    let service = node.start();
    let fourth = make_done(&service, ROCKSDB);
    assert!(fourth > third, "{fourth} after {third}");
    drop(service);

    // Only the note has the last identifier. A note without an identifier, or an empty one, is ignored.
    fs::write(node.backups().join(".lock"), (tomorrow + 1_000_000).to_string()).unwrap();
    let service = node.start();
    let fifth = make_done(&service, ROCKSDB);
    assert_eq!(millis(&fifth), tomorrow + 1_000_001);
    drop(service);
    for note in ["", "nonsense", "-5", "18446744073709551615", "17 2", "\u{0}\u{0}\u{0}"] {
        fs::write(node.backups().join(".lock"), note).unwrap();
        let service = node.start();
        let id = make_done(&service, ROCKSDB);
        assert!(id > fifth && id.as_str().len() == 13, "{id} with the note {note:?}");
    }
    fs::remove_file(node.backups().join(".lock")).unwrap();
    assert!(make_done(&node.start(), ROCKSDB) > fifth);
}

#[test]
fn a_backup_directory_among_other_files_is_refused() {
    let node = Node::new();
    let id = make_done(&node.start(), ROCKSDB);
    let below = |path: &str| node.directory().join(path);
    symlink(below("0"), node.root().join("link")).unwrap();
    let by_link = node.root().join("link");
    let in_backup = node.backups().join(id.as_str()).join("0/b");
    let mine = "the node's own files";
    let before = tree(node.root());
    for (place, whose) in [
        (below(""), mine),
        (below("0"), mine),
        (below("0/rocksDb/b"), mine),
        (below("none/../0/b"), "after a directory that does not exist"),
        (below("0/none/../../b"), "after a directory that does not exist"),
        (below("../db/./0/../0/sqlite/b"), mine),
        (below(".chainweb-backup-pin/b"), mine),
        (below("0/.chainweb-backup-pin/b"), mine),
        (below("0/rocksDb/.chainweb-backup-pin"), mine),
        (by_link.clone(), mine),
        (by_link.join("sqlite/c"), mine),
        (in_backup, "lies within a backup"),
    ] {
        let refused = Service::start(config(&place), node.embedded()).err().unwrap();
        assert!(refused.kind() == Kind::Usage && refused.chain().contains(whose), "{place:?}: {}", refused.chain());
    }
    assert_eq!(tree(node.root()), before);
    // A `0` that is a link to the real one.
    let other = node.root().join("other");
    fs::create_dir(&other).unwrap();
    symlink(below("0"), other.join("0")).unwrap();
    for place in [other.join("0/rocksDb/b"), below("0/rocksDb/b"), below("0")] {
        let refused = Service::start(config(&place), Sources::directory(&other)).err().unwrap();
        assert!(refused.kind() == Kind::Usage && refused.chain().contains(mine), "{place:?}: {}", refused.chain());
    }
    // A directory whose name begins as one of theirs is not refused, nor is one beside a foreign backup.json.
    fs::write(node.root().join("backup.json"), "{}").unwrap();
    drop(Service::start(config(&below("0-backups/new")), node.embedded()).unwrap());
    // Beside the databases, for a volume that is mounted at `0`.
    let service = Service::start(config(&below("0/backups")), node.embedded()).unwrap();
    let id = make_done(&service, ROCKSDB);
    assert_eq!(whole(&below("0/backups").join(id.as_str())).0, BLOCKS);
}

#[test]
fn two_services_do_not_share_a_backup_directory() {
    let node = Node::new();
    let service = node.start();
    let id = make_done(&service, ROCKSDB);
    let refused = Service::start(node.config(), node.embedded()).err().unwrap();
    assert_eq!(refused.kind(), Kind::Busy);
    assert!(refused.chain().contains(node.backups().to_str().unwrap()), "{}", refused.chain());
    assert_eq!(service.check_backup(&id).unwrap(), Some(Status::Done));
    drop(service);
    assert_eq!(node.start().check_backup(&id).unwrap(), Some(Status::Done));
}

#[test]
fn a_job_beside_the_service_is_seen_and_not_disturbed() {
    let node = Node::new();
    let service = Service::start(node.paused_config(), node.embedded()).unwrap();
    let id = service.make_backup(PACT).unwrap();
    let refused = Service::start_beside(node.config(), node.embedded()).err().unwrap();
    assert_eq!(refused.kind(), Kind::Busy);
    assert!(refused.chain().contains(id.as_str()), "{}", refused.chain());
    node.go_on();
    assert_eq!(wait_end(&service, &id), Status::Done);

    fs::remove_file(node.root().join("go-on")).unwrap();
    let beside = Service::start_beside(node.paused_config(), node.embedded()).unwrap();
    let theirs = beside.make_backup(ROCKSDB).unwrap();
    // The service returns the identifier of the job of the other process, and knows its status.
    assert_eq!(service.make_backup(PACT).unwrap(), theirs);
    assert_eq!(service.check_backup(&theirs).unwrap(), Some(Status::InProgress));
    assert_eq!(service.details(&theirs).unwrap().unwrap().scope, Scope::Rocksdb);
    node.go_on();
    assert_eq!(wait_end(&service, &theirs), Status::Done);
    beside.finish();
    drop(beside);
    make_done(&service, PACT);
    assert_eq!(service.list_backups().unwrap().len(), 3);
}

#[test]
fn a_restart_in_the_middle_fails_the_backup_and_removes_its_data() {
    let node = Node::new();
    for pause_ms in [0, 5, 200] {
        let service = Service::start(node.paused_config(), node.embedded()).unwrap();
        let id = service.make_backup(PACT).unwrap();
        thread::sleep(Duration::from_millis(pause_ms));
        let begin = Instant::now();
        service.shutdown();
        assert!(begin.elapsed() < Duration::from_secs(5));
        assert_eq!(service.check_backup(&id).unwrap(), Some(Status::Failed));
        assert_eq!(record(&service, &id).reason.as_deref(), Some("shut down"));
        assert_eq!(service.failure_kind(&id), Some(Kind::Cancelled));
        assert_eq!(names(&node.backups().join(id.as_str())), [".use", "backup.json", "status"]);
        assert_eq!(service.make_backup(PACT).unwrap_err().kind(), Kind::ShuttingDown);
        assert_eq!(call(&service, "POST", "/make-backup", &[]).unwrap().status, 503);
        assert_eq!(call(&service, "GET", &format!("/check-backup/{id}"), &[]).unwrap().body, "backup-failed");
        service.shutdown();
        drop(service);
        let service = node.start();
        assert_eq!(service.check_backup(&id).unwrap(), Some(Status::Failed));
        service.finish();
        settled(&node.backups());
    }
}

#[test]
fn a_request_for_pact_where_there_is_none_is_refused_and_leaves_nothing() {
    let node = Node::with_chains(0);
    let service = node.start();
    let directory = node.directory().join("0/sqlite");
    let looked_in = directory.to_str().unwrap();
    for missing in [false, true] {
        if missing {
            fs::remove_dir(&directory).unwrap();
        }
        let refused = service.make_backup(PACT).unwrap_err();
        assert_eq!(refused.kind(), Kind::Usage);
        assert!(refused.chain().contains(looked_in), "{}", refused.chain());
        let answer = call(&service, "POST", "/make-backup?backupPact", &[]).unwrap();
        assert!(answer.status == 400 && answer.body.contains(looked_in), "{answer:?}");
    }
    assert_eq!(names(&node.backups()), [".lock", ".service"]);
    make_done(&service, ROCKSDB);
}

#[test]
fn a_source_that_is_not_there_is_refused_at_the_start() {
    let node = Node::new();
    let nowhere = chainweb_backup::Sources::directory(&node.root().join("nowhere"));
    let refused = Service::start(node.config(), nowhere).err().unwrap();
    assert_eq!(refused.kind(), Kind::Usage);
    assert!(!node.backups().exists());
    fs::write(node.root().join("file"), "").unwrap();
    let refused = Service::start(config(&node.root().join("file")), node.embedded()).err().unwrap();
    assert_eq!(refused.kind(), Kind::Usage);
    assert!(refused.chain().contains("--backup-directory"), "{}", refused.chain());
}

#[test]
fn the_blocks_that_a_node_will_replay_are_counted() {
    let mut node = Node::with_chains(2);
    (BLOCKS + 1..=BLOCKS + 4).for_each(|height| node.rocksdb_block(height));
    let service = node.start();
    let id = make_done(&service, PACT);
    assert_eq!(record(&service, &id).replay_blocks, Some(4));
    (BLOCKS + 1..=BLOCKS + 3).for_each(|height| node.pact_block(height));
    let id = make_done(&service, PACT);
    let found = record(&service, &id);
    assert_eq!((found.replay_blocks, found.rocksdb.unwrap().cut_height), (Some(1), Some(2 * (BLOCKS + 4))));
    assert_eq!(found.pact[1].block_height, Some(BLOCKS + 3));
    assert!(found.pact.iter().all(|p| p.block_hash.is_some()));
    let id = make_done(&service, ROCKSDB);
    assert_eq!(record(&service, &id).replay_blocks, None);
}

#[test]
fn a_database_without_the_tables_of_a_node_is_backed_up_just_the_same() {
    let mut node = Node::new();
    node.without_cuts();
    node.pact()[0].execute_batch("DROP TABLE BlockHistory").unwrap();
    let service = node.start();
    let id = make_done(&service, PACT);
    let found = record(&service, &id);
    assert_eq!((found.replay_blocks, found.rocksdb.unwrap().cut_height), (None, None));
    assert_eq!((found.pact[0].block_height, found.pact[0].block_hash.as_ref()), (None, None));
    // An entry that only looks like a cut is no reason to fail either.
    node.db().put(b"-CutHashes$short", b"x").unwrap();
    let id = make_done(&service, PACT);
    assert_eq!(record(&service, &id).rocksdb.unwrap().cut_height, None);
    drop(service);
    node.close();
}

#[test]
fn fewer_databases_than_last_time_is_a_warning() {
    let node = Node::with_chains(3);
    let service = node.start();
    make_done(&service, PACT);
    for suffix in ["", "-wal", "-shm"] {
        let path = format!("{}{suffix}", node.sqlite(1).display());
        fs::rename(&path, node.root().join(format!("away{suffix}"))).unwrap();
    }
    // A backup without Pact in between changes nothing.
    let id = make_done(&service, ROCKSDB);
    assert!(record(&service, &id).warnings.is_empty());
    let id = make_done(&service, PACT);
    let warnings = record(&service, &id).warnings;
    assert!(warnings.len() == 1 && warnings[0].contains("pact-v1-chain-1.sqlite"), "{warnings:?}");
    assert!(!warnings[0].contains("chain-0") && !warnings[0].contains("chain-2"), "{warnings:?}");
    let json = call(&service, "GET", "/list-backups", &[]).unwrap().body;
    assert!(json.contains("pact-v1-chain-1.sqlite are") || json.contains(&warnings[0]), "{json}");
    let id = make_done(&service, PACT);
    assert!(record(&service, &id).warnings.is_empty());
}

#[test]
fn without_room_a_backup_fails_with_the_figures_and_leaves_its_record_only() {
    let node = Node::new();
    let reserve_bytes = u64::MAX / 2;
    let config = chainweb_backup::Config { reserve_bytes: Some(reserve_bytes), ..node.config() };
    let service = Service::start(config, node.embedded()).unwrap();
    for request in [PACT, ROCKSDB] {
        let (id, reason) = make_failed(&service, request);
        let needed: u64 = if request.backup_pact { 1 } else { 0 };
        let figures: Vec<u64> = reason.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
        assert!(figures.contains(&reserve_bytes) && figures.len() == 3 && figures[0] >= needed, "{reason}");
        assert_eq!(service.failure_kind(&id), Some(Kind::NoSpace));
    }
    service.finish();
    assert_eq!(names(&node.backups()).len(), 4, "{:?}", names(&node.backups()));
    settled(&node.backups());
    node.check();
}

/// Directories that other programs made, by name; none may ever change.
fn plant_foreign(backups: &Path, ours: &BackupId) {
    let write = |path: &str, text: &str| {
        let path = backups.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let data = |id: &str| {
        write(&format!("{id}/0/rocksDb/CURRENT"), "MANIFEST-000001\n");
        write(&format!("{id}/0/rocksDb/000004.sst"), "data");
    };
    // Backups of the node's own API: done with Pact, running, and failed in the node's words.
    data("1648665437000");
    write("1648665437000/status", "backup-done");
    write("1648665437000/0/sqlite/pact-v1-chain-0.sqlite", "data");
    data("1648665437001");
    write("1648665437001/status", "backup-in-progress");
    data("1648665437002");
    write("1648665437002/status", "backup-in-progress");
    write("1648665437002/0/status", "backup-failed");
    data("1648665437003");
    write("1648665437003/0/status", "backup-failed");
    // Records that only look like ours: damaged, of a later format, with another identifier.
    let record = fs::read_to_string(backups.join(ours.as_str()).join("backup.json")).unwrap();
    let with_id = |id: &str| record.replace(ours.as_str(), id);
    data("1648665437004");
    write("1648665437004/status", "backup-done\n");
    write("1648665437004/backup.json", &with_id("1648665437004")[..40]);
    data("1648665437005");
    write("1648665437005/status", "backup-in-progress");
    write("1648665437005/backup.json", &with_id("1648665437005").replace("backup/1", "backup/2"));
    write("1648665437005/0.partial/rocksDb/CURRENT", "x");
    write("1648665437005/status.failed", "backup-failed");
    data("1648665437006");
    write("1648665437006/status", "backup-in-progress");
    write("1648665437006/backup.json", &record);
    // Ours, but its status is unknown.
    data("1648665437007");
    write("1648665437007/status", "backup-dne");
    write("1648665437007/backup.json", &with_id("1648665437007"));
    data("1648665437008");
    write("1648665437008/backup.json", &with_id("1648665437008"));
    // Not directories, not backups.
    write("1648665437009", "a file");
    fs::create_dir_all(backups.join("../outside/0.partial")).unwrap();
    write("../outside/status", "backup-in-progress");
    write("../outside/backup.json", &with_id("1648665437010"));
    symlink("../outside", backups.join("1648665437010")).unwrap();
    symlink("/nonexistent", backups.join("1648665437011")).unwrap();
    write("lost+found/x", "x");
    write("README.txt", "x");
    write("deleting-1648665437000/x", "x");
    write("1648665437/status", "backup-done");
}

#[test]
fn what_others_put_there_is_served_as_found_and_never_changed() {
    let node = Node::new();
    let service = node.start();
    let ours = make_done(&service, PACT);
    drop(service);
    let before_planting = names(&node.backups());
    plant_foreign(&node.backups(), &ours);
    let planted: Vec<String> = names(&node.backups()).into_iter().filter(|n| !before_planting.contains(n)).collect();
    let look = || -> Vec<Tree> {
        let outside = tree(&node.root().join("outside"));
        planted.iter().map(|name| tree(&node.backups().join(name))).chain([outside]).collect()
    };
    let before = look();
    assert_eq!(planted.len(), 16, "{planted:?}");

    let expected = [
        ("1648665437000", Some((Status::Done, Scope::RocksdbAndPact))),
        ("1648665437001", Some((Status::InProgress, Scope::Rocksdb))),
        ("1648665437002", Some((Status::InProgress, Scope::Rocksdb))),
        ("1648665437003", None),
        ("1648665437004", Some((Status::Done, Scope::Rocksdb))),
        ("1648665437005", Some((Status::InProgress, Scope::Rocksdb))),
        ("1648665437006", Some((Status::InProgress, Scope::Rocksdb))),
        ("1648665437009", None),
        ("1648665437010", None),
        ("1648665437011", None),
        ("1648665437", Some((Status::Done, Scope::Rocksdb))),
        ("README", None),
    ];
    let unknown = ["1648665437007", "1648665437008"];
    for _ in 0..2 {
        let service = node.start();
        make_done(&service, PACT);
        for (id, expected) in expected {
            let id = BackupId::parse(id).unwrap();
            let found = service.details(&id).unwrap().map(|d| (d.status, d.scope));
            assert_eq!((service.check_backup(&id).unwrap(), found), (expected.map(|e| e.0), expected), "{id}");
            let answer = call(&service, "GET", &format!("/check-backup/{id}"), &[]).unwrap();
            assert_eq!(answer.header("x-backup-scope"), expected.map(|e| e.1.word()));
            assert!(
                service.details(&id).unwrap().is_none_or(|d| d.foreign && d.record.is_none() && d.progress.is_none())
            );
        }
        for id in unknown {
            let answer = call(&service, "GET", &format!("/check-backup/{id}"), &[]).unwrap();
            let error = service.details(&BackupId::parse(id).unwrap()).unwrap_err();
            assert_eq!((answer.status, error.kind()), (500, Kind::Damaged), "{id}");
        }
        assert_eq!(service.list_backups().unwrap_err().kind(), Kind::Damaged);
        let aside = node.root().join("aside");
        fs::create_dir_all(&aside).unwrap();
        unknown.iter().for_each(|id| fs::rename(node.backups().join(id), aside.join(id)).unwrap());
        let listed = service.list_backups().unwrap();
        unknown.iter().for_each(|id| fs::rename(aside.join(id), node.backups().join(id)).unwrap());
        let foreign: BTreeSet<_> = listed.iter().filter(|b| b.foreign).map(|b| b.id.as_str()).collect();
        let known: BTreeSet<_> = expected.iter().filter(|(_, e)| e.is_some()).map(|(id, _)| *id).collect();
        assert_eq!(foreign, known);
        // A foreign backup in progress does not prevent a job, and is not treated as one of ours.
        assert_eq!(make(&service, ROCKSDB).1, Status::Done);
        service.finish();
        drop(service);
        assert_eq!(look(), before);
    }
}
