//! The store against a disk that fails: for every call that an append makes, and every way it can
//! fail, acknowledged lines are there, nothing is half there, and nothing else is claimed.

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use leitstand::domain::Domain;
use leitstand::event::{Batch, Format, check_line};
use leitstand::metrics::StoreMetrics;
use leitstand::storage::{Disk, Fsync, RealDisk, Store, StoreError, StoreOptions, TORN_DIR, Written};

use crate::faulty::{Fault, FaultyDisk, Plan};
use crate::support::{PATIENCE, in_time, wait_for};

const EIO: i32 = 5;
const EACCES: i32 = 13;
const EMFILE: i32 = 24;
const EFBIG: i32 = 27;
const ENOSPC: i32 = 28;
const EROFS: i32 = 30;
const EDQUOT: i32 = 122;

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

pub fn options(fsync: Fsync) -> StoreOptions {
    StoreOptions { fsync, lock_timeout: Duration::from_millis(300), reserve_bytes: Some(0), ..StoreOptions::default() }
}

pub fn faulty(dir: &Path) -> (Store<FaultyDisk>, Arc<Plan>) {
    faulty_with(dir, options(Fsync::Always))
}

pub fn faulty_with(dir: &Path, options: StoreOptions) -> (Store<FaultyDisk>, Arc<Plan>) {
    let (disk, plan) = FaultyDisk::open(dir);
    plan.clear();
    (Store::new(disk, options, StoreMetrics::new()), plan)
}

/// One event is little, and two go in two pieces.
pub fn options_for_pieces() -> StoreOptions {
    StoreOptions { piece_bytes_max: 40, ..options(Fsync::Always) }
}

/// Makes the domain `b` a neighbour for whom large groups go in pieces.
pub async fn write_little_often(store: &Store<FaultyDisk>) {
    for _ in 0..10 {
        append(store, "b", &[1]).await.unwrap();
    }
}

pub(crate) fn batch(domain: &str, ids: &[u32]) -> Batch {
    let text: String = ids.iter().map(|id| format!("{{\"id\":{id}}}\n")).collect();
    Batch::parse(&text, Format::Lines, Some(Domain::parse(domain).unwrap())).unwrap().unwrap()
}

pub async fn append<D: Disk>(store: &Store<D>, domain: &str, ids: &[u32]) -> Result<(), StoreError> {
    in_time(store.append(batch(domain, ids), store.reserve(1)?)).await
}

pub fn content(dir: &Path, domain: &str) -> String {
    std::fs::read_to_string(dir.join(format!("{domain}.jsonl"))).unwrap_or_default()
}

/// The ids in a file, after checking that every line is whole and sound.
pub fn ids(dir: &Path, domain: &str) -> Vec<u32> {
    let text = content(dir, domain);
    assert!(text.is_empty() || text.ends_with('\n'), "torn: {text:?}");
    let parsed = Domain::parse(domain).unwrap();
    text.lines()
        .map(|line| {
            check_line(line, &parsed).unwrap_or_else(|e| panic!("{e}: {line:?}"));
            serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_u64().unwrap() as u32
        })
        .collect()
}

/// What every test here asserts in the end: `acked` once each and in order, `unsure` at most once,
/// nothing else.
fn assert_promise(dir: &Path, domain: &str, acked: &[u32], unsure: &[u32], case: &str) {
    let found = ids(dir, domain);
    let sure: Vec<u32> = found.iter().copied().filter(|id| acked.contains(id)).collect();
    assert_eq!(sure, acked, "{case}: acknowledged lines, found {found:?}");
    for id in found.iter().filter(|id| !acked.contains(id)) {
        assert!(unsure.contains(id), "{case}: {id} was refused as not written, found {found:?}");
        assert_eq!(found.iter().filter(|other| *other == id).count(), 1, "{case}: {id} is doubled");
    }
}

/// Runs `scenario` once to count its disk calls, then once per call with that call failing.
fn for_every_call(
    faults: &[Fault],
    scenario: impl AsyncFn(&Path, &Store<FaultyDisk>, &Plan, Option<(usize, Fault)>, &str),
) {
    for_every_call_with(&options(Fsync::Always), faults, scenario);
}

fn for_every_call_with(
    options: &StoreOptions,
    faults: &[Fault],
    scenario: impl AsyncFn(&Path, &Store<FaultyDisk>, &Plan, Option<(usize, Fault)>, &str),
) {
    let runtime = runtime();
    runtime.block_on(async {
        let count = {
            let dir = tempfile::tempdir().unwrap();
            let (store, plan) = faulty_with(dir.path(), options.clone());
            scenario(dir.path(), &store, &plan, None, "no fault").await;
            plan.calls()
        };
        assert!(count >= 6, "the scenario makes {count} calls");
        for &fault in faults {
            for at in 1..=count {
                let dir = tempfile::tempdir().unwrap();
                let (store, plan) = faulty_with(dir.path(), options.clone());
                scenario(dir.path(), &store, &plan, Some((at, fault)), &format!("{fault:?} at call {at} of {count}"))
                    .await;
            }
        }
    });
}

fn arm(plan: &Plan, fault: Option<(usize, Fault)>) {
    match fault {
        Some((at, fault)) => plan.set(at, fault),
        None => plan.clear(),
    }
}

/// After a fault the store either goes on or says why not; what it acknowledged is there.
async fn check_after_fault(
    dir: &Path,
    store: &Store<FaultyDisk>,
    plan: &Plan,
    result: Result<(), StoreError>,
    acked: &mut Vec<u32>,
    case: &str,
) {
    let mut unsure = Vec::new();
    let failed_call = plan.name(plan.calls().min(64)).unwrap_or("none");
    match &result {
        Ok(()) => acked.extend([10, 11]),
        Err(e) if e.written() == Written::Maybe => unsure.extend([10, 11]),
        Err(_) => {}
    }
    plan.clear();
    let again = append(store, "a", &[20]).await;
    match (&result, &again) {
        (Err(e), Err(StoreError::Poisoned { .. })) if e.written() == Written::Maybe => {}
        (_, Ok(())) => acked.push(20),
        (_, Err(e)) => panic!("{case} ({failed_call}): does not recover: {e}, after {result:?}"),
    }
    if let Err(e) = &result {
        assert!(!matches!(e, StoreError::Panicked), "{case}: {e}");
    }
    assert_promise(dir, "a", acked, &unsure, case);
}

