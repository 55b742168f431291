//! The end of a data file: is it a line end, and if not, what to do about it.

use std::io::{self, IoSlice};
use std::time::{SystemTime, UNIX_EPOCH};

use super::disk::Disk;
use super::layout::TORN_DIR;
use crate::json;

/// Longest unfinished tail that is looked at as JSON; a longer one counts as torn.
pub(crate) const TAIL_JSON_BYTES_MAX: u64 = 64 << 20;
const CHUNK_BYTES: usize = 64 << 10;
/// How much of the data file's name goes into the name of the kept bytes.
const KEPT_STEM_BYTES: usize = 180;

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

/// Looks at the end of a file of `len` bytes. Reads backwards to the last newline, no further.
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
    if len - sound_len <= TAIL_JSON_BYTES_MAX {
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
        end = start;
    }
    Ok(0)
}

/// Copies the bytes from `sound_len` to `len` into `.torn/` and syncs them there.
///
/// The caller cuts the file only after this returned; so a crash in between keeps them twice
/// rather than not at all. If it fails, nothing is left in `.torn/`.
pub(crate) fn keep_torn<D: Disk>(disk: &D, file: &D::File, name: &str, sound_len: u64, len: u64) -> io::Result<()> {
    let stem = kept_stem(name);
    let now_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
    let kept_name = format!("{stem}.{sound_len}.{now_ns}");
    let kept = disk.create_side(TORN_DIR, &kept_name)?;
    let copied = copy(disk, file, &kept, sound_len..len).and_then(|()| disk.sync_data(&kept));
    copied.and_then(|()| disk.sync_side(TORN_DIR)).inspect_err(|_| {
        // On a full disk every attempt would leave another file; if even this fails, one more does.
        let _ = disk.remove_side(TORN_DIR, &kept_name);
    })
}

/// How much of the data file's name stands in the name of its kept bytes.
pub(crate) fn kept_stem(name: &str) -> &str {
    &name[..name.len().min(KEPT_STEM_BYTES)]
}

/// Copies a range of `from` to the end of `to`.
pub(crate) fn copy<D: Disk>(disk: &D, from: &D::File, to: &D::File, range: std::ops::Range<u64>) -> io::Result<()> {
    let mut buf = vec![0; CHUNK_BYTES];
    let mut offset = range.start;
    while offset < range.end {
        let want = buf.len().min((range.end - offset) as usize);
        read_exact(disk, from, &mut buf[..want], offset)?;
        if disk.append(to, &[IoSlice::new(&buf[..want])])? != want {
            return Err(io::ErrorKind::WriteZero.into());
        }
        offset += want as u64;
    }
    Ok(())
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
