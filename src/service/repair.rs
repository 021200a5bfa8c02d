//! Captures RocksDB so that RocksDB can read the copy, also if files of the earlier backup that it takes over are damaged.
//!
//! A file of an earlier backup that turns out damaged is given up and the database is captured again: the good files are linked
//! again, the damaged one is copied from the node. RocksDB names the file; if it names none, every file that was taken over is
//! read again; if none of these is damaged, no file is taken over any more. So the number of captures has a limit, and the last
//! one consists of the node's files only.
//!
//! Invariant: an earlier backup is noted as damaged only after its own file was read: by its checksum, or by RocksDB.

use std::path::Path;

use crate::backups::reread::Base;
use crate::capture::rocksdb::chain_cut::{Cut, Heights};
use crate::capture::rocksdb::engine;
use crate::capture::rocksdb::live_files;
use crate::capture::rocksdb::{self, Capture};
use crate::control::Phase;
use crate::database_files::immutable_number;
use crate::disk;
use crate::error::{Error, Kind, Result};
use crate::fault::Fault;
use crate::service::making::Making;

/// How often a capture is repeated because RocksDB names a file that was taken over.
const MAX_NAMED: u32 = 3;

/// A capture of RocksDB.
pub(crate) struct Capturing<'a, 'm> {
    pub(crate) making: &'a Making<'m>,
    /// The new directory.
    pub(crate) to: &'a Path,
    /// The earlier backup whose files are taken over; it loses those that are damaged.
    pub(crate) base: &'a mut Option<Base>,
    /// Gets a sentence for each damaged file.
    pub(crate) warnings: &'a mut Vec<String>,
}

impl Capturing<'_, '_> {
    /// Captures RocksDB, and reads its cut if this program can.
    pub(crate) fn run(mut self) -> Result<(Capture, Option<Cut>)> {
        let Making { sources, copier, .. } = *self.making;
        let control = copier.control;
        let mut tries_count = 0;
        loop {
            control.enter(Phase::Rocksdb);
            control.check()?;
            let earlier = self.base.as_ref().map(|base| &base.files);
            let capture = match rocksdb::capture(sources, self.to, earlier, copier) {
                Err(e) if e.kind() == Kind::Damaged && self.base.is_some() => {
                    self.give_up_all(&e.chain());
                    disk::remove_tree(self.to, &|| true)?;
                    continue;
                }
                other => other?,
            };
            if engine::require("reading the heights").is_err() {
                return Ok((capture, None));
            }
            control.enter(Phase::Heights);
            let (kind, fault) = match rocksdb::read_cut(self.to, self.making.program(), control) {
                Ok(Heights::Cut(cut)) => return Ok((capture, cut)),
                Ok(Heights::Damaged(fault)) => (Kind::Damaged, fault),
                Ok(Heights::Unread(fault)) => (Kind::Io, fault),
                // A crash may have its cause in the content.
                Err(e) if matches!(e.kind(), Kind::Damaged | Kind::Database) => {
                    (e.kind(), Fault { file: String::new(), why: e.chain() })
                }
                Err(e) => return Err(e),
            };
            let fault = Fault::of_rocksdb(fault);
            let number = fault.table().and_then(immutable_number);
            let is_reused = |number: u64| capture.brought.find(number).is_some_and(|came| came.reused);
            let is_hopeless = match kind {
                // Only of a file that was taken over is there another one.
                Kind::Io => !number.is_some_and(is_reused),
                // A damaged WAL is the node's own.
                _ => number.is_none() && !capture.warnings.is_empty(),
            };
            if is_hopeless || capture.brought.reused().next().is_none() {
                return Err(capture.blame(Error::new(kind, format!("RocksDB cannot read the copy: {fault}"))));
            }
            tries_count += 1;
            self.mend(&fault, &capture, tries_count)?;
            log::info!("capturing rocksdb again reason={:?}", fault.to_string());
            disk::remove_tree(self.to, &|| true)?;
        }
    }

    /// Makes the base lose the files that may be the cause of `fault`.
    fn mend(&mut self, fault: &Fault, capture: &Capture, tries_count: u32) -> Result<()> {
        let Making { catalog, copier, started_ms, .. } = *self.making;
        let Some(base) = self.base.as_mut() else { return Ok(()) };
        let number = fault.table().and_then(immutable_number);
        let reused = number.filter(|number| capture.brought.find(*number).is_some_and(|came| came.reused));
        if let Some(number) = reused.filter(|_| tries_count <= MAX_NAMED) {
            if is_bad_there(base, number, fault, self.making)? {
                base.give_up(fault, catalog, started_ms);
                self.warnings.push(base.warning(fault));
            } else {
                log::warn!("file of an earlier backup not used id={} file={}", base.id, fault.file);
                base.files.give_up(number);
            }
            return Ok(());
        }
        let live = live_files::in_directory(self.to)?;
        let faults = base.read_share(&live, 100, started_ms, catalog, copier.control)?;
        self.warnings.extend(faults.iter().map(|fault| base.warning(fault)));
        if faults.is_empty() || tries_count > MAX_NAMED {
            self.give_up_all(&fault.to_string());
        }
        Ok(())
    }

    fn give_up_all(&mut self, why: &str) {
        if let Some(base) = self.base.take() {
            log::warn!("earlier backup not used id={} reason={why:?}", base.id);
            let warning = format!("no file of backup {} was taken over ({why}): all are copied from the node", base.id);
            self.warnings.push(warning);
        }
    }
}

/// Whether the file of the earlier backup is damaged there too; otherwise it only differs from the node's.
fn is_bad_there(base: &mut Base, number: u64, fault: &Fault, making: &Making<'_>) -> Result<bool> {
    let control = making.copier.control;
    if let Some(is_bad) = base.is_bad(number, control)? {
        return Ok(is_bad);
    }
    let there = rocksdb::read_cut(base.files.directory(), making.program(), control)?;
    Ok(match there {
        Heights::Damaged(there) | Heights::Unread(there) => Fault::of_rocksdb(there).file == fault.file,
        Heights::Cut(_) => false,
    })
}
