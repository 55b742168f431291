//! Whoever is killed leaves something; the next one removes it, whatever the moment was.

use std::fs;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::snapshot::{Place, assert_refused, files, names};
use crate::support::{PATIENCE, command, skip, wait_exit, wait_for};

/// The first file of what is not finished.
const MARK: &str = ".leitstand-unfinished";

/// A snapshot that is under way, slowly, and what it is called while it is.
fn begun(place: &Place, to: &str) -> (std::process::Child, String) {
    let args = ["snapshot", "--data-dir", "data", "--to", to, "--rate", "200KiB"];
    let child = command(place.dir.path(), &args).env("LEITSTAND_DISK_RESERVE", "0").spawn().unwrap();
    let (above, name) = to.rsplit_once('/').unwrap_or((".", to));
    let beginning = format!("{name}.partial-");
    let partial = wait_for("the snapshot has begun", PATIENCE, || {
        let partial = names(&place.path(above)).into_iter().find(|name| name.starts_with(&beginning))?;
        place.path(above).join(&partial).join("b.example.jsonl").exists().then_some(partial)
    });
    (child, partial)
}

/// What is left of a snapshot that was killed.
pub(crate) fn killed_snapshot(place: &Place, to: &str) -> String {
    let (mut child, partial) = begun(place, to);
    kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
    wait_exit(&mut child, PATIENCE).unwrap();
    partial
}

/// Broken, a killed snapshot would look like a whole one or fill the disk for ever, or one that is under way would be
/// removed.
#[test]
fn what_a_killed_snapshot_leaves_is_removed_by_the_next() {
    let place = Place::filled();
    place.taken("first", &[]);
    let (mut child, partial) = begun(&place, "s");
    let left = ["first", partial.as_str()];
    assert_refused(&place, &place.snapshot("t", &[]), 2, &["another snapshot"], &left);
    // A restore may run beside it.
    place.restored("first", "r");
    assert_eq!(place.names(), ["first", "r", &partial], "it lives");
    kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
    wait_exit(&mut child, PATIENCE).unwrap();
    assert!(names(&place.path(&partial)).contains(&MARK.to_owned()));
    for args in [&["verify", "--snapshot", &partial][..], &["restore", "--from", &partial, "--to", "x"]] {
        let finished = place.leitstand(args);
        assert_eq!(finished.code, Some(1), "{finished:?}");
    }
    assert_eq!(place.taken("s", &[])["left_alone"], serde_json::json!([]));
    assert_eq!(place.names(), ["first", "r", "s"]);
    assert_eq!(place.restored("s", "r2"), files(&place.data()));
}

/// Broken, what a killed snapshot left would stay for ever where only restores run, and the other way round.
#[test]
fn a_restore_removes_what_a_snapshot_left() {
    let place = Place::filled();
    place.taken("s", &[]);
    killed_snapshot(&place, "t");
    place.restored("s", "r");
    assert_eq!(place.names(), ["r", "s"]);
}

/// Runs a command that is killed at the `when`th call of `call`. False: it came to its end before.
fn killed_at(place: &Place, call: &str, when: u32, args: &[&str]) -> bool {
    let inject = format!("inject={call}:signal=KILL:when={when}");
    let ended = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", &inject, env!("CARGO_BIN_EXE_leitstand")])
        .args(args)
        .current_dir(place.dir.path())
        .env("LEITSTAND_DISK_RESERVE", "0")
        .output()
        .unwrap();
    !ended.status.success()
}

fn there_is_strace() -> bool {
    let works =
        Command::new("strace").args(["-qq", "-o", "/dev/null", "-e", "inject=getpid:signal=0", "true"]).output();
    works.is_ok_and(|done| done.status.success())
}

/// Calls that change a directory, or wait for the disk.
const CALLS: [&str; 6] = ["mkdirat", "linkat", "fsync", "renameat", "unlinkat", "fdatasync"];
/// More of a kind are not looked at.
const CALLS_MAX: u32 = 30;

