//! `verify`: looks at every line of every file, changes nothing, and may run beside writers.
//!
//! A file is read once from the front, up to the length that it had at first. Memory is bounded by
//! [`LINE_BYTES_MAX`], whatever the length of file or line. Beside a running writer two things need
//! care: a last line that is just being written, which is looked at again, in the end under the
//! domain's lock; and a roll-back, which replaces bytes that were read already: whatever looks bad
//! is read twice, and if it has changed, the file is read anew.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use super::disk::{Disk, FileKind, FileStat, RealDisk};
use super::layout::{
    DATA_SUFFIX, FileNames, Owner, POISONED_SUFFIX, REWRITE_SUFFIX, TORN_DIR, is_lock_name, side_name,
};
use super::marker;
use super::tail::{self, TAIL_JSON_BYTES_MAX, Tail};
use crate::domain::Domain;
use crate::event::{self, LineFault, LineForm};

/// Longest line that is looked at as JSON; of a longer one only zero bytes and its end are seen.
pub const LINE_BYTES_MAX: usize = TAIL_JSON_BYTES_MAX as usize;
/// Most findings of one file that are told one by one; the rest is counted.
pub const FINDINGS_PER_FILE_MAX: usize = 20;
/// Most notes of one file that are told one by one.
pub const NOTES_PER_FILE_MAX: usize = 5;
/// How often a file is read anew because it changed under us.
const READS_MAX: usize = 4;
/// How often an unfinished last line is looked at again before the lock is asked for.
const SECOND_LOOKS_MAX: usize = 5;
const SECOND_LOOK_PAUSE: Duration = Duration::from_millis(2);
/// Pause between two looks at a foreign lock. Shorter than the gaps that the service leaves.
pub(super) const LOCK_POLL: Duration = Duration::from_millis(2);
const CHUNK_BYTES: usize = 256 << 10;

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    TornTail,
    MissingNewline,
    ZeroBytes,
    InvalidUtf8,
    InvalidJson,
    NotAnObject,
    DomainMissing,
    OtherDomain,
    NotADomain,
    Symlink,
    NotRegular,
    SideDirectory,
    Poisoned,
    OrphanMarker,
    BlankLine,
    LenientJson,
    ForeignForm,
    LongLine,
    LockNotEmpty,
    StrayName,
    StaleMarker,
    UnfinishedRewrite,
}

