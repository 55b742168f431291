//! Plain requests, read and answered without hyper: one event, one read, one write.
//!
//! hyper's machine is made for every message that HTTP/1 allows. The requests that carry the load are all
//! of one form, see [`head::look`]. They are served here, one after the other, straight between the socket
//! and the edge. The first request of another form, or of none, is left as it came, and hyper serves it and
//! the rest of the connection.

pub(crate) mod answer;
mod body;
mod head;

use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

pub(crate) use body::PlainBody;
pub(crate) use head::Head as PlainHead;

use super::conn::{ConnState, Patience};
use super::edge::Edge;
use head::Seen;

/// Of the buffer of a connection: at first, and once something did not fit. A longer head is hyper's.
const BUFFER_BYTES: usize = 1 << 10;
const BUFFER_BYTES_MAX: usize = 4 << 10;
/// So much of it is left free behind a head, so that the end of the client can be seen while its request
/// is served.
const AHEAD_BYTES: usize = 1;

/// How the service of plain requests ends.
pub(crate) enum End {
    /// Nothing more is to be read or written.
    Done,
    /// The client took too long.
    Late,
    /// What comes next begins with these bytes and is for hyper.
    Other(Unread),
}

/// Serves plain requests, from the first byte of a connection on, until something else comes.
pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, edge: &Edge) -> End {
    let mut buffer = Unread::new();
    let mut out = Vec::new();
    loop {
        let has_room = buffer.has_room();
        let (here, spare) = buffer.split();
        match head::look(here) {
            Seen::Plain(head) => {
                let mut body = PlainBody::new(stream, &edge.conn, head.body_bytes, &here[head.len..], spare);
                let goes_on = {
                    let answer = pin!(edge.call_plain(&head, &mut body, &mut out));
                    while_connected(&edge.conn, answer).await
                };
                let Some(goes_on) = goes_on else { return End::Done };
                let rest = body.rest();
                if write(stream, &edge.conn, &mut out).await.is_err() || !goes_on {
                    return End::Done;
                }
                buffer.keep(rest);
            }
            Seen::Other => return End::Other(buffer),
            Seen::Partial if !has_room => return End::Other(buffer),
            Seen::Partial => match buffer.read(stream, &edge.conn).await {
                Read::Some => {}
                Read::End if buffer.is_empty() => return End::Done,
                // A part of a head: hyper knows what to make of it.
                Read::End => return End::Other(buffer),
                Read::Late => return End::Late,
            },
        }
    }
}

/// Waits for an answer. `None` when the client has ended its side before: nobody waits for it any more.
/// What has been handed to the store is written all the same.
async fn while_connected<T>(conn: &ConnState, mut answer: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    poll_fn(|cx| match answer.as_mut().poll(cx) {
        Poll::Ready(answer) => Poll::Ready(Some(answer)),
        Poll::Pending if conn.has_ended() => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    })
    .await
}

/// Writes all of `out` and empties it.
async fn write<S: AsyncWrite + Unpin>(stream: &mut S, conn: &ConnState, out: &mut Vec<u8>) -> io::Result<()> {
    let mut written = 0;
    let mut patience = Patience::default();
    let all_out = poll_fn(|cx| {
        while written < out.len() {
            let polled = Pin::new(&mut *stream).poll_write(cx, &out[written..]);
            match ready!(patience.with(conn, cx, polled))? {
                0 => return Poll::Ready(Err(io::Error::from(io::ErrorKind::WriteZero))),
                more => written += more,
            }
        }
        Poll::Ready(Ok(()))
    });
    all_out.await?;
    out.clear();
    Ok(())
}

/// What came of waiting for more.
enum Read {
    Some,
    /// The client has ended its side, is gone, or is no longer to be waited for.
    End,
    Late,
}

/// The buffer of a connection: what was read and not yet used.
pub(crate) struct Unread {
    bytes: Vec<u8>,
    filled: Range<usize>,
    /// The last read may have got more with more room.
    tight: bool,
}

impl Unread {
    fn new() -> Unread {
        Unread { bytes: vec![0; BUFFER_BYTES], filled: 0..0, tight: false }
    }

    /// What is there, and the room behind it.
    fn split(&mut self) -> (&[u8], &mut [u8]) {
        let (filled, spare) = self.bytes.split_at_mut(self.filled.end);
        (&filled[self.filled.start..], spare)
    }

    /// Keeps so many bytes, behind which so many are free.
    fn keep(&mut self, (kept, free): (usize, usize)) {
        let end = self.bytes.len() - free;
        self.filled = end - kept..end;
        if free == 0 {
            self.make_room();
        }
    }

    fn is_empty(&self) -> bool {
        self.filled.is_empty()
    }

    /// May more be read behind what is there?
    fn has_room(&self) -> bool {
        self.filled.len() < BUFFER_BYTES_MAX - AHEAD_BYTES
    }

    /// Puts what is there at the beginning, and takes more room if there is none.
    fn make_room(&mut self) {
        self.bytes.copy_within(self.filled.clone(), 0);
        self.filled = 0..self.filled.len();
        if self.tight && self.bytes.len() < BUFFER_BYTES_MAX {
            self.bytes.resize(BUFFER_BYTES_MAX, 0);
        }
    }

    /// Reads more of a head, with the deadlines of a connection that is not at a request.
    async fn read<S: AsyncRead + Unpin>(&mut self, stream: &mut S, conn: &ConnState) -> Read {
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
        let end = self.bytes.len() - AHEAD_BYTES;
        let mut room = ReadBuf::new(&mut self.bytes[self.filled.end..end]);
        if ready!(Pin::new(stream).poll_read(cx, &mut room)).is_err() {
            self.filled = 0..0;
            return Poll::Ready(Read::End);
        }
        let read = room.filled().len();
        if read == 0 {
            conn.client_ends();
            return Poll::Ready(Read::End);
        }
        if self.is_empty() {
            // The whole head has so much time.
            conn.restart_deadline();
        }
        self.filled.end += read;
        self.tight = self.filled.end == end;
        Poll::Ready(Read::Some)
    }
}

impl Unread {
    /// Gives as much as there is room for; nothing at the end.
    pub(crate) fn give(&mut self, room: &mut ReadBuf<'_>) {
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
