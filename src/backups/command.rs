//! Runs a command of the operator in a process group of its own and with a time limit, and keeps the end of its output.
//!
//! Invariants: when [`run`] returns, no process of the command's group lives. What the command writes is read all the time, and only its
//! end is kept.
//!
//! # Limitations
//! A process that has left the group (`setsid`) is not ended. If this process is killed, the command goes on.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use crate::control::Control;
use crate::error::{IoContext, Result};

/// How much of the output is kept: its end.
const MAX_OUTPUT_BYTES: usize = 4096;

/// The size of one reading of the output.
const READ_BYTES: usize = 8192;

/// How long to wait for the rest of the output after the end of the command.
const OUTPUT_LIMIT: Duration = Duration::from_secs(1);

/// The first pause between two checks of whether the command has ended; each is twice as long as the one before, up to the longest.
const PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(160);

/// How long a command may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Before it is ended.
    pub(crate) time: Duration,
    /// To end after SIGTERM, before SIGKILL.
    pub(crate) term: Duration,
}

/// How a command ended.
pub(crate) struct Ended {
    /// Why it has not passed; `None` if it has.
    pub(crate) reason: Option<String>,
    /// The end of its output, standard output and standard error together.
    pub(crate) output: String,
}

/// Starts a command by `start`, and waits for its end, at most as long as the limits permit.
///
/// # Errors
/// [`crate::Kind::Io`]: it cannot be started. [`crate::Kind::Cancelled`]: `control` was stopped; the command was ended.
pub(crate) fn run(
    mut command: Command,
    limits: Limits,
    control: &Control,
    start: impl FnOnce(&mut Command) -> io::Result<Child>,
) -> Result<Ended> {
    let name = command.get_program().display().to_string();
    let failed = || format!("cannot start the command {name}");
    let (mut reader, writer) = io::pipe().context(failed)?;
    command.process_group(0).stdout(writer.try_clone().context(failed)?).stderr(writer);
    let child = start(&mut command).context(failed)?;
    // It holds the pipe open.
    drop(command);
    let mut group = Group { child, is_reaped: false, term_limit: limits.term };
    let tail = Arc::new(Mutex::new(VecDeque::new()));
    let kept = Arc::clone(&tail);
    let collect = move || {
        let mut read = [0; READ_BYTES];
        while let Ok(count @ 1..) = reader.read(&mut read) {
            let mut kept = kept.lock();
            kept.extend(&read[..count]);
            let excess = kept.len().saturating_sub(MAX_OUTPUT_BYTES);
            kept.drain(..excess);
        }
    };
    let collector = thread::Builder::new().name("output".to_owned()).spawn(collect).context(failed)?;
    let ended = group.wait(Instant::now() + limits.time, control)?;
    drop(group);
    // A process that has left the group may still hold the pipe.
    let deadline = Instant::now() + OUTPUT_LIMIT;
    while !collector.is_finished() && Instant::now() < deadline {
        thread::sleep(PAUSE);
    }
    let reason = match ended {
        Some(status) if status.success() => None,
        Some(status) => Some(format!("the command ended with {status}")),
        None => Some(format!("the command did not end within {} s", limits.time.as_secs())),
    };
    let output = String::from_utf8_lossy(tail.lock().make_contiguous()).trim_end().to_owned();
    Ok(Ended { reason, output })
}

/// A command and the processes that it has started; all are killed when this is dropped.
struct Group {
    child: Child,
    /// Once it is reaped, its number may be that of other processes, which must not be killed.
    is_reaped: bool,
    term_limit: Duration,
}

impl Group {
    /// Waits for the end of the command, and kills the processes that it left running; `None` if it did not end by `deadline`.
    fn wait(&mut self, deadline: Instant, control: &Control) -> Result<Option<ExitStatus>> {
        let mut pause = PAUSE;
        while !self.has_ended()? {
            control.check()?;
            let now = Instant::now();
            if now >= deadline {
                return Ok(None);
            }
            control.step();
            thread::sleep(pause.min(deadline - now));
            pause = LONGEST_PAUSE.min(pause * 2);
        }
        self.reap().map(Some)
    }

    fn reap(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::KILL);
        self.is_reaped = true;
        self.child.wait().context(failed_to_wait)
    }

    /// Whether the command has ended; it is not reaped yet, so the number of its group is still its own.
    fn has_ended(&self) -> Result<bool> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(Pid::from_child(&self.child)), options).map(|ended| ended.is_some()).context(failed_to_wait)
    }

    fn signal(&self, signal: Signal) {
        // The error means that no process of the group lives.
        let _ = kill_process_group(Pid::from_child(&self.child), signal);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.is_reaped {
            return;
        }
        self.signal(Signal::TERM);
        let deadline = Instant::now() + self.term_limit;
        while matches!(self.has_ended(), Ok(false)) && Instant::now() < deadline {
            thread::sleep(PAUSE);
        }
        let _ = self.reap();
    }
}

fn failed_to_wait() -> String {
    "cannot wait for the command".to_owned()
}
