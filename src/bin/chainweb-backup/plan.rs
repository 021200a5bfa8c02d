//! The command line: what was typed, with the environment and the configuration files, becomes a [`Plan`] in one step.
//!
//! `args` has what clap read; [`parse`] decides what it means. Precedence, key by key: flag, environment, later file,
//! earlier file, default. Nothing is opened here but configuration files, and those through a parameter; the command itself
//! finds out whether a directory exists.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use chainweb_backup::{
    Config, Depth, FILE_BYTES_MAX, FileConfig, Hooks, Policy, Settle, chainweb, parse_file, require_no_tilde,
};
use log::LevelFilter;

use crate::action::{Action, Output};
use crate::args::{self, Child, Command, Common, Job, Limit, Serve};
use crate::door::Guard;
use crate::line::{self, Typed};
use crate::listen::Listening;
use crate::pages;
use crate::places::{self, Found, Node};

/// A limit of bytes per second below this is probably meant in another unit.
const LOW_LIMIT: u64 = 100_000;

/// How long the command of a drill may run by default.
const DRILL_LIMIT: Duration = Duration::from_secs(3600);

/// How many bytes a second a drill copies by default: nothing waits for it, and what it writes delays the fsync of the node on the
/// same disk. Measured on a virtual disk, the 99th percentile of the node's block times beside a drill was 7 times that without one
/// at the speed of the disk, 1.5 times at 50 MB/s, and 1.3 times at 25 MB/s.
const DRILL_BYTES_PER_SECOND: u64 = 32_000_000;

/// This running program, even after its file was replaced by a newer one.
pub const OURSELVES: &str = "/proc/self/exe";

/// What to do, validated.
#[derive(Debug, PartialEq)]
pub enum Plan {
    /// Answer HTTP requests until told to stop.
    Serve(ServePlan),
    /// Make one backup and print its id.
    Make(MakePlan),
    /// Find what would make the next backup of such a service fail.
    Doctor(ServePlan, Output),
    /// Run a command on the backup directory.
    Manage {
        /// Where the backups are.
        backup_directory: PathBuf,
        /// The database directory, if the backups are below it: there the node's user may have planted links.
        database_directory: Option<PathBuf>,
        /// The command.
        action: Action,
        /// The limit of bytes read or copied per second.
        limit_bytes_per_second: Option<u64>,
        /// How long a child process may make no progress; `None` is the default limit, zero means without a limit.
        stall_limit: Option<Duration>,
        /// The hooks of the configuration, for `verify`.
        hooks: Hooks,
        /// The least important level that is logged.
        log_level: LevelFilter,
        /// To be logged once at the start, each a whole sentence.
        warnings: Vec<String>,
        /// To be logged once at the start, as information.
        notes: Vec<String>,
    },
    /// Finish or undo a restore that was interrupted half done.
    Settle {
        /// The database directory.
        to: PathBuf,
        /// Which.
        wanted: Settle,
        /// The least important level that is logged.
        log_level: LevelFilter,
    },
    /// Answer our parent process, which asks about a finished copy.
    Child(Child),
}

/// How to serve.
#[derive(Debug, PartialEq)]
pub struct ServePlan {
    /// The node's databases.
    pub node: Node,
    /// The configuration of the service.
    pub config: Config,
    /// What guards the service, beside its configuration.
    pub guard: Guard,
    /// Where to listen.
    pub listening: Listening,
    /// The file that receives the addresses listened on.
    pub address_file: Option<PathBuf>,
    /// The least important level that is logged.
    pub log_level: LevelFilter,
    /// To be logged once at the start, each a whole sentence.
    pub warnings: Vec<String>,
    /// To be logged once at the start, as information.
    pub notes: Vec<String>,
}

