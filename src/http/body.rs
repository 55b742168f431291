//! A request body: read within its limits, decompressed within the same limits.

use std::collections::TryReserveError;
use std::io;
use std::ops::Deref;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::extract::Request;
use bytes::Bytes;
use http_body::Body as HttpBody;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use tokio::sync::OwnedSemaphorePermit;

use super::conn::ConnState;
use super::edge::Caller;
use super::error::ApiError;
use super::fields::{Field, Fields, text};
use super::state::AppState;
use crate::event::Format;
use crate::storage::{Reservation, StoreError};

/// So much of a compressed body is looked at before the rest is read, and four times as much each
/// time after that: a bomb shows early, and an honest body is most often shorter.
const PROBE_BYTES: usize = 16 << 10;

/// Room for a body at first, and later for so many times what has come: the smaller rooms that it leaves behind, which the
/// allocator may keep for a while, are a seventh of the last one together. Only what has come takes memory of a large
/// room, because the system gives that page by page.
const AT_ONCE_BYTES: usize = 32 << 10;
const ROOM_FACTOR: usize = 8;
/// Room at first for a body of unknown length, which doubles below [`LARGE_ROOM_BYTES`]: a small room has been somebody
/// else's before and takes memory as a whole.
const AT_FIRST_BYTES: usize = 8 << 10;
const LARGE_ROOM_BYTES: usize = 64 << 10;

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
    pub(crate) fn of(fields: &impl Fields) -> Result<Coding, ApiError> {
        let mut values = fields.all(Field::ContentEncoding);
        let Some(value) = values.next() else { return Ok(Coding::Identity) };
        if values.next().is_some() {
            return Err(ApiError::ContentEncoding);
        }
        match value.to_ascii_lowercase().trim_ascii() {
            b"" | b"identity" => Ok(Coding::Identity),
            b"gzip" | b"x-gzip" => Ok(Coding::Gzip),
            b"zstd" => Ok(Coding::Zstd),
            _ => Err(ApiError::ContentEncoding),
        }
    }
}

/// How the events stand in the body, by media type. `None`: a type that names neither.
pub(crate) fn format_of(fields: &impl Fields) -> Option<Format> {
    let value = fields.first(Field::ContentType)?;
    if value == b"application/json" {
        return Some(Format::Document);
    }
    // compat: of several types in one header the original found the first it knew.
    let media_type = text(value)?.split([';', ',']).next()?.trim();
    const LINES: [&str; 4] =
        ["application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"];
    if LINES.iter().any(|t| media_type.eq_ignore_ascii_case(t)) {
        return Some(Format::Lines);
    }
    media_type.eq_ignore_ascii_case("application/json").then_some(Format::Document)
}

/// Where the bytes of a body come from. Those that are lent live as long as `'a`.
pub(crate) trait Source<'a> {
    /// Has everything been given?
    fn is_end(&self) -> bool;

    /// How many bytes are still to come, where that was announced.
    fn left(&self) -> Option<u64>;

    /// Gives the whole body without a copy, when it has come to a place where it may stay; `None` at
    /// once if it will not. Nothing may have been given before.
    ///
    /// # Errors
    /// [`ApiError::BodyCut`] when the connection ends within the body.
    fn poll_lent(&mut self, _cx: &mut Context<'_>) -> Poll<Result<Option<&'a [u8]>, ApiError>> {
        Poll::Ready(Ok(None))
    }

    /// Gives some more bytes to the end of `all`, which will hold `limit_bytes` at most. False when
    /// there were none, because it is the end.
    ///
    /// # Errors
    /// [`ApiError::BodyCut`] when the connection ends within the body, [`ApiError::TooLarge`] when there
    /// are more than `limit_bytes`.
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        all: &mut Vec<u8>,
        limit_bytes: usize,
    ) -> Poll<Result<bool, ApiError>>;

    /// Looks whether the client goes away while nothing is expected of it. The connection draws the
    /// consequences; hyper looks by itself.
    fn look_after(&mut self, _cx: &mut Context<'_>) {}
}

