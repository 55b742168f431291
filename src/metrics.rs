//! `Metrics`: every metric, its unit, its labels and its help, in one place.
//!
//! compat: the `http_*` and `process_*` families keep the names and labels that dashboards of the
//! original use. Own families begin with `leitstand_`. Every label comes from a bounded set; no
//! label carries a domain, a path or a client.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Label, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use crate::storage::{Appended, StoreError, StoreHealth, SyncWhen};

/// How often the exporter must fold its samples (see [`Metrics::upkeep`]).
pub const UPKEEP_EVERY: Duration = Duration::from_secs(1);

/// compat: prometheus-fastapi-instrumentator's buckets, in seconds.
const DURATION_BUCKETS: &[f64] = &[0.1, 0.5, 1.0];
const HIGHR_BUCKETS: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 7.5, 10.0, 30.0, 60.0,
];
const DISK_BUCKETS: &[f64] = &[
    0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
    30.0,
];
const BYTES_BUCKETS: &[f64] = &[256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0, 4_194_304.0];
const COUNT_BUCKETS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 5000.0];

/// The route templates that may stand in the `handler` label.
pub const HANDLERS: [&str; 10] = [
    "none",
    "/v1/ingest",
    "/ingest/{domain}",
    "/health",
    "/health/live",
    "/health/ready",
    "/version",
    "/metrics",
    "/docs",
    "/openapi.json",
];
const METHODS: [&str; 8] = ["GET", "POST", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "OTHER"];
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// All metrics. Cheap to clone; nothing is global, so tests can have many.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    handle: PrometheusHandle,
    recorder: PrometheusRecorder,
    process: metrics_process::Collector,
    http: Http,
    store: StoreMetrics,
    gauges: Gauges,
}

/// Families per handler; cells appear when first used, so idle series are not exported.
#[derive(Default)]
struct Http {
    requests: [[[OnceLock<Counter>; CLASSES.len()]; METHODS.len()]; HANDLERS.len()],
    duration: [[OnceLock<Histogram>; METHODS.len()]; HANDLERS.len()],
    request_size: [OnceLock<Histogram>; HANDLERS.len()],
    response_size: [OnceLock<Histogram>; HANDLERS.len()],
    highr: OnceLock<Histogram>,
    connections_accepted: OnceLock<Counter>,
}

struct Gauges {
    in_flight_bytes: Gauge,
    in_flight_bytes_max: Gauge,
    open_domains: Gauge,
    known_domains: Gauge,
    poisoned_domains: Gauge,
    disk_free_bytes: Gauge,
    disk_total_bytes: Gauge,
    connections: Gauge,
    connections_max: Gauge,
    rate_limit_keys: Gauge,
}

/// One finished request.
#[derive(Debug, Clone, Copy)]
pub struct RequestSample<'a> {
    pub handler: &'a str,
    pub method: &'a str,
    pub status: u16,
    pub duration: Duration,
    pub request_bytes: u64,
    pub response_bytes: u64,
}

/// Why a request or a connection was turned away before it reached the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    RateLimited,
    Unauthorized,
    TokenGuessing,
    MalformedRequest,
    ConnectionLimit,
    HeaderTimeout,
    BodyTimeout,
}

impl Refusal {
    fn label(self) -> &'static str {
        match self {
            Refusal::RateLimited => "rate_limited",
            Refusal::Unauthorized => "unauthorized",
            Refusal::TokenGuessing => "token_guessing",
            Refusal::MalformedRequest => "malformed_request",
            Refusal::ConnectionLimit => "connection_limit",
            Refusal::HeaderTimeout => "header_timeout",
            Refusal::BodyTimeout => "body_timeout",
        }
    }
}

