//! Configuration files: ours, or the node's own with our keys in it.
//!
//! Pure functions over text. A file is read in two steps: the text becomes a tree (`tree`, the same for JSON and
//! YAML), then the few keys that are ours are looked up in it. Every other key is the node's and is ignored, whatever its
//! value is. Below `backup` all keys are ours: a misspelt key there is an error, because otherwise a backup might never run.
//!
//! Invariants:
//! - If a mapping has a key that we read twice, that is an error: we cannot know which of the two is meant.
//! - Plain YAML scalars mean the same as for the node's own parser (YAML 1.1: `yes` and `on` are true).
//!
//! # Limitations
//! A file that begins with `{` is JSON, so YAML in flow style at the top level is not read. Merge keys (`<<`) are
//! refused if they could hide a key of ours, and ignored elsewhere. Sizes are whole numbers.

use std::fmt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use crate::chainweb::key;
use crate::config::access::{HOSTS_MAX, OpenEndpoint, parse_host, parse_open_endpoint};
use crate::config::hooks::{FileHooks, MAX_COMMANDS, MAX_TIME_LIMIT, require_command};
use crate::config::numbers::whole;
use crate::config::schedule::{KeepRules, MAX_SCHEDULES, Schedule, parse_interval, parse_time_of_day};
use crate::config::tree::{Entries, Node, Said, quote, tree};
use crate::config::{
    Interface, PactMethod, Sums, Verify, parse_interface, parse_log_level, parse_name, parse_pact_method,
    parse_seconds, parse_size, parse_socket_group, parse_socket_mode, parse_sums, parse_verify, require_no_tilde,
    suggest,
};
use crate::error::{Error, Kind, Result};

const BACKUP_KEYS: &[&str] = &[
    key::BACKUP_API,
    key::BACKUP_DIRECTORY,
    "hooks",
    "keep",
    "limitBytesPerSecond",
    "logLevel",
    "nodeVersion",
    "pactMethod",
    "pinDirectory",
    "rereadPercent",
    "reserveBytes",
    "rocksdbDirectory",
    "schedule",
    "sqliteDirectory",
    "stallSeconds",
    "sums",
    "verify",
];
const API_KEYS: &[&str] = &[
    key::API_ENABLED,
    "interface",
    "port",
    "socketMode",
    "socketGroup",
    "authTokenFile",
    "open",
    "allowedHosts",
    "allowUnauthenticated",
    key::API_CONFIGURATION,
];
/// The places that one service may listen at.
const MAX_INTERFACES: usize = 16;

const SCHEDULE_KEYS: &[&str] = &["every", "at", "pact", "jitter"];
const KEEP_KEYS: &[&str] = &["last", "daily", "weekly", "monthly"];
const HOOK_KEYS: &[&str] = &["before", "onVerified", "afterSuccess", "afterFailure", "limitSeconds"];

/// The kind of value that a key must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Mapping,
    Text,
    Path,
    Bool,
    Address,
    Port,
    Mode,
    Group,
    Endpoints,
    Hosts,
    Percent,
    Seconds,
    Interval,
    Time,
    Count,
    Schedules,
    Commands,
    Size,
    Method,
    Sums,
    Verify,
    Level,
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Expected::Mapping => "a mapping",
            Expected::Text => "a text",
            Expected::Path => "a path",
            Expected::Bool => "true or false",
            Expected::Address => "an IP address, unix:PATH, or a list of these",
            Expected::Port => "a port number from 0 to 65535",
            Expected::Mode => "the mode of a socket, like 660",
            Expected::Group => "a group, its name or number",
            Expected::Endpoints => "a list of check-backup, health-check and metrics",
            Expected::Hosts => "a list of names of hosts",
            Expected::Percent => "a whole number from 0 to 100",
            Expected::Seconds => "a number of seconds",
            Expected::Interval => "an interval with its unit, like 24h",
            Expected::Time => "a time of the day in UTC, like 03:00",
            Expected::Count => "a whole number of backups",
            Expected::Schedules => "a schedule, or a list of schedules",
            Expected::Commands => "a command, or a list of commands: a command is a list of words",
            Expected::Size => "a number of bytes, or a size like 10GiB",
            Expected::Method => "auto, copy, clone or delta",
            Expected::Sums => "copied, all or none",
            Expected::Verify => "quick, deep or none",
            Expected::Level => "a log level, like info",
        })
    }
}

