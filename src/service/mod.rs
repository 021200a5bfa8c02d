//! The service: one dedicated backup thread, one channel to it, one status map. The public API.
//!
//! ```text
//! callers --- make_backup ---> channel ---> backup thread --- writes ---> sources' copies, catalog
//!    |                                          |
//!    +--- check, list: status map, then the catalog, read only
//! ```
//! Invariants
//! - The status map speaks for jobs of this process that the disk does not speak for: the running one, and one whose end
//!   could not be written. For everything else the catalog on disk decides.
//! - Whether a job runs is decided, and a request is put into the channel, under one lock. So a request that finds no
//!   job running is answered before the next job begins, and a hundred callers at once get one identifier.
//! - Only the backup thread changes the catalog or touches a source. It sweeps garbage only while nobody wants a backup.
//! - An error is logged once, here.

pub(crate) mod answers;
pub(crate) mod attempt;
pub(crate) mod job;
pub(crate) mod listing;
pub(crate) mod metrics;
pub(crate) mod repair;
pub(crate) mod watchdog;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded, unbounded};
use parking_lot::Mutex;

use crate::backups::catalog::{Catalog, Found};
use crate::backups::commit;
use crate::backups::commit::Unfinished;
use crate::backups::details::{Details, Progress};
use crate::backups::recover;
use crate::backups::sums;
use crate::backups::verify;
use crate::capture::rocksdb;
use crate::capture::source::{Sources, require_no_file};
use crate::capture::sqlite;
use crate::clock::now_ms;
use crate::config::Config;
use crate::control::{Control, Stop};
use crate::disk;
use crate::disk::lock::Lock;
use crate::disk::nofollow;
use crate::disk::sys;
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::record::{Record, Scope, Status, Versions};
use crate::id::BackupId;
use crate::service::answers::Listings;
use crate::service::attempt::Making;
use crate::service::metrics::{Counters, Gauges};
use crate::service::watchdog::{Watched, Watchers};

/// What a caller of [`Service::make_backup`] wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MakeRequest {
    /// Back up the Pact databases too. RocksDB is always in.
    pub backup_pact: bool,
}

/// A backup service. Dropping it cancels the running job and ends the thread.
pub struct Service {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    _service_lock: Option<Lock>,
}

pub(crate) struct Shared {
    pub(crate) config: Config,
    sources: Sources,
    pub(crate) catalog: Catalog,
    pub(crate) counters: Counters,
    pub(crate) listings: Listings,
    watchers: Watchers,
    /// Bytes per second that may be copied; 0 is no limit.
    limit: Arc<AtomicU64>,
    state: Mutex<State>,
}

impl State {
    /// What somebody gets who wants a backup while a job runs.
    fn answer_while(&self, running: &BackupId) -> Result<BackupId> {
        if self.jobs.get(running).is_none_or(|job| job.status == Status::InProgress) {
            return Ok(running.clone());
        }
        let context = format!(
            "backup {running} stalled and its thread still hangs in the file system: look at the disks of the node and \
             of the backups, then restart this service"
        );
        Err(Error::new(Kind::Busy, context))
    }
}

/// Whether this process is the service of the backup directory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Service,
    Beside,
}

struct State {
    /// The status map.
    jobs: HashMap<BackupId, Job>,
    running: Option<BackupId>,
    exclusive_bytes: HashMap<BackupId, u64>,
    /// What the thread does while nobody wants a backup.
    idle_work: Option<Arc<Control>>,
    /// Why the last job failed, as far as a caller may act on it.
    last_failure: Option<(BackupId, Kind)>,
    /// Absent once no more jobs are taken.
    requests: Option<Sender<Request>>,
    /// Set when the thread shall end at once, leaving garbage for the next start.
    stopping: bool,
}

/// A job of this process that the catalog does not speak for.
struct Job {
    status: Status,
    scope: Scope,
    started_ms: u64,
    started: Instant,
    control: Arc<Control>,
}

