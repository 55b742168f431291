//! `ConnIo`: a connection's bytes, watched on their way to and from hyper.
//!
//! Does what hyper does not: sees each request head as it came in (hyper has resolved doubtful
//! framing before a service can look), gives up on a client that does not read its answer, and
//! knows whether the client has ended its side. Deadlines for heads and idle connections are one
//! number per connection that [`Connections`] looks at twice a second: no timer per request.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use atomic_waker::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// How long a client may refuse to take any byte of an answer.
const WRITE_STALL_MAX: Duration = Duration::from_secs(30);
/// Longest head that is looked at; hyper's own buffer is not larger.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// Time for the first byte of a connection, for a whole head, and between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How often deadlines are looked at.
pub(crate) const TICK: Duration = Duration::from_millis(500);
/// [`HEAD_TIMEOUT`] in ticks, and one for the tick under way.
const HEAD_TICKS: u64 = HEAD_TIMEOUT.as_millis() as u64 / TICK.as_millis() as u64 + 1;
/// No deadline: a request is being handled, and has deadlines of its own.
const NEVER: u64 = u64::MAX;

/// All open connections, for deadlines and for the end.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    open: Mutex<HashMap<u64, Arc<ConnState>>>,
    next_key: AtomicU64,
    clock: Arc<AtomicU64>,
}

impl Connections {
    /// Adds a connection; it counts until the returned key is removed.
    pub(crate) fn add(&self) -> (u64, Arc<ConnState>) {
        let key = self.next_key.fetch_add(1, Ordering::Relaxed);
        let state = Arc::new(ConnState::new(self.clock.clone()));
        self.with_open(|open| open.insert(key, state.clone()));
        (key, state)
    }

    pub(crate) fn remove(&self, key: u64) {
        self.with_open(|open| open.remove(&key));
    }

    /// Lets time pass: connections beyond their deadline are woken to end. Call it every [`TICK`].
    pub(crate) fn tick(&self) {
        let now = self.clock.fetch_add(1, Ordering::Relaxed) + 1;
        self.with_open(|open| {
            for conn in open.values().filter(|conn| conn.deadline.load(Ordering::Relaxed) < now) {
                conn.expired.store(true, Ordering::Relaxed);
                conn.waker.wake();
            }
        });
    }

    /// Tells every connection to end after the request it is at.
    pub(crate) fn stop(&self) {
        self.with_open(|open| {
            for conn in open.values() {
                conn.stop.store(true, Ordering::Relaxed);
                conn.waker.wake();
            }
        });
    }

