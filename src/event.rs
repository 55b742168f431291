//! `Batch`: a checked request body, as the exact bytes to append.
//!
//! [`Batch::parse`] is the only place that knows what an event is. It makes one pass over the text
//! (see [`crate::json`]), in the order of checks of the original: all of the JSON first, then the
//! domain of the payload, then item by item object, `summary`, `domain`.
//!
//! Most events need nothing but a check and a copy: no key is escaped, none comes twice, and `domain`
//! is missing or spelled as it is stored. Their members are not noted, only a hash of each name. All
//! others are passed a second time, with a note of each member, and may be written anew.

use std::collections::HashMap;
use std::ops::Range;

use crate::domain::{self, Domain};
use crate::json::{self, Malformed, Scanner, StrToken};

/// Longest top-level string `summary`, in Unicode code points.
pub const SUMMARY_CODE_POINTS_MAX: usize = 500;

/// How the events stand in a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON document: an object, or an array of objects.
    Document,
    /// NDJSON: one object a line.
    Lines,
}

/// Why a body was refused. Nothing of it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct EventError {
    /// What is wrong.
    pub reason: Reason,
    /// Line of the body, from 1; only for [`Format::Lines`].
    pub line: Option<u64>,
}

/// The kinds of refusal, with the texts clients of the original know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    #[error("invalid json")]
    InvalidJson,
    #[error("invalid ndjson")]
    InvalidNdjson,
    #[error("invalid payload")]
    InvalidPayload,
    #[error("invalid domain")]
    InvalidDomain,
    #[error("domain mismatch")]
    DomainMismatch,
    #[error("domain must be specified via query or payload")]
    DomainMissing,
    #[error("summary too long (max 500)")]
    SummaryTooLong,
}

/// Checked events of one domain, ready to append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    domain: Domain,
    lines: Vec<u8>,
    events: u64,
}

impl Batch {
    /// Checks a body and makes its lines.
    ///
    /// Each event keeps its own text but for insignificant white space and `domain`, which is set
    /// to the normalised domain: in place where the key is, else as last member. Of duplicate
    /// top-level keys the last value stays, at the first place (compat: as Python's `dict`).
    ///
    /// `domain` is the one that path or query named; without it the first event names it.
    /// `None` means the body holds no event, which is fine and stores nothing.
    ///
    /// # Errors
    /// [`EventError`] for the first thing wrong, in the order of the module description.
    pub fn parse(text: &str, format: Format, domain: Option<Domain>) -> Result<Option<Batch>, EventError> {
        let mut out = Vec::with_capacity(text.len() + text.len() / 8 + 64);
        let mut parser = Parser::new(domain);
        match format {
            Format::Document => parser.document(text, &mut out)?,
            Format::Lines => parser.lines(text, &mut out)?,
        }
        parser.finish(format)?;
        let Parser { domain: Some(domain), events: 1.., .. } = parser else { return Ok(None) };
        Ok(Some(Batch { domain, lines: out, events: parser.events }))
    }

    /// The domain of all events.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// The bytes to append: whole lines, each with its newline.
    pub fn lines(&self) -> &[u8] {
        &self.lines
    }

    /// How many events, at least 1.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Takes the parts: domain, lines, number of events.
    pub fn into_parts(self) -> (Domain, Vec<u8>, u64) {
        (self.domain, self.lines, self.events)
    }
}

/// Is this line (without its newline) what an append would have written for `domain`?
///
/// # Errors
/// [`EventError`] when it is no strict JSON object, or its `domain` is not `domain`.
pub fn check_line(line: &str, domain: &Domain) -> Result<(), EventError> {
    match Batch::parse(line, Format::Document, Some(domain.clone()))? {
        Some(batch) if line.starts_with('{') && batch.lines.strip_suffix(b"\n") == Some(line.as_bytes()) => Ok(()),
        _ => Err(EventError { reason: Reason::InvalidPayload, line: None }),
    }
}

/// What stands in a line of a data file that not only we write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredLine<'a> {
    /// The text of its `domain`, as it stands there.
    pub domain: std::borrow::Cow<'a, str>,
    pub form: LineForm,
}

/// How a line with an event is spelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineForm {
    /// As an append writes it.
    Own,
    /// Strict JSON, but with white space, repeated keys, or something else that an append never writes.
    Foreign,
    /// Python's `json` reads it, strict readers do not: NaN, Infinity, 1e400, lone surrogates.
    Lenient,
}

/// Why a line of a data file holds no event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineFault {
    /// White space at most.
    Blank,
    /// No reader takes it.
    NotJson,
    NotAnObject,
    /// No member `domain`, or one that is no string.
    DomainMissing,
}

