//! The functions that return futures. Any executor will do: the work is done on the client's thread.

use std::future::{Future as _, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;

use futures_core::Stream;
use serde::Serialize;
use tokio::sync::oneshot;

use crate::batch::Batch;
use crate::client::{Delivery, FlushReport, ProducerClient, Summary};
use crate::delivery::vanished;
use crate::error::{Failure, JsonError, ProducerError};
use crate::tally::Tally;
use crate::wish::{Waiting, Wish};

/// A batch that is under way.
struct Pending {
    events: u64,
    outcome: oneshot::Receiver<Result<Delivery, Failure>>,
    _waiting: Waiting,
}

/// What came next of a feed.
enum Step {
    Settled(Result<Delivery, Failure>),
    Pushed(Result<Option<Batch>, JsonError>),
    End,
}

impl ProducerClient {
    /// As `send_one`.
    ///
    /// When the future is dropped, no further attempt begins, but one that has begun goes on: the event may be
    /// written. With a spool the call goes to its end: the event is sent or spooled, if the program lives.
    pub async fn send_one_async<T: Serialize>(&self, event: &T) -> Result<(), ProducerError> {
        self.deliver_async(event).await.map(|_| ())
    }

    /// As `send_iter`, of a stream.
    pub async fn send_iter_async<T, S>(&self, events: S) -> Result<(), ProducerError>
    where
        T: Serialize,
        S: Stream<Item = T> + Send + Sync + 'static,
    {
        self.deliver_iter_async(events).await.map(|_| ())
    }

    /// As [`send_one_async`](Self::send_one_async), and says where the event is now.
    pub async fn deliver_async<T: Serialize>(&self, event: &T) -> Result<Delivery, ProducerError> {
        let mut encoder = self.encoder()?;
        let mut tally = Tally::default();
        let full = encoder.push(event).map_err(|error| tally.fail(error, 0, 1))?;
        let batch = full.or_else(|| encoder.take()).expect("one event was added");
        let pending = self.submit_async(batch).map_err(|failure| tally.fail(failure, 0, 1))?;
        pending.settle(&mut tally, 0).await
    }

    /// As [`send_iter_async`](Self::send_iter_async), and says where the events are now.
    pub async fn deliver_iter_async<T, S>(&self, events: S) -> Result<Summary, ProducerError>
    where
        T: Serialize,
        S: Stream<Item = T> + Send + Sync + 'static,
    {
        let mut events = pin!(events);
        let mut encoder = self.encoder()?;
        let mut tally = Tally::default();
        let mut under_way: Option<Pending> = None;
        loop {
            let step = poll_fn(|context| {
                // Told as soon as it is known: the feed may pause for long.
                if let Some(pending) = &mut under_way
                    && let Poll::Ready(outcome) = Pin::new(&mut pending.outcome).poll(context)
                {
                    return Poll::Ready(Step::Settled(outcome.unwrap_or_else(|_| Err(vanished()))));
                }
                events.as_mut().poll_next(context).map(|next| match next {
                    Some(event) => Step::Pushed(encoder.push(&event)),
                    None => Step::End,
                })
            });
            let full = match step.await {
                Step::Settled(outcome) => {
                    let sent = under_way.take().map_or(0, |pending| pending.events);
                    tally.settle(sent, outcome, encoder.events())?;
                    continue;
                }
                Step::Pushed(Ok(None)) => continue,
                Step::Pushed(Ok(Some(full))) => full,
                Step::Pushed(Err(error)) => {
                    let unsent = encoder.events() + 1;
                    if let Some(pending) = under_way.take() {
                        pending.settle(&mut tally, unsent).await?;
                    }
                    return Err(tally.fail(error, 0, unsent));
                }
                Step::End => break,
            };
            let unsent = encoder.events() + full.events;
            if let Some(pending) = under_way.take() {
                pending.settle(&mut tally, unsent).await?;
            }
            under_way = Some(self.submit_async(full).map_err(|failure| tally.fail(failure, 0, unsent))?);
        }
        let last = encoder.take();
        let unsent = last.as_ref().map_or(0, |batch| batch.events);
        if let Some(pending) = under_way.take() {
            pending.settle(&mut tally, unsent).await?;
        }
        if let Some(last) = last {
            let pending = self.submit_async(last).map_err(|failure| tally.fail(failure, 0, unsent))?;
            pending.settle(&mut tally, 0).await?;
        }
        Ok(tally.summary())
    }

    /// As `flush`. Dropped, it ends with the request that is under way; what was not acknowledged is still there.
    pub async fn flush_async(&self) -> Result<FlushReport, ProducerError> {
        let (told, outcome) = oneshot::channel();
        let (_waiting, wish) = Wish::new();
        self.start_flush(wish, move |report| drop(told.send(report)))?;
        outcome.await.unwrap_or_else(|_| Err(vanished().into()))
    }

    fn submit_async(&self, batch: Batch) -> Result<Pending, Failure> {
        let events = batch.events;
        let (told, outcome) = oneshot::channel();
        // Nobody listens any more when the future is dropped.
        let (_waiting, wish) = Wish::new();
        self.start(batch, wish, move |result| drop(told.send(result)))?;
        Ok(Pending { events, outcome, _waiting })
    }
}

impl Pending {
    async fn settle(self, tally: &mut Tally, unsent: u64) -> Result<Delivery, ProducerError> {
        let outcome = self.outcome.await.unwrap_or_else(|_| Err(vanished()));
        tally.settle(self.events, outcome, unsent)
    }
}
