//! The metrics as Prometheus text. No I/O: the caller passes all values.
//!
//! Invariants
//! - Every metric is declared in each answer, with or without a sample: so what is there does not depend on what has happened.
//! - The number of samples has a limit: a label is a status, a scope, a method, a phase, an endpoint or a code.
//! - Names follow the rules of Prometheus: base units, `_total` for counters only, times in seconds since the epoch.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::backups::details::Progress;
use crate::config::Config;
use crate::config::hooks::Event;
use crate::control::PHASES;
use crate::format::record::Status;
use crate::service::counters::{BOUNDS_SECONDS, Counters, Histogram, SCOPES};
use crate::service::summary::{Ended, OfScope, Summary};
use crate::service::timetable::Scheduled;

/// The present state of the service.
#[derive(Debug)]
pub(crate) struct Gauges {
    /// The running job of this process.
    pub(crate) running: Option<Running>,
    /// Whether the backup thread hangs in a job that has stalled.
    pub(crate) thread_hangs: bool,
    pub(crate) volume: Volume,
    /// The most bytes that are copied per second; 0 is no limit.
    pub(crate) limit_bytes: u64,
    pub(crate) schedules: Vec<Scheduled>,
    /// What is configured: the hooks, and the node's version.
    pub(crate) config: Arc<Config>,
}

/// The running job.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) progress: Progress,
    /// A number that grows with any progress.
    pub(crate) steps: u64,
    /// How far the WAL of a Pact database has grown, if one was copied yet.
    pub(crate) wal_growth_bytes: Option<u64>,
}

/// The file system of the backups.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Volume {
    pub(crate) free_bytes: u64,
    pub(crate) size_bytes: u64,
    /// The free space that a backup must leave.
    pub(crate) reserve_bytes: u64,
}

/// Metrics in the text format of Prometheus, version 0.0.4.
struct Text(String);

impl Text {
    fn declare(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP chainweb_backup_{name} {help}\n# TYPE chainweb_backup_{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: f64) {
        let _ = writeln!(self.0, "chainweb_backup_{name}{labels} {value}");
    }

    fn metric(&mut self, name: &str, kind: &str, help: &str, samples: &[(String, f64)]) {
        self.declare(name, kind, help);
        samples.iter().for_each(|(labels, value)| self.sample(name, labels, *value));
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.metric(name, "gauge", help, &[(String::new(), value)]);
    }

    /// One that has no sample as long as its value is not known.
    fn known(&mut self, name: &str, help: &str, value: Option<f64>) {
        self.declare(name, "gauge", help);
        value.into_iter().for_each(|value| self.sample(name, "", value));
    }

    fn counter(&mut self, name: &str, help: &str, value: &AtomicU64) {
        self.metric(name, "counter", help, &[(String::new(), value.load(Relaxed) as f64)]);
    }

    /// 1 if it is true, otherwise 0.
    fn truth(&mut self, name: &str, help: &str, holds: bool) {
        self.gauge(name, help, truth(holds));
    }

    /// One histogram for each value of a label.
    fn histogram(&mut self, name: &str, help: &str, label: &str, each: &[(&str, &Histogram)]) {
        self.declare(name, "histogram", help);
        for (value, histogram) in each {
            let (counts, of) = (histogram.cumulative_counts(), format!("{label}=\"{value}\""));
            let bounds = BOUNDS_SECONDS.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
            for (bound, count) in bounds.zip(counts) {
                self.sample(&format!("{name}_bucket"), &format!("{{{of},le=\"{bound}\"}}"), count as f64);
            }
            self.sample(&format!("{name}_sum"), &format!("{{{of}}}"), histogram.sum_seconds());
            self.sample(&format!("{name}_count"), &format!("{{{of}}}"), counts[BOUNDS_SECONDS.len()] as f64);
        }
    }
}

fn truth(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}

/// Milliseconds, or 0 for none, as seconds.
fn seconds(ms: Option<u64>) -> f64 {
    ms.unwrap_or(0) as f64 / 1000.0
}

fn label(name: &str, value: &str) -> String {
    let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("{name}=\"{escaped}\"")
}

