//! Tests of the command line: what was typed, and what it is taken for.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use chainweb_backup::{MANUAL, SocketAccess};

use crate::line::program;

use super::*;

const TOP: &str =
    "databaseDirectory: /file\nbackup: {directory: /file/b, api: {enabled: true, port: 7, interface: ::1}}";

/// Parses a command line of words, with an environment and files that stand here as text.
fn run(line: &str, env: &[(&str, &str)], files: &[(&str, &str)]) -> Result<Plan, Exit> {
    let args = ["chainweb-backup"].into_iter().chain(line.split_whitespace()).map(OsString::from);
    let look = |list: &[(&str, &str)], name: &str| list.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string());
    let env = |name: &str| look(env, name).map(OsString::from);
    let read_file = |path: &Path| look(files, &path.to_string_lossy()).ok_or_else(|| io::ErrorKind::NotFound.into());
    // The file that has the name of a directory lists the databases in it.
    let list_databases = |parent: &Path| {
        let names = look(files, &parent.to_string_lossy()).unwrap_or_default();
        names.split_whitespace().map(str::to_owned).collect()
    };
    parse(args, &Around { env: &env, read_file: &read_file, list_databases: &list_databases })
}

fn serve(line: &str, env: &[(&str, &str)], files: &[(&str, &str)]) -> ServePlan {
    match run(line, env, files) {
        Ok(Plan::Serve(plan)) => plan,
        other => panic!("{line}: {other:?}"),
    }
}

/// Asserts that a line is wrong usage and that the message has each of the words.
fn wrong(line: &str, env: &[(&str, &str)], files: &[(&str, &str)], words: &[&str]) {
    let exit = run(line, env, files).expect_err(line);
    assert_eq!((exit.code, exit.to_stdout), (2, false), "{line}");
    assert!(exit.text.starts_with("error: ") && exit.text.ends_with(".\n"), "{}", exit.text);
    for word in words {
        assert!(exit.text.contains(word), "{line}: no {word:?} in {}", exit.text);
    }
}

#[test]
fn clap_finds_no_fault_in_the_declaration() {
    program().debug_assert();
}

#[test]
fn defaults() {
    for line in ["--database-directory /d", "serve --database-directory /d", "--database-directory /d serve"] {
        let plan = serve(line, &[], &[]);
        assert_eq!((plan.config.backup_directory.as_path(), plan.config.api_enabled), (Path::new("/d/backups"), false));
        assert_eq!((plan.listening.addresses(), plan.listening.port), (vec![Ipv4Addr::LOCALHOST.into()], 1849));
        assert!(plan.listening.named.is_empty() && plan.listening.access == SocketAccess::OWNER);
        assert_eq!((plan.address_file, plan.config.chainweb_version, plan.config.node_version), (None, None, None));
        assert_eq!((plan.config.reserve_bytes, plan.log_level), (None, LevelFilter::Info));
        assert!(plan.warnings[0].contains("API is off") && plan.warnings[1].contains("version is unknown"));
    }
    assert_eq!(serve("--database-directory d", &[], &[]).config.backup_directory, Path::new("d/backups"));
    use LevelFilter::{Debug, Error, Info, Off, Trace, Warn};
    for (name, level) in ["error", "warn", "info", "debug", "trace", "off", "quiet"]
        .into_iter()
        .zip([Error, Warn, Info, Debug, Trace, Off, Off])
    {
        assert_eq!(serve(&format!("--database-directory d --log-level {name}"), &[], &[]).log_level, level);
    }
}

