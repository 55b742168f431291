//! From a host name to addresses: one lookup at a time for all callers, and its result for a while.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// How long addresses are good for. Short: the system does not say how long they really are.
const ADDRESSES_AGE_MAX: Duration = Duration::from_secs(5);

type Addresses = Arc<[SocketAddr]>;
type Found = Result<Addresses, (io::ErrorKind, String)>;

/// The addresses of one host.
pub(crate) struct Lookup {
    host: String,
    port: u16,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    known: Option<(Addresses, Instant)>,
    /// Whoever waits for the lookup that is under way.
    waiting: Option<Vec<oneshot::Sender<Found>>>,
}

impl Lookup {
    pub fn new(host: String, port: u16) -> Lookup {
        Lookup { host, port, state: Arc::default() }
    }

    /// The addresses, known or looked up. The system has no lookup that can be given up: it goes on in its
    /// thread when the caller does not wait any longer, and the next caller waits for the same one.
    pub async fn addresses(&self) -> io::Result<Addresses> {
        if let Ok(ip) = self.host.parse::<IpAddr>() {
            return Ok([SocketAddr::new(ip, self.port)].into());
        }
        let found = {
            let mut state = lock(&self.state);
            if let Some((known, since)) = &state.known
                && since.elapsed() < ADDRESSES_AGE_MAX
            {
                return Ok(known.clone());
            }
            let (told, found) = oneshot::channel();
            match &mut state.waiting {
                Some(waiting) => waiting.push(told),
                None => {
                    self.start()?;
                    state.waiting = Some(vec![told]);
                }
            }
            found
        };
        match found.await {
            Ok(found) => found.map_err(|(kind, why)| io::Error::new(kind, why)),
            Err(_) => Err(io::Error::other("the name lookup has ended without a word")),
        }
    }

    /// No address led to the service: the next caller looks it up again.
    pub fn forget(&self) {
        lock(&self.state).known = None;
    }

    fn start(&self) -> io::Result<()> {
        let (host, port, state) = (self.host.clone(), self.port, self.state.clone());
        let look_up = move || {
            let found: Found = match (host.as_str(), port).to_socket_addrs() {
                Ok(addresses) => Ok(addresses.collect()),
                Err(e) => Err((e.kind(), e.to_string())),
            };
            let waiting = {
                let mut state = lock(&state);
                state.known = found.as_ref().ok().map(|addresses| (addresses.clone(), Instant::now()));
                state.waiting.take().unwrap_or_default()
            };
            for told in waiting {
                // Whoever gave up does not listen.
                let _ = told.send(found.clone());
            }
        };
        thread::Builder::new().name("leitstand-lookup".to_owned()).spawn(look_up).map(drop)
    }
}

/// A panic while it is held leaves nothing half done.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
