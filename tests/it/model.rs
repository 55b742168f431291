//! The store against a model of it: random histories of appends, faults of the disk, restarts, and
//! of everything that somebody else may do to a file. After each step the files must hold what the
//! model says.
//!
//! The model knows which requests have to succeed. Of the others it takes the answer at its word:
//! `ok` is there once, `written: no` is not there, `written: maybe` is there at most once. Lines
//! stand in the order of the steps, those of one request together.
//!
//! | variable | default | meaning |
//! |---|---|---|
//! | `PROPTEST_CASES` | 64 | how many histories |
//! | `MODEL_SEED` | random, printed | repeats a run |

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::hash::BuildHasher as _;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use leitstand::domain::Domain;
use leitstand::event::{Batch, Format};
use leitstand::metrics::StoreMetrics;
use leitstand::storage::{Fsync, Store, StoreError, StoreOptions, TORN_DIR, Written};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};
use rustix::fs::{FlockOperation, flock};
use tokio::runtime::Runtime;

use crate::faulty::{Fault, FaultyDisk, Plan};
use crate::support::in_time;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const DOMAINS: [&str; 2] = ["a", "b.c"];
/// Calls of an append that a fault may hit; a repair of the tail makes the most.
const CALLS_MAX: usize = 18;

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap());

/// What a foreign writer leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Foreign {
    Line,
    NoNewline,
    Half,
}

#[derive(Debug, Clone)]
enum Step {
    Append {
        domain: usize,
        events: u32,
    },
    /// Several requests at once, as (domain, events).
    Burst(Vec<(usize, u32)>),
    /// An append during which the n-th call of the disk fails.
    Faulty {
        domain: usize,
        events: u32,
        at: usize,
        fault: Fault,
    },
    /// An append during which the process dies at the n-th call; then another one starts.
    Die {
        domain: usize,
        events: u32,
        at: usize,
        fault: Fault,
    },
    /// A foreign writer, under the lock.
    Foreign {
        domain: usize,
        kind: Foreign,
    },
    /// Somebody moves the file away.
    Move {
        domain: usize,
    },
    /// A copy takes the file's place.
    Replace {
        domain: usize,
    },
    /// The file loses its last bytes.
    Cut {
        domain: usize,
        bytes: usize,
    },
    Drain,
    Restart,
}

/// One request, or one line of a foreign writer.
#[derive(Debug, Clone)]
struct Request {
    domain: usize,
    ids: Vec<u32>,
}

#[derive(Debug, Clone)]
struct Model {
    fsync: Fsync,
    /// Where each id belongs.
    issued: Vec<Place>,
    steps: usize,
    sent: usize,
    /// What the last step sends.
    requests: Vec<Request>,
    /// A fault may hit them.
    faulty: bool,
    moved: usize,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    step: usize,
    domain: usize,
    request: usize,
}

impl Model {
    fn issue(&mut self, domain: usize, events: u32) {
        let first = self.issued.len() as u32;
        self.sent += 1;
        let place = Place { step: self.steps, domain, request: self.sent };
        self.issued.extend((0..events).map(|_| place));
        self.requests.push(Request { domain, ids: (first..first + events).collect() });
    }
}

impl ReferenceStateMachine for Model {
    type State = Model;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Model> {
        prop_oneof![3 => Just(Fsync::Always), 1 => Just(Fsync::EverySecond), 1 => Just(Fsync::Never)]
            .prop_map(|fsync| Model {
                fsync,
                issued: Vec::new(),
                steps: 0,
                sent: 0,
                requests: Vec::new(),
                faulty: false,
                moved: 0,
            })
            .boxed()
    }

