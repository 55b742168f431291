//! Maintenance windows: read-only mode and the throttle; and what goes on while nothing may be written.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{ADMIN_TOKEN, Client, PATIENCE, Request, Response, TestServer, wait_for};

fn switch(path: &str, body: &Value) -> Request {
    Request::post_to(path, body.to_string()).header("X-Auth", ADMIN_TOKEN)
}

fn admin(server: &TestServer, path: &str) -> Value {
    let answer = server.send(&Request::get(path).header("X-Auth", ADMIN_TOKEN));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

fn read_only(server: &TestServer, on: bool) -> Value {
    let answer = server.send(&switch("/admin/read-only", &json!({"on": on, "reason": "copy of the \"volume\""})));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

fn assert_read_only(answer: &Response) {
    answer.assert_error(503, "read only");
    assert_eq!(answer.number("retry-after"), 60);
}

/// What must answer whatever happens to the disk.
fn assert_the_rest_goes_on(server: &TestServer) {
    for path in ["/health", "/health/live", "/version", "/metrics", "/api/v1/ops/metrics", "/docs"] {
        if path != "/docs" || cfg!(feature = "docs") {
            assert_eq!(server.get(path).status, 200, "{path}");
        }
    }
    for path in ["/stats", "/admin/read-only", "/admin/throttle"] {
        admin(server, path);
    }
}

fn failed_checks(server: &TestServer) -> Vec<String> {
    let ready = server.send(&Request::new("GET", "/health/ready"));
    let body = ready.json();
    let failed: Vec<String> = body["checks"]
        .as_object()
        .unwrap()
        .iter()
        .filter(|(_, ok)| **ok == false)
        .map(|(name, _)| name.clone())
        .collect();
    let want = if failed.is_empty() { (200, "ok") } else { (503, "unavailable") };
    assert_eq!((ready.status, body["status"].as_str().unwrap()), want);
    assert!(!body["version"].as_str().unwrap().is_empty());
    failed
}

/// Broken, a volume could not be copied in a state of rest, or the service would stay shut after it.
#[test]
fn read_only_mode_refuses_events_and_nothing_else() {
    let server = TestServer::new();
    server.post("a", "{}").assert_accepted();
    assert_eq!(admin(&server, "/admin/read-only"), json!({"on": false}));
    assert_eq!(server.metric("leitstand_read_only", ""), 0.0);
    assert!(failed_checks(&server).is_empty());
    let answer = read_only(&server, true);
    assert_eq!((&answer["on"], &answer["drained"]), (&true.into(), &true.into()));
    assert_eq!(answer["reason"], "copy of the \"volume\"");
    assert_read_only(&server.post("a", "{}"));
    assert_read_only(&server.send(&Request::post_to("/ingest/a", "{}")));
    let problem = server.send(&Request::post("a", "{}").header("Accept", "application/problem+json")).json();
    assert_eq!((&problem["code"], &problem["written"]), (&"read_only".into(), &"no".into()));
    server.send(&Request::post("a", "{}").header("X-Auth", "wrong")).assert_error(401, "unauthorized");
    assert_eq!(failed_checks(&server), ["not_read_only"]);
    assert_the_rest_goes_on(&server);
    assert_eq!(admin(&server, "/stats")["read_only"], true);
    let state = admin(&server, "/admin/read-only");
    assert_eq!((&state["since"], &state["drained"]), (&answer["since"], &Value::Null));
    assert_eq!(server.metric("leitstand_read_only", ""), 1.0);
    assert_eq!(server.metric("leitstand_refused_total", "reason=\"read_only\""), 3.0);
    assert_eq!(read_only(&server, true)["since"], answer["since"], "it is the same window");
    assert_eq!(read_only(&server, false), json!({"on": false}));
    server.post("a", "{}").assert_accepted();
    assert!(failed_checks(&server).is_empty());
    assert_eq!(server.lines("a").len(), 2);
    for (old, new) in [(false, true), (true, true), (true, false)] {
        let is_it =
            |line: &Value| line["action"] == "read_only" && (&line["old"], &line["new"]) == (&old.into(), &new.into());
        let line = server.log_line("the audit line", is_it);
        assert_eq!((&line["target"], &line["level"]), (&"leitstand::audit".into(), &"INFO".into()), "{line}");
        assert_eq!(
            (&line["reason"], &line["client"]),
            (&"copy of the \"volume\"".into(), &"127.0.0.1".into()),
            "{line}"
        );
        assert!(line["actor"].as_str().unwrap().starts_with("sha256:"), "{line}");
    }
}

/// Waits until the service knows of so many bytes in flight or more.
fn wait_in_flight(server: &TestServer) {
    wait_for("something is in flight", PATIENCE, || {
        (server.metric("leitstand_in_flight_bytes", "") > 0.0).then_some(())
    });
}

/// Broken, the copy of a volume would miss events that were acknowledged while it was made.
#[test]
fn the_switch_waits_for_what_is_under_way() {
    let server = TestServer::new();
    server.post("held", "{}").assert_accepted();
    let lock = server.hold_lock("held");
    let mut waiting = server.connect();
    waiting.send(Request::post("held", r#"{"n":1}"#).bytes());
    wait_in_flight(&server);
    let mut switching = server.connect();
    switching.send(switch("/admin/read-only", &json!({"on": true})).bytes());
    wait_for("the switch", PATIENCE, || (server.metric("leitstand_read_only", "") == 1.0).then_some(()));
    assert_read_only(&server.post("other", "{}"));
    assert!(switching.is_silent_for(Duration::from_millis(300)), "an answer before the event is on the disk");
    drop(lock);
    waiting.read_answer("POST").assert_accepted();
    assert_eq!(switching.read_answer("POST").json()["drained"], true);
    assert_eq!(server.lines("held").len(), 2);
}

/// Broken, a lock that hangs would hold up the switch for as long.
#[test]
fn the_switch_waits_ten_seconds_at_most() {
    let server = TestServer::new();
    server.post("held", "{}").assert_accepted();
    let _lock = server.hold_lock("held");
    let mut waiting = server.connect();
    waiting.send(Request::post("held", "{}").bytes());
    wait_in_flight(&server);
    let began = Instant::now();
    assert_eq!(read_only(&server, true)["drained"], false);
    let took = began.elapsed();
    assert!((Duration::from_secs(9)..Duration::from_secs(25)).contains(&took), "{took:?}");
}

/// Sends the head of a request and half of its body.
fn half_sent(server: &TestServer, request: &Request) -> (Client, Vec<u8>) {
    let mut client = server.connect();
    let body = request.wire_body();
    let (first, rest) = body.split_at(body.len() / 2);
    client.send([request.head(), first.to_vec()].concat());
    wait_in_flight(server);
    (client, rest.to_vec())
}

/// Broken, an event that was on its way at the switch would be written after "drained".
#[test]
fn a_body_under_way_is_not_written_after_the_switch() {
    let server = TestServer::new();
    let (mut client, rest) = half_sent(&server, &Request::post("slow", r#"{"n":1}"#));
    let mut switching = server.connect();
    switching.send(switch("/admin/read-only", &json!({"on": true})).bytes());
    wait_for("the switch", PATIENCE, || (server.metric("leitstand_read_only", "") == 1.0).then_some(()));
    assert!(switching.is_silent_for(Duration::from_millis(200)));
    client.send(rest);
    assert_read_only(&client.read_answer("POST"));
    assert_eq!(switching.read_answer("POST").json()["drained"], true);
    assert!(server.data("slow").is_empty());
}

/// Broken, `drained` would be said while acknowledged events are not on the disk, or never.
#[test]
fn the_switch_works_in_every_sync_mode() {
    for fsync in ["everysec", "never"] {
        let server = TestServer::builder().env("LEITSTAND_FSYNC", fsync).start();
        server.post("a", "{}").assert_accepted();
        assert_eq!(read_only(&server, true)["drained"], true, "{fsync}");
    }
}

fn from(client: &str) -> Request {
    Request::post("a", "{}").header("X-Forwarded-For", client)
}

/// Broken, a disk that cannot keep up could not be given a rest, or would get one for ever.
#[test]
fn a_throttle_limits_all_clients_together() {
    let server = TestServer::new();
    assert_eq!(admin(&server, "/admin/throttle"), json!({"rate": null}));
    let set = server.send(&switch("/admin/throttle", &json!({"rate": "3/hour", "for": "10m"})));
    assert_eq!(set.status, 200, "{set:?}");
    assert_eq!(set.json()["rate"], "3/hour");
    for client in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
        server.send(&from(client)).assert_accepted();
    }
    let refused = server.send(&from("192.0.2.4"));
    refused.assert_text(429, "too many requests");
    assert!((590..=601).contains(&refused.number("retry-after")), "the throttle ends before its window: {refused:?}");
    assert_eq!(
        server.send(&from("192.0.2.4").header("Accept", "application/problem+json")).json()["code"],
        "throttled"
    );
    server.send(&from("192.0.2.5").header("X-Auth", "wrong")).assert_error(401, "unauthorized");
    assert_the_rest_goes_on(&server);
    assert!(failed_checks(&server).is_empty(), "a throttled service is ready");
    assert_eq!(admin(&server, "/stats")["throttle"]["rate"], "3/hour");
    assert_eq!(server.metric("leitstand_throttle", ""), 1.0);
    assert_eq!(server.metric("leitstand_refused_total", "reason=\"throttled\""), 2.0);
    assert_eq!(server.send(&switch("/admin/throttle", &json!({"rate": null}))).json(), json!({"rate": null}));
    server.send(&from("192.0.2.4")).assert_accepted();
    assert_eq!(server.metric("leitstand_throttle", ""), 0.0);
    let line = server.log_line("the audit line", |line| line["action"] == "throttle" && line["for_s"] == 600);
    assert_eq!(line["target"], "leitstand::audit", "{line}");
    assert_eq!((&line["old"], &line["new"]), (&"off".into(), &"3/hour".into()), "{line}");
    let is_end = |line: &Value| line["action"] == "throttle" && line["old"] == "3/hour" && line["new"] == "off";
    server.log_line("its end", is_end);
}

/// Broken, a throttle that was forgotten would stay.
#[test]
fn a_throttle_ends_by_itself() {
    let server = TestServer::new();
    let set = server.send(&switch("/admin/throttle", &json!({"rate": "1/hour", "for": "1s"})));
    assert_eq!(set.status, 200, "{set:?}");
    wait_for("a refusal or the end", PATIENCE, || (server.post("a", "{}").status == 429).then_some(()));
    wait_for("the end", PATIENCE, || (server.post("a", "{}").status == 202).then_some(()));
    assert_eq!(admin(&server, "/admin/throttle")["rate"], Value::Null);
    let is_end = |line: &Value| line["action"] == "throttle" && line["actor"] == "time";
    let line = server.log_line("its end", is_end);
    assert_eq!((&line["old"], &line["new"]), (&"1/hour".into(), &"off".into()), "{line}");
}

/// Broken, the limit of each client would be off while there is one for all.
#[test]
fn the_limit_of_a_client_holds_beside_a_throttle() {
    let server = TestServer::builder().env("LEITSTAND_RATE_LIMIT", "1/hour").start();
    server.send(&switch("/admin/throttle", &json!({"rate": "2/hour", "for": "1h"})));
    server.send(&from("192.0.2.1")).assert_accepted();
    let own = server.send(&from("192.0.2.1"));
    assert_eq!((own.status, own.number("x-ratelimit-limit")), (429, 1), "it does not count for the others");
    server.send(&from("192.0.2.2")).assert_accepted();
    let all = server.send(&from("192.0.2.3"));
    assert_eq!((all.status, all.header("x-ratelimit-limit")), (429, None));
}

/// Broken, a mistyped switch would do something else than was meant, or bring the handler down.
#[test]
fn bad_input_changes_nothing_and_is_told() {
    let server = TestServer::builder().env("LEITSTAND_AUTH_RATE_LIMIT", "off").start();
    let huge = format!("{{\"on\":true,\"reason\":\"{}\"}}", "x".repeat(70_000));
    let deep = "[".repeat(60_000);
    for path in ["/admin/read-only", "/admin/throttle"] {
        let request = Request::post_to(path, r#"{"on":true,"rate":"1/hour","for":"1h"}"#);
        for get in [Request::get(path), request.clone()] {
            server.send(&get.clone().without("X-Auth")).assert_error(401, "unauthorized");
            server.send(&get.clone().header("X-Auth", "wrong")).assert_error(401, "unauthorized");
            server.send(&get).assert_error(403, "forbidden");
        }
        let request = request.header("X-Auth", ADMIN_TOKEN);
        server.send(&request.clone().body(&huge)).assert_error(413, "payload too large");
        server.send(&request.clone().chunked(&huge, 4096)).assert_error(413, "payload too large");
        server.send(&request.clone().body("").without("Content-Length")).assert_error(411, "length required");
        server.send(&request.clone().with_method("PUT")).assert_error(405, "Method Not Allowed");
        for body in ["", "nope", "null", "[]", "\"on\"", "{\"on\":true", "\u{feff}{\"on\":true}", &deep, "\u{1}"] {
            let answer = server.send(&request.clone().body(body));
            assert_eq!(answer.status, 422, "{body:.20}: {answer:?}");
            assert!(answer.json()["detail"].as_str().unwrap().starts_with("the body must be a JSON object with "));
        }
        assert_eq!(server.send(&request.body(b"{\"on\":\"\xff\"}")).status, 422);
    }
    for (path, body, told) in [
        ("/admin/read-only", json!({}), "on must be true or false"),
        ("/admin/read-only", json!({"on": "true"}), "on must be true or false"),
        ("/admin/read-only", json!({"on": 1}), "on must be true or false"),
        ("/admin/read-only", json!({"on": true, "reason": 7}), "at most 200 characters"),
        ("/admin/read-only", json!({"on": true, "reason": "x".repeat(201)}), "at most 200 characters"),
        ("/admin/read-only", json!({"on": true, "reason": "a\nb"}), "at most 200 characters"),
        ("/admin/read-only", json!({"on": true, "resaon": "x"}), "unknown key \"resaon\", allowed are on, reason"),
        ("/admin/throttle", json!({}), "rate must be a text"),
        ("/admin/throttle", json!({"rate": 10, "for": "1h"}), "rate must be a text"),
        ("/admin/throttle", json!({"rate": "off", "for": "1h"}), "null ends the throttle"),
        ("/admin/throttle", json!({"rate": "0/second", "for": "1h"}), "between 1 and 4294967295"),
        ("/admin/throttle", json!({"rate": "fast", "for": "1h"}), "expected e.g. 60/minute"),
        ("/admin/throttle", json!({"rate": "1/second"}), "for must say how long"),
        ("/admin/throttle", json!({"rate": "1/second", "for": 600}), "for must be a text"),
        ("/admin/throttle", json!({"rate": "1/second", "for": "25h"}), "from 1s to 24h"),
        (
            "/admin/throttle",
            json!({"rate": "1/second", "for": "1h", "rte": 1}),
            "unknown key \"rte\", allowed are rate, for",
        ),
    ] {
        let answer = server.send(&switch(path, &body));
        assert_eq!(answer.status, 422, "{body}: {answer:?}");
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(told), "{body}: {detail}");
    }
    let long_key = server.send(&switch("/admin/throttle", &json!({"\"\u{1F600}".repeat(5000): 1})));
    assert!(long_key.body.len() < 1000 && long_key.json()["detail"].is_string());
    assert_eq!(admin(&server, "/admin/read-only"), json!({"on": false}));
    assert_eq!(admin(&server, "/admin/throttle"), json!({"rate": null}));
    server.post("a", "{}").assert_accepted();
    assert_eq!(admin(&server, "/api/v1/ops/metrics")["parse_failures_total"], 0, "these are no events");
}

/// Broken, a disk that is nearly full would take the ways to look at it with it.
#[test]
fn below_the_reserve_everything_but_events_goes_on() {
    let server =
        TestServer::builder().data_file("a.jsonl", "{}\n").env("LEITSTAND_DISK_RESERVE", "4294967296GiB").start();
    server.post("a", "{}").assert_error(507, "insufficient storage");
    assert_eq!(failed_checks(&server), ["disk_reserve"]);
    assert_the_rest_goes_on(&server);
    let stats = admin(&server, "/stats");
    assert_eq!(stats["domains"][0]["lines"], 1);
    assert!(stats["disk"]["reserve_bytes"].as_u64() > stats["disk"]["free_bytes"].as_u64());
    assert_eq!(read_only(&server, true)["drained"], true);
    assert_eq!(failed_checks(&server), ["disk_reserve", "not_read_only"]);
    read_only(&server, false);
    assert_eq!(server.data("a"), b"{}\n");
}
