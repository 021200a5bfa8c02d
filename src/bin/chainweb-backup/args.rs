//! What was typed, as clap reads it: names, values, help. What it means is decided in `plan`.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use chainweb_backup::{
    PactMethod, Sums, Verify, parse_count, parse_interface, parse_name, parse_pact_method, parse_port, parse_seconds,
    parse_size, parse_sums, parse_verify,
};
use clap::Parser;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use log::LevelFilter;

pub(crate) const LOG_LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

const USAGE: &str = "chainweb-backup [serve] --database-directory DIR [--enable-backup-api] [FLAGS]
       chainweb-backup make  --database-directory DIR [--backup-pact]
       chainweb-backup list  --backup-directory DIR [--json]
       chainweb-backup check --backup-directory DIR ID|latest
       chainweb-backup cancel  --backup-directory DIR [ID]
       chainweb-backup verify  --backup-directory DIR ID|latest [--deep]
       chainweb-backup restore --backup-directory DIR ID|latest --to DIR [--replace] [--copy] [--deep]
       chainweb-backup sum     --backup-directory DIR ID|latest
       chainweb-backup delete  --backup-directory DIR ID|latest...
       chainweb-backup prune   --backup-directory DIR [--keep-last N] [--keep-daily N] [--keep-weekly N] [--dry-run]
       chainweb-backup pin|unpin --backup-directory DIR ID|latest
       chainweb-backup help [TOPIC]";

const AFTER_HELP: &str = "\
Commands:
  serve       Answer the backup API over HTTP (the default)
  make        Make one backup now, without a server, and print its id
  list        List the backups, newest first
  check ID    Print one backup's status: backup-done, backup-in-progress or backup-failed
  cancel [ID] End the backup that is being made, in whatever process; it becomes backup-failed
  verify ID   Look whether a backup is still good; --deep reads every byte
  restore ID  Put a backup below a database directory, after verifying it
  sum ID      Write its checksums, for b2sum -c BLAKE2SUMS
  delete ID   Delete backups
  prune       Delete what no rule keeps; never the last good, a pinned or a used one
  pin ID      Keep a backup from delete and prune; unpin takes it back
  help TOPIC  Print a page of the manual: api, commands, configuration, format, performance or embedding
ID is an identifier from list, or latest, the newest good backup (for cancel: an identifier)

Each value comes from the flag, else the environment (ENABLE_BACKUP_API=true, BACKUP_DIR=DIR), else the last
--config-file that has it, else the default.

Examples:
  chainweb-backup --database-directory /data --enable-backup-api
  curl -X POST 'http://127.0.0.1:1849/make-backup?backupPact'       start a backup, prints its id
  curl http://127.0.0.1:1849/check-backup/ID                        how that backup goes
  curl http://127.0.0.1:1849/list-backups                           what there is

Exit codes:
  0  ok                  10  no such backup         13  verification failed
  1  failed              11  busy: a job runs       14  the node is running
  2  wrong usage         12  no space               15  the target is not empty";

