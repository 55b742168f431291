//! How much is in the files: bytes, the time of the last change, and lines, counted as files grow.
//!
//! Lines are counted once: of a file that has grown only the new part is read, of one that was
//! replaced or cut, all of it.

use std::collections::{BinaryHeap, HashMap};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use super::disk::{Disk as _, FileId, FileKind, RealDisk};
use super::holes::{hole_at, is_zeros};
use super::layout::{DATA_SUFFIX, FileNames, Owner};
use super::tail::{self, Tail};
use super::writer::DomainWriter;
use super::{Store, lock};
use crate::domain::Domain;
use crate::event::{Batch, Format};

/// Most domains in one report.
pub const DOMAINS_MAX: usize = 10_000;
/// Files whose count is remembered; with more the counting begins anew.
const COUNTED_FILES_MAX: usize = 100_000;
/// Read at once while counting; after each the clock is looked at.
const CHUNK_BYTES: usize = 256 << 10;
/// A last line that is longer is only looked at for its newline.
const LAST_LINE_BYTES_MAX: u64 = 1 << 20;
/// How often, and how far apart, an unfinished last line is looked at: a writer may be at work.
const TAIL_LOOKS: u32 = 3;
const TAIL_PAUSE: Duration = Duration::from_millis(20);

/// What to report.
#[derive(Debug, Clone)]
pub struct StatsQuery {
    /// Only this domain.
    pub only: Option<Domain>,
    /// Only names behind this one: the last of the page before.
    pub after: Option<String>,
    /// Most domains, the first ones by name; at most [`DOMAINS_MAX`].
    pub domains_max: usize,
    /// Counting ends after this time, wherever it is.
    pub counting_max: Duration,
}

/// One domain's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainStats {
    /// The domain. Of a name that was shortened for its file, and that nobody writes to at present,
    /// what the file's name shows.
    pub name: String,
    /// Ended lines; `None` while not all are counted, and if the file cannot be read.
    pub lines: Option<u64>,
    pub bytes: u64,
    /// When the file last changed.
    pub changed: SystemTime,
    /// Appends are refused.
    pub poisoned: bool,
    /// Handed to the writer and not yet answered.
    pub queued_requests: usize,
}

/// What is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StatsReport {
    /// By name.
    pub domains: Vec<DomainStats>,
    /// There are more than were asked for.
    pub truncated: bool,
    /// Some domains are not counted to their end; asking again goes on.
    pub counting: bool,
}

/// How far each file is counted. Bounded.
#[derive(Debug, Default)]
pub(crate) struct LineIndex(Mutex<HashMap<String, Counted>>);

#[derive(Debug, Clone, Copy)]
struct Counted {
    id: FileId,
    /// Counted up to here.
    bytes: u64,
    lines: u64,
    /// The byte before that. Another one there means that something was taken back meanwhile.
    last: u8,
}

/// What a writer knows of its domain.
struct Known {
    domain: Domain,
    poisoned: bool,
    queued_requests: usize,
}

impl Store<RealDisk> {
    /// The domains that have a file. Blocks: lists the directory, and reads files for at most
    /// `counting_max` and one chunk.
    ///
    /// # Errors
    /// When the data directory cannot be listed.
    pub fn stats(&self, query: &StatsQuery) -> io::Result<StatsReport> {
        let disk = &self.inner.shared.disk;
        let (names, truncated) = match &query.only {
            Some(domain) => (vec![FileNames::of(domain).data], false),
            None => first_data_files(disk, query.domains_max.min(DOMAINS_MAX), query.after.as_deref())?,
        };
        let known = self.known(&names);
        let deadline = Instant::now() + query.counting_max;
        let mut report = StatsReport { truncated, ..StatsReport::default() };
        let mut index = self.inner.lines.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if index.len() > COUNTED_FILES_MAX {
            index.clear();
        }
        for name in names {
            // A file that is gone by now, or that cannot be looked at, is no domain's.
            let Ok(Some((stat, changed))) = disk.stat_changed(&name) else {
                index.remove(&name);
                continue;
            };
            if stat.kind != FileKind::Regular {
                continue;
            }
            let before = index.get(&name).copied();
            let lines = match count(disk, &name, stat.id, stat.len, before, deadline) {
                Ok(counted) => {
                    index.insert(name.clone(), counted);
                    report.counting |= counted.bytes < stat.len;
                    (counted.bytes >= stat.len).then_some(counted.lines)
                }
                Err(_) => None,
            };
            let known = known.get(&name);
            let shown = known.map_or_else(|| stem(&name).to_owned(), |known| known.domain.as_str().to_owned());
            report.domains.push(DomainStats {
                name: shown,
                lines,
                bytes: stat.len,
                changed,
                poisoned: known.is_some_and(|known| known.poisoned) || self.inner.shared.marked.has(&name),
                queued_requests: known.map_or(0, |known| known.queued_requests),
            });
        }
        Ok(report)
    }

