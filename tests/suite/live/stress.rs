//! Live copies of a database to which another process writes as fast as it can. Each copy is opened and checked key by key. Simpler
//! protocols get the same check and must fail it: otherwise the check proves nothing.
//!
//! The long form is [`soak`], which `tests/soak/run.sh` starts.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use chainweb_backup::testing::live_copy;
use chainweb_backup::{Kind, Result, Service, Sources, gate};

use super::history::{Found, judge};
use super::writer::{
    Atomic, Blobs, ComeAndGo, CompressedWal, Families, Ingest, Killed, Pipelined, Plain, Precreated, Recycled,
    Rollover, SCENARIOS, Scenario, TwoPhase, Unordered, WalsInManifest, Writer,
};
use crate::fixture::{ROCKSDB, config, copy_tree, make_done, record, scratch};

/// Copies of each scenario in the short form.
const COPIES: u32 = 25;

/// A thread's pause between two steps.
const PAUSE_US: u64 = 200;

/// How long a step waits at most until the writer has gone on.
const LONGEST_PAUSE: Duration = Duration::from_millis(300);

/// How the copies are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Live,
    /// With random pauses at every point of the protocol.
    Slow,
    /// By a backup of the service.
    Service,
    /// `cp -r`.
    Naive,
    /// The WALs' sizes are taken after the check of the MANIFEST instead of before, both with a pause between them.
    LateSizes,
    /// The same pause, with the sizes taken where they belong.
    LatePause,
    /// The directory, which has so many names that reading it takes several calls, is read once.
    OneListing,
    /// The same directory is read twice.
    Crowded,
}

/// How the copies went.
#[derive(Default)]
struct Tally {
    good: u32,
    refused: u32,
    /// Not made, because the database changed too fast for too long: it failed with that reason and left nothing.
    given_up: u32,
    wrong: Vec<String>,
    rounds: BTreeMap<u32, u32>,
    windows: Vec<Duration>,
    times: Vec<Duration>,
}

impl Tally {
    fn print(&self, scenario: Scenario, way: Way) {
        let mut windows = self.windows.clone();
        windows.sort();
        let mut times = self.times.clone();
        times.sort();
        let at = |all: &[Duration], percent: usize| match all.len() {
            0 => 0.0,
            count => all[(count - 1) * percent / 100].as_secs_f64() * 1000.0,
        };
        println!(
            "scenario={scenario:?} way={way:?} good={} wrong={} refused={} given_up={} rounds={:?} window_ms p50={:.2} \
             p99={:.2} max={:.2} copy_ms p50={:.1} max={:.1}",
            self.good,
            self.wrong.len(),
            self.refused,
            self.given_up,
            self.rounds,
            at(&windows, 50),
            at(&windows, 99),
            at(&windows, 100),
            at(&times, 50),
            at(&times, 100)
        );
        for why in self.wrong.iter().take(5) {
            println!("  {}", why.chars().take(300).collect::<String>());
        }
    }
}

