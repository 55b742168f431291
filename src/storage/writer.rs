//! `DomainWriter`: the queue of one domain, and the turns that empty it.
//!
//! A group is everything that queued while the last one was on its way to the disk; no timer
//! forms it. Whoever finds no turn running starts one: on a blocking thread when it must sync, on
//! the caller's own thread when it need not. Waiting (for a foreign lock, for a gap that lets a
//! foreign writer in) is a timer and occupies no thread.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::budget::Reservation;
use super::disk::{Disk, FileId};
use super::error::{StoreError, chain};
use super::layout::FileNames;
use super::log::{GROUP_JOBS_MAX, Log, SyncWhen};
use super::pace::Pace;
use super::{Fsync, Shared};
use crate::domain::Domain;

/// Most bytes in one group, unless a single batch is larger.
const GROUP_BYTES_MAX: usize = 4 << 20;
/// Largest batch that is written on the caller's thread when no sync is due.
const INLINE_BYTES_MAX: usize = 64 << 10;
/// First and longest pause between two looks at a foreign lock.
const LOCK_POLL_MIN: Duration = Duration::from_millis(1);
const LOCK_POLL_MAX: Duration = Duration::from_millis(50);

pub(crate) type Ack = Result<(), StoreError>;

/// One batch on its way to the disk. Owns its bytes and their reservation, so a client that hangs
/// up cancels nothing.
pub(crate) struct Job {
    pub lines: Vec<u8>,
    pub events: u64,
    pub queued_at: Instant,
    pub ack: oneshot::Sender<Ack>,
    /// Only held: given back when the job is dropped, after the ack.
    pub _reservation: Reservation,
}

/// The writer of one domain.
pub(crate) struct DomainWriter<D: Disk> {
    shared: Arc<Shared<D>>,
    domain: Domain,
    state: Mutex<State<D>>,
}

struct State<D: Disk> {
    queue: VecDeque<Job>,
    /// Callers that wait for a sync of what was written so far.
    syncs: Vec<oneshot::Sender<Ack>>,
    /// A turn is running, or waiting for its timer.
    running: bool,
    /// The open files, while no turn has them.
    log: Option<Log<D>>,
    poison: Option<Poison>,
    pace: Pace,
    lock_poll: Duration,
    lock_waiting_since: Option<Instant>,
    /// Written since the last sync (`Fsync::EverySecond` only).
    dirty: bool,
    used_at: Instant,
}

/// Why appends are refused until somebody has looked at the file.
struct Poison {
    reason: &'static str,
    /// The file that is in doubt. Another file under the same name lifts the poison.
    file: Option<FileId>,
}

/// When to take the next turn, if there is work.
enum Next {
    Now,
    After(Duration),
}

impl<D: Disk> DomainWriter<D> {
    pub(crate) fn new(shared: Arc<Shared<D>>, domain: Domain) -> Self {
        let state = State {
            queue: VecDeque::new(),
            syncs: Vec::new(),
            running: false,
            log: None,
            poison: None,
            pace: Pace::new(),
            lock_poll: LOCK_POLL_MIN,
            lock_waiting_since: None,
            dirty: false,
            used_at: Instant::now(),
        };
        DomainWriter { shared, domain, state: Mutex::new(state) }
    }

    /// Queues a job and sees to it that a turn will take it. The answer comes by `job.ack`.
    pub(crate) fn submit(self: &Arc<Self>, job: Job) {
        let inline = self.shared.options.fsync != Fsync::Always && job.lines.len() <= INLINE_BYTES_MAX;
        let mut state = self.state();
        state.queue.push_back(job);
        self.start(state, inline);
    }

    /// Asks for a sync of everything written so far.
    pub(crate) fn request_sync(self: &Arc<Self>) -> oneshot::Receiver<Ack> {
        let (ack, done) = oneshot::channel();
        let mut state = self.state();
        state.syncs.push(ack);
        self.start(state, false);
        done
    }

    fn start(self: &Arc<Self>, mut state: MutexGuard<'_, State<D>>, inline: bool) {
        if state.running {
            return;
        }
        state.running = true;
        drop(state);
        if inline { self.clone().run(true) } else { self.spawn() }
    }

    fn spawn(self: &Arc<Self>) {
        let writer = self.clone();
        tokio::task::spawn_blocking(move || writer.run(false));
    }

