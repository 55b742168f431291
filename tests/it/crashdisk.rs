//! A disk in memory that remembers every change, and what a power cut may leave of it.
//!
//! [`MemDisk`] is a [`Disk`] whose calls write a log of [`Op`]s. [`Replay`] follows that log with
//! two views of every file and directory: what the page cache shows, and what a sync has put on
//! stable storage. From their difference it makes the [`Image`]s that a power cut may leave.
//!
//! What is assumed of the device, as in docs/durability.md:
//!
//! * What a sync covered is there. A failed sync covers nothing, and neither does any later sync
//!   of what it left in doubt (the kernel may have marked those pages clean).
//! * Bytes that were synced and not changed since are never damaged, not even where they share a
//!   sector or a page with unsynced bytes. An unsynced byte is what it was at the last sync, what
//!   it is at the cut, what it was at some time between, or zero where blocks were allocated and
//!   not yet filled. It is never anything else.
//! * Renames are atomic, and a directory loses its youngest changes first when one of them is a
//!   rename. New entries alone survive in any selection.
//!
//! Lock files hold no data, so they are not part of the images.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use leitstand::storage::{Disk, DiskSpace, FileId, FileKind, FileStat};

/// Index of a file in [`MemDisk`]; survives renames and is never used again.
pub type Ino = usize;

/// Granularity in which a device writes.
pub const SECTOR: usize = 512;
/// Granularity in which a kernel writes back.
pub const PAGE: usize = 4096;

/// Stands for a directory where a file would have its index.
const A_DIRECTORY: Ino = usize::MAX;
const LOCK_SUFFIX: &str = ".lock";
/// How long an operation leaves to an answer that is on its way to its client.
const SETTLE: Duration = Duration::from_micros(100);
/// Longest wait at a closed gate; afterwards the call goes through.
const GATE_PATIENCE: Duration = Duration::from_secs(2);

/// One entry of the log. A path is a name in the data directory, or `side directory/name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    Link { path: String, ino: Ino },
    Rename { from: String, to: String },
    Unlink { path: String },
    Write { ino: Ino, at: usize, bytes: Vec<u8> },
    SetLen { ino: Ino, len: usize },
    SyncData { ino: Ino, ok: bool },
    SyncDir { dir: String, ok: bool },
    Note(Note),
}

/// What somebody outside learned, in its place among the operations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// The client was told that these events are stored.
    Acked(Vec<usize>),
    /// The client was told that nothing of these events was written.
    Refused(Vec<usize>),
    /// The store has synced what it acknowledged before that.
    Synced,
    /// A foreign writer has written this line; its newline stands, or will stand, at `end`.
    Foreign { line: usize, path: String, end: usize },
}

/// What happens to a chosen call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails with this errno and does nothing; a sync leaves in doubt what it should cover.
    Errno(i32),
    /// A write takes that share of its bytes, in 256ths.
    Short(u8),
    /// It succeeds: the next fault is for a later call.
    Pass,
}

/// Asked before every change for what was answered meanwhile; the flag says that more is awaited.
pub type Probe = Box<dyn Fn() -> (Vec<Note>, bool) + Send + Sync>;

/// The disk. Clones share everything.
#[derive(Clone)]
pub struct MemDisk(Arc<Shared>);

struct Shared {
    fs: Mutex<Fs>,
    probe: Option<Probe>,
    gate: Mutex<Gate>,
    gate_moved: Condvar,
}

#[derive(Default)]
struct Gate {
    closed: bool,
    /// `None`: for all calls.
    only: Option<&'static str>,
    waiting: usize,
}

impl Gate {
    fn stops(&self, call: &str) -> bool {
        self.closed && self.only.is_none_or(|only| only == call)
    }
}

