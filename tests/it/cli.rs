//! The command line: exit codes, configuration, and the small commands.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::Path;

use leitstand::config::SETTINGS;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Client, Finished, PATIENCE, Request, TOKEN, TestServer, command, run, wait_for};

/// Nothing that any command prints may hold this.
const SECRET: &str = "s3cr3t-token-canary";

/// Runs the binary in `dir` with this environment and nothing else of ours.
fn leitstand(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> Finished {
    let finished = run(command(dir, args).envs(env.iter().copied()));
    for said in [&finished.stdout, &finished.stderr] {
        assert!(!said.contains(SECRET), "the secret is shown: {said}");
    }
    finished
}

fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// `config check`, which must find nothing wrong, as names and values.
fn effective(dir: &Path, env: &[(&str, &str)]) -> (HashMap<String, String>, String) {
    let finished = leitstand(dir, &["config", "check"], env);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let mut values = HashMap::new();
    for line in finished.stdout.lines() {
        let (name, value) = match line.strip_prefix("# ") {
            Some(told) => match told.split_once(": ") {
                Some((name, source)) => (name, source.split_once("; ").map_or("", |(_, value)| value)),
                None => continue,
            },
            None => line.split_once('=').unwrap_or_else(|| panic!("not NAME=value: {line:?}")),
        };
        values.insert(name.to_owned(), value.trim_matches('\'').to_owned());
    }
    (values, finished.stderr)
}

/// Broken, scripts could not tell a wrong command from a wrong configuration.
#[test]
fn exit_codes_are_0_1_and_2() {
    let dir = dir();
    let described = if cfg!(feature = "docs") { &[&["openapi"][..], &["openapi", "--json"]][..] } else { &[] };
    for args in [&["--help"][..], &["--version"], &["serve", "--help"]].iter().chain(described) {
        let finished = leitstand(dir.path(), args, &[]);
        assert_eq!(finished.code, Some(0), "{args:?}");
        assert!(!finished.stdout.is_empty() && finished.stderr.is_empty(), "{args:?}: {finished:?}");
    }
    for args in [&["serve"][..], &["config", "check"], &["healthcheck"]] {
        let finished = leitstand(dir.path(), args, &[]);
        assert_eq!(finished.code, Some(1), "no token: {args:?}");
        assert!(finished.stderr.contains("LEITSTAND_TOKEN"), "{finished:?}");
        assert!(finished.stdout.is_empty(), "{finished:?}");
    }
    for args in [
        &[][..],
        &["nonsense"],
        &["serve", "--nonsense"],
        &["serve", "--port", "x"],
        &["config"],
        &["serve", "--uds", "a", "--port", "1"],
    ] {
        let finished = leitstand(dir.path(), args, &[("LEITSTAND_TOKEN", SECRET)]);
        assert_eq!(finished.code, Some(2), "{args:?}: {finished:?}");
        assert!(finished.stdout.is_empty() && !finished.stderr.is_empty(), "{args:?}");
    }
    assert!(fs::read_dir(dir.path()).unwrap().next().is_none(), "no command left a file");
}

/// Broken, an operator could not see what is in force, or would see the secret.
#[test]
fn config_check_prints_effective_values_without_the_token() {
    let dir = dir();
    let (values, warnings) = effective(dir.path(), &[("LEITSTAND_TOKEN", SECRET)]);
    assert_eq!(warnings, "");
    for (name, want) in [
        ("LEITSTAND_DATA_DIR", "data"),
        ("LEITSTAND_MAX_BODY", "1048576"),
        ("LEITSTAND_LOCK_TIMEOUT", "30"),
        ("LOG_LEVEL", "INFO"),
        ("LEITSTAND_LOG_FORMAT", "text"),
        ("LEITSTAND_HOST", "127.0.0.1"),
        ("LEITSTAND_PORT", "8788"),
        ("LEITSTAND_FSYNC", "always"),
        ("LEITSTAND_MAX_CONNECTIONS", "10000"),
        ("LEITSTAND_SHUTDOWN_TIMEOUT", "8"),
        ("LEITSTAND_BODY_TIMEOUT", "30"),
    ] {
        assert_eq!(values[name], want, "{name}");
    }
    assert!(values["LEITSTAND_TOKEN"].contains("masked"));
    let several = format!("{SECRET}-1,{SECRET}-2\n{SECRET}-3");
    let env = [
        ("LEITSTAND_TOKEN", several.as_str()),
        ("LEITSTAND_MAX_BODY", "2 MiB"),
        ("LEITSTAND_RATE_LIMIT", "3 per Minute"),
        ("LOG_LEVEL", "warn"),
        ("LEITSTAND_FSYNC", "EverySec"),
        ("LEITSTAND_TRUSTED_PROXIES", "10.0.0.0/8, ::1"),
    ];
    let (values, _) = effective(dir.path(), &env);
    assert!(values["LEITSTAND_TOKEN"].contains('3'), "how many: {}", values["LEITSTAND_TOKEN"]);
    assert_eq!(values["LEITSTAND_MAX_BODY"], "2097152");
    assert_eq!(values["LEITSTAND_RATE_LIMIT"], "3/minute");
    assert_eq!(values["LOG_LEVEL"], "WARNING");
    assert_eq!(values["LEITSTAND_FSYNC"], "everysec");
    assert_eq!(values["LEITSTAND_TRUSTED_PROXIES"], "10.0.0.0/8,::1/128");
    assert!(!dir.path().join("data").exists(), "nothing is started");
}

/// Broken, a wrong configuration would be mended one mistake and one restart at a time.
#[test]
fn all_mistakes_are_told_at_once() {
    let dir = dir();
    let wrong = [
        ("LEITSTAND_MAX_BODY", "abc"),
        ("LEITSTAND_LOCK_TIMEOUT", "-1"),
        ("LEITSTAND_RATE_LIMIT", "garbage"),
        ("LEITSTAND_AUTH_RATE_LIMIT", "0/minute"),
        ("LOG_LEVEL", "nope"),
        ("LEITSTAND_LOG_FORMAT", "xml"),
        ("LEITSTAND_HOST", "no host"),
        ("LEITSTAND_PORT", "99999"),
        ("LEITSTAND_FSYNC", "sometimes"),
        ("LEITSTAND_TRUSTED_PROXIES", "nowhere"),
        ("LEITSTAND_MAX_CONNECTIONS", "0"),
        ("LEITSTAND_SHUTDOWN_TIMEOUT", "8s"),
        ("LEITSTAND_BODY_TIMEOUT", "0"),
        ("LEITSTAND_MAX_IN_FLIGHT", "1"),
        ("LEITSTAND_DISK_RESERVE", "much"),
    ];
    for args in [&["config", "check"][..], &["serve"]] {
        let finished = leitstand(dir.path(), args, &wrong);
        assert_eq!(finished.code, Some(1));
        for (name, value) in wrong {
            assert!(finished.stderr.contains(name) && finished.stderr.contains(value), "{name}: {}", finished.stderr);
        }
        assert!(finished.stderr.contains("LEITSTAND_TOKEN "), "the missing token too: {}", finished.stderr);
    }
    assert!(!dir.path().join("data").exists());
}

/// Broken, a script would wait for a document and get nothing, or lines.
#[test]
fn whoever_asks_for_json_gets_one_document_whatever_happens() {
    let dir = dir();
    let good = [("LEITSTAND_TOKEN", SECRET), ("LEITSTAND_PORT", "1")];
    fs::create_dir_all(dir.path().join("data")).unwrap();
    fs::write(dir.path().join("beat"), "{\"at\":\"2020-01-01T00:00:00.000Z\",\"last_success\":null}").unwrap();
    fs::create_dir_all(dir.path().join("broken/.leitstand")).unwrap();
    fs::write(dir.path().join("broken/.leitstand/tokens.json"), "{").unwrap();
    let message = |document: &Value| document["error"]["message"].as_str().map(str::to_owned);
    for (args, code, part) in [
        (&["verify", "--data-dir", "missing"][..], 2, "missing"),
        (&["repair", "--data-dir", "missing"], 2, "missing"),
        (&["snapshot", "--data-dir", "missing", "--to", "s"], 2, "missing"),
        (&["snapshot", "--data-dir", "data", "--to", "data/s"], 2, "lies in"),
        (&["restore", "--from", "missing", "--to", "r"], 2, "no snapshot"),
        (&["--restore", "missing", "--target", "r"], 2, "no snapshot"),
        (&["verify", "--snapshot", "missing"], 2, "no snapshot"),
        (&["drill", "--restore-from", "missing"], 2, "missing"),
        (&["drill", "--dir", "broken"], 2, "not empty"),
        (&["doctor", "--url", "ftp://x"], 2, "ftp://x"),
        (&["doctor", "--config", "missing.toml"], 2, "missing.toml"),
        (&["healthcheck", "--config", "missing.toml"], 1, "missing.toml"),
        (&["token", "list", "--data-dir", "broken"], 1, "cut off"),
        (&["token", "add", "x", "--data-dir", "broken"], 1, "cut off"),
        (&["token", "revoke", "x", "--data-dir", "data"], 1, "no token"),
        (&["token", "rotate", "x", "--data-dir", "data"], 1, "no token"),
    ] {
        let finished = leitstand(dir.path(), &[args, &["--json"]].concat(), &good);
        let document: Value = serde_json::from_str(&finished.stdout).unwrap_or_else(|e| panic!("{e}: {finished:?}"));
        let told = message(&document).unwrap_or_else(|| panic!("{args:?}: {document}"));
        assert!(told.contains(part) && finished.stderr.contains(part), "{args:?}: {finished:?}");
        assert_eq!(finished.code, Some(code), "{args:?}");
        assert!(document["error"]["kind"].is_string(), "{document}");
    }
    // These tell of what they looked at.
    for (args, code) in [(&["healthcheck"][..], 1), (&["healthcheck", "--heartbeat", "beat"], 1)] {
        let finished = leitstand(dir.path(), &[args, &["--json"]].concat(), &good);
        let document: Value = serde_json::from_str(&finished.stdout).unwrap_or_else(|e| panic!("{e}: {finished:?}"));
        assert_eq!((finished.code, &document["healthy"]), (Some(code), &Value::Bool(false)), "{finished:?}");
        assert!(!document["text"].as_str().unwrap().is_empty(), "{document}");
    }
    let finished = leitstand(dir.path(), &["healthcheck"], &good);
    assert!(finished.stderr.contains("no answer from 127.0.0.1:1:"), "the place as people write it: {finished:?}");
    for args in [&["--validate", "--json"][..], &["validate", "--json"], &["config", "check", "--json"]] {
        let document: Value = serde_json::from_str(&leitstand(dir.path(), args, &good).stdout).unwrap();
        assert_eq!(document["ok"], true, "{args:?}");
    }
    let kept = leitstand(dir.path(), &["token", "add", "x", "--data-dir", "data", "--json"], &good);
    assert_eq!(kept.code, Some(0), "{kept:?}");
    let revoked = leitstand(dir.path(), &["token", "revoke", "x", "--data-dir", "data", "--json"], &good);
    let document: Value = serde_json::from_str(&revoked.stdout).unwrap();
    assert_eq!((revoked.code, &document["revoked"]["name"]), (Some(0), &Value::from("x")), "{revoked:?}");
}

/// Broken, an option would be taken and do nothing.
#[test]
fn options_that_belong_to_another_command_are_refused() {
    let dir = dir();
    for args in [
        &["--restore", "s", "--target", "r", "--host", "x"][..],
        &["--restore", "s", "--target", "r", "--config", "x"],
        &["--restore", "s", "--target", "r", "--validate"],
        &["--json"],
        &["--host", "x"],
    ] {
        let finished = leitstand(dir.path(), args, &[("LEITSTAND_TOKEN", SECRET)]);
        assert_eq!((finished.code, finished.stdout.as_str()), (Some(2), ""), "{args:?}: {finished:?}");
    }
}

/// Broken, whoever misspelled the name of the token would only read that it is not set.
#[test]
fn a_slip_in_a_name_is_told_with_what_was_refused() {
    let dir = dir();
    fs::write(dir.path().join(".env"), "LEITSTAND_RATELIMIT=off\n").unwrap();
    let slips = [("LEITSTAND_TOKN", SECRET)];
    for args in [&["config", "check"][..], &["validate"], &["serve"], &["healthcheck"]] {
        let finished = leitstand(dir.path(), args, &slips);
        assert_eq!(finished.code, Some(1), "{args:?}");
        for part in [
            "LEITSTAND_TOKEN is not set",
            "LEITSTAND_TOKN (environment) is no setting; do you mean LEITSTAND_TOKEN?",
            "LEITSTAND_RATELIMIT (.env) is no setting; do you mean LEITSTAND_RATE_LIMIT?",
        ] {
            assert!(finished.stderr.contains(part), "{args:?}: {part}: {}", finished.stderr);
        }
    }
    let finished = leitstand(dir.path(), &["--validate", "--json"], &slips);
    let document: Value = serde_json::from_str(&finished.stdout).unwrap();
    assert_eq!(document["warnings"].as_array().unwrap().len(), 2, "{document}");
    assert_eq!(document["problems"].as_array().unwrap().len(), 1, "{document}");
}

/// Broken, a value that means nothing would be taken as the default, or as "no limit".
#[test]
fn a_value_that_cannot_be_read_stops_the_start() {
    let dir = dir();
    let refused = |name: &str, value: &str| {
        let finished = leitstand(dir.path(), &["config", "check"], &[("LEITSTAND_TOKEN", SECRET), (name, value)]);
        assert_eq!(finished.code, Some(1), "{name}={value:?}");
        assert!(finished.stderr.contains(name), "{name}={value:?}: {}", finished.stderr);
    };
    for value in ["-1", "1_000", "1.5", "1e6", "0x10", "5000GiB", "99999999999999999999999"] {
        refused("LEITSTAND_MAX_BODY", value);
    }
    for value in ["1.5", "99999999999", "1s"] {
        refused("LEITSTAND_LOCK_TIMEOUT", value);
    }
    for value in ["garbage", "-1/minute", "0/minute", "3/fortnight", "3/minute;", "60"] {
        refused("LEITSTAND_RATE_LIMIT", value);
    }
    for value in ["", " ", ",", " , \n,"] {
        let finished = leitstand(dir.path(), &["config", "check"], &[("LEITSTAND_TOKEN", value)]);
        assert_eq!(finished.code, Some(1), "{value:?}");
    }
    let control = format!("{SECRET}\u{7}");
    let finished = leitstand(dir.path(), &["config", "check"], &[("LEITSTAND_TOKEN", &control)]);
    assert_eq!(finished.code, Some(1));
    let both = [("LEITSTAND_TOKEN", SECRET), ("LEITSTAND_TOKEN_FILE", "secret")];
    assert_eq!(leitstand(dir.path(), &["config", "check"], &both).code, Some(1));
    let missing = leitstand(dir.path(), &["config", "check"], &[("LEITSTAND_TOKEN_FILE", "no-such-file")]);
    assert_eq!(missing.code, Some(1));
    // The value is not quoted: people put the secret itself there by mistake.
    assert!(missing.stderr.contains("LEITSTAND_TOKEN_FILE") && !missing.stderr.contains("no-such-file"));
}

/// Broken, a deployment with a .env file would start with defaults, or could not be overridden.
#[test]
fn dot_env_is_read_for_what_the_environment_does_not_set() {
    let dir = dir();
    let text = format!(
        "# comment\nLEITSTAND_TOKEN={SECRET}\nLEITSTAND_MAX_BODY=100\nexport LEITSTAND_LOCK_TIMEOUT='7'\n\nCHRONIK_PORT=1234\n"
    );
    fs::write(dir.path().join(".env"), text).unwrap();
    let (values, _) = effective(dir.path(), &[("LEITSTAND_MAX_BODY", "200")]);
    assert_eq!(values["LEITSTAND_MAX_BODY"], "200", "the environment wins");
    assert_eq!(values["LEITSTAND_LOCK_TIMEOUT"], "7");
    assert_eq!(values["LEITSTAND_PORT"], "1234");

    // The service reads it too, from its working directory.
    let server = TestServer::builder().without("LEITSTAND_TOKEN").file(".env", "LEITSTAND_TOKEN=dot-env\n").start();
    server.send(&Request::post("a", "{}").header("X-Auth", "dot-env")).assert_accepted();
    server.send(&Request::post("a", "{}")).assert_error(401, "unauthorized");

    // A line that is no setting is told without showing it.
    fs::write(dir.path().join(".env"), format!("LEITSTAND_TOKEN=\"{SECRET}\n")).unwrap();
    let finished = leitstand(dir.path(), &["config", "check"], &[]);
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains(".env"), "{}", finished.stderr);
}

