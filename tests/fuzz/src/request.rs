//! Whole requests, from the bytes on a socket to the lines in the files, in one process.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use leitstand::config::{Config, Source};
use leitstand::domain::Domain;
use leitstand::http::{AppState, BoundListener, ServerOptions, serve};
use leitstand::metrics::Metrics;
use leitstand::storage::{Fsync, Store, StoreOptions};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;

use super::{check_lines, current_thread};

/// Longest time for an answer; libFuzzer's own limit is shorter.
const PATIENCE: Duration = Duration::from_secs(20);
/// What the service may answer here: nothing in this process is broken, full or stopping.
const STATUSES: [u16; 17] = [100, 200, 202, 307, 400, 401, 404, 405, 408, 411, 413, 414, 415, 422, 429, 431, 501];

struct Service {
    runtime: Runtime,
    store: Store,
    dir: TempDir,
}

/// Pauses before the client ends its side. hyper gives a request up when that happens before the
/// answer; what runs on another thread meanwhile needs one.
const PAUSES_MS: [u64; 3] = [0, 20, 300];

/// Bytes as a client sends them, in one piece and in two, and behind an empty line, which means nothing
/// but makes the first request hyper's.
pub fn request(data: &[u8]) {
    static SERVICE: LazyLock<std::sync::Mutex<Service>> = LazyLock::new(|| std::sync::Mutex::new(Service::start()));
    let service = SERVICE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (head, rest) = data.split_at(data.len() / 2);
    let mut seen = [Seen::default(), Seen::default(), Seen::default()];
    for pause_ms in PAUSES_MS {
        seen = [&[data][..], &[head, rest], &[b"\r\n", data]].map(|pieces| service.send(pieces, pause_ms));
        let is_same = seen.iter().all(|one| *one == seen[0]) || seen[0].is_refused();
        if is_same && seen.iter().all(Seen::is_consistent) {
            return;
        }
    }
    if !seen[0].is_refused() {
        assert_eq!(seen[0], seen[1], "cut into pieces it is another request: {}", data.escape_ascii());
        assert_eq!(seen[0], seen[2], "read by hyper it is another request: {}", data.escape_ascii());
    }
    panic!("stored and not acknowledged: {seen:?}: {}", data.escape_ascii());
}

/// What came of some bytes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    statuses: Vec<u16>,
    /// Everything that was answered, but for figures and for ids that nobody asked for.
    answers: String,
    stored_lines: usize,
}

impl Seen {
    /// Something in it was wrong. Then it matters what was there when that was seen: an answer that the
    /// head alone decides goes out before bytes too many arrive, and a bad head that has no end yet is
    /// refused only where hyper sees it at once.
    fn is_refused(&self) -> bool {
        self.statuses.iter().any(|status| [400, 414, 431].contains(status))
    }

    fn is_consistent(&self) -> bool {
        self.stored_lines == 0 || self.statuses.iter().any(|status| [200, 202].contains(status))
    }
}

impl Service {
    fn start() -> Service {
        let dir = tempfile::Builder::new().prefix("leitstand-fuzz-").tempdir().expect("create a directory");
        let get = |name: &str| {
            let value = match name {
                "LEITSTAND_TOKEN" => "t",
                "LEITSTAND_MAX_BODY" => "4096",
                "LEITSTAND_RATE_LIMIT" | "LEITSTAND_AUTH_RATE_LIMIT" => "100000000/second",
                _ => return None,
            };
            Some(value.into())
        };
        let read = |_: &std::path::Path| Err(std::io::ErrorKind::NotFound.into());
        let config = Config::from_source(&Source { get: &get, read: &read }).expect("a good configuration");
        let runtime = current_thread();
        let metrics = Metrics::new("fuzz", "never");
        let options = StoreOptions { fsync: Fsync::Never, reserve_bytes: Some(0), ..StoreOptions::default() };
        let store = Store::open(&dir.path().join("data"), options, metrics.store()).expect("open the store");
        let state = Arc::new(AppState::new(&config, store.clone(), metrics, 64));
        let listener = {
            let _inside = runtime.enter();
            BoundListener::Unix(UnixListener::bind(dir.path().join("socket")).expect("bind"))
        };
        let options = ServerOptions { shutdown_timeout: Duration::from_secs(1), workers: Vec::new(), refusers_max: 8 };
        let kept = store.clone();
        runtime.spawn(async move {
            tokio::join!(serve(listener, state, options, std::future::pending()), store.maintain())
        });
        Service { runtime, store: kept, dir }
    }

