//! The commands on finished backups: what they print, and their exit codes.

use std::collections::HashSet;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use chainweb_backup::chainweb::pact::History;
use chainweb_backup::chainweb::{COMPACTED_FLAG, COMPACTED_SETTING};
use chainweb_backup::{
    BackupId, Candidate, Control, Depth, DrillOptions, Error, Hooks, Kind, Listed, Progress, Rehearsal, RestoreOptions,
    Restored, Result, Settle, Settled, StartProof, Status, Stop, Unreadable, Verdict, Verification, VerifyOptions, Way,
    cancel_backup, chainweb, check_backup_in, delete_backup, drill_backup, find_backup, inspect_json, list_all_in,
    metrics_of, pin_backup, prune_backups, rehearse_prune, rehearse_restore, require_no_half_restore, restore_backup,
    run_verified_hooks, settle_restore, size, step_back, sum_backup, unpin_backup, verify_backup,
};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::action::{Action, Output};
use crate::args::NAME;
use crate::plan::OURSELVES;
use crate::status::{now_ms, status};
use crate::table::{Column, moves, table};
use crate::terminal::{HOOK_FAILED, exit_code, print, progress_line, say, with_line};

/// How often a child process shows that it makes progress.
const BEAT_INTERVAL: Duration = Duration::from_secs(1);

/// Runs an [`Action`] on a backup directory, and the hooks that belong to it, within the limits of `control`; returns the exit code.
pub fn run(directory: &Path, action: Action, hooks: &Hooks, control: &Control) -> Result<i32> {
    match action {
        Action::Status => status(directory),
        Action::List { output, columns } => list(directory, output, &columns),
        Action::Metrics { reserve_bytes } => print(metrics_of(directory, reserve_bytes)?.trim_end()),
        Action::Check(id) => check(directory, &id),
        Action::Cancel(id) => {
            let (id, status) = cancel_backup(directory, id.as_deref())?;
            print(&format!("{id}: {}", status.word()))?;
            if status == Status::Done {
                say(&format!("the backup was done before it could be cancelled; to remove it: {NAME} delete {id}"));
            }
            Ok(i32::from(status == Status::Done))
        }
        Action::Verify { id, depth } => verify(directory, &id, depth, hooks, control),
        Action::Restore { id, to, replace, copy, depth, dry_run } => {
            let program = Some(Path::new(OURSELVES));
            let options = RestoreOptions { target: &to, replace, copy, depth, program };
            match dry_run {
                None => restore(directory, &id, options, control),
                Some(output) => rehearse(directory, &id, options, (control, output)),
            }
        }
        Action::Drill { id, command, time_limit, copy } => {
            let program = Some(Path::new(OURSELVES));
            drill(directory, &id, DrillOptions { command: &command, time_limit, copy, program }, control)
        }
        Action::Sum(id) => {
            step_back();
            let (id, summed) = with_progress(control, || sum_backup(directory, &id, control))?;
            for file in &summed.left_out {
                say(&format!("left out: {file} is not part of the backup"));
            }
            for defect in &summed.mended {
                say(&format!("mended: {defect}"));
            }
            let done = if summed.written_count > 0 { "written" } else { "is complete" };
            print(&format!("{id}: BLAKE2SUMS {done}, {} files read", summed.read_count))
        }
        Action::Delete(ids) => delete(directory, &ids),
        Action::Prune { policy, dry_run: true } => tell_pruned(&rehearse_prune(directory, policy)?, "would be deleted"),
        Action::Prune { policy, dry_run: false } => tell_pruned(&prune_backups(directory, policy)?, "deleted"),
        Action::Pin(id) => print(&format!("{}: pinned", pin_backup(directory, &id)?)),
        Action::Unpin(id) => print(&format!("{}: no longer pinned", unpin_backup(directory, &id)?)),
    }
}

/// Runs long work; on a terminal, with a progress line.
fn with_progress<T>(control: &Control, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let began = Instant::now();
    let line = move || {
        let (step, elapsed) = control.command_step().unwrap_or(("looking", began.elapsed()));
        Some(progress_line(step, &Progress::of(control, elapsed)))
    };
    with_line(line, work)
}

