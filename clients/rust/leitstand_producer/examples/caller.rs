//! A process of a case of the part `environment` of `clients/tests/cases.json`: settings, then one call a line on
//! standard input; one line with what it said on standard output.

use std::io::Write as _;
use std::time::Duration;

use leitstand_producer::{Delivery, ProducerClient, ProducerError, Written};
use serde_json::value::RawValue;
use serde_json::{Value, json};

fn client(first: &Value) -> Result<ProducerClient, ProducerError> {
    let seconds = |name: &str| Duration::from_secs_f64(first[name].as_f64().expect("seconds"));
    let mut builder = ProducerClient::builder(first["url"].as_str().expect("an address"))
        .domain("example.com")
        .retries(0)
        .backoff(seconds("backoff"))
        .timeout(seconds("timeout"));
    if let Some(spool) = first["spool"].as_str().filter(|spool| !spool.is_empty()) {
        builder = builder.spool(spool);
    }
    builder.build()
}

fn bytes(call: &Value) -> Vec<u8> {
    match call["hex"].as_str() {
        Some(hex) => {
            (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).expect("digits")).collect()
        }
        None => call["event"].as_str().expect("a text").into(),
    }
}

fn deliver(client: &ProducerClient, call: &Value, raw: bool) -> Result<Delivery, ProducerError> {
    if raw {
        client.deliver(&serde_json::from_slice::<Box<RawValue>>(&bytes(call))?)
    } else {
        client.deliver(&serde_json::from_slice::<Value>(&bytes(call))?)
    }
}

fn said(result: Result<Delivery, ProducerError>) -> Value {
    match result {
        Ok(Delivery::Sent) => json!({"result": "ok"}),
        Ok(Delivery::Spooled) => json!({"result": "spooled"}),
        Err(error) => json!({
            "result": "error",
            "written": if error.written() == Written::No { "no" } else { "maybe" },
            "retryable": error.retryable(),
            "status": error.status(),
            "text": format!("{error} {error:?}"),
        }),
    }
}

fn main() {
    let mut lines = std::io::stdin().lines().map_while(Result::ok);
    let parse = |line: String| serde_json::from_str::<Value>(&line).expect("JSON");
    let first = parse(lines.next().expect("settings"));
    let mut made = None;
    for call in lines.map(parse) {
        std::thread::sleep(Duration::from_secs_f64(call["after_s"].as_f64().unwrap_or(0.0)));
        if let Some(bytes) = call["file_bytes"].as_u64() {
            let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
            // SAFETY: a pointer to a value that lives; and a signal that is left out.
            unsafe {
                libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
                assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit), 0);
            }
        }
        let client = made.get_or_insert_with(|| client(&first));
        let answer = || {
            let result = match &*client {
                Ok(client) => said(deliver(client, &call, first["raw"] == true)),
                Err(error) => json!({"result": "error", "written": "no", "text": format!("{error} {error:?}")}),
            };
            let mut out = std::io::stdout().lock();
            writeln!(out, "{result}").and_then(|()| out.flush()).expect("somebody reads");
        };
        if call["process"] != "fork" {
            answer();
            continue;
        }
        // SAFETY: the child makes one call, and ends without unwinding.
        match unsafe { libc::fork() } {
            0 => {
                answer();
                unsafe { libc::_exit(0) };
            }
            child => unsafe {
                libc::waitpid(child, std::ptr::null_mut(), 0);
            },
        }
    }
}
