//! The earlier backup of whose Pact databases a new backup makes increments.
//!
//! It is the newest good one that has Pact, unless damage is known of it or its start-up proof says that no node starts from it: then
//! the one before. Each of its databases must be a regular file, of the size in the record, with a header that fits this size.
//!
//! Invariants: the backup cannot be deleted while a [`PactBase`] exists; its files are only read. A copy that shares blocks with the
//! node's own file is no base: the increment would share them too, and the node's writes would break its file into pieces.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::backups::catalog::{Catalog, Found};
use crate::backups::damage;
use crate::capture::in_use::{self, InUse};
use crate::capture::sqlite::attempt::EarlierDatabase;
use crate::capture::sqlite::header_fault;
use crate::capture::sqlite::increment::PAGE_SIZE_AT;
use crate::chainweb::start::Verdict;
use crate::chainweb::{self, SQLITE};
use crate::disk::nofollow;
use crate::error::{IoContext, Result};
use crate::fault::Fault;
use crate::format::layout;
use crate::format::pact_sums::PactSums;
use crate::format::record::{Method, PactPart, Record, Status};
use crate::id::BackupId;

/// The part of a database that is expected to have changed if nothing is known of the last change: one divided by this.
const USUAL_DIVISOR: u64 = 4;

/// The earlier backup.
#[derive(Debug)]
pub(crate) struct PactBase {
    pub(crate) id: BackupId,
    directory: PathBuf,
    record: Record,
    sums: PactSums,
    _in_use: InUse,
}

impl PactBase {
    /// The newest backup that can be one, locked; one that cannot be read is passed over.
    pub(crate) fn find(catalog: &Catalog) -> Result<Option<PactBase>> {
        for found in catalog.readable()? {
            let id = found.id.clone();
            let opened = is_trusted(catalog, &found)
                .and_then(|trusted| if trusted { PactBase::open(catalog, found) } else { Ok(None) });
            match opened {
                Ok(None) => {}
                Ok(base) => return Ok(base),
                Err(e) => log::warn!("no increment of id={id} reason={:?}", e.chain()),
            }
        }
        Ok(None)
    }

    fn open(catalog: &Catalog, found: Found) -> Result<Option<PactBase>> {
        let path = catalog.path(&found.id);
        let Some(record) = found.record else { return Ok(None) };
        // It may have been deleted just before it was locked: then its files cannot be opened.
        let Some(in_use) = in_use::share(&path)? else { return Ok(None) };
        let (directory, sums) = (layout::directory_in(&path, SQLITE), PactSums::read(&path, &found.id));
        Ok(Some(PactBase { id: found.id, directory, record, sums, _in_use: in_use }))
    }

    fn part(&self, file: &str) -> Option<&PactPart> {
        self.record.pact.iter().find(|part| part.file == file)
    }

    /// Its database in a file of this name; a sentence if there is one and it cannot be used.
    pub(crate) fn database(&mut self, file: &str) -> std::result::Result<Option<EarlierDatabase>, String> {
        let Some(part) = self.part(file) else { return Ok(None) };
        let (part_bytes, method) = (part.bytes, part.method);
        let unfit = |why: &str| format!("the database in backup {}: {why}", self.id);
        if method == Method::RawClone {
            return Err(unfit("it shares blocks with the node's own file"));
        }
        let path = self.directory.join(file);
        let open = || -> Result<EarlierDatabase> {
            let failed = || format!("cannot open {}", path.display());
            let opened = nofollow::open_regular(&path).context(failed)?;
            let bytes = opened.metadata().context(failed)?.len();
            let mut page_size = [0; 2];
            opened.read_exact_at(&mut page_size, PAGE_SIZE_AT).context(failed)?;
            Ok(EarlierDatabase { id: self.id.clone(), file: opened, bytes, page_size, sums: None })
        };
        let opened = open().map_err(|e| unfit(&e.chain()))?;
        if opened.bytes != part_bytes {
            return Err(unfit("its size differs from the size in the record"));
        }
        if let Some(fault) = header_fault(&path).map_err(|e| unfit(&e.chain()))? {
            return Err(unfit(fault));
        }
        let sums = self.sums.0.remove(file).filter(|sums| sums.bytes == part_bytes);
        Ok(Some(EarlierDatabase { sums, ..opened }))
    }

    /// The bytes that an increment of a database of now `bytes` bytes probably writes: twice as many as the last one, or a share of the
    /// database; and what was added to the database. `None` if it has no such database.
    pub(crate) fn expected_bytes(&self, file: &str, bytes: u64) -> Option<u64> {
        let part = self.part(file).filter(|part| part.method != Method::RawClone)?;
        let changed_bytes = part.written_bytes.map_or(part.bytes / USUAL_DIVISOR, |written| written.saturating_mul(2));
        Some(changed_bytes.saturating_add(bytes.saturating_sub(part.bytes)).min(bytes))
    }

    /// Notes that its database is damaged.
    pub(crate) fn note_damage(&self, file: &str, why: &str, catalog: &Catalog, now_ms: u64) {
        let fault = Fault { file: chainweb::path_in(SQLITE, file), why: why.to_owned() };
        log::error!("backup damaged id={} reason={:?}", self.id, fault.to_string());
        // The new backup shares nothing with this database in any case.
        if let Err(e) = damage::note_more(catalog, &self.id, 1, now_ms) {
            log::warn!("damage not noted id={} reason={:?}", self.id, e.chain());
        }
    }
}

/// Whether a backup is good, with Pact, and neither damaged nor refuted as far as that is known.
fn is_trusted(catalog: &Catalog, found: &Found) -> Result<bool> {
    if found.status != Status::Done || !found.scope.has_pact() || found.record.is_none() {
        return Ok(false);
    }
    let is_refuted = || Ok(catalog.starts(&found.id)?.is_some_and(|proof| matches!(proof.verdict, Verdict::No { .. })));
    Ok(!catalog.is_damaged(&found.id)? && !is_refuted()?)
}