    /// Takes turns until there is nothing to do or something to wait for. `once`: hand over to a
    /// blocking thread after the first group.
    fn run(self: Arc<Self>, once: bool) {
        let mut unwinding = PoisonOnUnwind { writer: &self, armed: true };
        let mut log = self.state().log.take().unwrap_or_else(|| self.shared.new_log(&self.domain));
        loop {
            let next = self.turn(&mut log);
            let mut state = self.state();
            if let Next::After(pause) = next {
                state.log = Some(log);
                self.spawn_after(pause);
                break;
            }
            if state.queue.is_empty() && state.syncs.is_empty() {
                state.running = false;
                state.used_at = Instant::now();
                // Dropping the log closes the files.
                state.log = (state.dirty || self.shared.may_keep_open()).then_some(log);
                break;
            }
            if once {
                state.log = Some(log);
                self.spawn();
                break;
            }
        }
        unwinding.armed = false;
    }

    fn spawn_after(self: &Arc<Self>, pause: Duration) {
        let writer = self.clone();
        tokio::runtime::Handle::current().spawn(async move {
            tokio::time::sleep(pause).await;
            writer.spawn();
        });
    }

    fn turn(&self, log: &mut Log<D>) -> Next {
        let now = Instant::now();
        let mut state = self.state();
        if state.poison.is_some() && !self.lift_poison(&mut state, log) {
            return Next::Now;
        }
        if !state.syncs.is_empty() {
            let syncs = std::mem::take(&mut state.syncs);
            state.dirty = false;
            drop(state);
            self.sync(log, syncs);
            return Next::Now;
        }
        if state.queue.is_empty() {
            return Next::Now;
        }
        if let Some(gap) = state.pace.gap() {
            return Next::After(gap);
        }
        match log.try_lock(&self.shared.disk) {
            Ok(true) => {}
            Ok(false) => return self.lock_is_taken(&mut state, now),
            Err(error) => {
                let jobs: Vec<_> = state.queue.drain(..).collect();
                drop(state);
                self.answer_all(jobs, Err(error));
                return Next::Now;
            }
        }
        if let Some(since) = state.lock_waiting_since.take() {
            state.pace.saw_foreign(now);
            self.shared.metrics.lock_wait(now - since);
        }
        state.lock_poll = LOCK_POLL_MIN;
        state.pace.taken(now);
        let group = take_group(&mut state.queue);
        drop(state);
        let results = self.append(log, &group);
        log.unlock(&self.shared.disk);
        self.state().pace.released(Instant::now());
        for (job, result) in group.into_iter().zip(results) {
            self.answer(job, result);
        }
        Next::Now
    }

    /// Appends a group; when there is no room for all of it, each member on its own, so that one
    /// huge batch does not fail its small neighbours.
    fn append(&self, log: &mut Log<D>, group: &[Job]) -> Vec<Ack> {
        let lines: Vec<&[u8]> = group.iter().map(|job| job.lines.as_slice()).collect();
        match self.append_lines(log, &lines) {
            Err(StoreError::Full { .. }) if group.len() > 1 => {
                lines.iter().map(|&line| self.append_lines(log, &[line])).collect()
            }
            result => vec![result; group.len()],
        }
    }

    fn append_lines(&self, log: &mut Log<D>, lines: &[&[u8]]) -> Ack {
        if let Some(poison) = &self.state().poison {
            return Err(StoreError::Poisoned { reason: poison.reason });
        }
        let when = if self.shared.options.fsync == Fsync::Always { SyncWhen::Now } else { SyncWhen::Later };
        match log.append(&self.shared.disk, lines, when) {
            Ok(appended) => {
                self.shared.metrics.appended(&appended, lines, when);
                let mut state = self.state();
                if appended.foreign {
                    state.pace.saw_foreign(Instant::now());
                }
                state.dirty |= when == SyncWhen::Later && self.shared.options.fsync == Fsync::EverySecond;
                drop(state);
                if let Some(bytes) = appended.torn_bytes {
                    tracing::warn!(domain = %self.domain, bytes, "torn tail moved to .torn/");
                }
                Ok(())
            }
            Err(error) => {
                if error.poisons() {
                    self.poison(error.label(), log.data_id());
                }
                Err(error)
            }
        }
    }

    fn sync(&self, log: &mut Log<D>, syncs: Vec<oneshot::Sender<Ack>>) {
        let result = log.sync(&self.shared.disk);
        if let Err(error) = &result {
            tracing::error!(domain = %self.domain, error = %chain(error), "sync failed after the answer");
            self.poison(error.label(), log.data_id());
        }
        for ack in syncs {
            // Nobody may be waiting any more; the sync was done all the same.
            let _ = ack.send(result.clone());
        }
    }

