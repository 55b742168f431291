//! The lines of a file, in bounded memory, and what is wrong with each.

use std::io;
use std::ops::Range;

use super::LINE_BYTES_MAX;
use super::finding::Kind;
use crate::domain::Domain;
use crate::event::{self, LineFault, LineForm};
use crate::storage::layout::{FileNames, Owner};

/// An integer of fewer digits fits a double.
const DOUBLE_DIGITS: usize = 309;
/// Of more digits Python reads none by itself (`sys.int_info.default_max_str_digits`).
const PYTHON_DIGITS_MAX: usize = 4300;

pub(super) const CHUNK_BYTES: usize = 256 << 10;

/// Where lines come from.
pub(super) trait Bytes {
    /// Reads up to as many bytes as fit, at an offset; 0 at the end.
    fn read(&mut self, buf: &mut [u8], at: u64) -> io::Result<usize>;

    /// How many bytes from the front of `range` on are zeros that need not be read.
    fn hole(&mut self, _range: Range<u64>) -> io::Result<u64> {
        Ok(0)
    }
}

/// All of it is read.
impl<F: FnMut(&mut [u8], u64) -> io::Result<usize>> Bytes for F {
    fn read(&mut self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self(buf, at)
    }
}

/// A line, as far as it is kept.
pub(super) struct Line<'a> {
    pub start: u64,
    /// Without its newline.
    pub len: u64,
    /// `None`: too long to be kept, or bad already by its zero bytes.
    pub bytes: Option<&'a [u8]>,
    /// The first zero byte and how many there are; only where `bytes` is `None`.
    pub zeros: Option<(u64, u64)>,
    pub ended: bool,
}

/// The lines of a part of a file, one after the other.
pub(super) struct Lines {
    buf: Vec<u8>,
    /// What of `buf` is not yet taken.
    rest: Range<usize>,
    /// Offset of the end of `rest` in the file.
    at: u64,
    end: u64,
    /// The beginning of a line that did not fit into one chunk.
    carry: Vec<u8>,
}

impl Lines {
    pub(super) fn new(start: u64, end: u64) -> Lines {
        let buf = vec![0; CHUNK_BYTES.min(end.saturating_sub(start) as usize)];
        Lines { buf, rest: 0..0, at: start, end, carry: Vec::new() }
    }

    pub(super) fn next(&mut self, from: &mut dyn Bytes) -> io::Result<Option<Line<'_>>> {
        self.carry.clear();
        let start = self.at - self.rest.len() as u64;
        let mut len = 0u64;
        let mut kept = true;
        let mut zeros: Option<(u64, u64)> = None;
        let ended = loop {
            if self.rest.is_empty() && !self.fill(from)? {
                break false;
            }
            let piece = &self.buf[self.rest.clone()];
            let newline = memchr::memchr(b'\n', piece);
            if let (Some(at), 0) = (newline, len) {
                // The usual case: nothing is copied.
                let whole = self.rest.start..self.rest.start + at;
                self.rest.start = whole.end + 1;
                let bytes = Some(&self.buf[whole]);
                return Ok(Some(Line { start, len: at as u64, bytes, zeros: None, ended: true }));
            }
            let piece = &piece[..newline.unwrap_or(piece.len())];
            let mut only_zeros = false;
            if let Some(at) = memchr::memchr(0, piece) {
                let count = memchr::memchr_iter(0, piece).count() as u64;
                let (first, before) = zeros.unwrap_or((start + len + at as u64, 0));
                zeros = Some((first, before + count));
                only_zeros = newline.is_none() && count == piece.len() as u64;
            }
            kept &= zeros.is_none() && self.carry.len() + piece.len() <= LINE_BYTES_MAX;
            if kept {
                self.carry.extend_from_slice(piece);
            } else {
                self.carry = Vec::new();
            }
            len += piece.len() as u64;
            self.rest.start += piece.len() + usize::from(newline.is_some());
            if newline.is_some() {
                break true;
            }
            if let (true, Some((_, count))) = (only_zeros, &mut zeros) {
                let hole = from.hole(self.at..self.end)?;
                (*count, len, self.at) = (*count + hole, len + hole, self.at + hole);
            }
        };
        if len == 0 && !ended {
            return Ok(None);
        }
        Ok(Some(Line { start, len, bytes: kept.then_some(&self.carry[..]), zeros, ended }))
    }

    /// The next chunk; false at the end.
    fn fill(&mut self, from: &mut dyn Bytes) -> io::Result<bool> {
        let want = self.buf.len().min((self.end - self.at.min(self.end)) as usize);
        let n = from.read(&mut self.buf[..want], self.at)?;
        self.rest = 0..n;
        self.at += n as u64;
        Ok(n > 0)
    }
}

/// Tells what is wrong with the lines of one data file.
pub(super) struct Judge {
    /// The name of the data file.
    data: String,
    /// The domain of the file, as soon as it is known.
    known: Option<Domain>,
}

impl Judge {
    pub(super) fn new(data: &str, owner: &Owner) -> Judge {
        let known = match owner {
            Owner::Domain(domain) => Some(domain.clone()),
            Owner::Shortened => None,
        };
        Judge { data: data.to_owned(), known }
    }

