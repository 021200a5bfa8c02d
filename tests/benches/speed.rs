//! How long a backup takes, what it costs and what it writes: ours, RocksDB's and SQLite's own ways, and plain copies.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use chainweb_backup::rocksdb::backup::{BackupEngine, BackupEngineOptions};
use chainweb_backup::rocksdb::checkpoint::Checkpoint;
use chainweb_backup::rocksdb::{DB, Env, IngestExternalFileOptions, Options, SstFileWriter};
use chainweb_backup::{Config, MakeRequest, Service, Sources, Status, Sums};

use crate::Scale;
use crate::measure::{Run, Table, bytes_below, drop_caches, median, run, settle, spread};

/// One way to make a backup: its name, and what makes it into a directory that is not there yet.
type Way<'a> = (&'a str, Box<dyn Fn(&Path) -> Run + 'a>);

/// Runs every way `rounds` times by turns and adds a row for each; ratios are those of the medians to the first way's.
fn by_turns(table: &mut Table, ways: &[Way], to: &Path, rounds: u32, cold: bool) {
    let mut runs: Vec<Vec<Run>> = vec![Vec::new(); ways.len()];
    for _ in 0..rounds {
        for (n, (_, act)) in ways.iter().enumerate() {
            let _ = fs::remove_dir_all(to);
            settle();
            if cold {
                assert!(drop_caches(), "a cold cache needs root");
            }
            runs[n].push(act(to));
        }
    }
    let _ = fs::remove_dir_all(to);
    let first = median(runs[0].iter().map(|run| run.seconds));
    for ((name, _), runs) in ways.iter().zip(&runs) {
        let of = |figure: &dyn Fn(&Run) -> f64| runs.iter().map(figure).collect::<Vec<_>>();
        let seconds = of(&|run| run.seconds);
        let or_none =
            |value: f64, digits: usize| if value > 0.0 { format!("{value:.digits$}") } else { "-".to_owned() };
        table.row(&[
            (*name).to_owned(),
            spread(&seconds, 3),
            format!("{:.2}", median(seconds.iter().copied()) / first),
            or_none(median(of(&|run| run.cpu_seconds).into_iter()), 2),
            or_none(median(of(&|run| run.peak_mib).into_iter()), 0),
            or_none(median(of(&|run| run.written_mib).into_iter()), 1),
        ]);
    }
}

const COLUMNS: [&str; 6] = ["way", "seconds (min / median / max)", "ratio", "CPU s", "peak MiB", "written MiB"];

fn timed(act: impl FnOnce()) -> Run {
    let started = Instant::now();
    act();
    Run { seconds: started.elapsed().as_secs_f64(), ..Run::default() }
}

/// `make` as an operator runs it, beside whoever has the databases open.
pub fn make(scale: &Scale, node: &Path, to: &Path, with_pact: bool) -> Run {
    make_by(scale, node, to, if with_pact { &["--backup-pact"] } else { &[] })
}

/// The same with other options.
pub fn make_by(scale: &Scale, node: &Path, to: &Path, options: &[&str]) -> Run {
    let mut arguments: Vec<PathBuf> = ["make", "--reserve-bytes", "0", "--log-level", "warn", "--sums", "none"]
        .iter()
        .chain(options)
        .map(PathBuf::from)
        .collect();
    arguments.extend(["--database-directory".into(), node.to_owned(), "--backup-directory".into(), to.to_owned()]);
    run(scale.program.to_str().unwrap(), &arguments)
}

/// A RocksDB of so many small SSTs, open.
pub fn many_files(scale: &Scale, node: &Path, count: u32) -> Arc<DB> {
    let database = node.join("0/rocksDb");
    fs::create_dir_all(&database).unwrap();
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_disable_auto_compactions(true);
    options.set_max_open_files(500);
    let db = DB::open(&options, &database).unwrap();
    let files: Vec<PathBuf> = (0..count).map(|n| ingest_file(node, &options, n, scale.sst_bytes)).collect();
    ingest(&db, files);
    Arc::new(db)
}

fn ingest_file(node: &Path, options: &Options, n: u32, bytes: usize) -> PathBuf {
    let file = node.join(format!("{n}.sst"));
    let mut writer = SstFileWriter::create(options);
    writer.open(&file).unwrap();
    let mut random = fastrand::Rng::with_seed(u64::from(n));
    let mut value = vec![0; bytes];
    random.fill(&mut value);
    writer.put(format!("key-{n:08}"), value).unwrap();
    writer.finish().unwrap();
    file
}

