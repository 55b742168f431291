//! Where a snapshot or a restored directory is made: beside its name, and moved there when it is
//! whole and on the disk.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use super::directory::{Directory, try_lock};
use super::error::SnapshotError;
use super::manifest::{FORMAT, MANIFEST};
use super::unfinished::{self, BESIDE_BYTES_MAX, LeftAlone, MARK, Purpose};
use crate::storage::disk::{FileId, FileKind};
use crate::storage::layout::NAME_BYTES_MAX;

/// One snapshot at a time for each parent directory.
const PARENT_LOCK: &str = ".snapshot.lock";

/// A name that is free, in a directory that is there.
pub struct Target {
    pub(super) parent: Directory,
    name: OsString,
    /// As it was asked for.
    pub(super) path: PathBuf,
    /// Who owns the empty directory that is replaced.
    pub(super) owner: Option<(u32, u32)>,
}

impl Target {
    /// Looks at the name; creates nothing.
    ///
    /// # Errors
    /// [`SnapshotError::BadTarget`], [`SnapshotError::NotEmpty`] or [`SnapshotError::Inside`] when nothing can be
    /// made there.
    pub fn find(path: &Path) -> Result<Target, SnapshotError> {
        let bad = |reason: String| SnapshotError::BadTarget { path: path.to_owned(), reason };
        let Some(name) = path.file_name() else {
            return Err(bad("it does not end in a name; name a directory that is not there yet".to_owned()));
        };
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let parent = parent.canonicalize().and_then(|parent| Directory::open(&parent)).map_err(|e| {
            let advice = match e.kind() {
                io::ErrorKind::NotFound => "; create it, or mount the disk that it is on",
                _ => "",
            };
            bad(format!("its parent directory {parent:?}: {e}{advice}"))
        })?;
        if unfinished::is_reserved(name) || [PARENT_LOCK, MARK].iter().any(|own| name == *own) {
            let reason = "a name of this kind is kept for what is not finished yet; choose another one, e.g. without \
                          \".partial-\" and \".restoring-\"";
            return Err(bad(reason.to_owned()));
        }
        if name.len() + BESIDE_BYTES_MAX > NAME_BYTES_MAX {
            return Err(bad("its name is too long; choose a shorter one".to_owned()));
        }
        let mut target = Target { parent, name: name.to_owned(), path: path.to_owned(), owner: None };
        target.refuse_inside_snapshot()?;
        let fail = |e| SnapshotError::io("look at", path, e);
        match target.parent.stat(name).map_err(fail)?.map(|stat| stat.kind) {
            None => {}
            Some(FileKind::Regular | FileKind::Symlink) => return Err(target.not_empty()),
            Some(FileKind::Other) => {
                let there = target.parent.open_dir(name).map_err(|e| match e.kind() {
                    io::ErrorKind::NotADirectory => target.not_empty(),
                    _ => fail(e),
                })?;
                if there.id().map_err(fail)?.dev != target.parent.id().map_err(fail)?.dev {
                    return Err(target.is_mount_point());
                }
                if !there.names().map_err(fail)?.is_empty() {
                    return Err(target.not_empty());
                }
                target.owner = Some(there.owner().map_err(fail)?);
            }
        }
        Ok(target)
    }

    fn not_empty(&self) -> SnapshotError {
        SnapshotError::NotEmpty(self.path.clone())
    }

    fn is_mount_point(&self) -> SnapshotError {
        SnapshotError::BadTarget {
            path: self.path.clone(),
            reason: "a file system is mounted there, and a mount point cannot be replaced; name a directory in it"
                .to_owned(),
        }
    }

    /// Refuses a target somewhere in the directory `inside`, by whatever path it is reached.
    pub(super) fn refuse_inside(&self, inside: FileId, inside_path: &Path) -> Result<(), SnapshotError> {
        for above in self.parent.path().ancestors() {
            let fail = |e| SnapshotError::io("look at", above, e);
            if Directory::open(above).and_then(|above| above.id()).map_err(fail)? == inside {
                return Err(SnapshotError::Inside { path: self.path.clone(), inside: inside_path.to_owned() });
            }
        }
        Ok(())
    }

