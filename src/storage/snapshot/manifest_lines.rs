//! The manifest as a stream: written and read line by line, so that it may be long and nobody holds it whole.
//!
//! The first line is the head, with a hash of its own, so that a date is told without reading the rest. Each file is
//! one line, in the order of their names. The last line is what is known only in the end. All lines together are one
//! JSON document. Nothing of it is used before its hash, which stands beside it, was found to be right.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Read, Seek as _, SeekFrom, Write as _};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::content::{Hash, is_sha256, sha256};
use super::directory::Directory;
use super::error::SnapshotError;
use super::manifest::{
    Checker, FORMAT, FileEntry, LINE_BYTES_MAX, MANIFEST, MANIFEST_BYTES_MAX, MANIFEST_SHA256, Manifest, Skipped,
    Totals, VERSION, VERSION_1, entry_bytes_max,
};
use super::tokens::TokensEntry;
use crate::storage::allocated;
use crate::storage::disk::FileKind;

const SHA256_BYTES_MAX: u64 = 1 << 10;
/// Longest first line.
const HEAD_BYTES_MAX: u64 = 64 << 10;
/// How the first line ends, with the hash of what stands before.
const HEAD_HASH: &str = ",\"head_sha256\":\"";
const HEAD_END: &str = "\",\"files\":[";
/// How the last line begins; without it and with a brace it is an object.
const FOOT_BEGIN: &str = "],";
const CHUNK_BYTES: usize = 256 << 10;

/// What is known before anything is copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) format: String,
    pub(super) version: u32,
    pub(super) id: String,
    pub(super) created: String,
    pub(super) tool: String,
    pub(super) data_dir: String,
    pub(super) base: Option<String>,
    #[serde(default)]
    pub(super) base_sha256: Option<String>,
}

/// What is known when all is copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Foot {
    pub(super) tokens: Option<TokensEntry>,
    pub(super) skipped: Vec<Skipped>,
    pub(super) totals: Totals,
}

impl Head {
    /// The first line, without its end.
    fn line(&self) -> String {
        let text = serde_json::to_string(self).expect("plain data");
        let text = text.strip_suffix('}').expect("an object").to_owned();
        let sha = sha256(text.as_bytes());
        text + HEAD_HASH + &sha + HEAD_END
    }

    /// What a first line says, if it is one. `None`: it is none, or not what it was.
    fn parse(line: &str) -> Option<Head> {
        let (text, sha) = line.strip_suffix(HEAD_END)?.rsplit_once(HEAD_HASH)?;
        (sha == sha256(text.as_bytes())).then_some(())?;
        serde_json::from_str(&format!("{text}}}")).ok()
    }
}

/// Adds up how long a manifest may become, before anything is copied.
#[derive(Debug, Default)]
pub(super) struct Reckoning {
    bytes: u64,
    longest: u64,
}

impl Reckoning {
    pub(super) fn add(&mut self, name: &str, bytes: u64) {
        let line = entry_bytes_max(name, bytes);
        self.bytes = self.bytes.saturating_add(line);
        self.longest = self.longest.max(line);
    }

    /// The reason is a whole sentence but for its beginning.
    pub(super) fn check(mut self, skipped: &[Skipped]) -> Result<(), String> {
        let last =
            4096 + skipped.iter().map(|skip| 6 * (skip.name.len() + skip.reason.len()) as u64 + 128).sum::<u64>();
        self.longest = self.longest.max(last);
        self.bytes = self.bytes.saturating_add(HEAD_BYTES_MAX + last);
        within(self.bytes, self.longest)
    }
}

/// What is longer is neither written nor read.
fn within(bytes: u64, line: u64) -> Result<(), String> {
    if bytes > MANIFEST_BYTES_MAX {
        return Err(format!("would have up to {bytes} bytes, and none of more than {MANIFEST_BYTES_MAX} can be read"));
    }
    if line > LINE_BYTES_MAX {
        return Err(format!(
            "would have a line of up to {line} bytes, and none of more than {LINE_BYTES_MAX} can be read"
        ));
    }
    Ok(())
}

/// A manifest that is being written.
pub(super) struct ManifestWriter {
    out: BufWriter<File>,
    hash: Hash,
    bytes: u64,
    files: u64,
}

impl ManifestWriter {
    pub(super) fn new(file: File, head: &Head) -> io::Result<ManifestWriter> {
        let mut writer = ManifestWriter { out: BufWriter::new(file), hash: Hash::new(), bytes: 0, files: 0 };
        writer.put(&head.line()).map(|()| writer)
    }

