//! Named tokens: the commands, and what a running service makes of their changes.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{ADMIN_TOKEN, Finished, PATIENCE, Request, TOKEN, TestServer, command, run, skip, wait_for};

/// What is promised between a change of the store and the first request that feels it.
const NOTICED_WITHIN: Duration = Duration::from_secs(1);

/// Runs `leitstand token …` where the data directory is `data`.
fn token(dir: &Path, args: &[&str]) -> Finished {
    run(&mut command(dir, &[&["token"], args].concat()))
}

/// As [`token`], which must succeed; gives what is on stdout.
fn done(dir: &Path, args: &[&str]) -> String {
    let finished = token(dir, args);
    assert_eq!(finished.code, Some(0), "{args:?}: {finished:?}");
    finished.stdout.trim_end().to_owned()
}

/// As [`token`], which must be refused with exit code 1 and say `why`, and leave the store as it is.
fn refused(dir: &Path, args: &[&str], why: &str) {
    let before = fs::read(store(dir)).ok();
    let finished = token(dir, args);
    assert_eq!((finished.code, finished.stdout.as_str()), (Some(1), ""), "{args:?}: {finished:?}");
    assert!(finished.stderr.contains(why), "{args:?}: {finished:?}");
    assert_eq!(fs::read(store(dir)).ok(), before, "{args:?}");
}

fn store(dir: &Path) -> PathBuf {
    dir.join("data").join(".leitstand").join("tokens.json")
}

fn listed(dir: &Path) -> Vec<Value> {
    let document: Value = serde_json::from_str(&done(dir, &["list", "--json"])).expect("a document");
    document["tokens"].as_array().expect("a list").clone()
}

fn with_token(request: Request, secret: &str) -> Request {
    request.header("X-Auth", secret)
}

fn with_bearer(request: Request, secret: &str) -> Request {
    request.without("X-Auth").header("Authorization", format!("Bearer {secret}"))
}

fn status(server: &TestServer, request: Request) -> u16 {
    server.send(&request).status
}

fn post_status(server: &TestServer, secret: &str) -> u16 {
    status(server, with_token(Request::post("tokens", "{}"), secret))
}

fn temp_dir() -> TempDir {
    tempfile::Builder::new().prefix("leitstand-token-").tempdir().expect("create a directory")
}

/// Broken, tokens could not be given, seen or taken back, or the disk would hold secrets.
#[test]
fn tokens_are_added_shown_rotated_and_revoked() {
    let dir = temp_dir();
    let dir = dir.path();
    assert_eq!(done(dir, &["list"]), "NAME  SCOPES  DOMAINS  CREATED  EXPIRES  SECRET");
    let args = ["add", "ci", "--scope", "ingest", "--domain", "App.*", "--domain", "x", "--default-domain", "app.y"];
    let added = token(dir, &[&args[..], &["--expires", "90d"]].concat());
    assert_eq!(added.code, Some(0), "{added:?}");
    let secret = added.stdout.trim_end().to_owned();
    let is_base64url = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    assert!(secret.len() == 47 && secret.starts_with("lst_") && is_base64url(&secret), "{secret}");
    assert!(!added.stderr.contains(&secret) && added.stderr.contains("\"ci\" added"), "{added:?}");

    let [token_listed] = &listed(dir)[..] else { panic!("one token") };
    assert_eq!(token_listed["name"], "ci");
    assert_eq!(token_listed["scopes"], json!(["ingest"]));
    assert_eq!(token_listed["domains"], json!(["app.*", "x"]));
    assert_eq!(token_listed["default_domain"], "app.y");
    assert_eq!((&token_listed["expired"], token_listed["sha256"].as_str().map(str::len)), (&json!(false), Some(8)));
    let table = done(dir, &["list"]);
    assert!(table.contains("(in 89 days)") || table.contains("(in 90 days)"), "{table}");
    assert!(table.contains("app.*,x (default app.y)") && table.contains("sha256:"), "{table}");

    let text = fs::read_to_string(store(dir)).unwrap();
    assert!(
        text.contains("\"version\": 1") && text.contains(&sha256_hex(&secret)) && !text.contains(&secret),
        "{text}"
    );
    assert_eq!(fs::metadata(store(dir)).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(fs::metadata(dir.join("data/.leitstand")).unwrap().mode() & 0o7777, 0o700);

    let rotated = token(dir, &["rotate", "ci"]);
    let second = rotated.stdout.trim_end();
    assert!(second != secret && second.len() == 47 && rotated.stderr.contains("in 24 hours"), "{rotated:?}");
    let [token_listed] = &listed(dir)[..] else { panic!("one token") };
    assert_eq!(token_listed["older_secrets"][0]["sha256"], sha256_hex(&secret)[..8]);
    assert_eq!(token_listed["sha256"], sha256_hex(second)[..8]);
    let at_once = token(dir, &["rotate", "ci", "--overlap", "0", "--expires", "2099-01-01T00:00:00Z"]);
    assert!(at_once.stderr.contains("The old secret is refused"), "{at_once:?}");
    assert_eq!(listed(dir)[0]["older_secrets"], json!([]));
    assert_eq!(listed(dir)[0]["expires"], "2099-01-01T00:00:00Z");

    refused(dir, &["add", "ci"], "there already");
    refused(dir, &["revoke", "nobody"], "there is no token \"nobody\"");
    refused(dir, &["rotate", "nobody"], "there is no token");
    done(dir, &["revoke", "ci"]);
    assert_eq!(listed(dir), [json!(null); 0]);
    refused(dir, &["revoke", "ci"], "there is no token");
    // Only store and lock are left.
    let mut names: Vec<_> =
        fs::read_dir(dir.join("data/.leitstand")).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["tokens.json", "tokens.json.lock"]);
}

