//! `Unsynced`: files that are written and not yet on the disk, a few at a time.

use std::fs::File;
use std::path::PathBuf;
use std::time::Instant;

use super::copy::Copied;
use super::directory::Directory;
use super::error::SnapshotError;
use crate::storage::disk::RealDisk;
use crate::storage::whole_sync::WholeSync;

/// How many, and how large. Few, so that the service keeps its descriptors, and nobody waits long for one sync.
const FILES_MAX: usize = 64;
const BYTES_MAX: u64 = 4 << 20;
/// So few are synced one by one.
const TOGETHER_MIN: usize = 4;

enum Written {
    Copied(Copied),
    /// By somebody else, of the data directory.
    Source(File),
}

pub(super) struct Unsynced {
    files: Vec<(PathBuf, Written)>,
    bytes: u64,
    /// One sync for all of them, where the file system can do that and little else waits for the disk.
    whole: Option<WholeSync>,
    dev: u64,
    since: Instant,
}

impl Unsynced {
    /// For files on the file system of `dir`.
    pub(super) fn new(dir: &Directory) -> Result<Unsynced, SnapshotError> {
        let dev = dir.id().map_err(|e| SnapshotError::io("look at", dir.path(), e))?.dev;
        Ok(Unsynced { files: Vec::new(), bytes: 0, whole: dir.whole_sync(), dev, since: Instant::now() })
    }

    /// A file that was written.
    pub(super) fn copied(&mut self, path: PathBuf, file: Copied, bytes: u64) -> Result<(), SnapshotError> {
        if file.needs_own_sync() {
            return file.sync().map_err(|e| SnapshotError::io("sync", path, e));
        }
        self.bytes += bytes;
        self.push(path, Written::Copied(file))
    }

    /// A file that somebody else wrote, of the data directory.
    pub(super) fn source(&mut self, disk: &RealDisk, name: &str, file: File) -> Result<(), SnapshotError> {
        let path = disk.root().join(name);
        let dev = rustix::fs::fstat(&file).map_err(|e| SnapshotError::io("look at", &path, e.into()))?.st_dev;
        if dev == self.dev && self.whole.is_some() {
            return self.push(path, Written::Source(file));
        }
        file.sync_data().map_err(|e| SnapshotError::io("sync", path, e))
    }

    fn push(&mut self, path: PathBuf, file: Written) -> Result<(), SnapshotError> {
        if self.files.is_empty() {
            self.since = Instant::now();
        }
        self.files.push((path, file));
        if self.files.len() >= FILES_MAX || self.bytes >= BYTES_MAX { self.sync() } else { Ok(()) }
    }

    /// Syncs all of them.
    pub(super) fn sync(&mut self) -> Result<(), SnapshotError> {
        let together = self.files.len() >= TOGETHER_MIN
            && self.whole.as_ref().is_some_and(|whole| whole.is_worth_it() && whole.sync(self.since));
        for (path, file) in self.files.drain(..) {
            let done = match &file {
                Written::Copied(copied) if together => copied.check(),
                Written::Copied(copied) => copied.sync(),
                Written::Source(_) if together => Ok(()),
                Written::Source(file) => file.sync_data(),
            };
            done.map_err(|e| SnapshotError::io("sync", path, e))?;
        }
        self.bytes = 0;
        Ok(())
    }
}
