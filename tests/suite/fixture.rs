//! A small node with a known history, and the checks of its backups: a test fails unless they are whole and settled.
//!
//! Block `h` (from 1) is in RocksDB as [`KEYS`] keys, which are in two SSTs and a WAL, and in each Pact database as one row of
//! `BlockHistory` and [`ROWS`] rows of a table. Everything in a block follows from its height, so a copy can be checked
//! without the source. The databases stay open, as in a node that embeds the service.
//!
//! While a node is open, only RocksDB and SQLite open its files here: closing any other descriptor would drop their locks.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use chainweb_backup::rocksdb::{DB, Direction, IteratorMode, Options, WriteBatch};
use chainweb_backup::rouille::{Request, Response};
use chainweb_backup::rusqlite::{Connection, OpenFlags};
use chainweb_backup::{
    BackupId, Config, Depth, MakeRequest, Record, RestoreOptions, Service, Sources, Status, Sums, VerifyOptions,
};
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The hash of a block.
pub type Hash = [u8; 32];

/// The version of the node, which is not known.
pub const INSTANCE: &str = "suite-node";
/// Height of a new node.
pub const BLOCKS: u64 = 30;
/// Keys of one block in RocksDB.
const KEYS: u64 = 5;
/// Rows of one block in a Pact database.
const ROWS: u64 = 3;
/// How the names of the tests' directories begin.
const SCRATCH: &str = "chainweb-backup-test-";
/// The tests use memory for their files if this much is free, which is many times what they need.
const SCRATCH_BYTES: u64 = 1024 * 1024 * 1024;
/// The node's memtable. RocksDB reserves that much for each WAL.
const WRITE_BUFFER_BYTES: usize = 1024 * 1024;
/// No job of these tests takes longer.
const DEADLINE: Duration = Duration::from_secs(60);

pub const PACT: MakeRequest = MakeRequest { backup_pact: true };
pub const ROCKSDB: MakeRequest = MakeRequest { backup_pact: false };

/// Verifications in this process.
pub const QUICK: VerifyOptions<'static> = VerifyOptions { depth: Depth::Quick, program: None };
pub const DEEP: VerifyOptions<'static> = VerifyOptions { depth: Depth::Deep, program: None };

/// The plain restore: into a target without a database, with links, after a quick verification in this process.
pub fn restore_to(target: &Path) -> RestoreOptions<'_> {
    RestoreOptions { target, replace: false, copy: false, depth: Depth::Quick, program: None }
}

/// A directory for one test: in memory if there is room, because thousands of small backups sync many times; otherwise, and if `TMPDIR`
/// is set, in the directory of temporary files.
pub fn scratch() -> TempDir {
    let made = if std::env::var_os("TMPDIR").is_none() { scratch_in_memory() } else { None };
    made.unwrap_or_else(scratch_on_disk)
}

/// A directory in memory, if there is room.
fn scratch_in_memory() -> Option<TempDir> {
    let memory = Path::new("/dev/shm");
    let room = rustix::fs::statvfs(memory).is_ok_and(|s| s.f_bavail * s.f_frsize > SCRATCH_BYTES);
    if room { tempfile::Builder::new().prefix(SCRATCH).tempdir_in(memory).ok() } else { None }
}

/// A directory in that of temporary files.
pub fn scratch_on_disk() -> TempDir {
    tempfile::Builder::new().prefix(SCRATCH).tempdir().unwrap()
}

/// Reports that this test cannot be run here: on the terminal, although output is captured, and in the file that `scripts/test.sh`
/// names, in which it counts these tests.
pub fn skip(why: &str) {
    let line = format!("SKIPPED {}: {why}\n", std::thread::current().name().unwrap_or("a test"));
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    if let Some(path) = std::env::var_os("CHAINWEB_BACKUP_SKIPS") {
        let file = fs::OpenOptions::new().append(true).create(true).open(path);
        file.unwrap().write_all(line.as_bytes()).unwrap();
    }
}

/// A mount, until it is dropped.
pub struct Mount(PathBuf);

