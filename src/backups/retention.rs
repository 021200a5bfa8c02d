//! Decides which backups to keep: a pure function from a list of backups and a policy to a verdict for each, with its reason.
//!
//! The newest backup is the one with the largest identifier: our identifiers always increase. The clock may have been wrong when a
//! backup was made, so its time only determines its day and its week.
//!
//! Invariants, for every input: foreign, pinned and running backups and the newest good backup are kept. Only good backups count
//! for a rule; one in which a verification found damage, or from which a node does not start, is not good, and is kept only if there
//! is no good one. Without a rule no backup is deleted. Judging the kept backups again deletes no further one.

use std::collections::BTreeSet;

use crate::config::schedule::Policy;
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
    /// Whether it has the Pact databases.
    pub has_pact: bool,
    /// When it began, milliseconds since the epoch.
    pub started_ms: u64,
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
    /// It, or a note in it, could not be read; the log says why. It is kept and counts for no rule; its other properties are not known.
    Unread,
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
    good.iter().find(|i| backups[**i].has_pact).into_iter().for_each(|i| keep(*i, "last good with Pact"));
    good.iter().take(policy.keep_last as usize).for_each(|i| keep(*i, "keep-last"));
    let day = |i: usize| backups[i].started_ms / DAY_MS;
    // The epoch was a Thursday: three days added, weeks begin on Monday.
    let week = |i: usize| (day(i) + 3) / 7;
    let month = |i: usize| month_of(day(i));
    let has_pact = |i: usize| backups[i].has_pact;
    for i in newest_of_each(&good, policy.keep_daily, &day, &has_pact) {
        keep(i, "keep-daily");
    }
    for i in newest_of_each(&good, policy.keep_weekly, &week, &has_pact) {
        keep(i, "keep-weekly");
    }
    for i in newest_of_each(&good, policy.keep_monthly, &month, &has_pact) {
        keep(i, "keep-monthly");
    }
    verdicts
}

/// The first backup of each period and the first one with Pact, for the first `count` periods.
fn newest_of_each(
    good: &[usize],
    count: u32,
    period: &dyn Fn(usize) -> u64,
    has_pact: &dyn Fn(usize) -> bool,
) -> Vec<usize> {
    let (mut seen, mut seen_with_pact) = (BTreeSet::new(), BTreeSet::new());
    let mut kept = Vec::new();
    for i in good.iter().copied() {
        let of = period(i);
        let is_first = !seen.contains(&of);
        if is_first && seen.len() >= count as usize {
            continue;
        }
        seen.insert(of);
        let is_first_with_pact = has_pact(i) && seen_with_pact.insert(of);
        if is_first || is_first_with_pact {
            kept.push(i);
        }
    }
    kept
}

/// The month of a day since the epoch, as a number that grows by one from month to month: the days of the Gregorian calendar, in years
/// that begin in March (Howard Hinnant, `civil_from_days`).
fn month_of(day: u64) -> u64 {
    let since_march_of_0 = day + 719_468;
    let (era, of_era) = (since_march_of_0 / 146_097, since_march_of_0 % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    (era * 400 + year_of_era) * 12 + (5 * of_year + 2) / 153
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_have_the_days_of_the_calendar() {
        let (mut day, mut before) = (0, month_of(0));
        for year in 1970..2500_u64 {
            let is_leap = (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400);
            for days in [31, if is_leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
                assert!((day..day + days).all(|day| month_of(day) == before), "{year}: {day}");
                day += days;
                before += 1;
            }
        }
        assert!(month_of(u64::MAX / DAY_MS) > before, "a damaged record has a month, too");
    }
}
