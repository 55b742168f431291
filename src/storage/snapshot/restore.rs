//! The way back: a snapshot becomes a data directory, whole or not at all.
//!
//! Several files, and pieces of a large one, are read and hashed side by side, and what is hashed is written by other
//! threads meanwhile, so that a restore takes little longer than a copy that proves nothing. Where the hash of a file stands
//! between two pieces is in the manifest: a piece that leads from one state to the next is right if
//! all the others are.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::content::{Hash, PIECE_BYTES};
use super::copy::{Block, DIRECT_BYTES_MIN, Memory, Sink, has_holes};
use super::directory::Directory;
use super::error::SnapshotError;
use super::manifest::{FileEntry, Manifest, segment_fault};
use super::manifest_lines::peek_created;
use super::source::Source;
use super::target::Target;
use super::unfinished::{LeftAlone, Purpose};
use super::unsynced::Unsynced;
use super::{open_snapshot, read_parts, tokens};
use crate::storage::layout::{POISONED_SUFFIX, TORN_DIR, side_name};
use crate::storage::marker;
use crate::storage::verify::Progress;
use crate::timestamp::parse_rfc3339;

/// Pieces at once. Each is read and hashed in turn, so there must be enough of them that the disk has something to read
/// and to write while the processors hash: with two for each processor it often had not.
const LANES_PER_PROCESSOR: usize = 4;
const LANES_MAX: usize = 8;
/// Blocks of a lane: one is filled and hashed, one is written meanwhile, and one waits for that, so that neither the
/// processors nor the disk wait for each other.
const BLOCKS_PER_LANE: usize = 3;
/// Files that are written side by side.
const FILES_AT_ONCE: usize = 16;
/// How much is read and written at once: little enough to stay in the cache of a processor between reading and hashing.
const BLOCK_BYTES: usize = 1 << 20;
/// How often somebody is told how far it has come.
const TELL_EVERY: Duration = Duration::from_millis(5);

/// What to restore, and where.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// A snapshot.
    pub from: PathBuf,
    /// The hash that its manifest must have.
    pub expected: Option<String>,
    /// A directory that is not there yet, or is empty.
    pub to: PathBuf,
}

/// What was restored.
#[derive(Debug, Clone)]
pub struct RestoreReport {
    pub path: PathBuf,
    pub manifest: Manifest,
    /// What stands beside it under a name of something unfinished, and is none of ours.
    pub left_alone: Vec<LeftAlone>,
    pub took: Duration,
}

/// Restores a snapshot. Blocks until all of it is on the disk.
///
/// # Errors
/// See [`SnapshotError`]. Then nothing stands at `options.to` that was not there before.
pub fn restore(
    options: &RestoreOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<RestoreReport, SnapshotError> {
    let began = Instant::now();
    let from = open_snapshot(&options.from)?;
    let manifest = Manifest::read_expected(&from, options.expected.as_deref())?;
    sizes(&from, &manifest)?;
    let target = Target::find(&options.to)?;
    let id = from.id().map_err(|e| SnapshotError::io("look at", from.path(), e))?;
    target.refuse_inside(id, from.path())?;
    let left_alone = target.clear()?;
    let partial = target.begin(Purpose::Restore)?;
    let run = Run::new(&from, &partial.dir, &manifest, target.owner)?;
    run.check_room(&manifest, &options.to)?;
    run.all(&manifest, progress)?;
    if let Some(entry) = &manifest.tokens {
        tokens::restore(&from, &partial.dir, entry, target.owner)?;
    }
    if let Some(owner) = target.owner {
        partial.dir.give_to(owner).map_err(|e| SnapshotError::io("give away", partial.dir.path(), e))?;
    }
    partial.finish()?;
    Ok(RestoreReport { path: options.to.clone(), manifest, left_alone, took: began.elapsed() })
}

/// A snapshot among others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    pub path: PathBuf,
    /// Those beside it whose manifests cannot be used, and which are newer or may be.
    pub damaged: Vec<PathBuf>,
}

