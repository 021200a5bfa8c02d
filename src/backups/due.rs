//! Decides when the next backup of a schedule is due: pure functions from the backups that there are, the schedule and the time.
//!
//! Nothing is remembered: the backups themselves say when the last one was made and which attempts failed. So a restart, a night in which
//! the host was off and a clock that was set need no care.
//!
//! ```text
//! newest good backup            due: the next moment of the schedule after its begin, and the jitter
//! its own attempts that failed  not before the last one and a delay, which doubles with each: a minute, two, four … an hour;
//! since                         and a bounded number in 24 hours
//! ```
//! A good backup counts, whoever asked for it. Of the failures only those of the schedule itself count: the record of a backup names the
//! schedule for which it was made. A client that asks again and again, or another schedule, must not use up the attempts of this one, nor
//! delay it for ever. If what failed for them fails for the schedule, too, that costs one attempt, which begins its own delays.
//!
//! A backup counts if it is good, no damage is known, and no proof says that a node does not start from it; for a schedule with Pact only
//! one with Pact. A backup that is done and does not count is an attempt that failed: otherwise a node that does not start would be
//! backed up without a pause.
//!
//! # The clock
//! The newest backup is the one with the largest identifier, whatever its time. If its time is ahead of the clock by at most a tenth of
//! the interval, it is believed: the clock was set right by a few minutes, and that must not make a second backup. If it is further
//! ahead, the clock was set back since, by an unknown time, and a backup is due at once. The time of that one is right, and it is the
//! newest from then on. If that one fails again and again, the clock comes to the time of the newest good backup in the end; but then a
//! later backup, a failed one or one of another schedule, began before it, and it is not believed either. Older backups cannot decide in
//! place of one from the future: as time goes on, one after the other of those that were made before the clock was set back would seem to be
//! new. So a clock that is set costs one backup too many, or delays one by an interval and a tenth; it never stops the backups, and never
//! makes them run in a loop.

use std::time::Duration;

use crate::config::schedule::Schedule;
use crate::id::BackupId;

const DAY_MS: u64 = 24 * 3600 * 1000;

/// The delay after the first failure, and the longest one.
const FIRST_DELAY_MS: u64 = 60 * 1000;
const LONGEST_DELAY_MS: u64 = 3600 * 1000;

/// The shortest delay after the first failure, for schedules of seconds.
const LEAST_DELAY_MS: u64 = 1000;

/// By which share of the interval the time of a backup may be ahead of the clock.
const AHEAD_SHARE: u64 = 10;

/// How many attempts may fail within 24 hours, beside those that the schedule itself demands.
const RETRIES_A_DAY: u64 = 12;

/// A backup of ours that is not being made any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) id: BackupId,
    pub(crate) started_ms: u64,
    pub(crate) ended_ms: u64,
    pub(crate) has_pact: bool,
    /// The schedule for which it was made, as text.
    pub(crate) schedule: Option<String>,
    /// Whether it is done, without known damage, and not refuted: a node can start from it, as far as is known.
    pub(crate) is_good: bool,
}

impl Ended {
    /// Whether it counts for a schedule or a caller that wants Pact, or does not.
    fn counts(&self, wants_pact: bool) -> bool {
        self.is_good && (self.has_pact || !wants_pact)
    }
}

/// When a backup is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Due {
    /// Milliseconds since the epoch; now or before means at once.
    pub(crate) at_ms: u64,
    /// The attempts of the schedule that failed since the newest good backup.
    pub(crate) failed_count: u64,
}

/// The newest backup that counts, if its time can be believed. `backups` are in the order of their identifiers, the newest first.
pub(crate) fn newest(backups: &[Ended], wants_pact: bool, interval_ms: u64, now_ms: u64) -> Option<&Ended> {
    let at = backups.iter().position(|backup| backup.counts(wants_pact))?;
    let (newest, since) = (&backups[at], &backups[..at]);
    // The clock as it was at its earliest since then.
    let earliest_ms = since.iter().map(|backup| backup.started_ms).chain([now_ms]).min()?;
    (newest.started_ms <= earliest_ms.saturating_add(interval_ms / AHEAD_SHARE)).then_some(newest)
}

