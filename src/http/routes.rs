//! The routes of the HTTP interface and their answers, in the words of the contract; no listening.
//!
//! Invariants
//! - Routing uses the raw URL; each segment and parameter is decoded once. An identifier becomes a [`BackupId`], or the answer
//!   is 404.
//! - Every answer has `x-peer-addr`, `x-server-timestamp` and `x-chainweb-node-version`, and the headers that keep other sites from using
//!   it in their pages.
//! - Nothing is answered to a request that the door does not let in, see `door`.
//! - For a path that is not ours the answer is `None`: the embedder's own routes work beside ours.
//! - A request with an unknown parameter or with a body is an error, because we would ignore it. Parameters go into the query.
//! - Nothing here touches a source or changes the catalog.

use std::io::{Cursor, Read};

use percent_encoding::percent_decode_str;
use rouille::{Request, Response, ResponseBody};

use crate::backups::details::Details;
use crate::chainweb::API_PREFIX;
use crate::clock::now_ms;
use crate::config::access::OpenEndpoint;
use crate::config::{Config, suggest};
use crate::error::{Error, Kind};
use crate::format::record::Scope;
use crate::http::accept;
use crate::http::door::{self, FromElsewhere, Refused, Room};
use crate::http::sockets::Peer;
use crate::id::BackupId;
use crate::service::Service;
use crate::service::answers::{Held, Page};
use crate::service::counters::OTHER_ENDPOINT;
use crate::service::listing::{MAX_PAGE_COUNT, PAGE_COUNT};
use crate::service::shared::MakeRequest;
use crate::service::status_page;

const TEXT: &str = "text/plain;charset=utf-8";
const JSON: &str = "application/json";

/// The content type that Prometheus asks for.
const METRICS: &str = "text/plain;version=0.0.4;charset=utf-8";

const HTML: &str = "text/html;charset=utf-8";

/// How much of a body is read: an empty JSON object with white space around it.
const BODY_BYTES: u64 = 1024;

/// How long a client that was refused should wait: by then the connections of slow clients are closed.
const RETRY_SECONDS: &str = "5";

/// No page of another site may have it as a script, an image or a frame, take it for another type, or tell its address; no cache keeps it.
const GUARDS: [(&str, &str); 5] = [
    ("X-Frame-Options", "DENY"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
];

/// The routes, as [`Service::handle`] serves them; the manual has the same list, which a test compares.
pub const ROUTES: [&str; 6] = [
    "POST /make-backup",
    "GET /check-backup/{backupId}",
    "GET /list-backups",
    "GET /health-check",
    "GET /metrics",
    "GET /status-page",
];

enum Route<'a> {
    Make,
    Check(&'a str),
    List,
    Health,
    Metrics,
    Page,
}

impl Service {
    /// Answers a request that is ours: the backup endpoints, `/health-check`, `/metrics` and `/status-page`, each also below
    /// `/chainweb/0.0/{chainwebVersion}`. `None` for every other path. Mount it in the node's own rouille server. A request that
    /// [`Config::access`](crate::Config) does not let in is answered, too: 421, 403 or 401.
    pub fn handle(&self, request: &Request) -> Option<Response> {
        let url = request.raw_url();
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        let route = self.route(path)?;
        // The same configuration lets a request in and answers it, whatever SIGHUP changes meanwhile.
        let config = self.shared().config();
        let response = refuse(&config, route.room(request), request)
            .unwrap_or_else(|| answer((self, &config), &route, request, query));
        self.shared().counters.requests.count(route.name(), response.status_code);
        Some(self.decorate(response, &request.remote_addr().to_string()))
    }

    /// The answer of a server without other routes for a path that [`Service::handle`] does not serve: the status page at `/`, 404 at
    /// every other path.
    pub fn not_found(&self, request: &Request) -> Response {
        let url = request.raw_url();
        let (room, route) = match url.split_once('?').unwrap_or((url, "")) {
            ("/", query) => (Route::Page.room(request), Some((Route::Page, query))),
            _ => (Room { open_as: None, from_elsewhere: FromElsewhere::Permitted }, None),
        };
        let config = self.shared().config();
        let response = refuse(&config, room, request).unwrap_or_else(|| match route {
            Some((page, query)) => answer((self, &config), &page, request, query),
            None => text(404, "no such endpoint"),
        });
        self.shared().counters.requests.count(OTHER_ENDPOINT, response.status_code);
        self.decorate(response, &request.remote_addr().to_string())
    }

    /// The answer of a server that has no other routes, to a client of our own [`Listener`](crate::Listener).
    pub fn answer(&self, request: &Request, peer: Peer) -> Response {
        let response = self.handle(request).unwrap_or_else(|| self.not_found(request));
        response.with_unique_header("x-peer-addr", peer.to_string())
    }

    /// Adds the three headers of the contract to a response that was made elsewhere, for example by a listener.
    pub fn decorate_for(&self, response: Response, peer: Peer) -> Response {
        self.shared().counters.requests.count(OTHER_ENDPOINT, response.status_code);
        self.decorate(response, &peer.to_string())
    }

    fn decorate(&self, response: Response, peer: &str) -> Response {
        let version = self.shared().config().node_version.clone().unwrap_or_else(|| "unknown".to_owned());
        let guarded =
            GUARDS.into_iter().fold(response, |response, (name, value)| response.with_unique_header(name, value));
        guarded
            .with_unique_header("x-peer-addr", peer.to_owned())
            .with_unique_header("x-server-timestamp", (now_ms() / 1000).to_string())
            .with_unique_header("x-chainweb-node-version", version)
    }

    fn route<'a>(&self, path: &'a str) -> Option<Route<'a>> {
        let bare = match path.strip_prefix(API_PREFIX) {
            None => path.strip_prefix('/')?,
            Some(rest) => {
                let (version, bare) = rest.split_once('/')?;
                let version = percent_decode_str(version).decode_utf8().ok()?;
                let config = self.shared().config();
                if version.is_empty() || config.chainweb_version.as_ref().is_some_and(|c| *c != version) {
                    return None;
                }
                bare
            }
        };
        match bare {
            "make-backup" => Some(Route::Make),
            "list-backups" => Some(Route::List),
            "health-check" => Some(Route::Health),
            "metrics" => Some(Route::Metrics),
            "status-page" => Some(Route::Page),
            _ => bare.strip_prefix("check-backup/").filter(|id| !id.contains('/')).map(Route::Check),
        }
    }
}

