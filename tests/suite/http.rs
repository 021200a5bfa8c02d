//! The endpoints, in this process through [`Service::handle`]: routes, methods, parameters, headers, hostile clients.

use std::collections::BTreeSet;
use std::fs;
use std::time::SystemTime;

use chainweb_backup::rouille::Request;
use chainweb_backup::{Config, Kind, ROUTES, Scope, Service, Status};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use proptest::prelude::*;
use serde_json::Value;

use crate::fixture::{
    Answer, Node, PACT, ROCKSDB, call, call_with_body, make_done, make_failed, names, paths, plant_backups, tree,
    wait_end,
};

const PREFIX: &str = "/chainweb/0.0/mainnet01";
const METHODS: [&str; 12] =
    ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get", "BREW"];

fn start(node: &Node, change: impl FnOnce(&mut Config)) -> Service {
    let mut config = node.config();
    change(&mut config);
    Service::start(config, node.embedded()).unwrap()
}

/// The answer of a path of ours. Fails unless it has the headers of the contract in their form.
fn ask(service: &Service, method: &str, url: &str, headers: &[(&str, &str)]) -> Answer {
    let answer = call(service, method, url, headers).unwrap_or_else(|| panic!("{method} {url} is not a path of ours"));
    check_headers(&answer, "unknown");
    answer
}

fn check_headers(answer: &Answer, version: &str) {
    assert_eq!(answer.header("x-peer-addr"), Some("10.36.1.3:42988"), "{answer:?}");
    assert_eq!(answer.header("x-chainweb-node-version"), Some(version), "{answer:?}");
    let seconds: u64 = answer.header("x-server-timestamp").unwrap().parse().unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert!((now - 5..=now).contains(&seconds), "{answer:?}");
    match answer.header("Content-Type").unwrap() {
        "text/plain;charset=utf-8" => assert!(!answer.body.ends_with('\n') && !answer.body.is_empty(), "{answer:?}"),
        "application/json" => assert!(serde_json::from_str::<Value>(&answer.body).is_ok(), "{answer:?}"),
        "text/plain;version=0.0.4;charset=utf-8" => assert!(answer.body.ends_with('\n')),
        "text/html;charset=utf-8" => assert!(answer.body.starts_with("<!doctype html>"), "{answer:?}"),
        other => panic!("{other} in {answer:?}"),
    }
}

/// The method and the path of every route; a path with an identifier has one.
fn routes(id: &str) -> Vec<(&'static str, String)> {
    let split = ROUTES.iter().map(|route| route.split_once(' ').unwrap());
    split.map(|(method, path)| (method, path.replace("{backupId}", id))).collect()
}

#[test]
fn every_route_answers_with_and_without_the_prefix() {
    let node = Node::new();
    let service = start(&node, |config| config.chainweb_version = Some("mainnet01".to_owned()));
    let id = make_done(&service, ROCKSDB);
    assert_eq!(routes("x").len(), 6);
    for (method, path) in routes(id.as_str()) {
        for url in [path.clone(), format!("{PREFIX}{path}"), format!("/chainweb/0.0/%6dainnet01{path}")] {
            let answer = ask(&service, method, &url, &[]);
            assert_eq!(answer.status, 200, "{method} {url}: {answer:?}");
        }
        let of_others = [
            format!("/chainweb/0.0/testnet06{path}"),
            format!("/chainweb/0.0/mainnet01%2f{path}"),
            format!("/chainweb/0.0/{path}"),
            format!("/chainweb/0.0{path}"),
            format!("/chainweb/0.1/mainnet01{path}"),
            format!("/chainweb/0.0/MAINNET01{path}"),
            format!("{PREFIX}{PREFIX}{path}"),
            format!("{PREFIX}/{path}"),
            format!("/{path}"),
            format!("{path}/"),
            format!("{path}/x"),
            format!("{path}%2f").replace(id.as_str(), "x/y"),
            path.to_uppercase(),
            path[1..].to_owned(),
            format!("http://host{path}"),
        ];
        for url in of_others {
            assert!(call(&service, method, &url, &[]).is_none(), "{method} {url} was answered");
        }
    }
    for url in
        ["", "/", "*", "/chainweb", "/chainweb/0.0", "/chainweb/0.0/mainnet01", "/check-backup", "/info", "?", "/?"]
    {
        assert!(call(&service, "GET", url, &[]).is_none(), "{url} was answered");
    }
    let answer = Answer::from(service.not_found(&request("GET", "/info")));
    check_headers(&answer, "unknown");
    assert_eq!(answer.status, 404);
    assert_eq!(ask(&service, "GET", "/health-check", &[]).body, "Health check OK.");
    assert_eq!(ask(&service, "GET", &format!("/check-backup/{id}"), &[]).body, "backup-done");
}

