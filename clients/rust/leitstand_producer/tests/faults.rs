//! What people from outside found: each test stands for a kind of fault.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use leitstand_producer::{Delivery, Kind, ProducerClient, ProducerError, Written};
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;

use support::{AWAY, HANG_UP, OK, Stub, event, feed, quick, wait_for};

const UNWRITTEN: (u16, &str) = (503, "{\"detail\":\"busy\",\"code\":\"busy\",\"written\":\"no\"}");

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn spool(&self) -> PathBuf {
        self.0.path().join("spool")
    }

    fn domain(&self) -> PathBuf {
        self.spool().join("example.com")
    }

    fn client(&self, url: &str) -> ProducerClient {
        quick(url).spool(self.spool()).backoff(Duration::ZERO).build().unwrap()
    }

    /// A spool that is there, with a file in it, as another library would write it.
    fn with_file(&self, name: &str, content: &str) {
        fs::create_dir_all(self.domain()).unwrap();
        fs::write(self.spool().join("leitstand-spool-1"), "").unwrap();
        fs::write(self.domain().join(name), content).unwrap();
    }

    /// The lines of all files with events, in the order of their names.
    fn lines(&self, domain: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.spool().join(domain)) else { return Vec::new() };
        let files: BTreeMap<_, _> = entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|end| end == "ndjson"))
            .map(|path| (path.clone(), fs::read_to_string(path).unwrap()))
            .collect();
        files.values().flat_map(|text| text.lines().map(str::to_owned)).collect()
    }
}

fn kind(error: &ProducerError) -> Kind {
    match error {
        ProducerError::Http(error) => error.kind(),
        ProducerError::Json(error) => panic!("{error}"),
    }
}

fn raw(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned()).unwrap()
}

/// What `strace` makes of the example `feed`, or why it is not there.
fn feed_under_strace(options: &[&str], arguments: &[&str], variables: &[(&str, &str)]) -> Option<Output> {
    if Command::new("strace").arg("-V").output().is_err() {
        println!("SKIPPED: strace is not installed");
        return None;
    }
    let program = feed();
    let mut command = Command::new("timeout");
    command.args(["60", "strace", "-f", "-o", "/dev/null"]).args(options).arg(program.get_program()).args(arguments);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("LEITSTAND_") || name.starts_with("CHRONIK_") {
            command.env_remove(name);
        }
    }
    Some(command.envs(variables.iter().copied()).output().unwrap())
}

/// Broken, an event of raw JSON with a line feed would take its neighbours with it into `broken/`.
#[test]
fn raw_json_with_line_ends_is_one_line_in_a_feed_and_in_the_spool() {
    let texts = [
        "{\n \"n\": 1\r\n}\n",
        "{\"n\":\r2}",
        "{\t\"n\":3,\n\n\"x\":[ 1 ,\n{ } ]}",
        "{\"n\":4,\"x\":\"\u{2028}\u{85}\"}",
    ];
    let events = || texts.iter().map(|text| raw(text));
    let place = Place::new();
    let stub = Stub::start(|_| HANG_UP);
    let client = place.client(&stub.url);
    assert_eq!(client.deliver_iter(events()).unwrap().spooled, 4);
    for text in texts {
        assert_eq!(client.deliver(&raw(text)).unwrap(), Delivery::Spooled);
    }
    client.send_iter((5..15).map(event)).unwrap();
    stub.forget();
    stub.answer(|_| OK);
    let report = client.flush().unwrap();
    assert_eq!((report.delivered, report.broken, report.rejected), (18, 0, 0));
    assert_eq!(stub.numbers(), [1, 2, 3, 4, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]);
    stub.forget();
    quick(&stub.url).build().unwrap().send_iter(events()).unwrap();
    assert_eq!(stub.numbers(), [1, 2, 3, 4]);
}

/// Broken, one line that is no event, by whoever wrote it, would keep good ones from being delivered.
#[test]
fn a_bad_line_takes_no_good_one_with_it() {
    let place = Place::new();
    let name = format!("{:023}-0000000001-000001.ndjson", 5);
    place.with_file(&name, "{\"n\":0}\n{\n{\"n\":1}\n\n[]\n{\"n\":2}");
    let stub = Stub::start(|_| OK);
    let client = place.client(&stub.url);
    let report = client.flush().unwrap();
    assert_eq!((report.delivered, report.broken, report.rejected), (3, 1, 0));
    assert_eq!(stub.numbers(), [0, 1, 2]);
    assert_eq!(fs::read_to_string(place.domain().join("broken").join(&name)).unwrap(), "{\n[]\n");
    assert!(place.lines("example.com").is_empty());
}

