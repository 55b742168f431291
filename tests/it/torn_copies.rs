//! Torn tails that cannot be cut off: what is kept of them is kept once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use leitstand::metrics::StoreMetrics;
use leitstand::storage::{Fsync, RealDisk, Store, StoreError, TORN_DIR, Written};

use crate::faulty::Fault;
use crate::storage::{append, faulty_with, ids, options, runtime};
use crate::support::{Finished, command, run, skip};

const EPERM: i32 = 1;
const EIO: i32 = 5;
const SOUND: &str = "{\"id\":1,\"domain\":\"a\"}\n";
const TORN: &str = "{\"id\":2,\"dom";

fn leitstand(dir: &Path, args: &[&str]) -> Finished {
    run(&mut command(dir.parent().unwrap(), &[args, &["--data-dir", dir.to_str().unwrap()]].concat()))
}

fn kept(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir.join(TORN_DIR)) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn torn_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.jsonl"), [SOUND, TORN].concat()).unwrap();
    dir
}

/// Broken, each request would leave another copy while the file cannot be cut: 128 MiB a request.
#[test]
fn a_cut_that_fails_again_and_again_leaves_one_copy() {
    runtime().block_on(async {
        let dir = torn_dir();
        for restart in [false, true] {
            let (store, plan) = faulty_with(dir.path(), options(Fsync::Always));
            for _ in 0..10 {
                plan.fail_next("set_len", Fault::Errno(EPERM));
                let error = append(&store, "a", &[3]).await.unwrap_err();
                assert!(matches!(error, StoreError::Io { .. }) && error.written() == Written::No, "{error:?}");
                assert_eq!(fs::read_to_string(dir.path().join("a.jsonl")).unwrap(), [SOUND, TORN].concat());
                assert!(kept(dir.path()).len() <= 1, "restart {restart}: {:?}", kept(dir.path()));
            }
        }
        let (store, _) = faulty_with(dir.path(), options(Fsync::Always));
        append(&store, "a", &[3]).await.unwrap();
        assert_eq!(ids(dir.path(), "a"), [1, 3]);
        let kept = kept(dir.path());
        assert_eq!(kept.len(), 1);
        assert_eq!(fs::read_to_string(&kept[0]).unwrap(), TORN);
    });
}

/// Broken, a copy whose own sync failed would count as kept, and the tail be cut off.
#[test]
fn a_copy_that_is_found_is_synced_before_the_cut() {
    runtime().block_on(async {
        let dir = torn_dir();
        let (store, plan) = faulty_with(dir.path(), options(Fsync::Always));
        plan.fail_next("set_len", Fault::Errno(EPERM));
        append(&store, "a", &[3]).await.unwrap_err();
        assert_eq!(kept(dir.path()).len(), 1);
        plan.fail_next("sync_data", Fault::Errno(EIO));
        append(&store, "a", &[3]).await.unwrap_err();
        assert_eq!(fs::read_to_string(dir.path().join("a.jsonl")).unwrap(), [SOUND, TORN].concat());
        append(&store, "a", &[3]).await.unwrap();
        let all: String = kept(dir.path()).iter().map(|path| fs::read_to_string(path).unwrap()).collect();
        assert_eq!((ids(dir.path(), "a"), all.as_str()), (vec![1, 3], TORN));
    });
}

/// Broken, other bytes that happen to be as long would be taken for those that are kept, and lost.
#[test]
fn another_tail_of_the_same_place_and_length_is_kept_too() {
    runtime().block_on(async {
        let dir = torn_dir();
        let (store, plan) = faulty_with(dir.path(), options(Fsync::Always));
        plan.fail_next("set_len", Fault::Errno(EPERM));
        append(&store, "a", &[3]).await.unwrap_err();
        let other = TORN.replace('2', "9");
        fs::write(dir.path().join("a.jsonl"), [SOUND, &other].concat()).unwrap();
        append(&store, "a", &[3]).await.unwrap();
        let mut all: Vec<String> = kept(dir.path()).iter().map(|path| fs::read_to_string(path).unwrap()).collect();
        all.sort();
        assert_eq!(all, [TORN, &other]);
    });
}

/// Broken, somebody who tears a file every second would fill the side directory with files.
#[test]
fn the_number_of_files_is_bounded_and_no_byte_is_lost() {
    runtime().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(RealDisk::open(dir.path()).unwrap(), options(Fsync::Never), StoreMetrics::new());
        let path = dir.path().join("a.jsonl");
        for n in 0..150 {
            append(&store, "a", &[n]).await.unwrap();
            let text = fs::read_to_string(&path).unwrap();
            fs::write(&path, format!("{text}torn-{n}-")).unwrap();
        }
        append(&store, "a", &[150]).await.unwrap();
        let kept = kept(dir.path());
        assert!(kept.len() <= 100, "{} files", kept.len());
        let all: String = kept.iter().map(|path| fs::read_to_string(path).unwrap() + "|").collect();
        for n in 0..150 {
            assert_eq!(all.matches(&format!("torn-{n}-")).count(), 1, "{n}");
        }
        let verify = leitstand(dir.path(), &["verify"]);
        assert!(verify.code == Some(0), "{verify:?}");
    });
}

/// Broken, `repair --apply` would leave another copy whenever it is run.
#[test]
fn a_repair_that_cannot_cut_leaves_one_copy() {
    let dir = torn_dir();
    let path = dir.path().join("a.jsonl");
    let chattr =
        |flag: &str| Command::new("chattr").arg(flag).arg(&path).output().is_ok_and(|out| out.status.success());
    if !chattr("+a") {
        return skip("this user or this file system has no append-only files (chattr +a)");
    }
    let runs: Vec<_> = (0..4)
        .map(|_| {
            let run = leitstand(dir.path(), &["repair", "--apply"]);
            (run, kept(dir.path()).len())
        })
        .collect();
    assert!(chattr("-a"));
    for (run, copies) in runs {
        assert!(run.code != Some(0) && copies <= 1, "{copies} copies: {run:?}");
    }
    assert_eq!(leitstand(dir.path(), &["repair", "--apply"]).code, Some(0));
    assert_eq!((fs::read_to_string(&path).unwrap().as_str(), kept(dir.path()).len()), (SOUND, 1));
}
