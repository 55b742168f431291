//! A disk that fails, cuts writes short, or stops altogether at its n-th call.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use leitstand::storage::{Disk, DiskSpace, FileId, FileStat, RealDisk, Wanted};

/// What happens at the chosen call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The call fails with this errno and does nothing.
    Errno(i32),
    /// A write takes half of its bytes; other calls are not touched.
    ShortWrite,
    /// A write takes all of its bytes, then somebody without the lock makes the file longer or shorter
    /// by so many, and the write fails with EIO.
    WriteThenResize(i64),
    /// This call and all later ones fail: the process is gone as far as the disk can see.
    Freeze,
    /// As `Freeze`, but a write still takes half of its bytes.
    FreezeTorn,
    /// The call panics.
    Panic,
}

/// Syncs that wait for the test.
#[derive(Debug, Default)]
struct Held {
    on: bool,
    waiting: usize,
}

/// Steers a [`FaultyDisk`] from outside.
#[derive(Debug, Default)]
pub struct Plan {
    calls: AtomicUsize,
    names: Mutex<Vec<&'static str>>,
    fault: Mutex<Option<(usize, Fault)>>,
    /// The call's name, how many of that name pass before, and what happens to it.
    by_name: Mutex<Vec<(&'static str, usize, Fault)>>,
    asked: Mutex<Vec<String>>,
    wrote_on: Mutex<Option<ThreadId>>,
    space: Mutex<Option<DiskSpace>>,
    space_looks: AtomicUsize,
    room: Mutex<Option<u64>>,
    room_looks: AtomicUsize,
    slow_syncs: Mutex<Duration>,
    together: AtomicBool,
    held: Mutex<Held>,
    held_moved: Condvar,
    probes: AtomicUsize,
    probe_errno: Mutex<Option<i32>>,
    /// Names of calls of which the next one does not come back before it is let go.
    hanging: Mutex<Vec<&'static str>>,
    hung: Mutex<usize>,
    hung_moved: Condvar,
    /// 0: as many as are asked for.
    read_bytes_max: AtomicUsize,
    /// 0: as large as they are.
    block_bytes: AtomicU64,
}

impl Plan {
    /// Fails the call number `at` (from 1), counted from now.
    pub fn set(&self, at: usize, fault: Fault) {
        self.calls.store(0, Ordering::SeqCst);
        self.names.lock().unwrap().clear();
        *self.fault.lock().unwrap() = Some((at, fault));
    }

    /// Fails the next call of that name.
    pub fn fail_next(&self, name: &'static str, fault: Fault) {
        self.fail_nth(name, 1, fault);
    }

    /// Fails the `nth` call of that name, from 1.
    pub fn fail_nth(&self, name: &'static str, nth: usize, fault: Fault) {
        self.by_name.lock().unwrap().push((name, nth - 1, fault));
    }

    /// Was there a call of that name since the count began?
    pub fn saw(&self, name: &str) -> bool {
        self.names.lock().unwrap().contains(&name)
    }

    /// From now on it is a file system with blocks of so many bytes.
    pub fn blocks_of(&self, bytes: u64) {
        self.block_bytes.store(bytes, Ordering::SeqCst);
    }

    /// Counts from now, fails nothing.
    pub fn clear(&self) {
        self.set(usize::MAX, Fault::Freeze);
    }

    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    /// How many calls of that name there were since the count began.
    pub fn count(&self, name: &str) -> usize {
        self.names.lock().unwrap().iter().filter(|&&seen| seen == name).count()
    }

    /// Name of the call number `at`, if it happened.
    pub fn name(&self, at: usize) -> Option<&'static str> {
        self.names.lock().unwrap().get(at - 1).copied()
    }

    /// The locks of which somebody asked whether they are wanted.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    /// The thread of the last write.
    pub fn wrote_on(&self) -> Option<ThreadId> {
        *self.wrote_on.lock().unwrap()
    }

    /// From now on the file system has that much space.
    pub fn set_space(&self, free_bytes: u64, total_bytes: u64) {
        *self.space.lock().unwrap() = Some(DiskSpace { free_bytes, total_bytes });
    }

    /// From now on it is a file system that must be asked for room, and has so much.
    pub fn set_room(&self, bytes: u64) {
        *self.room.lock().unwrap() = Some(bytes);
    }

    /// How often somebody asked for room.
    pub fn room_looks(&self) -> usize {
        self.room_looks.load(Ordering::SeqCst)
    }

    /// From now on a probe of the file system fails with that, or succeeds again.
    pub fn fail_probes(&self, errno: Option<i32>) {
        *self.probe_errno.lock().unwrap() = errno;
    }

    /// How often the file system was probed.
    pub fn probes(&self) -> usize {
        self.probes.load(Ordering::SeqCst)
    }

    /// From now on a sync takes at least so long.
    pub fn slow_syncs(&self, time: Duration) {
        *self.slow_syncs.lock().unwrap() = time;
    }

    /// From now on the files of several domains are synced with one call.
    pub fn sync_together(&self) {
        self.together.store(true, Ordering::SeqCst);
    }

