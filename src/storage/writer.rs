//! `DomainWriter`: the queue of one domain, and the turns that empty it.
//!
//! A group is everything that queued while nobody wrote; no timer forms it. Whoever finds no turn
//! running starts one: on a blocking thread when it must sync, on the thread that brought the jobs
//! when it need not. Waiting (for a foreign lock, for a gap that lets a foreign writer in) is a timer
//! and occupies no thread.
//!
//! With a sync before the answer, a turn ends with the write, and the group is afloat until somebody's
//! sync has landed it (`storage/rounds.rs`, `storage/threads.rs`). The next group may be written
//! meanwhile, under the same lock. Whatever is not the plain case of a write behind the last one first
//! waits until nothing is afloat.

use std::collections::VecDeque;
use std::io;
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
use super::inline::SLOW_WRITE;
use super::layout::FileNames;
use super::log::{Afloat, FailedWrite, GROUP_JOBS_MAX, Log, SyncWhen, Write};
use super::marker::{self, Marker};
use super::pace::Pace;
use super::pieces::WriterId;
use super::sync_doubt::Since;
use super::threads::Turns;
use super::{Fsync, Shared};
use crate::domain::Domain;

/// Most bytes in one group, unless a single batch is larger.
const GROUP_BYTES_MAX: usize = 4 << 20;
/// From this size on a batch is worth a thread that writes it while another syncs what is before it; less is
/// written in no time when that one comes back.
const BULKY_BYTES: usize = 16 << 10;
/// Largest group that is written on a worker of the runtime, when no sync is due.
const INLINE_BYTES_MAX: usize = 64 << 10;
/// Most groups that one thread writes in a row when it has other work.
const INLINE_TURNS_MAX: u32 = 4;
/// First and longest pause between two looks at a foreign lock.
const LOCK_POLL_MIN: Duration = Duration::from_millis(1);
const LOCK_POLL_MAX: Duration = Duration::from_millis(50);
/// Pause between two looks whether a probe of the file system has succeeded, and how long appends wait for that.
const PROBE_POLL: Duration = Duration::from_millis(2);
const PROBE_PATIENCE: Duration = Duration::from_secs(1);

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

/// The writer of one data file: of one domain, but for names so long that two may share a file.
pub(crate) struct DomainWriter<D: Disk> {
    shared: Arc<Shared<D>>,
    /// The first of those whose events go to this file.
    domain: Domain,
    names: FileNames,
    id: WriterId,
    inbox: Inbox<Job, oneshot::Sender<Ack>, Desk<D>, Written<D>>,
    /// One of the groups afloat is so large that others should not wait for it.
    large: AtomicBool,
    /// Something of [`BULKY_BYTES`] has queued.
    bulky: AtomicBool,
    /// Written since the last sync (`Fsync::EverySecond` only).
    dirty: AtomicBool,
    /// By [`Self::sync_soon`].
    sync_asked: AtomicBool,
    poisoned: AtomicBool,
    /// Jobs without an answer. Negative for a moment after a panic, which loses count.
    queued: AtomicIsize,
}

/// A group that is in the file, and not on the disk yet.
pub(super) struct Written<D: Disk> {
    jobs: Vec<Job>,
    pub(super) afloat: Afloat<D::File>,
    /// Before it was written.
    pub(super) since: Since,
    /// Its write-back was started when it was written, or was tried to.
    pub(super) begun: bool,
    /// Why its sync, or already the start of its write-back, failed.
    pub(super) error: Option<StoreError>,
}

impl<D: Disk> Written<D> {
    /// How many wait for it.
    pub(super) fn requests(&self) -> usize {
        self.jobs.len()
    }
}

/// How a turn ended.
enum Turn {
    Done,
    /// A group was set afloat: somebody must sync.
    Afloat,
    /// Take the next one after that pause.
    Pause(Duration),
}