#[derive(Default)]
struct Fs {
    files: Vec<Vec<u8>>,
    names: BTreeMap<String, Ino>,
    locks: BTreeMap<Ino, u64>,
    opened: u64,
    recording: bool,
    log: Vec<Op>,
    faults: Vec<(&'static str, Fault)>,
    together: bool,
    /// A call of this name does nothing and says that it did.
    lie: Option<&'static str>,
}

/// An open file; closing it releases its lock.
pub struct MemFile {
    disk: MemDisk,
    ino: Ino,
    handle: u64,
}

impl Drop for MemFile {
    fn drop(&mut self) {
        self.disk.fs().release(self.ino, self.handle);
    }
}

impl MemDisk {
    /// A disk that holds `image`, all of it synced, and keeps no log.
    pub fn holding(image: Image) -> MemDisk {
        MemDisk::with(image, false, None)
    }

    /// As [`MemDisk::holding`], with a log.
    pub fn recording(image: Image, probe: Probe) -> MemDisk {
        MemDisk::with(image, true, Some(probe))
    }

    fn with(image: Image, recording: bool, probe: Option<Probe>) -> MemDisk {
        let mut fs = Fs { recording, ..Fs::default() };
        for (path, content) in image.files {
            if let Some((dir, _)) = path.split_once('/') {
                fs.names.insert(dir.to_owned(), A_DIRECTORY);
            }
            fs.names.insert(path, fs.files.len());
            fs.files.push(content);
        }
        MemDisk(Arc::new(Shared { fs: Mutex::new(fs), probe, gate: Mutex::default(), gate_moved: Condvar::new() }))
    }

    /// Fails the next call of that name; several are kept in order.
    pub fn fail_next(&self, call: &'static str, fault: Fault) {
        self.fs().faults.push((call, fault));
    }

    /// From now on a call of that name does nothing and says that it did.
    pub fn lie_about(&self, call: &'static str) {
        self.fs().lie = Some(call);
    }

    /// Stops every caller at its next call, so that a test can queue work behind it.
    pub fn close_gate(&self) {
        *self.0.gate.lock().unwrap() = Gate { closed: true, ..Gate::default() };
    }

    /// Stops every caller at its next call of that name.
    pub fn close_gate_at(&self, call: &'static str) {
        *self.0.gate.lock().unwrap() = Gate { closed: true, only: Some(call), waiting: 0 };
    }

    /// From now on the files of several domains are synced with one call.
    pub fn sync_together(&self) {
        self.fs().together = true;
    }

    /// Waits until `callers` stand at the gate.
    pub fn wait_at_gate(&self, callers: usize) {
        let gate = self.0.gate.lock().unwrap();
        drop(self.0.gate_moved.wait_timeout_while(gate, GATE_PATIENCE, |gate| gate.waiting < callers).unwrap());
    }

    pub fn open_gate(&self) {
        self.0.gate.lock().unwrap().closed = false;
        self.0.gate_moved.notify_all();
    }

    /// Notes what was answered up to now.
    pub fn probe(&self) -> bool {
        let Some(probe) = &self.0.probe else { return false };
        let (notes, awaited) = probe();
        self.fs().log.extend(notes.into_iter().map(Op::Note));
        awaited
    }

    pub fn note(&self, note: Note) {
        self.fs().record(|| Op::Note(note));
    }

    /// The log so far.
    pub fn log(&self) -> Vec<Op> {
        self.fs().log.clone()
    }

    /// What the page cache shows under a name.
    pub fn read(&self, path: &str) -> Option<Vec<u8>> {
        let fs = self.fs();
        Some(fs.files[*fs.names.get(path)?].clone())
    }

    /// Everything the page cache shows, lock files left out.
    pub fn image(&self) -> Image {
        let fs = self.fs();
        let files = fs.names.iter().filter(|(path, ino)| **ino != A_DIRECTORY && !path.ends_with(LOCK_SUFFIX));
        Image { files: files.map(|(path, &ino)| (path.clone(), fs.files[ino].clone())).collect() }
    }

    /// `rename(2)` in the data directory by somebody else, unsynced.
    pub fn rename(&self, from: &str, to: &str) {
        let mut fs = self.fs();
        let ino = fs.names.remove(from).expect("the file is there");
        fs.names.insert(to.to_owned(), ino);
        fs.record(|| Op::Rename { from: from.to_owned(), to: to.to_owned() });
    }

    fn fs(&self) -> MutexGuard<'_, Fs> {
        self.0.fs.lock().unwrap()
    }

