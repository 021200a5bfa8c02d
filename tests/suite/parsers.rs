//! The parsers of the log format and of the MANIFEST: against RocksDB itself, against a model, and against garbage.
//!
//! In a real MANIFEST they find the files that RocksDB has. In one that is cut anywhere they find the state before or after an edit (or
//! an atomic group of edits), never one in between. No bytes make them panic.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use chainweb_backup::rocksdb::{
    ColumnFamilyDescriptor, DB, DBCompressionType, FlushOptions, Options, WaitForCompactOptions, WriteBatch,
};
use chainweb_backup::testing::{fragments, live_files, live_files_read, measure, records};
use proptest::prelude::*;

use crate::fixture::scratch;
use crate::mutations::{Loop, mutate};

const BLOCK: usize = 32 * 1024;
const HEADER: usize = 7;

fn fragment(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut body = vec![kind];
    body.extend(payload);
    let crc = crc32c::crc32c(&body).rotate_right(15).wrapping_add(0xa282_ead8);
    let length = u16::try_from(payload.len()).unwrap();
    [&crc.to_le_bytes()[..], &length.to_le_bytes(), &body].concat()
}

/// A fragment of a reused log: its header has the number of the log, which its length does not count.
fn recycled(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = fragment(kind, &[&[9, 0, 0, 0], payload].concat());
    let length = u16::try_from(payload.len()).unwrap();
    bytes[4..6].copy_from_slice(&length.to_le_bytes());
    bytes
}

/// Writes records as RocksDB's `log::Writer` does.
#[derive(Default)]
struct Log {
    bytes: Vec<u8>,
    /// Where each record ends.
    ends: Vec<u64>,
}

impl Log {
    fn of(records: &[Vec<u8>]) -> Log {
        let mut log = Log::default();
        records.iter().for_each(|record| log.record(record));
        log
    }

    fn record(&mut self, mut payload: &[u8]) {
        let mut first = true;
        loop {
            let left = BLOCK - self.bytes.len() % BLOCK;
            if left < HEADER {
                self.bytes.resize(self.bytes.len() + left, 0);
                continue;
            }
            let (now, rest) = payload.split_at(payload.len().min(left - HEADER));
            let kind = match (first, rest.is_empty()) {
                (true, true) => 1,
                (true, false) => 2,
                (false, false) => 3,
                (false, true) => 4,
            };
            self.bytes.extend(fragment(kind, now));
            (payload, first) = (rest, false);
            if payload.is_empty() {
                self.ends.push(self.bytes.len() as u64);
                return;
            }
        }
    }

    /// The end of the last record that is complete in a file of this length.
    fn complete(&self, length: usize) -> u64 {
        self.ends.iter().copied().filter(|end| *end <= length as u64).max().unwrap_or(0)
    }
}

