//! Shared by the commands of the program: printing, sizes and times for people, exit codes.

use std::io::{self, Write};
use std::time::Duration;

use chainweb_backup::{Error, Kind, Result};
use parking_lot::Mutex;
use time::OffsetDateTime;
use time::macros::format_description;

/// How often a progress line is drawn.
pub const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

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

/// The standard error for a log, which prints its lines above the progress line.
#[derive(Debug, Default)]
pub struct LogOutput {
    /// The beginning of a line that is not complete yet.
    begun: Vec<u8>,
}

impl Write for LogOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
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

/// A time for people, in UTC.
pub fn utc(unix_ms: u64) -> String {
    let time = OffsetDateTime::from_unix_timestamp((unix_ms / 1000).cast_signed());
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
    time.ok().and_then(|t| t.format(format).ok()).unwrap_or_else(|| "-".to_owned())
}

/// A size for people.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}
