//! `snapshot`: a copy of the data directory that is consistent for each domain, taken beside
//! writers; and the way back.
//!
//! A domain's lock is held only to learn where its last whole line ends. What stands before that
//! never changes, so it is synced and copied without the lock, by a thread that steps back for
//! everybody else. A snapshot is made beside its name and renamed when all of it is on the disk.
//! The layout is in `docs/adr/0014-snapshots-are-directories.md`.

mod check;
mod content;
mod copy;
mod directory;
mod error;
mod manifest;
mod pace;
mod restore;
mod source;
mod target;
mod tokens;

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::allocated;
use super::disk::{Disk, FileId, FileKind, RealDisk};
use super::layout::{FileNames, Owner, POISONED_SUFFIX, TORN_DIR, side_name};
use super::lock::lock;
use super::marker;
use super::tail::{self, Tail};
use super::verify::{Kind, Progress, shown};
use crate::timestamp::{compact, rfc3339_ns, rfc3339_s};
use content::Content;
use copy::{Block, Copied, Memory, Sink};
use directory::Directory;
use manifest::{FORMAT, VERSION, read_exact_at, segment_fault, segment_name};
use pace::Pace;
use target::Target;

pub use check::{check, continues};
pub use error::SnapshotError;
pub use manifest::{
    FileEntry, MANIFEST, MANIFEST_SHA256, Manifest, Segment, Skipped, Source, Totals, VERSION as MANIFEST_VERSION,
};
pub use restore::{Chosen, RestoreOptions, RestoreReport, newest_until, restore};
pub use tokens::TokensEntry;

/// Most segments of one file; then it is copied anew.
pub const SEGMENTS_MAX: usize = 30;
/// Most names in the path of a snapshot that is asked for from outside.
const DEPTH_MAX: usize = 4;
/// How much of the end of a base is compared with the source before the base is trusted.
const TRUST_BYTES: u64 = 64 << 10;
/// How much is read and written at once: as much as others may have to wait for.
const BLOCK_BYTES: usize = 1 << 20;
/// Copies that are not synced yet: how many, and how large.
const UNSYNCED_FILES_MAX: usize = 64;
const UNSYNCED_BYTES_MAX: u64 = 4 << 20;
/// How often a file is looked at anew because its lock file appeared meanwhile.
const LOOKS_MAX: usize = 4;

/// Where a snapshot goes, and how.
#[derive(Debug, Clone)]
pub struct SnapshotOptions {
    /// A directory that is not there yet, or is empty.
    pub to: PathBuf,
    /// An earlier snapshot on the same file system. What it holds is linked, not copied.
    pub base: Option<PathBuf>,
    /// Longest wait for a lock, per domain.
    pub lock_timeout: Duration,
    /// Most bytes a second.
    pub rate: Option<u64>,
    /// What stays free on the file system of the data directory; `None`: 64 MiB or 1 % of it,
    /// whichever is less.
    pub reserve_bytes: Option<u64>,
}

/// What a snapshot holds and took.
#[derive(Debug, Clone)]
pub struct SnapshotReport {
    pub path: PathBuf,
    pub manifest: Manifest,
    /// The hash of the manifest: who knows it knows the whole content.
    pub manifest_sha256: String,
    /// Written for this snapshot; the rest is linked from its base or shares its blocks with the source.
    pub copied_bytes: u64,
    pub took: Duration,
}

