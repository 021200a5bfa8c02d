//! Pact ahead of RocksDB: how it is noticed, how often RocksDB is captured again, what the record says, and what is copied on
//! another file system.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use chainweb_backup::gate::{Plan, arm, disarm};
use chainweb_backup::{BackupId, Phase, Record, Service, Status};
use data_encoding::HEXLOWER;
use serde_json::Value;

use crate::fixture::{
    BLOCKS, Hash, Node, PACT, ROCKSDB, config, hash, make_done, names, record, scratch_on_disk, skip, wait_end,
    wait_until, whole,
};

/// A block of mainnet, and another hash.
const HEX: &str = "9346a7d2a10e46eb2a420f598caaf16bed01a34fa141560b5ea5a2e4b1f18379";
const OTHER: &str = "0046a7d2a10e46eb2a420f598caaf16bed01a34fa141560b5ea5a2e4b1f18379";

fn captures_count(record: &Record) -> u32 {
    record.rocksdb.as_ref().unwrap().captures_count
}

/// Makes a backup; after the first capture, RocksDB gets blocks up to `height`.
fn made_while_rocksdb_grows(node: &Node, service: &Service, from: u64, height: u64) -> BackupId {
    let id = service.make_backup(PACT).unwrap();
    let captured = || service.details(&id).unwrap().unwrap().progress.is_some_and(|p| p.phase == Phase::Heights);
    wait_until("RocksDB is captured once", captured);
    (from..=height).for_each(|height| node.rocksdb_block(height));
    assert_eq!(wait_end(service, &id), Status::Done);
    id
}

fn check_warning(record: &Record, captures: u32, what: &str) {
    let warnings = &record.warnings;
    assert!(warnings.len() == 1 && warnings[0].contains(what), "{warnings:?}");
    let promise = "Pact is to be at or behind RocksDB in a backup, but pact is ";
    let then = format!("after {captures} capture(s) of RocksDB: the node must rewind Pact at its start");
    assert!(warnings[0].starts_with(promise) && warnings[0].contains(&then), "{warnings:?}");
    assert_eq!(captures_count(record), captures);
}

#[test]
fn rocksdb_is_captured_again_while_pact_is_a_little_ahead() {
    // Five blocks ahead will not go away: RocksDB is captured once.
    let node = Node::ahead();
    let service = node.start();
    let id = make_done(&service, PACT);
    check_warning(&record(&service, &id), 1, "5 blocks ahead of rocksdb, at height 35, on chain 0");
    assert_eq!(whole(&node.backups().join(id.as_str())), (BLOCKS, vec![BLOCKS + 5]));
    // Without Pact there is nothing to compare.
    let id = make_done(&service, ROCKSDB);
    assert_eq!(captures_count(&record(&service, &id)), 1);
    // A little ahead, and RocksDB does not catch up.
    (BLOCKS + 1..=BLOCKS + 3).for_each(|height| node.rocksdb_block(height));
    let id = make_done(&service, PACT);
    check_warning(&record(&service, &id), 2, "2 blocks ahead");
    // RocksDB catches up in time.
    let id = made_while_rocksdb_grows(&node, &service, BLOCKS + 4, BLOCKS + 7);
    let near = record(&service, &id);
    assert_eq!((captures_count(&near), near.replay_blocks), (2, Some(2)));
    assert!(near.warnings.is_empty(), "{:?}", near.warnings);
    assert_eq!(whole(&node.backups().join(id.as_str())), (BLOCKS + 7, vec![BLOCKS + 5]));
}

/// As long as the distance shrinks, RocksDB is captured again.
#[test]
fn rocksdb_is_captured_as_long_as_the_distance_shrinks() {
    let mut node = Node::new();
    (BLOCKS + 1..=BLOCKS + 2).for_each(|height| node.pact_block(height));
    let service = node.start();
    let id = made_while_rocksdb_grows(&node, &service, BLOCKS + 1, BLOCKS + 1);
    check_warning(&record(&service, &id), 3, "1 blocks ahead");
}

/// A node that was killed between its two commits may continue with another block of the same height.
#[test]
fn another_block_of_the_same_height_is_seen() {
    let node = Node::new();
    let set_hash = |hash: Hash| {
        let update = "UPDATE BlockHistory SET hash = ?1 WHERE blockheight = ?2";
        node.pact()[0].execute(update, (hash, BLOCKS.cast_signed())).unwrap();
    };
    let service = node.start();
    set_hash(*b"hash-is-000000000000000000000030");
    let id = make_done(&service, PACT);
    check_warning(&record(&service, &id), 2, "on a block that rocksdb does not have (686173682d69732d3030");
    set_hash(hash(BLOCKS));
    let id = make_done(&service, PACT);
    assert_eq!((captures_count(&record(&service, &id)), record(&service, &id).warnings.len()), (1, 0));
}

