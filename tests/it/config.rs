//! Configuration: which layer wins, what is told of it, and what changes without a restart.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use leitstand::config::SETTINGS;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{
    ADMIN_TOKEN, Builder, Client, PATIENCE, Request, Response, TOKEN, TestServer, command, run, wait_for,
};

const FILE: &str = "leitstand.toml";

/// A server with a TOML file, and without what the tests set in the environment otherwise and files
/// should change.
fn with_file(content: &str) -> Builder {
    TestServer::builder().without("LEITSTAND_RATE_LIMIT").file(FILE, content).arg("--config").arg(FILE)
}

fn write(server: &TestServer, content: &str) {
    // As an editor does it; half-written files have a test of their own.
    let new = server.dir().join("new.toml");
    fs::write(&new, content).unwrap();
    fs::rename(new, server.dir().join(FILE)).unwrap();
}

fn admin(method: &str, path: &str) -> Request {
    Request::new(method, path).header("X-Auth", ADMIN_TOKEN)
}

fn patch_request(body: impl AsRef<[u8]>) -> Request {
    admin("POST", "/config").header("Content-Type", "application/merge-patch+json").body(body)
}

fn patch(server: &TestServer, body: Value) -> Response {
    server.send(&patch_request(body.to_string()))
}

#[track_caller]
fn patched(server: &TestServer, body: Value) -> Value {
    let answer = patch(server, body);
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

fn shown(server: &TestServer) -> Value {
    let answer = server.send(&admin("GET", "/config"));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// Until a setting has this value, by whatever reload.
fn until(server: &TestServer, key: &str, want: &Value) -> Value {
    wait_for(&format!("{key} becomes {want}"), PATIENCE, || {
        let shown = shown(server);
        (shown["settings"][key]["value"] == *want).then_some(shown)
    })
}

fn reloads(server: &TestServer, result: &str) -> f64 {
    server.metric("leitstand_config_reloads_total", &format!("result=\"{result}\""))
}

/// Sends SIGHUP and waits until it has been dealt with.
fn hang_up(server: &TestServer) {
    let before = reloads(server, "ok") + reloads(server, "failed");
    server.signal(Signal::HUP);
    wait_for("SIGHUP is dealt with", PATIENCE, || {
        (reloads(server, "ok") + reloads(server, "failed") > before).then_some(())
    });
}

fn check(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let done = run(command(dir, args).envs(env.iter().copied()));
    (done.code, done.stdout, done.stderr)
}

/// What `config check` says of a setting.
fn value_and_source(stdout: &str, name: &str) -> String {
    let of = |prefix: String| stdout.lines().find_map(|line| line.strip_prefix(&prefix));
    let source = of(format!("# {name}: ")).unwrap_or_else(|| panic!("{name}: {stdout}"));
    match (of(format!("{name}=")), source.split_once("; ")) {
        (Some(value), None) => format!("{value}  # {source}"),
        (None, Some((source, value))) => format!("{value}  # {source}"),
        _ => panic!("{name}: {stdout}"),
    }
}

/// Broken, an operator's value would be hidden by one of a lower layer.
#[test]
fn the_last_word_is_that_of_the_highest_layer() {
    let dir = tempfile::tempdir().unwrap();
    let toml = "token = 't'\nport = 1\nmax_body = 1\nlock_timeout = 1\n[logging]\nlevel = 'ERROR'\n[features]\nstats = false\n";
    fs::write(dir.path().join("c.toml"), toml).unwrap();
    fs::write(dir.path().join(".env"), "LEITSTAND_CONFIG=c.toml\nLEITSTAND_PORT=2\nCHRONIK_MAX_BODY=2\n").unwrap();
    let env = [("LEITSTAND_PORT", "3"), ("CHRONIK_MAX_BODY", "3")];
    let line = |args: &[&str], name: &str| {
        let (code, stdout, stderr) = check(dir.path(), args, &env);
        assert_eq!(code, Some(0), "{stderr}");
        value_and_source(&stdout, name)
    };
    let args = ["config", "check"];
    assert_eq!(line(&args, "LEITSTAND_BODY_TIMEOUT"), "30  # default");
    assert_eq!(line(&args, "LEITSTAND_LOCK_TIMEOUT"), "1  # c.toml");
    assert_eq!(line(&args, "LOG_LEVEL"), "ERROR  # c.toml");
    assert_eq!(line(&args, "LEITSTAND_DISABLE"), "stats  # c.toml");
    assert_eq!(line(&args, "LEITSTAND_TOKEN"), "1 (masked)  # c.toml");
    assert_eq!(line(&args, "LEITSTAND_MAX_BODY"), "3  # environment, as CHRONIK_MAX_BODY");
    assert_eq!(line(&args, "LEITSTAND_PORT"), "3  # environment");
    assert_eq!(line(&["config", "check", "--port", "4"], "LEITSTAND_PORT"), "4  # option");
    fs::write(dir.path().join("d.toml"), "token = 't'\nlock_timeout = 5").unwrap();
    assert_eq!(line(&["config", "check", "--config", "d.toml"], "LEITSTAND_LOCK_TIMEOUT"), "5  # d.toml");
    fs::write(
        dir.path().join(".env"),
        "LEITSTAND_CONFIG=c.toml\nLEITSTAND_LOCK_TIMEOUT=7\nLEITSTAND_TOKEN_FILE=secret\n",
    )
    .unwrap();
    fs::write(dir.path().join("secret"), "a,b").unwrap();
    assert_eq!(line(&args, "LEITSTAND_LOCK_TIMEOUT"), "7  # .env");
    assert_eq!(
        line(&["--validate"], "LEITSTAND_TOKEN"),
        "2 (masked)  # .env, as LEITSTAND_TOKEN_FILE",
        "a file of a higher layer hides the token"
    );
}

/// Broken, the file of a unit could not be changed without a restart, or a wrong name of it would do nothing.
#[test]
fn a_file_with_variables_may_have_any_name() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(".env"), "LEITSTAND_TOKEN=t\nLEITSTAND_PORT=2\n").unwrap();
    fs::write(dir.path().join("unit.env"), "LEITSTAND_TOKEN=t\nLEITSTAND_BODY_TIMEOUT=7\n").unwrap();
    let named = [("LEITSTAND_ENV_FILE", "unit.env")];
    for (args, env) in [
        (&["validate", "--env-file", "unit.env"][..], &[][..]),
        (&["validate"], &named[..]),
        (&["validate"], &[("CHRONIK_ENV_FILE", "unit.env")]),
        (&["validate", "--env-file", "unit.env"], &[("LEITSTAND_ENV_FILE", "other.env")]),
    ] {
        let (code, stdout, stderr) = check(dir.path(), args, env);
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{args:?}");
        assert_eq!(value_and_source(&stdout, "LEITSTAND_BODY_TIMEOUT"), "7  # unit.env");
        assert_eq!(value_and_source(&stdout, "LEITSTAND_PORT"), "8788  # default", "instead of .env");
    }
    let (code, _, stderr) = check(dir.path(), &["validate", "--env-file", "missing.env"], &[]);
    assert!(code == Some(1) && stderr.contains("missing.env cannot be read"), "{stderr}");
    fs::write(dir.path().join("bad.env"), "LEITSTAND_TOKEN\n").unwrap();
    let (code, _, stderr) = check(dir.path(), &["validate", "--env-file", "bad.env"], &[]);
    assert!(code == Some(1) && stderr.contains("bad.env line 1 is not NAME=value"), "{stderr}");

    let builder = TestServer::builder();
    fs::write(builder.dir().join("unit.env"), "LEITSTAND_BODY_TIMEOUT=7\n").unwrap();
    let server = builder.env("LEITSTAND_ENV_FILE", "unit.env").start();
    assert_eq!(shown(&server)["settings"]["body_timeout"]["source"], "unit.env");
    fs::write(server.dir().join("unit.env.new"), "LEITSTAND_BODY_TIMEOUT=8\n").unwrap();
    fs::rename(server.dir().join("unit.env.new"), server.dir().join("unit.env")).unwrap();
    until(&server, "body_timeout", &json!(8));
}

