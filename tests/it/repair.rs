//! `leitstand repair`: the same as the next append would do, once, and the way out of a poison.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use serde_json::Value;
use tempfile::TempDir;

use leitstand::domain::Domain;
use leitstand::event::{Batch, Format};
use leitstand::metrics::StoreMetrics;
use leitstand::storage::repair::{RepairOptions, repair};
use leitstand::storage::{Disk, Fsync, RealDisk, Store, StoreError, StoreOptions, TORN_DIR};

use crate::faulty::{Fault, FaultyDisk};
use crate::support::{Finished, PATIENCE, TestServer, command, in_time, run, wait_for};
use crate::verify::verify;

const SOUND: &str = "{\"id\":1,\"domain\":\"a\"}\n";
const EIO: i32 = 5;

fn data_dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn leitstand_repair(dir: &Path, more: &[&str]) -> Finished {
    let args = [&["repair", "--data-dir", dir.to_str().unwrap()], more].concat();
    run(&mut command(dir.parent().unwrap(), &args))
}

fn options(fsync: Fsync) -> StoreOptions {
    StoreOptions { fsync, reserve_bytes: Some(0), ..StoreOptions::default() }
}

fn batch(id: u32) -> Batch {
    let text = format!("{{\"id\":{id}}}");
    Batch::parse(&text, Format::Document, Some(Domain::parse("a").unwrap())).unwrap().unwrap()
}

async fn append<D: Disk>(store: &Store<D>, id: u32) -> Result<(), StoreError> {
    in_time(store.append(batch(id), store.reserve(1)?)).await
}

fn kept(dir: &Path) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(dir.join(TORN_DIR)).into_iter().flatten();
    entries.map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect()
}

/// Every file with its bytes, its inode and its time of change.
fn snapshot(dir: &Path) -> Vec<(String, u64, i64, Vec<u8>)> {
    let mut all = Vec::new();
    for place in [dir.to_owned(), dir.join(TORN_DIR)] {
        for entry in fs::read_dir(place).into_iter().flatten() {
            let path = entry.unwrap().path();
            let meta = fs::metadata(&path).unwrap();
            if meta.is_file() && !path.to_string_lossy().ends_with(".lock") {
                let time = meta.mtime() * 1_000_000_000 + meta.mtime_nsec();
                all.push((path.display().to_string(), meta.ino(), time, fs::read(&path).unwrap()));
            }
        }
    }
    all.sort();
    all
}

fn ten_lines() -> Vec<u8> {
    let mut text =
        b"{\"id\":0,\"domain\":\"a\"}\r\n{\"id\":1,\"t\":\"\xc3\xbc\xf0\x9f\x98\x80\",\"domain\":\"a\"}\n".to_vec();
    text.extend_from_slice(
        b"{\"id\":2,\"domain\":\"a\"}\n\0\0\0\0\0\0\n{\"t\":\"\xff\xfe\",\"domain\":\"a\"}\n[1]\n12\n",
    );
    text.extend_from_slice(b"{\"n\":[{\"m\":1},{}],\"domain\":\"a\"}\n \r\n{\"t\":\"\\u00fc\\\"\",\"domain\":\"a\"}\n");
    assert_eq!(text.iter().filter(|&&b| b == b'\n').count(), 10);
    text
}

/// Broken, a repair would do something else than an append, or lose the bytes that it cuts.
#[test]
fn at_every_cut_it_does_what_an_append_does_and_only_once() {
    let whole = ten_lines();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let event = b"{\"id\":9,\"domain\":\"a\"}\n";
    let tails: [&[u8]; 8] =
        [b"\0\0\0", b"\xff", b"{\"a\":NaN}", b"\r", b" ", b"{\"a\":1}x", b"{\"a\":1} \r", b"{\"a\":1}"];
    let cuts = (0..=whole.len()).map(|cut| whole[..cut].to_vec());
    for before in cuts.chain(tails.map(|tail| [SOUND.as_bytes(), tail].concat())) {
        let case = String::from_utf8_lossy(&before).into_owned();
        let (ours, appended) = (data_dir(), data_dir());
        for dir in [&ours, &appended] {
            fs::write(dir.path().join("a.jsonl"), &before).unwrap();
        }
        let store = Store::new(RealDisk::open(appended.path()).unwrap(), options(Fsync::Always), StoreMetrics::new());
        runtime.block_on(append(&store, 9)).unwrap();
        let want = fs::read(appended.path().join("a.jsonl")).unwrap();
        let want = want.strip_suffix(event).unwrap();

        let disk = RealDisk::open_existing(ours.path()).unwrap();
        let mut options =
            RepairOptions { only: None, rewrite: false, apply: false, lock_timeout: Duration::from_secs(1) };
        let untouched = snapshot(ours.path());
        let planned = repair(&disk, &options).unwrap();
        assert_eq!(snapshot(ours.path()), untouched, "a dry run changes nothing: {case:?}");
        assert_eq!(planned.is_done(), want == before, "{case:?}");

        options.apply = true;
        let done = repair(&disk, &options).unwrap();
        assert!(done.is_done(), "{case:?}: {done:?}");
        assert_eq!(done.steps.len(), planned.steps.len());
        assert_eq!(fs::read(ours.path().join("a.jsonl")).unwrap(), want, "{case:?}");
        assert_eq!(kept(ours.path()), kept(appended.path()), "the cut bytes are kept: {case:?}");

        let after = snapshot(ours.path());
        let again = repair(&disk, &options).unwrap();
        assert!(again.is_done() && again.steps.is_empty(), "{case:?}: {again:?}");
        assert_eq!(snapshot(ours.path()), after, "a second repair changes nothing: {case:?}");
    }
}

