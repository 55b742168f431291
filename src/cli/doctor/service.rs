//! What a service says of itself, over HTTP.

use std::io;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use super::machine::apart;
use super::{Patient, Report, shown};
use crate::cli::data::plain;
use crate::cli::http::{Answer, Bounds, Connection};
use crate::timestamp::{parse_http_date, rfc3339_ms};

const BOUNDS: Bounds = Bounds { timeout: Duration::from_secs(5), answer_bytes_max: 16 << 20 };
/// Round trips of which the fastest counts.
const ROUND_TRIPS: usize = 5;
/// The objective for the 95th percentile of all requests.
const LATENCY_MS_MAX: f64 = 200.0;
/// Above this a disk is slow for a log.
const SYNC_MS_MAX: f64 = 100.0;
const LOCK_WAIT_MS_MAX: f64 = 1000.0;
/// Per five minutes.
const PARSE_FAILURES_MAX: f64 = 10.0;
/// Share of all requests that the store may refuse.
const ERRORS_MAX: f64 = 0.001;
/// Share of a limit from which on it is said.
const FULL: f64 = 0.8;
/// The `Date` of an answer has whole seconds.
const CLOCK_SKEW_S_MAX: f64 = 5.0;
const NAMES_MAX: usize = 5;
/// Of what a service says: longest word that is shown, in characters, and most checks that fail.
const WORD_CHARS_MAX: usize = 100;
const FAILED_CHECKS_MAX: usize = 20;
/// So many domains are asked for at most, page by page.
const DOMAINS_LOOKED_AT_MAX: usize = 1_000_000;

/// Asks everything; if nobody answers, only that is told.
pub(super) fn look(patient: &Patient, report: &mut Report) {
    let service = Service { patient };
    let Some(live) = service.live(report) else { return };
    service.version(&live, report);
    service.clock(&live, report);
    service.latency(report);
    service.ready(report);
    service.page(report);
    service.figures(report);
    service.tokens(report);
    service.stats(report);
    service.write_probe(report);
}

struct Service<'a> {
    patient: &'a Patient,
}

/// What `/health/live` said, and when.
struct Live {
    body: Value,
    date: Option<SystemTime>,
    /// In the middle of the round trip.
    at: SystemTime,
}

