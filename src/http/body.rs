//! A request body: read within its limits, decompressed within the same limits.

use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http_body::Body as HttpBody;
use http_body_util::BodyExt as _;

use super::conn::ConnState;
use super::error::ApiError;
use super::state::AppState;
use crate::event::Format;
use crate::storage::Reservation;

/// So much of a compressed body is looked at before the rest is read, and four times as much each
/// time after that: a bomb shows early, and an honest body is most often shorter.
const PROBE_BYTES: usize = 16 << 10;

/// What `Content-Encoding` may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    Identity,
    Gzip,
    Zstd,
}

impl Coding {
    /// # Errors
    /// [`ApiError::ContentEncoding`] for anything else, and for more than one coding.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Coding, ApiError> {
        let mut values = headers.get_all(CONTENT_ENCODING).iter();
        let Some(value) = values.next() else { return Ok(Coding::Identity) };
        if values.next().is_some() {
            return Err(ApiError::ContentEncoding);
        }
        match value.as_bytes().to_ascii_lowercase().trim_ascii() {
            b"" | b"identity" => Ok(Coding::Identity),
            b"gzip" | b"x-gzip" => Ok(Coding::Gzip),
            b"zstd" => Ok(Coding::Zstd),
            _ => Err(ApiError::ContentEncoding),
        }
    }
}

/// How the events stand in the body, by media type. `None`: a type that names neither.
pub(crate) fn format_of(headers: &HeaderMap) -> Option<Format> {
    let value = headers.get(CONTENT_TYPE)?;
    if value == "application/json" {
        return Some(Format::Document);
    }
    let value = value.to_str().ok()?;
    // compat: of several types in one header the original found the first it knew.
    let media_type = value.split([';', ',']).next()?.trim();
    const LINES: [&str; 4] =
        ["application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"];
    if LINES.iter().any(|t| media_type.eq_ignore_ascii_case(t)) {
        return Some(Format::Lines);
    }
    media_type.eq_ignore_ascii_case("application/json").then_some(Format::Document)
}

/// Looks at the announced length, before any body byte.
///
/// # Errors
/// [`ApiError::LengthRequired`] without a length and without chunked coding, [`ApiError::TooLarge`]
/// above the limit, [`ApiError::Malformed`] when the length is not plain digits.
pub(crate) fn check_length(headers: &HeaderMap, body: &impl HttpBody, limit_bytes: usize) -> Result<(), ApiError> {
    match headers.get(CONTENT_LENGTH) {
        // hyper has refused lengths that are no number or differ.
        Some(value) => match value.to_str().ok().and_then(|text| text.trim().parse::<u64>().ok()) {
            Some(n) if n <= limit_bytes as u64 => Ok(()),
            Some(_) => Err(ApiError::TooLarge { limit_bytes }),
            None => Err(ApiError::Malformed),
        },
        // Chunked, if the body does not say that it is empty.
        None if !body.is_end_stream() || headers.contains_key(http::header::TRANSFER_ENCODING) => Ok(()),
        None => Err(ApiError::LengthRequired),
    }
}

/// Reads a body to its end and takes its coding off.
///
/// # Errors
/// [`ApiError::TooLarge`] above the limit (which counts bytes as sent, and decompressed),
/// [`ApiError::BodyTimeout`] when it does not arrive in time, [`ApiError::BodyCut`] when it ends
/// early, [`ApiError::InvalidEncoding`] when it is not what its coding says, and
/// [`ApiError::Store`] when too much is in memory.
pub(crate) async fn read<B: HttpBody<Data = Bytes> + Unpin>(
    state: &AppState,
    conn: &ConnState,
    body: B,
    coding: Coding,
    reservation: &mut Reservation,
) -> Result<Bytes, ApiError> {
    let limit = state.live().body_timeout;
    let bytes = in_time(limit, collect(state, body, coding, reservation)).await?;
    conn.body_read();
    match coding {
        Coding::Identity => Ok(bytes),
        Coding::Gzip | Coding::Zstd => Box::pin(decompress(state, bytes, coding, reservation)).await,
    }
}

