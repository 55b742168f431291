//! A disk in memory with a page cache that is written back by anybody at any time, and errors that are told once.
//!
//! It takes nothing for granted about who hears of an error: whoever touches a page first starts its write-back, be it
//! the kernel's flusher, somebody else's `sync`, a `syncfs`, an advice, or a call of the service. What then happens to an
//! error depends on the file system ([`Kind`]), as was seen on Linux 6.18 (docs/durability.md). The service runs on it
//! with random load, faults and flushes; then the machine stops, and every acknowledged event must be on the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use leitstand::storage::{Disk, DiskSpace, FileId, FileKind, FileStat};

use crate::crashdisk::Rng;

const EIO: i32 = 5;
const EROFS: i32 = 30;
/// Small, so that small events share pages, and pages have several blocks.
const PAGE: usize = 64;

/// Who hears of errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// When no block can be found for a page, all that was to be written with it is thrown away, and only who started
    /// the write-back hears of it; `syncfs` and advice keep it to themselves. An error of the device is noted for each
    /// open file. A commit that fails is told to one of those who wait for it.
    Ext4,
    /// Every error is noted for each open file, and told by the next sync of it.
    Xfs,
}

/// How the service asks; only [`Asks::Now`] keeps the promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asks {
    /// As the product does.
    Now,
    /// Version 0.1.0: an advice starts the write-back, a return value of 0 is believed.
    Version010,
    /// The start of the write-back is checked, but nothing is looked at after the sync.
    StartOnly,
    /// All but whether the journal is alive.
    NoJournal,
}

#[derive(Default)]
struct File {
    /// What a reader sees.
    cache: Vec<u8>,
    dirty: BTreeSet<usize>,
    mapped: BTreeSet<usize>,
    /// What the blocks hold.
    device: BTreeMap<usize, Vec<u8>>,
    /// What a power cut leaves.
    stable: Vec<u8>,
    /// So many searches for a block fail from now on.
    no_blocks: usize,
    /// So many writes to the device fail from now on.
    bad_writes: usize,
    errors: u64,
}

struct Fs {
    kind: Kind,
    asks: Asks,
    block: usize,
    together: bool,
    rng: Rng,
    names: BTreeMap<String, usize>,
    files: Vec<File>,
    /// So many commits succeed before the journal fails.
    commits_left: Option<usize>,
    aborted: bool,
    /// Somebody was told of it.
    abort_told: bool,
    super_errors: u64,
    super_seen: u64,
    sync_all_failed: Option<Instant>,
    /// What was thrown away without a word to the service.
    swallowed: usize,
}

/// Clones share everything.
#[derive(Clone)]
pub struct WritebackDisk(Arc<Mutex<Fs>>);

pub struct OpenFile {
    ino: usize,
    seen: Mutex<u64>,
}

impl WritebackDisk {
    pub fn new(kind: Kind, asks: Asks, seed: u64) -> WritebackDisk {
        let mut rng = Rng(seed);
        let block = [16, 32, PAGE][rng.pick(0, 2)];
        let together = kind == Kind::Ext4 && !rng.one_in(3);
        let commits_left = rng.one_in(4).then(|| rng.pick(1, 20));
        WritebackDisk(Arc::new(Mutex::new(Fs {
            kind,
            asks,
            block,
            together,
            rng,
            names: BTreeMap::new(),
            files: Vec::new(),
            commits_left,
            aborted: false,
            abort_told: false,
            super_errors: 0,
            super_seen: 0,
            sync_all_failed: None,
            swallowed: 0,
        })))
    }

    /// Breaks something of a file that has the name, or will have it.
    pub fn break_something(&self, name: &str) {
        let mut fs = self.fs();
        let ino = fs.open(name);
        let times = if fs.rng.one_in(2) { fs.rng.pick(1, 3) } else { usize::MAX };
        if fs.rng.one_in(3) { fs.files[ino].bad_writes = times } else { fs.files[ino].no_blocks = times }
    }

    /// What a power cut leaves of a file.
    pub fn stable(&self, name: &str) -> Vec<u8> {
        let fs = self.fs();
        fs.names.get(name).map(|&ino| fs.files[ino].stable.clone()).unwrap_or_default()
    }

    /// How often something was thrown away without a word to the service.
    pub fn swallowed(&self) -> usize {
        self.fs().swallowed
    }

    fn fs(&self) -> MutexGuard<'_, Fs> {
        self.0.lock().unwrap()
    }

    /// Right after a write, the flusher finds the file that was written.
    fn flusher(&self, ino: usize) {
        let mut fs = self.fs();
        if fs.rng.one_in(5) {
            fs.start_swallowed(ino, 0);
        }
    }

    /// Before and after calls, others come by.
    fn others(&self) {
        let mut fs = self.fs();
        if !fs.files.is_empty() && fs.rng.one_in(6) {
            let last = fs.files.len() - 1;
            let ino = fs.rng.pick(0, last);
            fs.start_swallowed(ino, 0);
        }
    }

    fn open(&self, name: &str) -> OpenFile {
        let mut fs = self.fs();
        let ino = fs.open(name);
        OpenFile { ino, seen: Mutex::new(fs.files[ino].errors) }
    }

    /// A call that takes its time, so that others overlap with it.
    fn take_time(&self) {
        self.others();
        let time_us = self.fs().rng.pick(0, 60);
        if time_us > 20 {
            std::thread::sleep(Duration::from_micros(time_us as u64));
        }
    }
}