    /// Refuses a target somewhere in a snapshot: whatever is put there is no part of that one, which
    /// would not be sound any more.
    fn refuse_inside_snapshot(&self) -> Result<(), SnapshotError> {
        for above in self.parent.path().ancestors() {
            let holds_manifest = Directory::open(above).and_then(|above| is_snapshot(&above));
            // Of others' directories above only the way through may be allowed.
            if holds_manifest.unwrap_or(false) {
                return Err(SnapshotError::Inside { path: self.path.clone(), inside: above.to_owned() });
            }
        }
        Ok(())
    }

    /// The lock that keeps a second snapshot away from the same parent, until it is dropped.
    pub(super) fn lock_parent(&self) -> Result<File, SnapshotError> {
        let fail = |e| SnapshotError::io("lock", self.parent.path_of(PARENT_LOCK), e);
        let file = self.parent.open_lock(PARENT_LOCK).map_err(fail)?;
        if !try_lock(file.as_fd()).map_err(fail)? {
            return Err(SnapshotError::AlreadyRunning(self.parent.path().to_owned()));
        }
        Ok(file)
    }

    /// Removes what is left here of those whose process is dead. What has such a name and is none of them is told.
    ///
    /// # Errors
    /// When the parent cannot be listed.
    pub fn clear(&self) -> Result<Vec<LeftAlone>, SnapshotError> {
        unfinished::clear(&self.parent).map_err(|e| SnapshotError::io("list", self.parent.path(), e))
    }

    /// Makes the directory beside the name that it will have, with a mark in it.
    ///
    /// # Errors
    /// See [`SnapshotError`]; then nothing is left.
    pub fn begin(&self, purpose: Purpose) -> Result<Partial<'_>, SnapshotError> {
        let name = purpose.name_beside(&self.name);
        let fail = |e| SnapshotError::io("make", self.parent.path_of(&name), e);
        // Nobody may take the directory for a left-over before it has its mark. Whoever holds this lock for
        // something else is not waited for.
        let locked = self.parent.try_lock().map_err(fail)?;
        let begun = self.parent.create_dir(&name).and_then(|dir| {
            let mark = unfinished::leave(&dir, purpose, &name, &self.name);
            mark.map(|mark| (dir, mark)).inspect_err(|_| drop(unfinished::remove(&self.parent, &name)))
        });
        if locked {
            self.parent.unlock().map_err(fail)?;
        }
        let (dir, mark) = begun.map_err(fail)?;
        Ok(Partial { target: self, dir, name: name.clone(), _mark: mark, done: false })
    }
}

/// A directory that is being made. Removed when dropped before it is whole.
pub struct Partial<'a> {
    target: &'a Target,
    pub(super) dir: Directory,
    name: OsString,
    /// Locked for as long as this lives.
    _mark: File,
    done: bool,
}

impl Partial<'_> {
    /// Where it is while it is being made.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Gives it its name. Everything in it must be on the disk already, but for the names.
    ///
    /// # Errors
    /// See [`SnapshotError`]; then nothing stands under its name that was not there before.
    pub fn finish(mut self) -> Result<(), SnapshotError> {
        let target = self.target;
        let fail = |e| SnapshotError::io("sync", self.dir.path(), e);
        self.dir.sync().map_err(fail)?;
        target.parent.rename(&self.name, &target.name).map_err(|e| match e.kind() {
            io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
                target.not_empty()
            }
            io::ErrorKind::ResourceBusy => target.is_mount_point(),
            _ => SnapshotError::io("rename to", &target.path, e),
        })?;
        self.done = true;
        // Not before it has its name: without its mark nobody would know what it is.
        self.dir.remove(MARK).and_then(|()| self.dir.sync()).map_err(fail)?;
        target.parent.sync().map_err(|e| SnapshotError::io("sync", target.parent.path(), e))
    }
}

impl Drop for Partial<'_> {
    fn drop(&mut self) {
        if !self.done {
            // If even this fails, the next one removes it.
            let _ = unfinished::remove(&self.target.parent, &self.name);
        }
    }
}

/// Does it hold a manifest of ours, sound or not?
fn is_snapshot(dir: &Directory) -> io::Result<bool> {
    if dir.stat(MANIFEST)?.is_none_or(|stat| stat.kind != FileKind::Regular) {
        return Ok(false);
    }
    let mut head = String::new();
    // What is not UTF-8 is not ours.
    let _ = dir.open_read(MANIFEST)?.take(64).read_to_string(&mut head);
    head.retain(|c| !c.is_whitespace());
    Ok(head.starts_with(&format!("{{\"format\":\"{FORMAT}\"")))
}
