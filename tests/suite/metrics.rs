//! The metrics: what a service and a directory without one say of backups, jobs and requests, and that it survives a restart.

use std::collections::BTreeMap;
use std::fs;

use chainweb_backup::{BackupId, Config, Control, Policy, Service, metrics_of, verify_backup};

use crate::fixture::{DEEP, Node, PACT, ROCKSDB, call, call_with_body, make_done, make_failed, names, plant_backups};

const LAST: Policy = Policy { keep_last: 1, keep_daily: 0, keep_weekly: 0, keep_monthly: 0 };

/// The samples of a text of metrics, by name and labels, without the common beginning. Fails unless each metric is declared once, with
/// a sentence, before its samples.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let (mut kinds, mut found, mut helped) = (BTreeMap::new(), BTreeMap::new(), String::new());
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, sentence) = help.split_once(' ').unwrap();
            assert!(sentence.len() > 10, "{line}");
            name.clone_into(&mut helped);
            continue;
        }
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert_eq!(name, helped, "its HELP is not before it");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            assert!(kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "{line} stands twice");
            continue;
        }
        let (sample, value) = line.rsplit_once(' ').unwrap();
        let name = sample.split('{').next().unwrap();
        let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(*end));
        let is_declared = kinds.contains_key(name)
            || of_histogram.is_some_and(|name| kinds.get(name).is_some_and(|kind| kind == "histogram"));
        assert!(is_declared, "{line}");
        let sample = sample.strip_prefix("chainweb_backup_").expect("all have one beginning");
        assert!(found.insert(sample.to_owned(), value.parse().unwrap()).is_none(), "{line} stands twice");
    }
    found
}

fn of_service(service: &Service) -> BTreeMap<String, f64> {
    samples(&call(service, "GET", "/metrics", &[]).unwrap().body)
}

/// The beginning of what belongs to a scope: its name, without the sample's.
fn of_scope(metrics: &BTreeMap<String, f64>, name: &str, scope: &str) -> Option<f64> {
    metrics.get(&format!("scope_last_{name}{{scope=\"{scope}\"}}")).copied()
}

fn number(id: &BackupId) -> f64 {
    id.as_str().parse().unwrap()
}

#[test]
fn each_scope_has_its_times_and_identifiers_also_after_a_restart() {
    let node = Node::new();
    let service = node.start();
    let metrics = of_service(&service);
    assert_eq!(metrics["last_success_timestamp_seconds"], 0.0, "zero, so that an alarm is raised");
    assert!(!metrics.keys().any(|name| name.starts_with("scope_")), "no scope was backed up yet");
    let first = make_done(&service, ROCKSDB);
    let pact = make_done(&service, PACT);
    drop(service);
    let config = Config { reserve_bytes: Some(u64::MAX / 2), ..node.config() };
    let service = Service::start(config, node.embedded()).unwrap();
    let (failed, _) = make_failed(&service, ROCKSDB);
    let before = of_service(&service);
    drop(service);
    let service = node.start();
    let after = of_service(&service);
    for metrics in [&before, &after] {
        let of = |name: &str, scope: &str| of_scope(metrics, name, scope).unwrap_or_else(|| panic!("{name} {scope}"));
        assert_eq!(of("success_id", "rocksdb"), number(&first));
        assert_eq!(of("failure_id", "rocksdb"), number(&failed));
        assert_eq!((of("success_id", "rocksdb,pact"), of("failure_id", "rocksdb,pact")), (number(&pact), 0.0));
        let times = ["attempt", "failure"].map(|what| of(&format!("{what}_timestamp_seconds"), "rocksdb"));
        assert!(times[0] > of("success_timestamp_seconds", "rocksdb"), "the failed one was the last attempt");
        assert!(times[0] <= times[1], "{times:?}");
        assert_eq!(of("failure_timestamp_seconds", "rocksdb,pact"), 0.0);
        assert!(of("size_bytes", "rocksdb,pact") > of("size_bytes", "rocksdb"));
        assert!((0.0..60.0).contains(&of("duration_seconds", "rocksdb,pact")));
        assert_eq!(metrics["last_failure_timestamp_seconds"], times[1]);
        assert_eq!(metrics["last_success_timestamp_seconds"], of("success_timestamp_seconds", "rocksdb,pact"));
        let bytes = metrics["rocksdb_bytes{method=\"linked\"}"] + metrics["rocksdb_bytes{method=\"copied\"}"];
        assert!(bytes > 0.0 && metrics.contains_key("pact_bytes{method=\"raw-copy\"}"), "{metrics:?}");
        assert!(metrics["filesystem_size_bytes"] > metrics["free_bytes"], "{metrics:?}");
    }
    assert_eq!(before["reserve_bytes"], (u64::MAX / 2) as f64);
    assert_eq!(after["reserve_bytes"], 0.0);
    let default = samples(&metrics_of(&node.backups(), None).unwrap())["reserve_bytes"];
    assert!(default <= (1_u64 << 30) as f64 && default > 0.0, "{default}");
}