/// Reads every block of a finished copy, for our parent process, and prints an empty line in each second with progress: the parent
/// kills a child without any.
pub fn inspect(directory: &Path, control: &Control) -> Result<i32> {
    let inspected = thread::scope(|scope| {
        let (done, wait) = channel::<()>();
        let beat = move || {
            let mut seen = 0;
            while wait.recv_timeout(BEAT_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                if control.progress() != seen {
                    seen = control.progress();
                    // If this fails, the parent is gone, and the answer fails too.
                    let _ = print("");
                }
            }
        };
        // Without the thread, the parent still sees that files are read.
        let _ = thread::Builder::new().name("beat".to_owned()).spawn_scoped(scope, beat);
        let inspected = inspect_json(directory, control);
        drop(done);
        inspected
    });
    print(&inspected?)
}

fn verify(directory: &Path, id: &str, depth: Depth, hooks: &Hooks, control: &Control) -> Result<i32> {
    if depth == Depth::Deep {
        step_back();
    }
    let options = VerifyOptions { depth, program: Some(Path::new(OURSELVES)) };
    let (id, found) = with_progress(control, || verify_backup(directory, id, options, control))?;
    let faults_count = found.faults.len() as u64;
    let code = tell_verified(&id, depth, found)?;
    if hooks.on_verified.is_empty() {
        return Ok(code);
    }
    step_back();
    let runs = stoppable(control, || run_verified_hooks(directory, &id, hooks, faults_count, control))?;
    let failed = runs.iter().filter_map(|run| Some((run, run.reason.as_ref()?)));
    let failed_count = failed.clone().count();
    failed.for_each(|(run, reason)| say(&format!("the hook {} failed: {reason}", run.event.word())));
    Ok(if code == 0 && failed_count > 0 { HOOK_FAILED } else { code })
}

/// Prints the result of a verification, and returns the exit code.
fn tell_verified(id: &BackupId, depth: Depth, found: Verification) -> Result<i32> {
    for fault in &found.faults {
        say(&fault.to_string());
    }
    for note in &found.notes {
        say(&format!("note: {note}"));
    }
    for extra in &found.extras {
        say(&format!("note: {extra} is not part of the backup"));
    }
    let looked_at = format!("{} files, {}", found.files_count, size(found.bytes));
    let read = format!(", {} checksums, {} keys", found.sums_count, found.keys_count);
    let read = if depth == Depth::Deep { read } else { String::new() };
    if found.faults.is_empty() {
        print(&format!("{id}: good ({looked_at}{read})"))?;
        return found.starts.map_or(Ok(0), |proof| tell_start(id.as_str(), &proof));
    }
    print(&format!("{id}: DAMAGED in {} places ({looked_at}{read})", found.faults.len()))?;
    Ok(exit_code(Kind::Damaged))
}

/// Prints a start-up proof, and returns the exit code: that of damage if a node does not start.
fn tell_start(id: &str, proof: &StartProof) -> Result<i32> {
    match &proof.verdict {
        chainweb::start::Verdict::Yes(start) => {
            start.warnings.iter().for_each(|warning| say(&format!("warning: {warning}")));
            let flags: String = start.flags.iter().map(|flag| format!(" with {flag}")).collect();
            print(&format!("{id}: a node starts from it{flags}, {}", moves(start)))
        }
        chainweb::start::Verdict::Unknown { reason } => {
            print(&format!("{id}: whether a node starts from it is unknown: {reason}"))
        }
        chainweb::start::Verdict::No { reason } => {
            print(&format!("{id}: A NODE DOES NOT START from it: {reason}"))?;
            Ok(exit_code(Kind::Damaged))
        }
    }
}

/// What a node does when it starts: `at blocks 120-121, 3 to replay, 1 to rewind`.
fn restore(directory: &Path, id: &str, options: RestoreOptions<'_>, control: &Control) -> Result<i32> {
    let (id, restored) = with_progress(control, || restore_backup(directory, id, options, control))?;
    let Restored { database_directory, way, replaced, linked_count, cloned_count, copied_count, pact_history } =
        restored;
    let counts = format!("{linked_count} files linked, {cloned_count} cloned, {copied_count} copied");
    let place = chainweb::place_in(&database_directory);
    print(&format!("restored {id} to {} ({counts})", place.display()))?;
    let compacted = if pact_history == History::Compacted { format!(" {COMPACTED_FLAG}") } else { String::new() };
    print(&format!("start the node with: --database-directory {}{compacted}", quoted(&database_directory)))?;
    history_note(pact_history).iter().for_each(|note| say(note));
    for old in &replaced {
        print(&format!("the previous database is in {}", old.display()))?;
    }
    if let (Way::Whole, Some(old)) = (way, replaced.first()) {
        let (place, old) = (quoted(&place), quoted(old));
        print(&format!("to undo this, with the node stopped: mv -T {place} {place}.undone && mv -T {old} {place}"))?;
    }
    Ok(0)
}

