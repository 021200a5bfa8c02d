//! An attacker who has become the node's user plants links, FIFOs, sockets, devices and huge files under every name that we
//! use: nothing outside of our directories changes, and nothing waits for ever. `nofollow` says what the attacker can do.
//!
//! `CHAINWEB_BACKUP_TREES` is the number of random trees (`scripts/soak.sh hostile`), `CHAINWEB_BACKUP_SEED` the first seed.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc;
use std::time::Duration;

use chainweb_backup::{
    Config, Control, Depth, DrillOptions, Kind, Policy, RestoreOptions, Service, Settle, Sources, Status, Verdict,
    VerifyOptions, cancel_backup, check_backup_in, delete_backup, drill_backup, gate, list_backups_in, pin_backup,
    prune_backups, rehearse_prune, restore_backup, settle_restore, sum_backup, sweep_backups, unpin_backup,
    verify_backup,
};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use tempfile::TempDir;

use crate::fixture::{
    Node, PACT, ROCKSDB, Tree, call, config, copy_tree, make_done, make_failed, names, paths, restore_to, scratch,
    tree, wait_until,
};

/// How long the calls of one case may take on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);

/// The node's user, to whom root gives what it creates.
const NODE_USER: u32 = 54_321;

const GARBAGE: &str = ".deleting-1600000000009.0";

/// This process opens the databases.
const DRILL: DrillOptions<'_> =
    DrillOptions { command: &[], time_limit: Duration::from_secs(60), copy: false, program: None };

fn fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap();
}

/// Runs something that must not wait for ever.
fn in_time<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, wait) = mpsc::channel();
    std::thread::spawn(move || done.send(work()));
    wait.recv_timeout(DEADLINE).unwrap_or_else(|e| panic!("{what}: {e}"))
}

