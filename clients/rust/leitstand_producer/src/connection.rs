//! A connection, and whether it may carry another request.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// An idle connection is not used again after this time: a proxy may have dropped it without a word.
const IDLE_MAX: Duration = Duration::from_secs(20);
/// Connections that wait for the next request.
const IDLE_CONNECTIONS_MAX: usize = 8;

pub(crate) type Sender = SendRequest<Full<Bytes>>;

/// A connection that carries one request at a time.
pub(crate) struct Connection {
    pub sender: Sender,
    stream: Watched,
    /// Its last answer has repeated the `X-Request-ID` of the request.
    pub repeats_ids: bool,
}

impl Connection {
    /// Speaks HTTP over what `secure` makes of the stream.
    pub async fn start<S>(stream: Watched, secured: S) -> hyper::Result<Connection>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) = handshake(TokioIo::new(secured)).await?;
        // Whoever waits for an answer gets the error as well.
        tokio::spawn(async { drop(connection.await) });
        sender.ready().await?;
        Ok(Connection { sender, stream, repeats_ids: false })
    }

    /// Nothing came on it that nobody asked for, as far as this machine knows. hyper looks only when it is
    /// woken; a second answer that lies there already would be taken for that of the next request.
    pub fn is_quiet(&self) -> bool {
        self.stream.is_quiet()
    }
}

/// Connections that wait for the next request, youngest last.
#[derive(Default)]
pub(crate) struct Kept(Mutex<Vec<(Connection, Instant)>>);

impl Kept {
    pub fn take(&self) -> Option<Connection> {
        let mut kept = self.lock();
        while let Some((connection, since)) = kept.pop() {
            if since.elapsed() < IDLE_MAX && !connection.sender.is_closed() && connection.is_quiet() {
                return Some(connection);
            }
        }
        None
    }

    pub fn put(&self, connection: Connection) {
        let mut kept = self.lock();
        if !connection.sender.is_closed() && kept.len() < IDLE_CONNECTIONS_MAX {
            kept.push((connection, Instant::now()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Connection, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream at which somebody besides its reader can look.
#[derive(Clone)]
pub(crate) struct Watched(Arc<Mutex<TcpStream>>);

impl Watched {
    pub fn new(stream: TcpStream) -> Watched {
        Watched(Arc::new(Mutex::new(stream)))
    }

    fn lock(&self) -> MutexGuard<'_, TcpStream> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No byte and no end waits to be read.
    fn is_quiet(&self) -> bool {
        let seen = recv(&*self.lock(), &mut [0u8; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        seen.is_err_and(|e| e == rustix::io::Errno::AGAIN)
    }
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_read(cx, buf)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.lock()).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.lock()).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.lock().is_write_vectored()
    }
}
