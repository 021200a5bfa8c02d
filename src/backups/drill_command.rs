//! The operator's command in a drill: it gets the restored database directory in place of `{directory}`.
//!
//! Invariant: the command is given the restored database directory, never the node's own.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::backups::command::{self, Ended, Limits};
use crate::control::Control;
use crate::disk::lock::Lock;
use crate::disk::sys;
use crate::error::{Error, Kind, Result};

/// Stands for the restored database directory in the words of the command.
pub(crate) const DIRECTORY: &str = "{directory}";

/// How long the processes may take to end after SIGTERM, before SIGKILL: it may be a node.
const TERM_LIMIT: Duration = Duration::from_secs(10);

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
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).current_dir(directory).stdin(Stdio::null());
    sys::forget_supervisor(&mut command);
    let limits = Limits { time: time_limit, term: TERM_LIMIT };
    command::run(command, limits, control, |command| lock.inherited(|| command.spawn()))
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