/// How to make one backup.
#[derive(Debug, PartialEq)]
pub struct MakePlan {
    /// The node's databases.
    pub node: Node,
    /// The configuration of the service.
    pub config: Config,
    /// Whether the Pact databases are backed up too.
    pub backup_pact: bool,
    /// Makes none if the newest good one began less than this ago.
    pub if_older_than: Option<Duration>,
    /// The least important level that is logged.
    pub log_level: LevelFilter,
    /// To be logged once at the start, each a whole sentence.
    pub warnings: Vec<String>,
    /// To be logged once at the start, as information.
    pub notes: Vec<String>,
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

/// Decides what to do. `args` begins with the program's name, as in `std::env::args_os`.
pub fn parse(args: impl IntoIterator<Item = OsString>, around: &Around<'_>) -> Result<Plan, Exit> {
    let typed = line::read(args).map_err(|e| Exit {
        code: if e.use_stderr() { 2 } else { 0 },
        to_stdout: !e.use_stderr(),
        text: e.render().to_string(),
    })?;
    let command = match typed {
        Typed::Person(command) => *command,
        Typed::Program(child) => return Ok(Plan::Child(child)),
    };
    plan(command, around)
}

/// Reads a configuration file for [`parse`]: UTF-8, and never more than the parser takes.
#[expect(clippy::disallowed_methods, reason = "a configuration file is the operator's")]
pub fn read_file(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    // One byte more than is allowed, so that the parser sees that there is more.
    File::open(path)?.take(FILE_BYTES_MAX as u64 + 1).read_to_string(&mut text)?;
    Ok(text)
}

/// What is read beside the command line.
pub struct Around<'a> {
    /// The value of an environment variable.
    pub env: &'a dyn Fn(&str) -> Option<OsString>,
    /// The text of a configuration file.
    pub read_file: &'a dyn Fn(&Path) -> io::Result<String>,
    /// The names of the node's database directories in a directory.
    pub list_databases: &'a dyn Fn(&Path) -> Vec<String>,
}

impl Around<'_> {
    /// An environment variable; an empty one is how a container says nothing.
    fn env(&self, name: &str) -> Option<OsString> {
        (self.env)(name).filter(|value| !value.is_empty())
    }
}

impl Exit {
    /// For what was asked for.
    fn shown(text: String) -> Exit {
        Exit { code: 0, to_stdout: true, text }
    }
}

/// Wrong usage, said in a message without its end.
impl From<String> for Exit {
    fn from(message: String) -> Exit {
        let text = format!("error: {message}\n\nFor more information, try '--help'.\n");
        Exit { code: 2, to_stdout: false, text }
    }
}

fn plan(command: Command, around: &Around) -> Result<Plan, Exit> {
    let manage = |common: Common, action: Action| manage(common, None, action, around);
    let reading = |common: Common, limit: Limit, action: Action| self::manage(common, Some(limit), action, around);
    Ok(match command {
        Command::Serve(typed) => Plan::Serve(serve(typed, around)?),
        Command::Doctor(typed) => Plan::Doctor(serve(typed.serve, around)?, output(typed.json)),
        Command::Make(typed) => {
            let (backup_pact, if_older_than) = (typed.backup_pact, typed.if_older_than);
            let made = settings(typed.common, around)?.service(typed.job, &typed.limit, around)?;
            let Service { node, config, log_level, warnings, notes, .. } = made;
            Plan::Make(MakePlan { node, config, backup_pact, if_older_than, log_level, warnings, notes })
        }
        Command::Status(typed) => manage(typed.common, Action::Status)?,
        Command::List(typed) => {
            manage(typed.common, Action::List { output: output(typed.json), columns: typed.columns })?
        }
        Command::Metrics(common) => manage(common, Action::Metrics { reserve_bytes: None })?,
        Command::Check(typed) => manage(typed.common, Action::Check(typed.id))?,
        Command::Cancel(typed) => manage(typed.common, Action::Cancel(typed.id))?,
        Command::Verify(typed) => {
            let action = Action::Verify { id: typed.id, depth: depth(typed.deep) };
            reading(typed.common, typed.limit, action)?
        }
        Command::Restore(typed) => {
            let args::Restore { id, to, replace, copy, deep, dry_run, json, resume, undo, limit, common } = typed;
            let dry_run = dry_run.then(|| output(json));
            match id {
                Some(id) => {
                    reading(common, limit, Action::Restore { id, to, replace, copy, depth: depth(deep), dry_run })?
                }
                None => {
                    let wanted = if undo && !resume { Settle::Undo } else { Settle::Resume };
                    Plan::Settle { to, wanted, log_level: settings(common, around)?.log_level }
                }
            }
        }
        Command::Drill(typed) => drill(typed, around)?,
        Command::Sum(typed) => reading(typed.common, typed.limit, Action::Sum(typed.id))?,
        Command::Delete(typed) => manage(typed.common, Action::Delete(typed.ids))?,
        Command::Prune(typed) => {
            let policy = typed.keep.rules().policy();
            if policy == Policy::default() {
                let rule =
                    "prune needs a rule: --keep-last N, --keep-daily N, --keep-weekly N or --keep-monthly N, above 0";
                return Err(rule.to_owned().into());
            }
            manage(typed.common, Action::Prune { policy, dry_run: typed.dry_run })?
        }
        Command::Pin(typed) => manage(typed.common, Action::Pin(typed.id))?,
        Command::Unpin(typed) => manage(typed.common, Action::Unpin(typed.id))?,
        Command::Help(typed) => return Err(Exit::shown(pages::help(typed.topic.as_deref())?)),
        Command::Completions(typed) => return Err(Exit::shown(pages::completions(typed.shell))),
        Command::Man(typed) => return Err(Exit::shown(pages::man(typed.command.as_deref())?)),
    })
}

