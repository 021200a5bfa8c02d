//! A source that was damaged before: RocksDB recovers from the copy what it recovers from the source, or refuses both.
//!
//! Each case damages WALs of a database that has several, and copies it: after a stop, after a crash, or while a node that has recovered
//! without a flush has it open again, so that the damaged WALs are still needed. RocksDB recovers a scratch copy of the source and one
//! of the copy, and the results are compared.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use chainweb_backup::rocksdb::{
    ColumnFamilyDescriptor, DB, DBRecoveryMode, DBWithThreadMode, ErrorKind, IteratorMode, MultiThreaded, Options,
};
use chainweb_backup::testing::{fragments, live_copy_warned};
use chainweb_backup::{Service, Sources, gate, heights_json};
use tempfile::TempDir;

use crate::fixture::{ROCKSDB, call, config, make_done, make_failed, names, record, scratch};

/// An option with which RocksDB keeps its WALs when it recovers.
const KEEP: &str = "avoid_flush_during_recovery=true";

type Db = DBWithThreadMode<MultiThreaded>;

/// The state of a database before it is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    One,
    /// Its last WAL is empty.
    OneAndEmpty,
    Two,
    /// The tables of the second column family have the changes of the older WALs.
    TwoFlushed,
    /// As before, and the last WAL is empty.
    TwoFlushedAndEmpty,
}

const SHAPES: [Shape; 5] = [Shape::One, Shape::OneAndEmpty, Shape::Two, Shape::TwoFlushed, Shape::TwoFlushedAndEmpty];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Stopped,
    Crashed,
    Live,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    /// The last record is incomplete.
    Short,
    /// The header of the first record is incomplete.
    Stub,
    ChecksumAtEnd,
    ChecksumInMiddle,
    /// The length of a record in the middle of the last block reaches beyond the end of the file.
    Length,
    ZeroedPage,
    /// A whole block of the log format: RocksDB skips it and reports nothing.
    ZeroedBlock,
    ZeroedTail,
}

use Damage::*;

const DAMAGES: [Damage; 8] =
    [Short, Stub, ChecksumAtEnd, ChecksumInMiddle, Length, ZeroedPage, ZeroedBlock, ZeroedTail];

const BLOCK: usize = 32 * 1024;
const PAGE: usize = 4096;

impl Damage {
    fn apply(self, path: &Path) {
        let mut bytes = fs::read(path).unwrap();
        let length = bytes.len();
        let page = length / 2 / PAGE * PAGE;
        match self {
            Short => bytes.truncate(length - 5),
            Stub => bytes.truncate(3),
            ChecksumAtEnd => bytes[length - 1] ^= 1,
            ChecksumInMiddle => bytes[length / 2] ^= 1,
            Length => {
                let ends = fragments(&bytes);
                let start = usize::try_from(ends[ends.len() - 3].0).unwrap();
                bytes[start + 5] ^= 0x20;
            }
            ZeroedPage => bytes[page..(page + PAGE).min(length)].fill(0),
            ZeroedBlock => bytes[BLOCK..(2 * BLOCK).min(length)].fill(0),
            ZeroedTail => bytes[length - PAGE..].fill(0),
        }
        fs::write(path, bytes).unwrap();
    }
}

fn options(text: &str) -> Options {
    // RocksDB reserves the size of the memtable for each WAL, which takes time on a file system in memory.
    let text = format!("allow_fallocate=false;stats_dump_period_sec=0;stats_persist_period_sec=0;{text}");
    let mut options = Options::default().get_options_from_string(text).unwrap();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_disable_auto_compactions(true);
    options
}

fn open(path: &Path, text: &str, mode: DBRecoveryMode) -> Result<(Db, Vec<String>), ErrorKind> {
    let names = DB::list_cf(&Options::default(), path).map_err(|e| e.kind())?;
    let mut options = options(text);
    options.set_wal_recovery_mode(mode);
    let families = names.iter().map(|name| ColumnFamilyDescriptor::new(name, options.clone()));
    Ok((Db::open_cf_descriptors(&options, path, families).map_err(|e| e.kind())?, names))
}

