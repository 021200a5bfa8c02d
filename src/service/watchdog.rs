//! Watches the running job with two threads: one stops a job that makes no progress, the other one a job that an operator
//! cancels from another process.
//!
//! There are two because the second one reads the disk, and the first one must work even if every access to the disk hangs. They
//! are started with the service, because a backup must be watched even if no thread can be started later. They sleep while no
//! job runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::Builder;
use std::time::{Duration, Instant};

use crate::control::{Control, Stop};
use crate::disk::nofollow;
use crate::error::{IoContext, Result};
use crate::format::layout::CANCEL_FILE;

/// How often we check whether the job was cancelled.
const CANCEL_INTERVAL: Duration = Duration::from_millis(200);

/// How many times within the limit the progress is checked.
const STALL_LOOKS: u32 = 8;

/// The stack of a thread that only waits and checks.
const STACK_BYTES: usize = 256 * 1024;

type Task = Box<dyn FnOnce() + Send>;

/// The two threads. They end when this is dropped.
#[derive(Debug)]
pub(crate) struct Watchers {
    progress: Sender<Task>,
    cancel: Sender<Task>,
}

/// A job to watch.
pub(crate) struct Watched {
    pub(crate) control: Arc<Control>,
    /// The directory of the backup.
    pub(crate) backup: PathBuf,
    /// How long it may make no progress; zero means without a limit.
    pub(crate) stall_limit: Duration,
    /// Called once if it has made no progress for that long.
    pub(crate) on_stall: Task,
}

impl Watchers {
    /// Starts the threads.
    ///
    /// # Errors
    /// [`crate::Kind::Io`]: no thread can be started.
    pub(crate) fn start() -> Result<Watchers> {
        let start = |name: &str| {
            let (sender, tasks) = mpsc::channel::<Task>();
            let run = move || tasks.into_iter().for_each(|task| task());
            let thread = Builder::new().name(name.to_owned()).stack_size(STACK_BYTES).spawn(run);
            thread.context(|| format!("cannot start the thread {name}: raise the limit of processes (ulimit -u)"))?;
            Ok(sender)
        };
        Ok(Watchers { progress: start("watchdog")?, cancel: start("cancel")? })
    }

    /// Runs `work`, the job, while both threads watch it; on return neither watches it any more.
    pub(crate) fn watch<T>(&self, job: Watched, work: impl FnOnce() -> T) -> T {
        let Watched { control, backup, stall_limit, on_stall } = job;
        // The first two channels are closed when the work is done, which ends the watching; the third one is closed when both
        // threads have ended it.
        let (progress_ended, progress_end) = mpsc::channel();
        let (cancel_ended, cancel_end) = mpsc::channel();
        let (watching, watched) = mpsc::channel::<()>();
        let mut tasks: Vec<(&Sender<Task>, Task)> = Vec::new();
        if !stall_limit.is_zero() {
            let (control, watching) = (Arc::clone(&control), watching.clone());
            let task = move || {
                watch_progress(&control, stall_limit, &progress_end, on_stall);
                drop(watching);
            };
            tasks.push((&self.progress, Box::new(task)));
        }
        let task = move || {
            watch_cancel(&control, &backup, &cancel_end);
            drop(watching);
        };
        tasks.push((&self.cancel, Box::new(task)));
        for (thread, task) in tasks {
            thread.send(task).expect("the threads end with this, and no task panics");
        }
        let result = work();
        drop((progress_ended, cancel_ended));
        let _ = watched.recv();
        result
    }
}

/// Stops the job, and calls `on_stall` once, if it has made no progress for `limit`. Returns when `ended` is closed.
fn watch_progress(control: &Control, limit: Duration, ended: &Receiver<()>, on_stall: Task) {
    let (mut seen, mut since) = (control.progress(), Instant::now());
    while ended.recv_timeout(limit / STALL_LOOKS) == Err(RecvTimeoutError::Timeout) {
        let now = control.progress();
        if now != seen {
            (seen, since) = (now, Instant::now());
        } else if since.elapsed() >= limit {
            if control.stop(Stop::Stalled) {
                on_stall();
            }
            return;
        }
    }
}

/// Stops the job if an operator has cancelled it. Returns when `ended` is closed.
fn watch_cancel(control: &Control, backup: &Path, ended: &Receiver<()>) {
    let wish = backup.join(CANCEL_FILE);
    while ended.recv_timeout(CANCEL_INTERVAL) == Err(RecvTimeoutError::Timeout) {
        // An error is ignored: the next check may succeed.
        if nofollow::look(&wish).is_ok_and(|found| found.is_some()) {
            control.stop(Stop::Cancelled);
            return;
        }
    }
}
