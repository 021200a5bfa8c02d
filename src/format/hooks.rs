//! The outcomes of the hooks of a backup, `hooks.json` in its directory.
//!
//! Of a command only the program is noted, not its arguments: they may hold a password, and lists are answered to every client.
//! Fields may be added: readers ignore unknown ones.

use serde::{Deserialize, Serialize};

use crate::config::hooks::Event;
use crate::id::BackupId;

/// The content of `hooks.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HookRuns {
    /// The backup: a note of another one is none.
    pub(crate) id: BackupId,
    /// The last run of each hook.
    pub(crate) runs: Vec<HookRun>,
}

/// The last run of one hook of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookRun {
    /// When it ran.
    pub event: Event,
    /// The place of its command among those of the event, from 0.
    pub number: usize,
    /// The program.
    pub program: String,
    /// Whether it ended with the status 0.
    pub passed: bool,
    /// Whether it waits for its turn.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub waits: bool,
    /// When it began, or since when it waits, milliseconds since the epoch.
    pub at_ms: u64,
    /// How long it took, in milliseconds; absent if it has not ended, 0 if it was not run or its end is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// Why it failed, or was not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether it failed only because the program ended that ran it, or was to run it: the next start of a service runs it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unfinished: bool,
    /// How often the program ended while it ran.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub interrupted_count: u32,
    /// The end of what it wrote.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub output: String,
    /// The version of this program.
    pub version: String,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde gives a reference
fn is_zero(count: &u32) -> bool {
    *count == 0
}

impl HookRun {
    /// A run that begins.
    pub(crate) fn begun(event: Event, number: usize, program: &str, at_ms: u64) -> HookRun {
        let (program, version) = (program.to_owned(), env!("CARGO_PKG_VERSION").to_owned());
        let (output, waits, unfinished) = (String::new(), false, false);
        HookRun {
            event,
            number,
            program,
            passed: false,
            waits,
            at_ms,
            duration_ms: None,
            reason: None,
            unfinished,
            interrupted_count: 0,
            output,
            version,
        }
    }

    /// One that is to run later.
    pub(crate) fn waiting(event: Event, number: usize, program: &str, at_ms: u64) -> HookRun {
        HookRun { waits: true, ..HookRun::begun(event, number, program, at_ms) }
    }

    /// Ends one that was not run, or whose end is not known.
    pub(crate) fn give_up(&mut self, reason: String) {
        (self.waits, self.passed, self.duration_ms, self.reason) = (false, false, Some(0), Some(reason));
    }

    /// The same of one that the next start of a service runs.
    pub(crate) fn leave(&mut self, reason: String) {
        self.give_up(reason);
        self.unfinished = true;
    }

    /// When it ended, milliseconds since the epoch; `None` if it has not.
    pub fn ended_ms(&self) -> Option<u64> {
        self.duration_ms.map(|duration_ms| self.at_ms.saturating_add(duration_ms))
    }
}