#[test]
fn flag_before_environment_before_later_file_before_earlier_file() {
    let files = &[("1", TOP), ("2", "chainweb: {chainwebVersion: v2, backup: {directory: /2, api: {enabled: false}}}")];
    let env = &[("BACKUP_DIR", "/env"), ("ENABLE_BACKUP_API", "true")];
    let empty = &[("BACKUP_DIR", ""), ("ENABLE_BACKUP_API", "")];
    let place = |line: &str, env: &[_], files: &[_]| serve(line, env, files).config.backup_directory;
    let on = |line: &str, env: &[_], files: &[_]| serve(line, env, files).config.api_enabled;
    let both = "--config-file 1 --config-file 2";
    assert_eq!(place(&format!("{both} --backup-directory /flag"), env, files), Path::new("/flag"));
    assert_eq!(place(both, env, files), Path::new("/env"));
    assert_eq!(place(both, empty, files), Path::new("/2"));
    assert_eq!(place("--config-file 2 --config-file 1", &[], files), Path::new("/file/b"));
    assert_eq!(place("--config-file 2 --database-directory /x", &[], &[("2", "")]), Path::new("/x/backups"));
    assert!(!on(&format!("{both} --disable-backup-api"), env, files));
    assert!(on(both, env, files) && !on(both, empty, files) && on("--config-file 2 --config-file 1", &[], files));
    assert!(on(&format!("{both} --enable-backup-api"), &[("ENABLE_BACKUP_API", "0")], files));
    assert!(!on("--config-file 1", &[("ENABLE_BACKUP_API", "No")], files));

    let plan = serve(both, &[], files);
    assert_eq!(
        (plan.listening.port, plan.listening.addresses()),
        (7, vec!["::1".parse::<IpAddr>().expect("an address")])
    );
    assert_eq!(
        (plan.node.database_directory.as_path(), plan.config.chainweb_version.as_deref()),
        (Path::new("/file"), Some("v2"))
    );
    let flags = "--service-port 0 --service-interface * --database-directory /flag --chainweb-version f \
                 --node-version 2.31 --reserve-bytes 2KiB --address-file a --log-level DEBUG";
    let plan = serve(&format!("{both} {flags} --enable-backup-api"), &[], files);
    assert_eq!((plan.listening.port, plan.log_level), (0, LevelFilter::Debug));
    assert_eq!(plan.listening.addresses(), [IpAddr::from(Ipv4Addr::UNSPECIFIED)]);
    assert_eq!(
        (plan.node.database_directory.as_path(), plan.config.chainweb_version.as_deref()),
        (Path::new("/flag"), Some("f"))
    );
    assert_eq!((plan.config.node_version.as_deref(), plan.config.reserve_bytes), (Some("2.31"), Some(2048)));
    assert_eq!((plan.address_file, plan.warnings.len()), (Some("a".into()), 0));
}

#[test]
fn the_other_commands() {
    let warnings = Vec::new();
    let Ok(Plan::Make(make)) = run("--database-directory /d make --backup-pact", &[], &[]) else { panic!("make") };
    assert_eq!((make.config.backup_directory.as_path(), make.backup_pact), (Path::new("/d/backups"), true));
    assert_eq!(make.config.verify, Some(Depth::Quick), "a backup is verified unless it is said that it is not");
    let Ok(Plan::Make(make)) = run("--database-directory /d --verify none make", &[], &[]) else { panic!("make") };
    assert_eq!(make.config.verify, None);
    // The daemon's variables are set where the other commands run too; only `serve` judges the switch.
    let env = &[("BACKUP_DIR", "/b"), ("ENABLE_BACKUP_API", "maybe")];
    let (backup_directory, log_level) = (PathBuf::from("/b"), LevelFilter::Info);
    let action = Action::List { output: Output::Json, columns: Vec::new() };
    let list = Plan::Manage {
        backup_directory: "/b".into(),
        database_directory: None,
        action,
        limit_bytes_per_second: None,
        stall_limit: None,
        hooks: Hooks::default(),
        log_level,
        warnings: Vec::new(),
        notes: Vec::new(),
    };
    assert_eq!(run("list --json", env, &[]), Ok(list));
    let action = Action::Check("17".into());
    let (limit_bytes_per_second, stall_limit, notes) = (None, None, Vec::new());
    let check = Plan::Manage {
        backup_directory,
        database_directory: None,
        action,
        limit_bytes_per_second,
        stall_limit,
        hooks: Hooks::default(),
        log_level,
        warnings,
        notes,
    };
    assert_eq!(run("check 17 --config-file f", env, &[("f", "{}")]), Ok(check));
    for (line, below) in
        [("list --database-directory /d", true), ("list --database-directory /d --backup-directory /e", false)]
    {
        let Ok(Plan::Manage { database_directory, .. }) = run(line, &[], &[]) else { panic!("{line}") };
        assert_eq!(database_directory, below.then(|| PathBuf::from("/d")), "{line}");
    }
    // A child of these commands may be as silent as that of a job.
    let stalled = run("verify --deep 17 --config-file f", env, &[("f", "backup:\n  stallSeconds: 7\n")]);
    let Ok(Plan::Manage { stall_limit, .. }) = stalled else { panic!("verify") };
    assert_eq!(stall_limit, Some(Duration::from_secs(7)));
    let reserved = run("metrics --config-file f", env, &[("f", "backup:\n  reserveBytes: 7\n")]);
    let Ok(Plan::Manage { action, .. }) = reserved else { panic!("metrics") };
    assert_eq!(action, Action::Metrics { reserve_bytes: Some(7) });
    assert_eq!(run("heights /x", &[], &[]), Ok(Plan::Child(Child::Heights { directory: "/x".into() })));
    assert!(matches!(run("list --config-file f", &[], &[("f", TOP)]), Ok(Plan::Manage { .. })));
}

