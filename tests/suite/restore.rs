//! Restores: a node starts at the worst moment, every step fails once, and modes, files and limits are as they were asked for.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::thread::sleep;
use std::time::{Duration, Instant};

use chainweb_backup::gate::{self, Plan};
use chainweb_backup::{
    BackupId, Control, Depth, Error, Kind, RestoreOptions, Restored, Service, Sources, find_backup, restore_backup,
    sum_backup, verify_backup,
};

use crate::fixture::{
    DEEP, Mount, Node, PACT, QUICK, config, make_done, names, paths, restore_to, scratch_on_disk, tree,
};

/// How long a test waits at most.
const DEADLINE: Duration = Duration::from_secs(30);

/// A stopped node with one backup, and the database directory of another stopped node.
struct Scene {
    node: Node,
    id: BackupId,
    target: PathBuf,
}

impl Scene {
    fn new() -> Scene {
        let mut node = Node::with_chains(2);
        let service = node.start();
        let id = make_done(&service, PACT);
        drop(service);
        node.close();
        let root = node.root().join("other");
        fs::create_dir(&root).unwrap();
        let mut other = Node::create(&root, 2);
        let target = other.directory();
        other.close();
        fs::write(target.join("0/old"), "").unwrap();
        Scene { node, id, target }
    }

    fn backup(&self) -> PathBuf {
        self.node.backups().join(self.id.as_str())
    }

    fn options(&self) -> RestoreOptions<'_> {
        RestoreOptions { replace: true, ..restore_to(&self.target) }
    }

    fn restore(&self) -> Result<Restored, Error> {
        self.restore_as(self.options())
    }

    fn restore_as(&self, options: RestoreOptions<'_>) -> Result<Restored, Error> {
        restore_backup(&self.node.backups(), "latest", options, &Control::default()).map(|(_, restored)| restored)
    }

    /// The names of the directories that have the old database.
    fn old(&self) -> Vec<String> {
        names(&self.target).into_iter().filter(|name| self.target.join(name).join("old").exists()).collect()
    }

    /// The names beside the `0` that an operator may take for an old database.
    fn called_old(&self) -> Vec<String> {
        let may_be = |name: &String| name.starts_with("0.bak-") || name.starts_with(".exchanging-");
        names(&self.target).into_iter().filter(may_be).collect()
    }
}

/// Starts a process that opens a file and reads a byte of it.
fn opener(path: &Path) -> Child {
    Command::new("head").args(["-c", "1"]).arg(path).stdout(Stdio::null()).spawn().unwrap()
}

/// Waits until a process waits for the lease on a file to end.
fn wait_for_break(path: &Path) {
    let inode = format!(":{} ", path.metadata().unwrap().ino());
    let deadline = Instant::now() + DEADLINE;
    let is_breaking = || {
        let locks = fs::read_to_string("/proc/locks").unwrap();
        locks.lines().any(|line| line.contains("LEASE") && line.contains("BREAKING") && line.contains(&inode))
    };
    while !is_breaking() {
        assert!(Instant::now() < deadline, "no process waits for {}", path.display());
        sleep(Duration::from_millis(1));
    }
}

/// A node starts after our last look and before the exchange. It opens RocksDB's LOCK first; other programs open a Pact database. The
/// database that it opened is in place afterwards, and the restore has failed.
#[test]
fn what_opens_the_old_database_at_the_last_moment_keeps_it() {
    let scene = Scene::new();
    for name in ["0/rocksDb/LOCK", "0/sqlite/pact-v1-chain-0.sqlite", "0/sqlite/pact-v1-chain-1.sqlite"] {
        let before = tree(&scene.target.join("0"));
        let path = scene.target.join(name);
        let (children, child) = channel();
        let opened = path.clone();
        gate::at_point(&scene.target, move |point| {
            if point == "restore-locked" {
                children.send(opener(&opened)).unwrap();
                wait_for_break(&opened);
            }
        });
        let result = scene.restore();
        gate::forget_points(&scene.target);
        let error = result.expect_err("a process has the old database open");
        assert_eq!(error.kind(), Kind::NodeRunning, "{}", error.chain());
        assert!(error.chain().contains(name), "{}", error.chain());
        assert!(child.recv_timeout(DEADLINE).unwrap().wait().unwrap().success());
        assert_eq!(tree(&scene.target.join("0")), before, "{name}");
        assert_eq!(names(&scene.target), ["0"]);
    }
    scene.restore().unwrap();
    assert_eq!((scene.old().len(), names(&scene.target).len()), (1, 2));
}

