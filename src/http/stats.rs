//! Figures as JSON: `/stats` for people and admin tools, `/api/v1/ops/metrics` for checkers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::response::Response;
use http::StatusCode;
use serde::Serialize;

use super::admin::{ThrottleState, throttle_state};
use super::auth::authorise;
use super::error::ApiError;
use super::ops::{json, store_health};
use super::state::AppState;
use crate::domain::{DOMAIN_BYTES_MAX, Domain};
use crate::metrics::Figures;
use crate::storage::stats::{DOMAINS_MAX, DomainStats, StatsQuery, StatsReport};
use crate::storage::{StoreError, StoreHealth};
use crate::timestamp::rfc3339_ms;
use crate::token::Scope;

const DOMAINS_DEFAULT: usize = 1000;
/// Longest counting of lines for one answer.
const COUNTING_MAX: Duration = Duration::from_millis(500);
/// Longest wait for the directory, and for others who look at it; then 503 `busy`.
const LOOK_MAX: Duration = Duration::from_secs(10);
/// What counts as "could not be read".
const PARSE_FAILURES: [&str; 4] = ["invalid_json", "invalid_ndjson", "invalid_encoding", "invalid_payload"];

/// `GET /stats`
#[derive(Serialize)]
#[cfg_attr(feature = "docs", derive(utoipa::ToSchema))]
pub(crate) struct Stats {
    #[cfg_attr(feature = "docs", schema(example = "0.1.0"))]
    version: String,
    pid: u32,
    #[cfg_attr(feature = "docs", schema(example = "2026-11-21T18:42:00.123Z"))]
    started_at: String,
    uptime_s: u64,
    /// `always`, `everysec` or `never`.
    #[cfg_attr(feature = "docs", schema(example = "always"))]
    fsync: &'static str,
    /// Events are refused by `POST /admin/read-only`.
    read_only: bool,
    throttle: ThrottleState,
    totals: Totals,
    disk: Space,
    queues: Queues,
    /// By name.
    domains: Vec<DomainFigures>,
    /// There are more domains than `limit`.
    truncated: bool,
    /// Some `lines` are `null`, because counting takes longer than one answer; ask again.
    counting: bool,
}

/// Since the start.
#[derive(Serialize)]
#[cfg_attr(feature = "docs", derive(utoipa::ToSchema))]
pub(crate) struct Totals {
    requests: u64,
    /// Acknowledged.
    events: u64,
    /// Of acknowledged lines.
    bytes: u64,
    /// Whose content was not stored.
    rejected_requests: u64,
    /// As far as they could be counted.
    rejected_events: u64,
    /// Turned away before their content was looked at.
    refused_requests: u64,
}

/// Of the data directory's file system; `null` when it does not say.
#[derive(Serialize)]
#[cfg_attr(feature = "docs", derive(utoipa::ToSchema))]
pub(crate) struct Space {
    free_bytes: Option<u64>,
    total_bytes: Option<u64>,
    /// Below this events are refused with 507.
    reserve_bytes: u64,
}

/// What is full at its maximum.
#[derive(Serialize)]
#[cfg_attr(feature = "docs", derive(utoipa::ToSchema))]
pub(crate) struct Queues {
    in_flight_bytes: usize,
    in_flight_bytes_max: usize,
    queued_requests: usize,
    connections: usize,
    connections_max: usize,
}

/// One domain.
#[derive(Serialize)]
#[cfg_attr(feature = "docs", derive(utoipa::ToSchema))]
pub(crate) struct DomainFigures {
    #[cfg_attr(feature = "docs", schema(example = "example.com"))]
    name: String,
    /// `null`: not counted to the end yet, or the file cannot be read.
    lines: Option<u64>,
    bytes: u64,
    /// When the file last changed.
    #[cfg_attr(feature = "docs", schema(example = "2026-11-21T18:42:00.123Z"))]
    last_event: String,
    /// Events are refused after a failed sync or roll-back.
    poisoned: bool,
    /// Requests that wait for this file.
    queued: usize,
}

