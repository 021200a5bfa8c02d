//! The order of the operations of one backup, from the log of the fault gate: data is synced before it gets its name, and has its name
//! before the status is "done"; the status is "failed" before the data is removed. A power cut, which cannot be made here, keeps only
//! what was synced.

use std::fs;
use std::path::{Path, PathBuf};

use chainweb_backup::gate::{Plan, arm, disarm};
use chainweb_backup::{Service, Sources, Status};
use serde_json::Value;

use crate::fixture::{Node, PACT, make, paths, skip};

type Log = [(&'static str, PathBuf)];

/// The operations of one backup and of the sweep after it, and the backup's directory.
fn log_of(node: &Node, sources: Sources, fail_at: &[u64], expected: Status) -> (Vec<(&'static str, PathBuf)>, PathBuf) {
    let service = Service::start(node.config(), sources).unwrap();
    arm(Plan { root: node.backups(), fail_at: fail_at.to_vec(), ..Plan::default() });
    let (id, status) = make(&service, PACT);
    service.finish();
    let log = disarm(&node.backups()).log;
    assert_eq!(status, expected, "{log:#?}");
    (log, node.backups().join(id.as_str()))
}

/// The place of an operation in the log, which must have it once.
fn at(log: &Log, operation: &str, path: &Path) -> usize {
    let found: Vec<usize> = (0..log.len()).filter(|n| log[*n].0 == operation && log[*n].1 == path).collect();
    assert_eq!(found.len(), 1, "{operation} {} in {log:#?}", path.display());
    found[0]
}

/// The place of the last of these operations on such a path; 0 if there is none.
fn last(log: &Log, operations: &[&str], path: impl Fn(&Path) -> bool) -> usize {
    log.iter().rposition(|(operation, p)| operations.contains(operation) && path(p)).unwrap_or(0)
}

/// The commit protocol, on the log of a good backup.
fn check_done(log: &Log, backup: &Path) {
    let id = backup.file_name().unwrap().to_str().unwrap();
    let backups = backup.parent().unwrap();
    let (creating, partial) = (backups.join(format!(".creating-{id}")), backup.join("0.partial"));

    // The identifier is noted first; the directory is complete and synced before it gets its name, and the name is
    // synced before anything is put into it.
    let noted = at(log, "fsync", &backups.join(".lock"));
    assert!(noted < at(log, "mkdir", &creating), "{log:#?}");
    let born = at(log, "rename", &creating);
    for name in ["backup.json", "status.failed", "status"] {
        assert!(at(log, "fsync", &creating.join(name)) < at(log, "fsync-dir", &creating));
    }
    assert!(at(log, "fsync-dir", &creating) < born);
    assert_eq!(at(log, "fsync-dir", backups), born + 1, "{log:#?}");
    let first_inside = log.iter().position(|(_, path)| path.starts_with(backup)).unwrap();
    assert!(first_inside > born + 1, "{log:#?}");

    // Every file and every directory is synced before the data gets its name, also links, which another program wrote. (On a
    // file system in memory the kernel is not asked whether that is needed.)
    let named = at(log, "rename", &partial);
    let manifest: Value = serde_json::from_slice(&fs::read(backup.join("manifest.json")).unwrap()).unwrap();
    let (mut files_count, mut directories_count) = (0, 0);
    let entries = manifest["files"].as_array().unwrap();
    assert!(entries.iter().filter(|entry| entry["method"] == "linked").count() >= 2);
    for entry in entries {
        let file = partial.join(entry["path"].as_str().unwrap().strip_prefix("0/").unwrap());
        let synced = last(log, &["fsync"], |p| p == file);
        let written =
            last(log, &["create", "copy", "library", "truncate", "link"], |p| p == file || Some(p) == file.parent());
        assert!(written <= synced && synced > born && synced < named, "{} in {log:#?}", file.display());
        files_count += 1;
    }
    for directory in paths(&backup.join("0")).into_iter().filter(|p| p.is_dir()) {
        let directory = partial.join(directory.strip_prefix(backup.join("0")).unwrap());
        let synced = at(log, "fsync-dir", &directory);
        let changes = ["create", "copy", "link", "library", "mkdir", "unlink", "rename"];
        let inside = |p: &Path| p.parent() == Some(&directory) || (p == directory && directory != partial);
        let changed = last(&log[..named], &changes, inside);
        assert!(changed > born && changed < synced && synced < named, "{} in {log:#?}", directory.display());
        directories_count += 1;
    }
    assert!(files_count >= 5 && directories_count == 3, "{files_count} files and {directories_count} directories");

    // The record and the future status are synced before that. The record and the data have their names, and the directory is
    // synced, before the status gets its name.
    let explained = at(log, "rename", &backup.join(".backup.json.tmp"));
    let decided = at(log, "rename", &backup.join(".status.tmp"));
    for name in ["manifest.json", ".backup.json.tmp", ".status.tmp"] {
        assert!(at(log, "fsync", &backup.join(name)) < explained, "{name} in {log:#?}");
    }
    assert!(explained < named && named < decided, "{log:#?}");
    let synced = |between: std::ops::Range<usize>| last(&log[between], &["fsync-dir"], |p| p == backup) > 0;
    assert!(synced(named..decided) && synced(decided..log.len()), "{log:#?}");
    assert_eq!(last(log, &["rename"], |_| true), decided, "the status is not the last rename: {log:#?}");
    let after: Vec<_> = log[decided + 2..].iter().collect();
    assert_eq!(after, [&("unlink", backup.join("status.failed"))]);
}

#[test]
fn a_good_backup_is_synced_before_it_is_named_and_named_before_it_is_done() {
    // On a disk, links that the kernel knows to be durable are not synced.
    let Some(mut node) = Node::in_memory() else { return skip("there is no room in memory") };
    let (log, backup) = log_of(&node, node.embedded(), &[], Status::Done);
    check_done(&log, &backup);
    node.close();
    let (log, backup) = log_of(&node, Sources::directory(&node.directory()), &[], Status::Done);
    check_done(&log, &backup);
}

#[test]
fn a_failed_backup_is_called_failed_before_its_data_goes() {
    let node = Node::new();
    let undisturbed = log_of(&node, node.embedded(), &[], Status::Done);
    let library = undisturbed.0.iter().position(|(_, p)| p.ends_with("0.partial/rocksDb")).unwrap();
    for fail_at in [library + 1, undisturbed.0.len() - 1] {
        let (log, backup) = log_of(&node, node.embedded(), &[fail_at as u64], Status::Failed);
        let failed = at(&log, "rename", &backup.join("status.failed"));
        assert_eq!(log[failed + 1], ("fsync-dir", backup.clone()));
        let explained = failed + last(&log[failed..], &["rename"], |p| p == backup.join(".backup.json.tmp"));
        assert!(failed < explained);
        let data = if fail_at == library + 1 { "0.partial" } else { "0" };
        let taken = at(&log, "rename", &backup.join(data));
        assert!(explained < taken, "{log:#?}");
        let in_garbage = |p: &Path| p.to_string_lossy().contains("/.deleting-");
        let first_removed = log.iter().position(|(_, p)| in_garbage(p)).unwrap();
        assert!(taken < first_removed, "{log:#?}");
        let below_id = |p: &Path| p.starts_with(backup.join("0"));
        assert!(last(&log, &["unlink", "rmdir"], below_id) == 0, "data is removed below its name: {log:#?}");
    }
}
