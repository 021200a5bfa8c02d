//! The backup thread: takes requests from the channel, makes one backup after the other, also those of the schedules, deletes the backups
//! that no rule keeps, and between backups removes garbage, makes the start-up proof that the newest backup lacks, and computes missing
//! checksums.
//!
//! Invariants
//! - Only this thread changes the catalog or reads a source.
//! - Work between backups ends as soon as a request arrives, or as the timer of the schedules tells.
//! - A scheduled backup is a job as any other: a client that asks meanwhile gets its identifier. After each job, what is due comes first.
//! - Backups are deleted only after a good one was made.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Select, Sender, TryRecvError, bounded};

use crate::backups::catalog::Found;
use crate::backups::history;
use crate::backups::prune;
use crate::backups::retention::Verdict;
use crate::backups::start_proofs;
use crate::backups::sums;
use crate::capture::rocksdb::pins;
use crate::clock::now_ms;
use crate::config::schedule::Policy;
use crate::control::{Control, Stop};
use crate::disk::sys;
use crate::error::{Error, Kind, Result};
use crate::service::job;
use crate::service::shared::{MakeRequest, Request, Shared};
use crate::service::timer::Timer;
use crate::service::timetable::{Outcome, Step};

/// What the thread waits for.
pub(crate) struct Inbox {
    requests: Receiver<Request>,
    ticks: Receiver<()>,
    /// Keeps the channel open, if there is no timer.
    _ticker: Sender<()>,
}

/// What has arrived.
enum Arrived {
    Request(Request),
    /// The timer has ended its wait, or there is something to count.
    Tick,
    Nothing,
    /// No more requests are accepted.
    End,
}

/// Work between backups that may be there.
struct Todo {
    is_to_look: bool,
    has_garbage: bool,
    lacks_proof: bool,
    /// A good backup was made: after its proof, those that no rule keeps are deleted.
    is_to_prune: bool,
    lacks_sums: bool,
}

impl Todo {
    const ALL: Todo =
        Todo { is_to_look: true, has_garbage: true, lacks_proof: true, is_to_prune: false, lacks_sums: true };

    /// All of it, after a job has ended or the timer; backups are deleted only after a good one.
    fn after(&self, is_good: bool) -> Todo {
        Todo { is_to_prune: self.is_to_prune || is_good, ..Todo::ALL }
    }
}

impl Inbox {
    /// The inbox, and the sender for the thread that waits for the timer.
    pub(crate) fn new(requests: Receiver<Request>) -> (Inbox, Sender<()>) {
        // One tick is enough: the thread looks at all schedules.
        let (ticker, ticks) = bounded(1);
        (Inbox { requests, ticks, _ticker: ticker.clone() }, ticker)
    }

    fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.ticks.is_empty()
    }

    fn try_next(&self) -> Arrived {
        match self.requests.try_recv() {
            Ok(request) => Arrived::Request(request),
            Err(TryRecvError::Disconnected) => Arrived::End,
            Err(TryRecvError::Empty) if self.ticks.try_recv().is_ok() => Arrived::Tick,
            Err(TryRecvError::Empty) => Arrived::Nothing,
        }
    }

    /// Waits until something arrives.
    fn wait(&self) {
        let mut select = Select::new();
        select.recv(&self.requests);
        select.recv(&self.ticks);
        select.ready();
    }
}

/// Tells the backup thread when the timer of the schedules has ended its wait, until the service accepts no more requests.
pub(crate) fn tick(shared: &Shared, timer: &Timer, ticker: &Sender<()>) {
    loop {
        if let Err(e) = timer.wait() {
            log::error!("schedules stopped reason={:?}", e.chain());
            return;
        }
        let state = shared.state.lock();
        if state.requests.is_none() {
            return;
        }
        // One that is there already is enough.
        let _ = ticker.try_send(());
        if let Some(work) = &state.idle_work {
            work.stop(Stop::Yielded);
        }
    }
}

