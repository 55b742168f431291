//! Everything that has a maximum, and what happens when it is reached.

use std::time::{Duration, Instant};

use crate::support::{Client, PATIENCE, Request, Response, TestServer, wait_for};

fn posts_from(server: &TestServer, addresses: &[&str]) -> Vec<u16> {
    let post = |address: &&str| server.send(&Request::post("a", "{}").header("X-Forwarded-For", address)).status;
    addresses.iter().map(post).collect()
}

fn assert_limited(answer: &Response, limit: u64, window_s: u64) {
    answer.assert_text(429, "too many requests");
    assert!((1..=window_s).contains(&answer.number("retry-after")), "{answer:?}");
    assert_eq!(answer.number("x-ratelimit-limit"), limit);
    assert_eq!(answer.number("x-ratelimit-remaining"), 0);
    assert!(answer.number("x-ratelimit-reset") >= 1);
}

/// Broken, one client could take the service away from the others, or would not know when to come back.
#[test]
fn a_used_up_limit_is_429_for_that_path_only() {
    for text in ["3/minute", "3 per minute", "100/second;3/MINUTES", "3/minute, 100/second"] {
        let server = TestServer::builder().env("LEITSTAND_RATE_LIMIT", text).start();
        for _ in 0..3 {
            server.post("a", "{}").assert_accepted();
        }
        for _ in 0..2 {
            assert_limited(&server.post("a", "{}"), 3, 60);
        }
        // The old path has its own count.
        assert_eq!(server.send(&Request::post_to("/ingest/a", "{}")).status, 200, "{text}");
        // Reading is not limited.
        assert_eq!(server.get("/health").status, 200);
        assert_eq!(server.lines("a").len(), 4);
    }
}

/// Broken, a client would have a budget for each name, or spelling of a name, that it makes up.
#[test]
fn one_client_has_one_budget_for_all_domains_of_the_old_path() {
    let server = TestServer::builder().env("LEITSTAND_RATE_LIMIT", "3/hour").start();
    let paths = ["/ingest/a", "/ingest/b", "/ingest/A", "/ingest/a/", "/ingest/a%20", "/ingest/%09a", "/ingest/c"];
    let statuses = paths.map(|path| server.send(&Request::post_to(path, "{}")).status);
    assert_eq!(statuses, [200, 200, 200, 429, 429, 429, 429]);
    // Not plain, so that another reader has it.
    assert_eq!(server.send(&Request::post_to("/ingest/d", "").chunked("{}", 1)).status, 429);
    server.post("a", "{}").assert_accepted();
    let elsewhere = Request::post_to("/ingest/e", "{}").header("X-Forwarded-For", "198.51.100.1");
    assert_eq!(server.send(&elsewhere).status, 200);
    let files = server.data_names().into_iter().filter(|name| name.ends_with(".jsonl")).collect::<Vec<_>>();
    assert_eq!(files, ["a.jsonl", "b.jsonl", "e.jsonl"]);
}

