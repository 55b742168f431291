//! `leitstand healthcheck`: would the service accept an event? By one request to `/health/ready`, for images
//! without a shell, or by its heartbeat.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use super::data::{print, tell};
use super::http::{Bounds, Connection};
use super::{BindArgs, HealthcheckArgs, heartbeat};
use crate::config::Bind;

const BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(5), answer_bytes_max: 64 << 10 };

/// What was found.
pub(super) struct Health {
    pub healthy: bool,
    /// One line if it is healthy, else also what to do.
    pub text: String,
    /// What the service or its heartbeat said.
    pub said: Value,
}

/// # Errors
/// The settings say not whom to ask.
pub(super) fn run(args: &HealthcheckArgs) -> Result<ExitCode, String> {
    let health = match &args.heartbeat {
        Some(path) => heartbeat::health(path, args.max_age, args.max_success_age),
        None => ask(&args.bind)?,
    };
    if args.json {
        print(&format!("{:#}\n", json!({"healthy": health.healthy, "text": health.text, "said": health.said})));
    } else if health.healthy {
        print(&format!("{}\n", health.text));
    }
    if health.healthy {
        return Ok(ExitCode::SUCCESS);
    }
    tell(format_args!("leitstand: {}", health.text));
    Ok(ExitCode::FAILURE)
}

fn ask(args: &BindArgs) -> Result<Health, String> {
    let bind = super::env::config(args)?.bind;
    let place = match &bind {
        Bind::Tcp { host, port } => format!("{host}:{port}"),
        Bind::Unix(path) => path.display().to_string(),
    };
    let answer = Connection::open(&bind, BOUNDS)
        .and_then(|mut connection| connection.request("GET", "/health/ready", &[("Connection", "close")], b""));
    let answer = match answer {
        Ok(answer) => answer,
        Err(e) => {
            let advice = "is the service running, and with the same LEITSTAND_HOST and LEITSTAND_PORT?";
            let text = format!("no answer from {place}: {e}\n  {advice}");
            return Ok(Health { healthy: false, text, said: Value::Null });
        }
    };
    let body = answer.text().to_owned();
    let said = serde_json::from_str(&body).unwrap_or_default();
    let healthy = answer.status == 200;
    let text = if healthy { body.clone() } else { format!("not ready: {body}\n  see RUNBOOK, \"Not ready\"") };
    Ok(Health { healthy, text, said })
}