#[test]
fn what_is_done_with_finished_backups() {
    let action = |line: &str| match run(&format!("{line} --backup-directory /b"), &[], &[]) {
        Ok(Plan::Manage { action, .. }) => action,
        other => panic!("{line}: {other:?}"),
    };
    assert_eq!(action("verify latest --deep"), Action::Verify { id: "latest".into(), depth: Depth::Deep });
    let restore = Action::Restore {
        id: "1".into(),
        to: "/n".into(),
        replace: true,
        copy: false,
        depth: Depth::Quick,
        dry_run: None,
    };
    assert_eq!(action("restore 1 --to /n --replace"), restore);
    let copy = Action::Restore {
        id: "1".into(),
        to: "/n".into(),
        replace: false,
        copy: true,
        depth: Depth::Deep,
        dry_run: None,
    };
    assert_eq!(action("restore 1 --to /n --copy --deep"), copy);
    let limit = |line: &str, file: &str| match run(
        &format!("{line} --backup-directory /b --config-file f"),
        &[],
        &[("f", file)],
    ) {
        Ok(Plan::Manage { limit_bytes_per_second, warnings, .. }) => (limit_bytes_per_second, warnings.len()),
        other => panic!("{line}: {other:?}"),
    };
    let configured = "backup: { limitBytesPerSecond: 20MB }";
    for line in ["sum latest", "verify latest --deep", "restore latest --to /n"] {
        assert_eq!(limit(line, configured), (Some(20_000_000), 0));
        assert_eq!(limit(&format!("{line} --limit-bytes-per-second 5MB"), configured), (Some(5_000_000), 0));
        assert_eq!(limit(&format!("{line} --limit-bytes-per-second 50"), configured), (Some(50), 1));
    }
    assert_eq!(limit("drill latest", "backup: {}"), (Some(32_000_000), 0));
    assert_eq!(limit("drill latest", configured), (Some(20_000_000), 0));
    assert_eq!(limit("drill latest --limit-bytes-per-second 0", configured), (Some(0), 0));
    assert_eq!(action("delete 1 2"), Action::Delete(vec!["1".into(), "2".into()]));
    let policy = Policy { keep_last: 3, keep_daily: 7, ..Policy::default() };
    assert_eq!(action("prune --keep-last 3 --keep-daily 7 --dry-run"), Action::Prune { policy, dry_run: true });
    assert_eq!(action("unpin 1"), Action::Unpin("1".into()));
    assert_eq!(action("cancel"), Action::Cancel(None));
    assert_eq!(action("cancel 1"), Action::Cancel(Some("1".into())));
    assert_eq!(action("sum latest"), Action::Sum("latest".into()));
    wrong("prune --backup-directory b", &[], &[], &["prune needs a rule"]);
    wrong("prune --backup-directory b --keep-last 0", &[], &[], &["prune needs a rule"]);
    wrong("restore 1 --backup-directory b", &[], &[], &["--to <DIR>"]);
    wrong("delete --backup-directory b", &[], &[], &["delete needs the ID"]);
    wrong("verify 1 --backup-directory b --dry-run", &[], &[], &["--dry-run belongs to 'restore' and 'prune'"]);
}

