//! `leitstand serve`: wires everything; the only place that spawns long-lived tasks.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use super::data::data_dir_setting;
use super::env::Loader;
use super::logging::lines::Dropped;
use super::starting::Starting;
use super::token_watch::TokenWatch;
use super::unix_socket::UnixSocket;
use super::{BindArgs, heartbeat, logging, reload, settings_file};
use crate::config::{Bind, Config, Values};
use crate::giving_way;
use crate::http::{AppState, BoundListener, REFUSERS_MAX, ServerOptions, serve};
use crate::metrics::Metrics;
use crate::storage::file_system::weakness;
use crate::storage::{Store, StoreOptions};

/// Descriptors kept for the listener, the data directory and short-lived files, beside what is open when
/// they are shared out.
const SPARE_DESCRIPTORS: u64 = 32;
/// Open at the start where `/proc` cannot be read: the standard three, and a pair for signals.
const OPEN_AT_START: u64 = 5;
/// What a runtime keeps open: two for epoll, one to be woken by, one for signals.
const RUNTIME_DESCRIPTORS: u64 = 4;
/// File size limit signal; not among tokio's named kinds.
const SIGXFSZ: i32 = 25;
const SWEEP_EVERY: Duration = Duration::from_secs(10);
const BACKLOG: u32 = 4096;
/// Threads of a worker for calls that block. Those of requests have their own (`http::blocking`), and so have syncs.
const WORKER_BLOCKING_THREADS: usize = 1;
/// How long a thread for calls that block stays without work. Longer than the pause between two sweeps of the store, which
/// need one: so there always is one, and what is handed over in a moment in which the system gives no thread has
/// somebody to do it. Without any it would be a panic.
const KEPT: Duration = SWEEP_EVERY.saturating_mul(3);

pub(super) fn run(args: &BindArgs, starting: Starting) -> Result<(), String> {
    let loader = Arc::new(Loader::new(args));
    // Before they are read: what changes in between is seen as a change.
    let seen = loader.digest();
    let config = loader.load(&Values::default()).map_err(|refused| loader.told(&refused))?;
    settings_file::start_is_over();
    let logging =
        logging::start(config.log_level, config.log_format).map_err(|e| format!("cannot start the log: {e}"))?;
    for warning in config.warnings.iter().chain(&config.stale) {
        tracing::warn!("{warning}");
    }
    let limit = raised_limit();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.min(Descriptors::workers_max(limit));
    let workers = Workers::start(threads).map_err(|e| format!("cannot start the workers: {e}"))?;
    let open = open_descriptors(threads).saturating_sub(starting.descriptors(RUNTIME_DESCRIPTORS));
    let share = Descriptors::share(limit, open, &config);
    let runtime = runtime(share.sync_threads).map_err(|e| format!("cannot start the runtime: {e}"))?;
    // Its first thread for calls that block; where the system gives none, that is told here.
    std::thread::Builder::new().spawn(|| ()).map_err(|e| format!("cannot start the runtime: {e}"))?;
    runtime.spawn_blocking(|| ());
    let started = start(config, (loader, seen), share, workers.runtimes.clone(), &logging, starting);
    let result = runtime.block_on(started);
    // Threads that wait for a hung disk would keep the process for ever; nothing that they do is
    // acknowledged any more.
    runtime.shutdown_background();
    result
}

/// A runtime of one thread, and more threads for calls that block.
fn runtime(blocking_threads: usize) -> io::Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .on_thread_park(giving_way::before_sleep)
        .max_blocking_threads(blocking_threads)
        .thread_keep_alive(KEPT)
        .thread_name("leitstand")
        .build()
}

/// The threads that serve connections. Each has a runtime of its own, so that a connection, its
/// requests and mostly its acks stay on one thread (docs/adr/0010). They end when this is dropped.
struct Workers {
    runtimes: Vec<Handle>,
    _stops: Vec<oneshot::Sender<()>>,
}

impl Workers {
    fn start(threads: usize) -> io::Result<Workers> {
        let mut workers = Workers { runtimes: Vec::new(), _stops: Vec::new() };
        for n in 0..threads {
            let runtime = runtime(WORKER_BLOCKING_THREADS)?;
            let (stop, stopped) = oneshot::channel::<()>();
            workers.runtimes.push(runtime.handle().clone());
            workers._stops.push(stop);
            std::thread::Builder::new().name(format!("leitstand-{n}")).spawn(move || {
                // Ends with the sender, one way or the other.
                let _ = runtime.block_on(stopped);
                runtime.shutdown_background();
            })?;
        }
        Ok(workers)
    }
}