/// Broken: some error path would lose, tear or double a line, or leave the domain stuck.
#[test]
fn any_failing_call_leaves_the_file_sound() {
    let errnos = [EIO, ENOSPC, EDQUOT, EFBIG, EACCES, EMFILE, EROFS].map(Fault::Errno);
    for_every_call(&[&errnos[..], &[Fault::ShortWrite]].concat(), async |dir, store, plan, fault, case| {
        let mut acked = vec![1];
        append(store, "a", &[1]).await.unwrap();
        arm(plan, fault);
        let result = append(store, "a", &[10, 11]).await;
        check_after_fault(dir, store, plan, result, &mut acked, case).await;
    });
}

/// Broken: the first append to a domain would have an error path of its own that lies.
#[test]
fn any_failing_call_of_a_first_append_leaves_the_file_sound() {
    let faults = [EIO, ENOSPC, EACCES, EMFILE].map(Fault::Errno);
    for_every_call(&[&faults[..], &[Fault::ShortWrite]].concat(), async |dir, store, plan, fault, case| {
        arm(plan, fault);
        let result = append(store, "a", &[10, 11]).await;
        check_after_fault(dir, store, plan, result, &mut Vec::new(), case).await;
    });
}

/// Broken: the repair of a torn tail could lose the sound part, or the torn bytes.
#[test]
fn any_failing_call_of_a_repair_loses_nothing() {
    let faults = [EIO, ENOSPC].map(Fault::Errno);
    for_every_call(&[&faults[..], &[Fault::ShortWrite]].concat(), async |dir, store, plan, fault, case| {
        std::fs::write(dir.join("a.jsonl"), "{\"id\":1,\"domain\":\"a\"}\n{\"id\":2,\"dom").unwrap();
        arm(plan, fault);
        let result = append(store, "a", &[10, 11]).await;
        check_after_fault(dir, store, plan, result, &mut vec![1], case).await;
        let kept = std::fs::read_dir(dir.join(TORN_DIR)).unwrap().map(|e| std::fs::read(e.unwrap().path()).unwrap());
        assert!(kept.into_iter().any(|bytes| bytes == b"{\"id\":2,\"dom"), "{case}: torn bytes are kept");
    });
}

/// Broken: a process that dies at the n-th call would leave something that the next one makes
/// worse, or would have acknowledged what is not there.
#[test]
fn a_process_that_dies_at_any_call_keeps_its_promise() {
    for_every_call(&[Fault::Freeze, Fault::FreezeTorn], async |dir, store, plan, fault, case| {
        let mut acked = vec![1];
        append(store, "a", &[1]).await.unwrap();
        arm(plan, fault);
        let result = append(store, "a", &[10, 11]).await;
        let unsure = if result.is_ok() { vec![] } else { vec![10, 11] };
        if result.is_ok() {
            acked.extend([10, 11]);
        }
        if fault.is_none() {
            return;
        }
        // The next process, on a sound disk.
        let next = Store::new(RealDisk::open(dir).unwrap(), options(Fsync::Always), StoreMetrics::new());
        append(&next, "a", &[20]).await.unwrap_or_else(|e| panic!("{case}: {e}"));
        acked.push(20);
        assert_promise(dir, "a", &acked, &unsure, case);
    });
}

/// Broken: a group in pieces would be acknowledged or kept in part, or an error after the first piece
/// would tell less than the truth.
#[test]
fn any_failing_call_of_an_append_in_pieces_leaves_the_file_sound() {
    let errnos = [EIO, ENOSPC, EDQUOT].map(Fault::Errno);
    let faults = [&errnos[..], &[Fault::ShortWrite, Fault::WriteThenResize(0)]].concat();
    for_every_call_with(&options_for_pieces(), &faults, async |dir, store, plan, fault, case| {
        let mut acked = vec![1];
        append(store, "a", &[1]).await.unwrap();
        write_little_often(store).await;
        arm(plan, fault);
        let result = append(store, "a", &[10, 11]).await;
        if fault.is_none() {
            assert_eq!((plan.count("append"), plan.count("sync_data")), (2, 2));
        }
        if result.is_err() && !plan.saw("sync_data") {
            assert_eq!(ids(dir, "a"), acked, "{case}");
        }
        check_after_fault(dir, store, plan, result, &mut acked, case).await;
    });
}

/// Broken: a process that dies between two pieces would leave what the next one makes worse.
#[test]
fn a_process_that_dies_between_pieces_keeps_its_promise() {
    for_every_call_with(
        &options_for_pieces(),
        &[Fault::Freeze, Fault::FreezeTorn],
        async |dir, store, plan, fault, case| {
            append(store, "a", &[1]).await.unwrap();
            write_little_often(store).await;
            arm(plan, fault);
            let mut acked = vec![1];
            let unsure = match append(store, "a", &[10, 11]).await {
                Ok(()) => {
                    acked.extend([10, 11]);
                    vec![]
                }
                Err(_) => vec![10, 11],
            };
            if fault.is_none() {
                return;
            }
            let next = Store::new(RealDisk::open(dir).unwrap(), options(Fsync::Always), StoreMetrics::new());
            append(&next, "a", &[20]).await.unwrap_or_else(|e| panic!("{case}: {e}"));
            acked.push(20);
            assert_promise(dir, "a", &acked, &unsure, case);
        },
    );
}

/// Broken: small syncs would wait behind a whole group of another domain; or a group would be synced
/// often where nobody waits, where syncs are slow, or where none is due.
#[test]
fn a_group_goes_in_pieces_only_while_others_write_little() {
    runtime().block_on(async {
        let many: Vec<u32> = (10..17).collect();
        let dir = tempfile::tempdir().unwrap();
        let (store, plan) = faulty_with(dir.path(), options_for_pieces());
        for id in [1, 2] {
            append(&store, "a", &[id, id]).await.unwrap();
        }
        plan.clear();
        append(&store, "a", &many).await.unwrap();
        assert_eq!((plan.count("append"), plan.count("sync_data")), (1, 1), "nobody wrote little");
        append(&store, "a", &[3]).await.unwrap();
        plan.clear();
        append(&store, "a", &many).await.unwrap();
        assert_eq!((plan.count("append"), plan.count("sync_data")), (1, 1), "nobody else wrote little");
        write_little_often(&store).await;
        plan.slow_syncs(Duration::from_millis(3));
        plan.clear();
        append(&store, "a", &many).await.unwrap();
        // One line, then two at once, then what is left.
        assert_eq!((plan.count("append"), plan.count("sync_data")), (3, 3));
        plan.clear();
        append(&store, "a", &[3]).await.unwrap();
        assert_eq!(plan.count("read_at"), 0, "the length after the last piece is known");

        let options = StoreOptions { fsync: Fsync::EverySecond, ..options_for_pieces() };
        let (store, plan) = faulty_with(dir.path(), options);
        append(&store, "b", &[2]).await.unwrap();
        plan.clear();
        append(&store, "a", &many).await.unwrap();
        assert_eq!((plan.count("append"), plan.count("sync_data")), (1, 0));
    });
}

