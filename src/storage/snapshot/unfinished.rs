//! The mark of a directory that is being made: whose it is, and what is done with one whose maker is dead.
//!
//! A name proves nothing, since anybody may choose it. So the first file of such a directory says what it is,
//! is synced before anything else is made, is locked for as long as its process lives, and goes last.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::time::SystemTime;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::directory::{Directory, try_lock};
use crate::storage::disk::FileKind;
use crate::timestamp::rfc3339_s;

/// The first file in a directory that is being made, and the last that goes.
pub(super) const MARK: &str = ".leitstand-unfinished";
const FORMAT: &str = "leitstand-unfinished";
/// More than any mark that is written.
const MARK_BYTES_MAX: u64 = 8 << 10;
/// How the names of directories that are being made go on.
const WORDS: [&str; 2] = [".partial-", ".restoring-"];
/// Hex digits behind them.
const ID_DIGITS: usize = 16;
/// Directories below one another in something that is removed: more than anything that is made here has.
const DEPTH_MAX: usize = 16;

/// What a directory will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    Snapshot,
    Restore,
    SupportBundle,
    /// Made under its own name, see [`Marked`].
    Drill,
}

impl Purpose {
    /// The name under which it is made: never made before, and none that a target may have.
    pub(super) fn name_beside(self, target: &OsStr) -> OsString {
        let word = match self {
            Purpose::Snapshot | Purpose::SupportBundle | Purpose::Drill => WORDS[0],
            Purpose::Restore => WORDS[1],
        };
        let mut name = target.to_owned();
        name.push(format!("{word}{:016x}", crate::rng::random_u64()));
        name
    }
}

/// Most bytes that [`Purpose::name_beside`] puts behind a name.
pub(super) const BESIDE_BYTES_MAX: usize = WORDS[1].len() + ID_DIGITS;

/// What a mark says.
#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    format: String,
    /// Differs for every mark.
    id: String,
    purpose: Purpose,
    /// Of the directory, while it is being made.
    name: String,
    /// What it will be called.
    target: String,
    pid: u32,
    /// When that process began, in clock ticks since boot; 0: not known.
    started: u64,
    boot: String,
    at: String,
}

/// Something that has a name of ours and was not touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftAlone {
    pub name: String,
    /// Why.
    pub reason: String,
}

/// Is it a name as directories have while they are made? No target may have one.
pub(super) fn is_reserved(name: &OsStr) -> bool {
    id_in(name).is_some_and(|id| !id.is_empty())
}

/// What stands behind the last of [`WORDS`], if it is hex digits only.
fn id_in(name: &OsStr) -> Option<&[u8]> {
    let bytes = name.as_bytes();
    let digits = bytes.iter().rev().take_while(|b| b.is_ascii_hexdigit()).count();
    let (stem, id) = bytes.split_at(bytes.len() - digits);
    WORDS.iter().any(|word| stem.ends_with(word.as_bytes())).then_some(id)
}

/// Leaves the mark in a directory that was made a moment ago. Its lock is held until the file is closed.
pub(super) fn leave(dir: &Directory, purpose: Purpose, name: &OsStr, target: &OsStr) -> io::Result<File> {
    let pid = std::process::id();
    let mark = Mark {
        format: FORMAT.to_owned(),
        id: format!("{:016x}{:016x}", crate::rng::random_u64(), crate::rng::random_u64()),
        purpose,
        name: name.to_string_lossy().into_owned(),
        target: target.to_string_lossy().into_owned(),
        pid,
        started: started(pid).unwrap_or(0),
        boot: boot(),
        at: rfc3339_s(SystemTime::now()),
    };
    let mut file = dir.create(MARK)?;
    try_lock(file.as_fd())?;
    file.write_all((serde_json::to_string(&mark).map_err(io::Error::other)? + "\n").as_bytes())?;
    file.sync_all()?;
    dir.sync()?;
    Ok(file)
}

/// Removes what is left in `parent` of directories whose makers are dead, and tells what looks like it and is not.
///
/// # Errors
/// When `parent` cannot be listed. What cannot be removed is told as left alone.
pub(super) fn clear(parent: &Directory) -> io::Result<Vec<LeftAlone>> {
    let mut left = Vec::new();
    // Between the making of a directory and its mark its maker has this lock.
    let nobody_begins = parent.try_lock()?;
    for name in parent.names()? {
        let why = match judge(parent, &name, nobody_begins) {
            Ok(Judged::Ours(mark)) => {
                let removed = remove(parent, &name);
                drop(mark);
                removed.err().map(|e| format!("it cannot be removed: {e}"))
            }
            Ok(Judged::Finished(dir, mark)) => {
                let removed = dir.remove(MARK).and_then(|()| dir.sync());
                drop(mark);
                removed.err().map(|e| format!("its mark {MARK} cannot be removed: {e}"))
            }
            Ok(Judged::Running | Judged::NotConcerned) => None,
            Ok(Judged::Foreign(why)) => Some(why.to_owned()),
            Err(e) => is_reserved(&name).then(|| format!("it cannot be looked at: {e}")),
        };
        left.extend(why.map(|reason| LeftAlone { name: name.to_string_lossy().into_owned(), reason }));
    }
    if nobody_begins {
        parent.unlock()?;
    }
    Ok(left)
}

