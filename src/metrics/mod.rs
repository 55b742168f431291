//! `Metrics`: every metric, its unit, its labels and its help, in one place.
//!
//! compat: the `http_*` and `process_*` families keep the names and labels that dashboards of the
//! original use. Own families begin with `leitstand_`. Every label comes from a bounded set; no
//! label carries a domain, a path or a client.

mod figures;
mod hot;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use metrics::{Gauge, Unit};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use crate::storage::{Appended, StoreError, StoreHealth, SyncWhen};
pub use figures::{Figures, Rejected};
use hot::{HotCounter, HotHistogram, NANOSECONDS};

/// compat: prometheus-fastapi-instrumentator's buckets, in seconds.
const DURATION_BUCKETS: &[f64] = &[0.1, 0.5, 1.0];
/// The same, with finer ones below the first: most requests take less than 10 ms.
const HIGHR_BUCKETS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5,
    3.0, 3.5, 4.0, 4.5, 5.0, 7.5, 10.0, 30.0, 60.0,
];
const DISK_BUCKETS: &[f64] =
    &[0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];
const BYTES_BUCKETS: &[f64] = &[256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0, 4_194_304.0];
const COUNT_BUCKETS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 5000.0];

/// The route templates that may stand in the `handler` label.
pub const HANDLERS: [&str; 16] = [
    "none",
    "/v1/ingest",
    "/ingest/{domain}",
    "/health",
    "/health/live",
    "/health/ready",
    "/version",
    "/metrics",
    "/api/v1/ops/metrics",
    "/stats",
    "/admin/read-only",
    "/admin/throttle",
    "/config",
    "/admin/snapshot",
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
    tokens: Mutex<TokenFigures>,
    rare: Mutex<Rare>,
    deprecated: HotCounter,
    heartbeat_failures: HotCounter,
    started: Instant,
    started_at: SystemTime,
}

/// Counted when something goes wrong.
#[derive(Default)]
struct Rare {
    /// By the reason given to the client.
    rejected: BTreeMap<&'static str, Rejected>,
    refused: BTreeMap<&'static str, u64>,
    log_lines_dropped: u64,
    audit_lines_dropped: u64,
}

/// Named tokens, as Prometheus sees them.
#[derive(Debug, Clone, Default)]
pub struct TokenFigures {
    /// What is on the disk is what is accepted.
    pub reload_successful: bool,
    pub count: usize,
    /// When each that has an end ends, in Unix seconds.
    pub ends_s: Vec<u64>,
}

/// Cells appear when first used, so series of nothing are not exported.
struct Http {
    handlers: [Handler; HANDLERS.len()],
    highr: HotHistogram,
}

#[derive(Default)]
struct Handler {
    methods: [OnceLock<Method>; METHODS.len()],
    sizes: OnceLock<Sizes>,
}

struct Method {
    classes: [HotCounter; CLASSES.len()],
    duration: HotHistogram,
}

struct Sizes {
    request: HotHistogram,
    response: HotHistogram,
}

struct Gauges {
    queue_depth: Gauge,
    in_flight_bytes: Gauge,
    in_flight_bytes_max: Gauge,
    open_domains: Gauge,
    known_domains: Gauge,
    domains: Gauge,
    domains_max: Gauge,
    poisoned_domains: Gauge,
    disk_free_bytes: Gauge,
    disk_total_bytes: Gauge,
    connections: Gauge,
    connections_max: Gauge,
    rate_limit_keys: Gauge,
    read_only: Gauge,
    throttle: Gauge,
    tokens_expiring: Gauge,
    last_success: Gauge,
}

/// What is only looked at when somebody asks, beside the health of the store.
#[derive(Debug, Clone, Copy)]
pub struct Observed {
    pub connections: usize,
    pub connections_max: usize,
    pub rate_limit_keys: usize,
    pub read_only: bool,
    pub throttle: bool,
    pub tokens_expiring: usize,
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
    TokenExpired,
    Forbidden,
    TokenGuessing,
    MalformedRequest,
    ConnectionLimit,
    HeaderTimeout,
    BodyTimeout,
    ReadOnly,
    Throttled,
    NewDomains,
    ClientConnectionLimit,
    Evicted,
    HeadBudget,
}

