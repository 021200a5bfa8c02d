//! Runs the hooks of a backup, the commands of the operator, and notes their outcomes in `hooks.json` of the backup.
//!
//! A hook gets the description of the backup as JSON on its standard input, and the most important values in its environment. It has
//! no other variable of ours but those in [`KEPT`], and no descriptor of this process.
//!
//! ```text
//! step                                            a crash after it leaves
//! 0  note that the hooks wait: those of a job     a note without an end; the next recovery calls it not run, which is
//!    before its commit                            a failure
//! 1  note that the hook begins                    a note without an end, and perhaps the hook, which goes on;
//!                                                 the next recovery calls it interrupted, which is a failure
//! 2  run it, until it ends or its time is over    the same
//! 3  note how it ended                            the note
//! ```
//! Invariants
//! - A hook never changes whether a backup is good. Only the caller of [`run`] for [`Event::Before`] fails its job because of one.
//! - Commands come from the configuration only. Nothing that a client sent becomes a word of one.
//! - A hook ends when its time is over, or `control` is stopped: first by SIGTERM to its process group, then by SIGKILL.
//! - A hook that is not run is a failure with a reason, in the note and in the report: the rest if `control` is stopped; after a crash those
//!   whose note has no end ([`settle`]). What failed for no other reason is noted as unfinished, so that a service can run it later.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};

use crate::backups::catalog::Catalog;
use crate::backups::command::{self, Limits};
use crate::backups::details::Details;
use crate::capture::in_use;
use crate::clock::now_ms;
use crate::config::hooks::{Event, Hooks};
use crate::control::Control;
use crate::disk;
use crate::disk::lock::Lock;
use crate::disk::sys;
use crate::error::{Error, IoContext, Kind, Result};
use crate::format::hooks::{HookRun, HookRuns};
use crate::format::layout::HOOKS_FILE;
use crate::format::record::Status;
use crate::id::BackupId;

/// The variables of our own environment that a hook gets, if they are set; `PATH` always.
const KEPT: [&str; 6] = ["PATH", "HOME", "USER", "LOGNAME", "LANG", "TMPDIR"];

/// The `PATH` of a hook if we have none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How long a hook may take to end after SIGTERM: the service must end within 10 seconds.
const TERM_LIMIT: Duration = Duration::from_secs(2);

/// The reason of a hook whose end was not noted.
const INTERRUPTED: &str = "interrupted: the program that ran it ended before, or its end could not be noted";

/// How often a hook is run again whose program ended while it ran: it may be the hook that ends it.
const MAX_INTERRUPTIONS: u32 = 3;

/// How the reason of a hook begins that was not run, and how it goes on after a crash.
const NOT_RUN: &str = "not run";
const ENDED: &str = "the program that made the backup ended before";

/// The longest reason in the environment of a hook, and the longest line of its output in a reason, in characters.
const MAX_REASON_CHARS: usize = 1000;
const MAX_LINE_CHARS: usize = 200;

/// What hooks are told.
pub(crate) struct Occasion<'a> {
    pub(crate) event: Event,
    pub(crate) details: &'a Details,
    /// Why the backup failed, if it did.
    pub(crate) reason: Option<&'a str>,
    /// The number of faults that a verification found.
    pub(crate) faults_count: Option<u64>,
    /// Whether the outcomes are noted in the backup; not if its disk hangs.
    pub(crate) is_noted: bool,
}

/// Runs the hooks of an event one after the other; those of [`Event::Before`] only up to the first that fails. Each is given to `report` as
/// soon as it has ended, or will not run.
pub(crate) fn run(
    hooks: &Hooks,
    catalog: &Catalog,
    occasion: &Occasion<'_>,
    control: &Control,
    report: &dyn Fn(&HookRun),
) {
    let commands = hooks.commands(occasion.event);
    occasion.note(catalog, &|runs| plan_event(runs, occasion.event, commands));
    for (number, words) in commands.iter().enumerate() {
        let mut hook = HookRun::begun(occasion.event, number, &words[0], now_ms());
        match control.check() {
            Ok(()) => run_one((&words[..], hooks.time_limit), catalog, occasion, control, &mut hook),
            // The end of the job tells.
            Err(_) if occasion.event == Event::Before => return,
            Err(why) => hook.leave(format!("{NOT_RUN}: {}", why.chain())),
        }
        occasion.note(catalog, &|runs| put(runs, &hook));
        report(&hook);
        if occasion.event == Event::Before && !hook.passed {
            return;
        }
    }
}

