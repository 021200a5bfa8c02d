//! What a supervisor such as systemd is told: sd_notify(3), sd_watchdog_enabled(3), sd-daemon(3).
//!
//! Messages are datagrams to the socket that `NOTIFY_SOCKET` names, each of them lines like `READY=1`. Without that variable nothing is
//! sent, and no thread is started.
//!
//! ```text
//! start    EXTEND_TIMEOUT_USEC  every few seconds, while what a crash has left is settled
//! ready    READY                the sockets are bound, every job of an earlier process has ended
//!          STATUS               at each change; while a backup is made, its phase and percent
//!          WATCHDOG             twice in the time that is given, while the service is alive
//! SIGHUP   RELOADING, READY     with the time of the monotonic clock, as Type=notify-reload wants it
//! stop     STOPPING             with the time that the stop may take
//! ```
//! The service is alive if its state can be had and the thread that accepts connections answers. A disk that hangs is no reason to restart
//! it: the backup fails by itself (`stalled`), and a restart would hang, too.
//!
//! Invariants
//! - No failure to tell the supervisor fails anything else: it is logged once.
//! - Without a watchdog, no thread wakes up while no backup is made.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, Builder};
use std::time::Duration;

use chainweb_backup::{Pulse, Service, utc};

/// How often the supervisor is asked for more time while the service starts, for how much, and for how long altogether.
const EXTEND_EVERY: Duration = Duration::from_secs(5);
const EXTEND_BY: Duration = Duration::from_secs(30);
const EXTEND_COUNT_MAX: u32 = 720;

/// How often the progress of a backup is looked at.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// How long a supervisor that does not read may delay us.
const SEND_LIMIT: Duration = Duration::from_millis(500);

/// How long a service that is alive may take to answer: it may be making room for a client.
const ALIVE_LIMIT: Duration = Duration::from_secs(5);

/// The shortest time of a watchdog: below it a busy machine would look dead.
const WATCHDOG_MIN: Duration = Duration::from_millis(10);

/// The supervisor of this process, if there is one.
#[derive(Clone, Default)]
pub(crate) struct Supervisor(Option<Arc<Channel>>);

struct Channel {
    socket: UnixDatagram,
    address: SocketAddr,
    watchdog: Option<Duration>,
    is_stopping: AtomicBool,
    has_failed: AtomicBool,
}

/// Asks for more time until it is dropped.
#[must_use]
pub(crate) struct Starting {
    _end: Option<Sender<()>>,
}

impl Supervisor {
    /// The supervisor that the environment names. A name that cannot be used is logged, and then there is none.
    pub(crate) fn of_process() -> Supervisor {
        let Some(name) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Supervisor::default();
        };
        let watchdog = watchdog(&|name| env::var_os(name), std::process::id());
        let opened = address(&name).and_then(|address| {
            let socket = UnixDatagram::unbound()?;
            socket.set_write_timeout(Some(SEND_LIMIT))?;
            let (is_stopping, has_failed) = (AtomicBool::new(false), AtomicBool::new(false));
            Ok(Channel { socket, address, watchdog, is_stopping, has_failed })
        });
        match opened {
            Ok(channel) => Supervisor(Some(Arc::new(channel))),
            Err(e) => {
                log::warn!("supervisor not told NOTIFY_SOCKET={name:?} reason={:?}", e.to_string());
                Supervisor::default()
            }
        }
    }

    fn tell(&self, message: &str) {
        if let Some(channel) = &self.0 {
            channel.tell(message);
        }
    }

    /// The service starts, which may take long.
    pub(crate) fn starting(&self) -> Starting {
        let Some(channel) = self.0.clone() else { return Starting { _end: None } };
        let (end, wait) = mpsc::channel();
        let extend = move || {
            for _ in 0..EXTEND_COUNT_MAX {
                if wait.recv_timeout(EXTEND_EVERY) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
                let usec = EXTEND_BY.as_micros();
                channel.tell(&format!(
                    "STATUS=starting: settling what an earlier process left\nEXTEND_TIMEOUT_USEC={usec}"
                ));
            }
        };
        start("starting", extend);
        Starting { _end: Some(end) }
    }

    /// The service answers from now on.
    pub(crate) fn ready(&self, service: &Arc<Service>, pulse: Pulse) {
        let Some(channel) = self.0.clone() else { return };
        channel.tell("READY=1");
        if let Some(time) = channel.watchdog {
            let (channel, service) = (Arc::clone(&channel), Arc::clone(service));
            start("alive", move || channel.watch(&service, &pulse, time / 2));
        }
        let service = Arc::clone(service);
        start("show", move || channel.show(&service));
    }

    /// Does the work of a reload.
    pub(crate) fn reloading(&self, work: impl FnOnce()) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let usec = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1000;
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={usec}"));
        work();
        self.tell("READY=1");
    }

    /// The service ends, within this time.
    pub(crate) fn stopping(&self, limit: Duration) {
        if let Some(channel) = &self.0 {
            channel.is_stopping.store(true, Ordering::SeqCst);
        }
        self.tell(&format!("STOPPING=1\nSTATUS=stopping\nEXTEND_TIMEOUT_USEC={}", (2 * limit).as_micros()));
    }
}

