//! A line of the text format: to the byte what `Format<Full>` and `DefaultFields` of `tracing_subscriber` write
//! without colours and spans, between the years 1970 and 9999.
//!
//! Common values are written here, because an access line for each request goes through this. Whatever needs an
//! escape, and every name with a meaning of its own, is left to the visitor of the library, so that there is one
//! set of rules for them.

use std::cell::Cell;
use std::error::Error;
use std::fmt::{self, Debug, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::{Event, Level};
use tracing_subscriber::field::VisitOutput as _;
use tracing_subscriber::fmt::format::{DefaultVisitor, Writer};

use crate::timestamp;

thread_local! {
    static LINE: Cell<Line> = const { Cell::new(Line { unix_s: 0, text: String::new() }) };
}

/// Hands the line of an event to `take`, with its newline. A value that cannot be formatted takes its line with
/// it.
pub(super) fn with_line(event: &Event<'_>, take: impl FnOnce(&[u8])) {
    // Taken out: a value that logs while it is formatted finds an empty one.
    let mut line = LINE.take();
    if line.write(event, SystemTime::now()).is_ok() {
        take(line.text.as_bytes());
    }
    LINE.set(line);
}

/// The line of a thread. What it begins with is made once a second.
#[derive(Default)]
struct Line {
    unix_s: u64,
    /// Empty, or `2026-11-21T18:42:00.` and what followed it in the last line.
    text: String,
}

impl Line {
    fn write(&mut self, event: &Event<'_>, now: SystemTime) -> fmt::Result {
        self.begin(now);
        let metadata = event.metadata();
        self.text.push_str(match *metadata.level() {
            Level::TRACE => " TRACE ",
            Level::DEBUG => " DEBUG ",
            Level::INFO => "  INFO ",
            Level::WARN => "  WARN ",
            Level::ERROR => " ERROR ",
        });
        self.text.push_str(metadata.target());
        self.text.push_str(": ");
        let mut fields = Fields { line: &mut self.text, is_empty: true, result: Ok(()) };
        event.record(&mut fields);
        fields.result?;
        self.text.push('\n');
        Ok(())
    }

    /// `2026-11-21T18:42:00.123456Z`
    fn begin(&mut self, now: SystemTime) {
        const SECOND: usize = "2026-11-21T18:42:00.".len();
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        if self.unix_s != since.as_secs() || self.text.is_empty() {
            self.unix_s = since.as_secs();
            self.text = timestamp::unix_rfc3339(self.unix_s).replace('Z', ".");
        }
        self.text.truncate(SECOND);
        push_padded(&mut self.text, 1_000_000, since.subsec_micros());
        self.text.push('Z');
    }
}

/// Writes the fields of an event, in their order, with a space between two.
struct Fields<'a> {
    line: &'a mut String,
    is_empty: bool,
    result: fmt::Result,
}