impl Refusal {
    fn label(self) -> &'static str {
        match self {
            Refusal::RateLimited => "rate_limited",
            Refusal::Unauthorized => "unauthorized",
            Refusal::TokenExpired => "token_expired",
            Refusal::Forbidden => "forbidden",
            Refusal::TokenGuessing => "token_guessing",
            Refusal::MalformedRequest => "malformed_request",
            Refusal::ConnectionLimit => "connection_limit",
            Refusal::HeaderTimeout => "header_timeout",
            Refusal::BodyTimeout => "body_timeout",
            Refusal::ReadOnly => "read_only",
            Refusal::Throttled => "throttled",
            Refusal::NewDomains => "new_domains",
            Refusal::ClientConnectionLimit => "client_connection_limit",
            Refusal::Evicted => "evicted",
            Refusal::HeadBudget => "head_budget",
        }
    }
}

impl Metrics {
    /// All families, described. `version` and the durability mode `fsync` go into
    /// `leitstand_build_info`.
    pub fn new(version: &str, fsync: &str) -> Metrics {
        let recorder = PrometheusBuilder::new().build_recorder();
        let process = metrics_process::Collector::default();
        let gauges = metrics::with_local_recorder(&recorder, || {
            describe();
            process.describe();
            metrics::gauge!("leitstand_build_info", "version" => version.to_owned(), "fsync" => fsync.to_owned())
                .set(1.0);
            Gauges::new()
        });
        let http = Http { handlers: Default::default(), highr: HotHistogram::new(HIGHR_BUCKETS, NANOSECONDS) };
        let store = StoreMetrics::new();
        Metrics(Arc::new(Inner {
            handle: recorder.handle(),
            recorder,
            process,
            http,
            store,
            gauges,
            tokens: Mutex::new(TokenFigures { reload_successful: true, ..TokenFigures::default() }),
            rare: Mutex::default(),
            deprecated: HotCounter::default(),
            heartbeat_failures: HotCounter::default(),
            started: Instant::now(),
            started_at: SystemTime::now(),
        }))
    }

    /// When the service started, by the clock of that time.
    pub fn started_at(&self) -> SystemTime {
        self.0.started_at
    }

    /// How long it runs.
    pub fn uptime(&self) -> Duration {
        self.0.started.elapsed()
    }

    /// When an append was last acknowledged.
    pub fn last_success(&self) -> Option<SystemTime> {
        self.0.store.last_success()
    }

    /// What the store counts into.
    pub fn store(&self) -> StoreMetrics {
        self.0.store.clone()
    }

    /// Counts one finished request.
    pub fn request(&self, sample: RequestSample<'_>) {
        let http = &self.0.http;
        let handler = HANDLERS.iter().position(|h| *h == sample.handler).unwrap_or(0);
        let handler = &http.handlers[handler];
        let method = METHODS.iter().position(|m| *m == sample.method).unwrap_or(METHODS.len() - 1);
        let method = handler.methods[method].get_or_init(|| Method {
            classes: Default::default(),
            duration: HotHistogram::new(DURATION_BUCKETS, NANOSECONDS),
        });
        let sizes = handler.sizes.get_or_init(|| Sizes {
            request: HotHistogram::new(BYTES_BUCKETS, 1.0),
            response: HotHistogram::new(BYTES_BUCKETS, 1.0),
        });
        let duration_ns = nanoseconds(sample.duration);
        method.classes[(usize::from(sample.status) / 100).clamp(1, 5) - 1].add(1);
        method.duration.record(duration_ns);
        http.highr.record(duration_ns);
        sizes.request.record(sample.request_bytes);
        sizes.response.record(sample.response_bytes);
    }

    /// Counts a request or connection that was turned away.
    pub fn refused(&self, refusal: Refusal) {
        *self.rare().refused.entry(refusal.label()).or_default() += 1;
    }

    /// Counts a request whose content was not stored, with its events (if they could be counted)
    /// and its body bytes, by the reason given to the client.
    pub fn rejected(&self, reason: &'static str, events: u64, bytes: u64) {
        let mut rare = self.rare();
        let rejected = rare.rejected.entry(reason).or_default();
        rejected.requests += 1;
        rejected.events += events;
        rejected.bytes += bytes;
    }

    /// Counts a request on the deprecated path.
    pub fn deprecated(&self) {
        self.0.deprecated.add(1);
    }

    /// Counts a heartbeat that could not be written.
    pub fn heartbeat_failed(&self) {
        self.0.heartbeat_failures.add(1);
    }