fn request(method: &str, url: &str) -> Request {
    Request::fake_http_from("10.36.1.3:42988".parse().unwrap(), method, url, Vec::new(), Vec::new())
}

#[test]
fn without_a_configured_version_any_is_right() {
    let node = Node::new();
    let service = node.start();
    for version in ["mainnet01", "x", "a%20b", "..", "%C3%A4"] {
        assert_eq!(ask(&service, "GET", &format!("/chainweb/0.0/{version}/health-check"), &[]).status, 200);
    }
    for url in ["/chainweb/0.0//health-check", "/chainweb/0.0/%ff/health-check", "/chainweb/0.0/a/b/health-check"] {
        assert!(call(&service, "GET", url, &[]).is_none(), "{url} was answered");
    }
}

#[test]
fn a_wrong_method_is_405_and_says_which_is_right() {
    let node = Node::new();
    let service = node.start();
    for (right, path) in routes("1648665437000") {
        for method in METHODS {
            let answer = ask(&service, method, &path, &[]);
            let get = right == "GET" && matches!(method, "GET" | "HEAD");
            if method == right || get {
                assert_ne!(answer.status, 405, "{method} {path}");
                assert_eq!(answer.header("Allow"), None);
            } else {
                assert_eq!(answer.status, 405, "{method} {path}");
                assert_eq!(answer.header("Allow"), Some(if right == "GET" { "GET, HEAD" } else { right }));
            }
        }
    }
    assert_eq!(service.list_backups().unwrap().len(), 1, "only POST makes a backup");
}

#[test]
fn the_parameter_is_what_it_says_or_an_error_that_names_it() {
    let node = Node::new();
    let service = node.start();
    let scopes = [
        ("", Scope::Rocksdb),
        ("?", Scope::Rocksdb),
        ("?&&", Scope::Rocksdb),
        ("?backupPact", Scope::RocksdbAndPact),
        ("?backupPact=", Scope::RocksdbAndPact),
        ("?backupPact=true", Scope::RocksdbAndPact),
        ("?backupPact=TRUE", Scope::RocksdbAndPact),
        ("?backupPact=tRuE&", Scope::RocksdbAndPact),
        ("?&backupPact=1", Scope::RocksdbAndPact),
        ("?%62ackupPact=%74rue", Scope::RocksdbAndPact),
        ("?backupPact=false", Scope::Rocksdb),
        ("?backupPact=False", Scope::Rocksdb),
        ("?backupPact=0", Scope::Rocksdb),
    ];
    for (query, scope) in scopes {
        let answer = ask(&service, "POST", &format!("/make-backup{query}"), &[]);
        assert_eq!((answer.status, answer.header("x-backup-scope")), (200, Some(scope.word())), "{query}: {answer:?}");
        let id = chainweb_backup::BackupId::parse(&answer.body).unwrap();
        assert_eq!(wait_end(&service, &id), Status::Done);
        let answer = ask(&service, "GET", &format!("/check-backup/{id}"), &[]);
        assert_eq!(answer.header("x-backup-scope"), Some(scope.word()));
    }
    let before = names(&node.backups());
    let wrong = [
        "backupPact=yes",
        "backupPact=2",
        "backupPact=truefalse",
        "backupPact=%20true",
        "backupPact=+1",
        "backupPact=true,false",
        "backupPact=%ff",
        "backupPact=%00",
        "backupPact=\u{1f600}",
        "backupPact==true",
        "backupPactState=true",
        "backuppact=true",
        "BackupPact",
        "backup_pact=1",
        "backupPact%3dtrue",
        "pact",
        "=true",
        "%ff=1",
        "x=1&backupPact",
        "backupPact&x",
        "backupPact=true&backupPact=true",
        "backupPact&%62ackupPact",
        "backupPact=1;backupPact=1",
        "?backupPact",
    ];
    for query in wrong {
        let answer = ask(&service, "POST", &format!("/make-backup?{query}"), &[]);
        assert_eq!(answer.status, 400, "{query}: {answer:?}");
        assert!(answer.body.contains("backupPact"), "{query}: {}", answer.body);
        assert!(answer.body.len() < 300 && !answer.body.contains(char::is_control), "{query}: {}", answer.body);
        assert_eq!(answer.header("x-backup-scope"), None);
    }
    let long = format!("/make-backup?{}", "x".repeat(100_000));
    let answer = ask(&service, "POST", &long, &[]);
    assert!(answer.status == 400 && answer.body.len() < 300);
    service.finish();
    assert_eq!(names(&node.backups()), before, "a refused request has left something");
}