/// The settings in one configuration file; `None` if it does not have the key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileConfig {
    /// `databaseDirectory`
    pub database_directory: Option<PathBuf>,
    /// `chainweb.chainwebVersion`
    pub chainweb_version: Option<String>,
    /// `backup.api.enabled`
    pub api_enabled: Option<bool>,
    /// `backup.directory`
    pub backup_directory: Option<PathBuf>,
    /// `backup.rocksdbDirectory`
    pub rocksdb_directory: Option<PathBuf>,
    /// `backup.sqliteDirectory`
    pub sqlite_directory: Option<PathBuf>,
    /// `backup.pinDirectory`
    pub pin_directory: Option<PathBuf>,
    /// `backup.api.interface`, one or a list; never the node's `serviceApi.interface`
    pub interfaces: Option<Vec<Interface>>,
    /// `backup.api.socketMode`
    pub socket_mode: Option<u32>,
    /// `backup.api.socketGroup`
    pub socket_group: Option<String>,
    /// `backup.api.port`; never the node's `serviceApi.port`
    pub port: Option<u16>,
    /// `backup.api.authTokenFile`
    pub auth_token_file: Option<PathBuf>,
    /// `backup.api.open`
    pub open_endpoints: Option<Vec<OpenEndpoint>>,
    /// `backup.api.allowedHosts`
    pub allowed_hosts: Option<Vec<String>>,
    /// `backup.api.allowUnauthenticated`
    pub allow_unauthenticated: Option<bool>,
    /// `backup.nodeVersion`
    pub node_version: Option<String>,
    /// `backup.reserveBytes`
    pub reserve_bytes: Option<u64>,
    /// `backup.pactMethod`.
    pub pact_method: Option<PactMethod>,
    /// `backup.sums`
    pub sums: Option<Sums>,
    /// `backup.logLevel`
    pub log_level: Option<log::LevelFilter>,
    /// `backup.verify`
    pub verify: Option<Verify>,
    /// `backup.rereadPercent`
    pub reread_percent: Option<u8>,
    /// `backup.stallSeconds`
    pub stall_limit: Option<Duration>,
    /// `backup.limitBytesPerSecond`
    pub limit_bytes_per_second: Option<u64>,
    /// `backup.schedule`
    pub schedules: Option<Vec<Schedule>>,
    /// `backup.keep`
    pub keep: KeepRules,
    /// `backup.hooks`
    pub hooks: FileHooks,
    /// A sentence for each key outside `backup` that looks like a misspelt key of ours; it may be the node's.
    pub warnings: Vec<String>,
}

impl FileConfig {
    /// Merges both; `self` takes precedence.
    pub fn or(self, other: FileConfig) -> FileConfig {
        FileConfig {
            database_directory: self.database_directory.or(other.database_directory),
            chainweb_version: self.chainweb_version.or(other.chainweb_version),
            api_enabled: self.api_enabled.or(other.api_enabled),
            backup_directory: self.backup_directory.or(other.backup_directory),
            rocksdb_directory: self.rocksdb_directory.or(other.rocksdb_directory),
            sqlite_directory: self.sqlite_directory.or(other.sqlite_directory),
            pin_directory: self.pin_directory.or(other.pin_directory),
            interfaces: self.interfaces.or(other.interfaces),
            socket_mode: self.socket_mode.or(other.socket_mode),
            socket_group: self.socket_group.or(other.socket_group),
            port: self.port.or(other.port),
            auth_token_file: self.auth_token_file.or(other.auth_token_file),
            open_endpoints: self.open_endpoints.or(other.open_endpoints),
            allowed_hosts: self.allowed_hosts.or(other.allowed_hosts),
            allow_unauthenticated: self.allow_unauthenticated.or(other.allow_unauthenticated),
            node_version: self.node_version.or(other.node_version),
            reserve_bytes: self.reserve_bytes.or(other.reserve_bytes),
            pact_method: self.pact_method.or(other.pact_method),
            sums: self.sums.or(other.sums),
            verify: self.verify.or(other.verify),
            log_level: self.log_level.or(other.log_level),
            reread_percent: self.reread_percent.or(other.reread_percent),
            stall_limit: self.stall_limit.or(other.stall_limit),
            limit_bytes_per_second: self.limit_bytes_per_second.or(other.limit_bytes_per_second),
            schedules: self.schedules.or(other.schedules),
            keep: self.keep.or(other.keep),
            hooks: self.hooks.or(other.hooks),
            warnings: [self.warnings, other.warnings].concat(),
        }
    }
}