    /// Counts a snapshot that somebody asked for. `refused` says why there is none.
    pub fn snapshot(&self, refused: Option<&'static str>) {
        self.count(|| {
            metrics::counter!("leitstand_snapshots_total", "result" => refused.unwrap_or("ok")).increment(1);
            if refused.is_none() {
                let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
                metrics::gauge!("leitstand_snapshot_last_success_timestamp_seconds").set(now_s);
            }
        });
    }

    /// Counts an accepted connection.
    pub fn connection(&self) {
        self.count(|| metrics::counter!("leitstand_connections_total").increment(1));
    }

    /// Counts log lines that were dropped because nobody read them.
    pub fn log_lines_dropped(&self, total: u64, audit: u64) {
        let mut rare = self.rare();
        (rare.log_lines_dropped, rare.audit_lines_dropped) = (total, audit);
    }

    /// Counts an attempt to read the configuration anew. `stale`: how many of the files are old ones that a mount still
    /// shows; `None`: what they say was refused.
    pub fn config_reloaded(&self, stale: Option<usize>) {
        let result = if stale == Some(0) { "ok" } else { "failed" };
        self.count(|| metrics::counter!("leitstand_config_reloads_total", "result" => result).increment(1));
        match stale {
            Some(stale) => self.config_is(stale),
            None => self.count(|| metrics::gauge!("leitstand_config_last_reload_successful").set(0.0)),
        }
    }

    /// Says what the configuration in use was read from, as in [`Metrics::config_reloaded`].
    pub fn config_is(&self, stale: usize) {
        self.count(|| {
            metrics::gauge!("leitstand_config_stale_files").set(stale as f64);
            metrics::gauge!("leitstand_config_last_reload_successful").set(if stale == 0 { 1.0 } else { 0.0 });
            if stale == 0 {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
                metrics::gauge!("leitstand_config_last_reload_success_timestamp_seconds").set(now);
            }
        });
    }

    /// Sets what is known about named tokens.
    pub fn tokens(&self, figures: TokenFigures) {
        *self.0.tokens.lock().unwrap_or_else(PoisonError::into_inner) = figures;
    }

    /// Sets what is only looked at when somebody asks.
    pub fn observe(&self, health: &StoreHealth, observed: &Observed) {
        let gauges = &self.0.gauges;
        gauges.queue_depth.set(health.queued_requests as f64);
        gauges.in_flight_bytes.set(health.in_flight_bytes as f64);
        gauges.in_flight_bytes_max.set(health.in_flight_bytes_max as f64);
        gauges.open_domains.set(health.open_domains as f64);
        gauges.known_domains.set(health.known_domains as f64);
        gauges.domains.set(health.domains as f64);
        gauges.domains_max.set(health.domains_max as f64);
        gauges.poisoned_domains.set(health.poisoned_domains as f64);
        gauges.connections.set(observed.connections as f64);
        gauges.connections_max.set(observed.connections_max as f64);
        gauges.rate_limit_keys.set(observed.rate_limit_keys as f64);
        gauges.read_only.set(f64::from(u8::from(observed.read_only)));
        gauges.throttle.set(f64::from(u8::from(observed.throttle)));
        gauges.tokens_expiring.set(observed.tokens_expiring as f64);
        let last_success = self.last_success().and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        gauges.last_success.set(last_success.map_or(0.0, |since| since.as_secs_f64()));
        if let Some(space) = health.space {
            gauges.disk_free_bytes.set(space.free_bytes as f64);
            gauges.disk_total_bytes.set(space.total_bytes as f64);
        }
    }

    /// The page for Prometheus, text format 0.0.4.
    pub fn render(&self) -> String {
        self.count(|| {
            self.0.process.collect();
            metrics::gauge!("process_virtual_memory_max_bytes").set(address_space_max());
            self.0.http.export_counters();
            self.0.store.export_counters();
            self.export_rare();
        });
        let mut page = with_cpu_seconds(self.0.handle.render());
        self.0.http.render(&mut page);
        self.0.store.render(&mut page);
        self.0.tokens.lock().unwrap_or_else(PoisonError::into_inner).render(&mut page);
        page
    }

