//! The backup thread: takes requests from the channel, makes one backup after the other, and between backups removes garbage and
//! computes missing checksums.
//!
//! Invariants
//! - Only this thread changes the catalog or reads a source.
//! - Work between backups ends as soon as a request arrives.

use std::sync::Arc;

use crossbeam_channel::{Receiver, TryRecvError};

use crate::backups::sums;
use crate::capture::rocksdb::pins;
use crate::control::{Control, Stop};
use crate::disk::sys;
use crate::error::Kind;
use crate::service::job;
use crate::service::shared::{Request, Shared};

/// Serves requests until the channel is closed and nothing is left to do.
pub(crate) fn work(shared: &Arc<Shared>, requests: &Receiver<Request>) {
    sys::step_back();
    for e in pins::clear_left(&shared.sources) {
        log::warn!("pins not removed reason={:?}", e.chain());
    }
    shared.count_exclusive_bytes();
    let (mut has_garbage, mut lacks_sums) = (true, true);
    loop {
        let request = match requests.try_recv() {
            Ok(request) => request,
            Err(_) if has_garbage => {
                has_garbage = sweep(shared, requests);
                continue;
            }
            Err(_) if lacks_sums => {
                lacks_sums = false;
                sum(shared, requests);
                continue;
            }
            Err(TryRecvError::Disconnected) => return,
            Err(TryRecvError::Empty) => match requests.recv() {
                Ok(request) => request,
                Err(_) => return,
            },
        };
        make(shared, request, requests);
        shared.count_exclusive_bytes();
        (has_garbage, lacks_sums) = (true, true);
    }
}

/// Answers a request: makes the backup, or says why not.
fn make(shared: &Arc<Shared>, request: Request, requests: &Receiver<Request>) {
    let (backup, control) = match job::begin(shared, request.make) {
        Ok(begun) => begun,
        Err(e) => {
            if e.kind() != Kind::Usage {
                log::error!("backup refused reason={:?}", e.chain());
            }
            let running = (e.kind() == Kind::Busy).then(|| shared.catalog.running().ok()?).flatten();
            // A caller that has gone away needs no answer.
            let _ = request.reply.send(running.ok_or(e));
            return;
        }
    };
    let id = backup.id().clone();
    let _ = request.reply.send(Ok(id.clone()));
    {
        let mut state = shared.state.lock();
        state.running = Some(id.clone());
        if state.is_stopping {
            control.stop(Stop::ShutDown);
        }
        // Requests that arrived before `running` was set get the same identifier.
        for late in requests.try_iter() {
            let _ = late.reply.send(Ok(id.clone()));
        }
    }
    job::run(shared, backup, &control);
}

/// Computes the checksums that the newest good backup lacks, until a request arrives.
fn sum(shared: &Shared, requests: &Receiver<Request>) {
    let work = Arc::new(Control::limited(Arc::clone(&shared.limit)));
    {
        let mut state = shared.state.lock();
        if state.is_stopping || !requests.is_empty() {
            return;
        }
        state.idle_work = Some(Arc::clone(&work));
    }
    let summed = sums::write_newest(&shared.catalog, shared.config.sums, &work);
    shared.state.lock().idle_work = None;
    match summed {
        Ok(None) => {}
        Ok(Some((id, read_count))) => log::info!("checksums written id={id} files_read={read_count}"),
        Err(e) if e.kind() == Kind::Cancelled => log::debug!("checksums postponed reason={:?}", e.chain()),
        Err(e) => log::warn!("checksums not written reason={:?}", e.chain()),
    }
}

/// Removes garbage until a request arrives. Returns whether some is left that can be removed later.
fn sweep(shared: &Shared, requests: &Receiver<Request>) -> bool {
    let is_idle = || requests.is_empty() && !shared.state.lock().is_stopping;
    match shared.catalog.sweep(&is_idle) {
        Ok(is_finished) => !is_finished && is_idle(),
        Err(e) => {
            log::warn!("garbage not removed reason={:?}", e.chain());
            false
        }
    }
}