/// Appends `id` to `domain` without waiting for the answer. So much that a thread of its own writes it if
/// the others sync.
pub fn begin(store: &Store<FaultyDisk>, domain: &str, id: u32) -> tokio::task::JoinHandle<Result<(), StoreError>> {
    let text = format!("{{\"id\":{id},\"text\":\"{}\"}}\n", "x".repeat(20_000));
    let batch = Batch::parse(&text, Format::Lines, Some(Domain::parse(domain).unwrap())).unwrap().unwrap();
    let store = store.clone();
    tokio::spawn(async move { in_time(store.append(batch, store.reserve(1)?)).await })
}

/// Waits until a file holds a line with that id, synced or not.
fn wait_written(dir: &Path, domain: &str, id: u32) {
    let line = format!("{{\"id\":{id},");
    wait_for("the line is in the file", PATIENCE, || content(dir, domain).contains(&line).then_some(()));
}

fn lock_is_free(dir: &Path, domain: &str) -> bool {
    let lock = std::fs::File::open(dir.join(format!("{domain}.jsonl.lock"))).unwrap();
    fs4::FileExt::try_lock(&lock).is_ok()
}

/// Broken, a disk that takes its time would be idle while the next group is made ready; or a group
/// would be acknowledged with the sync of the one before.
#[test]
fn the_next_group_is_written_while_one_is_synced_and_needs_a_sync_of_its_own() {
    runtime().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let (store, plan) = faulty(dir.path());
        append(&store, "a", &[1]).await.unwrap();
        plan.clear();
        plan.hold_syncs();
        let first = begin(&store, "a", 2);
        plan.wait_held(1);
        let behind = [3, 4].map(|id| begin(&store, "a", id));
        wait_written(dir.path(), "a", 3);
        wait_written(dir.path(), "a", 4);
        assert!(!first.is_finished() && behind.iter().all(|answer| !answer.is_finished()));
        assert_eq!(plan.count("sync_data"), 0);
        assert!(!lock_is_free(dir.path(), "a"), "a foreign writer must not come in between");
        plan.let_syncs_go();
        first.await.unwrap().unwrap();
        for answer in behind {
            answer.await.unwrap().unwrap();
        }
        assert_eq!(plan.count("sync_data"), 2, "one for the first, one for both behind it");
        assert!(lock_is_free(dir.path(), "a"));
        assert_eq!(ids(dir.path(), "a").len(), 4);
    });
}

/// Broken, what was written behind a group whose sync failed would be acknowledged by a later sync,
/// which says nothing about it; or lines that nobody acknowledged would stay.
#[test]
fn a_failed_sync_takes_what_was_written_behind_it() {
    runtime().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let (store, plan) = faulty(dir.path());
        append(&store, "a", &[1]).await.unwrap();
        plan.hold_syncs();
        let first = begin(&store, "a", 2);
        plan.wait_held(1);
        let behind = begin(&store, "a", 3);
        wait_written(dir.path(), "a", 3);
        plan.clear();
        plan.fail_next("sync_data", Fault::Errno(EIO));
        plan.let_syncs_go();
        for answer in [first, behind] {
            let error = answer.await.unwrap().unwrap_err();
            assert!(matches!(error, StoreError::Sync { .. }) && error.written() == Written::Maybe, "{error:?}");
        }
        assert_eq!(plan.count("sync_data"), 1 + plan.count("sync_side"), "only the marker was synced after it");
        assert_eq!(ids(dir.path(), "a"), [1]);
        assert!(lock_is_free(dir.path(), "a"));
        let error = append(&store, "a", &[4]).await.unwrap_err();
        assert!(matches!(error, StoreError::Poisoned { .. }), "{error:?}");
        assert_eq!(store.health().poisoned_domains, 1);
        append(&store, "b", &[1]).await.unwrap();
    });
}

/// Broken, a write that fails would take a group with it that is being synced, or hide that its sync
/// failed: the kernel tells of that only once.
#[test]
fn a_write_that_fails_behind_a_group_waits_for_its_sync() {
    runtime().block_on(async {
        for (sync_fails, left) in [(false, vec![1, 2]), (true, vec![1])] {
            let dir = tempfile::tempdir().unwrap();
            let (store, plan) = faulty(dir.path());
            append(&store, "a", &[1]).await.unwrap();
            plan.hold_syncs();
            let first = begin(&store, "a", 2);
            plan.wait_held(1);
            plan.clear();
            plan.fail_next("append", Fault::Errno(ENOSPC));
            let behind = begin(&store, "a", 3);
            wait_for("the write is tried", PATIENCE, || plan.saw("append").then_some(()));
            assert!(!behind.is_finished() && plan.count("set_len") == 0);
            if sync_fails {
                plan.fail_next("sync_data", Fault::Errno(EIO));
            }
            plan.let_syncs_go();
            let (first, behind) = (first.await.unwrap(), behind.await.unwrap());
            assert_eq!(first.is_ok(), !sync_fails);
            let error = behind.unwrap_err();
            let want = if sync_fails { Written::Maybe } else { Written::No };
            assert_eq!(error.written(), want, "{error:?}");
            assert_eq!(ids(dir.path(), "a"), left);
        }
    });
}

/// Broken, a panic in a sync would leave its clients without an answer, or the domain as if all
/// were well, or nobody would sync what comes after it.
#[test]
fn a_panic_in_a_sync_poisons_its_domain_and_no_other() {
    runtime().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let (store, plan) = faulty(dir.path());
        let at = call_of_append(&store, &plan, "sync_data").await;
        append(&store, "b", &[1]).await.unwrap();
        plan.set(at, Fault::Panic);
        let error = append(&store, "a", &[3]).await.unwrap_err();
        assert!(matches!(error, StoreError::Panicked), "{error:?}");
        plan.clear();
        assert!(matches!(append(&store, "a", &[4]).await, Err(StoreError::Poisoned { .. })));
        append(&store, "b", &[2]).await.unwrap();
        assert_eq!(store.health().poisoned_domains, 1);
    });
}