    fn export_rare(&self) {
        let rare = self.rare();
        for (reason, rejected) in &rare.rejected {
            metrics::counter!("leitstand_rejected_requests_total", "reason" => *reason).absolute(rejected.requests);
            metrics::counter!("leitstand_rejected_events_total", "reason" => *reason).absolute(rejected.events);
            metrics::counter!("leitstand_rejected_bytes_total", "reason" => *reason).absolute(rejected.bytes);
        }
        for (reason, total) in &rare.refused {
            metrics::counter!("leitstand_refused_total", "reason" => *reason).absolute(*total);
        }
        metrics::counter!("leitstand_log_lines_dropped_total").absolute(rare.log_lines_dropped);
        metrics::counter!("leitstand_audit_lines_dropped_total").absolute(rare.audit_lines_dropped);
        metrics::counter!("leitstand_deprecated_requests_total").absolute(self.0.deprecated.get());
        metrics::counter!("leitstand_heartbeat_failures_total").absolute(self.0.heartbeat_failures.get());
    }

    fn rare(&self) -> MutexGuard<'_, Rare> {
        // Only additions happen under it.
        self.0.rare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For what is rare enough to look its handle up each time.
    fn count(&self, count: impl FnOnce()) {
        metrics::with_local_recorder(&self.0.recorder, count);
    }
}

const CPU_SECONDS: &str = "\nprocess_cpu_seconds_total ";

/// compat: with its fraction, as the original has it; the counters of the recorder are whole numbers.
fn with_cpu_seconds(page: String) -> String {
    let value = page.find(CPU_SECONDS).map(|at| at + CPU_SECONDS.len());
    let end = value.and_then(|start| Some(start + page[start..].find('\n')?));
    match (value, end) {
        (Some(start), Some(end)) => format!("{}{:.2}{}", &page[..start], cpu_seconds(), &page[end..]),
        _ => page,
    }
}

/// Processor time of this process, in user and kernel mode, of all threads.
fn cpu_seconds() -> f64 {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    spent.tv_sec as f64 + spent.tv_nsec as f64 / 1e9
}

/// The limit for the address space; without one the highest that there could be, as other services tell it.
fn address_space_max() -> f64 {
    rustix::process::getrlimit(rustix::process::Resource::As).current.unwrap_or(u64::MAX) as f64
}

impl Http {
    fn export_counters(&self) {
        for (handler, cells) in HANDLERS.iter().zip(&self.handlers) {
            for (method, cell) in METHODS.iter().zip(&cells.methods) {
                let classes = cell.get().into_iter().flat_map(|cell| CLASSES.iter().zip(&cell.classes));
                for (class, total) in classes.filter(|(_, total)| total.get() > 0) {
                    metrics::counter!("http_requests_total", "handler" => *handler, "method" => *method, "status" => *class)
                        .absolute(total.get());
                }
            }
        }
    }

    fn render(&self, page: &mut String) {
        let sizes = || self.handlers.iter().zip(HANDLERS).filter_map(|(h, name)| Some((h.sizes.get()?, name)));
        family(page, "http_request_duration_seconds", "Time from the head of a request to the head of its answer.");
        for (handler, cells) in HANDLERS.iter().zip(&self.handlers) {
            for (method, cell) in METHODS.iter().zip(&cells.methods) {
                if let Some(cell) = cell.get() {
                    let labels = format!("handler=\"{handler}\",method=\"{method}\"");
                    cell.duration.render("http_request_duration_seconds", &labels, page);
                }
            }
        }
        family(page, "http_request_duration_highr_seconds", "The same with many buckets and no labels.");
        self.highr.render("http_request_duration_highr_seconds", "", page);
        family(page, "http_request_size_bytes", "Body bytes received.");
        for (cell, name) in sizes() {
            cell.request.render("http_request_size_bytes", &format!("handler=\"{name}\""), page);
        }
        family(page, "http_response_size_bytes", "Body bytes answered.");
        for (cell, name) in sizes() {
            cell.response.render("http_response_size_bytes", &format!("handler=\"{name}\""), page);
        }
    }
}