/// Takes a snapshot. Blocks until it is on the disk; works in a thread of low priority.
///
/// # Errors
/// See [`SnapshotError`]. Then nothing stands at `options.to` that was not there before, and
/// nothing in the data directory has changed.
pub fn snapshot(
    disk: &RealDisk,
    options: &SnapshotOptions,
    progress: &mut (dyn FnMut(Progress<'_>) + Send),
) -> Result<SnapshotReport, SnapshotError> {
    std::thread::scope(|scope| {
        let work = || {
            pace::step_back();
            take(disk, options, progress)
        };
        let thread = std::thread::Builder::new().name("snapshot".to_owned()).spawn_scoped(scope, work);
        let thread = thread.map_err(|e| SnapshotError::io("start a thread for", &options.to, e))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The path of a snapshot with a name below `root`, as somebody who is not trusted gives it: names
/// that are plain, one below the other, over no link.
///
/// # Errors
/// [`SnapshotError::BadTarget`] for any other name, [`SnapshotError::Io`] when `root` cannot be opened.
pub fn place(root: &Path, name: &str) -> Result<PathBuf, SnapshotError> {
    let bad = |reason: String| SnapshotError::BadTarget { path: name.into(), reason };
    let parts: Vec<&str> = name.split('/').collect();
    let is_plain = |part: &&str| {
        !part.is_empty() && !part.starts_with('.') && part.len() <= 128 && !part.chars().any(char::is_control)
    };
    if parts.len() > DEPTH_MAX || !parts.iter().all(is_plain) {
        return Err(bad("not a plain name below the directory for snapshots".to_owned()));
    }
    let mut dir = Directory::open(&root.canonicalize().map_err(|e| SnapshotError::io("open", root, e))?)
        .map_err(|e| SnapshotError::io("open", root, e))?;
    for (number, part) in parts.iter().enumerate() {
        match dir.stat(part).map_err(|e| SnapshotError::io("look at", dir.path_of(part), e))? {
            Some(stat) if stat.kind == FileKind::Symlink => return Err(bad(format!("{part:?} is a link"))),
            None if number + 1 < parts.len() => return Err(bad(format!("there is no directory {part:?}"))),
            _ => {}
        }
        if number + 1 < parts.len() {
            dir = dir.open_dir(part).map_err(|e| bad(format!("{part:?}: {e}")))?;
        }
    }
    Ok(dir.path_of(parts[parts.len() - 1]))
}

fn take(
    disk: &RealDisk,
    options: &SnapshotOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<SnapshotReport, SnapshotError> {
    let (began, created) = (Instant::now(), SystemTime::now());
    let root = Directory::open(disk.root()).map_err(|e| SnapshotError::io("open", disk.root(), e))?;
    let data_id = root.id().map_err(|e| SnapshotError::io("look at", disk.root(), e))?;
    let target = Target::find(&options.to)?;
    target.refuse_inside(data_id, disk.root())?;
    let base = options.base.as_deref().map(|path| Base::open(path, &target)).transpose()?;
    let _parent_lock = target.lock_parent()?;
    target.remove_dead_snapshots()?;
    let partial = target.begin_snapshot()?;
    let dir = &partial.dir;
    let mut file = dir.create(MANIFEST).map_err(|e| SnapshotError::io("make", dir.path_of(MANIFEST), e))?;
    // Locked until the end: as long as this process lives, this is no left-over.
    directory::try_lock(file.as_fd()).map_err(|e| SnapshotError::io("lock", dir.path_of(MANIFEST), e))?;
    write_all(dir, MANIFEST, &mut file, &format!("{{\"format\":\"{FORMAT}\",\"unfinished\":true}}\n"))?;

    let target_dev = dir.id().map_err(|e| SnapshotError::io("look at", dir.path(), e))?.dev;
    let reserve = if target_dev == data_id.dev { reserve_bytes(dir, options)? } else { 0 };
    let fail = |e| SnapshotError::io("get memory for", dir.path(), e);
    let mut memory = Memory::new(1, BLOCK_BYTES).map_err(fail)?;
    let mut taking = Taking {
        disk,
        root: &root,
        options,
        dir,
        base: base.as_ref(),
        reserve,
        // Tried once: a file system clones or does not. Its number does not tell; subvolumes of btrfs differ in it.
        clones: true,
        pace: Pace::new(options.rate),
        block: memory.blocks().next().expect("one was asked for"),
        unsynced: Vec::new(),
        unsynced_bytes: 0,
        copied_bytes: 0,
        bytes: 0,
        bytes_done: 0,
        progress,
    };
    let manifest = taking.all(created)?;
    let copied_bytes = taking.copied_bytes;
    drop(taking);
    let (text, sums, manifest_sha256) = manifest.texts();
    write_all(dir, MANIFEST, &mut file, &text)?;
    let mut sums_file =
        dir.create(MANIFEST_SHA256).map_err(|e| SnapshotError::io("make", dir.path_of(MANIFEST_SHA256), e))?;
    write_all(dir, MANIFEST_SHA256, &mut sums_file, &sums)?;
    partial.finish()?;
    Ok(SnapshotReport { path: options.to.clone(), manifest, manifest_sha256, copied_bytes, took: began.elapsed() })
}

/// Puts a text into a file in place of what is there, and on the disk.
fn write_all(dir: &Directory, name: &str, file: &mut File, text: &str) -> Result<(), SnapshotError> {
    let write = |file: &mut File| {
        file.seek(SeekFrom::Start(0))?;
        file.set_len(0)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        allocated::check_whole(file, text.len() as u64)
    };
    write(file).map_err(|e| SnapshotError::io("write", dir.path_of(name), e))
}

fn reserve_bytes(dir: &Directory, options: &SnapshotOptions) -> Result<u64, SnapshotError> {
    let space = dir.space().map_err(|e| SnapshotError::io("ask for the free space of", dir.path(), e))?;
    Ok(options.reserve_bytes.unwrap_or_else(|| super::default_reserve_bytes(space)))
}

/// An earlier snapshot.
struct Base {
    dir: Directory,
    id: String,
    /// Of its manifest.
    sha256: String,
    files: HashMap<String, FileEntry>,
}

impl Base {
    fn open(path: &Path, target: &Target) -> Result<Base, SnapshotError> {
        let bad = |e| SnapshotError::BadBase(Box::new(e));
        let dir = open_snapshot(path).map_err(bad)?;
        let (manifest, sha256) = Manifest::read(&dir).map_err(bad)?;
        let fail = |e| SnapshotError::io("look at", path, e);
        if dir.id().map_err(fail)?.dev != target.parent.id().map_err(fail)?.dev {
            return Err(SnapshotError::OtherFileSystem { base: path.to_owned(), target: target.path.clone() });
        }
        let files = manifest.files.into_iter().map(|file| (file.name.clone(), file)).collect();
        Ok(Base { dir, id: manifest.id, sha256, files })
    }

    /// Its parts of a file, opened, if they are what the manifest says.
    fn segments(&self, file: &FileEntry) -> Result<Vec<File>, SnapshotError> {
        let open = |segment: &Segment| {
            let path = self.dir.path_of(&segment.name);
            let stat = self.dir.stat(&segment.name).map_err(|e| SnapshotError::io("look at", &path, e))?;
            if let Some(fault) = segment_fault(stat, segment) {
                return Err(SnapshotError::BadBase(Box::new(SnapshotError::damaged(self.dir.path(), fault))));
            }
            self.dir.open_read(&segment.name).map_err(|e| SnapshotError::io("open", path, e))
        };
        file.segments.iter().map(open).collect()
    }
}

/// Opens what should be a snapshot.
fn open_snapshot(path: &Path) -> Result<Directory, SnapshotError> {
    let gone = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            SnapshotError::NotFound { path: path.to_owned(), reason: "there is no such directory".to_owned() }
        }
        _ => SnapshotError::io("open", path, e),
    };
    Directory::open(&path.canonicalize().map_err(gone)?).map_err(gone)
}

/// What was seen of a data file under its lock.
struct Seen {
    file: File,
    id: FileId,
    /// Where its last whole line ends.
    len: u64,
    torn_tail_bytes: u64,
    modified: SystemTime,
    poisoned: Option<String>,
}

struct Taking<'a> {
    disk: &'a RealDisk,
    /// The data directory.
    root: &'a Directory,
    options: &'a SnapshotOptions,
    dir: &'a Directory,
    base: Option<&'a Base>,
    reserve: u64,
    clones: bool,
    pace: Pace,
    block: Block<'a>,
    /// Small files that are written and not yet synced.
    unsynced: Vec<(String, Copied)>,
    unsynced_bytes: u64,
    copied_bytes: u64,
    /// Of all files together, as far as is known, and of those that are done.
    bytes: u64,
    bytes_done: u64,
    progress: &'a mut dyn FnMut(Progress<'_>),
}

impl Taking<'_> {
    fn all(&mut self, created: SystemTime) -> Result<Manifest, SnapshotError> {
        let mut skipped = Vec::new();
        let sources = self.names(&mut skipped)?;
        let mut manifest = Manifest {
            format: FORMAT.to_owned(),
            version: VERSION,
            id: id(created),
            created: rfc3339_s(created),
            tool: format!("leitstand {}", env!("CARGO_PKG_VERSION")),
            data_dir: self.disk.root().to_string_lossy().into_owned(),
            base: self.base.map(|base| base.id.clone()),
            base_sha256: self.base.map(|base| base.sha256.clone()),
            totals: Totals::default(),
            files: Vec::with_capacity(sources.len()),
            tokens: None,
            skipped,
        };
        match tokens::copy(self.root, self.dir) {
            Ok(entry) => manifest.tokens = entry,
            Err(e) => manifest.skipped.push(Skipped {
                name: tokens::shown(),
                kind: "not_regular".to_owned(),
                reason: format!("the named tokens cannot be read: {e}; see RUNBOOK, \"Tokens: give, rotate, revoke\""),
                harmless: false,
            }),
        }
        for (names, owner) in sources {
            let Some(seen) = self.look(&names)? else { continue };
            // A writer may hold lines back, and one that never syncs certainly does.
            let path = || self.disk.root().join(&names.data);
            self.disk.sync_data(&seen.file).map_err(|e| SnapshotError::io("sync", path(), e))?;
            let entry = self.file(&names.data, &owner, &seen)?;
            self.bytes_done += entry.bytes;
            manifest.totals.add(&entry);
            manifest.files.push(entry);
        }
        self.sync()?;
        self.marks(&manifest)?;
        Ok(manifest)
    }

    /// The data files. What is left out goes to `skipped`.
    fn names(&mut self, skipped: &mut Vec<Skipped>) -> Result<Vec<(FileNames, Owner)>, SnapshotError> {
        let fail = |e| SnapshotError::io("list", self.disk.root(), e);
        let mut sources = Vec::new();
        for name in self.disk.names().map_err(fail)? {
            let Some(stat) = self.disk.stat_name(&name).map_err(fail)? else { continue };
            let owner = name.to_str().and_then(Owner::of);
            if let (Some(owner), Some(text), FileKind::Regular) = (owner, name.to_str(), stat.kind) {
                self.bytes += stat.len;
                sources.push((FileNames::of_data(text.to_owned()), owner));
            } else if let Some(kind) = super::verify::judge_name(self.disk, &name, stat)
                && kind != Kind::LockNotEmpty
            {
                skipped.push(skip(&name, kind));
            }
        }
        Ok(sources)
    }

    /// Learns under the lock where the file ends. `None`: it is gone, or no file any more.
    fn look(&self, names: &FileNames) -> Result<Option<Seen>, SnapshotError> {
        let fail = |op: &'static str| move |e| SnapshotError::io(op, self.disk.root().join(&names.data), e);
        for _ in 0..LOOKS_MAX {
            let timeout = self.options.lock_timeout;
            let lock = lock(self.disk, names, timeout).map_err(fail("lock"))?;
            let Some(lock) = lock else {
                return Err(SnapshotError::Locked { file: names.data.clone(), waited_s: timeout.as_secs() });
            };
            let seen = self.seen(names).map_err(fail("read"))?;
            // Without a lock file nobody held the lock; if there is one now, somebody may have begun.
            if lock.is_some() || self.disk.stat(&names.lock).map_err(fail("look at the lock of"))?.is_none() {
                return Ok(seen);
            }
        }
        Err(fail("lock")(io::Error::other("its lock file comes and goes")))
    }

    fn seen(&self, names: &FileNames) -> io::Result<Option<Seen>> {
        let file = match self.disk.open_read(&names.data) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let stat = self.disk.fstat(&file)?;
        if stat.kind != FileKind::Regular {
            return Err(io::Error::other("it is not a regular file any more"));
        }
        let len = match tail::inspect(self.disk, &file, stat.len)? {
            Tail::Clean | Tail::Whole => stat.len,
            Tail::Torn { sound_len } => sound_len,
        };
        let marker = marker::read(self.disk, &names.data)?.filter(|marker| marker.is_about(stat.id));
        Ok(Some(Seen {
            id: stat.id,
            len,
            torn_tail_bytes: stat.len - len,
            modified: file.metadata()?.modified()?,
            poisoned: marker.map(|marker| marker.reason),
            file,
        }))
    }

    fn file(&mut self, name: &str, owner: &Owner, seen: &Seen) -> Result<FileEntry, SnapshotError> {
        let base = self.base.and_then(|base| Some((base, base.files.get(name)?)));
        let linked = match base {
            // An empty part would only make the chain longer.
            Some((base, entry)) if entry.bytes > 0 && entry.bytes <= seen.len => self.link(base, entry, seen)?,
            _ => None,
        };
        let (mut content, mut segments) = linked.unwrap_or_else(|| (Content::new(), Vec::new()));
        if segments.is_empty() || content.bytes() < seen.len {
            let segment = segment_name(name, segments.len());
            segments.push(self.copy(name, seen, &segment, &mut content)?);
        }
        let domain = match owner {
            Owner::Domain(domain) => Some(domain.as_str().to_owned()),
            Owner::Shortened => None,
        };
        Ok(FileEntry {
            name: name.to_owned(),
            domain,
            bytes: seen.len,
            lines: content.lines(),
            sha256: content.sha256(),
            modified: rfc3339_ns(seen.modified),
            source: seen.id.into(),
            torn_tail_bytes: seen.torn_tail_bytes,
            poisoned: seen.poisoned.clone(),
            hash_state: Some(content.state()),
            piece_states: content.states().to_vec(),
            segments,
        })
    }

    /// Links what the base holds of the file. `None`: the source does not begin with it, or has
    /// too many parts.
    fn link(
        &mut self,
        base: &Base,
        entry: &FileEntry,
        seen: &Seen,
    ) -> Result<Option<(Content, Vec<Segment>)>, SnapshotError> {
        if entry.segments.len() >= SEGMENTS_MAX && entry.bytes < seen.len {
            return Ok(None);
        }
        let parts = base.segments(entry)?;
        let Some(content) = self.content_of_base(base, entry, &parts, seen)? else { return Ok(None) };
        for segment in &entry.segments {
            self.dir.link(&base.dir, &segment.name).map_err(|e| match e.kind() {
                io::ErrorKind::CrossesDevices => {
                    SnapshotError::OtherFileSystem { base: base.dir.path().to_owned(), target: self.options.to.clone() }
                }
                _ => SnapshotError::io("link", base.dir.path_of(&segment.name), e),
            })?;
        }
        Ok(Some((content, entry.segments.clone())))
    }

    /// What the base holds, if the source begins with it. A base whose end is not what its own
    /// manifest says is refused: its parts would be linked, and the damage with them.
    fn content_of_base(
        &mut self,
        base: &Base,
        entry: &FileEntry,
        parts: &[File],
        seen: &Seen,
    ) -> Result<Option<Content>, SnapshotError> {
        let fail = |e| SnapshotError::io("read", self.disk.root().join(&entry.name), e);
        let from = entry.bytes.saturating_sub(TRUST_BYTES);
        let mut theirs = vec![0; (entry.bytes - from) as usize];
        let mut ours = theirs.clone();
        read_parts(&entry.segments, &mut theirs, from, |part, buf, at| read_exact_at(&parts[part], buf, at))
            .map_err(fail)?;
        read_exact_at(&seen.file, &mut ours, from).map_err(fail)?;
        if ours == theirs
            && FileId::from(entry.source) == seen.id
            && let Some(content) = Content::resume(entry, &ours)
        {
            return Ok(Some(content));
        }
        let mut content = Content::new();
        while content.bytes() < entry.bytes {
            self.read(&entry.name, &seen.file, content.bytes(), entry.bytes)?;
            content.add(self.block.bytes());
            self.step(&entry.name, content.bytes());
        }
        if content.sha256() != entry.sha256 {
            return Ok(None);
        }
        if ours != theirs {
            // The source is what the base should hold, so it is the base that is wrong.
            let reason = format!(
                "{} does not end as its manifest says; `leitstand verify --snapshot` names the part",
                entry.name
            );
            return Err(SnapshotError::BadBase(Box::new(SnapshotError::damaged(base.dir.path(), reason))));
        }
        Ok(Some(content))
    }

    /// Copies what `content` does not hold yet into a new part.
    fn copy(
        &mut self,
        name: &str,
        seen: &Seen,
        segment: &str,
        content: &mut Content,
    ) -> Result<Segment, SnapshotError> {
        let path = self.dir.path_of(segment);
        let fail = |e| SnapshotError::io("write", &path, e);
        let from = content.bytes();
        let bytes = seen.len - from;
        let mut part = Content::new();
        let cloned = if from == 0 && bytes > 0 { self.clone_file(seen, segment).map_err(fail)? } else { None };
        let file = if let Some(clone) = cloned {
            while content.bytes() < seen.len {
                self.read(name, &clone, content.bytes(), seen.len)?;
                content.add(self.block.bytes());
                self.step(name, content.bytes());
            }
            part = content.clone();
            Copied::clone_of_another(clone)
        } else {
            self.check_room(bytes)?;
            let sink = self.dir.create(segment).and_then(|file| Sink::over(file, bytes)).map_err(fail)?;
            while content.bytes() < seen.len {
                let at = content.bytes() - from;
                self.read(name, &seen.file, content.bytes(), seen.len)?;
                content.add(self.block.bytes());
                if from > 0 {
                    part.add(self.block.bytes());
                }
                sink.write_at(&mut self.block, at).map_err(fail)?;
                self.step(name, content.bytes());
            }
            if from == 0 {
                part = content.clone();
            }
            self.copied_bytes += bytes;
            sink.end().map_err(fail)?
        };
        self.unsynced.push((segment.to_owned(), file));
        self.unsynced_bytes += bytes;
        if self.unsynced.len() >= UNSYNCED_FILES_MAX || self.unsynced_bytes >= UNSYNCED_BYTES_MAX {
            self.sync()?;
        }
        Ok(Segment { name: segment.to_owned(), bytes, sha256: part.sha256() })
    }

    /// A file that shares the blocks of the source, where the file system can do that.
    fn clone_file(&mut self, seen: &Seen, segment: &str) -> io::Result<Option<File>> {
        if !self.clones {
            return Ok(None);
        }
        let file = self.dir.create(segment)?;
        if rustix::fs::ioctl_ficlone(&file, &seen.file).is_err() {
            self.clones = false;
            drop(file);
            self.dir.remove(segment)?;
            return Ok(None);
        }
        // One that somebody cut meanwhile stays as short as it is, for the reader to see: no zeros in its place.
        if file.metadata()?.len() > seen.len {
            file.set_len(seen.len)?;
        }
        Ok(Some(file))
    }

    /// Fills the block with the bytes of `file` from `at`, up to `end`.
    fn read(&mut self, name: &str, file: &File, at: u64, end: u64) -> Result<(), SnapshotError> {
        self.block.fill(end - at, |buf| read_exact_at(file, buf, at)).map_err(|e| {
            let e = match e.kind() {
                io::ErrorKind::UnexpectedEof => io::Error::other(
                    "it became shorter while it was copied; nobody may cut or edit a data file, see RUNBOOK; try again",
                ),
                _ => e,
            };
            SnapshotError::io("read", self.disk.root().join(name), e)
        })
    }

    fn check_room(&self, bytes: u64) -> Result<(), SnapshotError> {
        let fail = |e| SnapshotError::io("ask for the free space of", self.dir.path(), e);
        let free = self.dir.space().map_err(fail)?.free_bytes;
        if free < bytes.saturating_add(self.reserve) {
            let reserve = match self.reserve {
                0 => String::new(),
                reserve => format!(", and {reserve} stay free for the service"),
            };
            let reason = format!("{bytes} bytes are wanted, {free} are free{reserve}");
            return Err(SnapshotError::NoSpace { path: self.options.to.clone(), reason });
        }
        Ok(())
    }

    fn step(&mut self, name: &str, bytes: u64) {
        self.pace.step(self.block.bytes().len() as u64);
        let bytes_done = self.bytes_done + bytes;
        (self.progress)(Progress { file: name, bytes_done, bytes: self.bytes.max(bytes_done) });
    }

    /// Syncs what was written and not synced.
    fn sync(&mut self) -> Result<(), SnapshotError> {
        for (name, file) in self.unsynced.drain(..) {
            file.sync().map_err(|e| SnapshotError::io("sync", self.dir.path_of(&name), e))?;
        }
        self.unsynced_bytes = 0;
        Ok(())
    }

    /// The marks of poisoned domains, as they stand in a data directory. Without the number of a
    /// file: whatever stands under the name after a restore is in doubt.
    fn marks(&self, manifest: &Manifest) -> Result<(), SnapshotError> {
        let mut side = None;
        for file in &manifest.files {
            let Some(reason) = &file.poisoned else { continue };
            let side = match &side {
                Some(side) => side,
                None => side.insert(
                    self.dir
                        .create_dir(TORN_DIR)
                        .map_err(|e| SnapshotError::io("make", self.dir.path_of(TORN_DIR), e))?,
                ),
            };
            let name = side_name(&file.name, POISONED_SUFFIX);
            let mut mark = side.create(&name).map_err(|e| SnapshotError::io("make", side.path_of(&name), e))?;
            write_all(side, &name, &mut mark, &marker::text(reason, None))?;
        }
        side.map_or(Ok(()), |side: Directory| side.sync().map_err(|e| SnapshotError::io("sync", side.path(), e)))
    }
}

fn skip(name: &OsStr, kind: Kind) -> Skipped {
    Skipped {
        name: shown(name),
        kind: kind.word().to_owned(),
        reason: format!("{}; {}", kind.what(), kind.advice()),
        harmless: kind.is_note(),
    }
}

fn id(created: SystemTime) -> String {
    format!("{}-{:016x}", compact(created), crate::rng::random_u64())
}

/// Reads from the parts of a file as if they were one; `read` knows them by their number.
fn read_parts(
    segments: &[Segment],
    mut buf: &mut [u8],
    at: u64,
    read: impl Fn(usize, &mut [u8], u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut start = 0;
    for (number, segment) in segments.iter().enumerate() {
        let end = start + segment.bytes;
        if at < end && !buf.is_empty() {
            let within = at.max(start) - start;
            let n = buf.len().min((segment.bytes - within) as usize);
            // The first part is entered in its middle; all later ones at their beginning.
            let (now, later) = buf.split_at_mut(n);
            read(number, now, within)?;
            buf = later;
        }
        start = end;
    }
    if buf.is_empty() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}