/// The labels of a sample with one label.
fn by(name: &str, value: &str) -> String {
    format!("{{{}}}", label(name, value))
}

/// All metrics of a service.
pub(crate) fn render(counters: &Counters, backups: &Summary, now: &Gauges) -> String {
    let mut text = Text(String::new());
    of_program(&mut text, now.config.node_version.as_deref().unwrap_or("unknown"));
    of_directory(&mut text, backups, now.running.is_some(), now.volume);
    of_jobs(&mut text, counters, now);
    of_running(&mut text, now.running.as_ref());
    of_requests(&mut text, counters);
    let configured: Vec<Event> = Event::ALL.into_iter().filter(|event| now.config.hooks.has(*event)).collect();
    of_hooks(&mut text, backups, &configured);
    of_hook_runs(&mut text, counters, &configured);
    of_schedules(&mut text, &now.schedules);
    let help = "Backups that this process deleted because no rule keeps them.";
    text.counter("pruned_total", help, &counters.pruned_count);
    let help = "Backups that could not be deleted, or not be read, and prunes that failed.";
    text.counter("prune_failures_total", help, &counters.prune_failures_count);
    let help = "The most bytes that are copied per second; 0 is no limit.";
    text.gauge("limit_bytes_per_second", help, now.limit_bytes as f64);
    text.0
}

/// The metrics of a backup directory without a service, written at `now_ms`.
pub(crate) fn render_directory(backups: &Summary, volume: Volume, now_ms: u64) -> String {
    let mut text = Text(String::new());
    of_program(&mut text, backups.node_version.as_deref().unwrap_or("unknown"));
    of_directory(&mut text, backups, false, volume);
    of_hooks(&mut text, backups, &[]);
    let help = "When this text was written, for a collector that reads it from a file.";
    text.gauge("textfile_timestamp_seconds", help, seconds(Some(now_ms)));
    text.0
}

fn of_program(text: &mut Text, node_version: &str) {
    let versions =
        format!("{{{},{}}}", label("version", env!("CARGO_PKG_VERSION")), label("node_version", node_version));
    text.metric("info", "gauge", "Versions of this program and of the node.", &[(versions, 1.0)]);
}

/// What a backup directory says, with or without a service.
fn of_directory(text: &mut Text, backups: &Summary, runs_here: bool, volume: Volume) {
    text.truth("in_progress", "Whether a backup is being made.", runs_here || backups.is_in_progress);
    let help = "1 if the backup directory can be read and is the one of the service's start, otherwise 0.";
    text.truth("directory_readable", help, !backups.is_incomplete);
    of_backups(text, backups);
    of_scopes(text, &backups.scopes);
    of_checks(text, backups);
    of_methods(text, backups);
    text.gauge("free_bytes", "Free space for backups.", volume.free_bytes as f64);
    text.gauge("filesystem_size_bytes", "Size of the file system of the backups.", volume.size_bytes as f64);
    let help = "The free space that a backup must leave: one that would leave less fails.";
    text.gauge("reserve_bytes", help, volume.reserve_bytes as f64);
}

fn of_backups(text: &mut Text, backups: &Summary) {
    let statuses = [
        (Status::Done, backups.done_count),
        (Status::InProgress, backups.in_progress_count),
        (Status::Failed, backups.failed_count),
    ]
    .map(|(status, count)| (format!("{{status=\"{}\"}}", status.word()), count as f64));
    text.metric("backups", "gauge", "Backups in the backup directory.", &statuses);
    text.gauge("pinned_backups", "Those that prune and delete leave alone.", backups.pinned_count as f64);
    text.gauge("foreign_backups", "Those that another program made.", backups.foreign_count as f64);
    let help = "Those whose last verification found damage.";
    text.gauge("damaged_backups", help, backups.damaged_count as f64);
    let help = "Backups that cannot be read, and are missing in the other figures.";
    text.gauge("unreadable_backups", help, backups.unreadable_count as f64);
    let help = "The sum of the bytes that deleting each backup alone would free, as of the last job.";
    text.known("exclusive_bytes", help, backups.exclusive_bytes.map(|bytes| bytes as f64));
    // Zero, so that an alarm is also raised if there was no good backup yet.
    let help = "When the newest good backup was finished, seconds since the epoch; 0 for none.";
    text.gauge("last_success_timestamp_seconds", help, seconds(backups.last_success_ms));
    let help = "When the last failed backup failed, seconds since the epoch; 0 for none.";
    text.gauge("last_failure_timestamp_seconds", help, seconds(backups.last_failure_ms));
    // Shown even if it is zero, so that an alarm sees the change from zero to one.
    let help = "Warnings in the record of the newest backup that is done.";
    text.gauge("warnings", help, backups.warnings_count.unwrap_or(0) as f64);
}

