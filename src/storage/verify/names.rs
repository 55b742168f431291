//! Everything in a data directory but the content of data files: names, locks, marks, kept tails.

use std::ffi::OsStr;
use std::io;

use super::finding::{Finding, Found, Kind, NotChecked};
use super::{Look, data_files, shown};
use crate::storage::disk::{Disk, FileKind, FileStat, RealDisk};
use crate::storage::layout::{
    DATA_SUFFIX, FileNames, Owner, POISONED_SUFFIX, PROBE_NAME, REWRITE_SUFFIX, TORN_DIR, is_lock_name, side_name,
};
use crate::storage::{marker, tail};

impl Look<'_> {
    /// Everything in the directory but the content of data files.
    pub(super) fn names(&mut self) -> io::Result<()> {
        let mut found = Found::default();
        for name in self.disk.names()? {
            // It may be gone by now.
            let Some(stat) = self.disk.stat_name(&name)? else { continue };
            if let Some(kind) = judge_name(self.disk, &name, stat) {
                found.push(Finding { kind, file: shown(&name), line: None, offset: None, bytes: None });
            }
        }
        self.report.take(found);
        Ok(())
    }

    pub(super) fn side_directory(&mut self) -> io::Result<()> {
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
        self.report.take(found);
        Ok(())
    }

    fn side_file(&mut self, name: &OsStr, found: &mut Found) -> io::Result<()> {
        let Some(stat) = self.disk.stat_side(TORN_DIR, name)? else { return Ok(()) };
        let text = name.to_str().unwrap_or_default();
        let kind = match stat.kind {
            FileKind::Symlink => Kind::Symlink,
            FileKind::Other => Kind::StrayName,
            // It is removed before the next one is made.
            FileKind::Regular if text == PROBE_NAME => return Ok(()),
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
}

/// What is not right with a name, whatever the file holds.
pub(in crate::storage) fn judge_name(disk: &RealDisk, name: &OsStr, stat: FileStat) -> Option<Kind> {
    let text = name.to_str().unwrap_or_default();
    // Also of a name that is no UTF-8: readers of *.jsonl do not ask.
    let is_data = name.as_encoded_bytes().ends_with(DATA_SUFFIX.as_bytes());
    let is_lock = is_lock_name(text);
    match stat.kind {
        _ if text == TORN_DIR => (!disk.is_dir(name)).then_some(Kind::SideDirectory),
        FileKind::Symlink => Some(Kind::Symlink),
        FileKind::Other if is_data || is_lock => Some(Kind::NotRegular),
        // Side files of any kind live under dot directories.
        FileKind::Other if text.starts_with('.') && disk.is_dir(name) => None,
        FileKind::Regular if is_data => Owner::of(text).is_none().then_some(Kind::NotADomain),
        FileKind::Regular if is_lock => (stat.len > 0).then_some(Kind::LockNotEmpty),
        FileKind::Regular | FileKind::Other => Some(Kind::StrayName),
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
