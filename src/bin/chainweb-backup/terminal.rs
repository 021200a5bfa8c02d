//! Shared by the commands of the program: printing, the log, exit codes.

use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chainweb_backup::{Error, Kind, Result};
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
    let _ = writeln!(io::stderr(), "{text}");
}

/// Moves the cursor of a terminal to the beginning of its line and clears the line.
const CLEAR: &str = "\r\x1b[K";

/// The progress line on the terminal; empty for none.
static LINE: Mutex<String> = Mutex::new(String::new());

/// Replaces the progress line; an empty text removes it.
pub fn draw(progress: &str) {
    let mut line = LINE.lock();
    progress.clone_into(&mut line);
    let _ = write!(io::stderr(), "{CLEAR}{progress}");
}

/// The standard error for a log, which prints its lines above the progress line, each with the time.
#[derive(Debug, Default)]
pub struct LogOutput {
    /// The beginning of a line that is not complete yet.
    begun: Vec<u8>,
}

impl Write for LogOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.begun.is_empty() {
            self.begun.extend_from_slice(format!("{} ", stamp(SystemTime::now())).as_bytes());
        }
        self.begun.extend_from_slice(bytes);
        if self.begun.ends_with(b"\n") {
            let whole = std::mem::take(&mut self.begun);
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
    use super::*;

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
