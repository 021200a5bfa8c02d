//! Decides which backups to keep: a pure function from a list of backups and a policy to a verdict for each, with its reason.
//!
//! The newest backup is the one with the largest identifier: our identifiers always increase. The clock may have been wrong when a
//! backup was made, so its time only determines its day and its week.
//!
//! Invariants, for every input: foreign, pinned and running backups and the newest good backup are kept. Only good backups count
//! for a rule; one in which a verification found damage, or from which a node does not start, is not good, and is kept only if there
//! is no good one. Without a rule no backup is deleted. Judging the kept backups again deletes no further one.

use std::collections::BTreeSet;

use crate::format::record::Status;
use crate::id::BackupId;

/// The properties of a backup that decide whether it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its identifier.
    pub id: BackupId,
    /// Its status.
    pub status: Status,
    /// Whether another program made it.
    pub foreign: bool,
    /// Whether an operator pinned it.
    pub pinned: bool,
    /// Whether its last verification found faults.
    pub damaged: bool,
    /// Whether it was proved that a node does not start from it.
    pub refuted: bool,
    /// When it began, milliseconds since the epoch.
    pub started_ms: u64,
}

/// How many good backups to keep. A backup that any rule keeps is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// Keeps this many of the newest.
    pub keep_last: u32,
    /// Keeps the newest of each day (UTC), for this many days that have a backup.
    pub keep_daily: u32,
    /// Keeps the newest of each week (Monday to Sunday, UTC), for this many weeks that have a backup.
    pub keep_weekly: u32,
}

/// Whether a backup is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is kept, for this reason.
    Keep(&'static str),
    /// It is deleted.
    Delete,
    /// Another process has deleted it meanwhile.
    Gone,
    /// It could not be deleted; the log says why.
    Failed,
}

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// The places of the good backups, newest first.
pub(crate) fn good_newest_first(backups: &[Candidate]) -> Vec<usize> {
    let mut newest_first: Vec<usize> = (0..backups.len()).collect();
    newest_first.sort_by_key(|i| std::cmp::Reverse((backups[*i].id.number(), &backups[*i].id)));
    let is_good = |i: &usize| {
        let backup = &backups[*i];
        backup.status == Status::Done && !backup.foreign && !backup.damaged && !backup.refuted
    };
    newest_first.into_iter().filter(is_good).collect()
}

/// The verdict for each backup, in the order of the input.
pub fn judge(backups: &[Candidate], policy: Policy) -> Vec<Verdict> {
    let good = good_newest_first(backups);
    let mut verdicts = vec![Verdict::Delete; backups.len()];
    let mut keep = |i: usize, why: &'static str| {
        if verdicts[i] == Verdict::Delete {
            verdicts[i] = Verdict::Keep(why);
        }
    };
    for (i, backup) in backups.iter().enumerate() {
        if backup.foreign {
            keep(i, "foreign");
        } else if backup.pinned {
            keep(i, "pinned");
        } else if backup.status == Status::InProgress {
            keep(i, "in progress");
        } else if policy == Policy::default() {
            keep(i, "no rule given");
        } else if backup.damaged && good.is_empty() {
            keep(i, "damaged, but there is no good one");
        } else if backup.refuted && good.is_empty() {
            keep(i, "a node does not start from it, but there is no good one");
        }
    }
    good.iter().take(1).for_each(|i| keep(*i, "last good"));
    good.iter().take(policy.keep_last as usize).for_each(|i| keep(*i, "keep-last"));
    let day = |i: usize| backups[i].started_ms / DAY_MS;
    // The epoch was a Thursday: three days added, weeks begin on Monday.
    let week = |i: usize| (day(i) + 3) / 7;
    for i in newest_of_each(&good, policy.keep_daily, day) {
        keep(i, "keep-daily");
    }
    for i in newest_of_each(&good, policy.keep_weekly, week) {
        keep(i, "keep-weekly");
    }
    verdicts
}

/// The first backup of each period, for the first `count` periods.
fn newest_of_each(good: &[usize], count: u32, period: impl Fn(usize) -> u64) -> Vec<usize> {
    let mut seen = BTreeSet::new();
    let is_first = |i: &usize| seen.insert(period(*i));
    good.iter().copied().filter(is_first).take(count as usize).collect()
}