/// A database with several WALs that are all needed.
fn build(shape: Shape) -> TempDir {
    let root = scratch();
    let path = root.path().join("0/rocksDb");
    fs::create_dir_all(&path).unwrap();
    let two = !matches!(shape, Shape::One | Shape::OneAndEmpty);
    let families = if two { &["default", "one"][..] } else { &["default"] };
    let text = match shape {
        Shape::One | Shape::OneAndEmpty => {
            "write_buffer_size=65536;max_write_buffer_number=20;min_write_buffer_number_to_merge=18"
        }
        // A WAL ends when the second column family is flushed or is full.
        _ => "",
    };
    let descriptors = families.iter().map(|name| ColumnFamilyDescriptor::new(*name, options(text)));
    let db = Db::open_cf_descriptors(&options(text), &path, descriptors).unwrap();
    write(&db, 0..20);
    families.iter().for_each(|name| db.flush_cf(&db.cf_handle(name).unwrap()).unwrap());
    match shape {
        Shape::One => write(&db, 20..400),
        Shape::OneAndEmpty => {
            write(&db, 20..400);
            drop(db);
            open(&path, KEEP, DBRecoveryMode::PointInTime).unwrap();
        }
        Shape::TwoFlushed | Shape::TwoFlushedAndEmpty => {
            for part in 0..5 {
                write(&db, 20 + part * 80..100 + part * 80);
                db.flush_cf(&db.cf_handle("one").unwrap()).unwrap();
            }
            if shape == Shape::TwoFlushed {
                write(&db, 420..500);
            }
        }
        Shape::Two => {
            // Each time the database is opened, its WAL is new; nothing is flushed.
            drop(db);
            for part in 0..6 {
                let (db, _) = open(&path, KEEP, DBRecoveryMode::PointInTime).unwrap();
                write(&db, 20 + part * 80..100 + part * 80);
            }
        }
    }
    root
}

/// One record for each number, in the column families in turn; some reach over blocks.
fn write(db: &Db, numbers: std::ops::Range<u64>) {
    let second = db.cf_handle("one");
    for number in numbers {
        let length = if number % 37 == 36 { 20_000 } else { usize::try_from(number * 7 % 900).unwrap() };
        let (key, value) = (format!("k{number:06}"), vec![u8::try_from(number % 251).unwrap(); length]);
        match second.as_ref().filter(|_| number % 2 == 1) {
            Some(family) => db.put_cf(family, key, value).unwrap(),
            None => db.put(key, value).unwrap(),
        }
    }
}

/// The WALs that are not empty, oldest first.
fn wals(path: &Path) -> Vec<PathBuf> {
    let mut wals: Vec<_> = names(path).into_iter().filter(|n| n.ends_with(".log")).map(|n| path.join(n)).collect();
    wals.retain(|path| path.metadata().unwrap().len() > 0);
    wals.sort();
    assert!(wals.len() >= 3, "{wals:?}");
    wals
}

/// A second directory with the same files: what a crash would leave, while the database is open.
fn image(path: &Path, beside: &Path) -> TempDir {
    let to = tempfile::tempdir_in(beside).unwrap();
    fs::create_dir_all(to.path().join("0/rocksDb")).unwrap();
    for name in names(path).iter().filter(|name| *name != "LOCK") {
        fs::copy(path.join(name), to.path().join("0/rocksDb").join(name)).unwrap();
    }
    to
}

type Content = BTreeMap<(String, Vec<u8>), Vec<u8>>;

/// What RocksDB recovers from a scratch copy of a directory, or why it refuses it.
fn recovered(path: &Path, beside: &Path, mode: DBRecoveryMode) -> Result<Content, ErrorKind> {
    let scratch = image(path, beside);
    let (db, families) = open(&scratch.path().join("0/rocksDb"), "", mode)?;
    let mut content = Content::new();
    for name in &families {
        for entry in db.iterator_cf(&db.cf_handle(name).unwrap(), IteratorMode::Start) {
            let (key, value) = entry.map_err(|e| e.kind())?;
            content.insert((name.clone(), key.into_vec()), value.into_vec());
        }
    }
    Ok(content)
}

/// The difference between a copy and its source, if there is one, and the warnings of the copy.
struct Compared {
    difference: Option<String>,
    warnings: Vec<String>,
    /// What RocksDB recovers from the source.
    source: Result<usize, ErrorKind>,
}