impl TokenFigures {
    /// By hand, because a series must go when its token goes. Names need no escaping.
    fn render(&self, page: &mut String) {
        let mut gauge = |name: &str, help: &str, samples: Vec<(String, u64)>| {
            page.push_str(&format!("\n# HELP {name} {help}\n# TYPE {name} gauge\n"));
            for (labels, value) in samples {
                page.push_str(&format!("{name}{labels} {value}\n"));
            }
        };
        let successful = vec![(String::new(), u64::from(self.reload_successful))];
        gauge(
            "leitstand_token_store_reload_successful",
            "1 when the named tokens on the disk are those in use, 0 when the file is broken and older ones are.",
            successful,
        );
        gauge("leitstand_tokens", "Named tokens, expired ones included.", vec![(String::new(), self.count as u64)]);
        // Whoever asks needs no token, so no names.
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if let Some(next_s) = self.ends_s.iter().copied().filter(|end_s| *end_s > now_s).min() {
            gauge(
                "leitstand_token_expiry_timestamp_seconds",
                "When the next named token ends, in Unix seconds.",
                vec![(String::new(), next_s)],
            );
        }
    }
}

/// What the store counts. Cheap to clone.
#[derive(Clone)]
pub struct StoreMetrics(Arc<StoreCells>);

struct StoreCells {
    submitted: HotCounter,
    answered: HotCounter,
    events: HotCounter,
    bytes: HotCounter,
    torn_tails: HotCounter,
    torn_bytes: HotCounter,
    foreign: HotCounter,
    refused: [HotCounter; REFUSED.len()],
    batch: HotHistogram,
    group_batches: HotHistogram,
    group_bytes: HotHistogram,
    write: HotHistogram,
    sync: HotHistogram,
    lock_wait: HotHistogram,
    started: Instant,
    /// Milliseconds from `started` to the last acknowledged append, and one more; 0 if there is none.
    last_success_ms: AtomicU64,
}

const REFUSED: [&str; 12] = [
    "busy",
    "lock_timeout",
    "shutting_down",
    "full",
    "exhausted",
    "too_many_domains",
    "symlink",
    "io",
    "poisoned",
    "sync",
    "rollback",
    "panicked",
];

impl StoreMetrics {
    /// Cells of their own, for a store without a page, as in tools and tests.
    pub fn new() -> StoreMetrics {
        StoreMetrics(Arc::new(StoreCells {
            submitted: HotCounter::default(),
            answered: HotCounter::default(),
            events: HotCounter::default(),
            bytes: HotCounter::default(),
            torn_tails: HotCounter::default(),
            torn_bytes: HotCounter::default(),
            foreign: HotCounter::default(),
            refused: Default::default(),
            batch: HotHistogram::new(COUNT_BUCKETS, 1.0),
            group_batches: HotHistogram::new(COUNT_BUCKETS, 1.0),
            group_bytes: HotHistogram::new(BYTES_BUCKETS, 1.0),
            write: HotHistogram::new(DISK_BUCKETS, NANOSECONDS),
            sync: HotHistogram::new(DISK_BUCKETS, NANOSECONDS),
            lock_wait: HotHistogram::new(DISK_BUCKETS, NANOSECONDS),
            started: Instant::now(),
            last_success_ms: AtomicU64::new(0),
        }))
    }

    pub(crate) fn appended(&self, appended: &Appended, batches: usize, bytes: usize, when: SyncWhen) {
        self.wrote(batches, bytes, appended.write, appended.foreign);
        if when != SyncWhen::Later {
            self.synced(appended.sync);
        }
    }

    /// A group was written. `foreign`: behind what somebody else wrote.
    pub(crate) fn wrote(&self, batches: usize, bytes: usize, write: Duration, foreign: bool) {
        let cells = &self.0;
        cells.group_batches.record(batches as u64);
        cells.group_bytes.record(bytes as u64);
        cells.write.record(nanoseconds(write));
        if foreign {
            cells.foreign.add(1);
        }
    }

    /// A sync has made one group durable, or several.
    pub(crate) fn synced(&self, sync: Duration) {
        self.0.sync.record(nanoseconds(sync));
    }

    pub(crate) fn torn(&self, bytes: u64) {
        self.0.torn_tails.add(1);
        self.0.torn_bytes.add(bytes);
    }

    /// A request was handed to a writer.
    pub(crate) fn submitted(&self) {
        self.0.submitted.add(1);
    }

    /// A writer is done with a request, one way or the other.
    pub(crate) fn answered(&self) {
        self.0.answered.add(1);
    }

    pub(crate) fn queue_depth(&self) -> usize {
        // The later number first: what is submitted meanwhile must not count as negative.
        let answered = self.0.answered.get();
        self.0.submitted.get().saturating_sub(answered) as usize
    }

    pub(crate) fn acknowledged(&self, events: u64, bytes: usize) {
        self.0.events.add(events);
        self.0.bytes.add(bytes as u64);
        self.0.batch.record(events);
    }

