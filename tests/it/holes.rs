//! Files that somebody made longer: what is no more than a hole costs neither time nor room, wherever it is met.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use leitstand::metrics::StoreMetrics;
use leitstand::storage::repair::{RepairOptions, repair};
use leitstand::storage::snapshot::{RestoreOptions, SnapshotOptions, restore, snapshot};
use leitstand::storage::stats::{StatsQuery, look_at_ends};
use leitstand::storage::verify::{VerifyOptions, verify};
use leitstand::storage::{Fsync, RealDisk, Store, StoreOptions, TORN_DIR};

use crate::faulty::Fault;
use crate::storage::{append, faulty_with, ids, options, runtime};
use crate::support::skip;

const EPERM: i32 = 1;
const SOUND: &str = "{\"id\":1,\"domain\":\"a\"}\n";
const TORN: &str = "{\"id\":2,\"dom";
/// More than may be read or written of it.
const HOLE_BYTES: u64 = 2 << 30;
const READ_BYTES_MAX: u64 = 16 << 20;
const ROOM_BYTES_MAX: u64 = 1 << 20;

/// A data directory with a file that ends in half a line and a hole. `None`: this file system knows no holes.
fn long_file(end: &str) -> Option<tempfile::TempDir> {
    longer_file(HOLE_BYTES, end)
}

fn longer_file(hole_bytes: u64, end: &str) -> Option<tempfile::TempDir> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.jsonl");
    fs::write(&path, [SOUND, TORN].concat()).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(hole_bytes).unwrap();
    file.write_all_at(end.as_bytes(), hole_bytes).unwrap();
    if room(&path) <= ROOM_BYTES_MAX {
        return Some(dir);
    }
    skip("this file system knows no holes");
    None
}

fn room(path: &Path) -> u64 {
    let meta = fs::metadata(path).unwrap();
    let below =
        if meta.is_dir() { fs::read_dir(path).unwrap().map(|entry| room(&entry.unwrap().path())).sum() } else { 0 };
    meta.blocks() * 512 + below
}

