//! `repair`: does now what the next append would do to the end of a file, and writes a file anew
//! whose last sync failed.
//!
//! Both happen under the domain's lock, so a running service and Python writers may go on. A file
//! is written anew as a copy under another inode that is renamed over the old one: after a failed
//! sync the page cache may show what is not on the disk, and only a new write and a new sync take
//! the doubt away. A running service sees the new inode and lifts the poison.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::time::{Duration, Instant};

use super::allocated;
use super::disk::{Disk, FileId, RealDisk};
use super::error::{StoreError, chain};
use super::layout::{REWRITE_SUFFIX, TORN_DIR, side_name};
use super::lock::{LOCK_POLL, lock};
use super::log::{Log, OpenFiles, SyncWhen};
use super::marker;
use super::tail::{self, Tail};
use super::verify::{DataFile, NotChecked, data_files, look_at};
use crate::domain::Domain;

/// What to repair, and whether.
#[derive(Debug, Clone)]
pub struct RepairOptions {
    /// Only the file of this domain.
    pub only: Option<Domain>,
    /// Write the file anew also if nothing says that its sync failed, and whatever is in its lines.
    /// Only with `only`.
    pub rewrite: bool,
    /// Without it nothing is changed.
    pub apply: bool,
    /// Longest wait for a lock, per file.
    pub lock_timeout: Duration,
}

/// What a file needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// The last line lacks its newline.
    EndLine,
    /// Half a line at the end goes to the side directory.
    MoveTornTail,
    /// A copy on the disk takes the place of the file.
    Rewrite,
    /// The mark of a poison that is over is removed.
    RemoveMarker,
}

impl Act {
    /// A stable word for scripts.
    pub fn word(self) -> &'static str {
        match self {
            Act::EndLine => "end_line",
            Act::MoveTornTail => "move_torn_tail",
            Act::Rewrite => "rewrite",
            Act::RemoveMarker => "remove_marker",
        }
    }
}

/// How far a step has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It would be done with `apply`.
    Planned,
    Done,
    /// The file is as it was, unless the text says otherwise.
    Failed(String),
}

/// One thing that a file needs. Never holds a byte of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub file: String,
    pub act: Act,
    /// Where in the file; for [`Act::MoveTornTail`] and [`Act::EndLine`] where the last line begins.
    pub offset: u64,
    /// How many bytes are concerned.
    pub bytes: u64,
    pub outcome: Outcome,
}

/// What a repair found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepairReport {
    pub files: u64,
    pub steps: Vec<Step>,
    pub not_checked: Vec<NotChecked>,
}

impl RepairReport {
    /// Nothing is left to do, and everything was seen.
    pub fn is_done(&self) -> bool {
        self.not_checked.is_empty() && self.steps.iter().all(|step| step.outcome == Outcome::Done)
    }
}

/// Repairs a data directory, or says what it would do.
///
/// # Errors
/// Whatever the operating system says about the directory itself. What concerns one file is in the
/// report.
pub fn repair(disk: &RealDisk, options: &RepairOptions) -> io::Result<RepairReport> {
    let mut report = RepairReport::default();
    for file in data_files(disk, options.only.as_ref())? {
        report.files += 1;
        let mut steps = Vec::new();
        let result = Repair { disk, options, file: &file }.run(&mut steps);
        report.steps.append(&mut steps);
        // A file that is gone by now needs nothing.
        if let Err(e) = result
            && (e.kind() != io::ErrorKind::NotFound || options.only.is_some())
        {
            report.not_checked.push(NotChecked { file: file.names.data.clone(), reason: e.to_string() });
        }
    }
    Ok(report)
}

struct Repair<'a> {
    disk: &'a RealDisk,
    options: &'a RepairOptions,
    file: &'a DataFile,
}

/// What one file needs, as seen under its lock.
struct Need {
    file: File,
    id: FileId,
    len: u64,
    tail: Tail,
    /// Where the last line begins that is not ended.
    sound_len: u64,
    rewrite: bool,
    stale_marker: bool,
}