impl Mount {
    /// The directory `from` under a second name; `None`, and a skipped test, if this user cannot mount.
    pub fn bind(from: &Path, at: &Path) -> Option<Mount> {
        Mount::new(Command::new("mount").arg("--bind").arg(from), at)
    }

    /// A file system of this size in memory; `None` as for [`Mount::bind`].
    pub fn memory(bytes: u64, at: &Path) -> Option<Mount> {
        Mount::new(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "none"]), at)
    }

    fn new(mount: &mut Command, at: &Path) -> Option<Mount> {
        fs::create_dir_all(at).unwrap();
        let is_mounted = mount.arg(at).stderr(Stdio::null()).status().is_ok_and(|status| status.success());
        if !is_mounted {
            skip("cannot mount here");
        }
        is_mounted.then(|| Mount(at.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A node with its databases open, and a place for its backups.
pub struct Node {
    root: PathBuf,
    db: Option<Arc<DB>>,
    pact: Vec<Connection>,
    _scratch: Option<TempDir>,
}

impl Node {
    /// A node of one chain at height [`BLOCKS`] in both databases.
    pub fn new() -> Node {
        Node::with_chains(1)
    }

    pub fn with_chains(chains: u64) -> Node {
        Node::inside(scratch(), chains)
    }

    /// A node whose directory is in memory; `None` if there is no room.
    pub fn in_memory() -> Option<Node> {
        scratch_in_memory().map(|scratch| Node::inside(scratch, 1))
    }

    /// A node whose directory is not in memory.
    pub fn on_disk(chains: u64) -> Node {
        Node::inside(scratch_on_disk(), chains)
    }

    fn inside(scratch: TempDir, chains: u64) -> Node {
        let mut node = Node::create(scratch.path(), chains);
        node._scratch = Some(scratch);
        node
    }

    /// The same below a directory that is not ours to remove.
    pub fn create(root: &Path, chains: u64) -> Node {
        let database = root.join("db/0");
        fs::create_dir_all(database.join("rocksDb")).unwrap();
        fs::create_dir_all(database.join("sqlite")).unwrap();
        let mut node = Node::open_with(root, chains);
        for connection in &node.pact {
            let schema = "CREATE TABLE BlockHistory (blockheight UNSIGNED BIGINT, hash BLOB, endingtxid UNSIGNED BIGINT, \
                          CONSTRAINT blockHashConstraint UNIQUE (blockheight));\
                          CREATE TABLE 'coin_coin-table' (rowkey TEXT, txid UNSIGNED BIGINT, rowdata BLOB, \
                          UNIQUE (rowkey, txid));\
                          CREATE INDEX 'coin_ix' ON 'coin_coin-table' (txid);";
            connection.execute_batch(schema).unwrap();
        }
        for height in 1..=BLOCKS {
            node.pact_block(height);
            node.rocksdb_block(height);
            if height == BLOCKS / 3 || height == BLOCKS / 3 * 2 {
                node.db().flush().unwrap();
            }
        }
        node
    }

    /// Opens the databases that [`Node::create`] made there, for example after a crash.
    pub fn open(root: &Path) -> Node {
        let count = fs::read_dir(root.join("db/0/sqlite")).unwrap().flatten().filter(|e| is_pact(&e.path())).count();
        Node::open_with(root, count as u64)
    }

    fn open_with(root: &Path, chains: u64) -> Node {
        let db = DB::open(&options(), root.join("db/0/rocksDb")).unwrap();
        let open = |chain| {
            let path = root.join(format!("db/0/sqlite/pact-v1-chain-{chain}.sqlite"));
            let connection = Connection::open(path).unwrap();
            connection.execute_batch("PRAGMA page_size=1024; PRAGMA synchronous=NORMAL").unwrap();
            let mode: String = connection.query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0)).unwrap();
            assert_eq!(mode, "wal");
            connection
        };
        Node { root: root.to_owned(), db: Some(Arc::new(db)), pact: (0..chains).map(open).collect(), _scratch: None }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The node's `--database-directory`.
    pub fn directory(&self) -> PathBuf {
        self.root.join("db")
    }

    pub fn rocksdb(&self) -> PathBuf {
        self.directory().join("0/rocksDb")
    }

    pub fn sqlite(&self, chain: u64) -> PathBuf {
        self.directory().join(format!("0/sqlite/pact-v1-chain-{chain}.sqlite"))
    }

    pub fn backups(&self) -> PathBuf {
        self.root.join("backups")
    }

    pub fn db(&self) -> &DB {
        self.db.as_ref().unwrap()
    }

    pub fn pact(&self) -> &[Connection] {
        &self.pact
    }

    /// The databases of this process.
    pub fn embedded(&self) -> Sources {
        Sources::embedded(Arc::clone(self.db.as_ref().unwrap()), &self.directory())
    }

    /// An enabled API with no reserve.
    pub fn config(&self) -> Config {
        config(&self.backups())
    }

    /// As [`Node::config`], but a job stays in its phase `heights` until [`Node::go_on`], or until it is cancelled. Its record then has
    /// no heights.
    pub fn paused_config(&self) -> Config {
        let program = self.root.join("wait-and-say-null");
        // It never waits for ever. Written by another process: a descriptor of ours could be inherited by a child of
        // another test, and a file that is open for writing cannot be run.
        let script = r#"cat >"$2" <<END && chmod 755 "$2"
#!/bin/sh
n=0
while ! [ -e "$1/go-on" ]; do
    sleep 0.01
    n=\$((n + 1))
    [ \$n -lt 1500 ] || : >"$1/go-on"
done
echo null
END"#;
        let arguments = [Path::new("-c"), Path::new(script), Path::new("sh"), &self.root, &program];
        assert!(Command::new("/bin/sh").args(arguments).status().unwrap().success());
        Config { heights_program: Some(program), ..self.config() }
    }

    /// Lets every paused job, and every later one, continue.
    pub fn go_on(&self) {
        fs::write(self.root.join("go-on"), "").unwrap();
    }

    pub fn start(&self) -> Service {
        Service::start(self.config(), self.embedded()).unwrap()
    }

    /// Ends the node as a clean stop does.
    pub fn close(&mut self) {
        for connection in self.pact.drain(..) {
            connection.close().map_err(|(_, e)| e).unwrap();
        }
        let db = self.db.take().unwrap();
        assert_eq!(Arc::strong_count(&db), 1, "a service still has the database");
    }

    pub fn rocksdb_block(&self, height: u64) {
        let mut batch = WriteBatch::default();
        (0..KEYS).for_each(|n| batch.put(block_key(height, n), block_value(height, n)));
        let tips: Vec<_> = (0..).zip(&self.pact).map(|(chain, _)| (chain, height, hash(height))).collect();
        let (key, value) = cut(INSTANCE, &tips);
        batch.put(key, value);
        self.db().write(batch).unwrap();
    }

    /// Makes this cut the only one.
    pub fn only_cut(&self, instance: &str, tips: &[(u32, u64, Hash)]) {
        self.without_cuts();
        let (key, value) = cut(instance, tips);
        self.db().put(key, value).unwrap();
    }

    /// Makes the RocksDB one that has no cuts.
    pub fn without_cuts(&self) {
        let from = IteratorMode::From(b"-CutHashes$", Direction::Forward);
        let keys = self.db().iterator(from).map(|entry| entry.unwrap().0);
        keys.take_while(|key| key.starts_with(b"-CutHashes$")).for_each(|key| self.db().delete(key).unwrap());
    }

    pub fn pact_block(&mut self, height: u64) {
        for connection in &mut self.pact {
            let transaction = connection.transaction().unwrap();
            for n in 0..ROWS {
                let row = (format!("k:{height}:{n}"), height.cast_signed(), row_data(height, n));
                transaction.execute("INSERT INTO 'coin_coin-table' VALUES (?, ?, ?)", row).unwrap();
            }
            let row = (height.cast_signed(), hash(height).to_vec(), (height * ROWS).cast_signed());
            transaction.execute("INSERT INTO BlockHistory VALUES (?, ?, ?)", row).unwrap();
            transaction.commit().unwrap();
        }
    }

    /// A node whose Pact databases are five blocks ahead of its RocksDB.
    pub fn ahead() -> Node {
        let mut node = Node::new();
        (BLOCKS + 1..=BLOCKS + 5).for_each(|height| node.pact_block(height));
        node
    }

    /// Fails unless the databases still have their history.
    pub fn check(&self) {
        assert!(rocksdb_height(self.db()) >= BLOCKS, "the source lost blocks");
        self.pact.iter().for_each(|connection| assert!(pact_height(connection) >= BLOCKS, "the source lost blocks"));
    }
}

pub fn config(backups: &Path) -> Config {
    // Without checksums: tests that compare every file would see the lists that are written between jobs.
    Config { api_enabled: true, reserve_bytes: Some(0), sums: Sums::None, ..Config::new(backups) }
}

/// How the node opens its RocksDB.
fn options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options
}

fn is_pact(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "sqlite")
}

