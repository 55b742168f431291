//! Events on disk, until the service is back. The format is in `clients/PROTOCOL.md`; other processes and
//! other client libraries may use the same directory at the same time.

mod disk;
mod locked;
mod order;

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub(crate) use disk::WriteError;
use disk::{Existing, create_directories, create_directory, none_if_missing, open_regular, sync_directory, write_file};
pub(crate) use locked::Locked;

use crate::batch::normal_domain;

const MARKER: &str = "leitstand-spool-1";
const LOCK: &str = "lock";
const REJECTED: &str = "rejected";
const BROKEN: &str = "broken";
const SUFFIX: &str = ".ndjson";
/// How long the known size is good for, while it is far from the limit. Others write here as well.
const SIZE_AGE_MAX: Duration = Duration::from_secs(1);

/// A directory of events that could not be delivered. Each process has its own value of this type.
#[derive(Debug)]
pub(crate) struct Spool {
    directory: PathBuf,
    max_bytes: u64,
    state: Mutex<State>,
    locks: Mutex<Locks>,
    /// By domain and name: what is still to be sent of files that could not be removed or rewritten.
    rests: Mutex<HashMap<(String, String), Vec<u8>>>,
    /// By domain and name: files that can neither be delivered nor put aside. A flush tries them again.
    stuck: Mutex<HashSet<(String, String)>>,
}

#[derive(Debug, Default)]
struct State {
    size: Option<(u64, Instant)>,
    /// Device and inode of the directory, once it was found to be a spool.
    identity: Option<(u64, u64)>,
    /// Domains whose directory is on disk for sure, and whose names this process has looked at.
    known_domains: HashSet<String>,
}

/// The locks that this process holds: their files, so that a forked process can close them.
#[derive(Debug, Default)]
struct Locks {
    next: u64,
    open: HashMap<u64, File>,
}

