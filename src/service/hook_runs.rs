//! Runs the hooks of jobs: those before a backup in its job, all others on a thread of their own, so that a copy to another host that
//! takes an hour delays no backup.
//!
//! ```text
//! job begins --- before ---> fill, verify, plan, commit --- end ---> queue ---> hook thread: on-verified, after-success or after-failure
//! ```
//! Invariants
//! - A job puts its errand into the queue in the moment in which its end is known, and without waiting: who sees the end of the job and
//!   then waits for the queue has waited for its hooks.
//! - From the begin of its job until its last hook has ended, a backup cannot be deleted: a hook that waits for its turn, perhaps for
//!   hours, is not less important than one that runs. So a prune deletes it later.
//! - Each outcome is counted, logged and noted in the backup; a failure is never only in the log. A hook that is not run is a failure. While
//!   the service shuts down, no hook is begun. What follows a good backup is noted before the commit: after a crash, `recover` sees what
//!   was not run.
//! - What a crash or a shutdown has left unfinished is run after the next start ([`resume`]): by a service only, because of two processes
//!   that start at the same time one has the lock of the service. All hooks of the event run again. The hooks after the failure of a
//!   backup that a crash interrupted are run by the process that has noted this failure.
//! - Errands of a job that stalled touch no disk: it hangs.
//!
//! The thread exists from the moment on in which a hook is configured.

use std::cell::RefCell;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use crossbeam_channel::{Receiver, SendError, bounded, unbounded};

use crate::backups::details::Details;
use crate::backups::hooks::{self, Occasion};
use crate::backups::recover::Recovered;
use crate::capture::in_use;
use crate::config::Config;
use crate::config::hooks::{Event, Hooks};
use crate::control::{Control, Phase, Stop};
use crate::disk::sys;
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::hooks::HookRun;
use crate::format::record::Status;
use crate::id::BackupId;
use crate::service::shared::{Errand, Order, Shared, State};

/// The most errands that wait: with more, the hooks take longer than the backups, and the new ones are not run.
const MAX_WAITING: usize = 100;

/// Starts the thread; its queue is put into the state.
pub(crate) fn start(shared: &Arc<Shared>) -> Result<JoinHandle<()>> {
    let (sender, orders) = unbounded();
    let worker = Arc::clone(shared);
    let thread = Builder::new().name("hooks".to_owned()).spawn(move || work(&worker, &orders));
    let thread = thread.context(|| "cannot start the thread of the hooks".to_owned())?;
    shared.state.lock().hook_orders = Some(sender);
    Ok(thread)
}

/// Keeps the backup of a job that begins from being deleted until its last hook has ended.
pub(crate) fn keep(shared: &Shared, id: &BackupId) -> Result<()> {
    let path = shared.catalog.path(id);
    let kept = in_use::keep(&path)?.ok_or_else(|| {
        Error::new(Kind::Busy, format!("another process has locked the new backup {}", path.display()))
    })?;
    if let Some(job) = shared.state.lock().jobs.get_mut(id) {
        job.kept = Some(kept);
    }
    Ok(())
}

/// The events of a job with this end, of which there is a hook.
fn events(config: &Config, status: Status) -> Vec<Event> {
    let mut events = match status {
        Status::Done => vec![Event::OnVerified, Event::AfterSuccess],
        Status::Failed | Status::InProgress => vec![Event::AfterFailure],
    };
    events.retain(|event| config.hooks.has(*event) && (*event != Event::OnVerified || config.verify.is_some()));
    events
}

/// Notes in the backup which hooks will run after an end of its job.
pub(crate) fn plan(shared: &Shared, config: &Config, id: &BackupId, status: Status) {
    // Another process that recovers the directory leaves it alone; a job that is not committed yet has it locked anyway.
    let _in_use = in_use::share(&shared.catalog.path(id));
    hooks::plan(&config.hooks, &shared.catalog, id, &events(config, status));
}

/// An errand that was not put into the queue, and why.
#[must_use]
pub(crate) struct Refused {
    errand: Errand,
    config: Arc<Config>,
    reason: &'static str,
}

