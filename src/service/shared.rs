//! What the threads of the service share: configuration, catalog, counters, and the status map.
//!
//! Invariants
//! - The status map speaks for the jobs of this process for which the disk does not speak: the running one, and one whose
//!   end could not be written. For everything else the catalog on disk decides.
//! - Whether a job runs is decided, and a request is put into the channel, under one lock. So a request that finds no
//!   job running is answered before the next job begins, and a hundred callers at once get one identifier.
//! - Under that lock nothing is read, written, logged or waited for: a disk that hangs, or a log that is not read, blocks no request
//!   that does not need it.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use parking_lot::{Condvar, Mutex};

use crate::backups::catalog::{Catalog, Found};
use crate::backups::details::{Details, Listed, Progress, Unreadable};
use crate::capture::in_use::InUse;
use crate::capture::source::Sources;
use crate::config::hooks::Event;
use crate::config::schedule::Schedule;
use crate::config::{Config, reserve_on};
use crate::control::Control;
use crate::disk;
use crate::disk::fault_gate;
use crate::disk::nofollow;
use crate::error::{Error, Kind, Result};
use crate::format::record::{Scope, Status};
use crate::id::BackupId;
use crate::service::answers::Listings;
use crate::service::counters::Counters;
use crate::service::metrics::{Gauges, Running, Volume};
use crate::service::timer::Timer;
use crate::service::timetable::Timetable;
use crate::service::watchdog::Watchers;

/// How long the bytes that only one backup uses are counted.
const COUNTING_LIMIT: Duration = Duration::from_secs(5);

/// The parameters of a backup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MakeRequest {
    /// Back up the Pact databases too. RocksDB is always backed up.
    pub backup_pact: bool,
}

pub(crate) struct Shared {
    /// What is configured now; a job keeps what was configured at its begin.
    config: Mutex<Arc<Config>>,
    /// The sources as they were named.
    pub(crate) named: Sources,
    /// The same without links, as they were at the start.
    pub(crate) sources: Sources,
    pub(crate) catalog: Catalog,
    pub(crate) counters: Counters,
    pub(crate) listings: Listings,
    pub(crate) watchers: Watchers,
    /// Bytes per second that may be copied; 0 is no limit.
    pub(crate) limit: Arc<AtomicU64>,
    pub(crate) timetable: Mutex<Timetable>,
    /// Absent as long as there was no schedule.
    pub(crate) timer: OnceLock<Timer>,
    /// Wakes the backup thread, which then looks at what there is to do.
    pub(crate) ticker: OnceLock<Sender<()>>,
    /// Told when a job begins or ends.
    pub(crate) changes: Changes,
    pub(crate) state: Mutex<State>,
}

/// How often a job has begun or ended.
#[derive(Default)]
pub(crate) struct Changes {
    pub(crate) count: Mutex<u64>,
    pub(crate) changed: Condvar,
}

impl Changes {
    /// A job has begun or ended.
    pub(crate) fn add(&self) {
        *self.count.lock() += 1;
        self.changed.notify_all();
    }
}

pub(crate) struct State {
    /// The status map.
    pub(crate) jobs: HashMap<BackupId, Job>,
    /// The job that has the backup thread.
    pub(crate) running: Option<BackupId>,
    /// For each backup that existed at the begin of the last count; an empty map has to be counted.
    pub(crate) exclusive_bytes: HashMap<BackupId, Option<u64>>,
    /// Whether there was garbage at the end of that count, which shared files with the backups.
    counted_garbage: bool,
    /// Work that the backup thread does only between backups; the next request stops it.
    pub(crate) idle_work: Option<Arc<Control>>,
    /// The queue of the thread that runs hooks; absent if there are none, and once no more are accepted.
    pub(crate) hook_orders: Option<Sender<Order>>,
    /// The hook that runs now, on that thread.
    pub(crate) hook: Option<Arc<Control>>,
    /// The last backup of which a hook failed after its job had ended.
    pub(crate) failed_hook: Option<BackupId>,
    /// The last job that failed, and the kind of its error.
    pub(crate) last_failure: Option<(BackupId, Kind)>,
    /// Absent once no more jobs are accepted.
    pub(crate) requests: Option<Sender<Request>>,
    /// Set when the thread is to end at once. Garbage is then left for the next start.
    pub(crate) is_stopping: bool,
}

/// What a service works on, which never changes.
pub(crate) struct Parts {
    /// The sources as they were named.
    pub(crate) named: Sources,
    /// The same without links, as they were at the start.
    pub(crate) sources: Sources,
    pub(crate) catalog: Catalog,
}