/// Broken, `NaN` would be stored as `null`.
#[test]
fn what_is_no_number_is_refused_before_anything_is_sent() {
    #[derive(Serialize)]
    struct Reading {
        celsius: f64,
        kelvin: Option<f32>,
    }
    let stub = Stub::start(|_| OK);
    let client = quick(&stub.url).build().unwrap();
    for (celsius, kelvin) in [(f64::NAN, None), (f64::INFINITY, None), (1.0, Some(f32::NEG_INFINITY))] {
        let error = client.send_one(&Reading { celsius, kelvin }).unwrap_err();
        assert!(matches!(error, ProducerError::Json(_)), "{error}");
    }
    let good = || Reading { celsius: 1.0, kelvin: None };
    let error = client.send_iter([good(), Reading { celsius: f64::NAN, ..good() }]).unwrap_err();
    assert_eq!((error.failed(), error.unsent()), (0, 2));
    assert!(stub.requests().is_empty());
}

/// Broken, the token would go to port 80 of that machine, or a password to a log.
#[test]
fn an_address_that_cannot_be_read_is_refused_without_telling_its_secrets() {
    for url in ["http://127.0.0.1:99999", "http://127.0.0.1:", "http://u:pa55@h:99999", "http://u:pa55@h"] {
        let builder = ProducerClient::builder(url);
        let told = format!("{builder:?} {:?}", ProducerClient::new(url));
        let error = builder.build().expect_err(url);
        assert!(error.to_string().contains("LEITSTAND_URL"), "{error}");
        assert!(!format!("{told} {error} {error:?}").contains("pa55"), "{told} {error:?}");
    }
}

/// Waits for a child without hanging for ever; its exit code.
fn wait_for_child(child: i32) -> i32 {
    wait_for("the child ends", || {
        let mut status = 0;
        // SAFETY: a pointer to a value that lives.
        let ended = unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) };
        (ended == child).then_some(status)
    })
}

/// Broken, a forked worker would hang, lose its events, or talk on its parent's connection.
#[test]
fn a_forked_process_has_threads_connections_and_locks_of_its_own() {
    let stub = Stub::start(|_| OK);
    let place = Place::new();
    let clients = [place.client(&stub.url), quick(&stub.url).build().unwrap()];
    for client in &clients {
        client.send_one(&event(0)).unwrap();
    }
    let mut children = Vec::new();
    for child in 1..=4u64 {
        // SAFETY: the child calls the client only, and ends without unwinding.
        match unsafe { libc::fork() } {
            0 => {
                let all = (0..20).all(|n| clients.iter().all(|client| client.deliver(&event(child * 100 + n)).is_ok()));
                // What it has of its parent is dropped as in any program.
                drop(clients);
                unsafe { libc::_exit(if all { 0 } else { 1 }) };
            }
            pid => children.push(pid),
        }
    }
    for n in 0..20 {
        for client in &clients {
            client.send_one(&event(n)).unwrap();
        }
    }
    for child in children {
        assert_eq!(wait_for_child(child), 0);
    }
    let mut times: BTreeMap<u64, u64> = BTreeMap::new();
    for n in stub.numbers() {
        *times.entry(n).or_default() += 1;
    }
    for n in (1..=4).flat_map(|child| (child * 100)..(child * 100 + 20)) {
        assert_eq!(times.get(&n), Some(&2), "{n}, by each client once");
    }
}

