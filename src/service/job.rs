//! One backup, start to end.
//!
//! ```text
//! begin   the record is written, the status map knows the job: its identifier may be handed out
//! run     fill, verify, note which hooks follow, commit, while the watchdog watches; after an error abandon
//! end     the one place that every job passes, once: done, failed, cancelled, panicked or stalled; its hooks are put into their queue
//! ```
//! A backup is filled a second time if a file that it took over from an earlier backup turns out damaged only when it is
//! verified: the verification notes the damage there, and the second time that file comes from the node.
//!
//! Invariants
//! - Nothing is committed that the verification did not find good.
//! - [`end`] does not touch the disk, and does not wait: the watchdog calls it for a job whose thread hangs. It logs when it has released
//!   the lock of the state.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backups::commit::{self, Unfinished};
use crate::backups::damage;
use crate::backups::start_proofs;
use crate::backups::verification::require_good;
use crate::backups::verify::{self, VerifyOptions};
use crate::capture::sqlite;
use crate::capture::start_proof::Bounds;
use crate::chainweb::PACT_EXTENSION;
use crate::chainweb::start::Extent;
use crate::clock::now_ms;
use crate::config::schedule::Schedule;
use crate::config::{Config, Depth};
use crate::control::Control;
use crate::disk::copy::Copier;
use crate::error::{Error, Kind, Result};
use crate::format::record::{Record, Scope, Status, Versions};
use crate::id::BackupId;
use crate::service::counters::Outcome;
use crate::service::fill;
use crate::service::hook_runs::{self, Refused};
use crate::service::making::Making;
use crate::service::shared::{Errand, Job, MakeRequest, Shared};
use crate::service::watchdog::Watched;

/// How long a start-up proof may delay a backup.
const PROOF_LIMIT: Duration = Duration::from_secs(5);

/// How a job ended.
enum Ending {
    /// Committed.
    Done(Box<Record>),
    /// Failed, cancelled or panicked.
    Failed {
        cause: Error,
        /// Whether the status on disk says so.
        is_on_disk: bool,
    },
    /// It made no progress for too long, and its thread hangs.
    Stalled,
}

/// A job whose identifier may be handed out.
pub(crate) struct Begun {
    pub(crate) backup: Unfinished,
    pub(crate) control: Arc<Control>,
    config: Arc<Config>,
}

/// Writes the record of a new job and puts the job into the status map: afterwards its identifier may be handed out.
pub(crate) fn begin(shared: &Shared, make: MakeRequest, schedule: Option<&Schedule>) -> Result<Begun> {
    let config = shared.config();
    shared.sources.require_no_half_restore()?;
    let scope = if make.backup_pact { Scope::RocksdbAndPact } else { Scope::Rocksdb };
    if make.backup_pact && shared.sources.sqlite.databases()?.is_empty() {
        let directory = shared.sources.sqlite.path().display();
        let context =
            format!("there are no Pact databases (*.{PACT_EXTENSION}) in {directory}; make a backup without Pact");
        return Err(Error::new(Kind::Usage, context));
    }
    let versions = Versions {
        chainweb_backup: env!("CARGO_PKG_VERSION").to_owned(),
        rocksdb: String::new(),
        sqlite: sqlite::library_version(),
        node: config.node_version.clone().unwrap_or_else(|| "unknown".to_owned()),
        chainweb: None,
    };
    let started_ms = now_ms();
    let schedule = schedule.map(ToString::to_string);
    let backup = Unfinished::create(&shared.catalog, scope, schedule.as_deref(), started_ms, versions)?;
    // The watchdog ends a job whose child makes no progress.
    let control = Arc::new(Control::limited(Arc::clone(&shared.limit)).with_stall_limit(Duration::ZERO));
    let (status, started) = (Status::InProgress, Instant::now());
    let (of_job, config_of_job) = (Arc::clone(&control), Arc::clone(&config));
    let job = Job { status, scope, started_ms, started, control: of_job, config: config_of_job, kept: None };
    shared.state.lock().jobs.insert(backup.id().clone(), job);
    shared.changes.add();
    Ok(Begun { backup, control, config })
}

