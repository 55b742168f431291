//! The end of a data file: is it a line end, and if not, what to do about it.

use std::io::{self, IoSlice};
use std::time::{SystemTime, UNIX_EPOCH};

use super::disk::{Disk, FileKind};
use super::holes::{hole_at, hole_before, is_zeros};
use super::layout::TORN_DIR;
use crate::json;

/// Longest unfinished tail that is looked at as JSON; a longer one counts as torn.
pub(crate) const TAIL_JSON_BYTES_MAX: u64 = 64 << 20;
const CHUNK_BYTES: usize = 64 << 10;
/// How much of the data file's name goes into the name of the kept bytes.
const KEPT_STEM_BYTES: usize = 180;

/// Most files that are kept of the data files with one stem; what comes then is added to the newest.
const KEPT_FILES_MAX: usize = 100;

/// What stands after the last newline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tail {
    /// Nothing.
    Clean,
    /// A whole JSON value that only lacks its newline.
    Whole,
    /// Anything else; the file is sound up to `sound_len` bytes.
    Torn { sound_len: u64 },
}

/// Looks at the end of a file of `len` bytes. Reads backwards to the last newline, no further, and no holes.
pub(crate) fn inspect<D: Disk>(disk: &D, file: &D::File, len: u64) -> io::Result<Tail> {
    if len == 0 {
        return Ok(Tail::Clean);
    }
    let mut last = [0];
    read_exact(disk, file, &mut last, len - 1)?;
    if last == *b"\n" {
        return Ok(Tail::Clean);
    }
    let sound_len = after_last_newline(disk, file, len)?;
    // No JSON ends in a zero, and a file that was made longer does.
    if len - sound_len <= TAIL_JSON_BYTES_MAX && last != [0] {
        let mut tail = vec![0; (len - sound_len) as usize];
        read_exact(disk, file, &mut tail, sound_len)?;
        if json::is_whole_value(&tail) {
            return Ok(Tail::Whole);
        }
    }
    Ok(Tail::Torn { sound_len })
}