    fn transitions(_: &Model) -> BoxedStrategy<Step> {
        let domain = 0..DOMAINS.len();
        let events = 1_u32..4;
        let faults = prop_oneof![Just(Fault::Errno(EIO)), Just(Fault::Errno(ENOSPC)), Just(Fault::ShortWrite)];
        let deaths = prop_oneof![Just(Fault::Freeze), Just(Fault::FreezeTorn)];
        let kinds = prop_oneof![Just(Foreign::Line), Just(Foreign::NoNewline), Just(Foreign::Half)];
        prop_oneof![
            6 => (domain.clone(), events.clone()).prop_map(|(domain, events)| Step::Append { domain, events }),
            3 => prop::collection::vec((domain.clone(), events.clone()), 2..8).prop_map(Step::Burst),
            4 => (domain.clone(), events.clone(), 1..CALLS_MAX, faults)
                .prop_map(|(domain, events, at, fault)| Step::Faulty { domain, events, at, fault }),
            2 => (domain.clone(), events, 1..CALLS_MAX, deaths)
                .prop_map(|(domain, events, at, fault)| Step::Die { domain, events, at, fault }),
            4 => (domain.clone(), kinds).prop_map(|(domain, kind)| Step::Foreign { domain, kind }),
            1 => domain.clone().prop_map(|domain| Step::Move { domain }),
            2 => domain.clone().prop_map(|domain| Step::Replace { domain }),
            2 => (domain, 1_usize..60).prop_map(|(domain, bytes)| Step::Cut { domain, bytes }),
            1 => Just(Step::Drain),
            2 => Just(Step::Restart),
        ]
        .boxed()
    }

    fn apply(mut model: Model, step: &Step) -> Model {
        model.steps += 1;
        model.requests.clear();
        model.faulty = matches!(step, Step::Faulty { .. } | Step::Die { .. });
        match step {
            Step::Append { domain, events }
            | Step::Faulty { domain, events, .. }
            | Step::Die { domain, events, .. } => {
                model.issue(*domain, *events);
            }
            Step::Burst(requests) => requests.iter().for_each(|(domain, events)| model.issue(*domain, *events)),
            Step::Foreign { domain, .. } => model.issue(*domain, 1),
            Step::Move { .. } => model.moved += 1,
            Step::Drain | Step::Restart | Step::Replace { .. } | Step::Cut { .. } => {}
        }
        model
    }
}

/// How often an event has to be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Once,
    AtMostOnce,
    Never,
}

/// Are all appends refused, until another file stands there?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Poison {
    #[default]
    No,
    /// The sync that failed was that of a file which had been moved away already. What stands there
    /// now is another file.
    Perhaps,
    /// Somebody was told `written: maybe`.
    Yes,
}

/// The real store, and what it and others have said and done.
struct Service {
    dir: tempfile::TempDir,
    fsync: Fsync,
    store: Store<FaultyDisk>,
    plan: Arc<Plan>,
    standing: BTreeMap<u32, Standing>,
    by_text: BTreeMap<Vec<u8>, u32>,
    /// Data files and those that were moved away. Is it allowed that the last line has no newline?
    ragged: BTreeMap<PathBuf, (usize, bool)>,
    poison: [Poison; DOMAINS.len()],
    /// Another file stands there than at the last append.
    replaced: [bool; DOMAINS.len()],
    draining: bool,
}

fn open(dir: &Path, fsync: Fsync) -> (Store<FaultyDisk>, Arc<Plan>) {
    let (disk, plan) = FaultyDisk::open(dir);
    plan.clear();
    let lock_timeout = Duration::from_secs(5);
    let options =
        StoreOptions { fsync, lock_timeout, reserve_bytes: Some(0), piece_bytes_max: 100, ..StoreOptions::default() };
    (Store::new(disk, options, StoreMetrics::new()), plan)
}

/// Where the last line begins that has no newline.
fn after_last_newline(content: &[u8]) -> usize {
    content.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1)
}

impl Service {
    fn path(&self, domain: usize) -> PathBuf {
        self.dir.path().join(format!("{}.jsonl", DOMAINS[domain]))
    }

    fn content(&self, domain: usize) -> Option<Vec<u8>> {
        std::fs::read(self.path(domain)).ok()
    }