fn output(json: bool) -> Output {
    if json { Output::Json } else { Output::Text }
}

fn depth(deep: bool) -> Depth {
    if deep { Depth::Deep } else { Depth::Quick }
}

/// What flags, environment and files say to every command.
struct Settings {
    database_directory: Option<PathBuf>,
    backup_directory: Option<PathBuf>,
    log_level: LevelFilter,
    /// All files as one. Its directories and warnings are taken already.
    file: FileConfig,
    warnings: Vec<String>,
    notes: Vec<String>,
}

fn settings(common: Common, around: &Around) -> Result<Settings, String> {
    let mut file = FileConfig::default();
    for path in &common.config_file {
        let failed = |e| format!("cannot read configuration file {}: {e}", path.display());
        let text = (around.read_file)(path).map_err(failed)?;
        file = parse_file(&text, &path.display().to_string()).map_err(|e| e.chain())?.or(file);
    }
    let from_env = around.env("BACKUP_DIR").map(PathBuf::from);
    if let Some(path) = &from_env {
        require_no_tilde(path).map_err(|e| format!("environment variable BACKUP_DIR: {}", e.chain()))?;
    }
    let database_directory = common.database_directory.or(file.database_directory.take());
    let backup_directory = common
        .backup_directory
        .or(from_env)
        .or(file.backup_directory.take())
        .or_else(|| database_directory.as_deref().map(chainweb::backups_in));
    let log_level = common.log_level.or(file.log_level).unwrap_or(LevelFilter::Info);
    let warnings = std::mem::take(&mut file.warnings);
    Ok(Settings { database_directory, backup_directory, log_level, file, warnings, notes: Vec::new() })
}

fn manage(common: Common, limit: Option<Limit>, mut action: Action, around: &Around) -> Result<Plan, String> {
    let mut settings = settings(common, around)?;
    if settings.backup_directory.is_none() {
        let named = settings.file.chainweb_version.clone();
        settings.find(named.as_deref(), around).map_err(|why| {
            format!(
                "no backup directory: name one with --backup-directory DIR, BACKUP_DIR or `backup.directory` in a \
                 --config-file, or name the node's with --database-directory DIR (its `backups` is the default; of the default \
                 database directory, {why})"
            )
        })?;
    }
    let limit_bytes_per_second =
        limit.and_then(|limit| limit.limit_bytes_per_second.or(settings.file.limit_bytes_per_second));
    settings.warnings.extend(limit_bytes_per_second.and_then(low_limit));
    if let Action::Metrics { reserve_bytes } = &mut action {
        *reserve_bytes = settings.file.reserve_bytes;
    }
    let Settings { database_directory, backup_directory, log_level, warnings, notes, file } = settings;
    let (backup_directory, stall_limit) = (backup_directory.expect("it was named or found"), file.stall_limit);
    let hooks = file.hooks.hooks();
    let database_directory = database_directory.filter(|above| backup_directory.starts_with(above));
    Ok(Plan::Manage {
        backup_directory,
        database_directory,
        action,
        limit_bytes_per_second,
        stall_limit,
        hooks,
        log_level,
        warnings,
        notes,
    })
}

