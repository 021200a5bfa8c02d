//! The places of a database's files: WALs in another directory, an old place in OPTIONS, missing files, names that are not UTF-8, files
//! of another engine.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use chainweb_backup::rocksdb::{DB, Options};
use chainweb_backup::testing::{live_copy, live_copy_warned};
use chainweb_backup::{Error, Kind, Service, Sources, gate};
use tempfile::TempDir;

use super::Node;
use super::history::judge;
use crate::fixture::{ROCKSDB, config, copy_tree, make_done, names, record, scratch, wait_until};

/// Set for the child: the database's options.
const HOLDER: &str = "CHAINWEB_BACKUP_LIVE_HOLDER";

/// A process that has the database in `0/rocksDb` of its working directory open.
struct Holder(Child);

impl Holder {
    fn start(root: &Path, options: &str) -> Holder {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "live::places::holder_child", "--ignored", "--nocapture", "--test-threads=1"])
            .env(HOLDER, options)
            .current_dir(root)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        wait_until("the process that holds the database", || root.join("held").exists());
        Holder(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

#[test]
#[ignore = "a process of other tests"]
fn holder_child() {
    let text = std::env::var(HOLDER).expect("its parent sets it");
    let mut options = Options::default().get_options_from_string(text).unwrap();
    options.create_if_missing(true);
    fs::create_dir_all("0").unwrap();
    let db = DB::open(&options, "0/rocksDb").unwrap();
    db.put("key", "value").unwrap();
    fs::write("held", "").unwrap();
    // Ends with the parent, however it ends.
    let _ = std::io::Read::read(&mut std::io::stdin(), &mut [0]);
}

fn database(root: &Path) -> PathBuf {
    root.join("0/rocksDb")
}

fn all_options(root: &Path) -> Vec<PathBuf> {
    let all: Vec<_> = names(&database(root)).into_iter().filter(|n| n.starts_with("OPTIONS-")).collect();
    assert!(!all.is_empty());
    all.into_iter().map(|name| database(root).join(name)).collect()
}

/// Gives an option of the database another value in its OPTIONS.
fn set_option(root: &Path, option: &str, value: impl AsRef<[u8]>) {
    let key = format!("{option}=");
    let line = [b"  ", key.as_bytes(), value.as_ref()].concat();
    for path in all_options(root) {
        let old = fs::read(&path).unwrap();
        let mut lines: Vec<_> = old.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        lines.retain(|line| !line.trim_ascii().starts_with(key.as_bytes()));
        // RocksDB leaves out a wal_dir that is the database's directory.
        let section = if option == "wal_dir" { b"[DBOptions]".as_slice() } else { b"[CFOptions \"default\"]" };
        let at = lines.iter().position(|line| line.trim_ascii() == section).unwrap();
        lines.insert(at + 1, line.clone());
        fs::write(path, lines.join(&b'\n')).unwrap();
    }
}

fn copy(root: &Path) -> (TempDir, Result<Vec<String>, Error>) {
    let to = tempfile::tempdir_in(root).unwrap();
    gate::weaken(&database(root), "short-limits");
    let copied = live_copy_warned(&database(root), &to.path().join("rocksDb"));
    gate::forget_points(&database(root));
    (to, copied)
}

#[track_caller]
fn refused(root: &Path, why: &str) {
    let e = copy(root).1.expect_err(why);
    assert_eq!(e.kind(), Kind::Refused, "{}", e.chain());
    assert!(e.chain().contains(why), "{:?} does not say {why:?}", e.chain());
}

#[track_caller]
fn accepted(root: &Path) {
    let (to, copied) = copy(root);
    copied.unwrap_or_else(|e| panic!("{}", e.chain()));
    let db = DB::open(&Options::default(), to.path().join("rocksDb")).unwrap();
    assert_eq!(db.get("key").unwrap().unwrap(), b"value");
}

/// A database that a process has open always has a WAL: if there is none here, it is elsewhere.
#[test]
fn an_open_database_without_a_wal() {
    let root = scratch();
    let _holder = Holder::start(root.path(), &format!("wal_dir={}", root.path().join("wal").display()));
    refused(root.path(), "its WAL is elsewhere");
    all_options(root.path()).iter().for_each(|path| fs::remove_file(path).unwrap());
    refused(root.path(), "there is no WAL in its directory");
    // After a clean stop none is needed.
    drop(_holder);
    assert!(copy(root.path()).1.is_ok());
}

/// Old WALs in the database's directory do not prove that the present ones are there.
#[test]
fn a_wal_dir_that_cannot_be_seen() {
    let root = scratch();
    let holder = Holder::start(root.path(), &format!("wal_dir={}", root.path().join("wal").display()));
    set_option(root.path(), "wal_dir", "/no/such/place");
    fs::write(database(root.path()).join("000001.log"), "").unwrap();
    refused(root.path(), "its WAL is elsewhere");
    drop(holder);
    // Nor do they if the database is stopped and has flushed.
    let path = database(root.path());
    drop(DB::open(&Options::default(), &path).unwrap());
    for name in names(&path).iter().filter(|name| name.ends_with(".log")) {
        fs::remove_file(path.join(name)).unwrap();
    }
    fs::write(path.join("000001.log"), "").unwrap();
    set_option(root.path(), "wal_dir", "/no/such/place");
    refused(root.path(), "older than its tables");
}

/// The node knows its directory by a name that leads nowhere here.
#[test]
fn a_wal_dir_as_the_node_sees_it() {
    let root = scratch();
    let _holder = Holder::start(root.path(), "");
    set_option(root.path(), "wal_dir", "0/rocksDb");
    accepted(root.path());
    set_option(root.path(), "wal_dir", "0");
    refused(root.path(), "its WAL is elsewhere");
    std::os::unix::fs::symlink(database(root.path()), root.path().join("a:b")).unwrap();
    // As RocksDB writes a colon.
    set_option(root.path(), "wal_dir", root.path().join("a\\:b").as_os_str().as_bytes());
    accepted(root.path());
}

/// OPTIONS name the place that a database had before it was restored elsewhere.
#[test]
fn a_database_that_was_moved() {
    let root = scratch();
    let old = root.path().join("old");
    fs::create_dir(&old).unwrap();
    drop(Holder::start(&old, ""));
    set_option(&old, "wal_dir", database(&old).as_os_str().as_bytes());
    let new = root.path().join("new");
    copy_tree(&old, &new);
    // The old place still exists, and has a database.
    accepted(&new);
    fs::rename(&old, root.path().join("gone")).unwrap();
    accepted(&new);
    // There is a directory of that name, which may hold WALs.
    fs::create_dir_all(database(&old)).unwrap();
    refused(&new, "its WAL is elsewhere");
    fs::remove_dir_all(&old).unwrap();
    // No WAL is here.
    for name in names(&database(&new)).iter().filter(|name| name.ends_with(".log")) {
        fs::remove_file(database(&new).join(name)).unwrap();
    }
    refused(&new, "its WAL is elsewhere");
}

#[test]
fn blobs_that_the_manifest_does_not_name_yet() {
    let node = Node::new("");
    node.close();
    set_option(node.root.path(), "enable_blob_direct_write", "true");
    refused(node.root.path(), "set enable_blob_direct_write to false");
}

/// RocksDB refuses a MANIFEST whose last checksum is wrong, so its copy is refused, too.
#[test]
fn a_manifest_whose_last_checksum_is_wrong() {
    let node = Node::new("");
    node.close();
    let path = node.path();
    let manifest = path.join(fs::read_to_string(path.join("CURRENT")).unwrap().trim_end());
    let good = fs::read(&manifest).unwrap();
    let mut bytes = good.clone();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&manifest, &bytes).unwrap();
    refused(node.root.path(), "the MANIFEST is damaged");
    assert!(DB::open_for_read_only(&Options::default(), &path, false).is_err());
    // A crash leaves a MANIFEST that ends within a record.
    fs::write(&manifest, &good[..good.len() - 1]).unwrap();
    assert!(copy(node.root.path()).1.is_ok());
}