/// Serves requests and schedules until the channel is closed and nothing is left to do.
pub(crate) fn work(shared: &Arc<Shared>, inbox: &Inbox) {
    sys::step_back();
    for e in pins::clear_left(&shared.sources) {
        log::warn!("pins not removed reason={:?}", e.chain());
    }
    shared.count_exclusive_bytes();
    let mut todo = Todo::ALL;
    loop {
        // First, so that a client that asks without a pause does not keep schedules from their turn.
        if todo.is_to_look {
            todo.is_to_look = false;
            if let Some(is_good) = make_due(shared, inbox) {
                todo = todo.after(is_good);
            }
            continue;
        }
        match inbox.try_next() {
            Arrived::Request(request) => {
                let is_good = matches!(make(shared, request, inbox), Outcome::Good(_));
                todo = todo.after(is_good);
            }
            Arrived::Tick => {
                shared.count_forgotten_bytes();
                todo = todo.after(false);
            }
            _ if todo.has_garbage => todo.has_garbage = sweep(shared, inbox),
            _ if todo.lacks_proof => {
                todo.lacks_proof = false;
                // A backup from which no node starts does not count: another one may be due.
                todo.is_to_look |= prove(shared, inbox);
            }
            _ if todo.is_to_prune => {
                todo.is_to_prune = false;
                prune(shared);
            }
            _ if todo.lacks_sums => {
                todo.lacks_sums = false;
                sum(shared, inbox);
            }
            Arrived::End => return,
            Arrived::Nothing => inbox.wait(),
        }
    }
}

/// Answers a request: makes the backup, or says why not.
fn make(shared: &Arc<Shared>, request: Request, inbox: &Inbox) -> Outcome {
    let begun = match job::begin(shared, request.make, request.schedule.as_ref()) {
        Ok(begun) => begun,
        Err(e) => return refuse(shared, request, e),
    };
    let id = begun.backup.id().clone();
    let _ = request.reply.send(Ok(id.clone()));
    {
        let mut state = shared.state.lock();
        state.running = Some(id.clone());
        if state.is_stopping {
            begun.control.stop(Stop::ShutDown);
        }
        // Requests that arrived before `running` was set get the same identifier.
        for late in inbox.requests.try_iter() {
            let _ = late.reply.send(Ok(id.clone()));
        }
    }
    let is_good = job::run(shared, begun) && history::is_sound(&shared.catalog, &id);
    shared.count_exclusive_bytes();
    if is_good { Outcome::Good(id) } else { Outcome::Failed(id) }
}

/// Answers a request for which no job could begin.
fn refuse(shared: &Shared, request: Request, why: Error) -> Outcome {
    let (kind, is_scheduled) = (why.kind(), request.schedule.is_some());
    match kind {
        Kind::Busy if is_scheduled => log::info!("scheduled backup postponed reason={:?}", why.chain()),
        // The client is told of its mistake; a schedule has only the log.
        Kind::Usage if !is_scheduled => {}
        _ => log::error!("backup refused reason={:?}", why.chain()),
    }
    let running = (kind == Kind::Busy).then(|| shared.catalog.running().ok()?).flatten();
    // A caller that has gone away needs no answer.
    let _ = request.reply.send(running.ok_or(why));
    if kind == Kind::Busy { Outcome::Postponed } else { Outcome::Refused }
}

/// Whether backups may be deleted: the newest one that is done is sound, as far as is known after its proof. One that is not stays where
/// the operator sees it, and is no reason to delete another.
fn may_prune(shared: &Shared) -> Result<bool> {
    let Some(newest) = shared.catalog.readable()?.find(Found::is_done_by_us) else { return Ok(false) };
    Ok(history::is_sound(&shared.catalog, &newest.id))
}

/// Deletes the backups that no rule keeps, if there is a rule and the newest backup is sound.
fn prune(shared: &Shared) {
    let policy = shared.config().keep;
    if policy == Policy::default() || shared.state.lock().is_stopping {
        return;
    }
    let pruned = shared.catalog.require_same().and_then(|()| match may_prune(shared)? {
        true => prune::prune(&shared.catalog, policy),
        false => {
            log::info!("backups not pruned reason=\"the newest one is damaged, or a node does not start from it\"");
            Ok(Vec::new())
        }
    });
    match pruned {
        Ok(judged) => {
            let count = |wanted| judged.iter().filter(|(_, verdict)| *verdict == wanted).count();
            let (deleted_count, failed_count) =
                (count(Verdict::Delete), count(Verdict::Failed) + count(Verdict::Unread));
            shared.counters.pruned(deleted_count as u64, failed_count as u64);
            if deleted_count > 0 {
                log::info!("backups pruned deleted={deleted_count} kept={}", judged.len() - deleted_count);
                shared.count_exclusive_bytes();
            }
        }
        Err(e) => {
            shared.counters.pruned(0, 1);
            log::error!("backups not pruned reason={:?}", e.chain());
        }
    }
}