/// A process has opened a file and not locked it yet, or has locked it.
#[test]
fn what_has_the_old_database_open_keeps_it() {
    let scene = Scene::new();
    let before = tree(&scene.target.join("0"));
    for name in ["0/rocksDb/LOCK", "0/sqlite/pact-v1-chain-1.sqlite"] {
        let file = fs::File::open(scene.target.join(name)).unwrap();
        let mut child = Command::new("sleep").arg("1000").stdin(file).spawn().unwrap();
        let error = scene.restore().expect_err("a process has the old database open");
        assert!(error.kind() == Kind::NodeRunning && error.chain().contains(name), "{}", error.chain());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(tree(&scene.target.join("0")), before);
        assert_eq!(names(&scene.target), ["0"]);
    }
    scene.restore().unwrap();
}

/// Each operation of a restore fails once: the old database is in one place and whole, the new one never gets the name of an old one,
/// and the next restore succeeds.
#[test]
fn an_error_at_any_step_loses_nothing() {
    let mut at = 0;
    let mut kinds = Vec::new();
    loop {
        at += 1;
        let scene = Scene::new();
        gate::arm(Plan { root: scene.target.clone(), fail_at: vec![at], ..Plan::default() });
        let result = scene.restore();
        let log = gate::disarm(&scene.target).log;
        if log.len() < at as usize {
            result.unwrap();
            break;
        }
        let what = format!("error at {at}, {:?}: {:?}", log[at as usize - 1], names(&scene.target));
        assert_eq!(scene.old().len(), 1, "{what}");
        assert!(scene.called_old().iter().all(|name| scene.old().contains(name)), "{what}");
        if result.is_ok() || scene.old() != ["0"] {
            assert_eq!(whole_database(&scene), 2, "{what}");
        }
        kinds.push(log[at as usize - 1].0);
        if scene.target.join("0").exists() {
            scene.restore().unwrap();
        }
        assert_eq!(whole_database(&scene), 2, "{what}");
        assert!(names(&scene.target).iter().all(|name| name == "0" || name.starts_with("0.bak-")), "{what}");
        assert_eq!(scene.old().len(), 1, "{what}");
    }
    for kind in ["mkdir", "link", "copy", "fsync", "fsync-dir", "rename", "exchange", "lock"] {
        assert!(kinds.contains(&kind), "no {kind} in {kinds:?}");
    }
}

/// The number of Pact databases in the restored database. Fails unless it is whole.
fn whole_database(scene: &Scene) -> usize {
    let copy = scene.node.root().join("looked-at");
    crate::fixture::copy_tree(&scene.target.join("0"), &copy.join("db/0"));
    let node = Node::open(&copy);
    node.check();
    let chains = node.pact().len();
    drop(node);
    fs::remove_dir_all(&copy).unwrap();
    chains
}

#[test]
fn a_copy_shares_no_file_with_the_backup() {
    let scene = Scene::new();
    let linked = scene.restore().unwrap();
    assert!(linked.linked_count >= 2, "{linked:?}");
    let copied = scene.restore_as(RestoreOptions { copy: true, ..scene.options() }).unwrap();
    let all = linked.linked_count + linked.cloned_count + linked.copied_count;
    assert_eq!((copied.linked_count, copied.cloned_count, copied.copied_count), (0, 0, all));
    let shared = |path: &PathBuf| path.is_file() && path.metadata().unwrap().nlink() > 1;
    assert_eq!(paths(&scene.target.join("0")).into_iter().filter(shared).collect::<Vec<_>>(), Vec::<PathBuf>::new());
    assert_eq!(whole_database(&scene), 2);
}

