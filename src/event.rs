//! `Batch`: a checked request body, as the exact bytes to append.
//!
//! [`Batch::parse`] is the only place that knows what an event is. It makes one pass over the text
//! (see [`crate::json`]), in the order of checks of the original: all of the JSON first, then the
//! domain of the payload, then item by item object, `summary`, `domain`.
//!
//! Most events need nothing but a check and a copy: no key is escaped, none comes twice, and `domain`
//! is missing or spelled as it is stored. Their members are not noted, only a hash of each name. All
//! others are passed a second time, and may be written anew.
//!
//! What a body becomes may be many times as long as the body. So it has a limit, and its memory is asked for before it
//! is taken. Where the text itself does not bound the output closely, a first pass only measures it, and a second one
//! writes into a buffer of exactly that size ([`Batch::parse_within`]).

mod memory;
mod names;
mod parser;
mod stored;
#[cfg(test)]
mod tests;

use crate::domain::{DOMAIN_BYTES_MAX, Domain};
use crate::json::{BLOCK, Length};

pub use memory::{Hold, Shortage};
pub use stored::{LineFault, LineForm, StoredLine, check_line, read_line};

use memory::Memory;
use names::TEXT_BYTES_MAX;
use parser::{Parser, Stop, domain_bytes};

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

/// What a body may become at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub events_max: u64,
    /// Of all lines together, each with its domain and its newline.
    pub bytes_max: usize,
}

impl Limits {
    /// For texts that are nobody's request.
    pub const NONE: Limits = Limits { events_max: u64::MAX, bytes_max: usize::MAX };
}

/// Why a body becomes no batch. Nothing of it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    Event(EventError),
    /// It would become more than its [`Limits`] allow; apart from that it is sound.
    TooLarge,
    /// There is no memory for what it becomes.
    Memory(Shortage),
}

impl From<Stop> for Refusal {
    fn from(stop: Stop) -> Refusal {
        match stop {
            Stop::Event(error) => Refusal::Event(error),
            Stop::Shortage(shortage) => Refusal::Memory(shortage),
            Stop::NoRoom => Refusal::TooLarge,
        }
    }
}

/// Checked events of one domain, ready to append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    domain: Domain,
    lines: Vec<u8>,
    events: u64,
}

/// Texts up to this size are written in one pass whose output grows; of larger ones the size of the output is known
/// before it is written.
const GROWING_BYTES_MAX: usize = 64 << 10;

/// Of a batch that waits; more than that, and more than its lines, is given back.
const SPARE_BYTES_MAX: usize = 1 << 10;

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
        Batch::parse_within(text, format, domain, Limits::NONE, &mut |_| Ok(())).map_err(|refusal| match refusal {
            Refusal::Event(error) => error,
            // Texts over 2 GiB, which no request and no line of ours is.
            Refusal::TooLarge | Refusal::Memory(_) => EventError { reason: Reason::InvalidPayload, line: None },
        })
    }

    /// As [`Batch::parse`], within limits. `hold` is asked for memory, in bytes on top of the text, before it is taken;
    /// what the batch holds in the end is [`Batch::memory_bytes`].
    ///
    /// # Errors
    /// [`Refusal`]. What is wrong with the text comes before what is too large; a shortage comes whenever it is met.
    pub fn parse_within(
        text: &str,
        format: Format,
        domain: Option<Domain>,
        limits: Limits,
        hold: &mut Hold<'_>,
    ) -> Result<Option<Batch>, Refusal> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(Refusal::TooLarge);
        }
        let named = domain.is_some();
        let mut parser = Parser::new(domain, Memory::new(hold));
        let mut lines = Vec::new();
        let capacity = first_capacity(text, format, parser.domain.as_ref());
        let one_pass = match capacity {
            Some(bytes)
                if bytes <= limits.bytes_max
                    && parser.memory.lines(bytes).is_ok()
                    && lines.try_reserve_exact(bytes).is_ok() =>
            {
                parser.body(text, format, &mut lines, limits.bytes_max)
            }
            _ => Err(Stop::NoRoom),
        };
        match one_pass {
            Err(Stop::NoRoom) => {
                lines = Vec::new();
                parser.memory.no_lines();
                two_passes(&mut parser, text, format, named, limits, &mut lines)?;
            }
            other => other?,
        }
        if parser.events > limits.events_max || lines.len() > limits.bytes_max {
            return Err(Refusal::TooLarge);
        }
        let Parser { domain: Some(domain), events: 1.., .. } = parser else { return Ok(None) };
        if lines.capacity() > 2 * lines.len() + SPARE_BYTES_MAX {
            lines.shrink_to_fit();
        }
        Ok(Some(Batch { domain, lines, events: parser.events }))
    }

    /// The domain of all events.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// The bytes to append: whole lines, each with its newline.
    pub fn lines(&self) -> &[u8] {
        &self.lines
    }

    /// What its lines take in memory.
    pub fn memory_bytes(&self) -> usize {
        self.lines.capacity()
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

/// Measures, then writes into a buffer of that size.
fn two_passes(
    parser: &mut Parser<'_>,
    text: &str,
    format: Format,
    named: bool,
    limits: Limits,
    lines: &mut Vec<u8>,
) -> Result<(), Refusal> {
    let given = parser.domain.clone().filter(|_| named);
    parser.begin_again(given.clone());
    let mut length = Length::default();
    parser.body(text, format, &mut length, usize::MAX)?;
    let bytes = crate::json::Output::len(&length);
    if bytes > limits.bytes_max || parser.events > limits.events_max {
        return Err(Refusal::TooLarge);
    }
    if parser.events > 0 {
        parser.memory.lines(length.most()).map_err(Refusal::Memory)?;
        lines.try_reserve_exact(length.most()).map_err(|_| Refusal::Memory(Shortage::NotNow))?;
        parser.begin_again(given);
        parser.body(text, format, lines, usize::MAX)?;
    }
    Ok(())
}

/// What the output of a text takes at first: of a short one what events usually become, or what its lines can become
/// at most; of a longer one what it can become at most. `None`: that is so much more than the text that it had better
/// be measured.
fn first_capacity(text: &str, format: Format, domain: Option<&Domain>) -> Option<usize> {
    if text.len() <= GROWING_BYTES_MAX {
        let usual = text.len() + text.len() / 8 + 64 + domain.map_or(0, |domain| domain.as_str().len());
        // One line that is counted costs less than output that moves.
        let counted = domain.filter(|_| format == Format::Lines).map(|domain| {
            let lines = 1 + memchr::memchr_iter(b'\n', text.as_bytes()).count();
            text.len() + lines * domain_bytes(domain) + 2 * BLOCK
        });
        return Some(counted.filter(|&bytes| bytes <= 2 * text.len()).unwrap_or(usual));
    }
    // Every event begins with a brace, and ends a line if it stands on one.
    let mark = if format == Format::Lines { b'\n' } else { b'{' };
    let events = 1 + memchr::memchr_iter(mark, text.as_bytes()).count();
    let own_domain = || {
        let mut hold = |_| Ok(());
        let mut parser = Parser::new(None, Memory::new(&mut hold));
        parser.first_item(text, format).ok()?;
        parser.domain
    };
    let domain = domain.cloned().or_else(own_domain);
    let bytes = events.checked_mul(domain.map_or(DOMAIN_BYTES_MAX, |domain| domain_bytes(&domain)))?;
    (bytes <= text.len()).then(|| text.len() + bytes + 2 * BLOCK)
}
