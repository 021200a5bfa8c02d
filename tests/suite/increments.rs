//! Increments of Pact databases by clones, on xfs and btrfs: each is compared, byte by byte, with a raw copy that was made in the same
//! read transaction. The environment variable `CHAINWEB_BACKUP_INCREMENTS` says how many each scenario makes.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use chainweb_backup::testing::{Earlier, incremental_copy};
use chainweb_backup::{
    BackupId, Config, Control, Depth, Method, PactMethod, PactPart, Service, VerifyOptions, check_backup_in, gate,
    verify_backup,
};
use tempfile::TempDir;

use crate::fixture::{
    BLOCKS, Node, PACT, call, config, make_done, make_failed, names, pact_height, record, scratch, wait_until, whole,
};
use crate::reflink::Volume;
use crate::sqlite_pact::{SMALL, Shape, Writer, acknowledged, open, step, verify};

const DEEP: VerifyOptions<'static> = VerifyOptions { depth: Depth::Deep, program: None };

fn count() -> u64 {
    std::env::var("CHAINWEB_BACKUP_INCREMENTS").ok().and_then(|n| n.parse().ok()).unwrap_or(8)
}

/// A node's database, and a volume for its copies.
pub struct Stage {
    pub scratch: TempDir,
    pub database: PathBuf,
    volume: Volume,
    made_count: u64,
    written_bytes: u64,
}

impl Stage {
    pub fn new(volume: Volume) -> Stage {
        let scratch = scratch();
        let database = scratch.path().join("pact-v1-chain-0.sqlite");
        gate::weaken(&database, "raw-compared");
        Stage { scratch, database, volume, made_count: 0, written_bytes: 0 }
    }

    pub fn to(&self, n: u64) -> PathBuf {
        self.volume.path().join(format!("{n}.sqlite"))
    }

    fn ack(&self, n: u64) -> PathBuf {
        self.scratch.path().join(format!("ack{n}"))
    }

    /// Makes a copy that is an increment, and judges it: it has the bytes of the raw copy, and is intact.
    pub fn increment(&mut self, n: u64, earlier: &Earlier, is_embedded: bool) -> (PactPart, Earlier) {
        let (part, next) = self.copy(n, Some(earlier), is_embedded);
        assert_eq!((part.method, &part.copied_because), (Method::Increment, &None), "copy {n}");
        self.made_count += 1;
        self.written_bytes += part.written_bytes.unwrap();
        (part, next)
    }

    /// Whether an increment that is made now has the bytes of the raw copy.
    fn is_same(&self, n: u64, earlier: &Earlier) -> bool {
        let to = self.to(n);
        incremental_copy(&self.database, &to, Some(earlier), false).unwrap();
        fs::read(&to).unwrap() == fs::read(format!("{}.compared", to.display())).unwrap()
    }

    pub fn copy(&self, n: u64, earlier: Option<&Earlier>, is_embedded: bool) -> (PactPart, Earlier) {
        let to = self.to(n);
        let (part, next) = incremental_copy(&self.database, &to, earlier, is_embedded)
            .unwrap_or_else(|e| panic!("{n}: {}", e.chain()));
        let compared = PathBuf::from(format!("{}.compared", to.display()));
        if compared.exists() {
            require_same(&to, &compared);
            fs::remove_file(compared).unwrap();
        } else {
            assert_ne!(part.method, Method::Increment, "not compared");
        }
        (part, next)
    }

    /// A chain of increments, each of the one before; each has a counter that was acknowledged before it began, or a later one.
    fn chain(&mut self, scenario: &str, is_embedded: bool, acknowledged: &dyn Fn() -> i64) {
        let started = Instant::now();
        let (_, mut earlier) = self.copy(0, None, is_embedded);
        for n in 1..=count() {
            let before = acknowledged();
            earlier = self.increment(n, &earlier, is_embedded).1;
            let counter = verify(&self.to(n)).unwrap_or_else(|e| panic!("{scenario}: increment {n} is bad: {e}"));
            assert!(counter >= before, "{scenario}: increment {n} has {counter}, acknowledged were {before}");
            fs::remove_file(self.to(n - 1)).unwrap();
        }
        assert_eq!(names(&self.volume.path()).iter().filter(|name| name.contains("sqlite")).count(), 1);
        let bytes = fs::metadata(self.to(count())).unwrap().len();
        println!(
            "{scenario}: {} increments of {bytes} bytes, byte-identical; {} bytes written each, {:?}",
            self.made_count,
            self.written_bytes / self.made_count,
            started.elapsed()
        );
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        gate::forget_points(&self.database);
    }
}

