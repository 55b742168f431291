//! A small HTTP/1.1 client that sends exactly the bytes it is given.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{PATIENCE, TOKEN};

/// A request, to be sent as it stands.
#[derive(Debug, Clone)]
pub struct Request {
    method: String,
    path: String,
    headers: Vec<(String, Vec<u8>)>,
    /// The body on the wire: as given, or in chunks.
    wire_body: Vec<u8>,
}

impl Request {
    /// With Host and nothing else.
    pub fn new(method: &str, path: &str) -> Request {
        let headers = vec![("Host".to_owned(), b"leitstand.test".to_vec())];
        Request { method: method.to_owned(), path: path.to_owned(), headers, wire_body: Vec::new() }
    }

    /// A GET with the token.
    pub fn get(path: &str) -> Request {
        Request::new("GET", path).header("X-Auth", TOKEN)
    }

    /// JSON to `/v1/ingest?domain=`.
    pub fn post(domain: &str, body: impl AsRef<[u8]>) -> Request {
        Request::post_to(&format!("/v1/ingest?domain={domain}"), body)
    }

    /// JSON to a path.
    pub fn post_to(path: &str, body: impl AsRef<[u8]>) -> Request {
        Request::new("POST", path).header("X-Auth", TOKEN).header("Content-Type", "application/json").body(body)
    }

    /// Sets a header, in place of any of the same name.
    pub fn header(self, name: &str, value: impl AsRef<[u8]>) -> Request {
        self.without(name).also(name, value)
    }

    /// Adds a header, beside any of the same name.
    pub fn also(mut self, name: &str, value: impl AsRef<[u8]>) -> Request {
        self.headers.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    /// Leaves out a header.
    pub fn without(mut self, name: &str) -> Request {
        self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self
    }

    /// The body, with its length announced.
    pub fn body(mut self, body: impl AsRef<[u8]>) -> Request {
        self.wire_body = body.as_ref().to_vec();
        let length = self.wire_body.len().to_string();
        self.header("Content-Length", length)
    }

    /// The body in chunks of `chunk_bytes`, without a length.
    pub fn chunked(mut self, body: impl AsRef<[u8]>, chunk_bytes: usize) -> Request {
        self.wire_body.clear();
        for chunk in body.as_ref().chunks(chunk_bytes) {
            self.wire_body.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            self.wire_body.extend_from_slice(chunk);
            self.wire_body.extend_from_slice(b"\r\n");
        }
        self.wire_body.extend_from_slice(b"0\r\n\r\n");
        self.without("Content-Length").header("Transfer-Encoding", "chunked")
    }

    pub fn with_method(mut self, method: &str) -> Request {
        self.method = method.to_owned();
        self
    }

    pub fn method(&self) -> &str {
        &self.method
    }

    /// Request line and headers, with the empty line.
    pub fn head(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.path).into_bytes();
        for (name, value) in &self.headers {
            head.extend_from_slice(name.as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(value);
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(b"\r\n");
        head
    }

    /// The body as it goes over the wire.
    pub fn wire_body(&self) -> &[u8] {
        &self.wire_body
    }

    pub fn bytes(&self) -> Vec<u8> {
        [self.head(), self.wire_body.clone()].concat()
    }
}

/// An answer.
#[derive(Clone)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    /// The value of a header that must not be there twice.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        let value = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "{name} is there twice: {self:?}");
        value
    }

    /// The number in a header that must be there.
    pub fn number(&self, name: &str) -> u64 {
        let value = self.header(name).unwrap_or_else(|| panic!("no {name}: {self:?}"));
        value.parse().unwrap_or_else(|_| panic!("{name} is {value:?}"))
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("body is UTF-8")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// Is it this status with this text, in the shape that FastAPI gives errors?
    #[track_caller]
    pub fn assert_error(&self, status: u16, detail: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.text(), format!("{{\"detail\":\"{detail}\"}}"), "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
    }

    /// Is it this status with this plain text?
    #[track_caller]
    pub fn assert_text(&self, status: u16, text: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.text(), text, "{self:?}");
        assert_eq!(self.header("content-type"), Some("text/plain; charset=utf-8"), "{self:?}");
    }

    /// Is it the good answer of `/v1/ingest`?
    #[track_caller]
    pub fn assert_accepted(&self) {
        self.assert_text(202, "ok");
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = String::from_utf8_lossy(&self.body[..self.body.len().min(400)]);
        write!(f, "{} {:?} {body:?}", self.status, self.headers)
    }
}

/// What a client reads and writes.
pub trait Stream: Read + Write {
    fn set_read_patience(&self, patience: Duration);
    fn end_sending(&self);
}

impl Stream for TcpStream {
    fn set_read_patience(&self, patience: Duration) {
        self.set_read_timeout(Some(patience)).expect("a timeout that is not zero");
    }

    fn end_sending(&self) {
        // The server may have closed first; then there is nothing to end.
        let _ = self.shutdown(std::net::Shutdown::Write);
    }
}

impl Stream for UnixStream {
    fn set_read_patience(&self, patience: Duration) {
        self.set_read_timeout(Some(patience)).expect("a timeout that is not zero");
    }

    fn end_sending(&self) {
        // As above.
        let _ = self.shutdown(std::net::Shutdown::Write);
    }
}

