//! `StoreError`: why an append was refused, and whether anything was written.

use std::io;
use std::sync::Arc;

/// Did any byte of the refused events reach the file for good?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// Nothing: the file is as it was. A retry can not double an event.
    No,
    /// Perhaps: a reader may have seen it, or may find it after a crash.
    Maybe,
}

/// Why an append (or a reservation for one) was refused.
///
/// Cloned to every member of a group, so sources are shared.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The budget for bytes in flight is used up.
    #[error("queue full: {in_flight_bytes_max} bytes are in flight")]
    Busy { in_flight_bytes_max: usize },
    /// Another process held the domain's lock for the whole lock timeout.
    #[error("lock timeout after {waited_ms} ms")]
    LockTimeout { waited_ms: u64 },
    /// The store is draining.
    #[error("shutting down")]
    ShuttingDown,
    /// No space, quota or file size left; also a short write, or free space below the reserve.
    #[error("insufficient storage: {op}")]
    Full {
        op: &'static str,
        #[source]
        source: Arc<io::Error>,
    },
    /// Descriptors or memory are used up; it passes when others are done.
    #[error("out of descriptors or memory: {op}")]
    Exhausted {
        op: &'static str,
        #[source]
        source: Arc<io::Error>,
    },
    /// The domain has no file, and there are as many as there may be.
    #[error("there are {domains_max} domains already")]
    TooManyDomains { domains_max: usize },
    /// The data file is a symbolic link.
    #[error("data file is a symbolic link")]
    Symlink,
    /// Any other failure before the group's bytes could stay in the file.
    #[error("storage error: {op}")]
    Io {
        op: &'static str,
        #[source]
        source: Arc<io::Error>,
    },
    /// The domain was poisoned by an earlier [`StoreError::Sync`] or [`StoreError::Rollback`].
    #[error("domain is poisoned: {reason}")]
    Poisoned { reason: &'static str },
    /// The sync failed: nobody knows which bytes are on the disk. Poisons the domain.
    #[error("sync failed: {op}")]
    Sync {
        op: &'static str,
        #[source]
        source: Arc<io::Error>,
    },
    /// The sync of another file of the same file system failed at the same time: whatever ours said, nobody knows
    /// which bytes are on the disk. Poisons the domain.
    #[error("the sync of another file failed meanwhile")]
    InDoubt,
    /// After a failed sync the file system has not shown yet that it brings anything to the disk.
    #[error("no sync has succeeded since one failed")]
    Unproven,
    /// A failed write could not be taken back. Poisons the domain.
    #[error("roll-back failed: {op}")]
    Rollback {
        op: &'static str,
        #[source]
        source: Arc<io::Error>,
    },
    /// The writer panicked; a bug. Poisons the domain.
    #[error("writer panicked")]
    Panicked,
}

impl StoreError {
    /// Was anything of the refused events written?
    pub fn written(&self) -> Written {
        match self {
            StoreError::Busy { .. }
            | StoreError::LockTimeout { .. }
            | StoreError::ShuttingDown
            | StoreError::Full { .. }
            | StoreError::Exhausted { .. }
            | StoreError::TooManyDomains { .. }
            | StoreError::Symlink
            | StoreError::Io { .. }
            | StoreError::Poisoned { .. }
            | StoreError::Unproven => Written::No,
            StoreError::Sync { .. } | StoreError::InDoubt | StoreError::Rollback { .. } | StoreError::Panicked => {
                Written::Maybe
            }
        }
    }

    /// A stable word for metrics and logs.
    pub fn label(&self) -> &'static str {
        match self {
            StoreError::Busy { .. } => "busy",
            StoreError::LockTimeout { .. } => "lock_timeout",
            StoreError::ShuttingDown => "shutting_down",
            StoreError::Full { .. } => "full",
            StoreError::Exhausted { .. } => "exhausted",
            StoreError::TooManyDomains { .. } => "too_many_domains",
            StoreError::Symlink => "symlink",
            StoreError::Io { .. } => "io",
            StoreError::Poisoned { .. } => "poisoned",
            StoreError::Sync { .. } => "sync",
            StoreError::InDoubt => "doubt",
            StoreError::Unproven => "unproven",
            StoreError::Rollback { .. } => "rollback",
            StoreError::Panicked => "panicked",
        }
    }

    /// The failed operation and its cause as [`StoreError::Full`], [`StoreError::Exhausted`] or
    /// [`StoreError::Io`].
    pub(crate) fn io(op: &'static str, source: io::Error) -> StoreError {
        let source = Arc::new(source);
        if is_full(&source) {
            StoreError::Full { op, source }
        } else if is_exhausted(&source) {
            StoreError::Exhausted { op, source }
        } else {
            StoreError::Io { op, source }
        }
    }

    pub(crate) fn sync(op: &'static str, source: io::Error) -> StoreError {
        StoreError::Sync { op, source: Arc::new(source) }
    }

    pub(crate) fn rollback(op: &'static str, source: io::Error) -> StoreError {
        StoreError::Rollback { op, source: Arc::new(source) }
    }

    /// Does it cast doubt on everything that is under way on the same file system?
    pub(crate) fn is_failed_sync(&self) -> bool {
        matches!(self, StoreError::Sync { .. })
    }

    /// Must the domain be refused from now on?
    pub(crate) fn poisons(&self) -> bool {
        self.written() == Written::Maybe
    }
}

/// Does this error mean "there is no room", in any of the ways the kernel says it?
///
/// `EFBIG` is the file size limit (`RLIMIT_FSIZE`), see write(2); `WriteZero` is our own word for
/// a short write, which is how a full disk shows first on ext4 and tmpfs.
fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge
            | io::ErrorKind::WriteZero
    )
}

/// Does this error mean that the process or the system has too much open, or no memory left? See open(2).
fn is_exhausted(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let used_up = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS, Errno::NOLCK];
    error.kind() == io::ErrorKind::OutOfMemory
        || error.raw_os_error().is_some_and(|code| used_up.iter().any(|errno| errno.raw_os_error() == code))
}

/// An error and its causes in one line, for the log.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, clients would be told of a broken disk when only descriptors were short for a moment.
    #[test]
    fn what_is_used_up_is_told_from_what_is_broken() {
        use rustix::io::Errno;
        for (errno, label) in [
            (Errno::MFILE, "exhausted"),
            (Errno::NFILE, "exhausted"),
            (Errno::NOMEM, "exhausted"),
            (Errno::NOLCK, "exhausted"),
            (Errno::NOSPC, "full"),
            (Errno::DQUOT, "full"),
            (Errno::IO, "io"),
            (Errno::ACCESS, "io"),
        ] {
            let error = StoreError::io("open data file", errno.into());
            assert_eq!((error.label(), error.written()), (label, Written::No), "{errno:?}");
        }
        assert_eq!(StoreError::io("allocate", io::ErrorKind::OutOfMemory.into()).label(), "exhausted");
    }

    /// Broken, the log would not say what the operating system said.
    #[test]
    fn an_error_is_told_with_its_causes() {
        let error = StoreError::io("open data file", io::Error::other("no luck"));
        assert_eq!(chain(&error), "storage error: open data file: no luck");
        assert_eq!(chain(&StoreError::ShuttingDown), "shutting down");
    }
}
