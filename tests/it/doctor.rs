//! `leitstand doctor`: what it finds, what it says, and that it leaves everything as it was.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Instant;

use serde_json::{Value, json};

use crate::support::{ADMIN_TOKEN, Finished, PATIENCE, Request, TOKEN, TestServer, command, run};

/// What a busy machine may cause.
const MAY_WARN: [&str; 6] = ["filesystem", "latency", "syncs", "locks", "clock", "heartbeat"];

/// The doctor beside the service, with its settings.
fn doctor_with(server: &TestServer, args: &[&str], env: &[(&str, &str)]) -> Finished {
    let port = server.address().rsplit(':').next().unwrap();
    let mut command = command(server.dir(), &[&["doctor", "--port", port], args].concat());
    command
        .env("LEITSTAND_TOKEN", TOKEN)
        .env("LEITSTAND_ADMIN_TOKEN", ADMIN_TOKEN)
        .env("LEITSTAND_DISK_RESERVE", "0")
        .envs(env.iter().copied());
    run(&mut command)
}

fn doctor(server: &TestServer, args: &[&str]) -> Finished {
    doctor_with(server, args, &[])
}

/// The lines of a verdict, without it.
fn lines<'a>(finished: &'a Finished, verdict: &str) -> Vec<&'a str> {
    finished.stdout.lines().filter_map(|line| line.strip_prefix(verdict)).map(str::trim).collect()
}

#[track_caller]
fn assert_fails(finished: &Finished, start: &str, next: &str) {
    assert_eq!(finished.code, Some(1), "{finished:?}");
    let found = lines(finished, "FAIL")
        .into_iter()
        .any(|line| line.split_whitespace().collect::<Vec<_>>().join(" ").starts_with(start) && line.contains(next));
    assert!(found, "no {start:?} with {next:?} in\n{}", finished.stdout);
}

#[track_caller]
fn assert_warns(finished: &Finished, text: &str) {
    assert!(lines(finished, "warn").iter().any(|line| line.contains(text)), "no {text:?} in\n{}", finished.stdout);
}