#[test]
fn a_manifest_that_is_missing() {
    let node = Node::new("");
    node.close();
    let name = fs::read_to_string(node.path().join("CURRENT")).unwrap().trim_end().to_owned();
    fs::rename(node.path().join(&name), node.root.path().join(&name)).unwrap();
    refused(node.root.path(), &format!("its CURRENT names {name}, which is missing"));
}

#[test]
fn a_level_db() {
    let node = Node::new("");
    node.close();
    for name in names(&node.path()).iter().filter_map(|name| name.strip_suffix(".sst")) {
        fs::rename(node.path().join(format!("{name}.sst")), node.path().join(format!("{name}.ldb"))).unwrap();
    }
    refused(node.root.path(), "those of a LevelDB");
}

/// Files, directories and values of options with such names do not prevent a backup.
#[test]
fn names_that_are_not_utf_8() {
    let scratch = scratch();
    let root = scratch.path().join(OsStr::from_bytes(b"node-\xff"));
    fs::create_dir(&root).unwrap();
    let node = Node::new("");
    node.close();
    copy_tree(&node.root.path().join("0"), &root.join("0"));
    set_option(&root, "wal_dir", b"/old-\xff/rocksDb");
    fs::write(database(&root).join(OsStr::from_bytes(b"\xfe.log")), "no file of RocksDB's").unwrap();
    let backups = root.join(OsStr::from_bytes(b"backups-\xff"));
    let service = Service::start(config(&backups), Sources::directory(&root)).unwrap();
    let id = make_done(&service, ROCKSDB);
    assert_eq!(record(&service, &id).warnings, [""; 0]);
    let copy = backups.join(id.as_str()).join("0/rocksDb");
    assert_eq!(chainweb_backup::heights_json(&copy).unwrap(), "{\"cut\":null}");
    let readable = scratch.path().join("readable");
    fs::rename(copy, &readable).unwrap();
    judge(&readable, 1, false).unwrap();
}

