//! A small HTTP/1.1 client on std sockets, for the commands that ask a service something.
//!
//! One connection, one request at a time, answers with a length or up to the end of the connection.

use std::io::{self, Error, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::runtime::Builder;

use crate::config::Bind;

/// How long one read or write may take, and how much an answer may hold. All of an answer may take [`ANSWER_TIMEOUTS`] times
/// as long: a peer that says a byte now and then would hold a command for ever.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) timeout: Duration,
    pub(super) answer_bytes_max: usize,
}

/// How often a socket with a full queue is tried.
const CONNECT_POLL: Duration = Duration::from_millis(10);

/// So many times the timeout of one read.
const ANSWER_TIMEOUTS: u32 = 3;

/// An open connection. After an error it is of no further use.
pub(super) struct Connection {
    stream: Box<dyn Stream>,
    bounds: Bounds,
    /// Read from the stream and not yet used.
    buffer: Vec<u8>,
}

/// What was answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// The `Date` field.
    pub(super) date: Option<String>,
    pub(super) body: Vec<u8>,
}

impl Answer {
    /// The body for a message.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

trait Stream: Read + Write + Send {}
impl Stream for TcpStream {}
impl Stream for UnixStream {}

impl Connection {
    /// Connects to where a service with this setting listens.
    pub(super) fn open(bind: &Bind, bounds: Bounds) -> io::Result<Connection> {
        let stream: Box<dyn Stream> = match bind {
            Bind::Tcp { host, port } => Box::new(tcp(host, *port, bounds.timeout)?),
            Bind::Unix(path) => {
                let stream = unix(path, bounds.timeout)?;
                stream.set_read_timeout(Some(bounds.timeout))?;
                stream.set_write_timeout(Some(bounds.timeout))?;
                Box::new(stream)
            }
        };
        Ok(Connection { stream, bounds, buffer: Vec::new() })
    }

    pub(super) fn get(&mut self, path: &str) -> io::Result<Answer> {
        self.request("GET", path, &[], b"")
    }

    /// Sends one request and reads its answer. The connection stays open if the other side keeps it so.
    pub(super) fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Answer> {
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n").into_bytes();
        for (name, value) in headers {
            write!(request, "{name}: {value}\r\n")?;
        }
        if method != "GET" {
            write!(request, "Content-Length: {}\r\n", body.len())?;
        }
        request.extend_from_slice(b"\r\n");
        request.extend_from_slice(body);
        self.stream.write_all(&request)?;
        self.answer()
    }

    fn answer(&mut self) -> io::Result<Answer> {
        let until = Instant::now() + self.bounds.timeout * ANSWER_TIMEOUTS;
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break at + 4;
            }
            if !self.fill(until)? {
                return Err(Error::new(ErrorKind::UnexpectedEof, "the connection ended without an answer"));
            }
        };
        let head: Vec<u8> = self.buffer.drain(..end).collect();
        let head = String::from_utf8_lossy(&head);
        let status = status(&head).ok_or_else(|| Error::new(ErrorKind::InvalidData, "no HTTP/1.1 answer"))?;
        let body = match content_length(&head) {
            Some(bytes) => {
                while self.buffer.len() < bytes {
                    if !self.fill(until)? {
                        return Err(Error::new(ErrorKind::UnexpectedEof, "the connection ended within an answer"));
                    }
                }
                self.buffer.drain(..bytes).collect()
            }
            None => {
                while self.fill(until)? {}
                std::mem::take(&mut self.buffer)
            }
        };
        Ok(Answer { status, date: field(&head, "date").map(str::to_owned), body })
    }

    /// Reads some more; false at the end of the connection.
    fn fill(&mut self, until: Instant) -> io::Result<bool> {
        if Instant::now() >= until {
            return Err(Error::new(ErrorKind::TimedOut, "the answer takes too long"));
        }
        if self.buffer.len() > self.bounds.answer_bytes_max {
            return Err(Error::new(ErrorKind::InvalidData, "the answer is too long"));
        }
        let mut chunk = [0; 8 << 10];
        loop {
            match self.stream.read(&mut chunk) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
                Ok(n) => {
                    self.buffer.extend_from_slice(&chunk[..n]);
                    return Ok(n > 0);
                }
            }
        }
    }
}