    /// Before every call: the gate, then the answers that went out before it.
    fn enter(&self, call: &'static str, changes: bool) {
        if self.0.probe.is_none() {
            return;
        }
        let mut gate = self.0.gate.lock().unwrap();
        if gate.stops(call) {
            gate.waiting += 1;
            self.0.gate_moved.notify_all();
            gate = self.0.gate_moved.wait_timeout_while(gate, GATE_PATIENCE, |gate| gate.stops(call)).unwrap().0;
            gate.waiting = gate.waiting.saturating_sub(1);
        }
        drop(gate);
        if changes && self.probe() {
            std::thread::sleep(SETTLE);
            self.probe();
        }
    }

    fn open(&self, path: &str, ino: Ino) -> MemFile {
        let mut fs = self.fs();
        fs.opened += 1;
        let handle = fs.opened;
        drop(fs);
        debug_assert!(ino != A_DIRECTORY, "{path}");
        MemFile { disk: self.clone(), ino, handle }
    }

    fn open_or_create(&self, path: &str) -> io::Result<MemFile> {
        let mut fs = self.fs();
        let ino = match fs.names.get(path) {
            Some(&ino) => ino,
            None => fs.create(path),
        };
        drop(fs);
        Ok(self.open(path, ino))
    }

    fn sync_dir(&self, call: &'static str, dir: &str) -> io::Result<()> {
        self.enter(call, true);
        let mut fs = self.fs();
        if fs.lie == Some(call) {
            return Ok(());
        }
        let failed = fs.fault(call).map(error);
        fs.record(|| Op::SyncDir { dir: dir.to_owned(), ok: failed.is_none() });
        failed.map_or(Ok(()), Err)
    }
}

impl Fs {
    fn record(&mut self, op: impl FnOnce() -> Op) {
        if self.recording {
            self.log.push(op());
        }
    }

    fn fault(&mut self, call: &str) -> Option<Fault> {
        let at = self.faults.iter().position(|(wanted, _)| *wanted == call)?;
        Some(self.faults.remove(at).1).filter(|fault| *fault != Fault::Pass)
    }

    fn create(&mut self, path: &str) -> Ino {
        let ino = self.files.len();
        self.files.push(Vec::new());
        self.names.insert(path.to_owned(), ino);
        self.record(|| Op::Link { path: path.to_owned(), ino });
        ino
    }

    fn release(&mut self, ino: Ino, handle: u64) {
        if self.locks.get(&ino) == Some(&handle) {
            self.locks.remove(&ino);
        }
    }

    fn stat(&self, ino: Ino) -> FileStat {
        let id = FileId { dev: 1, ino: ino as u64 };
        FileStat { id, kind: FileKind::Regular, len: self.files[ino].len() as u64, other_names: false }
    }
}

fn error(fault: Fault) -> io::Error {
    match fault {
        Fault::Errno(errno) => io::Error::from_raw_os_error(errno),
        Fault::Short(_) | Fault::Pass => io::ErrorKind::InvalidInput.into(),
    }
}

impl Disk for MemDisk {
    type File = MemFile;

    fn check_root(&self) -> io::Result<()> {
        Ok(())
    }

    fn open_lock(&self, name: &str) -> io::Result<MemFile> {
        self.enter("open_lock", false);
        self.open_or_create(name)
    }

    fn open_data(&self, name: &str) -> io::Result<MemFile> {
        self.enter("open_data", true);
        self.open_or_create(name)
    }

