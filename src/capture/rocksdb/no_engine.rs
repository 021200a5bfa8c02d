//! What stands in for `engine` in a build without RocksDB: live copies need none, so only this is missing: an embedded node's
//! checkpoint, the height of the cut, and deep verification.

use std::path::Path;

use crate::capture::rocksdb::chain_cut::{Heights, Tip};
use crate::control::Control;
use crate::error::{Error, Kind, Result};
use crate::fault::Inspected;

/// An open database: there is none.
#[derive(Debug)]
pub enum Db {}

/// Fails: there is no RocksDB for `what`.
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
