//! `Taking`: what goes into a snapshot, file by file: linked from its base, cloned, copied, or left out.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
use std::time::SystemTime;

use super::base::{Base, SourceLook};
use super::content::{Content, Hash};
use super::copy::{Block, Copied, Sink, has_holes};
use super::directory::Directory;
use super::error::SnapshotError;
use super::manifest::{
    FileEntry, PART_BYTES_MIN, Poisoned, Segment, Source, Totals, parts_kept, read_exact_at, segment_name,
};
use super::manifest_lines::ManifestWriter;
use super::pace::Pace;
use super::unsynced::Unsynced;
use super::{LOOKS_MAX, SnapshotOptions, TRUST_BYTES, TornTail, read_parts};
use crate::storage::disk::{Disk, FileId, FileKind, RealDisk, nanoseconds};
use crate::storage::holes::data_in;
use crate::storage::layout::{FileNames, Owner};
use crate::storage::lock::lock;
use crate::storage::marker;
use crate::storage::tail::{self, Tail};
use crate::storage::verify::Progress;
use crate::timestamp::rfc3339_ns;

/// What was seen of a data file under its lock.
struct Seen {
    file: File,
    id: FileId,
    /// Where its last whole line ends.
    len: u64,
    torn_tail_bytes: u64,
    modified: SystemTime,
    changed_ns: i64,
    poisoned: Option<String>,
}

/// What is linked of a file.
struct Linked {
    /// All that the base holds.
    content: Content,
    /// The parts that stay.
    segments: Vec<Segment>,
    /// Those behind them, which become one with what is new.
    merged: Vec<Segment>,
}

pub(super) struct Taking<'a> {
    pub(super) disk: &'a RealDisk,
    pub(super) options: &'a SnapshotOptions,
    pub(super) dir: &'a Directory,
    pub(super) reserve: u64,
    /// Tried once: a file system clones or does not. Its number does not tell; subvolumes of btrfs differ in it.
    pub(super) clones: bool,
    pub(super) pace: Pace,
    pub(super) block: Block<'a>,
    pub(super) unsynced: Unsynced,
    pub(super) copied_bytes: u64,
    /// Of all files together, as far as is known, and of those that are done.
    pub(super) bytes: u64,
    pub(super) bytes_done: u64,
    pub(super) progress: &'a mut dyn FnMut(Progress<'_>),
    pub(super) totals: Totals,
    pub(super) torn_tails: Vec<TornTail>,
    pub(super) poisoned: Vec<Poisoned>,
}

