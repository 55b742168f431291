//! Requests that two readers could understand differently, and bytes that are no request at all.

use crate::support::{Client, PATIENCE, Request, Response, TestServer};

const HEAD: &str =
    "POST /v1/ingest?domain=frame HTTP/1.1\r\nHost: a\r\nX-Auth: golden-token\r\nContent-Type: application/json\r\n";

/// Sends bytes, reads one answer, and sees the connection closed without another.
fn refused(server: &TestServer, bytes: impl AsRef<[u8]>) -> Response {
    let mut client = server.connect();
    client.send(bytes);
    let answer = client.read_answer("POST");
    assert!(client.is_closed_within(PATIENCE), "still open after {answer:?}");
    answer
}

/// Broken, a request could be smuggled past a proxy that reads the other length.
#[test]
fn two_ways_to_say_the_length_are_refused_and_the_connection_closed() {
    let server = TestServer::new();
    let smuggled = "POST /v1/ingest?domain=smuggled HTTP/1.1\r\nHost: a\r\nX-Auth: golden-token\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
    for head in [
        "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        "transfer-encoding: chunked\r\nCONTENT-LENGTH: 12\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
        "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
        "Content-Length: 2, 2\r\n\r\n{}",
        "Content-Length: 2, 3\r\n\r\n{} ",
    ] {
        let answer = refused(&server, format!("{HEAD}{head}{smuggled}"));
        assert_eq!(answer.status, 400, "{head:?}");
    }
    assert_eq!(server.data_names(), [""; 0]);
}

/// A request with two lengths, as above.
fn doubtful() -> Vec<u8> {
    let lengths = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n";
    format!("{HEAD}{lengths}").into_bytes()
}

/// Broken, the check could be walked around with a request before it on the same connection.
#[test]
fn two_lengths_are_refused_on_a_connection_that_was_used_before() {
    let server = TestServer::new();
    for first in [Request::get("/health"), Request::post("first", "{}"), Request::post("first", "").chunked("{}", 1)] {
        let mut client = server.connect();
        assert!(client.roundtrip(&first).status < 300);
        client.send(doubtful());
        assert_eq!(client.read_answer("POST").status, 400);
    }
    assert_eq!(server.data("frame"), b"");
}

/// Broken, the check could be walked around with a request before it in the same packet.
#[test]
fn two_lengths_are_refused_in_a_pipelined_request() {
    let server = TestServer::new();
    for first in [Request::get("/health"), Request::post("first", "{}"), Request::post("first", "").chunked("{}", 1)] {
        let mut client = server.connect();
        client.send([first.bytes(), doubtful()].concat());
        assert!(client.read_answer(first.method()).status < 300);
        assert_eq!(client.read_answer("POST").status, 400, "after {} of {} bytes", first.method(), first.bytes().len());
    }
    assert_eq!(server.data("frame"), b"");
}

/// Broken, the check could be walked around with empty lines in front, which RFC 9112 allows.
#[test]
fn two_lengths_are_refused_after_empty_lines() {
    let server = TestServer::new();
    for empty_lines in ["\r\n", "\n", "\r\n\r\n", "\n\n", "\r\n\r\n\r\n"] {
        let mut client = server.connect();
        client.send([empty_lines.as_bytes(), &doubtful()].concat());
        assert_eq!(client.read_answer("POST").status, 400, "after {empty_lines:?}");
    }
    assert_eq!(server.data("frame"), b"");
}

/// Broken, a length that one reader rounds or wraps would do the same.
#[test]
fn a_length_that_is_no_plain_number_is_refused() {
    let server = TestServer::new();
    for length in ["-1", "+2", "two", "0x2", "2_0", "", "2 2", "2.0"] {
        let answer = refused(&server, format!("{HEAD}Content-Length: {length}\r\n\r\n{{}}"));
        assert_eq!(answer.status, 400, "{length:?}");
    }
    for length in ["18446744073709551615", "18446744073709551616", "99999999999999999999999"] {
        let mut client = server.connect();
        client.send(format!("{HEAD}Content-Length: {length}\r\n\r\n"));
        assert!([400, 413, 431].contains(&client.read_answer("POST").status), "{length}");
    }
    assert_eq!(server.data_names(), [""; 0]);
}

