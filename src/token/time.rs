//! Times as people write them: RFC 3339, and spans as `90d`.

const DAY_S: u64 = 86_400;
/// Longest span that can be given.
const SPAN_S_MAX: u64 = 100 * 366 * DAY_S;

/// Unix seconds as RFC 3339 in UTC, e.g. `2026-11-21T18:42:00Z`.
pub fn rfc3339(unix_s: u64) -> String {
    let (days, second) = (unix_s / DAY_S, unix_s % DAY_S);
    let (year, month, day) = date(days);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

/// Unix seconds of an RFC 3339 text; parts of a second do not count.
///
/// # Errors
/// What it must be.
pub fn parse_rfc3339(text: &str) -> Result<u64, String> {
    read_rfc3339(text).ok_or_else(|| "must be a time as 2026-12-31T23:59:59Z".to_owned())
}

fn read_rfc3339(text: &str) -> Option<u64> {
    let (date, time) = text.split_at_checked(10)?;
    let (time, zone) = time.strip_prefix(['T', 't', ' '])?.split_at_checked(8)?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(time, ':', [2, 2, 2])?;
    let zone = match zone.strip_prefix('.') {
        Some(rest) => {
            let zone = rest.trim_start_matches(|c: char| c.is_ascii_digit());
            (zone.len() < rest.len()).then_some(zone)?
        }
        None => zone,
    };
    let offset_s = match zone {
        "Z" | "z" => 0,
        _ => {
            let sign = if zone.starts_with('+') { 1 } else { -1 };
            let [hours, minutes] = numbers(zone.strip_prefix(['+', '-'])?, ':', [2, 2])?;
            (hours < 24 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60) as i64)?
        }
    };
    // 60 is a leap second.
    let valid = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=days_in(year, month)).contains(&day)
        && (hour < 24 && minute < 60 && second <= 60);
    let unix_s = days_to(year, month, day) * DAY_S + hour * 3600 + minute * 60 + second.min(59);
    valid.then(|| unix_s.checked_add_signed(-offset_s)).flatten()
}

/// Numbers of so many digits each.
fn numbers<const N: usize>(text: &str, between: char, digits: [usize; N]) -> Option<[u64; N]> {
    let mut numbers = [0; N];
    let mut parts = text.split(between);
    for (number, digits) in numbers.iter_mut().zip(digits) {
        let part = parts.next().filter(|part| part.len() == digits && part.bytes().all(|b| b.is_ascii_digit()))?;
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

/// Seconds of a span: a whole number of `s`, `m`, `h`, `d` or `w`; `0` needs no unit.
///
/// # Errors
/// What it must be.
pub fn parse_span(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let unit_s = match &text[digits..] {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        "d" => Some(DAY_S),
        "w" => Some(7 * DAY_S),
        "" if text.bytes().all(|b| b == b'0') => Some(1),
        _ => None,
    };
    let span_s = text[..digits].parse::<u64>().ok().zip(unit_s).and_then(|(n, unit_s)| n.checked_mul(unit_s));
    span_s
        .filter(|span_s| *span_s <= SPAN_S_MAX)
        .ok_or_else(|| "must be a time span as 90d, 24h, 30m or 45s".to_owned())
}

/// A span in its largest whole unit but one, for people: "12 days", "3 hours".
pub fn roughly(span_s: u64) -> String {
    let (n, unit) = match span_s {
        s if s >= 2 * DAY_S => (s / DAY_S, "day"),
        s if s >= 2 * 3600 => (s / 3600, "hour"),
        s if s >= 120 => (s / 60, "minute"),
        s => (s, "second"),
    };
    format!("{n} {unit}{}", if n == 1 { "" } else { "s" })
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400)
}

fn days_in(year: u64, month: u64) -> u64 {
    match month {
        2 => 28 + u64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01.
fn days_to(year: u64, month: u64, day: u64) -> u64 {
    let years = (1970..year).map(|year| 365 + u64::from(is_leap(year))).sum::<u64>();
    years + (1..month).map(|month| days_in(year, month)).sum::<u64>() + day.saturating_sub(1)
}

/// Year, month and day, so many days after 1970-01-01.
fn date(mut days: u64) -> (u64, u64, u64) {
    // Whole cycles of 400 years first, so that no number takes long.
    let (mut year, mut month) = (1970 + days / 146_097 * 400, 1);
    days %= 146_097;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    while days >= days_in(year, month) {
        days -= days_in(year, month);
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, a token would end at another time than it was given.
    #[test]
    fn times_are_read_and_written() {
        // Checked with `date --utc --date=@N`.
        for (unix_s, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_827_696, "2000-02-29T12:34:56Z"),
            (1_795_286_520, "2026-11-21T18:42:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (253_402_300_799, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(unix_s), text);
            assert_eq!(parse_rfc3339(text), Ok(unix_s));
        }
        for (text, unix_s) in [
            ("2026-11-21T19:42:00+01:00", 1_795_286_520),
            ("2026-11-21t18:12:00.999999-00:30", 1_795_286_520),
            ("2026-11-21 18:42:00z", 1_795_286_520),
            ("2016-12-31T23:59:60Z", 1_483_228_799),
        ] {
            assert_eq!(parse_rfc3339(text), Ok(unix_s), "{text}");
        }
        for bad in [
            "",
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
            "2026-1-021T18:42:00Z",
            "2026-11-21T1\u{e4}:2:00Z",
        ] {
            assert!(parse_rfc3339(bad).is_err(), "{bad:?}");
        }
        for unix_s in (0..400 * 366 * DAY_S).step_by(39_000_001) {
            assert_eq!(parse_rfc3339(&rfc3339(unix_s)), Ok(unix_s));
        }
        assert!(rfc3339(u64::MAX).ends_with('Z'));
    }

    /// Broken, a typing error would make a token that never ends.
    #[test]
    fn spans_need_a_unit() {
        for (text, span_s) in
            [("90d", 7_776_000), ("24h", 86_400), ("2w", 1_209_600), ("30m", 1800), ("45s", 45), ("0", 0), ("0d", 0)]
        {
            assert_eq!(parse_span(text), Ok(span_s), "{text}");
        }
        for bad in
            ["", "90", "d", "-1d", "1.5d", "1y", "1 d", "1D", "99999999999999999999d", "40000d", "1d1h", "1\u{e4}"]
        {
            assert!(parse_span(bad).is_err(), "{bad:?}");
        }
        assert_eq!(
            [0, 1, 119, 120, 7199, 7200, 172_799, 172_800].map(roughly),
            ["0 seconds", "1 second", "119 seconds", "2 minutes", "119 minutes", "2 hours", "47 hours", "2 days"]
        );
    }
}