/// Broken, there would be a moment to be killed in after which something stays for ever.
#[test]
fn nothing_stays_whenever_a_snapshot_or_a_restore_is_killed() {
    if !there_is_strace() {
        return skip("needs strace, and the right to use it");
    }
    let place = Place::new();
    for domain in ["a", "b"] {
        place.append(domain, 0..3);
    }
    fs::create_dir_all(place.data().join(".leitstand")).unwrap();
    fs::write(place.data().join(".leitstand/tokens.json"), "{}").unwrap();
    place.taken("base", &[]);
    place.append("b", 3..4);
    let snapshot = ["snapshot", "--data-dir", "data", "--to", "s", "--base", "base"];
    let restore = ["restore", "--from", "base", "--to", "r"];
    let mut killed = 0;
    for call in CALLS {
        for when in 1..=CALLS_MAX {
            let at_snapshot = killed_at(&place, call, when, &snapshot);
            let at_restore = killed_at(&place, call, when, &restore);
            killed += u32::from(at_snapshot) + u32::from(at_restore);
            // What has its name is whole, though its maker did not live to say so.
            if place.path("s").exists() {
                assert_eq!(place.restored("s", "of-s"), files(&place.data()), "{call} {when}");
                fs::remove_dir_all(place.path("of-s")).unwrap();
            }
            if place.path("r").exists() {
                assert_eq!(files(&place.path("r")), files(&place.path("base")), "{call} {when}");
            }
            place.taken("last", &[]);
            let left = place.names();
            assert!(
                left.iter().all(|name| ["base", "last", "r", "s"].contains(&name.as_str())),
                "{call} {when}: {left:?}"
            );
            for name in &left {
                assert!(!place.path(name).join(MARK).exists(), "a mark in {name}: {call} {when}");
            }
            if place.path("s").exists() {
                assert_eq!(place.found("s"), (vec![], Some(0)), "{call} {when}");
            }
            for name in left.iter().filter(|name| *name != "base") {
                fs::remove_dir_all(place.path(name)).unwrap();
            }
            if !at_snapshot && !at_restore {
                break;
            }
        }
    }
    assert!(killed > 20, "{killed} were killed");
}

/// Broken, whoever is killed while it clears up would leave what nobody knows any more.
#[test]
fn nothing_stays_when_the_clearing_up_is_killed() {
    if !there_is_strace() {
        return skip("needs strace, and the right to use it");
    }
    let place = Place::filled();
    for when in 1..=CALLS_MAX {
        let left = killed_snapshot(&place, "s");
        fs::create_dir_all(place.path(&left).join(".torn")).unwrap();
        fs::write(place.path(&left).join(".torn/x"), "").unwrap();
        let killed = killed_at(&place, "unlinkat", when, &["snapshot", "--data-dir", "data", "--to", "t"]);
        place.taken("last", &[]);
        let names = place.names();
        assert!(names.iter().all(|name| ["last", "t"].contains(&name.as_str())), "{when}: {names:?}");
        for name in names {
            fs::remove_dir_all(place.path(&name)).unwrap();
        }
        if !killed {
            assert!(when > 4, "{when}");
            return;
        }
    }
    panic!("it never came to its end");
}

/// Broken, a snapshot on a file system without locks would be removed by its neighbour.
#[test]
fn a_mark_without_a_lock_is_known_by_its_process() {
    let place = Place::filled();
    let left = killed_snapshot(&place, "s");
    let path = place.path(&left).join(MARK);
    let mut mark: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let mut child = Command::new("sleep").arg("600").spawn().unwrap();
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    let started: u64 = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().parse().unwrap();
    mark["pid"] = child.id().into();
    mark["started"] = started.into();
    fs::write(&path, mark.to_string()).unwrap();
    place.taken("s", &[]);
    assert!(place.path(&left).exists(), "its process lives");
    child.kill().unwrap();
    wait_exit(&mut child, Duration::from_secs(10)).unwrap();
    place.taken("s2", &[]);
    assert_eq!(place.names(), ["s", "s2"]);
}

/// The processes that this one started and that live.
fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().filter_map(Result::ok);
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>()).collect()
}

fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