/// With the tables and hashes of a real node: also below the cut. A block of another branch is as good as any other if RocksDB has
/// it.
#[test]
fn a_block_that_rocksdb_never_had_is_seen_at_every_height() {
    let node = Node::new();
    let bytes = |hash: &str| -> Hash { HEXLOWER.decode(hash.as_bytes()).unwrap().try_into().unwrap() };
    let header = |hash: &str| [b"-BlockHeader/0/header$".as_slice(), &BLOCKS.to_be_bytes(), &bytes(hash)].concat();
    let cut = |height: u64| node.only_cut("mainnet01", &[(0, height, bytes(HEX))]);
    let tip = |hash: &str| {
        let update = format!("UPDATE BlockHistory SET hash = x'{hash}' WHERE blockheight = {BLOCKS}");
        node.pact()[0].execute_batch(&update).unwrap();
    };
    cut(BLOCKS);
    let service = node.start();
    let backup = || {
        let id = make_done(&service, PACT);
        record(&service, &id)
    };
    // RocksDB has no header: only the cut is known.
    tip(HEX);
    assert_eq!(backup().warnings, [""; 0]);
    tip(OTHER);
    check_warning(&backup(), 2, &format!("on a block that rocksdb does not have ({OTHER})"));
    node.db().put(header(HEX), "header").unwrap();
    check_warning(&backup(), 2, "on a block that rocksdb does not have");
    cut(BLOCKS + 2);
    check_warning(&backup(), 2, "on a block that rocksdb does not have");
    // The block was abandoned, but RocksDB has it: a node can rewind it.
    node.db().put(header(OTHER), "header").unwrap();
    let found = backup();
    assert_eq!((found.warnings.len(), captures_count(&found), found.replay_blocks), (0, 1, Some(2)));
}

/// The files of the RocksDB in a backup: name, and how each was brought.
fn methods(backup: &Path) -> Vec<(String, String)> {
    let manifest: Value = serde_json::from_slice(&fs::read(backup.join("manifest.json")).unwrap()).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let entries = manifest["files"].as_array().unwrap().iter().map(|e| (text(&e["path"]), text(&e["method"])));
    entries.filter(|(path, _)| path.ends_with(".sst")).collect()
}

/// A capture that is discarded is the earlier backup of the next one: no SST is copied twice, and nothing of it is left.
#[test]
fn a_discarded_capture_is_used_on_another_file_system() {
    let mut node = Node::new();
    let other = scratch_on_disk();
    if other.path().metadata().unwrap().dev() == node.root().metadata().unwrap().dev() {
        return skip("there is no other file system");
    }
    node.pact_block(BLOCKS + 1);
    let backups = other.path().join("backups");
    for expected in ["copied", "reused"] {
        let service = Service::start(config(&backups), node.embedded()).unwrap();
        arm(Plan { root: backups.clone(), ..Plan::default() });
        let id = make_done(&service, PACT);
        service.finish();
        let log = disarm(&backups).log;
        let found = record(&service, &id);
        check_warning(&found, 2, "1 blocks ahead");
        let backup = backups.join(id.as_str());
        let tables = methods(&backup);
        assert!(tables.len() >= 2 && tables.iter().all(|(_, method)| method == expected), "{tables:?}");
        let is_table = |path: &Path| path.extension().is_some_and(|e| e == "sst");
        let copied: Vec<_> = log.iter().filter(|(what, path)| *what == "copy" && is_table(path)).collect();
        assert_eq!(copied.len(), if expected == "copied" { tables.len() } else { 0 }, "{copied:?}");
        let part = found.rocksdb.unwrap();
        assert_eq!(part.copied_bytes == part.bytes, expected == "copied");
        for (path, _) in &tables {
            let names_count = backup.join(path).metadata().unwrap().nlink();
            assert_eq!(names_count, if expected == "copied" { 1 } else { 2 }, "{path}");
            // It was synced by the discarded capture, or by the backup before; if that is not known, it is synced again.
            let partial = backup.join("0.partial").join(&path[2..]);
            let synced = log.iter().any(|(what, path)| *what == "fsync" && *path == partial);
            assert!(synced || expected == "reused", "{path} in {log:#?}");
        }
        assert_eq!(names(&backup), [".use", "0", "backup.json", "manifest.json", "starts.json", "status"]);
        assert_eq!(whole(&backup), (BLOCKS, vec![BLOCKS + 1]));
    }
}
