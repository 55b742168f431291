//! Is a snapshot what its manifest says, and does a data directory go on where it ends?

use std::fs::File;
use std::io;
use std::path::Path;

use super::content::Content;
use super::directory::Directory;
use super::error::SnapshotError;
use super::manifest::{FileEntry, MANIFEST, MANIFEST_SHA256, Manifest, read_exact_at};
use super::{open_snapshot, tokens};
use crate::storage::disk::{Disk, FileKind, RealDisk};
use crate::storage::layout::{POISONED_SUFFIX, TOKEN_STORE_DIR, TORN_DIR, side_name};
use crate::storage::marker;
use crate::storage::verify::{
    FileLook, Finding, Found, Kind, NotChecked, Progress, VerifyReport, look_at_still, shown,
};

const CHUNK_BYTES: usize = 256 << 10;

/// Looks at a snapshot: the manifest, every part, every line, and that nothing else is there. `expected`: the hash
/// that its manifest must have.
///
/// # Errors
/// [`SnapshotError::Damaged`] when the manifest cannot be trusted, and whatever the operating system
/// says about the directory itself. The rest is in the report.
pub fn check(
    path: &Path,
    expected: Option<&str>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<VerifyReport, SnapshotError> {
    let dir = open_snapshot(path)?;
    let manifest = Manifest::read_expected(&dir, expected)?;
    let mut report = VerifyReport::default();
    let mut found = Found::default();
    strays(&dir, &manifest, &mut found)?;
    marks(&dir, &manifest, &mut found);
    for (kind, name) in manifest.tokens.iter().flat_map(|entry| tokens::faults(&dir, entry)) {
        found.push(finding(kind, &name));
    }
    report.take(found);
    for file in &manifest.files {
        let before = report.bytes;
        let mut told = |bytes| {
            progress(Progress { file: &file.name, bytes_done: before + bytes, bytes: manifest.totals.bytes });
        };
        match check_file(&dir, file, &mut told) {
            Ok(look) => {
                report.files += 1;
                report.lines += look.lines;
                report.bytes += look.bytes;
                report.take(look.found);
            }
            Err(e) => report.not_checked.push(NotChecked { file: file.name.clone(), reason: e.to_string() }),
        }
    }
    Ok(report)
}

fn finding(kind: Kind, file: &str) -> Finding {
    Finding { kind, file: file.to_owned(), line: None, offset: None, bytes: None }
}

/// Names that the manifest does not know.
fn strays(dir: &Directory, manifest: &Manifest, found: &mut Found) -> Result<(), SnapshotError> {
    let fail = |e| SnapshotError::io("list", dir.path(), e);
    let is_poisoned = |file: &&FileEntry| file.poisoned.is_some();
    let parts = manifest.files.iter().flat_map(|file| file.segments.iter().map(|segment| segment.name.clone()));
    let mut known: std::collections::HashSet<String> = parts.collect();
    known.extend([MANIFEST.to_owned(), MANIFEST_SHA256.to_owned()]);
    let marks: std::collections::HashSet<String> =
        manifest.files.iter().filter(is_poisoned).map(|file| side_name(&file.name, POISONED_SUFFIX)).collect();
    for name in dir.names().map_err(fail)? {
        let text = name.to_str().unwrap_or_default();
        if text == TORN_DIR && !marks.is_empty() {
            // What is no directory is told with the marks that cannot be read.
            for name in dir.open_dir(TORN_DIR).and_then(|side| side.names()).unwrap_or_default() {
                if !marks.contains(name.to_str().unwrap_or_default()) {
                    found.push(finding(Kind::NotInManifest, &format!("{TORN_DIR}/{}", shown(&name))));
                }
            }
        } else if text == TOKEN_STORE_DIR && manifest.tokens.is_some() {
            // What is in it is told with the tokens.
        } else if !known.contains(text) {
            found.push(finding(Kind::NotInManifest, &shown(&name)));
        }
    }
    Ok(())
}

/// The marks of poisoned domains, which whoever restores with `cp` needs.
fn marks(dir: &Directory, manifest: &Manifest, found: &mut Found) {
    for file in &manifest.files {
        let Some(reason) = &file.poisoned else { continue };
        let name = side_name(&file.name, POISONED_SUFFIX);
        let want = marker::text(reason, None);
        let mut have = vec![0; want.len() + 1];
        let read = |have: &mut [u8]| -> io::Result<usize> {
            let side = dir.open_dir(TORN_DIR)?;
            if side.stat(&name)?.is_none_or(|stat| stat.kind != FileKind::Regular) {
                return Ok(0);
            }
            io::Read::read(&mut side.open_read(&name)?, have)
        };
        let n = read(&mut have).unwrap_or(0);
        if have[..n] != *want.as_bytes() {
            found.push(finding(Kind::WrongMark, &format!("{TORN_DIR}/{name}")));
        }
    }
}

fn check_file(dir: &Directory, file: &FileEntry, told: &mut dyn FnMut(u64)) -> io::Result<FileLook> {
    let mut look = FileLook::default();
    let mut parts = Vec::new();
    for segment in &file.segments {
        let kind = match dir.stat(&segment.name)? {
            None => Some(Kind::MissingPart),
            Some(stat) if stat.kind == FileKind::Symlink => Some(Kind::Symlink),
            Some(stat) if stat.kind != FileKind::Regular => Some(Kind::NotRegular),
            Some(stat) if stat.len != segment.bytes => Some(Kind::WrongSize),
            Some(_) => None,
        };
        match kind {
            Some(kind) => look.found.push(finding(kind, &segment.name)),
            None => parts.push(dir.open_read(&segment.name)?),
        }
    }
    if parts.len() < file.segments.len() {
        // Its hash and its lines would be wrong all over.
        return Ok(look);
    }
    let mut reader = Reader::new(file, &parts);
    let lines = look_at_still(&file.name, &file.owner(), file.bytes, &mut |buf, at| {
        told(at);
        reader.read(buf)
    })?;
    look.lines = lines.lines;
    look.bytes = lines.bytes;
    look.found = lines.found;
    for name in reader.faults() {
        look.found.push(finding(Kind::WrongHash, &name));
    }
    Ok(look)
}

/// Reads the parts of a file one after the other, and hashes what it reads.
pub(super) struct Reader<'a> {
    file: &'a FileEntry,
    parts: &'a [File],
    /// Which part, and where in it.
    part: usize,
    at: u64,
    whole: Content,
    of_part: Content,
    wrong: Vec<String>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(file: &'a FileEntry, parts: &'a [File]) -> Self {
        Reader { file, parts, part: 0, at: 0, whole: Content::new(), of_part: Content::new(), wrong: Vec::new() }
    }

    /// Fills the buffer, or reads to the end of the part.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while let Some(segment) = self.file.segments.get(self.part) {
            let want = buf.len().min((segment.bytes - self.at) as usize);
            if want == 0 && segment.bytes > self.at {
                return Ok(0);
            }
            let buf = &mut buf[..want];
            read_exact_at(&self.parts[self.part], buf, self.at)?;
            self.at += want as u64;
            self.whole.add(buf);
            if self.file.segments.len() > 1 {
                self.of_part.add(buf);
            }
            if self.at == segment.bytes {
                self.end_part();
            }
            if want > 0 {
                return Ok(want);
            }
        }
        Ok(0)
    }

    fn end_part(&mut self) {
        let segment = &self.file.segments[self.part];
        let content = if self.file.segments.len() > 1 { &self.of_part } else { &self.whole };
        if content.sha256() != segment.sha256 {
            self.wrong.push(segment.name.clone());
        }
        self.of_part = Content::new();
        self.part += 1;
        self.at = 0;
    }

    /// The parts that are not what the manifest says; the file itself, if its parts are right one
    /// by one and wrong together.
    fn faults(mut self) -> Vec<String> {
        // Parts without a byte at the end.
        while self.part < self.file.segments.len() && self.file.segments[self.part].bytes == self.at {
            self.end_part();
        }
        let (whole, file) = (&self.whole, self.file);
        let states_fit = file.piece_states.is_empty() || whole.states() == file.piece_states;
        if self.wrong.is_empty() && (whole.sha256() != file.sha256 || whole.lines() != file.lines || !states_fit) {
            self.wrong.push(self.file.name.clone());
        }
        self.wrong
    }
}

