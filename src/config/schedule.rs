//! When the service makes backups by itself, and how many are kept, as it is configured.
//!
//! Times of the day are UTC: the day has 24 hours all year, so no moment is left out or comes twice. Pure functions over text.

use std::fmt;
use std::time::Duration;

use crate::config::numbers::{unit_seconds, whole};
use crate::config::tree::quote;
use crate::error::{Error, Kind, Result};

const DAY_SECONDS: u64 = 24 * 3600;

/// The interval of a schedule that only says at which time of the day.
pub(crate) const DAILY: Duration = Duration::from_secs(DAY_SECONDS);

/// The shortest and the longest interval between two scheduled backups.
const MIN_EVERY: Duration = Duration::from_secs(1);
const MAX_EVERY: Duration = Duration::from_secs(366 * DAY_SECONDS);

/// The most schedules of one service.
pub(crate) const MAX_SCHEDULES: usize = 8;

/// A time of the day, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeOfDay {
    /// Minutes since midnight.
    minutes: u64,
}

impl TimeOfDay {
    /// Seconds since midnight.
    pub(crate) fn seconds(self) -> u64 {
        self.minutes * 60
    }
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.minutes / 60, self.minutes % 60)
    }
}

/// One schedule: a backup is due when the newest good one is older than `every`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    /// The interval.
    pub every: Duration,
    /// If present, backups begin at this time of the day, and at each interval before and after it.
    pub at: Option<TimeOfDay>,
    /// Whether the backups have the Pact databases too.
    pub pact: bool,
    /// Each backup begins later by a random time that is shorter than this.
    pub jitter: Duration,
}

impl Schedule {
    /// The schedule that flags or a configuration file describe; without `every` it is daily.
    ///
    /// # Errors
    /// [`Kind::Usage`]: there is neither an interval nor a time of the day, or they do not fit together.
    pub fn new(every: Option<Duration>, at: Option<TimeOfDay>, pact: bool, jitter: Duration) -> Result<Schedule> {
        let usage = |context: String| Err(Error::new(Kind::Usage, context));
        let Some(every) = every.or(at.map(|_| DAILY)) else {
            return usage(
                "a schedule needs an interval or a time of the day: write every, like 24h, or at, like 03:00"
                    .to_owned(),
            );
        };
        if !(MIN_EVERY..=MAX_EVERY).contains(&every) {
            return usage(format!("an interval of {} is not possible: write one from 1s to 366d", Interval(every)));
        }
        let seconds = every.as_secs();
        if at.is_some() && !DAY_SECONDS.is_multiple_of(seconds) && !seconds.is_multiple_of(DAY_SECONDS) {
            let remedy =
                "write whole days, or a part of a day that divides it, like 6h; or leave out the time of the day";
            return usage(format!("an interval of {} has no place in the day: {remedy}", Interval(every)));
        }
        if jitter > every / 2 {
            let (jitter, most) = (Interval(jitter), Interval(every / 2));
            return usage(format!("a jitter of {jitter} is too long: write at most half of the interval, {most}"));
        }
        Ok(Schedule { every, at, pact, jitter })
    }

    /// Whether another one makes the same backups, at another jitter perhaps.
    pub(crate) fn makes_the_same(&self, other: &Schedule) -> bool {
        (self.every, self.at, self.pact) == (other.every, other.at, other.pact)
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "every {}", Interval(self.every))?;
        self.at.map_or(Ok(()), |at| write!(f, " at {at}"))
    }
}

/// An interval as text: `24h`, `90m`, `5s`.
pub struct Interval(pub Duration);

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        match seconds {
            0 => write!(f, "0s"),
            _ if seconds > DAY_SECONDS && seconds.is_multiple_of(DAY_SECONDS) => {
                write!(f, "{}d", seconds / DAY_SECONDS)
            }
            _ if seconds.is_multiple_of(3600) => write!(f, "{}h", seconds / 3600),
            _ if seconds.is_multiple_of(60) => write!(f, "{}m", seconds / 60),
            _ => write!(f, "{seconds}s"),
        }
    }
}

/// How many good backups to keep. A backup that any rule keeps is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// Keeps this many of the newest.
    pub keep_last: u32,
    /// Keeps the newest of each day (UTC), for this many days that have a backup.
    pub keep_daily: u32,
    /// Keeps the newest of each week (Monday to Sunday, UTC), for this many weeks that have a backup.
    pub keep_weekly: u32,
    /// Keeps the newest of each month (UTC), for this many months that have a backup.
    pub keep_monthly: u32,
}

/// The rules that flags or a configuration file name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeepRules {
    /// `backup.keep.last`
    pub last: Option<u32>,
    /// `backup.keep.daily`
    pub daily: Option<u32>,
    /// `backup.keep.weekly`
    pub weekly: Option<u32>,
    /// `backup.keep.monthly`
    pub monthly: Option<u32>,
}

