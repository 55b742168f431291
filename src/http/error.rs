//! `ApiError`: the only place with a status code.
//!
//! | error | status | the client | the operator |
//! |---|---|---|---|
//! | bad content, domain, framing | 400, 411, 413, 415, 422, 501 | mends the request | nothing |
//! | snapshot runs, or its path is taken | 409 | waits, or takes another path | nothing |
//! | token | 401 | sets the token | compares both sides |
//! | right token, not for this | 403 | takes another token | gives the scope |
//! | too often | 429 | waits `Retry-After` | raises the limit, or finds the loop |
//! | body too slow | 408 | sends again | looks at the network |
//! | bad input for an admin route | 422 | reads the text | nothing |
//! | lock, queue, connections, read-only, stopping | 503 | waits `Retry-After` | RUNBOOK, by `detail` |
//! | no room | 507 | keeps the event | makes room |
//! | disk or bug | 500 | keeps the event, see `written` | RUNBOOK, log by request id |
//!
//! The text for the client is short and stable; path, errno and cause go to the log only.

use std::borrow::Cow;
use std::sync::Arc;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, StatusCode};
use serde::Serialize;

use super::limits::Standing;
use crate::event::{EventError, Reason};
use crate::storage::snapshot::SnapshotError;
use crate::storage::{StoreError, Written};

/// A maintenance window is rarely shorter.
const READ_ONLY_RETRY_AFTER_S: u64 = 60;

/// Everything a request can be refused for.
#[derive(Debug, Clone)]
pub enum ApiError {
    /// The HTTP layer of the original could not read it either. Plain text, connection closed.
    Malformed,
    /// A transfer coding other than `chunked`.
    TransferCoding,
    NotFound,
    MethodNotAllowed,
    Unauthorized,
    /// A token that was right. The client is told what strangers are told.
    TokenExpired,
    /// A right token that may not do this, or a domain that nobody may write.
    Forbidden(Barrier),
    /// Too many wrong tokens from this client.
    TokenGuessing {
        retry_after_s: u64,
    },
    LengthRequired,
    TooLarge {
        limit_bytes: usize,
    },
    RateLimited(Standing),
    InvalidDomain,
    ContentEncoding,
    /// The body is no UTF-8, or not what its Content-Encoding says.
    InvalidEncoding,
    ContentType,
    /// A CloudEvent in binary mode: what its headers say would be lost.
    CloudEvent,
    Event(EventError),
    /// No JSON, and where reading stopped.
    NotJson(EventError, Position),
    BodyTimeout,
    /// The connection ended within the body.
    BodyCut,
    Store(StoreError),
    /// An operator has switched writing off.
    ReadOnly,
    /// Above the rate that an operator has set for all clients together.
    Throttled {
        retry_after_s: u64,
    },
    /// This client has made as many domains as it may for now.
    TooManyNewDomains {
        retry_after_s: u64,
    },
    /// A request to an admin route says something that means nothing there; the text says what would.
    BadInput(String),
    /// A body that is not what an operation takes.
    InvalidBody,
    /// No snapshot came about.
    Snapshot(Arc<SnapshotError>),
    Panicked,
}

/// What a 403 is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Barrier {
    /// The token has another scope.
    Scope,
    /// The token is for other domains.
    TokenDomain,
    /// `LEITSTAND_ALLOW_DOMAINS` or `LEITSTAND_DENY_DOMAINS`.
    DomainRules,
}

/// A place in a body, both from 1; the column counts bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    pub line: u64,
    pub column: u64,
}

/// What a domain is, for who sent another name.
const DOMAIN_RULE: &str =
    "labels of 1 to 63 letters, digits and hyphens, no hyphen first or last, joined by dots, 253 characters at most";

/// compat: FastAPI's shape; RFC 9457 members beside it when the client asks for them.
#[derive(Serialize)]
struct Problem<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    instance: &'a str,
    code: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allowed: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<u64>,
    written: &'a str,
}