impl Route<'_> {
    /// The last part of its path, by which requests are counted.
    fn name(&self) -> &'static str {
        match self {
            Route::Make => "make-backup",
            Route::Check(_) => "check-backup",
            Route::List => "list-backups",
            Route::Health => "health-check",
            Route::Metrics => "metrics",
            Route::Page => "status-page",
        }
    }

    /// What the door must know of it.
    fn room(&self, request: &Request) -> Room {
        let (open_as, from_elsewhere) = match self {
            Route::Make | Route::List => (None, FromElsewhere::Refused),
            Route::Check(_) if wants_json(request) => (None, FromElsewhere::Refused),
            Route::Page => (None, FromElsewhere::Link),
            Route::Check(_) => (Some(OpenEndpoint::CheckBackup), FromElsewhere::Permitted),
            Route::Health => (Some(OpenEndpoint::HealthCheck), FromElsewhere::Permitted),
            Route::Metrics => (Some(OpenEndpoint::Metrics), FromElsewhere::Permitted),
        };
        Room { open_as, from_elsewhere }
    }

    fn parameters(&self) -> &'static [&'static str] {
        match self {
            Route::Make => &["backupPact"],
            Route::List => &["limit", "before"],
            Route::Check(_) | Route::Health | Route::Metrics | Route::Page => &[],
        }
    }
}

/// The answer to a request that is not let in.
fn refuse(config: &Config, room: Room, request: &Request) -> Option<Response> {
    let Refused { status, sentence, challenges } = door::refuse(&config.access, room, request)?;
    let with =
        |response: Response, challenge: &&'static str| response.with_additional_header("WWW-Authenticate", *challenge);
    Some(challenges.iter().fold(text(status, &sentence), with))
}