fn sha256_hex(secret: &str) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(secret.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Broken, a typing error would make a token that is good for more, or for longer, than was meant.
#[test]
fn what_cannot_be_meant_is_refused() {
    let dir = temp_dir();
    let dir = dir.path();
    done(dir, &["add", "there"]);
    for (args, why) in [
        (&["add", "a", "--secret-file", "nowhere"][..], "cannot be read"),
        (&["add", "there"], "is there already"),
        (&["add", "new", "there"], "is there already"),
        (&["rotate", "nobody"], "there is no token"),
    ] {
        refused(dir, args, why);
    }
    // What is wrong whatever the store holds is wrong usage.
    for (args, why) in [
        (&["add", ""][..], "its name must be"),
        (&["add", "a b"], "its name must be"),
        (&["add", "\u{e4}"], "its name must be"),
        (&["add", &"a".repeat(65)], "its name must be"),
        (&["add", "a", "--domain=-x"], "each of its domains must be a domain"),
        (&["add", "a", "--domain", ""], "each of its domains must be a domain"),
        (&["add", "a", "--default-domain", "a b"], "its default domain must be a domain"),
        (&["add", "a", "--domain", "x", "--default-domain", "y"], "one of its domains"),
        (&["add", "a", "--expires", "90"], "must be a time span"),
        (&["add", "a", "--expires", "foo"], "must be a time span"),
        (&["add", "a", "--expires", "0d"], "must be in the future"),
        (&["add", "a", "--expires", "2020-01-01T00:00:00Z"], "must be in the future"),
        (&["rotate", "there", "--expires", "yesterday"], "must be a time span"),
    ] {
        let finished = token(dir, args);
        assert_eq!((finished.code, finished.stdout.as_str()), (Some(2), ""), "{args:?}: {finished:?}");
        assert!(finished.stderr.contains(why), "{args:?}: {finished:?}");
    }
    assert_eq!(listed(dir).len(), 1, "nothing was made");
    for usage in [&["add"][..], &["add", "a", "--scope", "write"], &["rotate", "there", "--overlap", "24"], &["revoke"]]
    {
        assert_eq!(token(dir, usage).code, Some(2), "{usage:?}");
    }
}

/// Broken, a slip in a path would make directories, or a token that no service knows would be called good.
#[test]
fn a_store_that_is_not_there_is_told() {
    let dir = temp_dir();
    let at = |args: &[&str]| run(&mut command(dir.path(), &[&["token"], args, &["--data-dir", "slip"]].concat()));
    for args in [&["revoke", "x"][..], &["rotate", "x"]] {
        let finished = at(args);
        assert_eq!((finished.code, finished.stdout.as_str()), (Some(1), ""), "{finished:?}");
        for part in ["there is no token \"x\"", "slip/.leitstand/tokens.json", "--data-dir"] {
            assert!(finished.stderr.contains(part), "{part}: {finished:?}");
        }
    }
    let listed = at(&["list", "--json"]);
    assert!(listed.code == Some(0) && listed.stderr.contains("no token store"), "{listed:?}");
    assert!(!dir.path().join("slip").exists(), "nothing is made");
    let added = at(&["add", "x"]);
    assert!(added.code == Some(0) && added.stderr.contains("the directory of the service?"), "{added:?}");
    let again = at(&["add", "y"]);
    assert!(again.code == Some(0) && !again.stderr.contains("note:"), "{again:?}");
}

/// Broken, a secret that clients have already could not be moved into the store, or a weak one could.
#[test]
fn a_secret_may_be_given() {
    let server = TestServer::new();
    let dir = server.dir();
    let given = "a-secret-of-the-old-kind";
    fs::write(dir.join("given"), format!("{given}\n")).unwrap();
    let finished = token(dir, &["add", "moved", "--secret-file", "given", "--domain", "tokens"]);
    assert_eq!((finished.code, finished.stdout.as_str()), (Some(0), ""), "{finished:?}");
    assert!(!finished.stderr.contains(given), "{finished:?}");
    assert_eq!(post_status(&server, given), 202);
    refused(dir, &["add", "again", "--secret-file", "given"], "is a secret of the token \"moved\" already");
    for (content, why) in [
        (&b"short"[..], "16 to 4096 bytes"),
        (b"", "16 to"),
        (b"sixteen\x07bytes long", "control"),
        (b"\xff\xff", "UTF-8"),
    ] {
        fs::write(dir.join("given"), content).unwrap();
        refused(dir, &["add", "bad", "--secret-file", "given"], why);
    }
    // The shared secret, once it is in the store, may only do what the store says.
    let mut by_stdin = command(dir, &["token", "add", "shared", "--secret-file", "-", "--domain", "tokens"]);
    fs::write(dir.join("given"), "golden-token-of-16-and-more").unwrap();
    let finished = run(by_stdin.stdin(fs::File::open(dir.join("given")).unwrap()));
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!(post_status(&server, "golden-token-of-16-and-more"), 202);
}

/// Broken, the only sight of a secret could be lost and nobody told.
#[test]
fn a_secret_that_cannot_be_printed_is_told() {
    let dir = temp_dir();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("open /dev/full");
    let child = command(dir.path(), &["token", "add", "lost"]).stdout(full).stderr(Stdio::piped()).spawn();
    let output = child.expect("start the binary").wait_with_output().expect("it ends");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("could not be printed and is lost") && !stderr.contains("lst_"), "{stderr}");
}