/// Three domains with a group afloat each, while the sync of a fourth is held.
async fn three_afloat(
    dir: &Path,
    store: &Store<FaultyDisk>,
    plan: &Plan,
    id: u32,
) -> Vec<tokio::task::JoinHandle<Result<(), StoreError>>> {
    for domain in ["first", "a", "b", "c"] {
        append(store, domain, &[1]).await.unwrap();
    }
    plan.sync_together();
    plan.hold_syncs();
    let first = begin(store, "first", id);
    plan.wait_held(1);
    let mut answers = vec![first];
    for domain in ["a", "b", "c"] {
        answers.push(begin(store, domain, id));
        wait_written(dir, domain, id);
    }
    plan.clear();
    answers
}

/// Broken, each of many domains would need a sync of its own, or an answer would come without any.
#[test]
fn domains_that_wait_are_synced_with_one_call() {
    runtime().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let (store, plan) = faulty(dir.path());
        let answers = three_afloat(dir.path(), &store, &plan, 2).await;
        assert!(answers.iter().all(|answer| !answer.is_finished()));
        plan.let_syncs_go();
        for answer in answers {
            answer.await.unwrap().unwrap();
        }
        // Where the file system of the tests has no such call, each is synced by itself after all; else the
        // first of them, for its flush.
        assert_eq!(plan.count("sync_all"), 1);
        assert!([2, 4].contains(&plan.count("sync_data")), "{}", plan.count("sync_data"));
    });
}

/// Broken, a failed sync of all would count as one of each, or poison domains that are sound; or what was synced beside a
/// file whose own sync failed would be taken for stored.
#[test]
fn after_a_failed_sync_of_all_each_file_tells_its_own_story() {
    runtime().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let (store, plan) = faulty(dir.path());
        let answers = three_afloat(dir.path(), &store, &plan, 2).await;
        plan.fail_next("sync_all", Fault::Errno(EIO));
        plan.let_syncs_go();
        for answer in answers {
            answer.await.unwrap().unwrap();
        }
        assert_eq!((plan.count("sync_all"), plan.count("sync_data")), (1, 4));

        let answers = three_afloat(dir.path(), &store, &plan, 3).await;
        plan.fail_next("sync_all", Fault::Errno(EIO));
        plan.fail_nth("sync_data", 2, Fault::Errno(EIO));
        plan.let_syncs_go();
        let mut failed = 0;
        for answer in answers {
            failed += usize::from(answer.await.unwrap().is_err());
        }
        assert_eq!((failed, store.health().poisoned_domains), (3, 3), "the domains of the round, and not the first");
    });
}

/// Broken: a failed sync could be retried into a success (fsyncgate), or forgotten.
#[test]
fn a_failed_sync_poisons_until_the_file_is_replaced() {
    runtime().block_on(async {
        for sync in ["sync_data", "sync_root"] {
            let dir = tempfile::tempdir().unwrap();
            let (store, plan) = faulty(dir.path());
            append(&store, "a", &[1]).await.unwrap();
            // A first append syncs the directory too: use a new domain for that.
            let domain = if sync == "sync_root" { "b" } else { "a" };
            plan.clear();
            append(&store, if domain == "a" { "a" } else { "c" }, &[2]).await.unwrap();
            let at = (1..=plan.calls()).find(|&n| plan.name(n) == Some(sync)).unwrap();
            plan.set(at, Fault::Errno(EIO));
            let error = append(&store, domain, &[3]).await.unwrap_err();
            assert!(matches!(error, StoreError::Sync { .. }) && error.written() == Written::Maybe, "{error:?}");
            plan.clear();
            for id in 4..8 {
                let error = append(&store, domain, &[id]).await.unwrap_err();
                assert!(matches!(error, StoreError::Poisoned { .. }) && error.written() == Written::No, "{error:?}");
            }
            assert_eq!(store.health().poisoned_domains, 1);
            append(&store, "untouched", &[1]).await.unwrap();
            // What the runbook says: put a synced copy in its place.
            let path = dir.path().join(format!("{domain}.jsonl"));
            std::fs::copy(&path, dir.path().join(".new")).unwrap();
            std::fs::rename(dir.path().join(".new"), &path).unwrap();
            append(&store, domain, &[9]).await.unwrap();
            assert_eq!(store.health().poisoned_domains, 0);
            assert!(ids(dir.path(), domain).ends_with(&[9]));
        }
    });
}

/// The number of the call `name` in an append to a domain that is open.
async fn call_of_append(store: &Store<FaultyDisk>, plan: &Plan, name: &str) -> usize {
    append(store, "a", &[1]).await.unwrap();
    plan.clear();
    append(store, "a", &[2]).await.unwrap();
    (1..=plan.calls()).find(|&n| plan.name(n) == Some(name)).unwrap()
}

/// Broken: every append would read the end of the file again, which costs time on a large domain.
#[test]
fn a_file_whose_end_is_known_is_not_read_again() {
    runtime().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let (store, plan) = faulty(dir.path());
        call_of_append(&store, &plan, "append").await;
        assert!(!plan.saw("read_at"));
        // Another writer's line makes it unknown once.
        std::fs::OpenOptions::new().append(true).open(dir.path().join("a.jsonl")).unwrap().write_all(b"{}\n").unwrap();
        for reads in [true, false] {
            plan.clear();
            append(&store, "a", &[3]).await.unwrap();
            assert_eq!(plan.saw("read_at"), reads);
        }
    });
}

/// Broken: half a line that could not be cut off again would be told as "nothing was written", and the
/// next event would be glued to it.
#[test]
fn a_roll_back_that_fails_poisons_and_says_so() {
    runtime().block_on(async {
        for (call, is_sync) in [("fstat", false), ("set_len", false), ("sync_data", true)] {
            let dir = tempfile::tempdir().unwrap();
            let (store, plan) = faulty(dir.path());
            let at = call_of_append(&store, &plan, "append").await;
            plan.set(at, Fault::ShortWrite);
            plan.fail_next(call, Fault::Errno(EIO));
            let error = append(&store, "a", &[3]).await.unwrap_err();
            assert_eq!(error.written(), Written::Maybe, "{call}: {error:?}");
            assert_eq!(matches!(error, StoreError::Sync { .. }), is_sync, "{call}: {error:?}");
            plan.clear();
            let error = append(&store, "a", &[4]).await.unwrap_err();
            assert!(matches!(error, StoreError::Poisoned { .. }), "{call}: {error:?}");
            let left = content(dir.path(), "a");
            assert!(left.starts_with("{\"id\":1,\"domain\":\"a\"}\n{\"id\":2,\"domain\":\"a\"}\n"), "{call}: {left:?}");
        }
    });
}