impl Service<'_> {
    fn get(&self, path: &str, token: Option<&str>) -> io::Result<Answer> {
        let mut connection = Connection::open(&self.patient.bind, BOUNDS)?;
        match token {
            Some(token) => connection.request("GET", path, &[("X-Auth", token)], b""),
            None => connection.get(path),
        }
    }

    fn live(&self, report: &mut Report) -> Option<Live> {
        let target = shown(&self.patient.bind);
        let began = Instant::now();
        let answer = match self.get("/health/live", None) {
            Ok(answer) => answer,
            Err(error) => {
                let next = "systemctl status leitstand; ss -ltnp (RUNBOOK, \"Start\")";
                report.fail("live", format!("no answer from {target}: {error}"), next);
                return None;
            }
        };
        let at = SystemTime::now() - began.elapsed() / 2;
        let body = object(&answer);
        if answer.status != 200 || body["status"] != "ok" {
            let next = "is this the right address? curl -i it (RUNBOOK, \"First minute\")";
            report.fail("live", format!("{target} answers {} and not as this service does", answer.status), next);
            return None;
        }
        report.ok("live", format!("{target} answers"));
        Some(Live { body, date: answer.date.as_deref().and_then(parse_http_date), at })
    }

    fn version(&self, live: &Live, report: &mut Report) {
        let version = live.body["version"].as_str().unwrap_or("unknown");
        // What a service of these settings would say; for one elsewhere, what this binary would.
        let wanted = self.patient.config.as_ref().map_or(env!("CARGO_PKG_VERSION"), |config| &config.version);
        let differs = format!("the service is {}, this is {wanted}", plain(version, WORD_CHARS_MAX));
        let next = "restart the service with the new binary (RUNBOOK, \"Start\")";
        match version == wanted {
            true => report.ok("version", version),
            false if self.patient.post_deploy => report.fail("version", differs, next),
            false => report.warn("version", differs, next),
        }
    }

    fn clock(&self, live: &Live, report: &mut Report) {
        let Some(date) = live.date else {
            return report.warn("clock", "the answer has no date", "is a proxy in between?");
        };
        let seconds = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        // A date without fractions is half a second early on average.
        let skew_s = seconds(date) + 0.5 - seconds(live.at);
        if skew_s.abs() > CLOCK_SKEW_S_MAX {
            let text = format!("its clock differs from this one by {skew_s:.0} s");
            return report.warn("clock", text, "timedatectl, on both machines");
        }
        report.ok("clock", "as this one, to the second");
    }

    fn latency(&self, report: &mut Report) {
        let fastest = || -> io::Result<f64> {
            let mut connection = Connection::open(&self.patient.bind, BOUNDS)?;
            let mut fastest = f64::INFINITY;
            for _ in 0..ROUND_TRIPS {
                let began = Instant::now();
                connection.get("/health/live")?;
                fastest = fastest.min(began.elapsed().as_secs_f64() * 1e3);
            }
            Ok(fastest)
        };
        match fastest() {
            Ok(ms) if ms <= LATENCY_MS_MAX => report.ok("latency", format!("{ms:.2} ms for a round trip")),
            Ok(ms) => {
                let next = "top; ping (RUNBOOK, \"Slow clients\")";
                report.warn("latency", format!("{ms:.0} ms for the fastest of {ROUND_TRIPS} round trips"), next);
            }
            Err(error) => {
                let next = "is the service restarting? (RUNBOOK, \"First minute\")";
                report.fail("latency", format!("it stopped answering: {error}"), next);
            }
        }
    }

    fn ready(&self, report: &mut Report) {
        let answer = match self.get("/health/ready", None) {
            Ok(answer) => answer,
            Err(error) => {
                let next = "dmesg | tail; the disk may hang (RUNBOOK, \"Not ready\")";
                return report.fail("ready", format!("no answer: {error}"), next);
            }
        };
        let body = object(&answer);
        let checks = body["checks"].as_object().cloned().unwrap_or_default();
        let mut failed = checks.iter().filter(|(_, passed)| **passed != true).map(|(name, _)| name.as_str()).peekable();
        if answer.status == 200 && failed.peek().is_none() {
            return report.ok("ready", "an event would be accepted");
        }
        if failed.peek().is_none() {
            let text = format!("/health/ready answers {}", answer.status);
            return report.fail("ready", text, "look at the log (RUNBOOK, \"Not ready\")");
        }
        for name in failed.take(FAILED_CHECKS_MAX) {
            let (means, next) = advice(name);
            report.fail("ready", format!("{}: {means}", plain(name, WORD_CHARS_MAX)), next);
        }
    }

    /// The page for Prometheus.
    fn page(&self, report: &mut Report) {
        let next = "curl -s URL/metrics (RUNBOOK, \"Metrics to watch\")";
        match self.get("/metrics", None) {
            Ok(answer) if answer.status == 200 && answer.text().contains("\nleitstand_build_info{") => {
                let text = answer.text();
                let samples = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).count();
                report.ok("metrics", format!("{samples} samples"));
                let was_told = self.patient.config.as_ref().is_some_and(|config| !config.stale.is_empty());
                files(&text, was_told, report);
            }
            Ok(answer) => {
                report.fail("metrics", format!("/metrics answers {}, not with our page", answer.status), next)
            }
            Err(error) => report.fail("metrics", format!("no answer: {error}"), next),
        }
    }

    /// The same figures as JSON, and whether they are sane.
    fn figures(&self, report: &mut Report) {
        let answer = self.get("/api/v1/ops/metrics", None);
        let figures = match answer {
            Ok(answer) if answer.status == 200 => object(&answer),
            Ok(answer) => {
                let text = format!("/api/v1/ops/metrics answers {}: an older version?", answer.status);
                return report.warn("figures", text, "look at /metrics (RUNBOOK, \"Metrics to watch\")");
            }
            Err(error) => return report.fail("figures", format!("no answer: {error}"), "RUNBOOK, \"First minute\""),
        };
        let before = report.0.len();
        judge(&figures, self.patient.post_deploy, report);
        if let Some(config) = &self.patient.config {
            let (max, wanted) = (number(&figures, "connections_max"), config.max_connections as f64);
            if max < wanted {
                let text =
                    format!("{max} connections at most, {wanted} are wanted: the limit of open files is too low");
                report.warn("ulimit", text, "raise LimitNOFILE= or ulimit -n (RUNBOOK, \"Too many open files\")");
            }
        }
        if report.0.len() == before {
            report.ok("figures", "errors, disk, syncs, locks and limits are as they should be");
        }
    }

    /// A stranger must be refused, the token must not.
    fn tokens(&self, report: &mut Report) {
        let made_up = format!("doctor-{:016x}", crate::rng::random_u64());
        for (name, token) in [("without a token", None), ("with a wrong token", Some(made_up.as_str()))] {
            match self.get("/health", token).map(|answer| answer.status) {
                Ok(401) => report.ok("strangers", format!("refused {name}")),
                Ok(429) => {
                    let next = "wait a minute (RUNBOOK, \"Wrong tokens and 429\")";
                    report.warn("strangers", "too many wrong tokens came from here lately", next);
                }
                Ok(status) => {
                    let text = format!("/health answers {status} {name}, not 401");
                    report.fail(
                        "strangers",
                        text,
                        "stop the service, compare LEITSTAND_TOKEN (RUNBOOK, \"Tokens: give, rotate, revoke\")",
                    );
                }
                Err(error) => {
                    report.fail("strangers", format!("no answer {name}: {error}"), "RUNBOOK, \"First minute\"")
                }
            }
        }
        let Some(token) = &self.patient.token else {
            return report.warn("token", "the right one was not tried", "leitstand doctor --token-file FILE");
        };
        match self.get("/health", Some(token)).map(|answer| answer.status) {
            Ok(200) => report.ok("token", "accepted"),
            Ok(403) => report.warn("token", "it may not ask for /health", "take one with the scope read"),
            Ok(401) => {
                let next = "compare it with LEITSTAND_TOKEN of the service (RUNBOOK, \"Tokens: give, rotate, revoke\")";
                report.fail("token", "not accepted", next);
            }
            Ok(status) => {
                report.fail("token", format!("/health answers {status}"), "RUNBOOK, \"Errors a client can get\"")
            }
            Err(error) => report.fail("token", format!("no answer: {error}"), "RUNBOOK, \"First minute\""),
        }
    }

    /// For an admin token.
    fn stats(&self, report: &mut Report) {
        let Some(token) = &self.patient.token else { return };
        let (mut count, mut poisoned, mut after) = (0, Vec::new(), String::new());
        // By pages, until one is the last, or the doctor has seen enough.
        let more = loop {
            let stats = match self.get(&format!("/stats?limit=10000&after={after}"), Some(token)) {
                Ok(answer) if answer.status == 200 => object(&answer),
                Ok(answer) if [401, 403, 404].contains(&answer.status) => {
                    return report.ok("domains", "not looked at: the token is no admin token");
                }
                Ok(answer) => {
                    return report.warn("domains", format!("/stats answers {}", answer.status), "RUNBOOK, \"Stats\"");
                }
                Err(error) => {
                    return report.warn("domains", format!("no answer from /stats: {error}"), "RUNBOOK, \"Stats\"");
                }
            };
            let page = stats["domains"].as_array().cloned().unwrap_or_default();
            let names = |domains: &[Value]| {
                let names = domains.iter().filter_map(|domain| domain["name"].as_str());
                names.map(str::to_owned).collect::<Vec<_>>()
            };
            count += page.len();
            let refused: Vec<_> = page.iter().filter(|domain| domain["poisoned"] == true).cloned().collect();
            poisoned.extend(names(&refused));
            let last = names(&page).pop().filter(|last| stats["truncated"] == true && *last > after);
            match last {
                Some(last) if count < DOMAINS_LOOKED_AT_MAX => after = last,
                last => break last.is_some(),
            }
        };
        if poisoned.is_empty() {
            let more = if more { " and more" } else { "" };
            let s = if count == 1 { "" } else { "s" };
            return report.ok("domains", format!("{count} domain{s}{more}, none is refused"));
        }
        let poisoned: Vec<&str> = poisoned.iter().map(String::as_str).collect();
        let text = format!("refused: {}", some_of(&poisoned));
        report.fail("domains", text, "leitstand verify; leitstand repair (RUNBOOK, \"Poisoned domain\")");
    }

    fn write_probe(&self, report: &mut Report) {
        let (Some(domain), Some(token)) = (&self.patient.write_probe, &self.patient.token) else { return };
        let event = serde_json::json!({"event": "doctor.probe", "at": rfc3339_ms(SystemTime::now())}).to_string();
        let began = Instant::now();
        let answer = Connection::open(&self.patient.bind, BOUNDS).and_then(|mut connection| {
            let headers = [("X-Auth", token.as_str()), ("Content-Type", "application/json")];
            connection.request("POST", &format!("/v1/ingest?domain={domain}"), &headers, event.as_bytes())
        });
        let ms = began.elapsed().as_secs_f64() * 1e3;
        let next = "find the request in the log (RUNBOOK, \"Errors a client can get\")";
        match answer {
            Ok(answer) if answer.status == 202 => report.ok("write", format!("one event for {domain} in {ms:.1} ms")),
            Ok(answer) => {
                report.fail("write", format!("{}: {}", answer.status, plain(&answer.text(), 2 * WORD_CHARS_MAX)), next)
            }
            Err(error) => report.fail("write", format!("no answer: {error}; the event may be there"), next),
        }
    }
}

