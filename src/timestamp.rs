//! Points in time and spans of time as text, for everybody. The calendar is that of `humantime`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The last moment that RFC 3339 can write.
const LAST: Duration = Duration::new(253_402_300_799, 999_999_999);

/// `2026-11-21T18:42:00Z`. Here and below, what lies before 1970 is 1970, and what lies after 9999
/// is the last moment of it.
pub fn rfc3339_s(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(within(since_1970(at))).to_string()
}

/// `2026-11-21T18:42:00.123Z`
pub fn rfc3339_ms(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(within(since_1970(at))).to_string()
}

/// `2026-11-21T18:42:00.123456789Z`
pub fn rfc3339_ns(at: SystemTime) -> String {
    humantime::format_rfc3339_nanos(within(since_1970(at))).to_string()
}

/// Unix seconds as [`rfc3339_s`].
pub fn unix_rfc3339(unix_s: u64) -> String {
    rfc3339_s(within(Duration::from_secs(unix_s)))
}

/// `20261121T184200Z`, for names that sort by time.
pub fn compact(at: SystemTime) -> String {
    rfc3339_s(at).replace(['-', ':'], "")
}

/// Reads RFC 3339 with any offset, from 1970 on. A leap second is the one before.
pub fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(parse_since_1970(text)?)
}

/// Unix seconds of such a text; parts of a second do not count.
pub fn parse_unix_s(text: &str) -> Option<u64> {
    parse_since_1970(text).map(|since| since.as_secs())
}

/// Reads the `Date` of HTTP in each of the forms that RFC 9110 asks a recipient to know.
pub fn parse_http_date(text: &str) -> Option<SystemTime> {
    httpdate::parse_http_date(text).ok()
}

/// Reads a whole number of `ms`, `s`, `m`, `h`, `d` or `w`: `500ms`, `30s`, `90d`.
pub fn parse_span(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let unit_ms = match &text[digits..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "w" => 604_800_000,
        _ => return None,
    };
    let number: u64 = text[..digits].parse().ok()?;
    number.checked_mul(unit_ms).map(Duration::from_millis)
}

/// humantime writes no other years than those of RFC 3339.
fn within(since_1970: Duration) -> SystemTime {
    UNIX_EPOCH + since_1970.min(LAST)
}

