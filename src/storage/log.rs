//! `Log`: make one group of lines durable in a domain's file, or leave the file as it was.
//!
//! The caller takes the domain's lock with [`Log::try_lock`], appends, and releases it. Descriptors
//! stay open between groups; every append first proves that they still stand for the names.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::disk::{Disk, FileId, FileKind};
use super::error::StoreError;
use super::hard_links::HardLinks;
use super::layout::FileNames;
use super::marker;
use super::pieces::Pieces;
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
    /// The lock is taken.
    locked: bool,
    data: Option<Data<D::File>>,
    /// Moved aside by the last append, also if that failed afterwards.
    torn_bytes: Option<u64>,
    open: OpenFiles,
}

struct Opened<F> {
    file: F,
    id: FileId,
    _counted: OpenToken,
}

struct Data<F> {
    open: Arc<DataFile<F>>,
    /// Length after our last append, which ended in a newline. `None`: look at the tail first.
    known_len: Option<u64>,
    /// What was appended since the last sync ([`SyncWhen::Later`] only).
    unsynced: Option<Range<u64>>,
}

/// An open data file, shared by the writer and by whoever syncs what it wrote.
struct DataFile<F> {
    file: F,
    id: FileId,
    /// The directory was synced since this file was opened, so its entry is durable.
    entry_synced: AtomicBool,
    /// Up to here a look after a sync has found that every byte has a place on the disk, and nobody has cut the file
    /// since. 0: nobody has looked.
    placed_to: AtomicU64,
}

/// Lines that [`Log::write`] has put into the file and nobody has synced yet. The lock is to be held
/// until somebody has.
pub(crate) struct Afloat<F> {
    open: Arc<DataFile<F>>,
    /// Where they stand in the file.
    range: Range<u64>,
    /// What stands before them is ours, and its write-back was begun or is over.
    behind_ours: bool,
    started: Instant,
    pub(crate) write: Duration,
    /// Somebody else wrote to the file, or replaced it, since our last append.
    pub(crate) foreign: bool,
}

/// What stands at the end of a file.
#[derive(Default)]
struct Found {
    /// Where to write.
    len: u64,
    /// The last line is whole, but not ended.
    lacks_newline: bool,
    /// The last line is one that we have written through the file that is open.
    is_ours: bool,
    /// As in [`Appended`].
    foreign: bool,
}

impl Found {
    /// What is to be written there.
    fn bufs<'a>(&self, lines: &'a [&'a [u8]]) -> impl Iterator<Item = &'a [u8]> {
        let newline: &[&[u8]] = if self.lacks_newline { &[b"\n"] } else { &[] };
        newline.iter().chain(lines).copied()
    }
}

/// What became of [`Log::write`].
pub(crate) enum Write<F> {
    Afloat(Afloat<F>),
    /// The file is not as the last append left it, and nobody may look closer while something is afloat.
    /// Nothing was written.
    NotCalm,
    /// Something may be written, and is to be taken back by [`Log::take_back`] when no sync is under way.
    Failed(FailedWrite),
}

/// A write that failed or was short.
pub(crate) struct FailedWrite {
    len: u64,
    end: u64,
    cause: io::Error,
}

/// What all logs of a data directory have open: files of how many domains, and which name writes a file with several.
#[derive(Debug, Clone, Default)]
pub(crate) struct OpenFiles {
    domains: Arc<AtomicUsize>,
    hard_links: HardLinks,
}

/// Counts as one until dropped.
struct OpenToken(Arc<AtomicUsize>);

impl OpenFiles {
    pub(crate) fn get(&self) -> usize {
        self.domains.load(Ordering::Relaxed)
    }

    fn token(&self) -> OpenToken {
        self.domains.fetch_add(1, Ordering::Relaxed);
        OpenToken(self.domains.clone())
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
    /// Now, and after each piece of so many bytes, so that others get their turn at the disk.
    NowInPieces(usize),
    Later,
}

impl SyncWhen {
    fn piece_bytes_max(self) -> usize {
        match self {
            SyncWhen::NowInPieces(bytes) => bytes,
            SyncWhen::Now | SyncWhen::Later => usize::MAX,
        }
    }
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
    pub(crate) fn new(names: FileNames, open: OpenFiles) -> Self {
        Log { names, lock: None, locked: false, data: None, torn_bytes: None, open }
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
        self.locked = false;
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
                    self.locked = true;
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
        self.locked = false;
        if let Some(lock) = self.lock.take()
            && disk.unlock(&lock.file).is_ok()
        {
            self.lock = Some(lock);
        }
    }