    /// From now on syncs of data wait until they are let go.
    pub fn hold_syncs(&self) {
        self.held.lock().unwrap().on = true;
    }

    /// Waits until so many syncs wait.
    pub fn wait_held(&self, syncs: usize) {
        let held = self.held.lock().unwrap();
        let (held, late) =
            self.held_moved.wait_timeout_while(held, Duration::from_secs(20), |held| held.waiting < syncs).unwrap();
        assert!(!late.timed_out(), "{} of {syncs} syncs were begun", held.waiting);
    }

    pub fn let_syncs_go(&self) {
        self.held.lock().unwrap().on = false;
        self.held_moved.notify_all();
    }

    fn maybe_hold(&self) {
        let mut held = self.held.lock().unwrap();
        held.waiting += 1;
        self.held_moved.notify_all();
        // A test that has failed lets nothing go, and must end all the same.
        held = self.held_moved.wait_timeout_while(held, Duration::from_secs(30), |held| held.on).unwrap().0;
        held.waiting -= 1;
    }

    /// The next call of that name does not come back until [`Plan::let_hung_go`].
    pub fn hang_next(&self, name: &'static str) {
        self.hanging.lock().unwrap().push(name);
    }

    /// How many calls hang now.
    pub fn hung(&self) -> usize {
        *self.hung.lock().unwrap()
    }

    pub fn let_hung_go(&self) {
        self.hanging.lock().unwrap().clear();
        *self.hung.lock().unwrap() = 0;
        self.hung_moved.notify_all();
    }

    fn maybe_hang(&self, name: &str) {
        let mut hanging = self.hanging.lock().unwrap();
        let Some(at) = hanging.iter().position(|wanted| *wanted == name) else { return };
        hanging.remove(at);
        drop(hanging);
        let mut hung = self.hung.lock().unwrap();
        *hung += 1;
        // As with held syncs, a test that has failed must end.
        drop(self.hung_moved.wait_timeout_while(hung, Duration::from_secs(30), |hung| *hung > 0).unwrap());
    }

    /// From now on a read gives at most so many bytes.
    pub fn read_at_most(&self, bytes: usize) {
        self.read_bytes_max.store(bytes, Ordering::SeqCst);
    }

    /// How often somebody asked for the space.
    pub fn space_looks(&self) -> usize {
        self.space_looks.load(Ordering::SeqCst)
    }

    /// `Err`: the call fails. `Ok(true)`: a write is to be cut short.
    fn step(&self, name: &'static str) -> io::Result<bool> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        self.names.lock().unwrap().push(name);
        self.maybe_hang(name);
        let mut by_name = self.by_name.lock().unwrap();
        if let Some(at) = by_name.iter().position(|(wanted, ..)| *wanted == name)
            && let (_, passes, Fault::Errno(errno)) = &mut by_name[at]
        {
            let errno = *errno;
            if *passes == 0 {
                by_name.remove(at);
                return Err(io::Error::from_raw_os_error(errno));
            }
            *passes -= 1;
        }
        drop(by_name);
        let fault = *self.fault.lock().unwrap();
        match fault {
            Some((at, Fault::Panic)) if call == at => panic!("as the test asked for"),
            Some((at, Fault::Errno(errno))) if call == at => Err(io::Error::from_raw_os_error(errno)),
            Some((at, Fault::ShortWrite)) if call == at => Ok(true),
            Some((at, Fault::FreezeTorn | Fault::WriteThenResize(_))) if call == at && name == "append" => Ok(true),
            Some((at, Fault::Freeze | Fault::FreezeTorn)) if call >= at => Err(io::Error::other("frozen")),
            _ => Ok(false),
        }
    }
}

pub struct FaultyDisk {
    real: RealDisk,
    plan: Arc<Plan>,
}

impl FaultyDisk {
    pub fn open(dir: &Path) -> (FaultyDisk, Arc<Plan>) {
        let plan = Arc::new(Plan::default());
        (FaultyDisk { real: RealDisk::open(dir).unwrap(), plan: plan.clone() }, plan)
    }
}

impl Disk for FaultyDisk {
    type File = File;

    fn check_root(&self) -> io::Result<()> {
        self.plan.step("check_root")?;
        self.real.check_root()
    }

    fn open_lock(&self, name: &str) -> io::Result<File> {
        self.plan.step("open_lock")?;
        self.real.open_lock(name)
    }

    fn open_data(&self, name: &str) -> io::Result<File> {
        self.plan.step("open_data")?;
        self.real.open_data(name)
    }

    fn create_side(&self, dir: &str, name: &str) -> io::Result<File> {
        self.plan.step("create_side")?;
        self.real.create_side(dir, name)
    }

    fn open_side(&self, dir: &str, name: &str) -> io::Result<File> {
        self.plan.step("open_side")?;
        self.real.open_side(dir, name)
    }

    fn read_side(&self, dir: &str, name: &str, bytes_max: usize) -> io::Result<Option<Vec<u8>>> {
        self.plan.step("read_side")?;
        self.real.read_side(dir, name, bytes_max)
    }