/// When the next backup of a schedule is due. `backups` are all that have ended, the newest first; `refused_ms` are the times of its
/// attempts since the last good one that left no backup at all; `seed` decides the jitter.
pub(crate) fn next(schedule: &Schedule, backups: &[Ended], refused_ms: &[u64], now_ms: u64, seed: u64) -> Due {
    let every_ms = millis(schedule.every);
    let regular_ms = newest(backups, schedule.pact, every_ms, now_ms).map_or(now_ms, |newest| {
        let moment_ms = next_moment(schedule, newest.started_ms);
        moment_ms.saturating_add(jitter_ms(schedule, moment_ms, seed))
    });
    let name = schedule.to_string();
    let is_own = |backup: &&Ended| backup.has_pact == schedule.pact && backup.schedule.as_deref() == Some(&name);
    let failed = backups
        .iter()
        .take_while(|backup| !backup.counts(schedule.pact))
        .filter(|backup| !backup.is_good && is_own(backup))
        .map(|backup| backup.ended_ms);
    // An attempt in the far future was made before the clock was set back.
    let is_believed = |at_ms: &u64| *at_ms <= now_ms.saturating_add(LONGEST_DELAY_MS);
    let mut failed: Vec<u64> = failed.chain(refused_ms.iter().copied()).filter(is_believed).collect();
    failed.sort_unstable_by(|a, b| b.cmp(a));
    let at_ms = regular_ms.max(retry_ms(&failed, every_ms));
    Due { at_ms, failed_count: failed.len() as u64 }
}

/// The earliest time of the next attempt after these failures, the newest first.
fn retry_ms(failed: &[u64], every_ms: u64) -> u64 {
    let Some(last_ms) = failed.first() else { return 0 };
    let first_delay_ms = first_delay_ms(every_ms);
    let doublings = u32::try_from(failed.len() - 1).unwrap_or(u32::MAX).min(16);
    let delay_ms = (first_delay_ms << doublings).min(LONGEST_DELAY_MS.min(every_ms).max(first_delay_ms));
    let in_a_day = usize::try_from(RETRIES_A_DAY + DAY_MS / every_ms.max(1)).unwrap_or(usize::MAX);
    // If the bound is reached, the oldest of these failures must first be 24 hours old.
    let bound_ms = failed.get(in_a_day - 1).map_or(0, |oldest_ms| oldest_ms.saturating_add(DAY_MS));
    last_ms.saturating_add(delay_ms).max(bound_ms)
}

/// The delay after the first failure of a schedule with this interval.
pub(crate) fn first_delay_ms(every_ms: u64) -> u64 {
    (every_ms / 60).clamp(LEAST_DELAY_MS, FIRST_DELAY_MS)
}

/// The first moment of a schedule after a time.
fn next_moment(schedule: &Schedule, after_ms: u64) -> u64 {
    let every_ms = millis(schedule.every).max(1);
    let Some(at) = schedule.at else { return after_ms.saturating_add(every_ms) };
    let first_ms = at.seconds() * 1000 % every_ms;
    let passed_count = if after_ms < first_ms { 0 } else { (after_ms - first_ms) / every_ms + 1 };
    passed_count.saturating_mul(every_ms).saturating_add(first_ms)
}

/// The delay of the backup of a moment: always the same for one seed, and below the jitter of the schedule.
fn jitter_ms(schedule: &Schedule, moment_ms: u64, seed: u64) -> u64 {
    // SplitMix64: neighbouring moments get unrelated numbers.
    let mut mixed = moment_ms.wrapping_add(seed).wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)).checked_rem(millis(schedule.jitter)).unwrap_or(0)
}

pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::config::schedule::{parse_interval, parse_time_of_day};

    const HOUR_MS: u64 = 3_600_000;
    /// The first of January 2024, a midnight.
    const START_MS: u64 = 1_704_067_200_000;

    fn schedule(every: &str, at: Option<&str>, pact: bool, jitter: &str) -> Schedule {
        let at = at.map(|text| parse_time_of_day(text).unwrap());
        Schedule::new(Some(parse_interval(every).unwrap()), at, pact, parse_interval(jitter).unwrap()).unwrap()
    }

    fn at(hours: f64) -> u64 {
        START_MS + (hours * HOUR_MS as f64) as u64
    }

    /// A backup that began this number of hours after the start, and took a minute. A client asked for it.
    fn made(hours: f64, has_pact: bool, is_good: bool) -> Ended {
        let started_ms = at(hours);
        let id = BackupId::from_millis(started_ms);
        Ended { id, started_ms, ended_ms: started_ms + 60_000, has_pact, schedule: None, is_good }
    }

    /// The same, made for a schedule.
    fn made_for(schedule: &Schedule, hours: f64, is_good: bool) -> Ended {
        Ended { schedule: Some(schedule.to_string()), ..made(hours, schedule.pact, is_good) }
    }

    fn due(schedule: &Schedule, backups: &[Ended], now_hours: f64) -> f64 {
        let due = next(schedule, backups, &[], at(now_hours), 0);
        (due.at_ms as f64 - START_MS as f64) / HOUR_MS as f64
    }

    #[test]
    fn a_backup_is_due_an_interval_after_the_newest_one_that_counts() {
        let hourly = schedule("1h", None, false, "0s");
        assert_eq!(due(&hourly, &[], 5.0), 5.0, "without any, at once");
        assert_eq!(due(&hourly, &[made(4.5, false, true), made(4.0, true, true)], 5.0), 5.5);
        assert_eq!(due(&hourly, &[made(4.5, true, true)], 5.0), 5.5, "one with Pact is enough");
        let with_pact = schedule("24h", None, true, "0s");
        assert_eq!(due(&with_pact, &[made(4.5, false, true), made(4.0, true, true)], 5.0), 28.0);
        assert_eq!(due(&with_pact, &[made(4.5, false, true)], 5.0), 5.0);
    }

    #[test]
    fn moments_of_the_day_are_those_after_the_newest_backup() {
        let nightly = schedule("24h", Some("03:00"), false, "0s");
        for (newest, expected) in [(1.0, 3.0), (2.999, 3.0), (3.0, 27.0), (9.0, 27.0), (26.9, 27.0)] {
            assert_eq!(due(&nightly, &[made(newest, false, true)], 48.0), expected, "{newest}");
        }
        let four = schedule("6h", Some("03:00"), false, "0s");
        for (newest, expected) in [(1.0, 3.0), (3.1, 9.0), (21.0, 27.0)] {
            assert_eq!(due(&four, &[made(newest, false, true)], 48.0), expected, "{newest}");
        }
        assert_eq!(next_moment(&nightly, 0), 3 * HOUR_MS);
        assert_eq!(next_moment(&nightly, u64::MAX), u64::MAX, "the record may be damaged");
    }

    #[test]
    fn jitter_is_below_its_limit_and_always_the_same() {
        let nightly = schedule("24h", Some("03:00"), false, "30m");
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let delay_ms = next(&nightly, &[made(1.0, false, true)], &[], at(2.0), seed).at_ms - at(3.0);
            assert!(delay_ms < HOUR_MS / 2);
            assert_eq!(next(&nightly, &[made(1.0, false, true)], &[], at(3.1), seed).at_ms - at(3.0), delay_ms);
            seen.insert(delay_ms / 60_000);
        }
        assert!(seen.len() > 20, "{seen:?}");
    }

    /// The clock was set back, and what was due at once failed until the clock was near the time of the newest good backup again.
    #[test]
    fn a_backup_from_the_future_is_not_believed_when_its_time_comes() {
        let nightly = schedule("24h", Some("03:00"), true, "0s");
        let later = |count: u64, hours: f64, has_pact: bool| Ended {
            id: BackupId::from_millis(at(27.0) + count),
            ..made(hours, has_pact, !has_pact)
        };
        let good = made(27.0, true, true);
        // In the mean time another schedule made a good one without Pact; the failed one may have been deleted.
        for since in
            [vec![later(1, 18.0, true)], vec![later(2, 18.1, false)], vec![later(2, 18.1, false), later(1, 18.0, true)]]
        {
            let backups: Vec<Ended> = since.into_iter().chain([good.clone()]).collect();
            for now_hours in [20.0, 26.0, 28.0] {
                assert!(due(&nightly, &backups, now_hours) <= now_hours, "{now_hours}");
            }
        }
        // One that was set back by little says nothing.
        assert_eq!(due(&nightly, &[later(1, 26.0, false), good.clone()], 26.5), 51.0);
    }

    /// A clock that was set back by little makes no second backup, and one that was set back by much stops nothing.
    #[test]
    fn a_backup_from_the_future_is_believed_within_a_tenth_of_the_interval() {
        let daily = schedule("24h", None, false, "0s");
        assert_eq!(due(&daily, &[made(12.0, false, true), made(1.0, false, true)], 10.0), 36.0);
        assert_eq!(due(&daily, &[made(13.0, false, true), made(1.0, false, true)], 10.0), 10.0);
        assert_eq!(due(&daily, &[made(3000.0, false, true)], 10.0), 10.0);
        // After the clock was set back by ten days, none of the ten backups from the future delays the next one …
        let ahead: Vec<Ended> = (1..=10).rev().map(|day| made(24.0 * f64::from(day), false, true)).collect();
        [1.0, 25.0, 49.0].into_iter().for_each(|now| assert_eq!(due(&daily, &ahead, now), now));
        // … nor the one after that, which has the largest identifier.
        let id = BackupId::from_millis(at(24.0 * 10.0) + 1);
        let newer: Vec<Ended> = [Ended { id, ..made(1.0, false, true) }].into_iter().chain(ahead).collect();
        assert_eq!(due(&daily, &newer, 20.0), 25.0);
    }

    #[test]
    fn failures_are_repeated_later_and_later_and_are_bounded_in_a_day() {
        let nightly = schedule("24h", Some("03:00"), true, "0s");
        let mut backups = vec![made(3.0, true, true)];
        let (mut now_ms, mut times) = (at(27.0), Vec::new());
        while now_ms < at(27.0 + 72.0) {
            let due = next(&nightly, &backups, &[], now_ms, 0);
            assert_eq!(due.failed_count, times.len() as u64);
            if due.at_ms > now_ms {
                now_ms = due.at_ms;
                continue;
            }
            times.push(now_ms);
            let failed = Ended { started_ms: now_ms, ended_ms: now_ms, ..made_for(&nightly, 27.0, false) };
            backups.insert(0, Ended { id: BackupId::from_millis(now_ms), ..failed });
        }
        let minutes: Vec<u64> = times.windows(2).map(|pair| (pair[1] - pair[0]) / 60_000).collect();
        assert_eq!(minutes[..8], [1, 2, 4, 8, 16, 32, 60, 60]);
        for began in &times {
            let in_a_day = times.iter().filter(|other| (*began..*began + DAY_MS).contains(other)).count() as u64;
            assert!(in_a_day <= RETRIES_A_DAY + 1, "{in_a_day} attempts in a day");
        }
        assert!(times.len() > 30, "it never gives up: {}", times.len());
        // A schedule of seconds tries again after a second.
        let fast = schedule("5s", None, false, "0s");
        let backups = [made_for(&fast, 2.0, false), made(1.0, false, true)];
        assert_eq!(next(&fast, &backups, &[], at(2.0), 0).at_ms, at(2.0) + 61_000);
    }

    /// A client whose backups fail every few minutes, and another schedule, neither use up its attempts nor delay it.
    #[test]
    fn only_its_own_failures_count_for_a_schedule() {
        let nightly = schedule("24h", Some("03:00"), true, "0s");
        let others = [schedule("24h", Some("03:00"), false, "0s"), schedule("12h", Some("03:00"), true, "0s")];
        let of_others = |n: u32| {
            let hours = 26.0 + f64::from(n) / 60.0;
            [made(hours, true, false), made_for(&others[0], hours, false), made_for(&others[1], hours, false)]
        };
        let mut backups: Vec<Ended> = (0..60).rev().flat_map(of_others).chain([made(3.0, true, true)]).collect();
        assert_eq!(next(&nightly, &backups, &[], at(27.0), 0), Due { at_ms: at(27.0), failed_count: 0 });
        backups.insert(1, made_for(&nightly, 27.0, false));
        assert_eq!(next(&nightly, &backups, &[], at(27.0), 0), Due { at_ms: at(27.0) + 120_000, failed_count: 1 });
        // Their good ones count.
        backups.insert(0, made_for(&others[1], 28.0, true));
        assert_eq!(next(&nightly, &backups, &[], at(28.0), 0), Due { at_ms: at(51.0), failed_count: 0 });
    }

    #[test]
    fn attempts_without_a_backup_count_unless_they_are_from_the_future() {
        let hourly = schedule("1h", None, false, "0s");
        let next = |refused: &[u64]| next(&hourly, &[], refused, at(5.0), 0);
        assert_eq!(next(&[at(4.9), at(4.999)]), Due { at_ms: at(4.999) + 120_000, failed_count: 2 });
        assert_eq!(next(&[at(90.0)]), Due { at_ms: at(5.0), failed_count: 0 });
    }
}