    /// Was the lock taken, and not released since?
    pub(crate) fn is_locked(&self) -> bool {
        self.locked
    }

    /// Closes both files, and with the lock file any lock on it.
    pub(crate) fn close(&mut self) {
        self.lock = None;
        self.locked = false;
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
        self.data.as_ref().map(|data| data.open.id)
    }

    /// Writes whole lines under the lock with one write, and leaves the sync to [`Afloat::sync`]. `calm`:
    /// nothing is afloat. Only then it looks closer at a file that is not as the last append left it.
    ///
    /// # Errors
    /// Nothing was written; or the domain must be poisoned, see [`StoreError::written`].
    pub(crate) fn write(&mut self, disk: &D, lines: &[&[u8]], calm: bool) -> Result<Write<D::File>, StoreError> {
        let found = match self.known_end(disk)? {
            Some(len) => Found { len, is_ours: true, ..Found::default() },
            None if calm => self.find_end(disk)?,
            None => return Ok(Write::NotCalm),
        };
        let data = self.data.as_mut().expect("its end is known, so it is open");
        let bufs: Vec<io::IoSlice<'_>> = found.bufs(lines).map(io::IoSlice::new).collect();
        let bytes: usize = bufs.iter().map(|buf| buf.len()).sum();
        look_for_room(disk, bytes)?;
        data.known_len = None;
        let (len, end) = (found.len, found.len + bytes as u64);
        let started = Instant::now();
        let cause = match disk.append(&data.open.file, &bufs) {
            Ok(n) if n == bytes => {
                data.known_len = Some(end);
                let write = started.elapsed();
                return Ok(Write::Afloat(Afloat {
                    open: data.open.clone(),
                    range: len..end,
                    behind_ours: found.is_ours,
                    started,
                    write,
                    foreign: found.foreign,
                }));
            }
            // A short write is how a full disk shows first on ext4 and tmpfs.
            Ok(_) => io::ErrorKind::WriteZero.into(),
            Err(e) => e,
        };
        Ok(Write::Failed(FailedWrite { len, end, cause }))
    }

    /// The end of the file, if it is as the last append left it.
    fn known_end(&self, disk: &D) -> Result<Option<u64>, StoreError> {
        let Some((data, len)) = self.data.as_ref().and_then(|data| Some((data, data.known_len?))) else {
            return Ok(None);
        };
        let stat = disk.stat(&self.names.data).map_err(|e| StoreError::io("stat data file", e))?;
        let same =
            stat.is_some_and(|s| s.id == data.open.id && s.len == len && s.kind == FileKind::Regular && !s.other_names);
        Ok(same.then_some(len))
    }

    /// The end of the file that the name stands for now: opens it, looks at its tail and repairs that, as need be.
    fn find_end(&mut self, disk: &D) -> Result<Found, StoreError> {
        let mut found = Found::default();
        found.len = self.current_data(disk, &mut found.foreign)?;
        let data = self.data.as_mut().expect("current_data opened it");
        if data.known_len == Some(found.len) {
            return Ok(found);
        }
        found.foreign |= data.known_len.is_some();
        data.known_len = None;
        // What others have written may have no place yet.
        data.open.placed_to.store(0, Ordering::Release);
        match tail::inspect(disk, &data.open.file, found.len).map_err(|e| StoreError::io("read tail", e))? {
            Tail::Clean => {}
            Tail::Whole => found.lacks_newline = true,
            Tail::Torn { sound_len } => {
                tail::keep_torn(disk, &data.open.file, &self.names.data, sound_len, found.len)
                    .map_err(|e| StoreError::io("keep torn tail", e))?;
                data.open.cut(disk, sound_len).map_err(|e| StoreError::io("cut torn tail", e))?;
                self.torn_bytes = Some(found.len - sound_len);
                found.len = sound_len;
            }
        }
        Ok(found)
    }

    /// Takes a failed [`Log::write`] back, and says why it failed. Nothing may be afloat: a sync of the cut
    /// must not hide that another one failed.
    pub(crate) fn take_back(&self, disk: &D, failed: FailedWrite) -> StoreError {
        let data = self.data.as_ref().expect("a write failed, so the file is open");
        data.take_back(disk, failed.len, failed.end, SyncWhen::Now, failed.cause)
    }

