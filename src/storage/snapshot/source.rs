//! `Source`: a part of a snapshot that is read once.
//!
//! What is in the page cache comes from there. The rest is read past it (`O_DIRECT`): that saves a copy and the making
//! of pages that nobody reads again, and others keep the room.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt as _;

use rustix::fs::Advice;
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::copy::{ALIGN, set_direct};
use super::directory::Directory;
use super::manifest::read_exact_at;

/// A file that is read from several threads.
pub(super) struct Source {
    file: File,
    /// The same for direct reads, where the file system takes them.
    direct: Option<File>,
    /// The same, without anything being read ahead.
    probe: Option<File>,
}

impl Source {
    /// Opens a file for reads of whole blocks, one after the other.
    pub(super) fn open(dir: &Directory, name: &str) -> io::Result<Source> {
        let file = dir.open_read(name)?;
        let reopened =
            |prepare: fn(&File) -> io::Result<()>| dir.open_read(name).and_then(|f| prepare(&f).map(|()| f)).ok();
        let direct = reopened(|file| set_direct(file, true));
        let probe = reopened(|file| Ok(rustix::fs::fadvise(file, 0, None, Advice::Random)?));
        Ok(Source { file, direct, probe })
    }

    /// A file that is read through the page cache.
    pub(super) fn cached(file: File) -> Source {
        Source { file, direct: None, probe: None }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// How to read what stands at `at` and shortly behind it.
    pub(super) fn way(&self, at: u64) -> Way {
        let (Some(probe), Some(_)) = (&self.probe, &self.direct) else { return Way::Cached };
        match preadv2(probe, &mut [IoSliceMut::new(&mut [0])], at, ReadWriteFlags::NOWAIT) {
            // To ask for it makes the kernel read that page.
            Err(Errno::AGAIN) => Way::Direct,
            // It is there; or the file system does not tell, or has an error that reading tells again.
            _ => Way::Cached,
        }
    }

    /// Ends what was begun by [`Source::way`] at the same place: the page that was read only to ask is no sign, for
    /// whoever asks next, that those behind it are there.
    pub(super) fn forget(&self, way: Way, at: u64) {
        if way == Way::Direct {
            let page = at / ALIGN as u64 * ALIGN as u64;
            let _ = rustix::fs::fadvise(&self.file, page, NonZeroU64::new(ALIGN as u64), Advice::DontNeed);
        }
    }

    /// Fills `buf` with what stands at `at`.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] if the file ends before.
    pub(super) fn read(&self, buf: &mut [u8], at: u64, way: Way) -> io::Result<()> {
        let mut done = 0;
        if let (Way::Direct, Some(direct)) = (way, &self.direct)
            && at.is_multiple_of(ALIGN as u64)
        {
            let whole = buf.len() - buf.len() % ALIGN;
            // Where the file was cut meanwhile, a read ends at any byte.
            while done < whole && done.is_multiple_of(ALIGN) {
                match direct.read_at(&mut buf[done..whole], at + done as u64) {
                    Ok(0) => break,
                    Ok(n) => done += n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    // The file system or the device wants another alignment.
                    Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => break,
                    Err(e) => return Err(e),
                }
            }
        }
        read_exact_at(&self.file, &mut buf[done..], at + done as u64)
    }
}

/// Through the page cache, or past it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Cached,
    Direct,
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::copy::Memory;
    use super::*;

    /// On a file system that reads directly, and on one in memory.
    fn places() -> Vec<tempfile::TempDir> {
        let disk = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        [Some(disk), tempfile::tempdir_in("/dev/shm").ok()].into_iter().flatten().collect()
    }

    /// A file of this many bytes, on the disk and not in the page cache.
    fn source(place: &tempfile::TempDir, bytes: usize) -> (Source, Vec<u8>) {
        let content: Vec<u8> = (0..bytes).map(|n| (n % 251) as u8).collect();
        std::fs::write(place.path().join("part"), &content).unwrap();
        let source = Source::open(&Directory::open(place.path()).unwrap(), "part").unwrap();
        source.file.sync_all().unwrap();
        rustix::fs::fadvise(&source.file, 0, None, Advice::DontNeed).unwrap();
        (source, content)
    }

