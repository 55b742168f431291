//! `POST /v1/ingest` and the deprecated `POST /ingest/{domain}`: headers and bytes to one append.

use std::borrow::Cow;
use std::pin::{Pin, pin};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, LINK};
use http::{HeaderMap, StatusCode};

use super::auth::Pass;
use super::blocking::Turns;
use super::body::{self, Coding, Held, Source, format_of};
use super::edge::{Call, Caller};
use super::error::{ApiError, Position};
use super::fields::Fields;
use super::limits::Standing;
use super::live::Terms;
use super::state::AppState;
use crate::config::Feature;
use crate::domain::Domain;
use crate::event::{Batch, EventError, Format, Limits, Reason, Refusal, Shortage};
use crate::storage::Reservation;
use crate::token::Scope;

/// Path before the domain on the deprecated route.
pub(crate) const OLD_PREFIX: &str = "/ingest/";
/// When the route was deprecated: 2026-11-21 (RFC 9745 wants Unix seconds).
pub(crate) const DEPRECATION: HeaderValue = HeaderValue::from_static("@1795219200");
/// compat: "expires 6 months after", as an HTTP date (RFC 8594). The route never switches itself off.
pub(crate) const SUNSET: HeaderValue = HeaderValue::from_static("Fri, 21 May 2027 00:00:00 GMT");
pub(crate) const SUCCESSOR: HeaderValue = HeaderValue::from_static("</v1/ingest>; rel=\"successor-version\"");
pub(crate) const DEPRECATED: HeaderName = HeaderName::from_static("deprecation");
pub(crate) const SUNSETS: HeaderName = HeaderName::from_static("sunset");
/// The body of the good answer, and its type.
pub(crate) const OK: &str = "ok";
pub(crate) const OK_TYPE: &str = "text/plain; charset=utf-8";
/// Larger bodies are parsed off the async workers, so that they hold up nobody else.
const PARSE_INLINE_BYTES_MAX: usize = 64 << 10;

/// Most events of a request.
const EVENTS_MAX: u64 = 10_000_000;
/// Most bytes that a request becomes, each event with its domain: so many times the largest body, and so many in any case.
const LINES_BYTES_FACTOR: usize = 4;
const LINES_BYTES_MIN: usize = 1 << 20;
/// Of bodies up to this size the share of the budget stays as it was reserved at first.
const COUNTED_ROUGHLY_BYTES_MAX: usize = 4 << 10;

/// The two routes and what differs between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    V1,
    Old,
}

impl Route {
    /// The template, for logs and metrics.
    pub(crate) fn template(self) -> &'static str {
        match self {
            Route::V1 => "/v1/ingest",
            Route::Old => "/ingest/{domain}",
        }
    }

    /// compat: clients of the old path accept nothing but 200.
    pub(crate) fn good(self) -> StatusCode {
        if self == Route::V1 { StatusCode::ACCEPTED } else { StatusCode::OK }
    }
}

/// An ingest request, but for its body.
pub(crate) struct Asked<'a, F> {
    pub route: Route,
    pub fields: &'a F,
    pub path: &'a str,
    pub query: &'a str,
    pub call: Call<'a>,
}

/// What came of an ingest request.
pub(crate) struct Outcome {
    /// Where the client stands with its rate limit, if it has one and was admitted.
    pub standing: Option<Standing>,
    pub result: Result<(), ApiError>,
}

/// What a request was about, for the access log.
#[derive(Debug, Clone, Default)]
pub(crate) struct Subject {
    pub pass: Pass,
    pub domain: Option<Domain>,
    pub events: u64,
    pub body_bytes: u64,
}

/// Append events
///
/// One event, an array of events, or NDJSON. The whole request is stored or nothing of it. A 202
/// means: every event is in the file `<domain>.jsonl`, whole, and synced to disk.
#[cfg_attr(feature = "docs", utoipa::path(
    post,
    path = "/v1/ingest",
    operation_id = "ingest",
    tag = "ingest",
    params(("domain" = Option<String>, Query, pattern = "^(\\s*[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*\\s*)?$", max_length = 253, description = "Domain of all events; else the first event's `domain` counts.")),
    request_body(
        description = "Events. `Content-Encoding: gzip` and `zstd` are taken; the limit counts decompressed bytes.",
        content(
            (super::openapi::Events = "application/json", example = json!({"domain": "example.com", "event": "demo", "status": "ok"})),
            (String = "application/x-ndjson", example = "{\"domain\":\"example.com\",\"event\":\"demo\"}\n{\"event\":\"demo\"}\n"),
            (String = "application/ndjson"),
            (String = "application/jsonl"),
            (String = "application/x-jsonlines"),
        )
    ),
    responses(
        (status = 202, description = "Written and synced.", body = String, content_type = "text/plain",
         headers(("X-Request-ID" = String), ("X-RateLimit-Limit" = u32), ("X-RateLimit-Remaining" = u32), ("X-RateLimit-Reset" = u64)), example = json!("ok")),
        super::openapi::IngestErrors,
    ),
    security(("x-auth" = []), ("bearer" = [])),
))]
pub(crate) async fn v1(State(state): State<Arc<AppState>>, request: Request) -> Response {
    through_router(&state, Route::V1, request).await
}

