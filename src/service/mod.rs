//! The service: one dedicated backup thread, one channel to it, one status map. The public API.
//!
//! ```text
//! callers --- make_backup ---> channel ---> backup thread (worker) --- job ---> copies of the sources, catalog
//!    |                                          |
//!    +--- check, list: status map (shared), then the catalog, read only
//! ```
//! Invariants
//! - Only the backup thread changes the catalog or reads a source.
//! - The end of each job is logged once, in `job::end`; a request that fails, in `worker`. Other code logs an error only if it
//!   goes on without returning it: a file that is skipped, an attempt that is repeated, a clean-up that is postponed.

pub(crate) mod activity;
pub(crate) mod answers;
pub(crate) mod counters;
pub(crate) mod doctor;
pub(crate) mod fill;
pub(crate) mod hook_runs;
pub(crate) mod increments;
pub(crate) mod job;
pub(crate) mod listing;
pub(crate) mod making;
pub(crate) mod metrics;
pub(crate) mod repair;
pub(crate) mod shared;
pub(crate) mod status_page;
pub(crate) mod summary;
pub(crate) mod textfile;
pub(crate) mod timer;
pub(crate) mod timetable;
pub(crate) mod watchdog;
pub(crate) mod worker;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::{Builder, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use parking_lot::Mutex;

use crate::backups::catalog::{Catalog, Found};
use crate::backups::details::{Details, Progress};
use crate::backups::recover;
use crate::backups::verify;
use crate::capture::rocksdb::pins;
use crate::capture::source::{Sources, require_no_file};
use crate::clock::now_ms;
use crate::config::Config;
use crate::control::Stop;
use crate::disk::lock::Lock;
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::record::{Scope, Status};
use crate::id::BackupId;
use crate::service::shared::{MakeRequest, Parts, Request, Shared, State};
use crate::service::timer::Timer;
use crate::service::timetable::{Scheduled, Timetable};
use crate::service::worker::Inbox;

/// A backup service. Dropping it cancels the running job and ends the thread.
pub struct Service {
    shared: Arc<Shared>,
    role: Role,
    threads: Mutex<Option<Threads>>,
    _service_lock: Option<Lock>,
}

/// The threads of a service.
struct Threads {
    backup: JoinHandle<()>,
    helpers: Helpers,
}

/// Those that run only if something is configured that needs them.
struct Helpers {
    /// Waits for the timer of the schedules.
    schedules: Option<JoinHandle<()>>,
    /// Runs hooks.
    hooks: Option<JoinHandle<()>>,
    /// Tells the backup thread that the timer has ended its wait.
    ticker: Sender<()>,
}

/// Whether this process is the service of the backup directory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Service,
    Beside,
}

impl Service {
    /// Starts the service: locks the backup directory, settles what a crash left there, starts the thread.
    /// When this returns, every job of an earlier process is terminal.
    ///
    /// # Errors
    /// [`Kind::Usage`]: there is no RocksDB, the backup directory lies among its files or in a backup, or the named pin directory is not
    /// on its mount. [`Kind::Busy`]:
    /// another service has this backup directory. [`Kind::Io`]: the backup directory cannot be created or written. Each says
    /// what to do.
    pub fn start(config: Config, sources: Sources) -> Result<Service> {
        Service::start_as(Role::Service, config, sources)
    }

    /// Like [`Service::start`], but beside a service that may use the same backup directory: for one backup made by
    /// another process. While either makes a backup, the other's is [`Kind::Busy`] or its identifier.
    ///
    /// # Errors
    /// As [`Service::start`]; [`Kind::Busy`] means that another process makes a backup at this moment.
    pub fn start_beside(config: Config, sources: Sources) -> Result<Service> {
        Service::start_as(Role::Beside, config, sources)
    }

    fn start_as(role: Role, config: Config, sources: Sources) -> Result<Service> {
        sources.validate()?;
        require_no_file(&config.backup_directory, "backup directory", "--backup-directory")?;
        sources.require_apart(&config.backup_directory)?;
        pins::require_possible(&sources)?;
        let (named, sources) = (sources.clone(), sources.resolved()?);
        named.log_links(&sources);
        verify::require_possible(config.verify)?;
        let catalog = Catalog::open(&named.resolve_trusted(&config.backup_directory)?, &sources.database_directory)?;
        let service_lock = match role {
            Role::Service => Some(catalog.lock_service()?),
            Role::Beside => None,
        };
        let mut recovered = recover::recover(&catalog)?;
        if role == Role::Beside {
            recovered.unfinished.clear();
        }
        let running = if role == Role::Beside { catalog.running()? } else { None };
        if let Some(running) = running {
            return Err(Error::new(Kind::Busy, format!("backup {running} is being made; wait for it, then try again")));
        }
        let (sender, requests) = unbounded();
        let config = role.fit(config);
        let timetable = Timetable::new(&config.schedules, fastrand::u64(..));
        let parts = Parts { named, sources, catalog };
        let shared = Arc::new(Shared::new(config, parts, timetable, State::new(sender))?);
        if !recovered.interrupted.is_empty() {
            shared.counters.interruption_ms.store(now_ms(), Relaxed);
        }
        let threads = Threads::start(&shared, requests)?;
        hook_runs::resume(&shared, recovered);
        Ok(Service { shared, role, threads: Mutex::new(Some(threads)), _service_lock: service_lock })
    }

