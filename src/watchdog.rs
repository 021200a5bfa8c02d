//! Watches one running job from threads of its own, which end with it: one for a job that makes no progress, one for an
//! operator who cancels it from another process.
//!
//! Two, because the second looks at the disk, and the first must work where every look at the disk hangs. An idle service
//! has neither.

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::control::{Control, Stop};
use crate::nofollow;

/// Where this file stands in a backup that is being made, its job shall end. Created by `cancel`.
pub(crate) const CANCEL_FILE: &str = ".cancel";

/// What a thread needs that only waits and looks.
pub(crate) const STACK_BYTES: usize = 256 * 1024;

/// How long a cancelled job may go on unnoticed.
const CANCEL_INTERVAL: Duration = Duration::from_millis(200);

/// How often progress is looked at, as parts of the limit.
const STALL_LOOKS: u32 = 8;

/// Stops the job, and calls `on_stall` once, when it made no progress for `limit`. Returns when `ended` is closed.
pub(crate) fn watch_progress(control: &Control, limit: Duration, ended: &Receiver<()>, on_stall: &dyn Fn()) {
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

/// Stops the job when its operator wants it to. Returns when `ended` is closed.
pub(crate) fn watch_cancel(control: &Control, backup: &Path, ended: &Receiver<()>) {
    let wish = backup.join(CANCEL_FILE);
    while ended.recv_timeout(CANCEL_INTERVAL) == Err(RecvTimeoutError::Timeout) {
        // What cannot be looked at now can be at the next look.
        if nofollow::look(&wish).is_ok_and(|found| found.is_some()) {
            control.stop(Stop::Cancelled);
            return;
        }
    }
}
