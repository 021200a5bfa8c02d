//! The hooks of backups: what they are told, what their failure means, how they are ended, and that nothing waits for them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use chainweb_backup::{
    BackupId, Config, Control, Event, HookRun, Hooks, Kind, Policy, Service, Status, Verdict, cancel_backup,
    check_backup_in, delete_backup, gate, prune_backups, run_verified_hooks,
};
use serde_json::Value;

use crate::fixture::{Node, PACT, ROCKSDB, call, make_done, make_failed, names, record, wait_end, wait_until};

/// A hook that runs this script; `$1` is the directory of the test.
fn script(node: &Node, text: &str) -> Vec<Vec<String>> {
    let words = ["/bin/sh", "-c", text, "hook", node.root().to_str().unwrap()];
    vec![words.map(str::to_owned).to_vec()]
}

fn start(node: &Node, hooks: Hooks) -> Service {
    Service::start(Config { hooks, ..node.config() }, node.embedded()).unwrap()
}

fn hooks_of(service: &Service, id: &BackupId) -> Vec<HookRun> {
    service.details(id).unwrap().unwrap().hooks
}

/// The runs of a backup, each as its event and its result.
fn told(service: &Service, id: &BackupId) -> Vec<(Event, bool)> {
    hooks_of(service, id).iter().map(|run| (run.event, run.passed)).collect()
}

