//! `DomainWriter`: the queue of one domain, and the turns that empty it.
//!
//! A group is everything that queued while the last one was on its way to the disk; no timer
//! forms it. Whoever finds no turn running starts one: on a blocking thread when it must sync, on
//! the thread that brought the jobs when it need not. Waiting (for a foreign lock, for a gap that
//! lets a foreign writer in) is a timer and occupies no thread.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicIsize, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::budget::Reservation;
use super::disk::{Disk, FileId};
use super::error::{StoreError, chain};
use super::inbox::Inbox;
use super::layout::FileNames;
use super::log::{GROUP_JOBS_MAX, Log, SyncWhen};
use super::marker;
use super::pace::Pace;
use super::pieces::WriterId;
use super::{Fsync, Shared};
use crate::domain::Domain;

/// Most bytes in one group, unless a single batch is larger.
const GROUP_BYTES_MAX: usize = 4 << 20;
/// Largest group that is written on a worker of the runtime, when no sync is due.
const INLINE_BYTES_MAX: usize = 64 << 10;
/// Most groups that one thread writes in a row when it has other work.
const INLINE_TURNS_MAX: u32 = 4;
/// How long a thread that has nothing left to do looks for more.
const LINGER: Duration = Duration::from_micros(50);
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
    /// Until when it waits for a foreign lock.
    pub lock_deadline: Instant,
    pub ack: oneshot::Sender<Ack>,
    /// The runtime that waits for the ack.
    pub home: Handle,
    /// Only held: given back when the job is dropped, after the ack.
    pub _reservation: Reservation,
}

impl Job {
    fn answer(self, result: Ack) {
        // The client may have hung up; what was written stays written.
        let _ = self.ack.send(result);
    }
}

/// The writer of one domain.
pub(crate) struct DomainWriter<D: Disk> {
    shared: Arc<Shared<D>>,
    domain: Domain,
    id: WriterId,
    inbox: Inbox<Job, oneshot::Sender<Ack>, Desk<D>>,
    /// Written since the last sync (`Fsync::EverySecond` only).
    dirty: AtomicBool,
    poisoned: AtomicBool,
    /// Jobs without an answer. Negative for a moment after a panic, which loses count.
    queued: AtomicIsize,
}

/// Everything a turn works with; it goes from hand to hand, so that nobody needs a lock for it.
struct Desk<D: Disk> {
    log: Log<D>,
    /// Taken from the queue, not yet written; the next groups come from its front.
    group: VecDeque<Job>,
    syncs: Vec<oneshot::Sender<Ack>>,
    poison: Option<Poison>,
    pace: Pace,
    lock_poll: Duration,
    lock_waiting_since: Option<Instant>,
    used_at: Instant,
}

/// A writer that is to take turns on a thread that may block.
pub(crate) struct Turns<D: Disk> {
    writer: Arc<DomainWriter<D>>,
    desk: Desk<D>,
}

/// One thread that takes turns for whoever is ready.
pub(crate) struct TurnsThread<D: Disk> {
    shared: Arc<Shared<D>>,
    ended: bool,
}

impl<D: Disk> TurnsThread<D> {
    /// Starts one for work that nobody is coming for.
    pub(crate) fn spawn(shared: &Arc<Shared<D>>) {
        let thread = TurnsThread { shared: shared.clone(), ended: false };
        shared.runtime().spawn_blocking(move || thread.run());
    }

    fn run(mut self) {
        loop {
            let now = Instant::now();
            let until = now + LINGER;
            let look_again = || {
                // Whoever brings work may need this processor for it.
                std::thread::yield_now();
                Instant::now() < until
            };
            let Some(Turns { writer, desk }) = self.shared.ready.take(now, look_again) else { break };
            writer.run(desk, false);
        }
        self.ended = true;
    }
}

/// A turn has panicked, or the runtime is gone.
impl<D: Disk> Drop for TurnsThread<D> {
    fn drop(&mut self) {
        if !self.ended {
            self.shared.ready.died();
        }
    }
}

/// Why appends are refused until somebody has looked at the file.
struct Poison {
    reason: &'static str,
    /// The file that is in doubt. Another file under the same name lifts the poison.
    file: Option<FileId>,
}

impl<D: Disk> DomainWriter<D> {
    pub(crate) fn new(shared: Arc<Shared<D>>, domain: Domain) -> Self {
        let desk = Desk::new(shared.new_log(&domain));
        let id = shared.neighbours.join();
        DomainWriter {
            shared,
            domain,
            id,
            inbox: Inbox::new(desk),
            dirty: AtomicBool::new(false),
            poisoned: AtomicBool::new(false),
            queued: AtomicIsize::new(0),
        }
    }

    /// Queues a job. The answer comes by `job.ack`, once somebody has called [`Self::start`].
    pub(crate) fn queue(&self, job: Job) {
        self.queued.fetch_add(1, Ordering::Relaxed);
        self.inbox.put(job);
    }