/// Copies the database in `path` and compares. A node that refuses every irregular end is not compared: it would not start after
/// `kill -9` either.
fn compare(path: &Path, beside: &Path) -> Compared {
    let to = tempfile::tempdir_in(beside).unwrap();
    let copy = to.path().join("0/rocksDb");
    fs::create_dir(to.path().join("0")).unwrap();
    let warnings = live_copy_warned(path, &copy).unwrap_or_else(|e| panic!("{}", e.chain()));
    let mut compared = Compared { difference: None, warnings, source: Ok(0) };
    for mode in [DBRecoveryMode::TolerateCorruptedTailRecords, DBRecoveryMode::PointInTime] {
        let of_source = recovered(path, beside, mode);
        let of_copy = recovered(&copy, beside, mode);
        compared.source = of_source.as_ref().map(Content::len).map_err(Clone::clone);
        if of_source != of_copy {
            let counts = [&of_source, &of_copy].map(|all| all.as_ref().map(Content::len).map_err(Clone::clone));
            compared.difference = Some(format!("the source recovers {:?}, the copy {:?}", counts[0], counts[1]));
            return compared;
        }
    }
    let heights = heights_json(&copy).unwrap_or_else(|e| panic!("{}", e.chain()));
    if heights.starts_with("{\"cut\":") != compared.source.is_ok() {
        compared.difference = Some(format!("RocksDB: {:?}, the heights: {heights:?}", compared.source));
    }
    compared
}

/// One case; `None` if RocksDB refuses the database, so that no node can have it open. `simpler` is a wrong protocol.
fn case(base: &Path, state: State, damages: &[(usize, Damage)], simpler: Option<&'static str>) -> Option<Compared> {
    let beside = base.parent().unwrap().parent().unwrap();
    let root = image(base, beside);
    let path = root.path().join("0/rocksDb");
    let wals = wals(&path);
    damages.iter().for_each(|(at, damage)| damage.apply(&wals[*at]));
    simpler.into_iter().for_each(|name| gate::weaken(&path, name));
    let compared = if state == State::Live {
        let node = open(&path, KEEP, DBRecoveryMode::PointInTime).ok()?;
        let before = compare(&path, beside);
        write(&node.0, 10_000..10_050);
        let after = compare(&path, beside);
        Some(if before.difference.is_some() { before } else { after })
    } else {
        Some(compare(&path, beside))
    };
    gate::forget_points(&path);
    compared
}

/// All damages of all WALs of all shapes; returns the differences, and counts the refused and the shorter ones.
fn matrix(state: State, shapes: &[Shape], simpler: Option<&'static str>) -> Vec<String> {
    let mut differences = Vec::new();
    let (mut cases, mut refused, mut shorter, mut warned) = (0, 0, 0, 0);
    for shape in shapes {
        let root = build(*shape);
        let path = root.path().join("0/rocksDb");
        let crashed = (state == State::Crashed).then(|| open(&path, KEEP, DBRecoveryMode::PointInTime).unwrap());
        // A clean stop writes data that a crash does not.
        crashed.iter().for_each(|(db, _)| write(db, 1000..1040));
        let whole = recovered(&path, root.path(), DBRecoveryMode::PointInTime).unwrap().len();
        let last = wals(&path).len() - 1;
        for at in [0, last / 2, last] {
            for damage in DAMAGES {
                let what = format!("{shape:?} {state:?} {damage:?} in WAL {at} of {last}");
                let Some(compared) = case(&path, state, &[(at, damage)], simpler) else {
                    refused += 1;
                    continue;
                };
                cases += 1;
                refused += u32::from(compared.source.is_err());
                warned += u32::from(!compared.warnings.is_empty());
                let fewer = compared.source.as_ref().is_ok_and(|keys| *keys < whole);
                shorter += u32::from(fewer);
                // Every crash leaves such an end of the last WAL; a node that recovered from no WAL needs none of them.
                let is_usual = (at == last && matches!(damage, Short | Stub))
                    || (at == 0 && damage == Stub && state == State::Live);
                let is_silent = compared.warnings.is_empty() && (fewer || compared.source.is_err());
                if let Some(difference) = compared.difference {
                    differences.push(format!("{what}: {difference}"));
                } else if is_silent && !is_usual {
                    differences.push(format!("{what}: no warning"));
                }
            }
        }
        drop(crashed);
    }
    println!(
        "{state:?}: cases={cases} refused={refused} shorter={shorter} warned={warned} wrong={}",
        differences.len()
    );
    differences
}

#[test]
fn damaged_wals_of_a_stopped_node() {
    assert_eq!(matrix(State::Stopped, &SHAPES, None), [""; 0]);
}

#[test]
fn damaged_wals_of_a_crashed_node() {
    assert_eq!(matrix(State::Crashed, &SHAPES, None), [""; 0]);
}

#[test]
fn damaged_wals_of_a_running_node() {
    assert_eq!(matrix(State::Live, &SHAPES, None), [""; 0]);
}

