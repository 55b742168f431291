//! The real service, killed and started again under numbered events, and slow in between: what arrives, what is
//! told, what is there twice. `LEITSTAND_LONG=1` does it with ten times the events and kills.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use leitstand_producer::{ProducerClient, Written};
use support::{Random, Service, event, leitstand, quick};

const THREADS: u64 = 4;
const BATCH: usize = 25;

/// What the callers were told.
#[derive(Default)]
struct Told {
    /// Safe: acknowledged, or in the spool.
    safe: BTreeSet<u64>,
    /// Failed or never sent, for sure not written.
    unwritten: BTreeSet<u64>,
    /// Failed, perhaps written.
    maybe: BTreeSet<u64>,
    errors: u64,
}

fn scale() -> u64 {
    if std::env::var_os("LEITSTAND_LONG").is_some() { 10 } else { 1 }
}

/// Sends the events of one thread in feeds of 50, until `kills` are done and all are sent.
fn produce(client: &ProducerClient, numbers: std::ops::Range<u64>, kills: &AtomicU64, kills_max: u64) -> Told {
    let mut told = Told::default();
    let count = numbers.end - numbers.start;
    let mut next = numbers.start;
    while next < numbers.end {
        // Spread over all kills: the last events come after the last kill.
        while (next - numbers.start) * kills_max > kills.load(Ordering::Relaxed) * count + count {
            thread::sleep(Duration::from_millis(1));
        }
        let end = (next + 50).min(numbers.end);
        match client.deliver_iter((next..end).map(event)) {
            Ok(_) => told.safe.extend(next..end),
            Err(error) => {
                told.errors += 1;
                let safe = next + error.acknowledged() + error.spooled();
                let failed = safe + error.failed();
                told.safe.extend(next..safe);
                match error.written() {
                    Written::No => told.unwritten.extend(safe..failed),
                    Written::Maybe => told.maybe.extend(safe..failed),
                }
                told.unwritten.extend(failed..end);
            }
        }
        next = end;
    }
    told
}

/// Lets threads send events while the service is killed and started again.
fn run(service: &mut Service, client: &ProducerClient) -> (Told, u64) {
    let kills_max = 20 * scale();
    let events = 20_000 * scale();
    let kills = AtomicU64::new(0);
    let mut random = Random::new();
    let mut all = Told::default();
    thread::scope(|scope| {
        let each = events / THREADS;
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| (thread * each)..((thread + 1) * each))
            .map(|numbers| scope.spawn(|| produce(client, numbers, &kills, kills_max)))
            .collect();
        for kill in 0..kills_max {
            // Every third time so few requests are allowed that most are refused.
            let rate = if kill % 3 == 2 { "5/second" } else { "off" };
            // A sync before the answer leaves more room for a kill between the two.
            service.start(&[("LEITSTAND_FSYNC", "always"), ("LEITSTAND_RATE_LIMIT", rate)]);
            thread::sleep(Duration::from_millis(random.below(150)));
            service.kill();
            kills.fetch_add(1, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(random.below(100)));
        }
        service.start(&[("LEITSTAND_FSYNC", "never")]);
        for thread in threads {
            let told = thread.join().expect("a producer does not panic");
            all.safe.extend(told.safe);
            all.unwritten.extend(told.unwritten);
            all.maybe.extend(told.maybe);
            all.errors += told.errors;
        }
    });
    assert_eq!((all.safe.len() + all.unwritten.len() + all.maybe.len()) as u64, events, "each is told once");
    (all, kills_max)
}

/// How often each event is stored.
fn stored(service: &Service) -> BTreeMap<u64, u64> {
    let mut times = BTreeMap::new();
    for n in service.stored("example.com") {
        *times.entry(n).or_default() += 1;
    }
    times
}

/// Broken, the spool would lose events when the service dies, or double more than one request of each kill.
#[test]
fn with_a_spool_every_event_arrives() {
    let Some(binary) = leitstand() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut service = Service::new(binary, dir.path());
    let spool = dir.path().join("spool");
    let client = quick(service.url()).spool(&spool).batch_events(BATCH).backoff(Duration::from_millis(30));
    let client = client.build().unwrap();
    let (told, kills) = run(&mut service, &client);
    assert_eq!((told.errors, told.unwritten.len(), told.maybe.len()), (0, 0, 0));
    let report = client.flush().unwrap();
    assert_eq!((report.rejected, report.broken, report.held_elsewhere), (0, 0, 0));
    let times = stored(&service);
    let lost = told.safe.iter().filter(|n| !times.contains_key(n)).count();
    let doubled: u64 = times.values().map(|count| count - 1).sum();
    println!(
        "with a spool: {kills} kills, {} events, {lost} lost, {doubled} doubled, {} at the last flush",
        told.safe.len(),
        report.delivered
    );
    assert_eq!(lost, 0);
    // A kill between the write and the answer: of each thread one request, of the spool one joined request.
    assert!(doubled <= kills * (THREADS * BATCH as u64 + 1_000), "{doubled}");
}

/// Broken, an event would be lost without an error, or an error would say "not written" of one that is.
#[test]
fn without_a_spool_every_lost_event_was_told() {
    let Some(binary) = leitstand() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut service = Service::new(binary, dir.path());
    let client = quick(service.url()).batch_events(BATCH).retries(2).backoff(Duration::from_millis(30));
    let client = client.build().unwrap();
    let (told, kills) = run(&mut service, &client);
    let times = stored(&service);
    let lost_in_silence = told.safe.iter().filter(|n| !times.contains_key(n)).count();
    let wrongly_unwritten = told.unwritten.iter().filter(|n| times.contains_key(n)).count();
    let written_maybes = told.maybe.iter().filter(|n| times.contains_key(n)).count();
    let doubled: u64 = times.values().map(|count| count - 1).sum();
    println!(
        "without a spool: {kills} kills, {} acknowledged, {} told as not written, {} as maybe ({written_maybes} are), \
         in {} errors; {lost_in_silence} lost in silence, {doubled} doubled",
        told.safe.len(),
        told.unwritten.len(),
        told.maybe.len(),
        told.errors
    );
    assert_eq!((lost_in_silence, wrongly_unwritten), (0, 0));
    // Each kill can meet one request of each thread between its write and its answer.
    assert!(doubled <= kills * THREADS * BATCH as u64, "{doubled}");
    assert!(told.errors > 0, "the service was away for longer than the retries");
}
