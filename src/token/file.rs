//! `TokenFile`: the store on disk. Read as a whole, replaced as a whole.
//!
//! Readers need no lock: a change comes by rename, so that they see the store before it or after it.
//! Those who change it take turns by a lock on a file beside it.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, flock};

use super::store::{STORE_BYTES_MAX, TokenStore};
use crate::replace::replace;

/// Longest wait for another command that changes the store.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(10);
const LOCK_POLL: Duration = Duration::from_millis(5);
/// Bits of the mode that let others in.
const OTHERS: u32 = 0o077;

/// Where a store is, or will be.
#[derive(Debug, Clone)]
pub struct TokenFile {
    path: PathBuf,
}

/// Which state of the file it was. A change without a new stamp is possible only within one tick of
/// the file system's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Locks on directories by which a service says that it is there. They go with the process, however it ends.
#[derive(Debug, Default)]
pub struct Presence(Vec<(PathBuf, (u64, u64), File)>);

/// A store as it was read.
#[derive(Debug)]
pub struct Found {
    pub store: TokenStore,
    pub bytes: Vec<u8>,
    pub stamp: Stamp,
    /// The mode, if it lets others read or write.
    pub too_open: Option<u32>,
}

impl TokenFile {
    pub fn new(path: PathBuf) -> TokenFile {
        TokenFile { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The stamp of the file that is there now. `None`: there is none.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn stamp(&self) -> Result<Option<Stamp>, String> {
        match std::fs::metadata(&self.path) {
            Ok(meta) => Ok(Some(Stamp::of(&meta))),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(format!("cannot be looked at: {e}")),
        }
    }

    /// Is there a directory for it?
    pub fn has_directory(&self) -> bool {
        directory(&self.path).is_dir()
    }

    /// Reads it. `None`: there is none, and so there are no named tokens.
    ///
    /// # Errors
    /// It cannot be read, or it is no store; the text goes on from the name of the file.
    pub fn read(&self) -> Result<Option<Found>, String> {
        let mut options = OpenOptions::new();
        // Whatever has been put there must not hold us up.
        let file = options.read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(&self.path);
        let file = match file {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(format!("cannot be read: {e}")),
        };
        let meta = file.metadata().map_err(|e| format!("cannot be looked at: {e}"))?;
        if !meta.is_file() {
            return Err("is not a regular file".to_owned());
        }
        let mut bytes = Vec::new();
        file.take(STORE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(|e| format!("cannot be read: {e}"))?;
        let store = TokenStore::parse(&bytes).map_err(|fault| fault.to_string())?;
        let mode = meta.mode() & 0o7777;
        Ok(Some(Found { store, bytes, stamp: Stamp::of(&meta), too_open: (mode & OTHERS != 0).then_some(mode) }))
    }

    /// Changes the store, or leaves the file as it is. Nobody else changes it meanwhile.
    ///
    /// # Errors
    /// What `change` says, or why the store could not be read or written.
    pub fn update<T>(&self, change: impl FnOnce(&mut TokenStore) -> Result<T, String>) -> Result<T, String> {
        let told = |e: io::Error| format!("{} cannot be changed: {e}", self.shown());
        if std::fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.is_symlink()) {
            return Err(format!("{} is a symbolic link: let LEITSTAND_TOKEN_STORE name the file itself", self.shown()));
        }
        create_directory(directory(&self.path)).map_err(told)?;
        let owner = Owner::of(&self.path).or_else(|_| Owner::of(directory(&self.path))).map_err(told)?;
        let _lock = self.lock(owner).map_err(told)?;
        let found = self.read().map_err(|why| self.broken(&why))?;
        let mut store = found.map(|found| found.store).unwrap_or_default();
        let changed = change(&mut store)?;
        self.replace(store.to_json().as_bytes(), owner).map_err(told)?;
        Ok(changed)
    }

    /// Tells commands that a service keeps itself at this store, for as long as `presence` lives. To be called again
    /// and again: directories come and go.
    pub fn be_present(&self, presence: &mut Presence) {
        let places = self.places();
        presence.0.retain(|(path, id, _)| std::fs::metadata(path).is_ok_and(|meta| *id == (meta.dev(), meta.ino())));
        for path in places {
            if presence.0.iter().any(|(held, _, _)| *held == path) {
                continue;
            }
            // Another time, if it is not there, or just being asked for.
            let Ok(dir) = File::open(&path) else { continue };
            if let (Ok(meta), Ok(())) = (dir.metadata(), flock(&dir, FlockOperation::NonBlockingLockShared)) {
                presence.0.push((path, (meta.dev(), meta.ino()), dir));
            }
        }
    }

    /// Does a service keep itself at this store? When in doubt, yes.
    pub fn is_watched(&self) -> bool {
        self.places().iter().any(|path| match File::open(path) {
            Ok(dir) => flock(&dir, FlockOperation::NonBlockingLockExclusive).is_err(),
            Err(e) => e.kind() != ErrorKind::NotFound,
        })
    }

    /// The directory of the store, and that above it, because the former may not be there yet.
    fn places(&self) -> [PathBuf; 2] {
        let own = directory(&self.path);
        [own.to_owned(), directory(own).to_owned()]
    }

    /// What to do about a store that `why` says is none.
    pub fn broken(&self, why: &str) -> String {
        format!(
            "the token store {} {why}\n  nothing was changed; put a good copy there, or move it away and add the tokens anew",
            self.shown()
        )
    }

    fn shown(&self) -> String {
        format!("{:?}", self.path)
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(suffix);
        path.into()
    }

    fn lock(&self, owner: Owner) -> io::Result<File> {
        let path = self.beside(".lock");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32).open(path)?;
        // Another name of some other file must not be given away.
        if file.metadata()?.nlink() == 1 {
            owner.own(&file)?;
        }
        let deadline = Instant::now() + LOCK_WAIT_MAX;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) if Instant::now() < deadline => {
                    std::thread::sleep(LOCK_POLL);
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(io::Error::new(ErrorKind::TimedOut, "another command has held its lock for 10 s"));
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// The old store or the new one, whatever happens, and the new one once this has returned.
    fn replace(&self, bytes: &[u8], owner: Owner) -> io::Result<()> {
        replace(&self.path, 0o600, |file| {
            owner.own(file)?;
            // A umask may have taken bits away.
            file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
            file.write_all(bytes)?;
            file.sync_all()
        })?;
        File::open(directory(&self.path))?.sync_all()
    }
}

impl Stamp {
    fn of(meta: &std::fs::Metadata) -> Stamp {
        Stamp {
            device: meta.dev(),
            inode: meta.ino(),
            bytes: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// When the file was changed last, in Unix seconds.
    pub fn changed_s(&self) -> i64 {
        self.changed.0.max(self.modified.0)
    }
}

/// Who owns the store, or else its directory: root may change the store of a service that runs as
/// somebody else, and the service must be able to read it then.
#[derive(Debug, Clone, Copy)]
struct Owner {
    uid: u32,
    gid: u32,
}

impl Owner {
    fn of(path: &Path) -> io::Result<Owner> {
        let meta = std::fs::metadata(path)?;
        Ok(Owner { uid: meta.uid(), gid: meta.gid() })
    }

    fn own(self, file: &File) -> io::Result<()> {
        let meta = file.metadata()?;
        if meta.uid() == self.uid {
            return Ok(());
        }
        fchown(file, Some(self.uid), Some(self.gid)).map_err(|e| {
            let text = format!("it belongs to user {}: run the command as that user or as root ({e})", self.uid);
            io::Error::new(e.kind(), text)
        })
    }
}

/// The directory of a path that may have none.
fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// As `mkdir -p` for nobody else, and of the same owner as the directory above.
fn create_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let above = directory(path);
    create_directory(above)?;
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => return Ok(()),
        other => other?,
    }
    let created = File::open(path)?;
    if rustix::process::geteuid().is_root() {
        Owner::of(above)?.own(&created)?;
    }
    File::open(above)?.sync_all()
}
