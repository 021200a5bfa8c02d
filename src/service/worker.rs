//! The backup thread: takes requests from the channel, makes one backup after the other, and between backups removes garbage, makes
//! the start-up proof that the newest backup lacks, and computes missing checksums.
//!
//! Invariants
//! - Only this thread changes the catalog or reads a source.
//! - Work between backups ends as soon as a request arrives.

use std::sync::Arc;

use crossbeam_channel::{Receiver, TryRecvError};

use crate::backups::start_proofs;
use crate::backups::sums;
use crate::capture::rocksdb::pins;
use crate::control::{Control, Stop};
use crate::disk::sys;
use crate::error::{Kind, Result};
use crate::service::job;
use crate::service::shared::{Request, Shared};

/// Serves requests until the channel is closed and nothing is left to do.
pub(crate) fn work(shared: &Arc<Shared>, requests: &Receiver<Request>) {
    sys::step_back();
    for e in pins::clear_left(&shared.sources) {
        log::warn!("pins not removed reason={:?}", e.chain());
    }
    shared.count_exclusive_bytes();
    let (mut has_garbage, mut lacks_proof, mut lacks_sums) = (true, true, true);
    loop {
        let request = match requests.try_recv() {
            Ok(request) => request,
            Err(_) if has_garbage => {
                has_garbage = sweep(shared, requests);
                continue;
            }
            Err(_) if lacks_proof => {
                lacks_proof = false;
                prove(shared, requests);
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
        (has_garbage, lacks_proof, lacks_sums) = (true, true, true);
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

/// Does work until a request arrives; `None` if one is there already.
fn while_idle<T>(
    shared: &Shared,
    requests: &Receiver<Request>,
    work: impl FnOnce(&Control) -> Result<T>,
) -> Option<Result<T>> {
    let control = Arc::new(Control::limited(Arc::clone(&shared.limit)));
    {
        let mut state = shared.state.lock();
        if state.is_stopping || !requests.is_empty() {
            return None;
        }
        state.idle_work = Some(Arc::clone(&control));
    }
    let done = work(&control);
    shared.state.lock().idle_work = None;
    Some(done)
}

/// Makes the start-up proof of the newest backup if it has none: it took too long for the job, or another program made the backup.
fn prove(shared: &Shared, requests: &Receiver<Request>) {
    if shared.config.verify.is_none() {
        return;
    }
    let program = shared.config.heights_program.as_deref();
    match while_idle(shared, requests, |control| start_proofs::prove_newest(&shared.catalog, program, control)) {
        None | Some(Ok(None)) => {}
        Some(Ok(Some(id))) => log::info!("start-up proof made id={id}"),
        Some(Err(e)) if e.kind() == Kind::Cancelled => log::debug!("start-up proof postponed reason={:?}", e.chain()),
        Some(Err(e)) => log::warn!("start not proved reason={:?}", e.chain()),
    }
}

/// Computes the checksums that the newest good backup lacks.
fn sum(shared: &Shared, requests: &Receiver<Request>) {
    match while_idle(shared, requests, |control| sums::write_newest(&shared.catalog, shared.config.sums, control)) {
        None | Some(Ok(None)) => {}
        Some(Ok(Some((id, read_count)))) => log::info!("checksums written id={id} files_read={read_count}"),
        Some(Err(e)) if e.kind() == Kind::Cancelled => log::debug!("checksums postponed reason={:?}", e.chain()),
        Some(Err(e)) => log::warn!("checksums not written reason={:?}", e.chain()),
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
