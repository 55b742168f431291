//! `Parser`: one pass over a body, in the order of checks of the original, that writes its lines or only measures them.
//!
//! Whatever has room for the output so far, the rest of the text, and the domain once more, needs no more of it for the
//! next event. That is looked at once an event, so nothing grows by itself.

use super::memory::{Memory, Shortage};
use super::names::Names;
use super::{EventError, Format, Reason, SUMMARY_CODE_POINTS_MAX};
use crate::domain::{self, Domain};
use crate::json::{self, BLOCK, Length, Malformed, Output, Scanner, StrToken};

/// What a domain takes in an event that has none, beyond its own length, with the comma and the line feed.
const DOMAIN_FRAME_BYTES: usize = br#","domain":"""#.len() + 1;

/// Why a pass ends early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Halt {
    Malformed,
    /// The members of one object take too much memory.
    Shortage(Shortage),
    /// The output takes more than was reckoned with: it has to be measured.
    NoRoom,
}

impl From<Malformed> for Halt {
    fn from(Malformed: Malformed) -> Halt {
        Halt::Malformed
    }
}

impl From<Shortage> for Halt {
    fn from(shortage: Shortage) -> Halt {
        Halt::Shortage(shortage)
    }
}

/// Why a body becomes no batch in this pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    Event(EventError),
    Shortage(Shortage),
    NoRoom,
}

pub(super) struct Parser<'m> {
    pub(super) domain: Option<Domain>,
    pub(super) events: u64,
    /// The first item that is JSON but no event. Text that is not JSON at all, even later in the
    /// body, is reported before it.
    refused: Option<EventError>,
    /// The first line with something only Python reads; reported after everything else.
    lenient: Option<Option<u64>>,
    names: Names,
    pub(super) memory: Memory<'m>,
    /// Most bytes of output; above it the pass ends.
    room_max: usize,
    /// Of the body, behind the text that is being scanned.
    behind: usize,
    /// Of the names of a plain object.
    hashes: [u64; PLAIN_MEMBERS_MAX],
}

/// Most members of an object that is compared without noting them.
const PLAIN_MEMBERS_MAX: usize = 32;

/// What the rules look at, of the last member of that name.
#[derive(Default)]
pub(super) struct Facts {
    pub(super) domain: Field,
    summary: Field,
    repeated: bool,
    members: usize,
    /// Length of the longest name with escapes.
    escaped_bytes: usize,
    /// The last name that means `domain` is spelled so.
    domain_is_spelled_out: bool,
    /// No key is escaped, none comes twice; the members were not noted.
    plain: bool,
}

#[derive(Default, Clone, Copy)]
pub(super) enum Field {
    #[default]
    Absent,
    NoString,
    String(StrToken),
}

impl<'m> Parser<'m> {
    pub(super) fn new(domain: Option<Domain>, memory: Memory<'m>) -> Self {
        Parser {
            domain,
            events: 0,
            refused: None,
            lenient: None,
            names: Names::new(),
            memory,
            room_max: usize::MAX,
            behind: 0,
            hashes: [0; PLAIN_MEMBERS_MAX],
        }
    }

    /// Before another pass over the same body. `domain`: the one that was given.
    pub(super) fn begin_again(&mut self, domain: Option<Domain>) {
        (self.domain, self.events, self.refused, self.lenient, self.behind) = (domain, 0, None, None, 0);
    }

    /// Passes a whole body. The output may take up to `room_max` bytes.
    pub(super) fn body<O: Output>(
        &mut self,
        text: &str,
        format: Format,
        out: &mut O,
        room_max: usize,
    ) -> Result<(), Stop> {
        self.room_max = room_max;
        match format {
            Format::Document => {
                self.document(text, out).map_err(|halt| halt.stop(Reason::InvalidJson, None))?;
            }
            Format::Lines => self.lines(text, out)?,
        }
        self.finish(format).map_err(Stop::Event)
    }

