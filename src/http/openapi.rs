//! The description of the interface, generated from the handlers, and the pages that show it.

use std::borrow::Cow;
use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::extract::Path;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use serde::Serialize;
use tower_http::set_header::SetResponseHeaderLayer;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{IntoResponses, Modify, OpenApi, ToSchema};

use super::error::ApiError;
use super::state::AppState;
use super::{admin, config, ingest, ops, snapshot, stats};

/// Errors of all answers: the shape of FastAPI.
#[derive(Serialize, ToSchema)]
pub(crate) struct Detail {
    /// Stable, short, without any path or secret.
    #[schema(example = "unauthorized")]
    detail: String,
}

/// What one JSON document may be: an event, or an array of events.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only described, never built")]
pub(crate) enum Events {
    One(Event),
    Many(Vec<Event>),
}

/// Any JSON object. Two names mean something to the service; all members are stored as sent.
#[derive(Serialize, ToSchema)]
pub(crate) struct Event {
    /// Must be the domain of the request, if there is one. Set to that domain in what is stored.
    #[schema(
        required = false,
        pattern = "^\\s*[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*\\s*$",
        max_length = 253
    )]
    domain: String,
    /// A text of at most 500 code points, or anything else.
    #[schema(required = false, schema_with = summary)]
    summary: (),
}

fn summary() -> utoipa::openapi::Schema {
    // Without a type the length is checked of texts only.
    let any = utoipa::openapi::schema::Object::builder().schema_type(utoipa::openapi::schema::SchemaType::AnyValue);
    any.description(Some("A text of at most 500 code points, or anything else."))
        .max_length(Some(crate::event::SUMMARY_CODE_POINTS_MAX))
        .into()
}

/// What an ingest request can be refused for.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described, never built")]
pub(crate) enum IngestErrors {
    /// `invalid domain`, `invalid json`, `invalid ndjson`, `invalid encoding`, `invalid payload`, `domain mismatch` or `domain must be specified via query or payload`. Nothing was written.
    #[response(status = 400, content_type = "application/json")]
    BadRequest(Detail),
    /// `unauthorized`: the token is missing, wrong, expired or sent twice.
    #[response(status = 401, content_type = "application/json")]
    Unauthorized(Detail),
    /// `forbidden`: the token is not for this, or not for this domain, or the domain may not be written. Nothing was written.
    #[response(status = 403, content_type = "application/json")]
    Forbidden(Detail),
    /// `Not Found`: unknown path, or switched off.
    #[response(status = 404, content_type = "application/json")]
    NotFound(Detail),
    /// `request timeout`: the body did not arrive in time.
    #[response(status = 408, content_type = "application/json")]
    Timeout(Detail),
    /// `length required`: neither Content-Length nor chunked coding.
    #[response(status = 411, content_type = "application/json")]
    LengthRequired(Detail),
    /// `payload too large`: the body is, or its events would become with their domain, larger than allowed.
    #[response(status = 413, content_type = "application/json")]
    TooLarge(Detail),
    /// `unsupported content-type`, `unsupported content-encoding` or `unsupported cloudevents binary mode`.
    #[response(status = 415, content_type = "application/json")]
    Unsupported(Detail),
    /// `summary too long (max 500)`.
    #[response(status = 422, content_type = "application/json")]
    SummaryTooLong(Detail),
    /// `too many requests`. Wait for `Retry-After` seconds.
    #[response(status = 429, content_type = "text/plain", headers(("Retry-After" = u64)))]
    TooMany(String),
    /// `storage error`. A retry may double an event, unless the problem document says `"written":"no"`.
    #[response(status = 500, content_type = "application/json")]
    Storage(Detail),
    /// `lock timeout`, `busy`, `read only` or `shutting down`. Nothing was written; wait for `Retry-After` seconds.
    #[response(status = 503, content_type = "application/json", headers(("Retry-After" = u64)))]
    Unavailable(Detail),
    /// `insufficient storage`. Nothing was written.
    #[response(status = 507, content_type = "application/json")]
    Full(Detail),
}

/// What every request that needs a token can be refused for.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described, never built")]
pub(crate) enum TokenErrors {
    /// `unauthorized`: the token is missing, wrong, expired or sent twice.
    #[response(status = 401, content_type = "application/json")]
    Unauthorized(Detail),
    /// `forbidden`: the token may not do this. Changes need one of `LEITSTAND_ADMIN_TOKEN`, or a named one for administration.
    #[response(status = 403, content_type = "application/json")]
    Forbidden(Detail),
    /// `too many requests`: too many wrong tokens. Wait for `Retry-After` seconds.
    #[response(status = 429, content_type = "text/plain", headers(("Retry-After" = u64)))]
    TooMany(String),
}

/// What an admin request with a body can be refused for as well.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only described, never built")]
pub(crate) enum AdminBodyErrors {
    /// `request timeout`: the body did not arrive in time.
    #[response(status = 408, content_type = "application/json")]
    Timeout(Detail),
    /// `length required`: neither Content-Length nor chunked coding.
    #[response(status = 411, content_type = "application/json")]
    LengthRequired(Detail),
    /// `payload too large`: over 64 KiB.
    #[response(status = 413, content_type = "application/json")]
    TooLarge(Detail),
    /// What is wrong, and what is allowed.
    #[response(status = 422, content_type = "application/json")]
    BadInput(Detail),
}

