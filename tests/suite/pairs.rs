//! Delta pairs of Pact databases: each is compared, byte by byte, with a raw copy that was made in the same read transaction; their limits;
//! what damage of each of their parts is found by which check. `CHAINWEB_BACKUP_INCREMENTS` says how many copies each scenario makes.

use std::fs::{self, File, FileTimes};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use chainweb_backup::rusqlite::Connection;
use chainweb_backup::testing::{Paired, delta_copy};
use chainweb_backup::{
    BackupId, Config, Control, DrillOptions, Kind, Method, PactMethod, PactPart, Service, VerifyOptions,
    check_backup_in, drill_backup, gate, rehearse_restore, restore_backup, verify_backup,
};
use tempfile::TempDir;

use crate::fixture::{
    BLOCKS, DEEP, Node, PACT, QUICK, call, config, make_done, names, pact_height, record, restore_to, scratch,
    scratch_on_disk, whole,
};
use crate::increments::require_same;
use crate::reflink::Volume;
use crate::sqlite_pact::{SMALL, Shape, Writer, acknowledged, open, step, verify, verify_open};

/// After how many copies of a chain the next one is a new base.
const COPIES_OF_A_BASE: u64 = 12;

fn count() -> u64 {
    std::env::var("CHAINWEB_BACKUP_INCREMENTS").ok().and_then(|n| n.parse().ok()).unwrap_or(8)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}

/// A node's database, and a directory on the disk for its copies.
struct Stage {
    scratch: TempDir,
    database: PathBuf,
    place: TempDir,
    pairs_count: u64,
    written_bytes: u64,
}

impl Stage {
    fn new() -> Stage {
        let scratch = scratch();
        let database = scratch.path().join("pact-v1-chain-0.sqlite");
        gate::weaken(&database, "raw-compared");
        Stage { scratch, database, place: scratch_on_disk(), pairs_count: 0, written_bytes: 0 }
    }

    fn to(&self, n: u64) -> PathBuf {
        self.place.path().join(format!("{n}.sqlite"))
    }

    fn ack(&self, n: u64) -> PathBuf {
        self.scratch.path().join(format!("ack{n}"))
    }

    /// Copies it, and judges a pair: as one file it has the bytes of the raw copy, and as it is any SQLite reads it, and changes nothing.
    fn copy(&mut self, n: u64, earlier: Option<&Paired>, is_embedded: bool) -> (Paired, i64) {
        let to = self.to(n);
        let copied =
            delta_copy(&self.database, &to, earlier, is_embedded).unwrap_or_else(|e| panic!("{n}: {}", e.chain()));
        if earlier.is_none() {
            assert_eq!(copied.part.method, Method::RawCopy);
            return (copied, verify(&to).unwrap());
        }
        assert_eq!((copied.part.method, &copied.part.copied_because), (Method::Delta, &None), "copy {n}");
        let (folded, compared) = (beside(&to, ".folded"), beside(&to, ".compared"));
        copied.fold(&folded).unwrap_or_else(|e| panic!("{n}: {}", e.chain()));
        require_same(&folded, &compared);
        let counter = verify(&folded).unwrap_or_else(|e| panic!("copy {n} is bad: {e}"));
        [folded, compared].iter().for_each(|path| fs::remove_file(path).unwrap());
        let before = self.states(n);
        let opened = Connection::open(&to).unwrap();
        assert_eq!(verify_open(&opened), Ok(counter), "copy {n}");
        assert!(opened.execute_batch("DELETE FROM account").is_err(), "copy {n} can be written to");
        drop(opened);
        assert_eq!(self.states(n), before, "copy {n}: reading has changed it");
        self.pairs_count += 1;
        self.written_bytes += copied.part.written_bytes.unwrap();
        (copied, counter)
    }

    /// Everything that a reader could have changed.
    fn states(&self, n: u64) -> Vec<String> {
        let to = self.to(n);
        let paths = [to.clone(), beside(&to, "-wal"), beside(&to, "-shm")];
        let of = |path: &PathBuf| {
            let meta = path.symlink_metadata().unwrap();
            format!("{} {} {:?} {:o}", meta.ino(), meta.len(), meta.modified().unwrap(), meta.mode())
        };
        paths.iter().map(of).chain([format!("{:?}", names(&beside(&to, "-shm")))]).collect()
    }

    fn remove(&self, n: u64) {
        let to = self.to(n);
        fs::remove_file(&to).unwrap();
        if beside(&to, "-wal").exists() {
            fs::remove_file(beside(&to, "-wal")).unwrap();
            fs::remove_dir(beside(&to, "-shm")).unwrap();
        }
    }