impl Metrics {
    /// All families, described. `version` and the durability mode `fsync` go into
    /// `leitstand_build_info`.
    pub fn new(version: &str, fsync: &str) -> Metrics {
        let buckets: [(Matcher, &[f64]); 6] = [
            (Matcher::Full("http_request_duration_seconds".into()), DURATION_BUCKETS),
            (Matcher::Full("http_request_duration_highr_seconds".into()), HIGHR_BUCKETS),
            (Matcher::Suffix("_seconds".into()), DISK_BUCKETS),
            (Matcher::Suffix("_bytes".into()), BYTES_BUCKETS),
            (Matcher::Suffix("_events".into()), COUNT_BUCKETS),
            (Matcher::Suffix("_batches".into()), COUNT_BUCKETS),
        ];
        let mut builder = PrometheusBuilder::new();
        for (matcher, bounds) in buckets {
            builder = builder.set_buckets_for_metric(matcher, bounds).expect("no list of buckets is empty");
        }
        let recorder = builder.build_recorder();
        let process = metrics_process::Collector::default();
        let (store, gauges) = metrics::with_local_recorder(&recorder, || {
            describe();
            process.describe();
            metrics::gauge!("leitstand_build_info", "version" => version.to_owned(), "fsync" => fsync.to_owned())
                .set(1.0);
            (StoreMetrics::new(), Gauges::new())
        });
        Metrics(Arc::new(Inner { handle: recorder.handle(), recorder, process, http: Http::default(), store, gauges }))
    }

    /// The handles of the store.
    pub fn store(&self) -> StoreMetrics {
        self.0.store.clone()
    }

    /// Counts one finished request.
    pub fn request(&self, sample: RequestSample<'_>) {
        let http = &self.0.http;
        let handler = HANDLERS.iter().position(|h| *h == sample.handler).unwrap_or(0);
        let method = METHODS.iter().position(|m| *m == sample.method).unwrap_or(METHODS.len() - 1);
        let class = (usize::from(sample.status) / 100).clamp(1, 5) - 1;
        let labels = || {
            vec![
                Label::from_static_parts("handler", HANDLERS[handler]),
                Label::from_static_parts("method", METHODS[method]),
            ]
        };
        let seconds = sample.duration.as_secs_f64();
        self.cell(&http.requests[handler][method][class], || {
            let mut labels = labels();
            labels.push(Label::from_static_parts("status", CLASSES[class]));
            metrics::counter!("http_requests_total", labels)
        })
        .increment(1);
        self.cell(&http.duration[handler][method], || metrics::histogram!("http_request_duration_seconds", labels()))
            .record(seconds);
        self.cell(&http.highr, || metrics::histogram!("http_request_duration_highr_seconds")).record(seconds);
        self.cell(
            &http.request_size[handler],
            || metrics::histogram!("http_request_size_bytes", "handler" => HANDLERS[handler]),
        )
        .record(sample.request_bytes as f64);
        self.cell(
            &http.response_size[handler],
            || metrics::histogram!("http_response_size_bytes", "handler" => HANDLERS[handler]),
        )
        .record(sample.response_bytes as f64);
    }

    /// Counts a request or connection that was turned away.
    pub fn refused(&self, refusal: Refusal) {
        // Rare enough to look the handle up each time.
        metrics::with_local_recorder(&self.0.recorder, || {
            metrics::counter!("leitstand_refused_total", "reason" => refusal.label()).increment(1);
        });
    }

    /// Counts a body that was refused, by the reason given to the client.
    pub fn rejected(&self, reason: &'static str) {
        metrics::with_local_recorder(&self.0.recorder, || {
            metrics::counter!("leitstand_rejected_requests_total", "reason" => reason).increment(1);
        });
    }

    /// Counts a request on the deprecated path.
    pub fn deprecated(&self) {
        metrics::with_local_recorder(&self.0.recorder, || {
            metrics::counter!("leitstand_deprecated_requests_total").increment(1)
        });
    }

    /// Counts an accepted connection.
    pub fn connection(&self) {
        self.cell(&self.0.http.connections_accepted, || metrics::counter!("leitstand_connections_total")).increment(1);
    }

    /// Counts log lines that were dropped because nobody read them.
    pub fn log_lines_dropped(&self, total: u64) {
        metrics::with_local_recorder(&self.0.recorder, || {
            metrics::counter!("leitstand_log_lines_dropped_total").absolute(total)
        });
    }

