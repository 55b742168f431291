//! Health, metrics, documents, and what is not there.

use std::collections::{HashMap, HashSet};
use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::support::{PAGES, PATIENCE, Request, TOKEN, TestServer, run, skip, wait_for};

/// A server that has seen a bit of everything.
fn busy_server() -> TestServer {
    let server = TestServer::builder().data_file("metric-domain-7.jsonl", "{\"torn").start();
    server.post("metric-domain-7", "[{},{}]").assert_accepted();
    server.send(&Request::post_to("/ingest/metric-domain-7", "{}")).assert_text(200, "ok");
    server.post("metric-domain-7", "nope").assert_error(400, "invalid json");
    server.post("metric-domain-7", r#"{"domain":"metric-domain-8"}"#).assert_error(400, "domain mismatch");
    server.post("-metric-domain-9", "{}").assert_error(400, "invalid domain");
    server.post("metric-domain-7", "{}".repeat(1 << 20)).assert_error(413, "payload too large");
    let stranger = Request::post("metric-domain-7", "{}").header("X-Auth", "wrong");
    server.send(&stranger).assert_error(401, "unauthorized");
    server.send(&stranger.with_method("metric-domain-10")).assert_text(400, "Invalid HTTP request received.");
    server.get("/metric-domain-11").assert_error(404, "Not Found");
    server.get("/v1/ingest").assert_error(405, "Method Not Allowed");
    for path in ["/health", "/health/live", "/health/ready", "/version", "/metrics"].iter().chain(PAGES) {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    server
}

/// Broken, dashboards and alarms of the original would show nothing.
#[test]
fn the_metrics_of_the_original_are_there() {
    let server = busy_server();
    let page = server.get("/metrics");
    assert_eq!(page.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let page = page.text();
    for series in [
        "http_requests_total{handler=\"/v1/ingest\",method=\"POST\",status=\"2xx\"} 1",
        "http_requests_total{handler=\"/v1/ingest\",method=\"POST\",status=\"4xx\"} 5",
        "http_requests_total{handler=\"/ingest/{domain}\",method=\"POST\",status=\"2xx\"} 1",
        "http_requests_total{handler=\"/v1/ingest\",method=\"GET\",status=\"4xx\"} 1",
        "http_requests_total{handler=\"none\",method=\"GET\",status=\"4xx\"} 1",
        "http_requests_total{handler=\"/health/ready\",method=\"GET\",status=\"2xx\"} 1",
    ] {
        assert!(page.lines().any(|line| line == series), "{series} is missing in:\n{page}");
    }
    for start in [
        "http_request_duration_seconds_bucket{handler=\"/v1/ingest\",method=\"POST\",le=\"",
        "http_request_duration_seconds_sum{handler=\"/v1/ingest\",method=\"POST\"} ",
        "http_request_duration_highr_seconds_bucket{le=\"0.01\"} ",
        "http_request_duration_highr_seconds_count ",
        "http_request_size_bytes_sum{handler=\"/v1/ingest\"} ",
        "http_request_size_bytes_count{handler=\"/v1/ingest\"} ",
        "http_response_size_bytes_count{handler=\"/v1/ingest\"} ",
        "process_resident_memory_bytes ",
        "process_virtual_memory_bytes ",
        "process_cpu_seconds_total ",
        "process_start_time_seconds ",
        "process_open_fds ",
        "process_max_fds ",
    ] {
        assert!(page.lines().any(|line| line.starts_with(start)), "{start} is missing in:\n{page}");
    }
}

/// Broken, an operator could not see what the runbook tells to look at.
#[test]
fn our_own_metrics_count_what_happened() {
    let server = busy_server();
    for (name, labels, want) in [
        ("leitstand_events_total", "", 3.0),
        ("leitstand_batch_events_sum", "", 3.0),
        ("leitstand_batch_events_count", "", 2.0),
        ("leitstand_group_batches_sum", "", 2.0),
        ("leitstand_write_seconds_count", "", 2.0),
        ("leitstand_sync_seconds_count", "", 2.0),
        ("leitstand_torn_tails_total", "", 1.0),
        ("leitstand_torn_bytes_total", "", 6.0),
        ("leitstand_deprecated_requests_total", "", 1.0),
        ("leitstand_rejected_requests_total", "reason=\"invalid_json\"", 1.0),
        ("leitstand_rejected_requests_total", "reason=\"domain_mismatch\"", 1.0),
        ("leitstand_rejected_requests_total", "reason=\"invalid_domain\"", 1.0),
        ("leitstand_rejected_requests_total", "reason=\"payload_too_large\"", 1.0),
        ("leitstand_refused_total", "reason=\"unauthorized\"", 1.0),
        ("leitstand_refused_total", "reason=\"malformed_request\"", 1.0),
        ("leitstand_in_flight_bytes", "", 0.0),
        ("leitstand_known_domains", "", 1.0),
        ("leitstand_poisoned_domains", "", 0.0),
        ("leitstand_build_info", "fsync=\"always\"", 1.0),
    ] {
        assert_eq!(server.metric(name, labels), want, "{name} {labels}");
    }
    let bytes = server.data("metric-domain-7").len() as f64;
    assert_eq!(server.metric("leitstand_event_bytes_total", ""), bytes);
    assert!(server.metric("leitstand_disk_free_bytes", "") > 0.0);
    assert!(server.metric("leitstand_connections", "") >= 1.0);
}

/// Broken, nobody would know what a metric means, or Prometheus would refuse the page.
#[test]
fn every_metric_has_help_and_type_and_no_label_from_outside() {
    let server = busy_server();
    let page = server.get("/metrics").text();
    let mut help = HashMap::new();
    let mut types = HashMap::new();
    let mut series = HashSet::new();
    for line in page.lines().filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, text) = rest.split_once(' ').unwrap_or((rest, ""));
            assert!(help.insert(name, text).is_none(), "{name} has two helps");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(types.insert(name, kind).is_none(), "{name} has two types");
        } else {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(series.insert(name), "{name} is there twice");
        }
    }
    for series in series {
        let name = series.split('{').next().unwrap();
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .filter_map(|suffix| name.strip_suffix(suffix))
            .find(|base| ["histogram", "summary"].contains(types.get(base).unwrap_or(&"")))
            .unwrap_or(name);
        assert!(types.contains_key(family), "{series} has no type");
        assert!(help.get(family).is_some_and(|text| text.len() >= 5), "{series} has no help");
        assert_eq!(family.ends_with("_total"), types[family] == "counter", "{family} is a {}", types[family]);
    }
    assert!(!page.contains("metric-domain"), "a domain, path or method from outside:\n{page}");
}

