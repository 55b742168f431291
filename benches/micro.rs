//! What the steps between a body and a file cost, each on its own: `cargo bench --bench micro [NAME]`.
//!
//! Only the public interface is used, so that nothing is public for the benchmarks. Inputs are made
//! from a fixed seed. `serde_json` only checks its input and keeps nothing: a yardstick for the
//! machine, not a goal.

use std::path::{Path, PathBuf};

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use futures_util::future::join_all;
use leitstand::domain::Domain;
use leitstand::event::{Batch, Format};
use leitstand::metrics::StoreMetrics;
use leitstand::storage::{Fsync, RealDisk, Store, StoreOptions};

fn main() {
    divan::main();
}

/// A few random bits, the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }

    fn words(&mut self, count: usize) -> String {
        const WORDS: [&str; 12] = [
            "build", "deploy", "queue", "retry", "index", "lease", "token", "audit", "merge", "commit", "relay", "log",
        ];
        (0..count).map(|_| WORDS[self.below(WORDS.len())]).collect::<Vec<_>>().join(" ")
    }
}

/// The members of an event of about 200 bytes, without the outer brackets.
fn members(random: &mut Random) -> String {
    let kind = ["link", "node.status", "build.finished", "note"][random.below(4)];
    let status = ["ok", "warn", "fail"][random.below(3)];
    format!(
        "\"event\":\"{kind}\",\"ts\":\"2026-01-{:02}T{:02}:{:02}:{:02}.{:03}Z\",\"id\":\"{:012x}\",\"source\":\"sensor-{}\",\
         \"status\":\"{status}\",\"n\":{},\"ms\":{}.{},\"summary\":\"{}\"",
        1 + random.below(28),
        random.below(24),
        random.below(60),
        random.below(60),
        random.below(1000),
        random.below(1 << 48),
        random.below(1000),
        random.below(1_000_000),
        random.below(1000),
        random.below(1000),
        random.words(7),
    )
}

/// Compact, about 200 bytes.
fn small(random: &mut Random) -> String {
    format!("{{{}}}", members(random))
}

/// The same, and it names its domain as it is stored.
fn small_with_domain(random: &mut Random) -> String {
    format!("{{\"domain\":\"example.com\",{}}}", members(random))
}

/// Compact; one in four is flat, nested, not ASCII with escapes, or a long text: about 550 bytes.
fn varied(random: &mut Random) -> String {
    let start = members(random);
    let (tags, words) = (random.words(4).replace(' ', "\",\""), random.words(20));
    match random.below(4) {
        0 => format!("{{{start}}}"),
        1 => format!(
            "{{{start},\"payload\":{{\"repo\":\"org/x\",\"tags\":[\"{tags}\"],\"counts\":{{\"a\":{},\"b\":{}}},\
             \"nested\":{{\"a\":{{\"b\":{{\"c\":[1,2.5,null,true]}}}}}}}}}}",
            random.below(9999),
            random.below(9999)
        ),
        2 => format!(
            "{{{start},\"title\":\"Grüße aus Köln – {words} 🚀\",\"msg\":\"one\\ntwo\\t\\\"quoted\\\" \\\\ back\"}}"
        ),
        _ => format!("{{{start},\"log\":\"{}\"}}", random.words(150)),
    }
}

/// Several kB, with a blank after each comma and colon: nested, escapes, not ASCII.
fn mixed(random: &mut Random) -> String {
    let spaced = |text: String| text.replace("\":", "\": ").replace(",\"", ", \"");
    let items: Vec<String> = (0..8).map(|_| spaced(varied(random))).collect();
    format!("{{{}, \"items\": [{}]}}", spaced(members(random)), items.join(", "))
}

/// Small, but written anew: a name comes twice, and the domain is spelled otherwise.
fn rewritten(random: &mut Random) -> String {
    format!("{{{},\"n\":5,\"\\u0064omain\":\"Example.com\"}}", members(random))
}

/// Writes one event.
type Make = fn(&mut Random) -> String;

fn events(make: Make, bytes: usize) -> Vec<String> {
    let mut random = Random(20_261_121);
    let mut total = 0;
    std::iter::repeat_with(|| make(&mut random))
        .take_while(|event| {
            let before = total;
            total += event.len();
            before < bytes
        })
        .collect()
}

fn domain() -> Domain {
    Domain::parse("example.com").expect("a domain")
}

const KINDS: [(&str, Make); 5] = [
    ("small", small),
    ("small_with_domain", small_with_domain),
    ("varied", varied),
    ("mixed", mixed),
    ("rewritten", rewritten),
];

