//! Where a snapshot or a restored directory is made: beside its name, and moved there when it is
//! whole and on the disk.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::directory::{Directory, try_lock};
use super::error::SnapshotError;
use super::manifest::{FORMAT, MANIFEST};
use crate::storage::disk::{FileId, FileKind};
use crate::storage::layout::{NAME_BYTES_MAX, Owner, TOKEN_STORE_DIR, TORN_DIR};

/// One snapshot at a time for each parent directory.
const PARENT_LOCK: &str = ".snapshot.lock";
/// How the name of an unfinished snapshot goes on, before the id of its process.
const PARTIAL: &str = ".partial-";
/// The same of an unfinished restore.
const RESTORING: &str = ".restoring-";

/// A name that is free, in a directory that is there.
pub(super) struct Target {
    pub(super) parent: Directory,
    name: OsString,
    /// As it was asked for.
    pub(super) path: PathBuf,
    /// Who owns the empty directory that is replaced.
    pub(super) owner: Option<(u32, u32)>,
}

impl Target {
    /// Looks at the name; creates nothing.
    pub(super) fn find(path: &Path) -> Result<Target, SnapshotError> {
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
        if name.len() + RESTORING.len() + 10 > NAME_BYTES_MAX {
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

    /// Removes what snapshots left here whose process is dead. Under the lock of the parent.
    pub(super) fn remove_dead_snapshots(&self) -> Result<(), SnapshotError> {
        self.remove_dead(|name| after(name, PARTIAL).is_some(), is_dead_snapshot)
    }

    /// Removes what restores into this very target left whose process is dead.
    pub(super) fn remove_dead_restores(&self) -> Result<(), SnapshotError> {
        self.remove_dead(|name| after(name, RESTORING).is_some_and(|stem| stem == self.name), is_dead_restore)
    }

    fn remove_dead(
        &self,
        fits: impl Fn(&OsStr) -> bool,
        is_dead: impl Fn(&Directory) -> io::Result<bool>,
    ) -> Result<(), SnapshotError> {
        let names = self.parent.names().map_err(|e| SnapshotError::io("list", self.parent.path(), e))?;
        for name in names.into_iter().filter(|name| fits(name)) {
            // What is no directory, or cannot be looked at, is none of ours.
            let dead = self.parent.open_dir(&name).and_then(|dir| is_dead(&dir)).unwrap_or(false);
            if dead {
                self.parent
                    .remove_dir(&name)
                    .map_err(|e| SnapshotError::io("remove what is left of", self.parent.path_of(&name), e))?;
            }
        }
        Ok(())
    }

    pub(super) fn begin_snapshot(&self) -> Result<Partial<'_>, SnapshotError> {
        self.begin(PARTIAL)
    }

    pub(super) fn begin_restore(&self) -> Result<Partial<'_>, SnapshotError> {
        let partial = self.begin(RESTORING)?;
        // Nobody else can want this lock: it was made a moment ago, under a name of our own.
        let locked = partial.dir.try_lock();
        locked.map_err(|e| SnapshotError::io("lock", partial.dir.path(), e))?;
        Ok(partial)
    }

    fn begin(&self, word: &str) -> Result<Partial<'_>, SnapshotError> {
        let mut name = self.name.clone();
        name.push(format!("{word}{}", std::process::id()));
        let fail = |e| SnapshotError::io("make", self.parent.path_of(&name), e);
        let dir = self.parent.create_dir(&name).map_err(fail)?;
        Ok(Partial { target: self, dir, name, done: false })
    }
}

/// A directory that is being made. Removed when dropped before it is whole.
pub(super) struct Partial<'a> {
    target: &'a Target,
    pub(super) dir: Directory,
    name: OsString,
    done: bool,
}

impl Partial<'_> {
    /// Gives it its name. Everything in it must be on the disk already, but for the names.
    pub(super) fn finish(mut self) -> Result<(), SnapshotError> {
        let target = self.target;
        self.dir.sync().map_err(|e| SnapshotError::io("sync", self.dir.path(), e))?;
        target.parent.rename(&self.name, &target.name).map_err(|e| match e.kind() {
            io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
                target.not_empty()
            }
            io::ErrorKind::ResourceBusy => target.is_mount_point(),
            _ => SnapshotError::io("rename to", &target.path, e),
        })?;
        self.done = true;
        target.parent.sync().map_err(|e| SnapshotError::io("sync", target.parent.path(), e))
    }
}

impl Drop for Partial<'_> {
    fn drop(&mut self) {
        if !self.done {
            // If even this fails, the next one removes it.
            let _ = self.target.parent.remove_dir(&self.name);
        }
    }
}

/// What stands before `word` and the id of a process.
fn after<'a>(name: &'a OsStr, word: &str) -> Option<&'a OsStr> {
    let bytes = name.as_bytes();
    let digits = bytes.iter().rev().take_while(|b| b.is_ascii_digit()).count();
    let stem = bytes[..bytes.len() - digits].strip_suffix(word.as_bytes())?;
    (digits > 0 && !stem.is_empty()).then(|| OsStr::from_bytes(stem))
}

/// Begun by us, and by nobody who is alive: its manifest, which is made first and locked until the
/// end, says what it is.
fn is_dead_snapshot(dir: &Directory) -> io::Result<bool> {
    let names = dir.names()?;
    if names.is_empty() {
        return Ok(true);
    }
    let Some((manifest, head)) = manifest_head(dir)? else { return Ok(false) };
    let is_ours = is_our_format(&head) || (head.is_empty() && names.len() == 1);
    Ok(is_ours && try_lock(manifest.as_fd())?)
}

/// Does it hold a manifest of ours, sound or not?
fn is_snapshot(dir: &Directory) -> io::Result<bool> {
    Ok(manifest_head(dir)?.is_some_and(|(_, head)| is_our_format(&head)))
}

/// The manifest, and how it begins, without white space. `None`: there is none.
fn manifest_head(dir: &Directory) -> io::Result<Option<(File, String)>> {
    if dir.stat(MANIFEST)?.is_none_or(|stat| stat.kind != FileKind::Regular) {
        return Ok(None);
    }
    let manifest = dir.open_read(MANIFEST)?;
    let mut head = String::new();
    // What is not UTF-8 is not ours.
    let _ = (&manifest).take(64).read_to_string(&mut head);
    head.retain(|c| !c.is_whitespace());
    Ok(Some((manifest, head)))
}

fn is_our_format(head: &str) -> bool {
    head.starts_with(&format!("{{\"format\":\"{FORMAT}\""))
}

/// It holds nothing but what a restore writes, and nobody has its lock.
fn is_dead_restore(dir: &Directory) -> io::Result<bool> {
    let is_side = |name: &str| name == TORN_DIR || name == TOKEN_STORE_DIR;
    let is_ours = |name: &OsString| name.to_str().is_some_and(|name| is_side(name) || Owner::of(name).is_some());
    Ok(dir.names()?.iter().all(is_ours) && dir.try_lock()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, directories would be removed that no snapshot made.
    #[test]
    fn only_the_names_of_partials_are_told_as_such() {
        for (name, stem) in [("a.partial-1", "a"), ("a.partial-1.partial-22", "a.partial-1")] {
            assert_eq!(after(OsStr::new(name), PARTIAL), Some(OsStr::new(stem)), "{name}");
        }
        for name in ["a", "a.partial-", ".partial-1", "a.partial-1x", "a.partial-x1", "a.restoring-1", "1"] {
            assert_eq!(after(OsStr::new(name), PARTIAL), None, "{name}");
        }
    }
}
