//! Pruning: the verdicts on 100,000 random histories, compared with the rules, which are written here a second time in another way; and
//! which backup is newest if the clock was wrong.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use chainweb_backup::{
    BackupId, Candidate, Control, Details, Error, Policy, Status, Verdict, judge, list_backups_in, prune_backups,
    rehearse_prune, verify_backup,
};

use crate::fixture::{Node, PACT, QUICK, ROCKSDB, call, make_done, names};

/// `prune_backups`, or what only rehearses it.
type Prune = fn(&Path, Policy) -> Result<Vec<(Candidate, Verdict)>, Error>;

const HISTORIES: u32 = 100_000;
const DAY_MS: u64 = 86_400_000;
/// A Monday: 2024-01-01.
const MONDAY_MS: u64 = 1_704_067_200_000;

fn history(random: &mut fastrand::Rng) -> Vec<Candidate> {
    let days = random.u64(1..=60);
    // Some identifiers have a digit more than the others, as after a clock that was far ahead.
    let first = random.choice([MONDAY_MS, 10_000_000_000_000 - 6]).unwrap();
    let mut backups: Vec<Candidate> = (0..random.u64(0..=12))
        .map(|n| Candidate {
            id: BackupId::parse(&(first + n).to_string()).unwrap(),
            status: *random
                .choice(&[Status::Done, Status::Done, Status::Done, Status::Failed, Status::InProgress])
                .unwrap(),
            foreign: random.u8(..8) == 0,
            pinned: random.u8(..8) == 0,
            damaged: random.u8(..8) == 0,
            refuted: random.u8(..8) == 0,
            has_pact: random.bool(),
            // The clock is wrong now and then; some backups have the same time, or one at the border of two days.
            started_ms: MONDAY_MS
                + random.u64(..days) * DAY_MS
                + random.choice([0, 1, DAY_MS / 2, DAY_MS - 1]).unwrap(),
        })
        .collect();
    random.shuffle(&mut backups);
    backups
}

fn is_good(b: &Candidate) -> bool {
    b.status == Status::Done && !b.foreign && !b.damaged && !b.refuted
}

fn number(id: &BackupId) -> u64 {
    id.as_str().parse().unwrap()
}

/// The good backups that are newer than this one: they have larger identifiers.
fn newer<'a>(b: &'a Candidate, all: &'a [Candidate]) -> impl Iterator<Item = &'a Candidate> {
    all.iter().filter(move |o| is_good(o) && number(&o.id) > number(&b.id))
}

/// Whether it is the newest of its period, or the newest with Pact, and its period is one of the last `count` that have a backup.
fn is_kept_by_periods(b: &Candidate, all: &[Candidate], count: u32, period: impl Fn(&Candidate) -> u64) -> bool {
    let newest_of_period = |c: &Candidate| newer(c, all).all(|o| period(o) != period(c));
    let newest = all.iter().filter(|c| is_good(c) && newest_of_period(c));
    let newest_of_own = newest.clone().find(|c| period(c) == period(b)).unwrap();
    let is_in_count = newest.filter(|c| number(&c.id) > number(&newest_of_own.id)).count() < count as usize;
    let has_newer_with_pact = newer(b, all).any(|o| o.has_pact && period(o) == period(b));
    is_in_count && (newest_of_period(b) || (b.has_pact && !has_newer_with_pact))
}

fn day(c: &Candidate) -> u64 {
    (c.started_ms - MONDAY_MS) / DAY_MS
}

/// The month of a time within 60 days from the first of January 2024.
fn month(c: &Candidate) -> u64 {
    match day(c) {
        0..31 => 1,
        31..60 => 2,
        _ => 3,
    }
}