/// Broken, one client could fill the directory with domains; or a full one would refuse events of domains
/// that are there, or take a refused one for a domain.
#[test]
fn new_domains_are_limited_for_each_client_and_for_all() {
    let builder = TestServer::builder().data_file("old.jsonl", "{}\n").data_file("no domain.jsonl", "");
    let server = builder.env("LEITSTAND_MAX_DOMAINS", "6").env("LEITSTAND_NEW_DOMAINS_PER_HOUR", "3").start();
    let post = |domain: &str, client: &str| {
        let request = Request::post(domain, "{}").header("X-Forwarded-For", client);
        server.send(&request.header("Accept", "application/problem+json"))
    };
    let (one, two) = ("198.51.100.1", "198.51.100.2");
    for domain in ["a", "b", "old", "A", "c", "a"] {
        post(domain, one).assert_accepted();
    }
    let refused = post("d", one);
    assert_eq!((refused.status, &refused.json()["code"]), (429, &"too_many_new_domains".into()), "{refused:?}");
    assert_eq!((&refused.json()["detail"], &refused.json()["written"]), (&"too many requests".into(), &"no".into()));
    assert!((1..=3600).contains(&refused.number("retry-after")), "{refused:?}");
    post("c", one).assert_accepted();
    // What makes no file counts nothing.
    for (domain, body, status) in [("x", "[]", 202), ("x", "nope", 400), ("-x", "{}", 400)] {
        assert_eq!(server.send(&Request::post(domain, body).header("X-Forwarded-For", two)).status, status);
    }
    for domain in ["d", "e"] {
        post(domain, two).assert_accepted();
    }
    let full = post("f", two);
    assert_eq!((full.status, &full.json()["code"]), (507, &"too_many_domains".into()), "{full:?}");
    assert_eq!((&full.json()["detail"], &full.json()["written"]), (&"insufficient storage".into(), &"no".into()));
    for domain in ["old", "a", "e"] {
        post(domain, two).assert_accepted();
    }
    assert_eq!(server.metric("leitstand_domains", ""), 6.0);
    assert_eq!(server.metric("leitstand_domains_max", ""), 6.0);
    assert_eq!(server.metric("leitstand_refused_total", "new_domains"), 1.0);
    assert_eq!(server.metric("leitstand_append_failures_total", "too_many_domains"), 1.0);
    let names = server.data_names();
    assert!(!names.iter().any(|name| name.starts_with('f') || name.starts_with('x')), "{names:?}");
}

/// Broken, a client that waits as told would be refused again.
#[test]
fn retry_after_is_long_enough() {
    let server = TestServer::builder().env("LEITSTAND_RATE_LIMIT", "2/second").start();
    for _ in 0..3 {
        // On a slow machine a window may end between two requests.
        let refused = wait_for("the limit is used up", PATIENCE, || {
            let answer = server.post("a", "{}");
            (answer.status == 429).then_some(answer)
        });
        std::thread::sleep(Duration::from_secs(refused.number("retry-after")));
        server.post("a", "{}").assert_accepted();
    }
}

/// Broken, strangers could use up a client's budget, or bad requests would be free.
#[test]
fn requests_with_a_token_count_and_others_do_not() {
    let server =
        TestServer::builder().env("LEITSTAND_RATE_LIMIT", "3/minute").env("LEITSTAND_AUTH_RATE_LIMIT", "off").start();
    for _ in 0..10 {
        let wrong = Request::post("a", "{}").header("X-Auth", "wrong");
        server.send(&wrong).assert_error(401, "unauthorized");
        server.send(&Request::post("a", "{}").without("Content-Length")).assert_error(411, "length required");
    }
    server.post("a", "nope").assert_error(400, "invalid json");
    server.post("-bad", "{}").assert_error(400, "invalid domain");
    server.post("a", "{}").assert_accepted();
    assert_limited(&server.post("a", "{}"), 3, 60);
}

/// Broken, all clients behind a proxy would share one budget.
#[test]
fn a_trusted_proxy_speaks_for_its_clients() {
    let server = TestServer::builder().env("LEITSTAND_RATE_LIMIT", "1/hour").start();
    assert_eq!(posts_from(&server, &["198.51.100.1", "198.51.100.2", "198.51.100.1"]), [202, 202, 429]);
    // The rightmost untrusted entry is the client: what it wrote itself, further left, counts nothing.
    assert_eq!(posts_from(&server, &["203.0.113.9, 198.51.100.1", "203.0.113.10, 198.51.100.2"]), [429, 429]);
    // Trusted entries on the right are passed over.
    assert_eq!(posts_from(&server, &["198.51.100.1, 127.0.0.1", "198.51.100.3, 127.0.0.1"]), [429, 202]);
    // What is no address is the proxy itself.
    assert_eq!(posts_from(&server, &["garbage-1", "garbage-2", "198.51.100.99, unknown"]), [202, 429, 429]);
}