/// Broken, a token with a dollar would be cut without a word, and every client get 401.
#[test]
fn a_dollar_in_dot_env_is_a_dollar() {
    let dir = dir();
    fs::write(dir.path().join(".env"), format!("LEITSTAND_TOKEN={SECRET}\nLEITSTAND_VERSION=a$b\n")).unwrap();
    let (values, _) = effective(dir.path(), &[]);
    assert_eq!(values["LEITSTAND_VERSION"], "a$b");
}

/// Broken, a deployment of the successor (chronik) would lose its settings.
#[test]
fn chronik_names_are_read_where_ours_are_not_set() {
    let dir = dir();
    let (values, warnings) = effective(dir.path(), &[("CHRONIK_TOKEN", SECRET), ("CHRONIK_MAX_BODY", "77")]);
    assert_eq!((values["LEITSTAND_MAX_BODY"].as_str(), warnings.as_str()), ("77", ""));
    let env = [("LEITSTAND_TOKEN", SECRET), ("LEITSTAND_MAX_BODY", "1"), ("CHRONIK_MAX_BODY", "2")];
    let (values, warnings) = effective(dir.path(), &env);
    assert_eq!(values["LEITSTAND_MAX_BODY"], "1");
    assert!(warnings.contains("LEITSTAND_MAX_BODY") && warnings.contains("CHRONIK_MAX_BODY"), "{warnings}");
    let env = [("LEITSTAND_TOKEN", SECRET), ("LEITSTAND_MAX_BODY", "1"), ("CHRONIK_MAX_BODY", "1")];
    assert_eq!(effective(dir.path(), &env).1, "", "the same value twice is no news");
    let differ = [("LEITSTAND_TOKEN", SECRET), ("CHRONIK_TOKEN", "s3cr3t-token-canary-2")];
    assert!(effective(dir.path(), &differ).1.contains("CHRONIK_TOKEN"));

    // The service reads them too, and says in its log when they differ.
    let server = TestServer::builder()
        .without("LEITSTAND_TOKEN")
        .env("CHRONIK_TOKEN", "chronik")
        .env("CHRONIK_RATE_LIMIT", "5/hour")
        .start();
    server.send(&Request::post("a", "{}").header("X-Auth", "chronik")).assert_accepted();
    server.log_line("the difference is logged", |line| {
        line["level"] == "WARN" && line["message"].as_str().unwrap().contains("CHRONIK_RATE_LIMIT")
    });
}