    /// Of the domains of these files those that were written to lately, by the name of their file.
    fn known(&self, names: &[String]) -> HashMap<String, Known> {
        let mut known = HashMap::new();
        let mut add = |writer: &DomainWriter<RealDisk>| {
            let (poisoned, queued_requests) = (writer.is_poisoned(), writer.queued());
            let known_domain = Known { domain: writer.domain().clone(), poisoned, queued_requests };
            known.insert(writer.data_name().to_owned(), known_domain);
        };
        let mut shortened = false;
        for name in names {
            match Owner::of(name) {
                Some(Owner::Domain(domain)) => {
                    self.inner
                        .shards
                        .iter()
                        .filter_map(|shard| lock(shard).get(domain.as_str()).cloned())
                        .for_each(|w| add(&w));
                }
                // Only the writers themselves know their domains.
                _ => shortened = true,
            }
        }
        if shortened {
            let is_shortened =
                |writer: &&Arc<DomainWriter<RealDisk>>| matches!(Owner::of(writer.data_name()), Some(Owner::Shortened));
            for shard in &self.inner.shards {
                lock(shard).values().filter(is_shortened).for_each(|writer| add(writer));
            }
        }
        known
    }
}

/// The first `max` data files by name, behind `after` if that is given, and whether there are more. Holds no more
/// names than that.
fn first_data_files(disk: &RealDisk, max: usize, after: Option<&str>) -> io::Result<(Vec<String>, bool)> {
    // What is shown of a name that was shortened may be the whole domain.
    let after = after.map(|after| Domain::parse(after).map_or(after.to_owned(), |domain| FileNames::of(&domain).data));
    let after = after.as_deref().map(stem).unwrap_or_default();
    let mut first: BinaryHeap<String> = BinaryHeap::new();
    let mut truncated = false;
    disk.each_name(|name| {
        let Some(stem) = name.to_str().filter(|name| Owner::of(name).is_some()).map(stem) else { return };
        if stem <= after {
            return;
        }
        if first.len() == max {
            truncated = true;
            // Of a full heap the last name makes way for an earlier one.
            if first.peek().is_none_or(|last| last.as_str() <= stem) {
                return;
            }
            first.pop();
        }
        first.push(stem.to_owned());
    })?;
    let names = first.into_sorted_vec().into_iter().map(|stem| stem + DATA_SUFFIX).collect();
    Ok((names, truncated))
}

fn stem(name: &str) -> &str {
    name.strip_suffix(DATA_SUFFIX).unwrap_or(name)
}

/// Counts on from `before` up to `len` bytes, or as far as the time allows.
fn count(
    disk: &RealDisk,
    name: &str,
    id: FileId,
    len: u64,
    before: Option<Counted>,
    deadline: Instant,
) -> io::Result<Counted> {
    let none = Counted { id, bytes: 0, lines: 0, last: b'\n' };
    let mut counted = before.filter(|before| before.id == id && before.bytes <= len).unwrap_or(none);
    if counted.bytes == len || Instant::now() >= deadline {
        return Ok(counted);
    }
    let file = disk.open_read(name)?;
    // Between the two looks another file may have taken the name; then this one is counted next time.
    if disk.fstat(&file)?.id != id {
        return Ok(counted);
    }
    if counted.bytes > 0 {
        let mut last = [0];
        if disk.read_at(&file, &mut last, counted.bytes - 1)? != 1 || last[0] != counted.last {
            counted = none;
        }
    }
    let mut chunk = vec![0; CHUNK_BYTES];
    while counted.bytes < len {
        let want = chunk.len().min((len - counted.bytes) as usize);
        let got = disk.read_at(&file, &mut chunk[..want], counted.bytes)?;
        // Cut meanwhile; the next look begins anew.
        let Some(&last) = chunk[..got].last() else { break };
        counted.lines += memchr::memchr_iter(b'\n', &chunk[..got]).count() as u64;
        counted.bytes += got as u64;
        counted.last = last;
        if last == 0 && is_zeros(&chunk[..got]) {
            counted.bytes += hole_at(disk, &file, counted.bytes..len)?;
        }
        if Instant::now() >= deadline {
            break;
        }
    }
    Ok(counted)
}

/// What stands at the ends of the files; see [`look_at_ends`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ends {
    pub files: u64,
    /// Files whose last line has no newline, also after a second look.
    pub unfinished: Vec<String>,
    /// Files whose last line is no event of their domain.
    pub damaged: Vec<String>,
    /// Files that could not be looked at.
    pub unread: Vec<String>,
    /// Lock files without a data file: left by an append that failed, or by a file that was moved away.
    pub stale_locks: u64,
    /// There are more than [`DOMAINS_MAX`] files; only the first were looked at.
    pub truncated: bool,
}

