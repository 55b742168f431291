//! The bytes of an answer, as hyper would write it.

use std::cell::RefCell;
use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::response::Response;
use futures_util::FutureExt as _;
use http::header::{HeaderValue, LINK};
use http_body_util::BodyExt as _;

use super::super::edge::RequestId;
use super::super::fields::REQUEST_ID;
use super::super::ingest::{self, Route};
use super::super::limits::Standing;

/// Room for a good answer with all its fields.
const ACCEPTED_BYTES: usize = 512;

/// Writes the good answer of an ingest route. `keep_alive`: how long the connection waits for another request; `None`
/// if it takes none.
pub(crate) fn write_accepted(
    route: Route,
    standing: Option<&Standing>,
    request_id: &RequestId,
    keep_alive: Option<&HeaderValue>,
    out: &mut Vec<u8>,
) {
    let now = SystemTime::now();
    out.reserve(ACCEPTED_BYTES);
    out.extend_from_slice(match route {
        Route::V1 => b"HTTP/1.1 202 Accepted\r\ncontent-type: text/plain; charset=utf-8\r\n",
        Route::Old => b"HTTP/1.1 200 OK\r\ncontent-type: text/plain; charset=utf-8\r\n",
    });
    if let Some(standing) = standing {
        number(out, b"x-ratelimit-limit: ", standing.limit.into());
        number(out, b"\r\nx-ratelimit-remaining: ", standing.remaining.into());
        number(out, b"\r\nx-ratelimit-reset: ", standing.reset_s(now));
        out.extend_from_slice(b"\r\n");
    }
    field(out, REQUEST_ID.as_str(), request_id.as_bytes());
    if route == Route::Old {
        field(out, ingest::DEPRECATED.as_str(), ingest::DEPRECATION.as_bytes());
        field(out, ingest::SUNSETS.as_str(), ingest::SUNSET.as_bytes());
        field(out, LINK.as_str(), ingest::SUCCESSOR.as_bytes());
    }
    match keep_alive {
        Some(value) => field(out, "keep-alive", value.as_bytes()),
        None => out.extend_from_slice(b"connection: close\r\n"),
    }
    end(out, ingest::OK.as_bytes(), now);
}

/// Writes any answer whose body is in memory.
pub(crate) fn write(response: Response, out: &mut Vec<u8>) {
    let (parts, body) = response.into_parts();
    // It waits for nothing.
    let body = body.collect().now_or_never().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
    let reason = parts.status.canonical_reason().unwrap_or("<none>");
    // Writing to memory cannot fail.
    let _ = write!(out, "HTTP/1.1 {} {reason}\r\n", parts.status.as_str());
    for (name, value) in &parts.headers {
        field(out, name.as_str(), value.as_bytes());
    }
    end(out, &body, SystemTime::now());
}

fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn number(out: &mut Vec<u8>, name: &[u8], value: u64) {
    out.extend_from_slice(name);
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

fn end(out: &mut Vec<u8>, body: &[u8], now: SystemTime) {
    number(out, b"content-length: ", body.len() as u64);
    out.extend_from_slice(b"\r\ndate: ");
    date(out, now);
    out.extend_from_slice(b"\r\n\r\n");
    out.extend_from_slice(body);
}

/// The time as text, which is made once a second.
#[derive(Default)]
struct Date {
    second: u64,
    text: Vec<u8>,
}

fn date(out: &mut Vec<u8>, now: SystemTime) {
    thread_local! {
        static DATE: RefCell<Date> = RefCell::default();
    }
    let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    DATE.with_borrow_mut(|date| {
        if date.second != second || date.text.is_empty() {
            date.second = second;
            date.text = httpdate::fmt_http_date(now).into_bytes();
        }
        out.extend_from_slice(&date.text);
    });
}
