//! How things are measured: whole commands through GNU time, by turns, and told as a table of minimum, median and maximum.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// What one run of a command took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Run {
    pub seconds: f64,
    pub cpu_seconds: f64,
    pub peak_mib: f64,
    pub written_mib: f64,
}

/// Runs a command to its end, which must be good.
pub fn run<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> Run {
    let mut command = Command::new("/usr/bin/time");
    command.args(["-q", "-f", "%U %S %M %O", program]).args(arguments);
    let started = Instant::now();
    let output = command.output().expect("GNU time is installed");
    let seconds = started.elapsed().as_secs_f64();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {told}");
    let last = told.lines().last().unwrap_or_default();
    let figures: Vec<f64> = last.split(' ').map(|n| n.parse().expect("GNU time tells figures")).collect();
    let [user, system, peak_kib, blocks] = figures[..] else { panic!("GNU time said {last}") };
    Run { seconds, cpu_seconds: user + system, peak_mib: peak_kib / 1024.0, written_mib: blocks / 2048.0 }
}

/// The value that `part` of the sorted values are below.
pub fn quantile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    values.get(((last as f64) * part).round() as usize).copied().unwrap_or(f64::NAN)
}

pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    quantile(&mut values.collect::<Vec<_>>(), 0.5)
}

/// Everything is on the disk, so that nobody pays for what another wrote.
pub fn settle() {
    rustix::fs::sync();
    std::thread::sleep(Duration::from_millis(300));
}

/// Forgets what the page cache has; `false` where we may not.
pub fn drop_caches() -> bool {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

pub fn bytes_below(path: &Path) -> u64 {
    let meta = path.symlink_metadata().unwrap();
    if !meta.is_dir() {
        return meta.len();
    }
    std::fs::read_dir(path).unwrap().map(|entry| bytes_below(&entry.unwrap().path())).sum()
}

/// A table of the report.
pub struct Table {
    title: String,
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(title: impl Into<String>, columns: &[&str]) -> Table {
        Table { title: title.into(), columns: columns.iter().map(|c| (*c).to_owned()).collect(), rows: Vec::new() }
    }

    pub fn row(&mut self, cells: &[String]) {
        assert_eq!(cells.len(), self.columns.len());
        self.rows.push(cells.to_vec());
    }

    /// In Markdown, to the standard output.
    pub fn print(&self) {
        println!("\n### {}\n", self.title);
        println!("| {} |", self.columns.join(" | "));
        println!("|---{}|", "|--:".repeat(self.columns.len() - 1));
        self.rows.iter().for_each(|row| println!("| {} |", row.join(" | ")));
    }
}

/// `minimum / median / maximum`.
pub fn spread(values: &[f64], digits: usize) -> String {
    let mut values = values.to_vec();
    let [low, middle, high] = [0.0, 0.5, 1.0].map(|part| quantile(&mut values, part));
    format!("{low:.digits$} / {middle:.digits$} / {high:.digits$}")
}