fn some_records() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let length = prop_oneof![0..200_usize, 32_700..32_800_usize, 0..100_000_usize];
    let record = (length, any::<u8>()).prop_map(|(length, seed)| {
        let mut random = fastrand::Rng::with_seed(u64::from(seed));
        (0..length).map(|_| random.u8(..)).collect::<Vec<u8>>()
    });
    prop::collection::vec(record, 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_log_is_read_as_it_was_written(records_written in some_records()) {
        let log = Log::of(&records_written);
        for (at, end) in log.ends.iter().enumerate() {
            prop_assert_eq!(records(&log.bytes, *end), (records_written[at + 1..].to_vec(), "clean"), "from {}", end);
        }
        prop_assert_eq!(records(&log.bytes, 0), (records_written, "clean"));
        prop_assert_eq!(measure(&log.bytes), (log.bytes.len() as u64, false, "clean"));
    }

    #[test]
    fn a_cut_log_keeps_its_complete_records(records_written in some_records(), at in any::<prop::sample::Index>()) {
        let log = Log::of(&records_written);
        let cut = at.index(log.bytes.len() + 1);
        let (complete, recyclable, end) = measure(&log.bytes[..cut]);
        prop_assert_eq!((complete, recyclable), (log.complete(cut), false));
        prop_assert_ne!(end, "damaged");
        let (found, end) = records(&log.bytes[..cut], 0);
        prop_assert_ne!(end, "damaged");
        prop_assert_eq!(found.len(), log.ends.iter().filter(|e| **e <= complete).count());
        prop_assert!(found.iter().zip(&records_written).all(|(a, b)| a == b));
        // The complete records alone are a clean log.
        prop_assert_eq!(measure(&log.bytes[..usize::try_from(complete).unwrap()]), (complete, false, "clean"));
    }

    #[test]
    fn zeroes_behind_a_log_are_its_torn_end(records_written in some_records(), zeroes in 7..100_000_usize) {
        let mut log = Log::of(&records_written);
        let length = log.bytes.len() as u64;
        log.bytes.resize(log.bytes.len() + zeroes, 0);
        let (complete, recyclable, end) = measure(&log.bytes);
        prop_assert_eq!((complete, recyclable), (length, false));
        prop_assert!(end == "torn" || zeroes < 2 * HEADER, "{} zeroes: {}", zeroes, end);
    }

    #[test]
    fn a_bad_checksum_is_damage_also_at_the_end(
        records_written in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20_000), 1..8),
        at in any::<prop::sample::Index>(),
        bit in 0..8_u32,
    ) {
        let mut log = Log::of(&records_written);
        let all = fragments(&log.bytes);
        let hit = at.index(all.len());
        let end = usize::try_from(all[hit].0).unwrap();
        // The last byte of a fragment is payload, so its header still has its length.
        log.bytes[end - 1] ^= 1 << bit;
        let (complete, _, found) = measure(&log.bytes);
        let before = log.ends.iter().copied().filter(|e| *e < end as u64).max().unwrap_or(0);
        prop_assert_eq!(complete, before);
        prop_assert_eq!(found, "damaged");
    }

    #[test]
    fn garbage_is_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..70_000)) {
        let _ = (measure(&bytes), fragments(&bytes), live_files(&bytes), live_files_of(std::slice::from_ref(&bytes)));
        prop_assert!(records(&bytes, 0).0.iter().map(Vec::len).sum::<usize>() <= bytes.len());
    }

    #[test]
    fn edits_of_random_fields_are_no_panic(fields in prop::collection::vec((any::<u8>(), any::<u64>(), any::<u8>()), 0..60)) {
        let tags = [1, 2, 3, 5, 6, 7, 9, 10, 100, 102, 103, 200, 201, 202, 203, 300, 400, 401, 8193, 8194, 8195, 8196, 8197, 9000, 13, 65];
        let mut edit = Vec::new();
        for (tag, number, how) in fields {
            varint(&mut edit, tags[usize::from(tag) % tags.len()]);
            varint(&mut edit, if how % 3 == 0 { number } else { number % 300 });
            if how % 2 == 0 {
                edit.extend(std::iter::repeat_n(how, usize::try_from(number % 40).unwrap()));
            }
        }
        if let Ok(files) = live_files_of(std::slice::from_ref(&edit)) {
            prop_assert!(files.len() <= edit.len());
        }
    }
}

fn varint(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    to.push(u8::try_from(value).unwrap());
}

#[test]
fn a_log_that_is_cut_at_every_byte_of_a_record() {
    // The record reaches over three blocks, and begins where there is room for a header only.
    let log = Log::of(&[vec![11; BLOCK - 2 * HEADER - HEADER], vec![12; 2 * BLOCK], vec![13; 10]]);
    assert_eq!(
        fragments(&log.bytes).iter().map(|f| f.1.as_str()).collect::<Vec<_>>(),
        ["Full", "First", "Middle", "Middle", "Last", "Full"]
    );
    for cut in 0..=log.bytes.len() {
        let (complete, _, end) = measure(&log.bytes[..cut]);
        assert_eq!(complete, log.complete(cut), "cut at {cut}");
        assert_ne!(end, "damaged", "cut at {cut}");
    }
}

/// Whether a log with records of this type is used again.
fn recyclable(kind: u8) -> bool {
    matches!(kind, 5..=8 | 11 | 131)
}

