//! Around a job: what can end it, its limit, and its verification.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use chainweb_backup::rusqlite::Connection;
use chainweb_backup::{
    BackupId, Config, Control, Depth, Kind, Phase, Service, Status, VerifyOptions, cancel_backup, check_backup_in,
    gate, verify_backup,
};

use crate::fixture::{DEEP, Node, PACT, ROCKSDB, call, make_done, make_failed, names, record, wait_until};

/// The files of a failed backup.
const FAILED: [&str; 3] = [".use", "backup.json", "status"];

fn wait_for(service: &Service, id: &BackupId, status: Status) {
    wait_until(status.word(), || service.check_backup(id).unwrap() == Some(status));
}

fn status_on_disk(node: &Node, id: &BackupId) -> String {
    fs::read_to_string(node.backups().join(id.as_str()).join("status")).unwrap()
}

/// The jobs that the metrics count as done and as failed.
fn counted(service: &Service) -> [String; 2] {
    let metrics = call(service, "GET", "/metrics", &[]).unwrap().body;
    ["done", "failed"].map(|result| {
        let line = format!("chainweb_backup_jobs_total{{result=\"{result}\"}} ");
        metrics.lines().find_map(|found| found.strip_prefix(&line)).expect("each result has its line").to_owned()
    })
}

/// The next copy of a database hangs until the result is dropped.
fn hang_once(database: &Path) -> mpsc::Sender<()> {
    let (let_go, hang) = mpsc::channel::<()>();
    let hangs = AtomicBool::new(true);
    gate::at_point(database, move |name| {
        if name == "raw-held" && hangs.swap(false, SeqCst) {
            let _ = hang.recv_timeout(Duration::from_secs(60));
        }
    });
    let_go
}

/// The backup thread hangs in a system call; here, in a hook that does not return.
#[test]
fn a_job_that_hangs_is_called_failed() {
    let node = Node::new();
    let database = node.directory().join("0/sqlite/pact-v1-chain-0.sqlite");
    let let_go = hang_once(&database);
    let config = Config { stall_limit: Duration::from_secs(2), ..node.config() };
    let service = Service::start(config, node.embedded()).unwrap();
    let id = service.make_backup(PACT).unwrap();
    wait_for(&service, &id, Status::Failed);
    wait_until("the status on disk", || status_on_disk(&node, &id) == "backup-failed");

    // The job has ended, although its thread hangs.
    assert_eq!(counted(&service), ["0", "1"]);
    assert_eq!(service.failure_kind(&id), Some(Kind::Cancelled));
    let says = |line: &str| call(&service, "GET", "/metrics", &[]).unwrap().body.contains(&format!("\n{line}\n"));
    let hangs =
        ["chainweb_backup_thread_hangs 1", "chainweb_backup_stalled_jobs_total 1", "chainweb_backup_in_progress 0"];
    hangs.iter().for_each(|line| assert!(says(line), "the metrics lack {line}"));
    let refused = service.make_backup(PACT).unwrap_err();
    assert!(refused.kind() == Kind::Busy && refused.chain().contains("stalled"), "{}", refused.chain());
    drop(let_go);
    wait_until("the reason", || record(&service, &id).reason.is_some_and(|reason| reason.contains("stalled")));
    // Its thread may still be busy cleaning up.
    wait_until("the thread", || service.make_backup(PACT).is_ok());
    make_done(&service, PACT);
    assert!(says("chainweb_backup_thread_hangs 0"));
    assert_eq!(service.check_backup(&id).unwrap(), Some(Status::Failed));
    assert_eq!(names(&node.backups().join(id.as_str())), FAILED);
    // The return of its thread was no second end.
    assert_eq!(counted(&service)[1], "1");
    gate::forget_points(&database);
}

/// The disk hangs when a service looks whether a backup was deleted; here, in a hook that does not return. Clients that ask for something
/// else get their answers.
#[test]
fn a_disk_that_hangs_blocks_no_answer_for_which_it_is_not_needed() {
    let node = Node::new();
    let (database, before) = (node.sqlite(0), make_done(&node.start(), PACT));
    let let_go = hang_once(&database);
    let config = Config { stall_limit: Duration::from_secs(2), ..node.config() };
    let service = Service::start(config, node.embedded()).unwrap();
    let id = service.make_backup(PACT).unwrap();
    wait_for(&service, &id, Status::Failed);
    let backup = node.backups().join(id.as_str());
    let ((looks, looking), (see, unseen)) = (mpsc::channel(), mpsc::channel::<()>());
    gate::at_point(&backup, move |name| {
        if name == "is-deleted" {
            let _ = looks.send(());
            let _ = unseen.recv_timeout(Duration::from_secs(60));
        }
    });
    std::thread::scope(|scope| {
        let details = scope.spawn(|| service.details(&id).unwrap().unwrap().status);
        looking.recv_timeout(Duration::from_secs(60)).expect("it looks at the disk");
        let (answers, answer) = mpsc::channel();
        let (service, before, id) = (&service, &before, &id);
        scope.spawn(move || {
            answers.send(service.check_backup(before).unwrap()).unwrap();
            // While its thread hangs, the disk is not asked.
            answers.send(service.check_backup(id).unwrap()).unwrap();
        });
        let answers = [(); 2].map(|()| answer.recv_timeout(Duration::from_secs(20)));
        drop((see, let_go));
        assert_eq!(answers, [Ok(Some(Status::Done)), Ok(Some(Status::Failed))]);
        assert_eq!(details.join().unwrap(), Status::Failed);
    });
    gate::forget_points(&backup);
    gate::forget_points(&database);
}