/// Runs one hook, with its time limit.
fn run_one(
    (words, time_limit): (&[String], Duration),
    catalog: &Catalog,
    occasion: &Occasion<'_>,
    control: &Control,
    hook: &mut HookRun,
) {
    occasion.note(catalog, &|runs| put(runs, &*hook));
    let began = Instant::now();
    let limits = Limits { time: time_limit, term: TERM_LIMIT };
    let ended = command_for(words, catalog, occasion)
        .and_then(|command| command::run(command, limits, control, |command| command.spawn()));
    match ended {
        Ok(ended) => {
            hook.reason = ended.reason.map(|reason| with_last_line(reason, &ended.output));
            hook.output = ended.output;
        }
        Err(e) => hook.reason = Some(e.chain()),
    }
    hook.passed = hook.reason.is_none();
    hook.unfinished = !hook.passed && control.check().is_err();
    hook.duration_ms = Some(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX));
    log::debug!("hook ended id={} hook={} output={:?}", occasion.details.id, hook.event.word(), hook.output);
}

/// Notes that no hook of an event is run, and why; each is given to `report`.
pub(crate) fn skip(hooks: &Hooks, catalog: &Catalog, occasion: &Occasion<'_>, reason: &str, report: &dyn Fn(&HookRun)) {
    for (number, words) in hooks.commands(occasion.event).iter().enumerate() {
        let mut hook = HookRun::begun(occasion.event, number, &words[0], now_ms());
        hook.give_up(format!("{NOT_RUN}: {reason}"));
        occasion.note(catalog, &|runs| put(runs, &hook));
        report(&hook);
    }
}

/// Notes that the hooks of these events wait, and no others.
pub(crate) fn plan(hooks: &Hooks, catalog: &Catalog, id: &BackupId, events: &[Event]) {
    note(catalog, id, &|runs| {
        runs.retain(|run| !run.waits);
        events.iter().for_each(|event| plan_event(runs, *event, hooks.commands(*event)));
    });
}

/// Notes that a hook failed whose end was not noted: the program that ran it, or would have, ended before, or the disk was full. Does
/// nothing while a living process works on the backup or has it in the queue of its hooks.
pub(crate) fn settle(catalog: &Catalog, id: &BackupId, status: Status) -> Result<()> {
    let have_ended = |runs: &[HookRun]| runs.iter().all(|run| run.ended_ms().is_some());
    if have_ended(&catalog.hooks(id)?) {
        return Ok(());
    }
    let Some(_lock) = Lock::try_take_directory(&catalog.path(id))? else { return Ok(()) };
    // It may have ended meanwhile.
    let mut runs = catalog.hooks(id)?;
    // The job failed after it had noted what comes after a good end.
    let is_good = |event| matches!(event, Event::OnVerified | Event::AfterSuccess);
    runs.retain(|run| !run.waits || is_good(run.event) == (status == Status::Done));
    for run in runs.iter_mut().filter(|run| run.ended_ms().is_none()) {
        let reason = if run.waits { format!("{NOT_RUN}: {ENDED}") } else { INTERRUPTED.to_owned() };
        log::warn!("hook interrupted id={id} hook={} program={:?} reason={reason:?}", run.event.word(), run.program);
        run.interrupted_count = run.interrupted_count.saturating_add(u32::from(!run.waits));
        if run.interrupted_count < MAX_INTERRUPTIONS { run.leave(reason) } else { run.give_up(reason) }
    }
    write(catalog, id, runs)
}

/// The events with a hook that is unfinished, in their order.
pub(crate) fn unfinished(catalog: &Catalog, id: &BackupId) -> Result<Vec<Event>> {
    let runs = catalog.hooks(id)?;
    let is_left = |event: &Event| runs.iter().any(|run| run.event == *event && run.unfinished);
    Ok(Event::ALL.into_iter().filter(|event| *event != Event::Before && is_left(event)).collect())
}

/// Runs the hooks of [`Event::OnVerified`] on a backup that the command `verify` has verified; returns their outcomes.
///
/// # Errors
/// [`Kind::NotFound`]: the backup was deleted meanwhile. [`Kind::Io`]: it cannot be read.
pub fn run_verified_hooks(
    directory: &Path,
    id: &BackupId,
    hooks: &Hooks,
    faults_count: u64,
    control: &Control,
) -> Result<Vec<HookRun>> {
    let catalog = Catalog::manage(directory)?;
    let _in_use = in_use::share(&catalog.path(id))?;
    let deleted = || Error::new(Kind::NotFound, format!("backup {id} was deleted before its hooks ran"));
    let details = Details::of(&catalog, catalog.find(id)?.ok_or_else(deleted)?)?;
    let (event, runs) = (Event::OnVerified, RefCell::new(Vec::new()));
    let occasion =
        Occasion { event, details: &details, reason: None, faults_count: Some(faults_count), is_noted: true };
    run(hooks, &catalog, &occasion, control, &|hook: &HookRun| runs.borrow_mut().push(hook.clone()));
    Ok(runs.into_inner())
}

