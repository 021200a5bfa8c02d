//! Runs the operator's command in a drill, in a process group of its own and with a time limit, and keeps the end of its output.
//!
//! Invariants: the command is given the restored database directory, never the node's own. When `run` returns, no process of the
//! command's group lives.
//!
//! # Limitations
//! A process that has left the group (`setsid`) is not ended.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use crate::control::Control;
use crate::disk::lock::Lock;
use crate::error::{Error, IoContext, Kind, Result};

/// Stands for the restored database directory in the words of the command.
pub(crate) const DIRECTORY: &str = "{directory}";

/// How much of the output is kept: its end.
const MAX_OUTPUT_BYTES: usize = 4096;

/// The size of one reading of the output.
const READ_BYTES: usize = 8192;

/// How long the processes may take to end after SIGTERM, before SIGKILL.
const TERM_LIMIT: Duration = Duration::from_secs(10);

/// How long to wait for the rest of the output after the end of the command.
const OUTPUT_LIMIT: Duration = Duration::from_secs(1);

/// The pause between two checks of whether the command has ended.
const PAUSE: Duration = Duration::from_millis(20);

/// How a command ended.
pub(crate) struct Ended {
    /// Why it has not passed; `None` if it has.
    pub(crate) reason: Option<String>,
    /// The end of its output, standard output and standard error together.
    pub(crate) output: String,
}

/// Fails with [`Kind::Usage`] unless a word of the command names the restored database directory: without it the command could use
/// the databases of the running node.
pub(crate) fn require_directory(command: &[OsString]) -> Result<()> {
    if command.iter().skip(1).any(|word| position(word.as_bytes()).is_some()) {
        return Ok(());
    }
    let context = format!(
        "the command of the drill does not name the restored databases: write {DIRECTORY} for their database directory, as in \
         --exec chainweb-node --database-directory {DIRECTORY}"
    );
    Err(Error::new(Kind::Usage, context))
}

/// Runs the command on the database directory `directory`, and waits for its end. Its processes inherit `lock`.
pub(crate) fn run(
    command: &[OsString],
    directory: &Path,
    time_limit: Duration,
    lock: &Lock,
    control: &Control,
) -> Result<Ended> {
    let words: Vec<OsString> = command.iter().map(|word| with_directory(word, directory.as_os_str())).collect();
    let failed = || format!("cannot start the command {}", words[0].display());
    let (mut reader, writer) = std::io::pipe().context(failed)?;
    let child = {
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(directory).stdin(Stdio::null()).process_group(0);
        command.stdout(writer.try_clone().context(failed)?).stderr(writer);
        lock.inherited(|| command.spawn()).context(failed)?
    };
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
    let mut group = Group { child, is_reaped: false };
    let collector = thread::Builder::new().name("drill-output".to_owned()).spawn(collect).context(failed)?;
    let ended = group.wait(Instant::now() + time_limit, control)?;
    drop(group);
    // A process that has left the group may still hold the pipe.
    let deadline = Instant::now() + OUTPUT_LIMIT;
    while !collector.is_finished() && Instant::now() < deadline {
        thread::sleep(PAUSE);
    }
    let reason = match ended {
        Some(status) if status.success() => None,
        Some(status) => Some(format!("the command ended with {status}")),
        None => Some(format!("the command did not end within {} s", time_limit.as_secs())),
    };
    let output = String::from_utf8_lossy(tail.lock().make_contiguous()).trim_end().to_owned();
    Ok(Ended { reason, output })
}

/// A command and the processes that it has started; all are killed when this is dropped.
struct Group {
    child: Child,
    /// Once it is reaped, its number may be that of other processes, which must not be killed.
    is_reaped: bool,
}

impl Group {
    /// Waits for the end of the command, and kills what it has left running; `None` if it did not end by `deadline`.
    fn wait(&mut self, deadline: Instant, control: &Control) -> Result<Option<ExitStatus>> {
        while !self.has_ended()? {
            control.check()?;
            if Instant::now() >= deadline {
                return Ok(None);
            }
            control.step();
            thread::sleep(PAUSE);
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
        let deadline = Instant::now() + TERM_LIMIT;
        while matches!(self.has_ended(), Ok(false)) && Instant::now() < deadline {
            thread::sleep(PAUSE);
        }
        let _ = self.reap();
    }
}

fn failed_to_wait() -> String {
    "cannot wait for the command of the drill".to_owned()
}

fn position(word: &[u8]) -> Option<usize> {
    word.windows(DIRECTORY.len()).position(|window| window == DIRECTORY.as_bytes())
}

/// The word, with the directory in place of each [`DIRECTORY`].
fn with_directory(word: &OsStr, directory: &OsStr) -> OsString {
    let (mut rest, mut whole) = (word.as_bytes(), Vec::new());
    while let Some(at) = position(rest) {
        whole.extend_from_slice(&rest[..at]);
        whole.extend_from_slice(directory.as_bytes());
        rest = &rest[at + DIRECTORY.len()..];
    }
    whole.extend_from_slice(rest);
    OsString::from_vec(whole)
}
