//! The page for people at `/`: the running job, the backups, the next scheduled one, the free space, the last failures. One HTML file
//! that needs no other file and no script; the browser loads it again every 30 seconds.
//!
//! Invariants
//! - Everything that comes from outside the program (names, reasons, versions, heights) is escaped: a node or another program may have
//!   written it.
//! - The page shows the newest [`ROWS_MAX`] backups, so it has a largest size.
//! - The newest good backup is named even if it is older than those, but at most [`LOOKS_MAX`] backups are read for that.

use std::fmt::{self, Write};

use data_encoding::BASE64;
use sha2::{Digest as _, Sha256};

use crate::backups::catalog::Found;
use crate::backups::details::{Details, Listed, Progress, Unreadable};
use crate::chainweb::start::{Start, Verdict};
use crate::clock::now_ms;
use crate::disk;
use crate::error::Result;
use crate::format::record::{Record, Status};
use crate::id::BackupId;
use crate::service::Service;
use crate::service::answers::{Answer, Held};
use crate::service::shared::Shared;
use crate::service::timetable::Scheduled;
use crate::units::{length, size, total, utc};

/// The page around its content.
const FRAME: &str = include_str!("status_page.html");

/// How many backups are shown.
const ROWS_MAX: usize = 50;

/// How many backups are read in search of the newest good one.
const LOOKS_MAX: usize = 2000;

/// How many reasons of failed backups are shown.
const FAILURES_MAX: usize = 5;

/// The longest text from outside that is shown.
const TEXT_CHARS_MAX: usize = 600;