    fn create_side(&self, dir: &str, name: &str) -> io::Result<MemFile> {
        self.enter("create_side", true);
        let path = format!("{dir}/{name}");
        let mut fs = self.fs();
        if let Some(fault) = fs.fault("create_side") {
            return Err(error(fault));
        }
        if fs.names.insert(dir.to_owned(), A_DIRECTORY).is_none() {
            // The real disk syncs a directory that it has just made.
            fs.record(|| Op::Link { path: dir.to_owned(), ino: A_DIRECTORY });
            fs.record(|| Op::SyncDir { dir: String::new(), ok: true });
        }
        if fs.names.contains_key(&path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let ino = fs.create(&path);
        drop(fs);
        Ok(self.open(&path, ino))
    }

    fn remove_side(&self, dir: &str, name: &str) -> io::Result<()> {
        self.enter("remove_side", true);
        let path = format!("{dir}/{name}");
        let mut fs = self.fs();
        fs.names.remove(&path).ok_or(io::ErrorKind::NotFound)?;
        fs.record(|| Op::Unlink { path });
        Ok(())
    }

    fn try_lock(&self, file: &MemFile) -> io::Result<bool> {
        self.enter("try_lock", false);
        let mut fs = self.fs();
        let holder = *fs.locks.entry(file.ino).or_insert(file.handle);
        Ok(holder == file.handle)
    }

    fn unlock(&self, file: &MemFile) -> io::Result<()> {
        self.fs().release(file.ino, file.handle);
        Ok(())
    }

    fn stat_by_path(&self, name: &str) -> io::Result<Option<FileStat>> {
        self.stat(name)
    }

    fn stat(&self, name: &str) -> io::Result<Option<FileStat>> {
        let fs = self.fs();
        Ok(fs.names.get(name).map(|&ino| fs.stat(ino)))
    }

    fn fstat(&self, file: &MemFile) -> io::Result<FileStat> {
        Ok(self.fs().stat(file.ino))
    }

    fn read_at(&self, file: &MemFile, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let fs = self.fs();
        let rest = fs.files[file.ino].get(offset as usize..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn append(&self, file: &MemFile, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        self.enter("append", true);
        let mut bytes = Vec::with_capacity(bufs.iter().map(|buf| buf.len()).sum());
        bufs.iter().for_each(|buf| bytes.extend_from_slice(buf));
        let mut fs = self.fs();
        match fs.fault("append") {
            Some(Fault::Short(share)) => bytes.truncate(bytes.len() * usize::from(share) / 256),
            Some(fault) => return Err(error(fault)),
            None => {}
        }
        let at = fs.files[file.ino].len();
        fs.files[file.ino].extend_from_slice(&bytes);
        let taken = bytes.len();
        if taken > 0 {
            fs.record(|| Op::Write { ino: file.ino, at, bytes });
        }
        Ok(taken)
    }

    fn set_len(&self, file: &MemFile, len: u64) -> io::Result<()> {
        self.enter("set_len", true);
        let mut fs = self.fs();
        if fs.lie == Some("set_len") {
            return Ok(());
        }
        if let Some(fault) = fs.fault("set_len") {
            return Err(error(fault));
        }
        fs.files[file.ino].resize(len as usize, 0);
        fs.record(|| Op::SetLen { ino: file.ino, len: len as usize });
        Ok(())
    }

    fn sync_data(&self, file: &MemFile) -> io::Result<()> {
        self.enter("sync_data", true);
        let mut fs = self.fs();
        if fs.lie == Some("sync_data") {
            return Ok(());
        }
        let failed = fs.fault("sync_data").map(error);
        fs.record(|| Op::SyncData { ino: file.ino, ok: failed.is_none() });
        failed.map_or(Ok(()), Err)
    }

    fn block_bytes(&self) -> u64 {
        1
    }

    fn begin_writeback(&self, _file: &MemFile, _offset: u64) -> io::Result<()> {
        self.fs().fault("begin_writeback").map_or(Ok(()), |fault| Err(error(fault)))
    }

    fn check_length(&self, file: &MemFile, len: u64) -> io::Result<()> {
        let fs = self.fs();
        if (fs.files[file.ino].len() as u64) < len { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    fn check_stored(&self, file: &MemFile, range: Range<u64>) -> io::Result<()> {
        self.check_length(file, range.end)?;
        let mut fs = self.fs();
        fs.fault("check_stored").map_or(Ok(()), |fault| Err(error(fault)))
    }

    fn check_alive(&self, _file: &MemFile) -> io::Result<()> {
        Ok(())
    }

    fn probe(&self) -> io::Result<()> {
        Ok(())
    }

    fn syncs_together(&self) -> bool {
        self.fs().together
    }

    fn sync_all(&self, files: &[FileId], _written_since: Instant) -> bool {
        self.enter("sync_all", true);
        let mut fs = self.fs();
        if fs.lie == Some("sync_all") {
            return true;
        }
        if fs.fault("sync_all").is_some() {
            return false;
        }
        // All of them, not just those asked for.
        assert!(files.iter().all(|file| (file.ino as usize) < fs.files.len()));
        for ino in 0..fs.files.len() {
            fs.record(|| Op::SyncData { ino, ok: true });
        }
        fs.record(|| Op::SyncDir { dir: String::new(), ok: true });
        true
    }

    fn sync_root(&self) -> io::Result<()> {
        self.sync_dir("sync_root", "")
    }

    fn sync_side(&self, dir: &str) -> io::Result<()> {
        self.sync_dir("sync_side", dir)
    }

    fn space(&self) -> io::Result<DiskSpace> {
        Ok(DiskSpace { free_bytes: 1 << 40, total_bytes: 1 << 41 })
    }

    fn writable(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The files of a disk, by path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    pub files: BTreeMap<String, Vec<u8>>,
}

impl Image {
    pub fn get(&self, path: &str) -> &[u8] {
        self.files.get(path).map_or(&[], Vec::as_slice)
    }
}

/// Random numbers that a seed repeats.
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From `low` to `high`, both included.
    pub fn pick(&mut self, low: usize, high: usize) -> usize {
        low + (self.next() % (high - low + 1) as u64) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.pick(1, n) == 1
    }
}

/// What is left of the unsynced changes of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Nothing: as at the last sync.
    Nothing,
    /// Everything: as the page cache showed it.
    All,
    /// The first `changes` of them, `bytes` of the next, and then zeros up to `len`: the size was
    /// on the disk before the data.
    InOrder { changes: usize, bytes: usize, len: usize },
    /// A selection in units of that size, in a file of `len` bytes.
    Holes { unit: usize, len: usize, seed: u64 },
}

/// What is left of the unsynced changes of the directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamesLeft {
    Nothing,
    All,
    Some { seed: u64 },
}

/// One crash state: which changes of which file are left. Files that are not named have all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub names: NamesLeft,
    pub files: Vec<(Ino, Left)>,
}

impl Choice {
    /// Does a reader see changes in the order in which they were made?
    pub fn in_order(&self) -> bool {
        !self.files.iter().any(|(_, left)| matches!(left, Left::Holes { .. }))
    }
}

/// A log up to some operation, as the page cache and as the stable storage have it.
pub struct Replay<'a> {
    log: &'a [Op],
    /// Operations applied so far.
    pub at: usize,
    files: Vec<File>,
    cached: BTreeMap<String, Ino>,
    durable: BTreeMap<String, Ino>,
    pending: Vec<NameChange>,
}

#[derive(Default)]
struct File {
    synced: Vec<u8>,
    cached: Vec<u8>,
    /// Where in the log the changes since the last sync are.
    changes: Vec<usize>,
    /// Bytes below have not been changed since the last sync.
    stable_len: usize,
    /// A sync failed; no later one makes up for it.
    doubted: bool,
}

struct NameChange {
    dir: String,
    op: usize,
    doubted: bool,
}

impl<'a> Replay<'a> {
    pub fn new(start: &Image, log: &'a [Op]) -> Replay<'a> {
        let mut replay = Replay {
            log,
            at: 0,
            files: Vec::new(),
            cached: BTreeMap::new(),
            durable: BTreeMap::new(),
            pending: Vec::new(),
        };
        for (path, content) in &start.files {
            replay.durable.insert(path.clone(), replay.files.len());
            if let Some((dir, _)) = path.split_once('/') {
                replay.durable.insert(dir.to_owned(), A_DIRECTORY);
            }
            let (synced, cached) = (content.clone(), content.clone());
            replay.files.push(File { synced, cached, stable_len: content.len(), ..File::default() });
        }
        replay.cached = replay.durable.clone();
        replay
    }

    /// The next operation, after it was applied.
    pub fn step(&mut self) -> Option<&'a Op> {
        let op = self.log.get(self.at)?;
        let at = self.at;
        self.at += 1;
        match op {
            Op::Link { path, ino } => {
                if *ino != A_DIRECTORY && *ino >= self.files.len() {
                    self.files.resize_with(ino + 1, File::default);
                }
                self.name_change(path, at);
            }
            Op::Rename { from, .. } => self.name_change(from, at),
            Op::Unlink { path } => self.name_change(path, at),
            Op::Write { ino, at: offset, bytes } => {
                let file = &mut self.files[*ino];
                write(&mut file.cached, *offset, bytes);
                file.stable_len = file.stable_len.min(*offset);
                file.changes.push(at);
            }
            Op::SetLen { ino, len } => {
                let file = &mut self.files[*ino];
                file.cached.resize(*len, 0);
                file.stable_len = file.stable_len.min(*len);
                file.changes.push(at);
            }
            Op::SyncData { ino, ok } => {
                let file = &mut self.files[*ino];
                file.doubted |= !ok;
                if !file.doubted {
                    file.synced.truncate(file.stable_len);
                    file.synced.extend_from_slice(&file.cached[file.stable_len..]);
                    file.stable_len = file.cached.len();
                    file.changes.clear();
                }
            }
            Op::SyncDir { dir, ok } => self.sync_dir(dir, *ok),
            Op::Note(_) => {}
        }
        Some(op)
    }