fn block_key(height: u64, n: u64) -> String {
    format!("block-{height:08}-{n}")
}

/// Values that do not compress, so that different contents have different sizes.
fn block_value(height: u64, n: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(height * KEYS + n);
    (0..100).map(|_| random.u8(..)).collect()
}

/// The hash of a block of every chain.
pub fn hash(height: u64) -> Hash {
    format!("hash-of-{height:024}").into_bytes().try_into().unwrap()
}

/// Key and value of a cut with these chains, heights and hashes, as a node stores it. Its weight is that of its height.
pub fn cut(instance: &str, tips: &[(u32, u64, Hash)]) -> (Vec<u8>, String) {
    let height: u64 = tips.iter().map(|(_, height, _)| height).sum();
    let (weight, mut little_endian) = (u128::from(height), [0; 32]);
    little_endian[..16].copy_from_slice(&weight.to_le_bytes());
    let id = hash(height);
    let key = [b"-CutHashes$".as_slice(), &height.to_be_bytes(), &[0; 16], &weight.to_be_bytes(), &id].concat();
    let text = |bytes: &Hash| BASE64URL_NOPAD.encode(bytes);
    let tips =
        tips.iter().map(|(chain, height, hash)| (chain.to_string(), json!({ "height": height, "hash": text(hash) })));
    let hashes: serde_json::Map<_, _> = tips.collect();
    let value = json!({
        "origin": null, "height": height, "weight": text(&little_endian), "hashes": hashes, "id": text(&id), "instance": instance,
    });
    (key, value.to_string())
}

