//! `AppState`: what every request can reach.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio::sync::Semaphore;

use super::auth::Auth;
use super::decode::Decoders;
use super::limits::Limiter;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::storage::Store;

/// Most large bodies being parsed at once.
const PARSERS_MAX: usize = 4;

/// Shared by all connections; handlers hold it as `Arc<AppState>`.
pub struct AppState {
    pub(crate) store: Store,
    pub(crate) metrics: Metrics,
    pub(crate) auth: Auth,
    pub(crate) limiter: Limiter,
    pub(crate) trusted_proxies: Vec<IpNet>,
    pub(crate) max_body_bytes: usize,
    pub(crate) body_timeout: Duration,
    pub(crate) version: String,
    pub(crate) decoders: Decoders,
    pub(crate) parsers: Arc<Semaphore>,
    pub(crate) connections: Arc<Semaphore>,
    pub(crate) connections_max: usize,
    /// The stop signal came: answers close their connection.
    pub(crate) closing: AtomicBool,
}

impl AppState {
    /// State for `config` on `store`. `connections_max` is what the process can really hold open.
    pub fn new(config: &Config, store: Store, metrics: Metrics, connections_max: usize) -> AppState {
        AppState {
            store,
            metrics,
            auth: Auth::new(&config.tokens, config.auth_rate_limit.clone()),
            limiter: Limiter::new(config.rate_limit.clone()),
            trusted_proxies: config.trusted_proxies.clone(),
            max_body_bytes: config.max_body_bytes,
            body_timeout: config.body_timeout,
            version: config.version.clone(),
            decoders: Decoders::new(),
            parsers: Arc::new(Semaphore::new(PARSERS_MAX)),
            connections: Arc::new(Semaphore::new(connections_max)),
            connections_max,
            closing: AtomicBool::new(false),
        }
    }

    /// How many connections are open.
    pub(crate) fn connections_open(&self) -> usize {
        self.connections_max - self.connections.available_permits()
    }

    /// Forgets clients that have been quiet. Call it every few seconds.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.limiter.sweep(now);
        self.auth.sweep(now);
    }
}