    fn name_change(&mut self, path: &str, op: usize) {
        apply_name(&mut self.cached, &self.log[op]);
        let dir = path.split_once('/').map_or("", |(dir, _)| dir).to_owned();
        self.pending.push(NameChange { dir, op, doubted: false });
    }

    fn sync_dir(&mut self, dir: &str, ok: bool) {
        if !ok {
            self.pending.iter_mut().filter(|change| change.dir == dir).for_each(|change| change.doubted = true);
            return;
        }
        for change in self.pending.iter().filter(|change| change.dir == dir && !change.doubted) {
            apply_name(&mut self.durable, &self.log[change.op]);
        }
        let log = self.log;
        let settled: BTreeSet<&str> = self
            .pending
            .iter()
            .filter(|change| change.dir == dir && !change.doubted)
            .flat_map(|change| touched(&log[change.op]))
            .collect();
        // What a later, settled change of the same name has overtaken is in doubt no more.
        self.pending.retain(|change| {
            change.dir != dir || (change.doubted && !touched(&log[change.op]).iter().any(|path| settled.contains(path)))
        });
    }

    /// The files that the page cache shows, by path.
    pub fn cached_names(&self) -> &BTreeMap<String, Ino> {
        &self.cached
    }

    /// The files whose name would survive a power cut now.
    pub fn durable_names(&self) -> &BTreeMap<String, Ino> {
        &self.durable
    }