    fn batch(&mut self, request: &Request) -> Batch {
        let text: String =
            request.ids.iter().map(|id| format!("{{\"id\":{id},\"t\":\"\u{fc}\u{1f600}\"}}\n")).collect();
        let domain = Domain::parse(DOMAINS[request.domain]).unwrap();
        let batch = Batch::parse(&text, Format::Lines, Some(domain)).unwrap().unwrap();
        for (line, id) in batch.lines().split(|&b| b == b'\n').zip(&request.ids) {
            self.by_text.insert(line.to_vec(), *id);
        }
        batch
    }

    /// Sends all requests at once and notes what they were told.
    fn send(&mut self, model: &Model) {
        let requests = &model.requests;
        let tails: Vec<_> = requests.iter().map(|request| (request.domain, self.tail(request.domain))).collect();
        let batches: Vec<Batch> = requests.iter().map(|request| self.batch(request)).collect();
        let answers: Vec<_> = RUNTIME.block_on(async {
            let sent: Vec<_> = batches
                .into_iter()
                .map(|batch| {
                    let store = self.store.clone();
                    tokio::spawn(async move { store.append(batch, store.reserve(1)?).await })
                })
                .collect();
            let mut answers = Vec::new();
            for answer in sent {
                answers.push(in_time(answer).await.unwrap());
            }
            answers
        });
        let poison = self.poison;
        for ((request, answer), (domain, tail)) in requests.iter().zip(answers).zip(tails) {
            match &answer {
                Err(StoreError::ShuttingDown) => assert!(self.draining, "{request:?} was refused"),
                Err(StoreError::Poisoned { .. }) => {
                    // A disk that fails cannot show that another file stands there.
                    let unseen = model.faulty && self.replaced[domain];
                    assert!(unseen || poison[domain] != Poison::No, "{request:?} was refused");
                }
                _ => {
                    assert!(!self.draining && poison[domain] != Poison::Yes, "{request:?} was not refused: {answer:?}");
                }
            }
            let may_fail = model.faulty || self.draining || poison[domain] != Poison::No;
            assert!(answer.is_ok() || may_fail, "{request:?} was refused: {answer:?}");
            assert!(!matches!(answer, Err(StoreError::Panicked)), "{request:?}: {answer:?}");
            let standing = match &answer {
                Ok(()) => Standing::Once,
                Err(e) if e.written() == Written::No => Standing::Never,
                Err(_) => Standing::AtMostOnce,
            };
            self.standing.extend(request.ids.iter().map(|id| (*id, standing)));
            if standing != Standing::Never {
                self.ragged.insert(self.path(domain), (domain, standing == Standing::AtMostOnce));
            }
            match standing {
                Standing::Once => {
                    self.poison[domain] = Poison::No;
                    self.replaced[domain] = false;
                    self.assert_kept(&tail);
                }
                Standing::AtMostOnce if self.replaced[domain] => self.poison[domain] = Poison::Perhaps,
                Standing::AtMostOnce => self.poison[domain] = Poison::Yes,
                Standing::Never => {}
            }
        }
    }

    /// What stands behind the last newline, if that is no whole event.
    fn tail(&self, domain: usize) -> Vec<u8> {
        let content = self.content(domain).unwrap_or_default();
        let tail = &content[after_last_newline(&content)..];
        if self.by_text.contains_key(tail) { Vec::new() } else { tail.to_vec() }
    }

    fn assert_kept(&self, tail: &[u8]) {
        let kept = || std::fs::read_dir(self.dir.path().join(TORN_DIR)).into_iter().flatten();
        let is_kept = || kept().any(|entry| std::fs::read(entry.unwrap().path()).unwrap() == tail);
        assert!(tail.is_empty() || is_kept(), "a torn tail was thrown away: {}", tail.escape_ascii());
    }