fn ingest(db: &DB, files: Vec<PathBuf>) {
    let mut moved = IngestExternalFileOptions::default();
    moved.set_move_files(true);
    db.ingest_external_file_opts(&moved, files).unwrap();
}

/// RocksDB on its own file system, as the number of files grows.
pub fn same_file_system(scale: &Scale) {
    for count in &scale.ssts {
        let node = scale.dir.join(format!("node-{count}"));
        let db = many_files(scale, &node, *count);
        let backups = scale.dir.join("embedded");
        let config = Config { reserve_bytes: Some(0), sums: Sums::None, ..Config::new(&backups) };
        let service = Service::start(config, Sources::embedded(Arc::clone(&db), &node)).unwrap();
        let embedded = || {
            let id = service.make_backup(MakeRequest::default()).unwrap();
            while service.check_backup(&id).unwrap() == Some(Status::InProgress) {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            assert_eq!(service.check_backup(&id).unwrap(), Some(Status::Done));
            // The idle service may write its start-up proof into it at this moment.
            let is_removed = (0..100).any(|_| fs::remove_dir_all(backups.join(id.as_str())).is_ok());
            assert!(is_removed, "the backup cannot be removed");
        };
        let database = db.path();
        let ways: Vec<Way> = vec![
            (
                "RocksDB's Checkpoint",
                Box::new(|to| {
                    db.put("key", "value").unwrap();
                    timed(|| Checkpoint::new(&db).unwrap().create_checkpoint(to).unwrap())
                }),
            ),
            (
                "ours, embedded: a whole backup",
                Box::new(|_| {
                    db.put("key", "value").unwrap();
                    timed(embedded)
                }),
            ),
            ("ours, beside: `make`", Box::new(|to| make(scale, &node, to, false))),
            ("`cp -al`", Box::new(|to| run("cp", &[Path::new("-al"), database, to]))),
        ];
        let mut table = Table::new(format!("RocksDB, same file system, {count} SSTs"), &COLUMNS);
        by_turns(&mut table, &ways, &scale.dir.join("to"), scale.rounds, false);
        table.print();
        drop(ways);
        service.shutdown();
        drop(service);
        drop(db);
        fs::remove_dir_all(&node).unwrap();
    }
}

/// RocksDB on another file system: a first backup, then one after a fiftieth has changed.
pub fn other_file_system(scale: &Scale) {
    let Some(other) = &scale.other else {
        println!("\n(other file system: not measured, there is none; BENCH_OTHER names a directory there)");
        return;
    };
    let count = scale.ssts.iter().copied().max().unwrap_or(1000).min(8000);
    let node = scale.dir.join("node-other");
    let db = many_files(scale, &node, count);
    let database = db.path().to_owned();
    let mut options = Options::default();
    options.set_disable_auto_compactions(true);
    let new_file = |n| ingest_file(&node, &options, n, scale.sst_bytes);
    let mut figures: BTreeMap<(&str, &str), Vec<Run>> = BTreeMap::new();
    let mut changed = Vec::new();
    let free = || {
        let stat = rustix::fs::statvfs(other).unwrap();
        (stat.f_bfree * stat.f_frsize) as f64
    };
    for round in 0..scale.rounds {
        let place = other.join("bench");
        fs::create_dir_all(&place).unwrap();
        let engine_options = BackupEngineOptions::new(place.join("engine")).unwrap();
        let mut engine = BackupEngine::open(&engine_options, &Env::new().unwrap()).unwrap();
        for (step, tag) in ["first", "second"].into_iter().enumerate() {
            if step == 1 {
                let files: Vec<PathBuf> = (0..count / 50).map(|n| new_file(1_000_000 * (round + 1) + n)).collect();
                changed.push(files.iter().map(|file| bytes_below(file)).sum::<u64>() as f64 / 1_048_576.0);
                ingest(&db, files);
            }
            let mut note = |way: &'static str, act: &mut dyn FnMut() -> Run| {
                settle();
                let before = free();
                let mut run = act();
                rustix::fs::sync();
                run.written_mib = (before - free()) / 1_048_576.0;
                figures.entry((tag, way)).or_default().push(run);
            };
            note("`rsync -a --link-dest`", &mut || {
                let to = place.join(format!("rsync-{step}"));
                let link = format!("--link-dest={}", place.join("rsync-0").display());
                let from = format!("{}/", database.display());
                run("rsync", &["-a", &link, &from, to.to_str().unwrap()])
            });
            note("ours: `make`", &mut || make(scale, &node, &place.join("ours"), false));
            note("RocksDB's BackupEngine", &mut || timed(|| engine.create_new_backup_flush(&db, true).unwrap()));
            note("`cp -a`", &mut || {
                let to = place.join(format!("cp-{step}"));
                run("cp", &[Path::new("-a"), &database, &to])
            });
        }
        drop(engine);
        fs::remove_dir_all(&place).unwrap();
    }
    let changed = median(changed.into_iter());
    let title = format!("RocksDB, other file system, {count} SSTs; {changed:.1} MiB changed before the second backup");
    let mut table = Table::new(title, &["backup and way", COLUMNS[1], "ratio", "CPU s", "peak MiB", "MiB taken there"]);
    for ((tag, way), runs) in &figures {
        let first = median(figures[&(*tag, "`rsync -a --link-dest`")].iter().map(|run| run.seconds));
        let seconds: Vec<f64> = runs.iter().map(|run| run.seconds).collect();
        table.row(&[
            format!("{tag}: {way}"),
            spread(&seconds, 3),
            format!("{:.2}", median(seconds.iter().copied()) / first),
            format!("{:.2}", median(runs.iter().map(|run| run.cpu_seconds))),
            format!("{:.0}", median(runs.iter().map(|run| run.peak_mib))),
            format!("{:.1}", median(runs.iter().map(|run| run.written_mib))),
        ]);
    }
    table.print();
    drop(db);
    fs::remove_dir_all(&node).unwrap();
}

