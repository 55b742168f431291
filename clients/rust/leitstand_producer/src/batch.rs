//! Events become the lines of requests, within the limits of one request.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::JsonError;

/// Longest event, without its newline.
pub(crate) const EVENT_BYTES_MAX: usize = 1_000_000;
/// Most bytes of a request of several events.
pub(crate) const BATCH_BYTES_MAX: usize = 512 * 1024;
/// Most events of a request.
pub(crate) const BATCH_EVENTS_MAX: usize = 1_000;

/// The events of one request: a JSON object a line, each with its newline.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    pub lines: Bytes,
    pub events: u64,
}

/// Gathers the events of one request.
pub(crate) struct Encoder {
    lines: Vec<u8>,
    events: usize,
    bytes_max: usize,
    events_max: usize,
}

impl Encoder {
    pub fn new(bytes_max: usize, events_max: usize) -> Encoder {
        Encoder { lines: Vec::new(), events: 0, bytes_max, events_max }
    }

    /// Events that are gathered and not yet handed out.
    pub fn events(&self) -> u64 {
        self.events as u64
    }

    /// Adds an event. Hands out what was gathered once it is full, or would be too full with this event.
    pub fn push<T: Serialize + ?Sized>(&mut self, event: &T) -> Result<Option<Batch>, JsonError> {
        let start = self.lines.len();
        if let Err(error) = self.write(start, event) {
            self.lines.truncate(start);
            return Err(error);
        }
        if self.lines.len() > self.bytes_max && self.events > 0 {
            let last = self.lines.split_off(start);
            let full = self.take();
            self.lines.extend_from_slice(&last);
            self.events = 1;
            return Ok(full);
        }
        self.events += 1;
        if self.events == self.events_max || self.lines.len() >= self.bytes_max {
            return Ok(self.take());
        }
        Ok(None)
    }

    fn write<T: Serialize + ?Sized>(&mut self, start: usize, event: &T) -> Result<(), JsonError> {
        serde_json::to_writer(&mut self.lines, event)?;
        let bytes = self.lines.len() - start;
        if bytes > EVENT_BYTES_MAX {
            return Err(JsonError::new(format!("an event has {bytes} bytes; the limit is {EVENT_BYTES_MAX}")));
        }
        if self.lines[start] != b'{' {
            return Err(JsonError::new("an event must be a JSON object"));
        }
        self.lines.push(b'\n');
        Ok(())
    }

    /// Hands out what was gathered, if anything.
    pub fn take(&mut self) -> Option<Batch> {
        if self.events == 0 {
            return None;
        }
        // The next batch will be about as long as this one.
        let next = Vec::with_capacity(self.lines.len() + self.lines.len() / 16);
        let lines = std::mem::replace(&mut self.lines, next);
        Some(Batch { lines: lines.into(), events: std::mem::take(&mut self.events) as u64 })
    }
}

/// The `domain` of the first event, which is what the service goes by when the address names none.
pub(crate) fn first_domain(lines: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Head {
        domain: Option<String>,
    }
    let first = lines.split(|byte| *byte == b'\n').next()?;
    serde_json::from_slice::<Head>(first).ok()?.domain
}

/// A domain as the service writes it, or `None` if it would refuse it.
pub(crate) fn normal_domain(text: &str) -> Option<String> {
    let domain = text.trim().to_lowercase();
    let label_is_good = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    (domain.len() <= 253 && domain.split('.').all(label_is_good)).then_some(domain)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Broken, a request would be refused for its size, or events would be lost between two requests.
    #[test]
    fn batches_hold_every_event_once_within_the_limits() {
        let mut encoder = Encoder::new(100, 7);
        let mut batches = Vec::new();
        let events: Vec<_> = (0..200).map(|n| json!({"n": n, "pad": "x".repeat(n % 60)})).collect();
        for event in &events {
            batches.extend(encoder.push(event).unwrap());
        }
        batches.extend(encoder.take());
        assert_eq!(encoder.events(), 0);
        let mut lines = Vec::new();
        for batch in &batches {
            let of_batch: Vec<_> = std::str::from_utf8(&batch.lines).unwrap().lines().map(str::to_owned).collect();
            assert_eq!(of_batch.len() as u64, batch.events);
            assert!(batch.events <= 7);
            assert!(batch.lines.len() <= 100, "{}", batch.lines.len());
            lines.extend(of_batch);
        }
        assert_eq!(lines, events.iter().map(ToString::to_string).collect::<Vec<_>>());
    }

    /// Broken, a refused event would leave a piece of itself in the next request.
    #[test]
    fn a_refused_event_leaves_no_trace() {
        let mut encoder = Encoder::new(BATCH_BYTES_MAX, BATCH_EVENTS_MAX);
        assert!(encoder.push(&json!({"n": 1})).unwrap().is_none());
        let long = json!({"pad": "x".repeat(EVENT_BYTES_MAX)});
        let error = encoder.push(&long).unwrap_err().to_string();
        assert!(error.contains("1000000"), "{error}");
        assert!(encoder.push(&json!([1])).is_err());
        assert!(encoder.push(&json!({"n": 2})).unwrap().is_none());
        let batch = encoder.take().unwrap();
        assert_eq!((&batch.lines[..], batch.events), (&b"{\"n\":1}\n{\"n\":2}\n"[..], 2));
    }

    /// Broken, an event just within the limit could not be sent at all.
    #[test]
    fn a_large_event_goes_alone() {
        let mut encoder = Encoder::new(BATCH_BYTES_MAX, BATCH_EVENTS_MAX);
        let large = json!({"pad": "x".repeat(EVENT_BYTES_MAX - 10)});
        assert_eq!(large.to_string().len(), EVENT_BYTES_MAX);
        assert!(encoder.push(&json!({})).unwrap().is_none());
        assert_eq!(encoder.push(&large).unwrap().unwrap().events, 1);
        assert_eq!(encoder.push(&json!({})).unwrap().unwrap().lines.len(), EVENT_BYTES_MAX + 1);
        assert_eq!(encoder.take().unwrap().events, 1);
    }

    /// Broken, the name of a directory in the spool could lead out of it.
    #[test]
    fn only_plain_domains_name_a_directory() {
        assert_eq!(normal_domain(" Example.COM\n").as_deref(), Some("example.com"));
        for bad in ["", ".", "..", "../x", "a/b", "a..b", "-a", "a-", "a_b", "ä", &"a".repeat(64), &"a.".repeat(130)] {
            assert_eq!(normal_domain(bad), None, "{bad}");
        }
        assert_eq!(first_domain(b"{\"a\":1,\"domain\":\"X\"}\n{}\n").as_deref(), Some("X"));
        assert_eq!(first_domain(b"{\"domain\":7}\n"), None);
    }
}
