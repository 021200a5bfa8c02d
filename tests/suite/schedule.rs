//! Schedules of a running service, with its real clock and timer: backups without a request, retention after them, failures that are
//! repeated later, and restarts. What is due when is tested beside the functions that decide it.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{self, sleep};
use std::time::{Duration, Instant, SystemTime};

use chainweb_backup::{
    BackupId, Config, Hooks, Policy, Schedule, Scheduled, Scope, Service, Status, list_backups_in, parse_interval,
    younger_in,
};

use crate::fixture::{Node, PACT, ROCKSDB, call, make_done, make_failed, record, wait_end, wait_until};

fn every(interval: &str, pact: bool) -> Schedule {
    Schedule::new(Some(parse_interval(interval).unwrap()), None, pact, Duration::ZERO).unwrap()
}

fn start(node: &Node, schedules: Vec<Schedule>, keep: Policy) -> Service {
    Service::start(Config { schedules, keep, ..node.config() }, node.embedded()).unwrap()
}

/// The backups with a status. A list that fails because a backup is being deleted is asked for again.
fn with_status(service: &Service, status: Status) -> Vec<BackupId> {
    let mut listed = service.list_backups();
    wait_until("a list", || {
        listed.is_ok() || {
            listed = service.list_backups();
            false
        }
    });
    listed.unwrap().into_iter().filter(|b| b.status == status).map(|b| b.id).collect()
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis().try_into().unwrap()
}

#[test]
fn backups_are_made_without_a_request_and_the_old_ones_go() {
    let node = Node::new();
    let began = Instant::now();
    let service = start(&node, vec![every("1s", true)], Policy { keep_last: 2, ..Policy::default() });
    wait_until("a backup without a request", || !with_status(&service, Status::Done).is_empty());
    let first = with_status(&service, Status::Done)[0].clone();
    wait_until("it is pruned", || service.check_backup(&first).unwrap().is_none());
    // The third one was made two seconds after the first one at the earliest.
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
    let done = with_status(&service, Status::Done);
    assert!(done.len() <= 3, "{done:?}");
    let metrics = call(&service, "GET", "/metrics", &[]).unwrap().body;
    let labels = "{schedule=\"every 1s\",scope=\"rocksdb,pact\"}";
    for name in
        ["schedule_next_timestamp_seconds", "schedule_last_attempt_timestamp_seconds", "schedule_failed_attempts"]
    {
        assert!(metrics.contains(&format!("\nchainweb_backup_{name}{labels} ")), "{name}: {metrics}");
    }
    assert!(metrics.contains(&format!("\nchainweb_backup_schedule_last_attempt_succeeded{labels} 1\n")), "{metrics}");
    assert!(!metrics.contains("chainweb_backup_pruned_total 0"), "{metrics}");
    let [row]: [Scheduled; 1] = service.schedules().try_into().unwrap();
    assert_eq!((row.scope, row.last_succeeded, row.failed_count), (Scope::RocksdbAndPact, Some(true), 0));
    service.shutdown();
    // The kept ones are whole.
    for backup in list_backups_in(&node.backups()).unwrap().iter().filter(|b| b.status == Status::Done) {
        assert_eq!(crate::fixture::whole(&node.backups().join(backup.id.as_str())).1.len(), 1);
    }
}

#[test]
fn a_restart_makes_no_backup_too_many() {
    let node = Node::new();
    let daily = || vec![every("24h", true), every("12h", false)];
    let service = start(&node, daily(), Policy::default());
    wait_until("both are content", || {
        service.schedules().iter().all(|row| row.next_ms.is_some_and(|at| at > now_ms()))
    });
    assert_eq!(with_status(&service, Status::Done).len(), 1, "one with Pact is enough for both");
    drop(service);
    for _ in 0..5 {
        drop(start(&node, daily(), Policy::default()));
    }
    let service = start(&node, daily(), Policy::default());
    wait_until("it has looked", || service.schedules().iter().all(|row| row.next_ms.is_some()));
    assert_eq!(list_backups_in(&node.backups()).unwrap().len(), 1);
    let [with_pact, without]: [Scheduled; 2] = service.schedules().try_into().unwrap();
    assert_eq!(with_pact.next_ms.unwrap() - without.next_ms.unwrap(), 12 * 3_600_000);
    assert_eq!(with_pact.last_attempt_ms, None);
    // A backup that a client asks for moves the next one.
    make_done(&service, PACT);
    wait_until("it is later", || service.schedules()[0].next_ms > with_pact.next_ms);
}