/// The newest of the snapshots right below `dir` that was begun at `until` or before.
///
/// # Errors
/// [`SnapshotError::NotFound`] when there is none.
pub fn newest_until(dir: &Path, until: SystemTime) -> Result<Chosen, SnapshotError> {
    let all = open_snapshot(dir)?;
    let mut begun: Vec<(SystemTime, OsString)> = Vec::new();
    let mut damaged = Vec::new();
    for name in all.names().map_err(|e| SnapshotError::io("list", dir, e))? {
        // What holds no manifest is no snapshot.
        let Ok(below) = all.open_dir(&name) else { continue };
        match created(&below) {
            Ok(Some(created)) => begun.extend((created <= until).then_some((created, name))),
            Ok(None) => {}
            Err(_) => damaged.push(name),
        }
    }
    // Names tell those of one second apart: the later one comes later.
    begun.sort();
    while let Some((at, name)) = begun.pop() {
        let sound = all.open_dir(&name).map(|below| Manifest::read(&below));
        match sound {
            Ok(Ok((manifest, _))) if parse_rfc3339(&manifest.created) == Some(at) => {
                damaged.sort();
                let damaged = damaged.iter().map(|name| dir.join(name)).collect();
                return Ok(Chosen { path: dir.join(&name), damaged });
            }
            _ => damaged.push(name),
        }
    }
    Err(SnapshotError::NotFound {
        path: dir.to_owned(),
        reason: "it holds none that was begun by then; name the directory that holds the snapshots".to_owned(),
    })
}

/// When a snapshot was begun. `None`: it is none. By its first line if that vouches for itself; else all of its
/// manifest is read.
fn created(dir: &Directory) -> Result<Option<SystemTime>, SnapshotError> {
    let no_time = || SnapshotError::damaged(dir.path(), "it does not say when it was begun");
    let created = match peek_created(dir) {
        Some(created) => created,
        None => match Manifest::read(dir) {
            Err(SnapshotError::NotFound { .. }) => return Ok(None),
            other => other?.0.created,
        },
    };
    parse_rfc3339(&created).map(Some).ok_or_else(no_time)
}

/// Before a byte is copied: every part is there and as long as it must be.
fn sizes(from: &Directory, manifest: &Manifest) -> Result<(), SnapshotError> {
    let mut faults = Vec::new();
    for segment in manifest.files.iter().flat_map(|file| &file.segments) {
        let stat =
            from.stat(&segment.name).map_err(|e| SnapshotError::io("look at", from.path_of(&segment.name), e))?;
        faults.extend(segment_fault(stat, segment));
    }
    let more = match faults.len() {
        0 => return Ok(()),
        1 => String::new(),
        n => format!(", and {} more like it", n - 1),
    };
    let reason =
        format!("{}{more}; `leitstand verify --snapshot` names all, take another copy of the snapshot", faults[0]);
    Err(SnapshotError::damaged(from.path(), reason))
}

/// A file that is being restored.
struct Job<'a> {
    entry: &'a FileEntry,
    /// Made by whoever takes its first piece, taken by whoever ends its last one.
    open: Mutex<Option<Arc<Open>>>,
    /// Pieces that are not hashed, and blocks that are not written.
    left: AtomicU64,
}

/// Its parts, and where it goes.
struct Open {
    parts: Vec<Source>,
    sink: Sink,
    /// It shares the blocks of its only part: only to be looked at.
    is_clone: bool,
}

/// A block that is hashed, where it goes, and whose it is.
struct Write<'a> {
    job: usize,
    open: Arc<Open>,
    block: Block<'a>,
    at: u64,
}

/// Where a lane takes blocks from, and where they go.
struct Blocks<'a, 'b> {
    to_fill: &'a Mutex<Receiver<Block<'b>>>,
    filled: Sender<Write<'b>>,
    free: Sender<Block<'b>>,
}

struct Run<'a> {
    from: &'a Directory,
    to: &'a Directory,
    side: Option<Directory>,
    owner: Option<(u32, u32)>,
    jobs: Vec<Job<'a>>,
    /// Number of a job, and of a piece in it.
    pieces: Vec<(usize, u64)>,
    /// The next piece that nobody has begun.
    next: AtomicUsize,
    bytes_done: AtomicU64,
    /// The file system can let files share blocks, as far as is known.
    clones: AtomicBool,
    unsynced: Mutex<Unsynced>,
    stop: AtomicBool,
    failed: Mutex<Option<SnapshotError>>,
}

