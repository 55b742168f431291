//! `AppState`: what every request can reach.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use http::HeaderValue;
use tokio::sync::Semaphore;

use super::auth::Auth;
use super::blocking::Turns;
use super::client::{Client, Peer};
use super::config::{Outside, Settings};
use super::decode::Decoders;
use super::gate::Gate;
use super::limits::Limiter;
use super::linger::LINGERERS_MAX;
use super::live::Live;
use super::trusted::TrustedProxies;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::rate::RateLimits;
use crate::storage::Store;
use crate::token::TokenSet;

/// Part of all connections that one client may have, unless somebody says otherwise, and the least number.
const CLIENT_SHARE: usize = 10;
const CLIENT_CONNECTIONS_MIN: usize = 16;
/// Part of the connections that are kept free, and how many at most.
const HEADROOM_SHARE: usize = 32;
const HEADROOM_MAX: usize = 64;
/// Part of the bytes in flight that heads may hold beside them.
const HEADS_SHARE: usize = 4;
/// Most large bodies being parsed at once.
const PARSERS_MAX: usize = 4;
/// Most looks at the settings and their files at once.
const SETTINGS_LOOKS_MAX: usize = 4;
/// Most bodies of admin requests in memory.
const ADMIN_BODIES_MAX: usize = 16;

/// Shared by all connections; handlers hold it as `Arc<AppState>`.
pub struct AppState {
    pub(crate) store: Store,
    pub(crate) metrics: Metrics,
    pub(crate) auth: Auth,
    pub(crate) gate: Gate,
    /// Domains that each client has made lately.
    pub(crate) new_domains: Limiter,
    live: ArcSwap<Live>,
    pub(crate) settings: Settings,
    pub(crate) trusted_proxies: TrustedProxies,
    pub(crate) max_body_bytes: usize,
    pub(crate) version: String,
    pub(crate) decoders: Decoders,
    pub(crate) parsing: Turns,
    pub(crate) settings_looks: Turns,
    pub(crate) counting: Turns,
    /// Who holds one of them has the body of an admin request in memory.
    pub(crate) admin_bodies: Arc<Semaphore>,
    pub(crate) connections: Arc<Semaphore>,
    pub(crate) connections_max: usize,
    /// Of one address that is no trusted proxy.
    pub(crate) connections_per_client_max: usize,
    /// Heads that are not whole may hold so much, over all connections.
    pub(crate) head_bytes_max: usize,
    /// Between two requests of a connection.
    pub(crate) keep_alive: Duration,
    /// What an answer says about it.
    pub(crate) keep_alive_value: HeaderValue,
    /// Who holds one throws away a long refused body.
    pub(crate) lingerers: Semaphore,
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
            auth: Auth::new(
                TokenSet::shared(config.tokens.expose(), config.admin_tokens.expose()),
                config.auth_rate_limit.clone(),
            ),
            gate: Gate::default(),
            new_domains: Limiter::new(RateLimits::hourly(config.new_domains_per_hour)),
            live: ArcSwap::from_pointee(Live::new(config)),
            settings: Settings::new(config, Outside::none(config)),
            trusted_proxies: TrustedProxies::new(&config.trusted_proxies),
            max_body_bytes: config.max_body_bytes,
            version: config.version.clone(),
            decoders: Decoders::new(),
            parsing: Turns::new(PARSERS_MAX),
            settings_looks: Turns::new(SETTINGS_LOOKS_MAX),
            counting: Turns::new(1),
            admin_bodies: Arc::new(Semaphore::new(ADMIN_BODIES_MAX)),
            connections: Arc::new(Semaphore::new(connections_max)),
            connections_max,
            connections_per_client_max: per_client_max(config, connections_max),
            head_bytes_max: config.in_flight_bytes_max / HEADS_SHARE,
            keep_alive: config.keep_alive_timeout,
            keep_alive_value: keep_alive_value(config.keep_alive_timeout),
            lingerers: Semaphore::new(LINGERERS_MAX),
            snapshot_dir: config.snapshot_dir.clone(),
            snapshots: Arc::new(Semaphore::new(1)),
            closing: AtomicBool::new(false),
        }
    }

    /// With somebody to ask for changed settings.
    pub fn with_outside(self, config: &Config, outside: Outside) -> AppState {
        AppState { settings: Settings::new(config, outside), ..self }
    }

    /// For requests that come from now on.
    pub(crate) fn set_live(&self, live: Live) {
        self.live.store(Arc::new(live));
    }

    /// The settings as they are now. Not to be kept over an `await`.
    pub(crate) fn live(&self) -> Guard<Arc<Live>> {
        self.live.load()
    }

    /// The client that a connection counts for. A proxy speaks for many, and the file system guards a socket.
    pub(crate) fn counted(&self, peer: Peer) -> Option<u128> {
        match peer {
            Peer::Ip(ip) if !self.trusted_proxies.contain(ip) => Some(Client(peer).key()),
            Peer::Ip(_) | Peer::Unix => None,
        }
    }

    /// So many connections are kept free, by ending those that nobody uses.
    pub(crate) fn headroom(&self) -> usize {
        (self.connections_max / HEADROOM_SHARE).clamp(1, HEADROOM_MAX)
    }

    /// How many connections are open.
    pub(crate) fn connections_open(&self) -> usize {
        self.connections_max - self.connections.available_permits()
    }

    /// Forgets clients that have been quiet, and a throttle that is over. Call it every few seconds.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.gate.throttle(now);
        self.live().limiter.sweep(now);
        self.new_domains.sweep(now);
        self.auth.sweep(now);
    }
}

/// As RFC 2068, section 19.7.1.1, has it, and clients and proxies read it.
fn keep_alive_value(timeout: Duration) -> HeaderValue {
    HeaderValue::from_str(&format!("timeout={}", timeout.as_secs())).expect("letters and digits")
}

fn per_client_max(config: &Config, connections_max: usize) -> usize {
    let share = (connections_max / CLIENT_SHARE).max(CLIENT_CONNECTIONS_MIN);
    config.max_connections_per_client.unwrap_or(share)
}
