//! The declaration of the command line: commands, flags, values, help texts. `line` parses a command line, `plan` interprets it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use chainweb_backup::{
    PactMethod, Sums, Verify, parse_interval, parse_log_level, parse_name, parse_pact_method, parse_seconds,
    parse_size, parse_sums, parse_verify, require_no_tilde,
};
use clap::builder::{OsStringValueParser, PathBufValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use log::LevelFilter;

use crate::door::Door;
use crate::listen::Listen;
use crate::rules::{Keep, Times};
use crate::table::Column;

/// The name of the program.
pub const NAME: &str = "chainweb-backup";

const USAGE: &str = "chainweb-backup COMMAND [OPTIONS]
       chainweb-backup [OPTIONS] COMMAND
       chainweb-backup [OPTIONS of serve]";

/// How an operand that names a backup is shown.
pub(crate) const ID: &str = "ID|latest";

pub(crate) const ABOUT_VALUES: &str = "\
ID is an identifier from 'list'. 'latest' is the newest good backup.

Each value comes from the flag, else the environment (ENABLE_BACKUP_API=true, BACKUP_DIR=DIR), else the last
--config-file that has it, else the default.

Examples:
  chainweb-backup --database-directory /data --enable-backup-api    answer the backup API
  curl -X POST 'http://127.0.0.1:1849/make-backup?backupPact'       start a backup and print its identifier
  curl http://127.0.0.1:1849/check-backup/ID                        print its status
  curl http://127.0.0.1:1849/list-backups                           list all backups

Exit codes:
  0  ok                  10  no such backup         13  verification failed
  1  failed              11  busy: a job runs       14  the node is running
  2  wrong usage         12  no space               15  the target is not empty
                                                    16  good, but a hook failed";

/// The whole command line. Its command is always there: `line` adds the default one.
#[derive(Parser)]
#[command(name = NAME, version, about = "Backups of a running Chainweb node (RocksDB and SQLite)")]
#[command(override_usage = USAGE, disable_help_subcommand = true, subcommand_value_name = "COMMAND")]
pub(crate) struct Line {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do, with its flags and operands.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Answer the backup API over HTTP; the default command
    #[command(after_help = "SIGHUP reads the configuration files again; a running backup goes on.")]
    Serve(Serve),
    /// Make one backup without a server, and print its identifier
    Make(Make),
    /// Find what would make the next backup fail; takes the flags of serve
    #[command(after_help = "Exit code 1 if there is a fault. Nothing is copied; hard links are tried and removed.")]
    Doctor(Doctor),
    /// Print one screen: the newest good backup, the running one, the last failure, the room
    Status(Plain),
    /// List the backups, newest first
    List(List),
    /// Print the metrics of the backups, for node-exporter's textfile collector
    Metrics(Common),
    /// Print the status of a backup: backup-done, backup-in-progress or backup-failed
    Check(One),
    /// Cancel the running backup, in any process; it becomes backup-failed
    Cancel(Cancel),
    /// Compare a backup with its manifest; with --deep read every byte
    Verify(VerifyOne),
    /// Verify a backup and restore it into a database directory
    Restore(Restore),
    /// Restore a backup into a scratch directory, open it there or run a node on it, and remove it
    Drill(Drill),
    /// Write the checksums of a backup, for b2sum -c BLAKE2SUMS
    Sum(Sum),
    /// Delete backups
    Delete(Delete),
    /// Delete the backups that no rule keeps; never the newest good one, a pinned one or one in use
    Prune(Prune),
    /// Protect a backup from delete and prune
    Pin(One),
    /// Remove the protection of pin
    Unpin(One),
    /// Print the help of a command or a page of the manual
    Help(Help),
    /// Print the completion script of a shell
    Completions(Completions),
    /// Print the man page of the program or of a command, as roff
    Man(Man),
}

/// The flags of every command that reads or makes backups.
#[derive(Args)]
pub(crate) struct Common {
    /// Database directory of the node, which contains `0` [default: this user's node]
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub(crate) database_directory: Option<PathBuf>,
    /// Directory of the backups [default: <database-directory>/backups]
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub(crate) backup_directory: Option<PathBuf>,
    /// Configuration file of the node, YAML or JSON; may be repeated, later files win
    #[arg(long, value_name = "FILE", value_parser = path())]
    pub(crate) config_file: Vec<PathBuf>,
    /// Log level: error, warn, info, debug, trace or off [default: info]
    #[arg(long, value_name = "LEVEL", value_parser = |t: &str| parse_log_level(t).map_err(|e| e.chain()))]
    pub(crate) log_level: Option<LevelFilter>,
}

/// The flag of the commands that read or copy much.
#[derive(Args)]
pub(crate) struct Limit {
    /// Limit reading and copying to SIZE per second, like 100MB [default: 0, no limit]
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true, value_parser = |t: &str| parse_size(t).map_err(|e| e.chain()))]
    pub(crate) limit_bytes_per_second: Option<u64>,
}