/// Files outside of our directories that must not change.
fn precious(root: &Path) -> (PathBuf, Tree) {
    let place = root.join("precious");
    fs::create_dir_all(place.join("0/rocksDb")).unwrap();
    fs::create_dir_all(place.join("rocksDb")).unwrap();
    for name in ["secret", "0/rocksDb/CURRENT", "rocksDb/000001.sst", "status"] {
        fs::write(place.join(name), format!("precious {name}")).unwrap();
        fs::set_permissions(place.join(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
    let before = tree(&place);
    (place, before)
}

#[test]
fn what_a_planted_link_leads_to_is_not_deleted() {
    let node = Node::new();
    let (place, before) = precious(node.root());
    let backups = node.backups();
    fs::create_dir(&backups).unwrap();
    for name in [".deleting-x", GARBAGE, ".creating-mine", ".creating-1600000000008"] {
        symlink(&place, backups.join(name)).unwrap();
    }
    fs::create_dir_all(backups.join(".deleting-1600000000009.1/deep")).unwrap();
    symlink(&place, backups.join(".deleting-1600000000009.1/link")).unwrap();
    symlink(place.join("secret"), backups.join(".deleting-1600000000009.1/deep/link")).unwrap();
    let policy = Policy { keep_last: 1, ..Policy::default() };
    prune_backups(&backups, policy).unwrap();
    assert_eq!(tree(&place), before);
    // Links with a name of ours are gone; those with another name are not touched.
    assert_eq!(names(&backups), [".creating-1600000000008", ".creating-mine", ".deleting-x"]);
    symlink(&place, backups.join(GARBAGE)).unwrap();
    let service = node.start();
    wait_until("the sweep", || !names(&backups).iter().any(|name| name == GARBAGE));
    let id = make_done(&service, ROCKSDB);
    drop(service);
    assert_eq!(tree(&place), before);

    let target = node.root().join("target");
    fs::create_dir(&target).unwrap();
    for name in [".restoring-1", ".restoring-mine", ".exchanging-1"] {
        symlink(&place, target.join(name)).unwrap();
    }
    let restored = restore_backup(&backups, id.as_str(), restore_to(&target), &Control::default()).unwrap();
    assert_eq!(restored.0, id);
    assert_eq!(tree(&place), before);
    assert_eq!(names(&target), [".restoring-mine", "0", "0.bak-1"]);
}

/// Between the making of the scratch directory and its filling, a link takes its place, or that of the directory in it. Also a link
/// that was there before the drill, and one that is there when the sweep comes.
#[test]
fn a_link_in_place_of_the_scratch_directory_of_a_drill_leads_nowhere() {
    let node = Node::new();
    let (place, _) = precious(node.root());
    fs::create_dir(place.join("empty")).unwrap();
    let before = tree(&place);
    let service = node.start();
    let id = make_done(&service, PACT);
    drop(service);
    let backups = node.backups();
    let scratch = backups.join(format!(".drilling-{id}"));
    let drill = || drill_backup(&backups, id.as_str(), DRILL, &Control::default()).map(|(_, drill)| drill.passed);
    for (name, to) in [("", "empty"), ("restored", "empty"), ("restored", "new")] {
        let link = if name.is_empty() { scratch.clone() } else { scratch.join(name) };
        let to = place.join(to);
        gate::at_point(&backups, move |point| {
            if point == "drill-made" {
                if name.is_empty() {
                    fs::remove_dir(&link).unwrap();
                }
                symlink(&to, &link).unwrap();
            }
        });
        let drilled = drill();
        gate::forget_points(&backups);
        assert_eq!(tree(&place), before, "{name}");
        assert!(drilled.is_err(), "{name}: {drilled:?}");
        assert!(scratch.symlink_metadata().is_err(), "{name}: the scratch directory is left");
    }
    for way in ["link", "dangling", "fifo"] {
        let plant = || match way {
            "link" => symlink(place.join("empty"), &scratch).unwrap(),
            "dangling" => symlink(place.join("new"), &scratch).unwrap(),
            _ => fifo(&scratch),
        };
        plant();
        assert!(drill().unwrap(), "{way}");
        plant();
        sweep_backups(&backups).unwrap();
        assert!(scratch.symlink_metadata().is_err(), "{way}: not swept");
        assert_eq!(tree(&place), before, "{way}");
    }
}

/// If it were emptied as a pin directory is, the node would lose its RocksDB.
#[test]
fn a_pin_directory_that_is_a_link_is_refused() {
    let mut node = Node::new();
    let pins = node.directory().join(".chainweb-backup-pin");
    symlink("0", &pins).unwrap();
    let elsewhere = if scratch().path().metadata().unwrap().dev() == node.root().metadata().unwrap().dev() {
        crate::fixture::scratch_on_disk()
    } else {
        scratch()
    };
    let is_elsewhere = elsewhere.path().metadata().unwrap().dev() != node.root().metadata().unwrap().dev();
    let service = Service::start(config(&elsewhere.path().join("backups")), node.embedded()).unwrap();
    if is_elsewhere {
        let (_, reason) = make_failed(&service, ROCKSDB);
        assert!(reason.contains("is a link or a file, not a directory that we made; remove it"), "{reason}");
    } else {
        eprintln!("only one file system: no backup that needs pins");
        make_done(&service, ROCKSDB);
    }
    drop(service);
    node.check();
    assert!(node.rocksdb().join("CURRENT").is_file() && !names(&node.rocksdb()).is_empty());
    fs::remove_file(&pins).unwrap();
    let service = Service::start(config(&elsewhere.path().join("backups")), node.embedded()).unwrap();
    make_done(&service, ROCKSDB);
    drop(service);
    node.close();
}

#[test]
fn a_planted_lock_is_refused_and_what_it_leads_to_keeps_its_content() {
    let node = Node::new();
    let (place, before) = precious(node.root());
    let backups = node.backups();
    fs::create_dir(&backups).unwrap();
    for name in [".lock", ".service"] {
        for way in ["link", "dangling", "fifo", "directory"] {
            let path = backups.join(name);
            match way {
                "link" => symlink(place.join("secret"), &path).unwrap(),
                "dangling" => symlink(place.join("new"), &path).unwrap(),
                "fifo" => fifo(&path),
                _ => fs::create_dir(&path).unwrap(),
            }
            let (config, sources) = (node.config(), node.embedded());
            let refused = in_time(way, move || Service::start(config, sources).map(drop)).unwrap_err();
            assert_eq!(refused.kind(), Kind::Io, "{name} {way}");
            assert!(refused.chain().contains(&path.display().to_string()), "{name} {way}: {}", refused.chain());
            assert_eq!(tree(&place), before, "{name} {way}");
            if way == "directory" { fs::remove_dir(&path).unwrap() } else { fs::remove_file(&path).unwrap() }
        }
    }
    let _ = fs::remove_file(backups.join(".lock"));
    // A second name of a foreign file: the note of a lock is the only data that is written to an existing file.
    fs::hard_link(place.join("secret"), backups.join(".lock")).unwrap();
    let service = node.start();
    let refused = service.make_backup(ROCKSDB).unwrap_err();
    assert!(refused.chain().contains("hard link"), "{}", refused.chain());
    assert_eq!(fs::read_to_string(place.join("secret")).unwrap(), "precious secret");
}

/// A FIFO or a link in place of everything that is read of a finished backup.
#[test]
fn a_fifo_or_a_link_keeps_nothing_waiting() {
    let template = scratch();
    let id = {
        let node = Node::new();
        let service = node.start();
        let id = make_done(&service, PACT);
        drop(service);
        sum_backup(&node.backups(), id.as_str(), &Control::default()).unwrap();
        copy_tree(&node.backups(), template.path());
        id
    };
    let rocksdb = format!("{id}/0/rocksDb");
    let manifest = names(&template.path().join(&rocksdb)).into_iter().find(|n| n.starts_with("MANIFEST")).unwrap();
    let read = ["status", "backup.json", "manifest.json", "verified.json", ".use", "0/rocksDb/BLAKE2SUMS"];
    let more = ["0/sqlite/BLAKE2SUMS", "0/rocksDb/CURRENT", "0/sqlite/pact-v1-chain-0.sqlite", ".pinned", ".cancel"];
    let manifest: &str = format!("0/rocksDb/{manifest}").leak();
    let node = Node::new();
    for name in read.into_iter().chain(more).chain([manifest, "0", "0/rocksDb", "0/sqlite"]) {
        for is_fifo in [true, false] {
            let place = scratch();
            let (backups, target) = (place.path().join("backups"), place.path().join("target"));
            copy_tree(template.path(), &backups);
            let path = backups.join(id.as_str()).join(name);
            if path.is_dir() {
                fs::rename(&path, place.path().join("moved")).unwrap();
            } else if path.exists() {
                fs::copy(&path, place.path().join("moved")).unwrap();
                fs::remove_file(&path).unwrap();
            }
            if is_fifo {
                fifo(&path)
            } else {
                symlink(place.path().join("moved"), &path).unwrap()
            }
            let (id, sources, what) = (id.clone(), node.embedded(), format!("{name} fifo={is_fifo}"));
            in_time(&what.clone(), move || {
                let word = id.as_str();
                // Without its status the backup exists, but what it is is unknown.
                let is_lost = name == "status";
                let found = check_backup_in(&backups, &id);
                let kinds = [list_backups_in(&backups).err().map(|e| e.kind()), found.as_ref().err().map(|e| e.kind())];
                assert_eq!(kinds, [is_lost.then_some(Kind::Damaged); 2], "{what}");
                for depth in [Depth::Quick, Depth::Deep] {
                    let verified =
                        verify_backup(&backups, word, VerifyOptions { depth, program: None }, &Control::default());
                    // A finished backup is never good if a verification finds a link in it.
                    let looked_at = name.contains(".json") && name != "verified.json" || name.starts_with("0/");
                    let is_bad = verified.map_or(true, |(_, found)| !found.faults.is_empty());
                    assert!(is_bad || !looked_at || name.ends_with("BLAKE2SUMS"), "{what} {depth:?}");
                }
                let _ = sum_backup(&backups, word, &Control::default());
                let _ = restore_backup(&backups, word, restore_to(&target), &Control::default());
                let _ = pin_backup(&backups, word);
                let service = Service::start(Config { sums: chainweb_backup::Sums::All, ..config(&backups) }, sources);
                let service = service.unwrap();
                for url in [format!("/check-backup/{id}"), "/list-backups".to_owned(), "/metrics".to_owned()] {
                    let status = call(&service, "GET", &url, &[]).unwrap().status;
                    let is_deleted = matches!(found, Ok(None));
                    let is_right = match status {
                        200 => !is_lost || !url.starts_with("/check-backup"),
                        404 => is_deleted,
                        _ => is_lost && status == 500,
                    };
                    assert!(is_right, "{what} {url} {status}");
                }
                service.finish();
                let _ = unpin_backup(&backups, word);
                let _ = delete_backup(&backups, word);
            });
        }
    }
}

#[test]
fn what_others_leave_there_is_theirs() {
    let node = Node::new();
    let service = node.start();
    let [old, new] = [(); 2].map(|()| make_done(&service, ROCKSDB));
    drop(service);
    let backups = node.backups();
    fs::write(backups.join(".deleting-note"), "when?").unwrap();
    fs::create_dir_all(backups.join(".creating-mine/0")).unwrap();
    fs::create_dir_all(backups.join(".creating-1600000000007/0")).unwrap();
    fs::create_dir(backups.join(".creating-1600000000006")).unwrap();
    fs::write(backups.join(".creating-1600000000006/backup.json"), "{").unwrap();
    fs::create_dir_all(backups.join(GARBAGE).join("below")).unwrap();
    // Garbage that cannot be removed.
    let root = backups.join(GARBAGE);
    gate::arm(gate::Plan { root: root.clone(), fail_at: (1..100).collect(), ..gate::Plan::default() });
    let policy = Policy { keep_last: 1, ..Policy::default() };
    let verdicts = prune_backups(&backups, policy).unwrap();
    let verdicts: Vec<_> = verdicts.into_iter().map(|(backup, verdict)| (backup.id, verdict)).collect();
    assert_eq!(verdicts, [(new.clone(), Verdict::Keep("last good")), (old, Verdict::Delete)]);
    assert_eq!(delete_backup(&backups, new.as_str()).unwrap(), new);
    assert!(!gate::disarm(&root).log.is_empty());
    let service = node.start();
    // A directory of ours that was begun is removed; one with other files in it is foreign.
    let left = [".creating-1600000000007", ".creating-mine", ".deleting-note", ".lock", ".service"];
    wait_until("the sweep", || names(&backups) == left);
    drop(service);
    assert_eq!(names(&backups.join(".creating-mine")), ["0"]);
}

/// A mounted directory in garbage is not emptied, and deep garbage uses up neither the descriptors nor the stack.
#[test]
fn garbage_of_any_depth_goes() {
    let place = scratch();
    let backups = place.path().join("backups");
    let mut deep = backups.join(GARBAGE);
    fs::create_dir_all(&deep).unwrap();
    // Deeper than the longest path: it is made step by step from within.
    let top = rustix::fs::open(&deep, rustix::fs::OFlags::RDONLY, Mode::empty()).unwrap();
    let mut at = top;
    for _ in 0..3_000 {
        rustix::fs::mkdirat(&at, "deeper", Mode::from_raw_mode(0o755)).unwrap();
        at = rustix::fs::openat(&at, "deeper", rustix::fs::OFlags::RDONLY, Mode::empty()).unwrap();
    }
    drop(at);
    for n in 0..50 {
        deep.push(format!("{n}"));
    }
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), "x").unwrap();
    in_time("the sweep", move || sweep_backups(&backups).map(|()| names(&backups)))
        .map(|left| assert_eq!(left, [""; 0]))
        .unwrap();
}

/// RocksDB follows links and creates what is missing: a drill by root opens the databases as the user who can put links there.
#[test]
fn a_link_among_the_files_of_a_drill_is_followed_with_the_rights_of_its_owner_only() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: no other user");
        return;
    }
    let node = Node::new();
    fs::set_permissions(node.root(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = node.root().join("program");
    fs::copy(env!("CARGO_BIN_EXE_chainweb-backup"), &program).unwrap();
    let service = node.start();
    let id = make_done(&service, PACT);
    drop(service);
    let backups = node.backups();
    let (place, _) = precious(node.root());
    fs::set_permissions(&place, fs::Permissions::from_mode(0o700)).unwrap();
    let before = tree(&place);
    for path in [vec![backups.clone()], paths(&backups)].concat() {
        lchown(path, Some(NODE_USER), Some(NODE_USER)).unwrap();
    }
    let options = DrillOptions { program: Some(&program), ..DRILL };
    let drill = || drill_backup(&backups, id.as_str(), options, &Control::default()).unwrap().1;
    assert_eq!(drill().reason, None);
    let copy = backups.join(format!(".drilling-{id}/restored/0"));
    for name in ["rocksDb/LOCK", "rocksDb/LOG", "rocksDb/IDENTITY", "sqlite/pact-v1-chain-0.sqlite-wal"] {
        let (link, to) = (copy.join(name), place.join("created"));
        gate::at_point(&backups, move |point| {
            if point == "drill-filled" {
                let _ = fs::remove_file(&link);
                symlink(&to, &link).unwrap();
            }
        });
        let drilled = drill();
        gate::forget_points(&backups);
        assert_eq!(tree(&place), before, "{name}: {drilled:?}");
    }
    // A whole directory.
    let (from, to) = (copy.join("rocksDb"), place.join("rocksDb"));
    gate::at_point(&backups, move |point| {
        if point == "drill-filled" {
            fs::rename(&from, from.with_extension("moved")).unwrap();
            symlink(&to, &from).unwrap();
        }
    });
    let drilled = drill_backup(&backups, id.as_str(), options, &Control::default());
    gate::forget_points(&backups);
    assert_eq!(tree(&place), before, "{drilled:?}");
}

/// Only ENOENT means that a file does not exist: a missing permission or a lack of descriptors is an error.
#[test]
fn what_cannot_be_read_is_not_called_absent() {
    let node = Node::new();
    fs::set_permissions(node.root(), fs::Permissions::from_mode(0o755)).unwrap();
    let service = node.start();
    let id = make_done(&service, ROCKSDB);
    drop(service);
    let run = |program: &mut Command, arguments: &[&str]| {
        let output = program.args(arguments).arg("--backup-directory").arg(node.backups()).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let program = node.root().join("program");
    fs::copy(env!("CARGO_BIN_EXE_chainweb-backup"), &program).unwrap();
    assert_eq!(run(&mut Command::new(&program), &["check", id.as_str()]).0, Some(0));
    // Descriptors: from none to enough.
    let mut codes = Vec::new();
    for limit in 3..12 {
        let script = format!("ulimit -n {limit} && exec \"$0\" \"$@\"");
        let mut shell = Command::new("/bin/sh");
        let (code, said) = run(shell.args(["-c", &script]).arg(&program), &["check", id.as_str()]);
        assert!([Some(0), Some(1), Some(127)].contains(&code), "{limit}: {code:?} {said}");
        codes.push(code.unwrap());
    }
    assert!(codes.contains(&1) && codes.contains(&0), "{codes:?}");
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: no file that cannot be read");
        return;
    }
    for name in ["status", "backup.json", "verified.json", ""] {
        let path = node.backups().join(id.as_str()).join(name);
        if name == "verified.json" {
            fs::write(&path, "{}").unwrap();
        }
        let mode = path.metadata().unwrap().permissions();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        for arguments in [&["check", id.as_str()][..], &["list"], &["delete", id.as_str()]] {
            let (code, said) = run(Command::new(&program).uid(NODE_USER).gid(NODE_USER), arguments);
            assert_eq!(code, Some(1), "{name} {arguments:?}: {said}");
            assert!(said.contains("ermission denied"), "{name} {arguments:?}: {said}");
        }
        fs::set_permissions(&path, mode).unwrap();
    }
    assert_eq!(check_backup_in(&node.backups(), &id).unwrap().unwrap().status, Status::Done);
}

/// The backups that all random trees are made from.
struct World {
    place: TempDir,
    template: TempDir,
    good: String,
    names: Vec<String>,
}

/// The identifiers of a case: done, failed, foreign, one that is yet to be given out.
const FAILED: &str = "1600000000003";
const FOREIGN: &str = "1600000000004";
const COMING: &str = "1600000000005";

/// In place of these, a restore follows links that belong to root or to its own user. The planted links belong to the node's user.
const FOLLOWED: [&str; 3] = ["target/0", "target/0/rocksDb", "target/0/sqlite"];

impl World {
    fn new() -> World {
        let (place, template) = (scratch(), scratch());
        let mut node = Node::create(place.path(), 1);
        let service = node.start();
        let good = make_done(&service, PACT).to_string();
        drop(service);
        node.close();
        sum_backup(&place.path().join("backups"), &good, &Control::default()).unwrap();
        copy_tree(&place.path().join("backups"), template.path());
        fs::remove_dir_all(place.path().join("backups")).unwrap();
        let failed = template.path().join(FAILED);
        fs::create_dir(&failed).unwrap();
        let record = fs::read_to_string(template.path().join(&good).join("backup.json")).unwrap();
        fs::write(failed.join("backup.json"), record.replace(&good, FAILED)).unwrap();
        fs::write(failed.join("status"), "backup-failed").unwrap();
        copy_tree(&template.path().join(&good).join("0"), &template.path().join(FOREIGN).join("0"));
        fs::write(template.path().join(FOREIGN).join("status"), "backup-done").unwrap();
        if rustix::process::geteuid().is_root() {
            chown(place.path().join("db"), Some(NODE_USER), Some(NODE_USER)).unwrap();
        }
        let names = World::names(template.path(), &good);
        World { place, template, good, names }
    }

    /// Every name that we use, below the directory of a case.
    fn names(template: &Path, good: &str) -> Vec<String> {
        let mut all: Vec<String> = [".lock", ".service", ".creating-mine", ".deleting-note", GARBAGE]
            .into_iter()
            .map(|name| format!("backups/{name}"))
            .collect();
        let next = |prefix: &str, suffix: &str| format!("backups/{prefix}{COMING}{suffix}");
        all.extend([next(".creating-", ""), next(".deleting-", ".1"), next(".creating-", "/backup.json")]);
        let of_backup = [
            "",
            "/.use",
            "/status",
            "/status.failed",
            "/backup.json",
            "/manifest.json",
            "/verified.json",
            "/.pinned",
            "/.cancel",
            "/drill.json",
            "/.status.tmp",
            "/.backup.json.tmp",
            "/.verified.json.tmp",
            "/.drill.json.tmp",
            "/0",
            "/0.partial",
            "/0/rocksDb",
            "/0/sqlite",
            "/0/rocksDb/BLAKE2SUMS",
            "/0/sqlite/BLAKE2SUMS",
            "/0/rocksDb/.BLAKE2SUMS.tmp",
            "/0/extra",
            "/0/sqlite/pact-v1-chain-0.sqlite-wal",
            "/0/sqlite/pact-v1-chain-0.sqlite-journal",
            "/0/rocksDb/LOG",
        ];
        for id in [good, FAILED, FOREIGN, COMING] {
            all.extend(of_backup.iter().map(|name| format!("backups/{id}{name}")));
        }
        all.extend(World::of_drill(good));
        for directory in ["rocksDb", "sqlite"] {
            let files = names(&template.join(good).join("0").join(directory));
            all.extend(files.iter().map(|file| format!("backups/{good}/0/{directory}/{file}")));
        }
        let of_target = [
            "/.restoring-1",
            "/.restoring-mine",
            "/.exchanging-2",
            "/0",
            "/0/rocksDb",
            "/0/sqlite",
            "/0.bak-1",
            "/0.bak-2",
            "/0/lost+found",
            "/0/rocksDb/.restore-journal.json",
            "/0/rocksDb/..restore-journal.json.tmp",
            "/0/rocksDb/.restoring-1",
            "/0/rocksDb/0.bak-1",
            "/0/rocksDb/LOCK",
            "/0/rocksDb/CURRENT",
            "/0/rocksDb/.CURRENT.tmp",
            "/0/sqlite/.restoring-1",
            "/0/sqlite/pact-v1-chain-0.sqlite",
        ];
        all.extend(of_target.iter().map(|name| format!("target{name}")));
        let of_pins = ["", "/.lock", "/rocksDb", "/rocksDb.tmp", "/rocksDb/000001.sst"];
        all.extend(of_pins.iter().map(|name| format!("pins{name}")));
        all.retain(|name| rustix::process::geteuid().is_root() || !FOLLOWED.contains(&name.as_str()));
        all
    }

    /// The directories of a drill.
    fn of_drill(good: &str) -> [String; 3] {
        ["", "/restored", "/restored/0"].map(|name| format!("backups/.drilling-{good}{name}"))
    }
}

/// Makes a link of the node's user. It gets its name only after it belongs to that user.
fn plant_link(to: &Path, path: &Path, place: &Path) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return symlink(to, path);
    }
    let unnamed = place.join(format!("planting-{:?}", std::thread::current().id()));
    symlink(to, &unnamed)?;
    let named = lchown(&unnamed, Some(NODE_USER), Some(NODE_USER)).and_then(|()| fs::rename(&unnamed, path));
    named.inspect_err(|_| fs::remove_file(&unnamed).unwrap())
}

