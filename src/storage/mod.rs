//! `Store`: the data directory, as everybody else sees it.
//!
//! Knows bytes, files and syncs; knows no HTTP, no configuration and no JSON beyond
//! [`crate::event`].

mod allocated;
mod budget;
mod disk;
mod domains;
mod error;
pub mod file_system;
mod gather;
mod hard_links;
mod holes;
mod inbox;
mod inline;
mod layout;
mod lock;
mod log;
mod look;
mod marked;
mod marker;
mod pace;
mod pieces;
mod probe;
mod ready;
pub mod repair;
mod rounds;
mod share;
pub mod snapshot;
pub mod stats;
mod sync_doubt;
mod tail;
mod threads;
pub mod verify;
mod watch;
mod whole_sync;
mod writer;

/// What `inbox`, `ready`, `rounds`, `share` and `sync_doubt` build on; a test puts a model checker in its place.
mod sync {
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
    pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
}

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::BuildHasher;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use foldhash::quality::RandomState;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

pub use budget::Reservation;
pub use disk::{Disk, DiskSpace, FileId, FileKind, FileStat, RealDisk};
pub use error::{StoreError, Written};
pub use layout::{FileNames, NAME_BYTES_MAX, TOKEN_STORE, TOKEN_STORE_DIR, TORN_DIR};
pub use watch::Wanted;

use budget::Budget;
use domains::Domains;
use gather::Gather;
use inline::Inline;
use log::{Log, OpenFiles};
use look::{Depth, Look, Seen};
use marked::Marked;
use pieces::{Neighbours, PIECE_BYTES};
use ready::Ready;
use rounds::Rounds;
use snapshot::{SnapshotError, SnapshotOptions, SnapshotReport};
use sync_doubt::SyncDoubt;
use threads::{Sleepers, Turns};
use writer::{DomainWriter, Job};

use crate::domain::Domain;
use crate::event::Batch;
use crate::metrics::StoreMetrics;

pub(crate) use error::chain;
pub(crate) use log::Appended;
pub(crate) use log::SyncWhen;

/// Number of independent parts of the writer map.
const SHARDS: usize = 16;
/// How often idle writers are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// How long a writer keeps its files open without work.
const IDLE_AFTER: Duration = Duration::from_secs(60);
/// How often `Fsync::EverySecond` syncs: the sync itself needs part of the second.
const FLUSH_EVERY: Duration = Duration::from_millis(500);
/// How old a reading of the free space may be.
const SPACE_AGE_MAX: Duration = Duration::from_millis(250);
/// How often a full data directory is listed, to see whether somebody has made room.
const COUNT_DOMAINS_EVERY: Duration = Duration::from_secs(60);
/// Smallest byte budget.
const IN_FLIGHT_BYTES_MIN: usize = 1 << 20;

/// When an acknowledged event is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fsync {
    /// Before the answer.
    Always,
    /// At most one second after the answer.
    EverySecond,
    /// When the kernel likes.
    Never,
}

impl Fsync {
    /// The word used in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Fsync::Always => "always",
            Fsync::EverySecond => "everysec",
            Fsync::Never => "never",
        }
    }
}

/// How a store behaves.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    pub fsync: Fsync,
    /// Longest wait for a foreign lock, the time in the queue counted; 0 is one try.
    pub lock_timeout: Duration,
    /// Most bytes of requests in memory, from the first body byte to the ack.
    pub in_flight_bytes_max: usize,
    /// Appends are refused while less than this is free. `None`: 64 MiB or 1 % of the file system,
    /// whichever is less.
    pub reserve_bytes: Option<u64>,
    /// Most bytes that [`Fsync::Always`] brings to the disk at once while others write less.
    pub piece_bytes_max: usize,
    /// Most domains whose files stay open between groups; each takes two descriptors.
    pub open_domains_max: usize,
    /// Most domains that have a file. Those that have one go on above it.
    pub domains_max: usize,
    /// Where turns run that sync or wait; it must outlive the store. `None`: the runtime of whoever
    /// starts them.
    pub runtime: Option<Handle>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            fsync: Fsync::Always,
            lock_timeout: Duration::from_secs(30),
            in_flight_bytes_max: 64 << 20,
            reserve_bytes: None,
            piece_bytes_max: PIECE_BYTES,
            open_domains_max: 256,
            domains_max: 100_000,
            runtime: None,
        }
    }
}

