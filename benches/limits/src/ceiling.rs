//! What HTTP alone costs: an axum server that reads the body, answers 202, and does nothing else.
//!
//! `ceiling PORT`. As many worker threads as there are processors.

use axum::Router;
use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::routing::post;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

async fn ingest(_body: Bytes) -> (StatusCode, &'static str) {
    (StatusCode::ACCEPTED, "ok")
}

fn main() {
    let port: u16 = std::env::args().nth(1).and_then(|port| port.parse().ok()).expect("usage: ceiling PORT");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async move {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.expect("a free port");
        let app = Router::new().route("/v1/ingest", post(ingest)).layer(DefaultBodyLimit::max(4 << 20));
        axum::serve(listener, app).await.expect("a listener that accepts");
    });
}
