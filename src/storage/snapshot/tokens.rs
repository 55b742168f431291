//! The named tokens beside the data: a service that was restored must know its producers.
//!
//! They stand in a snapshot as they stand in the data directory, so that `cp` restores them too. No
//! secret is among them, only digests. A store that is kept elsewhere is not looked for.

use std::io::{self, Read as _, Write as _};

use serde::{Deserialize, Serialize};

use super::content::sha256;
use super::directory::Directory;
use super::error::SnapshotError;
use crate::storage::disk::FileKind;
use crate::storage::layout::{TOKEN_STORE, TOKEN_STORE_DIR};
use crate::storage::verify::Kind;

/// More than any store that `leitstand token` writes.
const BYTES_MAX: u64 = 16 << 20;

/// The store in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokensEntry {
    pub bytes: u64,
    pub sha256: String,
}

/// Where it stands in a data directory and in a snapshot, for people.
pub(super) fn shown() -> String {
    format!("{TOKEN_STORE_DIR}/{TOKEN_STORE}")
}

/// Copies the store of the data directory `from`, if there is one. It is replaced by a rename, so it is
/// read whole.
///
/// # Errors
/// Why it cannot be read, or is no file.
pub(super) fn copy(from: &Directory, to: &Directory) -> io::Result<Option<TokensEntry>> {
    let store = match from.open_dir(TOKEN_STORE_DIR).and_then(|dir| read(&dir)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    write(to, &store, None)?;
    Ok(Some(TokensEntry { bytes: store.len() as u64, sha256: sha256(&store) }))
}

/// What is wrong with the store in a snapshot, if something is, and the name of what is wrong.
pub(super) fn faults(snapshot: &Directory, entry: &TokensEntry) -> Vec<(Kind, String)> {
    let dir = match snapshot.open_dir(TOKEN_STORE_DIR) {
        Ok(dir) => dir,
        Err(_) => return vec![(Kind::MissingPart, shown())],
    };
    let mut faults = Vec::new();
    match read(&dir) {
        Ok(bytes) if bytes.len() as u64 != entry.bytes => faults.push((Kind::WrongSize, shown())),
        Ok(bytes) if sha256(&bytes) != entry.sha256 => faults.push((Kind::WrongHash, shown())),
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => faults.push((Kind::MissingPart, shown())),
        Err(_) => faults.push((Kind::NotRegular, shown())),
    }
    for name in dir.names().unwrap_or_default().into_iter().filter(|name| name != TOKEN_STORE) {
        faults.push((Kind::NotInManifest, format!("{TOKEN_STORE_DIR}/{}", crate::storage::verify::shown(&name))));
    }
    faults
}

/// Puts the store of a snapshot into a data directory that is being made, and on the disk.
///
/// # Errors
/// [`SnapshotError::Damaged`] when it is not what the manifest says.
pub(super) fn restore(
    from: &Directory,
    to: &Directory,
    entry: &TokensEntry,
    owner: Option<(u32, u32)>,
) -> Result<(), SnapshotError> {
    let bytes = from.open_dir(TOKEN_STORE_DIR).and_then(|dir| read(&dir));
    match bytes.as_ref().map(|bytes| bytes.len() as u64 == entry.bytes && sha256(bytes) == entry.sha256) {
        Ok(true) => {}
        Ok(false) => {
            let reason = format!("{} is not what the manifest says; take another copy of the snapshot", shown());
            return Err(SnapshotError::damaged(from.path(), reason));
        }
        Err(e) => {
            let reason = format!("{} cannot be read: {e}; take another copy of the snapshot", shown());
            return Err(SnapshotError::damaged(from.path(), reason));
        }
    }
    let bytes = bytes.unwrap_or_default();
    write(to, &bytes, owner).map_err(|e| SnapshotError::io("write", to.path_of(shown()), e))
}

/// A file of this name in `dir` that is no link and no pipe.
fn read(dir: &Directory) -> io::Result<Vec<u8>> {
    if dir.stat(TOKEN_STORE)?.is_some_and(|stat| stat.kind != FileKind::Regular) {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    dir.open_read(TOKEN_STORE)?.take(BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(io::Error::other("it is longer than any store of tokens"));
    }
    Ok(bytes)
}

fn write(to: &Directory, bytes: &[u8], owner: Option<(u32, u32)>) -> io::Result<()> {
    let dir = to.create_dir(TOKEN_STORE_DIR)?;
    let mut file = dir.create(TOKEN_STORE)?;
    file.write_all(bytes)?;
    if let Some((user, group)) = owner {
        std::os::unix::fs::fchown(&file, Some(user), Some(group))?;
        dir.give_to((user, group))?;
    }
    file.sync_all()?;
    dir.sync()
}
