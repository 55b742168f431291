//! The accept loop: connections, their deadlines, their cap, and the orderly end.

use std::future::{Future, poll_fn};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::response::Response;
use futures_util::future::Either;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};

use super::client::Peer;
use super::complaint::Complaint;
use super::conn::{ConnIo, ConnState, TICK};
use super::connections::{Connections, MAKE_WAY_EVERY, MAKE_WAY_WITHIN};
use super::edge::Edge;
use super::foreign::Foreign;
use super::linger::{close, linger_short};
use super::plain::{self, End, Read, Replay, Unread};
use super::state::AppState;
use crate::metrics::Refusal;

/// Largest head, and read buffer, of a connection.
pub(super) const BUFFER_BYTES_MAX: usize = 32 << 10;
/// A connection that its worker has not begun with for so long is served elsewhere.
const ADOPTED_AFTER: Duration = Duration::from_millis(250);
/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// After the stop signal, requests that were already on their way are served for so long.
const LAST_CALL: Duration = Duration::from_millis(250);
/// Late connections that are ended together, and the pause before the next ones: 10,000 take a third of a
/// second.
const ENDED_AT_ONCE: usize = 64;
const ENDING_PAUSE: Duration = Duration::from_millis(1);
/// Connections over the cap that are told so; further ones are just closed. One half is for clients that have
/// too many themselves.
pub const REFUSERS_MAX: usize = 64;
/// Over the cap, for the whole head of a question about health.
const LOOK_TIME: Duration = Duration::from_millis(500);
/// So often at most the log says that connections cannot be accepted or served.
const COMPLAINT_EVERY: Duration = Duration::from_secs(10);
/// Waiting for locks ends so long before the connections are cut, so that the answer gets out.
const ANSWER_MARGIN: Duration = Duration::from_millis(500);

/// A socket that listens.
#[derive(Debug)]
pub enum BoundListener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// How the server behaves.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// From the stop signal to the last cut connection.
    pub shutdown_timeout: Duration,
    /// The runtimes that connections are shared out to, each best of one thread. A connection stays
    /// where it is. Empty: the runtime of the caller.
    pub workers: Vec<Handle>,
    /// Connections over a cap that are told so at the same time, at most [`REFUSERS_MAX`].
    pub refusers_max: usize,
}

/// Serves until `shutdown` is ready, then drains, and returns when nothing is in flight (`true`) or
/// the shutdown timeout is over (`false`). Every acknowledged event is in its file by then.
///
/// The caller owns socket and stop signal, so tests can bind port 0 and stop at will.
pub async fn serve(
    listener: BoundListener,
    state: Arc<AppState>,
    options: ServerOptions,
    shutdown: impl Future<Output = ()>,
) -> bool {
    let mut server = Server {
        router: super::router(state.clone()),
        open: Arc::new(Connections::new(state.head_bytes_max, state.keep_alive)),
        state,
        connections: JoinSet::new(),
        refusers: Arc::new(Semaphore::new(options.refusers_max.div_ceil(2))),
        beyond_cap: Arc::new(Semaphore::new(options.refusers_max.div_ceil(2))),
        workers: options.workers.into_iter().map(Worker::new).collect(),
        complaint: Complaint::new(COMPLAINT_EVERY),
        arrivals: Vec::new(),
    };
    if server.workers.is_empty() {
        server.workers.push(Worker::new(Handle::current()));
    }
    let mut shutdown = pin!(shutdown);
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ending: Option<JoinHandle<()>> = None;
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => server.take(accepted).await,
            Some(_) = server.connections.join_next() => {}
            _ = ticks.tick() => {
                server.look_after_arrivals();
                let late = server.open.tick();
                if !late.is_empty() && ending.as_ref().is_none_or(JoinHandle::is_finished) {
                    ending = Some(tokio::spawn(end_by_and_by(late)));
                }
            }
        }
    }
    let deadline = Instant::now() + options.shutdown_timeout;
    let state = server.state.clone();
    // 1. No connection waits unanswered in the backlog; then nobody new.
    listener.backlog().into_iter().for_each(|stream| server.start(stream));
    // 2. Requests on their way are served, and their connections closed with the answer.
    state.closing.store(true, Ordering::Relaxed);
    server.join_until(deadline.min(Instant::now() + LAST_CALL)).await;
    // 3. From here on requests are refused; idle connections are closed.
    state.store.begin_drain((deadline - ANSWER_MARGIN).into());
    server.open.stop();
    server.join_until(deadline).await;
    // 4. Whoever is still sending had his time. A worker that hangs in a call to the disk ends nothing.
    server.connections.abort_all();
    server.join_until(deadline + ANSWER_MARGIN / 2).await;
    // 5. The writers end what they have begun.
    tokio::time::timeout_at(deadline + ANSWER_MARGIN, state.store.drained()).await.is_ok()
}

