//! Plain requests, read and answered without hyper: one event, one read, one write.
//!
//! hyper's machine is made for every message that HTTP/1 allows. The requests that carry the load are all
//! of one form, see [`head::look`]. They are served here, one after the other, straight between the socket
//! and the edge. A request of another form, or of none, is left as it came, and hyper serves it. Afterwards the
//! connection waits here again: its buffers are a tenth of hyper's, and those do not shrink.

pub(crate) mod answer;
mod body;
mod head;
mod unread;

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite};

pub(crate) use body::PlainBody;
pub(crate) use head::Head as PlainHead;
pub(crate) use unread::{Read, Replay, Unread};

use super::conn::{ConnState, Patience};
use super::edge::Edge;
use head::Seen;
use unread::Grown;

/// How the service of plain requests ends.
pub(crate) enum End {
    /// Nothing more is to be read or written.
    Done,
    /// The client took too long.
    Late,
    /// There is no room for a head as long as this one.
    Busy,
    /// What comes next begins with these bytes and is for hyper: a head that is whole, longer than any may be,
    /// or none.
    Other(Unread),
}

/// Serves plain requests, of which the first begins with what `buffer` holds, until something else comes.
pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, edge: &Edge, mut buffer: Unread) -> End {
    let mut out = Vec::new();
    loop {
        let (has_room, is_long) = (buffer.has_room(), buffer.is_long());
        let is_news = is_long && buffer.may_end_a_head();
        let (here, spare) = buffer.split();
        let seen = match is_long {
            false => head::look(here),
            true if is_news => head::look_at_any(here),
            true => Seen::Partial,
        };
        match seen {
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
                buffer.keep(stream, rest).await;
                if !buffer.is_empty() {
                    edge.conn.head_begins();
                }
            }
            Seen::Other => return End::Other(buffer),
            Seen::Partial if !has_room => match buffer.grow(&edge.conn) {
                Grown::More => {}
                Grown::Longest => return End::Other(buffer),
                Grown::Refused => return End::Busy,
            },
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

/// Waits for an answer. `None` when the connection breaks before: nobody waits for it any more. What has been handed
/// to the store is written all the same. A client that has only ended its side waits (RFC 9112, section 9.6).
async fn while_connected<T>(conn: &ConnState, mut answer: Pin<&mut impl Future<Output = T>>) -> Option<T> {
    poll_fn(|cx| match answer.as_mut().poll(cx) {
        Poll::Ready(answer) => Poll::Ready(Some(answer)),
        Poll::Pending if conn.is_gone() => Poll::Ready(None),
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

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use tokio::time::Instant;

    use super::*;
    use crate::http::conn::{TICK, WRITE_STALL_MAX};
    use crate::http::connections::Connections;

    /// Broken, a client that asks and never reads keeps its connection, and the answer, for ever; or
    /// one on a slow line is cut off.
    #[test]
    fn a_client_that_takes_nothing_is_given_up_and_a_slow_one_is_not() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (_, conn) = Connections::default().add();
            let (mut near, _far) = tokio::io::duplex(1);
            let started = Instant::now();
            let mut out = vec![b'x'; 6];
            let written = tokio::time::timeout(2 * WRITE_STALL_MAX, write(&mut near, &conn, &mut out)).await;
            assert_eq!(written.expect("it is given up").unwrap_err().kind(), io::ErrorKind::TimedOut);
            assert!((WRITE_STALL_MAX..WRITE_STALL_MAX + TICK).contains(&started.elapsed()), "{:?}", started.elapsed());

            let (mut near, mut far) = tokio::io::duplex(1);
            let slow = async {
                for _ in 0..5 {
                    tokio::time::sleep(WRITE_STALL_MAX - TICK).await;
                    far.read_u8().await.unwrap();
                }
            };
            tokio::join!(slow, async { write(&mut near, &conn, &mut out).await.unwrap() });
            assert!(out.is_empty());
        });
    }
}