async fn start(
    config: Config,
    (loader, seen): (Arc<Loader>, [u8; 32]),
    share: Descriptors,
    workers: Vec<Handle>,
    logging: &logging::Logging,
    starting: Starting,
) -> Result<(), String> {
    let signals = Signals::new().map_err(|e| format!("cannot handle signals: {e}"))?;
    let metrics = Metrics::new(&config.version, config.fsync.as_str());
    let options = StoreOptions {
        fsync: config.fsync,
        lock_timeout: config.lock_timeout,
        in_flight_bytes_max: config.in_flight_bytes_max,
        reserve_bytes: config.reserve_bytes,
        open_domains_max: share.open_domains,
        domains_max: config.max_domains,
        runtime: Some(Handle::current()),
        ..StoreOptions::default()
    };
    let store = Store::open(&config.data_dir, options, metrics.store()).map_err(|e| {
        let (name, what) = data_dir_setting(&config);
        let dir = &config.data_dir;
        format!("cannot use the data directory {dir:?}: {e}\n  {name} {what}; it must name a directory that this user may write to")
    })?;
    let (listener, address, socket) = bind(&config.bind).await?;
    let state = AppState::new(&config, store.clone(), metrics.clone(), share.connections);
    let state = Arc::new(state.with_outside(&config, reload::outside(&loader, logging.switches())));
    let tokens = TokenWatch::start(config.token_store.clone(), state.clone(), metrics.clone())?;

    let hangup = starting.over().map_err(|e| format!("cannot handle signals: {e}"))?;
    let watch = tokio::spawn(reload::watch(loader, state.clone(), hangup, seen));
    metrics.config_is(config.stale.len());
    let maintain = tokio::spawn(maintain(store, state.clone(), metrics, logging.dropped()));
    let heartbeat = config.heartbeat_file.clone().map(|path| tokio::spawn(heartbeat::keep(path, state.clone())));
    announce(&config, &address, share.connections);
    let server = ServerOptions { shutdown_timeout: config.shutdown_timeout, workers, refusers_max: share.refusers };
    let drained = serve(listener, state, server, signals.first()).await;
    maintain.abort();
    if let Some(heartbeat) = heartbeat {
        heartbeat.abort();
    }
    watch.abort();
    drop(tokens);
    if let Some(socket) = socket {
        socket.remove();
    }
    if drained {
        tracing::info!("stopped, 0 writes pending");
    } else {
        tracing::warn!("stopped with appends in flight, none of them acknowledged");
    }
    Ok(())
}

fn announce(config: &Config, address: &str, connections_max: usize) {
    tracing::info!(
        version = config.version,
        address,
        data_dir = %config.data_dir.display(),
        fsync = config.fsync.as_str(),
        max_body_bytes = config.max_body_bytes,
        lock_timeout_s = config.lock_timeout.as_secs(),
        rate_limit = %config.rate_limit,
        connections_max,
        in_flight_bytes_max = config.in_flight_bytes_max,
        "started"
    );
    if let Some(weakness) = weakness(&config.data_dir) {
        tracing::warn!(data_dir = %config.data_dir.display(), "the data directory {weakness}");
    }
    if let Bind::Tcp { host, .. } = &config.bind {
        let loopback = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if !loopback && config.tokens.expose().iter().any(|token| token == "dev") {
            tracing::warn!(
                "the token is \"dev\" and the address is not loopback: anybody can write; set LEITSTAND_TOKEN"
            );
        }
    }
}