/// Past the page cache: what is on the disk.
pub fn require_same(one: &Path, other: &Path) {
    for path in [one, other] {
        let file = File::open(path).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
    let (one_bytes, other_bytes) = (fs::read(one).unwrap(), fs::read(other).unwrap());
    assert_eq!(one_bytes.len(), other_bytes.len(), "{}", one.display());
    let differing = one_bytes.iter().zip(&other_bytes).position(|(a, b)| a != b);
    assert_eq!(differing, None, "{} of {} bytes", one.display(), one_bytes.len());
}

fn scenario(name: &str, shape: &Shape) {
    for (kind, volume) in Volume::each() {
        let mut stage = Stage::new(volume);
        let mut writer = Writer::open(&stage.database, shape);
        writer.run(&stage.ack(0));
        let ack = stage.ack(0);
        stage.chain(&format!("{name}, {kind}"), false, &|| acknowledged(&ack));
    }
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
    for (kind, volume) in Volume::each() {
        let mut stage = Stage::new(volume);
        let mut writer = Writer::open(&stage.database, &SMALL);
        writer.run(&stage.ack(0));
        let mut other = Writer::open(&stage.database, &SMALL);
        other.tell(&format!("checkpoints {}", stage.database.display()));
        let ack = stage.ack(0);
        stage.chain(&format!("explicit checkpoints, {kind}"), false, &|| acknowledged(&ack));
    }
}

#[test]
fn two_writers() {
    for (kind, volume) in Volume::each() {
        let mut stage = Stage::new(volume);
        let mut writer = Writer::open(&stage.database, &SMALL);
        writer.run(&stage.ack(0));
        let mut other = Writer::open(&stage.database, &Shape { autocheckpoint: 200, rows: 50, ..SMALL });
        other.run(&stage.ack(1));
        let acks = [stage.ack(0), stage.ack(1)];
        stage
            .chain(&format!("two writers, {kind}"), false, &|| acks.iter().map(|ack| acknowledged(ack)).max().unwrap());
    }
}

/// Writers in our own process that open and close connections all the time.
#[test]
fn writers_in_the_same_process() {
    for (kind, volume) in Volume::each() {
        let mut stage = Stage::new(volume);
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
        stage.chain(&format!("embedded, {kind}"), true, &|| 0);
        stop.store(true, SeqCst);
        writers.into_iter().for_each(|writer| writer.join().unwrap());
    }
}

/// The writer is killed at random, and another one begins: the WAL is recovered, or has a tail that no commit ends.
#[test]
fn killed_writers() {
    for (kind, volume) in Volume::each() {
        let mut stage = Stage::new(volume);
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
        stage.chain(&format!("kill -9, {kind}"), false, &|| 0);
        stop.store(true, SeqCst);
        killer.join().unwrap();
    }
}

fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 16], at).unwrap();
    file.sync_all().unwrap();
}

/// The comparison sees what a step is there for: without the frames of the WAL over the file, increments are wrong.
#[test]
fn without_the_frames_increments_are_wrong() {
    let Some(volume) = Volume::mount("xfs") else { return };
    let stage = Stage::new(volume);
    let mut writer = Writer::open(&stage.database, &Shape { autocheckpoint: 0, ..SMALL });
    writer.tell("write 5");
    let earlier = stage.copy(0, None, false).1;
    for (n, weak) in [(1, false), (2, true)] {
        writer.tell("write 5");
        if weak {
            gate::weaken(&stage.database, "raw-without-frames");
        }
        assert_eq!(stage.is_same(n, &earlier), !weak);
    }
}

