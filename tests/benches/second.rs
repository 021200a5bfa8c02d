//! The second backup of Pact and those after it, with changes between them: ours on file systems whose files can share blocks, beside
//! copies and peers. What is written is counted at the device, what is kept as the space that is taken there.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use chainweb_backup::rusqlite::params;

use crate::Scale;
use crate::file_systems::Mounted;
use crate::measure::{Run, Table, drop_caches, median, run, settle, spread};
use crate::speed::make_by;

/// The rows of each database that a day of blocks changes: one of so many.
const UNCHANGED_ROWS: u64 = 60;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Cp,
    Copy,
    Increment,
    Delta,
    VacuumInto,
    Sqlite3Rsync,
}

const WAYS: [Way; 6] = [Way::Cp, Way::Copy, Way::Increment, Way::Delta, Way::VacuumInto, Way::Sqlite3Rsync];

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::Cp => "`cp` and `sync`",
            Way::Copy => "ours: `make --backup-pact --pact-method copy`",
            Way::Increment => "ours: `make --backup-pact`",
            Way::Delta => "ours: `make --backup-pact --pact-method delta`",
            Way::VacuumInto => "reference: VACUUM INTO, all at once",
            Way::Sqlite3Rsync => "`sqlite3_rsync` to one replica, which keeps no older state",
        }
    }

    fn run(self, scale: &Scale, node: &Path, place: &Path, day: u32) -> Run {
        let of_day = place.join(day.to_string());
        let script = |script: &str, to: &Path| {
            fs::create_dir_all(to).unwrap();
            run("sh", &[Path::new("-ec"), Path::new(script), Path::new("sh"), &node.join("0/sqlite"), to])
        };
        match self {
            Way::Cp => script(r#"cp --reflink=never "$1"/*.sqlite "$2"; sync "$2"/*"#, &of_day),
            Way::Copy => make_by(scale, node, place, &["--backup-pact", "--pact-method", "copy"]),
            Way::Increment => make_by(scale, node, place, &["--backup-pact"]),
            Way::Delta => make_by(scale, node, place, &["--backup-pact", "--pact-method", "delta"]),
            Way::VacuumInto => script(
                r#"for f in "$1"/*.sqlite; do sqlite3 "$f" "VACUUM INTO '$2/${f##*/}'" & done; wait; sync "$2"/*"#,
                &of_day,
            ),
            Way::Sqlite3Rsync => {
                script(r#"for f in "$1"/*.sqlite; do sqlite3_rsync "$f" "$2/${f##*/}"; done; sync "$2"/*"#, place)
            }
        }
    }
}

/// The `days` backups of Pact after the first one, with changes of a day before each.
pub fn pact(scale: &Scale) {
    if !rustix::process::geteuid().is_root() {
        return println!("\n(not run: the second backup of Pact: to mount an image needs root)");
    }
    let node = scale.dir.join("node-second");
    crate::fill_node(&node, scale.pact_databases, scale.pact_bytes);
    for kind in ["xfs", "btrfs", "ext4"] {
        let room = scale.pact_bytes * (u64::from(scale.days) + 2) * 2 + (2 << 30);
        match Mounted::new(kind, room, &scale.dir) {
            Ok(mounted) => on(scale, &node, kind, &mounted),
            Err(why) => println!("\n(not run: the second backup of Pact on {kind}: {why})"),
        }
    }
    fs::remove_dir_all(&node).unwrap();
}

fn on(scale: &Scale, node: &Path, kind: &str, mounted: &Mounted) {
    let open = crate::writers::open_as_a_node(node);
    let wanted: Vec<Way> =
        WAYS.into_iter().filter(|way| scale.peers || !matches!(way, Way::VacuumInto | Way::Sqlite3Rsync)).collect();
    let wanted: Vec<Way> = wanted
        .into_iter()
        .filter(|way| *way != Way::Sqlite3Rsync || crate::speed::is_installed("sqlite3_rsync"))
        .collect();
    for cold in [false, true] {
        let mut table = Table::new(
            format!("Pact, {} backups after the first, on {kind}, {}", scale.days, if cold { "cold" } else { "warm" }),
            &["way", "seconds (min / median / max)", "ratio", "CPU s", "written MiB each", "MiB kept by all"],
        );
        let mut first_seconds = None;
        let mut changed_rows = 0;
        for way in &wanted {
            let place: PathBuf = mounted.path().join("backups");
            let free =
                || rustix::fs::statvfs(mounted.path()).map(|s| (s.f_bfree * s.f_frsize) as f64 / 1_048_576.0).unwrap();
            mounted.written_mib();
            let empty = free();
            let (mut runs, mut written) = (Vec::new(), Vec::new());
            for day in 0..=scale.days {
                changed_rows = open.iter().map(change).sum();
                settle();
                if cold {
                    assert!(drop_caches(), "a cold cache needs root");
                }
                let before = mounted.written_mib();
                let run = way.run(scale, node, &place, day);
                let written_mib = mounted.written_mib() - before;
                if day > 0 {
                    runs.push(run);
                    written.push(written_mib);
                }
            }
            let seconds: Vec<f64> = runs.iter().map(|run| run.seconds).collect();
            let middle = median(seconds.iter().copied());
            table.row(&[
                way.name().to_owned(),
                spread(&seconds, 3),
                format!("{:.2}", middle / *first_seconds.get_or_insert(middle)),
                format!("{:.2}", median(runs.iter().map(|run| run.cpu_seconds))),
                format!("{:.1}", median(written.into_iter())),
                format!("{:.0}", empty - free()),
            ]);
            fs::remove_dir_all(&place).unwrap();
        }
        table.print();
        println!("\n({changed_rows} rows of {} databases change before each backup)", open.len());
    }
    drop(open);
    rustix::fs::syncfs(File::open(mounted.path()).unwrap()).unwrap();
}

/// Changes rows all over a database, and adds some.
fn change(db: &chainweb_backup::rusqlite::Connection) -> u64 {
    let largest: i64 = db.query_row("SELECT max(rowid) FROM [coin_coin-table]", [], |row| row.get(0)).unwrap();
    let count = largest.cast_unsigned() / UNCHANGED_ROWS;
    let mut random = fastrand::Rng::new();
    db.execute_batch("BEGIN").unwrap();
    for n in 0..count {
        let mut bytes = [0; 560];
        random.fill(&mut bytes);
        if n % 2 == 0 {
            let update = "UPDATE [coin_coin-table] SET rowdata = ?2 WHERE rowid = ?1";
            db.execute(update, params![random.i64(1..=largest), bytes.as_slice()]).unwrap();
        } else {
            let insert = "INSERT INTO [coin_coin-table] VALUES (printf('k:%016x', ?1), ?2, ?3)";
            db.execute(insert, params![random.i64(..), random.i64(..), bytes.as_slice()]).unwrap();
        }
    }
    db.execute_batch("COMMIT").unwrap();
    count
}