fn since_1970(at: SystemTime) -> Duration {
    at.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// humantime reads moments in UTC; we take the offset off before, and off the result.
fn parse_since_1970(text: &str) -> Option<Duration> {
    let text = text.to_ascii_uppercase();
    if let Some(local) = text.strip_suffix('Z') {
        return parse_local(local);
    }
    let (local, offset) = text.split_at_checked(text.len().checked_sub("+01:00".len())?)?;
    let (sign, clock) = offset.split_at_checked(1)?;
    let (local, offset) = (parse_local(local)?, parse_local(&format!("1970-01-01T{clock}:00"))?);
    match sign {
        "+" => local.checked_sub(offset),
        "-" => Some(local + offset),
        _ => None,
    }
}

/// Reads `2026-11-21T18:42:00` as if it were in UTC. A zone, or a point with nothing behind it,
/// humantime would take as well.
fn parse_local(text: &str) -> Option<Duration> {
    if text.contains(['Z', '+']) || text.ends_with('.') {
        return None;
    }
    humantime::parse_rfc3339_weak(text).ok().map(since_1970)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LAST_S: u64 = LAST.as_secs();

    fn ms(ms: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(ms)
    }

    /// Broken, a heartbeat would look older or younger than it is, a manifest would name another day
    /// than that of the backup, and a token would end at another time than it was given.
    #[test]
    fn known_moments_are_written_and_read() {
        // Checked with `date --utc --date=@N`.
        for (at, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (1_709_164_800_000, "2024-02-29T00:00:00.000Z"),
            (1_735_689_599_042, "2024-12-31T23:59:59.042Z"),
            (1_795_285_815_000, "2026-11-21T18:30:15.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (LAST_S * 1000 + 999, "9999-12-31T23:59:59.999Z"),
        ] {
            let whole = format!("{}Z", &text[..19]);
            assert_eq!(rfc3339_ms(ms(at)), text);
            assert_eq!(rfc3339_s(ms(at)), whole);
            assert_eq!(rfc3339_ns(ms(at)), text.replace('Z', "000000Z"));
            assert_eq!(unix_rfc3339(at / 1000), whole);
            assert_eq!(compact(ms(at)), whole.replace(['-', ':'], ""));
            assert_eq!(parse_rfc3339(text), Some(ms(at)));
            assert_eq!(parse_unix_s(text), Some(at / 1000));
        }
        assert_eq!(rfc3339_ns(UNIX_EPOCH + Duration::from_nanos(5)), "1970-01-01T00:00:00.000000005Z");
        assert_eq!(compact(ms(1_709_251_199_042)), "20240229T235959Z");
    }

    /// Broken, a file with a strange modification time would stop a snapshot, or a token that ends
    /// in the far future would make a store that cannot be read.
    #[test]
    fn what_no_calendar_has_is_its_nearest_end() {
        assert_eq!(rfc3339_ms(UNIX_EPOCH - Duration::from_millis(1)), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339_ms(ms((LAST_S + 1) * 1000)), "9999-12-31T23:59:59.999Z");
        for far_s in [LAST_S, LAST_S + 1, i64::MAX as u64, u64::MAX] {
            assert_eq!(unix_rfc3339(far_s), "9999-12-31T23:59:59Z");
        }
    }

    /// Broken, a token would not take the time that its giver's tools print.
    #[test]
    fn each_form_of_rfc_3339_is_read() {
        for (text, unix_s) in [
            ("2026-11-21T18:42:00Z", 1_795_286_520),
            ("2026-11-21T19:42:00+01:00", 1_795_286_520),
            ("2026-11-21t18:12:00.999999-00:30", 1_795_286_520),
            ("2026-11-21 18:42:00.999999999999z", 1_795_286_520),
            ("2026-11-21T18:42:00-00:00", 1_795_286_520),
            ("2026-11-22T18:41:00+23:59", 1_795_286_520),
            ("2016-12-31T23:59:60Z", 1_483_228_799),
            ("9999-12-31T23:59:59+00:00", LAST_S),
        ] {
            assert_eq!(parse_unix_s(text), Some(unix_s), "{text}");
        }
        for bad in [
            "",
            "Z",
            "2026",
            "2026-11-21",
            "2026-11-21T18:42:00",
            "2026-13-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2026-11-21T24:00:00Z",
            "2026-11-21T18:42:00.Z",
            "2026-11-21T18:42:00+24:00",
            "1969-12-31T23:59:59Z",
            "1970-01-01T00:00:00+01:00",
            "2026-11-21T18:42:00Zx",
            "2026-11-21T18:42:00Z[UTC]",
            "2026-11-21T18:42:00ZZ",
            "2026-11-21T18:42:00Z+01:00",
            "2026-11-21T18:42:00.5+00:00+01:00",
            "2026-11-21T18:42:00.+01:00",
            "2026-11-21T18:42:00+01:60",
            "2026-11-21T18:42:00+0100",
            "2026-11-21T18:42:00+\u{e4}1:0",
            "20261121T184200Z",
            "2026-11-21T18:42Z",
            "2026-1-021T18:42:00Z",
            "2026-11-21T0:+1:00.000Z",
            "0-0-0T0:0:0Z",
            "2026-11-21T1\u{e4}:2:00Z",
        ] {
            assert_eq!((parse_rfc3339(bad), parse_unix_s(bad)), (None, None), "{bad:?}");
        }
    }

    /// Broken, `doctor` would tell of a clock that is wrong.
    #[test]
    fn the_date_of_http_is_read() {
        for text in ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
            assert_eq!(parse_http_date(text), Some(ms(784_111_777_000)), "{text}");
        }
        for bad in ["", "Sun, 06 Nov 1994 08:49 GMT", "Sun, 06 Nov 1994 08:49:37 CET", "1994-11-06T08:49:37Z"] {
            assert_eq!(parse_http_date(bad), None, "{bad}");
        }
    }

    /// Broken, a throttle, an alarm or the life of a token would take another time than was said.
    #[test]
    fn spans_are_read_strictly() {
        for (text, want_ms) in [
            ("0s", 0),
            ("500ms", 500),
            ("1s", 1000),
            ("10m", 600_000),
            ("24h", 86_400_000),
            ("086400s", 86_400_000),
            ("90d", 7_776_000_000),
            ("2w", 1_209_600_000),
        ] {
            assert_eq!(parse_span(text), Some(Duration::from_millis(want_ms)), "{text}");
        }
        for bad in [
            "",
            "0",
            "s",
            "ms",
            "10",
            "-1s",
            "+1s",
            "1.5h",
            "1y",
            "1D",
            "1 s",
            " 1s",
            "1s ",
            "1d1h",
            "99999999999999999999h",
            "9999999999999999h",
            "1\u{e9}",
            "\u{e9}",
        ] {
            assert_eq!(parse_span(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(at in 0..(LAST_S + 1) * 1000) {
            prop_assert_eq!(parse_rfc3339(&rfc3339_ms(ms(at))), Some(ms(at)));
            prop_assert_eq!(parse_rfc3339(&rfc3339_ns(ms(at))), Some(ms(at)));
            prop_assert_eq!(parse_unix_s(&unix_rfc3339(at / 1000)), Some(at / 1000));
        }

        #[test]
        fn any_text_is_read_or_refused_without_panic(text in "[0-9TZ:.+\\[\\], a-zA-Z\u{e4}-]{0,40}") {
            let _ = (parse_rfc3339(&text), parse_unix_s(&text), parse_http_date(&text), parse_span(&text));
        }
    }
}