/// Broken, an orchestrator would see a healthy service as ill, or an ill one as healthy.
#[test]
fn healthcheck_is_0_when_ready_and_1_when_not() {
    let server = TestServer::new();
    let port = server.address().rsplit_once(':').unwrap().1.to_owned();
    let check = |args: &[&str], env: &[(&str, &str)]| {
        let env = [&[("LEITSTAND_TOKEN", SECRET)][..], env].concat();
        leitstand(server.dir(), &[&["healthcheck"], args].concat(), &env)
    };
    for (args, env) in [
        (&[][..], &[("LEITSTAND_PORT", port.as_str())][..]),
        (&["--port", &port], &[]),
        (&["--port", &port, "--host", "0.0.0.0"], &[]),
        (&["--port", &port], &[("LEITSTAND_HOST", "localhost"), ("LEITSTAND_PORT", "1")]),
    ] {
        let finished = check(args, env);
        assert_eq!(finished.code, Some(0), "{args:?}: {finished:?}");
        assert!(finished.stdout.contains("\"status\":\"ok\""));
    }
    fs::rename(server.data_dir(), server.dir().join("away")).unwrap();
    let finished = check(&["--port", &port], &[]);
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains("not ready"), "{finished:?}");
    // Nobody listens there: the port was ours a moment ago.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let finished = check(&["--port", &free], &[]);
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains("LEITSTAND_PORT"), "says what to look at: {finished:?}");
}