/// What a command line prints instead of doing something.
fn shown(line: &str) -> String {
    let exit = run(line, &[], &[]).expect_err(line);
    assert_eq!((exit.code, exit.to_stdout), (0, true), "{line}: {}", exit.text);
    exit.text
}

/// The commands that have help.
fn commands() -> Vec<String> {
    program().get_subcommands().map(|command| command.get_name().to_owned()).collect()
}

#[test]
fn help_and_version_are_no_errors() {
    let page = shown("--help");
    for line in ["-h", "help", "--database-directory /d --help", "--help restore"] {
        assert_eq!(shown(line), page, "{line}");
    }
    assert!(page.contains("Exit codes:"));
    for line in ["--version", "-V", "--database-directory /d --version"] {
        assert_eq!(shown(line), format!("chainweb-backup {}\n", env!("CARGO_PKG_VERSION")), "{line}");
    }
    assert_eq!(commands().len(), 19);
    for command in commands() {
        assert!(page.lines().any(|line| line.starts_with(&format!("  {command} "))), "{command} is not in the help");
    }
}

#[test]
fn each_command_has_its_own_help() {
    let mut pages = BTreeSet::from([shown("help")]);
    for command in commands() {
        let text = shown(&format!("{command} --help"));
        assert_eq!(text, shown(&format!("help {command}")));
        assert_eq!(text, shown(&format!("--database-directory /d {command} -h")));
        assert!(text.contains(&format!("Usage: chainweb-backup {command}")), "{text}");
        assert!(pages.insert(text), "{command}");
    }
    for page in &pages {
        assert!(page.lines().all(|l| l.chars().count() <= 120), "{page}");
        assert!(!page.contains("heights") && !page.contains("inspect"), "{page}");
    }
    let restore = shown("help restore");
    for flag in
        ["--to <DIR>", "--replace", "--copy", "--deep", "--limit-bytes-per-second <SIZE>", "--config-file <FILE>"]
    {
        assert!(restore.contains(flag), "{flag}");
    }
    assert!(!restore.contains("--service-port") && !restore.contains("--keep-last"), "{restore}");
}

#[test]
fn help_prints_the_pages_of_the_manual() {
    let page = shown("--help");
    for (topic, text) in MANUAL {
        let marked = |line: &&str| *line != "<!-- test -->";
        assert!(shown(&format!("help {topic}")).lines().eq(text.lines().filter(marked)), "{topic}");
        assert!(page.contains(topic), "{topic} is not in the help");
        assert!(!commands().iter().any(|command| command == topic), "{topic} is a command too");
    }
    wrong("help apis", &[], &[], &["no topic \"apis\"", "did you mean 'api'?", "topics: api, commands"]);
    wrong("help resture", &[], &[], &["no topic \"resture\"", "did you mean 'restore'?"]);
    wrong("help api format", &[], &[], &["unexpected argument 'format'", "chainweb-backup help"]);
}

