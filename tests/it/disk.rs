//! The system calls behind the store: what they open, what they refuse, and that they tell every error.

use std::fs::{self, File};
use std::io::{ErrorKind, IoSlice};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::mpsc;

use rustix::fs::OFlags;

use leitstand::storage::{Disk, RealDisk};

use crate::support::PATIENCE;

/// The flags that an open file has now.
fn flags(fd: i32) -> OFlags {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
    let text = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
    OFlags::from_bits_retain(u32::from_str_radix(text.trim(), 8).unwrap())
}

/// Broken, a child process would inherit open files and locks, or an open would follow a link or wait
/// for a FIFO.
#[test]
fn every_file_is_opened_as_carefully_as_promised() {
    let dir = tempfile::tempdir().unwrap();
    let disk = RealDisk::open(dir.path()).unwrap();
    let careful = OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let ours = fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| {
        let fd = fd.unwrap();
        (fs::read_link(fd.path()).ok()? == disk.root()).then(|| fd.file_name().to_str().unwrap().parse().unwrap())
    });
    let root: Vec<i32> = ours.collect();
    assert!(root.iter().any(|&fd| flags(fd).contains(careful | OFlags::DIRECTORY)), "{root:?}");
    for (name, file, more) in [
        ("lock", disk.open_lock("a.jsonl.lock").unwrap(), OFlags::NONBLOCK),
        ("data", disk.open_data("a.jsonl").unwrap(), OFlags::NONBLOCK | OFlags::APPEND),
        ("side", disk.create_side(".side", "x").unwrap(), OFlags::APPEND),
    ] {
        let flags = flags(file.as_raw_fd());
        assert!(flags.contains(careful | more), "{name}: {flags:?}");
    }
    assert_eq!(disk.create_side(".side", "x").unwrap_err().kind(), ErrorKind::AlreadyExists);
}

/// Broken, a full btrfs would not be seen before a write, or every other disk would be asked in vain.
#[test]
fn only_btrfs_is_asked_for_room() {
    for dir in ["/tmp", "/dev/shm"] {
        let Ok(dir) = tempfile::tempdir_in(dir) else { continue };
        let system = rustix::fs::statfs(dir.path()).unwrap();
        let btrfs = system.f_type == 0x9123_683e;
        assert_eq!(RealDisk::open(dir.path()).unwrap().room().is_some(), btrfs, "{:x}", system.f_type);
    }
}

/// Broken, what is cut from a file would be written wherever a link leads.
#[test]
fn a_side_directory_that_is_a_link_is_not_followed() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let disk = RealDisk::open(dir.path()).unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), dir.path().join(".side")).unwrap();
    fs::write(elsewhere.path().join("x"), "").unwrap();
    assert!(disk.create_side(".side", "y").is_err());
    assert!(disk.remove_side(".side", "x").is_err());
    assert!(disk.sync_side(".side").is_err());
    assert!(elsewhere.path().join("x").exists() && !elsewhere.path().join("y").exists());
}

/// Broken, a new data directory would be open to others, or a file in its place taken for one.
#[test]
fn a_data_directory_is_made_with_its_parents_for_nobody_else() {
    let outer = tempfile::tempdir().unwrap();
    let path = outer.path().join("x/y/z");
    RealDisk::open(&path).unwrap();
    for made in ["x", "x/y", "x/y/z"] {
        assert_eq!(fs::metadata(outer.path().join(made)).unwrap().permissions().mode() & 0o7777, 0o700, "{made}");
    }
    RealDisk::open(&path).unwrap();
    fs::write(outer.path().join("file"), "").unwrap();
    assert_eq!(RealDisk::open(&outer.path().join("file")).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert!(RealDisk::open(&outer.path().join("file/x")).is_err());
    assert!(RealDisk::open_existing(&outer.path().join("none")).is_err());
}

/// Broken, an error of the system would be taken for a success, or tried again for ever.
#[test]
fn every_error_of_the_system_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let (done, ended) = mpsc::channel();
    std::thread::spawn(move || {
        let disk = RealDisk::open(&path).unwrap();
        fs::write(path.join("file"), "x").unwrap();
        let nowhere = File::from(rustix::fs::open(path.join("file"), OFlags::PATH, rustix::fs::Mode::empty()).unwrap());
        assert!(disk.try_lock(&nowhere).is_err());
        assert!(disk.unlock(&nowhere).is_err());
        assert!(disk.read_at(&nowhere, &mut [0], 0).is_err());
        assert!(disk.append(&File::open(path.join("file")).unwrap(), &[IoSlice::new(b"x")]).is_err());
        assert!(disk.set_len(&File::open(path.join("file")).unwrap(), 0).is_err());
        // Neither a pipe nor a directory of /proc can be synced.
        let pipe = File::from(std::os::fd::OwnedFd::from(std::io::pipe().unwrap().1));
        assert!(disk.sync_data(&pipe).is_err());
        assert!(RealDisk::open_existing(Path::new("/proc/self")).unwrap().sync_root().is_err());
        assert!(disk.sync_side("none").is_err());
        assert!(disk.remove_side("none", "x").is_err());
        fs::write(path.join("side"), "").unwrap();
        assert!(disk.create_side("side", "x").is_err());
        done.send(()).unwrap();
    });
    ended.recv_timeout(PATIENCE).expect("an end without a panic");
}

/// Broken, the reserve would be measured with a wrong number.
#[test]
fn space_is_what_the_file_system_says() {
    let dir = tempfile::tempdir().unwrap();
    let space = RealDisk::open(dir.path()).unwrap().space().unwrap();
    let want = rustix::fs::statvfs(dir.path()).unwrap();
    assert_eq!(space.total_bytes, want.f_blocks * want.f_frsize);
    // Others write meanwhile.
    let free_bytes = want.f_bavail * want.f_frsize;
    assert!(space.free_bytes.abs_diff(free_bytes) < (1 << 30).max(want.f_frsize), "{space:?}");
}