/// Parses the text of a configuration file of ours or of a node, JSON or YAML; every message begins with `name`.
pub fn parse_file(text: &str, name: &str) -> Result<FileConfig> {
    let said = tree(text).and_then(|root| root.map_or(Ok(FileConfig::default()), |root| read_root(&root)));
    said.map(|said| FileConfig { warnings: said.warnings.iter().map(|w| format!("{name}: {w}")).collect(), ..said })
        .map_err(|message| Error::new(Kind::Usage, format!("{name}: {message}")))
}

fn read_root(root: &Node) -> Said<FileConfig> {
    let Node::Map(root) = root else {
        return Err(format!("the file must be a mapping of keys to values, found {}", root.found()));
    };
    let chainweb = section(root, "", key::CHAINWEB)?.unwrap_or(&[]);
    let below_chainweb = format!("{}.", key::CHAINWEB);
    let mut said = read_backup(root, "")?.or(read_backup(chainweb, &below_chainweb)?);
    said.database_directory = path(root, "", key::DATABASE_DIRECTORY)?;
    said.chainweb_version =
        name(root, "", key::CHAINWEB_VERSION)?.or(name(chainweb, &below_chainweb, key::CHAINWEB_VERSION)?);
    for (entries, prefix, ours) in [
        (root.as_slice(), "", [key::DATABASE_DIRECTORY, key::CHAINWEB, key::CHAINWEB_VERSION, key::BACKUP].as_slice()),
        (chainweb, &below_chainweb, [key::CHAINWEB_VERSION, key::BACKUP].as_slice()),
    ] {
        for (key, _) in entries.iter().filter(|(key, _)| !ours.contains(&key.as_str())) {
            if let Some(meant) = suggest(key, ours).filter(|meant| key.len().abs_diff(meant.len()) <= 2) {
                let key = quote(&format!("{prefix}{key}"));
                said.warnings.push(format!(
                    "key {key} is ignored because this program does not know it: did you mean `{meant}`?"
                ));
            }
        }
    }
    Ok(said)
}

/// Reads the `backup` section in `above`, whose own place is `prefix`.
fn read_backup(above: &Entries, prefix: &str) -> Said<FileConfig> {
    let Some(backup) = section(above, prefix, key::BACKUP)? else { return Ok(FileConfig::default()) };
    let prefix = format!("{prefix}{}.", key::BACKUP);
    let api_prefix = format!("{prefix}{}.", key::BACKUP_API);
    known(backup, &prefix, BACKUP_KEYS, &api_prefix, API_KEYS)?;
    let api = section(backup, &prefix, key::BACKUP_API)?.unwrap_or(&[]);
    known(api, &api_prefix, API_KEYS, &prefix, BACKUP_KEYS)?;
    let size = |key: &str| {
        value(backup, &prefix, key, Expected::Size, |node| match node {
            Node::Plain(t) | Node::Text(t) if node.as_bool().is_none() => {
                Some(parse_size(t).map_err(|e| e.to_string()))
            }
            _ => None,
        })
    };
    Ok(FileConfig {
        backup_directory: path(backup, &prefix, key::BACKUP_DIRECTORY)?,
        rocksdb_directory: path(backup, &prefix, "rocksdbDirectory")?,
        sqlite_directory: path(backup, &prefix, "sqliteDirectory")?,
        pin_directory: path(backup, &prefix, "pinDirectory")?,
        node_version: name(backup, &prefix, "nodeVersion")?,
        pact_method: text(backup, &prefix, "pactMethod", Expected::Method, parse_pact_method)?,
        sums: text(backup, &prefix, "sums", Expected::Sums, parse_sums)?,
        verify: text(backup, &prefix, "verify", Expected::Verify, parse_verify)?,
        log_level: word(backup, &prefix, "logLevel", Expected::Level, parse_log_level)?,
        reserve_bytes: size("reserveBytes")?,
        limit_bytes_per_second: size("limitBytesPerSecond")?,
        reread_percent: value(backup, &prefix, "rereadPercent", Expected::Percent, |node| match node {
            Node::Plain(p) if p.bytes().all(|b| b.is_ascii_digit()) => p.parse().ok().filter(|p| *p <= 100).map(Ok),
            _ => None,
        })?,
        stall_limit: seconds(backup, &prefix, "stallSeconds")?,
        schedules: schedules(backup, &prefix)?,
        keep: keep(backup, &prefix)?,
        hooks: hooks(backup, &prefix)?,
        ..read_api(api, &api_prefix)?
    })
}

