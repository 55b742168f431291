//! The hand-over of jobs, of the writer's desk, and of work to the threads that may block, in every
//! order that two and three threads can have (loom). The code under test is the product's own files,
//! built on loom's mutex.

use std::collections::VecDeque;
use std::time::Instant;

/// What the product's file finds instead of the standard library's mutex.
mod sync {
    pub use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
    pub use loom::sync::{Condvar, Mutex, MutexGuard};
}
#[path = "../../src/storage/inbox.rs"]
#[allow(dead_code, reason = "the checks do not need every function")]
mod inbox;
#[path = "../../src/storage/ready.rs"]
#[allow(dead_code, reason = "the checks do not need every function")]
mod ready;
#[path = "../../src/storage/rounds.rs"]
#[allow(dead_code, reason = "the checks do not need every function")]
mod rounds;
#[path = "../../src/storage/share.rs"]
#[allow(dead_code, reason = "the checks do not need every function")]
mod share;
#[path = "../../src/storage/sync_doubt.rs"]
#[allow(dead_code, reason = "the checks do not need every function")]
mod sync_doubt;

use inbox::Inbox;
use loom::sync::{Arc, Mutex};
use loom::thread;
use ready::{Call, Ready, SIDE_BY_SIDE};
use rounds::Rounds;
use share::Used;
use sync_doubt::SyncDoubt;

/// What a writer has at hand: jobs taken, jobs done, syncs done.
#[derive(Default)]
struct Desk {
    group: VecDeque<u32>,
    done: Vec<u32>,
    synced: Vec<u32>,
    sunk: Vec<u32>,
    /// The lock, which is held as long as a group is afloat.
    locked: bool,
    poisoned: bool,
}

impl Desk {
    fn refuse_sunk(&mut self) {
        self.poisoned |= !self.sunk.is_empty();
        self.done.append(&mut self.sunk);
    }
}

type Shared = Arc<Inbox<u32, u32, Desk, u32>>;

fn shared() -> Shared {
    Arc::new(Inbox::new(Desk::default()))
}

/// Takes the next work as the product does.
fn take(inbox: &Shared, desk: Desk) -> Option<Desk> {
    inbox.take_work(desk, |desk, waiting| {
        if desk.group.is_empty() {
            desk.group.append(waiting.queue);
        }
        let asked = !waiting.syncs.is_empty();
        desk.synced.append(waiting.syncs);
        desk.sunk.append(waiting.sunk);
        desk.locked &= !waiting.calm;
        asked || !desk.group.is_empty()
    })
}

/// Takes turns until there is nothing left.
fn run(inbox: &Shared, mut desk: Desk) {
    while let Some(mut taken) = take(inbox, desk) {
        taken.done.extend(taken.group.drain(..));
        desk = taken;
    }
}

fn bring(inbox: &Shared, jobs: &[u32]) {
    jobs.iter().for_each(|&job| inbox.put(job));
    if let Some(desk) = inbox.take_desk() {
        run(inbox, desk);
    }
}

/// Everything brought was done once, in each bringer's order, and the desk is free.
fn assert_done(inbox: &Shared, brought: &[&[u32]], synced: &[u32]) {
    assert!(inbox.take_desk().is_none(), "something is left lying");
    inbox
        .at_rest(|desk| {
            assert_eq!(desk.done.len(), brought.iter().map(|jobs| jobs.len()).sum::<usize>());
            for jobs in brought {
                let mine: Vec<u32> = desk.done.iter().copied().filter(|job| jobs.contains(job)).collect();
                assert_eq!(mine, *jobs);
            }
            assert_eq!(desk.synced, synced);
        })
        .expect("the desk was given back");
}

fn check(threads_preempted_max: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(threads_preempted_max);
    builder.check(model);
}

/// Broken: a job put down while the writer is giving the desk back would wait for ever.
#[test]
fn no_job_is_left_lying_and_none_is_done_twice() {
    check(3, || {
        let inbox = shared();
        let others: Vec<_> = [[10, 11], [20, 21]]
            .map(|jobs| {
                let inbox = inbox.clone();
                thread::spawn(move || jobs.iter().for_each(|&job| bring(&inbox, &[job])))
            })
            .into();
        bring(&inbox, &[1, 2]);
        others.into_iter().for_each(|other| other.join().unwrap());
        assert_done(&inbox, &[&[1, 2], &[10, 11], &[20, 21]], &[]);
    });
}

/// Broken: a sync that is asked for while others write would never be answered.
#[test]
fn a_sync_asked_for_in_between_is_answered() {
    check(3, || {
        let inbox = shared();
        let writer = {
            let inbox = inbox.clone();
            thread::spawn(move || bring(&inbox, &[1]))
        };
        let flush = {
            let inbox = inbox.clone();
            thread::spawn(move || {
                inbox.put_sync(7);
                if let Some(desk) = inbox.take_desk() {
                    run(&inbox, desk);
                }
            })
        };
        bring(&inbox, &[2]);
        writer.join().unwrap();
        flush.join().unwrap();
        assert_done(&inbox, &[&[1], &[2]], &[7]);
    });
}