/// Broken, scripts could not tell what is to do from what was done.
#[test]
fn exit_codes_and_the_document() {
    let dir = data_dir();
    let missing = leitstand_repair(&dir.path().join("none"), &["--apply"]);
    assert!(missing.code == Some(2) && missing.stdout.is_empty() && !missing.stderr.is_empty(), "{missing:?}");
    assert!(!dir.path().join("none").exists());
    assert_eq!(leitstand_repair(dir.path(), &["--rewrite"]).code, Some(2), "only for a domain that is named");
    let nothing = leitstand_repair(dir.path(), &["--apply"]);
    assert!(nothing.code == Some(0) && nothing.stdout.contains("nothing to repair"), "{nothing:?}");

    fs::write(dir.path().join("a.jsonl"), [SOUND, "{\"id\":2"].concat()).unwrap();
    fs::write(dir.path().join("b.jsonl"), "{\"domain\":\"b\"}").unwrap();
    let dry = leitstand_repair(dir.path(), &[]);
    assert!(dry.code == Some(1) && dry.stdout.contains("nothing was changed; --apply does it"), "{dry:?}");
    assert!(dry.stdout.contains("planned: a.jsonl: move the torn tail"), "{dry:?}");
    let one = leitstand_repair(dir.path(), &["--apply", "--json", "--domain", "a"]);
    assert_eq!(one.code, Some(0), "{one:?}");
    let document: Value = serde_json::from_str(&one.stdout).unwrap();
    assert_eq!((&document["done"], &document["apply"], &document["files"]), (&true.into(), &true.into(), &1.into()));
    let step = &document["steps"][0];
    assert_eq!((step["act"].as_str(), step["outcome"].as_str()), (Some("move_torn_tail"), Some("done")), "{step}");
    assert_eq!((step["offset"].as_u64(), step["bytes"].as_u64()), (Some(SOUND.len() as u64), Some(7)), "{step}");
    assert_eq!(verify(dir.path(), &[]).code, Some(1), "the other file is still as it was");
    assert_eq!(leitstand_repair(dir.path(), &["--apply"]).code, Some(0));
    assert_eq!(fs::read(dir.path().join("b.jsonl")).unwrap(), b"{\"domain\":\"b\"}\n");
    let clean = verify(dir.path(), &[]);
    assert!(clean.code == Some(0) && clean.stdout.contains("kept: 1 torn tail in .torn/, 7 bytes"), "{clean:?}");
}