struct Request {
    make: MakeRequest,
    reply: Sender<Result<BackupId>>,
}

impl Service {
    /// Starts the service: takes the backup directory for itself, settles what a crash left there, starts the thread.
    /// When this returns, every job of an earlier process is terminal.
    ///
    /// # Errors
    /// [`Kind::Usage`]: there is no RocksDB, or the backup directory lies among its files or in a backup. [`Kind::Busy`]:
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
        verify::require_possible(config.verify)?;
        let catalog = Catalog::open(&config.backup_directory, &sources.database_directory)?;
        let service_lock = match role {
            Role::Service => Some(catalog.lock_service()?),
            Role::Beside => None,
        };
        recover::recover(&catalog)?;
        let running = if role == Role::Beside { catalog.running()? } else { None };
        if let Some(running) = running {
            return Err(Error::new(Kind::Busy, format!("backup {running} is being made; wait for it, then try again")));
        }
        let (sender, receiver) = unbounded();
        let state = State {
            jobs: HashMap::new(),
            running: None,
            exclusive_bytes: HashMap::new(),
            idle_work: None,
            last_failure: None,
            requests: Some(sender),
            stopping: false,
        };
        let counters = Counters::default();
        let limit = Arc::new(AtomicU64::new(config.limit_bytes_per_second.unwrap_or(0)));
        let (listings, watchers, state) = (Listings::default(), Watchers::start()?, Mutex::new(state));
        let shared = Arc::new(Shared { config, sources, catalog, counters, listings, watchers, limit, state });
        let worker = Arc::clone(&shared);
        let thread = Builder::new().name("backup".to_owned()).spawn(move || worker.work(&receiver));
        let thread = thread.context(|| "cannot start the backup thread".to_owned())?;
        Ok(Service { shared, thread: Mutex::new(Some(thread)), _service_lock: service_lock })
    }

    /// Starts a backup and returns its identifier, or returns the identifier of the job that is running already: what
    /// that job covers is in its [`Details::scope`]. The identifier is durable: from now on it is known, also after a
    /// crash, until its backup is deleted.
    ///
    /// # Errors
    /// [`Kind::Usage`]: the Pact databases are wanted and there are none. [`Kind::ShuttingDown`]. [`Kind::Io`] and
    /// [`Kind::NoSpace`]: the job could not even be recorded. What goes wrong later is the job's status.
    pub fn make_backup(&self, request: MakeRequest) -> Result<BackupId> {
        let shutting_down = || Error::new(Kind::ShuttingDown, "the service is shutting down");
        let (reply, answer) = bounded(1);
        {
            let state = self.shared.state.lock();
            if let Some(running) = &state.running {
                return state.answer_while(running);
            }
            let requests = state.requests.as_ref().ok_or_else(shutting_down)?;
            requests.send(Request { make: request, reply }).map_err(|_| shutting_down())?;
            if let Some(work) = &state.idle_work {
                work.stop(Stop::Yielded);
            }
        }
        answer.recv().map_err(|_| shutting_down())?
    }

    /// The status of a backup; `None` where no backup has that identifier, for example because it was deleted.
    ///
    /// # Errors
    /// [`Kind::Io`]: the disk does not tell, or the backup directory is no longer the one that the service was started on.
    pub fn check_backup(&self, id: &BackupId) -> Result<Option<Status>> {
        Ok(self.status_and_scope(id)?.map(|(status, _)| status))
    }

    /// The same with what the backup covers; the record is read once.
    pub(crate) fn status_and_scope(&self, id: &BackupId) -> Result<Option<(Status, Scope)>> {
        let mapped = self.shared.state.lock().jobs.get(id).map(|job| (job.status, job.scope));
        match mapped {
            Some((Status::InProgress, _)) => Ok(mapped),
            // Its end could not be written down, so the map knows better, until somebody deletes what is left of it.
            Some(_) if !self.shared.is_deleted(id) => Ok(mapped),
            _ => Ok(self.shared.catalog.find(id)?.map(|found| (found.status, found.scope))),
        }
    }

    /// All that is known of a backup; `None` and errors as for [`Service::check_backup`], but never of a job that runs here.
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
        self.shared.catalog.each()?.filter_map(|found| found.and_then(details).transpose()).collect()
    }

    /// Cancels the running job, which ends as failed with the reason `shut down`, refuses new ones, and waits for the
    /// thread to end. Calling it again does nothing.
    pub fn shutdown(&self) {
        {
            let mut state = self.shared.state.lock();
            state.stopping = true;
            for work in state.jobs.values().map(|job| &job.control).chain(&state.idle_work) {
                work.stop(Stop::ShutDown);
            }
        }
        self.finish();
    }

    /// Takes no more jobs, lets the running one end by itself, and waits until its garbage is gone too.
    pub fn finish(&self) {
        self.shared.state.lock().requests = None;
        if let Some(thread) = self.thread.lock().take() {
            // The thread catches the panics of its jobs; there is nobody left to tell of another one.
            let _ = thread.join();
        }
    }

    /// Why the backup failed, where it is the last job of this service that did.
    pub fn failure_kind(&self, id: &BackupId) -> Option<Kind> {
        self.shared.state.lock().last_failure.as_ref().filter(|(failed, _)| failed == id).map(|(_, kind)| *kind)
    }

    /// Copies at most this many bytes a second from now on, also in the job that runs; `None` is as fast as the disk.
    pub fn set_limit(&self, bytes_per_second: Option<u64>) {
        self.shared.limit.store(bytes_per_second.unwrap_or(0), Relaxed);
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl Shared {
    /// Whether the directory of a backup is certainly gone.
    fn is_deleted(&self, id: &BackupId) -> bool {
        nofollow::is_directory(&self.catalog.path(id)).is_ok_and(|is_there| !is_there)
    }

    /// What the disk says of a backup, and this process.
    pub(crate) fn details(&self, id: &BackupId, found: Result<Option<Found>>) -> Result<Option<Details>> {
        let on_disk = found.and_then(|found| found.map(|found| Details::of(&self.catalog, found)).transpose());
        let state = self.state.lock();
        let deleted = |j: &&Job| j.status != Status::InProgress && self.is_deleted(id);
        let mut details = match (state.jobs.get(id).filter(|j| !deleted(j)), on_disk) {
            (None, Err(e)) => return Err(e),
            (None, Ok(None)) => return Ok(None),
            (None, Ok(Some(on_disk))) => on_disk,
            (Some(job), on_disk) => Details {
                status: job.status,
                scope: job.scope,
                foreign: false,
                progress: (job.status == Status::InProgress).then(|| job.progress()),
                // The job speaks for itself, whatever the disk says.
                ..on_disk
                    .ok()
                    .flatten()
                    .unwrap_or_else(|| Details::without_directory(id, job.status, job.scope, job.started_ms))
            },
        };
        details.exclusive_bytes = state.exclusive_bytes.get(id).copied();
        Ok(Some(details))
    }

    /// What the metrics tell of this moment.
    pub(crate) fn gauges(&self) -> Gauges<'_> {
        let running = {
            let state = self.state.lock();
            state.running.as_ref().and_then(|id| state.jobs.get(id)).map(Job::progress)
        };
        Gauges {
            running,
            free_bytes: disk::free_bytes(self.catalog.directory()).map_or(0, |(free, _)| free),
            limit_bytes: self.limit.load(Relaxed),
            node_version: self.config.node_version.as_deref().unwrap_or("unknown"),
        }
    }

    /// The backup thread.
    fn work(self: &Arc<Self>, requests: &Receiver<Request>) {
        sys::step_back();
        if let Err(e) = rocksdb::clear_pins(&self.sources) {
            log::warn!("pins not removed reason={:?}", e.chain());
        }
        self.count_exclusive_bytes();
        let (mut garbage, mut unsummed) = (true, true);
        loop {
            let request = match requests.try_recv() {
                Ok(request) => request,
                Err(_) if garbage => {
                    garbage = self.sweep(requests);
                    continue;
                }
                Err(_) if unsummed => {
                    unsummed = false;
                    self.sum(requests);
                    continue;
                }
                Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) => match requests.recv() {
                    Ok(request) => request,
                    Err(_) => return,
                },
            };
            self.make(request, requests);
            self.count_exclusive_bytes();
            (garbage, unsummed) = (true, true);
        }
    }

    /// Writes the checksums that the newest good backup lacks, until somebody wants a backup.
    fn sum(&self, requests: &Receiver<Request>) {
        let work = Arc::new(Control::limited(Arc::clone(&self.limit)));
        {
            let mut state = self.state.lock();
            if state.stopping || !requests.is_empty() {
                return;
            }
            state.idle_work = Some(Arc::clone(&work));
        }
        let summed = sums::write_newest(&self.catalog, self.config.sums, &work);
        self.state.lock().idle_work = None;
        match summed {
            Ok(None) => {}
            Ok(Some((id, read_count))) => log::info!("checksums written id={id} files_read={read_count}"),
            Err(e) if e.kind() == Kind::Cancelled => log::debug!("checksums put off reason={:?}", e.chain()),
            Err(e) => log::warn!("checksums not written reason={:?}", e.chain()),
        }
    }

    /// Removes garbage until somebody wants a backup; whether some is left to remove.
    fn sweep(&self, requests: &Receiver<Request>) -> bool {
        let nobody_waits = || requests.is_empty() && !self.state.lock().stopping;
        match self.catalog.sweep(&nobody_waits) {
            Ok(finished) => !finished && nobody_waits(),
            Err(e) => {
                log::warn!("garbage not removed reason={:?}", e.chain());
                false
            }
        }
    }

    fn make(self: &Arc<Self>, request: Request, requests: &Receiver<Request>) {
        let (backup, control) = match self.accept(request.make) {
            Ok(accepted) => accepted,
            Err(e) => {
                if e.kind() != Kind::Usage {
                    log::error!("backup refused reason={:?}", e.chain());
                }
                let running = (e.kind() == Kind::Busy).then(|| self.catalog.running().ok()?).flatten();
                // A caller that has gone away needs no answer.
                let _ = request.reply.send(running.ok_or(e));
                return;
            }
        };
        let id = backup.id().clone();
        let started = Instant::now();
        let _ = request.reply.send(Ok(id.clone()));
        {
            let mut state = self.state.lock();
            state.running = Some(id.clone());
            if state.stopping {
                control.stop(Stop::ShutDown);
            }
            // Those who asked before anybody could see that a job runs get its identifier too.
            for late in requests.try_iter() {
                let _ = late.reply.send(Ok(id.clone()));
            }
        }
        log::info!("backup started id={id} scope={}", backup.record.scope.word());
        let result = self.run_watched(backup, &control);
        let mut state = self.state.lock();
        state.running = None;
        let seconds = started.elapsed().as_secs_f64();
        match result {
            Ok(record) => {
                state.jobs.remove(&id);
                self.counters.job_done(seconds, record.bytes);
                let replay = record.replay_blocks.map_or_else(String::new, |blocks| format!(" replay_blocks={blocks}"));
                let copied = record.rocksdb.as_ref().map_or(0, |rocksdb| rocksdb.copied_bytes);
                let size = format!("files={} bytes={} rocksdb_copied_bytes={copied}", record.files_count, record.bytes);
                log::info!("backup done id={id} seconds={seconds:.2} {size}{replay}");
                record.warnings.iter().for_each(|w| log::warn!("backup warning id={id} warning={w:?}"));
            }
            Err((settled, e)) => {
                if settled {
                    state.jobs.remove(&id);
                } else if let Some(job) = state.jobs.get_mut(&id) {
                    job.status = Status::Failed;
                }
                state.last_failure = Some((id.clone(), e.kind()));
                self.counters.job_failed();
                log::error!("backup failed id={id} seconds={seconds:.2} reason={:?}", e.chain());
            }
        }
    }

    /// Creates the job's record and puts it into the status map: afterwards its identifier may be handed out.
    fn accept(&self, make: MakeRequest) -> Result<(Unfinished, Arc<Control>)> {
        let scope = if make.backup_pact { Scope::RocksdbAndPact } else { Scope::Rocksdb };
        if make.backup_pact && self.sources.sqlite.databases()?.is_empty() {
            let directory = self.sources.sqlite.path().display();
            let context = format!("there are no Pact databases (*.sqlite) in {directory}; make a backup without Pact");
            return Err(Error::new(Kind::Usage, context));
        }
        let now_ms = now_ms();
        let backup = Unfinished::create(&self.catalog, scope, now_ms, self.versions())?;
        let control = Arc::new(Control::limited(Arc::clone(&self.limit)));
        let job = Job {
            status: Status::InProgress,
            scope,
            started_ms: now_ms,
            started: Instant::now(),
            control: Arc::clone(&control),
        };
        self.state.lock().jobs.insert(backup.id().clone(), job);
        Ok((backup, control))
    }

    /// [`Shared::run`], watched.
    fn run_watched(
        self: &Arc<Self>,
        backup: Unfinished,
        control: &Arc<Control>,
    ) -> std::result::Result<Record, (bool, Error)> {
        let (shared, id) = (Arc::clone(self), backup.id().clone());
        let on_stall = move || {
            // First for who asks, then on the disk, which may hang.
            if let Some(job) = shared.state.lock().jobs.get_mut(&id) {
                job.status = Status::Failed;
            }
            log::error!("backup stalled id={id} limit_seconds={}", shared.config.stall_limit.as_secs());
            if let Err(e) = commit::call_failed(&shared.catalog.path(&id)) {
                log::error!("status not written id={id} reason={:?}", e.chain());
            }
        };
        let job = Watched {
            control: Arc::clone(control),
            backup: self.catalog.path(backup.id()),
            stall_limit: self.config.stall_limit,
            on_stall: Box::new(on_stall),
        };
        self.watchers.watch(job, || self.run(backup, control))
    }

    /// Runs the job; on failure says whether the disk knows of it.
    fn run(&self, mut backup: Unfinished, control: &Control) -> std::result::Result<Record, (bool, Error)> {
        let (catalog, sources, config) = (&self.catalog, &self.sources, &self.config);
        let making = Making { catalog, sources, config, control, now_ms: &now_ms };
        let attempt = || making.run(&mut backup);
        let result = catch_unwind(AssertUnwindSafe(attempt))
            .unwrap_or_else(|_| Err(Error::new(Kind::Io, "the backup thread panicked; see the log")));
        match result {
            Ok(()) => Ok(backup.record),
            Err(cause) => {
                backup.record.finished_ms = Some(now_ms());
                Err(backup.abandon(&self.catalog, cause))
            }
        }
    }

    fn versions(&self) -> Versions {
        Versions {
            chainweb_backup: env!("CARGO_PKG_VERSION").to_owned(),
            rocksdb: String::new(),
            sqlite: sqlite::library_version(),
            node: self.config.node_version.clone().unwrap_or_else(|| "unknown".to_owned()),
        }
    }

    fn count_exclusive_bytes(&self) {
        let Ok(readable) = self.catalog.readable() else { return };
        let counted: HashMap<_, _> = readable.map(|f| (f.id.clone(), self.catalog.exclusive_bytes(&f.id))).collect();
        self.state.lock().exclusive_bytes = counted;
    }
}

impl Job {
    fn progress(&self) -> Progress {
        Progress::of(&self.control, self.started.elapsed())
    }
}
