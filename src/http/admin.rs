//! Read-only mode and the throttle: for maintenance windows.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::extract::{Request, State};
use axum::response::Response;
use http::StatusCode;
use serde::Serialize;
use serde_json::{Map, Value};

use super::auth::{actor, authorise};
use super::body::read_small;
use super::edge::Caller;
use super::error::ApiError;
use super::gate::OFF;
use super::ops::json;
use super::state::AppState;
use crate::rate::RateLimits;
use crate::timestamp::{parse_span, rfc3339_ms};
use crate::token::Scope;

const BODY_BYTES_MAX: usize = 64 << 10;
/// How long the answer to a switch waits for requests under way.
const DRAIN_MAX: Duration = Duration::from_secs(10);
const REASON_CHARS_MAX: usize = 200;
/// Of an unknown key so much is told.
const KEY_CHARS_MAX: usize = 40;
/// Shortest and longest time of a throttle.
const THROTTLE_MIN: Duration = Duration::from_secs(1);
const THROTTLE_MAX: Duration = Duration::from_secs(24 * 3600);

/// Read-only mode.
#[derive(Serialize)]
#[cfg_attr(feature = "docs", derive(utoipa::ToSchema))]
pub(crate) struct ReadOnlyState {
    /// Events are refused with 503 `read only`.
    on: bool,
    /// Since when.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "docs", schema(example = "2026-11-21T18:42:00.123Z"))]
    since: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "docs", schema(example = "volume snapshot"))]
    reason: Option<String>,
    /// In the answer to a switch only. `true`: nothing is in flight, nothing will be written, and
    /// everything acknowledged is on the disk. `false`: not within 10 seconds; ask again.
    #[serde(skip_serializing_if = "Option::is_none")]
    drained: Option<bool>,
}

/// What switches read-only mode.
#[cfg(feature = "docs")]
#[derive(Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SwitchReadOnly {
    on: bool,
    /// At most 200 characters, no control characters.
    #[schema(max_length = 200, pattern = "^[^\\x00-\\x1f\\x7f-\\x9f]*$")]
    reason: Option<String>,
}

/// The throttle.
#[derive(Serialize)]
#[cfg_attr(feature = "docs", derive(utoipa::ToSchema))]
pub(crate) struct ThrottleState {
    /// Requests of all clients together; `null` while it is off.
    #[cfg_attr(feature = "docs", schema(example = "10/second"))]
    pub rate: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// When it ends by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ends: Option<String>,
}

/// What begins or ends a throttle.
#[cfg(feature = "docs")]
#[derive(Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SwitchThrottle {
    /// As `LEITSTAND_RATE_LIMIT`, e.g. `10/second`; `null` ends the throttle.
    #[schema(required = true, example = "10/second")]
    rate: Option<String>,
    /// How long: a whole number of `s`, `m` or `h` (or `ms`, `d`, `w`), from `1s` to `24h`. Needed with a rate.
    #[schema(example = "10m", pattern = "^[0-9]+(ms|[smhdw])$")]
    r#for: Option<String>,
}

/// Is read-only mode on?
#[cfg_attr(feature = "docs", utoipa::path(get, path = "/admin/read-only", operation_id = "get_read_only", tag = "admin", security(("x-auth" = []), ("bearer" = [])),
    responses((status = 200, description = "What holds now.", body = ReadOnlyState), super::openapi::TokenErrors)))]
pub(crate) async fn read_only(State(state): State<Arc<AppState>>, request: Request) -> Result<Response, ApiError> {
    authorise(&state, &request, Scope::Admin)?;
    Ok(json(StatusCode::OK, &read_only_state(&state, None)))
}

/// Switch read-only mode
///
/// While it is on, events are refused with 503 `read only` and `Retry-After: 60`. The answer comes when
/// nothing is in flight any more, at most 10 seconds later. A restart ends it.
#[cfg_attr(feature = "docs", utoipa::path(post, path = "/admin/read-only", operation_id = "set_read_only", tag = "admin", security(("x-auth" = []), ("bearer" = [])),
    request_body(content = SwitchReadOnly, example = json!({"on": true, "reason": "volume snapshot"})),
    responses((status = 200, description = "What holds now.", body = ReadOnlyState), super::openapi::TokenErrors, super::openapi::AdminBodyErrors)))]
pub(crate) async fn set_read_only(State(state): State<Arc<AppState>>, request: Request) -> Result<Response, ApiError> {
    let pass = authorise(&state, &request, Scope::Admin)?;
    let (actor, client) = (actor(&pass, request.headers()), Caller::of(request.extensions()).client);
    let keys = object(&state, request, &["on", "reason"]).await?;
    let Some(Value::Bool(on)) = keys.get("on") else { return Err(bad("on must be true or false")) };
    let reason = match keys.get("reason") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) if is_reason(text) => Some(text.clone()),
        Some(_) => return Err(bad(&format!("reason must be a text of at most {REASON_CHARS_MAX} characters"))),
    };
    let old = state.gate.set_read_only(*on, reason.clone());
    tracing::info!(target: "leitstand::audit", action = "read_only", old, new = on, reason, actor, %client, "changed");
    let drained = if *on { Some(drain(&state).await) } else { None };
    Ok(json(StatusCode::OK, &read_only_state(&state, drained)))
}

/// Is there a throttle?
#[cfg_attr(feature = "docs", utoipa::path(get, path = "/admin/throttle", operation_id = "get_throttle", tag = "admin", security(("x-auth" = []), ("bearer" = [])),
    responses((status = 200, description = "What holds now.", body = ThrottleState), super::openapi::TokenErrors)))]
