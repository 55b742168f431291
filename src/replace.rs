//! A file is replaced as a whole: whoever reads it sees the old content or the new one.
//!
//! The new file has no name before it is complete, where the file system can do that, so that a process that is killed
//! leaves nothing. The name beside the old one that it then has for a moment was never there before: nothing of anybody
//! else's is removed for it.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, OFlags};

/// What cannot be replaced, because a mount is of the file and not of its name.
const MOUNTED: &str = "it is mounted by itself and cannot be replaced: mount its directory";

/// Puts a file in the place of `path`, made with `mode` less the umask and filled by `fill`, which also syncs it if it is
/// to be on the disk before it has its name. The directory is not synced.
///
/// # Errors
/// What the operating system or `fill` says; then `path` is as it was, and nothing is left beside it.
pub(crate) fn replace(path: &Path, mode: u32, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let beside = beside(path)?;
    let nameless = OpenOptions::new()
        .read(true)
        .write(true)
        .mode(mode)
        .custom_flags(OFlags::TMPFILE.bits() as i32)
        .open(directory(path));
    let named = match nameless {
        Ok(mut file) => {
            fill(&mut file)?;
            let itself = format!("/proc/self/fd/{}", file.as_raw_fd());
            rustix::fs::linkat(CWD, &itself, CWD, &beside, AtFlags::SYMLINK_FOLLOW).map_err(io::Error::from)
        }
        // The file system makes no files without a name.
        Err(_) => OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&beside)
            .and_then(|mut file| fill(&mut file).inspect_err(|_| drop(std::fs::remove_file(&beside)))),
    };
    named?;
    std::fs::rename(&beside, path).map_err(|e| {
        let _ = std::fs::remove_file(&beside);
        match e.kind() {
            io::ErrorKind::ResourceBusy => io::Error::new(e.kind(), MOUNTED),
            _ => e,
        }
    })
}

/// A name that nobody has: hidden, and with 64 random bits.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut beside = OsString::from(".");
    // Short enough, however long the name is.
    let shown: String = name.to_string_lossy().chars().take(32).collect();
    beside.push(format!("{shown}.{:016x}.new", crate::rng::random_u64()));
    Ok(path.with_file_name(beside))
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Broken, a file of somebody else's would be removed for its name, or half a file would be read.
    #[test]
    fn the_old_or_the_new_and_nothing_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let others = [".f.new", "f.new", "f.tmp"];
        others.iter().for_each(|name| std::fs::write(dir.path().join(name), "mine").unwrap());
        for text in ["one", "two"] {
            replace(&path, 0o600, |file| file.write_all(text.as_bytes())).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        let failed = replace(&path, 0o600, |file| {
            file.write_all(b"half")?;
            Err(io::Error::other("no"))
        });
        assert!(failed.is_err() && std::fs::read_to_string(&path).unwrap() == "two");
        std::fs::create_dir(dir.path().join("d")).unwrap();
        assert!(replace(&dir.path().join("d"), 0o600, |_| Ok(())).is_err());
        assert_eq!(names(dir.path()), [".f.new", "d", "f", "f.new", "f.tmp"]);
        others.iter().for_each(|name| assert_eq!(std::fs::read_to_string(dir.path().join(name)).unwrap(), "mine"));
    }
}
