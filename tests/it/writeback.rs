//! Errors of write-back that are told once, to anybody: whatever happens, no acknowledged event is gone.
//!
//! | variable | default | meaning |
//! |---|---|---|
//! | `WRITEBACK_ROUNDS` | 1000 | rounds for each kind of file system |
//! | `WRITEBACK_SEED` | random, printed | repeats a run, as far as threads allow |

use std::time::Duration;

use leitstand::domain::Domain;
use leitstand::event::{Batch, Format};
use leitstand::metrics::StoreMetrics;
use leitstand::storage::{Fsync, Store, StoreError, StoreOptions, Written};

use crate::crashdisk::Rng;
use crate::support::in_time;
use crate::writeback_disk::{Asks, Kind, WritebackDisk};

/// What some rounds led to.
#[derive(Debug, Default, Clone, Copy)]
struct Outcome {
    acked: usize,
    /// Acknowledged, and not on the disk.
    lost: usize,
    /// Refused with `written: maybe`.
    maybe: usize,
    /// Refused because of a failed sync of somebody else.
    doubted: usize,
    /// Thrown away by the system without a word to the service.
    swallowed: usize,
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

fn seed() -> u64 {
    let seed = number("WRITEBACK_SEED").unwrap_or_else(|| u64::from(std::process::id()) << 20);
    eprintln!("WRITEBACK_SEED={seed}");
    seed
}

async fn append(store: Store<WritebackDisk>, domain: String, id: usize, bytes: usize) -> Result<(), StoreError> {
    let text = format!("{{\"id\":{id},\"t\":\"{}\"}}\n", "x".repeat(bytes));
    let batch = Batch::parse(&text, Format::Lines, Some(Domain::parse(&domain).unwrap())).unwrap().unwrap();
    in_time(store.append(batch, store.reserve(1)?)).await
}

/// Random load on random domains, something breaks now and then, and the machine stops.
async fn round(kind: Kind, asks: Asks, seed: u64, outcome: &mut Outcome) {
    let mut rng = Rng(seed);
    let disk = WritebackDisk::new(kind, asks, rng.next());
    let options = StoreOptions {
        fsync: Fsync::Always,
        lock_timeout: Duration::from_secs(10),
        reserve_bytes: Some(0),
        piece_bytes_max: 200,
        ..StoreOptions::default()
    };
    let store = Store::new(disk.clone(), options, StoreMetrics::new());
    let domains = rng.pick(1, 6);
    let mut acked = Vec::new();
    let mut next = 0;
    for _ in 0..rng.pick(2, 5) {
        if rng.one_in(2) {
            disk.break_something(&format!("d{}.jsonl", rng.pick(0, domains - 1)));
        }
        let mut answers = Vec::new();
        for _ in 0..rng.pick(1, 12) {
            let (domain, bytes) = (rng.pick(0, domains - 1), rng.pick(0, 120));
            let answer = tokio::spawn(append(store.clone(), format!("d{domain}"), next, bytes));
            answers.push((domain, next, answer));
            next += 1;
            if rng.one_in(3) {
                tokio::task::yield_now().await;
            }
        }
        for (domain, id, answer) in answers {
            match answer.await.unwrap() {
                Ok(()) => acked.push((domain, id)),
                Err(error) => {
                    outcome.maybe += usize::from(error.written() == Written::Maybe);
                    outcome.doubted += usize::from(matches!(error, StoreError::InDoubt | StoreError::Unproven));
                }
            }
        }
    }
    outcome.acked += acked.len();
    outcome.swallowed += disk.swallowed();
    for (domain, id) in acked {
        let content = disk.stable(&format!("d{domain}.jsonl"));
        let start = format!("{{\"id\":{id},");
        let found = content.split(|&b| b == b'\n').filter(|line| line.starts_with(start.as_bytes()));
        let whole = found.filter(|line| line.ends_with(b"}") && !line.contains(&0)).count();
        outcome.lost += usize::from(whole != 1);
    }
}

fn rounds(kind: Kind, asks: Asks, count: u64, enough: impl Fn(&Outcome) -> bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let first = seed();
    let mut outcome = Outcome::default();
    for n in 0..count {
        if enough(&outcome) {
            break;
        }
        let lost = outcome.lost;
        runtime.block_on(round(kind, asks, first + n, &mut outcome));
        if outcome.lost > lost {
            eprintln!("{kind:?} {asks:?}: lost in round {n}, seed {}", first + n);
        }
    }
    eprintln!("{kind:?} {asks:?}: {outcome:?}");
    outcome
}

fn rounds_wanted() -> u64 {
    number("WRITEBACK_ROUNDS").unwrap_or(1000)
}

/// Broken, an event would be acknowledged that the system has thrown away, and told somebody else, or nobody.
#[test]
fn no_acknowledged_event_is_gone_whoever_was_told_of_the_error() {
    for kind in [Kind::Ext4, Kind::Xfs] {
        let outcome = rounds(kind, Asks::Now, rounds_wanted(), |_| false);
        assert_eq!(outcome.lost, 0, "{outcome:?}");
        // Else nothing was tried.
        let each = rounds_wanted() as usize;
        assert!(outcome.acked > each && outcome.maybe > each / 10 && outcome.doubted > each / 50, "{outcome:?}");
        assert!(outcome.swallowed > each / 20, "{outcome:?}");
    }
}

/// Broken, the check above could not fail: what version 0.1.0 asked, and less than what is asked now, loses events on
/// the same disk.
#[test]
fn whoever_asks_less_loses_acknowledged_events() {
    for asks in [Asks::Version010, Asks::StartOnly, Asks::NoJournal] {
        let outcome = rounds(Kind::Ext4, asks, 4 * rounds_wanted(), |outcome| outcome.lost > 0);
        assert!(outcome.lost > 0, "{asks:?} loses nothing: {outcome:?}");
    }
}
