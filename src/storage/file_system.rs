//! `Weakness`: what the file system of the data directory cannot keep of the promise, as far as it can be seen.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{FsWord, major, minor};

use super::disk::EXT4;

/// `f_type` of statfs(2), of file systems that are nowhere but in memory: tmpfs, ramfs.
const IN_MEMORY: [u32; 2] = [0x0102_1994, 0x8584_58f6];
/// Of those without any order between data and names: FAT, exFAT.
const UNORDERED: [u32; 2] = [0x4d44, 0x2011_bab0];
/// Of those that another machine serves: NFS, SMB, 9p.
const REMOTE: [u32; 4] = [0x6969, 0xff53_4d42, 0xfe53_4d42, 0x0102_1997];

/// Why a synced event may be gone one day although no disk has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weakness {
    /// It ends with the machine, or with the mount.
    InMemory,
    /// After a power cut a file may be found that is not as it was synced. On ext4 that is e2fsck's doing: it takes away
    /// a whole extent that goes beyond the length of its file, as one does in which an append was under way.
    NoJournal,
    /// The `fast_commit` of ext4 is in use. With Linux 6.18 syncs that had returned were lost after a power cut.
    FastCommit,
    /// A sync is worth what the server makes of it.
    Remote,
}

impl fmt::Display for Weakness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Weakness::InMemory => "is in memory: its events end with the machine",
            Weakness::NoJournal => {
                "is on a file system without a journal: after a power cut, its check may take away acknowledged events"
            }
            Weakness::FastCommit => {
                "is on ext4 with fast_commit: after a power cut, acknowledged events may be gone (tune2fs -O ^fast_commit)"
            }
            Weakness::Remote => {
                "is on a file system of another machine: whether a sync reaches a disk is up to that one"
            }
        })
    }
}

/// Looks at the file system of `dir`. `None`: nothing is known against it, which is no proof; a directory that cannot be
/// looked at has none either.
pub fn weakness(dir: &Path) -> Option<Weakness> {
    let system = rustix::fs::statfs(dir).ok()?.f_type;
    let is_one_of = |systems: &[u32]| systems.iter().any(|one| *one as FsWord == system);
    if is_one_of(&IN_MEMORY) {
        Some(Weakness::InMemory)
    } else if is_one_of(&REMOTE) {
        Some(Weakness::Remote)
    } else if is_one_of(&UNORDERED) {
        Some(Weakness::NoJournal)
    } else if system == EXT4 {
        weakness_of_ext4(dir)
    } else {
        None
    }
}

/// Of ext2, ext3 and ext4. `None` also where the system does not say, as in some containers.
fn weakness_of_ext4(dir: &Path) -> Option<Weakness> {
    let device = fs::metadata(dir).ok()?.dev();
    let device = fs::read_link(format!("/sys/dev/block/{}:{}", major(device), minor(device))).ok()?;
    let of_device =
        |dir: &str, name: &str| fs::read_to_string(Path::new(dir).join(device.file_name()?).join(name)).ok();
    // The process that writes the journal, or `<none>`.
    if of_device("/sys/fs/ext4", "journal_task").is_some_and(|task| task.trim() == "<none>") {
        return Some(Weakness::NoJournal);
    }
    has_fast_commits(&of_device("/proc/fs/ext4", "fc_info")?).then_some(Weakness::FastCommit)
}

/// Two lines behind the first count those since the mount, and what could not be one; both stay 0 where they are off. There is
/// nothing else that an ordinary user may read.
fn has_fast_commits(fc_info: &str) -> bool {
    let count = |line: &str| line.split_whitespace().next().and_then(|word| word.parse::<u64>().ok());
    fc_info.lines().skip(1).take(2).filter_map(count).any(|count| count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fast_commits_are_seen() {
        for fc_info in ["fc stats:\n12 commits\n0 ineligible\n", "fc stats:\n0 commits\n3 ineligible\n9 numblks\n"] {
            assert!(has_fast_commits(fc_info));
        }
        assert!(!has_fast_commits("fc stats:\n0 commits\n0 ineligible\n7 numblks\n") && !has_fast_commits(""));
    }

    /// Broken, events in memory would be called safe. Journals are tried in `tests/system/full_disk.py`.
    #[test]
    fn memory_is_told_and_what_is_unknown_is_not() {
        assert_eq!(weakness(Path::new("/dev/shm")), Some(Weakness::InMemory));
        assert_eq!(weakness(Path::new("/proc")), None);
        assert_eq!(weakness(Path::new("/nowhere")), None);
    }
}
