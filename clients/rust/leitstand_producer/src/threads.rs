//! Threads of a client: one that drives connections and timers, and a few for calls that wait for the disk.
//! Where the system gives no thread, that is an error or the caller's own work, never a panic.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// Calls with a spool that are served at once; others wait.
const WORKERS_MAX: usize = 128;
/// A thread without work ends after this time.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// The one thread that drives connections and timers for all callers; it ends when this is dropped.
pub(crate) struct Engine {
    handle: Handle,
    /// Never sent on. Its end is the sign to stop.
    _running: oneshot::Sender<()>,
}

impl Engine {
    pub fn start() -> io::Result<Engine> {
        let (running, stopped) = oneshot::channel::<()>();
        let (told, started) = sync_channel(1);
        // The runtime is made and dropped in its own thread: a caller may be where none can be dropped.
        thread::Builder::new().name("leitstand-producer".to_owned()).spawn(move || {
            match Builder::new_current_thread().enable_io().enable_time().build() {
                Ok(runtime) => {
                    let _ = told.send(Ok(runtime.handle().clone()));
                    // An error is what is waited for: nobody holds the other end any more.
                    let _ = runtime.block_on(stopped);
                }
                Err(e) => drop(told.send(Err(e))),
            }
        })?;
        let handle = started.recv().map_err(|_| io::Error::other("it has ended at once"))??;
        Ok(Engine { handle, _running: running })
    }

    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// Threads for calls that wait for the disk. They end when this is dropped and the work is done.
#[derive(Default)]
pub(crate) struct Workers {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<Work>,
    more: Condvar,
}

#[derive(Default)]
struct Work {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    is_over: bool,
}

impl Workers {
    /// Starts a job on one of the threads; on this one, if there is no other.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        let mut work = self.shared.lock();
        work.jobs.push_back(Box::new(job));
        if work.idle >= work.jobs.len() {
            drop(work);
            self.shared.more.notify_one();
            return;
        }
        if work.threads == WORKERS_MAX {
            return;
        }
        let shared = self.shared.clone();
        let started = thread::Builder::new().name("leitstand-spool".to_owned()).spawn(move || shared.serve());
        match started {
            Ok(_) => work.threads += 1,
            Err(_) if work.threads > 0 => {}
            Err(_) => {
                let job = work.jobs.pop_back();
                drop(work);
                if let Some(job) = job {
                    job();
                }
            }
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        self.shared.more.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        let mut work = self.lock();
        loop {
            while let Some(job) = work.jobs.pop_front() {
                drop(work);
                // Whoever waits for it is told by the end of its channel.
                let _ = catch_unwind(AssertUnwindSafe(job));
                work = self.lock();
            }
            if work.is_over {
                break;
            }
            work.idle += 1;
            let (back, waited) = self.more.wait_timeout(work, IDLE_MAX).unwrap_or_else(PoisonError::into_inner);
            work = back;
            work.idle -= 1;
            if waited.timed_out() && work.jobs.is_empty() {
                break;
            }
        }
        work.threads -= 1;
    }
}