/// Broken, Prometheus' own checker would complain about our page.
#[test]
fn promtool_likes_the_metrics() {
    if Command::new("promtool").arg("--version").output().is_err() {
        return skip("promtool not installed");
    }
    let server = busy_server();
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool.stdin.take().unwrap().write_all(&server.get("/metrics").body).unwrap();
    let output = promtool.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The values of `name="…"` in a text.
#[cfg(feature = "docs")]
fn attributes<'a>(html: &'a str, name: &str) -> Vec<&'a str> {
    html.split(&format!("{name}=\"")).skip(1).filter_map(|rest| rest.split('"').next()).collect()
}

/// Broken, a binary that was built to be small would have half of the pages, or none of the rest.
#[test]
#[cfg(not(feature = "docs"))]
fn without_the_feature_the_pages_are_unknown_paths() {
    let server = TestServer::new();
    for path in ["/docs", "/docs/", "/docs/swagger-ui-bundle.js", "/docs/init.js", "/openapi.json", "/redoc"] {
        for method in ["GET", "POST"] {
            server.send(&Request::new(method, path)).assert_error(404, "Not Found");
        }
    }
    let unknown = server.metric("http_requests_total", "handler=\"none\",method=\"GET\",status=\"4xx\"");
    assert_eq!(unknown, 6.0, "they have no handler");
    for args in [&["openapi"][..], &["openapi", "--json"]] {
        let finished = run(&mut crate::support::command(server.dir(), args));
        assert_eq!((finished.code, finished.stdout.as_str()), (Some(2), ""));
        assert!(finished.stderr.contains("feature `docs`"), "{finished:?}");
    }
    assert!(!run(&mut crate::support::command(server.dir(), &["--help"])).stdout.contains("openapi"));
}

