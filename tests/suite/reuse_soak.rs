//! Many backups on another file system, one after the other. Meanwhile the node is restored from older copies, writes blobs, ingests the
//! same files again and compacts, and files of backups are damaged. Each backup must be the node's database: the same files, byte for
//! byte, and the same content for RocksDB. The database is open and closed in turn.
//!
//! `scripts/soak.sh other-disk [N] [SEED]` runs it with the programs that are there, full and without RocksDB by turns.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use chainweb_backup::BackupId;
use chainweb_backup::rocksdb::checkpoint::Checkpoint;
use chainweb_backup::rocksdb::{DB, IteratorMode, Options, SstFileWriter};

use crate::faults::flip;
use crate::fixture::names;
use crate::reuse::{Stage, of_kind, write_sequence};

/// The number of backups, and the seed: `500;7`.
const COUNT: &str = "CHAINWEB_BACKUP_OTHER_DISK";

/// The programs that make the backups in turn, separated by colons.
const PROGRAMS: &str = "CHAINWEB_BACKUP_PROGRAMS";

/// How many older copies of the node are kept, and how many backups.
const KEPT: usize = 4;

struct Soak {
    stage: Stage,
    random: fastrand::Rng,
    older: Vec<PathBuf>,
    external: Vec<PathBuf>,
    backups: Vec<BackupId>,
    /// Whether there is damage in a backup that no run has seen.
    rotten: bool,
    counts: BTreeMap<&'static str, u32>,
}