#[test]
fn scripts_and_man_pages_have_every_command_and_flag() {
    for shell in ["bash", "zsh", "fish"] {
        let script = shown(&format!("completions {shell}"));
        for command in program().get_subcommands() {
            assert!(script.contains(command.get_name()), "{shell}: {}", command.get_name());
            for flag in command.get_arguments().filter_map(clap::Arg::get_long) {
                assert!(script.contains(flag), "{shell}: {flag}");
            }
        }
        assert!(!script.contains("heights") && !script.contains("inspect"), "{shell}");
    }
    assert_eq!(shown("--database-directory /d --config-file f completions bash"), shown("completions bash"));
    wrong("completions csh", &[], &[], &["'csh'", "bash, zsh, fish"]);
    let roff = |flag: &str| flag.replace('-', "\\-");
    assert!(shown("man").contains(".TH chainweb-backup 1"), "{}", shown("man"));
    for command in program().get_subcommands() {
        let page = shown(&format!("man {}", command.get_name()));
        assert!(page.contains(&format!(".TH chainweb-backup-{} 1", command.get_name())), "{page}");
        for flag in command.get_arguments().filter_map(clap::Arg::get_long) {
            assert!(page.contains(&roff(flag)), "{}: {flag}", command.get_name());
        }
        assert!(shown("man").contains(&roff(command.get_name())), "{}", command.get_name());
    }
    wrong("man resture", &[], &[], &["no command \"resture\"", "did you mean 'restore'?"]);
}

#[test]
fn flags_before_and_after_the_command_add_up() {
    let words = ["--database-directory /d", "--backup-directory /b", "--service-port 7", "--enable-backup-api"];
    let wanted = serve(&words.join(" "), &[], &[]);
    assert_eq!((wanted.listening.port, wanted.config.api_enabled), (7, true));
    for split in 0..=words.len() {
        let line = format!("{} serve {}", words[..split].join(" "), words[split..].join(" "));
        assert_eq!(serve(&line, &[], &[]), wanted, "{line}");
    }
    assert_eq!(
        run("--database-directory=/d make --backup-pact", &[], &[]),
        run("--backup-pact make --database-directory /d", &[], &[])
    );

    // A file on each side, and the later one wins.
    let files = &[
        ("1", "databaseDirectory: /1\nbackup: {directory: /b1, nodeVersion: v1}"),
        ("2", "backup: {directory: /b2}"),
        ("3", "backup: {sums: none}"),
    ];
    let make = |line: &str| match run(line, &[], files) {
        Ok(Plan::Make(plan)) => plan,
        other => panic!("{line}: {other:?}"),
    };
    let both = make("--config-file 1 make --config-file 2 --config-file 3");
    assert_eq!(
        (both.node.database_directory.as_path(), both.config.backup_directory.as_path()),
        (Path::new("/1"), Path::new("/b2"))
    );
    assert_eq!((both.config.node_version.as_deref(), both.config.sums), (Some("v1"), chainweb_backup::Sums::None));
    assert_eq!(make("make --config-file 1 --config-file 2 --config-file 3"), both);
    assert_eq!(make("--config-file 1 --config-file=2 --config-file 3 make"), both);
    assert_eq!(make("--config-file 2 make --config-file 1").config.backup_directory, Path::new("/b1"));

    // What takes one value takes it once.
    for (flag, line) in [
        ("--database-directory", "--database-directory /a make --database-directory /b"),
        ("--sums", "--sums all make --database-directory /b --sums none"),
        ("--deep", "--deep verify 1 --deep"),
    ] {
        wrong(line, &[], &[], &[flag, "cannot be used multiple times"]);
    }
}

#[test]
fn the_command_is_found_among_flags() {
    // A value that is the name of a command is a value.
    assert_eq!(serve("--database-directory make", &[], &[]).node.database_directory, Path::new("make"));
    assert_eq!(
        serve("--address-file list --database-directory make serve", &[], &[]).address_file,
        Some("list".into())
    );
    wrong("--keep-last -1 prune --backup-directory b", &[], &[], &["is not a number of backups"]);
    assert!(matches!(run("--json -- list --backup-directory /b", &[], &[]), Err(Exit { code: 2, .. })));
    assert!(matches!(run("--backup-directory /b -- list", &[], &[]), Ok(Plan::Manage { .. })));
    // A flag of no command: its value is not taken for a command, and a command after it is one.
    wrong("--databse-directory /d", &[], &[], &["similar argument exists: '--database-directory'"]);
    wrong("--databse-directory /d make", &[], &[], &["'--databse-directory'", "Usage: chainweb-backup make"]);
    wrong("--backup-pakt make", &[], &[], &["similar argument exists: '--backup-pact'", "Usage: chainweb-backup make"]);
    assert_eq!(
        parse([], &Around { env: &|_| None, read_file: &|_| Ok(String::new()), list_databases: &|_| Vec::new() })
            .map_err(|exit| exit.code),
        Err(2)
    );
    // A flag has a value in all commands or in none, else it could not stand before the command.
    let flags = |command: &clap::Command| -> Vec<(String, bool)> {
        let flag = |arg: &clap::Arg| Some((arg.get_long()?.to_owned(), arg.get_action().takes_values()));
        command.get_arguments().filter_map(flag).collect()
    };
    let all: BTreeSet<(String, bool)> = program().get_subcommands().flat_map(flags).collect();
    let names: BTreeSet<&String> = all.iter().map(|(flag, _)| flag).collect();
    assert_eq!((all.len(), names.len()), (47, 47));
}

