//! The heights: what is read from the newest cut, the newest block of Pact in every form of its tables, and whether Pact has all blocks.

use std::fs;

use chainweb_backup::chainweb::pact::History;
use chainweb_backup::{
    BlockHeights, Control, PactPart, Record, Service, rehearse_restore, restore_backup, verify_backup,
};
use data_encoding::HEXLOWER;
use serde_json::Value;

use crate::fixture::{BLOCKS, DEEP, INSTANCE, Node, PACT, call, copy_tree, hash, make_done, record, restore_to};

fn backup(service: &Service) -> Record {
    record(service, &make_done(service, PACT))
}

fn deep_faults(node: &Node) -> usize {
    let (_, verification) = verify_backup(&node.backups(), "latest", DEEP, &Control::default()).unwrap();
    verification.faults.len()
}

/// The height of a cut is a sum; the record has the heights of its blocks beside it.
#[test]
fn a_record_has_the_height_of_the_cut_and_those_of_its_blocks() {
    let node = Node::with_chains(3);
    let service = node.start();
    let even = backup(&service);
    let rocksdb = even.rocksdb.unwrap();
    assert_eq!(rocksdb.cut_height, Some(3 * BLOCKS));
    assert_eq!(rocksdb.block_heights, Some(BlockHeights { lowest: BLOCKS, highest: BLOCKS }));
    assert_eq!(even.versions.chainweb.as_deref(), Some(INSTANCE));

    let tips = [(0, BLOCKS + 1), (1, BLOCKS), (2, BLOCKS + 2)].map(|(chain, height)| (chain, height, hash(height)));
    node.only_cut("mainnet01", &tips);
    let uneven = backup(&service);
    let rocksdb = uneven.rocksdb.unwrap();
    assert_eq!(rocksdb.cut_height, Some(3 * BLOCKS + 3));
    assert_eq!(rocksdb.block_heights, Some(BlockHeights { lowest: BLOCKS, highest: BLOCKS + 2 }));
    assert_eq!((uneven.versions.chainweb.as_deref(), uneven.replay_blocks), (Some("mainnet01"), Some(2)));
    assert_eq!(deep_faults(&node), 0);

    let list: Value = serde_json::from_str(&call(&service, "GET", "/list-backups?limit=1", &[]).unwrap().body).unwrap();
    let listed = &list[0]["record"];
    assert_eq!(listed["rocksdb"]["cut_height"], 3 * BLOCKS + 3);
    assert_eq!(listed["rocksdb"]["block_heights"], serde_json::json!({ "lowest": BLOCKS, "highest": BLOCKS + 2 }));
    assert_eq!(listed["versions"]["chainweb"], "mainnet01");
}

/// An entry of an unknown form in the table of cuts is a warning, and no reason to fail.
#[test]
fn a_cut_of_another_form_has_a_height_and_a_warning() {
    let node = Node::new();
    let service = node.start();
    for (rest, value) in [(64, "{}"), (64, "x"), (40, "{}"), (0, "")] {
        let key = [b"-CutHashes$".as_slice(), &1_000_000_u64.to_be_bytes(), &vec![0; rest]].concat();
        node.db().put(&key, value).unwrap();
        let found = backup(&service);
        let rocksdb = found.rocksdb.unwrap();
        assert_eq!((rocksdb.cut_height, rocksdb.block_heights, found.versions.chainweb), (Some(1_000_000), None, None));
        assert_eq!((found.replay_blocks, found.warnings.len()), (None, 1));
        assert!(found.warnings[0].contains("has a form that is not known (its "), "{:?}", found.warnings);
        assert_eq!(deep_faults(&node), 0);
        node.db().delete(&key).unwrap();
    }
    assert!(backup(&service).warnings.is_empty());
}

const HISTORY2: &str = "CREATE TABLE BlockHistory2 (blockheight UNSIGNED BIGINT NOT NULL, endingtxid UNSIGNED BIGINT NOT NULL, \
                        hash BLOB NOT NULL, payloadhash BLOB NOT NULL, \
                        CONSTRAINT blockHeightConstraint UNIQUE (blockheight), CONSTRAINT hashConstraint UNIQUE (hash))";
const CONSENSUS: &str = "CREATE TABLE ConsensusState (blockheight UNSIGNED BIGINT NOT NULL, hash BLOB NOT NULL, \
                         payloadhash BLOB NOT NULL, safety TEXT NOT NULL, \
                         CONSTRAINT safetyConstraint UNIQUE (safety) ON CONFLICT REPLACE)";