/// Reads the `api` section.
fn read_api(api: &Entries, prefix: &str) -> Said<FileConfig> {
    let truth = |key: &str| value(api, prefix, key, Expected::Bool, |node| node.as_bool().map(Ok));
    Ok(FileConfig {
        api_enabled: truth(key::API_ENABLED)?,
        interfaces: interfaces(api, prefix)?,
        socket_mode: word(api, prefix, "socketMode", Expected::Mode, parse_socket_mode)?,
        socket_group: word(api, prefix, "socketGroup", Expected::Group, parse_socket_group)?,
        port: value(api, prefix, "port", Expected::Port, |node| match node {
            Node::Plain(p) if p.bytes().all(|b| b.is_ascii_digit()) => p.parse().ok().map(Ok),
            _ => None,
        })?,
        auth_token_file: path(api, prefix, "authTokenFile")?,
        open_endpoints: texts(api, prefix, "open", Expected::Endpoints, parse_open_endpoint)?,
        allowed_hosts: texts(api, prefix, "allowedHosts", Expected::Hosts, parse_host)?,
        allow_unauthenticated: truth("allowUnauthenticated")?,
        ..FileConfig::default()
    })
}

/// Reads `interface` in `api`: one place to listen, or a list of them.
fn interfaces(api: &Entries, prefix: &str) -> Said<Option<Vec<Interface>>> {
    let read = |text: &str| parse_interface(text).map_err(|e| e.to_string());
    value(api, prefix, "interface", Expected::Address, |node| match node {
        Node::List(items) if items.len() > MAX_INTERFACES => {
            Some(Err(format!("{} places are too many: write at most {MAX_INTERFACES}", items.len())))
        }
        Node::List(_) => words(node).map(|words| words.iter().map(|word| read(word)).collect()),
        Node::Plain(_) if node.as_bool().is_some() || node.is_number() => None,
        Node::Plain(one) | Node::Text(one) => Some(read(one).map(|one| vec![one])),
        Node::Map(_) => None,
    })
}

/// A word that YAML may take for a number or a truth value.
fn word<T>(
    entries: &Entries,
    prefix: &str,
    key: &str,
    expected: Expected,
    convert: impl Fn(&str) -> Result<T>,
) -> Said<Option<T>> {
    value(entries, prefix, key, expected, |node| match node {
        Node::Plain(t) | Node::Text(t) => Some(convert(t).map_err(|e| e.to_string())),
        Node::List(_) | Node::Map(_) => None,
    })
}

/// Reads `schedule` in `backup`: one schedule, or a list of schedules.
fn schedules(backup: &Entries, prefix: &str) -> Said<Option<Vec<Schedule>>> {
    let place = format!("{prefix}schedule");
    match get(backup, prefix, "schedule")? {
        None => Ok(None),
        Some(Node::Map(only)) => Ok(Some(vec![schedule(only, &place)?])),
        Some(Node::List(items)) if items.len() > MAX_SCHEDULES => {
            Err(format!("key `{place}` has {} schedules: write at most {MAX_SCHEDULES}", items.len()))
        }
        Some(Node::List(items)) => {
            let read = |(n, item): (usize, &Rc<Node>)| match &**item {
                Node::Map(one) => schedule(one, &format!("{place}[{n}]")),
                other => Err(format!("key `{place}[{n}]` must be {}, found {}", Expected::Mapping, other.found())),
            };
            items.iter().enumerate().map(read).collect::<Said<_>>().map(Some)
        }
        Some(other) => Err(mismatch(prefix, "schedule", Expected::Schedules, other)),
    }
}

