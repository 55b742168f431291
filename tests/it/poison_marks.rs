//! A domain in doubt stays refused over a restart, until somebody has looked at its file.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use leitstand::domain::Domain;
use leitstand::metrics::StoreMetrics;
use leitstand::storage::{FileNames, Fsync, RealDisk, Store, StoreError, TORN_DIR, Written};

use crate::faulty::Fault;
use crate::storage::{append, faulty_with, ids, options, runtime};
use crate::support::{Finished, PATIENCE, TestServer, command, run, wait_for};

const EIO: i32 = 5;
const SOUND: &str = "{\"id\":1,\"domain\":\"a\"}\n";

fn repair(dir: &Path, args: &[&str]) -> Finished {
    run(&mut command(dir.parent().unwrap(), &[&["repair", "--data-dir", dir.to_str().unwrap()], args].concat()))
}

fn open(dir: &Path) -> Store<RealDisk> {
    Store::new(RealDisk::open(dir).unwrap(), options(Fsync::Always), StoreMetrics::new())
}

fn mark_of(dir: &Path) -> PathBuf {
    dir.join(TORN_DIR).join("a.jsonl.poisoned")
}

fn marked(mark: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.jsonl"), SOUND).unwrap();
    fs::create_dir(dir.path().join(TORN_DIR)).unwrap();
    let ino = fs::metadata(dir.path().join("a.jsonl")).unwrap().ino();
    fs::write(mark_of(dir.path()), mark.replace("INO", &ino.to_string()).replace("OTHER", &(ino + 1).to_string()))
        .unwrap();
    dir
}

fn replace(path: &Path) {
    let copy = path.with_extension("new");
    fs::copy(path, &copy).unwrap();
    fs::rename(copy, path).unwrap();
}

async fn assert_refused(store: &Store<RealDisk>, case: &str) {
    let refused = append(store, "a", &[9]).await;
    assert!(
        matches!(&refused, Err(e @ StoreError::Poisoned { .. }) if e.written() == Written::No),
        "{case}: {refused:?}"
    );
    append(store, "other", &[9]).await.expect(case);
}

/// Broken, a restart would make a doubt go away by itself: events would go on into a file of which nobody knows
/// what is on the disk.
#[test]
fn a_restart_does_not_lift_a_poison() {
    for fsync in [Fsync::Always, Fsync::EverySecond, Fsync::Never] {
        runtime().block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let (store, plan) = faulty_with(dir.path(), options(Fsync::Always));
            append(&store, "a", &[1]).await.unwrap();
            plan.fail_next("sync_data", Fault::Errno(EIO));
            append(&store, "a", &[2]).await.unwrap_err();
            wait_for("the mark is left", PATIENCE, || mark_of(dir.path()).exists().then_some(()));
            drop(store);
            for start in 1..=2 {
                let store = Store::new(RealDisk::open(dir.path()).unwrap(), options(fsync), StoreMetrics::new());
                assert_eq!(store.health().poisoned_domains, 1, "before anybody appends, start {start}");
                assert_refused(&store, "after a restart").await;
                assert_eq!(store.health().poisoned_domains, 1, "counted once");
            }
            let store = Store::new(RealDisk::open(dir.path()).unwrap(), options(fsync), StoreMetrics::new());
            assert_refused(&store, "before the repair").await;
            let done = repair(dir.path(), &["--apply"]);
            assert!(done.code == Some(0) && done.stdout.contains("done: a.jsonl: write the file anew"), "{done:?}");
            append(&store, "a", &[3]).await.expect("the service goes on");
            assert_eq!((store.health().poisoned_domains, ids(dir.path(), "a")), (0, vec![1, 3]));
            drop(store);
            let store = open(dir.path());
            assert_eq!(store.health().poisoned_domains, 0);
            append(&store, "a", &[4]).await.expect("and so does the next one");
        });
    }
}

/// Broken, a domain would be refused for ever, or a doubt be forgotten, by what happens to stand in a mark.
#[test]
fn every_form_of_a_mark_is_judged() {
    runtime().block_on(async {
        for (mark, doubtful) in [
            ("reason=sync ino=INO\n", true),
            ("reason=rollback ino=INO\n", true),
            ("reason=sync ino=OTHER\n", false),
            ("reason=sync\n", true),
            ("reason=sync ino=OTHER", true),
            ("reason=syn", true),
            ("", true),
            ("\u{fffd}\0nonsense\n", true),
            ("reason=sync ino=99999999999999999999999999\n", true),
        ] {
            let dir = marked(mark);
            let store = open(dir.path());
            assert_eq!(store.health().poisoned_domains, usize::from(doubtful), "{mark:?}");
            if !doubtful {
                append(&store, "a", &[2]).await.expect(mark);
                continue;
            }
            assert_refused(&store, mark).await;
            // Replaced by hand, as RUNBOOK says; also by the next start it is over.
            replace(&dir.path().join("a.jsonl"));
            append(&store, "a", &[2]).await.expect(mark);
            assert!(!mark_of(dir.path()).exists(), "{mark:?}");
            drop(store);
            append(&open(dir.path()), "a", &[3]).await.expect(mark);
            assert_eq!(ids(dir.path(), "a"), [1, 2, 3], "{mark:?}");
        }
    });
}