impl Kind {
    /// A stable word for scripts.
    pub fn word(self) -> &'static str {
        self.texts().0
    }

    /// What it is.
    pub fn what(self) -> &'static str {
        self.texts().1
    }

    /// What to do about it.
    pub fn advice(self) -> &'static str {
        self.texts().2
    }

    /// The service would not write it, but a reader can live with it.
    pub fn is_note(self) -> bool {
        match self {
            Kind::BlankLine
            | Kind::LenientJson
            | Kind::ForeignForm
            | Kind::LongLine
            | Kind::LockNotEmpty
            | Kind::StrayName
            | Kind::StaleMarker
            | Kind::UnfinishedRewrite => true,
            Kind::TornTail
            | Kind::MissingNewline
            | Kind::ZeroBytes
            | Kind::InvalidUtf8
            | Kind::InvalidJson
            | Kind::NotAnObject
            | Kind::DomainMissing
            | Kind::OtherDomain
            | Kind::NotADomain
            | Kind::Symlink
            | Kind::NotRegular
            | Kind::SideDirectory
            | Kind::Poisoned
            | Kind::OrphanMarker => false,
        }
    }

    fn texts(self) -> (&'static str, &'static str, &'static str) {
        const BACKUP: &str = "compare with a backup, see RUNBOOK, \"Damaged lines\"";
        match self {
            Kind::TornTail => (
                "torn_tail",
                "half a line at the end",
                "`leitstand repair --apply` moves it to .torn/, and so does the next append",
            ),
            Kind::MissingNewline => (
                "missing_newline",
                "the last line is whole but for its newline",
                "`leitstand repair --apply` ends it, and so does the next append",
            ),
            Kind::ZeroBytes => ("zero_bytes", "zero bytes, as a file system leaves them after a power cut", BACKUP),
            Kind::InvalidUtf8 => ("invalid_utf8", "not UTF-8", BACKUP),
            Kind::InvalidJson => ("invalid_json", "not JSON", BACKUP),
            Kind::NotAnObject => ("not_an_object", "JSON, but not an object", BACKUP),
            Kind::DomainMissing => ("domain_missing", "an event without a domain", BACKUP),
            Kind::OtherDomain => ("other_domain", "an event of another domain", BACKUP),
            Kind::NotADomain => (
                "not_a_domain",
                "ends in .jsonl, but no domain has a file of that name",
                "move it out of the data directory; readers of *.jsonl take it for data",
            ),
            Kind::Symlink => (
                "symlink",
                "a symbolic link, which the service never follows",
                "put the file itself there, or remove the link",
            ),
            Kind::NotRegular => (
                "not_regular",
                "not a regular file, so that the service refuses the domain",
                "move it out of the data directory",
            ),
            Kind::SideDirectory => (
                "side_directory",
                "not a directory, so that no torn tail can be kept",
                "move it away; the service makes the directory when it needs it",
            ),
            Kind::Poisoned => (
                "poisoned",
                "a sync of this file failed, and it was not written anew since",
                "`leitstand repair --apply` writes it anew, see RUNBOOK, \"Poisoned domain\"",
            ),
            Kind::OrphanMarker => (
                "orphan_marker",
                "a sync of a file failed that is gone now",
                "take the file from a backup, or remove the mark",
            ),
            Kind::BlankLine => ("blank_line", "a blank line", "nothing; most readers skip it"),
            Kind::LenientJson => (
                "lenient_json",
                "NaN, Infinity, a number beyond a double, or a lone surrogate",
                "nothing; Python reads it, strict readers do not",
            ),
            Kind::ForeignForm => {
                ("foreign_form", "spelled as this service never writes it", "nothing; every JSON reader takes it")
            }
            Kind::LongLine => ("long_line", "too long to be looked at as JSON", "look at it with a tool of your own"),
            Kind::LockNotEmpty => ("lock_not_empty", "a lock file with content", "nothing; nobody reads it"),
            Kind::StrayName => {
                ("stray_name", "does not belong to the service", "move it out of the data directory if nobody needs it")
            }
            Kind::StaleMarker => {
                ("stale_marker", "a mark of a poison that is over", "`leitstand repair --apply` removes it")
            }
            Kind::UnfinishedRewrite => (
                "unfinished_rewrite",
                "the copy of a repair that runs or was interrupted",
                "if no repair runs, remove it",
            ),
        }
    }
}

/// One thing that was found. Never holds a byte of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub kind: Kind,
    /// The name in the data directory.
    pub file: String,
    /// From 1.
    pub line: Option<u64>,
    /// From 0, of the first bad byte or of the line.
    pub offset: Option<u64>,
    /// How many bytes are concerned.
    pub bytes: Option<u64>,
}

/// A file that could not be looked at, or not to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotChecked {
    pub file: String,
    pub reason: String,
}

/// What to look at, and how patiently.
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    /// Only the file of this domain.
    pub only: Option<Domain>,
    /// Longest wait for a lock, per file. It is asked for only if the last line is unfinished.
    pub lock_timeout: Duration,
}

/// What a look at a data directory found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    pub files: u64,
    pub lines: u64,
    pub bytes: u64,
    /// Bytes of torn tails that are kept in the side directory.
    pub torn_files: u64,
    pub torn_bytes: u64,
    /// Those told one by one; `findings_total` counts all.
    pub findings: Vec<Finding>,
    pub findings_total: u64,
    pub notes: Vec<Finding>,
    pub notes_total: u64,
    pub not_checked: Vec<NotChecked>,
}

impl VerifyReport {
    /// Nothing is wrong, and everything was seen.
    pub fn is_clean(&self) -> bool {
        self.findings_total == 0 && self.not_checked.is_empty()
    }
}

/// How far a look has come.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    pub file: &'a str,
    pub bytes_done: u64,
    pub bytes: u64,
}