#[test]
fn a_flag_of_another_command_names_both() {
    let line = "--service-port 1 list --backup-directory b";
    wrong(line, &[], &[], &["unexpected argument '--service-port'", "belongs to 'serve' and 'doctor', not to 'list'"]);
    wrong(
        "--limit-bytes-per-second=1 prune",
        &[],
        &[],
        &["'serve' and 'make' and 'doctor' and 'verify' and 'restore' and 'drill' and 'sum'"],
    );
    // Every pair of a command and a flag that it does not have.
    for flag in program().get_subcommands().flat_map(clap::Command::get_arguments) {
        let Some(long) = flag.get_long() else { continue };
        for command in program().get_subcommands() {
            if command.get_arguments().any(|arg| arg.get_long() == Some(long)) {
                continue;
            }
            let not = format!("not to '{}'", command.get_name());
            wrong(&format!("{} --{long}", command.get_name()), &[], &[], &["unexpected argument", long, &not]);
        }
    }
}

#[test]
fn wrong_usage_is_exit_code_2_with_the_remedy() {
    let bad = &[("f", "backup: {direcotry: /b}")];
    wrong("", &[], &[], &["no database directory", "--database-directory DIR", "`databaseDirectory`", "mainnet01"]);
    wrong("make", &[("BACKUP_DIR", "/b")], &[], &["no database directory"]);
    wrong("list", &[], &[], &["no backup directory", "--backup-directory DIR", "BACKUP_DIR", "`backup.directory`"]);
    wrong("mkae", &[], &[], &["unrecognized subcommand 'mkae'", "similar subcommands exist", "'make'"]);
    wrong("--database-directory /d mkae", &[], &[], &["unrecognized subcommand 'mkae'", "'make'"]);
    wrong("check", &[], &[], &["ID", "'list' shows them"]);
    wrong("check 1 2", &[], &[], &["unexpected argument '2'", "Usage: chainweb-backup check"]);
    wrong("--databse-directory /d", &[], &[], &["similar argument exists: '--database-directory'"]);
    wrong("--enable-backup-api --disable-backup-api", &[], &[], &["cannot be used with"]);
    wrong("--service-port 1 --service-port 1", &[], &[], &["cannot be used multiple times"]);
    wrong("--service-port 65536", &[], &[], &["`65536` is not a port", "from 0 to 65535"]);
    wrong("--service-interface eth0", &[], &[], &["is not an IP address", "127.0.0.1", "unix:PATH"]);
    wrong("--service-interface unix:run/x", &[], &[], &["is not a socket", "unix:/run/chainweb-backup.sock"]);
    wrong("--database-directory /d --service-interface ::1 --service-interface ::1", &[], &[], &["::1 is given twice"]);
    wrong("--socket-mode 777x", &[], &[], &["is not the mode of a socket", "660 for its group"]);
    wrong("--database-directory /d --socket-mode 660", &[], &[], &["for Unix sockets", "unix:PATH"]);
    wrong("--reserve-bytes 10G", &[], &[], &["is not a size", "10GiB"]);
    wrong("--log-level loud", &[], &[], &["error, warn, info"]);
    wrong("--backup-directory=", &[], &[], &["a value is required"]);
    for flag in ["--service-port 1", "--service-interface ::1", "--address-file f", "--enable-backup-api"] {
        for command in ["make", "list", "check 1"] {
            wrong(&format!("{command} {flag}"), &[], &[], &["belongs to 'serve' and 'doctor', not to"]);
        }
    }
    wrong(
        "--json",
        &[],
        &[],
        &["--json belongs to 'doctor' and 'list' and 'restore', not to 'serve' (the command when none is given)"],
    );
    wrong("list --reserve-bytes 1", &[], &[], &["belongs to 'serve' and 'make' and 'doctor'"]);
    wrong(
        "--database-directory /d",
        &[("ENABLE_BACKUP_API", "maybe")],
        &[],
        &["ENABLE_BACKUP_API", "\"maybe\"", "true"],
    );
    wrong("--config-file f", &[], &[], &["cannot read configuration file f"]);
    for rule in ["--keep-last -1", "--keep-daily x", "--keep-weekly 1.5", "--keep-last=+1", "--keep-last 4294967296"] {
        let words = &["is not a number of backups: write a whole number like 7, or 0 for none"];
        wrong(&format!("prune --backup-directory b {rule}"), &[], &[], words);
    }
    wrong("--stall-seconds 15m", &[], &[], &["`15m` is not a number of seconds: write 900"]);
    wrong("--stall-seconds -1", &[], &[], &["`-1` is not a number of seconds: write a whole number like 900"]);
    wrong("--service-port http", &[], &[], &["`http` is not a port: write a number from 0 to 65535"]);
    wrong("--reserve-bytes -1", &[], &[], &["`-1` is not a size: write whole bytes"]);
    wrong("--limit-bytes-per-second -1", &[], &[], &["`-1` is not a size"]);
    wrong("--auth-token-file ~/token", &[], &[], &["--auth-token-file", "begins with ~"]);
    wrong(
        "--open-endpoint list-backups",
        &[],
        &[],
        &["`list-backups` cannot be open: use check-backup, health-check or"],
    );
    wrong("--allowed-host a.example:80", &[], &[], &["without the port, which is not compared"]);
    wrong("--allowed-host *", &[], &[], &["`*` is no name of a host", "no patterns"]);
    wrong("--allow-unauthenticated make --database-directory /d", &[], &[], &["belongs to 'serve' and 'doctor'"]);
    let needless = "names what needs no token, but none is required: add --auth-token-file FILE, or leave it out";
    wrong("--database-directory /d --open-endpoint metrics", &[], &[], &[needless]);
    wrong("--config-file f", &[], &[("f", "databaseDirectory: /d\nbackup: {api: {open: [metrics]}}")], &[needless]);
    wrong("--database-directory /d", &[("ENABLE_BACKUP_API", "\"true\"")], &[], &["true or false, without quotes"]);
    for flag in ["--database-directory", "--backup-directory", "--config-file", "--address-file"] {
        let words = &[flag, "begins with ~, which only a shell replaces", "write the whole path"];
        wrong(&format!("--database-directory=/d {flag}=~/x").replace("=/d --database-directory", ""), &[], &[], words);
    }
    wrong("restore 1 --backup-directory b --to ~", &[], &[], &["--to", "begins with ~"]);
    wrong("list", &[("BACKUP_DIR", "~/backups")], &[], &["BACKUP_DIR", "`~/backups` begins with ~"]);
    let tilde = &[("f", "databaseDirectory: /d\nbackup: {directory: ~/backups}")];
    wrong("--config-file f", &[], tilde, &["f: key `backup.directory`", "`~/backups` begins with ~"]);
    assert_eq!(serve("--database-directory ./~d", &[], &[]).node.database_directory, Path::new("./~d"));
    wrong("list --config-file f", &[], bad, &["f: unknown key `backup.direcotry`", "did you mean `directory`?"]);
}

