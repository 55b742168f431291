//! Holes: parts of a file that have no place on the disk and read as zeros. A file that was made longer has one at its
//! end, of any size and at no price. Nobody reads or copies them byte by byte here.

use std::fs::File;
use std::io;
use std::ops::Range;

use rustix::fs::{SeekFrom, seek};
use rustix::io::{Errno, retry_on_intr};

use super::disk::Disk;

/// Shorter steps back are not worth a look.
const STEP_BYTES_MIN: u64 = 64 << 10;

/// The first part of `range` that is no hole; `None`: all of it is one. All of `range` where the file system does not
/// know, or the file ends before. Moves the position of the file, which nothing that appends depends on.
///
/// A byte that was written is in no hole, also while it is on its way to the disk: before Linux 6.9, ext4 calls a
/// hole what gets its blocks between two looks of its own, and a byte gets them once. So what either of two looks
/// shows as data is data.
///
/// # Errors
/// Whatever lseek(2) says.
pub(crate) fn data_in(file: &File, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
    if range.is_empty() {
        return Ok(None);
    }
    let start = match data_from(file, range.start)? {
        Some(at) if at == range.start => at,
        first => match (first, data_from(file, range.start)?) {
            (Some(one), Some(other)) => one.min(other),
            (Some(at), None) | (None, Some(at)) => at,
            // What is missing is for the reader to find.
            (None, None) if file.metadata()?.len() < range.end => range.start,
            (None, None) => return Ok(None),
        },
    };
    if start >= range.end {
        return Ok(None);
    }
    match retry_on_intr(|| seek(file, SeekFrom::Hole(start))) {
        Ok(end) if end > start => Ok(Some(start..end.min(range.end))),
        // One of the two looks was wrong, or the file was cut meanwhile.
        Ok(_) | Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(Some(start..range.end)),
        Err(e) => Err(e.into()),
    }
}

/// `None`: there is none up to the end of the file.
fn data_from(file: &File, at: u64) -> io::Result<Option<u64>> {
    match retry_on_intr(|| seek(file, SeekFrom::Data(at))) {
        Ok(data) => Ok(Some(data)),
        Err(Errno::NXIO) => Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(Some(at)),
        Err(e) => Err(e.into()),
    }
}

/// How many bytes from the front of `range` on are a hole.
pub(crate) fn hole_at<D: Disk>(disk: &D, file: &D::File, range: Range<u64>) -> io::Result<u64> {
    let (start, end) = (range.start, range.end);
    Ok(disk.data_in(file, range)?.map_or(end, |data| data.start) - start)
}

/// Where a hole that ends at `end` begins, or somewhat behind that; `end` if there is none. Asks some thirty times,
/// however large it is.
pub(crate) fn hole_before<D: Disk>(disk: &D, file: &D::File, end: u64) -> io::Result<u64> {
    let (mut at, mut step, mut grows) = (end, STEP_BYTES_MIN, true);
    while at > 0 && step >= STEP_BYTES_MIN {
        let start = at.saturating_sub(step);
        match disk.data_in(file, start..at)? {
            None => at = start,
            Some(_) => grows = false,
        }
        step = if grows { step.saturating_mul(2) } else { step / 2 };
    }
    Ok(at)
}

/// Nothing but zeros?
pub(crate) fn is_zeros(bytes: &[u8]) -> bool {
    bytes.iter().all(|&b| b == 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;
    use crate::storage::disk::RealDisk;

    const BLOCK: u64 = 4096;
    const LEN: u64 = 1 << 33;

    /// On the disk, and in memory.
    fn places() -> Vec<tempfile::TempDir> {
        let on_disk = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        [Some(on_disk), tempfile::tempdir_in("/dev/shm").ok()].into_iter().flatten().collect()
    }

    /// Broken, bytes that somebody wrote would be taken for zeros, cut off and lost.
    #[test]
    fn what_was_written_is_in_no_hole_synced_or_not() {
        for place in places() {
            let disk = RealDisk::open(place.path()).unwrap();
            let file = disk.open_data("a.jsonl").unwrap();
            file.set_len(LEN).unwrap();
            if data_in(&file, 0..LEN).unwrap().is_some() {
                println!("skip: this file system knows no holes");
                continue;
            }
            for synced in [false, true] {
                for at in [0, 5, BLOCK, 100 * BLOCK + 7, 1 << 32, LEN - 1] {
                    file.set_len(0).unwrap();
                    file.set_len(LEN).unwrap();
                    file.set_len(at).unwrap();
                    disk.append(&file, &[io::IoSlice::new(b"x")]).unwrap();
                    file.set_len(LEN).unwrap();
                    if synced {
                        file.sync_data().unwrap();
                    }
                    let found = data_in(&file, 0..LEN).unwrap().unwrap();
                    assert!(found.contains(&at) && found.end - found.start <= 1 << 21, "{at}: {found:?}");
                    assert_eq!(data_in(&file, at..at + 1).unwrap(), Some(at..at + 1));
                    assert_eq!(data_in(&file, at..at).unwrap(), None);
                    let begin = hole_before(&disk, &file, LEN).unwrap();
                    assert!((at + 1..=found.end + STEP_BYTES_MIN).contains(&begin), "{at}: {begin}");
                    assert_eq!(hole_at(&disk, &file, 0..LEN).unwrap(), found.start);
                    let mut byte = [0];
                    file.read_exact_at(&mut byte, at).unwrap();
                    assert_eq!(byte, *b"x");
                }
            }
        }
    }

    /// Broken, half a line that the kernel is just writing would be taken for a hole, cut off and kept as zeros.
    #[test]
    fn what_is_on_its_way_to_the_disk_is_in_no_hole() {
        use std::sync::atomic::{AtomicU64, Ordering};
        const STRIDE: u64 = 64 << 10;
        let place = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let disk = RealDisk::open(place.path()).unwrap();
        let file = disk.open_data("a.jsonl").unwrap();
        let writer = File::options().write(true).open(place.path().join("a.jsonl")).unwrap();
        writer.set_len(LEN).unwrap();
        let written = AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..200 {
                    writer.write_all_at(b"x", n * STRIDE).unwrap();
                    written.store(n + 1, Ordering::Release);
                    if n % 4 == 3 {
                        writer.sync_data().unwrap();
                    }
                }
            });
            while !scope_is_over(&written) {
                let known = written.load(Ordering::Acquire);
                for at in (known.saturating_sub(8)..known).map(|n| n * STRIDE) {
                    assert!(data_in(&file, at..at + 1).unwrap().is_some(), "byte {at} of {known} writes");
                }
            }
        });
        fn scope_is_over(written: &AtomicU64) -> bool {
            written.load(Ordering::Acquire) == 200
        }
    }

    /// Broken, a file that somebody cuts would be copied with zeros that were never in it.
    #[test]
    fn what_is_behind_the_end_is_no_hole() {
        for place in places() {
            let disk = RealDisk::open(place.path()).unwrap();
            let file = disk.open_data("a.jsonl").unwrap();
            file.set_len(BLOCK).unwrap();
            for range in [0..2 * BLOCK, BLOCK..BLOCK + 1, 9 * BLOCK..10 * BLOCK] {
                assert_eq!(data_in(&file, range.clone()).unwrap(), Some(range));
            }
        }
    }
}
