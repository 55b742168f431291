//! `/stats` and `/api/v1/ops/metrics`: the figures as JSON.

use std::fs;
use std::io::Write as _;

use serde_json::Value;

use crate::support::{ADMIN_TOKEN, PATIENCE, Request, TestServer, wait_for};

fn admin(path: &str) -> Request {
    Request::get(path).header("X-Auth", ADMIN_TOKEN)
}

fn stats(server: &TestServer, query: &str) -> Value {
    let answer = server.send(&admin(&format!("/stats{query}")));
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")), "{answer:?}");
    answer.json()
}

fn names(stats: &Value) -> Vec<&str> {
    stats["domains"].as_array().unwrap().iter().map(|domain| domain["name"].as_str().unwrap()).collect()
}

fn domain<'a>(stats: &'a Value, name: &str) -> &'a Value {
    let found = stats["domains"].as_array().unwrap().iter().find(|domain| domain["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {stats}"))
}

/// Broken, an operator would look at figures of something else than what is in the files.
#[test]
fn the_figures_are_those_of_the_files() {
    let server = TestServer::builder().data_file("other.jsonl", "{}\n{}\n{\"torn").start();
    let before = stats(&server, "");
    assert_eq!(names(&before), ["other"]);
    assert_eq!((&domain(&before, "other")["lines"], &domain(&before, "other")["bytes"]), (&2.into(), &12.into()));
    server.post("mine", "[{},{},{}]").assert_accepted();
    server.post("mine", "{}").assert_accepted();
    server.post("mine", "nope").assert_error(400, "invalid json");
    server.send(&Request::post("mine", "{}").header("X-Auth", "wrong")).assert_error(401, "unauthorized");
    let after = stats(&server, "");
    let mine = domain(&after, "mine");
    assert_eq!((&mine["lines"], &mine["bytes"]), (&4.into(), &server.data("mine").len().into()));
    assert_eq!((&mine["poisoned"], &mine["queued"]), (&false.into(), &0.into()));
    let changed = fs::metadata(server.data_dir().join("mine.jsonl")).unwrap().modified().unwrap();
    assert_eq!(mine["last_event"], leitstand::timestamp::rfc3339_ms(changed));
    let totals = &after["totals"];
    for (key, want) in [("events", 4), ("rejected_requests", 1), ("refused_requests", 1)] {
        assert_eq!(totals[key], want, "{key}");
    }
    assert_eq!(totals["bytes"], server.data("mine").len());
    assert!(totals["requests"].as_u64() >= Some(5));
    assert_eq!((&after["fsync"], &after["read_only"]), (&"always".into(), &false.into()));
    assert_eq!(
        (&after["throttle"]["rate"], &after["truncated"], &after["counting"]),
        (&Value::Null, &false.into(), &false.into())
    );
    assert_eq!(after["pid"], u64::from(server.pid().as_raw_nonzero().get() as u32));
    assert_eq!(after["version"], env!("CARGO_PKG_VERSION"));
    assert!(after["disk"]["free_bytes"].as_u64() > Some(0) && after["disk"]["reserve_bytes"] == 0);
    assert_eq!(after["queues"]["in_flight_bytes"], 0);
    assert!(after["queues"]["connections"].as_u64() >= Some(1));
    assert_eq!(after["started_at"].as_str().unwrap().len(), "2026-11-21T18:42:00.123Z".len());
}

/// Broken, the number of lines would be that of another time: of a file that has grown since, was cut,
/// or was replaced.
#[test]
fn lines_are_counted_anew_when_a_file_is_not_what_it_was() {
    let server = TestServer::builder().data_file("a.jsonl", "{}\n".repeat(10)).start();
    let path = server.data_dir().join("a.jsonl");
    let lines = || domain(&stats(&server, "?domain=a"), "a")["lines"].clone();
    assert_eq!(lines(), 10);
    fs::File::options().append(true).open(&path).unwrap().write_all(b"{}\n{}\n{").unwrap();
    assert_eq!(lines(), 12);
    fs::File::options().write(true).open(&path).unwrap().set_len(9).unwrap();
    assert_eq!(lines(), 3);
    // Cut, and grown past where it was: the byte before the known length is another one.
    fs::write(&path, "x".repeat(20) + "\n").unwrap();
    assert_eq!(lines(), 1);
    fs::write(server.data_dir().join("a.new"), "{}\n".repeat(20)).unwrap();
    fs::rename(server.data_dir().join("a.new"), &path).unwrap();
    assert_eq!(lines(), 20);
    fs::remove_file(&path).unwrap();
    assert_eq!(names(&stats(&server, "?domain=a")), [""; 0]);
}