/// Broken, anybody could have as many budgets as there are addresses.
#[test]
fn an_untrusted_peer_is_not_believed() {
    for proxies in ["", "192.0.2.0/24"] {
        let server = TestServer::builder()
            .env("LEITSTAND_RATE_LIMIT", "2/hour")
            .env("LEITSTAND_TRUSTED_PROXIES", proxies)
            .start();
        let addresses = ["198.51.100.1", "198.51.100.2", "198.51.100.3", "2001:db8::1"];
        assert_eq!(posts_from(&server, &addresses), [202, 202, 429, 429]);
    }
}

/// Broken, one subscriber with IPv6 would have 2^64 budgets.
#[test]
fn an_ipv6_client_is_its_64() {
    let server = TestServer::builder().env("LEITSTAND_RATE_LIMIT", "1/hour").start();
    let addresses = [
        "2001:db8:0:1::1",
        "2001:db8:0:1:ffff:ffff:ffff:ffff",
        "[2001:db8:0:1::7]:443",
        "2001:db8:0:2::1",
        "198.51.100.1",
        "::ffff:198.51.100.1",
    ];
    assert_eq!(posts_from(&server, &addresses), [202, 429, 429, 202, 202, 429]);
}

/// Broken, a service behind another limiter could not do without its own.
#[test]
fn off_switches_the_limit_off() {
    for text in ["off", "OFF"] {
        let server = TestServer::builder().env("LEITSTAND_RATE_LIMIT", text).start();
        let mut client = server.connect();
        for _ in 0..100 {
            client.roundtrip(&Request::post("a", "{}")).assert_accepted();
        }
    }
}

/// Broken, a body of exactly the limit would be refused, or one byte more taken.
#[test]
fn the_body_limit_is_exact() {
    let server = TestServer::builder().env("LEITSTAND_MAX_BODY", "32").start();
    let body = |bytes: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(bytes - 8));
    for path in ["/v1/ingest?domain=a", "/ingest/a"] {
        assert!(server.send(&Request::post_to(path, body(32))).status < 300);
        server.send(&Request::post_to(path, body(33))).assert_error(413, "payload too large");
        // Announced, and not one byte sent.
        let mut client = server.connect();
        client.send(Request::post_to(path, "").header("Content-Length", "33").head());
        client.read_answer("POST").assert_error(413, "payload too large");
    }
    assert_eq!(server.lines("a").len(), 2);

    let zero = TestServer::builder().env("LEITSTAND_MAX_BODY", "0").start();
    zero.post("a", "x").assert_error(413, "payload too large");
    zero.post("a", "").assert_error(400, "invalid json");
    zero.send(&Request::post("a", "").chunked("x", 1)).assert_error(413, "payload too large");
    zero.send(&Request::post("a", "").header("Content-Type", "application/x-ndjson")).assert_accepted();
}

/// Broken, connections would use up the descriptors that the data files need.
#[test]
fn a_connection_too_many_is_told_so_and_the_next_one_served() {
    let server = TestServer::builder().env("LEITSTAND_MAX_CONNECTIONS", "8").start();
    let mut open: Vec<_> = (0..8).map(|_| server.connect()).collect();
    for client in &mut open {
        client.roundtrip(&Request::post("a", "{}")).assert_accepted();
    }
    for _ in 0..3 {
        let answer = server.post("a", "{}");
        answer.assert_error(503, "busy");
        assert!(answer.number("retry-after") >= 1);
    }
    // Those that were there first are still served.
    for client in &mut open {
        client.roundtrip(&Request::post("a", "{}")).assert_accepted();
    }
    open.pop();
    wait_for("a place is free again", PATIENCE, || (server.post("a", "{}").status == 202).then_some(()));
    drop(open);
    wait_for("the count of connections goes down", PATIENCE, || {
        (server.metric("leitstand_connections", "") <= 1.0).then_some(())
    });
    assert!(server.metric("leitstand_refused_total", "connection_limit") >= 3.0);
    assert_eq!(server.lines("a").len(), 17);
}

