//! The demo node's one error: a sentence.
//!
//! Nothing here acts on what went wrong, so an error is what was being done, then why it failed, in one line.

use std::fmt;

/// The result of every fallible call of the demo node.
pub type Result<T> = std::result::Result<T, Fault>;

/// What is wrong, as one line, lower case, without a full stop.
#[derive(Debug)]
pub struct Fault(String);

/// A fault with no deeper cause.
pub fn fault(text: impl Into<String>) -> Fault {
    Fault(text.into())
}

/// Adds what was being done to an error of RocksDB, SQLite or the operating system.
pub trait Context<T> {
    /// `context` is evaluated on the error path only.
    fn context(self, context: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for std::result::Result<T, E> {
    fn context(self, context: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Fault(format!("{}: {e}", context())))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Fault {}