/// Puts something hostile at a path, if there is a directory for it.
fn plant(path: &Path, place: &Path, random: &mut fastrand::Rng) -> Option<String> {
    // The test itself must not follow what it planted before.
    if path.parent().is_none_or(|parent| parent.canonicalize().ok().as_deref() != Some(parent)) {
        return None;
    }
    // The racing thread and our calls change the same names.
    let _ = fs::remove_file(path);
    let _ = fs::remove_dir_all(path);
    let outside = [
        "precious",
        "precious/secret",
        "precious/new",
        "precious/0",
        "precious/0/rocksDb",
        "precious/rocksDb",
        "db/0",
        "db/0/rocksDb",
        "db/0/rocksDb/CURRENT",
        "db/0/sqlite",
        "db/0/sqlite/pact-v1-chain-0.sqlite",
        "backups",
        ".",
        "db",
    ];
    let kind = random.u8(..12);
    let made = match kind {
        0..=3 => plant_link(&place.join(random.choice(outside).unwrap()), path, place),
        4 => {
            let system = ["/dev/zero", "/dev/full", "..", "loop", "/proc/self/mem", "/", "/etc"];
            // A restore that follows a link by mistake must not harm the machine.
            let known = if path.starts_with(place.join("target")) { &system[..5] } else { &system[..] };
            plant_link(Path::new(random.choice(known).unwrap()), path, place)
        }
        5 => mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o666), 0).map_err(Into::into),
        6 => UnixListener::bind(path).map(drop),
        7 => {
            // /dev/zero, /dev/full or /dev/tty, where that may be made.
            let minor = random.choice([(1, 5), (1, 7), (5, 0)]).unwrap();
            let device = makedev(minor.0, minor.1);
            mknodat(CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(0o666), device).map_err(Into::into)
        }
        8 => fs::File::create(path).and_then(|file| {
            // A file that we read whole as data is large; every other one is huge.
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let is_small = ["status", ".json", "CURRENT", "BLAKE2SUMS", ".tmp"].iter().any(|end| name.ends_with(end));
            file.set_len(if is_small || name.starts_with('.') { 1 << 40 } else { 64 << 20 })
        }),
        9 => fs::write(path, "x".repeat(random.usize(..2_000)))
            .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o000))),
        10 => {
            let deep = (0..random.usize(1..24)).fold(path.to_owned(), |path, n| path.join(format!("{n}")));
            fs::create_dir_all(&deep).and_then(|()| plant_link(&place.join("precious"), &deep.join("link"), place))
        }
        _ => fs::hard_link(place.join("backups/victim"), path),
    };
    made.is_ok().then(|| format!("{} kind {kind}", path.display()))
}

