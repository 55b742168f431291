//! A disk in memory that never fails.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::ops::Range;

use leitstand::storage::{Disk, DiskSpace, FileId, FileKind, FileStat};

use super::Shared;

pub struct MemoryDisk {
    pub files: Shared<BTreeMap<String, Shared<Vec<u8>>>>,
}

pub struct File {
    id: FileId,
    bytes: Shared<Vec<u8>>,
}

impl MemoryDisk {
    /// A disk with one file.
    pub fn new(name: &str, content: &[u8]) -> MemoryDisk {
        let disk = MemoryDisk { files: Shared::default() };
        disk.open(name).bytes.lock().expect("no panic").extend_from_slice(content);
        disk
    }

    fn open(&self, name: &str) -> File {
        let bytes = self.files.lock().expect("no panic").entry(name.to_owned()).or_default().clone();
        File { id: id(name), bytes }
    }
}

/// A name is a file for ever here, so the name is the identity.
fn id(name: &str) -> FileId {
    FileId { dev: 1, ino: name.bytes().fold(0, |hash, b| hash * 31 % 0xffff_ffff + u64::from(b)) }
}

impl Disk for MemoryDisk {
    type File = File;

    fn check_root(&self) -> io::Result<()> {
        Ok(())
    }

    fn open_lock(&self, name: &str) -> io::Result<File> {
        Ok(self.open(name))
    }

    fn open_data(&self, name: &str) -> io::Result<File> {
        Ok(self.open(name))
    }

    fn create_side(&self, dir: &str, name: &str) -> io::Result<File> {
        Ok(self.open(&format!("{dir}/{name}")))
    }

    fn remove_side(&self, dir: &str, name: &str) -> io::Result<()> {
        self.files.lock().expect("no panic").remove(&format!("{dir}/{name}"));
        Ok(())
    }

    fn try_lock(&self, _: &File) -> io::Result<bool> {
        Ok(true)
    }

    fn unlock(&self, _: &File) -> io::Result<()> {
        Ok(())
    }

    fn stat_by_path(&self, name: &str) -> io::Result<Option<FileStat>> {
        self.stat(name)
    }

    fn stat(&self, name: &str) -> io::Result<Option<FileStat>> {
        let files = self.files.lock().expect("no panic");
        files.get(name).map(|bytes| self.fstat(&File { id: id(name), bytes: bytes.clone() })).transpose()
    }

    fn fstat(&self, file: &File) -> io::Result<FileStat> {
        let len = file.bytes.lock().expect("no panic").len() as u64;
        Ok(FileStat { id: file.id, kind: FileKind::Regular, len, other_names: false })
    }

    fn read_at(&self, file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let bytes = file.bytes.lock().expect("no panic");
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn append(&self, file: &File, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut bytes = file.bytes.lock().expect("no panic");
        bufs.iter().for_each(|buf| bytes.extend_from_slice(buf));
        Ok(bufs.iter().map(|buf| buf.len()).sum())
    }

    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        file.bytes.lock().expect("no panic").truncate(len as usize);
        Ok(())
    }

    fn sync_data(&self, _: &File) -> io::Result<()> {
        Ok(())
    }

    fn block_bytes(&self) -> u64 {
        1
    }

    fn begin_writeback(&self, _: &File, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn check_stored(&self, _: &File, _: Range<u64>) -> io::Result<()> {
        Ok(())
    }

    fn check_length(&self, _: &File, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn check_alive(&self, _: &File) -> io::Result<()> {
        Ok(())
    }

    fn probe(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync_root(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync_side(&self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn space(&self) -> io::Result<DiskSpace> {
        Ok(DiskSpace { free_bytes: 1 << 40, total_bytes: 1 << 40 })
    }

    fn writable(&self) -> io::Result<()> {
        Ok(())
    }
}
