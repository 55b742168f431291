//! `Threads`: threads that may block, for work that others bound.
//!
//! Those of the runtime panic when the system gives no thread, and what was handed to them stays in their queue then,
//! with all it holds, until somebody else finds a thread. Here the first thread stays for good, so that work goes on
//! in such a shortage, one piece after the other; and without any thread the work comes back.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// After so long without work all threads but one end.
const IDLE_MAX: Duration = Duration::from_secs(10);

pub(crate) type Job = Box<dyn FnOnce() + Send>;

pub(crate) struct Threads {
    state: Mutex<State>,
    wake: Condvar,
    threads_max: usize,
}

struct State {
    queue: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

impl Threads {
    /// At most `threads_max` threads, none yet.
    pub(crate) const fn new(threads_max: usize) -> Threads {
        let state = State { queue: VecDeque::new(), threads: 0, idle: 0 };
        Threads { state: Mutex::new(state), wake: Condvar::new(), threads_max }
    }

    /// Hands `job` to a thread that has nothing to do, to a new one, or to the first that comes back.
    ///
    /// # Errors
    /// There is no thread and the system gives none; the job is dropped.
    pub(crate) fn run(&'static self, job: Job) -> io::Result<()> {
        let mut state = self.state();
        state.queue.push_back(job);
        if state.idle >= state.queue.len() {
            self.wake.notify_one();
            return Ok(());
        }
        if let Err(error) = self.start(&mut state)
            && state.threads == 0
        {
            // Nobody else has put anything down: whoever could not be served has taken it back.
            state.queue.clear();
            return Err(error);
        }
        Ok(())
    }

    /// One more thread, if there may be one.
    fn start(&'static self, state: &mut State) -> io::Result<()> {
        if state.threads >= self.threads_max {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let name = "leitstand-work".to_owned();
        std::thread::Builder::new().name(name).spawn(|| {
            while let Some(job) = self.next() {
                // Whoever waits for it learns of a panic: its sender is gone.
                let _ = catch_unwind(AssertUnwindSafe(job));
            }
        })?;
        state.threads += 1;
        Ok(())
    }

    /// `None` ends the thread.
    fn next(&self) -> Option<Job> {
        let mut state = self.state();
        loop {
            if let Some(job) = state.queue.pop_front() {
                return Some(job);
            }
            state.idle += 1;
            let (woken, waited) = self.wake.wait_timeout(state, IDLE_MAX).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if waited.timed_out() && state.queue.is_empty() && state.threads > 1 {
                state.threads -= 1;
                return None;
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No job runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Broken, work would wait for ever, or run in more threads than there may be.
    #[test]
    fn work_runs_on_as_many_threads_as_there_may_be() {
        static THREADS: Threads = Threads::new(2);
        let (tell, told) = mpsc::channel();
        let (go, goes) = mpsc::channel::<()>();
        let goes = std::sync::Arc::new(Mutex::new(goes));
        for n in 0..2 {
            let (tell, goes) = (tell.clone(), goes.clone());
            THREADS
                .run(Box::new(move || {
                    tell.send(n).unwrap();
                    let _ = goes.lock().unwrap().recv();
                    panic!("on purpose");
                }))
                .unwrap();
        }
        assert_eq!(told.recv_timeout(PATIENCE).unwrap() + told.recv_timeout(PATIENCE).unwrap(), 1);
        let more = tell.clone();
        THREADS.run(Box::new(move || more.send(7).unwrap())).unwrap();
        assert!(told.try_recv().is_err(), "both threads are busy");
        drop(go);
        assert_eq!(told.recv_timeout(PATIENCE), Ok(7), "a panic ends no thread");
        assert_eq!(THREADS.state().threads, 2);
    }

    /// Broken, what was handed over is kept, with all it holds, for a thread that never comes.
    #[test]
    fn without_a_thread_the_work_is_dropped() {
        static NONE: Threads = Threads::new(0);
        let held = std::sync::Arc::new(());
        let holds = held.clone();
        assert!(NONE.run(Box::new(move || drop(holds))).is_err());
        assert_eq!(std::sync::Arc::strong_count(&held), 1);
    }
}