/// Broken, a slip in a name would do nothing, and nobody would know.
#[test]
fn the_check_tells_slips_wrong_types_and_what_cannot_be_used() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("c.toml"),
        "tokn = 'x'\nport = '1'\nmax_body = 'much'\n[logging]\nlevel = 1\n[features]\nstat = true\n",
    )
    .unwrap();
    let all = [
        "c.toml: tokn is no setting; do you mean token?",
        "c.toml: port must be a whole number",
        "c.toml: max_body is \"much\": must be a number of bytes",
        "c.toml: logging.level must be a text",
        "c.toml: features.stat is none of version",
        "LEITSTAND_LOCK_TIMEOUT is \"x\"",
        "LEITSTAND_TOKEN is not set",
    ];
    let env = [("LEITSTAND_LOCK_TIMEOUT", "x")];
    for args in [
        &["config", "check", "--config", "c.toml"][..],
        &["--validate", "--config", "c.toml"],
        &["serve", "--config", "c.toml"],
    ] {
        let (code, stdout, stderr) = check(dir.path(), args, &env);
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{args:?}");
        for problem in all {
            assert!(stderr.contains(problem), "{problem}: {stderr}");
        }
    }
    let (code, stdout, _) = check(dir.path(), &["--validate", "--json", "--config", "c.toml"], &env);
    let document: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, document["problems"].as_array().unwrap().len()), (Some(1), all.len()), "{document}");

    let token = ("LEITSTAND_TOKEN", "t");
    let slips = [token, ("LEITSTAND_MAXBODY", "1"), ("CHRONIK_RATELIMIT", "1/day"), ("LEITSTAND_SPOOL", "of a client")];
    let (code, stdout, stderr) = check(dir.path(), &["config", "check", "--json"], &slips);
    let document: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert_eq!(
        document["settings"]["LEITSTAND_TOKEN"],
        json!({"value": "1 (masked)", "source": "environment", "variable": "LEITSTAND_TOKEN", "key": "token", "restart_required": false})
    );
    assert_eq!(
        document["warnings"],
        json!([
            "CHRONIK_RATELIMIT (environment) is no setting; do you mean LEITSTAND_RATE_LIMIT?",
            "LEITSTAND_MAXBODY (environment) is no setting; do you mean LEITSTAND_MAX_BODY?"
        ])
    );
    for (dir_setting, part) in
        [("c.toml", "no directory"), ("c.toml/x", "no directory"), ("/dev/null/x", "no directory")]
    {
        let (code, _, stderr) = check(dir.path(), &["config", "check"], &[token, ("LEITSTAND_DATA_DIR", dir_setting)]);
        assert!(
            code == Some(1) && stderr.contains("LEITSTAND_DATA_DIR") && stderr.contains(part),
            "{dir_setting}: {stderr}"
        );
    }
    for (file, part) in [("missing.toml", "missing.toml cannot be read"), (".", ". cannot be read")] {
        let (code, _, stderr) = check(dir.path(), &["config", "check", "--config", file], &[token]);
        assert!(code == Some(1) && stderr.contains(part), "{file}: {stderr}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is made");
}

/// Broken, a stranger or a producer could see or change how the service runs.
#[test]
fn only_an_admin_sees_and_changes_the_configuration() {
    let server = TestServer::new();
    for request in [admin("GET", "/config"), patch_request("{}")] {
        assert_eq!(server.send(&request).status, 200);
        server.send(&request.clone().without("X-Auth")).assert_error(401, "unauthorized");
        server.send(&request.clone().header("X-Auth", "wrong")).assert_error(401, "unauthorized");
        server.send(&request.header("X-Auth", TOKEN)).assert_error(403, "forbidden");
    }
    assert_eq!(server.send(&admin("PUT", "/config")).status, 405);
    let text = shown(&server).to_string();
    assert!(!text.contains(TOKEN) && !text.contains(ADMIN_TOKEN), "{text}");
}