/// Broken, a body in a coding that we do not undo would be taken as it is.
#[test]
fn transfer_codings_but_chunked_are_not_implemented() {
    let server = TestServer::new();
    for coding in ["gzip, chunked", "chunked, chunked", "identity, chunked"] {
        let bytes = format!("{HEAD}Transfer-Encoding: {coding}\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n");
        refused(&server, bytes).assert_error(501, "unsupported transfer-encoding");
    }
    let twice = "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n";
    refused(&server, format!("{HEAD}{twice}")).assert_error(501, "unsupported transfer-encoding");
    // These leave no way to tell where the body ends.
    for coding in ["gzip", "chunked, gzip", "xchunked", "chunked;q=1"] {
        let answer = refused(&server, format!("{HEAD}Transfer-Encoding: {coding}\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n"));
        assert!([400, 501].contains(&answer.status), "{coding}: {answer:?}");
    }
    assert_eq!(server.data_names(), [""; 0]);
}

/// Broken, a proxy could route by one host and we by another.
#[test]
fn exactly_one_host_is_needed() {
    let server = TestServer::new();
    let good = Request::post("frame", "{}");
    for request in
        [good.clone().without("Host"), good.clone().also("Host", "b"), good.clone().also("host", "leitstand.test")]
    {
        refused(&server, request.bytes()).assert_text(400, "Invalid HTTP request received.");
    }
    assert_eq!(server.data_names(), [""; 0]);
    server.send(&good).assert_accepted();
}

/// Broken, nonsense would be answered 405 where the original could not even read it.
#[test]
fn a_method_nobody_knows_is_no_request() {
    let server = TestServer::new();
    for method in ["BREW", "get", "POSTS", "X"] {
        let request = Request::post("frame", "{}").with_method(method);
        refused(&server, request.bytes()).assert_text(400, "Invalid HTTP request received.");
    }
    assert_eq!(server.data_names(), [""; 0]);
}

/// Broken, a header could be hidden from one of two readers.
#[test]
fn folded_and_malformed_headers_are_refused() {
    let server = TestServer::new();
    for header in [
        "X-A: b\r\n c\r\n",
        "X-A: b\r\n\tContent-Length: 0\r\n",
        "X A: b\r\n",
        "X-A : b\r\n",
        ": b\r\n",
        "X-A\r\n",
        "X-A: b\0c\r\n",
        "Content-Length : 0\r\n",
        "Transfer-Encoding : chunked\r\n",
    ] {
        let answer = refused(&server, format!("{HEAD}{header}Content-Length: 2\r\n\r\n{{}}"));
        assert_eq!(answer.status, 400, "{header:?}");
    }
    assert_eq!(server.data_names(), [""; 0]);
}

/// Broken, a body with more bytes than announced would be taken as event and next request.
#[test]
fn a_body_longer_than_announced_is_refused_as_a_whole() {
    let server = TestServer::new();
    let answer = refused(&server, format!("{HEAD}Content-Length: 7\r\n\r\n{{\"a\":1}}{{\"smuggled\":1}}"));
    assert_eq!(answer.status, 400);
    assert_eq!(server.data_names(), [""; 0]);
}