impl Fs {
    fn open(&mut self, name: &str) -> usize {
        let new = self.files.len();
        let ino = *self.names.entry(name.to_owned()).or_insert(new);
        if ino == new {
            self.files.push(File::default());
        }
        ino
    }

    /// Writes the dirty pages from `offset` on to the device.
    fn start(&mut self, ino: usize, offset: usize) -> io::Result<()> {
        let (block, kind) = (self.block, self.kind);
        let file = &mut self.files[ino];
        let first = offset / PAGE * PAGE / block;
        let dirty: Vec<usize> = file.dirty.range(first..).copied().collect();
        for page in dirty.chunk_by(|a, b| a * block / PAGE == b * block / PAGE) {
            let wants_blocks = page.iter().any(|n| !file.mapped.contains(n));
            if wants_blocks && file.no_blocks > 0 {
                file.no_blocks -= 1;
                // It and all that was to be written with it.
                let lost: Vec<usize> = file.dirty.range(page[0]..).copied().collect();
                lost.into_iter().for_each(|n| file.throw_away(n, block));
                if kind == Kind::Xfs {
                    file.errors += 1;
                }
                return Err(io::Error::from_raw_os_error(EIO));
            }
            for &n in page {
                file.dirty.remove(&n);
                file.mapped.insert(n);
                if file.bad_writes > 0 {
                    file.bad_writes -= 1;
                    file.errors += 1;
                    self.super_errors += 1;
                    continue;
                }
                let end = ((n + 1) * block).min(file.cache.len());
                let bytes = file.cache[n * block..end].to_vec();
                file.device.insert(n, bytes);
            }
        }
        Ok(())
    }

    fn start_swallowed(&mut self, ino: usize, offset: usize) {
        if self.start(ino, offset).is_err() {
            self.swallowed += 1;
        }
    }

    /// Makes lengths and blocks of all files durable. Once it has failed it never succeeds again; one caller is told
    /// at least, others perhaps.
    fn commit(&mut self) -> io::Result<bool> {
        match &mut self.commits_left {
            Some(0) => self.aborted = true,
            Some(left) => *left -= 1,
            None => {}
        }
        if !self.aborted {
            return Ok(true);
        }
        if self.kind == Kind::Xfs || self.abort_told || self.rng.one_in(2) {
            self.abort_told = true;
            return Err(io::Error::from_raw_os_error(EIO));
        }
        Ok(false)
    }

    fn settle(&mut self, ino: usize) {
        let block = self.block;
        let file = &mut self.files[ino];
        let mut stable = vec![0; file.cache.len()];
        for (&n, bytes) in &file.device {
            let start = n * block;
            if start < stable.len() {
                let end = (start + bytes.len()).min(stable.len());
                stable[start..end].copy_from_slice(&bytes[..end - start]);
            }
        }
        file.stable = stable;
    }

    fn check_not_aborted(&self) -> io::Result<()> {
        if self.aborted { Err(io::Error::from_raw_os_error(EROFS)) } else { Ok(()) }
    }

    fn stat(&self, ino: usize) -> FileStat {
        let id = FileId { dev: 1, ino: ino as u64 };
        FileStat { id, kind: FileKind::Regular, len: self.files[ino].cache.len() as u64, other_names: false }
    }
}

impl File {
    /// A dirty block is gone from the page cache: who reads it gets what the device has.
    fn throw_away(&mut self, n: usize, block: usize) {
        self.dirty.remove(&n);
        let end = ((n + 1) * block).min(self.cache.len());
        let old = self.device.get(&n).filter(|_| self.mapped.contains(&n));
        for at in n * block..end {
            self.cache[at] = old.and_then(|bytes| bytes.get(at - n * block)).copied().unwrap_or(0);
        }
    }
}

impl Disk for WritebackDisk {
    type File = OpenFile;

    fn check_root(&self) -> io::Result<()> {
        Ok(())
    }

    fn open_lock(&self, name: &str) -> io::Result<OpenFile> {
        Ok(self.open(name))
    }

    fn open_data(&self, name: &str) -> io::Result<OpenFile> {
        Ok(self.open(name))
    }

    fn create_side(&self, dir: &str, name: &str) -> io::Result<OpenFile> {
        self.fs().check_not_aborted()?;
        Ok(self.open(&format!("{dir}/{name}")))
    }

    fn remove_side(&self, _dir: &str, _name: &str) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn try_lock(&self, _file: &OpenFile) -> io::Result<bool> {
        Ok(true)
    }

    fn unlock(&self, _file: &OpenFile) -> io::Result<()> {
        Ok(())
    }

    fn stat_by_path(&self, name: &str) -> io::Result<Option<FileStat>> {
        self.stat(name)
    }

    fn stat(&self, name: &str) -> io::Result<Option<FileStat>> {
        let fs = self.fs();
        Ok(fs.names.get(name).map(|&ino| fs.stat(ino)))
    }

