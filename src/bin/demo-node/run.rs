//! `demo-node run`: opens the node, fills it, serves the backup API, grows at the asked rate, stops on a signal.
//!
//! Invariants: the one writer is the main thread; a signal is seen between two heights, never within one; the service
//! is gone before the databases are closed.

use crate::fault::{Context, Result};
use crate::network::MAX_CHAINS;
use crate::node::{Node, Opening, Shape};
use crate::serve;
use crate::start::History;
use clap::value_parser;
use crossbeam_channel::{Receiver, TryRecvError};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Payload of one block while filling: large, so that it goes quickly, and many rows all the same.
const FILL_PAYLOAD_BYTES: u64 = 256 * 1024;
/// Even a small filling is a history of some blocks.
const MIN_FILL_HEIGHTS_COUNT: u64 = 4;
/// More than this in every block is no test of anything.
const MAX_PAYLOAD_BYTES: i64 = 16 << 20;
const WRITE_BUFFER_BYTES: RangeInclusive<u64> = 64 << 10..=1 << 30;
const REPORT_PERIOD: Duration = Duration::from_secs(60);

#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// Where the node keeps its databases: 0/rocksDb and 0/sqlite below it; created where missing
    #[arg(long, value_name = "DIR")]
    pub database_directory: PathBuf,
    /// Number of chains of a new database; an existing one keeps its own. 1 is version mono-dev, 3 triad-dev, 10
    /// recap-development (20 chains from height 60), 20 development; any other a ring of a version that is the demo node's own
    #[arg(long, value_name = "N", default_value_t = 20)]
    #[arg(value_parser = value_parser!(u32).range(1..=i64::from(MAX_CHAINS)))]
    chains: u32,
    /// Stop growing after this many heights, not counting those of --fill [default: never]
    #[arg(long, value_name = "N")]
    blocks: Option<u64>,
    /// Heights per second; 0 is as fast as possible (then think of --delay-ms 0 too)
    #[arg(long, value_name = "R", default_value_t = 2.0, value_parser = parse_rate)]
    rate: f64,
    /// First grow quickly until both databases together hold about this many bytes, then serve
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    fill: u64,
    /// Payload of one block
    #[arg(long, value_name = "N", default_value_t = 400)]
    #[arg(value_parser = value_parser!(u32).range(1..=MAX_PAYLOAD_BYTES))]
    payload_bytes: u32,
    /// Seed of payloads, forks and delays [default: from the time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Probability that a chain first commits a block to Pact which it then abandons
    #[arg(long, value_name = "P", default_value_t = 5, value_parser = value_parser!(u8).range(0..=100))]
    fork_percent: u8,
    /// Longest random delay between the commit to Pact and the one to RocksDB
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = value_parser!(u64).range(0..=60_000))]
    delay_ms: u64,
    /// RocksDB's write buffer and target file size: smaller makes more files
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20)]
    #[arg(value_parser = value_parser!(u64).range(WRITE_BUFFER_BYTES))]
    write_buffer_bytes: u64,
    /// Exit when --blocks is reached instead of serving on
    #[arg(long, requires = "blocks")]
    exit_when_done: bool,
    /// Serve the backup API (the default)
    #[arg(long, overrides_with = "disable_backup_api")]
    enable_backup_api: bool,
    /// Be a node without the backup API: every request is answered 404
    #[arg(long, overrides_with = "enable_backup_api")]
    disable_backup_api: bool,
    /// Where backups go [default: `backups` in the database directory]
    #[arg(long, value_name = "DIR")]
    pub backup_directory: Option<PathBuf>,
    /// Port of the service API; 0 takes a free one
    #[arg(long, value_name = "N", default_value_t = 1848)]
    pub service_port: u16,
    /// Address of the service API
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1")]
    pub service_interface: String,
    /// Where to write host:port once connections are accepted
    #[arg(long, value_name = "FILE")]
    pub address_file: Option<PathBuf>,
    /// Name of the network in the long form of the endpoints; that of the blocks follows from --chains
    #[arg(long, value_name = "NAME", default_value = "demo01")]
    pub chainweb_version: String,
    /// Where to keep the height of the highest block of the newest cut: 20 characters, left-aligned, overwritten in place at every height
    #[arg(long, value_name = "FILE")]
    progress_file: Option<PathBuf>,
    /// Where to append a line for each height: when it was grown, and how long that took, both in microseconds
    #[arg(long, value_name = "FILE")]
    latency_file: Option<PathBuf>,
    /// Where to write, as JSON, which cut the start took and how many blocks of each chain's Pact it rewound and replayed
    #[arg(long, value_name = "FILE")]
    start_report: Option<PathBuf>,
    /// Start although Pact does not reach back to the genesis, as after compaction
    #[arg(long)]
    no_full_historic_pact_state: bool,
}

impl RunArgs {
    /// Each of the two flags overrides an earlier other one, so at most one of them is set.
    pub fn backup_api_enabled(&self) -> bool {
        self.enable_backup_api || !self.disable_backup_api
    }
}

