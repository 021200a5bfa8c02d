//! The configuration of a service, and the parser of configuration files.
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

pub(crate) mod tree;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use crate::chainweb::{DEFAULT_VERSION, key};
use crate::config::tree::{Entries, Node, QUOTE_CHARS_MAX, Said, quote, tree};
use crate::error::{Error, Kind, Result};

/// The longest version name: version names appear in HTTP headers, URLs and records.
const NAME_CHARS_MAX: usize = 128;

/// How long a job may make no progress, by default.
const STALL_LIMIT: Duration = Duration::from_secs(900);

const BACKUP_KEYS: &[&str] = &[
    key::BACKUP_API,
    key::BACKUP_DIRECTORY,
    "limitBytesPerSecond",
    "nodeVersion",
    "pactMethod",
    "rereadPercent",
    "reserveBytes",
    "stallSeconds",
    "sums",
    "verify",
];
const API_KEYS: &[&str] = &[key::API_ENABLED, "interface", "port", key::API_CONFIGURATION];

/// The share of the files linked from an earlier backup that each run reads again, by default: in 25 daily backups all of them.
const REREAD_PERCENT: u8 = 4;

/// How the Pact databases are copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PactMethod {
    /// Copies all bytes: takes space and time, and does not change the layout of the node's databases on the disk.
    #[default]
    Copy,
    /// Shares blocks if the file system can (xfs, btrfs), otherwise as `Copy`: takes no time and no space at first, but from
    /// then on the node's writes break its databases into many extents.
    Clone,
}

/// Reads `copy` or `clone`.
///
/// # Errors
/// [`Kind::Usage`] for anything else.
pub fn parse_pact_method(text: &str) -> Result<PactMethod> {
    match text {
        "copy" => Ok(PactMethod::Copy),
        "clone" => Ok(PactMethod::Clone),
        _ => Err(Error::new(Kind::Usage, format!("{} is not a way to copy Pact: use copy or clone", quote(text)))),
    }
}

/// Which `BLAKE2SUMS` the service writes by itself, after a backup and while no other backup is requested.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Sums {
    /// Those of directories without links to the node's files: always Pact, and RocksDB on another file system.
    #[default]
    Copied,
    /// Those of all directories.
    All,
    /// No checksums.
    None,
}

/// Reads `copied`, `all` or `none`.
///
/// # Errors
/// [`Kind::Usage`] for anything else.
pub fn parse_sums(text: &str) -> Result<Sums> {
    match text {
        "copied" => Ok(Sums::Copied),
        "all" => Ok(Sums::All),
        "none" => Ok(Sums::None),
        _ => Err(Error::new(
            Kind::Usage,
            format!("{} is not a choice of checksums: use copied, all or none", quote(text)),
        )),
    }
}

/// How a backup is verified before its status becomes done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Verify {
    /// Checks names, sizes, headers, and RocksDB's own list of files: takes seconds.
    #[default]
    Quick,
    /// Reads every byte, at the disk's speed.
    Deep,
    /// Does not verify.
    None,
}

/// Reads `quick`, `deep` or `none`.
///
/// # Errors
/// [`Kind::Usage`] for anything else.
pub fn parse_verify(text: &str) -> Result<Verify> {
    match text {
        "quick" => Ok(Verify::Quick),
        "deep" => Ok(Verify::Deep),
        "none" => Ok(Verify::None),
        _ => Err(Error::new(Kind::Usage, format!("{} is not a way to verify: use quick, deep or none", quote(text)))),
    }
}

/// The configuration of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The directory of the backups.
    pub backup_directory: PathBuf,
    /// Whether the backup endpoints answer; off by default. Health and metrics always answer.
    pub api_enabled: bool,
    /// The `{chainwebVersion}` of the URL prefix; `None` accepts any.
    pub chainweb_version: Option<String>,
    /// The node's version for `x-chainweb-node-version`; `None` is sent as `unknown`.
    pub node_version: Option<String>,
    /// Free space that a backup must leave; `None` is the smaller of 1 GiB and 5 % of the file system.
    pub reserve_bytes: Option<u64>,
    /// The program that reads a finished copy's heights, called as `program heights DIR`; `None` reads them in process.
    pub heights_program: Option<PathBuf>,
    /// How the Pact databases are copied.
    pub pact_method: PactMethod,
    /// Which `BLAKE2SUMS` the service writes by itself.
    pub sums: Sums,
    /// How a backup is verified before its status becomes done.
    pub verify: Verify,
    /// The share of the files linked from an earlier backup that each run reads again, in percent of their bytes; 0 reads none.
    pub reread_percent: u8,
    /// How long a job may make no progress before it fails; zero means without a limit.
    pub stall_limit: Duration,
    /// The most bytes that are copied per second; `None` is no limit. [`crate::Service::set_limit`] changes it.
    pub limit_bytes_per_second: Option<u64>,
}