/// Broken, a second service on the same port would die without saying why.
#[test]
fn a_port_in_use_is_told_with_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let dir = dir();
    for (args, env) in [(&["serve", "--port", &port][..], &[][..]), (&["serve"], &[("LEITSTAND_PORT", port.as_str())])]
    {
        let env = [&[("LEITSTAND_TOKEN", SECRET)][..], env].concat();
        let finished = leitstand(dir.path(), args, &env);
        assert_eq!(finished.code, Some(1), "{finished:?}");
        for part in [port.as_str(), "LEITSTAND_PORT", "another process"] {
            assert!(finished.stderr.contains(part), "{part}: {}", finished.stderr);
        }
    }
}

/// Broken, a wrong data directory would be found by the first event, not at the start.
#[test]
fn a_data_directory_that_cannot_be_used_stops_the_start_and_a_missing_one_is_made() {
    let dir = dir();
    fs::write(dir.path().join("file"), "").unwrap();
    for data_dir in ["/proc/nope", "file", "file/below"] {
        let env = [("LEITSTAND_TOKEN", SECRET), ("LEITSTAND_DATA_DIR", data_dir), ("LEITSTAND_PORT", "0")];
        let finished = leitstand(dir.path(), &["serve"], &env);
        assert_eq!(finished.code, Some(1), "{data_dir}");
        assert!(finished.stderr.contains("LEITSTAND_DATA_DIR") && finished.stderr.contains(data_dir), "{finished:?}");
    }
    let server = TestServer::builder().env("LEITSTAND_DATA_DIR", "new/a/b").start();
    server.post("made", "{}").assert_accepted();
    let made = server.dir().join("new/a/b");
    assert!(made.join("made.jsonl").is_file());
    assert_eq!(fs::metadata(made).unwrap().permissions().mode() & 0o077, 0, "for nobody else");
}

