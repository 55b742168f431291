//! One attempt: a connection, a request, an answer.

use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::Request;
use http::header::{self, HeaderName, HeaderValue};
use http_body_util::Full;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::answer::{Answer, X_REQUEST_ID};
use crate::batch::Batch;
use crate::connection::{Connection, Kept, Watched};
use crate::error::{Failure, Kind, Written};
use crate::form::{Form, Known};
use crate::lookup::Lookup;
use crate::settings::Settings;

const X_AUTH: HeaderName = HeaderName::from_static("x-auth");
/// With it the service's own refusals say whether anything was written.
const ACCEPTED: HeaderValue = HeaderValue::from_static("application/problem+json, */*");
const GZIP: HeaderValue = HeaderValue::from_static("gzip");
const AGENT: HeaderValue = HeaderValue::from_static(concat!("leitstand_producer/", env!("CARGO_PKG_VERSION")));

/// Makes attempts, and keeps connections between them.
pub(crate) struct Attempts {
    settings: Arc<Settings>,
    lookup: Lookup,
    kept: Kept,
    known: Known,
    /// What the ids of requests begin with.
    prefix: u64,
    requests: AtomicU64,
    #[cfg(feature = "tls")]
    tls: Option<crate::tls::Tls>,
}

impl Attempts {
    pub fn new(settings: Arc<Settings>) -> Attempts {
        Attempts {
            #[cfg(feature = "tls")]
            tls: settings.target.trust.clone().map(crate::tls::Tls::new),
            lookup: Lookup::new(settings.target.host.clone(), settings.target.port),
            settings,
            kept: Kept::default(),
            known: Known::default(),
            // A hasher is keyed at random; the process tells those apart that were forked.
            prefix: RandomState::new().hash_one(std::process::id()),
            requests: AtomicU64::new(0),
        }
    }

    /// Sends a batch once, in the form that the service knows. `Ok` means that the service has acknowledged it.
    pub async fn make(&self, batch: &Batch) -> Result<(), Failure> {
        let deadline = Instant::now() + self.settings.timeout;
        let mut form = self.known.form(batch);
        let mut tried = Vec::new();
        loop {
            tried.push(form);
            let Err(failure) = self.send(batch, form, deadline).await else {
                self.known.set(form);
                return Ok(());
            };
            form = form.after(&failure, batch);
            if tried.contains(&form) {
                return Err(failure);
            }
        }
    }

    async fn send(&self, batch: &Batch, form: Form, deadline: Instant) -> Result<(), Failure> {
        let id = format!("{:016x}-{}", self.prefix, self.requests.fetch_add(1, Ordering::Relaxed));
        let id = HeaderValue::from_str(&id).map_err(|e| Failure::setting("X-Request-ID", e))?;
        let mut request = self.request(batch, form, &id)?;
        loop {
            let kept = self.kept.take();
            let was_kept = kept.is_some();
            let mut connection = match kept {
                Some(mut connection) => match timeout_at(deadline, connection.sender.ready()).await {
                    Ok(Ok(())) if connection.is_quiet() => connection,
                    // It ended while it waited, or somebody talks on it; there may be others.
                    Ok(_) => continue,
                    Err(_) => return Err(self.failure(Kind::Timeout, "a connection is stuck", Written::No)),
                },
                None => match timeout_at(deadline, self.connect()).await {
                    Ok(connected) => connected?,
                    Err(_) => {
                        self.lookup.forget();
                        return Err(self.failure(Kind::Connect, "no connection in time", Written::No));
                    }
                },
            };
            let sent = match timeout_at(deadline, connection.sender.try_send_request(request)).await {
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
            let answer = match timeout_at(deadline, Answer::read(response)).await {
                Ok(read) => read.map_err(|error| self.broken(error, Written::Maybe))?,
                Err(_) => return Err(self.late()),
            };
            let is_ours = answer.request_id() == Some(&id);
            let was_repeated = std::mem::replace(&mut connection.repeats_ids, is_ours);
            // Without ids an answer that comes late could be taken for that of the next request.
            if answer.ends_clearly && is_ours {
                self.kept.put(connection);
            }
            let judged = answer.judge(&self.settings.target.url);
            if is_ours || !was_repeated {
                return judged;
            }
            // A late answer to another request, or one of a proxy in between.
            return Err(match judged {
                Ok(()) => self.failure(Kind::Broken, "the answer is to another request", Written::Maybe),
                Err(failure) => Failure { written: Written::Maybe, ..failure },
            });
        }
    }

    fn request(&self, batch: &Batch, form: Form, id: &HeaderValue) -> Result<Request<Full<Bytes>>, Failure> {
        let target = &self.settings.target;
        let (content_type, plain) = form.body(batch);
        let mut request = Request::post(format!("{}{}", target.path, form.target(batch)))
            .header(header::HOST, &target.authority)
            .header(header::USER_AGENT, AGENT)
            .header(header::ACCEPT, ACCEPTED)
            .header(header::CONTENT_TYPE, content_type)
            .header(X_REQUEST_ID, id);
        if let Some(token) = &self.settings.token {
            request = request.header(X_AUTH, token);
        }
        let body = if self.settings.gzip {
            request = request.header(header::CONTENT_ENCODING, GZIP);
            gzip(&plain).into()
        } else {
            plain
        };
        request.body(Full::new(body)).map_err(|e| Failure::setting("LEITSTAND_URL", e))
    }

    async fn connect(&self) -> Result<Connection, Failure> {
        let cannot = |what: &str, e: io::Error| self.failure(Kind::Connect, what, Written::No).caused_by_io(e);
        let addresses = self.lookup.addresses().await.map_err(|e| cannot("cannot look up the host", e))?;
        let stream = TcpStream::connect(&addresses[..]).await.map_err(|e| {
            self.lookup.forget();
            cannot("cannot connect", e)
        })?;
        // Only costs time if it fails.
        let _ = stream.set_nodelay(true);
        let stream = Watched::new(stream);
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            use tokio_rustls::rustls::pki_types::ServerName;
            let name = ServerName::try_from(self.settings.target.host.clone())
                .map_err(|e| Failure::setting("LEITSTAND_URL", e))?;
            let secured = tls.connector()?.connect(name, stream.clone()).await;
            let secured = secured.map_err(|e| cannot("cannot agree on TLS", e))?;
            return self.start(stream, secured).await;
        }
        self.start(stream.clone(), stream).await
    }

    async fn start<S>(&self, stream: Watched, secured: S) -> Result<Connection, Failure>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        Connection::start(stream, secured).await.map_err(|error| self.broken(error, Written::No))
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

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).expect("memory takes everything");
    encoder.finish().expect("memory takes everything")
}