/// Where the last line begins.
pub(crate) fn after_last_newline<D: Disk>(disk: &D, file: &D::File, len: u64) -> io::Result<u64> {
    let mut buf = vec![0; CHUNK_BYTES];
    let mut end = len;
    while end > 0 {
        let start = end.saturating_sub(CHUNK_BYTES as u64);
        let chunk = &mut buf[..(end - start) as usize];
        read_exact(disk, file, chunk, start)?;
        if let Some(at) = chunk.iter().rposition(|&b| b == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = if is_zeros(chunk) { hole_before(disk, file, start)? } else { start };
    }
    Ok(0)
}

/// Sees to it that the bytes from `sound_len` to `len` are in `.torn/`, and synced there.
///
/// The caller cuts the file only after this returned; so a crash in between keeps them twice
/// rather than not at all. If it fails, nothing new is left in `.torn/`. If the cut fails, or the process
/// dies before it, the next call finds the copy and makes no other.
pub(crate) fn keep_torn<D: Disk>(disk: &D, file: &D::File, name: &str, sound_len: u64, len: u64) -> io::Result<()> {
    let stem = kept_stem(name);
    let kept = kept_names(disk, stem)?;
    let same_place = kept.iter().filter(|(_, offset, _)| *offset == sound_len);
    // A file that took more than one tail has the offset of its first.
    let newest = kept.last().filter(|_| kept.len() >= KEPT_FILES_MAX);
    for (kept_name, ..) in same_place.chain(newest) {
        let Ok(copy) = disk.open_side(TORN_DIR, kept_name) else { continue };
        if ends_with(disk, &copy, file, sound_len..len)? {
            return disk.sync_data(&copy).and_then(|()| disk.sync_side(TORN_DIR));
        }
    }
    if let Some((kept_name, ..)) = newest {
        return keep_behind(disk, file, kept_name, sound_len..len);
    }
    let now_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
    let kept_name = format!("{stem}.{sound_len}.{now_ns}");
    let kept = disk.create_side(TORN_DIR, &kept_name)?;
    let copied = copy(disk, file, &kept, sound_len..len).and_then(|()| disk.sync_data(&kept));
    copied.and_then(|()| disk.sync_side(TORN_DIR)).inspect_err(|_| {
        // On a full disk every attempt would leave another file; if even this fails, one more does.
        let _ = disk.remove_side(TORN_DIR, &kept_name);
    })
}

/// What is kept of files with that stem: name, offset and time, the oldest first.
fn kept_names<D: Disk>(disk: &D, stem: &str) -> io::Result<Vec<(String, u64, u128)>> {
    let names = disk.list_side(TORN_DIR)?.into_iter().filter_map(|name| name.into_string().ok());
    let kept = names.filter_map(|name| {
        let (offset, time_ns) = name.strip_prefix(stem)?.strip_prefix('.')?.split_once('.')?;
        let (offset, time_ns) = (offset.parse().ok()?, time_ns.parse().ok()?);
        Some((name, offset, time_ns))
    });
    let mut kept: Vec<_> = kept.collect();
    kept.sort_by_key(|(_, _, time_ns)| *time_ns);
    Ok(kept)
}

/// Are the last bytes of `kept` those of that range of `file`?
fn ends_with<D: Disk>(disk: &D, kept: &D::File, file: &D::File, range: std::ops::Range<u64>) -> io::Result<bool> {
    let stat = disk.fstat(kept)?;
    let Some(shift) = stat.len.checked_sub(range.end - range.start) else { return Ok(false) };
    if stat.kind != FileKind::Regular {
        return Ok(false);
    }
    let (mut here, mut there) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let (bytes, mut done) = (range.end - range.start, 0);
    while done < bytes {
        let want = CHUNK_BYTES.min((bytes - done) as usize);
        read_exact(disk, file, &mut here[..want], range.start + done)?;
        read_exact(disk, kept, &mut there[..want], shift + done)?;
        if here[..want] != there[..want] {
            return Ok(false);
        }
        done += want as u64;
        if is_zeros(&here[..want]) {
            let hole = hole_at(disk, file, range.start + done..range.end)?;
            done += hole.min(hole_at(disk, kept, shift + done..stat.len)?);
        }
    }
    Ok(true)
}

/// Adds a line to a copy that is there, so that their number stays bounded and no byte is lost.
fn keep_behind<D: Disk>(disk: &D, file: &D::File, kept_name: &str, range: std::ops::Range<u64>) -> io::Result<()> {
    let kept = disk.open_side(TORN_DIR, kept_name)?;
    let before = disk.fstat(&kept)?.len;
    let newline = || match disk.append(&kept, &[IoSlice::new(b"\n")])? {
        1 => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    };
    let copied = newline().and_then(|()| copy(disk, file, &kept, range)).and_then(|()| disk.sync_data(&kept));
    copied.inspect_err(|_| {
        // If even this fails, half a copy more is kept.
        let _ = disk.set_len(&kept, before);
    })
}

/// How much of the data file's name stands in the name of its kept bytes.
pub(crate) fn kept_stem(name: &str) -> &str {
    &name[..name.len().min(KEPT_STEM_BYTES)]
}

/// Copies a range of `from` to the end of `to`, its holes as holes.
pub(crate) fn copy<D: Disk>(disk: &D, from: &D::File, to: &D::File, range: std::ops::Range<u64>) -> io::Result<()> {
    let mut buf = vec![0; CHUNK_BYTES];
    let mut offset = range.start;
    while let Some(data) = disk.data_in(from, offset..range.end)? {
        append_hole(disk, to, data.start - offset)?;
        offset = data.start;
        while offset < data.end {
            let want = buf.len().min((data.end - offset) as usize);
            read_exact(disk, from, &mut buf[..want], offset)?;
            if disk.append(to, &[IoSlice::new(&buf[..want])])? != want {
                return Err(io::ErrorKind::WriteZero.into());
            }
            offset += want as u64;
        }
    }
    append_hole(disk, to, range.end - offset)
}

fn append_hole<D: Disk>(disk: &D, to: &D::File, bytes: u64) -> io::Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    disk.set_len(to, disk.fstat(to)?.len + bytes)
}

pub(crate) fn read_exact<D: Disk>(disk: &D, file: &D::File, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buf.is_empty() {
        match disk.read_at(file, buf, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => {
                buf = &mut buf[n..];
                offset += n as u64;
            }
        }
    }
    Ok(())
}
