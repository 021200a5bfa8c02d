//! RocksDB through RocksDB itself: the only file that calls the `rocksdb` crate.
//!
//! A checkpoint of the node's own open handle, and reading a finished copy, which is opened read-only and without a LOG: no
//! file appears in the backup. Invariant: a backup is never opened read-write.
//!
//! A build without the feature `engine` has `no_engine` in its place.

use std::path::Path;

use rocksdb::checkpoint::Checkpoint;
use rocksdb::{DB, IteratorMode, Options, ReadOptions};

use crate::control::Control;
use crate::cut::{Cut, Heights};
use crate::disk;
use crate::error::{Error, Kind, Result};
use crate::fault::{Fault, Inspected, table_in};

/// An open database.
pub(crate) type Db = DB;

/// How far a full read reads ahead.
const READAHEAD_BYTES: usize = 2 * 1024 * 1024;

/// How much is read between two looks at the limit of bytes per second. What counts are keys and values: more than is on the disk.
const PACED_BYTES: u64 = 256 * 1024;

/// Files that the finished copy may hold open, so that a terabyte does not cost thousands of descriptors.
const MAX_OPEN_FILES: i32 = 64;

/// RocksDB's name for the size of all its SSTs, of every version.
const TOTAL_SST_BYTES: &str = "rocksdb.total-sst-files-size";

/// Fails with [`Kind::Usage`] where there is no RocksDB for `what`. Here there is.
pub(crate) fn require(_what: &str) -> Result<()> {
    Ok(())
}

/// The directory of an open database.
pub(crate) fn path(db: &Db) -> &Path {
    db.path()
}

/// Bytes of all its SSTs.
pub(crate) fn sst_bytes(db: &Db) -> Result<u64> {
    let failed = |e| Error::new(Kind::Database, "cannot ask RocksDB for its size").because(e);
    Ok(db.property_int_value(TOTAL_SST_BYTES).map_err(failed)?.unwrap_or(0))
}

/// A checkpoint of an open database in the new directory `to`: it flushes, links every SST and copies the rest.
pub(crate) fn checkpoint(db: &Db, to: &Path) -> Result<()> {
    disk::written_by_library(to)?;
    let failed = |e| Error::new(Kind::Database, format!("cannot make a checkpoint in {}", to.display())).because(e);
    Checkpoint::new(db).and_then(|c| c.create_checkpoint(to)).map_err(failed)
}

/// The newest cut in a finished copy, or the damage because of which RocksDB cannot read it.
pub(crate) fn read_cut(copy: &Path) -> Result<Heights> {
    let options = read_only_options(copy)?;
    let newest = || {
        // Other column families are the node's business; the cuts are in the default one.
        let db = DB::open_for_read_only(&options, copy, false)?;
        let mut range = ReadOptions::default();
        range.set_iterate_upper_bound(Cut::PREFIX_END);
        db.iterator_opt(IteratorMode::End, range).next().transpose()
    };
    let newest = match newest() {
        Ok(newest) => newest,
        Err(e) => return Ok(Heights::Damaged(reported(&e))),
    };
    let cut = newest.filter(|(key, _)| key.starts_with(Cut::PREFIX));
    Ok(Heights::Cut(cut.and_then(|(key, value)| Cut::parse(&key[Cut::PREFIX.len()..], &value))))
}

/// Reads every block of every column family of a finished copy and checks its checksum. Of a column family with damage, what
/// comes first.
pub(crate) fn inspect(copy: &Path, control: &Control) -> Result<Inspected> {
    let options = read_only_options(copy)?;
    let mut inspected = Inspected::default();
    let opened = DB::list_cf(&options, copy)
        .and_then(|families| Ok((DB::open_cf_for_read_only(&options, copy, &families, false)?, families)));
    let (db, families) = match opened {
        Ok(opened) => opened,
        Err(e) => {
            inspected.faults.push(reported(&e));
            return Ok(inspected);
        }
    };
    let mut unpaced_bytes = 0;
    for family in &families {
        let handle = db.cf_handle(family);
        let handle = handle.ok_or_else(|| Error::new(Kind::Damaged, format!("column family {family} is missing")))?;
        let mut read = ReadOptions::default();
        read.set_verify_checksums(true);
        read.fill_cache(false);
        read.set_readahead_size(READAHEAD_BYTES);
        for entry in db.iterator_cf_opt(handle, read, IteratorMode::Start) {
            match entry {
                Ok((key, value)) => {
                    inspected.keys_count += 1;
                    unpaced_bytes += (key.len() + value.len()) as u64;
                    if unpaced_bytes >= PACED_BYTES {
                        control.check()?;
                        control.throttle(std::mem::take(&mut unpaced_bytes))?;
                    }
                }
                Err(e) => {
                    inspected.faults.push(reported(&e));
                    break;
                }
            }
        }
    }
    Ok(inspected)
}

/// What RocksDB says of a copy that it cannot read.
fn reported(e: &rocksdb::Error) -> Fault {
    let why = format!("RocksDB reports damage: {e}");
    Fault { file: table_in(&why).unwrap_or_default(), why }
}

/// Options that open a finished copy without leaving anything in it.
fn read_only_options(copy: &Path) -> Result<Options> {
    // RocksDB would create a directory that is not there, even read-only.
    if !copy.join("CURRENT").is_file() {
        return Err(Error::new(Kind::Damaged, format!("there is no RocksDB in {} (no file CURRENT)", copy.display())));
    }
    // A transaction may be prepared and not yet committed.
    let two_phase = Options::default().get_options_from_string("allow_2pc=true");
    let mut options = two_phase.expect("RocksDB knows this option");
    options.set_max_open_files(MAX_OPEN_FILES);
    // By itself it takes fifteen threads for a moment, and aborts the process where they are not to be had.
    options.set_max_file_opening_threads(1);
    // Where the MANIFEST lists the WALs they are compared with it. (Without this, RocksDB 11.8 dies of a null pointer: a
    // read-only database cannot clear the list.)
    options.set_track_and_verify_wals_in_manifest(true);
    // A logger of our own, which drops everything: the default one would create a LOG in the backup.
    options.set_info_logger(rocksdb::InfoLogger::new_callback_logger(rocksdb::LogLevel::Fatal, |_, _| {}));
    Ok(options)
}
