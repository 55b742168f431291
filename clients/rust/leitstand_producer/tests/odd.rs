//! Servers of old, and files in a spool that no client has put there.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use leitstand_producer::{Delivery, Kind, ProducerClient, ProducerError};

use support::{AWAY, HANG_UP, OK, Request, Stub, event, quick};

const NOT_FOUND: (u16, &str) = (404, "{\"detail\":\"Not Found\"}");
const UNSUPPORTED: (u16, &str) = (415, "{\"detail\":\"unsupported content-type\"}");
const REFUSED: (u16, &str) = (422, "{\"detail\":\"no\"}");
const JSON: Option<&str> = Some("application/json");

fn targets(stub: &Stub) -> Vec<String> {
    stub.requests().into_iter().map(|request| request.path).collect()
}

fn is_json(request: &Request) -> bool {
    request.header("content-type") == JSON
}

/// Broken, a server from before `/v1` would get nothing from this client, and from others everything.
#[test]
fn a_server_of_old_gets_documents_on_its_own_path() {
    let stub = Stub::start(|request| match request.path.as_str() {
        "/ingest/example.com" if is_json(request) => OK,
        _ => NOT_FOUND,
    });
    let client = quick(&stub.url).retries(0).build().unwrap();
    client.send_iter((0..3).map(event)).unwrap();
    client.send_one(&event(3)).unwrap();
    let requests = stub.requests();
    let old = "/ingest/example.com";
    assert_eq!(targets(&stub), ["/v1/ingest?domain=example.com", old, old]);
    assert_eq!(requests[1].text(), "[{\"n\":0},{\"n\":1},{\"n\":2}]");
    assert_eq!(requests[2].text(), "{\"n\":3}");
    // It was replaced by one of today, that no longer has the path.
    stub.answer(|request| if request.path.starts_with("/v1/") { OK } else { NOT_FOUND });
    stub.forget();
    client.send_one(&event(4)).unwrap();
    client.send_one(&event(5)).unwrap();
    assert_eq!(targets(&stub), [old, "/v1/ingest?domain=example.com", "/v1/ingest?domain=example.com"]);
    // A wrong address is still told.
    stub.answer(|_| NOT_FOUND);
    stub.forget();
    assert_eq!(client.send_one(&event(6)).unwrap_err().status(), Some(404));
    assert_eq!(targets(&stub).len(), 2);
    // Where nobody has named a domain there is no such path.
    stub.forget();
    let nameless = ProducerClient::builder(&stub.url).token("t").retries(0).build().unwrap();
    assert_eq!(nameless.send_one(&event(7)).unwrap_err().status(), Some(404));
    assert_eq!(targets(&stub), ["/v1/ingest"]);
}

/// Broken, a server that reads JSON documents only would refuse every feed.
#[test]
fn a_server_without_ndjson_gets_arrays() {
    let stub = Stub::start(|request| if is_json(request) { OK } else { UNSUPPORTED });
    let client = quick(&stub.url).retries(0).build().unwrap();
    client.send_iter((0..3).map(event)).unwrap();
    client.send_iter((3..5).map(event)).unwrap();
    let texts: Vec<_> = stub.requests().iter().skip(1).map(|request| request.text().to_owned()).collect();
    assert_eq!(texts, ["[{\"n\":0},{\"n\":1},{\"n\":2}]", "[{\"n\":3},{\"n\":4}]"]);
    // One event is a document anyhow, so its 415 is about something else.
    stub.answer(|_| UNSUPPORTED);
    stub.forget();
    assert_eq!(client.send_one(&event(5)).unwrap_err().status(), Some(415));
    assert_eq!(stub.requests().len(), 1);
}

/// Broken, an event that may be stored would be sent once more to another path, as if it were not.
#[test]
fn what_may_be_stored_is_not_sent_to_another_path() {
    let stub = Stub::start(|request| if request.path.starts_with("/v1/") { HANG_UP } else { OK });
    let client = quick(&stub.url).retries(0).build().unwrap();
    client.send_one(&event(0)).unwrap_err();
    assert_eq!(targets(&stub), ["/v1/ingest?domain=example.com"]);
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        fs::create_dir_all(place.domain()).unwrap();
        fs::write(place.0.path().join("spool/leitstand-spool-1"), "").unwrap();
        place
    }

    fn domain(&self) -> PathBuf {
        self.0.path().join("spool/example.com")
    }

    fn client(&self, stub: &Stub) -> ProducerClient {
        quick(&stub.url).backoff(Duration::ZERO).retries(0).spool(self.0.path().join("spool")).build().unwrap()
    }

    fn write(&self, n: u64) -> String {
        let name = format!("{n:023}-0000000001-000001.ndjson");
        fs::write(self.domain().join(&name), format!("{{\"n\":{n}}}\n")).unwrap();
        name
    }
}