/// Broken, the check would cry wolf beside a healthy service, or leave something behind.
#[test]
fn a_healthy_service_is_healthy_and_nothing_is_written() {
    let server = TestServer::new();
    server.post("a", "{}").assert_accepted();
    let (names, data) = (server.data_names(), server.data("a"));
    let finished = doctor(&server, &[]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert!(lines(&finished, "FAIL").is_empty(), "{}", finished.stdout);
    for line in lines(&finished, "warn") {
        assert!(MAY_WARN.iter().any(|name| line.starts_with(name)), "{line}");
    }
    let ok = lines(&finished, "ok").join("\n");
    for name in ["settings", "data", "live", "version", "ready", "metrics", "strangers", "token", "domains"] {
        assert!(ok.lines().any(|line| line.starts_with(name)), "no {name} in\n{}", finished.stdout);
    }
    assert!(finished.stdout.ends_with(" failed\n"), "{}", finished.stdout);
    assert_eq!((server.data_names(), server.data("a")), (names, data));
    assert_eq!(server.metric("leitstand_events_total", ""), 1.0);
    for secret in [TOKEN, ADMIN_TOKEN] {
        assert!(!finished.stdout.contains(secret) && !finished.stderr.contains(secret));
    }
    let document = doctor(&server, &["--json"]);
    let document: Value = serde_json::from_str(&document.stdout).unwrap();
    assert_eq!(document["failed"], 0);
    assert!(document["checks"].as_array().unwrap().iter().all(|check| check["verdict"] != "FAIL"));
    assert!(document["service"].as_str().unwrap().starts_with("http://127.0.0.1:"));
}

/// Broken, whoever was woken would not be told which of the reasons it is, nor what to do.
#[test]
fn what_fails_is_named_with_its_next_step() {
    let server = TestServer::builder().env("LEITSTAND_DISK_RESERVE", "4294967296GiB").start();
    let finished = doctor(&server, &[]);
    assert_fails(&finished, "ready disk_reserve: ", "RUNBOOK, \"Full disk\"");
    let switch = Request::post_to("/admin/read-only", r#"{"on":true}"#).header("X-Auth", ADMIN_TOKEN);
    assert_eq!(server.send(&switch).status, 200);
    assert_fails(&doctor(&server, &[]), "ready not_read_only: ", "RUNBOOK, \"Maintenance window\"");
    std::fs::write(server.dir().join("wrong"), "wrong-token\n").unwrap();
    let wrong = doctor(&server, &["--token-file", "wrong"]);
    assert_fails(&wrong, "token not accepted", "RUNBOOK, \"Tokens: give, rotate, revoke\"");
    assert!(!wrong.stdout.contains("wrong-token"));
    let document: Value = serde_json::from_str(&doctor(&server, &["--json"]).stdout).unwrap();
    let failed = document["checks"].as_array().unwrap().iter().filter(|check| check["verdict"] == "FAIL");
    assert_eq!(document["failed"], failed.clone().count());
    assert!(failed.clone().count() >= 2 && failed.clone().all(|check| check["next"].is_string()), "{document}");
}

/// Broken, a service that is not there, or something else on its port, would pass for it, or hang the
/// check.
#[test]
fn what_does_not_answer_as_the_service_does_fails() {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let began = Instant::now();
    let silent = run(&mut command(dir.path(), &["doctor", "--url", &url]));
    assert_fails(&silent, "live no answer from http://127.0.0.1:", "systemctl status");
    assert!(began.elapsed() < PATIENCE);
    drop(listener);
    let gone = run(&mut command(dir.path(), &["doctor", "--url", &url]));
    assert_fails(&gone, "live no answer", "RUNBOOK, \"Start\"");
    assert_eq!(lines(&gone, "ok"), [""; 0]);
}

/// Answers every request with `answer`, and gives back all that was sent.
fn stranger(answer: &'static str) -> (String, std::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sent, received) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let n = stream.read(&mut request).unwrap_or(0);
            let _ = sent.send(String::from_utf8_lossy(&request[..n]).into_owned());
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    (url, received)
}

/// Broken, the token of this machine would be shown to whoever sits at an address.
#[test]
fn a_service_elsewhere_gets_only_the_token_that_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let (url, received) = stranger("HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n{\"status\":\"ok\"}");
    let mut command = command(dir.path(), &["doctor", "--url", &url]);
    let finished = run(command.env("LEITSTAND_TOKEN", TOKEN).env("LEITSTAND_ADMIN_TOKEN", ADMIN_TOKEN));
    assert_fails(
        &finished,
        "strangers /health answers 200 with a wrong token, not 401",
        "Tokens: give, rotate, revoke",
    );
    assert_warns(&finished, "the right one was not tried");
    let requests: Vec<String> = received.try_iter().collect();
    assert!(requests.len() > 3);
    assert!(!requests.iter().any(|request| request.contains(TOKEN) || request.contains(ADMIN_TOKEN)), "{requests:?}");
    assert!(requests.iter().all(|request| request.starts_with("GET ")), "{requests:?}");
    let (url, _received) = stranger("HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nnope");
    let other = run(&mut crate::support::command(dir.path(), &["doctor", "--url", &url]));
    assert_fails(&other, "live http://127.0.0.1", "is this the right address?");
}

/// Broken, a deployment that did not happen, or a release with a weak secret, would pass.
#[test]
fn a_deployment_and_a_release_are_held_to_more() {
    let server = TestServer::builder().env("LEITSTAND_VERSION", "1.0.0-old").start();
    let usual = doctor(&server, &[]);
    assert_eq!(usual.code, Some(0), "{usual:?}");
    assert_warns(&usual, "the service is 1.0.0-old");
    assert_fails(&doctor(&server, &["--post-deploy"]), "version the service is 1.0.0-old", "restart the service");
    let deployed = doctor_with(&server, &["--post-deploy"], &[("LEITSTAND_VERSION", "1.0.0-old")]);
    assert_eq!(deployed.code, Some(0), "{deployed:?}");
    assert_warns(&deployed, "no event was stored since the start");
    let release =
        doctor_with(&server, &["--release"], &[("LEITSTAND_FSYNC", "never"), ("LEITSTAND_RATE_LIMIT", "off")]);
    assert_fails(&release, "release a token is shorter than 16 characters", "openssl rand");
    for text in ["LEITSTAND_FSYNC is never", "a rate limit is off", "whether a backup is made"] {
        assert_warns(&release, text);
    }
    let strong = ("LEITSTAND_TOKEN", "0123456789abcdef,0123456789abcdeg");
    std::fs::write(server.dir().join("token"), TOKEN).unwrap();
    let admin = ("LEITSTAND_ADMIN_TOKEN", "0123456789abcdefadmin");
    let good = doctor_with(&server, &["--release", "--token-file", "token"], &[strong, admin]);
    assert_eq!(good.code, Some(0), "{good:?}");
    assert!(lines(&good, "ok").iter().any(|line| line.contains("the token is no admin token")), "{}", good.stdout);
    let dev = doctor_with(&server, &["--release"], &[("LEITSTAND_TOKEN", "dev")]);
    assert_fails(&dev, "settings the token is \"dev\"", "openssl rand");
}

/// Broken, damage that the last lines show, or an old heartbeat, would go unseen.
#[test]
fn the_files_of_this_machine_are_looked_at() {
    let server = TestServer::builder()
        .data_file("torn.jsonl", "{}\n{\"x")
        .data_file("other.jsonl", "{\"domain\":\"x\"}\n")
        .start();
    let data = server.data_dir();
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(server.dir().join("beat"), r#"{"at":"2026-01-01T00:00:00.000Z"}"#).unwrap();
    let finished =
        doctor_with(&server, &[], &[("LEITSTAND_HEARTBEAT_FILE", "beat"), ("LEITSTAND_MAX_CONNECTIONS", "1000000")]);
    for text in ["unfinished last lines: torn.jsonl", "no event of their domain: other.jsonl", "others may look into"] {
        assert_warns(&finished, text);
    }
    assert_fails(&finished, "heartbeat the last heartbeat is ", "RUNBOOK, \"Heartbeat\"");
    assert_warns(&finished, "the limit of open files is too low");
    let no_dir = doctor_with(&server, &[], &[("LEITSTAND_DATA_DIR", "nowhere")]);
    assert_fails(&no_dir, "data dir \"nowhere\"", "ls -ld nowhere");
    assert!(!server.dir().join("nowhere").exists());
}

/// Broken, the whole way could not be tried, or would be tried by accident.
#[test]
fn an_event_is_written_only_when_it_is_asked_for() {
    let server = TestServer::new();
    let probe = doctor(&server, &["--write-probe", "health.test"]);
    assert_eq!(probe.code, Some(0), "{probe:?}");
    assert!(lines(&probe, "ok").iter().any(|line| line.starts_with("write") && line.contains("health.test")));
    let stored = server.lines("health.test");
    assert_eq!((stored.len(), &stored[0]["event"]), (1, &"doctor.probe".into()));
    let switch = Request::post_to("/admin/read-only", r#"{"on":true}"#).header("X-Auth", ADMIN_TOKEN);
    assert_eq!(server.send(&switch).status, 200);
    assert_fails(
        &doctor(&server, &["--write-probe", "health.test"]),
        "write 503: {\"detail\":\"read only\"}",
        "in the log",
    );
    assert_eq!(server.lines("health.test").len(), 1);
}

/// Broken, a script could not tell a sick service from a mistyped command.
#[test]
fn wrong_usage_is_code_two() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("empty"), " \n").unwrap();
    for (args, told) in [
        (&["--url", "https://example.com"][..], "behind the proxy"),
        (&["--url", "example.com"], "is no URL of a service"),
        (&["--url", "http://127.0.0.1:1", "--token-file", "missing"], "the token file cannot be read"),
        (&["--url", "http://127.0.0.1:1", "--token-file", "empty"], "the token file holds no token"),
        (&["--url", "http://127.0.0.1:1", "--write-probe", "a"], "--write-probe needs a token"),
        (&["--url", "http://127.0.0.1:1", "--write-probe", "-"], "invalid value"),
        (&["--url", "http://127.0.0.1:1", "--port", "1"], "cannot be used with"),
        (&["--release", "--post-deploy"], "cannot be used with"),
        // Without settings nobody knows where the service is.
        (&[], "LEITSTAND_TOKEN is not set"),
    ] {
        let finished = run(&mut command(dir.path(), &[&["doctor"], args].concat()));
        assert_eq!((finished.code, finished.stdout.as_str()), (Some(2), ""), "{args:?}: {finished:?}");
        assert!(finished.stderr.contains(told), "{args:?}: {finished:?}");
    }
}

/// Broken, somebody who helps would lack what he needs, or get a secret or a payload.
#[test]
fn a_bundle_for_support_has_what_is_needed_and_no_secret() {
    const CANARY: &str = "payload-canary";
    let server = TestServer::new();
    server.post("a", format!("{{\"x\":\"{CANARY}\"}}")).assert_accepted();
    let dir = tempfile::tempdir().unwrap();
    let log = (0..50).map(|n| format!("line {n} with {TOKEN} in it\n")).collect::<String>();
    std::fs::write(dir.path().join("log"), log).unwrap();
    let port = server.address().rsplit_once(':').unwrap().1.to_owned();
    let bundle = |args: &[&str]| {
        run(command(dir.path(), &[&["support-bundle", "--port", &port][..], args].concat())
            .env("LEITSTAND_TOKEN", TOKEN)
            .env("LEITSTAND_ADMIN_TOKEN", ADMIN_TOKEN)
            .env("LEITSTAND_DATA_DIR", server.data_dir()))
    };
    let finished = bundle(&["--to", "b", "--log", "log", "--log-lines", "3", "--json"]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let said: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(said["bundle"]["lacks"], json!([]), "{said}");
    let mut texts = String::new();
    for name in [
        "bundle.json",
        "config.json",
        "doctor.json",
        "files.txt",
        "log.txt",
        "metrics.txt",
        "ops-metrics.json",
        "ready.json",
        "running-config.json",
        "stats.json",
    ] {
        let text = std::fs::read_to_string(dir.path().join("b").join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(!text.is_empty(), "{name}");
        if name.ends_with(".json") {
            serde_json::from_str::<Value>(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        texts.push_str(&text);
    }
    for secret in [TOKEN, ADMIN_TOKEN, CANARY] {
        assert!(!texts.contains(secret) && !finished.stdout.contains(secret), "{secret}");
    }
    let read = |name: &str| std::fs::read_to_string(dir.path().join("b").join(name)).unwrap();
    assert_eq!(read("log.txt").lines().next(), Some("line 47 with (masked) in it"));
    assert!(read("files.txt").lines().any(|line| line.ends_with(" a.jsonl")), "{}", read("files.txt"));
    let mode = dir.path().join("b").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    // What is there is not written over, and what is missing is told.
    assert_eq!(bundle(&["--to", "b"]).code, Some(2));
    let finished = bundle(&["--to", "c"]);
    assert!(finished.code == Some(0) && finished.stdout.starts_with("without a log: give --log"), "{finished:?}");
    let finished = bundle(&["--to", "d", "--log", "missing"]);
    assert!(finished.code == Some(1) && finished.stdout.contains("lacks log.txt: cannot read"), "{finished:?}");
    // Nobody waits for a pipe that nobody writes to, and an old log that is full of holes is not read from its begin.
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    for (name, part) in [("fifo", "a pipe"), (".", "a directory"), ("/dev/zero", "a device")] {
        let finished = bundle(&["--to", &format!("f-{}", name.len()), "--log", name]);
        assert!(finished.code == Some(1) && finished.stdout.contains(part), "{name}: {finished:?}");
    }
    let holey = std::fs::File::create(dir.path().join("holey")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&holey, b"\nthe last but one\nthe last\n", 1 << 40).unwrap();
    let finished = bundle(&["--to", "h", "--log", "holey", "--log-lines", "2"]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let text = std::fs::read_to_string(dir.path().join("h/log.txt")).unwrap();
    assert_eq!(text, "the last but one\nthe last\n");
    drop(server);
    let alone = run(command(dir.path(), &["support-bundle", "--to", "e", "--json"]).env("LEITSTAND_PORT", "1"));
    let said: Value = serde_json::from_str(&alone.stdout).unwrap();
    assert_eq!(alone.code, Some(1), "{alone:?}");
    assert!(said["bundle"]["lacks"].as_array().unwrap().len() >= 3, "{said}");
    assert!(dir.path().join("e/config.json").exists(), "what is wrong with the settings is there");
}
