//! Points in time as text: RFC 3339 for our own documents, and the `Date` field of HTTP.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const DAY_S: u64 = 86_400;

/// `2026-11-21T18:42:00.123Z`. What lies before 1970 is 1970.
pub fn rfc3339(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (year, month, day) = date(since.as_secs() / DAY_S);
    let s = since.as_secs() % DAY_S;
    let (hour, minute, second) = (s / 3600, s / 60 % 60, s % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
}

/// Reads what [`rfc3339`] writes, and no other form.
pub fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.splitn(3, '-').map(number);
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (time, ms) = time.split_once('.')?;
    let at = at(year, month, day, time)?;
    if ms.len() == 3 { Some(at + Duration::from_millis(number(ms)?)) } else { None }
}

/// Reads `Sat, 21 Nov 2026 18:42:00 GMT`, the form that RFC 9110 asks for.
pub fn parse_http_date(text: &str) -> Option<SystemTime> {
    let (_, rest) = text.trim().split_once(", ")?;
    let mut words = rest.strip_suffix(" GMT")?.split(' ');
    let day = number(words.next()?)?;
    let month = words.next()?;
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let year = number(words.next()?)?;
    at(year, month, day, words.next()?)
}

/// Reads a whole number of `s`, `m` or `h`: `30s`, `10m`, `24h`.
pub fn parse_span(text: &str) -> Option<Duration> {
    let (digits, unit_s) = match text.as_bytes().last()? {
        b's' => (text.strip_suffix('s')?, 1),
        b'm' => (text.strip_suffix('m')?, 60),
        b'h' => (text.strip_suffix('h')?, 3600),
        _ => return None,
    };
    Some(Duration::from_secs(number(digits)?.checked_mul(unit_s)?))
}

fn at(year: u64, month: u64, day: u64, time: &str) -> Option<SystemTime> {
    let mut time = time.splitn(3, ':').map(number);
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    let known = (1970..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !known || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let s = days(year, month, day) * DAY_S + hour * 3600 + minute * 60 + second;
    Some(UNIX_EPOCH + Duration::from_secs(s))
}

fn number(digits: &str) -> Option<u64> {
    if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok() } else { None }
}

/// Year, month and day of a day since 1970, counted in years that begin in March, so that the leap
/// day is the last; as in Hinnant, "chrono-Compatible Low-Level Date Algorithms".
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year + u64::from(month <= 2), month, of_year - (153 * shifted + 2) / 5 + 1)
}

/// The opposite.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = year - u64::from(month <= 2);
    let (era, of_era) = (year / 400, year % 400);
    let shifted = if month > 2 { month - 3 } else { month + 9 };
    let of_year = (153 * shifted + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(ms: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(ms)
    }

    /// Broken, a heartbeat would look older or younger than it is.
    #[test]
    fn known_moments_are_written_and_read() {
        for (at, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_164_800_000, "2024-02-29T00:00:00.000Z"),
            (1_735_689_599_042, "2024-12-31T23:59:59.042Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(ms(at)), text);
            assert_eq!(parse_rfc3339(text), Some(ms(at)));
        }
        for bad in
            ["", "Z", "2024-02-29", "2024-02-29T00:00:00Z", "2024-13-01T00:00:00.000Z", "2024-02-29T0:+1:00.000Z"]
        {
            assert_eq!(parse_rfc3339(bad), None, "{bad}");
        }
    }

    /// Broken, `doctor` would tell of a clock that is wrong.
    #[test]
    fn the_date_of_http_is_read() {
        assert_eq!(parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(ms(784_111_777_000)));
        for bad in ["", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994", "Sun, 06 Nov 1994 08:49 GMT"] {
            assert_eq!(parse_http_date(bad), None, "{bad}");
        }
    }

    /// Broken, a throttle or an alarm would take another time than was said.
    #[test]
    fn spans_are_read_strictly() {
        for (text, want_s) in [("0s", 0), ("1s", 1), ("10m", 600), ("24h", 86_400), ("086400s", 86_400)] {
            assert_eq!(parse_span(text), Some(Duration::from_secs(want_s)), "{text}");
        }
        for bad in [
            "",
            "s",
            "10",
            "-1s",
            "+1s",
            "1.5h",
            "1d",
            " 1s",
            "1s ",
            "99999999999999999999h",
            "9999999999999999h",
            "1é",
            "é",
        ] {
            assert_eq!(parse_span(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(at in 0..253_402_300_800_000u64) {
            prop_assert_eq!(parse_rfc3339(&rfc3339(ms(at))), Some(ms(at)));
        }

        #[test]
        fn any_text_is_read_or_refused_without_panic(text in "[0-9TZ:., a-zA-Z-]{0,40}") {
            let _ = (parse_rfc3339(&text), parse_http_date(&text));
        }
    }
}
