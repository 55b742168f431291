//! The functions that wait on the calling thread.

use std::sync::mpsc::{Receiver, RecvError, TryRecvError, sync_channel};

use serde::Serialize;

use crate::batch::Batch;
use crate::client::{Delivery, FlushReport, ProducerClient, Summary};
use crate::delivery::vanished;
use crate::error::{Failure, ProducerError};
use crate::tally::Tally;
use crate::wish::{Waiting, Wish};

/// A batch that is under way.
struct Pending {
    events: u64,
    outcome: Receiver<Result<Delivery, Failure>>,
    _waiting: Waiting,
}

impl ProducerClient {
    /// Sends one event. `Ok` also means spooled, if there is a spool.
    pub fn send_one<T: Serialize>(&self, event: &T) -> Result<(), ProducerError> {
        self.deliver(event).map(|_| ())
    }

    /// Sends a feed, in requests of bounded size. `Ok` also means spooled, if there is a spool.
    ///
    /// The feed is read while the request before is under way, so a feed that pauses holds back the events
    /// that are gathered already. If it fails, the error says how far it had come.
    pub fn send_iter<T, I>(&self, events: I) -> Result<(), ProducerError>
    where
        T: Serialize,
        I: IntoIterator<Item = T>,
    {
        self.deliver_iter(events).map(|_| ())
    }

    /// As [`send_one`](Self::send_one), and says where the event is now.
    ///
    /// ```
    /// use leitstand_producer::{Delivery, ProducerClient};
    ///
    /// # fn main() -> Result<(), leitstand_producer::ProducerError> {
    /// let dir = tempfile::tempdir().unwrap();
    /// // Nobody listens on port 1.
    /// let client = ProducerClient::builder("http://127.0.0.1:1").spool(dir.path().join("spool")).build()?;
    /// let delivery = client.deliver(&serde_json::json!({"domain": "example.com", "event": "demo"}))?;
    /// assert_eq!(delivery, Delivery::Spooled);
    /// # Ok(())
    /// # }
    /// ```
    pub fn deliver<T: Serialize>(&self, event: &T) -> Result<Delivery, ProducerError> {
        let mut encoder = self.encoder()?;
        let mut tally = Tally::default();
        let full = encoder.push(event).map_err(|error| tally.fail(error, 0, 1))?;
        let batch = full.or_else(|| encoder.take()).expect("one event was added");
        let pending = self.submit(batch).map_err(|failure| tally.fail(failure, 0, 1))?;
        pending.settle(&mut tally, 0)
    }

    /// As [`send_iter`](Self::send_iter), and says where the events are now.
    pub fn deliver_iter<T, I>(&self, events: I) -> Result<Summary, ProducerError>
    where
        T: Serialize,
        I: IntoIterator<Item = T>,
    {
        let mut encoder = self.encoder()?;
        let mut tally = Tally::default();
        let mut under_way: Option<Pending> = None;
        for event in events {
            let pushed = encoder.push(&event);
            // Told as soon as it is known: the feed may pause for long.
            if let Some(outcome) = under_way.as_ref().and_then(Pending::poll) {
                let events = under_way.take().map_or(0, |pending| pending.events);
                tally.settle(events, outcome, encoder.events() + behind(&pushed))?;
            }
            let full = match pushed {
                Ok(None) => continue,
                Ok(Some(full)) => full,
                Err(error) => {
                    let unsent = encoder.events() + 1;
                    if let Some(pending) = under_way.take() {
                        pending.settle(&mut tally, unsent)?;
                    }
                    return Err(tally.fail(error, 0, unsent));
                }
            };
            let unsent = encoder.events() + full.events;
            if let Some(pending) = under_way.take() {
                pending.settle(&mut tally, unsent)?;
            }
            under_way = Some(self.submit(full).map_err(|failure| tally.fail(failure, 0, unsent))?);
        }
        let last = encoder.take();
        let unsent = last.as_ref().map_or(0, |batch| batch.events);
        if let Some(pending) = under_way.take() {
            pending.settle(&mut tally, unsent)?;
        }
        if let Some(last) = last {
            let pending = self.submit(last).map_err(|failure| tally.fail(failure, 0, unsent))?;
            pending.settle(&mut tally, 0)?;
        }
        Ok(tally.summary())
    }

    /// Delivers what is in the spool, of all domains, whoever put it there. Each request is tried as often as
    /// without a spool, until one fails; a domain that fails holds no other up. After an error everything that
    /// was not acknowledged is still there, and [`ProducerError::failed_domains`] names the domains.
    pub fn flush(&self) -> Result<FlushReport, ProducerError> {
        let (told, outcome) = sync_channel(1);
        let (_waiting, wish) = Wish::new();
        self.start_flush(wish, move |report| drop(told.send(report)))?;
        outcome.recv().unwrap_or_else(|RecvError| Err(vanished().into()))
    }

    fn submit(&self, batch: Batch) -> Result<Pending, Failure> {
        let events = batch.events;
        let (told, outcome) = sync_channel(1);
        // Nobody listens any more when the caller has failed meanwhile.
        let (_waiting, wish) = Wish::new();
        self.start(batch, wish, move |result| drop(told.send(result)))?;
        Ok(Pending { events, outcome, _waiting })
    }
}

/// Events that `push` handed out, or refused.
fn behind<E>(pushed: &Result<Option<Batch>, E>) -> u64 {
    match pushed {
        Ok(full) => full.as_ref().map_or(0, |batch| batch.events),
        Err(_) => 1,
    }
}

impl Pending {
    fn poll(&self) -> Option<Result<Delivery, Failure>> {
        match self.outcome.try_recv() {
            Ok(outcome) => Some(outcome),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err(vanished())),
        }
    }

    fn settle(self, tally: &mut Tally, unsent: u64) -> Result<Delivery, ProducerError> {
        let outcome = self.outcome.recv().unwrap_or_else(|RecvError| Err(vanished()));
        tally.settle(self.events, outcome, unsent)
    }
}