/// Makes the backup that is due, or sets the timer to the moment at which the next one is. Returns whether the attempt has
/// made a good one; `None` if there was no attempt.
fn make_due(shared: &Arc<Shared>, inbox: &Inbox) -> Option<bool> {
    let timer = shared.timer.get()?;
    shared.state.lock().requests.as_ref()?;
    let (ended, now) = (history::ended(&shared.catalog), now_ms());
    let mut timetable = shared.timetable.lock();
    let ended = ended.unwrap_or_else(|e| {
        log::error!("backups not read for the schedules reason={:?}", e.chain());
        timetable.unreadable(now);
        Vec::new()
    });
    match timetable.step(&ended, now) {
        Step::WaitUntil(at_ms) => {
            log::debug!("schedules wait next_ms={at_ms}");
            // The timetable is locked: if the schedules change, the timer is set after this.
            if let Err(e) = timer.set(at_ms) {
                log::error!("schedules stopped reason={:?}", e.chain());
            }
            None
        }
        Step::Make(schedule) => {
            drop(timetable);
            let make_request = MakeRequest { backup_pact: schedule.pact };
            // The outcome says enough.
            let (reply, _answer) = bounded(1);
            let outcome = make(shared, Request { make: make_request, schedule: Some(schedule), reply }, inbox);
            let is_good = matches!(outcome, Outcome::Good(_));
            shared.timetable.lock().end(&schedule, now, outcome);
            Some(is_good)
        }
    }
}

/// Does work until a request arrives; `None` if one is there already.
fn while_idle<T>(shared: &Shared, inbox: &Inbox, work: impl FnOnce(&Control) -> Result<T>) -> Option<Result<T>> {
    let control = Arc::new(Control::limited(Arc::clone(&shared.limit)));
    {
        let mut state = shared.state.lock();
        if state.is_stopping || !inbox.is_empty() {
            return None;
        }
        state.idle_work = Some(Arc::clone(&control));
    }
    let done = work(&control);
    shared.state.lock().idle_work = None;
    Some(done)
}

/// Makes the start-up proof of the newest backup if it has none: it took too long for the job, or another program made the backup.
/// Returns whether it was made.
fn prove(shared: &Shared, inbox: &Inbox) -> bool {
    let config = shared.config();
    if config.verify.is_none() {
        return false;
    }
    let program = config.heights_program.as_deref();
    match while_idle(shared, inbox, |control| start_proofs::prove_newest(&shared.catalog, program, control)) {
        None | Some(Ok(None)) => {}
        Some(Ok(Some(id))) => {
            log::info!("start-up proof made id={id}");
            return true;
        }
        Some(Err(e)) if e.kind() == Kind::Cancelled => log::debug!("start-up proof postponed reason={:?}", e.chain()),
        Some(Err(e)) => log::warn!("start not proved reason={:?}", e.chain()),
    }
    false
}

/// Computes the checksums that the newest good backup lacks.
fn sum(shared: &Shared, inbox: &Inbox) {
    match while_idle(shared, inbox, |control| sums::write_newest(&shared.catalog, shared.config().sums, control)) {
        None | Some(Ok(None)) => {}
        Some(Ok(Some((id, read_count)))) => log::info!("checksums written id={id} files_read={read_count}"),
        Some(Err(e)) if e.kind() == Kind::Cancelled => log::debug!("checksums postponed reason={:?}", e.chain()),
        Some(Err(e)) => log::warn!("checksums not written reason={:?}", e.chain()),
    }
}

/// Removes garbage until a request arrives. Returns whether some is left that can be removed later.
fn sweep(shared: &Shared, inbox: &Inbox) -> bool {
    let is_idle = || inbox.is_empty() && !shared.state.lock().is_stopping;
    match shared.catalog.sweep(&is_idle) {
        Ok(is_finished) => !is_finished && is_idle(),
        Err(e) => {
            log::warn!("garbage not removed reason={:?}", e.chain());
            false
        }
    }
}
