//! One attempt: a connection, a request, an answer, and what it means.

use std::io::{self, Write as _};
use std::sync::Mutex;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::batch::Batch;
use crate::error::{Failure, Kind, Written};
use crate::settings::Settings;

/// An idle connection is not used again after this time: a proxy may have dropped it without a word.
const IDLE_MAX: Duration = Duration::from_secs(20);
/// Connections that wait for the next request.
const IDLE_CONNECTIONS_MAX: usize = 8;
/// What is read of an answer at most.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// A longer `Retry-After` counts as absent.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

const X_AUTH: HeaderName = HeaderName::from_static("x-auth");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const NDJSON: HeaderValue = HeaderValue::from_static("application/x-ndjson");
const GZIP: HeaderValue = HeaderValue::from_static("gzip");
const AGENT: HeaderValue = HeaderValue::from_static(concat!("leitstand_producer/", env!("CARGO_PKG_VERSION")));

type Sender = SendRequest<Full<Bytes>>;

/// Makes attempts, and keeps connections between them.
pub(crate) struct Attempts {
    settings: Settings,
    idle: Mutex<Vec<(Sender, Instant)>>,
    #[cfg(feature = "tls")]
    tls: Option<tokio_rustls::TlsConnector>,
}

/// An answer that came whole.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    text: Bytes,
}

impl Attempts {
    pub fn new(settings: Settings) -> Result<Attempts, Failure> {
        Ok(Attempts {
            #[cfg(feature = "tls")]
            tls: settings.target.tls.then(tls_connector).transpose()?,
            settings,
            idle: Mutex::new(Vec::new()),
        })
    }

    /// Sends a batch once. `Ok` means that the service has acknowledged it.
    pub async fn make(&self, domain: Option<&str>, batch: &Batch) -> Result<(), Failure> {
        let deadline = Instant::now() + self.settings.timeout;
        let mut request = self.request(domain, batch)?;
        loop {
            let kept = self.kept_connection();
            let was_kept = kept.is_some();
            let mut sender = match kept {
                Some(mut sender) => match timeout_at(deadline, sender.ready()).await {
                    Ok(Ok(())) => sender,
                    // It ended while it waited; there may be others.
                    Ok(Err(_)) => continue,
                    Err(_) => return Err(self.failure(Kind::Timeout, "a connection is stuck", Written::No)),
                },
                None => match timeout_at(deadline, self.connect()).await {
                    Ok(connected) => connected?,
                    Err(_) => return Err(self.failure(Kind::Connect, "no connection in time", Written::No)),
                },
            };
            let sent = match timeout_at(deadline, sender.try_send_request(request)).await {
                Ok(sent) => sent,
                Err(_) => return Err(self.late()),
            };
            let response = match sent {
                Ok(response) => response,
                Err(mut error) => {
                    // hyper hands a request back only if no byte of it was written.
                    let unsent = error.take_message();
                    let error = error.into_error();
                    match unsent {
                        // The service had closed a connection that waited for its next request.
                        Some(back) if was_kept => {
                            request = back;
                            continue;
                        }
                        Some(_) => return Err(self.broken(error, Written::No)),
                        None => return Err(self.broken(error, Written::Maybe)),
                    }
                }
            };
            let (answer, is_whole) = match timeout_at(deadline, read(response)).await {
                Ok(read) => read.map_err(|error| self.broken(error, Written::Maybe))?,
                Err(_) => return Err(self.late()),
            };
            if is_whole {
                self.keep(sender);
            }
            return judge(answer, &self.settings.target.url);
        }
    }

    fn request(&self, domain: Option<&str>, batch: &Batch) -> Result<Request<Full<Bytes>>, Failure> {
        let target = &self.settings.target;
        // A normal domain needs no escapes.
        let query = domain.map(|domain| format!("?domain={domain}")).unwrap_or_default();
        let mut request = Request::post(format!("{}/v1/ingest{query}", target.path))
            .header(header::HOST, &target.authority)
            .header(header::USER_AGENT, AGENT)
            .header(header::CONTENT_TYPE, NDJSON);
        if let Some(token) = &self.settings.token {
            request = request.header(X_AUTH, token);
        }
        let body = if self.settings.gzip {
            request = request.header(header::CONTENT_ENCODING, GZIP);
            gzip(&batch.lines).into()
        } else {
            batch.lines.clone()
        };
        request.body(Full::new(body)).map_err(|e| Failure::setting("LEITSTAND_URL", e))
    }

    fn kept_connection(&self) -> Option<Sender> {
        let mut idle = self.idle.lock().expect("no panic while it is held");
        while let Some((sender, since)) = idle.pop() {
            if since.elapsed() < IDLE_MAX && !sender.is_closed() {
                return Some(sender);
            }
        }
        None
    }

    fn keep(&self, sender: Sender) {
        let mut idle = self.idle.lock().expect("no panic while it is held");
        if !sender.is_closed() && idle.len() < IDLE_CONNECTIONS_MAX {
            idle.push((sender, Instant::now()));
        }
    }

