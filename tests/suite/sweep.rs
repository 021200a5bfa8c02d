//! The sweep: every operation on the file system fails once, and the process is killed before every one of them; then
//! errors in pairs, kills after errors, and the same while a start settles what a crash has left.
//!
//! Invariants afterwards: an identifier that was handed out is known; done means whole; after the next start every backup
//! is whole, or failed and empty, and nothing else is left; the source holds its history; the next backup succeeds.
//!
//! A kill needs a process of its own: this test executable again, as [`child`].

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use chainweb_backup::gate::{self, Plan};
use chainweb_backup::{BackupId, Config, PactMethod, Service, Sources, Status, Sums};

use crate::fixture::{
    BLOCKS, Node, PACT, config, copy_tree, make_done, names, scratch, settled, tree, wait_end, whole,
};
use crate::reflink::Volume;

/// The most operations of one small backup: with more, the sweep would take too long.
const MAX_GATES: u64 = 80;

/// Set for the child: its order, see [`Order`].
const CHILD: &str = "CHAINWEB_BACKUP_SWEEP_CHILD";

/// What happens to the operations below the backup directory.
#[derive(Debug, Clone, Default)]
struct Order {
    fail_at: Vec<u64>,
    kill_at: Option<u64>,
    /// Only start, settle and end; otherwise make a backup.
    only_recover: bool,
    /// Make an increment: another backup first, without errors.
    has_base: bool,
    /// How increments are made.
    method: PactMethod,
}

impl Order {
    fn fail(fail_at: &[u64]) -> Order {
        Order { fail_at: fail_at.to_vec(), ..Order::default() }
    }

    fn plan(&self, root: &Path) -> Plan {
        Plan { root: root.to_owned(), fail_at: self.fail_at.clone(), kill_at: self.kill_at, log: Vec::new() }
    }
}

/// The result of a run: the number of operations, and the identifier that was handed out, with its last known status.
struct Outcome {
    gates: u64,
    handed_out: Option<(BackupId, Status)>,
}

fn with_method(backups: &Path, method: PactMethod) -> Config {
    // The checksums of a pair are known before it is done.
    let sums = if method == PactMethod::Delta { Sums::Copied } else { Sums::None };
    Config { pact_method: method, sums, ..config(backups) }
}

/// Makes one backup under an order, and waits until its garbage is gone.
fn run(sources: Sources, backups: &Path, order: &Order, note: &dyn Fn(&BackupId)) -> Outcome {
    let service = Service::start(with_method(backups, order.method), sources).unwrap();
    gate::arm(order.plan(backups));
    let made = service.make_backup(PACT);
    let handed_out = made.ok().map(|id| {
        note(&id);
        let status = wait_end(&service, &id);
        service.finish();
        assert_eq!(service.check_backup(&id).unwrap(), Some(status), "{order:?}");
        if status == Status::Done {
            whole(&backups.join(id.as_str()));
        }
        (id, status)
    });
    service.finish();
    let log = gate::disarm(backups).log;
    Outcome { gates: log.len() as u64, handed_out }
}

/// Starts on the directories that a run has left, and checks the invariants. `said` is the identifier that was handed out, and its last
/// known status.
fn settle(sources: Sources, backups: &Path, order: &Order, known: Option<&BackupId>, said: Option<Status>) {
    let service = Service::start(config(backups), sources).unwrap();
    for backup in service.list_backups().unwrap() {
        assert_ne!(backup.status, Status::InProgress, "{order:?}: {} is not settled", backup.id);
    }
    if let Some(id) = known {
        let now = service.check_backup(id).unwrap();
        assert!(now.is_some(), "{order:?}: {id} is unknown after the restart");
        // After one error a status is final. After two the status may not have been written: then the disk decides.
        if said.is_some() && (said == Some(Status::Done) || order.fail_at.len() == 1) {
            assert_eq!(now, said, "{order:?}: {id} had another status before the restart");
        }
    }
    make_done(&service, PACT);
    service.finish();
    drop(service);
    settled(backups);
}

