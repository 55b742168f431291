//! Times and durations as the reports of a drill tell them.

use std::time::{Duration, SystemTime};

use crate::timestamp::rfc3339_s;

/// "412 ms", "12.3 s", "5 min", "1 h 2 min".
pub(super) fn human(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let two = |large: u64, large_unit: &str, small: u64, small_unit: &str| match small {
        0 => format!("{large} {large_unit}"),
        small => format!("{large} {large_unit} {small} {small_unit}"),
    };
    match seconds {
        0 if duration.as_millis() == 0 && !duration.is_zero() => "below 1 ms".to_owned(),
        0 => format!("{} ms", duration.as_millis()),
        1..60 => match duration.subsec_millis() {
            0 => format!("{seconds} s"),
            ms => format!("{seconds}.{} s", ms / 100),
        },
        60..3600 => two(seconds / 60, "min", seconds % 60, "s"),
        _ => two(seconds / 3600, "h", seconds % 3600 / 60, "min"),
    }
}

/// `2026-11-21 19:10:05 UTC`
pub(super) fn readable(at: SystemTime) -> String {
    rfc3339_s(at).replace('T', " ").replace('Z', " UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, a report would say another length of time than was measured.
    #[test]
    fn durations_are_told_in_two_units_at_most() {
        for (ms, want) in [
            (0, "0 ms"),
            (412, "412 ms"),
            (3_000, "3 s"),
            (3_050, "3.0 s"),
            (1_999, "1.9 s"),
            (12_345, "12.3 s"),
            (300_000, "5 min"),
            (61_000, "1 min 1 s"),
            (14_400_000, "4 h"),
            (3_720_000, "1 h 2 min"),
        ] {
            assert_eq!(human(Duration::from_millis(ms)), want);
        }
        assert_eq!(human(Duration::from_micros(3)), "below 1 ms");
    }

    /// Broken, a report would name another moment than that of the loss.
    #[test]
    fn moments_are_told_to_the_second() {
        assert_eq!(
            readable(std::time::UNIX_EPOCH + Duration::from_millis(1_709_251_199_042)),
            "2024-02-29 23:59:59 UTC"
        );
    }
}