    /// What is not right with the line: kind, offset, number of bytes.
    pub(super) fn judge(&mut self, line: &Line<'_>) -> Option<(Kind, u64, Option<u64>)> {
        let all = |kind| Some((kind, line.start, Some(line.len)));
        let Some(bytes) = line.bytes else {
            return match line.zeros {
                Some((at, zeros)) => Some((Kind::ZeroBytes, at, Some(zeros))),
                None => all(Kind::LongLine),
            };
        };
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(e) => return Some((Kind::InvalidUtf8, line.start + e.valid_up_to() as u64, None)),
        };
        if self.known.as_ref().is_some_and(|domain| event::check_line(text, domain).is_ok()) {
            return number_note(bytes).and_then(all);
        }
        if let Some(at) = memchr::memchr(0, bytes) {
            let zeros = memchr::memchr_iter(0, bytes).count() as u64;
            return Some((Kind::ZeroBytes, line.start + at as u64, Some(zeros)));
        }
        match event::read_line(text) {
            Err(LineFault::Blank) => all(Kind::BlankLine),
            Err(LineFault::NotJson) => all(Kind::InvalidJson),
            Err(LineFault::NotAnObject) => all(Kind::NotAnObject),
            Err(LineFault::DomainMissing) => all(Kind::DomainMissing),
            Ok(event) if !self.is_ours(&event.domain) => all(Kind::OtherDomain),
            Ok(event) => match event.form {
                LineForm::Lenient => all(Kind::LenientJson),
                form => number_note(bytes).or((form == LineForm::Foreign).then_some(Kind::ForeignForm)).and_then(all),
            },
        }
    }

    fn is_ours(&mut self, domain: &str) -> bool {
        if let Some(known) = &self.known {
            return known.as_str() == domain;
        }
        // A shortened name: the first event that fits tells the domain.
        let parsed = Domain::parse(domain).ok().filter(|parsed| parsed.as_str() == domain);
        self.known = parsed.filter(|parsed| FileNames::of(parsed).data == self.data);
        self.known.is_some()
    }
}

/// What is to be noted about the integers of a line that is sound JSON. The service takes them of any length, and other
/// readers do not: a number that no double holds is one for them, however it is spelled.
fn number_note(line: &[u8]) -> Option<Kind> {
    // Every so many bytes one lies in a run that is long enough: nearly all lines are seen to have none by that.
    let (mut note, mut at, mut texts) = (None, 0, Texts::default());
    while at + DOUBLE_DIGITS <= line.len() {
        let probe = at + DOUBLE_DIGITS - 1;
        let before = line[at..=probe].iter().rev().take_while(|b| b.is_ascii_digit()).count();
        let start = probe + 1 - before;
        let end = probe + 1 + line[probe + 1..].iter().take_while(|b| b.is_ascii_digit()).count();
        if before > 0 && end - start >= DOUBLE_DIGITS && is_integer(line, start, end) && !texts.hold(line, start) {
            if end - start > PYTHON_DIGITS_MAX {
                return Some(Kind::LongNumber);
            }
            let text = std::str::from_utf8(&line[start..end]).unwrap_or_default();
            if text.parse::<f64>().is_ok_and(f64::is_infinite) {
                note = Some(Kind::LenientJson);
            }
        }
        at = end.max(probe + 1);
    }
    note
}

/// Is a run of digits no part of a real number?
fn is_integer(line: &[u8], start: usize, end: usize) -> bool {
    let before = &line[..start];
    !matches!(line.get(end), Some(b'.' | b'e' | b'E'))
        && !matches!(before.last(), Some(b'.' | b'e' | b'E' | b'+'))
        && !before.ends_with(b"e-")
        && !before.ends_with(b"E-")
}

/// Which places of a sound JSON text lie in its strings; asked from the front to the back.
#[derive(Default)]
struct Texts {
    seen: usize,
    inside: bool,
}

impl Texts {
    fn hold(&mut self, line: &[u8], at: usize) -> bool {
        while self.seen < at {
            match line[self.seen] {
                b'"' => self.inside = !self.inside,
                // What is escaped ends nothing.
                b'\\' => self.seen += 1,
                _ => {}
            }
            self.seen += 1;
        }
        self.inside
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, a number that a double cannot hold would be told when it has an exponent only, or a text of digits taken
    /// for one.
    #[test]
    fn integers_beyond_a_double_and_beyond_python_are_noted() {
        let nines = |n: usize| "9".repeat(n);
        for (value, want) in [
            (nines(308), None),
            (nines(309), Some(Kind::LenientJson)),
            (format!("-{}", nines(309)), Some(Kind::LenientJson)),
            (format!("1{}", "0".repeat(308)), None),
            (nines(4300), Some(Kind::LenientJson)),
            (nines(4301), Some(Kind::LongNumber)),
            (format!("\"{}\"", nines(5000)), None),
            (format!("\"\\\\\\\"{}\"", nines(5000)), None),
            (format!("0.{}", nines(5000)), None),
            (format!("[\"x\",{}]", nines(400)), Some(Kind::LenientJson)),
            (format!("[{},{}]", nines(400), nines(5000)), Some(Kind::LongNumber)),
        ] {
            for pad in [0, 1, 7, 300, 309, 310] {
                let line = format!("{{\"p\":\"{}\",\"n\":{value},\"domain\":\"a\"}}", "x".repeat(pad));
                assert_eq!(number_note(line.as_bytes()), want, "{pad} {value:.20}");
            }
        }
    }
}
