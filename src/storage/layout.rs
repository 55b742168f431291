//! Names in the data directory, exactly as the original chose them.

use std::borrow::Cow;

use sha2::{Digest, Sha256};

use crate::domain::Domain;

/// Longest file name in bytes on every file system we know (`NAME_MAX`).
pub const NAME_BYTES_MAX: usize = 255;
/// How much of an over-long domain stays readable in its file name.
const STEM_BYTES: usize = 240;
/// How the name of a data file ends.
pub(crate) const DATA_SUFFIX: &str = ".jsonl";
/// How the name of a lock file ends.
pub(crate) const LOCK_SUFFIX: &str = ".lock";
/// Directory in the data directory for bytes cut from torn tails, and what else stands beside a file.
pub const TORN_DIR: &str = ".torn";
/// Directory in the data directory for the named tokens, and the file with them.
pub const TOKEN_STORE_DIR: &str = ".leitstand";
pub const TOKEN_STORE: &str = "tokens.json";
/// The file in the side directory by which the service finds out whether the disk still takes anything.
pub(crate) const PROBE_NAME: &str = ".probe";
/// How the name of the marker of a poisoned domain ends.
pub(crate) const POISONED_SUFFIX: &str = ".poisoned";
/// How the name of a data file ends while it is written anew.
pub(crate) const REWRITE_SUFFIX: &str = ".rewrite";

/// The names of one domain's files, relative to the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileNames {
    /// The data file, always ending in `.jsonl`.
    pub data: String,
    /// The lock file beside it.
    pub lock: String,
}

impl FileNames {
    /// The names of `domain`.
    ///
    /// compat: `<domain>.jsonl` and `<domain>.jsonl.lock`. A name over 255 bytes becomes the first
    /// 240 characters, `-` and 8 hex digits of the SHA-256 of the domain; a lock name over 255
    /// bytes becomes `.`, the SHA-256 of the data file's name in hex, and `.lock`.
    pub fn of(domain: &Domain) -> FileNames {
        FileNames::of_data(format!("{}{DATA_SUFFIX}", FileNames::stem_of(domain)))
    }

    /// What the data file of `domain` is called without its suffix: two domains have one file if this is the
    /// same. Only of a name of 249 characters or more it may differ from the domain, or be another's too.
    pub(crate) fn stem_of(domain: &Domain) -> Cow<'_, str> {
        let domain = domain.as_str();
        if domain.len() + DATA_SUFFIX.len() <= NAME_BYTES_MAX {
            return Cow::Borrowed(domain);
        }
        Cow::Owned(format!("{}-{}", &domain[..STEM_BYTES], &sha256_hex(domain)[..8]))
    }

    /// The names that belong to the data file `data`.
    pub(crate) fn of_data(data: String) -> FileNames {
        let mut lock = format!("{data}{LOCK_SUFFIX}");
        if lock.len() > NAME_BYTES_MAX {
            lock = format!(".{}{LOCK_SUFFIX}", sha256_hex(&data));
        }
        FileNames { data, lock }
    }
}

/// Name in the side directory for what belongs to the data file `data`; shortened as lock names are.
pub(crate) fn side_name(data: &str, suffix: &str) -> String {
    let name = format!("{data}{suffix}");
    if name.len() > NAME_BYTES_MAX { format!("{}{suffix}", sha256_hex(data)) } else { name }
}

/// Whose events a data file of that name may hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Those of the domain that the name spells.
    Domain(Domain),
    /// Those of a domain whose name was too long; only its events tell which.
    Shortened,
}

impl Owner {
    /// `None`: no domain has a data file of that name.
    pub(crate) fn of(data: &str) -> Option<Owner> {
        let stem = data.strip_suffix(DATA_SUFFIX)?;
        if data.len() == NAME_BYTES_MAX && is_shortened(stem) {
            return Some(Owner::Shortened);
        }
        let domain = Domain::parse(stem).ok()?;
        (domain.as_str() == stem && FileNames::of(&domain).data == data).then_some(Owner::Domain(domain))
    }
}

/// 240 characters of a domain, `-` and 8 hex digits. A domain of 249 characters may look the same.
fn is_shortened(stem: &str) -> bool {
    let (start, hash) = stem.as_bytes().split_at(STEM_BYTES);
    start.iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'))
        && hash[0] == b'-'
        && hash[1..].iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Is this the name of a lock file, as far as the name tells?
pub(crate) fn is_lock_name(name: &str) -> bool {
    let Some(stem) = name.strip_suffix(LOCK_SUFFIX) else { return false };
    let is_hash = |text: &str| text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    Owner::of(stem).is_some() || stem.strip_prefix('.').is_some_and(is_hash)
}

fn sha256_hex(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(len: usize) -> Domain {
        let full = format!("{0}.{0}.{0}.{0}", "a".repeat(63));
        Domain::parse(&full[full.len() - len..]).unwrap()
    }

    #[test]
    fn short_names_are_plain() {
        let names = FileNames::of(&Domain::parse("a.jsonl.lock").unwrap());
        assert_eq!(names.data, "a.jsonl.lock.jsonl");
        assert_eq!(names.lock, "a.jsonl.lock.jsonl.lock");
    }

    #[test]
    fn a_name_tells_whose_events_it_may_hold() {
        for len in (1..=253).filter(|l| l % 64 != 0) {
            let domain = domain(len);
            let names = FileNames::of(&domain);
            let want = if len <= 249 { Owner::Domain(domain) } else { Owner::Shortened };
            assert_eq!(Owner::of(&names.data), Some(want), "{len}");
            assert!(is_lock_name(&names.lock), "{len}");
            let side = side_name(&names.data, POISONED_SUFFIX);
            assert_eq!(side.starts_with(&names.data), len <= 240, "{len}");
            assert!(side.len() <= NAME_BYTES_MAX, "{len}");
        }
        for none in ["", ".jsonl", "A.jsonl", "a b.jsonl", "-a.jsonl", "a.json", "a.jsonl.lock", "\u{fc}.jsonl"] {
            assert_eq!(Owner::of(none), None, "{none:?}");
        }
        for none in ["x.lock", ".x.lock", ".ab.lock", "a.jsonl", &format!(".{}.lock", "g".repeat(64))] {
            assert!(!is_lock_name(none), "{none}");
        }
    }

    #[test]
    fn no_name_is_too_long_and_no_two_domains_share_one() {
        let mut seen = std::collections::HashSet::new();
        for len in (1..=253).filter(|l| l % 64 != 0) {
            let names = FileNames::of(&domain(len));
            assert!(names.data.len() <= 255 && names.lock.len() <= 255, "{len}");
            assert!(names.data.ends_with(".jsonl") && names.lock.ends_with(".lock"));
            assert_eq!(names.data.len(), if len <= 249 { len + 6 } else { 255 }, "{len}");
            assert_eq!(names.lock.starts_with('.'), len > 244, "{len}");
            assert!(seen.insert(names.data) && seen.insert(names.lock));
        }
    }
}
