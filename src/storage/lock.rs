//! A domain's lock, for whoever looks at its file without being a writer.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use super::disk::{Disk, RealDisk};
use super::layout::FileNames;

/// Pause between two looks at a foreign lock. Shorter than the gaps that the service leaves.
pub(super) const LOCK_POLL: Duration = Duration::from_millis(2);
/// The same at first: a service at full load leaves the lock free for tens of microseconds, thousands of times
/// a second, and who catches one of them needs no gap.
const FIRST_POLLS: Duration = Duration::from_micros(100);
const FIRST_POLLS_FOR: Duration = Duration::from_millis(20);
/// A service takes each open of the lock file for a wish, and leaves a gap for it. So not each look
/// opens it; but a wish may be overlooked.
const REOPEN_AFTER: Duration = Duration::from_millis(250);

/// Takes the domain's lock without creating its file; `None`: somebody else has it for too long.
///
/// Where there is no lock file nobody holds the lock, and `Some(None)` comes back.
pub(super) fn lock(disk: &RealDisk, names: &FileNames, patience: Duration) -> io::Result<Option<Option<File>>> {
    let began = Instant::now();
    let mut opened = None;
    loop {
        let kept = opened.take().filter(|(_, at): &(File, Instant)| at.elapsed() < REOPEN_AFTER);
        let (file, at) = match kept {
            Some(kept) => kept,
            None => match disk.open_read(&names.lock) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Some(None)),
                Err(e) => return Err(io::Error::new(e.kind(), format!("cannot open the lock file: {e}"))),
                Ok(file) => (file, Instant::now()),
            },
        };
        if disk.try_lock(&file)? {
            // compat: the lock only counts if the name still leads to the file that was locked.
            if disk.stat(&names.lock)?.is_some_and(|now| disk.fstat(&file).is_ok_and(|f| f.id == now.id)) {
                return Ok(Some(Some(file)));
            }
        } else {
            opened = Some((file, at));
        }
        let waited = began.elapsed();
        if waited >= patience {
            return Ok(None);
        }
        std::thread::sleep(if waited < FIRST_POLLS_FOR { FIRST_POLLS } else { LOCK_POLL });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Domain;

    /// Broken, a file would be looked at beside its writer because its lock could not be opened.
    #[test]
    fn a_lock_that_cannot_be_opened_is_not_taken_for_none() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(dir.path()).unwrap();
        let names = FileNames::of(&Domain::parse("a").unwrap());
        assert!(matches!(lock(&disk, &names, Duration::ZERO), Ok(Some(None))), "there is none");
        std::os::unix::fs::symlink("elsewhere", dir.path().join(&names.lock)).unwrap();
        assert!(lock(&disk, &names, Duration::ZERO).is_err());
        std::fs::remove_file(dir.path().join(&names.lock)).unwrap();
        File::create(dir.path().join(&names.lock)).unwrap();
        let held = lock(&disk, &names, Duration::ZERO).unwrap().unwrap().unwrap();
        assert!(matches!(lock(&disk, &names, Duration::from_millis(5)), Ok(None)), "it is taken");
        drop(held);
        assert!(matches!(lock(&disk, &names, Duration::ZERO), Ok(Some(Some(_)))));
    }
}
