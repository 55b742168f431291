//! What becomes of a batch: attempts, pauses, the spool.

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use crate::attempt::Attempts;
use crate::batch::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX, Batch, Encoder, first_domain, normal_domain};
use crate::engine::Engine;
use crate::error::{Failure, Kind, ProducerError, Progress, Written};
use crate::settings::{ProducerBuilder, Settings};
use crate::spool::{Locked, Spool};

/// Longest random part of a pause.
const PAUSE_MAX: Duration = Duration::from_secs(30);

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
    /// Files that are not lines of JSON objects. They are in `broken/`. Counted as `rejected` is.
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

    pub(crate) fn with(settings: Settings) -> Result<ProducerClient, Failure> {
        Ok(ProducerClient { state: Arc::new(State::Usable(Box::new(Core::new(settings)?))) })
    }

    pub(crate) fn unusable(url: String, failure: &Failure) -> ProducerClient {
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
        Ok(Encoder::new(settings.batch_bytes, settings.batch_events))
    }

    /// Starts to deliver a batch; `done` is called with what became of it.
    pub(crate) fn start(
        &self,
        batch: Batch,
        done: impl FnOnce(Result<Delivery, Failure>) + Send + 'static,
    ) -> Result<(), Failure> {
        let core = self.core()?;
        let handle = core.handle()?;
        let this = self.clone();
        if core.spool.is_some() {
            let runtime = handle.clone();
            // Syncs and locks would hold up the connections of other callers.
            drop(handle.spawn_blocking(move || {
                done(this.core().and_then(|core| core.deliver_or_spool(&runtime, &batch)));
            }));
        } else {
            drop(handle.spawn(async move {
                done(match this.core() {
                    Ok(core) => core
                        .deliver(core.settings.domain.as_deref(), &batch, core.settings.retries)
                        .await
                        .map(|()| Delivery::Sent),
                    Err(failure) => Err(failure),
                });
            }));
        }
        Ok(())
    }

    /// Starts to deliver what is in the spool.
    pub(crate) fn start_flush(
        &self,
        done: impl FnOnce(Result<FlushReport, Failure>) + Send + 'static,
    ) -> Result<(), Failure> {
        let handle = self.core()?.handle()?;
        let (this, runtime) = (self.clone(), handle.clone());
        drop(handle.spawn_blocking(move || done(this.core().and_then(|core| core.flush(&runtime)))));
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

/// What all clones share.
struct Core {
    settings: Settings,
    attempts: Attempts,
    spool: Option<Spool>,
    engine: Mutex<Option<Engine>>,
    /// With a spool, nobody tries before this time.
    quiet_until: Mutex<Option<Instant>>,
    rejected: AtomicU64,
    broken: AtomicU64,
}

/// How the delivery of one domain of the spool ended.
enum Flushed {
    /// Everything that was there is gone: this many events were acknowledged.
    Empty(u64),
    HeldElsewhere,
}

impl Core {
    fn new(settings: Settings) -> Result<Core, Failure> {
        let spool = match &settings.spool {
            Some((directory, max_bytes)) => {
                let opened = Spool::open(directory.clone(), *max_bytes);
                Some(opened.map_err(|e| Failure { retryable: false, ..Failure::spool(e, None) })?)
            }
            None => None,
        };
        Ok(Core {
            attempts: Attempts::new(settings.clone())?,
            settings,
            spool,
            engine: Mutex::new(None),
            quiet_until: Mutex::new(None),
            rejected: AtomicU64::new(0),
            broken: AtomicU64::new(0),
        })
    }

    /// The thread of this client; started with the first call.
    fn handle(&self) -> Result<Handle, Failure> {
        let mut engine = self.engine.lock().expect("no panic while it is held");
        if engine.is_none() {
            let started = Engine::start();
            let started = started
                .map_err(|e| Failure::new(Kind::Connect, format!("cannot start a thread: {e}"), Written::No, true))?;
            *engine = Some(started);
        }
        Ok(engine.as_ref().expect("started above").handle().clone())
    }

    /// Attempts, with pauses between them; at most `retries` after the first.
    async fn deliver(&self, domain: Option<&str>, batch: &Batch, retries: u32) -> Result<(), Failure> {
        let mut written = Written::No;
        let mut made = 0;
        loop {
            let mut failure = match self.attempts.make(domain, batch).await {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            // A later "not written" is about its own attempt only.
            if failure.written == Written::Maybe {
                written = Written::Maybe;
            }
            failure.written = written;
            if !failure.retryable || made == retries {
                return Err(failure);
            }
            tokio::time::sleep(pause(self.settings.backoff, made, failure.retry_after)).await;
            made += 1;
        }
    }

    /// With a spool: one attempt, behind what the spool holds, and else into the spool.
    fn deliver_or_spool(&self, runtime: &Handle, batch: &Batch) -> Result<Delivery, Failure> {
        let spool = self.spool.as_ref().expect("asked for with a spool only");
        let domain = self.settings.domain.clone().or_else(|| first_domain(&batch.lines));
        let domain = domain.as_deref().and_then(normal_domain).ok_or_else(|| {
            Failure::setting("domain", "with a spool, the client or the first event must name a valid one")
        })?;
        let cause = match self.try_now(runtime, spool, &domain, batch) {
            Ok(Some(delivery)) => return Ok(delivery),
            Ok(None) => None,
            Err(failure) if failure.retryable && failure.kind != Kind::Spool => Some(failure),
            Err(failure) => return Err(failure),
        };
        match spool.append(&domain, &batch.lines) {
            Ok(()) => Ok(Delivery::Spooled),
            Err(e) => Err(Failure::spool(e, cause)),
        }
    }

    /// Delivers what is in front of a batch, and then the batch. `None`: it is not its turn.
    fn try_now(
        &self,
        runtime: &Handle,
        spool: &Spool,
        domain: &str,
        batch: &Batch,
    ) -> Result<Option<Delivery>, Failure> {
        if self.is_quiet() {
            return Ok(None);
        }
        if spool.holds(domain).map_err(|e| Failure::spool(e, None))? {
            match self.flush_domain(runtime, spool, domain, 0) {
                Ok(Flushed::Empty(_)) => {}
                Ok(Flushed::HeldElsewhere) => return Ok(None),
                // It was about other events; these were not sent.
                Err(failure) => return Err(Failure { written: Written::No, ..failure }),
            }
        }
        self.attempt(runtime, domain, batch, 0).map(|()| Some(Delivery::Sent))
    }

    fn is_quiet(&self) -> bool {
        let quiet_until = *self.quiet_until.lock().expect("no panic while it is held");
        quiet_until.is_some_and(|until| Instant::now() < until)
    }

    /// With a spool: attempts. After a failure that may pass, calls leave the service alone for a while,
    /// and for as long as it has asked for.
    fn attempt(&self, runtime: &Handle, domain: &str, batch: &Batch, retries: u32) -> Result<(), Failure> {
        let result = runtime.block_on(self.deliver(Some(domain), batch, retries));
        let quiet_until = match &result {
            Err(failure) if failure.retryable => {
                Some(Instant::now() + self.settings.backoff.max(failure.retry_after.unwrap_or_default()))
            }
            _ => None,
        };
        *self.quiet_until.lock().expect("no panic while it is held") = quiet_until;
        result
    }

    fn flush(&self, runtime: &Handle) -> Result<FlushReport, Failure> {
        let mut report = FlushReport::default();
        if let Some(spool) = &self.spool {
            for domain in spool.domains().map_err(|e| Failure::spool(e, None))? {
                match self.flush_domain(runtime, spool, &domain, self.settings.retries)? {
                    Flushed::Empty(delivered) => report.delivered += delivered,
                    Flushed::HeldElsewhere => report.held_elsewhere += 1,
                }
            }
        }
        report.rejected = self.rejected.swap(0, Ordering::Relaxed);
        report.broken = self.broken.swap(0, Ordering::Relaxed);
        Ok(report)
    }

    fn flush_domain(&self, runtime: &Handle, spool: &Spool, domain: &str, retries: u32) -> Result<Flushed, Failure> {
        let Some(locked) = spool.lock(domain).map_err(|e| Failure::spool(e, None))? else {
            return Ok(Flushed::HeldElsewhere);
        };
        let drain = Drain { core: self, runtime, domain, locked, retries };
        drain.run().map(Flushed::Empty)
    }
}

/// The delivery of one domain of the spool, under its lock.
struct Drain<'a> {
    core: &'a Core,
    runtime: &'a Handle,
    domain: &'a str,
    locked: Locked,
    /// Attempts of each request after the first.
    retries: u32,
}

/// Files that go in one request.
#[derive(Default)]
struct Joined {
    names: Vec<String>,
    /// The length of each file in `lines`.
    lengths: Vec<usize>,
    lines: Vec<u8>,
    events: usize,
}

impl Drain<'_> {
    /// Sends everything; says how many events were acknowledged.
    fn run(&self) -> Result<u64, Failure> {
        let broken = |e| Failure::spool(e, None);
        self.locked.remove_left_over().map_err(broken)?;
        let mut delivered = 0;
        loop {
            let names = self.locked.names().map_err(broken)?;
            if names.is_empty() {
                return Ok(delivered);
            }
            let mut joined = Joined::default();
            for name in names {
                let Some(lines) = self.locked.read(&name).map_err(broken)? else {
                    self.locked.set_aside(&name).map_err(broken)?;
                    self.core.broken.fetch_add(1, Ordering::Relaxed);
                    continue;
                };
                let events = lines.iter().filter(|b| **b == b'\n').count();
                let fits =
                    joined.lines.len() + lines.len() <= BATCH_BYTES_MAX && joined.events + events <= BATCH_EVENTS_MAX;
                if !fits && !joined.names.is_empty() {
                    delivered += self.send(std::mem::take(&mut joined))?;
                }
                joined.names.push(name);
                joined.lengths.push(lines.len());
                joined.lines.extend_from_slice(&lines);
                joined.events += events;
            }
            if !joined.names.is_empty() {
                delivered += self.send(joined)?;
            }
            // Others may have put events behind meanwhile.
        }
    }

    /// Sends files in one request; if that is refused, file by file, and then event by event.
    fn send(&self, joined: Joined) -> Result<u64, Failure> {
        let batch = Batch { lines: joined.lines.into(), events: joined.events as u64 };
        let failure = match self.core.attempt(self.runtime, self.domain, &batch, self.retries) {
            Ok(()) => {
                self.locked.remove(&joined.names).map_err(|e| Failure::spool(e, None))?;
                return Ok(batch.events);
            }
            Err(failure) if is_about_events(&failure) => failure,
            Err(failure) => return Err(failure),
        };
        let [name] = &joined.names[..] else {
            let mut delivered = 0;
            let mut start = 0;
            for (name, length) in joined.names.into_iter().zip(joined.lengths) {
                let lines = batch.lines[start..start + length].to_vec();
                start += length;
                let events = lines.iter().filter(|b| **b == b'\n').count();
                delivered += self.send(Joined { names: vec![name], lengths: vec![length], lines, events })?;
            }
            return Ok(delivered);
        };
        if batch.events == 1 {
            self.reject(name, &batch.lines, &reason(&failure))?;
            return Ok(0);
        }
        self.send_each(name, &batch)
    }

    fn send_each(&self, name: &str, batch: &Batch) -> Result<u64, Failure> {
        let mut delivered = 0;
        let mut refused = Vec::new();
        let mut reasons = String::new();
        let mut start = 0;
        while start < batch.lines.len() {
            let length = 1 + batch.lines[start..].iter().position(|b| *b == b'\n').expect("a line ends in a newline");
            let line = batch.lines.slice(start..start + length);
            match self.core.attempt(self.runtime, self.domain, &Batch { lines: line.clone(), events: 1 }, self.retries)
            {
                Ok(()) => delivered += 1,
                Err(failure) if is_about_events(&failure) => {
                    refused.extend_from_slice(&line);
                    reasons.push_str(&reason(&failure));
                }
                Err(failure) => {
                    // What is done must not be sent again by the next delivery.
                    let broken = |e| Failure::spool(e, None);
                    if !refused.is_empty() {
                        self.locked.reject(name, &refused, &reasons).map_err(broken)?;
                        self.count_rejected(&refused);
                    }
                    self.locked.keep(name, &batch.lines[start..]).map_err(broken)?;
                    return Err(failure);
                }
            }
            start += length;
        }
        self.reject(name, &refused, &reasons)?;
        Ok(delivered)
    }

    /// Moves refused lines of a file aside; the rest of it is delivered.
    fn reject(&self, name: &str, refused: &[u8], reasons: &str) -> Result<(), Failure> {
        let broken = |e| Failure::spool(e, None);
        if !refused.is_empty() {
            self.locked.reject(name, refused, reasons).map_err(broken)?;
            self.count_rejected(refused);
        }
        self.locked.remove(&[name.to_owned()]).map_err(broken)
    }

    fn count_rejected(&self, lines: &[u8]) {
        let events = lines.iter().filter(|b| **b == b'\n').count();
        self.core.rejected.fetch_add(events as u64, Ordering::Relaxed);
    }
}