    fn list_side(&self, dir: &str) -> io::Result<Vec<OsString>> {
        // As `space`: the store does it at its start too.
        self.real.list_side(dir)
    }

    fn remove_side(&self, dir: &str, name: &str) -> io::Result<()> {
        self.plan.step("remove_side")?;
        self.real.remove_side(dir, name)
    }

    fn try_lock(&self, file: &File) -> io::Result<bool> {
        self.plan.step("try_lock")?;
        self.real.try_lock(file)
    }

    fn unlock(&self, file: &File) -> io::Result<()> {
        // A frozen process does not unlock; the kernel does when it is gone, as here on drop.
        self.plan.step("unlock")?;
        self.real.unlock(file)
    }

    fn lock_wanted(&self, name: &str) -> Wanted {
        // Not a call of an append: it is asked when its time has come.
        self.plan.asked.lock().unwrap().push(name.to_owned());
        self.real.lock_wanted(name)
    }

    fn stat_by_path(&self, name: &str) -> io::Result<Option<FileStat>> {
        self.plan.step("stat_by_path")?;
        self.real.stat_by_path(name)
    }

    fn stat(&self, name: &str) -> io::Result<Option<FileStat>> {
        self.plan.step("stat")?;
        self.real.stat(name)
    }

    fn fstat(&self, file: &File) -> io::Result<FileStat> {
        self.plan.step("fstat")?;
        self.real.fstat(file)
    }

    fn read_at(&self, file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.plan.step("read_at")?;
        let max = self.plan.read_bytes_max.load(Ordering::SeqCst);
        let len = if max == 0 { buf.len() } else { buf.len().min(max) };
        self.real.read_at(file, &mut buf[..len], offset)
    }

    fn data_in(&self, file: &File, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        self.plan.step("data_in")?;
        self.real.data_in(file, range)
    }

    fn append(&self, file: &File, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        *self.plan.wrote_on.lock().unwrap() = Some(std::thread::current().id());
        let cut = self.plan.step("append")?;
        if !cut {
            return self.real.append(file, bufs);
        }
        if let Some((_, Fault::WriteThenResize(change))) = *self.plan.fault.lock().unwrap() {
            self.real.append(file, bufs)?;
            let len = self.real.fstat(file)?.len.checked_add_signed(change).expect("a length");
            self.real.set_len(file, len)?;
            return Err(io::Error::from_raw_os_error(5));
        }
        let all: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        self.real.append(file, &[IoSlice::new(&all[..all.len() / 2])])
    }

    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        self.plan.step("set_len")?;
        self.real.set_len(file, len)
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        self.plan.maybe_hold();
        self.plan.step("sync_data")?;
        let time = *self.plan.slow_syncs.lock().unwrap();
        std::thread::sleep(time);
        self.real.sync_data(file)
    }

    fn block_bytes(&self) -> u64 {
        match self.plan.block_bytes.load(Ordering::SeqCst) {
            0 => self.real.block_bytes(),
            bytes => bytes,
        }
    }

    fn begin_writeback(&self, file: &File, offset: u64) -> io::Result<()> {
        self.plan.step("begin_writeback")?;
        self.real.begin_writeback(file, offset)
    }

    fn check_stored(&self, file: &File, range: Range<u64>) -> io::Result<()> {
        self.plan.step("check_stored")?;
        self.real.check_stored(file, range)
    }

    fn check_length(&self, file: &File, len: u64) -> io::Result<()> {
        self.plan.step("check_length")?;
        self.real.check_length(file, len)
    }

    fn check_alive(&self, file: &File) -> io::Result<()> {
        self.plan.step("check_alive")?;
        self.real.check_alive(file)
    }

    fn probe(&self) -> io::Result<()> {
        // Not part of an append: it comes when it comes.
        self.plan.probes.fetch_add(1, Ordering::SeqCst);
        match *self.plan.probe_errno.lock().unwrap() {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => self.real.probe(),
        }
    }

    fn syncs_together(&self) -> bool {
        self.plan.together.load(Ordering::SeqCst)
    }

    fn sync_all(&self, files: &[FileId], written_since: Instant) -> bool {
        self.plan.maybe_hold();
        self.plan.step("sync_all").is_ok() && self.real.sync_all(files, written_since)
    }

    fn sync_root(&self) -> io::Result<()> {
        self.plan.step("sync_root")?;
        self.real.sync_root()
    }

    fn sync_side(&self, dir: &str) -> io::Result<()> {
        self.plan.step("sync_side")?;
        self.real.sync_side(dir)
    }

    fn space(&self) -> io::Result<DiskSpace> {
        // Not part of an append: not counted, so that call numbers are stable.
        self.plan.space_looks.fetch_add(1, Ordering::SeqCst);
        self.plan.maybe_hang("space");
        let told = *self.plan.space.lock().unwrap();
        told.map_or_else(|| self.real.space(), Ok)
    }

    fn room(&self) -> Option<u64> {
        // As `space`.
        self.plan.room_looks.fetch_add(1, Ordering::SeqCst);
        *self.plan.room.lock().unwrap()
    }

    fn writable(&self) -> io::Result<()> {
        self.real.writable()
    }
}
