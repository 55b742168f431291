//! `Used`: how much of a fixed amount is taken, never more than all of it, not even for a moment.
//!
//! `tests/it/handover.rs` tries this with all orders of steps that two and three threads can have.

use super::sync::{AtomicUsize, Ordering};

/// A count from 0 to a maximum.
pub(crate) struct Used {
    used: AtomicUsize,
    max: usize,
}

impl Used {
    pub(crate) fn of(max: usize) -> Used {
        Used { used: AtomicUsize::new(0), max }
    }

    /// Takes all of `more` or nothing. What does not fit is never counted, so nobody is refused because of somebody
    /// who was refused as well.
    #[must_use]
    pub(crate) fn take(&self, more: usize) -> bool {
        let fits = |used: usize| used.checked_add(more).filter(|sum| *sum <= self.max);
        // In one order with everything else that is `SeqCst`, see `Budget::idle`.
        self.used.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fits).is_ok()
    }

    pub(crate) fn give_back(&self, less: usize) {
        self.used.fetch_sub(less, Ordering::AcqRel);
    }

    pub(crate) fn now(&self, order: Ordering) -> usize {
        self.used.load(order)
    }

    pub(crate) fn max(&self) -> usize {
        self.max
    }
}
