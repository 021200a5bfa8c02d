//! Sizes and times as people read them.

use time::OffsetDateTime;
use time::macros::format_description;

/// A size for people.
#[allow(clippy::cast_precision_loss)] // one digit after the point is shown
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

/// The sum of sizes, whatever they are: those in a damaged record, or of planted files, may have none in 64 bits.
pub(crate) fn total(sizes: impl IntoIterator<Item = u64>) -> u64 {
    sizes.into_iter().fold(0, u64::saturating_add)
}

/// A time for people, in UTC; `-` if it has no form.
pub fn utc(unix_ms: u64) -> String {
    let time = OffsetDateTime::from_unix_timestamp((unix_ms / 1000).cast_signed());
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
    time.ok().and_then(|t| t.format(format).ok()).unwrap_or_else(|| "-".to_owned())
}

/// A length of time for people, in its largest unit: `45 s`, `3 h`, `12 days`.
pub fn length(ms: u64) -> String {
    match ms / 1000 {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_a_form() {
        assert_eq!([0, 1023, 1024, u64::MAX].map(size), ["0 B", "1023 B", "1.0 KiB", "16384.0 PiB"]);
        assert_eq!(
            [0, 119_999, 120_000, 7_200_000, 172_800_000].map(length),
            ["0 s", "119 s", "2 min", "2 h", "2 days"]
        );
        assert_eq!(utc(1_767_225_600_000), "2026-01-01 00:00:00");
        for ms in [0, u64::MAX, i64::MAX.unsigned_abs()] {
            assert!(!utc(ms).is_empty() && !length(ms).is_empty());
        }
    }
}