/// What of this kind stands in `dir`, without touching it: what runs, what the next run removes, what is left alone.
///
/// # Errors
/// When it cannot be listed.
pub fn look_at_left_overs(dir: &std::path::Path) -> io::Result<Vec<LeftAlone>> {
    let parent = Directory::open(&dir.canonicalize()?)?;
    let mut told = Vec::new();
    for name in parent.names()? {
        let reason = match judge(&parent, &name, true) {
            Ok(Judged::NotConcerned | Judged::Running) => continue,
            Ok(Judged::Ours(_)) => "left over by a process that is dead; the next snapshot or restore here removes it",
            Ok(Judged::Finished(..)) => "whole, but for a mark that the next snapshot or restore here removes",
            Ok(Judged::Foreign(why)) => why,
            Err(_) if !is_reserved(&name) => continue,
            Err(_) => "it cannot be looked at",
        };
        told.push(LeftAlone { name: name.to_string_lossy().into_owned(), reason: reason.to_owned() });
    }
    Ok(told)
}

/// A directory that has its name already, marked for as long as its process works in it.
#[derive(Debug)]
pub struct Marked {
    dir: Directory,
    _mark: File,
}

impl Marked {
    /// Marks a directory that is there and is empty.
    ///
    /// # Errors
    /// What the operating system says; then there is no mark.
    pub fn enter(path: &std::path::Path, purpose: Purpose) -> io::Result<Marked> {
        let dir = Directory::open(path)?;
        let name = path.file_name().unwrap_or_default();
        let mark = leave(&dir, purpose, name, name).inspect_err(|_| drop(dir.remove(MARK)))?;
        Ok(Marked { dir, _mark: mark })
    }

    /// Takes the mark away: what is there now stays.
    pub fn release(&self) {
        // Whoever finds it finds nobody who holds its lock.
        let _ = self.dir.remove(MARK);
    }
}

impl Drop for Marked {
    fn drop(&mut self) {
        self.release();
    }
}

/// Removes the directories in `parent` whose names begin so, which this user marked for this purpose, and whose
/// processes are dead.
///
/// # Errors
/// When `parent` cannot be listed. What cannot be removed stays.
pub fn clear_marked(parent: &std::path::Path, beginning: &str, purpose: Purpose) -> io::Result<()> {
    let parent = Directory::open(&parent.canonicalize()?)?;
    for name in parent.names()? {
        if name.as_bytes().starts_with(beginning.as_bytes()) && is_dead(&parent, &name, purpose).unwrap_or(false) {
            let _ = remove(&parent, &name);
        }
    }
    Ok(())
}

/// Removes the mark of a dead process from `path`, with the one directory `work` that it made there. False: there is
/// no such mark, and nothing was done.
///
/// # Errors
/// What the operating system says; then the mark stays.
pub fn clear_within(path: &std::path::Path, work: &str, purpose: Purpose) -> io::Result<bool> {
    let path = path.canonicalize()?;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(false) };
    if !is_dead(&Directory::open(parent)?, name, purpose)? {
        return Ok(false);
    }
    let dir = Directory::open(&path)?;
    if dir.stat(work)?.is_some() {
        remove(&dir, OsStr::new(work))?;
    }
    dir.remove(MARK)?;
    Ok(true)
}

fn is_dead(parent: &Directory, name: &OsStr, purpose: Purpose) -> io::Result<bool> {
    if parent.stat_below(name, MARK)?.is_none() {
        return Ok(false);
    }
    let dir = parent.open_dir_here(name)?;
    let Some((file, mark)) = read(&dir)? else { return Ok(false) };
    let is_own = dir.owner()?.0 == rustix::process::geteuid().as_raw();
    Ok(is_own && mark.purpose == purpose && name.to_string_lossy() == mark.name && !is_alive(&file, &mark)?)
}

enum Judged {
    /// Its mark says so, and its maker is dead. With the lock of the mark, if there is one.
    Ours(Option<File>),
    /// It has the name that it should have in the end, and the mark is still there.
    Finished(Directory, File),
    Running,
    Foreign(&'static str),
    NotConcerned,
}

fn judge(parent: &Directory, name: &OsStr, nobody_begins: bool) -> io::Result<Judged> {
    let marked = parent.stat_below(name, MARK)?.is_some();
    if !marked && !is_reserved(name) {
        return Ok(Judged::NotConcerned);
    }
    let dir = match parent.open_dir_here(name) {
        Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
            return Ok(Judged::Foreign("a file system is mounted there"));
        }
        Err(e) if e.kind() == io::ErrorKind::NotADirectory || e.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
            return Ok(if is_reserved(name) { Judged::Foreign("it is no directory") } else { Judged::NotConcerned });
        }
        other => other?,
    };
    let may_be_new = nobody_begins && id_in(name).is_some_and(|id| id.len() == ID_DIGITS);
    let Some((file, mark)) = read(&dir)? else {
        let names = dir.names()?;
        // Its maker was killed before it had written the mark. Nothing is lost with it.
        if may_be_new && (names.is_empty() || (names == [MARK] && is_empty(&dir)?)) {
            return Ok(Judged::Ours(None));
        }
        return Ok(Judged::Foreign("it holds no mark of leitstand"));
    };
    let shown = name.to_string_lossy();
    match (mark.name == shown, mark.target == shown) {
        (true, _) if is_alive(&file, &mark)? => Ok(Judged::Running),
        (true, _) => Ok(Judged::Ours(Some(file))),
        (false, true) if is_alive(&file, &mark)? => Ok(Judged::Running),
        (false, true) => Ok(Judged::Finished(dir, file)),
        (false, false) => Ok(Judged::Foreign("its mark is of another name; it was moved or copied")),
    }
}