impl KeepRules {
    /// Merges both; `self` takes precedence.
    #[must_use]
    pub fn or(self, other: KeepRules) -> KeepRules {
        KeepRules {
            last: self.last.or(other.last),
            daily: self.daily.or(other.daily),
            weekly: self.weekly.or(other.weekly),
            monthly: self.monthly.or(other.monthly),
        }
    }

    /// The policy; a rule that is not named keeps nothing.
    pub fn policy(self) -> Policy {
        Policy {
            keep_last: self.last.unwrap_or(0),
            keep_daily: self.daily.unwrap_or(0),
            keep_weekly: self.weekly.unwrap_or(0),
            keep_monthly: self.monthly.unwrap_or(0),
        }
    }
}

/// An interval: a whole number with its unit, `30s`, `90m`, `24h` or `7d`. A number alone is refused: 24 may mean hours or seconds.
///
/// # Errors
/// [`Kind::Usage`] for anything else.
pub fn parse_interval(text: &str) -> Result<Duration> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let factor = unit_seconds(&text[digits.len()..]);
    let seconds = whole::<u64>(digits).zip(factor).and_then(|(count, factor)| count.checked_mul(factor));
    let remedy = "write a whole number with s, m, h or d, like 24h";
    seconds
        .map(Duration::from_secs)
        .ok_or_else(|| Error::new(Kind::Usage, format!("{} is not an interval: {remedy}", quote(text))))
}

/// A time of the day, UTC: `03:00`.
///
/// # Errors
/// [`Kind::Usage`] for anything else.
pub fn parse_time_of_day(text: &str) -> Result<TimeOfDay> {
    let two_digits = |part: &str| if part.len() == 2 { whole::<u64>(part) } else { None };
    let parts = text.split_once(':').and_then(|(hours, minutes)| Some((two_digits(hours)?, two_digits(minutes)?)));
    let remedy = "write hours and minutes of the 24-hour clock in UTC, like 03:00";
    parts
        .filter(|(hours, minutes)| *hours < 24 && *minutes < 60)
        .map(|(hours, minutes)| TimeOfDay { minutes: hours * 60 + minutes })
        .ok_or_else(|| Error::new(Kind::Usage, format!("{} is not a time of the day: {remedy}", quote(text))))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn of(every: Option<&str>, at: Option<&str>, jitter: &str) -> Result<Schedule> {
        let every = every.map(|text| parse_interval(text).unwrap());
        let at = at.map(|text| parse_time_of_day(text).unwrap());
        Schedule::new(every, at, false, parse_interval(jitter).unwrap())
    }

    #[test]
    fn intervals_have_a_unit_and_are_printed_as_they_are_read() {
        for text in ["0s", "5s", "90s", "1m", "90m", "1h", "24h", "36h", "2d", "7d", "366d"] {
            assert_eq!(Interval(parse_interval(text).unwrap()).to_string(), text);
        }
        assert_eq!(parse_interval("1 day").unwrap(), DAILY);
        for text in ["", "24", "h", "-1h", "+1h", "1.5h", "1w", "1h30m", "99999999999999999999d", "1000000000000000d"] {
            let error = parse_interval(text).unwrap_err();
            assert!(error.kind() == Kind::Usage && error.chain().contains("like 24h"), "{text}");
        }
    }

    #[test]
    fn times_of_the_day_have_four_digits() {
        for text in ["00:00", "03:00", "23:59"] {
            assert_eq!(parse_time_of_day(text).unwrap().to_string(), text);
        }
        for text in ["", "3:00", "24:00", "03:60", "0300", "03:00:00", "+3:00", "03:00Z"] {
            assert!(parse_time_of_day(text).unwrap_err().chain().contains("in UTC, like 03:00"), "{text}");
        }
    }

    #[test]
    fn a_schedule_that_cannot_be_is_refused_with_a_remedy() {
        assert_eq!(of(None, Some("03:00"), "0s").unwrap().every, DAILY);
        for every in ["1s", "6h", "24h", "2d", "7d"] {
            assert!(of(Some(every), Some("03:00"), "0s").is_ok(), "{every}");
        }
        assert!(of(Some("5h"), None, "150m").is_ok());
        for (every, at, jitter, told) in [
            (None, None, "0s", "needs an interval"),
            (Some("0s"), None, "0s", "from 1s to 366d"),
            (Some("367d"), None, "0s", "from 1s to 366d"),
            (Some("5h"), Some("03:00"), "0s", "whole days"),
            (Some("36h"), Some("03:00"), "0s", "whole days"),
            (Some("24h"), None, "13h", "at most half of the interval, 12h"),
        ] {
            let error = of(every, at, jitter).unwrap_err();
            assert!(error.kind() == Kind::Usage && error.chain().contains(told), "{every:?}: {}", error.chain());
        }
    }
}
