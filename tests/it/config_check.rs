//! What `config check` prints is read by shells, by systemd, by the service itself and by people.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::{BINARY, Finished, command, run, skip};

const TOKEN: &str = "a-token-of-some-length";

fn check(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> Finished {
    run(command(dir, &[&["config", "check"], args].concat()).envs(env.iter().copied()))
}

/// Values without their sources.
fn values(finished: &Finished) -> BTreeMap<String, Value> {
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let document: Value = serde_json::from_str(&finished.stdout).unwrap();
    let settings = document["settings"].as_object().unwrap().iter();
    settings.map(|(name, setting)| (name.clone(), setting["value"].clone())).collect()
}

/// As systemd.exec(5) says of `EnvironmentFile=`: comments are whole lines; outside of quotes a backslash takes the
/// next character as it is, in double quotes only before some, in single quotes never.
fn systemd(text: &str) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['#', ';'])) {
        let (name, rest) = line.split_once('=').unwrap_or_else(|| panic!("no assignment: {line:?}"));
        let (mut value, mut quote, mut chars) = (String::new(), None, rest.chars().peekable());
        while let Some(c) = chars.next() {
            match (quote, c) {
                (Some(end), c) if c == end => quote = None,
                (None, '"' | '\'') => quote = Some(c),
                (None, '\\') => value.extend(chars.next()),
                (Some('"'), '\\') if chars.peek().is_some_and(|next| "\"\\`$".contains(*next)) => {
                    value.extend(chars.next());
                }
                _ => value.push(c),
            }
        }
        assert_eq!(quote, None, "{line:?}");
        variables.insert(name.to_owned(), value);
    }
    variables
}

/// Broken, what somebody keeps as the configuration of a machine would be another one when it is read.
#[test]
fn what_is_printed_is_read_back_to_the_same_configuration() {
    for env in [
        &[][..],
        &[("LEITSTAND_DATA_DIR", "it's mine"), ("LEITSTAND_VERSION", "a b; c & d `e` $f (g) # h")],
        &[("LEITSTAND_DATA_DIR", "~/a*b?[c]"), ("LEITSTAND_VERSION", "back\\slash \"inside\" it")],
        &[
            ("LEITSTAND_DATA_DIR", "d d/ü"),
            ("LEITSTAND_RATE_LIMIT", "10/second;100/minute"),
            ("LEITSTAND_TRUSTED_PROXIES", ""),
            ("LEITSTAND_DENY_DOMAINS", "a.*, b-*"),
            ("LEITSTAND_DISABLE", "docs"),
            ("LEITSTAND_DISK_RESERVE", "5MiB"),
            ("LEITSTAND_MAX_CONNECTIONS_PER_CLIENT", "7"),
            ("LEITSTAND_HEARTBEAT_FILE", "beat it"),
            ("CHRONIK_PORT", "99"),
        ],
    ] {
        let dir = tempfile::tempdir().unwrap();
        let token = [("LEITSTAND_TOKEN", TOKEN)];
        let env = [&token, env].concat();
        let want = values(&check(dir.path(), &["--json"], &env));
        let printed = check(dir.path(), &[], &env);
        assert_eq!((printed.code, printed.stderr.as_str()), (Some(0), ""));
        assert!(!printed.stdout.contains(TOKEN), "{}", printed.stdout);
        fs::write(dir.path().join("printed"), &printed.stdout).unwrap();
        assert_eq!(values(&check(dir.path(), &["--json", "--env-file", "printed"], &token)), want);
        let variables = systemd(&printed.stdout);
        let started: Vec<_> =
            variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).chain(token).collect();
        assert_eq!(values(&check(dir.path(), &["--json"], &started)), want, "{}", printed.stdout);
        for shell in ["sh", "bash", "dash"] {
            let script = format!("set -a; . ./printed; exec '{BINARY}' config check --json");
            let mut sourced = Command::new(shell);
            sourced.args(["-euc", &script]).current_dir(dir.path()).env_clear().envs(token).env("HOME", "/nowhere");
            match Command::new(shell).args(["-c", ":"]).status() {
                Ok(_) => assert_eq!(values(&run(&mut sourced)), want, "{shell}: {}", printed.stdout),
                Err(_) => skip(&format!("there is no {shell}")),
            }
        }
    }
}