/// The reason with the last line of the output, which most often says more.
fn with_last_line(reason: String, output: &str) -> String {
    match output.lines().next_back().map(str::trim).filter(|line| !line.is_empty()) {
        Some(line) => format!("{reason}: {}", line.chars().take(MAX_LINE_CHARS).collect::<String>()),
        None => reason,
    }
}

/// The process of a hook, not started yet.
fn command_for(words: &[String], catalog: &Catalog, occasion: &Occasion<'_>) -> Result<Command> {
    let Occasion { event, details, reason, faults_count, .. } = occasion;
    let mut record = serde_json::to_vec(details).expect("details have only string keys");
    record.push(b'\n');
    let input = input(&record).context(|| "cannot make the standard input of a hook".to_owned())?;
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).current_dir(Path::new("/")).env_clear().stdin(input);
    let kept =
        KEPT.into_iter().filter_map(|name| Some((name, std::env::var_os(name).filter(|value| !value.is_empty())?)));
    command.env(KEPT[0], DEFAULT_PATH).envs(kept);
    let reason: String = reason.unwrap_or_default().chars().take(MAX_REASON_CHARS).collect();
    let mut set = |name: &str, value: OsString| {
        command.env(format!("CHAINWEB_BACKUP_{name}"), value);
    };
    set("EVENT", event.word().into());
    set("ID", details.id.as_str().into());
    set("DIRECTORY", catalog.directory().into());
    set("PATH", catalog.path(&details.id).into());
    set("STATUS", details.status.word().into());
    set("SCOPE", details.scope.word().into());
    set("REASON", reason.replace(char::is_control, " ").into());
    if let Some(count) = faults_count {
        set("FAULTS", count.to_string().into());
    }
    sys::inherit_no_descriptor(&mut command);
    Ok(command)
}

/// A file in memory with this content, as the standard input of a process: it need not be read, and writing it never waits.
fn input(bytes: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create("record", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
}

impl Occasion<'_> {
    fn note(&self, catalog: &Catalog, change: &dyn Fn(&mut Vec<HookRun>)) {
        if self.is_noted && !self.details.foreign {
            note(catalog, &self.details.id, change);
        }
    }
}

/// The commands of an event take the place of all that is noted for it: they wait. Those before a backup are begun at once.
fn plan_event(runs: &mut Vec<HookRun>, event: Event, commands: &[Vec<String>]) {
    let commands: &[Vec<String>] = if event == Event::Before { &[] } else { commands };
    let noted = runs.iter().filter(|run| run.event == event);
    if noted.clone().all(|run| run.waits) && noted.map(|run| &run.program).eq(commands.iter().map(|words| &words[0])) {
        return;
    }
    let before: Vec<HookRun> = runs.extract_if(.., |run| run.event == event).collect();
    let waiting = |(number, words): (usize, &Vec<String>)| HookRun {
        interrupted_count: before.iter().find(|run| run.number == number).map_or(0, |run| run.interrupted_count),
        ..HookRun::waiting(event, number, &words[0], now_ms())
    };
    runs.extend(commands.iter().enumerate().map(waiting));
}

/// A run takes the place of the one before of the same command.
fn put(runs: &mut Vec<HookRun>, hook: &HookRun) {
    match runs.iter_mut().find(|run| (run.event, run.number) == (hook.event, hook.number)) {
        Some(run) => *run = HookRun { interrupted_count: run.interrupted_count, ..hook.clone() },
        None => runs.push(hook.clone()),
    }
}

/// Changes the notes in a backup. If that fails, the log tells.
fn note(catalog: &Catalog, id: &BackupId, change: &dyn Fn(&mut Vec<HookRun>)) {
    let try_note = || {
        let before = catalog.hooks(id)?;
        let mut runs = before.clone();
        change(&mut runs);
        if runs == before { Ok(()) } else { write(catalog, id, runs) }
    };
    if let Err(e) = try_note() {
        log::warn!("hooks not noted id={id} reason={:?}", e.chain());
    }
}

fn write(catalog: &Catalog, id: &BackupId, runs: Vec<HookRun>) -> Result<()> {
    let bytes = serde_json::to_vec(&HookRuns { id: id.clone(), runs }).expect("the runs have only string keys");
    let path = catalog.path(id);
    disk::replace(&path, HOOKS_FILE, &bytes, catalog.owner()).inspect_err(|_| {
        // The backup may be good without it, and then nothing else would remove what was begun.
        let _ = disk::end_replace(&path, HOOKS_FILE);
    })
}
