//! Notes known damage: in the note about the last verification of a backup (`verified.json`), and in that of every other backup
//! in which a damaged file is the same inode.
//!
//! The base of delta pairs is such a file, too.
//!
//! Invariant: damage is noted in another backup only if the file of the same name there is the same inode, and never because of a
//! `BLAKE2SUMS`, which may be wrong (see `verification`). Notes about single files add up; a verification of the whole backup
//! replaces them.

use std::collections::BTreeSet;

use crate::backups::catalog::{Catalog, shared_identity};
use crate::backups::verification::Verification;
use crate::chainweb::{ROCKSDB, SQLITE, name_in};
use crate::config::Depth;
use crate::disk;
use crate::error::Result;
use crate::fault::Fault;
use crate::format::layout::{self, VERIFIED_FILE};
use crate::format::record::Verified;
use crate::id::BackupId;

/// How many damaged files a note names at most. A later backup links no files of a backup with more.
const MAX_NAMES: usize = 1000;

/// Notes the result of a verification in the backup. A quick verification without a fault does not replace the note of a deep
/// one, which says more; one that is not whole adds to the note.
pub(crate) fn note(
    catalog: &Catalog,
    id: &BackupId,
    depth: Depth,
    verification: &Verification,
    at_ms: u64,
) -> Result<()> {
    let faults = &verification.faults;
    if depth == Depth::Quick && faults.is_empty() && catalog.verified(id)?.is_some_and(|before| before.is_deep()) {
        return Ok(());
    }
    let mut tables: BTreeSet<String> = faults.iter().filter_map(|fault| fault.table().map(str::to_owned)).collect();
    let (mut faults_count, mut has_others) = (faults.len() as u64, faults.iter().any(|fault| fault.table().is_none()));
    // A note that cannot be read now must not prevent this one.
    if verification.is_partial()
        && let Ok(Some(before)) = catalog.verified(id)
    {
        has_others |= before.faults_count > 0 && before.damaged.is_empty();
        tables.extend(before.damaged);
        faults_count = faults_count.max(before.faults_count).max(tables.len() as u64);
    }
    let damaged = if has_others || tables.len() > MAX_NAMES { BTreeSet::new() } else { tables };
    write(catalog, id, Verified { id: None, depth, at_ms, faults_count, damaged })
}

fn write(catalog: &Catalog, id: &BackupId, verified: Verified) -> Result<()> {
    let verified = Verified { id: Some(id.clone()), ..verified };
    let bytes = serde_json::to_vec(&verified).expect("a verification has only string keys");
    disk::replace(&catalog.path(id), VERIFIED_FILE, &bytes, catalog.owner())
}

/// The SSTs of a backup that are known to be damaged; `None` if there is other damage, too, or its place is unknown.
pub(crate) fn tables(catalog: &Catalog, id: &BackupId) -> Result<Option<BTreeSet<String>>> {
    Ok(match catalog.verified(id)? {
        None => Some(BTreeSet::new()),
        Some(verified) if verified.faults_count == 0 || !verified.damaged.is_empty() => Some(verified.damaged),
        Some(_) => None,
    })
}

/// Adds these damaged SSTs to the note of the backup, and to the note of every other backup that shares one of them.
pub(crate) fn note_tables(catalog: &Catalog, id: &BackupId, faults: &[Fault], at_ms: u64) -> Result<()> {
    let added = add(catalog, id, &faults.iter().filter_map(Fault::table).collect::<Vec<_>>(), at_ms);
    added.and(note_sharers(catalog, id, faults, at_ms).map(drop))
}

/// Notes in a backup that a file of it is damaged, and logs it. That it cannot be noted is no error: a user may be permitted to read a
/// backup but not to write to it.
pub(crate) fn report(catalog: &Catalog, id: &BackupId, fault: &Fault, at_ms: u64) {
    log::error!("backup damaged id={id} reason={:?}", fault.to_string());
    let noted = match fault.table() {
        Some(_) => note_tables(catalog, id, std::slice::from_ref(fault), at_ms),
        None => {
            note_more(catalog, id, 1, at_ms).and(note_sharers_of_pact(catalog, id, &[&fault.file], at_ms).map(drop))
        }
    };
    if let Err(e) = noted {
        log::warn!("damage not noted id={id} reason={:?}", e.chain());
    }
}

