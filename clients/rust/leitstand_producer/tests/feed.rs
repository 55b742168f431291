//! Feeds: how they are cut into requests, and how far one says it had come.

mod support;

use std::io::Read as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use futures_util::stream;
use leitstand_producer::{Kind, ProducerClient, ProducerError, Written};
use serde_json::json;

use support::{HANG_UP, OK, Stub, event, quick};

const REFUSED: (u16, &str) = (400, "{\"detail\":\"invalid payload\"}");

fn kind(error: &ProducerError) -> Kind {
    match error {
        ProducerError::Http(error) => error.kind(),
        ProducerError::Json(error) => panic!("{error}"),
    }
}

fn counts(error: &ProducerError) -> [u64; 4] {
    [error.acknowledged(), error.spooled(), error.failed(), error.unsent()]
}

/// Broken, events would be lost between requests, a request would be refused for its size, or each request
/// would cost a connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_feed_goes_in_order_in_bounded_requests_over_one_connection() {
    let stub = Stub::start(|_| OK);
    let client = quick(&stub.url).batch_events(1_000).build().unwrap();
    let check = || {
        let requests = stub.requests();
        assert_eq!(stub.numbers(), (0..2_500).collect::<Vec<_>>());
        let sizes: Vec<_> = requests.iter().map(|request| request.numbers().len()).collect();
        assert_eq!(sizes, [1_000, 1_000, 500]);
        assert!(requests.iter().all(|request| request.connection == 0), "one connection");
        for request in &requests {
            assert_eq!(request.path, "/v1/ingest?domain=example.com");
            assert_eq!(request.header("content-type"), Some("application/x-ndjson"));
            assert_eq!(request.header("x-auth"), Some("test-token"));
            assert_eq!(request.header("transfer-encoding"), None);
        }
        stub.forget();
    };
    let summary = client.deliver_iter((0..2_500).map(event)).unwrap();
    assert_eq!((summary.sent, summary.spooled), (2_500, 0));
    check();
    client.send_iter_async(stream::iter((0..2_500).map(event))).await.unwrap();
    check();
    // A feed of nothing is no request.
    client.send_iter(Vec::<support::Event>::new()).unwrap();
    assert!(stub.requests().is_empty());
}

/// Broken, a caller could not tell which events to send again.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_says_how_far_the_feed_had_come() {
    let stub = Stub::start(|request| if request.numbers().contains(&25) { REFUSED } else { OK });
    let client = quick(&stub.url).batch_events(10).build().unwrap();
    // Of a feed without an end, only what was needed is taken.
    let taken = AtomicU64::new(0);
    let feed = (0..).map(|n| {
        taken.fetch_add(1, Ordering::Relaxed);
        event(n)
    });
    let error = client.send_iter(feed).unwrap_err();
    let [acknowledged, spooled, failed, unsent] = counts(&error);
    assert_eq!((acknowledged, spooled, failed), (20, 0, 10), "{error:?}");
    assert_eq!(acknowledged + failed + unsent, taken.load(Ordering::Relaxed));
    assert!(unsent <= 11, "no more than one request is gathered ahead: {unsent}");
    assert_eq!((error.status(), error.written(), error.retryable()), (Some(400), Written::No, false));
    let requests = stub.requests();
    let id = requests[2].header("x-request-id").unwrap();
    assert_eq!((error.text(), error.request_id()), (Some(REFUSED.1), Some(id)));
    assert!(error.to_string().contains(&format!("(request {id})")), "{error}");
    assert!(requests[..2].iter().all(|other| other.header("x-request-id") != Some(id)), "each has its own");
    assert_eq!(stub.numbers(), (0..30).collect::<Vec<_>>(), "each event once, nothing behind the refused request");

    stub.forget();
    let error = client.send_iter_async(stream::iter((0..1_000).map(event))).await.unwrap_err();
    assert_eq!(counts(&error)[..3], [20, 0, 10]);
    assert_eq!(stub.numbers(), (0..30).collect::<Vec<_>>());
}

/// Broken, an event that cannot be sent would take its neighbours with it without a word.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_cannot_be_sent_stops_its_request_before_a_byte_of_it() {
    let stub = Stub::start(|_| OK);
    let client = quick(&stub.url).batch_events(10).build().unwrap();
    let large = json!({"n": 13, "pad": "x".repeat(1_000_000)});
    for bad in [large, json!([1]), json!("text"), json!(null)] {
        let feed = || (0..20).map(|n| if n == 13 { bad.clone() } else { json!({"n": n}) });
        let error = client.send_iter(feed()).unwrap_err();
        assert_eq!(counts(&error), [10, 0, 0, 4], "{error}");
        assert!(matches!(error, ProducerError::Json(_)) && !error.retryable() && error.written() == Written::No);
        if bad.is_object() {
            assert!(error.to_string().contains("1000000"), "{error}");
        }
        let error = client.send_iter_async(stream::iter(feed().collect::<Vec<_>>())).await.unwrap_err();
        assert_eq!(counts(&error), [10, 0, 0, 4], "{error}");
        assert_eq!(stub.numbers(), (0..10).chain(0..10).collect::<Vec<_>>());
        stub.forget();
        assert_eq!(counts(&client.send_one(&bad).unwrap_err()), [0, 0, 0, 1]);
    }
    assert!(stub.requests().is_empty());
}