/// What the page for Prometheus says of the files that the service reads. `was_told`: this machine sees the same of
/// those that are mounted.
fn files(page: &str, was_told: bool, report: &mut Report) {
    let sample = |name: &str| {
        page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse::<f64>().ok())
    };
    let stale = sample("leitstand_config_stale_files").is_some_and(|n| n > 0.0);
    if stale && !was_told {
        let text = "the service reads old files: they are mounted by themselves and were replaced where they come from";
        report.warn("settings", text, "mount the directory (RUNBOOK, \"Files that are mounted by themselves\")");
    } else if !stale && sample("leitstand_config_last_reload_successful") == Some(0.0) {
        let text = "what the files say is refused, the values from before hold";
        report.warn("settings", text, "grep 'not read anew' in the log (RUNBOOK, \"Change the configuration\")");
    }
    if sample("leitstand_token_store_reload_successful") == Some(0.0) {
        let text = "the store of named tokens cannot be used, the tokens from before hold";
        report.warn("tokens", text, "grep 'token store' in the log (RUNBOOK, \"Tokens: give, rotate, revoke\")");
    }
}

/// What a failed check of `/health/ready` means, and what helps.
fn advice(check: &str) -> (&'static str, &'static str) {
    match check {
        "data_dir_writable" => (
            "the data directory is gone or read-only",
            "ls -ld DIR; findmnt -T DIR; dmesg | tail (RUNBOOK, \"Not ready\")",
        ),
        "disk_reserve" => ("less is free than the reserve", "df -h DIR (RUNBOOK, \"Full disk\")"),
        "not_draining" => ("the service is stopping", "wait for the restart (RUNBOOK, \"Stop\")"),
        "no_poisoned_domain" => {
            ("a domain is refused after a failed sync", "leitstand verify (RUNBOOK, \"Poisoned domain\")")
        }
        "disk_proven" => (
            "a sync has failed, and no probe of the file system has succeeded since",
            "dmesg | tail; leitstand verify (RUNBOOK, \"Failed sync\")",
        ),
        "not_read_only" => {
            ("an operator has switched writing off", "GET /admin/read-only tells why (RUNBOOK, \"Maintenance window\")")
        }
        _ => ("see the documents of that version", "RUNBOOK, \"Not ready\""),
    }
}