#[test]
fn what_fails_is_tried_again_but_not_in_a_loop() {
    let node = Node::new();
    let before = vec![vec!["/bin/sh".to_owned(), "-c".to_owned(), "exit 1".to_owned()]];
    let hooks = Hooks { before, ..Hooks::default() };
    let schedules = vec![every("2s", false)];
    let config = Config { hooks, schedules: schedules.clone(), ..node.config() };
    let service = Service::start(config, node.embedded()).unwrap();
    let began = Instant::now();
    sleep(Duration::from_secs(6));
    wait_until("it was tried again", || service.schedules()[0].failed_count >= 2);
    let failed = with_status(&service, Status::Failed).len();
    // At once, then a second later, then every two seconds.
    let most = 2 + began.elapsed().as_secs() as usize / 2;
    assert!((2..=most).contains(&failed), "{failed}, and not {most} at most");
    assert_eq!(service.schedules()[0].last_succeeded, Some(false));
    drop(service);
    let service = start(&node, schedules, Policy { keep_last: 9, ..Policy::default() });
    wait_until("the next one is good", || !with_status(&service, Status::Done).is_empty());
    wait_until("the failures are forgotten", || service.schedules()[0].failed_count == 0);
    wait_until("and pruned", || with_status(&service, Status::Failed).is_empty());
}

/// What others could not do delays no schedule, and its own failures are known after a restart.
#[test]
fn only_its_own_failures_delay_a_schedule() {
    let node = Node::new();
    let hooks = Hooks { before: vec![vec!["/bin/false".to_owned()]], ..Hooks::default() };
    let failing = Config { hooks, ..node.config() };
    let service = Service::start(failing.clone(), node.embedded()).unwrap();
    (0..3).for_each(|_| drop(make_failed(&service, ROCKSDB)));
    drop(service);
    let hourly = vec![every("1h", false)];
    let service = Service::start(Config { schedules: hourly.clone(), ..failing.clone() }, node.embedded()).unwrap();
    wait_until("an attempt", || service.schedules()[0].last_attempt_ms.is_some());
    wait_until("its end", || service.schedules()[0].next_ms.is_some_and(|at| at > now_ms()));
    let state = service.schedules()[0].clone();
    assert_eq!((state.failed_count, state.last_succeeded), (1, Some(false)));
    assert!(state.next_ms.unwrap() < now_ms() + 61_000, "one failure is a delay of a minute: {state:?}");
    drop(service);
    for _ in 0..2 {
        let service = Service::start(Config { schedules: hourly.clone(), ..failing.clone() }, node.embedded()).unwrap();
        wait_until("it has looked", || service.schedules()[0].next_ms.is_some());
        let again = service.schedules()[0].clone();
        assert_eq!((again.failed_count, again.next_ms, again.last_attempt_ms), (1, state.next_ms, None));
    }
    let service = node.start();
    let of_schedule = |id: &BackupId| record(&service, id).schedule;
    let failed = with_status(&service, Status::Failed);
    assert_eq!(of_schedule(&failed[0]).as_deref(), Some("every 1h"));
    assert!(failed.len() == 4 && failed[1..].iter().all(|id| of_schedule(id).is_none()));
}

