//! Names that sort in the order of the calls, whatever the clock does and whoever writes beside.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};

use super::disk::open_regular;
use super::{SUFFIX, is_events};

/// The file with the highest number that a name of its domain began with.
pub(super) const LAST: &str = "last";
const DIGITS: usize = 23;
/// No clock and no count comes so far: a greater number was made by nobody who follows the protocol.
const NUMBER_MAX: u128 = 10u128.pow(22) - 1;
/// A process that was stopped in the middle must not stop the others.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// Names that this process has given.
static NAMES: AtomicU64 = AtomicU64::new(0);

/// A name behind all others in this directory. `look` at them too: else only at the file `last`.
pub(super) fn next_name(directory: &Path, look: bool) -> io::Result<String> {
    let number = match Last::open(directory) {
        Ok(last) => {
            let known = last.read().ok().flatten();
            let highest = if look || known.is_none() { known.max(highest_name(directory)?) } else { known };
            let number = behind(highest);
            match last.write(number, known.is_none()) {
                Ok(()) => number,
                // Others do not learn of it: then the names decide.
                Err(_) => behind(highest.max(highest_name(directory)?)),
            }
        }
        Err(_) => behind(highest_name(directory)?),
    };
    let count = NAMES.fetch_add(1, Ordering::Relaxed) + 1;
    Ok(format!("{number:0DIGITS$}-{:010}-{count:06}{SUFFIX}", process::id()))
}

/// The time, or one more than the highest number so far.
fn behind(highest: Option<u128>) -> u128 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    now.max(highest.map_or(0, |highest| highest.saturating_add(1)))
}

fn highest_name(directory: &Path) -> io::Result<Option<u128>> {
    let mut highest = None;
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        if is_events(&name) {
            highest = highest.max(name.to_str().and_then(|name| number(name.as_bytes().get(..DIGITS)?)));
        }
    }
    Ok(highest)
}

/// Is this a name as [`next_name`] makes them? Others are left alone.
pub(super) fn is_name(name: &str) -> bool {
    let parts: Vec<_> = name.strip_suffix(SUFFIX).unwrap_or_default().split('-').collect();
    let [number, process, count] = parts[..] else { return false };
    let lengths_are_good = number.len() == DIGITS && process.len() == 10 && count.len() >= 6;
    lengths_are_good && parts.iter().all(|part| part.bytes().all(|b| b.is_ascii_digit()))
}

/// The number of exactly as many digits, if it can be one.
fn number(digits: &[u8]) -> Option<u128> {
    let is_one = digits.len() == DIGITS && digits.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(digits).ok().filter(|_| is_one)?.parse().ok()?;
    (number <= NUMBER_MAX).then_some(number)
}

/// The file `last`, with its lock.
struct Last(File);

impl Last {
    fn open(directory: &Path) -> io::Result<Last> {
        let path = directory.join(LAST);
        let file = open_regular(&path, OpenOptions::new().create(true).read(true).write(true).truncate(false))?;
        let deadline = Instant::now() + LOCK_WAIT;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Last(file)),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(1));
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn read(&self) -> io::Result<Option<u128>> {
        // One more than there should be, to see what is longer.
        let mut text = [0; DIGITS + 1];
        let length = self.0.read_at(&mut text, 0)?;
        Ok(number(&text[..length]))
    }

    /// `shorten`: what was there was no number.
    fn write(&self, number: u128, shorten: bool) -> io::Result<()> {
        self.0.write_all_at(format!("{number:0DIGITS$}").as_bytes(), 0)?;
        if shorten { self.0.set_len(DIGITS as u64) } else { Ok(()) }
    }
}

impl Drop for Last {
    fn drop(&mut self) {
        // A process that was forked meanwhile has the file open too, and with it the lock.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, events would be delivered in another order than they were given.
    #[test]
    fn names_sort_in_the_order_of_the_calls() {
        let dir = tempfile::tempdir().unwrap();
        let last = dir.path().join(LAST);
        let put = |name: String| {
            fs::write(dir.path().join(&name), "").unwrap();
            name
        };
        let next = |look| put(next_name(dir.path(), look).unwrap());
        let mut names: Vec<_> = (0..200).map(|n| next(n == 0)).collect();
        let (number, rest) = names[0].split_once('-').unwrap();
        let (pid, rest) = rest.split_once('-').unwrap();
        assert_eq!((number.len(), pid.len()), (23, 10));
        assert!(rest.strip_suffix(SUFFIX).unwrap().len() >= 6, "{rest}");
        // Far ahead of the clock, as after it was set back; by another process, with or without the file `last`.
        names.push(put(format!("{:023}-0000000001-000001{SUFFIX}", 10u128.pow(20))));
        fs::write(&last, "garbage").unwrap();
        names.extend((0..3).map(|_| next(false)));
        fs::remove_file(&last).unwrap();
        names.push(next(true));
        // What is delivered leaves its number behind.
        fs::write(&last, format!("{:023}", 2 * 10u128.pow(20))).unwrap();
        names.extend((0..3).map(|_| next(false)));
        // Without the file the names decide.
        fs::remove_file(&last).unwrap();
        fs::create_dir(&last).unwrap();
        names.extend((0..3).map(|_| next(false)));
        assert!(names.is_sorted(), "{names:#?}");
    }
}
