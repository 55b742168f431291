//! `Unread`: what a connection has sent and nobody has used yet.

use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::conn::ConnState;
use super::super::server::BUFFER_BYTES_MAX;

/// Of the buffer of a connection: at first, and once something did not fit. The latter is what hyper has at
/// first, because what follows a body counts as far as it is there, whoever reads. A longer head is hyper's, once
/// it is whole: until then it would take hyper's buffers too.
const ROOM_BYTES: usize = 1 << 10;
const ROOM_BYTES_MAX: usize = 8 << 10;
/// Of a buffer that keeps a long head until it is whole. What is longer hyper refuses.
const LONG_BYTES_MAX: usize = BUFFER_BYTES_MAX + AHEAD_BYTES;
/// So much of it is left free behind a head, so that the end of the client can be seen while its request
/// is served.
const AHEAD_BYTES: usize = 1;

/// What came of waiting for more.
pub(crate) enum Read {
    Some,
    /// The client has ended its side, is gone, or is no longer to be waited for.
    End,
    Late,
}

/// What came of asking for more room.
pub(super) enum Grown {
    More,
    /// There is as much as any head may have.
    Longest,
    /// All connections together hold too much.
    Refused,
}

/// The buffer of a connection: what was read and not yet used.
pub(crate) struct Unread {
    bytes: Vec<u8>,
    filled: Range<usize>,
    /// So much of a long head has been looked at.
    seen: usize,
    /// It follows a body of announced length.
    after_length: bool,
}

impl Unread {
    pub(crate) fn new() -> Unread {
        Unread { bytes: vec![0; ROOM_BYTES], filled: 0..0, seen: 0, after_length: false }
    }

    /// What hyper has read and not used: a part of a head at most. `None`: it is long, and all connections together
    /// hold too much.
    pub(crate) fn of_hyper(here: &[u8], after_length: bool, conn: &ConnState) -> Option<Unread> {
        let needed = here.len() + AHEAD_BYTES;
        let room = [ROOM_BYTES, ROOM_BYTES_MAX].into_iter().find(|room| *room >= needed);
        let room = room.unwrap_or(LONG_BYTES_MAX.max(needed));
        // It was counted as hyper had it.
        conn.gives_head_bytes_back();
        if room > ROOM_BYTES_MAX && !conn.takes_head_bytes(room) {
            return None;
        }
        let mut bytes = vec![0; room];
        bytes[..here.len()].copy_from_slice(here);
        Some(Unread { bytes, filled: 0..here.len(), seen: 0, after_length })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[self.filled.clone()]
    }

    /// What is there, and the room behind it.
    pub(super) fn split(&mut self) -> (&[u8], &mut [u8]) {
        let (filled, spare) = self.bytes.split_at_mut(self.filled.end);
        (&filled[self.filled.start..], spare)
    }

    /// Keeps so many bytes, behind which so many are free. If it was full, reads what waits behind them, so
    /// that the next request is judged by as much as one that comes alone.
    pub(super) async fn keep<S: AsyncRead + Unpin>(&mut self, stream: &mut S, (kept, free): (usize, usize)) {
        let end = self.bytes.len() - free;
        self.filled = end - kept..end;
        self.after_length = true;
        if free > AHEAD_BYTES {
            return;
        }
        self.make_room();
        if kept > 0 {
            poll_fn(|cx| {
                // Whatever comes of it comes again with the next read.
                let _ = self.poll_here(stream, cx);
                Poll::Ready(())
            })
            .await;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.filled.is_empty()
    }

    /// May more be read behind what is there?
    pub(super) fn has_room(&self) -> bool {
        self.filled.len() < self.bytes.len().max(ROOM_BYTES_MAX) - AHEAD_BYTES
    }

    /// Is there more than the head of a plain request may have?
    pub(super) fn is_long(&self) -> bool {
        self.bytes.len() > ROOM_BYTES_MAX
    }

    /// Has a line ended since the last look at a long head? Spares a look at all of it for each byte.
    pub(super) fn may_end_a_head(&mut self) -> bool {
        let new = &self.bytes[self.filled.clone()][self.seen.min(self.filled.len())..];
        self.seen = self.filled.len();
        memchr::memchr(b'\n', new).is_some()
    }

    /// Makes room for more of a head, which counts for all connections together.
    pub(super) fn grow(&mut self, conn: &ConnState) -> Grown {
        if self.bytes.len() >= LONG_BYTES_MAX {
            return Grown::Longest;
        }
        let bytes = (2 * self.bytes.len()).min(LONG_BYTES_MAX);
        if !conn.takes_head_bytes(bytes) {
            return Grown::Refused;
        }
        self.make_room();
        self.bytes.reserve_exact(bytes - self.bytes.len());
        self.bytes.resize(bytes, 0);
        Grown::More
    }

    /// Puts what is there at the beginning.
    fn make_room(&mut self) {
        self.bytes.copy_within(self.filled.clone(), 0);
        self.filled = 0..self.filled.len();
    }

    /// Reads more of a head, with the deadlines of a connection that is not at a request.
    pub(crate) async fn read<S: AsyncRead + Unpin>(&mut self, stream: &mut S, conn: &ConnState) -> Read {
        self.make_room();
        poll_fn(|cx| self.poll_read(stream, conn, cx)).await
    }

    fn poll_read<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        conn: &ConnState,
        cx: &mut Context<'_>,
    ) -> Poll<Read> {
        if conn.is_expired() {
            return Poll::Ready(Read::Late);
        }
        // A first request that is on its way may still come.
        if conn.must_stop() && (self.is_empty() || conn.was_used()) {
            self.filled = 0..0;
            return Poll::Ready(Read::End);
        }
        let was_empty = self.is_empty();
        match ready!(self.poll_here(stream, cx)) {
            Ok(1..) => {}
            Ok(0) => {
                conn.client_ends();
                return Poll::Ready(Read::End);
            }
            Err(_) => {
                conn.client_is_gone();
                self.filled = 0..0;
                return Poll::Ready(Read::End);
            }
        }
        if was_empty {
            // The whole head has so much time.
            conn.head_begins();
        }
        Poll::Ready(Read::Some)
    }

