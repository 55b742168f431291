//! HTTP: bytes to calls, results to responses. Knows no file, no lock, no sync.
//!
//! Outside in: [`server`] accepts connections, [`edge`] wraps every request, [`router`] picks the
//! handler, `ingest` admits (X-Auth, then Content-Length, then rate limit) and appends.

mod accept;
mod admin;
mod auth;
mod blocking;
mod body;
mod client;
mod complaint;
mod config;
mod conn;
mod connections;
mod decode;
mod edge;
mod error;
mod fields;
mod foreign;
mod gate;
mod ingest;
mod limits;
mod linger;
mod live;
mod metered;
#[cfg(feature = "docs")]
mod openapi;
mod ops;
mod plain;
mod server;
mod snapshot;
mod state;
mod stats;
mod threads;
mod trusted;

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};

use crate::config::Feature;

// Public for the fuzz target of X-Forwarded-For, which no answer shows.
#[doc(hidden)]
pub use client::{Client, Peer};
pub use config::{FILES, Outside, PersistError};
pub use error::ApiError;
pub use limits::{Limiter, Standing};
#[cfg(feature = "docs")]
pub use openapi::openapi;
pub use server::{BoundListener, REFUSERS_MAX, ServerOptions, serve};
pub use state::AppState;

/// Every route but the pages.
fn routes() -> Router<Arc<AppState>> {
    #[expect(deprecated, reason = "the old path is served for as long as clients use it")]
    let old = ingest::old;
    Router::new()
        .route("/v1/ingest", post(ingest::v1))
        .route("/ingest/{domain}", post(old))
        .route("/health", get(ops::health))
        .route("/health/live", get(ops::live))
        .route("/health/ready", get(ops::ready))
        .route("/version", get(ops::version))
        .route("/metrics", get(ops::metrics))
        .route("/api/v1/ops/metrics", get(stats::ops_metrics))
        .route("/stats", get(stats::stats))
        .route("/admin/read-only", get(admin::read_only).post(admin::set_read_only))
        .route("/admin/throttle", get(admin::throttle).post(admin::set_throttle))
        .route("/config", get(config::show).post(config::change))
        .route("/admin/snapshot", post(snapshot::create))
}

/// The routes with their fallbacks, in front of `state`.
fn router(state: Arc<AppState>) -> Router {
    let router = routes();
    #[cfg(feature = "docs")]
    let router = router.merge(openapi::pages());
    router
        .fallback(async || ApiError::NotFound)
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        .with_state(state)
}

/// Are the pages part of this build?
const PAGES: bool = cfg!(feature = "docs");

/// The route template a path falls under, for logs and metrics; `none` if there is none.
fn route_template(path: &str) -> &'static str {
    match path {
        "/v1/ingest" => "/v1/ingest",
        "/health" => "/health",
        "/health/live" => "/health/live",
        "/health/ready" => "/health/ready",
        "/version" => "/version",
        "/metrics" => "/metrics",
        "/api/v1/ops/metrics" => "/api/v1/ops/metrics",
        "/stats" => "/stats",
        "/admin/read-only" => "/admin/read-only",
        "/admin/throttle" => "/admin/throttle",
        "/config" => "/config",
        "/admin/snapshot" => "/admin/snapshot",
        "/openapi.json" if PAGES => "/openapi.json",
        "/docs" | "/redoc" if PAGES => "/docs",
        _ => match path.strip_prefix("/ingest/") {
            Some(domain) if !domain.is_empty() && !domain.contains('/') => "/ingest/{domain}",
            _ if PAGES && path.starts_with("/docs/") => "/docs",
            _ => "none",
        },
    }
}

/// What must be switched on for a route, by its template. The edge asks; the ingest routes ask themselves.
fn feature_of(route: &str) -> Option<Feature> {
    match route {
        "/version" => Some(Feature::Version),
        "/stats" => Some(Feature::Stats),
        "/metrics" => Some(Feature::Metrics),
        "/config" => Some(Feature::Config),
        "/docs" | "/openapi.json" => Some(Feature::Docs),
        "/ingest/{domain}" => Some(Feature::OldPath),
        _ if route.starts_with("/admin/") => Some(Feature::Admin),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, the `handler` label of a described route would be `none`.
    #[test]
    #[cfg(feature = "docs")]
    fn every_described_route_has_its_template() {
        for path in openapi().paths.paths.keys() {
            let example = path.replace("{domain}", "a.b");
            assert_eq!(route_template(&example), path);
            assert!(crate::metrics::HANDLERS.contains(&path.as_str()));
        }
    }

    /// Broken, paths of strangers would fill the `handler` label, or pages that are not there would have one.
    #[test]
    fn other_paths_have_no_template() {
        for path in ["/", "/nope", "/ingest", "/ingest/", "/ingest/a/b", "/v1/ingest/x", "//v1/ingest"] {
            assert_eq!(route_template(path), "none");
        }
        for (path, template) in
            [("/docs", "/docs"), ("/docs/x", "/docs"), ("/redoc", "/docs"), ("/openapi.json", "/openapi.json")]
        {
            assert_eq!(route_template(path), if PAGES { template } else { "none" });
        }
    }
}
