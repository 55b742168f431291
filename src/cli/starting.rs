//! Signals while a service starts.
//!
//! Until a process has said what is to become of a signal, SIGHUP ends it, and as the first process of a container it
//! does not even see SIGTERM. So both are looked after as its first act, before settings are read, a disk is asked or a
//! name is resolved, all of which may take long: SIGHUP waits until the service stands, SIGTERM and SIGINT end it at
//! once. Nothing is acknowledged yet that could be lost.

use std::ffi::OsString;
use std::io;
use std::thread::JoinHandle;

use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use super::data::tell;

/// A start under way. Dropped, nobody looks after SIGTERM and SIGINT any more.
pub(super) struct Starting {
    /// Remembers a SIGHUP that has come.
    hangup: Option<Signal>,
    watch: Option<Watch>,
}

struct Watch {
    over: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Starting {
    /// Looks after signals, if these arguments of a process begin with `serve`. What the system refuses is left as it is.
    pub(super) fn of(mut args: impl Iterator<Item = OsString>) -> Starting {
        let is_serve = args.nth(1).is_some_and(|command| command == "serve");
        let hangup = if is_serve { hangup().ok() } else { None };
        Starting { hangup, watch: if is_serve { Watch::begin().ok() } else { None } }
    }

    /// So many descriptors it holds until it is over.
    pub(super) fn descriptors(&self, of_a_runtime: u64) -> u64 {
        if self.watch.is_some() { of_a_runtime } else { 0 }
    }

    /// The service stands and looks after SIGTERM and SIGINT itself. Gives what comes by SIGHUP, and has come.
    pub(super) fn over(self) -> io::Result<Signal> {
        if let Some(Watch { over, thread }) = self.watch {
            // Fails, and panics, only where there is no watch any more.
            let _ = over.send(());
            let _ = thread.join();
        }
        self.hangup.map_or_else(|| signal(SignalKind::hangup()), Ok)
    }
}

/// The signal is caught from here on, for as long as the process lives.
fn hangup() -> io::Result<Signal> {
    let runtime = Builder::new_current_thread().enable_io().build()?;
    let _inside = runtime.enter();
    signal(SignalKind::hangup())
}

impl Watch {
    fn begin() -> io::Result<Watch> {
        let runtime = Builder::new_current_thread().enable_io().build()?;
        let (over, is_over) = oneshot::channel();
        let watch = async move {
            // Not before there is somebody to look at them.
            let (Ok(mut terminate), Ok(mut interrupt)) =
                (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
            else {
                return;
            };
            tokio::select! {
                biased;
                _ = is_over => return,
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tell("leitstand: stopped by a signal before it had started");
            std::process::exit(0);
        };
        let thread = std::thread::Builder::new().name("leitstand-start".to_owned());
        let thread = thread.spawn(move || runtime.block_on(watch))?;
        Ok(Watch { over, thread })
    }
}
