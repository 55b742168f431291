//! `Log`: make one group of lines durable in a domain's file, or leave the file as it was.
//!
//! The caller takes the domain's lock with [`Log::try_lock`], appends, and releases it. Descriptors
//! stay open between groups; every append first proves that they still stand for the names.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::disk::{Disk, FileId, FileKind};
use super::error::StoreError;
use super::layout::FileNames;
use super::tail::{self, Tail};

/// How often a lock file may vanish under us before that is an error.
const LOCK_REOPENS_MAX: usize = 16;

/// Most buffers in one append: `IOV_MAX` is 1024 on Linux, and a repair may add one.
pub(crate) const GROUP_JOBS_MAX: usize = 1000;

/// Largest write that is tried without asking for room: a block, of which the file may have a part
/// left.
const ROOM_ASKED_ABOVE: usize = 4096;

/// The open files of one domain.
pub(crate) struct Log<D: Disk> {
    names: FileNames,
    lock: Option<Opened<D::File>>,
    data: Option<Data<D::File>>,
    /// Moved aside by the last append, also if that failed afterwards.
    torn_bytes: Option<u64>,
    open: OpenCount,
}

struct Opened<F> {
    file: F,
    id: FileId,
    _counted: OpenToken,
}

struct Data<F> {
    file: F,
    id: FileId,
    /// Length after our last append, which ended in a newline. `None`: look at the tail first.
    known_len: Option<u64>,
    /// The directory was synced since this file was opened, so its entry is durable.
    entry_synced: bool,
    /// Appended since the last sync.
    unsynced: bool,
}

/// How many domains have files open, over all logs.
#[derive(Debug, Clone, Default)]
pub(crate) struct OpenCount(Arc<AtomicUsize>);

/// Counts as one until dropped.
struct OpenToken(Arc<AtomicUsize>);

impl OpenCount {
    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn token(&self) -> OpenToken {
        self.0.fetch_add(1, Ordering::Relaxed);
        OpenToken(self.0.clone())
    }
}

impl Drop for OpenToken {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Sync now, before the group is acknowledged, or leave that to a later [`Log::sync`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SyncWhen {
    Now,
    Later,
}

/// What an append found and took.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Appended {
    /// Somebody else wrote to the file, or replaced it, since our last append.
    pub foreign: bool,
    pub write: Duration,
    pub sync: Duration,
}

impl<D: Disk> Log<D> {
    pub(crate) fn new(names: FileNames, open: OpenCount) -> Self {
        Log { names, lock: None, data: None, torn_bytes: None, open }
    }

    /// Takes the lock if it is free. Never waits.
    ///
    /// compat: Python's filelock 3.20.4 to 3.29.4 unlinks the lock file on release, so the lock
    /// only counts if the name still leads to the file that was locked. The name is looked up by
    /// the path of the data directory, so the same look tells whether that is still in place.
    ///
    /// # Errors
    /// [`StoreError::Io`] or [`StoreError::Full`]; nothing was written.
    pub(crate) fn try_lock(&mut self, disk: &D) -> Result<bool, StoreError> {
        for _ in 0..LOCK_REOPENS_MAX {
            let lock = match self.lock.take() {
                Some(lock) => lock,
                None => self.open_lock(disk)?,
            };
            if !disk.try_lock(&lock.file).map_err(|e| StoreError::io("lock", e))? {
                return Ok(false);
            }
            match disk.stat_by_path(&self.names.lock).map_err(|e| StoreError::io("stat lock file", e))? {
                Some(stat) if stat.id == lock.id => {
                    self.lock = Some(lock);
                    return Ok(true);
                }
                _ => drop(lock),
            }
        }
        Ok(false)
    }

    fn open_lock(&self, disk: &D) -> Result<Opened<D::File>, StoreError> {
        disk.check_root().map_err(|e| StoreError::io("check data directory", e))?;
        let file = disk.open_lock(&self.names.lock).map_err(|e| StoreError::io("open lock file", e))?;
        let stat = disk.fstat(&file).map_err(|e| StoreError::io("stat lock file", e))?;
        if stat.kind != FileKind::Regular {
            return Err(StoreError::io("open lock file", io::Error::other("lock file is not a regular file")));
        }
        Ok(Opened { file, id: stat.id, _counted: self.open.token() })
    }

    /// Releases the lock. If that fails the descriptor is closed, which releases it too.
    pub(crate) fn unlock(&mut self, disk: &D) {
        if let Some(lock) = self.lock.take()
            && disk.unlock(&lock.file).is_ok()
        {
            self.lock = Some(lock);
        }
    }

    /// Closes both files, and with the lock file any lock on it.
    pub(crate) fn close(&mut self) {
        self.lock = None;
        self.data = None;
    }

    /// Bytes of a torn tail that were moved aside since the last look.
    pub(crate) fn take_torn_bytes(&mut self) -> Option<u64> {
        self.torn_bytes.take()
    }

    /// Name of the lock file.
    pub(crate) fn lock_name(&self) -> &str {
        &self.names.lock
    }

    /// Identity of the data file, if it is open.
    pub(crate) fn data_id(&self) -> Option<FileId> {
        self.data.as_ref().map(|data| data.id)
    }