    pub(super) fn entry(&mut self, file: FileEntry) -> io::Result<()> {
        let line = serde_json::to_string(&file.without_own_part()).map_err(io::Error::other)?;
        self.put(if self.files == 0 { "\n" } else { ",\n" })?;
        self.files += 1;
        self.put(&line)
    }

    /// Writes the end and syncs. Gives the hash of all.
    pub(super) fn end(mut self, foot: &Foot) -> io::Result<String> {
        let text = serde_json::to_string(foot).map_err(io::Error::other)?;
        let text = text.strip_prefix('{').expect("an object");
        self.put(&format!("\n{FOOT_BEGIN}{text}\n"))?;
        let file = self.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        allocated::check_whole(&file, self.bytes)?;
        Ok(self.hash.sha256())
    }

    fn put(&mut self, text: &str) -> io::Result<()> {
        self.bytes += text.len() as u64;
        within(self.bytes, text.len() as u64).map_err(|why| io::Error::other(format!("it {why}")))?;
        self.hash.add(text.as_bytes());
        self.out.write_all(text.as_bytes())
    }
}

/// The file with the hash of a manifest.
pub(super) fn sums(sha: &str) -> String {
    format!("{sha}  {MANIFEST}\n")
}

/// A manifest that is being read. Its hash is right.
pub(super) struct ManifestReader {
    /// The snapshot.
    path: PathBuf,
    sha256: String,
    head: Head,
    checker: Checker,
    rest: Rest,
}

enum Rest {
    /// Read as a whole: [`VERSION_1`].
    Whole(std::vec::IntoIter<FileEntry>, Foot),
    Lines(Lines, Option<Foot>),
}

impl ManifestReader {
    /// # Errors
    /// [`SnapshotError::NotFound`] when there is none, [`SnapshotError::Damaged`] when it is not what it was.
    pub(super) fn open(dir: &Directory) -> Result<ManifestReader, SnapshotError> {
        let bad = |reason: String| SnapshotError::damaged(dir.path(), reason);
        let fail = |e| SnapshotError::io("read", dir.path_of(MANIFEST), e);
        let mut file = open(dir, MANIFEST, MANIFEST_BYTES_MAX)?.ok_or_else(|| SnapshotError::NotFound {
            path: dir.path().to_owned(),
            reason: format!("it holds no {MANIFEST}; name the directory that holds one"),
        })?;
        let mut sums = Vec::new();
        let listed = open(dir, MANIFEST_SHA256, SHA256_BYTES_MAX)?.ok_or_else(|| {
            bad(format!("{MANIFEST_SHA256} is missing, so nobody can tell whether {MANIFEST} is whole"))
        })?;
        listed.take(SHA256_BYTES_MAX).read_to_end(&mut sums).map_err(fail)?;
        let sha = hash_of(&mut file).map_err(fail)?;
        let want =
            listed_hash(&sums).ok_or_else(|| bad(format!("{MANIFEST_SHA256} is not `<SHA-256>  {MANIFEST}`")))?;
        if want != sha {
            return Err(bad(format!(
                "{MANIFEST} has the SHA-256 {sha}, and {MANIFEST_SHA256} says {want}; take another copy of the snapshot"
            )));
        }
        let mut lines = Lines::new(file);
        let head = lines.next(HEAD_BYTES_MAX).map_err(fail)?.as_deref().and_then(Head::parse);
        let (head, rest) = match head {
            Some(head) => (head, Rest::Lines(lines, None)),
            None => {
                let mut text = Vec::new();
                let mut file = lines.input.into_inner();
                file.seek(SeekFrom::Start(0)).map_err(fail)?;
                file.take(MANIFEST_BYTES_MAX).read_to_end(&mut text).map_err(fail)?;
                whole(&text).map_err(|reason| bad(format!("{MANIFEST}: {reason}")))?
            }
        };
        let reader =
            ManifestReader { path: dir.path().to_owned(), sha256: sha, head, checker: Checker::default(), rest };
        let want = if matches!(reader.rest, Rest::Lines(..)) { VERSION } else { VERSION_1 };
        kind_fault(&reader.head.format, reader.head.version, want)
            .map_or(Ok(reader), |why| Err(bad(format!("{MANIFEST}: {why}"))))
    }

    pub(super) fn head(&self) -> &Head {
        &self.head
    }

