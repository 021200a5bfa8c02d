//! Counters of the service, and the metrics as Prometheus text. No I/O: the caller passes all values.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::backups::details::{Details, Progress};
use crate::chainweb::start::Verdict;
use crate::format::record::Status;

/// The counters of the service since its start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    done_count: AtomicU64,
    failed_count: AtomicU64,
    last_duration_ms: AtomicU64,
    last_bytes: AtomicU64,
}

impl Counters {
    pub(crate) fn job_done(&self, seconds: f64, bytes: u64) {
        self.done_count.fetch_add(1, Relaxed);
        self.last_duration_ms.store((seconds * 1000.0) as u64, Relaxed);
        self.last_bytes.store(bytes, Relaxed);
    }

    pub(crate) fn job_failed(&self) {
        self.failed_count.fetch_add(1, Relaxed);
    }
}

/// For each method the size of the Pact databases, and the bytes that were written for them.
type ByMethod = BTreeMap<&'static str, (u64, u64)>;

/// The totals of all backups, including those of other processes; each is [added](Summary::add) separately, the newest first.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    done_count: u64,
    in_progress_count: u64,
    failed_count: u64,
    /// Whether a backup of ours is being made, by this or another process.
    is_in_progress: bool,
    last_success_ms: u64,
    last_failure_ms: u64,
    /// The newest good backup of ours: its identifier, and the time since which each of its files was read.
    newest: Option<(u64, Option<u64>)>,
    /// The newest backup of ours that is done, by its id, and the number of its warnings.
    newest_done: Option<(u64, usize)>,
    /// The newest backup of ours that is done and has Pact, by its id.
    newest_pact: Option<(u64, ByMethod)>,
    /// The newest backup of ours that had a drill, by its id; when it began, and whether it passed.
    newest_drill: Option<(u64, u64, bool)>,
    /// The newest backup of ours whose start-up proof has a result, by its id: whether a node starts, and the blocks to replay.
    newest_proof: Option<(u64, bool, u64)>,
    /// Whether a backup could not be read and is missing in the totals.
    pub(crate) is_incomplete: bool,
}

impl Summary {
    pub(crate) fn add(&mut self, backup: &Details) {
        let is_whole = backup.verified.as_ref().is_none_or(|v| v.faults_count == 0);
        let ended_ms = backup.record.as_ref().filter(|_| is_whole).map(|r| r.finished_ms.unwrap_or(r.started_ms));
        if let (Status::Done, Some(id), Some(record)) = (backup.status, backup.id.millis(), &backup.record) {
            let drill = backup.drill.as_ref().map(|drill| (id, drill.at_ms, drill.passed));
            self.newest_drill = self.newest_drill.max(drill);
            let proof = backup.starts.as_ref().and_then(|proof| match &proof.verdict {
                Verdict::Yes(start) => Some((id, true, start.replay_sum())),
                Verdict::No { .. } => Some((id, false, 0)),
                Verdict::Unknown { .. } => None,
            });
            self.newest_proof = self.newest_proof.max(proof);
            self.newest_done = self.newest_done.max(Some((id, record.warnings.len())));
            if record.scope.has_pact() && self.newest_pact.as_ref().is_none_or(|(newest, _)| *newest < id) {
                let mut by_method = ByMethod::new();
                for part in &record.pact {
                    let (bytes, written_bytes) = by_method.entry(part.method.word()).or_default();
                    // The record may be damaged.
                    *bytes = bytes.saturating_add(part.bytes);
                    *written_bytes = written_bytes.saturating_add(part.all_written_bytes());
                }
                self.newest_pact = Some((id, by_method));
            }
        }
        let (count, last_ms) = match backup.status {
            Status::Done => (&mut self.done_count, Some(&mut self.last_success_ms)),
            Status::Failed => (&mut self.failed_count, Some(&mut self.last_failure_ms)),
            Status::InProgress => {
                self.is_in_progress |= !backup.foreign;
                (&mut self.in_progress_count, None)
            }
        };
        *count += 1;
        if backup.status == Status::Done && !backup.foreign {
            self.newest = self.newest.max(backup.id.millis().map(|id| (id, backup.oldest_unread_ms)));
        }
        if let (Some(last_ms), Some(ended_ms)) = (last_ms, ended_ms) {
            // The newest backup is added first. The largest time may be from a clock that was wrong.
            *last_ms = if *last_ms == 0 { ended_ms } else { *last_ms };
        }
    }
}

/// The present state of the service.
#[derive(Debug)]
pub(crate) struct Gauges<'a> {
    /// The running job of this process.
    pub(crate) running: Option<Progress>,
    /// Free bytes of the file system of the backups.
    pub(crate) free_bytes: u64,
    /// The most bytes that are copied per second; 0 is no limit.
    pub(crate) limit_bytes: u64,
    /// The node's version.
    pub(crate) node_version: &'a str,
}

/// Metrics in the text format of Prometheus, version 0.0.4.
struct Text(String);

impl Text {
    fn metric(&mut self, name: &str, kind: &str, help: &str, samples: &[(String, f64)]) {
        let _ = writeln!(self.0, "# HELP chainweb_backup_{name} {help}\n# TYPE chainweb_backup_{name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(self.0, "chainweb_backup_{name}{labels} {value}");
        }
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.metric(name, "gauge", help, &[(String::new(), value)]);
    }

