//! One domain of the spool, for whoever delivers it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use super::disk::{
    Existing, create_directory, is_temporary, none_if_missing, open_regular, read_regular, sync_directory, write_file,
};
use super::{BROKEN, LOCK, REJECTED, Spool, is_events_file};
use crate::exact::is_event;

/// An older temporary file was left by a process that died.
const TEMPORARY_AGE_MAX: Duration = Duration::from_secs(3600);

/// The right to deliver one domain. The lock goes with this.
pub(crate) struct Locked<'a> {
    spool: &'a Spool,
    domain: String,
    directory: PathBuf,
    /// Where the lock's file is kept.
    key: u64,
}

/// The lines of a file.
pub(crate) struct Lines {
    /// JSON objects, each with its newline.
    pub events: Vec<u8>,
    /// Everything else.
    pub others: Vec<u8>,
}

impl Spool {
    /// The right to deliver a domain, or `None` if somebody else has it.
    pub fn lock(&self, domain: &str) -> io::Result<Option<Locked<'_>>> {
        let directory = self.directory.join(domain);
        let path = directory.join(LOCK);
        loop {
            let file = open_regular(&path, OpenOptions::new().create(true).append(true))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(e) => return Err(e.into()),
            }
            // Removed or replaced meanwhile, it keeps nobody out.
            let named = none_if_missing(fs::metadata(&path))?;
            let ours = file.metadata()?;
            if named.is_some_and(|named| (named.dev(), named.ino()) == (ours.dev(), ours.ino())) {
                let key = self.keep_lock(file);
                return Ok(Some(Locked { spool: self, domain: domain.to_owned(), directory, key }));
            }
        }
    }

    /// Called in a process that was forked: the locks of the other one are not held here any longer.
    pub fn close_locks_of_another_process(&self) {
        // Held at the moment of the fork, it stays held here for ever.
        if let Ok(mut locks) = self.locks.try_lock() {
            locks.open.clear();
        }
    }

    fn keep_lock(&self, file: File) -> u64 {
        let mut locks = super::lock(&self.locks);
        locks.next += 1;
        let key = locks.next;
        locks.open.insert(key, file);
        key
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if let Some(file) = super::lock(&self.spool.locks).open.remove(&self.key) {
            // A process that was forked meanwhile has the file open too, and with it the lock.
            let _ = flock(&file, FlockOperation::Unlock);
        }
    }
}

