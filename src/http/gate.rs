//! `Gate`: what an operator may put in front of all events together: read-only mode and a throttle.
//!
//! Neither survives a restart. While both are off a request pays for one relaxed load.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::error::ApiError;
use super::limits::Limiter;
use crate::rate::RateLimits;

const READ_ONLY: u8 = 1;
const THROTTLE: u8 = 2;
/// What a throttle is, to the log, that is not on.
pub(crate) const OFF: &str = "off";

/// Shared by all requests.
#[derive(Default)]
pub(crate) struct Gate {
    /// What is on; follows `switches`.
    bits: AtomicU8,
    switches: Mutex<Switches>,
}

#[derive(Default)]
struct Switches {
    read_only: Option<ReadOnly>,
    throttle: Option<Throttle>,
}

impl Switches {
    /// The rate of a throttle, for the log.
    fn shown(throttle: Option<&Throttle>) -> String {
        throttle.map_or(OFF.to_owned(), |throttle| throttle.rate.to_string())
    }
}

/// Why events are refused, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReadOnly {
    pub since: SystemTime,
    pub reason: Option<String>,
}

/// One limit for the requests of all clients together.
#[derive(Clone)]
pub(crate) struct Throttle {
    pub rate: RateLimits,
    pub since: SystemTime,
    ends: Instant,
    limiter: Arc<Limiter>,
}

impl Throttle {
    /// How long it will last.
    pub(crate) fn left(&self, now: Instant) -> Duration {
        self.ends.saturating_duration_since(now)
    }
}

/// What was on when a request came.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Posted(u8);

impl Posted {
    /// # Errors
    /// [`ApiError::ReadOnly`] in read-only mode.
    pub(crate) fn writable(self) -> Result<(), ApiError> {
        if self.0 & READ_ONLY == 0 { Ok(()) } else { Err(ApiError::ReadOnly) }
    }
}

impl Gate {
    /// What is on. For [`Gate::slow_down`] and [`Posted::writable`].
    pub(crate) fn posted(&self) -> Posted {
        Posted(self.bits.load(Ordering::Relaxed))
    }

    /// Refuses what must not reach a file any more. Only for a request that has its reservation: in one
    /// order with the wait for those (`storage::budget`), so that whoever switched and then saw none
    /// knows that nothing is written from then on.
    ///
    /// # Errors
    /// [`ApiError::ReadOnly`].
    pub(crate) fn still_writable(&self) -> Result<(), ApiError> {
        Posted(self.bits.load(Ordering::SeqCst)).writable()
    }

    /// Counts a request against the throttle, if there was one.
    ///
    /// # Errors
    /// [`ApiError::Throttled`] above its rate.
    pub(crate) fn slow_down(&self, posted: Posted, now: Instant) -> Result<(), ApiError> {
        if posted.0 & THROTTLE == 0 { Ok(()) } else { self.count(now) }
    }

    #[cold]
    fn count(&self, now: Instant) -> Result<(), ApiError> {
        let Some(throttle) = self.throttle(now) else { return Ok(()) };
        match throttle.limiter.hit((), now) {
            Ok(_) => Ok(()),
            // Its end may come first.
            Err(standing) => Err(ApiError::Throttled {
                retry_after_s: standing.retry_after_s().min(throttle.left(now).as_secs() + 1),
            }),
        }
    }

    /// Read-only mode, if it is on.
    pub(crate) fn read_only(&self) -> Option<ReadOnly> {
        self.switches().read_only.clone()
    }

    /// The throttle, if it is on at `now`.
    pub(crate) fn throttle(&self, now: Instant) -> Option<Throttle> {
        let mut switches = self.switches();
        if switches.throttle.as_ref().is_some_and(|throttle| throttle.ends <= now) {
            let old = Switches::shown(switches.throttle.as_ref());
            switches.throttle = None;
            self.post(&switches);
            tracing::info!(target: "leitstand::audit", action = "throttle", old, new = OFF, actor = "time", "changed");
        }
        switches.throttle.clone()
    }

    /// Is read-only mode on?
    pub(crate) fn is_read_only(&self) -> bool {
        self.posted().writable().is_err()
    }

