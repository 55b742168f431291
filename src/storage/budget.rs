//! `Reservation`: bytes in flight, bounded over all requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::error::StoreError;
use crate::metrics::StoreMetrics;

/// How often a drain looks whether everything has been given back.
const IDLE_POLL: Duration = Duration::from_millis(2);

/// Counts bytes that requests hold in memory, from the first body byte to the ack.
#[derive(Clone)]
pub(crate) struct Budget(Arc<Shared>);

struct Shared {
    used: AtomicUsize,
    bytes_max: usize,
    metrics: StoreMetrics,
}

/// A share of the byte budget; given back when dropped.
///
/// It travels with the bytes it stands for, into the writer, so a client that hangs up gives
/// nothing back early.
pub struct Reservation {
    budget: Budget,
    bytes: usize,
}

impl Budget {
    pub(crate) fn new(bytes_max: usize, metrics: StoreMetrics) -> Self {
        Budget(Arc::new(Shared { used: AtomicUsize::new(0), bytes_max, metrics }))
    }

    /// A reservation of at least one byte, to be grown as bytes arrive.
    pub(crate) fn reserve(&self, bytes: usize) -> Result<Reservation, StoreError> {
        let bytes = bytes.clamp(1, self.0.bytes_max);
        self.take(bytes)?;
        Ok(Reservation { budget: self.clone(), bytes })
    }

    pub(crate) fn bytes_max(&self) -> usize {
        self.0.bytes_max
    }

    pub(crate) fn bytes_used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Waits until nothing is reserved. For the end of the process and for a switch to read-only, so
    /// it just looks again.
    pub(crate) async fn idle(&self) {
        while self.0.used.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(IDLE_POLL).await;
        }
    }

    fn take(&self, bytes: usize) -> Result<(), StoreError> {
        // In one order with the switch to read-only: whoever reserved before `idle` looked is seen by
        // it, and whoever reserves later sees the switch.
        let before = self.0.used.fetch_add(bytes, Ordering::SeqCst);
        if before + bytes <= self.0.bytes_max {
            return Ok(());
        }
        self.give_back(bytes);
        let error = StoreError::Busy { in_flight_bytes_max: self.0.bytes_max };
        self.0.metrics.refused(&error);
        Err(error)
    }

    fn give_back(&self, bytes: usize) {
        self.0.used.fetch_sub(bytes, Ordering::AcqRel);
    }
}

impl Reservation {
    /// Makes the reservation at least `bytes` large. One that wants more than the whole budget
    /// takes the whole budget, so that it can succeed when it is alone.
    ///
    /// # Errors
    /// [`StoreError::Busy`]; the reservation stays as it was.
    pub fn grow_to(&mut self, bytes: usize) -> Result<(), StoreError> {
        let more = bytes.min(self.budget.bytes_max()).saturating_sub(self.bytes);
        if more > 0 {
            self.budget.take(more)?;
            self.bytes += more;
        }
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_in_flight_are_bounded_and_given_back() {
        let budget = Budget::new(100, StoreMetrics::new());
        let mut first = budget.reserve(1).unwrap();
        first.grow_to(60).unwrap();
        first.grow_to(10).unwrap();
        assert_eq!(budget.bytes_used(), 60);
        let mut second = budget.reserve(1).unwrap();
        assert!(matches!(second.grow_to(41).unwrap_err(), StoreError::Busy { in_flight_bytes_max: 100 }));
        assert_eq!(budget.bytes_used(), 61, "a refusal takes nothing");
        drop(first);
        second.grow_to(1000).unwrap();
        assert_eq!(budget.bytes_used(), 100, "alone, any size fits");
        assert!(budget.reserve(1).is_err());
        drop(second);
        assert_eq!(budget.bytes_used(), 0);
    }
}