impl Locked<'_> {
    /// The files, in the order of their calls.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if is_events_file(&entry)? && !self.spool.is_stuck(&self.domain, &entry.file_name()) {
                names.extend(entry.file_name().into_string());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Leaves a file where it is; what is behind it does not wait.
    pub fn leave(&self, name: &str) {
        super::lock(&self.spool.stuck).insert(self.key_of(name));
    }

    /// The lines of a file that are still to be sent; `None` if it is gone.
    pub fn read(&self, name: &str) -> io::Result<Option<Lines>> {
        if let Some(rest) = super::lock(&self.spool.rests).get(&self.key_of(name)) {
            return Ok(Some(Lines { events: rest.clone(), others: Vec::new() }));
        }
        let Some(content) = none_if_missing(read_regular(&self.directory.join(name)))? else { return Ok(None) };
        let mut lines = Lines { events: Vec::with_capacity(content.len() + 1), others: Vec::new() };
        for line in content.split_inclusive(|b| *b == b'\n') {
            let text = without_end(line);
            if is_event(text) {
                lines.events.extend_from_slice(text);
                lines.events.push(b'\n');
            } else if !text.trim_ascii().is_empty() {
                lines.others.extend_from_slice(line);
            }
        }
        if lines.events.is_empty() && lines.others.is_empty() {
            lines.others = content;
        }
        Ok(Some(lines))
    }

    /// Removes files that are delivered. What cannot be removed is remembered, so that it is not sent again.
    pub fn remove(&self, names: &[String]) -> io::Result<()> {
        let mut result = Ok(());
        for name in names {
            match none_if_missing(fs::remove_file(self.directory.join(name))) {
                Ok(_) => drop(super::lock(&self.spool.rests).remove(&self.key_of(name))),
                Err(e) => {
                    self.remember(name, Vec::new());
                    result = Err(e);
                }
            }
        }
        result.and_then(|()| sync_directory(&self.directory))
    }

    /// Removes what was delivered before and could not be removed then.
    pub fn remove_delivered(&self) -> io::Result<()> {
        let rests = super::lock(&self.spool.rests);
        let mut done: Vec<_> =
            rests.iter().filter(|((domain, _), rest)| *domain == self.domain && rest.is_empty()).collect();
        done.sort();
        let names: Vec<String> = done.into_iter().map(|((_, name), _)| name.clone()).collect();
        drop(rests);
        if names.is_empty() { Ok(()) } else { self.remove(&names) }
    }

    /// Leaves only these lines of a file: the rest of it is done, whether the disk takes that or not.
    pub fn keep(&self, name: &str, lines: &[u8]) -> io::Result<()> {
        // Without room for another file: in its own place it needs none.
        let kept = write_file(&self.directory, &self.directory, name, lines, Existing::Replace)
            .or_else(|e| blank(&self.directory.join(name), lines).map_err(|_| e));
        match kept {
            Ok(()) => drop(super::lock(&self.spool.rests).remove(&self.key_of(name))),
            Err(_) => self.remember(name, lines.to_vec()),
        }
        Ok(kept?)
    }

    fn remember(&self, name: &str, rest: Vec<u8>) {
        super::lock(&self.spool.rests).insert(self.key_of(name), rest);
    }

    fn key_of(&self, name: &str) -> (String, String) {
        (self.domain.clone(), name.to_owned())
    }

    /// Puts refused lines into `rejected/`, with the answers beside them. The file itself stays, unless it is
    /// `whole`: it holds nothing else.
    pub fn reject(&self, name: &str, lines: &[u8], reason: &str, whole: bool) -> io::Result<()> {
        let rejected = self.directory.join(REJECTED);
        create_directory(&rejected)?;
        // On a full disk a refused event must not block the others, whose delivery makes room.
        let _ = self.put_beside(&rejected, &format!("{name}.reason"), reason.as_bytes());
        let is_remembered = super::lock(&self.spool.rests).contains_key(&self.key_of(name));
        if whole && !is_remembered && fs::symlink_metadata(rejected.join(name)).is_err() {
            return self.move_to(&rejected, name);
        }
        self.put_beside(&rejected, name, lines)?;
        if whole { self.remove(&[name.to_owned()]) } else { Ok(()) }
    }

    /// Needs no room.
    fn move_to(&self, directory: &Path, name: &str) -> io::Result<()> {
        fs::rename(self.directory.join(name), directory.join(name))?;
        sync_directory(directory)?;
        sync_directory(&self.directory)
    }

    /// Puts the lines of a file that are no events into `broken/`, and leaves its events.
    pub fn set_aside(&self, name: &str, lines: &Lines) -> io::Result<()> {
        let broken = self.directory.join(BROKEN);
        create_directory(&broken)?;
        if lines.events.is_empty() && fs::symlink_metadata(broken.join(name)).is_err() {
            return self.move_to(&broken, name);
        }
        self.put_beside(&broken, name, &lines.others)?;
        if lines.events.is_empty() { self.remove(&[name.to_owned()]) } else { self.keep(name, &lines.events) }
    }

    /// A delivery that was cut short may have put lines of the same file there.
    fn put_beside(&self, directory: &Path, name: &str, more: &[u8]) -> io::Result<()> {
        let mut content = none_if_missing(read_regular(&directory.join(name)))?.unwrap_or_default();
        content.extend_from_slice(more);
        Ok(write_file(&self.directory, directory, name, &content, Existing::Replace)?)
    }

    /// Removes what a writer left that died before its rename. What cannot be removed is in nobody's way.
    pub fn remove_left_over(&self) {
        for part in [self.directory.clone(), self.directory.join(REJECTED), self.directory.join(BROKEN)] {
            for entry in fs::read_dir(part).into_iter().flatten().flatten() {
                let data = entry.file_name().to_str().filter(|name| is_temporary(name)).and(entry.metadata().ok());
                // In the future is not old.
                let is_old = |time: std::time::SystemTime| time.elapsed().is_ok_and(|age| age > TEMPORARY_AGE_MAX);
                if data.is_some_and(|data| data.is_file() && data.modified().is_ok_and(is_old)) {
                    let _ = fs::remove_file(entry.path());
                }
            }
        }
    }
}

/// Writes line ends over all other lines of a file. Torn in the middle, it loses none of these.
fn blank(path: &Path, lines: &[u8]) -> io::Result<()> {
    let file = open_regular(path, OpenOptions::new().read(true).write(true))?;
    let size = file.metadata()?.len();
    let mut content = Vec::new();
    (&file).read_to_end(&mut content)?;
    let mut left = lines.split_inclusive(|b| *b == b'\n').map(without_end).peekable();
    for line in content.split_inclusive_mut(|b| *b == b'\n') {
        if left.next_if_eq(&without_end(line)).is_none() {
            line.fill(b'\n');
        }
    }
    if left.peek().is_some() || content.len() as u64 != size {
        return Err(io::Error::other("the file has changed meanwhile"));
    }
    file.write_all_at(&content, 0)?;
    file.sync_all()
}

fn without_end(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\n").unwrap_or(line)
}
