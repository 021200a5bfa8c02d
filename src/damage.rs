//! What is known to be damaged: the note about the last verification of a backup (`verified.json`), and the same note in every
//! other backup that has a damaged file as the same inode.
//!
//! Invariant: a backup is noted for a file only if the fault is in the file of exactly that name, and that name is the same
//! inode there.

use crate::catalog::{Catalog, shared_identity};
use crate::commit::WHOLE;
use crate::disk;
use crate::error::Result;
use crate::id::BackupId;
use crate::live_files::is_immutable;
use crate::record::{VERIFIED_FILE, Verified};
use crate::verify::{Depth, Verification};

/// What the note about a deep verification calls it.
const DEEP: &str = "deep";

/// How the paths of RocksDB's files begin.
const ROCKSDB: &str = "0/rocksDb/";

/// Writes down in the backup that it was verified, and how that went. A quick verification without a fault says less than a
/// deep one before it: it changes nothing then.
pub(crate) fn note(catalog: &Catalog, id: &BackupId, depth: Depth, faults_count: u64, at_ms: u64) -> Result<()> {
    let depth = if depth == Depth::Deep { DEEP } else { "quick" }.to_owned();
    if depth != DEEP && faults_count == 0 && catalog.verified(id)?.is_some_and(|before| before.depth == DEEP) {
        return Ok(());
    }
    let verified = Verified { depth, at_ms, faults_count };
    let bytes = serde_json::to_vec(&verified).expect("a verification has only string keys");
    disk::replace(&catalog.path(id), VERIFIED_FILE, &bytes, catalog.owner())
}

/// Notes the same damage in every other backup that has a damaged SST as the same file: a second name of it is as bad. Without
/// a damaged SST, nothing happens.
pub(crate) fn note_sharers(
    catalog: &Catalog,
    id: &BackupId,
    depth: Depth,
    found: &Verification,
    at_ms: u64,
) -> Result<()> {
    let directory = |id: &BackupId| catalog.path(id).join(WHOLE).join("rocksDb");
    let mut damaged = Vec::new();
    for name in found.faults.iter().filter_map(|fault| fault.file.strip_prefix(ROCKSDB)) {
        if is_immutable(name)
            && !damaged.iter().any(|(known, _)| *known == name)
            && let Some(identity) = shared_identity(&directory(id).join(name))
        {
            damaged.push((name, identity));
        }
    }
    if damaged.is_empty() {
        return Ok(());
    }
    for other in catalog.readable()?.filter(|other| other.id != *id && other.record.is_some()) {
        let path = directory(&other.id);
        let has = |(name, identity): &&(&str, _)| shared_identity(&path.join(name)) == Some(*identity);
        let count = damaged.iter().filter(has).count() as u64;
        if count > 0 {
            log::error!("backup damaged id={} reason=\"it shares a file with backup {id}, which is\"", other.id);
            note(catalog, &other.id, depth, count, at_ms)?;
        }
    }
    Ok(())
}
