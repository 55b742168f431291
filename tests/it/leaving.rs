//! Clients that end their sending side, leave before the answer, or send on after a refusal.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Client, Hasty, PATIENCE, Request, Response, TestServer, wait_for};

/// In front of a request an empty line means nothing, and makes the request hyper's.
const READERS: [&[u8]; 2] = [b"", b"\r\n"];

fn all_kinds() -> [(u16, Request); 7] {
    [
        (202, Request::post("half", "{}")),
        (202, Request::post("half", "{}").header("Connection", "close")),
        (202, Request::post("half", "").chunked("{\"a\":1}", 3)),
        (200, Request::post_to("/ingest/half", "{}")),
        (202, Request::post("half", "{\"a\":1}\n".repeat(20_000)).header("Content-Type", "application/x-ndjson")),
        (200, Request::new("GET", "/health/live")),
        (401, Request::post("half", "{}").header("X-Auth", "wrong")),
    ]
}

/// Broken, `nc -N` and every client that ends its side after its request hears nothing of an event that is stored.
#[test]
fn who_has_ended_its_side_is_answered() {
    let server = TestServer::builder().env("LEITSTAND_RATE_LIMIT", "off").start();
    for led_by in READERS {
        for (status, request) in all_kinds() {
            for _ in 0..5 {
                let mut client = server.connect();
                client.send([led_by, &request.bytes()].concat());
                client.end_sending();
                let answer = client.try_read_answer(request.method());
                let answer = answer.unwrap_or_else(|e| panic!("{e}: {led_by:?} {request:?}"));
                assert_eq!(answer.status, status, "{answer:?}");
                assert!(client.is_closed_within(PATIENCE));
            }
        }
    }
}

/// Broken, the answer is lost that takes longest, and with it the only word of what became of the event.
#[test]
fn who_has_ended_its_side_is_answered_however_long_it_takes() {
    let server = TestServer::new();
    for led_by in READERS {
        let lock = server.hold_lock("slow");
        let requests = [
            vec![Request::post("slow", "{}")],
            vec![Request::post("slow", "{}").header("Connection", "close")],
            vec![Request::post("slow", "").chunked("{}", 1)],
            vec![Request::post("slow", "{}"), Request::post("slow", "{}"), Request::get("/version")],
            vec![Request::post("slow", "{}"), Request::post("slow", "").chunked("{}", 1)],
            vec![Request::post("slow", format!("{{\"a\":\"{}\"}}", "x".repeat(100_000)))],
        ];
        let mut clients: Vec<Client> = requests.iter().map(|_| server.connect()).collect();
        for (client, requests) in clients.iter_mut().zip(&requests) {
            let bytes: Vec<u8> = requests.iter().flat_map(Request::bytes).collect();
            client.send([led_by, &bytes].concat());
            client.end_sending();
        }
        for client in &mut clients {
            assert!(client.is_silent_for(Duration::from_millis(100)), "nobody is given up");
        }
        drop(lock);
        for (client, requests) in clients.iter_mut().zip(&requests) {
            for request in requests {
                let answer = client.try_read_answer(request.method());
                let answer = answer.unwrap_or_else(|e| panic!("{e}: {led_by:?} {requests:?}"));
                assert!(answer.status < 300, "{answer:?}");
            }
            assert!(client.is_closed_within(PATIENCE));
        }
    }
    assert_eq!(server.lines("slow").len(), 2 * 8);
}

/// Broken, a part of a request would be taken for all of it, or its connection stay open.
#[test]
fn a_part_of_a_request_is_refused_when_its_client_ends() {
    let server = TestServer::new();
    let whole = Request::post("part", "{\"a\":1}").bytes();
    let chunked = Request::post("part", "").chunked("{\"a\":1}", 3).bytes();
    for led_by in READERS {
        for part in [&whole[..whole.len() - 1], &chunked[..chunked.len() - 2], &chunked[..chunked.len() - 5]] {
            let mut client = server.connect();
            client.send([led_by, part].concat());
            client.end_sending();
            client.read_answer("POST").assert_text(400, "Invalid HTTP request received.");
            assert!(client.is_closed_within(PATIENCE));
        }
        let mut client = server.connect();
        client.send([led_by, &whole[..30]].concat());
        client.end_sending();
        let _ = client.read_to_end().expect("it is closed in order");
    }
    assert_eq!(server.data_names(), [""; 0]);
}

