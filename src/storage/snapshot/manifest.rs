//! The manifest: what a snapshot holds, and by which hash that is known.
//!
//! It is one JSON document, laid out so that it can be read and written line by line (`manifest_lines.rs`). No name
//! in it is taken for a path: it must be the name of some domain's file.

use std::io;

use serde::{Deserialize, Serialize};

use super::content::{PIECE_BYTES, is_sha256, is_state};
use super::directory::Directory;
use super::error::SnapshotError;
use super::manifest_lines::ManifestReader;
use super::tokens::TokensEntry;
use crate::storage::disk::{FileKind, FileStat};
use crate::storage::layout::{Owner, side_name};

pub const MANIFEST: &str = "manifest.json";
/// The hash of the manifest, as `sha256sum -c` reads it.
pub const MANIFEST_SHA256: &str = "manifest.json.sha256";
/// What is written. [`VERSION_1`] is read too.
pub const VERSION: u32 = 2;
/// One document with every part of every file, read as a whole.
pub(super) const VERSION_1: u32 = 1;

pub(super) const FORMAT: &str = "leitstand-snapshot";
/// Longest manifest, written or read: enough for some millions of domains.
pub(super) const MANIFEST_BYTES_MAX: u64 = 4 << 30;
/// Longest line of one, written or read: enough for what is skipped, and for a file of 20 TiB.
pub(super) const LINE_BYTES_MAX: u64 = 64 << 20;
/// A part that is not longer is copied anew with what follows it: it costs less than one more name.
pub(super) const PART_BYTES_MIN: u64 = 32 << 10;

/// What a snapshot holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: String,
    pub version: u32,
    /// Differs for every snapshot.
    pub id: String,
    /// When it began, RFC 3339, UTC.
    pub created: String,
    /// Name and version of what made it.
    pub tool: String,
    pub data_dir: String,
    /// Id of the snapshot that it was built on.
    pub base: Option<String>,
    /// The hash of that one's manifest, so that each snapshot vouches for those before it.
    #[serde(default)]
    pub base_sha256: Option<String>,
    pub totals: Totals,
    pub files: Vec<FileEntry>,
    /// The named tokens, if the data directory held some.
    #[serde(default)]
    pub tokens: Option<TokensEntry>,
    /// What stood in the data directory and is not part of the snapshot.
    pub skipped: Vec<Skipped>,
}

/// All files together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub files: u64,
    pub lines: u64,
    pub bytes: u64,
}

/// The data file of one domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    pub name: String,
    /// `None`: the domain is too long for a name; its events tell it.
    pub domain: Option<String>,
    pub bytes: u64,
    pub lines: u64,
    pub sha256: String,
    /// When the source was last written to, RFC 3339, UTC.
    pub modified: String,
    pub source: Source,
    /// Half a line at the end of the source, which is left out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub torn_tail_bytes: u64,
    /// Why a sync of the source had failed, if one had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poisoned: Option<String>,
    /// Where the hash stands after these bytes, for a snapshot that is built on this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_state: Option<String>,
    /// Where it stands after each 32 MiB, so that they can be checked side by side; or nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub piece_states: Vec<String>,
    /// Their contents in this order are the file. None: it is its own only part.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub segments: Vec<Segment>,
}

/// Which file was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    pub dev: u64,
    pub ino: u64,
    /// When anything about it was changed last (`st_ctime`), in nanoseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_ns: Option<i64>,
}

/// One file of the snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    pub name: String,
    pub bytes: u64,
    pub sha256: String,
}

/// A name that is not part of the snapshot, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    pub name: String,
    /// The word of the finding that `verify` would tell.
    pub kind: String,
    pub reason: String,
    /// Nobody takes it for data.
    pub harmless: bool,
}

/// The name of the segment with this number.
pub(super) fn segment_name(data: &str, number: usize) -> String {
    if number == 0 { data.to_owned() } else { side_name(data, &format!(".{number:06}")) }
}

impl FileEntry {
    /// Whose events it holds.
    pub(super) fn owner(&self) -> Owner {
        Owner::of(&self.name).expect("the manifest was checked")
    }

    /// As it is read: with its parts, also where it is its own only one.
    pub(super) fn with_parts(mut self) -> FileEntry {
        if self.segments.is_empty() {
            self.segments = vec![Segment { name: self.name.clone(), bytes: self.bytes, sha256: self.sha256.clone() }];
        }
        self
    }

    /// As it is written: without parts where it is its own only one.
    pub(super) fn without_own_part(mut self) -> FileEntry {
        if let [part] = &self.segments[..]
            && (&part.name, part.bytes, &part.sha256) == (&self.name, self.bytes, &self.sha256)
        {
            self.segments.clear();
        }
        self
    }