    pub(super) fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The next file, with its parts.
    pub(super) fn next(&mut self) -> Result<Option<FileEntry>, SnapshotError> {
        let path = &self.path;
        let bad = |why: &str| SnapshotError::damaged(path, format!("{MANIFEST}: {why}"));
        let file = match &mut self.rest {
            Rest::Whole(files, _) => files.next(),
            Rest::Lines(_, Some(_)) => None,
            Rest::Lines(lines, foot) => {
                let line = lines.next(LINE_BYTES_MAX);
                let line = line.map_err(|e| SnapshotError::io("read", path.join(MANIFEST), e))?;
                let parsed = line.ok_or_else(|| "it ends too early".to_owned()).and_then(|line| parse(&line));
                match parsed.map_err(|why| bad(&format!("cannot be read: {why}")))? {
                    Line::File(file) => Some(*file),
                    Line::Foot(read) => {
                        *foot = Some(read);
                        None
                    }
                }
            }
        };
        let Some(file) = file.map(FileEntry::with_parts) else { return Ok(None) };
        self.checker.entry(&file).map_err(|why| bad(&why))?;
        Ok(Some(file))
    }

    /// Reads what is left, and gives what stands in the end.
    pub(super) fn end(mut self) -> Result<Foot, SnapshotError> {
        while self.next()?.is_some() {}
        let (path, checker) = (self.path, self.checker);
        let bad = |why: String| SnapshotError::damaged(&path, format!("{MANIFEST}: {why}"));
        let foot = match self.rest {
            Rest::Whole(_, foot) => foot,
            Rest::Lines(mut lines, foot) => {
                let more = lines.next(LINE_BYTES_MAX).map_err(|e| SnapshotError::io("read", path.join(MANIFEST), e))?;
                // It was hashed before, and may have been changed since.
                match foot.filter(|_| more.is_none() && lines.hash.sha256() == self.sha256) {
                    Some(foot) => foot,
                    None => {
                        return Err(bad(
                            "cannot be read: it goes on behind its end, or was changed meanwhile".to_owned()
                        ));
                    }
                }
            }
        };
        checker.end(&foot.totals).map_err(bad)?;
        Ok(foot)
    }
}

/// When a snapshot was begun, as the first line of its manifest says. `None`: the line does not vouch for itself, or
/// there is none, and the whole must be read.
pub(super) fn peek_created(dir: &Directory) -> Option<String> {
    let file = open(dir, MANIFEST, MANIFEST_BYTES_MAX).ok()??;
    let line = Lines::new(file).next(HEAD_BYTES_MAX).ok()??;
    let head = Head::parse(&line)?;
    kind_fault(&head.format, head.version, VERSION).is_none().then_some(head.created)
}

enum Line {
    File(Box<FileEntry>),
    Foot(Foot),
}

fn parse(line: &str) -> Result<Line, String> {
    let told = |e: serde_json::Error| e.to_string();
    match line.strip_prefix(FOOT_BEGIN) {
        Some(foot) => serde_json::from_str(&format!("{{{foot}")).map(Line::Foot).map_err(told),
        None => serde_json::from_str(line.strip_suffix(',').unwrap_or(line)).map(Line::File).map_err(told),
    }
}

/// A manifest that is no stream.
fn whole(text: &[u8]) -> Result<(Head, Rest), String> {
    #[derive(Deserialize)]
    struct Kind {
        format: String,
        version: u32,
    }
    let told = |e: serde_json::Error| format!("cannot be read: {e}");
    let kind: Kind = serde_json::from_slice(text).map_err(told)?;
    if kind.format == FORMAT && kind.version == VERSION {
        return Err("cannot be read: its first line is not what it was, or it was laid out anew".to_owned());
    }
    if let Some(why) = kind_fault(&kind.format, kind.version, VERSION_1) {
        return Err(why);
    }
    let manifest: Manifest = serde_json::from_slice(text).map_err(told)?;
    let head = Head {
        format: manifest.format,
        version: manifest.version,
        id: manifest.id,
        created: manifest.created,
        tool: manifest.tool,
        data_dir: manifest.data_dir,
        base: manifest.base,
        base_sha256: manifest.base_sha256,
    };
    let foot = Foot { tokens: manifest.tokens, skipped: manifest.skipped, totals: manifest.totals };
    Ok((head, Rest::Whole(manifest.files.into_iter(), foot)))
}

