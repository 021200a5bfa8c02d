//! Deletes the backups that a retention rule does not keep; `retention` has the rules.
//!
//! Invariants
//! - Before a backup is deleted, the newest good one, and the newest good one with Pact, which are kept, are verified quickly. So no
//!   backup is deleted because of one that only seems to be good, in either scope.
//! - A backup that cannot be read is kept, is no reason to delete another one, and does not keep the others from being deleted.

use std::path::Path;

use crate::backups::catalog::{Catalog, Found, is_there};
use crate::backups::operations::{delete, note, refutation, share};
use crate::backups::retention::{Candidate, Verdict, good_newest_first, judge};
use crate::backups::verification::Verification;
use crate::backups::verify::{self, VerifyOptions};
use crate::config::Depth;
use crate::config::schedule::Policy;
use crate::control::Control;
use crate::disk::fault_gate;
use crate::error::{Error, Kind, Result};
use crate::format::layout::VERIFIED_FILE;
use crate::format::record::Status;
use crate::id::BackupId;

/// Every backup, newest first, with its verdict.
type Judged = Vec<(Candidate, Verdict)>;

/// Judges every backup by `policy`, and deletes those that it does not keep. A backup that is in use, was pinned meanwhile or cannot
/// be deleted is kept, and its verdict says so. Before any is deleted, the newest good backup, and the newest good one with Pact, are
/// verified quickly; one with faults counts as damaged. One that cannot be read is kept, counts for no rule, and prevents nothing.
///
/// # Errors
/// [`Kind::Usage`]: no such directory. [`Kind::Io`]: it cannot be listed.
pub fn prune_backups(directory: &Path, policy: Policy) -> Result<Vec<(Candidate, Verdict)>> {
    let catalog = Catalog::manage(directory)?;
    let judged = prune(&catalog, policy)?;
    catalog.sweep_or_warn();
    Ok(judged)
}

/// The same for a catalog that is open; the next sweep removes the data.
pub(crate) fn prune(catalog: &Catalog, policy: Policy) -> Result<Vec<(Candidate, Verdict)>> {
    let note_quick = |found: &Found, verification: &Verification| note(catalog, found, Depth::Quick, verification);
    let (found, mut judged) = judge_all(catalog, policy, &note_quick)?;
    fault_gate::point("prune-judged", catalog.directory());
    for (found, (_, verdict)) in found.iter().zip(&mut judged).filter(|(_, (_, v))| *v == Verdict::Delete) {
        let Some(found) = found else { continue };
        if let Err(e) = delete(catalog, found) {
            *verdict = undeleted(catalog, &found.id, &e);
        }
    }
    Ok(judged)
}

/// What [`prune_backups`] would do. Nothing is written.
///
/// # Errors
/// As [`prune_backups`].
pub fn rehearse_prune(directory: &Path, policy: Policy) -> Result<Vec<(Candidate, Verdict)>> {
    Ok(judge_all(&Catalog::view(directory)?, policy, &|_, _| ())?.1)
}