    /// Sees to it that a turn takes what has queued. Without a sync it is taken right here.
    pub(crate) fn start(self: &Arc<Self>) {
        let Some(desk) = self.inbox.take_desk() else { return };
        if self.shared.options.fsync == Fsync::Always {
            return self.spawn(desk);
        }
        // A panic has poisoned its domain and is in the log; the caller has other writers to start.
        let _ = catch_unwind(AssertUnwindSafe(|| self.clone().run(desk, true)));
    }

    /// Asks for a sync of everything written so far.
    pub(crate) fn request_sync(self: &Arc<Self>) -> oneshot::Receiver<Ack> {
        let (ack, done) = oneshot::channel();
        self.inbox.put_sync(ack);
        if let Some(desk) = self.inbox.take_desk() {
            self.spawn(desk);
        }
        done
    }

    /// On a thread that may block.
    fn spawn(self: &Arc<Self>, desk: Desk<D>) {
        if self.shared.ready.put(Turns { writer: self.clone(), desk }, Instant::now()) {
            TurnsThread::spawn(&self.shared);
        }
    }

    fn spawn_after(self: &Arc<Self>, pause: Duration, desk: Desk<D>) {
        let writer = self.clone();
        self.shared.runtime().spawn(async move {
            tokio::time::sleep(pause).await;
            writer.spawn(desk);
        });
    }

    /// Takes turns until there is nothing to do or something to wait for. `inline`: this thread has
    /// other work, so syncs and large groups go elsewhere, and so does a queue that does not end.
    fn run(self: Arc<Self>, mut desk: Desk<D>, inline: bool) {
        let mut unwinding = PoisonOnUnwind { writer: &self, armed: true };
        let mut turns = 0;
        while let Some(taken) = self.take_work(desk) {
            desk = taken;
            let elsewhere =
                turns == INLINE_TURNS_MAX || !desk.syncs.is_empty() || desk.group_bytes() > INLINE_BYTES_MAX;
            if inline && elsewhere {
                self.spawn(desk);
                break;
            }
            if let Some(pause) = self.turn(&mut desk, inline) {
                self.spawn_after(pause, desk);
                break;
            }
            turns += 1;
        }
        unwinding.armed = false;
    }

    /// Moves the next group to the desk, or puts the desk back when there is nothing to do.
    fn take_work(&self, desk: Desk<D>) -> Option<Desk<D>> {
        self.inbox.take_work(desk, |desk, queue, syncs| {
            if desk.group.is_empty() {
                desk.group.append(queue);
            }
            desk.syncs.append(syncs);
            if !desk.group.is_empty() || !desk.syncs.is_empty() {
                return true;
            }
            if !self.is_dirty() && !self.shared.may_keep_open() {
                desk.log.close();
            }
            desk.used_at = Instant::now();
            false
        })
    }

    /// One group, or one reason why not. `Some`: take the next turn after that pause.
    fn turn(&self, desk: &mut Desk<D>, inline: bool) -> Option<Duration> {
        if desk.poison.is_some() && !self.lift_poison(desk) {
            return None;
        }
        if !desk.syncs.is_empty() {
            self.sync(desk);
        }
        if desk.group.is_empty() {
            return None;
        }
        if let Some(gap) = desk.pace.gap(|| self.shared.disk.lock_wanted(desk.log.lock_name())) {
            return Some(gap);
        }
        match desk.log.try_lock(&self.shared.disk) {
            Ok(true) => {}
            Ok(false) => return self.lock_is_taken(desk),
            Err(error) => {
                self.answer_all(std::mem::take(&mut desk.group), Err(error));
                return None;
            }
        }
        let now = Instant::now();
        if let Some(since) = desk.lock_waiting_since.take() {
            desk.lock_poll = LOCK_POLL_MIN;
            self.shared.metrics.lock_wait(now - since);
        }
        desk.pace.taken(now);
        let group = desk.next_group();
        let results = self.append(desk, &group);
        desk.log.unlock(&self.shared.disk);
        let released = Instant::now();
        desk.pace.released(released);
        if results.iter().any(Result::is_ok) {
            self.shared.metrics.succeeded(released);
        }
        self.acknowledge(group, results, inline);
        None
    }