/// Broken, a token could do more than it was given for, or less, on one of the routes.
#[test]
fn each_route_asks_for_its_scope() {
    let server = TestServer::new();
    let add = |name: &str, scopes: &[&str]| {
        let scopes: Vec<&str> = scopes.iter().flat_map(|scope| ["--scope", scope]).collect();
        done(server.dir(), &[&["add", name][..], &scopes].concat())
    };
    let [ingest, read, admin] = ["ingest", "read", "admin"].map(|scope| add(scope, &[scope]));
    let [default, all] = [add("default", &[]), add("all", &["ingest", "read", "admin"])];
    for (route, need, good) in [
        (Request::post("scopes", "{}"), "ingest", 202),
        (Request::post_to("/ingest/scopes", "{}"), "ingest", 200),
        (Request::get("/health"), "read", 200),
        (Request::get("/version"), "read", 200),
        (Request::get("/health").with_method("HEAD"), "read", 200),
    ] {
        for (name, secret, scopes) in [
            ("ingest", &ingest, &["ingest"][..]),
            ("read", &read, &["read"]),
            ("admin", &admin, &["admin"]),
            ("default", &default, &["ingest", "read"]),
            ("all", &all, &["ingest", "read", "admin"]),
        ] {
            let want = if scopes.contains(&need) { good } else { 403 };
            for request in [with_token(route.clone(), secret), with_bearer(route.clone(), secret)] {
                let answer = server.send(&request);
                assert_eq!(answer.status, want, "{name} needs {need}: {answer:?}");
                if want == 403 && request.method() != "HEAD" {
                    answer.assert_error(403, "forbidden");
                }
            }
        }
    }
    // 3 good tokens, 2 headers, 2 routes.
    assert_eq!(server.lines("scopes").len(), 12);
    assert!(server.metric("leitstand_refused_total", "forbidden") > 0.0);
    for open in ["/health/live", "/health/ready", "/metrics"] {
        assert_eq!(status(&server, Request::new("GET", open)), 200);
    }
}

/// Broken, a token could write to a domain that it was not given, or nothing could be sent to its own.
#[test]
fn a_token_writes_to_its_domains_only() {
    let server = TestServer::new();
    let secret = done(server.dir(), &["add", "app", "--domain", "app.*", "--domain", "exact"]);
    let send = |request: Request| server.send(&with_token(request, &secret));
    let v1 = |body: &str| Request::post_to("/v1/ingest", body);
    let lines = |body: &str| v1(body).header("Content-Type", "application/x-ndjson");
    let large = format!("{{\"domain\":\"other\",\"x\":\"{}\"}}", "x".repeat(100_000));
    for request in [
        Request::post("app.one", "{}"),
        Request::post("APP.one", "{}"),
        Request::post("exact", "[{},{}]"),
        v1("{\"domain\":\"app.one\"}"),
        lines("{\"domain\":\"app.one\"}\n{}\n"),
        // Nothing is written, so there is nothing to forbid.
        v1("[]"),
    ] {
        assert_eq!(send(request).status, 202);
    }
    assert_eq!(send(Request::post_to("/ingest/exact", "{}")).status, 200);
    for request in [
        Request::post("app", "{}"),
        Request::post("exact.not", "{}"),
        Request::post("other", "{}"),
        Request::post("other", "nonsense"),
        Request::post("other", "[]"),
        Request::post_to("/ingest/other", "{}"),
        v1("{\"domain\":\"other\"}"),
        v1(&large),
        lines("{\"domain\":\"other\"}\n{}\n"),
    ] {
        send(request).assert_error(403, "forbidden");
    }
    send(Request::post("app.one", "{\"domain\":\"other\"}")).assert_error(400, "domain mismatch");
    send(v1("{}")).assert_error(400, "domain must be specified via query or payload");
    send(Request::post("-", "{}")).assert_error(400, "invalid domain");
    assert_eq!((server.lines("app.one").len(), server.lines("exact").len()), (5, 3));
    assert!(!server.data_names().iter().any(|name| name.starts_with("other") || name.starts_with("app.jsonl")));
    // The shared secret may still do everything.
    server.post("other", "{}").assert_accepted();
}