#[test]
fn the_default_database_directory() {
    let (home, xdg) = (("HOME", "/home/n"), ("XDG_DATA_HOME", "/x"));
    let (below_home, below_xdg) = ("/home/n/.local/share/chainweb-node", "/x/chainweb-node");
    let one = &[(below_home, "mainnet01"), (below_xdg, "testnet04"), ("f", "{}")];
    let found = |line: &str, env: &[_], files: &[_]| {
        let plan = serve(line, env, files);
        let version = plan.config.chainweb_version.expect("that of the directory");
        (plan.node.database_directory, version, plan.config.backup_directory, plan.notes)
    };
    let at = |parent: &str, version: &str| {
        let directory = Path::new(parent).join(version);
        let note = format!("using the default database directory {}", directory.display());
        (directory.clone(), version.to_owned(), directory.join("backups"), vec![note])
    };
    assert_eq!(found("", &[home], one), at(below_home, "mainnet01"));
    assert_eq!(found("--config-file f", &[home, xdg], one), at(below_xdg, "testnet04"));
    assert_eq!(found("", &[home, ("XDG_DATA_HOME", "relative")], one), at(below_home, "mainnet01"));
    // The configured version decides among several, and is never another.
    let two = &[(below_home, "testnet04 mainnet01")];
    assert_eq!(found("--chainweb-version testnet04", &[home], two), at(below_home, "testnet04"));
    wrong("", &[home], two, &["no database directory", below_home, "has several: mainnet01, testnet04"]);
    wrong("--chainweb-version stoa", &[home], two, &["none of stoa, but mainnet01, testnet04"]);
    wrong("", &[home], &[], &["--database-directory", below_home, "has none"]);
    wrong("make", &[], two, &["neither HOME nor XDG_DATA_HOME"]);
    // Whatever is named is not looked for.
    assert_eq!(serve("--database-directory /d", &[home], one).notes, [""; 0]);
    assert_eq!(serve("--database-directory /d", &[home], one).config.chainweb_version, None);
    let Ok(Plan::Manage { backup_directory, notes, .. }) = run("list", &[home], one) else { panic!("list") };
    assert_eq!((backup_directory, notes.len()), (Path::new(below_home).join("mainnet01/backups"), 1));
    wrong("list", &[home], two, &["no backup directory", "has several"]);
}

