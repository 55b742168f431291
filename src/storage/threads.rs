//! `DiskThread`: a thread that may block, and takes turns and syncs for whoever is ready.
//!
//! It syncs before it writes more, because clients wait for syncs; what it was writing goes to another
//! thread meanwhile. So of two threads one syncs and the other writes what comes, and a lone request is
//! written and synced by one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::disk::{Disk, FileId};
use super::error::StoreError;
use super::ready::{Call, IN_LINE, SIDE_BY_SIDE, Threads};
use super::rounds::Round;
use super::writer::{Desk, DomainWriter, Written};
use super::{Fsync, Shared};
use crate::giving_way::AfterAnswers;

/// How long a thread that has nothing left to do looks for more.
const LINGER: Duration = Duration::from_micros(50);
/// How long it then sleeps, to be woken for more, before it ends. The one that fell asleep last is woken
/// first: so few threads do all the work, and the others' memory is given back.
const SLEEP: Duration = Duration::from_millis(100);

/// Pause before it looks again whether files were closed, while too many are open.
const FILES_PAUSE: Duration = Duration::from_micros(200);

/// A writer that is to take turns on a thread that may block.
pub(crate) struct Turns<D: Disk> {
    pub(super) writer: Arc<DomainWriter<D>>,
    pub(super) desk: Desk<D>,
}

/// One thread that does what is ready.
pub(crate) struct DiskThread<D: Disk> {
    shared: Arc<Shared<D>>,
    ended: bool,
}

impl<D: Disk> DiskThread<D> {
    /// Starts one for work that nobody is coming for.
    pub(crate) fn spawn(shared: &Arc<Shared<D>>) {
        let thread = DiskThread { shared: shared.clone(), ended: false };
        shared.runtime().spawn_blocking(move || thread.run());
    }

    fn run(mut self) {
        let mut left = None;
        let mut after_answers = AfterAnswers::default();
        loop {
            if let Some(round) = self.shared.next_round() {
                if let Some(Turns { writer, desk }) = left.take() {
                    DomainWriter::spawn(&writer, desk);
                }
                let _away = round.is_large().then(|| self.shared.away());
                let answered = self.shared.sync(round);
                // They are on their way to clients who may have more, which then goes with the next sync.
                after_answers.give_way(answered);
                continue;
            }
            if self.shared.rounds.any_waiting() && !self.shared.may_keep_open() {
                // The round under way closes files when it is over; more would be open until then.
                std::thread::sleep(FILES_PAUSE);
                continue;
            }
            let Some(Turns { writer, desk }) = left.take().or_else(|| self.next()) else { break };
            left = writer.run(desk, false).map(|desk| Turns { writer, desk });
        }
        self.ended = true;
    }

    fn next(&self) -> Option<Turns<D>> {
        let now = Instant::now();
        let mut bed = Bed { sleepers: &self.shared.sleepers, lain_down: false };
        let look_again = || {
            if now.elapsed() < LINGER {
                // Whoever brings work may need this processor for it.
                std::thread::yield_now();
                return true;
            }
            if !bed.lain_down {
                bed.lie_down();
                return true;
            }
            std::thread::park_timeout(SLEEP);
            false
        };
        self.shared.ready.take(now, look_again)
    }
}

/// Threads that sleep until there is work, the one that fell asleep last at the end.
#[derive(Debug, Default)]
pub(super) struct Sleepers(Mutex<Vec<Thread>>);

impl Sleepers {
    /// There is work for one.
    fn wake_one(&self) {
        if let Some(thread) = self.threads().pop() {
            thread.unpark();
        }
    }

    fn threads(&self) -> MutexGuard<'_, Vec<Thread>> {
        // Changed by single pushes and removals.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of this thread among the sleepers.
struct Bed<'a> {
    sleepers: &'a Sleepers,
    lain_down: bool,
}

impl Bed<'_> {
    /// From now on it may be woken; whoever lies down must look for work once more before it sleeps.
    fn lie_down(&mut self) {
        self.lain_down = true;
        self.sleepers.threads().push(std::thread::current());
    }
}

