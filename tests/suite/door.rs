//! The front door: names under which a request came, sites that sent it, tokens; and the file of the tokens.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use chainweb_backup::rouille::Request;
use chainweb_backup::{Access, Hosts, Kind, OpenEndpoint, Service, Tokens, read_tokens};
use data_encoding::BASE64;
use proptest::prelude::*;

use crate::fixture::{Answer, Node, ROCKSDB, call, make_done, names, scratch, skip};

const FIRST: &str = "first-token-0123456789";
const SECOND: &str = "c2Vjb25kIHRva2VuIG9mIHRoZSB0ZXN0+/==";

/// A service with this door.
fn start(node: &Node, access: Access) -> Service {
    let mut config = node.config();
    config.access = access;
    Service::start(config, node.embedded()).unwrap()
}

fn tokens() -> Option<Tokens> {
    Some(Tokens::parse(&format!("{FIRST}\n{SECOND}\n")).unwrap())
}

fn ask(service: &Service, method: &str, url: &str, headers: &[(&str, &str)]) -> Answer {
    call(service, method, url, headers).unwrap_or_else(|| panic!("{method} {url} is not a path of ours"))
}

/// The answer of a server without other routes.
fn not_found(service: &Service, url: &str, headers: &[(&str, &str)]) -> Answer {
    let headers = headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let peer = "10.36.1.3:42988".parse().unwrap();
    Answer::from(service.not_found(&Request::fake_http_from(peer, "GET", url, headers, Vec::new())))
}

/// Fails unless a refusal has the three headers of the contract, and is text.
fn check(answer: &Answer) {
    for name in ["x-peer-addr", "x-server-timestamp", "x-chainweb-node-version"] {
        assert!(answer.header(name).is_some(), "no {name} in {answer:?}");
    }
    assert_eq!(answer.header("Content-Type"), Some("text/plain;charset=utf-8"), "{answer:?}");
    assert!(!answer.body.contains(char::is_control) && answer.body.len() < 600, "{answer:?}");
}

fn challenges(answer: &Answer) -> Vec<&str> {
    answer.headers.iter().filter(|(name, _)| name == "WWW-Authenticate").map(|(_, value)| value.as_str()).collect()
}

#[test]
fn a_name_that_is_not_ours_is_421() {
    let node = Node::new();
    let own = Hosts::Only(vec!["backup.example.org".to_owned(), "sidecar".to_owned()]);
    let service = start(&node, Access { hosts: own, ..Access::default() });
    let good = [
        "127.0.0.1",
        "127.0.0.1:1849",
        // An empty port is one that is left out.
        "127.0.0.1:",
        "10.1.2.3:65535",
        "[::1]",
        "[::1]:1849",
        "[fe80::1]:",
        "[::ffff:10.0.0.1]:80",
        "localhost",
        "LocalHost:1849",
        "localhost.:1849",
        "a.localhost",
        "a.b.localhost:80",
        "backup.example.org",
        "BACKUP.example.ORG:8443",
        "backup.example.org.:443",
        "sidecar:1849",
    ];
    let foreign = [
        "evil.example",
        "evil.example:1849",
        "127.0.0.1.evil.example",
        "localhost.evil.example:1849",
        "notlocalhost",
        "local-host",
        "backup.example.org.evil.example",
        "xbackup.example.org",
        "a.backup.example.org",
        "example.org",
        "sidecar.evil.example",
        "2130706433",
        "127.1",
        "0x7f.0.0.1",
        "127.0.0.256",
    ];
    let malformed = [
        "",
        ":1849",
        "localhost:x",
        "localhost:65536",
        "localhost:-1",
        "localhost:80:80",
        "localhost:80 ",
        "::1",
        "[::1",
        "[::1]1849",
        "[::1]:x",
        "[127.0.0.1]",
        "[localhost]",
        "[]",
        "user@localhost",
        "localhost/",
        "localhost,localhost",
        "local host",
        "..",
        "localhost..",
        "\u{e9}",
        "a\0b",
    ];
    let urls = ["/health-check", "/metrics", "/list-backups", "/status-page", "/chainweb/0.0/mainnet01/check-backup/1"];
    for (hosts, wanted) in [(&good[..], 0), (&foreign[..], 421), (&malformed[..], 400)] {
        for host in hosts {
            for url in urls {
                let answer = ask(&service, "GET", url, &[("host", host)]);
                let is_let_in = [200, 404].contains(&answer.status);
                assert!(answer.status == wanted || (wanted == 0 && is_let_in), "{host:?} {url}: {answer:?}");
                if wanted != 0 {
                    check(&answer);
                }
            }
            let posted = ask(&service, "POST", "/make-backup?x", &[("Host", host)]);
            assert_eq!(posted.status, if wanted == 0 { 400 } else { wanted }, "{host:?}: {posted:?}");
            let unknown = not_found(&service, "/nosuch", &[("Host", host)]);
            assert_eq!(unknown.status, if wanted == 0 { 404 } else { wanted }, "{host:?}: {unknown:?}");
        }
    }
    let answer = ask(&service, "GET", "/list-backups", &[("Host", "evil.example:1849")]);
    assert!(
        answer.body.contains("name evil.example:") && answer.body.contains("--allowed-host evil.example"),
        "{answer:?}"
    );
    let two = ask(&service, "GET", "/health-check", &[("Host", "localhost"), ("HOST", "evil.example")]);
    assert_eq!(two.status, 400, "{two:?}");
    assert_eq!(ask(&service, "GET", "/health-check", &[]).status, 200, "an HTTP/1.0 request needs no Host");
    // A page of evil.example, whose name leads here, is of the same origin for its browser.
    let rebound = [("Host", "evil.example"), ("Origin", "http://evil.example"), ("Sec-Fetch-Site", "same-origin")];
    assert_eq!(ask(&service, "POST", "/make-backup", &rebound).status, 421);
    service.finish();
    assert_eq!(names(&node.backups()), [".lock", ".service"]);

    // An embedder's server has its own names.
    let node = Node::new();
    let service = node.start();
    assert_eq!(ask(&service, "GET", "/list-backups", &[("Host", "node.example:1848")]).status, 200);
}

