//! What a node feels: the latency of its commits while nobody, we, or a peer backs it up, by turns in one run.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::Scale;
use crate::measure::{Table, quantile, settle};

/// How many times as long as its runs an act may take in all.
const MAX_OVERHEAD: u32 = 3;

/// One thing to do again and again while the writer writes; `None` is to leave it alone. It says whether it was done by the
/// given time: some peers begin again at each commit of the writer, and never end.
pub type Act<'a> = (&'a str, Option<Box<dyn Fn(Instant) -> bool + 'a>>);

/// Runs a peer until `deadline` at most; whether it was done by then.
fn finishes<S: AsRef<OsStr>>(deadline: Instant, program: &str, arguments: &[S]) -> bool {
    let left = deadline.saturating_duration_since(Instant::now()).as_secs_f64().max(0.01);
    let mut command = Command::new("timeout");
    command.arg(format!("{left:.2}")).arg(program).args(arguments);
    let status = command.stdout(Stdio::null()).status().expect("timeout of coreutils is installed");
    // 124: the time was up.
    assert!(status.success() || status.code() == Some(124), "{command:?}: {status}");
    status.success()
}

/// A writer in a process of its own, killed when it goes out of scope.
pub struct Writer {
    child: Child,
    log: PathBuf,
}

impl Writer {
    pub fn start(kind: &str, at: &Path, log: &Path, pause: Duration) -> Writer {
        let program = std::env::current_exe().unwrap();
        let child = Command::new(program)
            .args(["writer", kind])
            .args([at, log])
            .arg(pause.as_micros().to_string())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_secs(1));
        Writer { child, log: log.to_owned() }
    }

    /// When each commit ended, in microseconds since the epoch, and what it took, in milliseconds.
    fn finish(mut self) -> Vec<(u64, f64)> {
        std::thread::sleep(Duration::from_millis(300));
        assert!(self.child.try_wait().unwrap().is_none(), "the writer died");
        self.child.kill().unwrap();
        let text = fs::read_to_string(&self.log).unwrap();
        let line = |line: &str| {
            let (at, latency) = line.split_once(' ')?;
            Some((at.parse().ok()?, latency.parse::<f64>().ok()? / 1000.0))
        };
        text.lines().filter_map(line).collect()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros().try_into().unwrap()
}

/// Runs every act for the phase of `scale` (at least once, and only whole ones), its rounds by turns; adds a row for each.
/// One that takes longer than its limit is ended, and not begun again in this round. `clean` comes after each run and does
/// not count.
pub fn compare(table: &mut Table, writer: Writer, acts: &[Act], scale: &Scale, clean: &dyn Fn()) {
    let phase = scale.phase;
    let mut times: Vec<Vec<(u64, u64)>> = vec![Vec::new(); acts.len()];
    let mut unfinished = vec![0; acts.len()];
    for _ in 0..scale.rounds {
        for (n, (_, act)) in acts.iter().enumerate() {
            settle();
            let (mut left, begun) = (phase, Instant::now());
            // What comes after each run takes its time too.
            while !left.is_zero() && begun.elapsed() < phase * MAX_OVERHEAD {
                let (started, from) = (Instant::now(), now_us());
                let finished = act.as_ref().is_none_or(|act| act(started + scale.limit));
                if act.is_none() {
                    std::thread::sleep(phase);
                }
                times[n].push((from, now_us()));
                left = left.saturating_sub(started.elapsed());
                if act.is_some() {
                    clean();
                    settle();
                }
                if !finished {
                    unfinished[n] += 1;
                    break;
                }
            }
        }
    }
    let commits = writer.finish();
    let mut first_p99 = 0.0;
    for (n, (name, _)) in acts.iter().enumerate() {
        let within = |at: u64| times[n].iter().any(|(from, to)| (*from..=*to).contains(&at));
        let mut latencies: Vec<f64> = commits.iter().filter(|c| within(c.0)).map(|c| c.1).collect();
        let seconds: f64 = times[n].iter().map(|(from, to)| (to - from) as f64 / 1e6).sum();
        let [p50, p90, p99, max] = [0.5, 0.9, 0.99, 1.0].map(|part| quantile(&mut latencies, part));
        if n == 0 {
            first_p99 = p99;
        }
        table.row(&[
            (*name).to_owned(),
            format!("{}", times[n].len()),
            match unfinished[n] {
                0 => format!("{:.1}", seconds / times[n].len() as f64),
                count => format!("{count} did not finish in {} s", scale.limit.as_secs()),
            },
            format!("{:.0}", latencies.len() as f64 / seconds),
            format!("{p50:.2}"),
            format!("{p90:.2}"),
            format!("{p99:.2}"),
            format!("{max:.1}"),
            format!("{:.2}", p99 / first_p99),
        ]);
    }
}