/// Broken, a directory of many domains would be one huge answer, or some could not be seen at all.
#[test]
fn the_list_is_bounded_and_sorted() {
    let long = format!("{0}.{0}.{0}.{1}", "a".repeat(63), "b".repeat(61));
    let mut builder = TestServer::builder().data_file("not-a-domain-.jsonl", "x").data_file("readme.txt", "x");
    for name in ["c", "a.b", "a", "a-b", "b"] {
        builder = builder.data_file(&format!("{name}.jsonl"), "{}\n");
    }
    let server = builder.start();
    let all = stats(&server, "");
    assert_eq!((names(&all), &all["truncated"]), (vec!["a", "a-b", "a.b", "b", "c"], &false.into()));
    for (limit, want, truncated) in
        [(1, &["a"][..], true), (4, &["a", "a-b", "a.b", "b"], true), (5, &["a", "a-b", "a.b", "b", "c"], false)]
    {
        let some = stats(&server, &format!("?limit={limit}"));
        assert_eq!((names(&some), &some["truncated"]), (want.to_vec(), &truncated.into()), "{limit}");
    }
    assert_eq!(names(&stats(&server, "?domain=B")), ["b"]);
    assert_eq!(names(&stats(&server, "?domain=nobody")), [""; 0]);
    server.post(&long, "{}").assert_accepted();
    assert_eq!(domain(&stats(&server, ""), &long)["lines"], 1, "a shortened file name is no domain");
    assert_eq!(names(&stats(&server, &format!("?domain={long}"))), [long.as_str()]);
}

/// Broken, nobody would see which domain waits for a lock.
#[test]
fn what_waits_is_told_by_domain() {
    let server = TestServer::new();
    server.post("held", "{}").assert_accepted();
    let lock = server.hold_lock("held");
    let mut clients = [server.connect(), server.connect()];
    clients.iter_mut().for_each(|client| client.send(Request::post("held", "{}").bytes()));
    let queued = || domain(&stats(&server, "?domain=held"), "held")["queued"].as_u64();
    wait_for("both wait", PATIENCE, || (queued() == Some(2)).then_some(()));
    assert_eq!(stats(&server, "")["queues"]["queued_requests"], 2);
    drop(lock);
    clients.iter_mut().for_each(|client| client.read_answer("POST").assert_accepted());
    wait_for("nobody waits", PATIENCE, || (queued() == Some(0)).then_some(()));
}

/// Broken, anybody could read which domains there are, or a mistyped question would get an answer.
#[test]
fn only_an_admin_may_ask_and_only_what_is_known() {
    let server = TestServer::builder().env("LEITSTAND_AUTH_RATE_LIMIT", "off").start();
    server.send(&Request::new("GET", "/stats")).assert_error(401, "unauthorized");
    server.send(&Request::get("/stats").header("X-Auth", "wrong")).assert_error(401, "unauthorized");
    server.get("/stats").assert_error(403, "forbidden");
    for (query, detail) in [
        ("limit=0", "limit must be a whole number from 1 to 10000"),
        ("limit=10001", "limit must be a whole number from 1 to 10000"),
        ("limit=many", "limit must be a whole number from 1 to 10000"),
        ("domain=-a-", "domain must be a valid domain"),
        ("domian=a", "unknown parameter, allowed are domain, after, limit"),
    ] {
        server.send(&admin(&format!("/stats?{query}"))).assert_error(422, detail);
    }
    let problem = server.send(&admin("/stats?limit=0").header("Accept", "application/problem+json")).json();
    assert_eq!((&problem["code"], &problem["status"]), (&"invalid_input".into(), &422.into()));
    server
        .send(&Request::post_to("/stats", "{}").header("X-Auth", ADMIN_TOKEN))
        .assert_error(405, "Method Not Allowed");
}

