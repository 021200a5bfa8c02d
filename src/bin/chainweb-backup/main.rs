//! The program `chainweb-backup`: parse, run, report. Errors end here, as one line and an exit code.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod action;
mod args;
mod commands;
mod doctor;
mod door;
mod line;
mod listen;
mod pages;
mod places;
mod plan;
mod reload;
mod rules;
mod status;
mod supervisor;
mod table;
mod terminal;

use std::io::{self, IsTerminal, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use args::Child;
use chainweb_backup::{
    BackupId, Control, Details, Error, Interval, Kind, Listener, MakeRequest, Result, Service, Status, heights_json,
    inherited_sockets, open_json, resolve_trusted, starts_json, sweep_backups, younger_in,
};
use log::LevelFilter;
use plan::{Around, Exit, MakePlan, Plan, ServePlan};
use reload::{Started, reload};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;
use supervisor::Supervisor;
use terminal::{HOOK_FAILED, LogOutput, PROGRESS_INTERVAL, draw, exit_code, print, progress_line, say, with_line};

/// The longest time between a signal and the end; the next start recovers from what did not end by then.
const STOP_LIMIT: Duration = Duration::from_secs(9);

/// The first pause between two looks at the state of a backup; each is twice as long as the one before, up to the longest
/// without a progress line.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const WAIT_INTERVAL: Duration = Duration::from_millis(16);

/// How often in a row the state of a backup may be unreadable before that is an error.
const LOOKS_MAX: u32 = 20;

fn main() -> ExitCode {
    // First: a descriptor that is open now was inherited.
    let inherited = inherited_sockets();
    // With this, a file at its size limit (`ulimit -f`) fails the write instead of killing the program.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::default());
    let plan = match plan() {
        Ok(plan) => plan,
        Err(exit) => {
            let mut out: Box<dyn Write> = if exit.to_stdout { Box::new(io::stdout()) } else { Box::new(io::stderr()) };
            // If this fails, the reader has closed the pipe: there is no place left to report it.
            let _ = out.write_all(exit.text.as_bytes());
            return code(exit.code);
        }
    };
    match inherited.and_then(|inherited| run(plan, inherited)) {
        Ok(exit_code) => code(exit_code),
        Err(e) => {
            say(&format!("error: {}", e.chain()));
            code(exit_code(e.kind()))
        }
    }
}

/// Reads command line, environment and configuration files as they are now.
fn plan() -> std::result::Result<Plan, Exit> {
    parse(&plan::read_file)
}

fn parse(read_file: &dyn Fn(&Path) -> io::Result<String>) -> std::result::Result<Plan, Exit> {
    let (env, list_databases) = (&|name: &str| std::env::var_os(name), &places::list);
    plan::parse(std::env::args_os(), &Around { env, read_file, list_databases })
}

fn code(exit_code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(exit_code).unwrap_or(1))
}

fn run(plan: Plan, inherited: Vec<OwnedFd>) -> Result<i32> {
    match plan {
        Plan::Serve(plan) => serve(plan, inherited),
        Plan::Make(plan) => make(plan),
        Plan::Doctor(plan, output) => doctor::doctor(&plan, output),
        Plan::Manage {
            backup_directory,
            database_directory,
            action,
            limit_bytes_per_second,
            stall_limit,
            hooks,
            log_level,
            warnings,
            notes,
        } => {
            start_log(log_level, &warnings, &notes);
            let backup_directory = match database_directory {
                Some(above) => resolve_trusted(&above, &backup_directory)?,
                None => backup_directory,
            };
            let mut control = Control::with_limit(limit_bytes_per_second);
            if let Some(stall_limit) = stall_limit {
                control = control.with_stall_limit(stall_limit);
            }
            commands::run(&backup_directory, action, &hooks, &control)
        }
        Plan::Settle { to, wanted, log_level } => {
            start_log(log_level, &[], &[]);
            commands::settle(&to, wanted)
        }
        Plan::Child(child) => answer(child),
    }
}

