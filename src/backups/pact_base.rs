//! The earlier backup of whose Pact databases a new backup makes increments: clones with other blocks, or delta pairs.
//!
//! It is the newest good one that has Pact, unless damage is known of it or its start-up proof says that no node starts from it: then
//! the one before. Each of its databases must be a regular file, of the size in the record, with a header that fits this size.
//!
//! A pair is made on a file that was written as a base of pairs: it is read only, and its sums are known. The pairs on one base have
//! limits, because all of them are lost with it: [`MAX_BACKUPS`]; each WAL has at most a quarter of the size of the base, and together
//! they are smaller than it. Then the next backup gets a new base.
//!
//! Invariants: the backup cannot be deleted while a [`PactBase`] exists; its files are only read. A copy that shares blocks with the
//! node's own file is no base: the increment would share them too, and the node's writes would break its file into pieces.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use crate::backups::catalog::{Catalog, Found};
use crate::backups::damage;
use crate::capture::in_use::{self, InUse};
use crate::capture::sqlite::attempt::{EarlierDatabase, Linkable};
use crate::capture::sqlite::delta::{has_time_of, modified};
use crate::capture::sqlite::header_fault;
use crate::capture::sqlite::increment::PAGE_SIZE_AT;
use crate::chainweb::start::Verdict;
use crate::chainweb::{self, SQLITE};
use crate::config::PactMethod;
use crate::disk::nofollow;
use crate::error::{IoContext, Result};
use crate::fault::Fault;
use crate::format::layout;
use crate::format::pact_sums::PactSums;
use crate::format::record::{Method, PactPart, Record, Status};
use crate::id::BackupId;

/// The part of a database that is expected to have changed if nothing is known of the last change: one divided by this.
const USUAL_DIVISOR: u64 = 4;

/// A WAL may have this part of the size of its base: one divided by this.
const MAX_PART: u64 = 4;

/// How many backups have the same base at most, the first of them that for which it was written.
const MAX_BACKUPS: u32 = 30;

/// The earlier backup.
#[derive(Debug)]
pub(crate) struct PactBase {
    pub(crate) id: BackupId,
    directory: PathBuf,
    record: Record,
    sums: PactSums,
    /// How increments are made of it.
    method: PactMethod,
    _in_use: InUse,
}

impl PactBase {
    /// The newest backup that can be one, locked; one that cannot be read is passed over.
    pub(crate) fn find(catalog: &Catalog, method: PactMethod) -> Result<Option<PactBase>> {
        for found in catalog.readable()? {
            let id = found.id.clone();
            let opened = is_trusted(catalog, &found)
                .and_then(|trusted| if trusted { PactBase::open(catalog, found, method) } else { Ok(None) });
            match opened {
                Ok(None) => {}
                Ok(base) => return Ok(base),
                Err(e) => log::warn!("no increment of id={id} reason={:?}", e.chain()),
            }
        }
        Ok(None)
    }

    fn open(catalog: &Catalog, found: Found, method: PactMethod) -> Result<Option<PactBase>> {
        let path = catalog.path(&found.id);
        let Some(record) = found.record else { return Ok(None) };
        // It may have been deleted just before it was locked: then its files cannot be opened.
        let Some(in_use) = in_use::share(&path)? else { return Ok(None) };
        let (directory, sums) = (layout::directory_in(&path, SQLITE), PactSums::read(&path, &found.id));
        Ok(Some(PactBase { id: found.id, directory, record, sums, method, _in_use: in_use }))
    }

    fn part(&self, file: &str) -> Option<&PactPart> {
        self.record.pact.iter().find(|part| part.file == file)
    }