/// Whatever the earlier file is, the increment has the content of the database.
#[test]
fn any_earlier_file_without_sums_gives_the_same() {
    for (kind, volume) in Volume::each() {
        let mut stage = Stage::new(volume);
        let mut writer = Writer::open(&stage.database, &SMALL);
        writer.tell("write 30");
        let (_, first) = stage.copy(0, None, false);
        writer.tell("write 30");
        let (base, bytes) = (stage.to(0), fs::metadata(stage.to(0)).unwrap().len());
        let header = fs::read(&base).unwrap()[..100].to_vec();
        let mut random = fastrand::Rng::with_seed(5);
        drop(first);
        for n in 1..30 {
            let mut content = fs::read(&base).unwrap();
            match n % 6 {
                0 => random.fill(&mut content),
                1 => content.truncate(random.usize(100..content.len())),
                2 => content.extend(std::iter::repeat_n(random.u8(..), random.usize(1..300_000))),
                3 => content.fill(0),
                4 => content.rotate_left(1024),
                _ => (0..50).for_each(|_| {
                    let at = random.usize(..content.len());
                    content[at] ^= 1;
                }),
            }
            content[..100].copy_from_slice(&header);
            let odd = stage.to(1000 + n);
            fs::write(&odd, &content).unwrap();
            // Not synced, and at times with holes.
            if n % 2 == 0 {
                File::options().write(true).open(&odd).unwrap().set_len(content.len() as u64 + 70_000).unwrap();
            }
            let (_, next) = stage.increment(n, &Earlier::without_sums(&odd), n % 3 == 0);
            assert_eq!(verify(&stage.to(n)), Ok(60), "{kind} {n}");
            // The sums that it computed are those of its content.
            let again = stage.increment(2000 + n, &next, false).0;
            assert_eq!(again.written_bytes, Some(0), "{kind} {n}");
            [stage.to(n), stage.to(2000 + n), odd].iter().for_each(|path| fs::remove_file(path).unwrap());
        }
        assert_eq!(fs::metadata(&base).unwrap().len(), bytes);
    }
}

/// A bit of the earlier copy changes: in a page that has not changed, in one that has, in the first and in the last one.
#[test]
fn damage_of_the_earlier_copy_is_told_from_a_change() {
    for (kind, volume) in Volume::each() {
        let mut stage = Stage::new(volume);
        let mut writer = Writer::open(&stage.database, &SMALL);
        writer.tell("write 30");
        let mut earlier = stage.copy(0, None, false).1;
        for n in 1..=20 {
            writer.tell("write 1");
            let base = stage.to(n - 1);
            let bytes = fs::metadata(&base).unwrap().len();
            let at = match n % 4 {
                0 => 200,
                1 => bytes - 1,
                _ => fastrand::u64(..bytes),
            };
            flip(&base, at);
            let (part, next) = stage.copy(n, Some(&earlier), n % 2 == 0);
            assert_eq!(part.method, Method::RawCopy, "{kind}: byte {at} of {bytes}");
            let why = part.copied_because.unwrap();
            assert!(why.contains("differ from their recorded sum"), "{why}");
            assert_eq!(verify(&stage.to(n)), Ok(30 + n.cast_signed()));
            // The next one is an increment of the new copy, and has no block of the damaged one.
            let (part, _) = stage.increment(100 + n, &next, false);
            assert_eq!(part.written_bytes, Some(0));
            fs::remove_file(stage.to(100 + n)).unwrap();
            fs::remove_file(base).unwrap();
            earlier = next;
        }
    }
}

/// An increment writes little, and takes little of the disk.
#[test]
fn an_increment_has_the_price_of_what_changed() {
    for (kind, volume) in Volume::each() {
        let mut stage = Stage::new(volume);
        let mut writer = Writer::open(&stage.database, &SMALL);
        writer.tell("write 200");
        writer.tell("sql PRAGMA wal_checkpoint(TRUNCATE)");
        let mut earlier = stage.copy(0, None, false).1;
        let free = |stage: &Stage| {
            let directory = File::open(stage.volume.path()).unwrap();
            rustix::fs::syncfs(&directory).unwrap();
            rustix::fs::fstatvfs(&directory).map(|s| s.f_bfree * s.f_frsize).unwrap()
        };
        let before = free(&stage);
        for n in 1..=20 {
            writer.tell("write 1");
            let (part, next) = stage.increment(n, &earlier, false);
            // One transaction touches some dozen pages of 1 KiB.
            assert!(part.written_bytes.unwrap() < 100 * 4096, "{kind}: {:?}", part.written_bytes);
            earlier = next;
        }
        let bytes = fs::metadata(stage.to(0)).unwrap().blocks() * 512;
        let taken = before.saturating_sub(free(&stage));
        println!("{kind}: 20 increments of {bytes} bytes take {taken}");
        assert!(taken < bytes * 5, "{kind}: 20 increments of {bytes} bytes take {taken}");
    }
}