/// Broken, `--host` and `--port` could not override what an image sets.
#[test]
fn options_win_over_the_environment() {
    let server = TestServer::builder()
        .env("LEITSTAND_HOST", "192.0.2.1")
        .arg("--host")
        .arg("localhost")
        .arg("--port=0")
        .env("LEITSTAND_PORT", "1")
        .start();
    assert_eq!(server.get("/health").status, 200);
}

/// Broken, a reverse proxy on the same machine could not use a socket, or a crash would leave a
/// socket that stops the next start.
#[test]
fn a_unix_socket_is_served_and_a_stale_one_makes_way() {
    let builder = TestServer::builder();
    let path = builder.dir().join("leitstand.sock");
    // Dropping a listener leaves its file, as a crash does.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let mut server = builder.arg("--uds").arg(&path).start();
    assert_eq!(server.address(), format!("unix:{}", path.display()));
    let meta = fs::symlink_metadata(&path).unwrap();
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o007, 0, "for nobody else");
    let mut client = Client::connect_unix(&path);
    client.roundtrip(&Request::post("uds", "{}")).assert_accepted();
    client.roundtrip(&Request::get("/health").header("X-Auth", "wrong")).assert_error(401, "unauthorized");
    assert_eq!(server.lines("uds").len(), 1);

    let uds = path.to_str().unwrap();
    let env = [("LEITSTAND_TOKEN", TOKEN)];
    assert_eq!(leitstand(server.dir(), &["healthcheck", "--uds", uds], &env).code, Some(0));
    // A socket in use does not make way.
    let second = leitstand(server.dir(), &["serve", "--uds", uds], &env);
    assert_eq!(second.code, Some(1), "{second:?}");
    assert!(second.stderr.contains(uds), "{second:?}");
    client.roundtrip(&Request::post("uds", "{}")).assert_accepted();

    assert_eq!(server.stop().code, Some(0));
    assert!(!path.exists(), "the socket goes with the service");
    assert_eq!(leitstand(server.dir(), &["healthcheck", "--uds", uds], &env).code, Some(1));
    // Nor does anything that is no socket.
    fs::write(&path, "precious").unwrap();
    assert_eq!(leitstand(server.dir(), &["serve", "--uds", uds], &env).code, Some(1));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