    /// Passes the first item of a body, to learn the domain that it names.
    pub(super) fn first_item(&mut self, text: &str, format: Format) -> Result<(), Halt> {
        let mut out = Length::default();
        let (text, line) = match format {
            Format::Document => (text, None),
            Format::Lines => (domain::trim(text).split('\n').next().unwrap_or_default(), Some(1)),
        };
        let mut scanner = Scanner::new(text, &mut out);
        scanner.space();
        if line.is_none() && scanner.peek() == Some(b'[') {
            scanner.expect(b'[')?;
            scanner.space();
        }
        self.item(&mut scanner, text, line)
    }

    fn document<O: Output>(&mut self, text: &str, out: &mut O) -> Result<(), Halt> {
        let mut scanner = Scanner::new(text, out);
        scanner.space();
        if scanner.peek() == Some(b'[') {
            self.array(&mut scanner, text)?;
        } else {
            self.item(&mut scanner, text, None)?;
        }
        scanner.space();
        if scanner.peek().is_some() {
            return Err(Halt::Malformed);
        }
        if scanner.lenient() {
            self.lenient = Some(None);
        }
        Ok(())
    }

    fn array<O: Output>(&mut self, scanner: &mut Scanner<'_, O>, text: &str) -> Result<(), Halt> {
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
    fn lines<O: Output>(&mut self, text: &str, out: &mut O) -> Result<(), Stop> {
        let body = domain::trim(text);
        let start = body.as_ptr() as usize - text.as_ptr() as usize;
        let first = 1 + text[..start].bytes().filter(|&b| b == b'\n').count() as u64;
        let mut line_start = 0;
        let ends = memchr::memchr_iter(b'\n', body.as_bytes()).chain([body.len()]);
        for (number, line_end) in (first..).zip(ends) {
            let line = &body[line_start..line_end];
            line_start = line_end + 1;
            self.behind = body.len() - line_end;
            if !line.is_empty() {
                self.line(line, number, out).map_err(|halt| halt.stop(Reason::InvalidNdjson, Some(number)))?;
            }
        }
        Ok(())
    }

    fn line<O: Output>(&mut self, line: &str, number: u64, out: &mut O) -> Result<(), Halt> {
        let mut scanner = Scanner::new(line, out);
        scanner.space();
        self.item(&mut scanner, line, Some(number))?;
        scanner.space();
        if scanner.lenient() {
            self.lenient = self.lenient.or(Some(Some(number)));
        }
        if scanner.peek().is_some() { Err(Halt::Malformed) } else { Ok(()) }
    }

    /// One value that ought to be an event.
    fn item<O: Output>(&mut self, scanner: &mut Scanner<'_, O>, text: &str, line: Option<u64>) -> Result<(), Halt> {
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
            facts = self.object(scanner, text, false)?;
        }
        if self.refused.is_none() {
            match self.judge(&facts, text) {
                Ok(()) => {
                    if facts.plain && !self.keeps_domain(&facts, text) {
                        scanner.rewind(mark);
                        facts = self.object(scanner, text, true)?;
                    }
                    let left = self.behind + scanner.left();
                    if facts.repeated {
                        // It is written from its source, so a copy would only take memory.
                        scanner.leave_out_since(mark);
                    }
                    let out = scanner.flushed();
                    self.write_domain(out, start, mark.source(), &facts, text)?;
                    out.push(b"\n");
                    self.events += 1;
                    return if out.room() < self.wanted(left) { self.more_room(out, left) } else { Ok(()) };
                }
                Err(reason) => self.refuse(reason, line),
            }
        }
        scanner.flushed().truncate(start);
        Ok(())
    }

    /// What one more event takes at most, if the rest of the body is `left` bytes long.
    #[inline(always)]
    fn wanted(&self, left: usize) -> usize {
        left + self.domain.as_ref().map_or(0, domain_bytes) + BLOCK
    }