impl Drop for Bed<'_> {
    fn drop(&mut self) {
        if self.lain_down {
            let me = std::thread::current().id();
            self.sleepers.threads().retain(|thread| thread.id() != me);
        }
    }
}

/// A turn or a sync has panicked, or the runtime is gone.
impl<D: Disk> Drop for DiskThread<D> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        self.shared.ready.died();
        if std::thread::panicking() && self.shared.rounds.any_waiting() {
            self.shared.ready.started();
            DiskThread::spawn(&self.shared);
        }
    }
}

impl<D: Disk> Shared<D> {
    /// Puts turns down for a thread that may block: one that comes by, one that is woken, or a new one.
    pub(super) fn put_ready(self: &Arc<Self>, turns: Turns<D>, bulky: bool, afloat: bool) {
        let call = self.ready.put(turns, Instant::now(), self.threads_for(bulky, afloat));
        self.follow(call);
    }

    /// Sees to it that nothing that is ready is left lying.
    pub(super) fn look_at_ready(self: &Arc<Self>) {
        let call = self.ready.call(Instant::now(), self.threads_for(false, false));
        self.follow(call);
    }

    /// For a thread of ours that begins with something that may take long: others must not wait for it.
    pub(super) fn away(self: &Arc<Self>) -> Away<'_, D> {
        self.follow(self.ready.leaves(Instant::now()));
        Away(self)
    }

    fn follow(self: &Arc<Self>, call: Call) {
        match call {
            Call::Nobody => {}
            Call::Sleeper => self.sleepers.wake_one(),
            Call::New => DiskThread::spawn(self),
        }
    }

    /// May this thread write what it was given? Not the one that accepts, keeps time and answers while all
    /// others wait for the disk.
    pub(super) fn serves_here(&self) -> bool {
        let Some(main) = &self.options.runtime else { return true };
        Handle::try_current().is_ok_and(|here| here.id() != main.id())
    }

    /// How many threads are enough for work that is `bulky` or not, of a domain that has something
    /// `afloat` or not.
    pub(super) fn threads_for(&self, bulky: bool, afloat: bool) -> Threads {
        // Whoever syncs comes back soon, and the work would only go with his next round.
        let goes_with_next = self.options.fsync == Fsync::Always && (afloat || self.disk.syncs_together());
        if goes_with_next && !bulky { IN_LINE } else { SIDE_BY_SIDE }
    }

    /// What to sync next. Where one sync carries all domains, what is ready is written first and goes with it.
    fn next_round(&self) -> Option<Round<Arc<DomainWriter<D>>>> {
        if !self.rounds.any_waiting() {
            return None;
        }
        let together = self.disk.syncs_together();
        if together && !self.rounds.are_together() {
            for Turns { writer, desk } in self.ready.all(Instant::now()) {
                // What is afloat keeps its files open: the rest goes with the next round.
                if !self.may_keep_open() {
                    writer.spawn(desk);
                    continue;
                }
                if let Some(desk) = writer.run(desk, false) {
                    writer.spawn(desk);
                }
            }
        }
        self.rounds.take(together)
    }

    /// Will what was just written perhaps be synced by somebody else, or later, with that of other domains?
    pub(super) fn is_round_awaited(&self) -> bool {
        self.disk.syncs_together() && self.rounds.is_shared()
    }

    /// Syncs what waits for it, unless that goes with a later round. True: it did.
    pub(super) fn help_with_a_round(self: &Arc<Self>) -> bool {
        let Some(round) = self.rounds.take(self.disk.syncs_together()) else { return false };
        self.sync(round);
        true
    }

    /// Makes everything durable that the writers of a round have afloat, with one call if there are several.
    /// Returns how many requests that was for.
    fn sync(self: &Arc<Self>, round: Round<Arc<DomainWriter<D>>>) -> usize {
        let groups: VecDeque<Groups<D>> =
            round.writers.iter().map(|writer| (writer.clone(), writer.take_afloat())).collect();
        let requests = groups.iter().flat_map(|(_, groups)| groups).map(Written::requests).sum();
        let mut under_way = UnderWay { shared: self, round, groups };
        // Nobody is answered before the last file is synced: if that fails, it speaks against the others too.
        let results = self.sync_files(&mut under_way.groups);
        for result in results {
            let Some((writer, groups)) = under_way.groups.pop_front() else { break };
            match result.and_then(|()| self.is_sound(&groups)) {
                Ok(()) => writer.landed(groups),
                Err(error) => writer.sank(groups, &error),
            }
        }
        requests
    }

    /// Has no sync failed on this file system since they were written?
    fn is_sound(&self, groups: &[Written<D>]) -> Result<(), StoreError> {
        let sound = groups.iter().all(|group| self.doubt.is_sound(group.since));
        if sound { Ok(()) } else { Err(StoreError::InDoubt) }
    }

    /// What became of each.
    fn sync_files(self: &Arc<Self>, groups: &mut VecDeque<Groups<D>>) -> Vec<Result<(), StoreError>> {
        let mut together = groups.len() > 1 && self.sync_all(groups);
        let mut flushed = false;
        let sync = |(_, groups): &Groups<D>| {
            // The first file is synced by itself in any case: without a journal, ext4 writes metadata after the flush
            // of its `syncfs`, and this one's flush comes after that.
            let result = self.sync_one(groups, together && flushed);
            together &= flushed || result.is_ok();
            flushed = true;
            result.inspect_err(|error| {
                if error.is_failed_sync() {
                    self.sync_failed();
                }
            })
        };
        groups.iter().map(sync).collect()
    }

    /// True: all of it is on the disk, once the device is flushed and each file was looked at.
    fn sync_all(self: &Arc<Self>, groups: &mut VecDeque<Groups<D>>) -> bool {
        self.begin_writeback(groups);
        let afloat = || groups.iter().flat_map(|(_, groups)| groups).map(|group| &group.afloat);
        let files: Vec<FileId> = afloat().map(|afloat| afloat.file_id()).collect();
        let Some(since) = afloat().map(|afloat| afloat.started()).min() else { return false };
        let started = Instant::now();
        let synced = self.disk.sync_all(&files, since);
        if synced {
            self.metrics.synced(started.elapsed());
            afloat().for_each(|afloat| afloat.was_synced());
        }
        synced
    }

    /// Starts the write-back of each file for which nobody has yet. A sync of the whole file system would start it too,
    /// and keep its errors to itself.
    fn begin_writeback(self: &Arc<Self>, groups: &mut VecDeque<Groups<D>>) {
        for group in groups.iter_mut().flat_map(|(_, groups)| groups).filter(|group| !group.begun) {
            group.begun = true;
            group.error = group.afloat.begin_writeback(&self.disk, false).err();
            if group.error.is_some() {
                self.sync_failed();
            }
        }
    }

    /// All groups that one writer has afloat are in one file, and are synced with the last. `synced`: all are synced.
    fn sync_one(&self, groups: &[Written<D>], synced: bool) -> Result<(), StoreError> {
        let (Some(first), Some(last)) = (groups.first(), groups.last()) else { return Ok(()) };
        // What was lost before does not come back by a sync.
        if let Some(error) = groups.iter().find_map(|group| group.error.clone()) {
            return Err(error);
        }
        if synced {
            return last.afloat.check_stored(&self.disk, &first.afloat);
        }
        let started = Instant::now();
        last.afloat.sync(&self.disk, &first.afloat)?;
        self.metrics.synced(started.elapsed());
        Ok(())
    }
}

/// While a thread of ours does what may take long.
pub(super) struct Away<'a, D: Disk>(&'a Shared<D>);

impl<D: Disk> Drop for Away<'_, D> {
    fn drop(&mut self) {
        self.0.ready.returns();
    }
}

type Groups<D> = (Arc<DomainWriter<D>>, Vec<Written<D>>);

/// A round until its end; if that is a panic, what it had is in doubt.
struct UnderWay<'a, D: Disk> {
    shared: &'a Arc<Shared<D>>,
    round: Round<Arc<DomainWriter<D>>>,
    groups: VecDeque<Groups<D>>,
}

impl<D: Disk> Drop for UnderWay<'_, D> {
    fn drop(&mut self) {
        for (writer, groups) in self.groups.drain(..) {
            writer.sank(groups, &StoreError::Panicked);
        }
        self.shared.rounds.done(&self.round);
    }
}