async fn decompress(
    state: &AppState,
    bytes: Bytes,
    coding: Coding,
    reservation: &mut Reservation,
) -> Result<Bytes, ApiError> {
    let limit_bytes = state.max_body_bytes;
    // What the decoder may produce, held before it does.
    reservation.grow_to(bytes.len() + limit_bytes)?;
    state.decoders.decode(coding, bytes, limit_bytes).await
}

/// Bodies that have arrived with their head need no timer.
async fn in_time<T>(limit: Duration, read: impl Future<Output = Result<T, ApiError>>) -> Result<T, ApiError> {
    let mut read = pin!(read);
    let first = std::future::poll_fn(|cx| Poll::Ready(read.as_mut().poll(cx))).await;
    match first {
        Poll::Ready(result) => result,
        Poll::Pending => Box::pin(tokio::time::timeout(limit, read)).await.map_err(|_| ApiError::BodyTimeout)?,
    }
}

async fn collect<B: HttpBody<Data = Bytes> + Unpin>(
    state: &AppState,
    mut body: B,
    coding: Coding,
    reservation: &mut Reservation,
) -> Result<Bytes, ApiError> {
    let limit_bytes = state.max_body_bytes;
    let mut probe_at = if coding == Coding::Identity { usize::MAX } else { PROBE_BYTES };
    let mut first = Bytes::new();
    let mut all = Vec::new();
    while !body.is_end_stream() {
        let Some(frame) = body.frame().await else { break };
        // Trailers carry nothing for us.
        let Ok(data) = frame.map_err(|_| ApiError::BodyCut)?.into_data() else { continue };
        let len = first.len().max(all.len()) + data.len();
        if len > limit_bytes {
            return Err(ApiError::TooLarge { limit_bytes });
        }
        reservation.grow_to(len)?;
        if first.is_empty() && all.is_empty() {
            first = data;
        } else {
            if all.capacity() < len {
                // The announced length is within the limit. Without one, few and large steps:
                // memory that was never written costs nothing, the copies left behind do.
                let room = body.size_hint().exact().map_or(4 * len, |more| len + more as usize).min(limit_bytes);
                all.reserve_exact(room - all.len());
            }
            if all.is_empty() {
                all.extend_from_slice(&first);
            }
            all.extend_from_slice(&data);
        }
        if len >= probe_at && !body.is_end_stream() {
            probe_at = 4 * len;
            let beginning = if all.is_empty() { first.clone() } else { Bytes::copy_from_slice(&all) };
            Box::pin(state.decoders.probe(coding, beginning, limit_bytes)).await?;
        }
    }
    Ok(if all.is_empty() { first } else { all.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types_are_compared_as_types() {
        for (value, want) in [
            ("application/json", Some(Format::Document)),
            ("Application/JSON; Charset=UTF-8", Some(Format::Document)),
            ("  application/json  ", Some(Format::Document)),
            ("APPLICATION/X-NDJSON", Some(Format::Lines)),
            ("application/ndjson", Some(Format::Lines)),
            ("application/jsonl;x=y", Some(Format::Lines)),
            ("application/x-jsonlines", Some(Format::Lines)),
            ("application/x-ndjson, application/json", Some(Format::Lines)),
            ("application/json, application/x-ndjson", Some(Format::Document)),
            ("text/plain; application/json", None),
            ("xapplication/jsonx", None),
            ("application/json-seq", None),
            ("application/json-patch+json", None),
            ("application/vnd.api+json", None),
            ("text/plain", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, value.parse().unwrap());
            assert_eq!(format_of(&headers), want, "{value:?}");
        }
        assert_eq!(format_of(&HeaderMap::new()), None);
    }

    #[test]
    fn codings_are_read_as_names() {
        for (value, want) in [
            ("gzip", Some(Coding::Gzip)),
            ("X-GZIP", Some(Coding::Gzip)),
            ("ZSTD", Some(Coding::Zstd)),
            ("identity", Some(Coding::Identity)),
            ("", Some(Coding::Identity)),
            ("br", None),
            ("gzip, gzip", None),
            ("deflate", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_ENCODING, value.parse().unwrap());
            assert_eq!(Coding::of(&headers).ok(), want, "{value:?}");
        }
    }
}