    /// A chain of pairs, and now and then a new base; each has a counter that was acknowledged before it began, or a later one.
    fn chain(&mut self, scenario: &str, is_embedded: bool, acknowledged: &dyn Fn() -> i64) {
        let started = Instant::now();
        let (mut earlier, _) = self.copy(0, None, is_embedded);
        for n in 1..=count() {
            let before = acknowledged();
            let base = Some(&earlier).filter(|_| !n.is_multiple_of(COPIES_OF_A_BASE));
            let (next, counter) = self.copy(n, base, is_embedded);
            assert!(counter >= before, "{scenario}: copy {n} has {counter}, acknowledged were {before}");
            earlier = next;
            self.remove(n - 1);
        }
        let left = names(self.place.path()).len();
        assert!([1, 3].contains(&left), "{scenario}: {:?}", names(self.place.path()));
        println!(
            "{scenario}: {} pairs of {} bytes, byte-identical; {} bytes written each, {:?}",
            self.pairs_count,
            earlier.part.bytes,
            self.written_bytes / self.pairs_count.max(1),
            started.elapsed()
        );
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        gate::forget_points(&self.database);
    }
}

fn scenario(name: &str, shape: &Shape) {
    let mut stage = Stage::new();
    let mut writer = Writer::open(&stage.database, shape);
    writer.run(&stage.ack(0));
    let ack = stage.ack(0);
    stage.chain(name, false, &|| acknowledged(&ack));
}

#[test]
fn small_autocheckpoints() {
    scenario("plain", &SMALL);
}

/// The database grows, shrinks, and all its pages move.
#[test]
fn vacuum() {
    scenario("vacuum", &Shape { vacuum_after: 10, ..SMALL });
}

#[test]
fn transactions_larger_than_the_cache() {
    scenario("spill", &Shape { rows: 2000, cache_pages: 10, ..SMALL });
}

#[test]
fn pages_of_512_bytes_4_and_64_kib() {
    for page_bytes in [512, 4096, 65536] {
        scenario(&format!("page {page_bytes}"), &Shape { page_bytes, ..SMALL });
    }
}

#[test]
fn wal_checkpoints_that_truncate_and_restart() {
    let mut stage = Stage::new();
    let mut writer = Writer::open(&stage.database, &SMALL);
    writer.run(&stage.ack(0));
    let mut other = Writer::open(&stage.database, &SMALL);
    other.tell(&format!("checkpoints {}", stage.database.display()));
    let ack = stage.ack(0);
    stage.chain("explicit checkpoints", false, &|| acknowledged(&ack));
}

#[test]
fn two_writers() {
    let mut stage = Stage::new();
    let mut writer = Writer::open(&stage.database, &SMALL);
    writer.run(&stage.ack(0));
    let mut other = Writer::open(&stage.database, &Shape { autocheckpoint: 200, rows: 50, ..SMALL });
    other.run(&stage.ack(1));
    let acks = [stage.ack(0), stage.ack(1)];
    stage.chain("two writers", false, &|| acks.iter().map(|ack| acknowledged(ack)).max().unwrap());
}

/// Writers in our own process that open and close connections all the time.
#[test]
fn writers_in_the_same_process() {
    let mut stage = Stage::new();
    drop(open(&stage.database, &SMALL).unwrap());
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = [7, 40]
        .map(|reopen_after| {
            let (stop, path) = (Arc::clone(&stop), stage.database.clone());
            thread::spawn(move || {
                while !stop.load(SeqCst) {
                    let mut connection = open(&path, &SMALL).unwrap();
                    (0..reopen_after).for_each(|_| assert!(step(&mut connection, 6).unwrap() > 0));
                }
            })
        })
        .into();
    stage.chain("embedded", true, &|| 0);
    stop.store(true, SeqCst);
    writers.into_iter().for_each(|writer| writer.join().unwrap());
}

/// The writer is killed at random, and another one begins: the WAL is recovered, or has a tail that no commit ends.
#[test]
fn killed_writers() {
    let mut stage = Stage::new();
    let shape = Shape { rows: 60, cache_pages: 20, ..SMALL };
    drop(Writer::open(&stage.database, &shape));
    let stop = Arc::new(AtomicBool::new(false));
    let killer = {
        let (stop, database, ack) = (Arc::clone(&stop), stage.database.clone(), stage.ack(0));
        let mut writer = Writer::open(&database, &shape);
        writer.run(&ack);
        thread::spawn(move || {
            while !stop.load(SeqCst) {
                sleep(Duration::from_millis(fastrand::u64(1..40)));
                writer.kill();
                writer = Writer::open(&database, &shape);
                writer.run(&ack);
            }
        })
    };
    stage.chain("kill -9", false, &|| 0);
    stop.store(true, SeqCst);
    killer.join().unwrap();
}