/// Broken, a reader would have to guess whether all is well, or where a value comes from.
#[test]
fn the_verdict_and_the_variable_are_told() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(".env"), "CHRONIK_BODY_TIMEOUT=9\n").unwrap();
    let env = [("CHRONIK_TOKEN", TOKEN), ("LEITSTAND_PORT", "9")];
    let printed = check(dir.path(), &[], &env);
    let lines: Vec<_> = printed.stdout.lines().collect();
    for want in [
        "# LEITSTAND_TOKEN: environment, as CHRONIK_TOKEN; 1 (masked)",
        "# LEITSTAND_BODY_TIMEOUT: .env, as CHRONIK_BODY_TIMEOUT",
        "LEITSTAND_BODY_TIMEOUT=9",
        "# LEITSTAND_PORT: environment",
        "LEITSTAND_PORT=9",
        "# LEITSTAND_DISK_RESERVE: default; min(64MiB, 1%)",
    ] {
        assert!(lines.contains(&want), "{want}: {}", printed.stdout);
    }
    assert_eq!(lines.last(), Some(&"# configuration ok"));
    let odd = check(dir.path(), &[], &[env[0], ("LEITSTAND_VERSION", "it's $5")]);
    let told = "# LEITSTAND_VERSION: environment; not written, because readers differ: it's $5";
    assert!(odd.stdout.lines().any(|line| line == told), "{}", odd.stdout);
    let slip = check(dir.path(), &[], &[env[0], ("LEITSTAND_PROT", "1")]);
    assert_eq!(slip.stdout.lines().last(), Some("# configuration ok, 1 warning"));
    let document: Value = serde_json::from_str(&check(dir.path(), &["--json"], &env).stdout).unwrap();
    assert_eq!(document["settings"]["LEITSTAND_TOKEN"]["variable"], "CHRONIK_TOKEN");
    assert_eq!(document["settings"]["LEITSTAND_BODY_TIMEOUT"]["variable"], "CHRONIK_BODY_TIMEOUT");
    assert_eq!(document["settings"]["LEITSTAND_MAX_BODY"]["variable"], Value::Null);
}

/// Broken, whoever reads the message would look for a setting that nobody has set.
#[test]
fn nobody_is_blamed_for_a_default() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("data"), "a file").unwrap();
    let below = dir.path().canonicalize().unwrap().display().to_string();
    let unset = format!("LEITSTAND_DATA_DIR is not set; the default \"data\" below {below}");
    for args in [&["config", "check"][..], &["serve", "--port", "0"], &["doctor"]] {
        let said = run(command(dir.path(), args).env("LEITSTAND_TOKEN", TOKEN));
        assert!(said.code == Some(1) && (said.stdout.clone() + &said.stderr).contains(&unset), "{args:?}: {said:?}");
        let said = run(command(dir.path(), args).env("LEITSTAND_TOKEN", TOKEN).env("CHRONIK_DATA_DIR", "data"));
        let told = said.stdout.clone() + &said.stderr;
        assert!(said.code == Some(1) && told.contains("CHRONIK_DATA_DIR is \"data\""), "{args:?}: {said:?}");
    }
    fs::remove_file(dir.path().join("data")).unwrap();
    fs::create_dir_all(dir.path().join("data/.leitstand")).unwrap();
    fs::write(dir.path().join("data/.leitstand/tokens.json"), "no store").unwrap();
    let said = check(dir.path(), &[], &[("LEITSTAND_TOKEN", TOKEN)]);
    assert!(said.stderr.contains("LEITSTAND_TOKEN_STORE is not set, and the default is \"data/"), "{said:?}");
}