    /// Bytes below this offset have not been changed since the last sync of the file.
    pub fn stable_len(&self, ino: Ino) -> usize {
        self.files[ino].stable_len
    }

    /// What the page cache shows of a file.
    pub fn cached(&self, ino: Ino) -> &[u8] {
        &self.files[ino].cached
    }

    /// Did a sync of the file fail?
    pub fn doubted(&self, ino: Ino) -> bool {
        self.files[ino].doubted
    }

    /// Files with changes that a power cut may take, lock files left out.
    pub fn unsynced(&self) -> Vec<Ino> {
        let named = self.cached.iter().filter(|(path, ino)| **ino != A_DIRECTORY && !path.ends_with(LOCK_SUFFIX));
        let inos: BTreeSet<Ino> =
            named.map(|(_, &ino)| ino).filter(|&ino| !self.files[ino].changes.is_empty()).collect();
        inos.into_iter().collect()
    }

    /// How many sector borders are in what a power cut may take.
    pub fn unsynced_sectors(&self) -> usize {
        let files = self.unsynced().into_iter().map(|ino| &self.files[ino]);
        files.map(|file| file.cached.len().div_ceil(SECTOR).saturating_sub(file.stable_len.div_ceil(SECTOR))).sum()
    }

    /// Every way to lose what is unsynced that is worth a look of its own: nothing, all, and for
    /// each write in turn every sector border, with and without a size that was there first.
    pub fn plain_choices(&self, rng: &mut Rng) -> Vec<Choice> {
        let unsynced = self.unsynced();
        let all = |left: Left| unsynced.iter().map(|&ino| (ino, left)).collect::<Vec<_>>();
        let mut choices = Vec::new();
        for names in [NamesLeft::All, NamesLeft::Nothing] {
            choices.push(Choice { names, files: all(Left::All) });
            choices.push(Choice { names, files: all(Left::Nothing) });
        }
        for &ino in &unsynced {
            let file = &self.files[ino];
            for (changes, &op) in file.changes.iter().enumerate() {
                let Op::Write { at, bytes, .. } = &self.log[op] else {
                    choices.push(Choice {
                        names: NamesLeft::All,
                        files: vec![(ino, Left::InOrder { changes: changes + 1, bytes: 0, len: 0 })],
                    });
                    continue;
                };
                let end = at + bytes.len();
                let mut cuts: Vec<usize> = (at / SECTOR + 1..=(end - 1) / SECTOR).map(|n| n * SECTOR - at).collect();
                cuts.extend([0, bytes.len()]);
                cuts.extend((0..6).map(|_| rng.pick(0, bytes.len())));
                for cut in cuts {
                    for len in [0, end, file.cached.len()] {
                        let left = Left::InOrder { changes, bytes: cut, len };
                        choices.push(Choice { names: NamesLeft::All, files: vec![(ino, left)] });
                    }
                }
            }
        }
        choices
    }

