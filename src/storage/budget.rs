//! `Reservation`: bytes in flight, bounded over all requests.
//!
//! Whoever holds bytes of a request holds the reservation for them too, on whatever thread: it is taken before the
//! bytes are, and given back after them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::error::StoreError;
use super::share::Used;
use crate::metrics::StoreMetrics;

/// How often a drain looks whether everything has been given back.
const IDLE_POLL: Duration = Duration::from_millis(2);

/// Counts bytes that requests hold in memory, from the first body byte to the ack.
#[derive(Clone)]
pub(crate) struct Budget(Arc<Shared>);

struct Shared {
    used: Used,
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
        Budget(Arc::new(Shared { used: Used::of(bytes_max), metrics }))
    }

    /// A reservation of at least one byte, to be grown as bytes arrive.
    pub(crate) fn reserve(&self, bytes: usize) -> Result<Reservation, StoreError> {
        let bytes = bytes.clamp(1, self.bytes_max());
        self.take(bytes)?;
        Ok(Reservation { budget: self.clone(), bytes })
    }

    pub(crate) fn bytes_max(&self) -> usize {
        self.0.used.max()
    }

    pub(crate) fn bytes_used(&self) -> usize {
        self.0.used.now(Ordering::Relaxed)
    }

    /// Waits until nothing is reserved. For the end of the process and for a switch to read-only, so
    /// it just looks again.
    pub(crate) async fn idle(&self) {
        while self.0.used.now(Ordering::SeqCst) > 0 {
            tokio::time::sleep(IDLE_POLL).await;
        }
    }

    fn take(&self, bytes: usize) -> Result<(), StoreError> {
        // Whoever reserved before `idle` looked is seen by it, and whoever reserves later sees the switch.
        if self.0.used.take(bytes) { Ok(()) } else { Err(self.refuse()) }
    }

    fn refuse(&self) -> StoreError {
        let error = StoreError::Busy { in_flight_bytes_max: self.bytes_max() };
        self.0.metrics.refused(&error);
        error
    }

    fn give_back(&self, bytes: usize) {
        self.0.used.give_back(bytes);
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

    /// As [`Reservation::grow_to`], for who has another way to go on: a refusal is not counted, and more
    /// than the whole budget is refused too.
    pub(crate) fn try_grow_to(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        let fits = more == 0 || self.budget.0.used.take(more);
        self.bytes += if fits { more } else { 0 };
        fits
    }

    /// Gives back what is above `bytes`, once it is no longer in memory. At least one byte stays.
    pub(crate) fn shrink_to(&mut self, bytes: usize) {
        let less = self.bytes.saturating_sub(bytes.max(1));
        if less > 0 {
            self.budget.give_back(less);
            self.bytes -= less;
        }
    }

    /// The refusal for who cannot go on after [`Reservation::try_grow_to`]; it is counted.
    pub(crate) fn refuse(&self) -> StoreError {
        self.budget.refuse()
    }

    /// Of a budget that nobody shares, for tests.
    #[cfg(test)]
    pub(crate) fn alone(bytes_max: usize) -> Reservation {
        Budget::new(bytes_max, StoreMetrics::new()).reserve(1).expect("nothing is reserved")
    }

    /// The whole budget: who needs more than that can never have it.
    pub(crate) fn bytes_max(&self) -> usize {
        self.budget.bytes_max()
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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

    proptest! {
        /// Broken, the gauge would differ from what is held, or go above the budget.
        #[test]
        fn what_is_counted_is_what_is_held(steps in proptest::collection::vec((0..4usize, 0..5u8, 0..150usize), 0..60)) {
            let budget = Budget::new(100, StoreMetrics::new());
            let mut held: [Option<Reservation>; 4] = [const { None }; 4];
            for (place, step, bytes) in steps {
                let before = budget.bytes_used();
                let place = &mut held[place];
                match (step, place.as_mut()) {
                    (0, _) => *place = None,
                    (_, None) => {
                        if let Ok(reservation) = budget.reserve(bytes) {
                            *place = Some(reservation);
                        } else {
                            prop_assert!(before + bytes.clamp(1, 100) > 100);
                        }
                    }
                    (1, Some(reservation)) => reservation.shrink_to(bytes),
                    (2, Some(reservation)) => {
                        let more = bytes.saturating_sub(reservation.bytes);
                        prop_assert_eq!(reservation.try_grow_to(bytes), before + more <= 100);
                    }
                    (_, Some(reservation)) => {
                        let more = bytes.min(100).saturating_sub(reservation.bytes);
                        prop_assert_eq!(reservation.grow_to(bytes).is_ok(), before + more <= 100);
                    }
                }
                let sum = held.iter().flatten().map(|reservation| reservation.bytes).sum::<usize>();
                prop_assert_eq!(budget.bytes_used(), sum);
                prop_assert!(sum <= 100);
            }
        }
    }
}
