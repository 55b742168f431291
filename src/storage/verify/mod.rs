//! `verify`: looks at every line of every file, changes nothing, and may run beside writers.
//!
//! A file is read once from the front, up to the length that it had at first. Memory is bounded by
//! [`LINE_BYTES_MAX`], whatever the length of file or line. Beside a running writer two things need
//! care: a last line that is just being written, which is looked at again, in the end under the
//! domain's lock; and a roll-back, which replaces bytes that were read already: whatever looks bad
//! is read twice, and if it has changed, the file is read anew.

mod finding;
mod lines;
mod names;
mod reading;

use std::ffi::OsStr;
use std::io;
use std::time::Duration;

use super::disk::{Disk, FileKind, FileStat, RealDisk};
use super::layout::{FileNames, Owner};
use super::tail::TAIL_JSON_BYTES_MAX;
use crate::domain::Domain;

pub use finding::{Finding, Kind, NotChecked};

pub(super) use finding::Found;
pub(super) use names::judge_name;
pub(super) use reading::{FileLook, look_at, look_at_still};

/// Longest line that is looked at as JSON; of a longer one only zero bytes and its end are seen.
pub const LINE_BYTES_MAX: usize = TAIL_JSON_BYTES_MAX as usize;
/// Most findings of one file that are told one by one; the rest is counted.
pub const FINDINGS_PER_FILE_MAX: usize = 20;
/// Most notes of one file that are told one by one.
pub const NOTES_PER_FILE_MAX: usize = 5;

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

    pub(super) fn take(&mut self, found: Found) {
        self.findings_total += found.findings_total;
        self.notes_total += found.notes_total;
        self.findings.extend(found.findings);
        self.notes.extend(found.notes);
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
                self.report.take(looked.found);
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
}
