//! What the log says, and what it must never say.

use serde_json::Value;

use crate::support::{PATIENCE, Request, Response, TestServer, wait_for};

/// In every secret and in every payload below, in this or another case. Nothing may repeat it.
const CANARY: &str = "canary";

const TOKEN: &str = "canary-token-5f2a";

/// Requests with canaries wherever a client can put one, and the status each gets.
fn canary_requests() -> Vec<(Request, u16)> {
    let good = |body: &str| Request::post_to("/v1/ingest?domain=quiet", body).header("X-Auth", TOKEN);
    let old = |path: &str, body: &str| Request::post_to(path, body).header("X-Auth", TOKEN);
    let lines = |body: &str| good(body).header("Content-Type", "application/x-ndjson");
    let long = format!(r#"{{"summary":"{}"}}"#, "canary".repeat(100));
    vec![
        (good(r#"{"canary-key":"canary-value","n":["canary"]}"#), 202),
        (old("/ingest/quiet", r#"{"x":"canary"}"#), 200),
        (lines("{\"a\":\"canary\"}\n{\"b\":\"canary\"}\n"), 202),
        (good("").chunked(r#"{"c":"canary"}"#, 3), 202),
        // Tokens.
        (good("{}").header("X-Auth", "canary-wrong-token"), 401),
        (good("{}").also("X-Auth", "canary-second-token"), 401),
        (good("{}").header("X-Auth", "canary-\u{e4}"), 401),
        (good("{}").without("X-Auth").header("Authorization", "Bearer canary"), 401),
        (Request::get("/health").header("X-Auth", "canary-wrong-token"), 401),
        // Bodies.
        (good("canary"), 400),
        (good(r#"{"canary":canary}"#), 400),
        (good("\"canary\""), 400),
        (lines("{\"a\":1}\n{\"canary\": canary}\n"), 400),
        (good(r#"{"domain":"canary.example"}"#), 400),
        (good(r#"{"domain":"_canary_"}"#), 400),
        (Request::post_to("/v1/ingest", r#"[{"domain":"canary.example"},7]"#).header("X-Auth", TOKEN), 400),
        (Request::post_to("/v1/ingest", r#"{"domain":"_canary_"}"#).header("X-Auth", TOKEN), 400),
        (good(&long), 422),
        (good("{}").body(b"canary \xff"), 400),
        (good("canary").header("Content-Encoding", "gzip"), 400),
        (good(&"canary".repeat(200_000)), 413),
        // Names.
        (old("/ingest/_canary_", "{}"), 400),
        (old("/v1/ingest?domain=_canary_", "{}"), 400),
        (old("/v1/ingest?domain=quiet&secret=canary&x-auth=canary", "{}"), 202),
        (old("/canary/path", "{}"), 404),
        (old("/ingest/a/canary", "{}"), 404),
        (Request::new("GET", "/docs/canary.js"), 404),
        // Other headers.
        (good("{}").header("Content-Type", "text/canary"), 415),
        (good("{}").header("Content-Encoding", "canary"), 415),
        (
            good("{}").header("User-Agent", "canary/1").header("Referer", "canary").header("Cookie", "canary=canary"),
            202,
        ),
        (good("{}").header("X-Forwarded-For", "canary"), 202),
        (good("{}").header("Forwarded", "for=canary").header("Origin", "canary"), 202),
        (good("{}").header("Host", "canary.example"), 202),
        (good("{}").header("Transfer-Encoding", "canary, chunked").without("Content-Length"), 501),
        (good("{}").also("Host", "canary"), 400),
        (good("{}").header("X Canary", "canary"), 400),
        // A request id goes into the log by intent, but only as one word.
        (good("{}").header("X-Request-ID", "id\",\"injected\":\"yes"), 202),
    ]
}

fn assert_silent(what: &str, text: &str) {
    let lower = text.to_lowercase();
    if let Some(at) = lower.find(CANARY) {
        let around: String = text.chars().skip(at.saturating_sub(200)).take(400).collect();
        panic!("{what} repeats what it was given: {around}");
    }
}

/// Sends all of it at the lowest level, and looks for a canary in everything that came out.
fn nothing_leaks(format: &str) {
    let mut server = TestServer::builder()
        .env("LEITSTAND_TOKEN", format!("{TOKEN},canary-token-2"))
        .env("LOG_LEVEL", "NOTSET")
        .env("LEITSTAND_LOG_FORMAT", format)
        .env("LEITSTAND_AUTH_RATE_LIMIT", "1000000/second")
        .start();
    for (request, status) in canary_requests() {
        for accept in ["application/problem+json", "*/*"] {
            let answer: Response = server.send(&request.clone().header("Accept", accept));
            assert_eq!(answer.status, status, "{answer:?} to {}", String::from_utf8_lossy(&request.head()));
            assert_silent("an answer", &answer.text());
            assert_silent("a header of an answer", &format!("{:?}", answer.headers));
        }
    }
    // Half a request, and none.
    let mut client = server.connect();
    client.send("POST /v1/canary HTTP/1.1\r\nX-Canary: canary");
    drop(client);
    let mut client = server.connect();
    client.send("canary canary canary\r\n\r\n");
    client.read_answer("GET");
    assert_silent("the metrics", &server.get("/metrics").text());
    assert_eq!(server.stop().code, Some(0));
    let log = server.log();
    assert!(log.lines().count() > 2 * canary_requests().len() - 8, "something is logged:\n{log}");
    assert!(log.contains("DEBUG"), "at the lowest level");
    assert_silent("the log", &log);
    // The payload did go where it belongs.
    assert!(String::from_utf8(server.data("quiet")).unwrap().contains("canary-value"));
}

/// Broken, tokens or payloads would end up in log archives.
#[test]
fn neither_token_nor_payload_is_in_a_text_log() {
    nothing_leaks("text");
}

/// Broken, tokens or payloads would end up in log archives.
#[test]
fn neither_token_nor_payload_is_in_a_json_log() {
    nothing_leaks("json");
}

fn access_line(server: &TestServer, id: &str) -> Value {
    server.log_line("the request is in the access log", |line| {
        line["request_id"] == id && line["target"] == "leitstand::access"
    })
}

/// Broken, an operator could not find out what happened to a request.
#[test]
fn every_request_has_one_access_line_with_all_fields() {
    let server = TestServer::new();
    let body = r#"[{"a":1},{"a":2}]"#;
    let send = |request: Request, id: &str| server.send(&request.header("X-Request-ID", id));
    send(Request::post("log.example", body).header("X-Forwarded-For", "198.51.100.7"), "good");
    send(Request::post_to("/ingest/Log.Example", "nope"), "bad");
    send(Request::post("log.example", body).header("X-Auth", "wrong"), "stranger");
    send(Request::get("/nope"), "unknown");
    send(Request::get("/health").with_method("DELETE"), "method");
    send(Request::post("log.example", body).also("Host", "b"), "framing");
    for (id, method, route, status, bytes, events, domain, client) in [
        ("good", "POST", "/v1/ingest", 202, body.len(), 2, Some("log.example"), "198.51.100.7"),
        ("bad", "POST", "/ingest/{domain}", 400, 4, 0, Some("log.example"), "127.0.0.1"),
        ("stranger", "POST", "/v1/ingest", 401, 0, 0, None, "127.0.0.1"),
        ("unknown", "GET", "none", 404, 0, 0, None, "127.0.0.1"),
        ("method", "DELETE", "/health", 405, 0, 0, None, "127.0.0.1"),
        ("framing", "POST", "none", 400, 0, 0, None, "127.0.0.1"),
    ] {
        let line = access_line(&server, id);
        assert_eq!(line["level"], "INFO", "{line}");
        assert_eq!(line["method"], method, "{line}");
        assert_eq!(line["route"], route, "{line}");
        assert_eq!(line["status"], status, "{line}");
        assert_eq!(line["request_bytes"], bytes, "{line}");
        assert_eq!(line["events"], events, "{line}");
        assert_eq!(line["domain"].as_str(), domain, "{line}");
        assert_eq!(line["client"], client, "{line}");
        let duration_ms = line["duration_ms"].as_f64().unwrap();
        assert!((0.0..60_000.0).contains(&duration_ms), "{line}");
        assert!(line["timestamp"].as_str().unwrap().contains('T'), "{line}");
    }
    let ids = server.log_lines();
    let of = |id: &str| ids.iter().filter(|line| line["request_id"] == id).count();
    assert_eq!(["good", "bad", "stranger", "unknown", "method", "framing"].map(of), [1; 6]);
}

/// Broken, a client could write lines or fields of its own into the log.
#[test]
fn a_request_id_cannot_forge_the_log() {
    let server = TestServer::new();
    for sent in [&b"a\",\"forged\":\"b"[..], b"a forged=c", b"\xff\xfe forged=1", b"a\tforged"] {
        server.send(&Request::post("forge", "{}").header("X-Request-ID", sent)).assert_accepted();
    }
    let sane = |id: &str| id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    let access = wait_for("all are logged", PATIENCE, || {
        let lines: Vec<Value> = server.log_lines().into_iter().filter(|line| line["route"].is_string()).collect();
        (lines.len() >= 4).then_some(lines)
    });
    for line in access {
        assert!(line["forged"].is_null() && sane(line["request_id"].as_str().unwrap()), "{line}");
    }
}

/// Broken, anybody could write 30 KB of his choice into a log line; and where a client gives a wrong
/// length, the rest of its payload stands where the next method should.
#[test]
fn a_method_nobody_knows_is_not_quoted() {
    let server = TestServer::new();
    let request = Request::post("method", "{}").with_method("CANARY-METHOD").header("X-Request-ID", "find-me");
    server.send(&request.without("X-Auth")).assert_text(400, "Invalid HTTP request received.");
    let line = access_line(&server, "find-me");
    assert!(!line["method"].as_str().unwrap().contains("CANARY"), "{line}");
}

/// Broken, a stranger could wake somebody up: errors in the log are for what an operator must act on.
#[test]
fn no_mistake_of_a_client_is_logged_as_an_error() {
    let mut server = TestServer::builder().with_data_dir().start();
    for request in [
        Request::post("quiet", "nope"),
        Request::post("quiet", "{}").header("X-Auth", "wrong"),
        Request::get("/nope"),
        Request::get("/v1/ingest"),
        Request::post("quiet", "{}").also("Host", "b"),
        Request::post("quiet", "{}").with_method("BREW"),
        Request::post("quiet", "{}").header("X Bad", "x"),
        Request::post("quiet", "")
            .header("Transfer-Encoding", "gzip, chunked")
            .without("X-Auth")
            .without("Content-Length"),
    ] {
        let answer = server.send(&request);
        assert!((400..=501).contains(&answer.status), "{answer:?}");
    }
    assert_eq!(server.stop().code, Some(0));
    let loud: Vec<Value> = server.log_lines().into_iter().filter(|line| line["level"] != "INFO").collect();
    assert!(loud.is_empty(), "{loud:?}");
}

/// Broken, nobody could see from a log which service with which promises ran.
#[test]
fn the_start_says_what_is_promised_and_the_stop_that_nothing_is_pending() {
    let mut server = TestServer::builder()
        .env("LEITSTAND_VERSION", "1.2.3-test")
        .env("LEITSTAND_FSYNC", "everysec")
        .env("LEITSTAND_MAX_BODY", "5000")
        .env("LEITSTAND_LOCK_TIMEOUT", "11")
        .env("LEITSTAND_RATE_LIMIT", "7/minute")
        .env("LEITSTAND_MAX_CONNECTIONS", "99")
        .start();
    let line = server.log_line("the start line", |line| line["message"] == "started");
    assert_eq!(line["version"], "1.2.3-test");
    assert_eq!(line["address"], server.address());
    assert_eq!(line["data_dir"], server.data_dir().to_str().unwrap());
    assert_eq!(line["fsync"], "everysec");
    assert_eq!(line["max_body_bytes"], 5000);
    assert_eq!(line["lock_timeout_s"], 11);
    assert!(line["rate_limit"].as_str().unwrap().starts_with('7'));
    assert_eq!(line["connections_max"], 99);
    assert!(line["in_flight_bytes_max"].as_u64().unwrap() > 0);
    server.post("pending", "{}").assert_accepted();
    assert_eq!(server.stop().code, Some(0));
    let lines = server.log_lines();
    assert_eq!(lines.last().unwrap()["message"], "stopped, 0 writes pending");
    assert_eq!(server.lines("pending").len(), 1, "what was answered is there");
}

/// Broken, LOG_LEVEL would not be Python's, and logs would be flooded or empty.
#[test]
fn the_level_chooses_what_is_logged() {
    for (level, wants_access, wants_debug) in
        [("critical", false, false), ("WARNING", false, false), ("Info", true, false), ("debug", true, true)]
    {
        // The port is in the start line, which is INFO; a Unix socket has a known name.
        let builder = TestServer::builder().with_data_dir().env("LOG_LEVEL", level);
        let path = builder.dir().join("known.sock");
        let mut server = builder.arg("--uds").arg(&path).start_quietly(&path);
        let request = Request::post("level", "nope").header("X-Request-ID", "find-me");
        server.send(&request).assert_error(400, "invalid json");
        // The stop writes all of the log.
        assert_eq!(server.stop().code, Some(0));
        let lines = server.log_lines();
        let has = |level: &str| lines.iter().any(|line| line["request_id"] == "find-me" && line["level"] == level);
        assert_eq!((has("INFO"), has("DEBUG")), (wants_access, wants_debug), "{level}: {lines:?}");
        assert!(wants_access || lines.is_empty(), "{level}: {lines:?}");
    }
}

/// Broken, a log reader that stands still would keep the service from answering, or from stopping.
#[test]
fn a_stuck_log_reader_holds_up_neither_answers_nor_the_stop() {
    use std::io::{Read as _, Write as _};
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_leitstand"))
        .args(["serve", "--uds"])
        .arg(&socket)
        .current_dir(dir.path())
        .env_clear()
        .env("LEITSTAND_TOKEN", "t")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = std::time::Instant::now() + PATIENCE;
    let mut stream = loop {
        match std::os::unix::net::UnixStream::connect(&socket) {
            Ok(stream) => break stream,
            Err(e) => assert!(std::time::Instant::now() < deadline, "{e}"),
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    // More lines than pipe and queue hold.
    let answer_len = {
        stream.write_all(b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        stream.read(&mut [0; 4096]).unwrap()
    };
    for _ in 0..12_000 {
        stream.write_all(b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        stream.read_exact(&mut vec![0; answer_len]).unwrap();
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
    let status = crate::support::wait_exit(&mut child, PATIENCE).expect("does not stop");
    assert_eq!(status.code(), Some(0));
}

/// Broken, a log on a full disk, or with a reader who asked for a non-blocking pipe, would lose lines and say 0.
#[test]
fn lines_that_stdout_does_not_take_are_counted() {
    use std::io::Read as _;
    let started = |stdout: std::process::Stdio| {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let child = std::process::Command::new(crate::support::BINARY)
            .args(["serve", "--uds"])
            .arg(&socket)
            .current_dir(dir.path())
            .env_clear()
            .envs([("LEITSTAND_TOKEN", "t"), ("LEITSTAND_ADMIN_TOKEN", "a"), ("LEITSTAND_DISK_RESERVE", "0")])
            .stdout(stdout)
            .stderr(std::fs::File::create(dir.path().join("stderr")).unwrap())
            .spawn()
            .unwrap();
        crate::support::wait_for("the socket", PATIENCE, || std::os::unix::net::UnixStream::connect(&socket).ok());
        (child, crate::support::Client::connect_unix(&socket), dir)
    };
    let metric = |client: &mut crate::support::Client, name: &str| {
        let text = client.roundtrip(&Request::get("/metrics")).text();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")).map(str::to_owned));
        line.map_or(0, |n| n.parse::<u64>().unwrap())
    };

    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let (mut child, mut client, dir) = started(full.into());
    let change = Request::new("POST", "/config").header("X-Auth", "a").header("Content-Type", "application/json");
    assert_eq!(client.roundtrip(&change.body("{\"body_timeout\": 9}")).status, 200);
    crate::support::wait_for("lost lines are counted", PATIENCE, || {
        let (lines, audit) = (
            metric(&mut client, "leitstand_log_lines_dropped_total"),
            metric(&mut client, "leitstand_audit_lines_dropped_total"),
        );
        (lines >= 3 && audit == 1).then_some(())
    });
    let told = std::fs::read_to_string(dir.path().join("stderr")).unwrap();
    assert!(told.contains("not in the log: ") && told.contains("body_timeout"), "{told}");
    child.kill().unwrap();
    child.wait().unwrap();

    // A pipe that is full now and then loses nothing.
    let (mut reader, writer) = std::io::pipe().unwrap();
    rustix::fs::fcntl_setfl(&writer, rustix::fs::OFlags::NONBLOCK).unwrap();
    let (mut child, mut client, _dir) = started(writer.into());
    let slow = std::thread::spawn(move || {
        let (mut lines, mut chunk) = (0, [0; 4096]);
        loop {
            match reader.read(&mut chunk).unwrap() {
                0 => return lines,
                n => {
                    lines +=
                        chunk[..n].windows(12).filter(|text| text == b"/health/live").count().max(usize::from(n == 0))
                }
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    });
    for _ in 0..3000 {
        client.roundtrip(&Request::get("/health/live"));
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
    drop(client);
    assert!(crate::support::wait_exit(&mut child, PATIENCE).is_some());
    // A line may be cut between two reads.
    assert!(slow.join().unwrap() >= 2700, "nearly each request has its line");
}