/// One way to copy Pact databases.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Copier {
    Cp,
    CpReflink,
    Ours,
    OursClone,
    Backup,
    VacuumInto,
    Sqlite3Rsync,
    Litestream,
}

impl Copier {
    fn name(self) -> &'static str {
        match self {
            Copier::Cp => "`cp` and `sync`",
            Copier::CpReflink => "`cp --reflink=always` and `sync`",
            Copier::Ours => "ours: `make --backup-pact`",
            Copier::OursClone => "ours: `make --backup-pact --pact-method clone`",
            Copier::Backup => "`sqlite3 .backup`",
            Copier::VacuumInto => "reference: VACUUM INTO, all at once",
            Copier::Sqlite3Rsync => "`sqlite3_rsync`, to a new replica (not all of its CPU and writes)",
            Copier::Litestream => "`litestream replicate -once`, a first one",
        }
    }

    /// The program that may be missing, where there is one.
    fn program(self) -> Option<&'static str> {
        match self {
            Copier::Sqlite3Rsync => Some("sqlite3_rsync"),
            Copier::Litestream => Some("litestream"),
            _ => None,
        }
    }

    fn is_ours(self) -> bool {
        matches!(self, Copier::Ours | Copier::OursClone)
    }

    /// What copies the databases of `$1` to `$2`, a directory, onto the disk.
    fn script(self) -> &'static str {
        match self {
            // Without the option, newer ones clone where they can.
            Copier::Cp => r#"cp --reflink=never "$1"/*.sqlite "$2"; sync "$2"/*"#,
            Copier::CpReflink => r#"cp --reflink=always "$1"/*.sqlite "$2"; sync "$2"/*"#,
            Copier::Backup => r#"for f in "$1"/*.sqlite; do sqlite3 "$f" ".backup '$2/${f##*/}'"; done; sync "$2"/*"#,
            Copier::VacuumInto => {
                r#"for f in "$1"/*.sqlite; do sqlite3 "$f" "VACUUM INTO '$2/${f##*/}'" & done; wait; sync "$2"/*"#
            }
            Copier::Sqlite3Rsync => r#"for f in "$1"/*.sqlite; do sqlite3_rsync "$f" "$2/${f##*/}"; done; sync "$2"/*"#,
            // It leaves a directory and tables of its own with each database; the directory must not outlive the run.
            Copier::Litestream => {
                r#"{ echo dbs:; for f in "$1"/*.sqlite; do
                  printf '  - path: %s\n    replica: { url: "file://%s" }\n' "$f" "$2/${f##*/}"
                done; } >"$2/litestream.yml"
                litestream replicate -config "$2/litestream.yml" -log-level warn -once
                rm -rf "$1"/.*-litestream
                find "$2" -type f -exec sync {} +"#
            }
            Copier::Ours | Copier::OursClone => unreachable!("ours is no script"),
        }
    }

    /// Copies the databases of a node's directory to one that is not there yet.
    pub fn run(self, scale: &Scale, node: &Path, to: &Path) -> Run {
        match self {
            Copier::Ours => make_by(scale, node, to, &["--backup-pact"]),
            Copier::OursClone => make_by(scale, node, to, &["--backup-pact", "--pact-method", "clone"]),
            _ => {
                fs::create_dir_all(to).unwrap();
                let sqlite = node.join("0/sqlite");
                run("sh", &[Path::new("-ec"), Path::new(self.script()), Path::new("sh"), &sqlite, to])
            }
        }
    }
}

