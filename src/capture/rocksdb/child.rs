//! Runs this program as a child process that opens a copy with RocksDB, and reads its answer, one line of JSON. Before the answer, the
//! child may write empty lines to show that it makes progress.
//!
//! Invariants
//! - The child ends with the job: if the job is stopped, the child is killed.
//! - A child makes progress if it writes anything, or if any of its I/O counters (proc(5), `/proc/PID/io`) changes. A child that makes
//!   none for the stall limit is killed, for example because a file that RocksDB opens is a FIFO or on a disk that hangs.
//!   A child that waits for the limit of bytes per second writes empty lines.
//! - We do not wait for a killed child that cannot end because it waits for a disk.
//! - Only the child's own word is damage: its answer, or its exit code. However else it ends says nothing for certain about the copy, so
//!   that is an error, and no reason to rely on another backup or to delete this one:
//!
//! ```text
//! it ends by                       because                                                     kind
//! exit code 13                     it says that there is no database, or a damaged one          Damaged
//! SIGSEGV, SIGFPE                  RocksDB crashed: because of the content, or of a fault of    Database
//!                                  the memory or of RocksDB
//! SIGABRT                          no memory (std::bad_alloc), no thread to be had, a failed    Io
//!                                  assertion, a panic while it panicked
//! SIGBUS, SIGILL, SIGSYS, SIGTRAP  a page of the program could not be read, a trap, a filter    Io
//! SIGXCPU, SIGXFSZ, SIGKILL ...    a limit, the kernel without memory, an operator              Io
//! any other exit code              an error of the operating system, a panic (101), usage       Io
//! ```

use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use crate::config::STALL_LIMIT;
use crate::control::Control;
use crate::disk::Owner;
use crate::disk::sys;
use crate::error::{Error, IoContext, Kind, Result};

/// How often a waiting parent checks whether the child has ended.
const POLL: Duration = Duration::from_millis(10);

/// How long we try to start the child if there are too many processes. The threads of the listener count as processes, too.
const START_WAIT: Duration = Duration::from_secs(60);

/// How long to wait until a killed process has ended.
const END_WAIT: Duration = Duration::from_secs(5);

/// How often we check whether the child makes progress.
const LOOK: Duration = Duration::from_secs(1);

/// The exit code of a child that says that the copy is damaged.
const DAMAGED: i32 = 13;

/// The largest answer that is read; a cut has one entry per chain, an inspection one fault per column family.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;

/// What the child reads, and how long it may take if there is no limit of bytes per second.
pub(crate) struct Question<'a> {
    /// Its first argument: `heights`, `starts`, `open` or `inspect`.
    pub(crate) word: &'a str,
    /// The directory of the copy, its second argument.
    pub(crate) copy: &'a Path,
    /// Its other arguments.
    pub(crate) more: &'a [&'a str],
    pub(crate) time_limit: Duration,
    /// Whether the bytes that it reads are bytes of the work.
    pub(crate) counts_bytes: bool,
    /// The user as whom the child runs; `None` for that of this process.
    pub(crate) as_user: Option<Owner>,
}

impl<'a> Question<'a> {
    /// One without other arguments, for this user.
    pub(crate) fn about(word: &'a str, copy: &'a Path, time_limit: Duration) -> Question<'a> {
        Question { word, copy, more: &[], time_limit, counts_bytes: false, as_user: None }
    }

    fn failed(&self, kind: Kind, what: &str) -> Error {
        Error::new(kind, format!("{what} while reading the finished copy {}", self.copy.display()))
    }
}

/// Runs `program` and reads its answer.
///
/// # Errors
/// [`Kind::Io`]: the child made no progress, reached its time limit, or ended without an answer. [`Kind::Damaged`]: it says that the copy
/// is damaged. [`Kind::Database`]: it crashed. [`Kind::Cancelled`]: the job was stopped.
pub(crate) fn ask<T: DeserializeOwned>(program: &Path, question: &Question<'_>, control: &Control) -> Result<T> {
    let mut command = Command::new(program);
    command
        .arg(question.word)
        .arg(question.copy)
        .args(question.more)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    sys::forget_supervisor(&mut command);
    question.as_user.iter().for_each(|user| user.runs(&mut command));
    let mut child = spawn(&mut command, control)?;
    let mut answer = Vec::new();
    let status = match wait(&mut child, question, control, &mut answer) {
        Ok(status) => status,
        Err(e) => {
            end(&mut child);
            return Err(e);
        }
    };
    if !status.success() {
        // Its last message fits in the buffer of the pipe, so it was not kept waiting.
        let mut err = Vec::new();
        let read = child.stderr.as_mut().map_or(Ok(0), |pipe| pipe.read_to_end(&mut err));
        read.context(|| "cannot read the error of the child that reads the copy".to_owned())?;
        let said = String::from_utf8_lossy(&err).trim().lines().last().unwrap_or("nothing").to_owned();
        return Err(question.failed(kind_of(status), &format!("the child process ended with {status}")).because(said));
    }
    serde_json::from_slice(&answer)
        .map_err(|e| question.failed(Kind::Io, "the output of the child process is not the expected JSON").because(e))
}