impl Fields<'_> {
    /// `name=`, and false if the library has to write the field.
    fn key(&mut self, name: &str) -> bool {
        let common = name != "message" && !name.starts_with("r#") && !name.starts_with("log.");
        if common {
            self.separate();
            self.line.push_str(name);
            self.line.push('=');
        }
        common
    }

    fn separate(&mut self) {
        if !self.is_empty {
            self.line.push(' ');
        }
        self.is_empty = false;
    }

    fn as_library(&mut self, record: impl FnOnce(&mut DefaultVisitor<'_>)) {
        let before = self.line.len();
        let mut library = DefaultVisitor::new(Writer::new(self.line), self.is_empty);
        record(&mut library);
        self.result = self.result.and(library.finish());
        self.is_empty &= self.line.len() == before;
    }

    fn message(&mut self, field: &Field, value: &dyn Debug) {
        let (before, was_empty) = (self.line.len(), self.is_empty);
        self.separate();
        let start = self.line.len();
        self.result = self.result.and(write!(self.line, "{value:?}"));
        if !all(&self.line[start..], is_printable) {
            // The library knows what a terminal must not see.
            self.line.truncate(before);
            self.is_empty = was_empty;
            self.as_library(|library| library.record_debug(field, value));
        }
    }
}

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if !all(value, |byte| is_printable(byte) && byte != b'"' && byte != b'\\') || !self.key(field.name()) {
            return self.as_library(|library| library.record_str(field, value));
        }
        self.line.push('"');
        self.line.push_str(value);
        self.line.push('"');
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if !self.key(field.name()) {
            return self.as_library(|library| library.record_u64(field, value));
        }
        self.line.push_str(itoa::Buffer::new().format(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        match thousandths(value) {
            Some(count) if self.key(field.name()) => push_thousandths(self.line, count),
            _ => self.as_library(|library| library.record_f64(field, value)),
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.as_library(|library| library.record_error(field, value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.message(field, value);
        } else if self.key(field.name()) {
            self.result = self.result.and(write!(self.line, "{value:?}"));
        } else {
            self.as_library(|library| library.record_debug(field, value));
        }
    }
}

/// Looks at all bytes in any case, which the compiler does many at a time.
fn all(text: &str, allowed: impl Fn(u8) -> bool) -> bool {
    text.bytes().fold(true, |so_far, byte| so_far & allowed(byte))
}

/// ASCII that neither `{:?}` of a string nor the guard of a terminal changes, quotes and backslashes aside.
fn is_printable(byte: u8) -> bool {
    matches!(byte, b' '..=b'~')
}

/// How many thousandths a number is, if it is the double next to a whole number of them. Of fifteen digits or less
/// no two decimals share a double, so there is no shorter text than that number's.
fn thousandths(value: f64) -> Option<u64> {
    const FIFTEEN_DIGITS: f64 = 1e15;
    let count = (value * 1000.0).round();
    let exact = value.is_sign_positive() && count < FIFTEEN_DIGITS && count / 1000.0 == value;
    exact.then_some(count as u64)
}

/// As `{:?}` writes a double: `0.0`, `0.12`, `7.0`.
fn push_thousandths(line: &mut String, count: u64) {
    line.push_str(itoa::Buffer::new().format(count / 1000));
    line.push('.');
    let point = line.len();
    push_padded(line, 1000, (count % 1000) as u32);
    let digits = line[point..].trim_end_matches('0').len().max(1);
    line.truncate(point + digits);
}

/// A number below `one` with as many digits as `one` has zeros.
fn push_padded(line: &mut String, one: u32, number: u32) {
    line.push_str(&itoa::Buffer::new().format(one + number)[1..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;
    use tracing::Subscriber;
    use tracing_subscriber::Layer;
    use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime as LibraryTime};
    use tracing_subscriber::layer::{Context, SubscriberExt as _};

    type Text = Arc<Mutex<Vec<u8>>>;

    struct Ours(Text);

    impl<S: Subscriber> Layer<S> for Ours {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            with_line(event, |line| self.0.lock().unwrap().extend_from_slice(&line[27..]));
        }
    }

    /// What the library and we write for the events of `log`, without the time.
    fn both(log: impl FnOnce()) -> [String; 2] {
        let (library, ours) = (Text::default(), Text::default());
        let writer = library.clone();
        let format = tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .without_time()
            .with_writer(move || Appended(writer.clone()));
        let subscriber = tracing_subscriber::registry().with(format).with(Ours(ours.clone()));
        tracing::subscriber::with_default(subscriber, log);
        [library, ours].map(|text| String::from_utf8(std::mem::take(&mut *text.lock().unwrap())).unwrap())
    }

    struct Appended(Text);

    impl std::io::Write for Appended {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            // The time of ours is followed by a space.
            let mut text = self.0.lock().unwrap();
            text.push(b' ');
            text.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn assert_same(lines: usize, log: impl FnOnce()) {
        let [library, ours] = both(log);
        assert_eq!(library, ours);
        // Newlines within values are escaped, in messages not.
        assert!(ours.matches('\n').count() >= lines, "{ours}");
    }

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Failure {
        text: &'static str,
        source: Option<Box<Failure>>,
    }

    const STRINGS: [&str; 14] = [
        "",
        "plain",
        "with space and 'single'",
        "a\"b",
        "a\\b",
        "\n",
        "tab\t",
        "\u{1b}[31mred\u{1b}[0m",
        "\u{7}\u{8}\u{c}\u{7f}\0",
        "c1 \u{85}\u{9b}",
        "M\u{e4}rz \u{1f980}",
        "combining e\u{301} \u{200b} \u{202e}",
        "~ to space",
        "a=b c=\"d\"",
    ];

    /// Broken, whoever reads the log with a program would read another value than was logged.
    #[test]
    fn every_string_is_written_as_by_the_library() {
        assert_same(STRINGS.len() * 6, || {
            for text in STRINGS {
                tracing::info!(text, "message");
                tracing::warn!(shown = %text, debug = ?text, owned = text.to_owned(), last = 1);
                tracing::error!("{text}");
                tracing::debug!(message = text);
                tracing::trace!(before = text, message = %text, after = text);
                tracing::info!(some = Some(text), none = None::<&str>, boxed = ?Some(text), "{text}");
            }
        });
    }

    /// Broken, the same.
    #[test]
    fn every_number_is_written_as_by_the_library() {
        assert_same(30, || {
            for number in [0, 1, 9, 10, 202, 999_999, i64::MAX as u64, u64::MAX] {
                tracing::info!(number, wide = u128::from(number) << 40, none = None::<u64>, small = number as u8);
                tracing::info!(signed = number as i64, wide = -i128::from(number), word = number as usize, "n");
            }
            for number in [0.0, -0.0, 1.0, 0.1, 0.12, 0.123, 0.001, 0.0005, 1e21, 1e-7, 1e15, 1e12, 1e16, 123_456.789] {
                tracing::info!(number, negative = -number, single = number as f32, some = Some(number));
            }
            for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, f64::MIN_POSITIVE, f64::EPSILON] {
                tracing::info!(number, negative = -number);
            }
            tracing::info!(yes = true, no = false, unit = ?(), bytes = &b"bytes"[..]);
        });
    }

    /// Broken, the reason of a failure would be missing in the log, or a field would have another name.
    #[test]
    fn errors_and_strange_names_are_written_as_by_the_library() {
        let inner = Failure { text: "inner \u{1b}[0m", source: None };
        let outer = Failure { text: "outer", source: Some(Box::new(inner)) };
        let alone = Failure { text: "alone", source: None };
        assert_same(12, || {
            for error in [&outer, &alone] {
                tracing::error!(error = %error, "failed");
                tracing::error!(error = ?error, "failed");
                let chain: &(dyn Error + 'static) = error;
                tracing::error!(chain, "failed");
                tracing::error!(message = chain, after = 1);
            }
            tracing::info!(r#type = "a", r#fn = 1, r#if = 0.5, r#match = ?Some(1), r#move = %7);
            tracing::info!(log.file = "a", log.line = 1_u64, first = 2_u64, log.other = 0.5, last = %3, "after");
            tracing::info!(log.file = "a");
            tracing::info!(a.b.c = 1, "quoted" = 2, "with space" = "x", target = "t");
            tracing::info!(target: "else::where", parent: None, a = 1);
            tracing::info!(message = 7, a = 1);
            tracing::info!(message = 0.5);
            tracing::info!(a = tracing::field::Empty, b = 1);
            tracing::info!("");
            tracing::info!(empty = "", message = "", after = "");
        });
    }

    /// Broken, an operator would miss a line whose neighbour could not be written, or find half of it.
    #[test]
    fn a_value_that_cannot_be_written_takes_only_its_own_line_with_it() {
        struct Broken;
        impl fmt::Display for Broken {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("half")?;
                Err(fmt::Error)
            }
        }
        let [library, ours] = both(|| {
            tracing::info!(broken = %Broken, text = "a\"b", "lost");
            tracing::info!("{Broken}");
            tracing::info!("kept");
        });
        assert_eq!(library, ours);
        assert_eq!(ours.lines().count(), 1, "{ours}");
    }

    /// Broken, lines would lie in another second than what they tell of.
    #[test]
    fn the_time_is_written_as_by_the_library() {
        let mut line = Line::default();
        for _ in 0..1000 {
            let mut library = String::new();
            LibraryTime.format_time(&mut Writer::new(&mut library)).unwrap();
            line.begin(timestamp::parse_rfc3339(&library).unwrap());
            assert_eq!(line.text, library);
        }
    }

    /// Broken, the same at the end of a second, or after the clock was set.
    #[test]
    fn each_second_has_its_own_text() {
        let at = |unix_s, nanos| UNIX_EPOCH + Duration::new(unix_s, nanos);
        let mut line = Line::default();
        for (at, text) in [
            (at(0, 0), "1970-01-01T00:00:00.000000Z"),
            (at(1_795_286_520, 999_999_999), "2026-11-21T18:42:00.999999Z"),
            (at(1_795_286_521, 1999), "2026-11-21T18:42:01.000001Z"),
            (at(1_795_286_521, 20_000_000), "2026-11-21T18:42:01.020000Z"),
            (at(1_795_286_520, 0), "2026-11-21T18:42:00.000000Z"),
            (UNIX_EPOCH - Duration::from_nanos(1), "1970-01-01T00:00:00.000000Z"),
        ] {
            line.begin(at);
            assert_eq!(line.text, text);
            line.text.push_str("  INFO what: follows");
        }
    }

    proptest! {
        #[test]
        fn thousandths_are_written_as_doubles_are(count in 0..999_999_999_999_999_u64, shift in 0..50) {
            let value = (count >> shift) as f64 / 1000.0;
            let mut text = String::new();
            push_thousandths(&mut text, thousandths(value).unwrap());
            prop_assert_eq!(text, format!("{value:?}"));
        }

        #[test]
        fn any_double_is_written_as_by_the_library(bits: u64) {
            let value = f64::from_bits(bits);
            if let Some(count) = thousandths(value) {
                let mut text = String::new();
                push_thousandths(&mut text, count);
                prop_assert_eq!(text, format!("{value:?}"));
            }
        }

        #[test]
        fn any_text_is_written_as_by_the_library(text: String) {
            let [library, ours] = both(|| tracing::info!(text, shown = %text, "{text}"));
            prop_assert_eq!(library, ours);
        }
    }
}
