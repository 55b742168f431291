//! `Inbox`: how jobs come to the one writer of a domain, and how the writer changes hands.
//!
//! Whoever has the desk is the writer; there is one desk. Whoever brings a job takes the desk if it
//! is free. Whoever has it gives it back only when there is nothing left to do, in the same moment:
//! so no job is left lying, and there are never two writers. `tests/it/handover.rs` tries this with
//! all orders of events that two and three threads can have.

use std::collections::VecDeque;
use std::sync::PoisonError;

use super::sync::{Mutex, MutexGuard};

/// `Job`s and the `Sync`s asked for, waiting for whoever has the `Desk`.
pub(crate) struct Inbox<Job, Sync, Desk>(Mutex<State<Job, Sync, Desk>>);

struct State<Job, Sync, Desk> {
    queue: VecDeque<Job>,
    syncs: Vec<Sync>,
    /// `None` while somebody works at it.
    desk: Option<Desk>,
}

impl<Job, Sync, Desk> Inbox<Job, Sync, Desk> {
    pub(crate) fn new(desk: Desk) -> Self {
        Inbox(Mutex::new(State { queue: VecDeque::new(), syncs: Vec::new(), desk: Some(desk) }))
    }

    /// Queues a job. It is not lost, but may lie there until [`Inbox::take_desk`] is called.
    pub(crate) fn put(&self, job: Job) {
        self.state().queue.push_back(job);
    }

    /// Asks for a sync of what was written so far; as [`Inbox::put`].
    pub(crate) fn put_sync(&self, sync: Sync) {
        self.state().syncs.push(sync);
    }

    /// The desk, if it is free and there is something to do. The caller is the writer from now on.
    pub(crate) fn take_desk(&self) -> Option<Desk> {
        let mut state = self.state();
        if state.queue.is_empty() && state.syncs.is_empty() { None } else { state.desk.take() }
    }

    /// For the writer: `take` moves to the desk what it wants of the queue and of the syncs, and
    /// says whether there is something to do. If not, it must have left nothing, and the desk is
    /// given back.
    pub(crate) fn take_work(
        &self,
        mut desk: Desk,
        take: impl FnOnce(&mut Desk, &mut VecDeque<Job>, &mut Vec<Sync>) -> bool,
    ) -> Option<Desk> {
        let mut state = self.state();
        let State { queue, syncs, .. } = &mut *state;
        if take(&mut desk, queue, syncs) {
            return Some(desk);
        }
        state.desk = Some(desk);
        None
    }

    /// For the writer: everything queued meanwhile.
    pub(crate) fn drain_into(&self, group: &mut VecDeque<Job>) {
        group.append(&mut self.state().queue);
    }

    /// Looks at the desk while nobody works at it. `None`: somebody does.
    pub(crate) fn at_rest<T>(&self, look: impl FnOnce(&mut Desk) -> T) -> Option<T> {
        self.state().desk.as_mut().map(look)
    }

    fn state(&self) -> MutexGuard<'_, State<Job, Sync, Desk>> {
        // Only moves happen under it, and they leave it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
