//! The command line: what was typed, with the environment and the configuration files, becomes a [`Plan`] in one step.
//!
//! [`Typed`] is what clap read, not yet judged; [`parse`] is the one place that decides what it means. Precedence, key
//! by key: flag, environment, later file, earlier file, default. Nothing is opened here but configuration files, and
//! those through a parameter; whether a directory exists is found out by whoever uses it.
//!
//! Commands and flags may stand in any order, so that a container's `ENTRYPOINT` can hold the flags and its command be
//! `make`. A flag that a command does not use is an error there: it would promise something that does not happen.
//!
//! # Limitations
//! All commands share one help page.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use chainweb_backup::{
    Config, Depth, FILE_BYTES_MAX, FileConfig, MANUAL, Policy, chainweb, parse_file, require_no_tilde, suggest,
};
use clap::{CommandFactory, Parser};
use log::LevelFilter;

use crate::args::Typed;

/// The port of the service; the node's own is 1848.
const PORT: u16 = 1849;

/// A limit of bytes per second below this is perhaps meant in other units.
const LOW_LIMIT: u64 = 100_000;

/// This very program, also after its file was replaced by a newer one.
pub const OURSELVES: &str = "/proc/self/exe";

/// What to do, validated.
#[derive(Debug, PartialEq)]
pub enum Plan {
    /// Answer HTTP requests until told to stop.
    Serve(ServePlan),
    /// Make one backup and print its id.
    Make(MakePlan),
    /// Do something with finished backups.
    Manage {
        /// Where the backups are.
        backup_directory: PathBuf,
        /// What.
        action: Action,
        /// Bytes per second that are read or copied at most.
        limit_bytes_per_second: Option<u64>,
        /// What is logged.
        log_level: LevelFilter,
        /// To be logged once at the start, each a whole sentence.
        warnings: Vec<String>,
    },
    /// Print the heights of a finished copy; for our own child process.
    Heights {
        /// The RocksDB directory of the copy.
        directory: PathBuf,
    },
    /// Read every block of a finished copy; for our own child process.
    Inspect {
        /// The RocksDB directory of the copy.
        directory: PathBuf,
        /// Bytes per second that are read at most.
        limit_bytes_per_second: Option<u64>,
    },
}

/// What to do with finished backups. Identifiers are as typed: not yet parsed, so not yet to be joined to any path.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// Print what there is, as JSON or as a table.
    List {
        /// As JSON instead of a table.
        json: bool,
    },
    /// Print the status.
    Check(String),
    /// End the one that is being made, this one or whichever it is.
    Cancel(Option<String>),
    /// Look whether it is still good.
    Verify {
        /// An identifier, or `latest`.
        id: String,
        /// Read every byte.
        deep: bool,
    },
    /// Put it below a database directory.
    Restore {
        /// An identifier, or `latest`.
        id: String,
        /// The database directory.
        to: PathBuf,
        /// Keep aside what is there.
        replace: bool,
        /// Share no file with the backup.
        copy: bool,
        /// Read every byte before.
        deep: bool,
    },
    /// Write its checksums.
    Sum(String),
    /// Delete these.
    Delete(Vec<String>),
    /// Delete what no rule keeps.
    Prune {
        /// The rules.
        policy: Policy,
        /// Only say what would be deleted.
        dry_run: bool,
    },
    /// Keep it from being deleted, or no longer.
    Pin {
        /// An identifier.
        id: String,
        /// Whether it is kept.
        pinned: bool,
    },
}

/// How to serve.
#[derive(Debug, PartialEq)]
pub struct ServePlan {
    /// The node's database directory.
    pub database_directory: PathBuf,
    /// What the service needs to know.
    pub config: Config,
    /// The address to listen on.
    pub interface: IpAddr,
    /// The port to listen on; 0 takes a free one.
    pub port: u16,
    /// Where to write what is listened on.
    pub address_file: Option<PathBuf>,
    /// What is logged.
    pub log_level: LevelFilter,
    /// To be logged once at the start, each a whole sentence.
    pub warnings: Vec<String>,
}

