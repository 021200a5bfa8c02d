//! Heads of HTTP/1.1 messages for the listener: parses the head of a request, writes the head of a response.
//!
//! Invariants: only this file decides where a message begins and ends. An ambiguous request is refused, and no part of a response
//! can forge a header or a second response.

use std::io::Read;

use rouille::Response;

/// A status and its sentence: the last answer on a connection.
pub(crate) type Refusal = (u16, &'static str);

pub(crate) const TOO_LARGE: Refusal = (431, "the request line and the headers are too large or too many");
const VERSION: Refusal = (505, "only HTTP/1.0 and HTTP/1.1 are supported");

const HEADER_COUNT: usize = 64; // header lines of one request
const ONE_GO_BYTES: usize = 16 * 1024; // a body of this size goes with its head in one write

/// The head of a request.
pub(crate) struct Head {
    pub(crate) method: String,
    pub(crate) url: String, // path and query
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) length: usize, // bytes of the body
    pub(crate) expects: bool, // the client waits for our 100 before it sends the body
    pub(crate) keep_alive: bool,
}

/// Parses the head at the start of `bytes`, and returns its length, too; `None` while the head is incomplete.
pub(crate) fn parse(bytes: &[u8], body_bytes: usize) -> std::result::Result<Option<(Head, usize)>, Refusal> {
    let mut lines = [httparse::EMPTY_HEADER; HEADER_COUNT];
    let mut request = httparse::Request::new(&mut lines);
    let version = bytes.split(|b| *b == b' ').nth(2).unwrap_or_default();
    let used = match request.parse(bytes) {
        Ok(httparse::Status::Complete(used)) => used,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(TOO_LARGE),
        Err(httparse::Error::Version) if version.starts_with(b"HTTP/") => return Err(VERSION),
        Err(_) => return Err((400, "the request is not well-formed HTTP")),
    };
    let text = |h: &httparse::Header| (h.name.to_owned(), String::from_utf8_lossy(h.value).trim_ascii().to_owned());
    let mut headers: Vec<(String, String)> = request.headers.iter().map(text).collect();
    let values = |name: &'static str| {
        headers.iter().filter(move |(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    };
    let (hosts, current) = (values("Host").count(), request.version == Some(1));
    if hosts > 1 || (current && hosts == 0) {
        return Err((400, "an HTTP/1.1 request has one Host header"));
    }
    let (authority, url) =
        target(request.path.unwrap_or_default()).ok_or((400, "the target is neither a path nor an http URL"))?;
    if values("Transfer-Encoding").next().is_some() {
        return Err((411, "send the body with Content-Length instead of Transfer-Encoding"));
    }
    let length = match values("Content-Length").collect::<Vec<_>>()[..] {
        [] => 0,
        // A number that is too large for usize is also too large for a body.
        [digits] if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
            digits.parse().ok().filter(|length| *length <= body_bytes).ok_or((413, "the request body is too large"))?
        }
        _ => return Err((400, "Content-Length must be one decimal number")),
    };
    let expects = current && values("Expect").next().is_some();
    if expects && !values("Expect").all(|value| value.eq_ignore_ascii_case("100-continue")) {
        return Err((417, "the only expectation supported is 100-continue"));
    }
    let asks = |word| values("Connection").flat_map(|v| v.split(',')).any(|v| v.trim().eq_ignore_ascii_case(word));
    let keep_alive = !asks("close") && (current || asks("keep-alive"));
    if let Some(authority) = authority {
        // It is in the place of Host, whatever that says (RFC 9112, 3.2.2).
        headers.retain(|(key, _)| !key.eq_ignore_ascii_case("Host"));
        headers.push(("Host".to_owned(), authority.to_owned()));
    }
    let method = request.method.unwrap_or_default().to_owned();
    Ok(Some((Head { method, url, headers, length, expects, keep_alive }, used)))
}

