//! The socket file of the service: made where none is in use, and removed only while it is still its own.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use tokio::net::UnixListener;

/// Longest wait for somebody else who makes or removes a socket in the same directory. Whoever has the lock of the
/// directory for something else must not keep the service from its start.
const TURN_WAIT_MAX: Duration = Duration::from_secs(1);
const TURN_POLL: Duration = Duration::from_millis(5);

/// A socket file that this process made.
#[derive(Debug)]
pub(super) struct UnixSocket {
    path: PathBuf,
    identity: Identity,
}

/// Which file it is. The number alone is soon given to another one; the time of the last change of its content is that
/// of its making.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    dev: u64,
    ino: u64,
    made: (i64, i64),
}

impl UnixSocket {
    /// Listens. A socket file that nobody listens on any more is left over from a crash and makes way.
    ///
    /// # Errors
    /// Somebody listens there, or what the operating system says.
    pub(super) fn bind(path: &Path) -> io::Result<(UnixListener, UnixSocket)> {
        let _turn = turn(path);
        let stale = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
            && UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
        if stale {
            std::fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
        Ok((listener, UnixSocket { path: path.to_owned(), identity: Identity::of(path)? }))
    }

    /// Removes the file, unless a successor has made its own in its place.
    pub(super) fn remove(&self) {
        let _turn = turn(&self.path);
        if Identity::of(&self.path).is_ok_and(|now| now == self.identity) {
            // If it is gone already, so much the better.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Identity {
    fn of(path: &Path) -> io::Result<Identity> {
        let meta = std::fs::symlink_metadata(path)?;
        Ok(Identity { dev: meta.dev(), ino: meta.ino(), made: (meta.mtime(), meta.mtime_nsec()) })
    }
}

/// The lock of the directory, so that two services do not look and remove at once. Without it after a while.
fn turn(path: &Path) -> Option<File> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let dir = File::open(dir).ok()?;
    let deadline = Instant::now() + TURN_WAIT_MAX;
    while flock(&dir, FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(TURN_POLL);
    }
    Some(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, a service that stops would take the socket of the one that came after it.
    #[tokio::test]
    async fn only_its_own_file_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (listener, socket) = UnixSocket::bind(&path).unwrap();
        assert!(UnixSocket::bind(&path).is_err(), "somebody listens");
        drop(listener);
        let (_listener, successor) = UnixSocket::bind(&path).unwrap();
        socket.remove();
        assert!(path.exists(), "it is another one");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        successor.remove();
        assert!(!path.exists());
        successor.remove();
    }

    /// Broken, whoever has the directory locked for a backup of it would keep the service from its start.
    #[tokio::test]
    async fn a_foreign_lock_is_not_waited_for_long() {
        let dir = tempfile::tempdir().unwrap();
        let held = File::open(dir.path()).unwrap();
        flock(&held, FlockOperation::NonBlockingLockExclusive).unwrap();
        let began = Instant::now();
        assert!(UnixSocket::bind(&dir.path().join("s")).is_ok());
        assert!(began.elapsed() < Duration::from_secs(20));
    }
}
