//! `Complaint`: what may happen many times a second is told now and then.

use std::time::Duration;

use tokio::time::Instant;

/// Tells of something at once, and then at most once in a time, and how often it was.
#[derive(Debug)]
pub(super) struct Complaint {
    every: Duration,
    told_at: Option<Instant>,
    untold: u64,
}

impl Complaint {
    pub(super) const fn new(every: Duration) -> Complaint {
        Complaint { every, told_at: None, untold: 0 }
    }

    /// It has happened once more; `tell` gets how often since it was last told.
    pub(super) fn tell(&mut self, now: Instant, tell: impl FnOnce(u64)) {
        self.untold += 1;
        if self.told_at.is_none_or(|told_at| now - told_at >= self.every) {
            self.told_at = Some(now);
            tell(std::mem::take(&mut self.untold));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, a service without descriptors would fill the log, or not say that it goes on.
    #[test]
    fn what_happens_all_the_time_is_told_now_and_then() {
        let mut complaint = Complaint::new(Duration::from_secs(10));
        let (now, mut told) = (Instant::now(), Vec::new());
        for tick in 0..500 {
            complaint.tell(now + tick * Duration::from_millis(50), |failed| told.push((tick, failed)));
        }
        assert_eq!(told, [(0, 1), (200, 200), (400, 200)]);
    }
}
