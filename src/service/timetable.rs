//! The schedules of the service: which backup is due now, when the next one is, and how the last attempt of each ended.
//!
//! What the backups on the disk tell is decided in `due`. Here is only what they cannot tell: attempts that left no record, and the last
//! good backup, if something removed it at once (a hook that moves backups to another host): otherwise the next one would follow
//! without a pause. After a restart both are forgotten, which costs one attempt.
//!
//! While another process makes a backup, a backup that is due is postponed: by a minute, again and again. That is no attempt, so it
//! delays none and counts for no bound; the time at which the backup was due stays as it was.
//!
//! If the schedules change while the service runs, those that make the same backups keep all that is known of them.
//!
//! Invariant: no I/O; the caller passes the backups and the time.

use serde::Serialize;

use crate::backups::due::{self, Due, Ended};
use crate::config::schedule::Schedule;
use crate::format::record::Scope;
use crate::id::BackupId;

/// The most failed attempts that are remembered, for each schedule.
const MAX_FAILED: usize = 1000;

/// The state of one schedule.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Scheduled {
    /// The schedule: `every 24h at 03:00`.
    pub schedule: String,
    /// What its backups cover.
    pub scope: Scope,
    /// When the next backup is due, milliseconds since the epoch; absent until that was decided for the first time.
    pub next_ms: Option<u64>,
    /// When the last attempt of this process began, milliseconds since the epoch.
    pub last_attempt_ms: Option<u64>,
    /// Whether that one made a good backup.
    pub last_succeeded: Option<bool>,
    /// Its attempts that failed since the newest good backup that counts.
    pub failed_count: u64,
}

/// All schedules of a service.
#[derive(Debug)]
pub(crate) struct Timetable {
    rows: Vec<Row>,
    seed: u64,
}

#[derive(Debug)]
struct Row {
    schedule: Schedule,
    state: Scheduled,
    /// The attempts that failed since the last good backup, the oldest first: when each began, and the backup that it made, if any.
    failed: Vec<(u64, Option<BackupId>)>,
    /// The last good backup that this process made.
    made: Option<Ended>,
    /// It is not tried again before this time, because another process makes a backup.
    postponed_ms: u64,
}

/// The next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Make the backup of this schedule now.
    Make(Schedule),
    /// Nothing is due before this time.
    WaitUntil(u64),
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It made a good backup.
    Good(BackupId),
    /// It made a backup, which failed.
    Failed(BackupId),
    /// It made no backup.
    Refused,
    /// There was none: another process makes a backup.
    Postponed,
}

impl Timetable {
    pub(crate) fn new(schedules: &[Schedule], seed: u64) -> Timetable {
        Timetable { rows: schedules.iter().map(|schedule| Row::new(*schedule)).collect(), seed }
    }

    /// Takes over other schedules.
    pub(crate) fn change(&mut self, schedules: &[Schedule]) {
        let mut before = std::mem::take(&mut self.rows);
        let row = |schedule: &Schedule| match before.iter().position(|row| row.schedule.makes_the_same(schedule)) {
            Some(at) => Row { schedule: *schedule, ..before.remove(at) },
            None => Row::new(*schedule),
        };
        self.rows = schedules.iter().map(row).collect();
    }

    pub(crate) fn states(&self) -> Vec<Scheduled> {
        self.rows.iter().map(|row| row.state.clone()).collect()
    }

    /// Decides the next step from the backups that have ended, the newest first. If several are due, one with Pact comes first: it may
    /// be enough for all.
    pub(crate) fn step(&mut self, backups: &[Ended], now_ms: u64) -> Step {
        for row in &mut self.rows {
            let due = row.next(backups, now_ms, self.seed);
            (row.state.next_ms, row.state.failed_count) = (Some(due.at_ms), due.failed_count);
        }
        let due = self.rows.iter().filter(|row| row.attempt_ms(now_ms) <= now_ms).max_by_key(|row| row.schedule.pact);
        match due {
            Some(row) => Step::Make(row.schedule),
            None => Step::WaitUntil(self.rows.iter().map(|row| row.attempt_ms(now_ms)).min().unwrap_or(u64::MAX)),
        }
    }