/// How to make one backup.
#[derive(Debug, PartialEq)]
pub struct MakePlan {
    /// The node's database directory.
    pub database_directory: PathBuf,
    /// What the service needs to know.
    pub config: Config,
    /// Whether the Pact databases are backed up too.
    pub backup_pact: bool,
    /// What is logged.
    pub log_level: LevelFilter,
    /// To be logged once at the start, each a whole sentence.
    pub warnings: Vec<String>,
}

/// An end before any work: help, version or wrong usage.
#[derive(Debug, PartialEq)]
pub struct Exit {
    /// The exit status.
    pub code: i32,
    /// Whether the text was asked for (stdout) or is an error (stderr).
    pub to_stdout: bool,
    /// What to print, complete with its last newline.
    pub text: String,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Command {
    Serve,
    Make,
    List,
    Check,
    Cancel,
    Verify,
    Restore,
    Sum,
    Delete,
    Prune,
    Pin,
    Unpin,
    Heights,
    Inspect,
}

/// The commands that people may use, by their words; the others are for our own child processes.
const COMMANDS: [(&str, Command); 12] = [
    ("serve", Command::Serve),
    ("make", Command::Make),
    ("list", Command::List),
    ("check", Command::Check),
    ("cancel", Command::Cancel),
    ("verify", Command::Verify),
    ("restore", Command::Restore),
    ("sum", Command::Sum),
    ("delete", Command::Delete),
    ("prune", Command::Prune),
    ("pin", Command::Pin),
    ("unpin", Command::Unpin),
];

/// Decides what to do. `args` begins with the program's name, as in `std::env::args_os`.
pub fn parse(
    args: impl IntoIterator<Item = OsString>,
    env: &dyn Fn(&str) -> Option<OsString>,
    read_file: &dyn Fn(&Path) -> io::Result<String>,
) -> Result<Plan, Exit> {
    let typed = Typed::try_parse_from(args).map_err(|e| Exit {
        code: if e.use_stderr() { 2 } else { 0 },
        to_stdout: !e.use_stderr(),
        text: e.render().to_string(),
    })?;
    let wrong_usage = |message: String| Exit {
        code: 2,
        to_stdout: false,
        text: format!("error: {message}\n\nFor more information, try '--help'.\n"),
    };
    if let Some((_, topics)) = typed.words.split_first().filter(|(word, _)| *word == "help") {
        return Err(help(topics).map_or_else(wrong_usage, |text| Exit { code: 0, to_stdout: true, text }));
    }
    resolve(typed, env, read_file).map_err(wrong_usage)
}

/// The help page, also for the name of a command, or a page of the manual, without its marks for the tests.
fn help(topics: &[OsString]) -> Result<String, String> {
    let Some(topic) = topics.first() else { return Ok(Typed::command().render_help().to_string()) };
    if let Some(more) = topics.get(1) {
        return Err(format!("unexpected argument {more:?} after 'help {}'", topic.to_string_lossy()));
    }
    if COMMANDS.iter().any(|(name, _)| topic == name) {
        return Ok(Typed::command().render_help().to_string());
    }
    if let Some((_, page)) = MANUAL.iter().find(|(name, _)| topic == name) {
        return Ok(page.replace("<!-- test -->\n", ""));
    }
    let names = MANUAL.map(|(name, _)| name);
    let tip = suggest(&topic.to_string_lossy(), &names).map_or(String::new(), |n| format!("did you mean '{n}'? "));
    Err(format!("no topic {topic:?}: {tip}(topics: {})", names.join(", ")))
}

/// Reads a configuration file for [`parse`]: UTF-8, and never more than the parser takes.
#[expect(clippy::disallowed_methods, reason = "a configuration file is the operator's")]
pub fn read_file(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    // One byte more than is allowed, so that the parser sees that there is more.
    File::open(path)?.take(FILE_BYTES_MAX as u64 + 1).read_to_string(&mut text)?;
    Ok(text)
}

fn resolve(
    mut typed: Typed,
    env: &dyn Fn(&str) -> Option<OsString>,
    read_file: &dyn Fn(&Path) -> io::Result<String>,
) -> Result<Plan, String> {
    let (command, operands) = command(std::mem::take(&mut typed.words))?;
    refuse_foreign_flags(&typed, command)?;
    if matches!(command, Command::Heights | Command::Inspect) {
        let directory = PathBuf::from(operands.first().cloned().unwrap_or_default());
        let limit = operands.get(1).and_then(|limit| limit.to_str()?.parse().ok()).filter(|limit| *limit > 0);
        let heights = command == Command::Heights;
        let inspect = Plan::Inspect { directory: directory.clone(), limit_bytes_per_second: limit };
        return Ok(if heights { Plan::Heights { directory } } else { inspect });
    }
    refuse_tildes(&typed)?;
    let mut file = FileConfig::default();
    for path in &typed.config_file {
        let text = read_file(path).map_err(|e| format!("cannot read configuration file {}: {e}", path.display()))?;
        file = parse_file(&text, &path.display().to_string()).map_err(|e| e.chain())?.or(file);
    }
    // An empty variable is how a container says nothing.
    let env = |name: &str| env(name).filter(|value| !value.is_empty());

    let backup_dir = env("BACKUP_DIR").map(PathBuf::from);
    if let Some(path) = &backup_dir {
        require_no_tilde(path).map_err(|e| format!("environment variable BACKUP_DIR: {}", e.chain()))?;
    }
    let chainweb_version = typed.chainweb_version.clone().or(file.chainweb_version);
    let database_directory = typed.database_directory.clone().or(file.database_directory);
    let backup_directory = typed
        .backup_directory
        .clone()
        .or(backup_dir)
        .or(file.backup_directory)
        .or_else(|| database_directory.as_deref().map(chainweb::backups_in));
    let log_level = typed.log_level.unwrap_or(LevelFilter::Info);
    let mut warnings = file.warnings;

    let limit_bytes_per_second = typed.limit_bytes_per_second.or(file.limit_bytes_per_second);
    if let Some(action) = action(command, &operands, &typed)? {
        let backup_directory = backup_directory.ok_or(
            "no backup directory: name one with --backup-directory DIR, BACKUP_DIR or `backup.directory` in a \
             --config-file, or name the node's with --database-directory DIR (its `backups` is the default)",
        )?;
        let reads = matches!(action, Action::Verify { .. } | Action::Restore { .. } | Action::Sum(_));
        warnings.extend(limit_bytes_per_second.filter(|_| reads).and_then(low_limit));
        return Ok(Plan::Manage { backup_directory, action, limit_bytes_per_second, log_level, warnings });
    }
    let (Some(database_directory), Some(backup_directory)) = (database_directory, backup_directory) else {
        let version = chainweb_version.as_deref().unwrap_or(chainweb::DEFAULT_VERSION);
        return Err(format!(
            "no database directory: name the node's with --database-directory DIR, or `{}` in a --config-file (a node \
             that was not told one uses {})",
            chainweb::key::DATABASE_DIRECTORY,
            chainweb::default_database_directory(version)
        ));
    };
    let mut config = Config {
        chainweb_version,
        node_version: typed.node_version.or(file.node_version),
        reserve_bytes: typed.reserve_bytes.or(file.reserve_bytes),
        pact_method: typed.pact_method.or(file.pact_method).unwrap_or_default(),
        sums: typed.sums.or(file.sums).unwrap_or_default(),
        verify: typed.verify.or(file.verify).unwrap_or(Some(Depth::default())),
        limit_bytes_per_second,
        heights_program: Some(PathBuf::from(OURSELVES)),
        ..Config::new(backup_directory)
    };
    warnings.extend(limit_bytes_per_second.and_then(low_limit));
    config.reread_percent = typed.reread_percent.or(file.reread_percent).unwrap_or(config.reread_percent);
    let stall_limit = typed.stall_seconds.or(file.stall_limit);
    config.stall_limit = stall_limit.unwrap_or(config.stall_limit);
    if command == Command::Make {
        let backup_pact = typed.backup_pact;
        return Ok(Plan::Make(MakePlan { database_directory, config, backup_pact, log_level, warnings }));
    }

    let from_flag = (typed.enable_backup_api || typed.disable_backup_api).then_some(typed.enable_backup_api);
    // Read even where a flag decides: a wrong value is a mistake whoever wins.
    let from_env = env("ENABLE_BACKUP_API").map(|value| truth("ENABLE_BACKUP_API", &value)).transpose()?;
    config.api_enabled = from_flag.or(from_env).or(file.api_enabled).unwrap_or(false);
    let interface = typed.service_interface.or(file.interface).unwrap_or(Ipv4Addr::LOCALHOST.into());
    if !config.api_enabled {
        warnings.push("the backup API is off: only health and metrics answer; --enable-backup-api turns it on".into());
    }
    if config.node_version.is_none() {
        warnings.push("the node's version is unknown: --node-version V names it for x-chainweb-node-version".into());
    }
    if config.api_enabled && !interface.is_loopback() {
        warnings.push(format!("listening on {interface}: whoever reaches this port can start backups"));
    }
    Ok(Plan::Serve(ServePlan {
        database_directory,
        config,
        interface,
        port: typed.service_port.or(file.port).unwrap_or(PORT),
        address_file: typed.address_file,
        log_level,
        warnings,
    }))
}

/// A warning about a limit that is perhaps meant in other units.
fn low_limit(limit: u64) -> Option<String> {
    let hours = 1_000_000_000_u64.checked_div(limit)? / 3600;
    (limit < LOW_LIMIT)
        .then(|| format!("the limit of {limit} bytes per second is low: a gigabyte takes {hours} hours so"))
}

/// The command and its operands.
fn command(words: Vec<OsString>) -> Result<(Command, Vec<OsString>), String> {
    let mut words = words.into_iter();
    let word = words.next().unwrap_or_else(|| "serve".into());
    let names: Vec<&str> = COMMANDS.iter().map(|(name, _)| *name).collect();
    let command = match word.to_str() {
        Some("heights") => Command::Heights,
        Some("inspect") => Command::Inspect,
        typed => COMMANDS.into_iter().find(|(name, _)| Some(*name) == typed).map(|(_, c)| c).ok_or_else(|| {
            let word = word.to_string_lossy();
            let tip = suggest(&word, &names).map_or(String::new(), |c| format!("did you mean '{c}'? "));
            format!("no command {word:?}: {tip}(commands: {})", names.join(", "))
        })?,
    };
    let operands: Vec<OsString> = words.collect();
    let allowed = match command {
        Command::Serve | Command::Make | Command::List | Command::Prune => 0..=0,
        Command::Delete => 1..=usize::MAX,
        Command::Cancel => 0..=1,
        Command::Inspect => 1..=2,
        _ => 1..=1,
    };
    if operands.len() < *allowed.start() {
        return Err(format!("{} needs the ID of a backup: 'list' shows them", word.to_string_lossy()));
    }
    match operands.get(*allowed.end()) {
        Some(more) => Err(format!("unexpected argument {more:?} after '{}'", word.to_string_lossy())),
        None => Ok((command, operands)),
    }
}

/// What a command does with finished backups; `None` for one that does not.
fn action(command: Command, operands: &[OsString], typed: &Typed) -> Result<Option<Action>, String> {
    // What is not UTF-8 is no id; the replacement characters keep it from becoming one.
    let ids: Vec<String> = operands.iter().map(|id| id.to_string_lossy().into_owned()).collect();
    let id = ids.first().cloned().unwrap_or_default();
    Ok(Some(match command {
        Command::List => Action::List { json: typed.json },
        Command::Check => Action::Check(id),
        Command::Cancel => Action::Cancel(ids.first().cloned()),
        Command::Verify => Action::Verify { id, deep: typed.deep },
        Command::Restore => {
            let to = typed.to.clone().ok_or("restore needs --to DIR, the database directory that gets the backup")?;
            Action::Restore { id, to, replace: typed.replace, copy: typed.copy, deep: typed.deep }
        }
        Command::Sum => Action::Sum(id),
        Command::Delete => Action::Delete(ids),
        Command::Prune => {
            let policy = Policy {
                keep_last: typed.keep_last.unwrap_or(0),
                keep_daily: typed.keep_daily.unwrap_or(0),
                keep_weekly: typed.keep_weekly.unwrap_or(0),
            };
            if policy == Policy::default() {
                return Err("prune needs a rule: --keep-last N, --keep-daily N or --keep-weekly N, above 0".to_owned());
            }
            Action::Prune { policy, dry_run: typed.dry_run }
        }
        Command::Pin | Command::Unpin => Action::Pin { id, pinned: command == Command::Pin },
        Command::Serve | Command::Make | Command::Heights | Command::Inspect => return Ok(None),
    }))
}

/// Refuses paths that would name a directory called `~`.
fn refuse_tildes(typed: &Typed) -> Result<(), String> {
    let paths = [
        ("--database-directory", &typed.database_directory),
        ("--backup-directory", &typed.backup_directory),
        ("--address-file", &typed.address_file),
        ("--to", &typed.to),
    ];
    let given = paths.into_iter().filter_map(|(flag, path)| Some((flag, path.as_ref()?)));
    for (flag, path) in given.chain(typed.config_file.iter().map(|path| ("--config-file", path))) {
        require_no_tilde(path).map_err(|e| format!("{flag}: {}", e.chain()))?;
    }
    Ok(())
}

/// Refuses each flag that the command would ignore.
fn refuse_foreign_flags(typed: &Typed, command: Command) -> Result<(), String> {
    use Command::{Cancel, Check, Delete, List, Make, Pin, Prune, Restore, Serve, Sum, Unpin, Verify};
    const ALL: &[Command] = &[Serve, Make, List, Check, Cancel, Verify, Restore, Sum, Delete, Prune, Pin, Unpin];
    let flags: [(&str, bool, &[Command]); 28] = [
        ("--database-directory", typed.database_directory.is_some(), ALL),
        ("--backup-directory", typed.backup_directory.is_some(), ALL),
        ("--config-file", !typed.config_file.is_empty(), ALL),
        ("--log-level", typed.log_level.is_some(), ALL),
        ("--chainweb-version", typed.chainweb_version.is_some(), &[Serve, Make]),
        ("--node-version", typed.node_version.is_some(), &[Serve, Make]),
        ("--reserve-bytes", typed.reserve_bytes.is_some(), &[Serve, Make]),
        ("--pact-method", typed.pact_method.is_some(), &[Serve, Make]),
        ("--sums", typed.sums.is_some(), &[Serve, Make]),
        ("--verify", typed.verify.is_some(), &[Serve, Make]),
        ("--reread-percent", typed.reread_percent.is_some(), &[Serve, Make]),
        ("--stall-seconds", typed.stall_seconds.is_some(), &[Serve, Make]),
        ("--limit-bytes-per-second", typed.limit_bytes_per_second.is_some(), &[Serve, Make, Verify, Restore, Sum]),
        ("--enable-backup-api", typed.enable_backup_api, &[Serve]),
        ("--disable-backup-api", typed.disable_backup_api, &[Serve]),
        ("--service-port", typed.service_port.is_some(), &[Serve]),
        ("--service-interface", typed.service_interface.is_some(), &[Serve]),
        ("--address-file", typed.address_file.is_some(), &[Serve]),
        ("--backup-pact", typed.backup_pact, &[Make]),
        ("--json", typed.json, &[List]),
        ("--deep", typed.deep, &[Verify, Restore]),
        ("--to", typed.to.is_some(), &[Restore]),
        ("--replace", typed.replace, &[Restore]),
        ("--copy", typed.copy, &[Restore]),
        ("--keep-last", typed.keep_last.is_some(), &[Prune]),
        ("--keep-daily", typed.keep_daily.is_some(), &[Prune]),
        ("--keep-weekly", typed.keep_weekly.is_some(), &[Prune]),
        ("--dry-run", typed.dry_run, &[Prune]),
    ];
    let name = |command: Command| format!("{command:?}").to_lowercase();
    match flags.iter().find(|(_, given, commands)| *given && !commands.contains(&command)) {
        None => Ok(()),
        Some((flag, _, commands)) => {
            let theirs: Vec<String> = commands.iter().map(|&c| format!("'{}'", name(c))).collect();
            let default = if command == Serve { " (the command when none is given)" } else { "" };
            Err(format!("{flag} belongs to {}, not to '{}'{default}", theirs.join(" and "), name(command)))
        }
    }
}

/// A yes or no from the environment; containers write `true`.
fn truth(name: &str, value: &OsStr) -> Result<bool, String> {
    match value.to_string_lossy().to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" => Ok(false),
        _ => Err(format!(
            "environment variable {name} is {value:?}: write true or false, without quotes, or leave it empty"
        )),
    }
}

#[cfg(test)]
mod tests;