/// Broken, a feed that pauses would hide a failure until its next event.
#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_told_while_an_async_feed_pauses() {
    let stub = Stub::start(|_| REFUSED);
    let client = quick(&stub.url).batch_events(1).build().unwrap();
    let feed = stream::unfold(0, |n| async move {
        if n > 0 {
            std::future::pending::<()>().await;
        }
        Some((event(n), n + 1))
    });
    let (send, receive) = mpsc::channel();
    let task = tokio::spawn(async move { send.send(client.send_iter_async(feed).await).unwrap() });
    let error = receive.recv_timeout(support::PATIENCE).expect("it is told").unwrap_err();
    assert_eq!(counts(&error), [0, 0, 1, 0]);
    task.await.unwrap();
}

/// Broken, attempts after a "maybe" would be told as safe to repeat.
#[test]
fn one_maybe_among_the_attempts_is_a_maybe() {
    let calls = AtomicU64::new(0);
    let stub = Stub::start(move |_| if calls.fetch_add(1, Ordering::Relaxed) == 0 { HANG_UP } else { REFUSED });
    let client = quick(&stub.url).build().unwrap();
    let error = client.send_one(&event(1)).unwrap_err();
    assert_eq!((error.status(), error.written(), error.retryable()), (Some(400), Written::Maybe, false));
}

/// Broken, a connection that the service closed while it waited would cost an attempt, or be told as "maybe".
#[test]
fn a_connection_that_ended_while_it_waited_is_replaced() {
    let stub = Stub::start(|_| OK);
    let client = quick(&stub.url).retries(0).build().unwrap();
    client.send_one(&event(0)).unwrap();
    stub.answer(|_| HANG_UP);
    assert_eq!(client.send_one(&event(1)).unwrap_err().written(), Written::Maybe);
    stub.answer(|_| OK);
    for n in 2..20 {
        client.send_one(&event(n)).unwrap();
    }
    assert_eq!(stub.requests().last().unwrap().connection, 1);
}

/// Broken, compressed requests would be unreadable, or not compressed at all.
#[test]
fn gzip_is_what_it_says() {
    let stub = Stub::start(|_| OK);
    let client = quick(&stub.url).gzip(true).build().unwrap();
    client.send_iter((0..900).map(event)).unwrap();
    let request = &stub.requests()[0];
    assert_eq!(request.header("content-encoding"), Some("gzip"));
    let mut plain = String::new();
    flate2::read::GzDecoder::new(&request.body[..]).read_to_string(&mut plain).unwrap();
    assert_eq!(plain.lines().count(), 900);
    assert!(request.body.len() * 3 < plain.len(), "{} of {}", request.body.len(), plain.len());
}

/// Broken, several threads would wait for each other, or mix their answers up.
#[test]
fn threads_share_a_client() {
    let stub = Stub::start(|request| if request.numbers()[0] % 2 == 0 { OK } else { REFUSED });
    let client = quick(&stub.url).build().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let client = client.clone();
            scope.spawn(move || {
                for n in 0..50 {
                    let n = thread * 50 + n;
                    assert_eq!(client.send_one(&event(n)).is_ok(), n % 2 == 0, "{n}");
                }
            });
        }
    });
    let mut numbers = stub.numbers();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..400).collect::<Vec<_>>());
}

/// Broken, the blocking functions would panic where many programs call them.
#[tokio::test]
async fn blocking_functions_work_inside_a_runtime() {
    let stub = Stub::start(|_| OK);
    let client = quick(&stub.url).build().unwrap();
    for n in 0..500 {
        client.send_one(&event(n)).unwrap();
    }
    drop(client);
    assert_eq!(stub.requests().len(), 500);
}

/// Broken, a wrong setting would stop a program, or go unseen, where there is no `Result` to tell it.
#[test]
fn new_tells_a_wrong_setting_with_every_call() {
    let client = ProducerClient::new("localhost:8788");
    for _ in 0..2 {
        let error = client.send_one(&event(1)).unwrap_err();
        assert!(error.to_string().contains("LEITSTAND_URL"), "{error}");
        assert_eq!((kind(&error), error.retryable(), error.written()), (Kind::Setting, false, Written::No));
    }
    let refused = ProducerClient::builder("http://a").domain("../etc").build().unwrap_err();
    assert!(refused.to_string().contains("domain"), "{refused}");
}

/// Broken, a service that takes connections and says nothing would hold a caller for ever.
#[test]
fn a_silent_service_costs_one_timeout_an_attempt() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let client = quick(url).timeout(Duration::from_millis(200)).retries(1).build().unwrap();
    let began = Instant::now();
    let error = client.send_one(&event(1)).unwrap_err();
    assert!((Duration::from_millis(400)..support::PATIENCE).contains(&began.elapsed()));
    assert_eq!((kind(&error), error.written()), (Kind::Timeout, Written::Maybe));
    drop(listener);
    let client = quick("http://127.0.0.1:1").retries(1).build().unwrap();
    let error = client.send_one(&event(1)).unwrap_err();
    assert_eq!((kind(&error), error.written(), error.retryable()), (Kind::Connect, Written::No, true));
}