/// What a service needs, to answer requests or to make one backup.
struct Service {
    node: Node,
    config: Config,
    log_level: LevelFilter,
    /// What only `serve` needs from the files.
    file: FileConfig,
    warnings: Vec<String>,
    notes: Vec<String>,
}

impl Settings {
    /// Takes the default database directory, and its `backups` if no backup directory was named. Returns its version.
    fn find(&mut self, version: Option<&str>, around: &Around) -> Result<String, String> {
        let Found { database_directory, version } =
            places::find(version, &|name| around.env(name), around.list_databases)?;
        self.notes.push(format!("using the default database directory {}", database_directory.display()));
        self.backup_directory.get_or_insert_with(|| chainweb::backups_in(&database_directory));
        self.database_directory = Some(database_directory);
        Ok(version)
    }

    /// The node's directories. Looks for the default database directory only if nothing names the databases; then it names the
    /// version, too, unless that is configured.
    fn node(&mut self, typed: args::Places, version: &mut Option<String>, around: &Around) -> Result<Node, String> {
        let rocksdb_directory = typed.rocksdb_directory.or(self.file.rocksdb_directory.take());
        let sqlite_directory = typed.sqlite_directory.or(self.file.sqlite_directory.take());
        let pin_directory = typed.pin_directory.or(self.file.pin_directory.take());
        if self.database_directory.is_none() {
            match (&rocksdb_directory, &sqlite_directory) {
                (Some(rocksdb), Some(_)) => {
                    let parent = rocksdb.parent().filter(|parent| !parent.as_os_str().is_empty());
                    self.database_directory = Some(parent.unwrap_or(Path::new(".")).to_owned());
                }
                (Some(_), None) => {
                    let remedy = "name the Pact databases with --sqlite-directory DIR, too";
                    return Err(format!(
                        "no database directory: {remedy}, or the node's with --database-directory DIR"
                    ));
                }
                (None, _) => {
                    let found = self
                        .find(version.as_deref(), around)
                        .map_err(|why| no_database_directory(version.as_deref(), &why))?;
                    version.get_or_insert(found);
                }
            }
        }
        let database_directory = self.database_directory.clone().expect("it was named or found");
        Ok(Node { database_directory, rocksdb_directory, sqlite_directory, pin_directory })
    }

    fn service(mut self, job: Job, limit: &Limit, around: &Around) -> Result<Service, String> {
        let mut chainweb_version = job.chainweb_version.or(self.file.chainweb_version.take());
        let node = self.node(job.places, &mut chainweb_version, around)?;
        let Settings { backup_directory, log_level, mut file, mut warnings, notes, .. } = self;
        let backup_directory = backup_directory.ok_or(
            "no backup directory: name one with --backup-directory DIR, BACKUP_DIR or `backup.directory` in a --config-file (the \
             default lies in the database directory, which is not named)",
        )?;
        let limit_bytes_per_second = limit.limit_bytes_per_second.or(file.limit_bytes_per_second);
        let mut config = Config {
            chainweb_version,
            node_version: job.node_version.or(file.node_version.take()),
            reserve_bytes: job.reserve_bytes.or(file.reserve_bytes),
            pact_method: job.pact_method.or(file.pact_method).unwrap_or_default(),
            sums: job.sums.or(file.sums).unwrap_or_default(),
            verify: job.verify.or(file.verify).unwrap_or(Some(Depth::default())),
            limit_bytes_per_second,
            keep: job.keep.rules().or(file.keep).policy(),
            hooks: std::mem::take(&mut file.hooks).hooks(),
            heights_program: Some(PathBuf::from(OURSELVES)),
            ..Config::new(backup_directory)
        };
        warnings.extend(limit_bytes_per_second.and_then(low_limit));
        config.reread_percent = job.reread_percent.or(file.reread_percent).unwrap_or(config.reread_percent);
        config.stall_limit = job.stall_seconds.or(file.stall_limit).unwrap_or(config.stall_limit);
        Ok(Service { node, config, log_level, file, warnings, notes })
    }
}