fn metric(service: &Service, line: &str) -> f64 {
    let metrics = call(service, "GET", "/metrics", &[]).unwrap().body;
    let name = format!("chainweb_backup_{line} ");
    let value = metrics.lines().find_map(|found| found.strip_prefix(&name));
    value.unwrap_or_else(|| panic!("no {name} in {metrics}")).parse().unwrap()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Whether the process whose number is in a file lives; a zombie does not.
fn lives(file: &Path) -> bool {
    let stat = read(&PathBuf::from(format!("/proc/{}/stat", read(file).trim())));
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[test]
fn a_hook_is_told_what_it_needs_and_gets_nothing_else() {
    let node = Node::with_chains(2);
    let text = "event=$CHAINWEB_BACKUP_EVENT; cat >\"$1/$event.json\"; env >\"$1/$event.env\"; pwd >\"$1/$event.pwd\"; \
                ls /proc/self/fd >\"$1/$event.fds\"; cat \"$CHAINWEB_BACKUP_PATH/status\" >\"$1/$event.status\"; \
                ionice -p $$ >\"$1/$event.class\"; echo $event >>\"$1/order\"";
    let one = || script(&node, text);
    let hooks = Hooks { before: one(), on_verified: one(), after_success: one(), ..Hooks::default() };
    // A descriptor that every child inherits, as a node may have some.
    let inherited = fs::File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&inherited, rustix::io::FdFlags::empty()).unwrap();
    let service = start(&node, hooks);
    let id = make_done(&service, PACT);
    service.wait_for_hooks();
    drop(inherited);
    assert_eq!(read(&node.root().join("order")), "before\non-verified\nafter-success\n");
    for (event, status) in
        [("before", Status::InProgress), ("on-verified", Status::Done), ("after-success", Status::Done)]
    {
        let file = |what: &str| read(&node.root().join(format!("{event}.{what}")));
        let json: Value = serde_json::from_str(&file("json")).unwrap();
        assert_eq!((json["id"].as_str(), json["status"].as_str()), (Some(id.as_str()), Some(status.word())), "{event}");
        assert_eq!(json["record"]["bytes"].as_u64().unwrap() > 0, status == Status::Done);
        assert_eq!((file("pwd").as_str(), file("status").as_str()), ("/\n", status.word()));
        // One of them is the directory that `ls` reads.
        assert_eq!(file("fds").lines().collect::<Vec<_>>(), ["0", "1", "2", "3"], "{event}");
        assert_eq!(file("class"), "idle\n");
        let ours = [
            format!("CHAINWEB_BACKUP_DIRECTORY={}", node.backups().display()),
            format!("CHAINWEB_BACKUP_EVENT={event}"),
            format!("CHAINWEB_BACKUP_ID={id}"),
            format!("CHAINWEB_BACKUP_PATH={}", node.backups().join(id.as_str()).display()),
            "CHAINWEB_BACKUP_REASON=".to_owned(),
            "CHAINWEB_BACKUP_SCOPE=rocksdb,pact".to_owned(),
            format!("CHAINWEB_BACKUP_STATUS={}", status.word()),
        ];
        let env = file("env");
        ours.iter().for_each(|line| assert!(env.lines().any(|found| found == line), "no {line} in {env}"));
        assert_eq!(env.contains("CHAINWEB_BACKUP_FAULTS=0\n"), event == "on-verified");
        let known = [
            "PATH",
            "HOME",
            "USER",
            "LOGNAME",
            "LANG",
            "TMPDIR",
            "PWD",
            "OLDPWD",
            "SHLVL",
            "_",
            "CHAINWEB_BACKUP_FAULTS",
        ];
        let is_known =
            |name: &str| known.contains(&name) || ours.iter().any(|line| line.starts_with(&format!("{name}=")));
        let unknown: Vec<&str> = env.lines().map(|line| line.split('=').next().unwrap()).collect();
        assert!(unknown.iter().all(|name| is_known(name)), "{unknown:?}");
    }
    let expected = [(Event::Before, true), (Event::OnVerified, true), (Event::AfterSuccess, true)];
    assert_eq!(told(&service, &id), expected);
    let run = &hooks_of(&service, &id)[2];
    assert!(run.program == "/bin/sh" && run.reason.is_none() && run.ended_ms() >= Some(run.at_ms), "{run:?}");
    assert!(!service.has_failed_hook(&id));
    assert_eq!(metric(&service, "hooks_total{hook=\"after-success\",result=\"passed\"}"), 1.0);
    assert_eq!(metric(&service, "hooks_total{hook=\"on-verified\",result=\"failed\"}"), 0.0);
    assert_eq!(metric(&service, "last_hook_passed{hook=\"before\"}"), 1.0);
    let last = metric(&service, "last_hook_success_timestamp_seconds{hook=\"after-success\"}");
    assert_eq!((last * 1000.0).round() as u64, run.ended_ms().unwrap());
    let metrics = call(&service, "GET", "/metrics", &[]).unwrap().body;
    assert!(!metrics.contains("after-failure"), "no such hook is configured: {metrics}");
    // The backup is one as any other.
    assert_eq!(check_backup_in(&node.backups(), &id).unwrap().unwrap().hooks, hooks_of(&service, &id));
    let json = call(&service, "GET", "/list-backups", &[]).unwrap().body;
    assert!(json.contains("\"event\":\"after-success\"") && !json.contains("echo $event"), "arguments may be secret");
}

#[test]
fn a_hook_before_that_fails_fails_the_job_and_nothing_is_read() {
    let node = Node::new();
    let before = script(&node, "echo the disk is asleep >&2; exit 3");
    let after_failure = script(&node, "cat >\"$1/told\"; echo \"$CHAINWEB_BACKUP_REASON\" >\"$1/reason\"");
    let never = script(&node, "touch \"$1/never\"");
    let both = [before, never.clone()].concat();
    let hooks =
        Hooks { before: both, after_failure, on_verified: never.clone(), after_success: never, ..Hooks::default() };
    let service = start(&node, hooks);
    let (id, reason) = make_failed(&service, ROCKSDB);
    assert_eq!(reason, "the hook before the backup failed: the command ended with exit status: 3: the disk is asleep");
    service.wait_for_hooks();
    assert_eq!(service.failure_kind(&id), Some(Kind::Refused));
    assert_eq!(read(&node.root().join("reason")).trim(), reason);
    let json: Value = serde_json::from_str(&read(&node.root().join("told"))).unwrap();
    assert_eq!(json["record"]["reason"].as_str(), Some(reason.as_str()));
    assert!(!node.root().join("never").exists());
    assert_eq!(names(&node.backups().join(id.as_str())), [".use", "backup.json", "hooks.json", "status"]);
    assert_eq!(told(&service, &id), [(Event::Before, false), (Event::AfterFailure, true)]);
    assert_eq!(hooks_of(&service, &id)[0].output, "the disk is asleep");
    // A program that does not exist is a failure with a reason, too.
    drop(service);
    let hooks = Hooks { before: vec![vec!["/nonexistent/hook".to_owned()]], ..Hooks::default() };
    let (_, reason) = make_failed(&start(&node, hooks), ROCKSDB);
    assert!(reason.contains("cannot start the command /nonexistent/hook: No such file"), "{reason}");
    node.check();
}

#[test]
fn a_hook_after_that_fails_leaves_the_backup_good_and_is_seen() {
    let node = Node::new();
    let after_success = [script(&node, "echo no route to host; exit 1"), script(&node, "echo second")].concat();
    let service = start(&node, Hooks { after_success, ..Hooks::default() });
    let id = make_done(&service, ROCKSDB);
    service.wait_for_hooks();
    assert!(service.has_failed_hook(&id));
    assert_eq!(service.check_backup(&id).unwrap(), Some(Status::Done));
    // The second one runs all the same.
    assert_eq!(told(&service, &id), [(Event::AfterSuccess, false), (Event::AfterSuccess, true)]);
    let run = &hooks_of(&service, &id)[0];
    assert_eq!(run.reason.as_deref(), Some("the command ended with exit status: 1: no route to host"));
    assert_eq!(metric(&service, "hooks_total{hook=\"after-success\",result=\"failed\"}"), 1.0);
    assert_eq!(metric(&service, "last_hook_passed{hook=\"after-success\"}"), 0.0);
    drop(service);
    // It is seen after a restart; a newer backup takes its place.
    let service = start(&node, Hooks { after_success: script(&node, "true"), ..Hooks::default() });
    assert_eq!(metric(&service, "last_hook_passed{hook=\"after-success\"}"), 0.0);
    make_done(&service, ROCKSDB);
    service.wait_for_hooks();
    assert_eq!(metric(&service, "last_hook_passed{hook=\"after-success\"}"), 1.0);
}

#[test]
fn a_hook_ends_with_its_time_and_leaves_no_process() {
    let node = Node::new();
    // It ignores SIGTERM, as its child does.
    let text = "trap '' TERM; sleep 600 & echo $! >\"$1/child\"; echo $$ >\"$1/hook\"; sleep 601";
    let after_success = script(&node, text);
    let hooks = Hooks { after_success, time_limit: Duration::from_secs(2), ..Hooks::default() };
    let service = start(&node, hooks);
    let began = Instant::now();
    let id = make_done(&service, ROCKSDB);
    service.wait_for_hooks();
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    let reason = hooks_of(&service, &id)[0].reason.clone().unwrap();
    assert!(reason.contains("did not end within 2 s"), "{reason}");
    // A process that was killed is seen until its parent, or init, has waited for it.
    for name in ["hook", "child"] {
        wait_until("the killed process is gone", || !lives(&node.root().join(name)));
    }
    // What a hook that has ended leaves behind is ended, too.
    drop(service);
    let after_success = script(&node, "sleep 600 >\"$1/null\" 2>&1 & echo $! >\"$1/child\"");
    let service = start(&node, Hooks { after_success, ..Hooks::default() });
    let id = make_done(&service, ROCKSDB);
    service.wait_for_hooks();
    assert_eq!(told(&service, &id), [(Event::AfterSuccess, true)]);
    wait_until("what it left is gone", || !lives(&node.root().join("child")));
}

/// The output of a hook is not kept in memory, and a hook need not read what it is told.
#[test]
fn a_hook_may_write_much_and_read_nothing() {
    let node = Node::new();
    let after_success = script(&node, "exec 0<&-; head -c 20000000 /dev/zero | tr '\\0' x; echo; echo the end");
    let service = start(&node, Hooks { after_success, ..Hooks::default() });
    let id = make_done(&service, ROCKSDB);
    service.wait_for_hooks();
    let run = &hooks_of(&service, &id)[0];
    assert!(run.passed && run.output.len() <= 4096 && run.output.ends_with("x\nthe end"), "{run:?}");
    assert!(fs::metadata(node.backups().join(id.as_str()).join("hooks.json")).unwrap().len() < 10_000);
}

#[test]
fn nothing_waits_for_a_hook_after_a_backup_and_the_backup_stays_until_its_end() {
    let node = Node::new();
    let text = "echo $CHAINWEB_BACKUP_ID >>\"$1/began\"; until [ -e \"$1/go\" ]; do sleep 0.01; done";
    let service = start(&node, Hooks { after_success: script(&node, text), ..Hooks::default() });
    let first = make_done(&service, ROCKSDB);
    wait_until("the hook", || !read(&node.root().join("began")).is_empty());
    let second = make_done(&service, ROCKSDB);
    let run = &hooks_of(&service, &first)[0];
    assert!(!run.passed && run.duration_ms.is_none(), "it has not ended: {run:?}");
    assert_eq!(delete_backup(&node.backups(), first.as_str()).unwrap_err().kind(), Kind::Busy);
    let judged = prune_backups(&node.backups(), Policy { keep_last: 1, ..Policy::default() }).unwrap();
    let of_first = judged.iter().find(|(candidate, _)| candidate.id == first).unwrap();
    assert_eq!(of_first.1, Verdict::Keep("in use"));
    // So does the one whose hook waits for its turn.
    let run = &hooks_of(&service, &second)[0];
    assert!(run.waits && !run.passed && run.ended_ms().is_none(), "it waits: {run:?}");
    let third = make_done(&service, ROCKSDB);
    assert_eq!(delete_backup(&node.backups(), second.as_str()).unwrap_err().kind(), Kind::Busy);
    let judged = prune_backups(&node.backups(), Policy { keep_last: 1, ..Policy::default() }).unwrap();
    let kept = |id: &BackupId| judged.iter().find(|(candidate, _)| candidate.id == *id).unwrap().1;
    assert_eq!((kept(&first), kept(&second)), (Verdict::Keep("in use"), Verdict::Keep("in use")));
    fs::write(node.root().join("go"), "").unwrap();
    service.wait_for_hooks();
    assert_eq!(read(&node.root().join("began")), format!("{first}\n{second}\n{third}\n"));
    assert!(!hooks_of(&service, &second)[0].waits);
    delete_backup(&node.backups(), first.as_str()).unwrap();
    delete_backup(&node.backups(), second.as_str()).unwrap();
}

/// The rules of the service itself delete no backup whose copy is not made yet, whether it is good or has failed.
#[test]
fn a_service_prunes_no_backup_that_waits_for_its_hooks() {
    let node = Node::new();
    let text = "echo $CHAINWEB_BACKUP_ID >>\"$1/began\"; until [ -e \"$1/go\" ]; do sleep 0.01; done; \
                ls \"$CHAINWEB_BACKUP_PATH/backup.json\"";
    let before = script(&node, "[ ! -e \"$1/fails\" ]");
    let hooks =
        Hooks { before, after_success: script(&node, text), after_failure: script(&node, text), ..Hooks::default() };
    let config = Config { hooks, keep: Policy { keep_last: 1, ..Policy::default() }, ..node.config() };
    let service = Service::start(config, node.embedded()).unwrap();
    let first = make_done(&service, ROCKSDB);
    fs::write(node.root().join("fails"), "").unwrap();
    let (failed, _) = make_failed(&service, ROCKSDB);
    fs::remove_file(node.root().join("fails")).unwrap();
    let [second, third] = [(); 2].map(|()| make_done(&service, ROCKSDB));
    let passed = |id: &BackupId| told(&service, id).last().copied();
    for id in [&first, &failed, &second, &third] {
        assert!(service.check_backup(id).unwrap().is_some(), "{id} was pruned before its hook");
    }
    fs::write(node.root().join("go"), "").unwrap();
    service.wait_for_hooks();
    assert_eq!(passed(&failed), Some((Event::AfterFailure, true)));
    for id in [&first, &second, &third] {
        assert_eq!(passed(id), Some((Event::AfterSuccess, true)), "{id}");
    }
    let newest = make_done(&service, ROCKSDB);
    service.wait_for_hooks();
    wait_until("they are pruned then", || {
        names(&node.backups()).iter().filter(|name| !name.starts_with('.')).count() == 1
    });
    assert_eq!(service.check_backup(&newest).unwrap(), Some(Status::Done));
}

/// More hooks wait than may: the newest backup is good, and says that its hooks are not run.
#[test]
fn hooks_that_find_no_place_in_the_queue_are_seen() {
    let node = Node::new();
    let after_success =
        [script(&node, "until [ -e \"$1/go\" ]; do sleep 0.01; done"), script(&node, "touch \"$1/second\"")].concat();
    let service = start(&node, Hooks { after_success, ..Hooks::default() });
    let first = make_done(&service, ROCKSDB);
    wait_until("its hook", || hooks_of(&service, &first).iter().any(|run| !run.waits));
    (0..100).for_each(|_| drop(make_done(&service, ROCKSDB)));
    let late = make_done(&service, ROCKSDB);
    wait_until("it is noted", || hooks_of(&service, &late).iter().all(|run| run.ended_ms().is_some()));
    let reasons: Vec<_> = hooks_of(&service, &late).into_iter().filter_map(|run| run.reason).collect();
    assert_eq!(reasons, ["not run: too many hooks are waiting"; 2]);
    assert_eq!(metric(&service, "last_hook_passed{hook=\"after-success\"}"), 0.0);
    assert_eq!(metric(&service, "hooks_total{hook=\"after-success\",result=\"failed\"}"), 2.0);
    assert!(service.has_failed_hook(&late));
    delete_backup(&node.backups(), late.as_str()).unwrap();
}

#[test]
fn a_shutdown_ends_the_hooks() {
    let node = Node::new();
    let text = "echo $$ >\"$1/pid\"; sleep 600";
    let pid = node.root().join("pid");
    let service = start(&node, Hooks { after_success: script(&node, text), ..Hooks::default() });
    let [first, second] = [(); 2].map(|()| make_done(&service, ROCKSDB));
    wait_until("the hook", || lives(&pid));
    let began = Instant::now();
    service.shutdown();
    assert!(began.elapsed() < Duration::from_secs(5) && !lives(&pid));
    let run = &hooks_of(&service, &first)[0];
    assert!(!run.passed && run.reason.as_deref() == Some("shut down"), "{run:?}");
    let run = &hooks_of(&service, &second)[0];
    assert!(!run.passed && !run.waits && run.reason.as_deref() == Some("not run: shut down"), "{run:?}");
    assert!(service.has_failed_hook(&second));
    assert_eq!(metric(&service, "hooks_total{hook=\"after-success\",result=\"failed\"}"), 2.0);
    drop(service);
    fs::remove_file(&pid).unwrap();
    // Before a backup it is the job that ends.
    let service = start(&node, Hooks { before: script(&node, text), ..Hooks::default() });
    let id = service.make_backup(ROCKSDB).unwrap();
    wait_until("the hook", || lives(&pid));
    service.shutdown();
    assert!(!lives(&pid));
    assert_eq!(
        (service.check_backup(&id).unwrap(), record(&service, &id).reason),
        (Some(Status::Failed), Some("shut down".into()))
    );
}

/// What the stop leaves undone is seen: the next commands of the event, and those of the next event.
#[test]
fn hooks_that_a_shutdown_prevents_are_seen() {
    let node = Node::new();
    let text = "echo $$ >\"$1/pid\"; sleep 600";
    let (pid, never) = (node.root().join("pid"), script(&node, "touch \"$1/never\""));
    let on_verified = [script(&node, text), never.clone()].concat();
    let after_success = [never.clone(), never].concat();
    let service = start(&node, Hooks { on_verified, after_success, ..Hooks::default() });
    let id = make_done(&service, ROCKSDB);
    wait_until("the hook", || lives(&pid));
    service.shutdown();
    let reasons: Vec<_> =
        hooks_of(&service, &id).into_iter().map(|run| (run.event, run.number, run.reason.unwrap())).collect();
    let not_run = |event, number| (event, number, "not run: shut down".to_owned());
    assert_eq!(reasons[0], (Event::OnVerified, 0, "shut down".to_owned()));
    assert_eq!(
        reasons[1..],
        [not_run(Event::OnVerified, 1), not_run(Event::AfterSuccess, 0), not_run(Event::AfterSuccess, 1)]
    );
    assert!(!node.root().join("never").exists() && service.has_failed_hook(&id));
    assert_eq!(metric(&service, "hooks_total{hook=\"after-success\",result=\"failed\"}"), 2.0);
    drop(service);
    // It is seen after a restart, too, and the backup can be deleted.
    let service = node.start();
    assert_eq!(metric(&service, "last_hook_passed{hook=\"after-success\"}"), 0.0);
    delete_backup(&node.backups(), id.as_str()).unwrap();
}

#[test]
fn a_job_can_be_cancelled_while_its_hook_runs_and_is_not_stalled() {
    let node = Node::new();
    let hooks = Hooks {
        before: script(&node, "echo $$ >\"$1/pid\"; sleep 3; [ -e \"$1/go\" ] || sleep 600"),
        ..Hooks::default()
    };
    let config = Config { hooks, stall_limit: Duration::from_secs(1), ..node.config() };
    let service = Service::start(config, node.embedded()).unwrap();
    let id = service.make_backup(ROCKSDB).unwrap();
    let pid = node.root().join("pid");
    wait_until("the hook", || lives(&pid));
    let progress = service.details(&id).unwrap().unwrap().progress.unwrap();
    assert_eq!(serde_json::to_value(progress.phase).unwrap(), "hook");
    assert_eq!(cancel_backup(&node.backups(), None).unwrap(), (id.clone(), Status::Failed));
    wait_until("the end", || !lives(&pid));
    wait_until("the reason", || record(&service, &id).reason.as_deref() == Some("cancelled by the operator"));
    wait_until("the thread", || service.details(&id).unwrap().is_some_and(|details| details.progress.is_none()));
    fs::write(node.root().join("go"), "").unwrap();
    let id = service.make_backup(ROCKSDB).unwrap();
    assert_eq!(wait_end(&service, &id), Status::Done, "{:?}", record(&service, &id).reason);
}

/// The disk of a job that stalled hangs, so its hook is told without it.
#[test]
fn a_job_that_stalls_has_its_hook() {
    let node = Node::new();
    let database = node.directory().join("0/sqlite/pact-v1-chain-0.sqlite");
    let (let_go, hang) = mpsc::channel::<()>();
    let hangs = AtomicBool::new(true);
    gate::at_point(&database, move |name| {
        if name == "raw-held" && hangs.swap(false, SeqCst) {
            let _ = hang.recv_timeout(Duration::from_secs(60));
        }
    });
    let text = "cat >\"$1/told.tmp\"; echo \"$CHAINWEB_BACKUP_REASON\" >\"$1/reason\"; mv \"$1/told.tmp\" \"$1/told\"";
    let hooks = Hooks { after_failure: script(&node, text), ..Hooks::default() };
    let config = Config { hooks, stall_limit: Duration::from_secs(1), ..node.config() };
    let service = Service::start(config, node.embedded()).unwrap();
    let id = service.make_backup(PACT).unwrap();
    wait_until("the hook", || node.root().join("told").exists());
    assert_eq!(read(&node.root().join("reason")), "stalled: no progress for 1 s\n");
    let json: Value = serde_json::from_str(&read(&node.root().join("told"))).unwrap();
    assert_eq!((json["id"].as_str(), json["status"].as_str()), (Some(id.as_str()), Some("backup-failed")));
    drop(let_go);
    wait_until("the thread", || service.make_backup(PACT).is_ok());
    gate::forget_points(&database);
    service.wait_for_hooks();
    assert_eq!(metric(&service, "hooks_total{hook=\"after-failure\",result=\"passed\"}"), 1.0);
}

#[test]
fn a_verification_by_hand_has_its_hook() {
    let node = Node::new();
    let service = node.start();
    let id = make_done(&service, ROCKSDB);
    let on_verified = script(&node, "echo $CHAINWEB_BACKUP_FAULTS; exit 1");
    let hooks = Hooks { on_verified, ..Hooks::default() };
    for faults_count in [0, 7] {
        let runs = run_verified_hooks(&node.backups(), &id, &hooks, faults_count, &Control::default()).unwrap();
        assert_eq!(runs[0].output, faults_count.to_string());
        assert_eq!(hooks_of(&service, &id), runs, "the last run takes the place of the one before");
    }
}
