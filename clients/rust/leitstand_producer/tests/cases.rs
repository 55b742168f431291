//! Every case of `clients/tests/cases.json`, with the blocking and the async functions.

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use leitstand_producer::{ProducerClient, ProducerError, Written};
use serde_json::{Value, json};

use support::{Event, Scripted, event, root};

/// `send` is called by turns with 0 and 1, for the function of one event and that of a feed.
fn check(how: &str, send: impl Fn(usize, &ProducerClient, &Event) -> Result<(), ProducerError> + Sync) {
    let cases = std::fs::read_to_string(root().join("clients/tests/cases.json")).unwrap();
    let cases: Value = serde_json::from_str(&cases).unwrap();
    let cases = cases["cases"].as_array().unwrap();
    assert!(cases.len() >= 38, "the cases are there");
    // Most of a case is waiting.
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = cases.get(at) else { break };
                    check_case(how, case, |client, event| send(at % 2, client, event));
                }
            });
        }
    });
}

fn check_case(how: &str, case: &Value, send: impl Fn(&ProducerClient, &Event) -> Result<(), ProducerError>) {
    let name = case["name"].as_str().unwrap();
    if case["only"] == "many" {
        println!("SKIPPED: {name}: it is for requests of several events; see faults.rs");
        return;
    }
    let server = Scripted::start(name);
    let seconds = |field: &str, default| Duration::from_secs_f64(case[field].as_f64().unwrap_or(default));
    let client = ProducerClient::builder(&server.url)
        .token("s3cret")
        // Servers of old have it in their path.
        .domain("example.com")
        .retries(u32::try_from(case["retries"].as_u64().unwrap_or(2)).unwrap())
        .backoff(seconds("backoff_s", 0.05))
        .timeout(seconds("timeout_s", 2.0))
        .build()
        .unwrap();
    let began = Instant::now();
    let result = send(&client, &event(7));
    let waited = began.elapsed().as_secs_f64();
    let seen = server.seen();
    println!("{how} {name}: {waited:.2} s, in all {:.2} s", began.elapsed().as_secs_f64());
    let expect = &case["expect"];
    let mut got = json!({"attempts": seen["attempts"]});
    match &result {
        Ok(()) => got["result"] = json!("ok"),
        Err(error) => {
            got["result"] = json!("error");
            got["status"] = json!(error.status());
            got["written"] = json!(if error.written() == Written::No { "no" } else { "maybe" });
            got["retryable"] = json!(error.retryable());
            got["request_id"] = json!(error.request_id());
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{name}: {error:?}");
        }
    }
    for (field, wanted) in expect.as_object().unwrap() {
        match field.as_str() {
            "waited_s_min" => assert!(waited >= wanted.as_f64().unwrap(), "{how} {name}: waited {waited}"),
            "waited_s_max" => assert!(waited <= wanted.as_f64().unwrap(), "{how} {name}: waited {waited}"),
            "text" => {
                let told = result.as_ref().unwrap_err().to_string();
                assert!(told.contains(wanted.as_str().unwrap()), "{how} {name}: {told}");
            }
            _ => assert_eq!(&got[field], wanted, "{how} {name}: {field} {result:?}"),
        }
    }
    for lines in seen["lines"].as_array().unwrap() {
        assert_eq!(lines, &json!(["{\"n\":7}"]), "{how} {name}");
    }
    for token in seen["tokens"].as_array().unwrap() {
        assert_eq!(token, "s3cret", "{how} {name}");
    }
}

/// Broken, an event would be lost, doubled or given up where the protocol says otherwise.
#[test]
fn blocking_functions_pass_every_case() {
    check("blocking", |turn, client, event| match turn {
        0 => client.send_one(event),
        _ => client.send_iter([event]),
    });
}

/// Broken, async callers would meet another protocol than blocking ones.
#[test]
fn async_functions_pass_every_case() {
    check("async", |turn, client, event| match turn {
        0 => block_on(client.send_iter_async(futures_util::stream::iter([event.clone()]))),
        _ => block_on(client.send_one_async(event)),
    });
}

/// The smallest executor there is: any other will do as well.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = std::sync::Arc::new(Unpark(std::thread::current())).into();
    let mut context = std::task::Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            std::task::Poll::Ready(output) => return output,
            std::task::Poll::Pending => std::thread::park(),
        }
    }
}