impl Taking<'_> {
    /// Takes all files, in the order of their names.
    pub(super) fn all(
        &mut self,
        names: Vec<String>,
        mut base: Option<Base>,
        manifest: &mut ManifestWriter,
    ) -> Result<(), SnapshotError> {
        for name in names {
            let entry = base.as_mut().map(|base| base.find(&name)).transpose()?.flatten();
            let held = base.as_ref().zip(entry);
            let names = FileNames::of_data(name);
            let entry = match held {
                Some((base, entry)) if self.is_unchanged(base, &entry)? => Some(self.again(base, entry)?),
                held => self.anew(&names, held.as_ref().map(|(base, entry)| (*base, entry)))?,
            };
            let Some(entry) = entry else { continue };
            self.bytes_done += entry.bytes;
            self.totals.add(&entry);
            self.poisoned.extend(Poisoned::of(&entry));
            if entry.torn_tail_bytes > 0 {
                self.torn_tails.push(TornTail { file: entry.name.clone(), bytes: entry.torn_tail_bytes });
            }
            manifest.entry(entry).map_err(|e| SnapshotError::io("write the manifest in", self.dir.path(), e))?;
        }
        self.unsynced.sync()?;
        base.map_or(Ok(()), Base::end)
    }

    /// Does one look at the source, and one at each part, tell that nothing is new?
    fn is_unchanged(&self, base: &Base, entry: &FileEntry) -> Result<bool, SnapshotError> {
        let fail = |e| SnapshotError::io("look at", self.disk.root().join(&entry.name), e);
        let Some((stat, changed_ns)) = self.disk.stat_touched(&entry.name).map_err(fail)? else { return Ok(false) };
        let look = SourceLook { id: stat.id, len: stat.len, changed_ns };
        Ok(stat.kind == FileKind::Regular && base.holds(entry, &look) && base.is_untouched(entry)?)
    }

    /// A file that is as the base holds it. Its domain may have been poisoned since, or not be any more.
    fn again(&mut self, base: &Base, mut entry: FileEntry) -> Result<FileEntry, SnapshotError> {
        let fail = |e| SnapshotError::io("read the mark of", self.disk.root().join(&entry.name), e);
        let mark = marker::read(self.disk, &entry.name).map_err(fail)?;
        entry.poisoned = mark.filter(|mark| mark.is_about(entry.source.into())).map(|mark| mark.reason);
        self.link_parts(base, &entry.segments)?;
        (self.progress)(Progress {
            file: &entry.name,
            bytes_done: self.bytes_done + entry.bytes,
            bytes: self.bytes.max(self.bytes_done + entry.bytes),
        });
        Ok(entry)
    }

    /// A file that must be opened. `None`: it is gone.
    fn anew(
        &mut self,
        names: &FileNames,
        held: Option<(&Base, &FileEntry)>,
    ) -> Result<Option<FileEntry>, SnapshotError> {
        let Some(seen) = self.look(names)? else { return Ok(None) };
        // A writer may hold lines back, and one that never syncs certainly does.
        let source =
            seen.file.try_clone().map_err(|e| SnapshotError::io("open", self.disk.root().join(&names.data), e))?;
        self.unsynced.source(self.disk, &names.data, source)?;
        self.file(&names.data, &seen, held).map(Some)
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
        let meta = file.metadata()?;
        Ok(Some(Seen {
            id: stat.id,
            len,
            torn_tail_bytes: stat.len - len,
            modified: meta.modified()?,
            changed_ns: nanoseconds(meta.ctime(), meta.ctime_nsec()),
            poisoned: marker.map(|marker| marker.reason),
            file,
        }))
    }

    fn file(&mut self, name: &str, seen: &Seen, held: Option<(&Base, &FileEntry)>) -> Result<FileEntry, SnapshotError> {
        let linked = match held {
            // An empty part would only make the chain longer.
            Some((base, entry)) if entry.bytes > 0 && entry.bytes <= seen.len => self.link(base, entry, seen)?,
            _ => None,
        };
        let done = match linked {
            Some(linked) => self.go_on(name, seen, linked)?,
            None => None,
        };
        let (content, segments) = match done {
            Some(done) => done,
            None => {
                let mut content = Content::new();
                let part = self.copy(name, seen, name, (0, &[]), &mut content)?;
                let part = part.expect("there is nothing that it could differ from");
                (content, vec![part])
            }
        };
        let domain = match Owner::of(name) {
            Some(Owner::Domain(domain)) => Some(domain.as_str().to_owned()),
            _ => None,
        };
        Ok(FileEntry {
            name: name.to_owned(),
            domain,
            bytes: seen.len,
            lines: content.lines(),
            sha256: content.sha256(),
            modified: rfc3339_ns(seen.modified),
            source: Source { dev: seen.id.dev, ino: seen.id.ino, changed_ns: Some(seen.changed_ns) },
            torn_tail_bytes: seen.torn_tail_bytes,
            poisoned: seen.poisoned.clone(),
            // What is shorter is copied anew.
            hash_state: (seen.len > PART_BYTES_MIN).then(|| content.state()),
            piece_states: content.states().to_vec(),
            segments,
        })
    }

    /// Puts what is new behind the parts that are linked. `None`: the source is not what the base holds, and nothing is
    /// left of the file.
    fn go_on(
        &mut self,
        name: &str,
        seen: &Seen,
        mut linked: Linked,
    ) -> Result<Option<(Content, Vec<Segment>)>, SnapshotError> {
        if linked.merged.is_empty() && linked.content.bytes() == seen.len {
            return Ok(Some((linked.content, linked.segments)));
        }
        let from = linked.segments.iter().map(|segment| segment.bytes).sum();
        let part = segment_name(name, linked.segments.len());
        match self.copy(name, seen, &part, (from, &linked.merged), &mut linked.content)? {
            Some(part) => {
                linked.segments.push(part);
                Ok(Some((linked.content, linked.segments)))
            }
            None => {
                let parts = linked.segments.iter().map(|segment| &segment.name).chain([&part]);
                for part in parts {
                    self.dir.remove(part).map_err(|e| SnapshotError::io("remove", self.dir.path_of(part), e))?;
                }
                Ok(None)
            }
        }
    }

    /// Links the parts that stay of what the base holds of the file. `None`: none stays, or the source does not begin
    /// with them.
    fn link(&mut self, base: &Base, entry: &FileEntry, seen: &Seen) -> Result<Option<Linked>, SnapshotError> {
        let kept = parts_kept(&entry.segments, seen.len - entry.bytes);
        if kept == 0 {
            return Ok(None);
        }
        let parts = base.segments(entry)?;
        let Some(content) = self.content_of_base(base, entry, &parts, seen)? else { return Ok(None) };
        let (segments, merged) = entry.segments.split_at(kept);
        if !base.is_untouched(entry)? {
            self.check_parts(base, segments, &parts)?;
        }
        self.link_parts(base, segments)?;
        Ok(Some(Linked { content, segments: segments.to_vec(), merged: merged.to_vec() }))
    }

    /// Reads parts of the base that somebody may have written to since: the damage would be linked with them.
    fn check_parts(&mut self, base: &Base, segments: &[Segment], parts: &[File]) -> Result<(), SnapshotError> {
        for (segment, part) in segments.iter().zip(parts) {
            let mut content = Content::new();
            while content.bytes() < segment.bytes {
                self.read(&segment.name, part, content.bytes()..segment.bytes, false)?;
                content.add(self.block.bytes());
            }
            if content.sha256() != segment.sha256 {
                return Err(base.damaged(format!("{} is not what its manifest says", segment.name)));
            }
        }
        Ok(())
    }

    fn link_parts(&self, base: &Base, segments: &[Segment]) -> Result<(), SnapshotError> {
        for segment in segments {
            self.dir.link(&base.dir, &segment.name).map_err(|e| match e.kind() {
                io::ErrorKind::CrossesDevices => {
                    SnapshotError::OtherFileSystem { base: base.dir.path().to_owned(), target: self.options.to.clone() }
                }
                _ => SnapshotError::io("link", base.dir.path_of(&segment.name), e),
            })?;
        }
        Ok(())
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
            self.read(&entry.name, &seen.file, content.bytes()..entry.bytes, false)?;
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
            return Err(base.damaged(reason));
        }
        Ok(Some(content))
    }

    /// Copies the source from `from` on into a new part. `merged` are parts of the base that begin there: the source
    /// must hold the same, and `content` knows of them already. `None`: it does not.
    fn copy(
        &mut self,
        name: &str,
        seen: &Seen,
        segment: &str,
        (from, merged): (u64, &[Segment]),
        content: &mut Content,
    ) -> Result<Option<Segment>, SnapshotError> {
        let path = self.dir.path_of(segment);
        let fail = |e| SnapshotError::io("write", &path, e);
        let bytes = seen.len - from;
        let mut part = Content::new();
        let mut known = Known::new(merged);
        let cloned = if from == 0 && bytes > 0 { self.clone_file(seen, segment).map_err(fail)? } else { None };
        let is_clone = cloned.is_some();
        let sparse = has_holes(&seen.file, from..seen.len).map_err(fail)?;
        let (source, sink) = match &cloned {
            Some(clone) => (clone, None),
            None => {
                self.check_room(if sparse { bytes.min(room_of(&seen.file).map_err(fail)?) } else { bytes })?;
                let sink = self.dir.create(segment).and_then(|file| Sink::over(file, bytes, sparse)).map_err(fail)?;
                (&seen.file, Some(sink))
            }
        };
        let mut at = from;
        while at < seen.len {
            self.read(name, source, at..seen.len, sparse)?;
            let read = self.block.bytes();
            known.add(read);
            // What the base holds is in there already.
            let new = content.bytes().saturating_sub(at).min(read.len() as u64) as usize;
            content.add(&read[new..]);
            if from > 0 {
                part.add(read);
            }
            let len = read.len() as u64;
            if let Some(sink) = &sink {
                sink.write_at(&mut self.block, at - from).map_err(fail)?;
            }
            at += len;
            self.step(name, at);
        }
        if from == 0 {
            part = content.clone();
        }
        let file = match (sink, cloned) {
            (Some(sink), _) => sink.end().map_err(fail)?,
            (None, cloned) => Copied::clone_of_another(cloned.expect("one of both")),
        };
        if !known.fits() {
            return Ok(None);
        }
        if !is_clone {
            self.copied_bytes += bytes;
        }
        self.unsynced.copied(path, file, bytes)?;
        Ok(Some(Segment { name: segment.to_owned(), bytes, sha256: part.sha256() }))
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

    /// Fills the block with the first bytes of `range` in `file`; `sparse`: of a file with holes, which are not read.
    fn read(&mut self, name: &str, file: &File, range: Range<u64>, sparse: bool) -> Result<(), SnapshotError> {
        let at = range.start;
        let filled = self.block.fill(range.end - at, |buf| {
            if sparse && data_in(file, at..at + buf.len() as u64)?.is_none() {
                buf.fill(0);
                return Ok(());
            }
            read_exact_at(file, buf, at)
        });
        filled.map_err(|e| {
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
}

/// How many bytes a file takes on its disk.
fn room_of(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.blocks() * 512)
}

/// Are these bytes, one after the other, what the parts hold?
struct Known<'a> {
    segments: std::slice::Iter<'a, Segment>,
    now: Option<(&'a Segment, Hash, u64)>,
    fits: bool,
}

impl<'a> Known<'a> {
    fn new(segments: &'a [Segment]) -> Known<'a> {
        Known { segments: segments.iter(), now: None, fits: true }
    }

    fn add(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let next = || self.segments.next().map(|segment| (segment, Hash::new(), segment.bytes));
            let Some((segment, mut hash, left)) = self.now.take().or_else(next) else { return };
            let (now, later) = bytes.split_at(bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
            hash.add(now);
            match left - now.len() as u64 {
                0 => self.fits &= hash.sha256() == segment.sha256,
                left => self.now = Some((segment, hash, left)),
            }
            bytes = later;
        }
    }

    fn fits(&self) -> bool {
        self.fits && self.now.is_none()
    }
}