#[test]
fn databases_elsewhere() {
    let node = |line: &str, files: &[_]| serve(line, &[("HOME", "/home/n")], files).node;
    let all = "--rocksdb-directory /r --sqlite-directory /s --pin-directory /p";
    let plan = node(&format!("{all} --database-directory /d"), &[]);
    let sources = plan.sources();
    assert_eq!((sources.rocksdb.path(), sources.sqlite.path()), (Path::new("/r"), Path::new("/s")));
    assert_eq!(
        (sources.pin_directory.as_deref(), plan.database_directory.as_path()),
        (Some(Path::new("/p")), Path::new("/d"))
    );
    let file = &[("f", "databaseDirectory: /d\nbackup: {rocksdbDirectory: /r, sqliteDirectory: /s, pinDirectory: /p}")];
    assert_eq!(node("--config-file f", file), plan);
    assert_eq!(node("--config-file f --pin-directory /q", file).pin_directory.as_deref(), Some(Path::new("/q")));
    let usual = node("--database-directory /d", &[]).sources();
    assert_eq!((usual.rocksdb.path(), usual.sqlite.path()), (Path::new("/d/0/rocksDb"), Path::new("/d/0/sqlite")));
    // Both together need no database directory, but then there is no default for the backups.
    assert_eq!(node(&format!("{all} --backup-directory /b"), &[]).database_directory, Path::new("/"));
    assert_eq!(
        node("--rocksdb-directory r --sqlite-directory s --backup-directory /b", &[]).database_directory,
        Path::new(".")
    );
    wrong(all, &[], &[], &["no backup directory", "--backup-directory"]);
    wrong("--rocksdb-directory /r --backup-directory /b", &[], &[], &["--sqlite-directory"]);
    wrong("--sqlite-directory /s --backup-directory /b", &[], &[], &["no database directory"]);
    wrong("list --rocksdb-directory /r", &[], &[], &["--rocksdb-directory belongs to 'serve' and 'make' and 'doctor'"]);
}