    /// Cuts off what could not be synced, and all that was written after it, if that may still be done
    /// under the lock that it was written under.
    ///
    /// Which pages reached the disk is unknown (see durability.md). Cutting them off takes no doubt
    /// away, so its result does not matter; it only keeps readers from lines that nobody acknowledged.
    pub(crate) fn cut_off(&mut self, disk: &D, afloat: &Afloat<D::File>) {
        let Some(data) = self.data.as_mut().filter(|data| self.locked && Arc::ptr_eq(&data.open, &afloat.open)) else {
            return;
        };
        data.known_len = None;
        // If somebody has cut it shorter, it must not grow again.
        if disk.fstat(&data.open.file).is_ok_and(|stat| stat.len > afloat.range.start) {
            let _ = data.open.cut(disk, afloat.range.start);
        }
    }

    /// Appends whole lines under the lock, with one write unless they go in pieces. After `Ok` they
    /// are on the disk, and so is the file's name, but with [`SyncWhen::Later`].
    ///
    /// # Errors
    /// As [`StoreError::written`] says: either the file is as it was, or the domain must be
    /// poisoned. A sync counts only as long as `is_sound` says so after it.
    pub(crate) fn append(
        &mut self,
        disk: &D,
        lines: &[&[u8]],
        when: SyncWhen,
        is_sound: impl Fn() -> bool,
    ) -> Result<Appended, StoreError> {
        let found = self.find_end(disk)?;
        let mut appended = Appended { foreign: found.foreign, ..Appended::default() };
        let len = found.len;
        let data = self.data.as_mut().expect("find_end opened it");
        let bufs: Vec<&[u8]> = found.bufs(lines).collect();
        look_for_room(disk, bufs.iter().map(|buf| buf.len()).sum())?;
        data.known_len = None;
        let mut end = len;
        let mut pieces = Pieces::new(&bufs, when.piece_bytes_max());
        // A repair may have nothing to write, but its cut to sync.
        let mut next = Some(pieces.next().unwrap_or_default());
        while let Some(piece) = next {
            let started = Instant::now();
            let bytes: usize = piece.iter().map(|buf| buf.len()).sum();
            end += bytes as u64;
            match disk.append(&data.open.file, &piece) {
                Ok(n) if n == bytes => {}
                // A short write is how a full disk shows first on ext4 and tmpfs.
                Ok(_) => return Err(data.take_back(disk, len, end, when, io::ErrorKind::WriteZero.into())),
                Err(e) => return Err(data.take_back(disk, len, end, when, e)),
            }
            let wrote = Instant::now();
            appended.write += wrote - started;
            if when != SyncWhen::Later {
                let sound = || if is_sound() { Ok(()) } else { Err(StoreError::InDoubt) };
                if let Err(error) = data.open.sync(disk, end - bytes as u64..end).and_then(|()| sound()) {
                    // Which pages reached the disk is unknown (see durability.md). Cutting them off
                    // takes no doubt away, so its result does not matter; it only keeps readers from
                    // lines that nobody acknowledged.
                    let _ = data.open.cut(disk, len);
                    return Err(error);
                }
                let sync = wrote.elapsed();
                appended.sync += sync;
                pieces.synced(sync);
            }
            next = pieces.next();
        }
        if when == SyncWhen::Later {
            // Somebody may have cut it shorter than it was.
            let start = data.unsynced.take().map_or(len, |unsynced| unsynced.start.min(len));
            data.unsynced = Some(start..end);
        }
        data.known_len = Some(end);
        Ok(appended)
    }