    fn foreign(&mut self, domain: usize, kind: Foreign, id: u32) {
        self.standing.insert(id, Standing::Never);
        if self.content(domain).is_some_and(|content| !content.is_empty() && !content.ends_with(b"\n")) {
            // It would glue its line to another; that is its own fault and not ours to repair.
            return;
        }
        let path = self.path(domain);
        if !path.exists() && self.poison[domain] != Poison::No {
            // After a restart the mark tells by the number of the inode, which the new file may have got.
            self.poison[domain] = Poison::Perhaps;
        }
        let lock = OpenOptions::new().create(true).append(true).open(format!("{}.lock", path.display())).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        let line = format!("{{\"id\": {id}, \"domain\": \"{}\"}}", DOMAINS[domain]);
        let bytes = match kind {
            Foreign::Line => format!("{line}\n"),
            Foreign::NoNewline => line.clone(),
            Foreign::Half => line[..line.len() / 2].to_owned(),
        };
        let mut file = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        file.write_all(bytes.as_bytes()).unwrap();
        if kind != Foreign::Half {
            self.by_text.insert(line.into_bytes(), id);
            self.standing.insert(id, Standing::Once);
        }
        self.ragged.insert(path, (domain, kind != Foreign::Line));
    }

    fn cut(&mut self, domain: usize, bytes: usize) {
        let Some(content) = self.content(domain) else { return };
        let len = content.len().saturating_sub(bytes);
        let mut at = 0;
        for line in content.split_inclusive(|&b| b == b'\n') {
            at += line.len();
            let text = line.strip_suffix(b"\n").unwrap_or(line);
            // A line that only loses its newline is still whole.
            let lost = at - (line.len() - text.len()) > len;
            if let Some(id) = self.by_text.get(text).filter(|_| lost) {
                self.standing.insert(*id, Standing::Never);
            }
        }
        let path = self.path(domain);
        OpenOptions::new().write(true).open(&path).unwrap().set_len(len as u64).unwrap();
        self.ragged.insert(path, (domain, true));
    }

    fn restart(&mut self) {
        (self.store, self.plan) = open(self.dir.path(), self.fsync);
        // The mark says so to the next process too, unless it could not be left.
        for poison in self.poison.iter_mut().filter(|poison| **poison != Poison::No) {
            *poison = Poison::Perhaps;
        }
        self.replaced = Default::default();
        self.draining = false;
    }

    fn move_away(&mut self, domain: usize, n: usize) {
        let (from, to) = (self.path(domain), self.dir.path().join(format!("{}.{n}", DOMAINS[domain])));
        if std::fs::rename(&from, &to).is_ok()
            && let Some(ragged) = self.ragged.remove(&from)
        {
            self.ragged.insert(to, ragged);
            self.replaced[domain] = true;
            // A copy took the place of a file in doubt, and nobody has seen it before it was moved away: the mark is still
            // there, and is about whatever comes next.
            if self.mark(domain).exists() && self.poison[domain] == Poison::No {
                self.poison[domain] = Poison::Perhaps;
            }
        }
    }

    /// What the runbook says about a poisoned domain.
    fn replace(&mut self, domain: usize) {
        let copy = self.dir.path().join(".new");
        if std::fs::copy(self.path(domain), &copy).is_ok() {
            File::open(&copy).unwrap().sync_all().unwrap();
            std::fs::rename(&copy, self.path(domain)).unwrap();
            // Of two that take its place before anybody looks, the second may get the number of the one in the mark.
            let mark = self.mark(domain);
            let ino = std::fs::metadata(self.path(domain)).unwrap().ino();
            let is_named = std::fs::read_to_string(mark).is_ok_and(|mark| mark.ends_with(&format!(" ino={ino}\n")));
            self.poison[domain] = if is_named { Poison::Perhaps } else { Poison::No };
            self.replaced[domain] = true;
        }
    }

    fn mark(&self, domain: usize) -> PathBuf {
        self.dir.path().join(TORN_DIR).join(format!("{}.jsonl.poisoned", DOMAINS[domain]))
    }

