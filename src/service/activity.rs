//! What the service does at the moment, for a supervisor that shows it, and for one that asks whether the service is alive.
//!
//! Invariant: a thread that waits here sleeps until a job begins or ends.

use std::time::Duration;

use crate::backups::details::{Details, Progress};
use crate::error::Result;
use crate::format::record::Status;
use crate::id::BackupId;
use crate::service::Service;
use crate::service::shared::Changes;

impl Service {
    /// The job that runs, and its progress.
    pub fn running(&self) -> Option<(BackupId, Progress)> {
        let state = self.shared().state.lock();
        let running = state.jobs.iter().find(|(_, job)| job.status == Status::InProgress);
        running.map(|(id, job)| (id.clone(), job.progress()))
    }

    /// The newest good backup, also one that another program made. It reads the backup directory, which takes as long as the disk does.
    ///
    /// # Errors
    /// [`crate::Kind::Io`]: the backup directory, or a backup that is newer, cannot be read.
    pub fn newest_good(&self) -> Result<Option<Details>> {
        for found in self.shared().each()? {
            let found = found?;
            let details = self.shared().details(&found.id.clone(), Ok(Some(found)))?;
            if details.as_ref().is_some_and(Details::is_good) {
                return Ok(details);
            }
        }
        Ok(None)
    }

    /// Waits until more jobs have begun and ended than `seen_count`, or until this time has passed; returns how many have. `None` is
    /// without a limit.
    pub fn wait_for_change(&self, seen_count: u64, limit: Option<Duration>) -> u64 {
        let Changes { count, changed } = &self.shared().changes;
        let mut count = count.lock();
        let is_old = |count: &mut u64| *count <= seen_count;
        match limit {
            Some(limit) => drop(changed.wait_while_for(&mut count, is_old, limit)),
            None => changed.wait_while(&mut count, is_old),
        }
        *count
    }

    /// Whether the state of the service can be had within this time: a request could be answered.
    pub fn is_responsive(&self, limit: Duration) -> bool {
        self.shared().state.try_lock_for(limit).is_some()
    }
}
