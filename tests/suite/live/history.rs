//! A history with which a copy can be checked without the source.
//!
//! Each writer thread `t` makes steps 1, 2, 3, … and each step is one batch. So a copy is correct if and only if, for some `n`, it has
//! the first `n` steps of each thread, each of them whole:
//! - `w:t:s` is written, `w:t:(s - KEPT)` deleted: the keys are the last `KEPT` steps, without a hole;
//! - `h:t:(s % HOT)` is overwritten: compactions must keep the newest;
//! - `d:t:s` is written, `d:t:(s - 20)` deleted: with a missing or an extra file, deleted keys are there again.
//!
//! Each value has its step, the steps of the other threads that were *committed* when it was made (so the copy must have
//! them), padding and a checksum. With several column families each batch writes to three of them. Two more threads ingest files,
//! and create and drop column families; a key says so before and after each of these.

use std::collections::BTreeMap;
use std::path::Path;

use chainweb_backup::rocksdb::{
    ColumnFamilyDescriptor, DB, DBWithThreadMode, IteratorMode, MultiThreaded, Options, TransactionDB,
    TransactionDBOptions,
};

/// Threads that make steps.
pub const THREADS: usize = 3;
const KEPT: u64 = 400;
const HOT: u64 = 40;
const ALIVE: u64 = 20;

/// Keys in one ingested file, and in one column family that comes and goes.
pub const GROUP: u64 = 20;

/// Column families of the scenarios that have several.
pub const FAMILIES: [&str; 4] = ["default", "one", "two", "three"];

/// One change of a batch; `None` deletes.
pub struct Change {
    pub family: usize,
    pub key: String,
    pub value: Option<Vec<u8>>,
}

fn sealed(key: &str, step: u64, seen: [u64; THREADS], padding: usize) -> Vec<u8> {
    let mut value = step.to_le_bytes().to_vec();
    seen.iter().for_each(|s| value.extend(s.to_le_bytes()));
    let mut random = fastrand::Rng::with_seed(step);
    value.extend((0..padding).map(|_| random.u8(..)));
    let sum = crc32c::crc32c_append(crc32c::crc32c(key.as_bytes()), &value);
    value.extend(sum.to_le_bytes());
    value
}

/// The content of a sealed value; `None` if it is not whole.
fn unseal(key: &str, value: &[u8]) -> Option<(u64, [u64; THREADS])> {
    let (value, sum) = value.split_at_checked(value.len().checked_sub(4)?)?;
    let good = crc32c::crc32c_append(crc32c::crc32c(key.as_bytes()), value).to_le_bytes() == sum;
    let number = |at: usize| Some(u64::from_le_bytes(value.get(at * 8..at * 8 + 8)?.try_into().ok()?));
    let mut seen = [0; THREADS];
    for (t, s) in seen.iter_mut().enumerate() {
        *s = number(t + 1)?;
    }
    good.then_some((number(0)?, seen))
}

/// Step `s` of thread `t`, which has seen these steps committed.
pub fn step(t: usize, s: u64, seen: [u64; THREADS], families: usize) -> Vec<Change> {
    let family = |n: usize| (t + n) % families;
    let put = |family: usize, key: String| {
        // Some values reach over blocks of the WAL.
        let padding = if s % 97 == 96 { 40_000 } else { usize::try_from((s * 7 + t as u64) % 300).unwrap() };
        let value = Some(sealed(&key, s, seen, if key.starts_with('w') { padding } else { padding % 50 }));
        Change { family, key, value }
    };
    let delete = |family: usize, key: String| Change { family, key, value: None };
    let mut changes = vec![
        put(family(0), format!("w:{t}:{s:010}")),
        put(family(1), format!("h:{t}:{:03}", s % HOT)),
        put(family(2), format!("d:{t}:{s:010}")),
    ];
    changes.extend(s.checked_sub(KEPT).map(|old| delete(family(0), format!("w:{t}:{old:010}"))));
    changes.extend(s.checked_sub(ALIVE).map(|old| delete(family(2), format!("d:{t}:{old:010}"))));
    changes
}

