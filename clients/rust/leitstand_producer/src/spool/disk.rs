//! Files and directories of a spool: what has a name is whole, and on disk when a function returns.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::OFlags;

const TEMPORARY: &str = "tmp-";

/// Temporary files of this process so far.
static TEMPORARIES: AtomicU64 = AtomicU64::new(0);

/// Why a file is not written for sure.
#[derive(Debug)]
pub(crate) struct WriteError {
    pub source: io::Error,
    /// It has its name: it may be there, and may not survive a loss of power.
    pub perhaps: bool,
}

impl From<io::Error> for WriteError {
    fn from(source: io::Error) -> WriteError {
        WriteError { source, perhaps: false }
    }
}

impl From<WriteError> for io::Error {
    fn from(error: WriteError) -> io::Error {
        error.source
    }
}

/// What becomes of a file that has the name already.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Existing {
    /// An error: [`ErrorKind::AlreadyExists`].
    Keep,
    Replace,
}

/// Writes a file so that it is whole under its name, and on disk when this returns.
pub(super) fn write_file(
    temporary_in: &Path,
    directory: &Path,
    name: &str,
    content: &[u8],
    existing: Existing,
) -> Result<(), WriteError> {
    let (temporary, mut file) = create_temporary(temporary_in)?;
    let path = directory.join(name);
    let written = file.write_all(content).and_then(|()| file.sync_all());
    if let Err(e) = written.and_then(|()| rename(&temporary, &path, existing)) {
        // It has no name that counts; the next delivery would remove it as well.
        let is_there = fs::symlink_metadata(&temporary).is_ok();
        let _ = fs::remove_file(&temporary);
        // A network disk may rename and then say that it has not.
        let perhaps = !is_there && fs::symlink_metadata(&path).is_ok();
        return Err(WriteError { source: e, perhaps });
    }
    sync_directory(directory).map_err(|source| WriteError { source, perhaps: true })
}

/// Is this the name of a temporary file? Others are left alone.
pub(super) fn is_temporary(name: &str) -> bool {
    let numbers = name.strip_prefix(TEMPORARY).and_then(|rest| rest.split_once('-'));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    numbers.is_some_and(|(process, count)| is_number(process) && is_number(count))
}

fn create_temporary(directory: &Path) -> io::Result<(PathBuf, File)> {
    loop {
        let number = TEMPORARIES.fetch_add(1, Ordering::Relaxed) + 1;
        let path = directory.join(format!("{TEMPORARY}{}-{number}", process::id()));
        match OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path) {
            Ok(file) => return Ok((path, file)),
            // Left by a process that had the same id, or in use by one in another container.
            Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
            Err(e) => return Err(e),
        }
    }
}

fn rename(from: &Path, to: &Path, existing: Existing) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
    if existing == Existing::Keep {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // A file system that does not know how.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::NOTSUP) => {}
            renamed => return Ok(renamed?),
        }
    }
    if existing == Existing::Keep && fs::symlink_metadata(to).is_ok() {
        return Err(ErrorKind::AlreadyExists.into());
    }
    fs::rename(from, to)
}

/// Opens a file without waiting for anybody: what is no regular file is an error.
pub(super) fn open_regular(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let flags = (OFlags::NONBLOCK | OFlags::NOFOLLOW).bits();
    match options.mode(0o600).custom_flags(flags.cast_signed()).open(path) {
        Ok(file) if file.metadata()?.is_file() => Ok(file),
        Err(e) if fs::symlink_metadata(path).map_or(true, |data| data.is_file()) => Err(e),
        _ => Err(io::Error::other(format!("{} is no regular file: move it away", path.display()))),
    }
}

pub(super) fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    open_regular(path, OpenOptions::new().read(true))?.read_to_end(&mut content)?;
    Ok(content)
}

/// Creates a directory and those above it for nobody else, and makes their names durable.
pub(super) fn create_directories(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        create_directories(parent)?;
    }
    create_directory(path)
}

/// Creates a directory below one that is there, and makes its name durable, whoever made it.
pub(super) fn create_directory(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            if !path.is_dir() {
                return Err(io::Error::other(format!("{} is no directory: move it away", path.display())));
            }
        }
        created => created?,
    }
    path.parent().map_or(Ok(()), sync_directory)
}

pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

pub(super) fn none_if_missing<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}