/// Answers our parent process.
fn answer(child: Child) -> Result<i32> {
    match child {
        Child::Heights { directory } => print(&heights_json(&directory)?),
        Child::Open { directory } => print(&open_json(&directory)?),
        Child::Starts { directory, limit_ms, extent } => print(&starts_json(&directory, limit_ms, &extent)?),
        Child::Inspect { directory, limit_bytes_per_second } => {
            let limit = Some(limit_bytes_per_second).filter(|limit| *limit > 0);
            commands::inspect(&directory, &Control::with_limit(limit))
        }
    }
}

fn start_log(level: LevelFilter, warnings: &[String], notes: &[String]) {
    let config = simplelog::ConfigBuilder::new().set_time_level(LevelFilter::Off).build();
    simplelog::WriteLogger::init(LevelFilter::Trace, config, LogOutput::of_process())
        .expect("this program sets its logger once");
    // This one decides, and can change while the program runs.
    log::set_max_level(level);
    warnings.iter().for_each(|warning| log::warn!("{warning}"));
    notes.iter().for_each(|note| log::info!("{note}"));
}

fn serve(mut plan: ServePlan, inherited: Vec<OwnedFd>) -> Result<i32> {
    let adopted = if inherited.is_empty() { None } else { Some(Listener::adopt(inherited)?) };
    let reach = plan.listening.reach(adopted.as_ref());
    door::equip(&mut plan, &reach)?;
    start_log(plan.log_level, &plan.warnings, &plan.notes);
    let supervisor = Supervisor::of_process();
    let starting = supervisor.starting();
    let (backup_directory, started) = (plan.config.backup_directory.clone(), Started::serving(&plan, reach));
    let service = Arc::new(Service::start(plan.config, plan.node.sources())?);
    drop(starting);
    let listener = plan.listening.bind(adopted)?;
    let names = listener.names();
    mind_signals(&service, started, Some((listener.stopper(), supervisor.clone())))?;
    if let Some(path) = &plan.address_file {
        write_address(path, &names.join("\n"))?;
    }
    log::info!("serving address={} backup_directory={}", names.join(","), backup_directory.display());
    supervisor.ready(&service, listener.pulse());
    let (answering, decorating) = (Arc::clone(&service), Arc::clone(&service));
    listener.run(
        Arc::new(move |request, peer| answering.answer(request, peer)),
        Arc::new(move |response, peer| decorating.decorate_for(response, peer)),
    );
    service.shutdown();
    log::info!("stopped");
    Ok(0)
}

/// Starts the thread that waits for signals. SIGTERM and SIGINT end the program in order: no new connections, no new jobs,
/// the running job fails. SIGHUP reads the configuration again. The supervisor of a service is told.
fn mind_signals(
    service: &Arc<Service>,
    mut started: Started,
    serving: Option<(chainweb_backup::Stopper, Supervisor)>,
) -> Result<()> {
    let failed = |e| Error::io("cannot handle signals", e);
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(failed)?;
    let service = Arc::clone(service);
    let wait = move || {
        let end = signals.forever().find(|signal| {
            if *signal == SIGHUP {
                let supervisor =
                    serving.as_ref().map_or_else(Supervisor::default, |(_, supervisor)| supervisor.clone());
                supervisor.reloading(|| reload(&service, &mut started));
            }
            *signal != SIGHUP
        });
        let Some(signal) = end else { return };
        log::info!("stopping signal={signal}");
        let serves = serving.is_some();
        if let Some((stopper, supervisor)) = serving {
            supervisor.stopping(STOP_LIMIT);
            stopper.stop();
        }
        let late = move || {
            thread::sleep(STOP_LIMIT);
            log::warn!("stopping takes too long: the next start cleans up after the unfinished backup");
            std::process::exit(i32::from(!serves));
        };
        // Without this thread the program may end late, but it ends.
        let _ = thread::Builder::new().name("stop-limit".to_owned()).spawn(late);
        service.shutdown();
    };
    thread::Builder::new().name("signals".to_owned()).spawn(wait).map_err(failed)?;
    Ok(())
}

