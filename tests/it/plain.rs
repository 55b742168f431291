//! Plain requests, which the service reads and answers itself, against the same ones read by hyper.
//!
//! An empty line in front of a request is allowed, means nothing, and makes the request hyper's. So the same
//! requests can be sent both ways.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::support::{Hasty, PATIENCE, Request, Response, TestServer, wait_for};

/// A server of which every answer says what was counted.
fn server() -> TestServer {
    TestServer::builder()
        .env("LEITSTAND_RATE_LIMIT", "1000000/hour")
        .env("LEITSTAND_AUTH_RATE_LIMIT", "1000000/hour")
        .env("LEITSTAND_MAX_BODY", "50000")
        .start()
}

/// One event with `bytes` in it, so that requests end anywhere in a buffer.
fn event(bytes: usize) -> String {
    format!("{{\"domain\":\"both\",\"text\":\"{}\"}}", "x".repeat(bytes))
}

fn request() -> impl Strategy<Value = Request> {
    let event = prop_oneof![4 => 0..300usize, 2 => 300..6000usize, 1 => 6000..60_000usize].prop_map(event);
    (0..16, event, any::<bool>(), any::<bool>()).prop_map(|(kind, event, named, problem)| {
        let request = match kind {
            0..=4 => Request::post("both", event),
            5 => Request::post_to("/v1/ingest", event),
            6..=7 => Request::post_to("/ingest/both", event),
            8 => {
                Request::post("both", event.repeat(3).replace("}{", "}\n{")).header("Content-Type", "application/jsonl")
            }
            9 => Request::post("both", &event[1..]),
            10 => Request::post("both", event).header("Content-Type", "text/plain"),
            11 => Request::post("both", ""),
            12 => Request::post("-", event),
            13 => Request::post("both", event).header("X-Auth", "wrong"),
            14 => Request::post("both", "").chunked(event, 1000),
            _ => Request::get("/version"),
        };
        // A problem document names its request.
        let request = if named || problem { request.header("X-Request-ID", "named by the client") } else { request };
        if problem { request.header("Accept", "text/html, application/problem+json") } else { request }
    })
}

/// Sends the pieces of a conversation, of which the last request closes the connection, and gives what
/// was answered, but for times and for ids that nobody asked for.
fn answers(server: &TestServer, pieces: &[&[u8]]) -> String {
    let mut client = server.connect();
    for piece in pieces {
        // After a refusal the rest may find the connection closed.
        let _ = client.try_send(piece);
        std::thread::yield_now();
    }
    let answered = client.read_to_end().expect("the connection is closed in order");
    let answered = String::from_utf8(answered).expect("answers are text");
    let lines = answered.split("\r\n").map(|line| match line.split_once(": ") {
        Some((name @ ("date" | "x-ratelimit-reset"), _)) => format!("{name}: then"),
        Some((name @ "x-request-id", id)) if id.len() == 26 => format!("{name}: own"),
        _ => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\r\n")
}

/// Broken, an answer or a file would depend on who reads the request, or on how its bytes arrive.
#[test]
fn plain_requests_are_answered_as_hyper_would() {
    let (plain, hyper) = (server(), server());
    let conversations = (vec(request(), 1..6), vec(any::<Index>(), 0..6));
    proptest!(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() }, |(conversation in conversations)| {
        let (mut requests, cuts) = conversation;
        requests.push(Request::get("/version").header("Connection", "close"));
        let answered = |server: &TestServer, led_by: &[u8]| {
            let bytes: Vec<u8> = requests.iter().flat_map(|request| [led_by, &request.bytes()].concat()).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            answers(server, &cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect::<Vec<_>>())
        };
        prop_assert_eq!(answered(&plain, b""), answered(&hyper, b"\r\n"));
        prop_assert_eq!(plain.data("both"), hyper.data("both"));
    });
    assert_eq!(plain.data_names(), hyper.data_names());
}

/// Broken, the memory of pipelined requests would have no bound, or their answers no order.
#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let server = server();
    let mut client = server.connect();
    let request = |n: usize| Request::post("line", format!("{{\"n\":{n}}}")).header("X-Request-ID", n.to_string());
    client.send((0..500).flat_map(|n| request(n).bytes()).collect::<Vec<_>>());
    for n in 0..500 {
        let answer = client.read_answer("POST");
        answer.assert_accepted();
        assert_eq!(answer.header("x-request-id"), Some(n.to_string().as_str()));
    }
    assert_eq!(
        server.lines("line").iter().map(|line| line["n"].as_u64()).collect::<Vec<_>>(),
        (0..500).map(Some).collect::<Vec<_>>()
    );
}

