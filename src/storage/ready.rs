//! `Ready`: work for threads that may block, how many of them there are, and how one finds more.
//!
//! Waking a thread costs more than a short sync. So a thread that has nothing left to do looks
//! around for a moment before it ends, and while one does, no other is started. And many syncs at
//! once get in each other's way in the file system, so a few threads do them, and more are started
//! only when those few do not come back: then the disk is slow, and waiting side by side is better
//! than waiting in line. No timer delays anything; whoever puts work down starts the thread.

use std::collections::VecDeque;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::sync::{Mutex, MutexGuard};

/// How many threads look for more work at the same time; others would only take the processor from
/// those who bring it.
pub(crate) const LINGERING_MAX: usize = 2;
/// How many threads there may be for a kind of work.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Threads {
    /// While the disk is fast.
    pub quick: usize,
    /// While it is slow.
    pub slow: usize,
    /// Those that are away count too.
    pub all: bool,
}

/// Who is to come for work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// Somebody comes by anyway.
    Nobody,
    /// One that sleeps, if one does.
    Sleeper,
    /// A thread that the caller starts.
    New,
}

/// For syncs that may go on side by side.
pub(crate) const SIDE_BY_SIDE: Threads = Threads { quick: 8, slow: usize::MAX, all: true };
/// For work that has to wait for a sync that is under way, whoever takes it. While that is slow, somebody
/// may make ready what comes next.
pub(crate) const IN_LINE: Threads = Threads { quick: 1, slow: 3, all: false };
/// The disk is slow when no thread has come for more work for so long.
pub(crate) const SLOW_AFTER: Duration = Duration::from_millis(1);

/// Those at work hang when none of them has come for so long; then whatever is ready gets a thread of its own.
pub(crate) const STUCK_AFTER: Duration = Duration::from_millis(200);

pub(crate) struct Ready<Work>(Mutex<State<Work>>);

struct State<Work> {
    queue: VecDeque<Work>,
    /// Started and not ended.
    threads: usize,
    lingering: usize,
    /// At work that may take long, and so nobody to wait for.
    away: usize,
    /// When a thread last came for work.
    asked_at: Instant,
}

impl<Work> Ready<Work> {
    pub(crate) fn new() -> Self {
        let state = State { queue: VecDeque::new(), threads: 0, lingering: 0, away: 0, asked_at: Instant::now() };
        Ready(Mutex::new(state))
    }

    /// Puts work down. The caller must do as told, see [`Ready::call`].
    #[must_use]
    pub(crate) fn put(&self, work: Work, now: Instant, threads: Threads) -> Call {
        let mut state = self.state();
        state.queue.push_back(work);
        state.call(now, threads)
    }

    /// Who is to be called for work that nobody is coming for. With [`Call::New`] the caller must start a
    /// thread, and that must do what [`Ready::take`] gives until it gives nothing, or say that it
    /// [`Ready::died`].
    #[must_use]
    pub(crate) fn call(&self, now: Instant, threads: Threads) -> Call {
        self.state().call(now, threads)
    }

    /// The next work; `None` ends the thread. With nothing there it looks again whenever
    /// `look_again` returns: for the last time when that says `false`.
    pub(crate) fn take(&self, now: Instant, mut look_again: impl FnMut() -> bool) -> Option<Work> {
        let mut state = self.state();
        state.asked_at = now;
        if state.queue.is_empty() && state.lingering < LINGERING_MAX {
            state.lingering += 1;
            let mut last = false;
            while state.queue.is_empty() && !last {
                drop(state);
                last = !look_again();
                state = self.state();
            }
            state.lingering -= 1;
            state.asked_at = state.asked_at.max(Instant::now());
        }
        let work = state.queue.pop_front();
        // In the same moment as the last look: work that comes later starts a thread.
        if work.is_none() {
            state.threads -= 1;
        }
        work
    }

    /// What is there now; the caller is a thread that goes on in any case.
    pub(crate) fn all(&self, now: Instant) -> VecDeque<Work> {
        let mut state = self.state();
        state.asked_at = now;
        std::mem::take(&mut state.queue)
    }

    /// The caller starts a thread for another reason than work put down here.
    pub(crate) fn started(&self) {
        self.state().threads += 1;
    }

    /// A thread begins with something that may take long. Who is to be called for what it leaves lying.
    #[must_use]
    pub(crate) fn leaves(&self, now: Instant) -> Call {
        let mut state = self.state();
        state.away += 1;
        state.call(now, IN_LINE)
    }

    /// It is done with that.
    pub(crate) fn returns(&self) {
        self.state().away -= 1;
    }

    /// A thread has ended before [`Ready::take`] gave it nothing.
    pub(crate) fn died(&self) {
        self.state().threads -= 1;
    }

    fn state(&self) -> MutexGuard<'_, State<Work>> {
        // Only moves and counts happen under it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<Work> State<Work> {
    /// Counts the thread that its caller starts.
    fn call(&mut self, now: Instant, threads: Threads) -> Call {
        let slow = now.saturating_duration_since(self.asked_at) >= SLOW_AFTER;
        let stuck = now.saturating_duration_since(self.asked_at) >= STUCK_AFTER;
        let enough = if stuck {
            usize::MAX
        } else if slow {
            threads.slow
        } else {
            threads.quick
        };
        if self.queue.is_empty() {
            return Call::Nobody;
        }
        let counted = if threads.all { self.threads } else { self.threads - self.away };
        if self.queue.len() > self.lingering {
            if counted >= enough {
                return Call::Nobody;
            }
            self.threads += 1;
            return Call::New;
        }
        // One that looks around sees it anyway; one that sleeps need not be woken if those at work are enough.
        if counted - self.lingering >= enough { Call::Nobody } else { Call::Sleeper }
    }
}
