//! Events on disk, until the service is back. The format is in `clients/PROTOCOL.md`; other processes and
//! other client libraries may use the same directory at the same time.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};
use serde::de::IgnoredAny;

use crate::batch::normal_domain;

const MARKER: &str = "leitstand-spool-1";
const LOCK: &str = "lock";
const REJECTED: &str = "rejected";
const BROKEN: &str = "broken";
const SUFFIX: &str = ".ndjson";
const TEMPORARY: &str = "tmp-";
/// An older temporary file was left by a process that died.
const TEMPORARY_AGE_MAX: Duration = Duration::from_secs(3600);
/// How long the known size is good for, while it is far from the limit. Others write here as well.
const SIZE_AGE_MAX: Duration = Duration::from_secs(1);

/// The last name of this process: nanoseconds, and how many there were.
static LAST_NAME: Mutex<(u128, u64)> = Mutex::new((0, 0));
/// Temporary files of this process so far.
static TEMPORARIES: AtomicU64 = AtomicU64::new(0);

/// A directory of events that could not be delivered.
#[derive(Debug)]
pub(crate) struct Spool {
    directory: PathBuf,
    max_bytes: u64,
    size: Mutex<Option<(u64, Instant)>>,
}

impl Spool {
    /// Creates the directory where it is missing; refuses one that is for something else.
    pub fn open(directory: PathBuf, max_bytes: u64) -> io::Result<Spool> {
        create_directory(&directory)?;
        let marker = directory.join(MARKER);
        if !marker.try_exists()? {
            // Asked in this order: another process may have put the marker there meanwhile.
            let is_empty = fs::read_dir(&directory)?.next().is_none();
            if !is_empty && !marker.try_exists()? {
                return Err(io::Error::other(format!(
                    "{} is not empty and holds no {MARKER}; it is for something else",
                    directory.display()
                )));
            }
            OpenOptions::new().create(true).append(true).mode(0o600).open(&marker)?.sync_all()?;
            sync_directory(&directory)?;
        }
        Ok(Spool { directory, max_bytes, size: Mutex::new(None) })
    }

    /// Puts the events of one call behind all others of their domain. They are on disk when this returns.
    pub fn append(&self, domain: &str, lines: &[u8]) -> io::Result<()> {
        let mut size = self.size.lock().expect("no panic while it is held");
        let bytes = lines.len() as u64;
        // Half of the limit: two processes may each trust what they know for a second.
        let known = size.filter(|(known, at)| at.elapsed() < SIZE_AGE_MAX && known + bytes <= self.max_bytes / 2);
        let (known, at) = match known {
            Some(known) => known,
            None => (self.size_bytes()?, Instant::now()),
        };
        if known + bytes > self.max_bytes {
            *size = None;
            return Err(io::Error::other(format!("full: {known} of {} bytes are taken", self.max_bytes)));
        }
        let directory = self.directory.join(domain);
        create_directory(&directory)?;
        write_file(&directory, &directory, &next_name(), lines)?;
        *size = Some((known + bytes, at));
        Ok(())
    }

    /// Does it hold events of this domain?
    pub fn holds(&self, domain: &str) -> io::Result<bool> {
        for entry in none_if_missing(fs::read_dir(self.directory.join(domain)))?.into_iter().flatten() {
            if is_events(&entry?.file_name()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Every domain that has a directory.
    pub fn domains(&self) -> io::Result<Vec<String>> {
        let mut domains = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name().into_string().ok().filter(|name| normal_domain(name).as_ref() == Some(name));
            if let Some(name) = name
                && entry.file_type()?.is_dir()
            {
                domains.push(name);
            }
        }
        domains.sort();
        Ok(domains)
    }

    /// The right to deliver a domain, or `None` if somebody else has it.
    pub fn lock(&self, domain: &str) -> io::Result<Option<Locked>> {
        let directory = self.directory.join(domain);
        let mut options = OpenOptions::new();
        let file = options.create(true).append(true).mode(0o600).open(directory.join(LOCK))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Locked { directory, _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// The events in it, `rejected/` and `broken/` included.
    fn size_bytes(&self) -> io::Result<u64> {
        let mut sum = 0;
        for domain in self.domains()? {
            let directory = self.directory.join(domain);
            for part in [directory.clone(), directory.join(REJECTED), directory.join(BROKEN)] {
                for entry in none_if_missing(fs::read_dir(part))?.into_iter().flatten() {
                    let entry = entry?;
                    if is_events(&entry.file_name()) {
                        // Delivered meanwhile, it has no size.
                        sum += none_if_missing(entry.metadata())?.map_or(0, |data| data.len());
                    }
                }
            }
        }
        Ok(sum)
    }
}

/// One domain of the spool, for whoever delivers it. The lock goes with this.
pub(crate) struct Locked {
    directory: PathBuf,
    _file: File,
}

impl Locked {
    /// The files, in the order of their calls.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if is_events(&entry.file_name()) {
                names.extend(entry.file_name().into_string());
            }
        }
        names.sort();
        Ok(names)
    }

    /// The lines of a file, or `None` if it is not lines of JSON objects.
    pub fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let content = fs::read(self.directory.join(name))?;
        Ok(are_lines(&content).then_some(content))
    }

    /// Removes files that are delivered.
    pub fn remove(&self, names: &[String]) -> io::Result<()> {
        for name in names {
            none_if_missing(fs::remove_file(self.directory.join(name)))?;
        }
        sync_directory(&self.directory)
    }