/// Key `n` of group `k`, which is an ingested file (`i`) or a column family (`c`).
pub fn member(kind: char, k: u64, n: u64) -> (String, Vec<u8>) {
    let key = format!("{kind}:{k:010}:{n:03}");
    let value = sealed(&key, k, [0; THREADS], 30);
    (key, value)
}

/// A key with the progress of something.
pub fn mark(name: &str, k: u64) -> (String, Vec<u8>) {
    (format!("m:{name}"), sealed(&format!("m:{name}"), k, [0; THREADS], 0))
}

/// The content of a copy.
#[derive(Debug, Default, Clone)]
pub struct Found {
    /// The last step of each thread.
    pub steps: [u64; THREADS],
    /// The last file whose ingestion the keys call done.
    pub ingested: u64,
    /// The last column family that the keys call created.
    pub families: u64,
}

impl Found {
    /// The last ingested file and the last column family.
    pub fn files(&self) -> (u64, u64) {
        (self.ingested, self.families)
    }
}

/// Opens a copy read-write with RocksDB, as the node would after a crash, and reads all of it. The error names the first fault.
pub fn judge(directory: &Path, families: usize, transactions: bool) -> Result<Found, String> {
    let names = DB::list_cf(&Options::default(), directory).map_err(|e| format!("does not open: {e}"))?;
    let mut options = Options::default();
    options.set_disable_auto_compactions(true);
    options.set_paranoid_checks(true);
    options.set_track_and_verify_wals_in_manifest(true);
    let descriptors: Vec<_> = names.iter().map(|n| ColumnFamilyDescriptor::new(n, options.clone())).collect();
    let mut content: BTreeMap<String, BTreeMap<String, Vec<u8>>> = BTreeMap::new();
    let mut take = |name: &str, entry: Result<Entry, _>| {
        let (key, value) = entry.map_err(|e| format!("cannot be read: {e}"))?;
        let key = String::from_utf8(key.into_vec()).map_err(|e| e.to_string())?;
        content.entry(name.to_owned()).or_default().insert(key, value.into_vec());
        Ok::<(), String>(())
    };
    let open = |e| format!("does not open: {e}");
    if transactions {
        let with = TransactionDBOptions::default();
        let db: TransactionDB<MultiThreaded> =
            TransactionDB::open_cf_descriptors(&options, &with, directory, descriptors).map_err(open)?;
        db.prepared_transactions().iter().try_for_each(|t| t.rollback()).map_err(open)?;
        for name in &names {
            let family = db.cf_handle(name).unwrap();
            db.iterator_cf(&family, IteratorMode::Start).try_for_each(|entry| take(name, entry))?;
        }
    } else {
        let db =
            DBWithThreadMode::<MultiThreaded>::open_cf_descriptors(&options, directory, descriptors).map_err(open)?;
        for name in &names {
            let family = db.cf_handle(name).unwrap();
            db.iterator_cf(&family, IteratorMode::Start).try_for_each(|entry| take(name, entry))?;
        }
    }
    let mut found = Found::default();
    for t in 0..THREADS {
        found.steps[t] = steps_of(t, &content, families)?;
    }
    for t in 0..THREADS {
        let prefix = format!("w:{t}:");
        for (key, value) in content.get(FAMILIES[t % families]).into_iter().flat_map(|c| c.range(prefix.clone()..)) {
            let Some((_, seen)) = unseal(key, value).filter(|_| key.starts_with(&prefix)) else { break };
            if (0..THREADS).any(|other| other != t && seen[other] > found.steps[other]) {
                return Err(format!("effect before cause: {key} saw {seen:?}, the copy has {:?}", found.steps));
            }
        }
    }
    found.ingested = ingested(&content)?;
    found.families = passing_families(&content)?;
    Ok(found)
}

type Entry = (Box<[u8]>, Box<[u8]>);
type Content = BTreeMap<String, BTreeMap<String, Vec<u8>>>;