/// Ends connections a few at a time. Thousands that were opened together are late together, and a
/// request would wait until all of them are closed.
async fn end_by_and_by(late: Vec<Arc<ConnState>>) {
    for few in late.chunks(ENDED_AT_ONCE) {
        few.iter().for_each(|conn| conn.expire());
        tokio::time::sleep(ENDING_PAUSE).await;
    }
}

struct Server {
    state: Arc<AppState>,
    router: Router,
    connections: JoinSet<()>,
    /// Of clients that have too many connections.
    refusers: Arc<Semaphore>,
    /// When all have too many.
    beyond_cap: Arc<Semaphore>,
    open: Arc<Connections>,
    workers: Vec<Worker>,
    /// About accept.
    complaint: Complaint,
    /// Connections that may wait for their worker.
    arrivals: Vec<Waiting>,
}

/// A connection that was given to a worker.
struct Waiting {
    since: Instant,
    arrival: Arc<Mutex<Option<Arrival>>>,
    worker_is_late: Arc<AtomicBool>,
}

/// A connection that nobody serves yet.
type Arrival = (Stream, Arc<Edge>, Arc<ConnState>, Guard);

/// Where connections are served.
struct Worker {
    runtime: Handle,
    connections: Arc<AtomicUsize>,
    /// It let a connection wait too long, and has begun with none since. It gets no further ones.
    is_late: Arc<AtomicBool>,
}

impl Worker {
    fn new(runtime: Handle) -> Worker {
        Worker { runtime, connections: Arc::default(), is_late: Arc::default() }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    fn is_late(&self) -> bool {
        self.is_late.load(Ordering::Relaxed)
    }
}

/// What a connection holds while it is open.
struct Guard {
    open: Arc<Connections>,
    key: u64,
    /// Of its worker.
    connections: Arc<AtomicUsize>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
        self.open.remove(self.key);
    }
}

/// An accepted connection between two runtimes: the one that accepted it and the one that serves it.
enum Stream {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

impl BoundListener {
    async fn accept(&self) -> io::Result<Stream> {
        match self {
            BoundListener::Tcp(listener) => {
                let (stream, addr) = listener.accept().await?;
                // An answer is one small segment; nothing is gained by holding it back.
                let _ = stream.set_nodelay(true);
                Ok(Stream::Tcp(stream.into_std()?, addr))
            }
            BoundListener::Unix(listener) => Ok(Stream::Unix(listener.accept().await?.0.into_std()?)),
        }
    }

