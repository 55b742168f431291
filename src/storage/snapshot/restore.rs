//! The way back: a snapshot becomes a data directory, whole or not at all.
//!
//! What is read is hashed while another thread writes it, and several files go on at once, so that
//! a restore takes little longer than a copy that proves nothing.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::content::Content;
use super::copy::{BLOCK_BYTES, Block, Sink};
use super::directory::Directory;
use super::error::SnapshotError;
use super::manifest::{FileEntry, Manifest, read_exact_at, segment_fault};
use super::open_snapshot;
use super::target::Target;
use crate::storage::layout::{POISONED_SUFFIX, TORN_DIR, side_name};
use crate::storage::marker;
use crate::storage::verify::Progress;

/// Most files at once.
const LANES_MAX: usize = 4;
/// Blocks between the thread that reads and hashes and the one that writes.
const BLOCKS: usize = 4;
/// Smaller files are written by the thread that reads them.
const OWN_WRITER_BYTES_MIN: u64 = 4 * BLOCK_BYTES as u64;
/// How often somebody is told how far it has come.
const TELL_EVERY: Duration = Duration::from_millis(5);

/// What to restore, and where.
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    /// A snapshot.
    pub from: PathBuf,
    /// A directory that is not there yet, or is empty.
    pub to: PathBuf,
}

/// What was restored.
#[derive(Debug, Clone)]
pub struct RestoreReport {
    pub path: PathBuf,
    pub manifest: Manifest,
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
    let (manifest, _) = Manifest::read(&from)?;
    sizes(&from, &manifest)?;
    let target = Target::find(&options.to)?;
    let id = from.id().map_err(|e| SnapshotError::io("look at", from.path(), e))?;
    target.refuse_inside(id, from.path())?;
    target.remove_dead_restores()?;
    let partial = target.begin_restore()?;
    let run = Run {
        from: &from,
        to: &partial.dir,
        files: &manifest.files,
        owner: target.owner,
        next: AtomicUsize::new(0),
        bytes_done: AtomicU64::new(0),
        clones: AtomicBool::new(true),
        stop: AtomicBool::new(false),
        failed: Mutex::new(None),
    };
    run.check_room(&manifest, &options.to)?;
    run.all(manifest.totals.bytes, progress)?;
    if let Some(owner) = target.owner {
        partial.dir.give_to(owner).map_err(|e| SnapshotError::io("give away", partial.dir.path(), e))?;
    }
    partial.finish()?;
    Ok(RestoreReport { path: options.to.clone(), manifest, took: began.elapsed() })
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

struct Run<'a> {
    from: &'a Directory,
    to: &'a Directory,
    files: &'a [FileEntry],
    owner: Option<(u32, u32)>,
    /// The next file that nobody has begun.
    next: AtomicUsize,
    bytes_done: AtomicU64,
    /// The file system can let files share blocks, as far as is known.
    clones: AtomicBool,
    stop: AtomicBool,
    failed: Mutex<Option<SnapshotError>>,
}

impl Run<'_> {
    fn check_room(&self, manifest: &Manifest, path: &Path) -> Result<(), SnapshotError> {
        let space = self.to.space().map_err(|e| SnapshotError::io("ask for the free space of", path, e))?;
        let bytes = manifest.totals.bytes;
        if space.free_bytes < bytes {
            let reason = format!("{bytes} bytes are wanted, {} are free", space.free_bytes);
            return Err(SnapshotError::NoSpace { path: path.to_owned(), reason });
        }
        Ok(())
    }

    fn all(&self, bytes: u64, progress: &mut dyn FnMut(Progress<'_>)) -> Result<(), SnapshotError> {
        let marks = self.files.iter().any(|file| file.poisoned.is_some());
        let side = if marks {
            let side = self.to.create_dir(TORN_DIR);
            Some(side.map_err(|e| SnapshotError::io("make", self.to.path_of(TORN_DIR), e))?)
        } else {
            None
        };
        let lanes =
            std::thread::available_parallelism().map_or(1, usize::from).clamp(1, LANES_MAX).min(self.files.len());
        let side = side.as_ref();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..lanes).map(|_| scope.spawn(move || self.lane(side))).collect();
            while !threads.iter().all(|thread| thread.is_finished()) {
                std::thread::sleep(TELL_EVERY);
                let at = self.next.load(Ordering::Relaxed).clamp(1, self.files.len());
                let file = &self.files[at - 1].name;
                progress(Progress { file, bytes_done: self.bytes_done.load(Ordering::Relaxed), bytes });
            }
        });
        if let Some(failed) = self.failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(failed);
        }
        if let Some(side) = side {
            if let Some(owner) = self.owner {
                side.give_to(owner).map_err(|e| SnapshotError::io("give away", side.path(), e))?;
            }
            side.sync().map_err(|e| SnapshotError::io("sync", side.path(), e))?;
        }
        Ok(())
    }

    /// Takes one file after the other until there is none, or one has failed.
    fn lane(&self, side: Option<&Directory>) {
        while !self.stop.load(Ordering::Relaxed) {
            let Some(file) = self.files.get(self.next.fetch_add(1, Ordering::Relaxed)) else { return };
            if let Err(e) = self.file(file, side) {
                self.stop.store(true, Ordering::Relaxed);
                self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
                return;
            }
        }
    }

    fn file(&self, entry: &FileEntry, side: Option<&Directory>) -> Result<(), SnapshotError> {
        let fail = |e| SnapshotError::io("write", self.to.path_of(&entry.name), e);
        let mut parts = Vec::new();
        for segment in &entry.segments {
            let opened = self.from.open_read(&segment.name);
            parts.push(opened.map_err(|e| SnapshotError::io("open", self.from.path_of(&segment.name), e))?);
        }
        let file = self.to.create(&entry.name).map_err(fail)?;
        let (file, content) = if self.is_clone(&file, &parts) {
            // What is read back is what was restored.
            let content = self.reading(entry, std::slice::from_ref(&file)).hash()?;
            (file, content)
        } else {
            let sink = Sink::over(file, entry.bytes).map_err(fail)?;
            let reading = self.reading(entry, &parts);
            let written =
                if entry.bytes < OWN_WRITER_BYTES_MIN { reading.write(sink) } else { reading.write_beside(sink) };
            written.map_err(|e| e.or(fail))?
        };
        let sha256 = content.sha256();
        if sha256 != entry.sha256 {
            let reason = format!(
                "{} is not what the manifest says, its SHA-256 is {sha256}; `leitstand verify --snapshot` names the part, \
                 take another copy of the snapshot",
                entry.name
            );
            return Err(SnapshotError::damaged(self.from.path(), reason));
        }
        if let Some((user, group)) = self.owner {
            std::os::unix::fs::fchown(&file, Some(user), Some(group)).map_err(fail)?;
        }
        file.sync_all().map_err(fail)?;
        match (side, &entry.poisoned) {
            (Some(side), Some(reason)) => self.mark(side, entry, reason, &file),
            _ => Ok(()),
        }
    }

    fn reading<'a>(&'a self, entry: &'a FileEntry, parts: &'a [File]) -> Reading<'a> {
        Reading { run: self, entry, parts, part: 0, at: 0, content: Content::new() }
    }

    /// Makes the file share the blocks of the only part, where the file system can do that.
    fn is_clone(&self, file: &File, parts: &[File]) -> bool {
        let [part] = parts else { return false };
        if !self.clones.load(Ordering::Relaxed) {
            return false;
        }
        let cloned = rustix::fs::ioctl_ficlone(file, part).is_ok();
        self.clones.store(cloned, Ordering::Relaxed);
        cloned
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

/// Why a file was not written: what went wrong with what was read, or with what was written.
enum Stopped {
    Reading(SnapshotError),
    Writing(io::Error),
}

impl Stopped {
    fn or(self, writing: impl FnOnce(io::Error) -> SnapshotError) -> SnapshotError {
        match self {
            Stopped::Reading(e) => e,
            Stopped::Writing(e) => writing(e),
        }
    }
}

/// Reads the parts of a file one after the other, and hashes what it reads.
struct Reading<'a> {
    run: &'a Run<'a>,
    entry: &'a FileEntry,
    parts: &'a [File],
    /// Which part, and where in it.
    part: usize,
    at: u64,
    content: Content,
}