    /// A random way to lose what is unsynced.
    pub fn random_choice(&self, rng: &mut Rng, in_order: bool) -> Choice {
        let names = match rng.pick(0, 3) {
            0 => NamesLeft::Nothing,
            1 => NamesLeft::All,
            _ => NamesLeft::Some { seed: rng.next() },
        };
        let files = self.unsynced().into_iter().map(|ino| (ino, self.random_left(ino, rng, in_order))).collect();
        Choice { names, files }
    }

    fn random_left(&self, ino: Ino, rng: &mut Rng, in_order: bool) -> Left {
        let file = &self.files[ino];
        if !in_order && !rng.one_in(4) {
            let unit = [SECTOR, PAGE][rng.pick(0, 1)];
            let lens = self.lens(ino);
            let len = match rng.pick(0, 2) {
                0 => file.cached.len(),
                1 => lens[rng.pick(0, lens.len() - 1)],
                _ => (lens[rng.pick(0, lens.len() - 1)] / unit * unit).max(file.stable_len),
            };
            return Left::Holes { unit, len, seed: rng.next() };
        }
        match rng.pick(0, 5) {
            0 => Left::Nothing,
            1 => Left::All,
            _ => {
                let changes = rng.pick(0, file.changes.len() - 1);
                let bytes = match &self.log[file.changes[changes]] {
                    Op::Write { bytes, .. } => rng.pick(0, bytes.len()),
                    _ => 0,
                };
                let len =
                    if rng.one_in(2) { 0 } else { rng.pick(file.stable_len, file.cached.len().max(file.stable_len)) };
                Left::InOrder { changes, bytes, len }
            }
        }
    }

    /// Every length since the last sync.
    fn lens(&self, ino: Ino) -> Vec<usize> {
        let file = &self.files[ino];
        let mut lens = vec![file.synced.len()];
        for &op in &file.changes {
            match &self.log[op] {
                Op::Write { at, bytes, .. } => lens.push(at + bytes.len()),
                Op::SetLen { len, .. } => lens.push(*len),
                _ => {}
            }
        }
        lens
    }

    /// What a power cut leaves of one file.
    fn content(&self, ino: Ino, left: Left) -> Vec<u8> {
        let file = &self.files[ino];
        match left {
            Left::Nothing => file.synced.clone(),
            Left::All => file.cached.clone(),
            Left::InOrder { changes, bytes, len } => {
                let mut content = self.version(ino, changes);
                if let Some(&op) = file.changes.get(changes)
                    && let Op::Write { at, bytes: written, .. } = &self.log[op]
                {
                    write(&mut content, *at, &written[..bytes]);
                }
                if len > content.len() {
                    content.resize(len, 0);
                }
                content
            }
            Left::Holes { unit, len, seed } => self.with_holes(ino, unit, len, seed),
        }
    }