/// Broken, a mark that cannot be read would count as none, or as one that nobody can ever take away.
#[test]
fn a_mark_that_cannot_be_read_is_a_doubt_until_it_is_removed() {
    runtime().block_on(async {
        type Make = fn(&Path);
        let make: [(&str, Make); 3] = [
            ("a directory", |mark| fs::create_dir(mark).unwrap()),
            ("a link", |mark| std::os::unix::fs::symlink("elsewhere", mark).unwrap()),
            ("a large file", |mark| fs::write(mark, "x".repeat(1 << 20)).unwrap()),
        ];
        for (case, make) in make {
            let dir = marked("");
            let mark = mark_of(dir.path());
            fs::remove_file(&mark).unwrap();
            make(&mark);
            let store = open(dir.path());
            assert_eq!(store.health().poisoned_domains, 1, "{case}");
            assert_refused(&store, case).await;
            fs::remove_dir(&mark).or_else(|_| fs::remove_file(&mark)).unwrap();
            append(&store, "a", &[2]).await.expect(case);
            assert_eq!(store.health().poisoned_domains, 0, "{case}");
        }
    });
}

/// Broken, a domain whose doubtful file is gone would begin anew as if nothing had been, or never again.
#[test]
fn a_mark_without_its_file_refuses_until_a_file_is_there_or_the_mark_is_gone() {
    runtime().block_on(async {
        for way in ["another file", "no mark"] {
            let dir = marked("reason=sync ino=OTHER\n");
            let path = dir.path().join("a.jsonl");
            fs::rename(&path, dir.path().join(".backup")).unwrap();
            let store = open(dir.path());
            assert_eq!(store.health().poisoned_domains, 1, "{way}");
            assert_refused(&store, way).await;
            assert!(!path.exists(), "{way}: a refused append makes no file");
            match way {
                "no mark" => fs::remove_file(mark_of(dir.path())).unwrap(),
                _ => fs::rename(dir.path().join(".backup"), &path).unwrap(),
            }
            append(&store, "a", &[2]).await.expect(way);
            assert_eq!(store.health().poisoned_domains, 0, "{way}");
        }
    });
}

/// Broken, the doubt of a domain with a long name would be forgotten, because its mark has a short one.
#[test]
fn a_mark_under_a_shortened_name_counts_too() {
    runtime().block_on(async {
        for old in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let domain = format!("{0}.{0}.{0}.{1}", "a".repeat(63), "b".repeat(50));
            let data = FileNames::of(&Domain::parse(&domain).unwrap()).data;
            let (store, plan) = faulty_with(dir.path(), options(Fsync::Always));
            append(&store, &domain, &[1]).await.unwrap();
            plan.fail_next("sync_data", Fault::Errno(EIO));
            append(&store, &domain, &[2]).await.unwrap_err();
            let mark = wait_for("the mark is left", PATIENCE, || {
                fs::read_dir(dir.path().join(TORN_DIR)).ok()?.next().map(|entry| entry.unwrap().path())
            });
            assert!(!mark.to_string_lossy().contains("aaa"), "{mark:?}");
            drop(store);
            if old {
                // As 0.1.0 wrote it.
                let ino = fs::metadata(dir.path().join(&data)).unwrap().ino();
                fs::write(&mark, format!("reason=sync ino={ino}\n")).unwrap();
            }
            let store = open(dir.path());
            assert_eq!(store.health().poisoned_domains, 1, "old {old}");
            assert!(matches!(append(&store, &domain, &[3]).await, Err(StoreError::Poisoned { reason: "sync" })));
            assert_eq!(store.health().poisoned_domains, 1, "old {old}: counted once");
            replace(&dir.path().join(&data));
            append(&store, &domain, &[4]).await.unwrap();
            assert_eq!((store.health().poisoned_domains, mark.exists()), (0, false));
        }
    });
}

/// Broken, a service would not say before the first event that a domain is refused, or go on saying so after a
/// repair although no event comes.
#[test]
fn the_service_knows_from_its_start_and_goes_on_after_a_repair() {
    let builder = TestServer::builder().data_file("a.jsonl", SOUND);
    fs::create_dir(builder.dir().join("data").join(TORN_DIR)).unwrap();
    let builder = builder
        .data_file("idle.jsonl", SOUND.replace("\"a\"", "\"idle\""))
        .data_file(".torn/a.jsonl.poisoned", "reason=sync\n")
        .data_file(".torn/idle.jsonl.poisoned", "reason=sync\n");
    let server = builder.start();
    let ready = server.get("/health/ready");
    assert_eq!((ready.status, &ready.json()["checks"]["no_poisoned_domain"]), (503, &false.into()));
    assert_eq!(server.metric("leitstand_poisoned_domains", ""), 2.0);
    assert!(server.log().contains("in doubt"), "{}", server.log());
    server.post("a", "{\"id\":2}").assert_error(500, "storage error");
    server.post("b", "{\"id\":2}").assert_accepted();
    assert_eq!(server.metric("leitstand_poisoned_domains", ""), 2.0);
    let done = repair(&server.data_dir(), &["--apply"]);
    assert_eq!(done.code, Some(0), "{done:?}");
    wait_for("ready again", PATIENCE, || (server.get("/health/ready").status == 200).then_some(()));
    assert_eq!(server.metric("leitstand_poisoned_domains", ""), 0.0);
    server.post("a", "{\"id\":2}").assert_accepted();
    server.post("idle", "{\"id\":2}").assert_accepted();
}