    /// Grows by a half at least: so output that grows often moves seldom, and has little to give back in the end.
    #[cold]
    fn more_room<O: Output>(&mut self, out: &mut O, left: usize) -> Result<(), Halt> {
        if left == 0 || self.room_max == usize::MAX {
            return Ok(());
        }
        let more = self.wanted(left).max(out.len() / 2);
        // While the output moves, it is there twice.
        let bytes = out.len() + more;
        if bytes > self.room_max || self.memory.lines(bytes + out.len()).is_err() {
            return Err(Halt::NoRoom);
        }
        out.grow(more);
        Ok(())
    }

    fn refuse(&mut self, reason: Reason, line: Option<u64>) {
        self.refused.get_or_insert(EventError { reason, line });
    }

    /// Passes an object and notes no members. `false`: it has a key with escapes, a name that perhaps
    /// comes twice, or very many members, so they have to be noted.
    #[inline]
    fn plain_object<O: Output>(&mut self, scanner: &mut Scanner<'_, O>, facts: &mut Facts) -> Result<bool, Malformed> {
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

    /// Passes an object with any members. `distinct`: it is known that no name comes twice.
    pub(super) fn object<O: Output>(
        &mut self,
        scanner: &mut Scanner<'_, O>,
        text: &str,
        distinct: bool,
    ) -> Result<Facts, Halt> {
        let start = scanner.pos();
        let mut facts = Facts::default();
        let mut next = scanner.first_member()?;
        while let Some(key) = next {
            let field = if scanner.peek() == Some(b'"') {
                Field::String(scanner.string()?)
            } else {
                scanner.value(1)?;
                Field::NoString
            };
            facts.note(text, key, field);
            next = scanner.next_member()?;
        }
        facts.repeated = !distinct && facts.members > 1 && self.has_repeated_names(text, start, &facts)?;
        Ok(facts)
    }

    /// Passes the object once more. Afterwards the table knows the last member of each name.
    fn has_repeated_names(&mut self, text: &str, start: usize, facts: &Facts) -> Result<bool, Halt> {
        self.names.prepare(facts.members, facts.escaped_bytes, text.len(), &mut self.memory)?;
        let mut nowhere = Length::default();
        let mut walk = Scanner::at(text, start, &mut nowhere);
        let mut next = walk.first_member()?;
        let mut repeated = false;
        while let Some(key) = next {
            repeated |= self.names.note(text.as_bytes(), key);
            walk.value(1)?;
            next = walk.next_member()?;
        }
        Ok(repeated)
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
                let named = domain_text(token, text).ok_or(Reason::InvalidPayload)?;
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

    /// Sets `domain` in the event that stands at the end of `out`, from `start` on, and in the source from `source` on.
    fn write_domain<O: Output>(
        &mut self,
        out: &mut O,
        start: usize,
        source: usize,
        facts: &Facts,
        text: &str,
    ) -> Result<(), Malformed> {
        if !facts.repeated {
            let domain = self.domain.as_ref().expect("an event was judged, so there is a domain").as_str();
            match facts.domain {
                Field::Absent => {
                    out.truncate(out.len() - 1);
                    if facts.members > 0 {
                        out.push(b",");
                    }
                    push_domain(out, domain);
                    out.push(b"}");
                    return Ok(());
                }
                Field::String(_) if facts.plain => return Ok(()),
                Field::String(token) if facts.domain_is_spelled_out && &text[token.range()] == domain => return Ok(()),
                _ => {}
            }
        }
        out.truncate(start);
        self.rewrite(out, source, facts.repeated, text)
    }

    /// Writes the object anew from its source: each name once, at its first place, with its last
    /// value, and `domain` in its plain form.
    #[cold]
    fn rewrite<O: Output>(&mut self, out: &mut O, source: usize, repeated: bool, text: &str) -> Result<(), Malformed> {
        let Parser { names, domain, .. } = self;
        let domain = domain.as_ref().expect("an event was judged, so there is a domain").as_str();
        let mut nowhere = Length::default();
        let mut walk = Scanner::at(text, source, &mut nowhere);
        let mut next = walk.first_member()?;
        let (mut before, mut has_domain): (&[u8], bool) = (b"{", false);
        while let Some(key) = next {
            let mut value_start = walk.pos();
            walk.value(1)?;
            next = walk.next_member()?;
            if repeated {
                let Some(last) = names.take_last(text.as_bytes(), key) else { continue };
                value_start = value_start_of(text, last)?;
            }
            out.push(before);
            before = b",";
            if is_name(text, key, b"domain") {
                push_domain(out, domain);
                has_domain = true;
                continue;
            }
            out.push(b"\"");
            out.push(&text.as_bytes()[key.range()]);
            out.push(b"\":");
            let mut value = Scanner::at(text, value_start, out);
            value.value(1)?;
            value.flush();
        }
        if !has_domain {
            out.push(before);
            push_domain(out, domain);
        }
        out.push(b"}");
        Ok(())
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

impl Halt {
    fn stop(self, malformed: Reason, line: Option<u64>) -> Stop {
        match self {
            Halt::Malformed => Stop::Event(EventError { reason: malformed, line }),
            Halt::Shortage(shortage) => Stop::Shortage(shortage),
            Halt::NoRoom => Stop::NoRoom,
        }
    }
}

impl Facts {
    fn note(&mut self, text: &str, key: StrToken, field: Field) {
        self.members += 1;
        if key.is_escaped() {
            self.escaped_bytes = self.escaped_bytes.max(key.range().len());
        }
        if is_name(text, key, b"domain") {
            self.domain = field;
            self.domain_is_spelled_out = !key.is_escaped();
        } else if is_name(text, key, b"summary") {
            self.summary = field;
        }
    }
}

/// What the domain of an event takes when the event has none, with the line feed.
pub(super) fn domain_bytes(domain: &Domain) -> usize {
    domain.as_str().len() + DOMAIN_FRAME_BYTES
}

/// Where the value of the member stands whose name begins at `name_start`.
fn value_start_of(text: &str, name_start: usize) -> Result<usize, Malformed> {
    let mut nowhere = Length::default();
    let mut scanner = Scanner::at(text, name_start - 1, &mut nowhere);
    scanner.key()?;
    Ok(scanner.pos())
}

fn is_name(text: &str, key: StrToken, name: &[u8]) -> bool {
    let raw = &text.as_bytes()[key.range()];
    if key.is_escaped() { json::unescapes_to(raw, name) } else { raw == name }
}

/// compat: a first event without a non-empty string `domain` is told that one is missing, even if
/// `domain` is there with another type; an invalid one is an invalid domain.
fn first_domain(field: Field, text: &str) -> Result<Domain, Reason> {
    match field {
        Field::String(token) if !token.range().is_empty() => {
            let text = domain_text(token, text).ok_or(Reason::InvalidDomain)?;
            Domain::parse(&text).map_err(|_| Reason::InvalidDomain)
        }
        _ => Err(Reason::DomainMissing),
    }
}

/// As [`token_text`]; `None` when it is so long that it takes memory and is no domain in any case.
fn domain_text(token: StrToken, text: &str) -> Option<std::borrow::Cow<'_, str>> {
    // White space of any length may stand around a domain; without escapes it costs nothing.
    const ESCAPED_BYTES_MAX: usize = 64 << 10;
    (!token.is_escaped() || token.range().len() <= ESCAPED_BYTES_MAX).then(|| token_text(token, text))
}

pub(super) fn token_text(token: StrToken, text: &str) -> std::borrow::Cow<'_, str> {
    let raw = &text[token.range()];
    if !token.is_escaped() {
        return raw.into();
    }
    let mut bytes = Vec::with_capacity(raw.len());
    json::unescape(raw.as_bytes(), &mut bytes);
    String::from_utf8_lossy(&bytes).into_owned().into()
}

fn push_domain<O: Output>(out: &mut O, domain: &str) {
    out.push(b"\"domain\":\"");
    out.push(domain.as_bytes());
    out.push(b"\"");
}
