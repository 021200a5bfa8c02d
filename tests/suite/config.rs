//! Configuration files through the public API: what is read, what is refused, and the messages.
//!
//! The node's files in `tests/data` look like those that a node prints; they must be accepted unchanged. Flags and environment belong
//! to the program and are tested beside its `plan`.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use chainweb_backup::{
    Config, Depth, FILE_BYTES_MAX, FileConfig, FileHooks, Hooks, Interface, KeepRules, Kind, OpenEndpoint, PactMethod,
    Policy, Schedule, Sums, parse_file, parse_host, parse_interface, parse_name, parse_open_endpoint, parse_size,
    parse_time_of_day, suggest,
};
use proptest::prelude::*;

const NODE_YAML: &str = include_str!("../data/node-config.yaml");
const NODE_JSON: &str = include_str!("../data/node-config.json");

fn said(text: &str) -> FileConfig {
    parse_file(text, "f.yaml").unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// The message for a text that must be refused.
fn refused(text: &str) -> String {
    let error = parse_file(text, "f.yaml").expect_err(text);
    assert_eq!(error.kind(), Kind::Usage, "{text}");
    let message = error.chain();
    assert!(message.starts_with("f.yaml: ") && !message.contains('\n') && !message.ends_with('.'), "{message}");
    message
}

/// Asserts that each text is refused with each of the words after it.
fn all_refused(cases: &[(&str, &[&str])]) {
    for (text, words) in cases {
        let message = refused(text);
        for word in *words {
            assert!(message.contains(word), "no {word:?} in: {message}\nfor: {text:.200}");
        }
    }
}

#[test]
fn the_nodes_own_file_is_accepted_unchanged() {
    let expected = FileConfig {
        database_directory: Some(PathBuf::from("/var/lib/chainweb-node/mainnet01")),
        chainweb_version: Some("mainnet01".to_string()),
        api_enabled: Some(false),
        // Everything else is null or the node's: the address of its `serviceApi` is not ours, and its keys cause no warning.
        ..FileConfig::default()
    };
    assert_eq!(said(NODE_YAML), expected);
    assert_eq!(said(NODE_JSON), expected);
    assert_eq!(said(&format!("---\n{NODE_YAML}")), expected);
    assert_eq!(said(&format!("\u{feff}{NODE_YAML}").replace('\n', "\r\n")), expected);
    assert_eq!(said(&format!("\u{feff}\n\t {NODE_JSON}")), expected);
}

#[test]
fn every_key_of_ours_is_read_in_both_formats_and_both_places() {
    let section = r#"{"api": {"enabled": true, "interface": ["0.0.0.0", "unix:/run/b"], "port": 2000, "socketMode": "0660",
            "socketGroup": 34, "configuration": {"x": [1]},
            "authTokenFile": "/t", "open": ["metrics", "check-backup"], "allowedHosts": ["A.example.org"],
            "allowUnauthenticated": false},
        "directory": "/b", "nodeVersion": "2.31.1", "reserveBytes": "10 GiB", "pactMethod": "clone",
        "rocksdbDirectory": "/r", "sqliteDirectory": "/s", "pinDirectory": "/p",
        "sums": "all", "verify": "deep", "logLevel": "DEBUG", "rereadPercent": 100, "stallSeconds": 60, "limitBytesPerSecond": "100MB",
        "schedule": {"every": "24h", "at": "03:00", "pact": true, "jitter": "10m"},
        "keep": {"last": 3, "daily": 7, "weekly": 4, "monthly": 12},
        "hooks": {"before": ["/bin/b", "x y", "5"], "onVerified": [], "afterSuccess": [["/bin/s"], ["t", "u"]],
            "afterFailure": ["f"], "limitSeconds": 60}}"#;
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<String>>();
    let (day, at) = (Duration::from_secs(86_400), parse_time_of_day("03:00").unwrap());
    let expected = FileConfig {
        database_directory: Some(PathBuf::from("/d")),
        chainweb_version: Some("testnet06".to_string()),
        api_enabled: Some(true),
        backup_directory: Some(PathBuf::from("/b")),
        rocksdb_directory: Some(PathBuf::from("/r")),
        sqlite_directory: Some(PathBuf::from("/s")),
        pin_directory: Some(PathBuf::from("/p")),
        interfaces: Some(vec![Interface::Ip(Ipv4Addr::UNSPECIFIED.into()), Interface::Unix("/run/b".into())]),
        socket_mode: Some(0o660),
        socket_group: Some("34".to_string()),
        port: Some(2000),
        auth_token_file: Some(PathBuf::from("/t")),
        open_endpoints: Some(vec![OpenEndpoint::Metrics, OpenEndpoint::CheckBackup]),
        allowed_hosts: Some(vec!["a.example.org".to_string()]),
        allow_unauthenticated: Some(false),
        node_version: Some("2.31.1".to_string()),
        reserve_bytes: Some(10 << 30),
        pact_method: Some(PactMethod::Clone),
        sums: Some(Sums::All),
        verify: Some(Some(Depth::Deep)),
        log_level: Some(log::LevelFilter::Debug),
        reread_percent: Some(100),
        stall_limit: Some(Duration::from_secs(60)),
        limit_bytes_per_second: Some(100_000_000),
        schedules: Some(vec![Schedule::new(Some(day), Some(at), true, Duration::from_secs(600)).unwrap()]),
        keep: KeepRules { last: Some(3), daily: Some(7), weekly: Some(4), monthly: Some(12) },
        hooks: FileHooks {
            before: Some(vec![words(&["/bin/b", "x y", "5"])]),
            on_verified: Some(Vec::new()),
            after_success: Some(vec![words(&["/bin/s"]), words(&["t", "u"])]),
            after_failure: Some(vec![words(&["f"])]),
            time_limit: Some(Duration::from_secs(60)),
        },
        warnings: Vec::new(),
    };
    let below =
        format!(r#""databaseDirectory": "/d", "chainweb": {{"chainwebVersion": "testnet06", "backup": {section}}}"#);
    let top = format!(r#""databaseDirectory": "/d", "chainwebVersion": "testnet06", "backup": {section}"#);
    for entries in [below, top] {
        assert_eq!(said(&format!("{{{entries}}}")), expected);
        // The same text as YAML in flow style: the marker keeps it from being taken for JSON.
        assert_eq!(said(&format!("--- {{{entries}}}")), expected);
    }
    let yaml = "databaseDirectory: /d\nchainwebVersion: testnet06\nbackup:\n  \
                api: {enabled: yes, interface: ['*', unix:/run/b], port: 2000, socketMode: 660, socketGroup: 34, authTokenFile: /t, open: [metrics, check-backup], \
                allowedHosts: [a.example.org.], allowUnauthenticated: no}\n  directory: /b\n  \
                nodeVersion: 2.31.1\n  reserveBytes: 10GiB\n  pactMethod: clone\n  \
                rocksdbDirectory: /r\n  sqliteDirectory: /s\n  pinDirectory: /p\n  sums: all\n  verify: deep\n  logLevel: debug\n  rereadPercent: 100\n  stallSeconds: 60\n  limitBytesPerSecond: 100 MB\n  \
                schedule:\n  - {every: 24h, at: 03:00, pact: yes, jitter: 600s}\n  keep: {last: 3, daily: 7, weekly: 4, monthly: 12}\n  \
                hooks:\n    before: [/bin/b, x y, 5]\n    onVerified: []\n    afterSuccess:\n    - [/bin/s]\n    - [t, u]\n    \
                afterFailure:\n    - f\n    limitSeconds: 60\n";
    assert_eq!(said(yaml), expected);
}

#[test]
fn the_top_level_wins_key_by_key() {
    let both = said(
        "chainwebVersion: a\nbackup: {directory: /top, api: {enabled: true, port: null}}\n\
         chainweb: {chainwebVersion: b, backup: {directory: /low, reserveBytes: 5, api: {enabled: false, port: 7}}}",
    );
    assert_eq!(both.backup_directory, Some(PathBuf::from("/top")));
    assert_eq!(both.chainweb_version.as_deref(), Some("a"));
    assert_eq!((both.api_enabled, both.port, both.reserve_bytes), (Some(true), Some(7), Some(5)));
}

#[test]
fn nothing_and_null_say_nothing() {
    let nulls = "databaseDirectory: ~\nchainwebVersion:\nchainweb: null\nbackup:\n";
    let inner = "backup: {api: , directory: NULL, nodeVersion: null, reserveBytes: ~}";
    let api = r#"{"backup": {"api": {"enabled": null, "interface": null, "port": null, "configuration": null}}}"#;
    for text in ["", " \n\t\n", "# only a comment\n", "---\n", "null", "{}", "\u{feff}", nulls, inner, api] {
        assert_eq!(said(text), FileConfig::default(), "{text:?}");
    }
}

#[test]
fn unknown_keys_below_backup_are_refused_with_the_right_one() {
    all_refused(&[
        (
            "chainweb: {backup: {direcotry: /b}}",
            &[
                "`chainweb.backup.direcotry`",
                "did you mean `directory`",
                "api, directory, hooks, keep, limitBytesPerSecond, logLevel, nodeVersion, pactMethod, pinDirectory, rereadPercent, reserveBytes, \
                 rocksdbDirectory, schedule, sqliteDirectory, stallSeconds, sums, verify",
            ],
        ),
        (
            "backup: {api: {enable: true}}",
            &[
                "`backup.api.enable`",
                "`enabled`",
                "enabled, interface, port, socketMode, socketGroup, authTokenFile, open, allowedHosts, allowUnauthenticated, configuration",
            ],
        ),
        (r#"{"backup": {"Directory": "/b"}}"#, &["`backup.Directory`", "did you mean `directory`"]),
        ("backup: {reserve-bytes: 5}", &["did you mean `reserveBytes`"]),
        ("backup: {enabled: true}", &["it belongs at `backup.api.enabled`"]),
        ("chainweb: {backup: {api: {directory: /b}}}", &["it belongs at `chainweb.backup.directory`"]),
        ("backup: {zzzz: 1}", &["`backup.zzzz`", "remove it", "known here: api"]),
        // A null value does not make the key known.
        ("backup: {zzzz: null}", &["`backup.zzzz`"]),
        ("backup: {\"a\\nb\\x1b[2J\": 1}", &["`backup.a\\nb\\u{1b}[2J`"]),
    ]);
    assert!(refused(&format!("backup: {{{}: 1}}", "k".repeat(900))).len() < 330);
}

#[test]
fn wrong_types_name_the_key_what_was_found_and_what_is_expected() {
    all_refused(&[
        ("backup: true", &["key `backup` must be a mapping, found the truth value `true`"]),
        ("backup: [1]", &["key `backup` must be a mapping, found a list"]),
        ("backup: {api: on}", &["key `backup.api` must be a mapping, found the truth value `on`"]),
        ("backup: {api: {enabled: maybe}}", &["`backup.api.enabled` must be true or false, found the text `maybe`"]),
        (
            r#"{"backup": {"api": {"enabled": "true"}}}"#,
            &["must be true or false, found the text `true` (remove the quotes)"],
        ),
        ("backup: {stallSeconds: '900'}", &["must be a number of seconds, found the text `900` (remove the quotes)"]),
        ("backup: {stallSeconds: 15m}", &["`backup.stallSeconds`: `15m` is not a number of seconds: write 900"]),
        (r#"{"backup": {"stallSeconds": "2 h"}}"#, &["`2 h` is not a number of seconds: write 7200"]),
        ("backup: {stallSeconds: 1.5}", &["`1.5` is not a number of seconds: write a whole number like 900"]),
        ("backup: {stallSeconds: [1]}", &["must be a number of seconds, found a list"]),
        (
            "backup: {directory: '~/backups'}",
            &["`backup.directory`", "`~/backups` begins with ~", "write the whole path"],
        ),
        ("databaseDirectory: ~node/db", &["`databaseDirectory`", "begins with ~, which only a shell replaces"]),
        (
            "chainwebVersion: main net",
            &["`chainwebVersion`: `main net` is not a version", "without blanks", "like mainnet01"],
        ),
        ("backup: {api: {enabled: 1}}", &["must be true or false, found the number `1`"]),
        ("backup: {api: {port: 65536}}", &["`backup.api.port` must be a port number from 0 to 65535", "`65536`"]),
        ("backup: {api: {port: -1}}", &["found the number `-1`"]),
        (r#"{"backup": {"api": {"port": 80.0}}}"#, &["found the number `80.0`"]),
        ("backup: {api: {port: '80'}}", &["found the text `80` (remove the quotes)"]),
        (
            "backup: {api: {interface: 5}}",
            &["`backup.api.interface` must be an IP address, unix:PATH, or a list of these, found the number `5`"],
        ),
        ("backup: {api: {interface: eth0}}", &["`backup.api.interface`", "`eth0` is not an IP address", "127.0.0.1"]),
        ("backup: {api: {authTokenFile: 5}}", &["`backup.api.authTokenFile` must be a path, found the number `5`"]),
        ("backup: {api: {authTokenFile: ~/token}}", &["`backup.api.authTokenFile`", "begins with ~"]),
        (
            "backup: {api: {open: metrics}}",
            &["`backup.api.open` must be a list of check-backup, health-check and metrics", "found the text `metrics`"],
        ),
        (
            "backup: {api: {open: [list-backups]}}",
            &["`backup.api.open`: `list-backups` cannot be open", "use check-backup, health-check or metrics"],
        ),
        ("backup: {api: {open: [[metrics]]}}", &["`backup.api.open` must be a list of check-backup"]),
        ("backup: {api: {allowedHosts: a.example}}", &["`backup.api.allowedHosts` must be a list of names of hosts"]),
        (
            "backup: {api: {allowedHosts: ['http://a.example/']}}",
            &["`backup.api.allowedHosts`: `http://a.example/` is no name of a host", "write the name alone"],
        ),
        ("backup: {api: {allowedHosts: ['a.example:80']}}", &["without the port, which is not compared"]),
        ("backup: {api: {allowedHosts: ['*.example']}}", &["no patterns"]),
        ("backup: {api: {allowUnauthenticated: 1}}", &["must be true or false, found the number `1`"]),
        ("backup: {directory: [a]}", &["`backup.directory` must be a path, found a list"]),
        ("backup: {directory: ''}", &["`backup.directory`", "the path is empty", "null"]),
        ("chainweb: {backup: {nodeVersion: 2.30}}", &["`chainweb.backup.nodeVersion`", "number `2.30`", "in quotes"]),
        ("backup: {nodeVersion: \"1\\r\\nx-y: z\"}", &["`1\\r\\nx-y: z` is not a version"]),
        ("backup: {reserveBytes: true}", &["`backup.reserveBytes` must be a number of bytes, or a size like 10GiB"]),
        ("backup: {reserveBytes: 10G}", &["`backup.reserveBytes`", "`10G` is not a size", "like 10GiB"]),
        ("databaseDirectory: 5", &["`databaseDirectory` must be a path, found the number `5`"]),
        ("chainweb: x", &["`chainweb` must be a mapping"]),
        ("chainweb: {chainwebVersion: {a: b}}", &["`chainweb.chainwebVersion` must be a text, found a mapping"]),
    ]);
    assert_eq!(said("backup: {nodeVersion: '2.30'}").node_version.as_deref(), Some("2.30"));
    assert_eq!(said("backup: {nodeVersion: !!str 2.30}").node_version.as_deref(), Some("2.30"));
}

#[test]
fn schedules_rules_and_hooks_that_cannot_be_are_refused_with_the_remedy() {
    let many_hooks = format!("backup: {{hooks: {{before: [{}]}}}}", "[a],".repeat(9));
    let many_schedules = format!("backup: {{schedule: [{}]}}", "{every: 1h},".repeat(9));
    all_refused(&[
        ("backup: {schedule: 24h}", &["`backup.schedule` must be a schedule, or a list", "found the text `24h`"]),
        ("backup: {schedule: {}}", &["key `backup.schedule`: a schedule needs an interval or a time of the day"]),
        ("backup: {schedule: {evry: 24h}}", &["`backup.schedule.evry`", "did you mean `every`"]),
        ("backup: {schedule: {every: 24}}", &["`backup.schedule.every` must be an interval with its unit, like 24h"]),
        ("backup: {schedule: {every: 1 week}}", &["`1 week` is not an interval", "with s, m, h or d"]),
        ("backup: {schedule: {at: 3am}}", &["`3am` is not a time of the day", "in UTC, like 03:00"]),
        ("backup: {schedule: {at: 300}}", &["must be a time of the day in UTC, like 03:00, found the number `300`"]),
        ("backup: {schedule: {every: 5h, at: '03:00'}}", &["an interval of 5h has no place in the day"]),
        ("backup: {schedule: {every: 1h, jitter: 50m}}", &["a jitter of 50m is too long", "30m"]),
        ("backup: {schedule: [{every: 1h}, {pact: true}]}", &["key `backup.schedule[1]`: a schedule needs"]),
        ("backup: {schedule: [{every: 1h}, 5]}", &["`backup.schedule[1]` must be a mapping, found the number `5`"]),
        (&many_schedules, &["`backup.schedule` has 9 schedules: write at most 8"]),
        ("backup: {keep: 5}", &["`backup.keep` must be a mapping"]),
        ("backup: {keep: {hourly: 5}}", &["`backup.keep.hourly`", "known here: last, daily, weekly, monthly"]),
        ("backup: {keep: {last: '5'}}", &["a whole number of backups, found the text `5` (remove the quotes)"]),
        ("backup: {keep: {daily: -1}}", &["`backup.keep.daily` must be a whole number of backups"]),
        ("backup: {hooks: {after-success: [a]}}", &["`backup.hooks.after-success`", "did you mean `afterSuccess`"]),
        ("backup: {hooks: {before: /bin/true}}", &["a command is a list of words, found the text `/bin/true`"]),
        ("backup: {hooks: {before: [/bin/true -x]}}", &["`/bin/true -x` is one word", "each word as an item"]),
        ("backup: {hooks: {before: [bin/true]}}", &["`bin/true` is a relative path", "an absolute path"]),
        ("backup: {hooks: {before: ['']}}", &["the command is empty"]),
        ("backup: {hooks: {before: [[]]}}", &["the command is empty"]),
        ("backup: {hooks: {before: [a, {b: c}]}}", &["must be a command, or a list of commands"]),
        ("backup: {hooks: {before: [[a], b]}}", &["must be a command, or a list of commands"]),
        ("backup: {hooks: {before: [a, null]}}", &["must be a command, or a list of commands"]),
        (&many_hooks, &["9 commands are too many: write at most 8"]),
        ("backup: {hooks: {limitSeconds: 0}}", &["`backup.hooks.limitSeconds` is 0", "from 1 to 604800"]),
        ("backup: {hooks: {limitSeconds: 1h}}", &["`1h` is not a number of seconds: write 3600"]),
    ]);
    let said = said("backup: {schedule: [{every: 1h}, {at: \"03:00\", pact: true}], keep: {last: 5}}");
    let schedules: Vec<String> = said.schedules.unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(schedules, ["every 1h", "every 24h at 03:00"]);
    assert_eq!(said.keep.policy(), Policy { keep_last: 5, ..Policy::default() });
    assert_eq!(said.hooks.hooks(), Hooks::default());
    let both = parse_file("backup: {keep: {last: 1}, hooks: {before: []}, schedule: []}", "1").unwrap();
    let both =
        both.or(parse_file("backup: {keep: {last: 2, daily: 3}, hooks: {before: [a]}, schedule: {every: 1h}}", "2")
            .unwrap());
    assert_eq!((both.keep.last, both.keep.daily), (Some(1), Some(3)));
    assert_eq!((both.hooks.before, both.schedules), (Some(Vec::new()), Some(Vec::new())));
}

#[test]
fn what_is_no_configuration_is_refused_with_its_place() {
    let deep_json = format!("{{\"a\": {}", "[".repeat(100_000));
    let (deep_yaml, deepest_yaml) = ("[".repeat(100), "[".repeat(100_000));
    let deep_block: String = (0..200).map(|n| format!("{}k:\n", " ".repeat(n))).collect();
    let chained: String = (1..100).map(|n| format!("k{n}: &a{n} [[[*a{}]]]\n", n - 1)).collect();
    let chained = format!("k0: &a0 x\n{chained}");
    let long = "#".repeat(FILE_BYTES_MAX + 1);
    all_refused(&[
        ("- a\n- b\n", &["must be a mapping of keys to values, found a list"]),
        ("hello", &["must be a mapping", "found the text `hello`"]),
        ("7", &["found the number `7`"]),
        ("{\"a\": 1,\n  oops}", &["not JSON", "line 2 column 3"]),
        ("{} x", &["not JSON", "trailing characters", "line 1 column 4"]),
        ("a: 1\nb: [1, 2\nc: 3\n", &["not YAML", "line 3", "column"]),
        ("a: 1\n\tb: 2\n", &["not YAML", "found a tab at line 1 column 4"]),
        ("interface: *\n", &["not YAML", "line 1"]),
        ("a: 1\n---\nb: 2\n", &["second document", "line 2"]),
        ("a: &x [*x]", &["alias", "line 1"]),
        ("backup: {directory: /a, directory: /b}", &["`backup.directory` occurs twice"]),
        ("backup: {}\nchainweb: {}\nbackup: {}\n", &["`backup` occurs twice"]),
        (r#"{"backup": {"api": {"port": 1, "port": 2}}}"#, &["`backup.api.port` occurs twice"]),
        ("x: &x {backup: {}}\n<<: *x\n", &["merge key `<<`", "write its keys out"]),
        (&deep_json, &["not JSON", "recursion limit", "line 1 column"]),
        (&deep_yaml, &["nested deeper than 64 levels", "line 1 column 65"]),
        (&deepest_yaml, &["not YAML", "recursion limit", "line 1 column"]),
        (&deep_block, &["nested deeper than 64 levels"]),
        (&chained, &["nested deeper than 64 levels", "line 23"]),
        (&long, &["1048577 bytes, at most 1048576"]),
    ]);
}

#[test]
fn what_is_not_ours_is_tolerated_whatever_it_is() {
    let text = "chainweb-data: 1\nx: 1\nx: 2\n? [a, b]\n: c\n5: d\nlogging: &l {a: !custom b, <<: {c: d}}\n\
                again: [*l, *l]\nbackup: {directory: /b}\n";
    assert_eq!(said(text), FileConfig { backup_directory: Some(PathBuf::from("/b")), ..FileConfig::default() });
    // Ten levels of ten aliases each would be 10^10 nodes for a reader that copies them.
    let laughs: String = (1..10).map(|n| format!("l{n}: &l{n} [{}]\n", format!("*l{},", n - 1).repeat(10))).collect();
    assert_eq!(said(&format!("l0: &l0 ha\n{laughs}")), FileConfig::default());
}

#[test]
fn a_near_miss_outside_backup_is_a_warning() {
    for (text, wrong, right) in [
        ("backups: {api: {enabled: true}}", "`backups`", "`backup`"),
        ("chainweb: {Backup: {}}", "`chainweb.Backup`", "`backup`"),
        ("database-directory: /d", "`database-directory`", "`databaseDirectory`"),
    ] {
        let said = said(text);
        assert_eq!(FileConfig { warnings: Vec::new(), ..said.clone() }, FileConfig::default());
        let [warning] = said.warnings.as_slice() else { panic!("{text}: {:?}", said.warnings) };
        assert!(warning.starts_with("f.yaml: ") && warning.contains(wrong) && warning.contains(right), "{warning}");
    }
}

#[test]
fn the_first_of_two_files_wins_where_it_says_something() {
    let first = FileConfig { port: Some(1), ..FileConfig::default() };
    let second = FileConfig { port: Some(2), api_enabled: Some(true), ..FileConfig::default() };
    let both = first.or(second);
    assert_eq!((both.port, both.api_enabled, both.interfaces), (Some(1), Some(true), None));
}

#[test]
fn a_new_configuration_has_the_api_off() {
    let config = Config::new("/b");
    assert_eq!((config.backup_directory.as_path(), config.api_enabled), (PathBuf::from("/b").as_path(), false));
    assert!(config.chainweb_version.is_none() && config.reserve_bytes.is_none() && config.heights_program.is_none());
    assert_eq!(config.verify, Some(Depth::Quick));
}

#[test]
fn sizes() {
    for (text, bytes) in [
        ("0", 0),
        ("1073741824", 1 << 30),
        ("7B", 7),
        ("500MB", 500_000_000),
        ("2kb", 2_000),
        ("3 TB", 3_000_000_000_000),
        ("1KiB", 1 << 10),
        ("5mib", 5 << 20),
        ("10GiB", 10 << 30),
        ("2TiB", 2 << 40),
        ("18446744073709551615", u64::MAX),
    ] {
        assert_eq!(parse_size(text).ok(), Some(bytes), "{text}");
    }
    for text in
        ["", "GiB", "-1", "+1", "1.5GiB", "10G", "1e9", "0x10", "1 0", "99999999TiB", "18446744073709551616", "1é"]
    {
        assert_eq!(parse_size(text).expect_err(text).kind(), Kind::Usage);
    }
}

#[test]
fn interfaces_and_names() {
    for (text, address) in [
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", "127.0.0.1"),
        ("*", "0.0.0.0"),
        ("*4", "0.0.0.0"),
        ("*6", "::"),
        ("::1", "::1"),
        ("[::1]", "::1"),
    ] {
        assert_eq!(parse_interface(text).ok(), address.parse().ok().map(Interface::Ip), "{text}");
    }
    for text in
        ["", "127.0.0.1:1849", "eth0", "256.1.1.1", "unix:", "unix:run/x", "unix:/", "unix:/run/", "unix:~/x", "[::1"]
    {
        assert!(parse_interface(text).is_err(), "{text}");
    }
    for text in ["mainnet01", "2.31.1", "fast-CPM-peterson", "2.31~rc1+g1234"] {
        assert_eq!(parse_name(text).ok().as_deref(), Some(text));
    }
    for text in ["", "a b", "a/b", "a\r\nb", "ü", &"x".repeat(129)] {
        assert!(parse_name(text).is_err(), "{text}");
    }
}

#[test]
fn names_of_hosts_and_open_endpoints() {
    for (text, name) in [
        ("backup.example.org", "backup.example.org"),
        ("Backup.Example.ORG.", "backup.example.org"),
        ("chainweb-backup", "chainweb-backup"),
        ("a_b", "a_b"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
    ] {
        assert_eq!(parse_host(text).ok().as_deref(), Some(name), "{text}");
    }
    let long = format!("{}.example", "a.".repeat(130));
    for (text, remedy) in [
        ("", "write one like backup.example.org"),
        (".", "write one like backup.example.org"),
        ("a..b", "write one like backup.example.org"),
        ("a b", "write one like backup.example.org"),
        ("*", "no patterns"),
        ("*.example.org", "no patterns"),
        ("bücher.example", "with letters, digits, hyphens and dots"),
        ("user@host", "with letters, digits, hyphens and dots"),
        ("a/b", "with letters, digits, hyphens and dots"),
        (&long, "write one like backup.example.org"),
        ("a.example:443", "write it without the port"),
        ("https://a.example", "write the name alone, without http:// and path"),
        ("127.0.0.1", "an address is always permitted, leave it out"),
        ("::1", "an address is always permitted, leave it out"),
        ("[::1]:80", "an address is always permitted, leave it out"),
    ] {
        let message = parse_host(text).expect_err(text).chain();
        assert!(message.contains("is no name of a host") && message.contains(remedy), "{text}: {message}");
    }
    for endpoint in [OpenEndpoint::CheckBackup, OpenEndpoint::HealthCheck, OpenEndpoint::Metrics] {
        assert_eq!(parse_open_endpoint(endpoint.word()).ok(), Some(endpoint));
    }
    for text in ["", "make-backup", "list-backups", "status-page", "Metrics", "metrics,health-check", "/metrics", "*"] {
        assert!(
            parse_open_endpoint(text).expect_err(text).chain().contains("cannot be open: use check-backup"),
            "{text}"
        );
    }
}

#[test]
fn suggestions() {
    let parameters = ["backupPact"];
    for typed in
        ["backupPactState", "backup_pact", "backup-pact", "backupPakt", "pact", "BACKUPPACT", "backup", "bakcupPact"]
    {
        assert_eq!(suggest(typed, &parameters), Some("backupPact"), "{typed}");
    }
    for typed in ["", "x", "ba", "force", "async", "timeout", "état", &"backupPact".repeat(7)] {
        assert_eq!(suggest(typed, &parameters), None, "{typed}");
    }
    let keys = ["enabled", "interface", "port", "configuration"];
    for (typed, meant) in
        [("prot", "port"), ("intreface", "interface"), ("enable", "enabled"), ("conf", "configuration")]
    {
        assert_eq!(suggest(typed, &keys), Some(meant), "{typed}");
    }
    assert_eq!(suggest("lits", &["serve", "make", "list", "check"]), Some("list"));
    // An equal word is preferred to one that only begins with it.
    assert_eq!(suggest("api", &["apiPort", "api"]), Some("api"));
}

/// A node's file with pieces cut out, doubled and overwritten: text that is almost valid reaches more of the parser than noise.
fn mutated() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("backup: ".to_string()),
        Just("{".to_string()),
        Just("\n---\n".to_string()),
        Just("&a *a".to_string()),
        Just("|\n ".to_string()),
        "[\\[\\]{}:,\"'#&*!|>%@?\\-\n\r\t ~]{1,4}",
        "\\PC{1,3}",
    ];
    let cuts = proptest::collection::vec((0..4000_usize, 0..60_usize, piece), 1..6);
    (proptest::bool::ANY, cuts).prop_map(|(json, cuts)| {
        let mut text: Vec<char> = if json { NODE_JSON } else { NODE_YAML }.chars().collect();
        for (at, length, piece) in cuts {
            let at = at.min(text.len());
            let end = (at + length).min(text.len());
            text.splice(at..end, piece.chars());
        }
        text.into_iter().collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_panics(text in any::<String>()) {
        let _ = parse_file(&text, "f");
        let _ = (suggest(&text, &["backupPact"]), parse_size(&text), parse_interface(&text), parse_name(&text));
    }

    #[test]
    fn no_punctuation_panics(text in "[\\[\\]{}:,\"'#&*!|>%@?\\-\n\r\t a1~.<]{0,60}") {
        let _ = parse_file(&text, "f");
    }

    #[test]
    fn no_damaged_node_file_panics(text in mutated()) {
        let _ = parse_file(&text, "f");
    }

    #[test]
    fn what_is_written_is_read(
        enabled: bool,
        port: u16,
        bytes: u64,
        directory in "/[ -~é]{1,30}",
        version in "[!-.0-~]{1,128}",
    ) {
        let json = serde_json::json!({"backup": {"api": {"enabled": enabled, "port": port}, "directory": directory,
            "nodeVersion": version, "reserveBytes": bytes}});
        for text in [json.to_string(), format!("--- {json}")] {
            let said = parse_file(&text, "f").expect("every value is in its range");
            prop_assert_eq!(said.api_enabled, Some(enabled));
            prop_assert_eq!(said.port, Some(port));
            prop_assert_eq!(said.reserve_bytes, Some(bytes));
            prop_assert_eq!(said.backup_directory, Some(PathBuf::from(&directory)));
            prop_assert_eq!(said.node_version.as_ref(), Some(&version));
        }
    }
}