/// Adds `count` damaged files to the note of a backup.
pub(crate) fn note_more(catalog: &Catalog, id: &BackupId, count: u64, at_ms: u64) -> Result<()> {
    let before_count = catalog.verified(id)?.map_or(0, |verified| verified.faults_count);
    let faults_count = before_count.saturating_add(count);
    write(catalog, id, Verified { id: None, depth: Depth::Deep, at_ms, faults_count, damaged: BTreeSet::new() })
}

/// Adds damaged SSTs to the note of a backup.
fn add(catalog: &Catalog, id: &BackupId, names: &[&str], at_ms: u64) -> Result<()> {
    let known = tables(catalog, id)?;
    let before_count = catalog.verified(id)?.map_or(0, |verified| verified.faults_count);
    let new_count =
        names.iter().filter(|name| known.as_ref().is_none_or(|known| !known.contains(**name))).count() as u64;
    let mut damaged = known.clone().unwrap_or_default();
    damaged.extend(names.iter().map(|name| (*name).to_owned()));
    // If there is other damage, too, the note does not list files.
    if known.is_none() || damaged.len() > MAX_NAMES {
        damaged.clear();
    }
    let faults_count = before_count.saturating_add(new_count);
    write(catalog, id, Verified { id: None, depth: Depth::Deep, at_ms, faults_count, damaged })
}

/// Notes the same damage, for which there is evidence in the content, in every other backup in which a damaged SST is the same file.
/// Returns the number of these backups.
pub(crate) fn note_sharers(catalog: &Catalog, id: &BackupId, faults: &[Fault], at_ms: u64) -> Result<usize> {
    let names = faults.iter().filter_map(Fault::table).collect();
    each_sharer(catalog, id, (ROCKSDB, names), &|other, shared| add(catalog, other, shared, at_ms))
}

/// The same of Pact databases, `0/sqlite/...`. A backup whose note names damage already keeps that note.
pub(crate) fn note_sharers_of_pact(catalog: &Catalog, id: &BackupId, files: &[&str], at_ms: u64) -> Result<usize> {
    let names = files.iter().filter_map(|file| name_in(SQLITE, file)).collect();
    each_sharer(catalog, id, (SQLITE, names), &|other, shared| match catalog.is_damaged(other)? {
        true => Ok(()),
        false => note_more(catalog, other, shared.len() as u64, at_ms),
    })
}

/// Gives every other backup of ours in which files of the backup `id` are the same, under a second name, to `note`, with the names that
/// they share. The files are in this directory. Returns the number of these backups; if one cannot be noted, the others are, and the
/// first error is returned.
fn each_sharer(
    catalog: &Catalog,
    id: &BackupId,
    (directory, names): (&str, BTreeSet<&str>),
    note: &dyn Fn(&BackupId, &[&str]) -> Result<()>,
) -> Result<usize> {
    let in_backup = |id: &BackupId| layout::directory_in(&catalog.path(id), directory);
    let with_identity = names.into_iter().map(|name| Some((name, shared_identity(&in_backup(id).join(name))?)));
    let damaged: Vec<_> = with_identity.flatten().collect();
    if damaged.is_empty() {
        return Ok(0);
    }
    let mut noted = Ok(0);
    for other in catalog.readable()?.filter(|other| other.id != *id && other.record.is_some()) {
        let path = in_backup(&other.id);
        let has = |(name, identity): &&(&str, _)| shared_identity(&path.join(name)) == Some(*identity);
        let shared: Vec<&str> = damaged.iter().filter(has).map(|(name, _)| *name).collect();
        if !shared.is_empty() {
            log::error!("backup damaged id={} reason=\"it shares a damaged file with backup {id}\"", other.id);
            let this = note(&other.id, &shared);
            noted = noted.and_then(|count| this.map(|()| count + 1));
        }
    }
    noted
}