/// Append events (deprecated)
///
/// As `/v1/ingest`, with the domain in the path and 200 as the good answer. A body that is not one
/// of the NDJSON types is one JSON document, whatever its content type says.
#[cfg_attr(feature = "docs", utoipa::path(
    post,
    path = "/ingest/{domain}",
    operation_id = "ingest_by_path",
    tag = "ingest",
    params(("domain" = String, Path, pattern = "^\\s*[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*\\s*$", max_length = 253, description = "Domain of all events.")),
    request_body(
        content(
            (super::openapi::Events = "application/json", example = json!({"event": "demo", "status": "ok"})),
            (String = "application/x-ndjson", example = "{\"event\":\"demo\"}\n{\"event\":\"demo\"}\n"),
        )
    ),
    responses(
        (status = 200, description = "Written and synced.", body = String, content_type = "text/plain",
         headers(("X-Request-ID" = String), ("Deprecation" = String), ("Sunset" = String), ("Link" = String)), example = json!("ok")),
        super::openapi::IngestErrors,
    ),
    security(("x-auth" = []), ("bearer" = [])),
))]
#[deprecated]
pub(crate) async fn old(State(state): State<Arc<AppState>>, request: Request) -> Response {
    through_router(&state, Route::Old, request).await
}

/// As the edge calls it, for a router that is used on its own.
async fn through_router(state: &AppState, route: Route, request: Request) -> Response {
    let (parts, mut body) = request.into_parts();
    let call = Caller::of(&parts.extensions).call();
    let query = parts.uri.query().unwrap_or_default();
    let asked = Asked { route, fields: &parts.headers, path: parts.uri.path(), query, call };
    let mut subject = Subject::default();
    let outcome = respond(state, &asked, &mut body, &mut subject).await;
    let mut response = outcome.into_response(route);
    response.extensions_mut().insert(subject);
    response
}

/// Serves one ingest request; `subject` tells afterwards what it was about.
pub(crate) async fn respond<'a, F: Fields>(
    state: &AppState,
    asked: &Asked<'_, F>,
    body: &mut impl Source<'a>,
    subject: &mut Subject,
) -> Outcome {
    if asked.route == Route::Old {
        state.metrics.deprecated();
    }
    match admit(state, asked, body, subject) {
        Ok((standing, terms)) => Outcome { standing, result: ingest(state, asked, body, &terms, subject).await },
        Err(error) => error.into(),
    }
}

impl From<ApiError> for Outcome {
    /// Refused before the rate limit.
    fn from(error: ApiError) -> Outcome {
        Outcome { standing: None, result: Err(error) }
    }
}

impl Outcome {
    /// The answer, as the edge takes it from every handler.
    pub(crate) fn into_response(self, route: Route) -> Response {
        let mut response = match self.result {
            Ok(()) => accepted(route),
            Err(error) => error.into_response(),
        };
        if let Some(standing) = self.standing {
            standing.add_headers(response.headers_mut());
        }
        response
    }
}

/// What goes out with every answer on the deprecated path.
pub(crate) fn add_deprecation(headers: &mut HeaderMap) {
    headers.insert(DEPRECATED, DEPRECATION);
    headers.insert(SUNSETS, SUNSET);
    headers.insert(LINK, SUCCESSOR);
}

