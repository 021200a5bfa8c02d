//! Ours beside its peers, by turns in one run, as ratios: `scripts/bench.sh` calls this and says what can be chosen.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod file_systems;
mod growth;
mod http;
mod latency;
mod measure;
mod second;
mod speed;
mod writers;

use std::path::{Path, PathBuf};
use std::time::Duration;

use chainweb_backup::rocksdb::{DB, Options};

/// How large and how long.
pub struct Scale {
    pub dir: PathBuf,
    /// A directory on another file system.
    pub other: Option<PathBuf>,
    pub program: PathBuf,
    pub pact_databases: u32,
    pub pact_bytes: u64,
    /// Numbers of SSTs, and what each holds.
    pub ssts: Vec<u32>,
    pub sst_bytes: usize,
    /// Numbers of SSTs and sizes of Pact as they grow.
    pub growing_ssts: Vec<u32>,
    pub growing_pact_mb: Vec<u32>,
    pub phase: Duration,
    pub rounds: u32,
    /// Backups after the first one.
    pub days: u32,
    /// How long a peer may take.
    pub limit: Duration,
    pub peers: bool,
}

type Part = (&'static str, fn(&Scale));

const PARTS: [Part; 10] = [
    ("same", speed::same_file_system),
    ("other", speed::other_file_system),
    ("pact", speed::pact),
    ("pact-file-systems", file_systems::pact),
    ("pact-second", second::pact),
    ("verify", speed::verify),
    ("pact-latency", latency::pact),
    ("rocksdb-latency", latency::rocksdb),
    ("growth", growth::growth),
    ("http", http::http),
];

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

fn numbers(name: &str, default: &str) -> Vec<u32> {
    let text = std::env::var(name).unwrap_or_else(|_| default.to_owned());
    text.split_whitespace().map(|n| n.parse().unwrap_or_else(|_| panic!("{name} are no numbers"))).collect()
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
    if let ["bare-rouille", address_file] = words[..] {
        http::serve_bare_rouille(Path::new(address_file));
    }
    if let ["fill", node, databases, megabytes] = words[..] {
        let bytes = megabytes.parse::<u64>().unwrap() * 1_000_000;
        return fill_node(Path::new(node), databases.parse().unwrap(), bytes);
    }
    let Some(program) = std::env::var_os("PROGRAM").map(PathBuf::from) else {
        // `cargo test --benches` and the like: `scripts/bench.sh` knows what is needed.
        println!("not run: start it by scripts/bench.sh");
        return;
    };
    let parts: Vec<&str> = words.into_iter().filter(|word| !word.starts_with("--")).collect();
    for part in &parts {
        assert!(PARTS.iter().any(|(name, _)| name == part), "no part {part:?}, there are {:?}", PARTS.map(|p| p.0));
    }
    let scratch = tempfile::Builder::new().prefix("chainweb-backup-bench").tempdir().unwrap();
    let memory = Path::new("/dev/shm");
    let other = std::env::var_os("BENCH_OTHER").map(PathBuf::from).or(memory.is_dir().then(|| memory.to_owned()));
    let scale = Scale {
        dir: std::env::var_os("BENCH_DIR").map_or(scratch.path().to_owned(), PathBuf::from),
        other,
        program,
        pact_databases: number("PACT_DATABASES", 20) as u32,
        pact_bytes: number("PACT_MB", 1000) * 1_000_000,
        ssts: numbers("SSTS", "1000 8000"),
        sst_bytes: number("SST_KB", 4) as usize * 1000,
        growing_ssts: numbers("GROWTH_SSTS", "1000 4000 16000 32000"),
        growing_pact_mb: numbers("GROWTH_PACT_MB", "250 500 1000 2000"),
        phase: Duration::from_secs(number("PHASE_SECONDS", 6)),
        rounds: number("ROUNDS", 3) as u32,
        days: number("DAYS", 6) as u32,
        limit: Duration::from_secs(number("LIMIT_SECONDS", 120)),
        peers: number("PEERS", 1) > 0,
    };
    std::fs::create_dir_all(&scale.dir).unwrap();
    for (_, part) in PARTS.iter().filter(|(name, _)| parts.is_empty() || parts.contains(name)) {
        part(&scale);
    }
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
