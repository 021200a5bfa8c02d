//! Shared by the commands of the program: printing, the log, exit codes.

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chainweb_backup::{Error, Kind, Progress, Result, length, size};
use parking_lot::Mutex;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// How often a progress line is drawn.
pub const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// The exit code if a backup is good and a hook failed after it.
pub const HOOK_FAILED: i32 = 16;

/// The exit code of a failure, as the manual lists them.
pub fn exit_code(kind: Kind) -> i32 {
    match kind {
        Kind::Usage => 2,
        Kind::NotFound => 10,
        Kind::Busy => 11,
        Kind::NoSpace => 12,
        Kind::Damaged => 13,
        Kind::NodeRunning => 14,
        Kind::NotEmpty => 15,
        Kind::Refused | Kind::Changed | Kind::Cancelled | Kind::ShuttingDown | Kind::Io | Kind::Database => 1,
    }
}

/// Prints a line; returns the exit code 0.
pub fn print(text: &str) -> Result<i32> {
    // A reader that has closed the pipe, such as head, is no failure.
    match writeln!(io::stdout(), "{text}") {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Error::io("cannot write to the standard output", e)),
        _ => Ok(0),
    }
}

/// Prints a line to the standard error. If that fails, as after a lost connection, the work goes on.
pub fn say(text: &str) {
    let priority = match is_journal() {
        true if text.starts_with("error") => "<3>",
        true => "<4>",
        false => "",
    };
    let _ = writeln!(io::stderr(), "{priority}{text}");
}