    fn read(source: &Source, at: u64, bytes: usize, way: Way) -> io::Result<Vec<u8>> {
        let mut memory = Memory::new(1, 1 << 20).unwrap();
        let mut block = memory.blocks().next().unwrap();
        block.fill(bytes as u64, |buf| source.read(buf, at, way))?;
        Ok(block.bytes().to_vec())
    }

    /// Broken, the end of a file, or a part that begins in the middle of a block, would be lost or wrong.
    #[test]
    fn both_ways_read_the_same() {
        for place in places() {
            for bytes in [0, 1, ALIGN - 1, ALIGN, ALIGN + 1, 5 * ALIGN + 77] {
                let (source, content) = source(&place, bytes);
                for (at, way) in
                    [0, 1, ALIGN, 2 * ALIGN + 5].into_iter().flat_map(|at| [(at, Way::Direct), (at, Way::Cached)])
                {
                    let Some(there) = content.get(at..) else { continue };
                    assert_eq!(read(&source, at as u64, there.len(), way).unwrap(), there, "{bytes} at {at}, {way:?}");
                }
            }
        }
    }

    /// Broken, a part that was cut after a look at its length would end in zeros, or in what a block held before.
    #[test]
    fn an_early_end_is_an_error() {
        for place in places() {
            for (cut, way) in
                [0, 1, ALIGN, ALIGN + 1].into_iter().flat_map(|cut| [(cut, Way::Direct), (cut, Way::Cached)])
            {
                let (source, content) = source(&place, 8 * ALIGN);
                std::fs::OpenOptions::new()
                    .write(true)
                    .open(place.path().join("part"))
                    .unwrap()
                    .set_len(cut as u64)
                    .unwrap();
                let error = read(&source, 0, content.len(), way).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{cut}, {way:?}");
            }
        }
    }

    /// Broken, a memory that a device does not take would end a restore that the page cache could serve.
    #[test]
    fn memory_at_an_odd_address_is_filled_too() {
        for place in places() {
            let (source, content) = source(&place, 2 * ALIGN);
            let mut memory = Memory::new(1, 1 << 20).unwrap();
            let mut block = memory.blocks().next().unwrap();
            block.fill(2 * ALIGN as u64, |buf| source.read(&mut buf[1..], 0, Way::Direct)).unwrap();
            assert_eq!(block.bytes()[1..], content[..2 * ALIGN - 1]);
        }
    }

    /// Waits until the page that was asked for is there; a kernel need not begin to read it.
    fn let_it_come(source: &Source, at: u64) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while source.way(at) == Way::Direct && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Broken, asking would make the next restore believe that all is in the page cache.
    #[test]
    fn what_is_in_the_page_cache_is_told_and_asking_changes_nothing() {
        let place = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let (source, content) = source(&place, 4 << 20);
        if source.direct.is_none() || source.way(0) == Way::Cached {
            eprintln!("skipped: this file system is in memory, or does not tell what is in the page cache");
            return;
        }
        // Before it has come it cannot be forgotten, and on a busy machine what was asked for may come once more.
        let is_forgotten = (0..10).any(|_| {
            read(&source, 0, ALIGN, Way::Direct).unwrap();
            let_it_come(&source, 0);
            source.forget(Way::Direct, 0);
            source.way(0) == Way::Direct
        });
        assert!(is_forgotten);
        assert_eq!(source.way(content.len() as u64 / 2), Way::Direct, "only what was asked for is read");
        // Each page is asked for once, since asking brings it; the kernel may take one away at any time.
        let is_told = (1..10).any(|n| {
            std::fs::read(place.path().join("part")).unwrap();
            source.way(n * 10 * ALIGN as u64) == Way::Cached
        });
        assert!(is_told, "what was read is there");
        assert_eq!(Source::cached(source.file).way(0), Way::Cached);
    }
}
