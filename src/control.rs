//! The progress and the end of one running job, shared between the backup thread and the threads that watch it.
//!
//! All fields are atomics, so readers never wait for the backup thread. A request to stop takes effect at the job's next
//! [`Control::check`], at most one window of a copy later. A job either is stopped or commits; whichever is requested first
//! holds. So a job that was reported as stalled or cancelled never becomes a good backup.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::thread::sleep;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};

/// The longest sleep of a throttled copy between two checks of whether the job was stopped.
const THROTTLE_SLICE: Duration = Duration::from_millis(100);

/// The phase of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Checking the sources and the free space.
    PreFlight,
    /// Running the hook of the operator that comes before the backup.
    Hook,
    /// Reading again files of an earlier backup that this one will link.
    Reread,
    /// Copying the Pact databases.
    Pact,
    /// Capturing RocksDB.
    Rocksdb,
    /// Reading the heights from the finished copies.
    Heights,
    /// Syncing everything to the disk.
    Sync,
    /// Verifying the files of the backup; then the commit.
    Verify,
    /// The job has ended.
    Finished,
}

/// All phases, in their order.
pub(crate) const PHASES: [Phase; 9] = [
    Phase::PreFlight,
    Phase::Hook,
    Phase::Reread,
    Phase::Pact,
    Phase::Rocksdb,
    Phase::Heights,
    Phase::Sync,
    Phase::Verify,
    Phase::Finished,
];

impl Phase {
    /// The phase as text, in the record and in the metrics.
    pub fn word(self) -> &'static str {
        match self {
            Phase::PreFlight => "pre-flight",
            Phase::Hook => "hook",
            Phase::Reread => "reread",
            Phase::Pact => "pact",
            Phase::Rocksdb => "rocksdb",
            Phase::Heights => "heights",
            Phase::Sync => "sync",
            Phase::Verify => "verify",
            Phase::Finished => "finished",
        }
    }
}

/// Why a job ends before it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The program is ending.
    ShutDown = 1,
    /// The operator cancelled it.
    Cancelled,
    /// It made no progress for too long.
    Stalled,
    /// A new backup was requested, and this is background work.
    Yielded,
    /// The backup that it works on is being deleted.
    Deleted,
}

const STOPS: [Stop; 5] = [Stop::ShutDown, Stop::Cancelled, Stop::Stalled, Stop::Yielded, Stop::Deleted];
const RUNNING: u8 = 0;
const COMMITTING: u8 = 255;

/// The largest of the numbers that were noted, if there was one.
#[derive(Debug, Default)]
pub(crate) struct Largest(AtomicU64);

impl Largest {
    /// Notes a number; the largest one of the range counts as the one below it.
    pub(crate) fn note(&self, number: u64) {
        self.0.fetch_max(number.saturating_add(1), Relaxed);
    }

    /// Forgets all numbers but this one.
    pub(crate) fn replace(&self, number: u64) {
        self.0.store(number.saturating_add(1), Relaxed);
    }

    pub(crate) fn get(&self) -> Option<u64> {
        self.0.load(Relaxed).checked_sub(1)
    }
}