fn answer((service, config): (&Service, &Config), route: &Route, request: &Request, query: &str) -> Response {
    let is_api = matches!(route, Route::Make | Route::Check(_) | Route::List | Route::Page);
    if is_api && !config.api_enabled {
        return text(404, "the backup API is off; enable it with --enable-backup-api");
    }
    let post = matches!(route, Route::Make);
    let allowed: &[&str] = if post { &["POST"] } else { &["GET", "HEAD"] };
    if !allowed.contains(&request.method()) {
        let allow = allowed.join(", ");
        return text(405, &format!("use {}", allowed[0])).with_unique_header("Allow", allow);
    }
    let known = route.parameters();
    let parameters = match parse_query(query, known).and_then(|found| no_body(request, known).map(|()| found)) {
        Ok(parameters) => parameters,
        Err(sentence) => return text(400, &sentence),
    };
    match route {
        Route::Make => match backup_pact(&parameters) {
            Ok(backup_pact) => make(service, MakeRequest { backup_pact }),
            Err(sentence) => text(400, &sentence),
        },
        Route::Check(segment) => check((service, config), segment, request),
        Route::List => match page(&parameters) {
            Ok(page) => list(service, page),
            Err(sentence) => text(400, &sentence),
        },
        Route::Health => text(200, "Health check OK."),
        Route::Metrics => service.metrics().map_or_else(too_much, |held| shared(METRICS, held)),
        Route::Page => match service.status_page() {
            Ok(Some(held)) => shared(HTML, held).with_unique_header("Content-Security-Policy", status_page::policy()),
            Ok(None) => too_much(),
            Err(e) => failure(&e),
        },
    }
}

fn make(service: &Service, request: MakeRequest) -> Response {
    match service.make_backup(request) {
        Ok(id) => {
            let response = text(200, id.as_str());
            match service.status_and_scope(&id) {
                Ok(Some((_, scope))) => with_scope(response, scope),
                // The backup is already deleted, or its record cannot be read: the client still gets the identifier.
                Ok(None) | Err(_) => response,
            }
        }
        Err(e) => failure(&e),
    }
}

fn check((service, config): (&Service, &Config), segment: &str, request: &Request) -> Response {
    let decoded = percent_decode_str(segment).decode_utf8().ok();
    let Some(id) = decoded.and_then(|d| BackupId::parse(&d)) else { return text(404, "no such backup") };
    let (as_json, access) = (wants_json(request), &config.access);
    // Those without a token get the text.
    let is_open = !as_json && access.tokens.is_some() && access.open.contains(&OpenEndpoint::CheckBackup);
    let answer = if as_json {
        let held = |details: &Details| service.hold_json(details).map_or_else(too_much, |held| shared(JSON, held));
        service.details(&id).map(|found| found.map(|details| (held(&details), details.scope)))
    } else {
        service.status_and_scope(&id).map(|found| found.map(|(status, scope)| (text(200, status.word()), scope)))
    };
    match answer {
        Ok(Some((response, scope))) => with_scope(response, scope),
        Ok(None) => text(404, "no such backup"),
        // The reason tells paths.
        Err(_) if is_open => {
            text(500, "the status cannot be read: ask for application/json, with a token, for the reason")
        }
        Err(e) => failure(&e),
    }
}

fn wants_json(request: &Request) -> bool {
    let accept = request.headers().filter(|(name, _)| name.eq_ignore_ascii_case("Accept")).map(|(_, value)| value);
    accept::prefers_json(accept)
}

/// A page of the list; if more pages follow, `Link` has the next one.
fn list(service: &Service, page: Page) -> Response {
    let limit = page.limit;
    match service.page(page) {
        Ok(Some(held)) => {
            let next = held.more_before().map(|id| format!("<?limit={limit}&before={id}>; rel=\"next\""));
            let response = shared(JSON, held);
            match next {
                Some(next) => response.with_unique_header("Link", next),
                None => response,
            }
        }
        Ok(None) => too_much(),
        Err(e) => failure(&e),
    }
}

fn too_much() -> Response {
    text(503, "other clients do not read their long answers: try again later")
        .with_unique_header("Retry-After", RETRY_SECONDS)
}

fn with_scope(response: Response, scope: Scope) -> Response {
    response.with_unique_header("x-backup-scope", scope.word())
}

/// An error of the service as an answer; the status depends on the kind of the error.
fn failure(e: &Error) -> Response {
    let status = match e.kind() {
        Kind::Usage => 400,
        Kind::NotFound => 404,
        Kind::Busy | Kind::ShuttingDown | Kind::Cancelled => 503,
        Kind::NoSpace => 507,
        Kind::NotEmpty
        | Kind::NodeRunning
        | Kind::Refused
        | Kind::Changed
        | Kind::Damaged
        | Kind::Io
        | Kind::Database => 500,
    };
    text(status, &e.chain())
}