/// A body that hyper reads.
impl<B: HttpBody<Data = Bytes> + Unpin> Source<'_> for B {
    fn is_end(&self) -> bool {
        self.is_end_stream()
    }

    fn left(&self) -> Option<u64> {
        self.size_hint().exact()
    }

    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        all: &mut Vec<u8>,
        limit_bytes: usize,
    ) -> Poll<Result<bool, ApiError>> {
        let Some(frame) = ready!(Pin::new(&mut *self).poll_frame(cx)) else { return Poll::Ready(Ok(false)) };
        // Trailers carry nothing for us.
        let Ok(data) = frame.map_err(|_| ApiError::BodyCut)?.into_data() else { return Poll::Ready(Ok(true)) };
        let len = all.len() + data.len();
        if len > limit_bytes {
            return Poll::Ready(Err(ApiError::TooLarge { limit_bytes }));
        }
        if all.capacity() < len {
            match self.left() {
                Some(more) => grow(all, len, (len + more as usize).min(limit_bytes))?,
                // The limit is all that is known.
                None if len <= LARGE_ROOM_BYTES => {
                    let room = len.next_power_of_two().max(AT_FIRST_BYTES);
                    grow(all, len, room.min(limit_bytes))?;
                }
                None => grow(all, len, limit_bytes)?,
            }
        }
        all.extend_from_slice(&data);
        Poll::Ready(Ok(true))
    }
}

/// Makes room for `len` bytes, of `whole` that will come at most. What was announced is not there yet, and
/// takes no room before: memory that nobody counts would go to whoever announces most.
///
/// # Errors
/// [`ApiError::Store`] with [`StoreError::Exhausted`] when there is no memory.
pub(super) fn grow(all: &mut Vec<u8>, len: usize, whole: usize) -> Result<(), ApiError> {
    let room = whole.min(len.saturating_mul(ROOM_FACTOR).max(AT_ONCE_BYTES));
    Ok(all.try_reserve_exact(room.max(len) - all.len()).map_err(no_memory)?)
}

/// The system gives no memory, whatever the budget says; it passes when others are done.
pub(super) fn no_memory(_: TryReserveError) -> StoreError {
    StoreError::io("allocate body", io::ErrorKind::OutOfMemory.into())
}

/// A body that has come to its end.
#[derive(Debug)]
pub(crate) enum Whole<'a> {
    /// In the buffer of its connection.
    Lent(&'a [u8]),
    Owned(Bytes),
}

impl Deref for Whole<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Whole::Lent(bytes) => bytes,
            Whole::Owned(bytes) => bytes,
        }
    }
}

impl Whole<'_> {
    /// For who needs it longer than its connection lends it.
    fn into_bytes(self) -> Bytes {
        match self {
            Whole::Lent(bytes) => Bytes::copy_from_slice(bytes),
            Whole::Owned(bytes) => bytes,
        }
    }
}

/// A body and its share of the byte budget: one value, so that whoever has the bytes has the share too.
pub(crate) struct Held<'a> {
    pub body: Whole<'a>,
    pub reservation: Reservation,
}

impl Held<'_> {
    /// For who needs it longer than its connection lends it.
    pub(crate) fn into_owned(self) -> Held<'static> {
        Held { body: Whole::Owned(self.body.into_bytes()), reservation: self.reservation }
    }
}

/// Looks at the announced length, before any body byte.
///
/// # Errors
/// [`ApiError::LengthRequired`] without a length and without chunked coding, [`ApiError::TooLarge`]
/// above the limit, [`ApiError::Malformed`] when the length is not plain digits.
pub(crate) fn check_length<'a>(
    fields: &impl Fields,
    body: &impl Source<'a>,
    limit_bytes: usize,
) -> Result<(), ApiError> {
    match fields.first(Field::ContentLength) {
        // Lengths that are no number, or differ, were refused before.
        Some(value) => match text(value).and_then(|text| text.trim().parse::<u64>().ok()) {
            Some(n) if n <= limit_bytes as u64 => Ok(()),
            Some(_) => Err(ApiError::TooLarge { limit_bytes }),
            None => Err(ApiError::Malformed),
        },
        // Chunked, if the body does not say that it is empty.
        None if !body.is_end() || fields.has(Field::TransferEncoding) => Ok(()),
        None => Err(ApiError::LengthRequired),
    }
}

/// Reads a body of at most `limit_bytes` to its end, which must come before `deadline`, and takes its coding off.
///
/// # Errors
/// [`ApiError::TooLarge`] above the limit (which counts bytes as sent, and decompressed),
/// [`ApiError::BodyTimeout`] when it does not arrive in time, [`ApiError::BodyCut`] when it ends
/// early, [`ApiError::InvalidEncoding`] when it is not what its coding says, and
/// [`ApiError::Store`] when too much is in memory.
pub(crate) async fn read<'a>(
    state: &AppState,
    conn: &ConnState,
    body: &mut impl Source<'a>,
    coding: Coding,
    deadline: Instant,
    limit_bytes: usize,
    reservation: Reservation,
) -> Result<Held<'a>, ApiError> {
    let held = in_time(deadline, pin!(collect(state, body, coding, limit_bytes, reservation))).await?;
    conn.body_read();
    match coding {
        Coding::Identity => Ok(held),
        Coding::Gzip | Coding::Zstd => Box::pin(state.decoders.decode(coding, held.into_owned(), limit_bytes)).await,
    }
}

