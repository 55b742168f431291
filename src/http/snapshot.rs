//! `POST /admin/snapshot`: a backup, taken by the service itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::{Request, State};
use axum::response::Response;
use http::StatusCode;
use http::header::CONTENT_LENGTH;
use http_body::Body as _;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::auth::{actor, authorise};
use super::blocking::no_thread;
use super::body::{self, Coding, format_of};
use super::client::Client;
use super::edge::Caller;
use super::error::ApiError;
use super::ops::json;
use super::state::AppState;
use crate::event::Format;
use crate::storage::snapshot::{SnapshotError, SnapshotReport, place};
use crate::timestamp::compact;
use crate::token::Scope;

/// Largest body: two names.
const BODY_BYTES_MAX: usize = 4096;

/// Where to, and what from.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "docs", derive(utoipa::ToSchema))]
pub(crate) struct SnapshotWanted {
    /// Plain name below `LEITSTAND_SNAPSHOT_DIR` that is not taken; else the time is its name.
    #[cfg_attr(feature = "docs", schema(example = "2026-11-21"))]
    path: Option<String>,
    /// Name of an earlier snapshot there; what that holds is linked, only the rest is copied.
    #[cfg_attr(feature = "docs", schema(example = "2026-11-20"))]
    base: Option<String>,
}

/// A snapshot that is whole and on the disk.
#[derive(Serialize)]
#[cfg_attr(feature = "docs", derive(utoipa::ToSchema))]
pub(crate) struct SnapshotTaken {
    #[cfg_attr(feature = "docs", schema(example = "20261121T183000Z-0123456789abcdef"))]
    id: String,
    /// Name below `LEITSTAND_SNAPSHOT_DIR`.
    #[cfg_attr(feature = "docs", schema(example = "2026-11-21"))]
    path: String,
    files: u64,
    bytes: u64,
    lines: u64,
    /// Of the manifest.
    sha256: String,
    /// Names in the data directory that may hold data and are not part of it, such as links.
    skipped: u64,
    duration_ms: u64,
}

/// Take a snapshot
///
/// Copies the data directory, consistent for each domain, while events are accepted. Answers when all
/// of it is on the disk. Needs a token for administration.
#[cfg_attr(feature = "docs", utoipa::path(post, path = "/admin/snapshot", operation_id = "take_snapshot", tag = "admin", security(("x-auth" = []), ("bearer" = [])),
    request_body = Option<SnapshotWanted>,
    responses(
        (status = 200, description = "The snapshot is on the disk.", body = SnapshotTaken),
        super::openapi::TokenErrors,
        (status = 400, description = "`invalid body`, `invalid path` or `invalid base`.", body = super::openapi::Detail),
        (status = 404, description = "`Not Found`: `LEITSTAND_SNAPSHOT_DIR` is not set.", body = super::openapi::Detail),
        (status = 408, description = "`request timeout`.", body = super::openapi::Detail),
        (status = 409, description = "`another snapshot is running` or `path is taken`.", body = super::openapi::Detail),
        (status = 413, description = "`payload too large`.", body = super::openapi::Detail),
        (status = 415, description = "`unsupported content-type` or `unsupported content-encoding`.", body = super::openapi::Detail),
        (status = 500, description = "`storage error`; the log says which.", body = super::openapi::Detail),
        (status = 503, description = "`lock timeout`, `busy` or `shutting down`.", body = super::openapi::Detail),
        (status = 507, description = "`insufficient storage`: nothing is left of it.", body = super::openapi::Detail),
    )))]
pub(crate) async fn create(State(state): State<Arc<AppState>>, request: Request) -> Result<Response, ApiError> {
    let pass = authorise(&state, &request, Scope::Admin)?;
    let asked_by = (actor(&pass, request.headers()), Caller::of(request.extensions()).client);
    let root = state.snapshot_dir.clone().ok_or(ApiError::NotFound)?;
    let wanted = wanted(&state, request).await?;
    let name = wanted.path.unwrap_or_else(|| compact(SystemTime::now()));
    let report = take(state, root, name.clone(), wanted.base, asked_by).await?;
    let manifest = &report.manifest;
    let taken = SnapshotTaken {
        id: manifest.id.clone(),
        path: name,
        files: manifest.totals.files,
        bytes: manifest.totals.bytes,
        lines: manifest.totals.lines,
        skipped: manifest.losses().count() as u64,
        duration_ms: report.took.as_millis() as u64,
        sha256: report.manifest_sha256,
    };
    Ok(json(StatusCode::OK, &taken))
}

/// The body, which may be missing.
async fn wanted(state: &AppState, request: Request) -> Result<SnapshotWanted, ApiError> {
    let (parts, mut body) = request.into_parts();
    if body.is_end_stream() {
        return Ok(SnapshotWanted::default());
    }
    if parts.headers.contains_key(CONTENT_LENGTH) {
        body::check_length(&parts.headers, &body, BODY_BYTES_MAX)?;
    }
    if format_of(&parts.headers) != Some(Format::Document) {
        return Err(ApiError::ContentType);
    }
    let coding = Coding::of(&parts.headers)?;
    let caller = Caller::of(&parts.extensions).clone();
    let reservation = state.store.reserve(BODY_BYTES_MAX)?;
    let deadline = state.live().terms(caller.started).body_deadline;
    let read = body::read(state, &caller.conn, &mut body, coding, deadline, BODY_BYTES_MAX, reservation);
    serde_json::from_slice(&read.await?.body).map_err(|_| ApiError::InvalidBody)
}

/// Works in a thread of its own: it takes minutes, and goes on when the client goes away.
async fn take(
    state: Arc<AppState>,
    root: PathBuf,
    name: String,
    base: Option<String>,
    (actor, client): (String, Client),
) -> Result<SnapshotReport, ApiError> {
    let Ok(turn) = state.snapshots.clone().try_acquire_owned() else {
        let refused = SnapshotError::AlreadyRunning(root);
        state.metrics.snapshot(Some(refused.word()));
        return Err(refused.into());
    };
    let (tell, told) = oneshot::channel();
    let work = move || {
        let result = run(&state, &root, &name, base.as_deref());
        state.metrics.snapshot(result.as_ref().err().map(SnapshotError::word));
        if let Ok(report) = &result {
            let totals = report.manifest.totals;
            let (id, duration_ms) = (&report.manifest.id, report.took.as_millis() as u64);
            let (files, bytes) = (totals.files, totals.bytes);
            tracing::info!(id, path = name, files, bytes, duration_ms, actor, %client, "snapshot taken");
            for left in &report.left_alone {
                tracing::warn!(name = left.name, reason = left.reason, "left alone beside the snapshot");
            }
        }
        drop(turn);
        // Nobody may be waiting any more.
        let _ = tell.send(result);
    };
    let thread = std::thread::Builder::new().name("snapshot-request".to_owned()).spawn(work);
    thread.map_err(no_thread)?;
    Ok(told.await.map_err(|_| ApiError::Panicked)??)
}

fn run(state: &AppState, root: &Path, name: &str, base: Option<&str>) -> Result<SnapshotReport, SnapshotError> {
    let to = place(root, name)?;
    let base = base.map(|base| place(root, base)).transpose().map_err(|e| SnapshotError::BadBase(Box::new(e)))?;
    state.store.snapshot(to, base)
}