/// Where the node keeps its databases, if not in the `0` of its database directory, and where links to them are made.
#[derive(Args)]
pub(crate) struct Places {
    /// RocksDB of the node [default: <database-directory>/0/rocksDb]
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub(crate) rocksdb_directory: Option<PathBuf>,
    /// Pact databases of the node [default: <database-directory>/0/sqlite]
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub(crate) sqlite_directory: Option<PathBuf>,
    /// On RocksDB's mount, for links [default: <database-directory> or its `0`]
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub(crate) pin_directory: Option<PathBuf>,
}

/// How backups are made.
#[derive(Args)]
pub(crate) struct Job {
    #[command(flatten)]
    pub(crate) places: Places,
    /// Version in the URL prefix, like mainnet01 [default: any]
    #[arg(long, value_name = "NAME", value_parser = |t: &str| parse_name(t).map_err(|e| e.chain()))]
    pub(crate) chainweb_version: Option<String>,
    /// Version of the node, for the header x-chainweb-node-version [default: unknown]
    #[arg(long, value_name = "V", value_parser = |t: &str| parse_name(t).map_err(|e| e.chain()))]
    pub(crate) node_version: Option<String>,
    /// Free space to leave, like 10GiB [default: 1 GiB or 5 %, the smaller]
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true, value_parser = |t: &str| parse_size(t).map_err(|e| e.chain()))]
    pub(crate) reserve_bytes: Option<u64>,
    /// Pact: auto (increments on xfs, btrfs), copy, clone, delta [default: auto]
    #[arg(long, value_name = "HOW", value_parser = |t: &str| parse_pact_method(t).map_err(|e| e.chain()))]
    pub(crate) pact_method: Option<PactMethod>,
    /// Write checksums while idle for: copied files, all or none [default: copied]
    #[arg(long, value_name = "WHICH", value_parser = |t: &str| parse_sums(t).map_err(|e| e.chain()))]
    pub(crate) sums: Option<Sums>,
    /// Verify each new backup: quick, deep (every byte) or none [default: quick]
    #[arg(long, value_name = "HOW", value_parser = |t: &str| parse_verify(t).map_err(|e| e.chain()))]
    pub(crate) verify: Option<Verify>,
    /// Read again N percent of the files taken over from an earlier backup [default: 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) reread_percent: Option<u8>,
    /// Fail a backup that makes no progress for N seconds; 0: never [default: 900]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = |t: &str| parse_seconds(t).map_err(|e| e.chain()))]
    pub(crate) stall_seconds: Option<Duration>,
    #[command(flatten)]
    pub(crate) keep: Keep,
}

#[derive(Args)]
pub(crate) struct Serve {
    /// Answer the backup endpoints; without it only health and metrics answer
    #[arg(long, conflicts_with = "disable_backup_api")]
    pub(crate) enable_backup_api: bool,
    /// Do not answer them, even if the environment or a file enables them
    #[arg(long)]
    pub(crate) disable_backup_api: bool,
    #[command(flatten)]
    pub(crate) listen: Listen,
    #[command(flatten)]
    pub(crate) door: Door,
    #[command(flatten)]
    pub(crate) times: Times,
    #[command(flatten)]
    pub(crate) job: Job,
    #[command(flatten)]
    pub(crate) limit: Limit,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args)]
pub(crate) struct Doctor {
    /// Print JSON instead of lines
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) serve: Serve,
}

#[derive(Args)]
pub(crate) struct Make {
    /// Back up the Pact databases too
    #[arg(long)]
    pub(crate) backup_pact: bool,
    /// Make none if the newest good backup began less than INTERVAL ago, like 20h
    #[arg(long, value_name = "INTERVAL", allow_negative_numbers = true, value_parser = |t: &str| parse_interval(t).map_err(|e| e.chain()))]
    pub(crate) if_older_than: Option<Duration>,
    #[command(flatten)]
    pub(crate) job: Job,
    #[command(flatten)]
    pub(crate) limit: Limit,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args)]
pub(crate) struct List {
    /// Print JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
    /// Columns: id,status,age,started,scope,size,exclusive,height,note, or all
    #[arg(
        long,
        value_name = "NAMES",
        value_enum,
        value_delimiter = ',',
        hide_possible_values = true,
        conflicts_with = "json"
    )]
    pub(crate) columns: Vec<Column>,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// A command on all backups that has no flags of its own.
#[derive(Args)]
pub(crate) struct Plain {
    #[command(flatten)]
    pub(crate) common: Common,
}

/// A command on one backup that has no flags of its own.
#[derive(Args)]
pub(crate) struct One {
    /// Identifier of a backup, or latest, the newest good one
    #[arg(value_name = ID, value_parser = id())]
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args)]
pub(crate) struct Cancel {
    /// Identifier of the running backup [default: any]
    #[arg(value_name = "ID", value_parser = id())]
    pub(crate) id: Option<String>,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args)]
