//! The table of `list`: a row for each backup, with the columns that were asked for, each as wide as its longest cell.
//!
//! Invariants
//! - Nothing that another program may have written draws on a terminal.
//! - If no column is named, no line is longer than [`WIDTH`].

use std::collections::BTreeSet;

use chainweb_backup::chainweb::start::Start;
use chainweb_backup::{Details, HookRun, Listed, Record, Status, Unreadable, chainweb, length, size, utc};
use clap::ValueEnum;

/// How wide the table is if no column is named: most terminals have 80 columns.
const WIDTH: usize = 80;

/// The columns, in the order in which they are shown with `all`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Column {
    /// The identifier.
    Id,
    /// The status, one of the words of the contract.
    Status,
    /// How long ago it began.
    Age,
    /// When it began, UTC.
    Started,
    /// The databases in it.
    Scope,
    /// The sum of the sizes of its files.
    Size,
    /// What deleting it would free.
    Exclusive,
    /// The lowest and the highest block.
    Height,
    /// Everything else that is known, the worst first.
    Note,
    /// Stands for all others.
    All,
}

/// The columns if none is named; the note is cut off where the line would be too long.
const USUAL: [Column; 6] = [Column::Id, Column::Status, Column::Age, Column::Scope, Column::Size, Column::Note];

impl Column {
    fn heading(self) -> &'static str {
        match self {
            Column::Id => "ID",
            Column::Status => "STATUS",
            Column::Age => "AGE",
            Column::Started => "STARTED (UTC)",
            Column::Scope => "SCOPE",
            Column::Size => "SIZE",
            Column::Exclusive => "EXCLUSIVE",
            Column::Height => "HEIGHT",
            Column::Note | Column::All => "NOTE",
        }
    }

    /// Whether its cells are aligned to the right.
    fn is_number(self) -> bool {
        matches!(self, Column::Age | Column::Size | Column::Exclusive | Column::Height)
    }

    fn text(self, backup: &Details, now_ms: u64) -> String {
        let record = backup.record.as_ref();
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        match self {
            Column::Id => backup.id.as_str().to_owned(),
            Column::Status => backup.status.word().to_owned(),
            Column::Age => length(now_ms.saturating_sub(backup.started_ms)),
            Column::Started => utc(backup.started_ms),
            Column::Scope => backup.scope.word().to_owned(),
            Column::Size => or_none(record.map(|record| size(record.bytes))),
            Column::Exclusive => or_none(backup.exclusive_bytes.map(size)),
            Column::Height => {
                let heights = record.and_then(|record| record.rocksdb.as_ref()?.block_heights);
                or_none(heights.map(|heights| heights.to_string()))
            }
            Column::Note | Column::All => record.map_or_else(|| "foreign".to_owned(), |record| notes(backup, record)),
        }
    }

    /// The cell of a backup that cannot be read.
    fn unreadable(self, backup: &Unreadable) -> String {
        match self {
            Column::Id => backup.id.as_str().to_owned(),
            Column::Status => backup.status.to_owned(),
            Column::Note => backup.reason.replace(char::is_control, " "),
            _ => "-".to_owned(),
        }
    }
}

/// The table, with a line for the headings.
pub fn table(backups: &[Listed], columns: &[Column], now_ms: u64) -> String {
    let every = Column::value_variants().split_last().map_or(&[] as &[Column], |(_, others)| others);
    let columns = match columns {
        [] => &USUAL,
        named if named.contains(&Column::All) => every,
        named => named,
    };
    let cells = |listed: &Listed| -> Vec<String> {
        let cell = |column: &Column| match listed {
            Listed::Backup(backup) => column.text(backup, now_ms),
            Listed::Unreadable(backup) => column.unreadable(backup),
        };
        columns.iter().map(cell).collect()
    };
    let headings = columns.iter().map(|column| column.heading().to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(headings).chain(backups.iter().map(cells)).collect();
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cell = |(at, text): (usize, &String)| {
            let width = widths[at];
            if columns[at].is_number() { format!("{text:>width$}") } else { format!("{text:<width$}") }
        };
        let line = row.iter().enumerate().map(cell).collect::<Vec<_>>().join(" ").trim_end().to_owned();
        if *columns == USUAL { cut(line) } else { line }
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A line that fits on a terminal.
fn cut(line: String) -> String {
    if line.chars().count() <= WIDTH {
        return line;
    }
    line.chars().take(WIDTH - 3).chain("...".chars()).collect()
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

/// What is known of a backup beside its size, the worst first: why it failed, damage, what did not work, warnings; then what is well.
fn notes(backup: &Details, record: &Record) -> String {
    let (mut bad, mut good) = (Vec::new(), Vec::new());
    bad.extend(record.reason.clone());
    if let Some(verified) = &backup.verified {
        match verified.faults_count {
            0 => good.push(format!("verified ({}) {}", verified.depth.word(), utc(verified.at_ms))),
            faults => bad.push(format!("DAMAGED in {faults} places")),
        }
    }
    // Without Pact it is never known.
    if let Some(proof) = backup.starts.as_ref().filter(|_| backup.status == Status::Done && backup.scope.has_pact()) {
        match &proof.verdict {
            chainweb::start::Verdict::Yes(start) => {
                bad.extend(start.warnings.clone());
                good.insert(0, format!("starts {}", moves(start)));
            }
            chainweb::start::Verdict::No { reason } => bad.push(format!("DOES NOT START: {reason}")),
            chainweb::start::Verdict::Unknown { reason } => good.push(format!("start unknown: {reason}")),
        }
    }
    for hook in &backup.hooks {
        let list = if hook.ended_ms().is_some() && !hook.passed { &mut bad } else { &mut good };
        list.push(hook_note(hook));
    }
    if let Some(drill) = &backup.drill {
        match &drill.reason {
            None => good.push(format!("drill passed {}", utc(drill.at_ms))),
            Some(reason) => bad.push(format!("drill FAILED {}: {reason}", utc(drill.at_ms))),
        }
    }
    bad.extend(record.warnings.iter().cloned());
    bad.extend(backup.pinned.then(|| "pinned".to_owned()));
    good.extend(increments(record));
    let text = bad.into_iter().chain(good).collect::<Vec<_>>().join("; ");
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