/// The Pact databases, warm and cold.
pub fn pact(scale: &Scale) {
    use Copier::{Backup, Cp, Litestream, Ours, Sqlite3Rsync, VacuumInto};
    let node = scale.dir.join("node");
    crate::fill_node(&node, scale.pact_databases, scale.pact_bytes);
    pact_in(scale, &scale.dir, " of a node that is stopped", None, &[Cp, Ours]);
    let _open = crate::writers::open_as_a_node(&node);
    // The last one changes the databases a little.
    pact_in(scale, &scale.dir, "", None, &[Cp, Ours, Backup, VacuumInto, Sqlite3Rsync, Litestream]);
}

/// The same of the node in a directory, which `what` tells of. What its device wrote, in MiB, is `device` if that
/// can be known, instead of what GNU time says.
pub fn pact_in(scale: &Scale, dir: &Path, what: &str, device: Option<&dyn Fn() -> f64>, copiers: &[Copier]) {
    let node = dir.join("node");
    let sqlite = node.join("0/sqlite");
    let databases = crate::databases(&sqlite);
    let mut notes = Vec::new();
    let mut wanted = Vec::new();
    for copier in copiers.iter().copied().filter(|c| scale.peers || c.is_ours() || *c == Copier::Cp) {
        match copier.program().filter(|program| !is_installed(program)) {
            Some(program) => notes.push(format!("(not run: {}: there is no {program} in PATH)", copier.name())),
            None => wanted.push(copier),
        }
    }
    let copy = |copier: Copier, to: &Path| {
        let before = device.map(|written| written());
        let mut run = copier.run(scale, &node, to);
        if let (Some(before), Some(written)) = (before, device) {
            run.written_mib = written() - before;
        }
        run
    };
    let is_root = rustix::process::geteuid().is_root();
    for cold in if is_root { vec![false, true] } else { vec![false] } {
        let way = |copier: &Copier| -> Way {
            let (copier, copy) = (*copier, &copy);
            (copier.name(), Box::new(move |to| copy(copier, to)))
        };
        let ways: Vec<Way> = wanted.iter().map(way).collect();
        let megabytes = bytes_below(&sqlite) / 1_000_000;
        let temperature = if cold { "cold" } else { "warm" };
        let title = format!("Pact{what}, {} databases, {megabytes} MB, {temperature}", databases.len());
        let mut table = Table::new(title, &COLUMNS);
        by_turns(&mut table, &ways, &dir.join("to"), scale.rounds, cold);
        table.print();
    }
    notes.iter().for_each(|note| println!("\n{note}"));
}

pub fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// Verifying a backup, beside reading the same files.
pub fn verify(scale: &Scale) {
    let node = scale.dir.join("node");
    crate::fill_node(&node, scale.pact_databases, scale.pact_bytes);
    let backups = scale.dir.join("verified");
    let _ = fs::remove_dir_all(&backups);
    make(scale, &node, &backups, true);
    let program = scale.program.to_str().unwrap();
    let own = |command: &'static str, more: &'static [&'static str]| {
        let mut arguments = vec![command, "latest", "--backup-directory", backups.to_str().unwrap()];
        arguments.extend(more);
        run(program, &arguments)
    };
    own("sum", &[]);
    let all = |command: &str| {
        run("sh", &["-ec", &format!("find '{}' -type f | xargs {command} >/dev/null", backups.display())])
    };
    let ways: Vec<Way> = vec![
        ("`cat` of all files", Box::new(|_| all("cat"))),
        ("`b2sum` of all files", Box::new(|_| all("b2sum"))),
        ("`verify`", Box::new(|_| own("verify", &[]))),
        ("`verify --deep`", Box::new(|_| own("verify", &["--deep"]))),
    ];
    let mut table = Table::new(format!("Verifying {} MB, warm", bytes_below(&backups) / 1_000_000), &COLUMNS);
    by_turns(&mut table, &ways, &scale.dir.join("to"), scale.rounds, false);
    table.print();
    drop(ways);
    fs::remove_dir_all(&backups).unwrap();
}