#[test]
fn a_job_that_panics_has_failed_and_the_next_is_made() {
    let node = Node::new();
    let database = node.directory().join("0/sqlite/pact-v1-chain-0.sqlite");
    gate::at_point(&database, |name| assert!(name != "raw-held", "a panic in the backup thread, on purpose"));
    let service = node.start();
    let (id, reason) = make_failed(&service, PACT);
    assert_eq!(reason, "the backup thread panicked; see the log");
    wait_until("the clean-up", || names(&node.backups().join(id.as_str())) == FAILED);
    assert_eq!(service.failure_kind(&id), Some(Kind::Io));
    gate::forget_points(&database);
    make_done(&service, PACT);
    assert_eq!(counted(&service), ["1", "1"]);
}

/// A job that is slow because of its limit is not stalled.
#[test]
fn a_slow_job_is_not_stalled_and_its_limit_can_be_lifted() {
    let node = Node::new();
    let config = Config { stall_limit: Duration::from_secs(2), limit_bytes_per_second: Some(1000), ..node.config() };
    let service = Service::start(config, node.embedded()).unwrap();
    let id = service.make_backup(PACT).unwrap();
    sleep(Duration::from_secs(5));
    assert_eq!(service.check_backup(&id).unwrap(), Some(Status::InProgress));
    service.set_limit(None);
    wait_for(&service, &id, Status::Done);
}

#[test]
fn an_operator_cancels() {
    let node = Node::new();
    let backups = node.backups();
    let service = Service::start(Config { limit_bytes_per_second: Some(1), ..node.config() }, node.embedded()).unwrap();
    assert_eq!(cancel_backup(&backups, None).unwrap_err().kind(), Kind::NotFound);
    for by_name in [true, false] {
        let id = service.make_backup(PACT).unwrap();
        let word = by_name.then_some(id.as_str());
        assert_eq!(cancel_backup(&backups, word).unwrap(), (id.clone(), Status::Failed));
        wait_until("the clean-up", || names(&backups.join(id.as_str())) == FAILED);
        // Until its thread is free, a request for a backup gets this identifier.
        wait_until("the thread", || service.details(&id).unwrap().is_some_and(|details| details.progress.is_none()));
        assert_eq!(record(&service, &id).reason.as_deref(), Some("cancelled by the operator"));
        assert_eq!(cancel_backup(&backups, Some(id.as_str())).unwrap().1, Status::Failed);
    }
    service.set_limit(None);
    let done = make_done(&service, PACT);
    assert_eq!(cancel_backup(&backups, Some(done.as_str())).unwrap(), (done.clone(), Status::Done));
    assert_eq!(service.check_backup(&done).unwrap(), Some(Status::Done));
}

/// A job in which SQLite waits for a lock can be cancelled at once.
#[test]
fn a_job_that_waits_for_a_lock_can_be_cancelled() {
    let node = Node::new();
    let locked = Connection::open(node.directory().join("0/sqlite/pact-v1-chain-7.sqlite")).unwrap();
    locked.execute_batch("CREATE TABLE a (b); BEGIN EXCLUSIVE; INSERT INTO a VALUES (1)").unwrap();
    let service = node.start();
    let id = service.make_backup(PACT).unwrap();
    wait_until("the lock", || service.details(&id).unwrap().unwrap().progress.is_some_and(|p| p.phase == Phase::Pact));
    assert_eq!(cancel_backup(&node.backups(), None).unwrap(), (id.clone(), Status::Failed));
    // The status comes before the reason.
    wait_until("the clean-up", || names(&node.backups().join(id.as_str())) == FAILED);
    assert_eq!(record(&service, &id).reason.as_deref(), Some("cancelled by the operator"));
    locked.execute_batch("COMMIT").unwrap();
    // Until its thread is free, a request for a backup gets this identifier.
    wait_until("the thread", || service.make_backup(PACT).is_ok_and(|next| next != id));
    make_done(&service, PACT);
}

