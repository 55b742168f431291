//! What becomes of a batch: attempts, pauses, the spool.

use std::hash::{BuildHasher as _, RandomState};
use std::mem;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::runtime::Handle;

use crate::attempt::Attempts;
use crate::batch::Batch;
use crate::client::{Delivery, FlushReport};
use crate::drain::Drain;
use crate::error::{Failure, Kind, ProducerError, Progress, Written};
use crate::settings::Settings;
use crate::spool::Spool;
use crate::threads::{Engine, Workers};
use crate::wish::Wish;

/// Longest random part of a pause.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// What all clones share, in all processes that were forked from the first.
pub(crate) struct Core {
    pub settings: Arc<Settings>,
    live: ArcSwap<Live>,
}

impl Core {
    pub fn new(settings: Settings) -> Core {
        let settings = Arc::new(settings);
        let live = Live::new(settings.clone());
        if let Some(spool) = &live.parts().spool {
            // Told by `flush`, and by every call whose events it should take: it does not stop sending.
            let _ = spool.prepare();
        }
        Core { settings, live: ArcSwap::from_pointee(live) }
    }

    /// Threads, connections and locks of this process. What another one has is never touched: its threads
    /// are not here, its locks may be held for ever, and its connections are still in use there.
    pub fn live(&self) -> Arc<Live> {
        let live = self.live.load_full();
        if live.process == process::id() {
            return live;
        }
        let fresh = Arc::new(Live::new(self.settings.clone()));
        let before = self.live.compare_and_swap(&live, fresh.clone());
        if !Arc::ptr_eq(&before, &live) {
            // Another thread of this process was first.
            return before.clone();
        }
        if let Some(spool) = &live.parts().spool {
            spool.close_locks_of_another_process();
        }
        fresh
    }
}

/// What a client has in one process.
pub(crate) struct Live {
    process: u32,
    /// Taken out when this is dropped, and never else.
    parts: Option<Box<Parts>>,
}

pub(crate) struct Parts {
    pub settings: Arc<Settings>,
    attempts: Attempts,
    pub spool: Option<Spool>,
    engine: Mutex<Option<Engine>>,
    pub workers: Workers,
    /// With a spool, nobody tries before this time.
    quiet_until: Mutex<Option<Instant>>,
    pub rejected: AtomicU64,
    pub broken: AtomicU64,
}

impl Drop for Live {
    fn drop(&mut self) {
        if self.process != process::id() {
            // To end what belongs to another process could wait for its threads.
            mem::forget(self.parts.take());
        }
    }
}

/// A panic while it is held leaves nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How the delivery of one domain of the spool ended.
enum Flushed {
    /// Everything that was there is gone.
    Empty,
    HeldElsewhere,
}

impl Live {
    fn new(settings: Arc<Settings>) -> Live {
        let parts = Parts {
            attempts: Attempts::new(settings.clone()),
            spool: settings.spool.clone().map(|(directory, max_bytes)| Spool::new(directory, max_bytes)),
            settings,
            engine: Mutex::default(),
            workers: Workers::default(),
            quiet_until: Mutex::default(),
            rejected: AtomicU64::new(0),
            broken: AtomicU64::new(0),
        };
        Live { process: process::id(), parts: Some(Box::new(parts)) }
    }

    pub fn parts(&self) -> &Parts {
        self.parts.as_ref().expect("there until it is dropped")
    }

    /// The thread for connections; started with the first call.
    pub fn handle(&self) -> Result<Handle, Failure> {
        let mut engine = lock(&self.parts().engine);
        let running = match engine.take() {
            Some(running) => running,
            None => Engine::start()
                .map_err(|e| Failure::new(Kind::Connect, format!("cannot start a thread: {e}"), Written::No, true))?,
        };
        Ok(engine.insert(running).handle().clone())
    }