    fn check_file(&self, path: &Path, model: &Model, found: &mut BTreeMap<u32, usize>) {
        let Ok(content) = std::fs::read(path) else { return };
        let (domain, ragged) = self.ragged[path];
        let mut seen: Vec<Place> = Vec::new();
        let mut last_id = None;
        for line in content.split_inclusive(|&b| b == b'\n') {
            let text = line.strip_suffix(b"\n").unwrap_or(line);
            assert!(ragged || text.len() < line.len(), "{path:?} does not end in a newline");
            let Some(&id) = self.by_text.get(text) else {
                assert!(text.len() == line.len(), "{path:?}: no whole event: {}", line.escape_ascii());
                continue;
            };
            let place = model.issued[id as usize];
            assert_eq!(place.domain, domain, "{path:?}: event {id} is of another domain");
            if let Some(before) = seen.last() {
                assert!(place.step >= before.step, "{path:?}: event {id} stands behind a later one");
                let same = place.request == before.request;
                assert!(!same || last_id < Some(id), "{path:?}: event {id} stands before another of its request");
                let known = seen.iter().any(|other| other.request == place.request);
                assert!(same || !known, "{path:?}: event {id} is apart from its request");
            }
            seen.push(place);
            last_id = Some(id);
            *found.entry(id).or_default() += 1;
        }
    }
}

impl StateMachineTest for Service {
    type SystemUnderTest = Service;
    type Reference = Model;

    fn init_test(model: &Model) -> Service {
        let dir = tempfile::tempdir().unwrap();
        let (store, plan) = open(dir.path(), model.fsync);
        let (standing, by_text, ragged, poison, replaced, draining) = Default::default();
        Service { dir, fsync: model.fsync, store, plan, standing, by_text, ragged, poison, replaced, draining }
    }

    fn apply(mut service: Service, model: &Model, step: Step) -> Service {
        match step {
            Step::Append { .. } | Step::Burst(_) => service.send(model),
            Step::Faulty { at, fault, .. } => {
                service.plan.set(at, fault);
                service.send(model);
                service.plan.clear();
            }
            Step::Die { at, fault, .. } => {
                service.plan.set(at, fault);
                service.send(model);
                service.restart();
            }
            Step::Foreign { domain, kind } => service.foreign(domain, kind, model.requests[0].ids[0]),
            Step::Move { domain } => service.move_away(domain, model.moved),
            Step::Replace { domain } => service.replace(domain),
            Step::Cut { domain, bytes } => service.cut(domain, bytes),
            Step::Drain => {
                service.store.begin_drain(Instant::now() + Duration::from_secs(5));
                RUNTIME.block_on(in_time(service.store.drained()));
                service.draining = true;
            }
            Step::Restart => service.restart(),
        }
        service
    }

    fn check_invariants(service: &Service, model: &Model) {
        let mut found = BTreeMap::new();
        for path in service.ragged.keys() {
            service.check_file(path, model, &mut found);
        }
        for (id, standing) in &service.standing {
            let times = found.get(id).copied().unwrap_or(0);
            let holds = match standing {
                Standing::Once => times == 1,
                Standing::AtMostOnce => times <= 1,
                Standing::Never => times == 0,
            };
            assert!(holds, "event {id} should be there {standing:?} and is {times} times, after {} steps", model.steps);
        }
    }
}

/// Asked for at every step, so made once.
static CONFIG: LazyLock<Config> = LazyLock::new(|| {
    let variable = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seed = variable("MODEL_SEED").unwrap_or_else(|| foldhash::quality::RandomState::default().hash_one(0) >> 32);
    println!("MODEL_SEED={seed}");
    let cases = variable("PROPTEST_CASES").unwrap_or(64) as u32;
    Config { cases, rng_seed: RngSeed::Fixed(seed), max_shrink_iters: 2000, ..Config::default() }
});

prop_state_machine! {
    #![proptest_config(CONFIG.clone())]

    /// Broken: some history of faults, restarts and foreign writers would lose, double, tear or
    /// reorder events, or an answer would say the wrong thing about them.
    #[test]
    fn the_store_does_what_its_model_says(sequential 1..40 => Service);
}
