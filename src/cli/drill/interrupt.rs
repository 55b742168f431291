//! SIGINT, SIGTERM and SIGHUP end a drill in order: its children are killed, its files removed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

/// Has a signal come? Asked by everything that waits.
#[derive(Clone)]
pub(super) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From here on the signals no longer end the process by themselves.
    pub(super) fn watch() -> Result<Interrupt, String> {
        let flag = Arc::new(AtomicBool::new(false));
        let failed = |e: std::io::Error| format!("cannot handle signals: {e}");
        let runtime = Builder::new_current_thread().enable_io().build().map_err(failed)?;
        let guard = runtime.enter();
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
        drop(guard);
        let seen = flag.clone();
        let watch = move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
            });
            seen.store(true, Ordering::Relaxed);
            // Further signals change nothing: the drill is on its way out. The runtime stays, it owns them.
            runtime.block_on(std::future::pending::<()>());
        };
        std::thread::Builder::new().name("signals".to_owned()).spawn(watch).map_err(failed)?;
        Ok(Interrupt(flag))
    }

    pub(super) fn came(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
