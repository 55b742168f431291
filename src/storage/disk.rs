//! `Disk`: the seam between the append log and the operating system.
//!
//! [`RealDisk`] is the only place that opens files of the data directory. Everything goes through
//! one directory descriptor with `openat`, so a swapped path component leads nowhere else; the
//! last component is never followed if it is a link. Tests put a faulty disk in its place.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, IoSlice, Read as _, Write};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, FsWord, Mode, OFlags};
use rustix::io::retry_on_intr;

use super::allocated;
use super::holes;
use super::layout::Owner;
use super::probe::{journal_is_alive, probe};
use super::watch::{LockWatch, Wanted};
use super::whole_sync::WholeSync;

/// Identity of a file that survives renames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId {
    pub dev: u64,
    pub ino: u64,
}

/// What kind of thing a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    Regular,
    Symlink,
    Other,
}

/// What the append log asks about a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStat {
    pub id: FileId,
    pub kind: FileKind,
    pub len: u64,
    /// The file has more than one name, in whatever directories.
    pub other_names: bool,
}

/// Free and total bytes of the file system, as an unprivileged process sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    pub free_bytes: u64,
    pub total_bytes: u64,
}

/// The calls that durability stands on. Names are relative to the data directory.
///
/// Every method is one system call or a fixed few, blocks, and is not retried by the caller unless
/// it says so; `EINTR` is handled below, but for syncs, which are never tried again.
pub trait Disk: Send + Sync + 'static {
    /// An open file.
    type File: Send + Sync + 'static;

    /// How many bytes share a block of the file system, at least. Only when a write goes beyond the block in which the file
    /// ended before, a block must be found for it.
    fn block_bytes(&self) -> u64;

    /// Fails while the path of the data directory leads to another directory than the one that was opened,
    /// or to none: a volume was unmounted or mounted over it, or somebody moved or replaced it.
    fn check_root(&self) -> io::Result<()>;
    /// Opens the lock file, creating it empty with mode 0644. Never follows a link.
    fn open_lock(&self, name: &str) -> io::Result<Self::File>;
    /// Opens the data file for reading and appending, creating it with mode 0600. Never follows a
    /// link, never waits for a FIFO.
    fn open_data(&self, name: &str) -> io::Result<Self::File>;
    /// Creates a file that must not exist in the side directory `dir`, which is created if needed.
    fn create_side(&self, dir: &str, name: &str) -> io::Result<Self::File>;
    /// Opens a file of the side directory that is there, for reading and appending. Never follows a link.
    fn open_side(&self, _dir: &str, _name: &str) -> io::Result<Self::File> {
        Err(io::ErrorKind::NotFound.into())
    }
    /// Up to `bytes_max` bytes of a file in the side directory, or as many as can be read; `None` when it is
    /// not there. Never follows a link.
    fn read_side(&self, _dir: &str, _name: &str, _bytes_max: usize) -> io::Result<Option<Vec<u8>>> {
        Ok(None)
    }
    /// The names in a side directory; none when it is not there.
    fn list_side(&self, _dir: &str) -> io::Result<Vec<OsString>> {
        Ok(Vec::new())
    }
    /// Removes what [`Disk::create_side`] made.
    fn remove_side(&self, dir: &str, name: &str) -> io::Result<()>;
    /// `flock(LOCK_EX | LOCK_NB)`: false when somebody else holds it.
    fn try_lock(&self, file: &Self::File) -> io::Result<bool>;
    /// Releases the lock of [`Disk::try_lock`].
    fn unlock(&self, file: &Self::File) -> io::Result<()>;
    /// Has anybody else opened the lock file, and may still wait for it? Leaves the answer of
    /// [`Disk::lock_wanted`] as it is.
    fn lock_looked_at(&self, _name: &str) -> bool {
        false
    }
    /// Has anybody else opened the lock file since the last question?
    fn lock_wanted(&self, _name: &str) -> Wanted {
        Wanted::Unknown
    }
    /// As [`Disk::stat`], but by the path of the data directory instead of the open directory: so
    /// it also tells that the directory is still the one that was opened.
    fn stat_by_path(&self, name: &str) -> io::Result<Option<FileStat>>;
    /// What `name` stands for, links not followed; `None` when there is nothing.
    fn stat(&self, name: &str) -> io::Result<Option<FileStat>>;
    /// What the open file is.
    fn fstat(&self, file: &Self::File) -> io::Result<FileStat>;
    /// Reads up to `buf.len()` bytes at `offset`; 0 at the end.
    fn read_at(&self, file: &Self::File, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// The first part of `range` that is no hole; `None`: all of it is one, and reads as zeros. All of `range` where
    /// nobody knows.
    fn data_in(&self, _file: &Self::File, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        Ok(Some(range).filter(|range| !range.is_empty()))
    }
    /// One `writev` at the end of the file; how many bytes went in, which may be fewer than given.
    fn append(&self, file: &Self::File, bufs: &[IoSlice<'_>]) -> io::Result<usize>;
    /// Cuts the file to `len` bytes, or makes it so long with a hole at its end.
    fn set_len(&self, file: &Self::File, len: u64) -> io::Result<()>;
    /// `fdatasync`: data and the length needed to read it.
    fn sync_data(&self, file: &Self::File) -> io::Result<()>;
    /// Starts the write-back of the bytes from `offset` to the end, which are to be synced soon, and waits for none.
    /// Its error is one of a sync: the bytes may be lost, and no later sync makes up for it.
    fn begin_writeback(&self, file: &Self::File, offset: u64) -> io::Result<()>;
    /// Proves that nobody has thrown the bytes of `range` away, which were written and then synced without an error.
    /// The last of them must not be zero. [`io::ErrorKind::UnexpectedEof`]: somebody has cut the file; any other
    /// error is one of a sync. To be asked before their answer, and says nothing about what comes later.
    fn check_stored(&self, file: &Self::File, range: Range<u64>) -> io::Result<()>;
    /// Proves that nobody has cut the file to less than `len` bytes. [`io::ErrorKind::UnexpectedEof`]: somebody has.
    fn check_length(&self, file: &Self::File, len: u64) -> io::Result<()>;
    /// Proves, after a sync, that the file system had not given up before its end. Its error is one of a sync.
    fn check_alive(&self, file: &Self::File) -> io::Result<()>;
    /// Brings a small file of its own to the disk and removes it: can the file system still do that?
    fn probe(&self) -> io::Result<()>;
    /// May [`Disk::sync_all`] be worth a try now?
    fn syncs_together(&self) -> bool {
        false
    }
    /// Syncs the whole file system, if all of `files` are on it. True: everything that was written to them
    /// between `written_since` and the call is on the disk, and so are the entries of the data directory;
    /// as good as [`Disk::sync_data`] for each and [`Disk::sync_root`]. False: nothing is known, and each
    /// file must be synced by itself, which also tells whose sync it was that failed.
    fn sync_all(&self, _files: &[FileId], _written_since: Instant) -> bool {
        false
    }
    /// Syncs the entries of the data directory.
    fn sync_root(&self) -> io::Result<()>;
    /// Syncs the entries of a side directory.
    fn sync_side(&self, dir: &str) -> io::Result<()>;
    /// Free and total space.
    fn space(&self) -> io::Result<DiskSpace>;
    /// Bytes that a write finds room for; `None` where a write may be tried without asking, because
    /// one that finds no room can be taken back whole.
    fn room(&self) -> Option<u64> {
        None
    }
    /// How many names in the directory are those of data files; `None` where nobody counts them.
    fn data_files(&self) -> io::Result<Option<usize>> {
        Ok(None)
    }
    /// May this process create files here? Writes nothing.
    fn writable(&self) -> io::Result<()>;
}

/// The data directory on a real file system.
#[derive(Debug)]
pub struct RealDisk {
    /// As it was given, from the root of the file system on. Links in it are looked up anew each time.
    path: PathBuf,
    /// Without links, for people and for what must not lie in it.
    root: PathBuf,
    dir: Dir,
    /// The last look found another directory.
    displaced: AtomicBool,
}

#[derive(Debug)]
struct Dir {
    fd: OwnedFd,
    id: FileId,
    /// `None` when the system has no more watches to give.
    watch: Option<LockWatch>,
    /// `f_type` of its file system, see statfs(2).
    system: FsWord,
    /// `f_bsize`, or 1 where nobody says.
    block_bytes: u64,
    /// `None` where a sync of the whole file system does not stand for one of each file.
    whole: Option<WholeSync>,
}

/// Larger is what some file systems say a good write is (NFS, ZFS), and no size of a block.
const BLOCK_BYTES_MAX: u64 = 4096;

const BTRFS: FsWord = 0x9123_683e_u32 as FsWord;
/// ext2, ext3 and ext4.
pub(super) const EXT4: FsWord = 0xef53;

impl RealDisk {
    /// Opens the data directory, creating it (mode 0700 for what is new, and synced into its
    /// parents) if it is missing.
    ///
    /// # Errors
    /// Whatever the operating system says; nothing was written but perhaps empty directories.
    pub fn open(path: &Path) -> io::Result<RealDisk> {
        // compat: an empty name is the working directory, as Python's Path("").
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        if !path.is_dir() {
            create_dirs(path)?;
            tracing::warn!(path = %path.display(), "the data directory was missing and was created; if a volume belongs there, it is not mounted");
        }
        RealDisk::open_dir(path)
    }

    /// Opens a data directory that is there. Creates nothing.
    ///
    /// # Errors
    /// Whatever the operating system says.
    pub fn open_existing(path: &Path) -> io::Result<RealDisk> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        RealDisk::open_dir(path)
    }

    fn open_dir(path: &Path) -> io::Result<RealDisk> {
        // Not by the working directory: a volume that is unmounted lazily takes that along.
        let path = std::path::absolute(path)?;
        let root = path.canonicalize()?;
        let dir = Dir::open(&root)?;
        Ok(RealDisk { path, root, dir, displaced: AtomicBool::new(false) })
    }

    /// The directory, without links in its path.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The names in the data directory, sorted, without `.` and `..`.
    pub(crate) fn names(&self) -> io::Result<Vec<OsString>> {
        list(&self.dir.fd)
    }

    /// Shows every name of the data directory to `look`, unsorted; holds one at a time.
    pub(crate) fn each_name(&self, mut look: impl FnMut(&OsStr)) -> io::Result<()> {
        for entry in rustix::fs::Dir::read_from(&self.dir.fd)? {
            look(OsStr::from_bytes(entry?.file_name().to_bytes()));
        }
        Ok(())
    }

    /// As [`Disk::stat`], with the time of the last change of the content.
    pub(crate) fn stat_changed(&self, name: &str) -> io::Result<Option<(FileStat, SystemTime)>> {
        match rustix::fs::statat(&self.dir.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => {
                let since = Duration::new(u64::try_from(stat.st_mtime).unwrap_or(0), stat.st_mtime_nsec as u32);
                Ok(Some((file_stat(&stat), UNIX_EPOCH + since)))
            }
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// As [`RealDisk::stat_name`], with the time of the last change of anything about it (`st_ctime`), in
    /// nanoseconds since 1970.
    pub(crate) fn stat_touched(&self, name: &str) -> io::Result<Option<(FileStat, i64)>> {
        match rustix::fs::statat(&self.dir.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some((file_stat(&stat), nanoseconds(stat.st_ctime, stat.st_ctime_nsec as i64)))),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// `syncfs`: everything that was written to this file system, by anybody.
    pub(crate) fn sync_file_system(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.dir.fd)?)
    }

    /// The names in a side directory; `None` when there is none.
    pub(crate) fn side_names(&self, dir: &str) -> io::Result<Option<Vec<OsString>>> {
        match open_side(&self.dir, dir) {
            Ok(side) => Ok(Some(list(&side)?)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// What any name of the data directory stands for, links not followed.
    pub(crate) fn stat_name(&self, name: &OsStr) -> io::Result<Option<FileStat>> {
        found(rustix::fs::statat(&self.dir.fd, name, AtFlags::SYMLINK_NOFOLLOW))
    }

    /// What a name in a side directory stands for, links not followed.
    pub(crate) fn stat_side(&self, dir: &str, name: &OsStr) -> io::Result<Option<FileStat>> {
        found(rustix::fs::statat(&open_side(&self.dir, dir)?, name, AtFlags::SYMLINK_NOFOLLOW))
    }

    /// Is the name a directory?
    pub(crate) fn is_dir(&self, name: &OsStr) -> bool {
        rustix::fs::statat(&self.dir.fd, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir())
    }

    /// Opens a file that is there, for reading (and for a lock). Never follows a link, never waits
    /// for a FIFO.
    pub(crate) fn open_read(&self, name: &str) -> io::Result<File> {
        self.openat(name, OFlags::RDONLY, 0)
    }

    /// Renames a file of a side directory over the data file `name`.
    pub(crate) fn replace(&self, dir: &str, side_name: &str, name: &str) -> io::Result<()> {
        let root = &self.dir;
        Ok(rustix::fs::renameat(open_side(root, dir)?, side_name, &root.fd, name)?)
    }

    /// Gives the lock file and the side directory to the owner of `like`. For an operator who works
    /// as root: what he creates on his way must not lock the service out.
    pub(crate) fn share_with_owner(&self, like: &File, lock: &str, side: &str) -> io::Result<()> {
        let want = like.metadata()?;
        for fd in [self.open_read(lock).map(OwnedFd::from).ok(), open_side(&self.dir, side).ok()].into_iter().flatten()
        {
            let have = rustix::fs::fstat(&fd)?;
            if have.st_uid != want.uid() && have.st_uid == rustix::process::geteuid().as_raw() {
                std::os::unix::fs::fchown(&fd, Some(want.uid()), Some(want.gid()))?;
            }
        }
        Ok(())
    }

    fn openat(&self, name: &str, flags: OFlags, mode: u32) -> io::Result<File> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = retry_on_intr(|| rustix::fs::openat(&self.dir.fd, name, flags, Mode::from_raw_mode(mode)))?;
        Ok(File::from(fd))
    }
}

impl Dir {
    /// `root` has no links in it; one that is put there now is not followed.
    fn open(root: &Path) -> io::Result<Dir> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        let fd = retry_on_intr(|| rustix::fs::open(root, flags, Mode::empty()))?;
        let stat = retry_on_intr(|| rustix::fs::fstat(&fd))?;
        // btrfs: when space runs out, the kernel first puts what was written so far into one extent.
        // A cut in the middle of the extent's first block leaves that block, and with it the extent.
        let statfs = rustix::fs::fstatfs(&fd);
        let system = statfs.as_ref().map_or(0, |statfs| statfs.f_type);
        let block_bytes =
            statfs.ok().and_then(|statfs| u64::try_from(statfs.f_bsize).ok()).unwrap_or(1).clamp(1, BLOCK_BYTES_MAX);
        let whole = WholeSync::new(&fd, system);
        Ok(Dir { id: file_id(&stat), fd, watch: LockWatch::new(root).ok(), system, block_bytes, whole })
    }
}

fn create_dirs(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        create_dirs(parent)?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        other => other?,
    }
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

pub(super) fn file_id(stat: &rustix::fs::Stat) -> FileId {
    FileId { dev: stat.st_dev, ino: stat.st_ino }
}

/// A time of a file as one number; the last one that there is for all later ones.
pub(super) fn nanoseconds(seconds: i64, nanoseconds: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

fn file_stat(stat: &rustix::fs::Stat) -> FileStat {
    let kind = match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
        rustix::fs::FileType::RegularFile => FileKind::Regular,
        rustix::fs::FileType::Symlink => FileKind::Symlink,
        _ => FileKind::Other,
    };
    let len = u64::try_from(stat.st_size).unwrap_or(0);
    FileStat { id: file_id(stat), kind, len, other_names: stat.st_nlink > 1 }
}

impl Disk for RealDisk {
    type File = File;

    fn check_root(&self) -> io::Result<()> {
        let found = retry_on_intr(|| rustix::fs::stat(&self.path)).map(|stat| file_id(&stat));
        let displaced = found != Ok(self.dir.id);
        if displaced != self.displaced.swap(displaced, Ordering::Relaxed) {
            tell_displaced(&self.path, displaced);
        }
        if found? != self.dir.id {
            return Err(io::Error::other("another directory stands at the path of the data directory"));
        }
        Ok(())
    }

    fn open_lock(&self, name: &str) -> io::Result<File> {
        let file = self.openat(name, OFlags::RDWR | OFlags::CREATE, 0o644)?;
        // That was us. A foreign open in between is made good by the next.
        self.lock_wanted(name);
        Ok(file)
    }

    fn open_data(&self, name: &str) -> io::Result<File> {
        self.openat(name, OFlags::RDWR | OFlags::CREATE | OFlags::APPEND, 0o600)
    }

    fn create_side(&self, dir: &str, name: &str) -> io::Result<File> {
        let root = &self.dir;
        match retry_on_intr(|| rustix::fs::mkdirat(&root.fd, dir, Mode::from_raw_mode(0o700))) {
            Ok(()) => rustix::fs::fsync(&root.fd)?,
            Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
        let side = open_side(root, dir)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(retry_on_intr(|| rustix::fs::openat(&side, name, flags, Mode::from_raw_mode(0o600)))?))
    }

    fn open_side(&self, dir: &str, name: &str) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let side = open_side(&self.dir, dir)?;
        Ok(File::from(retry_on_intr(|| rustix::fs::openat(&side, name, flags, Mode::empty()))?))
    }

    fn read_side(&self, dir: &str, name: &str, bytes_max: usize) -> io::Result<Option<Vec<u8>>> {
        let Some(side) = side_if_any(&self.dir, dir)? else { return Ok(None) };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match retry_on_intr(|| rustix::fs::openat(&side, name, flags, Mode::empty())) {
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            other => File::from(other?),
        };
        let mut bytes = Vec::new();
        // What cannot be read is there all the same.
        let _ = file.take(bytes_max as u64).read_to_end(&mut bytes);
        Ok(Some(bytes))
    }

    fn list_side(&self, dir: &str) -> io::Result<Vec<OsString>> {
        side_if_any(&self.dir, dir)?.map_or(Ok(Vec::new()), |side| list(&side))
    }

    fn remove_side(&self, dir: &str, name: &str) -> io::Result<()> {
        let side = open_side(&self.dir, dir)?;
        Ok(retry_on_intr(|| rustix::fs::unlinkat(&side, name, AtFlags::empty()))?)
    }

    fn try_lock(&self, file: &File) -> io::Result<bool> {
        loop {
            match fs4::FileExt::try_lock(file) {
                Ok(()) => return Ok(true),
                Err(fs4::TryLockError::WouldBlock) => return Ok(false),
                Err(fs4::TryLockError::Error(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(fs4::TryLockError::Error(e)) => return Err(e),
            }
        }
    }

    fn unlock(&self, file: &File) -> io::Result<()> {
        fs4::FileExt::unlock(file)
    }

    fn lock_wanted(&self, name: &str) -> Wanted {
        self.dir.watch.as_ref().map_or(Wanted::Unknown, |watch| watch.take(name))
    }

    fn lock_looked_at(&self, name: &str) -> bool {
        self.dir.watch.as_ref().is_some_and(|watch| watch.peek(name))
    }

    fn stat_by_path(&self, name: &str) -> io::Result<Option<FileStat>> {
        let path = self.path.join(name);
        found(retry_on_intr(|| rustix::fs::lstat(&path)))
    }

    fn stat(&self, name: &str) -> io::Result<Option<FileStat>> {
        found(retry_on_intr(|| rustix::fs::statat(&self.dir.fd, name, AtFlags::SYMLINK_NOFOLLOW)))
    }

    fn fstat(&self, file: &File) -> io::Result<FileStat> {
        Ok(file_stat(&retry_on_intr(|| rustix::fs::fstat(file))?))
    }

    fn read_at(&self, file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        loop {
            match file.read_at(buf, offset) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    fn data_in(&self, file: &File, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        holes::data_in(file, range)
    }

    fn append(&self, mut file: &File, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        loop {
            match file.write_vectored(bufs) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        Ok(retry_on_intr(|| rustix::fs::ftruncate(file, len))?)
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        // Not retried on EINTR: a failed sync is never turned into a success.
        Ok(rustix::fs::fdatasync(file)?)
    }

    fn block_bytes(&self) -> u64 {
        self.dir.block_bytes
    }

    fn begin_writeback(&self, file: &File, offset: u64) -> io::Result<()> {
        match leitstand_writeback::start(file, offset) {
            // Nothing was started, so there is nothing to be told; `check_stored` will.
            Err(e) if e.kind() == io::ErrorKind::Unsupported => Ok(()),
            other => other,
        }
    }

    fn check_stored(&self, file: &File, range: Range<u64>) -> io::Result<()> {
        allocated::check(file, &range)
    }

    fn check_length(&self, file: &File, len: u64) -> io::Result<()> {
        allocated::check_length(file, len)
    }

    fn check_alive(&self, file: &File) -> io::Result<()> {
        if self.dir.system == EXT4 { journal_is_alive(file) } else { Ok(()) }
    }

    fn probe(&self) -> io::Result<()> {
        probe(self)
    }

    fn syncs_together(&self) -> bool {
        self.dir.whole.as_ref().is_some_and(WholeSync::is_worth_it)
    }

    fn sync_all(&self, files: &[FileId], written_since: Instant) -> bool {
        let dir = &self.dir;
        let here = files.iter().all(|file| file.dev == dir.id.dev);
        here && dir.whole.as_ref().is_some_and(|whole| whole.sync(written_since))
    }

    fn sync_root(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(self.dir.fd.as_fd())?)
    }

    fn sync_side(&self, dir: &str) -> io::Result<()> {
        Ok(rustix::fs::fsync(open_side(&self.dir, dir)?)?)
    }

    fn space(&self) -> io::Result<DiskSpace> {
        space(self.dir.fd.as_fd())
    }

    fn room(&self) -> Option<u64> {
        // btrfs: a file keeps all that one write took, as long as it keeps the first byte of it.
        if self.dir.system != BTRFS {
            return None;
        }
        self.space().ok().map(|space| space.free_bytes)
    }

    fn data_files(&self) -> io::Result<Option<usize>> {
        let mut count = 0;
        self.each_name(|name| count += usize::from(name.to_str().is_some_and(|name| Owner::of(name).is_some())))?;
        Ok(Some(count))
    }

    fn writable(&self) -> io::Result<()> {
        let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
        Ok(retry_on_intr(|| rustix::fs::accessat(&self.dir.fd, ".", access, AtFlags::EACCESS))?)
    }
}

fn tell_displaced(path: &Path, displaced: bool) {
    let path = path.display();
    if displaced {
        tracing::error!(%path, "another directory, or none, stands at the path of the data directory: appends are refused; mount the volume again or move the directory back, or restart the service to use what is there now, see RUNBOOK");
    } else {
        tracing::warn!(%path, "the data directory is back at its path, appends go on");
    }
}

pub(super) fn space(fd: BorrowedFd<'_>) -> io::Result<DiskSpace> {
    let space = retry_on_intr(|| rustix::fs::fstatvfs(fd))?;
    Ok(DiskSpace { free_bytes: space.f_bavail * space.f_frsize, total_bytes: space.f_blocks * space.f_frsize })
}

pub(super) fn found(result: rustix::io::Result<rustix::fs::Stat>) -> io::Result<Option<FileStat>> {
    match result {
        Ok(stat) => Ok(Some(file_stat(&stat))),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

pub(super) fn list(dir: &OwnedFd) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let name = OsStr::from_bytes(entry?.file_name().to_bytes()).to_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// `None` also where the name is no directory, or a link to one, in which nobody has left anything.
fn side_if_any(root: &Dir, dir: &str) -> io::Result<Option<OwnedFd>> {
    match open_side(root, dir) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => Ok(None),
        other => other.map(Some),
    }
}

fn open_side(root: &Dir, dir: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    Ok(retry_on_intr(|| rustix::fs::openat(&root.fd, dir, flags, Mode::empty()))?)
}
