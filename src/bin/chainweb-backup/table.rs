//! The table of `list`: a row for each backup, with the columns that were asked for.
//!
//! Invariant: nothing that another program may have written draws on a terminal.

use std::collections::BTreeSet;

use chainweb_backup::chainweb::start::Start;
use chainweb_backup::{Details, Drill, HookRun, Listed, Record, Status, Unreadable, Verified, chainweb, size, utc};
use clap::ValueEnum;

/// The columns, in the order in which they are shown if none is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Column {
    /// The identifier.
    Id,
    /// The status, one of the words of the contract.
    Status,
    /// The databases in it.
    Scope,
    /// When it began, UTC.
    Started,
    /// The sum of the sizes of its files.
    Size,
    /// What deleting it would free.
    Exclusive,
    /// The lowest and the highest block.
    Height,
    /// Everything else that is known.
    Note,
}

impl Column {
    /// The heading and the width; a negative width is aligned to the right.
    fn shape(self) -> (&'static str, i32) {
        match self {
            Column::Id => ("ID", 16),
            Column::Status => ("STATUS", 18),
            Column::Scope => ("SCOPE", 12),
            Column::Started => ("STARTED (UTC)", 20),
            Column::Size => ("SIZE", -10),
            Column::Exclusive => ("EXCLUSIVE", -10),
            Column::Height => ("HEIGHT", -15),
            Column::Note => ("NOTE", 0),
        }
    }

    fn text(self, backup: &Details) -> String {
        let record = backup.record.as_ref();
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        match self {
            Column::Id => backup.id.as_str().to_owned(),
            Column::Status => backup.status.word().to_owned(),
            Column::Scope => backup.scope.word().to_owned(),
            Column::Started => utc(backup.started_ms),
            Column::Size => or_none(record.map(|record| size(record.bytes))),
            Column::Exclusive => or_none(backup.exclusive_bytes.map(size)),
            Column::Height => {
                let heights = record.and_then(|record| record.rocksdb.as_ref()?.block_heights);
                or_none(heights.map(|heights| heights.to_string()))
            }
            Column::Note => record.map_or_else(|| "foreign".to_owned(), |record| notes(backup, record)),
        }
    }
}

/// The table, with a line for the headings.
pub fn table(backups: &[Listed], columns: &[Column]) -> String {
    let columns = if columns.is_empty() { Column::value_variants() } else { columns };
    let mut table = row(columns.iter().map(|column| (*column, column.shape().0.to_owned())));
    for listed in backups {
        table.push_str(&match listed {
            Listed::Backup(backup) => row(columns.iter().map(|column| (*column, column.text(backup)))),
            // The reason stands in place of the data, whatever the columns are.
            Listed::Unreadable(Unreadable { id, status, reason }) => {
                format!("{:<16} {status:<18} {}\n", id.as_str(), reason.replace(char::is_control, " "))
            }
        });
    }
    table.trim_end().to_owned()
}

fn row(cells: impl Iterator<Item = (Column, String)>) -> String {
    let cell = |(column, text): (Column, String)| {
        let width = column.shape().1;
        let chars = usize::try_from(width.unsigned_abs()).unwrap_or(0);
        if width < 0 { format!("{text:>chars$}") } else { format!("{text:<chars$}") }
    };
    let row = cells.map(cell).collect::<Vec<_>>().join(" ");
    format!("{}\n", row.trim_end())
}

/// Of which backups the Pact databases are increments, or on whose files they are delta pairs, and what was written for them and for those that were copied whole.
fn increments(record: &Record) -> Option<String> {
    let bases: BTreeSet<&str> = record.pact.iter().filter_map(|part| Some(part.base.as_ref()?.as_str())).collect();
    let of = bases.iter().copied().collect::<Vec<_>>().join(", ");
    let copied_count = record.pact.iter().filter(|part| part.base.is_none()).count();
    let copied = if copied_count == 0 { String::new() } else { format!(", {copied_count} databases copied whole") };
    let written = size(record.pact_written_bytes());
    let how = if record.pact.iter().any(|part| part.pair.is_some()) { "delta pairs on the files" } else { "increment" };
    (!bases.is_empty()).then(|| format!("Pact: {how} of {of}, {written} written{copied}"))
}

/// The last column of a row: pinned, verified, why it failed, warnings.
fn notes(backup: &Details, record: &Record) -> String {
    let verified = |v: &Verified| match v.faults_count {
        0 => format!("verified ({}) {}", v.depth.word(), utc(v.at_ms)),
        faults => format!("DAMAGED in {faults} places"),
    };
    let pinned = backup.pinned.then(|| "pinned".to_owned());
    let drilled = |d: &Drill| match &d.reason {
        None => format!("drill passed {}", utc(d.at_ms)),
        Some(reason) => format!("drill FAILED {}: {reason}", utc(d.at_ms)),
    };
    let starts = backup.starts.as_ref().filter(|_| backup.status == Status::Done).map(|proof| match &proof.verdict {
        chainweb::start::Verdict::Yes(start) => {
            let said: Vec<String> =
                std::iter::once(format!("starts {}", moves(start))).chain(start.warnings.clone()).collect();
            said.join("; ")
        }
        chainweb::start::Verdict::No { reason } => format!("DOES NOT START: {reason}"),
        chainweb::start::Verdict::Unknown { reason } => format!("start unknown: {reason}"),
    });
    // Without Pact it is never known.
    let starts = starts.filter(|_| backup.scope.has_pact());
    let reason = record.reason.clone();
    let increment = increments(record);
    let hooks = backup.hooks.iter().map(hook_note);
    let all =
        [pinned, increment, backup.verified.as_ref().map(verified), backup.drill.as_ref().map(drilled), starts, reason]
            .into_iter()
            .flatten()
            .chain(hooks);
    let text = all.chain(record.warnings.iter().cloned()).collect::<Vec<_>>().join("; ");
    // Another program may have written a note: nothing in it draws on a terminal.
    text.replace(char::is_control, " ")
}

/// What a node does when it starts.
pub fn moves(start: &Start) -> String {
    let heights = || start.chains.values().map(|chain| chain.height);
    let (lowest, highest) = (heights().min().unwrap_or(0), heights().max().unwrap_or(0));
    let blocks = if lowest == highest { format!("block {lowest}") } else { format!("blocks {lowest}-{highest}") };
    let rewind = match start.rewind_sum() {
        0 => String::new(),
        blocks => format!(", {blocks} to rewind"),
    };
    format!("at {blocks}, {} to replay{rewind}", start.replay_sum())
}

/// What a list says of a hook.
fn hook_note(hook: &HookRun) -> String {
    let event = hook.event.word();
    match (hook.ended_ms(), &hook.reason) {
        (None, _) if hook.waits => format!("hook {event} waits since {}", utc(hook.at_ms)),
        (None, _) => format!("hook {event} has not ended, began {}", utc(hook.at_ms)),
        (Some(ended_ms), None) => format!("hook {event} passed {}", utc(ended_ms)),
        (Some(ended_ms), Some(reason)) => format!("hook {event} FAILED {}: {reason}", utc(ended_ms)),
    }
}