/// How often calls succeeded among the planted files: if all of them failed at once, the test would show nothing.
static SUCCESSES: [AtomicU64; CALLS.len()] = [const { AtomicU64::new(0) }; CALLS.len()];

/// The calls that are counted.
const CALLS: [&str; 10] = ["list", "verify", "sum", "prune", "delete", "restore", "pin", "make", "drill", "settle"];

fn count<T, E>(call_number: usize, result: Result<T, E>) {
    SUCCESSES[call_number].fetch_add(u64::from(result.is_ok()), Relaxed);
}

/// Calls each of our functions on a planted tree. They must return, and change nothing outside; their results do not matter.
fn operate(place: &Path, good: &str, random: &mut fastrand::Rng) {
    let (backups, target) = (&place.join("backups"), &place.join("target"));
    let control = Control::default;
    let policy = Policy { keep_last: random.u32(..2), keep_daily: random.u32(..2), ..Policy::default() };
    let depth = if random.bool() { Depth::Quick } else { Depth::Deep };
    let mut calls: Vec<u8> = (0..11).collect();
    random.shuffle(&mut calls);
    for call_number in calls.into_iter().take(random.usize(3..=11)) {
        let word = random.choice([good, FAILED, FOREIGN, COMING, "latest"]).unwrap();
        match call_number {
            0 => count(0, list_backups_in(backups)),
            1 => count(1, verify_backup(backups, word, VerifyOptions { depth, program: None }, &control())),
            2 => count(2, sum_backup(backups, word, &control())),
            3 if random.bool() => count(3, rehearse_prune(backups, policy)),
            3 => count(3, prune_backups(backups, policy)),
            4 => count(4, delete_backup(backups, word)),
            5 => {
                let replace = random.bool();
                let options = RestoreOptions { replace, copy: replace, depth, ..restore_to(target) };
                count(5, restore_backup(backups, word, options, &control()));
            }
            6 if random.bool() => count(6, unpin_backup(backups, word)),
            6 => count(6, pin_backup(backups, word)),
            // No job makes this backup, so the call returns at once.
            7 if word == good => drop(cancel_backup(backups, Some(word))),
            8 => drill(place, word, good, random),
            9 => count(9, settle_restore(target, if random.bool() { Settle::Resume } else { Settle::Undo })),
            _ => serve_and_make(backups, &place.join("db"), good, random),
        }
    }
}

