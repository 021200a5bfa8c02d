//! What an attempt at a database is given, and how it ends: the words that all ways of copying share.

use std::path::Path;

use crate::config::PactMethod;
use crate::control::Control;
use crate::disk::Owner;
use crate::error::{Error, Kind, Result};

const WAL_TOO_LARGE: &str = "the node's WAL grew over the bound of 512 MiB while it was held (a higher limit of bytes per \
                             second, or a quieter hour, helps)";

const NOT_SEEN: &str = "the node runs, but no process is seen that has this database open, and it lies on another file system \
                        than the node's RocksDB, so its locks may not reach this process (another container or mount?): run \
                        in the node's container, or stop the node";

/// Why an attempt at a database gave no copy.
#[derive(Debug)]
pub(crate) enum Lost {
    /// The node moved on: another attempt may succeed.
    Raced(String),
    /// Its WAL grew too far while we held it.
    WalGrew,
    /// Its file system has too little room left for its WAL.
    SourceFull(Error),
    /// The source is not what it should be. It is looked at again all the same: what is read while others write may mislead.
    Damaged(String),
    /// The node runs, but no process is seen that has the database open, on a file system where none of its locks was seen.
    NotSeen,
    /// No attempt will succeed.
    Final(Error),
}

impl From<Error> for Lost {
    fn from(e: Error) -> Lost {
        Lost::Final(e)
    }
}

/// The result of one attempt.
pub(crate) type Attempt<T> = std::result::Result<T, Lost>;

/// How databases are copied, the same for all of a backup.
pub(crate) struct How<'a> {
    /// The file system (its device) on which a lock of the running node is seen; `None` where no node runs.
    pub(crate) node_seen_on: &'a dyn Fn() -> Result<Option<u64>>,
    pub(crate) method: PactMethod,
    pub(crate) owner: Option<Owner>,
    pub(crate) control: &'a Control,
}

/// What the node has to bear while its database is held, over all attempts at it.
#[derive(Debug, Default)]
pub(crate) struct Burden {
    /// Bytes of the WAL when it was held first, or fewer where it was started anew since.
    pub(crate) wal_bytes: Option<u64>,
    /// What must be free on the node's file system.
    pub(crate) floor_bytes: Option<u64>,
    /// Whether an attempt was given up for its sake.
    pub(crate) is_too_much: bool,
}

impl Lost {
    /// Why, for the log.
    pub(crate) fn reason(&self) -> String {
        match self {
            Lost::Raced(why) | Lost::Damaged(why) => why.clone(),
            Lost::WalGrew => WAL_TOO_LARGE.to_owned(),
            Lost::SourceFull(e) | Lost::Final(e) => e.chain(),
            Lost::NotSeen => NOT_SEEN.to_owned(),
        }
    }

    /// What an operator gets when no attempt is left.
    pub(crate) fn into_error(self, database: &Path, attempts: u32) -> Error {
        let name = database.display();
        match self {
            Lost::Final(e) | Lost::SourceFull(e) => e,
            Lost::Damaged(why) => Error::new(Kind::Damaged, why),
            Lost::NotSeen => Error::new(Kind::Refused, format!("cannot back up {name}: {NOT_SEEN}")),
            Lost::WalGrew | Lost::Raced(_) => {
                let why = self.reason();
                Error::new(Kind::Changed, format!("cannot copy {name}: {why}, {attempts} times"))
            }
        }
    }
}