    /// Why no increment can be made of a database, as far as the record tells.
    fn unfit(&self, part: &PactPart) -> Option<&'static str> {
        if part.method == Method::RawClone {
            return Some("it shares blocks with the node's own file");
        }
        if self.method != PactMethod::Delta {
            return None;
        }
        match &part.pair {
            _ if part.mode.is_none() => Some("it was not written as a base of pairs"),
            Some(pair) if pair.deltas_count.saturating_add(1) >= MAX_BACKUPS => {
                Some("its base has as many pairs as it may have")
            }
            Some(pair) if pair.deltas_bytes >= pair.base_bytes => {
                Some("the pages that have changed since its base was written have become as many as those of the base")
            }
            _ => None,
        }
    }

    /// Its database in a file of this name; a sentence if there is one and it cannot be used.
    pub(crate) fn database(&mut self, file: &str) -> std::result::Result<Option<EarlierDatabase>, String> {
        let Some(part) = self.part(file).cloned() else { return Ok(None) };
        let unfit = |why: &str| format!("the database in backup {}: {why}", self.id);
        if let Some(why) = self.unfit(&part) {
            return Err(unfit(why));
        }
        let path = self.directory.join(file);
        let open = || -> Result<EarlierDatabase> {
            let failed = || format!("cannot open {}", path.display());
            let opened = nofollow::open_regular(&path).context(failed)?;
            let bytes = opened.metadata().context(failed)?.len();
            let mut page_size = [0; 2];
            opened.read_exact_at(&mut page_size, PAGE_SIZE_AT).context(failed)?;
            Ok(EarlierDatabase { id: self.id.clone(), file: opened, bytes, page_size, sums: None, linkable: None })
        };
        let opened = open().map_err(|e| unfit(&e.chain()))?;
        if opened.bytes != part.file_bytes() {
            return Err(unfit("its size differs from the size in the record"));
        }
        if let Some(fault) = header_fault(&path).map_err(|e| unfit(&e.chain()))? {
            return Err(unfit(fault));
        }
        let linkable = if self.method == PactMethod::Delta {
            Some(self.linkable(&part, &opened, path).map_err(|why| unfit(&why))?)
        } else {
            None
        };
        let file_bytes = part.file_bytes();
        let sums = self.sums.files.remove(file).filter(|sums| sums.bytes == file_bytes);
        if linkable.is_some() && sums.is_none() {
            return Err(format!("the database in backup {}: its sums are missing", self.id));
        }
        Ok(Some(EarlierDatabase { sums, linkable, ..opened }))
    }

    /// The file as a base of pairs; a sentence if it cannot be one.
    fn linkable(
        &self,
        part: &PactPart,
        opened: &EarlierDatabase,
        path: PathBuf,
    ) -> std::result::Result<Linkable, String> {
        let meta = opened.file.metadata().map_err(|e| e.to_string())?;
        if meta.mode() & 0o222 != 0 {
            return Err("it may be written to".to_owned());
        }
        let (made_by, deltas_bytes, deltas_count) = match &part.pair {
            None => (self.id.clone(), 0, 0),
            Some(pair) if !has_time_of(&meta, pair) => {
                return Err("its base has another time than in the record".to_owned());
            }
            Some(pair) => (part.base.clone().unwrap_or_else(|| self.id.clone()), pair.deltas_bytes, pair.deltas_count),
        };
        let max_wal_bytes = opened.bytes / MAX_PART;
        Ok(Linkable { path, made_by, modified: modified(&meta), max_wal_bytes, deltas_bytes, deltas_count })
    }

    /// The bytes that an increment of a database of now `bytes` bytes probably writes: twice as many as the last one, or a share of the
    /// database; and what was added to the database. `None` if it has no such database.
    pub(crate) fn expected_bytes(&self, file: &str, bytes: u64) -> Option<u64> {
        let part = self.part(file).filter(|part| self.unfit(part).is_none())?;
        let changed_bytes = part.written_bytes.map_or(part.bytes / USUAL_DIVISOR, |written| written.saturating_mul(2));
        Some(changed_bytes.saturating_add(bytes.saturating_sub(part.bytes)).min(bytes))
    }

    /// Notes that its database is damaged.
    pub(crate) fn note_damage(&self, file: &str, why: &str, catalog: &Catalog, now_ms: u64) {
        let fault = Fault { file: chainweb::path_in(SQLITE, file), why: why.to_owned() };
        // The new backup shares nothing with this database in any case.
        damage::report(catalog, &self.id, &fault, now_ms);
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