impl Repair<'_> {
    fn run(&self, steps: &mut Vec<Step>) -> io::Result<()> {
        // Without the lock first: a file that needs nothing is not worth one.
        match self.need() {
            Ok(need) if !need.any() => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(e),
            // Beside a writer it may be cut between two looks; the lock settles it.
            _ => {}
        }
        if !self.options.apply {
            let Some(_lock) = lock(self.disk, &self.file.names, self.options.lock_timeout)? else {
                return Err(locked());
            };
            let need = self.need()?;
            let refused = self.refuses_rewrite(&need)?;
            steps.extend(need.steps(&self.file.names.data, &mut |act| match (act, &refused) {
                (Act::Rewrite, Some(text)) => Outcome::Failed(text.clone()),
                _ => Outcome::Planned,
            }));
            return Ok(());
        }
        let mut log = Log::new(self.file.names.clone(), OpenFiles::default());
        self.lock(&mut log)?;
        let need = self.need()?;
        if !need.any() {
            return Ok(());
        }
        // What root creates on the way must not lock the service out.
        self.disk.share_with_owner(&need.file, &self.file.names.lock, TORN_DIR)?;
        let result = self.apply(&need, &mut log);
        self.disk.share_with_owner(&need.file, &self.file.names.lock, TORN_DIR)?;
        log.unlock(self.disk);
        let failed = result.err();
        steps.extend(need.steps(&self.file.names.data, &mut |_| match &failed {
            Some(text) => Outcome::Failed(text.clone()),
            None => Outcome::Done,
        }));
        Ok(())
    }

    /// The lock by the protocol of appends; waits no longer than allowed.
    fn lock(&self, log: &mut Log<RealDisk>) -> io::Result<()> {
        let began = Instant::now();
        while !log.try_lock(self.disk).map_err(|e| io::Error::other(chain(&e)))? {
            if began.elapsed() >= self.options.lock_timeout {
                return Err(locked());
            }
            std::thread::sleep(LOCK_POLL);
        }
        Ok(())
    }

    fn need(&self) -> io::Result<Need> {
        let file = self.disk.open_read(&self.file.names.data)?;
        let stat = self.disk.fstat(&file)?;
        let tail = tail::inspect(self.disk, &file, stat.len)?;
        let sound_len = match tail {
            Tail::Clean => stat.len,
            Tail::Torn { sound_len } => sound_len,
            Tail::Whole => tail::after_last_newline(self.disk, &file, stat.len)?,
        };
        let marker = marker::read(self.disk, &self.file.names.data)?;
        let doubtful = marker.as_ref().is_some_and(|marker| marker.is_about(stat.id));
        Ok(Need {
            file,
            id: stat.id,
            len: stat.len,
            tail,
            sound_len,
            rewrite: doubtful || self.options.rewrite,
            stale_marker: marker.is_some() && !doubtful,
        })
    }

    /// Why the file is not written anew by itself: that would end a poison, and with it the chance
    /// that somebody looks. Who asks for it by name has looked.
    fn refuses_rewrite(&self, need: &Need) -> io::Result<Option<String>> {
        if !need.rewrite || self.options.rewrite {
            return Ok(None);
        }
        let look = look_at(self.disk, self.file, Duration::ZERO, &mut |_| {})?;
        let damaged = look.found.damaged_lines();
        let lines = if damaged == 1 { "1 line is" } else { &format!("{damaged} lines are") };
        Ok((damaged > 0).then(|| {
            format!(
                "{lines} damaged, see `leitstand verify`; take the file from a backup, or copy it as it is with --domain and --rewrite"
            )
        }))
    }

    fn apply(&self, need: &Need, log: &mut Log<RealDisk>) -> Result<(), String> {
        let data = &self.file.names.data;
        let text = |e: io::Error| e.to_string();
        if need.rewrite {
            if let Some(refused) = self.refuses_rewrite(need).map_err(text)? {
                return Err(refused);
            }
            self.rewrite(need).map_err(text)?;
            marker::remove(self.disk, data).map_err(|e| format!("written anew, but its mark stays: {e}"))?;
            return Ok(());
        }
        if need.tail != Tail::Clean {
            // An append of nothing: the same repair, the same sync.
            log.append(self.disk, &[], SyncWhen::Now, || true).map_err(|e| self.failed_append(need, &e))?;
        }
        if need.stale_marker { marker::remove(self.disk, data).map_err(text) } else { Ok(()) }
    }

    /// If the sync failed, the file is in doubt from now on.
    fn failed_append(&self, need: &Need, error: &StoreError) -> String {
        let text = chain(error);
        if !error.poisons() {
            return text;
        }
        match marker::leave(self.disk, &self.file.names.data, error.label(), Some(need.id)) {
            Ok(()) => format!("{text}; the file is in doubt now, run the repair again to write it anew"),
            Err(e) => format!("{text}; the file is in doubt now, and no mark could be left: {e}"),
        }
    }

    /// Puts a copy of the sound lines in the place of the file, on the disk before it has the name.
    fn rewrite(&self, need: &Need) -> io::Result<()> {
        let (disk, data) = (self.disk, &self.file.names.data);
        if let Tail::Torn { sound_len } = need.tail {
            tail::keep_torn(disk, &need.file, data, sound_len, need.len)?;
        }
        let side = side_name(data, REWRITE_SUFFIX);
        // Of a repair that was interrupted. We hold the lock, so no other one is at work.
        match disk.remove_side(TORN_DIR, &side) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let copy = disk.create_side(TORN_DIR, &side)?;
        self.fill(need, &copy).and_then(|()| disk.replace(TORN_DIR, &side, data)).inspect_err(|_| {
            // If even this fails, `verify` names the file that is left.
            let _ = disk.remove_side(TORN_DIR, &side);
        })?;
        // The mark still names the old file: if a crash brings that back, the doubt is back too.
        disk.sync_root()
            .and_then(|()| disk.sync_side(TORN_DIR))
            .map_err(|e| io::Error::new(e.kind(), format!("written anew, but the directory was not synced: {e}")))
    }

    fn fill(&self, need: &Need, copy: &File) -> io::Result<()> {
        let sound_len = if need.tail == Tail::Whole { need.len } else { need.sound_len };
        tail::copy(self.disk, &need.file, copy, 0..sound_len)?;
        if need.tail == Tail::Whole && self.disk.append(copy, &[IoSlice::new(b"\n")])? != 1 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let old = need.file.metadata()?;
        copy.set_permissions(std::fs::Permissions::from_mode(old.mode() & 0o7777))?;
        let new = copy.metadata()?;
        if new.uid() != old.uid() {
            std::os::unix::fs::fchown(copy, Some(old.uid()), Some(old.gid()))
                .map_err(|e| io::Error::new(e.kind(), format!("cannot keep the owner of the file: {e}")))?;
        } else if new.gid() != old.gid() {
            // Mode 0600 gives the group nothing, so it may differ.
            let _ = std::os::unix::fs::fchown(copy, None, Some(old.gid()));
        }
        // Owner and mode too, so more than `fdatasync`.
        copy.sync_all()?;
        let len = sound_len + u64::from(need.tail == Tail::Whole);
        // A hole that the old file has too comes from what is in it: some file systems make holes of zeros.
        allocated::check_whole(copy, len)
            .or_else(|e| if allocated::check_whole(&need.file, sound_len).is_err() { Ok(()) } else { Err(e) })?;
        self.disk.check_alive(copy)
    }
}

impl Need {
    fn any(&self) -> bool {
        self.tail != Tail::Clean || self.rewrite || self.stale_marker
    }

    fn steps(&self, file: &str, outcome: &mut dyn FnMut(Act) -> Outcome) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut push = |act, offset, bytes| {
            steps.push(Step { file: file.to_owned(), act, offset, bytes, outcome: outcome(act) });
        };
        match self.tail {
            Tail::Clean => {}
            Tail::Whole => push(Act::EndLine, self.sound_len, self.len - self.sound_len),
            Tail::Torn { sound_len } => push(Act::MoveTornTail, sound_len, self.len - sound_len),
        }
        if self.rewrite {
            push(Act::Rewrite, 0, self.sound_len);
        }
        if self.stale_marker {
            push(Act::RemoveMarker, 0, 0);
        }
        steps
    }
}

fn locked() -> io::Error {
    io::Error::new(io::ErrorKind::WouldBlock, "locked by another process")
}