/// Broken, nobody could tell what holds, why, and what a restart would change.
#[test]
fn the_document_shows_value_source_and_drift() {
    let server = with_file("max_body = 1000\nrate_limit = '77/minute'\n").start();
    let document = shown(&server);
    let settings = document["settings"].as_object().unwrap();
    for setting in SETTINGS.iter().filter(|s| !s.key.is_empty() && !s.key.ends_with("_file")) {
        let told = &settings[setting.key];
        assert_eq!((&told["variable"], &told["restart_required"]), (&json!(setting.name), &json!(!setting.live)));
        assert!(told.get("drift").is_none(), "{}: {told}", setting.key);
        let value = setting.key.split('.').fold(&document["config"], |at, name| &at[name]);
        assert_eq!(told["value"], *value, "{}", setting.key);
    }
    assert_eq!(settings["max_body"]["value"], 1000);
    assert_eq!(settings["rate_limit"]["source"], FILE);
    assert_eq!(settings["logging.format"]["source"], "environment");
    assert_eq!(settings["body_timeout"]["source"], "default");

    write(&server, "max_body = 2000\nrate_limit = '88/minute'\n");
    hang_up(&server);
    let document = until(&server, "rate_limit", &json!("88/minute"));
    assert_eq!(document["settings"]["max_body"]["drift"], json!({"value": 2000, "source": FILE}));
    assert_eq!(document["config"]["max_body"], 1000);
    let document = patched(&server, json!({"rate_limit": "99/minute"}));
    assert_eq!(document["settings"]["rate_limit"]["source"], "patch");
    assert_eq!(document["settings"]["rate_limit"]["drift"], json!({"value": "88/minute", "source": FILE}));
    server.log_line("the restart is told", |line| {
        line["level"] == "WARN" && line["setting"] == "LEITSTAND_MAX_BODY" && line["configured"] == "2000"
    });
}