/// One connection.
pub struct Client {
    stream: Box<dyn Stream + Send>,
    /// Read from the stream and not yet used.
    buffer: Vec<u8>,
}

impl Client {
    pub fn connect(address: &str) -> Client {
        let stream = TcpStream::connect(address).unwrap_or_else(|e| panic!("connect to {address}: {e}"));
        stream.set_nodelay(true).expect("a TCP option");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout that is not zero");
        Client::over(Box::new(stream))
    }

    pub fn connect_unix(path: &Path) -> Client {
        Client::over(Box::new(UnixStream::connect(path).expect("connect to the Unix socket")))
    }

    pub fn over(stream: Box<dyn Stream + Send>) -> Client {
        stream.set_read_patience(PATIENCE);
        Client { stream, buffer: Vec::new() }
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).expect("send");
    }

    /// As [`Client::send`], for where the server may close meanwhile.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Says that nothing more will be sent.
    pub fn end_sending(&self) {
        self.stream.end_sending();
    }

    /// Sends a request and reads its answer.
    pub fn roundtrip(&mut self, request: &Request) -> Response {
        self.send(request.bytes());
        self.read_answer(request.method())
    }

    /// Reads the answer to a request with this method; fails the test when there is none.
    pub fn read_answer(&mut self, method: &str) -> Response {
        self.try_read_answer(method).expect("read an answer")
    }

    /// Reads the answer to a request with this method.
    pub fn try_read_answer(&mut self, method: &str) -> io::Result<Response> {
        let (status, headers) = self.read_head()?;
        let mut response = Response { status, headers, body: Vec::new() };
        if method == "HEAD" || (100..200).contains(&status) || status == 204 || status == 304 {
            return Ok(response);
        }
        assert_eq!(response.header("transfer-encoding"), None, "no answer of ours is chunked");
        response.body = match response.header("content-length") {
            Some(_) => self.read_exact(response.number("content-length") as usize)?,
            None => self.read_to_end()?,
        };
        Ok(response)
    }

    fn read_head(&mut self) -> io::Result<(u16, Vec<(String, String)>)> {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            if self.fill()? == 0 {
                let got = String::from_utf8_lossy(&self.buffer).into_owned();
                return Err(io::Error::new(ErrorKind::UnexpectedEof, format!("the connection ended after {got:?}")));
            }
        };
        let head: Vec<u8> = self.buffer.drain(..end).collect();
        let head = String::from_utf8(head).expect("an answer's head is UTF-8");
        let mut lines = head.trim_end().split("\r\n");
        let status_line = lines.next().expect("a status line");
        let status = status_line.strip_prefix("HTTP/1.1 ").or_else(|| status_line.strip_prefix("HTTP/1.0 "));
        let status = status.and_then(|rest| rest.get(..3)?.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no status line: {status_line:?}"));
        let headers = lines.map(|line| {
            let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("no header: {line:?}"));
            (name.to_owned(), value.trim().to_owned())
        });
        Ok((status, headers.collect()))
    }

    fn read_exact(&mut self, bytes: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < bytes {
            if self.fill()? == 0 {
                return Err(io::Error::new(ErrorKind::UnexpectedEof, "the connection ended within a body"));
            }
        }
        Ok(self.buffer.drain(..bytes).collect())
    }

    /// Everything up to the end of the connection.
    pub fn read_to_end(&mut self) -> io::Result<Vec<u8>> {
        while self.fill()? != 0 {}
        Ok(std::mem::take(&mut self.buffer))
    }

    /// Did the server close, in time and without a further word? A reset is a close as well.
    pub fn is_closed_within(&mut self, patience: Duration) -> bool {
        self.closed_after(patience).is_some()
    }

    /// How long the server took to close without a further word; `None` if it did not.
    pub fn closed_after(&mut self, patience: Duration) -> Option<Duration> {
        let began = Instant::now();
        self.stream.set_read_patience(patience);
        let closed = match self.fill() {
            Ok(n) => n == 0,
            Err(e) => !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        };
        self.stream.set_read_patience(PATIENCE);
        (closed && self.buffer.is_empty()).then(|| began.elapsed())
    }

    /// Does the server say anything, or close, within this time?
    pub fn is_silent_for(&mut self, time: Duration) -> bool {
        self.stream.set_read_patience(time);
        let silent = matches!(self.fill(), Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
        self.stream.set_read_patience(PATIENCE);
        silent && self.buffer.is_empty()
    }

    fn fill(&mut self) -> io::Result<usize> {
        let mut chunk = [0; 16 << 10];
        let n = loop {
            match self.stream.read(&mut chunk) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        self.buffer.extend_from_slice(&chunk[..n]);
        Ok(n)
    }
}

/// A connection that is reset when it is dropped: the system does so where an answer was not read. One that is only
/// closed looks to the service like one whose client has ended its side and waits.
pub struct Hasty(TcpStream);

impl Hasty {
    /// Sends a first request and lets its answer lie.
    pub fn connect(address: &str, first: &Request) -> Hasty {
        let mut stream = TcpStream::connect(address).unwrap_or_else(|e| panic!("connect to {address}: {e}"));
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout that is not zero");
        stream.write_all(&first.bytes()).expect("send");
        assert!(stream.peek(&mut [0]).expect("an answer") > 0);
        Hasty(stream)
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).expect("send");
    }
}