fn schedule(entries: &Entries, place: &str) -> Said<Schedule> {
    let prefix = format!("{place}.");
    known(entries, &prefix, SCHEDULE_KEYS, "", &[])?;
    let every = text(entries, &prefix, "every", Expected::Interval, parse_interval)?;
    let at = text(entries, &prefix, "at", Expected::Time, parse_time_of_day)?;
    let pact = value(entries, &prefix, "pact", Expected::Bool, |node| node.as_bool().map(Ok))?.unwrap_or(false);
    let jitter = text(entries, &prefix, "jitter", Expected::Interval, parse_interval)?.unwrap_or_default();
    Schedule::new(every, at, pact, jitter).map_err(|e| format!("key `{place}`: {e}"))
}

fn keep(backup: &Entries, prefix: &str) -> Said<KeepRules> {
    let Some(entries) = section(backup, prefix, "keep")? else { return Ok(KeepRules::default()) };
    let prefix = format!("{prefix}keep.");
    known(entries, &prefix, KEEP_KEYS, "", &[])?;
    let count = |key: &str| {
        value(entries, &prefix, key, Expected::Count, |node| match node {
            Node::Plain(text) => whole(text).map(Ok),
            _ => None,
        })
    };
    Ok(KeepRules { last: count("last")?, daily: count("daily")?, weekly: count("weekly")?, monthly: count("monthly")? })
}

fn hooks(backup: &Entries, prefix: &str) -> Said<FileHooks> {
    let Some(entries) = section(backup, prefix, "hooks")? else { return Ok(FileHooks::default()) };
    let prefix = format!("{prefix}hooks.");
    known(entries, &prefix, HOOK_KEYS, "", &[])?;
    let time_limit = seconds(entries, &prefix, "limitSeconds")?;
    if let Some(limit) = time_limit.filter(|limit| limit.is_zero() || *limit > MAX_TIME_LIMIT) {
        let most = MAX_TIME_LIMIT.as_secs();
        return Err(format!("key `{prefix}limitSeconds` is {}: write a number from 1 to {most}", limit.as_secs()));
    }
    Ok(FileHooks {
        before: commands(entries, &prefix, "before")?,
        on_verified: commands(entries, &prefix, "onVerified")?,
        after_success: commands(entries, &prefix, "afterSuccess")?,
        after_failure: commands(entries, &prefix, "afterFailure")?,
        time_limit,
    })
}

/// The commands at `key`: one list of words, or a list of such lists; an empty list is no command.
fn commands(entries: &Entries, prefix: &str, key: &str) -> Said<Option<Vec<Vec<String>>>> {
    value(entries, prefix, key, Expected::Commands, |node| {
        let Node::List(items) = node else { return None };
        let are_lists = items.iter().any(|item| matches!(&**item, Node::List(_)));
        let commands: Option<Vec<Vec<String>>> = match are_lists || items.is_empty() {
            true => items.iter().map(|item| words(item)).collect(),
            false => words(node).map(|words| vec![words]),
        };
        let commands = commands?;
        if commands.len() > MAX_COMMANDS {
            return Some(Err(format!("{} commands are too many: write at most {MAX_COMMANDS}", commands.len())));
        }
        let usable = commands.iter().try_for_each(|words| require_command(words).map_err(|e| e.to_string()));
        Some(usable.map(|()| commands))
    })
}

/// The words of a list; `None` if an item is not a word.
fn words(node: &Node) -> Option<Vec<String>> {
    let Node::List(items) = node else { return None };
    let word = |item: &Rc<Node>| match &**item {
        Node::Plain(text) | Node::Text(text) if !item.is_null() => Some(text.clone()),
        _ => None,
    };
    items.iter().map(word).collect()
}

/// Refuses a key that is not one of `keys`; `elsewhere` are keys that belong at `place`, a common mistake.
fn known(entries: &Entries, prefix: &str, keys: &[&str], place: &str, elsewhere: &[&str]) -> Said<()> {
    let Some((key, _)) = entries.iter().find(|(key, _)| !keys.contains(&key.as_str())) else { return Ok(()) };
    let full = quote(&format!("{prefix}{key}"));
    let remedy = if elsewhere.contains(&key.as_str()) {
        format!("it belongs at `{place}{key}`")
    } else if let Some(meant) = suggest(key, keys) {
        format!("did you mean `{meant}`?")
    } else {
        "remove it".to_string()
    };
    Err(format!("unknown key {full}: {remedy} (known here: {})", keys.join(", ")))
}

