//! `leitstand healthcheck`: would the service accept an event? By one request to `/health/ready`, for images
//! without a shell, or by its heartbeat.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::data::{plain, print, tell};
use super::http::{Answer, Bounds, Connection};
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
    Ok(judge(&answer, &place))
}

/// What `/health/ready` says, as far as it is understood, which holds for any version of the service. Whatever else an
/// answer holds is nobody's business here: anybody may listen on a port.
#[derive(Debug, Deserialize, Serialize)]
struct Said {
    status: String,
    version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fsync: Option<String>,
    checks: BTreeMap<String, bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_expiring: Option<u64>,
}

/// Longest word of an answer, in characters, and most checks.
const WORD_CHARS_MAX: usize = 100;
const CHECKS_MAX: usize = 64;

impl Said {
    /// `None`: it is not this service that says so.
    fn of(body: &[u8]) -> Option<Said> {
        let word = |text: String| plain(&text, WORD_CHARS_MAX);
        let said: Said = serde_json::from_slice(body).ok()?;
        let is_ours = ["ok", "unavailable"].contains(&said.status.as_str()) && said.checks.len() <= CHECKS_MAX;
        is_ours.then(|| Said {
            version: word(said.version),
            fsync: said.fsync.map(word),
            checks: said.checks.into_iter().map(|(name, passed)| (word(name), passed)).collect(),
            ..said
        })
    }
}

/// An error of the service: too many connections, or a version without this page.
#[derive(Deserialize)]
struct Refusal {
    detail: String,
}

fn judge(answer: &Answer, place: &str) -> Health {
    let ill = |text: String, said: Value| Health { healthy: false, text, said };
    let status = answer.status;
    let Some(said) = Said::of(&answer.body) else {
        if let Ok(Refusal { detail }) = serde_json::from_slice(&answer.body) {
            let detail = plain(&detail, WORD_CHARS_MAX);
            return ill(format!("not ready: {place} answers {status}: {detail}"), json!({"detail": detail}));
        }
        let advice =
            "does another service listen there? (ss -ltnp) Set LEITSTAND_HOST and LEITSTAND_PORT to those of this one";
        return ill(format!("{place} answers {status}, and not as this service does\n  {advice}"), Value::Null);
    };
    let healthy = status == 200 && said.status == "ok";
    let text = serde_json::to_string(&said).unwrap_or_default();
    let said = serde_json::to_value(said).unwrap_or_default();
    if healthy {
        Health { healthy, text, said }
    } else {
        ill(format!("not ready: {text}\n  see RUNBOOK, \"Not ready\""), said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(status: u16, body: &str) -> Health {
        judge(&Answer { status, date: None, body: body.as_bytes().to_vec() }, "127.0.0.1:8788")
    }

    /// Broken, an orchestrator would take any web server on the port for a healthy service.
    #[test]
    fn only_this_service_is_healthy() {
        let ours =
            r#"{"status":"ok","version":"0.1.0","fsync":"always","checks":{"disk_reserve":true},"tokens_expiring":0}"#;
        assert_eq!((judged(200, ours).healthy, judged(200, ours).text.as_str()), (true, ours));
        // Of a version that says more, or less.
        assert!(judged(200, r#"{"new":{"a":[1]},"status":"ok","version":"9","checks":{}}"#).healthy);
        for (status, body) in [
            (503, ours),
            (200, r#"{"status":"unavailable","version":"0.1.0","checks":{"disk_reserve":false}}"#),
            (200, r#"{"status":"ok"}"#),
            (200, r#"{"status":"up","version":"0.1.0","checks":{}}"#),
            (200, r#"{"status":"ok","version":"0.1.0","checks":{"a":"yes"}}"#),
            (200, r#"["ok"]"#),
            (200, "ok"),
            (200, ""),
            (200, "<html>\u{1b}[2J</html>"),
            (404, r#"{"detail":"Not Found"}"#),
            (503, r#"{"detail":"busy"}"#),
        ] {
            let health = judged(status, body);
            assert!(!health.healthy && !health.text.contains('\u{1b}'), "{status} {body}: {}", health.text);
        }
    }

    /// Broken, a stranger could write on the terminal of an operator, or fill it.
    #[test]
    fn what_is_not_understood_is_not_shown() {
        let long = "x".repeat(10_000);
        let odd = r#"\u001b[2J\u009b31m\u202e\r\n"#;
        for body in [
            format!(
                r#"{{"status":"ok","version":"{odd}{long}","fsync":"{odd}{long}","checks":{{"{odd}{long}":true}},"more":"{odd}"}}"#
            ),
            format!(r#"{{"detail":"{odd}{long}"}}"#),
            format!("\u{1b}[2J{long}"),
        ] {
            for status in [200, 503] {
                let health = judged(status, &body);
                let shown = format!("{}{}", health.text.replace("\n  ", " "), health.said);
                assert!(!shown.contains(|c: char| c.is_control() || c == '\u{202e}'), "{shown:?}");
                assert!(shown.len() < 2_000 && !shown.contains("more"), "{shown:?}");
            }
        }
    }
}
