//! Files that are mounted by themselves (`docker run -v ./token:/run/token`, a `subPath` of Kubernetes).
//!
//! Such a mount is of an inode and not of a name. Whoever replaces the file where it comes from, by a rename as editors
//! and secret stores do, changes another one, and whoever reads it through the mount sees the old content for ever,
//! without an error.

use std::collections::BTreeMap;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};

/// What the kernel puts behind the root of a mount that has lost its name.
const DELETED: &str = "//deleted";
/// With more of them remembered, the looks begin anew.
const SEEN_MAX: usize = 100;

/// What was mounted at the first look.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    /// By the mount, device and inode: the name where it comes from.
    seen: BTreeMap<(u64, u32, u32, u64), String>,
}

/// What is known of a file.
#[derive(Debug, Clone, Copy)]
struct Look<'a> {
    names: u32,
    /// `None`: this kernel does not tell.
    is_mount: Option<bool>,
    /// The name where it comes from now, and at the first look.
    root: Option<&'a str>,
    first: Option<&'a str>,
}

impl Mounts {
    /// Why the content of `path` is not what stands in the place where it is mounted from; `None`: it is, as far as
    /// anybody can see. Two system calls for a file that is a mount, else one; blocks as long as its file system does.
    pub(super) fn stale(&mut self, path: &Path) -> Option<String> {
        let wanted = StatxFlags::NLINK | StatxFlags::INO | StatxFlags::MNT_ID;
        let stat = statx(CWD, path, AtFlags::empty(), wanted).ok()?;
        let tells = stat.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT);
        let is_mount = tells.then(|| stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
        let has_id = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::MNT_ID);
        let root = match (is_mount, has_id) {
            (Some(true), true) => root_of(stat.stx_mnt_id),
            _ => None,
        };
        if self.seen.len() >= SEEN_MAX {
            self.seen.clear();
        }
        let key = (stat.stx_mnt_id, stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino);
        let first = root.as_ref().map(|root| self.seen.entry(key).or_insert_with(|| root.clone()).as_str());
        is_stale(Look { names: stat.stx_nlink, is_mount, root: root.as_deref(), first }).then(|| {
            format!(
                "{} is mounted by itself and was replaced where it comes from: the old file is read until it is \
                 mounted anew; mount its directory, or write into the file in place",
                path.display()
            )
        })
    }
}

fn is_stale(look: Look<'_>) -> bool {
    match look.is_mount {
        // What a shell hands over, or is just being replaced, may have no name either.
        Some(false) => false,
        None => look.names == 0,
        Some(true) => {
            look.names == 0 || look.root.is_some_and(|root| root.ends_with(DELETED)) || look.root != look.first
        }
    }
}

/// The name of what is mounted there, in its own file system.
fn root_of(mount: u64) -> Option<String> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    root_in(&mounts, mount).map(str::to_owned)
}

fn root_in(mounts: &str, mount: u64) -> Option<&str> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        (fields.next()?.parse() == Ok(mount)).then(|| fields.nth(2))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, a token that was changed on the host would be refused for ever while all seems well; or every file that
    /// is just being replaced would be told as one.
    #[test]
    fn only_a_mount_whose_file_was_replaced_is_stale() {
        let mounted = Look { names: 1, is_mount: Some(true), root: Some("/etc/token"), first: Some("/etc/token") };
        let deleted = Some("/etc/token//deleted");
        for (look, want) in [
            (mounted, false),
            (Look { names: 0, ..mounted }, true),
            // A copy by `ln` keeps the old file alive.
            (Look { root: deleted, ..mounted }, true),
            (Look { root: deleted, first: deleted, ..mounted }, true),
            // An editor keeps it under another name.
            (Look { root: Some("/etc/token~"), ..mounted }, true),
            (Look { root: None, first: None, ..mounted }, false),
            // `<<<` of a shell, and what is open while it is replaced.
            (Look { names: 0, is_mount: Some(false), root: None, first: None }, false),
            (Look { names: 1, is_mount: None, root: None, first: None }, false),
            (Look { names: 0, is_mount: None, root: None, first: None }, true),
        ] {
            assert_eq!(is_stale(look), want, "{look:?}");
        }
    }

    #[test]
    fn the_root_of_a_mount_is_its_fourth_field() {
        let mounts =
            "4 1 254:0 /other /x rw - ext4 /dev/vda rw\n49 27 254:0 /a\\040b//deleted /y rw - ext4 /dev/vda rw\n";
        assert_eq!(root_in(mounts, 49), Some("/a\\040b//deleted"));
        assert_eq!((root_in(mounts, 9), root_in("49\n", 49)), (None, None));
    }
}
