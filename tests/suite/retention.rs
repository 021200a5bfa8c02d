//! Pruning, judged over 100,000 random histories by rules that are written down here once more, in another way.

use chainweb_backup::{BackupId, Candidate, Policy, Status, Verdict, judge};

const HISTORIES: u32 = 100_000;
const DAY_MS: u64 = 86_400_000;
/// A Monday: 2024-01-01.
const MONDAY_MS: u64 = 1_704_067_200_000;

fn history(random: &mut fastrand::Rng) -> Vec<Candidate> {
    let days = random.u64(1..=60);
    let mut backups: Vec<Candidate> = (0..random.u64(0..=12))
        .map(|n| Candidate {
            id: BackupId::parse(&(MONDAY_MS + n).to_string()).unwrap(),
            status: *random
                .choice(&[Status::Done, Status::Done, Status::Done, Status::Failed, Status::InProgress])
                .unwrap(),
            foreign: random.u8(..8) == 0,
            pinned: random.u8(..8) == 0,
            damaged: random.u8(..8) == 0,
            // Some at the same moment, and at the borders of days.
            started_ms: MONDAY_MS
                + random.u64(..days) * DAY_MS
                + random.choice([0, 1, DAY_MS / 2, DAY_MS - 1]).unwrap(),
        })
        .collect();
    random.shuffle(&mut backups);
    backups
}

fn is_good(b: &Candidate) -> bool {
    b.status == Status::Done && !b.foreign && !b.damaged
}

/// How many good backups are newer than this one, and how many periods with good ones are newer than its own.
fn newer<'a>(b: &'a Candidate, all: &'a [Candidate]) -> impl Iterator<Item = &'a Candidate> {
    all.iter().filter(move |o| is_good(o) && (o.started_ms, &o.id) > (b.started_ms, &b.id))
}

fn is_kept_by_periods(b: &Candidate, all: &[Candidate], count: u32, period_ms: u64) -> bool {
    let period = |c: &Candidate| (c.started_ms - MONDAY_MS) / period_ms;
    let mut newer_periods: Vec<u64> = newer(b, all).map(period).collect();
    newer_periods.sort_unstable();
    newer_periods.dedup();
    !newer_periods.contains(&period(b)) && newer_periods.len() < count as usize
}

#[test]
fn random_histories() {
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut deleted, mut kept) = (0_u64, 0_u64);
    for n in 0..HISTORIES {
        let all = history(&mut random);
        let policy = Policy { keep_last: random.u32(..4), keep_daily: random.u32(..4), keep_weekly: random.u32(..4) };
        let what = format!("seed {seed} history {n}: {policy:?} {all:#?}");
        let verdicts = judge(&all, policy);
        assert_eq!(verdicts.len(), all.len(), "{what}");
        let is_asked = policy != Policy::default();
        let has_good = all.iter().any(is_good);
        for (b, verdict) in all.iter().zip(&verdicts) {
            let last_good = is_good(b) && newer(b, &all).next().is_none();
            let by_rule = is_good(b)
                && (newer(b, &all).count() < policy.keep_last as usize
                    || is_kept_by_periods(b, &all, policy.keep_daily, DAY_MS)
                    || is_kept_by_periods(b, &all, policy.keep_weekly, 7 * DAY_MS));
            let safe = b.foreign || b.pinned || b.status == Status::InProgress || !is_asked;
            let last_resort = b.damaged && !has_good;
            let expected = safe || last_good || by_rule || last_resort;
            assert_eq!(matches!(verdict, Verdict::Keep(_)), expected, "{what}: {b:?} is {verdict:?}");
            *if expected { &mut kept } else { &mut deleted } += 1;
        }
        let left: Vec<Candidate> =
            all.iter().zip(&verdicts).filter(|(_, v)| **v != Verdict::Delete).map(|(b, _)| b.clone()).collect();
        assert_eq!(left.iter().any(is_good), has_good, "{what}: the last good one is gone");
        assert!(judge(&left, policy).iter().all(|v| *v != Verdict::Delete), "{what}: pruning again deletes more");
    }
    println!("histories={HISTORIES} kept={kept} deleted={deleted}");
    assert!(deleted > 100_000 && kept > 100_000);
}