fn names(directory: &Path) -> BTreeSet<String> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn kind(error: &ProducerError) -> Kind {
    match error {
        ProducerError::Http(error) => error.kind(),
        ProducerError::Json(_) => panic!("{error}"),
    }
}

/// Broken, one event that is refused and cannot be put aside would hold up a domain for ever.
#[test]
fn what_is_stuck_holds_nothing_up_and_is_tried_again_by_a_flush() {
    let place = Place::new();
    let name = place.write(1);
    place.write(2);
    fs::write(place.domain().join("rejected"), "").unwrap();
    let refuse = |request: &Request| if request.numbers().contains(&1) { REFUSED } else { OK };
    let stub = Stub::start(refuse);
    let client = place.client(&stub);
    let error = client.flush().unwrap_err();
    assert_eq!(kind(&error), Kind::Spool);
    let told = error.to_string();
    for text in ["LEITSTAND_SPOOL", &format!("example.com/{name}"), "example.com/rejected", "422"] {
        assert!(told.contains(text), "{text}: {told}");
    }
    assert_eq!(error.acknowledged(), 1);
    // A call does not try it again, and is not held up by it.
    stub.forget();
    assert_eq!(client.deliver(&event(3)).unwrap(), Delivery::Sent);
    assert_eq!(stub.numbers(), [3]);
    // Another process learns of it with its first call.
    stub.forget();
    let other = place.client(&stub);
    assert_eq!(other.deliver(&event(4)).unwrap(), Delivery::Sent);
    assert_eq!(stub.numbers(), [1, 4]);
    // Events go behind it, and out again.
    stub.answer(|_| AWAY);
    assert_eq!(client.deliver(&event(5)).unwrap(), Delivery::Spooled);
    stub.answer(refuse);
    stub.forget();
    assert_eq!(client.deliver(&event(6)).unwrap(), Delivery::Sent);
    assert_eq!(stub.numbers(), [5, 6]);
    fs::remove_file(place.domain().join("rejected")).unwrap();
    assert_eq!(client.flush().unwrap().rejected, 1);
    assert!(place.domain().join("rejected").join(name).exists());
}

/// Broken, a process that was stopped in the middle would stop every other that shares its spool.
#[test]
fn nobody_waits_for_ever_for_the_last_number() {
    let place = Place::new();
    let first = place.write(u64::MAX);
    let stub = Stub::start(|_| AWAY);
    let held = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(place.domain().join("last")).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let client = place.client(&stub);
    let began = Instant::now();
    assert_eq!(client.deliver(&event(2)).unwrap(), Delivery::Spooled);
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    // The names decide then.
    let last = names(&place.domain()).into_iter().rfind(|name| name.ends_with(".ndjson")).unwrap();
    assert!(last > first, "{last}");
}

/// Broken, something with an odd name would stop the delivery of its domain, or be lost.
#[test]
fn what_was_left_over_is_removed_if_it_is_ours() {
    let place = Place::new();
    place.write(1);
    fs::create_dir(place.domain().join("rejected")).unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(3700);
    let ours = ["tmp-4711-1", "rejected/tmp-4711-2"];
    let foreign = ["tmp-", "tmp-x", "tmp-1", "tmp-1-2-3", "tmp-1-x", "tmp-1-2.ndjson"];
    for name in ours.iter().chain(&foreign) {
        fs::write(place.domain().join(name), "x").unwrap();
        fs::File::open(place.domain().join(name)).unwrap().set_modified(long_ago).unwrap();
    }
    fs::create_dir(place.domain().join("tmp-5-5")).unwrap();
    fs::File::open(place.domain().join("tmp-5-5")).unwrap().set_modified(long_ago).unwrap();
    let stub = Stub::start(|_| OK);
    assert_eq!(place.client(&stub).flush().unwrap().delivered, 1);
    let left = names(&place.domain());
    for name in foreign.iter().chain(&["tmp-5-5"]) {
        assert!(left.contains(*name), "{name}: {left:?}");
    }
    assert!(!left.contains(ours[0]) && !place.domain().join(ours[1]).exists(), "{left:?}");
}