/// What a browser may load for the page: nothing but the style in it, which is named by its hash.
pub(crate) fn policy() -> String {
    let style =
        FRAME.split_once("<style>").and_then(|(_, rest)| Some(rest.split_once("</style>")?.0)).unwrap_or_default();
    let hash = BASE64.encode(&Sha256::digest(style));
    format!(
        "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}

/// A text from outside, escaped, for content and attributes.
struct Safe<'a>(&'a str);

impl fmt::Display for Safe<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars().take(TEXT_CHARS_MAX) {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c if c.is_control() => f.write_char(' ')?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// What the page shows, newest first.
#[derive(Default)]
struct Seen {
    rows: Vec<Listed>,
    /// The newest good one, perhaps older than all of them.
    newest_good: Option<Details>,
    all_count: usize,
}

impl Seen {
    /// Those that can be read.
    fn backups(&self) -> impl Iterator<Item = &Details> {
        self.rows.iter().filter_map(|row| if let Listed::Backup(details) = row { Some(&**details) } else { None })
    }
}

impl Service {
    /// The page; `None` if all held answers together already use too much memory.
    pub(crate) fn status_page(&self) -> Result<Option<Held>> {
        let shared = self.shared();
        shared.listings.status_pages.answer((), |()| {
            let page = render(shared, now_ms())?;
            Ok(shared.listings.answers.hold(Answer { bytes: page.into_bytes(), more_before: None }))
        })
    }
}

fn render(shared: &Shared, now_ms: u64) -> Result<String> {
    let seen = look(shared)?;
    let mut body = String::new();
    let directory = shared.catalog.directory().display().to_string();
    let written = write_body(&mut body, shared, &seen, &directory, now_ms);
    written.expect("memory takes every text");
    let title = seen.newest_good.as_ref().map_or_else(
        || "no good one".to_owned(),
        |newest| format!("{} ago", length(now_ms.saturating_sub(newest.started_ms))),
    );
    Ok(FRAME.replace("@TITLE@", &format!("Backups: {title}")).replace("@BODY@", &body))
}

fn look(shared: &Shared) -> Result<Seen> {
    let ids = shared.ids_newest_first()?;
    let mut seen = Seen { all_count: ids.len(), ..Seen::default() };
    for id in ids.iter().take(ROWS_MAX) {
        seen.rows.extend(shared.listed(id)?);
    }
    let shown = seen.backups().find(|backup| backup.is_good()).cloned();
    // One that cannot be read is in the list, and in the metrics.
    let older = || ids.iter().take(LOOKS_MAX).skip(ROWS_MAX).find_map(|id| good(shared, id));
    seen.newest_good = shown.or_else(older);
    Ok(seen)
}

/// The description of a backup, if it is good.
fn good(shared: &Shared, id: &BackupId) -> Option<Details> {
    // Of those that failed, only status and record are read.
    let found = shared.catalog.find(id).ok()?.filter(Found::is_done_by_us)?;
    shared.details(id, Ok(Some(found))).ok()?.filter(Details::is_good)
}

fn write_body(to: &mut String, shared: &Shared, seen: &Seen, directory: &str, now_ms: u64) -> fmt::Result {
    writeln!(to, "<h1>Backups</h1>\n<p class=\"soft\"><code>{}</code></p>", Safe(directory))?;
    writeln!(to, "<div class=\"cards\">")?;
    write_cards(to, shared, seen, now_ms)?;
    writeln!(to, "</div>")?;
    for backup in seen.backups() {
        if let Some(progress) = &backup.progress {
            write_progress(to, backup, progress)?;
        }
    }
    write_table(to, seen, now_ms)?;
    write_failures(to, seen, now_ms)?;
    let (at, version) = (utc(now_ms), env!("CARGO_PKG_VERSION"));
    writeln!(to, "<footer>{at} UTC · chainweb-backup {version} · loaded again every 30 seconds</footer>")
}

fn card(to: &mut String, name: &str, class: &str, text: &str) -> fmt::Result {
    writeln!(to, "<div class=\"card\"><b>{name}</b><span class=\"{class}\">{}</span></div>", Safe(text))
}

fn write_cards(to: &mut String, shared: &Shared, seen: &Seen, now_ms: u64) -> fmt::Result {
    match &seen.newest_good {
        None if seen.all_count > LOOKS_MAX => {
            card(to, "Newest good backup", "bad", &format!("none among the newest {LOOKS_MAX}"))?;
        }
        None => card(to, "Newest good backup", "bad", "none")?,
        Some(newest) => {
            let age = length(now_ms.saturating_sub(newest.started_ms));
            let id = newest.id.as_str();
            card(to, "Newest good backup", "good", &format!("{age} ago, {}, {id}", newest.scope.word()))?;
            let (class, text) = starts(newest);
            card(to, "A node restored from it", class, &text)?;
            let drill = newest.drill.as_ref();
            let (class, text) = match drill {
                None => ("doubt", "never: drill latest".to_owned()),
                Some(drill) if drill.passed => ("good", format!("{} ago", length(now_ms.saturating_sub(drill.at_ms)))),
                Some(drill) => ("bad", drill.reason.clone().unwrap_or_default()),
            };
            card(to, "Restored as a drill", class, &text)?;
        }
    }
    if let Some((class, text)) = next(&shared.timetable.lock().states(), now_ms) {
        card(to, "Next scheduled backup", class, &text)?;
    }
    let Ok((free_bytes, _)) = disk::free_bytes(shared.catalog.directory()) else {
        return card(to, "Free space", "bad", "unknown");
    };
    let per_day = written_per_day(seen);
    let days = per_day.and_then(|per_day| free_bytes.checked_div(per_day));
    let class = if days.is_some_and(|days| days < 2) { "bad" } else { "" };
    let until = days.map_or(String::new(), |days| format!(", full in {days} days if no backup is deleted"));
    card(to, "Free space", class, &format!("{}{until}", size(free_bytes)))
}

/// The backup that the schedules make next, with the class of the text; `None` if there are no schedules.
fn next(states: &[Scheduled], now_ms: u64) -> Option<(&'static str, String)> {
    let first = states.first()?;
    // A schedule decides as soon as the service has nothing else to do.
    let Some((due_ms, next)) =
        states.iter().filter_map(|state| Some((state.next_ms?, state))).min_by_key(|(at, _)| *at)
    else {
        return Some(("soft", format!("{}: not decided yet", first.schedule)));
    };
    let wait_ms = due_ms.saturating_sub(now_ms);
    let when = if wait_ms == 0 { "now".to_owned() } else { format!("in {}", length(wait_ms)) };
    let scope = next.scope.word();
    Some(match next.failed_count {
        0 => ("", format!("{when}, {scope}")),
        count => ("bad", format!("{when}, {scope}, after {count} failed attempts")),
    })
}

/// The bytes that backups write in a day, from the first and the last of the good ones that are shown; `None` if they span less than a
/// day.
fn written_per_day(seen: &Seen) -> Option<u64> {
    const DAY_MS: u64 = 24 * 3600 * 1000;
    let records: Vec<&Record> =
        seen.backups().filter(|row| row.status == Status::Done).filter_map(|row| row.record.as_ref()).collect();
    let span_ms = records.first()?.started_ms.checked_sub(records.last()?.started_ms)?;
    let written = |record: &&Record| {
        let rocksdb_bytes = record.rocksdb.as_ref().map_or(0, |part| part.copied_bytes);
        rocksdb_bytes.saturating_add(record.pact_written_bytes())
    };
    // The oldest was written before the span began.
    let bytes = total(records.iter().rev().skip(1).map(written));
    (span_ms >= DAY_MS).then(|| bytes / (span_ms / DAY_MS)).filter(|bytes| *bytes > 0)
}

/// What a node does when it starts from a backup, with the class of the text.
fn starts(row: &Details) -> (&'static str, String) {
    match row.starts.as_ref().map(|proof| &proof.verdict) {
        None => ("soft", "not proved".to_owned()),
        Some(Verdict::Yes(start)) => ("good", format!("starts {}", moves(start))),
        Some(Verdict::No { reason }) => ("bad", format!("does not start: {reason}")),
        Some(Verdict::Unknown { reason }) => ("soft", format!("unknown: {reason}")),
    }
}

fn moves(start: &Start) -> String {
    let highest = start.chains.values().map(|chain| chain.height).max().unwrap_or(0);
    format!("at block {highest}, {} blocks to replay", start.replay_sum())
}

fn write_progress(to: &mut String, row: &Details, progress: &Progress) -> fmt::Result {
    let Progress { phase, bytes_done, bytes_total, bytes_per_second, eta_seconds, .. } = progress;
    let rest = eta_seconds.map_or(String::new(), |seconds| format!(", {} left", length(seconds.saturating_mul(1000))));
    writeln!(
        to,
        "<h2>Running: <code>{}</code></h2>\n<p>{phase:?}: {} of {}, {}/s{rest}</p>\n<progress max=\"{}\" value=\"{bytes_done}\"></progress>",
        Safe(row.id.as_str()),
        size(*bytes_done),
        size(*bytes_total),
        size(*bytes_per_second),
        (*bytes_total).max(1),
    )
}

fn write_table(to: &mut String, seen: &Seen, now_ms: u64) -> fmt::Result {
    let all = seen.all_count;
    let more = if all > ROWS_MAX { format!(" (the newest {ROWS_MAX} of {all})") } else { String::new() };
    writeln!(to, "<h2>Backups{more}</h2>")?;
    if all == 0 {
        return writeln!(to, "<p>There is none yet. <code>curl -X POST …/make-backup?backupPact</code> makes one.</p>");
    }
    writeln!(
        to,
        "<table><thead><tr><th>Backup<th>Status<th>Age<th class=\"number\">Size<th class=\"number\">Exclusive<th class=\"number\">Blocks\
         <th>Start<th>Notes</thead><tbody>"
    )?;
    for row in &seen.rows {
        match row {
            Listed::Backup(backup) => write_row(to, backup, now_ms)?,
            Listed::Unreadable(Unreadable { id, status, reason }) => writeln!(
                to,
                "<tr><td data-name=\"Backup\"><code>{}</code><td data-name=\"Status\" class=\"bad\">{status}\
                 <td data-name=\"Reason\" class=\"text\" colspan=\"6\">{}",
                Safe(id.as_str()),
                Safe(reason)
            )?,
        }
    }
    writeln!(to, "</tbody></table>")
}

/// A row; a cell without a value is empty.
fn write_row(to: &mut String, row: &Details, now_ms: u64) -> fmt::Result {
    let (class, damaged) = match row.status {
        Status::Done if row.is_damaged() => ("bad", ", damaged"),
        Status::Done if row.is_doubtful() => ("bad", ""),
        Status::Done => ("good", ""),
        Status::InProgress => ("doubt", ""),
        Status::Failed => ("bad", ""),
    };
    let is_done = row.status == Status::Done;
    let record = row.record.as_ref().filter(|_| is_done);
    let bytes = record.map_or_else(String::new, |record| size(record.bytes));
    let alone = row.exclusive_bytes.map_or_else(String::new, size);
    let heights = record.and_then(|record| record.rocksdb.as_ref()?.block_heights);
    let heights = heights.map_or_else(String::new, |heights| heights.to_string());
    let (start_class, start) = match starts(row) {
        _ if !is_done => ("", String::new()),
        (_, text) if row.is_damaged() => ("soft", text),
        seen => seen,
    };
    writeln!(
        to,
        "<tr><td data-name=\"Backup\"><code>{}</code><br><span class=\"soft\">{}</span><td data-name=\"Status\" class=\"{class}\">{}{damaged}\
         <td data-name=\"Age\">{}<td data-name=\"Size\" class=\"number\">{bytes}<td data-name=\"Exclusive\" class=\"number\">{alone}\
         <td data-name=\"Blocks\" class=\"number\">{}<td data-name=\"Start\" class=\"text {start_class}\">{}<td data-name=\"Notes\" class=\"text\">{}</td>",
        Safe(row.id.as_str()),
        row.scope.word(),
        row.status.word(),
        length(now_ms.saturating_sub(row.started_ms)),
        Safe(&heights),
        Safe(&start),
        Safe(&notes(row)),
    )
}

/// Pinned, foreign, damage, warnings.
fn notes(row: &Details) -> String {
    let mut notes = Vec::new();
    notes.extend(row.pinned.then(|| "pinned".to_owned()));
    notes.extend(row.foreign.then(|| "made by another program".to_owned()));
    notes.extend(row.verified.as_ref().map(|verified| match verified.faults_count {
        0 => format!("verified ({}) {}", verified.depth.word(), utc(verified.at_ms)),
        faults => format!("damaged in {faults} places"),
    }));
    notes.extend(row.record.iter().flat_map(|record| record.warnings.iter().cloned()));
    notes.join("; ")
}

fn write_failures(to: &mut String, seen: &Seen, now_ms: u64) -> fmt::Result {
    let failed = seen.backups().filter(|row| row.status == Status::Failed).take(FAILURES_MAX);
    let mut failed = failed.peekable();
    if failed.peek().is_none() {
        return Ok(());
    }
    writeln!(to, "<h2>Last failures</h2>")?;
    for row in failed {
        let reason = row.record.as_ref().and_then(|record| record.reason.as_deref()).unwrap_or("no reason is known");
        let age = length(now_ms.saturating_sub(row.started_ms));
        writeln!(
            to,
            "<p><span class=\"soft\">{age} ago, <code>{}</code></span> {}</p>",
            Safe(row.id.as_str()),
            Safe(reason)
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::record::Scope;

    #[test]
    fn the_next_scheduled_backup_is_the_one_that_is_due_first() {
        let schedule = |next_ms, scope, failed_count| Scheduled {
            schedule: "every 3h".to_owned(),
            scope,
            next_ms,
            last_attempt_ms: None,
            last_succeeded: None,
            failed_count,
        };
        let (pact, rocksdb) = (Scope::RocksdbAndPact, Scope::Rocksdb);
        let said = |states: &[Scheduled]| next(states, 1_000_000);
        assert_eq!(said(&[]), None);
        let undecided = schedule(None, pact, 0);
        assert_eq!(said(std::slice::from_ref(&undecided)), Some(("soft", "every 3h: not decided yet".to_owned())));
        let later = schedule(Some(601_000_000), pact, 0);
        assert_eq!(said(&[undecided, later.clone()]), Some(("", "in 6 days, rocksdb,pact".to_owned())));
        let due = schedule(Some(999_000), rocksdb, 2);
        assert_eq!(said(&[later, due]), Some(("bad", "now, rocksdb, after 2 failed attempts".to_owned())));
    }

    #[test]
    fn nothing_from_outside_is_markup() {
        let text = Safe("<script>alert('x')</script> & \"y\"\u{1b}[2J").to_string();
        assert_eq!(text, "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &quot;y&quot; [2J");
        assert_eq!(Safe(&"&".repeat(10_000)).to_string().len(), "&amp;".len() * TEXT_CHARS_MAX);
    }
}