    /// The backups cannot be read: an attempt of each schedule failed.
    pub(crate) fn unreadable(&mut self, now_ms: u64) {
        self.rows.iter_mut().for_each(|row| row.end(now_ms, &Outcome::Refused));
    }

    /// Notes how the attempt of a schedule ended that began at `began_ms`.
    pub(crate) fn end(&mut self, schedule: &Schedule, began_ms: u64, outcome: Outcome) {
        // If it was configured twice, both have made the attempt.
        let rows = self.rows.iter_mut().filter(|row| row.schedule.makes_the_same(schedule));
        rows.for_each(|row| row.end(began_ms, &outcome));
    }
}

impl Row {
    fn new(schedule: Schedule) -> Row {
        let scope = if schedule.pact { Scope::RocksdbAndPact } else { Scope::Rocksdb };
        let state = Scheduled {
            schedule: schedule.to_string(),
            scope,
            next_ms: None,
            last_attempt_ms: None,
            last_succeeded: None,
            failed_count: 0,
        };
        Row { schedule, state, failed: Vec::new(), made: None, postponed_ms: 0 }
    }

    /// When the next attempt may begin.
    fn attempt_ms(&self, now_ms: u64) -> u64 {
        // One that is further away was decided before the clock was set back.
        let is_believed = self.postponed_ms <= now_ms.saturating_add(self.first_delay_ms());
        self.state.next_ms.unwrap_or(u64::MAX).max(if is_believed { self.postponed_ms } else { 0 })
    }

    fn end(&mut self, began_ms: u64, outcome: &Outcome) {
        match outcome {
            Outcome::Postponed => {
                self.postponed_ms = began_ms.saturating_add(self.first_delay_ms());
                return;
            }
            Outcome::Good(id) => {
                let (id, started_ms, ended_ms) = (id.clone(), began_ms, began_ms);
                let (has_pact, schedule) = (self.schedule.pact, Some(self.state.schedule.clone()));
                self.made = Some(Ended { id, started_ms, ended_ms, has_pact, schedule, is_good: true });
                self.failed.clear();
            }
            Outcome::Failed(id) => self.failed.push((began_ms, Some(id.clone()))),
            Outcome::Refused => self.failed.push((began_ms, None)),
        }
        self.state.last_attempt_ms = Some(began_ms);
        self.state.last_succeeded = Some(matches!(outcome, Outcome::Good(_)));
        let excess = self.failed.len().saturating_sub(MAX_FAILED);
        self.failed.drain(..excess);
    }

    fn first_delay_ms(&self) -> u64 {
        due::first_delay_ms(due::millis(self.schedule.every))
    }

