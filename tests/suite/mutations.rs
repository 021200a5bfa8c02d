//! Seeded mutations of everything that is parsed: our JSON files and checksums in a real backup, logs of RocksDB and SQLite,
//! configuration files, heads of requests. Nothing panics, and a changed file is never reported as unchanged.
//!
//! Each loop makes a fixed number of cases; `CHAINWEB_BACKUP_MUTATION_SECONDS` makes it go on for that long
//! (`scripts/soak.sh mutations`), and `CHAINWEB_BACKUP_SEED` chooses the cases.

use std::fs;
use std::net::Shutdown;
use std::path::Path;
use std::time::{Duration, Instant};

use chainweb_backup::testing::{fragments, live_files, measure, records, wal_frames};
use chainweb_backup::{
    BackupId, Control, Depth, Kind, Limits, VerifyOptions, check_backup_in, list_backups_in, parse_file, sum_backup,
    verify_backup,
};

use crate::client::Client;
use crate::fixture::{DEEP, Node, PACT, copy_tree, make_done, scratch};
use crate::listener::{healthy, server};

/// Whether a loop goes on after `done` cases.
pub struct Loop {
    least: u64,
    until: Instant,
    pub done: u64,
    pub random: fastrand::Rng,
}

impl Loop {
    pub fn of(least: u64) -> Loop {
        let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
        let seed = number("CHAINWEB_BACKUP_SEED").unwrap_or(7);
        let until = Instant::now() + Duration::from_secs(number("CHAINWEB_BACKUP_MUTATION_SECONDS").unwrap_or(0));
        Loop { least, until, done: 0, random: fastrand::Rng::with_seed(seed) }
    }

    pub fn next(&mut self) -> bool {
        self.done += 1;
        self.done <= self.least || Instant::now() < self.until
    }
}

/// Changes bytes in one to three ways: as files are damaged, and as people make mistakes.
pub fn mutate(bytes: &mut Vec<u8>, random: &mut fastrand::Rng) {
    for _ in 0..random.usize(1..4) {
        let at = random.usize(..bytes.len().max(1)).min(bytes.len());
        let length = random.usize(..40).min(bytes.len() - at);
        match random.u8(..10) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, random.u8(..)),
            2 => drop(bytes.drain(at..at + length)),
            3 => bytes[at..at + length].fill(random.choice([0, b'0', b'9', b' ', 0xff]).unwrap()),
            4 => {
                let copy = bytes[at..at + length].to_vec();
                let to = random.usize(..=bytes.len());
                bytes.splice(to..to, copy);
            }
            5 => bytes[at..at + length].reverse(),
            6 => {
                let words: [&[u8]; 8] =
                    [b"\n", b"\"", b"{", b"]", b"-1", b"18446744073709551616", b"null", b"\xc3\x28"];
                bytes.splice(at..at, random.choice(words).unwrap().iter().copied());
            }
            7 if at < bytes.len() => {
                bytes[at] = random.choice(b"0123456789abcdef,:{}[]\"/. \n".iter().copied()).unwrap()
            }
            _ if at < bytes.len() => bytes[at] ^= 1 << random.u8(..8),
            _ => {}
        }
    }
}

/// A small good backup with checksums, alone in a directory.
fn backup(to: &Path) -> String {
    let node = Node::with_chains(2);
    let service = node.start();
    let id = make_done(&service, PACT);
    service.finish();
    drop(service);
    copy_tree(&node.backups(), to);
    sum_backup(to, id.as_str(), &Control::default()).unwrap();
    id.to_string()
}

fn faults_count(backups: &Path, id: &str, depth: Depth) -> Option<usize> {
    match verify_backup(backups, id, VerifyOptions { depth, program: None }, &Control::default()) {
        Ok((_, verification)) => Some(verification.faults.len()),
        // There is nothing to verify: the backup is gone, is not good, or has an unknown status.
        Err(e) if matches!(e.kind(), Kind::NotFound | Kind::Refused | Kind::Damaged) => None,
        Err(e) => panic!("{}", e.chain()),
    }
}

#[test]
fn a_changed_record_or_manifest_is_always_seen() {
    let backups = scratch();
    let id = backup(backups.path());
    let place = backups.path().join(&id);
    for name in ["backup.json", "manifest.json", "status", "verified.json"] {
        assert_eq!(faults_count(backups.path(), &id, Depth::Quick), Some(0));
        let good = fs::read(place.join(name)).unwrap();
        let (mut cases, mut seen) = (Loop::of(400), 0);
        while cases.next() {
            let mut bytes = good.clone();
            mutate(&mut bytes, &mut cases.random);
            fs::write(place.join(name), &bytes).unwrap();
            let listed = list_backups_in(backups.path()).map(|all| all.len());
            let checked = check_backup_in(backups.path(), &BackupId::parse(&id).unwrap());
            // An unknown status is an error; the backup is known all the same.
            let is_error = name == "status" && checked.is_err();
            let kinds = [listed.as_ref().err().map(|e| e.kind()), checked.as_ref().err().map(|e| e.kind())];
            assert_eq!(kinds, [is_error.then_some(Kind::Damaged); 2], "{name}");
            assert!(is_error || listed.is_ok_and(|count| count == 1) && checked.is_ok_and(|found| found.is_some()));
            match faults_count(backups.path(), &id, Depth::Quick) {
                // The change does not matter: a note about a verification, or white space around the word of the status.
                Some(0) if name.ends_with(".json") && name != "verified.json" => {
                    assert_eq!(String::from_utf8_lossy(&bytes), String::from_utf8_lossy(&good), "{name}: not seen");
                }
                Some(0) => {}
                _ => seen += 1,
            }
        }
        println!("{name}: {} mutations, {seen} seen", cases.done - 1);
        assert!(seen > 0 || name == "verified.json");
        fs::write(place.join(name), &good).unwrap();
    }
}

