//! Backups on another file system take over files from the backup before: only equal files, no damaged ones, and each file is read again
//! in its turn. The node is stopped while a backup is made.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use chainweb_backup::rocksdb::{DB, Options, SstFileWriter};
use chainweb_backup::{
    BackupId, Config, Control, Depth, Details, Service, Sources, Status, check_backup_in, verify_backup,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::faults::flip;
use crate::fixture::{DEEP, ROCKSDB, config, copy_tree, make_done, names, scratch_on_disk};

/// How much of the ends of two files is compared.
const TAIL_BYTES: usize = 8 * 1024;

/// A RocksDB, and a place for its backups on another file system.
pub struct Stage {
    pub node: TempDir,
    other: TempDir,
    pub options: Options,
}

impl Stage {
    /// `None`, and a skipped test, if there is no other file system.
    pub fn new(test: &str) -> Option<Stage> {
        let node = scratch_on_disk();
        let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev()).ok();
        let shm = Path::new("/dev/shm");
        let made = tempfile::Builder::new().prefix("chainweb-backup-test-").tempdir_in(shm).ok();
        let Some(other) = made.filter(|_| device(shm) != device(node.path())) else {
            crate::fixture::skip(&format!("{test}: /dev/shm is not another file system"));
            return None;
        };
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_disable_auto_compactions(true);
        let stage = Stage { node, other, options };
        fs::create_dir_all(stage.rocksdb()).unwrap();
        Some(stage)
    }

    pub fn directory(&self) -> PathBuf {
        self.node.path().join("db")
    }

    pub fn rocksdb(&self) -> PathBuf {
        self.directory().join("0/rocksDb")
    }

    pub fn backups(&self) -> PathBuf {
        self.other.path().join("backups")
    }

    /// Opens the database, and lets the node do something.
    pub fn run(&self, work: impl FnOnce(&DB)) {
        let db = DB::open(&self.options, self.rocksdb()).unwrap();
        work(&db);
    }

    /// Puts `count` SSTs of about `bytes` bytes each into the database.
    pub fn fill(&self, from: usize, count: usize, bytes: usize) {
        let mut random = fastrand::Rng::with_seed(from as u64);
        self.run(|db| {
            for n in from..from + count {
                let value: Vec<u8> = (0..bytes).map(|_| random.u8(..)).collect();
                value.chunks(2000).enumerate().for_each(|(k, part)| db.put(format!("{n:03}-{k:06}"), part).unwrap());
                db.flush().unwrap();
            }
        });
    }

    /// The node is restored: its database becomes that of the copy `from`.
    pub fn restore(&self, from: &Path) {
        fs::remove_dir_all(self.rocksdb()).unwrap();
        copy_tree(from, &self.rocksdb());
    }

    pub fn save(&self, name: &str) -> PathBuf {
        let to = self.node.path().join(name);
        copy_tree(&self.rocksdb(), &to);
        to
    }

    pub fn make(&self, change: impl FnOnce(&mut Config)) -> BackupId {
        let mut config = config(&self.backups());
        change(&mut config);
        let service = Service::start(config, Sources::directory(&self.directory())).unwrap();
        make_done(&service, ROCKSDB)
    }

    pub fn copy(&self, id: &BackupId) -> PathBuf {
        self.backups().join(id.as_str()).join("0/rocksDb")
    }

    fn details(&self, id: &BackupId) -> Details {
        check_backup_in(&self.backups(), id).unwrap().unwrap()
    }

    /// The entries of each SST and blob file in the manifest of a backup.
    fn files(&self, id: &BackupId) -> BTreeMap<String, Value> {
        let json = fs::read(self.backups().join(id.as_str()).join("manifest.json")).unwrap();
        let json: Value = serde_json::from_slice(&json).unwrap();
        let name = |entry: &Value| entry["path"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
        let files = json["files"].as_array().unwrap().iter().map(|entry| (name(entry), entry.clone()));
        files.filter(|(name, _)| name.ends_with(".sst") || name.ends_with(".blob")).collect()
    }

    /// Fails unless the backup has exactly the node's SSTs and blob files, each with its checksum, and RocksDB reads them.
    fn check(&self, id: &BackupId) {
        assert!(self.files(id).values().all(|entry| entry["blake2b"].is_string()), "{:?}", self.files(id));
        self.check_files(id);
    }

    /// The same for a backup in which some checksums are unknown.
    fn check_files(&self, id: &BackupId) {
        for (name, entry) in self.files(id) {
            let bytes = fs::read(self.copy(id).join(&name)).unwrap();
            assert!(bytes == fs::read(self.rocksdb().join(&name)).unwrap(), "{name} of backup {id} is not the node's");
            let sum = blake2b_simd::blake2b(&bytes).to_hex().to_string();
            assert!(entry["blake2b"].is_null() || entry["blake2b"] == sum, "{name}");
        }
        let (_, found) = verify_backup(&self.backups(), id.as_str(), DEEP, &Control::default()).unwrap();
        assert_eq!(found.faults, [], "{id}");
    }

    fn faults_count(&self, id: &BackupId) -> u64 {
        self.details(id).verified.map_or(0, |verified| verified.faults_count)
    }
}

pub fn of_kind(directory: &Path, kind: &str) -> Vec<String> {
    names(directory).into_iter().filter(|name| name.ends_with(kind)).collect()
}

fn is_reused(entry: &Value) -> bool {
    entry["method"] == "reused"
}

/// A blob file of the same number, the same size and the same end, but another beginning.
#[test]
fn a_blob_file_that_only_looks_the_same_is_copied() {
    let Some(mut stage) = Stage::new("a_blob_file_that_only_looks_the_same_is_copied") else { return };
    stage.options.set_enable_blob_files(true);
    stage.options.set_min_blob_size(100);
    stage.run(|db| db.put("before", "x").unwrap());
    let older = stage.save("older");
    let fill = |letter: &str| {
        stage.run(|db| {
            db.put("a", letter.repeat(4000)).unwrap();
            (0..10).for_each(|n| db.put(format!("b{n}"), "z".repeat(2000)).unwrap());
            db.flush().unwrap();
        });
        let blobs = of_kind(&stage.rocksdb(), ".blob");
        let [blob] = blobs.as_slice() else { panic!("{blobs:?}") };
        (blob.clone(), fs::read(stage.rocksdb().join(blob)).unwrap())
    };
    let (first_name, first) = fill("A");
    let one = stage.make(|_| ());
    stage.restore(&older);
    let (second_name, second) = fill("B");
    assert_eq!((&first_name, first.len()), (&second_name, second.len()));
    assert_eq!(first[first.len() - TAIL_BYTES..], second[second.len() - TAIL_BYTES..]);
    assert_ne!(first, second);

    let two = stage.make(|_| ());
    stage.check(&two);
    assert!(!is_reused(&stage.files(&two)[&first_name]));
    // The same file is taken over, with or without a known checksum.
    let three = stage.make(|_| ());
    assert!(is_reused(&stage.files(&three)[&first_name]));
    stage.check(&three);
    fs::remove_file(stage.backups().join(three.as_str()).join("manifest.json")).unwrap();
    let four = stage.make(|config| config.reread_percent = 0);
    assert!(is_reused(&stage.files(&four)[&first_name]));
    assert!(stage.files(&four)[&first_name]["blake2b"].is_string());
    stage.check_files(&four);
    let (_, found) = verify_backup(&stage.backups(), one.as_str(), DEEP, &Control::default()).unwrap();
    assert_eq!(found.faults, [], "the first one has what it had");
}

/// Ingests the external file as RocksDB does with `write_global_seqno`, which the bindings do not have: the sequence number is written
/// over the property in the file. Returns its name in the database, and the number.
fn ingest_and_write(stage: &Stage, external: &Path, puts_count: usize) -> (String, u64) {
    let before = of_kind(&stage.rocksdb(), ".sst");
    let mut sequence = 0;
    stage.run(|db| {
        (0..puts_count).for_each(|n| db.put(format!("n{n}"), "x").unwrap());
        db.ingest_external_file(vec![external]).unwrap();
        sequence = db.latest_sequence_number();
    });
    let mut new = of_kind(&stage.rocksdb(), ".sst").into_iter().filter(|name| !before.contains(name));
    let ingested = new.find(|name| write_sequence(&stage.rocksdb().join(name), sequence));
    stage.run(|db| assert_eq!(db.get("m").unwrap().unwrap(), b"ingested"));
    (ingested.expect("an ingested file"), sequence)
}

/// Writes the sequence number over the property of a file that was just ingested; false for any other file.
pub fn write_sequence(path: &Path, sequence: u64) -> bool {
    let property = b"external_sst_file.global_seqno";
    let bytes = fs::read(path).unwrap();
    let Some(at) = bytes.windows(property.len()).position(|part| part == property) else { return false };
    let at = at + property.len();
    assert_eq!(bytes[at..at + 8], [0; 8], "it has a number already");
    let file = fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(&sequence.to_le_bytes(), at as u64).unwrap();
    true
}

/// The same external file under the same name: its unique id is the same, but not the sequence number in it.
#[test]
fn a_file_ingested_again_with_another_sequence_number_is_copied() {
    let Some(stage) = Stage::new("a_file_ingested_again_with_another_sequence_number_is_copied") else { return };
    stage.run(|db| {
        db.put("m", "before").unwrap();
        db.flush().unwrap();
    });
    let older = stage.save("older");
    let external = stage.node.path().join("external.sst");
    let mut writer = SstFileWriter::create(&stage.options);
    writer.open(&external).unwrap();
    writer.put("m", "ingested").unwrap();
    writer.finish().unwrap();

    let (first, first_sequence) = ingest_and_write(&stage, &external, 1);
    stage.make(|_| ());
    stage.restore(&older);
    let (second, second_sequence) = ingest_and_write(&stage, &external, 3);
    assert_eq!(first, second);
    assert_ne!(first_sequence, second_sequence);
    let two = stage.make(|_| ());
    assert!(!is_reused(&stage.files(&two)[&second]));
    stage.check(&two);
    // And it is taken over as long as it is the same.
    let three = stage.make(|_| ());
    assert!(is_reused(&stage.files(&three)[&second]));
    stage.check(&three);
}

/// A file of the earlier backup that RocksDB cannot open is copied from the node in the same job, with and without a known checksum.
#[test]
fn a_bad_file_of_the_last_backup_blocks_no_later_one() {
    let Some(stage) = Stage::new("a_bad_file_of_the_last_backup_blocks_no_later_one") else { return };
    stage.fill(0, 3, 20_000);
    for has_manifest in [true, false] {
        let one = stage.make(|config| config.reread_percent = 0);
        let bad = of_kind(&stage.copy(&one), ".sst").remove(1);
        let path = stage.copy(&one).join(&bad);
        let zeroes = vec![0; fs::metadata(&path).unwrap().len() as usize];
        fs::remove_file(&path).unwrap();
        fs::write(&path, zeroes).unwrap();
        if !has_manifest {
            fs::remove_file(stage.backups().join(one.as_str()).join("manifest.json")).unwrap();
        }
        let two = stage.make(|config| config.reread_percent = 0);
        stage.check_files(&two);
        for (name, entry) in stage.files(&two) {
            assert_eq!(is_reused(&entry), name != bad, "{name}");
        }
        let warnings = stage.details(&two).record.unwrap().warnings;
        let names_it = |w: &String| w.contains(one.as_str()) && w.contains(&format!("0/rocksDb/{bad}"));
        assert!(warnings.iter().any(names_it), "{warnings:?}");
        let noted = stage.details(&one).verified.unwrap();
        assert_eq!((noted.faults_count, noted.damaged.into_iter().collect::<Vec<_>>()), (1, vec![bad]));
        let three = stage.make(|config| config.reread_percent = 0);
        assert!(stage.files(&three).values().all(is_reused));
        assert_eq!(stage.details(&three).record.unwrap().warnings, [""; 0]);
    }
}

/// One changed bit: found when the file is read again, noted in every backup with the same inode, and the file is copied from the node.
#[test]
fn rot_in_a_file_that_is_taken_over_is_found_and_goes_no_further() {
    let Some(stage) = Stage::new("rot_in_a_file_that_is_taken_over_is_found_and_goes_no_further") else { return };
    stage.fill(0, 4, 30_000);
    let first = stage.make(|_| ());
    stage.fill(4, 1, 30_000);
    let second = stage.make(|_| ());
    let bad = of_kind(&stage.copy(&first), ".sst").remove(2);
    flip(&stage.copy(&second).join(&bad));
    let third = stage.make(|config| config.reread_percent = 100);
    stage.check(&third);
    assert_eq!([&first, &second, &third].map(|id| stage.faults_count(id)), [1, 1, 0]);
    assert!(stage.files(&third).iter().all(|(name, entry)| is_reused(entry) == (*name != bad)));
    let record = stage.details(&third).record.unwrap();
    assert!(record.warnings.iter().any(|w| w.contains(second.as_str()) && w.contains(&bad)), "{:?}", record.warnings);

    // Only damaged backups are left: their good files are still taken over.
    fs::remove_dir_all(stage.backups().join(third.as_str())).unwrap();
    let fourth = stage.make(|config| config.reread_percent = 0);
    stage.check(&fourth);
    assert!(stage.files(&fourth).iter().all(|(name, entry)| is_reused(entry) == (*name != bad)));
}

/// A backup without checksums: the files that are due are compared with the node's, and have checksums from then on.
#[test]
fn a_file_without_a_checksum_is_compared_with_the_nodes() {
    let Some(stage) = Stage::new("a_file_without_a_checksum_is_compared_with_the_nodes") else { return };
    stage.fill(0, 4, 30_000);
    let first = stage.make(|_| ());
    fs::remove_file(stage.backups().join(first.as_str()).join("manifest.json")).unwrap();
    let bad = of_kind(&stage.copy(&first), ".sst").remove(2);
    flip(&stage.copy(&first).join(&bad));
    let second = stage.make(|config| config.reread_percent = 100);
    stage.check(&second);
    assert!(stage.files(&second).iter().all(|(name, entry)| is_reused(entry) == (*name != bad)));
}

/// Only a wrong list has checksums of the files: they are compared with the node's, and are not damaged.
#[test]
fn a_wrong_list_of_checksums_condemns_no_file_of_an_earlier_backup() {
    let Some(stage) = Stage::new("a_wrong_list_of_checksums_condemns_no_file_of_an_earlier_backup") else { return };
    stage.fill(0, 4, 30_000);
    let first = stage.make(|_| ());
    fs::remove_file(stage.backups().join(first.as_str()).join("manifest.json")).unwrap();
    let ssts = of_kind(&stage.copy(&first), ".sst");
    let lines: String = ssts.iter().map(|name| format!("{}  {name}\n", "0".repeat(128))).collect();
    fs::write(stage.copy(&first).join("BLAKE2SUMS"), lines).unwrap();
    let second = stage.make(|config| config.reread_percent = 100);
    stage.check(&second);
    assert!(stage.files(&second).values().all(is_reused));
    assert_eq!(stage.details(&first).verified, None);
}

/// Damage that only the verification before the commit finds: the job continues without the damaged file.
#[test]
fn damage_found_at_the_end_is_repaired_in_the_same_job() {
    let Some(stage) = Stage::new("damage_found_at_the_end_is_repaired_in_the_same_job") else { return };
    stage.fill(0, 4, 30_000);
    let first = stage.make(|_| ());
    let bad = of_kind(&stage.copy(&first), ".sst").remove(2);
    flip(&stage.copy(&first).join(&bad));
    let deep = |config: &mut Config| (config.reread_percent, config.verify) = (0, Some(Depth::Deep));
    let second = stage.make(deep);
    stage.check(&second);
    assert_eq!(stage.faults_count(&first), 1);
    assert!(stage.files(&second).iter().all(|(name, entry)| is_reused(entry) == (*name != bad)));
    let warnings = stage.details(&second).record.unwrap().warnings;
    assert!(warnings.iter().any(|w| w.contains(&bad)), "{warnings:?}");
    let left: Vec<String> = names(&stage.backups()).into_iter().filter(|n| n.starts_with(".deleting")).collect();
    assert_eq!(left, [""; 0]);

    // Damage in the node's own file is no reason for another attempt.
    let own = of_kind(&stage.rocksdb(), ".sst").remove(0);
    flip(&stage.rocksdb().join(&own));
    fs::remove_dir_all(stage.backups().join(first.as_str())).unwrap();
    fs::remove_dir_all(stage.backups().join(second.as_str())).unwrap();
    let service = {
        let mut config = config(&stage.backups());
        deep(&mut config);
        Service::start(config, Sources::directory(&stage.directory())).unwrap()
    };
    assert_eq!(crate::fixture::make(&service, ROCKSDB).1, Status::Failed);
}

/// Each run reads a share of the files, first those that were not read for the longest time.
#[test]
fn every_file_is_read_again_in_its_turn() {
    let Some(stage) = Stage::new("every_file_is_read_again_in_its_turn") else { return };
    stage.fill(0, 10, 10_000);
    let read_ms = |id: &BackupId| -> Vec<u64> {
        stage.files(id).values().map(|entry| entry["read_ms"].as_u64().unwrap()).collect()
    };
    let first = stage.make(|_| ());
    let begin_ms = stage.details(&first).started_ms;
    assert_eq!(read_ms(&first), [begin_ms; 10]);
    for run in 1..=5_usize {
        let id = stage.make(|config| config.reread_percent = 20);
        let times = read_ms(&id);
        assert_eq!(times.iter().filter(|ms| **ms == begin_ms).count(), 10 - 2 * run, "{times:?}");
        let started_ms = stage.details(&id).started_ms;
        assert_eq!(times.iter().filter(|ms| **ms == started_ms).count(), 2, "{times:?}");
        assert_eq!(stage.details(&id).oldest_unread_ms, times.iter().min().copied());
    }
    let off = stage.make(|config| config.reread_percent = 0);
    assert!(read_ms(&off).iter().all(|ms| *ms > begin_ms && *ms < stage.details(&off).started_ms));
    // Even the smallest share is one file.
    let one = stage.make(|config| config.reread_percent = 1);
    assert_eq!(read_ms(&one).iter().filter(|ms| **ms == stage.details(&one).started_ms).count(), 1);
    stage.check(&one);
    assert!(stage.details(&one).oldest_unread_ms >= stage.details(&one).verified.map(|verified| verified.at_ms));
}