fn row_data(height: u64, n: u64) -> Vec<u8> {
    block_value(height + 1_000_000, n)
}

/// The height of a RocksDB. Fails unless it has all blocks up to there.
pub fn rocksdb_height(db: &DB) -> u64 {
    let prefix = b"block-";
    let from = IteratorMode::From(prefix, Direction::Forward);
    let entries = db.iterator(from).map(Result::unwrap).take_while(|(key, _)| key.starts_with(prefix));
    let mut count = 0;
    for (key, value) in entries {
        let (height, n) = (count / KEYS + 1, count % KEYS);
        assert_eq!(String::from_utf8_lossy(&key), block_key(height, n), "a block is missing in RocksDB");
        assert_eq!(*value, *block_value(height, n), "wrong value in RocksDB at height {height}");
        count += 1;
    }
    assert_eq!(count % KEYS, 0, "half a block in RocksDB");
    count / KEYS
}

/// The height of a Pact database that is intact and has all of its rows.
pub fn pact_height(connection: &Connection) -> u64 {
    let verdict: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
    let mut statement = connection.prepare("SELECT blockheight, hash FROM BlockHistory ORDER BY blockheight").unwrap();
    let rows = statement.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?))).unwrap();
    let mut height: u64 = 0;
    for row in rows {
        height += 1;
        assert_eq!(row.unwrap(), (height.cast_signed(), hash(height).to_vec()), "a block is missing in Pact");
    }
    let mut statement =
        connection.prepare("SELECT rowkey, rowdata FROM 'coin_coin-table' ORDER BY txid, rowkey").unwrap();
    let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?))).unwrap();
    let mut count = 0;
    for row in rows {
        let (block, n) = (count / ROWS + 1, count % ROWS);
        assert_eq!(row.unwrap(), (format!("k:{block}:{n}"), row_data(block, n)), "a row is missing in Pact");
        count += 1;
    }
    assert_eq!(count, height * ROWS, "a block without all of its rows in Pact");
    height
}