    /// Takes over another configuration while the service runs, and returns the names of the values that have changed. A job that runs goes
    /// on as it began, at the new limit; schedules that are configured as before keep their failures. `backup_directory` and
    /// `heights_program` stay as they were at the start.
    ///
    /// # Errors
    /// [`Kind::Usage`]: this program cannot do what is configured. [`Kind::ShuttingDown`]. [`Kind::Io`]: a thread or a timer cannot be
    /// made. After an error everything is as before.
    pub fn reconfigure(&self, config: Config) -> Result<Vec<&'static str>> {
        verify::require_possible(config.verify)?;
        let mut threads = self.threads.lock();
        let shutting_down = || Error::new(Kind::ShuttingDown, "the service is shutting down");
        let threads = threads.as_mut().ok_or_else(shutting_down)?;
        let before = self.shared.config();
        let (backup_directory, heights_program) = (before.backup_directory.clone(), before.heights_program.clone());
        let config = self.role.fit(Config { backup_directory, heights_program, ..config });
        threads.helpers.start_for(&self.shared, &config)?;
        let (changed, schedules) = (before.changed(&config), config.schedules.clone());
        self.shared.set_config(config);
        let mut timetable = self.shared.timetable.lock();
        timetable.change(&schedules);
        // The thread looks at the schedules, and sets the timer to the right time.
        if let Some(Err(e)) = self.shared.timer.get().map(|timer| timer.set(0)) {
            log::error!("schedules stopped reason={:?}", e.chain());
        }
        Ok(changed)
    }

    /// Starts a backup and returns its identifier, or returns the identifier of the job that is running already; the
    /// databases that job covers are in its [`Details::scope`]. The identifier is durable: it is known from now on, also
    /// after a crash, until its backup is deleted.
    ///
    /// # Errors
    /// [`Kind::Usage`]: the Pact databases are wanted and there are none. [`Kind::ShuttingDown`]. [`Kind::Io`] and
    /// [`Kind::NoSpace`]: the job could not be recorded. A later error becomes the job's status.
    pub fn make_backup(&self, request: MakeRequest) -> Result<BackupId> {
        let shutting_down = || Error::new(Kind::ShuttingDown, "the service is shutting down");
        let (reply, answer) = bounded(1);
        {
            let state = self.shared.state.lock();
            if let Some(running) = &state.running {
                return state.answer_while(running);
            }
            let requests = state.requests.as_ref().ok_or_else(shutting_down)?;
            requests.send(Request { make: request, schedule: None, reply }).map_err(|_| shutting_down())?;
            if let Some(work) = &state.idle_work {
                work.stop(Stop::Yielded);
            }
        }
        answer.recv().map_err(|_| shutting_down())?
    }

    /// The status of a backup; `None` if no backup has that identifier, for example because it was deleted.
    ///
    /// # Errors
    /// [`Kind::Io`]: the status cannot be read, or the backup directory is no longer the one that the service was started with.
    pub fn check_backup(&self, id: &BackupId) -> Result<Option<Status>> {
        Ok(self.status_and_scope(id)?.map(|(status, _)| status))
    }

    /// The same with what the backup covers; the record is read once.
    pub(crate) fn status_and_scope(&self, id: &BackupId) -> Result<Option<(Status, Scope)>> {
        let (mapped, has_thread) = {
            let state = self.shared.state.lock();
            (state.jobs.get(id).map(|job| (job.status, job.scope)), state.running.as_ref() == Some(id))
        };
        match mapped {
            Some((Status::InProgress, _)) => Ok(mapped),
            // The disk lacks the end of this job, so the status map decides until the backup is deleted. While its thread hangs, the
            // disk probably does.
            Some(_) if has_thread || !self.shared.is_deleted(id) => Ok(mapped),
            _ => Ok(self.shared.catalog.find(id)?.map(|found| (found.status, found.scope))),
        }
    }

    /// Everything known about a backup; `None` and errors as for [`Service::check_backup`], but no errors for a job that runs here.
    pub fn details(&self, id: &BackupId) -> Result<Option<Details>> {
        let found = self.shared.catalog.find(id);
        self.shared.details(id, found)
    }

    /// Every backup below the backup directory, newest first.
    ///
    /// # Errors
    /// [`Kind::Io`]: the backup directory, or one of the backups, cannot be read.
    pub fn list_backups(&self) -> Result<Vec<Details>> {
        let details = |found: Found| self.shared.details(&found.id.clone(), Ok(Some(found)));
        self.shared.each()?.filter_map(|found| found.and_then(details).transpose()).collect()
    }

    /// Cancels the running job, which fails with the reason `shut down`, accepts no more jobs, and waits until the
    /// thread has ended. A second call does nothing.
    pub fn shutdown(&self) {
        {
            let mut state = self.shared.state.lock();
            state.is_stopping = true;
            for work in state.jobs.values().map(|job| &job.control).chain(&state.idle_work).chain(&state.hook) {
                work.stop(Stop::ShutDown);
            }
        }
        self.finish();
    }

    /// Accepts no more jobs, waits until the running one has ended, its garbage is removed and its hooks have ended.
    pub fn finish(&self) {
        self.shared.state.lock().requests = None;
        // Locked until all have ended: a second caller waits, too.
        let mut threads = self.threads.lock();
        let Some(Threads { backup, helpers }) = threads.take() else { return };
        // The thread catches the panics of its jobs, and the panic hook has reported any other.
        let _ = backup.join();
        // The timer's thread sees that there are no more requests as soon as its wait ends.
        if let (Some(thread), Some(timer)) = (helpers.schedules, self.shared.timer.get())
            && timer.set(0).is_ok()
        {
            let _ = thread.join();
        }
        self.shared.state.lock().hook_orders = None;
        if let Some(thread) = helpers.hooks {
            let _ = thread.join();
        }
    }

    /// Waits until the hooks of all jobs that have ended have ended, too.
    pub fn wait_for_hooks(&self) {
        hook_runs::wait(&self.shared);
    }

    /// Whether a hook failed after the job of this backup had ended, if it is the last job of which one did.
    pub fn has_failed_hook(&self, id: &BackupId) -> bool {
        self.shared.state.lock().failed_hook.as_ref() == Some(id)
    }

    /// What the service does besides a backup, hooks or checksums, if that takes time: the step, and its progress.
    pub fn background(&self) -> Option<(&'static str, Progress)> {
        let state = self.shared.state.lock();
        let work = state.hook.iter().chain(&state.idle_work).find(|work| work.command_step().is_some())?;
        let (step, elapsed) = work.command_step()?;
        Some((step, Progress::of(work, elapsed)))
    }

    /// The schedules: when the next backup of each is due, and how the last attempt ended.
    pub fn schedules(&self) -> Vec<Scheduled> {
        self.shared.timetable.lock().states()
    }

    /// The kind of the error of a failed backup; `None` unless it is the last job of this service that failed.
    pub fn failure_kind(&self, id: &BackupId) -> Option<Kind> {
        self.shared.state.lock().last_failure.as_ref().filter(|(failed, _)| failed == id).map(|(_, kind)| *kind)
    }

    /// Limits copying to this many bytes per second from now on, also in the running job; `None` removes the limit.
    pub fn set_limit(&self, bytes_per_second: Option<u64>) {
        self.shared.limit.store(bytes_per_second.unwrap_or(0), Relaxed);
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl Role {
    /// The configuration of this role: a process that makes one backup makes no others.
    fn fit(self, config: Config) -> Config {
        if self == Role::Service { config } else { Config { schedules: Vec::new(), ..config } }
    }
}

impl Threads {
    fn start(shared: &Arc<Shared>, requests: Receiver<Request>) -> Result<Threads> {
        let (inbox, ticker) = Inbox::new(requests);
        // Threads are started once.
        let _ = shared.ticker.set(ticker.clone());
        let mut helpers = Helpers { schedules: None, hooks: None, ticker };
        helpers.start_for(shared, &shared.config())?;
        let working = Arc::clone(shared);
        let backup = Builder::new().name("backup".to_owned()).spawn(move || worker::work(&working, &inbox));
        let backup = backup.context(|| "cannot start the backup thread".to_owned())?;
        Ok(Threads { backup, helpers })
    }
}

impl Helpers {
    /// Starts the threads that this configuration needs and that do not run yet.
    fn start_for(&mut self, shared: &Arc<Shared>, config: &Config) -> Result<()> {
        if config.hooks.are_configured() && self.hooks.is_none() {
            self.hooks = Some(hook_runs::start(shared)?);
        }
        if !config.schedules.is_empty() && self.schedules.is_none() {
            if shared.timer.get().is_none() {
                // Only one thread comes here at a time.
                let _ = shared.timer.set(Timer::new()?);
            }
            let (ticking, ticker) = (Arc::clone(shared), self.ticker.clone());
            let tick = move || ticking.timer.get().into_iter().for_each(|timer| worker::tick(&ticking, timer, &ticker));
            let thread = Builder::new().name("schedules".to_owned()).spawn(tick);
            self.schedules = Some(thread.context(|| "cannot start the thread of the schedules".to_owned())?);
        }
        Ok(())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.shutdown();
    }
}