fn tcp(host: &str, port: u16, timeout: Duration) -> io::Result<TcpStream> {
    // Listening on all addresses includes loopback.
    let host = match host {
        "0.0.0.0" => "127.0.0.1",
        "::" | "[::]" => "::1",
        other => other.trim_start_matches('[').trim_end_matches(']'),
    };
    let address = (host, port).to_socket_addrs()?.next().ok_or(ErrorKind::NotFound)?;
    let stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    Ok(stream)
}

/// A service that hangs takes no connections any more, and once enough of them wait a plain connect does so for ever.
fn unix(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let runtime = Builder::new_current_thread().enable_io().build()?;
    let until = Instant::now() + timeout;
    loop {
        let connected = runtime.block_on(async { tokio::net::UnixStream::connect(path).await?.into_std() });
        match connected {
            Err(e) if e.kind() == ErrorKind::WouldBlock && Instant::now() < until => std::thread::sleep(CONNECT_POLL),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                return Err(Error::new(ErrorKind::TimedOut, "too many connections wait there already"));
            }
            Err(e) => return Err(e),
            Ok(stream) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
        }
    }
}

fn status(head: &str) -> Option<u16> {
    head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
}

fn content_length(head: &str) -> Option<usize> {
    field(head, "content-length")?.parse().ok()
}

fn field<'a>(head: &'a str, wanted: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case(wanted).then(|| value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection whose other side has said `said` and hung up.
    fn told(said: &[u8]) -> Connection {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(said).unwrap();
        drop(theirs);
        let bounds = Bounds { timeout: Duration::from_secs(5), answer_bytes_max: 64 };
        Connection { stream: Box::new(ours), bounds, buffer: Vec::new() }
    }

    /// Broken, one answer would run into the next, and a drill would count the wrong acks.
    #[test]
    fn answers_on_one_connection_are_told_apart() {
        let two =
            b"HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 503 x\r\nContent-Length: 4\r\n\r\nbusy";
        let mut connection = told(two);
        let (first, second) = (connection.answer().unwrap(), connection.answer().unwrap());
        assert_eq!((first.status, first.text().as_str()), (202, "ok"));
        assert_eq!((second.status, second.text().as_str()), (503, "busy"));
        assert_eq!(connection.answer().unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    /// Broken, a peer that says a byte now and then would hold a check of the service for as long as it likes.
    #[test]
    fn an_answer_has_an_end_in_time() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let bounds = Bounds { timeout: Duration::from_millis(50), answer_bytes_max: 1 << 20 };
        ours.set_read_timeout(Some(bounds.timeout)).unwrap();
        let mut connection = Connection { stream: Box::new(ours), bounds, buffer: Vec::new() };
        let drip = std::thread::spawn(move || {
            while theirs.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let error = connection.answer().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        drop(connection);
        drip.join().unwrap();
    }

    /// Broken, whoever asks a service that hangs how it is would hang with it.
    #[test]
    fn a_connection_that_nobody_takes_has_an_end_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let runtime = Builder::new_current_thread().enable_io().build().unwrap();
        let waiting = runtime.block_on(async {
            let socket = tokio::net::UnixSocket::new_stream().unwrap();
            socket.bind(&path).unwrap();
            let listener = socket.listen(1).unwrap();
            let mut waiting = Vec::new();
            while let Ok(stream) = tokio::net::UnixStream::connect(&path).await {
                waiting.push(stream);
            }
            (listener, waiting)
        });
        let (told, answer) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let bounds = Bounds { timeout: Duration::from_millis(200), answer_bytes_max: 64 };
            told.send(Connection::open(&Bind::Unix(path), bounds).map(drop).map_err(|e| e.kind()))
        });
        assert_eq!(answer.recv_timeout(Duration::from_secs(20)).expect("it has an end"), Err(ErrorKind::TimedOut));
        drop(waiting);
    }

    /// Broken, half an answer would pass for a whole one, or a stranger's answer would fill the memory.
    #[test]
    fn what_is_no_whole_answer_is_an_error() {
        for said in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok"[..],
            b"HTTP/1.1 200 OK\r\n",
            b"SSH-2.0-x\r\n\r\n",
            b"",
            &[b'x'; 200],
        ] {
            assert!(told(said).answer().is_err(), "{:?}", String::from_utf8_lossy(said));
        }
        assert_eq!(told(b"HTTP/1.1 200 OK\r\n\r\nto the end").answer().unwrap().text(), "to the end");
    }
}