/// Makes a backup and waits for its end.
pub fn make(service: &Service, request: MakeRequest) -> (BackupId, Status) {
    let id = service.make_backup(request).unwrap();
    let status = wait_end(service, &id);
    (id, status)
}

/// Makes a backup that must succeed.
pub fn make_done(service: &Service, request: MakeRequest) -> BackupId {
    let (id, status) = make(service, request);
    assert_eq!(status, Status::Done, "{:?}", service.details(&id).unwrap());
    id
}

/// Makes a backup that must fail, and returns its reason.
pub fn make_failed(service: &Service, request: MakeRequest) -> (BackupId, String) {
    let (id, status) = make(service, request);
    assert_eq!(status, Status::Failed, "{id}");
    let reason = record(service, &id).reason.unwrap();
    (id, reason)
}

/// The status at the end of a job. Fails if the identifier is unknown at any moment.
pub fn wait_end(service: &Service, id: &BackupId) -> Status {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match service.check_backup(id).unwrap().expect("an identifier that was handed out is known") {
            Status::InProgress => assert!(Instant::now() < deadline, "{id} does not end"),
            settled => return settled,
        }
        sleep(Duration::from_millis(1));
    }
}

/// Waits until something holds.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        sleep(Duration::from_millis(1));
    }
}

pub fn record(service: &Service, id: &BackupId) -> Record {
    service.details(id).unwrap().unwrap().record.unwrap()
}

/// An answer of [`Service::handle`].
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        let value = found.next().map(|(_, value)| value.as_str());
        assert!(found.next().is_none(), "{name} stands twice");
        value
    }
}

impl From<Response> for Answer {
    fn from(response: Response) -> Answer {
        let mut body = String::new();
        response.data.into_reader_and_size().0.read_to_string(&mut body).unwrap();
        let headers = response.headers.into_iter().map(|(k, v)| (k.into_owned(), v.into_owned())).collect();
        Answer { status: response.status_code, headers, body }
    }
}

/// One request in this process; `None` if the path is not ours.
pub fn call(service: &Service, method: &str, url: &str, headers: &[(&str, &str)]) -> Option<Answer> {
    let headers = headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let peer = "10.36.1.3:42988".parse().unwrap();
    service.handle(&Request::fake_http_from(peer, method, url, headers, Vec::new())).map(Answer::from)
}

/// The same with a body.
pub fn call_with_body(service: &Service, method: &str, url: &str, body: &[u8]) -> Option<Answer> {
    let peer = "10.36.1.3:42988".parse().unwrap();
    service.handle(&Request::fake_http_from(peer, method, url, Vec::new(), body.to_vec())).map(Answer::from)
}

/// Puts good backups with these identifiers beside the good backup `like`. Their records are copies of its record, with this `reason`.
pub fn plant_backups(backups: &Path, like: &BackupId, ids: impl Iterator<Item = u64>, reason: &str) {
    let record = fs::read_to_string(backups.join(like.as_str()).join("backup.json")).unwrap();
    let mut record: Value = serde_json::from_str(&record).unwrap();
    for id in ids.map(|id| format!("{id:013}")) {
        let backup = backups.join(&id);
        fs::create_dir_all(backup.join("0/rocksDb")).unwrap();
        record["id"] = id.into();
        record["reason"] = reason.into();
        fs::write(backup.join("backup.json"), record.to_string()).unwrap();
        fs::write(backup.join("status"), "backup-done").unwrap();
    }
}

/// A directory tree: for each path its kind, and the properties that must not change.
pub type Tree = BTreeMap<PathBuf, String>;