fn access_lines(server: &TestServer, id: &str) -> Vec<Value> {
    let lines = server.log_lines().into_iter();
    lines.filter(|line| line["target"] == "leitstand::access" && line["request_id"] == id).collect()
}

fn the_only_access_line(server: &TestServer, id: &str) -> Value {
    let line = server.log_line("an access line", |line| line["message"] == "request" && line["request_id"] == id);
    assert_eq!(access_lines(server, id).len(), 1, "{id}");
    line
}

/// Broken, nobody could find what became of a request whose client gave up, nor count those that do.
#[test]
fn who_leaves_before_the_answer_leaves_a_trace() {
    let server = TestServer::new();
    let lock = server.hold_lock("left");
    let named = |request: Request, id: &str| request.header("X-Request-ID", id).bytes();
    let half = |request: Request, id: &str| {
        let mut bytes = named(request, id);
        bytes.truncate(bytes.len() - 3);
        bytes
    };
    let waiting = Request::post("left", "{\"a\":1}");
    let long = Request::post("left", format!("{{\"a\":\"{}\"}}", "x".repeat(9_000)));
    let sent = [
        ("waits", named(waiting.clone(), "waits")),
        ("waits-chunked", named(Request::post("left", "").chunked("{\"a\":1}", 3), "waits-chunked")),
        ("half", half(Request::post("left", "{\"a\":1}"), "half")),
        ("half-long", half(long, "half-long")),
        ("half-chunked", half(Request::post("left", "").chunked("{\"a\":1}", 3), "half-chunked")),
    ];
    let ways = [("plain", READERS[0]), ("hyper", READERS[1])];
    let mut hasty: Vec<Hasty> = Vec::new();
    for (way, led_by) in &ways {
        for (name, bytes) in &sent {
            let mut client = Hasty::connect(server.address(), &Request::post("first", "{}"));
            let bytes = String::from_utf8(bytes.clone())
                .unwrap()
                .replace(&format!("X-Request-ID: {name}\r\n"), &format!("X-Request-ID: {way}-{name}\r\n"));
            client.send([led_by, bytes.as_bytes()].concat());
            hasty.push(client);
        }
    }
    let in_flight = || (server.metric("leitstand_in_flight_bytes", "") > 9_000.0).then_some(());
    wait_for("the requests have begun", PATIENCE, in_flight);
    // None of them has anything to hear before that.
    std::thread::sleep(Duration::from_millis(200));
    drop(hasty);
    for (way, _) in &ways {
        for (name, _) in &sent {
            let line = the_only_access_line(&server, &format!("{way}-{name}"));
            assert_eq!((line["status"].as_u64(), line["route"].as_str()), (Some(499), Some("/v1/ingest")), "{line}");
        }
    }
    let counted = server.metric("http_requests_total", "handler=\"/v1/ingest\",method=\"POST\",status=\"4xx\"");
    assert_eq!(counted, 10.0);
    drop(lock);
    // Who is answered and leaves then is no case of it.
    let answered = Hasty::connect(server.address(), &Request::post("first", "{}").header("X-Request-ID", "answered"));
    drop(answered);
    server.post("first", "{}").assert_accepted();
    assert_eq!(the_only_access_line(&server, "answered")["status"], 202);
}

/// Broken, requests that the end of the service cuts would be known to nobody.
#[test]
fn who_is_cut_by_the_end_of_the_service_leaves_a_trace() {
    let mut server = TestServer::builder().env("LEITSTAND_SHUTDOWN_TIMEOUT", "1").start();
    let mut clients = Vec::new();
    for (led_by, id) in READERS.into_iter().zip(["cut-plain", "cut-hyper"]) {
        let mut client = server.connect();
        let request = Request::post("cut", "{\"a\":1}").header("X-Request-ID", id);
        client.send([led_by, &request.head(), b"{"].concat());
        clients.push(client);
    }
    wait_for("both have begun", PATIENCE, || (server.metric("leitstand_in_flight_bytes", "") > 0.0).then_some(()));
    std::thread::sleep(Duration::from_millis(100));
    server.stop();
    for id in ["cut-plain", "cut-hyper"] {
        let lines = access_lines(&server, id);
        assert_eq!(lines.len(), 1, "{id}");
        assert_eq!(lines[0]["status"], 499);
    }
}

/// Sends all of a refused request before it reads, as proxies do. `pause`: between the two halves of the body.
fn upload(server: &TestServer, request: &[u8], pause: Duration) -> Response {
    let mut client = server.connect();
    let (front, back) = request.split_at(request.len() / 2);
    client.try_send(front).expect("the front is taken");
    std::thread::sleep(pause);
    client.try_send(back).expect("the back is taken");
    let answer = client.read_answer("POST");
    client.end_sending();
    assert!(client.is_closed_within(PATIENCE));
    answer
}