/// The token, then read-only mode, Content-Length, rate limit and throttle: a stranger learns nothing but
/// 401.
fn admit<'a, F: Fields>(
    state: &AppState,
    asked: &Asked<'_, F>,
    body: &impl Source<'a>,
    subject: &mut Subject,
) -> Result<(Option<Standing>, Terms), ApiError> {
    let (live, call) = (state.live(), &asked.call);
    if asked.route == Route::Old {
        live.need(Feature::OldPath)?;
    }
    subject.pass = state.auth.check(asked.fields, call, Scope::Ingest)?;
    let posted = state.gate.posted();
    posted.writable()?;
    body::check_length(asked.fields, body, state.max_body_bytes)?;
    // compat: the budget is per client and endpoint. The old path has its domain in it: all are one.
    let key = (call.client.key(), asked.route as u8);
    let standing = live.limiter.hit(key, call.started).map_err(ApiError::RateLimited)?;
    state.gate.slow_down(posted, call.started)?;
    Ok((standing, live.terms(call.started)))
}

/// One request, from admitted to acknowledged.
async fn ingest<'a, F: Fields>(
    state: &AppState,
    asked: &Asked<'_, F>,
    body: &mut impl Source<'a>,
    terms: &Terms,
    subject: &mut Subject,
) -> Result<(), ApiError> {
    let domain = match asked.route {
        Route::V1 => domain_of_query(asked.query)?,
        Route::Old => Some(domain_of_path(asked.path)?),
    };
    subject.domain.clone_from(&domain);
    if let Some(domain) = &domain {
        subject.pass.check_domain(domain)?;
        terms.check(domain)?;
    }
    let coding = Coding::of(asked.fields)?;
    if asked.fields.have_cloud_event() {
        return Err(ApiError::CloudEvent);
    }
    let reservation = state.store.reserve(expected_bytes(body))?;
    let limit_bytes = state.max_body_bytes;
    let held = body::read(state, asked.call.conn, body, coding, terms.body_deadline, limit_bytes, reservation).await?;
    subject.body_bytes = held.body.len() as u64;
    let default_domain = subject.pass.default_domain().cloned();
    let unparsed =
        Unparsed { route: asked.route, named: format_of(asked.fields), held, domain, default_domain, limit_bytes };
    attended(body, pin!(store(state, unparsed, (terms, asked.call), subject))).await
}

/// Parses and appends what has arrived whole.
async fn store(
    state: &AppState,
    unparsed: Unparsed<'_>,
    (terms, call): (&Terms, Call<'_>),
    subject: &mut Subject,
) -> Result<(), ApiError> {
    let named_by_payload = unparsed.domain.is_none();
    let Some((batch, reservation)) = unparsed.parse(&state.parsing).await? else { return Ok(()) };
    subject.domain = Some(batch.domain().clone());
    subject.events = batch.events();
    if named_by_payload {
        subject.pass.check_domain(batch.domain())?;
        terms.check(batch.domain())?;
    }
    state.gate.still_writable()?;
    let admit = || match state.new_domains.hit(call.client.key(), call.started) {
        Ok(_) => Ok(()),
        Err(standing) => Err(ApiError::TooManyNewDomains { retry_after_s: standing.retry_after_s() }),
    };
    state.store.append_before(batch, reservation, Some(terms.deadline), admit).await
}

/// Waits for `work`, and looks after the client meanwhile.
async fn attended<'a, T>(body: &mut impl Source<'a>, mut work: Pin<&mut impl Future<Output = T>>) -> T {
    std::future::poll_fn(|cx| {
        let polled = work.as_mut().poll(cx);
        if polled.is_pending() {
            body.look_after(cx);
        }
        polled
    })
    .await
}

/// What a small request of announced length will hold in memory, lines included, so that its
/// reservation need not grow. A large one grows with what really arrives.
fn expected_bytes<'a>(body: &impl Source<'a>) -> usize {
    match body.left() {
        Some(bytes) if bytes <= 4096 => 2 * bytes as usize + bytes as usize / 8 + 512,
        _ => 1,
    }
}

/// A body that has arrived whole, and what is known of it.
struct Unparsed<'a> {
    route: Route,
    /// What the content type says.
    named: Option<Format>,
    held: Held<'a>,
    /// The domain of the query or the path.
    domain: Option<Domain>,
    /// The domain that the token gives to events whose request names none.
    default_domain: Option<Domain>,
    /// Of the largest body.
    limit_bytes: usize,
}