/// Puts the hooks after a job into the queue; does not wait, and touches no disk. `config` is that of the job.
pub(crate) fn enqueue(config: Arc<Config>, state: &mut State, mut errand: Errand) -> Option<Refused> {
    let status = if errand.reason.is_none() { Status::Done } else { Status::Failed };
    errand.events = events(&config, status);
    if errand.events.is_empty() {
        // To unlock it may hang as its disk does: then it stays locked until its thread returns.
        if let Some(job) = state.jobs.get_mut(&errand.id).filter(|_| errand.stalled.is_some()) {
            job.kept = errand.kept;
        }
        return None;
    }
    send(config, state, errand)
}

fn send(config: Arc<Config>, state: &mut State, errand: Errand) -> Option<Refused> {
    let id = errand.id.clone();
    let (errand, reason) = match &state.hook_orders {
        Some(orders) if orders.len() >= MAX_WAITING => (errand, "too many hooks are waiting"),
        Some(orders) => match orders.send(Order::Run(Box::new(errand))) {
            Ok(()) | Err(SendError(Order::Tell(_))) => return None,
            Err(SendError(Order::Run(errand))) => (*errand, "the thread of the hooks has ended"),
        },
        None => (errand, "the service is shutting down"),
    };
    state.failed_hook = Some(id);
    Some(Refused { errand, config, reason })
}

/// Puts the hooks that an earlier process has left into the queue.
pub(crate) fn resume(shared: &Shared, recovered: Recovered) {
    let config = shared.config();
    let failed = recovered.interrupted.into_iter().map(|id| (id, vec![Event::AfterFailure]));
    for (id, mut events) in recovered.unfinished.into_iter().chain(failed) {
        events.retain(|event| config.hooks.has(*event));
        if events.is_empty() {
            continue;
        }
        if let Err(e) = resume_one(shared, &config, &id, events) {
            log::error!("hooks not run id={id} reason={:?}", e.chain());
        }
    }
}

fn resume_one(shared: &Shared, config: &Arc<Config>, id: &BackupId, events: Vec<Event>) -> Result<()> {
    // Somebody may delete it at this moment.
    let Some(kept) = in_use::keep(&shared.catalog.path(id))? else { return Ok(()) };
    let Some(found) = shared.catalog.find(id)? else { return Ok(()) };
    let reason = found.record.and_then(|record| record.reason);
    hooks::plan(&config.hooks, &shared.catalog, id, &events);
    let words: Vec<&str> = events.iter().map(|event| event.word()).collect();
    log::info!("hooks resumed id={id} hooks={}", words.join(","));
    let errand = Errand { id: id.clone(), events, reason, stalled: None, kept: Some(kept) };
    let refused = send(Arc::clone(config), &mut shared.state.lock(), errand);
    refused.iter().for_each(|refused| refuse(shared, refused));
    Ok(())
}

/// Notes, counts and logs that the hooks of an errand are not run.
pub(crate) fn refuse(shared: &Shared, refused: &Refused) {
    let Refused { errand, config, reason } = refused;
    let skip = |occasion: &Occasion<'_>, report: &dyn Fn(&HookRun)| {
        hooks::skip(&config.hooks, &shared.catalog, occasion, reason, report);
    };
    each_occasion(shared, errand, &skip);
}

/// Waits until all errands that are in the queue now are done.
pub(crate) fn wait(shared: &Shared) {
    let (told, done) = bounded::<()>(1);
    {
        let state = shared.state.lock();
        let Some(orders) = &state.hook_orders else { return };
        // If the thread has ended, the order is dropped, and with it `told`.
        let _ = orders.send(Order::Tell(told));
    }
    // Nothing is ever sent: the error says that the order is done.
    let _ = done.recv();
}

/// Runs the hooks before a backup.
///
/// # Errors
/// [`Kind::Refused`]: one failed. [`Kind::Cancelled`]: the job was stopped.
pub(crate) fn run_before(shared: &Shared, hooks: &Hooks, id: &BackupId, control: &Control) -> Result<()> {
    if hooks.before.is_empty() {
        return Ok(());
    }
    control.enter(Phase::Hook);
    let Some(details) = shared.details(id, shared.catalog.find(id))? else {
        return Err(Error::new(Kind::NotFound, format!("backup {id} was deleted while it was being made")));
    };
    let occasion =
        Occasion { event: Event::Before, details: &details, reason: None, faults_count: None, is_noted: true };
    let failed = RefCell::new(None);
    hooks::run(hooks, &shared.catalog, &occasion, control, &|hook: &HookRun| {
        count(shared, id, hook);
        failed.replace(hook.reason.clone());
    });
    control.check()?;
    match failed.into_inner() {
        None => Ok(()),
        Some(reason) => Err(Error::new(Kind::Refused, format!("the hook before the backup failed: {reason}"))),
    }
}

