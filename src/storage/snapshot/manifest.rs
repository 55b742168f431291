//! The manifest: what a snapshot holds, and by which hash that is known.
//!
//! `manifest.json` is read only after its own hash, which stands beside it. No name in it is taken
//! for a path: it must be the name of some domain's file.

use std::collections::HashSet;
use std::io::{self, Read as _};

use serde::{Deserialize, Serialize};

use super::content::{PIECE_BYTES, is_sha256, is_state, sha256};
use super::directory::Directory;
use super::error::SnapshotError;
use super::tokens::TokensEntry;
use crate::storage::disk::{FileKind, FileStat};
use crate::storage::layout::{Owner, side_name};

pub const MANIFEST: &str = "manifest.json";
/// The hash of the manifest, as `sha256sum -c` reads it.
pub const MANIFEST_SHA256: &str = "manifest.json.sha256";
/// The only format so far.
pub const VERSION: u32 = 1;

pub(super) const FORMAT: &str = "leitstand-snapshot";
/// Enough for a million domains.
const MANIFEST_BYTES_MAX: u64 = 1 << 30;
const SHA256_BYTES_MAX: u64 = 1 << 10;

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
    pub torn_tail_bytes: u64,
    /// Why a sync of the source had failed, if one had.
    pub poisoned: Option<String>,
    /// Where the hash stands after these bytes, for a snapshot that is built on this one.
    pub hash_state: Option<String>,
    /// Where it stands after each 32 MiB, so that they can be checked side by side; or nothing.
    pub piece_states: Vec<String>,
    /// Their contents in this order are the file.
    pub segments: Vec<Segment>,
}

/// Which file was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    pub dev: u64,
    pub ino: u64,
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
}

impl Manifest {
    /// Reads the manifest of a snapshot and checks everything in it that needs no other file.
    /// Gives it with its hash.
    pub(super) fn read(dir: &Directory) -> Result<(Manifest, String), SnapshotError> {
        let bad = |reason: String| SnapshotError::damaged(dir.path(), reason);
        let text = read_file(dir, MANIFEST, MANIFEST_BYTES_MAX)?.ok_or_else(|| SnapshotError::NotFound {
            path: dir.path().to_owned(),
            reason: format!("it holds no {MANIFEST}; name the directory that holds one"),
        })?;
        let sums = read_file(dir, MANIFEST_SHA256, SHA256_BYTES_MAX)?.ok_or_else(|| {
            bad(format!("{MANIFEST_SHA256} is missing, so nobody can tell whether {MANIFEST} is whole"))
        })?;
        let sha = sha256(&text);
        let want =
            listed_hash(&sums).ok_or_else(|| bad(format!("{MANIFEST_SHA256} is not `<SHA-256>  {MANIFEST}`")))?;
        if want != sha {
            return Err(bad(format!(
                "{MANIFEST} has the SHA-256 {sha}, and {MANIFEST_SHA256} says {want}; take another copy of the snapshot"
            )));
        }
        let manifest = Manifest::parse(&text).map_err(|reason| bad(format!("{MANIFEST}: {reason}")))?;
        Ok((manifest, sha))
    }

    /// The reason is a whole sentence but for its beginning.
    fn parse(text: &[u8]) -> Result<Manifest, String> {
        #[derive(Deserialize)]
        struct Head {
            format: String,
            version: u32,
        }
        let head: Head = serde_json::from_slice(text).map_err(|e| format!("cannot be read: {e}"))?;
        if head.format != FORMAT {
            return Err(format!("is of the format {:?}, not {FORMAT:?}", head.format));
        }
        if head.version != VERSION {
            return Err(format!(
                "is of version {}, and this program reads version {VERSION}; use the leitstand that made it, or a newer one",
                head.version
            ));
        }
        let manifest: Manifest = serde_json::from_slice(text).map_err(|e| format!("cannot be read: {e}"))?;
        manifest.check().map(|()| manifest)
    }