    /// The reason is a whole sentence but for its beginning.
    fn check(&self) -> Result<(), String> {
        let name = &self.name;
        if Owner::of(name).is_none() {
            return Err(format!("names the file {name:?}, and no domain has a file of that name"));
        }
        let mut bytes = 0u64;
        for (number, segment) in self.segments.iter().enumerate() {
            if segment.name != segment_name(name, number) {
                return Err(format!("names {:?} as part {number} of {name:?}", segment.name));
            }
            bytes = bytes.saturating_add(segment.bytes);
        }
        if self.segments.is_empty() || bytes != self.bytes {
            return Err(format!("the parts of {name:?} have {bytes} bytes, not {}", self.bytes));
        }
        let hashes = self.segments.iter().map(|segment| &segment.sha256).chain([&self.sha256]);
        if let Some(hash) = hashes.into_iter().find(|hash| !is_sha256(hash)) {
            return Err(format!("gives {hash:?} as a hash of {name:?}"));
        }
        let pieces = self.piece_states.len() as u64;
        if pieces != 0 && (pieces != self.bytes / PIECE_BYTES || !self.piece_states.iter().all(|s| is_state(s))) {
            return Err(format!("gives {pieces} states of the hash of {name:?} that cannot be right"));
        }
        let is_word =
            |text: &String| !text.is_empty() && text.len() <= 32 && text.bytes().all(|b| b.is_ascii_lowercase());
        if self.poisoned.as_ref().is_some_and(|reason| !is_word(reason)) {
            return Err(format!("gives no word as the reason why {name:?} is poisoned"));
        }
        Ok(())
    }
}

/// Most bytes that the line of a file of this name and length has.
pub(super) fn entry_bytes_max(name: &str, bytes: u64) -> u64 {
    let name_bytes = name.len() as u64;
    // Each part is longer than all that follow it together, see `parts_kept`.
    let parts = u64::from((bytes / PART_BYTES_MIN).checked_ilog2().map_or(1, |n| n + 3));
    512 + 2 * name_bytes + (bytes / PIECE_BYTES) * 84 + parts * (name_bytes + 160)
}

/// How many of the parts stay as they are when `more` bytes follow. The others become one with them, so that each is
/// longer than all that follow it together: a file has few parts however often something was added to it.
pub(super) fn parts_kept(segments: &[Segment], more: u64) -> usize {
    let (mut kept, mut behind) = (segments.len(), more);
    for (number, segment) in segments.iter().enumerate().rev() {
        if behind > 0 && segment.bytes <= behind.max(PART_BYTES_MIN) {
            kept = number;
        }
        behind = behind.saturating_add(segment.bytes);
    }
    kept
}

/// Goes through the files of a manifest in their order.
#[derive(Debug, Default)]
pub(super) struct Checker {
    last: Option<String>,
    totals: Totals,
}

impl Checker {
    /// The reason is a whole sentence but for its beginning.
    pub(super) fn entry(&mut self, file: &FileEntry) -> Result<(), String> {
        file.check()?;
        match &self.last {
            Some(last) if *last == file.name => return Err(format!("names the file {last:?} twice")),
            Some(last) if *last > file.name => return Err(format!("names {:?} after {last:?}", file.name)),
            _ => {}
        }
        self.last = Some(file.name.clone());
        self.totals.add(file);
        Ok(())
    }

    pub(super) fn end(&self, totals: &Totals) -> Result<(), String> {
        if *totals == self.totals { Ok(()) } else { Err("its totals are not those of its files".to_owned()) }
    }
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Manifest {
    /// Reads the manifest of a snapshot and checks everything in it that needs no other file.
    /// Gives it with its hash.
    pub(super) fn read(dir: &Directory) -> Result<(Manifest, String), SnapshotError> {
        let mut reader = ManifestReader::open(dir)?;
        let mut files = Vec::new();
        while let Some(file) = reader.next()? {
            files.push(file);
        }
        let (head, sha) = (reader.head().clone(), reader.sha256().to_owned());
        let foot = reader.end()?;
        let manifest = Manifest {
            format: head.format,
            version: head.version,
            id: head.id,
            created: head.created,
            tool: head.tool,
            data_dir: head.data_dir,
            base: head.base,
            base_sha256: head.base_sha256,
            totals: foot.totals,
            files,
            tokens: foot.tokens,
            skipped: foot.skipped,
        };
        Ok((manifest, sha))
    }

    /// As [`Manifest::read`], and only if it has this hash, which somebody kept elsewhere.
    pub(super) fn read_expected(dir: &Directory, expected: Option<&str>) -> Result<Manifest, SnapshotError> {
        let (manifest, sha) = Manifest::read(dir)?;
        match expected {
            Some(expected) if !expected.eq_ignore_ascii_case(&sha) => Err(SnapshotError::damaged(
                dir.path(),
                format!(
                    "{MANIFEST} has the SHA-256 {sha}, and {expected} is expected; it is another snapshot, or somebody changed it"
                ),
            )),
            _ => Ok(manifest),
        }
    }

    /// Domains a sync of which had failed.
    pub fn poisoned(&self) -> impl Iterator<Item = Poisoned> {
        self.files.iter().filter_map(Poisoned::of)
    }
}

/// A file whose source was poisoned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Poisoned {
    pub file: String,
    pub reason: String,
}