/// Broken, a client behind a socket would have no limit, or share one that the proxy tells apart.
#[test]
fn over_a_unix_socket_the_proxy_speaks_for_its_clients() {
    let builder = TestServer::builder().env("LEITSTAND_RATE_LIMIT", "1/hour");
    let path = builder.dir().join("leitstand.sock");
    let server = builder.arg("--uds").arg(&path).start();
    let status = |forwarded: &[&str]| {
        let request = Request::post("uds", "{}");
        let request = forwarded.iter().fold(request, |request, address| request.header("X-Forwarded-For", address));
        server.send(&request).status
    };
    let got =
        [status(&["198.51.100.1"]), status(&["198.51.100.1"]), status(&["198.51.100.2"]), status(&[]), status(&[])];
    assert_eq!(got, [202, 429, 202, 202, 429]);
    server.log_line("the client is logged", |line| line["client"] == "198.51.100.2");
}

/// The repository, to compare its files with the code.
fn repository(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Broken, the committed description would not be the one of this code.
#[test]
#[cfg(feature = "docs")]
fn docs_openapi_yaml_is_what_the_command_prints() {
    let path = repository("docs/openapi.yaml");
    let printed = leitstand(dir().path(), &["openapi"], &[]).stdout;
    let Ok(committed) = fs::read_to_string(&path) else {
        panic!("docs/openapi.yaml is missing; make it: leitstand openapi > docs/openapi.yaml");
    };
    if committed == printed {
        return;
    }
    let first = committed.lines().zip(printed.lines()).enumerate().find(|(_, (old, new))| old != new);
    panic!(
        "docs/openapi.yaml is stale; make it anew: leitstand openapi > docs/openapi.yaml\nfirst difference: {first:?}"
    );
}

/// Broken, somebody would look for a setting in .env.example that is not there, or set one that
/// nobody reads.
#[test]
fn env_example_lists_every_setting_and_no_other() {
    let text = fs::read_to_string(repository(".env.example"))
        .unwrap_or_else(|e| panic!(".env.example: {e}; it must list every name of leitstand::config::SETTINGS"));
    let name_of = |line: &str| {
        let (name, _) = line.trim_start_matches(['#', ' ']).split_once('=')?;
        let plain = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
        (!name.is_empty() && name.bytes().all(plain)).then(|| name.to_owned())
    };
    let listed: BTreeSet<String> = text.lines().filter_map(name_of).collect();
    let known: BTreeSet<String> = SETTINGS.iter().map(|setting| setting.name.to_owned()).collect();
    let missing: Vec<_> = known.difference(&listed).collect();
    let unknown: Vec<_> = listed.difference(&known).collect();
    assert!(
        missing.is_empty() && unknown.is_empty(),
        "missing in .env.example: {missing:?}; not in SETTINGS: {unknown:?}"
    );
}

/// Broken, a setting could be read that neither SETTINGS nor .env.example name.
#[test]
fn every_setting_that_config_check_prints_is_in_settings() {
    let (values, _) = effective(dir().path(), &[("LEITSTAND_TOKEN", SECRET)]);
    let unknown: Vec<_> =
        values.keys().filter(|name| !SETTINGS.iter().any(|setting| setting.name == name.as_str())).collect();
    assert!(unknown.is_empty(), "printed by `config check`, but not in config::SETTINGS: {unknown:?}");
}

/// Broken, a command would end in the middle of its work with code 101, and a new secret would be lost, because
/// nobody reads what it says on the side.
#[test]
fn a_stderr_that_takes_nothing_changes_nothing() {
    let dir = dir();
    fs::create_dir(dir.path().join("data")).unwrap();
    fs::write(dir.path().join("data/a.jsonl"), "{\"pad\":\"xxxxxxxxxxxxxxxxxxxx\",\"domain\":\"a\"}\n".repeat(40_000))
        .unwrap();
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let quiet = |args: &[&str], env: &[(&str, &str)]| {
        let done = command(dir.path(), args).envs(env.iter().copied()).stderr(full()).output().unwrap();
        (done.status.code(), String::from_utf8(done.stdout).unwrap())
    };
    let (code, secret) = quiet(&["token", "add", "x", "--data-dir", "data"], &[]);
    assert_eq!((code, secret.trim().len()), (Some(0), 47), "{secret}");
    // Long enough for plain lines.
    let (code, said) =
        quiet(&["snapshot", "--data-dir", "data", "--to", "s", "--rate", "700KiB"], &[("LEITSTAND_DISK_RESERVE", "0")]);
    assert!(code == Some(0) && said.contains("snapshot "), "{code:?} {said}");
    for (args, want) in [
        (&["verify", "--data-dir", "missing"][..], 2),
        (&["serve", "--config", "missing.toml"], 1),
        (&["validate", "--config", "missing.toml"], 1),
        (&["healthcheck", "--heartbeat", "missing"], 1),
        (&["token", "revoke", "y", "--data-dir", "data"], 1),
    ] {
        assert_eq!(quiet(args, &[]).0, Some(want), "{args:?}");
    }
    let mut openapi = command(dir.path(), &["openapi"]);
    let code = openapi.stdout(full()).status().unwrap().code();
    assert_eq!(code, Some(if cfg!(feature = "docs") { 1 } else { 2 }));
}

/// `serve`, until it says that it has started, or ends: did it start, and what did it say?
fn serves(dir: &Path, env: &[(&str, &str)]) -> (bool, String) {
    let out = dir.join("serve.log");
    let log = fs::File::create(&out).unwrap();
    let mut serve = command(dir, &["serve"]);
    serve.envs([("LEITSTAND_PORT", "0"), ("LEITSTAND_DISK_RESERVE", "0")]).envs(env.iter().copied());
    let mut child = serve.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
    let said = || fs::read_to_string(&out).unwrap_or_default();
    let started = wait_for("it starts or ends", PATIENCE, || match child.try_wait().unwrap() {
        Some(_) => Some(false),
        None => said().contains("started").then_some(true),
    });
    let _ = child.kill();
    let _ = child.wait();
    (started, said())
}

/// Broken, a deployment whose configuration was checked would not start, or one that was refused would.
#[test]
fn config_check_says_what_serve_does() {
    let mut cases: Vec<(&str, String)> = Vec::new();
    for setting in SETTINGS {
        let value = match setting.name {
            // Its own port, and that of another service, may be taken.
            "LEITSTAND_PORT" => "0",
            _ if setting.default.is_empty() => "7",
            _ => setting.default,
        };
        let odd = [format!(" {value}\r"), format!("\"{value}\"")];
        cases.extend(odd.map(|odd| (setting.name, odd)));
        if setting.name != "LEITSTAND_PORT" {
            cases.push((setting.name, String::new()));
        }
    }
    for name in ["LEITSTAND_DATA_DIR", "LEITSTAND_TOKEN_STORE", "LEITSTAND_CONFIG", "LEITSTAND_ENV_FILE"] {
        for path in ["\r", "file", "file/below", "missing/below", "/dev/null", "/dev/null/x", "fifo", ".", "/dev/zero"]
        {
            cases.push((name, path.to_owned()));
        }
        cases.push((name, "x".repeat(300)));
    }
    for host in ["localhost", "a b", "-", "127.0.0.1\u{a0}", "tcp://10.0.0.1:80"] {
        cases.push(("LEITSTAND_HOST", host.to_owned()));
    }
    let at_once = std::sync::Mutex::new(cases.into_iter());
    let differ = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                loop {
                    let next = at_once.lock().unwrap().next();
                    let Some((name, value)) = next else { return };
                    let dir = dir();
                    fs::write(dir.path().join("file"), "# nothing\n").unwrap();
                    rustix::fs::mknodat(
                        rustix::fs::CWD,
                        dir.path().join("fifo"),
                        rustix::fs::FileType::Fifo,
                        rustix::fs::Mode::RWXU,
                        0,
                    )
                    .unwrap();
                    let mut env = vec![(name, value.as_str())];
                    if name != "LEITSTAND_TOKEN" && name != "LEITSTAND_TOKEN_FILE" {
                        env.push(("LEITSTAND_TOKEN", SECRET));
                    }
                    let check = leitstand(dir.path(), &["config", "check"], &env);
                    // The port is left to the kernel; it is not what is tried here.
                    let (started, said) = serves(dir.path(), &env);
                    if (check.code == Some(0)) != started {
                        let told = format!(
                            "{name}={value:?}: check {:?} {}, serve {started}: {said}",
                            check.code, check.stderr
                        );
                        differ.lock().unwrap().push(told);
                    }
                    let made: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
                    assert!(made.iter().all(|name| !name.to_string_lossy().contains(['"', ' ', '\r'])), "{made:?}");
                }
            });
        }
    });
    let differ = differ.into_inner().unwrap();
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}