/// Broken, a client that opens connections and says nothing keeps everybody else out for ten seconds.
#[test]
fn silent_connections_make_way() {
    let server = TestServer::builder().env("LEITSTAND_MAX_CONNECTIONS", "40").start();
    let mut known = server.connect();
    known.roundtrip(&Request::post("a", "{}")).assert_accepted();
    let began = Instant::now();
    // Nothing, a byte, or one question and then nothing.
    let silent: Vec<_> = (0..60)
        .map(|n| {
            let mut client = server.connect();
            match n % 3 {
                0 => {}
                1 => drop(client.try_send("G")),
                _ => drop(client.try_send("GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n")),
            }
            client
        })
        .collect();
    // The first waits until those are silent for long enough; none is refused.
    for _ in 0..20 {
        server.post("a", "{}").assert_accepted();
    }
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    assert!(server.metric("leitstand_refused_total", "evicted") >= 1.0);
    known.roundtrip(&Request::post("a", "{}")).assert_accepted();
    drop(silent);
}

/// Broken, one address could take all connections; or a proxy, through which all come, could not.
#[test]
fn one_address_has_so_many_connections_at_most() {
    let builder = || TestServer::builder().env("LEITSTAND_MAX_CONNECTIONS_PER_CLIENT", "3");
    let open = |server: &TestServer, count: usize| {
        let mut open: Vec<_> = (0..count).map(|_| server.connect()).collect();
        for client in &mut open {
            client.roundtrip(&Request::post("a", "{}")).assert_accepted();
        }
        open
    };
    let server = builder().env("LEITSTAND_TRUSTED_PROXIES", "").start();
    let mut three = open(&server, 3);
    let refused = server.post("a", "{}");
    refused.assert_error(503, "busy");
    assert!(refused.number("retry-after") >= 1 && refused.header("x-request-id").is_some(), "{refused:?}");
    assert_eq!(server.send(&Request::new("GET", "/health/live")).status, 200);
    for client in &mut three {
        client.roundtrip(&Request::post("a", "{}")).assert_accepted();
    }
    three.pop();
    wait_for("a place is free again", PATIENCE, || (server.post("a", "{}").status == 202).then_some(()));
    drop(three);
    wait_for("the refusals are counted", PATIENCE, || {
        (server.metric("leitstand_refused_total", "client_connection_limit") >= 2.0).then_some(())
    });
    open(&builder().start(), 20);
}