/// A sample for each scope of which there is a backup.
fn of_scopes(text: &mut Text, scopes: &[OfScope]) {
    let each = |value: &dyn Fn(&OfScope) -> Option<f64>| -> Vec<(String, f64)> {
        let tried = SCOPES.iter().zip(scopes).filter(|(_, of)| of.attempt_ms.is_some());
        tried.filter_map(|(scope, of)| Some((by("scope", scope.word()), value(of)?))).collect()
    };
    let end = |ended: &Option<Ended>| Some(seconds(ended.as_ref().map(|ended| ended.ended_ms)));
    let id = |ended: &Option<Ended>| Some(ended.as_ref().map_or(0, |ended| ended.id) as f64);
    let help = "When the newest backup of this scope began, whatever became of it.";
    let samples = each(&|of| Some(seconds(of.attempt_ms)));
    text.metric("scope_last_attempt_timestamp_seconds", "gauge", help, &samples);
    let help = "When the newest good backup of this scope was finished; 0 for none.";
    let samples = each(&|of| end(&of.success));
    text.metric("scope_last_success_timestamp_seconds", "gauge", help, &samples);
    let help = "Its identifier; 0 for none.";
    let samples = each(&|of| id(&of.success));
    text.metric("scope_last_success_id", "gauge", help, &samples);
    let help = "When the newest failed backup of this scope failed; 0 for none.";
    let samples = each(&|of| end(&of.failure));
    text.metric("scope_last_failure_timestamp_seconds", "gauge", help, &samples);
    let help = "Its identifier; 0 for none. It is the larger one if no good backup is newer.";
    let samples = each(&|of| id(&of.failure));
    text.metric("scope_last_failure_id", "gauge", help, &samples);
    let help = "How long the newest good backup of this scope took.";
    let samples = each(&|of| of.success.as_ref().map(|ended| seconds(Some(ended.duration_ms))));
    text.metric("scope_last_duration_seconds", "gauge", help, &samples);
    let help = "The sum of the sizes of its files.";
    let samples = each(&|of| of.success.as_ref().map(|ended| ended.bytes as f64));
    text.metric("scope_last_size_bytes", "gauge", help, &samples);
}

/// What verifications, drills and start-up proofs found.
fn of_checks(text: &mut Text, backups: &Summary) {
    let help = "Each file of the newest backup was last read at this time or later, seconds since the epoch.";
    let oldest_ms = backups.oldest_unread_ms.flatten();
    text.known("oldest_unread_timestamp_seconds", help, oldest_ms.map(|ms| seconds(Some(ms))));
    let help = "The last deep verification without a fault of the newest backup that had one; 0 for none.";
    text.gauge("last_deep_verification_timestamp_seconds", help, seconds(backups.deep_ms));
    let help = "When the last drill of the newest backup that had one began; 0 for none.";
    text.gauge("last_drill_timestamp_seconds", help, seconds(backups.drill.map(|(at_ms, _)| at_ms)));
    let help = "Whether that drill passed.";
    text.known("last_drill_passed", help, backups.drill.map(|(_, passed)| truth(passed)));
    let help = "Whether a node starts from the newest backup of which that is known.";
    text.known("starts", help, backups.proof.map(|(starts, _)| truth(starts)));
    let help = "Blocks that a node replays when it starts from that backup, over all chains.";
    text.known("start_replay_blocks", help, backups.proof.map(|(_, replay)| replay as f64));
    let help = "The end of the newest good backup from which a node starts; 0 for none.";
    text.known("newest_startable_timestamp_seconds", help, backups.proof.map(|_| seconds(backups.startable_ms)));
}

