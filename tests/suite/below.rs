//! A restore one level below, into a `0` that cannot be exchanged as a whole. Each operation fails once, also in pairs, and the process
//! is killed before each one, also while it settles what an earlier kill left. Afterwards the old or the new database is in place and
//! whole, or no node can open what is there; then the restore is finished or undone, and the other database is beside it.
//!
//! A kill needs a process of its own: this test executable again, as [`child`].

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use chainweb_backup::gate::{self, Plan};
use chainweb_backup::rocksdb::{DB, Options};
use chainweb_backup::{
    Control, Error, Kind, RestoreOptions, Service, Settle, Settled, Sources, Way, rehearse_restore,
    require_no_half_restore, restore_backup, settle_restore,
};
use tempfile::TempDir;

use crate::fixture::{Node, PACT, config, copy_tree, make_done, names, restore_to, scratch, tree};

/// Set for the child: what it does (`restore`, `resume`, `undo`), and the operation before which it dies.
const CHILD: &str = "CHAINWEB_BACKUP_BELOW_CHILD";

/// More operations than any restore of these tests has.
const MAX_GATES: u64 = 400;

/// The files of a database with their content, by directory and name; without those that a refused node writes.
type Files = BTreeMap<String, Vec<u8>>;

fn files(place: &Path, below: &str) -> Files {
    let mut found = Files::new();
    for part in ["rocksDb", "sqlite"] {
        let directory = place.join(part).join(below);
        for name in if directory.is_dir() { names(&directory) } else { Vec::new() } {
            let ours = name.starts_with('.') || name.contains(".later-");
            if directory.join(&name).is_file() && !name.starts_with("LOG") && name != "LOCK" && !ours {
                found.insert(format!("{part}/{name}"), fs::read(directory.join(&name)).unwrap());
            }
        }
    }
    found
}

/// A backup, and the old database from which a target is made.
struct Scene {
    _scratch: TempDir,
    root: PathBuf,
    new: Files,
    old: Files,
}

impl Scene {
    fn new() -> Scene {
        let scratch = scratch();
        let root = scratch.path().to_owned();
        let mut node = Node::create(&root, 2);
        let id = make_done(&node.start(), PACT);
        node.close();
        let other = root.join("other");
        fs::create_dir(&other).unwrap();
        Node::create(&other, 3).close();
        let new = files(&root.join("backups").join(id.as_str()).join("0"), "");
        let old = files(&other.join("db/0"), "");
        assert!(new.len() >= 6 && old.len() >= 6 && new.keys().any(|name| old.contains_key(name)));
        Scene { _scratch: scratch, root, new, old }
    }

    fn target(&self) -> PathBuf {
        self.root.join("target")
    }

    fn place(&self) -> PathBuf {
        self.target().join("0")
    }

    /// The old database in a `0` that also has a directory of another kind.
    fn prepare(&self) {
        let _ = fs::remove_dir_all(self.target());
        copy_tree(&self.root.join("other/db"), &self.target());
        fs::create_dir_all(self.place().join("mine/deep")).unwrap();
        fs::create_dir_all(self.place().join("sqlite/lost+found")).unwrap();
    }

    fn is_half(&self) -> bool {
        require_no_half_restore(&self.target()).is_err_and(|e| e.kind() == Kind::Refused)
    }

    /// The directories beside the files in place that hold the old database.
    fn kept(&self) -> usize {
        let is_old = |name: &String| name.starts_with("0.bak-") && files(&self.place(), name) == self.old;
        names(&self.place().join("rocksDb")).iter().filter(|name| is_old(name)).count()
    }

    /// Fails unless the new or the old database is in place; returns whether it is the new one. If so, the old one must be kept beside it.
    fn is_new(&self, what: &str) -> bool {
        let now = files(&self.place(), "");
        assert!(self.place().join("mine/deep").is_dir() && self.place().join("sqlite/lost+found").is_dir(), "{what}");
        if now == self.new {
            assert_eq!(self.kept(), 1, "{what}: the old database is lost");
            return true;
        }
        let names: Vec<&String> = now.keys().collect();
        assert!(now == self.old, "{what}: it is mixed: {names:?}");
        false
    }

