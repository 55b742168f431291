//! `WholeSync`: one sync of the file system in place of one for each file.
//!
//! A sync of a file is mostly a journal commit and a flush of the device, which carry all other files
//! with them. With many domains one `syncfs` costs little more than one `fdatasync`, and gives the same
//! guarantee to all of them: "sync() or syncfs() provide the same guarantees as fsync() called on every
//! file in the system or filesystem respectively" (sync(2), Linux). Two things are against it, and
//! both are looked at here: it writes what others have left for later, and before Linux 5.8 it
//! did not tell of failed writes.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use rustix::fs::{FsWord, Mode, OFlags};

use super::disk::EXT4;

/// The first Linux whose `syncfs` reports failed writes of any file since the last call, see syncfs(2).
const REPORTS_SINCE: (u32, u32) = (5, 8);
/// Most bytes that may wait to be written on this machine, by anybody: what a sync may have to carry.
const DIRTY_BYTES_MAX: u64 = 16 << 20;
/// How old a reading of that may be.
const DIRTY_AGE_MAX: Duration = Duration::from_millis(20);
/// No more tries for so long after a failed one, which cost time for nothing.
const PAUSE: Duration = Duration::from_secs(60);
/// A sync that took longer has carried what others wrote meanwhile, or the disk is slow; either way many
/// syncs side by side are as good.
const SLOW: Duration = Duration::from_millis(20);
/// No more tries for so long after a slow one, and twice as long after the next.
const SLOW_PAUSE_MIN: Duration = Duration::from_secs(1);

/// Syncs one file system as a whole.
#[derive(Debug)]
pub(super) struct WholeSync {
    /// Only for this: a failed write is told once to each open file.
    fd: Mutex<OwnedFd>,
    judged: Mutex<Judged>,
}

#[derive(Debug)]
struct Judged {
    until: Instant,
    worth_it: bool,
    failed_at: Option<Instant>,
    /// After the next slow sync.
    slow_pause: Duration,
}

impl WholeSync {
    /// For the file system, of type `system`, that `dir` is on; `None` where it is not to be used.
    pub(super) fn new(dir: impl AsFd, system: FsWord) -> Option<WholeSync> {
        // Others may follow when somebody has measured them.
        if system != EXT4 || kernel()? < REPORTS_SINCE {
            return None;
        }
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(dir, ".", flags, Mode::empty()).ok()?;
        let judged = Judged { until: Instant::now(), worth_it: false, failed_at: None, slow_pause: SLOW_PAUSE_MIN };
        Some(WholeSync { fd: Mutex::new(fd), judged: Mutex::new(judged) })
    }

    /// Is little enough waiting to be written that nobody would wait long for it?
    pub(super) fn is_worth_it(&self) -> bool {
        let mut judged = self.judged();
        let now = Instant::now();
        if judged.until <= now {
            let worth_it = dirty_bytes().is_some_and(|bytes| bytes <= DIRTY_BYTES_MAX);
            *judged = Judged { until: now + DIRTY_AGE_MAX, worth_it, ..*judged };
        }
        judged.worth_it
    }

    /// True: everything written to the file system since `written_since`, and before the call, is on the disk.
    ///
    /// A failed write of any file makes it false; then each file tells its own story when it is synced
    /// (errseq_t in the kernel). The failure is told here only once. So what was written while a failed
    /// sync was under way must not rely on the next one, which may not hear of it any more.
    pub(super) fn sync(&self, written_since: Instant) -> bool {
        let fd = match self.fd.try_lock() {
            Ok(fd) => fd,
            Err(TryLockError::Poisoned(fd)) => fd.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        if self.judged().failed_at.is_some_and(|at| written_since <= at) {
            return false;
        }
        let started = Instant::now();
        let result = rustix::fs::syncfs(&*fd);
        let now = Instant::now();
        let mut judged = self.judged();
        let Err(error) = result else {
            judged.took(now, now - started);
            return true;
        };
        *judged = Judged { until: now + PAUSE, worth_it: false, failed_at: Some(now), ..*judged };
        tracing::warn!(%error, "sync of the whole file system failed; each file is synced by itself for a while");
        false
    }

    fn judged(&self) -> MutexGuard<'_, Judged> {
        // Replaced as a whole.
        self.judged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Judged {
    fn took(&mut self, now: Instant, sync: Duration) {
        if sync <= SLOW {
            self.slow_pause = SLOW_PAUSE_MIN;
            return;
        }
        self.until = now + self.slow_pause;
        self.worth_it = false;
        self.slow_pause = (2 * self.slow_pause).min(PAUSE);
    }
}

/// Major and minor version of the running kernel.
fn kernel() -> Option<(u32, u32)> {
    version(rustix::system::uname().release().to_str().ok()?)
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Bytes on this machine that are to be written, or are being written.
fn dirty_bytes() -> Option<u64> {
    let mut text = String::with_capacity(8 << 10);
    File::open("/proc/vmstat").ok()?.read_to_string(&mut text).ok()?;
    Some(dirty_pages(&text)?.saturating_mul(rustix::param::page_size() as u64))
}

fn dirty_pages(vmstat: &str) -> Option<u64> {
    let figure = |name: &str| vmstat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    let [dirty, writeback]: [u64; 2] = [figure("nr_dirty")?, figure("nr_writeback")?];
    Some(dirty + writeback)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, every domain would wait for what others write, again and again.
    #[test]
    fn slow_syncs_are_left_alone_for_longer_and_longer() {
        let now = Instant::now();
        let mut judged = Judged { until: now, worth_it: true, failed_at: None, slow_pause: SLOW_PAUSE_MIN };
        judged.took(now, SLOW);
        assert!(judged.worth_it);
        for pause_s in [1, 2, 4, 8, 16, 32, 60, 60] {
            judged.worth_it = true;
            judged.took(now, SLOW + Duration::from_nanos(1));
            assert_eq!((judged.worth_it, judged.until), (false, now + Duration::from_secs(pause_s)));
        }
        judged.took(now, SLOW);
        judged.took(now, 2 * SLOW);
        assert_eq!(judged.until, now + SLOW_PAUSE_MIN);
    }

    /// Broken, an old kernel's silence would be taken for success.
    #[test]
    fn kernels_are_told_apart() {
        assert_eq!(version("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(version("5.8.0"), Some((5, 8)));
        assert_eq!(version("5.10-rc1"), Some((5, 10)));
        assert!(version("5.4.0-42-generic") < Some(REPORTS_SINCE) && version("4.19.0").unwrap() < REPORTS_SINCE);
        assert_eq!((version("6"), version("next")), (None, None));
    }

    /// Broken, a copy of gigabytes beside the service would stop every domain until it is on the disk.
    #[test]
    fn what_waits_to_be_written_is_counted() {
        let vmstat = "nr_free_pages 5\nnr_dirty_threshold 9\nnr_dirty 3\nnr_writeback_temp 8\nnr_writeback 4\n";
        assert_eq!(dirty_pages(vmstat), Some(7));
        assert_eq!(dirty_pages("nr_dirty 3\n"), None);
        assert!(dirty_bytes().is_some());
    }
}