/// A run with errors, and the start after it. `None` if there were fewer operations.
fn errors(root: &Path, sources: &dyn Fn() -> Sources, fail_at: &[u64]) -> Option<Outcome> {
    let order = Order::fail(fail_at);
    let backups = root.join("backups");
    let outcome = run(sources(), &backups, &order, &|_| ());
    let reached = fail_at.iter().all(|n| *n <= outcome.gates);
    if reached {
        let (id, said) = outcome.handed_out.as_ref().map(|(id, said)| (id, *said)).unzip();
        settle(sources(), &backups, &order, id, said);
    }
    fs::remove_dir_all(&backups).unwrap();
    reached.then_some(outcome)
}

/// Every error, and every error followed by one of the `reach` operations after it. Checks and prints how many there were.
fn errors_and_pairs(what: &str, root: &Path, sources: &dyn Fn() -> Sources, reach: u64) {
    let undisturbed = errors(root, sources, &[]).unwrap();
    assert_eq!(undisturbed.handed_out.unwrap().1, Status::Done);
    let gates = undisturbed.gates;
    assert!(gates <= MAX_GATES, "{gates} operations");
    let (mut harmless, mut pairs) = (0, 0);
    for first in 1..=gates {
        let outcome = errors(root, sources, &[first]).expect("an error does not undo an earlier operation");
        harmless += u32::from(outcome.handed_out.is_some_and(|(_, said)| said == Status::Done));
        for second in first + 1..=first + reach {
            if errors(root, sources, &[first, second]).is_none() {
                break;
            }
            pairs += 1;
        }
    }
    println!("{what}: gates={gates} errors={gates} harmless={harmless} pairs={pairs}");
    assert!(pairs > 5 * gates, "{pairs} pairs");
    // A backup is good without the removal of the ready-made failure after the commit, and without the note of its start-up
    // proof, which is a file that is written, synced, renamed and synced with its directory.
    assert_eq!(harmless, 1 + 4);
}

#[test]
fn every_error_and_every_pair_in_an_embedded_node() {
    let node = Node::new();
    let sources = || {
        // The checkpoint has something to flush, and makes the same number of links each time; each link is synced.
        node.db().compact_range(None::<&[u8]>, None::<&[u8]>);
        // From the first key to the last: compaction makes one file of all.
        ["a", "touch"].iter().for_each(|key| node.db().put(key, "x").unwrap());
        node.embedded()
    };
    errors_and_pairs("embedded", node.root(), &sources, u64::MAX - MAX_GATES);
    node.check();
}

#[test]
fn every_error_and_many_pairs_beside_a_foreign_node() {
    let mut node = Node::new();
    node.close();
    errors_and_pairs("foreign", node.root(), &|| Sources::directory(&node.directory()), 10);
    Node::open(node.root()).check();
}

/// Runs an order in a process of its own, on the node and the backups below `root`; returns whether it was killed.
fn in_child(root: &Path, order: &Order) -> bool {
    let numbers: Vec<String> = order.fail_at.iter().map(u64::to_string).collect();
    let Order { only_recover, has_base, method, .. } = order;
    let is_delta = *method == PactMethod::Delta;
    let text = format!("{};{};{only_recover};{has_base};{is_delta}", numbers.join(","), order.kill_at.unwrap_or(0));
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["sweep::child", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env(CHILD, text)
        .current_dir(root)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success() || status.code().is_none(), "{order:?}: the child failed: {status}");
    !status.success()
}

