//! Names in the data directory, exactly as the original chose them.

use sha2::{Digest, Sha256};

use crate::domain::Domain;

/// Longest file name in bytes on every file system we know (`NAME_MAX`).
pub const NAME_BYTES_MAX: usize = 255;
/// How much of an over-long domain stays readable in its file name.
const STEM_BYTES: usize = 240;
/// Directory in the data directory for bytes cut from torn tails.
pub const TORN_DIR: &str = ".torn";
/// How the name of every lock file ends.
pub(crate) const LOCK_SUFFIX: &str = ".lock";

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
        let domain = domain.as_str();
        let mut data = format!("{domain}.jsonl");
        if data.len() > NAME_BYTES_MAX {
            data = format!("{}-{}.jsonl", &domain[..STEM_BYTES], &sha256_hex(domain)[..8]);
        }
        let mut lock = format!("{data}{LOCK_SUFFIX}");
        if lock.len() > NAME_BYTES_MAX {
            lock = format!(".{}{LOCK_SUFFIX}", sha256_hex(&data));
        }
        FileNames { data, lock }
    }
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