pub const COLUMNS: [&str; 9] =
    ["meanwhile", "runs", "s each", "commits/s", "p50 ms", "p90 ms", "p99 ms", "max ms", "p99 ratio"];

/// The commits to Pact.
pub fn pact(scale: &Scale) {
    let (node, out) = (scale.dir.join("node"), scale.dir.join("out"));
    let sqlite = node.join("0/sqlite");
    crate::fill_node(&node, scale.pact_databases, scale.pact_bytes);
    let databases = crate::databases(&sqlite);
    let clean = || {
        let _ = fs::remove_dir_all(&out);
    };
    let make = |_| {
        crate::speed::make(scale, &node, &out, true);
        true
    };
    let all = |verb: &str| {
        fs::create_dir_all(&out).unwrap();
        let each = |d: &PathBuf| (d.clone(), out.join(d.file_name().unwrap()), verb.to_owned());
        databases.iter().map(each).collect::<Vec<_>>()
    };
    let cp = |deadline| {
        all("").iter().all(|(from, to, _)| finishes(deadline, "cp", &[from, to]) && finishes(deadline, "sync", &[to]))
    };
    let one = |deadline: Instant, (from, to, verb): &(PathBuf, PathBuf, String)| {
        let order = format!("{verb} '{}'", to.display());
        finishes(deadline, "sqlite3", &[from.to_str().unwrap(), ".timeout 60000", &order])
    };
    let backup = |deadline| all(".backup").iter().all(|job| one(deadline, job));
    let reference = |deadline| {
        let jobs = all("VACUUM INTO");
        std::thread::scope(|scope| {
            let jobs: Vec<_> = jobs.iter().map(|job| scope.spawn(move || one(deadline, job))).collect();
            jobs.into_iter().all(|job| job.join().unwrap())
        })
    };
    let mut acts: Vec<Act> =
        vec![("nothing", None), ("ours", Some(Box::new(make))), ("`cp` and `sync`", Some(Box::new(cp)))];
    if scale.peers {
        acts.push(("`sqlite3 .backup`", Some(Box::new(backup))));
        acts.push(("reference (VACUUM INTO, all at once)", Some(Box::new(reference))));
    }
    let title = format!(
        "A node's commits to Pact ({} databases, {} MB together, synchronous=FULL)",
        databases.len(),
        crate::measure::bytes_below(&sqlite) / 1_000_000
    );
    let mut table = Table::new(title, &COLUMNS);
    let writer = Writer::start("pact", &sqlite, &scale.dir.join("pact.log"), Duration::from_millis(15));
    compare(&mut table, writer, &acts, scale, &clean);
    table.print();
}

/// The writes to RocksDB: as fast as it can (throughput), and synced with pauses (latency).
pub fn rocksdb(scale: &Scale) {
    for (what, pause) in [("as fast as it can, not synced", 0), ("synced, one every 5 ms", 5)] {
        let (node, out) = (scale.dir.join("node-rocks"), scale.dir.join("out"));
        let database = node.join("0/rocksDb");
        fs::create_dir_all(&database).unwrap();
        let writer = Writer::start("rocksdb", &database, &scale.dir.join("rocks.log"), Duration::from_millis(pause));
        // Some SSTs to link.
        std::thread::sleep(Duration::from_secs(3));
        let clean = || {
            let _ = fs::remove_dir_all(&out);
        };
        let make = |_| {
            crate::speed::make(scale, &node, &out, false);
            true
        };
        // A way that gives no good copy, but costs what links cost. Files vanish under it.
        let cp = |_| {
            let _ = Command::new("cp").arg("-al").args([&database, &out]).stderr(Stdio::null()).status();
            true
        };
        let acts: [Act; 3] = [("nothing", None), ("ours", Some(Box::new(make))), ("`cp -al`", Some(Box::new(cp)))];
        let mut table = Table::new(format!("A node's batches of 10 kB to RocksDB, {what}"), &COLUMNS);
        compare(&mut table, writer, &acts, scale, &clean);
        table.print();
        fs::remove_dir_all(&node).unwrap();
    }
}
