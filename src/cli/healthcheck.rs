//! `leitstand healthcheck`: one request to `/health/ready`, for images without a shell.

use std::time::Duration;

use super::BindArgs;
use super::http::{Bounds, Connection};

const BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(5), answer_bytes_max: 64 << 10 };

pub(super) fn run(args: &BindArgs) -> Result<(), String> {
    let bind = super::env::config(args)?.bind;
    let answer = Connection::open(&bind, BOUNDS)
        .and_then(|mut connection| connection.request("GET", "/health/ready", &[("Connection", "close")], b""));
    let answer = answer.map_err(|e| format!("no answer from {bind:?}: {e}\n  is the service running, and with the same LEITSTAND_HOST and LEITSTAND_PORT?"))?;
    let body = answer.text();
    if answer.status == 200 {
        println!("{body}");
        return Ok(());
    }
    Err(format!("not ready: {body}\n  see RUNBOOK, \"Not ready\""))
}
