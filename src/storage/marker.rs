//! The mark that a poisoned domain leaves in the side directory, so that another process, or a
//! later one, knows of the doubt.
//!
//! It names the inode that is in doubt. Once another file stands under the name, the mark is stale. A mark
//! that names none, or cannot be read to its end, is about whatever file stands there.

use std::io::{self, IoSlice};

use super::disk::{Disk, FileId};
use super::layout::{POISONED_SUFFIX, TORN_DIR, side_name};

/// More than any mark that we write: the longest file name and some words.
const MARK_BYTES_MAX: usize = 512;

/// What a mark says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Marker {
    pub reason: String,
    /// The data file, if the mark names it: where its own name is too short to.
    pub data: Option<String>,
    /// `None`: not known, or the mark was not written to its end.
    ino: Option<u64>,
}

impl Marker {
    /// Does it speak of this file? Only the inode number counts: a device may be numbered anew at
    /// the next start of the machine.
    pub(crate) fn is_about(&self, file: FileId) -> bool {
        self.ino.is_none_or(|ino| ino == file.ino)
    }

    /// Does it say which file it is about?
    pub(crate) fn has_identity(&self) -> bool {
        self.ino.is_some()
    }

    /// The reason as [`super::StoreError::label`] has it.
    pub(crate) fn label(&self) -> &'static str {
        ["sync", "rollback", "panicked", "doubt"].into_iter().find(|label| *label == self.reason).unwrap_or("unknown")
    }
}

/// Leaves a mark for the data file `data`, on the disk. One that is there is written anew, because
/// it may name another file.
pub(crate) fn leave<D: Disk>(disk: &D, data: &str, reason: &str, file: Option<FileId>) -> io::Result<()> {
    let name = side_name(data, POISONED_SUFFIX);
    remove(disk, data)?;
    let mark = disk.create_side(TORN_DIR, &name)?;
    let mut text = text(reason, file.map(|file| file.ino));
    if !name.starts_with(data) {
        text.insert_str(text.len() - 1, &format!(" file={data}"));
    }
    if disk.append(&mark, &[IoSlice::new(text.as_bytes())])? != text.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    disk.sync_data(&mark)?;
    disk.sync_side(TORN_DIR)
}

/// What a mark says. Without the number of a file it is about any.
pub(crate) fn text(reason: &str, ino: Option<u64>) -> String {
    let ino = ino.map_or(String::new(), |ino| format!(" ino={ino}"));
    format!("reason={reason}{ino}\n")
}

/// Removes the mark, if there is one.
pub(crate) fn remove<D: Disk>(disk: &D, data: &str) -> io::Result<()> {
    match disk.remove_side(TORN_DIR, &side_name(data, POISONED_SUFFIX)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The mark of the data file `data`, if there is one.
pub(crate) fn read<D: Disk>(disk: &D, data: &str) -> io::Result<Option<Marker>> {
    read_named(disk, &side_name(data, POISONED_SUFFIX))
}

/// Is it the mark itself that cannot be read, because it is a link? Then it is a mark all the same, until
/// somebody removes it.
pub(crate) fn is_unreadable(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

/// The mark of that name in the side directory, if there is one.
pub(crate) fn read_named<D: Disk>(disk: &D, name: &str) -> io::Result<Option<Marker>> {
    let Some(bytes) = disk.read_side(TORN_DIR, name, MARK_BYTES_MAX)? else { return Ok(None) };
    // What cannot be read as text is a mark all the same, and without its newline it was not written to its end.
    let text = str::from_utf8(&bytes).unwrap_or_default().strip_suffix('\n').unwrap_or_default();
    let field = |name: &str| text.split(' ').find_map(|word| word.strip_prefix(name));
    let reason = field("reason=").filter(|r| r.bytes().all(|b| b.is_ascii_lowercase())).unwrap_or("unknown");
    Ok(Some(Marker {
        reason: reason.to_owned(),
        data: field("file=").map(str::to_owned),
        ino: field("ino=").and_then(|ino| ino.parse().ok()),
    }))
}