/// Whether the standard error is the socket of the journal, as systemd says in `JOURNAL_STREAM` (systemd.exec(5)).
fn is_journal() -> bool {
    let Ok(stat) = rustix::fs::fstat(io::stderr()) else { return false };
    std::env::var("JOURNAL_STREAM").is_ok_and(|named| named == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// The levels as the log writes them, and the priority of the journal for each (sd-daemon(3)).
const PRIORITIES: [(&str, &str); 5] =
    [("[ERROR] ", "<3>"), ("[WARN] ", "<4>"), ("[INFO] ", "<6>"), ("[DEBUG] ", "<7>"), ("[TRACE] ", "<7>")];

/// A line of the log as the journal wants it: with a priority in place of the level. The journal adds the time.
fn for_journal(line: &str) -> String {
    let prefixed =
        PRIORITIES.iter().find_map(|(level, priority)| Some(format!("{priority}{}", line.strip_prefix(level)?)));
    prefixed.unwrap_or_else(|| line.to_owned())
}

/// Moves the cursor of a terminal to the beginning of its line and clears the line.
const CLEAR: &str = "\r\x1b[K";

/// The progress line on the terminal; empty for none.
static LINE: Mutex<String> = Mutex::new(String::new());

/// The progress line of a step: how much is done, of how much, how fast, and how long the rest takes; how long it has taken, if it moves no
/// bytes.
pub fn progress_line(step: &str, progress: &Progress) -> String {
    let Progress { bytes_done, bytes_total, bytes_per_second, elapsed_seconds, eta_seconds, .. } = progress;
    let time = |seconds: u64| length(seconds.saturating_mul(1000));
    if *bytes_total == 0 {
        return format!("{step}, {}", time(*elapsed_seconds));
    }
    let eta = eta_seconds.map_or_else(|| "?".to_owned(), time);
    format!("{step} {} of {}, {}/s, ETA {eta}", size(*bytes_done), size(*bytes_total), size(*bytes_per_second))
}

/// Does long work; on a terminal, with a progress line.
pub fn with_line<T>(line: impl Fn() -> Option<String> + Send, work: impl FnOnce() -> T) -> T {
    if !io::stderr().is_terminal() {
        return work();
    }
    thread::scope(|scope| {
        let (done, wait) = channel::<()>();
        let show = move || {
            while wait.recv_timeout(PROGRESS_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                draw(&line().unwrap_or_default());
            }
            draw("");
        };
        // Without the thread the work goes on, and no progress is shown.
        let _ = thread::Builder::new().name("progress".to_owned()).spawn_scoped(scope, show);
        let result = work();
        drop(done);
        result
    })
}

/// Replaces the progress line; an empty text removes it.
pub fn draw(progress: &str) {
    let mut line = LINE.lock();
    progress.clone_into(&mut line);
    let _ = write!(io::stderr(), "{CLEAR}{progress}");
}

/// The standard error for a log, which prints its lines above the progress line, each with the time, or as the journal wants them.
#[derive(Debug, Default)]
pub struct LogOutput {
    is_journal: bool,
    /// The beginning of a line that is not complete yet.
    begun: Vec<u8>,
}

impl LogOutput {
    /// That of this process.
    pub fn of_process() -> LogOutput {
        LogOutput { is_journal: is_journal(), begun: Vec::new() }
    }
}

impl Write for LogOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.begun.is_empty() && !self.is_journal {
            self.begun.extend_from_slice(format!("{} ", stamp(SystemTime::now())).as_bytes());
        }
        self.begun.extend_from_slice(bytes);
        if self.begun.ends_with(b"\n") {
            let mut whole = std::mem::take(&mut self.begun);
            if self.is_journal {
                whole = for_journal(&String::from_utf8_lossy(&whole)).into_bytes();
            }
            let line = LINE.lock();
            if line.is_empty() {
                io::stderr().write_all(&whole)?;
            } else {
                io::stderr().write_all(&[CLEAR.as_bytes(), &whole, line.as_bytes()].concat())?;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A time for the log, in UTC, whatever the clock says: seconds since the epoch if RFC 3339 has no form for it. (The logger's own
/// function panics then.)
fn stamp(now: SystemTime) -> String {
    let nanoseconds = |d: Duration| i128::try_from(d.as_nanos()).unwrap_or(i128::MAX);
    let since = now.duration_since(UNIX_EPOCH).map_or_else(|e| -nanoseconds(e.duration()), nanoseconds);
    let time = OffsetDateTime::from_unix_timestamp_nanos(since).ok().and_then(|time| time.format(&Rfc3339).ok());
    time.unwrap_or_else(|| format!("{}s", since / 1_000_000_000))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use chainweb_backup::Phase;

    use super::*;

    /// The line is drawn again in its place, so it must fit into one of a terminal, whatever the numbers are.
    #[test]
    fn a_progress_line_fits_on_a_terminal() {
        let all = Progress {
            phase: Phase::PreFlight,
            bytes_done: u64::MAX,
            bytes_total: u64::MAX,
            bytes_per_second: u64::MAX,
            elapsed_seconds: 86_400 * 999,
            eta_seconds: Some(86_400 * 999),
        };
        let line = progress_line("using the databases", &all);
        assert!(line.ends_with("ETA 999 days") && line.len() < 80, "{line}");
        let none = Progress { bytes_done: 0, bytes_total: 0, ..all.clone() };
        assert_eq!(progress_line("verifying", &none), "verifying, 999 days");
        let begun = Progress { bytes_done: 0, bytes_total: 2048, bytes_per_second: 0, eta_seconds: None, ..all };
        assert_eq!(progress_line("copying", &begun), "copying 0 B of 2.0 KiB, 0 B/s, ETA ?");
    }

    #[test]
    fn the_journal_gets_a_priority_in_place_of_the_level() {
        assert_eq!(for_journal("[ERROR] backup failed id=1\n"), "<3>backup failed id=1\n");
        assert_eq!(for_journal("[INFO] [WARN] x\n"), "<6>[WARN] x\n");
        assert_eq!(for_journal("something else\n"), "something else\n");
    }

    #[test]
    fn every_time_has_a_form() {
        let at = |seconds: i64| {
            let length = Duration::from_secs(seconds.unsigned_abs());
            let time = if seconds < 0 { UNIX_EPOCH.checked_sub(length) } else { UNIX_EPOCH.checked_add(length) };
            stamp(time.unwrap())
        };
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(-1), "1969-12-31T23:59:59Z");
        assert_eq!(at(253_402_300_799), "9999-12-31T23:59:59Z");
        assert_eq!(at(253_402_300_800), "253402300800s");
        assert_eq!(at(i64::MAX), format!("{}s", i64::MAX));
        assert_eq!(at(-100_000_000_000_000), "-100000000000000s");
    }
}