#[test]
fn random_histories() {
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut deleted, mut kept) = (0_u64, 0_u64);
    for n in 0..HISTORIES {
        let all = history(&mut random);
        let mut count = || random.u32(..4);
        let policy =
            Policy { keep_last: count(), keep_daily: count(), keep_weekly: count(), keep_monthly: count().min(2) };
        let what = format!("seed {seed} history {n}: {policy:?} {all:#?}");
        let verdicts = judge(&all, policy);
        assert_eq!(verdicts.len(), all.len(), "{what}");
        let is_asked = policy != Policy::default();
        let has_good = all.iter().any(is_good);
        for (b, verdict) in all.iter().zip(&verdicts) {
            let last_good =
                is_good(b) && (newer(b, &all).next().is_none() || (b.has_pact && !newer(b, &all).any(|o| o.has_pact)));
            let by_rule = is_good(b)
                && (newer(b, &all).count() < policy.keep_last as usize
                    || is_kept_by_periods(b, &all, policy.keep_daily, day)
                    || is_kept_by_periods(b, &all, policy.keep_weekly, |c| day(c) / 7)
                    || is_kept_by_periods(b, &all, policy.keep_monthly, month));
            let safe = b.foreign || b.pinned || b.status == Status::InProgress || !is_asked;
            let last_resort = (b.damaged || b.refuted) && !has_good;
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

/// Changes the time in the record of a backup, as if the clock had been wrong.
fn set_time(backups: &Path, id: &BackupId, unix_ms: u64) {
    let path = backups.join(id.as_str()).join("backup.json");
    let mut text = fs::read_to_string(&path).unwrap();
    for key in ["\"started_ms\": ", "\"finished_ms\": "] {
        let (before, after) = text.split_once(key).unwrap();
        text = format!("{before}{key}{unix_ms}{}", after.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    let (content, _) = text.split_once(",\n  \"seal\"").unwrap();
    let seal = blake2b_simd::blake2b(content.as_bytes()).to_hex();
    fs::write(&path, format!("{content},\n  \"seal\": \"{seal}\"\n}}\n")).unwrap();
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis().try_into().unwrap()
}

fn ids(backups: Vec<Details>) -> Vec<BackupId> {
    backups.into_iter().map(|b| b.id).collect()
}

/// The clock was ten days ahead for the first of four backups, and a year behind for the last: the last is the newest nevertheless, for
/// every command, and no rule deletes it. A backup of the node has its place by its time.
#[test]
fn whatever_the_clock_said_the_last_backup_is_the_newest() {
    let node = Node::new();
    let service = node.start();
    let [first, second, third, last] = [(); 4].map(|()| make_done(&service, ROCKSDB));
    let now = now_ms();
    set_time(&node.backups(), &first, now + 10 * DAY_MS);
    set_time(&node.backups(), &last, now - 365 * DAY_MS);
    let foreign = node.backups().join("1648665437000");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("status"), "backup-done").unwrap();

    let foreign = BackupId::parse("1648665437000").unwrap();
    let newest_first = [&last, &third, &second, &first, &foreign].map(BackupId::clone);
    assert_eq!(ids(list_backups_in(&node.backups()).unwrap()), newest_first);
    assert_eq!(ids(service.list_backups().unwrap()), newest_first);
    let (latest, _) =
        verify_backup(&node.backups(), "latest", QUICK, &Control::default()).expect("it can be looked at");
    assert_eq!(latest, last);
    let metrics = call(&service, "GET", "/metrics", &[]).unwrap().body;
    let said = metrics.lines().find_map(|l| l.strip_prefix("chainweb_backup_last_success_timestamp_seconds ")).unwrap();
    assert!(said.parse::<f64>().unwrap() * 1000.0 < (now + DAY_MS) as f64, "{said}");

    for (policy, kept) in [
        (Policy { keep_last: 2, ..Policy::default() }, vec![&last, &third]),
        // Three days: that of the last, that of the two in between, that of the first.
        (Policy { keep_daily: 2, ..Policy::default() }, vec![&last, &third]),
        (Policy { keep_daily: 9, ..Policy::default() }, vec![&last, &third, &first]),
        (Policy { keep_last: 1, ..Policy::default() }, vec![&last]),
    ] {
        let verdicts = rehearse_prune(&node.backups(), policy).unwrap();
        let ours = verdicts.iter().filter(|(b, _)| !b.foreign);
        let stay: Vec<&BackupId> = ours.filter(|(_, v)| *v != Verdict::Delete).map(|(b, _)| &b.id).collect();
        assert_eq!(stay, kept, "{policy:?}");
    }
    prune_backups(&node.backups(), Policy { keep_weekly: 1, ..Policy::default() }).unwrap();
    assert_eq!(ids(service.list_backups().unwrap()), [last, foreign]);
}

/// An operator removed or cut off files of the newest backups: these do not count as good, so an intact one is kept.
#[test]
fn a_newest_backup_that_was_damaged_by_hand_is_no_reason_to_delete_another() {
    let cut = |path: &Path| fs::File::options().write(true).open(path).unwrap().set_len(1000).unwrap();
    let pact = "0/sqlite/pact-v1-chain-0.sqlite";
    let zeroes = |backup: &Path| {
        let rocksdb = backup.join("0/rocksDb");
        let sst = rocksdb.join(names(&rocksdb).into_iter().find(|name| name.ends_with(".sst")).unwrap());
        let bytes = sst.metadata().unwrap().len();
        fs::remove_file(&sst).unwrap(); // the other backups and the node have it, too
        fs::File::create(&sst).unwrap().set_len(bytes).unwrap();
    };
    let damages: [&dyn Fn(&Path); 4] = [
        &zeroes,
        &|backup| fs::remove_dir_all(backup.join("0/rocksDb")).unwrap(),
        &|backup| fs::remove_file(backup.join(pact)).unwrap(),
        &|backup| cut(&backup.join(pact)),
    ];
    let policy = Policy { keep_last: 1, ..Policy::default() };
    let node = Node::new();
    let backups = node.backups();
    let verdicts = |prune: Prune| -> Vec<(BackupId, Verdict)> {
        let judged = prune(&backups, policy).unwrap();
        judged.into_iter().map(|(backup, verdict)| (backup.id, verdict)).collect()
    };
    for damage in damages {
        let service = node.start();
        let [first, intact, third, last] = [(); 4].map(|()| make_done(&service, PACT));
        drop(service);
        [&third, &last].into_iter().for_each(|id| damage(&backups.join(id.as_str())));
        let judged = verdicts(rehearse_prune);
        assert_eq!(verdicts(prune_backups), judged);
        for (id, verdict) in judged {
            let is_kept = id == intact;
            assert_eq!(verdict, if is_kept { Verdict::Keep("last good") } else { Verdict::Delete }, "{id}");
            assert_eq!(backups.join(id.as_str()).exists(), is_kept, "{id}");
        }
        assert!(!backups.join(first.as_str()).exists());
        // Without a good one, none is deleted.
        let service = node.start();
        let more = make_done(&service, PACT);
        drop(service);
        [&intact, &more].into_iter().for_each(|id| damage(&backups.join(id.as_str())));
        for prune in [rehearse_prune as Prune, prune_backups] {
            assert!(verdicts(prune).iter().all(|(_, verdict)| matches!(verdict, Verdict::Keep(_))));
        }
        assert_eq!(names(&backups).iter().filter(|name| !name.starts_with('.')).count(), 2);
        fs::remove_dir_all(&backups).unwrap();
    }
}

/// The newest backup is good and has no Pact. The newest with Pact only seems to be good: it is no reason to delete another with Pact.
#[test]
fn a_damaged_backup_with_pact_is_no_reason_to_delete_another_one_with_pact() {
    let node = Node::new();
    let backups = node.backups();
    let service = node.start();
    let [first, intact, damaged] = [(); 3].map(|()| make_done(&service, PACT));
    let [older, last] = [(); 2].map(|()| make_done(&service, ROCKSDB));
    drop(service);
    fs::remove_file(backups.join(damaged.as_str()).join("0/sqlite/pact-v1-chain-0.sqlite")).unwrap();
    let policy = Policy { keep_last: 1, ..Policy::default() };
    for prune in [rehearse_prune as Prune, prune_backups] {
        let judged = prune(&backups, policy).unwrap();
        let verdict = |id: &BackupId| judged.iter().find(|(backup, _)| backup.id == *id).unwrap().1;
        assert_eq!(verdict(&last), Verdict::Keep("last good"));
        assert_eq!(verdict(&intact), Verdict::Keep("last good with Pact"));
        assert!([&first, &damaged, &older].iter().all(|id| verdict(id) == Verdict::Delete), "{judged:?}");
    }
    let (_, found) = verify_backup(&backups, intact.as_str(), QUICK, &Control::default()).unwrap();
    assert_eq!(found.faults, []);
}

/// The note of its verification makes no sense: it counts as damaged, but it may be the only good backup with Pact.
#[test]
fn a_backup_whose_note_makes_no_sense_is_kept_until_it_is_verified() {
    let node = Node::new();
    let backups = node.backups();
    let service = node.start();
    let [with_pact, last] = [PACT, ROCKSDB].map(|what| make_done(&service, what));
    drop(service);
    let policy = Policy { keep_last: 1, ..Policy::default() };
    let verdicts =
        || prune_backups(&backups, policy).unwrap().into_iter().map(|(backup, verdict)| (backup.id, verdict));
    for note in ["", "{}", "[1", &format!("{{\"id\":\"{with_pact}\"}}")] {
        fs::write(backups.join(with_pact.as_str()).join("verified.json"), note).unwrap();
        let expected = [(last.clone(), Verdict::Keep("last good")), (with_pact.clone(), Verdict::Unread)];
        assert!(verdicts().eq(expected), "{note}");
    }
    let (_, found) = verify_backup(&backups, with_pact.as_str(), QUICK, &Control::default()).unwrap();
    assert_eq!(found.faults, []);
    assert!(verdicts().eq([(last, Verdict::Keep("last good")), (with_pact, Verdict::Keep("last good with Pact"))]));
}

/// A name that no clock can have caused does not move the identifiers of later backups. No identifier is given out twice, even if
/// backups are deleted.
#[test]
fn a_name_from_the_far_future_pushes_no_identifier() {
    let node = Node::new();
    for name in ["9999999999999", "10000000000000", "99999999999999", "9223372036854775807", "18446744073709551615"] {
        fs::create_dir_all(node.backups().join(name)).unwrap();
    }
    let mut given = Vec::new();
    let mut make_and_delete = |expected: Range<u64>| {
        // Before a restart and after it.
        for _ in 0..2 {
            let service = node.start();
            for _ in 0..2 {
                let id = make_done(&service, ROCKSDB);
                assert!(expected.contains(&number(&id)), "{id}");
                // The service may be writing checksums in it: then the directory gets a new file while it is removed.
                while let Err(e) = fs::remove_dir_all(node.backups().join(id.as_str())) {
                    assert_eq!(e.kind(), std::io::ErrorKind::DirectoryNotEmpty, "{e}");
                }
                given.push(id);
            }
        }
    };
    make_and_delete(1..now_ms() + DAY_MS);

    // An earlier version has given out such identifiers: ours are believed, and the next ones continue from there.
    let id = make_done(&node.start(), ROCKSDB);
    let pushed = node.backups().join("10000000000007");
    fs::rename(node.backups().join(id.as_str()), &pushed).unwrap();
    let record = fs::read_to_string(pushed.join("backup.json")).unwrap();
    fs::write(pushed.join("backup.json"), record.replace(id.as_str(), "10000000000007")).unwrap();
    fs::remove_file(node.backups().join(".lock")).unwrap();
    make_and_delete(10_000_000_000_008..10_000_000_001_000);
    assert!(given.windows(2).all(|pair| number(&pair[0]) < number(&pair[1])), "{given:?}");
}