/// Broken: a roll-back would cut off what somebody else wrote, or leave what nobody acknowledged.
#[test]
fn a_roll_back_takes_back_its_own_bytes_and_no_others() {
    runtime().block_on(async {
        let line_bytes = "{\"id\":3,\"domain\":\"a\"}\n".len() as i64;
        for (change, written) in [
            (0, Written::No),
            (-1, Written::No),
            (-line_bytes, Written::No),
            (1, Written::Maybe),
            (100, Written::Maybe),
            (-line_bytes - 1, Written::Maybe),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let (store, plan) = faulty(dir.path());
            let at = call_of_append(&store, &plan, "append").await;
            let before = content(dir.path(), "a");
            plan.set(at, Fault::WriteThenResize(change));
            let error = append(&store, "a", &[3]).await.unwrap_err();
            assert_eq!(error.written(), written, "{change}: {error:?}");
            let after = content(dir.path(), "a");
            if written == Written::No {
                assert_eq!(after, before, "{change}");
                append(&store, "a", &[4]).await.unwrap();
                assert_eq!(ids(dir.path(), "a"), [1, 2, 4], "{change}");
            } else {
                assert!(matches!(error, StoreError::Rollback { .. }), "{change}: {error:?}");
                assert_eq!(
                    after.len() as i64,
                    before.len() as i64 + line_bytes + change,
                    "{change}: it is left as it is"
                );
            }
        }
    });
}

/// Broken: one huge batch on a nearly full disk would fail its small neighbours.
#[test]
fn small_members_of_a_full_group_succeed() {
    runtime().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let (store, plan) = faulty(dir.path());
        append(&store, "a", &[1]).await.unwrap();
        // While a foreign lock is held, a group gathers.
        let lock = std::fs::File::open(dir.path().join("a.jsonl.lock")).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let waiting: Vec<_> = (10..14)
            .map(|id| {
                let store = store.clone();
                tokio::spawn(async move { append(&store, "a", &[id]).await })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(100)).await;
        // The next write is the one of the group.
        plan.fail_next("append", Fault::Errno(ENOSPC));
        drop(lock);
        for task in waiting {
            task.await.unwrap().unwrap();
        }
        let mut found = ids(dir.path(), "a");
        found.sort_unstable();
        assert_eq!(found, [1, 10, 11, 12, 13]);
    });
}

/// Broken: on btrfs a huge batch would take the last room, keep it after it was cut off, and so fail
/// its small neighbours and all that come later.
#[test]
fn a_write_that_has_no_room_is_not_begun_where_that_costs_room() {
    // As long as the file's line, with its newline.
    let line = |bytes: usize| {
        let text = format!("{{\"id\":2,\"p\":\"{}\",\"domain\":\"a\"}}", "x".repeat(bytes - 29));
        Batch::parse(&text, Format::Lines, Some(Domain::parse("a").unwrap())).unwrap().unwrap()
    };
    runtime().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let (store, plan) = faulty(dir.path());
        append(&store, "a", &[1]).await.unwrap();
        let length = content(dir.path(), "a").len();
        plan.set_room(0);
        store.append(line(4096), store.reserve(1).unwrap()).await.unwrap();
        assert_eq!((content(dir.path(), "a").len(), plan.room_looks()), (length + 4096, 0), "no more than a block");
        plan.set_room(5000);
        store.append(line(5000), store.reserve(1).unwrap()).await.unwrap();
        plan.clear();
        let error = store.append(line(5001), store.reserve(1).unwrap()).await.unwrap_err();
        assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
        assert_eq!((plan.count("append"), plan.count("set_len"), plan.count("sync_data")), (0, 0, 0));

        let lock = std::fs::File::open(dir.path().join("a.jsonl.lock")).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let mut waiting: Vec<_> = [10, 11, 12]
            .map(|id| {
                let store = store.clone();
                tokio::spawn(async move { append(&store, "a", &[id]).await })
            })
            .into();
        let huge = store.clone();
        let huge = tokio::spawn(async move { huge.append(line(6000), huge.reserve(1).unwrap()).await });
        waiting.push(tokio::spawn({
            let store = store.clone();
            async move { append(&store, "a", &[13]).await }
        }));
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(lock);
        for task in waiting {
            task.await.unwrap().unwrap();
        }
        assert!(matches!(huge.await.unwrap(), Err(StoreError::Full { .. })));
        assert_eq!((plan.count("append"), plan.count("set_len")), (4, 0), "each small one alone");
        assert_eq!(plan.count("read_at"), 0, "the end of the file was known all the time");
        let mut found = ids(dir.path(), "a");
        found.sort_unstable();
        assert_eq!(found, [1, 2, 2, 10, 11, 12, 13]);
    });
}

/// Broken: a torn tail would glue the next event onto itself, or cost sound lines.
#[test]
fn a_file_cut_at_any_byte_is_repaired_by_the_next_append() {
    let whole = "{\"id\":1,\"domain\":\"a\"}\r\n{\"id\":2,\"t\":\"\u{fc}\u{1f600}\",\"domain\":\"a\"}\n{\"id\":3,\"domain\":\"a\"}\n".to_owned();
    let runtime = runtime();
    for cut in 0..=whole.len() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        let before = &whole.as_bytes()[..cut];
        std::fs::write(&path, before).unwrap();
        let store = Store::new(RealDisk::open(dir.path()).unwrap(), options(Fsync::Always), StoreMetrics::new());
        runtime.block_on(append(&store, "a", &[9])).unwrap();
        let after = std::fs::read(&path).unwrap();
        let sound = before.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        let new = b"{\"id\":9,\"domain\":\"a\"}\n";
        assert!(after.starts_with(&before[..sound]) && after.ends_with(new), "cut {cut}");
        let tail = &before[sound..];
        let middle = &after[sound..after.len() - new.len()];
        let kept: Vec<Vec<u8>> = std::fs::read_dir(dir.path().join(TORN_DIR))
            .map(|dir| dir.map(|e| std::fs::read(e.unwrap().path()).unwrap()).collect())
            .unwrap_or_default();
        if serde_json::from_slice::<serde_json::Value>(tail).is_ok() {
            assert_eq!(middle, [tail, b"\n"].concat(), "cut {cut}: a whole value only lacked its newline");
            assert!(kept.is_empty());
        } else {
            assert!(middle.is_empty(), "cut {cut}");
            let want: Vec<Vec<u8>> = if tail.is_empty() { vec![] } else { vec![tail.to_vec()] };
            assert_eq!(kept, want, "cut {cut}: the cut bytes are kept");
        }
        // Repairing twice changes nothing the second time.
        runtime.block_on(append(&store, "a", &[10])).unwrap();
        assert!(std::fs::read(&path).unwrap().starts_with(&after));
    }
}

