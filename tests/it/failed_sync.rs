//! What makes a sync a failed one, whoever was told, and what else it casts doubt on.

use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use leitstand::storage::{Fsync, StoreError, Written};

use crate::faulty::Fault;
use crate::storage::{
    append, begin, content, faulty, faulty_with, ids, options, options_for_pieces, runtime, write_little_often,
};
use crate::support::{PATIENCE, in_time, wait_for};

const EIO: i32 = 5;

/// Broken, what ext4 tells only to whoever starts the write-back would be lost, or a success be made of it; or a page that was
/// lost, and then written to anew, would not be missed.
#[test]
fn a_write_back_that_does_not_start_is_a_failed_sync() {
    runtime().block_on(async {
        // On a busy machine the lock may be given up before the second group comes, which then waits for the first.
        let tried = async |lost_before: bool| {
            let dir = tempfile::tempdir().unwrap();
            let (store, plan) = faulty(dir.path());
            append(&store, "a", &[1]).await.unwrap();
            plan.hold_syncs();
            let first = begin(&store, "a", 2);
            plan.wait_held(1);
            plan.clear();
            if lost_before {
                let file = std::fs::File::options().write(true).open(dir.path().join("a.jsonl")).unwrap();
                file.write_all_at(&[0], file.metadata().unwrap().len() - 1).unwrap();
            } else {
                plan.fail_next("begin_writeback", Fault::Errno(EIO));
            }
            let behind = begin(&store, "a", 3);
            let until = Instant::now() + Duration::from_millis(500);
            while !plan.saw("begin_writeback") && Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let tried = plan.saw("begin_writeback");
            plan.let_syncs_go();
            let answers = [first.await.unwrap(), behind.await.unwrap()];
            if !tried {
                return false;
            }
            for answer in answers {
                let error = answer.unwrap_err();
                assert!(matches!(error, StoreError::Sync { .. } | StoreError::InDoubt), "{error:?}");
                assert_eq!(error.written(), Written::Maybe);
            }
            assert_eq!(plan.count("sync_data"), 1 + plan.count("sync_side"), "the first, and the marker");
            assert_eq!(ids(dir.path(), "a"), [1]);
            assert!(matches!(append(&store, "a", &[4]).await, Err(StoreError::Poisoned { .. })));
            true
        };
        for lost_before in [false, true] {
            let mut tries = 0;
            while !tried(lost_before).await {
                tries += 1;
                assert!(tries < 20, "no group was ever written behind another one");
            }
        }
    });
}

/// Broken, an event would be acknowledged that the kernel's flusher has thrown away before the sync, or one whose
/// journal is given up.
#[test]
fn a_sync_that_says_nothing_is_not_believed() {
    runtime().block_on(async {
        for look in ["check_stored", "check_alive"] {
            let dir = tempfile::tempdir().unwrap();
            let (store, plan) = faulty(dir.path());
            plan.blocks_of(1);
            append(&store, "a", &[1]).await.unwrap();
            plan.fail_next(look, Fault::Errno(EIO));
            let error = append(&store, "a", &[2]).await.unwrap_err();
            assert!(matches!(error, StoreError::Sync { .. }) && error.written() == Written::Maybe, "{look}: {error:?}");
            assert!(matches!(append(&store, "a", &[3]).await, Err(StoreError::Poisoned { .. })), "{look}");
            assert_eq!(ids(dir.path(), "a"), [1]);

            let dir = tempfile::tempdir().unwrap();
            let (store, plan) = faulty_with(dir.path(), options_for_pieces());
            plan.blocks_of(1);
            append(&store, "a", &[1]).await.unwrap();
            write_little_often(&store).await;
            plan.fail_nth(look, 2, Fault::Errno(EIO));
            let error = append(&store, "a", &[10, 11, 12, 13, 14, 15]).await.unwrap_err();
            assert!(matches!(error, StoreError::Sync { .. }), "{look}, in pieces: {error:?}");
            assert_eq!(ids(dir.path(), "a"), [1]);

            let dir = tempfile::tempdir().unwrap();
            let (store, plan) = faulty_with(dir.path(), options(Fsync::EverySecond));
            plan.blocks_of(1);
            append(&store, "a", &[1]).await.unwrap();
            plan.fail_next(look, Fault::Errno(EIO));
            in_time(store.drained()).await;
            assert!(
                matches!(append(&store, "a", &[3]).await, Err(StoreError::Poisoned { .. })),
                "{look}, every second"
            );
        }
    });
}

/// Broken, a lone request would pay for what only many need.
#[test]
fn a_lone_request_makes_no_more_calls_than_it_needs() {
    runtime().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let (store, plan) = faulty(dir.path());
        plan.blocks_of(4096);
        append(&store, "a", &[1]).await.unwrap();
        plan.clear();
        append(&store, "a", &[2]).await.unwrap();
        let calls: Vec<_> = (1..=plan.calls()).map_while(|n| plan.name(n)).collect();
        let want = ["try_lock", "stat_by_path", "stat", "append", "sync_data", "check_length", "check_alive", "unlock"];
        assert_eq!(calls, want);
    });
}