/// Decodes the parameters. An unknown parameter is an error that names the right one; a repeated parameter is an error, too.
fn parse_query(query: &str, known: &[&str]) -> Result<Vec<(String, String)>, String> {
    let mut parameters: Vec<(String, String)> = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (name, value) = (decode(name), decode(value));
        if !known.contains(&name.as_str()) {
            let remedy = match suggest(&name, known) {
                Some(right) => format!("did you mean {right}?"),
                None if known.is_empty() => "this endpoint has no parameters".to_owned(),
                None if known.len() == 1 => format!("the only parameter is {}", known[0]),
                None => format!("the parameters are {}", known.join(" and ")),
            };
            return Err(format!("unknown parameter {}: {remedy}", printable(&name)));
        }
        if parameters.iter().any(|(n, _)| *n == name) {
            return Err(format!("parameter {name} is given twice: give it once"));
        }
        parameters.push((name, value));
    }
    Ok(parameters)
}

/// Refuses a body, except an empty JSON object, which a known client sends with every request. A body that the embedder has
/// already read is ignored.
fn no_body(request: &Request, known: &[&str]) -> Result<(), String> {
    let Some(data) = request.data() else { return Ok(()) };
    let mut body = Vec::new();
    data.take(BODY_BYTES).read_to_end(&mut body).map_err(|e| format!("the body cannot be read: {e}"))?;
    let is_whole = (body.len() as u64) < BODY_BYTES;
    body.retain(|b| !b.is_ascii_whitespace());
    if is_whole && matches!(&body[..], b"" | b"{}") {
        return Ok(());
    }
    Err(match known.first() {
        Some(_) => format!("parameters go into the query: ?{}", known.join(", ?")),
        None => "send no body: this endpoint has no parameters".to_owned(),
    })
}

/// Which part of the list the parameters ask for.
fn page(parameters: &[(String, String)]) -> Result<Page, String> {
    let mut page = Page { limit: PAGE_COUNT, before: None };
    for (name, value) in parameters {
        let wrong = |remedy: &str| format!("parameter {name} cannot be {}: {remedy}", printable(value));
        if name == "limit" {
            let limit = value.parse().ok().filter(|limit| (1..=MAX_PAGE_COUNT).contains(limit));
            let is_number = value.bytes().all(|b| b.is_ascii_digit());
            page.limit = limit
                .filter(|_| is_number)
                .ok_or_else(|| wrong(&format!("use a number from 1 to {MAX_PAGE_COUNT}")))?;
        } else {
            page.before = Some(BackupId::parse(value).ok_or_else(|| wrong("use the id of a backup"))?);
        }
    }
    Ok(page)
}

fn backup_pact(parameters: &[(String, String)]) -> Result<bool, String> {
    let Some((name, value)) = parameters.first() else { return Ok(false) };
    match value.to_ascii_lowercase().as_str() {
        "" | "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(format!("parameter {name} cannot be {}: use true or false, or no value for true", printable(value))),
    }
}

/// Decodes a name or value. If it is not UTF-8, it gets replacement characters, which no known name has.
fn decode(encoded: &str) -> String {
    percent_decode_str(&encoded.replace('+', " ")).decode_utf8_lossy().into_owned()
}

/// A text from a client, for an answer: limited in length, quoted, without control characters.
fn printable(sent: &str) -> String {
    let short: String = sent.chars().take(64).collect();
    format!("{short:?}")
}

/// Plain text, without a trailing newline.
fn text(status: u16, body: &str) -> Response {
    respond(status, TEXT, body.to_owned())
}

/// A long answer, of which all clients share one copy.
fn shared(content_type: &'static str, held: Held) -> Response {
    let bytes = held.as_ref().len();
    Response {
        status_code: 200,
        headers: vec![("Content-Type".into(), content_type.into())],
        data: ResponseBody::from_reader_and_size(Cursor::new(held), bytes),
        upgrade: None,
    }
}

fn respond(status_code: u16, content_type: &'static str, body: String) -> Response {
    Response {
        status_code,
        headers: vec![("Content-Type".into(), content_type.into())],
        data: ResponseBody::from_string(body),
        upgrade: None,
    }
}