/// The child: does in its working directory what its environment says, or is killed.
#[test]
#[ignore = "no test: another one runs it as a process of its own"]
fn child() {
    let text = std::env::var(CHILD).unwrap();
    let root = std::env::current_dir().unwrap();
    let parts: Vec<&str> = text.split(';').collect();
    let order = Order {
        fail_at: parts[0].split(',').filter(|n| !n.is_empty()).map(|n| n.parse().unwrap()).collect(),
        kill_at: Some(parts[1].parse().unwrap()).filter(|n| *n > 0),
        only_recover: parts[2].parse().unwrap(),
        has_base: parts[3].parse().unwrap(),
        method: if parts[4].parse().unwrap() { PactMethod::Delta } else { PactMethod::Auto },
    };
    let backups = root.join("backups");
    if order.only_recover {
        let node = Node::open(&root);
        gate::arm(order.plan(&backups));
        let _ = Service::start(config(&backups), node.embedded()).map(|service| service.finish());
    } else {
        let mut node = Node::create(&root, 1);
        if order.has_base {
            make_base(&mut node, order.method);
        }
        run(node.embedded(), &backups, &order, &|id| fs::write(root.join("handed-out"), id.as_str()).unwrap());
    }
}

/// The identifier that a child noted before it was killed.
fn handed_out(root: &Path) -> Option<BackupId> {
    BackupId::parse(&fs::read_to_string(root.join("handed-out")).ok()?)
}

/// Makes a backup in a child, then starts; returns whether the child was killed.
fn killed(fail_at: &[u64], kill_at: u64) -> bool {
    killed_in(scratch().path(), &Order { kill_at: Some(kill_at), ..Order::fail(fail_at) })
}

fn killed_in(root: &Path, order: &Order) -> bool {
    let killed = in_child(root, order);
    if killed {
        let node = Node::open(root);
        settle(node.embedded(), &node.backups(), order, handed_out(root).as_ref(), None);
        node.check();
    }
    killed
}

/// A backup of which the next one makes an increment; the node has a block more than it.
fn make_base(node: &mut Node, method: PactMethod) -> BackupId {
    // Otherwise a block changes a large part of the database.
    let filler =
        "CREATE TABLE filler (pad BLOB); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 200)
        INSERT INTO filler SELECT zeroblob(900) FROM n; PRAGMA wal_checkpoint(TRUNCATE)";
    node.pact()[0].execute_batch(filler).unwrap();
    let service = Service::start(with_method(&node.backups(), method), node.embedded()).unwrap();
    let id = make_done(&service, PACT);
    service.finish();
    let height = BLOCKS + 1;
    node.rocksdb_block(height);
    node.pact_block(height);
    id
}

/// Each error, and each with the next one, while an increment is made: what is there is whole, and the earlier backup is as it was.
fn every_error_of_increments(kind: &str, root: &Path, method: PactMethod) {
    let mut node = Node::create(root, 1);
    let base = make_base(&mut node, method);
    let backups = node.backups();
    let before = tree(&backups.join(base.as_str()));
    let (mut errors, mut done) = (0, 0);
    'all: for first in 1.. {
        for fail_at in [&[first][..], &[first, first + 1]] {
            let order = Order { method, ..Order::fail(fail_at) };
            let outcome = run(node.embedded(), &backups, &order, &|_| ());
            if first > outcome.gates {
                break 'all;
            }
            let (id, said) = outcome.handed_out.as_ref().map(|(id, said)| (id, *said)).unzip();
            settle(node.embedded(), &backups, &order, id, said);
            errors += 1;
            done += u32::from(said == Some(Status::Done));
            assert!(tree(&backups.join(base.as_str())) == before, "{kind} {fail_at:?}");
            for name in names(&backups).into_iter().filter(|name| BackupId::parse(name).is_some_and(|id| id != base)) {
                fs::remove_dir_all(backups.join(name)).unwrap();
            }
        }
    }
    println!("increments, {kind}: errors={errors} done nevertheless={done}");
    assert!(errors > 60, "{kind}: {errors}");
    node.check();
}

fn every_kill_of_increments(kind: &str, root: &Path, method: PactMethod) {
    let killed = |kill_at: &u64| {
        let root = root.join(format!("{kill_at}"));
        fs::create_dir(&root).unwrap();
        let order = Order { kill_at: Some(*kill_at), has_base: true, method, ..Order::default() };
        let killed = killed_in(&root, &order);
        fs::remove_dir_all(&root).unwrap();
        killed
    };
    let kills = (1..).take_while(killed).count() as u64;
    println!("increments, {kind}: kills={kills}");
    assert!((30..=MAX_GATES).contains(&kills), "{kind}: {kills} kills");
}