/// The node at `key`; a missing key and null are the same.
fn get<'a>(entries: &'a Entries, prefix: &str, key: &str) -> Said<Option<&'a Node>> {
    if entries.iter().any(|(k, _)| k == "<<") {
        return Err(format!("merge key `{prefix}<<` is not supported: write its keys out"));
    }
    let mut found = entries.iter().filter(|(k, _)| k == key).map(|(_, node)| &**node);
    let node = found.next();
    if found.next().is_some() {
        return Err(format!("key `{prefix}{key}` occurs twice: remove one"));
    }
    Ok(node.filter(|node| !node.is_null()))
}

fn section<'a>(entries: &'a Entries, prefix: &str, key: &str) -> Said<Option<&'a Entries>> {
    match get(entries, prefix, key)? {
        None => Ok(None),
        Some(Node::Map(entries)) => Ok(Some(entries)),
        Some(other) => Err(mismatch(prefix, key, Expected::Mapping, other)),
    }
}

/// Converts the node at `key`; `convert` returns `None` for a wrong type and an error for a wrong value.
fn value<T>(
    entries: &Entries,
    prefix: &str,
    key: &str,
    expected: Expected,
    convert: impl Fn(&Node) -> Option<Said<T>>,
) -> Said<Option<T>> {
    let Some(node) = get(entries, prefix, key)? else { return Ok(None) };
    let converted = convert(node).ok_or_else(|| mismatch(prefix, key, expected, node))?;
    converted.map(Some).map_err(|message| format!("key `{prefix}{key}`: {message}"))
}

fn seconds(entries: &Entries, prefix: &str, key: &str) -> Said<Option<Duration>> {
    value(entries, prefix, key, Expected::Seconds, |node| match node {
        Node::Plain(p) if node.as_bool().is_none() => Some(parse_seconds(p).map_err(|e| e.to_string())),
        Node::Text(t) if !node.is_quoted_scalar() => Some(parse_seconds(t).map_err(|e| e.to_string())),
        _ => None,
    })
}

fn text<T>(
    entries: &Entries,
    prefix: &str,
    key: &str,
    expected: Expected,
    convert: impl Fn(&str) -> Result<T>,
) -> Said<Option<T>> {
    match get(entries, prefix, key)? {
        Some(node) if node.as_bool().is_some() || node.is_number() => Err(mismatch(prefix, key, expected, node)),
        _ => word(entries, prefix, key, expected, convert),
    }
}

/// A list of texts.
fn texts<T>(
    entries: &Entries,
    prefix: &str,
    key: &str,
    expected: Expected,
    convert: impl Fn(&str) -> Result<T>,
) -> Said<Option<Vec<T>>> {
    value(entries, prefix, key, expected, |node| {
        let all = words(node)?;
        if all.len() > HOSTS_MAX {
            return Some(Err(format!("{} items are too many: write at most {HOSTS_MAX}", all.len())));
        }
        Some(all.iter().map(|text| convert(text).map_err(|e| e.to_string())).collect())
    })
}

fn path(entries: &Entries, prefix: &str, key: &str) -> Said<Option<PathBuf>> {
    text(entries, prefix, key, Expected::Path, |t| match t {
        "" => Err(Error::new(Kind::Usage, "the path is empty: write one, or null for the default")),
        _ => require_no_tilde(Path::new(t)).map(|()| PathBuf::from(t)),
    })
}

fn name(entries: &Entries, prefix: &str, key: &str) -> Said<Option<String>> {
    text(entries, prefix, key, Expected::Text, parse_name)
}

fn mismatch(prefix: &str, key: &str, expected: Expected, found: &Node) -> String {
    let remedy = match (found, expected) {
        (Node::Plain(_), Expected::Text | Expected::Path) => " (put it in quotes)",
        (_, Expected::Bool | Expected::Port | Expected::Seconds | Expected::Count) if found.is_quoted_scalar() => {
            " (remove the quotes)"
        }
        _ => "",
    };
    format!("key `{prefix}{key}` must be {expected}, found {}{remedy}", found.found())
}
