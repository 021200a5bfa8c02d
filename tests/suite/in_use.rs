//! Several processes work on one backup at once: a backup that is in use is not deleted, one that is deleted is gone for all, and work
//! that can wait gives way.

use std::fs;
use std::path::Path;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use chainweb_backup::{
    BackupId, Control, Kind, Policy, RestoreOptions, Verdict, delete_backup, gate, pin_backup, prune_backups,
    restore_backup, sum_backup,
};

use crate::fixture::{Node, PACT, ROCKSDB, make_done, names, restore_to};

const KEEP_ONE: Policy = Policy { keep_last: 1, keep_daily: 0, keep_weekly: 0, keep_monthly: 0 };

/// How long a test waits at most.
const DEADLINE: Duration = Duration::from_secs(30);

fn verdicts(backups: &Path) -> Vec<(BackupId, Verdict)> {
    let judged = prune_backups(backups, KEEP_ONE).unwrap();
    judged.into_iter().map(|(backup, verdict)| (backup.id, verdict)).collect()
}

#[test]
fn four_prunes_at_once_delete_each_backup_once_and_all_succeed() {
    let node = Node::new();
    let backups = node.backups();
    for _ in 0..4 {
        let service = node.start();
        (0..6).for_each(|_| drop(make_done(&service, ROCKSDB)));
        drop(service);
        let all: Vec<_> = thread::scope(|scope| {
            let prunes: Vec<_> = (0..4).map(|_| scope.spawn(|| verdicts(&backups))).collect();
            prunes.into_iter().flat_map(|prune| prune.join().unwrap()).collect()
        });
        assert!(all.iter().all(|(_, verdict)| *verdict != Verdict::Failed), "{all:?}");
        let of = |id: &str| all.iter().filter(|(other, v)| other.as_str() == id && *v == Verdict::Delete).count();
        let left: Vec<String> = names(&backups).into_iter().filter(|name| !name.starts_with('.')).collect();
        assert_eq!(left.len(), 1, "{all:?}");
        assert!(all.iter().all(|(id, _)| of(id.as_str()) == usize::from(id.as_str() != left[0])), "{all:?}");
    }
}

#[test]
fn a_backup_that_is_pinned_or_removed_while_others_are_pruned_does_not_stop_that() {
    let node = Node::new();
    let service = node.start();
    let [first, second, third, last] = [(); 4].map(|()| make_done(&service, ROCKSDB));
    drop(service);
    let (backups, pinned, removed) = (node.backups(), second.clone(), third.clone());
    gate::at_point(&node.backups(), move |point| {
        if point == "prune-judged" {
            pin_backup(&backups, pinned.as_str()).unwrap();
            fs::remove_dir_all(backups.join(removed.as_str())).unwrap();
        }
    });
    let judged = verdicts(&node.backups());
    gate::forget_points(&node.backups());
    let expected = [
        (last, Verdict::Keep("last good")),
        (third, Verdict::Gone),
        (second.clone(), Verdict::Keep("pinned")),
        (first, Verdict::Delete),
    ];
    assert_eq!(judged, expected);
    assert_eq!(names(&node.backups()).iter().filter(|name| !name.starts_with('.')).count(), 2);
    let error = delete_backup(&node.backups(), second.as_str()).unwrap_err();
    assert_eq!(error.kind(), Kind::Refused, "{}", error.chain());
}

/// An operator copied the backup here without its `.use`.
#[test]
fn a_backup_without_a_lock_file_is_not_deleted_while_it_is_restored() {
    let mut node = Node::new();
    let service = node.start();
    let id = make_done(&service, PACT);
    drop(service);
    node.close();
    fs::remove_file(node.backups().join(id.as_str()).join(".use")).unwrap();
    let (backups, target) = (node.backups(), node.directory());
    let (deletes, deleted) = channel();
    gate::at_point(&target, move |point| {
        if point == "restore-locked" {
            deletes.send(delete_backup(&backups, "latest").or_else(|_| delete_backup(&backups, id.as_str()))).unwrap();
        }
    });
    let options = RestoreOptions { replace: true, ..restore_to(&target) };
    restore_backup(&node.backups(), "latest", options, &Control::default()).unwrap();
    gate::forget_points(&target);
    let error = deleted.recv_timeout(DEADLINE).unwrap().unwrap_err();
    assert_eq!(error.kind(), Kind::Busy, "{}", error.chain());
}

#[test]
fn checksums_give_way_to_a_delete() {
    let node = Node::new();
    let service = node.start();
    let id = make_done(&service, PACT);
    drop(service);
    let backups = node.backups();
    // At this limit the checksums would take a day.
    let control = Control::with_limit(Some(1));
    thread::scope(|scope| {
        let summing = scope.spawn(|| sum_backup(&backups, id.as_str(), &control));
        while control.bytes().0 == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        delete_backup(&backups, id.as_str()).unwrap();
        let error = summing.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), Kind::Cancelled, "{}", error.chain());
    });
    assert!(!backups.join(id.as_str()).exists());
}
