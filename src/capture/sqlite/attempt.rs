//! The input and the result of an attempt at a database: the types that all ways of copying share.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::config::PactMethod;
use crate::disk::copy::Copier;
use crate::disk::increment::Refusal;
use crate::disk::piece_sums::PieceSums;
use crate::error::{Error, Kind, Result};
use crate::format::record::{Method, Pair};
use crate::id::BackupId;

const WAL_TOO_LARGE: &str = "the node's WAL grew by more than 512 MiB while the database was copied (raise the limit of bytes \
                             per second, or try again when the node writes less)";

const NOT_SEEN: &str = "the node runs, but no process is seen that has this database open, and it lies on another file system \
                        than the node's RocksDB, so its locks may not reach this process (another container or mount?): run \
                        in the node's container, or stop the node";

/// Why an attempt at a database gave no copy.
#[derive(Debug)]
pub(crate) enum Lost {
    /// The node changed the database: another attempt may succeed.
    Raced(String),
    /// The node's WAL grew too far during our read transaction.
    WalGrew,
    /// The node's file system has too little free space for the WAL to grow.
    SourceFull(Error),
    /// The source is damaged. Another attempt is made all the same: a file that is read while a process writes to it may only
    /// look damaged.
    Damaged(String),
    /// The node runs, but we see no process that has the database open, on a file system where we see none of its locks.
    NotSeen,
    /// Another attempt would fail, too.
    Final(Error),
}

impl From<Error> for Lost {
    fn from(e: Error) -> Lost {
        Lost::Final(e)
    }
}

/// The result of one attempt.
pub(crate) type Attempt<T> = std::result::Result<T, Lost>;

/// How databases are copied; the same for all databases of a backup.
pub(crate) struct How<'a> {
    /// The file system (its device) on which we see a lock of the running node; `None` if no node runs.
    pub(crate) node_seen_on: &'a dyn Fn() -> Result<Option<u64>>,
    pub(crate) method: PactMethod,
    pub(crate) copier: Copier<'a>,
    /// The same database in an earlier backup, of which an increment is made.
    pub(crate) base: Option<&'a EarlierDatabase>,
    /// Whether the sums of the copy are computed, so that the next backup can make an increment of it.
    pub(crate) keeps_sums: bool,
}

/// A database in an earlier backup.
#[derive(Debug)]
pub(crate) struct EarlierDatabase {
    pub(crate) id: BackupId,
    pub(crate) file: File,
    pub(crate) bytes: u64,
    /// The page size as it stands in its header.
    pub(crate) page_size: [u8; 2],
    /// Its sums, if the backup has them.
    pub(crate) sums: Option<PieceSums>,
    /// If a pair is to be made, with this file as its base.
    pub(crate) linkable: Option<Linkable>,
}

impl EarlierDatabase {
    /// The backup that the record names as that of which this copy is an increment.
    pub(crate) fn origin(&self) -> &BackupId {
        self.linkable.as_ref().map_or(&self.id, |linkable| &linkable.made_by)
    }
}

/// A base of pairs.
#[derive(Debug, Clone)]
pub(crate) struct Linkable {
    /// The name to which a link is made.
    pub(crate) path: PathBuf,
    /// The backup for which it was written.
    pub(crate) made_by: BackupId,
    /// When it was last written to: seconds and nanoseconds.
    pub(crate) modified: (i64, i64),
    /// The size that a WAL on it may have.
    pub(crate) max_wal_bytes: u64,
    /// Size and number of the WALs that were written to it so far.
    pub(crate) deltas_bytes: u64,
    pub(crate) deltas_count: u32,
}

/// How a copy was made.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) method: Method,
    /// If it is an increment or a pair.
    pub(crate) increment: Option<Written>,
}

/// What was written for an increment.
#[derive(Debug)]
pub(crate) struct Written {
    /// How many bytes.
    pub(crate) bytes: u64,
    /// The sums of the database.
    pub(crate) sums: PieceSums,
    /// If it is a pair: then the file with the name of the database has other sums.
    pub(crate) pair: Option<Pair>,
}

impl Made {
    /// One that is no increment.
    pub(crate) fn whole(method: Method) -> Made {
        Made { method, increment: None }
    }
}

/// The limits of what our read transactions may cost the node, over all attempts at a database.
#[derive(Debug, Default)]
pub(crate) struct Burden {
    /// Bytes of the WAL at the start of the first attempt, or fewer if the WAL was restarted since.
    pub(crate) wal_bytes: Option<u64>,
    /// The bytes that must be free on the node's file system.
    pub(crate) floor_bytes: Option<u64>,
    /// Whether an attempt was given up because it cost the node too much.
    pub(crate) is_too_much: bool,
    /// Why no increment is made any more.
    pub(crate) refusal: Option<Refusal>,
}

impl Lost {
    /// The reason, for the log.
    pub(crate) fn reason(&self) -> String {
        match self {
            Lost::Raced(why) | Lost::Damaged(why) => why.clone(),
            Lost::WalGrew => WAL_TOO_LARGE.to_owned(),
            Lost::SourceFull(e) | Lost::Final(e) => e.chain(),
            Lost::NotSeen => NOT_SEEN.to_owned(),
        }
    }

    /// The error after the last attempt.
    pub(crate) fn into_error(self, database: &Path, attempts: u32) -> Error {
        let name = database.display();
        match self {
            Lost::Final(e) | Lost::SourceFull(e) => e,
            Lost::Damaged(why) => Error::new(Kind::Damaged, why),
            Lost::NotSeen => Error::new(Kind::Refused, format!("cannot back up {name}: {NOT_SEEN}")),
            Lost::WalGrew | Lost::Raced(_) => {
                let why = self.reason();
                Error::new(Kind::Changed, format!("cannot copy {name}: all {attempts} attempts failed: {why}"))
            }
        }
    }
}