impl<'a> Run<'a> {
    fn new(
        from: &'a Directory,
        to: &'a Directory,
        manifest: &'a Manifest,
        owner: Option<(u32, u32)>,
    ) -> Result<Self, SnapshotError> {
        let mut side = None;
        if manifest.files.iter().any(|file| file.poisoned.is_some()) {
            let made = to.create_dir(TORN_DIR);
            side = Some(made.map_err(|e| SnapshotError::io("make", to.path_of(TORN_DIR), e))?);
        }
        let job = |entry: &'a FileEntry| Job {
            entry,
            open: Mutex::new(None),
            left: AtomicU64::new(pieces_of(entry) + entry.bytes.div_ceil(BLOCK_BYTES as u64)),
        };
        let jobs: Vec<Job<'_>> = manifest.files.iter().map(job).collect();
        let of_job = |(number, job): (usize, &Job<'_>)| (0..pieces_of(job.entry)).map(move |piece| (number, piece));
        let mut pieces: Vec<(usize, u64)> = jobs.iter().enumerate().flat_map(of_job).collect();
        // Writes to one file wait for one another. In batches, so that not all files are open at once.
        pieces.sort_by_key(|&(job, piece)| (job / FILES_AT_ONCE, piece, job));
        Ok(Run {
            from,
            to,
            side,
            owner,
            jobs,
            pieces,
            next: AtomicUsize::new(0),
            bytes_done: AtomicU64::new(0),
            clones: AtomicBool::new(true),
            unsynced: Mutex::new(Unsynced::new(to)?),
            stop: AtomicBool::new(false),
            failed: Mutex::new(None),
        })
    }

    fn check_room(&self, manifest: &Manifest, path: &Path) -> Result<(), SnapshotError> {
        let space = self.to.space().map_err(|e| SnapshotError::io("ask for the free space of", path, e))?;
        let mut bytes = manifest.totals.bytes;
        if space.free_bytes < bytes && self.can_clone() {
            bytes = manifest.files.iter().filter(|file| file.segments.len() > 1).map(|file| file.bytes).sum();
        }
        if space.free_bytes < bytes {
            let reason = format!("{bytes} bytes are wanted, {} are free", space.free_bytes);
            return Err(SnapshotError::NoSpace { path: path.to_owned(), reason });
        }
        Ok(())
    }

    /// Can files share blocks with the parts that they are made of? Tried with one of them.
    fn can_clone(&self) -> bool {
        let Some(entry) = self.jobs.iter().map(|job| job.entry).find(|file| file.segments.len() == 1 && file.bytes > 0)
        else {
            return false;
        };
        let tried = self.from.open_read(&entry.segments[0].name).and_then(|part| {
            let cloned = rustix::fs::ioctl_ficlone(self.to.create(&entry.name)?, part).is_ok();
            self.to.remove(&entry.name)?;
            Ok(cloned)
        });
        tried.unwrap_or(false)
    }