#[test]
fn errors_carry_the_headers_and_the_nodes_version_too() {
    let node = Node::with_chains(0);
    let service = start(&node, |config| config.node_version = Some("2.31.1".to_owned()));
    let answers = [
        (call(&service, "POST", "/make-backup?backupPact", &[]), 400),
        (call(&service, "POST", "/make-backup?x", &[]), 400),
        (call(&service, "GET", "/make-backup", &[]), 405),
        (call(&service, "POST", "/make-backup", &[("Origin", "http://evil.example")]), 403),
        (call(&service, "GET", "/check-backup/..", &[]), 404),
        (call(&service, "GET", "/check-backup/", &[]), 404),
        (call(&service, "GET", "/health-check", &[]), 200),
    ];
    for (answer, status) in answers {
        let answer = answer.unwrap();
        check_headers(&answer, "2.31.1");
        assert_eq!(answer.status, status, "{answer:?}");
    }
    let peer = "[2001:db8::1]:42988".parse().unwrap();
    let v6 = Request::fake_http_from(peer, "GET", "/health-check", Vec::new(), Vec::new());
    assert_eq!(Answer::from(service.handle(&v6).unwrap()).header("x-peer-addr"), Some("[2001:db8::1]:42988"));
    service.shutdown();
    let answer = call(&service, "POST", "/make-backup", &[]).unwrap();
    check_headers(&answer, "2.31.1");
    assert_eq!(answer.status, 503);
}

#[test]
fn with_accept_json_a_check_tells_the_whole_record() {
    let node = Node::new();
    let service = start(&node, |config| *config = node.paused_config());
    let id = service.make_backup(PACT).unwrap();
    let url = format!("/check-backup/{id}");
    let json = |accept: &str| ask(&service, "GET", &url, &[("Accept", accept)]);
    let running: Value = serde_json::from_str(&json("application/json").body).unwrap();
    assert_eq!((&running["id"], &running["status"]), (&id.as_str().into(), &"backup-in-progress".into()));
    assert_eq!(running["scope"], "rocksdb,pact");
    assert!(running["progress"]["phase"].is_string() && running["progress"]["bytes_total"].is_u64(), "{running}");
    node.go_on();
    assert_eq!(wait_end(&service, &id), Status::Done);

    for accept in [
        "application/json",
        "text/html, application/json;q=0.9",
        "APPLICATION/JSON",
        "application/*",
        "application/json, text/plain;q=0.9, */*;q=0.8",
        "*/*, text/*;q=0",
    ] {
        let done: Value = serde_json::from_str(&json(accept).body).unwrap();
        assert_eq!((&done["status"], &done["progress"]), (&"backup-done".into(), &Value::Null));
        assert!(done["record"]["bytes"].as_u64().unwrap() > 0 && done["record"]["finished_ms"].is_u64(), "{done}");
    }
    let javascript = "application/json, text/plain, */*";
    let lower = "application/json;q=0.5, text/*;q=0.9";
    for accept in
        ["text/plain", "*/*", "text/plain,application/json", javascript, lower, "application/jsonp", "", "text/html"]
    {
        assert_eq!(json(accept).body, "backup-done", "{accept}");
    }
    let twice = [("Accept", "text/plain;q=0.1"), ("accept", "application/json")];
    assert_eq!(ask(&service, "GET", &url, &twice).header("Content-Type"), Some("application/json"));
    drop(service);
    let service = start(&node, |config| config.reserve_bytes = Some(u64::MAX / 2));
    let (id, reason) = make_failed(&service, ROCKSDB);
    let answer = ask(&service, "GET", &format!("/check-backup/{id}"), &[("Accept", "application/json")]);
    let failed: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!((&failed["status"], &failed["record"]["reason"]), (&"backup-failed".into(), &reason.into()));
    let answer = ask(&service, "GET", "/check-backup/1648665437000", &[("Accept", "application/json")]);
    assert_eq!((answer.status, answer.body.as_str()), (404, "no such backup"));
}