/// Runs the node until a signal, or until it is done.
pub fn run(args: &RunArgs) -> Result<()> {
    let stop = Stop::on_signal()?;
    let progress = args.progress_file.as_deref().map(create).transpose()?;
    let rng = args.seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed);
    let write_buffer_bytes = usize::try_from(args.write_buffer_bytes).context(|| "--write-buffer-bytes".into())?;
    let mut node = Node::open(Opening {
        directory: &args.database_directory,
        chain_count: args.chains,
        write_buffer_bytes,
        history: if args.no_full_historic_pact_state { History::Compacted } else { History::Full },
        rng,
    })?;
    if let Some(path) = &args.start_report {
        std::fs::write(path, format!("{}\n", node.start_report())).context(|| format!("write {}", path.display()))?;
    }
    fill(&mut node, args, &stop)?;
    report_progress(progress.as_ref(), &node)?;
    let server = serve::start(args, node.db())?;
    let grown = grow(&mut node, args, progress.as_ref(), &stop);
    if grown.is_ok() && !args.exit_when_done {
        stop.wait(Duration::MAX);
    }
    server.shutdown();
    let height = node.height();
    // The writer's error is the cause; that of closing after it is a consequence.
    grown.and(node.close())?;
    log::info!("stop cut_height={height}");
    Ok(())
}

fn grow(node: &mut Node, args: &RunArgs, progress: Option<&File>, stop: &Stop) -> Result<()> {
    let shape = Shape {
        payload_bytes: args.payload_bytes as usize,
        fork_percent: f64::from(args.fork_percent),
        max_delay_ms: args.delay_ms,
    };
    let period = if args.rate > 0.0 { Duration::from_secs_f64(1.0 / args.rate) } else { Duration::ZERO };
    let (mut due, mut reported) = (Instant::now(), Instant::now());
    let mut latencies = args.latency_file.as_deref().map(create).transpose()?.map(BufWriter::new);
    let mut grown_count = 0;
    while args.blocks.is_none_or(|count| grown_count < count) && !stop.is_set() {
        let began = Instant::now();
        node.grow(&shape)?;
        if let Some(file) = &mut latencies {
            report_latency(file, began.elapsed()).context(|| "write the latency file".into())?;
        }
        grown_count += 1;
        report_progress(progress, node)?;
        if reported.elapsed() >= REPORT_PERIOD {
            log::info!("grow cut_height={} grown_heights={grown_count}", node.height());
            reported = Instant::now();
        }
        // A height that took too long moves the clock: no burst afterwards.
        due = (due + period).max(Instant::now());
        stop.wait(due.saturating_duration_since(Instant::now()));
    }
    log::info!("grown cut_height={} grown_heights={grown_count}", node.height());
    Ok(())
}

/// Grows without delays and forks until the databases hold `--fill` bytes; each payload is stored in both.
fn fill(node: &mut Node, args: &RunArgs, stop: &Stop) -> Result<()> {
    let zero = args.database_directory.join("0");
    let held_bytes = files_bytes(&zero.join("rocksDb"))? + files_bytes(&zero.join("sqlite"))?;
    let target_bytes = args.fill.saturating_sub(held_bytes) / 2;
    if args.fill == 0 || target_bytes == 0 {
        return Ok(());
    }
    let smallest_bytes = u64::from(args.payload_bytes);
    let payload_bytes = (target_bytes / node.chain_count() as u64 / MIN_FILL_HEIGHTS_COUNT)
        .clamp(smallest_bytes, smallest_bytes.max(FILL_PAYLOAD_BYTES));
    let payload_bytes = usize::try_from(payload_bytes).context(|| "--fill".into())?;
    let shape = Shape { payload_bytes, fork_percent: 0.0, max_delay_ms: 0 };
    let start = Instant::now();
    let mut written_bytes = 0;
    while written_bytes < target_bytes && !stop.is_set() {
        written_bytes += node.grow(&shape)?;
    }
    log::info!(
        "filled payload_bytes={written_bytes} cut_height={} seconds={:.1}",
        node.height(),
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

fn files_bytes(directory: &Path) -> Result<u64> {
    let what = || format!("measure {}", directory.display());
    let mut sum_bytes = 0;
    for entry in std::fs::read_dir(directory).context(what)? {
        // RocksDB deletes files in the background; what is gone holds nothing.
        if let Ok(metadata) = entry.context(what)?.metadata() {
            sum_bytes += metadata.len();
        }
    }
    Ok(sum_bytes)
}

fn create(path: &Path) -> Result<File> {
    File::create(path).context(|| format!("create {}", path.display()))
}

fn report_latency(file: &mut BufWriter<File>, took: Duration) -> io::Result<()> {
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    writeln!(file, "{} {}", at.as_micros(), took.as_micros())
}

fn report_progress(progress: Option<&File>, node: &Node) -> Result<()> {
    let Some(file) = progress else { return Ok(()) };
    let line = format!("{:<20}\n", node.height());
    file.write_all_at(line.as_bytes(), 0).context(|| "write the progress file".into())
}

fn parse_rate(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate == 0.0 || (0.001..=100_000.0).contains(&rate) => Ok(rate),
        _ => Err("give 0, or heights per second from 0.001 to 100000".into()),
    }
}

/// Set by SIGTERM or SIGINT, once and for ever; a second signal ends the process at once.
struct Stop(Receiver<()>);

impl Stop {
    fn on_signal() -> Result<Stop> {
        let mut signals = Signals::new([SIGTERM, SIGINT]).context(|| "listen for signals".into())?;
        // Nothing is ever sent: the signal drops the sender, which every later look at the receiver sees.
        let (sender, receiver) = crossbeam_channel::bounded::<()>(0);
        let listen = move || {
            signals.forever().next();
            drop(sender);
            signals.forever().next();
            std::process::exit(1);
        };
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(listen)
            .context(|| "start the signal thread".into())?;
        Ok(Stop(receiver))
    }

    fn is_set(&self) -> bool {
        self.0.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// Waits so long, or until the signal.
    fn wait(&self, duration: Duration) {
        // Both outcomes, time-out and signal, are looked at with `is_set`.
        let _ = self.0.recv_timeout(duration);
    }
}