/// Makes copies of one scenario and judges each.
fn run(scenario: Scenario, way: Way, copies: u32) -> Tally {
    let dir = scratch();
    let mut writer = Writer::start(dir.path(), scenario, PAUSE_US);
    if matches!(way, Way::OneListing | Way::Crowded) {
        // Reading a large directory takes several calls, between which files come and go.
        (0..30_000).for_each(|n| drop(fs::File::create(writer.database().join(format!("{n}.dbtmp"))).unwrap()));
    }
    if scenario != Recycled {
        writer.wait_steps(200);
    }
    let database = writer.database();
    let service = Service::start(config(&dir.path().join("backups")), Sources::directory(dir.path())).unwrap();
    let mut random = fastrand::Rng::with_seed(u64::from(copies));
    let mut pauses = random.fork();
    match way {
        Way::Slow => gate::at_point(&database, move |_| {
            if pauses.bool() {
                sleep(Duration::from_micros(pauses.u64(0..1500)));
            }
        }),
        Way::LateSizes | Way::LatePause => {
            // Ingestion also deletes files meanwhile; a new column family takes longer than that.
            let pause = Duration::from_millis(if scenario == Ingest { 3 } else { 12 });
            let writer = writer.observer();
            gate::at_point(&database, move |point| {
                if point == "live-held" {
                    let (before, began) = (writer.committed(), Instant::now());
                    sleep(pause);
                    // On a busy machine the writer may not have had a processor meanwhile.
                    while before.files() == writer.committed().files() && began.elapsed() < LONGEST_PAUSE {
                        sleep(Duration::from_millis(1));
                    }
                }
            });
        }
        _ => {}
    }
    match way {
        Way::LateSizes => gate::weaken(&database, "late-sizes"),
        Way::OneListing => gate::weaken(&database, "one-listing"),
        _ => {}
    }
    let mut tally = Tally::default();
    let done = AtomicBool::new(false);
    let committed = writer.observer();
    scope(|threads| {
        if scenario == Killed {
            let (writer, done) = (&mut writer, &done);
            threads.spawn(move || {
                let mut random = fastrand::Rng::with_seed(5);
                while !done.load(SeqCst) {
                    sleep(Duration::from_millis(random.u64(10..250)));
                    // Half of the copies are made while the writer recovers.
                    if random.bool() { writer.kill_and_restart_at_once() } else { writer.kill_and_restart() }
                }
            });
        }
        for _ in 0..copies {
            let to = dir.path().join("copy");
            let before = committed.committed();
            let started = Instant::now();
            let copied = one_copy(way, &service, &database, &to);
            let time = started.elapsed();
            let after = committed.committed();
            match copied {
                Ok((rounds, window)) => {
                    tally.times.push(time);
                    tally.windows.push(window);
                    *tally.rounds.entry(rounds).or_default() += 1;
                    match judged(scenario, &to, &before, &after) {
                        Ok(()) => tally.good += 1,
                        Err(why) => tally.wrong.push(why),
                    }
                }
                Err(e) if e.kind() == Kind::Refused && scenario == Recycled => {
                    let known = ["recycle_log_file_num", "became shorter"].iter().any(|why| e.chain().contains(why));
                    assert!(known, "{}", e.chain());
                    tally.refused += 1;
                }
                Err(e) if e.kind() == Kind::Changed => tally.given_up += 1,
                Err(e) => tally.wrong.push(format!("cannot be made: {}", e.chain())),
            }
            // A database that is refused at once leaves no directory.
            if to.exists() {
                fs::remove_dir_all(&to).unwrap();
            }
            sleep(Duration::from_micros(random.u64(0..5000)));
        }
        done.store(true, SeqCst);
    });
    gate::forget_points(&database);
    assert!(writer.is_alive(), "the writer has died");
    tally.print(scenario, way);
    tally
}

fn one_copy(way: Way, service: &Service, database: &Path, to: &Path) -> Result<(u32, Duration)> {
    match way {
        Way::Service => {
            let id = make_done(service, ROCKSDB);
            let part = record(service, &id).rocksdb.unwrap();
            assert_eq!(part.capture, "live-copy");
            let backup = database.join("../../backups").join(id.as_str());
            // A backup is never opened read-write.
            copy_tree(&backup.join("0/rocksDb"), to);
            fs::remove_dir_all(backup).unwrap();
            Ok((part.rounds_count.unwrap(), Duration::from_micros(part.window_us.unwrap())))
        }
        Way::Naive => {
            // For a file that vanishes meanwhile cp reports an error, which a script that copies a live database would ignore.
            Command::new("cp").arg("-r").args([database, to]).stderr(std::process::Stdio::null()).status().unwrap();
            Ok((1, Duration::ZERO))
        }
        _ => live_copy(database, to, to),
    }
}

fn judged(scenario: Scenario, copy: &Path, before: &Found, after: &Found) -> std::result::Result<(), String> {
    let found = judge(copy, scenario.families(), scenario == TwoPhase)?;
    let old = found.steps.iter().zip(before.steps).any(|(found, before)| *found < before)
        || found.ingested < before.ingested
        || found.families < before.families;
    if old {
        return Err(format!("too old: {found:?}, and {before:?} was committed before it was made"));
    }
    // A step may be committed and not yet reported. Without a WAL, only flushed steps are reported.
    let early = found.steps.iter().zip(after.steps).any(|(found, after)| *found > after + 1);
    if early && scenario != Atomic {
        return Err(format!("too new: {found:?}, and only {after:?} was committed after it was made"));
    }
    Ok(())
}