/// Broken, a drill that was killed would leave a service that runs for ever, and its data.
#[test]
fn a_killed_drill_takes_its_service_with_it() {
    let place = Place::filled();
    place.taken("backup", &[]);
    let mut child =
        command(place.dir.path(), &["drill", "--seconds", "300"]).env("TMPDIR", place.dir.path()).spawn().unwrap();
    let started = wait_for("the service of the drill runs", PATIENCE, || {
        let all = children(child.id());
        let work = place.names().into_iter().find(|name| name.starts_with("leitstand-drill-"))?;
        (!all.is_empty() && place.path(&work).join("work/service.sock").exists()).then_some(all)
    });
    child.kill().unwrap();
    wait_exit(&mut child, PATIENCE).unwrap();
    wait_for("its children are gone", PATIENCE, || started.iter().all(|pid| !is_alive(*pid)).then_some(()));
    assert!(place.names().iter().any(|name| name.starts_with("leitstand-drill-")), "it had no time to clear up");
    let foreign = place.path("leitstand-drill-mine");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("report.md"), "x").unwrap();
    let args = ["drill", "--restore-from", "backup", "--report", "filed"];
    let finished =
        crate::support::run_within(command(place.dir.path(), &args).env("TMPDIR", place.dir.path()), PATIENCE * 3);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!(place.names(), ["backup", "filed", "leitstand-drill-mine"]);
    // In a directory that somebody chose.
    let args = ["drill", "--dir", "chosen", "--seconds", "300"];
    let mut child = command(place.dir.path(), &args).spawn().unwrap();
    wait_for("it works", PATIENCE, || place.path("chosen/work/service.sock").exists().then_some(()));
    child.kill().unwrap();
    wait_exit(&mut child, PATIENCE).unwrap();
    fs::write(place.path("chosen/mine"), "x").unwrap();
    let again = ["drill", "--dir", "chosen", "--restore-from", "backup"];
    let refused = place.leitstand(&again);
    assert!(refused.code == Some(2) && refused.stderr.contains("not empty"), "{refused:?}");
    assert_eq!(names(&place.path("chosen")), ["mine"], "what the drill made is gone, what others made is not");
}

/// Broken, half a bundle would stand where a whole one should, and keep the next one away.
#[test]
fn a_failed_support_bundle_leaves_nothing() {
    let place = Place::filled();
    // Room for the mark, and for nothing else.
    let script = format!("trap '' XFSZ; ulimit -f 1; exec {} support-bundle --to b", env!("CARGO_BIN_EXE_leitstand"));
    let failed =
        Command::new("sh").args(["-c", &script]).current_dir(place.dir.path()).env("LEITSTAND_TOKEN", "x").output();
    let failed = failed.unwrap();
    assert_eq!(failed.status.code(), Some(2), "{failed:?}");
    assert!(String::from_utf8_lossy(&failed.stderr).contains("cannot write"), "{failed:?}");
    assert_eq!(place.names(), [""; 0], "nothing is left");
    // Killed by the same limit.
    let script = format!("ulimit -f 1; exec {} support-bundle --to b", env!("CARGO_BIN_EXE_leitstand"));
    let killed =
        Command::new("sh").args(["-c", &script]).current_dir(place.dir.path()).env("LEITSTAND_TOKEN", "x").output();
    assert_eq!(killed.unwrap().status.code(), None);
    assert_eq!(place.names().len(), 1);
    let finished = place.leitstand(&["support-bundle", "--to", "b"]);
    assert_eq!(finished.code, Some(1), "nobody answers: {finished:?}");
    assert_eq!(place.names(), ["b"]);
    assert!(!place.path("b").join(MARK).exists() && place.path("b/bundle.json").exists());
}

/// Broken, nobody would know what fills the disk.
#[test]
fn doctor_names_what_is_left() {
    let place = Place::filled();
    fs::create_dir(place.path("backups")).unwrap();
    let left = killed_snapshot(&place, "backups/s");
    fs::create_dir(place.path("backups/x.partial-5")).unwrap();
    let look = || {
        let mut command = command(place.dir.path(), &["doctor", "--json"]);
        let env = [("LEITSTAND_TOKEN", "x"), ("LEITSTAND_DATA_DIR", "data"), ("LEITSTAND_SNAPSHOT_DIR", "backups")];
        let finished = crate::support::run(command.envs(env));
        finished.stdout
    };
    let told = look();
    assert!(told.contains("x.partial-5") && told.contains("it holds no mark of leitstand"), "{told}");
    assert!(told.contains("the next snapshot or restore here removes it"), "{left}: {told}");
    place.taken("backups/t", &[]);
    fs::remove_dir(place.path("backups/x.partial-5")).unwrap();
    assert!(!look().contains("left-overs"), "{}", look());
}