/// Broken, a worker that was forked while its parent delivered would keep the spool's lock for its life.
#[test]
fn a_forked_process_does_not_keep_the_lock_of_its_parent() {
    let place = Place::new();
    let stub = Stub::start(|_| AWAY);
    let client = place.client(&stub.url);
    client.send_one(&event(0)).unwrap();
    let (arrived, goes_on) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (told, waits) = (arrived.clone(), goes_on.clone());
    stub.answer(move |_| {
        told.store(1, Ordering::SeqCst);
        wait_for("the fork", || (waits.load(Ordering::SeqCst) == 1).then_some(()));
        OK
    });
    let flush = {
        let client = client.clone();
        thread::spawn(move || client.flush().unwrap().delivered)
    };
    wait_for("the request", || (arrived.load(Ordering::SeqCst) == 1).then_some(()));
    // SAFETY: the child sleeps only, and ends without unwinding.
    let child = match unsafe { libc::fork() } {
        0 => unsafe {
            libc::sleep(60);
            libc::_exit(0)
        },
        pid => pid,
    };
    goes_on.store(1, Ordering::SeqCst);
    assert_eq!(flush.join().unwrap(), 1);
    stub.answer(|_| AWAY);
    client.send_one(&event(1)).unwrap();
    stub.answer(|_| OK);
    let report = client.flush().unwrap();
    // SAFETY: a child of this process.
    unsafe { libc::kill(child, libc::SIGKILL) };
    wait_for_child(child);
    assert_eq!((report.delivered, report.held_elsewhere), (1, 0));
}

/// Broken, a caller that believes "not in the spool" would send what is there a second time.
#[test]
fn an_event_whose_directory_cannot_be_synced_is_perhaps_in_the_spool() {
    let place = Place::new();
    place.with_file("other", "");
    let domain = place.domain();
    let options = ["-P", domain.to_str().unwrap(), "-e", "trace=fsync", "-e", "inject=fsync:error=EIO"];
    let spool = place.spool();
    let variables = [("LEITSTAND_URL", "http://127.0.0.1:1"), ("LEITSTAND_SPOOL", spool.to_str().unwrap())];
    let Some(output) = feed_under_strace(&options, &["example.com", "0", "1"], &variables) else { return };
    let told = String::from_utf8(output.stdout).unwrap();
    assert_eq!(place.lines("example.com").len(), 1, "{told} {}", String::from_utf8_lossy(&output.stderr));
    assert!(told.starts_with("0 error Maybe") && told.contains("LEITSTAND_SPOOL"), "{told}");
}

/// Broken, a disk that takes no removal would have the same events sent with each call.
#[test]
fn what_was_delivered_and_cannot_be_removed_is_not_sent_again() {
    let place = Place::new();
    place.with_file(&format!("{:023}-0000000001-000001.ndjson", 5), "{\"event\":\"feed\",\"n\":1000}\n");
    let stub = Stub::start(|_| OK);
    let options = ["-e", "trace=unlink,unlinkat", "-e", "inject=unlink,unlinkat:error=EROFS"];
    let spool = place.spool();
    let variables = [("LEITSTAND_URL", stub.url.as_str()), ("LEITSTAND_SPOOL", spool.to_str().unwrap())];
    let Some(output) = feed_under_strace(&options, &["example.com", "0", "5"], &variables) else { return };
    let told = String::from_utf8(output.stdout).unwrap();
    assert_eq!(told.lines().filter(|line| line.ends_with(" sent")).count(), 5, "{told}");
    assert_eq!(stub.numbers(), [1000, 0, 1, 2, 3, 4]);
}

/// Broken, a spool in trouble would stop delivery although the service is up, or strand events in a directory
/// that the next process refuses.
#[test]
fn a_spool_that_is_lost_does_not_stop_sending_and_is_made_anew_with_its_marker() {
    let place = Place::new();
    let stub = Stub::start(|_| OK);
    let client = place.client(&stub.url);
    fs::remove_dir_all(place.spool()).unwrap();
    stub.answer(|_| UNWRITTEN);
    assert_eq!(client.deliver(&event(0)).unwrap(), Delivery::Spooled);
    assert!(place.spool().join("leitstand-spool-1").exists());
    assert_eq!(place.lines("example.com").len(), 1);
    // A new client finds a spool there.
    place.client(&stub.url);
    fs::remove_dir_all(place.spool()).unwrap();
    fs::write(place.spool(), "").unwrap();
    let error = client.send_one(&event(1)).unwrap_err();
    assert_eq!((kind(&error), error.written()), (Kind::Spool, Written::No), "{error}");
    stub.forget();
    stub.answer(|_| OK);
    assert_eq!(client.deliver(&event(2)).unwrap(), Delivery::Sent);
    assert_eq!(stub.numbers(), [2]);
    assert_eq!(kind(&client.flush().unwrap_err()), Kind::Spool, "a flush tells what is wrong");
}