/// Broken, a proxy that sends on makes a 502 of the refusal, and its client does not learn what was wrong.
#[test]
fn what_is_sent_after_a_refusal_is_read_and_thrown_away() {
    let server = TestServer::builder().env("LEITSTAND_MAX_BODY", "1MiB").start();
    let body = vec![b' '; 24 << 20];
    let pause = Duration::from_millis(2_500);
    let started = std::thread::scope(|scope| {
        let requests = READERS.into_iter().flat_map(|led_by| {
            [
                (413, Request::post("large", &body)),
                (413, Request::post("large", "").chunked(&body, 1 << 20)),
                (401, Request::post("large", &body).header("X-Auth", "wrong")),
                (415, Request::post("large", &body[..1 << 20]).header("Content-Encoding", "br")),
                (404, Request::post_to("/nowhere", &body)),
            ]
            .map(|(status, request)| (status, [led_by, &request.bytes()].concat()))
        });
        let uploads: Vec<_> = requests
            .map(|(status, bytes)| {
                let server = &server;
                (status, scope.spawn(move || upload(server, &bytes, pause)))
            })
            .collect();
        uploads.into_iter().map(|(status, upload)| (status, upload.join().unwrap())).collect::<Vec<_>>()
    });
    for (status, answer) in started {
        assert_eq!(answer.status, status, "{answer:?}");
        assert_eq!(answer.header("connection"), Some("close"));
    }
    assert_eq!(server.data_names(), [""; 0]);
}

/// Broken, whoever asks first is told to send what will be refused.
#[test]
fn who_asks_before_it_sends_is_refused_without_a_body() {
    let server = TestServer::new();
    for request in [
        Request::post("large", "").header("Content-Length", "99999999"),
        Request::post("large", "{}").header("X-Auth", "wrong"),
        Request::post("large", "").without("Content-Length").header("Transfer-Encoding", "br"),
    ] {
        let mut client = server.connect();
        client.send(request.header("Expect", "100-continue").head());
        let answer = client.read_answer("POST");
        assert!(answer.status >= 400, "{answer:?}");
        client.end_sending();
        assert!(client.is_closed_within(PATIENCE));
    }
}

/// Broken, a client that sends on for ever would hold up the end of the service.
#[test]
fn what_is_thrown_away_holds_up_no_end() {
    let mut server = TestServer::builder().env("LEITSTAND_SHUTDOWN_TIMEOUT", "20").start();
    let mut client = server.connect();
    client.send(Request::post("large", "").header("Content-Length", "99999999").head());
    client.read_answer("POST").assert_error(413, "payload too large");
    let sender = std::thread::spawn(move || {
        while client.try_send(" ").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    server.signal(Signal::TERM);
    let stopped = server.wait(PATIENCE);
    assert!(stopped.took < Duration::from_secs(8), "{stopped:?}");
    sender.join().unwrap();
}

/// Broken, the time between two requests cannot be made longer than that of the proxy in front, and its requests meet a
/// connection that is just being closed.
#[test]
fn the_time_between_two_requests_is_a_setting() {
    let server = TestServer::builder().env("LEITSTAND_KEEP_ALIVE_TIMEOUT", "2").start();
    for led_by in READERS {
        let mut client = server.connect();
        client.send([led_by, &Request::post("kept", "{}").bytes()].concat());
        client.read_answer("POST").assert_accepted();
        let closed_after = client.closed_after(Duration::from_secs(8)).expect("it is closed");
        assert!(closed_after > Duration::from_millis(1_400), "{closed_after:?}");
    }
    let server = TestServer::new();
    let mut clients: Vec<Client> = READERS.iter().map(|_| server.connect()).collect();
    for (client, led_by) in clients.iter_mut().zip(READERS) {
        client.send([led_by, &Request::post("kept", "{}").bytes()].concat());
        client.read_answer("POST").assert_accepted();
    }
    for client in &mut clients {
        assert!(client.is_silent_for(Duration::from_secs(7)), "more than ten seconds for the second one");
    }
    for client in &mut clients {
        client.roundtrip(&Request::post("kept", "{}")).assert_accepted();
        // A head that has begun has its own time.
        client.send(b"POST");
    }
    for client in &mut clients {
        assert!(client.is_closed_within(Duration::from_secs(15)));
    }
}
