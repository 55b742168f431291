//! The mark that a poisoned domain leaves in the side directory, so that another process, or a
//! later one, knows of the doubt.
//!
//! It names the inode that is in doubt. Once another file stands under the name, the mark is stale.

use std::fs::File;
use std::io::{self, IoSlice, Read as _};

use super::disk::{Disk, FileId, RealDisk};
use super::layout::{POISONED_SUFFIX, TORN_DIR, side_name};

/// More than any mark that we write.
const MARK_BYTES_MAX: u64 = 256;

/// What a mark says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Marker {
    pub reason: String,
    /// `None`: not known, or the mark was not written to its end.
    ino: Option<u64>,
}

impl Marker {
    /// Does it speak of this file? Only the inode number counts: a device may be numbered anew at
    /// the next start of the machine.
    pub(crate) fn is_about(&self, file: FileId) -> bool {
        self.ino.is_none_or(|ino| ino == file.ino)
    }
}

/// Leaves a mark for the data file `data`, on the disk. One that is there is written anew, because
/// it may name another file.
pub(crate) fn leave<D: Disk>(disk: &D, data: &str, reason: &str, file: Option<FileId>) -> io::Result<()> {
    let name = side_name(data, POISONED_SUFFIX);
    remove(disk, data)?;
    let mark = disk.create_side(TORN_DIR, &name)?;
    let text = text(reason, file.map(|file| file.ino));
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
pub(crate) fn read(disk: &RealDisk, data: &str) -> io::Result<Option<Marker>> {
    let file: File = match disk.open_side_read(TORN_DIR, &side_name(data, POISONED_SUFFIX)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut text = String::new();
    // What cannot be read as text is a mark all the same.
    let _ = file.take(MARK_BYTES_MAX).read_to_string(&mut text);
    // Without its newline it was not written to its end.
    let text = text.strip_suffix('\n').unwrap_or_default();
    let field = |name: &str| text.split(' ').find_map(|word| word.strip_prefix(name));
    let reason = field("reason=").filter(|r| r.bytes().all(|b| b.is_ascii_lowercase())).unwrap_or("unknown");
    Ok(Some(Marker { reason: reason.to_owned(), ino: field("ino=").and_then(|ino| ino.parse().ok()) }))
}
