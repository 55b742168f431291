//! `sync_file_range(2)` as a safe function.
//!
//! A crate of its own, because the service forbids `unsafe` and the libraries that it uses do not offer this call.
//! There is one `unsafe` block here, around one system call that takes no pointer.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

/// Starts to write the dirty pages of a file from `offset` (in bytes) to its end, and waits for none of them. Pages
/// that are being written already are left out.
///
/// `Ok` does not mean that anything is on the disk; that is what `fdatasync` is for. But blocks were found for all
/// pages that this call has started, which on ext4 is told to nobody else.
///
/// # Errors
/// Why the write-back could not be started, such as `EIO` or `ENOSPC`. The pages may be lost then.
/// [`io::ErrorKind::Unsupported`] where the system has no such call: then nothing was started.
pub fn start(file: impl AsFd, offset: u64) -> io::Result<()> {
    let offset = libc::off64_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open for as long as `file` is borrowed, and the call reads and writes no memory of ours.
    let result = unsafe { libc::sync_file_range(fd, offset, 0, libc::SYNC_FILE_RANGE_WRITE) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// Broken, an error of the call would be taken for success, or the other way round.
    #[test]
    fn the_result_of_the_call_is_told() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[b'x'; 10_000]).unwrap();
        for offset in [0, 5_000, 10_000, 1 << 40] {
            start(&file, offset).unwrap();
        }
        assert_eq!(start(&file, u64::MAX).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let (end, _other) = std::io::pipe().unwrap();
        assert_eq!(start(&end, 0).unwrap_err().kind(), io::ErrorKind::NotSeekable);
    }
}