impl Config {
    /// The configuration with a backup directory and defaults for everything else: the API is off.
    pub fn new(backup_directory: impl Into<PathBuf>) -> Config {
        Config {
            backup_directory: backup_directory.into(),
            api_enabled: false,
            chainweb_version: None,
            node_version: None,
            reserve_bytes: None,
            heights_program: None,
            pact_method: PactMethod::default(),
            sums: Sums::default(),
            verify: Verify::default(),
            reread_percent: REREAD_PERCENT,
            stall_limit: STALL_LIMIT,
            limit_bytes_per_second: None,
        }
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
    /// `backup.api.interface`; never the node's `serviceApi.interface`
    pub interface: Option<IpAddr>,
    /// `backup.api.port`; never the node's `serviceApi.port`
    pub port: Option<u16>,
    /// `backup.nodeVersion`
    pub node_version: Option<String>,
    /// `backup.reserveBytes`
    pub reserve_bytes: Option<u64>,
    /// `backup.pactMethod`.
    pub pact_method: Option<PactMethod>,
    /// `backup.sums`
    pub sums: Option<Sums>,
    /// `backup.verify`
    pub verify: Option<Verify>,
    /// `backup.rereadPercent`
    pub reread_percent: Option<u8>,
    /// `backup.stallSeconds`
    pub stall_limit: Option<Duration>,
    /// `backup.limitBytesPerSecond`
    pub limit_bytes_per_second: Option<u64>,
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
            interface: self.interface.or(other.interface),
            port: self.port.or(other.port),
            node_version: self.node_version.or(other.node_version),
            reserve_bytes: self.reserve_bytes.or(other.reserve_bytes),
            pact_method: self.pact_method.or(other.pact_method),
            sums: self.sums.or(other.sums),
            verify: self.verify.or(other.verify),
            reread_percent: self.reread_percent.or(other.reread_percent),
            stall_limit: self.stall_limit.or(other.stall_limit),
            limit_bytes_per_second: self.limit_bytes_per_second.or(other.limit_bytes_per_second),
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

/// A number of bytes, plain or with a unit: `1000000`, `500MB`, `10 GiB`.
pub fn parse_size(text: &str) -> Result<u64> {
    const UNITS: [(&str, u64); 10] = [
        ("", 1),
        ("b", 1),
        ("kb", 1_000),
        ("mb", 1_000_000),
        ("gb", 1_000_000_000),
        ("tb", 1_000_000_000_000),
        ("kib", 1 << 10),
        ("mib", 1 << 20),
        ("gib", 1 << 30),
        ("tib", 1 << 40),
    ];
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = text[digits.len()..].trim().to_ascii_lowercase();
    let factor = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
    whole::<u64>(digits).zip(factor).and_then(|(count, factor)| count.checked_mul(factor)).ok_or_else(|| {
        let remedy = "write whole bytes, or a whole number with kB, MB, GB, TB, KiB, MiB, GiB or TiB, like 10GiB";
        Error::new(Kind::Usage, format!("{} is not a size: {remedy}", quote(text)))
    })
}

/// A number of seconds.
///
/// # Errors
/// [`Kind::Usage`] for anything else; if the text has a unit, the message names the number of seconds.
pub fn parse_seconds(text: &str) -> Result<Duration> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let factor = match text[digits.len()..].trim().to_ascii_lowercase().as_str() {
        "s" | "sec" | "second" | "seconds" => Some(1),
        "m" | "min" | "minute" | "minutes" => Some(60),
        "h" | "hour" | "hours" => Some(3600),
        "d" | "day" | "days" => Some(86_400),
        _ => None,
    };
    if let Some(seconds) = whole::<u64>(text) {
        return Ok(Duration::from_secs(seconds));
    }
    let meant = whole::<u64>(digits).zip(factor).and_then(|(count, factor)| count.checked_mul(factor));
    let remedy = meant.map_or_else(|| "write a whole number like 900".to_owned(), |seconds| format!("write {seconds}"));
    Err(Error::new(Kind::Usage, format!("{} is not a number of seconds: {remedy}", quote(text))))
}

/// How many backups a rule keeps.
///
/// # Errors
/// [`Kind::Usage`] for anything but a whole number.
pub fn parse_count(text: &str) -> Result<u32> {
    let context = || format!("{} is not a number of backups: write a whole number like 7, or 0 for none", quote(text));
    whole(text).ok_or_else(|| Error::new(Kind::Usage, context()))
}

/// A port to listen on.
///
/// # Errors
/// [`Kind::Usage`] for anything but a number from 0 to 65535.
pub fn parse_port(text: &str) -> Result<u16> {
    let context = || format!("{} is not a port: write a number from 0 to 65535, 0 for any that is free", quote(text));
    whole(text).ok_or_else(|| Error::new(Kind::Usage, context()))
}

/// Parses digits only: `parse` alone would accept a leading `+`, too.
fn whole<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Refuses a path that begins with `~`: a shell replaces it by the home directory, but not in a file or in `--flag=~/x`.
///
/// # Errors
/// [`Kind::Usage`].
pub fn require_no_tilde(path: &Path) -> Result<()> {
    if !path.as_os_str().as_encoded_bytes().starts_with(b"~") {
        return Ok(());
    }
    let shown = path.to_string_lossy();
    let remedy = format!("write the whole path, or ./{shown} for a name that begins with ~");
    Err(Error::new(Kind::Usage, format!("{} begins with ~, which only a shell replaces: {remedy}", quote(&shown))))
}

/// The address to listen on: an IP address, `localhost`, or the node's notation for all of them (`*`, `*4`, `*6`).
pub fn parse_interface(text: &str) -> Result<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    match text {
        "localhost" => Ok(Ipv4Addr::LOCALHOST.into()),
        "*" | "*4" => Ok(Ipv4Addr::UNSPECIFIED.into()),
        "*6" => Ok(Ipv6Addr::UNSPECIFIED.into()),
        _ => bare.parse().map_err(|_| {
            let remedy = "write one like 127.0.0.1 or ::1, or `*` for all (the port has its own setting)";
            Error::new(Kind::Usage, format!("{} is not an IP address: {remedy}", quote(text)))
        }),
    }
}