/// Broken, a repair would wait for ever behind a hung writer, or write without the lock.
#[test]
fn a_locked_file_is_said_and_left_alone() {
    let dir = data_dir();
    let path = dir.path().join("a.jsonl");
    let before = [SOUND, "{\"id\":2"].concat();
    fs::write(&path, &before).unwrap();
    let lock = File::create(dir.path().join("a.jsonl.lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    for (args, code) in [(&["--lock-timeout", "0"][..], 2), (&["--lock-timeout", "1", "--apply"], 1)] {
        let began = Instant::now();
        let finished = leitstand_repair(dir.path(), args);
        assert_eq!(finished.code, Some(code), "{finished:?}");
        assert!(finished.stdout.contains("not repaired: a.jsonl: locked by another process"), "{finished:?}");
        assert!(began.elapsed() < PATIENCE / 2);
        assert_eq!(fs::read_to_string(&path).unwrap(), before);
    }
    drop(lock);
    assert_eq!(leitstand_repair(dir.path(), &["--apply"]).code, Some(0));
    assert_eq!(fs::read_to_string(&path).unwrap(), SOUND);
}

/// Broken, a poisoned domain would need a restart or a hand that copies, or the doubt would be
/// forgotten.
#[test]
fn a_poison_is_marked_and_lifted_by_a_repair_beside_the_service() {
    for fsync in [Fsync::Always, Fsync::EverySecond] {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let dir = data_dir();
        let (disk, plan) = FaultyDisk::open(dir.path());
        plan.clear();
        let store = Store::new(disk, options(fsync), StoreMetrics::new());
        let upkeep = runtime.spawn({
            let store = store.clone();
            async move { store.maintain().await }
        });
        runtime.block_on(append(&store, 1)).unwrap();
        let path = dir.path().join("a.jsonl");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        plan.fail_next("sync_data", Fault::Errno(EIO));
        let _ = runtime.block_on(append(&store, 2));
        wait_for("the domain is poisoned", PATIENCE, || (store.health().poisoned_domains == 1).then_some(()));
        let mark = dir.path().join(".torn/a.jsonl.poisoned");
        wait_for("the mark is left", PATIENCE, || {
            fs::read_to_string(&mark).ok().filter(|text| text.starts_with("reason=sync ino=") && text.ends_with('\n'))
        });

        let found = verify(dir.path(), &[]);
        assert!(found.code == Some(1) && found.stdout.contains("finding: a.jsonl: poisoned: "), "{found:?}");
        let (before, text) = (fs::metadata(&path).unwrap(), fs::read(&path).unwrap());
        assert_eq!(leitstand_repair(dir.path(), &[]).code, Some(1), "a dry run");
        assert_eq!(fs::metadata(&path).unwrap().ino(), before.ino());
        assert!(mark.exists() && store.health().poisoned_domains == 1);

        let done = leitstand_repair(dir.path(), &["--apply"]);
        assert!(done.code == Some(0) && done.stdout.contains("done: a.jsonl: write the file anew"), "{done:?}");
        let after = fs::metadata(&path).unwrap();
        assert_ne!(after.ino(), before.ino(), "another file stands there");
        assert_eq!((after.mode(), after.uid(), after.gid()), (before.mode(), before.uid(), before.gid()));
        assert_eq!(fs::read(&path).unwrap(), text);
        assert!(kept(dir.path()).is_empty(), "neither mark nor copy is left");
        wait_for("the poison is lifted", PATIENCE, || (store.health().poisoned_domains == 0).then_some(()));
        runtime.block_on(append(&store, 3)).unwrap();
        assert!(fs::read(&path).unwrap().ends_with(b"{\"id\":3,\"domain\":\"a\"}\n"));
        upkeep.abort();

        let again = leitstand_repair(dir.path(), &["--apply"]);
        assert!(again.code == Some(0) && again.stdout.contains("nothing to repair"), "{again:?}");
        assert_eq!(fs::metadata(&path).unwrap().ino(), after.ino());
        assert_eq!(verify(dir.path(), &[]).code, Some(0));
    }
}

/// Broken, the mark would stay after the file was replaced by hand, and every look would warn.
#[test]
fn a_mark_goes_when_the_poison_goes() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let dir = data_dir();
    let (disk, plan) = FaultyDisk::open(dir.path());
    plan.clear();
    let store = Store::new(disk, options(Fsync::Always), StoreMetrics::new());
    runtime.block_on(append(&store, 1)).unwrap();
    plan.clear();
    plan.fail_next("sync_data", Fault::Errno(EIO));
    runtime.block_on(append(&store, 2)).unwrap_err();
    assert!(plan.count("sync_data") == 2 && plan.saw("sync_side"), "the mark is synced, and so is its name");
    let (path, mark) = (dir.path().join("a.jsonl"), dir.path().join(".torn/a.jsonl.poisoned"));
    assert!(mark.exists());
    fs::copy(&path, dir.path().join(".new")).unwrap();
    fs::rename(dir.path().join(".new"), &path).unwrap();
    // The removal fails, when the poison is lifted and when the file is opened: then the mark is stale, and no
    // reason to write the file anew.
    plan.fail_next("remove_side", Fault::Errno(EIO));
    plan.fail_next("remove_side", Fault::Errno(EIO));
    runtime.block_on(append(&store, 3)).unwrap();
    assert!(mark.exists());
    let noted = verify(dir.path(), &[]);
    assert!(noted.code == Some(0) && noted.stdout.contains("note: a.jsonl: stale_marker"), "{noted:?}");
    let ino = fs::metadata(&path).unwrap().ino();
    let done = leitstand_repair(dir.path(), &["--apply"]);
    assert!(done.code == Some(0) && done.stdout.contains("remove the mark"), "{done:?}");
    assert!(!mark.exists() && fs::metadata(&path).unwrap().ino() == ino);

    // And with a disk that lets it: gone at once.
    plan.fail_next("sync_data", Fault::Errno(EIO));
    runtime.block_on(append(&store, 4)).unwrap_err();
    fs::copy(&path, dir.path().join(".new")).unwrap();
    fs::rename(dir.path().join(".new"), &path).unwrap();
    runtime.block_on(append(&store, 5)).unwrap();
    assert!(!mark.exists());
}

