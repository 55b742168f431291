//! `Base`: an earlier snapshot, whose parts are linked into a new one.
//!
//! Its manifest is read as a stream, in step with the names of the data directory: both are sorted.

use std::cmp::Ordering;
use std::fs::File;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::directory::Directory;
use super::error::SnapshotError;
use super::manifest::{FileEntry, MANIFEST, Segment, parts_kept, segment_fault};
use super::manifest_lines::ManifestReader;
use super::open_snapshot;
use super::target::Target;
use crate::storage::disk::FileId;
use crate::timestamp::parse_rfc3339;

/// How long before a base a file must have changed last. One that changed shortly before may have changed once more
/// within the same tick of the clock of its file system.
const SETTLED: Duration = Duration::from_secs(3);

/// An earlier snapshot.
pub(super) struct Base {
    pub(super) dir: Directory,
    reader: ManifestReader,
    /// Read, and not yet passed.
    ahead: Option<FileEntry>,
    /// Files that changed before this had rested when it was begun.
    settled_ns: i64,
    /// When its manifest was ended. Parts that changed then, by a clock with ticks, or later, may have been changed by
    /// somebody else.
    finished_ns: i64,
}

impl Base {
    pub(super) fn open(path: &Path, target: &Target) -> Result<Base, SnapshotError> {
        let bad = |e| SnapshotError::BadBase(Box::new(e));
        let dir = open_snapshot(path).map_err(bad)?;
        let reader = ManifestReader::open(&dir).map_err(bad)?;
        let fail = |e| SnapshotError::io("look at", path, e);
        if dir.id().map_err(fail)?.dev != target.parent.id().map_err(fail)?.dev {
            return Err(SnapshotError::OtherFileSystem { base: path.to_owned(), target: target.path.clone() });
        }
        let created = parse_rfc3339(&reader.head().created).and_then(|created| created.checked_sub(SETTLED));
        let settled_ns = created.map_or(i64::MIN, nanoseconds);
        let finished_ns = dir.modified_ns(MANIFEST).map_err(fail)?.unwrap_or(i64::MIN);
        Ok(Base { dir, reader, ahead: None, settled_ns, finished_ns })
    }

    pub(super) fn id(&self) -> &str {
        &self.reader.head().id
    }

    /// Of its manifest.
    pub(super) fn sha256(&self) -> &str {
        self.reader.sha256()
    }

    /// What it holds under this name, which must not stand before one that was asked for.
    pub(super) fn find(&mut self, name: &str) -> Result<Option<FileEntry>, SnapshotError> {
        loop {
            if self.ahead.is_none() {
                self.ahead = self.reader.next().map_err(|e| SnapshotError::BadBase(Box::new(e)))?;
            }
            match self.ahead.as_ref().map(|file| file.name.as_str().cmp(name)) {
                None | Some(Ordering::Greater) => return Ok(None),
                Some(Ordering::Equal) => return Ok(self.ahead.take()),
                Some(Ordering::Less) => self.ahead = None,
            }
        }
    }

    /// Reads the rest of its manifest: only then all of it was looked at.
    pub(super) fn end(self) -> Result<(), SnapshotError> {
        self.reader.end().map(drop).map_err(|e| SnapshotError::BadBase(Box::new(e)))
    }

    /// Is the source as it was when the base was made, and had it rested then? Then it need not be opened.
    pub(super) fn holds(&self, entry: &FileEntry, source: &SourceLook) -> bool {
        FileId::from(entry.source) == source.id
            && entry.source.changed_ns == Some(source.changed_ns)
            && source.changed_ns < self.settled_ns
            && source.len == entry.bytes + entry.torn_tail_bytes
            && parts_kept(&entry.segments, 0) == entry.segments.len()
    }

    /// Are its parts of a file as they were written?
    ///
    /// # Errors
    /// One is missing, or has another length.
    pub(super) fn is_untouched(&self, file: &FileEntry) -> Result<bool, SnapshotError> {
        let mut untouched = true;
        for segment in &file.segments {
            self.look_at(segment)?;
            let path = || self.dir.path_of(&segment.name);
            let changed_ns =
                self.dir.modified_ns(&segment.name).map_err(|e| SnapshotError::io("look at", path(), e))?;
            untouched &= changed_ns.is_some_and(|ns| ns < self.finished_ns);
        }
        Ok(untouched)
    }

    /// Its parts of a file, opened, if they are what the manifest says.
    pub(super) fn segments(&self, file: &FileEntry) -> Result<Vec<File>, SnapshotError> {
        let open = |segment: &Segment| {
            self.look_at(segment)?;
            self.dir.open_read(&segment.name).map_err(|e| SnapshotError::io("open", self.dir.path_of(&segment.name), e))
        };
        file.segments.iter().map(open).collect()
    }

    fn look_at(&self, segment: &Segment) -> Result<(), SnapshotError> {
        let path = || self.dir.path_of(&segment.name);
        let stat = self.dir.stat(&segment.name).map_err(|e| SnapshotError::io("look at", path(), e))?;
        match segment_fault(stat, segment) {
            Some(fault) => Err(self.damaged(fault)),
            None => Ok(()),
        }
    }

    pub(super) fn damaged(&self, reason: impl Into<String>) -> SnapshotError {
        SnapshotError::BadBase(Box::new(SnapshotError::damaged(self.dir.path(), reason)))
    }
}

/// What one look at a source tells.
pub(super) struct SourceLook {
    pub(super) id: FileId,
    pub(super) len: u64,
    pub(super) changed_ns: i64,
}

fn nanoseconds(at: SystemTime) -> i64 {
    at.duration_since(UNIX_EPOCH).map_or(i64::MIN, |since| since.as_nanos().try_into().unwrap_or(i64::MAX))
}