/// Everything below a directory with inode, mode, owner, size, time and content. Reads the files: not for an open node.
pub fn tree(directory: &Path) -> Tree {
    let mut found = Tree::new();
    for path in paths(directory) {
        let meta = path.symlink_metadata().unwrap();
        let content = match meta.file_type() {
            t if t.is_symlink() => format!("-> {}", fs::read_link(&path).unwrap().display()),
            t if t.is_file() => format!("{:?}", blake2(&path)),
            _ => String::new(),
        };
        let (ino, mode, uid, gid) = (meta.ino(), meta.mode(), meta.uid(), meta.gid());
        let (bytes, seconds, nanos) = (meta.size(), meta.mtime(), meta.mtime_nsec());
        let text = format!("ino={ino} mode={mode:o} owner={uid}:{gid} bytes={bytes} mtime={seconds}.{nanos} {content}");
        found.insert(path, text);
    }
    found
}

/// Every path below a directory, and the directory itself, in order. Links are not followed.
pub fn paths(directory: &Path) -> Vec<PathBuf> {
    let mut all = vec![directory.to_owned()];
    let mut next = 0;
    while next < all.len() {
        if all[next].symlink_metadata().unwrap().is_dir() {
            all.extend(fs::read_dir(&all[next]).unwrap().map(|e| e.unwrap().path()));
        }
        next += 1;
    }
    all.sort();
    all
}

fn blake2(path: &Path) -> String {
    blake2b_simd::blake2b(&fs::read(path).unwrap()).to_hex().to_string()
}

/// The names in a directory, sorted.
pub fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Copies a directory with all that is in it.
pub fn copy_tree(from: &Path, to: &Path) {
    for path in paths(from) {
        let target = to.join(path.strip_prefix(from).unwrap());
        if path.is_dir() {
            fs::create_dir_all(target).unwrap();
        } else {
            fs::copy(&path, target).unwrap();
        }
    }
}

/// Fails unless the backup in a directory has the status done and is whole. Returns the heights of RocksDB and of each Pact database.
pub fn whole(backup: &Path) -> (u64, Vec<u64>) {
    assert_eq!(fs::read_to_string(backup.join("status")).unwrap(), "backup-done", "{}", backup.display());
    let json = |name: &str| -> Value { serde_json::from_slice(&fs::read(backup.join(name)).unwrap()).unwrap() };
    let (record, manifest) = (json("backup.json"), json("manifest.json"));

    let entries = manifest["files"].as_array().unwrap();
    let listed: BTreeMap<PathBuf, u64> =
        entries.iter().map(|e| (backup.join(e["path"].as_str().unwrap()), e["bytes"].as_u64().unwrap())).collect();
    let found: BTreeMap<PathBuf, u64> = paths(&backup.join("0"))
        .into_iter()
        .filter_map(|path| {
            let meta = path.symlink_metadata().unwrap();
            assert!(meta.is_dir() || meta.is_file(), "{} is neither file nor directory", path.display());
            (meta.is_file() && !is_list(&path)).then_some((path, meta.len()))
        })
        .collect();
    assert_eq!(listed, found, "the manifest and the files differ");
    assert_eq!(entries.len(), listed.len(), "a file is listed twice");
    assert_eq!(record["files_count"].as_u64().unwrap(), listed.len() as u64);
    assert_eq!(record["bytes"].as_u64().unwrap(), listed.values().sum::<u64>());
    assert_eq!(record["id"].as_str().unwrap(), backup.file_name().unwrap().to_str().unwrap());
    assert!(record["reason"].is_null() && record["finished_ms"].is_u64() && record["phase"] == "finished", "{record}");
    let pairs: Vec<&Value> =
        record["pact"].as_array().unwrap().iter().filter(|part| part["pair"].is_object()).collect();
    let is_wal = |name: &str| pairs.iter().any(|part| name == format!("{}-wal", part["file"].as_str().unwrap()));
    for path in listed.keys() {
        let name = path.file_name().unwrap().to_str().unwrap();
        let stray =
            !is_wal(name) && ["-wal", "-shm", "-journal", ".tmp", ".dbtmp", ".probe"].iter().any(|s| name.ends_with(s));
        assert!(!stray && name != "LOCK" && !name.starts_with("LOG"), "{} in a backup", path.display());
    }

    let mut expected = vec!["rocksDb"];
    expected.extend((record["scope"] == "rocksdb,pact").then_some("sqlite"));
    assert_eq!(names(&backup.join("0")), expected);
    let copy = scratch();
    copy_tree(&backup.join("0/rocksDb"), copy.path());
    let db = DB::open(&options(), copy.path()).unwrap();
    let height = rocksdb_height(&db);
    assert_eq!(record["rocksdb"]["block_heights"], json!({ "lowest": height, "highest": height }));
    let cut_height = record["rocksdb"]["cut_height"].as_u64().unwrap();
    assert!(cut_height >= height && cut_height.is_multiple_of(height), "{cut_height} is no sum of {height}");
    assert_eq!(record["versions"]["chainweb"], INSTANCE);

    let mut heights = Vec::new();
    for part in record["pact"].as_array().unwrap() {
        let path = backup.join("0/sqlite").join(part["file"].as_str().unwrap());
        // A pair is read as any program reads it.
        let how = if part["pair"].is_object() { "mode=rw" } else { "mode=ro&immutable=1" };
        let uri = format!("file:{}?{how}", path.display());
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_URI;
        let height = pact_height(&Connection::open_with_flags(uri, flags).unwrap());
        assert_eq!(part["block_height"].as_u64(), Some(height));
        let file_bytes = if part["pair"].is_object() { &part["pair"]["base_bytes"] } else { &part["bytes"] };
        assert_eq!(file_bytes.as_u64(), Some(listed[&path]));
        heights.push(height);
    }
    if expected.len() == 2 {
        let count = heights.len() + 2 * pairs.len() + usize::from(backup.join("0/sqlite/BLAKE2SUMS").exists());
        assert_eq!(names(&backup.join("0/sqlite")).len(), count, "the record does not list every database");
    }
    paths(&backup.join("0")).iter().filter(|path| is_list(path)).for_each(|list| check_list(list));
    let now: Vec<PathBuf> =
        paths(&backup.join("0")).into_iter().filter(|path| path.is_file() && !is_list(path)).collect();
    assert!(now.iter().eq(listed.keys()), "looking at the backup has changed it");
    (height, heights)
}