impl Channel {
    fn tell(&self, message: &str) {
        let sent = self.socket.send_to_addr(message.as_bytes(), &self.address);
        if let Err(e) = sent
            && !self.has_failed.swap(true, Ordering::SeqCst)
        {
            log::warn!("supervisor not told message={message:?} reason={:?}", e.to_string());
        }
    }

    /// Tells twice in its time that the service is alive.
    fn watch(&self, service: &Service, pulse: &Pulse, interval: Duration) {
        let limit = ALIVE_LIMIT.min(interval);
        loop {
            // While it stops, nothing is accepted any more, and the stop has a limit of its own.
            let is_alive = || service.is_responsive(limit) && pulse.beats(limit);
            if self.is_stopping.load(Ordering::SeqCst) || is_alive() || self.is_stopping.load(Ordering::SeqCst) {
                self.tell("WATCHDOG=1");
            } else {
                log::error!("service not alive limit_ms={}", limit.as_millis());
            }
            thread::sleep(interval);
        }
    }

    /// Tells what the service does, when that changes.
    fn show(&self, service: &Service) {
        let (mut told, mut idle, mut seen_count) = (String::new(), None, 0);
        loop {
            let running = service.running();
            let status = match &running {
                Some((id, progress)) => {
                    idle = None;
                    let percent =
                        (progress.bytes_done.min(progress.bytes_total) * 100).checked_div(progress.bytes_total);
                    let percent = percent.map_or_else(String::new, |percent| format!(", {percent} %"));
                    format!("backup {id}: {}{percent}", progress.phase.word())
                }
                None => idle.get_or_insert_with(|| self::idle(service)).clone(),
            };
            if status != told && !self.is_stopping.load(Ordering::SeqCst) {
                self.tell(&format!("STATUS={status}"));
                told = status;
            }
            seen_count = service.wait_for_change(seen_count, running.map(|_| PROGRESS_INTERVAL));
        }
    }
}

/// What an idle service shows.
fn idle(service: &Service) -> String {
    match service.newest_good() {
        Ok(Some(newest)) => format!("idle, last good backup {} of {} UTC", newest.id, utc(newest.started_ms)),
        Ok(None) => "idle, no good backup".to_owned(),
        Err(e) => format!("idle, the backups cannot be read: {}", e.chain().replace(char::is_control, " ")),
    }
}

/// Without this thread the supervisor knows less, and the service works.
fn start(name: &str, work: impl FnOnce() + Send + 'static) {
    if let Err(e) = Builder::new().name(name.to_owned()).spawn(work) {
        log::warn!("no thread for the supervisor reason={:?}", e.to_string());
    }
}

/// The address of the supervisor: a path, or `@` and the name of an abstract socket.
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'@', rest @ ..] if !rest.is_empty() => SocketAddr::from_abstract_name(rest),
        [b'/', ..] => SocketAddr::from_pathname(name),
        _ => Err(io::Error::other("it is neither an absolute path nor @ and a name")),
    }
}

/// How often the supervisor wants to know that the process of this number is alive; `None` if it does not. A value that makes no sense is
/// logged.
fn watchdog(variable: &dyn Fn(&str) -> Option<OsString>, process: u32) -> Option<Duration> {
    let number = |name: &str| variable(name).map(|value| value.to_str().and_then(|text| text.parse::<u64>().ok()));
    // The variables are those of a parent that did not remove them.
    if number("WATCHDOG_PID").is_some_and(|pid| pid != Some(u64::from(process))) {
        return None;
    }
    let usec = number("WATCHDOG_USEC")?;
    let time = usec.map(Duration::from_micros).filter(|time| *time >= WATCHDOG_MIN);
    if time.is_none() {
        log::warn!("watchdog not served WATCHDOG_USEC={:?}", variable("WATCHDOG_USEC").unwrap_or_default());
    }
    time
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_that_of_this_process() {
        let asked = |usec: Option<&str>, pid: Option<&str>| {
            let variable = |name: &str| if name == "WATCHDOG_PID" { pid } else { usec }.map(OsString::from);
            watchdog(&variable, 7).map(|time| time.as_micros())
        };
        assert_eq!(asked(Some("20000"), None), Some(20_000));
        assert_eq!(asked(Some("20000"), Some("7")), Some(20_000));
        for (usec, pid) in [
            (None, None),
            (None, Some("7")),
            (Some("20000"), Some("8")),
            (Some("20000"), Some("")),
            (Some("20000"), Some("x")),
            (Some("0"), None),
            (Some("1"), None),
            (Some("-20000"), Some("7")),
            (Some("20 s"), None),
            (Some(""), None),
        ] {
            assert_eq!(asked(usec, pid), None, "{usec:?} {pid:?}");
        }
    }

    #[test]
    fn a_supervisor_has_a_path_or_an_abstract_name() {
        let at = |name: &str| address(OsStr::new(name));
        assert_eq!(at("/run/x").expect("a path").as_pathname().map(OsStr::new), Some(OsStr::new("/run/x")));
        assert_eq!(at("@x/y").expect("a name").as_abstract_name(), Some(&b"x/y"[..]));
        for name in ["", "@", "run/x", "vsock:2:1", &format!("/{}", "x".repeat(200))] {
            assert!(at(name).is_err(), "{name}");
        }
    }
}