    /// Is there anything that [`Self::sync`] has to sync?
    pub(crate) fn is_unsynced(&self) -> bool {
        self.data.as_ref().is_some_and(|data| data.unsynced.is_some())
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
    fn current_data(&mut self, disk: &D, foreign: &mut bool) -> Result<u64, StoreError> {
        let stat = disk.stat(&self.names.data).map_err(|e| StoreError::io("stat data file", e))?;
        match stat.map(|s| s.kind) {
            // compat: any symbolic link is an invalid domain to the client.
            Some(FileKind::Symlink) => return Err(StoreError::Symlink),
            Some(FileKind::Other) => return Err(not_regular()),
            Some(FileKind::Regular) | None => {}
        }
        if let Some(stat) = stat.filter(|stat| stat.other_names) {
            self.check_links(disk, stat.id)?;
        }
        if let (Some(stat), Some(data)) = (stat, &self.data)
            && stat.id == data.open.id
        {
            return Ok(stat.len);
        }
        if let Some(reason) = self.doubt(disk, stat.map(|stat| stat.id))? {
            return Err(StoreError::Poisoned { reason });
        }
        *foreign = self.data.is_some();
        if let Some(moved_away) = self.data.as_mut().filter(|data| data.unsynced.is_some()) {
            // Acknowledged lines went with it; nobody will sync that file later.
            moved_away.sync(disk)?;
        }
        let file = disk.open_data(&self.names.data).map_err(|e| StoreError::io("open data file", e))?;
        let stat = disk.fstat(&file).map_err(|e| StoreError::io("stat data file", e))?;
        if stat.kind != FileKind::Regular {
            return Err(not_regular());
        }
        let open = Arc::new(DataFile {
            file,
            id: stat.id,
            entry_synced: AtomicBool::new(false),
            placed_to: AtomicU64::new(0),
        });
        self.data = Some(Data { open, known_len: None, unsynced: None });
        Ok(stat.len)
    }
}

impl<D: Disk> Log<D> {
    /// Does another name of the data directory write this file, which has several?
    fn check_links(&self, disk: &D, id: FileId) -> Result<(), StoreError> {
        let fail = |e| StoreError::io("open data file", e);
        match self.open.hard_links.other_writer(disk, id, &self.names.data).map_err(fail)? {
            None => Ok(()),
            Some(other) => Err(fail(io::Error::other(format!("it is the same file as {other}, by a hard link")))),
        }
    }

    /// Why the file that the name stands for is in doubt, by the mark that another process left, or this one
    /// before it closed the file. `None` as the identity: no file is there, and then any mark is about it.
    fn doubt(&self, disk: &D, file: Option<FileId>) -> Result<Option<&'static str>, StoreError> {
        match marker::read(disk, &self.names.data) {
            Ok(None) => Ok(None),
            Ok(Some(mark)) if file.is_none_or(|file| mark.is_about(file)) => Ok(Some(mark.label())),
            Ok(Some(_)) => {
                // The file was replaced while nobody looked. A mark that stays would be about the next file, once
                // this one is moved away. If it cannot be removed, so it is.
                let _ = marker::remove(disk, &self.names.data);
                Ok(None)
            }
            Err(e) if marker::is_unreadable(&e) => Ok(Some("unknown")),
            Err(e) => Err(StoreError::io("read poison mark", e)),
        }
    }
}

impl<F> DataFile<F> {
    /// Cuts the file to `len` bytes.
    fn cut<D: Disk<File = F>>(&self, disk: &D, len: u64) -> io::Result<()> {
        self.placed_to.fetch_min(len, Ordering::AcqRel);
        disk.set_len(&self.file, len)
    }

    /// Makes everything in the file durable. `unsynced`: what has not been synced before.
    fn sync<D: Disk<File = F>>(&self, disk: &D, unsynced: Range<u64>) -> Result<(), StoreError> {
        disk.sync_data(&self.file).map_err(|e| StoreError::sync("sync data file", e))?;
        self.check_stored(disk, unsynced)?;
        if !self.entry_synced.load(Ordering::Acquire) {
            disk.sync_root().map_err(|e| StoreError::sync("sync data directory", e))?;
            self.entry_synced.store(true, Ordering::Release);
        }
        disk.check_alive(&self.file).map_err(|e| StoreError::sync("look at the file system after a sync", e))
    }

    /// Proves that nobody has thrown away what was written to `range` and then synced.
    ///
    /// Lines that end in a block that was found on the disk before cannot be without a place, and what goes wrong with
    /// a block that is there, each sync is told. For them it is enough that nobody has cut the file.
    fn check_stored<D: Disk<File = F>>(&self, disk: &D, range: Range<u64>) -> Result<(), StoreError> {
        let end = range.end;
        let placed_to = self.placed_to.load(Ordering::Acquire);
        let looked = if end <= placed_to.next_multiple_of(disk.block_bytes()) {
            disk.check_length(&self.file, end)
        } else {
            disk.check_stored(&self.file, range)
        };
        looked.map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => StoreError::rollback("check length", cut_by_others()),
            _ => StoreError::sync("look for the synced lines", e),
        })?;
        self.placed_to.fetch_max(end, Ordering::AcqRel);
        Ok(())
    }
}

impl<F> Afloat<F> {
    /// Makes these lines, and those `before` them in their file, durable.
    ///
    /// # Errors
    /// [`StoreError::poisons`]: the domain must be poisoned.
    pub(crate) fn sync<D: Disk<File = F>>(&self, disk: &D, before: &Afloat<F>) -> Result<(), StoreError> {
        self.open.sync(disk, before.range.start..self.range.end)
    }