    /// A group was written, and synced if it must be before the answer.
    pub(crate) fn succeeded(&self, at: Instant) {
        let ms = at.saturating_duration_since(self.0.started).as_millis() as u64;
        self.0.last_success_ms.store(ms + 1, Ordering::Relaxed);
    }

    /// By the clock of now, so that a clock that was set does not make it older or younger.
    fn last_success(&self) -> Option<SystemTime> {
        let ms = self.0.last_success_ms.load(Ordering::Relaxed).checked_sub(1)?;
        let ago = self.0.started.elapsed().saturating_sub(Duration::from_millis(ms));
        SystemTime::now().checked_sub(ago)
    }

    pub(crate) fn lock_wait(&self, waited: Duration) {
        self.0.lock_wait.record(nanoseconds(waited));
    }

    pub(crate) fn refused(&self, error: &StoreError) {
        if let Some(at) = REFUSED.iter().position(|reason| *reason == error.label()) {
            self.0.refused[at].add(1);
        }
    }

    fn export_counters(&self) {
        let cells = &self.0;
        for (reason, total) in REFUSED.iter().zip(&cells.refused) {
            metrics::counter!("leitstand_append_failures_total", "reason" => *reason).absolute(total.get());
        }
        metrics::counter!("leitstand_events_total").absolute(cells.events.get());
        metrics::counter!("leitstand_event_bytes_total").absolute(cells.bytes.get());
        metrics::counter!("leitstand_torn_tails_total").absolute(cells.torn_tails.get());
        metrics::counter!("leitstand_torn_bytes_total").absolute(cells.torn_bytes.get());
        metrics::counter!("leitstand_foreign_writes_total").absolute(cells.foreign.get());
    }

    fn render(&self, page: &mut String) {
        let cells = &self.0;
        for (name, help, histogram) in [
            ("leitstand_batch_events", "Events in an acknowledged request.", &cells.batch),
            ("leitstand_group_batches", "Requests that shared one write and one sync.", &cells.group_batches),
            ("leitstand_group_bytes", "Bytes of one write.", &cells.group_bytes),
            ("leitstand_write_seconds", "Time of one write call.", &cells.write),
            (
                "leitstand_sync_seconds",
                "Time of one sync: fdatasync, with the directory sync of a new file, or syncfs for several domains.",
                &cells.sync,
            ),
            ("leitstand_lock_wait_seconds", "Time a foreign process kept us from a domain's lock.", &cells.lock_wait),
        ] {
            family(page, name, help);
            histogram.render(name, "", page);
        }
    }
}

impl Default for StoreMetrics {
    fn default() -> Self {
        StoreMetrics::new()
    }
}

