//! What `serde_json` and a plain reading of the rules make of a body, to hold against `Batch::parse`.

use leitstand::domain::Domain;
use leitstand::event::{Batch, EventError, Format, Reason, SUMMARY_CODE_POINTS_MAX};
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::check_lines;

/// `serde_json` stops at 128 levels and at integers that no double holds; we go further.
const DEPTH_MAX: usize = 100;
const DIGITS_MAX: usize = 300;

/// One document, or one line of a feed.
struct Piece<'a> {
    text: &'a str,
    line: Option<u64>,
}

/// Fails when `Batch::parse` judges or stores the text otherwise than the model.
pub fn compare(text: &str, format: Format, domain: Option<Domain>) {
    let got = Batch::parse(text, format, domain.clone());
    if let Ok(Some(batch)) = &got {
        assert_eq!(check_lines(batch.lines(), batch.domain()) as u64, batch.events(), "{text:?}");
    }
    let pieces = pieces(text, format);
    let malformed_reason = if format == Format::Lines { Reason::InvalidNdjson } else { Reason::InvalidJson };
    let is_malformed = |got: &Result<Option<Batch>, EventError>, line: Option<u64>| {
        *got == Err(EventError { reason: malformed_reason, line })
    };
    // Python's constants are read further than RFC 8259 allows, for the order of the errors.
    let has_constants = text.contains("NaN") || text.contains("Infinity");
    if !has_constants && let Some(bad) = pieces.iter().find(|p| serde_json::from_str::<IgnoredAny>(p.text).is_err()) {
        assert!(is_malformed(&got, bad.line), "{text:?}: {got:?}, but no JSON on line {:?}", bad.line);
    }
    if !pieces.iter().all(|piece| is_plain(piece.text)) {
        return;
    }
    let values: Result<Vec<Value>, _> = pieces.iter().map(|piece| serde_json::from_str(piece.text)).collect();
    let Ok(values) = values else {
        assert!(got.is_err(), "{text:?}: {got:?}, but a strict reader refuses it");
        return;
    };
    let items = values.into_iter().zip(&pieces).flat_map(|(value, piece)| match value {
        Value::Array(items) if format == Format::Document => items.into_iter().map(|item| (item, None)).collect(),
        other => vec![(other, piece.line)],
    });
    match (judge(items, domain), got) {
        (Err(want), Err(got)) => assert_eq!(got, want, "{text:?}"),
        (Ok((domain, events)), Ok(Some(batch))) => {
            assert_eq!(Some(batch.domain()), domain.as_ref(), "{text:?}");
            let stored = std::str::from_utf8(batch.lines()).expect("checked above").lines();
            let stored: Vec<Map<String, Value>> =
                stored.map(|line| serde_json::from_str(line).expect("checked above")).collect();
            assert_eq!(stored, events, "{text:?}");
        }
        (Ok((_, events)), Ok(None)) => assert!(events.is_empty(), "{text:?}"),
        (want, got) => panic!("{text:?}: {got:?}, but by the rules {want:?}"),
    }
}

type Judged = (Option<Domain>, Vec<Map<String, Value>>);

/// The rules of docs/compat.md on values: what is stored, or the first thing that is wrong.
fn judge(items: impl Iterator<Item = (Value, Option<u64>)>, mut domain: Option<Domain>) -> Result<Judged, EventError> {
    let mut events = Vec::new();
    for (item, line) in items {
        let refuse = |reason| EventError { reason, line };
        let Value::Object(mut event) = item else { return Err(refuse(Reason::InvalidPayload)) };
        let named = match event.get("domain") {
            Some(Value::String(text)) => Some(text),
            _ => None,
        };
        let want = match (&domain, named) {
            (Some(domain), _) => domain.clone(),
            (None, Some(text)) if !text.is_empty() => Domain::parse(text).map_err(|_| refuse(Reason::InvalidDomain))?,
            (None, _) => return Err(refuse(Reason::DomainMissing)),
        };
        domain = Some(want.clone());
        if event.get("summary").and_then(Value::as_str).is_some_and(|s| s.chars().count() > SUMMARY_CODE_POINTS_MAX) {
            return Err(refuse(Reason::SummaryTooLong));
        }
        match (event.contains_key("domain"), named.map(|text| Domain::parse(text))) {
            (false, _) => {}
            (true, Some(Ok(named))) if named == want => {}
            (true, Some(Ok(_))) => return Err(refuse(Reason::DomainMismatch)),
            (true, Some(Err(_)) | None) => return Err(refuse(Reason::InvalidPayload)),
        }
        event.insert("domain".to_owned(), want.as_str().into());
        events.push(event);
    }
    Ok((domain, events))
}

fn pieces(text: &str, format: Format) -> Vec<Piece<'_>> {
    if format == Format::Document {
        return vec![Piece { text, line: None }];
    }
    let body = trim(text);
    let before = text.find(body).expect("a part of it");
    let first = 1 + text[..before].matches('\n').count() as u64;
    let numbered = (first..).zip(body.split('\n'));
    numbered.filter(|(_, line)| !line.is_empty()).map(|(line, text)| Piece { text, line: Some(line) }).collect()
}

/// Python's `str.strip()`.
pub fn trim(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c))
}

/// Is it one JSON value? `None` where `serde_json` has limits that we have not.
pub fn whole_value(bytes: &[u8]) -> Option<bool> {
    let Ok(text) = std::str::from_utf8(bytes) else { return Some(false) };
    is_plain(text).then(|| serde_json::from_str::<Value>(text).is_ok())
}

/// No deep nesting, no long number and none near the end of what a double holds, where `serde_json`
/// rounds in a quick way. A rough look that may find too much.
fn is_plain(text: &str) -> bool {
    let numbers = text.split(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-')));
    if numbers.filter_map(|number| number.parse::<f64>().ok()).any(|number| number.abs() >= 1e308) {
        return false;
    }
    let (mut depth, mut deepest, mut digits, mut longest) = (0_usize, 0, 0, 0);
    for b in text.bytes() {
        match b {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        digits = if b.is_ascii_digit() { digits + 1 } else { 0 };
        deepest = deepest.max(depth);
        longest = longest.max(digits);
    }
    // A closing bracket in a string hides a level, so strings must not hold too many of them.
    let in_strings = text.bytes().filter(|b| matches!(b, b'[' | b'{')).count();
    deepest < DEPTH_MAX && in_strings < DEPTH_MAX && longest < DIGITS_MAX
}