    /// Waking a task from outside its runtime costs a lock and a system call; so each runtime but
    /// the one we are on gets its acks in one parcel.
    fn acknowledge(&self, group: Vec<Job>, results: Vec<Ack>, inline: bool) {
        self.queued.fetch_sub(group.len() as isize, Ordering::Relaxed);
        for (job, result) in group.iter().zip(&results) {
            self.account(job, result);
        }
        let here = if inline { Handle::try_current().ok().map(|runtime| runtime.id()) } else { None };
        let mut away = Vec::new();
        for (job, result) in group.into_iter().zip(results) {
            if here == Some(job.home.id()) { job.answer(result) } else { away.push((job, result)) }
        }
        while let Some((first, _)) = away.first() {
            let home = first.home.clone();
            let parcel: Vec<(Job, Ack)> = away.extract_if(.., |(job, _)| job.home.id() == home.id()).collect();
            home.spawn(async move { parcel.into_iter().for_each(|(job, result)| job.answer(result)) });
        }
    }

    /// Appends a group; when there is no room for all of it, each member on its own, so that one
    /// huge batch does not fail its small neighbours.
    fn append(&self, desk: &mut Desk<D>, group: &[Job]) -> Vec<Ack> {
        let lines: Vec<&[u8]> = group.iter().map(|job| job.lines.as_slice()).collect();
        match self.append_lines(desk, &lines) {
            Err(StoreError::Full { .. }) if group.len() > 1 => {
                lines.iter().map(|&line| self.append_lines(desk, &[line])).collect()
            }
            result => vec![result; group.len()],
        }
    }

    fn append_lines(&self, desk: &mut Desk<D>, lines: &[&[u8]]) -> Ack {
        if let Some(poison) = &desk.poison {
            return Err(StoreError::Poisoned { reason: poison.reason });
        }
        let when = self.sync_when(lines.iter().map(|line| line.len()).sum());
        let result = desk.log.append(&self.shared.disk, lines, when);
        if let Some(bytes) = desk.log.take_torn_bytes() {
            self.shared.metrics.torn(bytes);
            tracing::warn!(domain = %self.domain, bytes, "torn tail moved to .torn/");
        }
        match result {
            Ok(appended) => {
                self.shared.metrics.appended(&appended, lines, when);
                if self.shared.options.fsync == Fsync::EverySecond {
                    self.dirty.store(true, Ordering::Release);
                }
                if appended.foreign {
                    desk.pace.saw_foreign(Instant::now());
                }
                Ok(())
            }
            Err(error) => {
                if error.poisons() {
                    self.poison(desk, error.label());
                }
                Err(error)
            }
        }
    }

    fn sync_when(&self, bytes: usize) -> SyncWhen {
        let options = &self.shared.options;
        if options.fsync != Fsync::Always {
            return SyncWhen::Later;
        }
        let now = Instant::now();
        if bytes <= options.piece_bytes_max {
            self.shared.neighbours.wrote_little(self.id, now);
        } else if self.shared.neighbours.near(self.id, now) {
            return SyncWhen::NowInPieces(options.piece_bytes_max);
        }
        SyncWhen::Now
    }

    fn sync(&self, desk: &mut Desk<D>) {
        self.dirty.store(false, Ordering::Release);
        let result = desk.log.sync(&self.shared.disk);
        if let Err(error) = &result {
            tracing::error!(domain = %self.domain, error = %chain(error), "sync failed after the answer");
            self.poison(desk, error.label());
        }
        answer_syncs(desk, result);
    }

    /// The lock is with somebody else: refuses who has waited long enough, and says when to look
    /// again. compat: a timeout of 0 is one try.
    fn lock_is_taken(&self, desk: &mut Desk<D>) -> Option<Duration> {
        let now = Instant::now();
        desk.lock_waiting_since.get_or_insert(now);
        // Whoever queued meanwhile waits for the same lock.
        self.inbox.drain_into(&mut desk.group);
        let drained = self.shared.lock_deadline().is_some_and(|until| until <= now);
        // Not in the order of the queue: the deadline of its request may cut a wait short.
        let (given_up, waiting) = desk.group.drain(..).partition(|job| drained || job.lock_deadline <= now);
        desk.group = waiting;
        let given_up: VecDeque<Job> = given_up;
        for job in given_up {
            let waited = now.saturating_duration_since(job.queued_at);
            self.shared.metrics.lock_wait(waited);
            let late = StoreError::LockTimeout { waited_ms: waited.as_millis() as u64 };
            self.answer(job, Err(if drained { StoreError::ShuttingDown } else { late }));
        }
        let Some(next) = desk.group.iter().map(|job| job.lock_deadline).min() else {
            desk.lock_waiting_since = None;
            desk.lock_poll = LOCK_POLL_MIN;
            return None;
        };
        let pause = desk.lock_poll.min(next - now);
        desk.lock_poll = (desk.lock_poll * 2).min(LOCK_POLL_MAX);
        Some(pause)
    }

