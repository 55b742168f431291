//! Both POST routes, from the bytes on the socket to the lines in the file.

use std::collections::HashSet;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;

use crate::support::{PAGES, Request, Response, TestServer};

const LINE_TYPES: [&str; 4] =
    ["application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"];

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// The same request on both paths, with the status that means success there.
fn on_both_paths(domain: &str, body: &[u8]) -> [(Request, u16); 2] {
    [(Request::post(domain, body), 202), (Request::post_to(&format!("/ingest/{domain}"), body), 200)]
}

/// Broken, an event would be stored changed, or not under its domain.
#[test]
fn a_document_becomes_one_line_and_keeps_its_spelling() {
    let server = TestServer::new();
    server
        .post("a.example", "{ \"n\" : 1.10,\n\t\"s\":\"\\u00e4 ä\", \"big\":123456789012345678901234567890 }")
        .assert_accepted();
    server.send(&Request::post_to("/ingest/a.example", r#"{"domain":" A.Example ","z":1E5}"#)).assert_text(200, "ok");
    server.send(&Request::post_to("/v1/ingest", r#"[{"domain":"a.example","i":1},{"i":2}]"#)).assert_accepted();
    let want = concat!(
        "{\"n\":1.10,\"s\":\"\\u00e4 ä\",\"big\":123456789012345678901234567890,\"domain\":\"a.example\"}\n",
        "{\"domain\":\"a.example\",\"z\":1E5}\n",
        "{\"domain\":\"a.example\",\"i\":1}\n",
        "{\"i\":2,\"domain\":\"a.example\"}\n",
    );
    assert_eq!(String::from_utf8(server.data("a.example")).unwrap(), want);
}

/// Broken, other users could read events, or another program's lock would not be ours.
#[test]
fn new_files_have_the_promised_names_and_modes() {
    let server = TestServer::new();
    server.post("modes.example", "{}").assert_accepted();
    assert_eq!(server.data_names(), ["modes.example.jsonl", "modes.example.jsonl.lock"]);
    let meta = |name: &str| std::fs::metadata(server.data_dir().join(name)).unwrap();
    assert_eq!(meta("modes.example.jsonl").permissions().mode() & 0o777, 0o600);
    assert_eq!(meta("modes.example.jsonl.lock").permissions().mode() & 0o777, 0o644);
    assert_eq!(meta("modes.example.jsonl.lock").len(), 0);
}

/// Broken, a client of one of the line formats would be refused or stored as one document.
#[test]
fn every_line_format_is_taken_on_both_paths() {
    let server = TestServer::new();
    let body = b"\n{\"i\":1}\n\n  {\"i\":2}\n{\"i\":3}";
    for (t, line_type) in LINE_TYPES.iter().enumerate() {
        for (spelling, sent) in
            [line_type.to_string(), format!("{}; charset=utf-8", line_type.to_uppercase())].iter().enumerate()
        {
            for (request, status) in on_both_paths(&format!("lines-{t}-{spelling}"), body) {
                server.send(&request.header("Content-Type", sent)).assert_text(status, "ok");
            }
            let numbers: Vec<_> =
                server.lines(&format!("lines-{t}-{spelling}")).iter().map(|line| line["i"].clone()).collect();
            assert_eq!(numbers, [1, 2, 3, 1, 2, 3], "{sent}");
        }
    }
}

/// Broken, old clients that send any content type, or none, would be refused.
#[test]
fn the_old_path_takes_a_document_of_any_type_and_v1_only_json() {
    let server = TestServer::new();
    for content_type in ["text/plain", "application/json-seq", "application/xapplication/jsonx", ""] {
        let request = |path| Request::post_to(path, r#"[{"a":1}]"#).header("Content-Type", content_type);
        server.send(&request("/ingest/any")).assert_text(200, "ok");
        server.send(&request("/v1/ingest?domain=any")).assert_error(415, "unsupported content-type");
    }
    server.send(&Request::post_to("/ingest/any", "{}").without("Content-Type")).assert_text(200, "ok");
    server.send(&Request::post("any", "{}").without("Content-Type")).assert_error(415, "unsupported content-type");
    assert_eq!(server.lines("any").len(), 5);
}

/// Broken, an empty delivery would be an error to its sender, or leave an empty file.
#[test]
fn nothing_to_store_is_fine_and_creates_nothing() {
    let server = TestServer::new();
    for (request, status) in on_both_paths("empty", b"[]") {
        server.send(&request).assert_text(status, "ok");
    }
    for (request, status) in on_both_paths("empty", b" \n\n") {
        server.send(&request.header("Content-Type", "application/x-ndjson")).assert_text(status, "ok");
    }
    assert_eq!(server.data_names(), [""; 0]);
}

/// Broken, clients that stream (no Content-Length) could not deliver.
#[test]
fn chunked_bodies_are_taken_in_chunks_of_any_size() {
    let server = TestServer::new();
    let events: String = (0..300).map(|i| format!("{{\"i\":{i}}}\n")).collect();
    for chunk_bytes in [1, 7, 1000, 100_000] {
        for (request, status) in on_both_paths(&format!("chunks-{chunk_bytes}"), b"") {
            let request = request.header("Content-Type", "application/x-ndjson").chunked(&events, chunk_bytes);
            server.send(&request).assert_text(status, "ok");
        }
        let lines = server.lines(&format!("chunks-{chunk_bytes}"));
        let numbers: Vec<_> = lines.iter().map(|line| line["i"].as_u64().unwrap()).collect();
        assert_eq!(numbers, (0..300).chain(0..300).collect::<Vec<_>>());
    }
}

/// Broken, chunk extensions or trailers would end up in the event, or refuse it.
#[test]
fn chunk_extensions_and_trailers_are_passed_over() {
    let server = TestServer::new();
    let mut head = Request::post("trailers", "").chunked("", 1).head();
    head.extend_from_slice(b"3;name=value\r\n{\"a\r\n04;x=\"y\"\r\n\":1}\r\n0\r\nX-Trailer: 1\r\n\r\n");
    let mut client = server.connect();
    client.send(head);
    client.read_answer("POST").assert_accepted();
    assert_eq!(server.lines("trailers"), [json!({"a": 1, "domain": "trailers"})]);
}

/// Broken, a client without Content-Length could fill the memory.
#[test]
fn a_chunked_body_over_the_limit_is_413() {
    let server = TestServer::builder().env("LEITSTAND_MAX_BODY", "1000").start();
    let exactly = format!("{{\"a\":\"{}\"}}", "x".repeat(1000 - 8));
    let over = format!("{{\"a\":\"{}\"}}", "x".repeat(1001 - 8));
    assert_eq!(exactly.len(), 1000);
    for chunk_bytes in [1, 64, 2000] {
        server.send(&Request::post("limit", "").chunked(&exactly, chunk_bytes)).assert_accepted();
        server.send(&Request::post("limit", "").chunked(&over, chunk_bytes)).assert_error(413, "payload too large");
    }
    assert_eq!(server.lines("limit").len(), 3);
}

/// Broken, clients that compress could not deliver, or the compressed bytes would be stored.
#[test]
fn compressed_bodies_are_taken_on_both_paths() {
    let server = TestServer::new();
    let text = b"{\"i\":1}\n{\"i\":2}\n".repeat(50);
    for (coding, body) in
        [("gzip", gzip(&text)), ("X-GZip", gzip(&text)), ("zstd", zstd(&text)), ("identity", text.clone())]
    {
        for (request, status) in on_both_paths(&format!("c-{}", coding.to_lowercase()), &body) {
            let request = request.header("Content-Type", "application/x-ndjson").header("Content-Encoding", coding);
            server.send(&request).assert_text(status, "ok");
            server.send(&request.chunked(&body, 5)).assert_text(status, "ok");
        }
        assert_eq!(server.lines(&format!("c-{}", coding.to_lowercase())).len(), 400, "{coding}");
    }
}

/// Broken, bytes that are no JSON would be parsed as if they were.
#[test]
fn a_body_that_is_not_what_its_coding_says_is_refused() {
    let server = TestServer::new();
    let whole = gzip(b"{\"a\":1}");
    let bodies: [(&str, &[u8]); 4] =
        [("gzip", b"{}"), ("zstd", b"{}"), ("gzip", &whole[..whole.len() - 1]), ("zstd", &zstd(b"{\"a\":1}")[..8])];
    for (coding, body) in bodies {
        for (request, _) in on_both_paths("coding", body) {
            server.send(&request.header("Content-Encoding", coding)).assert_error(400, "invalid encoding");
        }
    }
    for coding in ["br", "deflate", "gzip, gzip", "nonsense"] {
        for (request, _) in on_both_paths("coding", b"{}") {
            let answer = server.send(&request.header("Content-Encoding", coding));
            answer.assert_error(415, "unsupported content-encoding");
        }
    }
    assert_eq!(server.data_names(), [""; 0]);
}

/// Broken, 60 KB from anybody with a token would take 64 MB of memory, or more.
#[test]
fn a_bomb_is_413_and_costs_bounded_memory() {
    let limit_bytes = 128 << 10;
    let server = TestServer::builder().env("LEITSTAND_MAX_BODY", limit_bytes.to_string()).start();
    // Warm up: threads, buffers and the decoders are there.
    let warm = vec![b' '; limit_bytes];
    for (coding, body) in [("gzip", gzip(&warm)), ("zstd", zstd(&warm))] {
        server.send(&Request::post("bomb", body).header("Content-Encoding", coding)).assert_error(400, "invalid json");
    }
    let zeros = vec![0; 64 << 20];
    for (coding, body) in [("gzip", gzip(&zeros)), ("zstd", zstd(&zeros))] {
        assert!(body.len() <= limit_bytes, "{} bytes are refused unread", body.len());
        let before_kib = server.peak_rss_kib();
        for (request, _) in on_both_paths("bomb", &body) {
            for _ in 0..10 {
                let answer = server.send(&request.clone().header("Content-Encoding", coding));
                answer.assert_error(413, "payload too large");
            }
        }
        let grown_kib = server.peak_rss_kib() - before_kib;
        assert!(grown_kib <= 16 << 10, "{coding}: {grown_kib} KiB more; inflated it would be 64 MiB");
    }
}

/// Broken, curl would wait a second before each body over 1 MiB, and some clients for ever.
#[test]
fn a_client_that_waits_for_100_is_told_to_go_on() {
    let server = TestServer::new();
    for (request, status) in on_both_paths("expect", b"{\"a\":1}") {
        let request = request.header("Expect", "100-continue");
        let mut client = server.connect();
        client.send(request.head());
        assert_eq!(client.read_answer("POST").status, 100);
        client.send(request.wire_body());
        client.read_answer("POST").assert_text(status, "ok");
    }
    assert_eq!(server.lines("expect").len(), 2);
}

/// Broken, a client would be invited to send a body that is refused unread.
#[test]
fn a_request_refused_by_its_head_gets_no_100() {
    let server = TestServer::new();
    for (request, _) in on_both_paths("expect", b"{}") {
        let request = request.header("Expect", "100-continue");
        for (refused, status, detail) in [
            (request.clone().header("Content-Length", "99999999999"), 413, "payload too large"),
            (request.clone().header("X-Auth", "wrong"), 401, "unauthorized"),
        ] {
            let mut client = server.connect();
            client.send(refused.head());
            client.read_answer("POST").assert_error(status, detail);
        }
    }
}

/// Broken, answers would reach the wrong request.
#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = TestServer::new();
    let mut bytes = Vec::new();
    let mut want = Vec::new();
    for i in 0..20 {
        let id = format!("pipe-{i}");
        let body = if i % 3 == 0 { "nope".to_owned() } else { format!("{{\"i\":{i}}}") };
        bytes.extend(Request::post("pipe", body).header("X-Request-ID", &id).bytes());
        want.push((if i % 3 == 0 { 400 } else { 202 }, id));
    }
    let mut client = server.connect();
    client.send(bytes);
    for (status, id) in want {
        let answer = client.read_answer("POST");
        assert_eq!((answer.status, answer.header("x-request-id")), (status, Some(id.as_str())));
    }
    let numbers: Vec<_> = server.lines("pipe").iter().map(|line| line["i"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..20).filter(|i| i % 3 != 0).collect::<Vec<_>>());
}

/// Broken, every request would cost a connection.
#[test]
fn a_connection_carries_many_requests_also_after_errors() {
    let server = TestServer::new();
    let mut client = server.connect();
    for i in 0..10 {
        client.roundtrip(&Request::post("keep", format!("{{\"i\":{i}}}"))).assert_accepted();
        client.roundtrip(&Request::post("keep", "nope")).assert_error(400, "invalid json");
        client.roundtrip(&Request::post("keep", "").chunked("{\"c\":1}", 2)).assert_accepted();
        assert_eq!(client.roundtrip(&Request::get("/health")).status, 200);
        assert_eq!(client.roundtrip(&Request::new("HEAD", "/health/live")).status, 200);
        client.roundtrip(&Request::get("/nope")).assert_error(404, "Not Found");
    }
    assert_eq!(server.lines("keep").len(), 20);
}

/// Broken, a client that asks for the end of the connection would wait for it.
#[test]
fn a_client_that_says_close_is_obeyed() {
    let server = TestServer::new();
    let mut client = server.connect();
    let answer = client.roundtrip(&Request::post("close", "{}").header("Connection", "close"));
    answer.assert_accepted();
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(client.is_closed_within(crate::support::PATIENCE));
}

/// Broken, clients of the original that add a slash would be sent elsewhere or get 404.
#[test]
fn a_trailing_slash_is_served_directly() {
    let server = TestServer::new();
    server.send(&Request::post_to("/v1/ingest/?domain=slash", "{}")).assert_accepted();
    server.send(&Request::post_to("/ingest/slash/", "{}")).assert_text(200, "ok");
    assert_eq!(server.lines("slash").len(), 2);
    server
        .send(&Request::post_to("/v1/ingest/?domain=slash", "{}").without("X-Auth"))
        .assert_error(401, "unauthorized");
    for path in ["/health", "/health/live", "/health/ready", "/version", "/metrics"].iter().chain(PAGES) {
        assert_eq!(server.get(&format!("{path}/")).status, 200, "{path}");
    }
}

/// Broken, probes that ask with HEAD would call the service down, or hang on a body that HEAD has not.
#[test]
fn head_answers_like_get_without_a_body() {
    let server = TestServer::new();
    let mut client = server.connect();
    for path in ["/health", "/health/live", "/version", "/nope"].iter().chain(PAGES) {
        let get = client.roundtrip(&Request::get(path));
        let head = client.roundtrip(&Request::get(path).with_method("HEAD"));
        assert_eq!(head.status, get.status, "{path}");
        assert_eq!(head.header("content-type"), get.header("content-type"), "{path}");
        assert_eq!(head.header("content-length"), get.header("content-length"), "{path}");
    }
    for path in ["/v1/ingest?domain=a", "/ingest/a"] {
        let head = client.roundtrip(&Request::get(path).with_method("HEAD"));
        assert_eq!((head.status, head.header("allow")), (405, Some("POST")), "{path}");
    }
}

/// Broken, large batches (parsed off the async threads) would be cut, reordered or refused.
#[test]
fn a_large_batch_is_stored_whole() {
    let server = TestServer::new();
    let text = "x".repeat(100);
    for (domain, count) in [("large-70k", 600), ("large-1m", 8_500)] {
        let body: String = (0..count).map(|i| format!("{{\"i\":{i},\"t\":\"{text}\"}}\n")).collect();
        assert!(body.len() > 64 << 10 && body.len() <= 1 << 20, "{}", body.len());
        let request = Request::post(domain, body).header("Content-Type", "application/x-ndjson");
        server.send(&request).assert_accepted();
        let lines = server.lines(domain);
        assert_eq!(lines.len(), count);
        assert!(lines.iter().enumerate().all(|(i, line)| line["i"] == i && line["t"] == text.as_str()));
    }
}

/// Broken, half a delivery would be in the file and be delivered again.
#[test]
fn a_batch_is_stored_whole_or_not_at_all() {
    let server = TestServer::new();
    let long = format!(r#"{{"summary":"{}"}}"#, "ü".repeat(501));
    for (bad, status, detail_json, detail_lines) in [
        ("nope", 400, "invalid json", "invalid ndjson"),
        ("{\"a\":NaN}", 400, "invalid json", "invalid ndjson"),
        ("{\"a\":\"\\ud800\"}", 400, "invalid json", "invalid ndjson"),
        ("7", 400, "invalid payload", "invalid payload"),
        ("{\"domain\":\"other\"}", 400, "domain mismatch", "domain mismatch"),
        ("{\"domain\":7}", 400, "invalid payload", "invalid payload"),
        (&long, 422, "summary too long (max 500)", "summary too long (max 500)"),
    ] {
        for at in 0..3 {
            let mut items = ["{\"i\":1}", "{\"i\":2}", "{\"i\":3}"];
            items[at] = bad;
            for (request, _) in on_both_paths("whole", format!("[{}]", items.join(",")).as_bytes()) {
                server.send(&request).assert_error(status, detail_json);
            }
            for (request, _) in on_both_paths("whole", items.join("\n").as_bytes()) {
                server.send(&request.header("Content-Type", "application/x-ndjson")).assert_error(status, detail_lines);
            }
        }
    }
    assert_eq!(server.data_names(), [""; 0]);
}

/// Broken, events would go to another domain's file than in the original.
#[test]
fn the_last_domain_of_the_query_counts() {
    let server = TestServer::new();
    let post = |query: &str| server.send(&Request::post_to(&format!("/v1/ingest?{query}"), "{}"));
    post("domain=first&domain=last").assert_accepted();
    post("domain=..%2Fbad&x=1&domain=last").assert_accepted();
    post("domain=%20LAST%0A").assert_accepted();
    post("Domain=upper&domain=last").assert_accepted();
    post("domain=first&domain=").assert_error(400, "domain must be specified via query or payload");
    post("domain=last&domain=-bad").assert_error(400, "invalid domain");
    assert_eq!(server.lines("last").len(), 4);
    assert_eq!(server.data_names(), ["last.jsonl", "last.jsonl.lock"]);
}

/// Days from 1970-01-01, after Howard Hinnant's `days_from_civil`.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let of_era = (year - era * 400) * 365 + (year - era * 400) / 4 - (year - era * 400) / 100 + of_year;
    era * 146_097 + of_era - 719_468
}

/// Broken, users of the old path would not learn that it will go, whatever answer they look at.
#[test]
fn every_answer_of_the_old_path_says_that_it_is_deprecated() {
    let server = TestServer::builder().env("LEITSTAND_RATE_LIMIT", "8/hour").env("LEITSTAND_MAX_BODY", "2000").start();
    let old = |body: &str| Request::post_to("/ingest/old", body);
    let summary = format!(r#"{{"summary":"{}"}}"#, "x".repeat(501));
    let mut answers = vec![
        (401, old("{}").header("X-Auth", "wrong")),
        (411, old("{}").without("Content-Length")),
        (413, old(&"x".repeat(2001))),
        (200, old("{}")),
        (400, Request::post_to("/ingest/-bad", "{}")),
        (400, old("nope")),
        (415, old("{}").header("Content-Encoding", "br")),
        (422, old(&summary)),
        (413, old("").chunked("x".repeat(2001), 100)),
    ];
    // The limit counts per path: of the above six were counted on this one.
    answers.extend((0..2).map(|_| (200, old("{}"))));
    answers.push((429, old("{}")));
    for (status, request) in answers {
        let answer = server.send(&request);
        assert_eq!(answer.status, status, "{answer:?}");
        let since: i64 = answer.header("deprecation").unwrap().strip_prefix('@').unwrap().parse().unwrap();
        let sunset = answer.header("sunset").unwrap();
        let parts: Vec<_> = sunset.split([' ', ':']).collect();
        let [weekday, day, month, year, "00", "00", "00", "GMT"] = parts[..] else { panic!("{sunset}") };
        let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
        let month = 1 + months.iter().position(|m| *m == month).unwrap() as i64;
        let sunset_day = days(year.parse().unwrap(), month, day.parse().unwrap());
        let weekdays = ["Thu,", "Fri,", "Sat,", "Sun,", "Mon,", "Tue,", "Wed,"];
        assert_eq!(weekdays[sunset_day.rem_euclid(7) as usize], weekday, "{sunset}");
        let between = sunset_day - since / 86_400;
        assert!((181..=184).contains(&between), "six months, not {between} days");
        assert_eq!(answer.header("link"), Some("</v1/ingest>; rel=\"successor-version\""));
    }
    let answer = server.post("old", "{}");
    assert_eq!((answer.header("deprecation"), answer.header("sunset")), (None, None));
}

/// Broken, clients could not see a limit before they run into it.
#[test]
fn limited_requests_that_pass_say_where_they_stand() {
    let server = TestServer::builder().env("LEITSTAND_RATE_LIMIT", "5/hour").start();
    for (body, status, remaining) in [("{}", 202, 4), ("nope", 400, 3), ("{}", 202, 2), ("{\"domain\":7}", 400, 1)] {
        let answer = server.post("standing", body);
        assert_eq!(answer.status, status);
        assert_eq!(answer.number("x-ratelimit-limit"), 5);
        assert_eq!(answer.number("x-ratelimit-remaining"), remaining);
        assert!(
            (1..=3600).contains(&answer.number("x-ratelimit-reset"))
                || answer.number("x-ratelimit-reset") > 1_700_000_000
        );
        assert_eq!(answer.header("retry-after"), None);
    }
    let off = TestServer::builder().env("LEITSTAND_RATE_LIMIT", "off").start();
    assert_eq!(off.post("standing", "{}").header("x-ratelimit-limit"), None);
}

/// Broken, a client could not find its request in the log, or could write into the log.
#[test]
fn request_ids_are_taken_cleaned_or_made() {
    let server = TestServer::new();
    let echo = |sent: &[u8]| {
        let answer = server.send(&Request::post("ids", "{}").header("X-Request-ID", sent));
        answer.header("x-request-id").unwrap().to_owned()
    };
    assert_eq!(echo(b"abc-123_X.y"), "abc-123_X.y");
    assert_eq!(echo(b"a b\"{}\\;\xff<>"), "a_b________");
    assert_eq!(echo(&[b'x'; 500]), "x".repeat(128));

    let mut made = HashSet::new();
    let answers: Vec<Response> = [
        Request::post("ids", "{}"),
        Request::post("ids", "{}").header("X-Request-ID", ""),
        Request::post("ids", "nope"),
        Request::post("ids", "{}").header("X-Auth", "wrong"),
        Request::post("ids", "{}").header("Content-Length", "99999999"),
        Request::post("ids", "{}").also("Host", "two"),
        Request::post("ids", "{}").header("Transfer-Encoding", "gzip, chunked").without("Content-Length"),
        Request::get("/nope"),
        Request::get("/v1/ingest"),
        Request::get("/health"),
        Request::get("/metrics"),
        Request::get("/docs"),
        Request::get("/redoc"),
    ]
    .iter()
    .map(|request| server.send(request))
    .collect();
    for answer in answers {
        let id = answer.header("x-request-id").unwrap_or_else(|| panic!("no id: {answer:?}")).to_owned();
        assert!(id.len() >= 8 && made.insert(id), "{answer:?}");
    }
}

/// Broken, clients that understand RFC 9457 would not get what it promises.
#[test]
fn a_client_that_asks_for_problems_gets_them() {
    let server = TestServer::builder().env("LEITSTAND_RATE_LIMIT", "7/hour").env("LEITSTAND_MAX_BODY", "1000").start();
    let ndjson = |body: &str| Request::post("p", body).header("Content-Type", "application/x-ndjson");
    let summary = format!(r#"{{"summary":"{}"}}"#, "x".repeat(501));
    let none = json!(null);
    let mut cases = vec![
        (
            Request::post("p", "{}").header("X-Auth", "wrong"),
            401,
            "unauthorized",
            "Unauthorized",
            none.clone(),
            none.clone(),
        ),
        (
            Request::post("p", "x".repeat(1001)),
            413,
            "payload too large",
            "Payload Too Large",
            none.clone(),
            json!(1000),
        ),
        (Request::get("/nope"), 404, "Not Found", "Not Found", none.clone(), none.clone()),
        (Request::get("/v1/ingest"), 405, "Method Not Allowed", "Method Not Allowed", none.clone(), none.clone()),
        (Request::post("-p", "{}"), 400, "invalid domain", "Bad Request", none.clone(), none.clone()),
        (Request::post("p", "nope"), 400, "invalid json", "Bad Request", none.clone(), none.clone()),
        (ndjson("{}\n\n{}\nnope\n"), 400, "invalid ndjson", "Bad Request", json!(4), none.clone()),
        (ndjson("{\"domain\":\"q\"}"), 400, "domain mismatch", "Bad Request", json!(1), none.clone()),
        (
            ndjson(&format!("{{}}\n{summary}")),
            422,
            "summary too long (max 500)",
            "Unprocessable Entity",
            json!(2),
            none.clone(),
        ),
        (
            Request::post("p", "{}").header("Content-Type", "text/x"),
            415,
            "unsupported content-type",
            "Unsupported Media Type",
            none.clone(),
            none.clone(),
        ),
        (
            Request::post("p", "").chunked("x".repeat(1001), 500),
            413,
            "payload too large",
            "Payload Too Large",
            none.clone(),
            json!(1000),
        ),
    ];
    cases.push((Request::post("p", "{}"), 429, "too many requests", "Too Many Requests", none.clone(), none.clone()));
    for (request, status, detail, title, line, limit) in cases {
        let answer = server.send(&request.header("Accept", "application/json;q=0.9, application/problem+json"));
        assert_eq!(answer.status, status, "{answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        let problem = answer.json();
        assert_eq!(problem["status"], status);
        assert_eq!(problem["detail"], detail);
        assert_eq!(problem["instance"], answer.header("x-request-id").unwrap());
        assert!(title == problem["title"] || problem["title"] == "Content Too Large", "{problem}");
        assert!(problem["type"].as_str().unwrap().contains(':'), "a URI: {problem}");
        let code = problem["code"].as_str().unwrap();
        assert!(!code.is_empty() && code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{code}");
        // Of a document the place where it stops to be one is told.
        let line = if detail == "invalid json" { json!(1) } else { line };
        assert_eq!(problem["line"], line, "{problem}");
        assert_eq!(problem["limit"], limit, "{problem}");
        let retry_after = if status == 429 { json!(answer.number("retry-after")) } else { none.clone() };
        assert_eq!(problem["retry_after"], retry_after, "{problem}");
    }
}

/// Broken, a client of the original would get another body because of the Accept its library adds.
#[test]
fn ordinary_accept_headers_change_nothing() {
    let server = TestServer::builder().env("LEITSTAND_RATE_LIMIT", "off").start();
    for accept in
        ["*/*", "application/json", "text/html,application/xhtml+xml,*/*;q=0.8", "application/xml", "problem", ""]
    {
        let send = |request: Request| server.send(&request.header("Accept", accept));
        send(Request::post("accept", "{}")).assert_accepted();
        send(Request::post("accept", "nope")).assert_error(400, "invalid json");
        send(Request::post("accept", "{}").without("X-Auth")).assert_error(401, "unauthorized");
        send(Request::get("/nope")).assert_error(404, "Not Found");
        assert_eq!(send(Request::get("/health")).text(), r#"{"status":"ok"}"#);
    }
}

/// Broken, an acknowledged event would be missing, doubled or mixed with another.
#[test]
fn every_acknowledged_event_of_many_clients_is_there_once() {
    let server = TestServer::new();
    std::thread::scope(|scope| {
        for client_number in 0..8 {
            let server = &server;
            scope.spawn(move || {
                let mut client = server.connect();
                for i in 0..25 {
                    let domain = if i % 2 == 0 { "many" } else { "others" };
                    client
                        .roundtrip(&Request::post(domain, format!("{{\"id\":\"{client_number}-{i}\"}}")))
                        .assert_accepted();
                }
            });
        }
    });
    for (domain, odd) in [("many", 0), ("others", 1)] {
        let lines = server.lines(domain);
        for client_number in 0..8 {
            let prefix = format!("{client_number}-");
            let ids: Vec<_> = lines.iter().filter_map(|line| line["id"].as_str()?.strip_prefix(&prefix)).collect();
            let want: Vec<_> = (0..25).filter(|i| i % 2 == odd).map(|i| i.to_string()).collect();
            assert_eq!(ids, want, "{domain}: each client's events, in its order");
        }
    }
}

/// Broken, an event in the binary mode of CloudEvents is accepted, and its id, source, type and time are lost.
#[test]
fn cloud_events_in_binary_mode_are_refused() {
    let server = TestServer::new();
    for path in ["/v1/ingest?domain=cloud", "/ingest/cloud"] {
        for (name, value) in [
            ("ce-specversion", "1.0"),
            ("Ce-SpecVersion", ""),
            ("ce-id", "1"),
            ("CE-TYPE", "com.example"),
            ("ce-source", "/here"),
        ] {
            let request = Request::post_to(path, "{}");
            server.send(&request.clone().header(name, value)).assert_error(415, "unsupported cloudevents binary mode");
            let chunked =
                request.clone().chunked("{}", 1).header(name, value).header("Accept", "application/problem+json");
            assert_eq!(server.send(&chunked).json()["code"], "unsupported_cloudevents_binary_mode");
            // What only looks like it.
            assert!(server.send(&request.header("ce-other", "1")).status < 300);
        }
    }
    assert_eq!(server.lines("cloud").len(), 10);
}