impl Unparsed<'_> {
    /// On this thread if it is small, else on one that may be held up.
    async fn parse(self, parsing: &Turns) -> Result<Option<(Batch, Reservation)>, ApiError> {
        if self.held.body.len() <= PARSE_INLINE_BYTES_MAX {
            return self.parse_now();
        }
        Box::pin(self.parse_elsewhere(parsing)).await
    }

    /// The thread has all of it, so what a client leaves behind that hangs up meanwhile stays counted.
    async fn parse_elsewhere(self, parsing: &Turns) -> Result<Option<(Batch, Reservation)>, ApiError> {
        let unparsed = Unparsed { held: self.held.into_owned(), ..self };
        parsing.run(move || unparsed.parse_now()).await?
    }

    /// UTF-8 first, then the content type, then the events.
    ///
    /// compat: on the old path a document that is no UTF-8 is invalid JSON, and any type but the line
    /// formats is a document.
    fn parse_now(self) -> Result<Option<(Batch, Reservation)>, ApiError> {
        let Unparsed { route, named, held: Held { body, mut reservation }, domain, default_domain, limit_bytes } = self;
        let Ok(text) = std::str::from_utf8(&body) else {
            let as_json = route == Route::Old && named != Some(Format::Lines);
            let invalid_json = EventError { reason: Reason::InvalidJson, line: None };
            return Err(if as_json { invalid_json.into() } else { ApiError::InvalidEncoding });
        };
        let format = match route {
            Route::V1 => named.ok_or(ApiError::ContentType)?,
            Route::Old => named.unwrap_or(Format::Document),
        };
        let limits = limits(limit_bytes, reservation.bytes_max().saturating_sub(text.len()));
        let hold = &mut |bytes| hold(&mut reservation, text.len() + bytes);
        let parsed = match (Batch::parse_within(text, format, domain, limits, hold), default_domain) {
            // Read once more, which only such requests of such tokens pay for.
            (Err(Refusal::Event(EventError { reason: Reason::DomainMissing, .. })), Some(default)) => {
                Batch::parse_within(text, format, Some(default), limits, hold)
            }
            (parsed, _) => parsed,
        };
        let is_large = body.len() > COUNTED_ROUGHLY_BYTES_MAX;
        let parsed = parsed.map_err(|refusal| (refusal, position(text, refusal)));
        drop(body);
        let batch = parsed.map_err(|(refusal, position)| match refusal {
            Refusal::Event(error) => match position {
                Some(position) => ApiError::NotJson(error, position),
                None => ApiError::Event(error),
            },
            Refusal::Memory(Shortage::NotNow) => ApiError::Store(reservation.refuse()),
            // Asking again would not help.
            Refusal::Memory(Shortage::Never) | Refusal::TooLarge => {
                ApiError::TooLarge { limit_bytes: limits.bytes_max }
            }
        })?;
        let Some(batch) = batch else { return Ok(None) };
        if is_large {
            reservation.shrink_to(batch.memory_bytes());
        }
        Ok(Some((batch, reservation)))
    }
}

/// Where a body stops to be JSON, as far as another reader can tell: it takes some things that are refused here, and does not
/// go as deep.
fn position(text: &str, refusal: Refusal) -> Option<Position> {
    let Refusal::Event(error) = refusal else { return None };
    let (before, text) = match (error.reason, error.line) {
        (Reason::InvalidJson, None) => (0, text),
        (Reason::InvalidNdjson, Some(line)) => {
            let before = line.checked_sub(1)?;
            (before, text.split('\n').nth(usize::try_from(before).ok()?)?)
        }
        _ => return None,
    };
    let stopped = serde_json::from_str::<serde::de::IgnoredAny>(text).err()?;
    let too_deep = stopped.to_string().starts_with("recursion limit");
    (!too_deep && stopped.line() > 0)
        .then(|| Position { line: before + stopped.line() as u64, column: stopped.column() as u64 })
}

/// What a request may become, if its body may have `body_bytes_max` and this much of the budget is left for it.
fn limits(body_bytes_max: usize, left_bytes: usize) -> Limits {
    let bytes_max = body_bytes_max.saturating_mul(LINES_BYTES_FACTOR).max(LINES_BYTES_MIN);
    Limits { events_max: EVENTS_MAX, bytes_max: bytes_max.min(left_bytes) }
}

fn hold(reservation: &mut Reservation, bytes: usize) -> Result<(), Shortage> {
    match reservation.try_grow_to(bytes) {
        true => Ok(()),
        false if bytes > reservation.bytes_max() => Err(Shortage::Never),
        false => Err(Shortage::NotNow),
    }
}

/// See also `plain::answer`, which writes the same without a [`Response`].
fn accepted(route: Route) -> Response {
    let mut response = Response::new(Body::from(OK));
    *response.status_mut() = route.good();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(OK_TYPE));
    response
}

