//! What each fuzz target does with its bytes. A panic is a finding.
//!
//! `tests/it/fuzz_corpus.rs` includes this file and replays the committed inputs on a stable
//! compiler, so the functions here use nothing of libFuzzer.

mod disk;
mod model;
mod request;

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue};
use ipnet::IpNet;
use leitstand::config::{Config, SETTINGS, Source};
use leitstand::domain::{DOMAIN_BYTES_MAX, Domain, LABEL_BYTES_MAX};
use leitstand::event::{Batch, Format, check_line};
use leitstand::http::{Client, Limiter, Peer};
use leitstand::metrics::StoreMetrics;
use leitstand::rate::{LIMITS_MAX, RateLimits};
use leitstand::storage::{FileNames, Fsync, NAME_BYTES_MAX, Store, StoreOptions};

pub use request::request;

type Target = fn(&[u8]);

/// The target of each name, as in `corpus/`.
#[allow(dead_code, reason = "only the replay of the corpus goes by names")]
pub const TARGETS: [(&str, Target); 8] = [
    ("json", json),
    ("batch", batch),
    ("domain", domain),
    ("forwarded", forwarded),
    ("rate", rate),
    ("tail", tail),
    ("config", config),
    ("request", request),
];

/// One JSON document, against `serde_json`.
pub fn json(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for domain in [None, Some(example())] {
        model::compare(text, Format::Document, domain);
    }
}

/// A feed of lines, against `serde_json` and against the same lines one by one.
pub fn batch(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    model::compare(text, Format::Lines, None);
    model::compare(text, Format::Lines, Some(example()));
    let Ok(Some(whole)) = Batch::parse(text, Format::Lines, Some(example())) else { return };
    let mut single = Vec::new();
    for line in model::trim(text).split('\n').filter(|line| !line.is_empty()) {
        let one = Batch::parse(line, Format::Document, Some(example()));
        single.extend_from_slice(one.expect("a line that is good in a feed is good alone").expect("an event").lines());
    }
    assert_eq!(whole.lines(), single, "a feed is stored as its lines are");
    let stored = std::str::from_utf8(whole.lines()).expect("what is stored is UTF-8");
    let again = Batch::parse(stored, Format::Lines, Some(example())).expect("stored lines are good").expect("events");
    assert_eq!(again, whole, "stored lines sent again are stored the same");
}

fn example() -> Domain {
    Domain::parse("example.com").expect("a domain")
}

