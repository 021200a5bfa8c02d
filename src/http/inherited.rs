//! Socket activation: sockets that a supervisor has opened for this program, as sd_listen_fds(3) describes.
//!
//! `LISTEN_PID` names the process for which they are, `LISTEN_FDS` their number; they are descriptors 3, 4, …

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::disk::sys;
use crate::error::{Error, Kind, Result};

/// The first of these descriptors.
pub(crate) const FIRST: usize = 3;

/// As many as a service may have.
const COUNT_MAX: usize = 64;

static TAKEN: AtomicBool = AtomicBool::new(false);

/// The sockets that were opened for this process; none if there are none, or if they are for another process.
///
/// Call this first in `main`, before this process opens a file: a descriptor that is open then was inherited. A second call returns none.
///
/// # Errors
/// [`Kind::Usage`]: the variables make no sense, or a descriptor is not open.
pub fn inherited_sockets() -> Result<Vec<OwnedFd>> {
    let variable = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    let count = announced_count(&variable, std::process::id())?;
    if count == 0 || TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(Vec::new());
    }
    sys::take_over(i32::try_from(FIRST).expect("a small number"), count).map_err(|number| {
        let context =
            format!("LISTEN_FDS announces {count} sockets from descriptor {FIRST} on, but {number} is not open");
        Error::new(Kind::Usage, format!("{context}: unset LISTEN_FDS, or pass the sockets"))
    })
}

/// How many sockets the variables announce for the process of this number.
fn announced_count(variable: &dyn Fn(&str) -> Option<String>, process: u32) -> Result<usize> {
    let is_for_us = |pid: String| pid.parse() == Ok(process);
    let (Some(fds), true) = (variable("LISTEN_FDS"), variable("LISTEN_PID").is_some_and(is_for_us)) else {
        return Ok(0);
    };
    fds.parse().ok().filter(|count| *count <= COUNT_MAX).ok_or_else(|| {
        let context = format!("LISTEN_FDS is {fds:?}: it must be a number of sockets, at most {COUNT_MAX}");
        Error::new(Kind::Usage, context)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_taken_only_if_they_are_for_this_process() {
        let count = |fds: Option<&str>, pid: Option<&str>| {
            let variable = |name: &str| if name == "LISTEN_FDS" { fds } else { pid }.map(str::to_owned);
            announced_count(&variable, 7).map_err(|e| e.kind())
        };
        for (fds, pid) in [
            (None, Some("7")),
            (Some("1"), None),
            (Some("1"), Some("8")),
            (Some("x"), Some("8")),
            (Some("1"), Some("x")),
        ] {
            assert_eq!(count(fds, pid), Ok(0), "{fds:?} {pid:?}");
        }
        assert_eq!(count(Some("2"), Some("7")), Ok(2));
        assert_eq!(count(Some("0"), Some("7")), Ok(0));
        for fds in ["x", "-1", "", "65", "99999999999999999999", "1 "] {
            assert_eq!(count(Some(fds), Some("7")), Err(Kind::Usage), "{fds:?}");
        }
    }
}
