//! How long a live copy of many files takes, compared with RocksDB's own checkpoint and `cp -al`, in one run and in turn.
//!
//! `CHAINWEB_BACKUP_TIMING` is the number of SSTs; `CHAINWEB_BACKUP_PROGRAM` names the program, whose `make` is measured too.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use chainweb_backup::rocksdb::checkpoint::Checkpoint;
use chainweb_backup::rocksdb::{DB, IngestExternalFileOptions, Options, SstFileWriter};
use chainweb_backup::testing::live_copy;
use chainweb_backup::{Service, Sources};

use crate::fixture::{ROCKSDB, config, make_done, names, scratch};

const RUNS: usize = 5;

#[test]
#[ignore = "a measurement, of as many files as CHAINWEB_BACKUP_TIMING says: tests/soak/run.sh timing"]
fn timing() {
    let count: usize = std::env::var("CHAINWEB_BACKUP_TIMING").unwrap().parse().unwrap();
    let program = std::env::var_os("CHAINWEB_BACKUP_PROGRAM");
    let dir = scratch();
    let database = dir.path().join("0/rocksDb");
    fs::create_dir_all(&database).unwrap();
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_disable_auto_compactions(true);
    options.set_max_open_files(500);
    let db = DB::open(&options, &database).unwrap();
    let mut files = Vec::new();
    for n in 0..count {
        let file = dir.path().join(format!("{n}.sst"));
        let mut writer = SstFileWriter::create(&options);
        writer.open(&file).unwrap();
        writer.put(format!("key-{n:08}"), vec![0; 2000]).unwrap();
        writer.finish().unwrap();
        files.push(file);
    }
    let mut moved = IngestExternalFileOptions::default();
    moved.set_move_files(true);
    db.ingest_external_file_opts(&moved, files).unwrap();
    let there = names(&database).iter().filter(|name| name.ends_with(".sst")).count();
    assert_eq!(there, count);
    let service = Service::start(config(&dir.path().join("backups")), Sources::directory(dir.path())).unwrap();

    let mut times: BTreeMap<&str, Vec<(Duration, Duration)>> = BTreeMap::new();
    let mut windows = Vec::new();
    let to = dir.path().join("copy");
    for _ in 0..RUNS {
        let mut measure = |what, act: &mut dyn FnMut()| {
            db.put("key", "value").unwrap();
            rustix::fs::sync();
            let (started, busy) = (Instant::now(), thread_time());
            act();
            times.entry(what).or_default().push((started.elapsed(), thread_time() - busy));
            let _ = fs::remove_dir_all(&to);
        };
        measure("checkpoint", &mut || Checkpoint::new(&db).unwrap().create_checkpoint(&to).unwrap());
        measure("live copy", &mut || windows.push(live_copy(&database, &to, &to).unwrap().1));
        measure("cp -al", &mut || {
            assert!(Command::new("cp").arg("-al").args([&database, &to]).status().unwrap().success());
        });
        let mut made = String::new();
        measure("service", &mut || made = make_done(&service, ROCKSDB).as_str().to_owned());
        fs::remove_dir_all(dir.path().join("backups").join(&made)).unwrap();
        if let Some(program) = &program {
            measure("make", &mut || {
                let made = Command::new(program)
                    .args(["make", "--reserve-bytes", "0", "--log-level", "warn", "--database-directory"])
                    .arg(dir.path())
                    .arg("--backup-directory")
                    .arg(dir.path().join("made"))
                    .output()
                    .unwrap();
                assert!(made.status.success(), "{made:?}");
            });
            fs::remove_dir_all(dir.path().join("made")).unwrap();
        }
    }
    windows.sort();
    println!("ssts={count} window_ms median={:.1}", windows[RUNS / 2].as_secs_f64() * 1000.0);
    for (what, mut times) in times {
        times.sort();
        let all: Vec<String> = times.iter().map(|(wall, _)| format!("{:.3}", wall.as_secs_f64())).collect();
        let mut busy: Vec<_> = times.iter().map(|(_, busy)| *busy).collect();
        busy.sort();
        let (wall, busy) = (times[RUNS / 2].0.as_secs_f64(), busy[RUNS / 2].as_secs_f64());
        println!("  {what}: median {wall:.3} s of {}; this thread was busy {busy:.3} s", all.join(" "));
    }
}

/// The processor time of this thread, in which other programs do not count.
fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).unwrap())
}