    fn all(&self, manifest: &Manifest, progress: &mut dyn FnMut(Progress<'_>)) -> Result<(), SnapshotError> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let lanes = (processors * LANES_PER_PROCESSOR).min(LANES_MAX).min(self.pieces.len());
        let no_memory = |e| SnapshotError::io("get memory for", self.to.path(), e);
        let mut memory = Memory::new(lanes * BLOCKS_PER_LANE, BLOCK_BYTES).map_err(no_memory)?;
        let (free, to_fill) = mpsc::channel();
        memory.blocks().for_each(|block| free.send(block).expect("its other end is here"));
        let to_fill = Mutex::new(to_fill);
        let (filled, to_write) = mpsc::channel();
        let to_write = Mutex::new(to_write);
        let (alive, ended) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            for _ in 0..lanes {
                let (hash_free, hash_alive) = (free.clone(), alive.clone());
                let (filled, to_fill) = (filled.clone(), &to_fill);
                scope.spawn(move || {
                    self.hash(&Blocks { to_fill, filled, free: hash_free });
                    drop(hash_alive);
                });
                let (free, alive, to_write) = (free.clone(), alive.clone(), &to_write);
                scope.spawn(move || {
                    self.write(to_write, &free);
                    drop(alive);
                });
            }
            drop((filled, free, alive));
            while ended.recv_timeout(TELL_EVERY) == Err(RecvTimeoutError::Timeout) {
                let at = self.next.load(Ordering::Relaxed).clamp(1, self.pieces.len());
                let file = &self.jobs[self.pieces[at - 1].0].entry.name;
                let bytes_done = self.bytes_done.load(Ordering::Relaxed);
                progress(Progress { file, bytes_done, bytes: manifest.totals.bytes });
            }
        });
        if let Some(failed) = self.failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(failed);
        }
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner).sync()?;
        if let Some(side) = &self.side {
            if let Some(owner) = self.owner {
                side.give_to(owner).map_err(|e| SnapshotError::io("give away", side.path(), e))?;
            }
            side.sync().map_err(|e| SnapshotError::io("sync", side.path(), e))?;
        }
        Ok(())
    }

    /// Takes one piece after the other until there is none, or something has failed.
    fn hash(&self, blocks: &Blocks<'_, '_>) {
        while !self.stop.load(Ordering::Relaxed) {
            let Some(&(job, piece)) = self.pieces.get(self.next.fetch_add(1, Ordering::Relaxed)) else { return };
            if let Err(e) = self.piece(job, piece, blocks) {
                self.fail(e);
            }
        }
    }

    /// Writes one block after the other until all lanes have ended.
    fn write<'b>(&self, to_write: &Mutex<Receiver<Write<'b>>>, free: &Sender<Block<'b>>) {
        while let Some(Write { job, open, mut block, at }) = next_of(to_write) {
            let bytes = block.bytes().len() as u64;
            // After a failure nothing is wanted but an end.
            let stopped = self.stop.load(Ordering::Relaxed);
            let written = if stopped { Ok(()) } else { open.sink.write_at(&mut block, at) };
            drop(open);
            // Nobody may be left who wants it.
            let _ = free.send(block);
            if stopped {
                continue;
            }
            let name = &self.jobs[job].entry.name;
            let done = written.map_err(|e| SnapshotError::io("write", self.to.path_of(name), e));
            if let Err(e) = done.and_then(|()| self.written(job, bytes)) {
                self.fail(e);
            }
        }
    }

    fn fail(&self, e: SnapshotError) {
        self.stop.store(true, Ordering::Relaxed);
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
    }

    /// Reads a piece, hashes it, and hands its blocks on. They are written before the hash is known; if it is another
    /// one than it must be, nothing of what was written gets its name.
    fn piece(&self, job: usize, number: u64, blocks: &Blocks<'_, '_>) -> Result<(), SnapshotError> {
        let (entry, open) = (self.jobs[job].entry, self.open(&self.jobs[job])?);
        let all = pieces_of(entry);
        let start = number * PIECE_BYTES;
        let end = if number + 1 == all { entry.bytes } else { start + PIECE_BYTES };
        let known = number
            .checked_sub(1)
            .map_or(Some(Hash::new()), |before| Hash::resume(&entry.piece_states[before as usize]));
        // The manifest was checked for its form only.
        let mut hash = known.ok_or_else(|| self.damaged(entry))?;
        let way = open.parts[0].way(start);
        let mut at = start;
        while at < end && !self.stop.load(Ordering::Relaxed) {
            let Some(mut block) = next_of(blocks.to_fill) else { return Ok(()) };
            let read = |part: usize, buf: &mut [u8], at| open.parts[part].read(buf, at, way);
            let filling = block.fill(end - at, |buf| read_parts(&entry.segments, buf, at, read));
            if let Err(e) = filling {
                let _ = blocks.free.send(block);
                return Err(SnapshotError::io("read", self.from.path_of(&entry.name), e));
            }
            hash.add(block.bytes());
            let bytes = block.bytes().len() as u64;
            if open.is_clone {
                let _ = blocks.free.send(block);
                self.written(job, bytes)?;
            } else if blocks.filled.send(Write { job, open: open.clone(), block, at }).is_err() {
                return Ok(());
            }
            at += bytes;
        }
        open.parts[0].forget(way, start);
        if self.stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        let fits = if number + 1 == all {
            hash.sha256() == entry.sha256
        } else {
            hash.state() == entry.piece_states[number as usize]
        };
        if !fits {
            return Err(self.damaged(entry));
        }
        drop(open);
        self.done(&self.jobs[job])
    }

    /// A block is where it belongs.
    fn written(&self, job: usize, bytes: u64) -> Result<(), SnapshotError> {
        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
        self.done(&self.jobs[job])
    }

    /// A piece was right, or a block was written. Whoever was the last ends the file.
    fn done(&self, job: &Job<'_>) -> Result<(), SnapshotError> {
        if job.left.fetch_sub(1, Ordering::AcqRel) > 1 {
            return Ok(());
        }
        let open = job.open.lock().unwrap_or_else(PoisonError::into_inner).take();
        let open = open.and_then(Arc::into_inner).expect("every other piece and block has given it back");
        self.finish(job.entry, open.sink)
    }

    fn damaged(&self, entry: &FileEntry) -> SnapshotError {
        let reason = format!(
            "{} is not what the manifest says; `leitstand verify --snapshot` names the part, take another copy of the \
             snapshot",
            entry.name
        );
        SnapshotError::damaged(self.from.path(), reason)
    }

    fn open(&self, job: &Job<'_>) -> Result<Arc<Open>, SnapshotError> {
        let mut open = job.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = &*open {
            return Ok(open.clone());
        }
        let entry = job.entry;
        let fail = |e| SnapshotError::io("write", self.to.path_of(&entry.name), e);
        let mut parts = Vec::new();
        for segment in &entry.segments {
            // Only what begins at the beginning of a block can be read directly.
            let is_large = parts.is_empty() && segment.bytes >= DIRECT_BYTES_MIN;
            let opened = if is_large {
                Source::open(self.from, &segment.name)
            } else {
                self.from.open_read(&segment.name).map(Source::cached)
            };
            parts.push(opened.map_err(|e| SnapshotError::io("open", self.from.path_of(&segment.name), e))?);
        }
        let file = self.to.create(&entry.name).map_err(fail)?;
        let is_clone = self.is_clone(&file, &parts);
        if is_clone {
            // What is read back is what was restored.
            parts = vec![Source::cached(file.try_clone().map_err(fail)?)];
        }
        // A clone has its length and its blocks.
        let holes = entry.segments.iter().zip(&parts).map(|(segment, part)| has_holes(part.file(), 0..segment.bytes));
        let sparse = !is_clone && holes.collect::<io::Result<Vec<_>>>().map_err(fail)?.contains(&true);
        let sink = Sink::over(file, if is_clone { 0 } else { entry.bytes }, sparse).map_err(fail)?;
        Ok(open.insert(Arc::new(Open { parts, sink, is_clone })).clone())
    }

    /// Makes the file share the blocks of the only part, where the file system can do that.
    fn is_clone(&self, file: &File, parts: &[Source]) -> bool {
        let [part] = parts else { return false };
        if !self.clones.load(Ordering::Relaxed) {
            return false;
        }
        let cloned = rustix::fs::ioctl_ficlone(file, part.file()).is_ok();
        self.clones.store(cloned, Ordering::Relaxed);
        cloned
    }

    /// All pieces are right: the owner, the disk, the mark.
    fn finish(&self, entry: &FileEntry, sink: Sink) -> Result<(), SnapshotError> {
        let fail = |e| SnapshotError::io("write", self.to.path_of(&entry.name), e);
        let copied = sink.end().map_err(fail)?;
        if let Some((user, group)) = self.owner {
            std::os::unix::fs::fchown(&copied.file, Some(user), Some(group)).map_err(fail)?;
        }
        if let (Some(side), Some(reason)) = (&self.side, &entry.poisoned) {
            self.mark(side, entry, reason, &copied.file)?;
        }
        if entry.bytes >= DIRECT_BYTES_MIN {
            // So that others need not wait for it.
            return copied.sync().map_err(fail);
        }
        let mut unsynced = self.unsynced.lock().unwrap_or_else(PoisonError::into_inner);
        unsynced.copied(self.to.path_of(&entry.name), copied, entry.bytes)
    }

    /// The mark of a poisoned domain, about the file that now stands for it.
    fn mark(&self, side: &Directory, entry: &FileEntry, reason: &str, file: &File) -> Result<(), SnapshotError> {
        let name = side_name(&entry.name, POISONED_SUFFIX);
        let write = || {
            let mut mark = side.create(&name)?;
            mark.write_all(marker::text(reason, Some(file.metadata()?.ino())).as_bytes())?;
            if let Some((user, group)) = self.owner {
                std::os::unix::fs::fchown(&mark, Some(user), Some(group))?;
            }
            mark.sync_all()
        };
        write().map_err(|e| SnapshotError::io("write", side.path_of(&name), e))
    }
}

/// How many parts of a file can be restored side by side; at least one, also of nothing.
fn pieces_of(entry: &FileEntry) -> u64 {
    if entry.piece_states.is_empty() { 1 } else { entry.bytes.div_ceil(PIECE_BYTES) }
}

/// The next that comes; `None`: nothing will come any more.
fn next_of<T>(from: &Mutex<Receiver<T>>) -> Option<T> {
    from.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}
