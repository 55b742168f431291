//! `Rounds`: which domains have written something that is not on the disk yet, and who syncs them.
//!
//! Whoever has written lists the domain here and then looks for a round himself; so a lone request
//! is written and synced by one thread. While a round is under way others go on writing, and what
//! they list goes with the next one. On a file system that makes many files durable with one call,
//! one round carries all domains that wait, and only one is under way; else there is a round for
//! each domain, side by side. Domains with large groups always go alone, so that nobody small
//! waits for their bytes.

use std::collections::VecDeque;
use std::sync::PoisonError;

use super::sync::{Mutex, MutexGuard};

pub(crate) struct Rounds<Writer>(Mutex<State<Writer>>);

struct State<Writer> {
    small: VecDeque<Writer>,
    large: VecDeque<Writer>,
    /// A round that others wait for, so as to go together.
    together: bool,
}

/// Domains whose files one thread is to sync now.
pub(crate) struct Round<Writer> {
    pub writers: Vec<Writer>,
    together: bool,
    large: bool,
}

impl<Writer> Round<Writer> {
    /// It may take long, and nobody small goes with the next one.
    pub(crate) fn is_large(&self) -> bool {
        self.large
    }
}

impl<Writer> Rounds<Writer> {
    pub(crate) fn new() -> Self {
        Rounds(Mutex::new(State { small: VecDeque::new(), large: VecDeque::new(), together: false }))
    }

    /// A domain has written. It must not be listed already, nor be in a round under way.
    pub(crate) fn list(&self, writer: Writer, large: bool) {
        let mut state = self.state();
        if large { state.large.push_back(writer) } else { state.small.push_back(writer) }
    }

    /// The next round. `None`: there is nothing to do, or it goes with the next round of those that
    /// are under way. Who gets one must call [`Rounds::done`], and then ask again.
    pub(crate) fn take(&self, together: bool) -> Option<Round<Writer>> {
        let mut state = self.state();
        if together && !state.together && !state.small.is_empty() {
            state.together = true;
            return Some(Round { writers: state.small.drain(..).collect(), together, large: false });
        }
        let small = if together { None } else { state.small.pop_front() };
        let large = small.is_none();
        let writer = small.or_else(|| state.large.pop_front())?;
        Some(Round { writers: vec![writer], together: false, large })
    }

    /// The round is over; its domains may have been listed anew.
    pub(crate) fn done(&self, round: &Round<Writer>) {
        if round.together {
            self.state().together = false;
        }
    }

    /// Is a round under way that others wait for?
    pub(crate) fn are_together(&self) -> bool {
        self.state().together
    }

    /// Will whoever lists a domain now perhaps share a round with others, or wait for one?
    pub(crate) fn is_shared(&self) -> bool {
        let state = self.state();
        state.together || !state.small.is_empty() || !state.large.is_empty()
    }

    /// Is there a domain that nobody syncs?
    pub(crate) fn any_waiting(&self) -> bool {
        let state = self.state();
        !state.small.is_empty() || !state.large.is_empty()
    }

    fn state(&self) -> MutexGuard<'_, State<Writer>> {
        // Only moves happen under it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