/// Does every file of the data directory begin with what the snapshot holds of it? `path` is the
/// manifest, or the snapshot.
///
/// # Errors
/// As [`check`].
pub fn continues(
    disk: &RealDisk,
    path: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<VerifyReport, SnapshotError> {
    let path = match path.parent() {
        Some(parent) if path.file_name().is_some_and(|name| name == MANIFEST) => parent,
        _ => path,
    };
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let (manifest, _) = Manifest::read(&open_snapshot(path)?)?;
    let mut report = VerifyReport::default();
    for file in &manifest.files {
        let before = report.bytes;
        let mut told = |bytes| {
            progress(Progress { file: &file.name, bytes_done: before + bytes, bytes: manifest.totals.bytes });
        };
        let mut found = Found::default();
        match begins_with(disk, file, &mut told) {
            Ok(None) => report.lines += file.lines,
            Ok(Some(kind)) => found.push(finding(kind, &file.name)),
            Err(e) => report.not_checked.push(NotChecked { file: file.name.clone(), reason: e.to_string() }),
        }
        report.files += 1;
        report.bytes += file.bytes;
        report.take(found);
    }
    Ok(report)
}

/// What is wrong with the file as a continuation of the entry.
fn begins_with(disk: &RealDisk, entry: &FileEntry, told: &mut dyn FnMut(u64)) -> io::Result<Option<Kind>> {
    match disk.stat(&entry.name)? {
        None => return Ok(Some(Kind::MissingFile)),
        Some(stat) if stat.kind == FileKind::Symlink => return Ok(Some(Kind::Symlink)),
        Some(stat) if stat.kind != FileKind::Regular => return Ok(Some(Kind::NotRegular)),
        Some(stat) if stat.len < entry.bytes => return Ok(Some(Kind::Shorter)),
        Some(_) => {}
    }
    let file = disk.open_read(&entry.name)?;
    let mut content = Content::new();
    let mut buf = vec![0; CHUNK_BYTES.min(entry.bytes as usize)];
    while content.bytes() < entry.bytes {
        let want = buf.len().min((entry.bytes - content.bytes()) as usize);
        read_exact_at(&file, &mut buf[..want], content.bytes())?;
        content.add(&buf[..want]);
        told(content.bytes());
    }
    Ok((content.sha256() != entry.sha256).then_some(Kind::NotContinued))
}
