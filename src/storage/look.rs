//! `Look`: looks at the disk for whoever asks how the store is doing, on one thread, and never for longer than
//! [`DEADLINE`].
//!
//! A disk that hangs (a network file system, a device that does not answer) would hold everybody who asks. So
//! only one thread asks, and the others wait for it with a deadline.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::Shared;
use super::disk::{Disk, DiskSpace};

/// How long anybody waits for an answer of the disk.
pub(crate) const DEADLINE: Duration = Duration::from_millis(500);

/// How long the thread waits for the next question before it ends.
const LINGER: Duration = Duration::from_secs(1);

/// What a look has found.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seen {
    /// The data directory is the one that was opened, and may be written to. Of a short look: not known.
    pub writable: bool,
    /// `None` when the file system does not say.
    pub space: Option<DiskSpace>,
}

/// How much there is to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    Space,
    All,
}

#[derive(Debug, Default)]
pub(crate) struct Look {
    state: Mutex<State>,
    looked: Condvar,
    wanted: Condvar,
    told: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Number of the last look that was asked for, and of the last that came to an end.
    asked: u64,
    ended: u64,
    all_asked: bool,
    /// There is a thread that looks, or waits for somebody to ask.
    thread: bool,
    /// When the look under way began.
    under_way: Option<Instant>,
    seen: Seen,
    stalled: bool,
}

impl Look {
    /// What the disk says now; `None`: it does not answer in time.
    pub(crate) async fn look<D: Disk>(&self, shared: &Arc<Shared<D>>, depth: Depth) -> Option<Seen> {
        let number = self.ask(shared, depth)?;
        let answer = async {
            loop {
                let told = self.told.notified();
                if let Some(seen) = self.answer(number) {
                    return seen;
                }
                told.await;
            }
        };
        let answer = tokio::time::timeout(DEADLINE, answer).await.ok();
        self.tell(answer.is_none());
        answer
    }

    /// As [`Self::look`], for a thread that may block.
    pub(crate) fn look_blocking<D: Disk>(&self, shared: &Arc<Shared<D>>, depth: Depth) -> Option<Seen> {
        let number = self.ask(shared, depth)?;
        let state = self.state();
        let waited = self.looked.wait_timeout_while(state, DEADLINE, |state| state.ended < number);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let answer = (state.ended >= number).then_some(state.seen);
        drop(state);
        self.tell(answer.is_none());
        answer
    }

    /// What the last look found that came to an end.
    pub(crate) fn last(&self) -> Seen {
        self.state().seen
    }

    /// Number of a look that begins after this; `None`: the one under way does not come back.
    fn ask<D: Disk>(&self, shared: &Arc<Shared<D>>, depth: Depth) -> Option<u64> {
        let mut state = self.state();
        if state.under_way.is_some_and(|since| state.stalled || since.elapsed() >= DEADLINE) {
            return None;
        }
        state.asked += 1;
        state.all_asked |= depth == Depth::All;
        let number = state.asked;
        state.under_way.get_or_insert_with(Instant::now);
        let is_there = std::mem::replace(&mut state.thread, true);
        drop(state);
        if is_there {
            self.wanted.notify_one();
            return Some(number);
        }
        let shared = shared.clone();
        let run = move || {
            while shared.look.is_asked() {
                shared.look.run_once(&shared.disk);
            }
        };
        if std::thread::Builder::new().name("leitstand-look".to_owned()).spawn(run).is_err() {
            let mut state = self.state();
            (state.thread, state.under_way) = (false, None);
            return None;
        }
        Some(number)
    }

    /// Waits for a question; false: there is none, and the thread ends.
    fn is_asked(&self) -> bool {
        let waited = self.wanted.wait_timeout_while(self.state(), LINGER, |state| state.asked == state.ended);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.thread = state.asked != state.ended;
        state.thread
    }

    fn run_once<D: Disk>(&self, disk: &D) {
        let (number, all) = {
            let mut state = self.state();
            state.under_way = Some(Instant::now());
            (state.asked, std::mem::take(&mut state.all_asked))
        };
        let look =
            || Seen { writable: all && disk.check_root().is_ok() && disk.writable().is_ok(), space: disk.space().ok() };
        // A bug; then it is not known.
        let seen = catch_unwind(AssertUnwindSafe(look)).unwrap_or_default();
        let mut state = self.state();
        state.seen = Seen { writable: if all { seen.writable } else { state.seen.writable }, ..seen };
        state.ended = number;
        state.under_way = (state.asked > number).then(Instant::now);
        drop(state);
        self.looked.notify_all();
        self.told.notify_waiters();
    }

    fn answer(&self, number: u64) -> Option<Seen> {
        let state = self.state();
        (state.ended >= number).then_some(state.seen)
    }

    /// Once for each time that it begins and ends.
    fn tell(&self, stalled: bool) {
        let before = std::mem::replace(&mut self.state().stalled, stalled);
        match (before, stalled) {
            (false, true) => tracing::error!(
                "the disk of the data directory does not answer within {} ms: not ready, see RUNBOOK",
                DEADLINE.as_millis()
            ),
            (true, false) => tracing::warn!("the disk of the data directory answers again"),
            _ => {}
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Only plain values are set under it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