/// Broken, events without a domain would be refused, or go elsewhere than the token says.
#[test]
fn a_default_domain_counts_when_nothing_else_does() {
    let server = TestServer::new();
    let secret = done(server.dir(), &["add", "d", "--default-domain", "Home", "--domain", "home", "--domain", "away"]);
    let send = |request: Request| server.send(&with_token(request, &secret));
    let v1 = |body: &str| Request::post_to("/v1/ingest", body);
    let large = format!("{{\"x\":\"{}\"}}", "x".repeat(100_000));
    for request in [
        v1("{\"n\":1}"),
        v1("[{},{\"domain\":\"home\"}]"),
        v1("{}\n{}\n").header("Content-Type", "application/x-ndjson"),
        v1(&large),
        Request::post("", "{}"),
    ] {
        send(request).assert_accepted();
    }
    send(v1("{\"domain\":\"away\"}")).assert_accepted();
    send(Request::post("away", "{}")).assert_accepted();
    send(v1("[{},{\"domain\":\"away\"}]")).assert_error(400, "domain mismatch");
    send(v1("{\"domain\":\"other\"}")).assert_error(403, "forbidden");
    send(v1("nonsense")).assert_error(400, "invalid json");
    assert_eq!((server.lines("home").len(), server.lines("away").len()), (7, 2));
    assert!(server.lines("home").iter().all(|line| line["domain"] == "home"));
    server.send(&v1("{}")).assert_error(400, "domain must be specified via query or payload");
}

/// Broken, a token would be good beyond its time, or would need somebody to end it.
#[test]
fn a_token_ends_by_itself() {
    let server = TestServer::builder().env("LEITSTAND_AUTH_RATE_LIMIT", "off").start();
    let secret = done(server.dir(), &["add", "short", "--expires", "6s"]);
    let expires = listed(server.dir())[0]["expires"].clone();
    assert_eq!(post_status(&server, &secret), 202);
    let ready = server.get("/health/ready").json();
    assert_eq!(ready["tokens_expiring"], 1, "{ready}");
    let ended = wait_for("the token ends", PATIENCE, || {
        (post_status(&server, &secret) == 401)
            .then(|| std::process::Command::new("date").args(["-u", "+%FT%TZ"]).output())
    });
    let ended = String::from_utf8(ended.unwrap().stdout).unwrap();
    println!("expires {expires}, refused at {ended}");
    // Asked every 5 ms; a machine that is busy may need a second.
    assert!(ended.trim() >= expires.as_str().unwrap());
    let answer = server.send(&with_token(Request::post("tokens", "{}"), &secret));
    answer.assert_error(401, "unauthorized");
    assert!(server.metric("leitstand_refused_total", "token_expired") >= 2.0);
    assert_eq!(server.metric("leitstand_refused_total", "\"unauthorized\""), 0.0);
    let line = server.log_line("the end is audited", |line| line["action"] == "token_expired");
    assert_eq!((&line["target"], &line["token"]), (&json!("leitstand::audit"), &json!("short")));
    assert_eq!(server.get("/health/ready").json()["tokens_expiring"], 0);
    assert!(done(server.dir(), &["list"]).contains("(expired)"));
}

/// Broken, a stolen token would go on working after it was revoked.
#[test]
fn a_revoked_token_is_refused_within_a_second() {
    let server = TestServer::builder().env("LEITSTAND_AUTH_RATE_LIMIT", "off").start();
    let mut worst = Duration::ZERO;
    for round in 0..3 {
        let name = format!("r{round}");
        let secret = done(server.dir(), &["add", &name]);
        assert_eq!(post_status(&server, &secret), 202, "printed means good");
        let mut revoke = command(server.dir(), &["token", "revoke", &name]).stderr(Stdio::null()).spawn().unwrap();
        let gone = || !fs::read_to_string(store(server.dir())).unwrap().contains(&sha256_hex(&secret));
        wait_for("the store changes", PATIENCE, || gone().then_some(()));
        let changed = Instant::now();
        wait_for("the token is refused", PATIENCE, || (post_status(&server, &secret) == 401).then_some(()));
        worst = worst.max(changed.elapsed());
        assert!(revoke.wait().unwrap().success());
        assert_eq!(post_status(&server, &secret), 401);
    }
    println!("revoked tokens were refused after {worst:?} at most");
    assert!(worst <= NOTICED_WITHIN, "{worst:?}");
    let line = server.log_line("the revocation is audited", |line| line["action"] == "token_revoked");
    assert!(line["old"].as_str().unwrap().starts_with("sha256:") && line["new"] == "none", "{line}");
    assert_eq!((&line["token"], line["sha256"].as_str().map(str::len)), (&json!("r0"), Some(8)));
}