/// How many bytes this thread has read with system calls so far.
fn read_bytes() -> u64 {
    let io = fs::read_to_string("/proc/thread-self/io").unwrap();
    io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

/// Does it, and says how many bytes it read.
fn reads<T>(work: impl FnOnce() -> T) -> (T, u64) {
    let before = read_bytes();
    let done = work();
    (done, read_bytes() - before)
}

/// Is what was kept the end of the file, hole and all?
fn is_kept(dir: &Path, end: &str) {
    let kept: Vec<_> = fs::read_dir(dir.join(TORN_DIR)).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [kept] = &kept[..] else { panic!("{kept:?}") };
    assert!(room(kept) <= ROOM_BYTES_MAX, "{} bytes on the disk", room(kept));
    let file = File::open(kept).unwrap();
    let len = HOLE_BYTES - SOUND.len() as u64 + end.len() as u64;
    assert_eq!(file.metadata().unwrap().len(), len);
    let mut front = vec![0; 8192];
    file.read_exact_at(&mut front, 0).unwrap();
    let (torn, zeros) = front.split_at(TORN.len());
    assert!(torn == TORN.as_bytes() && zeros.iter().all(|b| *b == 0));
    let mut back = vec![0; end.len() + 1];
    file.read_exact_at(&mut back, len - end.len() as u64 - 1).unwrap();
    assert_eq!(back, [b"\0", end.as_bytes()].concat());
}

/// Broken, 10 GB that nobody wrote become 10 GB on the disk, and every writer of the domain waits for them.
#[test]
fn an_append_behind_a_hole_reads_and_writes_no_zeros() {
    for end in ["", "x\0y"] {
        let Some(dir) = long_file(end) else { return };
        runtime().block_on(async {
            let (store, plan) = faulty_with(dir.path(), options(Fsync::Always));
            // The copy stays, and is compared with the tail by the next try.
            plan.fail_next("set_len", Fault::Errno(EPERM));
            plan.fail_nth("set_len", 2, Fault::Errno(EPERM));
            let _ = append(&store, "a", &[3]).await;
            let _ = append(&store, "a", &[3]).await;
            append(&store, "a", &[3]).await.unwrap();
            assert_eq!(ids(dir.path(), "a"), [1, 3]);
            assert!(plan.count("read_at") < 100, "{} reads", plan.count("read_at"));
            assert!(plan.count("data_in") < 1000, "{} looks", plan.count("data_in"));
            assert!(room(dir.path()) <= 2 * ROOM_BYTES_MAX);
        });
        is_kept(dir.path(), end);
    }
}

/// Broken, a look at a file that somebody made longer would read zeros for minutes, most of it under the lock.
#[test]
fn a_look_at_a_hole_reads_no_zeros() {
    // The tail is the hole; the hole is in a tail; the hole is in a line that is ended.
    for (end, findings) in [("", 1), ("x\0y", 1), ("\n", 1)] {
        let Some(dir) = long_file(end) else { return };
        let disk = RealDisk::open_existing(dir.path()).unwrap();
        let lock_timeout = Duration::from_secs(1);
        let look = || verify(&disk, &VerifyOptions { only: None, lock_timeout }, &mut |_| {}).unwrap();
        let (report, bytes) = reads(look);
        assert_eq!((report.findings_total, report.lines), (findings, 2), "{report:?}");
        assert_eq!(report.bytes, HOLE_BYTES + end.len() as u64);
        assert!(bytes < READ_BYTES_MAX, "verify read {bytes}");
        let (_, bytes) = reads(|| look_at_ends(&disk).unwrap());
        assert!(bytes < READ_BYTES_MAX, "the end was read with {bytes}");
        let store = Store::open(dir.path(), StoreOptions::default(), StoreMetrics::new()).unwrap();
        let query = StatsQuery { only: None, after: None, domains_max: 10, counting_max: Duration::from_secs(60) };
        let (stats, bytes) = reads(|| store.stats(&query).unwrap());
        assert_eq!(stats.domains[0].lines, Some(1 + u64::from(end == "\n")));
        assert!(bytes < READ_BYTES_MAX, "stats read {bytes}");
        assert!(room(dir.path()) <= 2 * ROOM_BYTES_MAX);
    }
}

/// Broken, a repair by hand would take the room and the time that the append does not take.
#[test]
fn a_repair_of_a_hole_reads_and_writes_no_zeros() {
    for rewrite in [false, true] {
        let Some(dir) = long_file("") else { return };
        let disk = RealDisk::open_existing(dir.path()).unwrap();
        let only = rewrite.then(|| leitstand::domain::Domain::parse("a").unwrap());
        for apply in [false, true] {
            let options = RepairOptions { only: only.clone(), rewrite, apply, lock_timeout: Duration::from_secs(1) };
            let (report, bytes) = reads(|| repair(&disk, &options).unwrap());
            assert_eq!(report.steps.len(), 1 + usize::from(rewrite), "{report:?}");
            assert_eq!(report.is_done(), apply, "{report:?}");
            assert!(bytes < READ_BYTES_MAX, "apply {apply}, rewrite {rewrite}: read {bytes}");
        }
        assert_eq!(fs::read_to_string(dir.path().join("a.jsonl")).unwrap(), SOUND);
        is_kept(dir.path(), "");
    }
}

/// Broken, a file whose damage is a hole could not be written anew before the disk is full.
#[test]
fn a_file_with_a_hole_in_it_is_written_anew_with_it() {
    let Some(dir) = long_file("\n") else { return };
    let disk = RealDisk::open_existing(dir.path()).unwrap();
    let only = Some(leitstand::domain::Domain::parse("a").unwrap());
    let options = RepairOptions { only, rewrite: true, apply: true, lock_timeout: Duration::from_secs(1) };
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    let before = inode(&dir.path().join("a.jsonl"));
    let (report, bytes) = reads(|| repair(&disk, &options).unwrap());
    assert!(report.is_done(), "{report:?}");
    assert!(bytes < READ_BYTES_MAX, "read {bytes}");
    assert_ne!(inode(&dir.path().join("a.jsonl")), before);
    assert_eq!(fs::metadata(dir.path().join("a.jsonl")).unwrap().len(), HOLE_BYTES + 1);
    assert!(room(dir.path()) <= 2 * ROOM_BYTES_MAX);
}

/// A snapshot of everything.
fn full(to: PathBuf) -> SnapshotOptions {
    SnapshotOptions { to, base: None, lock_timeout: Duration::from_secs(1), rate: None, reserve_bytes: Some(0) }
}

/// Broken, a snapshot would hold the lock while it reads what it leaves out.
#[test]
fn a_snapshot_reads_nothing_of_a_tail_that_is_a_hole() {
    let Some(dir) = long_file("") else { return };
    let place = tempfile::tempdir().unwrap();
    let options = full(place.path().join("snapshot"));
    let disk = RealDisk::open_existing(dir.path()).unwrap();
    let (report, bytes) = reads(|| snapshot(&disk, &options, &mut |_| {}).unwrap());
    assert_eq!(report.manifest.torn_tails[0].bytes, HOLE_BYTES - SOUND.len() as u64);
    assert!(bytes < READ_BYTES_MAX, "read {bytes}");
    assert!(room(place.path()) <= ROOM_BYTES_MAX);
}

/// Broken, a file that another program wrote on behind a hole would fill the disk of the snapshots, and that of a restore.
#[test]
fn a_snapshot_and_its_restore_have_the_holes_of_the_file() {
    // Every byte is hashed, so not as many.
    const BYTES: u64 = 48 << 20;
    for end in ["\n", "\n{\"id\":3,\"domain\":\"a\"}\n"] {
        let Some(dir) = longer_file(BYTES + 77, end) else { return };
        let place = tempfile::tempdir().unwrap();
        let (to, back) = (place.path().join("snapshot"), place.path().join("back"));
        let options = full(to.clone());
        let disk = RealDisk::open_existing(dir.path()).unwrap();
        let (report, bytes) = reads(|| snapshot(&disk, &options, &mut |_| {}).unwrap());
        assert_eq!(report.manifest.totals.bytes, BYTES + 77 + end.len() as u64);
        assert!(bytes < READ_BYTES_MAX, "read {bytes}");
        assert!(room(&to) <= 4 * ROOM_BYTES_MAX, "{} bytes in the snapshot", room(&to));
        restore(&RestoreOptions { from: to.clone(), expected: None, to: back.clone() }, &mut |_| {}).unwrap();
        assert!(room(&back) <= 4 * ROOM_BYTES_MAX, "{} bytes restored", room(&back));
        let want = fs::read(dir.path().join("a.jsonl")).unwrap();
        for copy in [to.join("a.jsonl"), back.join("a.jsonl")] {
            assert!(fs::read(&copy).unwrap() == want, "{}", copy.display());
        }
    }
}
