//! The one error type of the crate.
//!
//! An error has a [`Kind`] (callers act on it), a context (the operation that failed, and its object) and a source.
//! `Display` prints this level only; the command line and the HTTP interface join the chain once, with [`Error::chain`].
//! No code of the crate matches on an error's text.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::Path;

/// The result of every fallible call of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong: callers treat each kind differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An option, a parameter, a configuration key or an environment variable is wrong: correct it and call again.
    Usage,
    /// No backup has that identifier.
    NotFound,
    /// Another job, or another service, works on the same backup directory.
    Busy,
    /// The file system has too little free space.
    NoSpace,
    /// The target directory is not empty.
    NotEmpty,
    /// A running node holds the database.
    NodeRunning,
    /// A source cannot be backed up in its present state; the context says why and what to do.
    Refused,
    /// The source changed faster than it could be copied: another backup may succeed.
    Changed,
    /// A file on the disk is missing, or its content is wrong.
    Damaged,
    /// The job was cancelled.
    Cancelled,
    /// The service is shutting down and takes no more jobs.
    ShuttingDown,
    /// The operating system reported an error.
    Io,
    /// RocksDB or SQLite reported an error.
    Database,
}

/// An error of this crate: kind, context, source.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    context: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error without a source. `context` is lower case, without a full stop, and names the remedy if there is one.
    pub fn new(kind: Kind, context: impl Into<String>) -> Error {
        Error { kind, context: context.into(), source: None }
    }

    /// The same error with `source` as its cause.
    pub fn because(self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        Error { source: Some(source.into()), ..self }
    }

    /// An error of the operating system; a full disk or quota becomes [`Kind::NoSpace`].
    pub fn io(context: impl Into<String>, source: io::Error) -> Error {
        let full = matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        Error::new(if full { Kind::NoSpace } else { Kind::Io }, context).because(source)
    }

    /// The kind, on which a caller may act.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The kind of the operating system's error that is the direct cause, if one is.
    pub(crate) fn io_kind(&self) -> Option<io::ErrorKind> {
        self.source.as_ref()?.downcast_ref::<io::Error>().map(io::Error::kind)
    }

    /// The number of the operating system's error that is the direct cause, if one is.
    pub(crate) fn errno(&self) -> Option<i32> {
        self.source.as_ref()?.downcast_ref::<io::Error>()?.raw_os_error()
    }

    /// The whole chain in one line: `context: cause: cause of the cause`.
    pub fn chain(&self) -> String {
        let mut line = self.context.clone();
        let mut next = StdError::source(self);
        while let Some(cause) = next {
            line.push_str(": ");
            line.push_str(&cause.to_string());
            next = cause.source();
        }
        line
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|s| s as &(dyn StdError + 'static))
    }
}

/// Adds the failed operation to an error of the operating system.
pub(crate) trait IoContext<T> {
    /// `context` is evaluated on the error path only.
    fn context(self, context: impl FnOnce() -> String) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn context(self, context: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::io(context(), e))
    }
}

impl<T> IoContext<T> for rustix::io::Result<T> {
    fn context(self, context: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::io(context(), e.into()))
    }
}

/// Why an attempt to copy a source failed that another process may write to.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The source changed during the attempt: another one may succeed.
    Again(String),
    /// Another attempt would fail, too.
    Final(Error),
}

impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        Failure::Final(e)
    }
}

/// The context of a failed operation on a path.
pub(crate) fn failed(verb: &str, path: &Path) -> String {
    format!("cannot {verb} {}", path.display())
}