    /// Reads what is there, as far as there may be room.
    fn poll_here<S: AsyncRead + Unpin>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let read = ready!(self.poll_fill(stream, cx));
        if self.filled.end == self.bytes.len() - AHEAD_BYTES && self.bytes.len() < ROOM_BYTES_MAX {
            self.bytes.resize(ROOM_BYTES_MAX, 0);
            // Whatever comes of it comes again with the next read.
            let _ = self.poll_fill(stream, cx);
        }
        Poll::Ready(read)
    }

    fn poll_fill<S: AsyncRead + Unpin>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let end = self.bytes.len() - AHEAD_BYTES;
        let mut room = ReadBuf::new(&mut self.bytes[self.filled.end..end]);
        ready!(Pin::new(stream).poll_read(cx, &mut room))?;
        let read = room.filled().len();
        self.filled.end += read;
        Poll::Ready(Ok(read))
    }
}

impl Unread {
    /// Gives as much as there is room for; nothing at the end.
    fn give(&mut self, room: &mut ReadBuf<'_>) {
        let given = self.filled.len().min(room.remaining());
        room.put_slice(&self.bytes[self.filled.start..][..given]);
        self.filled.start += given;
        if self.filled.is_empty() {
            // It is not needed any more.
            self.bytes = Vec::new();
            self.filled = 0..0;
        }
    }
}

/// A stream of which a beginning was read already.
pub(crate) struct Replay<S> {
    unread: Unread,
    stream: S,
}

impl<S> Replay<S> {
    pub(crate) fn new(unread: Unread, stream: S) -> Replay<S> {
        Replay { unread, stream }
    }

    pub(crate) fn into_inner(self) -> S {
        self.stream
    }

    /// What was read already.
    pub(crate) fn begin(&self) -> &[u8] {
        self.unread.bytes()
    }

    /// How many bytes were read already.
    pub(crate) fn unread_bytes(&self) -> usize {
        self.unread.filled.len()
    }

    /// Do they follow a body of announced length?
    pub(crate) fn is_after_length(&self) -> bool {
        self.unread.after_length
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Replay<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.unread.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        self.unread.give(buf);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replay<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::io::AsyncWriteExt as _;

    use super::*;
    use crate::http::conn::HEAD_TICKS;
    use crate::http::connections::Connections;

    /// As the server does it, but at once.
    fn pass(connections: &Connections, ticks: u64) {
        (0..ticks).for_each(|_| connections.tick().iter().for_each(|conn| conn.expire()));
    }

    /// Broken, a client that sends its first request late is cut off within it, or one that sends it byte
    /// by byte is never.
    #[test]
    fn the_first_byte_of_a_head_starts_its_time_and_no_other_does() {
        let connections = Connections::default();
        let (_, conn) = connections.add();
        let (mut near, mut far) = tokio::io::duplex(64);
        let mut buffer = Unread::new();
        let mut send = |byte: u8| {
            far.write_u8(byte).now_or_never().expect("there is room").expect("the other end is open");
            buffer.read(&mut near, &conn).now_or_never().expect("something is there")
        };
        pass(&connections, HEAD_TICKS);
        assert!(matches!(send(b'P'), Read::Some));
        for _ in 0..HEAD_TICKS {
            pass(&connections, 1);
            assert!(matches!(send(b'O'), Read::Some));
        }
        pass(&connections, 1);
        assert!(matches!(send(b'O'), Read::Late));
    }
}
