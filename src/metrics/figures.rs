//! `Figures`: the counters as plain numbers, for documents that are no Prometheus page.

use std::collections::BTreeMap;

use super::{CLASSES, Metrics};

/// Requests whose content was not stored.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Rejected {
    pub requests: u64,
    /// As far as they could be counted.
    pub events: u64,
    pub bytes: u64,
}

/// Everything counted since the start. Times are in seconds, `None` without a sample.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    pub events: u64,
    pub event_bytes: u64,
    /// By status class, `1xx` first.
    pub requests: [u64; CLASSES.len()],
    pub latency: Quantiles,
    pub write: Quantiles,
    pub sync: Quantiles,
    pub lock_wait: Quantiles,
    pub lock_waits: u64,
    pub torn_tails: u64,
    pub append_failures: u64,
    pub rejected: BTreeMap<&'static str, Rejected>,
    pub refused: BTreeMap<&'static str, u64>,
    pub deprecated_requests: u64,
    pub heartbeat_failures: u64,
    pub log_lines_dropped: u64,
}

/// Of one histogram.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quantiles {
    pub p50: Option<f64>,
    pub p95: Option<f64>,
    pub p99: Option<f64>,
}

impl Figures {
    /// All rejected requests together.
    pub fn rejected_total(&self) -> Rejected {
        self.rejected.values().fold(Rejected::default(), |sum, one| Rejected {
            requests: sum.requests + one.requests,
            events: sum.events + one.events,
            bytes: sum.bytes + one.bytes,
        })
    }
}

impl Metrics {
    /// The counters as they are now.
    pub fn figures(&self) -> Figures {
        let (http, store) = (&self.0.http, &*self.0.store.0);
        let quantiles = |histogram: &super::HotHistogram| Quantiles {
            p50: histogram.quantile(0.5),
            p95: histogram.quantile(0.95),
            p99: histogram.quantile(0.99),
        };
        let mut requests = [0; CLASSES.len()];
        for method in http.handlers.iter().flat_map(|handler| &handler.methods).filter_map(|method| method.get()) {
            requests.iter_mut().zip(&method.classes).for_each(|(sum, class)| *sum += class.get());
        }
        let rare = self.rare();
        Figures {
            events: store.events.get(),
            event_bytes: store.bytes.get(),
            requests,
            latency: quantiles(&http.highr),
            write: quantiles(&store.write),
            sync: quantiles(&store.sync),
            lock_wait: quantiles(&store.lock_wait),
            lock_waits: store.lock_wait.count(),
            torn_tails: store.torn_tails.get(),
            append_failures: store.refused.iter().map(|reason| reason.get()).sum(),
            rejected: rare.rejected.clone(),
            refused: rare.refused.clone(),
            deprecated_requests: self.0.deprecated.get(),
            heartbeat_failures: self.0.heartbeat_failures.get(),
            log_lines_dropped: rare.log_lines_dropped,
        }
    }
}
