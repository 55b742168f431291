//! HTTP: bytes to calls, results to responses. Knows no file, no lock, no sync.
//!
//! Outside in: [`server`] accepts connections, [`edge`] wraps every request, [`router`] picks the
//! handler, `ingest` admits (X-Auth, then Content-Length, then rate limit) and appends.

mod auth;
mod body;
mod client;
mod conn;
mod decode;
mod edge;
mod error;
mod ingest;
mod limits;
mod openapi;
mod ops;
mod server;
mod state;

use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use http::header::{CONTENT_SECURITY_POLICY, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use tower_http::set_header::SetResponseHeaderLayer;
use utoipa::OpenApi as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

// Public for the fuzz target of X-Forwarded-For, which no answer shows.
#[doc(hidden)]
pub use client::{Client, Peer};
pub use error::ApiError;
pub use limits::{Limiter, Standing};
pub use server::{BoundListener, ServerOptions, serve};
pub use state::AppState;

/// Every route.
fn routes() -> OpenApiRouter<Arc<AppState>> {
    #[expect(deprecated, reason = "the old path is served for as long as clients use it")]
    OpenApiRouter::with_openapi(openapi::ApiDoc::openapi())
        .routes(routes!(ingest::v1))
        .routes(routes!(ingest::old))
        .routes(routes!(ops::health))
        .routes(routes!(ops::live))
        .routes(routes!(ops::ready))
        .routes(routes!(ops::version))
        .routes(routes!(ops::metrics))
        .merge(pages())
}

/// Pages for people, with what a browser should know about them.
fn pages() -> OpenApiRouter<Arc<AppState>> {
    let header = |name, value| SetResponseHeaderLayer::if_not_present(name, HeaderValue::from_static(value));
    OpenApiRouter::new()
        .route("/docs", get(openapi::page))
        .route("/docs/{file}", get(openapi::asset))
        .route("/openapi.json", get(openapi::json))
        .route("/redoc", get(openapi::redoc))
        .layer(header(CONTENT_SECURITY_POLICY, openapi::PAGE_POLICY))
        .layer(header(X_CONTENT_TYPE_OPTIONS, "nosniff"))
}

/// The routes with their fallbacks, in front of `state`.
fn router(state: Arc<AppState>) -> Router {
    let (router, _) = routes().split_for_parts();
    router
        .fallback(async || ApiError::NotFound)
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        .with_state(state)
}

/// The description of the interface.
pub fn openapi() -> utoipa::openapi::OpenApi {
    routes().into_openapi()
}

/// The route template a path falls under, for logs and metrics; `none` if there is none.
fn route_template(path: &str) -> &'static str {
    match path {
        "/v1/ingest" => "/v1/ingest",
        "/health" => "/health",
        "/health/live" => "/health/live",
        "/health/ready" => "/health/ready",
        "/version" => "/version",
        "/metrics" => "/metrics",
        "/openapi.json" => "/openapi.json",
        "/docs" | "/redoc" => "/docs",
        _ => match path.strip_prefix("/ingest/") {
            Some(domain) if !domain.is_empty() && !domain.contains('/') => "/ingest/{domain}",
            _ if path.starts_with("/docs/") => "/docs",
            _ => "none",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, the `handler` label of a described route would be `none`.
    #[test]
    fn every_described_route_has_its_template() {
        for path in openapi().paths.paths.keys() {
            let example = path.replace("{domain}", "a.b");
            assert_eq!(route_template(&example), path);
            assert!(crate::metrics::HANDLERS.contains(&path.as_str()));
        }
        for path in ["/", "/nope", "/ingest", "/ingest/", "/ingest/a/b", "/v1/ingest/x", "//v1/ingest"] {
            assert_eq!(route_template(path), "none");
        }
    }
}