/// Broken, a mistake in the file would lock every producer out, or nobody would hear of it.
#[test]
fn a_broken_store_leaves_the_tokens_as_they_are() {
    let server = TestServer::builder().env("LEITSTAND_AUTH_RATE_LIMIT", "off").start();
    let dir = server.dir();
    let successful = || server.metric("leitstand_token_store_reload_successful", "");
    let errors = || {
        let is_error =
            |line: &Value| line["level"] == "ERROR" && line.to_string().contains("token store cannot be used");
        server.log_lines().iter().filter(|line| is_error(line)).count()
    };
    assert_eq!(successful(), 1.0);
    let secret = done(dir, &["add", "kept"]);
    let good = fs::read(store(dir)).unwrap();
    let half = &good[..good.len() / 2];
    for (round, broken) in [half, b"", b"{\"version\":2}", b"not ours"].into_iter().enumerate() {
        fs::write(store(dir), broken).unwrap();
        wait_for("the fault is noticed", PATIENCE, || (successful() == 0.0).then_some(()));
        // Two more looks.
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(post_status(&server, &secret), 202);
        assert_eq!(errors(), round + 1, "once for each fault");
        for args in [&["add", "new"][..], &["list"], &["revoke", "kept"], &["rotate", "kept"]] {
            refused(dir, args, "nothing was changed");
        }
        fs::write(store(dir), &good).unwrap();
        wait_for("it is good again", PATIENCE, || (successful() == 1.0).then_some(()));
    }
    // What is no file at all.
    fs::remove_file(store(dir)).unwrap();
    fs::create_dir(store(dir)).unwrap();
    wait_for("the fault is noticed", PATIENCE, || (successful() == 0.0).then_some(()));
    assert_eq!(post_status(&server, &secret), 202);
    fs::remove_dir(store(dir)).unwrap();
    fs::write(store(dir), &good).unwrap();
    wait_for("it is good again", PATIENCE, || (successful() == 1.0).then_some(()));
    // The whole directory gone is a disk that is not there; the file alone is a decision.
    let aside = dir.join("aside");
    fs::rename(dir.join("data/.leitstand"), &aside).unwrap();
    wait_for("the fault is noticed", PATIENCE, || (successful() == 0.0).then_some(()));
    assert_eq!(post_status(&server, &secret), 202);
    fs::rename(&aside, dir.join("data/.leitstand")).unwrap();
    wait_for("it is good again", PATIENCE, || (successful() == 1.0).then_some(()));
    fs::remove_file(store(dir)).unwrap();
    wait_for("no store, no token", PATIENCE, || (post_status(&server, &secret) == 401).then_some(()));
    assert_eq!(successful(), 1.0);
    assert_eq!(post_status(&server, TOKEN), 202);
}

/// Broken, a service would start without the tokens that its clients hold.
#[test]
fn a_broken_store_stops_the_start() {
    let dir = temp_dir();
    let dir = dir.path();
    let secret = done(dir, &["add", "kept"]);
    let good = fs::read(store(dir)).unwrap();
    for broken in [&good[..good.len() / 2], b"", b"[]"] {
        fs::write(store(dir), broken).unwrap();
        for args in [&["serve", "--port", "0"][..], &["config", "check"]] {
            let finished = run(command(dir, args).env("LEITSTAND_TOKEN", "t"));
            assert_eq!(finished.code, Some(1), "{args:?}: {finished:?}");
            let text = finished.stderr + &finished.stdout;
            assert!(text.contains("LEITSTAND_TOKEN_STORE is ") && text.contains("put a good copy there"), "{text}");
            assert!(!text.contains(&secret) && !text.contains(&sha256_hex(&secret)), "{text}");
        }
    }
}

/// Broken, whoever gave every producer a token of its own would still have to keep a shared one.
#[test]
fn the_shared_secret_may_be_missing_when_a_named_one_may_append() {
    let builder = || TestServer::builder().without("LEITSTAND_TOKEN").without("LEITSTAND_ADMIN_TOKEN");
    let only_read = builder();
    done(only_read.dir(), &["add", "reader", "--scope", "read"]);
    let finished = run(&mut command(only_read.dir(), &["serve", "--port", "0"]));
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(finished.stderr.contains("LEITSTAND_TOKEN is not set"), "{finished:?}");
    let with_ingest = builder();
    let secret = done(with_ingest.dir(), &["add", "writer", "--scope", "ingest"]);
    let server = with_ingest.start();
    assert_eq!(
        [secret.as_str(), TOKEN, ADMIN_TOKEN, ""].map(|token| post_status(&server, token)),
        [202, 401, 401, 401]
    );
}