/// Is the mark an empty file?
fn is_empty(dir: &Directory) -> io::Result<bool> {
    Ok(dir.stat(MARK)?.is_some_and(|stat| stat.kind == FileKind::Regular && stat.len == 0))
}

/// The mark in a directory; `None`: there is none, or what has its name is none.
fn read(dir: &Directory) -> io::Result<Option<(File, Mark)>> {
    if dir.stat(MARK)?.is_none_or(|stat| stat.kind != FileKind::Regular) {
        return Ok(None);
    }
    let file = dir.open_read(MARK)?;
    let mut text = Vec::new();
    (&file).take(MARK_BYTES_MAX).read_to_end(&mut text)?;
    let mark = serde_json::from_slice(&text).ok().filter(|mark: &Mark| mark.format == FORMAT);
    Ok(mark.map(|mark| (file, mark)))
}

/// Does the process live that left the mark? Takes the lock if it does not.
fn is_alive(file: &File, mark: &Mark) -> io::Result<bool> {
    if !try_lock(file.as_fd())? {
        return Ok(true);
    }
    // Where the file system knows no locks, everybody gets one.
    let is_there = mark.started != 0 && mark.boot == boot() && started(mark.pid) == Some(mark.started);
    Ok(is_there && mark.pid != std::process::id())
}

/// Removes a directory with all that is in it, its mark last, so that whoever is killed on the way leaves something
/// that is still known. Follows no link and enters no other file system.
///
/// # Errors
/// A file system is mounted in it: then nothing is removed. Or what the operating system says.
pub(super) fn remove(parent: &Directory, name: &OsStr) -> io::Result<()> {
    let dir = parent.open_dir_here(name)?;
    each_below(&dir, DEPTH_MAX)?;
    empty(&dir, Some(MARK))?;
    match dir.remove(MARK) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    parent.remove_empty(name)
}

/// Opens each directory in it, so that one that must not be entered is known before anything is removed.
fn each_below(dir: &Directory, depth: usize) -> io::Result<()> {
    for name in dir.directories()? {
        let below = dir.open_dir_here(&name).map_err(|e| match e.kind() {
            io::ErrorKind::CrossesDevices => io::Error::other(format!("a file system is mounted at {name:?} in it")),
            _ => e,
        })?;
        each_below(&below, depth.checked_sub(1).ok_or_else(|| io::Error::other("it is too deep"))?)?;
    }
    Ok(())
}

fn empty(dir: &Directory, but: Option<&str>) -> io::Result<()> {
    for name in dir.names()? {
        if but.is_some_and(|but| name == but) {
            continue;
        }
        match dir.remove(&name) {
            Err(e) if e.kind() == io::ErrorKind::IsADirectory => {
                empty(&dir.open_dir_here(&name)?, None)?;
                dir.remove_empty(&name)?;
            }
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// When the process began, in clock ticks since boot, see proc_pid_stat(5). `None`: there is none.
fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program, in brackets, may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

fn boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, somebody could call a snapshot what only an unfinished one is called, or could not call it as he likes.
    #[test]
    fn only_the_names_of_what_is_being_made_are_reserved() {
        for name in ["a.partial-1", "a.restoring-22", ".partial-f", "a.partial-1.partial-0123456789abcdef"] {
            assert!(is_reserved(OsStr::new(name)), "{name}");
        }
        for name in ["a", "a.partial-", "partial-1", "a.partial-x", "a.partial-1x", "a.partial_1", "1", ""] {
            assert!(!is_reserved(OsStr::new(name)), "{name}");
        }
        assert!(is_reserved(&Purpose::Snapshot.name_beside(OsStr::new("a"))));
        let restore = Purpose::Restore.name_beside(OsStr::new("a"));
        assert!(is_reserved(&restore) && restore.len() == 1 + BESIDE_BYTES_MAX);
    }

    #[test]
    fn a_process_is_known_by_its_beginning() {
        let own = started(std::process::id());
        assert!(own.is_some_and(|ticks| ticks > 0));
        assert_ne!(started(1), own);
        assert_eq!(started(u32::MAX), None);
        assert!(!boot().is_empty());
    }
}
