//! `Pace`: how long to hold a domain's lock, and how long to leave it free for others.
//!
//! Python's filelock polls every 50 ms and has no queue, so a greedy holder starves it. What
//! counts is the free gap between two holds (measured, see docs/adr/0004): after a slice of at most
//! 100 ms of holding, a gap that is longer than the poll, if anybody has looked at the lock
//! meanwhile. Where the system does not tell, a gap of 10 ms on the chance that somebody waits; 25
//! to 55 ms when a foreign writer was seen lately.

use std::time::{Duration, Instant};

use super::watch::Wanted;
use crate::rng::Jitter;

const SLICE_MS: std::ops::Range<u64> = 70..100;
const GAP: Duration = Duration::from_millis(10);
const FOREIGN_GAP_MS: std::ops::Range<u64> = 25..55;
/// Longer than filelock's poll.
const WANTED_GAP: Duration = Duration::from_millis(56);
/// One gap in so many slices is left even if nobody seems to want the lock: a waiter behind a
/// boundary that inotify does not cross, such as a virtual machine's, gets its turn late, but does.
const UNWANTED_SLICES_MAX: u32 = 10;
/// Longest hold over several groups, each written while the one before is synced. Then the lock is free for a
/// moment between two, as it always is at less load.
const STREAK_MAX: Duration = Duration::from_millis(10);
/// How long, if somebody has opened it: who looks at a file opens the lock for a moment only, and looks every 0.1
/// ms at first (`storage/lock.rs`).
const LOOK_GAP: Duration = Duration::from_millis(1);
const FOREIGN_MEMORY: Duration = Duration::from_secs(60);

/// Keeps the account of one domain's lock.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Time held, less time left free, since the last real gap.
    owed: Duration,
    slice: Duration,
    taken_at: Option<Instant>,
    released_at: Option<Instant>,
    foreign_at: Option<Instant>,
    /// Slices since the last gap that nobody wanted.
    unwanted: u32,
    jitter: Jitter,
}

impl Pace {
    pub(crate) fn new() -> Self {
        let mut jitter = Jitter::new();
        let slice = Duration::from_millis(jitter.pick(SLICE_MS));
        Pace { owed: Duration::ZERO, slice, taken_at: None, released_at: None, foreign_at: None, unwanted: 0, jitter }
    }

    /// The gap that must pass before the lock may be taken again, if any. `wanted` is asked once a
    /// slice.
    pub(crate) fn gap(&mut self, wanted: impl FnOnce() -> Wanted) -> Option<Duration> {
        if self.owed < self.slice {
            return None;
        }
        self.owed = Duration::ZERO;
        self.slice = Duration::from_millis(self.jitter.pick(SLICE_MS));
        match wanted() {
            Wanted::Yes => return Some(WANTED_GAP),
            Wanted::No if self.unwanted < UNWANTED_SLICES_MAX => {
                self.unwanted += 1;
                return None;
            }
            Wanted::No | Wanted::Unknown => self.unwanted = 0,
        }
        let foreign = self.foreign_at.is_some_and(|at| at.elapsed() < FOREIGN_MEMORY);
        Some(if foreign { Duration::from_millis(self.jitter.pick(FOREIGN_GAP_MS)) } else { GAP })
    }

    /// Must the lock be released before the next group, though it could be held on?
    pub(crate) fn streak_is_over(&self, now: Instant) -> bool {
        self.taken_at.is_some_and(|at| now.saturating_duration_since(at) >= STREAK_MAX)
    }

    /// The gap after a streak. `looked_at` is asked whether there is somebody it would be for.
    pub(crate) fn breather(&self, looked_at: impl FnOnce() -> bool) -> Option<Duration> {
        looked_at().then_some(LOOK_GAP)
    }

    pub(crate) fn taken(&mut self, now: Instant) {
        if let Some(released_at) = self.released_at {
            self.owed = self.owed.saturating_sub(now.saturating_duration_since(released_at));
        }
        self.taken_at = Some(now);
    }

    pub(crate) fn released(&mut self, now: Instant) {
        if let Some(taken_at) = self.taken_at.take() {
            self.owed += now.saturating_duration_since(taken_at);
        }
        self.released_at = Some(now);
    }

    /// A foreign writer wrote: be more generous for a while. Not for who only held the lock, as a snapshot
    /// does.
    pub(crate) fn saw_foreign(&mut self, now: Instant) {
        self.foreign_at = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, a Python writer beside us would never get the lock under load.
    #[test]
    fn a_busy_lock_is_left_free_after_a_slice_and_an_idle_one_never() {
        let mut pace = Pace::new();
        let mut now = Instant::now();
        let mut held = Duration::ZERO;
        let gap = loop {
            pace.taken(now);
            now += Duration::from_millis(5);
            held += Duration::from_millis(5);
            pace.released(now);
            now += Duration::from_micros(10);
            if let Some(gap) = pace.gap(|| Wanted::Unknown) {
                break gap;
            }
        };
        assert!(held >= Duration::from_millis(70) && held <= Duration::from_millis(105), "{held:?}");
        assert_eq!(gap, GAP);
        pace.saw_foreign(Instant::now());
        for _ in 0..1000 {
            pace.taken(now);
            now += Duration::from_millis(1);
            pace.released(now);
            now += Duration::from_millis(1);
            assert_eq!(pace.gap(|| Wanted::Unknown), None, "half the time free is enough");
        }
        pace.taken(now);
        now += Duration::from_millis(200);
        pace.released(now);
        let gap = pace.gap(|| Wanted::Unknown).unwrap();
        assert!(gap >= Duration::from_millis(25) && gap < Duration::from_millis(55), "{gap:?}");
    }

    /// Broken, a lock that nobody wants would stand idle for a tenth of the time, or one that
    /// somebody wants would be free for less than a poll.
    #[test]
    fn who_looks_at_the_lock_gets_a_whole_poll_and_nobody_gets_little() {
        let mut pace = Pace::new();
        let mut now = Instant::now();
        let mut slice = |pace: &mut Pace, wanted| {
            pace.taken(now);
            now += Duration::from_millis(100);
            pace.released(now);
            pace.gap(|| wanted)
        };
        assert_eq!(slice(&mut pace, Wanted::Yes), Some(Duration::from_millis(56)));
        for _ in 0..3 {
            for _ in 0..10 {
                assert_eq!(slice(&mut pace, Wanted::No), None);
            }
            assert_eq!(slice(&mut pace, Wanted::No), Some(GAP));
        }
    }
}