    fn next(&mut self, backups: &[Ended], now_ms: u64, seed: u64) -> Due {
        let removed = self.made.as_ref().filter(|made| backups.iter().all(|backup| backup.id != made.id));
        let with_removed = removed.map(|made| {
            let mut all = backups.to_vec();
            // Identifiers increase, so it has its place among those that failed since.
            all.insert(all.partition_point(|backup| backup.id.number() > made.id.number()), made.clone());
            all
        });
        let known = with_removed.as_deref().unwrap_or(backups);
        let newest = due::newest(known, self.schedule.pact, due::millis(self.schedule.every), now_ms);
        self.failed.retain(|(at_ms, _)| newest.is_none_or(|newest| *at_ms > newest.started_ms));
        // Of the others, the record of the backup tells.
        let is_unknown = |made: &Option<BackupId>| known.iter().all(|backup| Some(&backup.id) != made.as_ref());
        let unknown = self.failed.iter().filter(|(_, made)| is_unknown(made));
        let unknown_ms: Vec<u64> = unknown.map(|(at_ms, _)| *at_ms).collect();
        due::next(&self.schedule, known, &unknown_ms, now_ms, seed)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::backups::retention::{Candidate, Verdict, judge};
    use crate::config::schedule::{Policy, parse_interval, parse_time_of_day};
    use crate::format::record::Status;

    const MINUTE_MS: u64 = 60_000;
    const HOUR_MS: u64 = 60 * MINUTE_MS;
    const DAY_MS: u64 = 24 * HOUR_MS;
    const MONTH_MS: u64 = 31 * DAY_MS;

    /// How many months are simulated; each has another seed.
    const MONTHS: u64 = 300;

    /// A good backup that a schedule made.
    struct Made {
        row: usize,
        /// Milliseconds of the true time since the begin of the month.
        true_ms: u64,
        wall_ms: u64,
        has_pact: bool,
        /// How often the clock was set before.
        steps_count: usize,
    }

    /// A month of one service: the clock is set, the service is down, attempts fail.
    struct Month {
        random: fastrand::Rng,
        schedules: Vec<Schedule>,
        timetable: Timetable,
        true_ms: u64,
        wall_ms: u64,
        /// At which true time the clock is set, and to which wall time of then.
        steps: Vec<(u64, u64)>,
        steps_count: usize,
        /// When the service is down, when attempts fail, and when another process makes a backup: true times, in order.
        outages: Vec<(u64, u64)>,
        failing: Vec<(u64, u64)>,
        busy: Vec<(u64, u64)>,
        backups: Vec<Ended>,
        last_number: u64,
        made: Vec<Made>,
        attempts_count: u64,
    }

    fn schedule(every: &str, at: Option<&str>, pact: bool, jitter: &str) -> Schedule {
        let at = at.map(|text| parse_time_of_day(text).unwrap());
        Schedule::new(Some(parse_interval(every).unwrap()), at, pact, parse_interval(jitter).unwrap()).unwrap()
    }

    fn spans(random: &mut fastrand::Rng, most: usize, longest_ms: u64) -> Vec<(u64, u64)> {
        let mut span = |_| {
            let from_ms = random.u64(..MONTH_MS);
            (from_ms, from_ms + random.u64(1..longest_ms))
        };
        let mut spans: Vec<(u64, u64)> = (0..most).map(&mut span).collect();
        spans.sort_unstable();
        spans
    }

    impl Month {
        fn new(seed: u64) -> Month {
            let mut random = fastrand::Rng::with_seed(seed);
            let choices = [
                vec![schedule("24h", Some("03:00"), true, "10m")],
                vec![schedule("24h", None, false, "0s")],
                vec![schedule("1h", None, false, "0s"), schedule("24h", Some("03:00"), true, "10m")],
                vec![schedule("6h", Some("01:30"), true, "1h"), schedule("2d", Some("12:00"), true, "0s")],
            ];
            let schedules = choices[random.usize(..choices.len())].clone();
            let start_ms = 1_704_067_200_000 + random.u64(..DAY_MS);
            let set = |random: &mut fastrand::Rng, true_ms: u64| {
                let by_ms = random.choice([5_000, HOUR_MS / 2, 2 * HOUR_MS, 26 * HOUR_MS, 40 * DAY_MS]).unwrap();
                let wall_ms = start_ms + true_ms;
                // The clock is wrong by that much, or right again.
                (true_ms, random.choice([wall_ms, wall_ms + by_ms, wall_ms - by_ms]).unwrap())
            };
            let mut at: Vec<u64> = (0..random.usize(..=6)).map(|_| random.u64(..MONTH_MS)).collect();
            at.sort_unstable();
            let steps = at.into_iter().map(|true_ms| set(&mut random, true_ms)).collect();
            let (downs_count, failing_count, busy_count) = (random.usize(..=5), random.usize(..=3), random.usize(..=3));
            let outages = spans(&mut random, downs_count, 12 * HOUR_MS);
            let busy = spans(&mut random, busy_count, 12 * HOUR_MS);
            let failing = spans(&mut random, failing_count, 30 * HOUR_MS);
            Month {
                timetable: Timetable::new(&schedules, random.u64(..)),
                random,
                schedules,
                true_ms: 0,
                wall_ms: start_ms,
                steps,
                steps_count: 0,
                outages,
                failing,
                busy,
                backups: Vec::new(),
                last_number: 0,
                made: Vec::new(),
                attempts_count: 0,
            }
        }

        /// Time goes on; the clock is set on the way. With `wakes`, it stops then: the timer ends its wait.
        fn pass(&mut self, ms: u64, wakes: bool) {
            let until_ms = self.true_ms + ms;
            while let Some((at_ms, wall_ms)) =
                self.steps.get(self.steps_count).copied().filter(|(at, _)| *at <= until_ms)
            {
                self.steps_count += 1;
                self.wall_ms = wall_ms + self.true_ms.saturating_sub(at_ms);
                self.true_ms = self.true_ms.max(at_ms);
                if wakes {
                    return;
                }
            }
            self.wall_ms += until_ms - self.true_ms;
            self.true_ms = until_ms;
        }

        fn is_in(&self, spans: &[(u64, u64)]) -> bool {
            spans.iter().any(|(from_ms, to_ms)| (*from_ms..*to_ms).contains(&self.true_ms))
        }

        fn next_id(&mut self) -> BackupId {
            self.last_number = self.wall_ms.max(self.last_number + 1);
            BackupId::from_millis(self.last_number)
        }

        /// A client asks for a backup, which fails.
        fn fail_for_client(&mut self) {
            let (id, now_ms, has_pact) = (self.next_id(), self.wall_ms, self.random.bool());
            let failed = Ended { id, started_ms: now_ms, ended_ms: now_ms, has_pact, schedule: None, is_good: false };
            self.backups.insert(0, failed);
        }

        fn attempt(&mut self, schedule: &Schedule) {
            let (began_ms, true_ms, steps_count) = (self.wall_ms, self.true_ms, self.steps_count);
            if self.is_in(&self.busy) {
                return self.timetable.end(schedule, began_ms, Outcome::Postponed);
            }
            self.attempts_count += 1;
            let fails = self.is_in(&self.failing);
            if fails && self.random.bool() {
                let ms = self.random.u64(..MINUTE_MS);
                self.pass(ms, false);
                return self.timetable.end(schedule, began_ms, Outcome::Refused);
            }
            let (id, has_pact) = (self.next_id(), schedule.pact);
            let duration_ms = self.random.u64(MINUTE_MS..20 * MINUTE_MS);
            self.pass(duration_ms, false);
            let ended_ms = self.wall_ms;
            let (id_made, schedule_made) = (id.clone(), Some(schedule.to_string()));
            let ended = Ended {
                id: id_made,
                started_ms: began_ms,
                ended_ms,
                has_pact,
                schedule: schedule_made,
                is_good: !fails,
            };
            self.backups.insert(0, ended);
            // What was done and turned out bad is a failure, too.
            let outcome = if fails && self.random.bool() { Outcome::Failed(id) } else { Outcome::Good(id) };
            self.timetable.end(schedule, began_ms, outcome);
            if !fails {
                let row = self.schedules.iter().position(|row| row == schedule).unwrap();
                self.made.push(Made { row, true_ms, wall_ms: began_ms, has_pact, steps_count });
                self.prune();
            }
        }

        fn prune(&mut self) {
            // Short and long memories: what is kept may seem to be new after the clock was set back.
            let keep_last = if self.schedules.len() == 1 { 200 } else { 3 };
            let policy = Policy { keep_last, keep_daily: 2, ..Policy::default() };
            let candidate = |backup: &Ended| Candidate {
                id: backup.id.clone(),
                status: if backup.is_good { Status::Done } else { Status::Failed },
                foreign: false,
                pinned: false,
                damaged: false,
                refuted: false,
                has_pact: backup.has_pact,
                started_ms: backup.started_ms,
            };
            let candidates: Vec<Candidate> = self.backups.iter().map(candidate).collect();
            let mut verdicts = judge(&candidates, policy).into_iter();
            self.backups.retain(|_| verdicts.next() != Some(Verdict::Delete));
        }

        fn run(&mut self) {
            let mut down = self.outages.clone().into_iter().peekable();
            while self.true_ms < MONTH_MS {
                if let Some((_, to_ms)) = down.next_if(|(from_ms, _)| *from_ms <= self.true_ms) {
                    self.pass(to_ms.saturating_sub(self.true_ms), false);
                    self.timetable = Timetable::new(&self.schedules, self.random.u64(..));
                    continue;
                }
                if self.random.u8(..) < 64 {
                    self.fail_for_client();
                }
                match self.timetable.step(&self.backups, self.wall_ms) {
                    Step::Make(schedule) => self.attempt(&schedule),
                    Step::WaitUntil(at_ms) => {
                        let wait_ms = at_ms.checked_sub(self.wall_ms).filter(|ms| *ms > 0).expect("it is later");
                        let down_ms = down.peek().map_or(u64::MAX, |(from_ms, _)| from_ms.saturating_sub(self.true_ms));
                        self.pass(wait_ms.min(down_ms.max(1)).min(MONTH_MS), true);
                    }
                }
                assert!(self.attempts_count < 3000, "the attempts run in a loop");
            }
        }

        /// The time in which no backup could be made, between two true times.
        fn excused_ms(&self, from_ms: u64, to_ms: u64) -> u64 {
            let overlap = |(from, to): &(u64, u64)| (*to).min(to_ms).saturating_sub((*from).max(from_ms));
            let failed_ms: u64 = self.failing.iter().map(overlap).sum();
            // After many failures, the next attempt is a day after the first.
            let bound_ms = if failed_ms > 0 { DAY_MS } else { 0 };
            self.outages.iter().chain(&self.busy).map(overlap).sum::<u64>() + failed_ms + bound_ms
        }

        /// The longest permitted time between two backups; the clock was set so often in between.
        fn most_ms(&self, schedule: &Schedule, from_ms: u64, to_ms: u64, steps_count: usize) -> u64 {
            let every_ms = due::millis(schedule.every);
            let slack_ms = due::millis(schedule.jitter) + 2 * 20 * MINUTE_MS;
            let set_ms = (every_ms + every_ms / 10 + 3 * HOUR_MS) * steps_count as u64;
            every_ms + set_ms + slack_ms + self.excused_ms(from_ms, to_ms)
        }

        /// No interval is longer than it may be, and none has two backups, unless the clock was set in between.
        fn check(&self, seed: u64) {
            for (row, schedule) in self.schedules.iter().enumerate() {
                let counts = |made: &&Made| made.has_pact || !schedule.pact;
                let begins = self.made.iter().filter(counts).map(|made| (made.true_ms, made.steps_count));
                let (mut last_ms, mut last_steps) = (0, 0);
                for (true_ms, steps_count) in begins.chain([(self.true_ms, self.steps_count)]) {
                    let most_ms = self.most_ms(schedule, last_ms, true_ms, steps_count - last_steps);
                    let gap_ms = true_ms - last_ms;
                    assert!(gap_ms <= most_ms, "seed {seed}: {schedule} missed: {gap_ms} of {most_ms} ms at {true_ms}");
                    (last_ms, last_steps) = (true_ms, steps_count);
                }
                let every_ms = due::millis(schedule.every);
                let all: Vec<&Made> = self.made.iter().filter(counts).collect();
                for pair in
                    all.windows(2).filter(|pair| pair[1].row == row && pair[0].steps_count == pair[1].steps_count)
                {
                    let first_ms = schedule.at.map_or(pair[0].wall_ms, |at| at.seconds() * 1000) % every_ms;
                    let moment = |made: &Made| (made.wall_ms + every_ms - first_ms) / every_ms;
                    assert!(moment(pair[1]) > moment(pair[0]), "seed {seed}: {schedule} twice at {}", pair[1].true_ms);
                }
            }
        }
    }

    #[test]
    fn a_month_of_schedules_misses_nothing_and_makes_nothing_twice() {
        let first = fastrand::u64(..);
        let (mut made_count, mut attempts_count, mut steps_count) = (0, 0, 0);
        for seed in (0..MONTHS).map(|n| first.wrapping_add(n)) {
            let mut month = Month::new(seed);
            month.run();
            month.check(seed);
            made_count += month.made.len();
            attempts_count += month.attempts_count;
            steps_count += month.steps_count;
        }
        println!("months={MONTHS} made={made_count} attempts={attempts_count} clock_steps={steps_count}");
        assert!(made_count > 10_000 && steps_count > 500);
    }

    #[test]
    fn schedules_that_do_not_change_keep_what_is_known_of_them() {
        let (hourly, daily) = (schedule("1h", None, false, "0s"), schedule("24h", Some("03:00"), true, "0s"));
        let mut timetable = Timetable::new(&[hourly, daily], 0);
        let now_ms = 1_704_067_200_000;
        for n in 0..3 {
            timetable.end(&hourly, now_ms + n, Outcome::Refused);
        }
        timetable.end(&daily, now_ms, Outcome::Good(BackupId::from_millis(now_ms)));
        timetable.step(&[], now_ms + 3);
        let before = timetable.states();
        assert_eq!((before[0].failed_count, before[1].next_ms), (3, Some(now_ms + 3 * HOUR_MS)));
        // In another order, with another jitter, beside a new one.
        let new = schedule("2h", None, false, "0s");
        timetable.change(&[new, schedule("24h", Some("03:00"), true, "1m"), hourly]);
        assert_eq!(timetable.step(&[], now_ms + 3), Step::Make(new));
        timetable.end(&new, now_ms + 3, Outcome::Good(BackupId::from_millis(now_ms + 3)));
        timetable.step(&[], now_ms + 4);
        let after = timetable.states();
        assert_eq!(after[2], Scheduled { failed_count: 3, ..before[0].clone() });
        assert_eq!(after[1].last_succeeded, Some(true));
        // A job that ends after its schedule is gone counts for none.
        timetable.change(&[daily]);
        timetable.end(&hourly, now_ms + 5, Outcome::Refused);
        assert_eq!(timetable.states().len(), 1);
        timetable.change(&[]);
        assert_eq!(timetable.step(&[], now_ms), Step::WaitUntil(u64::MAX));
    }

    /// Something removes each backup at once: the next one is made at its time nevertheless.
    #[test]
    fn a_backup_that_is_gone_is_not_made_again_at_once() {
        let hourly = schedule("1h", None, false, "0s");
        let mut timetable = Timetable::new(&[hourly], 0);
        let now_ms = 1_704_067_200_000;
        assert_eq!(timetable.step(&[], now_ms), Step::Make(hourly));
        timetable.end(&hourly, now_ms, Outcome::Good(BackupId::from_millis(now_ms)));
        assert_eq!(timetable.step(&[], now_ms + 1), Step::WaitUntil(now_ms + HOUR_MS));
        let later_ms = now_ms + HOUR_MS;
        assert_eq!(timetable.step(&[], later_ms), Step::Make(hourly));
        // One that left no record is no reason to try at once, either.
        timetable.end(&hourly, later_ms, Outcome::Failed(BackupId::from_millis(later_ms)));
        assert_eq!(timetable.step(&[], later_ms), Step::WaitUntil(later_ms + MINUTE_MS));
        let state = &timetable.states()[0];
        assert_eq!((state.last_succeeded, state.failed_count), (Some(false), 1));
        timetable.unreadable(later_ms + MINUTE_MS);
        assert_eq!(timetable.step(&[], later_ms + MINUTE_MS), Step::WaitUntil(later_ms + 3 * MINUTE_MS));
    }

    /// For hours another process makes a backup: that is no failure, and delays the next one by a minute.
    #[test]
    fn while_another_process_makes_a_backup_it_is_postponed_and_nothing_counts() {
        let hourly = schedule("1h", None, false, "0s");
        let mut timetable = Timetable::new(&[hourly, schedule("1h", None, false, "1m")], 0);
        let start_ms = 1_704_067_200_000;
        let begins: Vec<u64> = (0..600).map(|n| start_ms + n * MINUTE_MS).collect();
        for now_ms in &begins {
            assert!(matches!(timetable.step(&[], *now_ms), Step::Make(one) if one.makes_the_same(&hourly)));
            timetable.end(&hourly, *now_ms, Outcome::Postponed);
            assert_eq!(timetable.step(&[], *now_ms), Step::WaitUntil(*now_ms + MINUTE_MS));
        }
        let Scheduled { failed_count, last_attempt_ms, last_succeeded, .. } = timetable.states()[0].clone();
        assert_eq!((failed_count, last_attempt_ms, last_succeeded), (0, None, None));
        // A clock that is set back meanwhile delays nothing.
        let long_ago_ms = start_ms - 40 * DAY_MS;
        assert!(matches!(timetable.step(&[], long_ago_ms), Step::Make(_)));
    }

    #[test]
    fn one_with_pact_comes_first() {
        let rows = [schedule("1h", None, false, "0s"), schedule("24h", None, true, "0s")];
        let mut timetable = Timetable::new(&rows, 0);
        assert_eq!(timetable.step(&[], 5), Step::Make(rows[1]));
        assert_eq!(timetable.states()[1].schedule, "every 24h");
    }
}
