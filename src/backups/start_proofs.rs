//! Start-up proofs of finished backups: made, and noted in `starts.json` of the backup.
//!
//! Invariants
//! - A result that is not known never replaces one that is, and a sample no refutation.
//! - Only a refutation has consequences: such a backup is never `latest`, and is no reason to delete another one. Its files may be
//!   whole nevertheless, so it is not noted as damaged.

use std::path::Path;
use std::time::Instant;

use crate::backups::catalog::{Catalog, Found};
use crate::capture::in_use;
use crate::capture::rocksdb::engine;
use crate::capture::start_proof::{self, Bounds};
use crate::chainweb::ROCKSDB;
use crate::chainweb::start::{Extent, Verdict};
use crate::clock::now_ms;
use crate::control::Control;
use crate::disk;
use crate::error::Result;
use crate::format::layout::{self, STARTS_FILE};
use crate::format::start_proof::StartProof;
use crate::id::BackupId;

/// Proves whether a node starts from the backup `id` in `path`; `None` if that took longer than `bounds` permit.
///
/// # Errors
/// As [`start_proof::prove`], except that a program without RocksDB does not know the result.
pub(crate) fn prove(
    (id, path): (&BackupId, &Path),
    program: Option<&Path>,
    bounds: Bounds,
    control: &Control,
) -> Result<Option<StartProof>> {
    let (at_ms, began) = (now_ms(), Instant::now());
    let verdict = match engine::require("the start-up proof") {
        Ok(()) => start_proof::prove(&layout::directory_in(path, ROCKSDB), program, bounds, control)?,
        Err(e) => Some(Verdict::Unknown { reason: e.chain() }),
    };
    let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let program = env!("CARGO_PKG_VERSION").to_owned();
    Ok(verdict.map(|verdict| StartProof { verdict, id: id.clone(), at_ms, duration_ms, program }))
}

/// What is known of a backup after a new proof: that, or the earlier one that it does not replace.
pub(crate) fn settled(catalog: &Catalog, proof: StartProof) -> Result<StartProof> {
    Ok(match catalog.starts(&proof.id)? {
        Some(earlier) if !proof.replaces(&earlier) => earlier,
        _ => proof,
    })
}

/// Notes a proof in its backup, and logs it. The caller has settled it with an earlier one.
pub(crate) fn note(catalog: &Catalog, proof: &StartProof) -> Result<()> {
    let id = &proof.id;
    match &proof.verdict {
        Verdict::Yes(start) => {
            log::debug!("start proved id={id} cut_height={} replay={}", start.cut_height, start.replay_sum());
            start.warnings.iter().for_each(|warning| log::warn!("start-up warning id={id} warning={warning:?}"));
        }
        Verdict::No { reason } => log::error!("a node does not start from the backup id={id} reason={reason:?}"),
        Verdict::Unknown { reason } => log::debug!("start not proved id={id} reason={reason:?}"),
    }
    let bytes = serde_json::to_vec(proof).expect("a proof has only string keys");
    let path = catalog.path(id);
    disk::replace(&path, STARTS_FILE, &bytes, catalog.owner()).inspect_err(|_| {
        // The backup may be good without it, and then nothing else would remove what was begun.
        let _ = disk::end_replace(&path, STARTS_FILE);
    })
}

/// Proves the newest backup of ours that is done, if that was not done yet; returns its identifier.
pub(crate) fn prove_newest(catalog: &Catalog, program: Option<&Path>, control: &Control) -> Result<Option<BackupId>> {
    let Some(newest) = catalog.readable()?.find(Found::is_done_by_us) else { return Ok(None) };
    if catalog.starts(&newest.id)?.is_some() {
        return Ok(None);
    }
    let path = catalog.path(&newest.id);
    let proved = in_use::yielding(&path, control, || {
        let proof = prove((&newest.id, &path), program, Bounds::of(Extent::BOUNDED), control)?;
        proof.map(|proof| note(catalog, &proof)).transpose()
    })?;
    Ok(proved.flatten().map(|()| newest.id))
}
