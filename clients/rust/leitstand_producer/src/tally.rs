//! How far a feed has come.

use crate::client::{Delivery, Summary};
use crate::error::{Failure, ProducerError, Progress};

/// Counts the outcome of a feed, batch by batch.
#[derive(Default)]
pub(crate) struct Tally {
    summary: Summary,
}

impl Tally {
    pub fn summary(&self) -> Summary {
        self.summary
    }

    /// Adds what became of a batch; `unsent` events were gathered behind it.
    pub fn settle(
        &mut self,
        events: u64,
        outcome: Result<Delivery, Failure>,
        unsent: u64,
    ) -> Result<Delivery, ProducerError> {
        match outcome {
            Ok(Delivery::Sent) => self.summary.sent += events,
            Ok(Delivery::Spooled) => self.summary.spooled += events,
            Err(failure) => return Err(self.fail(failure, events, unsent)),
        }
        outcome.map_err(ProducerError::from)
    }

    /// The error of a call, with how far it had come.
    pub fn fail(&self, error: impl Into<ProducerError>, failed: u64, unsent: u64) -> ProducerError {
        let Summary { sent, spooled } = self.summary;
        error.into().with(Progress { acknowledged: sent, spooled, failed, unsent })
    }
}
