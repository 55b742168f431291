//! `Turns`: work of requests on threads that may block, only so much of it at once.
//!
//! A client may hang up at any time, and its request's future is dropped then; a thread goes on to the end of what
//! it does. So everything that stands for the work travels with it, in the closure: its turn, the body, and the
//! body's share of the byte budget. Nothing of it is given back before the thread is done, and what still waits for
//! its turn leaves the queue. This is the only place of the HTTP layer that hands work to such a thread.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::error::ApiError;

/// So many pieces of one kind of work at once. Those that wait are as many as the connections at most.
pub(crate) struct Turns(Arc<Semaphore>);

impl Turns {
    pub(crate) fn new(at_once: usize) -> Turns {
        Turns(Arc::new(Semaphore::new(at_once)))
    }

    /// Runs `work` on a thread that may block, when its turn comes.
    ///
    /// # Errors
    /// [`ApiError::Panicked`] when it panics.
    ///
    /// # Cancel safety
    /// Dropped before the work has begun, it never begins, and everything in `work` is dropped. Dropped later,
    /// the work runs to its end, and keeps its turn until then; its result is dropped.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let turn = self.0.clone().acquire_owned().await.map_err(|_| ApiError::Panicked)?;
        let mut under_way = UnderWay(tokio::task::spawn_blocking(move || {
            let result = work();
            drop(turn);
            result
        }));
        (&mut under_way.0).await.map_err(|_| ApiError::Panicked)
    }

    /// Takes a turn without any work.
    #[cfg(test)]
    pub(crate) fn hold(&self) -> tokio::sync::OwnedSemaphorePermit {
        self.0.clone().try_acquire_owned().expect("a turn is free")
    }

    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        self.0.available_permits()
    }
}

/// Work that waits for a thread is taken back when nobody waits for it any more.
struct UnderWay<T>(JoinHandle<T>);

impl<T> Drop for UnderWay<T> {
    fn drop(&mut self) {
        // Of no effect on work that has begun, or has ended.
        self.0.abort();
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
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(1)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let turns = Turns::new(8);
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
