//! The command `status`: one screen about the backups: the newest good one, the running one, the last failure, the room.

use std::fmt::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use chainweb_backup::{Details, Listed, Result, Status, free_bytes, length, list_briefly_in, size, utc};

use crate::table::moves;
use crate::terminal::print;

/// Prints the state of a backup directory. The exit code is 0 if there is a good backup, as far as is known, and everything could be read;
/// otherwise 1.
pub fn status(directory: &Path) -> Result<i32> {
    let listed = list_briefly_in(directory)?;
    let free_bytes = free_bytes(directory)?;
    let (text, is_good) = screen(&listed, free_bytes, now_ms());
    // Another program may have written a record: nothing in it draws on a terminal.
    print(text.replace(|c: char| c.is_control() && c != '\n', " ").trim_end())?;
    Ok(i32::from(!is_good))
}

/// Milliseconds since the epoch.
pub fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

/// The screen, and whether all is well.
fn screen(listed: &[Listed], free_bytes: u64, now_ms: u64) -> (String, bool) {
    let backups: Vec<&Details> = listed
        .iter()
        .filter_map(|one| if let Listed::Backup(details) = one { Some(&**details) } else { None })
        .collect();
    let mut text = String::new();
    let mut line = |name: &str, rest: &str| writeln!(text, "{name:<13} {rest}").expect("memory takes every text");
    let when = |at_ms: u64| format!("{} ago ({} UTC)", length(now_ms.saturating_sub(at_ms)), utc(at_ms));
    let newest = backups.iter().find(|one| one.is_good());
    match newest {
        None => line("newest good", "none"),
        Some(newest) => {
            let bytes = newest.record.as_ref().map_or_else(String::new, |record| format!(", {}", size(record.bytes)));
            line(
                "newest good",
                &format!("{} {}, {}{bytes}", newest.id.as_str(), when(newest.started_ms), newest.scope.word()),
            );
            line("a node", &starts(newest));
            let drill = newest.drill.as_ref().map_or_else(
                || "never restored: drill latest".to_owned(),
                |drill| match &drill.reason {
                    None => format!("restored as a drill {}", when(drill.at_ms)),
                    Some(reason) => format!("drill FAILED {}: {reason}", when(drill.at_ms)),
                },
            );
            line("drill", &drill);
        }
    }
    match backups.iter().find(|one| one.status == Status::InProgress) {
        None => line("running", "none"),
        Some(running) => {
            let phase =
                running.record.as_ref().map_or_else(String::new, |record| format!(", phase {:?}", record.phase));
            let since = length(now_ms.saturating_sub(running.started_ms));
            line("running", &format!("{} for {since}{phase}", running.id.as_str()));
        }
    }
    if let Some(failed) = backups.iter().find(|one| one.status == Status::Failed) {
        let reason = failed.record.as_ref().and_then(|record| record.reason.as_deref()).unwrap_or("no reason is known");
        line("last failure", &format!("{} {}: {reason}", failed.id.as_str(), when(failed.started_ms)));
    }
    let count = |is: &dyn Fn(&Details) -> bool| backups.iter().filter(|one| is(one)).count();
    let unreadable = listed.len() - backups.len();
    line(
        "backups",
        &format!(
            "{} good, {} damaged or not to start from, {} failed, {unreadable} unreadable, {} of other programs",
            count(&|one| one.is_good()),
            count(&|one| one.status == Status::Done && !one.foreign && one.is_doubtful()),
            count(&|one| one.status == Status::Failed),
            count(&|one| one.foreign),
        ),
    );
    line("free", &size(free_bytes));
    (text, newest.is_some() && unreadable == 0)
}

fn starts(backup: &Details) -> String {
    use chainweb_backup::chainweb::start::Verdict;
    match backup.starts.as_ref().map(|proof| &proof.verdict) {
        None => "was not asked: it is not known whether one starts from it".to_owned(),
        Some(Verdict::Yes(start)) => format!("starts from it {}", moves(start)),
        Some(Verdict::No { reason }) => format!("DOES NOT START from it: {reason}"),
        Some(Verdict::Unknown { reason }) => format!("may start from it, that is not known: {reason}"),
    }
}
