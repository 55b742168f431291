//! How fast a snapshot goes on: never so fast that others wait for it.

use std::time::{Duration, Instant};

/// How many bytes are read, hashed and written between two rests.
pub(super) const PIECE_BYTES: u64 = 4 << 20;
/// Longest rest after a piece, unless a rate asks for more.
const REST_MAX: Duration = Duration::from_millis(250);
/// Low, so that whoever answers requests comes first; also for the disk, where its scheduler looks.
const NICE: i32 = 19;

/// Lowers the priority of this thread for good. What the system refuses is left.
pub(super) fn step_back() {
    // On Linux the priority belongs to a thread, and none given is the one that calls.
    let _ = rustix::process::setpriority_process(None, NICE);
}

/// Rests as long as it worked, so that a disk or a processor that is busy gets the other half.
pub(super) struct Pace {
    /// Bytes a second, at most.
    rate: Option<u64>,
    began: Instant,
    bytes: u64,
    piece: u64,
    piece_began: Instant,
}

impl Pace {
    pub(super) fn new(rate: Option<u64>) -> Pace {
        let now = Instant::now();
        Pace { rate, began: now, bytes: 0, piece: 0, piece_began: now }
    }

    /// These bytes were dealt with.
    pub(super) fn step(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.piece += bytes;
        if self.piece < PIECE_BYTES.min(self.rate.unwrap_or(u64::MAX) / 8) {
            return;
        }
        let rest = self.piece_began.elapsed().min(REST_MAX).max(self.early());
        std::thread::sleep(rest);
        self.piece = 0;
        self.piece_began = Instant::now();
    }

    /// How much too early we are for the rate.
    fn early(&self) -> Duration {
        let Some(rate) = self.rate else { return Duration::ZERO };
        let due = Duration::from_secs_f64(self.bytes as f64 / rate.max(1) as f64);
        due.saturating_sub(self.began.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, a snapshot would take the disk from the service in spite of `--rate`.
    #[test]
    fn a_rate_is_kept() {
        let mut pace = Pace::new(Some(10 << 20));
        let began = Instant::now();
        (0..4).for_each(|_| pace.step(1 << 20));
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(300), "3 of 4 MiB at 10 MiB a second took {took:?}");
    }

    /// Broken, a low rate would be kept by bursts with long rests between.
    #[test]
    fn a_low_rate_is_kept_from_the_beginning() {
        let mut pace = Pace::new(Some(1 << 20));
        pace.step(1 << 17);
        let took = pace.began.elapsed();
        assert!(took >= Duration::from_millis(125), "an eighth of a second's bytes took {took:?}");
    }

    /// Broken, a busy disk would have no time for others.
    #[test]
    fn rests_are_as_long_as_the_work() {
        let mut pace = Pace::new(None);
        pace.piece_began = pace.began.checked_sub(Duration::from_millis(100)).unwrap();
        pace.step(PIECE_BYTES - 1);
        let began = Instant::now();
        pace.step(1);
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(100), "after 100 ms of work it rested {took:?}");
    }
}