/// Looks at a data directory. Writes nothing, creates nothing.
///
/// # Errors
/// Whatever the operating system says about the directory itself. What concerns one file is in
/// [`VerifyReport::not_checked`].
pub fn verify(
    disk: &RealDisk,
    options: &VerifyOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> io::Result<VerifyReport> {
    let files = data_files(disk, options.only.as_ref())?;
    let mut look = Look { disk, options, report: VerifyReport::default(), bytes: 0, progress };
    if options.only.is_none() {
        look.names()?;
    }
    look.side_directory()?;
    look.bytes = files.iter().map(|file| file.stat.len).sum();
    for file in &files {
        look.file(file);
    }
    Ok(look.report)
}

/// The regular files that are data files by their names.
pub(super) fn data_files(disk: &RealDisk, only: Option<&Domain>) -> io::Result<Vec<DataFile>> {
    let names = match only {
        Some(domain) => vec![FileNames::of(domain).data],
        None => disk.names()?.into_iter().filter_map(|name| name.into_string().ok()).collect(),
    };
    let mut files = Vec::new();
    for name in names {
        let Some(owner) = only.cloned().map(Owner::Domain).or_else(|| Owner::of(&name)) else { continue };
        match disk.stat(&name)? {
            Some(stat) if stat.kind == FileKind::Regular => {
                files.push(DataFile { names: FileNames::of_data(name), owner, stat });
            }
            Some(_) if only.is_some() => return Err(io::Error::other("its data file is not a regular file")),
            None if only.is_some() => return Err(io::Error::new(io::ErrorKind::NotFound, "it has no data file")),
            _ => {}
        }
    }
    Ok(files)
}

/// A data file as it was found in the directory.
pub(super) struct DataFile {
    pub names: FileNames,
    pub owner: Owner,
    pub stat: FileStat,
}

/// A name as it may be shown.
pub(super) fn shown(name: &OsStr) -> String {
    name.to_string_lossy().escape_debug().to_string()
}

struct Look<'a> {
    disk: &'a RealDisk,
    options: &'a VerifyOptions,
    report: VerifyReport,
    bytes: u64,
    progress: &'a mut dyn FnMut(Progress<'_>),
}