/// Broken, a mark that could not be left would change what a client is told, or the poison itself.
#[test]
fn a_mark_that_cannot_be_left_changes_nothing_else() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let dir = data_dir();
    let (disk, plan) = FaultyDisk::open(dir.path());
    plan.clear();
    let store = Store::new(disk, options(Fsync::Always), StoreMetrics::new());
    runtime.block_on(append(&store, 1)).unwrap();
    // From the sync on nothing works any more.
    runtime.block_on(append(&store, 2)).unwrap();
    plan.clear();
    runtime.block_on(append(&store, 3)).unwrap();
    let at = (1..=plan.calls()).find(|&n| plan.name(n) == Some("sync_data")).unwrap();
    plan.set(at, Fault::Freeze);
    let error = runtime.block_on(append(&store, 4)).unwrap_err();
    assert!(matches!(error, StoreError::Sync { .. }), "{error:?}");
    plan.clear();
    let error = runtime.block_on(append(&store, 5)).unwrap_err();
    assert!(matches!(error, StoreError::Poisoned { .. }), "{error:?}");
    assert!(!dir.path().join(".torn/a.jsonl.poisoned").exists());
    // Without a mark, the operator names the domain.
    assert_eq!(leitstand_repair(dir.path(), &["--apply", "--domain", "a", "--rewrite"]).code, Some(0));
    runtime.block_on(append(&store, 6)).unwrap();
}