/// Looks at the last line of each data file, and counts lock files without one. Changes nothing, takes
/// no lock. The whole look is [`super::verify`].
///
/// # Errors
/// When the data directory cannot be listed.
pub fn look_at_ends(disk: &RealDisk) -> io::Result<Ends> {
    let (names, truncated) = first_data_files(disk, DOMAINS_MAX, None)?;
    let mut ends = Ends { truncated, stale_locks: stale_locks(disk)?, ..Ends::default() };
    for name in names {
        ends.files += 1;
        match end_of(disk, &name) {
            Ok(End::Sound) => {}
            Ok(End::Unfinished) => ends.unfinished.push(name),
            Ok(End::Damaged) => ends.damaged.push(name),
            Err(_) => ends.unread.push(name),
        }
    }
    Ok(ends)
}

fn stale_locks(disk: &RealDisk) -> io::Result<u64> {
    let mut stale = 0;
    disk.each_name(|name| {
        let data = name.to_str().and_then(|name| name.strip_suffix(".lock")).filter(|data| Owner::of(data).is_some());
        stale += u64::from(data.is_some_and(|data| matches!(disk.stat(data), Ok(None))));
    })?;
    Ok(stale)
}

enum End {
    Sound,
    Unfinished,
    Damaged,
}

fn end_of(disk: &RealDisk, name: &str) -> io::Result<End> {
    for look in 1.. {
        let file = disk.open_read(name)?;
        let len = disk.fstat(&file)?.len;
        if tail::inspect(disk, &file, len)? != Tail::Clean {
            if look == TAIL_LOOKS {
                return Ok(End::Unfinished);
            }
            std::thread::sleep(TAIL_PAUSE);
            continue;
        }
        let start = tail::after_last_newline(disk, &file, len.saturating_sub(1))?;
        if len - start > LAST_LINE_BYTES_MAX || len == 0 {
            return Ok(End::Sound);
        }
        let mut line = vec![0; (len - start) as usize];
        tail::read_exact(disk, &file, &mut line, start)?;
        let domain = match Owner::of(name) {
            Some(Owner::Domain(domain)) => Some(domain),
            _ => None,
        };
        let event = std::str::from_utf8(&line).ok().map(|line| Batch::parse(line, Format::Document, domain));
        return Ok(if event.is_some_and(|event| event.is_ok()) { End::Sound } else { End::Damaged });
    }
    Ok(End::Unfinished)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::StoreMetrics;
    use crate::storage::StoreOptions;

    /// Broken, a large file would be counted from its beginning with every question, and never to its end.
    #[test]
    fn counting_goes_on_where_it_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("large.jsonl");
        std::fs::write(&path, [b"{}\n{}\n".to_vec(), vec![0; 64 << 20]].concat()).unwrap();
        let store = Store::open(dir.path(), StoreOptions::default(), StoreMetrics::new()).unwrap();
        let query = StatsQuery { only: None, after: None, domains_max: 10, counting_max: Duration::from_micros(200) };
        let mut looks = 1;
        let counted = loop {
            let report = store.stats(&query).unwrap();
            assert_eq!(report.domains[0].lines.is_none(), report.counting);
            if !report.counting {
                break report.domains[0].lines;
            }
            looks += 1;
            assert!(looks < 10_000, "counting does not come to an end");
        };
        assert_eq!(counted, Some(2));
        assert!(looks > 1, "64 MiB in 200 µs");
    }

    /// Broken, `doctor` would call a good file damaged, or a damaged one good.
    #[test]
    fn the_ends_of_files_are_judged() {
        let dir = tempfile::tempdir().unwrap();
        let whole = "{\"domain\":\"sound\"}\n";
        for (name, text) in [
            ("sound.jsonl", whole),
            ("sound.jsonl.lock", ""),
            ("empty.jsonl", ""),
            ("torn.jsonl", "{}\n{\"x"),
            ("zero.jsonl", "{}\n\0\0\n"),
            ("other.jsonl", whole),
            ("gone.jsonl.lock", ""),
        ] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let disk = RealDisk::open_existing(dir.path()).unwrap();
        let ends = look_at_ends(&disk).unwrap();
        assert_eq!((ends.files, ends.stale_locks, ends.truncated), (5, 1, false));
        assert_eq!(ends.unfinished, ["torn.jsonl"]);
        assert_eq!(ends.damaged, ["other.jsonl", "zero.jsonl"]);
        assert!(ends.unread.is_empty());
    }
}