/// Broken: jobs would be lost when the desk goes from one thread to another, as it does before a
/// sync, after the first group of a worker, and after a wait for the lock.
#[test]
fn nothing_is_lost_when_the_desk_changes_threads() {
    check(3, || {
        let inbox = shared();
        let other = {
            let inbox = inbox.clone();
            thread::spawn(move || bring(&inbox, &[10, 11]))
        };
        inbox.put(1);
        let elsewhere = inbox.take_desk().and_then(|desk| take(&inbox, desk)).map(|mut desk| {
            let inbox = inbox.clone();
            thread::spawn(move || {
                // A wait for the lock: whoever queued meanwhile waits for the same lock.
                inbox.drain_into(&mut desk.group);
                run(&inbox, desk);
            })
        });
        inbox.put(2);
        if let Some(desk) = inbox.take_desk() {
            run(&inbox, desk);
        }
        other.join().unwrap();
        elsewhere.into_iter().for_each(|thread| thread.join().unwrap());
        assert_done(&inbox, &[&[1, 2], &[10, 11]], &[]);
    });
}

/// A writer whose groups are synced by whoever is there, as the product does it.
struct Afloat {
    inbox: Inbox<u32, u32, Desk, u32>,
    rounds: Rounds<()>,
    landed: Mutex<Vec<u32>>,
}

impl Afloat {
    fn new() -> Arc<Afloat> {
        Arc::new(Afloat { inbox: Inbox::new(Desk::default()), rounds: Rounds::new(), landed: Mutex::new(Vec::new()) })
    }

    fn bring(&self, job: u32, sync_fails: bool) {
        self.inbox.put(job);
        if let Some(desk) = self.inbox.take_desk() {
            self.run(desk, sync_fails);
        }
        while self.sync(sync_fails) {}
    }

    fn run(&self, mut desk: Desk, sync_fails: bool) {
        while let Some(mut taken) = self.take(desk) {
            taken.refuse_sunk();
            while let Some(job) = taken.group.pop_front() {
                if taken.poisoned {
                    taken.done.push(job);
                    continue;
                }
                taken.locked = true;
                if self.inbox.launch(job) {
                    self.rounds.list((), false);
                }
            }
            // Sometimes a writer has to wait until nothing is afloat.
            if sync_fails {
                self.inbox.calm(|| self.sync(sync_fails));
                self.inbox.take_sunk(&mut taken.sunk);
                taken.refuse_sunk();
            }
            desk = taken;
        }
    }

    fn take(&self, desk: Desk) -> Option<Desk> {
        self.inbox.take_work(desk, |desk, waiting| {
            desk.group.append(waiting.queue);
            desk.sunk.append(waiting.sunk);
            desk.locked &= !waiting.calm;
            !desk.group.is_empty() || !desk.sunk.is_empty()
        })
    }

    /// True: there was something to sync.
    fn sync(&self, fails: bool) -> bool {
        let Some(round) = self.rounds.take(true) else { return false };
        let groups = self.inbox.take_afloat();
        assert!(!groups.is_empty(), "listed for nothing");
        if fails {
            if let Some(desk) = self.inbox.sank(groups) {
                self.run(desk, fails);
            }
        } else {
            self.landed.lock().unwrap().extend(&groups);
            let again = self.inbox.landed(|desk| desk.locked = false);
            if again {
                self.rounds.list((), false);
            }
        }
        self.rounds.done(&round);
        true
    }

    /// The jobs that landed, and those that sank, sorted; all locks are released.
    fn end(&self) -> [Vec<u32>; 2] {
        assert!(self.inbox.take_desk().is_none() && !self.rounds.any_waiting(), "something is left lying");
        let (sunk, locked) = self.inbox.at_rest(|desk| (desk.done.clone(), desk.locked)).expect("all is at rest");
        assert!(!locked, "the lock is held for nothing");
        [self.landed.lock().unwrap().clone(), sunk].map(|mut jobs| {
            jobs.sort_unstable();
            jobs
        })
    }
}

/// Broken: a group that is written while another is synced would wait for ever, or the lock would
/// be held when nobody needs it, or given back while a group is afloat.
#[test]
fn every_group_lands_once_and_the_lock_is_free_in_the_end() {
    check(3, || {
        let afloat = Afloat::new();
        let others: Vec<_> = [2, 3]
            .map(|job| {
                let afloat = afloat.clone();
                thread::spawn(move || afloat.bring(job, false))
            })
            .into();
        afloat.bring(1, false);
        others.into_iter().for_each(|other| other.join().unwrap());
        assert_eq!(afloat.end(), [vec![1, 2, 3], vec![]]);
    });
}

/// Broken: a group written behind one whose sync fails would be taken for stored, or for lost.
#[test]
fn what_is_afloat_when_a_sync_fails_sinks_once() {
    check(3, || {
        let afloat = Afloat::new();
        let other = {
            let afloat = afloat.clone();
            thread::spawn(move || afloat.bring(2, true))
        };
        afloat.bring(1, true);
        other.join().unwrap();
        let [landed, sunk] = afloat.end();
        assert_eq!([landed, sunk].concat(), [1, 2], "each once");
    });
}