/// Broken: odd tails (zeros of delayed allocation, binary, a huge half line) would stop appends.
#[test]
fn odd_tails_are_moved_aside_whole() {
    let runtime = runtime();
    let huge = [b"{\"x\":\"".to_vec(), vec![b'y'; 300_000]].concat();
    for tail in [&b"\0\0\0\0\0"[..], b"\xff\xfe", b"{\"a\":NaN}", b"\r", b" ", b"{\"a\":1}x", &huge] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        let sound = b"{\"id\":1,\"domain\":\"a\"}\n";
        std::fs::write(&path, [sound, tail].concat()).unwrap();
        let store = Store::new(RealDisk::open(dir.path()).unwrap(), options(Fsync::Always), StoreMetrics::new());
        runtime.block_on(append(&store, "a", &[2])).unwrap();
        assert_eq!(ids(dir.path(), "a"), [1, 2]);
        let kept = std::fs::read_dir(dir.path().join(TORN_DIR)).unwrap().next().unwrap().unwrap().path();
        assert_eq!(std::fs::read(&kept).unwrap(), tail);
        assert!(kept.extension().is_none_or(|e| e != "jsonl"), "side files never end in .jsonl");
    }
}

/// Broken: a file system that gives a read in pieces would have torn bytes kept that were never there.
#[test]
fn short_reads_are_put_together() {
    let dir = tempfile::tempdir().unwrap();
    let torn = b"{\"id\":2,\"text\":\"half a line";
    std::fs::write(dir.path().join("a.jsonl"), [b"{\"id\":1,\"domain\":\"a\"}\n", &torn[..]].concat()).unwrap();
    let (store, plan) = faulty(dir.path());
    plan.read_at_most(7);
    runtime().block_on(append(&store, "a", &[3])).unwrap();
    assert_eq!(ids(dir.path(), "a"), [1, 3]);
    let kept = std::fs::read_dir(dir.path().join(TORN_DIR)).unwrap().next().unwrap().unwrap().path();
    assert_eq!(std::fs::read(kept).unwrap(), torn);
}

/// Broken: the last event of a large file would be moved aside although only its newline is missing.
#[test]
fn a_whole_last_line_far_from_the_start_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.jsonl");
    // Longer than any tail that is looked at, but sparse.
    let mut file = std::fs::File::create(&path).unwrap();
    file.seek(SeekFrom::Start(70 << 20)).unwrap();
    file.write_all(b"\n{\"id\":1,\"domain\":\"a\"}").unwrap();
    let store = Store::new(RealDisk::open(dir.path()).unwrap(), options(Fsync::Always), StoreMetrics::new());
    runtime().block_on(append(&store, "a", &[2])).unwrap();
    let mut end = String::new();
    let mut file = std::fs::File::open(&path).unwrap();
    file.seek(SeekFrom::Start(70 << 20)).unwrap();
    file.read_to_string(&mut end).unwrap();
    assert_eq!(end, "\n{\"id\":1,\"domain\":\"a\"}\n{\"id\":2,\"domain\":\"a\"}\n");
    assert!(!dir.path().join(TORN_DIR).exists());
}

/// Broken: a service with many domains would run out of descriptors.
#[test]
fn files_of_no_more_domains_than_said_stay_open() {
    runtime().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions { open_domains_max: 3, ..options(Fsync::Always) };
        let store = Store::new(RealDisk::open(dir.path()).unwrap(), options, StoreMetrics::new());
        let root = dir.path().canonicalize().unwrap();
        let open_files = || {
            let links = std::fs::read_dir("/proc/self/fd")
                .unwrap()
                .filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
            links.filter(|path| path.starts_with(&root) && *path != root).count()
        };
        for (n, domain) in ["a", "b", "c", "d", "e", "f"].into_iter().enumerate() {
            append(&store, domain, &[1]).await.unwrap();
            let want = 3.min(n + 1);
            // The writer closes its files, two for each domain, when it comes to rest just after the answer.
            wait_for("files are closed", PATIENCE, || {
                (store.health().open_domains == want && open_files() == 2 * want).then_some(())
            });
        }
        assert_eq!(store.health().known_domains, 6);
    });
}

/// Broken: nobody would notice a Python writer that waits for the lock of a busy domain.
#[test]
fn a_busy_writer_asks_who_wants_its_lock() {
    runtime().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let (store, plan) = faulty(dir.path());
        // Held for longer than it is free between two requests, however fast the disk and slow the test.
        plan.slow_syncs(Duration::from_millis(5));
        let began = Instant::now();
        while plan.asked().is_empty() {
            assert!(began.elapsed() < PATIENCE);
            append(&store, "a", &[1]).await.unwrap();
        }
        assert_eq!(plan.asked(), ["a.jsonl.lock"]);
    });
}

/// Broken: a sync, or a long write, would stop every connection of its thread; or each small write
/// would wake another thread.
#[test]
fn syncs_and_large_groups_are_written_elsewhere() {
    let one_thread = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // What stands around the payload in its line.
    let around = "{\"p\":\"\",\"domain\":\"a\"}\n".len();
    for (fsync, bytes, here) in [
        (Fsync::Always, 100, false),
        (Fsync::Never, 100, true),
        (Fsync::Never, 64 << 10, true),
        (Fsync::Never, (64 << 10) + 1, false),
        (Fsync::EverySecond, 100, true),
        (Fsync::EverySecond, 1 << 20, false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (disk, plan) = FaultyDisk::open(dir.path());
        let store = Store::new(disk, options(fsync), StoreMetrics::new());
        let text = format!("{{\"p\":\"{}\"}}", "x".repeat(bytes - around));
        let batch = Batch::parse(&text, Format::Document, Some(Domain::parse("a").unwrap())).unwrap().unwrap();
        assert_eq!(batch.lines().len(), bytes);
        one_thread.block_on(async { store.append(batch, store.reserve(1).unwrap()).await }).unwrap();
        assert_eq!(plan.wrote_on() == Some(std::thread::current().id()), here, "{fsync:?}, {bytes} bytes");
    }
}

/// Broken: one write would carry everything that has queued, whatever its length.
#[test]
fn a_group_has_at_most_four_mebibytes_and_at_least_one_batch() {
    runtime().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let (disk, plan) = FaultyDisk::open(dir.path());
        let options = StoreOptions { lock_timeout: PATIENCE, piece_bytes_max: usize::MAX, ..options(Fsync::Always) };
        let store = Store::new(disk, options, StoreMetrics::new());
        append(&store, "a", &[1]).await.unwrap();
        let lock = std::fs::File::open(dir.path().join("a.jsonl.lock")).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let text = format!("{{\"p\":\"{}\"}}", "x".repeat(3 << 19));
        let waiting: Vec<_> = [1, 1, 1, 4]
            .map(|times| {
                let text = format!("[{}]", vec![text.as_str(); times].join(","));
                let batch = Batch::parse(&text, Format::Document, Some(Domain::parse("a").unwrap())).unwrap().unwrap();
                let store = store.clone();
                tokio::spawn(async move { store.append(batch, store.reserve(1)?).await })
            })
            .into();
        wait_for("all wait", PATIENCE, || (store.health().queued_requests == 4).then_some(()));
        plan.clear();
        drop(lock);
        for task in waiting {
            task.await.unwrap().unwrap();
        }
        assert_eq!(plan.count("append"), 3, "two and one of 1.5 MiB, one of 6 MiB");
    });
}

