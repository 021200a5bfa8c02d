//! Names the processes that have a directory open, for a message: a lock that a process has inherited tells nothing of it.
//!
//! Limitations: only processes that we may look at (as root, all of this container) are found. Invariant: nothing is changed.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::disk::nofollow;

const PROCESSES: &str = "/proc";

/// How many processes are named.
const MAX_NAMED: usize = 5;

/// The largest name of a program that is read.
const MAX_NAME_BYTES: u64 = 256;

/// The processes that have this directory, a path without links, open: `process 12 (sleep), process 13 (sh)`; `None` if none is found.
pub(crate) fn of(directory: &Path) -> Option<String> {
    let numbers = nofollow::entries(Path::new(PROCESSES)).ok()?.flatten();
    let numbers = numbers.filter_map(|(name, _)| name.to_str()?.parse::<u32>().ok());
    let has_it = |process: &u32| {
        let open = Path::new(PROCESSES).join(process.to_string()).join("fd");
        let is_it = |name| {
            let target = rustix::fs::readlink(open.join(name), Vec::new());
            target.is_ok_and(|target| target.as_bytes() == directory.as_os_str().as_bytes())
        };
        // It may have ended, or belong to another user.
        nofollow::entries(&open).is_ok_and(|entries| entries.flatten().any(|(name, _)| is_it(name)))
    };
    let ours = std::process::id();
    let named: Vec<String> =
        numbers.filter(|process| *process != ours && has_it(process)).take(MAX_NAMED).map(describe).collect();
    (!named.is_empty()).then(|| named.join(", "))
}

fn describe(process: u32) -> String {
    let path = Path::new(PROCESSES).join(process.to_string()).join("comm");
    let name = nofollow::read_small(&path, MAX_NAME_BYTES).unwrap_or_default();
    format!("process {process} ({})", String::from_utf8_lossy(&name).trim_end())
}