/// How the newest backups came, in bytes.
fn of_methods(text: &mut Text, backups: &Summary) {
    let rocksdb = backups.rocksdb.iter().flatten();
    let samples: Vec<(String, f64)> = rocksdb.map(|(method, bytes)| (by("method", method), *bytes as f64)).collect();
    let help = "Size of RocksDB in the newest backup that is done, by how its files came into it.";
    text.metric("rocksdb_bytes", "gauge", help, &samples);
    let each = |value: &dyn Fn(&(u64, u64)) -> u64| -> Vec<(String, f64)> {
        let sample = |(method, both): (&&str, &(u64, u64))| (by("method", method), value(both) as f64);
        backups.pact.iter().flatten().map(sample).collect()
    };
    let help = "Size of the Pact databases in the newest good backup that has them, by how they came into it.";
    let samples = each(&|(bytes, _)| *bytes);
    text.metric("pact_bytes", "gauge", help, &samples);
    let help = "The bytes that were written for them; of an increment only what had changed.";
    let samples = each(&|(_, written_bytes)| *written_bytes);
    text.metric("pact_written_bytes", "gauge", help, &samples);
}

/// The jobs of this process.
fn of_jobs(text: &mut Text, counters: &Counters, now: &Gauges) {
    let results = [("done", &counters.done_count), ("failed", &counters.failed_count)]
        .map(|(result, count)| (by("result", result), count.load(Relaxed) as f64));
    text.metric("jobs_total", "counter", "Jobs of this process that ended since its start.", &results);
    let help = "Those of the failed ones that made no progress for too long.";
    text.counter("stalled_jobs_total", help, &counters.stalled_count);
    let help =
        "When this process found, at its start, a backup that the end of an earlier one interrupted; 0 for none.";
    text.gauge("interruption_timestamp_seconds", help, seconds(Some(counters.interruption_ms.load(Relaxed))));
    let help = "1 while the backup thread hangs in a job that has stalled: no backup can be made.";
    text.truth("thread_hangs", help, now.thread_hangs);
    let durations: Vec<(&str, &Histogram)> = SCOPES.iter().map(|scope| scope.word()).zip(&counters.durations).collect();
    let help = "How long the jobs of this process took that are done.";
    text.histogram("job_duration_seconds", help, "scope", &durations);
    let spent: Vec<(String, f64)> =
        counters.spent_us().map(|(phase, us)| (by("phase", phase.word()), us as f64 / 1e6)).collect();
    let help = "The time that the jobs of this process have spent in each phase, as of their end.";
    text.metric("phase_seconds_total", "counter", help, &spent);
    let written = [("rocksdb", &counters.rocksdb_copied_bytes), ("pact", &counters.pact_written_bytes)]
        .map(|(part, bytes)| (by("part", part), bytes.load(Relaxed) as f64));
    let help = "The bytes that the jobs of this process that are done have written; links have none.";
    text.metric("written_bytes_total", "counter", help, &written);
    let running = now.running.as_ref().and_then(|running| running.wal_growth_bytes);
    let growth_bytes = running.or(counters.wal_growth_bytes.get());
    let help =
        "How far the WAL of one of the node's Pact databases grew while it was copied, in the last job with Pact.";
    text.known("source_wal_growth_bytes", help, growth_bytes.map(|bytes| bytes as f64));
}

/// The running job of this process; no samples if there is none.
fn of_running(text: &mut Text, running: Option<&Running>) {
    let phase = running.map(|running| running.progress.phase);
    let phases: Vec<(String, f64)> = phase.map_or_else(Vec::new, |present| {
        PHASES.into_iter().map(|phase| (by("phase", phase.word()), truth(phase == present))).collect()
    });
    text.metric("job_phase", "gauge", "1 for the phase of the running job, 0 for the others.", &phases);
    let value = |of: fn(&Running) -> u64| running.map(|running| of(running) as f64);
    let help = "Seconds since the running job began.";
    text.known("job_elapsed_seconds", help, value(|running| running.progress.elapsed_seconds));
    let help = "Bytes that the running job has copied.";
    text.known("job_copied_bytes", help, value(|running| running.progress.bytes_done));
    let help = "Bytes that the running job copies in all, as far as that is known.";
    text.known("job_expected_bytes", help, value(|running| running.progress.bytes_total));
    let help = "A number that grows with any progress of the running job, also if no byte is copied.";
    text.known("job_progress", help, value(|running| running.steps));
}

