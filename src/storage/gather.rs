//! `Gather`: appends that arrive together on one thread go to their writers together.
//!
//! A worker of the service finds many requests ready at once. Each puts its job down here; when the
//! worker has run all that was ready, one task takes everything to the writers. So a group is
//! written, and mostly answered, by the thread whose clients wait for it, and a lone request waits
//! for nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::disk::Disk;
use super::writer::{DomainWriter, Job};
use crate::lane::PerLane;

pub(crate) struct Gather<D: Disk>(PerLane<Mutex<Vec<Gathered<D>>>>);

/// A job and where it goes.
type Gathered<D> = (Arc<DomainWriter<D>>, Job);

impl<D: Disk> Gather<D> {
    pub(crate) fn new() -> Gather<D> {
        Gather(PerLane::new(Mutex::default))
    }

    /// Puts a job down. It is taken to its writer when the runtime of this thread comes round again.
    pub(crate) fn add(self: &Arc<Self>, writer: Arc<DomainWriter<D>>, job: Job) {
        let first = {
            let mut jobs = lock(self.0.here());
            jobs.push((writer, job));
            jobs.len() == 1
        };
        if first {
            let delivery = Delivery { gather: self.clone(), lane: crate::lane::current() };
            // Nobody awaits the task: it ends by itself, and what it holds is counted as in flight.
            tokio::spawn(async move {
                tokio::task::yield_now().await;
                drop(delivery);
            });
        }
    }

    fn deliver(&self, lane: usize) {
        let jobs = std::mem::take(&mut *lock(self.0.at(lane)));
        let mut writers: Vec<Arc<DomainWriter<D>>> = Vec::new();
        let Some(queued_at) = jobs.last().map(|(_, job)| job.queued_at) else { return };
        for (writer, job) in jobs {
            writer.queue(job);
            // Starting one twice costs little; what matters is that a run of jobs is one group.
            if !writers.last().is_some_and(|last| Arc::ptr_eq(last, &writer)) {
                writers.push(writer);
            }
        }
        writers.iter().for_each(|writer| writer.start(queued_at));
    }
}

/// Delivers when it is dropped: also when its runtime ends first, because jobs of other threads may
/// lie in the same lane.
struct Delivery<D: Disk> {
    gather: Arc<Gather<D>>,
    lane: usize,
}

impl<D: Disk> Drop for Delivery<D> {
    fn drop(&mut self) {
        self.gather.deliver(self.lane);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Only pushes and a take happen under it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
