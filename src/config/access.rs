//! Which clients may use the HTTP interface: the tokens, the endpoints that answer without one, and the names by which a client may
//! address it.
//!
//! Invariants
//! - No message has a token or a part of one, and of a token only its checksum is kept.
//! - A candidate is compared with every token, in a time that does not depend on how much of it is right.

use std::fmt;

use blake2b_simd::{Hash, blake2b};

use crate::config::tree::quote;
use crate::error::{Error, Kind, Result};

/// The length of a token: 16 random characters cannot be guessed over a network.
const TOKEN_CHARS_MIN: usize = 16;
const TOKEN_CHARS_MAX: usize = 4096;

/// How many tokens are valid at a time: two while one replaces another, and some clients.
const TOKENS_MAX: usize = 64;

/// The largest file of tokens: all of them, with comments.
pub(crate) const TOKEN_FILE_BYTES_MAX: u64 = 512 * 1024;

/// The longest name of a host (RFC 1035), and how many may be configured.
const HOST_CHARS_MAX: usize = 253;
pub(crate) const HOSTS_MAX: usize = 64;

/// Which clients may use the HTTP interface. The default is every client, by any name: a node that embeds the library decides by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// A request needs one of these tokens; `None`: it needs none.
    pub tokens: Option<Tokens>,
    /// The endpoints that answer without a token all the same.
    pub open: Vec<OpenEndpoint>,
    /// The names by which a client may address the service.
    pub hosts: Hosts,
}

/// An endpoint that may answer without a token. It tells no path, and starts nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenEndpoint {
    /// `check-backup`, as text; its JSON tells paths, and always needs a token.
    CheckBackup,
    /// `health-check`
    HealthCheck,
    /// `metrics`
    Metrics,
}

impl OpenEndpoint {
    /// The last part of its path.
    pub fn word(self) -> &'static str {
        match self {
            OpenEndpoint::CheckBackup => "check-backup",
            OpenEndpoint::HealthCheck => "health-check",
            OpenEndpoint::Metrics => "metrics",
        }
    }
}

/// The names that `Host` may have. A web page of an attacker, whose name was made to lead to this service (DNS rebinding), sends its
/// own name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Hosts {
    /// Any: another part of the server looks at it.
    #[default]
    Any,
    /// Addresses, `localhost`, names below `localhost`, and these; the case of letters does not matter, nor does the port.
    Only(Vec<String>),
}

/// The tokens of which a request needs one.
#[derive(Clone, PartialEq, Eq)]
pub struct Tokens(Vec<Hash>);

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokens({})", self.0.len())
    }
}

impl Tokens {
    /// Reads the text of a file of tokens: one in each line; an empty line, and one that begins with `#`, is ignored.
    ///
    /// # Errors
    /// [`Kind::Usage`]: there is none, there are too many, or a line is no token. The message has the number of the line, not its text.
    pub fn parse(text: &str) -> Result<Tokens> {
        let lines =
            text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let mut tokens = Vec::new();
        for (at, line) in lines {
            if !is_token(line) {
                return Err(usage(format!(
                    "line {} is no token: write {TOKEN_CHARS_MIN} to {TOKEN_CHARS_MAX} letters, digits and characters of -._~+/, with = at \
                     the end only, as `head -c 32 /dev/urandom | base64` prints them",
                    at + 1
                )));
            }
            if tokens.len() == TOKENS_MAX {
                return Err(usage(format!("it has more than {TOKENS_MAX} tokens: remove the old ones")));
            }
            tokens.push(blake2b(line.as_bytes()));
        }
        if tokens.is_empty() {
            let remedy = "write one, as `head -c 32 /dev/urandom | base64` prints it";
            return Err(usage(format!("it has no token: {remedy}")));
        }
        Ok(Tokens(tokens))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Whether this is one of them. It compares checksums, which takes the same time for any two, and leaves none out.
    pub(crate) fn has(&self, candidate: &[u8]) -> bool {
        let sum = blake2b(candidate);
        self.0.iter().fold(false, |found, token| found | (*token == sum))
    }
}

/// A bearer token (RFC 6750, 2.1).
fn is_token(line: &str) -> bool {
    let bare = line.trim_end_matches('=');
    (TOKEN_CHARS_MIN..=TOKEN_CHARS_MAX).contains(&line.len())
        && !bare.is_empty()
        && bare.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~+/".contains(&b))
}

/// Reads `check-backup`, `health-check` or `metrics`.
///
/// # Errors
/// [`Kind::Usage`] for anything else.
pub fn parse_open_endpoint(text: &str) -> Result<OpenEndpoint> {
    let all = [OpenEndpoint::CheckBackup, OpenEndpoint::HealthCheck, OpenEndpoint::Metrics];
    all.into_iter().find(|endpoint| endpoint.word() == text).ok_or_else(|| {
        let remedy = "use check-backup, health-check or metrics; all others always need a token";
        usage(format!("{} cannot be open: {remedy}", quote(text)))
    })
}

/// A name of a host, in lower case, without the dot that may end it.
///
/// # Errors
/// [`Kind::Usage`] for a URL, a port, a pattern, an address.
pub fn parse_host(text: &str) -> Result<String> {
    let wrong = |remedy: &str| Err(usage(format!("{} is no name of a host: {remedy}", quote(text))));
    if text.contains("://") {
        return wrong("write the name alone, without http:// and path");
    }
    if text.parse::<std::net::IpAddr>().is_ok() || text.starts_with('[') {
        return wrong("an address is always permitted, leave it out");
    }
    if text.contains(':') {
        return wrong("write it without the port, which is not compared");
    }
    match host_name(text) {
        Some(name) => Ok(name.to_ascii_lowercase()),
        None => wrong("write one like backup.example.org, with letters, digits, hyphens and dots; no patterns"),
    }
}

/// A name of a host without the dot that may end it; `None` if it can be none. Underscores are in names of containers.
pub(crate) fn host_name(text: &str) -> Option<&str> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let is_label =
        |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    (name.len() <= HOST_CHARS_MAX && name.split('.').all(is_label)).then_some(name)
}

fn usage(context: String) -> Error {
    Error::new(Kind::Usage, context)
}
