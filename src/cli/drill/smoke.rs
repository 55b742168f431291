//! Smoke tests: what somebody would try by hand on a restored service.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use serde_json::{Value, json};

use super::service;
use crate::cli::http::Answer;
use crate::domain::Domain;
use crate::storage::FileNames;

/// More than one event of the smoke test takes, at the end of a file.
const LAST_LINE_BYTES: u64 = 4096;

/// A test with what it is about, and what was seen.
pub(super) struct Smoke {
    pub(super) name: &'static str,
    pub(super) result: Result<String, String>,
}

/// Posts one event; the restore is over when it is accepted.
pub(super) fn first_event(run: &str, token: &str, domain: &str) -> Result<String, String> {
    let path = format!("/v1/ingest?domain={domain}");
    let headers = [("X-Auth", token), ("Content-Type", "application/json")];
    let body = json!({"drill": run, "smoke": true}).to_string();
    let answer = service::connect().and_then(|mut c| c.request("POST", &path, &headers, body.as_bytes()));
    expect(answer, 202, |body| body == "ok")
}

/// All the others. The event of [`first_event`] is in `data_dir` now.
pub(super) fn tests(run: &str, token: &str, domain: &str, data_dir: &Path) -> Vec<Smoke> {
    let get = |path| service::connect().and_then(|mut c| c.get(path));
    let with_token =
        |path, token| service::connect().and_then(|mut c| c.request("GET", path, &[("X-Auth", token)], b""));
    let ok = |body: &str| serde_json::from_str::<Value>(body).is_ok_and(|body| body["status"] == "ok");
    let counted = |body: &str| {
        let events = body.lines().find_map(|line| line.strip_prefix("leitstand_events_total "));
        events.and_then(|n| n.parse::<f64>().ok()).is_some_and(|n| n >= 1.0)
    };
    let smoke = |name, result| Smoke { name, result };
    vec![
        smoke("`/health/live` is ok", expect(get("/health/live"), 200, ok)),
        smoke("`/health/ready` is ok", expect(get("/health/ready"), 200, ok)),
        smoke("the event is in its file", in_file(run, domain, data_dir)),
        smoke("the token is taken", expect(with_token("/health", token), 200, ok)),
        smoke("a wrong token is refused", expect(with_token("/health", "wrong"), 401, |_| true)),
        smoke("an unknown path is not found", expect(get("/nowhere"), 404, |_| true)),
        smoke("`/metrics` counts the event", expect(get("/metrics"), 200, counted)),
    ]
}

/// A producer with a token of its own goes on without a new one.
pub(super) fn named_token(secret: &str) -> Smoke {
    let bearer = format!("Bearer {secret}");
    let asked = service::connect().and_then(|mut c| c.request("GET", "/health", &[("Authorization", &bearer)], b""));
    Smoke { name: "a named token is taken as before", result: expect(asked, 200, |_| true) }
}

fn expect(answer: io::Result<Answer>, status: u16, fits: impl Fn(&str) -> bool) -> Result<String, String> {
    let answer = answer.map_err(|e| format!("no answer: {e}"))?;
    let body = answer.text();
    if answer.status != status {
        return Err(format!("answered {} instead of {status}: {body:.200}", answer.status));
    }
    if !fits(&body) {
        return Err(format!("answered {status}, but with {body:.200}"));
    }
    Ok(status.to_string())
}

fn in_file(run: &str, domain: &str, data_dir: &Path) -> Result<String, String> {
    let name = FileNames::of(&Domain::parse(domain).expect("the drill names domains")).data;
    let line = last_line(&data_dir.join(&name)).map_err(|e| format!("{name}: {e}"))?;
    let wanted = json!({"drill": run, "smoke": true, "domain": domain});
    match serde_json::from_str::<Value>(&line) {
        Ok(event) if event == wanted => Ok(format!("last line of {name}")),
        _ => Err(format!("the last line of {name} is another one")),
    }
}

/// The last line of a file that ends in a newline.
fn last_line(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LAST_LINE_BYTES)))?;
    let mut end = Vec::new();
    file.read_to_end(&mut end)?;
    let text = String::from_utf8_lossy(&end);
    let whole =
        text.strip_suffix('\n').ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the last line is torn"))?;
    Ok(whole.rsplit('\n').next().unwrap_or_default().to_owned())
}
