//! `SyncDoubt`: one failed sync casts doubt on all that was under way on the same file system.
//!
//! While a journal aborts, one thread may hear of it, and another that waited for the same commit may hear
//! nothing. So whatever was written before a failure was told, and is not answered by then, is not
//! answered as stored, however its own sync ends. And before anything more is written, a probe must have
//! shown that the file system still brings something to the disk. A probe never makes up for a failure: what was
//! in doubt stays so.
//!
//! Only counters, so that nothing on the way of an event waits here. `tests/it/handover.rs` tries it with all orders
//! of events that three threads can have.

use super::sync::{AtomicBool, AtomicU64, Ordering};

pub(crate) struct SyncDoubt {
    failures: AtomicU64,
    /// How many of them were there when the last successful probe began.
    proven: AtomicU64,
    probing: AtomicBool,
    /// The last probe failed.
    dead: AtomicBool,
}

/// A point in time before something was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Since(u64);

/// A probe that has begun.
#[derive(Debug)]
pub(crate) struct Probe(u64);

impl SyncDoubt {
    pub(crate) fn new() -> SyncDoubt {
        SyncDoubt {
            failures: AtomicU64::new(0),
            proven: AtomicU64::new(0),
            probing: AtomicBool::new(false),
            dead: AtomicBool::new(false),
        }
    }

    /// To be asked before something is written. `None`: not now, the file system must be probed first.
    pub(crate) fn begin(&self) -> Option<Since> {
        let failures = self.failures.load(Ordering::SeqCst);
        (failures == self.proven.load(Ordering::SeqCst)).then_some(Since(failures))
    }

    /// As [`SyncDoubt::begin`], for a sync of what was answered long ago.
    pub(crate) fn now(&self) -> Since {
        Since(self.failures.load(Ordering::SeqCst))
    }

    /// A sync has failed. To be told before anybody else is.
    pub(crate) fn failed(&self) {
        self.failures.fetch_add(1, Ordering::SeqCst);
    }

    /// Has no sync failed since then? To be asked after a sync, right before it is answered.
    pub(crate) fn is_sound(&self, since: Since) -> bool {
        self.failures.load(Ordering::SeqCst) == since.0
    }

    /// Must the file system be probed?
    pub(crate) fn is_unproven(&self) -> bool {
        self.begin().is_none()
    }

    /// Has a probe failed, and none succeeded since?
    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    /// Who gets a probe makes it, one at a time, and says how it went by [`SyncDoubt::end_probe`].
    pub(crate) fn begin_probe(&self) -> Option<Probe> {
        if !self.is_unproven() || self.probing.swap(true, Ordering::SeqCst) {
            return None;
        }
        Some(Probe(self.failures.load(Ordering::SeqCst)))
    }

    /// True: another one is due, because a sync has failed meanwhile.
    #[must_use]
    pub(crate) fn end_probe(&self, probe: Probe, succeeded: bool) -> bool {
        if succeeded {
            self.proven.store(probe.0, Ordering::SeqCst);
        }
        self.dead.store(!succeeded, Ordering::SeqCst);
        self.probing.swap(false, Ordering::SeqCst);
        succeeded && self.is_unproven()
    }
}