/// Reads a line (without its newline) of a data file, whoever wrote it. Does not judge whether its
/// domain is the right one.
///
/// # Errors
/// [`LineFault`] when it holds no event.
pub fn read_line(line: &str) -> Result<StoredLine<'_>, LineFault> {
    let mut out = Vec::with_capacity(line.len());
    let mut scanner = Scanner::new(line, &mut out);
    scanner.space();
    if scanner.peek().is_none() {
        return Err(LineFault::Blank);
    }
    let is_object = scanner.peek() == Some(b'{');
    let mut parser = Parser::new(None);
    let facts = if is_object {
        parser.object(&mut scanner, line).map_err(|Malformed| LineFault::NotJson)?
    } else {
        scanner.value(0).map_err(|Malformed| LineFault::NotJson)?;
        Facts::default()
    };
    scanner.space();
    if scanner.peek().is_some() {
        return Err(LineFault::NotJson);
    }
    let domain = match facts.domain {
        Field::String(token) => token_text(token, line),
        _ if is_object => return Err(LineFault::DomainMissing),
        _ => return Err(LineFault::NotAnObject),
    };
    let is_own = || Domain::parse(&domain).is_ok_and(|domain| check_line(line, &domain).is_ok());
    let form = match () {
        () if scanner.lenient() => LineForm::Lenient,
        () if is_own() => LineForm::Own,
        () => LineForm::Foreign,
    };
    Ok(StoredLine { domain, form })
}

struct Parser {
    domain: Option<Domain>,
    events: u64,
    /// The first item that is JSON but no event. Text that is not JSON at all, even later in the
    /// body, is reported before it.
    refused: Option<EventError>,
    /// The first line with something only Python reads; reported after everything else.
    lenient: Option<Option<u64>>,
    members: Vec<Member>,
    scratch: Vec<u8>,
    /// Of the names of a plain object.
    hashes: [u64; PLAIN_MEMBERS_MAX],
}

/// Most members of an object that is compared without noting them.
const PLAIN_MEMBERS_MAX: usize = 32;

/// A top-level member of the event being read.
struct Member {
    hash: u32,
    name: Name,
    /// Its key with the quotes, in the output.
    key: Range<usize>,
    /// Its value, in the output.
    value: Range<usize>,
}

/// Where the unescaped name of a member lies.
enum Name {
    Source(Range<usize>),
    Scratch(Range<usize>),
}

/// What the rules look at, of the last member of that name.
#[derive(Default)]
struct Facts {
    domain: Field,
    summary: Field,
    repeated: bool,
    members: usize,
    /// No key is escaped, none comes twice; the members were not noted.
    plain: bool,
}

#[derive(Default, Clone, Copy)]
enum Field {
    #[default]
    Absent,
    NoString,
    String(StrToken),
}

impl Parser {
    fn new(domain: Option<Domain>) -> Self {
        Parser {
            domain,
            events: 0,
            refused: None,
            lenient: None,
            members: Vec::new(),
            scratch: Vec::new(),
            hashes: [0; PLAIN_MEMBERS_MAX],
        }
    }

    fn document(&mut self, text: &str, out: &mut Vec<u8>) -> Result<(), EventError> {
        let malformed = |_: Malformed| EventError { reason: Reason::InvalidJson, line: None };
        let mut scanner = Scanner::new(text, out);
        scanner.space();
        if scanner.peek() == Some(b'[') {
            self.array(&mut scanner, text).map_err(malformed)?;
        } else {
            self.item(&mut scanner, text, None).map_err(malformed)?;
        }
        scanner.space();
        if scanner.peek().is_some() {
            return Err(malformed(Malformed));
        }
        if scanner.lenient() {
            self.lenient = Some(None);
        }
        Ok(())
    }

    fn array(&mut self, scanner: &mut Scanner<'_>, text: &str) -> Result<(), Malformed> {
        scanner.expect(b'[')?;
        scanner.discard();
        scanner.space();
        if scanner.peek() == Some(b']') {
            scanner.expect(b']')?;
            scanner.discard();
            return Ok(());
        }
        loop {
            self.item(scanner, text, None)?;
            scanner.space();
            if scanner.peek() == Some(b']') {
                scanner.expect(b']')?;
                scanner.discard();
                return Ok(());
            }
            scanner.expect(b',')?;
            scanner.discard();
            scanner.space();
        }
    }

    /// compat: white space of both ends of the whole body is stripped by Unicode rules, lines end
    /// at `\n` only, and only an empty line is blank (`\r` alone is no JSON).
    fn lines(&mut self, text: &str, out: &mut Vec<u8>) -> Result<(), EventError> {
        let body = domain::trim(text);
        let start = body.as_ptr() as usize - text.as_ptr() as usize;
        let first = 1 + text[..start].bytes().filter(|&b| b == b'\n').count() as u64;
        let mut line_start = 0;
        let ends = memchr::memchr_iter(b'\n', body.as_bytes()).chain([body.len()]);
        for (number, line_end) in (first..).zip(ends) {
            let line = &body[line_start..line_end];
            line_start = line_end + 1;
            if !line.is_empty() {
                self.line(line, number, out)
                    .map_err(|Malformed| EventError { reason: Reason::InvalidNdjson, line: Some(number) })?;
            }
        }
        Ok(())
    }

    fn line(&mut self, line: &str, number: u64, out: &mut Vec<u8>) -> Result<(), Malformed> {
        let mut scanner = Scanner::new(line, out);
        scanner.space();
        self.item(&mut scanner, line, Some(number))?;
        scanner.space();
        if scanner.lenient() {
            self.lenient = self.lenient.or(Some(Some(number)));
        }
        if scanner.peek().is_some() { Err(Malformed) } else { Ok(()) }
    }

