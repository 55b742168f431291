//! The committed inputs of the fuzz targets, replayed on a stable compiler.
//!
//! `make fuzz` looks for new ones. An input that was a finding stands in `findings/` of its target.

#[path = "../fuzz/src/lib.rs"]
mod fuzz;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use leitstand::domain::Domain;
use leitstand::event::{Batch, Format};

use crate::support::skip;

/// The committed inputs; another directory for a longer run.
fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fuzz/corpus");
    let root = std::env::var_os("FUZZ_CORPUS").map_or(committed.into(), PathBuf::from);
    let mut inputs = Vec::new();
    read_dir(&root.join(target), &mut inputs);
    inputs.sort();
    inputs
}

fn read_dir(dir: &Path, inputs: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in std::fs::read_dir(dir).expect("list a corpus") {
        let path = entry.expect("list a corpus").path();
        if path.is_dir() {
            read_dir(&path, inputs);
        } else {
            let bytes = std::fs::read(&path).expect("read an input");
            inputs.push((path, bytes));
        }
    }
}

/// Broken, an input that once showed a mistake, or that reaches a rare branch, is judged wrongly.
#[test]
fn every_target_takes_its_corpus() {
    for (target, run) in fuzz::TARGETS {
        let inputs = corpus(target);
        assert!(inputs.len() >= 5, "the corpus of {target} is nearly empty");
        for (path, bytes) in &inputs {
            let judged = std::panic::catch_unwind(|| run(bytes));
            assert!(judged.is_ok(), "{}: {}", path.display(), bytes.escape_ascii());
        }
        println!("{target}: {} inputs", inputs.len());
    }
}

/// Reads a length and as many bytes, again and again; answers 1 where Python's strict reader agrees.
const PYTHON: &str = r#"
import json, math, sys
sys.setrecursionlimit(20000)
getattr(sys, "set_int_max_str_digits", lambda n: None)(0)
def refuse(text): raise ValueError(text)
def real(text):
    value = float(text)
    return value if math.isfinite(value) else refuse(text)
while head := sys.stdin.buffer.read(4):
    text = sys.stdin.buffer.read(int.from_bytes(head, "big"))
    try:
        # A lone surrogate is refused when it is to be written as UTF-8.
        json.dumps(json.loads(text.decode(), parse_constant=refuse, parse_float=real), ensure_ascii=False).encode()
        sys.stdout.write("1")
    except ValueError: sys.stdout.write("0")
    except RecursionError: sys.stdout.write("?")
"#;

/// Broken, readers in Python find events that they cannot read, or lose some that they could.
#[test]
fn python_reads_the_same_documents() {
    // Put into an object, so that nothing else is wrong with it than the JSON.
    let inputs: Vec<String> = corpus("json")
        .into_iter()
        .filter_map(|(_, bytes)| String::from_utf8(bytes).ok())
        .map(|text| format!("{{\"v\":{text}\n}}"))
        .collect();
    let python = Command::new("python3").args(["-c", PYTHON]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let Ok(mut python) = python else { return skip("there is no python3") };
    let mut to = python.stdin.take().expect("piped");
    let sent = inputs.clone();
    let writer = std::thread::spawn(move || {
        for text in sent {
            to.write_all(&(text.len() as u32).to_be_bytes()).expect("write to python3");
            to.write_all(text.as_bytes()).expect("write to python3");
        }
    });
    let verdicts = python.wait_with_output().expect("read from python3").stdout;
    writer.join().expect("the writer does not panic");
    assert_eq!(verdicts.len(), inputs.len());
    let mut compared = 0;
    for (text, verdict) in inputs.iter().zip(verdicts) {
        let ours = Batch::parse(text, Format::Document, Some(Domain::parse("a").expect("a domain")));
        if verdict != b'?' {
            assert_eq!(ours.is_ok(), verdict == b'1', "{text:?}: {ours:?}");
            compared += 1;
        }
    }
    println!("{compared} documents compared with Python");
    assert!(compared > 0);
}