fn work(shared: &Shared, orders: &Receiver<Order>) {
    sys::step_back();
    for order in orders {
        match order {
            Order::Run(errand) => run(shared, &errand),
            Order::Tell(told) => drop(told),
        }
    }
}

/// Runs the hooks of a job that has ended. While the service shuts down, it only notes that they are not run.
fn run(shared: &Shared, errand: &Errand) {
    let control = Arc::new(Control::default());
    control.begin("running hooks");
    {
        let mut state = shared.state.lock();
        if state.is_stopping {
            control.stop(Stop::ShutDown);
        }
        state.hook = Some(Arc::clone(&control));
    }
    // What is configured now: the operator may have mended a command meanwhile.
    let config = shared.config();
    let run = |occasion: &Occasion<'_>, report: &dyn Fn(&HookRun)| {
        hooks::run(&config.hooks, &shared.catalog, occasion, &control, report);
    };
    each_occasion(shared, errand, &run);
    shared.state.lock().hook = None;
}

/// What is done with the hooks of one event; each is given to the function as soon as its outcome is known.
type Work<'a> = &'a dyn Fn(&Occasion<'_>, &dyn Fn(&HookRun));

/// Does work for each event of an errand. If the backup is not there any more, that is counted and logged as a failure of the first one.
fn each_occasion(shared: &Shared, errand: &Errand, work: Work<'_>) {
    let id = &errand.id;
    if let Err(e) = try_each_occasion(shared, errand, work) {
        let event = errand.events[0];
        shared.counters.hook_ended(event, false);
        shared.state.lock().failed_hook = Some(id.clone());
        log::error!("hooks not run id={id} hook={} reason={:?}", event.word(), e.chain());
    }
}

fn try_each_occasion(shared: &Shared, errand: &Errand, work: Work<'_>) -> Result<()> {
    let Errand { id, events, reason, stalled, .. } = errand;
    let deleted = || Error::new(Kind::NotFound, "the backup was deleted before");
    let found;
    let _in_use;
    let details = match stalled {
        Some(details) => &**details,
        None => {
            _in_use = in_use::share(&shared.catalog.path(id))?.ok_or_else(deleted)?;
            found = shared.details(id, shared.catalog.find(id))?.ok_or_else(deleted)?;
            &found
        }
    };
    // Those that are known now: a good job has found none, but its hooks may have waited.
    let known_count = details.verified.as_ref().map_or(0, |verified| verified.faults_count);
    for event in events {
        let is_told = *event == Event::OnVerified || (*event == Event::AfterSuccess && known_count > 0);
        let faults_count = is_told.then_some(known_count);
        let occasion =
            Occasion { event: *event, details, reason: reason.as_deref(), faults_count, is_noted: stalled.is_none() };
        work(&occasion, &|hook: &HookRun| {
            count(shared, id, hook);
            if !hook.passed {
                shared.state.lock().failed_hook = Some(id.clone());
            }
        });
    }
    Ok(())
}

/// Counts and logs the end of a hook.
fn count(shared: &Shared, id: &BackupId, hook: &HookRun) {
    shared.counters.hook_ended(hook.event, hook.passed);
    let (event, seconds) = (hook.event.word(), hook.duration_ms.unwrap_or(0) as f64 / 1000.0);
    match &hook.reason {
        None => log::info!("hook passed id={id} hook={event} seconds={seconds:.2} program={:?}", hook.program),
        Some(why) => {
            log::error!(
                "hook failed id={id} hook={event} seconds={seconds:.2} program={:?} reason={why:?}",
                hook.program
            );
        }
    }
}

/// What is known of a job that stalled, for its hooks.
pub(crate) fn stalled(id: &BackupId, state: &State) -> Option<Box<Details>> {
    let job = state.jobs.get(id)?;
    Some(Box::new(Details::without_directory(id, Status::Failed, job.scope, job.started_ms)))
}