    /// Sets what is only looked at when somebody asks.
    pub fn observe(&self, health: &StoreHealth, connections: usize, connections_max: usize, rate_limit_keys: usize) {
        let gauges = &self.0.gauges;
        gauges.in_flight_bytes.set(health.in_flight_bytes as f64);
        gauges.in_flight_bytes_max.set(health.in_flight_bytes_max as f64);
        gauges.open_domains.set(health.open_domains as f64);
        gauges.known_domains.set(health.known_domains as f64);
        gauges.poisoned_domains.set(health.poisoned_domains as f64);
        gauges.connections.set(connections as f64);
        gauges.connections_max.set(connections_max as f64);
        gauges.rate_limit_keys.set(rate_limit_keys as f64);
        if let Some(space) = health.space {
            gauges.disk_free_bytes.set(space.free_bytes as f64);
            gauges.disk_total_bytes.set(space.total_bytes as f64);
        }
    }

    /// The page for Prometheus, text format 0.0.4.
    pub fn render(&self) -> String {
        metrics::with_local_recorder(&self.0.recorder, || self.0.process.collect());
        self.0.handle.render()
    }

    /// Folds histogram samples that nobody has scraped; without it they pile up (metrics#467).
    pub fn upkeep(&self) {
        self.0.handle.run_upkeep();
    }

    fn cell<'a, T>(&self, cell: &'a OnceLock<T>, make: impl FnOnce() -> T) -> &'a T {
        cell.get_or_init(|| metrics::with_local_recorder(&self.0.recorder, make))
    }
}

/// What the store counts.
#[derive(Clone)]
pub struct StoreMetrics {
    events: Counter,
    bytes: Counter,
    group_batches: Histogram,
    batch: Histogram,
    group_bytes: Histogram,
    write: Histogram,
    sync: Histogram,
    lock_wait: Histogram,
    torn_tails: Counter,
    torn_bytes: Counter,
    foreign: Counter,
    refused: [Counter; REFUSED.len()],
}

const REFUSED: [&str; 10] =
    ["busy", "lock_timeout", "shutting_down", "full", "symlink", "io", "poisoned", "sync", "rollback", "panicked"];

impl StoreMetrics {
    fn new() -> StoreMetrics {
        StoreMetrics {
            events: metrics::counter!("leitstand_events_total"),
            bytes: metrics::counter!("leitstand_event_bytes_total"),
            group_batches: metrics::histogram!("leitstand_group_batches"),
            batch: metrics::histogram!("leitstand_batch_events"),
            group_bytes: metrics::histogram!("leitstand_group_bytes"),
            write: metrics::histogram!("leitstand_write_seconds"),
            sync: metrics::histogram!("leitstand_sync_seconds"),
            lock_wait: metrics::histogram!("leitstand_lock_wait_seconds"),
            torn_tails: metrics::counter!("leitstand_torn_tails_total"),
            torn_bytes: metrics::counter!("leitstand_torn_bytes_total"),
            foreign: metrics::counter!("leitstand_foreign_writes_total"),
            refused: REFUSED.map(|reason| metrics::counter!("leitstand_append_failures_total", "reason" => reason)),
        }
    }

    /// Handles that count nothing, for tests and tools.
    pub fn silent() -> StoreMetrics {
        metrics::with_local_recorder(&metrics::NoopRecorder, StoreMetrics::new)
    }

    pub(crate) fn appended(&self, appended: &Appended, lines: &[&[u8]], when: SyncWhen) {
        self.group_batches.record(lines.len() as f64);
        self.group_bytes.record(lines.iter().map(|line| line.len()).sum::<usize>() as f64);
        self.write.record(appended.write);
        if when == SyncWhen::Now {
            self.sync.record(appended.sync);
        }
        self.foreign.increment(u64::from(appended.foreign));
        if let Some(bytes) = appended.torn_bytes {
            self.torn_tails.increment(1);
            self.torn_bytes.increment(bytes);
        }
    }

    pub(crate) fn acknowledged(&self, events: u64, bytes: usize) {
        self.events.increment(events);
        self.bytes.increment(bytes as u64);
        self.batch.record(events as f64);
    }

    pub(crate) fn lock_wait(&self, waited: Duration) {
        self.lock_wait.record(waited);
    }

    pub(crate) fn refused(&self, error: &StoreError) {
        if let Some(at) = REFUSED.iter().position(|reason| *reason == error.label()) {
            self.refused[at].increment(1);
        }
    }
}