/// Broken: a batch that does not fit would be written and taken back twice.
#[test]
fn a_lone_batch_that_does_not_fit_is_tried_once() {
    runtime().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let (store, plan) = faulty(dir.path());
        let at = call_of_append(&store, &plan, "append").await;
        plan.set(at, Fault::Errno(ENOSPC));
        let error = append(&store, "a", &[3]).await.unwrap_err();
        assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
        assert_eq!(plan.count("append"), 1);
    });
}

/// Broken: the last bytes of a disk would be used up, or appends refused with space left.
#[test]
fn a_default_reserve_is_a_hundredth_and_at_most_64_mebibytes() {
    const MIB: u64 = 1 << 20;
    runtime().block_on(async {
        for (total, reserve) in [(1000 * MIB, 10 * MIB), (6400 * MIB, 64 * MIB), (1 << 40, 64 * MIB)] {
            for (free, enough) in [(reserve, true), (reserve - 1, false)] {
                let dir = tempfile::tempdir().unwrap();
                let (disk, plan) = FaultyDisk::open(dir.path());
                plan.clear();
                plan.set_space(free, total);
                let options = StoreOptions { reserve_bytes: None, ..options(Fsync::Always) };
                let store = Store::new(disk, options, StoreMetrics::new());
                assert_eq!(store.health().above_reserve, enough, "{free} of {total}");
                let result = append(&store, "a", &[1]).await;
                assert_eq!(result.is_ok(), enough, "{free} of {total}: {result:?}");
                // As soon as there is room again it goes on.
                plan.set_space(reserve, total);
                append(&store, "a", &[2]).await.unwrap();
            }
        }
    });
}

/// Broken: a budget that was set too small would refuse every request.
#[test]
fn the_budget_is_never_less_than_a_mebibyte() {
    let dir = tempfile::tempdir().unwrap();
    for (set, got) in [(0, 1 << 20), ((1 << 20) + 1, (1 << 20) + 1)] {
        let options = StoreOptions { in_flight_bytes_max: set, ..options(Fsync::Always) };
        let store = Store::new(RealDisk::open(dir.path()).unwrap(), options, StoreMetrics::new());
        assert_eq!(store.health().in_flight_bytes_max, got);
    }
}

/// Broken: each append would ask for the free space, or none would after the first.
#[test]
fn free_space_is_looked_at_a_few_times_a_second() {
    runtime().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let (store, plan) = faulty(dir.path());
        let began = Instant::now();
        for id in 0..20 {
            append(&store, "a", &[id]).await.unwrap();
        }
        let looks = plan.space_looks();
        assert!(looks as u128 <= 1 + began.elapsed().as_millis() / 250, "{looks} looks, {:?}", began.elapsed());
        tokio::time::sleep(Duration::from_millis(260)).await;
        append(&store, "a", &[20]).await.unwrap();
        assert_eq!(plan.space_looks(), looks + 1);
    });
}

/// Broken: events of concurrent requests would be lost, doubled or reordered within a client.
#[test]
fn concurrent_appends_are_all_there_in_each_clients_order() {
    for fsync in [Fsync::Always, Fsync::EverySecond, Fsync::Never] {
        let dir = tempfile::tempdir().unwrap();
        let runtime = runtime();
        let store = Store::new(RealDisk::open(dir.path()).unwrap(), options(fsync), StoreMetrics::new());
        runtime.block_on(async {
            let clients: Vec<_> = (0..16u32)
                .map(|client| {
                    let store = store.clone();
                    tokio::spawn(async move {
                        for i in 0..50 {
                            let id = client * 1000 + i;
                            append(&store, ["a", "b"][client as usize % 2], &[id]).await.unwrap();
                        }
                    })
                })
                .collect();
            for client in clients {
                client.await.unwrap();
            }
            store.drained().await;
        });
        for (offset, domain) in [(0, "a"), (1, "b")] {
            let found = ids(dir.path(), domain);
            assert_eq!(found.len(), 8 * 50, "{fsync:?}");
            for client in (offset..16).step_by(2) {
                let mine: Vec<u32> = found.iter().copied().filter(|id| id / 1000 == client).collect();
                assert_eq!(mine, (0..50).map(|i| client * 1000 + i).collect::<Vec<_>>(), "{fsync:?}");
            }
        }
    }
}

/// Broken: requests that arrive together would each pay for a write of their own, or a sync.
#[test]
fn appends_that_arrive_together_share_a_write() {
    for fsync in [Fsync::Always, Fsync::EverySecond, Fsync::Never] {
        let dir = tempfile::tempdir().unwrap();
        let (disk, plan) = FaultyDisk::open(dir.path());
        let store = Store::new(disk, options(fsync), StoreMetrics::new());
        let one_thread = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        one_thread.block_on(async {
            let together = (1..=20).map(|id| {
                let store = store.clone();
                async move { append(&store, if id % 4 == 0 { "b" } else { "a" }, &[id]).await.unwrap() }
            });
            futures_util::future::join_all(together).await;
        });
        assert_eq!(plan.count("append"), 2, "{fsync:?}: one for each domain");
        assert_eq!(ids(dir.path(), "b"), [4, 8, 12, 16, 20]);
        assert_eq!(ids(dir.path(), "a").len(), 15);
    }
}

