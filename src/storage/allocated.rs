//! Has every byte of a file a place on the disk?
//!
//! Where a file system looks for blocks only when it writes (delayed allocation), that may fail long after `write`.
//! ext4 then throws the pages away, and tells that once: to whoever happened to start the write-back, which may be
//! the kernel's flusher or another process. A later `fdatasync` finds nothing to write and returns 0. What stays
//! is a hole in the file, or an extent that cannot be read; a write leaves neither. `tests/system` and
//! docs/durability.md have what was measured.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{SeekFrom, seek};
use rustix::io::{Errno, retry_on_intr};

/// Proves that the bytes of `range`, which were written and then synced without an error, have a place on the disk.
/// One system call, or two where somebody has written behind them. Moves the position of the file, which nothing
/// that appends depends on.
///
/// # Errors
/// [`io::ErrorKind::UnexpectedEof`]: the file ends before; somebody has cut it. Any other: the bytes are lost, or may
/// be.
pub(crate) fn check(file: &File, range: &Range<u64>) -> io::Result<()> {
    let end = first_hole(file, range)?;
    if end > range.end && range.end > range.start {
        check_last_byte(file, range.end)?;
    }
    Ok(())
}

/// Proves that the byte before `end`, which was not zero, is what it was. A page that was thrown away and then written
/// to anew shows no hole any more; but what stood in it is zeros.
fn check_last_byte(file: &File, end: u64) -> io::Result<()> {
    let mut last = [0];
    file.read_exact_at(&mut last, end - 1)?;
    if last == [0] { Err(lost(end - 1)) } else { Ok(()) }
}

/// Proves that all bytes of a file of `len` bytes have a place on the disk, for files that we wrote without holes.
///
/// # Errors
/// As [`check`].
pub(crate) fn check_whole(file: &File, len: u64) -> io::Result<()> {
    first_hole(file, &(0..len)).map(drop)
}

/// Proves that the file is at least `len` bytes long. As [`check`] it moves the position of the file; it costs less than
/// `fstat`.
///
/// # Errors
/// [`io::ErrorKind::UnexpectedEof`]: it is shorter.
pub(crate) fn check_length(file: &File, len: u64) -> io::Result<()> {
    if seek(file, SeekFrom::End(0))? < len { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

/// Where the first hole at or behind the end of `range` begins, the end of the file counted as one.
fn first_hole(file: &File, range: &Range<u64>) -> io::Result<u64> {
    let mut at = range.start;
    let mut seen_before = false;
    while at < range.end {
        match retry_on_intr(|| seek(file, SeekFrom::Hole(at))) {
            Ok(hole) if hole > at => at = hole,
            // Before Linux 6.9, ext4 looks twice, and calls a hole what got its blocks between the two looks.
            Ok(_) if !seen_before => seen_before = true,
            Ok(_) => return Err(lost(at)),
            Err(Errno::NXIO) => return Err(io::ErrorKind::UnexpectedEof.into()),
            // It does not know of holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(range.end),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(at)
}

fn lost(at: u64) -> io::Error {
    io::Error::other(format!("the system has thrown away what was written at byte {at}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On the disk, and in memory.
    fn files() -> Vec<File> {
        let on_disk = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        [Some(on_disk), tempfile::tempfile_in("/dev/shm").ok()].into_iter().flatten().collect()
    }

    fn append(file: &File, bytes: usize) -> Range<u64> {
        let start = file.metadata().unwrap().len();
        let line: Vec<u8> = (1..bytes).map(|n| b'a' + (n % 26) as u8).chain([b'\n']).collect();
        file.write_all_at(&line, start).unwrap();
        start..start + bytes as u64
    }

    /// Broken, a sound disk would poison its domains.
    #[test]
    fn what_was_written_is_there_whatever_is_around_it() {
        for file in files() {
            for bytes in [1, 100, 511, 512, 513, 4_095, 4_096, 4_097, 8_192, 70_000, 1 << 20] {
                let range = append(&file, bytes);
                check(&file, &range).unwrap();
                file.sync_data().unwrap();
                check(&file, &range).unwrap();
                append(&file, 10);
                check(&file, &range).unwrap();
                assert!(check(&file, &(range.end..range.end)).is_ok());
            }
            // Somebody makes the file longer, before and behind.
            let len = file.metadata().unwrap().len();
            file.set_len(len + (1 << 20)).unwrap();
            let range = append(&file, 5_000);
            file.set_len(range.end + (1 << 20)).unwrap();
            file.sync_data().unwrap();
            check(&file, &range).unwrap();
        }
    }

    /// Broken, an event that the system has thrown away would be acknowledged.
    #[test]
    fn what_was_thrown_away_is_missed() {
        for file in files() {
            append(&file, 100_000);
            let Ok(()) = rustix::fs::fallocate(
                &file,
                rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE,
                65_536,
                4_096,
            ) else {
                eprintln!("skipped: no holes can be punched here");
                continue;
            };
            for range in [0..100_000, 65_000..66_000, 65_536..65_537, 69_000..100_000] {
                assert_eq!(check(&file, &range).unwrap_err().kind(), io::ErrorKind::Other, "{range:?}");
            }
            assert!(check_whole(&file, 100_000).is_err() && check_whole(&file, 65_536).is_ok());
            check(&file, &(70_000..100_000)).unwrap();
            check(&file, &(0..65_000)).unwrap();
            // Written to anew, it is no hole any more; but its end is not what it was.
            file.write_all_at(b"x", 65_600).unwrap();
            assert!(check(&file, &(65_536..65_537)).is_err());
        }
    }

    /// Broken, a file that somebody cuts would look like one that lost something, or as if nothing were missing.
    #[test]
    fn a_cut_is_told_apart() {
        for file in files() {
            let range = append(&file, 10_000);
            for len in [9_999, 8_192, 1, 0] {
                file.set_len(len).unwrap();
                assert_eq!(check(&file, &range).unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "{len}");
                assert_eq!(check_length(&file, range.end).unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "{len}");
                check_length(&file, len).unwrap();
            }
        }
    }
}
