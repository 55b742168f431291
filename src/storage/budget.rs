//! `Reservation`: bytes in flight, bounded over all requests.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::StoreError;

/// Counts bytes that requests hold in memory, from the first body byte to the ack.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    free: Arc<Semaphore>,
    bytes_max: usize,
}

/// A share of the byte budget; given back when dropped.
///
/// It travels with the bytes it stands for, into the writer, so a client that hangs up gives
/// nothing back early.
#[derive(Debug)]
pub struct Reservation {
    budget: Budget,
    permit: OwnedSemaphorePermit,
}

impl Budget {
    pub(crate) fn new(bytes_max: usize) -> Self {
        let bytes_max = bytes_max.clamp(1, u32::MAX as usize);
        Budget { free: Arc::new(Semaphore::new(bytes_max)), bytes_max }
    }

    /// A reservation of one byte, to be grown as bytes arrive.
    pub(crate) fn reserve(&self) -> Result<Reservation, StoreError> {
        let permit = self.free.clone().try_acquire_owned().map_err(|_| self.busy())?;
        Ok(Reservation { budget: self.clone(), permit })
    }

    pub(crate) fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    pub(crate) fn bytes_used(&self) -> usize {
        self.bytes_max - self.free.available_permits()
    }

    /// Waits until nothing is reserved.
    pub(crate) async fn idle(&self) {
        // Fails only when the semaphore is closed, which nobody does.
        let _ = self.free.acquire_many(self.bytes_max as u32).await;
    }

    fn busy(&self) -> StoreError {
        StoreError::Busy { in_flight_bytes_max: self.bytes_max }
    }
}

impl Reservation {
    /// Makes the reservation at least `bytes` large. One that wants more than the whole budget
    /// takes the whole budget, so that it can succeed when it is alone.
    ///
    /// # Errors
    /// [`StoreError::Busy`]; the reservation stays as it was.
    pub fn grow_to(&mut self, bytes: usize) -> Result<(), StoreError> {
        let want = bytes.min(self.budget.bytes_max);
        let Some(more) = want.checked_sub(self.permit.num_permits()).filter(|&n| n > 0) else {
            return Ok(());
        };
        let more = self.budget.free.clone().try_acquire_many_owned(more as u32).map_err(|_| self.budget.busy())?;
        self.permit.merge(more);
        Ok(())
    }
}
