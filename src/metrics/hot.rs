//! Counters and histograms for the hot path: a few relaxed additions, no allocation.
//!
//! The exporter's own histogram keeps every sample with its time until somebody folds them, which
//! at 100,000 requests a second is tens of megabytes and a tenth of the CPU. These keep one number
//! per bucket, spread over a few cache lines so that threads do not fight for one.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::lane::PerLane;

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct HotCounter(PerLane<AtomicU64>);

impl HotCounter {
    pub(crate) fn add(&self, n: u64) {
        self.0.here().fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.iter().map(|lane| lane.load(Ordering::Relaxed)).sum()
    }
}

/// Samples by bucket. Whole units are counted (nanoseconds, bytes, events); `unit` of them make
/// one of the exported unit.
#[derive(Debug)]
pub(crate) struct HotHistogram {
    /// Upper bounds, in whole units, ascending.
    bounds: Box<[u64]>,
    unit: f64,
    lanes: PerLane<Lane>,
}

#[derive(Debug, Default)]
struct Lane {
    /// One more than there are bounds.
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
}

/// Nanoseconds in a second, for histograms of durations.
pub(crate) const NANOSECONDS: f64 = 1e9;

impl HotHistogram {
    /// `bounds` in the exported unit.
    pub(crate) fn new(bounds: &[f64], unit: f64) -> HotHistogram {
        let bounds: Box<[u64]> = bounds.iter().map(|bound| (bound * unit).round() as u64).collect();
        let lane = || Lane { counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(), sum: AtomicU64::new(0) };
        HotHistogram { lanes: PerLane::new(lane), unit, bounds }
    }

    pub(crate) fn record(&self, units: u64) {
        let lane = self.lanes.here();
        let bucket = self.bounds.iter().position(|&bound| units <= bound).unwrap_or(self.bounds.len());
        lane.counts[bucket].fetch_add(1, Ordering::Relaxed);
        lane.sum.fetch_add(units, Ordering::Relaxed);
    }

    /// Samples in each bucket, the last one without an upper bound.
    fn counts(&self) -> Vec<u64> {
        let total = |i: usize| self.lanes.iter().map(|lane| lane.counts[i].load(Ordering::Relaxed)).sum();
        (0..=self.bounds.len()).map(total).collect()
    }

    /// How many samples there are.
    pub(crate) fn count(&self) -> u64 {
        self.counts().iter().sum()
    }

    /// The value, in the exported unit, that `q` (0 to 1) of the samples do not exceed, as Prometheus'
    /// `histogram_quantile` reckons: samples are spread evenly in their bucket, and the last bucket
    /// counts as its lower bound. `None` without samples.
    pub(crate) fn quantile(&self, q: f64) -> Option<f64> {
        let counts = self.counts();
        let rank = q * counts.iter().sum::<u64>() as f64;
        let mut below = 0.0;
        let mut lower = 0;
        for (i, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            lower = if i == 0 { 0 } else { self.bounds[i - 1] };
            if below + count as f64 >= rank {
                let upper = self.bounds.get(i).copied().unwrap_or(lower);
                let share = (rank - below) / count as f64;
                return Some((lower as f64 + share * (upper - lower) as f64) / self.unit);
            }
            below += count as f64;
        }
        // Rounding may leave a rank above all samples.
        (below > 0.0).then(|| lower as f64 / self.unit)
    }

    /// Appends the series of one label set, in text format 0.0.4. `labels` is empty or `a="b",…`.
    pub(crate) fn render(&self, name: &str, labels: &str, out: &mut String) {
        let comma = if labels.is_empty() { "" } else { "," };
        let braces = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let mut count = 0;
        for (i, samples) in self.counts().into_iter().enumerate() {
            count += samples;
            let bound = self.bounds.get(i).map_or("+Inf".to_owned(), |&bound| (bound as f64 / self.unit).to_string());
            // Writing to a String cannot fail.
            let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {count}");
        }
        let sum: u64 = self.lanes.iter().map(|lane| lane.sum.load(Ordering::Relaxed)).sum();
        let _ = writeln!(out, "{name}_sum{braces} {}", sum as f64 / self.unit);
        let _ = writeln!(out, "{name}_count{braces} {count}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, an operator would be told a latency that nobody had.
    #[test]
    fn quantiles_are_those_of_the_buckets() {
        let histogram = HotHistogram::new(&[0.001, 0.01, 0.1], NANOSECONDS);
        assert_eq!(histogram.quantile(0.5), None);
        (0..90).for_each(|_| histogram.record(500_000));
        (0..10).for_each(|_| histogram.record(50_000_000));
        for (q, want) in [(0.45, 0.0005), (0.9, 0.001), (0.95, 0.055), (1.0, 0.1)] {
            let got = histogram.quantile(q).unwrap();
            assert!((got - want).abs() < 1e-9, "{q}: {got}");
        }
        (0..100).for_each(|_| histogram.record(9_000_000_000));
        assert_eq!(histogram.quantile(0.99), Some(0.1), "above all bounds nothing more is known");
        assert_eq!(histogram.count(), 200);
    }

    #[test]
    fn samples_land_in_their_buckets_from_every_thread() {
        let histogram = HotHistogram::new(&[0.001, 0.01], NANOSECONDS);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| [1_000_000, 1_000_001, 10_000_000, 10_000_001].map(|ns| histogram.record(ns)));
            }
        });
        let mut out = String::new();
        histogram.render("x_seconds", "a=\"b\"", &mut out);
        assert_eq!(
            out,
            "x_seconds_bucket{a=\"b\",le=\"0.001\"} 8\nx_seconds_bucket{a=\"b\",le=\"0.01\"} 24\n\
             x_seconds_bucket{a=\"b\",le=\"+Inf\"} 32\nx_seconds_sum{a=\"b\"} 0.176000016\nx_seconds_count{a=\"b\"} 32\n"
        );
    }
}