/// Broken, the order of events would depend on the clocks of the processes that wrote them.
#[test]
fn events_go_behind_what_is_there_whatever_the_clock_says() {
    let place = Place::new();
    // Written before the clock was set back.
    place.with_file(&format!("{:023}-0000000001-000001.ndjson", 10u128.pow(20)), "{\"n\":1}\n");
    let stub = Stub::start(|_| AWAY);
    let feeds = |n| place.client(&stub.url).send_one(&event(n)).unwrap();
    feeds(2);
    feeds(3);
    stub.answer(|_| OK);
    stub.forget();
    assert_eq!(place.client(&stub.url).flush().unwrap().delivered, 3);
    assert_eq!(stub.numbers(), [1, 2, 3]);
}

/// A service that answers each request of a connection with these bytes, and what came.
fn serve_bytes(
    answers: impl Fn(u64, &str) -> Option<Vec<u8>> + Send + Sync + 'static,
) -> (String, Arc<Mutex<Vec<u64>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (seen, answers) = (Arc::new(Mutex::new(Vec::new())), Arc::new(answers));
    let known = seen.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (known, answers) = (known.clone(), answers.clone());
            thread::spawn(move || talk(stream.unwrap(), &known, &*answers));
        }
    });
    (url, seen)
}

fn talk(stream: TcpStream, seen: &Mutex<Vec<u64>>, answers: &dyn Fn(u64, &str) -> Option<Vec<u8>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    for turn in 0.. {
        let (mut length, mut id) = (0, String::new());
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let line = line.trim().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            } else if let Some(value) = line.strip_prefix("x-request-id:") {
                id = value.trim().to_owned();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let Some(answer) = answers(turn, &id) else { return };
        let number = serde_json::from_slice::<serde_json::Value>(&body).unwrap()["n"].as_u64().unwrap();
        seen.lock().unwrap().push(number);
        if (&stream).write_all(&answer).is_err() {
            return;
        }
    }
}

const GOOD: &str = "HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\nok";

/// Broken, an answer that nobody asked for would be taken for that of the next request: lost without notice.
#[test]
fn a_second_answer_is_not_taken_for_that_of_the_next_request() {
    // The second request of a connection is thrown away: its answer is there already, or on its way.
    for delay in [None, Some(Duration::ZERO), Some(Duration::from_micros(200)), Some(Duration::from_millis(2))] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let known = seen.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, known) = (stream.unwrap(), known.clone());
                stream.set_nodelay(true).unwrap();
                thread::spawn(move || {
                    let late = stream.try_clone().unwrap();
                    let answers = move |turn, _: &str| {
                        if turn > 0 {
                            return None;
                        }
                        let Some(delay) = delay else { return Some(GOOD.repeat(2).into_bytes()) };
                        stream.write_all(GOOD.as_bytes()).unwrap();
                        thread::sleep(delay);
                        Some(GOOD.as_bytes().to_vec())
                    };
                    let answers = Mutex::new(answers);
                    talk(late, &known, &|turn, id| (answers.lock().unwrap())(turn, id));
                });
            }
        });
        let client = quick(&url).retries(0).build().unwrap();
        for n in 0..60 {
            client.send_one(&event(n)).unwrap();
        }
        wait_for("all of them, or some are lost", || (seen.lock().unwrap().len() == 60).then_some(()));
    }
}

/// Broken, a connection whose answers are one behind would confirm events that nobody has stored.
#[test]
fn an_answer_with_the_id_of_another_request_is_a_maybe() {
    let last = Arc::new(Mutex::new(String::new()));
    let (url, _) = serve_bytes(move |turn, id| {
        let mut last = last.lock().unwrap();
        let told = if turn == 0 { id.to_owned() } else { last.clone() };
        *last = id.to_owned();
        Some(format!("HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\nX-Request-ID: {told}\r\n\r\nok").into_bytes())
    });
    let client = quick(&url).retries(0).build().unwrap();
    client.send_one(&event(0)).unwrap();
    let error = client.send_one(&event(1)).unwrap_err();
    assert_eq!((kind(&error), error.written(), error.retryable()), (Kind::Broken, Written::Maybe, true));
    client.send_one(&event(2)).unwrap();
}