/// `curl -d backupPact=true` would otherwise make a backup without Pact.
#[test]
fn a_body_that_says_something_is_refused() {
    let node = Node::new();
    let service = node.start();
    let long = [b"{}".as_slice(), &[b' '; 100_000]].concat();
    let said: [&[u8]; 10] = [
        b"backupPact=true",
        b"backupPact",
        br#"{"backupPact": true}"#,
        br#"{"": null}"#,
        b"[]",
        b"null",
        b"{",
        b"{}{}",
        b"\xff\0",
        &long,
    ];
    for body in said {
        let text = String::from_utf8_lossy(body);
        for (method, path) in routes("1648665437000") {
            let answer = call_with_body(&service, method, &path, body).unwrap();
            check_headers(&answer, "unknown");
            assert_eq!(answer.status, 400, "{method} {path} {text:.60}: {answer:?}");
            let remedy = match path.as_str() {
                "/make-backup" => "parameters go into the query: ?backupPact",
                "/list-backups" => "parameters go into the query: ?limit, ?before",
                _ => "send no body: this endpoint has no parameters",
            };
            assert_eq!(answer.body, remedy);
        }
    }
    service.finish();
    assert_eq!(names(&node.backups()), [".lock", ".service"], "a refused request has made something");
    drop(service);

    // A known client sends an empty object with every request.
    let service = node.start();
    let id = make_done(&service, ROCKSDB);
    for body in [b"".as_slice(), b"{}", b" \r\n\t", b"{ }\n", b"\n{\n}\n"] {
        for (method, path) in routes(id.as_str()) {
            let answer = call_with_body(&service, method, &path, body).unwrap();
            assert_eq!(answer.status, 200, "{method} {path} {body:?}: {answer:?}");
        }
        let id =
            chainweb_backup::BackupId::parse(&call_with_body(&service, "POST", "/make-backup", body).unwrap().body);
        wait_end(&service, &id.unwrap());
    }
}

fn ids_in(answer: &Answer) -> Vec<String> {
    assert_eq!((answer.status, answer.header("Content-Type")), (200, Some("application/json")), "{answer:?}");
    let list: Vec<Value> = serde_json::from_str(&answer.body).unwrap();
    list.iter().map(|backup| backup["id"].as_str().unwrap().to_owned()).collect()
}

/// The pages from a first one on, by their links.
fn pages(service: &Service, first: &str) -> Vec<Vec<String>> {
    let (mut pages, mut url) = (Vec::new(), first.to_owned());
    loop {
        let answer = ask(service, "GET", &url, &[]);
        pages.push(ids_in(&answer));
        assert!(answer.body.len() <= 4 * 1024 * 1024, "{} bytes", answer.body.len());
        let Some(link) = answer.header("Link") else { return pages };
        let query = link.strip_prefix('<').unwrap().strip_suffix(">; rel=\"next\"").unwrap();
        url = format!("{}{query}", first.split('?').next().unwrap());
        assert!(pages.len() < 1000, "the links have no end");
    }
}