/// A domain, against a second reading of the rules, and the names of its files.
pub fn domain(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let lower = model::trim(text).to_lowercase();
    let is_inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let label_is_good = |label: &str| {
        (1..=LABEL_BYTES_MAX).contains(&label.len())
            && label.chars().all(is_inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let want = (lower.len() <= DOMAIN_BYTES_MAX && lower.split('.').all(label_is_good)).then_some(lower.as_str());
    let got = Domain::parse(text).ok();
    assert_eq!(got.as_ref().map(Domain::as_str), want, "{text:?}");
    let Some(domain) = got else { return };
    assert_eq!(Domain::parse(domain.as_str()), Ok(domain.clone()));
    let names = FileNames::of(&domain);
    for name in [&names.data, &names.lock] {
        assert!(name.len() <= NAME_BYTES_MAX && !name.contains(['/', '\0']), "{name:?}");
    }
    assert!(names.data.ends_with(".jsonl") && !names.data.starts_with('.'), "{names:?}");
    assert!(!names.lock.ends_with(".jsonl"), "{names:?}");
}

/// First byte: who the peer is. Then the lines of X-Forwarded-For.
pub fn forwarded(data: &[u8]) {
    const PEERS: [&str; 6] = ["127.0.0.1", "::1", "10.1.2.3", "192.0.2.7", "2001:db8::7", "::ffff:127.0.0.1"];
    let Some((&first, rest)) = data.split_first() else { return };
    let trusted: Vec<IpNet> =
        ["127.0.0.1/32", "::1/128", "10.0.0.0/8"].iter().map(|net| net.parse().expect("a network")).collect();
    let is_trusted = |ip: IpAddr| trusted.iter().any(|net| net.contains(&ip));
    let ip = PEERS.get(usize::from(first) % 8).map(|ip| ip.parse::<IpAddr>().expect("an address"));
    let peer = ip.map_or(Peer::Unix, Peer::from_ip);
    let mut headers = HeaderMap::new();
    let lines: Vec<_> = rest.split(|&b| b == b'\n').filter_map(|line| HeaderValue::from_bytes(line).ok()).collect();
    for line in &lines {
        headers.append("x-forwarded-for", line.clone());
    }
    let client = Client::of(peer, &headers, &trusted);
    // Displayed in the log, and a key of the limiter.
    let Client(Peer::Ip(got)) = client else {
        assert_eq!((client, client.to_string().as_str()), (Client(Peer::Unix), "unix"));
        return;
    };
    assert_eq!(got, got.to_canonical(), "an address has one spelling");
    if got.is_ipv6() {
        assert_eq!(client.key() as u64, 0, "one /64 is one client");
    }
    let peer_is_trusted = ip.is_none_or(|ip| is_trusted(ip.to_canonical()));
    if !peer_is_trusted {
        assert_eq!(client, Client(peer), "a stranger speaks for nobody");
    } else if client != Client(peer) {
        // Only what some line spells as an address; a foreign one has only proxies behind it.
        let entries: Vec<&str> = lines
            .iter()
            .filter_map(|line| line.to_str().ok())
            .flat_map(|line| line.split(','))
            .map(str::trim)
            .collect();
        let at = entries.iter().rposition(|entry| address(entry) == Some(got));
        let at = at.unwrap_or_else(|| panic!("{got} is in no line: {entries:?}"));
        let behind = entries[at + 1..].iter().filter(|entry| !entry.is_empty());
        assert!(behind.clone().all(|entry| address(entry).is_some_and(is_trusted)), "{got} of {entries:?}");
    }
}

/// A second reading of one entry: the standard library's.
fn address(entry: &str) -> Option<IpAddr> {
    let bare = match entry.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((inner, _)) if inner.contains(':') => inner,
        Some(_) => return None,
        None => match entry.split_once(':') {
            Some((host, port)) if !port.contains(':') => host,
            _ => entry,
        },
    };
    let with_port = entry.parse::<SocketAddr>().ok().map(|address| address.ip());
    with_port.or_else(|| bare.parse().ok()).map(|ip: IpAddr| ip.to_canonical())
}

/// A list of rate limits, and a limiter that keeps to it.
pub fn rate(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(limits) = RateLimits::parse(text) else { return };
    assert_eq!(RateLimits::parse(&limits.to_string()).as_ref(), Ok(&limits), "{text:?} is printed as it was read");
    let list = limits.as_slice();
    assert!(list.len() <= LIMITS_MAX && list.iter().all(|limit| limit.amount > 0 && !limit.window.is_zero()));
    let now = Instant::now();
    let limiter = Limiter::new(limits.clone());
    let mut passed = 0;
    let fewest = list.iter().map(|limit| limit.amount).min();
    let refused = loop {
        match limiter.hit("a", now) {
            Ok(_) if passed >= 16 => return,
            Ok(_) => passed += 1,
            Err(standing) => break standing,
        }
    };
    assert_eq!(Some(passed), fewest, "as many pass as the smallest limit says");
    let used_up = list.iter().filter(|limit| limit.amount == passed);
    let wait = used_up.map(|limit| limit.window).max().expect("a limit is used up");
    let wait_s = Duration::from_secs(refused.retry_after_s());
    assert!(wait_s >= wait && wait_s <= wait + Duration::from_secs(1), "{text:?}: {wait_s:?} for {wait:?}");
    assert!(limiter.hit("b", now).is_ok(), "one client's limit is not another's");
}

/// What a file may end in when the service comes to it, and what an append makes of it.
pub fn tail(data: &[u8]) {
    static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(current_thread);
    let domain = example();
    let line = b"{\"new\":1,\"domain\":\"example.com\"}\n";
    let sound = data.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
    let rest = &data[sound..];
    let (want, torn) = match model::whole_value(rest) {
        _ if rest.is_empty() => (data.to_vec(), None),
        Some(true) => ([data, b"\n"].concat(), None),
        Some(false) => (data[..sound].to_vec(), Some(rest.to_vec())),
        None => return,
    };
    let disk = disk::MemoryDisk::new(&FileNames::of(&domain).data, data);
    let files = disk.files.clone();
    // What `always` adds are calls that a disk in memory does not need, on another thread.
    let options = StoreOptions { fsync: Fsync::Never, ..StoreOptions::default() };
    let store = Store::new(disk, options, StoreMetrics::new());
    RUNTIME.block_on(async {
        for _ in 0..2 {
            let batch =
                Batch::parse("{\"new\":1}", Format::Document, Some(domain.clone())).expect("good").expect("event");
            store.append(batch, store.reserve(1).expect("room")).await.expect("a disk in memory does not fail");
        }
    });
    let files = files.lock().expect("no panic");
    let content = files[&FileNames::of(&domain).data].lock().expect("no panic").clone();
    assert_eq!(content, [&want[..], line, line].concat(), "repaired once, then appended to");
    let mut kept = files.iter().filter(|(name, _)| name.starts_with(".torn/")).map(|(_, file)| file);
    assert_eq!(kept.next().map(|file| file.lock().expect("no panic").clone()), torn, "what is cut off is kept");
    assert!(kept.next().is_none());
}

fn current_thread() -> tokio::runtime::Runtime {
    // Sockets are looked at after every step, so that a pause in a request is one.
    tokio::runtime::Builder::new_current_thread().enable_all().event_interval(1).build().expect("a runtime")
}

/// A `.env` file, and the configuration that it makes.
pub fn config(data: &[u8]) {
    const SECRET: &str = "canary-9d3f1c7b";
    let Ok(text) = std::str::from_utf8(data) else { return };
    if text.contains(SECRET) {
        return; // Somebody wrote it elsewhere too; libFuzzer learns such words.
    }
    let mut vars = match leitstand::cli::env::parse(text) {
        Ok(vars) => vars,
        Err(message) => {
            assert!(message.len() < 200, "a message does not quote the file: {message}");
            return;
        }
    };
    // Whatever stands around a secret, it is told to nobody.
    for name in ["LEITSTAND_TOKEN", "CHRONIK_TOKEN"] {
        if let Some(token) = vars.get_mut(name) {
            token.push(SECRET);
        }
    }
    match load(&vars) {
        Err(error) => {
            let known = |name: &str| {
                let rest = name.strip_prefix("CHRONIK_");
                SETTINGS
                    .iter()
                    .map(|setting| setting.name)
                    .any(|s| s == name || rest.is_some_and(|rest| s.strip_prefix("LEITSTAND_") == Some(rest)))
            };
            assert!(!error.0.is_empty() && error.0.iter().all(|problem| known(&problem.name)), "{error}");
            assert!(!error.to_string().contains(SECRET), "a secret is in: {error}");
        }
        Ok(config) => {
            assert!(!format!("{config:?}{:?}", config.effective()).contains(SECRET), "a secret is in: {config:?}");
            assert!(config.tokens.expose().iter().all(|token| !token.trim().is_empty()));
            assert!(config.in_flight_bytes_max >= 2 * config.max_body_bytes);
            // What `config check` prints can be set again and means the same.
            let mut again: HashMap<String, OsString> = HashMap::new();
            for (name, value) in config.effective() {
                // Where nothing is set, words say what it is reckoned from.
                let is_reckoned = match name {
                    "LEITSTAND_DISK_RESERVE" => config.reserve_bytes.is_none(),
                    "LEITSTAND_MAX_CONNECTIONS_PER_CLIENT" => config.max_connections_per_client.is_none(),
                    _ => false,
                };
                if !is_reckoned {
                    again.insert(name.to_owned(), value.into());
                }
            }
            again.insert("LEITSTAND_TOKEN".to_owned(), config.tokens.expose().join(",").into());
            again.insert("LEITSTAND_ADMIN_TOKEN".to_owned(), config.admin_tokens.expose().join(",").into());
            let again = load(&again).unwrap_or_else(|e| panic!("{e}: of {:?}", config.effective()));
            assert_eq!(again.effective(), config.effective());
            assert_eq!(again.tokens, config.tokens);
        }
    }
}

fn load(vars: &HashMap<String, OsString>) -> Result<Config, leitstand::config::ConfigError> {
    let get = |name: &str| vars.get(name).cloned();
    let read = |_: &std::path::Path| Err(io::ErrorKind::NotFound.into());
    Config::from_source(&Source { get: &get, read: &read })
}

/// Every line of a stored file is one that the service writes.
fn check_lines(content: &[u8], domain: &Domain) -> usize {
    let text = std::str::from_utf8(content).expect("what is stored is UTF-8");
    assert!(text.is_empty() || text.ends_with('\n'), "torn: {text:?}");
    for line in text.split_terminator('\n') {
        check_line(line, domain).unwrap_or_else(|e| panic!("{e} in {domain}: {line:?}"));
    }
    text.matches('\n').count()
}

type Shared<T> = Arc<std::sync::Mutex<T>>;
