//! What a service counts since its start: jobs, their durations and bytes, and the requests of clients. No I/O, no waiting: every
//! counter is an atomic.
//!
//! Invariant: every label has a fixed set of values, so that no client, and no number of backups, adds a time series.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::config::hooks::Event;
use crate::control::{Control, Largest, PHASES, Phase};
use crate::format::record::{Record, Scope};

/// The upper bounds of the buckets of a histogram of durations, in seconds.
pub(crate) const BOUNDS_SECONDS: [f64; 9] = [1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 10_800.0, 43_200.0];

/// The endpoints by which requests are counted. The last one stands for all others, and for requests that had none.
pub(crate) const ENDPOINTS: [&str; 7] =
    ["make-backup", "check-backup", "list-backups", "health-check", "metrics", "status-page", OTHER_ENDPOINT];

/// The endpoint of an answer that no route has made.
pub(crate) const OTHER_ENDPOINT: &str = "other";

/// The status codes by which requests are counted; one more stands for all others.
const CODES: [u16; 16] = [200, 400, 401, 403, 404, 405, 408, 411, 413, 417, 421, 431, 500, 503, 505, 507];

/// Both scopes, each at its own place.
pub(crate) const SCOPES: [Scope; 2] = [Scope::Rocksdb, Scope::RocksdbAndPact];

/// The place of a scope in [`SCOPES`].
pub(crate) fn place_of(scope: Scope) -> usize {
    usize::from(scope.has_pact())
}

/// The counters of a service.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) done_count: AtomicU64,
    /// Those that stalled are among them.
    pub(crate) failed_count: AtomicU64,
    pub(crate) stalled_count: AtomicU64,
    /// When this process found, at its start, a backup that the end of an earlier process had interrupted; 0 if it found none.
    pub(crate) interruption_ms: AtomicU64,
    /// The durations of the jobs that are done, by scope.
    pub(crate) durations: [Histogram; SCOPES.len()],
    /// Of all jobs that ended, in microseconds.
    spent_us: [AtomicU64; PHASES.len()],
    /// Of the jobs that are done.
    pub(crate) rocksdb_copied_bytes: AtomicU64,
    pub(crate) pact_written_bytes: AtomicU64,
    /// Of the last job that copied Pact: how far the WAL of one of the node's databases grew meanwhile.
    pub(crate) wal_growth_bytes: Largest,
    /// For each event, the hooks that passed, and those that failed.
    pub(crate) hooks: [[AtomicU64; 2]; Event::ALL.len()],
    pub(crate) pruned_count: AtomicU64,
    pub(crate) prune_failures_count: AtomicU64,
    pub(crate) requests: Requests,
}

/// How a job ended.
pub(crate) enum Outcome<'a> {
    /// Done, in this time.
    Done(&'a Record, f64),
    Failed,
    Stalled,
}

impl Counters {
    /// Counts a job that has ended.
    pub(crate) fn job_ended(&self, outcome: Outcome<'_>, control: &Control) {
        match outcome {
            Outcome::Done(record, seconds) => {
                self.done_count.fetch_add(1, Relaxed);
                self.durations[place_of(record.scope)].add(seconds);
                let copied_bytes = record.rocksdb.as_ref().map_or(0, |rocksdb| rocksdb.copied_bytes);
                self.rocksdb_copied_bytes.fetch_add(copied_bytes, Relaxed);
                self.pact_written_bytes.fetch_add(record.pact_written_bytes(), Relaxed);
            }
            Outcome::Failed => {
                self.failed_count.fetch_add(1, Relaxed);
            }
            Outcome::Stalled => {
                self.failed_count.fetch_add(1, Relaxed);
                self.stalled_count.fetch_add(1, Relaxed);
            }
        }
        for (sum_us, (_, us)) in self.spent_us.iter().zip(control.spent_us()) {
            sum_us.fetch_add(us, Relaxed);
        }
        if let Some(bytes) = control.wal_growth_bytes.get() {
            self.wal_growth_bytes.replace(bytes);
        }
    }

    /// Counts a hook that has ended.
    pub(crate) fn hook_ended(&self, event: Event, passed: bool) {
        self.hooks[event as usize][usize::from(!passed)].fetch_add(1, Relaxed);
    }

