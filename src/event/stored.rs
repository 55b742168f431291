//! Lines of data files, whoever wrote them.

use super::memory::Memory;
use super::parser::{Facts, Field, Parser, token_text};
use super::{Batch, EventError, Format, Reason};
use crate::domain::Domain;
use crate::json::{Length, Scanner};

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
    let mut out = Length::default();
    let mut scanner = Scanner::new(line, &mut out);
    scanner.space();
    if scanner.peek().is_none() {
        return Err(LineFault::Blank);
    }
    let is_object = scanner.peek() == Some(b'{');
    let mut hold = |_| Ok(());
    let mut parser = Parser::new(None, Memory::new(&mut hold));
    let facts = if is_object {
        parser.object(&mut scanner, line, true).map_err(|_| LineFault::NotJson)?
    } else {
        scanner.value(0).map_err(|_| LineFault::NotJson)?;
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