/// The comparison sees what a step is there for: without the frames of the WAL over the file, pairs are wrong.
#[test]
fn without_the_frames_pairs_are_wrong() {
    let stage = Stage::new();
    let mut writer = Writer::open(&stage.database, &Shape { autocheckpoint: 0, ..SMALL });
    writer.tell("write 5");
    writer.tell("sql PRAGMA wal_checkpoint(TRUNCATE)");
    let base = delta_copy(&stage.database, &stage.to(0), None, false).unwrap();
    for (n, weak) in [(1, false), (2, true)] {
        writer.tell("write 5");
        if weak {
            gate::weaken(&stage.database, "raw-without-frames");
        }
        let copied = delta_copy(&stage.database, &stage.to(n), Some(&base), false).unwrap();
        let folded = beside(&stage.to(n), ".folded");
        copied.fold(&folded).unwrap();
        let is_same = fs::read(folded).unwrap() == fs::read(beside(&stage.to(n), ".compared")).unwrap();
        assert_eq!(is_same, !weak);
    }
}

/// A node whose backups are pairs.
struct Backups {
    place: TempDir,
    node: Node,
    /// Each backup with its height.
    made: Vec<(BackupId, u64)>,
}

impl Backups {
    fn new(chains: u64) -> Backups {
        Backups::of(Node::with_chains(chains))
    }

    fn of(mut node: Node) -> Backups {
        let filler = "CREATE TABLE filler (n INTEGER PRIMARY KEY, pad BLOB);
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 2000)
             INSERT INTO filler SELECT i, randomblob(900) FROM n; PRAGMA wal_checkpoint(TRUNCATE)";
        node.pact().iter().for_each(|connection| connection.execute_batch(filler).unwrap());
        node.rocksdb_block(BLOCKS + 1);
        node.pact_block(BLOCKS + 1);
        Backups { place: scratch(), node, made: Vec::new() }
    }

    fn directory(&self) -> PathBuf {
        self.place.path().join("backups")
    }

    fn service(&self, change: impl FnOnce(&mut Config)) -> Service {
        let mut config = Config { pact_method: PactMethod::Delta, ..config(&self.directory()) };
        change(&mut config);
        Service::start(config, self.node.embedded()).unwrap()
    }

    /// The node writes a block, and a backup is made.
    fn make_with(&mut self, change: impl FnOnce(&mut Config)) -> (BackupId, PactPart, Vec<String>) {
        let height = pact_height(&self.node.pact()[0]) + 1;
        self.node.rocksdb_block(height);
        self.node.pact_block(height);
        let service = self.service(change);
        let id = make_done(&service, PACT);
        let mut record = record(&service, &id);
        service.finish();
        self.made.push((id.clone(), height));
        (id, record.pact.remove(0), record.warnings)
    }

    fn make(&mut self) -> (BackupId, PactPart) {
        let (id, part, _) = self.make_with(|_| ());
        (id, part)
    }

    /// Makes one that must be a whole copy, for this reason.
    fn make_whole(&mut self, why: &str) -> BackupId {
        let (id, part) = self.make();
        let because = part.copied_because.unwrap_or_default();
        assert!(part.method == Method::RawCopy && because.contains(why), "{:?} because {because:?}", part.method);
        id
    }

    /// Changes this part of the filler, in percent.
    fn change(&self, percent: u64) {
        let change = format!("UPDATE filler SET pad = randomblob(900) WHERE n % 100 < {percent}");
        self.node.pact().iter().for_each(|connection| connection.execute_batch(&change).unwrap());
    }

    fn path(&self, id: &BackupId) -> PathBuf {
        self.directory().join(id.as_str())
    }

    fn database(&self, id: &BackupId, chain: u64) -> PathBuf {
        self.path(id).join(format!("0/sqlite/pact-v1-chain-{chain}.sqlite"))
    }

    fn faults(&self, id: &BackupId, options: VerifyOptions<'_>) -> Vec<String> {
        let (_, found) = verify_backup(&self.directory(), id.as_str(), options, &Control::default()).unwrap();
        found.faults.iter().map(|fault| format!("{}: {}", fault.file, fault.why)).collect()
    }

    fn faults_count(&self, id: &BackupId) -> u64 {
        let details = check_backup_in(&self.directory(), id).unwrap().unwrap();
        details.verified.map_or(0, |verified| verified.faults_count)
    }

    fn exclusive_bytes(&self, id: &BackupId) -> u64 {
        check_backup_in(&self.directory(), id).unwrap().unwrap().exclusive_bytes.unwrap()
    }

    /// Fails unless every backup that is there is good, and restores to its own day, in ordinary files.
    fn check(&self) {
        for (id, height) in self.made.iter().filter(|(id, _)| self.path(id).exists()) {
            assert_eq!(self.faults(id, QUICK), [] as [&str; 0], "{id}");
            assert_eq!(self.faults(id, DEEP), [] as [&str; 0], "{id}");
            let (heights_rocksdb, heights) = whole(&self.path(id));
            assert!(heights_rocksdb == *height && heights.iter().all(|of| of == height), "{id}");
            let target = scratch();
            restore_backup(&self.directory(), id.as_str(), restore_to(target.path()), &Control::default()).unwrap();
            let sqlite = target.path().join("0/sqlite");
            assert_eq!(names(&sqlite).len(), heights.len(), "{:?}", names(&sqlite));
            for (chain, name) in names(&sqlite).iter().enumerate() {
                let mode = |path: &Path| path.metadata().unwrap().mode() & 0o777;
                assert_eq!(mode(&sqlite.join(name)), mode(&self.node.sqlite(chain as u64)), "{id}");
                assert_eq!(verify_height(&sqlite.join(name)), *height, "{id}");
            }
        }
    }
}