fn judge(figures: &Value, post_deploy: bool, report: &mut Report) {
    let n = |key: &str| number(figures, key);
    let failures = n("parse_failures_total") * 300.0 / n("uptime_s").max(300.0);
    if failures > PARSE_FAILURES_MAX {
        let text = format!("{failures:.0} bodies in 5 minutes cannot be parsed, on average since the start");
        report.warn(
            "parsing",
            text,
            "grep 'status=400' in the log tells the clients (RUNBOOK, \"Errors a client can get\")",
        );
    }
    // Not all 5xx: those of a maintenance window and of /health/ready are meant.
    let refused = n("append_failures_total");
    if refused > ERRORS_MAX * n("requests_total") {
        let text = format!("the store refused {refused} of {} requests", n("requests_total"));
        report.warn("errors", text, "grep -E 'request (failed|deferred)' in the log (RUNBOOK, \"Storage errors\")");
    }
    for (name, key, max_ms, next) in [
        ("latency", "request_p95_ms", LATENCY_MS_MAX, "sync and lock times tell why (RUNBOOK, \"Metrics to watch\")"),
        ("syncs", "sync_p99_ms", SYNC_MS_MAX, "iostat -x 1; the disk is slow (RUNBOOK, \"Metrics to watch\")"),
        ("locks", "lock_wait_p99_ms", LOCK_WAIT_MS_MAX, "fuser -v DIR/*.lock (RUNBOOK, \"Lock timeout\")"),
    ] {
        if n(key) > max_ms {
            report.warn(name, format!("{key} is {:.1}, over {max_ms:.0}", n(key)), next);
        }
    }
    for (name, used, max) in
        [("memory", "in_flight_bytes", "in_flight_bytes_max"), ("sockets", "connections", "connections_max")]
    {
        if n(used) > FULL * n(max) {
            report.warn(name, format!("{used} is {}, the limit {}", n(used), n(max)), "RUNBOOK, \"Limits\"");
        }
    }
    if figures["disk_free_bytes"].is_u64() && n("disk_free_bytes") < 2.0 * n("disk_reserve_bytes") {
        let (free, reserve) = apart(n("disk_free_bytes") as u64, n("disk_reserve_bytes") as u64);
        let text = format!("{free} are free, less than twice the reserve of {reserve}");
        report.warn("disk", text, "df -h DIR (RUNBOOK, \"Full disk\")");
    }
    if n("poisoned_domains") > 0.0 {
        let text = format!("{} domains are refused", n("poisoned_domains"));
        report.fail("poisoned", text, "leitstand verify (RUNBOOK, \"Poisoned domain\")");
    }
    if n("torn_tails_total") > 0.0 {
        let text = format!("{} unfinished lines were moved to .torn/ since the start", n("torn_tails_total"));
        report.warn("torn tails", text, "ls -l DIR/.torn (RUNBOOK, \"Torn tails\")");
    }
    for (name, key, next) in [
        ("heartbeat", "heartbeat_failures_total", "grep heartbeat in the log (RUNBOOK, \"Heartbeat\")"),
        ("log", "log_lines_dropped_total", "who reads stdout? (RUNBOOK, \"Logs dropped\")"),
    ] {
        if n(key) > 0.0 {
            report.warn(name, format!("{key} is {}", n(key)), next);
        }
    }
    if figures["throttle"] == true {
        report.warn(
            "throttle",
            "an operator limits all clients",
            "GET /admin/throttle (RUNBOOK, \"Maintenance window\")",
        );
    }
    if post_deploy && figures["last_success_at"].is_null() {
        let text = "no event was stored since the start";
        report.warn("traffic", text, "leitstand doctor --write-probe DOMAIN, or wait for one");
    }
}

