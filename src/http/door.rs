//! Who is let in, before anything else of a request is looked at: by the name under which it came, by the site that sent it, by its token.
//!
//! 1. *Name.* A page of `evil.example`, whose name was made to lead to 127.0.0.1, is of the same origin as we for its browser. It sends
//!    its own name as `Host`: 421, unless that is an address, `localhost` or a configured name. The port is not compared: it may be that
//!    of a container or a tunnel. An HTTP/1.0 request without `Host` is of no browser.
//! 2. *Site.* What another site makes a browser send is 403 where it would start something or tell paths: browsers add the password of
//!    HTTP Basic to it. A person may follow a link of another site to the page.
//! 3. *Token.* As a bearer token (RFC 6750), or as the password of HTTP Basic, which every browser asks for. 401 without one.
//!
//! A site that cannot read an answer could still use it as a script, an image or a frame: the headers of each answer (`routes`) forbid that.
//!
//! Invariants: nothing here reads the body, the catalog or a file; no answer has a token.
//!
//! # Limitations
//! Browsers send `Sec-Fetch-Site` only to https and to addresses of the same host; elsewhere they send `Origin`, but not with a plain GET.

use std::borrow::Cow;
use std::net::{Ipv4Addr, Ipv6Addr};

use data_encoding::BASE64;
use rouille::Request;

use crate::config::access::{Access, Hosts, OpenEndpoint, host_name};

/// What is behind the door, as far as the door must know.
#[derive(Clone, Copy)]
pub(crate) struct Room {
    /// The name by which it may be open.
    pub(crate) open_as: Option<OpenEndpoint>,
    pub(crate) from_elsewhere: FromElsewhere,
}

/// What pages of other sites may have their browsers do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum FromElsewhere {
    /// Anything: the answer tells nothing, and they cannot read it.
    Permitted,
    /// Lead there by a link, not use it in themselves.
    Link,
    Refused,
}

/// The answer to a request that is not let in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) status: u16,
    pub(crate) sentence: Cow<'static, str>,
    /// Values of `WWW-Authenticate`.
    pub(crate) challenges: &'static [&'static str],
}

const BASIC: &str = "Basic realm=\"chainweb-backup\", charset=\"UTF-8\"";
const NO_TOKEN: [&str; 2] = ["Bearer realm=\"chainweb-backup\"", BASIC];
const WRONG_TOKEN: [&str; 2] = ["Bearer realm=\"chainweb-backup\", error=\"invalid_token\"", BASIC];

/// The answer, if a request is not let in.
pub(crate) fn refuse(access: &Access, room: Room, request: &Request) -> Option<Refused> {
    refuse_name(&access.hosts, request)
        .or_else(|| refuse_site(room.from_elsewhere, request))
        .or_else(|| refuse_stranger(access, room.open_as, request))
}

fn refused(status: u16, sentence: impl Into<Cow<'static, str>>) -> Option<Refused> {
    Some(Refused { status, sentence: sentence.into(), challenges: &[] })
}