/// A signal ends the drill in order: its command is ended, too, and the scratch directory is removed.
fn drill(directory: &Path, id: &str, options: DrillOptions<'_>, control: &Control) -> Result<i32> {
    step_back();
    let (id, drill) = with_progress(control, || stoppable(control, || drill_backup(directory, id, options, control)))?;
    if let Some(reason) = &drill.reason {
        if !drill.output.is_empty() {
            say(&drill.output);
        }
        say(reason);
    }
    let (result, seconds) = (if drill.passed { "passed" } else { "FAILED" }, drill.used_ms as f64 / 1000.0);
    print(&format!("{id}: drill {result} (the databases were in use for {seconds:.1} s)"))?;
    Ok(if drill.passed { 0 } else { exit_code(Kind::Damaged) })
}

/// Whether a signal is ignored, as `nohup` does with SIGHUP: then it stays so.
#[expect(clippy::disallowed_methods, reason = "reads the state of this process from proc(5)")]
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// Does work that SIGTERM, SIGINT and a lost terminal cancel.
fn stoppable<T>(control: &Control, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let failed = |e| Error::io("cannot handle signals", e);
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(failed)?;
    if !is_ignored(SIGHUP) {
        signals.add_signal(SIGHUP).map_err(failed)?;
    }
    let handle = signals.handle();
    thread::scope(|scope| {
        let wait = move || {
            if signals.forever().next().is_some() {
                control.stop(Stop::Cancelled);
            }
        };
        let waiting = thread::Builder::new().name("signals".to_owned()).spawn_scoped(scope, wait);
        let result = waiting.map_err(|e| Error::io("cannot handle signals", e)).and_then(|_| work());
        handle.close();
        result
    })
}

/// Prints what a restore would do, and ends as it would.
fn rehearse(
    directory: &Path,
    id: &str,
    options: RestoreOptions<'_>,
    (control, output): (&Control, Output),
) -> Result<i32> {
    let (id, rehearsal) = with_progress(control, || rehearse_restore(directory, id, options, control))?;
    if output == Output::Json {
        print(&serde_json::to_string_pretty(&rehearsal).expect("a rehearsal has only string keys"))?;
    } else {
        print_rehearsal(id.as_str(), &rehearsal)?;
    }
    rehearsal.obstacle.map_or(Ok(0), Err)
}

/// What the operator must know of the blocks that Pact has in a backup.
fn history_note(pact_history: History) -> Option<String> {
    match pact_history {
        History::Whole => None,
        History::Unknown => Some(format!(
            "note: it is unknown whether Pact has all blocks in this backup: if the node refuses to start because the full history is \
             missing, add {COMPACTED_FLAG} (in its configuration file: {COMPACTED_SETTING})"
        )),
        History::Compacted => Some(format!(
            "warning: Pact is compacted in this backup: the node refuses to start without {COMPACTED_FLAG} (in its \
             configuration file: {COMPACTED_SETTING})"
        )),
    }
}

fn print_rehearsal(id: &str, rehearsal: &Rehearsal) -> Result<()> {
    let place = chainweb::place_in(&rehearsal.database_directory);
    print(&format!("would restore {id} to {}; nothing is written", place.display()))?;
    for part in &rehearsal.parts {
        let counted = |count: u64, bytes: u64, how: &str| format!("{count} files {how} ({})", size(bytes));
        print(&format!(
            "{}: {}, {}, {}, {} free",
            part.directory.display(),
            counted(part.linked_count, part.linked_bytes, "linked"),
            counted(part.cloned_count, part.cloned_bytes, "cloned"),
            counted(part.copied_count, part.copied_bytes, "copied"),
            size(part.free_bytes)
        ))?;
    }
    print(&match (&rehearsal.below_because, rehearsal.kept_in.is_empty()) {
        (None, true) => format!("{} gets its name in one step", place.display()),
        (None, false) => format!("{} is exchanged in one step", place.display()),
        (Some(why), _) => format!("the files in the two directories are exchanged, under a journal: {why}"),
    })?;
    for kept in &rehearsal.kept_in {
        print(&format!("the previous database would be in {kept}"))?;
    }
    let flags: String = rehearsal.flags.iter().map(|flag| format!(" {flag}")).collect();
    let directory = quoted(&rehearsal.database_directory);
    print(&format!("start the node then with: --database-directory {directory}{flags}"))?;
    history_note(rehearsal.pact_history).iter().for_each(|note| say(note));
    rehearsal.starts.as_ref().map_or(Ok(()), |proof| tell_start(id, proof).map(|_| ()))
}