    /// Fails unless the database is half exchanged: a node cannot open it, and changes none of its files.
    fn refuse_node(&self, what: &str) {
        let stem = |(path, text): (PathBuf, String)| (!path.to_string_lossy().contains("LOG")).then_some((path, text));
        let look = || {
            let all = tree(&self.place()).into_iter().filter_map(stem);
            all.filter(|(path, _)| path.is_file() && !path.ends_with("LOCK")).collect::<BTreeMap<_, _>>()
        };
        let before = look();
        let mut options = Options::default();
        options.create_if_missing(true);
        let opened = DB::open(&options, self.place().join("rocksDb")).err().map(|e| e.to_string());
        assert!(opened.as_ref().is_some_and(|e| e.contains("CURRENT")), "{what}: opened, {opened:?}");
        assert_eq!(look(), before, "{what}");
        let service = Service::start(config(&self.root.join("none")), Sources::directory(&self.target()));
        let error = service.err().expect(what);
        assert!(error.chain().contains("restore --resume --to"), "{what}: {}", error.chain());
    }

    /// Finishes, undoes or restores again, in turn.
    fn settle(&self, turn: u64, what: &str) {
        let half = self.is_half();
        let is_new = match turn % 3 {
            0 => (settle_restore(&self.target(), Settle::Resume).unwrap(), half.then_some(true)),
            1 => (settle_restore(&self.target(), Settle::Undo).unwrap(), half.then_some(false)),
            _ => {
                self.restore().unwrap();
                (Settled::New, Some(true))
            }
        };
        let now = if turn % 3 == 2 { files(&self.place(), "") == self.new } else { self.is_new(what) };
        if let Some(expected) = is_new.1 {
            assert_eq!((now, is_new.0 == Settled::New), (expected, expected), "{what}");
        }
        assert!(self.kept() == usize::from(now) || turn % 3 == 2 && self.kept() == 1, "{what}: {}", self.kept());
        self.is_tidy(what);
    }

    /// Fails if a restore has left anything of ours except old databases.
    fn is_tidy(&self, what: &str) {
        for path in crate::fixture::paths(&self.target()) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            assert!(!name.starts_with(".restor") && !name.ends_with(".tmp"), "{what}: {} is left", path.display());
        }
    }

    fn options<'a>(&self, target: &'a Path) -> RestoreOptions<'a> {
        RestoreOptions { replace: true, ..restore_to(target) }
    }

    fn restore(&self) -> Result<(), Error> {
        restore(&self.root, &self.target())
    }

    /// Runs one command in a process of its own; returns whether it was killed.
    fn killed(&self, command: &str, kill_at: u64) -> bool {
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["below::child", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .env(CHILD, format!("{command};{kill_at}"))
            .current_dir(&self.root)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success() || status.code().is_none(), "{command} {kill_at}: the child failed: {status}");
        !status.success()
    }
}

fn restore(root: &Path, target: &Path) -> Result<(), Error> {
    let options = RestoreOptions { replace: true, ..restore_to(target) };
    restore_backup(&root.join("backups"), "latest", options, &Control::default())
        .map(|(_, restored)| assert_eq!(restored.way, Way::Below))
}

/// The child: does in its working directory what its environment says, or is killed.
#[test]
#[ignore = "no test: another one runs it as a process of its own"]
fn child() {
    let text = std::env::var(CHILD).unwrap();
    let root = std::env::current_dir().unwrap();
    let (command, kill_at) = text.split_once(';').unwrap();
    let target = root.join("target");
    gate::arm(Plan { root: target.clone(), kill_at: Some(kill_at.parse().unwrap()), ..Plan::default() });
    match command {
        "resume" => drop(settle_restore(&target, Settle::Resume).unwrap()),
        "undo" => drop(settle_restore(&target, Settle::Undo).unwrap()),
        _ => restore(&root, &target).unwrap(),
    }
}

#[test]
fn a_rehearsal_tells_the_restore_and_writes_nothing() {
    let scene = Scene::new();
    scene.prepare();
    let (target, backups) = (scene.target(), scene.root.join("backups"));
    for copy in [false, true] {
        let options = RestoreOptions { copy, ..scene.options(&target) };
        let before = tree(&scene.root);
        let (_, told) = rehearse_restore(&backups, "latest", options, &Control::default()).unwrap();
        assert_eq!(tree(&scene.root), before);
        assert!(told.way == Way::Below && told.obstacle.is_none() && told.kept_in.len() == 2, "{told:?}");
        let (_, restored) = restore_backup(&backups, "latest", options, &Control::default()).unwrap();
        let sum = |count: fn(&chainweb_backup::PartRehearsal) -> u64| told.parts.iter().map(count).sum::<u64>();
        let counts = (sum(|part| part.linked_count), sum(|part| part.cloned_count), sum(|part| part.copied_count));
        assert_eq!(counts, (restored.linked_count, restored.cloned_count, restored.copied_count));
        assert_eq!(counts.0 == 0, copy);
    }
    let options = RestoreOptions { replace: false, ..scene.options(&target) };
    let (_, told) = rehearse_restore(&backups, "latest", options, &Control::default()).unwrap();
    assert_eq!(told.obstacle.map(|e| e.kind()), Some(Kind::NotEmpty));
}

