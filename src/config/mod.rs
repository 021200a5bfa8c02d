//! The configuration of a service, and the parsers of its values: the command line and configuration files share them.
//!
//! Pure functions over text.

pub(crate) mod access;
pub(crate) mod file;
pub(crate) mod hooks;
pub(crate) mod numbers;
pub(crate) mod schedule;
pub(crate) mod tree;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::chainweb::{DEFAULT_VERSION, key};
use crate::config::access::Access;
use crate::config::hooks::Hooks;
use crate::config::numbers::{unit_seconds, whole};
use crate::config::schedule::{Policy, Schedule};
use crate::config::tree::{QUOTE_CHARS_MAX, quote};
use crate::error::{Error, Kind, Result};

/// The longest version name: version names appear in HTTP headers, URLs and records.
const NAME_CHARS_MAX: usize = 128;

/// How long a job may make no progress, by default.
pub(crate) const STALL_LIMIT: Duration = Duration::from_secs(900);

/// The share of the files linked from an earlier backup that each run reads again, by default: in 25 daily backups all of them.
const REREAD_PERCENT: u8 = 4;

/// The reserve if none is configured: the smaller of this and a twentieth of the file system.
const DEFAULT_RESERVE_BYTES: u64 = 1024 * 1024 * 1024;

/// How the Pact databases are copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PactMethod {
    /// Makes an increment of the last good backup if the file system of the backups can share blocks (xfs, btrfs): only what has
    /// changed is written, and nothing is shared with the node's databases. Otherwise as `Copy`.
    #[default]
    Auto,
    /// Copies all bytes: takes space and time, and does not change the layout of the node's databases on the disk.
    Copy,
    /// Shares blocks with the node's databases if the file system can (xfs, btrfs), otherwise as `Copy`: takes no time and no space
    /// at first, but from then on the node's writes break its databases into many extents.
    Clone,
    /// Makes delta pairs, on every file system: a hard link to the database in an earlier backup, and a WAL with the pages that differ
    /// from it. Such a backup is read only in place; a restore makes ordinary files of it.
    Delta,
}

/// Reads `auto`, `copy`, `clone` or `delta`.
///
/// # Errors
/// [`Kind::Usage`] for anything else.
pub fn parse_pact_method(text: &str) -> Result<PactMethod> {
    match text {
        "auto" => Ok(PactMethod::Auto),
        "copy" => Ok(PactMethod::Copy),
        "clone" => Ok(PactMethod::Clone),
        "delta" => Ok(PactMethod::Delta),
        _ => Err(Error::new(
            Kind::Usage,
            format!("{} is not a way to copy Pact: use auto, copy, clone or delta", quote(text)),
        )),
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

/// How thoroughly a backup is verified.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Depth {
    /// Names, sizes, headers, and RocksDB's own list of files: in seconds.
    #[default]
    Quick,
    /// Every byte, at the speed of the disk.
    Deep,
}

impl Depth {
    /// Its word on the command line, in the configuration and in `verified.json`.
    pub fn word(self) -> &'static str {
        match self {
            Depth::Quick => "quick",
            Depth::Deep => "deep",
        }
    }
}

/// How a backup is verified before it is called done; `None`: it is not.
pub type Verify = Option<Depth>;

/// Reads `quick`, `deep` or `none`.
///
/// # Errors
/// [`Kind::Usage`] for anything else.
pub fn parse_verify(text: &str) -> Result<Verify> {
    let depths = [Depth::Quick, Depth::Deep];
    match (text, depths.into_iter().find(|depth| depth.word() == text)) {
        (_, Some(depth)) => Ok(Some(depth)),
        ("none", None) => Ok(None),
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
    /// Which clients may use the HTTP interface.
    pub access: Access,
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
    /// The most bytes that are copied per second; `None` is no limit. [`crate::Service::set_limit`] changes it, too.
    pub limit_bytes_per_second: Option<u64>,
    /// When the service makes backups by itself. A service [beside](crate::Service::start_beside) another one does not.
    pub schedules: Vec<Schedule>,
    /// The backups that are kept after each good one, as prune does; the default deletes none.
    pub keep: Policy,
    /// The commands that run around each backup.
    pub hooks: Hooks,
}

impl Config {
    /// The configuration with a backup directory and defaults for everything else: the API is off.
    pub fn new(backup_directory: impl Into<PathBuf>) -> Config {
        Config {
            backup_directory: backup_directory.into(),
            api_enabled: false,
            access: Access::default(),
            chainweb_version: None,
            node_version: None,
            reserve_bytes: None,
            heights_program: None,
            pact_method: PactMethod::default(),
            sums: Sums::default(),
            verify: Some(Depth::default()),
            reread_percent: REREAD_PERCENT,
            stall_limit: STALL_LIMIT,
            limit_bytes_per_second: None,
            schedules: Vec::new(),
            keep: Policy::default(),
            hooks: Hooks::default(),
        }
    }

    /// The names of the values that differ in another configuration, as they are in a configuration file.
    pub(crate) fn changed(&self, other: &Config) -> Vec<&'static str> {
        // Zero is no limit, too.
        let limit = |config: &Config| config.limit_bytes_per_second.unwrap_or(0);
        let differs = [
            ("backup.api.enabled", self.api_enabled != other.api_enabled),
            ("backup.api.authTokenFile", self.access.tokens != other.access.tokens),
            ("backup.api.open", self.access.open != other.access.open),
            ("backup.api.allowedHosts", self.access.hosts != other.access.hosts),
            (key::CHAINWEB_VERSION, self.chainweb_version != other.chainweb_version),
            ("backup.nodeVersion", self.node_version != other.node_version),
            ("backup.reserveBytes", self.reserve_bytes != other.reserve_bytes),
            ("backup.pactMethod", self.pact_method != other.pact_method),
            ("backup.sums", self.sums != other.sums),
            ("backup.verify", self.verify != other.verify),
            ("backup.rereadPercent", self.reread_percent != other.reread_percent),
            ("backup.stallSeconds", self.stall_limit != other.stall_limit),
            ("backup.limitBytesPerSecond", limit(self) != limit(other)),
            ("backup.schedule", self.schedules != other.schedules),
            ("backup.keep", self.keep != other.keep),
            ("backup.hooks", self.hooks != other.hooks),
        ];
        differs.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
    }
}

