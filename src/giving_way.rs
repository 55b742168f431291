//! Giving way: a thread that could go on lets others have the processor first, so that there is more to do at once
//! when it comes back.
//!
//! On few processors a service and its clients wake each other for every single request, and each time the
//! one that was woken takes the processor from the one that was about to send more. `sched_yield` lets those
//! go first who wait for this processor, and returns at once where nobody does (sched_yield(2), Linux). So
//! no timer delays anything, and a lone request waits for nothing: both rules here want a thread that is
//! busy with many.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Over how long sleeps are counted.
const WINDOW: Duration = Duration::from_millis(2);
/// So many in a window are often: a thread that is woken again after half a millisecond at most.
const OFTEN: u32 = 4;
/// Requests that were answered together, from which on more are likely to be on their way.
const MANY_REQUESTS: usize = 4;
/// Whoever had the processor for longer than this was not somebody who brings work.
const SHORT: Duration = Duration::from_millis(1);
/// Nobody is given way for so long after that.
const PAUSE: Duration = Duration::from_millis(100);

thread_local! {
    static SLEEPS: Cell<Sleeps> = const { Cell::new(Sleeps { since: None, count: 0, often: false }) };
}

/// For a thread that serves connections and is about to sleep until there is more to read.
pub(crate) fn before_sleep() {
    let mut sleeps = SLEEPS.get();
    let often = sleeps.another(Instant::now());
    SLEEPS.set(sleeps);
    if often {
        std::thread::yield_now();
    }
}

/// How often a thread sleeps.
#[derive(Debug, Clone, Copy)]
struct Sleeps {
    since: Option<Instant>,
    count: u32,
    /// In the window before this one.
    often: bool,
}

impl Sleeps {
    /// One more. True: lately they were often.
    fn another(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let window = now.saturating_duration_since(since);
        self.count += 1;
        if window >= WINDOW {
            let per_window = u128::from(self.count) * WINDOW.as_nanos() / window.as_nanos();
            *self = Sleeps { since: Some(now), count: 0, often: per_window >= u128::from(OFTEN) };
        }
        self.often
    }
}

/// For a thread that has answered requests and goes on with the next ones.
#[derive(Debug, Default)]
pub(crate) struct AfterAnswers {
    not_before: Option<Instant>,
}

impl AfterAnswers {
    /// Lets those go first who have `answered` requests to send on, if that is worth it.
    pub(crate) fn give_way(&mut self, answered: usize) {
        if answered < MANY_REQUESTS {
            return;
        }
        let now = Instant::now();
        if self.may(now) {
            std::thread::yield_now();
            self.took(now, Instant::now());
        }
    }

    fn may(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|at| at <= now)
    }

    fn took(&mut self, from: Instant, to: Instant) {
        if to.saturating_duration_since(from) > SHORT {
            self.not_before = Some(to + PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, a service with little to do would let every other program go first, with each request.
    #[test]
    fn only_who_sleeps_often_gives_way() {
        let began = Instant::now();
        let run = |every: Duration, times: u32| {
            let mut sleeps = Sleeps { since: None, count: 0, often: false };
            (0..times).filter(|&n| sleeps.another(began + every * n)).count()
        };
        assert_eq!(run(Duration::from_millis(1), 1000), 0, "a thousand a second");
        assert!(run(Duration::from_micros(100), 1000) > 900, "ten thousand a second");
    }

    /// Broken, a thread that was busy once would give way for ever.
    #[test]
    fn a_burst_is_forgotten() {
        let mut now = Instant::now();
        let mut sleeps = Sleeps { since: None, count: 0, often: false };
        for _ in 0..100 {
            now += Duration::from_micros(100);
            sleeps.another(now);
        }
        assert!(sleeps.often);
        now += Duration::from_secs(5);
        assert!(!sleeps.another(now), "the first sleep after a long one");
    }

    /// Broken, each sync would wait for the whole turn of a program that computes.
    #[test]
    fn who_keeps_the_processor_is_not_given_way_again_soon() {
        let now = Instant::now();
        let mut after = AfterAnswers::default();
        after.took(now, now + SHORT);
        assert!(after.may(now + SHORT));
        let back = now + SHORT + Duration::from_micros(1);
        after.took(now, back);
        assert!(!after.may(back + PAUSE - Duration::from_micros(1)));
        assert!(after.may(back + PAUSE));
    }
}
