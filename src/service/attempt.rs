//! One backup: filled, verified as it is configured, committed. Once more from the beginning if what it took over from an earlier
//! backup turns out bad only now: the verification notes that there, and the second time those files come from the node.
//!
//! Invariant: nothing is committed that the verification did not find good.

use std::cell::Cell;
use std::path::Path;

use crate::backups::catalog::Catalog;
use crate::backups::commit::Unfinished;
use crate::backups::damage;
use crate::backups::verify;
use crate::backups::verify::Depth;
use crate::capture::source::Sources;
use crate::config::{Config, Verify};
use crate::control::Control;
use crate::error::{Kind, Result};
use crate::format::record::Record;
use crate::service::job;

/// What a backup is made of, and where; `now_ms` is the clock.
pub(crate) struct Making<'a> {
    pub(crate) catalog: &'a Catalog,
    pub(crate) sources: &'a Sources,
    pub(crate) config: &'a Config,
    pub(crate) control: &'a Control,
    pub(crate) now_ms: &'a dyn Fn() -> u64,
}

impl Making<'_> {
    /// Makes the backup. After an error it is unfinished.
    pub(crate) fn run(&self, backup: &mut Unfinished) -> Result<()> {
        for may_repeat in [true, false] {
            let (manifest, unsynced) = job::fill(backup, self.catalog, self.sources, self.config, self.control)?;
            let sharers_count = Cell::new(0);
            let check = |path: &Path, record: &Record| self.check(path, record, &sharers_count);
            match backup.commit(manifest, unsynced, (self.now_ms)(), self.control, &check) {
                Err(e) if may_repeat && e.kind() == Kind::Damaged && sharers_count.get() > 0 => {
                    log::warn!("filling the backup again id={} reason={:?}", backup.id(), e.chain());
                    backup.begin_again(self.catalog, &e.chain())?;
                }
                other => return other,
            }
        }
        Ok(())
    }

    /// Verifies a filled backup. Counts in `sharers_count` the other backups from which it has a damaged file.
    fn check(&self, path: &Path, record: &Record, sharers_count: &Cell<usize>) -> Result<()> {
        let depth = match self.config.verify {
            Verify::None => return Ok(()),
            Verify::Quick => Depth::Quick,
            Verify::Deep => Depth::Deep,
        };
        let program = self.config.heights_program.as_deref();
        let verification = verify::verify(path, Some(record), depth, program, self.control)?;
        let noted = damage::note_sharers(self.catalog, &record.id, &verification.faults, (self.now_ms)());
        // Where files are the node's own, another capture would have the same.
        if record.rocksdb.as_ref().is_some_and(|rocksdb| rocksdb.oldest_read_ms.is_some()) {
            sharers_count.set(noted.as_ref().map_or(0, |count| *count));
        }
        // The damage is the reason, also if it could not be noted elsewhere.
        verify::require_good(&verification).and(noted)?;
        // That it was quickly verified goes without saying: it would not be done.
        match depth {
            Depth::Quick => Ok(()),
            Depth::Deep => damage::note(self.catalog, &record.id, depth, &[], (self.now_ms)()),
        }
    }
}