/// The time for the first pass of links, which depends on the disk, does not count.
#[test]
fn a_first_pass_that_takes_long() {
    let node = Node::new("");
    gate::weaken(&node.path(), "short-limits");
    let rounds = node.copy_with("live-parsed", 1, |node| {
        node.steps(5);
        node.compact();
        // Longer than the limit.
        std::thread::sleep(std::time::Duration::from_millis(900));
    });
    assert_eq!(rounds, 2);
}

/// The files that belong to the instant of the cut are copied before the tables, which may take hours.
#[test]
fn tables_are_copied_last() {
    let node = Node::new("");
    let to = tempfile::tempdir_in(node.root.path()).unwrap();
    let pins = to.path().join("pins");
    fs::create_dir(&pins).unwrap();
    gate::arm(gate::Plan { root: to.path().to_owned(), ..gate::Plan::default() });
    live_copy(&node.path(), &to.path().join("rocksDb"), &pins).unwrap();
    let log = gate::disarm(to.path()).log;
    let copied: Vec<_> = log.iter().filter(|(operation, _)| *operation == "copy").map(|(_, path)| path).collect();
    let is_table = |path: &&PathBuf| path.extension().is_some_and(|end| end == "sst");
    let first = copied.iter().position(is_table).unwrap();
    assert!(copied[first..].iter().all(is_table), "{copied:?}");
    let kinds = ["IDENTITY", "OPTIONS", "MANIFEST", ".log"];
    assert!(kinds.iter().all(|kind| copied[..first].iter().any(|p| p.to_string_lossy().contains(kind))), "{copied:?}");
}
