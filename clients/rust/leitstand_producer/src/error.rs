//! Why events did not get through, and what is known about them.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use serde::Deserialize;

use crate::spool::WriteError;

/// Longest piece of an answer in a message.
const SHOWN_CHARS: usize = 300;
/// Most domains in the message of a flush.
const SHOWN_DOMAINS: usize = 10;

/// Why a call failed. The counts and [`written`](ProducerError::written) say what became of its events.
///
/// ```
/// use leitstand_producer::{ProducerClient, ProducerError, Written};
///
/// # fn main() -> Result<(), ProducerError> {
/// // Nobody listens on port 1.
/// let client = ProducerClient::builder("http://127.0.0.1:1").retries(0).build()?;
/// let error = client.send_one(&serde_json::json!({"domain": "example.com"})).unwrap_err();
/// assert!(error.retryable());
/// assert_eq!(error.written(), Written::No);
/// assert_eq!(error.acknowledged(), 0);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
pub enum ProducerError {
    /// The events could not be handed over: no good answer, a wrong setting, or a spool that cannot take them.
    #[error("http error: {0}")]
    Http(#[source] HttpError),
    /// An event cannot be sent as it is: it does not serialise, is no JSON object, or is too large.
    #[error("json error: {0}")]
    Json(#[source] JsonError),
}

/// May events of the failed request be in the file all the same?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// None of them is.
    No,
    /// All of them may be, or none. Sending them again may double them.
    Maybe,
}

/// The step at which it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// A setting is wrong. Nothing was tried.
    Setting,
    /// No connection could be made, or no thread for one.
    Connect,
    /// There was no answer in time.
    Timeout,
    /// The connection ended before a whole answer, or what came is no HTTP.
    Broken,
    /// An answer came, and it is not the good one.
    Answer,
    /// The spool is full, or cannot be read or written. [`written`](ProducerError::written) is `Maybe` if the
    /// service or the spool may have the events.
    Spool,
}

/// How far a feed had come when it failed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    pub acknowledged: u64,
    pub spooled: u64,
    pub failed: u64,
    pub unsent: u64,
}

impl ProducerError {
    /// May events of the failed request be in the file all the same?
    ///
    /// Looks at all attempts: an answer that says "not written" does not take back an earlier attempt
    /// without an answer.
    pub fn written(&self) -> Written {
        match self {
            ProducerError::Http(error) => error.written(),
            ProducerError::Json(_) => Written::No,
        }
    }

    /// Can the same events get through later without a change?
    pub fn retryable(&self) -> bool {
        matches!(self, ProducerError::Http(error) if error.retryable())
    }

    /// The status of the last answer, if one came.
    pub fn status(&self) -> Option<u16> {
        match self {
            ProducerError::Http(error) => error.status(),
            ProducerError::Json(_) => None,
        }
    }

    /// The text of the last answer, as it came.
    pub fn text(&self) -> Option<&str> {
        match self {
            ProducerError::Http(error) => error.text(),
            ProducerError::Json(_) => None,
        }
    }

    /// `X-Request-ID` of the last answer; the log of the service has it too.
    pub fn request_id(&self) -> Option<&str> {
        match self {
            ProducerError::Http(error) => error.request_id(),
            ProducerError::Json(_) => None,
        }
    }

    /// Events of this call that the service acknowledged. They are the first of the feed, and are not sent again.
    pub fn acknowledged(&self) -> u64 {
        self.progress().acknowledged
    }

    /// Events of this call that are in the spool.
    pub fn spooled(&self) -> u64 {
        self.progress().spooled
    }

    /// Events of the request that failed; [`written`](Self::written) is about them.
    pub fn failed(&self) -> u64 {
        self.progress().failed
    }

    /// Events that were taken from the feed and never sent. What the feed still holds is not counted.
    pub fn unsent(&self) -> u64 {
        self.progress().unsent
    }

    /// Of a flush: every domain that failed, and how. The others were delivered, as far as they were tried.
    pub fn failed_domains(&self) -> impl Iterator<Item = (&str, &str)> {
        let domains = match self {
            ProducerError::Http(error) => match error.0.0.more.as_deref() {
                Some(More::Domains(domains)) => Some(domains),
                _ => None,
            },
            ProducerError::Json(_) => None,
        };
        domains.into_iter().flatten().map(|(domain, told)| (domain.as_str(), told.as_str()))
    }

    fn progress(&self) -> &Progress {
        match self {
            ProducerError::Http(error) => &error.0.1,
            ProducerError::Json(error) => &error.progress,
        }
    }

    pub(crate) fn with(mut self, progress: Progress) -> ProducerError {
        match &mut self {
            ProducerError::Http(error) => error.0.1 = progress,
            ProducerError::Json(error) => error.progress = progress,
        }
        self
    }
}

impl From<serde_json::Error> for ProducerError {
    fn from(source: serde_json::Error) -> ProducerError {
        ProducerError::Json(JsonError::from(source))
    }
}

impl From<JsonError> for ProducerError {
    fn from(error: JsonError) -> ProducerError {
        ProducerError::Json(error)
    }
}

impl From<Failure> for ProducerError {
    fn from(failure: Failure) -> ProducerError {
        ProducerError::Http(HttpError(Box::new((failure, Progress::default()))))
    }
}

/// Why the events could not be handed over.
#[derive(Debug)]
pub struct HttpError(Box<(Failure, Progress)>);

impl HttpError {
    /// The step at which it failed.
    pub fn kind(&self) -> Kind {
        self.0.0.kind
    }

    /// As [`ProducerError::status`].
    pub fn status(&self) -> Option<u16> {
        self.0.0.status
    }

    /// As [`ProducerError::text`].
    pub fn text(&self) -> Option<&str> {
        self.0.0.text.as_deref()
    }