/// However a child ends, only its own word is damage: it may lack memory, or threads, or have failed an assertion.
#[test]
fn a_child_that_ends_without_an_answer_proves_no_damage() {
    let node = Node::new();
    let id = make_done(&node.start(), ROCKSDB);
    let program = node.root().join("child");
    let verify = |script: &str| {
        let script = format!("rm -f {0}; printf '#!/bin/sh\n{script}\n' >{0} && chmod 755 {0}", program.display());
        assert!(Command::new("/bin/sh").args(["-c", &script]).status().unwrap().success());
        let options = VerifyOptions { program: Some(&program), ..DEEP };
        verify_backup(&node.backups(), id.as_str(), options, &Control::default()).map(|(_, found)| found.faults)
    };
    // Not INT and QUIT, which a process in the background ignores.
    let signals = ["ABRT", "SEGV", "BUS", "ILL", "FPE", "TRAP", "SYS", "XCPU", "XFSZ", "KILL", "TERM", "PIPE"];
    let by_signal = signals.map(|signal| (format!("ulimit -c 0; kill -{signal} $$"), "ended with signal"));
    let by_code = [1, 2, 12, 101, 255].map(|code| (format!("exit {code}"), "ended with exit status"));
    let by_output = ["echo {", "true", "echo 7"].map(|script| (script.to_owned(), "not the expected JSON"));
    for (script, why) in by_signal.into_iter().chain(by_code).chain(by_output) {
        let error = verify(&script).expect_err(&script);
        assert!(matches!(error.kind(), Kind::Io | Kind::Database), "{script}: {:?}", error.kind());
        assert!(error.chain().contains(why), "{script}: {}", error.chain());
        let noted = check_backup_in(&node.backups(), &id).unwrap().unwrap().verified;
        assert!(noted.is_none(), "{script}: {noted:?}");
    }
    // Its own word.
    assert_eq!(verify("echo it is damaged >&2; exit 13").unwrap().len(), 1);
}

/// A page of a finished copy is overwritten while the heights are read: no size changes.
#[test]
fn deep_verification_before_done_finds_what_quick_cannot() {
    for (verify, expected) in [(Some(Depth::Quick), Status::Done), (Some(Depth::Deep), Status::Failed)] {
        let node = Node::new();
        let program = node.root().join("damage");
        let script = format!(
            "printf '#!/bin/sh\\n[ $1 = inspect ] || head -c 900 /dev/zero | dd of=$2/../sqlite/pact-v1-chain-0.sqlite \
             bs=1 seek=1024 conv=notrunc 2>/dev/null\\nexec {} \"$@\"\\n' >{1} && chmod 755 {1}",
            env!("CARGO_BIN_EXE_chainweb-backup"),
            program.display()
        );
        assert!(Command::new("/bin/sh").args(["-c", &script]).status().unwrap().success());
        let config = Config { verify, heights_program: Some(program), ..node.config() };
        let service = Service::start(config, node.embedded()).unwrap();
        if expected == Status::Done {
            make_done(&service, PACT);
        } else {
            let (_, reason) = make_failed(&service, PACT);
            assert!(reason.contains("the backup is damaged") && reason.contains("chain-0.sqlite"), "{reason}");
        }
    }
}

/// A child that neither writes nor reads anything is ended, which is not damage of the backup; one that only writes empty lines is not
/// ended.
#[test]
fn a_child_without_progress_is_ended() {
    let node = Node::new();
    let id = make_done(&node.start(), ROCKSDB);
    let verify = |script: &str| {
        let program = node.root().join("child");
        let script = format!("rm -f {0}; printf '#!/bin/sh\n{script}\n' >{0} && chmod 755 {0}", program.display());
        assert!(Command::new("/bin/sh").args(["-c", &script]).status().unwrap().success());
        let control = Control::default().with_stall_limit(Duration::from_secs(3));
        let started = Instant::now();
        let verified =
            verify_backup(&node.backups(), id.as_str(), VerifyOptions { program: Some(&program), ..DEEP }, &control);
        (verified.map(|(_, verification)| verification.faults), started.elapsed())
    };
    let (faults, took) = verify("exec sleep 60");
    let e = faults.unwrap_err();
    assert!(e.kind() == Kind::Io && e.chain().contains("made no progress for 3 seconds"), "{}", e.chain());
    assert!(took < Duration::from_secs(40), "{took:?}");
    let (faults, _) = verify("kill -KILL $$");
    assert_eq!(faults.unwrap_err().kind(), Kind::Io, "a child that was killed says nothing about the copy");
    let binary = env!("CARGO_BIN_EXE_chainweb-backup");
    let (faults, took) = verify(&format!("for n in 1 2 3 4 5 6; do sleep 1; echo; done; exec {binary} \"$@\""));
    assert!(took > Duration::from_secs(6), "{took:?}");
    assert_eq!(faults.unwrap(), []);
}
