//! `leitstand drill`: that it measures a recovery, that it can fail, and that it leaves nothing behind.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Finished, PATIENCE, command, run, run_within, wait_exit, wait_for};

/// A drill takes seconds; beside other tests more of them.
const LONG_PATIENCE: Duration = Duration::from_secs(90);
/// Little load, and a few snapshots.
const SHORT: [&str; 8] = ["--seconds", "2", "--snapshot-every", "600ms", "--clients", "2", "--domains", "2"];

fn dir() -> TempDir {
    tempfile::Builder::new().prefix("leitstand-drill-it-").tempdir().unwrap()
}

/// A drill in `cwd` whose work directory is `work` there, and whose report goes to `filed`.
fn drill(cwd: &Path, args: &[&str]) -> Finished {
    let args = [&["drill", "--dir", "work", "--report", "filed"], args].concat();
    run_within(command(cwd, &args).env("TMPDIR", cwd), LONG_PATIENCE)
}

/// The two forms of the one report in `filed`.
fn filed(cwd: &Path) -> (String, Value) {
    let one = |extension: &str| {
        let entries = fs::read_dir(cwd.join("filed")).unwrap().map(|entry| entry.unwrap().path());
        let files: Vec<PathBuf> = entries.filter(|path| path.extension().unwrap() == extension).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        assert!(files[0].file_name().unwrap().to_str().unwrap().starts_with("drill-2"), "{files:?}");
        fs::read_to_string(&files[0]).unwrap()
    };
    (one("md"), serde_json::from_str(&one("json")).unwrap())
}

/// Names of the checks that failed.
fn failed(report: &Value) -> Vec<&str> {
    let checks = report["checks"].as_array().unwrap().iter();
    checks.filter(|check| check["ok"] == false).map(|check| check["name"].as_str().unwrap()).collect()
}

/// A sound snapshot of two events, in `cwd`/backup.
fn backup(cwd: &Path) -> PathBuf {
    fs::create_dir(cwd.join("source")).unwrap();
    fs::write(cwd.join("source/a.jsonl"), "{\"id\":1,\"domain\":\"a\"}\n{\"id\":2,\"domain\":\"a\"}\n").unwrap();
    let finished = run(&mut command(cwd, &["snapshot", "--data-dir", "source", "--to", "backup"]));
    assert_eq!(finished.code, Some(0), "{finished:?}");
    cwd.join("backup")
}

/// Every file below a directory with its content, sorted.
fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(contents(&path)) } else { files.push((path.clone(), fs::read(&path).unwrap())) }
    }
    files.sort();
    files
}

/// Broken, nobody would know how long a recovery takes and what it costs, or would read a report that
/// says something else than was measured.
#[test]
fn a_drill_measures_the_recovery_and_files_a_report() {
    let cwd = dir();
    let finished = drill(cwd.path(), &[&SHORT[..], &["--json"]].concat());
    assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""), "{finished:?}");
    let (text, report) = filed(cwd.path());
    assert_eq!(serde_json::from_str::<Value>(&finished.stdout).unwrap(), report, "one document, printed and filed");
    assert_eq!(report["verdict"], "passed");
    assert_eq!(failed(&report), [""; 0]);
    let checks = report["checks"].as_array().unwrap();
    assert!(checks.iter().any(|check| check["name"] == "a named token is taken as before"), "{checks:?}");

    let events = &report["events"];
    let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("{value}"));
    let [acknowledged, restored, lost] = ["acknowledged", "restored", "lost"].map(|name| number(&events[name]));
    assert!(acknowledged > 20 && restored > 0, "{events:#}");
    // At most one event of each client and domain is restored whose ack was under way at the kill.
    assert!((acknowledged..=acknowledged + 4).contains(&(restored + lost)), "{events:#}");
    assert_eq!(events["lost_before_snapshot"], 0);
    let domains = events["domains"].as_array().unwrap();
    assert_eq!(domains.iter().map(|domain| number(&domain["lost"])).sum::<u64>(), lost);

    let ms = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{value}"));
    let steps: f64 = report["steps"].as_array().unwrap().iter().map(|step| ms(&step["duration_ms"])).sum();
    let rto = ms(&report["rto"]["measured_ms"]);
    assert!(steps > 0.0 && steps <= rto && rto < steps + 1000.0, "the parts are the whole: {steps} of {rto}");
    let snapshots = report["snapshots"].as_array().unwrap();
    let newest = snapshots.iter().find(|snapshot| snapshot["restored"] == true).unwrap();
    assert!(number(&newest["lines"]) == restored && newest["complete"] == true, "{newest}");
    // A busy machine may have had time for one only.
    let second = snapshots.get(1).filter(|second| second["complete"] == true);
    assert!(second.is_none_or(|second| second["base"] == snapshots[0]["name"]), "{snapshots:#?}");
    // What was lost was acknowledged after the newest snapshot began.
    let oldest = ms(&events["lost_before_kill"]["first_ms"]);
    assert_eq!(ms(&report["rpo"]["measured_ms"]), oldest);
    assert!(oldest <= ms(&report["lost_after_ms"]) - ms(&newest["mark_ms"]), "{oldest} {newest}");
    assert!(ms(&report["source"]["lasted_ms"]) >= 2000.0, "{}", report["source"]);

    for part in [
        "# Recovery drill of 2",
        "| Start | End | RTO met? | RPO met? |",
        "[x] yes / [ ] no | [x] yes / [ ] no",
        "## Lessons learned",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(text.contains(&format!("| **all** | {acknowledged} | {restored} | {lost} |")), "{text}");
    assert!(!cwd.path().join("work").exists(), "nothing is left");
}