/// Broken, a Service of the cluster that has our name would stop the start, and nobody would know why.
#[test]
fn links_of_a_service_are_ignored_and_told_in_one_line() {
    let dir = dir();
    let env = [
        ("LEITSTAND_TOKEN", SECRET),
        ("LEITSTAND_SERVICE_HOST", "10.0.0.1"),
        ("LEITSTAND_SERVICE_PORT", "8788"),
        ("LEITSTAND_SERVICE_PORT_HTTP", "8788"),
        ("LEITSTAND_PORT", "tcp://10.0.0.1:8788"),
        ("LEITSTAND_PORT_8788_TCP", "tcp://10.0.0.1:8788"),
        ("LEITSTAND_PORT_8788_TCP_PROTO", "tcp"),
        ("LEITSTAND_PORT_8788_TCP_PORT", "8788"),
        ("LEITSTAND_PORT_8788_TCP_ADDR", "10.0.0.1"),
        ("CHRONIK_WEB_PORT", "tcp://[fd00::1]:80"),
    ];
    let finished = leitstand(dir.path(), &["config", "check"], &env);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    assert!(finished.stderr.contains("LEITSTAND_PORT (environment)") && finished.stderr.contains("enableServiceLinks"));
    assert!(finished.stdout.contains("LEITSTAND_PORT=8788"), "{}", finished.stdout);
    let (started, said) = serves(
        dir.path(),
        &[("LEITSTAND_TOKEN", SECRET), ("CHRONIK_PORT", "tcp://10.0.0.1:8788"), ("LEITSTAND_PORT", "0")],
    );
    assert!(started && said.matches("enableServiceLinks").count() == 1, "{said}");
}