#[test]
fn the_list_comes_in_pages() {
    let node = Node::new();
    let service = node.start();
    let id = make_done(&service, ROCKSDB);
    service.finish();
    plant_backups(&node.backups(), &id, (0..250).map(|n| 1_600_000_000_000 + n * 1000), "");
    let all: Vec<String> = service.list_backups().unwrap().iter().map(|b| b.id.to_string()).collect();
    assert_eq!((all.len(), all[0].as_str()), (251, id.as_str()));
    assert!(all.is_sorted_by(|a, b| a > b), "newest first");

    let count = |first: &str| {
        let pages = pages(&service, first);
        assert_eq!(pages.concat(), all, "{first}");
        pages.iter().map(Vec::len).collect::<Vec<_>>()
    };
    assert_eq!(count("/list-backups"), [100, 100, 51]);
    assert_eq!(count(&format!("{PREFIX}/list-backups")), [100, 100, 51]);
    assert_eq!(count("/list-backups?limit=250"), [250, 1]);
    assert_eq!(count("/list-backups?limit=251"), [251]);
    assert_eq!(count("/list-backups?limit=1000"), [251]);
    let page = |query: &str| ids_in(&ask(&service, "GET", &format!("/list-backups?{query}"), &[]));
    assert_eq!(page("limit=2"), all[..2]);
    assert_eq!(page(&format!("before={}&limit=002", all[6])), all[7..9]);
    assert_eq!(page(&format!("before={}", all[250])), [""; 0]);

    // A backup that was removed by hand is not listed any more; a page can still begin after it.
    fs::remove_dir_all(node.backups().join(&all[3])).unwrap();
    assert_eq!(page("limit=4"), [&all[..3], &all[4..5]].concat());
    assert_eq!(page(&format!("limit=2&before={}", all[3])), all[4..6]);
    assert_eq!(page("limit=1&before=9999999999999"), all[..1]);
    assert_eq!(ask(&service, "GET", "/list-backups?before=gone", &[]).status, 404);
    fs::create_dir(node.backups().join("here")).unwrap();
    fs::write(node.backups().join("here/status"), "backup-done").unwrap();
    assert_eq!(page("limit=1000").iter().filter(|id| *id == "here").count(), 1);
    assert!(!page("before=here").contains(&"here".to_owned()));

    for (query, sentence) in [
        ("limit=0", "parameter limit cannot be \"0\": use a number from 1 to 1000"),
        ("limit=1001", "from 1 to 1000"),
        ("limit=-1", "from 1 to 1000"),
        ("limit=+1", "from 1 to 1000"),
        ("limit", "from 1 to 1000"),
        ("limit=1e2", "from 1 to 1000"),
        ("limit=99999999999999999999999", "from 1 to 1000"),
        ("before=", "use the id of a backup"),
        ("before=..%2f..", "use the id of a backup"),
        ("limit=1&limit=2", "parameter limit is given twice"),
        ("limti=1", "did you mean limit?"),
        ("page=2", "the parameters are limit and before"),
        ("backupPact", "the parameters are limit and before"),
    ] {
        let answer = ask(&service, "GET", &format!("/list-backups?{query}"), &[]);
        assert!(answer.status == 400 && answer.body.contains(sentence), "{query}: {answer:?}");
    }
}

/// As many long answers as there is memory for; the next one is a 503 that says when to try again.
#[test]
fn answers_that_clients_do_not_read_are_bounded() {
    let node = Node::new();
    let service = node.start();
    let id = make_done(&service, ROCKSDB);
    service.finish();
    plant_backups(&node.backups(), &id, (0..12).map(|n| 1_600_000_000_000 + n), &"r".repeat(900_000));
    // A page ends before it is too large.
    assert_eq!(pages(&service, "/list-backups").iter().map(Vec::len).collect::<Vec<_>>(), [5, 4, 4]);

    let get = |url: &str| {
        let peer = "10.36.1.3:42988".parse().unwrap();
        service.handle(&Request::fake_http_from(peer, "GET", url, Vec::new(), Vec::new())).unwrap()
    };
    let same: Vec<_> = (0..64).map(|_| get("/list-backups")).collect();
    assert!(same.iter().all(|response| response.status_code == 200), "the same bytes for all");
    let others: Vec<_> = (1..=8).map(|n| get(&format!("/list-backups?limit={n}"))).collect();
    let refused = others.iter().filter(|response| response.status_code == 503).count();
    assert!((1..8).contains(&refused), "{refused} of 8 were refused");
    let answer = ask(&service, "GET", "/list-backups?limit=4", &[]);
    assert_eq!((answer.status, answer.header("Retry-After")), (503, Some("5")));
    assert_eq!(ask(&service, "GET", "/health-check", &[]).status, 200);
    assert_eq!(ask(&service, "GET", &format!("/check-backup/{id}"), &[]).body, "backup-done");
    drop((same, others));
    assert_eq!(ask(&service, "GET", "/list-backups?limit=4", &[]).status, 200);
}