impl ApiError {
    /// The status, one decision a variant.
    pub fn status(&self) -> StatusCode {
        match self {
            ApiError::Malformed | ApiError::BodyCut | ApiError::InvalidDomain | ApiError::InvalidEncoding => {
                StatusCode::BAD_REQUEST
            }
            ApiError::TransferCoding => StatusCode::NOT_IMPLEMENTED,
            ApiError::NotFound => StatusCode::NOT_FOUND,
            ApiError::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            ApiError::Unauthorized | ApiError::TokenExpired => StatusCode::UNAUTHORIZED,
            ApiError::Forbidden(_) => StatusCode::FORBIDDEN,
            ApiError::TokenGuessing { .. }
            | ApiError::RateLimited(_)
            | ApiError::Throttled { .. }
            | ApiError::TooManyNewDomains { .. } => StatusCode::TOO_MANY_REQUESTS,
            ApiError::LengthRequired => StatusCode::LENGTH_REQUIRED,
            ApiError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            ApiError::ContentEncoding | ApiError::ContentType | ApiError::CloudEvent => {
                StatusCode::UNSUPPORTED_MEDIA_TYPE
            }
            ApiError::Event(error) | ApiError::NotJson(error, _) => match error.reason {
                Reason::SummaryTooLong => StatusCode::UNPROCESSABLE_ENTITY,
                Reason::InvalidJson
                | Reason::InvalidNdjson
                | Reason::InvalidPayload
                | Reason::InvalidDomain
                | Reason::DomainMismatch
                | Reason::DomainMissing => StatusCode::BAD_REQUEST,
            },
            ApiError::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            ApiError::ReadOnly => StatusCode::SERVICE_UNAVAILABLE,
            ApiError::BadInput(_) => StatusCode::UNPROCESSABLE_ENTITY,
            ApiError::Store(error) => match error {
                StoreError::Busy { .. }
                | StoreError::LockTimeout { .. }
                | StoreError::ShuttingDown
                | StoreError::Exhausted { .. } => StatusCode::SERVICE_UNAVAILABLE,
                // For both the client keeps the event, and an operator makes room.
                StoreError::Full { .. } | StoreError::TooManyDomains { .. } => StatusCode::INSUFFICIENT_STORAGE,
                // compat: the original calls a symlinked data file an invalid domain.
                StoreError::Symlink => StatusCode::BAD_REQUEST,
                StoreError::Io { .. }
                | StoreError::Poisoned { .. }
                | StoreError::Sync { .. }
                | StoreError::InDoubt
                | StoreError::Unproven
                | StoreError::Rollback { .. }
                | StoreError::Panicked => StatusCode::INTERNAL_SERVER_ERROR,
            },
            ApiError::InvalidBody => StatusCode::BAD_REQUEST,
            ApiError::Snapshot(error) => match **error {
                SnapshotError::AlreadyRunning(_) | SnapshotError::NotEmpty(_) => StatusCode::CONFLICT,
                SnapshotError::Inside { .. }
                | SnapshotError::BadTarget { .. }
                | SnapshotError::OtherFileSystem { .. }
                | SnapshotError::BadBase(_) => StatusCode::BAD_REQUEST,
                SnapshotError::NoSpace { .. } => StatusCode::INSUFFICIENT_STORAGE,
                SnapshotError::Locked { .. } => StatusCode::SERVICE_UNAVAILABLE,
                SnapshotError::TooLarge { .. }
                | SnapshotError::Damaged { .. }
                | SnapshotError::NotFound { .. }
                | SnapshotError::Io { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            },
            ApiError::Panicked => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The text for the client.
    pub fn detail(&self) -> Cow<'static, str> {
        let text = match self {
            ApiError::Malformed | ApiError::BodyCut => "Invalid HTTP request received.",
            ApiError::TransferCoding => "unsupported transfer-encoding",
            ApiError::NotFound => "Not Found",
            ApiError::MethodNotAllowed => "Method Not Allowed",
            ApiError::Unauthorized | ApiError::TokenExpired => "unauthorized",
            ApiError::Forbidden(_) => "forbidden",
            ApiError::TokenGuessing { .. }
            | ApiError::RateLimited(_)
            | ApiError::Throttled { .. }
            | ApiError::TooManyNewDomains { .. } => "too many requests",
            ApiError::ReadOnly => "read only",
            ApiError::BadInput(text) => return text.clone().into(),
            ApiError::LengthRequired => "length required",
            ApiError::TooLarge { .. } => "payload too large",
            ApiError::InvalidDomain | ApiError::Store(StoreError::Symlink) => "invalid domain",
            ApiError::ContentEncoding => "unsupported content-encoding",
            ApiError::InvalidEncoding => "invalid encoding",
            ApiError::ContentType => "unsupported content-type",
            ApiError::CloudEvent => "unsupported cloudevents binary mode",
            ApiError::Event(error) | ApiError::NotJson(error, _) => return error.reason.to_string().into(),
            ApiError::BodyTimeout => "request timeout",
            ApiError::Store(StoreError::Busy { .. } | StoreError::Exhausted { .. }) => "busy",
            ApiError::Store(StoreError::LockTimeout { .. }) => "lock timeout",
            ApiError::Store(StoreError::ShuttingDown) => "shutting down",
            ApiError::Store(StoreError::Full { .. } | StoreError::TooManyDomains { .. }) => "insufficient storage",
            ApiError::Store(
                StoreError::Io { .. }
                | StoreError::Poisoned { .. }
                | StoreError::Sync { .. }
                | StoreError::InDoubt
                | StoreError::Unproven
                | StoreError::Rollback { .. }
                | StoreError::Panicked,
            ) => "storage error",
            ApiError::InvalidBody => "invalid body",
            ApiError::Snapshot(error) => match **error {
                SnapshotError::AlreadyRunning(_) => "another snapshot is running",
                SnapshotError::NotEmpty(_) => "path is taken",
                SnapshotError::Inside { .. } | SnapshotError::BadTarget { .. } => "invalid path",
                SnapshotError::OtherFileSystem { .. } | SnapshotError::BadBase(_) => "invalid base",
                SnapshotError::NoSpace { .. } => "insufficient storage",
                SnapshotError::Locked { .. } => "lock timeout",
                SnapshotError::TooLarge { .. }
                | SnapshotError::Damaged { .. }
                | SnapshotError::NotFound { .. }
                | SnapshotError::Io { .. } => "storage error",
            },
            ApiError::Panicked => "internal error",
        };
        text.into()
    }

    /// A stable word for metrics and for the `code` of a problem.
    pub fn label(&self) -> &'static str {
        match self {
            ApiError::Malformed => "invalid_request",
            ApiError::BodyCut => "incomplete_body",
            ApiError::TransferCoding => "unsupported_transfer_encoding",
            ApiError::NotFound => "not_found",
            ApiError::MethodNotAllowed => "method_not_allowed",
            ApiError::Unauthorized | ApiError::TokenExpired => "unauthorized",
            ApiError::Forbidden(_) => "forbidden",
            ApiError::TokenGuessing { .. } => "too_many_wrong_tokens",
            ApiError::RateLimited(_) => "too_many_requests",
            ApiError::Throttled { .. } => "throttled",
            ApiError::TooManyNewDomains { .. } => "too_many_new_domains",
            ApiError::ReadOnly => "read_only",
            ApiError::BadInput(_) => "invalid_input",
            ApiError::LengthRequired => "length_required",
            ApiError::TooLarge { .. } => "payload_too_large",
            ApiError::InvalidDomain | ApiError::Store(StoreError::Symlink) => "invalid_domain",
            ApiError::ContentEncoding => "unsupported_content_encoding",
            ApiError::InvalidEncoding => "invalid_encoding",
            ApiError::ContentType => "unsupported_content_type",
            ApiError::CloudEvent => "unsupported_cloudevents_binary_mode",
            ApiError::Event(error) | ApiError::NotJson(error, _) => match error.reason {
                Reason::InvalidJson => "invalid_json",
                Reason::InvalidNdjson => "invalid_ndjson",
                Reason::InvalidPayload => "invalid_payload",
                Reason::InvalidDomain => "invalid_domain",
                Reason::DomainMismatch => "domain_mismatch",
                Reason::DomainMissing => "domain_missing",
                Reason::SummaryTooLong => "summary_too_long",
            },
            ApiError::BodyTimeout => "request_timeout",
            ApiError::Store(error) => match error {
                StoreError::Full { .. } => "insufficient_storage",
                StoreError::Io { .. }
                | StoreError::Poisoned { .. }
                | StoreError::Sync { .. }
                | StoreError::InDoubt
                | StoreError::Unproven
                | StoreError::Rollback { .. }
                | StoreError::Panicked => "storage_error",
                StoreError::Exhausted { .. } => "busy",
                StoreError::Busy { .. }
                | StoreError::LockTimeout { .. }
                | StoreError::ShuttingDown
                | StoreError::TooManyDomains { .. }
                | StoreError::Symlink => error.label(),
            },
            ApiError::InvalidBody => "invalid_body",
            ApiError::Snapshot(error) => match **error {
                SnapshotError::AlreadyRunning(_) => "snapshot_running",
                SnapshotError::NotEmpty(_) => "path_taken",
                SnapshotError::Inside { .. } | SnapshotError::BadTarget { .. } => "invalid_path",
                SnapshotError::OtherFileSystem { .. } | SnapshotError::BadBase(_) => "invalid_base",
                SnapshotError::NoSpace { .. } => "insufficient_storage",
                SnapshotError::Locked { .. } => "lock_timeout",
                SnapshotError::TooLarge { .. }
                | SnapshotError::Damaged { .. }
                | SnapshotError::NotFound { .. }
                | SnapshotError::Io { .. } => "storage_error",
            },
            ApiError::Panicked => "internal_error",
        }
    }

    /// Seconds to wait, at least 1 and enough, where waiting helps.
    pub fn retry_after_s(&self) -> Option<u64> {
        match self {
            ApiError::RateLimited(standing) => Some(standing.retry_after_s()),
            ApiError::TokenGuessing { retry_after_s }
            | ApiError::Throttled { retry_after_s }
            | ApiError::TooManyNewDomains { retry_after_s } => Some((*retry_after_s).max(1)),
            ApiError::ReadOnly => Some(READ_ONLY_RETRY_AFTER_S),
            ApiError::Store(
                StoreError::Busy { .. }
                | StoreError::LockTimeout { .. }
                | StoreError::ShuttingDown
                | StoreError::Exhausted { .. },
            ) => Some(1),
            ApiError::Snapshot(error) if matches!(**error, SnapshotError::Locked { .. }) => Some(1),
            _ => None,
        }
    }

    /// Was anything of the request written?
    pub fn written(&self) -> Written {
        match self {
            ApiError::Store(error) => error.written(),
            // A bug: the panic may have come after the hand-over to the writer.
            ApiError::Panicked => Written::Maybe,
            _ => Written::No,
        }
    }

    /// The answer, as JSON, plain text (where the original sent that) or a problem document.
    pub fn render(&self, as_problem: bool, request_id: &str) -> Response {
        let status = self.status();
        let detail = self.detail();
        let (content_type, body) = if as_problem {
            ("application/problem+json", self.problem(status, &detail, request_id))
        } else if matches!(
            self,
            ApiError::Malformed
                | ApiError::BodyCut
                | ApiError::RateLimited(_)
                | ApiError::TokenGuessing { .. }
                | ApiError::Throttled { .. }
                | ApiError::TooManyNewDomains { .. }
        ) {
            ("text/plain; charset=utf-8", detail.into_owned())
        } else if let ApiError::BadInput(_) = self {
            ("application/json", serde_json::json!({ "detail": detail }).to_string())
        } else {
            // These texts hold nothing that JSON would escape.
            ("application/json", format!("{{\"detail\":\"{detail}\"}}"))
        };
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        self.add_headers(response.headers_mut());
        response
    }

    fn add_headers(&self, headers: &mut HeaderMap) {
        if let Some(seconds) = self.retry_after_s() {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let ApiError::RateLimited(standing) = self {
            standing.add_headers(headers);
        }
        if matches!(self, ApiError::Malformed | ApiError::TransferCoding | ApiError::BodyCut | ApiError::BodyTimeout) {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if matches!(self, ApiError::Unauthorized | ApiError::TokenExpired) {
            let challenges = HeaderValue::from_static("Bearer realm=\"leitstand\", X-Auth");
            headers.insert(http::header::WWW_AUTHENTICATE, challenges);
        }
        if matches!(self, ApiError::ContentEncoding) {
            headers.insert(http::header::ACCEPT_ENCODING, HeaderValue::from_static("identity, gzip, zstd"));
        }
    }

    fn problem(&self, status: StatusCode, detail: &str, request_id: &str) -> String {
        let code = self.label();
        let problem = Problem {
            r#type: format!("urn:leitstand:error:{code}"),
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail,
            instance: request_id,
            reason: match self {
                ApiError::Forbidden(Barrier::Scope) => Some("token_scope"),
                ApiError::Forbidden(Barrier::TokenDomain) => Some("token_domain"),
                ApiError::Forbidden(Barrier::DomainRules) => Some("domain_rules"),
                _ => None,
            },
            allowed: (code == "invalid_domain" && !matches!(self, ApiError::Store(_))).then_some(DOMAIN_RULE),
            line: match self {
                ApiError::Event(error) => error.line,
                ApiError::NotJson(_, position) => Some(position.line),
                _ => None,
            },
            column: if let ApiError::NotJson(_, position) = self { Some(position.column) } else { None },
            limit: if let ApiError::TooLarge { limit_bytes } = self { Some(*limit_bytes) } else { None },
            retry_after: self.retry_after_s(),
            written: if self.written() == Written::No { "no" } else { "maybe" },
            code,
        };
        serde_json::to_string(&problem).unwrap_or_default()
    }
}

/// Travels in the extensions of a response until the edge renders it.
#[derive(Clone)]
pub(crate) struct Refused(pub Arc<ApiError>);

impl IntoResponse for ApiError {
    /// Only a marker: the edge knows the request id and what the client accepts.
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.status();
        response.extensions_mut().insert(Refused(Arc::new(self)));
        response
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> ApiError {
        ApiError::Store(error)
    }
}

impl From<SnapshotError> for ApiError {
    fn from(error: SnapshotError) -> ApiError {
        ApiError::Snapshot(Arc::new(error))
    }
}

impl From<EventError> for ApiError {
    fn from(error: EventError) -> ApiError {
        ApiError::Event(error)
    }
}