/// The free space, in bytes, that a backup leaves on a file system of `size_bytes`.
pub(crate) fn reserve_on(configured_bytes: Option<u64>, size_bytes: u64) -> u64 {
    configured_bytes.unwrap_or(DEFAULT_RESERVE_BYTES.min(size_bytes / 20))
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
    let factor = unit_seconds(&text[digits.len()..]);
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

/// The least important level that is logged: a word of the crate `log`, or the node's `quiet` for `off`; upper and lower case are the same.
///
/// # Errors
/// [`Kind::Usage`].
pub fn parse_log_level(text: &str) -> Result<log::LevelFilter> {
    let level = if text.eq_ignore_ascii_case("quiet") { Ok(log::LevelFilter::Off) } else { text.parse() };
    let remedy = "write error, warn, info, debug, trace or off";
    level.map_err(|_| Error::new(Kind::Usage, format!("{} is not a log level: {remedy}", quote(text))))
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

/// A place at which clients are accepted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Interface {
    /// An IP address; the port has its own setting.
    Ip(IpAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

/// Which users can connect to a Unix socket that we create.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketAccess {
    /// The mode of its file.
    pub mode: u32,
    /// The group of its file; `None` leaves the process's own.
    pub gid: Option<u32>,
}

impl SocketAccess {
    /// Only the user of the service, and root.
    pub const OWNER: SocketAccess = SocketAccess { mode: 0o600, gid: None };
}

/// The group of a socket: its name, or its number. Whether there is such a group is not asked.
///
/// # Errors
/// [`Kind::Usage`].
pub fn parse_socket_group(text: &str) -> Result<String> {
    if !text.is_empty() && !text.contains([':', '/']) && !text.contains(char::is_whitespace) {
        return Ok(text.to_owned());
    }
    Err(Error::new(Kind::Usage, format!("{} is not a group: write the name of one, or its number", quote(text))))
}

/// Where to listen: an IP address as [`parse_address`] takes it, or `unix:` and the path of a socket.
///
/// # Errors
/// [`Kind::Usage`].
pub fn parse_interface(text: &str) -> Result<Interface> {
    let Some(path) = text.strip_prefix("unix:") else { return parse_address(text).map(Interface::Ip) };
    let path = Path::new(path);
    require_no_tilde(path)?;
    let is_odd = text.ends_with('/') || text.contains(char::is_control);
    if !path.is_absolute() || path.file_name().is_none() || is_odd {
        let context =
            format!("{} is not a socket: write a whole path, like unix:/run/chainweb-backup.sock", quote(text));
        return Err(Error::new(Kind::Usage, context));
    }
    Ok(Interface::Unix(path.to_owned()))
}

/// The mode of a socket: three octal digits, like 660 or 0660. Its owner can always connect.
///
/// # Errors
/// [`Kind::Usage`].
pub fn parse_socket_mode(text: &str) -> Result<u32> {
    let bare = text.strip_prefix('0').filter(|bare| bare.len() == 3).unwrap_or(text);
    let mode = u32::from_str_radix(bare, 8).ok().filter(|mode| bare.len() == 3 && mode & 0o600 == 0o600);
    mode.ok_or_else(|| {
        let remedy = "write 600 for the user of the service, 660 for its group, too, or 666 for all";
        Error::new(Kind::Usage, format!("{} is not the mode of a socket: {remedy}", quote(text)))
    })
}

/// The address to listen on: an IP address, `localhost`, or the node's notation for all of them (`*`, `*4`, `*6`).
///
/// # Errors
/// [`Kind::Usage`].
pub fn parse_address(text: &str) -> Result<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    match text {
        "localhost" => Ok(Ipv4Addr::LOCALHOST.into()),
        "*" | "*4" => Ok(Ipv4Addr::UNSPECIFIED.into()),
        "*6" => Ok(Ipv6Addr::UNSPECIFIED.into()),
        _ => bare.parse().map_err(|_| {
            let remedy = "write one like 127.0.0.1 or ::1, `*` for all (the port has its own setting), or unix:PATH";
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