    /// Refuses everything queued, unless another file has taken the place of the doubtful one:
    /// then an operator has dealt with it, and the writer starts afresh.
    fn lift_poison(&self, desk: &mut Desk<D>) -> bool {
        let Some(poison) = &desk.poison else { return true };
        let now = log_id_of(&self.shared.disk, &self.domain);
        if now.is_some() && now != poison.file {
            tracing::warn!(domain = %self.domain, "data file was replaced, appends go on");
            if let Err(error) = marker::remove(&self.shared.disk, &FileNames::of(&self.domain).data) {
                tracing::warn!(domain = %self.domain, %error, "poison marker stays in .torn/");
            }
            desk.poison = None;
            desk.log.close();
            self.poisoned.store(false, Ordering::Release);
            self.shared.unpoisoned();
            return true;
        }
        let error = StoreError::Poisoned { reason: poison.reason };
        answer_syncs(desk, Err(error.clone()));
        self.answer_all(std::mem::take(&mut desk.group), Err(error));
        false
    }

    fn poison(&self, desk: &mut Desk<D>, reason: &'static str) {
        if desk.poison.is_none() {
            let file = desk.log.data_id().or_else(|| log_id_of(&self.shared.disk, &self.domain));
            desk.poison = Some(Poison { reason, file });
            self.poisoned.store(true, Ordering::Release);
            self.shared.poisoned();
            tracing::error!(domain = %self.domain, reason, "domain poisoned: appends are refused until the file is replaced, see RUNBOOK");
            if let Err(error) = marker::leave(&self.shared.disk, &FileNames::of(&self.domain).data, reason, file) {
                tracing::warn!(domain = %self.domain, %error, "no poison marker in .torn/");
            }
        }
    }

    fn answer_all(&self, jobs: VecDeque<Job>, result: Ack) {
        for job in jobs {
            self.answer(job, result.clone());
        }
    }

    fn answer(&self, job: Job, result: Ack) {
        self.queued.fetch_sub(1, Ordering::Relaxed);
        self.account(&job, &result);
        job.answer(result);
    }

    fn account(&self, job: &Job, result: &Ack) {
        self.shared.metrics.answered();
        match result {
            Ok(()) => self.shared.metrics.acknowledged(job.events, job.lines.len()),
            Err(error) => self.shared.metrics.refused(error),
        }
    }

    /// Was anything written since the last sync?
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::Acquire)
    }

    /// Are appends refused?
    pub(crate) fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Acquire)
    }

    /// Requests that were handed to this writer and are not yet answered.
    pub(crate) fn queued(&self) -> usize {
        usize::try_from(self.queued.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Name of the domain's data file.
    pub(crate) fn data_name(&self) -> String {
        FileNames::of(&self.domain).data
    }

    /// Closes the files if the writer has been idle for `idle`. True when the writer holds nothing
    /// that would be lost by forgetting it.
    pub(crate) fn rest(&self, idle: Duration) -> bool {
        let rest = |desk: &mut Desk<D>| {
            if self.is_dirty() || desk.used_at.elapsed() < idle {
                return false;
            }
            desk.log.close();
            desk.poison.is_none()
        };
        self.inbox.at_rest(rest).unwrap_or(false)
    }
}

impl<D: Disk> Desk<D> {
    fn new(log: Log<D>) -> Self {
        Desk {
            log,
            group: VecDeque::new(),
            syncs: Vec::new(),
            poison: None,
            pace: Pace::new(),
            lock_poll: LOCK_POLL_MIN,
            lock_waiting_since: None,
            used_at: Instant::now(),
        }
    }

    fn group_bytes(&self) -> usize {
        self.group.iter().map(|job| job.lines.len()).sum()
    }

    /// As much as one write may carry, and at least one job.
    fn next_group(&mut self) -> Vec<Job> {
        let mut bytes = 0;
        let fits = |job: &&Job| {
            let first = bytes == 0;
            bytes += job.lines.len();
            first || bytes <= GROUP_BYTES_MAX
        };
        let jobs = self.group.iter().take(GROUP_JOBS_MAX).take_while(fits).count();
        self.group.drain(..jobs).collect()
    }
}

fn answer_syncs<D: Disk>(desk: &mut Desk<D>, result: Ack) {
    for ack in desk.syncs.drain(..) {
        // Nobody may be waiting any more; what was done is done.
        let _ = ack.send(result.clone());
    }
}

fn log_id_of<D: Disk>(disk: &D, domain: &Domain) -> Option<FileId> {
    disk.check_root().ok()?;
    disk.stat(&FileNames::of(domain).data).ok().flatten().map(|stat| stat.id)
}

/// If a turn panics, desk and group are gone without an answer (the callers see
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
        let writer = self.writer;
        let mut desk = Desk::new(writer.shared.new_log(&writer.domain));
        writer.poison(&mut desk, "panicked");
        // Puts the desk back, after refusing what has queued meanwhile.
        while let Some(taken) = writer.take_work(desk) {
            desk = taken;
            writer.lift_poison(&mut desk);
        }
        // Those that were on the lost desk have their answer.
        writer.queued.store(0, Ordering::Relaxed);
    }
}