/// Broken, a checker that reads JSON would miss what it looks for, or learn what it must not.
#[test]
fn a_checker_reads_the_figures_without_a_token() {
    let server = TestServer::new();
    let metrics = || server.send(&Request::new("GET", "/api/v1/ops/metrics")).json();
    assert_eq!((&metrics()["last_success_at"], &metrics()["sync_p99_ms"]), (&Value::Null, &Value::Null));
    server.post("secret-name", "[{},{}]").assert_accepted();
    server.post("secret-name", "nope").assert_error(400, "invalid json");
    server.post("secret-name", "{").assert_error(400, "invalid json");
    server.post("secret-name", "[1]").assert_error(400, "invalid payload");
    server.post("secret-name", r#"{"domain":"x"}"#).assert_error(400, "domain mismatch");
    server.send(&Request::post_to("/ingest/secret-name", "{}")).assert_text(200, "ok");
    let answer = server.send(&Request::new("GET", "/api/v1/ops/metrics"));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert!(!answer.text().contains("secret-name"));
    let figures = answer.json();
    for (key, want) in [
        ("events_accepted_total", 3),
        ("event_bytes_accepted_total", server.data("secret-name").len() as u64),
        ("parse_failures_total", 3),
        ("rejected_requests_total", 4),
        ("rejected_events_total", 0),
        ("requests_5xx_total", 0),
        ("requests_4xx_total", 4),
        ("deprecated_requests_total", 1),
        ("poisoned_domains", 0),
        ("torn_tails_total", 0),
        ("queue_depth", 0),
        ("append_failures_total", 0),
    ] {
        assert_eq!(figures[key], want, "{key}");
    }
    assert_eq!(figures["rejected_by_code"]["domain_mismatch"], 1);
    for key in ["request_p50_ms", "request_p99_ms", "append_p95_ms", "sync_p99_ms"] {
        assert!(figures[key].as_f64().unwrap() > 0.0, "{key}");
    }
    let at = figures["last_success_at"].as_str().and_then(leitstand::timestamp::parse_rfc3339).unwrap();
    assert!(at.elapsed().unwrap() < PATIENCE);
    assert_eq!(server.metric("leitstand_last_success_timestamp_seconds", "").round(), {
        at.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64().round()
    });
    server.send(&Request::post_to("/api/v1/ops/metrics", "{}")).assert_error(405, "Method Not Allowed");
}

/// Broken, a key would be served that no document explains, or explained and not served.
#[test]
#[cfg(feature = "docs")]
fn every_key_is_described() {
    let server = TestServer::new();
    server.post("a", "{}").assert_accepted();
    let described = server.get("/openapi.json").json();
    let keys = |value: &Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
    let properties = |schema: &str| {
        let mut names = keys(&described["components"]["schemas"][schema]["properties"]);
        names.sort();
        names
    };
    let stats = stats(&server, "");
    let metrics = server.get("/api/v1/ops/metrics").json();
    for (schema, served) in [
        ("OpsMetrics", &metrics),
        ("Stats", &stats),
        ("Totals", &stats["totals"]),
        ("Space", &stats["disk"]),
        ("Queues", &stats["queues"]),
        ("DomainFigures", &stats["domains"][0]),
    ] {
        let mut served = keys(served);
        served.sort();
        assert_eq!(served, properties(schema), "{schema}");
    }
}

/// Broken, what lies beyond the first page, or the largest domain there, would be seen by nobody.
#[test]
fn pages_show_each_domain_once() {
    let server = TestServer::new();
    let long = format!("{}.{}.{}.{}", "a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61));
    let mut want: Vec<String> = (0..25).map(|n| format!("n{n:02}.example.com")).chain([long]).collect();
    want.iter().for_each(|domain| server.post(domain, "{}").assert_accepted());
    want.sort();
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let request = Request::get(&format!("/stats?limit=7&after={after}")).header("X-Auth", ADMIN_TOKEN);
        let page = server.send(&request).json();
        let names: Vec<_> =
            page["domains"].as_array().unwrap().iter().map(|d| d["name"].as_str().unwrap().to_owned()).collect();
        after = names.last().expect("a page holds something").clone();
        seen.extend(names);
        if page["truncated"] == false {
            break;
        }
    }
    assert_eq!(seen, want);
    let answer = server.send(&Request::get(&format!("/stats?after={}", "x".repeat(254))).header("X-Auth", ADMIN_TOKEN));
    assert_eq!(answer.status, 422, "{answer:?}");
    let end = server.send(&Request::get("/stats?after=zzz").header("X-Auth", ADMIN_TOKEN)).json();
    assert_eq!((end["domains"].as_array().unwrap().len(), &end["truncated"]), (0, &false.into()));
}
