//! `AppState`: what every request can reach.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use arc_swap::{ArcSwap, Guard};
use ipnet::IpNet;
use tokio::sync::Semaphore;

use super::auth::Auth;
use super::decode::Decoders;
use super::live::Live;
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
    live: ArcSwap<Live>,
    pub(crate) trusted_proxies: Vec<IpNet>,
    pub(crate) max_body_bytes: usize,
    pub(crate) version: String,
    pub(crate) decoders: Decoders,
    pub(crate) parsers: Arc<Semaphore>,
    pub(crate) connections: Arc<Semaphore>,
    pub(crate) connections_max: usize,
    /// Below which snapshots may be made.
    pub(crate) snapshot_dir: Option<PathBuf>,
    /// One at a time.
    pub(crate) snapshots: Arc<Semaphore>,
    /// The stop signal came: answers close their connection.
    pub(crate) closing: AtomicBool,
}

impl AppState {
    /// State for `config` on `store`. `connections_max` is what the process can really hold open.
    pub fn new(config: &Config, store: Store, metrics: Metrics, connections_max: usize) -> AppState {
        AppState {
            store,
            metrics,
            auth: Auth::new(&config.tokens, &config.admin_tokens, config.auth_rate_limit.clone()),
            live: ArcSwap::from_pointee(Live::new(config)),
            trusted_proxies: config.trusted_proxies.clone(),
            max_body_bytes: config.max_body_bytes,
            version: config.version.clone(),
            decoders: Decoders::new(),
            parsers: Arc::new(Semaphore::new(PARSERS_MAX)),
            connections: Arc::new(Semaphore::new(connections_max)),
            connections_max,
            snapshot_dir: config.snapshot_dir.clone(),
            snapshots: Arc::new(Semaphore::new(1)),
            closing: AtomicBool::new(false),
        }
    }

    /// The settings as they are now. Not to be kept over an `await`.
    pub(crate) fn live(&self) -> Guard<Arc<Live>> {
        self.live.load()
    }

    /// How many connections are open.
    pub(crate) fn connections_open(&self) -> usize {
        self.connections_max - self.connections.available_permits()
    }

    /// Forgets clients that have been quiet. Call it every few seconds.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.live().limiter.sweep(now);
        self.auth.sweep(now);
    }
}
