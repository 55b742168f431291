//! The end of a connection whose client may still be sending.
//!
//! Closing over bytes that nobody has read resets the connection, and may take the answer with it (RFC 9112, section
//! 9.6). A proxy that is still handing over a large body then tells its client 502 in place of our refusal. So our
//! side is ended first, and what still comes is read and thrown away, within limits.

use std::future::poll_fn;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::time::{Instant, timeout_at};

use super::conn::ConnState;
use super::state::AppState;

/// How long, and for how many bytes, a refused body is thrown away: what common proxies and batches need.
const LINGER: Duration = Duration::from_secs(30);
const LINGER_BYTES_MAX: usize = 64 << 20;
/// The same for connections above [`LINGERERS_MAX`], for those over the cap, and (the time) once the service stops.
const LINGER_SHORT: Duration = Duration::from_secs(2);
const LINGER_SHORT_BYTES_MAX: usize = 4 << 20;
/// A client that sends nothing for so long has nothing more to send.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// So many connections linger long at once.
pub(super) const LINGERERS_MAX: usize = 256;
/// Thrown away at once.
const BUFFER_BYTES: usize = 16 << 10;

/// Ends our side; where a body was refused, throws away what still comes of it.
pub(super) async fn close<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, state: &AppState, conn: &ConnState) {
    // The client may be gone; then there is nothing to end.
    let _ = stream.shutdown().await;
    if conn.must_linger() && !conn.has_ended() {
        // Boxed, because most connections never need its room.
        Box::pin(linger(stream, state, conn)).await;
    }
}

async fn linger<S: AsyncRead + Unpin>(stream: &mut S, state: &AppState, conn: &ConnState) {
    match state.lingerers.try_acquire() {
        Ok(_turn) => throw_away(stream, conn, LINGER, LINGER_BYTES_MAX).await,
        Err(_) => linger_short(stream, conn).await,
    }
}

/// As [`close`], for who gets no more than a word.
pub(super) async fn linger_short<S: AsyncRead + Unpin>(stream: &mut S, conn: &ConnState) {
    throw_away(stream, conn, LINGER_SHORT, LINGER_SHORT_BYTES_MAX).await;
}

/// Reads until the client ends, is silent, or one of the limits is reached; then the connection is reset after all.
async fn throw_away<S: AsyncRead + Unpin>(stream: &mut S, conn: &ConnState, time: Duration, bytes_max: usize) {
    let mut end = Instant::now() + time;
    let mut left = bytes_max;
    let mut is_stopping = false;
    while left > 0 && !conn.was_evicted() {
        let now = Instant::now();
        if conn.must_stop() && !is_stopping {
            is_stopping = true;
            end = end.min(now + LINGER_SHORT);
        }
        let more = poll_fn(|cx| {
            if conn.was_evicted() || conn.must_stop() != is_stopping {
                return Poll::Ready(Some(0));
            }
            // On the stack, where it takes nothing while the client says nothing.
            let mut buffer = [MaybeUninit::uninit(); BUFFER_BYTES];
            let mut room = ReadBuf::uninit(&mut buffer);
            let read = Pin::new(&mut *stream).poll_read(cx, &mut room);
            read.map(|read| read.ok().map(|()| room.filled().len()).filter(|read| *read > 0))
        });
        match timeout_at(end.min(now + SILENCE_MAX), more).await {
            Ok(Some(read)) => left = left.saturating_sub(read),
            Ok(None) | Err(_) => return,
        }
    }
}