#[test]
fn the_list_is_newest_first_and_the_metrics_count_it() {
    let node = Node::new();
    let service = node.start();
    let empty: Value = serde_json::from_str(&ask(&service, "GET", "/list-backups", &[]).body).unwrap();
    assert_eq!(empty, Value::Array(Vec::new()));
    let ids = [make_done(&service, PACT), make_done(&service, ROCKSDB), make_done(&service, PACT)];
    fs::create_dir(node.backups().join("1648665437000")).unwrap();
    fs::write(node.backups().join("1648665437000/status"), "backup-failed").unwrap();
    service.finish();
    let list: Vec<Value> = serde_json::from_str(&ask(&service, "GET", "/list-backups", &[]).body).unwrap();
    let listed: BTreeSet<&str> = list.iter().map(|b| b["id"].as_str().unwrap()).collect();
    assert_eq!(listed.len(), 4);
    let ours: Vec<&str> = list.iter().filter(|b| b["foreign"] == false).map(|b| b["id"].as_str().unwrap()).collect();
    assert_eq!(ours, [ids[2].as_str(), ids[1].as_str(), ids[0].as_str()]);
    for backup in list.iter().filter(|b| b["foreign"] == false) {
        assert!(backup["exclusive_bytes"].is_u64() && backup["started_ms"].is_u64(), "{backup}");
        assert!(backup["record"]["rocksdb"]["cut_height"].is_u64(), "{backup}");
        assert!(backup["record"]["rocksdb"]["block_heights"]["lowest"].is_u64(), "{backup}");
    }

    let metrics = ask(&service, "GET", "/metrics", &[]);
    assert_eq!(metrics.header("Content-Type"), Some("text/plain;version=0.0.4;charset=utf-8"));
    let mut declared = BTreeSet::new();
    for line in metrics.body.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            assert!(declared.insert(rest.split(' ').next().unwrap()), "{line} stands twice");
        } else if !line.starts_with("# HELP ") {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            let name = sample.split('{').next().unwrap();
            // A histogram has samples of three names.
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(*end)).unwrap_or(name);
            assert!(declared.contains(family) && value.parse::<f64>().is_ok(), "{line}");
        }
    }
    let sample = |name: &str| {
        let line = metrics.body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {}", metrics.body)).parse::<f64>().unwrap()
    };
    assert_eq!(sample(r#"chainweb_backup_jobs_total{result="done"}"#), 3.0);
    assert_eq!(sample(r#"chainweb_backup_backups{status="backup-done"}"#), 3.0);
    assert_eq!(sample(r#"chainweb_backup_backups{status="backup-failed"}"#), 1.0);
    assert_eq!(sample("chainweb_backup_in_progress"), 0.0);
    assert!(sample("chainweb_backup_last_success_timestamp_seconds") > 1.6e9);
}

#[test]
fn with_the_api_off_only_health_and_metrics_answer() {
    let node = Node::new();
    let service = start(&node, |config| config.api_enabled = false);
    let id = make_done(&service, ROCKSDB);
    let before = names(&node.backups());
    for (right, path) in routes(id.as_str()) {
        let stays = matches!(path.as_str(), "/health-check" | "/metrics");
        for method in METHODS {
            for url in [path.clone(), format!("{PREFIX}{path}"), format!("{path}?backupPact")] {
                let answer = ask(&service, method, &url, &[]);
                assert!(stays || answer.status == 404, "{method} {url}: {answer:?}");
            }
        }
        assert_eq!(ask(&service, right, &path, &[]).status, if stays { 200 } else { 404 });
    }
    service.finish();
    assert_eq!(names(&node.backups()), before);
}

#[test]
fn a_page_of_another_site_cannot_start_a_backup() {
    let node = Node::new();
    let service = node.start();
    let refused: [&[(&str, &str)]; 9] = [
        &[("Origin", "http://evil.example"), ("Host", "localhost:1849")],
        &[("Origin", "null"), ("Host", "localhost:1849")],
        &[("Origin", "http://localhost"), ("Host", "localhost:1849")],
        &[("Origin", "http://localhost:1849.evil.example"), ("Host", "localhost:1849")],
        &[("Origin", "http://evil.example/localhost:1849"), ("Host", "localhost:1849")],
        &[("Origin", "http://evil.example")],
        &[("Origin", "")],
        &[("Sec-Fetch-Site", "cross-site")],
        &[("sec-fetch-site", "same-site"), ("Origin", "http://localhost:1849"), ("Host", "localhost:1849")],
    ];
    for headers in refused {
        for url in ["/make-backup", "/make-backup?backupPact", "/chainweb/0.0/mainnet01/make-backup"] {
            let answer = ask(&service, "POST", url, headers);
            assert_eq!(answer.status, 403, "{headers:?}: {answer:?}");
        }
    }
    assert_eq!(names(&node.backups()), [".lock", ".service"]);
    let accepted: [&[(&str, &str)]; 4] = [
        &[("Origin", "http://localhost:1849"), ("Host", "localhost:1849")],
        &[("Origin", "https://LOCALHOST:1849"), ("Host", "localhost:1849"), ("Sec-Fetch-Site", "same-origin")],
        &[("Sec-Fetch-Site", "none")],
        &[("User-Agent", "python-requests/2.31"), ("Content-Type", "application/json")],
    ];
    for headers in accepted {
        assert_eq!(ask(&service, "POST", "/make-backup", headers).status, 200, "{headers:?}");
    }
}

/// Identifiers that an attacker might send to reach other directories.
fn hostile_ids() -> Vec<String> {
    let up = ["..", ".", "%2e%2e", "%2E.", "..%2f", "%2f", "%252e%252e", "%c0%ae%c0%ae", "..%5c", "..\\", "%00", "..;"];
    let tails = [
        "",
        "outside",
        "/outside",
        "%2foutside",
        "%2Foutside",
        "outside%00",
        "%00outside",
        "%2foutside%2fstatus",
        "%5coutside",
        ".lock",
        ".service",
        "backups",
        "etc%2fpasswd",
        "%2e%2e%2foutside",
        "1648665437000%2f..%2foutside",
    ];
    let mut ids: Vec<String> = up.iter().flat_map(|u| tails.map(|t| format!("{u}{t}"))).collect();
    let fixed = [
        ".lock",
        ".service",
        ".deleting-1648665437000.0",
        ".creating-1648665437000",
        "0",
        "lost+found",
        "status",
        "%2eservice",
        "1648665437000%20",
        "%201648665437000",
        "1648665437000%0a",
        "1648665437000.",
        "+1648665437000",
        "-1",
        "0x17",
        "1e3",
        "%D9%A1%D9%A2",
        "\u{661}\u{662}",
        "\u{1f600}",
        "%u0031",
        "%",
        "%2",
        "%zz",
        "~",
        "~root",
        "null",
        "undefined",
        "NaN",
        "{backupId}",
        "*",
        "a b",
        "a\tb",
        "a\0b",
        "C:",
        "CON",
        "file:%2f%2f%2fetc%2fpasswd",
        "1648665437000#",
        "1648665437000;x",
        "1648665437000,1648665437001",
        "latest",
        "_",
        "-",
        "--",
        "__proto__",
    ];
    ids.extend(fixed.map(str::to_owned));
    ids.extend([65, 255, 256, 4096, 10_240, 100_000].map(|length| "1".repeat(length)));
    ids.extend([10_240, 100_000].map(|length| "%2e".repeat(length / 3)));
    let mut random = fastrand::Rng::with_seed(1648665437000);
    while ids.len() < 10_000 {
        let length = random.usize(1..40);
        let bytes: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
        ids.push(match ids.len() % 4 {
            0 => percent_encode(&bytes, NON_ALPHANUMERIC).to_string(),
            1 => String::from_utf8_lossy(&bytes).replace(['/', '?'], "%2f"),
            2 => random.u64(1_000_000_000_000..1_700_000_000_000).to_string(),
            _ => (0..length)
                .map(|_| *random.choice(&["..", "%2f", "%2e", "%00", ".", "1", "a", "%5c", "%25"]).unwrap())
                .collect(),
        });
    }
    ids
}

#[test]
fn ten_thousand_hostile_identifiers_are_404_and_touch_nothing() {
    let node = Node::new();
    let service = node.start();
    let id = make_done(&service, ROCKSDB);
    service.finish();
    // A directory outside that looks like a backup.
    let outside = node.root().join("outside");
    fs::create_dir_all(outside.join("0/rocksDb")).unwrap();
    fs::write(outside.join("status"), "backup-done").unwrap();
    fs::write(node.root().join("status"), "backup-done").unwrap();
    let before = (tree(&outside), tree(&node.backups()), paths(node.root()));
    for hostile in hostile_ids() {
        assert_ne!(hostile, id.as_str());
        for prefix in ["", PREFIX] {
            let url = format!("{prefix}/check-backup/{hostile}");
            for method in ["GET", "HEAD"] {
                // With a slash it is another path, which is not ours.
                let Some(answer) = call(&service, method, &url, &[]) else {
                    assert!(hostile.contains('/'), "{url}");
                    continue;
                };
                assert_eq!((answer.status, answer.body.as_str()), (404, "no such backup"), "{url}");
                check_headers(&answer, "unknown");
            }
        }
        if let Some(answer) = call(&service, "POST", &format!("/check-backup/{hostile}"), &[]) {
            assert_eq!(answer.status, 405);
        }
    }
    assert_eq!((tree(&outside), tree(&node.backups()), paths(node.root())), before);
    assert_eq!(ask(&service, "GET", &format!("/check-backup/{id}"), &[]).body, "backup-done");
    assert_eq!(service.make_backup(ROCKSDB).unwrap_err().kind(), Kind::ShuttingDown, "nothing more was made");
}

#[test]
fn whatever_the_request_is_there_is_no_panic_and_no_server_error() {
    let node = Node::new();
    let service = node.start();
    let part = prop_oneof![
        Just("/make-backup".to_owned()),
        Just("/check-backup/".to_owned()),
        Just("/list-backups".to_owned()),
        Just("/metrics".to_owned()),
        Just("/chainweb/0.0/".to_owned()),
        Just("?backupPact".to_owned()),
        Just("%2f".to_owned()),
        Just("1648665437000".to_owned()),
        "[/?&=%+#.;0-9a-f]{0,6}",
        ".{0,12}",
        "\\PC{0,20}",
    ];
    let url = proptest::collection::vec(part, 0..6).prop_map(|parts| parts.concat());
    let method = prop_oneof![Just("GET".to_owned()), Just("HEAD".to_owned()), Just("POST".to_owned()), ".{0,8}"];
    let name = proptest::sample::select(vec!["Accept", "Origin", "Host", "Sec-Fetch-Site", "Content-Length", "X"]);
    let headers = proptest::collection::vec((name, ".{0,30}"), 0..4);
    let config = ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(url in url, method in method, headers in headers)| {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
        if let Some(answer) = call(&service, &method, &url, &headers) {
            prop_assert!([200, 400, 403, 404, 405].contains(&answer.status), "{method} {url:?}: {answer:?}");
            check_headers(&answer, "unknown");
        }
    });
    assert_eq!(ask(&service, "GET", "/health-check", &[]).status, 200);
}

/// The newest good backup may be older than all that the page lists. What is read for it has a limit, and the page says so.
#[test]
fn the_status_page_names_the_newest_good_backup_behind_many_that_failed() {
    let node = Node::new();
    let service = node.start();
    let id = make_done(&service, ROCKSDB);
    let title = "<title>Backups: no good one</title>";
    for (count, is_named) in [(60, true), (2100, false)] {
        for number in (1..=count).map(|n| id.as_str().parse::<u64>().unwrap() + n) {
            let failed = node.backups().join(number.to_string());
            fs::create_dir_all(&failed).unwrap();
            fs::write(failed.join("status"), "backup-failed").unwrap();
        }
        let page = ask(&service, "GET", "/status-page", &[]).body;
        assert!(page.contains(&format!("(the newest 50 of {})", count + 1)), "{page}");
        assert_eq!(page.contains(id.as_str()), is_named, "{page}");
        assert_eq!(page.contains(title), !is_named);
        assert_eq!(page.contains("none among the newest 2000"), !is_named);
    }
}
