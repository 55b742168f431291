//! One data file, read from the front beside whoever writes to it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::time::Duration;

use super::DataFile;
use super::FINDINGS_PER_FILE_MAX;
use super::finding::{Finding, Found, Kind};
use super::lines::{Bytes, CHUNK_BYTES, Judge, Line, Lines};
use crate::json;
use crate::storage::disk::{Disk, FileKind, FileStat, RealDisk};
use crate::storage::holes::hole_at;
use crate::storage::layout::Owner;
use crate::storage::lock::lock;
use crate::storage::tail::{self, Tail};

/// How often a file is read anew because it changed under us.
const READS_MAX: usize = 4;
/// How often an unfinished last line is looked at again before the lock is asked for.
const SECOND_LOOKS_MAX: usize = 5;
const SECOND_LOOK_PAUSE: Duration = Duration::from_millis(2);

/// What a look at one file found.
#[derive(Default)]
pub(in crate::storage) struct FileLook {
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
pub(in crate::storage) fn look_at(
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
        let judge = Judge::new(&file.names.data, &file.owner);
        let mut reading = Reading { disk, file, opened, judge, look: FileLook::default() };
        match reading.read(stat, lock_timeout, progress) {
            Ok(()) => return Ok(reading.look),
            Err(Stop::Changed) => {}
            Err(Stop::Failed(e)) => return Err(e),
        }
    }
    Err(io::Error::other("the file is changed by somebody in its middle, again and again"))
}

/// Looks at the lines of a file that nobody writes to. `read` is asked for its bytes from the front
/// to `len`, for each once.
pub(in crate::storage) fn look_at_still(
    data: &str,
    owner: &Owner,
    len: u64,
    read: &mut dyn FnMut(&mut [u8], u64) -> io::Result<usize>,
) -> io::Result<FileLook> {
    let mut look = FileLook::default();
    let mut judge = Judge::new(data, owner);
    let mut lines = Lines::new(0, len);
    let mut read = read;
    while let Some(line) = lines.next(&mut read)? {
        look.lines += 1;
        look.bytes = line.start + line.len + u64::from(line.ended);
        let found = match line.bytes {
            _ if line.ended => judge.judge(&line),
            Some(bytes) if json::is_whole_value(bytes) => Some((Kind::MissingNewline, line.start, Some(line.len))),
            _ => Some((Kind::TornTail, line.start, Some(line.len))),
        };
        if let Some((kind, offset, bytes)) = found {
            look.found.push(Finding {
                kind,
                file: data.to_owned(),
                line: Some(look.lines),
                offset: Some(offset),
                bytes,
            });
        }
    }
    Ok(look)
}

struct Reading<'a> {
    disk: &'a RealDisk,
    file: &'a DataFile,
    opened: File,
    judge: Judge,
    look: FileLook,
}

/// A file whose holes are not read.
struct OnDisk<'a> {
    disk: &'a RealDisk,
    file: &'a File,
}

impl Bytes for OnDisk<'_> {
    fn read(&mut self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self.disk.read_at(self.file, buf, at)
    }

    fn hole(&mut self, range: Range<u64>) -> io::Result<u64> {
        hole_at(self.disk, self.file, range)
    }
}

impl Reading<'_> {
    fn read(&mut self, stat: FileStat, lock_timeout: Duration, progress: &mut dyn FnMut(u64)) -> Result<(), Stop> {
        let mut lines = Lines::new(0, stat.len);
        while let Some(line) = lines.next(&mut OnDisk { disk: self.disk, file: &self.opened })? {
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
        match lines.next(&mut OnDisk { disk: self.disk, file: &self.opened })? {
            Some(line) if line.ended => self.line(&line).map(|()| true),
            Some(_) => Ok(false),
            // It was taken back.
            None => Err(Stop::Changed),
        }
    }

    fn line(&mut self, line: &Line<'_>) -> Result<(), Stop> {
        self.look.lines += 1;
        self.look.bytes = line.start + line.len + 1;
        let Some((kind, offset, bytes)) = self.judge.judge(line) else { return Ok(()) };
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