fn number(figures: &Value, key: &str) -> f64 {
    figures[key].as_f64().unwrap_or(0.0)
}

fn object(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap_or_default()
}

/// A few names, and how many more there are.
pub(super) fn some_of(names: &[impl AsRef<str>]) -> String {
    let shown: Vec<&str> = names.iter().take(NAMES_MAX).map(AsRef::as_ref).collect();
    let more = names.len().saturating_sub(NAMES_MAX);
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn judged(figures: Value) -> Vec<&'static str> {
        let mut report = Report::default();
        judge(&figures, false, &mut report);
        report.0.iter().map(|check| check.name).collect()
    }

    /// Broken, whoever asks from outside would not learn that a service reads old files, or none.
    #[test]
    fn what_the_page_says_of_files_is_told_once() {
        let told = |page: &str, was_told| {
            let mut report = Report::default();
            files(page, was_told, &mut report);
            report.0.iter().map(|check| check.name).collect::<Vec<_>>()
        };
        let page = |stale, reload, store| {
            format!(
                "# HELP x y\nleitstand_config_stale_files {stale}\nleitstand_config_last_reload_successful {reload}\n\
                 leitstand_token_store_reload_successful {store}\n"
            )
        };
        for (page, was_told, want) in [
            (String::new(), false, &[][..]),
            (page(0, 1, 1), false, &[]),
            (page(2, 0, 1), false, &["settings"]),
            (page(2, 0, 1), true, &[]),
            (page(0, 0, 0), false, &["settings", "tokens"]),
        ] {
            assert_eq!(told(&page, was_told), want, "{page}");
        }
    }

    /// Broken, `doctor` would say that all is well beside a disk that is not, or warn of nothing.
    #[test]
    fn figures_are_judged_by_their_limits() {
        assert_eq!(judged(json!({})), [""; 0]);
        for (figures, want) in [
            (json!({"parse_failures_total": 11, "uptime_s": 10}), Some("parsing")),
            (json!({"parse_failures_total": 10, "uptime_s": 10}), None),
            (json!({"parse_failures_total": 1000, "uptime_s": 86_400}), None),
            (json!({"append_failures_total": 2, "requests_total": 1000}), Some("errors")),
            (json!({"append_failures_total": 1, "requests_total": 1000}), None),
            (json!({"requests_5xx_total": 99, "requests_total": 1000}), None),
            (json!({"request_p95_ms": 201}), Some("latency")),
            (json!({"sync_p99_ms": 100.5}), Some("syncs")),
            (json!({"sync_p99_ms": null}), None),
            (json!({"lock_wait_p99_ms": 2000.0}), Some("locks")),
            (json!({"in_flight_bytes": 81, "in_flight_bytes_max": 100}), Some("memory")),
            (json!({"connections": 80, "connections_max": 100}), None),
            (json!({"connections": 81, "connections_max": 100}), Some("sockets")),
            (json!({"disk_free_bytes": 199, "disk_reserve_bytes": 100}), Some("disk")),
            (json!({"disk_free_bytes": 200, "disk_reserve_bytes": 100}), None),
            (json!({"disk_free_bytes": null, "disk_reserve_bytes": 100}), None),
            (json!({"poisoned_domains": 1}), Some("poisoned")),
            (json!({"torn_tails_total": 1}), Some("torn tails")),
            (json!({"heartbeat_failures_total": 1}), Some("heartbeat")),
            (json!({"log_lines_dropped_total": 1}), Some("log")),
            (json!({"throttle": true}), Some("throttle")),
        ] {
            assert_eq!(judged(figures.clone()), Vec::from_iter(want), "{figures}");
        }
    }
}