/// `GET /api/v1/ops/metrics`. Everything is counted since the start; times are `null` without a sample.
#[derive(Serialize)]
#[cfg_attr(feature = "docs", derive(utoipa::ToSchema))]
pub(crate) struct OpsMetrics {
    version: String,
    started_at: String,
    uptime_s: u64,
    /// When an append was last acknowledged; `null` if none was since the start.
    last_success_at: Option<String>,
    events_accepted_total: u64,
    event_bytes_accepted_total: u64,
    requests_total: u64,
    requests_2xx_total: u64,
    requests_3xx_total: u64,
    requests_4xx_total: u64,
    requests_5xx_total: u64,
    /// Bodies that were no strict JSON or NDJSON, no UTF-8, or no events.
    parse_failures_total: u64,
    /// Requests whose content was not stored.
    rejected_requests_total: u64,
    rejected_events_total: u64,
    rejected_bytes_total: u64,
    /// The same requests by the `code` that the client got.
    rejected_by_code: BTreeMap<&'static str, u64>,
    /// Requests and connections turned away before their content was looked at, by reason.
    refused_by_reason: BTreeMap<&'static str, u64>,
    /// Refusals of the store: disk, lock, queue, stop.
    append_failures_total: u64,
    deprecated_requests_total: u64,
    /// From the head of a request to the head of its answer, all routes.
    request_p50_ms: Option<f64>,
    request_p95_ms: Option<f64>,
    request_p99_ms: Option<f64>,
    /// Of one write of a group.
    append_p50_ms: Option<f64>,
    append_p95_ms: Option<f64>,
    append_p99_ms: Option<f64>,
    /// Of one `fdatasync`.
    sync_p50_ms: Option<f64>,
    sync_p95_ms: Option<f64>,
    sync_p99_ms: Option<f64>,
    /// Waits for a lock that another process held.
    lock_waits_total: u64,
    lock_wait_p50_ms: Option<f64>,
    lock_wait_p95_ms: Option<f64>,
    lock_wait_p99_ms: Option<f64>,
    /// Requests handed to the store and not yet answered.
    queue_depth: usize,
    in_flight_bytes: usize,
    in_flight_bytes_max: usize,
    connections: usize,
    connections_max: usize,
    disk_free_bytes: Option<u64>,
    disk_total_bytes: Option<u64>,
    disk_reserve_bytes: u64,
    poisoned_domains: usize,
    torn_tails_total: u64,
    read_only: bool,
    throttle: bool,
    /// Named tokens that end within 14 days.
    tokens_expiring: usize,
    /// Always 0: this service has no publisher, so nothing lags. For checkers that ask every service for it.
    publisher_lag_ms: u64,
    /// Always 0: there is no dead-letter queue. An event is stored, or its sender is told why not.
    dlq_size: u64,
    heartbeat_failures_total: u64,
    log_lines_dropped_total: u64,
}

/// What there is, and how much went through since the start
///
/// Lines are counted once and then only what was added; counting takes at most half a second of an
/// answer, and goes on with the next.
#[cfg_attr(feature = "docs", utoipa::path(get, path = "/stats", operation_id = "get_stats", tag = "admin", security(("x-auth" = []), ("bearer" = [])),
    params(
        ("domain" = Option<String>, Query, pattern = "^\\s*[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*\\s*$", max_length = 253, description = "Only this domain."),
        ("after" = Option<String>, Query, max_length = 253, description = "Only domains behind this name: the last one of the page before."),
        ("limit" = Option<usize>, Query, minimum = 1, maximum = 10000, description = "Most domains, the first ones by name; 1000 if it is not given."),
    ),
    responses((status = 200, description = "The figures of the domains, by name.", body = Stats), super::openapi::TokenErrors,
        (status = 422, description = "What is wrong with the query, and what is allowed.", body = super::openapi::Detail))))]
pub(crate) async fn stats(State(state): State<Arc<AppState>>, request: Request) -> Result<Response, ApiError> {
    authorise(&state, &request, Scope::Admin)?;
    let query = query(request.uri().query().unwrap_or_default())?;
    let health = store_health(&state).await?;
    let report = count(&state, query).await?;
    let figures = state.metrics.figures();
    Ok(json(StatusCode::OK, &Stats::of(&state, &health, &figures, report)))
}

/// Figures for checkers, as one flat object
///
/// Needs no token, as `/metrics`: it holds numbers, and names no domain and no client.
#[cfg_attr(feature = "docs", utoipa::path(get, path = "/api/v1/ops/metrics", operation_id = "get_ops_metrics", tag = "ops",
    responses((status = 200, description = "The figures of now.", body = OpsMetrics))))]