pub(crate) struct VerifyOne {
    /// Identifier of a backup, or latest, the newest good one
    #[arg(value_name = ID, value_parser = id())]
    pub(crate) id: String,
    /// Read every byte, not only names and sizes
    #[arg(long)]
    pub(crate) deep: bool,
    #[command(flatten)]
    pub(crate) limit: Limit,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args)]
pub(crate) struct Restore {
    /// Identifier of a backup, or latest, the newest good one
    #[arg(value_name = ID, value_parser = id(), required_unless_present_any = ["resume", "undo"])]
    pub(crate) id: Option<String>,
    /// Database directory that receives the backup as its `0`
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub(crate) to: PathBuf,
    /// Keep an existing database as `0.bak-<time>`
    #[arg(long)]
    pub(crate) replace: bool,
    /// Copy every byte; share no file with the backup
    #[arg(long)]
    pub(crate) copy: bool,
    /// Read every byte before, not only names and sizes
    #[arg(long)]
    pub(crate) deep: bool,
    /// Print what would be linked, copied and exchanged; write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print the result of --dry-run as JSON
    #[arg(long, requires = "dry_run")]
    pub(crate) json: bool,
    /// Finish a restore that was interrupted half done
    #[arg(long, conflicts_with_all = ["undo", "id", "replace", "copy", "deep", "dry_run"])]
    pub(crate) resume: bool,
    /// Bring back the old database after a restore was interrupted half done
    #[arg(long, conflicts_with_all = ["id", "replace", "copy", "deep", "dry_run"])]
    pub(crate) undo: bool,
    #[command(flatten)]
    pub(crate) limit: Limit,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args)]
pub(crate) struct Drill {
    /// Identifier of a backup, or latest, the newest good one
    #[arg(value_name = ID, value_parser = id())]
    pub(crate) id: String,
    /// Run this, with {directory} for the restored database directory; last option
    #[arg(long, value_name = "COMMAND", num_args = 1.., allow_hyphen_values = true)]
    pub(crate) exec: Vec<OsString>,
    /// End the command after N seconds; the drill has failed then [default: 3600]
    #[arg(long, value_name = "N", allow_negative_numbers = true, requires = "exec", value_parser = |t: &str| parse_seconds(t).map_err(|e| e.chain()))]
    pub(crate) exec_seconds: Option<Duration>,
    /// Copy every byte; share no file with the backup
    #[arg(long)]
    pub(crate) copy: bool,
    /// Limit reading and copying to SIZE per second [default: 32MB; 0: no limit]
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true, value_parser = |t: &str| parse_size(t).map_err(|e| e.chain()))]
    pub(crate) limit_bytes_per_second: Option<u64>,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args)]
pub(crate) struct Sum {
    /// Identifier of a backup, or latest, the newest good one
    #[arg(value_name = ID, value_parser = id())]
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) limit: Limit,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args)]
pub(crate) struct Delete {
    /// Identifiers of backups, or latest, the newest good one
    #[arg(value_name = ID, value_parser = id(), required = true)]
    pub(crate) ids: Vec<String>,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args)]
pub(crate) struct Prune {
    #[command(flatten)]
    pub(crate) keep: Keep,
    /// Print what would be deleted, and why the rest is kept; delete nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args)]
pub(crate) struct Help {
    /// A command or a page of the manual; without it both are listed
    pub(crate) topic: Option<String>,
}

#[derive(Args)]
pub(crate) struct Completions {
    /// The shell
    pub(crate) shell: Shell,
}

/// The shells that completions are written for.
#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
}

#[derive(Args)]
pub(crate) struct Man {
    /// A command; without it the page of the program
    #[arg(value_name = "COMMAND")]
    pub(crate) command: Option<String>,
}

/// What the program asks of a child process of its own; no help names it.
#[derive(Debug, PartialEq, Parser)]
#[command(name = NAME)]
pub enum Child {
    /// Print the heights of a finished copy.
    Heights {
        /// The RocksDB directory of the copy.
        directory: PathBuf,
    },
    /// Open the copy of a drill as a node does.
    Open {
        /// The RocksDB directory of the copy.
        directory: PathBuf,
    },
    /// Print the start-up proof of a finished copy.
    Starts {
        /// The RocksDB directory of the copy.
        directory: PathBuf,
        /// How many milliseconds it may take; 0 for no limit.
        limit_ms: u64,
        /// `whole`, or another word for the usual bounds.
        extent: String,
    },
    /// Read every block of a finished copy.
    Inspect {
        /// The RocksDB directory of the copy.
        directory: PathBuf,
        /// Bytes per second that are read at most; 0 for no limit.
        #[arg(default_value_t = 0)]
        limit_bytes_per_second: u64,
    },
}

/// A path that a shell has seen: one that begins with `~` would name a directory called `~`.
pub(crate) fn path() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| require_no_tilde(&path).map(|()| path).map_err(|e| e.chain()))
}

/// An identifier as typed. What is not UTF-8 is none; the replacement characters keep it from becoming one.
fn id() -> impl TypedValueParser<Value = String> {
    OsStringValueParser::new().map(|id| id.to_string_lossy().into_owned())
}