/// Broken, of two commands at once one would undo the other.
#[test]
fn commands_at_once_lose_nothing() {
    let dir = temp_dir();
    let dir = dir.path();
    let name = |n: usize| format!("p{n}");
    let add =
        |n: usize| command(dir, &["token", "add", &name(n)]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let children: Vec<_> = (0..20).map(|n| add(n).expect("start the binary")).collect();
    let outputs: Vec<_> = children.into_iter().map(|child| child.wait_with_output().expect("it ends")).collect();
    let mut secrets = HashSet::new();
    for output in outputs {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        secrets.insert(String::from_utf8(output.stdout).unwrap().trim_end().to_owned());
    }
    assert_eq!(secrets.len(), 20);
    let stored = fs::read_to_string(store(dir)).unwrap();
    assert!(secrets.iter().all(|secret| stored.contains(&sha256_hex(secret))), "{stored}");
    assert_eq!(listed(dir).len(), 20);
}

/// Broken, what somebody else keeps beside the store would be removed, or stand in the way.
#[test]
fn what_stands_beside_the_store_stays_and_is_in_nobodys_way() {
    let dir = temp_dir();
    let dir = dir.path();
    done(dir, &["add", "first"]);
    let left = dir.join("data/.leitstand/tokens.json.new");
    fs::write(&left, "{\"version\": 1, \"tok").unwrap();
    done(dir, &["add", "second"]);
    assert_eq!(listed(dir).len(), 2);
    assert_eq!(fs::read_to_string(&left).unwrap(), "{\"version\": 1, \"tok");
    assert_eq!(
        fs::read_dir(dir.join("data/.leitstand")).unwrap().count(),
        3,
        "the store, its lock, and what was there"
    );
    // A link is not followed: what is behind it is not ours.
    fs::rename(store(dir), dir.join("elsewhere")).unwrap();
    symlink(dir.join("elsewhere"), store(dir)).unwrap();
    let elsewhere = fs::read(dir.join("elsewhere")).unwrap();
    refused(dir, &["add", "third"], "is a symbolic link");
    assert_eq!(fs::read(dir.join("elsewhere")).unwrap(), elsewhere);
}

/// Broken, nobody would hear that others can read or even write the store.
#[test]
fn a_store_that_is_open_to_others_is_told() {
    let builder = TestServer::builder();
    done(builder.dir(), &["add", "open"]);
    fs::set_permissions(store(builder.dir()), fs::Permissions::from_mode(0o644)).unwrap();
    let listed = token(builder.dir(), &["list"]);
    assert_eq!(listed.code, Some(0));
    assert!(listed.stderr.contains("mode 0644") && listed.stderr.contains("chmod 600"), "{listed:?}");
    let server = builder.start();
    server.log_line("the mode is told", |line| line["mode"] == "0644" && line["level"] == "WARN");
    done(server.dir(), &["add", "second"]);
    assert_eq!(fs::metadata(store(server.dir())).unwrap().mode() & 0o7777, 0o600, "mended by the next change");
}

/// Broken, root could give a token, and the service could not read the store any more.
#[test]
fn what_root_changes_stays_with_the_owner() {
    if !rustix::process::geteuid().is_root() {
        return skip("needs root");
    }
    let dir = temp_dir();
    let dir = dir.path();
    fs::create_dir(dir.join("data")).unwrap();
    chown(dir.join("data"), Some(4711), Some(4711)).unwrap();
    done(dir, &["add", "by-root"]);
    for path in ["data/.leitstand", "data/.leitstand/tokens.json", "data/.leitstand/tokens.json.lock"] {
        let meta = fs::metadata(dir.join(path)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (4711, 4711), "{path}");
    }
    // Whoever may not give the store away may not change it either.
    fs::create_dir(dir.join("data/.leitstand/x")).unwrap();
    chown(store(dir), Some(4712), Some(4712)).unwrap();
    done(dir, &["add", "again"]);
    assert_eq!(fs::metadata(store(dir)).unwrap().uid(), 4712, "the owner of the store stays");
}

/// Broken, a secret would be in a place where others look.
#[test]
fn a_secret_is_shown_once_and_nowhere_else() {
    let server = TestServer::builder().env("LOG_LEVEL", "DEBUG").start();
    let dir = server.dir();
    let mut secrets = vec![done(dir, &["add", "canary", "--expires", "5d", "--domain", "tokens"])];
    assert_eq!(post_status(&server, &secrets[0]), 202);
    assert_eq!(status(&server, with_bearer(Request::get("/health"), &secrets[0])), 200);
    let document: Value = serde_json::from_str(&done(dir, &["rotate", "canary", "--json"])).unwrap();
    secrets.push(document["secret"].as_str().expect("a secret").to_owned());
    assert_eq!(document["older_secrets"].as_array().map(Vec::len), Some(1));
    assert_eq!(post_status(&server, &secrets[1]), 202);
    for request in [Request::post("other", "{}"), Request::post("tokens", "nonsense"), Request::get("/nowhere")] {
        for secret in &secrets {
            assert!(!server.send(&with_token(request.clone(), secret)).text().contains(secret));
        }
    }
    let mut told = String::new();
    for args in [&["list"][..], &["list", "--json"], &["add", "canary"], &["revoke", "canary"], &["list"]] {
        let finished = token(dir, args);
        told += &(finished.stdout + &finished.stderr);
    }
    server.log_line("the revocation is audited", |line| line["action"] == "token_revoked");
    for path in ["/metrics", "/health/ready", "/version"] {
        told += &server.get(path).text();
    }
    told += &server.log();
    told += &fs::read_to_string(store(dir)).unwrap();
    assert!(told.contains("token_rotated") && told.contains("canary"));
    for secret in &secrets {
        assert!(!told.contains(secret) && !told.contains(&secret[4..]), "{secret}");
        assert!(!server.log().contains(&sha256_hex(secret)), "no more of the digest than a prefix");
    }
}

/// Broken, a rotation would lose events, which clients drop for good when they see 401.
#[test]
fn a_rotation_refuses_no_event() {
    let server = TestServer::new();
    let dir = server.dir();
    // What a producer would read from its own configuration, later than the store changes.
    let handed_out = Arc::new(Mutex::new(done(dir, &["add", "producer"])));
    let stop = Arc::new(AtomicBool::new(false));
    let sent = Arc::new(AtomicU64::new(0));
    std::thread::scope(|scope| {
        let producers: Vec<_> = (0..2)
            .map(|n| {
                let (handed_out, stop, sent, server) = (handed_out.clone(), stop.clone(), sent.clone(), &server);
                scope.spawn(move || {
                    let mut client = server.connect();
                    let mut secrets = HashSet::new();
                    while !stop.load(Ordering::Relaxed) {
                        let secret = handed_out.lock().unwrap().clone();
                        let request = Request::post("rotation", format!("{{\"producer\":{n}}}"));
                        let request = if n == 0 { with_token(request, &secret) } else { with_bearer(request, &secret) };
                        client.roundtrip(&request).assert_accepted();
                        secrets.insert(secret);
                        sent.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    secrets.len()
                })
            })
            .collect();
        for _ in 0..3 {
            let before = sent.load(Ordering::Relaxed);
            let secret = done(dir, &["rotate", "producer", "--overlap", "30s"]);
            *handed_out.lock().unwrap() = secret;
            wait_for("both go on", PATIENCE, || (sent.load(Ordering::Relaxed) > before + 20).then_some(()));
        }
        // Nobody uses the older ones now.
        done(dir, &["rotate", "producer", "--overlap", "20s"]);
        std::thread::sleep(Duration::from_millis(300));
        stop.store(true, Ordering::Relaxed);
        for producer in producers {
            assert_eq!(producer.join().expect("no event is refused"), 4, "each has used each secret");
        }
    });
    let sent = sent.load(Ordering::Relaxed);
    println!("{sent} events over 4 rotations, none refused");
    assert_eq!(server.lines("rotation").len() as u64, sent);
    assert_eq!(server.metric("leitstand_refused_total", ""), 0.0);
}

/// Broken, a token would end one day and nobody would have been told.
#[test]
fn tokens_that_end_soon_are_told() {
    let builder = TestServer::builder();
    for (name, expires) in [("soon", "9d"), ("later", "15d"), ("past", "1s")] {
        done(builder.dir(), &["add", name, "--expires", expires]);
    }
    done(builder.dir(), &["add", "never"]);
    // Without a service nobody waits, and the end of one of them is to be over.
    std::thread::sleep(Duration::from_millis(2100));
    let server = builder.start();
    let line = server.log_line("a warning", |line| line["token"] == "soon" && line["level"] == "WARN");
    assert!(line["left"] == "8 days" || line["left"] == "9 days", "{line}");
    server.log_line("a warning", |line| line["token"] == "past" && line.to_string().contains("has expired"));
    assert!(!server.log_lines().iter().any(|line| line["token"] == "later" || line["token"] == "never"));
    let ready = server.get("/health/ready");
    assert_eq!((ready.status, &ready.json()["tokens_expiring"]), (200, &json!(1)));
    assert!(!ready.text().contains("soon\""), "no names for everybody: {ready:?}");
    let page = server.get("/metrics").text();
    assert!(!["soon", "later", "past"].iter().any(|name| page.contains(name)), "no names for everybody: {page}");
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let days = (server.metric("leitstand_token_expiry_timestamp_seconds", "") - now_s) / 86_400.0;
    assert!((8.9..9.1).contains(&days), "the next one to end: {days}");
    assert_eq!(server.metric("leitstand_tokens", ""), 4.0);
    assert_eq!(server.metric("leitstand_tokens_expiring", ""), 1.0);
    assert_eq!(server.get("/api/v1/ops/metrics").json()["tokens_expiring"], 1);
    // One that comes later is told of at once, not with the next day; and again when its end is another.
    let ends =
        |name: &str| server.log_lines().iter().filter(|line| line["token"] == name && line["level"] == "WARN").count();
    done(server.dir(), &["add", "added", "--expires", "12h"]);
    wait_for("it is told of", PATIENCE, || (ends("added") == 1).then_some(()));
    done(server.dir(), &["rotate", "added", "--expires", "13h"]);
    wait_for("it is told of again", PATIENCE, || (ends("added") == 2).then_some(()));
    assert_eq!(server.metric("leitstand_tokens_expiring", ""), 2.0);
    assert_eq!(ends("soon"), 1, "once a day");
    done(server.dir(), &["revoke", "soon"]);
    let hours = || (server.metric("leitstand_token_expiry_timestamp_seconds", "") - now_s) / 3_600.0;
    wait_for("the next one to end is another", PATIENCE, || (12.9..13.1).contains(&hours()).then_some(()));
}

/// Broken, nobody could tell whose requests these are, or an old secret from the new one.
#[test]
fn the_access_log_names_the_token() {
    let server = TestServer::new();
    let secret = done(server.dir(), &["add", "named", "--domain", "tokens"]);
    for (id, request) in [
        ("hot", Request::post("tokens", "{}")),
        ("forbidden", Request::post("other", "{}")),
        ("router", Request::get("/health")),
    ] {
        server.send(&with_token(request.clone(), &secret).header("X-Request-ID", format!("named-{id}")));
        server.send(&request.header("X-Request-ID", format!("shared-{id}")));
        let line = server.log_line(id, |line| line["request_id"] == format!("named-{id}"));
        assert_eq!(line["token"], "named", "{line}");
        let line = server.log_line(id, |line| line["request_id"] == format!("shared-{id}"));
        assert_eq!(line.get("token"), None, "{line}");
    }
}

/// Broken, `verify` would call the store stray, and somebody would move it away.
#[test]
fn the_store_is_no_stray_file() {
    let dir = temp_dir();
    done(dir.path(), &["add", "a"]);
    let finished = run(&mut command(dir.path(), &["verify", "--json"]));
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let report: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!((&report["notes_total"], &report["findings_total"]), (&json!(0), &json!(0)), "{report}");
}

/// Broken, the store could be nowhere but in the data directory.
#[test]
fn the_store_may_be_elsewhere() {
    let builder = TestServer::builder();
    let elsewhere = builder.dir().join("elsewhere.json");
    let mut add = command(builder.dir(), &["token", "add", "a"]);
    let finished = run(add.env("LEITSTAND_TOKEN_STORE", &elsewhere));
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let server = builder.env("LEITSTAND_TOKEN_STORE", &elsewhere).start();
    assert_eq!(post_status(&server, finished.stdout.trim_end()), 202);
    assert!(!store(server.dir()).exists());
    let here = done(server.dir(), &["list", "--json", "--data-dir", "data"]);
    assert!(here.contains("\"tokens\": []"), "{here}");
}

/// Broken, a file that grew without end would take all memory at every start and reload, or one that is no
/// file would keep the start waiting for ever.
#[test]
fn a_store_that_is_too_large_stops_the_start() {
    let dir = temp_dir();
    let dir = dir.path();
    done(dir, &["add", "kept"]);
    let check = |want: &str| {
        let finished = run(command(dir, &["config", "check"]).env("LEITSTAND_TOKEN", "t"));
        assert_eq!(finished.code, Some(1), "{finished:?}");
        let text = finished.stderr + &finished.stdout;
        assert!(text.contains("LEITSTAND_TOKEN_STORE is ") && text.contains(want), "{text}");
    };
    // 1 TiB, of which nothing is on the disk.
    fs::File::create(store(dir)).unwrap().set_len(1 << 40).unwrap();
    check("larger than 16 MiB");
    fs::remove_file(store(dir)).unwrap();
    fs::create_dir(store(dir)).unwrap();
    check("not a regular file");
}

/// Broken, a hundred producers would take minutes to set up, or one slip would leave half of them.
#[test]
fn several_tokens_at_once_and_no_wait_where_nobody_has_to_notice() {
    let dir = temp_dir();
    let dir = dir.path();
    let began = std::time::Instant::now();
    for n in 0..5 {
        let name = format!("t{n}");
        done(dir, &["add", &name]);
        done(dir, &["rotate", &name]);
        done(dir, &["revoke", &name]);
    }
    assert!(began.elapsed() < Duration::from_secs(10), "15 commands wait for nobody: {:?}", began.elapsed());
    let told = done(dir, &["add", "a", "b", "c", "--domain", "x.*"]);
    let secrets: Vec<_> = told.lines().map(|line| line.split_once('\t').expect("name, tab, secret")).collect();
    assert_eq!(secrets.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert!(secrets.iter().all(|(_, secret)| secret.starts_with("lst_")), "{told}");
    refused(dir, &["revoke", "a", "nobody"], "there is no token \"nobody\"");
    refused(dir, &["rotate", "b", "nobody"], "there is no token \"nobody\"");
    refused(dir, &["add", "d", "d"], "is there already");
    assert_eq!(listed(dir).len(), 3, "all or none");
    let document: Value = serde_json::from_str(&done(dir, &["rotate", "a", "b", "--json"])).unwrap();
    assert_eq!(document["tokens"].as_array().unwrap().len(), 2, "{document}");
    done(dir, &["revoke", "a", "b", "c"]);
    assert_eq!(listed(dir).len(), 0);

    // Beside a service what is said holds there too.
    let server = TestServer::new();
    for n in 0..3 {
        let secret = done(server.dir(), &["add", &format!("t{n}")]);
        assert_eq!(post_status(&server, secret.trim()), 202);
        done(server.dir(), &["revoke", &format!("t{n}")]);
        assert_eq!(post_status(&server, secret.trim()), 401);
    }
}