    /// One value that ought to be an event.
    fn item(&mut self, scanner: &mut Scanner<'_>, text: &str, line: Option<u64>) -> Result<(), Malformed> {
        if scanner.peek() != Some(b'{') {
            scanner.value(0)?;
            scanner.discard();
            self.refuse(Reason::InvalidPayload, line);
            return Ok(());
        }
        let start = scanner.out_pos();
        let mark = scanner.mark();
        let mut facts = Facts { plain: true, ..Facts::default() };
        if !self.plain_object(scanner, &mut facts)? {
            scanner.rewind(mark);
            facts = self.object(scanner, text)?;
        }
        if self.refused.is_none() {
            match self.judge(&facts, text) {
                Ok(()) => {
                    if facts.plain && !self.keeps_domain(&facts, text) {
                        scanner.rewind(mark);
                        facts = self.object(scanner, text)?;
                    }
                    let out = scanner.flushed();
                    self.write_domain(out, start, &facts, text);
                    out.push(b'\n');
                    self.events += 1;
                    return Ok(());
                }
                Err(reason) => self.refuse(reason, line),
            }
        }
        scanner.flushed().truncate(start);
        Ok(())
    }

    fn refuse(&mut self, reason: Reason, line: Option<u64>) {
        self.refused.get_or_insert(EventError { reason, line });
    }

    /// Passes an object and notes no members. `false`: it has a key with escapes, a name that perhaps
    /// comes twice, or very many members, so they have to be noted.
    #[inline]
    fn plain_object(&mut self, scanner: &mut Scanner<'_>, facts: &mut Facts) -> Result<bool, Malformed> {
        const DOMAIN: u64 = json::short_name_hash(b"domain");
        const SUMMARY: u64 = json::short_name_hash(b"summary");
        let hashes = &mut self.hashes;
        let mut seen = [false; 256];
        scanner.plain_object(|text, key, value| {
            let hash = json::name_hash(text, key.clone());
            // Names that differ mostly have different places, and then nothing is compared.
            let seen = &mut seen[(hash >> 56) as usize];
            if *seen && hashes[..facts.members].contains(&hash) {
                return false;
            }
            *seen = true;
            let Some(place) = hashes.get_mut(facts.members) else { return false };
            *place = hash;
            facts.members += 1;
            if hash == DOMAIN && &text[key.clone()] == b"domain" {
                facts.domain = value.map_or(Field::NoString, Field::String);
            }
            if hash == SUMMARY && &text[key] == b"summary" {
                facts.summary = value.map_or(Field::NoString, Field::String);
            }
            true
        })
    }

    /// Nothing but a missing `domain` has to be written. The facts are of a plain object.
    fn keeps_domain(&self, facts: &Facts, text: &str) -> bool {
        match facts.domain {
            Field::Absent => true,
            Field::NoString => false,
            Field::String(token) => self.domain.as_ref().is_some_and(|d| d.as_str() == &text[token.range()]),
        }
    }

    /// Passes an object and notes its members.
    fn object(&mut self, scanner: &mut Scanner<'_>, text: &str) -> Result<Facts, Malformed> {
        self.members.clear();
        self.scratch.clear();
        let mut facts = Facts::default();
        scanner.expect(b'{')?;
        scanner.space();
        if scanner.peek() == Some(b'}') {
            scanner.expect(b'}')?;
            return Ok(facts);
        }
        loop {
            let key_start = scanner.out_pos();
            let key = scanner.string()?;
            let key_end = scanner.out_pos();
            scanner.space();
            scanner.expect(b':')?;
            scanner.space();
            let value_start = scanner.out_pos();
            let field = if scanner.peek() == Some(b'"') {
                Field::String(scanner.string()?)
            } else {
                scanner.value(1)?;
                Field::NoString
            };
            let value = value_start..scanner.out_pos();
            self.note(text, key, key_start..key_end, value, field, &mut facts);
            scanner.space();
            if scanner.peek() == Some(b'}') {
                scanner.expect(b'}')?;
                break;
            }
            scanner.expect(b',')?;
            scanner.space();
        }
        facts.repeated = self.has_repeated_names(text);
        facts.members = self.members.len();
        Ok(facts)
    }

    fn note(
        &mut self,
        text: &str,
        token: StrToken,
        key: Range<usize>,
        value: Range<usize>,
        field: Field,
        facts: &mut Facts,
    ) {
        let name = if token.is_escaped() {
            let start = self.scratch.len();
            json::unescape(&text.as_bytes()[token.range()], &mut self.scratch);
            Name::Scratch(start..self.scratch.len())
        } else {
            Name::Source(token.range())
        };
        let bytes = name.bytes(text, &self.scratch);
        match bytes {
            b"domain" => facts.domain = field,
            b"summary" => facts.summary = field,
            _ => {}
        }
        let hash = name_hash(bytes);
        self.members.push(Member { hash, name, key, value });
    }