/// Makes the backup, and ends its job. Returns whether the backup is done.
pub(crate) fn run(shared: &Arc<Shared>, begun: Begun) -> bool {
    let Begun { backup, control, config } = begun;
    let id = backup.id().clone();
    log::info!("backup started id={id} scope={}", backup.record.scope.word());
    let on_stall = {
        let (shared, id) = (Arc::clone(shared), id.clone());
        move || stall(&shared, &id)
    };
    let watched = Watched {
        control: Arc::clone(&control),
        backup: shared.catalog.path(&id),
        stall_limit: config.stall_limit,
        on_stall: Box::new(on_stall),
    };
    let ending = shared.watchers.watch(watched, || make(shared, &config, backup, &control));
    let has_stalled = shared.state.lock().jobs.get(&id).is_none_or(|job| job.status != Status::InProgress);
    if matches!(ending, Ending::Failed { .. }) && !has_stalled {
        hook_runs::plan(shared, &config, &id, Status::Failed);
    }
    if let Some(refused) = end(shared, &id, &ending) {
        hook_runs::refuse(shared, &refused);
    }
    matches!(ending, Ending::Done(_))
}

/// Fills, verifies and commits the backup, or abandons it.
fn make(shared: &Shared, config: &Config, mut backup: Unfinished, control: &Control) -> Ending {
    let made = catch_unwind(AssertUnwindSafe(|| fill_and_commit(shared, config, &mut backup, control)))
        .unwrap_or_else(|_| Err(Error::new(Kind::Io, "the backup thread panicked; see the log")));
    match made {
        Ok(()) => Ending::Done(Box::new(backup.record)),
        Err(cause) => {
            backup.record.finished_ms = Some(now_ms());
            let (is_on_disk, cause) = backup.abandon(&shared.catalog, cause);
            Ending::Failed { cause, is_on_disk }
        }
    }
}

/// After an error the backup is unfinished.
fn fill_and_commit(shared: &Shared, config: &Config, backup: &mut Unfinished, control: &Control) -> Result<()> {
    let Shared { named, sources, catalog, .. } = shared;
    named.require_unmoved(sources)?;
    hook_runs::keep(shared, backup.id())?;
    hook_runs::run_before(shared, &config.hooks, backup.id(), control)?;
    let copier = Copier { owner: backup.owner(), control };
    let making = Making { sources, catalog, config, copier, started_ms: backup.record.started_ms };
    for may_repeat in [true, false] {
        let (manifest, unsynced) = fill::fill(backup, &making)?;
        let sharers_count = Cell::new(0);
        let check = |path: &Path, record: &Record| {
            verify(&making, path, record, &sharers_count)?;
            hook_runs::plan(shared, config, &record.id, Status::Done);
            Ok(())
        };
        match backup.commit(manifest, unsynced, now_ms(), control, &check) {
            Err(e) if may_repeat && e.kind() == Kind::Damaged && sharers_count.get() > 0 => {
                log::warn!("filling the backup again id={} reason={:?}", backup.id(), e.chain());
                backup.begin_again(catalog, &e.chain())?;
            }
            other => return other,
        }
    }
    Ok(())
}

/// Verifies a filled backup as it is configured. Counts in `sharers_count` the other backups that share a damaged file with it.
fn verify(making: &Making<'_>, path: &Path, record: &Record, sharers_count: &Cell<usize>) -> Result<()> {
    let catalog = making.catalog;
    let Some(depth) = making.config.verify else { return Ok(()) };
    let options = VerifyOptions { depth, program: making.program() };
    let verification = verify::verify(path, Some(record), options, making.copier.control)?;
    let noted = damage::note_sharers(catalog, &record.id, &verification.shared_faults(), now_ms());
    let pact = damage::note_sharers_of_pact(catalog, &record.id, &verification.damaged_in_content(), now_ms());
    // If its files are links to the node's, another capture would have the same.
    let is_shared = record.rocksdb.as_ref().is_some_and(|rocksdb| rocksdb.oldest_read_ms.is_some());
    let counts = [noted.as_ref().ok().filter(|_| is_shared), pact.as_ref().ok()];
    sharers_count.set(counts.into_iter().flatten().sum());
    // The damage is the reason of the failure, also if it could not be noted in the other backups.
    require_good(&verification).and(noted).and(pact)?;
    prove_start(making, path, record)?;
    match depth {
        // Each backup that is done was verified quickly: that needs no note.
        Depth::Quick => Ok(()),
        Depth::Deep => damage::note(catalog, &record.id, depth, &verification, now_ms()),
    }
}

