//! An open directory outside of the data directory: a snapshot, or where one is made.
//!
//! As in [`crate::storage::disk`] everything goes through one descriptor, and no last component is
//! ever followed if it is a link.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, retry_on_intr};

use crate::storage::disk::{self, DiskSpace, FileId, FileStat};
use crate::storage::whole_sync::WholeSync;

const OPEN_DIR: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

#[derive(Debug)]
pub(super) struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

impl Directory {
    /// Opens a directory; its path may go over links, its last component not.
    pub(super) fn open(path: &Path) -> io::Result<Directory> {
        let fd = retry_on_intr(|| rustix::fs::open(path, OPEN_DIR, Mode::empty()))?;
        Ok(Directory { fd, path: path.to_owned() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of what has this name.
    pub(super) fn path_of(&self, name: impl AsRef<OsStr>) -> PathBuf {
        self.path.join(name.as_ref())
    }

    pub(super) fn id(&self) -> io::Result<FileId> {
        Ok(disk::file_id(&rustix::fs::fstat(&self.fd)?))
    }

    /// What the name stands for, links not followed.
    pub(super) fn stat(&self, name: impl AsRef<OsStr>) -> io::Result<Option<FileStat>> {
        disk::found(retry_on_intr(|| rustix::fs::statat(&self.fd, name.as_ref(), AtFlags::SYMLINK_NOFOLLOW)))
    }

    /// When the content of a file was changed last, in nanoseconds since 1970. `None`: there is none.
    pub(super) fn modified_ns(&self, name: impl AsRef<OsStr>) -> io::Result<Option<i64>> {
        match retry_on_intr(|| rustix::fs::statat(&self.fd, name.as_ref(), AtFlags::SYMLINK_NOFOLLOW)) {
            Ok(stat) => Ok(Some(disk::nanoseconds(stat.st_mtime, stat.st_mtime_nsec as i64))),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// The names in it, sorted.
    pub(super) fn names(&self) -> io::Result<Vec<OsString>> {
        disk::list(&self.fd)
    }

    /// Makes a directory that must not be there, for its owner only.
    pub(super) fn create_dir(&self, name: impl AsRef<OsStr>) -> io::Result<Directory> {
        let name = name.as_ref();
        retry_on_intr(|| rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(0o700)))?;
        self.open_dir(name)
    }

    pub(super) fn open_dir(&self, name: impl AsRef<OsStr>) -> io::Result<Directory> {
        let name = name.as_ref();
        let fd = retry_on_intr(|| rustix::fs::openat(&self.fd, name, OPEN_DIR, Mode::empty()))?;
        Ok(Directory { fd, path: self.path.join(name) })
    }

    /// As [`Directory::open_dir`], but only if no file system is mounted there, bound ones included.
    ///
    /// # Errors
    /// [`io::ErrorKind::CrossesDevices`] if one is.
    pub(super) fn open_dir_here(&self, name: impl AsRef<OsStr>) -> io::Result<Directory> {
        let name = name.as_ref();
        let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
        match retry_on_intr(|| rustix::fs::openat2(&self.fd, name, OPEN_DIR, Mode::empty(), resolve)) {
            // Before Linux 5.6, or kept from us by a filter: then the number of the device tells, but of bound ones.
            Err(Errno::NOSYS | Errno::PERM) => {
                let dir = self.open_dir(name)?;
                let is_here = dir.id()?.dev == self.id()?.dev;
                if is_here { Ok(dir) } else { Err(Errno::XDEV.into()) }
            }
            opened => Ok(Directory { fd: opened?, path: self.path.join(name) }),
        }
    }

    /// The names of the directories in it.
    pub(super) fn directories(&self) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for name in self.names()? {
            let stat = retry_on_intr(|| rustix::fs::statat(&self.fd, &name, AtFlags::SYMLINK_NOFOLLOW))?;
            if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// What `name` in the directory `dir` stands for; `None` also where `dir` is no directory.
    pub(super) fn stat_below(&self, dir: &OsStr, name: &str) -> io::Result<Option<FileStat>> {
        let path = Path::new(dir).join(name);
        match retry_on_intr(|| rustix::fs::statat(&self.fd, &path, AtFlags::SYMLINK_NOFOLLOW)) {
            Err(Errno::NOTDIR | Errno::ACCESS | Errno::LOOP) => Ok(None),
            other => disk::found(other),
        }
    }

    /// Makes a file that must not be there, for its owner only.
    pub(super) fn create(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        self.openat(name.as_ref(), OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)
    }

    /// Opens a file for its lock, making it if need be.
    pub(super) fn open_lock(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        self.openat(name.as_ref(), OFlags::RDWR | OFlags::CREATE)
    }

    pub(super) fn open_read(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        self.openat(name.as_ref(), OFlags::RDONLY)
    }

    fn openat(&self, name: &OsStr, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        Ok(retry_on_intr(|| rustix::fs::openat(&self.fd, name, flags, Mode::from_raw_mode(0o600)))?.into())
    }

    /// Gives a file of another directory the same name here as well.
    pub(super) fn link(&self, from: &Directory, name: &str) -> io::Result<()> {
        Ok(retry_on_intr(|| rustix::fs::linkat(&from.fd, name, &self.fd, name, AtFlags::empty()))?)
    }

    pub(super) fn rename(&self, from: impl AsRef<OsStr>, to: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(retry_on_intr(|| rustix::fs::renameat(&self.fd, from.as_ref(), &self.fd, to.as_ref()))?)
    }

    pub(super) fn remove(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.fd, name.as_ref(), AtFlags::empty())?)
    }

    /// Removes a directory that is empty.
    pub(super) fn remove_empty(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.fd, name.as_ref(), AtFlags::REMOVEDIR)?)
    }

    /// Syncs the names in it.
    pub(super) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(self.fd.as_fd())?)
    }

    /// One sync for all files of its file system, where that is to be used.
    pub(super) fn whole_sync(&self) -> Option<WholeSync> {
        let system = rustix::fs::fstatfs(&self.fd).ok()?.f_type;
        WholeSync::new(&self.fd, system)
    }

    pub(super) fn space(&self) -> io::Result<DiskSpace> {
        disk::space(self.fd.as_fd())
    }

    /// Takes the lock of the directory itself; false: somebody else has it.
    pub(super) fn try_lock(&self) -> io::Result<bool> {
        try_lock(self.fd.as_fd())
    }

    pub(super) fn unlock(&self) -> io::Result<()> {
        Ok(retry_on_intr(|| rustix::fs::flock(&self.fd, FlockOperation::Unlock))?)
    }

    /// User and group that own it.
    pub(super) fn owner(&self) -> io::Result<(u32, u32)> {
        let stat = rustix::fs::fstat(&self.fd)?;
        Ok((stat.st_uid, stat.st_gid))
    }

    pub(super) fn give_to(&self, (user, group): (u32, u32)) -> io::Result<()> {
        std::os::unix::fs::fchown(&self.fd, Some(user), Some(group))
    }
}

/// `flock(LOCK_EX | LOCK_NB)`: false when somebody else holds it.
pub(super) fn try_lock(fd: std::os::fd::BorrowedFd<'_>) -> io::Result<bool> {
    match retry_on_intr(|| rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive)) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(e.into()),
    }
}