    /// Pairwise for the usual handful of members, by a keyed hash map for many, so that a hostile
    /// body costs no quadratic time.
    fn has_repeated_names(&self, text: &str) -> bool {
        const PAIRWISE_MAX: usize = 32;
        // Names that differ mostly fall on different bits, and then nothing is compared.
        let mut seen_bits = 0u128;
        let all_differ = self.members.iter().all(|member| {
            let bit = 1u128 << (member.hash % 128);
            let new = seen_bits & bit == 0;
            seen_bits |= bit;
            new
        });
        if all_differ {
            return false;
        }
        let name = |member: &Member| member.name.bytes(text, &self.scratch).to_vec();
        if self.members.len() > PAIRWISE_MAX {
            let mut seen = std::collections::HashSet::with_capacity(self.members.len());
            return self.members.iter().any(|m| !seen.insert(m.name.bytes(text, &self.scratch)));
        }
        self.members
            .iter()
            .enumerate()
            .any(|(i, a)| self.members[..i].iter().any(|b| a.hash == b.hash && name(a) == name(b)))
    }

    /// The rules for one object, in the order of the original.
    fn judge(&mut self, facts: &Facts, text: &str) -> Result<(), Reason> {
        if self.domain.is_none() {
            self.domain = Some(first_domain(facts.domain, text)?);
        }
        if let Field::String(token) = facts.summary {
            let raw = &text.as_bytes()[token.range()];
            if raw.len() > SUMMARY_CODE_POINTS_MAX && json::code_points(raw) > SUMMARY_CODE_POINTS_MAX {
                return Err(Reason::SummaryTooLong);
            }
        }
        match facts.domain {
            Field::Absent => Ok(()),
            Field::NoString => Err(Reason::InvalidPayload),
            Field::String(token) => {
                let named = token_text(token, text);
                let want = self.domain.as_ref().expect("set above");
                if named == want.as_str() {
                    return Ok(());
                }
                match Domain::parse(&named) {
                    Ok(named) if named == *want => Ok(()),
                    Ok(_) => Err(Reason::DomainMismatch),
                    Err(_) => Err(Reason::InvalidPayload),
                }
            }
        }
    }

    /// Sets `domain` in the event that stands at the end of `out`.
    fn write_domain(&self, out: &mut Vec<u8>, start: usize, facts: &Facts, text: &str) {
        let domain = self.domain.as_ref().expect("an event was judged, so there is a domain").as_str();
        if facts.repeated {
            return self.rewrite(out, start, domain, text);
        }
        match facts.domain {
            Field::Absent => {
                out.pop();
                if facts.members > 0 {
                    out.push(b',');
                }
                push_domain(out, domain);
                out.push(b'}');
            }
            Field::String(_) if facts.plain => {}
            Field::String(token) if &text[token.range()] == domain && self.domain_key_is_plain(out) => {}
            _ => self.rewrite(out, start, domain, text),
        }
    }

    fn domain_key_is_plain(&self, out: &[u8]) -> bool {
        self.members.iter().any(|member| &out[member.key.clone()] == b"\"domain\"")
    }

    /// Writes the object anew from its members: each name once, at its first place, with its last
    /// value, and `domain` in its plain form.
    fn rewrite(&self, out: &mut Vec<u8>, start: usize, domain: &str, text: &str) {
        let mut last = HashMap::with_capacity(self.members.len());
        let mut order = Vec::with_capacity(self.members.len());
        for member in &self.members {
            let name = member.name.bytes(text, &self.scratch);
            if last.insert(name, member).is_none() {
                order.push((name, member));
            }
        }
        let mut event = vec![b'{'];
        for (name, first) in order {
            if event.len() > 1 {
                event.push(b',');
            }
            if name == b"domain" {
                push_domain(&mut event, domain);
                continue;
            }
            event.extend_from_slice(&out[first.key.clone()]);
            event.push(b':');
            event.extend_from_slice(&out[last[name].value.clone()]);
        }
        if !last.contains_key(b"domain".as_slice()) {
            event.push(b',');
            push_domain(&mut event, domain);
        }
        event.push(b'}');
        out.truncate(start);
        out.extend_from_slice(&event);
    }

    fn finish(&self, format: Format) -> Result<(), EventError> {
        if let Some(refused) = self.refused {
            return Err(refused);
        }
        match (self.lenient, format) {
            (None, _) => Ok(()),
            (Some(_), Format::Document) => Err(EventError { reason: Reason::InvalidJson, line: None }),
            (Some(line), Format::Lines) => Err(EventError { reason: Reason::InvalidNdjson, line }),
        }
    }
}

impl Name {
    fn bytes<'a>(&self, text: &'a str, scratch: &'a [u8]) -> &'a [u8] {
        match self {
            Name::Source(range) => &text.as_bytes()[range.clone()],
            Name::Scratch(range) => &scratch[range.clone()],
        }
    }
}

/// compat: a first event without a non-empty string `domain` is told that one is missing, even if
/// `domain` is there with another type; an invalid one is an invalid domain.
fn first_domain(field: Field, text: &str) -> Result<Domain, Reason> {
    match field {
        Field::String(token) if !token.range().is_empty() => {
            Domain::parse(&token_text(token, text)).map_err(|_| Reason::InvalidDomain)
        }
        _ => Err(Reason::DomainMissing),
    }
}

fn token_text(token: StrToken, text: &str) -> std::borrow::Cow<'_, str> {
    let raw = &text[token.range()];
    if !token.is_escaped() {
        return raw.into();
    }
    let mut bytes = Vec::with_capacity(raw.len());
    json::unescape(raw.as_bytes(), &mut bytes);
    String::from_utf8_lossy(&bytes).into_owned().into()
}