/// A panic while it is held leaves nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Spool {
    /// Of an absolute path. Nothing is looked at yet.
    pub fn new(directory: PathBuf, max_bytes: u64) -> Spool {
        Spool {
            directory,
            max_bytes,
            state: Mutex::default(),
            locks: Mutex::default(),
            rests: Mutex::default(),
            stuck: Mutex::default(),
        }
    }

    /// Creates the directory where it is missing; refuses one that is for something else.
    pub fn prepare(&self) -> io::Result<()> {
        self.prepare_with(&mut lock(&self.state))
    }

    fn prepare_with(&self, state: &mut State) -> io::Result<()> {
        let data = match fs::metadata(&self.directory) {
            Ok(data) => data,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                create_directories(&self.directory)?;
                fs::metadata(&self.directory)?
            }
            Err(e) => return Err(e),
        };
        if !data.is_dir() {
            return Err(io::Error::other(format!("{} is no directory", self.directory.display())));
        }
        let identity = Some((data.dev(), data.ino()));
        let marker = self.directory.join(MARKER);
        let has_marker = marker.try_exists()?;
        if has_marker && state.identity == identity {
            return Ok(());
        }
        // The same directory was a spool before, and still looks like one: somebody has removed the marker.
        let is_known = has_marker || (state.identity == identity && self.holds_domains_only()?);
        if !is_known {
            // Asked in this order: another process may have put the marker there meanwhile.
            let is_empty = fs::read_dir(&self.directory)?.next().is_none();
            if !is_empty && !marker.try_exists()? {
                return Err(io::Error::other(format!(
                    "{} is not empty and holds no {MARKER}; it is for something else",
                    self.directory.display()
                )));
            }
        }
        open_regular(&marker, OpenOptions::new().create(true).append(true))?.sync_all()?;
        sync_directory(&self.directory)?;
        self.directory.parent().map_or(Ok(()), sync_directory)?;
        *state = State { identity, ..State::default() };
        Ok(())
    }

    /// An inode may be given again to another directory, so what is in it counts too.
    fn holds_domains_only(&self) -> io::Result<bool> {
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let is_domain = entry.file_name().to_str().is_some_and(|name| normal_domain(name).as_deref() == Some(name));
            if !is_domain || !(entry.path().join(order::LAST).exists() || entry.path().join(LOCK).exists()) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Puts the events of one call behind all others of their domain. They are on disk when this returns.
    pub fn append(&self, domain: &str, lines: &[u8]) -> Result<(), WriteError> {
        let mut state = lock(&self.state);
        self.prepare_with(&mut state)?;
        let bytes = lines.len() as u64;
        // Half of the limit: two processes may each trust what they know for a second.
        let known = state.size.filter(|(known, at)| at.elapsed() < SIZE_AGE_MAX && known + bytes <= self.max_bytes / 2);
        let (known, at) = match known {
            Some(known) => known,
            None => (self.size_bytes()?, Instant::now()),
        };
        if known + bytes > self.max_bytes {
            state.size = None;
            return Err(io::Error::other(format!("full: {known} of {} bytes are taken", self.max_bytes)).into());
        }
        let directory = self.directory.join(domain);
        let is_known = state.known_domains.contains(domain) && directory.is_dir();
        if !is_known {
            create_directory(&directory)?;
        }
        let mut look = !is_known;
        loop {
            let name = order::next_name(&directory, look)?;
            match write_file(&directory, &directory, &name, lines, Existing::Keep) {
                // By a process with the same id in another container.
                Err(e) if !e.perhaps && e.source.kind() == ErrorKind::AlreadyExists => look = true,
                written => {
                    written?;
                    break;
                }
            }
        }
        state.known_domains.insert(domain.to_owned());
        state.size = Some((known + bytes, at));
        Ok(())
    }

    /// Does it hold events of this domain that a call can deliver?
    pub fn holds(&self, domain: &str) -> io::Result<bool> {
        for entry in none_if_missing(fs::read_dir(self.directory.join(domain)))?.into_iter().flatten() {
            let entry = entry?;
            if is_events_file(&entry)? && !self.is_stuck(domain, &entry.file_name()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_stuck(&self, domain: &str, name: &OsStr) -> bool {
        let stuck = lock(&self.stuck);
        !stuck.is_empty() && name.to_str().is_some_and(|name| stuck.contains(&(domain.to_owned(), name.to_owned())))
    }

    /// What is stuck counts as any other file again.
    pub fn try_again(&self, domain: &str) {
        lock(&self.stuck).retain(|(stuck, _)| stuck != domain);
    }

    /// Every domain that has a directory.
    pub fn domains(&self) -> io::Result<Vec<String>> {
        let mut domains = Vec::new();
        for entry in none_if_missing(fs::read_dir(&self.directory))?.into_iter().flatten() {
            let entry = entry?;
            let name = entry.file_name().into_string().ok().filter(|name| normal_domain(name).as_ref() == Some(name));
            if let Some(name) = name
                && entry.path().is_dir()
            {
                domains.push(name);
            }
        }
        domains.sort();
        Ok(domains)
    }

    /// The events in it, `rejected/` and `broken/` included.
    fn size_bytes(&self) -> io::Result<u64> {
        let mut sum = 0;
        for domain in self.domains()? {
            let directory = self.directory.join(domain);
            for part in [directory.clone(), directory.join(REJECTED), directory.join(BROKEN)] {
                // One that is missing or is no directory holds nothing.
                for entry in fs::read_dir(part).into_iter().flatten() {
                    let entry = entry?;
                    if entry.file_name().to_str().is_some_and(|name| name.ends_with(SUFFIX)) {
                        // Delivered meanwhile, it has no size.
                        sum += entry.metadata().map_or(0, |data| data.len());
                    }
                }
            }
        }
        Ok(sum)
    }
}

/// A pipe or a link is not for this spool, whatever its name.
fn is_events_file(entry: &fs::DirEntry) -> io::Result<bool> {
    Ok(is_events(&entry.file_name()) && entry.file_type()?.is_file())
}

fn is_events(name: &OsStr) -> bool {
    name.to_str().is_some_and(order::is_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, a spool in the wrong directory would mix with what is there.
    #[test]
    fn a_directory_for_something_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.txt"), "x").unwrap();
        let error = Spool::new(dir.path().to_owned(), 1).prepare().unwrap_err().to_string();
        assert!(error.contains(MARKER), "{error}");
        assert!(!dir.path().join(MARKER).exists());
    }

    /// Broken, what is removed, replaced or emptied while a program runs would strand its events.
    #[test]
    fn a_spool_that_changes_is_made_anew_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("deep/spool");
        let spool = Spool::new(place.clone(), 1000);
        let append = || spool.append("a.example", b"{}\n");
        let is_whole = || place.join(MARKER).is_file() && spool.holds("a.example").unwrap();
        append().unwrap();
        assert!(is_whole());
        fs::remove_dir_all(dir.path().join("deep")).unwrap();
        append().unwrap();
        assert!(is_whole(), "made anew");
        fs::remove_file(place.join(MARKER)).unwrap();
        append().unwrap();
        assert!(is_whole(), "the marker came back");
        fs::remove_dir_all(place.join("a.example")).unwrap();
        append().unwrap();
        assert!(is_whole(), "the domain came back");
        fs::remove_dir_all(&place).unwrap();
        fs::create_dir(&place).unwrap();
        fs::write(place.join("thesis.txt"), "x").unwrap();
        assert!(!append().unwrap_err().perhaps, "another directory is refused");
        assert!(!place.join(MARKER).exists() && !place.join("a.example").exists());
        fs::remove_dir_all(&place).unwrap();
        fs::write(&place, "x").unwrap();
        assert!(append().is_err(), "so is a file");
        fs::remove_file(&place).unwrap();
        append().unwrap();
        assert!(is_whole());
    }
}
