//! Does anybody still wait for what is being done?

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

/// Held by whoever waits for a result; dropped, no further attempt begins.
#[derive(Debug)]
pub(crate) struct Waiting(Wish);

/// The other side: asked before each attempt.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wish(Arc<(AtomicBool, Notify)>);

impl Wish {
    pub fn new() -> (Waiting, Wish) {
        let wish = Wish::default();
        (Waiting(wish.clone()), wish)
    }

    pub fn is_gone(&self) -> bool {
        self.0.0.load(Ordering::Acquire)
    }

    /// Sleeps; false if nobody waits any longer.
    pub async fn sleep(&self, time: Duration) -> bool {
        // One that was told before the sleep began is kept.
        let _ = tokio::time::timeout(time, self.0.1.notified()).await;
        !self.is_gone()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.0.0.store(true, Ordering::Release);
        self.0.0.1.notify_one();
    }
}