/// The permissions below a directory, by name; without the LOCK of a restored database, which is not from the backup.
fn modes(directory: &Path) -> Vec<(PathBuf, u32)> {
    let mode = |path: &PathBuf| path.metadata().unwrap().permissions().mode() & 0o777;
    let name = |path: &PathBuf| path.strip_prefix(directory).unwrap().to_owned();
    paths(directory).iter().map(|path| (name(path), mode(path))).collect()
}

/// A node whose databases are private except for one file and one directory: linked and copied, to the same file system and to
/// another one, stopped and in this process.
#[test]
fn a_backup_has_the_modes_of_the_node() {
    let mut node = Node::with_chains(2);
    let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    for path in paths(&node.directory().join("0")) {
        set(&path, if path.is_dir() { 0o700 } else { 0o600 });
    }
    set(&node.sqlite(1), 0o640);
    set(node.sqlite(1).parent().unwrap(), 0o750);
    let elsewhere = scratch_on_disk();
    let check = |node: &Node, id: &BackupId, backups: &Path| {
        let here = modes(&backups.join(id.as_str()).join("0"));
        assert!(here.len() > 8, "{here:?}");
        let of_node = modes(&node.directory().join("0"));
        for (name, mode) in here {
            // A checkpoint has files of its own.
            let expected = of_node.iter().find(|(other, _)| *other == name).map_or(0o600, |(_, mode)| *mode);
            assert_eq!(mode, expected, "{}", name.display());
        }
    };
    for backups in [node.backups(), elsewhere.path().join("backups")] {
        let service = Service::start(config(&backups), node.embedded()).unwrap();
        check(&node, &make_done(&service, PACT), &backups);
    }
    node.close();
    for backups in [node.backups(), elsewhere.path().join("backups")] {
        let service = Service::start(config(&backups), Sources::directory(&node.directory())).unwrap();
        check(&node, &make_done(&service, PACT), &backups);
        let modes = modes(&backups);
        assert!(modes.iter().any(|(name, mode)| name.ends_with("status") && *mode & 0o044 == 0o044), "{modes:?}");
    }
}