/// What was typed, as typed.
#[derive(Parser)]
#[command(name = "chainweb-backup", version, about = "Backups of a running Chainweb node (RocksDB and SQLite)")]
#[command(override_usage = USAGE, after_help = AFTER_HELP, next_line_help = false)]
pub(crate) struct Typed {
    /// What to do: serve (default), make, list or check ID
    #[arg(value_name = "COMMAND", hide = true)]
    pub(crate) words: Vec<OsString>,
    /// The node's database directory, the one that holds `0`
    #[arg(long, value_name = "DIR")]
    pub(crate) database_directory: Option<PathBuf>,
    /// Where the backups go [default: <database-directory>/backups]
    #[arg(long, value_name = "DIR")]
    pub(crate) backup_directory: Option<PathBuf>,
    /// The node's configuration file, YAML or JSON; may be repeated, later files win
    #[arg(long, value_name = "FILE")]
    pub(crate) config_file: Vec<PathBuf>,
    /// Answer the backup endpoints (off by default; health and metrics always answer)
    #[arg(long, conflicts_with = "disable_backup_api")]
    pub(crate) enable_backup_api: bool,
    /// Do not answer them, whatever environment and files say
    #[arg(long)]
    pub(crate) disable_backup_api: bool,
    /// Port to listen on, 0 for any free one [default: 1849]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = |t: &str| parse_port(t).map_err(|e| e.chain()))]
    pub(crate) service_port: Option<u16>,
    /// IP address to listen on, * for all [default: 127.0.0.1]
    #[arg(long, value_name = "ADDR", value_parser = |t: &str| parse_interface(t).map_err(|e| e.chain()))]
    pub(crate) service_interface: Option<IpAddr>,
    /// Write the address and port listened on to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) address_file: Option<PathBuf>,
    /// The version in the URL prefix, like mainnet01 [default: any]
    #[arg(long, value_name = "NAME", value_parser = |t: &str| parse_name(t).map_err(|e| e.chain()))]
    pub(crate) chainweb_version: Option<String>,
    /// The node's version, for the header x-chainweb-node-version [default: unknown]
    #[arg(long, value_name = "V", value_parser = |t: &str| parse_name(t).map_err(|e| e.chain()))]
    pub(crate) node_version: Option<String>,
    /// Free space a backup must leave, like 10GiB [default: 1 GiB or 5 %, the smaller]
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true, value_parser = |t: &str| parse_size(t).map_err(|e| e.chain()))]
    pub(crate) reserve_bytes: Option<u64>,
    /// Pact: copy, or clone to share blocks (xfs, btrfs) [default: copy]
    #[arg(long, value_name = "HOW", value_parser = |t: &str| parse_pact_method(t).map_err(|e| e.chain()))]
    pub(crate) pact_method: Option<PactMethod>,
    /// Checksums to write while idle: copied, all or none [default: copied]
    #[arg(long, value_name = "WHICH", value_parser = |t: &str| parse_sums(t).map_err(|e| e.chain()))]
    pub(crate) sums: Option<Sums>,
    /// Before a backup is done: quick, deep or none [default: quick]
    #[arg(long, value_name = "HOW", value_parser = |t: &str| parse_verify(t).map_err(|e| e.chain()))]
    pub(crate) verify: Option<Verify>,
    /// Percent of the files taken over from an earlier backup to read again [default: 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) reread_percent: Option<u8>,
    /// Without progress for so long a backup failed; 0: never [default: 900]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = |t: &str| parse_seconds(t).map_err(|e| e.chain()))]
    pub(crate) stall_seconds: Option<Duration>,
    /// Read at most so much, like 100MB; SIGHUP reads files again [default: 0]
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true, value_parser = |t: &str| parse_size(t).map_err(|e| e.chain()))]
    pub(crate) limit_bytes_per_second: Option<u64>,
    /// error, warn, info, debug, trace or off [default: info]
    #[arg(long, value_name = "LEVEL", value_parser = log_level(), ignore_case = true, hide_possible_values = true)]
    pub(crate) log_level: Option<LevelFilter>,
    /// make: back up the Pact databases too
    #[arg(long)]
    pub(crate) backup_pact: bool,
    /// list: print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// verify, restore: read every byte, not only names and sizes
    #[arg(long)]
    pub(crate) deep: bool,
    /// restore: the database directory that gets the backup's `0`
    #[arg(long, value_name = "DIR")]
    pub(crate) to: Option<PathBuf>,
    /// restore: where there is a `0` already, keep it aside as `0.bak-<time>`
    #[arg(long)]
    pub(crate) replace: bool,
    /// restore: copy every byte, sharing no file with the backup
    #[arg(long)]
    pub(crate) copy: bool,
    /// prune: keep the newest N good backups
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = |t: &str| parse_count(t).map_err(|e| e.chain()))]
    pub(crate) keep_last: Option<u32>,
    /// prune: keep the newest good backup of each of the last N days that have one
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = |t: &str| parse_count(t).map_err(|e| e.chain()))]
    pub(crate) keep_daily: Option<u32>,
    /// prune: the same for weeks
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = |t: &str| parse_count(t).map_err(|e| e.chain()))]
    pub(crate) keep_weekly: Option<u32>,
    /// prune: only say what would be deleted, and why the rest is kept
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// The names of `log`, and the node's word for silence.
fn log_level() -> impl TypedValueParser<Value = LevelFilter> {
    let names = LOG_LEVELS.map(|name| PossibleValue::new(name).aliases((name == "off").then_some("quiet")));
    PossibleValuesParser::new(names).map(|name| name.parse().unwrap_or(LevelFilter::Off))
}
