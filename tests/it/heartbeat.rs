//! The heartbeat file, and `leitstand healthcheck --heartbeat`.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::support::{ADMIN_TOKEN, Finished, PATIENCE, Request, TestServer, command, run, wait_for};

/// The next beat is at most five seconds away; the machine may be busy.
const BEAT_PATIENCE: Duration = Duration::from_secs(40);

fn beat(path: &Path) -> Option<Value> {
    let text = fs::read_to_string(path).ok()?;
    Some(serde_json::from_str(&text).unwrap_or_else(|e| panic!("half a heartbeat, {e}: {text:?}")))
}

fn check(dir: &Path, args: &[&str]) -> Finished {
    // No setting and no token is needed.
    run(&mut command(dir, &[&["healthcheck"], args].concat()))
}

/// Broken, nobody would notice by the file that the service is down, or everybody would think so.
#[test]
fn the_heartbeat_tells_how_the_service_is() {
    let builder = TestServer::builder();
    let path = builder.dir().join("beat");
    let mut server = builder.env("LEITSTAND_HEARTBEAT_FILE", &path).start();
    let first = wait_for("the first beat", PATIENCE, || beat(&path));
    let mut keys: Vec<_> = first.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["at", "last_success", "pid", "version"]);
    assert_eq!((&first["last_success"], &first["version"]), (&Value::Null, &env!("CARGO_PKG_VERSION").into()));
    assert_eq!(first["pid"], server.pid().as_raw_nonzero().get());
    let file = path.to_str().unwrap();
    let good = check(server.dir(), &["--heartbeat", file]);
    assert_eq!(good.code, Some(0), "{good:?}");
    assert!(good.stdout.contains("no append since the start"), "{good:?}");
    let late = check(server.dir(), &["--heartbeat", file, "--max-success-age", "1h"]);
    assert_eq!(late.code, Some(1), "{late:?}");
    server.post("a", "{}").assert_accepted();
    let told = wait_for("a beat that tells of the append", BEAT_PATIENCE, || {
        beat(&path).filter(|beat| !beat["last_success"].is_null())
    });
    assert!(leitstand::timestamp::parse_rfc3339(told["last_success"].as_str().unwrap()).is_some());
    assert_eq!(check(server.dir(), &["--heartbeat", file, "--max-success-age", "1h"]).code, Some(0));
    // Not ready: the file grows old.
    let switch = Request::post_to("/admin/read-only", r#"{"on":true}"#).header("X-Auth", ADMIN_TOKEN);
    assert_eq!(server.send(&switch).status, 200);
    let old = wait_for("an old heartbeat", BEAT_PATIENCE, || {
        let finished = check(server.dir(), &["--heartbeat", file, "--max-age", "7s"]);
        (finished.code == Some(1)).then_some(finished)
    });
    assert!(old.stderr.contains("not ready, or not running"), "{old:?}");
    assert_eq!(server.stop().code, Some(0));
    assert!(beat(&path).is_some(), "it stays, with what it says of the last success");
    assert!(!server.dir().join("beat.tmp").exists());
    assert_eq!(server.data_names(), ["a.jsonl", "a.jsonl.lock"]);
}

/// Broken, a directory that is not there would fill the log, or take the service with it.
#[test]
fn what_cannot_be_written_is_told_once() {
    let builder = TestServer::builder();
    let path = builder.dir().join("run/beat");
    let server = builder.env("LEITSTAND_HEARTBEAT_FILE", &path).start();
    wait_for("the second failure", BEAT_PATIENCE, || {
        (server.metric("leitstand_heartbeat_failures_total", "") >= 2.0).then_some(())
    });
    server.post("a", "{}").assert_accepted();
    let told = |what: &str| server.log_lines().iter().filter(|line| line["message"] == what).count();
    assert_eq!(told("the heartbeat cannot be written"), 1);
    fs::create_dir(server.dir().join("run")).unwrap();
    wait_for("a beat", BEAT_PATIENCE, || beat(&path));
    let again = server.log_line("the end of it", |line| line["message"] == "the heartbeat is written again");
    assert_eq!(again["level"], "INFO");
}

/// Broken, a checker that was called wrongly would ring the alarm, or keep it from ringing.
#[test]
fn what_is_no_heartbeat_is_no_good_sign() {
    let dir = tempfile::tempdir().unwrap();
    let missing = check(dir.path(), &["--heartbeat", "missing"]);
    assert_eq!(missing.code, Some(1), "{missing:?}");
    assert!(missing.stderr.contains("LEITSTAND_HEARTBEAT_FILE"), "{missing:?}");
    fs::write(dir.path().join("half"), "{\"at\":\"2026").unwrap();
    assert_eq!(check(dir.path(), &["--heartbeat", "half"]).code, Some(1));
    for wrong in [
        &["--heartbeat", "half", "--max-age", "60"][..],
        &["--heartbeat", "half", "--max-age", "soon"],
        &["--max-age", "60s"],
        &["--heartbeat", "half", "--port", "1"],
    ] {
        assert_eq!(check(dir.path(), wrong).code, Some(2), "{wrong:?}");
    }
}