/// A job of this process for which the catalog does not speak.
pub(crate) struct Job {
    pub(crate) status: Status,
    pub(crate) scope: Scope,
    pub(crate) started_ms: u64,
    pub(crate) started: Instant,
    pub(crate) control: Arc<Control>,
    /// What was configured at its begin.
    pub(crate) config: Arc<Config>,
    /// Keeps the backup from being deleted.
    pub(crate) kept: Option<InUse>,
}

/// What the status map says of a job.
struct Mapped {
    status: Status,
    scope: Scope,
    started_ms: u64,
    /// While it is in progress.
    progress: Option<Progress>,
}

/// A request for a backup, on its way to the backup thread.
pub(crate) struct Request {
    pub(crate) make: MakeRequest,
    /// The schedule that asks, if it is one.
    pub(crate) schedule: Option<Schedule>,
    pub(crate) reply: Sender<Result<BackupId>>,
}

/// The hooks of one job that has ended.
pub(crate) struct Errand {
    pub(crate) id: BackupId,
    /// The events, in their order.
    pub(crate) events: Vec<Event>,
    /// Why the job failed, if it did.
    pub(crate) reason: Option<String>,
    /// What is known of a job that stalled, without its disk.
    pub(crate) stalled: Option<Box<Details>>,
    /// Keeps the backup from being deleted until the hooks have ended.
    pub(crate) kept: Option<InUse>,
}

/// What the thread is asked for.
pub(crate) enum Order {
    Run(Box<Errand>),
    /// To drop this when all orders before it are done.
    Tell(Sender<()>),
}

impl Job {
    pub(crate) fn progress(&self) -> Progress {
        Progress::of(&self.control, self.started.elapsed())
    }

    /// What the status map says of it now.
    fn mapped(&self) -> Mapped {
        let Job { status, scope, started_ms, .. } = *self;
        let progress = (status == Status::InProgress).then(|| self.progress());
        Mapped { status, scope, started_ms, progress }
    }

    fn running(&self) -> Running {
        let (steps, wal_growth_bytes) = (self.control.progress(), self.control.wal_growth_bytes.get());
        Running { progress: self.progress(), steps, wal_growth_bytes }
    }
}

impl State {
    pub(crate) fn new(requests: Sender<Request>) -> State {
        State {
            jobs: HashMap::new(),
            running: None,
            exclusive_bytes: HashMap::new(),
            counted_garbage: false,
            idle_work: None,
            hook_orders: None,
            hook: None,
            failed_hook: None,
            last_failure: None,
            requests: Some(requests),
            is_stopping: false,
        }
    }

    /// The answer to a request for a backup while a job runs.
    pub(crate) fn answer_while(&self, running: &BackupId) -> Result<BackupId> {
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

impl Shared {
    /// The parts of a service; the timetable has the schedules that it makes.
    pub(crate) fn new(config: Config, parts: Parts, timetable: Timetable, state: State) -> Result<Shared> {
        let Parts { named, sources, catalog } = parts;
        Ok(Shared {
            named,
            sources,
            catalog,
            counters: Counters::default(),
            listings: Listings::default(),
            watchers: Watchers::start()?,
            limit: Arc::new(AtomicU64::new(config.limit_bytes_per_second.unwrap_or(0))),
            timetable: Mutex::new(timetable),
            timer: OnceLock::new(),
            ticker: OnceLock::new(),
            changes: Changes::default(),
            state: Mutex::new(state),
            config: Mutex::new(Arc::new(config)),
        })
    }

    /// What is configured now.
    pub(crate) fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.lock())
    }

    /// Takes over another configuration: from the next job, hook, prune and request on. The limit changes in the running job, too.
    pub(crate) fn set_config(&self, config: Config) {
        self.limit.store(config.limit_bytes_per_second.unwrap_or(0), Relaxed);
        *self.config.lock() = Arc::new(config);
    }

    /// Whether the directory of a backup is certainly gone.
    pub(crate) fn is_deleted(&self, id: &BackupId) -> bool {
        let path = self.catalog.path(id);
        fault_gate::point("is-deleted", &path);
        nofollow::is_directory(&path).is_ok_and(|is_there| !is_there)
    }