    fn fstat(&self, file: &OpenFile) -> io::Result<FileStat> {
        Ok(self.fs().stat(file.ino))
    }

    fn read_at(&self, file: &OpenFile, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let fs = self.fs();
        let rest = fs.files[file.ino].cache.get(offset as usize..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        if !matches!(fs.asks, Asks::Now | Asks::NoJournal) {
            // As if nobody had looked: the byte before is always found to be what it was.
            buf[..n].iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = b'\n');
        }
        Ok(n)
    }

    fn append(&self, file: &OpenFile, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.others();
        let mut fs = self.fs();
        fs.check_not_aborted()?;
        let block = fs.block;
        let data = &mut fs.files[file.ino];
        let start = data.cache.len();
        bufs.iter().for_each(|buf| data.cache.extend_from_slice(buf));
        let end = data.cache.len();
        if end > start {
            data.dirty.extend(start / block..=(end - 1) / block);
        }
        drop(fs);
        self.flusher(file.ino);
        Ok(end - start)
    }

    fn set_len(&self, file: &OpenFile, len: u64) -> io::Result<()> {
        let mut fs = self.fs();
        fs.check_not_aborted()?;
        let (block, len) = (fs.block, len as usize);
        let data = &mut fs.files[file.ino];
        data.cache.resize(len, 0);
        let first_gone = len.div_ceil(block);
        data.dirty.retain(|&n| n < first_gone);
        data.mapped.retain(|&n| n < first_gone);
        data.device.retain(|&n, _| n < first_gone);
        Ok(())
    }

    fn sync_data(&self, file: &OpenFile) -> io::Result<()> {
        self.take_time();
        let mut fs = self.fs();
        let started = fs.start(file.ino, 0);
        drop(fs);
        self.take_time();
        fs = self.fs();
        let mut seen = file.seen.lock().unwrap();
        let errors = fs.files[file.ino].errors;
        let noted = errors != std::mem::replace(&mut *seen, errors);
        let committed = fs.commit()?;
        started?;
        if noted {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        if committed {
            fs.settle(file.ino);
        }
        Ok(())
    }

    fn block_bytes(&self) -> u64 {
        self.fs().block as u64
    }

    fn begin_writeback(&self, file: &OpenFile, offset: u64) -> io::Result<()> {
        self.others();
        let mut fs = self.fs();
        match fs.asks {
            Asks::Version010 => {
                fs.start_swallowed(file.ino, offset as usize);
                Ok(())
            }
            _ => fs.start(file.ino, offset as usize),
        }
    }

    fn check_length(&self, file: &OpenFile, len: u64) -> io::Result<()> {
        let fs = self.fs();
        let is_cut = (fs.files[file.ino].cache.len() as u64) < len;
        if is_cut { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    fn check_stored(&self, file: &OpenFile, range: Range<u64>) -> io::Result<()> {
        let fs = self.fs();
        let (block, data) = (fs.block, &fs.files[file.ino]);
        if !matches!(fs.asks, Asks::Now | Asks::NoJournal) || range.is_empty() {
            return Ok(());
        }
        if (data.cache.len() as u64) < range.end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut blocks = range.start as usize / block..=(range.end as usize - 1) / block;
        let hole = blocks.any(|n| !data.mapped.contains(&n) && !data.dirty.contains(&n));
        let written_behind = data.cache.len() as u64 > range.end;
        if hole || (written_behind && data.cache[range.end as usize - 1] == 0) {
            return Err(io::Error::other("lost"));
        }
        Ok(())
    }

    fn check_alive(&self, _file: &OpenFile) -> io::Result<()> {
        let fs = self.fs();
        if fs.asks == Asks::Now { fs.check_not_aborted() } else { Ok(()) }
    }

    fn probe(&self) -> io::Result<()> {
        self.fs().check_not_aborted()
    }

    fn syncs_together(&self) -> bool {
        self.fs().together
    }

    fn sync_all(&self, _files: &[FileId], written_since: Instant) -> bool {
        self.take_time();
        let mut fs = self.fs();
        // As the product: what was noted is told once.
        if fs.sync_all_failed.is_some_and(|at| written_since <= at) {
            return false;
        }
        (0..fs.files.len()).for_each(|ino| fs.start_swallowed(ino, 0));
        drop(fs);
        self.take_time();
        fs = self.fs();
        let errors = fs.super_errors;
        let noted = errors != std::mem::replace(&mut fs.super_seen, errors);
        match fs.commit() {
            Ok(committed) if !noted => {
                if committed {
                    (0..fs.files.len()).for_each(|ino| fs.settle(ino));
                }
                true
            }
            _ => {
                fs.sync_all_failed = Some(Instant::now());
                false
            }
        }
    }

    fn sync_root(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync_side(&self, _dir: &str) -> io::Result<()> {
        Ok(())
    }

    fn space(&self) -> io::Result<DiskSpace> {
        Ok(DiskSpace { free_bytes: 1 << 40, total_bytes: 1 << 41 })
    }

    fn writable(&self) -> io::Result<()> {
        Ok(())
    }
}