    /// Proves that a sync of the whole file system has made these lines, and those `before` them, durable.
    ///
    /// # Errors
    /// As [`Afloat::sync`].
    pub(crate) fn check_stored<D: Disk<File = F>>(&self, disk: &D, before: &Afloat<F>) -> Result<(), StoreError> {
        self.open.check_stored(disk, before.range.start..self.range.end)
    }

    /// Has the disk begin with these lines, because their sync may come later than at once. `behind`: there are
    /// lines before them that are not synced either.
    ///
    /// # Errors
    /// As [`Afloat::sync`].
    pub(crate) fn begin_writeback<D: Disk<File = F>>(&self, disk: &D, behind: bool) -> Result<(), StoreError> {
        if self.may_want_blocks(disk.block_bytes()) {
            disk.begin_writeback(&self.open.file, self.range.start)
                .map_err(|e| StoreError::sync("start to write data file", e))?;
        }
        if behind {
            self.check_before(disk).map_err(|e| StoreError::sync("look at the lines before", e))?;
        }
        Ok(())
    }

    /// May the file system have to find a block for them? Not if they stay in the block in which lines of ours end: that
    /// was found for those. Then there is no failure that only a start of the write-back is told. What others have
    /// written may have no block yet, and a small file may not even have its first (`inline_data` of ext4).
    fn may_want_blocks(&self, block_bytes: u64) -> bool {
        let Range { start, end } = self.range;
        !self.behind_ours || start < block_bytes || end > start.next_multiple_of(block_bytes)
    }

    /// Lines that were thrown away before these were written leave zeros there, and no hole any more.
    fn check_before<D: Disk<File = F>>(&self, disk: &D) -> io::Result<()> {
        let Some(last) = self.range.start.checked_sub(1) else { return Ok(()) };
        let mut byte = [0];
        tail::read_exact(disk, &self.open.file, &mut byte, last)?;
        if byte == *b"\n" { Ok(()) } else { Err(io::Error::other("they are gone")) }
    }

    /// Somebody has synced the whole file system.
    pub(crate) fn was_synced(&self) {
        self.open.entry_synced.store(true, Ordering::Release);
    }

    /// Which file they are in.
    pub(crate) fn file_id(&self) -> FileId {
        self.open.id
    }

    /// When their write began.
    pub(crate) fn started(&self) -> Instant {
        self.started
    }
}

impl<F> Data<F> {
    fn sync<D: Disk<File = F>>(&mut self, disk: &D) -> Result<(), StoreError> {
        match self.open.sync(disk, self.unsynced.clone().unwrap_or_default()) {
            // Somebody has cut the file since. Nobody waits for an answer that would say otherwise.
            Ok(()) | Err(StoreError::Rollback { .. }) => {}
            Err(error) => return Err(error),
        }
        self.unsynced = None;
        Ok(())
    }

    /// After a failed or short write up to `end`: cuts the file back to `len` and says why the write
    /// failed.
    fn take_back<D: Disk<File = F>>(
        &self,
        disk: &D,
        len: u64,
        end: u64,
        when: SyncWhen,
        cause: io::Error,
    ) -> StoreError {
        let now = match disk.fstat(&self.open.file) {
            Ok(stat) => stat.len,
            Err(e) => return StoreError::rollback("stat data file", e),
        };
        if now != len {
            if now < len || now > end {
                return StoreError::rollback("check length", cut_by_others());
            }
            if let Err(e) = self.open.cut(disk, len) {
                return StoreError::rollback("cut data file", e);
            }
            if when != SyncWhen::Later
                && let Err(e) = disk.sync_data(&self.open.file)
            {
                return StoreError::sync("sync data file after roll-back", e);
            }
        }
        StoreError::io("write data file", cause)
    }
}

impl FailedWrite {
    /// It cannot be taken back.
    pub(crate) fn in_doubt(self) -> StoreError {
        StoreError::rollback("write data file", self.cause)
    }
}

fn look_for_room<D: Disk>(disk: &D, bytes: usize) -> Result<(), StoreError> {
    if bytes > ROOM_ASKED_ABOVE && disk.room().is_some_and(|room| room < bytes as u64) {
        return Err(StoreError::io("look for room", io::ErrorKind::StorageFull.into()));
    }
    Ok(())
}

fn cut_by_others() -> io::Error {
    io::Error::other("somebody wrote without the lock")
}

fn not_regular() -> StoreError {
    StoreError::io("open data file", io::Error::other("data file is not a regular file"))
}