/// Broken, a probe would restart a service that only has many clients.
#[test]
fn health_is_told_beyond_the_cap() {
    let server = TestServer::builder().env("LEITSTAND_MAX_CONNECTIONS", "4").start();
    let mut open: Vec<_> = (0..4).map(|_| server.connect()).collect();
    for client in &mut open {
        client.roundtrip(&Request::post("a", "{}")).assert_accepted();
    }
    for _ in 0..10 {
        for path in ["/health/live", "/health/ready"] {
            let answer = server.send(&Request::new("GET", path));
            assert_eq!((answer.status, answer.header("connection")), (200, Some("close")), "{answer:?}");
        }
        assert_eq!(server.send(&Request::get("/health")).status, 200);
        for other in [Request::get("/version"), Request::new("GET", "/metrics"), Request::post("a", "{}")] {
            server.send(&other).assert_error(503, "busy");
        }
    }
    // In two pieces, one of which never comes: no longer than a moment.
    let mut slow = server.connect();
    slow.send("GET /health/live HT");
    slow.read_answer("GET").assert_error(503, "busy");
    let mut slow = server.connect();
    slow.send("GET /health/live HT");
    std::thread::sleep(Duration::from_millis(100));
    slow.send("TP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(slow.read_answer("GET").status, 200);
    assert_eq!(server.lines("a").len(), 4);
}

/// Broken, heads without an end would fill the memory; or those of good clients would not get through.
#[test]
fn long_heads_have_a_budget_and_short_ones_get_through() {
    // A quarter of it: room for 16 heads of up to 16 KiB.
    let server = TestServer::builder().env("LEITSTAND_MAX_IN_FLIGHT", "1MiB").env("LEITSTAND_MAX_BODY", "1KiB").start();
    let mut used: Vec<_> = (0..10).map(|_| server.connect()).collect();
    for client in &mut used {
        assert_eq!(client.roundtrip(&Request::get("/health")).status, 200);
    }
    let began = Instant::now();
    let long = |start: &str| format!("{start}Host: a\r\nX-Long: {}", "x".repeat(10_000));
    let starts = ["POST /v1/ingest?domain=a HTTP/1.1\r\n", "GET /health/live HTTP/1.1\r\n"];
    let mut fresh: Vec<_> = (0..40).map(|_| server.connect()).collect();
    let send = |clients: &mut [Client]| {
        for (n, client) in clients.iter_mut().enumerate() {
            // Who is refused already may be closed.
            let _ = client.try_send(long(starts[n % 2]));
        }
    };
    send(&mut fresh);
    // Else those of the others may be read first.
    wait_for("there is no room", PATIENCE, || {
        (server.metric("leitstand_refused_total", "head_budget") > 0.0).then_some(())
    });
    send(&mut used);
    for filler in [0, 6_000] {
        server.send(&Request::post("a", "{}").header("X-Filler", "x".repeat(filler))).assert_accepted();
    }
    // Those that are not refused are given up early, without an answer.
    let refused = |clients: &mut [Client]| {
        let answers: Vec<_> = clients.iter_mut().filter_map(|client| client.try_read_answer("GET").ok()).collect();
        answers.iter().for_each(|answer| answer.assert_error(503, "busy"));
        answers.len()
    };
    let (of_fresh, of_used) = (refused(&mut fresh), refused(&mut used));
    assert!(of_fresh >= 1 && of_used >= 1, "{of_fresh} {of_used}");
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    assert_eq!(server.metric("leitstand_refused_total", "head_budget"), (of_fresh + of_used) as f64);
    // There is room again, and a long head leaves nothing behind.
    for request in [Request::post("a", "{}"), Request::get("/health")] {
        let answer = server.send(&request.header("X-Filler", "x".repeat(12_000)));
        assert!(answer.status < 300 && answer.header("connection") == Some("close"), "{answer:?}");
    }
}

/// Broken, an operator who needs few connections would get more than `config check` says.
#[test]
fn the_connection_limit_is_the_one_that_was_set() {
    let server = TestServer::builder().env("LEITSTAND_MAX_CONNECTIONS", "2").start();
    let mut open: Vec<_> = (0..2).map(|_| server.connect()).collect();
    for client in &mut open {
        assert_eq!(client.roundtrip(&Request::get("/health")).status, 200);
    }
    server.post("a", "{}").assert_error(503, "busy");
}

/// Broken, a refused client could not say which request it lost (the contract: every answer carries
/// X-Request-ID).
#[test]
fn the_refusal_of_a_connection_carries_a_request_id() {
    let server = TestServer::builder().env("LEITSTAND_MAX_CONNECTIONS", "8").start();
    let mut open: Vec<_> = (0..8).map(|_| server.connect()).collect();
    for client in &mut open {
        assert_eq!(client.roundtrip(&Request::get("/health")).status, 200);
    }
    let answer = server.post("a", "{}");
    answer.assert_error(503, "busy");
    assert!(answer.header("x-request-id").is_some_and(|id| !id.is_empty()), "{answer:?}");
}

/// Broken, slow senders of large bodies could fill the memory.
#[test]
fn bodies_in_flight_are_bounded_and_the_bound_is_given_back() {
    let server =
        TestServer::builder().env("LEITSTAND_MAX_IN_FLIGHT", "1MiB").env("LEITSTAND_MAX_BODY", "340KiB").start();
    let held_bytes = 330 << 10;
    let mut held: Vec<_> = (0..3)
        .map(|_| {
            let mut client = server.connect();
            client.send(Request::post("held", "").header("Content-Length", (340 << 10).to_string()).head());
            client.send(vec![b' '; held_bytes]);
            client
        })
        .collect();
    wait_for("the bodies are in memory", PATIENCE, || {
        (server.metric("leitstand_in_flight_bytes", "") >= 3.0 * held_bytes as f64).then_some(())
    });
    let large = format!("{{\"a\":\"{}\"}}", "x".repeat(100 << 10));
    for request in [Request::post("busy", &large), Request::post("busy", "").chunked(&large, 1000)] {
        let answer = server.send(&request);
        answer.assert_error(503, "busy");
        assert!(answer.number("retry-after") >= 1);
    }
    // A small one still fits.
    server.post("small", "{}").assert_accepted();
    // One finishes its body (which is no JSON), the other hangs up: both give back.
    held[0].send(vec![b' '; (340 << 10) - held_bytes]);
    held[0].read_answer("POST").assert_error(400, "invalid json");
    server.post("busy", &large).assert_accepted();
    drop(held);
    wait_for("everything is given back", PATIENCE, || {
        (server.metric("leitstand_in_flight_bytes", "") == 0.0).then_some(())
    });
}

/// Broken, a client that never finishes its body would hold its memory for ever.
#[test]
fn a_body_that_does_not_arrive_is_408() {
    let server = TestServer::builder().env("LEITSTAND_BODY_TIMEOUT", "1").start();
    let head = Request::post("slow", "").header("Content-Length", "100").head();
    let mut silent = server.connect();
    silent.send(&head);
    let began = Instant::now();
    let mut dripping = server.connect();
    dripping.send(&head);
    // A byte now and then does not help: the time is for the whole body.
    while began.elapsed() < Duration::from_millis(800) {
        dripping.send(" ");
        std::thread::sleep(Duration::from_millis(50));
    }
    for client in [&mut silent, &mut dripping] {
        let answer = client.read_answer("POST");
        answer.assert_error(408, "request timeout");
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(began.elapsed() >= Duration::from_secs(1));
        assert!(client.is_closed_within(PATIENCE));
    }
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert_eq!(server.metric("leitstand_refused_total", "body_timeout"), 2.0);
    assert_eq!(server.data_names(), [""; 0]);
}

/// Broken, one connection could take much memory before its first request is read.
#[test]
fn a_huge_head_is_refused() {
    let server = TestServer::new();
    let filler = |bytes: usize| Request::post("huge", "{}").header("X-Filler", "x".repeat(bytes));
    server.send(&filler(8 << 10)).assert_accepted();
    let many = (0..200).fold(Request::post("huge", "{}"), |request, i| request.also(&format!("X-{i}"), "x"));
    for request in [filler(64 << 10), filler(1 << 20), many] {
        let mut client = server.connect();
        // The server may answer and close before all of it is sent.
        let _ = client.try_send(request.bytes());
        let answer = client.try_read_answer("POST");
        // Large ones may be cut off while we are still sending.
        if let Ok(answer) = answer {
            assert!([400, 431].contains(&answer.status), "{answer:?}");
            assert!(client.is_closed_within(PATIENCE));
        } else {
            assert!(request.bytes().len() > 64 << 10, "{answer:?}");
        }
    }
    let target = Request::post_to(&format!("/v1/ingest?domain=huge&x={}", "x".repeat(70_000)), "{}");
    let mut client = server.connect();
    let _ = client.try_send(target.bytes());
    if let Ok(answer) = client.try_read_answer("POST") {
        assert!([400, 414, 431].contains(&answer.status), "{answer:?}");
    }
    assert_eq!(server.lines("huge").len(), 1);
}

/// Broken, connections that say nothing, or speak too slowly, would stay for ever; or those who do
/// not read their answers would keep others waiting. One test, so that the waits run side by side.
#[test]
fn slow_connections_end_after_ten_seconds_and_hurt_nobody() {
    let server = TestServer::builder().env("LEITSTAND_KEEP_ALIVE_TIMEOUT", "10").start();
    let soon = Duration::from_secs(30);
    let many = crate::support::more_than_buffers_hold();
    std::thread::scope(|scope| {
        // Megabytes of answers, none of them read, to the end of the test.
        let stuck: Vec<_> = (0..20)
            .map(|_| {
                let mut client = server.connect();
                client.send(&many);
                client
            })
            .collect();
        let long = format!("POST /v1/ingest HTTP/1.1\r\nHost: a\r\nX-Slow: {}", "x".repeat(8135));
        let slow = |name: &'static str, start: &str, drip: bool| {
            let start = start.to_owned();
            let server = &server;
            scope.spawn(move || {
                let mut client = server.connect();
                client.send(start);
                let began = Instant::now();
                let closed = loop {
                    let wait = if drip { Duration::from_millis(500) } else { soon };
                    if client.closed_after(wait).is_some() {
                        break began.elapsed();
                    }
                    assert!(drip && began.elapsed() < soon, "{name}: still open after {:?}", began.elapsed());
                    // Closed between look and write: the next look sees it.
                    let _ = client.try_send("x");
                };
                let range = Duration::from_millis(9_500)..Duration::from_secs(15);
                assert!(range.contains(&closed), "{name}: closed after {closed:?}");
            })
        };
        let mut ends = vec![
            slow("silent", "", false),
            slow("half a head", "POST /v1/ingest HTTP/1.1\r\nHost: a\r\n", false),
            slow("a head byte by byte", "GET /health HTTP/1.1\r\nX-Slow: ", true),
            // Another reader takes it over when it gets longer than 8 KiB, and the time runs on.
            slow("a long head byte by byte", &long, true),
        ];
        ends.push(scope.spawn(|| {
            let mut client = server.connect();
            client.roundtrip(&Request::post("slow", "{}")).assert_accepted();
            let closed = client.closed_after(soon).expect("an idle connection is closed");
            assert!(closed < Duration::from_secs(15), "idle after a request: closed after {closed:?}");
        }));
        // Meanwhile everybody else is served at once.
        let mut slowest = Duration::ZERO;
        let mut served = 0;
        while ends.iter().any(|end| !end.is_finished()) {
            let began = Instant::now();
            server.post("meanwhile", "{}").assert_accepted();
            slowest = slowest.max(began.elapsed());
            served += 1;
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(slowest < Duration::from_secs(3), "{slowest:?}");
        assert_eq!(server.lines("meanwhile").len(), served);
        drop(stuck);
    });
    assert!(server.metric("leitstand_refused_total", "header_timeout") >= 3.0);
}

/// Broken, a request that takes its time (a held lock, a slow line) would be cut off unanswered as if
/// its connection were idle, and its event perhaps be stored and sent again. The waits run side by side.
#[test]
fn a_request_that_takes_longer_than_ten_seconds_is_not_idle() {
    let server = TestServer::builder().env("LEITSTAND_LOCK_TIMEOUT", "60").env("LEITSTAND_BODY_TIMEOUT", "60").start();
    let lock = server.hold_lock("held");
    let first = Request::get("/health/live").bytes();
    let alone: &[u8] = b"";
    let slow_body = Request::post("body", "").body("{\"a\":1}");
    let mut waiting = Vec::new();
    for (name, before, start, rest) in [
        ("waits for a lock", alone, Request::post("held", "{}").bytes(), &b""[..]),
        ("waits for a lock, pipelined", &first, Request::post("held", "{}").bytes(), b""),
        ("sends slowly", alone, slow_body.head(), slow_body.wire_body()),
        ("sends slowly, pipelined", &first, slow_body.head(), slow_body.wire_body()),
        ("sends slowly, pipelined, in two parts", &first, [slow_body.head(), b"{".to_vec()].concat(), b"\"a\":1}"),
    ] {
        let mut client = server.connect();
        client.send([before, &start].concat());
        waiting.push((name, client, !before.is_empty(), rest));
    }
    std::thread::sleep(Duration::from_secs(12));
    drop(lock);
    let mut cut = Vec::new();
    for (name, mut client, pipelined, rest) in waiting {
        if pipelined {
            assert_eq!(client.read_answer("GET").status, 200, "{name}");
        }
        match client.try_send(rest).and_then(|()| client.try_read_answer("POST")) {
            Ok(answer) => answer.assert_accepted(),
            Err(error) => cut.push(format!("{name}: {error}")),
        }
    }
    assert!(cut.is_empty(), "cut off after ten seconds: {cut:#?}");
}