#[test]
fn a_restored_database_has_the_modes_of_its_backup() {
    let scene = Scene::new();
    let at = scene.backup().join("0");
    for path in paths(&at) {
        let mode = if path.is_dir() { 0o700 } else { 0o600 };
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::set_permissions(at.join("sqlite/pact-v1-chain-1.sqlite"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::set_permissions(at.join("sqlite"), fs::Permissions::from_mode(0o750)).unwrap();
    for copy in [false, true] {
        scene.restore_as(RestoreOptions { copy, ..scene.options() }).unwrap();
        assert_eq!(modes(&scene.target.join("0")), modes(&at));
    }
}

#[test]
fn checksums_of_the_backup_are_not_restored() {
    let scene = Scene::new();
    sum_backup(&scene.node.backups(), "latest", &Control::default()).unwrap();
    for directory in ["0/rocksDb", "0/sqlite"] {
        assert!(scene.backup().join(directory).join("BLAKE2SUMS").exists());
        fs::write(scene.backup().join(directory).join(".BLAKE2SUMS.tmp"), "cut off").unwrap();
    }
    scene.restore().unwrap();
    let has_sums = |path: &PathBuf| path.to_string_lossy().contains("BLAKE2SUMS");
    assert_eq!(paths(&scene.target.join("0")).into_iter().filter(has_sums).collect::<Vec<_>>(), Vec::<PathBuf>::new());
}

/// Reading and copying take as long as the limit demands.
#[test]
fn the_limit_holds_for_sums_verifications_and_restores() {
    let scene = Scene::new();
    let bytes: u64 =
        paths(&scene.backup().join("0")).iter().filter(|p| p.is_file()).map(|p| p.metadata().unwrap().len()).sum();
    let limit = bytes * 2;
    let seconds = |work: &dyn Fn(&Control)| {
        let began = Instant::now();
        work(&Control::with_limit(Some(limit)));
        began.elapsed().as_secs_f64()
    };
    let backups = scene.node.backups();
    // A file with a checksum in the manifest is not read again for the list.
    let wanted = 0.3;
    let took = seconds(&|control| drop(sum_backup(&backups, "latest", control).unwrap()));
    assert!(took > wanted, "sums of {bytes} bytes at {limit} a second took {took} s");
    let took = seconds(&|control| {
        let (_, found) = verify_backup(&backups, "latest", DEEP, control).unwrap();
        assert!(found.faults.is_empty(), "{:?}", found.faults);
    });
    assert!(took > wanted, "a verification of {bytes} bytes at {limit} a second took {took} s");
    let options = RestoreOptions { copy: true, ..scene.options() };
    let took = seconds(&|control| drop(restore_backup(&backups, "latest", options, control).unwrap()));
    assert!(took > wanted, "a restore of {bytes} bytes at {limit} a second took {took} s");
    let deep = RestoreOptions { copy: true, depth: Depth::Deep, ..scene.options() };
    let took = seconds(&|control| drop(restore_backup(&backups, "latest", deep, control).unwrap()));
    assert!(took > 2.0 * wanted, "a deep restore of {bytes} bytes at {limit} a second took {took} s");
}

/// Parts of a backup have other names through mounts: neither the target of a restore nor a backup directory may be there.
#[test]
fn a_backup_that_is_mounted_elsewhere_is_neither_target_nor_backup_directory() {
    let scene = Scene::new();
    let before = tree(&scene.backup());
    for (n, below) in ["", "0", "0/rocksDb", "0/sqlite"].into_iter().enumerate() {
        let mounted = scene.node.root().join(format!("elsewhere {n}/mounted"));
        let Some(_bind) = Mount::bind(&scene.backup().join(below), &mounted) else { return };
        for at in [mounted.clone(), mounted.join("new")] {
            let what = format!("{below:?} at {}", at.display());
            let error = scene.restore_as(RestoreOptions { target: &at, ..scene.options() }).expect_err(&what);
            assert!(
                error.kind() == Kind::Usage && error.chain().contains("lies in a backup"),
                "{what}: {}",
                error.chain()
            );
            let started = Service::start(config(&at), Sources::directory(&scene.node.directory()));
            let error = started.err().expect(&what);
            assert!(
                error.kind() == Kind::Usage && error.chain().contains("within a backup"),
                "{what}: {}",
                error.chain()
            );
            assert_eq!(tree(&scene.backup()), before, "{what}");
        }
    }
    // The whole backup directory under another name is a backup directory.
    let mounted = scene.node.root().join("all");
    let Some(_bind) = Mount::bind(&scene.node.backups(), &mounted) else { return };
    make_done(&Service::start(config(&mounted), Sources::directory(&scene.node.directory())).unwrap(), PACT);
}

/// `latest` means a backup of ours; a foreign one only if there is none, and never one without a RocksDB.
#[test]
fn latest_is_a_backup_of_ours_if_there_is_one() {
    let scene = Scene::new();
    let backups = scene.node.backups();
    let newer: u64 = scene.id.as_str().parse::<u64>().unwrap() + 1;
    let foreign = BackupId::parse(&newer.to_string()).unwrap();
    let directory = backups.join(foreign.as_str());
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("status"), "backup-done").unwrap();
    let latest = || find_backup(&backups, "latest").map_err(|e| e.kind());
    let verified = || {
        let verified = verify_backup(&backups, "latest", QUICK, &Control::default());
        verified.map(|(id, _)| id).map_err(|e| e.kind())
    };
    assert_eq!((latest(), verified()), (Ok(scene.id.clone()), Ok(scene.id.clone())));
    scene.restore().unwrap();
    let ours = scene.node.root().join("moved");
    fs::rename(scene.backup(), &ours).unwrap();
    assert_eq!((latest(), verified()), (Err(Kind::NotFound), Err(Kind::NotFound)));
    crate::fixture::copy_tree(&ours.join("0"), &directory.join("0"));
    assert_eq!((latest(), verified()), (Ok(foreign.clone()), Ok(foreign)));
    fs::rename(&ours, scene.backup()).unwrap();
    assert_eq!((latest(), verified()), (Ok(scene.id.clone()), Ok(scene.id.clone())));
}