#[test]
fn a_page_of_another_site_reads_nothing_that_tells_paths() {
    let node = Node::new();
    let service = node.start();
    let id = make_done(&service, ROCKSDB);
    let json = format!("/check-backup/{id}");
    let accept = ("Accept", "application/json");
    let elsewhere: [&[(&str, &str)]; 5] = [
        &[("Origin", "http://evil.example"), ("Host", "localhost:1849")],
        &[("Origin", "null"), ("Host", "localhost:1849")],
        &[("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "no-cors"), ("Sec-Fetch-Dest", "script")],
        &[("Sec-Fetch-Site", "same-site"), ("Sec-Fetch-Mode", "cors"), ("Sec-Fetch-Dest", "empty")],
        &[("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "iframe")],
    ];
    for headers in elsewhere {
        for url in ["/list-backups", "/status-page", &json] {
            for method in ["GET", "HEAD"] {
                let with = [headers, &[accept]].concat();
                let answer = ask(&service, method, url, &with);
                assert_eq!(answer.status, 403, "{method} {url} {with:?}: {answer:?}");
                check(&answer);
            }
        }
        assert_eq!(not_found(&service, "/", headers).status, 403, "{headers:?}");
        // These tell nothing but what they are asked for, and no page can read them.
        for url in ["/health-check", "/metrics", &json] {
            assert_eq!(ask(&service, "GET", url, headers).status, 200, "{url} {headers:?}");
        }
    }
    let link = [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document")];
    assert_eq!(ask(&service, "GET", "/status-page", &link).status, 200, "a person follows a link");
    assert_eq!(not_found(&service, "/", &link).status, 200);
    assert_eq!(ask(&service, "GET", "/list-backups", &link).status, 403);
    assert_eq!(ask(&service, "POST", "/make-backup", &link).status, 403, "a form of another site");
    let own: [&[(&str, &str)]; 3] = [
        &[],
        &[("Sec-Fetch-Site", "none"), ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document")],
        &[("Sec-Fetch-Site", "same-origin"), ("Origin", "https://localhost:1849"), ("Host", "LOCALHOST:1849")],
    ];
    for headers in own {
        for url in ["/list-backups", "/status-page", &json] {
            assert_eq!(ask(&service, "GET", url, &[headers, &[accept]].concat()).status, 200, "{url} {headers:?}");
        }
    }
    for url in ["/list-backups", "/status-page", "/health-check", "/check-backup/x", "/make-backup"] {
        let answer = ask(&service, "GET", url, &[]);
        for (name, value) in [
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cache-Control", "no-store"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{url}: {answer:?}");
        }
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64.encode(format!("{user}:{password}").as_bytes()))
}

#[test]
fn without_a_token_only_what_is_open_answers() {
    let node = Node::new();
    let service = node.start();
    let id = make_done(&service, ROCKSDB);
    drop(service);
    let check_url = format!("/check-backup/{id}");
    let all = [OpenEndpoint::CheckBackup, OpenEndpoint::HealthCheck, OpenEndpoint::Metrics];
    for open in [&[][..], &all[1..2], &all[2..], &all[..1], &all[..]] {
        let service = start(&node, Access { tokens: tokens(), open: open.to_vec(), ..Access::default() });
        let is_open = |endpoint: OpenEndpoint| open.contains(&endpoint);
        for (method, url, accept, free) in [
            ("GET", "/health-check", "*/*", is_open(OpenEndpoint::HealthCheck)),
            ("HEAD", "/chainweb/0.0/mainnet01/health-check", "*/*", is_open(OpenEndpoint::HealthCheck)),
            ("GET", "/metrics", "*/*", is_open(OpenEndpoint::Metrics)),
            ("GET", check_url.as_str(), "*/*", is_open(OpenEndpoint::CheckBackup)),
            ("GET", check_url.as_str(), "application/json", false),
            ("GET", "/list-backups", "*/*", false),
            ("GET", "/status-page", "*/*", false),
            ("GET", "/list-backups?x", "*/*", false),
            ("DELETE", "/make-backup", "*/*", false),
        ] {
            let answer = ask(&service, method, url, &[("Accept", accept)]);
            assert_eq!(answer.status == 401, !free, "{method} {url} {accept}, open: {open:?}: {answer:?}");
            let with = [("Accept", accept), ("Authorization", "Bearer first-token-0123456789")];
            let answer = ask(&service, method, url, &with);
            assert!([200, 400, 405].contains(&answer.status), "{method} {url} {accept}: {answer:?}");
        }
        for url in ["/", "/nosuch"] {
            let answer = not_found(&service, url, &[]);
            assert_eq!(answer.status, 401, "{url}: {answer:?}");
            let answer = not_found(&service, url, &[("Authorization", &basic("", SECOND))]);
            assert_ne!(answer.status, 401, "{url}: {answer:?}");
        }
        let before = names(&node.backups());
        assert_eq!(ask(&service, "POST", "/make-backup", &[]).status, 401);
        assert_eq!(names(&node.backups()), before, "a refused request has made something");
    }
    // With the API off these two answer, to those who have the token.
    let mut config = node.config();
    (config.api_enabled, config.access.tokens) = (false, tokens());
    let service = Service::start(config, node.embedded()).unwrap();
    assert_eq!(ask(&service, "GET", "/metrics", &[]).status, 401);
    assert_eq!(ask(&service, "GET", "/metrics", &[("Authorization", &basic("x", FIRST))]).status, 200);
}

#[test]
fn a_token_comes_as_a_bearer_token_or_a_password() {
    let node = Node::new();
    let service = start(&node, Access { tokens: tokens(), ..Access::default() });
    let get = |values: &[&str]| {
        let headers: Vec<(&str, &str)> = values.iter().map(|value| ("Authorization", *value)).collect();
        ask(&service, "GET", "/list-backups", &headers)
    };
    let bearer = format!("Bearer {FIRST}");
    for value in [
        bearer.clone(),
        format!("Bearer {SECOND}"),
        format!("bearer   {SECOND}"),
        format!("BEARER {FIRST} "),
        basic("", FIRST),
        basic("admin", SECOND),
        basic("a b", FIRST),
        basic("\u{e9}", FIRST),
        basic("x", FIRST).replace("Basic", "basic"),
    ] {
        assert_eq!(get(&[&value]).status, 200, "{value}");
    }
    for value in [
        "",
        "Bearer",
        "Bearer ",
        FIRST,
        "Token first-token-0123456789",
        "Digest username=\"x\"",
        "Bearer,first-token-0123456789",
        "Bearer=first-token-0123456789",
    ] {
        let answer = get(&[value]);
        assert_eq!(answer.status, 401, "{value}: {answer:?}");
        let [bearer, basic] = challenges(&answer)[..] else { panic!("{answer:?}") };
        // An empty bearer token is a wrong one.
        assert!(
            bearer.starts_with("Bearer realm=\"chainweb-backup\"")
                && basic.starts_with("Basic realm=\"chainweb-backup\"")
        );
        check(&answer);
    }
    for value in [
        format!("Bearer {FIRST}x"),
        format!("Bearer {}", FIRST.to_uppercase()),
        format!("Bearer {FIRST}, {SECOND}"),
        format!("Bearer {FIRST}\n{SECOND}"),
        format!("Bearer \"{FIRST}\""),
        format!("Bearer {}", BASE64.encode(FIRST.as_bytes())),
        "Bearer #".to_owned(),
        "Bearer 0123456789abcdef".to_owned(),
        format!("Bearer {}", "x".repeat(16_000)),
        basic(FIRST, ""),
        basic(FIRST, "wrong"),
        basic("x", &format!("{FIRST}:")),
        basic("x", ""),
        "Basic !!!".to_owned(),
        "Basic ====".to_owned(),
        format!("Basic {FIRST}"),
    ] {
        let answer = get(&[&value]);
        assert_eq!(answer.status, 401, "{value:.100}: {answer:?}");
        assert_eq!(challenges(&answer)[0], "Bearer realm=\"chainweb-backup\", error=\"invalid_token\"", "{value:.100}");
        assert!(!answer.body.contains("first") && !answer.body.contains("x".repeat(9).as_str()), "{answer:?}");
    }
    for two in [[bearer.as_str(), &bearer], ["Bearer x", &bearer], [&bearer, ""]] {
        let answer = get(&two);
        assert_eq!((answer.status, answer.body.as_str()), (400, "send one Authorization header"));
    }
    // The order: by what name, from which site, with which token.
    let evil = ("Origin", "http://evil.example");
    assert_eq!(ask(&service, "POST", "/make-backup", &[evil]).status, 403, "no browser asks for a password");
    assert_eq!(ask(&service, "POST", "/make-backup", &[evil, ("Authorization", &basic("x", FIRST))]).status, 403);
    let metrics = ask(&service, "GET", "/metrics", &[("Authorization", &bearer)]).body;
    for sample in [
        "requests_total{endpoint=\"make-backup\",code=\"403\"} 2",
        "requests_total{endpoint=\"list-backups\",code=\"401\"} 24",
        "requests_total{endpoint=\"list-backups\",code=\"400\"} 3",
    ] {
        assert!(metrics.contains(&format!("chainweb_backup_{sample}\n")), "no {sample} in {metrics}");
    }
}

#[test]
fn only_the_whole_token_passes() {
    let node = Node::new();
    let token = "[A-Za-z0-9._~+/-]{16,80}={0,2}";
    let config = ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() };
    let service = node.start();
    proptest!(config, |(right in token, other in token, cut in any::<prop::sample::Index>(), at in any::<prop::sample::Index>())| {
        let access = Access { tokens: Some(Tokens::parse(&format!("x{other}\n{right}")).unwrap()), ..Access::default() };
        let mut config = node.config();
        config.access = access;
        service.reconfigure(config).unwrap();
        let status = |candidate: &str| ask(&service, "GET", "/health-check", &[("Authorization", &format!("Bearer {candidate}"))]).status;
        prop_assert_eq!(status(&right), 200);
        prop_assert_eq!(status(&right[..cut.index(right.len())]), 401, "a beginning");
        prop_assert_eq!(status(&right[1 + cut.index(right.len() - 1)..]), 401, "an end");
        let at = at.index(right.len());
        let changed = if right.as_bytes()[at] == b'a' { "b" } else { "a" };
        prop_assert_eq!(status(&format!("{}{changed}{}", &right[..at], &right[at + 1..])), 401, "one character");
        prop_assert_eq!(status(&format!("{right}{right}")), 401);
        prop_assert_eq!(status(&other), if other == right { 200 } else { 401 });
    });
}

/// Whatever is in the headers that the door reads, a request passes only with a permitted name and a token.
#[test]
fn no_other_headers_open_the_door() {
    let node = Node::new();
    let own = Hosts::Only(vec!["backup.example.org".to_owned()]);
    let service = start(&node, Access { tokens: tokens(), open: Vec::new(), hosts: own });
    let part = prop_oneof![
        Just(FIRST.to_owned()),
        Just("Bearer ".to_owned()),
        Just("Basic ".to_owned()),
        Just(BASE64.encode(format!("x:{FIRST}").as_bytes())),
        Just("localhost".to_owned()),
        Just("127.0.0.1".to_owned()),
        Just("evil.example".to_owned()),
        Just("[::1]".to_owned()),
        "[:.@/,\\[\\] =0-9a-z]{0,4}",
        "\\PC{0,8}",
    ];
    let value = proptest::collection::vec(part, 0..4).prop_map(|parts| parts.concat());
    let name = proptest::sample::select(vec![
        "Host",
        "host",
        "Authorization",
        "authorization",
        "Proxy-Authorization",
        "Cookie",
    ]);
    let headers = proptest::collection::vec((name, value), 0..4);
    let config = ProptestConfig { cases: 5000, failure_persistence: None, ..ProptestConfig::default() };
    let passed_count = AtomicUsize::new(0);
    proptest!(config, |(headers in headers)| {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
        let of = |name: &str| headers.iter().filter(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| *v).collect::<Vec<_>>();
        let answer = ask(&service, "GET", "/health-check", &headers);
        prop_assert!([200, 400, 401, 421].contains(&answer.status), "{headers:?}: {answer:?}");
        if answer.status == 200 {
            passed_count.fetch_add(1, Relaxed);
            let ([sent], hosts) = (&of("Authorization")[..], of("Host")) else { panic!("{headers:?}: {answer:?}") };
            let password = sent.trim().get(6..).and_then(|rest| BASE64.decode(rest.trim().as_bytes()).ok()).unwrap_or_default();
            prop_assert!(sent.contains(FIRST) || password.ends_with(FIRST.as_bytes()), "{headers:?}");
            prop_assert!(hosts.len() < 2 && !hosts.concat().contains("evil"), "{headers:?}");
        }
        check(&answer);
    });
    assert!(passed_count.load(Relaxed) > 0, "none had a token: this test looks at nothing");
}

#[test]
fn a_new_list_of_tokens_applies_to_the_next_request() {
    let node = Node::new();
    let service = start(&node, Access { tokens: Some(Tokens::parse(FIRST).unwrap()), ..Access::default() });
    let status = |token: &str| {
        let value = format!("Bearer {token}");
        ask(&service, "GET", "/list-backups", &[("Authorization", &value)]).status
    };
    assert_eq!((status(FIRST), status(SECOND)), (200, 401));
    let mut config = node.config();
    config.access = Access { tokens: tokens(), open: vec![OpenEndpoint::Metrics], hosts: Hosts::Only(Vec::new()) };
    let changed = service.reconfigure(config.clone()).unwrap();
    assert_eq!(changed, ["backup.api.authTokenFile", "backup.api.open", "backup.api.allowedHosts"]);
    assert_eq!((status(FIRST), status(SECOND)), (200, 200));
    config.access.tokens = Some(Tokens::parse(SECOND).unwrap());
    assert_eq!(service.reconfigure(config).unwrap(), ["backup.api.authTokenFile"]);
    assert_eq!((status(FIRST), status(SECOND)), (401, 200));
}

#[test]
fn lines_that_are_no_tokens_are_named_by_their_number_alone() {
    let long = "x".repeat(4097);
    let many = (0..65).map(|n| format!("token-number-{n:06}\n")).collect::<String>();
    for (text, sentence) in [
        ("", "it has no token: write one"),
        ("\n \n\t\n# only a comment\n", "it has no token"),
        ("short-secret-15", "line 1 is no token: write 16 to 4096 letters"),
        ("# one\n\nsecret of many words", "line 3 is no token"),
        ("secret\u{e9}0123456789abc", "line 1 is no token"),
        ("secret=0123456789abcdef", "with = at the end only"),
        ("================", "line 1 is no token"),
        ("secret:0123456789abcdef", "line 1 is no token"),
        ("secret0123456789\0", "line 1 is no token"),
        ("\u{feff}secret0123456789", "line 1 is no token"),
        (&long, "line 1 is no token"),
        (&many, "it has more than 64 tokens"),
    ] {
        let error = Tokens::parse(text).expect_err(text);
        let message = error.chain();
        assert!(error.kind() == Kind::Usage && message.contains(sentence), "{text:.60}: {message}");
        assert!(!message.contains("secret") && !message.contains("number"), "{message}");
    }
    for (text, count) in [
        ("0123456789abcdef", 1),
        ("\r\n# old\r\n  0123456789abcdef\t\r\n0123456789abcde=\r\n", 2),
        (&long[1..], 1),
        (&many[..many.len() - 20], 64),
    ] {
        let tokens = Tokens::parse(text).unwrap();
        assert_eq!(tokens.count(), count, "{text:.60}");
        assert_eq!(format!("{tokens:?}"), format!("Tokens({count})"), "nothing shows a token or its sum");
    }
}

#[test]
fn a_file_that_others_can_read_or_change_is_refused() {
    let directory = scratch();
    let path = directory.path().join("token");
    fs::write(&path, format!("# ours\n{FIRST}\n")).unwrap();
    let mode = |mode: u32| fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    let refused = |path: &Path, sentence: &str| {
        let error = read_tokens(path).expect_err(sentence);
        let message = error.chain();
        assert!(error.kind() == Kind::Usage && message.contains(sentence), "{message}");
        assert!(message.contains(path.to_str().unwrap()) && !message.contains("first"), "{message}");
    };
    for good in [0o600, 0o400, 0o640, 0o440, 0o700] {
        mode(good);
        assert_eq!(read_tokens(&path).unwrap().count(), 1, "{good:o}");
    }
    for bad in [0o644, 0o604, 0o602, 0o601, 0o620, 0o660, 0o666, 0o777] {
        mode(bad);
        refused(&path, &format!("can be read or changed by other users, its mode is {bad:03o}: set its mode to 600"));
    }
    mode(0o600);
    // A secret of Kubernetes is a link; what it leads to decides.
    let link = directory.path().join("link");
    symlink("token", &link).unwrap();
    assert_eq!(read_tokens(&link).unwrap().count(), 1);
    mode(0o644);
    refused(&link, "its mode is 644");
    mode(0o600);
    refused(&directory.path().join("none"), "No such file");
    refused(directory.path(), "is not a regular file");
    let fifo = directory.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, 0o600.into()).unwrap();
    refused(&fifo, "is not a regular file");
    fs::write(&path, "").unwrap();
    refused(&path, ": it has no token");
    fs::write(&path, b"first\xff-0123456789abc").unwrap();
    refused(&path, "is no text");
    fs::write(&path, "#".repeat(512 * 1024 + 1)).unwrap();
    refused(&path, "has more than 524288 bytes");
    if !rustix::process::geteuid().is_root() {
        return skip("not root: no file can be given to another user");
    }
    fs::write(&path, FIRST).unwrap();
    chown(&path, Some(65534), None).unwrap();
    refused(&path, "belongs to user 65534, who can change it: give it to user 0, or to root");
}

/// The configuration changes between "off, so no token is needed" and "on, with a token": neither answers without one.
#[test]
fn a_configuration_that_changes_meanwhile_lets_nobody_in() {
    let node = Node::new();
    let with = |api_enabled, tokens| {
        let mut config = node.config();
        (config.api_enabled, config.access) = (api_enabled, Access { tokens, ..Access::default() });
        config
    };
    let service = Service::start(with(true, tokens()), node.embedded()).unwrap();
    let running_count = AtomicUsize::new(2);
    thread::scope(|scope| {
        let client = || {
            let (mut statuses, began) = (BTreeSet::new(), Instant::now());
            let mut asked_count = 0;
            // On a busy machine the configuration may not have changed in all of these requests.
            while asked_count < 20_000 || (statuses.len() < 2 && began.elapsed() < Duration::from_secs(60)) {
                statuses.insert(ask(&service, "GET", "/list-backups?limit=1", &[]).status);
                asked_count += 1;
            }
            running_count.fetch_sub(1, Relaxed);
            statuses
        };
        let clients = [scope.spawn(client), scope.spawn(client)];
        let mut is_on = false;
        while running_count.load(Relaxed) > 0 {
            service.reconfigure(with(is_on, if is_on { tokens() } else { None })).unwrap();
            is_on = !is_on;
        }
        let statuses: BTreeSet<u16> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        assert_eq!(statuses, BTreeSet::from([401, 404]));
    });
}

#[test]
fn an_open_endpoint_tells_no_path_even_if_the_status_cannot_be_read() {
    let node = Node::new();
    let open = Access { tokens: tokens(), open: vec![OpenEndpoint::CheckBackup], ..Access::default() };
    let service = start(&node, open);
    let bearer = format!("Bearer {FIRST}");
    let id = make_done(&service, ROCKSDB);
    let url = format!("/check-backup/{id}");
    assert_eq!(ask(&service, "GET", &url, &[]).body, "backup-done");
    fs::write(node.backups().join(id.as_str()).join("status"), "garbage").unwrap();
    let told = ask(&service, "GET", &url, &[]);
    assert_eq!(told.status, 500, "{told:?}");
    assert!(!told.body.contains('/') || told.body.contains("application/json"), "{told:?}");
    assert!(!told.body.contains(&*node.backups().to_string_lossy()), "{told:?}");
    let reason = ask(&service, "GET", &url, &[("Accept", "application/json"), ("Authorization", &bearer)]);
    assert!(reason.status == 500 && reason.body.contains(&*node.backups().to_string_lossy()), "{reason:?}");
}
