//! The requests of every known client, byte by byte as it sends them, and the answer it needs.
//! docs/compat.md has the same clients in the same words.

use crate::support::{TOKEN, TestServer};

/// One request of a client, and what comes of it.
struct Shape {
    client: &'static str,
    /// The request line and the client's own headers. `Host`, and the length where `body` is not
    /// chunked, are added.
    head: String,
    body: String,
    chunk_bytes: Option<usize>,
    status: u16,
    text: &'static str,
    /// Lines that this adds to the file of a domain.
    stored: (&'static str, usize),
}

fn shape(client: &'static str, head: &[&str], body: impl Into<String>) -> Shape {
    let head = head.join("\r\n") + "\r\n";
    Shape { client, head, body: body.into(), chunk_bytes: None, status: 200, text: "ok", stored: ("", 0) }
}

impl Shape {
    fn chunked(mut self, chunk_bytes: usize) -> Shape {
        self.chunk_bytes = Some(chunk_bytes);
        self
    }

    fn gets(mut self, status: u16, text: &'static str) -> Shape {
        (self.status, self.text) = (status, text);
        self
    }

    fn stores(mut self, domain: &'static str, lines: usize) -> Shape {
        self.stored = (domain, lines);
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.head.replacen("\r\n", "\r\nHost: 127.0.0.1:8788\r\n", 1).into_bytes();
        match self.chunk_bytes {
            None => {
                bytes.extend(format!("Content-Length: {}\r\n\r\n{}", self.body.len(), self.body).into_bytes());
            }
            Some(chunk_bytes) => {
                bytes.extend(b"Transfer-Encoding: chunked\r\n\r\n");
                for chunk in self.body.as_bytes().chunks(chunk_bytes) {
                    bytes.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
                    bytes.extend(chunk);
                    bytes.extend(b"\r\n");
                }
                bytes.extend(b"0\r\n\r\n");
            }
        }
        bytes
    }
}

/// A feed as aussensensor has it: no `domain` in its lines.
fn feed(lines: usize) -> String {
    (0..lines)
        .map(|i| {
            format!("{{\"ts\":\"2025-10-01T00:00:{i:02}Z\",\"type\":\"news\",\"source\":\"x\",\"title\":\"Ä {i}\"}}\n")
        })
        .collect()
}

fn shapes() -> Vec<Shape> {
    let token = format!("X-Auth: {TOKEN}");
    let lower = format!("x-auth: {TOKEN}");
    let (token, lower) = (token.as_str(), lower.as_str());
    let json = "Content-Type: application/json";
    let ndjson = "Content-Type: application/x-ndjson";
    let curl = "User-Agent: curl/7.88.1\r\nAccept: */*";
    let httpx =
        "Accept: */*\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\nUser-Agent: python-httpx/0.28.1";
    let fetch = "accept: */*\r\naccept-language: *\r\nsec-fetch-mode: cors\r\nuser-agent: node\r\naccept-encoding: gzip, deflate";
    let event = r#"{"event":"heartbeat","status":"ok"}"#;
    let ledger =
        r#"{"schema_version":"1","kind":"agent.step","ts":"2026-01-01T00:00:00Z","source":"plexer","event_id":"e-1"}"#;
    let pretty = "{\n  \"repo\": \"x\",\n  \"timestamp\": \"2026-01-01T00:00:00Z\",\n  \"counts\": [1, 2]\n}\n";
    // chronik_outbox.py fills its arrays up to just below 1 MiB.
    let item = format!(r#"{{"event_id":"{}","kind":"agent.step"}}"#, "e".repeat(400));
    let chunk = format!("[{}]", vec![item.as_str(); (1_048_500 - 2) / (item.len() + 1)].join(","));
    assert!(chunk.len() < 1 << 20 && chunk.len() > 1_047_000, "{}", chunk.len());
    let items = chunk.matches("event_id").count();
    vec![
        shape("hauski_ingest.py, old path", &["POST /ingest/heim.one HTTP/1.1", httpx, token, json], event)
            .gets(200, "ok")
            .stores("heim.one", 1),
        shape("hauski_ingest.py, new path", &["POST /v1/ingest?domain=heim.one HTTP/1.1", httpx, token, json], event)
            .gets(202, "ok")
            .stores("heim.one", 1),
        shape(
            "hauski_ingest.py, a list",
            &["POST /v1/ingest?domain=heim.one HTTP/1.1", httpx, token, json],
            format!("[{event},{event}]"),
        )
        .gets(202, "ok")
        .stores("heim.one", 2),
        shape(
            "push_leitstand.sh",
            &["POST /ingest/heim.one HTTP/1.1", curl, "content-type: application/json", lower],
            event,
        )
        .gets(200, "ok")
        .stores("heim.one", 1),
        shape(
            "push_leitstand.sh without a token",
            &["POST /ingest/heim.one HTTP/1.1", curl, "content-type: application/json"],
            event,
        )
        .gets(401, r#"{"detail":"unauthorized"}"#),
        shape(
            "push_chronik.sh",
            &["POST /v1/ingest?domain=heim.one HTTP/1.1", curl, "content-type: application/json", lower],
            event,
        )
        .gets(202, "ok")
        .stores("heim.one", 1),
        shape(
            "leitstand_producer (Rust), no token",
            &["POST /v1/ingest HTTP/1.1", "content-type: application/x-ndjson", "accept: */*"],
            format!("{event}\n"),
        )
        .gets(401, r#"{"detail":"unauthorized"}"#),
        shape(
            "chronik_producer (Rust), blocking",
            &["POST /v1/ingest HTTP/1.1", lower, "content-type: application/x-ndjson", "accept: */*"],
            "{\"domain\":\"heim.two\",\"value\":42}\n",
        )
        .gets(202, "ok")
        .stores("heim.two", 1),
        shape(
            "chronik_producer (Rust), a stream",
            &["POST /v1/ingest HTTP/1.1", lower, "content-type: application/x-ndjson", "accept: */*"],
            "{\"domain\":\"heim.two\",\"value\":1}\n{\"domain\":\"heim.two\",\"value\":2}\n",
        )
        .chunked(34)
        .gets(202, "ok")
        .stores("heim.two", 2),
        shape("aussensensor, curl to /ingest/aussen", &["POST /ingest/aussen HTTP/1.1", curl, ndjson, lower], feed(7))
            .gets(200, "ok")
            .stores("aussen", 7),
        shape(
            "aussensensor, curl to /v1/ingest?domain=",
            &["POST /v1/ingest?domain=aussen HTTP/1.1", curl, ndjson, lower],
            feed(7),
        )
        .gets(202, "ok")
        .stores("aussen", 7),
        shape(
            "aussensensor, application/jsonl",
            &["POST /ingest/aussen HTTP/1.1", curl, "Content-Type: application/jsonl", lower],
            feed(3),
        )
        .gets(200, "ok")
        .stores("aussen", 3),
        shape("aussensensor, no domain anywhere", &["POST /v1/ingest HTTP/1.1", curl, ndjson, lower], feed(2))
            .gets(400, r#"{"detail":"domain must be specified via query or payload"}"#),
        shape(
            "aussensensor-push (Rust), chunked, CRLF",
            &["POST /ingest/aussen HTTP/1.1", lower, ndjson, "accept: */*"],
            feed(5).replace('\n', "\r\n"),
        )
        .chunked(100)
        .gets(200, "ok")
        .stores("aussen", 5),
        shape("plexer", &["POST /v1/ingest?domain=agent.ledger HTTP/1.1", fetch, json, token], ledger)
            .gets(202, "ok")
            .stores("agent.ledger", 1),
        shape(
            "chronik_outbox.py",
            &[
                "POST /v1/ingest?domain=agent.ledger HTTP/1.1",
                "Accept-Encoding: identity",
                "User-Agent: Python-urllib/3.11",
                "Connection: close",
                json,
                token,
            ],
            chunk.clone(),
        )
        .gets(202, "ok")
        .stores("agent.ledger", items),
        shape(
            "heimgeist, writing",
            &["POST /v1/ingest HTTP/1.1", fetch, json, token],
            r#"{"domain":"heimgeist.events","payload":{"type":"x"}}"#,
        )
        .gets(202, "ok")
        .stores("heimgeist.events", 1),
        shape("metarepo workflow", &["POST /ingest/metrics.snapshot HTTP/1.1", curl, json, token], pretty)
            .gets(200, "ok")
            .stores("metrics.snapshot", 1),
        shape("docs/cli-curl.md loop", &["POST /ingest/example.com HTTP/1.1", curl, json, token], event)
            .gets(200, "ok")
            .stores("example.com", 1),
        shape(
            "make ingest-test",
            &["POST /ingest/aussen HTTP/1.1", curl, json, token],
            r#"{"event":"demo","status":"ok"}"#,
        )
        .gets(200, "ok")
        .stores("aussen", 1),
        shape(
            "curl -d without a type",
            &["POST /ingest/aussen HTTP/1.1", curl, "Content-Type: application/x-www-form-urlencoded", token],
            event,
        )
        .gets(200, "ok")
        .stores("aussen", 1),
        shape(
            "metarepo events",
            &["POST /ingest/heimgeist HTTP/1.1", curl, json, token],
            r#"{"kind":"heimgeist.insight","version":1,"id":"evt-1","meta":{},"data":{}}"#,
        )
        .gets(200, "ok")
        .stores("heimgeist", 1),
        shape("plexer prove-runtime-usefulness.sh", &["GET /health HTTP/1.1", curl, token], "")
            .gets(200, r#"{"status":"ok"}"#),
    ]
}

/// Broken, a client that works against the original would lose its events here.
#[test]
fn every_known_client_gets_the_answer_it_needs() {
    let server = TestServer::new();
    for shape in shapes() {
        let before = server.lines(shape.stored.0).len();
        let names_before = server.data_names();
        let mut client = server.connect();
        client.send(shape.bytes());
        let answer = client.read_answer(shape.head.split(' ').next().unwrap());
        assert_eq!((answer.status, answer.text().trim()), (shape.status, shape.text), "{}", shape.client);
        if shape.stored.1 == 0 {
            assert_eq!(server.data_names(), names_before, "{}: nothing is stored", shape.client);
            continue;
        }
        let lines = server.lines(shape.stored.0);
        assert_eq!(lines.len() - before, shape.stored.1, "{}", shape.client);
        // The dashboard and the file readers look at the top level of each line.
        assert!(lines.iter().all(|line| line["domain"] == shape.stored.0), "{}", shape.client);
    }
}

/// Broken, docs/compat.md would promise something for a client that nobody tries.
#[test]
fn every_client_that_works_according_to_the_documents_is_tried_here() {
    let compat = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/compat.md")).unwrap();
    let table = compat.split("## Known clients").nth(1).unwrap().split("\n## ").next().unwrap();
    let here: Vec<String> = shapes().iter().map(|shape| shape.client.to_lowercase()).collect();
    // Readers of files and of /metrics send no event; their tests are in ops.rs and below.
    let elsewhere =
        ["grabowski", "semantah", "mitschreiber", "`scripts/ingest_append.py`", "prometheus", "services that"];
    let mut rows = 0;
    for row in table.lines().filter(|line| line.starts_with("| ")).skip(1) {
        let name = row[2..].split('|').next().unwrap().trim().to_lowercase();
        rows += 1;
        if elsewhere.iter().any(|word| name.starts_with(word)) || name.contains("reading") {
            continue;
        }
        let word = name.split([',', ' ', '(']).next().unwrap().trim_matches('`').to_owned();
        let word = if word == "producers" { "metarepo events".to_owned() } else { word };
        assert!(here.iter().any(|client| client.contains(&word)), "no shape for {name:?}");
    }
    assert!(rows > 10, "the table was not found");
}

/// Broken, curl would wait a second before each feed over 1 MiB, or lose it.
#[test]
fn a_feed_that_waits_for_100_arrives_whole() {
    let server = TestServer::builder().env("LEITSTAND_MAX_BODY", "4MiB").start();
    let body = feed(20_000);
    let mut client = server.connect();
    client.send(format!(
        "POST /ingest/aussen HTTP/1.1\r\nHost: x\r\nx-auth: {TOKEN}\r\nContent-Type: application/x-ndjson\r\n\
         Content-Length: {}\r\nExpect: 100-continue\r\n\r\n",
        body.len()
    ));
    assert_eq!(client.read_answer("POST").status, 100);
    client.send(&body);
    client.read_answer("POST").assert_text(200, "ok");
    assert_eq!(server.lines("aussen").len(), 20_000);
}

/// Broken, the dashboard and the tools that read the files would skip what they understood before.
#[test]
fn lines_stay_flat_for_those_who_read_the_files() {
    let server = TestServer::new();
    let event = r#"{"timestamp":"2026-01-01T00:00:00Z","kind":"deploy","repo":"x","job":"y","severity":"info","payload":{"a":1}}"#;
    server.post("metrics.snapshot", event).assert_accepted();
    let lines = server.lines("metrics.snapshot");
    for key in ["timestamp", "kind", "repo", "job", "severity", "payload", "domain"] {
        assert!(!lines[0][key].is_null(), "{key} is at the top level");
    }
    // Only files of events end in .jsonl: the dashboard reads them all.
    assert_eq!(server.data_names(), ["metrics.snapshot.jsonl", "metrics.snapshot.jsonl.lock"]);
}
