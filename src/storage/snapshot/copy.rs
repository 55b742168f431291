//! Blocks of bytes, and files that are written with them past the page cache.
//!
//! What is written here is not read again soon, and a full page cache of unwritten data is what
//! makes the syncs of others slow. So large files are written with `O_DIRECT` where the file
//! system takes it: each write is on its way to the disk when it returns, and there is never more
//! of it under way than one block.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use memmap2::MmapMut;
use rustix::fs::{Advice, FallocateFlags, OFlags};
use rustix::io::Errno;

use crate::storage::allocated;
use crate::storage::holes::{data_in, is_zeros};

/// What direct reads and writes must be aligned to; enough for every device we know.
pub(super) const ALIGN: usize = 4096;
/// A huge page, where they are smallest.
const HUGE_BYTES: usize = 2 << 20;
/// Smaller files are not worth a direct read or write.
pub(super) const DIRECT_BYTES_MIN: u64 = 1 << 20;
/// How much of a file that is written through the page cache may be unsynced.
const UNSYNCED_BYTES_MAX: u64 = 4 << 20;

/// The memory of some blocks, at addresses that direct reads and writes accept.
///
/// In huge pages where the system has them to give. What is read or written directly is handed to the device as
/// a list of the pieces of memory that it is in; of ordinary pages these are as many as there are pages, and where
/// the device is a virtual one, each has its price.
pub(super) struct Memory {
    map: MmapMut,
    start: usize,
    block_bytes: usize,
    bytes: usize,
}

impl Memory {
    /// For `blocks` blocks of a size that is a multiple of what direct writes need.
    pub(super) fn new(blocks: usize, block_bytes: usize) -> io::Result<Memory> {
        let bytes = blocks * block_bytes;
        let map = MmapMut::map_anon(bytes.next_multiple_of(HUGE_BYTES) + HUGE_BYTES)?;
        // A kernel without huge pages gives ordinary ones.
        let _ = map.advise(memmap2::Advice::HugePage);
        let start = map.as_ptr().align_offset(HUGE_BYTES);
        // By its contract it may give up; then nothing is direct in the end.
        Ok(Memory { start: if start < HUGE_BYTES { start } else { 0 }, map, block_bytes, bytes })
    }

    /// All of it, cut into blocks.
    pub(super) fn blocks(&mut self) -> impl Iterator<Item = Block<'_>> {
        let memory = &mut self.map[self.start..self.start + self.bytes];
        memory.chunks_exact_mut(self.block_bytes).map(|memory| Block { memory, len: 0 })
    }
}

/// A part of [`Memory`], and how much of it is filled.
pub(super) struct Block<'a> {
    memory: &'a mut [u8],
    len: usize,
}

impl Block<'_> {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.memory[..self.len]
    }

    /// Fills it by `read` up to `want` bytes, or its size; an early end is an error.
    pub(super) fn fill(&mut self, want: u64, read: impl FnOnce(&mut [u8]) -> io::Result<()>) -> io::Result<()> {
        self.len = want.min(self.memory.len() as u64) as usize;
        read(&mut self.memory[..self.len])
    }

    /// With zeros up to a whole multiple of what direct writes need.
    fn padded(&mut self) -> &[u8] {
        let len = self.len.next_multiple_of(ALIGN);
        self.memory[self.len..len].fill(0);
        &self.memory[..len]
    }
}

/// A new file with room for all that it will hold.
pub(super) struct Sink {
    file: File,
    direct: AtomicBool,
    len: u64,
    /// Written through the page cache since the last sync.
    unsynced: AtomicU64,
    /// Some file systems make holes of zeros.
    zeros: AtomicBool,
    /// Where the source has holes, blocks of zeros are left out.
    sparse: bool,
}

/// Has a file, of a size that counts, holes in this range?
pub(super) fn has_holes(file: &File, range: Range<u64>) -> io::Result<bool> {
    Ok(range.end - range.start >= DIRECT_BYTES_MIN && data_in(file, range.clone())? != Some(range))
}

