//! Ours beside its peers, by turns in one run, as ratios: `scripts/bench.sh` calls this and says what can be chosen.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

mod latency;
mod measure;
mod writers;

use std::path::{Path, PathBuf};
use std::time::Duration;

use chainweb_backup::rocksdb::{DB, Options};

/// How large and how long.
pub struct Scale {
    pub dir: PathBuf,
    pub program: PathBuf,
    pub pact_databases: u32,
    pub pact_bytes: u64,
    pub phase: Duration,
    pub rounds: u32,
    pub peers: bool,
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let ["writer", kind, at, log, pause_us] = words[..] {
        let pause = Duration::from_micros(pause_us.parse().unwrap());
        match kind {
            "pact" => writers::write_pact(Path::new(at), Path::new(log), pause),
            _ => writers::write_rocks(Path::new(at), Path::new(log), pause),
        }
    }
    let scratch = tempfile::tempdir().unwrap();
    let scale = Scale {
        dir: std::env::var_os("BENCH_DIR").map_or(scratch.path().to_owned(), PathBuf::from),
        program: std::env::var_os("PROGRAM").map(PathBuf::from).unwrap(),
        pact_databases: number("PACT_DATABASES", 20) as u32,
        pact_bytes: number("PACT_MB", 1000) * 1_000_000,
        phase: Duration::from_secs(number("PHASE_S", 8)),
        rounds: number("ROUNDS", 3) as u32,
        peers: number("PEERS", 1) > 0,
    };
    latency::pact(&scale);
}

/// A node's directory, which nobody has open: a small RocksDB and Pact databases.
pub fn fill_node(node: &Path, databases: u32, bytes: u64) {
    let sqlite = node.join("0/sqlite");
    if sqlite.exists() {
        return;
    }
    std::fs::create_dir_all(&sqlite).unwrap();
    let mut options = Options::default();
    options.create_if_missing(true);
    DB::open(&options, node.join("0/rocksDb")).unwrap().put("key", "value").unwrap();
    for chain in 0..databases {
        writers::fill_pact(&sqlite.join(format!("pact-v1-chain-{chain}.sqlite")), bytes / u64::from(databases));
    }
}

pub fn databases(sqlite: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(sqlite).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| path.extension().is_some_and(|e| e == "sqlite")).collect()
}