/// What a store knows about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreHealth {
    /// The data directory is there and may be written to.
    pub writable: bool,
    /// `None` when the file system does not say.
    pub space: Option<DiskSpace>,
    /// Free space is above the reserve.
    pub above_reserve: bool,
    /// Appends are refused while less than this is free.
    pub reserve_bytes: u64,
    pub draining: bool,
    pub poisoned_domains: usize,
    /// No sync has failed since the file system last brought something to the disk. If not, appends are refused.
    pub disk_proven: bool,
    /// Handed to a writer and not yet answered.
    pub queued_requests: usize,
    pub in_flight_bytes: usize,
    pub in_flight_bytes_max: usize,
    pub open_domains: usize,
    pub known_domains: usize,
    /// Those that have a file, as far as this process knows.
    pub domains: usize,
    pub domains_max: usize,
}

/// The handle everybody uses. Cheap to clone.
pub struct Store<D: Disk = RealDisk> {
    inner: Arc<Inner<D>>,
}

impl<D: Disk> Clone for Store<D> {
    fn clone(&self) -> Self {
        Store { inner: self.inner.clone() }
    }
}

/// By the stem of the data file, which is mostly the domain: one file has one writer.
type Writers<D> = HashMap<Box<str>, Arc<DomainWriter<D>>, RandomState>;

struct Inner<D: Disk> {
    shared: Arc<Shared<D>>,
    budget: Budget,
    gather: Arc<Gather<D>>,
    lines: stats::LineIndex,
    domains: Domains,
    shards: Vec<Mutex<Writers<D>>>,
    hasher: RandomState,
}

/// What all writers share.
pub(crate) struct Shared<D: Disk> {
    pub(crate) disk: D,
    pub(crate) options: StoreOptions,
    pub(crate) metrics: StoreMetrics,
    /// Writers whose turns may block.
    ready: Ready<Turns<D>>,
    sleepers: Sleepers,
    /// Writers that have written and not synced ([`Fsync::Always`] only).
    rounds: Rounds<Arc<DomainWriter<D>>>,
    doubt: SyncDoubt,
    neighbours: Neighbours,
    started: Instant,
    draining: AtomicBool,
    /// Milliseconds after `started` when waiting for locks ends; `u64::MAX` while not draining.
    lock_deadline_ms: AtomicU64,
    open_logs: OpenFiles,
    poisoned: AtomicUsize,
    marked: Marked,
    looks_at_doubts: AtomicBool,
    sweeps: AtomicBool,
    look: Look,
    /// Writes on threads that serve connections.
    inline: Inline,
    space_checked_ms: AtomicU64,
    space_low: AtomicBool,
}

impl<D: Disk> Store<D> {
    /// A store on `disk`.
    pub fn new(disk: D, mut options: StoreOptions, metrics: StoreMetrics) -> Store<D> {
        options.in_flight_bytes_max = options.in_flight_bytes_max.max(IN_FLIGHT_BYTES_MIN);
        let budget = Budget::new(options.in_flight_bytes_max, metrics.clone());
        let domains = Domains::new(options.domains_max);
        domains.count_anew(&disk);
        let marked = Marked::load(&disk);
        let shared = Arc::new(Shared {
            disk,
            options,
            metrics,
            ready: Ready::new(),
            sleepers: Sleepers::default(),
            rounds: Rounds::new(),
            doubt: SyncDoubt::new(),
            neighbours: Neighbours::new(),
            started: Instant::now(),
            draining: AtomicBool::new(false),
            lock_deadline_ms: AtomicU64::new(u64::MAX),
            open_logs: OpenFiles::default(),
            poisoned: AtomicUsize::new(0),
            marked,
            looks_at_doubts: AtomicBool::new(false),
            sweeps: AtomicBool::new(false),
            look: Look::default(),
            inline: Inline::new(),
            space_checked_ms: AtomicU64::new(u64::MAX),
            space_low: AtomicBool::new(false),
        });
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Store {
            inner: Arc::new(Inner {
                shared,
                budget,
                gather: Arc::new(Gather::new()),
                lines: stats::LineIndex::default(),
                domains,
                shards,
                hasher: RandomState::default(),
            }),
        }
    }

    /// Reserves room for a request of `bytes` (as far as that is known) before its first body byte is
    /// read.
    ///
    /// # Errors
    /// [`StoreError::Busy`] when the byte budget is used up, [`StoreError::ShuttingDown`] while
    /// draining. Nothing was written.
    pub fn reserve(&self, bytes: usize) -> Result<Reservation, StoreError> {
        if self.inner.shared.draining.load(Ordering::Relaxed) {
            self.inner.shared.metrics.refused(&StoreError::ShuttingDown);
            return Err(StoreError::ShuttingDown);
        }
        self.inner.budget.reserve(bytes)
    }