/// A whole copy, not yet synced to its end.
pub(super) struct Copied {
    pub(super) file: File,
    /// Its length, if it must not have holes.
    whole: Option<u64>,
    /// Written through the page cache, and with holes perhaps: only its own sync tells of a failed write.
    alone: bool,
}

impl Copied {
    /// A file that shares its blocks with another, on the disk or not.
    pub(super) fn clone_of_another(file: File) -> Copied {
        Copied { file, whole: None, alone: false }
    }

    /// Brings it to the disk. What the system has thrown away before, and told nobody, is an error too.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()?;
        self.check()
    }

    /// The look of [`Copied::sync`], where all was synced at once.
    pub(super) fn check(&self) -> io::Result<()> {
        self.whole.map_or(Ok(()), |len| allocated::check_whole(&self.file, len))
    }

    /// Must it have its own sync? Nothing could be seen of it after one of the whole file system.
    pub(super) fn needs_own_sync(&self) -> bool {
        self.alone
    }
}

impl Sink {
    /// Over an empty file that will hold `len` bytes; `sparse`: of a source with holes.
    pub(super) fn over(file: File, len: u64, sparse: bool) -> io::Result<Sink> {
        let mut direct = false;
        if len >= DIRECT_BYTES_MIN {
            if !sparse {
                match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, len) {
                    Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            direct = set_direct(&file, true).is_ok();
        }
        Ok(Sink {
            file,
            direct: AtomicBool::new(direct),
            len,
            unsynced: AtomicU64::new(0),
            zeros: AtomicBool::new(sparse),
            sparse,
        })
    }

    /// Writes a block, at a multiple of the size of one. Only the last one may be shorter.
    pub(super) fn write_at(&self, block: &mut Block<'_>, at: u64) -> io::Result<()> {
        if self.sparse && is_zeros(block.bytes()) {
            return Ok(());
        }
        if self.direct.load(Ordering::Relaxed) {
            match self.file.write_all_at(block.padded(), at) {
                // The file system wants another alignment, or does it for some files only.
                Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                    set_direct(&self.file, false)?;
                    self.direct.store(false, Ordering::Relaxed);
                }
                other => return other,
            }
        }
        self.file.write_all_at(block.bytes(), at)?;
        if memchr::memchr(0, block.bytes()).is_some() {
            self.zeros.store(true, Ordering::Relaxed);
        }
        let bytes = block.bytes().len() as u64;
        if self.unsynced.fetch_add(bytes, Ordering::Relaxed) + bytes >= UNSYNCED_BYTES_MAX {
            self.unsynced.store(0, Ordering::Relaxed);
            rustix::fs::fdatasync(&self.file)?;
            self.forget();
        }
        Ok(())
    }

    /// The whole file, not yet synced to its end.
    pub(super) fn end(self) -> io::Result<Copied> {
        let mut through_cache = true;
        if self.sparse {
            // The last block may have been left out.
            self.file.set_len(self.len)?;
        }
        if self.direct.load(Ordering::Relaxed) {
            // The last block was written with what it lacks to a whole one.
            self.file.set_len(self.len)?;
            set_direct(&self.file, false)?;
            through_cache = false;
        } else if self.len >= DIRECT_BYTES_MIN {
            rustix::fs::fdatasync(&self.file)?;
            self.forget();
        }
        let zeros = self.zeros.load(Ordering::Relaxed);
        let whole = (through_cache && !zeros).then_some(self.len);
        Ok(Copied { file: self.file, whole, alone: through_cache && zeros })
    }

    /// Nobody reads it soon; the room in the page cache is of more use to others. What cannot be
    /// dropped stays. The write-back that this starts of what other threads have written meanwhile tells nobody of
    /// its errors; [`Copied::sync`] finds what it lost.
    fn forget(&self) {
        let _ = rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed);
    }
}

pub(super) fn set_direct(file: &File, on: bool) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    let flags = if on { flags | OFlags::DIRECT } else { flags.difference(OFlags::DIRECT) };
    Ok(rustix::fs::fcntl_setfl(file, flags)?)
}
