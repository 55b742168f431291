//! The one way to read a file with settings or secrets: whatever stands at its name, nobody waits for it for ever.
//!
//! A regular file is read as often as somebody asks. A pipe (`<(…)` of a shell, a FIFO) can be read once only, so it
//! is read while the process starts, with a time limit, and what came counts from then on. A socket or a device is
//! refused, and not even opened; `/dev/null` is an empty file.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

/// Largest file that is read for settings or secrets, in bytes.
pub(super) const BYTES_MAX: u64 = 1 << 20;
/// How long a pipe may take until its other end is closed.
const PIPE_WAIT_MAX: Duration = Duration::from_secs(5);
const PIPE_POLL: Duration = Duration::from_millis(5);

/// What the pipes of this process held. They are named at the start, so there are few.
static PIPES: Mutex<Pipes> = Mutex::new(Pipes { read: BTreeMap::new(), is_over: false });

struct Pipes {
    read: BTreeMap<PathBuf, Result<Vec<u8>, (ErrorKind, String)>>,
    /// The start is over: no pipe is read any more.
    is_over: bool,
}

/// Reads a file, at most `bytes_max` of it.
///
/// # Errors
/// It is not there, is no file and no pipe, is too large, or a pipe that was not closed in time.
pub(super) fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    // Before it is opened: to open a device may do something.
    if let Some(bytes) = special(path, &std::fs::metadata(path)?, bytes_max)? {
        return Ok(bytes);
    }
    let file = open(path)?;
    // Another one by now?
    match special(path, &file.metadata()?, bytes_max)? {
        Some(bytes) => Ok(bytes),
        None => content(file, bytes_max),
    }
}

/// The same as text.
///
/// # Errors
/// As [`read`], and when it is not UTF-8.
pub(super) fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path, BYTES_MAX)?).map_err(|_| io::Error::new(ErrorKind::InvalidData, "it is not UTF-8"))
}

/// From now on only what the pipes held at the start counts.
pub(super) fn start_is_over() {
    PIPES.lock().unwrap_or_else(PoisonError::into_inner).is_over = true;
}

/// What is no regular file; `None`: it is one.
fn special(path: &Path, meta: &Metadata, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    let refused = |what: &str| Err(io::Error::new(ErrorKind::InvalidInput, format!("it is {what}, not a file")));
    let kind = meta.file_type();
    if kind.is_file() {
        Ok(None)
    } else if kind.is_fifo() {
        once(path, bytes_max).map(Some)
    } else if kind.is_char_device() && meta.rdev() == rustix::fs::makedev(1, 3) {
        Ok(Some(Vec::new()))
    } else if kind.is_dir() {
        refused("a directory")
    } else if kind.is_socket() {
        refused("a socket")
    } else {
        refused("a device")
    }
}

/// What a pipe held when it was read, the only time.
fn once(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut pipes = PIPES.lock().unwrap_or_else(PoisonError::into_inner);
    if !pipes.read.contains_key(path) {
        if pipes.is_over {
            let text = "it is a pipe, and one is read at the start only: put a file there";
            return Err(io::Error::new(ErrorKind::InvalidInput, text));
        }
        let held = open(path).and_then(|pipe| drained(pipe, bytes_max));
        pipes.read.insert(path.to_owned(), held.map_err(|e| (e.kind(), e.to_string())));
    }
    pipes.read[path].clone().map_err(|(kind, text)| io::Error::new(kind, text))
}

fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    File::options().read(true).custom_flags(flags.bits() as i32).open(path)
}

/// Everything that comes until the other end is closed.
fn drained(mut pipe: File, bytes_max: u64) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + PIPE_WAIT_MAX;
    let (mut all, mut chunk) = (Vec::new(), [0; 4096]);
    while Instant::now() < deadline {
        match pipe.read(&mut chunk) {
            // A pipe that nobody has opened for writing yet reads as ended.
            Ok(0) if all.is_empty() => std::thread::sleep(PIPE_POLL),
            Ok(0) => return Ok(all),
            Ok(n) => all.extend_from_slice(&chunk[..n]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                std::thread::sleep(PIPE_POLL);
            }
            Err(e) => return Err(e),
        }
        if all.len() as u64 > bytes_max {
            return Err(too_large(bytes_max));
        }
    }
    let text = format!("it is a pipe that was not written and closed within {} s", PIPE_WAIT_MAX.as_secs());
    Err(io::Error::new(ErrorKind::TimedOut, text))
}

/// The content of a file, whose size is not to be relied on.
fn content(file: File, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut content)?;
    if content.len() as u64 > bytes_max { Err(too_large(bytes_max)) } else { Ok(content) }
}

fn too_large(bytes_max: u64) -> io::Error {
    io::Error::new(ErrorKind::FileTooLarge, format!("it is larger than {} MiB", bytes_max >> 20))
}