/// compat: the last `domain` wins, an empty one counts as none.
fn domain_of_query(query: &str) -> Result<Option<Domain>, ApiError> {
    // As nearly every query is; there is nothing to decode.
    if let Some(domain) = query.strip_prefix("domain=").and_then(Domain::normal) {
        return Ok(Some(domain));
    }
    let named = form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == "domain").last();
    match named {
        Some((_, text)) if !text.is_empty() => Domain::parse(&text).map(Some).map_err(|_| ApiError::InvalidDomain),
        _ => Ok(None),
    }
}

fn domain_of_path(path: &str) -> Result<Domain, ApiError> {
    let segment = path.strip_prefix(OLD_PREFIX).unwrap_or_default();
    let text: Cow<'_, str> = percent_encoding::percent_decode_str(segment).decode_utf8_lossy();
    Domain::parse(&text).map_err(|_| ApiError::InvalidDomain)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use bytes::Bytes;
    use futures_util::FutureExt as _;

    use super::super::body::Whole;
    use super::*;
    use crate::metrics::StoreMetrics;
    use crate::storage::{Store, StoreOptions};

    const BODY_BYTES: usize = 512 << 10;

    /// A body that says when its parse is over, and keeps the thread there until it may go on.
    struct Detained {
        body: Vec<u8>,
        parsed: mpsc::Sender<()>,
        go: mpsc::Receiver<()>,
    }

    impl AsRef<[u8]> for Detained {
        fn as_ref(&self) -> &[u8] {
            &self.body
        }
    }

    impl Drop for Detained {
        fn drop(&mut self) {
            let _ = self.parsed.send(());
            let _ = self.go.recv();
        }
    }

    fn unparsed(
        store: &Store,
        text: &str,
        (named, domain): (Format, Option<&str>),
        hold: impl FnOnce(Vec<u8>) -> Bytes,
    ) -> Unparsed<'static> {
        let body: Vec<u8> = text.bytes().cycle().take(BODY_BYTES / text.len() * text.len()).collect();
        let body = if named == Format::Document { [b"[", &body[..], b"{}]"].concat() } else { body };
        let mut reservation = store.reserve(1).unwrap();
        reservation.grow_to(body.len()).unwrap();
        let (domain, default_domain) =
            (domain.map(|name| Domain::parse(name).unwrap()), Some(Domain::parse("default").unwrap()));
        let held = Held { body: Whole::Owned(hold(body)), reservation };
        Unparsed { route: Route::V1, named: Some(named), held, domain, default_domain, limit_bytes: 1 << 24 }
    }

    /// Broken, hundreds of clients that hang up after sending make the service parse everything they sent at once,
    /// and nothing of it is counted.
    #[test]
    fn a_parse_is_counted_and_bounded_when_its_client_hangs_up() {
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions { in_flight_bytes_max: 1 << 30, ..StoreOptions::default() };
        let store = Store::open(dir.path(), options, StoreMetrics::new()).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let in_flight = || store.health().in_flight_bytes;
        runtime.block_on(async {
            for (text, named, domain) in [
                ("{\"a\":1},", Format::Document, Some("named")),
                ("{\"a\":1}\n", Format::Lines, Some("named")),
                // Read twice.
                ("{\"a\":1}\n", Format::Lines, None),
            ] {
                let parsing = Turns::new(2);
                let (parsed, is_parsed) = mpsc::channel();
                let mut go = Vec::new();
                for n in 1..=6 {
                    let detain = |body| match n {
                        1 | 2 => {
                            let (may_go, when) = mpsc::channel();
                            go.push(may_go);
                            Bytes::from_owner(Detained { body, parsed: parsed.clone(), go: when })
                        }
                        _ => Bytes::from(body),
                    };
                    let mut parse = Box::pin(unparsed(&store, text, (named, domain), detain).parse(&parsing));
                    assert!(parse.as_mut().now_or_never().is_none(), "it takes its time");
                    if n <= 2 {
                        is_parsed.recv_timeout(Duration::from_secs(60)).expect("who has a turn is parsed");
                    }
                    drop(parse);
                    let running = 2 - parsing.free();
                    assert_eq!(running, n.min(2), "who hangs up gives no turn free");
                    assert!(in_flight() >= running * (BODY_BYTES - 16), "{n}: {}", in_flight());
                    assert!(in_flight() < (running + 1) * 8 * BODY_BYTES, "{n}: {}", in_flight());
                }
                drop(go);
                let ends = async {
                    while in_flight() > 0 {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                };
                tokio::time::timeout(Duration::from_secs(60), ends).await.expect("all of it is given back");
                assert_eq!(parsing.free(), 2);
            }
        });
    }
}