/// The tables of a node of today, of one of the branch evm/main, and each step between the two.
#[test]
fn the_newest_block_is_found_in_every_form_of_the_tables() {
    let node = Node::new();
    let service = node.start();
    let change = |statement: &str| node.pact()[0].execute_batch(statement).unwrap();
    let check = |height: Option<u64>, what: &str| {
        let PactPart { block_height, block_hash, .. } = backup(&service).pact.remove(0);
        let expected = height.map(|height| HEXLOWER.encode(&hash(height)));
        assert_eq!((block_height, block_hash), (height, expected), "{what}");
        assert_eq!(deep_faults(&node), 0, "{what}");
    };
    let migrate = |which: &str| {
        let columns = "blockheight, endingtxid, hash";
        change(&format!(
            "INSERT INTO BlockHistory2 SELECT {columns}, zeroblob(32) FROM BlockHistory WHERE blockheight {which}"
        ));
    };
    let state = |height: u64, safety: &str| {
        let hash = HEXLOWER.encode(&hash(height));
        change(&format!("INSERT INTO ConsensusState VALUES ({height}, x'{hash}', zeroblob(32), '{safety}')"));
    };
    check(Some(BLOCKS), "BlockHistory");
    change(HISTORY2);
    change(CONSENSUS);
    state(BLOCKS - 20, "final");
    state(BLOCKS - 10, "safe");
    check(Some(BLOCKS), "BlockHistory, before the migration");
    migrate("<= 10");
    check(Some(BLOCKS), "the migration is interrupted");
    migrate("> 10");
    check(Some(BLOCKS), "both tables are whole");
    let row = (BLOCKS.cast_signed() + 1, 93_i64, hash(BLOCKS + 1), [0_u8; 32]);
    node.only_cut(INSTANCE, &[(0, BLOCKS + 1, hash(BLOCKS + 1))]);
    node.pact()[0].execute("INSERT INTO BlockHistory2 VALUES (?, ?, ?, ?)", row).unwrap();
    check(Some(BLOCKS + 1), "BlockHistory2 goes on");
    change("DROP TABLE BlockHistory");
    check(Some(BLOCKS + 1), "BlockHistory2");
    change("DELETE FROM BlockHistory2");
    check(Some(BLOCKS - 10), "ConsensusState");
    change("DELETE FROM ConsensusState");
    check(None, "no row");
}

fn judged(node: &Node, word: &str) -> (History, usize) {
    let target = node.root().join("elsewhere");
    let options = restore_to(&target);
    let (_, told) = rehearse_restore(&node.backups(), word, options, &Control::default()).unwrap();
    (told.pact_history, told.flags.len())
}

/// Makes the backup one that a node's own API could have made.
fn without_record(node: &Node, id: &str, word: &str) {
    let to = node.backups().join(word);
    fs::create_dir_all(to.join("0")).unwrap();
    copy_tree(&node.backups().join(id).join("0"), &to.join("0"));
    fs::write(to.join("status"), "backup-done").unwrap();
}

/// Chain 10 begins at another height on each network.
#[test]
fn the_history_of_pact_is_judged_by_the_version_in_the_cut() {
    const LATE: u64 = 852_054;
    let node = Node::with_chains(11);
    for (chain, pact) in node.pact().iter().enumerate() {
        let to = if chain == 10 { LATE.cast_signed() - 1 } else { -1 };
        pact.execute("UPDATE BlockHistory SET blockheight = blockheight + ?", [to]).unwrap();
    }
    let service = node.start();
    let tips: Vec<_> = (0..11).map(|chain| (chain, LATE + 100, hash(LATE + 100))).collect();
    let make = |instance: &str| {
        node.only_cut(instance, &tips);
        make_done(&service, PACT)
    };
    let mainnet = make("mainnet01");
    assert_eq!(judged(&node, mainnet.as_str()), (History::Whole, 0));
    for (instance, expected) in [
        ("testnet04", (History::Compacted, 1)),
        ("testnet06", (History::Compacted, 1)),
        ("stoa", (History::Unknown, 0)),
        (INSTANCE, (History::Unknown, 0)),
    ] {
        assert_eq!(judged(&node, make(instance).as_str()), expected, "{instance}");
    }
    // Without a record, the cut in RocksDB names the version; without a cut, it is unknown.
    without_record(&node, mainnet.as_str(), "1500000000000");
    assert_eq!(judged(&node, "1500000000000"), (History::Whole, 0));
    node.without_cuts();
    let cutless = make_done(&service, PACT);
    assert_eq!(record(&service, &cutless).versions.chainweb, None);
    without_record(&node, cutless.as_str(), "1500000000001");
    for word in [cutless.as_str(), "1500000000001"] {
        assert_eq!(judged(&node, word), (History::Unknown, 0), "{word}");
    }
    // Without its first block, a node of mainnet needs the flag.
    node.pact()[10].execute("DELETE FROM BlockHistory WHERE blockheight = ?", [LATE.cast_signed()]).unwrap();
    let compacted = make("mainnet01");
    assert_eq!(judged(&node, compacted.as_str()), (History::Compacted, 1));
    let target = node.root().join("restored");
    let options = restore_to(&target);
    // A node does not start from it, because the blocks of the cut are missing. By its identifier it is restored nevertheless.
    let (_, restored) = restore_backup(&node.backups(), compacted.as_str(), options, &Control::default()).unwrap();
    assert_eq!(restored.pact_history, History::Compacted);
}