    fn check(&self) -> Result<(), String> {
        let mut seen = HashSet::new();
        let mut totals = Totals::default();
        for file in &self.files {
            let name = &file.name;
            if Owner::of(name).is_none() {
                return Err(format!("names the file {name:?}, and no domain has a file of that name"));
            }
            if !seen.insert(name) {
                return Err(format!("names the file {name:?} twice"));
            }
            let mut bytes = 0u64;
            for (number, segment) in file.segments.iter().enumerate() {
                if segment.name != segment_name(name, number) {
                    return Err(format!("names {:?} as part {number} of {name:?}", segment.name));
                }
                bytes = bytes.saturating_add(segment.bytes);
            }
            if file.segments.is_empty() || bytes != file.bytes {
                return Err(format!("the parts of {name:?} have {bytes} bytes, not {}", file.bytes));
            }
            let hashes = file.segments.iter().map(|segment| &segment.sha256).chain([&file.sha256]);
            if let Some(hash) = hashes.into_iter().find(|hash| !is_sha256(hash)) {
                return Err(format!("gives {hash:?} as a hash of {name:?}"));
            }
            let pieces = file.piece_states.len() as u64;
            if pieces != 0 && (pieces != file.bytes / PIECE_BYTES || !file.piece_states.iter().all(|s| is_state(s))) {
                return Err(format!("gives {pieces} states of the hash of {name:?} that cannot be right"));
            }
            let is_word =
                |text: &String| !text.is_empty() && text.len() <= 32 && text.bytes().all(|b| b.is_ascii_lowercase());
            if file.poisoned.as_ref().is_some_and(|reason| !is_word(reason)) {
                return Err(format!("gives no word as the reason why {name:?} is poisoned"));
            }
            totals.add(file);
        }
        if totals != self.totals {
            return Err("its totals are not those of its files".to_owned());
        }
        Ok(())
    }

    /// The text, and the text of the file with its hash.
    pub(super) fn texts(&self) -> (String, String, String) {
        let text = serde_json::to_string_pretty(self).expect("plain data") + "\n";
        let sha = sha256(text.as_bytes());
        let sums = format!("{sha}  {MANIFEST}\n");
        (text, sums, sha)
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

    /// Skipped names that somebody may take for data.
    pub fn losses(&self) -> impl Iterator<Item = &Skipped> {
        self.skipped.iter().filter(|skipped| !skipped.harmless)
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

/// `<hash>  manifest.json`, with the one line end that `sha256sum` writes.
fn listed_hash(sums: &[u8]) -> Option<&str> {
    let line = std::str::from_utf8(sums).ok()?.strip_suffix('\n')?;
    let (hash, name) = line.split_at_checked(64)?;
    ([format!("  {MANIFEST}"), format!(" *{MANIFEST}")].iter().any(|want| want == name) && is_sha256(hash))
        .then_some(hash)
}

fn read_file(dir: &Directory, name: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, SnapshotError> {
    let fail = |e| SnapshotError::io("read", dir.path_of(name), e);
    let kind = dir.stat(name).map_err(fail)?.map(|stat| stat.kind);
    match kind {
        None => return Ok(None),
        Some(FileKind::Regular) => {}
        Some(_) => return Err(SnapshotError::damaged(dir.path(), format!("{name} is not a regular file"))),
    }
    let mut bytes = Vec::new();
    let file = dir.open_read(name).map_err(fail)?;
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > bytes_max {
        return Err(SnapshotError::damaged(dir.path(), format!("{name} is longer than any that was ever written")));
    }
    Ok(Some(bytes))
}

impl From<Source> for crate::storage::FileId {
    fn from(source: Source) -> Self {
        crate::storage::FileId { dev: source.dev, ino: source.ino }
    }
}

impl From<crate::storage::FileId> for Source {
    fn from(id: crate::storage::FileId) -> Self {
        Source { dev: id.dev, ino: id.ino }
    }
}

/// What it reads, all at once, at an offset; an early end is an error.
pub(super) fn read_exact_at(file: &std::fs::File, buf: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buf, at)
}