    /// The file after the first `changes` of its unsynced changes.
    fn version(&self, ino: Ino, changes: usize) -> Vec<u8> {
        let file = &self.files[ino];
        let mut content = file.synced.clone();
        for &op in &file.changes[..changes] {
            match &self.log[op] {
                Op::Write { at, bytes, .. } => write(&mut content, *at, bytes),
                Op::SetLen { len, .. } => content.resize(*len, 0),
                _ => {}
            }
        }
        content
    }

    fn with_holes(&self, ino: Ino, unit: usize, len: usize, seed: u64) -> Vec<u8> {
        let file = &self.files[ino];
        let mut rng = Rng(seed);
        let between = self.version(ino, rng.pick(0, file.changes.len()));
        let mut content = vec![0; len];
        let stable = file.stable_len.min(len);
        content[..stable].copy_from_slice(&file.synced[..stable]);
        // Long runs of kept units now and then, or a large file would be nothing but holes.
        let keep_in_a_row = [0, 1, 4, 16][rng.pick(0, 3)];
        let mut at = stable;
        while at < len {
            let units = 1 + if keep_in_a_row > 0 { rng.pick(0, keep_in_a_row) } else { 0 };
            let source = match rng.pick(0, 4) {
                0 => Some(&file.synced),
                1 => None,
                2 => Some(&between),
                _ => Some(&file.cached),
            };
            let end = ((at / unit + units) * unit).min(len);
            if let Some(source) = source {
                let end = end.min(source.len());
                if at < end {
                    content[at..end].copy_from_slice(&source[at..end]);
                }
            }
            at = end;
        }
        content
    }

    /// The names that a power cut leaves.
    fn names(&self, left: NamesLeft) -> BTreeMap<String, Ino> {
        let mut names = self.durable.clone();
        match left {
            NamesLeft::Nothing => {}
            NamesLeft::All => self.pending.iter().for_each(|change| apply_name(&mut names, &self.log[change.op])),
            NamesLeft::Some { seed } => {
                let mut rng = Rng(seed);
                let ordered = self.pending.iter().any(|change| matches!(self.log[change.op], Op::Rename { .. }));
                let first = rng.pick(0, self.pending.len());
                for (n, change) in self.pending.iter().enumerate() {
                    if if ordered { n < first } else { rng.one_in(2) } {
                        apply_name(&mut names, &self.log[change.op]);
                    }
                }
            }
        }
        names.retain(|path, _| !path.ends_with(LOCK_SUFFIX));
        let dirs: Vec<String> =
            names.iter().filter(|(_, ino)| **ino == A_DIRECTORY).map(|(dir, _)| dir.clone()).collect();
        names.retain(|path, ino| {
            *ino != A_DIRECTORY && path.split_once('/').is_none_or(|(dir, _)| dirs.iter().any(|known| known == dir))
        });
        names
    }

    /// The disk that a power cut leaves, with the file that each name stands for.
    pub fn image(&self, choice: &Choice) -> (Image, BTreeMap<String, Ino>) {
        let names = self.names(choice.names);
        let left = |ino: Ino| choice.files.iter().find(|(of, _)| *of == ino).map_or(Left::All, |(_, left)| *left);
        let files = names.iter().map(|(path, &ino)| (path.clone(), self.content(ino, left(ino)))).collect();
        (Image { files }, names)
    }
}

fn write(content: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = at + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[at..end].copy_from_slice(bytes);
}

fn touched(op: &Op) -> Vec<&str> {
    match op {
        Op::Link { path, .. } | Op::Unlink { path } => vec![path],
        Op::Rename { from, to } => vec![from, to],
        _ => vec![],
    }
}

fn apply_name(names: &mut BTreeMap<String, Ino>, op: &Op) {
    match op {
        Op::Link { path, ino } => {
            names.insert(path.clone(), *ino);
        }
        Op::Unlink { path } => {
            names.remove(path);
        }
        Op::Rename { from, to } => {
            if let Some(ino) = names.remove(from) {
                names.insert(to.clone(), ino);
            }
        }
        _ => {}
    }
}

/// Waits until `done`, looking again and again.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(SETTLE);
    }
}
