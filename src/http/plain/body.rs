//! `PlainBody`: the body of a plain request, in the buffer of its connection as far as it fits there.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::BufMut as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, ReadBuf};

use super::super::body::{Source, grow};
use super::super::conn::ConnState;
use super::super::error::ApiError;

/// A body of announced length.
pub(crate) struct PlainBody<'a, S> {
    stream: &'a mut S,
    conn: &'a ConnState,
    /// What came with the head and has not been given.
    here: &'a [u8],
    /// How much of what came with the head belongs to what follows the body.
    behind: usize,
    /// The rest of the buffer, and how much of it is filled.
    spare: &'a mut [u8],
    filled: usize,
    /// Bytes that have not been given, wherever they are.
    left: usize,
}

impl<'a, S: AsyncRead + Unpin> PlainBody<'a, S> {
    /// `came` is what follows the head in the buffer, `spare` the room behind that.
    pub(crate) fn new(
        stream: &'a mut S,
        conn: &'a ConnState,
        body_bytes: usize,
        came: &'a [u8],
        spare: &'a mut [u8],
    ) -> PlainBody<'a, S> {
        let (here, behind) = came.split_at(came.len().min(body_bytes));
        PlainBody { stream, conn, here, behind: behind.len(), spare, filled: 0, left: body_bytes }
    }

    /// How much of the buffer holds what follows the body, and how much behind that is free. For a body
    /// that was given to its end.
    pub(crate) fn rest(&self) -> (usize, usize) {
        (self.behind + self.filled, self.spare.len() - self.filled)
    }

    /// Reads behind what is in the buffer. False at the end of what the client sends.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut room = ReadBuf::new(&mut self.spare[self.filled..]);
        ready!(Pin::new(&mut *self.stream).poll_read(cx, &mut room))?;
        let read = room.filled().len();
        self.filled += read;
        Poll::Ready(Ok(read > 0))
    }

    /// The client has ended its side, or reading failed.
    fn cut<T>(&self, read: io::Result<T>) -> ApiError {
        match read {
            Ok(_) => self.conn.client_ends(),
            Err(_) => self.conn.client_is_gone(),
        }
        ApiError::BodyCut
    }
}

impl<'a, S: AsyncRead + Unpin> Source<'a> for PlainBody<'a, S> {
    fn is_end(&self) -> bool {
        self.left == 0
    }

    fn left(&self) -> Option<u64> {
        Some(self.left as u64)
    }

    /// Lent is what lies in one piece: what came with the head, or what comes behind it into the buffer.
    fn poll_lent(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<&'a [u8]>, ApiError>> {
        if self.here.len() == self.left {
            self.left = 0;
            return Poll::Ready(Ok(Some(std::mem::take(&mut self.here))));
        }
        if !self.here.is_empty() || self.spare.len() <= self.left {
            return Poll::Ready(Ok(None));
        }
        while self.filled < self.left {
            let read = ready!(self.poll_read(cx));
            if !matches!(read, Ok(true)) {
                return Poll::Ready(Err(self.cut(read)));
            }
        }
        let (lent, spare) = std::mem::take(&mut self.spare).split_at_mut(self.left);
        self.spare = spare;
        self.filled -= lent.len();
        self.left = 0;
        Poll::Ready(Ok(Some(lent)))
    }

    /// The length was checked before.
    fn poll_fill(&mut self, cx: &mut Context<'_>, all: &mut Vec<u8>, _: usize) -> Poll<Result<bool, ApiError>> {
        if all.capacity() == 0 {
            // Not before there is something to put there: a client may announce much and send nothing.
            while self.here.is_empty() && self.filled < self.spare.len().min(self.left) {
                let read = ready!(self.poll_read(cx));
                if !matches!(read, Ok(true)) {
                    return Poll::Ready(Err(self.cut(read)));
                }
            }
            grow(all, self.here.len() + self.filled, self.left)?;
            all.extend_from_slice(self.here);
            all.extend_from_slice(&self.spare[..self.filled]);
            self.left -= all.len();
            self.here = &[];
            self.filled = 0;
            return Poll::Ready(Ok(true));
        }
        if all.len() == all.capacity() {
            grow(all, all.len() + 1, all.len() + self.left)?;
        }
        let mut room = all.limit(self.left);
        match ready!(pin!(self.stream.read_buf(&mut room)).poll(cx)) {
            Ok(read @ 1..) => {
                self.left -= read;
                Poll::Ready(Ok(true))
            }
            read @ (Ok(0) | Err(_)) => Poll::Ready(Err(self.cut(read))),
        }
    }

    /// Reads ahead, as far as the buffer goes: that is how an end is seen.
    fn look_after(&mut self, cx: &mut Context<'_>) {
        if self.behind + self.filled > 0 || self.conn.has_ended() {
            return;
        }
        match self.poll_read(cx) {
            Poll::Ready(Ok(false)) => self.conn.client_ends(),
            Poll::Ready(Err(_)) => self.conn.client_is_gone(),
            Poll::Ready(Ok(true)) | Poll::Pending => {}
        }
    }
}