impl Look<'_> {
    /// Everything in the directory but the content of data files.
    fn names(&mut self) -> io::Result<()> {
        let mut found = Found::default();
        for name in self.disk.names()? {
            // It may be gone by now.
            let Some(stat) = self.disk.stat_name(&name)? else { continue };
            if let Some(kind) = self.judge_name(&name, stat) {
                found.push(Finding { kind, file: shown(&name), line: None, offset: None, bytes: None });
            }
        }
        self.take(found);
        Ok(())
    }

    fn judge_name(&self, name: &OsStr, stat: FileStat) -> Option<Kind> {
        let text = name.to_str().unwrap_or_default();
        let is_data = text.ends_with(DATA_SUFFIX);
        let is_lock = is_lock_name(text);
        match stat.kind {
            _ if text == TORN_DIR => (!self.disk.is_dir(name)).then_some(Kind::SideDirectory),
            FileKind::Symlink => Some(Kind::Symlink),
            FileKind::Other if is_data || is_lock => Some(Kind::NotRegular),
            // Side files of any kind live under dot directories.
            FileKind::Other if text.starts_with('.') && self.disk.is_dir(name) => None,
            FileKind::Regular if is_data => Owner::of(text).is_none().then_some(Kind::NotADomain),
            FileKind::Regular if is_lock => (stat.len > 0).then_some(Kind::LockNotEmpty),
            FileKind::Regular | FileKind::Other => Some(Kind::StrayName),
        }
    }

    fn side_directory(&mut self) -> io::Result<()> {
        let is_dir = self.disk.is_dir(OsStr::new(TORN_DIR));
        if !is_dir {
            // Missing, or told already.
            return Ok(());
        }
        let names = match self.disk.side_names(TORN_DIR) {
            Err(e) => {
                self.report.not_checked.push(NotChecked { file: TORN_DIR.to_owned(), reason: e.to_string() });
                return Ok(());
            }
            Ok(names) => names.unwrap_or_default(),
        };
        let only = self.options.only.as_ref().map(|domain| FileNames::of(domain).data);
        let mut found = Found::default();
        for name in names {
            if only.as_ref().is_some_and(|data| !belongs_to(&name, data)) {
                continue;
            }
            if let Err(e) = self.side_file(&name, &mut found) {
                let file = format!("{TORN_DIR}/{}", shown(&name));
                self.report.not_checked.push(NotChecked { file, reason: e.to_string() });
            }
        }
        self.take(found);
        Ok(())
    }

    fn side_file(&mut self, name: &OsStr, found: &mut Found) -> io::Result<()> {
        let Some(stat) = self.disk.stat_side(TORN_DIR, name)? else { return Ok(()) };
        let text = name.to_str().unwrap_or_default();
        let kind = match stat.kind {
            FileKind::Symlink => Kind::Symlink,
            FileKind::Other => Kind::StrayName,
            FileKind::Regular if text.ends_with(REWRITE_SUFFIX) => Kind::UnfinishedRewrite,
            FileKind::Regular if text.ends_with(POISONED_SUFFIX) => return self.marker(text, found),
            FileKind::Regular if is_torn_name(text) => {
                self.report.torn_files += 1;
                self.report.torn_bytes += stat.len;
                return Ok(());
            }
            FileKind::Regular => Kind::StrayName,
        };
        let file = format!("{TORN_DIR}/{}", shown(name));
        found.push(Finding { kind, file, line: None, offset: None, bytes: None });
        Ok(())
    }

    fn marker(&mut self, name: &str, found: &mut Found) -> io::Result<()> {
        let data = match name.strip_suffix(POISONED_SUFFIX) {
            Some(data) if Owner::of(data).is_some() => Some(data.to_owned()),
            // Shortened: only the data files themselves tell.
            _ => data_files(self.disk, self.options.only.as_ref())?
                .into_iter()
                .map(|file| file.names.data)
                .find(|data| side_name(data, POISONED_SUFFIX) == name),
        };
        let (Some(stat), Some(data)) = (data.as_ref().map(|d| self.disk.stat(d)).transpose()?.flatten(), data) else {
            let file = format!("{TORN_DIR}/{}", shown(OsStr::new(name)));
            found.push(Finding { kind: Kind::OrphanMarker, file, line: None, offset: None, bytes: None });
            return Ok(());
        };
        if let Some(marker) = marker::read(self.disk, &data)? {
            let kind = if marker.is_about(stat.id) { Kind::Poisoned } else { Kind::StaleMarker };
            found.push(Finding { kind, file: data, line: None, offset: None, bytes: None });
        }
        Ok(())
    }

    fn file(&mut self, file: &DataFile) {
        let before = self.report.bytes;
        let looked = look_at(self.disk, file, self.options.lock_timeout, &mut |bytes| {
            let bytes_done = before + bytes;
            (self.progress)(Progress { file: &file.names.data, bytes_done, bytes: self.bytes.max(bytes_done) });
        });
        match looked {
            Ok(looked) => {
                self.report.files += 1;
                self.report.lines += looked.lines;
                self.report.bytes += looked.bytes;
                self.take(looked.found);
                if let Some(reason) = looked.not_checked {
                    self.report.not_checked.push(NotChecked { file: file.names.data.clone(), reason });
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => {
                self.report.not_checked.push(NotChecked { file: file.names.data.clone(), reason: e.to_string() });
            }
        }
    }

    fn take(&mut self, found: Found) {
        self.report.findings_total += found.findings_total;
        self.report.notes_total += found.notes_total;
        self.report.findings.extend(found.findings);
        self.report.notes.extend(found.notes);
    }
}

/// A side file of this data file?
fn belongs_to(name: &OsStr, data: &str) -> bool {
    let text = name.to_str().unwrap_or_default();
    text == side_name(data, POISONED_SUFFIX)
        || text == side_name(data, REWRITE_SUFFIX)
        || (is_torn_name(text) && tail::kept_stem(data) == torn_stem(text))
}

/// `<data file>.<offset>.<time in ns>`
fn is_torn_name(name: &str) -> bool {
    let mut parts = name.rsplitn(3, '.');
    let mut number = || parts.next().is_some_and(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
    number() && number() && !torn_stem(name).is_empty()
}

fn torn_stem(name: &str) -> &str {
    name.rsplitn(3, '.').nth(2).unwrap_or_default()
}

/// What was found in one file: some of it, and how much in all.
#[derive(Default)]
pub(super) struct Found {
    findings: Vec<Finding>,
    pub findings_total: u64,
    notes: Vec<Finding>,
    notes_total: u64,
}

impl Found {
    fn push(&mut self, finding: Finding) {
        let (list, total, max) = if finding.kind.is_note() {
            (&mut self.notes, &mut self.notes_total, NOTES_PER_FILE_MAX)
        } else {
            (&mut self.findings, &mut self.findings_total, FINDINGS_PER_FILE_MAX)
        };
        *total += 1;
        if list.len() < max {
            list.push(finding);
        }
    }

    /// Lines that no append and no repair can mend.
    pub(super) fn damaged_lines(&self) -> u64 {
        let tail = |finding: &&Finding| matches!(finding.kind, Kind::TornTail | Kind::MissingNewline);
        self.findings_total - self.findings.iter().filter(tail).count() as u64
    }
}

/// What a look at one file found.
#[derive(Default)]
pub(super) struct FileLook {
    pub lines: u64,
    pub bytes: u64,
    pub found: Found,
    pub not_checked: Option<String>,
}

/// Why a reading of a file ended early.
enum Stop {
    /// The bytes are not those that were read before: start anew.
    Changed,
    Failed(io::Error),
}

impl From<io::Error> for Stop {
    fn from(e: io::Error) -> Stop {
        Stop::Failed(e)
    }
}

/// Looks at one data file. `progress` is told how many bytes are done.
pub(super) fn look_at(
    disk: &RealDisk,
    file: &DataFile,
    lock_timeout: Duration,
    progress: &mut dyn FnMut(u64),
) -> io::Result<FileLook> {
    for _ in 0..READS_MAX {
        let opened = disk.open_read(&file.names.data)?;
        let stat = disk.fstat(&opened)?;
        if stat.kind != FileKind::Regular {
            return Err(io::Error::other("not a regular file"));
        }
        let mut reading = Reading { disk, file, opened, known: None, look: FileLook::default() };
        if let Owner::Domain(domain) = &file.owner {
            reading.known = Some(domain.clone());
        }
        match reading.read(stat, lock_timeout, progress) {
            Ok(()) => return Ok(reading.look),
            Err(Stop::Changed) => {}
            Err(Stop::Failed(e)) => return Err(e),
        }
    }
    Err(io::Error::other("the file is changed by somebody in its middle, again and again"))
}

struct Reading<'a> {
    disk: &'a RealDisk,
    file: &'a DataFile,
    opened: File,
    /// The domain of the file, as soon as it is known.
    known: Option<Domain>,
    look: FileLook,
}

impl Reading<'_> {
    fn read(&mut self, stat: FileStat, lock_timeout: Duration, progress: &mut dyn FnMut(u64)) -> Result<(), Stop> {
        let mut lines = Lines::new(0, stat.len);
        while let Some(line) = lines.next(self.disk, &self.opened)? {
            if !line.ended {
                let start = line.start;
                drop(lines);
                return self.last_line(start, stat, lock_timeout);
            }
            self.line(&line)?;
            progress(self.look.bytes);
        }
        // Shorter than it was: a roll-back, or somebody cut it. Then its end is looked at anew.
        if self.look.bytes < stat.len { Err(Stop::Changed) } else { Ok(()) }
    }

    /// A line that was not ended when the length was taken: whoever writes it needs a moment.
    fn last_line(&mut self, start: u64, stat: FileStat, lock_timeout: Duration) -> Result<(), Stop> {
        for _ in 0..SECOND_LOOKS_MAX {
            if self.line_at(start)? {
                return Ok(());
            }
            std::thread::sleep(SECOND_LOOK_PAUSE);
        }
        let Some(_lock) = lock(self.disk, &self.file.names, lock_timeout)? else {
            self.look.not_checked =
                Some("locked by another process; its last line is unfinished and was not judged".to_owned());
            return Ok(());
        };
        if self.disk.stat(&self.file.names.data)?.is_none_or(|now| now.id != stat.id) {
            return Err(Stop::Changed);
        }
        if self.line_at(start)? {
            return Ok(());
        }
        // Nobody writes now: this is the end of the file.
        let len = self.disk.fstat(&self.opened)?.len;
        let (kind, sound_len) = match tail::inspect(self.disk, &self.opened, len)? {
            Tail::Torn { sound_len } if sound_len == start => (Kind::TornTail, sound_len),
            Tail::Whole => (Kind::MissingNewline, start),
            Tail::Clean | Tail::Torn { .. } => return Err(Stop::Changed),
        };
        self.look.lines += 1;
        self.look.bytes = len;
        self.found(kind, sound_len, Some(len - sound_len));
        Ok(())
    }

    /// Looks at the line at `start`, if it has ended by now.
    fn line_at(&mut self, start: u64) -> Result<bool, Stop> {
        let len = self.disk.fstat(&self.opened)?.len;
        let mut lines = Lines::new(start, len);
        match lines.next(self.disk, &self.opened)? {
            Some(line) if line.ended => self.line(&line).map(|()| true),
            Some(_) => Ok(false),
            // It was taken back.
            None => Err(Stop::Changed),
        }
    }

    fn line(&mut self, line: &Line<'_>) -> Result<(), Stop> {
        self.look.lines += 1;
        self.look.bytes = line.start + line.len + 1;
        let Some((kind, offset, bytes)) = self.judge(line) else { return Ok(()) };
        // Only what will be told is worth a second reading.
        if !kind.is_note() && self.look.found.findings.len() < FINDINGS_PER_FILE_MAX && !self.is_unchanged(line)? {
            return Err(Stop::Changed);
        }
        self.found(kind, offset, bytes);
        Ok(())
    }

    fn found(&mut self, kind: Kind, offset: u64, bytes: Option<u64>) {
        let file = self.file.names.data.clone();
        self.look.found.push(Finding { kind, file, line: Some(self.look.lines), offset: Some(offset), bytes });
    }

    /// What is not right with the line: kind, offset, number of bytes.
    fn judge(&mut self, line: &Line<'_>) -> Option<(Kind, u64, Option<u64>)> {
        let all = |kind| Some((kind, line.start, Some(line.len)));
        let Some(bytes) = line.bytes else {
            return match line.zeros {
                Some((at, zeros)) => Some((Kind::ZeroBytes, at, Some(zeros))),
                None => all(Kind::LongLine),
            };
        };
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(e) => return Some((Kind::InvalidUtf8, line.start + e.valid_up_to() as u64, None)),
        };
        if self.known.as_ref().is_some_and(|domain| event::check_line(text, domain).is_ok()) {
            return None;
        }
        if let Some(at) = memchr::memchr(0, bytes) {
            let zeros = memchr::memchr_iter(0, bytes).count() as u64;
            return Some((Kind::ZeroBytes, line.start + at as u64, Some(zeros)));
        }
        match event::read_line(text) {
            Err(LineFault::Blank) => all(Kind::BlankLine),
            Err(LineFault::NotJson) => all(Kind::InvalidJson),
            Err(LineFault::NotAnObject) => all(Kind::NotAnObject),
            Err(LineFault::DomainMissing) => all(Kind::DomainMissing),
            Ok(event) if !self.is_ours(&event.domain) => all(Kind::OtherDomain),
            Ok(event) => match event.form {
                LineForm::Own => None,
                LineForm::Foreign => all(Kind::ForeignForm),
                LineForm::Lenient => all(Kind::LenientJson),
            },
        }
    }

    fn is_ours(&mut self, domain: &str) -> bool {
        if let Some(known) = &self.known {
            return known.as_str() == domain;
        }
        // A shortened name: the first event that fits tells the domain.
        let parsed = Domain::parse(domain).ok().filter(|parsed| parsed.as_str() == domain);
        self.known = parsed.filter(|parsed| FileNames::of(parsed).data == self.file.names.data);
        self.known.is_some()
    }

    /// Does the line still stand where it was read, and as it was read?
    fn is_unchanged(&self, line: &Line<'_>) -> io::Result<bool> {
        let newline_at = |offset: u64| -> io::Result<bool> {
            let mut byte = [0];
            Ok(self.disk.read_at(&self.opened, &mut byte, offset)? == 1 && byte == *b"\n")
        };
        if (line.start > 0 && !newline_at(line.start - 1)?) || !newline_at(line.start + line.len)? {
            return Ok(false);
        }
        let mut buf = vec![0; CHUNK_BYTES];
        for (chunk, at) in line.bytes.unwrap_or_default().chunks(CHUNK_BYTES).zip((line.start..).step_by(CHUNK_BYTES)) {
            let n = self.disk.read_at(&self.opened, &mut buf[..chunk.len()], at)?;
            if buf[..n] != *chunk {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Takes the domain's lock without creating its file; `None`: somebody else has it for too long.
///
/// Where there is no lock file nobody holds the lock, and `Some(None)` comes back.
pub(super) fn lock(disk: &RealDisk, names: &FileNames, patience: Duration) -> io::Result<Option<Option<File>>> {
    let began = Instant::now();
    loop {
        let file = match disk.open_read(&names.lock) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Some(None)),
            other => other.map_err(|e| io::Error::new(e.kind(), format!("cannot open the lock file: {e}")))?,
        };
        // compat: the lock only counts if the name still leads to the file that was locked.
        if disk.try_lock(&file)?
            && disk.stat(&names.lock)?.is_some_and(|now| disk.fstat(&file).is_ok_and(|f| f.id == now.id))
        {
            return Ok(Some(Some(file)));
        }
        if began.elapsed() >= patience {
            return Ok(None);
        }
        std::thread::sleep(LOCK_POLL);
    }
}

/// A line, as far as it is kept.
struct Line<'a> {
    start: u64,
    /// Without its newline.
    len: u64,
    /// `None`: too long to be kept, or bad already by its zero bytes.
    bytes: Option<&'a [u8]>,
    /// The first zero byte and how many there are; only where `bytes` is `None`.
    zeros: Option<(u64, u64)>,
    ended: bool,
}