    /// 1 if it is true, otherwise 0.
    fn truth(&mut self, name: &str, help: &str, holds: bool) {
        self.gauge(name, help, f64::from(u8::from(holds)));
    }
}

/// All metrics.
pub(crate) fn render(counters: &Counters, backups: &Summary, now: &Gauges) -> String {
    let mut text = Text(String::new());
    let load = |counter: &AtomicU64| counter.load(Relaxed) as f64;

    let quoted = now.node_version.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let versions = format!("{{version=\"{}\",node_version=\"{quoted}\"}}", env!("CARGO_PKG_VERSION"));
    text.metric("info", "gauge", "Versions of this program and of the node.", &[(versions, 1.0)]);
    let in_progress = now.running.is_some() || backups.is_in_progress;
    text.truth("in_progress", "Whether a backup is being made.", in_progress);
    let help = "1 if the backup directory can be read and is the one of the service's start, otherwise 0.";
    text.truth("directory_readable", help, !backups.is_incomplete);
    let results = [
        ("{result=\"done\"}".to_owned(), load(&counters.done_count)),
        ("{result=\"failed\"}".to_owned(), load(&counters.failed_count)),
    ];
    text.metric("jobs_total", "counter", "Jobs of this process that ended since its start.", &results);
    of_backups(&mut text, backups);
    if counters.done_count.load(Relaxed) > 0 {
        let seconds = load(&counters.last_duration_ms) / 1000.0;
        text.gauge("last_duration_seconds", "How long the last good backup took.", seconds);
        text.gauge("last_bytes", "Size of the last good backup.", load(&counters.last_bytes));
    }
    if let Some(progress) = &now.running {
        text.gauge("job_bytes_done", "Bytes that the running job has copied.", progress.bytes_done as f64);
        text.gauge("job_bytes_total", "Bytes that the running job copies.", progress.bytes_total as f64);
    }
    text.gauge("free_bytes", "Free space for backups.", now.free_bytes as f64);
    let help = "The most bytes that are copied per second; 0 is no limit.";
    text.gauge("limit_bytes_per_second", help, now.limit_bytes as f64);
    text.0
}

fn of_backups(text: &mut Text, backups: &Summary) {
    let statuses = [
        (Status::Done, backups.done_count),
        (Status::InProgress, backups.in_progress_count),
        (Status::Failed, backups.failed_count),
    ]
    .map(|(status, count)| (format!("{{status=\"{}\"}}", status.word()), count as f64));
    text.metric("backups", "gauge", "Backups in the backup directory.", &statuses);
    // Zero, so that an alarm is also raised if there was no good backup yet.
    let help = "When the newest good backup was finished, seconds since the epoch; 0 for none.";
    text.gauge("last_success_timestamp_seconds", help, backups.last_success_ms as f64 / 1000.0);
    if let Some(oldest_ms) = backups.newest.and_then(|(_, oldest_unread_ms)| oldest_unread_ms) {
        let help = "Each file of the newest backup was last read at this time or later, seconds since the epoch.";
        text.gauge("oldest_unread_timestamp_seconds", help, oldest_ms as f64 / 1000.0);
    }
    let help = "When the last failed backup failed, seconds since the epoch; 0 for none.";
    text.gauge("last_failure_timestamp_seconds", help, backups.last_failure_ms as f64 / 1000.0);
    // Shown even if it is zero, so that an alarm sees the change from zero to one.
    let warnings_count = backups.newest_done.map_or(0, |(_, warnings_count)| warnings_count);
    let help = "Warnings in the record of the newest backup that is done.";
    text.gauge("warnings", help, warnings_count as f64);
    if let Some((_, by_method)) = &backups.newest_pact {
        let each = |value: &dyn Fn(&(u64, u64)) -> u64| -> Vec<(String, f64)> {
            let sample =
                |(method, both): (&&str, &(u64, u64))| (format!("{{method=\"{method}\"}}"), value(both) as f64);
            by_method.iter().map(sample).collect()
        };
        let help = "Size of the Pact databases in the newest good backup that has them, by how they came into it.";
        text.metric("pact_bytes", "gauge", help, &each(&|(bytes, _)| *bytes));
        let help = "The bytes that were written for them; of an increment only what had changed.";
        text.metric("pact_written_bytes", "gauge", help, &each(&|(_, written_bytes)| *written_bytes));
    }
    if let Some((_, at_ms, passed)) = backups.newest_drill {
        let help = "When the last drill of the newest backup that had one began.";
        text.gauge("last_drill_timestamp_seconds", help, at_ms as f64 / 1000.0);
        text.truth("last_drill_passed", "Whether that drill passed.", passed);
    }
    if let Some((_, starts, replay)) = backups.newest_proof {
        let help = "Whether a node starts from the newest backup of which that is known.";
        text.truth("starts", help, starts);
        let help = "Blocks that a node replays when it starts from that backup, over all chains.";
        text.gauge("start_replay_blocks", help, replay as f64);
    }
}