/// Every backup, and its verdict after a quick verification of the newest good backup and of the newest good one with Pact: the others are
/// deleted because these are kept. One with faults is given to `note`, it counts as damaged, and the next newest is verified.
fn judge_all(
    catalog: &Catalog,
    policy: Policy,
    note: &dyn Fn(&Found, &Verification),
) -> Result<(Vec<Option<Found>>, Judged)> {
    let (found, mut candidates): (Vec<_>, Vec<_>) = read_all(catalog)?.into_iter().unzip();
    let mut unread: Vec<usize> = (0..found.len()).filter(|at| found[*at].is_none()).collect();
    let mut verified = Vec::new();
    let verdicts = loop {
        let mut verdicts = judge(&candidates, policy);
        unread.iter().for_each(|at| verdicts[*at] = Verdict::Unread);
        let good = good_newest_first(&candidates);
        let with_pact = good.iter().find(|at| candidates[**at].has_pact);
        let next = good.first().into_iter().chain(with_pact).copied().find(|at| !verified.contains(at));
        // Each turn verifies one more, or marks one more as damaged.
        let Some(at) = next.filter(|_| verdicts.contains(&Verdict::Delete)) else { break verdicts };
        let Some(backup) = &found[at] else { break verdicts };
        match verify_quickly(catalog, backup) {
            Ok(verification) if verification.faults.is_empty() => {
                verified.push(at);
                continue;
            }
            Ok(verification) => {
                log::warn!("backup damaged id={} reason={:?}", backup.id, verification.faults[0].to_string());
                note(backup, &verification);
            }
            Err(e) if e.kind() == Kind::NotFound => {}
            // It may be good, so it is kept; but no other backup is deleted because of it.
            Err(e) => {
                log::warn!("backup not verified id={} reason={:?}", backup.id, e.chain());
                unread.push(at);
            }
        }
        candidates[at].damaged = true;
    };
    Ok((found, candidates.into_iter().zip(verdicts).collect()))
}

/// Every backup, newest first, and what decides about it. One that cannot be read, or whose notes cannot, is logged: it may be good, and
/// it may be known to be damaged.
fn read_all(catalog: &Catalog) -> Result<Vec<(Option<Found>, Candidate)>> {
    let mut all = Vec::new();
    for id in catalog.ids_newest_first()? {
        let read = catalog.find(&id).and_then(|found| found.map(|f| Ok((candidate(catalog, &f)?, f))).transpose());
        match read {
            Ok(None) => {}
            Ok(Some((candidate, found))) => all.push((Some(found), candidate)),
            Err(e) => {
                log::warn!("backup not read id={id} reason={:?}", e.chain());
                all.push((None, unknown(id)));
            }
        }
    }
    Ok(all)
}

fn verify_quickly(catalog: &Catalog, found: &Found) -> Result<Verification> {
    let _in_use = share(catalog, &found.id)?;
    let options = VerifyOptions { depth: Depth::Quick, program: None };
    verify::verify(&catalog.path(&found.id), found.record.as_ref(), options, &Control::default())
}

/// The verdict of a backup that could not be deleted. The others are deleted all the same.
fn undeleted(catalog: &Catalog, id: &BackupId, why: &Error) -> Verdict {
    if matches!(is_there(&catalog.path(id)), Ok(false)) {
        return Verdict::Gone;
    }
    match why.kind() {
        Kind::Busy => Verdict::Keep("in use"),
        Kind::Refused => Verdict::Keep("pinned"),
        _ => {
            log::error!("backup not deleted id={id} reason={:?}", why.chain());
            Verdict::Failed
        }
    }
}

/// A backup of which nothing is known: it counts for no rule.
fn unknown(id: BackupId) -> Candidate {
    Candidate {
        started_ms: id.millis().unwrap_or(0),
        id,
        status: Status::Failed,
        foreign: false,
        pinned: false,
        damaged: true,
        refuted: false,
        has_pact: false,
    }
}

/// What decides about a backup.
///
/// # Errors
/// It cannot be read, or the note of its verification makes no sense: it counts as damaged, but it may be the only good backup.
fn candidate(catalog: &Catalog, found: &Found) -> Result<Candidate> {
    if catalog.verified(&found.id)?.is_some_and(|verified| verified.is_unreadable()) {
        let note = catalog.path(&found.id).join(VERIFIED_FILE);
        return Err(Error::new(Kind::Damaged, format!("{} is damaged: verify the backup", note.display())));
    }
    Ok(Candidate {
        id: found.id.clone(),
        status: found.status,
        foreign: found.record.is_none(),
        pinned: catalog.is_pinned(&found.id)?,
        damaged: catalog.is_damaged(&found.id)?,
        refuted: refutation(catalog, &found.id)?.is_some(),
        has_pact: found.scope.has_pact(),
        started_ms: found.started_ms,
    })
}