pub(crate) async fn ops_metrics(State(state): State<Arc<AppState>>) -> Result<Response, ApiError> {
    let health = store_health(&state).await?;
    Ok(json(StatusCode::OK, &OpsMetrics::of(&state, &health, &state.metrics.figures())))
}

/// `domain` and `limit`; of several the last counts, as everywhere.
fn query(text: &str) -> Result<StatsQuery, ApiError> {
    let mut query = StatsQuery { only: None, after: None, domains_max: DOMAINS_DEFAULT, counting_max: COUNTING_MAX };
    for (name, value) in form_urlencoded::parse(text.as_bytes()) {
        match &*name {
            "domain" => {
                let domain = Domain::parse(&value).map_err(|_| bad("domain must be a valid domain"))?;
                query.only = Some(domain);
            }
            "after" if value.len() <= DOMAIN_BYTES_MAX => query.after = Some(value.into_owned()),
            "after" => return Err(bad("after must be the name of a domain")),
            "limit" => {
                let digits = value.bytes().all(|b| b.is_ascii_digit());
                let limit = value.parse().ok().filter(|n| digits && (1..=DOMAINS_MAX).contains(n));
                query.domains_max = limit.ok_or_else(|| bad("limit must be a whole number from 1 to 10000"))?;
            }
            _ => return Err(bad("unknown parameter, allowed are domain, after, limit")),
        }
    }
    Ok(query)
}

fn bad(text: &str) -> ApiError {
    ApiError::BadInput(text.to_owned())
}

/// One look at a time, so that many who ask together cost no more than one.
async fn count(state: &AppState, query: StatsQuery) -> Result<StatsReport, ApiError> {
    let store = state.store.clone();
    let look = tokio::time::timeout(LOOK_MAX, state.counting.run(move || store.stats(&query)));
    // Another look hangs, or this one does; it keeps its turn, so it is the only one.
    let busy = || ApiError::Store(StoreError::Busy { in_flight_bytes_max: 0 });
    let report = look.await.map_err(|_| busy())??;
    // The directory is gone: what else is known is told all the same, and ready says so.
    Ok(report.unwrap_or_default())
}

impl Stats {
    fn of(state: &AppState, health: &StoreHealth, figures: &Figures, report: StatsReport) -> Stats {
        let rejected = figures.rejected_total();
        Stats {
            version: state.version.clone(),
            pid: std::process::id(),
            started_at: rfc3339_ms(state.metrics.started_at()),
            uptime_s: state.metrics.uptime().as_secs(),
            fsync: state.store.fsync().as_str(),
            read_only: state.gate.is_read_only(),
            throttle: throttle_state(state),
            totals: Totals {
                requests: figures.requests.iter().sum(),
                events: figures.events,
                bytes: figures.event_bytes,
                rejected_requests: rejected.requests,
                rejected_events: rejected.events,
                refused_requests: figures.refused.values().sum(),
            },
            disk: Space {
                free_bytes: health.space.map(|space| space.free_bytes),
                total_bytes: health.space.map(|space| space.total_bytes),
                reserve_bytes: health.reserve_bytes,
            },
            queues: Queues {
                in_flight_bytes: health.in_flight_bytes,
                in_flight_bytes_max: health.in_flight_bytes_max,
                queued_requests: health.queued_requests,
                connections: state.connections_open(),
                connections_max: state.connections_max,
            },
            domains: report.domains.into_iter().map(DomainFigures::of).collect(),
            truncated: report.truncated,
            counting: report.counting,
        }
    }
}

impl DomainFigures {
    fn of(domain: DomainStats) -> DomainFigures {
        DomainFigures {
            name: domain.name,
            lines: domain.lines,
            bytes: domain.bytes,
            last_event: rfc3339_ms(domain.changed),
            poisoned: domain.poisoned,
            queued: domain.queued_requests,
        }
    }
}