    /// Appends a batch to its domain's file, whole or not at all.
    ///
    /// `Ok` means, with [`Fsync::Always`]: the lines and the file's name are on the disk.
    ///
    /// # Errors
    /// See [`StoreError`]; [`StoreError::written`] says whether anything was written.
    ///
    /// # Cancel safety
    /// Dropping the future cancels nothing: the writer owns the bytes and the reservation. Only
    /// the answer is lost.
    pub async fn append(&self, batch: Batch, reservation: Reservation) -> Result<(), StoreError> {
        self.append_before(batch, reservation, None, || Ok(())).await
    }

    /// As [`Store::append`], but waits for a foreign lock at most until `deadline`. Once the lock is
    /// taken there is no deadline: what is being written is written to its end, and answered then.
    /// `admit` is asked before the first event of a domain that has no file.
    ///
    /// # Errors
    /// As [`Store::append`], and what `admit` says; then nothing was written.
    pub async fn append_before<E: From<StoreError>>(
        &self,
        batch: Batch,
        mut reservation: Reservation,
        deadline: Option<Instant>,
        admit: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let queued_at = Instant::now();
        let lock_deadline = queued_at + self.inner.shared.options.lock_timeout;
        let lock_deadline = deadline.map_or(lock_deadline, |deadline| deadline.min(lock_deadline));
        let (domain, lines, events) = batch.into_parts();
        reservation.grow_to(lines.capacity())?;
        if self.inner.shared.space_is_due(queued_at) {
            Box::pin(self.inner.shared.look_at_space()).await;
        }
        self.inner.shared.check_space().inspect_err(|e| self.inner.shared.metrics.refused(e))?;
        let stem = FileNames::stem_of(&domain);
        let writer = lock(self.shard(&stem)).get(&*stem).cloned();
        let writer = match writer {
            Some(writer) => writer,
            None => Box::pin(self.new_writer(&domain, admit)).await?,
        };
        let (ack, done) = oneshot::channel();
        self.inner.shared.metrics.submitted();
        let home = Handle::current();
        let job = Job { lines, events, queued_at, lock_deadline, ack, home, _reservation: reservation };
        self.inner.gather.add(writer, job);
        let answer = done.await.unwrap_or_else(|_| {
            self.inner.shared.metrics.answered();
            Err(StoreError::Panicked)
        });
        Ok(answer?)
    }

    /// How the store is doing. If the disk does not answer within half a second, the data directory counts as
    /// not writable, and the space is what it was.
    ///
    /// # Cancel safety
    /// May be dropped.
    pub async fn health_now(&self) -> StoreHealth {
        let shared = &self.inner.shared;
        self.health_by(shared.look.look(shared, Depth::All).await)
    }

    /// As [`Store::health_now`], for a thread that may block.
    pub fn health(&self) -> StoreHealth {
        let shared = &self.inner.shared;
        self.health_by(shared.look.look_blocking(shared, Depth::All))
    }

    fn health_by(&self, seen: Option<Seen>) -> StoreHealth {
        let shared = &self.inner.shared;
        let seen = seen.unwrap_or_else(|| Seen { writable: false, ..shared.look.last() });
        let space = seen.space;
        StoreHealth {
            writable: seen.writable,
            space,
            above_reserve: space.is_none_or(|space| !shared.is_low(space)),
            reserve_bytes: shared.reserve_bytes(space),
            draining: shared.draining.load(Ordering::Relaxed),
            poisoned_domains: shared.poisoned.load(Ordering::Relaxed) + shared.marked.len(),
            disk_proven: !shared.doubt.is_unproven(),
            queued_requests: shared.metrics.queue_depth(),
            in_flight_bytes: self.inner.budget.bytes_used(),
            in_flight_bytes_max: self.inner.budget.bytes_max(),
            open_domains: shared.open_domains(),
            known_domains: self.inner.shards.iter().map(|shard| lock(shard).len()).sum(),
            domains: self.inner.domains.count(),
            domains_max: self.inner.domains.max(),
        }
    }

    /// How the store syncs.
    pub fn fsync(&self) -> Fsync {
        self.inner.shared.options.fsync
    }