/// Each operation fails alone, and then together with a later one.
#[test]
fn an_error_at_any_step_leaves_one_database_or_none_that_opens() {
    let scene = Scene::new();
    let (mut errors, mut pairs, mut half) = (0, 0, 0);
    for first in 1..=MAX_GATES {
        let mut reached = false;
        for second in (first..=first + 12).step_by(if first % 2 == 0 { 3 } else { 4 }) {
            scene.prepare();
            gate::arm(Plan { root: scene.target(), fail_at: vec![first, second], ..Plan::default() });
            let result = scene.restore();
            let log = gate::disarm(&scene.target()).log;
            reached |= log.len() as u64 >= first;
            if (log.len() as u64) < second {
                break;
            }
            let what = format!(
                "errors at {first}, {second}: {:?}: {:?}",
                log[first as usize - 1],
                result.as_ref().err().map(Error::chain)
            );
            if second == first {
                errors += 1
            } else {
                pairs += 1
            }
            if scene.is_half() {
                half += 1;
                assert!(second > first, "{what}: a single error is undone");
                let error = result.expect_err(&what);
                assert!(error.chain().contains("half done"), "{what}");
                scene.refuse_node(&what);
            } else {
                scene.is_new(&what);
            }
            scene.settle(first + second, &what);
        }
        if !reached {
            break;
        }
    }
    println!("errors={errors} pairs={pairs} half={half}");
    assert!(errors > 50 && pairs > 100 && half > 10);
}

/// The process is killed before each operation, and then before some operations of the command that settles the restore; that is then
/// settled in the other direction.
#[test]
fn a_kill_at_any_step_leaves_one_database_or_none_that_opens() {
    let scene = Scene::new();
    let (mut kills, mut half, mut later) = (0, 0, 0);
    for kill_at in 1..=MAX_GATES {
        scene.prepare();
        if !scene.killed("restore", kill_at) {
            assert!(scene.is_new("no kill"));
            break;
        }
        kills += 1;
        let what = format!("kill at {kill_at}");
        if scene.is_half() {
            half += 1;
            scene.refuse_node(&what);
            let crashed = scene.root.join("crashed");
            let _ = fs::remove_dir_all(&crashed);
            assert!(Command::new("cp").arg("-a").args([&scene.target(), &crashed]).status().unwrap().success());
            for n in (1 + kill_at % 5..).step_by(5) {
                let (command, last) = if n % 2 == 0 { ("resume", 1) } else { ("undo", 0) };
                let what = format!("{what}, then {command} at {n}");
                let _ = fs::remove_dir_all(scene.target());
                fs::create_dir(scene.target()).unwrap();
                // The journal has the inodes of these directories, so the directories are renamed, and filled from a copy.
                let _ = fs::remove_dir_all(scene.target());
                assert!(Command::new("cp").arg("-a").args([&crashed, &scene.target()]).status().unwrap().success());
                renumber(&scene.place());
                if !scene.killed(command, n) {
                    scene.is_new(&what);
                    break;
                }
                later += 1;
                if scene.is_half() {
                    scene.refuse_node(&what);
                } else {
                    scene.is_new(&what);
                }
                scene.settle(last, &what);
            }
            let _ = fs::remove_dir_all(scene.target());
            fs::rename(&crashed, scene.target()).unwrap();
            renumber(&scene.place());
        } else {
            scene.is_new(&what);
        }
        scene.settle(kill_at, &what);
    }
    println!("kills={kills} half={half} later={later}");
    assert!(kills > 50 && half > 20 && later > 50);
}

/// Writes the inodes of copied directories into a copied journal, and its seal.
fn renumber(place: &Path) {
    use std::os::unix::fs::MetadataExt;
    let path = place.join("rocksDb/.restore-journal.json");
    let mut journal: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    journal.as_object_mut().unwrap().remove("seal");
    for directory in journal["directories"].as_array_mut().unwrap() {
        let inode = place.join(directory["name"].as_str().unwrap()).metadata().unwrap().ino();
        directory["inode"] = inode.into();
    }
    let text = serde_json::to_string_pretty(&journal).unwrap();
    let content = text.strip_suffix("\n}").unwrap();
    let seal = blake2b_simd::blake2b(content.as_bytes()).to_hex();
    fs::write(path, format!("{content},\n  \"seal\": \"{seal}\"\n}}\n")).unwrap();
}

