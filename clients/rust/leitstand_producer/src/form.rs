//! How a server takes events: the rules of PROTOCOL.md for servers of old.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU8, Ordering};

use bytes::Bytes;
use http::header::HeaderValue;

use crate::batch::Batch;
use crate::error::{Failure, Written};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const NDJSON: HeaderValue = HeaderValue::from_static("application/x-ndjson");

/// A form of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// `/v1/ingest`; several events as NDJSON.
    New,
    /// `/v1/ingest`; several events as a JSON array.
    Array,
    /// `/ingest/{domain}`, the path before `/v1`; several events as a JSON array.
    Old,
}

impl Form {
    const ALL: [Form; 3] = [Form::New, Form::Array, Form::Old];

    /// The form to try after an answer to this one; itself if there is no other.
    pub fn after(self, failure: &Failure, batch: &Batch) -> Form {
        match failure.status {
            // An answer that is perhaps to another request says nothing about this one.
            _ if failure.written == Written::Maybe => self,
            Some(404 | 405) if self == Form::Old => Form::New,
            Some(404 | 405) if batch.domain.is_some() => Form::Old,
            Some(415) if self == Form::New && batch.events > 1 => Form::Array,
            _ => self,
        }
    }

    /// What follows the base address. A normal domain needs no escapes.
    pub fn target(self, batch: &Batch) -> Cow<'static, str> {
        match (self, batch.domain.as_deref()) {
            (Form::Old, Some(domain)) => format!("/ingest/{domain}").into(),
            (_, Some(domain)) => format!("/v1/ingest?domain={domain}").into(),
            (_, None) => "/v1/ingest".into(),
        }
    }

    /// The body and its type.
    pub fn body(self, batch: &Batch) -> (HeaderValue, Bytes) {
        if batch.events == 1 {
            let end = batch.lines.len() - usize::from(batch.lines.ends_with(b"\n"));
            return (JSON, batch.lines.slice(..end));
        }
        if self == Form::New {
            return (NDJSON, batch.lines.clone());
        }
        // A line feed is only at the end of an event.
        let mut array = Vec::with_capacity(batch.lines.len() + 2);
        array.push(b'[');
        array.extend(batch.lines.iter().map(|b| if *b == b'\n' { b',' } else { *b }));
        if array.last() == Some(&b',') {
            array.pop();
        }
        array.push(b']');
        (JSON, array.into())
    }
}

/// The form that was good the last time.
#[derive(Default)]
pub(crate) struct Known(AtomicU8);

impl Known {
    pub fn form(&self, batch: &Batch) -> Form {
        match Form::ALL[usize::from(self.0.load(Ordering::Relaxed)) % Form::ALL.len()] {
            Form::Old if batch.domain.is_none() => Form::New,
            form => form,
        }
    }

    pub fn set(&self, form: Form) {
        self.0.store(form as u8, Ordering::Relaxed);
    }
}