/// The comparison finds that a protocol which trims every WAL is wrong; ours once did that.
#[test]
fn trimming_every_wal_would_be_seen() {
    let simpler = Some("trim-every-wal");
    let differences =
        [State::Stopped, State::Live].map(|state| matrix(state, &[Shape::One, Shape::TwoFlushedAndEmpty], simpler));
    assert!(differences.iter().all(|all| !all.is_empty()), "{differences:?}");
    differences.iter().flatten().for_each(|difference| println!("{difference}"));
}

/// Several damages at once, also WALs that end before their first record is complete.
#[test]
fn several_damaged_wals() {
    let mut random = fastrand::Rng::with_seed(13);
    for shape in SHAPES {
        let root = build(shape);
        let path = root.path().join("0/rocksDb");
        let count = wals(&path).len();
        for round in 0..12 {
            let state = if round % 3 == 0 { State::Live } else { State::Stopped };
            let damages: Vec<_> = (0..random.usize(2..4))
                .map(|_| (random.usize(0..count), random.choice(DAMAGES).unwrap()))
                .collect::<BTreeMap<_, _>>()
                .into_iter()
                .collect();
            if let Some(compared) = case(&path, state, &damages, None) {
                assert_eq!(compared.difference, None, "{shape:?} {state:?} {damages:?}");
            }
        }
    }
}

/// A backup of a damaged database has a warning, and one that RocksDB cannot open fails.
#[test]
fn a_damaged_source_is_told_of() {
    let root = build(Shape::One);
    let path = root.path().join("0/rocksDb");
    let service = Service::start(config(&root.path().join("backups")), Sources::directory(root.path())).unwrap();
    let id = make_done(&service, ROCKSDB);
    assert_eq!(record(&service, &id).warnings, [""; 0]);
    let older = wals(&path).remove(0);
    ChecksumInMiddle.apply(&older);
    let id = make_done(&service, ROCKSDB);
    let warnings = record(&service, &id).warnings;
    let name = older.file_name().unwrap().to_str().unwrap();
    assert!(matches!(&warnings[..], [one] if one.contains(name) && one.contains("is damaged")), "{warnings:?}");
    let metrics = call(&service, "GET", "/metrics", &[]).unwrap().body;
    assert!(metrics.contains("\nchainweb_backup_warnings 1\n"), "{metrics}");
    service.finish();

    let root = build(Shape::TwoFlushed);
    let path = root.path().join("0/rocksDb");
    ChecksumInMiddle.apply(&wals(&path)[0]);
    let service = Service::start(config(&root.path().join("backups")), Sources::directory(root.path())).unwrap();
    let (_, reason) = make_failed(&service, ROCKSDB);
    assert!(reason.contains("cannot recover the node's database") && reason.contains("is damaged"), "{reason}");
}

/// The node's own recovery mode, which its OPTIONS name, decides whether it starts.
#[test]
fn the_recovery_mode_of_the_node_decides() {
    let modes = [
        ("kPointInTimeRecovery", DBRecoveryMode::PointInTime),
        ("kAbsoluteConsistency", DBRecoveryMode::AbsoluteConsistency),
        ("kTolerateCorruptedTailRecords", DBRecoveryMode::TolerateCorruptedTailRecords),
        ("kSkipAnyCorruptedRecords", DBRecoveryMode::SkipAnyCorruptedRecord),
    ];
    let mut answers = Vec::new();
    for (word, mode) in modes {
        let root = build(Shape::TwoFlushed);
        let path = root.path().join("0/rocksDb");
        for entry in fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.file_name().unwrap().to_str().unwrap().starts_with("OPTIONS-") {
                let text = fs::read_to_string(&entry).unwrap();
                assert!(text.contains("wal_recovery_mode=kPointInTimeRecovery"));
                fs::write(
                    &entry,
                    text.replace("wal_recovery_mode=kPointInTimeRecovery", &format!("wal_recovery_mode={word}")),
                )
                .unwrap();
            }
        }
        let wals = wals(&path);
        Damage::ChecksumInMiddle.apply(&wals[wals.len() / 2]);
        let copy = root.path().join("copy");
        live_copy_warned(&path, &copy).unwrap_or_else(|e| panic!("{}", e.chain()));
        let starts = recovered(&copy, root.path(), mode).is_ok();
        let heights = heights_json(&copy).unwrap_or_else(|e| panic!("{}", e.chain()));
        assert_eq!(heights.starts_with("{\"cut\":"), starts, "{word}: {heights}");
        answers.push(starts);
    }
    assert!(answers.contains(&true) && answers.contains(&false), "{answers:?}: the modes differ");
}