/// The values of all headers of this name.
fn values<'a>(request: &'a Request, name: &'static str) -> impl Iterator<Item = &'a str> {
    request.headers().filter(move |(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

fn refuse_name(hosts: &Hosts, request: &Request) -> Option<Refused> {
    let Hosts::Only(names) = hosts else { return None };
    let mut sent = values(request, "Host");
    let host = sent.next()?;
    if sent.next().is_some() {
        return refused(400, "send one Host header");
    }
    match Host::parse(host) {
        None => refused(400, "the Host header is neither a name nor an address, with or without a port"),
        Some(Host::Address) => None,
        Some(Host::Name(name)) if is_local(name) || names.iter().any(|known| known.eq_ignore_ascii_case(name)) => None,
        Some(Host::Name(name)) => refused(
            421,
            format!(
                "this service does not answer under the name {name}: use its address or localhost, or permit the name with \
                 --allowed-host {name} if it is yours"
            ),
        ),
    }
}

/// The value of `Host`, without the port.
enum Host<'a> {
    Address,
    Name(&'a str),
}

impl Host<'_> {
    /// `None` if it is malformed.
    fn parse(value: &str) -> Option<Host<'_>> {
        if let Some(rest) = value.strip_prefix('[') {
            let (address, port) = rest.split_once(']')?;
            address.parse::<Ipv6Addr>().ok()?;
            return (port.is_empty() || is_port(port.strip_prefix(':')?)).then_some(Host::Address);
        }
        let (name, port) = value.split_once(':').unwrap_or((value, ""));
        if !is_port(port) {
            return None;
        }
        if name.parse::<Ipv4Addr>().is_ok() {
            return Some(Host::Address);
        }
        host_name(name).map(Host::Name)
    }
}

/// A port, or nothing, which is the usual one.
fn is_port(text: &str) -> bool {
    text.is_empty() || (text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok())
}

/// A name that every browser leads to its own host, whatever a name server says (RFC 6761, 6.3).
fn is_local(name: &str) -> bool {
    name.rsplit('.').next().is_some_and(|last| last.eq_ignore_ascii_case("localhost"))
}

fn refuse_site(from_elsewhere: FromElsewhere, request: &Request) -> Option<Refused> {
    let is_site = |site: &str| matches!(site, "same-origin" | "none");
    let other_site = values(request, "Sec-Fetch-Site").any(|site| !is_site(site));
    let other_origin = request.header("Origin").is_some_and(|origin| {
        let authority = origin.split_once("://").map_or(origin, |(_, authority)| authority);
        request.header("Host").is_none_or(|host| !host.eq_ignore_ascii_case(authority))
    });
    let is_refused = match from_elsewhere {
        FromElsewhere::Permitted => false,
        FromElsewhere::Link => other_origin || (other_site && !is_link(request)),
        FromElsewhere::Refused => other_origin || other_site,
    };
    if is_refused { refused(403, "requests from other web sites are refused") } else { None }
}

/// Whether a browser shows the answer in a tab of its own.
fn is_link(request: &Request) -> bool {
    let is = |name, value| request.header(name).is_some_and(|sent| sent == value);
    is("Sec-Fetch-Mode", "navigate") && is("Sec-Fetch-Dest", "document")
}

fn refuse_stranger(access: &Access, open_as: Option<OpenEndpoint>, request: &Request) -> Option<Refused> {
    let tokens = access.tokens.as_ref()?;
    if open_as.is_some_and(|endpoint| access.open.contains(&endpoint)) {
        return None;
    }
    let mut sent = values(request, "Authorization");
    let first = sent.next();
    if sent.next().is_some() {
        return refused(400, "send one Authorization header");
    }
    let (sentence, challenges) = match first.and_then(credential) {
        Some(candidate) if tokens.has(&candidate) => return None,
        Some(_) => ("the token is wrong", &WRONG_TOKEN),
        None => (
            "this needs a token: send the header Authorization: Bearer TOKEN, or the token as the password of HTTP Basic",
            &NO_TOKEN,
        ),
    };
    Some(Refused { status: 401, sentence: sentence.into(), challenges })
}

/// What is to be a token, in the value of `Authorization`; `None` for a scheme that we do not know.
fn credential(value: &str) -> Option<Cow<'_, [u8]>> {
    let (scheme, rest) = value.trim().split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("Bearer") {
        return Some(rest.as_bytes().into());
    }
    if !scheme.eq_ignore_ascii_case("Basic") {
        return None;
    }
    // What is no Base64 is a wrong token.
    let decoded = BASE64.decode(rest.as_bytes()).unwrap_or_default();
    let password = decoded.iter().position(|b| *b == b':').map_or(decoded.len(), |colon| colon + 1);
    Some(decoded[password..].to_vec().into())
}