/// The volume of one directory is not mounted again, or the journal is damaged: nothing is changed.
#[test]
fn a_half_done_restore_is_settled_only_in_its_own_directories() {
    let scene = Scene::new();
    let mut tried = 0;
    for kill_at in (1..=MAX_GATES).step_by(7) {
        scene.prepare();
        if !scene.killed("restore", kill_at) {
            break;
        }
        if !scene.is_half() {
            continue;
        }
        tried += 1;
        let (sqlite, away) = (scene.place().join("sqlite"), scene.root.join("away"));
        fs::rename(&sqlite, &away).unwrap();
        fs::create_dir(&sqlite).unwrap();
        for wanted in [Settle::Resume, Settle::Undo] {
            let before = tree(&scene.target());
            let error = settle_restore(&scene.target(), wanted).unwrap_err();
            assert!(error.kind() == Kind::Refused && error.chain().contains("mount"), "{}", error.chain());
            assert_eq!(tree(&scene.target()), before);
        }
        fs::remove_dir(&sqlite).unwrap();
        fs::rename(&away, &sqlite).unwrap();
        let journal = scene.place().join("rocksDb/.restore-journal.json");
        let whole = fs::read(&journal).unwrap();
        fs::write(&journal, &whole[..whole.len() / 2]).unwrap();
        let error = scene.restore().unwrap_err();
        assert!(error.kind() == Kind::Damaged && error.chain().contains("by hand"), "{}", error.chain());
        fs::write(&journal, whole).unwrap();
        scene.settle(kill_at, &format!("kill at {kill_at}"));
    }
    assert!(tried >= 2, "{tried}");
}

/// A link that the node's user may have planted is not followed by root.
#[test]
fn a_planted_link_is_refused() {
    if !rustix::process::geteuid().is_root() {
        return crate::fixture::skip("only root can give files away");
    }
    let scene = Scene::new();
    let links = ["0", "0/rocksDb", "0/sqlite"];
    for (name, hops) in links.into_iter().flat_map(|name| [(name, false), (name, true)]) {
        let _ = fs::remove_dir_all(scene.target());
        fs::create_dir_all(scene.target().join(name).parent().unwrap()).unwrap();
        let victim = scene.root.join("victim");
        fs::create_dir_all(&victim).unwrap();
        fs::write(victim.join("passwd"), "root").unwrap();
        let link = scene.target().join(name);
        let planted = |to: &Path, link: &Path| {
            std::os::unix::fs::symlink(to, link).unwrap();
            std::os::unix::fs::lchown(link, Some(1234), Some(1234)).unwrap();
        };
        if hops {
            // The first link is root's, and the one in its way is not.
            let _ = fs::remove_file(scene.root.join("hop"));
            planted(&victim, &scene.root.join("hop"));
            std::os::unix::fs::symlink(scene.root.join("hop"), &link).unwrap();
        } else {
            planted(&victim, &link);
        }
        let before = tree(&scene.target());
        let error = scene.restore().unwrap_err();
        assert!(error.kind() == Kind::Refused && error.chain().contains("another user"), "{}", error.chain());
        assert_eq!((tree(&scene.target()), names(&victim)), (before, vec!["passwd".to_owned()]));
    }
}

/// A link in a target may not lead to a place that the target itself may not be in.
#[test]
fn a_link_that_leads_into_a_backup_or_into_another_database_is_refused() {
    let node = Node::new();
    let service = node.start();
    let [first, last] = [(); 2].map(|()| make_done(&service, PACT));
    drop(service);
    let backup = node.backups().join(first.as_str());
    let other = scratch();
    Node::create(other.path(), 1).close();
    let before = (tree(&backup), tree(other.path()));
    let target = node.root().join("target");
    let cases = [
        ("0/rocksDb", backup.join("0/rocksDb"), "lies in a backup"),
        ("0/sqlite", backup.join("0/sqlite"), "lies in a backup"),
        ("0", backup.join("0"), "lies in a backup"),
        ("0/sqlite", other.path().join("db/0/rocksDb/deep"), "lies within a database"),
        ("0", target.clone(), "leads to the target itself"),
    ];
    fs::create_dir(other.path().join("db/0/rocksDb/deep")).unwrap();
    let before = (before.0, tree(other.path()));
    for (name, to, words) in cases {
        let _ = fs::remove_dir_all(&target);
        fs::create_dir_all(target.join("0/rocksDb")).unwrap();
        let link = target.join(name);
        if link.exists() {
            fs::remove_dir_all(&link).unwrap();
        }
        std::os::unix::fs::symlink(&to, &link).unwrap();
        let options = RestoreOptions { replace: true, copy: true, ..restore_to(&target) };
        let restored = restore_backup(&node.backups(), last.as_str(), options, &Control::default()).unwrap_err();
        let rehearsed = rehearse_restore(&node.backups(), last.as_str(), options, &Control::default()).unwrap_err();
        for e in [restored, rehearsed] {
            assert!(
                e.kind() == Kind::Refused && e.chain().contains(words),
                "{name} -> {}: {}",
                to.display(),
                e.chain()
            );
        }
        assert_eq!((tree(&backup), tree(other.path())), before, "{name}");
    }
}