impl Soak {
    fn note(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn write(&mut self) {
        let (random, letter) = (&mut self.random, b'a');
        let (count, size) = (random.usize(1..20), random.usize(1..3000));
        let letter = (letter + random.u8(..3)) as char;
        self.stage.run(|db| {
            for n in 0..count {
                db.put(format!("{n:03}"), letter.to_string().repeat(size)).unwrap();
            }
            // Sometimes the new data is in the WAL only.
            if count % 4 > 0 {
                db.flush().unwrap();
            }
            if count == 7 {
                db.compact_range::<&[u8], &[u8]>(None, None);
            }
        });
        self.note("writes");
    }

    /// A new external file, or one that was ingested before; with its sequence number in it, or only in the MANIFEST.
    fn ingest(&mut self) {
        if self.external.len() < 3 {
            let path = self.stage.node.path().join(format!("external-{}.sst", self.external.len()));
            let mut writer = SstFileWriter::create(&self.stage.options);
            writer.open(&path).unwrap();
            (0..5).for_each(|n| writer.put(format!("{n:03}"), format!("of {}", path.display())).unwrap());
            writer.finish().unwrap();
            self.external.push(path);
        }
        let external = self.external[self.random.usize(..self.external.len())].clone();
        let before = of_kind(&self.stage.rocksdb(), ".sst");
        let mut sequence = 0;
        self.stage.run(|db| {
            db.put("000", "is covered").unwrap();
            db.flush().unwrap();
            db.ingest_external_file(vec![external]).unwrap();
            sequence = db.latest_sequence_number();
        });
        if self.random.bool() {
            let new = of_kind(&self.stage.rocksdb(), ".sst").into_iter().filter(|name| !before.contains(name));
            assert_eq!(new.filter(|name| write_sequence(&self.stage.rocksdb().join(name), sequence)).count(), 1);
            self.note("sequence numbers written");
        }
        self.note("ingestions");
    }

    fn save_or_restore(&mut self) {
        if self.older.len() < KEPT && (self.older.is_empty() || self.random.bool()) {
            let copy = self.stage.save(&format!("older-{}", self.older.len()));
            self.older.push(copy);
        } else {
            let from = self.older[self.random.usize(..self.older.len())].clone();
            self.stage.restore(&from);
            // From there on the node writes other data, with the same file numbers.
            self.write();
            self.note("restores of the node");
        }
    }

    /// Damages a bit or a whole file of an existing backup.
    fn rot(&mut self) {
        let Some(id) = self.random.choice(&self.backups).cloned() else { return };
        let copy = self.stage.copy(&id);
        let files = [of_kind(&copy, ".sst"), of_kind(&copy, ".blob")].concat();
        let Some(name) = self.random.choice(&files) else { return };
        let path = copy.join(name);
        if self.random.bool() {
            flip(&path);
        } else {
            let file = fs::File::options().write(true).open(&path).unwrap();
            let bytes = file.metadata().unwrap().len();
            file.set_len(0).unwrap();
            file.set_len(bytes).unwrap();
        }
        self.rotten = true;
        self.note("files damaged in backups");
    }

    fn make(&mut self, program: &str) -> BackupId {
        // What is not damaged need not be read each time.
        let percent = if self.rotten || self.random.bool() { "100" } else { "4" };
        self.rotten = false;
        let out = Command::new(program)
            .args(["make", "--reserve-bytes", "0", "--sums", "none", "--reread-percent", percent])
            .args(["--log-level", "warn", "--database-directory"])
            .arg(self.stage.directory())
            .arg("--backup-directory")
            .arg(self.stage.backups())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{program}: {} {said}", out.status);
        BackupId::parse(String::from_utf8(out.stdout).unwrap().trim()).unwrap()
    }

    /// Fails unless the backup is the database in `reference`.
    fn check(&mut self, id: &BackupId, reference: &Path) {
        let copy = self.stage.copy(id);
        let tables = |directory: &Path| [of_kind(directory, ".sst"), of_kind(directory, ".blob")].concat();
        for name in tables(&copy) {
            let node = fs::read(self.stage.rocksdb().join(&name)).unwrap();
            assert!(fs::read(copy.join(&name)).unwrap() == node, "{name} of {id}");
        }
        assert_eq!(contents(&copy), contents(reference), "{id}");
        let entries = fs::read_to_string(self.stage.backups().join(id.as_str()).join("manifest.json")).unwrap();
        let reused = entries.matches("\"reused\"").count();
        *self.counts.entry("files taken over").or_default() += reused as u32;
    }
}

/// All keys and values of a database.
fn contents(directory: &Path) -> BTreeMap<Box<[u8]>, Box<[u8]>> {
    let db = DB::open_for_read_only(&Options::default(), directory, false).unwrap();
    let all = db.iterator(IteratorMode::Start).map(Result::unwrap).collect();
    drop(db);
    let _ = fs::remove_file(directory.join("LOG"));
    all
}

#[test]
#[ignore = "long: scripts/soak.sh other-disk"]
fn soak() {
    let given = std::env::var(COUNT).expect("the number of backups and the seed");
    let (count, seed) = given.split_once(';').expect("count;seed");
    let programs = std::env::var(PROGRAMS).expect("the programs");
    let programs: Vec<&str> = programs.split(':').collect();
    let mut stage = Stage::new("soak").expect("/dev/shm is another file system");
    stage.options.set_enable_blob_files(true);
    stage.options.set_min_blob_size(1000);
    let random = fastrand::Rng::with_seed(seed.parse().unwrap());
    let (older, external, backups) = (Vec::new(), Vec::new(), Vec::new());
    let mut soak = Soak { stage, random, older, external, backups, rotten: false, counts: BTreeMap::new() };
    soak.write();
    for n in 0..count.parse::<usize>().unwrap() {
        for _ in 0..soak.random.usize(0..4) {
            match soak.random.u8(..10) {
                0..=4 => soak.write(),
                5 => soak.ingest(),
                6..=7 => soak.save_or_restore(),
                _ => soak.rot(),
            }
        }
        let program = programs[n % programs.len()];
        let (id, reference);
        if n % 3 == 0 {
            reference = soak.stage.rocksdb();
            id = soak.make(program);
            soak.check(&id, &reference);
        } else {
            let db = DB::open(&soak.stage.options, soak.stage.rocksdb()).unwrap();
            db.put("open", n.to_string()).unwrap();
            db.flush_wal(true).unwrap();
            id = soak.make(program);
            reference = soak.stage.node.path().join("reference");
            Checkpoint::new(&db).unwrap().create_checkpoint(&reference).unwrap();
            soak.check(&id, &reference);
            drop(db);
            fs::remove_dir_all(&reference).unwrap();
        }
        soak.backups.push(id);
        if soak.backups.len() > KEPT {
            let gone = soak.backups.remove(soak.random.usize(..KEPT));
            fs::remove_dir_all(soak.stage.backups().join(gone.as_str())).unwrap();
        }
        if n % 50 == 49 {
            println!("{} backups", n + 1);
        }
    }
    let shm: Vec<String> = names(&soak.stage.backups());
    assert!(shm.iter().all(|name| !name.starts_with(".deleting")), "{shm:?}");
    println!("{count} backups, 0 wrong; seed {seed}: {:?}", soak.counts);
}