/// Broken, lines could be acknowledged that have no place on the disk: because the block before theirs has one, or because what
/// others have written, or what was cut off, had one.
#[test]
fn whoever_wants_a_new_block_is_looked_at() {
    runtime().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let (store, plan) = faulty(dir.path());
        plan.blocks_of(512);
        let path = dir.path().join("a.jsonl");
        let is_looked_at = async |id: u32| {
            plan.clear();
            append(&store, "a", &[id]).await.unwrap();
            let (looked, measured) = (plan.count("check_stored"), plan.count("check_length"));
            assert_eq!(looked + measured, 1);
            looked == 1
        };
        let mut beyond = [0; 2];
        let mut len = 0_u64;
        for id in 0..200 {
            let looked = is_looked_at(id).await;
            let new_len = std::fs::metadata(&path).unwrap().len();
            let new_block = len == 0 || new_len > len.next_multiple_of(512);
            assert_eq!(looked, new_block, "{id}: from {len} to {new_len}");
            beyond[usize::from(new_block)] += 1;
            len = new_len;
        }
        assert!(beyond[0] > 100 && beyond[1] > 1, "{beyond:?}");
        // Somebody else writes behind our lines, in their block.
        std::fs::File::options().append(true).open(&path).unwrap().write_all(b"{}\n").unwrap();
        assert!(is_looked_at(1000).await);
        assert!(!is_looked_at(1001).await);
        // A write is taken back, and with it the blocks that it may have had.
        plan.set(4, Fault::ShortWrite);
        append(&store, "a", &[1002; 100]).await.unwrap_err();
        assert!(is_looked_at(1003).await);
        // Somebody cuts the file.
        std::fs::File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
        assert!(is_looked_at(1006).await);
    });
}

/// Broken, a file that somebody cut during a sync would be acknowledged, made longer again with zeros, or end in a panic.
#[test]
fn a_file_that_is_cut_during_a_sync_is_not_acknowledged() {
    runtime().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let (store, plan) = faulty(dir.path());
        append(&store, "a", &[1]).await.unwrap();
        plan.hold_syncs();
        let cut = begin(&store, "a", 2);
        plan.wait_held(1);
        std::fs::File::options().write(true).open(dir.path().join("a.jsonl")).unwrap().set_len(3).unwrap();
        plan.let_syncs_go();
        let error = cut.await.unwrap().unwrap_err();
        assert_eq!(error.written(), Written::Maybe, "{error:?}");
        assert_eq!(content(dir.path(), "a").len(), 3);
    });
}

/// Broken, events would be acknowledged whose sync heard nothing of a failure that another thread was told of.
#[test]
fn a_failed_sync_casts_doubt_on_what_is_under_way_and_on_nothing_else() {
    runtime().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let (store, plan) = faulty(dir.path());
        for domain in ["a", "b", "quiet"] {
            append(&store, domain, &[1]).await.unwrap();
        }
        plan.hold_syncs();
        let answers = ["a", "b"].map(|domain| begin(&store, domain, 2));
        plan.wait_held(2);
        plan.slow_syncs(Duration::from_millis(200));
        plan.fail_next("sync_data", Fault::Errno(EIO));
        plan.let_syncs_go();
        let mut told = Vec::new();
        for answer in answers {
            let error = answer.await.unwrap().unwrap_err();
            assert_eq!(error.written(), Written::Maybe, "{error:?}");
            told.push(error.label());
        }
        told.sort_unstable();
        assert_eq!(told, ["doubt", "sync"]);
        plan.slow_syncs(Duration::ZERO);
        for domain in ["a", "b"] {
            assert_eq!(ids(dir.path(), domain), [1], "{domain}");
            assert!(matches!(append(&store, domain, &[3]).await, Err(StoreError::Poisoned { .. })));
        }
        assert_eq!(store.health().poisoned_domains, 2);
        append(&store, "quiet", &[2]).await.unwrap();
        assert_eq!(plan.probes(), 1);
        assert!(store.health().disk_proven);
    });
}

/// Broken, appends would go on onto a file system that brings nothing to the disk any more, or never again.
#[test]
fn after_a_failed_sync_nothing_is_written_before_a_probe_succeeds() {
    runtime().block_on(async {
        for fsync in [Fsync::Always, Fsync::EverySecond] {
            let dir = tempfile::tempdir().unwrap();
            let (store, plan) = faulty_with(dir.path(), options(fsync));
            let upkeep = tokio::spawn({
                let store = store.clone();
                async move { store.maintain().await }
            });
            append(&store, "a", &[1]).await.unwrap();
            append(&store, "b", &[1]).await.unwrap();
            in_time(store.drained()).await;
            plan.fail_probes(Some(EIO));
            plan.fail_next("sync_data", Fault::Errno(EIO));
            let _ = append(&store, "a", &[2]).await;
            in_time(store.drained()).await;
            plan.clear();
            let error = append(&store, "b", &[2]).await.unwrap_err();
            assert!(matches!(error, StoreError::Unproven) && error.written() == Written::No, "{fsync:?}: {error:?}");
            assert_eq!(plan.count("append"), plan.count("sync_side"), "nothing but the marker was written");
            assert_eq!(ids(dir.path(), "b"), [1]);
            assert!(!store.health().disk_proven);
            plan.fail_probes(None);
            wait_for("the next probe succeeds", PATIENCE, || store.health().disk_proven.then_some(()));
            append(&store, "b", &[3]).await.unwrap();
            upkeep.abort();
        }
    });
}