fn all_good(scenario: Scenario) {
    for way in [Way::Live, Way::Slow] {
        let tally = run(scenario, way, COPIES);
        let bad = (tally.given_up, tally.wrong.first());
        assert_eq!((tally.good, tally.wrong.len()), (COPIES, 0), "{scenario:?} {way:?}: {bad:?}");
    }
}

#[test]
fn plain() {
    all_good(Plain);
    let tally = run(Plain, Way::Service, COPIES / 5);
    assert_eq!(tally.good, COPIES / 5, "{:?}", tally.wrong.first());
}

#[test]
fn four_column_families() {
    all_good(Families);
}

#[test]
fn manifest_rollover() {
    all_good(Rollover);
}

#[test]
fn atomic_flush_without_a_wal() {
    all_good(Atomic);
}

#[test]
fn a_writer_that_is_killed_all_the_time() {
    all_good(Killed);
}

#[test]
fn ingestion() {
    all_good(Ingest);
}

#[test]
fn column_families_that_come_and_go() {
    all_good(ComeAndGo);
}

#[test]
fn two_phase_commit() {
    all_good(TwoPhase);
}

#[test]
fn blobs() {
    all_good(Blobs);
}

#[test]
fn a_compressed_wal() {
    all_good(CompressedWal);
}

#[test]
fn pipelined_and_unordered_writes() {
    all_good(Pipelined);
    all_good(Unordered);
}

#[test]
fn wals_in_the_manifest_and_wals_made_early() {
    all_good(WalsInManifest);
    let tally = run(WalsInManifest, Way::Service, COPIES);
    assert_eq!(tally.good, COPIES, "{:?}", tally.wrong.first());
    all_good(Precreated);
}

#[test]
fn recycled_wals_are_refused() {
    let tally = run(Recycled, Way::Live, COPIES);
    assert_eq!(tally.refused, COPIES, "good={} {:?}", tally.good, tally.wrong.first());
}

#[test]
fn the_naive_copy_is_seen_to_fail() {
    let wrong: usize = [Plain, Ingest].into_iter().map(|s| run(s, Way::Naive, COPIES).wrong.len()).sum();
    assert!(wrong > 0, "the judge finds nothing");
}

#[test]
fn sizes_that_are_taken_too_late_are_seen_to_fail() {
    let wrong: usize = [Ingest, ComeAndGo].into_iter().map(|s| run(s, Way::LateSizes, COPIES).wrong.len()).sum();
    assert!(wrong > 0, "the judge finds nothing");
    for scenario in [Ingest, ComeAndGo] {
        let tally = run(scenario, Way::LatePause, COPIES);
        let bad = (tally.given_up, tally.wrong.len());
        assert_eq!(bad, (0, 0), "the pause alone makes copies wrong: {:?}", tally.wrong.first());
    }
}

/// `CHAINWEB_BACKUP_SOAK` is `COPIES`, or `COPIES;SCENARIO;WAY`.
#[test]
#[ignore = "takes as long as CHAINWEB_BACKUP_SOAK says: tests/soak/run.sh own"]
fn soak() {
    let text = std::env::var("CHAINWEB_BACKUP_SOAK").unwrap();
    let parts: Vec<&str> = text.split(';').collect();
    let copies = parts[0].parse().unwrap();
    let wanted = |at: usize, name: String| parts.get(at).is_none_or(|part| *part == name);
    let ways =
        [Way::Live, Way::Slow, Way::Service, Way::Naive, Way::LateSizes, Way::LatePause, Way::OneListing, Way::Crowded];
    let (mut good, mut given_up, mut wrong) = (0, 0, 0);
    for scenario in SCENARIOS.into_iter().filter(|s| wanted(1, format!("{s:?}"))) {
        let sound = |way: &Way| matches!(way, Way::Live | Way::Slow);
        for way in ways.into_iter().filter(|w| if parts.len() > 2 { wanted(2, format!("{w:?}")) } else { sound(w) }) {
            let tally = run(scenario, way, copies);
            good += tally.good + tally.refused;
            given_up += tally.given_up;
            wrong += tally.wrong.len();
        }
    }
    println!("copies good_or_rightly_refused={good} given_up={given_up} wrong={wrong}");
    assert!(wrong == 0 || parts.len() > 2, "a sound way has made a wrong copy");
}