/// Finishes or undoes an interrupted restore. Succeeds only if the wanted database is in place because of that: a node is often
/// started next.
pub fn settle(target: &Path, wanted: Settle) -> Result<i32> {
    let place = chainweb::place_in(target);
    let place = place.display();
    match (settle_restore(target, wanted)?, wanted) {
        (Settled::New, Settle::Resume) => print(&format!("{place} is restored, the previous database is beside it")),
        (Settled::Old, Settle::Undo) => print(&format!("the previous database is in {place} again")),
        (Settled::Nothing, _) => {
            let context = format!("no restore into {place} is half done: the database in it was not changed");
            Err(Error::new(Kind::NotFound, context))
        }
        (Settled::Old, Settle::Resume) => {
            let context = format!(
                "the restore into {place} was interrupted before it exchanged a file: the previous database is in place; restore \
                 again"
            );
            Err(Error::new(Kind::Refused, context))
        }
        (Settled::New, Settle::Undo) => {
            let context = format!(
                "the restore into {place} was finished: the new database is in place, and the previous one is beside it"
            );
            Err(Error::new(Kind::Refused, context))
        }
    }
}

/// A path quoted for a shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "'\\''"))
}

fn delete(directory: &Path, ids: &[String]) -> Result<i32> {
    // All identifiers are looked up first: if one is wrong, nothing is deleted.
    let mut found = ids.iter().map(|id| find_backup(directory, id)).collect::<Result<Vec<_>>>()?;
    let mut seen = HashSet::new();
    found.retain(|id| seen.insert(id.clone()));
    for id in found {
        print(&format!("{}: deleted", delete_backup(directory, id.as_str())?))?;
    }
    Ok(0)
}

/// Prints the verdicts; returns the exit code, which tells if a backup could not be deleted or read.
fn tell_pruned(judged: &[(Candidate, Verdict)], deleted: &str) -> Result<i32> {
    for (Candidate { id, .. }, verdict) in judged {
        let line = match verdict {
            Verdict::Keep(why) => format!("{id}: kept ({why})"),
            Verdict::Delete => format!("{id}: {deleted}"),
            Verdict::Gone => format!("{id}: already deleted by another process"),
            Verdict::Failed => format!("{id}: not deleted"),
            Verdict::Unread => format!("{id}: kept (it cannot be read)"),
        };
        print(&line)?;
    }
    Ok(i32::from(judged.iter().any(|(_, verdict)| matches!(verdict, Verdict::Failed | Verdict::Unread))))
}

fn check(directory: &Path, id: &str) -> Result<i32> {
    let none = || Error::new(Kind::NotFound, format!("no backup {id:?} in {}", directory.display()));
    let id = find_backup(directory, id)?;
    let details = check_backup_in(directory, &id)?.ok_or_else(none)?;
    print(details.status.word())?;
    if let Some(reason) = details.record.and_then(|r| r.reason) {
        say(&reason);
    }
    Ok(match details.status {
        Status::Done => 0,
        Status::Failed => 1,
        Status::InProgress => 11,
    })
}

fn list(directory: &Path, output: Output, columns: &[Column]) -> Result<i32> {
    let backups = list_all_in(directory)?;
    if let Some(Err(e)) = directory.parent().map(require_no_half_restore) {
        say(&format!("warning: {}", e.chain()));
    }
    match output {
        Output::Json => print(&serde_json::to_string_pretty(&backups).expect("details have only string keys"))?,
        Output::Text => print(&table(&backups, columns, now_ms()))?,
    };
    let unreadable =
        |backup: &Listed| if let Listed::Unreadable(backup) = backup { Some(backup.clone()) } else { None };
    let unreadable: Vec<Unreadable> = backups.iter().filter_map(unreadable).collect();
    for Unreadable { id, reason, .. } in &unreadable {
        say(&format!("error: backup {id} cannot be read: {reason}"));
    }
    Ok(i32::from(!unreadable.is_empty()))
}