/// A version name for an HTTP header, a URL and a log line: printable ASCII without blanks and slashes.
pub fn parse_name(text: &str) -> Result<String> {
    if !text.is_empty() && text.len() <= NAME_CHARS_MAX && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/') {
        return Ok(text.to_string());
    }
    let remedy = format!(
        "write 1 to {NAME_CHARS_MAX} printable ASCII characters without blanks and slashes, like {DEFAULT_VERSION} or 2.31.1"
    );
    Err(Error::new(Kind::Usage, format!("{} is not a version: {remedy}", quote(text))))
}

/// The known word that was probably meant. Case and separators are ignored. Recognised are a beginning or an end of a known
/// word, a known word with something added, and a few wrong letters (at most one in three).
pub fn suggest<'a>(typed: &str, known: &[&'a str]) -> Option<&'a str> {
    fn letters(word: &str) -> String {
        word.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
    }
    /// Whether one is a beginning or an end of the other; two letters are too few.
    fn part(a: &str, b: &str) -> bool {
        let (short, long) = if a.len() < b.len() { (a, b) } else { (b, a) };
        short.len() >= 3 && (long.starts_with(short) || long.ends_with(short))
    }
    // Limits the work on text from outside: computing the distance takes the product of both lengths.
    if typed.len() > QUOTE_CHARS_MAX {
        return None;
    }
    let typed = letters(typed);
    let candidates = known.iter().filter_map(|&word| {
        let letters = letters(word);
        let distance = strsim::osa_distance(&typed, &letters);
        let limit = (typed.chars().count().max(letters.chars().count()) / 3).max(1);
        let close = distance <= limit && distance < letters.chars().count();
        (close || part(&typed, &letters)).then_some((!close, distance, word))
    });
    candidates.min_by_key(|&(far, distance, _)| (far, distance)).map(|(_, _, word)| word)
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
    known(backup, &prefix, BACKUP_KEYS, "api.", API_KEYS)?;
    let api = section(backup, &prefix, key::BACKUP_API)?.unwrap_or(&[]);
    let api_prefix = format!("{prefix}api.");
    known(api, &api_prefix, API_KEYS, "../", BACKUP_KEYS)?;
    let size = |key: &str| {
        value(backup, &prefix, key, "a number of bytes, or a size like 10GiB", |node| match node {
            Node::Plain(t) | Node::Text(t) if node.as_bool().is_none() => {
                Some(parse_size(t).map_err(|e| e.to_string()))
            }
            _ => None,
        })
    };
    Ok(FileConfig {
        backup_directory: path(backup, &prefix, key::BACKUP_DIRECTORY)?,
        node_version: name(backup, &prefix, "nodeVersion")?,
        pact_method: text(backup, &prefix, "pactMethod", "copy or clone", parse_pact_method)?,
        sums: text(backup, &prefix, "sums", "copied, all or none", parse_sums)?,
        verify: text(backup, &prefix, "verify", "quick, deep or none", parse_verify)?,
        reserve_bytes: size("reserveBytes")?,
        limit_bytes_per_second: size("limitBytesPerSecond")?,
        reread_percent: value(backup, &prefix, "rereadPercent", "a whole number from 0 to 100", |node| match node {
            Node::Plain(p) if p.bytes().all(|b| b.is_ascii_digit()) => p.parse().ok().filter(|p| *p <= 100).map(Ok),
            _ => None,
        })?,
        stall_limit: value(backup, &prefix, "stallSeconds", "a number of seconds", |node| match node {
            Node::Plain(p) if node.as_bool().is_none() => Some(parse_seconds(p).map_err(|e| e.to_string())),
            Node::Text(t) if !node.is_quoted_scalar() => Some(parse_seconds(t).map_err(|e| e.to_string())),
            _ => None,
        })?,
        api_enabled: value(api, &api_prefix, key::API_ENABLED, "true or false", |node| node.as_bool().map(Ok))?,
        interface: text(api, &api_prefix, "interface", "an IP address", parse_interface)?,
        port: value(api, &api_prefix, "port", "a port number from 0 to 65535", |node| match node {
            Node::Plain(p) if p.bytes().all(|b| b.is_ascii_digit()) => p.parse().ok().map(Ok),
            _ => None,
        })?,
        ..FileConfig::default()
    })
}