    /// The connections that are already there; then nobody listens any more. Asks the system and
    /// not the runtime, which may not have looked since they came.
    fn backlog(self) -> Vec<Stream> {
        match self {
            BoundListener::Tcp(listener) => all_of(listener.into_std(), |listener| {
                let (stream, addr) = listener.accept()?;
                stream.set_nonblocking(true)?;
                let _ = stream.set_nodelay(true);
                Ok(Stream::Tcp(stream, addr))
            }),
            BoundListener::Unix(listener) => all_of(listener.into_std(), |listener| {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?;
                Ok(Stream::Unix(stream))
            }),
        }
    }
}

fn all_of<L>(listener: io::Result<L>, accept: impl Fn(&L) -> io::Result<Stream>) -> Vec<Stream> {
    let mut streams = Vec::new();
    let Ok(listener) = listener else { return streams };
    loop {
        match accept(&listener) {
            Ok(stream) => streams.push(stream),
            Err(error) if concerns_one_connection(&error) => {}
            Err(_) => return streams,
        }
    }
}

/// Such a connection is gone already; the next one may be fine, see accept(2).
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

impl Server {
    async fn take(&mut self, accepted: io::Result<Stream>) {
        match accepted {
            Ok(stream) => self.start(stream),
            Err(error) if concerns_one_connection(&error) => {}
            Err(error) => {
                self.complaint.tell(Instant::now(), |failed| {
                    tracing::error!(%error, failed, "accept failed; descriptors or memory are used up");
                });
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }

    fn start(&mut self, stream: Stream) {
        let peer = match &stream {
            Stream::Tcp(_, addr) => Peer::from_ip(addr.ip()),
            Stream::Unix(_) => Peer::Unix,
        };
        let state = &self.state;
        let Ok(permit) = state.connections.clone().try_acquire_owned() else {
            let permit = self.beyond_cap.clone().try_acquire_owned();
            self.make_way();
            return self.let_wait(stream, peer, permit.ok());
        };
        let Some((key, conn)) = self.open.add_of(state.counted(peer), state.connections_per_client_max) else {
            state.metrics.refused(Refusal::ClientConnectionLimit);
            let permit = self.refusers.clone().try_acquire_owned();
            return self.refuse(stream, peer, permit.ok(), self.open.add(), Terms::OneLookAtHealth);
        };
        state.metrics.connection();
        // Somebody else is going to come.
        let is_tight = state.connections.available_permits() <= state.headroom() / 2;
        let worker = self.workers.iter().min_by_key(|worker| (worker.is_late(), worker.connections()));
        let worker = worker.expect("there is at least one");
        worker.connections.fetch_add(1, Ordering::Relaxed);
        let guard = Guard { open: self.open.clone(), key, connections: worker.connections.clone(), _permit: permit };
        let edge = self.edge(peer, &conn);
        if worker.is_late() {
            // All of them are.
            self.connections.spawn(adopt(stream, edge, conn, guard, Terms::Any));
        } else {
            let arrival = Arc::new(Mutex::new(Some((stream, edge, conn, guard))));
            let worker_is_late = worker.is_late.clone();
            self.connections.spawn_on(adopt_arrival(arrival.clone(), worker_is_late.clone()), &worker.runtime);
            self.arrivals.push(Waiting { since: Instant::now(), arrival, worker_is_late });
        }
        if is_tight {
            self.make_way();
        }
    }

    /// A worker may hang in a call to the disk. What it has not begun with in time is served by this thread,
    /// which never makes one: so health and metrics answer. Until it begins again it gets nothing new.
    fn look_after_arrivals(&mut self) {
        let now = Instant::now();
        for waiting in std::mem::take(&mut self.arrivals) {
            let mut arrival = lock(&waiting.arrival);
            if arrival.is_some() && now - waiting.since < ADOPTED_AFTER {
                drop(arrival);
                self.arrivals.push(waiting);
            } else if let Some((stream, edge, conn, guard)) = arrival.take() {
                // Under the lock: the task that waits on the worker finds nothing, and takes this back.
                waiting.worker_is_late.store(true, Ordering::Relaxed);
                self.connections.spawn(adopt(stream, edge, conn, guard, Terms::Any));
            }
        }
    }

    /// Ends some connections that nobody uses.
    fn make_way(&self) {
        self.open.make_way(self.state.headroom(), Instant::now().into());
    }

    /// Over the cap: who has something to say waits for those that have not. A client that has too many connections
    /// itself does not.
    fn let_wait(&mut self, stream: Stream, peer: Peer, permit: Option<OwnedSemaphorePermit>) {
        let state = &self.state;
        match self.open.add_of(state.counted(peer), state.connections_per_client_max) {
            Some(added) if permit.is_some() => self.refuse(stream, peer, permit, added, Terms::OneRequest),
            added => {
                state.metrics.refused(Refusal::ConnectionLimit);
                let added = added.unwrap_or_else(|| self.open.add());
                self.refuse(stream, peer, permit, added, Terms::OneLookAtHealth);
            }
        }
    }

    /// Over a cap: serves what `terms` allow, or says that there are too many in one go, and closes. Without a permit
    /// just closes.
    fn refuse(
        &mut self,
        stream: Stream,
        peer: Peer,
        permit: Option<OwnedSemaphorePermit>,
        (key, conn): (u64, Arc<ConnState>),
        terms: Terms,
    ) {
        let Some(permit) = permit else { return self.open.remove(key) };
        conn.serve_only_one();
        let guard = Guard { open: self.open.clone(), key, connections: Arc::default(), _permit: permit };
        guard.connections.fetch_add(1, Ordering::Relaxed);
        let edge = self.edge(peer, &conn);
        self.connections.spawn(adopt(stream, edge, conn, guard, terms));
    }

    fn edge(&self, peer: Peer, conn: &Arc<ConnState>) -> Arc<Edge> {
        Arc::new(Edge { state: self.state.clone(), router: self.router.clone(), peer, conn: conn.clone() })
    }

    async fn join_until(&mut self, deadline: Instant) {
        while let Ok(Some(_)) = tokio::time::timeout_at(deadline, self.connections.join_next()).await {}
    }
}

fn lock(arrival: &Mutex<Option<Arrival>>) -> MutexGuard<'_, Option<Arrival>> {
    // Taken as a whole.
    arrival.lock().unwrap_or_else(PoisonError::into_inner)
}

/// On a worker: serves a connection, unless somebody else has begun with it.
async fn adopt_arrival(arrival: Arc<Mutex<Option<Arrival>>>, worker_is_late: Arc<AtomicBool>) {
    let taken = lock(&arrival).take();
    worker_is_late.store(false, Ordering::Relaxed);
    drop((arrival, worker_is_late));
    let Some((stream, edge, conn, guard)) = taken else { return };
    adopt(stream, edge, conn, guard, Terms::Any).await;
}

/// What is served on a connection.
#[derive(Debug, Clone, Copy)]
enum Terms {
    Any,
    /// There are too many: one, when a place gets free, and a look at health in any case.
    OneRequest,
    /// The client has too many.
    OneLookAtHealth,
}

/// Makes a connection known to the runtime that this runs on, and serves it there.
async fn adopt(stream: Stream, edge: Arc<Edge>, conn: Arc<ConnState>, guard: Guard, terms: Terms) {
    let adopted = match stream {
        Stream::Tcp(stream, _) => tokio::net::TcpStream::from_std(stream).map(Either::Left),
        Stream::Unix(stream) => tokio::net::UnixStream::from_std(stream).map(Either::Right),
    };
    match (adopted, terms) {
        (Ok(Either::Left(stream)), Terms::Any) => connection(stream, edge, conn, guard).await,
        (Ok(Either::Right(stream)), Terms::Any) => connection(stream, edge, conn, guard).await,
        (Ok(Either::Left(stream)), _) => Box::pin(beyond_cap(stream, edge, conn, guard, terms)).await,
        (Ok(Either::Right(stream)), _) => Box::pin(beyond_cap(stream, edge, conn, guard, terms)).await,
        (Err(error), _) => {
            static ABOUT_SERVING: Mutex<Complaint> = Mutex::new(Complaint::new(COMPLAINT_EVERY));
            ABOUT_SERVING.lock().unwrap_or_else(PoisonError::into_inner).tell(Instant::now(), |failed| {
                tracing::error!(%error, failed, "cannot serve a connection; memory or epoll watches are used up");
            });
        }
    }
}

/// A task keeps its waker.
async fn register(conn: &ConnState) {
    poll_fn(|cx| {
        conn.register(cx.waker());
        Poll::Ready(())
    })
    .await;
}

/// One connection, from its first byte to its last.
async fn connection<S>(mut stream: S, edge: Arc<Edge>, conn: Arc<ConnState>, _guard: Guard)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    register(&conn).await;
    let mut unread = Unread::new();
    loop {
        match plain::serve(&mut stream, &edge, unread).await {
            End::Done | End::Busy => break,
            End::Late => {
                late(&edge.state, &conn);
                break;
            }
            End::Other(other) => {
                // Boxed, because most connections never need the room that hyper takes.
                let served = Box::pin(any_request(Replay::new(other, stream), edge.clone(), conn.clone())).await;
                stream = served.0;
                let Some(rest) = served.1 else { break };
                unread = rest;
            }
        }
    }
    if conn.was_head_refused() {
        edge.state.metrics.refused(Refusal::HeadBudget);
        return Box::pin(tell_busy(stream, &conn)).await;
    }
    close(&mut stream, &edge.state, &conn).await;
}

/// One connection too many. Whether the service lives is answered all the same, to who asks at once.
async fn beyond_cap<S>(mut stream: S, edge: Arc<Edge>, conn: Arc<ConnState>, guard: Guard, terms: Terms)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    register(&conn).await;
    let mut unread = Unread::new();
    let whole_head = async {
        while matches!(unread.read(&mut stream, &conn).await, Read::Some) {
            if memchr::memmem::find(unread.bytes(), b"\r\n\r\n").is_some() || !asks_for_health(unread.bytes()) {
                break;
            }
        }
    };
    // In time or not, what has come is looked at.
    let _ = tokio::time::timeout(LOOK_TIME, whole_head).await;
    let whole = memchr::memmem::find(unread.bytes(), b"\r\n\r\n").is_some();
    let is_probe = asks_for_health(unread.bytes());
    let place = match terms {
        Terms::OneRequest if !is_probe => place(&edge.state, &guard.open, &conn).await,
        _ => None,
    };
    match (&place, terms) {
        (Some(_), _) => edge.state.metrics.connection(),
        (None, Terms::OneRequest) => edge.state.metrics.refused(Refusal::ConnectionLimit),
        (None, _) => {}
    }
    if place.is_none() && !(whole && is_probe) {
        return tell_busy(stream, &conn).await;
    }
    // Only one is served.
    let (mut stream, _) = any_request(Replay::new(unread, stream), edge.clone(), conn.clone()).await;
    if conn.was_head_refused() {
        edge.state.metrics.refused(Refusal::HeadBudget);
        return tell_busy(stream, &conn).await;
    }
    close(&mut stream, &edge.state, &conn).await;
}

