//! Runs the hooks of jobs: those before a backup in its job, all others on a thread of their own, so that a copy to another host that
//! takes an hour delays no backup.
//!
//! ```text
//! job begins --- before ---> fill, verify, commit --- end ---> queue ---> hook thread: on-verified, after-success or after-failure
//! ```
//! Invariants
//! - A job puts its errand into the queue in the moment in which its end is known, and without waiting: who sees the end of the job and
//!   then waits for the queue has waited for its hooks.
//! - While hooks of a backup run, it cannot be deleted.
//! - Each outcome is counted and logged; a failure is never only in the log. While the service shuts down, no hook is begun.
//! - Errands of a job that stalled touch no disk: it hangs.
//!
//! The thread exists only if a hook is configured.

use std::cell::RefCell;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use crossbeam_channel::{Receiver, bounded, unbounded};

use crate::backups::details::Details;
use crate::backups::hooks::{self, Occasion};
use crate::capture::in_use;
use crate::config::hooks::Event;
use crate::control::{Control, Phase};
use crate::disk::sys;
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::hooks::HookRun;
use crate::format::record::Status;
use crate::id::BackupId;
use crate::service::shared::{Errand, Order, Shared, State};

/// The most errands that wait: with more, the hooks take longer than the backups, and the new ones are not run.
const MAX_WAITING: usize = 100;

/// Starts the thread, if there is a hook; its queue is put into the state.
pub(crate) fn start(shared: &Arc<Shared>) -> Result<Option<JoinHandle<()>>> {
    if !shared.config.hooks.are_configured() {
        return Ok(None);
    }
    let (sender, orders) = unbounded();
    let worker = Arc::clone(shared);
    let thread = Builder::new().name("hooks".to_owned()).spawn(move || work(&worker, &orders));
    let thread = thread.context(|| "cannot start the thread of the hooks".to_owned())?;
    shared.state.lock().hook_orders = Some(sender);
    Ok(Some(thread))
}

/// Why an errand was not put into the queue, for the log.
pub(crate) struct Refused {
    event: Event,
    reason: &'static str,
}

impl Refused {
    pub(crate) fn log(&self, id: &BackupId) {
        log::error!("hooks not run id={id} hook={} reason={:?}", self.event.word(), self.reason);
    }
}

/// Puts an errand into the queue; does not wait, and touches no disk. The caller logs a refusal, when it has released the lock.
pub(crate) fn enqueue(shared: &Shared, state: &mut State, mut errand: Errand) -> Option<Refused> {
    errand.events.retain(|event| !shared.config.hooks.commands(*event).is_empty());
    let event = errand.events.first().copied()?;
    let id = errand.id.clone();
    let refused = match &state.hook_orders {
        Some(orders) if orders.len() >= MAX_WAITING => Some("too many hooks are waiting"),
        Some(orders) => orders.send(Order::Run(Box::new(errand))).err().map(|_| "the thread of the hooks has ended"),
        None => Some("the service is shutting down"),
    };
    refused.map(|reason| {
        shared.counters.hook_ended(event, false);
        state.failed_hook = Some(id);
        Refused { event, reason }
    })
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
pub(crate) fn run_before(shared: &Shared, id: &BackupId, control: &Control) -> Result<()> {
    if shared.config.hooks.before.is_empty() {
        return Ok(());
    }
    control.enter(Phase::Hook);
    let Some(details) = shared.details(id, shared.catalog.find(id))? else {
        return Err(Error::new(Kind::NotFound, format!("backup {id} was deleted while it was being made")));
    };
    let occasion =
        Occasion { event: Event::Before, details: &details, reason: None, faults_count: None, is_noted: true };
    let failed = RefCell::new(None);
    hooks::run(&shared.config.hooks, &shared.catalog, &occasion, control, &|hook: &HookRun| {
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

/// Runs the hooks of a job that has ended.
fn run(shared: &Shared, errand: &Errand) {
    let (id, control) = (&errand.id, Arc::new(Control::default()));
    let is_stopping = {
        let mut state = shared.state.lock();
        if state.is_stopping {
            state.failed_hook = Some(id.clone());
        } else {
            state.hook = Some(Arc::clone(&control));
        }
        state.is_stopping
    };
    if is_stopping {
        log::warn!("hooks not run id={id} reason=\"the service is shutting down\"");
        return;
    }
    if let Err(e) = try_run(shared, errand, &control) {
        let event = errand.events[0];
        shared.counters.hook_ended(event, false);
        shared.state.lock().failed_hook = Some(id.clone());
        log::error!("hooks not run id={id} hook={} reason={:?}", event.word(), e.chain());
    }
    shared.state.lock().hook = None;
}

fn try_run(shared: &Shared, errand: &Errand, control: &Control) -> Result<()> {
    let Errand { id, events, reason, stalled } = errand;
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
    for event in events {
        // A good job has verified its backup, and found none.
        let faults_count = (*event == Event::OnVerified).then_some(0);
        let occasion =
            Occasion { event: *event, details, reason: reason.as_deref(), faults_count, is_noted: stalled.is_none() };
        let report = |hook: &HookRun| {
            count(shared, id, hook);
            if !hook.passed {
                shared.state.lock().failed_hook = Some(id.clone());
            }
        };
        hooks::run(&shared.config.hooks, &shared.catalog, &occasion, control, &report);
        if control.check().is_err() {
            return Ok(());
        }
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