    /// As [`ProducerError::request_id`].
    pub fn request_id(&self) -> Option<&str> {
        self.0.0.request_id.as_deref()
    }

    /// As [`ProducerError::retryable`].
    pub fn retryable(&self) -> bool {
        self.0.0.retryable
    }

    /// As [`ProducerError::written`].
    pub fn written(&self) -> Written {
        self.0.0.written
    }
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.0.fmt(f)
    }
}

impl Error for HttpError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.0.source.as_deref().map(|source| source as _)
    }
}

/// Why an event cannot be sent as it is.
#[derive(Debug)]
pub struct JsonError {
    why: String,
    source: Option<serde_json::Error>,
    progress: Progress,
}

impl JsonError {
    pub(crate) fn new(why: impl Into<String>) -> JsonError {
        JsonError { why: why.into(), source: None, progress: Progress::default() }
    }
}

impl From<serde_json::Error> for JsonError {
    fn from(source: serde_json::Error) -> JsonError {
        JsonError { why: source.to_string(), source: Some(source), progress: Progress::default() }
    }
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl Error for JsonError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}

/// One attempt that did not end well, or what remains of several.
#[derive(Debug)]
pub(crate) struct Failure {
    pub kind: Kind,
    /// What happened, where it was not an answer.
    pub what: String,
    pub status: Option<u16>,
    pub text: Option<String>,
    pub request_id: Option<String>,
    pub written: Written,
    pub retryable: bool,
    pub retry_after: Option<Duration>,
    pub source: Option<Box<dyn Error + Send + Sync>>,
    /// Boxed, because it is rare.
    pub more: Option<Box<More>>,
}

/// What else there is to say.
#[derive(Debug)]
pub(crate) enum More {
    /// Of a flush: every domain that failed, and how.
    Domains(Vec<(String, String)>),
    /// What went wrong after that.
    Then(String),
}

impl Failure {
    pub fn new(kind: Kind, what: impl Into<String>, written: Written, retryable: bool) -> Failure {
        Failure {
            kind,
            what: what.into(),
            status: None,
            text: None,
            request_id: None,
            written,
            retryable,
            retry_after: None,
            source: None,
            more: None,
        }
    }

    pub fn setting(name: &str, why: impl fmt::Display) -> Failure {
        Failure::new(Kind::Setting, format!("{name}: {why}"), Written::No, false)
    }

    /// The spool did not take events, after `cause` if there was an attempt.
    pub fn spool(why: impl fmt::Display, cause: Option<Failure>) -> Failure {
        let what = format!("LEITSTAND_SPOOL: {why}");
        match cause {
            Some(cause) => {
                let what = format!("{what}; before that {cause}");
                Failure { kind: Kind::Spool, what, source: None, more: None, ..cause }
            }
            None => Failure::new(Kind::Spool, what, Written::No, true),
        }
    }

    /// One more thing that went wrong on the way out.
    pub fn and_then(mut self, other: Failure) -> Failure {
        if other.written == Written::Maybe {
            self.written = Written::Maybe;
        }
        self.more = Some(Box::new(More::Then(other.to_string())));
        self
    }

    /// The spool took events perhaps, or not.
    pub fn append(why: WriteError, cause: Option<Failure>) -> Failure {
        let WriteError { source, perhaps } = why;
        let text = if perhaps { format!("perhaps not safe on disk: {source}") } else { source.to_string() };
        let failure = Failure::spool(text, cause);
        if perhaps { Failure { written: Written::Maybe, ..failure } } else { failure }
    }

    /// Of a flush; the first failure stands for all in what has one value only. `None` if there is none.
    pub fn of_domains(failures: Vec<(String, Failure)>) -> Option<Failure> {
        let told = failures.iter().map(|(domain, failure)| (domain.clone(), failure.to_string())).collect();
        let is_maybe = failures.iter().any(|(_, failure)| failure.written == Written::Maybe);
        let retryable = failures.iter().any(|(_, failure)| failure.retryable);
        let (_, first) = failures.into_iter().next()?;
        let written = if is_maybe { Written::Maybe } else { Written::No };
        Some(Failure { written, retryable, more: Some(Box::new(More::Domains(told))), ..first })
    }

    pub fn caused_by(mut self, source: impl Error + Send + Sync + 'static) -> Failure {
        self.source = Some(Box::new(source));
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(More::Domains(domains)) = self.more.as_deref() {
            for (at, (domain, told)) in domains.iter().take(SHOWN_DOMAINS).enumerate() {
                write!(f, "{}{domain}: {told}", if at == 0 { "" } else { "; " })?;
            }
            let more = domains.len().saturating_sub(SHOWN_DOMAINS);
            return if more == 0 { Ok(()) } else { write!(f, "; and {more} more domains") };
        }
        f.write_str(&self.what)?;
        if self.kind == Kind::Answer {
            if let Some(status) = self.status {
                write!(f, "{status}")?;
            }
            if let Some(text) = self.text.as_deref().map(str::trim).filter(|text| !text.is_empty()) {
                let detail = detail(text);
                let text = detail.as_deref().unwrap_or(text);
                write!(f, ": {}", text.chars().take(SHOWN_CHARS).collect::<String>())?;
            }
            if let Some(id) = &self.request_id {
                write!(f, " (request {id})")?;
            }
        }
        if let Some(More::Then(then)) = self.more.as_deref() {
            write!(f, "; {then}")?;
        }
        Ok(())
    }
}

/// What a refusal of the service says in words.
fn detail(text: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Problem {
        detail: String,
    }
    text.starts_with('{').then(|| serde_json::from_str::<Problem>(text).ok()).flatten().map(|problem| problem.detail)
}