fn family(page: &mut String, name: &str, help: &str) {
    page.push_str(&format!("\n# HELP {name} {help}\n# TYPE {name} histogram\n"));
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Gauges {
    fn new() -> Gauges {
        Gauges {
            queue_depth: metrics::gauge!("leitstand_queue_depth"),
            in_flight_bytes: metrics::gauge!("leitstand_in_flight_bytes"),
            in_flight_bytes_max: metrics::gauge!("leitstand_in_flight_bytes_max"),
            open_domains: metrics::gauge!("leitstand_open_domains"),
            known_domains: metrics::gauge!("leitstand_known_domains"),
            domains: metrics::gauge!("leitstand_domains"),
            domains_max: metrics::gauge!("leitstand_domains_max"),
            poisoned_domains: metrics::gauge!("leitstand_poisoned_domains"),
            disk_free_bytes: metrics::gauge!("leitstand_disk_free_bytes"),
            disk_total_bytes: metrics::gauge!("leitstand_disk_total_bytes"),
            connections: metrics::gauge!("leitstand_connections"),
            connections_max: metrics::gauge!("leitstand_connections_max"),
            rate_limit_keys: metrics::gauge!("leitstand_rate_limit_keys"),
            read_only: metrics::gauge!("leitstand_read_only"),
            throttle: metrics::gauge!("leitstand_throttle"),
            tokens_expiring: metrics::gauge!("leitstand_tokens_expiring"),
            last_success: metrics::gauge!("leitstand_last_success_timestamp_seconds"),
        }
    }
}

/// Help of the families that the exporter writes.
fn describe() {
    use metrics::{describe_counter, describe_gauge};
    describe_counter!("http_requests_total", "Requests by route template, method and status class.");
    describe_counter!("leitstand_events_total", "Events acknowledged.");
    describe_counter!("leitstand_event_bytes_total", "Bytes of acknowledged lines.");
    describe_counter!("leitstand_torn_tails_total", "Unfinished lines moved to .torn/.");
    describe_counter!("leitstand_torn_bytes_total", "Bytes moved to .torn/.");
    describe_counter!("leitstand_foreign_writes_total", "Times a file had grown or been replaced by somebody else.");
    describe_counter!("leitstand_append_failures_total", "Requests the store refused, by reason.");
    describe_counter!("leitstand_rejected_requests_total", "Requests whose content was not stored, by reason.");
    describe_counter!("leitstand_rejected_events_total", "Events of such requests, as far as they could be counted.");
    describe_counter!("leitstand_rejected_bytes_total", "Body bytes of such requests.");
    describe_counter!(
        "leitstand_refused_total",
        "Requests and connections turned away before their content was looked at, by reason."
    );
    describe_counter!("leitstand_deprecated_requests_total", "Requests on the deprecated path /ingest/{domain}.");
    describe_counter!("leitstand_connections_total", "Connections accepted.");
    describe_counter!(
        "leitstand_log_lines_dropped_total",
        "Log lines that could not be written, or that nobody read in time."
    );
    describe_counter!(
        "leitstand_audit_lines_dropped_total",
        "Those of them that say who changed what; they are on stderr."
    );
    describe_counter!("leitstand_config_reloads_total", "Attempts to read the configuration anew, by result.");
    describe_gauge!(
        "leitstand_config_last_reload_successful",
        "0 while the files say what cannot be taken over, or a mount shows an old one."
    );
    describe_gauge!(
        "leitstand_config_stale_files",
        "Files with settings or secrets that were replaced where they are mounted from; the old ones are read."
    );
    describe_gauge!(
        "leitstand_config_last_reload_success_timestamp_seconds",
        Unit::Seconds,
        "When the configuration was last read without a problem; Unix time."
    );
    describe_counter!("leitstand_snapshots_total", "Snapshots asked for by POST /admin/snapshot, by result.");
    describe_gauge!(
        "leitstand_snapshot_last_success_timestamp_seconds",
        Unit::Seconds,
        "Unix time at which the last of them was whole."
    );
    describe_gauge!("leitstand_queue_depth", "Requests handed to the store and not yet answered.");
    describe_gauge!("leitstand_in_flight_bytes", Unit::Bytes, "Bytes of requests in memory, not yet acknowledged.");
    describe_gauge!(
        "leitstand_in_flight_bytes_max",
        Unit::Bytes,
        "Limit of leitstand_in_flight_bytes; above it requests get 503 busy."
    );
    describe_gauge!("leitstand_open_domains", "Domains whose files are open.");
    describe_gauge!("leitstand_known_domains", "Domains written to lately.");
    describe_gauge!("leitstand_domains", "Domains that have a file.");
    describe_gauge!("leitstand_domains_max", "Limit of leitstand_domains for new domains.");
    describe_gauge!("leitstand_poisoned_domains", "Domains refused after a failed sync or roll-back; see RUNBOOK.");
    describe_gauge!("leitstand_disk_free_bytes", Unit::Bytes, "Free bytes of the data directory's file system.");
    describe_gauge!("leitstand_disk_total_bytes", Unit::Bytes, "Size of the data directory's file system.");
    describe_gauge!("leitstand_connections", "Open connections.");
    describe_gauge!("leitstand_connections_max", "Limit of leitstand_connections.");
    describe_gauge!("leitstand_rate_limit_keys", "Clients and paths the rate limit remembers.");
    describe_gauge!("leitstand_read_only", "1 while events are refused by POST /admin/read-only.");
    describe_gauge!("leitstand_tokens_expiring", "Named tokens that end within 14 days; the log says which.");
    describe_gauge!("leitstand_throttle", "1 while POST /admin/throttle limits all clients together.");
    describe_gauge!(
        "leitstand_last_success_timestamp_seconds",
        Unit::Seconds,
        "When an append was last acknowledged, in Unix time; 0 if none was since the start."
    );
    describe_counter!("leitstand_heartbeat_failures_total", "Heartbeats that could not be written.");
    describe_gauge!("leitstand_build_info", "Always 1; the labels tell version and durability mode.");
}
