//! Replaces `engine` in a build without RocksDB. Live copies do not need RocksDB, so only these are missing: an embedded node's
//! checkpoint, the height of the cut, and deep verification.

use std::path::Path;

use crate::capture::rocksdb::chain_cut::{Heights, Tip};
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

pub(crate) fn open_as_node(_scratch: &Path) -> Result<Heights> {
    require("opening the databases in a drill").map(|()| Heights::Cut(None))
}