    /// The lock is with somebody else: refuses who has waited long enough, and says when to look
    /// again. compat: a timeout of 0 is one try.
    fn lock_is_taken(&self, state: &mut State<D>, now: Instant) -> Next {
        state.lock_waiting_since.get_or_insert(now);
        let timeout = self.shared.options.lock_timeout;
        let draining_until = self.shared.lock_deadline();
        let mut wait = state.lock_poll;
        state.lock_poll = (state.lock_poll * 2).min(LOCK_POLL_MAX);
        let mut refused = Vec::new();
        while let Some(job) = state.queue.pop_front() {
            let deadline = job.queued_at + timeout;
            let waited = now.saturating_duration_since(job.queued_at);
            if draining_until.is_some_and(|until| until <= now) {
                refused.push((job, StoreError::ShuttingDown));
            } else if deadline <= now {
                self.shared.metrics.lock_wait(waited);
                refused.push((job, StoreError::LockTimeout { waited_ms: waited.as_millis() as u64 }));
            } else {
                // Queued in order, all with the same timeout: nobody behind has waited longer.
                wait = wait.min(deadline - now);
                state.queue.push_front(job);
                break;
            }
        }
        for (job, error) in refused {
            self.answer(job, Err(error));
        }
        if state.queue.is_empty() {
            state.lock_waiting_since = None;
            return Next::Now;
        }
        Next::After(wait)
    }

    /// Refuses everything queued, unless another file has taken the place of the doubtful one:
    /// then an operator has dealt with it, and the writer starts afresh.
    fn lift_poison(&self, state: &mut State<D>, log: &mut Log<D>) -> bool {
        let Some(poison) = &state.poison else { return true };
        let now = log_id_of(&self.shared.disk, &self.domain);
        if now.is_some() && now != poison.file {
            tracing::warn!(domain = %self.domain, "data file was replaced, appends go on");
            state.poison = None;
            self.shared.unpoisoned();
            *log = self.shared.new_log(&self.domain);
            return true;
        }
        let error = StoreError::Poisoned { reason: poison.reason };
        for ack in state.syncs.drain(..) {
            // As in `sync`.
            let _ = ack.send(Err(error.clone()));
        }
        let jobs: Vec<_> = state.queue.drain(..).collect();
        self.answer_all(jobs, Err(error));
        false
    }

    fn poison(&self, reason: &'static str, file: Option<FileId>) {
        let mut state = self.state();
        if state.poison.is_none() {
            state.poison = Some(Poison { reason, file });
            self.shared.poisoned();
            tracing::error!(domain = %self.domain, reason, "domain poisoned: appends are refused until the file is replaced, see RUNBOOK");
        }
    }

    fn answer_all(&self, jobs: Vec<Job>, result: Ack) {
        for job in jobs {
            self.answer(job, result.clone());
        }
    }

    fn answer(&self, job: Job, result: Ack) {
        match &result {
            Ok(()) => self.shared.metrics.acknowledged(job.events, job.lines.len()),
            Err(error) => self.shared.metrics.refused(error),
        }
        // The client may have hung up; what was written stays written.
        let _ = job.ack.send(result);
    }

    /// Was anything written since the last sync?
    pub(crate) fn is_dirty(&self) -> bool {
        self.state().dirty
    }

    /// Closes the files if the writer has been idle for `idle`. True when the writer holds nothing
    /// that would be lost by forgetting it.
    pub(crate) fn rest(&self, idle: Duration) -> bool {
        let mut state = self.state();
        if state.running || state.dirty || !state.queue.is_empty() || state.used_at.elapsed() < idle {
            return false;
        }
        state.log = None;
        state.poison.is_none()
    }

    fn state(&self) -> MutexGuard<'_, State<D>> {
        // A panic while it was held has poisoned the domain already, by our own means.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn take_group(queue: &mut VecDeque<Job>) -> Vec<Job> {
    let mut bytes = 0;
    let mut jobs = 0;
    for job in queue.iter().take(GROUP_JOBS_MAX) {
        bytes += job.lines.len();
        if jobs > 0 && bytes > GROUP_BYTES_MAX {
            break;
        }
        jobs += 1;
    }
    queue.drain(..jobs).collect()
}

fn log_id_of<D: Disk>(disk: &D, domain: &Domain) -> Option<FileId> {
    disk.stat(&FileNames::of(domain).data).ok().flatten().map(|stat| stat.id)
}

/// If a turn panics, its group was dropped without an answer (the callers see
/// [`StoreError::Panicked`]) and the file is in doubt: poison the domain rather than go on.
struct PoisonOnUnwind<'a, D: Disk> {
    writer: &'a DomainWriter<D>,
    armed: bool,
}

impl<D: Disk> Drop for PoisonOnUnwind<'_, D> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let file = log_id_of(&self.writer.shared.disk, &self.writer.domain);
        self.writer.poison("panicked", file);
        let mut state = self.writer.state();
        state.running = false;
        state.syncs.clear();
        let jobs: Vec<_> = state.queue.drain(..).collect();
        drop(state);
        self.writer.answer_all(jobs, Err(StoreError::Poisoned { reason: "panicked" }));
    }
}