    /// Appends whole lines with one write, under the lock. After `Ok` with [`SyncWhen::Now`] they
    /// are on the disk, and so is the file's name.
    ///
    /// # Errors
    /// As [`StoreError::written`] says: either the file is as it was, or the domain must be
    /// poisoned.
    pub(crate) fn append(&mut self, disk: &D, lines: &[&[u8]], when: SyncWhen) -> Result<Appended, StoreError> {
        let mut appended = Appended::default();
        let mut len = self.current_data(disk, &mut appended)?;
        let names = &self.names;
        let data = self.data.as_mut().expect("current_data opened it");
        let mut bufs = Vec::with_capacity(lines.len() + 1);
        if data.known_len != Some(len) {
            appended.foreign |= data.known_len.is_some();
            data.known_len = None;
            match tail::inspect(disk, &data.file, len).map_err(|e| StoreError::io("read tail", e))? {
                Tail::Clean => {}
                Tail::Whole => bufs.push(IoSlice::new(b"\n")),
                Tail::Torn { sound_len } => {
                    tail::keep_torn(disk, &data.file, &names.data, sound_len, len)
                        .map_err(|e| StoreError::io("keep torn tail", e))?;
                    disk.set_len(&data.file, sound_len).map_err(|e| StoreError::io("cut torn tail", e))?;
                    self.torn_bytes = Some(len - sound_len);
                    len = sound_len;
                }
            }
        }
        bufs.extend(lines.iter().map(|line| IoSlice::new(line)));
        let total: usize = bufs.iter().map(|buf| buf.len()).sum();

        if total > ROOM_ASKED_ABOVE && disk.room().is_some_and(|room| room < total as u64) {
            return Err(StoreError::io("look for room", io::ErrorKind::StorageFull.into()));
        }
        let started = Instant::now();
        data.known_len = None;
        match disk.append(&data.file, &bufs) {
            Ok(n) if n == total => {}
            // A short write is how a full disk shows first on ext4 and tmpfs.
            Ok(_) => return Err(data.take_back(disk, len, total, when, io::ErrorKind::WriteZero.into())),
            Err(e) => return Err(data.take_back(disk, len, total, when, e)),
        }
        let wrote = Instant::now();
        appended.write = wrote - started;
        if when == SyncWhen::Now {
            if let Err(error) = data.sync(disk) {
                // Which pages reached the disk is unknown (see durability.md). Cutting them off
                // takes no doubt away, so its result does not matter; it only keeps readers from
                // lines that nobody acknowledged.
                let _ = disk.set_len(&data.file, len);
                return Err(error);
            }
            appended.sync = wrote.elapsed();
        }
        data.unsynced = when == SyncWhen::Later;
        data.known_len = Some(len + total as u64);
        Ok(appended)
    }

    /// Makes everything appended so far durable.
    ///
    /// # Errors
    /// [`StoreError::Sync`]: the domain must be poisoned.
    pub(crate) fn sync(&mut self, disk: &D) -> Result<(), StoreError> {
        match &mut self.data {
            Some(data) => data.sync(disk),
            None => Ok(()),
        }
    }

    /// Length of the data file that the name stands for now, opening it if need be.
    fn current_data(&mut self, disk: &D, appended: &mut Appended) -> Result<u64, StoreError> {
        let stat = disk.stat(&self.names.data).map_err(|e| StoreError::io("stat data file", e))?;
        match stat.map(|s| s.kind) {
            // compat: any symbolic link is an invalid domain to the client.
            Some(FileKind::Symlink) => return Err(StoreError::Symlink),
            Some(FileKind::Other) => return Err(not_regular()),
            Some(FileKind::Regular) | None => {}
        }
        if let (Some(stat), Some(data)) = (stat, &self.data)
            && stat.id == data.id
        {
            return Ok(stat.len);
        }
        appended.foreign = self.data.is_some();
        if let Some(moved_away) = self.data.as_mut().filter(|data| data.unsynced) {
            // Acknowledged lines went with it; nobody will sync that file later.
            moved_away.sync(disk)?;
        }
        let file = disk.open_data(&self.names.data).map_err(|e| StoreError::io("open data file", e))?;
        let stat = disk.fstat(&file).map_err(|e| StoreError::io("stat data file", e))?;
        if stat.kind != FileKind::Regular {
            return Err(not_regular());
        }
        self.data = Some(Data { file, id: stat.id, known_len: None, entry_synced: false, unsynced: false });
        Ok(stat.len)
    }
}

impl<F> Data<F> {
    fn sync<D: Disk<File = F>>(&mut self, disk: &D) -> Result<(), StoreError> {
        disk.sync_data(&self.file).map_err(|e| StoreError::sync("sync data file", e))?;
        if !self.entry_synced {
            disk.sync_root().map_err(|e| StoreError::sync("sync data directory", e))?;
            self.entry_synced = true;
        }
        self.unsynced = false;
        Ok(())
    }

    /// After a failed or short write: cuts the file back to `len` and says why the write failed.
    fn take_back<D: Disk<File = F>>(
        &self,
        disk: &D,
        len: u64,
        total: usize,
        when: SyncWhen,
        cause: io::Error,
    ) -> StoreError {
        let now = match disk.fstat(&self.file) {
            Ok(stat) => stat.len,
            Err(e) => return StoreError::rollback("stat data file", e),
        };
        if now != len {
            if now < len || now > len + total as u64 {
                return StoreError::rollback("check length", io::Error::other("somebody wrote without the lock"));
            }
            if let Err(e) = disk.set_len(&self.file, len) {
                return StoreError::rollback("cut data file", e);
            }
            if when == SyncWhen::Now
                && let Err(e) = disk.sync_data(&self.file)
            {
                return StoreError::sync("sync data file after roll-back", e);
            }
        }
        StoreError::io("write data file", cause)
    }
}

fn not_regular() -> StoreError {
    StoreError::io("open data file", io::Error::other("data file is not a regular file"))
}