/// A drill; in every second one, something replaces its directory as soon as that is made.
fn drill(place: &Path, word: &str, good: &str, random: &mut fastrand::Rng) {
    let (backups, mut planting) = (place.join("backups"), random.fork());
    if random.bool() {
        let (place, names) = (place.to_owned(), World::of_drill(good));
        gate::at_point(&backups, move |point| {
            if point == "drill-made" {
                plant(&place.join(planting.choice(&names).unwrap()), &place, &mut planting);
            }
        });
    }
    let drilled = drill_backup(&backups, word, DRILL, &Control::default());
    gate::forget_points(&backups);
    count(8, drilled.ok().filter(|(_, drill)| drill.passed).ok_or(()));
}

/// A target in which a database was restored before; in some, `0` cannot be exchanged as a whole, and the last restore was
/// interrupted.
fn occupy(world: &World, random: &mut fastrand::Rng) {
    let (backups, target) = (world.place.path().join("backups"), world.place.path().join("target"));
    copy_tree(&world.template.path().join(&world.good).join("0"), &target.join("0"));
    if random.bool() {
        return;
    }
    fs::create_dir(target.join("0/lost+found")).unwrap();
    let first = random.u64(1..150);
    gate::arm(gate::Plan { root: target.clone(), fail_at: (first..first + 500).collect(), ..gate::Plan::default() });
    let _ = restore_backup(
        &backups,
        &world.good,
        RestoreOptions { replace: true, copy: true, ..restore_to(&target) },
        &Control::default(),
    );
    gate::disarm(&target);
}