/// The authority of a request target, if it is an absolute URL; its path and query.
fn target(target: &str) -> Option<(Option<&str>, String)> {
    let is_scheme = |scheme: &&str| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    let rest = ["http://", "https://"].iter().find(|scheme| is_scheme(scheme)).map(|scheme| &target[scheme.len()..]);
    let (authority, path) = match rest {
        Some(rest) => {
            let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
            (Some(authority), path)
        }
        None => (None, target),
    };
    let slash = if authority.is_some() && !path.starts_with('/') { "/" } else { "" };
    Some((authority, format!("{slash}{path}"))).filter(|(_, url)| url.starts_with('/'))
}

const REASONS: &str = "200 OK|400 Bad Request|401 Unauthorized|403 Forbidden|404 Not Found|405 Method Not Allowed|\
    408 Request Timeout|411 Length Required|413 Content Too Large|417 Expectation Failed|421 Misdirected Request|500 Internal Server Error|\
    431 Request Header Fields Too Large|503 Service Unavailable|505 HTTP Version Not Supported";

/// A response to be sent: its head, and a body that is read piece by piece while it is sent.
pub(crate) struct Outgoing {
    /// The head, and the body if it is small.
    first: Vec<u8>,
    body: Box<dyn Read + Send>,
    body_bytes: u64,
}

impl Outgoing {
    /// Gives all bytes to `write`, a piece at a time. `None` if that fails, or if the body is shorter than its head says.
    pub(crate) fn send(mut self, mut write: impl FnMut(&[u8]) -> Option<()>) -> Option<()> {
        write(&self.first)?;
        let mut chunk = [0; ONE_GO_BYTES];
        while self.body_bytes > 0 {
            let room = chunk.len().min(usize::try_from(self.body_bytes).unwrap_or(usize::MAX));
            let count = self.body.read(&mut chunk[..room]).ok().filter(|count| *count > 0)?;
            write(&chunk[..count])?;
            self.body_bytes -= count as u64;
        }
        Some(())
    }
}

/// What a response has around its content.
#[derive(Clone, Copy)]
pub(crate) struct Framing {
    /// Whether the body is sent; not in the answer to HEAD.
    pub(crate) with_body: bool,
    /// Whether the connection is kept.
    pub(crate) keep_alive: bool,
}

impl Framing {
    /// That of the last response on a connection.
    pub(crate) const LAST: Framing = Framing { with_body: true, keep_alive: false };
}

/// Prepares a response to be sent. Panics, as its handler might, if the response cannot be sent.
pub(crate) fn render(response: Response, Framing { with_body, keep_alive }: Framing) -> Outgoing {
    // Only the listener sets the framing headers, and a line break would forge a second response.
    let framing = ["connection", "content-length", "transfer-encoding"];
    let sent = |name: &str, value: &str| {
        !framing.contains(&&name.to_ascii_lowercase()[..]) && ![name, value].concat().contains(['\r', '\n', '\0'])
    };
    let status = response.status_code;
    assert!((200..1000).contains(&status) && !matches!(status, 204 | 304), "status {status} has no body");
    let code = format!("{status} ");
    let mut head = format!("HTTP/1.1 {}\r\n", REASONS.split('|').find(|r| r.starts_with(&code)).unwrap_or(&code));
    for (name, value) in response.headers.iter().filter(|(name, value)| sent(name, value)) {
        head += &format!("{name}: {value}\r\n");
    }
    if !response.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("Server")) {
        head += concat!("Server: chainweb-backup/", env!("CARGO_PKG_VERSION"), "\r\n");
    }
    let (mut body, size) = response.data.into_reader_and_size();
    let mut small = Vec::new();
    let body_bytes = match size {
        Some(bytes) if bytes > ONE_GO_BYTES => bytes,
        // A body of unknown length is read into memory: the listener does not support Transfer-Encoding.
        _ => body.read_to_end(&mut small).expect("a response body is in memory"),
    };
    head += &format!("Content-Length: {body_bytes}\r\n");
    head += if keep_alive { "Connection: keep-alive\r\n\r\n" } else { "Connection: close\r\n\r\n" };
    let mut first = head.into_bytes();
    let is_small = size.is_none_or(|bytes| bytes <= ONE_GO_BYTES);
    if with_body && is_small {
        first.append(&mut small);
    }
    let left_bytes = if with_body && !is_small { body_bytes as u64 } else { 0 };
    Outgoing { first, body, body_bytes: left_bytes }
}
