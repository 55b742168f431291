//! `snapshot`: a copy of the data directory that is consistent for each domain, taken beside
//! writers; and the way back.
//!
//! A domain's lock is held only to learn where its last whole line ends. What stands before that
//! never changes, so it is synced and copied without the lock, by a thread that steps back for
//! everybody else. A snapshot is made beside its name and renamed when all of it is on the disk.
//! The layout is in `docs/adr/0014-snapshots-are-directories.md`.

mod base;
mod check;
mod content;
mod copy;
mod directory;
mod error;
mod manifest;
mod manifest_lines;
mod pace;
mod restore;
mod source;
mod taking;
mod target;
mod tokens;
mod unfinished;
mod unsynced;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::allocated;
use super::disk::{FileKind, RealDisk};
use super::layout::{Owner, POISONED_SUFFIX, TORN_DIR, side_name};
use super::marker;
use super::verify::{Kind, Progress, shown};
use crate::timestamp::{compact, rfc3339_s};
use base::Base;
use copy::Memory;
use directory::Directory;
use manifest::FORMAT;
use manifest_lines::{Foot, Head, ManifestWriter, Reckoning};
use pace::Pace;
use taking::Taking;
use unsynced::Unsynced;

pub use check::{check, continues};
pub use error::SnapshotError;
pub use manifest::{
    FileEntry, MANIFEST, MANIFEST_SHA256, Manifest, Poisoned, Segment, Skipped, Source, Totals,
    VERSION as MANIFEST_VERSION,
};
pub use restore::{Chosen, RestoreOptions, RestoreReport, newest_until, restore};
pub use target::{Partial, Target};
pub use tokens::TokensEntry;
pub use unfinished::{LeftAlone, Marked, Purpose, clear_marked, clear_within, look_at_left_overs};

/// Most names in the path of a snapshot that is asked for from outside.
const DEPTH_MAX: usize = 4;
/// How much of the end of a base is compared with the source before the base is trusted.
const TRUST_BYTES: u64 = 64 << 10;
/// How much is read and written at once: as much as others may have to wait for.
const BLOCK_BYTES: usize = 1 << 20;
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
    pub manifest: Summary,
    /// The hash of the manifest: who knows it knows the whole content.
    pub manifest_sha256: String,
    /// Written for this snapshot; the rest is linked from its base or shares its blocks with the source.
    pub copied_bytes: u64,
    /// What stands beside it under a name of something unfinished, and is none of ours.
    pub left_alone: Vec<LeftAlone>,
    pub took: Duration,
}

/// A manifest without its files, of which there may be very many.
#[derive(Debug, Clone)]
pub struct Summary {
    /// As in [`Manifest`].
    pub id: String,
    pub created: String,
    pub base: Option<String>,
    pub totals: Totals,
    pub has_tokens: bool,
    pub skipped: Vec<Skipped>,
    /// Files with half a line at the end, which is left out.
    pub torn_tails: Vec<TornTail>,
    pub poisoned: Vec<Poisoned>,
}

impl Summary {
    /// Skipped names that somebody may take for data.
    pub fn losses(&self) -> impl Iterator<Item = &Skipped> {
        self.skipped.iter().filter(|skipped| !skipped.harmless)
    }
}

/// Half a line at the end of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    pub file: String,
    pub bytes: u64,
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
    let left_alone = target.clear()?;
    let Sources { names, mut skipped, bytes } = sources(disk, &options.to)?;
    let partial = target.begin(Purpose::Snapshot)?;
    let dir = &partial.dir;
    let target_dev = dir.id().map_err(|e| SnapshotError::io("look at", dir.path(), e))?.dev;
    let reserve = if target_dev == data_id.dev { reserve_bytes(dir, options)? } else { 0 };
    let head = head(disk, base.as_ref(), created);
    let fail = |e| SnapshotError::io("write", dir.path_of(MANIFEST), e);
    let mut manifest = dir.create(MANIFEST).and_then(|file| ManifestWriter::new(file, &head)).map_err(fail)?;
    let tokens = tokens(&root, dir, &mut skipped);

    let no_memory = |e| SnapshotError::io("get memory for", dir.path(), e);
    let mut memory = Memory::new(1, BLOCK_BYTES).map_err(no_memory)?;
    let mut taking = Taking {
        disk,
        options,
        dir,
        reserve,
        clones: true,
        pace: Pace::new(options.rate),
        block: memory.blocks().next().expect("one was asked for"),
        unsynced: Unsynced::new(dir)?,
        copied_bytes: 0,
        bytes,
        bytes_done: 0,
        progress,
        totals: Totals::default(),
        torn_tails: Vec::new(),
        poisoned: Vec::new(),
    };
    taking.all(names, base, &mut manifest)?;
    let Taking { copied_bytes, totals, torn_tails, poisoned, .. } = taking;
    marks(dir, &poisoned)?;
    let has_tokens = tokens.is_some();
    let foot = Foot { tokens, skipped, totals };
    let manifest_sha256 = manifest.end(&foot).map_err(fail)?;
    write_new(dir, MANIFEST_SHA256, &manifest_lines::sums(&manifest_sha256))?;
    partial.finish()?;
    let Foot { skipped, .. } = foot;
    let Head { id, created, base, .. } = head;
    let manifest = Summary { id, created, base, totals, has_tokens, skipped, torn_tails, poisoned };
    let path = options.to.clone();
    Ok(SnapshotReport { path, manifest, manifest_sha256, copied_bytes, left_alone, took: began.elapsed() })
}

