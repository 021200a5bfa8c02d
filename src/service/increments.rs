//! The increments of the Pact databases in one backup: whether they are possible, of which earlier backup, and what is noted about them.
//!
//! Invariant: a database that is damaged in the earlier backup is copied from the node as a whole; the damage is noted in that backup,
//! so that no later one makes an increment of it.

use std::ffi::OsStr;
use std::path::Path;

use crate::backups::commit::Unfinished;
use crate::backups::pact_base::PactBase;
use crate::capture::sqlite::attempt::EarlierDatabase;
use crate::capture::sqlite::{self, Copied};
use crate::config::PactMethod;
use crate::disk;
use crate::disk::increment::{Refusal, can_clone};
use crate::error::Result;
use crate::format::layout::PACT_SUMS_FILE;
use crate::format::pact_sums::PactSums;
use crate::format::record::PactPart;
use crate::service::making::Making;

/// What a backup needs.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Needs {
    /// The bytes that it writes.
    pub(crate) space_bytes: u64,
    /// The bytes that it copies, or compares.
    pub(crate) work_bytes: u64,
}

/// The increments of one backup.
pub(crate) struct Increments {
    /// Whether files of the backup can share blocks, or be pairs on the same base, with those of another one: then the sums of its
    /// databases are kept.
    pub(crate) are_possible: bool,
    base: Option<PactBase>,
    /// Why the database that is copied now has no earlier one.
    unfit: Option<String>,
    sums: PactSums,
}

impl Increments {
    /// Finds the earlier backup.
    pub(crate) fn prepare(backup: &Unfinished, making: &Making<'_>) -> Result<Increments> {
        let method = making.config.pact_method;
        let are_possible = backup.record.scope.has_pact()
            && match method {
                PactMethod::Auto => can_clone(&backup.partial())?,
                PactMethod::Delta => true,
                PactMethod::Copy | PactMethod::Clone => false,
            };
        let base = if are_possible { PactBase::find(making.catalog, method)? } else { None };
        if let Some(base) = &base {
            log::debug!("increments of id={}", base.id);
        }
        Ok(Increments { are_possible, base, unfit: None, sums: PactSums::default() })
    }

    /// Adds what a database probably needs.
    pub(crate) fn add_needs(&self, database: &Path, needs: &mut Needs) -> Result<()> {
        let needed = sqlite::needed_bytes(database)?;
        let name = database.file_name().and_then(OsStr::to_str);
        let expected = self.base.as_ref().zip(name).and_then(|(base, name)| base.expected_bytes(name, needed));
        needs.space_bytes = needs.space_bytes.saturating_add(expected.unwrap_or(needed));
        needs.work_bytes = needs.work_bytes.saturating_add(needed);
        Ok(())
    }

    /// The database of this name in the earlier backup, if an increment can be made of it.
    pub(crate) fn database(&mut self, name: &OsStr) -> Option<EarlierDatabase> {
        self.unfit = None;
        let (base, name) = (self.base.as_mut()?, name.to_str()?);
        base.database(name).unwrap_or_else(|why| {
            log::warn!("no increment database={name} reason={why:?}");
            self.unfit = Some(why);
            None
        })
    }

    /// Takes a copy: its sums, why it is no increment, and the damage that was found.
    pub(crate) fn take(&mut self, copied: Copied, backup: &mut Unfinished, making: &Making<'_>) -> PactPart {
        let Copied { mut part, sums, base_sums, refusal } = copied;
        part.copied_because = part.copied_because.or(self.unfit.take());
        let (of_file, of_fold) = if part.pair.is_some() { (base_sums, sums) } else { (sums, None) };
        self.sums.files.extend(of_file.map(|sums| (part.file.clone(), sums)));
        self.sums.folds.extend(of_fold.map(|sums| (part.file.clone(), sums)));
        if let (Some(base), Some(refusal)) = (&self.base, refusal.filter(|refusal| refusal.is_damaged)) {
            base.note_damage(&part.file, &refusal.why, making.catalog, making.started_ms);
            let Refusal { why, is_in_source, .. } = refusal;
            let node = if is_in_source {
                "the node's database has the same bytes, so it is damaged too if it shares blocks with that backup (after a restore that \
                 cloned): check it, and restore the node from an older backup if need be"
            } else {
                "for this backup it was copied again from the node"
            };
            backup.record.warnings.push(format!("damage: {why}; {node}"));
        }
        part
    }

    /// Writes the sums, for the next backup. Durable when this returns.
    pub(crate) fn keep_sums(self, backup: &Unfinished, making: &Making<'_>) -> Result<()> {
        if !self.are_possible {
            return Ok(());
        }
        let path = making.catalog.path(backup.id());
        disk::replace(&path, PACT_SUMS_FILE, &self.sums.to_bytes(backup.id()), making.copier.owner)
    }
}
