//! The spool: what is in it is on disk, in order, and comes out once, whoever shares it.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use leitstand_producer::{Delivery, Kind, ProducerClient, ProducerError, Written};
use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use support::{AWAY, Event, HANG_UP, OK, Random, Service, Stub, event, feed, leitstand, quick, wait_for};

const REFUSED: (u16, &str) = (422, "{\"detail\":\"summary too long\"}");
const UNAUTHORIZED: (u16, &str) = (401, "{\"detail\":\"unauthorized\"}");

/// A spool in a directory that goes with the test.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Place {
        Place { dir: tempfile::tempdir().unwrap() }
    }

    fn spool(&self) -> PathBuf {
        self.dir.path().join("spool")
    }

    fn domain(&self) -> PathBuf {
        self.spool().join("example.com")
    }

    fn client(&self, stub: &Stub) -> ProducerClient {
        self.client_with_backoff(stub, Duration::ZERO)
    }

    fn client_with_backoff(&self, stub: &Stub, backoff: Duration) -> ProducerClient {
        quick(&stub.url).spool(self.spool()).backoff(backoff).build().unwrap()
    }

    /// A file as another library would write it.
    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::create_dir_all(self.domain()).unwrap();
        fs::write(self.spool().join("leitstand-spool-1"), "").unwrap();
        fs::write(self.domain().join(name), content).unwrap();
    }
}

/// Names and contents of the files in a directory. What goes while it looks (a `tmp-` file gets its name) is not
/// there.
fn files(directory: &Path) -> BTreeMap<String, String> {
    let Ok(entries) = fs::read_dir(directory) else { return BTreeMap::new() };
    let entries =
        entries.map(|entry| entry.unwrap()).filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    entries
        .filter(|entry| entry.file_name() != "lock" && entry.file_name() != "last")
        .filter_map(|entry| match fs::read_to_string(entry.path()) {
            Ok(content) => Some((entry.file_name().into_string().unwrap(), content)),
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            Err(e) => panic!("{}: {e}", entry.path().display()),
        })
        .collect()
}

/// A file that was shortened in its place has empty lines.
fn numbers(files: &BTreeMap<String, String>) -> Vec<u64> {
    let number = |line| serde_json::from_str::<serde_json::Value>(line).unwrap()["n"].as_u64().unwrap();
    files
        .iter()
        .filter(|(name, _)| name.ends_with(".ndjson"))
        .flat_map(|(_, text)| text.lines().filter(|line| !line.is_empty()).map(number))
        .collect()
}

fn kind(error: &ProducerError) -> Kind {
    match error {
        ProducerError::Http(error) => error.kind(),
        ProducerError::Json(error) => panic!("{error}"),
    }
}