/// Refuses a key that is not one of `keys`; `elsewhere` are keys that belong at `place`, a common mistake.
fn known(entries: &Entries, prefix: &str, keys: &[&str], place: &str, elsewhere: &[&str]) -> Said<()> {
    let Some((key, _)) = entries.iter().find(|(key, _)| !keys.contains(&key.as_str())) else { return Ok(()) };
    let full = quote(&format!("{prefix}{key}"));
    let remedy = if elsewhere.contains(&key.as_str()) {
        let place =
            if place == "../" { prefix.trim_end_matches("api.").to_string() } else { format!("{prefix}{place}") };
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
        Some(other) => Err(mismatch(prefix, key, "a mapping", other)),
    }
}

/// Converts the node at `key`; `convert` returns `None` for a wrong type and an error for a wrong value.
fn value<T>(
    entries: &Entries,
    prefix: &str,
    key: &str,
    expected: &str,
    convert: impl Fn(&Node) -> Option<Said<T>>,
) -> Said<Option<T>> {
    let Some(node) = get(entries, prefix, key)? else { return Ok(None) };
    let converted = convert(node).ok_or_else(|| mismatch(prefix, key, expected, node))?;
    converted.map(Some).map_err(|message| format!("key `{prefix}{key}`: {message}"))
}

fn text<T>(
    entries: &Entries,
    prefix: &str,
    key: &str,
    expected: &str,
    convert: impl Fn(&str) -> Result<T>,
) -> Said<Option<T>> {
    value(entries, prefix, key, expected, |node| match node {
        Node::Plain(_) if node.as_bool().is_some() || node.is_number() => None,
        Node::Plain(t) | Node::Text(t) => Some(convert(t).map_err(|e| e.to_string())),
        Node::List | Node::Map(_) => None,
    })
}

fn path(entries: &Entries, prefix: &str, key: &str) -> Said<Option<PathBuf>> {
    text(entries, prefix, key, "a path", |t| match t {
        "" => Err(Error::new(Kind::Usage, "the path is empty: write one, or null for the default")),
        _ => require_no_tilde(Path::new(t)).map(|()| PathBuf::from(t)),
    })
}

fn name(entries: &Entries, prefix: &str, key: &str) -> Said<Option<String>> {
    text(entries, prefix, key, "a text", parse_name)
}

fn mismatch(prefix: &str, key: &str, expected: &str, found: &Node) -> String {
    let remedy = match (found, expected) {
        (Node::Plain(_), "a text" | "a path") => " (put it in quotes)",
        (_, "true or false" | "a port number from 0 to 65535" | "a number of seconds") if found.is_quoted_scalar() => {
            " (remove the quotes)"
        }
        _ => "",
    };
    format!("key `{prefix}{key}` must be {expected}, found {}{remedy}", found.found())
}