/// The height of a restored database, as a node opens it.
fn verify_height(database: &Path) -> u64 {
    pact_height(&Connection::open(database).unwrap())
}

#[test]
fn backups_are_pairs_on_one_base() {
    let mut backups = Backups::new(2);
    backups.node.pact().iter().for_each(|c| c.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap());
    fs::set_permissions(backups.node.sqlite(0), fs::Permissions::from_mode(0o660)).unwrap();
    let (first, part) = backups.make();
    assert_eq!((part.method, &part.base, &part.pair, part.mode), (Method::RawCopy, &None, &None, Some(0o660)));
    let mode = |path: &Path| path.metadata().unwrap().mode() & 0o777;
    assert_eq!(mode(&backups.database(&first, 0)), 0o440);
    let inode = backups.database(&first, 0).metadata().unwrap().ino();
    let alone_bytes = backups.exclusive_bytes(&first);
    assert!(alone_bytes > part.bytes);
    let mut sum_bytes = 0;
    for n in 1..=4 {
        let (id, part, warnings) = backups.make_with(|_| ());
        let is_new = |warning: &&String| warning.contains("damage") || warning.contains("increment");
        assert_eq!(warnings.iter().find(is_new), None);
        assert_eq!((part.method, part.base.as_ref(), &part.copied_because), (Method::Delta, Some(&first), &None));
        let pair = part.pair.as_ref().unwrap();
        sum_bytes += pair.wal_bytes;
        assert_eq!((pair.deltas_count, pair.deltas_bytes, part.written_bytes), (n, sum_bytes, Some(pair.wal_bytes)));
        assert!(pair.wal_bytes < part.bytes / 20, "{} of {}", pair.wal_bytes, part.bytes);
        let database = backups.database(&id, 0);
        assert_eq!((database.metadata().unwrap().ino(), mode(&beside(&database, "-wal"))), (inode, 0o440));
        assert_eq!(names(&beside(&database, "-shm")), [] as [&str; 0]);
        let manifest = fs::read_to_string(backups.path(&id).join("manifest.json")).unwrap();
        let line = |name: &str| manifest.lines().find(|line| line.contains(&format!("{name}\""))).unwrap().to_owned();
        assert!(line("chain-0.sqlite").contains(r#""method":"reused""#), "{manifest}");
        let wal = line("chain-0.sqlite-wal");
        assert!(wal.contains(r#""method":"delta""#) && wal.contains(&pair.wal_blake2b), "{wal}");
        // What they share is in none of them alone.
        assert!(backups.exclusive_bytes(&id) < alone_bytes - part.bytes * 3 / 2);
    }
    assert!(backups.exclusive_bytes(&first) < alone_bytes - part.bytes * 3 / 2);
    let service = backups.service(|_| ());
    let metrics = call(&service, "GET", "/metrics", &[]).unwrap().body;
    assert!(metrics.contains(r#"chainweb_backup_pact_written_bytes{method="delta"}"#), "{metrics}");
    service.finish();
    drop(service);
    backups.check();

    // A dry run says what a restore does, and a drill passes.
    let target = scratch();
    let (_, told) =
        rehearse_restore(&backups.directory(), "latest", restore_to(target.path()), &Control::default()).unwrap();
    let pact = told.parts.iter().find(|part| part.directory.ends_with("sqlite")).unwrap();
    assert_eq!((pact.copied_count, pact.linked_count, pact.cloned_count), (2, 0, 0));
    let options = DrillOptions { command: &[], time_limit: Duration::from_secs(60), copy: false, program: None };
    let (_, drill) = drill_backup(&backups.directory(), "latest", options, &Control::default()).unwrap();
    assert!(drill.passed, "{:?}", drill.reason);

    // Any of them may be removed, in any order, the one that wrote the base first; the last one alone has it.
    let mut ids: Vec<BackupId> = backups.made.iter().map(|(id, _)| id.clone()).collect();
    for at in [0, 2, 0, 0] {
        fs::remove_dir_all(backups.path(&ids.remove(at))).unwrap();
        backups.check();
    }
    assert!(backups.exclusive_bytes(&ids[0]) > part.bytes);
    let (_, part) = backups.make();
    assert_eq!((part.method, part.base), (Method::Delta, Some(first)));
    backups.node.check();
}

/// When the next backup gets a new base.
#[test]
fn a_base_has_limits() {
    let mut backups = Backups::new(1);
    backups.make_with(|config| config.pact_method = PactMethod::Copy);
    let base = backups.make_whole("was not written as a base");
    let (_, part) = backups.make();
    assert_eq!((part.method, part.base), (Method::Delta, Some(base)));

    // One that has changed too much.
    backups.change(60);
    backups.make_whole("have changed");
    // Several that together have.
    backups.change(20);
    let mut count = 0;
    let whole = loop {
        backups.change(1);
        let (id, part) = backups.make();
        match part.pair {
            Some(pair) => assert!(pair.deltas_bytes < pair.base_bytes + pair.base_bytes / 4),
            None => break (id, part),
        }
        count += 1;
    };
    assert!((4..8).contains(&count), "{count} pairs");
    assert!(whole.1.copied_because.unwrap().contains("have become as many"));

    // The time of the base is another one: that is no damage, but no later pair is made on it.
    let (id, _) = backups.make();
    let file = File::open(backups.database(&id, 0)).unwrap();
    file.set_times(FileTimes::new().set_modified(std::time::UNIX_EPOCH)).unwrap();
    backups.check();
    let newest = backups.make_whole("its base has another time");
    // Its mode is another one.
    fs::set_permissions(backups.database(&newest, 0), fs::Permissions::from_mode(0o640)).unwrap();
    let newest = backups.make_whole("it may be written to");
    // Its sums are gone.
    fs::remove_file(backups.path(&newest).join("pact-sums.json")).unwrap();
    let newest = backups.make_whole("its sums are missing");
    // 30 backups are on one base.
    for n in 1..30 {
        let (_, part) = backups.make();
        assert_eq!((part.method, part.base.as_ref()), (Method::Delta, Some(&newest)), "{n}: {:?}", part.copied_because);
    }
    backups.make_whole("as many pairs as it may have");
    backups.check();
}

fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 16], at).unwrap();
}

/// The same, and nothing shows it.
fn rot(path: &Path, at: u64) {
    let time = path.metadata().unwrap().modified().unwrap();
    flip(path, at);
    File::open(path).unwrap().set_times(FileTimes::new().set_modified(time)).unwrap();
}

/// The comparison tells a page of the base that has rotted from one that has changed; so does a deep verification of one backup. The damage
/// is noted in every backup on that base, and the next one gets a new base.
#[test]
fn damage_of_a_base_is_noted_in_each_backup_on_it() {
    let mut backups = Backups::new(1);
    let (first, part) = backups.make();
    let (second, _) = backups.make();
    rot(&backups.database(&first, 0), part.bytes / 2);
    let (third, part, warnings) = backups.make_with(|_| ());
    let why = part.copied_because.unwrap();
    assert!(part.method == Method::RawCopy && why.contains("recorded sum"), "{why}");
    assert!(warnings.iter().any(|warning| warning.contains(&why)), "{warnings:?}");
    assert_eq!([&first, &second, &third].map(|id| backups.faults_count(id)), [1, 1, 0]);
    let (fourth, part) = backups.make();
    assert_eq!((part.method, part.base), (Method::Delta, Some(third.clone())));
    let (fifth, _) = backups.make();
    rot(&backups.database(&fourth, 0), part.bytes / 3);
    assert!(backups.faults(&fourth, DEEP).iter().any(|fault| fault.contains("recorded sum")));
    assert_eq!([&third, &fourth, &fifth].map(|id| backups.faults_count(id).min(1)), [1, 1, 1]);
    for id in [&first, &second, &third, &fourth, &fifth] {
        let target = scratch();
        let restored =
            restore_backup(&backups.directory(), id.as_str(), restore_to(target.path()), &Control::default());
        assert_eq!(restored.unwrap_err().kind(), Kind::Damaged);
    }
    // No good backup is left, and no file of a damaged one is taken.
    let (_, part) = backups.make();
    assert_eq!((part.method, part.base, part.copied_because), (Method::RawCopy, None, None));
}

/// The increments of xfs and btrfs can be made of a pair, and a pair can follow them.
#[test]
fn pairs_and_clones_follow_each_other() {
    for (kind, volume) in Volume::each() {
        let place = tempfile::Builder::new().tempdir_in(volume.path()).unwrap();
        let mut backups = Backups { place, ..Backups::new(1) };
        let base = backups.make_whole("");
        let (_, part) = backups.make();
        assert_eq!((part.method, part.base), (Method::Delta, Some(base)), "{kind}");
        let (_, part, _) = backups.make_with(|config| config.pact_method = PactMethod::Auto);
        assert_eq!((part.method, part.mode), (Method::Increment, None), "{kind}: {:?}", part.copied_because);
        let (_, part, _) = backups.make_with(|config| config.pact_method = PactMethod::Auto);
        assert_eq!(part.method, Method::Increment, "{kind}");
        let base = backups.make_whole("was not written as a base");
        let (_, part) = backups.make();
        assert_eq!((part.method, part.base), (Method::Delta, Some(base)), "{kind}");
        backups.check();
    }
}

/// A damage of a backup with pairs.
struct Case {
    what: &'static str,
    /// Whether a quick verification finds it.
    is_quick: bool,
    act: fn(&Parts),
}

/// The parts of the backup that is damaged, of its second chain, and of the backup of the next day.
struct Parts {
    backup: PathBuf,
    base: PathBuf,
    wal: PathBuf,
    guard: PathBuf,
    other_base: PathBuf,
    other_wal: PathBuf,
    next: PathBuf,
    next_wal: PathBuf,
    frame_bytes: u64,
    frames_count: u64,
}

impl Parts {
    fn frame(&self, n: u64) -> u64 {
        32 + n * self.frame_bytes
    }

    fn cut(&self, path: &Path, bytes: u64) {
        File::options().write(true).open(path).unwrap().set_len(bytes).unwrap();
    }

    fn replace(&self, path: &Path, by: &Path) {
        let bytes = fs::read(by).unwrap();
        fs::remove_file(path).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// Takes this range out of the WAL, or fills it with zeroes.
fn without(parts: &Parts, range: std::ops::Range<u64>, zeroed: bool) {
    let mut wal = fs::read(&parts.wal).unwrap();
    let range = range.start as usize..range.end as usize;
    let by = if zeroed { vec![0; range.len()] } else { Vec::new() };
    wal.splice(range, by);
    fs::write(&parts.wal, wal).unwrap();
}

/// A symbolic link in the place of a file, to the same content.
fn link_instead(path: &Path) {
    let moved = path.parent().unwrap().parent().unwrap().parent().unwrap().join("moved");
    fs::rename(path, &moved).unwrap();
    std::os::unix::fs::symlink(&moved, path).unwrap();
}

fn swap_frames(parts: &Parts, a: u64, b: u64) {
    let mut wal = fs::read(&parts.wal).unwrap();
    let (a, b, length) = (parts.frame(a) as usize, parts.frame(b) as usize, parts.frame_bytes as usize);
    let first = wal[a..a + length].to_vec();
    wal.copy_within(b..b + length, a);
    wal[b..b + length].copy_from_slice(&first);
    fs::write(&parts.wal, wal).unwrap();
}

/// Another file of the same size and time, as a base.
fn foreign_base(parts: &Parts) {
    let (mut bytes, time) = (fs::read(&parts.base).unwrap(), parts.base.metadata().unwrap().modified().unwrap());
    let header = bytes[..4096].to_vec();
    bytes.rotate_left(4096 * 3);
    bytes[..4096].copy_from_slice(&header);
    fs::remove_file(&parts.base).unwrap();
    fs::write(&parts.base, bytes).unwrap();
    File::open(&parts.base).unwrap().set_times(FileTimes::new().set_modified(time)).unwrap();
}

#[rustfmt::skip]
const CASES: &[Case] = &[
    Case { what: "flip: salt in the header of the WAL", is_quick: true, act: |p| flip(&p.wal, 17) },
    Case { what: "flip: second salt", is_quick: true, act: |p| flip(&p.wal, 21) },
    Case { what: "flip: checksum of the header", is_quick: true, act: |p| flip(&p.wal, 25) },
    Case { what: "flip: magic number", is_quick: true, act: |p| flip(&p.wal, 1) },
    Case { what: "flip: first frame, its number", is_quick: true, act: |p| flip(&p.wal, p.frame(0) + 3) },
    Case { what: "flip: first frame, its page", is_quick: true, act: |p| flip(&p.wal, p.frame(0) + 500) },
    Case { what: "flip: a frame, its number", is_quick: false, act: |p| flip(&p.wal, p.frame(p.frames_count / 2) + 3) },
    Case { what: "flip: a frame, its salt", is_quick: false, act: |p| flip(&p.wal, p.frame(p.frames_count / 2) + 9) },
    Case { what: "flip: a frame, its checksum", is_quick: false, act: |p| flip(&p.wal, p.frame(p.frames_count / 2) + 20) },
    Case { what: "flip: a frame, its page", is_quick: false, act: |p| flip(&p.wal, p.frame(p.frames_count / 2) + 700) },
    Case { what: "flip: a frame, a commit too early", is_quick: false, act: |p| flip(&p.wal, p.frame(p.frames_count / 2) + 7) },
    Case { what: "flip: last frame, its pages", is_quick: true, act: |p| flip(&p.wal, p.frame(p.frames_count - 1) + 7) },
    Case { what: "flip: last frame, its page", is_quick: true, act: |p| flip(&p.wal, p.frame(p.frames_count) - 1) },
    Case { what: "cut: the WAL by a byte", is_quick: true, act: |p| p.cut(&p.wal, p.frame(p.frames_count) - 1) },
    Case { what: "cut: the WAL by a frame", is_quick: true, act: |p| p.cut(&p.wal, p.frame(p.frames_count - 1)) },
    Case { what: "cut: the WAL to its header", is_quick: true, act: |p| p.cut(&p.wal, 32) },
    Case { what: "cut: the WAL within its header", is_quick: true, act: |p| p.cut(&p.wal, 20) },
    Case { what: "cut: the WAL to nothing", is_quick: true, act: |p| p.cut(&p.wal, 0) },
    Case { what: "longer: the WAL by a frame", is_quick: true, act: |p| p.cut(&p.wal, p.frame(p.frames_count + 1)) },
    Case { what: "swap: two frames", is_quick: false, act: |p| swap_frames(p, 1, p.frames_count / 2) },
    Case { what: "swap: the last frame with one", is_quick: true, act: |p| swap_frames(p, 1, p.frames_count - 1) },
    Case { what: "drop: the WAL", is_quick: true, act: |p| fs::remove_file(&p.wal).unwrap() },
    Case { what: "exchange: the WAL of another chain", is_quick: true, act: |p| p.replace(&p.wal, &p.other_wal) },
    Case { what: "wrong day: the WAL", is_quick: true, act: |p| p.replace(&p.wal, &p.next_wal) },
    Case { what: "flip: the page size in the header of the WAL", is_quick: true, act: |p| flip(&p.wal, 10) },
    Case { what: "flip: the number of checkpoints", is_quick: true, act: |p| flip(&p.wal, 15) },
    Case { what: "cut: the WAL in the middle of a frame", is_quick: true, act: |p| p.cut(&p.wal, p.frame(p.frames_count / 2) + 500) },
    Case { what: "drop: a frame", is_quick: true, act: |p| without(p, p.frame(3)..p.frame(4), false) },
    Case { what: "zeroes: a frame", is_quick: false, act: |p| without(p, p.frame(3)..p.frame(4), true) },
    Case { what: "zeroes: the last frame", is_quick: true, act: |p| without(p, p.frame(p.frames_count - 1)..p.frame(p.frames_count), true) },
    Case { what: "exchange: a link as WAL", is_quick: true, act: |p| link_instead(&p.wal) },
    Case { what: "exchange: a link as base", is_quick: true, act: |p| link_instead(&p.base) },
    Case { what: "swap: base and WAL", is_quick: true, act: |p| {
        let (base, wal) = (fs::read(&p.base).unwrap(), fs::read(&p.wal).unwrap());
        fs::remove_file(&p.base).unwrap();
        fs::write(&p.base, wal).unwrap();
        fs::write(&p.wal, base).unwrap();
    } },
    Case { what: "rot: a page of the base that the WAL has, too", is_quick: false, act: |p| {
        let mut number = [0; 4];
        File::open(&p.wal).unwrap().read_exact_at(&mut number, p.frame(p.frames_count / 2)).unwrap();
        rot(&p.base, u64::from(u32::from_be_bytes(number) - 1) * 1024 + 700);
    } },
    Case { what: "cut: the base to nothing", is_quick: true, act: |p| p.cut(&p.base, 0) },
    Case { what: "exchange: a FIFO as guard", is_quick: true, act: |p| {
        fs::remove_dir(&p.guard).unwrap();
        assert!(Command::new("mkfifo").arg(&p.guard).status().unwrap().success());
    } },
    Case { what: "drop: the record", is_quick: true, act: |p| fs::remove_file(p.backup.join("backup.json")).unwrap() },
    Case { what: "wrong day: the record, the manifest and the sums", is_quick: true, act: |p| {
        for name in ["backup.json", "manifest.json", "pact-sums.json"] {
            p.replace(&p.backup.join(name), &p.next.join(name));
        }
    } },
    Case { what: "wrong day: the WAL and the sums", is_quick: true, act: |p| {
        p.replace(&p.wal, &p.next_wal);
        p.replace(&p.backup.join("pact-sums.json"), &p.next.join("pact-sums.json"));
    } },
    Case { what: "flip: the base", is_quick: true, act: |p| flip(&p.base, p.base.metadata().unwrap().len() / 2) },
    Case { what: "rot: the base", is_quick: false, act: |p| rot(&p.base, p.base.metadata().unwrap().len() / 2) },
    Case { what: "rot: the first page of the base", is_quick: false, act: |p| rot(&p.base, 400) },
    Case { what: "rot: the last byte of the base", is_quick: false, act: |p| rot(&p.base, p.base.metadata().unwrap().len() - 1) },
    Case { what: "cut: the base", is_quick: true, act: |p| p.cut(&p.base, p.base.metadata().unwrap().len() - 1024) },
    Case { what: "longer: the base", is_quick: true, act: |p| p.cut(&p.base, p.base.metadata().unwrap().len() + 1024) },
    Case { what: "drop: the base", is_quick: true, act: |p| fs::remove_file(&p.base).unwrap() },
    Case { what: "exchange: the base of another chain", is_quick: true, act: |p| p.replace(&p.base, &p.other_base) },
    Case { what: "wrong base: of the same size and time", is_quick: false, act: foreign_base },
    Case { what: "exchange: base and WAL of another chain", is_quick: true, act: |p| {
        p.replace(&p.base, &p.other_base);
        p.replace(&p.wal, &p.other_wal);
    } },
    Case { what: "drop: the guard", is_quick: true, act: |p| fs::remove_dir(&p.guard).unwrap() },
    Case { what: "exchange: a file as guard", is_quick: true, act: |p| {
        fs::remove_dir(&p.guard).unwrap();
        fs::write(&p.guard, [0; 32768]).unwrap();
    } },
    Case { what: "exchange: a link as guard", is_quick: true, act: |p| {
        fs::remove_dir(&p.guard).unwrap();
        std::os::unix::fs::symlink("/", &p.guard).unwrap();
    } },
    Case { what: "a file in the guard", is_quick: true, act: |p| fs::write(p.guard.join("x"), "").unwrap() },
    Case { what: "flip: the manifest", is_quick: true, act: |p| flip(&p.backup.join("manifest.json"), 300) },
    Case { what: "flip: the record", is_quick: true, act: |p| flip(&p.backup.join("backup.json"), 1200) },
    Case { what: "cut: the record", is_quick: true, act: |p| p.cut(&p.backup.join("backup.json"), 900) },
    Case { what: "flip: the sums", is_quick: true, act: |p| flip(&p.backup.join("pact-sums.json"), 300) },
    Case { what: "drop: the sums", is_quick: true, act: |p| fs::remove_file(p.backup.join("pact-sums.json")).unwrap() },
    Case { what: "drop: the manifest", is_quick: true, act: |p| fs::remove_file(p.backup.join("manifest.json")).unwrap() },
    Case { what: "wrong day: the sums", is_quick: true, act: |p| {
        p.replace(&p.backup.join("pact-sums.json"), &p.next.join("pact-sums.json"));
    } },
    Case { what: "wrong day: the manifest", is_quick: true, act: |p| {
        p.replace(&p.backup.join("manifest.json"), &p.next.join("manifest.json"));
    } },
    Case { what: "wrong day: the record", is_quick: true, act: |p| {
        p.replace(&p.backup.join("backup.json"), &p.next.join("backup.json"));
    } },
];

/// Each damage is found by a deep verification, and by a quick one if sizes, times, ends or seals show it. A restore writes what was backed
/// up, or fails.
#[test]
fn each_damage_is_found_and_no_restore_is_wrong() {
    let mut backups = Backups::new(2);
    backups.make();
    backups.change(8);
    backups.make();
    backups.change(9);
    let (victim, part) = backups.make();
    let frames_count = part.pair.unwrap().frames_count;
    assert!(frames_count > 20);
    backups.change(10);
    let (next, _) = backups.make();
    let good = |directory: &Path| {
        let target = scratch();
        let restored = restore_backup(directory, victim.as_str(), restore_to(target.path()), &Control::default());
        restored.map(|_| {
            [0, 1].map(|n| fs::read(target.path().join(format!("0/sqlite/pact-v1-chain-{n}.sqlite"))).unwrap())
        })
    };
    let expected = good(&backups.directory()).unwrap();
    let (mut quick_count, mut restored_count) = (0, 0);
    for Case { what, is_quick, act } in CASES {
        let place = scratch();
        let copy = place.path().join("backups");
        let copied = Command::new("cp").arg("-a").args([&backups.directory(), &copy]).status().unwrap();
        assert!(copied.success());
        let (backup, next) = (copy.join(victim.as_str()), copy.join(next.as_str()));
        let file =
            |backup: &Path, chain: u64, end: &str| backup.join(format!("0/sqlite/pact-v1-chain-{chain}.sqlite{end}"));
        act(&Parts {
            base: file(&backup, 0, ""),
            wal: file(&backup, 0, "-wal"),
            guard: file(&backup, 0, "-shm"),
            other_base: file(&backup, 1, ""),
            other_wal: file(&backup, 1, "-wal"),
            next_wal: file(&next, 0, "-wal"),
            backup,
            next,
            frame_bytes: 24 + 1024,
            frames_count,
        });
        let finds = |options| {
            let found = verify_backup(&copy, victim.as_str(), options, &Control::default());
            found.map_or_else(|e| vec![e.chain()], |(_, found)| found.faults.iter().map(ToString::to_string).collect())
        };
        let restored = good(&copy);
        if let Ok(restored) = &restored {
            assert!(*restored == expected, "{what}: the restore is wrong");
            restored_count += 1;
        }
        let (quick, deep) = (finds(QUICK), finds(DEEP));
        println!("{what}\n  quick: {quick:?}\n  deep: {deep:?}\n  restore: {:?}", restored.err().map(|e| e.chain()));
        assert!(!deep.is_empty(), "{what} is not found");
        assert_eq!(!quick.is_empty(), *is_quick, "{what}: {quick:?}");
        quick_count += u32::from(*is_quick);
    }
    println!("{} damages, {quick_count} found quickly, {restored_count} restored right", CASES.len());
}