/// Broken, a drill that missed its targets would be filed as a good one.
#[test]
fn a_missed_target_ends_with_1_and_keeps_the_work_directory() {
    let cwd = dir();
    let finished = drill(cwd.path(), &[&SHORT[..], &["--rto", "0s", "--rpo", "0s"]].concat());
    assert_eq!(finished.code, Some(1), "{finished:?}");
    let (text, report) = filed(cwd.path());
    assert_eq!(failed(&report), ["RTO is within its target", "RPO is within its target"]);
    assert_eq!((&report["rto"]["met"], &report["rpo"]["met"]), (&Value::Bool(false), &Value::Bool(false)));
    assert!(text.contains("[ ] yes / [x] no | [ ] yes / [x] no") && text.contains("## What failed"), "{text}");
    assert!(finished.stdout.contains("recovery drill failed") && finished.stdout.contains("kept: "), "{finished:?}");
    assert!(finished.stderr.contains("snapshot 0001-full"), "plain lines say how far it is: {finished:?}");
    assert!(
        cwd.path().join("work/work/data/drill-1.jsonl").exists() && cwd.path().join("work/work/snapshots").exists()
    );
}

/// Broken, events could vanish from the files, and the drill would not notice.
#[test]
fn events_that_vanish_under_the_drill_are_missed() {
    let cwd = dir();
    let args = [&["drill", "--dir", "work", "--report", "filed"], &SHORT[..]].concat();
    let mut child = command(cwd.path(), &args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // The third line of a file becomes another event of the same length, before the first snapshot is taken.
    let path = cwd.path().join("work/work/data/drill-1.jsonl");
    let at = wait_for("four lines", PATIENCE, || {
        let data = fs::read_to_string(&path).ok()?;
        let ends: Vec<usize> = data.match_indices('\n').map(|(at, _)| at + 1).collect();
        let line = data.get(ends.get(1).copied()?..ends.get(2).copied()?)?;
        Some((ends[1] + line.find("\"drill\":\"")? + 9) as u64)
    });
    File::options().write(true).open(&path).unwrap().write_all_at(b"someone-else----", at).unwrap();
    assert_eq!(wait_exit(&mut child, LONG_PATIENCE).unwrap().code(), Some(1));
    let (_, report) = filed(cwd.path());
    let wanted = [
        "each client's events are there once, whole and in order",
        "every event acknowledged before the snapshot is there",
    ];
    assert_eq!(failed(&report), wanted);
    let events = &report["events"];
    assert_eq!([&events["damaged"], &events["holes"], &events["lost_before_snapshot"]], [1, 1, 1], "{events:#}");
}

/// Broken, an operator could not exercise with the real backup, or a damaged one would pass.
#[test]
fn the_operators_snapshot_is_restored_and_damage_is_found() {
    let cwd = dir();
    let backup = backup(cwd.path());
    let before = contents(&backup);
    let finished = drill(cwd.path(), &["--restore-from", "backup"]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let (text, report) = filed(cwd.path());
    assert_eq!(
        (&report["source"]["kind"], &report["restored"]["lines"]),
        (&"snapshot".into(), &2.into()),
        "{report:#}"
    );
    assert!(report["rto"]["met"] == true && report["rpo"]["measured_ms"].is_null(), "{report:#}");
    assert!(report["source"]["age_ms"].as_f64().is_some_and(|age| age < 60_000.0), "{report:#}");
    assert!(text.contains("| RPO (data lost, as time) | 5 min | not measured | – |"), "{text}");
    assert_eq!(contents(&backup), before, "the backup is not touched");

    // One byte of the events, somewhere in the middle.
    let (path, bytes) = before.iter().find(|(_, bytes)| bytes.starts_with(b"{\"id\":1,")).unwrap();
    File::options().write(true).open(path).unwrap().write_all_at(&[bytes[6] ^ 1], 6).unwrap();
    fs::remove_dir_all(cwd.path().join("filed")).unwrap();
    let finished = drill(cwd.path(), &["--restore-from", "backup"]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    let (text, report) = filed(cwd.path());
    assert_eq!(failed(&report), ["the snapshot is sound", "RTO is within its target"]);
    assert!(report["rto"]["measured_ms"].is_null() && text.contains("not reached"), "{text}");
}

/// Broken, a drill would mix with files of somebody else, or say "failed" where it never began.
#[test]
fn what_cannot_be_drilled_ends_with_2_and_touches_nothing() {
    let cwd = dir();
    fs::create_dir(cwd.path().join("work")).unwrap();
    fs::write(cwd.path().join("work/precious"), "x").unwrap();
    let backup = backup(cwd.path());
    let before = contents(cwd.path());
    let inside = backup.join("new");
    for (args, said) in [
        (&["--dir", "work"][..], "not empty"),
        (&["--dir", "work/precious"], "cannot work in"),
        (&["--restore-from", "nowhere"], "cannot look at the snapshot"),
        (&["--restore-from", "work/precious"], "no directory"),
        (&["--restore-from", "backup", "--dir", inside.to_str().unwrap()], "must not lie in the snapshot"),
        (&["--restore-from", "backup", "--report", "backup"], "must not lie in the snapshot"),
        (&["--restore-from", "backup", "--seconds", "5"], "cannot be used with"),
        (&["--seconds", "2", "--snapshot-every", "2s"], "no snapshot to restore"),
        (&["--seconds", "0"], "--seconds"),
        (&["--clients", "0"], "--clients"),
        (&["--event-bytes", "1000000"], "--event-bytes"),
        (&["--rto", "4"], "500ms, 90s, 5m or 4h"),
    ] {
        let finished = run(command(cwd.path(), &[&["drill"], args].concat()).env("TMPDIR", cwd.path()));
        assert_eq!(finished.code, Some(2), "{args:?}: {finished:?}");
        assert!(finished.stderr.contains(said) && finished.stdout.is_empty(), "{args:?}: {finished:?}");
    }
    assert_eq!(contents(cwd.path()), before);
}

/// Broken, a drill would write to the data of the real service, or stop it.
#[test]
fn the_callers_data_and_settings_are_left_alone() {
    let cwd = dir();
    for name in ["real", "data"] {
        fs::create_dir(cwd.path().join(name)).unwrap();
        fs::write(cwd.path().join(name).join("drill-1.jsonl"), "{\"id\":1,\"domain\":\"drill-1\"}\n").unwrap();
    }
    fs::write(cwd.path().join(".env"), "LEITSTAND_FSYNC=sometimes\nLEITSTAND_DATA_DIR=data\n").unwrap();
    let before = contents(cwd.path());
    let args = [&["drill", "--dir", "work", "--report", "filed"], &SHORT[..]].concat();
    let mut command = command(cwd.path(), &args);
    command
        .env("LEITSTAND_DATA_DIR", cwd.path().join("real"))
        .env("LEITSTAND_TOKEN", "of-the-real-service")
        .env("LEITSTAND_RATE_LIMIT", "1/hour")
        .env("CHRONIK_MAX_BODY", "nonsense");
    let finished = run_within(&mut command, LONG_PATIENCE);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let after: Vec<_> =
        contents(cwd.path()).into_iter().filter(|(path, _)| !path.starts_with(cwd.path().join("filed"))).collect();
    assert_eq!(after, before);
    let (text, _) = filed(cwd.path());
    assert!(!text.contains("of-the-real-service"));
}

/// Broken, a drill that somebody ends would leave its service running and its data on the disk.
#[test]
fn a_signal_ends_the_service_of_the_drill_too() {
    for signal in [Signal::INT, Signal::TERM] {
        let cwd = dir();
        let mut child: Child = command(cwd.path(), &["drill", "--dir", "work", "--seconds", "60"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Held by its inode, so that it can be asked after its name is gone.
        let socket = cwd.path().join("work/work/service.sock");
        let asked = wait_for("the service listens", PATIENCE, || UnixStream::connect(&socket).ok());
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(wait_exit(&mut child, PATIENCE).unwrap().code(), Some(2));
        assert!(!cwd.path().join("work").exists());
        // A service that is gone has closed its side. One that runs would do so after ten seconds only.
        asked.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let end = std::io::Read::read(&mut &asked, &mut [0]);
        assert!(matches!(end, Ok(0)) || end.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset));
    }
}