pub(crate) async fn throttle(State(state): State<Arc<AppState>>, request: Request) -> Result<Response, ApiError> {
    authorise(&state, &request, Scope::Admin)?;
    Ok(json(StatusCode::OK, &throttle_state(&state)))
}

/// Begin or end a throttle
///
/// One limit for the ingest requests of all clients together, on top of the limit of each. Above it
/// requests get 429 with `Retry-After`. It ends by itself, and with a restart.
#[cfg_attr(feature = "docs", utoipa::path(post, path = "/admin/throttle", operation_id = "set_throttle", tag = "admin", security(("x-auth" = []), ("bearer" = [])),
    request_body(content = SwitchThrottle, example = json!({"rate": "10/second", "for": "10m"})),
    responses((status = 200, description = "What holds now.", body = ThrottleState), super::openapi::TokenErrors, super::openapi::AdminBodyErrors)))]
pub(crate) async fn set_throttle(State(state): State<Arc<AppState>>, request: Request) -> Result<Response, ApiError> {
    let pass = authorise(&state, &request, Scope::Admin)?;
    let (actor, client) = (actor(&pass, request.headers()), Caller::of(request.extensions()).client);
    let keys = object(&state, request, &["rate", "for"]).await?;
    let rate = match keys.get("rate") {
        Some(Value::Null) => None,
        Some(Value::String(text)) => match RateLimits::parse(text) {
            Ok(rate) if rate.as_slice().is_empty() => return Err(bad("rate: null ends the throttle, off does not")),
            Ok(rate) => Some(rate),
            Err(error) => return Err(bad(&format!("rate: {error}"))),
        },
        _ => return Err(bad("rate must be a text, e.g. 10/second, or null")),
    };
    let duration = match keys.get("for") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(duration(text)?),
        Some(_) => return Err(bad("for must be a text, e.g. 30s, 10m or 1h")),
    };
    let rate = match (rate, duration) {
        (Some(_), None) => return Err(bad("for must say how long, e.g. 30s, 10m or 1h, at most 24h")),
        (rate, duration) => rate.zip(duration),
    };
    let new = rate.as_ref().map_or(OFF.to_owned(), |(rate, _)| rate.to_string());
    let for_s = rate.as_ref().map(|(_, duration)| duration.as_secs());
    let old = state.gate.set_throttle(rate);
    tracing::info!(target: "leitstand::audit", action = "throttle", old, new, for_s, actor, %client, "changed");
    Ok(json(StatusCode::OK, &throttle_state(&state)))
}

/// The throttle for people and programs.
pub(crate) fn throttle_state(state: &AppState) -> ThrottleState {
    let now = Instant::now();
    let Some(throttle) = state.gate.throttle(now) else {
        return ThrottleState { rate: None, since: None, ends: None };
    };
    ThrottleState {
        rate: Some(throttle.rate.to_string()),
        since: Some(rfc3339_ms(throttle.since)),
        ends: Some(rfc3339_ms(SystemTime::now() + throttle.left(now))),
    }
}

fn read_only_state(state: &AppState, drained: Option<bool>) -> ReadOnlyState {
    match state.gate.read_only() {
        Some(read_only) => {
            ReadOnlyState { on: true, since: Some(rfc3339_ms(read_only.since)), reason: read_only.reason, drained }
        }
        None => ReadOnlyState { on: false, since: None, reason: None, drained },
    }
}

/// Is everything that came before the switch on the disk, and nothing under way?
async fn drain(state: &AppState) -> bool {
    matches!(tokio::time::timeout(DRAIN_MAX, state.store.settled()).await, Ok(Ok(())))
}

fn is_reason(text: &str) -> bool {
    text.chars().count() <= REASON_CHARS_MAX && !text.chars().any(char::is_control)
}

fn duration(text: &str) -> Result<Duration, ApiError> {
    let allowed = |span: &Duration| (THROTTLE_MIN..=THROTTLE_MAX).contains(span);
    parse_span(text).filter(allowed).ok_or_else(|| bad("for must be a time span as 30s, 10m or 1h, from 1s to 24h"))
}

/// The body as an object with no keys but `allowed`.
///
/// # Errors
/// [`ApiError::BadInput`] for anything else, and what a body can be refused for.
async fn object(state: &AppState, request: Request, allowed: &[&str]) -> Result<Map<String, Value>, ApiError> {
    let (bytes, _held) = read_small(state, request, BODY_BYTES_MAX).await?;
    let Ok(Value::Object(keys)) = serde_json::from_slice(&bytes) else {
        return Err(bad(&format!("the body must be a JSON object with {}", allowed.join(", "))));
    };
    match keys.keys().find(|key| !allowed.contains(&key.as_str())) {
        Some(key) => {
            let key: String = key.chars().take(KEY_CHARS_MAX).collect();
            Err(bad(&format!("unknown key {key:?}, allowed are {}", allowed.join(", "))))
        }
        None => Ok(keys),
    }
}

fn bad(text: &str) -> ApiError {
    ApiError::BadInput(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, a throttle would last longer than allowed, or end before it began.
    #[test]
    fn a_throttle_has_an_end() {
        for (text, ok) in [("0s", false), ("1s", true), ("24h", true), ("86401s", false), ("forever", false)] {
            assert_eq!(duration(text).is_ok(), ok, "{text}");
        }
    }
}