/// Puts work down and starts the thread that is asked for.
fn put(ready: &Arc<Ready<u32>>, done: &Arc<Mutex<Vec<u32>>>, work: u32) -> Option<thread::JoinHandle<()>> {
    let (to_do, done) = (ready.clone(), done.clone());
    (ready.put(work, Instant::now(), SIDE_BY_SIDE) == Call::New).then(|| {
        thread::spawn(move || {
            let look_again = || {
                thread::yield_now();
                false
            };
            while let Some(work) = to_do.take(Instant::now(), look_again) {
                done.lock().unwrap().push(work);
            }
        })
    })
}

/// Broken: work put down while the last thread is about to end would wait for the next.
#[test]
fn work_is_done_by_a_thread_that_looks_around_or_by_a_new_one() {
    check(3, || {
        let ready = Arc::new(Ready::new());
        let done = Arc::new(Mutex::new(Vec::new()));
        let mut threads = Vec::new();
        threads.extend(put(&ready, &done, 1));
        let other = {
            let (ready, done) = (ready.clone(), done.clone());
            thread::spawn(move || put(&ready, &done, 2))
        };
        threads.extend(other.join().unwrap());
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let mut done = done.lock().unwrap().clone();
        done.sort_unstable();
        assert_eq!(done, [1, 2]);
        assert_eq!(ready.call(Instant::now(), SIDE_BY_SIDE), Call::Nobody, "nothing is left");
    });
}

/// Broken, requests that fit one by one are all refused when they come at the same moment, or more is taken than there is.
#[test]
fn of_several_that_want_a_share_at_least_one_gets_it() {
    for shares in [&[40, 40][..], &[64, 64], &[64, 1, 64]] {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(move || {
            let (used, held) = (Arc::new(Used::of(64)), Arc::new(Mutex::new(0)));
            let want = |share: usize| {
                let (used, held) = (used.clone(), held.clone());
                move || {
                    let got = used.take(share);
                    if got {
                        let mut held = held.lock().unwrap();
                        *held += share;
                        assert!(*held <= 64);
                    }
                    got
                }
            };
            let others: Vec<_> = shares[1..].iter().map(|share| thread::spawn(want(*share))).collect();
            let first = want(shares[0])();
            let got = others.into_iter().fold(first, |got, other| other.join().unwrap() | got);
            assert!(got, "all of {shares:?} were refused");
            assert_eq!(used.now(sync::Ordering::SeqCst), *held.lock().unwrap());
        });
    }
}

/// Broken, a group would be answered as stored although the commit that it waited for is known to have failed: in every
/// order of a sync that hears nothing, one that hears of the failure, and a probe.
#[test]
fn nobody_is_answered_once_a_sync_that_overlapped_has_failed() {
    use loom::sync::atomic::{AtomicBool, Ordering};
    loom::model(|| {
        let doubt = Arc::new(SyncDoubt::new());
        let (told, aborted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let deaf = thread::spawn({
            let (doubt, told, aborted) = (doubt.clone(), told.clone(), aborted.clone());
            move || {
                let Some(since) = doubt.begin() else { return };
                let written_before = !aborted.load(Ordering::SeqCst);
                // Its sync returns 0, whatever happens. If the failure was told by then, it must not count.
                let told = told.load(Ordering::SeqCst);
                assert!(!(written_before && told && doubt.is_sound(since)));
            }
        });
        let hears = thread::spawn({
            let doubt = doubt.clone();
            move || {
                aborted.store(true, Ordering::SeqCst);
                doubt.failed();
                told.store(true, Ordering::SeqCst);
            }
        });
        if let Some(probe) = doubt.begin_probe() {
            let _ = doubt.end_probe(probe, true);
        }
        deaf.join().unwrap();
        hears.join().unwrap();
    });
}

/// Broken, a probe that began before a failure would let appends go on after it, or two would run at once.
#[test]
fn a_probe_proves_nothing_about_failures_that_come_after_its_begin() {
    // All orders take two minutes.
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(|| {
        let doubt = Arc::new(SyncDoubt::new());
        doubt.failed();
        let fails_again = thread::spawn({
            let doubt = doubt.clone();
            move || doubt.failed()
        });
        let probes = |doubt: &SyncDoubt| {
            let Some(probe) = doubt.begin_probe() else { return };
            assert!(doubt.begin_probe().is_none(), "one at a time");
            let _ = doubt.end_probe(probe, true);
        };
        let also_probes = thread::spawn({
            let doubt = doubt.clone();
            move || {
                let _ = doubt.begin_probe().map(|probe| doubt.end_probe(probe, false));
            }
        });
        probes(&doubt);
        fails_again.join().unwrap();
        also_probes.join().unwrap();
        // Whoever probes last lets the appends go on, if it succeeds.
        while let Some(probe) = doubt.begin_probe() {
            let _ = doubt.end_probe(probe, true);
        }
        assert!(doubt.begin().is_some());
    });
}
