//! `Inline`: when a thread that serves connections may write by itself, and what happens if such a write hangs.
//!
//! Without a sync before the answer a write is a copy into the page cache, and a thread of its own for it would cost
//! more than the write (ADR 0010). But it may hang like any call to a disk. Nothing can take a thread out of
//! it, so the harm is bounded: two looks, of which there is one every half second, see it, and from then on no thread that serves
//! connections writes, until the disk was quick for [`SLOW_FOR`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::lane::PerLane;

/// A write that takes so long is slow. Less may be a thread that waits for a processor.
pub(crate) const SLOW_WRITE: Duration = Duration::from_millis(500);
/// After a slow one, so long nobody writes on a thread that serves connections.
pub(crate) const SLOW_FOR: Duration = Duration::from_secs(15);

/// A write that hangs has begun at least so long ago.
const LOOKS_APART_MS: u64 = 250;

pub(crate) struct Inline {
    started: Instant,
    /// Milliseconds after `started`, and one, when the write under way began; 0: there is none. Threads that
    /// share a lane may hide each other's for a moment.
    since_ms: PerLane<AtomicU64>,
    /// The same at the last look.
    seen_ms: PerLane<AtomicU64>,
    /// Milliseconds after `started`.
    slow_until_ms: AtomicU64,
}

impl Inline {
    pub(crate) fn new() -> Inline {
        let zero = AtomicU64::default;
        Inline {
            started: Instant::now(),
            since_ms: PerLane::new(zero),
            seen_ms: PerLane::new(zero),
            slow_until_ms: zero(),
        }
    }

    /// `None`: write elsewhere.
    pub(crate) fn begin(&self, now: Instant) -> Option<Under<'_>> {
        let now_ms = self.ms(now);
        if now_ms < self.slow_until_ms.load(Ordering::Relaxed) {
            return None;
        }
        let since_ms = self.since_ms.here();
        since_ms.store(now_ms + 1, Ordering::Relaxed);
        Some(Under(since_ms))
    }

    /// Is this the time after a slow write?
    pub(crate) fn is_off(&self, now: Instant) -> bool {
        self.ms(now) < self.slow_until_ms.load(Ordering::Relaxed)
    }

    /// A write was slow.
    pub(crate) fn was_slow(&self, now: Instant) {
        let was_off = self.is_off(now);
        self.slow_until_ms.fetch_max(self.ms(now + SLOW_FOR), Ordering::Relaxed);
        if !was_off {
            tracing::warn!("the disk is slow: for a while, events are written on threads of their own");
        }
    }

    /// Looks whether one hangs: whether two looks see the same one.
    pub(crate) fn look(&self, now: Instant) {
        let mut hangs = false;
        for (since_ms, seen_ms) in self.since_ms.iter().zip(self.seen_ms.iter()) {
            let since = since_ms.load(Ordering::Relaxed);
            hangs |=
                since > 0 && seen_ms.swap(since, Ordering::Relaxed) == since && self.ms(now) >= since + LOOKS_APART_MS;
        }
        if hangs {
            self.was_slow(now);
        }
    }

    fn ms(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.started).as_millis() as u64
    }
}

/// While it is written.
pub(crate) struct Under<'a>(&'a AtomicU64);

impl Drop for Under<'_> {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Relaxed);
    }
}