fn kind_fault(format: &str, version: u32, want: u32) -> Option<String> {
    if format != FORMAT {
        return Some(format!("is of the format {format:?}, not {FORMAT:?}"));
    }
    (version != want).then(|| {
        format!(
            "is of version {version}, and this program reads versions {VERSION_1} and {VERSION}; use the leitstand that made it, or a newer one"
        )
    })
}

/// Lines of a file, and the hash of what was read.
struct Lines {
    input: BufReader<File>,
    hash: Hash,
    buf: Vec<u8>,
}

impl Lines {
    fn new(file: File) -> Lines {
        Lines { input: BufReader::with_capacity(CHUNK_BYTES, file), hash: Hash::new(), buf: Vec::new() }
    }

    /// The next line, without its end. `None`: there is none, or it is longer than that.
    fn next(&mut self, bytes_max: u64) -> io::Result<Option<String>> {
        self.buf.clear();
        (&mut self.input).take(bytes_max + 1).read_until(b'\n', &mut self.buf)?;
        self.hash.add(&self.buf);
        let line = self.buf.strip_suffix(b"\n").and_then(|line| std::str::from_utf8(line).ok());
        Ok(line.map(str::to_owned))
    }
}

fn hash_of(file: &mut File) -> io::Result<String> {
    let mut hash = Hash::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => hash.add(&chunk[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(hash.sha256())
}

/// `<hash>  manifest.json`, with the one line end that `sha256sum` writes.
fn listed_hash(sums: &[u8]) -> Option<&str> {
    let line = std::str::from_utf8(sums).ok()?.strip_suffix('\n')?;
    let (hash, name) = line.split_at_checked(64)?;
    ([format!("  {MANIFEST}"), format!(" *{MANIFEST}")].iter().any(|want| want == name) && is_sha256(hash))
        .then_some(hash)
}

/// Opens a file that is no link and no longer than that. `None`: there is none.
fn open(dir: &Directory, name: &str, bytes_max: u64) -> Result<Option<File>, SnapshotError> {
    let fail = |e| SnapshotError::io("read", dir.path_of(name), e);
    match dir.stat(name).map_err(fail)? {
        None => Ok(None),
        Some(stat) if stat.kind != FileKind::Regular => {
            Err(SnapshotError::damaged(dir.path(), format!("{name} is not a regular file")))
        }
        Some(stat) if stat.len > bytes_max => {
            Err(SnapshotError::damaged(dir.path(), format!("{name} is longer than any that was ever written")))
        }
        Some(_) => dir.open_read(name).map(Some).map_err(fail),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head {
            format: FORMAT.to_owned(),
            version: VERSION,
            id: "i".to_owned(),
            created: "2026-11-28T12:00:00Z".to_owned(),
            tool: "t".to_owned(),
            data_dir: "a \",\"files\":[\n".to_owned(),
            base: None,
            base_sha256: None,
        }
    }

    /// Broken, a date that a disk turned into another one would decide what is restored.
    #[test]
    fn a_first_line_vouches_for_itself() {
        let line = head().line();
        assert_eq!(Head::parse(&line), Some(head()));
        for (from, to) in [("2026", "2036"), ("\"version\":2", "\"version\":3"), (HEAD_END, ""), ("head_", "tail_")] {
            let other = line.replacen(from, to, 1);
            assert_ne!(other, line);
            assert_eq!(Head::parse(&other), None, "{from}");
        }
    }

    /// Broken, a snapshot would be written that nobody can read.
    #[test]
    fn what_could_not_be_read_is_not_begun() {
        let mut few = Reckoning::default();
        (0..1000).for_each(|n| few.add(&format!("d{n}.jsonl"), 1 << 40));
        assert_eq!(few.check(&[]), Ok(()));
        let mut long = Reckoning::default();
        long.add("a.jsonl", 1 << 48);
        assert!(long.check(&[]).unwrap_err().contains("a line of up to"));
        let mut many = Reckoning::default();
        (0..60_000).for_each(|_| many.add("a.jsonl", 1 << 35));
        assert!(many.check(&[]).unwrap_err().contains("would have up to"));
        assert_eq!((within(MANIFEST_BYTES_MAX, LINE_BYTES_MAX), within(0, 0)), (Ok(()), Ok(())));
        assert!(within(MANIFEST_BYTES_MAX + 1, 0).is_err() && within(0, LINE_BYTES_MAX + 1).is_err());
        let skip = Skipped { name: "x".to_owned(), kind: "k".to_owned(), reason: "r".repeat(12 << 20), harmless: true };
        assert!(Reckoning::default().check(&[skip]).is_err());
    }
}
