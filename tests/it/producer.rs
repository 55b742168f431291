//! The client library against this service: they must agree on what is stored and on what is refused.

use std::time::Duration;

use leitstand_producer::{Delivery, ProducerClient, Written};
use serde_json::{Value, json};

use crate::support::{TOKEN, TestServer};

fn client(server: &TestServer) -> leitstand_producer::ProducerBuilder {
    ProducerClient::builder(format!("http://{}", server.address())).token(TOKEN).backoff(Duration::from_millis(10))
}

/// Broken, a feed of the library would be stored in another order, in part, or not at all.
#[test]
fn a_feed_is_stored_whole_and_in_order() {
    let server = TestServer::new();
    for (domain, gzip) in [("plain.example", false), ("packed.example", true)] {
        let client = client(&server).domain(domain).gzip(gzip).build().unwrap();
        let summary = client.deliver_iter((0..3_500).map(|n| json!({"n": n, "text": "\u{fc}\n"}))).unwrap();
        assert_eq!(summary.sent, 3_500);
        client.send_one(&json!({"n": 3_500})).unwrap();
        let numbers: Vec<_> = server.lines(domain).iter().map(|line| line["n"].as_u64().unwrap()).collect();
        assert_eq!(numbers, (0..=3_500).collect::<Vec<_>>());
    }
    // Without a domain of its own, the event says it.
    client(&server).build().unwrap().send_one(&json!({"domain": "Own.Example"})).unwrap();
    assert_eq!(server.lines("own.example").len(), 1);
}

/// Broken, the largest requests of the library would be refused by a service with default limits.
#[test]
fn the_limits_of_the_library_are_within_those_of_the_service() {
    let server = TestServer::new();
    let client = client(&server).domain("example.com").build().unwrap();
    // `{"pad":""}` around it.
    client.send_one(&json!({"pad": "x".repeat(1_000_000 - 10)})).unwrap();
    client.send_iter((0..40).map(|_| json!({"pad": "x".repeat(100_000)}))).unwrap();
    assert_eq!(server.lines("example.com").len(), 41);
}

/// Broken, a caller could not tell what is wrong, or find the request in the log.
#[test]
fn a_refusal_comes_with_its_text_and_its_id() {
    let server = TestServer::new();
    let stranger = client(&server).token("wrong").domain("example.com").build().unwrap();
    let error = stranger.send_one(&json!({})).unwrap_err();
    assert_eq!((error.status(), error.retryable(), error.written()), (Some(401), false, Written::No));
    let id = error.request_id().expect("every answer has an id").to_owned();
    // As clients/PROTOCOL.md has it, the library asks for problem documents.
    let text: Value = serde_json::from_str(error.text().expect("the text as it came")).unwrap();
    assert_eq!(
        text,
        json!({"type": "urn:leitstand:error:unauthorized", "title": "Unauthorized", "status": 401, "detail": "unauthorized",
            "instance": id, "code": "unauthorized", "written": "no"})
    );
    server.log_line("the refused request", |line| line.to_string().contains(&id));

    let client = client(&server).domain("example.com").build().unwrap();
    let error = client.send_iter([json!({"summary": "s"}), json!({"summary": "x".repeat(501)})]).unwrap_err();
    assert_eq!((error.status(), error.failed(), error.acknowledged()), (Some(422), 2, 0));
    assert!(server.data_names().iter().all(|name| !name.ends_with(".jsonl")), "a batch is refused whole");
}

/// Broken, a client that is limited would give up, or come back before it may.
#[test]
fn a_limited_client_waits_as_long_as_it_is_told() {
    let server = TestServer::builder().env("LEITSTAND_RATE_LIMIT", "1/second").start();
    let client = client(&server).domain("example.com").build().unwrap();
    for n in 0..3 {
        client.send_one(&json!({"n": n})).unwrap();
    }
    assert_eq!(server.lines("example.com").len(), 3);
}

/// Broken, what is spooled while the service is away would not arrive, or arrive in another order.
#[test]
fn a_spool_is_delivered_when_the_service_is_back() {
    let server = TestServer::new();
    let spool = server.dir().join("spool");
    let away = ProducerClient::builder("http://127.0.0.1:1").token(TOKEN).domain("example.com").spool(&spool);
    let away = away.build().unwrap();
    for n in 0..5 {
        assert_eq!(away.deliver(&json!({"n": n})).unwrap(), Delivery::Spooled);
    }
    let back = client(&server).domain("example.com").spool(&spool).build().unwrap();
    assert_eq!(back.deliver(&json!({"n": 5})).unwrap(), Delivery::Sent);
    let numbers: Vec<_> = server.lines("example.com").iter().map(|line| line["n"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4, 5]);
    assert_eq!(back.flush().unwrap().delivered, 0);
}