/// Is this answer about the events, and not about the token, the address or the service?
fn is_about_events(failure: &Failure) -> bool {
    matches!(failure.status, Some(400 | 413 | 422))
}

/// One line for the `.reason` file.
fn reason(failure: &Failure) -> String {
    let text = failure.text.as_deref().unwrap_or_default().replace(['\n', '\r'], " ");
    let id = failure.request_id.as_deref().map(|id| format!(" (request {id})")).unwrap_or_default();
    format!("{} {}{id}\n", failure.status.unwrap_or_default(), text.trim())
}

/// A random time up to `backoff` × 2ᵐᵃᵈᵉ, on top of what the service asked for.
fn pause(backoff: Duration, made: u32, retry_after: Option<Duration>) -> Duration {
    let most = backoff.saturating_mul(2u32.saturating_pow(made)).min(PAUSE_MAX);
    // A fresh hasher is keyed at random; 53 bits are what a double can hold.
    let bits = RandomState::new().hash_one(made) >> 11;
    let fraction = bits as f64 / (1u64 << 53) as f64;
    retry_after.unwrap_or_default() + most.mul_f64(fraction)
}

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

/// What is told when the thread of a client ended without a word.
pub(crate) fn vanished() -> Failure {
    Failure::new(Kind::Broken, "the thread of this client has ended", Written::Maybe, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, many clients would come back at the same moment, or one would wait for hours.
    #[test]
    fn pauses_are_spread_and_bounded() {
        let second = Duration::from_secs(1);
        let pauses: Vec<_> = (0..200).map(|_| pause(second, 2, None)).collect();
        assert!(pauses.iter().all(|time| *time < 4 * second));
        assert!(pauses.iter().any(|time| *time < second) && pauses.iter().any(|time| *time > 3 * second));
        assert!((0..200).all(|made| pause(second, made, None) <= PAUSE_MAX));
        assert!(pause(second, 0, Some(5 * second)) >= 5 * second);
    }
}
