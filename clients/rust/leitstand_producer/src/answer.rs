//! An answer, and what it means.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt as _;
use serde::Deserialize;

use crate::error::{Failure, Kind, Written};

/// A longer text is never good, and what comes behind it is not kept.
const TEXT_BYTES_MAX: usize = 64 * 1024;
/// What is read of an answer at most.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// A longer `Retry-After` counts as absent.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// An answer to a request.
pub(crate) struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    text: Bytes,
    /// `text` is all of it.
    is_complete: bool,
    /// Another request may use its connection: it was read to its end, and had said where that is.
    pub ends_clearly: bool,
}

impl Answer {
    /// Reads it to its end, within limits.
    pub async fn read(response: http::Response<hyper::body::Incoming>) -> Result<Answer, hyper::Error> {
        let (head, mut body) = response.into_parts();
        let mut text = BytesMut::new();
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            let Some(data) = frame?.into_data().ok() else { continue };
            length += data.len();
            text.extend_from_slice(&data[..data.len().min(TEXT_BYTES_MAX - text.len())]);
            if length > ANSWER_BYTES_MAX {
                break;
            }
        }
        Ok(Answer {
            status: head.status,
            ends_clearly: length <= ANSWER_BYTES_MAX && head.headers.contains_key(header::CONTENT_LENGTH),
            headers: head.headers,
            is_complete: length == text.len(),
            text: text.freeze(),
        })
    }

    pub fn request_id(&self) -> Option<&HeaderValue> {
        self.headers.get(X_REQUEST_ID)
    }

    /// The table of PROTOCOL.md.
    pub fn judge(self, url: &str) -> Result<(), Failure> {
        let status = self.status.as_u16();
        let is_ok = self.is_complete && self.text.trim_ascii() == b"ok";
        let (retryable, written) = match status {
            200 | 202 if is_ok => return Ok(()),
            503 | 507 if self.says_unwritten() => (true, Written::No),
            408 | 429 => (true, Written::No),
            400..=499 => (false, Written::No),
            500..=599 => (true, Written::Maybe),
            _ => (false, Written::Maybe),
        };
        let header = |name| self.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let mut failure = Failure::new(Kind::Answer, format!("{url}: "), written, retryable);
        failure.status = Some(status);
        failure.retry_after = header(header::RETRY_AFTER).and_then(retry_after);
        failure.request_id = header(X_REQUEST_ID).map(str::to_owned);
        failure.text = Some(String::from_utf8_lossy(&self.text).into_owned());
        Err(failure)
    }

    /// The service itself says that nothing was written. A proxy's page does not: it may have sent the request
    /// on, even several times.
    fn says_unwritten(&self) -> bool {
        #[derive(Deserialize)]
        struct Problem<'a> {
            #[serde(borrow)]
            code: std::borrow::Cow<'a, str>,
            #[serde(borrow)]
            written: std::borrow::Cow<'a, str>,
        }
        let is_object = self.text.trim_ascii_start().starts_with(b"{");
        let problem =
            (is_object && self.is_complete).then(|| serde_json::from_slice::<Problem<'_>>(&self.text).ok()).flatten();
        problem.is_some_and(|problem| !problem.code.is_empty() && problem.written == "no")
    }
}

/// Whole seconds up to a minute; anything else counts as absent.
fn retry_after(text: &str) -> Option<Duration> {
    let text = text.trim();
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let time = Duration::from_secs(text.parse().ok().filter(|_| digits)?);
    (time <= RETRY_AFTER_MAX).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, a date or a very long time would stop a program for good.
    #[test]
    fn only_whole_seconds_up_to_a_minute_count() {
        assert_eq!(retry_after(" 60 "), Some(Duration::from_secs(60)));
        assert_eq!(retry_after("0"), Some(Duration::ZERO));
        for absent in ["", "61", "-1", "+1", "1.5", "99999999999999999999", "Wed, 21 Oct 2015 07:28:00 GMT"] {
            assert_eq!(retry_after(absent), None, "{absent}");
        }
    }
}