impl OpsMetrics {
    fn of(state: &AppState, health: &StoreHealth, figures: &Figures) -> OpsMetrics {
        let rejected = figures.rejected_total();
        let [_, requests_2xx, requests_3xx, requests_4xx, requests_5xx] = figures.requests;
        let failures = figures.rejected.iter().filter(|(code, _)| PARSE_FAILURES.contains(code));
        let (latency, write, sync, lock_wait) = (figures.latency, figures.write, figures.sync, figures.lock_wait);
        OpsMetrics {
            version: state.version.clone(),
            started_at: rfc3339_ms(state.metrics.started_at()),
            uptime_s: state.metrics.uptime().as_secs(),
            last_success_at: state.metrics.last_success().map(rfc3339_ms),
            events_accepted_total: figures.events,
            event_bytes_accepted_total: figures.event_bytes,
            requests_total: figures.requests.iter().sum(),
            requests_2xx_total: requests_2xx,
            requests_3xx_total: requests_3xx,
            requests_4xx_total: requests_4xx,
            requests_5xx_total: requests_5xx,
            parse_failures_total: failures.map(|(_, rejected)| rejected.requests).sum(),
            rejected_requests_total: rejected.requests,
            rejected_events_total: rejected.events,
            rejected_bytes_total: rejected.bytes,
            rejected_by_code: figures.rejected.iter().map(|(code, rejected)| (*code, rejected.requests)).collect(),
            refused_by_reason: figures.refused.clone(),
            append_failures_total: figures.append_failures,
            deprecated_requests_total: figures.deprecated_requests,
            request_p50_ms: ms(latency.p50),
            request_p95_ms: ms(latency.p95),
            request_p99_ms: ms(latency.p99),
            append_p50_ms: ms(write.p50),
            append_p95_ms: ms(write.p95),
            append_p99_ms: ms(write.p99),
            sync_p50_ms: ms(sync.p50),
            sync_p95_ms: ms(sync.p95),
            sync_p99_ms: ms(sync.p99),
            lock_waits_total: figures.lock_waits,
            lock_wait_p50_ms: ms(lock_wait.p50),
            lock_wait_p95_ms: ms(lock_wait.p95),
            lock_wait_p99_ms: ms(lock_wait.p99),
            queue_depth: health.queued_requests,
            in_flight_bytes: health.in_flight_bytes,
            in_flight_bytes_max: health.in_flight_bytes_max,
            connections: state.connections_open(),
            connections_max: state.connections_max,
            disk_free_bytes: health.space.map(|space| space.free_bytes),
            disk_total_bytes: health.space.map(|space| space.total_bytes),
            disk_reserve_bytes: health.reserve_bytes,
            poisoned_domains: health.poisoned_domains,
            torn_tails_total: figures.torn_tails,
            read_only: state.gate.is_read_only(),
            throttle: state.gate.throttle(std::time::Instant::now()).is_some(),
            tokens_expiring: state.auth.expiring(std::time::SystemTime::now()),
            publisher_lag_ms: 0,
            dlq_size: 0,
            heartbeat_failures_total: figures.heartbeat_failures,
            log_lines_dropped_total: figures.log_lines_dropped,
        }
    }
}

/// Microseconds are all that a bucket can tell.
fn ms(seconds: Option<f64>) -> Option<f64> {
    seconds.map(|seconds| (seconds * 1e6).round() / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, a mistyped query would be answered with something else than was asked for.
    #[test]
    fn queries_are_read_strictly() {
        assert_eq!(query("").unwrap().domains_max, 1000);
        assert_eq!(query("limit=1&limit=10000").unwrap().domains_max, 10_000);
        assert_eq!(query("domain=Example.COM").unwrap().only.unwrap().as_str(), "example.com");
        for bad in [
            "limit=0",
            "limit=10001",
            "limit=",
            "limit=-1",
            "limit=%2b1",
            "limit=1e3",
            "domain=",
            "domain=-",
            "x=1",
            "=",
        ] {
            assert!(query(bad).is_err(), "{bad}");
        }
    }

    /// Broken, the alarm for what cannot be parsed would never ring.
    #[test]
    fn what_counts_as_a_parse_failure_is_a_code_that_clients_get() {
        use crate::event::{EventError, Reason};
        let codes: Vec<_> = [Reason::InvalidJson, Reason::InvalidNdjson, Reason::InvalidPayload]
            .into_iter()
            .map(|reason| ApiError::Event(EventError { reason, line: None }).label())
            .chain([ApiError::InvalidEncoding.label()])
            .collect();
        assert!(PARSE_FAILURES.iter().all(|code| codes.contains(code)), "{codes:?}");
    }
}