    /// Switches read-only mode, and says whether it was on. On again, it keeps its beginning and takes the new
    /// reason.
    pub(crate) fn set_read_only(&self, on: bool, reason: Option<String>) -> bool {
        let mut switches = self.switches();
        let before = switches.read_only.take();
        let since = before.as_ref().map_or_else(SystemTime::now, |before| before.since);
        switches.read_only = on.then_some(ReadOnly { since, reason });
        self.post(&switches);
        before.is_some()
    }

    /// Begins a throttle in place of any that is on, or ends it; says what was on, for the log.
    pub(crate) fn set_throttle(&self, rate: Option<(RateLimits, Duration)>) -> String {
        // One that is over has been told.
        let _ = self.throttle(Instant::now());
        let mut switches = self.switches();
        let old = Switches::shown(switches.throttle.as_ref());
        switches.throttle = rate.map(|(rate, duration)| Throttle {
            limiter: Arc::new(Limiter::new(rate.clone())),
            rate,
            since: SystemTime::now(),
            ends: Instant::now() + duration,
        });
        self.post(&switches);
        old
    }

    fn post(&self, switches: &Switches) {
        let read_only = if switches.read_only.is_some() { READ_ONLY } else { 0 };
        let throttle = if switches.throttle.is_some() { THROTTLE } else { 0 };
        self.bits.store(read_only | throttle, Ordering::SeqCst);
    }

    fn switches(&self) -> MutexGuard<'_, Switches> {
        // Only whole values are put in its place.
        self.switches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(text: &str) -> RateLimits {
        RateLimits::parse(text).unwrap()
    }

    fn passes(gate: &Gate, now: Instant) -> Result<(), ApiError> {
        let posted = gate.posted();
        posted.writable()?;
        gate.slow_down(posted, now)
    }

    /// Broken, events would be refused for ever, or taken while a volume is copied.
    #[test]
    fn read_only_mode_is_what_was_said_last() {
        let gate = Gate::default();
        assert!(passes(&gate, Instant::now()).is_ok() && gate.still_writable().is_ok() && !gate.is_read_only());
        gate.set_read_only(true, Some("snapshot".into()));
        let first = gate.read_only().unwrap();
        assert!(matches!(passes(&gate, Instant::now()), Err(ApiError::ReadOnly)));
        assert!(matches!(gate.still_writable(), Err(ApiError::ReadOnly)) && gate.is_read_only());
        gate.set_read_only(true, None);
        assert_eq!(gate.read_only(), Some(ReadOnly { reason: None, ..first }), "the beginning stays");
        gate.set_read_only(false, None);
        assert!(gate.read_only().is_none() && passes(&gate, Instant::now()).is_ok());
    }

    /// Broken, a throttle would let everything through, never end, or tell clients to wait too long.
    #[test]
    fn a_throttle_counts_all_and_ends_by_itself() {
        let gate = Gate::default();
        gate.set_throttle(Some((rate("2/hour"), Duration::from_secs(90))));
        let now = Instant::now();
        assert!(passes(&gate, now).is_ok() && passes(&gate, now).is_ok());
        match passes(&gate, now) {
            Err(ApiError::Throttled { retry_after_s }) => assert!((90..=91).contains(&retry_after_s)),
            other => panic!("{other:?}"),
        }
        assert!(gate.still_writable().is_ok(), "what was let in may be written");
        let later = now + Duration::from_secs(91);
        assert!(passes(&gate, later).is_ok() && gate.throttle(later).is_none());
        assert_eq!(gate.posted().0, 0, "off costs one load again");
    }

    /// Broken, one switch would undo the other.
    #[test]
    fn the_two_switches_do_not_know_each_other() {
        let gate = Gate::default();
        gate.set_throttle(Some((rate("1/hour"), Duration::from_secs(90))));
        gate.set_read_only(true, None);
        gate.set_read_only(false, None);
        assert!(gate.throttle(Instant::now()).is_some());
        gate.set_read_only(true, None);
        gate.set_throttle(None);
        assert!(gate.is_read_only());
    }
}