/// The journal is beside RocksDB. While the file system of RocksDB is not mounted, what an interrupted restore left beside Pact is not
/// removed.
#[test]
fn what_is_staged_for_pact_alone_is_kept_until_the_other_file_system_is_mounted() {
    let scene = Scene::new();
    scene.prepare();
    let staged = scene.place().join("sqlite/.restoring-1600000000000");
    fs::create_dir(&staged).unwrap();
    fs::write(staged.join("pact-v1-chain-0.sqlite"), "new").unwrap();
    for wanted in [Settle::Resume, Settle::Undo] {
        let refused = settle_restore(&scene.target(), wanted).unwrap_err();
        assert!(
            refused.kind() == Kind::Refused && refused.chain().contains("mount the file system"),
            "{}",
            refused.chain()
        );
        assert!(staged.join("pact-v1-chain-0.sqlite").is_file());
    }
    // Both are mounted and there is no journal: the restore had not moved anything.
    fs::create_dir(scene.place().join("rocksDb/.restoring-1600000000000")).unwrap();
    assert_eq!(settle_restore(&scene.target(), Settle::Resume).unwrap(), Settled::Nothing);
    assert!(!staged.exists());
    assert!(!scene.is_new("nothing was moved"));
}

/// What another process makes between two steps is neither lost nor taken for a part of a database, also if the restore fails then.
#[test]
fn what_appears_during_the_exchange_is_kept_under_another_name() {
    let scene = Scene::new();
    let in_both = |name: &&String| scene.old.contains_key(*name) && !name.ends_with("CURRENT");
    let mut made: Vec<String> = scene.new.keys().filter(in_both).cloned().collect();
    made.extend(["-journal", "-wal", "-shm"].map(|suffix| format!("sqlite/pact-v1-chain-1.sqlite{suffix}")));
    assert!(made.len() >= 6, "{made:?}");
    for fails in [false, true] {
        scene.prepare();
        let (target, place, files) = (scene.target(), scene.place(), made.clone());
        gate::at_point(&scene.target(), move |point| {
            if point == "restore-exchanged" {
                files.iter().for_each(|file| fs::write(place.join(file), file).unwrap());
                if fails {
                    gate::arm(Plan { root: target.clone(), fail_at: vec![1], ..Plan::default() });
                }
            }
        });
        let restored = scene.restore();
        gate::forget_points(&scene.target());
        if fails {
            gate::disarm(&scene.target());
        }
        assert_eq!(restored.is_err(), fails, "{restored:?}");
        assert_eq!(scene.is_new("a file appeared"), !fails);
        for file in &made {
            let kept = fs::read_to_string(scene.place().join(format!("{file}.later-1")));
            assert_eq!(kept.ok().as_ref(), Some(file), "fails={fails}");
        }
        scene.is_tidy("a file appeared");
    }
}

/// A node was started in the backup, or another program has left files there: they are no part of the database.
#[test]
fn what_a_node_left_in_a_backup_does_not_prevent_its_restore() {
    let scene = Scene::new();
    let backups = scene.root.join("backups");
    let id = names(&backups).into_iter().find(|name| !name.starts_with('.')).unwrap();
    let rocksdb = backups.join(id).join("0/rocksDb");
    let odd = std::os::unix::ffi::OsStrExt::from_bytes(b"a\xffb");
    fs::write(rocksdb.join::<&std::ffi::OsStr>(odd), "odd").unwrap();
    for name in ["LOCK", "LOG", "LOG.old.1600000000000000", "000099.dbtmp", ".restore-journal.json"] {
        fs::write(rocksdb.join(name), name).unwrap();
    }
    scene.prepare();
    scene.restore().unwrap();
    let mut now = files(&scene.place(), "");
    assert_eq!(now.remove("rocksDb/000099.dbtmp"), Some(b"000099.dbtmp".to_vec()));
    assert!(now == scene.new && scene.kept() == 1);
    scene.is_tidy("a LOCK in the backup");
}
