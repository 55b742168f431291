//! `LockWatch`: does anybody else want a lock?
//!
//! Whoever waits for a lock by polling opens the lock file again and again (Python's filelock: every
//! 50 ms). inotify(7) tells of each open. So a lock need not be left free on the mere chance that
//! somebody waits for it.
//!
//! Who opens it only to read and closes it again wants nothing any more: a snapshot or a check of ours, which
//! looks often enough to find the lock free between two groups. A writer that polls opens it to write.

use std::collections::HashSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::inotify;

use super::layout::LOCK_SUFFIX;

/// Names kept until somebody asks for them; with more it is as if the kernel had lost some.
const NAMES_MAX: usize = 4096;
/// After events were lost nothing is known for so long: longer than a slice of holding a lock.
const LOST_FOR: Duration = Duration::from_millis(250);
/// Room for a few dozen events at once.
const BUFFER_BYTES: usize = 4096;

/// What is known of others who want a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    Yes,
    /// Nobody on this machine has opened the lock file lately.
    No,
    /// The operating system does not say.
    Unknown,
}

/// Watches the lock files of one directory.
#[derive(Debug)]
pub(crate) struct LockWatch {
    inotify: OwnedFd,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    names: HashSet<Box<str>>,
    /// When events were lost.
    lost_at: Option<Instant>,
}

impl LockWatch {
    /// # Errors
    /// When the limits of the user (`fs.inotify.max_user_instances`) are used up.
    pub(crate) fn new(dir: &Path) -> io::Result<LockWatch> {
        let inotify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let events = inotify::WatchFlags::OPEN | inotify::WatchFlags::CLOSE_NOWRITE;
        inotify::add_watch(&inotify, dir, events | inotify::WatchFlags::ONLYDIR)?;
        Ok(LockWatch { inotify, seen: Mutex::default() })
    }

    /// Was the lock file opened since the last look at it, by somebody who may still want it? With any
    /// other name it just reads what the kernel holds, so that it does not pile up there.
    pub(crate) fn take(&self, lock_name: &str) -> Wanted {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        self.read_events(&mut seen);
        if seen.names.remove(lock_name) {
            Wanted::Yes
        } else if seen.lost_at.is_some_and(|at| at.elapsed() < LOST_FOR) {
            Wanted::Unknown
        } else {
            Wanted::No
        }
    }

    /// Is there somebody of whom [`LockWatch::take`] would tell?
    pub(crate) fn peek(&self, lock_name: &str) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        self.read_events(&mut seen);
        seen.names.contains(lock_name)
    }

    fn read_events(&self, seen: &mut Seen) {
        let mut buffer = [MaybeUninit::uninit(); BUFFER_BYTES];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        // Ends with WOULDBLOCK; any other error tells no more.
        while let Ok(event) = reader.next() {
            if event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW) {
                seen.lost_at = Some(Instant::now());
                continue;
            }
            let name = event.file_name().and_then(|name| name.to_str().ok());
            let Some(name) = name.filter(|name| name.ends_with(LOCK_SUFFIX)) else { continue };
            if event.events().contains(inotify::ReadFlags::CLOSE_NOWRITE) {
                seen.names.remove(name);
                continue;
            }
            if seen.names.len() >= NAMES_MAX {
                seen.names.clear();
                seen.lost_at = Some(Instant::now());
            }
            if !seen.names.contains(name) {
                seen.names.insert(name.into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    /// Broken, a waiting Python writer would be overlooked, or everybody else be taken for one.
    #[test]
    fn opens_of_a_lock_file_are_seen_once() {
        let dir = tempfile::tempdir().unwrap();
        let watch = LockWatch::new(dir.path()).unwrap();
        let path = |name: &str| dir.path().join(name);
        assert_eq!(watch.take("a.jsonl.lock"), Wanted::No);
        File::create(path("a.jsonl.lock")).unwrap();
        File::create(path("a.jsonl")).unwrap();
        File::create(path("a.jsonl.lock")).unwrap();
        assert_eq!(watch.take("b.jsonl.lock"), Wanted::No);
        assert_eq!(watch.take("a.jsonl.lock"), Wanted::Yes);
        assert_eq!(watch.take("a.jsonl.lock"), Wanted::No);
        File::create(path("b.jsonl.lock")).unwrap();
        watch.take("");
        assert_eq!(watch.take("b.jsonl.lock"), Wanted::Yes);
    }

    /// Broken, each look of a snapshot at a busy domain would stop its writer for 56 ms; or one that waits
    /// would be overlooked.
    #[test]
    fn who_has_only_read_a_lock_file_wants_it_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let name = "a.jsonl.lock";
        File::create(dir.path().join(name)).unwrap();
        let watch = LockWatch::new(dir.path()).unwrap();
        let reader = File::open(dir.path().join(name)).unwrap();
        assert_eq!(watch.take(name), Wanted::Yes, "it waits");
        drop(reader);
        assert_eq!(watch.take(name), Wanted::No, "it has gone");
        drop(File::open(dir.path().join(name)).unwrap());
        assert_eq!(watch.take(name), Wanted::No, "it came and went");
        drop(File::open(dir.path().join(name)).unwrap());
        File::create(dir.path().join(name)).unwrap();
        assert_eq!(watch.take(name), Wanted::Yes, "a writer came after it");
    }

    #[test]
    fn names_are_bounded_and_what_is_lost_counts_as_unknown_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let watch = LockWatch::new(dir.path()).unwrap();
        for i in 0..=NAMES_MAX {
            File::create(dir.path().join(format!("{i}.jsonl.lock"))).unwrap();
        }
        assert_eq!(watch.take("0.jsonl.lock"), Wanted::Unknown);
        assert_eq!(watch.take(&format!("{NAMES_MAX}.jsonl.lock")), Wanted::Yes);
        std::thread::sleep(LOST_FOR);
        assert_eq!(watch.take("0.jsonl.lock"), Wanted::No);
    }
}