/// Broken, the API page would be empty on a machine without internet, or call somebody else.
#[test]
#[cfg(feature = "docs")]
fn the_docs_page_needs_nobody_but_us() {
    let server = TestServer::new();
    let page = server.send(&Request::new("GET", "/docs"));
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let html = page.text();
    assert!(html.trim_start().to_lowercase().starts_with("<!doctype html>"));
    assert!(!html.contains("http://") && !html.contains("https://"), "{html}");
    let references = [attributes(&html, "src"), attributes(&html, "href")].concat();
    assert!(references.iter().filter(|r| r.ends_with(".js")).count() >= 1, "{references:?}");
    assert!(references.iter().filter(|r| r.ends_with(".css")).count() >= 1, "{references:?}");
    for reference in references {
        assert!(reference.starts_with('/') && !reference.starts_with("//"), "{reference} is not ours");
        let asset = server.send(&Request::new("GET", reference));
        assert_eq!(asset.status, 200, "{reference}");
        assert!(!asset.body.is_empty());
        let content_type = asset.header("content-type").unwrap();
        for (end, want) in [(".js", "javascript"), (".css", "text/css"), (".png", "image/png"), (".json", "json")] {
            assert!(!reference.ends_with(end) || content_type.contains(want), "{reference} is {content_type}");
        }
        if reference.ends_with(".css") {
            let css = asset.text();
            let urls = css.split("url(").skip(1).map(|rest| rest.trim_start_matches(['"', '\'']));
            assert!(urls.clone().all(|url| url.starts_with("data:")), "{reference} loads something");
            assert!(!css.contains("@import"));
        }
    }
    server.get("/docs/nope.js").assert_error(404, "Not Found");
    server.get("/docs/..%2f..%2fCargo.toml").assert_error(404, "Not Found");
    server.send(&Request::new("POST", "/redoc")).assert_error(405, "Method Not Allowed");
    let redoc = server.get("/redoc");
    assert_eq!((redoc.status, redoc.header("location")), (307, Some("/docs")));
}

/// Broken, generated clients would be made from something else than what is served.
#[test]
#[cfg(feature = "docs")]
fn the_description_parses_and_is_the_one_of_the_command() {
    let server = TestServer::new();
    let served = server.send(&Request::new("GET", "/openapi.json"));
    assert_eq!((served.status, served.header("content-type")), (200, Some("application/json")));
    let served = served.json();
    assert!(served["openapi"].as_str().unwrap().starts_with("3."));
    for path in ["/v1/ingest", "/ingest/{domain}", "/health", "/health/live", "/health/ready", "/version", "/metrics"] {
        assert!(served["paths"][path].is_object(), "{path} is not described");
    }
    assert_eq!(served["paths"]["/ingest/{domain}"]["post"]["deprecated"], true);
    for status in ["202", "400", "401", "408", "411", "413", "415", "422", "429", "500", "503", "507"] {
        assert!(served["paths"]["/v1/ingest"]["post"]["responses"][status].is_object(), "{status} is not described");
    }
    for (path, operations) in served["paths"].as_object().unwrap() {
        for method in operations.as_object().unwrap().keys() {
            let path = path.replace("{domain}", "example.com");
            let status = server.send(&Request::new(&method.to_uppercase(), &path)).status;
            assert!(![404, 405].contains(&status), "{method} {path} is described and not served");
        }
    }
    let printed = run(&mut crate::support::command(server.dir(), &["openapi", "--json"]));
    assert_eq!(serde_json::from_str::<serde_json::Value>(&printed.stdout).unwrap(), served);
}