fn head(disk: &RealDisk, base: Option<&Base>, created: SystemTime) -> Head {
    Head {
        format: FORMAT.to_owned(),
        version: MANIFEST_VERSION,
        id: id(created),
        created: rfc3339_s(created),
        tool: format!("leitstand {}", env!("CARGO_PKG_VERSION")),
        data_dir: disk.root().to_string_lossy().into_owned(),
        base: base.map(|base| base.id().to_owned()),
        base_sha256: base.map(|base| base.sha256().to_owned()),
    }
}

/// What will be copied.
struct Sources {
    /// Data files, sorted.
    names: Vec<String>,
    /// What is left out.
    skipped: Vec<Skipped>,
    bytes: u64,
}

/// Looks at all names, and refuses what no manifest could hold.
fn sources(disk: &RealDisk, to: &Path) -> Result<Sources, SnapshotError> {
    let fail = |e| SnapshotError::io("list", disk.root(), e);
    let mut sources = Sources { names: Vec::new(), skipped: Vec::new(), bytes: 0 };
    let mut reckoning = Reckoning::default();
    for name in disk.names().map_err(fail)? {
        let Some(stat) = disk.stat_name(&name).map_err(fail)? else { continue };
        match (name.to_str().filter(|name| Owner::of(name).is_some()), stat.kind) {
            (Some(text), FileKind::Regular) => {
                sources.bytes += stat.len;
                reckoning.add(text, stat.len);
                sources.names.push(text.to_owned());
            }
            _ => {
                let kind = super::verify::judge_name(disk, &name, stat).filter(|kind| *kind != Kind::LockNotEmpty);
                sources.skipped.extend(kind.map(|kind| skip(&name, kind)));
            }
        }
    }
    let too_large = |reason| SnapshotError::TooLarge { path: to.to_owned(), reason };
    reckoning.check(&sources.skipped).map_err(too_large)?;
    Ok(sources)
}

/// Copies the named tokens.
fn tokens(root: &Directory, dir: &Directory, skipped: &mut Vec<Skipped>) -> Option<TokensEntry> {
    tokens::copy(root, dir).unwrap_or_else(|e| {
        skipped.push(Skipped {
            name: tokens::shown(),
            kind: "not_regular".to_owned(),
            reason: format!("the named tokens cannot be read: {e}; see RUNBOOK, \"Tokens: give, rotate, revoke\""),
            harmless: false,
        });
        None
    })
}

/// The marks of poisoned domains, as they stand in a data directory. Without the number of a
/// file: whatever stands under the name after a restore is in doubt.
fn marks(dir: &Directory, poisoned: &[Poisoned]) -> Result<(), SnapshotError> {
    if poisoned.is_empty() {
        return Ok(());
    }
    let side = dir.create_dir(TORN_DIR).map_err(|e| SnapshotError::io("make", dir.path_of(TORN_DIR), e))?;
    for Poisoned { file, reason } in poisoned {
        write_new(&side, &side_name(file, POISONED_SUFFIX), &marker::text(reason, None))?;
    }
    side.sync().map_err(|e| SnapshotError::io("sync", side.path(), e))
}

/// Makes a file, and puts it on the disk.
fn write_new(dir: &Directory, name: &str, text: &str) -> Result<(), SnapshotError> {
    let write = |mut file: File| {
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        allocated::check_whole(&file, text.len() as u64)
    };
    dir.create(name).and_then(write).map_err(|e| SnapshotError::io("write", dir.path_of(name), e))
}

fn reserve_bytes(dir: &Directory, options: &SnapshotOptions) -> Result<u64, SnapshotError> {
    let space = dir.space().map_err(|e| SnapshotError::io("ask for the free space of", dir.path(), e))?;
    Ok(options.reserve_bytes.unwrap_or_else(|| super::default_reserve_bytes(space)))
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