    /// Counts the backups that were deleted because no rule keeps them, and those that could not be deleted or read.
    pub(crate) fn pruned(&self, deleted_count: u64, failed_count: u64) {
        self.pruned_count.fetch_add(deleted_count, Relaxed);
        self.prune_failures_count.fetch_add(failed_count, Relaxed);
    }

    /// The time that all jobs that ended have spent in each phase, in microseconds.
    pub(crate) fn spent_us(&self) -> impl Iterator<Item = (Phase, u64)> {
        PHASES.into_iter().zip(&self.spent_us).map(|(phase, sum_us)| (phase, sum_us.load(Relaxed)))
    }
}

/// Durations, counted by their length.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    /// Those in each bucket alone; the last one has those above all bounds.
    counts: [AtomicU64; BOUNDS_SECONDS.len() + 1],
    sum_ms: AtomicU64,
}

impl Histogram {
    fn add(&self, seconds: f64) {
        let bucket = BOUNDS_SECONDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS_SECONDS.len());
        self.counts[bucket].fetch_add(1, Relaxed);
        self.sum_ms.fetch_add((seconds * 1000.0) as u64, Relaxed);
    }

    /// The number of durations up to each bound, and of all.
    pub(crate) fn cumulative_counts(&self) -> [u64; BOUNDS_SECONDS.len() + 1] {
        let mut sum: u64 = 0;
        std::array::from_fn(|bucket| {
            sum = sum.saturating_add(self.counts[bucket].load(Relaxed));
            sum
        })
    }

    pub(crate) fn sum_seconds(&self) -> f64 {
        self.sum_ms.load(Relaxed) as f64 / 1000.0
    }
}

/// The answers to requests, by endpoint and status code.
#[derive(Debug, Default)]
pub(crate) struct Requests([[AtomicU64; CODES.len() + 1]; ENDPOINTS.len()]);

impl Requests {
    /// Counts an answer.
    pub(crate) fn count(&self, endpoint: &str, code: u16) {
        let row = ENDPOINTS.iter().position(|known| *known == endpoint).unwrap_or(ENDPOINTS.len() - 1);
        let column = CODES.iter().position(|known| *known == code).unwrap_or(CODES.len());
        self.0[row][column].fetch_add(1, Relaxed);
    }

    /// Endpoint, code and number. Those of `make-backup` are there even if they are zero, so that an alarm sees the first one.
    pub(crate) fn each(&self) -> impl Iterator<Item = (&'static str, String, u64)> {
        let codes = || CODES.iter().map(u16::to_string).chain([OTHER_ENDPOINT.to_owned()]);
        let rows = ENDPOINTS.into_iter().zip(&self.0);
        let all = rows.flat_map(move |(endpoint, row)| {
            codes().zip(row).map(move |(code, count)| (endpoint, code, count.load(Relaxed)))
        });
        all.filter(|(endpoint, _, count)| *count > 0 || *endpoint == ENDPOINTS[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_in_the_bucket_of_its_bound_and_in_all_above() {
        let histogram = Histogram::default();
        for seconds in [0.5, 1.0, 1.5, 43_200.0, 1e6] {
            histogram.add(seconds);
        }
        let counts = histogram.cumulative_counts();
        assert_eq!((counts[0], counts[1], counts[7], counts[8], counts[9]), (2, 3, 3, 4, 5));
        assert!((histogram.sum_seconds() - 1_043_203.0).abs() < 0.01);
    }

    #[test]
    fn whatever_clients_send_the_labels_are_few() {
        let requests = Requests::default();
        for code in 0..1000 {
            requests.count("make-backup", code);
            requests.count("no such endpoint", code);
        }
        let all: Vec<_> = requests.each().collect();
        assert_eq!(all.len(), 2 * (CODES.len() + 1));
        let of = |endpoint, code| all.iter().find(|(e, c, _)| (*e, c.as_str()) == (endpoint, code)).map(|all| all.2);
        assert_eq!((of("make-backup", "507"), of("other", "404")), (Some(1), Some(1)));
        assert_eq!(of("other", "other"), Some(1000 - CODES.len() as u64));
        assert_eq!(
            Requests::default().each().count(),
            CODES.len() + 1,
            "those of make-backup are there from the start"
        );
    }
}