    /// Attempts, with pauses between them; at most `retries` after the first, and none when nobody waits.
    pub async fn deliver(&self, batch: &Batch, retries: u32, wish: &Wish) -> Result<(), Failure> {
        let mut written = Written::No;
        let mut made = 0;
        loop {
            if wish.is_gone() {
                return Err(Failure::new(Kind::Timeout, "nobody waits for it any longer", written, true));
            }
            let mut failure = match self.parts().attempts.make(batch).await {
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
            let time = pause(self.parts().settings.backoff, made, failure.retry_after);
            if !wish.sleep(time).await {
                return Err(failure);
            }
            made += 1;
        }
    }

    /// With a spool: one attempt, behind what the spool holds, and else into the spool. Once it has begun it
    /// goes to its end, whoever waits.
    pub fn deliver_or_spool(self: &Arc<Live>, spool: &Spool, batch: &Batch) -> Result<Delivery, Failure> {
        let Some(domain) = batch.domain.as_deref() else {
            let why = "with a spool, the client or the first event must name a valid one";
            return Err(Failure::setting("domain", why));
        };
        let cause = match self.try_now(spool, domain, batch) {
            Ok(Some(delivery)) => return Ok(delivery),
            Ok(None) => None,
            Err(failure) if failure.retryable => Some(failure),
            Err(failure) => return Err(failure),
        };
        match spool.append(domain, &batch.lines) {
            Ok(()) => Ok(Delivery::Spooled),
            Err(e) => Err(Failure::append(e, cause)),
        }
    }

    /// Delivers what is in front of a batch, and then the batch. `None`: it is not its turn.
    fn try_now(self: &Arc<Live>, spool: &Spool, domain: &str, batch: &Batch) -> Result<Option<Delivery>, Failure> {
        if self.is_quiet() {
            return Ok(None);
        }
        // A spool in trouble holds nothing up; the next flush tells.
        if spool.prepare().and_then(|()| spool.holds(domain)).unwrap_or(false) {
            match self.flush_domain(spool, domain, 0, &Wish::default(), &mut 0) {
                Ok(Flushed::HeldElsewhere) => return Ok(None),
                Ok(Flushed::Empty) => {}
                Err(failure) if failure.kind == Kind::Spool => {}
                // It was about other events; these were not sent.
                Err(failure) => return Err(Failure { written: Written::No, ..failure }),
            }
        }
        self.attempt(batch, 0, &Wish::default()).map(|()| Some(Delivery::Sent))
    }

    fn is_quiet(&self) -> bool {
        lock(&self.parts().quiet_until).is_some_and(|until| Instant::now() < until)
    }

    /// With a spool: attempts. After a failure that may pass, calls leave the service alone for a while,
    /// and for as long as it has asked for.
    pub fn attempt(self: &Arc<Live>, batch: &Batch, retries: u32, wish: &Wish) -> Result<(), Failure> {
        let result = self.handle().and_then(|handle| {
            let (told, outcome) = sync_channel(1);
            let (live, batch, wish) = (self.clone(), batch.clone(), wish.clone());
            drop(handle.spawn(async move {
                let result = live.deliver(&batch, retries, &wish).await;
                // Whoever asked waits below.
                let _ = told.send(result);
            }));
            outcome.recv().unwrap_or_else(|_| Err(vanished()))
        });
        let quiet_until = match &result {
            Err(failure) if failure.retryable => {
                Some(Instant::now() + self.parts().settings.backoff.max(failure.retry_after.unwrap_or_default()))
            }
            _ => None,
        };
        *lock(&self.parts().quiet_until) = quiet_until;
        result
    }

    /// Delivers what is in the spool, of all domains. One that fails holds no other up.
    pub fn flush(self: &Arc<Live>, wish: &Wish) -> Result<FlushReport, ProducerError> {
        let mut report = FlushReport::default();
        let mut failures = Vec::new();
        if let Some(spool) = &self.parts().spool {
            let mut retries = self.parts().settings.retries;
            let domains = spool.prepare().and_then(|()| spool.domains()).map_err(|e| Failure::spool(e, None))?;
            for domain in domains {
                if wish.is_gone() {
                    break;
                }
                spool.try_again(&domain);
                match self.flush_domain(spool, &domain, retries, wish, &mut report.delivered) {
                    Ok(Flushed::Empty) => {}
                    Ok(Flushed::HeldElsewhere) => report.held_elsewhere += 1,
                    Err(failure) => {
                        let nobody_there = failure.kind == Kind::Connect;
                        if failure.retryable {
                            retries = 0;
                        }
                        failures.push((domain, failure));
                        if nobody_there {
                            break;
                        }
                    }
                }
            }
        }
        if let Some(failure) = Failure::of_domains(failures) {
            let progress = Progress { acknowledged: report.delivered, ..Progress::default() };
            return Err(ProducerError::from(failure).with(progress));
        }
        report.rejected = self.parts().rejected.swap(0, Ordering::Relaxed);
        report.broken = self.parts().broken.swap(0, Ordering::Relaxed);
        Ok(report)
    }

    fn flush_domain(
        self: &Arc<Live>,
        spool: &Spool,
        domain: &str,
        retries: u32,
        wish: &Wish,
        delivered: &mut u64,
    ) -> Result<Flushed, Failure> {
        let Some(locked) = spool.lock(domain).map_err(|e| Failure::spool(e, None))? else {
            return Ok(Flushed::HeldElsewhere);
        };
        let drain = Drain { live: self, domain: domain.into(), locked, retries, wish, delivered, stuck: None };
        drain.run().map(|()| Flushed::Empty)
    }
}

/// A random time up to `backoff` × 2ᵐᵃᵈᵉ, on top of what the service asked for.
fn pause(backoff: Duration, made: u32, retry_after: Option<Duration>) -> Duration {
    let most = backoff.saturating_mul(2u32.saturating_pow(made)).min(PAUSE_MAX);
    // A fresh hasher is keyed at random; 53 bits are what a double can hold.
    let bits = RandomState::new().hash_one(made) >> 11;
    let fraction = bits as f64 / (1u64 << 53) as f64;
    retry_after.unwrap_or_default() + most.mul_f64(fraction)
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