impl Reading<'_> {
    /// Fills the block, over the ends of parts; false at the end of the file.
    fn fill(&mut self, block: &mut Block) -> Result<bool, SnapshotError> {
        let left = self.entry.bytes - self.content.bytes();
        if left == 0 {
            return Ok(false);
        }
        let (parts, segments) = (self.parts, &self.entry.segments);
        let (mut part, mut at) = (self.part, self.at);
        let read = |mut buf: &mut [u8]| {
            while !buf.is_empty() {
                if at == segments[part].bytes {
                    (part, at) = (part + 1, 0);
                    continue;
                }
                let n = buf.len().min((segments[part].bytes - at) as usize);
                let (now, later) = buf.split_at_mut(n);
                read_exact_at(&parts[part], now, at)?;
                at += n as u64;
                buf = later;
            }
            Ok(())
        };
        block.fill(left, read).map_err(|e| {
            let name = &segments[part].name;
            SnapshotError::io("read", self.run.from.path_of(name), e)
        })?;
        (self.part, self.at) = (part, at);
        self.content.add(block.bytes());
        self.run.bytes_done.fetch_add(block.bytes().len() as u64, Ordering::Relaxed);
        Ok(true)
    }

    fn hash(mut self) -> Result<Content, SnapshotError> {
        let mut block = Block::new();
        while self.fill(&mut block)? {}
        Ok(self.content)
    }

    fn write(mut self, mut sink: Sink) -> Result<(File, Content), Stopped> {
        let mut block = Block::new();
        while self.fill(&mut block).map_err(Stopped::Reading)? {
            sink.write(&mut block).map_err(Stopped::Writing)?;
        }
        Ok((sink.end().map_err(Stopped::Writing)?, self.content))
    }

    /// The same with a thread that writes while this one reads and hashes.
    fn write_beside(mut self, mut sink: Sink) -> Result<(File, Content), Stopped> {
        let (full, to_write) = sync_channel::<Block>(BLOCKS);
        let (written, empty) = sync_channel::<Block>(BLOCKS);
        for _ in 0..BLOCKS {
            written.send(Block::new()).expect("it holds as many, and its other end is here");
        }
        std::thread::scope(|scope| {
            let writer = scope.spawn(move || {
                for mut block in to_write {
                    sink.write(&mut block)?;
                    // Nobody wants it any more when the reader has failed.
                    let _ = written.send(block);
                }
                sink.end()
            });
            let read = self.read_into(&full, &empty);
            drop(full);
            let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            read.map_err(Stopped::Reading)?;
            Ok((written.map_err(Stopped::Writing)?, self.content))
        })
    }

    /// Ends early, without an error of its own, when the writer has failed.
    fn read_into(&mut self, full: &SyncSender<Block>, empty: &Receiver<Block>) -> Result<(), SnapshotError> {
        while let Ok(mut block) = empty.recv() {
            if !self.fill(&mut block)? || full.send(block).is_err() {
                break;
            }
        }
        Ok(())
    }
}