/// Everything a turn works with; it goes from hand to hand, so that nobody needs a lock for it.
pub(super) struct Desk<D: Disk> {
    log: Log<D>,
    /// Taken from the queue, not yet written; the next groups come from its front.
    group: VecDeque<Job>,
    syncs: Vec<oneshot::Sender<Ack>>,
    /// Written, and not synced, because that failed.
    sunk: Vec<Written<D>>,
    poison: Option<Poison>,
    pace: Pace,
    lock_poll: Duration,
    lock_waiting_since: Option<Instant>,
    probe_waiting_since: Option<Instant>,
    used_at: Instant,
}

/// Why appends are refused until somebody has looked at the file.
struct Poison {
    reason: &'static str,
    doubtful: Doubtful,
    /// A mark was found that says so; then its removal is a look too.
    marked: bool,
}

/// What was found under the name when the domain was poisoned. Another file there lifts the poison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doubtful {
    /// The file system did not say. What it tells next counts.
    Unknown,
    Missing,
    File(FileId),
}

impl Doubtful {
    fn of(found: io::Result<Option<FileId>>) -> Doubtful {
        match found {
            Err(_) => Doubtful::Unknown,
            Ok(None) => Doubtful::Missing,
            Ok(Some(file)) => Doubtful::File(file),
        }
    }

    fn file(self) -> Option<FileId> {
        if let Doubtful::File(file) = self { Some(file) } else { None }
    }
}

impl Poison {
    /// Why it is over, if somebody has looked at the file and `now` stands under its name.
    fn over<D: Disk>(&mut self, disk: &D, data: &str, now: Option<FileId>) -> Option<&'static str> {
        let mark = if self.marked { marker::read(disk, data).map(Some) } else { Ok(None) };
        if let Ok(Some(None)) = mark {
            return Some("poison mark was removed, appends go on");
        }
        let now = now?;
        // A file that was missing and is back is the doubtful one, if its mark says so.
        let named = mark.ok().flatten().flatten().filter(Marker::has_identity);
        let replaced = match self.doubtful {
            Doubtful::Unknown => {
                self.doubtful = Doubtful::File(now);
                false
            }
            _ if named.is_some() => named.is_some_and(|mark| !mark.is_about(now)),
            Doubtful::Missing => true,
            Doubtful::File(doubtful) => doubtful != now,
        };
        replaced.then_some("data file was replaced, appends go on")
    }
}

impl<D: Disk> DomainWriter<D> {
    pub(crate) fn new(shared: Arc<Shared<D>>, domain: Domain) -> Self {
        let names = FileNames::of(&domain);
        let desk = Desk::new(shared.new_log(&names));
        let id = shared.neighbours.join();
        DomainWriter {
            shared,
            domain,
            names,
            id,
            inbox: Inbox::new(desk),
            large: AtomicBool::new(false),
            bulky: AtomicBool::new(false),
            dirty: AtomicBool::new(false),
            sync_asked: AtomicBool::new(false),
            poisoned: AtomicBool::new(false),
            queued: AtomicIsize::new(0),
        }
    }

    /// Queues a job. The answer comes by `job.ack`, once somebody has called [`Self::start`].
    pub(crate) fn queue(&self, job: Job) {
        self.queued.fetch_add(1, Ordering::Relaxed);
        if job.lines.len() >= BULKY_BYTES {
            self.bulky.store(true, Ordering::Relaxed);
        }
        self.inbox.put(job);
    }

    /// Sees to it that a turn takes what has queued by `now`. Without a sync it is taken right here, while the
    /// disk is quick.
    pub(crate) fn start(self: &Arc<Self>, now: Instant) {
        let aside = self.shared.options.fsync == Fsync::Always || !self.shared.serves_here();
        let under = if aside { None } else { self.shared.inline.begin(now) };
        let Some(desk) = self.inbox.take_desk() else {
            // It may lie ready, and whoever was to come for it has not.
            return if under.is_none() {
                self.shared.look_at_ready()
            };
        };
        if under.is_none() {
            return self.spawn(desk);
        }
        // A panic has poisoned its domain and is in the log; the caller has other writers to start.
        let _ = catch_unwind(AssertUnwindSafe(|| self.run(desk, true)));
    }

