//! `RateLimits`: how often something may happen, in the grammar of SlowAPI.
//!
//! compat: the grammar is that of Python's `limits`: `60/minute`, `3 per minute`, `2/10seconds`,
//! `2/second;3/minute`, any case. Where the original switched a limit off that it could not read,
//! this one is an error.

use std::fmt;
use std::time::Duration;

/// Most limits in one list.
pub const LIMITS_MAX: usize = 4;

/// At most `amount` in each `window`, which starts with the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    pub amount: u32,
    pub window: Duration,
}

/// Limits that must all hold. Empty means `off`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RateLimits(Vec<RateLimit>);

/// Why a text is no list of limits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RateError {
    #[error("expected e.g. 60/minute, 3 per 10 seconds, 2/second;100/hour or off")]
    Syntax,
    #[error("the amount must be at least 1, and the window between 1 and {} seconds", u32::MAX)]
    OutOfRange,
    #[error("at most {LIMITS_MAX} limits in one list")]
    TooMany,
}

impl RateLimits {
    /// Reads `off` or a list of limits, separated by `,`, `;` or `|`.
    ///
    /// # Errors
    /// [`RateError`] for anything else, for an amount of 0 (one above `u32::MAX` counts as that), for a window of more than `u32::MAX` seconds
    /// (136 years) and for more than [`LIMITS_MAX`] limits.
    pub fn parse(text: &str) -> Result<RateLimits, RateError> {
        if text.trim().eq_ignore_ascii_case("off") {
            return Ok(RateLimits::default());
        }
        let limits = text.split([',', ';', '|']).map(parse_one).collect::<Result<Vec<_>, _>>()?;
        if limits.len() > LIMITS_MAX { Err(RateError::TooMany) } else { Ok(RateLimits(limits)) }
    }

    /// So many an hour; 0 is as good as 1.
    pub fn hourly(amount: u32) -> RateLimits {
        RateLimits(vec![RateLimit { amount: amount.max(1), window: Duration::from_secs(3_600) }])
    }

    /// The limits; empty when switched off.
    pub fn as_slice(&self) -> &[RateLimit] {
        &self.0
    }
}

impl fmt::Display for RateLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("off");
        }
        for (i, limit) in self.0.iter().enumerate() {
            let separator = if i > 0 { ";" } else { "" };
            write!(f, "{separator}{}/", limit.amount)?;
            let window_s = limit.window.as_secs();
            let units = [("day", 86_400), ("hour", 3_600), ("minute", 60)];
            let (unit, seconds) = units.into_iter().find(|(_, s)| window_s.is_multiple_of(*s)).unwrap_or(("second", 1));
            match window_s / seconds {
                1 => f.write_str(unit)?,
                multiple => write!(f, "{multiple}{unit}s")?,
            }
        }
        Ok(())
    }
}

/// `<amount> (/|per) [<multiple>] <unit>[s]`
fn parse_one(text: &str) -> Result<RateLimit, RateError> {
    let lower = text.to_ascii_lowercase();
    let (amount, rest) = number(lower.trim());
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('/').or_else(|| rest.strip_prefix("per")).ok_or(RateError::Syntax)?;
    let (multiple, unit) = number(rest.trim_start());
    let unit = unit.trim_start();
    let seconds = match unit.strip_suffix('s').unwrap_or(unit) {
        "second" => 1,
        "minute" => 60,
        "hour" => 3_600,
        "day" => 86_400,
        "month" => 30 * 86_400,
        "year" => 365 * 86_400,
        _ => return Err(RateError::Syntax),
    };
    if amount.is_empty() {
        return Err(RateError::Syntax);
    }
    // compat: the original takes any amount. Nobody reaches one that cannot be counted.
    let amount = if amount.bytes().all(|digit| digit == b'0') { 0 } else { amount.parse().unwrap_or(u32::MAX) };
    if amount == 0 {
        return Err(RateError::OutOfRange);
    }
    let multiple = if multiple.is_empty() { 1 } else { positive(multiple)? };
    // A longer window could not be read back when it is printed, nor counted in milliseconds.
    let window_s = multiple.checked_mul(seconds).ok_or(RateError::OutOfRange)?;
    Ok(RateLimit { amount, window: Duration::from_secs(window_s.into()) })
}

fn number(text: &str) -> (&str, &str) {
    text.split_at(text.bytes().take_while(u8::is_ascii_digit).count())
}