/// Everything that must happen now and then, for as long as the service runs.
async fn maintain(store: Store, state: Arc<AppState>, metrics: Metrics, dropped: Arc<Dropped>) {
    let sweep = async {
        let mut ticks = tokio::time::interval(SWEEP_EVERY);
        loop {
            ticks.tick().await;
            state.sweep();
            metrics.log_lines_dropped(dropped.lines.load(Ordering::Relaxed), dropped.audit.load(Ordering::Relaxed));
        }
    };
    tokio::join!(sweep, store.maintain());
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        // Caught and dropped, so that a file size limit is an error (EFBIG) and not the end of the
        // process; see setrlimit(2).
        drop(signal(SignalKind::from_raw(SIGXFSZ))?);
        Ok(Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Ready with the first signal. The second ends the process at once.
    async fn first(mut self) {
        self.next().await;
        tracing::info!("stopping; a second signal ends at once");
        tokio::spawn(async move {
            self.next().await;
            std::process::exit(0);
        });
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

async fn bind(bind: &Bind) -> Result<(BoundListener, String, Option<UnixSocket>), String> {
    match bind {
        Bind::Tcp { host, port } => {
            let listener = bind_tcp(host, *port).await.map_err(|e| {
                format!("cannot listen on {host}:{port}: {e}\n  is another process on that port? (ss -ltnp) Set LEITSTAND_HOST and LEITSTAND_PORT, or --host and --port")
            })?;
            let address = listener.local_addr().map_err(|e| format!("cannot read the bound address: {e}"))?;
            Ok((BoundListener::Tcp(listener), address.to_string(), None))
        }
        Bind::Unix(path) => {
            let (listener, socket) = UnixSocket::bind(path).map_err(|e| format!("cannot listen on {path:?}: {e}"))?;
            Ok((BoundListener::Unix(listener), format!("unix:{}", path.display()), Some(socket)))
        }
    }
}

async fn bind_tcp(host: &str, port: u16) -> io::Result<TcpListener> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in tokio::net::lookup_host((host, port)).await? {
        let socket =
            if address.is_ipv4() { tokio::net::TcpSocket::new_v4()? } else { tokio::net::TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        match socket.bind(address).and_then(|()| socket.listen(BACKLOG)) {
            Ok(listener) => return Ok(listener),
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// Raises the soft limit of open files to the hard one, and says what holds.
fn raised_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    // Not allowed: then the soft limit is what we have.
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    if raised.is_ok() { limit.maximum } else { limit.current }.unwrap_or(1 << 20)
}

/// How many descriptors are open now, with so many workers running.
fn open_descriptors(workers: usize) -> u64 {
    match std::fs::read_dir("/proc/self/fd") {
        // One of them is the listing itself.
        Ok(open) => (open.count() as u64).saturating_sub(1),
        Err(_) => OPEN_AT_START + RUNTIME_DESCRIPTORS * workers as u64,
    }
}

/// How the process's descriptors are shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Descriptors {
    connections: usize,
    open_domains: usize,
    sync_threads: usize,
    /// Connections over the cap that are told so at once.
    refusers: usize,
}

impl Descriptors {
    /// Most workers: with few descriptors they must not take them from those who connect.
    fn workers_max(limit: u64) -> usize {
        (limit / (4 * RUNTIME_DESCRIPTORS)).max(1) as usize
    }

    /// Divides what `open` leaves of `limit`.
    fn share(limit: u64, open: u64, config: &Config) -> Descriptors {
        let share = Descriptors::of(limit, open, config.max_connections);
        if share.connections < config.max_connections {
            tracing::warn!(
                descriptors = limit,
                open,
                connections_max = share.connections,
                wanted = config.max_connections,
                "fewer connections than wanted: the limit of open files is too low (ulimit -n, LimitNOFILE=)"
            );
        }
        share
    }

    /// A domain holds two descriptors while its files are open; a sync thread may hold two more. Connections
    /// over the cap, which are only told so, have one each.
    fn of(limit: u64, open: u64, connections_max: usize) -> Descriptors {
        let open_domains = (limit / 16).clamp(4, 256) as usize;
        let sync_threads = (limit / 16).clamp(4, 64) as usize;
        // The main runtime is not there yet.
        let refusers = (limit / 16).clamp(2, REFUSERS_MAX as u64);
        let kept = open + RUNTIME_DESCRIPTORS + SPARE_DESCRIPTORS + refusers;
        let rest = limit.saturating_sub(kept) as usize;
        let rest = rest.saturating_sub(2 * (open_domains + sync_threads));
        Descriptors {
            connections: connections_max.min(rest.max(8)),
            open_domains,
            sync_threads,
            refusers: refusers as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, a service on many processors, or with few descriptors, would accept more connections than it
    /// has descriptors for, and could not open the files of their events.
    #[test]
    fn descriptors_suffice_for_what_is_promised() {
        for limit in [128, 256, 1024, 4096, 20_000, 1 << 20] {
            for processors in [1, 2, 64, 512] {
                let workers = processors.min(Descriptors::workers_max(limit)) as u64;
                let open = OPEN_AT_START + RUNTIME_DESCRIPTORS * workers;
                let share = Descriptors::of(limit, open, 10_000);
                let used = share.connections + 2 * (share.open_domains + share.sync_threads) + share.refusers;
                let used = used as u64 + open + RUNTIME_DESCRIPTORS;
                // The least number of connections comes out of the spare ones.
                let spare = if share.connections > 8 { SPARE_DESCRIPTORS } else { 0 };
                assert!(used + spare <= limit, "{limit}, {processors}: {share:?}, {used} used");
            }
        }
        assert_eq!(Descriptors::of(20_000, 13, 10_000).connections, 10_000);
    }

    /// Broken, it would not be known what is open.
    #[test]
    fn open_descriptors_are_counted() {
        let before = open_descriptors(2);
        let _files: Vec<_> = (0..100).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        // Other tests of this process open and close some of their own.
        assert!(open_descriptors(2) >= before.saturating_sub(50) + 100);
    }
}
