//! The hand-over of jobs, of the writer's desk, and of work to the threads that may block, in every
//! order that two and three threads can have (loom). The code under test is the product's own files,
//! built on loom's mutex.

use std::collections::VecDeque;
use std::time::Instant;

/// What the product's file finds instead of the standard library's mutex.
mod sync {
    pub use loom::sync::{Mutex, MutexGuard};
}
#[path = "../../src/storage/inbox.rs"]
#[allow(dead_code, reason = "the checks do not need every function")]
mod inbox;
#[path = "../../src/storage/ready.rs"]
#[allow(dead_code, reason = "the checks do not need every function")]
mod ready;

use inbox::Inbox;
use loom::sync::{Arc, Mutex};
use loom::thread;
use ready::Ready;

/// What a writer has at hand: jobs taken, jobs done, syncs done.
#[derive(Default)]
struct Desk {
    group: VecDeque<u32>,
    done: Vec<u32>,
    synced: Vec<u32>,
}

type Shared = Arc<Inbox<u32, u32, Desk>>;

fn shared() -> Shared {
    Arc::new(Inbox::new(Desk::default()))
}

/// Takes the next work as the product does.
fn take(inbox: &Shared, desk: Desk) -> Option<Desk> {
    inbox.take_work(desk, |desk, queue, syncs| {
        if desk.group.is_empty() {
            desk.group.append(queue);
        }
        let asked = !syncs.is_empty();
        desk.synced.append(syncs);
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

/// Puts work down and starts the thread that is asked for.
fn put(ready: &Arc<Ready<u32>>, done: &Arc<Mutex<Vec<u32>>>, work: u32) -> Option<thread::JoinHandle<()>> {
    let (to_do, done) = (ready.clone(), done.clone());
    ready.put(work, Instant::now()).then(|| {
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
        assert!(!ready.wants_thread(Instant::now()), "nothing is left");
    });
}