fn serve_and_make(backups: &Path, database: &Path, good: &str, random: &mut fastrand::Rng) {
    let Ok(service) = Service::start(config(backups), Sources::directory(database)) else { return };
    for url in ["/list-backups", "/metrics", &format!("/check-backup/{good}"), &format!("/check-backup/{FOREIGN}")] {
        assert!(call(&service, "GET", url, &[]).unwrap().status < 600);
    }
    if let Ok(id) = service.make_backup(if random.bool() { PACT } else { ROCKSDB }) {
        while service.check_backup(&id).is_ok_and(|status| status == Some(Status::InProgress)) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let is_done = service.check_backup(&id).is_ok_and(|status| status == Some(Status::Done));
        count(7, is_done.then_some(()).ok_or(()));
    }
    if random.bool() { service.finish() } else { service.shutdown() }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Plants one tree, sometimes again while our calls run; afterwards everything outside is unchanged.
fn case(world: &World, seed: u64) -> usize {
    let mut random = fastrand::Rng::with_seed(seed);
    let place = world.place.path();
    let (backups, pins) = (place.join("backups"), place.join("db/.chainweb-backup-pin"));
    for old in [&backups, &pins, &place.join("target")] {
        let _ = fs::remove_file(old);
        let _ = fs::remove_dir_all(old);
    }
    // A link of the node's user to its own directory is followed, and leads to a database in `db`.
    for name in names(&place.join("db")).iter().filter(|name| *name != "0") {
        let path = place.join("db").join(name);
        let _ = fs::remove_file(&path);
        let _ = fs::remove_dir_all(&path);
    }
    copy_tree(world.template.path(), &backups);
    fs::create_dir(place.join("target")).unwrap();
    fs::write(backups.join("victim"), "a second name of this").unwrap();
    if random.bool() {
        occupy(world, &mut random);
    }
    if random.bool() {
        fs::create_dir_all(place.join(&World::of_drill(&world.good)[2])).unwrap();
    }
    let resolve = &|name: &str| match name.strip_prefix("pins") {
        Some(rest) => PathBuf::from(format!("{}{rest}", pins.display())),
        None => place.join(name),
    };
    let mut planted = Vec::new();
    for _ in 0..random.usize(1..8) {
        planted.extend(plant(&resolve(random.choice(&world.names).unwrap()), place, &mut random));
    }
    let (stop, races) = (AtomicBool::new(false), random.u8(..4) == 0);
    std::thread::scope(|scope| {
        let mut racing = fastrand::Rng::with_seed(seed + 1);
        let stop = &stop;
        let race = move || {
            while races && !stop.load(Relaxed) {
                let name = racing.choice(&world.names).unwrap();
                // Files that a library opens by path are not replaced between our look and its opening: see `nofollow`.
                let is_opened_by_path =
                    ["/0/rocksDb/", "/0/sqlite/", "/restored"].iter().any(|part| name.contains(part));
                if name.starts_with("backups/") && !is_opened_by_path {
                    let _ = plant(&resolve(name), place, &mut racing);
                }
            }
        };
        scope.spawn(race);
        let _stop = StopOnDrop(stop);
        operate(place, &world.good, &mut random);
    });
    planted.len()
}

#[test]
fn random_trees_change_nothing_outside() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let trees = number("CHAINWEB_BACKUP_TREES").unwrap_or(150);
    let seed = number("CHAINWEB_BACKUP_SEED").unwrap_or(11);
    let world = World::new();
    let root = world.place.path().to_owned();
    let (precious, before) = precious(&root);
    let database = root.join("db/0");
    let node_before = tree(&database);
    let (sender, receiver) = mpsc::channel();
    let case_of = move |n: u64| seed.wrapping_mul(1_000_003) + 2 * n;
    let worker = std::thread::spawn(move || {
        for n in 0..trees {
            let planted = case(&world, case_of(n));
            assert_eq!(tree(&precious), before);
            assert_eq!(tree(&database), node_before);
            let left = ["backups", "db", "precious", "target"];
            assert!(names(&root).iter().all(|name| left.contains(&name.as_str())), "{:?}", names(&root));
            sender.send(planted).unwrap();
        }
    });
    let mut planted = 0;
    for n in 0..trees {
        let done = receiver.recv_timeout(DEADLINE);
        planted += done.unwrap_or_else(|e| panic!("tree {n} of seed {seed} (case {}): {e}", case_of(n)));
    }
    worker.join().unwrap();
    println!("{trees} trees with {planted} planted things");
    assert!(planted as u64 > trees);
    for (name, count) in CALLS.iter().zip(&SUCCESSES) {
        println!("{name}: {} good", count.load(Relaxed));
        assert!(count.load(Relaxed) > trees / 50, "hardly any {name} succeeds");
    }
}
