//! `Marked`: domains that an earlier process left in doubt, before anybody has opened their files here.
//!
//! Only for those who ask how the store is doing. What refuses an append is the look at the mark whenever a
//! data file is opened (`storage/log.rs`).

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::disk::Disk;
use super::layout::{Owner, POISONED_SUFFIX, TORN_DIR, side_name};
use super::marker;

/// Most marks that are read at once: at the start, and with each later look.
const READ_AT_ONCE: usize = 1000;
/// Most domains that are named in the log at the start.
const NAMED_MAX: usize = 20;

/// Names of marks that may be about the file that stands there now.
#[derive(Debug, Default)]
pub(crate) struct Marked(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    marks: BTreeSet<String>,
    /// Where the next look begins.
    next: String,
    /// The side directory could not be listed: there may be any number of marks.
    unreadable: bool,
}

impl Marked {
    /// Looks for marks: one listing of the side directory, and a read of at most [`READ_AT_ONCE`] of them.
    /// Those beyond count as marked until a later look.
    pub(crate) fn load<D: Disk>(disk: &D) -> Marked {
        let marked = Marked::default();
        marked.list(disk);
        marked.look(disk);
        let state = marked.state();
        for mark in state.marks.iter().take(NAMED_MAX) {
            let file = mark.strip_suffix(POISONED_SUFFIX).unwrap_or(mark);
            tracing::error!(
                file,
                "domain in doubt since an earlier run: appends are refused until the file is repaired or replaced, see RUNBOOK"
            );
        }
        if state.marks.len() > NAMED_MAX {
            tracing::error!(domains = state.marks.len(), "more domains are in doubt, see leitstand verify");
        }
        drop(state);
        marked
    }

    fn list<D: Disk>(&self, disk: &D) {
        let listed = disk.list_side(TORN_DIR);
        let mut state = self.state();
        state.unreadable = listed.is_err();
        match listed {
            Ok(names) => {
                let marks = names.into_iter().filter_map(|name| name.into_string().ok());
                state.marks = marks.filter(|name| name.ends_with(POISONED_SUFFIX)).collect();
            }
            Err(error) => {
                tracing::error!(%error, "cannot look for domains in doubt: {TORN_DIR}/ in the data directory cannot be listed, see RUNBOOK");
            }
        }
    }

    /// Forgets marks that are gone, or whose file was replaced. Blocks for a few system calls a mark.
    pub(crate) fn look<D: Disk>(&self, disk: &D) {
        if self.state().unreadable && disk.list_side(TORN_DIR).is_ok() {
            self.list(disk);
        }
        let some: Vec<String> = {
            let state = self.state();
            let (rest, first) = (state.marks.range(state.next.clone()..), state.marks.range(..state.next.clone()));
            rest.chain(first).take(READ_AT_ONCE).cloned().collect()
        };
        for mark in &some {
            if is_over(disk, mark) {
                self.state().marks.remove(mark);
            }
        }
        self.state().next = some.into_iter().next_back().map_or_else(String::new, |last| last + "\0");
    }

    /// A writer has looked at the file, and answers for it from now on.
    pub(crate) fn forget(&self, data: &str) {
        let mut state = self.state();
        if !state.marks.is_empty() {
            state.marks.remove(&side_name(data, POISONED_SUFFIX));
        }
    }

    pub(crate) fn has(&self, data: &str) -> bool {
        let state = self.state();
        !state.marks.is_empty() && state.marks.contains(&side_name(data, POISONED_SUFFIX))
    }

    /// How many there are; one, if nobody can tell.
    pub(crate) fn len(&self) -> usize {
        let state = self.state();
        state.marks.len() + usize::from(state.unreadable)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Changed by single inserts and removals, or replaced.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_over<D: Disk>(disk: &D, mark_name: &str) -> bool {
    let mark = match marker::read_named(disk, mark_name) {
        Ok(Some(mark)) => mark,
        Ok(None) => return true,
        Err(_) => return false,
    };
    let spelled = mark_name.strip_suffix(POISONED_SUFFIX).filter(|data| Owner::of(data).is_some());
    let Some(data) = spelled.or(mark.data.as_deref()) else { return false };
    matches!(disk.stat(data), Ok(Some(stat)) if !mark.is_about(stat.id))
}