/// A node whose backups are on a volume.
struct Backups {
    volume: Volume,
    node: Node,
}

impl Backups {
    fn new(volume: Volume) -> Backups {
        let mut node = Node::new();
        // Otherwise a database is one page after the other of one window.
        let filler =
            "CREATE TABLE filler (pad BLOB); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 3000)
            INSERT INTO filler SELECT randomblob(900) FROM n; PRAGMA wal_checkpoint(TRUNCATE)";
        node.pact()[0].execute_batch(filler).unwrap();
        node.rocksdb_block(BLOCKS + 1);
        node.pact_block(BLOCKS + 1);
        Backups { volume, node }
    }

    fn directory(&self) -> PathBuf {
        self.volume.path().join("backups")
    }

    fn service(&self, change: impl FnOnce(&mut Config)) -> Service {
        let mut config = config(&self.directory());
        change(&mut config);
        Service::start(config, self.node.embedded()).unwrap()
    }

    /// The node writes a block, and a backup is made.
    fn make(&mut self, change: impl FnOnce(&mut Config)) -> (BackupId, PactPart, Vec<String>) {
        let height = pact_height(&self.node.pact()[0]) + 1;
        self.node.rocksdb_block(height);
        self.node.pact_block(height);
        let service = self.service(change);
        let id = make_done(&service, PACT);
        let mut record = record(&service, &id);
        service.finish();
        whole(&self.directory().join(id.as_str()));
        self.verify(&id);
        (id, record.pact.remove(0), record.warnings)
    }

    fn verify(&self, id: &BackupId) {
        let (_, found) = verify_backup(&self.directory(), id.as_str(), DEEP, &Control::default()).unwrap();
        assert_eq!(found.faults, [], "{id}");
    }

    fn database(&self, id: &BackupId) -> PathBuf {
        self.directory().join(id.as_str()).join("0/sqlite/pact-v1-chain-0.sqlite")
    }

    fn faults_count(&self, id: &BackupId) -> u64 {
        let details = check_backup_in(&self.directory(), id).unwrap().unwrap();
        details.verified.map_or(0, |verified| verified.faults_count)
    }

    fn exclusive_bytes(&self, id: &BackupId) -> u64 {
        check_backup_in(&self.directory(), id).unwrap().unwrap().exclusive_bytes.unwrap()
    }
}