/// Proves that a node starts from a verified backup, if that is quick; otherwise the idle service does it later. A backup that is
/// refuted is a copy of its node all the same.
fn prove_start(making: &Making<'_>, path: &Path, record: &Record) -> Result<()> {
    let bounds = Bounds { extent: Extent::BOUNDED, time_limit: Some(PROOF_LIMIT) };
    let control = making.copier.control;
    let proved = start_proofs::prove((&record.id, path), making.program(), bounds, control)
        .and_then(|proof| proof.map_or(Ok(()), |proof| start_proofs::note(making.catalog, &proof)));
    control.check()?;
    if let Err(e) = proved {
        log::warn!("start not proved id={} reason={:?}", record.id, e.chain());
    }
    Ok(())
}

/// Ends a job whose thread hangs: in the status map first, then on the disk, which may hang too.
fn stall(shared: &Shared, id: &BackupId) {
    if let Some(refused) = end(shared, id, &Ending::Stalled) {
        hook_runs::refuse(shared, &refused);
    }
    if let Err(e) = commit::call_failed(&shared.catalog.path(id)) {
        log::error!("status not written id={id} reason={:?}", e.chain());
    }
}

/// The end of a job. A job that stalled has ended: if its thread returns nevertheless, that only frees the thread. Returns its hooks if they
/// could not be put into their queue.
fn end(shared: &Shared, id: &BackupId, ending: &Ending) -> Option<Refused> {
    let mut state = shared.state.lock();
    let job = state.jobs.get_mut(id)?;
    let (has_ended, seconds) = (job.status != Status::InProgress, job.started.elapsed().as_secs_f64());
    let (control, config, kept) = (Arc::clone(&job.control), Arc::clone(&job.config), job.kept.take());
    job.status = if matches!(ending, Ending::Done(_)) { Status::Done } else { Status::Failed };
    if !matches!(ending, Ending::Stalled) {
        state.running = None;
    }
    if matches!(ending, Ending::Done(_) | Ending::Failed { is_on_disk: true, .. }) {
        state.jobs.remove(id);
    }
    if has_ended {
        drop(state);
        log::info!("thread of the stalled backup returned id={id} seconds={seconds:.2}");
        return None;
    }
    let stalled = if matches!(ending, Ending::Stalled) { hook_runs::stalled(id, &state) } else { None };
    let mut errand = Errand { id: id.clone(), events: Vec::new(), reason: None, stalled, kept };
    match ending {
        Ending::Done(record) => {
            shared.counters.job_ended(Outcome::Done(record, seconds), &control);
        }
        Ending::Failed { cause, .. } => {
            state.last_failure = Some((id.clone(), cause.kind()));
            shared.counters.job_ended(Outcome::Failed, &control);
            errand.reason = Some(cause.chain());
        }
        Ending::Stalled => {
            state.last_failure = Some((id.clone(), Kind::Cancelled));
            shared.counters.job_ended(Outcome::Stalled, &control);
            errand.reason = Some(format!("stalled: no progress for {} s", config.stall_limit.as_secs()));
        }
    }
    let refused = hook_runs::enqueue(Arc::clone(&config), &mut state, errand);
    drop(state);
    shared.changes.add();
    ending.log(&config, id, seconds);
    refused
}

impl Ending {
    fn log(&self, config: &Config, id: &BackupId, seconds: f64) {
        match self {
            Ending::Done(record) => log_done(record, seconds),
            Ending::Failed { cause, .. } => {
                log::error!("backup failed id={id} seconds={seconds:.2} reason={:?}", cause.chain());
            }
            Ending::Stalled => {
                log::error!("backup stalled id={id} limit_seconds={}", config.stall_limit.as_secs());
            }
        }
    }
}

fn log_done(record: &Record, seconds: f64) {
    let id = &record.id;
    let replay = record.replay_blocks.map_or_else(String::new, |blocks| format!(" replay_blocks={blocks}"));
    let copied = record.rocksdb.as_ref().map_or(0, |rocksdb| rocksdb.copied_bytes);
    let written = record.pact_written_bytes();
    let pact = if record.pact.is_empty() { String::new() } else { format!(" pact_written_bytes={written}") };
    let size = format!("files={} bytes={} rocksdb_copied_bytes={copied}{pact}", record.files_count, record.bytes);
    log::info!("backup done id={id} seconds={seconds:.2} {size}{replay}");
    record.warnings.iter().for_each(|w| log::warn!("backup warning id={id} warning={w:?}"));
}