    async fn connect(&self) -> Result<Sender, Failure> {
        let target = &self.settings.target;
        let stream = match TcpStream::connect((target.host.as_str(), target.port)).await {
            Ok(stream) => stream,
            Err(e) => return Err(self.failure(Kind::Connect, "cannot connect", Written::No).caused_by_io(e)),
        };
        // Only costs time if it fails.
        let _ = stream.set_nodelay(true);
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            use tokio_rustls::rustls::pki_types::ServerName;
            let name = ServerName::try_from(target.host.clone()).map_err(|e| Failure::setting("LEITSTAND_URL", e))?;
            let stream = tls.connect(name, stream).await;
            let stream =
                stream.map_err(|e| self.failure(Kind::Connect, "cannot agree on TLS", Written::No).caused_by_io(e))?;
            return self.shake_hands(stream).await;
        }
        self.shake_hands(stream).await
    }

    async fn shake_hands<S>(&self, stream: S) -> Result<Sender, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let shaken = handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = shaken.map_err(|error| self.broken(error, Written::No))?;
        // Whoever waits for an answer gets the error as well.
        tokio::spawn(async { drop(connection.await) });
        sender.ready().await.map_err(|error| self.broken(error, Written::No))?;
        Ok(sender)
    }

    fn late(&self) -> Failure {
        let what = format!("no answer within {:?}", self.settings.timeout);
        self.failure(Kind::Timeout, &what, Written::Maybe)
    }

    fn broken(&self, error: hyper::Error, written: Written) -> Failure {
        let what = if error.is_parse() { "what came is no HTTP" } else { "the connection ended before an answer" };
        self.failure(Kind::Broken, what, written).caused_by(error)
    }

    /// A failure without an answer. Another try may help.
    fn failure(&self, kind: Kind, what: &str, written: Written) -> Failure {
        Failure::new(kind, format!("{}: {what}", self.settings.target.url), written, true)
    }
}

impl Failure {
    fn caused_by_io(mut self, error: io::Error) -> Failure {
        self.what = format!("{}: {error}", self.what);
        self.caused_by(error)
    }
}

/// The answer, and whether its connection can be used again.
async fn read(response: http::Response<hyper::body::Incoming>) -> Result<(Answer, bool), hyper::Error> {
    let (head, mut body) = response.into_parts();
    let mut text = BytesMut::new();
    let mut is_whole = true;
    while let Some(frame) = body.frame().await {
        if let Some(data) = frame?.data_ref() {
            let room = ANSWER_BYTES_MAX - text.len();
            text.extend_from_slice(&data[..data.len().min(room)]);
            if data.len() > room {
                is_whole = false;
                break;
            }
        }
    }
    Ok((Answer { status: head.status, headers: head.headers, text: text.freeze() }, is_whole))
}

/// What an answer means; the table of PROTOCOL.md.
fn judge(answer: Answer, url: &str) -> Result<(), Failure> {
    let status = answer.status.as_u16();
    let is_ok = answer.text.trim_ascii() == b"ok";
    let (retryable, written) = match status {
        200 | 202 if is_ok => return Ok(()),
        408 | 429 | 503 | 507 => (true, Written::No),
        400..=499 => (false, Written::No),
        500..=599 => (true, Written::Maybe),
        _ => (false, Written::Maybe),
    };
    let header = |name| answer.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let mut failure = Failure::new(Kind::Answer, format!("{url}: "), written, retryable);
    failure.status = Some(status);
    failure.retry_after = header(header::RETRY_AFTER).and_then(retry_after);
    failure.request_id = header(X_REQUEST_ID).map(str::to_owned);
    failure.text = Some(String::from_utf8_lossy(&answer.text).into_owned());
    Err(failure)
}

/// Whole seconds up to a minute; anything else counts as absent.
fn retry_after(text: &str) -> Option<Duration> {
    let text = text.trim();
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let time = Duration::from_secs(text.parse().ok().filter(|_| digits)?);
    (time <= RETRY_AFTER_MAX).then_some(time)
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).expect("memory takes everything");
    encoder.finish().expect("memory takes everything")
}

#[cfg(feature = "tls")]
fn tls_connector() -> Result<tokio_rustls::TlsConnector, Failure> {
    use std::sync::Arc;
    use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        return Err(Failure::setting("LEITSTAND_URL", "https, but this machine has no certificates to trust"));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| Failure::setting("LEITSTAND_URL", e))?;
    let config = config.with_root_certificates(roots).with_no_client_auth();
    Ok(tokio_rustls::TlsConnector::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, a date or a very long time would stop a program for good.
    #[test]
    fn only_whole_seconds_up_to_a_minute_count() {
        assert_eq!(retry_after(" 60 "), Some(Duration::from_secs(60)));
        assert_eq!(retry_after("0"), Some(Duration::ZERO));
        for absent in ["", "61", "-1", "+1", "1.5", "99999999999999999999", "Wed, 21 Oct 2015 07:28:00 GMT"] {
            assert_eq!(retry_after(absent), None, "{absent}");
        }
    }
}
