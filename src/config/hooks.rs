//! The commands that run around each backup, as they are configured.
//!
//! Invariant: a command is a list of words, and is started as it stands: no shell reads it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::tree::quote;
use crate::error::{Error, Kind, Result};

/// How long a hook may run by default, and at most.
pub(crate) const TIME_LIMIT: Duration = Duration::from_secs(3600);
pub(crate) const MAX_TIME_LIMIT: Duration = Duration::from_secs(7 * 24 * 3600);

/// The most commands of one event: their outcomes must fit into a small file.
pub(crate) const MAX_COMMANDS: usize = 8;

/// The moments at which hooks run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// In a job, before it reads a source. If the hook fails, the job fails.
    Before,
    /// After a good job that verified its backup, and after the command `verify`.
    OnVerified,
    /// After the backup is done.
    AfterSuccess,
    /// After the job failed, was cancelled or stalled.
    AfterFailure,
}

impl Event {
    /// All of them.
    pub const ALL: [Event; 4] = [Event::Before, Event::OnVerified, Event::AfterSuccess, Event::AfterFailure];

    /// The event as text, in the environment of the hook, in lists and in metrics.
    pub fn word(self) -> &'static str {
        match self {
            Event::Before => "before",
            Event::OnVerified => "on-verified",
            Event::AfterSuccess => "after-success",
            Event::AfterFailure => "after-failure",
        }
    }
}

/// The commands of each event, in the order in which they run, and how long each may take. None by default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hooks {
    /// See [`Event::Before`].
    pub before: Vec<Vec<String>>,
    /// See [`Event::OnVerified`].
    pub on_verified: Vec<Vec<String>>,
    /// See [`Event::AfterSuccess`].
    pub after_success: Vec<Vec<String>>,
    /// See [`Event::AfterFailure`].
    pub after_failure: Vec<Vec<String>>,
    /// How long each command may run before it is ended; it has failed then.
    pub time_limit: Duration,
}

impl Default for Hooks {
    fn default() -> Hooks {
        Hooks {
            before: Vec::new(),
            on_verified: Vec::new(),
            after_success: Vec::new(),
            after_failure: Vec::new(),
            time_limit: TIME_LIMIT,
        }
    }
}

impl Hooks {
    /// The commands of an event.
    pub(crate) fn commands(&self, event: Event) -> &[Vec<String>] {
        match event {
            Event::Before => &self.before,
            Event::OnVerified => &self.on_verified,
            Event::AfterSuccess => &self.after_success,
            Event::AfterFailure => &self.after_failure,
        }
    }

    /// Whether there is one for this event.
    pub(crate) fn has(&self, event: Event) -> bool {
        !self.commands(event).is_empty()
    }

    /// Whether there is any.
    pub(crate) fn are_configured(&self) -> bool {
        Event::ALL.into_iter().any(|event| self.has(event))
    }
}

/// What a configuration file says of hooks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileHooks {
    /// `backup.hooks.before`
    pub before: Option<Vec<Vec<String>>>,
    /// `backup.hooks.onVerified`
    pub on_verified: Option<Vec<Vec<String>>>,
    /// `backup.hooks.afterSuccess`
    pub after_success: Option<Vec<Vec<String>>>,
    /// `backup.hooks.afterFailure`
    pub after_failure: Option<Vec<Vec<String>>>,
    /// `backup.hooks.limitSeconds`
    pub time_limit: Option<Duration>,
}

impl FileHooks {
    /// Merges both; `self` takes precedence.
    pub(crate) fn or(self, other: FileHooks) -> FileHooks {
        FileHooks {
            before: self.before.or(other.before),
            on_verified: self.on_verified.or(other.on_verified),
            after_success: self.after_success.or(other.after_success),
            after_failure: self.after_failure.or(other.after_failure),
            time_limit: self.time_limit.or(other.time_limit),
        }
    }

    /// The hooks, with the default for what is not said.
    pub fn hooks(self) -> Hooks {
        Hooks {
            before: self.before.unwrap_or_default(),
            on_verified: self.on_verified.unwrap_or_default(),
            after_success: self.after_success.unwrap_or_default(),
            after_failure: self.after_failure.unwrap_or_default(),
            time_limit: self.time_limit.unwrap_or(TIME_LIMIT),
        }
    }
}

/// Refuses a command that cannot be started: its first word is an absolute path, or a name that is looked up in `PATH`.
pub(crate) fn require_command(words: &[String]) -> Result<()> {
    let usage = |context: String| Err(Error::new(Kind::Usage, context));
    let Some(program) = words.first().filter(|program| !program.is_empty()) else {
        return usage("the command is empty: write a list of words, the first one is the program".to_owned());
    };
    if program.chars().any(char::is_whitespace) && words.len() == 1 {
        let remedy = "no shell reads it: write each word as an item of the list, like [curl, -sS, URL]";
        return usage(format!("{} is one word: {remedy}", quote(program)));
    }
    if program.contains('/') && !program.starts_with('/') {
        let remedy = "write an absolute path, or a name that is looked up in PATH";
        return usage(format!("{} is a relative path: {remedy}", quote(program)));
    }
    if program.starts_with('~') {
        return usage(format!("{} begins with ~, which only a shell replaces: write the whole path", quote(program)));
    }
    match words.iter().find(|word| word.contains('\0')) {
        Some(word) => usage(format!("{} has a NUL character: remove it", quote(word))),
        None => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_word_of_an_event_is_the_one_in_the_record() {
        for event in Event::ALL {
            assert_eq!(serde_json::to_string(&event).unwrap(), format!("\"{}\"", event.word()));
        }
    }

    #[test]
    fn a_command_begins_with_a_path_or_a_name() {
        let words = |text: &[&str]| text.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        for good in [&["/bin/true"] as &[&str], &["true", "a b", ""], &["/opt/my hooks/x", "y"]] {
            assert!(require_command(&words(good)).is_ok(), "{good:?}");
        }
        for (bad, told) in [
            (&[] as &[&str], "is empty"),
            (&[""], "is empty"),
            (&["curl -sS http://x"], "each word as an item"),
            (&["hooks/x.sh"], "absolute path"),
            (&["./x.sh"], "absolute path"),
            (&["~x"], "only a shell"),
            (&["/bin/x", "a\0b"], "NUL"),
        ] {
            let error = require_command(&words(bad)).unwrap_err();
            assert!(error.kind() == Kind::Usage && error.chain().contains(told), "{bad:?}: {}", error.chain());
        }
    }
}