/// What the end of a child without an answer says: see the table above.
fn kind_of(status: ExitStatus) -> Kind {
    match (status.code(), status.signal()) {
        (Some(DAMAGED), _) => Kind::Damaged,
        (_, Some(libc::SIGSEGV | libc::SIGFPE)) => Kind::Database,
        _ => Kind::Io,
    }
}

/// Waits for the end of the child, and reads what it writes.
fn wait(child: &mut Child, question: &Question<'_>, control: &Control, answer: &mut Vec<u8>) -> Result<ExitStatus> {
    let deadline = Instant::now() + question.time_limit;
    let mut out = child.stdout.take();
    if let Some(out) = &out {
        rustix::io::ioctl_fionbio(out, true).context(unreadable)?;
    }
    let mut progress = Progress::of(child.id());
    loop {
        // Asked before the output is read: then all that the child wrote before its end is read.
        let ended = child.try_wait().context(|| "cannot wait for the child that reads the copy".to_owned())?;
        let has_written = take(out.as_mut(), answer)?;
        if let Some(status) = ended {
            return Ok(status);
        }
        control.check()?;
        if progress.is_made(has_written) {
            control.step();
        }
        let read_bytes = progress.take_read_bytes();
        if question.counts_bytes {
            control.add_done(read_bytes);
        }
        let stall_limit = control.stall_limit().unwrap_or(STALL_LIMIT);
        if !stall_limit.is_zero() && progress.since.elapsed() >= stall_limit {
            let seconds = stall_limit.as_secs();
            let what = format!(
                "the child process made no progress for {seconds} seconds; check whether a disk hangs or a file of the copy is \
                 a FIFO,"
            );
            return Err(question.failed(Kind::Io, &what));
        }
        if Instant::now() > deadline && control.limit_bytes().is_none() {
            return Err(question.failed(Kind::Io, "the time limit was reached"));
        }
        std::thread::sleep(POLL);
    }
}

fn unreadable() -> String {
    "cannot read the output of the child that reads the copy".to_owned()
}

/// Reads what the child has written since the last call, without waiting; returns whether it has written anything. Empty lines are
/// not part of the answer.
fn take(out: Option<&mut ChildStdout>, answer: &mut Vec<u8>) -> Result<bool> {
    let (mut has_written, mut buffer) = (false, [0; 4096]);
    let Some(out) = out else { return Ok(false) };
    loop {
        match out.read(&mut buffer) {
            Ok(0) => return Ok(has_written),
            Ok(count) => {
                has_written = true;
                answer.extend_from_slice(&buffer[..count]);
                if answer.iter().all(|byte| *byte == b'\n') {
                    answer.clear();
                }
                if answer.len() > MAX_ANSWER_BYTES {
                    return Err(Error::new(Kind::Io, "the answer of the child that reads the copy is too long"));
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(has_written),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io(unreadable(), e)),
        }
    }
}

/// When the child last made progress.
struct Progress {
    counters: String,
    seen: String,
    /// The bytes that the child has read, and those of them that were taken.
    read_bytes: u64,
    taken_bytes: u64,
    looked: Instant,
    since: Instant,
}

impl Progress {
    fn of(child: u32) -> Progress {
        let now = Instant::now();
        let (counters, seen) = (format!("/proc/{child}/io"), String::new());
        Progress { counters, seen, read_bytes: 0, taken_bytes: 0, looked: now, since: now }
    }

    /// The bytes that the child has read since the last call.
    fn take_read_bytes(&mut self) -> u64 {
        let new_bytes = self.read_bytes.saturating_sub(self.taken_bytes);
        self.taken_bytes = self.read_bytes;
        new_bytes
    }

    /// Whether the child has made progress since the last call. Its counters are read at most once per [`LOOK`].
    #[expect(clippy::disallowed_methods, reason = "reads the I/O counters of the child")]
    fn is_made(&mut self, has_written: bool) -> bool {
        let mut is_made = has_written;
        if self.looked.elapsed() > LOOK {
            let now = std::fs::read_to_string(&self.counters).unwrap_or_default();
            is_made |= now != self.seen;
            let read = now.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse().ok());
            self.read_bytes = read.unwrap_or(self.read_bytes);
            (self.seen, self.looked) = (now, Instant::now());
        }
        if is_made {
            self.since = Instant::now();
        }
        is_made
    }
}

/// Starts a process. If there are too many processes (`ulimit -u`), waits: our own listener ends some of its threads as soon as
/// it notices.
fn spawn(command: &mut Command, control: &Control) -> Result<Child> {
    let give_up = Instant::now() + START_WAIT;
    loop {
        match command.spawn() {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && Instant::now() < give_up => {
                control.check()?;
                std::thread::sleep(POLL);
            }
            started => return started.context(|| format!("cannot start {}", command.get_program().display())),
        }
    }
}

/// Kills the child.
fn end(child: &mut Child) {
    // An error means that the child has ended by itself.
    let _ = child.kill();
    let give_up = Instant::now() + END_WAIT;
    while matches!(child.try_wait(), Ok(None)) {
        if Instant::now() > give_up {
            log::warn!("process not ended pid={} reason=\"it waits for a disk\"", child.id());
            return;
        }
        std::thread::sleep(POLL);
    }
}