/// What may change at run time. `null` takes a change back.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConfigPatch {
    /// Per client and path, e.g. `60/minute`, or `off`. A change starts all windows anew.
    #[schema(pattern = "^([1-9][0-9]{0,8}/(second|minute|hour|day)|off)$", example = "120/minute")]
    rate_limit: Option<String>,
    /// Wrong tokens per client, of the same form.
    #[schema(pattern = "^([1-9][0-9]{0,8}/(second|minute|hour|day)|off)$", example = "120/minute")]
    auth_rate_limit: Option<String>,
    logging: Option<LoggingPatch>,
    /// Seconds for a whole body.
    #[schema(minimum = 1, maximum = 3600)]
    body_timeout: Option<u64>,
    /// Milliseconds from the head of a request to the end of its waits.
    #[schema(minimum = 1000, maximum = 300000)]
    request_timeout_ms: Option<u64>,
    /// Only these may be written, with `*` for any characters; none: all. A text with commas is taken too.
    #[schema(max_items = 1000, value_type = Option<Vec<DomainPattern>>)]
    allow_domains: Option<Vec<String>>,
    /// These may not be written; wins.
    #[schema(max_items = 1000, value_type = Option<Vec<DomainPattern>>)]
    deny_domains: Option<Vec<String>>,
    features: Option<FeaturesPatch>,
}

/// A domain with `*` for any characters, at most 16 times.
#[derive(Serialize, ToSchema)]
#[schema(min_length = 1, max_length = 253, pattern = "^[a-z0-9.-]*([*]+[a-z0-9.-]*){0,16}$", example = "*.example.com")]
pub(crate) struct DomainPattern(String);

#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LoggingPatch {
    /// In any case; also WARN, FATAL and TRACE.
    #[schema(pattern = "^(CRITICAL|ERROR|WARNING|INFO|DEBUG|NOTSET)$", example = "DEBUG")]
    level: Option<String>,
    #[schema(pattern = "^(text|json)$", example = "json")]
    format: Option<String>,
}

/// `false`: its routes are unknown paths.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FeaturesPatch {
    version: Option<bool>,
    stats: Option<bool>,
    docs: Option<bool>,
    metrics: Option<bool>,
    /// Cannot be switched off by a request.
    config: Option<bool>,
    admin: Option<bool>,
    old_path: Option<bool>,
}

/// The whole description. That each path is served is tested, not generated.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "leitstand",
        description = "HTTP ingest of JSON events into one append-only JSONL file per domain. A 2xx means: written and synced. Whatever the operation, what is no HTTP/1.1 is refused with 400, a method that a path does not have with 405, a head over 32 KiB with 431, and while the service shuts down or has no connection left, the answer is 503.",
        license(name = "MIT", identifier = "MIT")
    ),
    paths(ingest::v1, ingest::old, ops::health, ops::live, ops::ready, ops::version, ops::metrics,
        config::show, config::change, snapshot::create,
        stats::ops_metrics, stats::stats, admin::read_only, admin::set_read_only, admin::throttle, admin::set_throttle),
    components(schemas(Detail, Event, Events)),
    tags((name = "ingest", description = "Append events"), (name = "ops", description = "Operate the service"),
        (name = "admin", description = "See and change how the service runs; needs a token of LEITSTAND_ADMIN_TOKEN")),
    modifiers(&Credentials)
)]
struct ApiDoc;

struct Credentials;

impl Modify for Credentials {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let x_auth = ApiKeyValue::with_description("X-Auth", "Any token.");
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer);
        let bearer = bearer.description(Some("A named token or an admin token; not the shared secret.")).build();
        let components = openapi.components.get_or_insert_default();
        components.add_security_scheme("x-auth", SecurityScheme::ApiKey(ApiKey::Header(x_auth)));
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    }
}

/// The description of the interface.
pub fn openapi() -> utoipa::openapi::OpenApi {
    ApiDoc::openapi()
}

/// Pages for people, with what a browser should know about them.
pub(crate) fn pages() -> Router<Arc<AppState>> {
    let header = |name, value| SetResponseHeaderLayer::if_not_present(name, HeaderValue::from_static(value));
    Router::new()
        .route("/docs", get(page))
        .route("/docs/{file}", get(asset))
        .route("/openapi.json", get(json))
        .route("/redoc", get(redoc))
        .layer(header(CONTENT_SECURITY_POLICY, PAGE_POLICY))
        .layer(header(X_CONTENT_TYPE_OPTIONS, "nosniff"))
}

const PAGE: &str = include_str!("docs.html");
/// The page runs nothing but its own scripts and talks to nobody but this service.
const PAGE_POLICY: &str =
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'";

static JSON: LazyLock<String> = LazyLock::new(|| openapi().to_json().unwrap_or_default());

/// `GET /openapi.json`
async fn json() -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], JSON.as_str()).into_response()
}

/// `GET /docs`: the page itself, not a redirect.
async fn page() -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"))], PAGE).into_response()
}

/// `GET /docs/{file}`: assets of Swagger UI, from inside the binary.
async fn asset(Path(file): Path<String>) -> Result<Response, ApiError> {
    if file == "init.js" {
        return Ok(
            ([(CONTENT_TYPE, HeaderValue::from_static("text/javascript"))], include_str!("docs.js")).into_response()
        );
    }
    let served = utoipa_swagger_ui::serve(&file, Arc::new(utoipa_swagger_ui::Config::from("/openapi.json")));
    let Ok(Some(asset)) = served else { return Err(ApiError::NotFound) };
    let content_type = HeaderValue::try_from(asset.content_type).map_err(|_| ApiError::NotFound)?;
    let headers = [(CONTENT_TYPE, content_type), (CACHE_CONTROL, HeaderValue::from_static("max-age=3600"))];
    // Not copied: a megabyte for each client that asks and does not read would add up.
    let bytes = match asset.bytes {
        Cow::Borrowed(bytes) => Bytes::from_static(bytes),
        Cow::Owned(bytes) => bytes.into(),
    };
    Ok((headers, bytes).into_response())
}

/// `GET /redoc`: compat, the original had a second page.
async fn redoc() -> Redirect {
    Redirect::temporary("/docs")
}