/// The lines of a part of a file, one after the other.
struct Lines {
    buf: Vec<u8>,
    /// What of `buf` is not yet taken.
    rest: std::ops::Range<usize>,
    /// Offset of the end of `rest` in the file.
    at: u64,
    end: u64,
    /// The beginning of a line that did not fit into one chunk.
    carry: Vec<u8>,
}

impl Lines {
    fn new(start: u64, end: u64) -> Lines {
        let buf = vec![0; CHUNK_BYTES.min(end.saturating_sub(start) as usize)];
        Lines { buf, rest: 0..0, at: start, end, carry: Vec::new() }
    }

    fn next(&mut self, disk: &RealDisk, file: &File) -> io::Result<Option<Line<'_>>> {
        self.carry.clear();
        let start = self.at - self.rest.len() as u64;
        let mut len = 0u64;
        let mut kept = true;
        let mut zeros: Option<(u64, u64)> = None;
        let ended = loop {
            if self.rest.is_empty() && !self.fill(disk, file)? {
                break false;
            }
            let piece = &self.buf[self.rest.clone()];
            let newline = memchr::memchr(b'\n', piece);
            if let (Some(at), 0) = (newline, len) {
                // The usual case: nothing is copied.
                let whole = self.rest.start..self.rest.start + at;
                self.rest.start = whole.end + 1;
                let bytes = Some(&self.buf[whole]);
                return Ok(Some(Line { start, len: at as u64, bytes, zeros: None, ended: true }));
            }
            let piece = &piece[..newline.unwrap_or(piece.len())];
            if let Some(at) = memchr::memchr(0, piece) {
                let count = memchr::memchr_iter(0, piece).count() as u64;
                let (first, before) = zeros.unwrap_or((start + len + at as u64, 0));
                zeros = Some((first, before + count));
            }
            kept &= zeros.is_none() && self.carry.len() + piece.len() <= LINE_BYTES_MAX;
            if kept {
                self.carry.extend_from_slice(piece);
            } else {
                self.carry = Vec::new();
            }
            len += piece.len() as u64;
            self.rest.start += piece.len() + usize::from(newline.is_some());
            if newline.is_some() {
                break true;
            }
        };
        if len == 0 && !ended {
            return Ok(None);
        }
        Ok(Some(Line { start, len, bytes: kept.then_some(&self.carry[..]), zeros, ended }))
    }

    /// The next chunk; false at the end.
    fn fill(&mut self, disk: &RealDisk, file: &File) -> io::Result<bool> {
        let want = self.buf.len().min((self.end - self.at.min(self.end)) as usize);
        let n = disk.read_at(file, &mut self.buf[..want], self.at)?;
        self.rest = 0..n;
        self.at += n as u64;
        Ok(n > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn torn_names_are_told_from_others() {
        for (name, stem) in [("a.jsonl.0.17", "a.jsonl"), ("a.b.jsonl.12.3", "a.b.jsonl"), ("x.1.2.3", "x.1")] {
            assert!(is_torn_name(name) && torn_stem(name) == stem, "{name}");
        }
        for name in ["a.jsonl", "1.2", ".1.2", "a.jsonl.1.", "a.jsonl..2", "a.jsonl.poisoned", "a.1.x"] {
            assert!(!is_torn_name(name), "{name}");
        }
    }
}
