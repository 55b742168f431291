//! The part `environment` of `clients/tests/cases.json`: variables, certificates, forks, clocks, shortages, and
//! events as they are given. Each process of a case is the example `caller`.

mod support;

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use leitstand_producer::ProducerClient;
use serde_json::{Value, json};

use support::{Scripted, example, root};

const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

/// One process of a case.
struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    clock: PathBuf,
}

impl Process {
    fn start(
        number: &str,
        case: &Value,
        first: &Value,
        variables: &HashMap<String, String>,
        directory: &Path,
    ) -> Process {
        let program = example("caller");
        let calls = case["calls"].as_array().unwrap();
        let mut command = if calls.iter().any(|call| call["threads"] == 0) {
            let mut command = Command::new("strace");
            command.args(["-f", "-o", "/dev/null", "-e", "trace=clone3,clone", "-e"]);
            command.arg("inject=clone3,clone:error=EAGAIN").arg(program);
            command
        } else {
            Command::new(program)
        };
        let clock = directory.join(format!("clock-{number}"));
        fs::write(&clock, "+0").unwrap();
        command.env_clear().envs(variables);
        if calls.iter().any(|call| call["clock_s"].is_number()) {
            command.env("LD_PRELOAD", FAKETIME).env("FAKETIME_TIMESTAMP_FILE", &clock);
            command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut process = Process {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
            clock,
        };
        writeln!(process.input, "{first}").unwrap();
        process
    }

    fn call(&mut self, call: &Value) -> Value {
        fs::write(&self.clock, format!("{:+}", call["clock_s"].as_i64().unwrap_or(0))).unwrap();
        writeln!(self.input, "{call}").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{call}: {line:?} {e}"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Why this runner cannot run a case.
fn skipped(case: &Value) -> Option<String> {
    if let Some(why) = case["skip"]["rust"].as_str() {
        return Some(why.to_owned());
    }
    let calls = case["calls"].as_array()?;
    if calls.iter().any(|call| call["clock_s"].is_number()) && !Path::new(FAKETIME).exists() {
        return Some("faketime is not installed".to_owned());
    }
    if calls.iter().any(|call| call["threads"] == 0) && Command::new("strace").arg("-V").output().is_err() {
        return Some("strace is not installed".to_owned());
    }
    if !cfg!(feature = "tls") && case["url"].as_str().is_some_and(|url| url.starts_with("https")) {
        return Some("built without the feature tls".to_owned());
    }
    None
}

fn with_parents(path: PathBuf) -> PathBuf {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    path
}

/// Makes what is no file with events.
fn make(kind: &str, path: PathBuf) {
    match kind {
        "file" => fs::write(path, "").unwrap(),
        "directory" => fs::create_dir(path).unwrap(),
        "pipe" => assert!(Command::new("mkfifo").arg(path).status().unwrap().success()),
        "socket" => drop(std::os::unix::net::UnixListener::bind(path).unwrap()),
        "link" => std::os::unix::fs::symlink("/nowhere/at/all", path).unwrap(),
        _ => panic!("{kind}"),
    }
}

fn check(case: &Value) {
    let name = case["name"].as_str().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let dead = format!("http://127.0.0.1:{}", held.local_addr().unwrap().port());
    drop(held);
    let server = Scripted::start(name);
    let port = server.url.rsplit(':').next().unwrap().to_owned();
    let filled = |text: &str| {
        let text = text.replace("{url}", &server.url).replace("{port}", &port).replace("{dead}", &dead);
        text.replace("{tmp}", directory.path().to_str().unwrap())
    };
    let texts = |field: &str| -> Vec<(String, String)> {
        let texts = case[field].as_object().into_iter().flatten();
        texts.map(|(name, text)| (name.clone(), text.as_str().unwrap().to_owned())).collect()
    };
    for (file, text) in texts("files") {
        fs::write(with_parents(directory.path().join(file)), text).unwrap();
    }
    for (file, kind) in texts("make") {
        make(&kind, with_parents(directory.path().join(file)));
    }
    let spool = if case["spool"] == true { directory.path().join("spool") } else { PathBuf::new() };
    let mut variables = HashMap::from([("LEITSTAND_TOKEN".to_owned(), "s3cret".to_owned())]);
    variables.insert("PATH".to_owned(), std::env::var("PATH").unwrap());
    variables.extend(texts("env").into_iter().map(|(name, text)| (name, filled(&text))));
    let first = json!({
        "url": filled(case["url"].as_str().unwrap_or("{url}")),
        "backoff": case["backoff_s"].as_f64().unwrap_or(0.01),
        "timeout": case["timeout_s"].as_f64().unwrap_or(2.0),
        "spool": spool,
        "raw": case["raw"] == true,
    });
    let mut processes: HashMap<String, Process> = HashMap::new();
    let mut current = "0".to_owned();
    let mut said = Vec::new();
    for (number, call) in case["calls"].as_array().unwrap().iter().enumerate() {
        let call = if call.is_object() { call.clone() } else { json!({"event": call}) };
        match call["process"].as_str() {
            None | Some("fork") => {}
            Some("new") => current = number.to_string(),
            Some(named) => named.clone_into(&mut current),
        }
        let start = || Process::start(&current, case, &first, &variables, directory.path());
        said.push(processes.entry(current.clone()).or_insert_with(start).call(&call));
    }
    drop(processes);
    if case["flush"] == true {
        let client = ProducerClient::builder(&server.url).token("s3cret").retries(0).spool(&spool).build().unwrap();
        let told = client.flush().err().map(|error| error.to_string());
        let wanted = case["expect"]["flush"].as_array();
        assert_eq!(told.is_some(), wanted.is_some(), "{name}: {told:?}");
        for text in wanted.into_iter().flatten() {
            assert!(told.as_ref().unwrap().contains(text.as_str().unwrap()), "{name}: {told:?}");
        }
    }
    let seen = server.seen();
    let expect = &case["expect"];
    for (field, is_there) in [("left", true), ("gone", false)] {
        for file in expect[field].as_array().into_iter().flatten() {
            let found = fs::symlink_metadata(directory.path().join(file.as_str().unwrap())).is_ok();
            assert_eq!(found, is_there, "{name}: {file} is {field}");
        }
    }
    if let Some(length) = expect["last"].as_u64() {
        assert_eq!(fs::metadata(spool.join("example.com/last")).unwrap().len(), length, "{name}: last");
    }
    for (said, wanted) in said.iter().zip(expect["calls"].as_array().unwrap()) {
        for (field, wanted) in wanted.as_object().unwrap() {
            match field.as_str() {
                "result_in" => assert!(wanted.as_array().unwrap().contains(&said["result"]), "{name}: {said}"),
                "text" => {
                    assert!(said["text"].as_str().unwrap().contains(wanted.as_str().unwrap()), "{name}: {said}");
                }
                _ => assert_eq!(&said[field], wanted, "{name}: {field} {said}"),
            }
        }
        assert!(!said.to_string().contains("s3cret"), "{name}: {said}");
    }
    if let Some(stored) = expect["stored"].as_array() {
        let values = |lines: &Value| -> Vec<Value> {
            let lines = lines.as_array().unwrap().iter().map(|line| line.as_str().unwrap());
            lines
                .map(|line| if case["raw"] == true { json!(line) } else { serde_json::from_str(line).unwrap() })
                .collect()
        };
        assert_eq!(values(&seen["stored"]), values(&json!(stored)), "{name}: {said:?}");
    }
    for field in ["attempts", "connections", "requests"] {
        if !expect[field].is_null() {
            assert_eq!(seen[field], expect[field], "{name}: {field} {said:?}");
        }
    }
    for token in seen["tokens"].as_array().unwrap() {
        assert_eq!(token, "s3cret", "{name}");
    }
}

/// Broken, this client would do something else than the table says that all clients share.
#[test]
fn every_case_of_the_environment() {
    let table = fs::read_to_string(root().join("clients/tests/cases.json")).unwrap();
    let table: Value = serde_json::from_str(&table).unwrap();
    let Some(cases) = table["environment"].as_array() else {
        println!("SKIPPED: the table has no part `environment`");
        return;
    };
    let (run, skips) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let next = AtomicUsize::new(0);
    // Most of a case is waiting.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Some(why) = skipped(case) {
                        println!("SKIPPED: {}: {why}", case["name"]);
                        skips.fetch_add(1, Ordering::Relaxed);
                    } else {
                        check(case);
                        run.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    println!("{} cases, {} skipped", run.load(Ordering::Relaxed), skips.load(Ordering::Relaxed));
}