fn is_list(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "BLAKE2SUMS")
}

/// Fails unless a list of checksums has every file of its directory, with its checksum.
pub fn check_list(list: &Path) {
    let directory = list.parent().unwrap();
    let files = paths(directory).into_iter().filter(|path| path.is_file() && !is_list(path));
    let expected: Vec<String> =
        files.map(|path| format!("{}  {}", blake2(&path), path.file_name().unwrap().display())).collect();
    let text = fs::read_to_string(list).unwrap();
    assert_eq!(text.lines().collect::<Vec<_>>(), expected, "{}", list.display());
}

/// Fails unless everything in a backup directory is settled: each backup is whole, or failed and empty; no garbage.
pub fn settled(backups: &Path) {
    for name in names(backups) {
        let path = backups.join(&name);
        if matches!(name.as_str(), ".lock" | ".service") {
            continue;
        }
        assert!(BackupId::parse(&name).is_some(), "{} is left", path.display());
        match fs::read_to_string(path.join("status")).unwrap().as_str() {
            "backup-done" => {
                let mut there = names(&path);
                // One is missing if the start-up proof could not be written, the other if no increment is possible.
                there.retain(|name| name != "starts.json" && name != "pact-sums.json");
                assert_eq!(there, [".use", "0", "backup.json", "manifest.json", "status"], "{}", path.display());
                let (height, heights) = whole(&path);
                assert!(height >= BLOCKS && heights.iter().all(|h| *h >= BLOCKS), "{}: too old", path.display());
            }
            "backup-failed" => {
                assert_eq!(names(&path), [".use", "backup.json", "status"], "{}", path.display());
                let record: Value = serde_json::from_slice(&fs::read(path.join("backup.json")).unwrap()).unwrap();
                assert!(record["reason"].is_string(), "a failure without a reason: {record}");
            }
            other => panic!("{} says {other:?}", path.display()),
        }
    }
}