#[test]
fn every_error_while_an_increment_is_made() {
    Volume::each().for_each(|(kind, volume)| every_error_of_increments(kind, &volume.path(), PactMethod::Auto));
}

#[test]
fn every_kill_while_an_increment_is_made() {
    Volume::each().for_each(|(kind, volume)| every_kill_of_increments(kind, &volume.path(), PactMethod::Auto));
}

#[test]
fn every_error_while_a_pair_is_made() {
    every_error_of_increments("pairs", scratch().path(), PactMethod::Delta);
}

#[test]
fn every_kill_while_a_pair_is_made() {
    every_kill_of_increments("pairs", scratch().path(), PactMethod::Delta);
}

#[test]
fn every_kill() {
    let kills = (1..).take_while(|kill_at| killed(&[], *kill_at)).count() as u64;
    println!("kills={kills}");
    assert!((20..=MAX_GATES).contains(&kills), "{kills} kills");
}

/// A sample of every error followed by every kill: after each error, every second operation.
#[test]
fn every_error_then_every_kill() {
    let mut kills = 0;
    for first in 1..=MAX_GATES {
        let later = (first + 1 + first % 2..).step_by(2);
        kills += later.take_while(|kill_at| killed(&[first], *kill_at)).count();
    }
    println!("kills after an error={kills}");
    assert!(kills >= 100, "{kills} kills");
}

/// A start under an order, on a copy of the directories after a crash, and the start after it. `None` as for [`errors`].
fn recovered(node: &Node, crashed: &Path, order: &Order) -> Option<u64> {
    let root = scratch();
    let backups = root.path().join("backups");
    copy_tree(&crashed.join("backups"), &backups);
    gate::arm(order.plan(&backups));
    if let Ok(service) = Service::start(config(&backups), node.embedded()) {
        let listed = service.list_backups().unwrap();
        assert!(listed.iter().all(|b| b.status != Status::InProgress), "{order:?}: started, but not settled");
        service.finish();
    }
    let gates = gate::disarm(&backups).log.len() as u64;
    let reached = order.fail_at.iter().all(|n| *n <= gates);
    if reached {
        settle(node.embedded(), &backups, order, handed_out(crashed).as_ref(), None);
    }
    reached.then_some(gates)
}

/// A crash before every third operation of a backup; then each operation of the start that settles it fails, once alone and once with
/// the next one, or the process is killed before it. The next start settles everything.
#[test]
fn every_error_and_kill_while_settling_a_crash() {
    let node = Node::new();
    let (mut crashes, mut gates_max, mut errors, mut kills) = (0, 0, 0, 0);
    for crash_at in (1..=MAX_GATES).step_by(3) {
        let crashed = scratch();
        if !in_child(crashed.path(), &Order { kill_at: Some(crash_at), ..Order::default() }) {
            break;
        }
        crashes += 1;
        for first in 1.. {
            let Some(gates) = recovered(&node, crashed.path(), &Order::fail(&[first])) else { break };
            gates_max = gates.max(gates_max);
            errors += 1;
            errors += u32::from(recovered(&node, crashed.path(), &Order::fail(&[first, first + 1])).is_some());
        }
        for kill_at in (1 + crash_at % 2..).step_by(2) {
            let order = Order { kill_at: Some(kill_at), only_recover: true, ..Order::default() };
            let root = scratch();
            copy_tree(crashed.path(), root.path());
            if !in_child(root.path(), &order) {
                break;
            }
            kills += 1;
            let backups = root.path().join("backups");
            settle(node.embedded(), &backups, &order, handed_out(crashed.path()).as_ref(), None);
        }
    }
    println!("crashes={crashes} settling gates={gates_max} errors={errors} kills={kills}");
    assert!(crashes >= 10 && errors >= 100 && kills >= 50);
    node.check();
}
