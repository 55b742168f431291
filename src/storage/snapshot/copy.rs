//! Blocks of bytes, and files that are written with them past the page cache.
//!
//! What is written here is not read again soon, and a full page cache of unwritten data is what
//! makes the syncs of others slow. So large files are written with `O_DIRECT` where the file
//! system takes it: each write is on its way to the disk when it returns, and there is never more
//! of it under way than one block.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{Advice, FallocateFlags, OFlags};
use rustix::io::Errno;

use super::directory::Directory;

/// What direct writes must be aligned to; enough for every device we know.
const ALIGN: usize = 4096;
/// How much is read and written at once.
pub(super) const BLOCK_BYTES: usize = 1 << 20;
/// Smaller files are not worth a direct write.
const DIRECT_BYTES_MIN: u64 = 1 << 20;
/// How much of a file that is written through the page cache may be unsynced.
const UNSYNCED_BYTES_MAX: u64 = 4 << 20;

/// A piece of memory at an address that direct writes accept.
pub(super) struct Block {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Block {
    pub(super) fn new() -> Block {
        let memory = vec![0; BLOCK_BYTES + ALIGN];
        let start = memory.as_ptr().align_offset(ALIGN);
        // By its contract it may give up; then the write is not direct in the end.
        Block { start: if start < ALIGN { start } else { 0 }, memory, len: 0 }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    /// Fills it by `read` up to `want` bytes, or its size; an early end is an error.
    pub(super) fn fill(&mut self, want: u64, read: impl FnOnce(&mut [u8]) -> io::Result<()>) -> io::Result<()> {
        self.len = want.min(BLOCK_BYTES as u64) as usize;
        read(&mut self.memory[self.start..self.start + self.len])
    }

    /// With zeros up to a whole multiple of what direct writes need.
    fn padded(&mut self) -> &[u8] {
        let len = self.len.next_multiple_of(ALIGN);
        self.memory[self.start + self.len..self.start + len].fill(0);
        &self.memory[self.start..self.start + len]
    }
}

/// A new file that is written from its beginning to its end.
pub(super) struct Sink {
    file: File,
    direct: bool,
    at: u64,
    synced: u64,
}

impl Sink {
    /// Makes the file, which must not be there, and the room for `len` bytes.
    pub(super) fn create(dir: &Directory, name: &str, len: u64) -> io::Result<Sink> {
        let file = dir.create(name)?;
        Sink::over(file, len)
    }

    /// Over an empty file that is open.
    pub(super) fn over(file: File, len: u64) -> io::Result<Sink> {
        let mut direct = false;
        if len >= DIRECT_BYTES_MIN {
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, len) {
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
                Err(e) => return Err(e.into()),
            }
            direct = set_direct(&file, true).is_ok();
        }
        Ok(Sink { file, direct, at: 0, synced: 0 })
    }

    /// Writes the next block. Only the last one may be of an odd length.
    pub(super) fn write(&mut self, block: &mut Block) -> io::Result<()> {
        if self.direct {
            match self.file.write_all_at(block.padded(), self.at) {
                // The file system wants another alignment, or does it for some files only.
                Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                    set_direct(&self.file, false)?;
                    self.direct = false;
                }
                other => {
                    other?;
                    self.at += block.len as u64;
                    return Ok(());
                }
            }
        }
        self.file.write_all_at(block.bytes(), self.at)?;
        self.at += block.len as u64;
        if self.at - self.synced >= UNSYNCED_BYTES_MAX {
            rustix::fs::fdatasync(&self.file)?;
            self.forget();
            self.synced = self.at;
        }
        Ok(())
    }

    /// The whole file, not yet synced to its end.
    pub(super) fn end(self) -> io::Result<File> {
        if self.direct {
            self.file.set_len(self.at)?;
            set_direct(&self.file, false)?;
        } else if self.at >= DIRECT_BYTES_MIN {
            rustix::fs::fdatasync(&self.file)?;
            self.forget();
        }
        Ok(self.file)
    }

    /// Nobody reads it soon; the room in the page cache is of more use to others. What cannot be
    /// dropped stays.
    fn forget(&self) {
        let _ = rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed);
    }
}

fn set_direct(file: &File, on: bool) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    let flags = if on { flags | OFlags::DIRECT } else { flags.difference(OFlags::DIRECT) };
    Ok(rustix::fs::fcntl_setfl(file, flags)?)
}
