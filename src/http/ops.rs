//! Health, version and metrics.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue};
use serde::Serialize;

use super::auth::authorise;
use super::error::ApiError;
use super::state::AppState;
use crate::metrics::Observed;
use crate::storage::StoreHealth;
use crate::token::Scope;

/// `GET /health`
#[derive(Serialize)]
#[cfg_attr(feature = "docs", derive(utoipa::ToSchema))]
pub(crate) struct Health {
    /// Always `ok`.
    #[cfg_attr(feature = "docs", schema(example = "ok"))]
    status: &'static str,
}

/// `GET /version`
#[derive(Serialize)]
#[cfg_attr(feature = "docs", derive(utoipa::ToSchema))]
pub(crate) struct VersionInfo {
    #[cfg_attr(feature = "docs", schema(example = "0.1.0"))]
    version: String,
}

/// `GET /health/live`
#[derive(Serialize)]
#[cfg_attr(feature = "docs", derive(utoipa::ToSchema))]
pub(crate) struct Live {
    #[cfg_attr(feature = "docs", schema(example = "ok"))]
    status: &'static str,
    version: String,
}

/// `GET /health/ready`
#[derive(Serialize)]
#[cfg_attr(feature = "docs", derive(utoipa::ToSchema))]
pub(crate) struct Ready {
    /// `ok` or `unavailable`.
    #[cfg_attr(feature = "docs", schema(example = "ok"))]
    status: &'static str,
    version: String,
    /// When an acknowledged event is on the disk: `always` (before the answer), `everysec`, `never`.
    #[cfg_attr(feature = "docs", schema(example = "always"))]
    fsync: &'static str,
    checks: Checks,
    /// Named tokens that end within 14 days; the log says which.
    tokens_expiring: usize,
}

/// Every check; all must be true.
#[derive(Serialize)]
#[cfg_attr(feature = "docs", derive(utoipa::ToSchema))]
pub(crate) struct Checks {
    /// The data directory is there and may be written to.
    data_dir_writable: bool,
    /// More space is free than the reserve.
    disk_reserve: bool,
    /// The service is not about to stop.
    not_draining: bool,
    /// No domain is refused after a failed sync.
    no_poisoned_domain: bool,
    /// The file system has brought something to the disk since a sync failed.
    disk_proven: bool,
    /// Events are not refused by `POST /admin/read-only`.
    not_read_only: bool,
}

impl Checks {
    fn of(state: &AppState, health: &StoreHealth) -> Checks {
        Checks {
            data_dir_writable: health.writable,
            disk_reserve: health.above_reserve,
            not_draining: !health.draining,
            no_poisoned_domain: health.poisoned_domains == 0,
            disk_proven: health.disk_proven,
            not_read_only: !state.gate.is_read_only(),
        }
    }

    fn all(&self) -> bool {
        let Checks { data_dir_writable, disk_reserve, not_draining, no_poisoned_domain, disk_proven, not_read_only } =
            *self;
        data_dir_writable && disk_reserve && not_draining && no_poisoned_domain && disk_proven && not_read_only
    }
}

impl AppState {
    /// Would an event be accepted now? As `/health/ready`.
    pub async fn is_ready(&self) -> bool {
        store_health(self).await.is_ok_and(|health| Checks::of(self, &health).all())
    }
}

/// Is the token right and the service up?
#[cfg_attr(feature = "docs", utoipa::path(get, path = "/health", operation_id = "get_health", tag = "ops", security(("x-auth" = []), ("bearer" = [])),
    responses((status = 200, description = "The token is right.", body = Health), super::openapi::TokenErrors)))]
pub(crate) async fn health(State(state): State<Arc<AppState>>, request: Request) -> Result<Response, ApiError> {
    authorise(&state, &request, Scope::Read)?;
    Ok(json(StatusCode::OK, &Health { status: "ok" }))
}

/// Does the process answer? Needs no token and says nothing about the disk.
#[cfg_attr(feature = "docs", utoipa::path(get, path = "/health/live", operation_id = "get_liveness", tag = "ops", responses((status = 200, description = "The process answers.", body = Live))))]
pub(crate) async fn live(State(state): State<Arc<AppState>>) -> Response {
    json(StatusCode::OK, &Live { status: "ok", version: state.version.clone() })
}

/// Would an event be accepted now? Needs no token.
#[cfg_attr(feature = "docs", utoipa::path(get, path = "/health/ready", operation_id = "get_readiness", tag = "ops",
    responses((status = 200, description = "It would.", body = Ready), (status = 503, description = "It would not; `checks` says why.", body = Ready))))]
pub(crate) async fn ready(State(state): State<Arc<AppState>>) -> Result<Response, ApiError> {
    let health = store_health(&state).await?;
    let checks = Checks::of(&state, &health);
    let (status, word) =
        if checks.all() { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "unavailable") };
    let ready = Ready {
        status: word,
        version: state.version.clone(),
        fsync: state.store.fsync().as_str(),
        checks,
        tokens_expiring: state.auth.expiring(SystemTime::now()),
    };
    Ok(json(status, &ready))
}

/// Which version is this?
#[cfg_attr(feature = "docs", utoipa::path(get, path = "/version", operation_id = "get_version", tag = "ops", security(("x-auth" = []), ("bearer" = [])),
    responses((status = 200, description = "The version.", body = VersionInfo), super::openapi::TokenErrors)))]
pub(crate) async fn version(State(state): State<Arc<AppState>>, request: Request) -> Result<Response, ApiError> {
    authorise(&state, &request, Scope::Read)?;
    Ok(json(StatusCode::OK, &VersionInfo { version: state.version.clone() }))
}

/// Figures for Prometheus, text format 0.0.4. Needs no token.
#[cfg_attr(feature = "docs", utoipa::path(get, path = "/metrics", operation_id = "get_metrics", tag = "ops",
    responses((status = 200, description = "The figures of now.", body = String, content_type = "text/plain; version=0.0.4; charset=utf-8"))))]
pub(crate) async fn metrics(State(state): State<Arc<AppState>>) -> Result<Response, ApiError> {
    let health = store_health(&state).await?;
    let observed = Observed {
        connections: state.connections_open(),
        connections_max: state.connections_max,
        rate_limit_keys: state.live().limiter.keys(),
        read_only: state.gate.is_read_only(),
        throttle: state.gate.throttle(Instant::now()).is_some(),
        tokens_expiring: state.auth.expiring(SystemTime::now()),
    };
    state.metrics.observe(&health, &observed);
    let mut response = state.metrics.render().into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    Ok(response)
}

/// A disk that hangs holds nobody up: see [`crate::storage::Store::health_now`].
pub(crate) async fn store_health(state: &AppState) -> Result<StoreHealth, ApiError> {
    Ok(state.store.health_now().await)
}

pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Response {
    let body = serde_json::to_string(value).unwrap_or_default();
    (status, [(CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}