fn push_domain(out: &mut Vec<u8>, domain: &str) {
    out.extend_from_slice(b"\"domain\":\"");
    out.extend_from_slice(domain.as_bytes());
    out.push(b'"');
}

/// FNV-1a, only to skip comparisons of names that differ; equality is always checked.
fn name_hash(name: &[u8]) -> u32 {
    name.iter().fold(0x811c_9dc5, |hash, &b| (hash ^ u32::from(b)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example() -> Option<Domain> {
        Some(Domain::parse("example.com").unwrap())
    }

    fn doc(text: &str, domain: Option<Domain>) -> Result<String, Reason> {
        parse(text, Format::Document, domain).map_err(|e| e.reason)
    }

    fn parse(text: &str, format: Format, domain: Option<Domain>) -> Result<String, EventError> {
        Ok(Batch::parse(text, format, domain)?.map_or(String::new(), |b| String::from_utf8(b.lines).unwrap()))
    }

    #[test]
    fn a_stored_line_is_read_whoever_wrote_it() {
        for (line, form) in [
            ("{\"a\":1,\"domain\":\"example.com\"}", LineForm::Own),
            ("{\"a\": 1, \"domain\": \"example.com\"}\r", LineForm::Foreign),
            ("{\"\\u0064omain\":\"example.com\"}", LineForm::Foreign),
            ("{\"a\":1,\"a\":2,\"domain\":\"example.com\"}", LineForm::Foreign),
            ("{\"a\":NaN,\"domain\":\"example.com\"}", LineForm::Lenient),
            ("{\"a\":\"\\ud800\",\"domain\":\"example.com\"}", LineForm::Lenient),
        ] {
            let want = StoredLine { domain: "example.com".into(), form };
            assert_eq!(read_line(line), Ok(want), "{line}");
        }
        for (line, fault) in [
            ("", LineFault::Blank),
            (" \r", LineFault::Blank),
            ("{\"a\":1", LineFault::NotJson),
            ("{\"domain\":\"a\"}{\"domain\":\"a\"}", LineFault::NotJson),
            ("\u{feff}{\"domain\":\"a\"}", LineFault::NotJson),
            ("[{\"domain\":\"a\"}]", LineFault::NotAnObject),
            ("1", LineFault::NotAnObject),
            ("{}", LineFault::DomainMissing),
            ("{\"domain\":1}", LineFault::DomainMissing),
        ] {
            assert_eq!(read_line(line), Err(fault), "{line}");
        }
    }

    /// Broken, how deep an event may be would depend on how its names are written.
    #[test]
    fn nesting_ends_at_the_limit_whatever_the_names() {
        for name in ["a", "\\u0061"] {
            let nested = |n: usize| format!("{{\"{name}\":{}{}}}", "[".repeat(n), "]".repeat(n));
            assert!(doc(&nested(json::NESTING_MAX), example()).is_ok(), "{name}");
            assert_eq!(doc(&nested(json::NESTING_MAX + 1), example()), Err(Reason::InvalidJson), "{name}");
        }
    }

    #[test]
    fn events_keep_their_text_and_get_their_domain() {
        for (text, want) in [
            ("{}", "{\"domain\":\"example.com\"}\n"),
            (" { } ", "{\"domain\":\"example.com\"}\n"),
            (
                "{\"v\" : 1.10, \"d\":\"\\u00e4 \\/\"}",
                "{\"v\":1.10,\"d\":\"\\u00e4 \\/\",\"domain\":\"example.com\"}\n",
            ),
            // What looks like the end of a member, in strings at the end of the text.
            ("{\"a\":\",\"}", "{\"a\":\",\",\"domain\":\"example.com\"}\n"),
            ("{\"a\":\":\"}", "{\"a\":\":\",\"domain\":\"example.com\"}\n"),
            ("{\"a\":\"\\\",\\\"\"}", "{\"a\":\"\\\",\\\"\",\"domain\":\"example.com\"}\n"),
            ("{\"domain\":\" EXAMPLE.com\",\"a\":1}", "{\"domain\":\"example.com\",\"a\":1}\n"),
            ("{\"\\u0064omain\":\"example.com\",\"a\":1}", "{\"domain\":\"example.com\",\"a\":1}\n"),
            ("{\"domain\":\"example.com\",\"a\":1}", "{\"domain\":\"example.com\",\"a\":1}\n"),
            ("{\"a\":1,\"b\":2,\"a\":3}", "{\"a\":3,\"b\":2,\"domain\":\"example.com\"}\n"),
            ("{\"a\":1,\"\\u0061\": 3 }", "{\"a\":3,\"domain\":\"example.com\"}\n"),
            ("{\"domain\":\"other\",\"a\":1,\"domain\":\"example.com\"}", "{\"domain\":\"example.com\",\"a\":1}\n"),
            ("[{\"i\":1} , {\"i\":2}]", "{\"i\":1,\"domain\":\"example.com\"}\n{\"i\":2,\"domain\":\"example.com\"}\n"),
            ("[]", ""),
            (
                "{\"p\":{\"domain\":\"x\",\"domain\":\"y\"}}",
                "{\"p\":{\"domain\":\"x\",\"domain\":\"y\"},\"domain\":\"example.com\"}\n",
            ),
        ] {
            assert_eq!(doc(text, example()).as_deref(), Ok(want), "{text}");
        }
    }

    /// Broken, a name that comes twice would be stored twice. Texts of all lengths are read in blocks.
    #[test]
    fn a_repeated_name_is_found_wherever_it_stands() {
        for (len, before) in (0..20).flat_map(|len| (0..80).map(move |before| (len, before))) {
            let (name, long) = (&"name of a member, long"[..len], "x".repeat(before));
            let text = format!("{{\"{name}\":1,\"-\":\"{long}\",\"{name}\":2}}");
            let want = format!("{{\"{name}\":2,\"-\":\"{long}\",\"domain\":\"example.com\"}}\n");
            assert_eq!(doc(&text, example()), Ok(want), "{text}");
            let other = format!("{{\"{name}\":1,\"-\":\"{long}\",\"{name}2\":2}}");
            let want = format!("{},\"domain\":\"example.com\"}}\n", other.strip_suffix('}').unwrap());
            assert_eq!(doc(&other, example()), Ok(want), "{other}");
        }
    }

    /// Broken, white space would be stored, or a bracket, comma or colon too few would be taken.
    #[test]
    fn white_space_and_damage_are_seen_at_every_place() {
        let tokens = [
            "{",
            "\"a\"",
            ":",
            "\"b\"",
            ",",
            "\"a longer name\"",
            ":",
            "12",
            ",",
            "\"n\"",
            ":",
            "0.5",
            ",",
            "\"o\"",
            ":",
            "{",
            "\"a\"",
            ":",
            "[",
            "1",
            ",",
            "\"x\"",
            "]",
            "}",
            ",",
            "\"t\"",
            ":",
            "true",
            ",",
            "\"summary\"",
            ":",
            "\"long enough for more than one block of bytes, or for two\"",
            "}",
        ];
        let compact = tokens.concat();
        let want = format!("{},\"domain\":\"example.com\"}}\n", compact.strip_suffix('}').unwrap());
        assert_eq!(doc(&compact, example()).as_ref(), Ok(&want));
        for at in 0..=tokens.len() {
            for space in [" ", "\n", "\t\r  \n"] {
                let text = format!("{}{space}{}", tokens[..at].concat(), tokens[at..].concat());
                assert_eq!(doc(&text, example()).as_ref(), Ok(&want), "{text}");
            }
            for wrong in ["\u{a0}", "\0", ",", ":", "}", "]", "1", "\""] {
                let text = format!("{}{wrong}{}", tokens[..at].concat(), tokens[at..].concat());
                let is_json = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
                assert_eq!(doc(&text, example()).is_ok(), is_json, "{text}");
            }
        }
        for at in 0..tokens.len() {
            let text = [&tokens[..at], &tokens[at + 1..]].concat().concat();
            let is_json = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
            assert_eq!(doc(&text, example()).is_ok(), is_json, "{text}");
        }
        for at in 0..compact.len() {
            assert_eq!(doc(&compact[..at], example()), Err(Reason::InvalidJson), "{at}");
        }
        for (text, at) in [compact, tokens.join(" ")].iter().flat_map(|text| (0..text.len()).map(move |at| (text, at)))
        {
            let text = format!("{}x{}", &text[..at], &text[at + 1..]);
            let is_json = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
            assert_eq!(doc(&text, example()).is_ok(), is_json, "{text}");
        }
    }

    #[test]
    fn the_first_event_names_the_domain_when_nobody_else_does() {
        assert_eq!(
            doc("[{\"domain\":\"a\",\"i\":1},{\"i\":2}]", None).unwrap(),
            "{\"domain\":\"a\",\"i\":1}\n{\"i\":2,\"domain\":\"a\"}\n"
        );
        for (text, want) in [
            ("{\"a\":1}", Reason::DomainMissing),
            ("{\"domain\":5}", Reason::DomainMissing),
            ("{\"domain\":null}", Reason::DomainMissing),
            ("{\"domain\":\"\"}", Reason::DomainMissing),
            ("[{\"i\":1},{\"domain\":\"a\"}]", Reason::DomainMissing),
            ("{\"domain\":\" \"}", Reason::InvalidDomain),
            ("{\"domain\":\"a_b\"}", Reason::InvalidDomain),
            ("{\"domain\":\"\\ud800\"}", Reason::InvalidDomain),
            ("[{\"domain\":\"a\"},{\"domain\":\"b\"}]", Reason::DomainMismatch),
            ("5", Reason::InvalidPayload),
            ("[[{\"domain\":\"a\"}]]", Reason::InvalidPayload),
        ] {
            assert_eq!(doc(text, None), Err(want), "{text}");
        }
        assert_eq!(doc("[]", None).unwrap(), "");
    }

    #[test]
    fn refusals_come_in_the_order_of_the_original() {
        let long = "x".repeat(501);
        for (text, want) in [
            (format!("{{\"domain\":\"other\",\"summary\":\"{long}\"}}"), Reason::SummaryTooLong),
            (format!("[5,{{\"summary\":\"{long}\"}}]"), Reason::InvalidPayload),
            (format!("[{{\"summary\":\"{long}\"}},5]"), Reason::SummaryTooLong),
            ("[5,{bad]".into(), Reason::InvalidJson),
            ("{\"domain\":\"other\",\"a\":NaN}".into(), Reason::DomainMismatch),
            ("[{\"a\":NaN},5]".into(), Reason::InvalidPayload),
            ("{\"a\":NaN}".into(), Reason::InvalidJson),
            ("{\"a\":\"\\ud800\"}".into(), Reason::InvalidJson),
            ("NaN".into(), Reason::InvalidPayload),
            ("{\"domain\":null}".into(), Reason::InvalidPayload),
            ("{\"domain\":\"\"}".into(), Reason::InvalidPayload),
            ("{\"domain\":\"example.com\",\"domain\":\"other\"}".into(), Reason::DomainMismatch),
            ("".into(), Reason::InvalidJson),
            ("{}{}".into(), Reason::InvalidJson),
            ("\u{a0}{}".into(), Reason::InvalidJson),
        ] {
            assert_eq!(doc(&text, example()), Err(want), "{text}");
        }
        assert!(doc(&format!("{{\"summary\":\"{}\"}}", "😀".repeat(500)), example()).is_ok());
        assert_eq!(
            doc(&format!("{{\"summary\":\"{}\"}}", "\\ud83d\\ude00".repeat(501)), example()),
            Err(Reason::SummaryTooLong)
        );
        assert!(
            doc(&format!("{{\"p\":{{\"summary\":\"{long}\"}},\"Summary\":\"{long}\",\"summary\":5}}"), example())
                .is_ok()
        );
    }

    #[test]
    fn ndjson_is_split_as_the_original_splits_it() {
        let lines = |text: &str| parse(text, Format::Lines, example());
        let two = "{\"a\":1,\"domain\":\"example.com\"}\n{\"a\":2,\"domain\":\"example.com\"}\n";
        for text in [
            "{\"a\":1}\n{\"a\":2}",
            "{\"a\":1}\n\n\n{\"a\":2}\n",
            "  {\"a\":1}\r\n\t{\"a\":2}\u{a0}\u{2028}",
            "\u{2028}{\"a\":1}\n{\"a\":2}\u{1e}",
        ] {
            assert_eq!(lines(text).as_deref(), Ok(two), "{text:?}");
        }
        for text in ["", "   ", "\n\n\n", "\u{2028}"] {
            assert_eq!(lines(text).as_deref(), Ok(""), "{text:?}");
        }
        for (text, line) in [
            ("{\"a\":1}\r\n\r\n{\"a\":2}\r\n", 2),
            ("{\"a\":1}\r{\"a\":2}", 1),
            ("{\"a\":1}\u{85}{\"a\":2}", 1),
            ("{\"a\":1}\u{a0}\n{\"a\":2}", 1),
            ("\n\n{\"a\":1}\n\n{bad", 5),
            ("\u{feff}{}", 1),
            ("{\"a\":\n1}", 1),
            ("{}\n{\"a\":NaN}\n{\"a\":NaN}", 2),
        ] {
            assert_eq!(lines(text), Err(EventError { reason: Reason::InvalidNdjson, line: Some(line) }), "{text:?}");
        }
        assert_eq!(lines("{}\n5\n"), Err(EventError { reason: Reason::InvalidPayload, line: Some(2) }));
        assert_eq!(lines("5\n{bad").map_err(|e| e.reason), Err(Reason::InvalidNdjson));
    }

    #[test]
    fn many_members_are_deduplicated_too() {
        let members: Vec<_> = (0..100).map(|i| format!("\"k{}\":{i}", i % 50)).collect();
        let line = doc(&format!("{{{}}}", members.join(",")), example()).unwrap();
        assert!(
            line.starts_with("{\"k0\":50,\"k1\":51,") && line.ends_with("\"k49\":99,\"domain\":\"example.com\"}\n"),
            "{line}"
        );
    }

    /// Broken, members would be lost whose long names differ in the middle only, or a name that comes
    /// twice would stay twice when it stands where fewer than eight bytes follow.
    #[test]
    fn names_that_look_alike_are_told_apart() {
        let alike = "{\"12345678-a-12345678\":1,\"12345678-b-12345678\":2,\"12345678\":3,\"\":4}";
        let want = alike.replace('}', ",\"domain\":\"example.com\"}\n");
        assert_eq!(doc(alike, example()).as_deref(), Ok(want.as_str()));
        for name in ["", "a", "1234567", "12345678", "123456789", "12345678-a-12345678"] {
            let twice = format!("{{\"{name}\":1,\"b\":2,\"{name}\":3}}");
            let want = format!("{{\"{name}\":3,\"b\":2,\"domain\":\"example.com\"}}\n");
            assert_eq!(doc(&twice, example()), Ok(want), "{name}");
        }
        for length in 31..36 {
            let mut members: Vec<_> = (0..length).map(|i| format!("\"k{i}\":{i}")).collect();
            members.push("\"k0\":\"last\"".into());
            let line = doc(&format!("{{{}}}", members.join(",")), example()).unwrap();
            assert!(line.starts_with("{\"k0\":\"last\",\"k1\":1,") && !line.contains("\"k0\":0"), "{line}");
        }
    }

    /// Broken, every event would be written anew, or only hashes of names would be compared.
    #[test]
    fn only_a_name_that_stands_twice_is_repeated() {
        let repeated = |names: &[&str]| {
            let members: Vec<_> = names.iter().map(|name| format!("\"{name}\":1")).collect();
            let (text, mut out) = (format!("{{{}}}", members.join(",")), Vec::new());
            Parser::new(None).object(&mut Scanner::new(&text, &mut out), &text).is_ok_and(|facts| facts.repeated)
        };
        assert_eq!([name_hash(b""), name_hash(b"a"), name_hash(b"foobar")], [0x811c_9dc5, 0xe40c_292c, 0xbf9c_f968]);
        assert_eq!(name_hash(b"costarring"), name_hash(b"liquid"));
        let mut names = vec!["costarring", "liquid"];
        for _ in 0..2 {
            assert!(!repeated(&names), "{names:?}");
            names.push("liquid");
            assert!(repeated(&names), "{names:?}");
            // More names than are compared pair by pair.
            let more = (0..40).map(|i| &*format!("{i}").leak());
            names = ["costarring", "liquid"].into_iter().chain(more).collect();
        }
    }

    /// Broken, one body of many names would keep a thread busy for minutes.
    #[test]
    fn many_names_cost_no_quadratic_time() {
        let members: Vec<_> = (0..32_000).map(|i| format!("\"{i}\":1")).collect();
        let text = format!("{{{}}}", members.join(","));
        // Time on a processor, whatever else the machine does.
        let cpu_ns = || -> u64 {
            let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
            stat.split(' ').next().unwrap().parse().unwrap()
        };
        let before = cpu_ns();
        assert!(doc(&text, example()).is_ok());
        let ms = (cpu_ns() - before) / 1_000_000;
        // Without optimisation it takes a hundred, and pair by pair ten thousand.
        assert!(ms < 2000, "{ms} ms");
    }

    #[test]
    fn a_written_line_is_recognised_and_others_are_not() {
        let domain = example().unwrap();
        assert!(check_line("{\"a\":1,\"domain\":\"example.com\"}", &domain).is_ok());
        for line in [
            "{\"a\":1}",
            "{\"domain\":\"b\"}",
            "[]",
            "5",
            "",
            "{\"domain\":\"example.com\"} ",
            "[{\"domain\":\"example.com\"}]",
        ] {
            assert!(check_line(line, &domain).is_err(), "{line}");
        }
    }

    fn object() -> impl Strategy<Value = serde_json::Map<String, serde_json::Value>> {
        let value = prop_oneof![
            any::<i32>().prop_map(Into::into),
            "\\PC{0,8}".prop_map(Into::into),
            Just(serde_json::json!({"x":[1,{}]}))
        ];
        proptest::collection::btree_map("[a-z\"\n]{0,3}", value, 0..8).prop_map(|m| m.into_iter().collect())
    }

    proptest! {
        /// What is stored is what was sent, one line an event, `domain` added.
        #[test]
        fn lines_hold_the_events_that_were_sent(objects in proptest::collection::vec(object(), 0..6), as_lines in any::<bool>()) {
            let texts: Vec<_> = objects.iter().map(|o| serde_json::to_string(o).unwrap()).collect();
            let (text, format) = if as_lines { (texts.join("\n"), Format::Lines) } else { (format!("[{}]", texts.join(", ")), Format::Document) };
            let stored = parse(&text, format, example()).unwrap();
            prop_assert_eq!(stored.matches('\n').count(), objects.len());
            for (line, mut object) in stored.lines().zip(objects) {
                object.insert("domain".into(), "example.com".into());
                prop_assert_eq!(serde_json::from_str::<serde_json::Value>(line).unwrap(), serde_json::Value::Object(object));
                prop_assert!(check_line(line, &example().unwrap()).is_ok());
            }
        }

        /// Splitting at `\n` does not depend on what stands on the lines.
        #[test]
        fn a_feed_is_its_lines(lines in proptest::collection::vec("\\{\"a\":[1-9][0-9]{0,2}\\}|", 0..12)) {
            let whole = parse(&lines.join("\n"), Format::Lines, example()).unwrap();
            let single: String = lines.iter().map(|l| parse(l, Format::Lines, example()).unwrap()).collect();
            prop_assert_eq!(whole, single);
        }

        #[test]
        fn any_text_is_judged_without_panic_and_stored_lines_are_sound(text in "\\PC{0,80}|[\\[\\]{}\",:\\\\u0-9domain\n NaI.e-]{0,80}", as_lines in any::<bool>()) {
            let format = if as_lines { Format::Lines } else { Format::Document };
            if let Ok(Some(batch)) = Batch::parse(&text, format, example()) {
                let lines = std::str::from_utf8(batch.lines()).unwrap();
                prop_assert!(lines.ends_with('\n'));
                prop_assert_eq!(lines.lines().count() as u64, batch.events());
                for line in lines.lines() {
                    prop_assert!(check_line(line, batch.domain()).is_ok(), "{}", line);
                }
            }
        }
    }
}