impl Gauges {
    fn new() -> Gauges {
        Gauges {
            in_flight_bytes: metrics::gauge!("leitstand_in_flight_bytes"),
            in_flight_bytes_max: metrics::gauge!("leitstand_in_flight_bytes_max"),
            open_domains: metrics::gauge!("leitstand_open_domains"),
            known_domains: metrics::gauge!("leitstand_known_domains"),
            poisoned_domains: metrics::gauge!("leitstand_poisoned_domains"),
            disk_free_bytes: metrics::gauge!("leitstand_disk_free_bytes"),
            disk_total_bytes: metrics::gauge!("leitstand_disk_total_bytes"),
            connections: metrics::gauge!("leitstand_connections"),
            connections_max: metrics::gauge!("leitstand_connections_max"),
            rate_limit_keys: metrics::gauge!("leitstand_rate_limit_keys"),
        }
    }
}

fn describe() {
    use metrics::{describe_counter, describe_gauge, describe_histogram};
    describe_counter!("http_requests_total", "Requests by route template, method and status class.");
    describe_histogram!(
        "http_request_duration_seconds",
        Unit::Seconds,
        "Time from the head of a request to the head of its answer."
    );
    describe_histogram!(
        "http_request_duration_highr_seconds",
        Unit::Seconds,
        "The same with many buckets and no labels."
    );
    describe_histogram!("http_request_size_bytes", Unit::Bytes, "Body bytes received.");
    describe_histogram!("http_response_size_bytes", Unit::Bytes, "Body bytes answered.");
    describe_counter!("leitstand_events_total", "Events acknowledged.");
    describe_counter!("leitstand_event_bytes_total", "Bytes of acknowledged lines.");
    describe_histogram!("leitstand_batch_events", "Events in an acknowledged request.");
    describe_histogram!("leitstand_group_batches", "Requests that shared one write and one sync.");
    describe_histogram!("leitstand_group_bytes", Unit::Bytes, "Bytes of one write.");
    describe_histogram!("leitstand_write_seconds", Unit::Seconds, "Time of one write call.");
    describe_histogram!(
        "leitstand_sync_seconds",
        Unit::Seconds,
        "Time of one fdatasync, and of the directory sync of a new file."
    );
    describe_histogram!(
        "leitstand_lock_wait_seconds",
        Unit::Seconds,
        "Time a foreign process kept us from a domain's lock."
    );
    describe_counter!("leitstand_torn_tails_total", "Unfinished lines moved to .torn/.");
    describe_counter!("leitstand_torn_bytes_total", "Bytes moved to .torn/.");
    describe_counter!("leitstand_foreign_writes_total", "Times a file had grown or been replaced by somebody else.");
    describe_counter!("leitstand_append_failures_total", "Requests the store refused, by reason.");
    describe_counter!("leitstand_rejected_requests_total", "Requests whose content was refused, by reason.");
    describe_counter!(
        "leitstand_refused_total",
        "Requests and connections turned away before their content was looked at, by reason."
    );
    describe_counter!("leitstand_deprecated_requests_total", "Requests on the deprecated path /ingest/{domain}.");
    describe_counter!("leitstand_connections_total", "Connections accepted.");
    describe_counter!("leitstand_log_lines_dropped_total", "Log lines dropped because nobody read them.");
    describe_gauge!("leitstand_in_flight_bytes", Unit::Bytes, "Bytes of requests in memory, not yet acknowledged.");
    describe_gauge!(
        "leitstand_in_flight_bytes_max",
        Unit::Bytes,
        "Limit of leitstand_in_flight_bytes; above it requests get 503 busy."
    );
    describe_gauge!("leitstand_open_domains", "Domains whose files are open.");
    describe_gauge!("leitstand_known_domains", "Domains written to lately.");
    describe_gauge!("leitstand_poisoned_domains", "Domains refused after a failed sync or roll-back; see RUNBOOK.");
    describe_gauge!("leitstand_disk_free_bytes", Unit::Bytes, "Free bytes of the data directory's file system.");
    describe_gauge!("leitstand_disk_total_bytes", Unit::Bytes, "Size of the data directory's file system.");
    describe_gauge!("leitstand_connections", "Open connections.");
    describe_gauge!("leitstand_connections_max", "Limit of leitstand_connections.");
    describe_gauge!("leitstand_rate_limit_keys", "Clients and paths the rate limit remembers.");
    describe_gauge!("leitstand_build_info", "Always 1; the labels tell version and durability mode.");
}