    fn with_open<T>(&self, use_it: impl FnOnce(&mut HashMap<u64, Arc<ConnState>>) -> T) -> T {
        use_it(&mut self.open.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What the connection and its requests tell each other.
#[derive(Debug)]
pub(crate) struct ConnState {
    clock: Arc<AtomicU64>,
    /// The tick after which the connection has been idle, or at a head, for too long.
    deadline: AtomicU64,
    expired: AtomicBool,
    stop: AtomicBool,
    waker: AtomicWaker,
    /// The next byte begins a request head.
    expect_head: AtomicBool,
    /// The last head had framing that two readers could understand differently.
    doubtful: AtomicBool,
    /// The body of the current request was read to its end.
    body_done: AtomicBool,
    /// The client has ended its side.
    ended: AtomicBool,
    /// A refusal left body bytes unread: read them off before closing, see `server::linger`.
    pub(crate) linger: AtomicBool,
    /// At least one head has arrived.
    pub(crate) used: AtomicBool,
}

impl ConnState {
    fn new(clock: Arc<AtomicU64>) -> ConnState {
        let deadline = AtomicU64::new(clock.load(Ordering::Relaxed) + HEAD_TICKS);
        ConnState {
            clock,
            deadline,
            expired: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            waker: AtomicWaker::new(),
            expect_head: AtomicBool::new(true),
            doubtful: AtomicBool::new(false),
            body_done: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            linger: AtomicBool::new(false),
            used: AtomicBool::new(false),
        }
    }

    /// The task of the connection wants to know of [`ConnState::is_expired`] and
    /// [`ConnState::must_stop`].
    pub(crate) fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    pub(crate) fn is_expired(&self) -> bool {
        self.expired.load(Ordering::Relaxed)
    }

    pub(crate) fn must_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn restart_deadline(&self) {
        self.deadline.store(self.clock.load(Ordering::Relaxed) + HEAD_TICKS, Ordering::Relaxed);
    }

    fn suspend_deadline(&self) {
        self.deadline.store(NEVER, Ordering::Relaxed);
    }

    /// RFC 9112, section 6.3: Content-Length beside Transfer-Encoding, or twice.
    pub(crate) fn take_doubtful(&self) -> bool {
        self.doubtful.swap(false, Ordering::Relaxed)
    }

    pub(crate) fn request_begins(&self, has_body: bool) {
        self.body_done.store(!has_body, Ordering::Relaxed);
    }

    pub(crate) fn body_read(&self) {
        self.body_done.store(true, Ordering::Relaxed);
    }

    /// The answer is ready. True when the connection can carry another request.
    pub(crate) fn answer_begins(&self) -> bool {
        let reusable = self.body_done.load(Ordering::Relaxed);
        self.expect_head.store(reusable, Ordering::Relaxed);
        self.linger.store(!reusable, Ordering::Relaxed);
        self.restart_deadline();
        reusable
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }
}

/// A stream under watch.
pub(crate) struct ConnIo<S> {
    stream: S,
    state: Arc<ConnState>,
    /// The beginning of a head that came in pieces.
    head: Vec<u8>,
    stall: Option<Pin<Box<Sleep>>>,
}

impl<S> ConnIo<S> {
    pub(crate) fn new(stream: S, state: Arc<ConnState>) -> Self {
        ConnIo { stream, state, head: Vec::new(), stall: None }
    }

    pub(crate) fn into_inner(self) -> S {
        self.stream
    }

    fn watch(&mut self, new: &[u8]) {
        if !self.state.expect_head.load(Ordering::Relaxed) {
            return;
        }
        let judged = if self.head.is_empty() {
            let judged = judge_head(new);
            if judged.is_none() {
                self.head.extend_from_slice(new);
                self.state.restart_deadline();
            }
            judged
        } else {
            self.head.extend_from_slice(new);
            judge_head(&self.head)
        };
        let given_up = self.head.len() > HEAD_BYTES_MAX;
        if judged.is_some() || given_up {
            self.state.doubtful.store(judged == Some(Framing::Doubtful), Ordering::Relaxed);
            self.state.expect_head.store(false, Ordering::Relaxed);
            self.state.used.store(true, Ordering::Relaxed);
            self.state.suspend_deadline();
            self.head = Vec::new();
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Clear,
    Doubtful,
}

/// Looks at the lines up to the empty one; `None` when that has not come yet.
///
/// Doubtful is a length beside a transfer coding, two lengths, and a body that goes on after its
/// announced length with something that begins no request (compat: the original's parser refused
/// such a message as a whole; a client that counts characters instead of bytes sends it).
fn judge_head(bytes: &[u8]) -> Option<Framing> {
    let mut lengths = 0;
    let mut codings = 0;
    let mut announced = None;
    let mut rest = bytes;
    while let Some(end) = memchr::memchr(b'\n', rest) {
        let line = &rest[..end];
        let first_line = rest.len() == bytes.len();
        rest = &rest[end + 1..];
        match line.first() {
            // An empty line before the request line is allowed (RFC 9112, section 2.2).
            None | Some(b'\r') if !first_line && line.len() <= 1 => {
                let surplus = announced.and_then(|len: usize| rest.get(len));
                let stray = surplus.is_some_and(|b| !b.is_ascii_uppercase() && !b"\r\n".contains(b));
                let doubtful = lengths > 1 || (lengths > 0 && codings > 0) || stray;
                return Some(if doubtful { Framing::Doubtful } else { Framing::Clear });
            }
            Some(b'c' | b'C') => {
                if let Some(value) = field_value(line, b"content-length") {
                    lengths += 1;
                    announced = std::str::from_utf8(value).ok().and_then(|text| text.trim().parse().ok());
                }
            }
            Some(b't' | b'T') => codings += usize::from(field_value(line, b"transfer-encoding").is_some()),
            _ => {}
        }
    }
    None
}

fn field_value<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (field, value) = line.split_at_checked(name.len())?;
    value.strip_prefix(b":").filter(|_| field.eq_ignore_ascii_case(name))
}

impl<S: AsyncRead + Unpin> AsyncRead for ConnIo<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let room = buf.remaining() > 0;
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Poll::Ready(Ok(())) = polled {
            if buf.filled().len() == before && room {
                self.state.ended.store(true, Ordering::Relaxed);
            } else {
                self.watch(&buf.filled()[before..]);
            }
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> ConnIo<S> {
    /// Passes a write result on; after 30 s without any progress the write fails.
    fn with_patience<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            if self.stall.take().is_some() {
                self.state.restart_deadline();
            }
            return polled;
        }
        self.state.suspend_deadline();
        let deadline = || Box::pin(tokio::time::sleep_until(Instant::now() + WRITE_STALL_MAX));
        if self.stall.get_or_insert_with(deadline).as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ConnIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.with_patience(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.with_patience(cx, polled)
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
    use super::*;

    #[test]
    fn heads_that_two_readers_could_understand_differently_are_seen() {
        for (head, want) in [
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n", Some(Framing::Clear)),
            ("\r\nPOST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", Some(Framing::Clear)),
            ("POST / HTTP/1.1\nContent-Length: 1\n\n", Some(Framing::Clear)),
            ("POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", Some(Framing::Doubtful)),
            ("POST / HTTP/1.1\r\nTRANSFER-ENCODING: chunked\r\ncontent-length:1\r\n\r\n", Some(Framing::Doubtful)),
            ("POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", Some(Framing::Doubtful)),
            ("POST / HTTP/1.1\r\nContent-Length: 7\r\n\r\n{\"a\":1}{\"smuggled\":1}", Some(Framing::Doubtful)),
            ("POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}POST / HTTP/1.1\r\n", Some(Framing::Clear)),
            ("POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}\r\n", Some(Framing::Clear)),
            ("POST / HTTP/1.1\r\nX: y\r\n\r\nContent-Length: 1\r\nContent-Length: 1\r\n", Some(Framing::Clear)),
            ("POST / HTTP/1.1\r\nContent-Length: 1\r\n", None),
            ("", None),
        ] {
            assert_eq!(judge_head(head.as_bytes()), want, "{head:?}");
        }
    }

    #[test]
    fn idle_connections_expire_and_busy_ones_do_not() {
        let connections = Connections::default();
        let (_, silent) = connections.add();
        let (_, slow) = connections.add();
        let (gone, _) = connections.add();
        connections.remove(gone);
        let mut slow_io = ConnIo::new(tokio::io::empty(), slow.clone());
        let (_, busy) = connections.add();
        ConnIo::new(tokio::io::empty(), busy.clone()).watch(b"GET / HTTP/1.1\r\n\r\n");
        for tick in 0..=HEAD_TICKS {
            if tick == HEAD_TICKS {
                assert!(!silent.is_expired());
            }
            if tick == 5 {
                slow_io.watch(b"G");
            }
            if tick > 5 {
                slow_io.watch(b"E");
            }
            connections.tick();
        }
        assert!(silent.is_expired() && !slow.is_expired() && !busy.is_expired());
        (0..5).for_each(|_| connections.tick());
        assert!(slow.is_expired(), "a byte now and then is no head");
        assert!(!busy.is_expired());
        busy.answer_begins();
        (0..=HEAD_TICKS).for_each(|_| connections.tick());
        assert!(busy.is_expired());
    }

    #[test]
    fn a_head_in_pieces_is_judged_as_a_whole() {
        let head = b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
        for cut in 1..head.len() {
            let (_, state) = Connections::default().add();
            let mut io = ConnIo::new(tokio::io::empty(), state.clone());
            io.watch(&head[..cut]);
            io.watch(&head[cut..]);
            assert!(state.take_doubtful(), "{cut}");
        }
    }
}
