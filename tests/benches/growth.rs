//! How `make` grows with what it backs up, beside a plain copy: its time must grow as the data does or as the plain copy's,
//! and its memory not with Pact at all.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Scale;
use crate::measure::{Run, Table, bytes_below, median, run, settle, spread};
use crate::speed::{Copier, make, many_files};

/// What makes a copy of a node's directory.
type Way<'a> = &'a dyn Fn(&Path, &Path) -> Run;

/// Numbers of SSTs and sizes of Pact, one after the other.
pub fn growth(scale: &Scale) {
    ssts(scale);
    pact(scale);
}

fn ssts(scale: &Scale) {
    let node = |count: &u32| scale.dir.join(format!("node-growth-{count}"));
    let nodes: Vec<PathBuf> = scale.growing_ssts.iter().map(node).collect();
    // Open, as a node has it.
    let open: Vec<_> =
        nodes.iter().zip(&scale.growing_ssts).map(|(node, count)| many_files(scale, node, *count)).collect();
    let sizes: Vec<f64> = scale.growing_ssts.iter().map(|count| f64::from(*count)).collect();
    let ours = |node: &Path, to: &Path| make(scale, node, to, false);
    let plain = |node: &Path, to: &Path| run("cp", &[Path::new("-al"), &node.join("0/rocksDb"), to]);
    let columns = ["SSTs", "µs per SST", "`cp -al` µs per SST"];
    let mut table = table("`make` of RocksDB, same file system, as the SSTs grow".to_owned(), columns);
    by_turns(scale, &mut table, 1e6, &nodes, &sizes, [&ours, &plain]);
    drop(open);
}

fn pact(scale: &Scale) {
    let node = |megabytes: &u32| scale.dir.join(format!("node-growth-{megabytes}-mb"));
    let nodes: Vec<PathBuf> = scale.growing_pact_mb.iter().map(node).collect();
    for (node, megabytes) in nodes.iter().zip(&scale.growing_pact_mb) {
        crate::fill_node(node, scale.pact_databases, u64::from(*megabytes) * 1_000_000);
    }
    let sizes: Vec<f64> = nodes.iter().map(|node| (bytes_below(&node.join("0/sqlite")) / 1_000_000) as f64).collect();
    let ours = |node: &Path, to: &Path| Copier::Ours.run(scale, node, to);
    let plain = |node: &Path, to: &Path| Copier::Cp.run(scale, node, to);
    let title = format!("`make --backup-pact` of {} databases, warm, as Pact grows", scale.pact_databases);
    let mut table = table(title, ["MB", "ms per MB", "`cp` and `sync` ms per MB"]);
    by_turns(scale, &mut table, 1e3, &nodes, &sizes, [&ours, &plain]);
}

fn table(title: String, [what, each, plain_each]: [&str; 3]) -> Table {
    let seconds = "seconds (min / median / max)";
    Table::new(
        title,
        &[what, seconds, each, "ratio to the first", "CPU s", "peak MiB", plain_each, "ratio to the first"],
    )
}

/// Runs both ways for each node, `rounds` times by turns, prints a row for each node, and removes the nodes.
fn by_turns(scale: &Scale, table: &mut Table, units: f64, nodes: &[PathBuf], sizes: &[f64], ways: [Way; 2]) {
    let mut runs = vec![[Vec::new(), Vec::new()]; nodes.len()];
    let to: &Path = &scale.dir.join("to");
    for _ in 0..scale.rounds {
        for (node, runs) in nodes.iter().zip(&mut runs) {
            for (way, runs) in ways.iter().zip(runs) {
                settle();
                runs.push(way(node, to));
                fs::remove_dir_all(to).unwrap();
            }
        }
    }
    let mut first = None;
    for (size, runs) in sizes.iter().zip(&runs) {
        let seconds = |runs: &[Run]| runs.iter().map(|run| run.seconds).collect::<Vec<f64>>();
        let each = [0, 1].map(|way| median(seconds(&runs[way]).into_iter()) * units / size);
        let first = first.get_or_insert(each);
        table.row(&[
            format!("{size}"),
            spread(&seconds(&runs[0]), 3),
            format!("{:.2}", each[0]),
            format!("{:.2}", each[0] / first[0]),
            format!("{:.2}", median(runs[0].iter().map(|run| run.cpu_seconds))),
            format!("{:.1}", median(runs[0].iter().map(|run| run.peak_mib))),
            format!("{:.2}", each[1]),
            format!("{:.2}", each[1] / first[1]),
        ]);
    }
    table.print();
    nodes.iter().for_each(|node| fs::remove_dir_all(node).unwrap());
}