#[test]
fn changed_checksums_are_always_seen() {
    let backups = scratch();
    let id = backup(backups.path());
    let path = backups.path().join(&id).join("0/sqlite/BLAKE2SUMS");
    let good = fs::read(&path).unwrap();
    // For b2sum it is the same list: another line end, or the mark of a binary file.
    let same = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        text.lines().map(|line| line.replacen(" *", "  ", 1)).collect::<std::collections::BTreeSet<_>>()
    };
    let (mut cases, mut seen) = (Loop::of(150), 0);
    while cases.next() {
        let mut bytes = good.clone();
        mutate(&mut bytes, &mut cases.random);
        fs::write(&path, &bytes).unwrap();
        let (_, found) = verify_backup(backups.path(), &id, DEEP, &Control::default()).unwrap();
        // A defect of the list alone is a note.
        if found.faults.is_empty() && found.notes.is_empty() {
            assert_eq!(same(&bytes), same(&good), "not seen: {}", String::from_utf8_lossy(&bytes));
        } else {
            seen += 1;
        }
    }
    println!("BLAKE2SUMS: {} mutations, {seen} seen", cases.done - 1);
    assert!(seen > 100);
}

#[test]
fn mutated_logs_are_no_panic() {
    let node = Node::with_chains(1);
    let log = crate::fixture::names(&node.rocksdb()).into_iter().rfind(|name| name.ends_with(".log")).unwrap();
    let rocks = fs::read(node.rocksdb().join(log)).unwrap();
    let mut wal = node.sqlite(0).into_os_string();
    wal.push("-wal");
    let sqlite = fs::read(wal).unwrap();
    assert!(rocks.len() > 100 && wal_frames(&sqlite).unwrap() > 0);
    let manifest =
        fs::read(node.rocksdb().join(fs::read_to_string(node.rocksdb().join("CURRENT")).unwrap().trim())).unwrap();
    let (mut cases, mut shorter) = (Loop::of(5_000), 0);
    while cases.next() {
        let mut bytes = rocks.clone();
        mutate(&mut bytes, &mut cases.random);
        let (complete, _, _) = measure(&bytes);
        assert!(complete <= bytes.len() as u64);
        let _ = (fragments(&bytes), records(&bytes, 0));
        let mut bytes = sqlite.clone();
        mutate(&mut bytes, &mut cases.random);
        if let Some(frames) = wal_frames(&bytes) {
            assert!(frames * 24 <= bytes.len() as u64);
            shorter += u64::from(frames < wal_frames(&sqlite).unwrap());
        }
        let mut bytes = manifest.clone();
        mutate(&mut bytes, &mut cases.random);
        let _ = live_files(&bytes);
    }
    println!("logs: {} mutations of each, {shorter} WALs of SQLite became shorter", cases.done - 1);
    assert!(shorter > 0);
}

#[test]
fn a_mutated_configuration_is_read_or_refused_in_a_sentence() {
    let good = [
        include_str!("../data/node-config.yaml"),
        "databaseDirectory: /db\nchainweb: {chainwebVersion: mainnet01, backup: {api: {enabled: true}, directory: /b}}\n",
        "{\"backup\": {\"api\": {\"enabled\": true, \"configuration\": {}}, \"directory\": null, \"sums\": \"all\", \
         \"verify\": \"deep\", \"stallSeconds\": 5, \"limitBytesPerSecond\": \"5MiB\", \"reserveBytes\": 1}}",
    ];
    let (mut cases, mut refused) = (Loop::of(5_000), 0);
    while cases.next() {
        let mut bytes = cases.random.choice(good).unwrap().as_bytes().to_vec();
        mutate(&mut bytes, &mut cases.random);
        if let Err(e) = parse_file(&String::from_utf8_lossy(&bytes), "the file") {
            assert!(e.kind() == Kind::Usage && e.chain().starts_with("the file: ") && e.chain().len() > 15, "{e}");
            refused += 1;
        }
    }
    println!("configuration: {} mutations, {refused} refused", cases.done - 1);
    assert!(refused > 500);
}

#[test]
fn mutated_heads_are_answered_or_closed() {
    let mut server = server(Limits::default());
    let good = [
        "GET /health-check HTTP/1.1\r\nHost: h\r\nAccept: application/json\r\n\r\n",
        "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
        "GET http://h/url?backupPact=1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        "HEAD /count HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: identity\r\n\r\n",
    ];
    let (mut cases, mut refused) = (Loop::of(1_000), 0);
    while cases.next() {
        let mut bytes = cases.random.choice(good).unwrap().as_bytes().to_vec();
        mutate(&mut bytes, &mut cases.random);
        let mut client = Client::connect(server.address).unwrap();
        // The server may close the connection before all is sent.
        let _ = client.send(&bytes).and_then(|()| client.stream.shutdown(Shutdown::Write));
        if let Ok(Some(reply)) = client.reply() {
            assert!((100..600).contains(&reply.status), "{}: {bytes:?}", reply.status);
            refused += u64::from(reply.status >= 400);
        }
        if cases.done % 100 == 0 {
            assert!(healthy(server.address));
        }
    }
    assert!(healthy(server.address));
    println!("heads: {} mutations, {refused} refused", cases.done - 1);
    assert!(refused > 100);
    server.stop();
}