impl Poisoned {
    pub(super) fn of(file: &FileEntry) -> Option<Poisoned> {
        Some(Poisoned { file: file.name.clone(), reason: file.poisoned.clone()? })
    }
}

impl Totals {
    pub(super) fn add(&mut self, file: &FileEntry) {
        self.files += 1;
        self.lines = self.lines.saturating_add(file.lines);
        self.bytes = self.bytes.saturating_add(file.bytes);
    }
}

/// Is every part of the file there, with the size that it must have? Else the reason.
pub(super) fn segment_fault(stat: Option<FileStat>, segment: &Segment) -> Option<String> {
    match stat {
        None => Some(format!("{} is missing", segment.name)),
        Some(stat) if stat.kind != FileKind::Regular => Some(format!("{} is not a regular file", segment.name)),
        Some(stat) if stat.len != segment.bytes => {
            Some(format!("{} has {} bytes and should have {}", segment.name, stat.len, segment.bytes))
        }
        Some(_) => None,
    }
}

impl From<Source> for crate::storage::FileId {
    fn from(source: Source) -> Self {
        crate::storage::FileId { dev: source.dev, ino: source.ino }
    }
}

/// What it reads, all at once, at an offset; an early end is an error.
pub(super) fn read_exact_at(file: &std::fs::File, buf: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buf, at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn segments(sizes: &[u64]) -> Vec<Segment> {
        let segment = |(number, bytes): (usize, &u64)| Segment {
            name: segment_name("a.jsonl", number),
            bytes: *bytes,
            sha256: "0".repeat(64),
        };
        sizes.iter().enumerate().map(segment).collect()
    }

    /// Broken, a snapshot of a long chain would hold as many names as there were snapshots before it.
    #[test]
    fn parts_grow_together() {
        const MIB: u64 = 1 << 20;
        for (sizes, more, kept) in [
            (&[][..], 5, 0),
            (&[5], 0, 1),
            (&[5], 5, 0),
            (&[MIB], 0, 1),
            (&[MIB], 5, 1),
            (&[MIB], MIB, 0),
            (&[9 * MIB, MIB], MIB, 1),
            (&[9 * MIB, 2 * MIB], MIB, 2),
            (&[9 * MIB, 5], 0, 2),
            (&[9 * MIB, 3 * MIB, 2 * MIB], MIB, 1),
            // As version 1 left them.
            (&[MIB; 30], 0, 0),
        ] {
            assert_eq!(parts_kept(&segments(sizes), more), kept, "{sizes:?} and {more}");
        }
    }

    proptest! {
        /// Broken, a line could be longer than was reckoned before the copy began, and nobody could read it.
        #[test]
        fn no_line_is_longer_than_was_reckoned(
            more in proptest::collection::vec(1..(1u64 << 38), 1..200),
            name in "[a-z]{1,63}(\\.[a-z]{1,63}){0,2}\\.jsonl",
        ) {
            let mut sizes: Vec<u64> = Vec::new();
            for more in more {
                let more = more >> (more % 38);
                let kept = parts_kept(&segments(&sizes), more);
                let merged: u64 = sizes.drain(kept..).sum();
                sizes.push(merged + more);
            }
            let bytes: u64 = sizes.iter().sum();
            let mut parts = segments(&sizes);
            parts.iter_mut().enumerate().for_each(|(number, part)| part.name = segment_name(&name, number));
            let entry = FileEntry {
                name: name.clone(),
                domain: Some(name.clone()),
                bytes,
                lines: u64::MAX,
                sha256: "0".repeat(64),
                modified: "2026-11-28T12:00:00.000000000Z".to_owned(),
                source: Source { dev: u64::MAX, ino: u64::MAX, changed_ns: Some(i64::MIN) },
                torn_tail_bytes: u64::MAX,
                poisoned: Some("x".repeat(32)),
                hash_state: Some("0".repeat(80)),
                piece_states: vec!["0".repeat(80); (bytes / PIECE_BYTES) as usize],
                segments: parts,
            };
            let line = serde_json::to_string(&entry.without_own_part()).unwrap().len() as u64;
            prop_assert!(line <= entry_bytes_max(&name, bytes), "{} bytes", line);
        }
    }
}