/// Callers that ask again and again without a pause.
#[test]
fn callers_leave_a_schedule_its_turn() {
    let node = Node::new();
    let service = start(&node, vec![every("1s", true)], Policy::default());
    let is_over = AtomicBool::new(false);
    let scopes = || -> Vec<Scope> { list_backups_in(&node.backups()).unwrap().iter().map(|b| b.scope).collect() };
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !is_over.load(SeqCst) {
                    service.make_backup(ROCKSDB).unwrap();
                }
            });
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        let with_pact = || scopes().iter().filter(|scope| **scope == Scope::RocksdbAndPact).count();
        while with_pact() < 3 && Instant::now() < deadline {
            sleep(Duration::from_millis(100));
        }
        is_over.store(true, SeqCst);
    });
    let scopes = scopes();
    let count = scopes.iter().filter(|scope| **scope == Scope::RocksdbAndPact).count();
    assert!(count >= 3, "{count} of {} are of the schedule", scopes.len());
    assert!(scopes.contains(&Scope::Rocksdb), "callers had none");
}

/// The backup of another process is no failure of a schedule: that waits, and then looks again.
#[test]
fn a_schedule_waits_while_another_process_makes_a_backup() {
    let node = Node::new();
    let other = Service::start_beside(node.paused_config(), node.embedded()).unwrap();
    let with_pact = other.make_backup(PACT).unwrap();
    let service = start(&node, vec![every("1s", false), every("24h", true)], Policy::default());
    wait_until("it has looked", || service.schedules().iter().all(|row| row.next_ms.is_some()));
    sleep(Duration::from_secs(3));
    for row in service.schedules() {
        assert_eq!((row.failed_count, row.last_attempt_ms, row.last_succeeded), (0, None, None), "{row:?}");
        assert!(row.next_ms.unwrap() <= now_ms(), "it is still due: {row:?}");
    }
    node.go_on();
    assert_eq!(wait_end(&other, &with_pact), Status::Done);
    wait_until("its own backup", || with_status(&service, Status::Done).len() > 1);
    assert_eq!(service.schedules()[0].failed_count, 0);
}

/// The backup directory goes away and comes back; the failures are not a loop, and the next backup is made.
#[test]
fn a_directory_that_is_gone_stops_nothing() {
    let node = Node::new();
    let service = start(&node, vec![every("1s", false)], Policy::default());
    wait_until("a backup", || !with_status(&service, Status::Done).is_empty());
    let elsewhere = node.root().join("elsewhere");
    fs::rename(node.backups(), &elsewhere).unwrap();
    wait_until("failures", || service.schedules()[0].failed_count > 0);
    sleep(Duration::from_secs(2));
    assert!(service.schedules()[0].failed_count < 10, "{:?}", service.schedules());
    fs::rename(&elsewhere, node.backups()).unwrap();
    let count = with_status(&service, Status::Done).len();
    wait_until("a backup after it came back", || with_status(&service, Status::Done).len() > count);
}

#[test]
fn a_young_backup_is_found_for_a_script() {
    let node = Node::new();
    let hour = Duration::from_secs(3600);
    assert_eq!(younger_in(&node.backups(), false, hour).unwrap(), None);
    let service = node.start();
    let id = make_done(&service, ROCKSDB);
    let (found, age) = younger_in(&node.backups(), false, hour).unwrap().unwrap();
    assert!(found == id && age < Duration::from_secs(60), "{age:?}");
    assert_eq!(younger_in(&node.backups(), true, hour).unwrap(), None, "it has no Pact");
    let with_pact = make_done(&service, PACT);
    assert_eq!(younger_in(&node.backups(), true, hour).unwrap().unwrap().0, with_pact);
    sleep(Duration::from_millis(20));
    assert_eq!(younger_in(&node.backups(), true, Duration::from_millis(10)).unwrap(), None);
    // One that is damaged is none.
    fs::write(node.backups().join(with_pact.as_str()).join("verified.json"), "?").unwrap();
    assert_eq!(younger_in(&node.backups(), true, hour).unwrap(), None);
    assert_eq!(younger_in(&node.backups(), false, hour).unwrap().unwrap().0, id);
}