/// The entries of one kind and thread, by number.
fn numbered(content: &Content, family: &str, prefix: &str) -> Result<BTreeMap<u64, u64>, String> {
    let mut all = BTreeMap::new();
    for (key, value) in content.get(family).into_iter().flatten().filter(|(key, _)| key.starts_with(prefix)) {
        let (step, _) = unseal(key, value).ok_or_else(|| format!("{key} has a wrong value"))?;
        all.insert(key[prefix.len()..].parse().map_err(|_| format!("strange key {key}"))?, step);
    }
    Ok(all)
}

fn steps_of(t: usize, content: &Content, families: usize) -> Result<u64, String> {
    let family = |n: usize| FAMILIES[(t + n) % families];
    let written = numbered(content, family(0), &format!("w:{t}:"))?;
    let last = written.keys().next_back().copied().unwrap_or(0);
    let expected = |kept: u64| (last.saturating_sub(kept) + 1..=last).map(|s| (s, s)).collect::<BTreeMap<_, _>>();
    if written != expected(KEPT) {
        let missing = expected(KEPT).keys().filter(|s| !written.contains_key(s)).count();
        return Err(format!(
            "thread {t} has a hole: {missing} steps up to {last} are missing, {} there",
            written.len()
        ));
    }
    let alive = numbered(content, family(2), &format!("d:{t}:"))?;
    if alive != expected(ALIVE) {
        let (first, newest) = (alive.keys().next(), alive.keys().next_back());
        return Err(format!("thread {t} is at {last}, but its short-lived keys are {first:?} to {newest:?}"));
    }
    let hot = numbered(content, family(1), &format!("h:{t}:"))?;
    let newest: BTreeMap<u64, u64> = (last.saturating_sub(HOT) + 1..=last).map(|s| (s % HOT, s)).collect();
    if hot != newest {
        return Err(format!("thread {t} is at {last}, but its overwritten keys are not: {hot:?}"));
    }
    Ok(last)
}

fn marked(content: &Content, name: &str) -> Result<u64, String> {
    let key = format!("m:{name}");
    let Some(value) = content.get("default").and_then(|c| c.get(&key)) else { return Ok(0) };
    unseal(&key, value).map(|(k, _)| k).ok_or_else(|| format!("{key} has a wrong value"))
}

fn whole_group(entries: Option<&BTreeMap<String, Vec<u8>>>, kind: char, k: u64) -> Result<bool, String> {
    let prefix = format!("{kind}:{k:010}:");
    let there: Vec<_> = entries
        .into_iter()
        .flat_map(|c| c.range(prefix.clone()..))
        .take_while(|(k, _)| k.starts_with(&prefix))
        .collect();
    let all = (0..GROUP).map(|n| member(kind, k, n)).collect::<Vec<_>>();
    match there.len() as u64 {
        0 => Ok(false),
        GROUP if there.iter().zip(&all).all(|(a, b)| (a.0, a.1) == (&b.0, &b.1)) => Ok(true),
        some => Err(format!("{some} keys of group {prefix}")),
    }
}

/// Intended ≥ there ≥ done; each ingested file is whole, and none that was deleted is there.
fn ingested(content: &Content) -> Result<u64, String> {
    let (intent, done, cut) = (marked(content, "intent")?, marked(content, "done")?, marked(content, "cut")?);
    if done > intent || intent > done + 1 {
        return Err(format!("ingestion was intended to {intent} and done to {done}"));
    }
    for k in cut.saturating_sub(5).max(1)..intent + 3 {
        let there = whole_group(content.get("default"), 'i', k)?;
        if there && (k <= cut || k > intent) {
            return Err(format!("ingested file {k} is there, but {cut} were deleted and {intent} intended"));
        }
        if !there && k > cut && k <= done {
            return Err(format!("ingested file {k} is missing, {done} are done"));
        }
    }
    Ok(done)
}

/// Each column family that was created and not yet to be dropped is there and whole.
fn passing_families(content: &Content) -> Result<u64, String> {
    let (come, go) = (marked(content, "come")?, marked(content, "go")?);
    for k in go + 1..=come {
        if !whole_group(content.get(&format!("passing-{k}")), 'c', k)? {
            return Err(format!("column family {k} is missing or empty, {come} came and {go} went"));
        }
    }
    Ok(come)
}
