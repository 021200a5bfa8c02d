//! Replaces `engine` in a build without RocksDB. Live copies do not need RocksDB, so only these are missing: an embedded node's
//! checkpoint, the height of the cut, and deep verification.

use std::path::Path;

use crate::capture::rocksdb::chain_cut::{Heights, Tip};
use crate::chainweb::stored::Entry;
use crate::control::Control;
use crate::error::{Error, Kind, Result};
use crate::fault::Inspected;

/// An open database: this build cannot have one.
#[derive(Debug)]
pub enum Db {}

/// Fails: this program was built without RocksDB, which `what` needs.
pub(crate) fn require(what: &str) -> Result<()> {
    let context = format!("this program was built without RocksDB, which {what} needs: use the full build");
    Err(Error::new(Kind::Usage, context))
}

pub(crate) fn path(db: &Db) -> &Path {
    match *db {}
}

pub(crate) fn sst_bytes(db: &Db) -> Result<u64> {
    match *db {}
}

pub(crate) fn checkpoint(db: &Db, _to: &Path) -> Result<()> {
    match *db {}
}

pub(crate) fn read_cut(_copy: &Path, _tips: &[Tip]) -> Result<Heights> {
    require("reading the heights").map(|()| Heights::Cut(None))
}

pub(crate) fn inspect(_copy: &Path, _control: &Control) -> Result<Inspected> {
    require("deep verification").map(|()| Inspected::default())
}

/// A finished copy that is open to be read: this build cannot have one.
pub(crate) enum Entries {}

impl Entries {
    pub(crate) fn open(_copy: &Path) -> Result<Entries> {
        Err(require("the start-up proof").expect_err("this build has no RocksDB"))
    }

    pub(crate) fn get(&self, _key: &[u8]) -> Result<Option<Vec<u8>>> {
        match *self {}
    }

    pub(crate) fn newest_in(&self, _prefix: &[u8], _end: &[u8]) -> Result<Option<Entry>> {
        match *self {}
    }
}

pub(crate) fn open_as_node(_scratch: &Path) -> Result<Heights> {
    require("opening the databases in a drill").map(|()| Heights::Cut(None))
}
