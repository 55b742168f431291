//! `SnapshotError`: why a snapshot, a restore or a look at a snapshot did not come about.

use std::io;
use std::path::{Path, PathBuf};

/// Why there is no snapshot, or no restored directory.
///
/// Every text says what is wrong, where, and what to do. Whatever it is, the data directory and
/// the snapshot that was read are as they were, and nothing stands under the name that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Somebody else takes a snapshot into the same parent directory.
    #[error("another snapshot into {0:?} is running; wait for its end, then try again")]
    AlreadyRunning(PathBuf),
    /// The target is there already.
    #[error("{0:?} is there and is not an empty directory; name one that is not there yet")]
    NotEmpty(PathBuf),
    /// Whoever reads the data directory would take the target for data.
    #[error("{path:?} lies in {inside:?}; name a directory outside of it")]
    Inside { path: PathBuf, inside: PathBuf },
    /// The target cannot be made.
    #[error("cannot make {path:?}: {reason}")]
    BadTarget { path: PathBuf, reason: String },
    /// Hard links do not reach over file systems.
    #[error(
        "the base {base:?} and {target:?} are on different file systems, so nothing can be linked; \
         put the snapshot beside its base, or take a full one without a base"
    )]
    OtherFileSystem { base: PathBuf, target: PathBuf },
    /// No space or quota left, or the reserve of the service would be touched.
    #[error("no room in {path:?}: {reason}; make room, or name a directory on another disk")]
    NoSpace { path: PathBuf, reason: String },
    /// What was written could not be read again.
    #[error(
        "cannot make {path:?}: its manifest {reason}; nothing was copied. Take domains that are not used any more out \
         of the data directory, or divide it among several services"
    )]
    TooLarge { path: PathBuf, reason: String },
    /// The base is no whole snapshot.
    #[error("the base cannot be used: {0}; take a full snapshot without a base")]
    BadBase(#[source] Box<SnapshotError>),
    /// A snapshot is not what its manifest says, or its manifest is not what it was.
    #[error("{path:?} is no sound snapshot: {reason}")]
    Damaged { path: PathBuf, reason: String },
    /// There is no snapshot under this name.
    #[error("{path:?} is no snapshot: {reason}")]
    NotFound { path: PathBuf, reason: String },
    /// Somebody held the lock of a domain for the whole lock timeout.
    #[error(
        "{file}: locked by another process for {waited_s} s, so its end is not known; \
         try again, or wait longer with --lock-timeout"
    )]
    Locked { file: String, waited_s: u64 },
    /// Anything else that the operating system says.
    #[error("cannot {op} {path:?}: {source}")]
    Io { op: &'static str, path: PathBuf, source: io::Error },
}

impl SnapshotError {
    /// What the operating system said while this was done with a file. No room is its own kind.
    pub(super) fn io(op: &'static str, path: impl Into<PathBuf>, source: io::Error) -> SnapshotError {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                SnapshotError::NoSpace { path, reason: source.to_string() }
            }
            _ => SnapshotError::Io { op, path, source },
        }
    }

    pub(super) fn damaged(path: &Path, reason: impl Into<String>) -> SnapshotError {
        SnapshotError::Damaged { path: path.to_owned(), reason: reason.into() }
    }

    /// A stable word for scripts.
    pub fn word(&self) -> &'static str {
        match self {
            SnapshotError::AlreadyRunning(_) => "already_running",
            SnapshotError::NotEmpty(_) => "not_empty",
            SnapshotError::Inside { .. } => "inside",
            SnapshotError::BadTarget { .. } => "bad_target",
            SnapshotError::OtherFileSystem { .. } => "other_file_system",
            SnapshotError::NoSpace { .. } => "no_space",
            SnapshotError::TooLarge { .. } => "too_large",
            SnapshotError::BadBase(_) => "bad_base",
            SnapshotError::Damaged { .. } => "damaged",
            SnapshotError::NotFound { .. } => "not_found",
            SnapshotError::Locked { .. } => "locked",
            SnapshotError::Io { .. } => "io",
        }
    }

    /// Was it looked at, and found wrong? Else it could not be looked at, or was asked for wrongly.
    pub fn is_wrong_content(&self) -> bool {
        match self {
            SnapshotError::Damaged { .. } => true,
            SnapshotError::BadBase(why) => why.is_wrong_content(),
            _ => false,
        }
    }
}