#[test]
fn types_of_fragments() {
    for kind in 0..=255_u8 {
        let other = if recyclable(kind) { recycled(kind, b"two") } else { fragment(kind, b"two") };
        let log = [fragment(1, b"one"), other, fragment(1, b"three")].concat();
        let (complete, found, end) = measure(&log);
        // A first fragment alone is no record, and a record cannot begin with a later fragment.
        let good = matches!(kind, 1 | 9 | 10 | 128..=130 | 132..);
        assert_eq!(found, recyclable(kind), "type {kind}");
        if !found {
            assert_eq!(end, if good { "clean" } else { "damaged" }, "type {kind}");
        }
        assert_eq!(complete, if good { log.len() as u64 } else { 10 }, "type {kind}");
    }
    // A compressed log that is used again: the first record does not show that.
    let log = [fragment(9, &[7, 0, 0, 0]), recycled(5, b"data")].concat();
    assert!(measure(&log).1);
    // A log that is being used again: the checksum does not fit the bytes behind it yet.
    for before in [vec![], fragment(9, &[7, 0, 0, 0])] {
        let mut log = [before.clone(), recycled(5, b"data")].concat();
        log[before.len()] ^= 1;
        assert!(measure(&log).1);
    }
    // A compressed log.
    let log = [fragment(9, &[7, 0, 0, 0]), fragment(1, b"data")].concat();
    assert_eq!(measure(&log), (log.len() as u64, false, "clean"));
    // An incomplete record does not count, also if the file ends with a whole fragment.
    let log = [fragment(1, b"one"), fragment(2, b"two"), fragment(3, b"three")].concat();
    assert_eq!(measure(&log), (10, false, "clean"));
}

/// Any bytes may follow a record, after a power cut: they do not make the log one that is used again.
#[test]
fn random_bytes_behind_a_record_are_no_reused_log() {
    let mut random = fastrand::Rng::with_seed(5);
    for kind in [5, 6, 7, 8, 11, 131].repeat(200) {
        let one = fragment(1, b"one");
        let mut garbage: Vec<u8> = (0..random.usize(HEADER..300)).map(|_| random.u8(..)).collect();
        garbage[6] = kind;
        let (complete, again, end) = measure(&[one.clone(), garbage].concat());
        assert_eq!((complete, again), (one.len() as u64, false), "type {kind}");
        assert_ne!(end, "clean", "type {kind}");
    }
}

/// Ends that a killed writer never leaves, and that are damage for RocksDB, too.
#[test]
fn ends_that_are_damage() {
    let whole = Log::of(&[vec![1; 100], vec![2; 40_000], vec![3; 100], vec![4; 100]]).bytes;
    let half = |log: &[u8]| log[..BLOCK + 1000].to_vec();
    assert_eq!(measure(&half(&whole)), (107, false, "torn"));
    // Zeroes in place of the rest of a record.
    let mut log = half(&whole);
    log.truncate(BLOCK);
    log.resize(BLOCK + 3000, 0);
    assert_eq!(measure(&log), (107, false, "damaged"));
    assert_eq!(records(&log, 0).1, "damaged");
    // A length that reaches beyond the end of the file, and whole records behind it.
    let mut log = whole.clone();
    let third = log.len() - 2 * 107;
    log[third + 5] ^= 4;
    assert_eq!(measure(&log), (third as u64, false, "damaged"));
    // The same in a file that ends with a block.
    let mut log = fragment(1, &vec![1; BLOCK - 3 * HEADER]);
    log.extend(&fragment(1, &[2; HEADER])[..2 * HEADER]);
    assert_eq!((log.len(), measure(&log).2), (BLOCK, "clean"));
    log[BLOCK - 2 * HEADER + 4] += 1;
    assert_eq!(measure(&log).2, "damaged");
    // The bug of old versions: an empty first part at the end of a block.
    let mut log = fragment(1, &vec![1; BLOCK - 2 * HEADER]);
    log.extend(fragment(2, b""));
    log.extend(fragment(1, b"one"));
    assert_eq!(measure(&log), (log.len() as u64, false, "clean"));
    // A record that another one interrupts.
    let log = [fragment(2, b"two"), fragment(1, b"one")].concat();
    assert_eq!(measure(&log), (0, false, "damaged"));
}

