//! What callers have: a client, and what its calls say.

use std::fmt;
use std::sync::Arc;

use crate::batch::{Batch, Encoder};
use crate::delivery::Core;
use crate::error::{Failure, Kind, ProducerError, Written};
use crate::settings::{ProducerBuilder, Settings, shown};
use crate::wish::Wish;

/// Sends events to one service. Cheap to clone; clones share connections and the spool.
#[derive(Clone)]
pub struct ProducerClient {
    state: Arc<State>,
}

enum State {
    Usable(Box<Core>),
    /// A setting is wrong, and there was no `Result` to say so.
    Unusable {
        url: String,
        what: String,
    },
}

/// Where events are now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The service has acknowledged them.
    Sent,
    /// They are in the spool, synced to disk, and go out with a later call or `flush`.
    Spooled,
}

/// What became of the events of a feed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// Acknowledged by the service.
    pub sent: u64,
    /// In the spool.
    pub spooled: u64,
}

/// What a flush of the spool did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
#[must_use]
pub struct FlushReport {
    /// Events that the service acknowledged.
    pub delivered: u64,
    /// Events that the service refused for good. They are in `rejected/`, with the answer in a `.reason`.
    /// Those that a call met since the last report are counted here too.
    pub rejected: u64,
    /// Files with lines that are no JSON objects; those lines are in `broken/`. Counted as `rejected` is.
    pub broken: u64,
    /// Domains that another process delivers right now.
    pub held_elsewhere: u64,
}

impl ProducerClient {
    /// A client for the service at this address, with everything else from the environment or by default:
    /// see [`ProducerBuilder`]. A setting that is wrong is told by every call.
    ///
    /// ```
    /// # use leitstand_producer::ProducerClient;
    /// let client = ProducerClient::new("http://localhost:8788");
    /// ```
    pub fn new(base_url: impl Into<String>) -> Self {
        ProducerBuilder::new(Some(base_url.into())).build_or_tell_later()
    }

    /// A client to be, for the service at this address.
    pub fn builder(base_url: impl Into<String>) -> ProducerBuilder {
        ProducerBuilder::new(Some(base_url.into()))
    }

    /// A client to be, for the service at `LEITSTAND_URL`, or at `http://localhost:8788`.
    pub fn from_env() -> ProducerBuilder {
        ProducerBuilder::new(None)
    }

    pub(crate) fn with(settings: Settings) -> ProducerClient {
        ProducerClient { state: Arc::new(State::Usable(Box::new(Core::new(settings)))) }
    }

    pub(crate) fn unusable(url: String, failure: &Failure) -> ProducerClient {
        let url = shown(&url).to_owned();
        ProducerClient { state: Arc::new(State::Unusable { url, what: failure.to_string() }) }
    }

    fn core(&self) -> Result<&Core, Failure> {
        match &*self.state {
            State::Usable(core) => Ok(core),
            State::Unusable { what, .. } => Err(Failure::new(Kind::Setting, what, Written::No, false)),
        }
    }

    /// Gathers the events of one call within the limits of a request.
    pub(crate) fn encoder(&self) -> Result<Encoder, ProducerError> {
        let settings = &self.core()?.settings;
        Ok(Encoder::new(settings.batch_bytes, settings.batch_events, settings.domain.as_deref()))
    }

    /// Starts to deliver a batch; `done` is called with what became of it.
    pub(crate) fn start(
        &self,
        batch: Batch,
        wish: Wish,
        done: impl FnOnce(Result<Delivery, Failure>) + Send + 'static,
    ) -> Result<(), Failure> {
        let live = self.core()?.live();
        let parts = live.parts();
        if parts.spool.is_some() {
            let live = live.clone();
            // Syncs and locks would hold up the connections of other callers.
            parts.workers.run(move || {
                if let Some(spool) = &live.parts().spool {
                    done(live.deliver_or_spool(spool, &batch));
                }
            });
        } else {
            let handle = live.handle()?;
            let live = live.clone();
            drop(handle.spawn(async move {
                let retries = live.parts().settings.retries;
                done(live.deliver(&batch, retries, &wish).await.map(|()| Delivery::Sent));
            }));
        }
        Ok(())
    }

    /// Starts to deliver what is in the spool.
    pub(crate) fn start_flush(
        &self,
        wish: Wish,
        done: impl FnOnce(Result<FlushReport, ProducerError>) + Send + 'static,
    ) -> Result<(), Failure> {
        let live = self.core()?.live();
        let flushed = live.clone();
        live.parts().workers.run(move || done(flushed.flush(&wish)));
        Ok(())
    }
}

/// The token is not shown.
impl fmt::Debug for ProducerClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.state {
            State::Usable(core) => f.debug_tuple("ProducerClient").field(&core.settings).finish(),
            State::Unusable { url, what } => {
                f.debug_struct("ProducerClient").field("url", url).field("wrong", what).finish()
            }
        }
    }
}