/// The error if no database directory was named, and `why` none was found.
fn no_database_directory(version: Option<&str>, why: &str) -> String {
    format!(
        "no database directory: name the node's with --database-directory DIR, or `{}` in a --config-file (a node without that \
         setting uses {}; {why})",
        chainweb::key::DATABASE_DIRECTORY,
        chainweb::default_database_directory(version.unwrap_or(chainweb::DEFAULT_VERSION))
    )
}

fn serve(typed: Serve, around: &Around) -> Result<ServePlan, String> {
    let service = settings(typed.common, around)?.service(typed.job, &typed.limit, around)?;
    let Service { node, mut config, log_level, mut file, mut warnings, mut notes } = service;
    config.schedules = typed.times.schedules(file.schedules.take())?;
    notes.extend(
        config
            .schedules
            .iter()
            .map(|one| format!("scheduled backups: {one}{}", if one.pact { ", with Pact" } else { "" })),
    );
    if !config.schedules.is_empty() && config.keep == Policy::default() {
        let remedy = "name rules with --keep-daily N and its like, or with `backup.keep` in a --config-file";
        warnings.push(format!("scheduled backups are never deleted: {remedy}"));
    }
    let from_flag = (typed.enable_backup_api || typed.disable_backup_api).then_some(typed.enable_backup_api);
    // Read even if a flag decides: a wrong value is a mistake in any case.
    let from_env = around.env("ENABLE_BACKUP_API").map(|value| truth("ENABLE_BACKUP_API", &value)).transpose()?;
    config.api_enabled = from_flag.or(from_env).or(file.api_enabled).unwrap_or(false);
    let listening = typed.listen.decide(&mut file, around)?;
    if !config.api_enabled {
        warnings.push("the backup API is off: only health and metrics answer; --enable-backup-api turns it on".into());
    }
    if config.node_version.is_none() {
        warnings.push("the node's version is unknown: --node-version V names it for x-chainweb-node-version".into());
    }
    let (guard, access) = typed.door.decide(&mut file)?;
    config.access = access;
    Ok(ServePlan {
        node,
        config,
        guard,
        listening,
        address_file: typed.listen.address_file,
        log_level,
        warnings,
        notes,
    })
}

fn drill(typed: args::Drill, around: &Around) -> Result<Plan, Exit> {
    let args::Drill { id, exec: command, exec_seconds, copy, limit_bytes_per_second, common } = typed;
    let time_limit = exec_seconds.unwrap_or(DRILL_LIMIT);
    if time_limit.is_zero() {
        return Err("--exec-seconds 0 would end the command at once: write a number of seconds".to_owned().into());
    }
    let action = Action::Drill { id, command, time_limit, copy };
    let mut plan = manage(common, Some(Limit { limit_bytes_per_second }), action, around)?;
    if let Plan::Manage { limit_bytes_per_second, .. } = &mut plan {
        limit_bytes_per_second.get_or_insert(DRILL_BYTES_PER_SECOND);
    }
    Ok(plan)
}

/// A warning about a limit that is probably meant in another unit.
fn low_limit(limit: u64) -> Option<String> {
    let hours = 1_000_000_000_u64.checked_div(limit)? / 3600;
    (limit < LOW_LIMIT)
        .then(|| format!("the limit of {limit} bytes per second is low: copying a gigabyte takes {hours} hours"))
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