    /// Sends the pieces, ends the sending side, and reads to the end.
    fn send(&self, pieces: &[&[u8]], pause_ms: u64) -> Seen {
        let answer = self.runtime.block_on(async {
            let stream = UnixStream::connect(self.dir.path().join("socket")).await.expect("connect");
            let (mut from, mut to) = stream.into_split();
            let write = async {
                for piece in pieces {
                    // Who is refused may find the connection closed before all is sent.
                    let _ = to.write_all(piece).await;
                    for _ in 0..16 {
                        tokio::task::yield_now().await;
                    }
                }
                if pause_ms > 0 {
                    tokio::time::sleep(Duration::from_millis(pause_ms)).await;
                }
                let _ = to.shutdown().await;
            };
            let read = async {
                let mut answer = Vec::new();
                // A reset after the answer is an end like any other.
                let _ = from.read_to_end(&mut answer).await;
                answer
            };
            let answer = tokio::time::timeout(PATIENCE, async { tokio::join!(write, read).1 });
            let answer = answer.await.expect("an end in time");
            // What was begun is written, also when nobody waits for it any more.
            while self.store.health().in_flight_bytes > 0 {
                tokio::task::yield_now().await;
            }
            answer
        });
        Seen { statuses: statuses(&answer), answers: without_figures(&answer), stored_lines: self.take_stored() }
    }

    /// Checks every line that was stored, takes the files away, and says how many lines there were.
    fn take_stored(&self) -> usize {
        let mut lines = 0;
        for entry in std::fs::read_dir(self.dir.path().join("data")).expect("list the data directory") {
            let path = entry.expect("list the data directory").path();
            let name = path.file_name().expect("a name").to_str().expect("names are UTF-8").to_owned();
            if let Some(stem) = name.strip_suffix(".jsonl") {
                let content = std::fs::read(&path).expect("read a data file");
                // Longer names are cut and hashed; then the lines say which domain it is.
                match Domain::parse(stem) {
                    Ok(domain) if stem.len() < 240 => lines += check_lines(&content, &domain),
                    _ => lines += content.iter().filter(|&&b| b == b'\n').count(),
                }
                std::fs::remove_file(&path).expect("remove a data file");
            }
        }
        lines
    }
}

/// The same for the same request, whenever it is sent.
fn without_figures(answer: &[u8]) -> String {
    let text = String::from_utf8_lossy(answer);
    let changing = |name: &str| ["date", "x-ratelimit-remaining", "x-ratelimit-reset"].contains(&name);
    // Pages and figures are compared by their heads; a problem document holds the id.
    let lines = text.split("\r\n").filter_map(|line| line.split_once(": ")).map(|(name, value)| match name {
        name if changing(name) => format!("{name}\n"),
        "x-request-id" if value.len() == 26 => format!("{name}\n"),
        "content-length" => format!("{name}\n"),
        _ => format!("{name}: {value}\n"),
    });
    lines.collect()
}

/// The status of each answer, after a look at its head.
fn statuses(answer: &[u8]) -> Vec<u16> {
    // The version of the request is that of the answer.
    const STARTS: [&[u8]; 2] = [b"HTTP/1.1 ", b"HTTP/1.0 "];
    let is_start = |bytes: &[u8]| STARTS.iter().any(|start| bytes.starts_with(start));
    assert!(answer.is_empty() || is_start(answer), "no answer: {}", answer.escape_ascii());
    let mut statuses = Vec::new();
    let mut rest = answer;
    while let Some(at) = rest.windows(STARTS[0].len()).position(is_start) {
        rest = &rest[at + STARTS[0].len()..];
        let digits = rest.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let status: u16 = digits.and_then(|digits| digits.parse().ok()).expect("a status");
        assert!(STATUSES.contains(&status), "{status}: {}", answer.escape_ascii());
        let end = rest.windows(4).position(|window| window == b"\r\n\r\n").expect("the head of an answer has an end");
        let head = String::from_utf8_lossy(&rest[..end]).to_lowercase();
        assert!(status == 100 || head.contains("\r\nx-request-id: "), "an answer without an id: {head}");
        if status != 100 {
            statuses.push(status);
        }
        // A body may hold what looks like the start of an answer. A HEAD announces one that does not come.
        let length = head.split("\r\ncontent-length: ").nth(1).and_then(|rest| rest.split("\r\n").next()?.parse().ok());
        rest = &rest[end + 4..];
        if let Some(behind) = length.and_then(|length: usize| rest.get(length..))
            && (behind.is_empty() || is_start(behind))
        {
            rest = behind;
        }
    }
    statuses
}