#[test]
fn jobs_phases_and_requests_are_counted() {
    let node = Node::new();
    let service = node.start();
    make_done(&service, PACT);
    make_done(&service, ROCKSDB);
    for (url, code) in
        [("/make-backup?backupPactState", 400), ("/check-backup/x%2fy", 404), ("/list-backups?limit=0", 400)]
    {
        let method = if url.starts_with("/make") { "POST" } else { "GET" };
        assert_eq!(call_with_body(&service, method, url, b"").unwrap().status, code, "{url}");
    }
    service.finish();
    let metrics = of_service(&service);
    let of = |name: &str| *metrics.get(name).unwrap_or_else(|| panic!("no {name} in {metrics:?}"));
    assert_eq!((of("jobs_total{result=\"done\"}"), of("jobs_total{result=\"failed\"}")), (2.0, 0.0));
    assert_eq!((of("stalled_jobs_total"), of("thread_hangs")), (0.0, 0.0));
    for scope in ["rocksdb", "rocksdb,pact"] {
        assert_eq!(of(&format!("job_duration_seconds_count{{scope=\"{scope}\"}}")), 1.0);
        assert_eq!(of(&format!("job_duration_seconds_bucket{{scope=\"{scope}\",le=\"+Inf\"}}")), 1.0);
        assert_eq!(of(&format!("job_duration_seconds_bucket{{scope=\"{scope}\",le=\"43200\"}}")), 1.0);
        assert!(of(&format!("job_duration_seconds_sum{{scope=\"{scope}\"}}")) < 60.0);
    }
    let phases: f64 = metrics.iter().filter(|(name, _)| name.starts_with("phase_seconds_total")).map(|(_, v)| v).sum();
    assert!(phases > 0.0, "the two jobs took no time");
    assert!(of("written_bytes_total{part=\"pact\"}") > 0.0);
    assert!(of("source_wal_growth_bytes") >= 0.0, "a Pact database in WAL mode was copied");
    assert_eq!(of("requests_total{endpoint=\"make-backup\",code=\"400\"}"), 1.0);
    assert_eq!(of("requests_total{endpoint=\"make-backup\",code=\"507\"}"), 0.0, "there before the first one");
    assert_eq!(of("requests_total{endpoint=\"check-backup\",code=\"404\"}"), 1.0);
    assert_eq!(of("requests_total{endpoint=\"list-backups\",code=\"400\"}"), 1.0);
    assert!(!metrics.keys().any(|name| name.starts_with("job_phase") || name.starts_with("job_copied")), "none runs");
}

/// A backup that was being made when the service was killed is a failure. Its record goes with the next good backup, so that a service
/// that is killed in each backup would look well.
#[test]
fn a_backup_that_was_interrupted_is_told_by_the_next_process() {
    let node = Node::new();
    let service = node.start();
    let id = make_done(&service, ROCKSDB);
    assert_eq!(of_service(&service)["interruption_timestamp_seconds"], 0.0);
    drop(service);
    plant_backups(&node.backups(), &id, [1_600_000_000_000].into_iter(), "");
    fs::write(node.backups().join("1600000000000/status"), "backup-in-progress").unwrap();
    fs::write(node.backups().join("1600000000000/status.failed"), "backup-failed").unwrap();
    let service = Service::start(Config { keep: LAST, ..node.config() }, node.embedded()).unwrap();
    let last = make_done(&service, ROCKSDB);
    service.finish();
    assert_eq!(
        names(&node.backups()).into_iter().filter(|name| !name.starts_with('.')).collect::<Vec<_>>(),
        [last.as_str()]
    );
    assert!(of_service(&service)["interruption_timestamp_seconds"] > 1.7e9);
    drop(service);
    assert_eq!(of_service(&node.start())["interruption_timestamp_seconds"], 0.0);
}

#[test]
fn without_a_service_the_same_figures_have_the_same_names() {
    let node = Node::new();
    let service = node.start();
    make_done(&service, PACT);
    let last = make_done(&service, ROCKSDB);
    fs::create_dir(node.backups().join("1648665437000")).unwrap();
    fs::write(node.backups().join("1648665437000/status"), "backup-failed").unwrap();
    verify_backup(&node.backups(), last.as_str(), DEEP, &Control::default()).unwrap();
    service.finish();
    let with = of_service(&service);
    let without = samples(&metrics_of(&node.backups(), Some(0)).unwrap());
    // The node's version comes from the newest record, the free space changes, and a job's sizes were taken before its notes.
    let varies = ["info", "free_bytes", "exclusive_bytes", "textfile_timestamp_seconds"];
    let mut compared_count = 0;
    for (name, value) in without.iter().filter(|(name, _)| !varies.iter().any(|other| name.starts_with(other))) {
        assert_eq!(with.get(name), Some(value), "{name}");
        compared_count += 1;
    }
    assert!(compared_count > 20, "only {compared_count} were compared");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((now - 60.0..=now).contains(&without["textfile_timestamp_seconds"]));
    assert_eq!((without["foreign_backups"], without["damaged_backups"]), (1.0, 0.0));
    assert!(without["last_deep_verification_timestamp_seconds"] > now - 600.0, "{without:?}");
    assert!(metrics_of(&node.backups().join("none"), None).is_err());
}

#[test]
fn damage_pins_and_what_cannot_be_read_are_counted() {
    let node = Node::new();
    let service = node.start();
    let id = make_done(&service, PACT);
    service.finish();
    plant_backups(&node.backups(), &id, [1_600_000_000_000, 1_600_000_000_001].into_iter(), "");
    let planted = node.backups().join("1600000000000");
    fs::write(planted.join("verified.json"), "no note").unwrap();
    fs::write(planted.join(".pinned"), "").unwrap();
    fs::write(node.backups().join("1600000000001/status"), "no status").unwrap();
    let metrics = of_service(&service);
    assert_eq!(metrics["damaged_backups"], 1.0);
    assert_eq!(metrics["pinned_backups"], 1.0);
    assert_eq!((metrics["unreadable_backups"], metrics["directory_readable"]), (1.0, 0.0));
    assert_eq!(of_scope(&metrics, "success_id", "rocksdb,pact"), Some(number(&id)));
}