    /// A backup as the disk and the status map together describe it.
    pub(crate) fn details(&self, id: &BackupId, found: Result<Option<Found>>) -> Result<Option<Details>> {
        let on_disk = found.and_then(|found| found.map(|found| Details::of(&self.catalog, found)).transpose());
        let (mapped, exclusive_bytes) = {
            let state = self.state.lock();
            (state.jobs.get(id).map(Job::mapped), state.exclusive_bytes.get(id).copied().flatten())
        };
        let deleted = |job: &Mapped| job.status != Status::InProgress && self.is_deleted(id);
        let details = match (mapped.filter(|job| !deleted(job)), on_disk) {
            (None, Err(e)) => return Err(e),
            (None, Ok(None)) => return Ok(None),
            (None, Ok(Some(on_disk))) => on_disk,
            (Some(job), on_disk) => Details {
                status: job.status,
                scope: job.scope,
                foreign: false,
                progress: job.progress,
                // The status map decides, whatever the disk says.
                ..on_disk
                    .ok()
                    .flatten()
                    .unwrap_or_else(|| Details::without_directory(id, job.status, job.scope, job.started_ms))
            },
        };
        Ok(Some(Details { exclusive_bytes, ..details }))
    }

    /// A backup as an element of a list; `None` if it does not exist. One that cannot be read does not hide the others; a directory that
    /// was replaced has none of them, which is an error.
    pub(crate) fn listed(&self, id: &BackupId) -> Result<Option<Listed>> {
        match self.details(id, self.catalog.find(id)) {
            Ok(details) => Ok(details.map(|details| Listed::Backup(Box::new(details)))),
            Err(e) => self.catalog.require_same().map(|()| Some(Listed::Unreadable(Unreadable::new(id, &e)))),
        }
    }

    /// The values that the metrics show of this moment.
    pub(crate) fn gauges(&self) -> Gauges {
        let config = self.config();
        let (running, thread_hangs) = {
            let state = self.state.lock();
            let job = state.running.as_ref().and_then(|id| state.jobs.get(id));
            let runs = job.filter(|job| job.status == Status::InProgress);
            (runs.map(Job::running), job.is_some() && runs.is_none())
        };
        let (free_bytes, size_bytes) = disk::free_bytes(self.catalog.directory()).unwrap_or_default();
        Gauges {
            running,
            thread_hangs,
            volume: Volume { free_bytes, size_bytes, reserve_bytes: reserve_on(config.reserve_bytes, size_bytes) },
            limit_bytes: self.limit.load(Relaxed),
            schedules: self.timetable.lock().states(),
            config,
        }
    }

    /// Computes anew how many bytes the deletion of each backup would free, the newest first. It may take long to find out which blocks
    /// are shared: after [`COUNTING_LIMIT`] the figures of the older backups are kept as they were.
    pub(crate) fn count_exclusive_bytes(&self) {
        let (Ok(ids), Ok(readable)) = (self.catalog.ids(), self.catalog.readable()) else { return };
        let began = Instant::now();
        let mut before = std::mem::take(&mut self.state.lock().exclusive_bytes);
        // One that is deleted meanwhile has its place, too: so it is seen to be gone.
        let mut counted: HashMap<BackupId, Option<u64>> = ids.into_iter().map(|id| (id, None)).collect();
        for Found { id, .. } in readable {
            let known = before.remove(&id).filter(|_| began.elapsed() > COUNTING_LIMIT);
            let bytes = known.unwrap_or_else(|| self.catalog.exclusive_bytes(&id));
            counted.insert(id, bytes);
        }
        let counted_garbage = self.catalog.has_garbage().unwrap_or(false);
        let mut state = self.state.lock();
        (state.exclusive_bytes, state.counted_garbage) = (counted, counted_garbage);
    }

    /// The identifiers of all backups, the newest first. If one is gone whose bytes were counted, another process has deleted it, and others
    /// may hold alone now what they shared with it: then all these figures are forgotten, and the backup thread counts again when it has
    /// nothing else to do. The same if garbage is gone that was there at the count.
    pub(crate) fn ids_newest_first(&self) -> Result<Vec<BackupId>> {
        let ids = self.catalog.ids_newest_first()?;
        let is_there: HashSet<&BackupId> = ids.iter().collect();
        let counted_garbage = self.state.lock().counted_garbage;
        let garbage_is_gone = counted_garbage && self.catalog.has_garbage().is_ok_and(|has_garbage| !has_garbage);
        let mut state = self.state.lock();
        if garbage_is_gone || !state.exclusive_bytes.keys().all(|id| is_there.contains(id)) {
            state.exclusive_bytes.clear();
            state.counted_garbage = false;
            // A tick that is there already is enough.
            let _ = self.ticker.get().map(|ticker| ticker.try_send(()));
        }
        drop(state);
        Ok(ids)
    }

    /// Every backup, the newest first.
    pub(crate) fn each(&self) -> Result<impl Iterator<Item = Result<Found>>> {
        Ok(self.catalog.found(self.ids_newest_first()?))
    }

    /// Counts again what was forgotten.
    pub(crate) fn count_forgotten_bytes(&self) {
        if self.state.lock().exclusive_bytes.is_empty() {
            self.count_exclusive_bytes();
        }
    }
}