/// Broken, an orchestrator would route to a service that cannot write, or restart a healthy one.
#[test]
fn health_says_what_is_checked() {
    for fsync in ["always", "everysec", "never"] {
        let server = TestServer::builder().env("LEITSTAND_FSYNC", fsync).env("LEITSTAND_VERSION", "9.8.7-test").start();
        server.post("health-domain", "{}").assert_accepted();
        let live = server.send(&Request::new("GET", "/health/live"));
        assert_eq!(live.status, 200);
        assert_eq!(live.json(), serde_json::json!({"status": "ok", "version": "9.8.7-test"}));
        let ready = server.send(&Request::new("GET", "/health/ready"));
        assert_eq!((ready.status, ready.header("content-type")), (200, Some("application/json")));
        let body = ready.json();
        assert_eq!((&body["status"], &body["fsync"]), (&"ok".into(), &fsync.into()));
        let checks = body["checks"].as_object().unwrap();
        for check in ["data_dir_writable", "disk_reserve", "not_draining", "no_poisoned_domain", "disk_proven"] {
            assert_eq!(checks[check], true, "{check}");
        }
        assert!(!ready.text().contains("health-domain"));
        assert_eq!(server.get("/health").text(), r#"{"status":"ok"}"#);
        assert_eq!(server.get("/version").text(), r#"{"version":"9.8.7-test"}"#);
        assert_eq!(server.metric("leitstand_build_info", &format!("fsync=\"{fsync}\"")), 1.0);
    }
}

/// Broken, a client with a wrong URL would not see which of the two mistakes it made.
#[test]
fn unknown_paths_are_404_and_wrong_methods_405_with_allow() {
    let server = TestServer::new();
    for path in [
        "/",
        "/nope",
        "/ingest",
        "/ingest/",
        "/ingest/a/b",
        "/ingest/a%2Fb",
        "/V1/ingest",
        "//v1/ingest",
        "/v1",
        "/health/x",
        "/favicon.ico",
        "/%ff",
    ] {
        for method in ["GET", "POST", "DELETE"] {
            let request = Request::new(method, path).header("X-Auth", TOKEN).body("{}");
            server.send(&request).assert_error(404, "Not Found");
        }
    }
    for path in ["/v1/ingest", "/ingest/a", "/v1/ingest/"] {
        for method in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"] {
            let answer = server.send(&Request::new(method, path));
            answer.assert_error(405, "Method Not Allowed");
            assert_eq!(answer.header("allow"), Some("POST"), "{method} {path}");
        }
    }
    for path in ["/health", "/health/live", "/health/ready", "/version", "/metrics"].iter().chain(PAGES) {
        for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
            let answer = server.send(&Request::new(method, path).header("X-Auth", TOKEN).body("{}"));
            answer.assert_error(405, "Method Not Allowed");
            let allow: Vec<_> = answer.header("allow").unwrap().split(',').map(str::trim).collect();
            assert!(allow.contains(&"GET") && !allow.contains(&method), "{method} {path}: {allow:?}");
        }
    }
}

/// Broken, dashboards of the original show a processor that works in steps of a second, or a limit of nothing.
#[test]
fn figures_of_the_process_are_those_that_dashboards_know() {
    let server = TestServer::new();
    let seconds = || server.metric("process_cpu_seconds_total", "");
    let fraction = wait_for("a part of a second", PATIENCE, || {
        server.post("busy", "{}").assert_accepted();
        Some(seconds()).filter(|seconds| seconds.fract() > 0.0)
    });
    assert!((0.0..60.0).contains(&fraction), "{fraction}");
    assert!(server.get("/metrics").text().contains("\n# TYPE process_cpu_seconds_total counter\n"));
    assert!(server.metric("process_virtual_memory_max_bytes", "") > (1_u64 << 32) as f64);
}