/// Broken, what stands behind a body could be smuggled past a proxy, or a refusal would have the id of the
/// request before it.
#[test]
fn what_follows_a_request_is_judged_as_ever() {
    let server = server();
    let behind = ["{\"smuggled\":1}", "POST /v1/ingest HTTP/1.1\nHost a\n\n", "\u{0}", "GET /version HTTP/1.1\r\n\r\n"];
    let plain_or_not = [Request::post("first", "{}"), Request::post("first", "").chunked("{}", 1)];
    for (behind, first) in behind.iter().flat_map(|behind| plain_or_not.iter().map(move |first| (behind, first))) {
        let mut client = server.connect();
        let first = client.roundtrip(first);
        first.assert_accepted();
        client.send(format!("{behind}\r\n\r\n"));
        let refused = client.read_answer("POST");
        refused.assert_text(400, "Invalid HTTP request received.");
        let id = |answer: &Response| answer.header("x-request-id").expect("an id").to_owned();
        let of_the_same_connection = id(&first).strip_suffix('1').expect("the first request").to_owned();
        assert_eq!(id(&refused), of_the_same_connection + "2", "{behind:?}");
        assert!(client.is_closed_within(PATIENCE));
    }
    assert_eq!(server.data_names(), ["first.jsonl", "first.jsonl.lock"]);
}

/// Broken, a client that counts characters and not bytes would be told something else, by the size of its
/// event.
#[test]
fn a_body_that_goes_on_is_refused_as_a_whole_also_where_it_is_long() {
    let server = server();
    for bytes in [10, 900, 1100, 4000, 5000, 7500] {
        let mut client = server.connect();
        let request = Request::post("long", event(bytes).replace("both", "long"));
        client.send([&request.bytes(), &b"}}"[..]].concat());
        client.read_answer("POST").assert_text(400, "Invalid HTTP request received.");
    }
    assert_eq!(server.data_names(), [""; 0]);
}

/// Broken, the same client would be told something else when it does not wait for an answer, and the event
/// be stored.
#[test]
fn a_body_that_goes_on_is_refused_as_a_whole_also_behind_other_requests() {
    let server = server();
    for bytes in [7000, 7500, 7900] {
        let mut client = server.connect();
        let first = Request::post("first", "{}").header("X-Long", "x".repeat(bytes));
        let longer = Request::post("longer", event(1500).replace("both", "longer"));
        client.send([&first.bytes(), &longer.bytes(), &b"}}"[..]].concat());
        client.read_answer("POST").assert_accepted();
        client.read_answer("POST").assert_text(400, "Invalid HTTP request received.");
    }
    assert_eq!(server.data_names(), ["first.jsonl", "first.jsonl.lock"]);
}

/// Broken, who hangs up would keep a connection for as long as a lock is held, whatever the size of the
/// event and of the buffer that it lies in.
#[test]
fn a_client_that_hangs_up_while_it_waits_is_seen() {
    let server = TestServer::builder().env("LEITSTAND_LOCK_TIMEOUT", "600").start();
    let lock = server.hold_lock("held");
    let waiting = |n: f64| (server.metric("leitstand_queue_depth", "") == n).then_some(());
    let sizes = [0, 700, 7000, 7900, 8000, 8100, 9000];
    for (n, size) in sizes.into_iter().enumerate() {
        let mut client = Hasty::connect(server.address(), &Request::post("first", "{}"));
        client.send(Request::post("held", event(size).replace("both", "held")).bytes());
        wait_for("the event is queued", PATIENCE, || waiting((n + 1) as f64));
        drop(client);
        let open = || server.metric("leitstand_connections", "");
        wait_for("the end is seen", PATIENCE, || (open() <= 1.0).then_some(()));
    }
    drop(lock);
    wait_for("the events are in the file", PATIENCE, || waiting(0.0));
    assert_eq!(server.lines("held").len(), sizes.len());
}