    /// Refuses new requests from now on; those that wait for a foreign lock after `lock_deadline`
    /// are refused too.
    pub fn begin_drain(&self, lock_deadline: Instant) {
        let shared = &self.inner.shared;
        let ms = lock_deadline.saturating_duration_since(shared.started).as_millis() as u64;
        shared.lock_deadline_ms.store(ms, Ordering::Relaxed);
        shared.draining.store(true, Ordering::Relaxed);
    }

    /// Waits until nothing is in flight, then syncs what [`Fsync::EverySecond`] left unsynced.
    ///
    /// # Cancel safety
    /// May be dropped (for a deadline); appends under way go on.
    pub async fn drained(&self) {
        self.inner.budget.idle().await;
        self.flush().await;
    }

    /// Runs for as long as the store lives: syncs for [`Fsync::EverySecond`], closes idle files,
    /// forgets idle writers, and looks whether there is room for more domains again.
    pub async fn maintain(&self) {
        let mut swept = Instant::now();
        let mut counted = Instant::now();
        let mut ticks = tokio::time::interval(FLUSH_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // Nothing here waits for the disk: what hangs on one domain holds no other.
            self.sync_dirty();
            self.look_at_poisoned();
            self.inner.shared.probe_if_due();
            self.inner.shared.look_at_ready();
            self.inner.shared.inline.look(Instant::now());
            // Reads what the system has noted, so that it does not pile up.
            self.inner.shared.disk.lock_wanted("");
            if swept.elapsed() >= SWEEP_EVERY {
                swept = Instant::now();
                self.sweep_aside();
            }
            if self.inner.domains.is_full() && counted.elapsed() >= COUNT_DOMAINS_EVERY {
                counted = Instant::now();
                let store = self.clone();
                tokio::task::spawn_blocking(move || store.inner.domains.count_anew(&store.inner.shared.disk));
            }
        }
    }

    /// For [`Fsync::EverySecond`].
    fn sync_dirty(&self) {
        if self.fsync() == Fsync::EverySecond {
            for shard in &self.inner.shards {
                lock(shard).values().filter(|w| w.is_dirty()).for_each(DomainWriter::sync_soon);
            }
        }
    }

    async fn flush(&self) {
        for done in self.each_writer(|writer| writer.is_dirty().then(|| writer.request_sync())).into_iter().flatten() {
            // A failed sync has poisoned its domain and is in the log; nobody waits for it here.
            let _ = done.await;
        }
    }

    fn each_writer<T>(&self, look: impl Fn(&Arc<DomainWriter<D>>) -> T) -> Vec<T> {
        self.inner.shards.iter().flat_map(|shard| lock(shard).values().map(&look).collect::<Vec<T>>()).collect()
    }

    /// A poisoned domain may have been dealt with; then it should be ready before anybody asks.
    fn look_at_poisoned(&self) {
        self.look_at_doubts();
        if self.inner.shared.poisoned.load(Ordering::Relaxed) == 0 {
            return;
        }
        for shard in &self.inner.shards {
            // The turn looks first whether the poison can be lifted; nobody waits for its answer.
            lock(shard).values().filter(|w| w.is_poisoned()).for_each(DomainWriter::sync_soon);
        }
    }

    /// As [`Self::look_at_poisoned`], for domains that nobody writes to; on a thread that may block, one at a
    /// time.
    fn look_at_doubts(&self) {
        let shared = &self.inner.shared;
        if shared.marked.len() == 0 || shared.looks_at_doubts.swap(true, Ordering::Acquire) {
            return;
        }
        let shared = shared.clone();
        shared.runtime().spawn_blocking(move || {
            shared.marked.look(&shared.disk);
            shared.looks_at_doubts.store(false, Ordering::Release);
        });
    }

    /// Closing a file may take long on a network file system.
    fn sweep_aside(&self) {
        let store = self.clone();
        if !self.inner.shared.sweeps.swap(true, Ordering::Acquire) {
            self.inner.shared.runtime().spawn_blocking(move || {
                store.sweep();
                store.inner.shared.sweeps.store(false, Ordering::Release);
            });
        }
    }

    fn sweep(&self) {
        for shard in &self.inner.shards {
            // Under the lock of the shard nobody can get a new handle, so a count of one means
            // that nobody has one.
            lock(shard).retain(|_, writer| !(writer.rest(IDLE_AFTER) && Arc::strong_count(writer) == 1));
        }
    }

    fn shard(&self, stem: &str) -> &Mutex<Writers<D>> {
        &self.inner.shards[self.inner.hasher.hash_one(stem) as usize % SHARDS]
    }