fn positive(digits: &str) -> Result<u32, RateError> {
    match digits.parse() {
        Ok(0) | Err(_) => Err(RateError::OutOfRange),
        Ok(n) => Ok(n),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_whole_grammar_is_read() {
        for (text, want) in [
            ("60/minute", &[(60, 60)][..]),
            ("3 per minute", &[(3, 60)]),
            ("3perminute", &[(3, 60)]),
            ("3/minutes", &[(3, 60)]),
            (" 3 / MINUTE ", &[(3, 60)]),
            ("2/10seconds", &[(2, 10)]),
            ("100 per 5 minutes", &[(100, 300)]),
            ("2/second;3/minute", &[(2, 1), (3, 60)]),
            ("3/minute, 2/second", &[(3, 60), (2, 1)]),
            ("1/day|2/month", &[(1, 86_400), (2, 2_592_000)]),
            ("1/year", &[(1, 31_536_000)]),
            ("OFF", &[]),
        ] {
            let limits = RateLimits::parse(text).unwrap();
            let got: Vec<_> = limits.as_slice().iter().map(|l| (l.amount, l.window.as_secs())).collect();
            assert_eq!(got, want, "{text}");
        }
    }

    #[test]
    fn a_list_is_printed_as_people_write_it() {
        for (text, want) in [
            ("60 per minute", "60/minute"),
            ("3/60 seconds", "3/minute"),
            ("2/1 SECONDS;3/90seconds", "2/second;3/90seconds"),
            ("5/120 minutes|9/24hours", "5/2hours;9/day"),
            ("1/month", "1/30days"),
            ("off", "off"),
        ] {
            assert_eq!(RateLimits::parse(text).unwrap().to_string(), want, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        for text in [
            "",
            " ",
            "garbage",
            "-1/minute",
            "0/minute",
            "3/0seconds",
            "3/fortnight",
            "3/minute;",
            ";",
            "3",
            "/minute",
            "3/",
            "3 minute",
            "1.5/minute",
            "3/minutess",
            "1/s;1/s;1/s;1/s;1/s",
            "3 pro minute",
            "٣/minute",
        ] {
            assert!(RateLimits::parse(text).is_err(), "{text:?}");
        }
        assert_eq!(RateLimits::parse(&["1/day"; 5].join(",")), Err(RateError::TooMany));
    }

    /// Broken, a text that the original takes to mean "as good as no limit" stops the start.
    #[test]
    fn an_amount_above_all_counting_is_the_highest() {
        for (text, amount) in [
            ("4294967295/minute", u32::MAX),
            ("4294967296/minute", u32::MAX),
            ("1000000000000/minute", u32::MAX),
            ("99999999999999999999999999999999999999999/minute", u32::MAX),
            ("0000000000000000000000000000000000000000007/minute", 7),
        ] {
            assert_eq!(RateLimits::parse(text).unwrap().as_slice()[0].amount, amount, "{text}");
        }
        assert_eq!(RateLimits::parse("0000000000000000/minute"), Err(RateError::OutOfRange));
    }

    /// Broken, such a window wraps around to a short one, and `config check` prints what cannot be set.
    #[test]
    fn a_window_longer_than_can_be_counted_is_refused() {
        for text in ["16/4294967295minute", "1/4294967295years", "1/137 years", "1/71582789minutes"] {
            assert_eq!(RateLimits::parse(text), Err(RateError::OutOfRange), "{text}");
        }
        for text in ["1/4294967295seconds", "1/71582788minutes", "1/136years"] {
            let limits = RateLimits::parse(text).unwrap();
            assert_eq!(RateLimits::parse(&limits.to_string()), Ok(limits), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_printed_list_reads_back(list in proptest::collection::vec((1..=u32::MAX, 1..=u32::MAX), 1..=LIMITS_MAX)) {
            let text = list.iter().map(|(a, s)| format!("{a} per {s} second")).collect::<Vec<_>>().join(" ; ");
            let limits = RateLimits::parse(&text).unwrap();
            prop_assert_eq!(RateLimits::parse(&limits.to_string()).unwrap(), limits);
        }

        #[test]
        fn any_text_is_read_or_refused_without_panic(text in "\\PC{0,30}|[0-9/a-z;, ]{0,30}") {
            if let Ok(limits) = RateLimits::parse(&text) {
                prop_assert!(limits.as_slice().iter().all(|l| l.amount > 0 && !l.window.is_zero()));
            }
        }
    }
}
