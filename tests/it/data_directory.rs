//! The data directory is the one that was opened at the start, or nothing is taken.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use leitstand::metrics::StoreMetrics;
use leitstand::storage::{Fsync, RealDisk, Store, StoreError, Written};

use crate::storage::{append, ids, options, runtime};
use crate::support::{Mounted, TestServer, skip};

fn open(dir: &Path) -> Store<RealDisk> {
    Store::new(RealDisk::open(dir).unwrap(), options(Fsync::Always), StoreMetrics::new())
}

async fn assert_refused(store: &Store<RealDisk>, case: &str) {
    for domain in ["a", "new"] {
        let refused = append(store, domain, &[9]).await;
        assert!(
            matches!(&refused, Err(e @ StoreError::Io { .. }) if e.written() == Written::No),
            "{case}: {refused:?}"
        );
    }
    assert!(!store.health().writable, "{case}");
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

/// Broken, events would be acknowledged into a directory that nobody looks at any more.
#[test]
fn another_directory_in_its_place_gets_nothing() {
    runtime().block_on(async {
        let outer = tempfile::tempdir().unwrap();
        let (dir, away) = (outer.path().join("data"), outer.path().join("away"));
        let store = open(&dir);
        append(&store, "a", &[1]).await.unwrap();
        fs::rename(&dir, &away).unwrap();
        assert_refused(&store, "nothing stands there").await;
        fs::create_dir(&dir).unwrap();
        assert_refused(&store, "an empty one").await;
        assert!(is_empty(&dir));
        // A copy, with a lock file of its own.
        fs::copy(away.join("a.jsonl"), dir.join("a.jsonl")).unwrap();
        fs::write(dir.join("a.jsonl.lock"), "").unwrap();
        assert_refused(&store, "a copy").await;
        assert_eq!(ids(&dir, "a"), [1]);
        fs::remove_dir_all(&dir).unwrap();
        symlink(outer.path(), &dir).unwrap();
        assert_refused(&store, "a link to another one").await;
        fs::remove_file(&dir).unwrap();
        symlink(&away, &dir).unwrap();
        append(&store, "a", &[2]).await.expect("a link to the same one");
        fs::remove_file(&dir).unwrap();
        fs::rename(&away, &dir).unwrap();
        append(&store, "a", &[3]).await.expect("it is back");
        append(&store, "new", &[1]).await.expect("it is back");
        assert!(store.health().writable);
        assert_eq!(ids(&dir, "a"), [1, 2, 3]);
        // A start takes what stands there.
        fs::rename(&dir, &away).unwrap();
        append(&open(&dir), "a", &[4]).await.unwrap();
        assert_eq!(ids(&dir, "a"), [4]);
    });
}

/// Broken, the old target would go on to get events after an operator has turned a link on the path.
#[test]
fn a_link_on_the_path_that_is_turned_is_seen() {
    runtime().block_on(async {
        for path in ["link", "link/data", "link/../one/data"] {
            let outer = tempfile::tempdir().unwrap();
            for name in ["one/data", "other/one/data"] {
                fs::create_dir_all(outer.path().join(name)).unwrap();
            }
            let link = outer.path().join("link");
            symlink("one", &link).unwrap();
            let store = open(&outer.path().join(path));
            append(&store, "a", &[1]).await.unwrap();
            fs::remove_file(&link).unwrap();
            symlink("other/one", &link).unwrap();
            if path == "link/../one/data" {
                assert!(outer.path().join(path).ends_with("one/data"));
            }
            assert_refused(&store, path).await;
            fs::remove_file(&link).unwrap();
            symlink("one", &link).unwrap();
            append(&store, "a", &[2]).await.expect(path);
        }
    });
}

/// Broken, a path that is relative would be looked up in the directory that the process stands in, which a lazy
/// unmount leaves as it was.
#[test]
fn a_relative_path_is_held_from_the_root() {
    let server = TestServer::builder().env("LEITSTAND_DATA_DIR", "data").start();
    server.post("a", "{\"i\":1}").assert_accepted();
    let (here, moved) = (server.dir().to_owned(), server.dir().with_extension("moved"));
    // The working directory moves with it; the path does not.
    fs::rename(&here, &moved).unwrap();
    server.post("a", "{\"i\":2}").assert_error(500, "storage error");
    assert_eq!(server.get("/health/ready").status, 503);
    fs::rename(&moved, &here).unwrap();
    server.post("a", "{\"i\":3}").assert_accepted();
    assert_eq!(server.lines("a").len(), 2);
}

/// Broken, events would be acknowledged into the directory below a volume that is gone, and be hidden when it is
/// back.
#[test]
fn a_volume_that_is_unmounted_or_covered_is_seen() {
    let builder = TestServer::builder();
    let (volume, at) = (builder.dir().join("volume"), builder.dir().join("mounted"));
    fs::create_dir_all(&volume).unwrap();
    fs::create_dir_all(at.join("data")).unwrap();
    let volume_path = volume.to_str().unwrap();
    let Some(mounted) = Mounted::new(&["--bind", volume_path], &at) else {
        return skip("this user may not mount");
    };
    let server = builder.env("LEITSTAND_DATA_DIR", at.join("data")).start();
    let lines = || fs::read_to_string(volume.join("data/a.jsonl")).unwrap().lines().count();
    let refused = |case: &str| {
        let before = lines();
        for domain in ["a", "new"] {
            server.post(domain, "{}").assert_error(500, "storage error");
        }
        let ready = server.get("/health/ready");
        assert_eq!((ready.status, &ready.json()["checks"]["data_dir_writable"]), (503, &false.into()), "{case}");
        assert!(is_empty(&at.join("data")) && lines() == before, "{case}");
    };
    server.post("a", "{}").assert_accepted();
    drop(mounted);
    refused("unmounted lazily");
    let line = server
        .log_line("what to do", |line| line["message"].as_str().is_some_and(|m| m.contains("stands at the path")));
    assert_eq!(line["level"], "ERROR", "{line}");
    let mounted = Mounted::new(&["--bind", volume_path], &at).unwrap();
    server.post("a", "{}").assert_accepted();
    assert_eq!(server.get("/health/ready").status, 200);
    let cover = Mounted::new(&["-t", "tmpfs", "none"], &at.join("data")).unwrap();
    refused("covered by another volume");
    drop(cover);
    server.post("a", "{}").assert_accepted();
    assert_eq!(lines(), 3);
    drop(server);
    drop(mounted);
}