    /// The writer of a domain that had none. If it has no file either, `admit` is asked, and then there must be
    /// a place for it.
    #[cold]
    #[inline(never)]
    async fn new_writer<E: From<StoreError>>(
        &self,
        domain: &Domain,
        admit: impl FnOnce() -> Result<(), E>,
    ) -> Result<Arc<DomainWriter<D>>, E> {
        // What cannot be looked at is not new; whoever opens it says what is wrong.
        let data = FileNames::of(domain).data;
        let is_new = matches!(self.inner.shared.aside(move |shared| shared.disk.stat(&data)).await, Some(Ok(None)));
        if is_new {
            admit()?;
            self.inner.domains.take().inspect_err(|e| self.inner.shared.metrics.refused(e))?;
        }
        let stem = FileNames::stem_of(domain);
        match lock(self.shard(&stem)).entry((&*stem).into()) {
            Entry::Occupied(writer) => {
                // Another request for it came in between.
                if is_new {
                    self.inner.domains.give_back();
                }
                Ok(writer.get().clone())
            }
            Entry::Vacant(place) => {
                let writer = DomainWriter::new(self.inner.shared.clone(), domain.clone());
                Ok(place.insert(Arc::new(writer)).clone())
            }
        }
    }
}

impl Store<RealDisk> {
    /// Opens the data directory, creating it if it is missing.
    ///
    /// # Errors
    /// Whatever the operating system says; nothing was written but perhaps empty directories.
    pub fn open(dir: &std::path::Path, options: StoreOptions, metrics: StoreMetrics) -> io::Result<Store> {
        let disk = RealDisk::open(dir)?;
        disk.writable()?;
        Ok(Store::new(disk, options, metrics))
    }

    /// Takes a snapshot of the data directory, see [`snapshot::snapshot`]. Blocks for as long as it takes.
    ///
    /// # Errors
    /// See [`snapshot::SnapshotError`]; appends are not concerned.
    pub fn snapshot(&self, to: PathBuf, base: Option<PathBuf>) -> Result<SnapshotReport, SnapshotError> {
        let shared = &self.inner.shared;
        let options = SnapshotOptions {
            to,
            base,
            lock_timeout: shared.options.lock_timeout,
            rate: None,
            reserve_bytes: shared.options.reserve_bytes,
        };
        snapshot::snapshot(&shared.disk, &options, &mut |_| {})
    }

    /// Waits until nothing is in flight, and sees to it that everything acknowledged is on the disk,
    /// with [`Fsync::Never`] by a sync of each domain whose files are open, and of the whole file system.
    ///
    /// # Errors
    /// Whatever these syncs say. With [`Fsync::EverySecond`] a failed sync poisons its domain instead.
    ///
    /// # Cancel safety
    /// As [`Store::drained`].
    pub async fn settled(&self) -> io::Result<()> {
        self.drained().await;
        if self.fsync() != Fsync::Never {
            return Ok(());
        }
        // A sync of the whole would not tell what ext4 has thrown away.
        for done in self.each_writer(|writer| writer.request_sync()) {
            // A domain that was poisoned before says nothing new.
            if let Ok(Err(error @ (StoreError::Sync { .. } | StoreError::InDoubt))) = done.await {
                return Err(io::Error::other(error));
            }
        }
        let store = self.clone();
        let synced = tokio::task::spawn_blocking(move || store.inner.shared.disk.sync_file_system());
        synced.await.unwrap_or_else(|_| Err(io::Error::other("the sync panicked")))
    }
}

impl<D: Disk> Shared<D> {
    fn new_log(&self, names: &FileNames) -> Log<D> {
        Log::new(names.clone(), self.open_logs.clone())
    }

    fn runtime(&self) -> Handle {
        self.options.runtime.clone().unwrap_or_else(Handle::current)
    }