    /// Leaves only these lines of a file: the rest of it is done.
    pub fn keep(&self, name: &str, lines: &[u8]) -> io::Result<()> {
        write_file(&self.directory, &self.directory, name, lines)
    }

    /// Puts refused lines into `rejected/`, with the answers beside them. The file itself stays.
    pub fn reject(&self, name: &str, lines: &[u8], reason: &str) -> io::Result<()> {
        let rejected = self.directory.join(REJECTED);
        create_directory(&rejected)?;
        // A delivery that was cut short may have put lines of the same file there.
        let joined = |name: &str, more: &[u8]| -> io::Result<Vec<u8>> {
            let mut content = none_if_missing(fs::read(rejected.join(name)))?.unwrap_or_default();
            content.extend_from_slice(more);
            Ok(content)
        };
        let reason_name = format!("{name}.reason");
        write_file(&self.directory, &rejected, &reason_name, &joined(&reason_name, reason.as_bytes())?)?;
        write_file(&self.directory, &rejected, name, &joined(name, lines)?)
    }

    /// Moves a file that cannot be sent out of the way.
    pub fn set_aside(&self, name: &str) -> io::Result<()> {
        let broken = self.directory.join(BROKEN);
        create_directory(&broken)?;
        fs::rename(self.directory.join(name), broken.join(name))?;
        sync_directory(&broken)?;
        sync_directory(&self.directory)
    }

    /// Removes what a writer left that died before its rename.
    pub fn remove_left_over(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if !entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
                continue;
            }
            let Some(data) = none_if_missing(entry.metadata())? else { continue };
            // In the future is not old.
            if data.modified()?.elapsed().is_ok_and(|age| age > TEMPORARY_AGE_MAX) {
                none_if_missing(fs::remove_file(entry.path()))?;
            }
        }
        Ok(())
    }
}

fn is_events(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.ends_with(SUFFIX) && !name.starts_with(TEMPORARY))
}

/// One JSON object a line, no empty lines, a newline at the end.
fn are_lines(content: &[u8]) -> bool {
    let Some(lines) = content.strip_suffix(b"\n") else { return false };
    std::str::from_utf8(lines).is_ok()
        && lines
            .split(|b| *b == b'\n')
            .all(|line| line.trim_ascii_start().starts_with(b"{") && serde_json::from_slice::<IgnoredAny>(line).is_ok())
}

/// Nanoseconds, process, number: behind every name that this process has given before.
fn next_name() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let mut last = LAST_NAME.lock().expect("no panic while it is held");
    last.0 = if now > last.0 { now } else { last.0 + 1 };
    last.1 += 1;
    format!("{:023}-{:010}-{:06}{SUFFIX}", last.0, process::id(), last.1)
}

/// Writes a file so that it is whole under its name, and on disk when this returns.
fn write_file(temporary_in: &Path, directory: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let (temporary, mut file) = loop {
        let number = TEMPORARIES.fetch_add(1, Ordering::Relaxed) + 1;
        let path = temporary_in.join(format!("{TEMPORARY}{}-{number}", process::id()));
        match OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path) {
            Ok(file) => break (path, file),
            // Left by a process that had the same id, or in use by one in another container.
            Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
            Err(e) => return Err(e),
        }
    };
    let path = directory.join(name);
    let written = file.write_all(content).and_then(|()| file.sync_all());
    if let Err(e) = written.and_then(|()| fs::rename(&temporary, &path)) {
        // It has no name that counts; the next delivery would remove it as well.
        let _ = fs::remove_file(&temporary);
        return Err(e);
    }
    sync_directory(directory)
}

/// Creates a directory for nobody else, and makes its name durable.
fn create_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => sync_directory(parent),
        None => sync_directory(Path::new(".")),
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn none_if_missing<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, events would be delivered in another order than they were given.
    #[test]
    fn names_sort_in_the_order_of_the_calls() {
        let names: Vec<_> = (0..2_000).map(|_| next_name()).collect();
        assert!(names.is_sorted());
        let (nanos, rest) = names[0].split_once('-').unwrap();
        let (pid, rest) = rest.split_once('-').unwrap();
        assert_eq!((nanos.len(), pid.len()), (23, 10));
        assert!(rest.strip_suffix(SUFFIX).unwrap().len() >= 6, "{rest}");
    }

    /// Broken, garbage would be sent again and again, or good events would be set aside.
    #[test]
    fn only_lines_of_objects_are_sent() {
        for good in ["{}\n", "{\"a\":1}\n{\"b\":\"\\n\"}\n", " {}\n"] {
            assert!(are_lines(good.as_bytes()), "{good:?}");
        }
        let bad: [&[u8]; 9] =
            [b"", b"\n", b"{}", b"{}\n\n", b"{}\n{\n", b"[]\n", b"{} {}\n", b"\xff\n", b"{\"a\":1}\n{\"b"];
        for bad in bad {
            assert!(!are_lines(bad), "{bad:?}");
        }
    }

    /// Broken, a spool in the wrong directory would mix with what is there.
    #[test]
    fn a_directory_for_something_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.txt"), "x").unwrap();
        let error = Spool::open(dir.path().to_owned(), 1).unwrap_err().to_string();
        assert!(error.contains(MARKER), "{error}");
        assert!(!dir.path().join(MARKER).exists());
    }
}