/// Broken, an answer would be judged by its beginning.
#[test]
fn a_long_answer_is_read_to_its_end_or_is_no_good_one() {
    let long = Box::leak(format!("ok{}x", " ".repeat(100_000)).into_boxed_str());
    let white = Box::leak(format!("ok{}", " ".repeat(60_000)).into_boxed_str());
    let huge = Box::leak(" ".repeat(3_000_000).into_boxed_str());
    let (long, white, huge): (&str, &str, &str) = (long, white, huge);
    let stub = Stub::start(move |request| match request.numbers()[0] {
        0 => (200, long),
        1 => (200, white),
        2 => (503, huge),
        3 => (400, huge),
        _ => OK,
    });
    let client = quick(&stub.url).retries(0).build().unwrap();
    let told =
        |n| client.send_one(&event(n)).map_err(|error| (error.status().unwrap(), error.written(), error.retryable()));
    assert_eq!(told(0), Err((200, Written::Maybe, false)));
    assert_eq!(told(1), Ok(()));
    assert_eq!(told(2), Err((503, Written::Maybe, true)));
    assert_eq!(told(3), Err((400, Written::No, false)));
    assert_eq!(told(4), Ok(()));
}

/// Broken, a proxy's page would be read as "nothing was written".
#[test]
fn only_the_service_itself_can_say_that_nothing_was_written() {
    let page = "<html><body><h1>503 Service Unavailable</h1></body></html>";
    for (answer, written) in [
        (UNWRITTEN, Written::No),
        ((507, "{\"code\":\"insufficient_storage\",\"written\":\"no\"}"), Written::No),
        ((503, "{\"code\":\"busy\",\"written\":\"maybe\"}"), Written::Maybe),
        ((503, "{\"code\":\"\",\"written\":\"no\"}"), Written::Maybe),
        ((503, "{\"code\":7,\"written\":\"no\"}"), Written::Maybe),
        ((503, "{\"detail\":\"busy\"}"), Written::Maybe),
        ((503, "\"written\":\"no\",\"code\":\"x\""), Written::Maybe),
        ((503, page), Written::Maybe),
        ((507, ""), Written::Maybe),
        ((500, "{\"code\":\"storage_error\",\"written\":\"no\"}"), Written::Maybe),
    ] {
        let stub = Stub::start(move |_| answer);
        let error = quick(&stub.url).retries(0).build().unwrap().send_one(&event(0)).unwrap_err();
        assert_eq!((error.written(), error.retryable()), (written, true), "{answer:?}");
        assert_eq!(stub.requests()[0].header("accept"), Some("application/problem+json, */*"));
    }
}

/// Broken, a shortage of threads would end the caller's thread and lose its event.
#[test]
fn without_threads_a_call_is_an_error_or_the_event_is_spooled() {
    let place = Place::new();
    let stub = Stub::start(|_| OK);
    let spool = place.spool();
    let url = [("LEITSTAND_URL", stub.url.as_str()), ("LEITSTAND_RETRIES", "0")];
    let with_spool = [url[0], ("LEITSTAND_SPOOL", spool.to_str().unwrap()), ("LEITSTAND_BACKOFF", "0")];
    let arguments = ["example.com", "0", "3"];
    let options = ["-e", "trace=clone3,clone", "-e", "inject=clone3,clone:error=EAGAIN"];
    let Some(output) = feed_under_strace(&options, &arguments, &with_spool) else { return };
    let told = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && !errors.contains("panicked"), "{errors}");
    assert_eq!(told, "0 spooled\n1 spooled\n2 spooled\n");
    assert_eq!(place.lines("example.com").len(), 3);
    let Some(output) = feed_under_strace(&options, &arguments, &url) else { return };
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.lines().count() == 3 && told.lines().all(|line| line.contains("error No")), "{told}");
}