/// Broken: callers on one thread would wait for ever for a writer that another one's panic kept
/// from starting, or callers on another runtime would never hear of their ack.
#[test]
fn a_panic_stays_in_its_domain_and_acks_find_the_way_home() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, plan) = FaultyDisk::open(dir.path());
    let outlives = runtime();
    let options = StoreOptions { runtime: Some(outlives.handle().clone()), ..options(Fsync::Never) };
    let store = Store::new(disk, options, StoreMetrics::new());
    let one_thread = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    one_thread().block_on(async {
        append(&store, "a", &[0]).await.unwrap();
        append(&store, "b", &[0]).await.unwrap();
        plan.set(1, Fault::Panic);
        let (a, b) = tokio::join!(append(&store, "a", &[1]), append(&store, "b", &[2]));
        assert!(matches!(a, Err(StoreError::Panicked)), "{a:?}");
        b.unwrap();
        let again = tokio::time::timeout(PATIENCE, append(&store, "a", &[3])).await.expect("an answer");
        assert!(matches!(again, Err(StoreError::Poisoned { reason: "panicked" })), "{again:?}");
        assert_eq!(store.health().poisoned_domains, 1);
    });
    assert_eq!((ids(dir.path(), "a"), ids(dir.path(), "b")), (vec![0], vec![0, 2]));
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let store = &store;
            scope.spawn(move || {
                one_thread().block_on(async {
                    for i in 0..200 {
                        append(store, "c", &[thread * 1000 + i]).await.unwrap();
                    }
                });
            });
        }
    });
    let mut found = ids(dir.path(), "c");
    found.sort_unstable();
    assert_eq!(found, (0..8).flat_map(|thread| (0..200).map(move |i| thread * 1000 + i)).collect::<Vec<u32>>());
}

/// Broken: a hung-up client would tear its event, or its bytes would leave the budget too early.
#[test]
fn a_dropped_caller_cancels_nothing() {
    runtime().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = faulty(dir.path());
        append(&store, "a", &[1]).await.unwrap();
        let lock = std::fs::File::open(dir.path().join("a.jsonl.lock")).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let caller = tokio::spawn({
            let store = store.clone();
            async move { append(&store, "a", &[2]).await }
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        caller.abort();
        assert!(caller.await.unwrap_err().is_cancelled());
        assert!(store.health().in_flight_bytes > 0, "the writer holds the bytes");
        drop(lock);
        store.drained().await;
        assert_eq!(ids(dir.path(), "a"), [1, 2]);
        assert_eq!(store.health().in_flight_bytes, 0);
    });
}

/// Broken: a foreign lock would block other domains, or be waited for too long, or be ignored.
#[test]
fn a_foreign_lock_is_waited_for_as_long_as_said() {
    runtime().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let (store, plan) = faulty(dir.path());
        append(&store, "a", &[1]).await.unwrap();
        plan.clear();
        let lock = std::fs::File::open(dir.path().join("a.jsonl.lock")).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let started = Instant::now();
        let (held, free) = tokio::join!(append(&store, "a", &[2]), async {
            append(&store, "b", &[1]).await.unwrap();
            started.elapsed()
        });
        let waited = started.elapsed();
        assert!(matches!(held, Err(StoreError::LockTimeout { .. })), "{held:?}");
        assert!(plan.count("try_lock") < 40, "it looks again after 1, 2, 4, … and at last every 50 ms");
        assert!(waited >= Duration::from_millis(300) && waited < Duration::from_millis(900), "{waited:?}");
        assert!(free < Duration::from_millis(250), "{free:?}");
        drop(lock);
        append(&store, "a", &[3]).await.unwrap();
        assert_eq!(ids(dir.path(), "a"), [1, 3]);
    });
}

/// Broken: with Python's filelock 3.20.4 to 3.29.4 two holders would write at once.
#[test]
fn a_lock_file_that_is_unlinked_is_locked_anew() {
    runtime().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = faulty(dir.path());
        for id in 1..5 {
            append(&store, "a", &[id]).await.unwrap();
            std::fs::remove_file(dir.path().join("a.jsonl.lock")).unwrap();
        }
        append(&store, "a", &[5]).await.unwrap();
        assert_eq!(ids(dir.path(), "a"), [1, 2, 3, 4, 5]);
        let live = std::fs::File::open(dir.path().join("a.jsonl.lock")).unwrap();
        rustix::fs::flock(&live, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
        assert!(matches!(append(&store, "a", &[6]).await, Err(StoreError::LockTimeout { .. })));
    });
}

/// Broken: logrotate, or an operator with mv, would send events into the old file for ever.
#[test]
fn a_moved_file_is_noticed() {
    runtime().block_on(async {
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("data");
        let store = Store::new(RealDisk::open(&dir).unwrap(), options(Fsync::Always), StoreMetrics::new());
        append(&store, "a", &[1]).await.unwrap();
        std::fs::rename(dir.join("a.jsonl"), dir.join("a.1")).unwrap();
        append(&store, "a", &[2]).await.unwrap();
        assert_eq!(ids(&dir, "a"), [2]);
    });
}

/// Broken: everysec would acknowledge for longer than a second what is not synced, or hide a
/// failed sync.
#[test]
fn every_second_means_a_sync_and_a_failed_one_is_seen() {
    runtime().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let (disk, plan) = FaultyDisk::open(dir.path());
        let store = Store::new(disk, options(Fsync::EverySecond), StoreMetrics::new());
        let upkeep = tokio::spawn({
            let store = store.clone();
            async move { store.maintain().await }
        });
        append(&store, "a", &[1]).await.unwrap();
        let wrote = Instant::now();
        while !plan.saw("sync_data") {
            assert!(wrote.elapsed() < Duration::from_millis(1000), "no sync within a second");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        append(&store, "a", &[2]).await.unwrap();
        plan.fail_next("sync_data", Fault::Errno(EIO));
        let wrote = Instant::now();
        while store.health().poisoned_domains == 0 {
            assert!(wrote.elapsed() < Duration::from_secs(2), "a failed sync went unnoticed");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(matches!(append(&store, "a", &[3]).await, Err(StoreError::Poisoned { .. })));
        upkeep.abort();
    });
}

/// Broken: lines acknowledged just before a logrotate would not be synced within the second.
#[test]
fn a_file_that_is_moved_away_unsynced_is_synced_before_it_is_forgotten() {
    runtime().block_on(async {
        let dir = tempfile::tempdir().unwrap();
        let (disk, plan) = FaultyDisk::open(dir.path());
        let store = Store::new(disk, options(Fsync::EverySecond), StoreMetrics::new());
        append(&store, "a", &[1]).await.unwrap();
        std::fs::rename(dir.path().join("a.jsonl"), dir.path().join("a.1")).unwrap();
        plan.clear();
        append(&store, "a", &[2]).await.unwrap();
        assert!(plan.saw("sync_data"));
        assert_eq!(ids(dir.path(), "a"), [2]);
    });
}