/// Broken, a script would go on as if it held what is on no disk.
#[test]
fn no_command_ends_with_0_when_its_output_is_lost() {
    let dir = dir();
    fs::create_dir(dir.path().join("data")).unwrap();
    fs::write(dir.path().join("data/a.jsonl"), "{\"n\":1,\"domain\":\"a\"}\n").unwrap();
    let lost = |args: &[&str]| {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let env = [("LEITSTAND_TOKEN", SECRET), ("LEITSTAND_DISK_RESERVE", "0"), ("LEITSTAND_PORT", "1")];
        let done = command(dir.path(), args).envs(env).stdout(full).output().unwrap();
        (done.status.code(), String::from_utf8(done.stderr).unwrap())
    };
    for (args, want) in [
        (&["--help"][..], 1),
        (&["--version"], 1),
        (&["config", "check"], 1),
        (&["config", "check", "--json"], 1),
        (&["validate"], 1),
        (&["verify"], 2),
        (&["verify", "--json"], 2),
        (&["repair"], 2),
        (&["repair", "--apply", "--json"], 2),
        (&["snapshot", "--to", "s1"], 1),
        (&["snapshot", "--to", "s2", "--json"], 1),
        (&["restore", "--from", "s1", "--to", "r"], 1),
        (&["token", "list"], 1),
        (&["token", "add", "x", "--json"], 1),
        (&["token", "revoke", "x", "--json"], 1),
        (&["doctor"], 2),
        (&["support-bundle", "--to", "b"], 1),
        (&["healthcheck", "--json"], 1),
    ] {
        let (code, stderr) = lost(args);
        assert_eq!(code, Some(want), "{args:?}: {stderr}");
        assert!(
            args[0].starts_with("--")
                || stderr.contains("cannot be written")
                || stderr.contains("could not be printed"),
            "{args:?}: {stderr}"
        );
    }
    assert!(dir.path().join("r/a.jsonl").exists(), "the work itself was done");
}