    /// As [`Self::request_sync`], unless one was asked for already that nobody has come to. Nobody waits for it.
    pub(crate) fn sync_soon(self: &Arc<Self>) {
        if !self.sync_asked.swap(true, Ordering::AcqRel) {
            drop(self.request_sync());
        }
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
    pub(super) fn spawn(self: &Arc<Self>, desk: Desk<D>) {
        let bulky = self.bulky.swap(false, Ordering::Relaxed);
        self.shared.put_ready(Turns { writer: self.clone(), desk }, bulky, self.inbox.is_afloat());
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
    /// `Some`: a group is afloat, so the caller must look for a round, and there is more to write.
    pub(super) fn run(self: &Arc<Self>, mut desk: Desk<D>, inline: bool) -> Option<Desk<D>> {
        let mut unwinding = PoisonOnUnwind { writer: self, armed: true };
        let mut turns = 0;
        let mut left = None;
        while let Some(taken) = self.take_work(desk) {
            desk = taken;
            let elsewhere =
                turns == INLINE_TURNS_MAX || !desk.syncs.is_empty() || desk.group_bytes() > INLINE_BYTES_MAX;
            if inline && elsewhere {
                self.spawn(desk);
                break;
            }
            match self.turn(&mut desk, inline) {
                Turn::Done => {}
                Turn::Afloat => {
                    left = self.take_work(desk);
                    break;
                }
                Turn::Pause(pause) => {
                    self.spawn_after(pause, desk);
                    break;
                }
            }
            turns += 1;
        }
        unwinding.armed = false;
        left
    }

    /// Moves the next group to the desk, or puts the desk back when there is nothing to do.
    fn take_work(&self, desk: Desk<D>) -> Option<Desk<D>> {
        self.inbox.take_work(desk, |desk, waiting| {
            desk.sunk.append(waiting.sunk);
            if desk.group.is_empty() {
                desk.group.append(waiting.queue);
            }
            desk.syncs.append(waiting.syncs);
            if !desk.group.is_empty() || !desk.syncs.is_empty() || !desk.sunk.is_empty() {
                return true;
            }
            if waiting.calm {
                self.rest_desk(desk);
            }
            desk.used_at = Instant::now();
            false
        })
    }

    /// Nothing to write, nothing afloat: the lock is free for others, and the files need not stay open.
    fn rest_desk(&self, desk: &mut Desk<D>) {
        self.release(desk);
        if !self.is_dirty() && !self.shared.may_keep_open() {
            desk.log.close();
        }
    }

    fn release(&self, desk: &mut Desk<D>) {
        if desk.log.is_locked() {
            desk.log.unlock(&self.shared.disk);
            desk.pace.released(Instant::now());
        }
    }

    /// One group, or one reason why not.
    fn turn(self: &Arc<Self>, desk: &mut Desk<D>, inline: bool) -> Turn {
        if !desk.sunk.is_empty() {
            self.refuse_sunk(desk);
        }
        if desk.poison.is_some() && !self.lift_poison(desk) {
            return Turn::Done;
        }
        if !desk.syncs.is_empty() {
            self.calm(desk);
            self.sync(desk);
        }
        if desk.group.is_empty() {
            return Turn::Done;
        }
        let Some(since) = self.shared.doubt.begin() else { return self.wait_for_probe(desk) };
        desk.probe_waiting_since = None;
        if let Some(pause) = self.make_way(desk) {
            return Turn::Pause(pause);
        }
        if !desk.log.is_locked() {
            match desk.log.try_lock(&self.shared.disk) {
                Ok(true) => self.lock_is_ours(desk),
                Ok(false) => return self.lock_is_taken(desk).map_or(Turn::Done, Turn::Pause),
                Err(error) => {
                    self.answer_all(std::mem::take(&mut desk.group), Err(error));
                    return Turn::Done;
                }
            }
        }
        let group = desk.next_group();
        let bytes = group.iter().map(|job| job.lines.len()).sum();
        let when = self.sync_when(bytes);
        let _away = (!inline && bytes > self.shared.options.piece_bytes_max).then(|| self.shared.away());
        let Err((group, results)) = self.write(desk, group, since, when) else { return Turn::Afloat };
        self.release(desk);
        if results.iter().any(Result::is_ok) {
            self.shared.metrics.succeeded(Instant::now());
        }
        self.acknowledge(group, results, inline);
        Turn::Done
    }

    /// Leaves the lock to others for a while, if it is time to. `Some`: for so long.
    fn make_way(self: &Arc<Self>, desk: &mut Desk<D>) -> Option<Duration> {
        let disk = &self.shared.disk;
        if desk.log.is_locked() {
            if !desk.pace.streak_is_over(Instant::now()) {
                return None;
            }
            self.calm(desk);
            self.release(desk);
            if let Some(gap) = desk.pace.breather(|| disk.lock_looked_at(desk.log.lock_name())) {
                return Some(gap);
            }
        }
        desk.pace.gap(|| disk.lock_wanted(desk.log.lock_name()))
    }

    fn lock_is_ours(&self, desk: &mut Desk<D>) {
        let now = Instant::now();
        if let Some(since) = desk.lock_waiting_since.take() {
            desk.lock_poll = LOCK_POLL_MIN;
            self.shared.metrics.lock_wait(now - since);
        }
        desk.pace.taken(now);
    }

    /// Sets a group afloat, or gives it back with the results of a whole append; then nothing is afloat.
    fn write(
        self: &Arc<Self>,
        desk: &mut Desk<D>,
        group: Vec<Job>,
        since: Since,
        when: SyncWhen,
    ) -> Result<(), (Vec<Job>, Vec<Ack>)> {
        let lines: Vec<&[u8]> = group.iter().map(|job| job.lines.as_slice()).collect();
        if when != SyncWhen::Now || desk.poison.is_some() {
            self.calm(desk);
            let results = self.append(desk, &lines, when, since);
            return Err((group, results));
        }
        let mut written = desk.log.write(&self.shared.disk, &lines, false);
        if !matches!(written, Ok(Write::Afloat(_))) {
            self.calm(desk);
        }
        if let (Ok(Write::NotCalm), None) = (&written, &desk.poison) {
            written = desk.log.write(&self.shared.disk, &lines, true);
            self.tell_torn(desk);
        }
        let results = match written {
            Ok(Write::Afloat(afloat)) => {
                self.launch(desk, group, afloat, since);
                return Ok(());
            }
            Ok(Write::Failed(failed)) => self.take_back(desk, failed, &lines, since),
            // Poisoned meanwhile.
            Ok(Write::NotCalm) => self.append(desk, &lines, when, since),
            Err(error) => {
                self.note(desk, &error);
                self.append_each(desk, &lines, error, since)
            }
        };
        Err((group, results))
    }

    fn launch(self: &Arc<Self>, desk: &mut Desk<D>, group: Vec<Job>, afloat: Afloat<D::File>, since: Since) {
        let bytes = group.iter().map(|job| job.lines.len()).sum();
        self.shared.metrics.wrote(group.len(), bytes, afloat.write, afloat.foreign);
        if afloat.foreign {
            desk.pace.saw_foreign(Instant::now());
        }
        // Whoever syncs at once starts the write-back by that, and is told of its errors.
        let behind = self.inbox.is_afloat();
        let begun = behind || self.shared.is_round_awaited();
        let error = if begun { afloat.begin_writeback(&self.shared.disk, behind).err() } else { None };
        if error.is_some() {
            self.shared.sync_failed();
        }
        if bytes > self.shared.options.piece_bytes_max {
            self.large.store(true, Ordering::Relaxed);
        }
        if self.inbox.launch(Written { jobs: group, afloat, since, begun, error }) {
            self.list();
        }
    }

    fn tell_torn(&self, desk: &mut Desk<D>) {
        if let Some(bytes) = desk.log.take_torn_bytes() {
            self.shared.metrics.torn(bytes);
            tracing::warn!(domain = %self.domain, bytes, "torn tail moved to .torn/");
        }
    }

    /// Somebody is to sync what is afloat.
    fn list(self: &Arc<Self>) {
        self.shared.rounds.list(self.clone(), self.large.swap(false, Ordering::Relaxed));
    }

    /// Waits until nothing is afloat; syncs meanwhile, if nobody else does. What sank is refused.
    fn calm(self: &Arc<Self>, desk: &mut Desk<D>) {
        self.inbox.calm(|| self.shared.help_with_a_round());
        self.inbox.take_sunk(&mut desk.sunk);
        if !desk.sunk.is_empty() {
            self.refuse_sunk(desk);
        }
    }

    /// What is to be synced next; until [`Self::landed`] or [`Self::sank`] nobody else gets any.
    pub(super) fn take_afloat(&self) -> Vec<Written<D>> {
        self.inbox.take_afloat()
    }

    /// The groups are on the disk: answers them.
    pub(super) fn landed(self: &Arc<Self>, groups: Vec<Written<D>>) {
        if self.inbox.landed(|desk| self.rest_desk(desk)) {
            self.list();
        }
        self.shared.metrics.succeeded(Instant::now());
        let jobs: Vec<Job> = groups.into_iter().flat_map(|group| group.jobs).collect();
        let results = vec![Ok(()); jobs.len()];
        self.acknowledge(jobs, results, false);
    }

    /// The groups could not be synced: whoever is the writer next refuses them, and all that comes.
    pub(super) fn sank(self: &Arc<Self>, mut groups: Vec<Written<D>>, error: &StoreError) {
        groups.iter_mut().for_each(|group| group.error = Some(error.clone()));
        if let Some(desk) = self.inbox.sank(groups) {
            self.spawn(desk);
        }
    }

    /// After a failed sync: nothing that was written since the last good one may count.
    fn refuse_sunk(&self, desk: &mut Desk<D>) {
        let sunk = std::mem::take(&mut desk.sunk);
        let errors = || sunk.iter().filter_map(|group| group.error.as_ref());
        // What has failed says more than what that casts doubt on.
        let error = errors().find(|error| error.is_failed_sync()).or_else(|| errors().next()).cloned();
        let error = error.unwrap_or(StoreError::Panicked);
        // They are in the order in which they were written, so with the first the others go too.
        if let (Some(first), StoreError::Sync { .. } | StoreError::InDoubt) = (sunk.first(), &error) {
            desk.log.cut_off(&self.shared.disk, &first.afloat);
        }
        self.poison(desk, error.label());
        self.release(desk);
        self.answer_all(sunk.into_iter().flat_map(|group| group.jobs).collect(), Err(error));
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

    /// Appends a group; when there is no room for all of it, each member on its own.
    fn append(self: &Arc<Self>, desk: &mut Desk<D>, lines: &[&[u8]], when: SyncWhen, since: Since) -> Vec<Ack> {
        match self.append_lines(desk, lines, when, since) {
            Err(error) => self.append_each(desk, lines, error, since),
            Ok(()) => vec![Ok(()); lines.len()],
        }
    }

    /// After a failed write.
    fn take_back(self: &Arc<Self>, desk: &mut Desk<D>, failed: FailedWrite, lines: &[&[u8]], since: Since) -> Vec<Ack> {
        // A sync that failed meanwhile has had everything cut off that came after it; what of it a crash
        // brings back nobody knows.
        if desk.poison.is_some() {
            return vec![Err(failed.in_doubt()); lines.len()];
        }
        let error = desk.log.take_back(&self.shared.disk, failed);
        if error.poisons() {
            self.failed(desk, &error);
        }
        self.append_each(desk, lines, error, since)
    }

    /// When there was no room for a whole group, tries its members, so that one huge batch does not
    /// fail its small neighbours.
    fn append_each(self: &Arc<Self>, desk: &mut Desk<D>, lines: &[&[u8]], error: StoreError, since: Since) -> Vec<Ack> {
        match error {
            StoreError::Full { .. } if lines.len() > 1 => lines
                .iter()
                .map(|&line| {
                    let when = self.sync_when(line.len());
                    self.append_lines(desk, &[line], when, since)
                })
                .collect(),
            error => vec![Err(error); lines.len()],
        }
    }

    fn append_lines(self: &Arc<Self>, desk: &mut Desk<D>, lines: &[&[u8]], when: SyncWhen, since: Since) -> Ack {
        if let Some(poison) = &desk.poison {
            return Err(StoreError::Poisoned { reason: poison.reason });
        }
        let result = desk.log.append(&self.shared.disk, lines, when, || self.shared.doubt.is_sound(since));
        self.tell_torn(desk);
        match result {
            Ok(appended) => {
                let bytes = lines.iter().map(|line| line.len()).sum();
                self.shared.metrics.appended(&appended, lines.len(), bytes, when);
                if appended.write >= SLOW_WRITE {
                    self.shared.inline.was_slow(Instant::now());
                }
                if self.shared.options.fsync == Fsync::EverySecond {
                    self.dirty.store(true, Ordering::Release);
                }
                if appended.foreign {
                    desk.pace.saw_foreign(Instant::now());
                }
                Ok(())
            }
            Err(error) => {
                self.note(desk, &error);
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

    fn sync(self: &Arc<Self>, desk: &mut Desk<D>) {
        let result = if desk.log.is_unsynced() { self.sync_log(desk) } else { Ok(()) };
        // Only now: until then a stop has something to wait for.
        self.sync_asked.store(false, Ordering::Release);
        self.dirty.store(false, Ordering::Release);
        if let Err(error) = &result {
            tracing::error!(domain = %self.domain, error = %chain(error), "sync failed after the answer");
            self.failed(desk, error);
        }
        answer_syncs(desk, result);
    }

    fn sync_log(&self, desk: &mut Desk<D>) -> Result<(), StoreError> {
        let started = Instant::now();
        let since = self.shared.doubt.now();
        desk.log.sync(&self.shared.disk)?;
        if !self.shared.doubt.is_sound(since) {
            return Err(StoreError::InDoubt);
        }
        self.shared.metrics.synced(started.elapsed());
        Ok(())
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
        let Some(poison) = &mut desk.poison else { return true };
        let data = &self.names.data;
        let now = log_id_of(&self.shared.disk, data);
        if let Some(why) = now.ok().and_then(|now| poison.over(&self.shared.disk, data, now)) {
            tracing::warn!(domain = %self.domain, "{why}");
            if let Err(error) = marker::remove(&self.shared.disk, data) {
                tracing::warn!(domain = %self.domain, %error, "poison marker stays in .torn/");
            }
            desk.poison = None;
            desk.log.close();
            self.poisoned.store(false, Ordering::Release);
            self.shared.unpoisoned();
            return true;
        }
        let error = StoreError::Poisoned { reason: poison.reason };
        self.sync_asked.store(false, Ordering::Release);
        answer_syncs(desk, Err(error.clone()));
        self.answer_all(std::mem::take(&mut desk.group), Err(error));
        false
    }

    /// Nobody knows what became of what was written.
    fn failed(self: &Arc<Self>, desk: &mut Desk<D>, error: &StoreError) {
        if error.is_failed_sync() {
            self.shared.sync_failed();
        }
        self.poison(desk, error.label());
    }

    /// After a failed sync nothing is written before a probe has succeeded. That takes as long as a sync or two; if it
    /// takes much longer, or fails, whoever waits is refused.
    fn wait_for_probe(self: &Arc<Self>, desk: &mut Desk<D>) -> Turn {
        self.calm(desk);
        self.release(desk);
        let since = *desk.probe_waiting_since.get_or_insert_with(Instant::now);
        if !self.shared.doubt.is_dead() && since.elapsed() < PROBE_PATIENCE {
            return Turn::Pause(PROBE_POLL);
        }
        self.answer_all(std::mem::take(&mut desk.group), Err(StoreError::Unproven));
        Turn::Done
    }

    /// Draws the consequences of a failed append.
    fn note(self: &Arc<Self>, desk: &mut Desk<D>, error: &StoreError) {
        match error {
            // A mark was found when the file was opened.
            StoreError::Poisoned { reason } => self.adopt_mark(desk, reason),
            error if error.poisons() => self.failed(desk, error),
            _ => {}
        }
    }

    fn adopt_mark(&self, desk: &mut Desk<D>, reason: &'static str) {
        if desk.poison.is_none() {
            let doubtful = Doubtful::of(log_id_of(&self.shared.disk, &self.names.data));
            desk.poison = Some(Poison { reason, doubtful, marked: true });
            self.refuse_from_now_on(reason);
        }
    }

    fn poison(&self, desk: &mut Desk<D>, reason: &'static str) {
        if desk.poison.is_none() {
            let data = &self.names.data;
            let open = desk.log.data_id().map(Doubtful::File);
            let doubtful = open.unwrap_or_else(|| Doubtful::of(log_id_of(&self.shared.disk, data)));
            desk.poison = Some(Poison { reason, doubtful, marked: false });
            self.refuse_from_now_on(reason);
            if let Err(error) = marker::leave(&self.shared.disk, data, reason, doubtful.file()) {
                tracing::warn!(domain = %self.domain, %error, "no poison marker in .torn/");
            }
        }
    }

    fn refuse_from_now_on(&self, reason: &'static str) {
        self.poisoned.store(true, Ordering::Release);
        self.shared.poisoned();
        self.shared.marked.forget(&self.names.data);
        tracing::error!(domain = %self.domain, reason, "domain poisoned: appends are refused until the file is replaced, see RUNBOOK");
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

    pub(crate) fn domain(&self) -> &Domain {
        &self.domain
    }

    /// Name of the domain's data file.
    pub(crate) fn data_name(&self) -> &str {
        &self.names.data
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
            sunk: Vec::new(),
            poison: None,
            pace: Pace::new(),
            lock_poll: LOCK_POLL_MIN,
            lock_waiting_since: None,
            probe_waiting_since: None,
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

fn log_id_of<D: Disk>(disk: &D, data: &str) -> io::Result<Option<FileId>> {
    disk.check_root()?;
    Ok(disk.stat(data)?.map(|stat| stat.id))
}

/// If a turn panics, desk and group are gone without an answer (the callers see
/// [`StoreError::Panicked`]) and the file is in doubt: poison the domain rather than go on.
struct PoisonOnUnwind<'a, D: Disk> {
    writer: &'a Arc<DomainWriter<D>>,
    armed: bool,
}

impl<D: Disk> Drop for PoisonOnUnwind<'_, D> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let writer = self.writer;
        let mut desk = Desk::new(writer.shared.new_log(&writer.names));
        writer.poison(&mut desk, "panicked");
        // Puts the desk back, after refusing what has queued meanwhile.
        while let Some(taken) = writer.take_work(desk) {
            desk = taken;
            if !desk.sunk.is_empty() {
                writer.refuse_sunk(&mut desk);
            }
            writer.lift_poison(&mut desk);
        }
        // Those that were on the lost desk have their answer.
        writer.queued.store(0, Ordering::Relaxed);
    }
}
