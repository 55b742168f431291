//! `Inbox`: how jobs come to the one writer of a domain, how the writer changes hands, and what is
//! written and not yet on the disk.
//!
//! Whoever has the desk is the writer; there is one desk. Whoever brings a job takes the desk if it
//! is free. Whoever has it gives it back only when there is nothing left to do, in the same moment:
//! so no job is left lying, and there are never two writers.
//!
//! A group that was written is afloat until a sync has landed it. The writer may write the next one
//! meanwhile; somebody else syncs, for one domain one at a time. `tests/it/handover.rs` tries this
//! with all orders of events that two and three threads can have.

use std::collections::VecDeque;
use std::sync::PoisonError;

use super::sync::{Condvar, Mutex, MutexGuard};

/// `Job`s and the `Sync`s asked for, waiting for whoever has the `Desk`; and `Group`s afloat.
pub(crate) struct Inbox<Job, Sync, Desk, Group> {
    state: Mutex<State<Job, Sync, Desk, Group>>,
    landed: Condvar,
}

struct State<Job, Sync, Desk, Group> {
    queue: VecDeque<Job>,
    syncs: Vec<Sync>,
    /// `None` while somebody works at it.
    desk: Option<Desk>,
    afloat: Vec<Group>,
    /// From the first group afloat until there is none: somebody will sync, or does.
    awaited: bool,
    sunk: Vec<Group>,
    /// The writer waits until nothing is afloat.
    waits_for_calm: bool,
}

/// What waits for the writer.
pub(crate) struct Waiting<'a, Job, Sync, Group> {
    pub queue: &'a mut VecDeque<Job>,
    pub syncs: &'a mut Vec<Sync>,
    /// Groups whose sync failed, in the order in which they were written.
    pub sunk: &'a mut Vec<Group>,
    /// No group is afloat: all that was written is on the disk.
    pub calm: bool,
}

impl<Job, Sync, Desk, Group> Inbox<Job, Sync, Desk, Group> {
    pub(crate) fn new(desk: Desk) -> Self {
        let state = State {
            queue: VecDeque::new(),
            syncs: Vec::new(),
            desk: Some(desk),
            afloat: Vec::new(),
            awaited: false,
            sunk: Vec::new(),
            waits_for_calm: false,
        };
        Inbox { state: Mutex::new(state), landed: Condvar::new() }
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
        let idle = state.queue.is_empty() && state.syncs.is_empty() && state.sunk.is_empty();
        if idle { None } else { state.desk.take() }
    }

    /// For the writer: `take` moves to the desk what it wants of what waits, and says whether there
    /// is something to do. If not, it must have left nothing, and the desk is given back.
    pub(crate) fn take_work(
        &self,
        mut desk: Desk,
        take: impl FnOnce(&mut Desk, Waiting<'_, Job, Sync, Group>) -> bool,
    ) -> Option<Desk> {
        let mut state = self.state();
        let State { queue, syncs, sunk, awaited, .. } = &mut *state;
        if take(&mut desk, Waiting { queue, syncs, sunk, calm: !*awaited }) {
            return Some(desk);
        }
        state.desk = Some(desk);
        None
    }

    /// For the writer: everything queued meanwhile.
    pub(crate) fn drain_into(&self, group: &mut VecDeque<Job>) {
        group.append(&mut self.state().queue);
    }

    /// For the writer: sets a group afloat. True: the caller must see to it that somebody calls
    /// [`Inbox::take_afloat`]. After a failed sync the group sinks too: what it says of the file is
    /// in doubt, and no later sync takes the doubt away.
    #[must_use]
    pub(crate) fn launch(&self, group: Group) -> bool {
        let mut state = self.state();
        if !state.sunk.is_empty() {
            state.sunk.push(group);
            return false;
        }
        state.afloat.push(group);
        !std::mem::replace(&mut state.awaited, true)
    }

    /// For whoever syncs: all groups afloat. One caller at a time, who must then say whether they
    /// [`Inbox::landed`] or [`Inbox::sank`].
    pub(crate) fn take_afloat(&self) -> Vec<Group> {
        std::mem::take(&mut self.state().afloat)
    }

    /// The groups taken are on the disk. True: others are afloat by now, as [`Inbox::launch`]. Else
    /// `rest` sees the desk, if nobody works at it.
    #[must_use]
    pub(crate) fn landed(&self, rest: impl FnOnce(&mut Desk)) -> bool {
        let mut state = self.state();
        state.awaited = !state.afloat.is_empty();
        if !state.awaited {
            state.desk.as_mut().map(rest);
        }
        let again = state.awaited;
        self.tell(state);
        again
    }

    /// The sync of the groups taken failed; they, and those afloat by now, wait for the writer as
    /// sunk. Returns the desk if it is free: the caller is the writer then.
    pub(crate) fn sank(&self, groups: Vec<Group>) -> Option<Desk> {
        let mut state = self.state();
        state.sunk.extend(groups);
        let later = std::mem::take(&mut state.afloat);
        state.sunk.extend(later);
        state.awaited = false;
        let desk = state.desk.take();
        self.tell(state);
        desk
    }

    /// Wakes the writer if it waits; a call to the system for nobody would be one more for every sync.
    fn tell(&self, mut state: MutexGuard<'_, State<Job, Sync, Desk, Group>>) {
        if std::mem::take(&mut state.waits_for_calm) {
            drop(state);
            self.landed.notify_all();
        }
    }

    /// For the writer: waits until no group is afloat. `help` may sync in the meantime, and says
    /// whether it did; if it did not, somebody else must be at it.
    pub(crate) fn calm(&self, mut help: impl FnMut() -> bool) {
        while self.state().awaited {
            if help() {
                continue;
            }
            let mut state = self.state();
            if state.awaited {
                state.waits_for_calm = true;
                drop(self.landed.wait(state).unwrap_or_else(PoisonError::into_inner));
            }
        }
    }

    /// Is a group afloat?
    pub(crate) fn is_afloat(&self) -> bool {
        self.state().awaited
    }

    /// For the writer: what sank since the last [`Inbox::take_work`].
    pub(crate) fn take_sunk(&self, sunk: &mut Vec<Group>) {
        sunk.append(&mut self.state().sunk);
    }

    /// Looks at the desk while nobody works at it and no group is afloat. `None`: somebody does, or
    /// one is.
    pub(crate) fn at_rest<T>(&self, look: impl FnOnce(&mut Desk) -> T) -> Option<T> {
        let mut state = self.state();
        if state.awaited { None } else { state.desk.as_mut().map(look) }
    }

    fn state(&self) -> MutexGuard<'_, State<Job, Sync, Desk, Group>> {
        // Only moves, and one system call or two at the desk, happen under it, and they leave it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