/// Broken, a call that nobody waits for would hammer the service for its retries.
#[tokio::test]
async fn a_future_that_is_dropped_begins_no_further_attempt() {
    let stub = Stub::start(|_| AWAY);
    let client = quick(&stub.url).retries(10_000).backoff(Duration::from_millis(10)).build().unwrap();
    {
        let event = event(0);
        let call = client.send_one_async(&event);
        assert!(tokio::time::timeout(Duration::from_millis(300), call).await.is_err());
    }
    let made = stub.requests().len();
    assert!(made > 0);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let later = stub.requests().len();
    assert!(later <= made + 1, "{made}, then {later}");
}

/// Broken, one domain that is refused would keep all others from being delivered.
#[test]
fn a_flush_goes_on_behind_a_domain_that_fails() {
    let place = Place::new();
    let stub = Stub::start(|_| AWAY);
    let client =
        ProducerClient::builder(&stub.url).spool(place.spool()).backoff(Duration::ZERO).retries(1).build().unwrap();
    for (n, domain) in ["a.example", "b.example", "c.example", "d.example"].iter().enumerate() {
        client.send_one(&json!({"domain": domain, "n": n})).unwrap();
    }
    stub.forget();
    stub.answer(|request| match request.path.as_str() {
        "/v1/ingest?domain=a.example" => (403, "{\"detail\":\"forbidden\"}"),
        "/v1/ingest?domain=c.example" => (500, "{\"detail\":\"storage error\"}"),
        _ => OK,
    });
    let error = client.flush().unwrap_err();
    assert_eq!((error.acknowledged(), error.retryable(), error.written()), (2, true, Written::Maybe), "{error}");
    let told = error.to_string();
    assert!(told.contains("a.example: ") && told.contains("forbidden") && told.contains("c.example: "), "{told}");
    let failed: Vec<_> = error.failed_domains().map(|(domain, _)| domain).collect();
    assert_eq!(failed, ["a.example", "c.example"]);
    assert!(place.lines("b.example").is_empty() && place.lines("d.example").is_empty());
    assert!(place.lines("a.example").len() == 1 && place.lines("c.example").len() == 1);
}

/// Broken, name lookups of many calls at once would wait for each other until their time is over.
#[tokio::test]
async fn many_calls_by_host_name_all_get_through() {
    let place = Place::new();
    let stub = Stub::start(|_| OK);
    let url = stub.url.replace("127.0.0.1", "localhost");
    let client = quick(url).spool(place.spool()).timeout(Duration::from_secs(5)).build().unwrap();
    let began = Instant::now();
    let events: Vec<_> = (0..1_400).map(event).collect();
    let calls = events.iter().map(|event| client.deliver_async(event));
    let results = futures_util::future::join_all(calls).await;
    let sent = results.iter().filter(|result| matches!(result, Ok(Delivery::Sent))).count();
    assert_eq!(sent, 1_400, "after {:?}", began.elapsed());
}

/// Broken, a feed of several domains, or with an event that names none, would be cut off in the middle.
#[test]
fn a_feed_of_several_domains_goes_to_each() {
    let stub = Stub::start(|request| {
        // As the service does: a request names its domain, and no event another one.
        let Some((_, domain)) = request.path.split_once("?domain=") else { return (400, "{\"detail\":\"domain\"}") };
        let fits = |line: &str| {
            let event: serde_json::Value = serde_json::from_str(line).unwrap();
            event["domain"].as_str().is_none_or(|named| named == domain)
        };
        if request.text().lines().all(fits) { OK } else { (400, "{\"detail\":\"domain mismatch\"}") }
    });
    let client = ProducerClient::builder(&stub.url).batch_events(1000).retries(0).build().unwrap();
    let feed = (0..2_500u64).map(|n| match n {
        0..=999 => json!({"n": n, "domain": "a.example"}),
        1_000..=1_999 => json!({"n": n}),
        _ => json!({"n": n, "domain": if n % 100 < 50 { "a.example" } else { "b.example" }}),
    });
    assert_eq!(client.deliver_iter(feed).unwrap().sent, 2_500);
    assert_eq!(stub.numbers(), (0..2_500).collect::<Vec<_>>());
    // A client with a domain takes no other, and sends nothing of that request.
    stub.forget();
    let client = quick(&stub.url).build().unwrap();
    let error = client.send_iter([json!({"n": 1}), json!({"n": 2, "domain": "b.example"})]).unwrap_err();
    assert!(error.to_string().contains("b.example") && error.unsent() == 2, "{error}");
    assert!(stub.requests().is_empty());
}
