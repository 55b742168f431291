//! X-Auth: who gets in, and what everybody else learns.

use crate::support::{ADMIN_TOKEN, PAGES, Request, TOKEN, TestServer};

/// Broken, a stranger could find out limits, domains or how busy the service is.
#[test]
fn a_stranger_learns_nothing_but_401() {
    let server = TestServer::builder()
        .env("LEITSTAND_RATE_LIMIT", "1/hour")
        .env("LEITSTAND_AUTH_RATE_LIMIT", "off")
        .env("LEITSTAND_MAX_BODY", "100")
        .start();
    // Use the limit up, so that 429 would be next.
    for path in ["/v1/ingest?domain=a", "/ingest/a"] {
        assert!(server.send(&Request::post_to(path, "{}")).status < 300);
        assert_eq!(server.send(&Request::post_to(path, "{}")).status, 429);
    }
    for path in ["/v1/ingest?domain=a", "/ingest/a", "/v1/ingest?domain=-bad", "/ingest/-bad", "/v1/ingest"] {
        let good = Request::post_to(path, "{}");
        for request in [
            good.clone(),
            good.clone().without("Content-Length"),
            good.clone().header("Content-Length", "99999999999"),
            Request::post_to(path, "x".repeat(101)),
            good.clone().chunked("x".repeat(101), 50),
            Request::post_to(path, "nope"),
            Request::post_to(path, b"\xff"),
            good.clone().header("Content-Type", "text/x"),
            good.clone().header("Content-Encoding", "br"),
        ] {
            for token in
                [None, Some(""), Some("wrong"), Some("golden-toke"), Some("golden-token2"), Some("GOLDEN-TOKEN")]
            {
                let stranger = request.clone().without("X-Auth");
                let stranger = token.iter().fold(stranger, |stranger, token| stranger.header("X-Auth", token));
                let answer = server.send(&stranger);
                answer.assert_error(401, "unauthorized");
                assert_eq!(answer.header("x-ratelimit-limit"), None);
            }
        }
    }
    assert_eq!(server.lines("a").len(), 2);
}

/// Broken, clients would see another error than from the original for the same mistake.
#[test]
fn length_comes_before_rate_limit_and_rate_limit_before_domain() {
    let server = TestServer::builder().env("LEITSTAND_RATE_LIMIT", "1/hour").env("LEITSTAND_MAX_BODY", "100").start();
    for path in ["/v1/ingest?domain=-bad", "/ingest/-bad"] {
        let send = |request: Request| server.send(&request);
        send(Request::post_to(path, "{}").without("Content-Length")).assert_error(411, "length required");
        send(Request::post_to(path, "x".repeat(101))).assert_error(413, "payload too large");
        send(Request::post_to(path, "{}")).assert_error(400, "invalid domain");
        send(Request::post_to(path, "{}").without("Content-Length")).assert_error(411, "length required");
        send(Request::post_to(path, "x".repeat(101))).assert_error(413, "payload too large");
        send(Request::post_to(path, "{}")).assert_text(429, "too many requests");
    }
}

/// Broken, tokens could not be changed without an outage.
#[test]
fn any_of_several_tokens_passes() {
    let server = TestServer::builder().env("LEITSTAND_TOKEN", " old , new\nnewest ").start();
    let send = |token: &str| server.send(&Request::post("tokens", "{}").header("X-Auth", token)).status;
    assert_eq!(["old", "new", "newest"].map(send), [202; 3]);
    assert_eq!(["old,new", " old , new", "ol", "old\tnew", "newes", TOKEN].map(send), [401; 6]);
}

/// Broken, whoever runs the service would need a second token to send an event.
#[test]
fn an_admin_token_may_also_send_and_read() {
    let server = TestServer::new();
    let status = |request: Request| server.send(&request.header("X-Auth", ADMIN_TOKEN)).status;
    assert_eq!(status(Request::post("admin", "{}")), 202);
    assert_eq!(["/health", "/version"].map(|path| status(Request::get(path))), [200, 200]);
}

/// Broken, a secret that a container mounts as a file would not work.
#[test]
fn tokens_can_come_from_a_file() {
    let builder = TestServer::builder().file("secret", "from-file\n\nsecond\n").without("LEITSTAND_TOKEN");
    let path = builder.dir().join("secret");
    let server = builder.env("LEITSTAND_TOKEN_FILE", path).start();
    let send = |token: &str| server.send(&Request::post("file", "{}").header("X-Auth", token)).status;
    assert_eq!(["from-file", "second", TOKEN, ""].map(send), [202, 202, 401, 401]);
}