/// Broken, a chunked body with an unclear length would be stored in part.
#[test]
fn broken_chunks_are_refused_and_nothing_is_stored() {
    let server = TestServer::new();
    for body in [
        "xyz\r\n{}\r\n0\r\n\r\n",
        "-2\r\n{}\r\n0\r\n\r\n",
        "2{}\r\n0\r\n\r\n",
        "2\r\n{}0\r\n\r\n",
        "fffffffffffffffff\r\n{}\r\n0\r\n\r\n",
    ] {
        let answer = refused(&server, format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n{body}"));
        assert_eq!(answer.status, 400, "{body:?}");
    }
    assert_eq!(server.data_names(), [""; 0]);
}

/// Broken, an event whose sender died half way would be stored in part.
#[test]
fn a_body_that_ends_early_is_not_stored() {
    let server = TestServer::new();
    for rest in ["Content-Length: 9\r\n\r\n{\"a\":1}", "Transfer-Encoding: chunked\r\n\r\n7\r\n{\"a\":1}\r\n"] {
        let mut client = server.connect();
        client.send(format!("{HEAD}{rest}"));
        client.end_sending();
        // An answer is a courtesy; none is fine as well.
        if let Ok(answer) = client.try_read_answer("POST") {
            assert_eq!(answer.status, 400, "{answer:?}");
        }
    }
    server.post("other", "{}").assert_accepted();
    assert_eq!(server.data_names(), ["other.jsonl", "other.jsonl.lock"]);
}

/// Broken, old clients and simple probes could not speak to the service.
#[test]
fn http_1_0_is_served_and_closed() {
    let server = TestServer::new();
    let request = |head: &str| {
        format!(
            "POST /v1/ingest?domain=frame HTTP/1.0\r\n{head}X-Auth: golden-token\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}"
        )
    };
    refused(&server, request("Host: a\r\n")).assert_accepted();
    refused(&server, request("")).assert_accepted();
    assert_eq!(server.lines("frame").len(), 2);
}

/// Broken, a proxy that speaks HTTP/2 without asking would hang instead of falling back, or not learn why nothing comes.
#[test]
fn http_2_is_refused_and_an_upgrade_ignored() {
    let server = TestServer::new();
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for bytes in [preface.to_owned(), format!("{preface}\0\0\0\x04\0\0\0\0\0"), "PRI * HTTP/2.0\r\n\r\n".to_owned()] {
        refused(&server, &bytes).assert_text(400, "Invalid HTTP request received.");
        // Behind other requests, whoever served them.
        for first in [Request::post("frame", "{}"), Request::post("frame", "").chunked("{}", 1)] {
            let mut client = server.connect();
            client.send([first.bytes(), bytes.clone().into_bytes()].concat());
            let answers = [(); 2].map(|()| client.read_answer("POST"));
            assert_eq!(answers.each_ref().map(|answer| answer.status), [202, 400], "{answers:?}");
            assert!(answers[1].header("x-request-id").is_some(), "{answers:?}");
            assert!(client.is_closed_within(PATIENCE));
        }
    }

    let upgrade = Request::post("frame", "{}")
        .header("Connection", "Upgrade, HTTP2-Settings")
        .header("Upgrade", "h2c")
        .header("HTTP2-Settings", "AAMAAABkAAQAAP__");
    server.send(&upgrade).assert_accepted();
}

/// Broken, an operator would search for hours why a client with `https://` gets no answer, or have a log of nothing else.
#[test]
fn who_speaks_another_protocol_is_refused_and_told_once() {
    let server = TestServer::new();
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    for _ in 0..20 {
        refused(&server, hello).assert_text(400, "Invalid HTTP request received.");
        refused(&server, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").assert_text(400, "Invalid HTTP request received.");
    }
    for (what, parts) in [("TLS", ["plain HTTP", "http://"]), ("HTTP/2", ["HTTP/1.1", "HTTP/2"])] {
        let told = |line: &serde_json::Value| {
            line["level"] == "WARN" && line["message"].as_str().is_some_and(|m| m.contains(what))
        };
        let line = server.log_line(what, told);
        assert!(parts.iter().all(|part| line["message"].as_str().unwrap().contains(part)), "{line}");
        assert_eq!((line["client"].as_str(), line["connections"].as_u64()), (Some("127.0.0.1"), Some(1)), "{line}");
        assert_eq!(server.log_lines().iter().filter(|line| told(line)).count(), 1);
    }
    assert_eq!(server.metric("leitstand_refused_total", "reason=\"malformed_request\""), 40.0);
}

/// Broken, who speaks an old or a future version would get silence.
#[test]
fn other_versions_are_refused_with_a_reason() {
    let server = TestServer::new();
    for line in [
        "GET /health/live",
        "GET / HTTP/0.9",
        "GET / HTTP/1.2",
        "GET / HTTP/2.0",
        "GET / HTTP/3",
        "GET / http/1.1",
        "GET / HTTP/1",
    ] {
        let answer = refused(&server, format!("{line}\r\nHost: a\r\n\r\n"));
        answer.assert_text(400, "Invalid HTTP request received.");
        assert_eq!(answer.header("connection"), Some("close"), "{line}");
    }
}

/// compat: the original takes any text as a host, and so do clients, proxies and probes mean nothing by it.
#[test]
fn a_host_of_any_form_is_taken_on_both_ways() {
    let server = TestServer::new();
    let mut stored = 0;
    for host in
        ["", " ", "a b", "user@host", "a,b", "[::1", "a:b:c", "a:99999", "_x_.y", "\u{e4}", "a/b?c#d", "\"", "\t"]
    {
        // Read by us, and by hyper.
        for request in
            [Request::post("host", "{}"), Request::post("host", "").chunked("{}", 1), Request::get("/health")]
        {
            let answer = server.send(&request.header("Host", host));
            assert!(answer.status < 300, "{host:?}: {answer:?}");
            stored += usize::from(answer.status == 202);
        }
    }
    assert_eq!(server.lines("host").len(), stored);
    for host in ["a\0b", "a\x7fb", "a\rb", "a\x01"] {
        for request in [Request::post("host", "{}"), Request::post("host", "").chunked("{}", 1)] {
            refused(&server, request.header("Host", host).bytes()).assert_text(400, "Invalid HTTP request received.");
        }
    }
    assert_eq!(server.lines("host").len(), stored);
}

/// Broken, a port scanner or a TLS client could hang a connection or stop the service.
#[test]
fn garbage_is_answered_400_or_closed() {
    let server = TestServer::new();
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"hello\r\n\r\n",
        b"\0\0\0\0",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"{\"a\":1}\n",
        b"\r\n\r\n\r\n\r\nGARBAGE",
    ] {
        let mut client = server.connect();
        client.send(bytes);
        client.end_sending();
        let said = client.read_to_end().unwrap_or_default();
        let text = String::from_utf8_lossy(&said);
        assert!(said.is_empty() || text.starts_with("HTTP/1.1 40"), "{bytes:?}: {text:?}");
    }
    server.post("frame", "{}").assert_accepted();
}

/// Broken, a refused client that is still sending would see a reset connection in place of the
/// reason, and try again for ever.
#[test]
fn a_refusal_reaches_a_client_that_is_still_sending() {
    let server =
        TestServer::builder().env("LEITSTAND_MAX_BODY", "1000").env("LEITSTAND_AUTH_RATE_LIMIT", "off").start();
    let body = vec![b'x'; 512 << 10];
    for _ in 0..20 {
        for (request, status, detail) in [
            (Request::post("frame", &body), 413, "payload too large"),
            (Request::post("frame", "").chunked(&body, 10_000), 413, "payload too large"),
            (Request::post("frame", &body).header("X-Auth", "wrong"), 401, "unauthorized"),
            (Request::post_to("/nope", &body), 404, "Not Found"),
        ] {
            send_all_then_read(server.connect(), &request).assert_error(status, detail);
        }
    }
    assert_eq!(server.data_names(), [""; 0]);
}

/// As a simple client does: all of the request first, in pieces, and only then the answer.
fn send_all_then_read(mut client: Client, request: &Request) -> Response {
    for piece in request.bytes().chunks(16 << 10) {
        client.try_send(piece).expect("the server takes the body or leaves it, but does not reset");
    }
    let answer = client.read_answer("POST");
    assert!(client.is_closed_within(PATIENCE));
    answer
}

/// Broken, a refusal by the HTTP library could not be found in the log by its id.
#[test]
fn a_request_that_cannot_be_parsed_gets_an_id_and_the_text_too() {
    let server = TestServer::new();
    let many_fields: String = (0..200).map(|n| format!("X-{n}: 1\r\n")).collect();
    for (bytes, status) in [
        ("GARBAGE\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nX A: b\r\n\r\n".to_owned(), 400),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{many_fields}\r\n"), 431),
    ] {
        let answer = refused(&server, bytes.as_bytes());
        assert_eq!(answer.status, status);
        assert!(answer.header("x-request-id").is_some(), "{answer:?}");
        assert_eq!(answer.text(), "Invalid HTTP request received.");
    }
    // Behind an answer of ours on the same connection, too.
    let mut client = server.connect();
    client.send([Request::post("frame", "{}").bytes(), b"GARBAGE\r\n\r\n".to_vec()].concat());
    let first = client.read_answer("POST");
    let second = client.read_answer("POST");
    assert_eq!((first.status, second.status), (202, 400));
    assert!(second.header("x-request-id").is_some_and(|id| Some(id) != first.header("x-request-id")), "{second:?}");
    // And where an answer that needs no disk goes out in one piece with the `100 Continue` before it.
    let mut client = server.connect();
    let request = Request::post("frame", "nothing").header("Expect", "100-continue");
    client.send([request.bytes(), b"GARBAGE\r\n\r\n".to_vec()].concat());
    let [interim, first, second] = [(); 3].map(|()| client.read_answer("POST"));
    assert_eq!([interim.status, first.status, second.status], [100, 400, 400]);
    assert_eq!(second.text(), "Invalid HTTP request received.");
    assert!(second.header("x-request-id").is_some_and(|id| Some(id) != first.header("x-request-id")), "{second:?}");
}