/// The WALs of RocksDB itself, in all its ways to write them.
#[test]
fn the_wals_of_rocksdb() {
    let compressed = |options: &mut Options| options.set_wal_compression_type(DBCompressionType::Zstd);
    let none = |_: &mut Options| {};
    let recycled = |options: &mut Options| options.set_recycle_log_file_num(4);
    let both = |options: &mut Options| {
        options.set_recycle_log_file_num(4);
        options.set_wal_compression_type(DBCompressionType::Zstd);
    };
    let cases: [(Change<'_>, bool); 4] = [(&none, false), (&compressed, false), (&recycled, true), (&both, true)];
    for (case, (change, again)) in cases.into_iter().enumerate() {
        let mut busy = Busy::new(case as u64, change);
        for step in 0..4 {
            busy.fill();
            busy.fill();
            let names = crate::fixture::names(busy.dir.path());
            let name = names.iter().rfind(|name| name.ends_with(".log")).unwrap();
            let log = fs::read(busy.dir.path().join(name)).unwrap();
            assert!(log.len() > 1000);
            let found = measure(&log);
            assert_eq!(found.1, again, "case {case} step {step}");
            if !again {
                assert_eq!(found, (log.len() as u64, false, "clean"), "case {case} step {step}");
            }
            busy.flush();
        }
    }
}

type Change<'a> = &'a dyn Fn(&mut Options);

/// A real database of several column families with all that an edit can say.
struct Busy {
    db: DB,
    dir: tempfile::TempDir,
    random: fastrand::Rng,
}

const FAMILIES: [&str; 4] = ["default", "one", "two", "three"];

impl Busy {
    fn new(seed: u64, change: impl Fn(&mut Options)) -> Busy {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_level_zero_file_num_compaction_trigger(3);
        options.set_target_file_size_base(8 * 1024);
        options.set_max_bytes_for_level_base(40 * 1024);
        options.set_compression_type(DBCompressionType::None);
        change(&mut options);
        let dir = scratch();
        let families = FAMILIES.map(|name| ColumnFamilyDescriptor::new(name, options.clone()));
        let db = DB::open_cf_descriptors(&options, dir.path(), families).unwrap();
        Busy { db, dir, random: fastrand::Rng::with_seed(seed) }
    }

    fn fill(&mut self) {
        let mut batch = WriteBatch::default();
        for name in FAMILIES {
            let family = self.db.cf_handle(name).unwrap();
            for _ in 0..60 {
                let key = format!("{:05}", self.random.u32(0..3000));
                batch.put_cf(family, key, vec![self.random.u8(..); self.random.usize(0..400)]);
            }
        }
        self.db.write(batch).unwrap();
    }

    fn flush(&self) {
        let families: Vec<_> = FAMILIES.iter().map(|name| self.db.cf_handle(name).unwrap()).collect();
        self.db.flush_cfs_opt(&families, &FlushOptions::default()).unwrap();
    }

    fn settle(&self) {
        self.db.wait_for_compact(&WaitForCompactOptions::default()).unwrap();
    }

    fn manifest(&self) -> Vec<u8> {
        manifest_in(self.dir.path())
    }

    /// What RocksDB says are its tables.
    fn tables(&self) -> BTreeMap<String, u64> {
        let files = self.db.live_files().unwrap();
        files.into_iter().map(|f| (f.name.trim_start_matches('/').to_owned(), f.size as u64)).collect()
    }

    /// What is on disk: where nothing runs, RocksDB has deleted everything that is not live.
    fn on_disk(&self) -> BTreeMap<String, u64> {
        let entries = fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap());
        let named = entries.map(|e| (e.file_name().into_string().unwrap(), e.metadata().unwrap().len()));
        named.filter(|(name, _)| chainweb_backup::testing::is_immutable(name)).collect()
    }
}

fn manifest_in(directory: &Path) -> Vec<u8> {
    let current = fs::read_to_string(directory.join("CURRENT")).unwrap();
    fs::read(directory.join(current.trim_end())).unwrap()
}

fn parsed(manifest: &[u8]) -> BTreeMap<String, u64> {
    live_files(manifest).unwrap().into_iter().collect()
}

/// The live files after these edits.
fn live_files_of(edits: &[Vec<u8>]) -> Result<Vec<(String, u64)>, String> {
    live_files(&Log::of(edits).bytes)
}

/// Lengths that a file may have had while it grew.
fn lengths(length: usize, random: &mut fastrand::Rng) -> Vec<usize> {
    let mut lengths: Vec<usize> = (0..random.usize(..6)).map(|_| random.usize(..=length)).collect();
    lengths.sort_unstable();
    lengths
}

#[test]
fn the_live_files_are_those_of_rocksdb() {
    let none = |_: &mut Options| {};
    let blobs = |options: &mut Options| {
        options.set_enable_blob_files(true);
        options.set_min_blob_size(100);
        options.set_blob_file_size(6 * 1024);
        options.set_enable_blob_gc(true);
        options.set_blob_gc_age_cutoff(0.7);
        options.set_blob_gc_force_threshold(0.2);
    };
    let atomic = |options: &mut Options| options.set_atomic_flush(true);
    let rollover = |options: &mut Options| options.set_max_manifest_file_size(2000);
    let universal =
        |options: &mut Options| options.set_compaction_style(chainweb_backup::rocksdb::DBCompactionStyle::Universal);
    let changes: [Change<'_>; 5] = [&none, &blobs, &atomic, &rollover, &universal];
    let (mut states, mut most_files, mut most_blobs) = (0, 0, 0);
    for (seed, change) in changes.iter().enumerate() {
        let mut busy = Busy::new(seed as u64, change);
        for step in 0..40 {
            busy.fill();
            busy.flush();
            if step % 10 == 7 {
                // Everything moves; then whole files go without a compaction.
                busy.db.compact_range(None::<&[u8]>, None::<&[u8]>);
                busy.settle();
                busy.db.delete_file_in_range("00100", "01500").unwrap();
            }
            if step == 20 {
                busy.db.create_cf("passing", &Options::default()).unwrap();
                let family = busy.db.cf_handle("passing").unwrap();
                busy.db.put_cf(family, "key", "value").unwrap();
                busy.db.flush_cf(family).unwrap();
            }
            if step == 30 {
                busy.db.drop_cf("passing").unwrap();
            }
            busy.settle();
            let manifest = busy.manifest();
            let found = parsed(&manifest);
            let lengths = lengths(manifest.len(), &mut busy.random);
            let in_parts = live_files_read(&manifest, &lengths).unwrap();
            assert_eq!(BTreeMap::from_iter(in_parts), found, "seed {seed} step {step}: read at {lengths:?}");
            let tables: BTreeMap<_, _> =
                found.iter().filter(|(name, _)| name.ends_with(".sst")).map(|(n, b)| (n.clone(), *b)).collect();
            assert_eq!(tables, busy.tables(), "seed {seed} step {step}");
            let on_disk = busy.on_disk();
            assert!(found.iter().all(|(name, bytes)| on_disk.get(name) == Some(bytes)), "seed {seed} step {step}");
            let blobs = found.keys().filter(|name| name.ends_with(".blob")).count();
            if step != 30 {
                let blobs_there = on_disk.keys().filter(|name| name.ends_with(".blob")).count();
                assert_eq!(blobs, blobs_there, "seed {seed} step {step}: {found:?} {on_disk:?}");
            }
            states += 1;
            most_files = most_files.max(found.len());
            most_blobs = most_blobs.max(blobs);
        }
    }
    println!("states={states} most_files={most_files} most_blobs={most_blobs}");
    assert!(most_files > 40 && most_blobs > 5, "{most_files} files, {most_blobs} blobs: too few to tell anything");
}

#[test]
fn a_manifest_that_is_cut_at_every_byte_of_a_group() {
    let mut busy = Busy::new(9, |options| {
        options.set_atomic_flush(true);
        options.set_disable_auto_compactions(true);
    });
    let mut cuts = 0;
    for _ in 0..5 {
        let before = busy.manifest();
        busy.fill();
        busy.flush();
        let after = busy.manifest();
        assert!(after.starts_with(&before) && parsed(&after).len() == parsed(&before).len() + FAMILIES.len());
        for cut in before.len()..after.len() {
            assert_eq!(parsed(&after[..cut]), parsed(&before), "cut at {cut} of {}..{}", before.len(), after.len());
            cuts += 1;
        }
    }
    assert!(cuts > 1000, "{cuts}");
}

/// Every byte of a MANIFEST without groups: each state is one that the database has had.
#[test]
fn a_manifest_that_is_cut_anywhere() {
    let mut busy = Busy::new(10, |options| options.set_disable_auto_compactions(true));
    let mut states = vec![parsed(&busy.manifest())];
    for _ in 0..8 {
        busy.fill();
        for name in FAMILIES {
            busy.db.flush_cf(busy.db.cf_handle(name).unwrap()).unwrap();
            states.push(parsed(&busy.manifest()));
        }
    }
    let manifest = busy.manifest();
    let mut last = 0;
    for cut in 0..=manifest.len() {
        let found = parsed(&manifest[..cut]);
        let at = states.iter().position(|state| *state == found);
        assert!(at.is_some_and(|at| at == last || at == last + 1), "cut at {cut}: {at:?} after {last}");
        last = at.unwrap();
    }
    assert_eq!(last + 1, states.len());
}

/// Thousands of edits of a few hundred files, with groups, column families that come and go, and files that change their level. The
/// last edit of a file counts, at whatever lengths the MANIFEST was read before.
#[test]
fn a_long_manifest_against_a_model() {
    let mut random = fastrand::Rng::with_seed(12);
    for turn in 0..2 {
        let mut live: BTreeMap<u64, BTreeMap<u64, u64>> = BTreeMap::from([(0, BTreeMap::new())]);
        let (mut log, mut next, mut next_family) = (Log::default(), 1, 0);
        let mut states = vec![(0, BTreeMap::new())];
        // The states before which a family was dropped.
        let mut drops = Vec::new();
        while log.ends.len() < 6000 {
            // One edit, or a group of edits that count only if all of them are there.
            let group = if random.u8(..) < 20 { random.u64(2..5) } else { 1 };
            for remaining in (0..group).rev() {
                let family = *random.choice(live.keys().collect::<Vec<_>>()).unwrap();
                let mut edit = Vec::new();
                let mut say = |fields: &[u64]| fields.iter().for_each(|field| varint(&mut edit, *field));
                let of = match random.u8(..) {
                    0..3 => {
                        next_family += 1;
                        live.insert(next_family, BTreeMap::new());
                        say(&[201, 1, 65]);
                        next_family
                    }
                    3..5 if family != 0 => {
                        live.remove(&family);
                        say(&[202]);
                        drops.push(states.len());
                        family
                    }
                    5..8 => {
                        // Of a family that is not there: ignored.
                        say(&[103, 1, 77, 10, 1, 65, 1, 66, 1, 2, 1]);
                        1_000_000
                    }
                    _ => {
                        let files = live.get_mut(&family).unwrap();
                        let gone: BTreeSet<u64> = files.keys().copied().filter(|_| random.u8(..) < 6).collect();
                        for number in &gone {
                            say(&[6, 1, *number]);
                        }
                        for number in gone {
                            let bytes = files.remove(&number).unwrap();
                            if random.bool() {
                                // To another level.
                                say(&[103, 2, number, bytes, 1, 65, 1, 66, 1, 2, 1]);
                                files.insert(number, bytes);
                            }
                        }
                        for _ in 0..random.u64(..4) {
                            let bytes = random.u64(1..1000);
                            say(&[103, 0, next, bytes, 1, 65, 1, 66, 1, 2, 1]);
                            files.insert(next, bytes);
                            next += 1;
                        }
                        family
                    }
                };
                say(&[200, of]);
                if group > 1 {
                    say(&[300, remaining]);
                }
                log.record(&edit);
            }
            let all = live.values().flatten().map(|(number, bytes)| (format!("{number:06}.sst"), *bytes)).collect();
            states.push((log.bytes.len(), all));
        }
        let most = states.iter().map(|(_, files)| files.len()).max().unwrap();
        assert!(most > 60 && next > 6000, "{most} files, {next} numbers: too few to show anything");
        assert!(drops.len() > 20, "{} drops", drops.len());
        // All rows before it are settled: the drop is the only new edit.
        let around = drops.iter().step_by(drops.len() / 20).map(|at| vec![states[*at - 1].0, states[*at].0]);
        let anywhere = (0..30).map(|_| lengths(log.bytes.len(), &mut random));
        for lengths in around.chain(anywhere) {
            let length = lengths.last().copied().unwrap_or(log.bytes.len());
            let found = live_files_read(&log.bytes[..length], &lengths).unwrap();
            let (_, expected) = states.iter().rfind(|(end, _)| *end <= length).unwrap();
            assert!(&BTreeMap::from_iter(found) == expected, "turn {turn}: read at {lengths:?}");
        }
    }
}

#[test]
fn mutated_manifests_are_no_panic() {
    let mut busy = Busy::new(11, |options| {
        options.set_enable_blob_files(true);
        options.set_min_blob_size(100);
        options.set_atomic_flush(true);
    });
    for _ in 0..6 {
        busy.fill();
        busy.flush();
    }
    busy.settle();
    let manifest = busy.manifest();
    let (edits, end) = records(&manifest, 0);
    assert_eq!((end, edits.len() > 10), ("clean", true));
    let unchanged = parsed(&manifest);
    let (mut refused, mut other, mut same) = (0, 0, 0);
    let mut cases = Loop::of(30_000);
    while cases.next() {
        let random = &mut cases.random;
        // A wrong checksum would end the parsing: so the records are changed and written again with their checksums.
        let mut edits = edits.clone();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(..edits.len());
            mutate(&mut edits[at], random);
        }
        match live_files_of(&edits) {
            Err(_) => refused += 1,
            Ok(files) if BTreeMap::from_iter(files.clone()) == unchanged => same += 1,
            Ok(_) => other += 1,
        }
        let mut bytes = manifest.clone();
        mutate(&mut bytes, random);
        let _ = (live_files(&bytes), measure(&bytes));
    }
    println!("MANIFEST: {} mutations, refused={refused} other={other} same={same}", cases.done - 1);
    assert!(refused > 0 && other > 0 && same > 0);
}

#[test]
fn what_is_refused_in_a_manifest() {
    let edit = |fields: &[u64]| {
        let mut bytes = Vec::new();
        fields.iter().for_each(|field| varint(&mut bytes, *field));
        bytes
    };
    let refusal = |fields: &[u64]| live_files_of(&[edit(fields)]).unwrap_err();
    // A tag of a later RocksDB that may not be skipped, and one that may.
    assert!(refusal(&[500]).contains("unknown tag 500"));
    assert_eq!(live_files_of(&[edit(&[8192 + 500, 3, 1, 2, 3])]).unwrap(), []);
    // A new file (103): level, number, size, two keys, two sequence numbers, own fields; 65 is the path, 66 unknown.
    let file = [103, 0, 7, 1000, 1, 65, 1, 66, 1, 2];
    assert_eq!(live_files_of(&[edit(&[&file[..], &[1]].concat())]).unwrap(), [("000007.sst".to_owned(), 1000)]);
    assert!(refusal(&[&file[..], &[65, 1, 1, 1]].concat()).contains("another directory"));
    assert!(refusal(&[&file[..], &[66, 1, 1, 1]].concat()).contains("unknown file field 66"));
    assert_eq!(live_files_of(&[edit(&[&file[..], &[20, 2, 0, 0, 1]].concat())]).unwrap().len(), 1);
    // The third form has its path as a number.
    assert!(refusal(&[102, 0, 7, 1, 1000, 1, 65, 1, 66, 1, 2]).contains("another directory"));
    // A group that is interrupted by an edit outside of it.
    let broken = live_files_of(&[edit(&[300, 2]), edit(&[2, 5])]).unwrap_err();
    assert!(broken.contains("atomic group"), "{broken}");
    assert!(refusal(&[103, 0, 7]).contains("tag 103"));
}