/// Reads the small body of an admin request, of at most `limit_bytes`. Only so many are in memory at once; the
/// permit is one of them, and goes where the body goes. They are not of the byte budget: an operator is not kept out
/// by events.
///
/// # Errors
/// As [`check_length`] and [`read`].
pub(crate) async fn read_small(
    state: &AppState,
    request: Request,
    limit_bytes: usize,
) -> Result<(Bytes, OwnedSemaphorePermit), ApiError> {
    let (parts, body) = request.into_parts();
    check_length(&parts.headers, &body, limit_bytes)?;
    let caller = Caller::of(&parts.extensions);
    let deadline = state.live().terms(caller.started).body_deadline;
    let collect = async {
        let held = state.admin_bodies.clone().acquire_owned().await.map_err(|_| ApiError::Panicked)?;
        match Limited::new(body, limit_bytes).collect().await {
            Ok(collected) => Ok((collected.to_bytes(), held)),
            Err(e) if e.is::<LengthLimitError>() => Err(ApiError::TooLarge { limit_bytes }),
            Err(_) => Err(ApiError::BodyCut),
        }
    };
    let bytes_and_turn = in_time(deadline, pin!(collect)).await?;
    caller.conn.body_read();
    Ok(bytes_and_turn)
}

/// Bodies that have arrived with their head need no timer.
async fn in_time<T>(
    deadline: Instant,
    mut read: Pin<&mut impl Future<Output = Result<T, ApiError>>>,
) -> Result<T, ApiError> {
    let first = std::future::poll_fn(|cx| Poll::Ready(read.as_mut().poll(cx))).await;
    match first {
        Poll::Ready(result) => result,
        Poll::Pending => {
            Box::pin(tokio::time::timeout_at(deadline.into(), read)).await.map_err(|_| ApiError::BodyTimeout)?
        }
    }
}

async fn collect<'a>(
    state: &AppState,
    body: &mut impl Source<'a>,
    coding: Coding,
    limit_bytes: usize,
    mut reservation: Reservation,
) -> Result<Held<'a>, ApiError> {
    if let Some(lent) = std::future::poll_fn(|cx| body.poll_lent(cx)).await? {
        reservation.grow_to(lent.len())?;
        return Ok(Held { body: Whole::Lent(lent), reservation });
    }
    let mut probe_at = if coding == Coding::Identity { usize::MAX } else { PROBE_BYTES };
    let mut all = Vec::new();
    while !body.is_end() && std::future::poll_fn(|cx| body.poll_fill(cx, &mut all, limit_bytes)).await? {
        reservation.grow_to(all.len())?;
        if all.len() >= probe_at && !body.is_end() {
            probe_at = 4 * all.len();
            (all, reservation) = Box::pin(state.decoders.probe(coding, all, limit_bytes, reservation)).await?;
        }
    }
    Ok(Held { body: Whole::Owned(all.into()), reservation })
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use http::header::{CONTENT_ENCODING, CONTENT_TYPE};

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

    /// Broken, whoever announces much and sends little would take memory that no budget counts.
    #[test]
    fn room_is_made_for_what_has_come_and_not_for_what_was_announced() {
        const WHOLE: usize = 1 << 20;
        let mut all = Vec::new();
        for (len, most) in [(1, AT_ONCE_BYTES), (4_000, AT_ONCE_BYTES), (40_000, 320_000), (900_000, WHOLE)] {
            all.resize(all.len().min(len), 0);
            grow(&mut all, len, WHOLE).unwrap();
            assert!((len..=most).contains(&all.capacity()), "{len}: {}", all.capacity());
            all.resize(len, 0);
        }
        let mut short = Vec::new();
        grow(&mut short, 3, 100).unwrap();
        assert_eq!(short.capacity(), 100, "a short one at once");
        let error = grow(&mut Vec::new(), usize::MAX / 2, usize::MAX / 2).unwrap_err();
        assert_eq!((error.status().as_u16(), error.detail().as_ref()), (503, "busy"));
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