fn kind(name: &str) -> Make {
    KINDS.iter().find(|(known, _)| *known == name).expect("a kind of event").1
}

fn bytes_of(texts: &[String]) -> BytesCount {
    BytesCount::new(texts.iter().map(String::len).sum::<usize>())
}

/// Check and compact, one event a body.
#[divan::bench(args = ["small", "small_with_domain", "varied", "mixed", "rewritten"], min_time = 1)]
fn document(bencher: Bencher<'_, '_>, name: &str) {
    let (texts, domain) = (events(kind(name), 256 << 10), domain());
    bencher.counter(bytes_of(&texts)).counter(ItemsCount::new(texts.len())).bench_local(|| {
        for text in &texts {
            let batch = Batch::parse(black_box(text), Format::Document, Some(domain.clone()));
            black_box(batch.expect("an event"));
        }
    });
}

/// Check and compact, NDJSON of 1 MiB.
#[divan::bench(args = ["small", "small_with_domain", "varied", "mixed", "rewritten"], min_time = 1)]
fn feed(bencher: Bencher<'_, '_>, name: &str) {
    let (texts, domain) = (events(kind(name), 1 << 20), domain());
    let body = texts.join("\n");
    bencher.counter(BytesCount::new(body.len())).counter(ItemsCount::new(texts.len())).bench_local(|| {
        black_box(Batch::parse(black_box(&body), Format::Lines, Some(domain.clone())).expect("events"));
    });
}

/// The yardstick: a check of UTF-8 and grammar, nothing else.
#[divan::bench(args = ["small", "varied", "mixed"], min_time = 1)]
fn yardstick_serde_json(bencher: Bencher<'_, '_>, name: &str) {
    let texts = events(kind(name), 256 << 10);
    bencher.counter(bytes_of(&texts)).bench_local(|| {
        for text in &texts {
            let text = std::str::from_utf8(black_box(text.as_bytes())).expect("UTF-8");
            black_box(serde_json::from_str::<serde::de::IgnoredAny>(text).expect("JSON"));
        }
    });
}

/// A domain as it is stored, and one that must be stripped and made lower case.
#[divan::bench(args = ["example.com", " Sensors.Building-7.Example.COM "])]
fn domain_check(bencher: Bencher<'_, '_>, text: &str) {
    bencher.bench_local(|| Domain::parse(black_box(text)));
}

/// Where files are appended to: in memory, or where cargo builds.
fn place(name: &str) -> Option<PathBuf> {
    match name {
        "tmpfs" => Some(PathBuf::from("/dev/shm")).filter(|shm| shm.is_dir()),
        _ => Some(Path::new(env!("CARGO_TARGET_TMPDIR")).to_owned()),
    }
}

/// `jobs` requests of `each` events arrive at once and are one group: one `writev`, one answer each.
/// Never synced. Nobody empties the file, so a run is bounded in time.
fn append(bencher: Bencher<'_, '_>, (name, jobs, each): (&str, usize, usize)) {
    let Some(place) = place(name) else { return eprintln!("{name} ... SKIPPED: there is no /dev/shm") };
    let directory = tempfile::tempdir_in(place).expect("a directory");
    let disk = RealDisk::open(directory.path()).expect("a data directory");
    let options = StoreOptions { fsync: Fsync::Never, reserve_bytes: Some(0), ..StoreOptions::default() };
    let store = Store::new(disk, options, StoreMetrics::new());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let body = events(small, each * 150)[..].iter().take(each).cloned().collect::<Vec<_>>().join("\n");
    let batch = Batch::parse(&body, Format::Lines, Some(domain())).expect("events").expect("some");
    let bytes = batch.lines().len() * jobs;
    bencher
        .counter(BytesCount::new(bytes))
        .counter(ItemsCount::new(jobs * each))
        .with_inputs(|| vec![batch.clone(); jobs])
        .bench_local_values(|batches| {
            let appends = batches.into_iter().map(|batch| {
                let reservation = store.reserve(batch.lines().len()).expect("room");
                store.append(batch, reservation)
            });
            let answers = runtime.block_on(join_all(appends));
            assert!(answers.iter().all(Result::is_ok));
        });
}

/// One request after the other, 64 at once, and 64 at once with 100 events each.
#[divan::bench(
    args = [("tmpfs", 1, 1), ("tmpfs", 64, 1), ("tmpfs", 64, 100), ("disk", 1, 1), ("disk", 64, 1), ("disk", 64, 100)],
    max_time = 1
)]
fn append_never(bencher: Bencher<'_, '_>, args: (&str, usize, usize)) {
    append(bencher, args);
}