    /// Calls to the disk before an append is queued, not on the thread that serves connections, if there are others:
    /// on a disk that hangs they take as long as that does. `None`: they have panicked.
    async fn aside<T: Send + 'static>(self: &Arc<Self>, calls: impl FnOnce(&Self) -> T + Send + 'static) -> Option<T> {
        let Some(runtime) = &self.options.runtime else { return Some(calls(self)) };
        let shared = self.clone();
        runtime.spawn_blocking(move || calls(&shared)).await.ok()
    }

    fn open_domains(&self) -> usize {
        self.open_logs.get()
    }

    fn may_keep_open(&self) -> bool {
        self.open_domains() <= self.options.open_domains_max
    }

    fn poisoned(&self) {
        self.poisoned.fetch_add(1, Ordering::Relaxed);
    }

    fn unpoisoned(&self) {
        self.poisoned.fetch_sub(1, Ordering::Relaxed);
    }

    fn lock_deadline(&self) -> Option<Instant> {
        match self.lock_deadline_ms.load(Ordering::Relaxed) {
            u64::MAX => None,
            ms => Some(self.started + Duration::from_millis(ms)),
        }
    }

    /// Is it time to ask how much is free? A few times a second, and with each append while it is too little, so
    /// that appends go on as soon as there is room.
    fn space_is_due(&self, now: Instant) -> bool {
        let now_ms = now.saturating_duration_since(self.started).as_millis() as u64;
        let checked_ms = self.space_checked_ms.load(Ordering::Relaxed);
        let old = checked_ms == u64::MAX || now_ms.saturating_sub(checked_ms) > SPACE_AGE_MAX.as_millis() as u64;
        let due = old || self.space_low.load(Ordering::Relaxed);
        if due {
            self.space_checked_ms.store(now_ms, Ordering::Relaxed);
        }
        due
    }

    #[cold]
    #[inline(never)]
    async fn look_at_space(self: &Arc<Self>) {
        // Without other threads for it, it is asked here.
        let space = match &self.options.runtime {
            Some(_) => self.look.look(self, Depth::Space).await.map(|seen| seen.space),
            None => Some(self.disk.space().ok()),
        };
        // If the file system does not say, the write itself will tell. If it does not in time, what was known stays.
        if let Some(space) = space {
            self.space_low.store(space.is_some_and(|space| self.is_low(space)), Ordering::Relaxed);
        }
    }

    /// Refuses when the disk was below its reserve at the last look.
    fn check_space(&self) -> Result<(), StoreError> {
        if self.space_low.load(Ordering::Relaxed) {
            return Err(StoreError::io("disk reserve", io::ErrorKind::StorageFull.into()));
        }
        Ok(())
    }

    fn is_low(&self, space: DiskSpace) -> bool {
        space.free_bytes < self.reserve_bytes(Some(space))
    }

    fn reserve_bytes(&self, space: Option<DiskSpace>) -> u64 {
        self.options.reserve_bytes.unwrap_or_else(|| space.map_or(0, default_reserve_bytes))
    }
}

/// What stays free unless somebody says otherwise.
fn default_reserve_bytes(space: DiskSpace) -> u64 {
    (space.total_bytes / 100).min(64 << 20)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The map is only ever changed by single inserts and removals, which do not panic half-way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(dir: &std::path::Path) -> Store {
        let options = StoreOptions { fsync: Fsync::EverySecond, reserve_bytes: Some(0), ..StoreOptions::default() };
        Store::open(dir, options, StoreMetrics::new()).unwrap()
    }

    async fn append(store: &Store, domain: &Domain) {
        let batch = Batch::parse("{}", crate::event::Format::Document, Some(domain.clone())).unwrap().unwrap();
        let appended = store.append(batch, store.reserve(1).unwrap());
        tokio::time::timeout(Duration::from_secs(20), appended).await.expect("an answer in time").unwrap();
    }

    /// Broken, files would stay open for ever, or be closed although lines in them are not synced.
    #[test]
    fn a_writer_that_rests_is_closed_unless_something_would_be_lost() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let rests = async {
            let (store, domain) = (store(dir.path()), Domain::parse("a").unwrap());
            append(&store, &domain).await;
            let writer = lock(store.shard("a")).get("a").cloned().unwrap();
            assert!(writer.is_dirty() && !writer.rest(Duration::ZERO), "not synced");
            store.flush().await;
            // The turn that synced may still be at the desk.
            let at_rest = Instant::now() + Duration::from_secs(10);
            while !writer.rest(Duration::ZERO) {
                assert!(Instant::now() < at_rest);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(store.health().open_domains, 0);
            append(&store, &domain).await;
            store.flush().await;
            for _ in 0..20 {
                assert!(!writer.rest(IDLE_AFTER), "it was used just now");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            drop(writer);
            store.sweep();
            assert_eq!((store.health().open_domains, store.health().known_domains), (1, 1));
        };
        let in_time = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), rests).await });
        // What hangs would hold the end of the runtime too.
        runtime.shutdown_background();
        in_time.expect("it ends");
    }
}
