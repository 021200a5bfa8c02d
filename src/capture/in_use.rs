//! Work on a finished backup keeps it from being deleted.
//!
//! There are two locks: the lock of the backup's file `.use`, which a job holds exclusively while it makes the backup, and the
//! lock of the backup's directory, which always exists.
//!
//! | | `.use` | the directory |
//! |---|---|---|
//! | verify, restore, pin, the base of the next backup | shared | shared |
//! | the hooks of a job, from its begin until the last one has ended | shared while they run | shared |
//! | write checksums, which takes hours and can be interrupted | shared | not locked; stops when another process locks it |
//! | delete | exclusive, waited for | exclusive, locked first |
//!
//! Invariant: a file that is in a backup after [`share`] exists until the result of [`share`] is dropped.

use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::control::{Control, Stop};
use crate::disk::Owner;
use crate::disk::lock::Lock;
use crate::disk::nofollow;
use crate::error::{IoContext, Result};
use crate::format::layout::USE_FILE;

/// How long a delete waits for the end of work that can be interrupted, and the pause between two attempts.
const YIELD_LIMIT: Duration = Duration::from_secs(5);
const YIELD_PAUSE: Duration = Duration::from_millis(20);

/// How often work that can be interrupted checks whether the backup is to be deleted.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// The stack of a thread that only waits and checks.
const STACK_BYTES: usize = 256 * 1024;

/// The locks of one backup.
#[derive(Debug)]
#[must_use]
pub(crate) struct InUse {
    _directory: Lock,
    _use: Option<Lock>,
}

/// Keeps a backup from being deleted; `None` if it is being made or deleted. It may have been deleted just before: the caller
/// must look again.
pub(crate) fn share(backup: &Path) -> Result<Option<InUse>> {
    let Some(directory) = Lock::try_share_directory(backup)? else { return Ok(None) };
    let of_use = share_use(backup)?;
    Ok(of_use.map(|of_use| InUse { _directory: directory, _use: of_use }))
}

/// Keeps a backup from being deleted, also one that this process is making. Others may take `.use` meanwhile. `None` if the backup is
/// being deleted.
pub(crate) fn keep(backup: &Path) -> Result<Option<InUse>> {
    Ok(Lock::try_share_directory(backup)?.map(|directory| InUse { _directory: directory, _use: None }))
}

/// Takes a shared lock of `.use`. The outer `None`: it is locked. The inner `None`: the backup has no such file, for example
/// because an operator copied it here.
fn share_use(backup: &Path) -> Result<Option<Option<Lock>>> {
    let path = backup.join(USE_FILE);
    let there = nofollow::look(&path).context(|| format!("cannot look at {}", path.display()))?;
    if there.is_some() { Ok(Lock::try_share(&path)?.map(Some)) } else { Ok(Some(None)) }
}

/// Locks a backup exclusively, in order to delete it; `None` if other work on it does not end within [`YIELD_LIMIT`].
pub(crate) fn take(backup: &Path, owner: Option<Owner>) -> Result<Option<InUse>> {
    let Some(directory) = Lock::try_take_directory(backup)? else { return Ok(None) };
    let deadline = Instant::now() + YIELD_LIMIT;
    loop {
        if let Some(of_use) = Lock::try_take(&backup.join(USE_FILE), owner)? {
            return Ok(Some(InUse { _directory: directory, _use: Some(of_use) }));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(YIELD_PAUSE);
    }
}

/// Does work on a backup that can be interrupted: stops `control` if the backup is to be deleted meanwhile. `Ok(None)` if it is
/// already being made or deleted.
pub(crate) fn yielding<T: Send>(
    backup: &Path,
    control: &Control,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<Option<T>> {
    let Some(_use_lock) = share_use(backup)? else { return Ok(None) };
    let (ended, end) = mpsc::channel::<()>();
    let watch = move || {
        while end.recv_timeout(LOOK_INTERVAL) == Err(RecvTimeoutError::Timeout) {
            if matches!(Lock::try_share_directory(backup), Ok(None)) {
                control.stop(Stop::Deleted);
                return;
            }
        }
    };
    thread::scope(|scope| {
        // If this thread cannot be started, a delete fails because the backup is in use.
        let _ = thread::Builder::new().name("yield".to_owned()).stack_size(STACK_BYTES).spawn_scoped(scope, watch);
        let result = work();
        drop(ended);
        result.map(Some)
    })
}
