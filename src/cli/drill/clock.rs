//! Times and durations as people write and read them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::storage::snapshot::time::rfc3339;

/// Reads `4h`, `5m`, `90s` or `500ms`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || "must be a whole number with ms, s, m or h, e.g. 500ms, 90s, 5m or 4h".to_owned();
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let unit_ms: u64 = match &text[digits..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit_ms).map(Duration::from_millis).ok_or_else(wrong)
}

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

/// `2026-11-21T19:10:05.123Z`
pub(super) fn rfc3339_ms(at: SystemTime) -> String {
    let mut text = rfc3339(at, true);
    text.truncate(text.len() - "456789Z".len());
    text + "Z"
}

/// `2026-11-21 19:10:05 UTC`
pub(super) fn readable(at: SystemTime) -> String {
    rfc3339(at, false).replace('T', " ").replace('Z', " UTC")
}

/// `20261121T191005Z`, for file names.
pub(super) fn compact(at: SystemTime) -> String {
    rfc3339(at, false).replace(['-', ':'], "")
}

/// Reads `2026-11-21T19:10:05Z`; a fraction of a second is left out.
pub(super) fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let numbers = |text: &str, by: char| -> Option<[u64; 3]> {
        let numbers: Vec<u64> = text.split(by).map(|part| part.parse().ok()).collect::<Option<_>>()?;
        numbers.try_into().ok()
    };
    let ([year, month, day], [h, m, s]) = (numbers(date, '-')?, numbers(time.split('.').next()?, ':')?);
    let fits = (1970..10_000).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !fits || h > 23 || m > 59 || s > 60 {
        return None;
    }
    // The years begin in March, as where they are written.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    Some(UNIX_EPOCH + Duration::from_secs(days * 86_400 + h * 3600 + m * 60 + s))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, a target would mean something else than was asked for.
    #[test]
    fn durations_are_read_with_their_units_only() {
        for (text, ms) in [("0s", 0), ("500ms", 500), ("90s", 90_000), ("5m", 300_000), ("4h", 14_400_000)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "5", "m", "-1s", "1.5h", "5 m", "5d", "99999999999999999999s", "9999999999999999999h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

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

    /// Broken, a report would be filed under another day, or the age of a backup would be wrong.
    #[test]
    fn moments_are_written_and_read_as_the_calendar_says() {
        for seconds in [0, 951_782_399, 951_782_400, 1_709_251_199, 1_709_251_200, 1_798_761_599, 4_107_542_400] {
            let at = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(parse_rfc3339(&rfc3339(at, false)), Some(at), "{seconds}");
            assert_eq!(parse_rfc3339(&rfc3339_ms(at)), Some(at), "{seconds}");
        }
        let at = UNIX_EPOCH + Duration::from_millis(1_709_251_199_042);
        assert_eq!(compact(at), "20240229T235959Z");
        assert_eq!(readable(at), "2024-02-29 23:59:59 UTC");
        assert_eq!(rfc3339_ms(at), "2024-02-29T23:59:59.042Z");
        for text in
            ["", "2026-11-21", "2026-11-21T19:10:05", "2026-13-21T19:10:05Z", "2026-11-21T19:10Z", "0-0-0T0:0:0Z"]
        {
            assert_eq!(parse_rfc3339(text), None, "{text}");
        }
    }
}
