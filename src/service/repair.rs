//! RocksDB captured so that RocksDB can read the copy, whatever is wrong with the earlier backup whose files it takes over.
//!
//! A file of an earlier backup that turns out bad is given up and the database is captured again: what was good is linked
//! again, the bad file is copied anew from the node. Which file it is, RocksDB says; if it names none, every file that was taken
//! over is read again; if that finds none, nothing is taken over any more. So the number of captures has a limit, and the last
//! one has nothing in it but what the node has now.
//!
//! Invariant: an earlier backup is noted as damaged only after a look at its own file: by its checksum, or by RocksDB.

use std::path::Path;

use crate::backups::catalog::Catalog;
use crate::backups::reread::Base;
use crate::capture::rocksdb::chain_cut::{Cut, Heights};
use crate::capture::rocksdb::engine;
use crate::capture::rocksdb::live_files;
use crate::capture::rocksdb::version_edit::LiveFile;
use crate::capture::rocksdb::{self, Capture};
use crate::capture::source::Sources;
use crate::control::{Control, Phase};
use crate::disk::{self, Owner};
use crate::error::{Error, Kind, Result};
use crate::fault::Fault;

/// How often a capture is repeated because RocksDB names a file that was taken over.
const MAX_NAMED: u32 = 3;

/// What a capture needs besides its place.
pub(crate) struct Capturing<'a> {
    pub(crate) sources: &'a Sources,
    pub(crate) catalog: &'a Catalog,
    /// The program that reads the heights.
    pub(crate) program: Option<&'a Path>,
    pub(crate) owner: Option<Owner>,
    pub(crate) now_ms: u64,
    pub(crate) control: &'a Control,
}

impl Capturing<'_> {
    /// Captures RocksDB into the new directory `to`, and reads its cut, if this program can. `base` loses what is bad in it, and
    /// `warnings` get a sentence for each such file.
    pub(crate) fn run(
        &self,
        to: &Path,
        base: &mut Option<Base>,
        warnings: &mut Vec<String>,
    ) -> Result<(Capture, Option<Cut>)> {
        let mut tries_count = 0;
        loop {
            self.control.enter(Phase::Rocksdb);
            self.control.check()?;
            let earlier = base.as_ref().map(|base| &base.files);
            let capture = match rocksdb::capture(self.sources, to, earlier, self.owner, self.control) {
                Err(e) if e.kind() == Kind::Damaged && base.is_some() => {
                    self.give_up_all(base, &e.chain(), warnings);
                    disk::remove_tree(to, &|| true)?;
                    continue;
                }
                other => other?,
            };
            if engine::require("reading the heights").is_err() {
                return Ok((capture, None));
            }
            self.control.enter(Phase::Heights);
            let fault = match rocksdb::read_cut(to, self.program, self.control) {
                Ok(Heights::Cut(cut)) => return Ok((capture, cut)),
                Ok(Heights::Damaged(fault)) => fault,
                Err(e) if e.kind() == Kind::Damaged => Fault { file: String::new(), why: e.chain() },
                Err(e) => return Err(e),
            };
            let fault = Fault::of_rocksdb(fault);
            // A damaged WAL is the node's own.
            let is_of_node = fault.table().is_none() && !capture.warnings.is_empty();
            if is_of_node || capture.brought.reused().next().is_none() {
                return Err(capture.blame(Error::new(Kind::Damaged, format!("RocksDB cannot read the copy: {fault}"))));
            }
            tries_count += 1;
            self.mend(&fault, &capture, tries_count, to, base, warnings)?;
            log::info!("capturing rocksdb again reason={:?}", fault.to_string());
            disk::remove_tree(to, &|| true)?;
        }
    }

    /// Makes `base` lose what may be the reason for `fault`.
    fn mend(
        &self,
        fault: &Fault,
        capture: &Capture,
        tries_count: u32,
        to: &Path,
        base: &mut Option<Base>,
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        let Some(from) = base.as_mut() else { return Ok(()) };
        let number = fault.table().and_then(LiveFile::number_in);
        let reused = number.filter(|number| capture.brought.find(*number).is_some_and(|came| came.reused));
        if let Some(number) = reused.filter(|_| tries_count <= MAX_NAMED) {
            if self.is_bad_there(from, number, fault)? {
                from.give_up(fault, self.catalog, self.now_ms);
                warnings.push(from.warning(fault));
            } else {
                log::warn!("file of an earlier backup not used id={} file={}", from.id, fault.file);
                from.files.give_up(number);
            }
            return Ok(());
        }
        let live = live_files::in_directory(to)?;
        let faults = from.read_share(&live, 100, self.now_ms, self.catalog, self.control)?;
        warnings.extend(faults.iter().map(|fault| from.warning(fault)));
        if faults.is_empty() || tries_count > MAX_NAMED {
            self.give_up_all(base, &fault.to_string(), warnings);
        }
        Ok(())
    }

    /// Whether the file of the earlier backup is bad itself, and not another one than the node's.
    fn is_bad_there(&self, base: &mut Base, number: u64, fault: &Fault) -> Result<bool> {
        if let Some(is_bad) = base.is_bad(number, self.control)? {
            return Ok(is_bad);
        }
        let there = rocksdb::read_cut(base.files.directory(), self.program, self.control)?;
        Ok(matches!(there, Heights::Damaged(there) if Fault::of_rocksdb(there.clone()).file == fault.file))
    }

    fn give_up_all(&self, base: &mut Option<Base>, why: &str, warnings: &mut Vec<String>) {
        if let Some(base) = base.take() {
            let warning = format!("no file of backup {} was taken over ({why}): all are copied from the node", base.id);
            log::warn!("earlier backup not used id={} reason={why:?}", base.id);
            warnings.push(warning);
        }
    }
}