/// Scripts wait for this file, so it is renamed into place when it is complete.
#[expect(clippy::disallowed_methods, reason = "the address file is not part of a backup directory")]
fn write_address(path: &Path, address: &str) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let written = match std::fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        // A link that was planted there is not followed.
        _ => std::fs::File::create_new(&temporary).and_then(|mut file| file.write_all(address.as_bytes())),
    };
    written
        .and_then(|()| std::fs::rename(&temporary, path))
        .map_err(|e| Error::io(format!("cannot write the address file {}", path.display()), e))
}

fn make(plan: MakePlan) -> Result<i32> {
    start_log(plan.log_level, &plan.warnings, &plan.notes);
    let backup_directory = plan.config.backup_directory.clone();
    if let Some(limit) = plan.if_older_than {
        let sources = plan.node.sources();
        let directory = resolve_trusted(&sources.database_directory, &backup_directory)?;
        if let Some((id, age)) = younger_in(&directory, plan.backup_pact, limit)? {
            let (age, limit) = (Interval(roughly(age)), Interval(limit));
            return print(&format!("{id}: made {age} ago, which is less than {limit}: no backup is made"));
        }
    }
    let started = Started::making(&plan);
    let service = Arc::new(Service::start_beside(plan.config, plan.node.sources())?);
    mind_signals(&service, started, None)?;
    let id = service.make_backup(MakeRequest { backup_pact: plan.backup_pact })?;
    if let Err(e) = print(id.as_str()) {
        // The backup continues, and its result decides the exit code.
        say(&format!("warning: the identifier {id} could not be printed: {}", e.chain()));
    }
    let details = wait_for_end(&service, &id)?;
    let kind = service.failure_kind(&id);
    let background = || service.background().map(|(step, progress)| progress_line(step, &progress));
    if details.as_ref().is_some_and(|d| d.status == Status::Done) {
        with_line(background, || service.finish());
    } else {
        // A hook that tells of the failure is worth waiting for; the checksums that older backups lack are not.
        with_line(background, || service.wait_for_hooks());
        service.shutdown();
        // The next process that sweeps may come much later.
        if let Err(e) = sweep_backups(&backup_directory) {
            log::warn!("garbage not removed reason={:?}", e.chain());
        }
    }
    match details.map(|d| d.status) {
        Some(Status::Done) if service.has_failed_hook(&id) => {
            say(&format!("backup {id} is good, but a hook failed: list shows which, and why"));
            Ok(HOOK_FAILED)
        }
        Some(Status::Done) => Ok(0),
        Some(_) => Ok(exit_code(kind.unwrap_or(Kind::Io))),
        None => Err(Error::new(Kind::NotFound, format!("backup {id} was deleted while it was being made"))),
    }
}

/// Waits for the end of a backup; on a terminal, with a progress line.
fn wait_for_end(service: &Service, id: &BackupId) -> Result<Option<Details>> {
    let terminal = io::stderr().is_terminal();
    // A small backup takes milliseconds: a long first pause would double its time.
    let (mut pause, longest) = (FIRST_PAUSE, if terminal { PROGRESS_INTERVAL } else { WAIT_INTERVAL });
    let mut failed_count = 0;
    let details = loop {
        match service.details(id) {
            Ok(Some(d)) if d.status == Status::InProgress => {
                if let Some(progress) = d.progress.filter(|_| terminal) {
                    draw(&progress_line(progress.phase.word(), &progress));
                }
                thread::sleep(pause);
                pause = longest.min(pause * 2);
                failed_count = 0;
            }
            Ok(ended) => break ended,
            // One reading that fails says nothing about the backup, which may be done.
            Err(_) if failed_count < LOOKS_MAX => {
                failed_count += 1;
                thread::sleep(longest);
            }
            Err(e) => return Err(e),
        }
    };
    if terminal {
        draw("");
    }
    Ok(details)
}

/// A time in whole hours, minutes or seconds.
fn roughly(time: Duration) -> Duration {
    let seconds = time.as_secs();
    let unit = if seconds >= 7200 {
        3600
    } else if seconds >= 120 {
        60
    } else {
        1
    };
    Duration::from_secs(seconds / unit * unit)
}
