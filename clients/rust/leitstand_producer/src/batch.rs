//! Events become the lines of requests, within the limits of one request.

use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;

use crate::error::JsonError;
use crate::exact::{self, Notes, OwnDomain};

/// Longest event, without its newline.
pub(crate) const EVENT_BYTES_MAX: usize = 1_000_000;
/// Most bytes of a request of several events.
pub(crate) const BATCH_BYTES_MAX: usize = 512 * 1024;
/// Most events of a request.
pub(crate) const BATCH_EVENTS_MAX: usize = 10_000;

/// The events of one request: a JSON object a line, each with its newline.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    pub lines: Bytes,
    pub events: u64,
    /// Of all its events, as the service writes it. `None`: nobody has named one.
    pub domain: Option<Arc<str>>,
}

/// Gathers the events of one request, all of one domain.
pub(crate) struct Encoder {
    lines: Vec<u8>,
    events: usize,
    bytes_max: usize,
    events_max: usize,
    notes: Notes,
    /// Of the client; events must not name another one.
    fixed: Option<Arc<str>>,
    /// Of the call: that of the client, else of its first event. Events without one have this.
    of_call: Option<Arc<str>>,
    /// Of the events that are gathered.
    of_batch: Option<Arc<str>>,
    is_first: bool,
}

impl Encoder {
    pub fn new(bytes_max: usize, events_max: usize, domain: Option<&str>) -> Encoder {
        let domain: Option<Arc<str>> = domain.map(Arc::from);
        Encoder {
            lines: Vec::new(),
            events: 0,
            bytes_max,
            events_max,
            notes: Notes::default(),
            of_call: domain.clone(),
            of_batch: domain.clone(),
            fixed: domain,
            is_first: true,
        }
    }

    /// Events that are gathered and not yet handed out.
    pub fn events(&self) -> u64 {
        self.events as u64
    }

    /// Adds an event. Hands out what was gathered once it is full, or would be too full with this event, or
    /// if this event is of another domain.
    pub fn push<T: Serialize + ?Sized>(&mut self, event: &T) -> Result<Option<Batch>, JsonError> {
        let start = self.lines.len();
        let domain = self.write(start, event).inspect_err(|_| self.lines.truncate(start))?;
        if self.is_first {
            self.is_first = false;
            self.of_call.clone_from(&domain);
        }
        let is_of_another = domain != self.of_batch;
        if (is_of_another || self.lines.len() > self.bytes_max) && self.events > 0 {
            let last = self.lines.split_off(start);
            let full = self.take();
            self.lines.extend_from_slice(&last);
            self.events = 1;
            self.of_batch = domain;
            return Ok(full);
        }
        if is_of_another {
            self.of_batch = domain;
        }
        self.events += 1;
        if self.events >= self.events_max || self.lines.len() >= self.bytes_max {
            return Ok(self.take());
        }
        Ok(None)
    }

    /// Writes a line; the domain that its event belongs to.
    fn write<T: Serialize + ?Sized>(&mut self, start: usize, event: &T) -> Result<Option<Arc<str>>, JsonError> {
        exact::write(&mut self.lines, event, &self.notes)?;
        let bytes = self.lines.len() - start;
        if bytes > EVENT_BYTES_MAX {
            return Err(JsonError::new(format!("an event has {bytes} bytes; the limit is {EVENT_BYTES_MAX}")));
        }
        if self.lines.get(start) != Some(&b'{') {
            return Err(JsonError::new("an event must be a JSON object"));
        }
        self.lines.push(b'\n');
        match self.notes.domain() {
            OwnDomain::Absent => Ok(self.of_call.clone()),
            OwnDomain::NoText => Err(JsonError::new("the domain of an event must be a string")),
            OwnDomain::Text if self.of_batch.as_deref() == Some(&*self.notes.domain_text()) => {
                Ok(self.of_batch.clone())
            }
            OwnDomain::Text => {
                let named = self.notes.domain_text();
                let domain = normal_domain(&named)
                    .map(Arc::from)
                    .ok_or_else(|| JsonError::new(format!("an event names the domain {named:?}, which is none")))?;
                match &self.fixed {
                    Some(fixed) if *fixed != domain => Err(JsonError::new(format!(
                        "an event names the domain {domain}, but this client sends to {fixed}"
                    ))),
                    _ => Ok(Some(domain)),
                }
            }
        }
    }

    /// Hands out what was gathered, if anything.
    pub fn take(&mut self) -> Option<Batch> {
        if self.events == 0 {
            return None;
        }
        // The next batch will be about as long as this one; without the memory it grows as it can.
        let mut next = Vec::new();
        let _ = next.try_reserve(self.lines.len() + self.lines.len() / 16);
        let lines = std::mem::replace(&mut self.lines, next);
        let events = std::mem::take(&mut self.events) as u64;
        Some(Batch { lines: lines.into(), events, domain: self.of_batch.clone() })
    }
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
        let mut encoder = Encoder::new(100, 7, None);
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
        let mut encoder = Encoder::new(BATCH_BYTES_MAX, BATCH_EVENTS_MAX, None);
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
        let mut encoder = Encoder::new(BATCH_BYTES_MAX, BATCH_EVENTS_MAX, None);
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
    }

    /// Broken, an event would be stored in another domain than its own, or cut a feed off in the middle.
    #[test]
    fn a_feed_is_cut_where_its_domain_changes() {
        let cut = |domain: Option<&str>, events: &[serde_json::Value]| {
            let mut encoder = Encoder::new(BATCH_BYTES_MAX, BATCH_EVENTS_MAX, domain);
            let mut batches = Vec::new();
            for event in events {
                batches.extend(encoder.push(event).map_err(|error| error.to_string())?);
            }
            batches.extend(encoder.take());
            Ok(batches
                .into_iter()
                .map(|batch| (batch.domain.map(|domain| domain.to_string()), batch.events))
                .collect::<Vec<_>>())
        };
        let of = |domain: &str| json!({"domain": domain});
        let a = Some("a.example".to_owned());
        let b = Some("b.example".to_owned());
        let mixed = [of("a.example"), json!({}), of(" B.Example "), of("b.example"), json!({}), of("A.example")];
        let batches: Result<_, String> = cut(None, &mixed);
        assert_eq!(batches.unwrap(), [(a.clone(), 2), (b, 2), (a.clone(), 2)]);
        assert_eq!(
            cut(None, &[json!({}), of("a.example"), json!({})]).unwrap(),
            [(None, 1), (a.clone(), 1), (None, 1)]
        );
        assert_eq!(cut(Some("a.example"), &[json!({}), of("A.example")]).unwrap(), [(a, 2)]);
        for bad in [of("b.example"), of(""), of("a b"), json!({"domain": null}), json!({"domain": 7})] {
            let told = cut(Some("a.example"), &[json!({}), bad]).unwrap_err();
            assert!(told.contains("domain"), "{told}");
        }
    }
}