/// Waits for a place while others may make way. At most [`REFUSERS_MAX`] wait, and they share the looks.
async fn place(state: &AppState, open: &Connections, conn: &ConnState) -> Option<OwnedSemaphorePermit> {
    let began = Instant::now();
    let mut free = pin!(state.connections.clone().acquire_owned());
    while began.elapsed() < MAKE_WAY_WITHIN && !conn.must_stop() && !conn.has_ended() {
        let worth_waiting = open.make_way(state.headroom(), began.into()) != Some(false);
        // Looked at in any case.
        let pause = if worth_waiting { MAKE_WAY_EVERY } else { Duration::ZERO };
        match tokio::time::timeout(pause, &mut free).await {
            Ok(place) => return place.ok(),
            Err(_) if worth_waiting => {}
            Err(_) => return None,
        }
    }
    None
}

/// Does a head, or what has come of it, ask for one of the health pages?
fn asks_for_health(head: &[u8]) -> bool {
    [&b"GET /health"[..], b"HEAD /health"].iter().any(|wanted| {
        let begins = head.len().min(wanted.len());
        head[..begins] == wanted[..begins] && head.get(wanted.len()).is_none_or(|next| b" /?".contains(next))
    })
}

/// Serves requests of any form, and what is no request, with hyper, until the connection is to be closed, or all is
/// answered that has come. In the latter case also gives what hyper has read beyond that.
async fn any_request<S>(stream: Replay<S>, edge: Arc<Edge>, conn: Arc<ConnState>) -> (S, Option<Unread>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (state, peer) = (edge.state.clone(), edge.peer);
    let foreign = Foreign::of(stream.begin());
    let service = service_fn(move |request| {
        let edge = edge.clone();
        Box::pin(async move { Ok::<Response, std::convert::Infallible>(edge.call(request).await) })
    });
    let (unread_bytes, after_length) = (stream.unread_bytes(), stream.is_after_length());
    let io = TokioIo::new(ConnIo::new(stream, conn.clone(), unread_bytes, after_length));
    let mut http = http1::Builder::new()
        // A client that has ended its side gets its answer (RFC 9112, section 9.6). `ConnIo` sees those that break.
        .half_close(true)
        .header_read_timeout(None)
        .max_buf_size(BUFFER_BYTES_MAX)
        .max_header_size(BUFFER_BYTES_MAX)
        .serve_connection(io, service);
    let (mut stopping, mut resting) = (false, false);
    let result = poll_fn(|cx| {
        if conn.must_stop() && !stopping {
            stopping = true;
            Pin::new(&mut http).graceful_shutdown();
        }
        if conn.is_expired() {
            return Poll::Ready(None);
        }
        let polled = http.poll_without_shutdown(cx).map(Some);
        if polled.is_ready() || stopping || resting || !conn.is_at_rest() {
            return polled;
        }
        // hyper would keep its buffers, as large as they have become. Told to stop, it ends at once and
        // writes nothing.
        resting = true;
        Pin::new(&mut http).graceful_shutdown();
        http.poll_without_shutdown(cx).map(Some)
    });
    let result = result.await;
    let goes_on = resting && conn.is_at_rest() && matches!(result, Some(Ok(())));
    match &result {
        Some(Ok(())) => {}
        Some(Err(error)) => report(&state, &conn, error),
        None => late(&state, &conn),
    }
    let parts = http.into_parts();
    let mut io = parts.io.into_inner();
    if result.is_some_and(|result| result.is_err_and(|error| error.is_parse())) {
        io.refuse_untold().await;
        if let Some(foreign) = foreign {
            foreign.tell(peer);
        }
    }
    let rest = goes_on.then(|| Unread::of_hyper(&parts.read_buf, io.is_after_length(), &conn)).flatten();
    (io.into_inner().into_inner(), rest)
}