/// Broken, a repair would leave a lock file beside each file that it only looked at.
#[test]
fn a_file_that_needs_nothing_gets_no_lock() {
    let dir = data_dir();
    fs::write(dir.path().join("a.jsonl"), SOUND).unwrap();
    for args in [&[][..], &["--apply"]] {
        assert_eq!(leitstand_repair(dir.path(), args).code, Some(0));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

/// Broken, a file that is written anew would lose the newline that its last line needs.
#[test]
fn a_rewrite_ends_the_last_line() {
    let dir = data_dir();
    let path = dir.path().join("a.jsonl");
    let last = "{\"id\":2,\"domain\":\"a\"}";
    fs::write(&path, [SOUND, last].concat()).unwrap();
    let done = leitstand_repair(dir.path(), &["--apply", "--json", "--domain", "a", "--rewrite"]);
    assert_eq!(done.code, Some(0), "{done:?}");
    let document: Value = serde_json::from_str(&done.stdout).unwrap();
    let step = &document["steps"][0];
    assert_eq!((step["act"].as_str(), step["offset"].as_u64()), (Some("end_line"), Some(SOUND.len() as u64)), "{step}");
    assert_eq!(step["bytes"].as_u64(), Some(last.len() as u64), "{step}");
    assert_eq!(fs::read_to_string(&path).unwrap(), [SOUND, last, "\n"].concat());
}

/// Broken, a file somewhere else could have a data file written anew.
#[test]
fn a_mark_that_is_a_link_is_not_followed() {
    let dir = data_dir();
    let path = dir.path().join("a.jsonl");
    fs::write(&path, SOUND).unwrap();
    fs::write(dir.path().join("mark"), "reason=sync\n").unwrap();
    fs::create_dir(dir.path().join(TORN_DIR)).unwrap();
    std::os::unix::fs::symlink("../mark", dir.path().join(".torn/a.jsonl.poisoned")).unwrap();
    let ino = fs::metadata(&path).unwrap().ino();
    let done = leitstand_repair(dir.path(), &["--apply"]);
    assert!(done.code != Some(0) && done.stdout.contains("not repaired: a.jsonl: "), "{done:?}");
    assert_eq!(fs::metadata(&path).unwrap().ino(), ino);
}

/// Broken, a mark that stays would be told as gone, and the next repair would be a surprise.
#[test]
fn a_mark_that_cannot_be_removed_is_said() {
    let dir = data_dir();
    fs::write(dir.path().join("a.jsonl"), SOUND).unwrap();
    // A directory: it reads as a mark that was not written to its end, and no file can be removed there.
    fs::create_dir_all(dir.path().join(".torn/a.jsonl.poisoned")).unwrap();
    let done = leitstand_repair(dir.path(), &["--apply"]);
    assert!(done.code == Some(1) && done.stdout.contains("written anew, but its mark stays"), "{done:?}");
}

/// Broken, a repair that runs by itself would lift a poison over damage that nobody has seen, or
/// an operator who has seen it could not.
#[test]
fn a_damaged_file_is_written_anew_only_by_name() {
    let dir = data_dir();
    let path = dir.path().join("a.jsonl");
    let text = [SOUND, "damaged\n", SOUND].concat();
    fs::write(&path, text.clone() + "{\"half").unwrap();
    fs::create_dir(dir.path().join(TORN_DIR)).unwrap();
    fs::write(dir.path().join(".torn/a.jsonl.poisoned"), "").unwrap();
    let ino = fs::metadata(&path).unwrap().ino();
    for args in [&[][..], &["--apply"]] {
        let refused = leitstand_repair(dir.path(), args);
        assert!(refused.code == Some(1) && refused.stdout.contains("1 line is damaged"), "{refused:?}");
        assert_eq!(fs::metadata(&path).unwrap().ino(), ino);
    }
    // Of a repair that was interrupted.
    fs::write(dir.path().join(".torn/a.jsonl.rewrite"), "left over").unwrap();
    let done = leitstand_repair(dir.path(), &["--apply", "--domain", "a", "--rewrite"]);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert_eq!(fs::read_to_string(&path).unwrap(), text, "what is before the last newline stays as it is");
    assert_ne!(fs::metadata(&path).unwrap().ino(), ino);
    assert_eq!(kept(dir.path()), [b"{\"half".to_vec()]);
}

/// Broken, an operator who repairs as root would lock the service out of its own files.
#[test]
fn a_repair_by_root_leaves_the_files_to_the_service() {
    if !rustix::process::geteuid().is_root() {
        return crate::support::skip("needs root, to run the service as another user");
    }
    const NOBODY: u32 = 65534;
    let dir = data_dir();
    let path = dir.path().join("a.jsonl");
    fs::write(&path, [SOUND, "{\"half"].concat()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    for place in [dir.path(), &path] {
        std::os::unix::fs::chown(place, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    assert_eq!(leitstand_repair(dir.path(), &["--apply", "--domain", "a", "--rewrite"]).code, Some(0));
    for name in ["a.jsonl", "a.jsonl.lock", ".torn"] {
        assert_eq!(fs::metadata(dir.path().join(name)).unwrap().uid(), NOBODY, "{name}");
    }
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);

    // The group stays too, and what belongs to a third is left to him.
    std::os::unix::fs::chown(&path, Some(0), Some(NOBODY)).unwrap();
    std::os::unix::fs::chown(dir.path().join("a.jsonl.lock"), Some(1), Some(1)).unwrap();
    assert_eq!(leitstand_repair(dir.path(), &["--apply", "--domain", "a", "--rewrite"]).code, Some(0));
    let owner = |name: &str| fs::metadata(dir.path().join(name)).map(|file| (file.uid(), file.gid())).unwrap();
    assert_eq!((owner("a.jsonl"), owner("a.jsonl.lock").0), ((0, NOBODY), 1));
}

/// Broken, a file that is written anew beside the running service would lose what is appended
/// meanwhile.
#[test]
fn a_rewrite_beside_a_busy_service_loses_nothing() {
    let server = TestServer::new();
    server.post("a", "{\"first\":1}").assert_accepted();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut sent = 1;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                server.post("a", "{\"p\":1}").assert_accepted();
                sent += 1;
            }
            sent
        });
        for _ in 0..10 {
            let done = leitstand_repair(&server.data_dir(), &["--apply", "--domain", "a", "--rewrite"]);
            if done.code != Some(0) {
                stop.store(true, std::sync::atomic::Ordering::Relaxed);
            }
            assert_eq!(done.code, Some(0), "{done:?}");
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        load.join().unwrap()
    });
    assert_eq!(server.lines("a").len(), sent);
    assert_eq!(verify(&server.data_dir(), &[]).code, Some(0));
}
