//! `Turns`: work of requests on threads that may block, only so much of it at once.
//!
//! A client may hang up at any time, and its request's future is dropped then; a thread goes on to the end of what
//! it does. So everything that stands for the work travels with it, in the closure: its turn, the body, and the
//! body's share of the byte budget. Nothing of it is given back before the thread is done, and what still waits for
//! its turn leaves the queue. This is the only place of the HTTP layer that hands work to such a thread.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::error::ApiError;
use super::threads::Threads;
use crate::storage::StoreError;

/// For all turns together; they bound how many there are.
static THREADS: Threads = Threads::new(usize::MAX);

/// So many pieces of one kind of work at once. Those that wait are as many as the connections at most.
pub(crate) struct Turns {
    turns: Arc<Semaphore>,
    threads: &'static Threads,
}

impl Turns {
    pub(crate) fn new(at_once: usize) -> Turns {
        Turns::on(&THREADS, at_once)
    }

    fn on(threads: &'static Threads, at_once: usize) -> Turns {
        Turns { turns: Arc::new(Semaphore::new(at_once)), threads }
    }

    /// Runs `work` on a thread that may block, when its turn comes.
    ///
    /// # Errors
    /// [`ApiError::Panicked`] when it panics; [`StoreError::Exhausted`] when there is no thread, then it never began.
    ///
    /// # Cancel safety
    /// Dropped before the work has begun, it never begins, and everything in `work` is dropped. Dropped later,
    /// the work runs to its end, and keeps its turn until then; its result is dropped.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let turn = self.turns.clone().acquire_owned().await.map_err(|_| ApiError::Panicked)?;
        let (tell, told) = oneshot::channel();
        let waiting = Waiting(Arc::new(Mutex::new(Some((work, turn)))));
        let begins = waiting.0.clone();
        let job = move || {
            let Some((work, turn)) = taken(&begins) else { return };
            let result = work();
            drop(turn);
            // Nobody may be waiting any more.
            let _ = tell.send(result);
        };
        self.threads.run(Box::new(job)).map_err(no_thread)?;
        told.await.map_err(|_| ApiError::Panicked)
    }

    /// Takes a turn without any work.
    #[cfg(test)]
    pub(crate) fn hold(&self) -> OwnedSemaphorePermit {
        self.turns.clone().try_acquire_owned().expect("a turn is free")
    }

    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        self.turns.available_permits()
    }
}

/// The system gives no thread; it passes when others are done.
pub(crate) fn no_thread(error: io::Error) -> StoreError {
    StoreError::Exhausted { op: "start a thread", source: Arc::new(error) }
}

/// Work with its turn, until it begins.
type Slot<F> = Mutex<Option<(F, OwnedSemaphorePermit)>>;

fn taken<F>(slot: &Slot<F>) -> Option<(F, OwnedSemaphorePermit)> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Work that waits for a thread is taken back when nobody waits for it any more.
struct Waiting<F>(Arc<Slot<F>>);

impl<F> Drop for Waiting<F> {
    fn drop(&mut self) {
        // Of no effect on work that has begun.
        taken(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use futures_util::FutureExt as _;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Broken, whoever hangs up in the middle gives a turn free while the thread still works, and with many of
    /// them there is no bound.
    #[test]
    fn work_keeps_its_turn_and_what_it_holds_when_nobody_waits_for_it() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let turns = Turns::new(2);
            let (held, running) = (Arc::new(()), Arc::new(AtomicUsize::new(0)));
            let (go, goes) = (0..2).map(|_| mpsc::channel::<()>()).unzip::<_, _, Vec<_>, Vec<_>>();
            for goes in goes {
                let before = running.load(Ordering::SeqCst);
                let (its_held, its_running) = (held.clone(), running.clone());
                let mut work = Box::pin(turns.run(move || {
                    its_running.fetch_add(1, Ordering::SeqCst);
                    goes.recv().unwrap();
                    drop(its_held);
                }));
                assert!(work.as_mut().now_or_never().is_none());
                wait_until(|| running.load(Ordering::SeqCst) > before).await;
                // It has begun; now nobody waits for it any more.
                drop(work);
            }
            assert_eq!((turns.free(), Arc::strong_count(&held)), (0, 3), "both still work");
            let never = held.clone();
            let mut waits = Box::pin(turns.run(move || drop(never)));
            assert!(waits.as_mut().now_or_never().is_none());
            assert_eq!(Arc::strong_count(&held), 4);
            drop(waits);
            assert_eq!(Arc::strong_count(&held), 3, "who left the queue holds nothing");
            go.iter().for_each(|go| go.send(()).unwrap());
            wait_until(|| turns.free() == 2 && Arc::strong_count(&held) == 1).await;
            assert_eq!(running.load(Ordering::SeqCst), 2);
        });
    }

    /// Broken, what has not begun when its client leaves begins all the same, with nobody to answer.
    #[test]
    fn work_without_a_thread_is_taken_back() {
        static ONE: Threads = Threads::new(1);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let turns = Turns::on(&ONE, 8);
            let (go, goes) = mpsc::channel::<()>();
            let mut first = Box::pin(turns.run(move || goes.recv().unwrap()));
            assert!(first.as_mut().now_or_never().is_none());
            let begun = Arc::new(AtomicUsize::new(0));
            let count = begun.clone();
            let mut second = Box::pin(turns.run(move || count.fetch_add(1, Ordering::SeqCst)));
            assert!(second.as_mut().now_or_never().is_none());
            drop(second);
            go.send(()).unwrap();
            first.await.unwrap();
            turns.run(|| ()).await.unwrap();
            wait_until(|| turns.free() == 8).await;
            assert_eq!(begun.load(Ordering::SeqCst), 0);
        });
    }

    /// Broken, whoever comes while the system gives no threads takes a turn with him for good, and after a few of them
    /// nobody is served any more, whatever the system gives.
    #[test]
    fn without_a_thread_the_turn_comes_back_and_the_client_may_try_again() {
        static NONE: Threads = Threads::new(0);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let turns = Turns::on(&NONE, 1);
        for _ in 0..3 {
            let error = runtime.block_on(turns.run(|| ())).unwrap_err();
            assert!(matches!(error, ApiError::Store(StoreError::Exhausted { .. })), "{error:?}");
            assert_eq!(turns.free(), 1);
        }
    }

    #[test]
    fn a_panic_gives_the_turn_back() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let turns = Turns::new(1);
        let result = runtime.block_on(turns.run(|| panic!("on purpose")));
        assert!(matches!(result, Err(ApiError::Panicked)));
        assert_eq!(turns.free(), 1);
    }

    async fn wait_until(mut is_so: impl FnMut() -> bool) {
        let wait = async {
            while !is_so() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("in time");
    }
}