/// Broken, half of a wrong patch would hold, or the answer would not say what is wrong.
#[test]
fn a_wrong_patch_changes_nothing_and_is_told_by_key() {
    let server = TestServer::new();
    let before = shown(&server);
    for (body, parts) in [
        (r#"{"request_timeout_ms": 999}"#, &["request_timeout_ms", "1000", "300000"][..]),
        (r#"{"request_timeout_ms": 300001}"#, &["request_timeout_ms", "1000", "300000"]),
        (r#"{"request_timeout_ms": -5}"#, &["request_timeout_ms", "1000"]),
        (r#"{"request_timeout_ms": "5000"}"#, &["request_timeout_ms", "whole number"]),
        (r#"{"request_timeout_ms": 99999999999999999999}"#, &["request_timeout_ms"]),
        (r#"{"logging": {"level": "loud"}}"#, &["logging.level", "DEBUG"]),
        (r#"{"logging": {"levle": "INFO"}}"#, &["logging.levle", "logging.level"]),
        (r#"{"logging": "INFO"}"#, &["logging", "table"]),
        (r#"{"rate_limit": "0/minute"}"#, &["rate_limit", "between 1"]),
        (r#"{"rate_limit": 60}"#, &["rate_limit", "text"]),
        (r#"{"allow_domains": ["a b"]}"#, &["allow_domains", "a b"]),
        (r#"{"features": {"stats": "no"}}"#, &["features.stats", "true or false"]),
        (r#"{"features": {"config": false}}"#, &["features.config"]),
        (r#"{"data_dir": "/tmp"}"#, &["data_dir", "restart"]),
        (r#"{"token": "x"}"#, &["token", "secret"]),
        (r#"{"admin_token_file": "/x"}"#, &["admin_token_file", "secret"]),
        (r#"{"no\u0000such\"key": 1}"#, &["is no setting"]),
        (r#"{"nope": null}"#, &["nope"]),
        ("[]", &["object"]),
        ("null", &["object"]),
        ("", &["no JSON"]),
        ("{", &["no JSON"]),
        ("{\"a\":\u{1}}", &["no JSON"]),
    ] {
        // With something right beside it, which must not be taken either.
        let body = body.strip_prefix('{').filter(|rest| rest.len() > 1 && rest.contains(':'));
        let body = body.map_or_else(|| parts_body(parts), |rest| format!(r#"{{"body_timeout": 7, {rest}"#));
        let answer = server.send(&patch_request(&body));
        assert_eq!(answer.status, 422, "{body}: {answer:?}");
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        for part in parts {
            assert!(detail.contains(part), "{body}: {part}: {detail}");
        }
    }
    let problem = server.send(&patch_request(r#"{"no\"pe": 1}"#).header("Accept", "application/problem+json")).json();
    assert_eq!((&problem["code"], &problem["written"]), (&json!("invalid_input"), &json!("no")));

    let big = format!("{{\"nope\": \"{}\"}}", "x".repeat(64 << 10));
    server.send(&patch_request(&big)).assert_error(413, "payload too large");
    server.send(&patch_request("").chunked(&big, 1000)).assert_error(413, "payload too large");
    server.send(&patch_request("{}").without("Content-Length")).assert_error(411, "length required");
    server
        .send(&patch_request("{}").header("Content-Type", "text/plain"))
        .assert_error(415, "unsupported content-type");
    server
        .send(&admin("POST", "/config?persist=2").header("Content-Type", "application/json").body("{}"))
        .assert_error(422, "persist must be 0 or 1");
    assert_eq!(shown(&server)["config"], before["config"]);
    assert!(!server.log().contains("leitstand::audit"));
}

/// Broken, a patch would be mended one mistake and one request at a time.
#[test]
fn all_that_is_wrong_with_a_patch_is_told_at_once() {
    let server = TestServer::new();
    let wrong = json!({
        "request_timeout_ms": 5, "rate_limit": "nix", "bogus": 1, "port": 1, "token": "x",
        "logging": {"format": "xml", "levle": "INFO"}, "features": {"stat": true}, "loging": {"level": "INFO"},
    });
    let answer = server.send(&patch_request(wrong.to_string()));
    let detail = answer.json()["detail"].as_str().unwrap().to_owned();
    for part in [
        "request_timeout_ms must be a whole number from 1000 to 300000",
        "rate_limit expected e.g. 60/minute",
        "bogus is no setting",
        "port needs a restart",
        "token is a secret",
        "logging.format must be text or json",
        "logging.levle is no setting; do you mean logging.level?",
        "features.stat is none of version",
        "loging is no setting; do you mean logging?",
    ] {
        assert!(detail.contains(part), "{part}: {detail}");
    }
    assert_eq!((answer.status, detail.split("; ").count()), (422, 11), "each once: {detail}");
}

/// Broken, a log would say that a route was switched on when it was switched off.
#[test]
fn each_switch_is_a_line_of_its_own() {
    let server = TestServer::builder().env("LEITSTAND_DISABLE", "version").start();
    patched(&server, json!({"features": {"docs": false, "version": true}}));
    for (key, old, new) in [("features.docs", "true", "false"), ("features.version", "false", "true")] {
        let line = server.log_line("its line", |line| line["target"] == "leitstand::audit" && line["key"] == key);
        assert_eq!((&line["old"], &line["new"]), (&json!(old), &json!(new)), "{line}");
    }
}

/// The bodies above that are no objects.
fn parts_body(parts: &[&str]) -> String {
    if parts == ["object"] { "[]".to_owned() } else { "{".to_owned() }
}

/// Broken, `null` would not give the value of the file back, or one patch would undo another.
#[test]
fn null_takes_a_patch_back_to_the_layers_below() {
    let server = with_file("body_timeout = 20\n[features]\ndocs = false\n")
        .env("LEITSTAND_REQUEST_TIMEOUT_MS", "200000")
        .start();
    patched(&server, json!({"body_timeout": 5, "request_timeout_ms": 5000, "features": {"version": false}}));
    let document = patched(&server, json!({"logging": {"level": "DEBUG"}, "features": {"stats": false}}));
    let config = &document["config"];
    assert_eq!(
        (&config["body_timeout"], &config["request_timeout_ms"]),
        (&json!(5), &json!(5000)),
        "a patch beats even the environment"
    );
    assert_eq!(
        config["features"],
        json!({"version": false, "stats": false, "docs": false, "metrics": true, "config": true, "admin": true, "old_path": true})
    );
    let document =
        patched(&server, json!({"body_timeout": null, "request_timeout_ms": null, "features": {"version": null}}));
    let (config, settings) = (&document["config"], &document["settings"]);
    assert_eq!((&config["body_timeout"], &settings["body_timeout"]["source"]), (&json!(20), &json!(FILE)));
    assert_eq!(
        (&config["request_timeout_ms"], &settings["request_timeout_ms"]["source"]),
        (&json!(200_000), &json!("environment"))
    );
    assert_eq!((&config["features"]["version"], &config["features"]["stats"]), (&json!(true), &json!(false)));
    // A reload leaves the patch; the end of the process takes it away.
    hang_up(&server);
    assert_eq!(shown(&server)["config"]["logging"]["level"], "DEBUG");
    let document = patched(&server, json!({"features": null, "logging": null}));
    assert_eq!(
        (&document["config"]["features"]["stats"], &document["config"]["logging"]["level"]),
        (&json!(true), &json!("INFO"))
    );
    assert_eq!(document["config"]["features"]["docs"], false);
}

/// Broken, a change would be lost with the next start, or the file's comments with the change.
#[test]
fn persist_writes_the_file_and_only_a_good_one() {
    let content = "# Mine.\nbody_timeout = 20 # low\nmax_body = 1000\n";
    let server = with_file(content).env("LEITSTAND_AUTH_RATE_LIMIT", "off").start();
    let path = server.dir().join(FILE);
    let persist = |body: Value| {
        let request = admin("POST", "/config?persist=1").header("Content-Type", "application/json");
        server.send(&request.body(body.to_string()))
    };
    for (body, part) in [
        (json!({"body_timeout": 0}), "body_timeout"),
        (json!({"max_body": 5}), "restart"),
        (json!({"body_timeout": 9, "auth_rate_limit": "5/minute"}), "auth_rate_limit comes from environment"),
    ] {
        let answer = persist(body);
        assert!(answer.status == 422 && answer.text().contains(part), "{answer:?}");
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
    }
    assert_eq!(shown(&server)["config"]["body_timeout"], 20);
    patched(&server, json!({"body_timeout": 3}));
    let answer = persist(json!({"body_timeout": 9, "features": {"docs": false}, "deny_domains": ["x.*", "y"]}));
    assert_eq!(answer.status, 200, "{answer:?}");
    let told = &answer.json()["settings"]["body_timeout"];
    assert_eq!(
        (&told["value"], &told["source"], told.get("drift")),
        (&json!(9), &json!(FILE), None),
        "the patch is in the file now"
    );
    let written = fs::read_to_string(&path).unwrap();
    assert!(written.contains("# Mine.") && written.contains("body_timeout = 9 # low"), "{written}");
    let (code, stdout, stderr) =
        check(server.dir(), &["config", "check", "--config", FILE], &[("LEITSTAND_TOKEN", "t")]);
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(value_and_source(&stdout, "LEITSTAND_DENY_DOMAINS"), "'x.*,y'  # leitstand.toml");
    assert_eq!(value_and_source(&stdout, "LEITSTAND_DISABLE"), "docs  # leitstand.toml");
    assert_eq!(persist(json!({"body_timeout": null})).json()["settings"]["body_timeout"]["source"], "default");
    assert!(!fs::read_to_string(&path).unwrap().contains("body_timeout"));
    let names: Vec<_> = fs::read_dir(server.dir()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().ends_with(".new")), "{names:?}");

    let without = TestServer::new();
    let request = admin("POST", "/config?persist=1").header("Content-Type", "application/json");
    let answer = without.send(&request.body("{\"body_timeout\": 9}"));
    assert!(answer.status == 422 && answer.text().contains("--config"), "{answer:?}");
}

/// Broken, who takes the last setting back would leave a file that counts as half written, and could change
/// nothing any more.
#[test]
fn a_file_whose_last_setting_is_taken_back_is_not_empty() {
    let server = with_file("body_timeout = 20\n").start();
    for (body, value) in [(json!({"body_timeout": null}), 30), (json!({"body_timeout": 9}), 9)] {
        let request = admin("POST", "/config?persist=1").header("Content-Type", "application/json");
        let answer = server.send(&request.body(body.to_string()));
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json()["config"]["body_timeout"], value);
        assert!(!fs::read_to_string(server.dir().join(FILE)).unwrap().is_empty());
    }
}

/// Broken, a bad file would stop the service or take its settings away, or nobody would know.
#[test]
fn a_broken_file_keeps_the_old_values_and_says_so() {
    let good = "body_timeout = 20\n";
    let server = with_file(good).start();
    let gauge = || server.metric("leitstand_config_last_reload_successful", "");
    assert_eq!(gauge(), 1.0);
    for (content, problem) in [
        ("body_timeout = \n", "line 1 is no TOML"),
        ("body_timeout = 30\nbody_timout = 5\n", "do you mean body_timeout?"),
        ("body_timeout = 'x'\n", "whole number"),
        ("body_timeout = 0\n", "from 1 to 3600"),
        ("body_timeout = 30\nmax_body = 'much'\n", "max_body"),
        ("", "is empty"),
        ("\u{feff}body_timeout = 30\nrate_limit = \"6", "line 2"),
    ] {
        let failed = reloads(&server, "failed");
        write(&server, content);
        wait_for("the broken file is seen", PATIENCE, || (reloads(&server, "failed") > failed).then_some(()));
        let document = shown(&server);
        assert_eq!(document["config"]["body_timeout"], 20, "{content:?}");
        assert_eq!(document["reload"]["successful"], false);
        assert!(document["reload"]["problems"].to_string().contains(problem), "{content:?}: {document}");
        assert_eq!(gauge(), 0.0);
        server.post("a", "{}").assert_accepted();
        // A request cannot change anything either: what it takes back would be unknown.
        assert_eq!(patch(&server, json!({"request_timeout_ms": 5000})).status, 422);
    }
    fs::remove_file(server.dir().join(FILE)).unwrap();
    hang_up(&server);
    assert_eq!(shown(&server)["config"]["body_timeout"], 20, "without the file too");
    write(&server, "body_timeout = 21\n");
    let document = until(&server, "body_timeout", &json!(21));
    assert_eq!((gauge(), &document["reload"]["successful"]), (1.0, &json!(true)));
    assert!(server.metric("leitstand_config_last_reload_success_timestamp_seconds", "") > 1.7e9);
    server.log_line("the failure is an error", |line| {
        line["level"] == "ERROR" && line["problem"].as_str().is_some_and(|p| p.contains("is empty"))
    });
}

/// Broken, a file that is being written would be taken by halves.
#[test]
fn a_half_written_file_is_not_taken() {
    let whole: String = (0..40)
        .map(|n| format!("# line {n}\n"))
        .chain(["body_timeout = 55\nrate_limit = '7/minute'\n".to_owned()])
        .collect();
    let server = with_file("body_timeout = 20\nrate_limit = '5/minute'\n").start();
    // Every prefix is good TOML up to the last lines, and says less.
    let began = Instant::now();
    let path = server.dir().join(FILE);
    while began.elapsed() < Duration::from_secs(3) {
        for end in (0..whole.len()).step_by(16) {
            fs::write(&path, &whole[..end]).unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let config = shown(&server)["config"].clone();
    assert_eq!((&config["body_timeout"], &config["rate_limit"]), (&json!(20), &json!("5/minute")));
    fs::write(&path, &whole).unwrap();
    let document = until(&server, "body_timeout", &json!(55));
    assert_eq!(document["config"]["rate_limit"], "7/minute");
}

/// Broken, a secret that Kubernetes or an operator exchanges would need a restart, or lock everybody out.
#[test]
fn tokens_of_files_change_while_the_service_runs() {
    let builder = TestServer::builder()
        .without("LEITSTAND_TOKEN")
        .env("LEITSTAND_TOKEN_FILE", "mount/token")
        .env("LEITSTAND_AUTH_RATE_LIMIT", "off");
    let dir = builder.dir().to_owned();
    // As Kubernetes mounts a secret: a link to a link, which is turned.
    for (name, secret) in [("one", "alef-1"), ("two", "alef-1,bet-2"), ("three", "bet-2")] {
        fs::create_dir_all(dir.join("mount").join(name)).unwrap();
        fs::write(dir.join("mount").join(name).join("token"), secret).unwrap();
    }
    let turn = |name: &str| {
        let new = dir.join("mount/new");
        std::os::unix::fs::symlink(name, &new).unwrap();
        fs::rename(new, dir.join("mount/..data")).unwrap();
    };
    turn("one");
    std::os::unix::fs::symlink("..data/token", dir.join("mount/token")).unwrap();
    let server = builder.start();
    let with = |token: &str| server.send(&Request::post("a", "{}").header("X-Auth", token)).status;
    assert_eq!((with("alef-1"), with("bet-2")), (202, 401));
    turn("two");
    wait_for("the new token is taken", PATIENCE, || (with("bet-2") == 202).then_some(()));
    assert_eq!(with("alef-1"), 202, "both");
    turn("three");
    wait_for("the old token is refused", PATIENCE, || (with("alef-1") == 401).then_some(()));
    assert_eq!(with("bet-2"), 202);
    fs::write(dir.join("mount/three/token"), "").unwrap();
    wait_for("the empty file is seen", PATIENCE, || (reloads(&server, "failed") > 0.0).then_some(()));
    assert_eq!(with("bet-2"), 202, "nobody is locked out by an empty file");
    let line =
        server.log_line("the change is audited", |line| line["target"] == "leitstand::audit" && line["key"] == "token");
    assert_eq!((&line["action"], &line["actor"]), (&json!("reload"), &json!("file")));
    // SHA-256 of "alef-1" begins with these digits.
    assert_eq!(line["old"], "1 (sha256 48bc569a)");
    assert!(!server.log().contains("bet-2"), "no secret is in the log");
}

/// Broken, a changed limit would not hold, an unchanged one would be given anew with each reload.
#[test]
fn a_rate_limit_keeps_its_counts_unless_it_changes() {
    let server = with_file("rate_limit = '2/hour'\n").start();
    let send = || server.post("a", "{}").status;
    assert_eq!([send(), send(), send()], [202, 202, 429]);
    hang_up(&server);
    assert_eq!(send(), 429, "an unchanged limit keeps its counts");
    patched(&server, json!({"body_timeout": 9}));
    assert_eq!(send(), 429);
    patched(&server, json!({"rate_limit": "1/hour"}));
    assert_eq!([send(), send()], [202, 429], "a changed one begins anew");
    write(&server, "rate_limit = 'off'\n");
    patched(&server, json!({"rate_limit": null}));
    assert_eq!([send(), send(), send()], [202, 202, 202]);

    let wrong = || server.send(&Request::post("a", "{}").header("X-Auth", "wrong")).status;
    // By the file: above the limit this address is refused on every new connection, with any token.
    write(&server, "rate_limit = 'off'\nauth_rate_limit = '1/hour'\n");
    hang_up(&server);
    assert_eq!([wrong(), wrong()], [401, 429]);
    hang_up(&server);
    assert_eq!(wrong(), 429);
    write(&server, "rate_limit = 'off'\nauth_rate_limit = '2/hour'\n");
    hang_up(&server);
    assert_eq!([wrong(), wrong(), wrong()], [401, 401, 429]);
}

/// Broken, an operator could not look closer while something goes wrong, or would not see who changed what.
#[test]
fn level_and_format_of_the_log_change_and_audit_lines_always_pass() {
    let server = TestServer::new();
    // Refused requests tell their reason at DEBUG.
    let probe = |name: &str| {
        let id = format!("probe-{name}");
        assert_eq!(server.send(&Request::post("a", "{").header("X-Request-ID", &id)).status, 400);
        id
    };
    let lines = |id: &str| server.log().lines().filter(|line| line.contains(id)).map(str::to_owned).collect::<Vec<_>>();
    let before = probe("info");
    wait_for("the access line", PATIENCE, || (lines(&before).len() == 1).then_some(()));
    patched(&server, json!({"logging": {"level": "DEBUG", "format": "text"}}));
    let debug = probe("debug");
    wait_for("access line and reason", PATIENCE, || (lines(&debug).len() == 2).then_some(()));
    assert!(
        lines(&debug).iter().all(|line| !line.starts_with('{') && line.contains(" leitstand::")),
        "{:?}",
        lines(&debug)
    );
    patched(&server, json!({"logging": {"level": "ERROR", "format": "json"}}));
    let quiet = probe("quiet");
    patched(&server, json!({"logging": {"level": "trace"}}));
    let after = probe("after");
    wait_for("access line and reason", PATIENCE, || (lines(&after).len() >= 2).then_some(()));
    assert_eq!(lines(&quiet), [""; 0]);
    let audit: Vec<Value> = server
        .log()
        .lines()
        .filter(|line| line.contains("leitstand::audit") && line.starts_with('{'))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    // The change to ERROR and to JSON, told at ERROR; and the change back. SHA-256 of the admin token.
    let told: Vec<_> =
        audit.iter().map(|line| (line["key"].as_str().unwrap(), line["new"].as_str().unwrap())).collect();
    assert_eq!(told, [("logging.level", "ERROR"), ("logging.format", "json"), ("logging.level", "NOTSET")]);
    assert!(audit.iter().all(|line| line["action"] == "patch" && line["actor"] == "sha256:10a4c7c9"), "{audit:?}");
}

/// Broken, events of a domain that is not ours would be stored, or told apart only by its route.
#[test]
fn domains_are_refused_on_both_routes_and_by_their_payload() {
    let server = TestServer::builder()
        .env("LEITSTAND_ALLOW_DOMAINS", "*.example.com,ours")
        .env("LEITSTAND_DENY_DOMAINS", "secret.*")
        .start();
    let payload = |domain: &str| server.send(&Request::post_to("/v1/ingest", format!("{{\"domain\":\"{domain}\"}}")));
    let all = |domain: &str| {
        let lines = Request::post_to(&format!("/v1/ingest?domain={domain}"), "{}\n{}\n")
            .header("Content-Type", "application/x-ndjson");
        [
            server.post(domain, "{}").status,
            server.send(&Request::post_to(&format!("/ingest/{domain}"), "{}")).status,
            payload(domain).status,
            server.send(&lines).status,
        ]
    };
    assert_eq!(all("a.example.com"), [202, 200, 202, 202]);
    assert_eq!(all("OURS"), [202, 200, 202, 202]);
    for refused in ["other", "example.com", "secret.example.com"] {
        assert_eq!(all(refused), [403; 4], "{refused}");
        assert!(!server.data_dir().join(format!("{refused}.jsonl")).exists());
    }
    payload("other").assert_error(403, "forbidden");
    // Before the body is looked at, and after what is no domain.
    server.post("other", "nonsense").assert_error(403, "forbidden");
    server.post("-bad", "{}").assert_error(400, "invalid domain");
    patched(&server, json!({"allow_domains": [], "deny_domains": "ours"}));
    assert_eq!((all("other"), all("ours")), ([202, 200, 202, 202], [403; 4]));
    assert!(server.metric("leitstand_refused_total", "forbidden") >= 18.0);
}

/// Broken, a route that is switched off would still answer, or say that it is there.
#[test]
fn what_is_switched_off_is_an_unknown_path() {
    let server = TestServer::builder().env("LEITSTAND_DISABLE", "version,metrics,docs,old_path").start();
    let status = |request: Request| server.send(&request.header("X-Auth", ADMIN_TOKEN)).status;
    for path in ["/version", "/metrics", "/docs", "/docs/init.js", "/redoc", "/openapi.json"] {
        server.send(&Request::get(path)).assert_error(404, "Not Found");
        server.send(&Request::get(path).with_method("POST")).assert_error(404, "Not Found");
        server.send(&Request::get(path).without("X-Auth")).assert_error(404, "Not Found");
    }
    server.send(&Request::post_to("/ingest/a", "{}")).assert_error(404, "Not Found");
    server.send(&Request::get("/ingest/a")).assert_error(404, "Not Found");
    server.post("a", "{}").assert_accepted();
    assert_eq!(server.get("/health").status, 200);
    patched(&server, json!({"features": {"version": true, "metrics": true, "old_path": true}}));
    assert_eq!((status(Request::get("/version")), status(Request::get("/metrics"))), (200, 200));
    assert_eq!(status(Request::post_to("/ingest/a", "{}")), 200);
    assert_eq!(status(Request::get("/docs")), 404);
    let off = TestServer::builder().env("LEITSTAND_DISABLE", "config").start();
    off.send(&admin("GET", "/config")).assert_error(404, "Not Found");
}

/// Broken, a client with little time would wait for others, or be told "timeout" of what was written.
#[test]
fn the_request_timeout_bounds_the_waits_for_body_and_lock() {
    let server = TestServer::builder().env("LEITSTAND_REQUEST_TIMEOUT_MS", "1000").start();
    server.post("held", "{}").assert_accepted();
    let took = |ask: &mut dyn FnMut() -> Response| {
        let began = Instant::now();
        let answer = ask();
        (answer, began.elapsed())
    };
    let in_time = |took: Duration| (Duration::from_millis(900)..Duration::from_secs(5)).contains(&took);
    let (answer, waited) = took(&mut || {
        let mut client = server.connect();
        client.send(Request::post("a", "{}").header("Content-Length", "100").head());
        client.read_answer("POST")
    });
    answer.assert_error(408, "request timeout");
    assert!(in_time(waited), "{waited:?}");
    let lock = server.hold_lock("held");
    let (answer, waited) = took(&mut || server.post("held", "{}"));
    answer.assert_error(503, "lock timeout");
    assert!(in_time(waited), "{waited:?}");
    // A request that is there already keeps its own time; one that comes later has the new one.
    patched(&server, json!({"request_timeout_ms": 60_000}));
    std::thread::scope(|scope| {
        let later = scope.spawn(|| server.post("held", "{}"));
        wait_for("it waits", PATIENCE, || (server.metric("leitstand_queue_depth", "") >= 1.0).then_some(()));
        patched(&server, json!({"request_timeout_ms": 1000}));
        // This one is behind it in the queue and gives up before it.
        server.post("held", "{}").assert_error(503, "lock timeout");
        drop(lock);
        later.join().unwrap().assert_accepted();
    });
    assert_eq!(server.lines("held").len(), 2, "what was refused is not written");
}

/// Broken, a reload would fail requests that are under way.
#[test]
fn no_request_fails_while_the_configuration_changes() {
    let server = with_file("rate_limit = '1000000/second'\n").start();
    let (stop, clients) = (AtomicBool::new(false), 16);
    let sent: u64 = std::thread::scope(|scope| {
        let load: Vec<_> = (0..clients)
            .map(|n| {
                let (server, stop) = (&server, &stop);
                scope.spawn(move || {
                    let mut client: Client = server.connect();
                    let request = Request::post(&format!("d{}", n % 4), format!("{{\"client\":{n}}}"));
                    let mut sent = 0;
                    while !stop.load(Ordering::Relaxed) {
                        client.roundtrip(&request).assert_accepted();
                        sent += 1;
                    }
                    sent
                })
            })
            .collect();
        for n in 0..20 {
            write(
                &server,
                &format!(
                    "rate_limit = '{}/second'\nbody_timeout = {}\n[logging]\nlevel = 'ERROR'\n",
                    1_000_000 + n,
                    20 + n
                ),
            );
            if n % 2 == 0 {
                hang_up(&server)
            } else {
                drop(patched(&server, json!({"request_timeout_ms": 10_000 + n, "deny_domains": [format!("x{n}")]})))
            }
        }
        stop.store(true, Ordering::Relaxed);
        load.into_iter().map(|client| client.join().unwrap()).sum()
    });
    let stored: usize = (0..4).map(|n| server.lines(&format!("d{n}")).len()).sum();
    assert_eq!(stored as u64, sent);
    assert!(reloads(&server, "ok") >= 20.0 && reloads(&server, "failed") == 0.0);
    println!("{sent} requests of {clients} clients, {} reloads", reloads(&server, "ok"));
}

/// Broken, the description would name keys that cannot be changed, or leave some out.
#[test]
#[cfg(feature = "docs")]
fn the_description_of_a_patch_names_what_may_change() {
    let dir = tempfile::tempdir().unwrap();
    let (_, printed, _) = check(dir.path(), &["openapi", "--json"], &[]);
    let document: Value = serde_json::from_str(&printed).unwrap();
    let members = |name: &str| {
        let schema = &document["components"]["schemas"][name];
        assert_eq!(schema["additionalProperties"], false, "{name}");
        schema["properties"].as_object().unwrap().keys().cloned().collect::<Vec<_>>()
    };
    let mut described: Vec<String> = members("ConfigPatch").into_iter().filter(|key| key != "logging").collect();
    described.extend(members("LoggingPatch").iter().map(|key| format!("logging.{key}")));
    described.sort();
    let mut live: Vec<_> =
        SETTINGS.iter().filter(|s| s.live && !s.key.contains("token")).map(|s| s.key.to_owned()).collect();
    live.sort();
    assert_eq!(described, live);
    let mut features = leitstand::config::Feature::ALL.map(|feature| feature.name().to_owned());
    features.sort();
    assert_eq!(members("FeaturesPatch"), features);
}

/// Broken, a pipe or a device in the place of a file would hang the start, and then every reload and `GET /config`,
/// until health has no thread left.
#[test]
fn what_is_no_file_holds_up_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = |name: &str| {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        mknodat(CWD, dir.path().join(name), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    };
    fifo("fifo");
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    for path in ["fifo", "socket", "/dev/zero", "/dev/full", "."] {
        for (args, env) in [
            (&["serve"][..], vec![("LEITSTAND_TOKEN_FILE", path)]),
            (&["serve"], vec![("LEITSTAND_TOKEN", "t"), ("LEITSTAND_ADMIN_TOKEN_FILE", path)]),
            (&["serve", "--env-file", path], vec![("LEITSTAND_TOKEN", "t")]),
            (&["config", "check", "--config", path], vec![("LEITSTAND_TOKEN", "t")]),
            (&["serve"], vec![("LEITSTAND_TOKEN", "t"), ("LEITSTAND_TOKEN_STORE", path)]),
        ] {
            let (code, _, stderr) = check(dir.path(), args, &env);
            assert_eq!(code, Some(1), "{path} {args:?} {env:?}: {stderr}");
            assert!(
                ["it is a", "not a regular file"].iter().any(|part| stderr.contains(part)),
                "{path} {args:?}: {stderr}"
            );
        }
    }
    // `/dev/null` is an empty file.
    let (code, _, stderr) = check(dir.path(), &["validate", "--config", "/dev/null"], &[("LEITSTAND_TOKEN", "t")]);
    assert_eq!(code, Some(0), "{stderr}");
}

/// Broken, what a shell hands over by `<(…)` would not be read, or be lost with the first reload.
#[test]
fn a_pipe_is_read_once_and_the_files_beside_it_as_often_as_they_change() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let builder = with_file("body_timeout = 20\n").without("LEITSTAND_TOKEN").env("LEITSTAND_TOKEN_FILE", "pipe");
    let pipe = builder.dir().join("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let writer = std::thread::spawn({
        let pipe = pipe.clone();
        move || {
            let mut end = fs::File::options().write(true).open(pipe).unwrap();
            // In two parts, and not at once.
            for part in ["of-the-", "pipe\n"] {
                std::io::Write::write_all(&mut end, part.as_bytes()).unwrap();
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    });
    let server = builder.start();
    writer.join().unwrap();
    let accepted = || server.send(&Request::post("a", "{}").header("X-Auth", "of-the-pipe")).status;
    assert_eq!(accepted(), 202);
    let began = Instant::now();
    hang_up(&server);
    assert_eq!(reloads(&server, "failed"), 0.0);
    write(&server, "body_timeout = 21\n");
    until(&server, "body_timeout", &json!(21));
    for _ in 0..40 {
        shown(&server);
    }
    assert_eq!(server.get("/health/live").status, 200);
    assert_eq!(accepted(), 202);
    assert!(began.elapsed() < Duration::from_secs(15), "nobody waits for the pipe: {:?}", began.elapsed());
    // One that comes later is told, and what held before still holds.
    fs::rename(server.dir().join(FILE), server.dir().join("aside")).unwrap();
    mknodat(CWD, server.dir().join(FILE), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    hang_up(&server);
    let document = shown(&server);
    assert!(document["reload"]["problems"][0].as_str().unwrap().contains("pipe"), "{document}");
    assert_eq!(document["config"]["body_timeout"], 21);
    fs::rename(server.dir().join("aside"), server.dir().join(FILE)).unwrap();
    hang_up(&server);
    assert_eq!(shown(&server)["reload"]["successful"], true);
}

/// Broken, a slip in a file with tokens would lock everybody out, or an HTML page be a secret.
#[test]
fn a_file_with_what_is_no_token_is_refused_by_line_and_never_quoted() {
    let builder = TestServer::builder()
        .without("LEITSTAND_TOKEN")
        .env("LEITSTAND_TOKEN_FILE", "tokens")
        .env("LEITSTAND_AUTH_RATE_LIMIT", "off");
    let server = builder.file("tokens", "\u{feff}# rotated 2026-11-01, by ops\r\nalef-1\r\n").start();
    let with = |token: &str| server.send(&Request::post("a", "{}").header("X-Auth", token)).status;
    assert_eq!((with("alef-1"), with("rotated 2026-11-01")), (202, 401));
    for (number, (bad, line)) in (1..).zip([
        ("alef-1\n\"s3cret\"\n", "line 2"),
        ("s3c\u{200b}ret\n", "line 1"),
        ("<html><body>s3cret</body></html>\n", "line 1"),
        ("null\n", "line 1"),
        ("# nothing\n", "it holds no token"),
        ("s3cret and a text\n", "line 1"),
    ]) {
        fs::write(server.dir().join("tokens"), bad).unwrap();
        let env = [("LEITSTAND_TOKEN_FILE", "tokens")];
        for args in [&["config", "check"][..], &["serve"]] {
            let (code, stdout, stderr) = check(server.dir(), args, &env);
            assert_eq!((code, stdout.as_str()), (Some(1), ""), "{bad:?}");
            assert!(
                stderr.contains("LEITSTAND_TOKEN_FILE names \"tokens\"") && stderr.contains(line),
                "{bad:?}: {stderr}"
            );
            assert!(!stderr.contains("s3c"), "{stderr}");
        }
        wait_for("the reload is refused", PATIENCE, || (reloads(&server, "failed") >= f64::from(number)).then_some(()));
        assert_eq!(with("alef-1"), 202, "{bad:?}");
    }
    fs::write(server.dir().join("tokens"), "bet-2\n").unwrap();
    wait_for("the next good file is taken", PATIENCE, || (with("bet-2") == 202).then_some(()));
    assert!(!server.log().contains("s3cret"));
}

/// Broken, an admin would read a path and an errno, and take a full disk for a mistake of the request.
#[test]
fn a_file_that_cannot_be_written_is_told_as_such() {
    if !rustix::process::geteuid().is_root() {
        return crate::support::skip("only root can mount a file system");
    }
    let persist = |server: &TestServer| {
        let request = admin("POST", "/config?persist=1").header("Content-Type", "application/json");
        server.send(&request.body("{\"body_timeout\": 9}"))
    };
    let dir = tempfile::tempdir().unwrap();
    let Some(_mounted) = crate::support::Mounted::new(&["-t", "tmpfs", "-o", "size=16k", "none"], dir.path()) else {
        return crate::support::skip("a tmpfs cannot be mounted here");
    };
    let file = dir.path().join("full.toml");
    fs::write(&file, "body_timeout = 20\n").unwrap();
    let _ = fs::write(dir.path().join("filler"), vec![0; 1 << 20]);
    let server = TestServer::builder().arg("--config").arg(&file).start();
    let answer = persist(&server);
    answer.assert_error(507, "insufficient storage");
    assert_eq!(shown(&server)["config"]["body_timeout"], 20);
    server.log_line("the log has the cause", |line| {
        line.to_string().contains("file with settings") && line.to_string().contains("os error 28")
    });
    let read_only = std::process::Command::new("mount").args(["-o", "remount,ro"]).arg(dir.path()).status();
    assert!(read_only.is_ok_and(|status| status.success()));
    persist(&server).assert_error(500, "storage error");
    assert_eq!(fs::read_to_string(&file).unwrap(), "body_timeout = 20\n");
}