/// Broken, other libraries could not deliver what this one has spooled, or events would change their order.
#[test]
fn what_could_not_be_delivered_waits_in_the_format_and_goes_out_in_order() {
    let place = Place::new();
    let stub = Stub::start(|_| AWAY);
    let client = place.client(&stub);
    for n in 0..3 {
        assert_eq!(client.deliver(&event(n)).unwrap(), Delivery::Spooled);
    }
    let summary = client.deliver_iter((3..1_503).map(event)).unwrap();
    assert_eq!((summary.sent, summary.spooled), (0, 1_500));
    client.send_one(&event(1_503)).unwrap();

    let spooled = files(&place.domain());
    assert_eq!(numbers(&spooled), (0..1_504).collect::<Vec<_>>(), "names sort in the order of the calls");
    assert_eq!(spooled.len(), 5, "one file for each request");
    for name in spooled.keys() {
        let parts: Vec<_> = name.strip_suffix(".ndjson").unwrap().split('-').map(str::len).collect();
        assert_eq!(parts, [23, 10, 6], "{name}");
        let mode = fs::metadata(place.domain().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    assert_eq!(files(&place.spool()), BTreeMap::from([("leitstand-spool-1".to_owned(), String::new())]));
    assert_eq!(fs::metadata(place.domain()).unwrap().permissions().mode() & 0o777, 0o700);
    let everything = Command::new("grep").args(["-r", "test-token"]).arg(place.spool()).output().unwrap();
    assert!(everything.stdout.is_empty(), "the token is not in the spool");

    // The next call delivers what is there first.
    stub.forget();
    stub.answer(|_| OK);
    assert_eq!(client.deliver(&event(1_504)).unwrap(), Delivery::Sent);
    assert_eq!(stub.numbers(), (0..1_505).collect::<Vec<_>>());
    let sizes: Vec<_> = stub.requests().iter().map(|request| request.numbers().len()).collect();
    assert_eq!(sizes, [1_504, 1], "neighbours go together");
    assert!(files(&place.domain()).is_empty());
    assert_eq!(client.flush().unwrap().delivered, 0);
}

/// Broken, a service that is away would be asked with every event, and each would wait for it.
#[test]
fn after_a_failure_nobody_tries_for_the_backoff() {
    let place = Place::new();
    let stub = Stub::start(|_| AWAY);
    let client = place.client_with_backoff(&stub, Duration::from_secs(3600));
    for n in 0..5 {
        assert_eq!(client.clone().deliver(&event(n)).unwrap(), Delivery::Spooled);
    }
    assert_eq!(stub.requests().len(), 1);
    // Whoever asks for it gets a try at once.
    stub.answer(|_| OK);
    assert_eq!(client.flush().unwrap().delivered, 5);
    assert_eq!(client.deliver(&event(5)).unwrap(), Delivery::Sent);
}

/// Broken, calls would hammer a service that has asked for a longer pause than the client's own.
#[test]
fn nobody_tries_for_as_long_as_the_service_asked() {
    let place = Place::new();
    let stub = Stub::start(|_| (429, ""));
    stub.retry_after(Duration::from_secs(60));
    let client = place.client(&stub);
    for n in 0..3 {
        assert_eq!(client.deliver(&event(n)).unwrap(), Delivery::Spooled);
    }
    assert_eq!(stub.requests().len(), 1);
}

/// Broken, a short outage would make a flush fail that somebody waits for.
#[test]
fn a_flush_makes_as_many_attempts_as_a_call_without_a_spool() {
    let place = Place::new();
    let stub = Stub::start(|_| AWAY);
    let client = quick(&stub.url).spool(place.spool()).backoff(Duration::ZERO).retries(2).build().unwrap();
    assert_eq!(client.deliver(&event(0)).unwrap(), Delivery::Spooled);
    assert_eq!(stub.requests().len(), 1, "a call makes one");
    stub.forget();
    assert_eq!(client.flush().unwrap_err().status(), Some(503));
    assert_eq!(stub.requests().len(), 3);
    assert_eq!(numbers(&files(&place.domain())), [0]);
}

/// Broken, a wrong token would fill the disk, or events would be dropped without a word.
#[test]
fn a_final_answer_is_an_error_and_keeps_what_is_there() {
    let place = Place::new();
    let stub = Stub::start(|_| UNAUTHORIZED);
    let client = place.client(&stub);
    let error = client.send_one(&event(0)).unwrap_err();
    assert_eq!((error.status(), error.failed()), (Some(401), 1));
    assert!(files(&place.domain()).is_empty());

    stub.answer(|_| AWAY);
    client.send_iter([event(1), event(2)]).unwrap();
    stub.answer(|_| UNAUTHORIZED);
    assert_eq!(client.flush().unwrap_err().status(), Some(401));
    let error = client.send_one(&event(3)).unwrap_err();
    assert_eq!((error.status(), error.written()), (Some(401), Written::No));
    assert_eq!(numbers(&files(&place.domain())), [1, 2], "what is spooled stays, the event of the call is not");
}

/// Broken, one refused event would hold up all others for ever, or be gone without a trace.
#[test]
fn what_is_refused_alone_is_put_aside_with_the_answer() {
    let place = Place::new();
    let stub = Stub::start(|_| AWAY);
    let client = place.client(&stub);
    client.send_one(&event(0)).unwrap();
    client.send_one(&event(13)).unwrap();
    client.send_iter((20..30).map(event)).unwrap();
    client.send_one(&event(30)).unwrap();
    stub.forget();
    stub.answer(|request| if request.numbers().iter().any(|n| [13, 22, 27].contains(n)) { REFUSED } else { OK });
    let report = client.flush().unwrap();
    assert_eq!((report.delivered, report.rejected, report.broken), (10, 3, 0));
    assert!(files(&place.domain()).is_empty());
    let rejected = files(&place.domain().join("rejected"));
    assert_eq!(numbers(&rejected), [13, 22, 27]);
    let reasons: Vec<_> = rejected.iter().filter(|(name, _)| name.ends_with(".ndjson.reason")).collect();
    assert_eq!(reasons.len(), 2);
    assert_eq!(reasons[1].1.lines().count(), 2, "an answer for each event");
    assert!(reasons[0].1.contains("422") && reasons[0].1.contains("summary too long"), "{reasons:?}");
    // A call that meets refused events of others does not fail; the next flush tells.
    stub.answer(|_| AWAY);
    client.send_one(&event(13)).unwrap();
    stub.answer(|request| if request.numbers().contains(&13) { REFUSED } else { OK });
    assert_eq!(client.deliver(&event(14)).unwrap(), Delivery::Sent);
    assert_eq!(client.flush().unwrap().rejected, 1);
    assert_eq!(client.flush().unwrap().rejected, 0);
}

/// Broken, events that are delivered would be sent again after a delivery event by event was cut short.
#[test]
fn a_delivery_event_by_event_that_is_cut_short_goes_on_where_it_was() {
    let place = Place::new();
    let stub = Stub::start(|_| AWAY);
    let client = place.client(&stub);
    client.send_iter((0..6).map(event)).unwrap();
    stub.answer(|request| match request.numbers()[..] {
        [1] => REFUSED,
        [3] => AWAY,
        [_] => OK,
        _ => REFUSED,
    });
    stub.forget();
    assert_eq!(client.flush().unwrap_err().status(), Some(503));
    assert_eq!(numbers(&files(&place.domain())), [3, 4, 5]);
    stub.answer(|_| OK);
    let report = client.flush().unwrap();
    assert_eq!((report.delivered, report.rejected), (3, 1));
    assert_eq!(numbers(&files(&place.domain().join("rejected"))), [1]);
}

fn refuse_odd_ones(stub: &Stub) {
    stub.answer(|request| if request.numbers().iter().any(|n| n % 2 == 1) { REFUSED } else { OK });
}

/// Broken, what was acknowledged would be sent again with every flush, because its neighbour was refused.
#[test]
fn a_refused_event_that_cannot_be_put_aside_stays_alone() {
    let place = Place::new();
    let stub = Stub::start(|_| AWAY);
    place.client(&stub).send_iter((0..5).map(event)).unwrap();
    fs::write(place.domain().join("rejected"), "").unwrap();
    refuse_odd_ones(&stub);
    stub.forget();
    for _ in 0..3 {
        // Each with a memory of its own, as processes have.
        let error = place.client(&stub).flush().unwrap_err();
        assert_eq!((kind(&error), error.written()), (Kind::Spool, Written::No));
    }
    let acknowledged = |stub: &Stub| -> Vec<u64> {
        stub.requests()
            .iter()
            .map(|request| request.numbers())
            .filter(|n| n.iter().all(|n| n % 2 == 0))
            .flatten()
            .collect()
    };
    assert_eq!(acknowledged(&stub), [0, 2, 4]);
    assert_eq!(numbers(&files(&place.domain())), [1, 3], "{:?}", files(&place.domain()));
    fs::remove_file(place.domain().join("rejected")).unwrap();
    assert_eq!(place.client(&stub).flush().unwrap().rejected, 2);
    assert_eq!(numbers(&files(&place.domain().join("rejected"))), [1, 3]);
    assert_eq!(acknowledged(&stub), [0, 2, 4]);
}

/// Mounts a small disk, if that is allowed, and unmounts it.
struct Disk(PathBuf);

impl Disk {
    fn mount(path: PathBuf) -> Option<Disk> {
        fs::create_dir_all(&path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(&path).stderr(Stdio::null());
        mount.status().is_ok_and(|status| status.success()).then_some(Disk(path))
    }

    /// Leaves no room.
    fn fill(&self) {
        let mut file = fs::File::create(self.0.join("full")).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// Broken, a full disk would double events, or block what is behind a refused one.
#[test]
fn a_full_disk_neither_doubles_nor_blocks() {
    let place = Place::new();
    let stub = Stub::start(|_| AWAY);
    let Some(disk) = Disk::mount(place.spool()) else {
        eprintln!("skipped: needs the right to mount a small tmpfs");
        return;
    };
    let client = place.client(&stub);
    client.send_iter((0..5).map(event)).unwrap();
    client.send_one(&event(5)).unwrap();
    client.send_iter((6..11).map(event)).unwrap();
    disk.fill();
    stub.answer(|request| match request.numbers()[..] {
        [8] => UNAUTHORIZED,
        [n] if n % 2 == 0 => OK,
        _ => REFUSED,
    });
    stub.forget();
    let error = place.client(&stub).flush().unwrap_err();
    assert_eq!((error.status(), error.written()), (Some(401), Written::No), "{error}");
    assert!(error.to_string().contains("LEITSTAND_SPOOL"), "{error}");
    assert_eq!(numbers(&files(&place.domain())), [7, 8, 9, 10]);
    refuse_odd_ones(&stub);
    disk.fill();
    let report = place.client(&stub).flush().unwrap();
    assert_eq!((report.delivered, report.rejected), (2, 2));
    assert!(files(&place.domain()).is_empty());
    let acknowledged: Vec<_> = stub
        .requests()
        .iter()
        .map(|request| request.numbers())
        .filter(|n| n.iter().all(|n| n % 2 == 0))
        .flatten()
        .collect();
    assert_eq!(acknowledged, [0, 2, 4, 6, 8, 8, 10], "8 was not acknowledged at first");
    assert_eq!(BTreeSet::from_iter(numbers(&files(&place.domain().join("rejected")))), BTreeSet::from([1, 3, 5, 7, 9]));
}

/// Broken, a flush would wait for ever for somebody at the other end of a pipe.
#[test]
fn what_is_no_regular_file_is_left_alone() {
    let pipe = |path: PathBuf| assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    let name = |n: u64| format!("{n:023}-0000000001-000001.ndjson");
    let flush = |place: &Place, stub: &Stub| {
        let (client, (told, outcome)) = (place.client(stub), std::sync::mpsc::channel());
        std::thread::spawn(move || told.send(client.flush()));
        outcome.recv_timeout(Duration::from_secs(20)).expect("it waits for ever")
    };
    let stub = Stub::start(|_| OK);
    let place = Place::new();
    place.write(&name(2), "{\"n\":2}\n");
    pipe(place.domain().join(name(1)));
    std::os::unix::fs::symlink("/dev/null", place.domain().join(name(3))).unwrap();
    fs::create_dir(place.domain().join(name(4))).unwrap();
    assert_eq!(flush(&place, &stub).unwrap().delivered, 1);
    assert!([1, 3, 4].iter().all(|n| fs::symlink_metadata(place.domain().join(name(*n))).is_ok()));
    assert_eq!(place.client(&stub).deliver(&event(5)).unwrap(), Delivery::Sent);

    for at in ["lock", "leitstand-spool-1"] {
        let place = Place::new();
        place.write(&name(2), "{\"n\":2}\n");
        let path = if at == "lock" { place.domain().join(at) } else { place.spool().join(at) };
        let _ = fs::remove_file(&path);
        pipe(path);
        let told = flush(&place, &stub).unwrap_err().to_string();
        assert!(told.contains(at) && told.contains("no regular file"), "{told}");
    }
    let place = Place::new();
    place.write(&name(2), "{\"n\":2}\n");
    pipe(place.domain().join("last"));
    stub.answer(|_| AWAY);
    assert_eq!(place.client(&stub).deliver(&event(3)).unwrap(), Delivery::Spooled);
    assert_eq!(numbers(&files(&place.domain())), [2, 3]);
}

/// Broken, files that other libraries wrote would be left, come in another order, or stop the rest.
#[test]
fn files_written_by_others_are_delivered_and_what_is_no_events_is_set_aside() {
    let place = Place::new();
    let name = |nanos: u64, pid: u32| format!("{nanos:023}-{pid:010}-000001.ndjson");
    place.write(&name(30, 1), "{\"n\":3}\n{\"n\": 4}\n");
    place.write(&name(5, 4_000_000_000), "{\"n\":1,\"text\":\"\u{fc}\\n\"}\n");
    place.write(&name(30, 2), "{\"n\":5}\n");
    place.write(&name(6, 1), "{\"n\":2}\n");
    for (at, bad) in ["", "\n", "{\"n\":9}", "{\"n\":9}\n\n", "{\"n\":9}\n[]\n", "{\"n\":9"].iter().enumerate() {
        place.write(&name(10 + at as u64, 9), bad);
    }
    place.write("tmp-9-1", "{\"n\":8}\n");
    place.write("tmp-9-2", "{\"n\":8");
    let old = fs::File::open(place.domain().join("tmp-9-2")).unwrap();
    old.set_modified(std::time::SystemTime::now() - Duration::from_secs(3700)).unwrap();
    let stub = Stub::start(|_| OK);
    let report = place.client(&stub).flush().unwrap();
    // The lines that are events are delivered: three of the six files have one.
    assert_eq!((report.delivered, report.rejected, report.broken), (8, 0, 4));
    assert_eq!(stub.numbers(), [1, 2, 9, 9, 9, 3, 4, 5]);
    assert_eq!(files(&place.domain().join("broken")).len(), 4);
    assert_eq!(files(&place.domain()).into_keys().collect::<Vec<_>>(), ["tmp-9-1"], "the old one is removed");
}

/// Broken, two processes would deliver the same events at once.
#[test]
fn whoever_does_not_get_the_lock_only_puts_events_behind() {
    let place = Place::new();
    let stub = Stub::start(|_| AWAY);
    let client = place.client(&stub);
    client.send_one(&event(0)).unwrap();
    stub.answer(|_| OK);
    stub.forget();
    let lock = fs::File::create(place.domain().join("lock")).unwrap();
    flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    assert_eq!(client.deliver(&event(1)).unwrap(), Delivery::Spooled);
    let report = client.flush().unwrap();
    assert_eq!((report.delivered, report.held_elsewhere), (0, 1));
    assert!(stub.requests().is_empty());
    drop(lock);
    assert_eq!(client.deliver(&event(2)).unwrap(), Delivery::Sent);
    assert_eq!(stub.numbers(), [0, 1, 2]);
}

/// Broken, a spool would fill the disk, or an event that is nowhere would be told as safe.
#[test]
fn a_full_spool_is_an_error_and_the_event_is_not_there() {
    let place = Place::new();
    let stub = Stub::start(|_| HANG_UP);
    place.write("broken-size", "");
    fs::create_dir_all(place.domain().join("broken")).unwrap();
    fs::write(place.domain().join("broken/x.ndjson"), "x".repeat(60)).unwrap();
    let client = quick(&stub.url).spool(place.spool()).spool_max_bytes(100).backoff(Duration::ZERO).build().unwrap();
    // 8 bytes an event, 60 are taken.
    for n in 0..5 {
        assert_eq!(client.deliver(&event(n)).unwrap(), Delivery::Spooled);
    }
    let error = client.send_one(&event(5)).unwrap_err();
    assert_eq!((kind(&error), error.written()), (Kind::Spool, Written::No), "those before it came first");
    assert!(error.to_string().contains("LEITSTAND_SPOOL") && error.to_string().contains("full"), "{error}");
    assert_eq!(numbers(&files(&place.domain())), [0, 1, 2, 3, 4]);
    // Its own attempt, and then no room.
    let alone = quick(&stub.url).spool(place.dir.path().join("tiny")).spool_max_bytes(7).build().unwrap();
    let error = alone.send_one(&event(5)).unwrap_err();
    assert_eq!((kind(&error), error.written()), (Kind::Spool, Written::Maybe));
    let error = client.send_iter((6..9).map(event)).unwrap_err();
    assert_eq!((error.acknowledged(), error.spooled(), error.failed()), (0, 0, 3));
    stub.answer(|_| OK);
    assert_eq!(client.flush().unwrap().delivered, 5);
    stub.answer(|_| AWAY);
    assert_eq!(client.deliver(&event(9)).unwrap(), Delivery::Spooled);
}

/// Broken, a disk that takes no bytes would leave half a file with a name that counts.
#[test]
fn a_spool_that_cannot_be_written_is_an_error_and_leaves_nothing() {
    let place = Place::new();
    place.write("tmp-1-1", "");
    let mut command = Command::new("sh");
    // No file may grow; the signal for it is left out, as in a program that is prepared for it.
    command.args(["-c", "trap '' XFSZ; ulimit -f 0; exec \"$0\" example.com 0 3"]).arg(feed().get_program());
    command.env("LEITSTAND_URL", "http://127.0.0.1:1").env("LEITSTAND_SPOOL", place.spool());
    let output = command.output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert_eq!(told.lines().count(), 3, "{told} {}", String::from_utf8_lossy(&output.stderr));
    assert!(told.lines().all(|line| line.contains("error No") && line.contains("LEITSTAND_SPOOL")), "{told}");
    assert_eq!(files(&place.domain()).into_keys().collect::<Vec<_>>(), ["tmp-1-1"]);
    // A file where the directory should be.
    let other = place.dir.path().join("file");
    fs::write(&other, "").unwrap();
    let client = quick("http://127.0.0.1:1").retries(0).spool(&other).build().unwrap();
    for error in [client.send_one(&event(0)).unwrap_err(), client.flush().unwrap_err()] {
        assert!(error.to_string().contains("LEITSTAND_SPOOL") && kind(&error) == Kind::Spool, "{error}");
    }
}

/// Broken, the events of one domain would be delivered to another, or a name could lead out of the spool.
#[test]
fn the_domain_of_a_spooled_call_is_known_before() {
    let place = Place::new();
    let stub = Stub::start(|_| AWAY);
    let builder = || ProducerClient::builder(&stub.url).spool(place.spool()).backoff(Duration::ZERO);
    let client = builder().build().unwrap();
    for bad in ["../../etc", "a/b", ""] {
        let error = client.send_one(&serde_json::json!({"domain": bad})).unwrap_err();
        assert!(error.to_string().contains("domain"), "{error}");
    }
    client.send_one(&event(0)).unwrap_err();
    assert!(stub.requests().is_empty());
    client.send_one(&serde_json::json!({"n": 1, "domain": " One.Example "})).unwrap();
    assert_eq!(numbers(&files(&place.spool().join("one.example"))), [1]);
    stub.answer(|_| OK);
    stub.forget();
    // Another domain does not wait for it.
    client.send_one(&serde_json::json!({"n": 2, "domain": "two.example"})).unwrap();
    assert_eq!(client.flush().unwrap().delivered, 1);
    let paths: Vec<_> = stub.requests().iter().map(|request| request.path.clone()).collect();
    assert_eq!(paths, ["/v1/ingest?domain=two.example", "/v1/ingest?domain=one.example"]);
}

/// Broken, async callers would meet another spool than blocking ones.
#[tokio::test]
async fn the_async_functions_spool_as_well() {
    let place = Place::new();
    let stub = Stub::start(|_| AWAY);
    let client = place.client(&stub);
    assert_eq!(client.deliver_async(&event(0)).await.unwrap(), Delivery::Spooled);
    let events: Vec<Event> = (1..5).map(event).collect();
    let summary = client.deliver_iter_async(futures_util::stream::iter(events)).await.unwrap();
    assert_eq!((summary.sent, summary.spooled), (0, 4));
    stub.answer(|_| OK);
    stub.forget();
    assert_eq!(client.flush_async().await.unwrap().delivered, 5);
    assert_eq!(stub.numbers(), [0, 1, 2, 3, 4]);
}

/// Broken, a producer that dies would take events with it that it had called safe, or leave a file that
/// nobody can deliver; or two producers would lose or double events of each other.
///
/// Two producers and a process that only flushes share a spool with the real service, are killed at any point and
/// started again.
#[test]
fn what_killed_producers_called_safe_arrives() {
    let Some(binary) = leitstand() else { return };
    let place = Place::new();
    let mut random = Random::new();
    let mut service = Service::new(binary, place.dir.path());
    let mut safe: Vec<u64> = Vec::new();
    let mut kills = 0;
    for round in 0..if std::env::var_os("LEITSTAND_LONG").is_some() { 170 } else { 8u64 } {
        // Away in every other round, so that there is something in the spool.
        if round % 2 == 1 {
            service.start(&[("LEITSTAND_FSYNC", "never")]);
        }
        let start = |arguments: &[&str]| {
            let mut command = feed();
            command.arg("example.com").args(arguments).stderr(Stdio::null());
            command.env("LEITSTAND_URL", service.url()).env("LEITSTAND_SPOOL", place.spool());
            command.env("LEITSTAND_BACKOFF", "0.01").env("LEITSTAND_RETRIES", "0").spawn().unwrap()
        };
        let mut flusher = start(&["flush"]);
        let mut children: Vec<_> = (0..2u64)
            .map(|process| {
                let first = (round * 2 + process) * 1_000_000;
                let mut child = start(&[&first.to_string(), "1000000"]);
                let out = BufReader::new(child.stdout.take().unwrap());
                let reader = std::thread::spawn(move || {
                    let lines = out.lines().map_while(Result::ok).filter(|line| !line.contains("error"));
                    lines.filter_map(|line| line.split(' ').next()?.parse::<u64>().ok()).collect::<Vec<_>>()
                });
                (child, reader)
            })
            .collect();
        std::thread::sleep(Duration::from_millis(100 + random.below(200)));
        for child in children.iter_mut().map(|(child, _)| child).chain([&mut flusher]) {
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
        }
        for (_, reader) in children {
            safe.extend(reader.join().unwrap());
        }
        service.kill();
    }
    service.start(&[("LEITSTAND_FSYNC", "never")]);
    let client = quick(service.url()).spool(place.spool()).build().unwrap();
    let report = client.flush().unwrap();
    assert_eq!((report.rejected, report.broken, report.held_elsewhere), (0, 0, 0));
    assert!(numbers(&files(&place.domain())).is_empty());
    // A request that is sent again is a run of events that were there before.
    let (mut seen, mut doubled, mut runs, mut in_run) = (BTreeSet::new(), 0, 0, false);
    for n in service.stored("example.com") {
        let is_known = !seen.insert(n);
        doubled += u64::from(is_known);
        runs += u64::from(is_known && !in_run);
        in_run = is_known;
    }
    let lost = safe.iter().filter(|n| !seen.contains(n)).count();
    println!(
        "{kills} kills: {} events called safe, {} stored, {lost} lost, {doubled} doubled in {runs} requests, {} at the \
         last flush",
        safe.len(),
        seen.len(),
        report.delivered
    );
    assert_eq!(lost, 0);
    assert!(safe.len() > 100, "the producers did something");
    // A kill between an answer and the removal doubles one request of the spool; so does a kill of the service.
    assert!(runs <= kills + kills / 3, "{doubled} in {runs}");
}

/// Broken, a shared spool would deliver events twice, or leave some, without any crash.
#[test]
fn two_processes_that_live_deliver_each_event_once() {
    let Some(binary) = leitstand() else { return };
    let place = Place::new();
    let mut service = Service::new(binary, place.dir.path());
    let command = |first: &str| {
        let mut command = feed();
        command.args(["example.com", first, "300"]).env("LEITSTAND_URL", service.url());
        command.env("LEITSTAND_SPOOL", place.spool()).env("LEITSTAND_BACKOFF", "0.02").spawn().unwrap()
    };
    let children = [command("0"), command("1000")];
    wait_for("something is spooled", || (!files(&place.domain()).is_empty()).then_some(()));
    service.start(&[("LEITSTAND_FSYNC", "never")]);
    for child in children {
        let out = child.wait_with_output().unwrap();
        let told = String::from_utf8(out.stdout).unwrap();
        assert!(told.lines().count() == 300 && !told.contains("error"), "{told}");
    }
    let client = quick(service.url()).spool(place.spool()).build().unwrap();
    let began = Instant::now();
    let _ = client.flush().unwrap();
    let mut stored = service.stored("example.com");
    stored.sort_unstable();
    assert_eq!(stored, (0..300).chain(1_000..1_300).collect::<Vec<_>>(), "after {:?}", began.elapsed());
}
