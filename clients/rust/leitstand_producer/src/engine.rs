//! The one thread of a client: it drives connections and timers for all callers.

use std::io;
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// A running thread; it ends when this is dropped.
pub(crate) struct Engine {
    handle: Handle,
    /// Never sent on. Its end is the sign to stop.
    _running: oneshot::Sender<()>,
}

impl Engine {
    pub fn start() -> io::Result<Engine> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        let handle = runtime.handle().clone();
        let (running, stopped) = oneshot::channel::<()>();
        thread::Builder::new().name("leitstand-producer".to_owned()).spawn(move || {
            // An error is what is waited for: nobody holds the other end any more.
            let _ = runtime.block_on(stopped);
        })?;
        Ok(Engine { handle, _running: running })
    }

    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}