#[test]
fn backups_are_increments_of_the_last_good_one() {
    for (kind, volume) in Volume::each() {
        let mut backups = Backups::new(volume);
        let (first, part, _) = backups.make(|_| ());
        assert_eq!((part.method, part.base, part.copied_because), (Method::RawCopy, None, None), "{kind}");
        let alone_bytes = backups.exclusive_bytes(&first);
        assert!(alone_bytes > part.bytes);
        let mut before = first.clone();
        let mut ids = vec![first.clone()];
        for _ in 0..4 {
            let (id, part, warnings) = backups.make(|_| ());
            let is_new = |warning: &&String| warning.contains("damage") || warning.contains("increment");
            assert_eq!(warnings.iter().find(is_new), None);
            assert_eq!(
                (part.method, part.base.as_ref(), part.copied_because),
                (Method::Increment, Some(&before), None)
            );
            assert!(
                part.written_bytes.unwrap() < part.bytes / 20,
                "{kind}: {:?} of {}",
                part.written_bytes,
                part.bytes
            );
            let manifest = fs::read_to_string(backups.directory().join(id.as_str()).join("manifest.json")).unwrap();
            assert!(manifest.contains(r#""method":"increment""#), "{manifest}");
            before = id.clone();
            ids.push(id);
        }
        // What they share is in none of them alone.
        for id in &ids {
            let bytes = backups.exclusive_bytes(id);
            assert!(bytes < alone_bytes - part.bytes * 3 / 4, "{kind}: {bytes} of {alone_bytes}");
        }
        let service = backups.service(|_| ());
        let metrics = call(&service, "GET", "/metrics", &[]).unwrap().body;
        assert!(metrics.contains(r#"chainweb_backup_pact_written_bytes{method="increment"}"#), "{metrics}");
        service.finish();
        drop(service);
        // Any of them may be removed, in any order.
        fs::remove_dir_all(backups.directory().join(first.as_str())).unwrap();
        fs::remove_dir_all(backups.directory().join(ids[2].as_str())).unwrap();
        ids.iter().enumerate().filter(|(n, _)| ![0, 2].contains(n)).for_each(|(_, id)| backups.verify(id));
        // Asked for a whole copy, it is one; and the next one may be an increment of it, without sums.
        let (copied, part, _) = backups.make(|config| config.pact_method = PactMethod::Copy);
        assert_eq!(part.method, Method::RawCopy);
        assert!(!backups.directory().join(copied.as_str()).join("pact-sums.json").exists());
        let (_, part, _) = backups.make(|_| ());
        assert_eq!((part.method, part.base), (Method::Increment, Some(copied)));
        backups.node.check();
    }
}

/// Damage that the comparison finds is noted, and nothing is shared with the damaged file; nor is it with a backup of which damage is
/// known, or that a proof refutes.
#[test]
fn a_damaged_backup_is_the_base_of_none() {
    for (kind, volume) in Volume::each() {
        let mut backups = Backups::new(volume);
        let (first, _, _) = backups.make(|_| ());
        let (second, part, _) = backups.make(|_| ());
        flip(&backups.database(&second), part.bytes / 2);
        let (third, part, warnings) = backups.make(|_| ());
        assert_eq!((part.method, &part.base), (Method::RawCopy, &None), "{kind}");
        let why = part.copied_because.unwrap();
        assert!(why.contains(second.as_str()) && why.contains("recorded sum"), "{why}");
        assert!(warnings.iter().any(|warning| warning.contains(&why)), "{warnings:?}");
        assert_eq!([&first, &second, &third].map(|id| backups.faults_count(id)), [0, 1, 0]);
        let (fourth, part, _) = backups.make(|_| ());
        assert_eq!((part.method, part.base), (Method::Increment, Some(third.clone())));

        // Damage that a verification finds: the one before is taken.
        flip(&backups.database(&fourth), part.bytes / 3);
        let (_, found) = verify_backup(&backups.directory(), fourth.as_str(), DEEP, &Control::default()).unwrap();
        assert!(format!("{found:?}").contains("recorded sum"), "{found:?}");
        let (fifth, part, _) = backups.make(|_| ());
        assert_eq!((part.method, part.base), (Method::Increment, Some(third)));

        // A file that was cut, and one that is gone.
        let database = backups.database(&fifth);
        File::options().write(true).open(&database).unwrap().set_len(part.bytes - 1024).unwrap();
        let (sixth, part, _) = backups.make(|_| ());
        assert_eq!(part.method, Method::RawCopy);
        assert!(part.copied_because.unwrap().contains("its size differs"));
        fs::remove_file(backups.database(&sixth)).unwrap();
        let (seventh, part, _) = backups.make(|_| ());
        assert!(part.method == Method::RawCopy && part.copied_because.unwrap().contains("cannot open"));

        // Sums that are damaged are not used: no good database seems damaged because of them.
        flip(&backups.directory().join(seventh.as_str()).join("pact-sums.json"), 100);
        let (_, part, _) = backups.make(|_| ());
        assert_eq!((part.method, part.base, backups.faults_count(&seventh)), (Method::Increment, Some(seventh), 0));
    }
}

/// After a restore that cloned, a node and a backup share blocks: if one rots, both have the same wrong bytes.
#[test]
fn damage_that_the_node_has_too_is_told_from_other_damage() {
    for (kind, volume) in Volume::each() {
        let mut backups = Backups::new(volume);
        let (first, part, _) = backups.make(|_| ());
        flip(&backups.database(&first), part.bytes / 2);
        let (second, part, warnings) = backups.make(|_| ());
        assert!(warnings.iter().any(|warning| warning.contains("copied again from the node")), "{kind}: {warnings:?}");
        // A process that closes a database loses its locks on it, so another one flips the bit in the node's.
        let (at, mut byte) = (part.bytes / 2, [0]);
        File::open(backups.database(&second)).unwrap().read_exact_at(&mut byte, at).unwrap();
        let script = r#"printf "\\$1" | dd of="$2" bs=1 seek="$3" conv=notrunc status=none"#;
        let octal = format!("{:o}", byte[0] ^ 16);
        let of_node = backups.node.sqlite(0);
        let flipped = Command::new("sh").args(["-c", script, "sh", &octal]).arg(of_node).arg(at.to_string()).status();
        assert!(flipped.unwrap().success());
        flip(&backups.database(&second), at);
        let (_, part, warnings) = backups.make(|_| ());
        assert_eq!(part.method, Method::RawCopy, "{kind}");
        let said = "the node's database has the same bytes";
        assert!(warnings.iter().any(|warning| warning.contains(said)), "{kind}: {warnings:?}");
        assert_eq!([&first, &second].map(|id| backups.faults_count(id)), [1, 1]);
    }
}

/// On a full disk the increment fails, leaves nothing, and harms no other backup.
#[test]
fn an_increment_on_a_full_disk() {
    // On btrfs the room for data and for names ends at different moments.
    let Some(volume) = Volume::mount("xfs") else { return };
    let mut backups = Backups::new(volume);
    backups.make(|_| ());
    let (second, _, _) = backups.make(|_| ());
    let ballast = backups.volume.path().join("ballast");
    let free = || rustix::fs::statvfs(backups.volume.path()).map(|s| s.f_bavail * s.f_frsize).unwrap();
    let mut file = File::create(&ballast).unwrap();
    // One that must write more than there is room for, although the last one wrote little.
    backups.node.pact()[0]
        .execute_batch("UPDATE filler SET pad = randomblob(900); PRAGMA wal_checkpoint(TRUNCATE)")
        .unwrap();
    while free() > 3 << 20 && std::io::Write::write_all(&mut file, &[1; 1 << 20]).is_ok() {
        file.sync_all().unwrap();
    }
    let service = backups.service(|config| config.stall_limit = Duration::from_secs(60));
    let (failed, reason) = make_failed(&service, PACT);
    println!("{reason}");
    service.finish();
    drop(service);
    assert!(reason.contains("space") || reason.contains("No space left"), "{reason}");
    assert_eq!(names(&backups.directory().join(failed.as_str())), [".use", "backup.json", "status"]);
    drop(file);
    fs::remove_file(&ballast).unwrap();
    // xfs frees the space of a removed file in the background.
    rustix::fs::syncfs(File::open(backups.volume.path()).unwrap()).unwrap();
    wait_until("the room is free", || free() > 20 << 20);
    backups.verify(&second);
    let (_, part, _) = backups.make(|_| ());
    assert_eq!((part.method, part.base), (Method::Increment, Some(second)));
}

/// A copy that shares blocks with the node's file is no base, so that an increment shares none with it.
#[test]
fn a_clone_of_the_nodes_file_is_no_base() {
    for (kind, volume) in Volume::each() {
        let node = Node::create(&volume.path(), 1);
        let make = |method: PactMethod| {
            let service =
                Service::start(Config { pact_method: method, ..config(&node.backups()) }, node.embedded()).unwrap();
            let id = make_done(&service, PACT);
            let part = record(&service, &id).pact.remove(0);
            service.finish();
            (id, part)
        };
        assert_eq!(make(PactMethod::Clone).1.method, Method::RawClone, "{kind}");
        let (second, part) = make(PactMethod::Auto);
        assert_eq!(part.method, Method::RawCopy);
        assert!(part.copied_because.unwrap().contains("shares blocks with the node's own file"));
        let (_, part) = make(PactMethod::Auto);
        assert_eq!((part.method, part.base), (Method::Increment, Some(second)));
    }
}