fn of_requests(text: &mut Text, counters: &Counters) {
    let sample = |(endpoint, code, count): (&str, String, u64)| {
        (format!("{{{},{}}}", label("endpoint", endpoint), label("code", &code)), count as f64)
    };
    let samples: Vec<(String, f64)> = counters.requests.each().map(sample).collect();
    text.metric("requests_total", "counter", "Answered requests, by endpoint and status code.", &samples);
}

/// What the backups say of the hooks; `configured` are those that are expected to run.
fn of_hooks(text: &mut Text, backups: &Summary, configured: &[Event]) {
    // Zero, so that an alarm is also raised if none has passed yet.
    let last_ms = |event: &Event| match backups.passed_hooks_ms.get(event) {
        None if configured.contains(event) => Some(0),
        last_ms => last_ms.copied(),
    };
    let last = |event: Event| Some((by("hook", event.word()), seconds(Some(last_ms(&event)?))));
    let samples: Vec<(String, f64)> = Event::ALL.into_iter().filter_map(last).collect();
    let help = "When the hooks of the last backup ended of which all passed; 0 for none.";
    text.metric("last_hook_success_timestamp_seconds", "gauge", help, &samples);
    let passed = |(event, passed): (&Event, &bool)| (by("hook", event.word()), truth(*passed));
    let samples: Vec<(String, f64)> = backups.newest_hooks.iter().map(passed).collect();
    let help = "Whether the hooks of the newest backup that has some of this event passed.";
    text.metric("last_hook_passed", "gauge", help, &samples);
}

/// The hooks of this process.
fn of_hook_runs(text: &mut Text, counters: &Counters, configured: &[Event]) {
    let sample = |event: Event, result: &str, count: &AtomicU64| {
        (format!("{{{},{}}}", label("hook", event.word()), label("result", result)), count.load(Relaxed) as f64)
    };
    let both = |event: &Event| {
        let [passed, failed] = &counters.hooks[*event as usize];
        [sample(*event, "passed", passed), sample(*event, "failed", failed)]
    };
    let samples: Vec<(String, f64)> = configured.iter().flat_map(both).collect();
    text.metric(
        "hooks_total",
        "counter",
        "Hooks of this process that ended, or were not run, since its start.",
        &samples,
    );
}

fn of_schedules(text: &mut Text, schedules: &[Scheduled]) {
    let each = |value: &dyn Fn(&Scheduled) -> Option<f64>| -> Vec<(String, f64)> {
        let labels =
            |row: &Scheduled| format!("{{{},{}}}", label("schedule", &row.schedule), label("scope", row.scope.word()));
        schedules.iter().filter_map(|row| Some((labels(row), value(row)?))).collect()
    };
    let help = "When the next backup of the schedule is due, seconds since the epoch.";
    let samples = each(&|row| row.next_ms.map(|ms| seconds(Some(ms))));
    text.metric("schedule_next_timestamp_seconds", "gauge", help, &samples);
    let help = "When the last attempt of this process began, seconds since the epoch; 0 for none.";
    let samples = each(&|row| Some(seconds(row.last_attempt_ms)));
    text.metric("schedule_last_attempt_timestamp_seconds", "gauge", help, &samples);
    let help = "Whether that attempt made a good backup.";
    let samples = each(&|row| row.last_succeeded.map(truth));
    text.metric("schedule_last_attempt_succeeded", "gauge", help, &samples);
    let help = "Its own attempts that failed since the newest good backup that counts for the schedule.";
    let samples = each(&|row| Some(row.failed_count as f64));
    text.metric("schedule_failed_attempts", "gauge", help, &samples);
}