/// Progress and end of one job, or of one operation on a backup.
#[derive(Debug, Default)]
pub struct Control {
    phase: AtomicU8,
    /// When the present phase was entered, and the time spent in each phase before that, in microseconds.
    entered: Mutex<Option<Instant>>,
    spent_us: [AtomicU64; PHASES.len()],
    bytes_done: AtomicU64,
    bytes_total: AtomicU64,
    /// The step of a command, and when it began.
    step: Mutex<Option<(&'static str, Instant)>>,
    /// How far the WAL of a Pact database grew while it was copied.
    pub(crate) wal_growth_bytes: Largest,
    /// Counts all other progress: a phase, a link, a file.
    steps: Arc<AtomicU64>,
    /// [`RUNNING`], [`COMMITTING`] or a [`Stop`].
    end: Arc<AtomicU8>,
    reserve_bytes: AtomicU64,
    /// Bytes per second that may be copied; 0 is no limit. Shared, because it may be changed while the job runs.
    limit: Arc<AtomicU64>,
    /// How long a child process may make no progress; zero means without a limit, `None` is the default limit.
    stall_limit: Option<Duration>,
    /// When the next byte may be copied, if there is a limit.
    due: Mutex<Option<Instant>>,
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn stop_of(end: &AtomicU8) -> Option<Stop> {
    let end = end.load(SeqCst);
    STOPS.into_iter().find(|stop| *stop as u8 == end)
}

impl Control {
    /// One that copies at most `limit` bytes per second; `limit` may change at any time.
    pub(crate) fn limited(limit: Arc<AtomicU64>) -> Control {
        Control { limit, ..Control::default() }
    }

    /// One for an operation outside of a service, which copies or reads at most that many bytes per second; `None` is no limit.
    pub fn with_limit(bytes_per_second: Option<u64>) -> Control {
        Control::limited(Arc::new(AtomicU64::new(bytes_per_second.unwrap_or(0))))
    }

    /// One for a part of the work: it has its own byte counts, and shares the limit and the end.
    pub(crate) fn another(&self) -> Control {
        let (limit, end, steps) = (Arc::clone(&self.limit), Arc::clone(&self.end), Arc::clone(&self.steps));
        Control { limit, end, steps, stall_limit: self.stall_limit, ..Control::default() }
    }

    /// The same with a limit of how long a child process that reads a copy may make no progress, instead of 15 minutes; zero means
    /// without a limit.
    #[must_use]
    pub fn with_stall_limit(self, stall_limit: Duration) -> Control {
        Control { stall_limit: Some(stall_limit), ..self }
    }

    pub(crate) fn stall_limit(&self) -> Option<Duration> {
        self.stall_limit
    }

    pub(crate) fn enter(&self, phase: Phase) {
        log::debug!("phase={phase:?}");
        let now = Instant::now();
        let mut entered = self.entered.lock();
        if let Some(before) = entered.replace(now) {
            self.spent_us[self.phase() as usize].fetch_add(micros(now - before), Relaxed);
        }
        self.phase.store(phase as u8, Relaxed);
        drop(entered);
        self.step();
    }

    /// The time that was spent in each phase until now, in microseconds.
    pub(crate) fn spent_us(&self) -> [(Phase, u64); PHASES.len()] {
        let entered = self.entered.lock();
        let present_us = entered.map_or(0, |entered| micros(entered.elapsed()));
        PHASES.map(|phase| {
            let before_us = self.spent_us[phase as usize].load(Relaxed);
            (phase, if phase == self.phase() { before_us.saturating_add(present_us) } else { before_us })
        })
    }

    pub(crate) fn phase(&self) -> Phase {
        PHASES[usize::from(self.phase.load(Relaxed))]
    }

    /// Notes progress that moves no byte.
    pub(crate) fn step(&self) {
        self.steps.fetch_add(1, Relaxed);
    }

    /// A number that grows with any progress.
    pub fn progress(&self) -> u64 {
        self.bytes_done.load(Relaxed).wrapping_add(self.steps.load(Relaxed))
    }

    /// Counts bytes that reached the backup.
    pub(crate) fn add_done(&self, bytes: u64) {
        self.bytes_done.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn set_total(&self, bytes: u64) {
        self.bytes_total.store(bytes, Relaxed);
    }

    /// Counts bytes that will be copied or read beside those that are counted already.
    pub(crate) fn expect(&self, bytes: u64) {
        self.bytes_total.fetch_add(bytes, Relaxed);
    }

    /// Begins a step of a command, with byte counts of its own.
    pub(crate) fn begin(&self, step: &'static str) {
        let done = self.bytes_done.swap(0, Relaxed);
        self.bytes_total.store(0, Relaxed);
        // The number of all progress only grows.
        self.steps.fetch_add(done.saturating_add(1), Relaxed);
        *self.step.lock() = Some((step, Instant::now()));
    }

    /// The step of a command, as a word like `verifying`, and how long it has taken until now.
    pub fn command_step(&self) -> Option<(&'static str, Duration)> {
        self.step.lock().map(|(step, began)| (step, began.elapsed()))
    }

    /// The bytes copied so far and the bytes to copy in all. The sources grow, so the total is never below the bytes copied.
    pub fn bytes(&self) -> (u64, u64) {
        let done = self.bytes_done.load(Relaxed);
        (done, self.bytes_total.load(Relaxed).max(done))
    }

    /// The free space, in bytes, that copying must leave on the file system of the backup.
    pub(crate) fn set_reserve(&self, bytes: u64) {
        self.reserve_bytes.store(bytes, Relaxed);
    }

    pub(crate) fn reserve_bytes(&self) -> u64 {
        self.reserve_bytes.load(Relaxed)
    }

    /// Bytes per second that may be copied, if there is a limit.
    pub(crate) fn limit_bytes(&self) -> Option<u64> {
        Some(self.limit.load(Relaxed)).filter(|limit| *limit > 0)
    }

    /// Waits as long as the limit demands after `bytes` were copied. A pause in copying gives no credit for later.
    pub(crate) fn throttle(&self, bytes: u64) -> Result<()> {
        let Some(limit) = self.limit_bytes() else { return Ok(()) };
        let until = {
            let mut due = self.due.lock();
            let now = Instant::now();
            let until = due.map_or(now, |due| due.max(now)) + Duration::from_secs_f64(bytes as f64 / limit as f64);
            *due = Some(until);
            until
        };
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            self.check()?;
            // A limit that was changed or removed meanwhile no longer applies.
            if self.limit_bytes() != Some(limit) {
                *self.due.lock() = None;
                return Ok(());
            }
            // Waiting for the limit is progress too: the job has not stalled.
            self.step();
            sleep(left.min(THROTTLE_SLICE));
        }
        Ok(())
    }

    /// Requests that the job stops, which it does at its next `check`. Returns whether it will stop for this reason:
    /// not if it commits already or was stopped before.
    pub fn stop(&self, why: Stop) -> bool {
        self.end.compare_exchange(RUNNING, why as u8, SeqCst, SeqCst).is_ok()
    }

    /// From now on the job cannot be stopped. Fails if it was stopped before.
    pub(crate) fn begin_commit(&self) -> Result<()> {
        let _ = self.end.compare_exchange(RUNNING, COMMITTING, SeqCst, SeqCst);
        self.check()
    }

    /// A callback for a library, to be called while the library works: notes progress, and returns whether to stop.
    pub(crate) fn watcher(&self) -> impl FnMut() -> bool + Send + 'static {
        let (steps, end) = (Arc::clone(&self.steps), Arc::clone(&self.end));
        move || {
            steps.fetch_add(1, Relaxed);
            stop_of(&end).is_some()
        }
    }

    /// Fails with [`Kind::Cancelled`] if the job was stopped.
    pub(crate) fn check(&self) -> Result<()> {
        let why = match stop_of(&self.end) {
            None => return Ok(()),
            Some(Stop::ShutDown) => "shut down",
            Some(Stop::Cancelled) => "cancelled by the operator",
            Some(Stop::Stalled) => "stalled: no progress for too long; check whether a disk hangs",
            Some(Stop::Yielded) => "stopped to make room for a new backup",
            Some(Stop::Deleted) => "the backup is being deleted",
        };
        Err(Error::new(Kind::Cancelled, why))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_word_of_a_phase_is_the_one_in_the_record() {
        for (at, phase) in PHASES.into_iter().enumerate() {
            assert_eq!(serde_json::to_string(&phase).unwrap(), format!("\"{}\"", phase.word()));
            assert_eq!(phase as usize, at);
        }
    }

    #[test]
    fn each_phase_has_its_time() {
        let control = Control::default();
        assert!(control.spent_us().iter().all(|(_, us)| *us == 0), "no phase was entered yet");
        for phase in [Phase::PreFlight, Phase::Pact, Phase::Rocksdb, Phase::Pact] {
            control.enter(phase);
            sleep(Duration::from_millis(20));
        }
        let spent = control.spent_us();
        let of = |wanted: Phase| spent.iter().find(|(phase, _)| *phase == wanted).unwrap().1;
        assert!(
            of(Phase::PreFlight) >= 20_000 && of(Phase::Rocksdb) >= 20_000 && of(Phase::Pact) >= 40_000,
            "{spent:?}"
        );
        assert_eq!((of(Phase::Reread), of(Phase::Sync)), (0, 0));
    }

    /// The watcher of a child and of a job sees progress although the bytes begin at zero again.
    #[test]
    fn each_step_has_its_bytes_and_the_number_of_all_progress_grows() {
        let control = Control::default();
        assert!(control.command_step().is_none());
        control.expect(100);
        control.add_done(100);
        let before = control.progress();
        control.begin("copying");
        control.expect(5);
        control.expect(6);
        assert_eq!((control.bytes(), control.command_step().map(|(step, _)| step)), ((0, 11), Some("copying")));
        assert!(control.progress() > before);
    }

    #[test]
    fn the_largest_is_none_until_a_number_is_noted() {
        let largest = Largest::default();
        assert_eq!(largest.get(), None);
        largest.note(0);
        assert_eq!(largest.get(), Some(0));
        [5, 3].into_iter().for_each(|number| largest.note(number));
        assert_eq!(largest.get(), Some(5));
        largest.replace(2);
        assert_eq!(largest.get(), Some(2));
    }
}