/// Broken, a token with an umlaut would crash the request, as in the original, or let others in.
#[test]
fn a_token_that_is_not_ascii_is_compared_like_any_other() {
    let server = TestServer::builder().env("LEITSTAND_TOKEN", "tökén").start();
    let send = |token: &[u8]| server.send(&Request::post("umlaut", "{}").header("X-Auth", token)).status;
    assert_eq!(send("tökén".as_bytes()), 202);
    assert_eq!(send(b"t\xf6k\xe9n"), 401);
    assert_eq!(send(b"\xff\xfe"), 401);
    assert_eq!(send(b"token"), 401);
}

/// Broken, a proxy and the service could look at different headers.
#[test]
fn two_tokens_in_one_request_are_none() {
    let server = TestServer::new();
    for (first, second) in [(TOKEN, TOKEN), (TOKEN, "wrong"), ("wrong", TOKEN), (TOKEN, "")] {
        let request = Request::post("two", "{}").header("X-Auth", first).also("x-auth", second);
        server.send(&request).assert_error(401, "unauthorized");
    }
    assert_eq!(server.data_names(), [""; 0]);
}

/// Broken, a token could leak through URLs, or a header with spaces around would be refused.
#[test]
fn only_the_x_auth_header_counts() {
    let server = TestServer::new();
    let bare = Request::post("header", "{}").without("X-Auth");
    let bearer = format!("Bearer {TOKEN}");
    server.send(&bare.clone().header("Authorization", bearer)).assert_error(401, "unauthorized");
    let query = Request::post_to(&format!("/v1/ingest?domain=header&x-auth={TOKEN}"), "{}").without("X-Auth");
    server.send(&query).assert_error(401, "unauthorized");
    server.send(&bare.clone().header("x-AUTH", format!("  {TOKEN}\t"))).assert_accepted();
}

/// Broken, guessing tokens would cost no time, also beside somebody who uses the right one; or an open
/// connection of his would be cut off from the service by it.
#[test]
fn wrong_tokens_are_limited_and_an_open_connection_goes_on() {
    let server = TestServer::builder()
        .env("LEITSTAND_TOKEN", "golden-token,second")
        .env("LEITSTAND_AUTH_RATE_LIMIT", "3/minute")
        .start();
    let good = Request::post("guess", "{}");
    let wrong = good.clone().header("X-Auth", "guess");
    let mut open = server.connect();
    open.roundtrip(&good).assert_accepted();
    for _ in 0..3 {
        server.send(&wrong).assert_error(401, "unauthorized");
    }
    for request in [
        wrong.clone(),
        wrong.clone().without("X-Auth"),
        Request::get("/health").header("X-Auth", "guess"),
        // Whether it is right does not show: not for one that nobody uses, and not for one in use.
        wrong.clone().header("X-Auth", "second"),
        good.clone(),
        Request::get("/health"),
        Request::get("/stats").header("X-Auth", ADMIN_TOKEN),
    ] {
        let answer = server.send(&request);
        answer.assert_text(429, "too many requests");
        assert!((1..=60).contains(&answer.number("retry-after")), "{answer:?}");
    }
    // The connection that has shown it goes on with it, on the plain way and on the other, and with no other.
    open.roundtrip(&good).assert_accepted();
    open.roundtrip(&Request::get("/health").header("X-Auth", "second")).assert_text(429, "too many requests");
    assert_eq!(open.roundtrip(&Request::get("/health")).status, 200);
    // Another client, as the trusted proxy says, has its own count, and nothing of a connection.
    let proxied = |token: &str| good.clone().header("X-Auth", token).header("X-Forwarded-For", "198.51.100.7");
    let mut proxy = server.connect();
    proxy.roundtrip(&proxied("golden-token")).assert_accepted();
    for _ in 0..3 {
        server.send(&proxied("guess")).assert_error(401, "unauthorized");
    }
    proxy.roundtrip(&proxied("golden-token")).assert_text(429, "too many requests");
    assert_eq!(server.lines("guess").len(), 3);
}

/// Broken, a probe without the token would see the service down, or a stranger its version.
#[test]
fn only_what_says_nothing_is_open() {
    let server = TestServer::builder().env("LEITSTAND_AUTH_RATE_LIMIT", "off").start();
    for path in ["/health", "/version"] {
        server.send(&Request::new("GET", path)).assert_error(401, "unauthorized");
        server.send(&Request::get(path).header("X-Auth", "wrong")).assert_error(401, "unauthorized");
        assert_eq!(server.send(&Request::new("HEAD", path)).status, 401);
        assert_eq!(server.get(path).status, 200);
    }
    for path in ["/health/live", "/health/ready", "/metrics"].iter().chain(PAGES) {
        assert_eq!(server.send(&Request::new("GET", path)).status, 200, "{path}");
    }
}