/// Running out of time between two requests is the normal end of a connection.
fn late(state: &AppState, conn: &ConnState) {
    if conn.was_evicted() {
        state.metrics.refused(Refusal::Evicted);
    } else if !conn.was_used() {
        state.metrics.refused(Refusal::HeaderTimeout);
    }
}

/// hyper answers what it cannot parse by itself, past every layer: count it here.
fn report(state: &AppState, conn: &ConnState, error: &hyper::Error) {
    if error.is_parse() {
        state.metrics.refused(Refusal::MalformedRequest);
    }
    let request_id = conn.request_id();
    tracing::debug!(request_id = std::str::from_utf8(&request_id).unwrap_or_default(), %error, "connection ended");
}

async fn tell_busy<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, conn: &ConnState) {
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nx-request-id: {:016x}\r\n\
        connection: close\r\ncontent-length: 17\r\n\r\n{{\"detail\":\"busy\"}}",
        crate::rng::random_u64()
    );
    if stream.write_all(answer.as_bytes()).await.is_ok() && stream.shutdown().await.is_ok() {
        linger_short(&mut stream, conn).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, a probe would see a service down that only has many connections, or anything could be asked.
    #[test]
    fn only_the_health_pages_are_served_beyond_the_cap() {
        for (head, asks) in [
            ("GET /health/live HTTP/1.1\r\n", true),
            ("HEAD /health/ready HTTP/1.1\r\n", true),
            ("GET /health HTTP/1.1", true),
            ("GET /health?x", true),
            ("GET /hea", true),
            ("", true),
            ("GET /healthy HTTP/1.1", false),
            ("GET /metrics HTTP/1.1", false),
            ("POST /health HTTP/1.1", false),
        ] {
            assert_eq!(asks_for_health(head.as_bytes()), asks, "{head}");
        }
    }
}
